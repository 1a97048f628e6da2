"""Lakehouses of the last release: their tables are read by today's names and written under their own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from tests.lake.last_release import made_by_last_release
from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConflictError, DataError
from uplift_spark.governance.erasure import erase_units, purge
from uplift_spark.lake.contracts import current, old_names
from uplift_spark.lake.schemas import contract_of
from uplift_spark.lake.tables import Lake

ASSIGNMENT = (
    "unit_id string, campaign string, treatment string, assigned_at timestamp, propensity double, source string"
)
DECISIONS = (
    "campaign string, unit_id string, treatment string, reason string, gain double, cost double, value double, "
    "model_version string"
)
QUARANTINED = "source_table string, rule string, reason string, row string, source string, campaign string"


def assigned(lake: Lake, *units: str, propensity: float = 0.5) -> DataFrame:
    at = datetime(2025, 1, 6)
    rows = [(unit, "shop", "mail", at, propensity, "file") for unit in units]
    return lake.spark.createDataFrame(rows, ASSIGNMENT)


def decided(lake: Lake, reason: str) -> DataFrame:
    return lake.spark.createDataFrame([("shop", "u1", "none", reason, 0.0, 0.0, 0.0, "1")], DECISIONS)


def adjusted(lake: Lake, split: str = "trimmed") -> DataFrame:
    return lake.spark.sql(
        f"SELECT 'u1' AS unit_id, 'mail' AS treatment, 0.4D AS propensity, now() AS assigned_at, '{split}' AS split, "
        "0 AS fold, array(1D, 2D) AS outcome_mean, array(0.6D, 0.4D) AS propensities, map('mail', 2D) AS scores, "
        "7D AS odds"
    ).withColumn("assigned_at", F.lit("2025-01-06").cast("timestamp"))


def stored(lake: Lake, table: str) -> list[str]:
    return lake.spark.read.format("delta").load(f"{lake.lakehouse.path}/{table.replace('.', '/')}").columns


@pytest.mark.slow
def test_rows_are_read_appended_and_compared_by_todays_names(lake: Lake) -> None:
    table = "bronze.assignment"
    made_by_last_release(lake, table, assigned(lake, "a", "b").withColumn("ingested_at", F.current_timestamp()), "r1")
    assert "experiment" in stored(lake, table)
    read = lake.read(table)
    assert {"campaign"} == {"campaign", "experiment"} & set(read.columns)
    assert read.schema["treatment"].metadata["comment"] == "level assigned"
    assert lake.read(table, 0).where("campaign = 'shop'").count() == 2
    assert lake.write(table, assigned(lake, "c"), "r2").rows == 1
    assert "campaign" not in stored(lake, table)
    assert [row["campaign"] for row in lake.read(table).collect()] == ["shop"] * 3
    assert lake.write(table, assigned(lake, "b", "a"), "r1").skipped
    with pytest.raises(ConflictError, match=r"run r1 wrote table bronze\.assignment before with other data"):
        lake.write(table, assigned(lake, "a", "z"), "r1")
    with pytest.raises(DataError, match="breaks its constraint propensity_range"):
        lake.write(table, assigned(lake, "d", propensity=2.0), "r3")
    lake.optimize(table, "o1")
    assert lake.read(table).count() == 3


@pytest.mark.slow
def test_units_are_erased_from_an_old_table_and_it_is_purged(lake: Lake) -> None:
    table = "bronze.assignment"
    made_by_last_release(lake, table, assigned(lake, "a", "b").withColumn("ingested_at", F.current_timestamp()), "r1")
    assert erase_units(lake, table, lake.spark.createDataFrame([("a",)], "unit_id string")) == 1
    purge(lake, table)
    assert [row["unit_id"] for row in lake.read(table).where("campaign = 'shop'").collect()] == ["b"]
    assert lake.write(table, assigned(lake, "c"), "r2").rows == 1


@pytest.mark.slow
def test_a_stream_goes_into_an_old_table(lake: Lake, tmp_path: Path) -> None:
    table = "bronze.assignment"
    made_by_last_release(lake, table, assigned(lake, "a").withColumn("ingested_at", F.current_timestamp()), "r1")
    assigned(lake, "b").write.format("delta").save(str(tmp_path / "source"))
    arriving = lake.spark.readStream.format("delta").load(str(tmp_path / "source"))
    assert lake.stream(table, arriving, "s1", str(tmp_path / "state")).rows == 1
    assert {row["campaign"] for row in lake.read(table).collect()} == {"shop"}


def test_texts_of_the_last_release_are_read_as_todays(lake: Lake) -> None:
    row = ("bronze.assignment", "experiment_present", "experiment is missing; unit_id is missing", "{}", "file", None)
    rows = lake.spark.createDataFrame([row], QUARANTINED).withColumn("ingested_at", F.current_timestamp())
    made_by_last_release(lake, "bronze.quarantine", rows, "r1")
    read = lake.read("bronze.quarantine").collect()[0]
    assert (read["rule"], read["reason"]) == ("campaign_present", "campaign is missing; unit_id is missing")


@pytest.mark.slow
def test_overwriting_an_old_table_gives_it_todays_names(lake: Lake) -> None:
    table = "silver.adjusted_shop"
    made_by_last_release(lake, table, adjusted(lake, "set aside").drop("odds"), "r1")
    assert lake.write(table, adjusted(lake).drop("odds"), "r1", mode="overwrite").skipped
    # A feature may have a name that was a column's before.
    assert lake.write(table, adjusted(lake), "r2", mode="overwrite").rows == 1
    for version in (0, 1, None):
        row = lake.read(table, version).collect()[0]
        assert (row["split"], row["outcome_mean"], row["propensities"]) == ("trimmed", [1.0, 2.0], [0.6, 0.4])
    assert lake.read(table).columns == stored(lake, table) and lake.read(table).collect()[0]["odds"] == 7.0


@pytest.mark.slow
def test_a_table_on_a_catalog_keeps_its_names(lake: Lake) -> None:
    catalog, table = Lake(lake.spark, Lakehouse(catalog="spark_catalog")), "silver.adjusted_of_last_release"
    lake.spark.sql(f"DROP TABLE IF EXISTS {catalog.name(table)}")
    made_by_last_release(catalog, table, adjusted(lake, "set aside").drop("odds"), "r1")
    assert catalog.write(table, adjusted(lake, "train").drop("odds"), "r2", mode="overwrite").rows == 1
    row = catalog.read(table).collect()
    assert [(r["split"], r["propensities"]) for r in row] == [("train", [0.6, 0.4])]
    lake.spark.sql(f"DROP TABLE {catalog.name(table)}")


def test_queries_find_a_column_by_either_name(lake: Lake) -> None:
    made_by_last_release(lake, "gold.policy_decisions", decided(lake, "x"), "r1")
    lake.write("gold.policy_limits", limits(lake), "r1")
    for column, table in (("campaign", "policy_decisions"), ("experiment", "policy_limits")):
        query = f"SELECT max(d.{column}), 'experiment, campaign' AS text FROM gold.{table} d WHERE {column} <> 'x'"
        with pytest.warns(FutureWarning, match=f"has column {column} as "):
            assert tuple(lake.sql(query).collect()[0]) == ("shop", "experiment, campaign")
    assert lake.sql("SELECT campaign FROM gold.policy_limits").columns == ["campaign"]
    both = "SELECT l.experiment, d.campaign FROM gold.policy_limits l CROSS JOIN gold.policy_decisions d"
    with pytest.warns(FutureWarning), pytest.raises(AnalysisException, match=r"l`\.`experiment|d`\.`campaign"):
        lake.sql(both)
    with pytest.raises(AnalysisException, match="nothing"):
        lake.sql("SELECT nothing FROM gold.policy_limits")


def test_a_table_gets_the_columns_of_this_release_with_its_next_run(lake: Lake) -> None:
    table = "gold.policy_decisions"
    made_by_last_release(lake, table, decided(lake, "x"), "r1")
    assert [row["ingested_at"] for row in lake.read(table).collect()] == [None]
    assert lake.write(table, decided(lake, "x"), "r1").skipped and "ingested_at" not in stored(lake, table)
    assert lake.write(table, decided(lake, "y"), "r2").rows == 1 and "ingested_at" in stored(lake, table)
    known = {row["run_id"]: row["ingested_at"] is not None for row in lake.read(table).collect()}
    assert known == {"r1": False, "r2": True}
    assert lake.write(table, decided(lake, "x"), "r1").skipped and lake.write(table, decided(lake, "y"), "r2").skipped
    with pytest.raises(ConflictError, match=r"run r1 wrote table gold\.policy_decisions before with other data"):
        lake.write(table, decided(lake, "z"), "r1")


def limits(lake: Lake) -> DataFrame:
    return lake.spark.sql("SELECT 'shop' AS campaign, 'budget' AS name, 1D most, 0D least, 1D used, 0D price")


def test_frames_without_old_names_stay_as_they_are(lake: Lake) -> None:
    frame = assigned(lake, "a")
    assert current(frame, contract_of("bronze.assignment")) is frame and current(frame, None) is frame
    assert old_names(contract_of("bronze.assignment"), ["experiment"]) == {"campaign": "experiment"}
    assert old_names(contract_of("bronze.assignment"), ["experiment", "campaign"]) == {}
