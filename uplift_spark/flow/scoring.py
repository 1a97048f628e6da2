"""Scoring on Spark: every unit, every treated level, map only (R4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import ArrayType, BooleanType, DoubleType, StringType, StructField, StructType

from uplift_spark.causal.binning import is_text
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.models import Model, effect_table
from uplift_spark.causal.rows import check_columns
from uplift_spark.causal.shapley import explain_batches
from uplift_spark.vocabulary import TREATMENT, DataError


def score(frame: DataFrame, model: Model) -> DataFrame:
    """Effects as a lazy frame: unit, treatment, uplift, uplift_se, uplift_lower, uplift_upper, low_support.

    `frame` needs the unit and the model's features under their training names and kinds, else DataError.
    """
    model = model.of(model.roles.outcome)  # no sums of further outcomes travel to the workers
    needed = _needed(frame, model)
    return needed.mapInArrow(partial(score_batches, model), _schema(frame, model.roles.unit))


def explain(frame: DataFrame, forest: Forest) -> DataFrame:
    """What each feature has to do with every unit's effect, a lazy frame: unit, treatment, uplift, base, values.

    values array<double> in the order of `roles.features`; base + values is uplift (`causal.shapley`). Raises as
    `score`.
    """
    forest = forest.of(forest.roles.outcome)
    head = _schema(frame, forest.roles.unit).fields[:3]
    tail = [StructField("base", DoubleType()), StructField("values", ArrayType(DoubleType()))]
    return _needed(frame, forest).mapInArrow(partial(explain_batches, forest), StructType([*head, *tail]))


def _needed(frame: DataFrame, model: Model) -> DataFrame:
    """The unit and the features, checked."""
    unit = model.roles.unit
    kinds = {field.name: field.type for field in to_arrow_schema(frame.schema, timezone="UTC")}
    check_columns(kinds, (unit, *model.roles.features), model.roles.features)
    for one in model.bins:
        if one.categorical != is_text(kinds[one.name]):
            trained = "text" if one.categorical else "numeric"
            kind = kinds[one.name]
            raise DataError(
                f"column {one.name!r} has type {kind} but the model was trained with a {trained} one; cast it"
            )
    return frame.select(*(f"`{column}`" for column in (unit, *model.roles.features)))


def _schema(frame: DataFrame, unit: str) -> StructType:
    doubles = [StructField(name, DoubleType()) for name in ("uplift", "uplift_se", "uplift_lower", "uplift_upper")]
    head = [StructField(unit, frame.schema[unit].dataType), StructField(TREATMENT, StringType())]
    return StructType([*head, *doubles, StructField("low_support", BooleanType())])


def score_batches(model: Model, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: effects of one partition's rows."""
    for batch in batches:
        yield from effect_table(model, batch).to_batches()
