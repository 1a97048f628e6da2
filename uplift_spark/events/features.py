"""Features as they were at assignment, and the feature registry.

`features_as_of` computes features, of the units that `mature_units` takes from the labels, `register` and `record` keep
the registry. `serving.features` computes the same values for one user without Spark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.config import DAY, HAPPENED_AT, STEPS, Feature
from uplift_spark.errors import ConfigError, ConflictError, DataError, hint
from uplift_spark.lake.schemas import EVENT_TABLE, FEATURE_REGISTRY, FEATURE_VERSIONS, columns_to_fill
from uplift_spark.lake.session import moment, utc
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.roles import DELIVERED, DOSE, LABEL_KEYS, PROFILE_KEYS, TRAINING_KEYS
from uplift_spark.runtime import code_version, derive_run_id

# --------------------------------------------------------------------------------------------------------------------
# Features as of the assignment, and the training set: labels, features, and the split into train and hold-out.

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
    """`units` with the features `names` of each, from the rows that had happened and were known at its assignment.

    units        columns unit_id, assigned_at and others, none of a feature's name; one row per unit
    sources      {"event": rows of bronze.event, "profile": rows of bronze.profile_<campaign>}; one that no definition
                 uses may be absent
    definitions  of the names, and of the parts of ratios

    A row counts if both its own time and `known_at` are no later than the assignment: a value that was back-filled
    afterwards never gets in. Windows are whole days of 24 hours, whatever the time zone. Each source is shuffled once,
    by unit, however many windows there are (events once more if different values are counted, not items only).
    `serving.features` gives the same values to the bit.
    """
    base = units.select("unit_id", "assigned_at")
    wide = units
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
    return wide.select(*units.columns, *names)


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


def mature_units(labels: DataFrame, outcomes: tuple[str, ...], delivered: bool = False) -> DataFrame:
    """Units with a mature label: the columns of silver.training_<campaign> but for features, split and run_id.

    Units of which one of `outcomes` is not known are left out, because no model can learn from them; the caller counts.
    delivered: with a column of that name, 1 for units that were reached. Labels with a dose keep it.
    """
    reached = [F.col(DELIVERED).cast("double")] if delivered else []
    doses = [DOSE] if DOSE in labels.columns else []
    wide = labels.filter("mature").select(
        "unit_id",
        "treatment",
        "propensity",
        "assigned_at",
        *[F.col("outcomes")[name].alias(name) for name in outcomes],
        *reached,
        *doses,
    )
    return wide.dropna(subset=list(outcomes))


def hash_split(seed: int, holdout: float, cluster: str | None = None) -> Column:
    """'train' or 'holdout' by the hash of seed and unit_id, or of the unit's cluster: the same wherever and whenever it
    is computed."""
    held_out = _below(f"{seed}|split|", holdout, cluster or "unit_id")
    return F.when(held_out, F.lit("holdout")).otherwise(F.lit("train"))


def hash_sample(seed: int, share: float) -> Column:
    """Whether a unit is in a sample of that share: by a hash of seed and unit_id that the split's has no part in."""
    return _below(f"{seed}|leakage|", share)


def _below(salt: str, share: float, column: str = "unit_id") -> Column:
    position = F.pmod(F.xxhash64(F.concat(F.lit(salt), F.col(column).cast("string"))), F.lit(SPLIT_STEPS))
    return position < F.lit(share * SPLIT_STEPS)


# --------------------------------------------------------------------------------------------------------------------
# The feature registry: which features exist, which tables each training set took them from, how fresh they are.

_ABOUT = ("owner", "description", "ttl_minutes", "targeting", "protected")  # says nothing about the values


