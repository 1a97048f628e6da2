"""Looks at a running trial that keep its level: spending bounds, confidence sequences, a sequential ratio test.

A trial that is read at several moments with the bounds of one reading raises false alarms: 20 looks at level .05 raise
one in four times. Group-sequential designs plan the looks and spend the level over them (Lan and DeMets 1983).
Anytime-valid confidence sequences hold at every moment at once, planned or not, and are half as wide again. Both are
given here as the level at which one reading's p-value and interval have to be read, so that every statistic serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.special import gammaln, ndtr
from scipy.stats import norm

from uplift_spark.errors import ConfigError, hint

STOPPING_KINDS = ("fixed", "group_sequential", "anytime")
SPENDING = ("obrien_fleming", "pocock", "hwang_shih_decani")
RATIO_CONCENTRATION = 10_000.0
"""Units that the sequential ratio test's prior is worth: it looks for deviations of about a hundredth of a share."""

_WIDEST = 8.5  # standard errors: what lies beyond weighs less than 1e-16
_REACH = 7.0  # standard errors: as far as the density is followed, 1e-12 lies beyond
_NODES = 96


# --------------------------------------------------------------------------------------------------------------------
# Group-sequential bounds.


def spent_level(
    fraction: float, alpha: float, spending: str = "obrien_fleming", two_sided: bool = True, gamma: float = -4.0
) -> float:
    """Level that may be spent up to a fraction of the information (Lan and DeMets 1983; Hwang, Shih and DeCani 1990).

    Args:
        fraction: Share of the planned information, in [0, 1].
        alpha: Level of the whole trial.
        spending: 'obrien_fleming' (hardly anything early), 'pocock' (evenly) or 'hwang_shih_decani'.
        two_sided: Whether alpha is for both sides, each of which spends half of it.
        gamma: Of 'hwang_shih_decani': -4 is near O'Brien and Fleming, 1 near Pocock.

    Returns:
        Level spent, at most alpha.

    Raises:
        ConfigError: The spending is unknown.
    """
    if spending not in SPENDING:
        raise ConfigError(f"spending {spending!r} is unknown: {hint(spending, SPENDING)}")
    if fraction <= 0:
        return 0.0
    sides = 2 if two_sided else 1
    side, fraction = alpha / sides, min(1.0, fraction)
    if spending == "pocock":
        return sides * side * math.log1p((math.e - 1) * fraction)
    if spending == "hwang_shih_decani":
        share = fraction if gamma == 0 else math.expm1(-gamma * fraction) / math.expm1(-gamma)
        return sides * side * share
    return sides * 2 * float(norm.sf(norm.isf(side / 2) / math.sqrt(fraction)))


@lru_cache(maxsize=4096)
def spending_bounds(
    fractions: tuple[float, ...],
    alpha: float = 0.05,
    spending: str = "obrien_fleming",
    two_sided: bool = True,
    gamma: float = -4.0,
) -> tuple[float, ...]:
    """Values that |effect| / error has to pass at each look, found look by look from the level spent so far.

    Args:
        fractions: Share of the planned information at each look, rising, the last at most 1.
        alpha: Level of the whole trial; fully spent where the last fraction is 1.
        spending: As in `spent_level`.
        two_sided: Whether effects of both signs count.
        gamma: As in `spent_level`.

    Returns:
        A bound for each look; infinite where nothing is spent that a float can hold.

    Raises:
        ConfigError: Fractions do not rise within (0, 1], or the spending is unknown.

    Example:
        >>> [round(bound, 3) for bound in spending_bounds((0.2, 0.4, 0.6, 0.8, 1.0))]
        [4.877, 3.357, 2.68, 2.29, 2.031]
    """
    _check_fractions(fractions)
    state = _State()
    bounds = []
    before = 0.0
    for fraction in fractions:
        until = spent_level(fraction, alpha, spending, two_sided, gamma)
        bounds.append(state.bound_of(fraction, until - before, two_sided))
        state.step(fraction, bounds[-1], two_sided)
        before = until
    return tuple(bounds)


def _check_fractions(fractions: Sequence[float]) -> None:
    ends = [0.0, *fractions]
    if not fractions or any(not b > a for a, b in pairwise(ends)) or fractions[-1] > 1 + 1e-9:
        shown = ", ".join(f"{one:g}" for one in fractions) or "none"
        raise ConfigError(
            f"looks at {shown} of the information do not rise within (0, 1]: give such as .25, .5, .75, 1"
        )


