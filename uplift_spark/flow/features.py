"""The training set: labels, features as they were at assignment, and the split into train and hold-out (R1.3, R1.6)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.config import STEPS, Feature
from uplift_spark.vocabulary import ConfigError

TIME = {"event": "occurred_at", "profile": "observed_at"}  # when what a row says came to hold
PROFILE_KEYS = ("unit_id", "observed_at", "known_at", "source", "run_id", "ingested_at")
TRAINING_KEYS = ("unit_id", "treatment", "propensity", "assigned_at", "split", "run_id")
LABEL_KEYS = ("experiment", "outcomes", "delivered", "delivery_id", "status", "mature", "as_of")
SPLIT_STEPS = 1_000_000

_AT, _T, _KNOWN = "_assigned", "_happened", "_known"  # microseconds


def check_features(definitions: Iterable[Feature], profile: DataFrame, table: str, taken: Iterable[str]) -> None:
    """Raise ConfigError unless every definition is of an attribute of `profile` (named `table` in the message) or of
    events, and none would leak the answer.

    taken   the treatment's and the outcomes' names; they, label columns and keys are no features
    """
    taken = {*taken, *TRAINING_KEYS, *PROFILE_KEYS, *LABEL_KEYS}
    attributes = [f for f in definitions if f.source == "profile" and f.of is None]
    used = {name for f in definitions for name in (f.name, *([f.taken] if f in attributes else []))}
    if leaking := sorted(used & taken):
        raise ConfigError(
            f"features contain {leaking}: a treatment, outcome, delivery or key column cannot be one, remove it"
        )
    types = {field.name: field.dataType for field in profile.schema.fields if field.name not in PROFILE_KEYS}
    for name in (f.taken for f in attributes):
        if name not in types:
            raise ConfigError(f"table {table} has no column {name!r} among its attributes: {_hint(name, types)}")
        if not isinstance(types[name], T.NumericType | T.BooleanType | T.StringType):
            kind = types[name].simpleString()
            raise ConfigError(f"table {table}: column {name!r} is {kind}; a feature is a number, a boolean or a string")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(sorted(known)[:30])}"


def features_as_of(
    units: DataFrame, sources: Mapping[str, DataFrame], definitions: Sequence[Feature], names: Sequence[str]
) -> DataFrame:
    """unit_id and, for every unit, the features `names` of what had happened and was known at its assignment (R1.3).

    units        columns unit_id, assigned_at; one row per unit
    sources      {"event": rows of bronze.event, "profile": rows of bronze.profile_<campaign>}; one that no definition
                 uses may be absent
    definitions  of the names, and of the parts of ratios

    A row counts if both its own time and `known_at` are no later than the assignment: a value that was back-filled
    afterwards never gets in. Windows are whole days of 24 hours, whatever the time zone. Each source is joined and
    aggregated in one shuffle, however many windows there are. `serving.features` gives the same values to the bit.
    """
    base = units.select("unit_id", "assigned_at")
    wide = base.select("unit_id")
    for source in TIME:
        mine = [f for f in definitions if f.aggregate != "ratio" and f.source == source]
        if mine:
            wide = wide.join(_aggregated(base, sources[source], source, mine), "unit_id", "left")
    for feature in definitions:
        if feature.aggregate in ("count", "sum", "distinct"):
            wide = wide.withColumn(feature.name, F.coalesce(feature.name, F.lit(0.0)))
    for feature in definitions:
        if feature.of is not None:
            wide = wide.withColumn(feature.name, _ratio(*feature.of))
    return wide.select("unit_id", *names)


def _aggregated(base: DataFrame, rows: DataFrame, source: str, definitions: Sequence[Feature]) -> DataFrame:
    """unit_id and the definitions of one source, for units with a row that counts."""
    if source == "event":
        rows = rows.filter(F.col("event").isin(sorted({f.event for f in definitions if f.event is not None})))
    micros = {_AT: "assigned_at", _T: TIME[source], _KNOWN: "known_at"}
    known = rows.join(base, "unit_id").withColumns({name: F.unix_micros(column) for name, column in micros.items()})
    known = known.filter((F.col(_T) <= F.col(_AT)) & (F.col(_KNOWN) <= F.col(_AT)))
    known = _once(known) if source == "event" else known
    found = known.groupBy("unit_id").agg(*(_expression(f, rows).alias(f.name) for f in definitions))
    # Of a latest row the order came along.
    values = (F.col(f.name)["value"].alias(f.name) if f.aggregate == "latest" else F.col(f.name) for f in definitions)
    return found.select("unit_id", *values)


def _once(known: DataFrame) -> DataFrame:
    """Of rows with the same event and event_id, delivered again, the one known first; no shuffle beside the join's."""
    first = Window.partitionBy("unit_id", "event", "event_id").orderBy(_KNOWN, "ingested_at", _T, "value", "item")
    ranked = known.withColumn("_again", F.row_number().over(first))
    return ranked.filter(F.col("event_id").isNull() | (F.col("_again") == 1))


