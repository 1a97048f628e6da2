"""The feature registry: what features exist, what each training set took them from, how fresh they are (R1.4, R1.6)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pyspark.sql import functions as F

from uplift_spark.config import Feature
from uplift_spark.flow.clock import moment, utc
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.operations.datasets import BEHAVIOUR
from uplift_spark.operations.runs import code_version, derive_run_id
from uplift_spark.vocabulary import ConflictError, DataError

REGISTRY, VERSIONS = "silver.feature_registry", "silver.feature_versions"

_ABOUT = ("owner", "description", "ttl_minutes", "targeting", "protected")  # says nothing about the values
_REGISTRY = (
    "feature string, version bigint, source string, aggregate string, definition string, definition_hash string, "
    "owner string, description string, ttl_minutes double, targeting boolean, protected boolean, code_version string"
)
_VERSIONS = (
    "training_table string, feature string, version bigint, definition_hash string, source_table string, "
    "source_version bigint, label_as_of timestamp, units bigint, missing bigint, code_version string"
)


def definition_hash(feature: Feature) -> str:
    """SHA-256 of what decides the feature's values."""
    content = {key: value for key, value in asdict(feature).items() if key not in _ABOUT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def register(lake: Lake, definitions: Sequence[Feature]) -> tuple[Written, ...]:
    """Add definitions that the registry has not seen; no write if it knows them all.

    The write's run is named after what is added: two runs that add the same at the same time add it once.
    Raises ConflictError when a version is known with another definition: values of two meanings under one name.
    """
    known: dict[tuple[str, int], str] = {}
    if lake.exists(REGISTRY):
        rows = lake.read(REGISTRY).select("feature", "version", "definition_hash").collect()
        known = {(row["feature"], row["version"]): row["definition_hash"] for row in rows}
    changed = [f for f in definitions if known.get((f.name, f.version), definition_hash(f)) != definition_hash(f)]
    if changed:
        names = ", ".join(f"{f.name} version {f.version}" for f in changed)
        raise ConflictError(f"table {REGISTRY} has {names} with another definition: raise the version in conf")
    new = [f for f in definitions if (f.name, f.version) not in known]
    if not new:
        return ()
    code = code_version()
    frame = lake.spark.createDataFrame([_entry(f, code) for f in new], _REGISTRY)
    added = sorted([f.name, f.version, definition_hash(f)] for f in new)
    return (lake.write(REGISTRY, frame, derive_run_id("definitions", added)),)


def _entry(feature: Feature, code: str) -> tuple[Any, ...]:
    about = (feature.owner, feature.description, feature.ttl_minutes, feature.targeting, feature.protected)
    definition = json.dumps(asdict(feature), sort_keys=True)
    kind = (feature.name, feature.version, feature.source, feature.aggregate)
    return (*kind, definition, definition_hash(feature), *about, code)


@dataclass(frozen=True)
class Made:
    """What a training set was made from, `read` is {"event" or "profile": (table, Delta version)}, and what came of it:
    the `counts` of its split into train and holdout, and how many units have no value of a feature."""

    table: str
    read: Mapping[str, tuple[str, int]]
    as_of: datetime
    counts: Mapping[str, int]
    missing: Mapping[str, int]


def record(lake: Lake, definitions: Sequence[Feature], made: Made, run_id: str) -> Written:
    """Write which definitions and table versions a training set was made from, and how often values are missing."""
    source = {f.name: f.source for f in definitions}
    units, code = made.counts["train"] + made.counts["holdout"], code_version()

    def row(f: Feature) -> tuple[Any, ...]:
        origin = made.read[f.source if f.of is None else source[f.of[0]]]
        known = (made.table, f.name, f.version, definition_hash(f), *origin)
        return (*known, utc(made.as_of), units, made.missing.get(f.name), code)

    return lake.write(VERSIONS, lake.spark.createDataFrame([row(f) for f in definitions], _VERSIONS), run_id)


def listed(lake: Lake) -> pd.DataFrame:
    """The newest version of every feature: what it is, whose, and what it may be used for."""
    columns = ["feature", "version", "source", "aggregate", "owner", "ttl_minutes", "targeting", "protected"]
    return _newest(lake)[[*columns, "description"]]


def described(lake: Lake, name: str) -> dict[str, Any]:
    """Everything known about a feature, and about the newest training set it is a column of."""
    registered = _newest(lake)
    mine = registered[registered["feature"] == name]
    if mine.empty:
        raise DataError(f"table {REGISTRY} has no feature {name!r}: it has {', '.join(registered['feature'])}")
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
    event = F.col("event") if table == BEHAVIOUR else F.lit(None).cast("string")
    found = rows.groupBy(event.alias("event")).agg(F.max(F.unix_micros("known_at")).alias("last")).collect()
    return {row["event"]: moment(row["last"]) for row in found if row["last"] is not None}


def _newest(lake: Lake) -> pd.DataFrame:
    rows = lake.read(REGISTRY).toPandas().sort_values(["feature", "version"])
    return rows.drop_duplicates("feature", keep="last").reset_index(drop=True)


def _last_use(lake: Lake) -> pd.DataFrame:
    """One row per feature of silver.feature_versions: of the training set whose labels are the newest."""
    rows = lake.read(VERSIONS).drop("version", "definition_hash", "code_version").toPandas()
    return rows.sort_values(["label_as_of", "run_id"]).drop_duplicates("feature", keep="last")