class _State:
    """Density of the score process, a Brownian motion, where no bound was passed so far (Armitage et al. 1969)."""

    def __init__(self, drift: float = 0.0) -> None:
        self.drift, self.fraction = drift, 0.0
        self.x, self.mass = np.zeros(1), np.ones(1)

    def exit(self, fraction: float, bound: float, two_sided: bool) -> tuple[float, float]:
        """Probabilities of passing the upper and the lower bound at the next look, from all that is still inside."""
        step = math.sqrt(fraction - self.fraction)
        mean = self.x + self.drift * (fraction - self.fraction)
        edge = bound * math.sqrt(fraction)
        above = float(self.mass @ ndtr((mean - edge) / step))
        return above, float(self.mass @ ndtr((-edge - mean) / step)) if two_sided else 0.0

    def bound_of(self, fraction: float, level: float, two_sided: bool) -> float:
        """The bound that spends `level` at the next look."""
        if sum(self.exit(fraction, _WIDEST, two_sided)) >= level:
            return math.inf
        return float(brentq(lambda c: sum(self.exit(fraction, c, two_sided)) - level, -_WIDEST, _WIDEST, xtol=1e-12))

    def step(self, fraction: float, bound: float, two_sided: bool) -> None:
        """Go on to a look, with what passes its bound taken away."""
        scale, step = math.sqrt(fraction), math.sqrt(fraction - self.fraction)
        middle = self.drift * fraction
        high = min(bound * scale, middle + _REACH * scale)
        low = max(-bound * scale if two_sided else -math.inf, middle - _REACH * scale)
        # Nodes lie closer than the step to the next density is wide.
        nodes, weights = _legendre(min(2048, max(_NODES, math.ceil(3 * (high - low) / step))))
        y = low + (high - low) * (nodes + 1) / 2
        mean = self.x + self.drift * (fraction - self.fraction)
        density = (
            np.exp(-(((y[:, None] - mean[None, :]) / step) ** 2) / 2) @ self.mass / (step * math.sqrt(2 * math.pi))
        )
        self.x, self.mass, self.fraction = y, density * weights * (high - low) / 2, fraction


@lru_cache(maxsize=32)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)


def crossing_probability(fractions: Sequence[float], bounds: Sequence[float], drift: float = 0.0) -> float:
    """Probability that a two-sided trial passes any of its bounds.

    Args:
        fractions: Share of the planned information at each look, rising.
        bounds: Bound of |effect| / error at each look.
        drift: True effect over the standard error that the full information gives.

    Returns:
        Level without drift, power with it.

    Raises:
        ConfigError: Fractions do not rise within (0, 1].
    """
    _check_fractions(fractions)
    state, total = _State(drift), 0.0
    for fraction, bound in zip(fractions, bounds, strict=True):
        total += sum(state.exit(fraction, bound, True))
        state.step(fraction, bound, True)
    return total


# --------------------------------------------------------------------------------------------------------------------
# Anytime-valid.


