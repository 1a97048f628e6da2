"""Tests: calibration of predicted effects, linearity in the dose, completeness of events, sums of propensities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import scipy.stats

from uplift_spark.stats.moments import MIN_UNITS, Difference, ratio

# --------------------------------------------------------------------------------------------------------------------
# Whether predicted effects are those observed, by bucket of the prediction: slope, and tests that hold.
# Effects of ten buckets make ten tests, each of a tenth of the units, and where outcomes are rare or arms uneven their
# chi-square sum rejects true models far too often. These look at two sums over all buckets, which are close to normal
# long before a bucket's own difference is: the average effect, and the slope of observed on predicted effects (the two
# coefficients of the best linear predictor, Chernozhukov et al. 2018).


def calibration_slope(mass: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Slope of observed on mean predicted uplift over buckets, weighted by mass; [..., buckets] -> [...].

    1 is calibrated, 0 says the predictions rank nothing, below 1 they are too extreme. Buckets without an observed
    difference are left out; NaN when the predictions do not vary.
    """
    mass, predicted, observed = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (mass, predicted, observed)))
    known = np.isfinite(observed) & np.isfinite(predicted)
    mass, predicted, observed = (np.where(known, a, 0.0) for a in (mass, predicted, observed))
    total = mass.sum(axis=-1)
    centred = predicted - ratio((mass * predicted).sum(axis=-1), total)[..., None]
    spread = (mass * centred**2).sum(axis=-1)
    negligible = spread <= 1e-18 * (mass * predicted**2).sum(axis=-1)
    return np.where(negligible, np.nan, ratio((mass * centred * observed).sum(axis=-1), spread))


@dataclass(frozen=True)
class CalibrationTest:
    """p-values [...]; NaN where predictions do not vary or a bucket's effect is not known.

    calibration    of "predictions are the effects": average 0 off and slope 1, a Wald test with two degrees of freedom
    heterogeneity  of "predictions say nothing about who gains more": slope 0, two-sided
    """

    calibration: np.ndarray
    heterogeneity: np.ndarray


def bucket_calibration(
    mass: np.ndarray, predicted: np.ndarray, observed: Difference, resampled: np.ndarray | None = None
) -> CalibrationTest:
    """Tests from each bucket's mass, mean prediction and observed effect, [..., buckets].

    Predictions must not have seen the units: their errors are not accounted for. Observed effects of buckets that share
    clusters are not independent; their spread is then taken from `resampled` effects [replicates, ..., buckets].
    """
    mass, predicted = (np.asarray(a, np.float64) for a in (mass, predicted))
    share = mass / mass.sum(axis=-1, keepdims=True)
    centred = predicted - (share * predicted).sum(axis=-1, keepdims=True)
    spread = (share * centred**2).sum(axis=-1, keepdims=True)
    varies = spread > 1e-18 * (share * predicted**2).sum(axis=-1, keepdims=True)
    steep = np.where(varies, share * centred / np.where(varies, spread, 1.0), np.nan)
    variance = observed.error**2
    off = (share * (observed.estimate - predicted)).sum(axis=-1)
    slope = (steep * observed.estimate).sum(axis=-1)
    if resampled is None:
        of_off, of_slope, both = ((w * variance).sum(axis=-1) for w in (share**2, steep**2, share * steep))
    else:
        of_off, of_slope, both = _covariance((share * resampled).sum(axis=-1), (steep * resampled).sum(axis=-1))
    missed = slope - 1
    wald = (off**2 * of_slope - 2 * off * missed * both + missed**2 * of_off) / (of_off * of_slope - both**2)
    return CalibrationTest(np.exp(-wald / 2), _two_sided(slope / np.sqrt(of_slope)))


