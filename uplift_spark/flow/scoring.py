"""Scoring on Spark: every unit, every treated level, map only (R4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import BooleanType, DoubleType, StringType, StructField, StructType

from uplift_spark.causal.binning import is_text
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.rows import check_columns
from uplift_spark.vocabulary import TREATMENT, DataError


def score(frame: DataFrame, forest: Forest) -> DataFrame:
    """Effects as a lazy frame: unit, treatment, uplift, uplift_se, uplift_lower, uplift_upper, low_support.

    `frame` needs the unit and the model's features under their training names and kinds, else DataError.
    """
    forest = forest.of(forest.roles.outcome)  # no sums of further outcomes travel to the workers
    unit = forest.roles.unit
    kinds = {field.name: field.type for field in to_arrow_schema(frame.schema, timezone="UTC")}
    check_columns(kinds, (unit, *forest.roles.features), forest.roles.features)
    for one in forest.plan.bins:
        if one.categorical != is_text(kinds[one.name]):
            trained = "text" if one.categorical else "numeric"
            kind = kinds[one.name]
            raise DataError(
                f"column {one.name!r} has type {kind} but the model was trained with a {trained} one; cast it"
            )
    needed = frame.select(*(f"`{column}`" for column in (unit, *forest.roles.features)))
    return needed.mapInArrow(partial(score_batches, forest), _schema(frame, unit))


def _schema(frame: DataFrame, unit: str) -> StructType:
    doubles = [StructField(name, DoubleType()) for name in ("uplift", "uplift_se", "uplift_lower", "uplift_upper")]
    head = [StructField(unit, frame.schema[unit].dataType), StructField(TREATMENT, StringType())]
    return StructType([*head, *doubles, StructField("low_support", BooleanType())])


def score_batches(forest: Forest, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: effects of one partition's rows."""
    for batch in batches:
        yield from forest.effect_table(batch).to_batches()
