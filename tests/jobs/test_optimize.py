"""Optimized tables: fewer files, the same rows, older versions as they were."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse, RolesConf, Simulation
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import optimize
from uplift_spark.lake.tables import Digest, Lake, digest

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

CONF = Config(campaign="shop", source=Simulation(units=1000), roles=RolesConf("conversion", "none", ("age",)))


def events(lake: Lake, start: int) -> DataFrame:
    rows = lake.spark.range(start, start + 40, 1, 2).select(F.concat(F.lit("u"), "id").alias("unit_id"))
    now = F.lit("2025-01-06").cast("timestamp")
    nothing = {name: F.lit(None).cast("string") for name in ("item", "event_id")}
    more = {"event": F.lit("login"), "value": F.lit(None).cast("double"), "occurred_at": now, "known_at": now}
    return rows.withColumns({**nothing, **more, "source": F.lit("test")})


def of(frame: DataFrame) -> Digest:
    return digest(frame, frame.columns)


def test_rows_are_the_same_in_fewer_files_and_versions_stay(lake: Lake) -> None:
    for run in range(3):
        lake.write("bronze.event", events(lake, 40 * run), f"r{run}")
    scores = lake.spark.range(10).select(F.col("id").cast("string").alias("unit_id"))
    lake.write("gold.toy", scores, "r1", partition_by=["run_id"])
    before, old = of(lake.read("bronze.event")), of(lake.read("bronze.event", 1))
    messages: list[str] = []
    result = optimize.run(Campaign(CONF, lake), progress=messages.append)
    assert result.details["optimized"] == 2
    assert result.details["bronze.event"]["files"] == "6 -> 1" and result.details["bronze.event"]["version"] == 3
    assert (of(lake.read("bronze.event")), of(lake.read("bronze.event", 1))) == (before, old)
    (commit,) = lake.sql("DESCRIBE HISTORY bronze.event LIMIT 1").collect()
    assert (commit["operation"], commit["operationParameters"]["zOrderBy"]) == ("OPTIMIZE", '["unit_id","occurred_at"]')
    again = optimize.run(Campaign(CONF, lake), progress=messages.append, tables=("bronze.event",))
    assert again.details["optimized"] == 0 and messages[-1] == "bronze.event: nothing to do"
    # The table still takes rows, and knows the runs it has.
    assert lake.write("bronze.event", events(lake, 0), "r0").skipped
    assert lake.write("bronze.event", events(lake, 200), "r9").rows == 40


def test_liquid_clusters_of_a_catalog_s_table_are_used(lake: Lake) -> None:
    catalog = Lake(lake.spark, Lakehouse(catalog="spark_catalog"))
    lake.spark.sql(f"DROP TABLE IF EXISTS {catalog.name('bronze.consent')}")
    for run in range(2):
        known = events(lake, 40 * run).select("unit_id", "known_at", "source")
        consent = {"purpose": F.lit("mail"), "granted": F.lit(True), "changed_at": F.col("known_at")}
        catalog.write("bronze.consent", known.withColumns(consent), f"r{run}")
    before = of(catalog.read("bronze.consent"))
    result = optimize.run(Campaign(CONF, catalog), tables=("bronze.consent",))
    assert result.details["optimized"] == 1 and of(catalog.read("bronze.consent")) == before
    (commit,) = lake.spark.sql(f"DESCRIBE HISTORY {catalog.name('bronze.consent')} LIMIT 1").collect()
    assert "unit_id" in commit["operationParameters"]["clusterBy"]
    lake.spark.sql(f"DROP TABLE {catalog.name('bronze.consent')}")


def test_tables_that_are_not_there_are_named(lake: Lake) -> None:
    with pytest.raises(DataError, match=r"bronze\.event does not exist"):
        optimize.run(Campaign(CONF, lake), tables=("bronze.event",))
    with pytest.raises(ConfigError, match="not of the form"):
        optimize.run(Campaign(CONF, lake), tables=("event",))
    assert optimize.run(Campaign(CONF, lake)).details == {"optimized": 0}