def _covariance(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(variance of a, of b, covariance) over resamples [replicates, ...] in which both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    count = np.where(known.sum(axis=0) > 1, known.sum(axis=0), np.nan)
    a, b = (np.where(known, x - np.where(known, x, 0.0).sum(axis=0) / count, 0.0) for x in (a, b))
    of_a, of_b, both = ((x * y).sum(axis=0) / (count - 1) for x, y in ((a, a), (b, b), (a, b)))
    return of_a, of_b, both


def _two_sided(z: np.ndarray) -> np.ndarray:
    """P(|Z| > |z|) of a standard normal Z."""
    return np.vectorize(lambda x: 2 * NormalDist().cdf(-abs(x)) if np.isfinite(x) else np.nan, otypes=[float])(z)


# --------------------------------------------------------------------------------------------------------------------
# Whether an outcome's means by level follow a treatment basis, such as a line in the dose; where not, what it costs.
# With randomised treatment a response that is linear for every unit is linear on average, in any part of the units that
# the treatment had no hand in, however much units differ in how steep it is. So cells' means are held against their
# weighted regression on the basis; what scatters about it by more than the errors say is curvature. Welch's (1951)
# test, whose level does not rest on equal variances, in its form for a regression in place of one mean.


@dataclass(frozen=True)
class Linearity:
    """Result of `linearity`, arrays over segments [S].

    p_value  of each segment by itself; NaN where nothing is known: too few cells with MIN_UNITS units
    holm     the same, holding the level over all segments together (Holm 1979): where the basis fails
    missed   root mean square of what the basis misses of a cell's mean, by the units' shares and less what chance
             shows, in the outcome's units: what going on with the basis costs
    overall  p-value that it fails in no segment
    """

    p_value: np.ndarray
    holm: np.ndarray
    missed: np.ndarray
    overall: float


def linearity(units: np.ndarray, mean: np.ndarray, variance: np.ndarray, basis: np.ndarray) -> Linearity:
    """Test of a basis from cells of levels or doses by segment.

    units [S, C] (units received a level), mean [S, C] of their outcomes, variance [S, C] of an outcome (of one, not of
    the mean), basis float64 [q, C]. Outcomes less a prediction from features make the test sharper.
    """
    known = [np.flatnonzero((n >= MIN_UNITS) & (v > 0)) for n, v in zip(units, variance, strict=True)]
    tests = [
        _of_segment(units[s, c].astype(np.float64), mean[s, c], variance[s, c], basis[:, c])
        for s, c in enumerate(known)
    ]
    p_value, missed = np.array(tests, np.float64).reshape(-1, 2).T
    valid = p_value[~np.isnan(p_value)]
    # Fisher's combination: segments have no units in common, so their p-values are independent.
    overall = float(scipy.stats.combine_pvalues(valid).pvalue) if valid.size else np.nan
    return Linearity(p_value, holm(p_value), missed, overall)


def _of_segment(n: np.ndarray, mean: np.ndarray, variance: np.ndarray, basis: np.ndarray) -> tuple[float, float]:
    design = np.column_stack([np.ones(n.size), basis.T])
    freedom = n.size - int(np.linalg.matrix_rank(design)) if n.size else 0
    if freedom < 1:
        return np.nan, np.nan
    root = np.sqrt(n / variance)
    q, _ = np.linalg.qr(design * root[:, None])
    standard = mean * root
    residual = standard - q @ (q.T @ standard)
    free = 1.0 - (q**2).sum(axis=1)
    spread = float((free**2 / (n - 1)).sum())
    scale = 1.0 + 2.0 * (freedom - 1) / (freedom * (freedom + 2)) * spread
    statistic = float(residual @ residual) / freedom / scale
    p_value = float(scipy.stats.f.sf(statistic, freedom, freedom * (freedom + 2) / (3.0 * spread)))
    square = float((n / n.sum()) @ ((residual / root) ** 2 - free * variance / n))
    return p_value, np.sqrt(max(square, 0.0))


def holm(p_value: np.ndarray) -> np.ndarray:
    """p-values adjusted so that any false alarm among them has the level at which they are read (Holm 1979), [n].

    NaN stays NaN and counts for nothing.
    """
    adjusted = p_value.copy()
    known = np.flatnonzero(~np.isnan(p_value))
    order = known[np.argsort(p_value[known], kind="stable")]
    steps = (order.size - np.arange(order.size)) * p_value[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def false_discovery(p_value: np.ndarray) -> np.ndarray:
    """p-values adjusted so that, read at a level, it bounds the false among the discoveries (Benjamini and Hochberg
    1995), [n]; NaN stays NaN and counts for nothing."""
    adjusted = p_value.copy()
    known = ~np.isnan(p_value)
    if known.any():
        adjusted[known] = scipy.stats.false_discovery_control(p_value[known])
    return adjusted


# --------------------------------------------------------------------------------------------------------------------
# Whether events are all there: how many are still under way, days whose events are missing, arms not reached.
# All three work on counts by whole days and by arm, which merge; none assumes a distribution of delays or of rates.

# A day with less than this share of the events expected of it is taken for an outage. Weekends and campaigns have
# days that are weak without anything being lost.
OUTAGE = 0.25


def known_shares(day: np.ndarray, delay: np.ndarray, n: np.ndarray, days: int) -> np.ndarray:
    """Probability that an event of each of the last `days` days is known by now, float64 [days], today's first.

    n[i] events happened day[i] days before now and became known delay[i] days later, delay <= day. What happened
    lately is seen only if it was reported fast; the product of reversed hazards, as of claims that are under way
    (chain ladder; Kalbfleisch and Lawless 1989), corrects for that without a model. 1 without any event.
    """
    longest = int(delay.max(initial=0))
    share = np.ones(longest + 1)
    for d in range(longest, 0, -1):
        observed = day >= d
        at, before = n[observed & (delay == d)].sum(), n[observed & (delay <= d)].sum()
        share[d - 1] = share[d] * (1.0 - at / before if before else 1.0)
    return share[np.minimum(np.arange(days), longest)]


def completeness(day: np.ndarray, n: np.ndarray, share: np.ndarray) -> float:
    """Events known over events expected to have occurred, from `known_shares`; NaN without any event.

    Days whose share is 0 are left out: by the delays of few events none of theirs could be known, though one is.
    """
    possible = share[day] > 0
    known = n[possible].sum()
    return float(known / (n[possible] / share[day[possible]]).sum()) if known else float("nan")


def completeness_error(day: np.ndarray, delay: np.ndarray, n: np.ndarray, share: np.ndarray) -> float:
    """Standard error of `completeness` over its value that comes of the delays: few late events make a rough curve.

    n[i] events happened day[i] days before now and became known delay[i] days later; share as of `known_shares`. The
    delta method over its reversed hazards, which are shares of different events (Greenwood's formula, read backwards;
    Mack 1993 for the total). That the known events are a draw of all is not part of it. 0 without any event.
    """
    possible = share[day] > 0
    total = np.where(possible, n / np.where(possible, share[day], 1.0), 0.0)
    variance = 0.0
    for d in range(1, int(delay.max(initial=0)) + 1):
        observed = day >= d
        at, before = n[observed & (delay == d)].sum(), n[observed & (delay <= d)].sum()
        if 0 < at < before:
            variance += float(total[day < d].sum()) ** 2 * at / ((before - at) * before)
    return float(np.sqrt(variance) / total.sum()) if variance else 0.0


@dataclass(frozen=True)
class MissingDay:
    """A day, counted back from now, whose events are missing: how many are `known`, how many are `usual`."""

    day: int
    known: int
    usual: float


def missing_days(units: np.ndarray, events: np.ndarray, share: np.ndarray, alpha: float) -> list[MissingDay]:
    """Days with far fewer events than units of the same age have on other days; latest first.

    units   assigned s whole days ago [S]
    events  units' first events at age a, in whole days since the assignment, of those assigned s days ago [S, A]
    share   `known_shares` of at least the last S days
    alpha   bound on the probability that any day of sound data is found, whatever their number

    A day is found when its rate is significantly below OUTAGE of that at the same ages on other days: given the events
    at each age, those of the day are a sum of independent draws, and the multiplicative Chernoff bound on its lower
    tail needs no large numbers. Only the first event of a unit is a draw. Campaigns that assign all units on one day
    have no other days to compare with: nothing is found.
    """
    day, age = np.indices((max(0, len(units) - 1), events.shape[1]))
    since = day + age + 1  # by now the units have lived through that age
    inside, at = since < len(units), (np.minimum(since, len(units) - 1), age)
    counts = np.where(inside, events[at], 0)
    risk = np.where(inside, (units[:, None] - np.cumsum(events, 1) + events)[at], 0) * share[day]
    others = np.maximum(0.0, risk.sum(0) - risk)
    reduced_risk = np.where(others > 0, OUTAGE * risk, 0.0)
    bound = (counts.sum(0) * reduced_risk / np.maximum(reduced_risk + others, 1e-300)).sum(1)
    known = np.where(others > 0, counts, 0).sum(1)
    limit = alpha / max(1, int((bound > 0).sum()))
    days = [j for j in range(len(bound)) if _lower_tail(known[j], bound[j]) <= limit]
    return [MissingDay(j, int(known[j]), float(bound[j] / OUTAGE)) for j in days]


def _lower_tail(known: int, mean: float) -> float:
    """Bound on P(X <= known) of a sum of independent draws with this mean."""
    if known >= mean:
        return 1.0
    return float(np.exp(known - mean + (known * np.log(mean / known) if known else 0.0)))


@dataclass(frozen=True)
class Unreached:
    """An arm whose deliveries fail more often than the other arms'; rates are delivered over logged."""

    arm: str
    rate: float
    others: float
    p_value: float


def unreached_arms(sends: Mapping[str, tuple[int, int]], alpha: float, gap: float) -> list[Unreached]:
    """Arms delivered less than the rest, by more than `gap` and by more than chance; sends is {arm: (delivered, all)}.

    Fisher's exact test, one-sided, of each arm against the others together, Bonferroni over arms: equal rates are
    called unequal with probability alpha at most.
    """
    from scipy.stats import hypergeom

    delivered, total = (sum(one[i] for one in sends.values()) for i in (0, 1))
    unreached = []
    for arm, (mine, n) in sends.items():
        if not n or n == total:
            continue
        p = min(1.0, len(sends) * float(hypergeom.cdf(mine, total, delivered, n)))
        rate, others = mine / n, (delivered - mine) / (total - n)
        if p <= alpha and others - rate > gap:
            unreached.append(Unreached(arm, rate, others, p))
    return unreached


# --------------------------------------------------------------------------------------------------------------------
# Probabilities of the levels that units received.

# They are refused when the sum of their inverses over an arm is this far from the number of units, and further than
# chance explains.
LEAST_GAP, STANDARD_ERRORS = 0.05, 5.0


def inverse_shares(sums: Iterable[tuple[str, float, float]], units: int) -> list[str]:
    """Say of which levels the inverse propensities do not add up to about the number of all units.

    They do when each is the probability of the level received (Horvitz & Thompson 1952); a column that is P(treated) on
    all rows is far from it in the control.

    Args:
        sums: of each level its name, the sum of 1/p over its units, and that of (1-p)/p².
        units: of all levels.

    Returns:
        Parts of a sentence, such as ".55 times in none".
    """
    wrong = []
    for level, inverse, spread in sums:
        share, error = inverse / units, spread**0.5 / units
        if abs(share - 1.0) > max(LEAST_GAP, STANDARD_ERRORS * error):
            wrong.append(f"{share:.2f} times in {level}")
    return wrong
