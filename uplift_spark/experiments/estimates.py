"""Effects from sums: means, ratios, covariates, strata, clusters, compliers, in one linearisation. numpy, no Spark.

Rows of the sums are the units that were randomised. A metric is the ratio of two columns' means (a plain mean has a
denominator of one); a row's influence on it is linear in the row (the delta method; Deng, Knoblich and Lu 2018), and so
is what covariates take off (CUPED; Deng et al. 2013). So an effect and its error follow from counts, means and
covariances of the columns by arm and stratum, and from nothing else:

- where clusters were randomised, rows are clusters, and a mean over units is Σy / Σunits of the clusters;
- strata are weighted by their size, whatever the arms' shares in them (post-stratification; Miratrix et al. 2013);
- the complier effect is the ratio of the effects on the metric and on the treatment received (Wald, or two-stage
  least squares).

Arrays may have any leading axes, so that thousands of simulated trials are computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from uplift_spark.errors import ConfigError, hint
from uplift_spark.stats.moments import CrossMoments, ratio

RELATIVE = ("fieller", "delta", "log")
WEAK_COMPLIANCE = 3.2  # standard errors: an F statistic of 10


@dataclass(frozen=True)
class MetricColumns:
    """Where a metric's parts lie among the columns of the sums; None as a denominator means one.

    numerator    column
    denominator  column
    covariates   (numerator, denominator) of each: columns that no arm can have moved
    """

    numerator: int
    denominator: int | None = None
    covariates: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True)
class ArmEffect:
    """An arm's effect against the control; arrays of one shape, NaN where not known.

    control, treated     means, less what covariates explain
    effect, error        difference and its standard error
    lower, upper         its interval
    p_value              of "no effect", two-sided
    relative             effect over the control's mean
    relative_lower/upper its interval; infinite where the control's mean may be 0
    freedom              degrees of freedom (Welch and Satterthwaite)
    """

    control: np.ndarray
    treated: np.ndarray
    effect: np.ndarray
    error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p_value: np.ndarray
    relative: np.ndarray
    relative_lower: np.ndarray
    relative_upper: np.ndarray
    freedom: np.ndarray


@dataclass(frozen=True)
class _Means:
    """Values [..., 2, F] of F metrics in control and treated; `joint` covariance [..., 2, F, 2, F]; the parts that
    the arms' and strata's own rows add to it, [..., 2, S, F, F], and their rows [..., 2, S]."""

    value: np.ndarray
    joint: np.ndarray
    parts: np.ndarray
    rows: np.ndarray

    def of_difference(self) -> np.ndarray:
        """Covariance of treated less control, [..., F, F]."""
        c, t_ = self.joint[..., 0, :, :, :], self.joint[..., 1, :, :, :]
        return np.asarray(t_[..., 1, :] - t_[..., 0, :] - c[..., 1, :] + c[..., 0, :])

    def freedom(self, direction: np.ndarray) -> np.ndarray:
        """Degrees of freedom of a combination of the metrics, [..., F] -> [...]."""
        variance = np.einsum("...f,...asfg,...g->...as", direction, self.parts, direction)
        total = variance.sum(axis=(-1, -2))
        spread = (variance**2 / np.maximum(self.rows - 1, 1)).sum(axis=(-1, -2))
        return np.where(spread > 0, ratio(total**2, spread), np.nan)


def arm_effect(
    sums: CrossMoments, metric: MetricColumns, alpha: float | np.ndarray = 0.05, relative: str = "fieller"
) -> ArmEffect:
    """Effect of an arm on a metric.

    Args:
        sums: Of control and treated, by stratum, [..., 2, strata]; V columns.
        metric: Which columns.
        alpha: Level of intervals, two-sided; that of this look, where a trial is read more than once.
        relative: Interval of the relative effect: 'fieller' (exact for normal means), 'delta', or 'log' (of the ratio
            of means, for positive metrics).

    Returns:
        The effect [...]; NaN where an arm has fewer than two rows in a stratum or nothing varies.

    Raises:
        ConfigError: The interval is unknown.

    References:
        Deng, Knoblich, Lu (2018), arXiv 1803.06336; Deng, Xu, Kohavi, Walker (2013); Fieller (1954).
    """
    if relative not in RELATIVE:
        raise ConfigError(f"relative interval {relative!r} is unknown: {hint(relative, RELATIVE)}")
    means = _means(sums, (metric,))
    control, treated = means.value[..., 0, 0], means.value[..., 1, 0]
    of_control, of_treated = means.joint[..., 0, 0, 0, 0], means.joint[..., 1, 0, 1, 0]
    both = means.joint[..., 0, 0, 1, 0]
    effect, variance = treated - control, means.of_difference()[..., 0, 0]
    freedom = means.freedom(np.ones((*effect.shape, 1)))
    error = np.sqrt(np.where(variance > 0, variance, np.nan))
    quantile = t.isf(np.asarray(alpha) / 2, freedom)
    half = quantile * error
    if relative == "log":
        # Each arm's variance over its squared mean has degrees of freedom of its own, as in tea-tasting.
        scale = np.stack([control, treated], axis=-1)[..., None, None, None] ** 2
        logs = _Means(means.value, means.joint, means.parts / scale, means.rows)
        quantile = t.isf(np.asarray(alpha) / 2, logs.freedom(np.ones((*effect.shape, 1))))
    low, high = ratio_bounds(treated, control, (of_treated, of_control, both), quantile, relative)
    p_value = 2 * t.sf(np.abs(effect) / error, freedom)
    return ArmEffect(
        *(control, treated, effect, error, effect - half, effect + half, p_value),
        *(_quotient(treated, control) - 1, low - 1, high - 1, freedom),
    )


def complier_effect(
    sums: CrossMoments, metric: MetricColumns, taken: int, alpha: float | np.ndarray = 0.05
) -> ArmEffect:
    """Effect on those whom the assignment made take the treatment (Imbens and Angrist 1994).

    Args:
        sums: As for `arm_effect`; one column says whether a unit received the treatment (where clusters were
            randomised: how many did).
        metric: The outcome; its denominator also divides the treatments received.
        taken: Column of the treatment received.
        alpha: As for `arm_effect`.

    Returns:
        Means and effect on the metric per complier: `control` and `treated` are the arms' shares that received the
        treatment, `relative` is unknown. NaN where the assignment moved the treatment by less than 3.2 errors: an
        effect over such a difference has no interval that holds. Intervals are Fieller's, which hold for weak ones.
    """
    means = _means(sums, (metric, MetricColumns(taken, metric.denominator)))
    delta = means.value[..., 1, :] - means.value[..., 0, :]
    joint = means.of_difference()
    strong = np.abs(delta[..., 1]) > WEAK_COMPLIANCE * np.sqrt(np.maximum(joint[..., 1, 1], 0.0))
    effect = np.where(strong, _quotient(delta[..., 0], delta[..., 1]), np.nan)
    direction = np.stack([np.ones_like(effect), -np.nan_to_num(effect)], axis=-1)
    variance = np.einsum("...f,...fg,...g->...", direction, joint, direction)
    error = np.sqrt(np.where(strong & (variance > 0), variance, np.nan)) / np.abs(delta[..., 1])
    freedom = means.freedom(direction)
    quantile = t.isf(np.asarray(alpha) / 2, freedom)
    parts = (joint[..., 0, 0], joint[..., 1, 1], joint[..., 0, 1])
    low, high = ratio_bounds(delta[..., 0], delta[..., 1], parts, quantile, "fieller")
    no_effect = np.abs(delta[..., 0]) / np.sqrt(np.where(joint[..., 0, 0] > 0, joint[..., 0, 0], np.nan))
    p_value = np.where(strong, 2 * t.sf(no_effect, freedom), np.nan)
    unknown = np.full(effect.shape, np.nan)
    low, high = np.where(strong, low, np.nan), np.where(strong, high, np.nan)
    shares = means.value[..., 0, 1], means.value[..., 1, 1]
    return ArmEffect(*shares, effect, error, low, high, p_value, unknown, unknown, unknown, freedom)


def variance_saved(sums: CrossMoments, metric: MetricColumns) -> np.ndarray:
    """Share of the effect's variance that covariates and strata take off, [...]; 0 without them."""
    bare = MetricColumns(metric.numerator, metric.denominator)
    strata = sums.n.ndim - 1
    plain = arm_effect(sums.sum(strata)[(*[slice(None)] * strata, None)], bare)
    return 1 - (arm_effect(sums, metric).error / plain.error) ** 2


