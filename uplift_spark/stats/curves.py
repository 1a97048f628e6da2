"""Uplift curves: Qini, AUUC, and the figures that other uplift libraries report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.stats.moments import ratio

# NumPy 1.26, which Spark 3.5 wants, has the old name.
_trapezoid = np.trapezoid if hasattr(np, "trapezoid") else np.trapz  # type: ignore[attr-defined]

# --------------------------------------------------------------------------------------------------------------------
# Uplift curves and the figures read off them, as functions of sums per rank bin.
# Units are ranked by predicted uplift, highest first, and cut into bins; ties share a bin. With f the share of the
# population in the top bins,
#
#     gain(f) = f · (mean outcome of the treated in the top - mean outcome of the control in the top)
#
# is the outcome gained per unit of the whole population when the top share f is treated, in units of the outcome.
#
#     AUUC = ∫₀¹ gain(f) df            Qini = AUUC - gain(1)/2
#
# Qini is the area between the curve and the random line from (0, 0) to (1, gain(1)), where gain(1) is the average
# effect. Neither is divided by a perfect model's area nor multiplied by the number of units; other libraries' figures
# come from the same sums, see below. Areas use the trapezoid rule over the bins.
#
# Arrays have any leading axes (resamples, levels) and the rank bins last.


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


# --------------------------------------------------------------------------------------------------------------------
# The figures other uplift libraries report, from the same sums per rank bin as ours.
# Everywhere i counts units in rank order, n is all of them, T and C are the treated and the control among the first i
# and Y_T, Y_C the sums of their outcomes; G(i) = (Y_T/T - Y_C/C)·i and Q(i) = Y_T - Y_C·T/C. Our gain(f) is G(i)/n at
# f = i/n (`stats.curves`). Where both arms are in the first bin, and ties share a bin,
#
#     scikit-uplift   area of G above the random line = n²·Qini, divided by the same of a perfect ranking
#     CausalML        mean of G over i = 0 ... n      = (n²·AUUC + n·ATE/2)/(n + 1), divided by n·|ATE| if normalised
#     H2O             as CausalML with Q, Y_T/T - Y_C/C or G in bins of its own
#
# so that CausalML's normalised AUUC tends to AUUC/|ATE|, and models compared on the same rows come in the same order
# by the first, the second and our AUUC or Qini: only divisors that do not depend on the model differ. Q differs from G
# where the share of treated varies along the ranking; where it does not, Q is G times that share. Libraries also
# differ in what stands for G before both arms have appeared: see each function.
#
# Figures equal the libraries' exactly with a bin per distinct score (scikit-uplift), a bin per unit in the order taken
# (CausalML, which breaks ties arbitrarily) or the bins of `h2o_bins` (H2O). With coarser bins, points in between lie
# on straight lines. Definitions are those of scikit-uplift 0.5.1, CausalML 0.15.3 to 0.18 and H2O 3.46.
#
# Arrays have any leading axes and the rank bins last. Figures are NaN without one of the arms.


@dataclass(frozen=True)
class ArmSums:
    """Units and sums of outcomes of both arms per rank bin, [..., bins], highest prediction first; weights are all 1.

    From Moments [..., 2, bins, values] these are n and wy of arm 1, then of arm 0.
    """

    treated: np.ndarray
    treated_y: np.ndarray
    control: np.ndarray
    control_y: np.ndarray

    @property
    def units(self) -> np.ndarray:
        """Units of both arms, [..., bins]."""
        return self.treated + self.control

    @property
    def tops(self) -> ArmSums:
        """Sums of the first 0, 1, ... bins, [..., bins + 1]."""
        fields = (self.treated, self.treated_y, self.control, self.control_y)
        cumulated = [np.cumsum(a, axis=-1, dtype=np.float64) for a in fields]
        return ArmSums(*(np.concatenate([np.zeros_like(a[..., :1]), a], axis=-1) for a in cumulated))

    @property
    def lift(self) -> np.ndarray:
        """Y_T/T - Y_C/C of the bins themselves, or of `tops`; NaN without one of the arms."""
        return ratio(self.treated_y, self.treated) - ratio(self.control_y, self.control)

    @property
    def qini(self) -> np.ndarray:
        """Y_T - Y_C·T/C, NaN without control."""
        return self.treated_y - self.control_y * ratio(self.treated, self.control)


# ---- scikit-uplift: points after each bin, areas above the random line divided by those of a perfect ranking


def sklift_uplift_curve(sums: ArmSums) -> tuple[np.ndarray, np.ndarray]:
    """i and G(i), both [..., bins + 1], with 0 for the mean of an arm that has not appeared: `uplift_curve`."""
    top = sums.tops
    means = [_or_zero(ratio(y, n)) for y, n in ((top.treated_y, top.treated), (top.control_y, top.control))]
    return top.units, (means[0] - means[1]) * top.units


def sklift_qini_curve(sums: ArmSums) -> tuple[np.ndarray, np.ndarray]:
    """i and Q(i), both [..., bins + 1], Q being Y_T before control has appeared: `qini_curve`."""
    top = sums.tops
    return top.units, top.treated_y - top.control_y * _or_zero(ratio(top.treated, top.control))


def sklift_uplift_auc_score(sums: ArmSums) -> np.ndarray:
    """Area of G above the random line, divided by that of a perfect ranking, [...]: `uplift_auc_score`.

    A perfect ranking puts the treated with the event first, then the control without, then the control with the event
    and the treated without, of these two the larger group first. The numerator is n²·Qini. DataError unless outcomes
    are 0 or 1.
    """
    tr, tn, cr, cn = _responders(sums)
    nobody, control_first = np.zeros_like(tr), cr > tn
    treated = [tr, nobody, np.where(control_first, 0, tn), np.where(control_first, tn, 0)]
    control = [nobody, cn, np.where(control_first, cr, 0), np.where(control_first, 0, cr)]
    perfect = _groups(treated, [tr, nobody, nobody, nobody], control, [nobody, nobody, *control[2:]])
    return _both_arms(sums, _above_random(*sklift_uplift_curve(sums)) / _above_random(*sklift_uplift_curve(perfect)))


def sklift_qini_auc_score(sums: ArmSums, negative_effect: bool = True) -> np.ndarray:
    """Area of Q above the random line, divided by that of a perfect ranking, [...]: `qini_auc_score`.

    A perfect ranking puts the treated with the event first and the control with the event last; without negative
    effects its Q rises by 1 a unit up to Q(n) and stays there, which is refused there, and NaN here, where Q(n) < 0.
    Where a share p of every bin is treated, the numerator is p·n²·Qini. DataError unless outcomes are 0 or 1.
    """
    tr, tn, cr, cn = _responders(sums)
    nobody, total = np.zeros_like(tr), tr - cr * ratio(tr + tn, cr + cn)
    if negative_effect:
        groups = _groups([tr, tn, nobody], [tr, nobody, nobody], [nobody, cn, cr], [nobody, nobody, cr])
        perfect = _above_random(*sklift_qini_curve(groups))
    else:
        n = tr + tn + cr + cn
        perfect = np.where(total < 0, np.nan, total * (n - total) / 2)
    return _both_arms(sums, _above_random(*sklift_qini_curve(sums)) / perfect)


def sklift_uplift_at_k(sums: ArmSums, k: float, by_group: bool = False) -> np.ndarray:
    """Difference of the mean outcomes among the first units, [...]: `uplift_at_k`.

    k         share of the units in (0, 1), rounded down to whole units, or a whole number of units from 1
    by_group  the first of each arm's own units (strategy `by_group`) in place of the first of all (`overall`)

    Where the last unit taken lies within a bin, the bin's units count by the share of it that is taken. With equal
    arms it is gain(k)/k of our curve. ConfigError for another k.
    """
    if not (0 < k < 1 or (k >= 1 and k == int(k))):
        raise ConfigError(f"k={k} is neither a share between 0 and 1 nor a whole number of units: choose one of them")
    top = sums.tops
    means = []
    for n, y in ((top.treated, top.treated_y), (top.control, top.control_y)):
        along = n if by_group else top.units
        wanted = np.floor(along[..., -1] * k) if k < 1 else np.broadcast_to(float(k), along.shape[:-1])
        means.append(ratio(_at(along, y, wanted), _at(along, n, wanted)))
    return means[0] - means[1]


# ---- CausalML: means over i = 0 ... n of a curve, one point per unit


def causalml_gain(sums: ArmSums) -> np.ndarray:
    """G after 0, 1, ... bins, [..., bins + 1]: `get_cumgain`.

    Before both arms have appeared Y_T/T - Y_C/C grows in a straight line from 0 to its first known value.
    """
    top = sums.tops
    return _grown(top.lift, top.units) * top.units


def causalml_qini(sums: ArmSums) -> np.ndarray:
    """Q after 0, 1, ... bins, [..., bins + 1], growing in a straight line before control has appeared: `get_qini`."""
    top = sums.tops
    return _grown(top.qini, top.units)


def causalml_auuc_score(sums: ArmSums, normalize: bool = True) -> np.ndarray:
    """Mean of G(0), ... G(n), [...], of G/|G(n)| if normalised: `auuc_score`. (n²·AUUC + n·ATE/2)/(n + 1) of ours."""
    return _both_arms(sums, _mean_over_units(sums, _normalised(causalml_gain(sums), normalize)))


def causalml_qini_score(sums: ArmSums, normalize: bool = True) -> np.ndarray:
    """Mean of Q(i) - Q(n)·i/n over i = 0 ... n, [...], of Q/|Q(n)| if normalised: `qini_score`.

    Where a share p of every bin is treated it is p·n²/(n + 1) times our Qini, normalised n/(n + 1) times Qini/|ATE|.
    """
    curve = _normalised(causalml_qini(sums), normalize)
    return _both_arms(sums, _mean_over_units(sums, curve) - curve[..., -1] / 2)


# ---- H2O: sums over bins of a curve's value at each bin's end

H2OType = Literal["qini", "lift", "gain"]


def h2o_bins(scores: np.ndarray, nbins: int = 1000) -> np.ndarray:
    """Bin (0 = first) of each unit, int64 [units], as H2O cuts scores [units] for an AUUC with `auuc_nbins` bins.

    Bins start at the distinct values of the quantiles (nbins - 1)/nbins, ... 1/nbins, 0, interpolated between scores,
    and reach up to the next.
    """
    starts = np.unique(np.quantile(scores, np.arange(nbins) / nbins))
    return len(starts) - np.searchsorted(starts, scores, side="right")


def h2o_curve(sums: ArmSums, kind: H2OType = "qini") -> np.ndarray:
    """Q, Y_T/T - Y_C/C or G after each bin, [..., bins]; unknown first values grow in equal steps from 0."""
    top = sums.tops
    values = {"qini": top.qini, "lift": top.lift, "gain": top.lift * top.units}[kind]
    return _grown(values, np.arange(values.shape[-1]))[..., 1:]


def h2o_auuc(sums: ArmSums, kind: H2OType = "qini", normalize: bool = False) -> np.ndarray:
    """Sum over bins of curve·units, divided by n + 1, [...]: `auuc`; `auuc_normalized` divides by the |last value|.

    A curve of type lift, or one that ends at 0, is not divided. With type gain and a bin per unit it differs from
    CausalML's `auuc_score` only in what stands for the first bins that hold one arm.
    """
    curve = h2o_curve(sums, kind)
    if normalize and kind != "lift":
        end = np.abs(curve[..., -1:])
        curve = curve / np.where(end > 0, end, 1.0)
    return _both_arms(sums, np.sum(curve * sums.units, axis=-1) / (sums.units.sum(axis=-1) + 1))


def h2o_aecu(sums: ArmSums, kind: H2OType = "qini") -> np.ndarray:
    """`h2o_auuc` minus the same of a straight line to the curve's last value, [...]: `aecu`, of type qini `qini`."""
    n = sums.units.sum(axis=-1)
    line = np.sum(sums.tops.units[..., 1:] * sums.units, axis=-1) / (n * (n + 1))
    return h2o_auuc(sums, kind) - h2o_curve(sums, kind)[..., -1] * line


