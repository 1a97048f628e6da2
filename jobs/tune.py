"""Try arguments of the forest on the campaign's training rows; judge them by the R-loss of units held back.

Reads silver.training_<campaign>; writes no table. Every trial is a run in MLflow: a rerun goes on where one ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark import CausalForest
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.events.features import hash_split
from uplift_spark.forest.effects import Z95
from uplift_spark.learners.metalearners import rows_of, trial_roles
from uplift_spark.learners.nuisances import crossfit, sample_table
from uplift_spark.registry.models import Registry
from uplift_spark.roles import Roles
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.stats.offpolicy import r_losses
from uplift_spark.stats.sampling import unit_hashes

TUNING_FOLDS = 5  # that what is expected is learnt in
_HELD, _TAKEN = 1_000_003, 1_000_033  # added to the seed: drawn apart from the split into training and hold-out


@dataclass(frozen=True)
class RLossHoldout:
    """Units held back: their rows, and outcomes beside what is expected of them and how probable levels were.

    first  bool [n], by hash: the half that chooses among trials
    """

    rows: pa.Table
    outcome: np.ndarray
    level_code: np.ndarray
    propensity: np.ndarray
    outcome_mean: np.ndarray
    first: np.ndarray

    def losses(self, effects: np.ndarray) -> np.ndarray:
        """R-losses of effects [n, K-1] at `rows`, float64 [n]."""
        return r_losses(self.outcome, self.level_code, self.propensity, self.outcome_mean, effects)


@dataclass(frozen=True)
class TuningInputs:
    """The training rows of a table's version, parted."""

    config: Config
    roles: Roles
    grow: DataFrame
    held: DataFrame
    data: Mapping[str, int]


def tuning_inputs(campaign: Campaign) -> TuningInputs:
    """Raises DataError without the training table."""
    config, table, section = campaign.config, campaign.training_table, campaign.config.tune
    version = campaign.lake.version(table)
    rows = campaign.training_set(version, "train")
    n, cluster = rows.count(), config.roles.cluster
    held = min(0.3, section.held_out / max(n, 1))
    parted = rows.withColumn("_held", hash_split(config.seed + _HELD, held, cluster) == "holdout")
    taken = min(1.0, section.rows / max(n * (1 - held), 1))
    grow = parted.where(~F.col("_held"))
    if taken < 1:
        grow = grow.where(hash_split(config.seed + _TAKEN, taken, cluster) == "holdout")
    roles = replace(config.training_roles, more_outcomes=())  # only the first shapes trees
    return TuningInputs(config, roles, grow, parted.where("_held"), {table: version})


def r_loss_holdout(inputs: TuningInputs, progress: ProgressCallback) -> RLossHoldout:
    """Collects the units held back, and learns among them, cross-fitted, what is expected of each."""
    plain, confounded = trial_roles(inputs.roles.over_levels)
    columns = dict.fromkeys([*plain.columns, *inputs.roles.columns])
    table = inputs.held.select(*(f"`{column}`" for column in columns)).toArrow()
    # In the order of hashes, as the sample's rows are.
    table = table.take(pa.array(np.argsort(unit_hashes(table.column(plain.unit), plain.unit).view(np.int64))))
    sample = sample_table(table, plain, (TUNING_FOLDS, inputs.config.seed), max(table.num_rows, 1))
    progress(f"what is expected of {table.num_rows:,} units held back")
    rows = rows_of(sample, confounded)
    known = (rows.features, rows.level_code, rows.outcome, rows.key, sample.spec, rows.weight, rows.propensity)
    outcome_mean = crossfit(*known).outcome_mean
    return RLossHoldout(
        table, rows.outcome, rows.level_code, rows.propensity, outcome_mean, rows.key % np.uint64(2) == 0
    )


def trials_of(config: Config) -> list[dict[str, Any]]:
    """Arguments of every trial: the configuration's own first, then draws from the space, none twice."""
    rng, section, own = np.random.default_rng(config.seed), config.tune, vars(config.forest)
    trials = [dict(own)]
    for _ in range(50 * section.trials):
        if len(trials) == section.trials:
            break
        arguments = {
            **own,
            **{name: values[rng.integers(len(values))] for name, values in sorted(section.space.items())},
        }
        if arguments not in trials:
            trials.append(arguments)
    return trials


