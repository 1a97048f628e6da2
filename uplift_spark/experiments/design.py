"""How many units a trial needs: sample size, power, smallest effect that it can show. numpy and scipy, no Spark.

A comparison of an arm with the control has an effect, its standard error and a critical value; power is the probability
that effect / error passes the value. What differs between metrics is the variance: a conversion's follows from its
rate, a count's from its mean and dispersion, revenue's is measured. CUPED, clusters and winsorising change it; several
arms change the critical value. `tests/experiments` holds the formulas to R, Stata, statsmodels and published tables,
and to simulated trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import nct, norm, t

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.roles import checked_shares
from uplift_spark.stats.intervals import wilson_interval

KINDS = ("conversion", "count", "revenue")
MULTIPLICITY = ("none", "bonferroni", "holm", "dunnett")
METHODS = ("score", "arcsine")
MOST_UNITS = 1e13
_AS_GOOD_AS_NORMAL = 1e8  # degrees of freedom from which on t and normal differ in the ninth digit


def _check(good: bool, sentence: str) -> None:
    if not good:
        raise ConfigError(sentence)


# --------------------------------------------------------------------------------------------------------------------
# What is measured.


@dataclass(frozen=True)
class PlannedMetric:
    """What a trial shall move, as it is without treatment.

    kind         'conversion' (0 or 1), 'count' (orders, visits) or 'revenue' (any number)
    mean         control mean of a unit: a rate, a mean count, money
    sd           standard deviation of a unit's revenue; after winsorising, if the readout winsorises
    dispersion   variance of a count over its mean: 1 is Poisson's, purchases have 2 to 5
    correlation  of the outcome with the covariate that CUPED takes off: the same metric before the trial
    icc          intra-cluster correlation, for trials that assign clusters
    """

    kind: str
    mean: float
    sd: float | None = None
    dispersion: float = 1.0
    correlation: float = 0.0
    icc: float = 0.0

    def __post_init__(self) -> None:
        _check(self.kind in KINDS, f"metric kind {self.kind!r} is unknown: {hint(self.kind, KINDS)}")
        _check(math.isfinite(self.mean), f"mean of the {self.kind} is {self.mean}: give the control's mean")
        if self.kind == "conversion":
            _check(0 < self.mean < 1, f"conversion rate is {self.mean:g}: use a rate between 0 and 1, such as .05")
        if self.kind == "count":
            _check(self.mean > 0, f"mean count is {self.mean:g}: it must be above 0")
        if self.kind == "revenue":
            _check(
                self.sd is not None and 0 < self.sd < math.inf, f"sd of revenue is {self.sd}: a metric needs variance"
            )
        else:
            _check(self.sd is None, f"sd of a {self.kind} follows from its mean: drop it, or use kind revenue")
        _check(self.dispersion > 0, f"dispersion is {self.dispersion:g}: it must be above 0")
        _check(self.kind == "count" or self.dispersion == 1, "dispersion is for counts: drop it, or use kind count")
        _check(-1 < self.correlation < 1, f"correlation is {self.correlation:g}: use a number between -1 and 1")
        _check(0 <= self.icc < 1, f"icc is {self.icc:g}: use 0 up to 1, most metrics have .01 to .2")

    def lift(self, relative: float) -> float:
        """The absolute effect of a relative one: .03 is 3 % of the mean."""
        return relative * self.mean

    def variance(self, mean: float) -> float:
        """Variance of a unit in an arm of this mean, less what CUPED explains."""
        if self.kind == "conversion":
            of_unit = mean * (1 - mean)
        else:
            of_unit = mean * self.dispersion if self.kind == "count" else (self.sd or 0.0) ** 2
        return of_unit * (1 - self.correlation**2)


def measured_metric(
    kind: str, values: Any, *, before: Any = None, clusters: Any = None, winsorise: float | None = None
) -> PlannedMetric:
    """Take mean, variance and correlations from units of the past.

    Args:
        kind: As in `PlannedMetric`.
        values: The metric of past units, over as long as the trial will last, [n].
        before: The same units' covariate for CUPED, [n].
        clusters: The same units' clusters, [n].
        winsorise: Quantile above which values count as that quantile's, such as .999.

    Returns:
        The metric, with the standard deviation of the values that are left after winsorising.

    Raises:
        ConfigError: The metric does not vary, or its values do not fit the kind.
        DataError: Values are missing or not finite, or arrays differ in length.
    """
    y = _finite(values, "values")
    _check(
        y.size >= 2 and float(y.min()) < float(y.max()), "the metric does not vary: take one that does, or more units"
    )
    if winsorise is not None:
        _check(0.5 < winsorise < 1, f"winsorise is {winsorise:g}: use a quantile between .5 and 1, such as .999")
        y = np.minimum(y, np.quantile(y, winsorise))
        _check(
            float(y.min()) < float(y.max()), f"nothing varies below quantile {winsorise:g}: winsorise at a higher one"
        )
    if kind == "conversion" and not np.isin(y, (0, 1)).all():
        raise ConfigError(f"{(~np.isin(y, (0, 1))).sum()} conversions are neither 0 nor 1: use kind count or revenue")
    mean, variance = float(y.mean()), float(y.var(ddof=1))
    correlation = 0.0
    if before is not None:
        x = _finite(before, "before", y.size)
        _check(float(x.min()) < float(x.max()), "`before` does not vary: CUPED cannot use it; drop it")
        correlation = float(np.clip(np.corrcoef(x, y)[0, 1], -0.999999, 0.999999))
    return PlannedMetric(
        kind,
        mean,
        sd=math.sqrt(variance) if kind == "revenue" else None,
        dispersion=variance / mean if kind == "count" else 1.0,
        correlation=correlation,
        icc=0.0 if clusters is None else intra_cluster_correlation(y, clusters),
    )


def _finite(values: Any, name: str, size: int | None = None) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    wrong = int((~np.isfinite(array)).sum())
    if wrong:
        raise DataError(f"`{name}` has {wrong} values that are missing or not finite: fill or drop them")
    if size is not None and array.size != size:
        raise DataError(f"`{name}` has {array.size} rows and values {size}: give one for each unit")
    return array


def intra_cluster_correlation(values: Any, clusters: Any) -> float:
    """Share of the variance that lies between clusters (analysis of variance, Donner and Klar 2000, p. 8), at least 0.

    Args:
        values: Outcomes, [n].
        clusters: Cluster of each, [n].

    Returns:
        The correlation, 0 where clusters differ less than by chance.

    Raises:
        DataError: Arrays differ in length, or no cluster has two units.
    """
    y = _finite(values, "values")
    codes, names = pd.factorize(np.asarray(clusters))
    if len(codes) != y.size:
        raise DataError(f"`clusters` has {len(codes)} rows and values {y.size}: give one for each unit")
    sizes = np.bincount(codes)
    if len(names) < 2 or len(names) == y.size:
        raise DataError(
            f"{y.size} units lie in {len(names)} clusters: a correlation needs two clusters, one with two units"
        )
    means = np.bincount(codes, y) / sizes
    between = float((sizes * (means - y.mean()) ** 2).sum() / (len(names) - 1))
    within = float(((y - means[codes]) ** 2).sum() / (y.size - len(names)))
    size = (y.size - (sizes**2).sum() / y.size) / (len(names) - 1)
    return max(0.0, (between - within) / (between + (size - 1) * within))


# --------------------------------------------------------------------------------------------------------------------
# How it is tested.


@dataclass(frozen=True)
class TrialDesign:
    """How a trial is dealt out and tested.

    shares        share of each arm, control first
    alpha         probability of any false alarm over all arms, as `multiplicity` controls it
    two_sided     whether effects of both signs count
    multiplicity  'holm' as readouts use it (power of its first step, which is Bonferroni's; later steps only add),
                  'bonferroni', 'dunnett' (all arms share the control; sharper, but no readout here tests by it), or
                  'none' (alpha for each arm)
    method        of conversions: 'score' (pooled variance under no effect, as R and Stata) or 'arcsine' (Cohen's h)
    cluster_size  mean units a cluster, where clusters are assigned; None where units are
    cluster_cv    standard deviation of the cluster sizes over their mean
    inflation     factor on the units for planned looks, of the group-sequential design
    """

    shares: tuple[float, ...] = (0.5, 0.5)
    alpha: float = 0.05
    two_sided: bool = True
    multiplicity: str = "holm"
    method: str = "score"
    cluster_size: float | None = None
    cluster_cv: float = 0.0
    inflation: float = 1.0

    def __post_init__(self) -> None:
        shares = checked_shares({str(k): share for k, share in enumerate(self.shares)}, "the trial")
        object.__setattr__(self, "shares", tuple(shares.values()))
        _check(0 < self.alpha < 0.5, f"alpha is {self.alpha:g}: use a level such as .05")
        _check(
            self.multiplicity in MULTIPLICITY,
            f"multiplicity {self.multiplicity!r} is unknown: {hint(self.multiplicity, MULTIPLICITY)}",
        )
        _check(self.method in METHODS, f"method {self.method!r} is unknown: {hint(self.method, METHODS)}")
        _check(self.cluster_size is None or self.cluster_size >= 1, f"cluster_size is {self.cluster_size}: at least 1")
        _check(self.cluster_cv >= 0, f"cluster_cv is {self.cluster_cv:g}: it cannot be negative")
        _check(self.inflation >= 1, f"inflation is {self.inflation:g}: looks never need fewer units; use 1 or more")

    def design_effect(self, metric: PlannedMetric) -> float:
        """How many times the variance clusters bring (Eldridge, Ashby and Kerry 2006); 1 without clusters."""
        if self.cluster_size is None:
            return 1.0
        return 1 + ((1 + self.cluster_cv**2) * self.cluster_size - 1) * metric.icc

    @property
    def level(self) -> float:
        """Level at which each arm's p-value is read."""
        arms = len(self.shares) - 1
        if self.multiplicity == "none" or arms == 1:
            return self.alpha
        if self.multiplicity != "dunnett":
            return self.alpha / arms
        tails = 2 if self.two_sided else 1
        return tails * float(norm.sf(dunnett_value(self.shares, self.alpha, self.two_sided)))


def dunnett_value(shares: Sequence[float], alpha: float = 0.05, two_sided: bool = True) -> float:
    """Critical value of the largest of several differences from one control (Dunnett 1955), for large trials.

    Differences are correlated through the control alone, so the joint probability is one integral over it.

    Args:
        shares: Share of each arm, control first.
        alpha: Probability of any false alarm.
        two_sided: Whether effects of both signs count.

    Returns:
        The value that |effect| / error has to pass in each arm.
    """
    return _dunnett(tuple(sorted(share / shares[0] for share in shares[1:])), alpha, two_sided)


@lru_cache(maxsize=256)
def _dunnett(sizes: tuple[float, ...], alpha: float, two_sided: bool) -> float:
    """`sizes` are those of the arms over the control's."""
    ratios = np.asarray(sizes)
    load, rest = np.sqrt(ratios / (1 + ratios)), np.sqrt(1 / (1 + ratios))

    def none_passes(c: float) -> float:
        def at(z: float) -> float:
            lower = norm.cdf((-c - load * z) / rest) if two_sided else 0.0
            return float(norm.pdf(z) * np.prod(norm.cdf((c - load * z) / rest) - lower))

        return float(quad(at, -9, 9, epsabs=1e-12, limit=200, points=[0.0])[0])

    return float(brentq(lambda c: none_passes(c) - (1 - alpha), 0.0, 12.0, xtol=1e-10))


# --------------------------------------------------------------------------------------------------------------------
# Power, sample size, smallest effect.


def power(metric: PlannedMetric, trial: TrialDesign, effect: float, units: float) -> float:
    """Probability that a trial shows an effect, in the arm that shows it least.

    Args:
        metric: What is measured.
        trial: How it is tested.
        effect: Absolute effect of an arm against the control; `metric.lift(.03)` for a relative one.
        units: Units of the trial, all arms together.

    Returns:
        Power of one comparison, in [0, 1].

    Raises:
        ConfigError: The effect takes the mean out of its range, or there are too few units for any test.
    """
    _check_effect(metric, effect)
    _check(units > 0, f"units are {units:g}: a trial needs some")
    level = trial.level
    return min(
        _power_of_arm(metric, trial, effect, (units / trial.inflation, share, level)) for share in set(trial.shares[1:])
    )


def _check_effect(metric: PlannedMetric, effect: float) -> None:
    _check(math.isfinite(effect) and effect != 0, f"effect is {effect:g}: no trial shows that; give one other than 0")
    mean = metric.mean + effect
    if metric.kind == "conversion":
        _check(
            0 < mean < 1, f"effect {effect:g} takes the rate from {metric.mean:g} to {mean:g}: it must stay in (0, 1)"
        )
    if metric.kind == "count":
        _check(
            mean > 0, f"effect {effect:g} takes the mean count from {metric.mean:g} to {mean:g}: it must stay above 0"
        )


def _power_of_arm(metric: PlannedMetric, trial: TrialDesign, effect: float, sizes: tuple[float, float, float]) -> float:
    """Power of one arm; `sizes` are the trial's units, the arm's share of them, and the level."""
    units, share, level = sizes
    control, treated = units * trial.shares[0], units * share
    factor = trial.design_effect(metric)
    freedom = _degrees_of_freedom(metric, trial, control, treated)
    if freedom <= 0:
        return 0.0
    tail = level / 2 if trial.two_sided else level
    if metric.kind == "conversion" and trial.method == "arcsine":
        h = 2 * abs(math.asin(math.sqrt(metric.mean + effect)) - math.asin(math.sqrt(metric.mean)))
        scale = math.sqrt((1 / control + 1 / treated) * factor * (1 - metric.correlation**2))
        return _passes(h / scale, tail, freedom, 1.0, trial.two_sided)
    first, second = metric.variance(metric.mean), metric.variance(metric.mean + effect)
    error = math.sqrt((first / control + second / treated) * factor)
    null_error = error
    if metric.kind == "conversion":
        pooled = (metric.mean * control + (metric.mean + effect) * treated) / (control + treated)
        null_error = math.sqrt(metric.variance(pooled) * (1 / control + 1 / treated) * factor)
    return _passes(abs(effect) / error, tail, freedom, null_error / error, trial.two_sided)


def _degrees_of_freedom(metric: PlannedMetric, trial: TrialDesign, control: float, treated: float) -> float:
    """Of the t-test: clusters less two, or Welch's for revenue; rates and counts of single units are normal."""
    if trial.cluster_size is not None:
        return (control + treated) / trial.cluster_size - 2
    if metric.kind != "revenue":
        return math.inf
    if min(control, treated) <= 1:
        return 0.0
    parts = (1 / control**2) / (control - 1) + (1 / treated**2) / (treated - 1)
    freedom = (1 / control + 1 / treated) ** 2 / parts
    return freedom if freedom < _AS_GOOD_AS_NORMAL else math.inf


def _passes(shift: float, tail: float, freedom: float, stretch: float, two_sided: bool) -> float:
    """Probability that a statistic of mean `shift` passes the critical value, which counts in `stretch` errors."""
    if math.isinf(freedom):
        value = float(norm.isf(tail)) * stretch
        other = float(norm.cdf(-value - shift)) if two_sided else 0.0
        return float(norm.sf(value - shift)) + other
    value = float(t.isf(tail, freedom)) * stretch
    other = float(nct.cdf(-value, freedom, shift)) if two_sided else 0.0
    return float(nct.sf(value, freedom, shift)) + (other if math.isfinite(other) else 0.0)


@dataclass(frozen=True)
class SampleSize:
    """Units that a trial needs.

    exact     units of each arm as the formula has them, control first
    units     the same, rounded up to whole units, or whole clusters
    clusters  clusters of each arm, None where units are assigned
    """

    exact: tuple[float, ...]
    units: tuple[int, ...]
    clusters: tuple[int, ...] | None = None

    @property
    def total(self) -> int:
        """Units of all arms together."""
        return sum(self.units)


def sample_size(metric: PlannedMetric, trial: TrialDesign, effect: float, target: float = 0.8) -> SampleSize:
    """Units with which every arm shows an effect with a power of at least `target`.

    Args:
        metric: What is measured.
        trial: How it is tested.
        effect: Absolute effect of an arm against the control; `metric.lift(.03)` for a relative one.
        target: Power, above `alpha` and below 1.

    Returns:
        Units of each arm.

    Raises:
        ConfigError: The effect takes the mean out of its range, or no trial of 10 trillion units shows it.

    Example:
        >>> conversion = PlannedMetric("conversion", 0.10)
        >>> sample_size(conversion, TrialDesign(), conversion.lift(0.03)).units
        (159066, 159066)
    """
    _check_effect(metric, effect)
    _check_target(trial, target)
    total = _smallest(lambda units: power(metric, trial, effect, units), target, f"an effect of {effect:g}")
    exact = tuple(total * share for share in trial.shares)
    if trial.cluster_size is None:
        return SampleSize(exact, tuple(_up(units) for units in exact))
    clusters = tuple(_up(units / trial.cluster_size) for units in exact)
    return SampleSize(exact, tuple(_up(count * trial.cluster_size) for count in clusters), clusters)


def _up(number: float) -> int:
    """Rounded up, but for what the search leaves of a whole number."""
    return math.ceil(number - 1e-6 * max(1.0, abs(number) * 1e-3))


def _check_target(trial: TrialDesign, target: float) -> None:
    _check(trial.alpha < target < 1, f"target power is {target:g}: use one above alpha {trial.alpha:g} and below 1")


def _smallest(power_at: Callable[[float], float], target: float, what: str) -> float:
    """The smallest trial whose power reaches the target."""
    least = 1e-3  # no trial at all: formulas of large trials may ask for less than a unit
    if power_at(MOST_UNITS) < target:
        raise ConfigError(
            f"{what} needs more than {MOST_UNITS:.0e} units: give a larger effect or a metric of less variance"
        )
    root = brentq(
        lambda log_units: power_at(math.exp(log_units)) - target, math.log(least), math.log(MOST_UNITS), xtol=1e-13
    )
    return math.exp(root)


def minimum_effect(
    metric: PlannedMetric, trial: TrialDesign, units: float, target: float = 0.8, *, fall: bool = False
) -> float:
    """The smallest absolute effect that a trial of so many units shows with a power of `target`.

    Args:
        metric: What is measured.
        trial: How it is tested.
        units: Units of the trial, all arms together.
        target: Power, above `alpha` and below 1.
        fall: Whether the effect lowers the metric; a rate has another variance then.

    Returns:
        The effect, negative if `fall`; over `metric.mean` it is the relative one.

    Raises:
        ConfigError: The trial is so small that no effect within the metric's range reaches the power.
    """
    _check_target(trial, target)
    sign = -1.0 if fall else 1.0
    most = _largest_effect(metric, fall)

    def short(log_effect: float) -> float:
        return power(metric, trial, sign * math.exp(log_effect), units) - target

    highest = math.log(most)
    if short(highest) < 0:
        raise ConfigError(f"{units:g} units show no effect of the {metric.kind} with power {target:g}: take more units")
    return sign * math.exp(brentq(short, highest - 60, highest, xtol=1e-14))


def _largest_effect(metric: PlannedMetric, fall: bool) -> float:
    if metric.kind == "revenue":
        return 1e6 * (metric.sd or 1.0)
    room = metric.mean if fall else (1 - metric.mean if metric.kind == "conversion" else 1e6 * metric.mean)
    return room * (1 - 1e-9)


def power_of_gap(metric: PlannedMetric, trial: TrialDesign, gap: float, share: float, units: float) -> float:
    """Power to tell the effect on one part of the units from that on the others: the least that uplift needs.

    The difference of two effects has 1 / (share (1 - share)) times the variance of the effect on all: four times where
    halves are compared. A forest has to find the parts, too; `ranking_power` simulates that.

    Args:
        metric: What is measured.
        trial: How it is tested.
        gap: Effect on the part less effect on the others.
        share: Share of the units that are in the part.
        units: Units of the trial, all arms together.

    Returns:
        Power of the comparison, in [0, 1].

    Raises:
        ConfigError: The share is not between 0 and 1, or as for `power`.
    """
    _check(0 < share < 1, f"share of the part is {share:g}: use one between 0 and 1")
    return power(metric, trial, gap, units * share * (1 - share))


def sample_size_for_gap(
    metric: PlannedMetric, trial: TrialDesign, gap: float, share: float = 0.5, target: float = 0.8
) -> SampleSize:
    """Units with which `power_of_gap` reaches `target`; arguments as there.

    Returns:
        Units of each arm.

    Raises:
        ConfigError: The share is not between 0 and 1, or as for `sample_size`.
    """
    _check(0 < share < 1, f"share of the part is {share:g}: use one between 0 and 1")
    return sample_size(metric, replace(trial, inflation=trial.inflation / (share * (1 - share))), gap, target)


def ranking_power(
    replicate: Callable[[int, int], float], sizes: Sequence[int], target: float, replications: int = 20
) -> pd.DataFrame:
    """How large a trial must be for a model to rank users to a stated quality, by simulation.

    Args:
        replicate: Simulates and fits one trial of (units, seed) and returns its quality, such as the true Qini
            coefficient of the model's ranking on fresh users.
        sizes: Units of the trials, all arms together.
        target: Quality that a trial shall reach.
        replications: Trials of each size, with seeds 0, 1, ...

    Returns:
        A row for each size: `units`, mean `quality` and its standard error `quality_se`, `power` (the share of trials
        that reach the target) with the 95 % interval `power_lower`, `power_upper` (Wilson).

    Raises:
        ConfigError: There are fewer than two replications.
        DataError: A replication has no finite quality.
    """
    _check(replications >= 2, f"replications are {replications}: simulate at least 2 trials of each size")
    rows = []
    for units in sizes:
        quality = np.array([replicate(int(units), seed) for seed in range(replications)], dtype=float)
        if not np.isfinite(quality).all():
            raise DataError(f"{(~np.isfinite(quality)).sum()} simulated trials of {units} units have no finite quality")
        reached = float((quality >= target).mean())
        lower, upper = wilson_interval(reached, replications)
        error = float(quality.std(ddof=1)) / math.sqrt(replications)
        rows.append((int(units), float(quality.mean()), error, reached, lower, upper))
    names = ["units", "quality", "quality_se", "power", "power_lower", "power_upper"]
    return pd.DataFrame(rows, columns=names)


def power_curve(
    metric: PlannedMetric, trial: TrialDesign, effects: Sequence[float], sizes: Sequence[float]
) -> pd.DataFrame:
    """Power of every effect in a trial of every size.

    Args:
        metric: What is measured.
        trial: How it is tested.
        effects: Absolute effects.
        sizes: Units of the trials, all arms together.

    Returns:
        Rows of `units`, `effect`, `relative_effect` (NaN of a mean of 0) and `power`.

    Raises:
        ConfigError: As for `power`.
    """
    rows = [
        (units, effect, effect / metric.mean if metric.mean else math.nan, power(metric, trial, effect, units))
        for units in sizes
        for effect in effects
    ]
    return pd.DataFrame(rows, columns=["units", "effect", "relative_effect", "power"])


def days_needed(units: float, per_day: float, *, whole_weeks: bool = True) -> int:
    """Days until enough units have come.

    Args:
        units: Units that the trial needs, all arms together.
        per_day: New units a day that take part.
        whole_weeks: Whether to round up to weeks, so that every weekday counts as often as the others.

    Returns:
        Days, at least 1, or 7 in whole weeks.

    Raises:
        ConfigError: No units come.
    """
    _check(
        per_day > 0 and math.isfinite(per_day), f"units a day are {per_day:g}: the trial never ends; take more traffic"
    )
    days = max(1, math.ceil(units / per_day))
    return 7 * math.ceil(days / 7) if whole_weeks else days


def best_shares(arms: int) -> tuple[float, ...]:
    """Shares of a control and of `arms` others with which each comparison is as sharp as can be (Dunnett 1955).

    Args:
        arms: Arms beside the control.

    Returns:
        Shares, control first: the control has √arms times the share of another arm.

    Raises:
        ConfigError: There is no arm.
    """
    _check(arms >= 1, f"there are {arms} arms beside the control: a trial needs one")
    root = math.sqrt(arms)
    return (root / (root + arms), *[1 / (root + arms)] * arms)
