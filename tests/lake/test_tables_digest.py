"""Equal multisets of rows, and only those, have equal digests."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import SparkSession

from uplift_spark.lake.tables import Digest, digest

SCHEMA = "a string, b double, c array<array<int>>, d map<string,double>, e struct<x: int, y: int>"
ROW = ("u", 1.5, [[1], [2]], {"p": 1.0, "q": 2.0}, (1, None))


def of(spark: SparkSession, rows: list[Any]) -> Digest:
    frame = spark.createDataFrame(rows, SCHEMA)
    return digest(frame, frame.columns)


def changed(**cells: Any) -> tuple[Any, ...]:
    return tuple(cells.get(name, value) for name, value in zip("abcde", ROW, strict=True))


def test_order_of_rows_and_of_map_keys_does_not_matter(spark: SparkSession) -> None:
    rows = [ROW, changed(a="v"), changed(b=float("nan")), changed(b=0.0)]
    turned = [changed(b=-0.0), changed(b=float("nan")), changed(a="v"), changed(d={"q": 2.0, "p": 1.0})]
    assert of(spark, rows) == of(spark, turned)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [ROW],
        [ROW, ROW, ROW],
        [ROW, changed(a=None)],
        [ROW, changed(b=None)],
        [ROW, changed(b=float("nan"))],
        [ROW, changed(c=[[1, 2]])],
        [ROW, changed(c=[[1], [2], []])],
        [ROW, changed(c=None)],
        [ROW, changed(d={"p": 2.0, "q": 1.0})],
        [ROW, changed(d={"p": 1.0, "q": 2.0, "r": None})],
        [ROW, changed(e=(None, 1))],
    ],
    ids=str,
)
def test_any_other_rows_differ(spark: SparkSession, rows: list[Any]) -> None:
    assert of(spark, [ROW, ROW]) != of(spark, rows)


def test_other_columns_do_not_count(spark: SparkSession) -> None:
    first, second = (spark.createDataFrame([("u", clock)], "a string, at int") for clock in (1, 2))
    assert digest(first, ["a"]) == digest(second, ["a"])
    assert digest(first, ["a", "at"]) != digest(second, ["a", "at"])
