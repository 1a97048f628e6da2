"""Several models on one hold-out: metrics, paired differences from the first, cost curves, a picture (R4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from uplift_spark.flow.evaluation import Evaluation
from uplift_spark.flow.metrics import METRICS
from uplift_spark.flow.offpolicy import Figure, Values
from uplift_spark.stats.intervals import bootstrap_interval

if TYPE_CHECKING:
    pass

ANY = "any"
DIFFERENCE = "_difference"


def compared_metrics(evaluations: Mapping[str, Evaluation], values: Mapping[str, Values]) -> pd.DataFrame:
    """gold.uplift_metrics without run_id: METRICS by level, figures of `Values` for the treatment ANY, and for every
    model but the first also `<metric>_difference`, its figure less the first one's, with intervals of 95 %.

    All models met the same units under the same resamples, so a difference's interval knows how they agree.
    """
    most = largest_budget(values)
    first, rows = next(iter(evaluations)), []
    found = {model: dict(_figures(evaluations[model], values[model], most)) for model in evaluations}
    outcome = evaluations[first].setup.outcomes[0]
    for model, figures in found.items():
        for (level, metric), (value, draws) in figures.items():
            rows.append((model, outcome, level, metric, value, *bootstrap_interval(value, draws)))
            if model != first:
                theirs, others = found[first][level, metric]
                apart, draws = value - theirs, draws - others
                rows.append((model, outcome, level, metric + DIFFERENCE, apart, *bootstrap_interval(apart, draws)))
    names = ["model_version", "outcome", "treatment", "metric", "value", "lower", "upper"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[-3:], float))


def _figures(evaluation: Evaluation, values: Values, most: float) -> Iterator[tuple[tuple[str, str], Figure]]:
    curve, resampled = evaluation.curves[0], evaluation.resampled[0]
    for metric, figure in METRICS.items():
        value, draws = np.where(evaluation.enough, figure(curve), np.nan), figure(resampled)
        for k, level in enumerate(evaluation.levels):
            yield (level, metric), (value[k], draws[:, k])
    for metric, found in values.figures(most).items():
        yield (ANY, metric), found


def largest_budget(values: Mapping[str, Values]) -> float:
    """What any of the models would spend at most, per unit: the end of the budgets they are compared over."""
    return max(float(one.curve.cost[0, -1]) for one in values.values())


def cost_curves(values: Mapping[str, Values], outcome: str) -> pd.DataFrame:
    """gold.cost_curve without run_id and campaign."""
    parts = []
    for model, one in values.items():
        cost, gain = one.curve.cost, one.curve.gain
        lower, upper = bootstrap_interval(gain[0], gain[1:])
        lower[0] = upper[0] = 0.0
        columns = {"cost": cost[0], "gain": gain[0], "gain_lower": lower, "gain_upper": upper}
        parts.append(pd.DataFrame({"model": model, "outcome": outcome, **columns}))
    return pd.concat(parts, ignore_index=True)
