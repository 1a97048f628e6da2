"""The lift of a window: expected before its labels are there, observed once they are, and whether it has dropped.

All from sums by bin of the predicted uplift. What a bin's units gained in the reference, where labels are known, is
added up in the window's own mix; inside a bin the prediction itself says how the window's units differ. This assumes
that units alike in their predicted uplift gain what they gained then: covariates may shift, effects given them do not.
A lift observed later is held against the lift expected so, and not against that of other units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from uplift_spark.roles import Direction, benefit
from uplift_spark.stats.moments import MIN_UNITS, ratio

SCORE_BINS = 20
SUMS = 6  # of a bin and arm: units, w, wy, w², w²y, w²y²

ASSUMPTION = (
    "units alike in their predicted uplift gain what such units gained in the reference: covariates may have shifted, "
    "effects given them have not"
)


@dataclass(frozen=True)
class ScoreSums:
    """Sums of units by bin of the uplift that a model predicts for one level; sums of windows add.

    units      all units, [B]
    predicted  sum of their predicted uplift, [B]
    width      sum of the widths of the predictions' 95 % intervals
    arms       of the control and of the level, in this order: units, w, wy, w², w²y and w²y² of those whose outcome y
               is known, w the inverse of the propensity of the level received, [B, 2, 6]
    """

    units: np.ndarray
    predicted: np.ndarray
    width: float
    arms: np.ndarray

    @classmethod
    def of(
        cls,
        edges: np.ndarray,
        uplift: np.ndarray,
        width: np.ndarray,
        arm: np.ndarray,
        outcome: np.ndarray,
        weight: np.ndarray,
    ) -> ScoreSums:
        """Add up units.

        Args:
            edges: Upper ends of all bins but the last, [B - 1].
            uplift: Predicted, [n].
            width: of its interval, [n].
            arm: 0 of the control, 1 of the level, -1 of another one, [n].
            outcome: NaN where it is not known, [n].
            weight: Inverse propensity of the level received, [n].

        Returns:
            The sums.
        """
        size = len(edges) + 1
        known = np.isfinite(uplift)  # a model that knows nothing of a unit says so
        uplift, width, arm, outcome, weight = (a[known] for a in (uplift, width, arm, outcome, weight))
        bins = np.searchsorted(edges, uplift, side="left")
        arms = np.zeros((size, 2, SUMS))
        for code in (0, 1):
            mine = (arm == code) & np.isfinite(outcome)
            b, w, y = bins[mine], weight[mine], outcome[mine]
            terms = (np.ones(len(b)), w, w * y, w * w, w * w * y, w * w * y * y)
            arms[:, code] = np.stack([np.bincount(b, term, size) for term in terms], axis=-1)
        total = float(np.nan_to_num(width).sum())
        return cls(np.bincount(bins, minlength=size), np.bincount(bins, uplift, size), total, arms)

    def __add__(self, other: ScoreSums) -> ScoreSums:
        return ScoreSums(
            self.units + other.units,
            self.predicted + other.predicted,
            self.width + other.width,
            self.arms + other.arms,
        )

    @property
    def n(self) -> int:
        """Units of the control and of the level whose outcome is known, the smaller arm's."""
        return int(self.arms[:, :, 0].sum(axis=0).min())

    @property
    def mean_width(self) -> float:
        """Mean width of the predictions' intervals; NaN without units."""
        total = self.units.sum()
        return self.width / float(total) if total else math.nan

    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Observed uplift of each bin and its squared error, [B]; NaN where an arm has too few units."""
        n, w, wy, ww, wwy, wwyy = np.moveaxis(self.arms, -1, 0)
        mean = np.where(n >= MIN_UNITS, ratio(wy, w), np.nan)
        square = ratio(wwyy - 2 * mean * wwy + mean**2 * ww, w**2)
        return mean[:, 1] - mean[:, 0], square.sum(axis=1)


@dataclass(frozen=True)
class LiftEstimate:
    """A mean uplift of one level per unit, with its standard error and 95 % interval.

    n        units of the smaller arm behind it
    outside  share of the window's units in bins for which the reference tells nothing
    """

    value: float
    error: float
    n: int
    outside: float = 0.0

    @property
    def lower(self) -> float:
        """Of the 95 % interval."""
        return self.value - 1.959964 * self.error

    @property
    def upper(self) -> float:
        """Of the 95 % interval."""
        return self.value + 1.959964 * self.error


@dataclass(frozen=True)
class EstimatedLift:
    """What a window's lift and Qini are expected to be before labels ripen, under `ASSUMPTION`."""

    lift: LiftEstimate
    qini: LiftEstimate


def observed_lift(sums: ScoreSums) -> LiftEstimate:
    """Lift of a window with labels: the bins' observed effects in the mix of all its units.

    Args:
        sums: of the window.

    Returns:
        The lift; value and error are NaN where an arm has too few units.
    """
    whole = ScoreSums(
        sums.units.sum(keepdims=True), sums.predicted.sum(keepdims=True), sums.width, sums.arms.sum(axis=0)[None]
    )
    effect, square = whole.effects()
    return LiftEstimate(float(effect[0]), math.sqrt(square[0]) if square[0] >= 0 else math.nan, sums.n)


