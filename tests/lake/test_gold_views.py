"""Views over gold tables: what is newest, the same in DuckDB, in Spark and in a catalog that has created them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError
from uplift_spark.gold_views import GOLD_VIEWS, LEAST_IN_GROUP, create_views, view_query
from uplift_spark.lake.duck import local_query
from uplift_spark.lake.local_tables import LocalTables
from uplift_spark.lake.queries import query_rows
from uplift_spark.lake.schemas import columns_to_fill, gold_table
from uplift_spark.lake.tables import Lake
from uplift_spark.sql_gate import checked_query

DAY = datetime(2026, 3, 2, tzinfo=UTC)
NEXT = datetime(2026, 3, 3, tzinfo=UTC)
VALUES = {"string": "x", "double": 1.0, "bigint": 1, "boolean": True, "timestamp": DAY, "date": date(2026, 3, 2)}


def rows_of(lake: Lake, table: str, run: str, *changes: dict[str, Any]) -> None:
    """Rows of a gold table of campaign spring, all columns filled."""
    schema = columns_to_fill(gold_table(table))
    usual = {field.name: VALUES[field.dataType.simpleString()] for field in schema}
    usual |= {name: "spring" for name in usual if name == "campaign"}
    rows = [[{**usual, **change}[name] for name in schema.fieldNames()] for change in changes]
    lake.write(gold_table(table), lake.spark.createDataFrame(rows, schema), run)


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory) -> Lake:
    """Two runs of everything, the second one newer; a second campaign whose only run is between them."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("views") / "lakehouse")))
    of = {"campaign": "autumn"}
    for run, more in (("2", {}), ("0", of), ("1", {})):  # the newest has not the largest id
        rows_of(lake, "lift_table", f"lift-{run}", {"cut": "all", **more}, {"cut": "decile", **more})
        rows_of(lake, "uplift_curve", f"lift-{run}", {"fraction": 0.1}, {"fraction": 1.0})
        rows_of(lake, "uplift_metrics", f"lift-{run}", {"metric": "qini"})
        rows_of(lake, "lift_driver", f"lift-{run}", {"rank": 1, **more})
        units = [{"unit_id": unit, "gain": 2.0, **more} for unit in "abcde"]
        rows_of(lake, "policy_decisions", f"policy-{run}", *units, {"reason": "rule", **more})
        rows_of(lake, "policy_curve", f"policy-{run}", {"budget": 10.0, **more}, {"budget": 20.0, **more})
        rows_of(lake, "roi", f"costs-{run}", {"model_version": "all", **more})
        rows_of(lake, "costs", f"costs-{run}", {"amount": 5.0, **more}, {"amount": 7.0, **more})
    rows_of(lake, "costs", "costs-3", {"amount": 99.0})  # of a run that was killed: gold.roi has none of it
    for number, (start, end) in enumerate([(DAY, NEXT), (NEXT, datetime(2026, 3, 4, tzinfo=UTC))]):
        window = {"window_start": start, "window_end": end}
        for again in (0, 1):
            known = {**window, "as_of": datetime(2026, 3, 5, again, tzinfo=UTC), "value": float(again)}
            rows_of(lake, "kpi", f"monitor-{number}{again}", known, {**known, "cut": "mail"})
            if not again:  # what was found at first and is gone since does not count
                rows_of(lake, "findings", f"monitor-{number}{again}", {**known, "finding": "drift"})
            rows_of(lake, "drift", f"monitor-{number}{again}", {**known, "name": "age"})
    rows_of(lake, "alerts", "alerts-1", {"alert": "a", "event": "fired"}, {"alert": "b", "event": "fired"})
    rows_of(lake, "alerts", "alerts-2", {"alert": "a", "sequence": 2, "event": "resolved"})
    for run, at in (("2", DAY), ("1", NEXT)):
        rows_of(lake, "readout", f"readout-{run}", {"as_of": at, "role": "primary"}, {"as_of": at, "role": "guardrail"})
    rows_of(lake, "readout", "readout-9", {"as_of": DAY, "role": "programme"})
    return lake


def listed(rows: pa.Table) -> list[tuple[tuple[str, Any], ...]]:
    return sorted((tuple(sorted(row.items(), key=str)) for row in rows.to_pylist()), key=str)


def of(lake: Lake, view: str) -> list[dict[str, Any]]:
    return local_query(LocalTables(lake.lakehouse.path), f"SELECT * FROM gold.{view}").to_pylist()


