"""What each scene asks of the jobs, in which order and when, with jobs that answer as they should, or do not.

The scenes themselves, with the real jobs on a real lakehouse, are slow tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.gamedays.play import ARRIVALS, GameDay, GameDayFailed, game_config
from uplift_spark.gamedays.scenes import GAME_DAYS, LOOP, ScenePlan
from uplift_spark.jobs import gameday
from uplift_spark.lake.schemas import (
    ASSIGNMENT_TABLE,
    DELIVERY_TABLE,
    OUTCOME_TABLE,
    contract_of,
    profile_table,
)
from uplift_spark.lake.tables import Lake

ALERTS = {
    "drift": ("ticket", "drift_score"),
    "label-outage": ("page", "label_lag"),
    "non-delivery": ("page", "non_compliance"),
    "confounding": ("ticket", "confounding"),
    "schema-change": ("page", "deployment_mismatch"),
    "loop": ("page", "label_lag"),
}


@dataclass
class Answers(GameDay):
    """A game day whose jobs answer from a script, and which remembers what was done on which day."""

    fires_on: dict[int, tuple[str, str]] = field(default_factory=dict)
    resolves: bool = True
    decision: str | None = None
    calls: list[tuple[int, str]] = field(default_factory=list)
    firing: list[str] = field(default_factory=list)

    def _call(self, what: str) -> None:
        self.calls.append(((self.now - self.world.at(0)).days, what))

    def load(self, table: str, rows: pd.DataFrame, replaced: tuple[str, ...] = ()) -> int:
        self._call(f"load {table}")
        return len(rows)

    def open(self, train_on: int, planned: bool, deliveries: bool = False) -> None:
        self.at(train_on)
        self._call("open")

    def lost(self) -> dict[str, int]:
        return {}

    def monitor(self, day: int) -> list[str]:
        self._call(f"monitor {day}")
        if day in self.fires_on:
            severity, rule = self.fires_on.pop(day)  # monitored once more, it is mended
            self.note("alert", f"{severity} {rule} fired: it is so")
            self.firing = [f"{severity} {rule}"]
        elif self.resolves:
            self.firing = []
        return self.firing

    def plan(self) -> None:
        self._call("plan")

    def retrain(self, decision: str, because: str | None = None) -> dict[str, Any]:
        self._call("retrain")
        self.check((self.decision or decision) == decision, f"retrain decided {self.decision}, not {decision}")
        return {"decision": decision, "model_version": "2", "fit": "regrow"}

    def canary(self, what: str, state: str) -> dict[str, Any]:
        self._call(f"canary {what}: {state}")
        return {}

    def acknowledge(self, rule: str, why: str) -> None:
        self._call(f"acknowledge {rule}")

    def runbook(self, name: str, reason: str, over: bool) -> None:
        self._call(f"runbook {name}: {'over' if over else 'waits'}")
        self.check(self.resolves or not over, f"runbook {name}: an alert still fires")
        if over:
            self.firing = []

    def follow_plan(self, occasion: str) -> int:
        return 1

    def swapped_version(self) -> int:
        self._call("swapped")
        return 3

    def in_force(self, version: int) -> None:
        self._call(f"in force {version}")


class Rows(SimpleNamespace):
    """Rows of a table, as far as a scene reads them."""

    def where(self, _: str) -> Rows:
        return self

    def select(self, _: str) -> Rows:
        return self

    def toPandas(self) -> pd.DataFrame:
        return pd.DataFrame({"source": ["03.parquet#1"]})


def answering(scene: ScenePlan, **changes: Any) -> Answers:
    world = scene.world(100)
    lake = SimpleNamespace(read=lambda _: Rows())
    base: Any = SimpleNamespace(champion=SimpleNamespace(version=1), lake=lake)
    return Answers(world, Path(), base, lambda _: None, world.at(0), **changes)


def played(name: str, **changes: Any) -> Answers:
    scene = LOOP if name == "loop" else GAME_DAYS[name]
    first = {"drift": 30, "label-outage": 19, "loop": 79}.get(name, 20)
    fires = {first: ALERTS[name], **({30: ALERTS["drift"]} if name == "loop" else {})} if name in ALERTS else {}
    game = answering(
        scene, **{"fires_on": fires, **{key: dict(one) if key == "fires_on" else one for key, one in changes.items()}}
    )
    game.results = scene.play(game)  # type: ignore[attr-defined]
    return game


@pytest.mark.parametrize("name", GAME_DAYS)
def test_each_is_detected_acted_on_and_over(name: str) -> None:
    game = played(name)
    (result,) = game.results  # type: ignore[attr-defined]
    assert result.name == name and None not in (result.detected, result.acted, result.recovered)
    assert result.began < result.detected <= result.acted <= result.recovered
    assert game.entries[-1].kind in ("mended", "job", "alert")
    assert [one.kind for one in game.entries].count("mended") == 1


def test_the_loop_is_drift_then_a_bad_model_then_no_retraining() -> None:
    game = played("loop")
    assert [call for call in game.calls if call[1].startswith(("canary", "retrain", "in force"))] == [
        *((35, "retrain"), (35, "canary start: running"), (37, "canary decide: promoted"), (37, "in force 2")),
        *((60, "canary start: running"), (61, "canary decide: running"), (62, "canary decide: rolled back")),
        *((62, "in force 1"), (84, "retrain")),
    ]
    assert [one.name for one in game.results] == ["drift", "bad-model", "label-outage"]  # type: ignore[attr-defined]
    assert [one.day for one in game.entries if one.kind == "fault"] == [30, 50, 60, 80]
    assert game.world.at(84).weekday() == 0


def test_outages_are_over_when_their_runbook_says_so() -> None:
    for name, book, days in (("label-outage", "label-outage", (22, 24)), ("non-delivery", "delivery-outage", (21, 23))):
        calls = [call for call in played(name).calls if call[1].startswith("runbook")]
        assert calls == [(days[0], f"runbook {book}: waits"), (days[1], f"runbook {book}: over")]


def test_windows_that_have_to_drift_have_one_of_the_same_weekday_before_them() -> None:
    windows = [int(what.removeprefix("monitor ")) for _, what in played("drift").calls if what.startswith("monitor ")]
    assert {30, 31, 34} <= set(windows) and {23, 24, 27} <= set(windows)
    assert windows == sorted(windows)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("drift", {"fires_on": {}}, "day 32: no alert says that customers have changed"),
        ("drift", {"fires_on": {28: ("page", "label_lag")}}, "day 29: alerts fire before the fault: page label_lag"),
        ("drift", {"decision": "rejected"}, "day 35: retrain decided rejected, not challenger"),
        (
            "label-outage",
            {"fires_on": {17: ("page", "label_lag")}},
            "day 19: alerts about labels fire before the outage",
        ),
        ("label-outage", {"fires_on": {}}, "day 22: no page says that labels are missing"),
        ("label-outage", {"fires_on": {19: ("ticket", "label_lag")}}, "no page says that labels are missing"),
        ("label-outage", {"decision": "challenger"}, "day 22: retrain decided challenger, not blocked"),
        ("confounding", {"fires_on": {20: ("ticket", "low_sample")}}, "day 21: no alert of confounding fires"),
        ("non-delivery", {"resolves": False}, "day 23: runbook delivery-outage: an alert still fires"),
    ],
)
def test_what_differs_ends_the_game_day(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GameDayFailed, match=says):
        played(name, **changes)


def test_the_clock_never_goes_back() -> None:
    game = answering(GAME_DAYS["drift"]).at(5)
    with pytest.raises(GameDayFailed, match="the clock goes back from 2025-01-11 07:00 to 2025-01-10 07:00"):
        game.at(4)


def test_the_configuration_is_one_that_the_platform_takes(tmp_path: Path) -> None:
    for scene in (*GAME_DAYS.values(), LOOP):
        config = game_config(scene.world(100), tmp_path)
        assert config.labels.window_days + config.labels.wait_days < config.canary.max_days
        last = max((fault.until for fault in scene.faults), default=0)
        assert last <= scene.days + 1


def test_names_and_folders_of_the_command(tmp_path: Path) -> None:
    assert list(gameday.chosen_scenes("all")) == list(GAME_DAYS) and gameday.chosen_scenes("loop") == {"loop": LOOP}
    with pytest.raises(ConfigError, match="`uplift gameday` has no 'label-outtage': did you mean 'label-outage'"):
        gameday.chosen_scenes("label-outtage")
    (tmp_path / "mine").mkdir()
    gameday.check_ours([tmp_path / "mine", tmp_path / "nowhere"])
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match="mine holds something else than a game day: name another folder with --to"):
        gameday.check_ours([tmp_path / "mine"])
    (tmp_path / "mine" / ARRIVALS).mkdir()
    gameday.check_ours([tmp_path / "mine"])


def test_what_is_reported_has_the_columns_of_the_raw_tables() -> None:
    world = LOOP.world(100)
    profile = profile_table(world.campaign)
    reported = {
        ASSIGNMENT_TABLE: world.assignments(), OUTCOME_TABLE: world.purchases(), DELIVERY_TABLE: world.deliveries(),
        profile: world.profiles().drop(columns=["age", "channel"]),
    }  # fmt: skip
    for table, rows in reported.items():
        contract = contract_of(table)
        assert contract is not None
        assert set(rows.columns) == set(contract.columns.names) - {"source", "run_id", "ingested_at"}, table


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GAME_DAYS, "loop"])
def test_it_is_played_by_the_real_jobs(lake: Lake, tmp_path: Path, name: str) -> None:
    scene = LOOP if name == "loop" else GAME_DAYS[name]
    game = GameDay.of(scene.world(1000), tmp_path / "played", lake, lambda _: None)
    results = scene.play(game)
    for result in results:
        assert result.detected is not None and not any(result.lost.values()), result
        assert result.recovered is not None or name == "loop"