# --------------------------------------------------------------------------------------------------------------------
# Linearisation.


def _means(sums: CrossMoments, metrics: tuple[MetricColumns, ...]) -> _Means:
    axis = sums.n.ndim - 2  # of the arms; strata follow
    in_strata = sums.n.sum(axis=axis, keepdims=True)
    weight = in_strata / in_strata.sum(axis=-1, keepdims=True)
    mean = (weight[..., None] * sums.mean).sum(axis=-2)
    values, rows = zip(*(_linear(sums, weight, mean, metric) for metric in metrics), strict=True)
    value, linear = np.stack(values, axis=-1), np.stack(rows, axis=-2)
    per_row = np.einsum("...afv,...asvw,...agw->...asfg", linear, sums.covariance, linear)
    parts = (weight**2 / np.where(sums.n > 0, sums.n, np.nan))[..., None, None] * per_row
    # Strata are a sample, too: where their means differ, so would those of another sample.
    stratum = np.einsum("...afv,...asv->...asf", linear, sums.mean - mean[..., None, :])
    share = np.broadcast_to(weight, sums.n.shape)[..., 0, :]
    total = in_strata.sum(axis=(-1, -2))[..., None, None, None, None]
    joint = np.einsum("...s,...asf,...bsg->...afbg", share, stratum, stratum) / total
    for arm in (0, 1):
        joint[..., arm, :, arm, :] += parts[..., arm, :, :, :].sum(axis=-3)
    return _Means(value, joint, parts, sums.n)


