"""What the lift job reads: the scores of the last scoring run, the hold-out they belong to, and the truth if known."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.flow.evaluation import Setup
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.rebuild import still_there
from uplift_spark.operations.registry import Registry
from uplift_spark.vocabulary import EXPERIMENT, RUN_ID, UNIT, ConfigError, DataError

SCORES, TRUTH = "gold.uplift_scores", "bronze.truth"


@dataclass(frozen=True)
class Scored:
    """One scoring run: its model, and the Delta version of the training table whose units it scored."""

    model_name: str
    model_version: str
    run_id: str
    feature_version: int

    def scores(self, lake: Lake) -> DataFrame:
        """Rows of gold.uplift_scores of this run, the model's columns included so that other partitions are skipped."""
        return lake.read(SCORES).where(
            (F.col("model_name") == self.model_name)
            & (F.col("model_version") == self.model_version)
            & (F.col(RUN_ID) == self.run_id)
        )


def last_scored(config: Config, lake: Lake, registry: Registry, version: int | None = None) -> Scored:
    """The last run that scored with the campaign's model, with that version of it if given; DataError when none did."""
    names = [config.model_name, registry.store.model(config.model_name)]
    columns = ("model_name", "model_version", RUN_ID, "feature_version")
    mine = lake.read(SCORES).where(F.col("model_name").isin(names))
    if version is not None:
        mine = mine.where(F.col("model_version") == str(version))
    runs = mine.groupBy(*columns).agg(F.max("scored_at").alias("at")).orderBy(F.desc("at"), RUN_ID).first()
    if runs is None:
        which = f"model {config.model_name!r}" + ("" if version is None else f" version {version}")
        raise DataError(f"{SCORES} has no row of {which}: run `uplift score` with its conf")
    return Scored(runs["model_name"], runs["model_version"], runs[RUN_ID], runs["feature_version"])


def holdout_of(config: Config, lake: Lake, scored: Scored) -> DataFrame:
    """Hold-out rows of the training table as it was when it was scored."""
    return lake.read(config.training_table, scored.feature_version).where(F.col("split") == "holdout")


def readable(config: Config, scored: Scored) -> AbstractContextManager[None]:
    """Reading a hold-out whose files are gone, in the body, becomes a DataError that asks for new scores."""
    return still_there(config.training_table, scored.feature_version, "run `uplift score` on the table as it is now")


def check_unseen(config: Config, lake: Lake, registry: Registry, scored: Scored) -> bool:
    """True when the model was trained on none of the hold-out's units, False when nobody knows what it was trained on.

    A model trained on the same version of the training table cannot have seen its hold-out; otherwise units are
    compared. Raises DataError when the model was trained on some of them.
    """
    table = config.training_table
    try:
        ((source, trained),) = registry.find(config.model_name, int(scored.model_version)).data_versions.items()
    except (ConfigError, ValueError):
        return False
    if (source, trained) == (table, scored.feature_version):
        return True
    seen = lake.read(source, trained).where(F.col("split") == "train").select(UNIT)
    overlap = holdout_of(config, lake, scored).join(seen, UNIT, "left_semi").count()
    if overlap:
        raise DataError(
            f"{table} version {scored.feature_version} holds out {overlap} units that {scored.model_name} version "
            f"{scored.model_version} was trained on ({source} version {trained}): train and score again on one split"
        )
    return True


def true_effects(config: Config, lake: Lake) -> DataFrame | None:
    """True effects on the outcome the model predicts; None when the campaign is not simulated."""
    if not lake.exists(TRUTH):
        return None
    rows = lake.read(TRUTH).where((F.col(EXPERIMENT) == config.campaign) & (F.col("outcome") == config.roles.outcome))
    return None if rows.isEmpty() else rows


def outcome_value(config: Config) -> float:
    """Of one unit of the outcome in a plan's objective; ConfigError when profit needs it and nobody gave it."""
    outcome, values = config.roles.outcome, config.economics.value
    if config.policy.objective == "outcome":
        return 1.0
    if outcome not in values:
        raise ConfigError(
            f"the value of outcome {outcome!r} is not known: "
            f"set economics.value.{outcome}, or policy.objective to outcome"
        )
    return values[outcome]


def fixed_costs(config: Config, levels: tuple[str, ...]) -> list[float]:
    """Cost of treating one unit with each of these levels; ConfigError where one is unknown or negative."""
    costs = config.economics.cost
    if missing := [level for level in levels if not costs.get(level, -1.0) >= 0]:
        raise ConfigError(f"no cost of 0 or more is known of {', '.join(missing)}: set it in economics.cost")
    return [costs[level] for level in levels]


def setup_of(config: Config) -> Setup:
    """The evaluation a campaign's configuration asks for."""
    return Setup(
        control=config.roles.control,
        outcomes=tuple(dict.fromkeys([config.roles.outcome, *config.lift.outcomes])),
        segments=config.lift.segments,
        bins=config.lift.bins,
        replicates=config.lift.replicates,
        seed=config.seed,
        order=tuple(sorted(config.roles.dose or {}, key=(config.roles.dose or {}).__getitem__)),
        table=config.training_table,
        cluster=config.roles.cluster,
    )
