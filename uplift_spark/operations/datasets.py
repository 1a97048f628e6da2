"""What the features job reads: one campaign's events at fixed versions, checked against the configuration."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config, Trial
from uplift_spark.flow.clock import utc
from uplift_spark.flow.features import check_features
from uplift_spark.lake.tables import Lake
from uplift_spark.vocabulary import ConfigError, DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Events:
    """One campaign's events and how they are to be read.

    versions  Delta version read of each table
    run_ids   the ingest runs that wrote the events: the identity of the input, whatever other campaigns add
    as_of     labels are read as of this time
    names     outcomes to label, the trained one first
    columns   profile columns of the training set: features, then segments that are no features
    """

    assignments: DataFrame
    outcomes: DataFrame
    profile: DataFrame
    versions: dict[str, int]
    run_ids: tuple[str, ...]
    as_of: datetime
    names: tuple[str, ...]
    columns: tuple[str, ...]


def events_of(config: Config, lake: Lake) -> Events:
    """Read the campaign's events at the tables' present versions.

    Raises DataError when the campaign has no assignment or a table is missing, ConfigError for an outcome without any
    event and for features that are unknown or would leak the treatment or an outcome.
    """
    campaign = config.campaign
    profile_table = f"bronze.profile_{campaign}"
    versions = {table: lake.version(table) for table in ("bronze.assignment", "bronze.outcome", profile_table)}
    frames = [lake.read(table, version) for table, version in versions.items()]
    assignments, outcomes = (frame.filter(F.col("experiment") == campaign) for frame in frames[:2])
    names = tuple(dict.fromkeys([*config.training_roles.outcomes, *config.lift.outcomes]))
    columns = tuple(dict.fromkeys([*config.roles.features, *config.lift.segments]))
    arrivals = _arrivals(assignments, outcomes, campaign)
    seen = sorted({name for _, name, _ in arrivals if name is not None})
    check_features(columns, frames[2], profile_table, {*names, *seen, *_source_columns(config)})
    _require_outcomes(names, seen, campaign)
    run_ids = tuple(sorted({run_id for run_id, _, _ in arrivals}))
    as_of = utc(config.labels.as_of) if config.labels.as_of else max(arrived for _, _, arrived in arrivals)
    return Events(assignments, outcomes, frames[2], versions, run_ids, as_of, names, columns)


def _source_columns(config: Config) -> set[str]:
    source = config.source
    return {source.treatment, *source.outcomes} if isinstance(source, Trial) else set()


def _arrivals(assignments: DataFrame, outcomes: DataFrame, campaign: str) -> list[tuple[str, str | None, datetime]]:
    """(run, outcome or None for assignments, when the last of them arrived) in one pass over both tables."""
    events = assignments.select("run_id", F.lit(None).cast("string").alias("outcome"), "ingested_at")
    events = events.unionByName(outcomes.select("run_id", "outcome", "ingested_at"))
    rows = events.groupBy("run_id", "outcome").agg(F.max(F.unix_micros("ingested_at")).alias("last")).collect()
    if all(row["outcome"] is not None for row in rows):
        raise DataError(
            f"table bronze.assignment has no row of campaign {campaign!r}: run `uplift ingest` with its conf"
        )
    return [(row["run_id"], row["outcome"], _EPOCH + timedelta(microseconds=row["last"])) for row in rows]


def _require_outcomes(names: tuple[str, ...], seen: list[str], campaign: str) -> None:
    for name in names:
        if name not in seen:
            near = difflib.get_close_matches(name, seen, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(seen) or 'none'}"
            raise ConfigError(f"table bronze.outcome has no event of outcome {name!r} in campaign {campaign!r}: {hint}")


def label_counts(labels: DataFrame, as_of: datetime) -> dict[str, int]:
    """How many assignments were labelled, and how many are immature; DataError when that is all of them."""
    found = labels.agg(F.count("*"), F.count_if(~F.col("mature"))).collect()[0]
    if found[0] == found[1]:
        raise DataError(
            f"table silver.label: all {found[0]:,} labels are immature as of {as_of:%Y-%m-%d %H:%M} UTC: "
            "wait, shorten labels.window_days or set labels.as_of"
        )
    return {"labelled": found[0], "immature": found[1]}


def training_counts(labelled: dict[str, int], training: DataFrame, features: tuple[str, ...]) -> dict[str, int]:
    """`labelled` with outcome_unknown, train, holdout and without_profile (units with no feature at all)."""
    empty = F.coalesce(*[F.col(name).cast("string") for name in features]).isNull()
    rows = training.groupBy("split").agg(F.count("*").alias("n"), F.count_if(empty).alias("empty")).collect()
    units = {row["split"]: row["n"] for row in rows}
    return {
        **labelled,
        "outcome_unknown": labelled["labelled"] - labelled["immature"] - sum(units.values()),
        "train": units.get("train", 0),
        "holdout": units.get("holdout", 0),
        "without_profile": sum(row["empty"] for row in rows),
    }