def _inside(feature: Feature) -> Column:
    """Whether a row that was known counts for the feature."""
    inside = F.lit(True) if feature.event is None else F.col("event") == feature.event
    micros = feature.window_micros
    return inside if micros is None else inside & (F.col(_T) > F.col(_AT) - F.lit(micros))


def _expression(feature: Feature, rows: DataFrame) -> Column:
    inside = _inside(feature)
    value = F.when(inside, _native(rows, feature.taken))
    if feature.aggregate == "count":
        return F.count_if(inside).cast("double")
    if feature.aggregate == "latest":
        # Of rows at the same time the one known last, of these the one that arrived last, then the largest value.
        arrived = F.coalesce(F.unix_micros("ingested_at"), F.lit(0)).alias("arrived")
        return F.max(F.when(inside, F.struct(_T, _KNOWN, arrived, value.alias("value"))))
    if feature.aggregate == "distinct":
        return F.size(F.collect_set(value)).cast("double")
    if feature.aggregate == "recency":
        return F.min(F.when(inside, F.col(_AT) - F.col(_T))) / F.lit(86_400_000_000.0)
    if feature.aggregate in ("min", "max"):
        return F.min(value) if feature.aggregate == "min" else F.max(value)
    # Sums of integers: no order of adding changes a bit.
    total = F.sum(F.rint(value * F.lit(float(STEPS))).cast("bigint")).cast("double") / F.lit(float(STEPS))
    return total if feature.aggregate == "sum" else total / F.count(value)


def _ratio(part: str, whole: str) -> Column:
    return F.when(F.col(whole) != 0.0, F.col(part) / F.col(whole))


def _native(rows: DataFrame, name: str) -> Column:
    """Numbers and booleans as double (0 without a sign), categories as string."""
    column = F.col(name)
    return column if isinstance(rows.schema[name].dataType, T.StringType) else column.cast("double") + F.lit(0.0)


def training_set(labels: DataFrame, features: DataFrame, outcomes: tuple[str, ...], split: Column) -> DataFrame:
    """Mature labels with their features, in the shape of silver.training_<campaign> without run_id.

    Units of which one of `outcomes` is not known are left out, because no model can learn from them; the caller counts.
    """
    wide = labels.filter("mature").select(
        "unit_id", "treatment", "propensity", "assigned_at", *[F.col("outcomes")[name].alias(name) for name in outcomes]
    )
    return wide.dropna(subset=list(outcomes)).join(features, "unit_id", "left").withColumn("split", split)


def hash_split(seed: int, holdout: float) -> Column:
    """'train' or 'holdout' by the hash of seed and unit_id: the same wherever and whenever it is computed."""
    return F.when(_below(f"{seed}|split|", holdout), F.lit("holdout")).otherwise(F.lit("train"))


def train_sample(training: DataFrame, seed: int, share: float) -> DataFrame:
    """A share of the rows of split 'train', by a hash of seed and unit_id that does not depend on the split's."""
    return training.filter((F.col("split") == "train") & _below(f"{seed}|leakage|", share))


def _below(salt: str, share: float) -> Column:
    position = F.pmod(F.xxhash64(F.concat(F.lit(salt), F.col("unit_id"))), F.lit(SPLIT_STEPS))
    return position < F.lit(share * SPLIT_STEPS)