def estimated_lift(reference: ScoreSums, window: ScoreSums, direction: Direction = "increase") -> EstimatedLift:
    """Lift and Qini of a window from its covariates alone.

    Args:
        reference: Sums with labels.
        window: Sums of the window in the same bins; its labels are not used.
        direction: Which way the outcome should go: whose benefit is largest is treated first.

    Returns:
        The lift per unit, and the area between the gain of treating the best first and that of treating at random; NaN
        where the window is empty, or no bin of the reference has enough units of both arms.
    """
    effect, square = reference.effects()
    is_known = np.isfinite(effect) & np.isfinite(square)
    if not window.units.sum() or not is_known.any():
        nothing = LiftEstimate(math.nan, math.nan, reference.n, 1.0)
        return EstimatedLift(nothing, nothing)
    correction = effect - ratio(reference.predicted, reference.units.astype(float))
    weight = np.where(is_known, reference.units, 0)
    usual = float((np.where(is_known, correction, 0.0) * weight).sum() / weight.sum())
    share = window.units / window.units.sum()
    mean = ratio(window.predicted, window.units.astype(float))
    estimated = np.where(window.units > 0, mean + np.where(is_known, correction, usual), 0.0)
    variance = np.where(is_known, square, square[is_known].max())
    outside = float(share[~is_known].sum())
    order = np.argsort(-benefit(np.nan_to_num(mean), direction), kind="stable")
    middle = np.empty(len(share))
    middle[order] = np.cumsum(share[order]) - share[order] / 2
    weights = (share, share * (0.5 - middle) * benefit(1.0, direction))
    lift, qini = (
        LiftEstimate(float(w @ estimated), math.sqrt(float(w**2 @ variance)), reference.n, outside) for w in weights
    )
    return EstimatedLift(lift, qini)


@dataclass(frozen=True)
class LiftDrop:
    """How much of the expected benefit is gone.

    drop     share; negative where there is more; NaN where the expected benefit cannot be distinguished from nought
    lower    one-sided bound, of level 1 - alpha: at least so much is gone
    p_value  of nothing gone
    sure     whether more than the limit is gone, and that something is cannot be chance
    n        units that were observed
    n_needed units of the smaller arm with which a drop as large as the limit would differ from none four times in five
    """

    drop: float
    lower: float
    p_value: float
    sure: bool
    n: int
    n_needed: float


def lift_drop(
    estimated: LiftEstimate,
    observed: LiftEstimate,
    direction: Direction = "increase",
    limit: float = 0.05,
    alpha: float = 0.01,
) -> LiftDrop:
    """Hold a window's lift against the expected one.

    A point below 95 % of the expected lift is noise: at 5 % conversion and half a point of lift, 100,000 units an arm
    show it in four of ten windows in which nothing changed. So whoever reads the drop reads its interval.

    Args:
        estimated: From covariates and the reference.
        observed: From the window's labels.
        direction: Which way the outcome should go.
        limit: Share of the lift that may be lost.
        alpha: Probability of finding a drop where there is none.

    Returns:
        The drop.
    """
    was, now = benefit(estimated.value, direction), benefit(observed.value, direction)
    error = math.hypot(estimated.error, observed.error)
    quantile = float(norm.isf(alpha))
    if not (was > 2 * estimated.error and error > 0 and math.isfinite(now)):
        return LiftDrop(math.nan, math.nan, math.nan, False, observed.n, math.nan)
    p_value = float(norm.sf((was - now) / error))
    drop = 1 - now / was
    tolerated = (limit * was / (quantile + float(norm.ppf(0.8)))) ** 2 - estimated.error**2
    needed = math.ceil(observed.n * observed.error**2 / tolerated) if tolerated > 0 else math.inf
    lower = drop - quantile * error / was
    return LiftDrop(drop, lower, p_value, bool(drop > limit and p_value < alpha), observed.n, needed)


@dataclass(frozen=True)
class LosingUnits:
    """The treated units of the lowest predicted gain, on whom treating costs more than it brings, beyond chance.

    units  treated
    share  of all treated units
    lost   money, at least
    """

    units: float
    share: float
    lost: float


def losing_units(sums: ScoreSums, value: float, cost: float, alpha: float = 0.01) -> LosingUnits | None:
    """Find how far up from the lowest predicted gain treating does not pay.

    Args:
        sums: of a window with labels.
        value: Money that one unit of the outcome is worth; negative where less is better.
        cost: Money that treating one unit costs.
        alpha: Probability that some are found where treating pays for all (Bonferroni over the ends).

    Returns:
        The units that lose most; None where none do beyond chance.
    """
    effect, square = sums.effects()
    treated = sums.arms[:, 1, 0]
    tested = np.isfinite(effect) & np.isfinite(square) & (treated > 0)
    order = np.flatnonzero(tested)[:: 1 if value >= 0 else -1]
    if not order.size:
        return None
    n = treated[order]
    total = np.cumsum(n * (value * effect[order] - cost))
    error = abs(value) * np.sqrt(np.cumsum(n**2 * square[order]))
    upper = total + float(norm.isf(alpha / order.size)) * error
    worst = int(np.argmin(upper))
    if upper[worst] >= 0:
        return None
    units = float(n[: worst + 1].sum())
    return LosingUnits(units, units / float(treated.sum()), -float(upper[worst]))