def test_the_newest_run_of_each_campaign_counts_whatever_its_id(lake: Lake) -> None:
    for view, run, n in (("v_lift", "lift", 2), ("v_lift_curve", "lift", 2), ("v_lift_metrics", "lift", 1),
                         ("v_driver", "lift", 1),
                         ("v_plan_curve", "policy", 2), ("v_costs", "costs", 2), ("v_roi", "costs", 1)):  # fmt: skip
        runs = [(row["campaign"], row["run_id"]) for row in of(lake, view)]
        assert sorted(runs) == sorted([("autumn", f"{run}-0"), ("spring", f"{run}-1")] * n), view
    plans = {(row["campaign"], row["reason"]): (row["run_id"], row["units"], row["gain"]) for row in of(lake, "v_plan")}
    assert plans[("spring", "x")] == ("policy-1", 5, 10.0) and plans[("autumn", "rule")] == ("policy-0", 1, None)


def test_sums_over_few_units_are_null(lake: Lake) -> None:
    rows = of(lake, "v_plan")
    assert {row["units"] for row in rows} == {1, LEAST_IN_GROUP}
    assert all((row["gain"] is None and row["cost"] is None) is (row["units"] < LEAST_IN_GROUP) for row in rows)


def test_a_window_counts_as_it_was_known_last(lake: Lake) -> None:
    assert [(row["value"], row["run_id"]) for row in of(lake, "v_kpi") if row["newest"]] == [(1.0, "monitor-11")] * 2
    assert sorted(row["run_id"] for row in of(lake, "v_drift")) == ["monitor-01", "monitor-11"]
    assert not of(lake, "v_findings")


def test_alerts_and_readings(lake: Lake) -> None:
    assert {row["alert"]: (row["event"], row["open"]) for row in of(lake, "v_alerts")} == {
        "a": ("resolved", False), "b": ("fired", True)
    }  # fmt: skip
    read = {row["role"]: row["run_id"] for row in of(lake, "v_readout")}
    assert read == {"primary": "readout-1", "guardrail": "readout-1", "programme": "readout-9"}


def test_spark_and_a_catalog_with_the_views_give_the_same_rows(lake: Lake) -> None:
    spark = lake.spark
    tables = LocalTables(lake.lakehouse.path)
    lake.sql("SELECT 1").collect()  # lets the session know the tables by their names
    catalog = Lake(spark, Lakehouse(catalog="spark_catalog"))
    try:
        for statement in create_views("spark_catalog").split(";\n"):
            if statement.strip():
                spark.sql(statement)
        known = spark.sql("SHOW TABLES IN gold").toPandas()["tableName"].tolist()
        assert set(GOLD_VIEWS) <= set(known)
        assert "gold.lift_table" in catalog.tables() and not {f"gold.{name}" for name in GOLD_VIEWS} & {
            *catalog.tables()
        }
        for name, view in GOLD_VIEWS.items():
            query = f"SELECT * FROM gold.{name}"
            here = listed(local_query(tables, query))
            assert here == listed(query_rows(lake, query)), name
            assert here == listed(spark.table(f"gold.{name}").toArrow()), name
            comment = spark.sql(f"DESCRIBE TABLE EXTENDED gold.{name}").where("col_name = 'Comment'").first()
            assert comment["data_type"] == view.meaning
    finally:
        for name in GOLD_VIEWS:
            spark.sql(f"DROP VIEW IF EXISTS gold.{name}")


def test_names_stand_for_their_queries_wherever_tables_may_stand() -> None:
    for query in (
        "SELECT l.n FROM gold.V_Lift AS l JOIN gold.v_plan USING (campaign)",
        "SELECT v_lift.n FROM gold.v_lift",
    ):
        text = checked_query(query, "main")
        assert "`main`.`gold`.`lift_table`" in text and "gold`.`v_" not in text.lower()
    for other in ("SELECT * FROM silver.v_lift", "WITH v_lift AS (SELECT 1 AS n) SELECT n FROM v_lift"):
        assert "lift_table" not in checked_query(other)
    with pytest.raises(ConfigError, match="v_lift is a view, which has no versions"):
        checked_query("SELECT * FROM gold.v_lift VERSION AS OF 3")


def test_a_catalog_of_any_name_is_quoted() -> None:
    statements = create_views("a`b")
    assert statements.count("CREATE OR REPLACE VIEW `a``b`.gold.v_") == len(GOLD_VIEWS)
    assert not statements.replace("`a``b`.gold.", "").count("gold.")
    assert view_query("v_lift") == GOLD_VIEWS["v_lift"].query and all(
        one.meaning.endswith(".") for one in GOLD_VIEWS.values()
    )