def definition_hash(feature: Feature) -> str:
    """Hash the parts of a definition that decide the feature's values (SHA-256)."""
    content = {key: value for key, value in asdict(feature).items() if key not in _ABOUT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def register(lake: Lake, definitions: Sequence[Feature]) -> tuple[Written, ...]:
    """Add definitions that the registry has not seen; no write if it knows them all.

    The write's run is named after what is added: two runs that add the same at the same time add it once.
    Raises ConflictError when a version is known with another definition: values of two meanings under one name.
    """
    known: dict[tuple[str, int], str] = {}
    if lake.exists(FEATURE_REGISTRY):
        rows = lake.read(FEATURE_REGISTRY).select("feature", "version", "definition_hash").collect()
        known = {(row["feature"], row["version"]): row["definition_hash"] for row in rows}
    changed = [f for f in definitions if known.get((f.name, f.version), definition_hash(f)) != definition_hash(f)]
    if changed:
        names = ", ".join(f"{f.name} version {f.version}" for f in changed)
        raise ConflictError(f"table {FEATURE_REGISTRY} has {names} with another definition: raise the version in conf")
    new = [f for f in definitions if (f.name, f.version) not in known]
    if not new:
        return ()
    code = code_version()
    frame = lake.spark.createDataFrame([_entry(f, code) for f in new], columns_to_fill(FEATURE_REGISTRY))
    added = sorted([f.name, f.version, definition_hash(f)] for f in new)
    return (lake.write(FEATURE_REGISTRY, frame, derive_run_id("definitions", added)),)


def _entry(feature: Feature, code: str) -> tuple[Any, ...]:
    about = (feature.owner, feature.description, feature.ttl_minutes, feature.targeting, feature.protected)
    definition = json.dumps(asdict(feature), sort_keys=True)
    kind = (feature.name, feature.version, feature.source, feature.aggregate)
    return (*kind, definition, definition_hash(feature), *about, code)


@dataclass(frozen=True)
class TrainingSetFacts:
    """What a training set was made from, `read` is {"event" or "profile": (table, Delta version)}, and what came of it:
    the `counts` of its split into train and holdout, and how many units have no value of a feature."""

    table: str
    read: Mapping[str, tuple[str, int]]
    as_of: datetime
    counts: Mapping[str, int]
    missing: Mapping[str, int]


def record(lake: Lake, definitions: Sequence[Feature], facts: TrainingSetFacts, run_id: str) -> Written:
    """Write which definitions and table versions a training set was made from, and how often values are missing."""
    source = {f.name: f.source for f in definitions}
    units, code = facts.counts["train"] + facts.counts["holdout"], code_version()

    def row(f: Feature) -> tuple[Any, ...]:
        origin = facts.read[f.source if f.of is None else source[f.of[0]]]
        known = (facts.table, f.name, f.version, definition_hash(f), *origin)
        return (*known, utc(facts.as_of), units, facts.missing.get(f.name), code)

    return lake.write(
        FEATURE_VERSIONS,
        lake.spark.createDataFrame([row(f) for f in definitions], columns_to_fill(FEATURE_VERSIONS)),
        run_id,
    )


def listed(lake: Lake) -> pd.DataFrame:
    """The newest version of every feature: what it is, whose, and what it may be used for."""
    columns = ["feature", "version", "source", "aggregate", "owner", "ttl_minutes", "targeting", "protected"]
    return _newest(lake)[[*columns, "description"]]


def described(lake: Lake, name: str) -> dict[str, Any]:
    """Everything known about a feature, and about the newest training set it is a column of."""
    registered = _newest(lake)
    mine = registered[registered["feature"] == name]
    if mine.empty:
        raise DataError(f"table {FEATURE_REGISTRY} has no feature {name!r}: it has {', '.join(registered['feature'])}")
    used = _last_use(lake).set_index("feature")
    uses = [used.loc[name].to_dict()] if name in used.index else []
    return {str(key): value for part in (mine.iloc[0].to_dict(), *uses) for key, value in part.items()}


def freshness(lake: Lake, now: datetime | None = None) -> pd.DataFrame:
    """feature, source_table, newest (known_at of its source's last row, UTC), age_minutes, ttl_minutes, stale.

    Ratios are left out: they are as fresh as their parts.
    """
    used = _last_use(lake)[["feature", "source_table"]].merge(_newest(lake), on="feature")
    used = used[used["aggregate"] != "ratio"]
    newest = {table: _newest_rows(lake, table) for table in used["source_table"].unique()}
    at = utc(now or datetime.now(UTC))
    rows = []
    for one in used.to_dict("records"):
        last = newest[one["source_table"]].get(json.loads(one["definition"])["event"])
        age = None if last is None else (at - last).total_seconds() / 60
        stale = age is None or age > one["ttl_minutes"]
        rows.append((one["feature"], one["source_table"], last, age, one["ttl_minutes"], stale))
    return pd.DataFrame(rows, columns=["feature", "source_table", "newest", "age_minutes", "ttl_minutes", "stale"])


def _newest_rows(lake: Lake, table: str) -> dict[str | None, datetime]:
    """When the last row of each event, None for a profile, became known."""
    rows = lake.read(table)
    event = F.col("event") if table == EVENT_TABLE else F.lit(None).cast("string")
    latest = rows.groupBy(event.alias("event")).agg(F.max(F.unix_micros("known_at")).alias("last")).collect()
    return {row["event"]: moment(row["last"]) for row in latest if row["last"] is not None}


def _newest(lake: Lake) -> pd.DataFrame:
    rows = lake.read(FEATURE_REGISTRY).toPandas().sort_values(["feature", "version"])
    return rows.drop_duplicates("feature", keep="last").reset_index(drop=True)


def _last_use(lake: Lake) -> pd.DataFrame:
    """One row per feature of silver.feature_versions: of the training set whose labels are the newest."""
    rows = lake.read(FEATURE_VERSIONS).drop("version", "definition_hash", "code_version").toPandas()
    return rows.sort_values(["label_as_of", "run_id"]).drop_duplicates("feature", keep="last")