def _linear(
    sums: CrossMoments, weight: np.ndarray, mean: np.ndarray, metric: MetricColumns
) -> tuple[np.ndarray, np.ndarray]:
    """A metric's value in each arm, [..., 2], and a row's influence, linear in its columns, [..., 2, V]."""
    linear = np.stack([_gradient(mean, term) for term in _terms(metric)], axis=-2)
    if not metric.covariates:
        return _quotient_of(mean, _terms(metric)[0]), linear[..., 0, :]
    beta, arms = covariate_slopes(sums, metric), sums.n.ndim - 2
    centre = (weight[..., 0, :, None] * sums.sum(arms).mean).sum(axis=-2)
    less = (beta[..., None, :, None] * linear[..., 1:, :]).sum(axis=-2)
    return _adjusted(mean, centre, metric, beta), linear[..., 0, :] - less


def _terms(metric: MetricColumns) -> tuple[tuple[int, int | None], ...]:
    return ((metric.numerator, metric.denominator), *metric.covariates)


def covariate_slopes(sums: CrossMoments, metric: MetricColumns) -> np.ndarray:
    """What a metric moves with each of its covariates, by least squares over both arms within strata, [..., K].

    Args:
        sums: As for `arm_effect`.
        metric: Which columns.

    Returns:
        Slopes; a covariate that is constant, or follows from the others, has the smallest solution's.
    """
    terms = _terms(metric)
    pooled = sums.sum(sums.n.ndim - 2)
    by_stratum = pooled.n / pooled.n.sum(axis=-1, keepdims=True)
    centre = (by_stratum[..., None] * pooled.mean).sum(axis=-2)
    spread = (by_stratum[..., None, None] * pooled.covariance).sum(axis=-3)
    steep = np.stack([_gradient(centre, term) for term in terms], axis=-2)
    covariance = steep @ spread @ np.swapaxes(steep, -1, -2)
    inverse = np.linalg.pinv(np.nan_to_num(covariance[..., 1:, 1:]), rcond=1e-12, hermitian=True)
    return np.asarray(np.einsum("...ij,...j->...i", inverse, covariance[..., 1:, 0]))


