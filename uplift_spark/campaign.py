"""One campaign: its configuration, its lakehouse and its models; names and versions of tables, splits, scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config, load_config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.evaluation.metrics import EvaluationSpec
from uplift_spark.lake.schemas import SCORES_TABLE, TRUTH_TABLE
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry, still_there
from uplift_spark.roles import CAMPAIGN, RUN_ID, UNIT
from uplift_spark.runtime import derive_run_id

if TYPE_CHECKING:
    import pandas as pd


class Campaign:
    """A campaign's configuration with the lakehouse and the registry that it names.

    Args:
        conf: Path of the campaign's YAML file, or a configuration that is loaded already.
        lake: The lakehouse; by default the one that the configuration names, opened at its first use.
        overrides: Keys of the file that are replaced, as in ``["seed=3"]``; for a path alone.

    Raises:
        ConfigError: The file has an unknown key or a wrong value.
    """

    def __init__(self, conf: str | Path | Config, lake: Lake | None = None, overrides: Sequence[str] = ()) -> None:
        self.config = conf if isinstance(conf, Config) else load_config(Path(conf), tuple(overrides))
        self._lake = lake

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.config.campaign

    @property
    def lake(self) -> Lake:
        """The lakehouse, in the session that is there, else in a local one."""
        if self._lake is None:
            self._lake = Lake(spark_session(self.config.lakehouse), self.config.lakehouse)
        return self._lake

    @cached_property
    def registry(self) -> Registry:
        """Where the campaign's models are kept."""
        return Registry.of(self.config)

    def run_id(self, job: str, **inputs: object) -> str:
        """Identity of a job's run: its name, the part of the configuration it depends on, and its inputs."""
        return derive_run_id(job, self.config, **inputs)


@dataclass(frozen=True)
class Scored:
    """One scoring run: its model, and the Delta version of the training table whose units it scored."""

    model_name: str
    model_version: str
    run_id: str
    feature_version: int

    def scores(self, lake: Lake) -> DataFrame:
        """Rows of gold.uplift_scores of this run, the model's columns included so that other partitions are skipped."""
        return lake.read(SCORES_TABLE).where(
            (F.col("model_name") == self.model_name)
            & (F.col("model_version") == self.model_version)
            & (F.col(RUN_ID) == self.run_id)
        )


def last_scored(config: Config, lake: Lake, registry: Registry, version: int | None = None) -> Scored:
    """The last run that scored with the campaign's model, with that version of it if given; DataError when none did."""
    names = [config.model_name, registry.store.model(config.model_name)]
    columns = ("model_name", "model_version", RUN_ID, "feature_version")
    mine = lake.read(SCORES_TABLE).where(F.col("model_name").isin(names))
    if version is not None:
        mine = mine.where(F.col("model_version") == str(version))
    runs = mine.groupBy(*columns).agg(F.max("scored_at").alias("at")).orderBy(F.desc("at"), RUN_ID).first()
    if runs is None:
        which = f"model {config.model_name!r}" + ("" if version is None else f" version {version}")
        raise DataError(f"{SCORES_TABLE} has no row of {which}: run `uplift score` with its conf")
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
    trained_units = lake.read(source, trained).where(F.col("split") == "train").select(UNIT)
    overlap = holdout_of(config, lake, scored).join(trained_units, UNIT, "left_semi").count()
    if overlap:
        raise DataError(
            f"{table} version {scored.feature_version} holds out {overlap} units that {scored.model_name} version "
            f"{scored.model_version} was trained on ({source} version {trained}): train and score again on one split"
        )
    return True


def true_effects(config: Config, lake: Lake) -> DataFrame | None:
    """True effects on the outcome the model predicts; None when the campaign is not simulated."""
    if not lake.exists(TRUTH_TABLE):
        return None
    rows = lake.read(TRUTH_TABLE).where(
        (F.col(CAMPAIGN) == config.campaign) & (F.col("outcome") == config.roles.outcome)
    )
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


def evaluation_spec(config: Config) -> EvaluationSpec:
    """The evaluation a campaign's configuration asks for."""
    return EvaluationSpec(
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


# --------------------------------------------------------------------------------------------------------------------
# What a person sees at the end of a campaign: the tables with their sizes, and questions to start with in SQL.

_READING = ("select", "with", "from", "values", "table", "describe", "desc", "show", "explain")


def check_reads(query: str) -> None:
    """Raise ConfigError unless the query's first word is one of reading."""
    if not query.lstrip(" \n\t(").lower().startswith(_READING):
        raise ConfigError("uplift sql only reads: start the query with SELECT or WITH, DESCRIBE, SHOW, EXPLAIN")


def first_rows(lake: Lake, query: str, limit: int) -> pd.DataFrame:
    """First `limit` rows; what Spark says about a wrong query becomes one sentence, a ConfigError."""
    from pyspark.errors import PySparkException

    try:
        return lake.sql(query).limit(limit).toPandas()
    except PySparkException as error:
        raise ConfigError(f"the query does not run: {str(error).strip().splitlines()[0]}") from error


def table_sizes(lake: Lake) -> list[tuple[str, int, int]]:
    """(table, rows, newest Delta version) of every table in the lakehouse, by name."""
    return [(name, lake.read(name).count(), lake.version(name)) for name in lake.tables()]


def queries_to_try(config: Config, lift_run: str) -> list[str]:
    """Three questions of an analyst to the tables of one lift run; each stands between double quotes in a shell."""
    model = config.registry.name or config.campaign
    return [
        "SELECT treatment, bucket AS decile, n, uplift, uplift_lower, uplift_upper, roi FROM gold.lift_table "
        f"WHERE run_id = '{lift_run}' AND outcome = '{config.roles.outcome}' AND cut = 'decile' "
        "ORDER BY treatment, int(bucket)",
        "SELECT treatment, cut, bucket, n, uplift, uplift_lower, uplift_upper FROM gold.lift_table "
        f"WHERE run_id = '{lift_run}' AND outcome = '{config.roles.outcome}' AND cut LIKE 'segment:%' "
        "AND uplift_lower > 0 ORDER BY uplift DESC LIMIT 10",
        "SELECT treatment, count(*) AS units, avg(uplift) AS mean_uplift, count_if(uplift_lower > 0) AS sure "
        f"FROM gold.uplift_scores WHERE model_name = '{model}' GROUP BY treatment ORDER BY mean_uplift DESC",
    ]
