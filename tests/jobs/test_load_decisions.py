"""The log of decisions on its way to bronze: each entry once, and none of erased units."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.load import Load
from uplift_spark.governance.erasure import Erasure
from uplift_spark.jobs import erase, load
from uplift_spark.jobs.load import LOGGED_TABLES, LoggedDecisions, options
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, DECISION_TABLE, OUTCOME_TABLE, QUARANTINE
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.decisions import DECISION, DELIVERY, OUTCOME, DecisionLog, LogEntry

NOW = datetime(2026, 3, 1, 9, tzinfo=UTC)


def entries(number: int, late: bool = False) -> list[LogEntry]:
    """What happens to a unit: two decisions, a delivery and an outcome; `late`: the outcome is of a day to come."""
    unit, at = f"u{number}", (NOW + timedelta(seconds=number)).isoformat()
    decision = {
        "unit_id": unit, "campaign": "spring", "level": "mail", "reason": "best within the limits", "propensity": 0.8,
        "overall_propensity": 0.6, "explored": False, "decided_at": at, "expires_at": at,
        "model": {"name": "spring", "version": 1, "published": "v1"}, "degraded": [],
    }  # fmt: skip
    happened = (NOW + timedelta(days=2)).isoformat() if late else at
    known = {"unit_id": unit, "campaign": "spring", "known_at": (NOW + timedelta(hours=1)).isoformat()}
    delivery = {**known, "delivery_id": f"d{number}", "status": "delivered", "delivered_at": at}
    outcome = {**known, "outcome": "visit", "event_id": "the same", "value": 1.0, "occurred_at": happened}
    keys = [f"{unit}-{again}" for again in range(2)]
    return [
        *(LogEntry(DECISION, key, {"request_key": key, **decision}) for key in keys),
        LogEntry(DELIVERY, unit, delivery),
        LogEntry(OUTCOME, unit, outcome),
    ]


@pytest.fixture
def campaign(lake: Lake, tmp_path: Path) -> Iterator[Campaign]:
    serving = Serving(log=str(tmp_path / "log" / "decisions.sqlite"))
    conf = Config("spring", None, RolesConf("visit", "none", ("age",)), lakehouse=lake.lakehouse, serving=serving)
    yield Campaign(conf, lake)


def log_of(campaign: Campaign) -> DecisionLog:
    return DecisionLog(Path(str(campaign.config.serving.log)))


def append(campaign: Campaign, *units: int, late: bool = False) -> None:
    log = log_of(campaign)
    log.append([entry for unit in units for entry in entries(unit, late)])
    log.close()


def loaded(campaign: Campaign, most: int = 100_000) -> JobResult:
    return load.run(campaign, load=LoggedDecisions(most=most))


def rows(campaign: Campaign, table: str) -> list[dict[str, Any]]:
    """Rows in the order of their entries, without what says who loaded them when."""
    lake = campaign.lake
    if not lake.exists(table):
        return []
    apart = ("run_id", "ingested_at", "known_at")
    kept = [name for name in lake.read(table).columns if name not in apart]
    number = F.regexp_extract("source", "@([0-9]+)#", 1).try_cast("bigint")
    return [row.asDict() for row in lake.read(table).orderBy(number, *kept).select(*kept).collect()]


def test_options_say_what_is_missing() -> None:
    assert options("decisions") == {"load": LoggedDecisions()}
    assert options("decisions", "log.sqlite") == {"load": LoggedDecisions(Path("log.sqlite"))}
    assert options("bronze.event", "a.csv", "csv") == {"load": Load("bronze.event", "a.csv", "csv")}
    with pytest.raises(ConfigError, match=r"say what to load into bronze\.event with --from and --format"):
        options("bronze.event")
    with pytest.raises(ConfigError, match="takes --from FILE alone"):
        options("decisions", format_="csv")


def test_every_entry_is_loaded_once_and_only_new_ones_later(campaign: Campaign, spark: Any) -> None:
    lake = campaign.lake
    source = Path(str(campaign.config.serving.log)).parents[1] / "assigned.csv"
    source.write_text("unit_id,campaign,treatment,assigned_at,propensity\nu2,spring_served,none,2026-02-01T00:00Z,.5\n")
    load.run(campaign, load=Load(ASSIGNMENT_TABLE, str(source), "csv"))
    with pytest.raises(DataError, match=r"no log of decisions is at .*: correct serving.log or --from, or serve first"):
        loaded(campaign)
    append(campaign, 1, 2)
    append(campaign, 3, late=True)
    first = loaded(campaign)
    assert first.details["added"] == {"decision": 6, "assignment": 2, "delivery": 3, "outcome": 2}
    assert first.details["rejected"] == {"outcome: known_at_order": 1}
    assert first.details["left_out"] == {"assignment: already_assigned": 1}  # u2's is the file's
    decisions = rows(campaign, DECISION_TABLE)
    assert [(row["unit_id"], row["assigns"]) for row in decisions] == [
        (unit, assigns) for unit in ("u1", "u2", "u3") for assigns in (True, False)
    ]
    assert {(row["campaign"], row["treatment"], row["model_version"]) for row in decisions} == {
        ("spring_served", "mail", "1")
    }
    assigned = {row["unit_id"]: (row["treatment"], row["propensity"]) for row in rows(campaign, ASSIGNMENT_TABLE)}
    assert assigned == {"u1": ("mail", 0.6), "u2": ("none", 0.5), "u3": ("mail", 0.6)}
    assert [row["event_id"] for row in rows(campaign, OUTCOME_TABLE)] == ['["u1","the same"]', '["u2","the same"]']
    versions = {table: lake.version(table) for table in (*LOGGED_TABLES, QUARANTINE)}
    assert loaded(campaign).details["added"] == dict.fromkeys(first.details["added"], 0)
    assert versions == {table: lake.version(table) for table in versions}

    append(campaign, 4)
    assert loaded(campaign).details["added"] == {"decision": 2, "assignment": 1, "delivery": 1, "outcome": 1}
    numbers = [row["source"].rpartition("@")[2].partition("#")[0] for row in rows(campaign, DECISION_TABLE)]
    assert numbers == [str(n) for n in (1, 2, 5, 6, 9, 10, 13, 14)]
    assert len(rows(campaign, QUARANTINE)) == 1


@pytest.mark.slow
def test_erased_units_leave_the_log_first_and_are_not_loaded_again(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(campaign, 1, 2)
    loaded(campaign)
    in_log = list[int]()
    tables = Lake.tables

    def listing(lake: Lake) -> list[str]:
        in_log.append(len(log_of(campaign).entries(DECISION)))
        return tables(lake)

    monkeypatch.setattr(Lake, "tables", listing)
    erase.run(campaign, erasure=Erasure(("u2",)))
    assert in_log[0] == 2  # of u1
    append(campaign, 3)
    assert loaded(campaign).details["added"] == {"decision": 2, "assignment": 1, "delivery": 1, "outcome": 1}
    assert {row["unit_id"] for row in rows(campaign, DECISION_TABLE)} == {"u1", "u3"}


def test_an_older_copy_of_a_log_is_refused(campaign: Campaign) -> None:
    append(campaign, 1)
    log = log_of(campaign)._file
    shutil.copy(log, log.with_suffix(".old"))
    append(campaign, 2)
    loaded(campaign)
    shutil.copy(log.with_suffix(".old"), log)
    for beside in ("-wal", "-shm"):
        log.with_name(log.name + beside).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"bronze.decision has entry 6 of .*, whose last one is 4: it is an older copy"):
        loaded(campaign)
    append(campaign, 3)  # the copy is written on: its entry 6 is another one than the table has
    append(campaign, 4)
    with pytest.raises(DataError, match=r"entry 6 of .* is not the one that bronze.decision has under this number"):
        loaded(campaign)
    with pytest.raises(ConfigError, match="leave --run-id out"):
        load.run(campaign, run_id="mine", load=LoggedDecisions())


def test_a_file_that_is_no_log_is_left_as_it_is(campaign: Campaign, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE mine (a)")
        db.commit()
    text = tmp_path / "notes.txt"
    text.write_text("nothing\n" * 100)
    for file in (other, text):
        before = file.read_bytes()
        with pytest.raises(DataError, match=f"{file.name} is no log of decisions"):
            load.run(campaign, load=LoggedDecisions(file))
        assert file.read_bytes() == before


def test_a_log_is_loaded_in_parts(campaign: Campaign) -> None:
    append(campaign, 1, 2, 3)
    whole = {"decision": 6, "assignment": 3, "delivery": 3, "outcome": 3}
    assert loaded(campaign, most=2).details["added"] == whole
    assert loaded(campaign, most=2).details["added"] == dict.fromkeys(whole, 0)