@dataclass(frozen=True)
class TuningTrial:
    """Arguments and, less those of the configuration's own: losses of the half that chooses, and of the other, with its
    error; negative is better."""

    params: Mapping[str, Any]
    chosen_by: float
    difference: float
    error: float
    loss: float
    seconds: float


def tuned(inputs: TuningInputs, registry: Registry, run_id: str, progress: ProgressCallback) -> list[TuningTrial]:
    """All trials that the budget allows, those of earlier runs first; a trial that was logged is not done again."""
    config, started = inputs.config, time.monotonic()
    holdout: RLossHoldout | None = None
    own: np.ndarray | None = None
    trials: list[TuningTrial] = []
    names = ("chosen_by", "difference", "error", "loss", "seconds")
    for number, params in enumerate(trials_of(config)):
        run = f"{run_id}-{number}"
        known = registry.logged_metrics(config.model_name, run)
        if known is None:
            if trials and time.monotonic() - started > 60 * config.tune.minutes:
                progress(f"{config.tune.minutes:g} minutes are over after {len(trials)} trials: run again for more")
                break
            holdout = holdout or r_loss_holdout(inputs, progress)
            if own is None and number:
                own = _losses(inputs, holdout, trials_of(config)[0])[0]
            losses, seconds = _losses(inputs, holdout, params)
            own = losses if own is None else own
            known = _against(holdout, losses, own) | {"seconds": seconds}
            changed = {name: str(value) for name, value in params.items() if value != vars(config.forest)[name]}
            tags = {"mlflow.source.name": "uplift tune", "trial": str(number), "data_versions": str(dict(inputs.data))}
            registry.log_evaluation(config.model_name, run, tags | changed, known, [])
        trials.append(TuningTrial(params, *(known[name] for name in names)))
        progress(
            f"trial {number}: {_describe(config, params)}: R-loss {trials[-1].loss:.6g}, {trials[-1].chosen_by:+.3g}"
        )
    return trials


def _losses(inputs: TuningInputs, holdout: RLossHoldout, params: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    began = time.monotonic()
    model = CausalForest(**params, seed=inputs.config.seed).fit(inputs.grow, inputs.roles)
    effects = model.forest.effect_arrays(holdout.rows, errors=False)[0]
    return holdout.losses(effects), time.monotonic() - began


def _against(holdout: RLossHoldout, losses: np.ndarray, own: np.ndarray) -> dict[str, float]:
    apart, other = losses - own, ~holdout.first
    error = float(apart[other].std() / np.sqrt(max(other.sum(), 1)))
    chosen_by, difference = float(apart[holdout.first].mean()), float(apart[other].mean())
    return {"chosen_by": chosen_by, "difference": difference, "error": error, "loss": float(losses.mean())}


def _describe(config: Config, params: Mapping[str, Any]) -> str:
    changed = [f"{name} {value}" for name, value in params.items() if value != vars(config.forest)[name]]
    return ", ".join(changed) or "the configuration's own"


def best_of(trials: list[TuningTrial]) -> TuningTrial:
    """The trial that the half that chooses likes best."""
    return min(trials, key=lambda trial: trial.chosen_by)


def tuning_summary(config: Config, trials: list[TuningTrial]) -> str:
    """What to put under `forest`, and what that gains, in words."""
    best = best_of(trials)
    if best is trials[0]:
        return f"Of {len(trials)} trials none tells effects better than the configuration's own."
    low, high = best.difference - Z95 * best.error, best.difference + Z95 * best.error
    sure = "" if high < 0 else "; that may be chance: keep the configuration's own unless more units say so"
    return (
        f"Of {len(trials)} trials the best has {_describe(config, best.params)}. On units that had no say in that, its "
        f"R-loss differs from that of the configuration's own by {best.difference:.4g} ({low:.4g} to {high:.4g}){sure}."
    )


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Try, log, and say which arguments are best and what they gain."""
    inputs = tuning_inputs(campaign)
    run_id = run_id or campaign.run_id("tune", data=inputs.data)
    trials = tuned(inputs, campaign.registry, run_id, progress)
    best = dict(best_of(trials).params)
    return JobResult.of("tune", run_id, trials=len(trials), best=best, summary=tuning_summary(campaign.config, trials))


if __name__ == "__main__":
    main_job(run)
