"""Quarantined rows, repaired and replayed: each once, even those that are alike, and quarantine as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from tests.lake.last_release import made_by_last_release
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf, Simulation
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.load import Load
from uplift_spark.jobs import load, replay
from uplift_spark.jobs.replay import Replay
from uplift_spark.lake.tables import Lake, digest
from uplift_spark.runtime import JobResult

CONF = Config(campaign="shop", source=Simulation(units=1000), roles=RolesConf("conversion", "none", ("age",)))
LINES = """unit_id,event,value,occurred_at,known_at
a,order,"1,5",2024-01-02T09:30:00Z,2024-01-03
a,order,"1,5",2024-01-02T09:30:00Z,2024-01-03
b,order,"2,5",2024-01-02T09:30:00Z,
,order,1,2024-01-02T09:30:00Z,
c,order,1,yesterday,
d,order,1
"""


def loaded(lake: Lake, path: Path, lines: str, table: str = "bronze.event", **how: Any) -> JobResult:
    path.write_text(lines)
    return load.run(Campaign(CONF, lake), load=Load(table, str(path), "csv", **how))


def replayed(lake: Lake, *repairs: str, table: str = "bronze.event", rule: str | None = None) -> dict[str, Any]:
    result = replay.run(Campaign(CONF, lake), replay=Replay.of(table, rule, repairs))
    return {name: result.details[name] for name in ("replayed", "still_broken", "already_replayed")}


def test_each_row_is_replayed_once_and_quarantine_stays(lake: Lake, tmp_path: Path) -> None:
    loaded(lake, tmp_path / "events.csv", LINES)
    before = digest(lake.read("bronze.quarantine"), lake.read("bronze.quarantine").columns)
    arrived = lake.read("bronze.quarantine").agg({"ingested_at": "max"}).collect()[0][0]
    comma = "value=replace(value, ',', '.')"
    broken = {"occurred_at_readable": 1, "row_readable": 1, "unit_present": 1}
    assert replayed(lake, comma) == {"replayed": 3, "still_broken": broken, "already_replayed": 0}
    rows = {row["source"]: row for row in lake.read("bronze.event").collect()}
    assert len(rows) == 3 and all(source.startswith("quarantine#") and len(source) == 27 for source in rows)
    assert sorted((row["unit_id"], row["value"]) for row in rows.values()) == [("a", 1.5), ("a", 1.5), ("b", 2.5)]
    for row in rows.values():
        assert str(row["known_at"]) == "2024-01-03 00:00:00" if row["unit_id"] == "a" else row["known_at"] == arrived
        assert row["ingested_at"] > arrived
    assert replayed(lake, comma) == {"replayed": 0, "still_broken": broken, "already_replayed": 3}
    lines = "unit_id=coalesce(nullif(unit_id, ''), split(__unread, ',')[0], 'x')"
    fixed = (comma, lines, "occurred_at=nullif(occurred_at, 'yesterday')")
    left = {"occurred_at_present": 1, "event_present": 1}
    again = replayed(lake, *fixed)
    assert (again["replayed"], again["already_replayed"]) == (1, 3) and set(again["still_broken"]) == set(left)
    assert lake.read("bronze.event").count() == 4
    kept = lake.read("bronze.quarantine")
    assert (lake.version("bronze.quarantine"), digest(kept, kept.columns)) == (0, before)


@pytest.mark.slow
def test_keys_that_are_there_already_stay_where_they_are(lake: Lake, tmp_path: Path) -> None:
    header = "unit_id,campaign,treatment,assigned_at,propensity\n"
    bad = "a,shop,,2024-01-01,\nb,shop,,2024-01-01,\n,shop,mail,2024-01-01,\n"
    loaded(lake, tmp_path / "1.csv", header + bad, "bronze.assignment")
    loaded(lake, tmp_path / "2.csv", header + "a,shop,mail,2024-01-01,\n", "bronze.assignment")
    result = replayed(lake, "treatment='none'", table="bronze.assignment", rule="treatment_present")
    assert result == {"replayed": 1, "still_broken": {"repeated": 1}, "already_replayed": 0}


@pytest.mark.slow
def test_rows_that_the_last_release_rejected_are_replayed(lake: Lake, tmp_path: Path) -> None:
    cells = {"unit_id": "a", "experiment": " ", "treatment": "mail", "assigned_at": "2024-01-01", "propensity": None}
    table, kind = "bronze.assignment", "source_table string, rule string, reason string, row string, source string"
    row = (table, "experiment_present", "experiment is missing", json.dumps(cells), "old.csv", None)
    rows = lake.spark.createDataFrame([row], f"{kind}, campaign string")
    made_by_last_release(lake, "bronze.quarantine", rows.withColumn("ingested_at", F.current_timestamp()), "r1")
    header = "unit_id,campaign,treatment,assigned_at,propensity\n"
    loaded(lake, tmp_path / "new.csv", header + "b,,mail,2024-01-01,\n", table)
    still = {"replayed": 0, "still_broken": {"campaign_present": 2}, "already_replayed": 0}
    assert replayed(lake, table=table, rule="experiment_present") == still
    fixed = replayed(lake, "experiment='shop'", table=table, rule="campaign_present")
    assert fixed == {"replayed": 2, "still_broken": {}, "already_replayed": 0}
    rows = lake.read(table).select("unit_id", "campaign").collect()
    assert {tuple(row) for row in rows} == {("a", "shop"), ("b", "shop")}


@pytest.mark.slow
def test_fields_that_are_no_columns_must_be_used(lake: Lake, tmp_path: Path) -> None:
    lines = "unit_id,event,occurred_at,seen\na,order,2024-01-02,tomorrow\n"
    loaded(lake, tmp_path / "events.csv", lines, known_at="seen")
    with pytest.raises(DataError, match=r"fields seen, which are no columns of bronze\.event: use each in a repair"):
        replayed(lake)
    assert replayed(lake, "known_at=replace(seen, 'tomorrow', '2024-01-03')")["replayed"] == 1
    for wrong, message in {
        "max(value)": "must be an expression over the row's own columns: .* function max is not allowed",
        "explode(array(1, 2))": "function explode is not allowed",
        "nothing": "there is no column 'nothing'",
        "a, b": "must be an expression",
        "(1": "must be an expression",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            replayed(lake, f"value={wrong}")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="column value is decimal"):
        replayed(lake, "value=1.5BD", "known_at=seen")


@pytest.mark.slow
def test_a_repair_that_fails_on_a_row_is_one_sentence_and_nothing_is_written(lake: Lake, tmp_path: Path) -> None:
    lines = 'unit_id,event,value,occurred_at\na,order,"1,5",2024-01-02\nb,order,x,2024-01-02\n'
    loaded(lake, tmp_path / "events.csv", lines)
    for wrong, said in {
        "cast(replace(value, ',', '.') AS double)": "'x'",
        "1 / (length(value) - 1)": "DIVIDE_BY_ZERO",
        "1 / (length(value) - length('x'))": "DIVIDE_BY_ZERO",
    }.items():
        with pytest.raises(
            ConfigError, match=r"--repair value=.* fails on rows of bronze\.quarantine.*Leave casts out"
        ) as e:
            replayed(lake, "event='order'", f"value={wrong}")
        assert said in str(e.value) and "\n" not in str(e.value) and not lake.exists("bronze.event")
    without = replayed(lake, "value=replace(value, ',', '.')")
    assert without == {"replayed": 1, "still_broken": {"value_readable": 1}, "already_replayed": 0}


@pytest.mark.slow
def test_digits_that_are_no_times_stay_in_quarantine(lake: Lake, tmp_path: Path) -> None:
    times = {
        "seconds": "1704187800", "millis": "1704187800000", "few": "12", "day": "20240102", "old": "02.01.1970 09:30",
        "euro": "02.01.2024 09:30", "words": "yesterday", "year": "1970",
    }  # fmt: skip
    rows = "".join(f"{name},order,1,{text}\n" for name, text in times.items())
    loaded(lake, tmp_path / "events.csv", f"unit_id,event,value,occurred_at\n{rows}")
    assert not lake.exists("bronze.event")

    def repaired(expression: str) -> tuple[set[str], dict[str, int]]:
        result = replayed(lake, f"occurred_at={expression}")
        new = lake.read("bronze.event").select("unit_id", F.date_format("occurred_at", "yyyy-MM-dd HH:mm")).collect()
        return {" ".join(row) for row in new}, result["still_broken"]

    digits = "CASE WHEN occurred_at RLIKE '^[0-9]+$' THEN timestamp_seconds(bigint(occurred_at)) END"
    have, left = repaired(f"coalesce(string({digits}), occurred_at)")  # a text in UTC
    assert (have, left) == ({"seconds 2024-01-02 09:30"}, {"occurred_at_readable": 7})
    _, left = repaired(digits)
    assert left == {"occurred_at_readable": 4, "occurred_at_present": 3}
    have, _ = repaired("timestamp_millis(try_cast(occurred_at AS bigint))")
    assert have == {"seconds 2024-01-02 09:30", "millis 2024-01-02 09:30"}
    have, left = repaired("try_to_timestamp(occurred_at, 'dd.MM.yyyy HH:mm')")
    assert {"old 1970-01-02 09:30", "euro 2024-01-02 09:30"} < have and left == {"occurred_at_present": 4}
    have, left = repaired("to_date(CASE WHEN unit_id = 'day' THEN occurred_at END, 'yyyyMMdd')")
    assert "day 2024-01-02 00:00" in have and left == {"occurred_at_present": 3}
    with pytest.raises(DataError, match="column occurred_at is bigint, not timestamp"):
        repaired("bigint(occurred_at)")


@pytest.mark.parametrize(
    "expression",
    ["1; DROP TABLE x", "1 as x", "a, b", "", "(SELECT max(x) FROM t)", "exists(FROM t)", "max(x)", "explode(x)",
     "sum(x) OVER ()", "(TABLE t)", "( from t |> limit 1)", "getenv('x')", "rand()", "current_date"],
)  # fmt: skip
def test_repairs_are_single_expressions_over_the_row(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"--repair value=.* must be an expression over the row's own columns"):
        Replay.of("bronze.event", None, [f"value={expression}"])


def test_repairs_say_their_column() -> None:
    assert Replay.of("bronze.event", None, ["value=a = 'select'"]).repairs == (("value", "a = 'select'"),)
    for wrong in ("value", "value==1", "a b=1"):
        with pytest.raises(ConfigError, match=r"must look like COLUMN=SQL|not a plain name"):
            Replay.of("bronze.event", None, [wrong])
    with pytest.raises(ConfigError, match="twice"):
        Replay.of("bronze.event", None, ["a=1", "a=2"])
    with pytest.raises(ConfigError, match="no raw table"):
        Replay.of("gold.x", None, [])


def test_lines_of_trials_are_sent_back_to_ingest(lake: Lake) -> None:
    row = """SELECT 'bronze.assignment' AS source_table, 'treatment_present' AS rule, 'none' AS reason,
        'x.csv' AS source,
        '{"unit_id":"a","treatment":null,"_row":3}' AS row, 'shop' AS campaign, now() AS ingested_at"""
    lake.write("bronze.quarantine", lake.spark.sql(row), "r1")
    with pytest.raises(DataError, match=r"1 quarantined rows .* are lines of a trial's file: correct the file"):
        replayed(lake, table="bronze.assignment")
    assert replayed(lake, table="bronze.event") == {"replayed": 0, "still_broken": {}, "already_replayed": 0}
    assert lake.tables() == ["bronze.quarantine"]