def _rho_squared(alpha: float, tuned_for: float) -> float:
    return (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned_for


def sequence_width(units: float, tuned_for: float, alpha: float = 0.05) -> float:
    """Half-width of an asymptotic confidence sequence, in standard errors (Waudby-Smith et al. 2024, theorem 2.2).

    Args:
        units: Units so far, all arms of the comparison.
        tuned_for: Units at which the sequence is narrowest.
        alpha: Probability that it ever misses the truth.

    Returns:
        The factor on the standard error; 1.55 times the normal quantile where it is narrowest.

    Raises:
        ConfigError: There are no units.
    """
    if not (units > 0 and tuned_for > 0):
        raise ConfigError(
            f"a confidence sequence of {units:g} units, tuned for {tuned_for:g}, is none: use more than 0"
        )
    scaled = units * _rho_squared(alpha, tuned_for)
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


# --------------------------------------------------------------------------------------------------------------------
# What a design declares.


@dataclass(frozen=True)
class StoppingRule:
    """When a trial may be read, and how strictly.

    kind       'fixed' (once, at its end), 'group_sequential' (at planned looks), 'anytime' (whenever one likes)
    alpha      level of the whole trial, two-sided
    analyses   of a group-sequential trial: share of the planned units at each look, rising to 1
    spending   'obrien_fleming', 'pocock' or 'hwang_shih_decani'
    gamma      of the last
    tuned_for  of an anytime trial: units at which its intervals are narrowest; the planned units by default

    Raises ConfigError when parts do not fit.
    """

    kind: str = "fixed"
    alpha: float = 0.05
    analyses: tuple[float, ...] = ()
    spending: str = "obrien_fleming"
    gamma: float = -4.0
    tuned_for: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "analyses", tuple(float(one) for one in self.analyses))
        if self.kind not in STOPPING_KINDS:
            raise ConfigError(f"stopping {self.kind!r} is unknown: {hint(self.kind, STOPPING_KINDS)}")
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha is {self.alpha:g}: use a level such as .05")
        spent_level(0.5, self.alpha, self.spending)
        if self.kind == "group_sequential":
            _check_fractions(self.analyses)
            if abs(self.analyses[-1] - 1) > 1e-9:
                raise ConfigError(f"the last look is at {self.analyses[-1]:g} of the units: end the list with 1")
        elif self.analyses:
            raise ConfigError(f"analyses are for group_sequential trials, not for {self.kind}: drop them")

    def level(self, fractions: Sequence[float], units: float, planned: float) -> float:
        """Level at which the p-value and the interval of this reading are to be read.

        Args:
            fractions: Share of the planned units at each look so far, this one last.
            units: Units of this reading.
            planned: Units of the whole trial.

        Returns:
            The level, two-sided; 0 where nothing may be spent yet.
        """
        return self._level_at(self.alpha, tuple(fractions), units, planned)

    def _level_at(self, alpha: float, fractions: tuple[float, ...], units: float, planned: float) -> float:
        if self.kind == "fixed":
            return alpha
        if self.kind == "anytime":
            return 2 * float(norm.sf(sequence_width(units, self.tuned_for or planned, alpha)))
        return 2 * float(norm.sf(spending_bounds(fractions, alpha, self.spending, True, self.gamma)[-1]))

    def valid_p(self, p_value: np.ndarray, fractions: Sequence[float], units: float, planned: float) -> np.ndarray:
        """p-values that hold at every look: the smallest level of a whole trial that this reading rejects at.

        Args:
            p_value: p-values of one reading, any shape; NaN stays NaN.
            fractions: As for `level`.
            units: As for `level`.
            planned: As for `level`.

        Returns:
            p-values to be read at `alpha`, whichever rule the trial has (Liu and Anderson 2008; Howard et al. 2021).
        """
        p_value = np.asarray(p_value, np.float64)
        if self.kind == "fixed":
            return p_value
        if self.kind == "anytime":
            scaled = units * _rho_squared(self.alpha, self.tuned_for or planned)
            z = norm.isf(np.maximum(p_value, 1e-300) / 2)
            return np.asarray(np.minimum(1.0, np.sqrt(scaled + 1) * np.exp(-(z**2) * scaled / (2 * (scaled + 1)))))
        log_alpha, log_level = _levels_of(self, tuple(fractions))
        known = np.where(np.isnan(p_value), 1.0, np.maximum(p_value, 1e-300))
        inside = np.clip(np.log(known), log_level[0], log_level[-1])
        overall = np.exp(PchipInterpolator(log_level, log_alpha)(inside))
        overall = np.where(np.log(known) > log_level[-1], 1.0, overall)
        return np.where(np.isnan(p_value), np.nan, overall)

    def inflation(self, power: float = 0.8) -> float:
        """Units that the largest trial of this rule needs over those of a fixed one of the same power."""
        if self.kind == "fixed":
            return 1.0
        if self.kind == "anytime":
            raise ConfigError("an anytime trial has no largest size: plan its units as for fixed times 2.4")
        bounds = spending_bounds(self.analyses, self.alpha, self.spending, True, self.gamma)
        drift = brentq(lambda d: crossing_probability(self.analyses, bounds, d) - power, 0.1, 12.0, xtol=1e-10)
        return float((drift / (norm.isf(self.alpha / 2) + norm.ppf(power))) ** 2)


@lru_cache(maxsize=64)
def _levels_of(rule: StoppingRule, fractions: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Levels of the whole trial and this look's level of each, as logarithms that rise; alpha is one of them."""
    grid = np.unique(np.r_[np.geomspace(1e-9, rule.alpha, 14), np.linspace(rule.alpha, 0.98, 8)])
    levels = np.array(
        [2 * norm.sf(spending_bounds(fractions, float(a), rule.spending, True, rule.gamma)[-1]) for a in grid]
    )
    keep = np.r_[levels[:-1] < levels[1:], True] & (levels > 0)
    if keep.sum() < 2:  # so early that nothing can be spent
        return np.log(grid[-2:]), np.array([-700.0, -699.0])
    return np.log(grid[keep]), np.log(levels[keep])


# --------------------------------------------------------------------------------------------------------------------
# Sequential test of the ratio of arms.


def sequential_ratio_p(
    counts: np.ndarray, shares: Sequence[float] | np.ndarray, concentration: float = RATIO_CONCENTRATION
) -> float:
    """Anytime-valid p-value of "units fall into arms by these shares" (Lindon and Malek 2022).

    It may be read every day: the probability that it ever falls below a level is at most that level. It is weak while
    units are few, where a chi-square test sees more.

    Args:
        counts: New units of each arm on each day, [days, arms], or in total, [arms].
        shares: Designed share of each arm, above 0.
        concentration: Units that the prior around the shares is worth; more looks for smaller deviations.

    Returns:
        The smallest p-value up to the last day.

    Raises:
        ConfigError: Counts and shares differ in length, or a share is not above 0.
    """
    so_far = np.cumsum(np.atleast_2d(np.asarray(counts, np.float64)), axis=0)
    share = np.asarray(shares, np.float64)
    if so_far.shape[1] != share.size or not (share > 0).all():
        raise ConfigError(f"{so_far.shape[1]} counts have {share.size} shares above 0: give one for each arm")
    prior, total = concentration * share, so_far.sum(axis=1)
    log_bayes = gammaln(concentration) - gammaln(concentration + total)
    log_bayes += (gammaln(prior + so_far) - gammaln(prior) - so_far * np.log(share)).sum(axis=1)
    return float(min(1.0, math.exp(-max(0.0, float(log_bayes.max(initial=0.0))))))
