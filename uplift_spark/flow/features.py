"""The training set: labels, features as they were at assignment, and the split into train and hold-out (R1.3, R1.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.config import DAY, HAPPENED_AT, STEPS, Feature
from uplift_spark.vocabulary import DELIVERED, ConfigError, hint

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
            raise ConfigError(f"table {table} has no column {name!r} among its attributes: {hint(name, types)}")
        if not isinstance(types[name], T.NumericType | T.BooleanType | T.StringType):
            kind = types[name].simpleString()
            raise ConfigError(f"table {table}: column {name!r} is {kind}; a feature is a number, a boolean or a string")


def features_as_of(
    units: DataFrame, sources: Mapping[str, DataFrame], definitions: Sequence[Feature], names: Sequence[str]
) -> DataFrame:
    """unit_id and, for every unit, the features `names` of what had happened and was known at its assignment (R1.3).

    units        columns unit_id, assigned_at; one row per unit
    sources      {"event": rows of bronze.event, "profile": rows of bronze.profile_<campaign>}; one that no definition
                 uses may be absent
    definitions  of the names, and of the parts of ratios

    A row counts if both its own time and `known_at` are no later than the assignment: a value that was back-filled
    afterwards never gets in. Windows are whole days of 24 hours, whatever the time zone. Each source is shuffled once,
    by unit, however many windows there are (events once more if different values are counted, not items only).
    `serving.features` gives the same values to the bit.
    """
    base = units.select("unit_id", "assigned_at")
    wide = base.select("unit_id")
    taken = [f for f in definitions if f.aggregate != "ratio"]
    values = [f for f in taken if f.aggregate == "distinct" and f.taken == "value"]
    events = [f for f in taken if f.source == "event" and f not in values]
    for some in filter(None, (events, values)):
        wide = wide.join(_of_events(base, sources["event"], some), "unit_id", "left")
    if attributes := [f for f in taken if f.source == "profile"]:
        wide = wide.join(_of_profile(base, sources["profile"], attributes), "unit_id", "left")
    for feature in definitions:
        if feature.aggregate in ("count", "sum", "distinct"):
            wide = wide.withColumn(feature.name, F.coalesce(feature.name, F.lit(0.0)))
    for feature in definitions:
        if feature.of is not None:
            wide = wide.withColumn(feature.name, _ratio(*feature.of))
    return wide.select("unit_id", *names)


def _known(base: DataFrame, rows: DataFrame, source: str) -> DataFrame:
    """`rows` that had happened and were known at their unit's assignment, with their times in microseconds."""
    times = {_AT: "assigned_at", _T: HAPPENED_AT[source], _KNOWN: "known_at"}
    timed = rows.join(base, "unit_id").withColumns({name: F.unix_micros(column) for name, column in times.items()})
    return timed.filter((F.col(_T) <= F.col(_AT)) & (F.col(_KNOWN) <= F.col(_AT)))


def _of_profile(base: DataFrame, rows: DataFrame, definitions: Sequence[Feature]) -> DataFrame:
    """unit_id and the latest attributes, for units with a profile that counts.

    Of rows at the same time the one known last, of these the one that arrived last, then the largest value.
    """
    latest = Window.partitionBy("unit_id").orderBy(F.desc(_T), F.desc(_KNOWN), F.desc_nulls_last("ingested_at"))
    newest = _known(base, rows, "profile").withColumn("_rank", F.rank().over(latest)).filter("_rank = 1")
    return newest.groupBy("unit_id").agg(*(F.max(_native(rows, f.taken)).alias(f.name) for f in definitions))


def _of_events(base: DataFrame, rows: DataFrame, definitions: Sequence[Feature]) -> DataFrame:
    """unit_id and the definitions, for units with an event that counts.

    In two steps, by unit and item and then by unit: an item counts once however often it was there, and no step has to
    keep sets, which fall back to sorting when units are many. Different values are counted in a call of their own.
    """
    rows = rows.filter(F.col("event").isin(sorted({f.event for f in definitions if f.event is not None})))
    counted = [f for f in definitions if f.aggregate == "distinct"]
    of_them = F.col("event").isin(sorted({f.event for f in counted if f.event is not None}))
    item = F.when(of_them, _native(rows, counted[0].taken)) if counted else F.lit(0)
    steps = {f.name: _two_steps(f, rows) for f in definitions}
    by_item = (
        _once(_known(base, rows, "event"))
        .groupBy("unit_id", item.alias("_item"))
        .agg(*(first.alias(name) for name, (first, _) in steps.items()))
    )
    return by_item.groupBy("unit_id").agg(*(second.alias(name) for name, (_, second) in steps.items()))


