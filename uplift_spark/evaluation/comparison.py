"""Several models on one hold-out: metrics, paired differences, values of rules, cost curves.

`all_values` sums up the hold-out, `compared_metrics` and `cost_curves` make tables of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.evaluation.metrics import METRICS, Evaluation, curve_figures
from uplift_spark.evaluation.spark import sums_by_key
from uplift_spark.evaluation.sums import keyed
from uplift_spark.learners.spark import OUTCOME_MEAN, effects_column
from uplift_spark.roles import UNIT, Direction, benefit
from uplift_spark.stats.intervals import bootstrap_interval, poisson_weights
from uplift_spark.stats.moments import FixedPoint
from uplift_spark.stats.offpolicy import CONTROL, CostCurve, blind_area, choice, doubly_robust, prices, weighted_gain

if TYPE_CHECKING:
    pass


# --------------------------------------------------------------------------------------------------------------------
# Values of rules and cost curves, in one pass over the hold-out.
# The pass sums up every model's choices at every price under the same resamples, so that differences between models are
# paired. `stats.offpolicy` holds the estimators.

Figure = tuple[np.ndarray, np.ndarray]  # a value, [], and its resamples, [R]

_CHUNK = 1 << 12  # rows: 2^12 terms of 2^31 counted up to 8 times add exactly in float64
_SAMPLE = 20_000


@dataclass(frozen=True)
class Rules:
    """Rules of all models, and the scale of the sums over them.

    cost     of treating one unit with each treated level, [L]
    price    at which the rule of a model stops: cost is worth its outcome there
    prices   of each model's cost curve, `price` among them, [B] from high to low
    largest  weight and size of outcome
    direction  decrease where less of the outcome is better: gains are what the outcome falls by
    """

    cost: np.ndarray
    price: float
    prices: tuple[np.ndarray, ...]
    largest: tuple[float, float]
    replicates: int
    seed: int
    direction: Direction = "increase"

    @cached_property
    def scales(self) -> dict[str, float]:
        """Factors that make terms of each kind whole numbers of at most 2^31."""
        weight, outcome = self.largest
        outcome_shifts = FixedPoint.of(weight, outcome).shifts
        alone = {"score": 2 * outcome * (1 + 2 * weight), "cost": float(self.cost.max())}
        shifts = {kind: FixedPoint.of(1.0, size).shifts["wy"] for kind, size in alone.items()}
        return {
            kind: 2.0**shift
            for kind, shift in (shifts | {"n": 0, "w": outcome_shifts["w"], "wy": outcome_shifts["wy"]}).items()
        }

    def kinds(self, model: int) -> list[str]:
        """Kind of each column of a model's terms."""
        levels, points = len(self.cost), len(self.prices[model])
        return ["n"] + ["score"] * levels + ["score", "cost"] * points + ["n", "w", "wy", "w", "wy"]


def prices_of(
    predictions: DataFrame, models: int, cost: np.ndarray, price: float, points: int, direction: Direction = "increase"
) -> tuple[np.ndarray, ...]:
    """Choose the prices of each model's cost curve, from a sample of `learners.spark.predict_frame`; one pass."""
    columns = [effects_column(m) for m in range(models)]
    some = predictions.orderBy(F.xxhash64(UNIT)).limit(_SAMPLE).select(*columns).toArrow()
    per_model = [prices(benefit(_matrix(some[name].combine_chunks()), direction), cost, points) for name in columns]
    return tuple(np.unique(np.r_[one, price])[::-1] for one in per_model)


def all_values(frame: DataFrame, rules: Rules) -> list[Values]:
    """Sum up every model's choices over a hold-out, in one pass.

    frame  unit_hash bigint, level_code int, outcome and weight (1 / probability of the level received) double,
           outcome_mean array<double> [K], effects_0, effects_1, ... array<double> [L]
    """
    sums = sums_by_key(frame, partial(add_values, rules))
    return [Values.of(sums[m], rules, m) for m in range(len(rules.prices))]


