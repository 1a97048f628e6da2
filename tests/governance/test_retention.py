"""Rows past their retention: which are due, that they go for good and stay gone, and what the audit log says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from tests.governance.test_erasure import hits
from tests.jobs import test_policy
from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError
from uplift_spark.governance import retention
from uplift_spark.governance.retention import due_of, run_retention
from uplift_spark.governance.spark import AuditLog
from uplift_spark.jobs import expire
from uplift_spark.lake.schemas import QUARANTINE, is_table_of
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.governance import AuditConf, Governance, RetentionConf

EVENTS, DECISIONS, CONSENT = "bronze.event", "gold.policy_decisions", "bronze.consent"
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def governed(lake: Lake, history_days: float = 7.0, **days: float):
    """The campaign `spring` of tests with retention, and an audit log."""
    kept = RetentionConf({name.replace("__", "."): value for name, value in days.items()}, history_days)
    return replace(test_policy.conf(lake), governance=Governance(audit=AuditConf(), retention=kept))


def events(lake: Lake, run: str, **days_ago: float) -> None:
    """An event of each unit, so many days before NOW."""
    at = [pd.Timestamp(NOW) - pd.Timedelta(days=days) for days in days_ago.values()]
    rows = pd.DataFrame({"unit_id": list(days_ago), "event": "order", "value": 1.0, "occurred_at": at, "known_at": at})
    times = {name: rows[name].astype("datetime64[us, UTC]") for name in ("occurred_at", "known_at")}
    frame = lake.spark.createDataFrame(rows.assign(source="file", **times))
    extra = "CAST(NULL AS string)"
    lake.write(EVENTS, frame.selectExpr("*", f"{extra} AS item", f"{extra} AS event_id").coalesce(1), run)


def decisions(lake: Lake, run: str, *units: str) -> datetime:
    """A plan about these units; when it was written."""
    rows = [("spring", unit, "10%", "", 1.0, 0.5, 1.0, "1") for unit in units]
    names = "campaign string, unit_id string, treatment string, reason string, gain double, cost double, value double"
    lake.write(DECISIONS, lake.spark.createDataFrame(rows, f"{names}, model_version string").coalesce(1), run)
    return lake.history(DECISIONS, 1)[0].at


def units(lake: Lake, table: str) -> list[str]:
    return sorted(row["unit_id"] for row in lake.read(table).collect())


def actions(config, lake: Lake) -> list[str]:
    return list(AuditLog(config, lake).show(50).to_pandas()["action"])[::-1]


def test_a_tables_own_days_count_before_those_of_its_layer() -> None:
    conf = RetentionConf({"bronze": 400, "bronze.event": 90})
    assert (conf.days_of(EVENTS), conf.days_of("bronze.profile_spring"), conf.days_of(DECISIONS)) == (90, 400, None)
    for wrong in ("events", "iron.event", "bronze.", ""):
        with pytest.raises(ConfigError, match="name a table, such as"):
            RetentionConf({wrong: 1})


def test_rows_of_another_model_whose_name_begins_alike_are_not_ours() -> None:
    assert is_table_of("silver.trained_spring_2", "spring", "spring")
    assert not is_table_of("silver.trained_spring_2_3", "spring", "spring")
    assert is_table_of("silver.trained_spring_2_3", "spring_2", "spring_2")


def test_a_table_that_nobody_knows_is_named(lake: Lake) -> None:
    events(lake, "r1", old=100)
    with pytest.raises(ConfigError, match=r"days names 'bronze.evnet': did you mean 'bronze.event'"):
        run_retention(governed(lake, bronze__evnet=30), lake, now=NOW)


def test_what_the_campaign_served_and_what_nobody_owns_is_due_too(lake: Lake) -> None:
    at = NOW - timedelta(days=100)
    rows = [("spring_served", "a", at), ("autumn", "b", at)]
    frame = lake.spark.createDataFrame(rows, "campaign string, unit_id string, delivered_at timestamp")
    filled = {"delivery_id": "unit_id", "status": "'sent'", "known_at": "delivered_at", "source": "'file'"}
    columns = [f"{value} AS {name}" for name, value in filled.items()]
    lake.write("bronze.delivery", frame.selectExpr("*", *columns, "CAST(NULL AS string) AS event_id"), "r1")
    rejects = lake.spark.createDataFrame([("a", None), ("b", "autumn")], "row string, campaign string")
    empty = [f"'x' AS {name}" for name in ("source_table", "rule", "reason", "source")]
    lake.write(QUARANTINE, rejects.selectExpr("*", *empty), "r1")
    later = datetime.now(UTC) + timedelta(days=100)
    run_retention(governed(lake, bronze=90), lake, now=later)
    assert units(lake, "bronze.delivery") == ["b"]
    assert [row["row"] for row in lake.read(QUARANTINE).collect()] == ["b"]


def test_old_rows_go_once_and_stay_gone(lake: Lake) -> None:
    events(lake, "r1", old=100, older=400.5, edge=90, young=89.9)
    config = governed(lake, bronze__event=90)
    due = due_of(lake, EVENTS, 90, NOW, ["spring"])
    assert (due.rows, due.oldest, due.undated) == (2, NOW - timedelta(days=90), 0)
    result = run_retention(config, lake, now=NOW)
    assert result.details["deleted"] == 2 and units(lake, EVENTS) == ["edge", "young"]
    (row,) = result.details["tables"].to_dict("records")
    assert (row["table"], row["days"], row["deleted"], row["oldest kept"]) == (EVENTS, 90, 2, "2025-12-01")
    assert lake.properties(EVENTS)["delta.appendOnly"] == "true"
    assert actions(config, lake) == ["expire", "expired"]
    # Again: nothing changes, nothing is on record; nor does the load bring back what it brought.
    version = lake.version(EVENTS)
    assert run_retention(config, lake, now=NOW).details["deleted"] == 0
    assert lake.version(EVENTS) == version and actions(config, lake) == ["expire", "expired"]
    events(lake, "r1", old=100, older=400.5, edge=90, young=89.9)
    assert units(lake, EVENTS) == ["edge", "young"]
    # A day later, what was young is due.
    assert run_retention(config, lake, now=NOW + timedelta(days=1)).details["deleted"] == 2
    assert AuditLog(config, lake).verify().holds


def test_rows_without_a_time_are_as_old_as_the_commit_of_their_run(lake: Lake) -> None:
    first = decisions(lake, "p1", "a", "b")
    second = decisions(lake, "p2", "a", "c")
    assert first < second
    config = governed(lake, gold__policy_decisions=30)
    assert run_retention(config, lake, now=first + timedelta(days=30)).details["deleted"] == 0
    result = run_retention(config, lake, now=second + timedelta(days=30))
    assert result.details["deleted"] == 2 and units(lake, DECISIONS) == ["a", "c"]
    # Another campaign's plan is not this one's to delete.
    other = replace(config, campaign="autumn")
    assert run_retention(other, lake, now=second + timedelta(days=99)).details["deleted"] == 0


def test_old_versions_stay_for_the_days_that_are_set(lake: Lake) -> None:
    events(lake, "r1", **{"unit-that-goes": 100, "young": 1})
    before = lake.version(EVENTS)
    run_retention(governed(lake, bronze__event=90), lake, now=NOW)
    folder = f"{lake.lakehouse.path}/bronze/event"
    assert any(file.endswith(".parquet") for file in hits(folder, "unit-that-goes"))
    assert "unit-that-goes" in [row["unit_id"] for row in lake.read(EVENTS, before).collect()]
    run_retention(governed(lake, history_days=0, bronze__event=90), lake, now=NOW)
    assert not any(file.endswith(".parquet") for file in hits(folder, "unit-that-goes"))
    assert units(lake, EVENTS) == ["young"]


@pytest.mark.parametrize("where", ["delete_rows", "vacuum"])
def test_a_killed_run_completes_when_it_is_run_again(lake: Lake, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    events(lake, "r1", old=100, young=1)
    config = governed(lake, bronze__event=90)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((Lake, where) if where == "delete_rows" else (retention, where)), killed)
        run_retention(config, lake, now=NOW)
    assert actions(config, lake) == ["expire"]
    if where == "delete_rows":  # in the midst of it, a table stands open
        lake.set_properties(EVENTS, {"delta.appendOnly": "false"})
    run_retention(config, lake, now=NOW)
    assert units(lake, EVENTS) == ["young"] and lake.properties(EVENTS)["delta.appendOnly"] == "true"
    assert actions(config, lake)[-1] == "expired"
    n = len(actions(config, lake))
    run_retention(config, lake, now=NOW)
    assert len(actions(config, lake)) == n


def test_tables_that_must_not_lose_rows_are_refused(lake: Lake) -> None:
    events(lake, "r1", old=100)
    with pytest.raises(ConfigError, match=r"names bronze\.consent: a withdrawal that went would let"):
        run_retention(governed(lake, bronze__consent=90), lake)
    lake.write("gold.alerts_spring", lake.spark.createDataFrame([(1,)], "n int"), "r1")
    with pytest.raises(ConfigError, match=r"names gold\.alerts_spring, in which no row is about a unit"):
        run_retention(governed(lake, gold__alerts_spring=90), lake)
    assert units(lake, EVENTS) == ["old"]
    without = Campaign(test_policy.conf(lake), lake)
    assert "no row is ever due" in expire.run(without).details["retention"]