def _once(known: DataFrame) -> DataFrame:
    """Of rows with the same event and event_id, delivered again, the one known first.

    By what precedes a row among its unit's, so that the shuffle by unit serves for the aggregation, too.
    """
    same = Window.partitionBy("unit_id").orderBy("event", "event_id", _KNOWN, "ingested_at", _T, "value", "item")
    again = [F.col(column) == F.lag(column).over(same) for column in ("event", "event_id")]
    return known.withColumn("_again", again[0] & again[1]).filter(~F.coalesce("_again", F.lit(False)))


def _inside(feature: Feature) -> Column:
    """Whether a row that was known counts for the feature."""
    inside = F.lit(True) if feature.event is None else F.col("event") == feature.event
    micros = feature.window_micros
    return inside if micros is None else inside & (F.col(_T) > F.col(_AT) - F.lit(micros))


def _two_steps(feature: Feature, rows: DataFrame) -> tuple[Column, Column]:
    """(what is aggregated of the rows of a unit and item, then of these results, by the feature's name)."""
    inside, name = _inside(feature), feature.name
    value = F.when(inside, _native(rows, feature.taken))
    if feature.aggregate == "count":
        return F.count_if(inside), F.sum(name).cast("double")
    if feature.aggregate == "latest":
        # Of rows at the same time the one known last, of these the one that arrived last, then the largest value.
        arrived = F.coalesce(F.unix_micros("ingested_at"), F.lit(0)).alias("arrived")
        last = F.max(F.when(inside, F.struct(_T, _KNOWN, arrived, value.alias("value"))))
        return last, F.max(name)["value"]
    if feature.aggregate == "distinct":
        return F.max(value.isNotNull()), F.count_if(name).cast("double")
    if feature.aggregate == "recency":
        return F.min(F.when(inside, F.col(_AT) - F.col(_T))), F.min(name) / F.lit(float(DAY))
    if feature.aggregate in ("min", "max"):
        choose = F.min if feature.aggregate == "min" else F.max
        return choose(value), choose(name)
    # Sums of integers: no order of adding changes a bit.
    total = F.sum(F.rint(value * F.lit(float(STEPS))).cast("bigint"))
    if feature.aggregate == "sum":
        return total, F.sum(name).cast("double") / F.lit(float(STEPS))
    both = F.struct(total.alias("total"), F.count(value).alias("n"))
    return both, F.sum(F.col(name)["total"]).cast("double") / F.lit(float(STEPS)) / F.sum(F.col(name)["n"])


def _ratio(part: str, whole: str) -> Column:
    return F.when(F.col(whole) != 0.0, F.col(part) / F.col(whole))


def _native(rows: DataFrame, name: str) -> Column:
    """Numbers and booleans as double (0 without a sign), categories as string."""
    column = F.col(name)
    return column if isinstance(rows.schema[name].dataType, T.StringType) else column.cast("double") + F.lit(0.0)


def training_set(
    labels: DataFrame, features: DataFrame, outcomes: tuple[str, ...], split: Column, delivered: bool = False
) -> DataFrame:
    """Mature labels with their features, in the shape of silver.training_<campaign> without run_id.

    Units of which one of `outcomes` is not known are left out, because no model can learn from them; the caller counts.
    delivered: with a column of that name, 1 for units that were reached.
    """
    reached = [F.col(DELIVERED).cast("double")] if delivered else []
    wide = labels.filter("mature").select(
        "unit_id",
        "treatment",
        "propensity",
        "assigned_at",
        *[F.col("outcomes")[name].alias(name) for name in outcomes],
        *reached,
    )
    return wide.dropna(subset=list(outcomes)).join(features, "unit_id", "left").withColumn("split", split)


def hash_split(seed: int, holdout: float, cluster: str | None = None) -> Column:
    """'train' or 'holdout' by the hash of seed and unit_id, or of the unit's cluster: the same wherever and whenever it
    is computed."""
    held_out = _below(f"{seed}|split|", holdout, cluster or "unit_id")
    return F.when(held_out, F.lit("holdout")).otherwise(F.lit("train"))


def sampled(seed: int, share: float) -> Column:
    """Whether a unit is in a sample of that share: by a hash of seed and unit_id that the split's has no part in."""
    return _below(f"{seed}|leakage|", share)


def _below(salt: str, share: float, column: str = "unit_id") -> Column:
    position = F.pmod(F.xxhash64(F.concat(F.lit(salt), F.col(column).cast("string"))), F.lit(SPLIT_STEPS))
    return position < F.lit(share * SPLIT_STEPS)