@dataclass(frozen=True)
class Values:
    """One model's sums [R + 1, columns] in their units: those of all rows first, then those of each resample."""

    sums: np.ndarray
    rules: Rules
    model: int

    @classmethod
    def of(cls, sums: np.ndarray, rules: Rules, model: int) -> Values:
        kinds = rules.kinds(model)
        scale = np.array([rules.scales[kind] for kind in kinds])
        return cls(sums.reshape(-1, len(kinds)) / scale, rules, model)

    @property
    def levels(self) -> int:
        return len(self.rules.cost)

    @cached_property
    def average(self) -> np.ndarray:
        """Average effect of each level by doubly robust scores, [R + 1, L]."""
        return np.asarray(self.sums[:, 1 : 1 + self.levels] / self.sums[:, :1])

    @cached_property
    def curve(self) -> CostCurve:
        """Cost curves, points [R + 1, B + 1]."""
        start, points = 1 + self.levels, len(self.rules.prices[self.model])
        path = self.sums[:, start : start + 2 * points].reshape(-1, points, 2) / self.sums[:, :1, None]
        path = np.concatenate([np.zeros((len(path), 1, 2)), path], axis=1)
        return CostCurve(path[..., 1], path[..., 0])

    def figures(self, most: float) -> dict[str, Figure]:
        """Figures of the model's rule, which treats where the effect is worth the cost, and of its cost curve up to the
        budget `most`, all per unit of the population:

        policy_value_dr, policy_value_ipw  outcome gained by the rule      policy_cost  its cost
        multi_arm_auuc  mean gain over all budgets                         multi_arm_qini  more than rules that know no
        unit bring
        """
        ipw = weighted_gain(self.sums[:, 0], self.sums[:, -5], self.sums[:, -4:-2], self.sums[:, -2:])
        curve, at = self.curve, 1 + int(np.flatnonzero(self.rules.prices[self.model] == self.rules.price)[0])
        area = curve.area(most) if most > 0 else np.full(len(self.sums), np.nan)
        blind = blind_area(self.average, self.rules.cost, most) if most > 0 else area
        by_name = {
            "policy_value_dr": curve.gain[:, at], "policy_value_ipw": ipw, "policy_cost": curve.cost[:, at],
            "multi_arm_auuc": area, "multi_arm_qini": area - blind,
        }  # fmt: skip
        return {name: (values[0], values[1:]) for name, values in by_name.items()}


