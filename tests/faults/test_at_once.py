"""Ingests of one campaign in two processes at once, and replacements that are killed: each row is there once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import nights, shelf
from tests.faults.driver import MET
from tests.faults.interruptions import drivers_at_once
from uplift_spark.errors import ConflictError, OvertakenError
from uplift_spark.events.ingest import tables_of
from uplift_spark.events.table_source import Replacement
from uplift_spark.lake.tables import Lake

pytestmark = pytest.mark.slow


def at_once(folder: Path, name: str) -> list[object]:
    meeting = folder / "meeting"
    meeting.mkdir()
    return drivers_at_once(folder, [f"{name}:first", name], f"{MET}={meeting}")


def units(lake: Lake, table: str) -> list[str]:
    return sorted(row["unit_id"] for row in lake.read(table).select("unit_id").collect())


def bought(numbers: range) -> list[str]:
    return sorted(f"u{i}" for i in numbers if i % 3 % 2)


def check_shelf(lake: Lake, count: int) -> None:
    """The tables hold the file of that many units and nothing of the other one."""
    assert units(lake, "bronze.assignment") == units(lake, "bronze.profile_shelf")
    assert units(lake, "bronze.assignment") == sorted(f"u{i}" for i in range(count))
    assert units(lake, "bronze.outcome") == bought(range(count))
    assert lake.read("bronze.quarantine").count() == 1


def check_nights(lake: Lake, first: int, last: int) -> None:
    """The tables hold these nights and nothing else."""
    every = range(40 * first, 40 * last + 40)
    assert units(lake, "bronze.assignment") == units(lake, "bronze.profile_nights") == sorted(f"u{i}" for i in every)
    assert units(lake, "bronze.outcome") == sorted(f"u{i}" for i in every if i % 3)
    assert lake.read("bronze.quarantine").count() == last - first + 1


def test_of_two_sources_of_one_campaign_one_is_loaded(lake: Lake, tmp_path: Path) -> None:
    outcomes = at_once(tmp_path, "shelf")
    (won,) = [i for i, one in enumerate(outcomes) if one == "done"]
    lost = outcomes[1 - won]
    assert isinstance(lost, ConflictError) and "another run wrote bronze.profile_shelf while run ingest-" in str(lost)
    check_shelf(lake, (500, 600)[won])
    shelf((500, 600)[won], lake)  # adds nothing
    with pytest.raises(ConflictError, match=r"already holds campaign 'shelf' from run .* with --replace"):
        shelf((600, 500)[won], lake)
    check_shelf(lake, (500, 600)[won])


def test_of_two_that_take_the_place_of_a_third_one_is_loaded(lake: Lake, tmp_path: Path) -> None:
    shelf(400, lake)
    outcomes = at_once(tmp_path, "shelf again")
    assert "done" in outcomes and all(one == "done" or isinstance(one, ConflictError) for one in outcomes), outcomes
    shelf(600, lake, replaces=True)  # whoever lost runs again
    check_shelf(lake, 600)


@pytest.mark.parametrize("place", [1, 3])
def test_one_of_two_that_take_over_at_once_writes_all(place: int, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins and takes over while the other is between two tables of its own taking over."""
    shelf(400, lake)
    real, calls, second = Lake.take_over, 0, []

    def begun() -> Replacement:
        return Replacement.begun(lake, "shelf", True, lambda _: "ingest-new")

    def watched(self: Lake, table: str, name: str) -> None:
        nonlocal calls
        real(self, table, name)
        calls += 1
        if calls == place:
            second.append(begun())

    monkeypatch.setattr(Lake, "take_over", watched)
    first = begun()

    def all_written(one: Replacement, run_id: str) -> bool:
        try:
            for table in filter(lake.exists, tables_of("shelf")):
                lake.write(table, lake.read(table).drop("run_id").limit(0), run_id, claim=one.claims[table])
        except OvertakenError:
            return False
        return True

    assert sum([all_written(second[0], "ingest-b"), all_written(first, "ingest-a")]) == 1


def test_nights_at_once_add_each_row_once(lake: Lake, tmp_path: Path) -> None:
    assert at_once(tmp_path, "nights") == ["done", "done"]
    check_nights(lake, 1, 2)


def test_of_two_sources_that_replace_at_once_one_is_there(lake: Lake, tmp_path: Path) -> None:
    nights(1, lake)
    outcomes = at_once(tmp_path, "nights again")
    assert "done" in outcomes and all(one == "done" or isinstance(one, ConflictError) for one in outcomes), outcomes
    nights(3, lake, replaces=True, first=2)
    check_nights(lake, 2, 3)


CHANGES = ("write", "delete_rows", "delete_runs", "delete_matching", "set_properties")


def killed_at(patched: pytest.MonkeyPatch, change: int) -> list[str]:
    """Have the change of that number, from 0, end the process as a kill would; the changes made so far."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def one(*arguments: Any, **named: Any) -> Any:
            if len(made) == change:
                raise KeyboardInterrupt
            made.append(name)
            return real(*arguments, **named)

        return one

    for name in CHANGES:
        patched.setattr(Lake, name, counted(name, getattr(Lake, name)))
    return made


@pytest.mark.parametrize("source", ["shelf", "nights"])
def test_a_killed_replacement_completes_when_it_runs_again(
    lake: Lake, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first change, its second and so on, until none is left; each time on top of the last."""
    before, after, check = {
        "shelf": (partial(shelf, 500), partial(shelf, 600, replaces=True), partial(check_shelf, count=600)),
        "nights": (
            partial(nights, 2, replaces=True),
            partial(nights, 3, replaces=True, first=2),
            partial(check_nights, first=2, last=3),
        ),
    }[source]
    before(lake)
    back = partial(shelf, 500, replaces=True) if source == "shelf" else before
    for change in range(40):
        with monkeypatch.context() as patched:
            killed_at(patched, change)
            try:
                after(lake)
            except KeyboardInterrupt:
                killed = True
            else:
                killed = False
        after(lake)
        check(lake)
        if not killed:
            break
        back(lake)
    else:
        raise AssertionError("the replacement never came to its end")
    assert change > 5
