"""What a load is given: options that make no sense, and columns that do not fit the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import StringType, StructField, StructType

from uplift_spark.errors import ConfigError, UpliftError
from uplift_spark.events.load import Load, refuse_misfits, wanted_columns
from uplift_spark.lake.tables import Lake


@pytest.mark.parametrize(
    ("table", "header", "message"),
    [
        ("bronze.event", "unit_id,event,when", "it lacks occurred_at; it has unknown when; rename"),
        ("bronze.event", "unit_id,event,occurred_at,source,run_id", "it has unknown source, run_id"),
        ("bronze.event", "Unit_ID,event,occurred_at", "it lacks unit_id; it has unknown Unit_ID"),
        ("bronze.outcome", "unit_id,campaign,outcome,occurred_at", "it lacks value"),
        ("bronze.profile_shop", "unit_id,observed_at,a;b", "'a;b' is not a plain name"),
    ],
)
def test_columns_that_do_not_fit_are_spelled_out(
    lake: Lake, spark: SparkSession, table: str, header: str, message: str
) -> None:
    load = Load(table, "in", "csv")
    texts = StructType([StructField(name, StringType()) for name in header.split(",")])
    frame = spark.createDataFrame([], texts)
    with pytest.raises(UpliftError, match=message) as caught:
        refuse_misfits(load, "in", frame, wanted_columns(load, lake, [("in", frame)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "gold.lift_table"}, r"no raw table: choose one of bronze\.assignment, .*bronze\.profile_<campaign>"),
        ({"table": "bronze.quarantine"}, "no raw table"),
        ({"table": "bronze.profile_a;b"}, "not a plain name"),
        ({"table": "bronze.profile_a`b"}, "not a plain name"),
        ({"source": "a`b.c"}, "without backquotes and semicolons"),
        ({"source": "/in; drop"}, "without backquotes and semicolons"),
        ({"format": "xml"}, "use one of csv, parquet, json, delta"),
        ({"known_at": "a b"}, "not a plain name"),
        ({"known_at": "a", "historic": True}, "contradict"),
        ({"new_columns": ("a b",)}, "not a plain name"),
        ({"new_columns": ("Item",)}, "--new-column 'Item' is taken"),
        ({"new_columns": ("_x",)}, "is taken: choose a name that bronze.event has not"),
        ({"table": "bronze.assignment", "historic": True}, "rows of bronze.assignment have no known_at"),
        ({"replace": True, "replaced": ("first.csv",)}, "must be as the column source has it: NAME#KEY"),
        (
            {"replace": True, "replaced": ("shop.visits@5#0123456789abcdef",)},
            "is no file: rows of a Delta table go with",
        ),
        ({"replace": True, "replaced": ("quarantine#0123456789abcdef",)}, "goes with the file whose rows it was"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Load("bronze.event", "in", "csv"), **change)