def add_values(rules: Rules, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: the rows of one partition to one row of integer sums per model, [R + 1, columns]."""
    models = range(len(rules.prices))
    totals = [np.zeros((rules.replicates + 1, len(rules.kinds(m))), np.int64) for m in models]
    for batch in batches:
        for start in range(0, batch.num_rows, _CHUNK):
            rows = batch.slice(start, _CHUNK)
            hashes, level_code, outcome, weight = (
                rows.column(name).to_numpy(zero_copy_only=False)
                for name in ("unit_hash", "level_code", "outcome", "weight")
            )
            outcome, means = (benefit(a, rules.direction) for a in (outcome, _matrix(rows.column(OUTCOME_MEAN))))
            scores = doubly_robust(outcome, level_code, weight, means)
            counts = np.ones((rules.replicates + 1, len(hashes)))
            counts[1:] = poisson_weights(hashes, rules.seed, rules.replicates).T
            for m in models:
                effects = benefit(_matrix(rows.column(effects_column(m))), rules.direction)
                terms = _terms(rules, m, effects, scores, (level_code, outcome, weight))
                totals[m] += (counts @ terms).astype(np.int64)
    yield keyed(dict(enumerate(totals)))


def _terms(
    rules: Rules,
    model: int,
    effects: np.ndarray,
    scores: np.ndarray,
    observed: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Whole numbers in the columns of `Rules.kinds`, float64 [rows, columns]."""
    level_code, outcome, weight = observed
    rows, gained, cost = np.arange(len(effects)), scores - scores[:, :1], np.r_[0.0, rules.cost]
    columns = [np.ones(len(rows)), *gained[:, 1:].T]
    for price in rules.prices[model]:
        chosen = choice(effects, rules.cost, price)
        columns += [gained[rows, chosen], cost[chosen]]
    chosen = choice(effects, rules.cost, rules.price)
    treated = chosen != CONTROL
    matched, control = (weight * (treated & (level_code == arm)) for arm in (chosen, CONTROL))
    columns += [treated, matched, matched * outcome, control, control * outcome]
    scale = np.array([rules.scales[kind] for kind in rules.kinds(model)])
    return np.asarray(np.rint(np.column_stack(columns) * scale))


def _matrix(column: pa.Array) -> np.ndarray:
    """Lists of one length as float64 [rows, length]."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


# --------------------------------------------------------------------------------------------------------------------
# Tables: metrics with paired differences from the first model, and cost curves.

ANY_LEVEL = "any"
DIFFERENCE = "_difference"


def compared_metrics(evaluations: Mapping[str, Evaluation], values: Mapping[str, Values]) -> pd.DataFrame:
    """gold.uplift_metrics without run_id: METRICS by level, figures of `Values` for the treatment ANY, and for every
    model but the first also `<metric>_difference`, its figure less the first one's, with intervals of 95 %.

    All models met the same units under the same resamples, so a difference's interval knows how they agree.
    """
    most = largest_budget(values)
    first, rows = next(iter(evaluations)), []
    by_model = {model: dict(_figures(evaluations[model], values[model], most)) for model in evaluations}
    outcome = evaluations[first].spec.outcomes[0]
    for model, figures in by_model.items():
        for (level, metric), (value, draws) in figures.items():
            rows.append((model, outcome, level, metric, value, *bootstrap_interval(value, draws)))
            if model != first:
                theirs, others = by_model[first][level, metric]
                apart, draws = value - theirs, draws - others
                rows.append((model, outcome, level, metric + DIFFERENCE, apart, *bootstrap_interval(apart, draws)))
    names = ["model_version", "outcome", "treatment", "metric", "value", "lower", "upper"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[-3:], float))


def _figures(evaluation: Evaluation, values: Values, most: float) -> Iterator[tuple[tuple[str, str], Figure]]:
    curve, resampled = evaluation.curves[0], evaluation.resampled[0]
    direction = evaluation.spec.direction_of(evaluation.spec.outcomes[0])
    figures, resampled_figures = (curve_figures(one, direction) for one in (curve, resampled))
    for metric in METRICS:
        value, draws = np.where(evaluation.enough, figures[metric], np.nan), resampled_figures[metric]
        for k, level in enumerate(evaluation.levels):
            yield (level, metric), (value[k], draws[:, k])
    for metric, pair in values.figures(most).items():
        yield (ANY_LEVEL, metric), pair


def largest_budget(values: Mapping[str, Values]) -> float:
    """Give the most that any of the models would spend per unit: the largest budget of the comparison."""
    return max(float(one.curve.cost[0, -1]) for one in values.values())


def cost_curves(values: Mapping[str, Values], outcome: str) -> pd.DataFrame:
    """Make a table of every model's cost curve: gold.cost_curve without run_id and campaign."""
    parts = []
    for model, one in values.items():
        cost, gain = one.curve.cost, one.curve.gain
        lower, upper = bootstrap_interval(gain[0], gain[1:])
        lower[0] = upper[0] = 0.0
        columns = {"cost": cost[0], "gain": gain[0], "gain_lower": lower, "gain_upper": upper}
        parts.append(pd.DataFrame({"model": model, "outcome": outcome, **columns}))
    return pd.concat(parts, ignore_index=True)
