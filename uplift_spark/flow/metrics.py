"""Uplift curves and metrics with intervals, as tables: pure functions of an evaluation's sums (R4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from uplift_spark.flow.evaluation import Cut, Evaluation
from uplift_spark.stats.calibration import calibration_slope, calibration_test
from uplift_spark.stats.intervals import bootstrap_interval
from uplift_spark.stats.moments import Moments, difference, ratio
from uplift_spark.stats.qini import Curve

METRICS: dict[str, Callable[[Curve], np.ndarray]] = {
    "ate": lambda curve: curve.average_effect,
    "auuc": lambda curve: curve.auuc,
    "qini": lambda curve: curve.qini,
    "autoc": lambda curve: curve.autoc,
    "top_30_percent_uplift": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3,
    "top_30_percent_minus_average": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3 - curve.average_effect,
}
"""Figures of a curve, each [...] from points [..., bins + 1]; the bootstrap takes the same functions."""


def curve_table(evaluation: Evaluation) -> pd.DataFrame:
    """gold.uplift_curve without run_id: gains at every bin's share of the population, 95 % pointwise bootstrap band."""
    fractions = np.linspace(0, 1, evaluation.setup.bins + 1)
    parts = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        gain = np.where(evaluation.enough[:, None], curve.at(fractions), np.nan)
        lower, upper = bootstrap_interval(gain, resampled.at(fractions))
        lower[:, 0], upper[:, 0] = gain[:, 0], gain[:, 0]
        for k, level in enumerate(evaluation.levels):
            parts.append(pd.DataFrame({
                "outcome": outcome, "treatment": level, "fraction": fractions, "gain": gain[k],
                "gain_lower": lower[k], "gain_upper": upper[k], "random_gain": fractions * gain[k, -1],
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def metric_table(evaluation: Evaluation) -> pd.DataFrame:
    """gold.uplift_metrics without run_id and model_version: every metric with its 95 % bootstrap interval.

    Those of METRICS, in the outcome's units; for the outcome the model predicts also `calibration_slope` (of observed
    on predicted uplift over deciles; 1 is calibrated), `prediction_bias` (mean prediction minus average effect) and, in
    place of an interval, `calibration_p` and `heterogeneity_p`, the p-values of `stats.calibration`.
    """
    rows = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        figures = {name: (f(curve), f(resampled)) for name, f in METRICS.items()}
        if outcome == evaluation.setup.outcomes[0]:
            figures |= _calibration(evaluation, curve, resampled)
        values = {name: np.where(evaluation.enough, value, np.nan) for name, (value, _) in figures.items()}
        bounds = {name: bootstrap_interval(values[name], draws) for name, (_, draws) in figures.items()}
        rows += [
            (outcome, level, name, values[name][k], bounds[name][0][k], bounds[name][1][k])
            for k, level in enumerate(evaluation.levels)
            for name in figures
        ]
    return pd.DataFrame(rows, columns=["outcome", "treatment", "metric", "value", "lower", "upper"])


def _by_outcome(evaluation: Evaluation) -> zip[tuple[str, Curve, Curve]]:
    return zip(evaluation.setup.outcomes, evaluation.curves, evaluation.resampled, strict=True)


def predicted_mean(moments: Moments) -> np.ndarray:
    """Mean prediction over both arms' units, [...] from Moments [..., 2, buckets, values]; `predicted` comes last."""
    both = moments.sum(axis=-3)
    return both.mean[..., -1]


def _calibration(evaluation: Evaluation, curve: Curve, resampled: Curve) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    deciles = evaluation.deciles()
    predicted, mass = predicted_mean(deciles), deciles.w[..., 0].sum(axis=1)
    effects = difference(deciles[:, 1, :, 0], deciles[:, 0, :, 0])
    w, wy = evaluation.resampled_deciles
    means = ratio(wy[..., 0], w)
    observed = effects.estimate
    draws = np.where(np.isfinite(observed), means[:, :, 1] - means[:, :, 0], np.nan)
    tests = calibration_test(mass, predicted, effects, draws if evaluation.setup.cluster else None)
    average = predicted_mean(evaluation.sums.moments.sum(axis=2)[:, :, None])[:, 0]
    return {
        "calibration_slope": (
            calibration_slope(mass, predicted, observed),
            calibration_slope(w.sum(axis=2), predicted, draws),
        ),
        "prediction_bias": (average - curve.average_effect, average - resampled.average_effect),
        "calibration_p": (tests.calibration, np.full_like(resampled.average_effect, np.nan)),
        "heterogeneity_p": (tests.heterogeneity, np.full_like(resampled.average_effect, np.nan)),
    }


def with_cuts(metrics: pd.DataFrame, cuts: Mapping[str, Cut]) -> pd.DataFrame:
    """A metric table with what was cut off on record: `winsorised_at`, of every treatment (`any`)."""
    rows = [(outcome, "any", "winsorised_at", cut.at, np.nan, np.nan) for outcome, cut in cuts.items()]
    return pd.concat([metrics, pd.DataFrame(rows, columns=metrics.columns)]) if rows else metrics
