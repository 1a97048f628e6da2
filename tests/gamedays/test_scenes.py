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
from uplift_spark.gamedays.scenes import GAME_DAYS, ScenePlan
from uplift_spark.jobs import gameday
from uplift_spark.lake.schemas import (
    ASSIGNMENT_TABLE,
    OUTCOME_TABLE,
    contract_of,
    profile_table,
)
from uplift_spark.lake.tables import Lake


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

    def open(self, train_on: int, planned: bool) -> None:
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


FIRES = {
    "schema-change": {20: ("page", "deployment_mismatch")},
    "loop": {30: ("ticket", "drift_score"), 80: ("page", "label_lag")},
}


def played(name: str, **changes: Any) -> Answers:
    game = answering(GAME_DAYS[name], **{"fires_on": dict(FIRES[name]), **changes})
    game.results = GAME_DAYS[name].play(game)  # type: ignore[attr-defined]
    return game


@pytest.mark.parametrize("name", GAME_DAYS)
def test_each_is_detected_and_acted_on(name: str) -> None:
    game = played(name)
    for result in game.results:  # type: ignore[attr-defined]
        assert result.detected is not None and result.acted is not None
        assert result.began < result.detected <= result.acted <= (result.recovered or game.now)
        assert result.recovered is not None or result.name == "label-outage"
    assert [one.kind for one in game.entries].count("mended") == len(game.results)  # type: ignore[attr-defined]


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


def test_windows_that_have_to_drift_have_one_of_the_same_weekday_before_them() -> None:
    windows = [int(what.removeprefix("monitor ")) for _, what in played("loop").calls if what.startswith("monitor ")]
    assert {30, 31, 34} <= set(windows) and {23, 24, 27} <= set(windows)


@pytest.mark.parametrize(
    ("name", "fires", "changes", "says"),
    [
        ("loop", {30: None}, {}, "day 32: no alert says that customers have changed"),
        ("loop", {28: ("page", "label_lag")}, {}, "day 29: alerts fire before the fault: page label_lag"),
        ("loop", {}, {"decision": "rejected"}, "day 35: retrain decided rejected, not challenger"),
        ("loop", {77: ("page", "label_lag")}, {}, "day 79: alerts about labels fire before the outage: page label_lag"),
        ("loop", {80: None}, {}, "day 82: no page says that labels are missing"),
        ("loop", {80: ("ticket", "label_lag")}, {}, "day 82: no page says that labels are missing"),
        ("schema-change", {20: ("ticket", "low_sample")}, {}, "day 21: no alert of deployment_mismatch fires"),
        ("schema-change", {}, {"decision": "challenger"}, "day 21: retrain decided challenger, not blocked"),
        ("schema-change", {}, {"resolves": False}, "day 22: alerts still fire: page deployment_mismatch"),
    ],
)
def test_what_differs_ends_the_game_day(name: str, fires: dict[int, Any], changes: dict[str, Any], says: str) -> None:
    fires_on = {day: alert for day, alert in {**FIRES[name], **fires}.items() if alert is not None}
    with pytest.raises(GameDayFailed, match=says):
        played(name, fires_on=fires_on, **changes)


def test_the_clock_never_goes_back() -> None:
    game = answering(GAME_DAYS["loop"]).at(5)
    with pytest.raises(GameDayFailed, match="the clock goes back from 2025-01-11 07:00 to 2025-01-10 07:00"):
        game.at(4)


def test_the_configuration_is_one_that_the_platform_takes(tmp_path: Path) -> None:
    for scene in GAME_DAYS.values():
        config = game_config(scene.world(100), tmp_path)
        assert config.labels.window_days + config.labels.wait_days < config.canary.max_days
        last = max((fault.until for fault in scene.faults), default=0)
        assert last <= scene.days + 1


def test_names_and_folders_of_the_command(tmp_path: Path) -> None:
    assert gameday.chosen_scenes("all") == GAME_DAYS and gameday.chosen_scenes("loop") == {"loop": GAME_DAYS["loop"]}
    with pytest.raises(ConfigError, match="`uplift gameday` has no 'schema-chance': did you mean 'schema-change'"):
        gameday.chosen_scenes("schema-chance")
    (tmp_path / "mine").mkdir()
    gameday.check_ours([tmp_path / "mine", tmp_path / "nowhere"])
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match="mine holds something else than a game day: name another folder with --to"):
        gameday.check_ours([tmp_path / "mine"])
    (tmp_path / "mine" / ARRIVALS).mkdir()
    gameday.check_ours([tmp_path / "mine"])


def test_what_is_reported_has_the_columns_of_the_raw_tables() -> None:
    world = GAME_DAYS["loop"].world(100)
    profile = profile_table(world.campaign)
    reported = {
        ASSIGNMENT_TABLE: world.assignments(), OUTCOME_TABLE: world.purchases(),
        profile: world.profiles().drop(columns=["age", "channel"]),
    }  # fmt: skip
    for table, rows in reported.items():
        contract = contract_of(table)
        assert contract is not None
        assert set(rows.columns) == set(contract.columns.names) - {"source", "run_id", "ingested_at"}, table


@pytest.mark.slow
@pytest.mark.parametrize("name", GAME_DAYS)
def test_it_is_played_by_the_real_jobs(lake: Lake, tmp_path: Path, name: str) -> None:
    scene = GAME_DAYS[name]
    game = GameDay.of(scene.world(1000), tmp_path / "played", lake, lambda _: None)
    results = scene.play(game)
    for result in results:
        assert result.detected is not None and not any(result.lost.values()), result
        assert result.recovered is not None or result.name == "label-outage"