def _or_zero(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0.0, values)


def _groups(*fields: list[np.ndarray]) -> ArmSums:
    return ArmSums(*(np.stack(field, axis=-1) for field in fields))


def _above_random(units: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _trapezoid(values, units, axis=-1) - units[..., -1] * values[..., -1] / 2


def _responders(sums: ArmSums) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Treated with and without the event, control with and without, [...]; DataError where outcomes are others."""
    for n, y in ((sums.treated, sums.treated_y), (sums.control, sums.control_y)):
        if wrong := int(np.sum((y < 0) | (y > n) | (y != np.rint(y)))):
            raise DataError(
                f"{wrong} rank bins hold outcomes other than 0 and 1: a perfect ranking needs a binary outcome"
            )
    fields = (sums.treated, sums.treated_y, sums.control, sums.control_y)
    treated, events, control, control_events = (np.asarray(np.sum(a, axis=-1, dtype=np.float64)) for a in fields)
    return events, treated - events, control_events, control - control_events


def _both_arms(sums: ArmSums, figure: np.ndarray) -> np.ndarray:
    return np.where((sums.treated.sum(axis=-1) > 0) & (sums.control.sum(axis=-1) > 0), figure, np.nan)


def _at(along: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values [...] at the wanted places [...], on straight lines between points [..., points]."""
    interpolated = np.empty(wanted.shape)
    for i in np.ndindex(wanted.shape):
        interpolated[i] = np.interp(wanted[i], along[i], values[i], right=np.nan)
    return interpolated


def _grown(values: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Values with 0 at the first point and a straight line from there to the first known one."""
    known = np.isfinite(values)
    first = np.argmax(known, axis=-1)[..., None]
    along = np.broadcast_to(along, values.shape)
    slope = ratio(np.take_along_axis(values, first, axis=-1), np.take_along_axis(along, first, axis=-1))
    filled = np.where(known, values, slope * along)
    filled[..., 0] = 0.0
    return filled


def _normalised(curve: np.ndarray, normalize: bool) -> np.ndarray:
    return ratio(curve, np.abs(curve[..., -1:])) if normalize else curve


def _mean_over_units(sums: ArmSums, curve: np.ndarray) -> np.ndarray:
    """Mean of a curve's values after 0, 1, ... n units, on straight lines between the ends of bins."""
    start, step, units = curve[..., :-1], np.diff(curve, axis=-1), sums.units
    return np.sum(units * start + step * (units + 1) / 2, axis=-1) / (units.sum(axis=-1) + 1)


def library_metrics(uplift: np.ndarray, treated: np.ndarray, outcome: np.ndarray) -> dict[str, float]:
    """Report one ranking's figures as scikit-uplift, CausalML and H2O define them, to compare results across libraries.

    Args:
        uplift: predicted effects of one level, float [n]; units are ranked by them, highest first.
        treated: whether a unit received the level, bool [n]; the others received the control.
        outcome: numbers [n], in any unit; 0 or 1 for the figures of scikit-uplift.

    Returns:
        {name of the library and of its function: figure}. Those of scikit-uplift only for outcomes of 0 and 1; NaN
        where one of the arms is missing.

    Raises:
        ConfigError: the arrays are not of one length.

    Example:
        >>> figures = library_metrics([0.3, 0.2, 0.1, 0.0], [1, 0, 1, 0], [1, 0, 1, 0])
        >>> round(figures["causalml_auuc_score"], 3)
        0.475
    """
    score, arm, y = np.asarray(uplift, np.float64), np.asarray(treated, bool), np.asarray(outcome, np.float64)
    if score.ndim != 1 or not score.shape == arm.shape == y.shape:
        raise ConfigError(f"uplift {score.shape}, treated {arm.shape}, outcome {y.shape}: give [n] of each")
    order = np.argsort(-score, kind="stable")
    each = _arm_sums(np.argsort(order), arm, y)
    binned = _arm_sums(h2o_bins(score), arm, y)
    figures = {
        "causalml_auuc_score": causalml_auuc_score(each),
        "causalml_qini_score": causalml_qini_score(each),
        "h2o_auuc": h2o_auuc(binned),
        "h2o_aecu": h2o_aecu(binned),
    }
    if np.isin(y, (0.0, 1.0)).all():
        distinct = _arm_sums(np.unique(-score, return_inverse=True)[1], arm, y)
        figures["sklift_uplift_auc_score"] = sklift_uplift_auc_score(distinct)
        figures["sklift_qini_auc_score"] = sklift_qini_auc_score(distinct)
        figures["sklift_uplift_at_30_percent"] = sklift_uplift_at_k(distinct, 0.3)
    return {name: float(figure) for name, figure in figures.items()}


def _arm_sums(bins: np.ndarray, treated: np.ndarray, outcome: np.ndarray) -> ArmSums:
    size = int(bins.max(initial=0)) + 1
    parts = [np.bincount(bins[arm], weights, size) for arm in (treated, ~treated) for weights in (None, outcome[arm])]
    return ArmSums(*parts)
