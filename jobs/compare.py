"""Hold the champion against other learners, or versions of itself, on one hold-out with paired intervals.

Reads silver.training_<campaign>; overwrites silver.compared_<campaign> (every model's predictions for the hold-out),
appends to gold.uplift_metrics and gold.cost_curve, and logs the metrics and a picture in MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark import CausalForest
from uplift_spark.campaign import Scored, check_unseen, fixed_costs, setup_of
from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.evaluation.comparison import (
    ANY,
    DIFFERENCE,
    Rules,
    Values,
    all_values,
    compared_metrics,
    cost_curves,
    prices_of,
)
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.metrics import (
    Arms,
    Cut,
    Evaluation,
    Setup,
    describe_arms,
    drawn_by,
    evaluate,
    seen_columns,
    winsorised,
)
from uplift_spark.evaluation.pictures import comparison_picture, save
from uplift_spark.evaluation.report import cut_off, interval, number
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.metalearners import (
    LEARNERS,
    AnyModel,
    LearnerRows,
    fit_learner,
    learned_effects,
    rows_of,
    setting_of,
    trial_roles,
)
from uplift_spark.learners.nuisances import Effects, Sample, model_effects
from uplift_spark.learners.spark import OUTCOME_MEAN, effects_column, fit_t_learner, predict, sampled_rows
from uplift_spark.registry.models import Registered, Registry, level_suffix
from uplift_spark.roles import EXPERIMENT, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent

LEARNER_ROWS, FOLDS = 200_000, 5
"""Rows of each arm that meta-learners are fitted on, at most; folds of their nuisances."""


@dataclass(frozen=True)
class Contenders:
    """Who is compared on what: registered models by version, the champion first, and the training table's version.

    cost  of treating a unit with each treated level, [L]; 1 each where nobody gave costs
    """

    config: Config
    registered: Mapping[str, tuple[Registered, AnyModel]]
    training: DataFrame
    data: Mapping[str, int]
    cost: np.ndarray

    @property
    def names(self) -> list[str]:
        """Of all models in the order they were asked for, the champion first."""
        champion = next(iter(self.registered))
        return [champion, *(str(name) for name in self.config.compare.against if str(name) != champion)]

    @property
    def champion(self) -> AnyModel:
        return next(iter(self.registered.values()))[1]

    @property
    def levels(self) -> tuple[str, ...]:
        """Of the champion, control first."""
        return self.champion.levels.names

    @property
    def staging(self) -> str:
        return f"silver.compared_{self.config.campaign}"

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
        shares = {name: share for name, share in self.config.lift.winsorise.items() if name == outcome}
        return winsorised(rows, shares, self.config.training_table)

    @cached_property
    def setup(self) -> Setup:
        return replace(setup_of(self.config), outcomes=(self.config.roles.outcome,), segments=())

    @property
    def price(self) -> float:
        """Outcome that is worth a unit of cost."""
        value = self.config.economics.value.get(self.config.roles.outcome) if self.config.economics.cost else None
        return 1 / value if value else 0.0


def contenders_of(config: Config, lake: Lake, registry: Registry) -> Contenders:
    """The registered models and the table. Raises ConfigError for versions that do not exist or have other levels than
    the champion, and for costs of some levels only; DataError when a model was trained on units of the hold-out."""
    table = config.training_table
    version = lake.version(table)
    registered: dict[str, tuple[Registered, AnyModel]] = {}
    champion = registry.find(config.model_name)
    others = [name for name in config.compare.against if isinstance(name, int)]
    for model in (champion, *(registry.find(config.model_name, other) for other in others)):
        registered[str(model.version)] = (model, registry.load(model).of(config.roles.outcome))
        check_unseen(config, lake, registry, Scored(model.name, str(model.version), model.run_id, version))
    levels = registered[str(champion.version)][1].levels
    for name, (_, forest) in registered.items():
        if forest.levels.names != levels.names:
            raise ConfigError(
                f"compare: version {name} knows the levels {', '.join(forest.levels.names)}, the champion "
                f"{', '.join(levels.names)}: leave it out of compare.against"
            )
    cost = np.array(fixed_costs(config, levels.treated)) if config.economics.cost else np.ones(len(levels.treated))
    return Contenders(config, registered, lake.read(table, version), {table: version}, cost)


def trained(given: Contenders, say: ProgressCallback) -> tuple[DataFrame, dict[str, float]]:
    """Predictions of all models for the hold-out (`learners.spark.predict`), after fitting those not registered, and
    the seconds that took of each."""
    config, champion = given.config, given.champion
    rows, roles = given.training.where(F.col("split") == "train"), champion.roles
    say("a T-learner, whose expectations all models are valued with")
    started = time.monotonic()
    nuisance = fit_t_learner(rows, roles, champion.levels, champion.bins, config.seed)
    seconds, taken = {"t_learner": time.monotonic() - started}, None
    if set(given.names) & set(LEARNERS) - {"t_learner"}:
        plain, confounded = trial_roles(replace(roles, more_outcomes=()))
        sample = sampled_rows(rows, plain, (FOLDS, config.seed), LEARNER_ROWS)
        taken = sample, rows_of(sample, confounded)
    learners: list[Effects | None] = []
    for name in given.names:
        started = time.monotonic()
        if name in given.registered:
            learners.append(partial(model_effects, given.registered[name][1]))
        elif name == "t_learner":
            learners.append(None)
        elif taken is not None and name in LEARNERS:
            learners.append(_meta_learner(name, *taken, say))
        else:
            forests = CausalForest(**vars(config.forest), seed=config.seed, per_level=True)
            alone = replace(roles, more_outcomes=())
            learners.append(partial(model_effects, forests.fit(rows, alone, say).model))
        if name not in given.registered:
            seconds.setdefault(name, time.monotonic() - started)
    say(f"predictions of {len(learners)} models")
    return predict(given.holdout, UNIT, nuisance, learners), {
        name: seconds[name] for name in seconds if name in given.names
    }


def _meta_learner(name: str, sample: Sample, rows: LearnerRows, say: ProgressCallback) -> Effects:
    say(f"{name} on {len(rows.place):,} of {sample.coding.total:,} training rows")
    return partial(learned_effects, fit_learner(name, rows, setting_of(sample)), sample.coding.bins)


@dataclass(frozen=True)
class Comparison:
    """Evaluations and values of every model on the same units."""

    given: Contenders
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
        return cost_curves(self.values, self.given.config.roles.outcome)

    def tables(self, spark: SparkSession) -> dict[str, DataFrame]:
        """What to write to gold."""
        curves = as_arrow(self.curves, **{EXPERIMENT: self.given.config.campaign})
        return {
            "uplift_metrics": spark.createDataFrame(as_arrow(self.metrics)),
            "cost_curve": spark.createDataFrame(curves),
        }


def compared(given: Contenders, predictions: DataFrame, say: ProgressCallback) -> Comparison:
    """Every model on the same hold-out under the same resamples."""
    arms, evaluations = describe_arms(given.holdout, given.setup), {}
    for place, name in enumerate(given.names):
        say(f"evaluating {name}")
        long = predictions.select(UNIT, F.posexplode(effects_column(place)).alias("place", "uplift"))
        level = F.element_at(F.lit(list(given.levels[1:])), F.col("place") + 1)
        scores = long.select(UNIT, level.alias(TREATMENT), "uplift")
        evaluations[name] = evaluate(given.holdout, scores, given.setup, arms)
    say("what each model's rule brings")
    return Comparison(given, evaluations, _valued(given, predictions, arms))


def _valued(given: Contenders, predictions: DataFrame, arms: Arms) -> dict[str, Values]:
    seen = seen_columns(given.levels, given.config.roles.outcome, arms)
    columns = [
        "unit_hash",
        "received",
        "outcome",
        "weight",
        OUTCOME_MEAN,
        *map(effects_column, range(len(given.names))),
    ]
    rows = (
        given.holdout.select(UNIT, drawn_by(given.setup).alias("unit_hash"), *seen)
        .join(predictions, UNIT)
        .select(*columns)
    )
    prices = prices_of(predictions, len(given.names), given.cost, given.price, given.config.compare.points)
    largest = max(arms.largest_odds.values()), arms.largest_outcomes[0]
    rules = Rules(given.cost, given.price, prices, largest, given.setup.replicates, given.setup.seed)
    return dict(zip(given.names, all_values(rows, rules), strict=True))


def logged(
    done: Comparison, seconds: Mapping[str, float], registry: Registry, run_id: str, say: ProgressCallback
) -> dict[str, Any]:
    """Draw the picture into reports/<campaign>/compare.png, log it, the metrics and the seconds of fits in MLflow; what
    the job tells."""
    config, pictures = done.given.config, []
    try:
        rate = bool(next(iter(done.evaluations.values())).rates)
        figure = comparison_picture(done.metrics, done.curves, rate)
        pictures.append(save(figure, Path("reports") / config.campaign / "compare.png"))
    except (EnvironmentProblem, OSError) as error:
        say(f"no picture: {error}")
    known = done.metrics[np.isfinite(done.metrics["value"])]
    suffixes = {level: level_suffix(place, level) for place, level in enumerate(done.given.levels)} | {ANY: ANY}
    keys = known["metric"] + "." + known["treatment"].map(suffixes) + "." + known["model_version"]
    metrics = dict(zip(keys, known["value"].astype(float), strict=True))
    metrics |= {f"fit_seconds.{name}": took for name, took in seconds.items()}
    tags = {"mlflow.source.name": "uplift compare", "models": ", ".join(done.given.names)}
    tags["data_versions"] = str(dict(done.given.data))
    registry.log_evaluation(config.model_name, run_id, tags, metrics, pictures)
    return {
        "champion": done.given.names[0],
        "models": done.given.names,
        "units": done.arms.units,
        "effective_units": next(iter(done.evaluations.values())).effective_units,
        "lowest_propensity": done.arms.lowest,
        "pictures": ", ".join(map(str, pictures)),
    }


def summary(done: Comparison) -> str:
    """Who is better than the champion and by how much, in a few lines."""
    metrics, lines = done.metrics, []
    outcome, champion = done.given.config.roles.outcome, done.given.names[0]
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
    return "\n".join([*lines, *cut_off(done.given.cuts)])


def run(config: Config, lake: Lake, run_id: str | None = None, say: ProgressCallback = silent) -> JobResult:
    """Fit what is not registered, score the hold-out once with all, and write how they differ from the champion."""
    registry = Registry.of(config)
    contenders = contenders_of(config, lake, registry)
    run_id = run_id or derive_run_id("compare", config, data=contenders.data, models=list(contenders.registered))
    predictions, seconds = trained(contenders, say)
    staged = lake.write(contenders.staging, predictions, run_id, mode="overwrite")
    done = compared(contenders, lake.read(staged.table, staged.version), say)
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in done.tables(lake.spark).items()]
    details = logged(done, seconds, registry, run_id, say)
    return JobResult.of("compare", run_id, staged, *written, **details, summary=summary(done))


if __name__ == "__main__":
    main_job(run)
