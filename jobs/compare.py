"""Hold the champion against other learners, or versions of itself, on one hold-out with paired intervals.

Reads silver.training_<campaign>; overwrites silver.compared_<campaign> (every model's predictions for the hold-out),
appends to gold.uplift_metrics and gold.cost_curve, and logs the metrics and a picture in MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign, Scored
from uplift_spark.config import Config, LearnerConf
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.estimators import params_of, train_model
from uplift_spark.evaluation.comparison import (
    ANY_LEVEL,
    DIFFERENCE,
    Rules,
    Values,
    all_values,
    compared_metrics,
    cost_curves,
    prices_of,
)
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.metrics import Arms, Cut, Evaluation, EvaluationSpec
from uplift_spark.evaluation.pictures import comparison_picture, save
from uplift_spark.evaluation.spark import describe_arms, evaluate, resampling_hash, score_columns, winsorised
from uplift_spark.evaluation.summary import cut_off, direction_words, interval, number
from uplift_spark.lake.schemas import gold_table, silver_table
from uplift_spark.lake.session import instant
from uplift_spark.learners.metalearners import AnyModel
from uplift_spark.learners.nuisances import Effects, model_effects
from uplift_spark.learners.spark import OUTCOME_MEAN, effects_column, fit_outcome_model, predict_frame
from uplift_spark.registry.models import Registered, level_suffix
from uplift_spark.roles import CAMPAIGN, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


@dataclass(frozen=True)
class Contenders:
    """Who is compared on what: registered models by version, the champion first, and the training table's version.

    cost   of treating a unit with each treated level, [L]; 1 each where nobody gave costs
    since  only units of the hold-out that were assigned after this moment count; None: all
    """

    campaign: Campaign
    registered: Mapping[str, tuple[Registered, AnyModel]]
    training: DataFrame
    data: Mapping[str, int]
    cost: np.ndarray
    since: datetime | None = None

    @property
    def config(self) -> Config:
        return self.campaign.config

    @property
    def names(self) -> list[str]:
        """Of all models in the order they were named, the champion first."""
        champion = next(iter(self.registered))
        return [champion, *(name for name in self.config.compare.contenders if name != champion)]

    @property
    def champion(self) -> AnyModel:
        return next(iter(self.registered.values()))[1]

    @property
    def levels(self) -> tuple[str, ...]:
        """Of the champion, control first."""
        return self.champion.levels.names

    @property
    def staging(self) -> str:
        return silver_table("compared", self.config.campaign)

    @property
    def holdout(self) -> DataFrame:
        """Of the training table, outcomes cut off where the configuration says so."""
        return self._winsorised[0]

    @property
    def cuts(self) -> dict[str, Cut]:
        """Where outcomes are cut off."""
        return self._winsorised[1]

    @cached_property
    def _winsorised(self) -> tuple[DataFrame, dict[str, Cut]]:
        rows, outcome = self.training.where(F.col("split") == "holdout"), self.config.roles.outcome
        rows = rows if self.since is None else rows.where(F.col("assigned_at") > instant(self.since))
        shares = {name: share for name, share in self.config.lift.winsorise.items() if name == outcome}
        return winsorised(rows, shares, self.config.training_table)

    @cached_property
    def spec(self) -> EvaluationSpec:
        return replace(self.campaign.evaluation_spec, outcomes=(self.config.roles.outcome,), segments=())

    @property
    def price(self) -> float:
        """Outcome that is worth a unit of cost."""
        value = self.config.economics.value.get(self.config.roles.outcome) if self.config.economics.cost else None
        return 1 / value if value else 0.0


def contenders_of(campaign: Campaign, since: datetime | None = None) -> Contenders:
    """The registered models and the table. Raises ConfigError for versions that do not exist or have other levels than
    the champion, and for costs of some levels only; DataError when a model was trained on units of the hold-out."""
    config, registry, table = campaign.config, campaign.registry, campaign.training_table
    version = campaign.lake.version(table)
    registered: dict[str, tuple[Registered, AnyModel]] = {}
    champion = campaign.champion
    others = [other for other in config.compare.against if isinstance(other, int)]
    for model in (champion, *(registry.find(config.model_name, other) for other in others)):
        registered[str(model.version)] = (model, registry.load(model).of(config.roles.outcome))
        campaign.check_unseen(Scored(model.name, str(model.version), model.run_id, version))
    levels = registered[str(champion.version)][1].levels
    for name, (_, forest) in registered.items():
        if forest.levels.names != levels.names:
            raise ConfigError(
                f"compare: version {name} knows the levels {', '.join(forest.levels.names)}, the champion "
                f"{', '.join(levels.names)}: leave it out of compare.against"
            )
    cost = np.array(campaign.fixed_costs(levels.treated)) if config.economics.cost else np.ones(len(levels.treated))
    return Contenders(campaign, registered, campaign.training_set(version), {table: version}, cost, since)


def contender_predictions(contenders: Contenders, progress: ProgressCallback) -> tuple[DataFrame, dict[str, float]]:
    """Predictions of all models for the hold-out, after fitting those that are not registered, and
    the seconds that took of each."""
    config, champion = contenders.config, contenders.champion
    rows, roles = contenders.training.where(F.col("split") == "train"), champion.roles
    progress("outcome models, with whose expectations all models are valued")
    nuisance = fit_outcome_model(rows, roles.over_levels, champion.levels, champion.bins, config.seed)
    learners: list[Effects] = []
    seconds: dict[str, float] = {}
    learner_roles = replace(roles, more_outcomes=())
    for name in contenders.names:
        learner, started = config.compare.contenders.get(name), time.monotonic()
        if isinstance(learner, LearnerConf):
            progress(f"fitting {name}")
            own = learner_roles if learner.kind == "forest" else learner_roles.over_levels
            model = train_model(params_of(config, learner), rows, own, progress).model
            seconds[name] = time.monotonic() - started
        else:
            model = contenders.registered[name][1]
        learners.append(partial(model_effects, model))
    progress(f"predictions of {len(learners)} models")
    return predict_frame(contenders.holdout, UNIT, nuisance, learners), seconds


@dataclass(frozen=True)
class Comparison:
    """Evaluations and values of every model on the same units."""

    contenders: Contenders
    evaluations: Mapping[str, Evaluation]
    values: Mapping[str, Values]

    @property
    def arms(self) -> Arms:
        return next(iter(self.evaluations.values())).arms

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return compared_metrics(self.evaluations, self.values)

    @cached_property
    def curves(self) -> pd.DataFrame:
        return cost_curves(self.values, self.contenders.config.roles.outcome)

    def tables(self, spark: SparkSession) -> dict[str, DataFrame]:
        """What to write to gold."""
        curves = as_arrow(self.curves, **{CAMPAIGN: self.contenders.config.campaign})
        return {
            "uplift_metrics": spark.createDataFrame(as_arrow(self.metrics)),
            "cost_curve": spark.createDataFrame(curves),
        }


def compared(contenders: Contenders, predictions: DataFrame, progress: ProgressCallback) -> Comparison:
    """Every model on the same hold-out under the same resamples."""
    arms, evaluations = describe_arms(contenders.holdout, contenders.spec), {}
    for index, name in enumerate(contenders.names):
        progress(f"evaluating {name}")
        long = predictions.select(UNIT, F.posexplode(effects_column(index)).alias("position", "uplift"))
        level = F.element_at(F.lit(list(contenders.levels[1:])), F.col("position") + 1)
        scores = long.select(UNIT, level.alias(TREATMENT), "uplift")
        evaluations[name] = evaluate(contenders.holdout, scores, contenders.spec, arms)
    progress("what each model's rule brings")
    return Comparison(contenders, evaluations, _valued(contenders, predictions, arms))


def _valued(contenders: Contenders, predictions: DataFrame, arms: Arms) -> dict[str, Values]:
    unit_columns = score_columns(contenders.levels, contenders.config.roles.outcome, arms)
    columns = [
        "unit_hash",
        "level_code",
        "outcome",
        "weight",
        OUTCOME_MEAN,
        *map(effects_column, range(len(contenders.names))),
    ]
    rows = (
        contenders.holdout.select(UNIT, resampling_hash(contenders.spec).alias("unit_hash"), *unit_columns)
        .join(predictions, UNIT)
        .select(*columns)
    )
    conf, names = contenders.config.compare, contenders.names
    how = (len(names), contenders.cost, contenders.price, conf.points, contenders.spec.direction)
    prices = prices_of(predictions, *how)
    largest = max(arms.max_inverse_propensity.values()), arms.largest_outcomes[0]
    spec = contenders.spec
    rules = Rules(contenders.cost, contenders.price, prices, largest, spec.replicates, spec.seed, spec.direction)
    return dict(zip(contenders.names, all_values(rows, rules), strict=True))


def logged(result: Comparison, seconds: Mapping[str, float], run_id: str, progress: ProgressCallback) -> dict[str, Any]:
    """Draw the picture into the run's reports, log it, the metrics and the seconds of fits in MLflow; what the job
    tells."""
    campaign, pictures = result.contenders.campaign, []
    try:
        rate = bool(next(iter(result.evaluations.values())).rates)
        direction = result.contenders.spec.direction
        figure = comparison_picture(result.metrics, result.curves, rate, direction)
        pictures.append(save(figure, campaign.reports(run_id) / "compare.png"))
    except (EnvironmentProblem, OSError) as error:
        progress(f"no picture: {error}")
    known = result.metrics[np.isfinite(result.metrics["value"])]
    suffixes = {level: level_suffix(index, level) for index, level in enumerate(result.contenders.levels)}
    suffixes[ANY_LEVEL] = ANY_LEVEL
    keys = known["metric"] + "." + known["treatment"].map(suffixes) + "." + known["model_version"]
    metrics = dict(zip(keys, known["value"].astype(float), strict=True))
    metrics |= {f"fit_seconds.{name}": took for name, took in seconds.items()}
    tags = {"mlflow.source.name": "uplift compare", "models": ", ".join(result.contenders.names)}
    tags["data_versions"] = str(dict(result.contenders.data))
    campaign.registry.log_evaluation(campaign.config.model_name, run_id, tags, metrics, pictures)
    return {
        "champion": result.contenders.names[0],
        "models": result.contenders.names,
        "units": result.arms.units,
        "effective_units": next(iter(result.evaluations.values())).effective_units,
        "lowest_propensity": result.arms.lowest,
        "pictures": ", ".join(map(str, pictures)),
    }


def compare_summary(result: Comparison) -> str:
    """Who is better than the champion and by how much, in a few lines."""
    metrics, lines = result.metrics, []
    outcome, champion = result.contenders.config.roles.outcome, result.contenders.names[0]
    shown = metrics[metrics["metric"].isin(["qini", "policy_value_dr"])]
    for row in shown.to_dict("records"):
        what = f"{row['metric']} of {row['model_version']}, {row['treatment']}, on {outcome}"
        line = f"{what}: {number(row['value'])} ({interval(row['lower'], row['upper'])})"
        mine = (metrics["model_version"] == row["model_version"]) & (metrics["treatment"] == row["treatment"])
        apart = metrics[mine & (metrics["metric"] == row["metric"] + DIFFERENCE)]
        for other in apart.to_dict("records"):
            sure = other["lower"] > 0 or other["upper"] < 0
            line += (
                f"; {number(other['value'])} ({interval(other['lower'], other['upper'])}) from {champion}"
                f"{'' if sure else ', not distinguishable from it'}"
            )
        lines.append(line)
    reading = direction_words(outcome, result.contenders.spec.direction)
    return "\n".join([*lines, *reading, *cut_off(result.contenders.cuts)])


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    since: datetime | None = None,
) -> JobResult:
    """Fit what is not registered, score the hold-out once with all, and write how they differ from the champion."""
    lake, contenders = campaign.lake, contenders_of(campaign, since)
    inputs = {"data": contenders.data, "models": list(contenders.registered)} | ({"since": since} if since else {})
    run_id = run_id or campaign.run_id("compare", **inputs)
    predictions, seconds = contender_predictions(contenders, progress)
    staged = lake.write(contenders.staging, predictions, run_id, mode="overwrite")
    result = compared(contenders, lake.read(staged.table, staged.version), progress)
    written = [lake.write(gold_table(name), frame, run_id) for name, frame in result.tables(lake.spark).items()]
    details = logged(result, seconds, run_id, progress)
    return JobResult.of("compare", run_id, staged, *written, **details, summary=compare_summary(result))


if __name__ == "__main__":
    main_job(run)