def _adjusted(mean: np.ndarray, centre: np.ndarray, metric: MetricColumns, beta: np.ndarray) -> np.ndarray:
    """A metric's value in each arm less what covariates explain, from means [..., 2, V] and those of both, [..., V]."""
    first, *others = (_quotient_of(mean, term) for term in _terms(metric))
    at = [_quotient_of(centre, term) for term in metric.covariates]
    for place, (value, middle) in enumerate(zip(others, at, strict=True)):
        first = first - beta[..., place, None] * (value - middle[..., None])
    return first


def point_effects(
    n: np.ndarray, mean: np.ndarray, metric: MetricColumns, slopes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Effect and relative effect of many trials from means alone, as `arm_effect` has them.

    Args:
        n: Rows, or their weights, of control and treated by stratum, [..., 2, strata].
        mean: Means of their columns, [..., 2, strata, V].
        metric: Which columns.
        slopes: Of the metric's covariates, [K], as in `covariate_slopes`.

    Returns:
        (effect, relative effect), [...] each; NaN where an arm has no row in a stratum that the other has.
    """
    in_strata = n.sum(axis=-2)
    weight = in_strata / in_strata.sum(axis=-1, keepdims=True)
    empty = (n <= 0) & (in_strata > 0)[..., None, :]
    by_arm = (weight[..., None, :, None] * mean).sum(axis=-2)
    by_arm = np.where(empty.any(axis=-1)[..., None], np.nan, by_arm)
    share = n / np.maximum(in_strata, 1e-300)[..., None, :]
    centre = (weight[..., None] * (share[..., None] * mean).sum(axis=-3)).sum(axis=-2)
    value = _adjusted(by_arm, centre, metric, slopes)
    return value[..., 1] - value[..., 0], _quotient(value[..., 1], value[..., 0]) - 1


def _quotient(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom != 0, top / bottom, np.nan)


def _quotient_of(mean: np.ndarray, term: tuple[int, int | None]) -> np.ndarray:
    top, bottom = term
    return mean[..., top] if bottom is None else _quotient(mean[..., top], mean[..., bottom])


def _gradient(mean: np.ndarray, term: tuple[int, int | None]) -> np.ndarray:
    """Derivative of a ratio of means by the means, [..., V]."""
    top, bottom = term
    out = np.zeros_like(mean)
    if bottom is None:
        out[..., top] = 1.0
        return out
    out[..., top] = _quotient(np.ones(mean.shape[:-1]), mean[..., bottom])
    out[..., bottom] -= _quotient(mean[..., top], mean[..., bottom] ** 2)
    return out


def ratio_bounds(
    top: np.ndarray, bottom: np.ndarray, covariance: tuple[np.ndarray, ...], quantile: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a quotient of two estimates.

    Args:
        top: Estimate above, of any shape.
        bottom: Estimate below.
        covariance: (variance of top, variance of bottom, covariance of both).
        quantile: Half-width in standard errors.
        kind: One of RELATIVE.

    Returns:
        (lower, upper); infinite where the bottom may be 0.
    """
    of_top, of_bottom, both = covariance
    quotient = _quotient(top, bottom)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "log":
            half = quantile * np.sqrt(of_top / top**2 + of_bottom / bottom**2 - 2 * both / (top * bottom))
            positive = (top > 0) & (bottom > 0)
            return np.where(positive, quotient * np.exp(-half), np.nan), np.where(
                positive, quotient * np.exp(half), np.nan
            )
        if kind == "delta":
            half = quantile * np.sqrt(of_top - 2 * quotient * both + quotient**2 * of_bottom) / np.abs(bottom)
            return quotient - half, quotient + half
        # Ratios r for which top - r·bottom is not significant lie between the roots of a parabola.
        square = quantile**2
        a, b, c = bottom**2 - square * of_bottom, top * bottom - square * both, top**2 - square * of_top
        root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
        known, bounded = np.isfinite(quotient) & np.isfinite(b), a > 0
        low, high = np.where(bounded, (b - root) / a, -np.inf), np.where(bounded, (b + root) / a, np.inf)
        return np.where(known, low, np.nan), np.where(known, high, np.nan)
