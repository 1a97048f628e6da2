"""Uplift curves and the figures read off them, as functions of sums per rank bin (R4.2).

Units are ranked by predicted uplift, highest first, and cut into bins; ties share a bin. With f the share of the
population in the top bins,

    gain(f) = f · (mean outcome of the treated in the top - mean outcome of the control in the top)

is the outcome gained per unit of the whole population when the top share f is treated, in units of the outcome.

    AUUC = ∫₀¹ gain(f) df            Qini = AUUC - gain(1)/2

Qini is the area between the curve and the random line from (0, 0) to (1, gain(1)), where gain(1) is the average
effect. Neither is divided by a perfect model's area nor multiplied by the number of units; other libraries' figures
are had from the same sums by `stats.conventions`. Areas use the trapezoid rule over the bins.

Arrays have any leading axes (resamples, levels) and the rank bins last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uplift_spark.stats.moments import ratio


@dataclass(frozen=True)
class Curve:
    """Points of uplift curves: shares of the population and gains, [..., bins + 1], starting at (0, 0), ending at 1."""

    fraction: np.ndarray
    gain: np.ndarray

    @property
    def average_effect(self) -> np.ndarray:
        """gain(1), [...]: the effect of treating everyone."""
        return self.gain[..., -1]

    @property
    def auuc(self) -> np.ndarray:
        """Area under the curve, [...]."""
        width = np.diff(self.fraction, axis=-1)
        return np.sum(width * (self.gain[..., 1:] + self.gain[..., :-1]) / 2, axis=-1)

    @property
    def qini(self) -> np.ndarray:
        """Area between the curve and the random line, [...]: 0 for a ranking at random."""
        return self.auuc - self.average_effect / 2

    @property
    def autoc(self) -> np.ndarray:
        """∫₀¹ (gain(f)/f - gain(1)) df, [...]: how much more the effect is in the top than on average, over all tops.

        The area under the targeting operator characteristic (Yadlowsky et al. 2025), exact on the straight lines
        between the points: units of a bin are tied. It looks harder at the first units than Qini does, whose weight
        for the top share f is f itself. 0 for a ranking at random.
        """
        start, width = self.fraction[..., :-1], np.diff(self.fraction, axis=-1)
        slope = np.diff(self.gain, axis=-1) / np.where(width > 0, width, 1.0)
        # On a bin gain(f)/f is slope + (gain(start) - slope·start)/f.
        beyond = np.where(start > 0, np.log1p(width / np.where(start > 0, start, 1.0)), 0.0)
        area = slope * width + (self.gain[..., :-1] - slope * start) * beyond
        return np.sum(np.where(width > 0, area, 0.0), axis=-1) - self.average_effect

    def at(self, fractions: np.ndarray) -> np.ndarray:
        """Gains at the given shares of the population, [..., shares], on straight lines between the points."""
        flat = [np.reshape(a, (-1, a.shape[-1])) for a in (self.fraction, self.gain)]
        rows = [np.interp(fractions, x, y) for x, y in zip(*flat, strict=True)]
        return np.reshape(rows, (*self.gain.shape[:-1], len(fractions)))


def uplift_curve(treated_w: np.ndarray, treated_wy: np.ndarray, control_w: np.ndarray, control_wy: np.ndarray) -> Curve:
    """Curve from each arm's Σw and Σw·y per rank bin, [..., bins], highest prediction first.

    Where the first bins hold one arm only, the first difference that can be taken stands for them. Without one of the
    arms altogether every gain is NaN.
    """
    tw, ty, cw, cy = (np.cumsum(a, axis=-1, dtype=np.float64) for a in (treated_w, treated_wy, control_w, control_wy))
    effect = _filled(ratio(ty, tw) - ratio(cy, cw))
    mass = tw + cw
    fraction = ratio(mass, mass[..., -1:])
    return Curve(_from_zero(fraction), _from_zero(fraction * effect))


def true_curve(units: np.ndarray, effects: np.ndarray) -> Curve:
    """Curve of a ranking when effects are known: number of units and sum of their true effects per bin, [..., bins]."""
    units, effects = (np.cumsum(a, axis=-1, dtype=np.float64) for a in (units, effects))
    return Curve(_from_zero(ratio(units, units[..., -1:])), _from_zero(ratio(effects, units[..., -1:])))


def _from_zero(points: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((*points.shape[:-1], 1)), points], axis=-1)


def _filled(effect: np.ndarray) -> np.ndarray:
    """Cumulative differences are unknown only before both arms have appeared: take the first known one there."""
    known = np.isfinite(effect)
    first = np.argmax(known, axis=-1)[..., None]
    return np.where(known, effect, np.take_along_axis(effect, first, axis=-1))


def rank_bins(mass: np.ndarray, bins: int) -> np.ndarray:
    """Bin (0 = first) of each group of tied units, int64 [groups], from their masses in rank order.

    A group goes where the middle of its ranks falls, so that ties share a bin and a ranking without any information
    lands in the middle, not in the top bin.
    """
    mass = np.asarray(mass, np.float64)
    before = np.concatenate([[0.0], np.cumsum(mass)])
    middle = (before[:-1] + before[1:]) / (2 * before[-1])
    return np.minimum((middle * bins).astype(np.int64), bins - 1)
