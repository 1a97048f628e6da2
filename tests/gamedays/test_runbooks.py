"""`uplift runbook`: steps that hold are left alone, others are done and looked at again, and the guide has them all."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.jobs.conftest import rows_of
from tests.jobs.test_monitor import DAYS, START, assigned, day
from tests.jobs.test_monitor import conf as daily_conf
from uplift_spark.campaign import Campaign
from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError
from uplift_spark.gamedays.runbooks import RUNBOOKS, Incident, RunbookStep, StepState, follow
from uplift_spark.jobs import features, ingest, monitor, runbook, train
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.alerts import AlertBook, AlertRule, Condition, runbook_of
from uplift_spark.monitoring.detectors import DETECTORS
from uplift_spark.monitoring.kpis import FOUNDING_KPIS
from uplift_spark.sections.governance import AuditConf, Governance

GUIDE = Path(__file__).parents[2] / "docs/runbooks.md"
NOW = START + timedelta(days=DAYS[-1] + 1, hours=7)


def steps_of(world: dict[str, bool], *names: str) -> list[RunbookStep]:
    """A step for each name, which holds where the world says so; `people` only people can do."""

    def check(name: str):
        return lambda _: StepState("holds" if world[name] else "waits" if name == "people" else "to do", name)

    def act(name: str):
        return None if name == "people" else lambda _: world.update({name: True})

    return [RunbookStep(f"{name} holds.", check(name), act(name)) for name in names]


def walked(world: dict[str, bool], execute: bool) -> tuple[list[str], int]:
    """How the steps stand, and how often the record was begun."""
    begun: list[bool] = []
    incident = Incident(None, lambda _: None, NOW, "a test")  # type: ignore[arg-type]
    walk = follow(steps_of(world, "one", "people", "two"), incident, execute, lambda: begun.append(True))
    return [state.standing for _, state in walk], len(begun)


def test_steps_are_done_until_one_waits_and_go_on_when_run_again() -> None:
    world = dict.fromkeys(("one", "people", "two"), False)
    assert walked(world, execute=False) == (["to do", "later", "later"], 0)
    assert not any(world.values())
    assert walked(world, execute=True) == (["holds", "waits", "later"], 1)
    assert walked(world, execute=True) == (["holds", "waits", "later"], 0)
    world["people"] = True
    assert walked(world, execute=True) == (["holds", "holds", "holds"], 1)
    assert walked(world, execute=True) == (["holds", "holds", "holds"], 0)


def test_an_act_that_brings_nothing_about_stops_the_runbook() -> None:
    idle = RunbookStep("It holds.", lambda _: StepState("to do", "not yet"), lambda _: None)
    incident = Incident(None, lambda _: None, NOW, "a test")  # type: ignore[arg-type]
    walk = follow([idle, idle], incident, True, lambda: None)
    assert [state.standing for _, state in walk] == ["to do", "later"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "roll-back"}, "`uplift runbook` has no 'roll-back': did you mean 'rollback'"),
        ({"name": "rollback", "execute": True, "reason": " "}, "`uplift runbook rollback --execute` needs --reason"),
        ({"name": "hotfix"}, "`uplift runbook hotfix` needs --version, as in --version 3"),
        ({"name": "backfill"}, "`uplift runbook backfill` needs --since, as in --since 2025-01-31"),
        ({"name": "backfill", "since": "soon"}, "--since 'soon' is no time: use such as 2026-03-09"),
        ({"name": "label-outage", "version": 3}, "`uplift runbook label-outage` puts no version in force: leave"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(chosen: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runbook.options(**chosen)  # type: ignore[arg-type]


def test_the_guide_has_every_runbook_with_its_steps_and_alerts_name_pages_that_are_there() -> None:
    text = GUIDE.read_text()
    for name, book in RUNBOOKS.items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert book.when in section, name
        for number, step in enumerate(book.steps, 1):
            assert f"{number}. {step.goal}" in section, (name, step.goal)
    rules = {kpi.name for kpi in FOUNDING_KPIS} | set(DETECTORS)
    pages = {runbook_of(rule) for rule in rules}
    assert {f"docs/runbooks.md#{name}" for name in ("label-outage", "delivery-outage", "rollback")} <= pages
    assert all((GUIDE.parents[1] / page.partition("#")[0]).is_file() for page in pages)


@pytest.fixture(scope="module")
def prepared(spark, tmp_path_factory) -> tuple[Path, Path]:
    """Folder of a campaign that was monitored in its first window alone, and of its source."""
    folder = tmp_path_factory.mktemp("runbook")
    assigned().to_parquet(folder / "units.parquet")
    lake = Lake(spark, Lakehouse(path=str(folder / "lakehouse")))
    campaign = Campaign(daily_conf(folder, lake), lake)
    for job in (ingest, features, train):
        job.run(campaign)
    monitor.run(campaign, window=day(DAYS[0]))
    return folder / "lakehouse", folder


@pytest.fixture
def campaign(spark, prepared, tmp_path) -> Campaign:
    shutil.copytree(prepared[0], tmp_path / "lakehouse")
    lake = Lake(spark, Lakehouse(path=str(tmp_path / "lakehouse")))
    return Campaign(replace(daily_conf(prepared[1], lake), governance=Governance(AuditConf())), lake)


def follow_it(campaign: Campaign, name: str, **chosen: object) -> list[str]:
    return runbook.run(campaign, now=NOW, **runbook.options(name, **chosen)).details["summary"].splitlines()  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_outage_of_labels_is_measured_again_closed_and_on_record(campaign: Campaign) -> None:
    lake = campaign.lake
    rule = Condition(AlertRule("label_lag", "page"), "daily", START, True, "labels are missing", labels={"cut": "all"})
    lake.write("gold.alerts", lake.filled("gold.alerts", map(asdict, AlertBook().observe([rule]))), "alerts-0")
    before = {table: lake.version(table) for table in lake.tables()}
    lines = follow_it(campaign, "label-outage")
    assert "to do: 5 windows are not measured on what is known now, from 2025-01-07 00:00" in lines[1]
    assert all("later: after the steps before it" in line for line in lines[2:5])
    assert lines[5] == "Step 1 of 4 is to do: add --execute and --reason to act."
    assert {table: lake.version(table) for table in lake.tables()} == before
    lines = follow_it(campaign, "label-outage", execute=True, reason="the till is back")
    assert lines[-1] == "All 4 steps hold: nothing is left to do about label-outage.", "\n".join(lines)
    assert rows_of(lake, "gold.kpi")["window_start"].nunique() == len(DAYS)
    events = rows_of(lake, "gold.alerts").query("rule == 'label_lag'").sort_values("sequence")
    assert list(events["event"])[-1] == "closed" and list(events["note"])[-1] == "the till is back"
    entries = rows_of(lake, "gold.audit_log").sort_values("seq")
    assert list(entries["action"]) == ["runbook", "alert"] and set(entries["reason"]) == {"the till is back"}
    done = {table: lake.version(table) for table in lake.tables()}
    assert follow_it(campaign, "label-outage", execute=True, reason="once more")[-1] == lines[-1]
    assert {table: lake.version(table) for table in lake.tables()} == done


@pytest.mark.slow
def test_labels_that_are_still_missing_are_waited_for(spark, tmp_path) -> None:
    units = assigned()
    units.assign(bought=units["bought"].where(units["at"] < day(14).replace(tzinfo=None, hour=0), 0.0)).to_parquet(
        tmp_path / "units.parquet"
    )
    lake = Lake(spark, Lakehouse(path=str(tmp_path / "lakehouse")))
    campaign = Campaign(daily_conf(tmp_path, lake), lake)
    for job in (ingest, features, train):
        job.run(campaign)
    for number in DAYS:
        monitor.run(campaign, window=day(number))
    lines = follow_it(campaign, "label-outage", execute=True, reason="the till is silent")
    assert "waits: the window from 2025-01-21 00:00 to 2025-01-22 00:00 UTC still shows" in lines[2]
    assert lines[-1] == "Step 2 of 4 waits; run it again when that has come."
    alerts = rows_of(lake, "gold.alerts")
    assert "closed" not in set(alerts["event"])
    assert set(alerts.loc[alerts["rule"].isin(["label_lag", "outcome_completeness"]), "runbook"]) == {
        "docs/runbooks.md#label-outage"
    }
