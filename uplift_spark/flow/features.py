"""The training set: labels, features as they were at assignment, and the split into train and hold-out (R1.3, R1.6)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.vocabulary import ConfigError

PROFILE_KEYS = ("unit_id", "observed_at", "known_at", "source", "run_id", "ingested_at")
TRAINING_KEYS = ("unit_id", "treatment", "propensity", "assigned_at", "split", "run_id")
SPLIT_STEPS = 1_000_000


def check_features(features: Iterable[str], profile: DataFrame, table: str, taken: Iterable[str]) -> None:
    """Raise ConfigError unless every feature is an attribute of `profile` (named `table` in the message).

    taken   the treatment's and the outcomes' names: using one as a feature would leak the answer
    """
    taken = {*taken, *TRAINING_KEYS, *PROFILE_KEYS}
    if leaking := sorted(set(features) & taken):
        raise ConfigError(f"features contain {leaking}: a treatment, outcome or key column cannot be one, remove it")
    types = {field.name: field.dataType for field in profile.schema.fields if field.name not in PROFILE_KEYS}
    for name in features:
        if name not in types:
            raise ConfigError(f"table {table} has no column {name!r} among its attributes: {_hint(name, types)}")
        if not isinstance(types[name], T.NumericType | T.BooleanType | T.StringType):
            kind = types[name].simpleString()
            raise ConfigError(f"table {table}: column {name!r} is {kind}; a feature is a number, a boolean or a string")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(sorted(known)[:30])}"


def features_as_of(units: DataFrame, profile: DataFrame, features: tuple[str, ...]) -> DataFrame:
    """unit_id and each unit's latest features observed no later than its assigned_at; missing ones stay null.

    units   columns unit_id, assigned_at. A unit without an observation by then has no row. Of two observations at the
    same time the one that arrived last counts. Arrival (`ingested_at`) is not compared with the assignment, because a
    historic campaign's profile is loaded afterwards; a value observed later never gets in.
    """
    known = profile.join(units.select("unit_id", "assigned_at"), "unit_id").filter("observed_at <= assigned_at")
    values = F.struct(*[_native(profile, name).alias(name) for name in features])
    latest = F.max_by(values, F.struct("observed_at", "ingested_at", "run_id"))
    return known.groupBy("unit_id").agg(latest.alias("_features")).select("unit_id", "_features.*")


def _native(profile: DataFrame, name: str) -> Column:
    """Numbers and booleans as double, categories as string."""
    column = F.col(name)
    return column if isinstance(profile.schema[name].dataType, T.StringType) else column.cast("double")


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
    position = F.pmod(F.xxhash64(F.concat(F.lit(f"{seed}|split|"), F.col("unit_id"))), F.lit(SPLIT_STEPS))
    return F.when(position < F.lit(holdout * SPLIT_STEPS), F.lit("holdout")).otherwise(F.lit("train"))
