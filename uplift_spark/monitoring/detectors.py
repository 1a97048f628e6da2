"""Eight ways in which a causal campaign goes wrong unnoticed, a detector each.

Every detector takes the sums of a reference and of the current window and gives a finding or nothing. What was not
measured is None, and its detector stays silent. A finding needs a size that matters and a p-value that holds for all
columns, arms and levels it looks at, so that a sound campaign has one in fewer than one window of fifty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binom, kstwobign, norm, poisson

from uplift_spark.monitoring.drift import ColumnBins, ColumnDrift, WindowCounts, distances
from uplift_spark.monitoring.lift import ScoreSums, losing_units, observed_lift
from uplift_spark.stats.findings import Finding

PAGE, TICKET = "page", "ticket"


@dataclass(frozen=True)
class DetectorLimits:
    """From where on a detector finds something.

    alpha        probability that a detector finds something in a sound window
    leak         distance between a feature's distributions in two arms that no assignment makes: it came after it
    confounded   distance between them that an assignment by other rules makes
    later        distance by which labels come later than they used to
    lost         share of the usual labels that are missing
    waste        share of the spending that goes to units on whom it is lost
    broken       distance, or gap of missing or unknown values, that a single window of nature does not make
    drifted      distance at which a column drifts, see `monitoring.drift.DriftLimits`
    undelivered  gap to the reference's share of units reached
    treated      share of the control that got a treatment
    power        probability that a lift as large as the reference's would show
    """

    alpha: float = 0.001
    leak: float = 0.25
    confounded: float = 0.03
    later: float = 0.1
    lost: float = 0.5
    waste: float = 0.05
    broken: float = 0.4
    drifted: float = 0.05
    undelivered: float = 0.02
    treated: float = 0.01
    power: float = 0.8


@dataclass(frozen=True)
class Margin:
    """Of one level: money that one unit of the outcome is worth, and that treating one unit costs."""

    value: float
    cost: float


def level_margins(levels: Iterable[str], value: float, cost: Mapping[str, float]) -> dict[str, Margin]:
    """What each level brings and costs.

    Args:
        levels: All but the control.
        value: Money that one unit of the outcome is worth.
        cost: {level: money that treating one unit costs}.

    Returns:
        {level: its margin}, of those with a cost.
    """
    return {level: Margin(value, cost[level]) for level in levels if level in cost}


@dataclass(frozen=True)
class WindowFacts:
    """Sums of a window, or of a reference; what is None, or not in a mapping, was not measured.

    control   name of the control
    bins      of the columns
    features  those columns that the model reads
    arms      {arm: counts of its units}
    units     units of the window, all arms
    labelled  units whose labels are mature, which `delays` and outcomes are of; None: all
    delays    {outcome: events by the whole days between what happened and when it was known, int64 [D]}
    age_days  whole days that events of the window have had to be known; None: all that they need
    complete  {outcome: (share of the events of mature labels that are known, events, relative error of that share by
              the noise of the delays)}
    drift     what became of each column
    scores    {level: sums by predicted uplift}
    margins   {level: what its outcomes are worth and cost}
    sends     {arm: (units reached, units assigned)}
    treated   units of the control that got a treatment
    unknown   {level that the model does not know: units that were assigned to it}
    """

    control: str
    bins: ColumnBins
    features: tuple[str, ...] = ()
    arms: Mapping[str, WindowCounts] = field(default_factory=dict)
    units: int = 0
    labelled: int | None = None
    delays: Mapping[str, np.ndarray] = field(default_factory=dict)
    age_days: int | None = None
    complete: Mapping[str, tuple[float, int, float]] = field(default_factory=dict)
    drift: tuple[ColumnDrift, ...] | None = None
    scores: Mapping[str, ScoreSums] = field(default_factory=dict)
    margins: Mapping[str, Margin] = field(default_factory=dict)
    sends: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    treated: int | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def all_arms(self) -> WindowCounts:
        """Counts of all units."""
        total = self.bins.empty()
        for counts in self.arms.values():
            total = total + counts
        return total


# --------------------------------------------------------------------------------------------------------------------
# F1, F3: features and arms.


def _arm_gaps(reference: WindowFacts, current: WindowFacts) -> Iterator[tuple[str, str, float, float]]:
    """(feature, arm, how much farther apart the arm and the control are than in the reference, p-value adjusted for all
    features and arms).

    The difference of two differences of empirical distributions is a sum of independent bridges, so Kolmogorov's law
    with their joint size bounds it.
    """
    treated = [arm for arm, counts in current.arms.items() if arm != current.control and counts.rows]
    control = current.arms.get(current.control)
    if control is None or not control.rows:
        return
    mine = [i for i, name in enumerate(current.bins.names) if name in current.features]
    tests = max(1, len(mine) * len(treated))
    for arm in treated:
        now = distances(current.bins, control, current.arms[arm])
        before, size = np.zeros(len(current.bins.names)), _harmonic(control, current.arms[arm])
        sides = [reference.arms.get(name) for name in (current.control, arm)]
        if sides[0] is not None and sides[1] is not None and sides[0].rows and sides[1].rows:
            before = distances(current.bins, sides[0], sides[1]).size
            size = 1 / (1 / size + 1 / _harmonic(sides[0], sides[1]))
        for i in mine:
            gap = float(now.size[i] - before[i])
            if math.isnan(gap):
                continue
            p_value = float(kstwobign.sf(math.sqrt(size) * max(0.0, gap)))
            # Of categories Kolmogorov's law says nothing; chi-square does.
            chance = max(p_value, float(now.p_value[i]))
            yield current.bins.names[i], arm, gap, min(1.0, tests * chance)


def _harmonic(a: WindowCounts, b: WindowCounts) -> float:
    return a.rows * b.rows / (a.rows + b.rows)


def treatment_leakage(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F1: a feature knows the arm, because it was measured after the treatment.

    Args:
        reference: Counts by arm; where it has none, arms are expected to be alike.
        current: Counts by arm.
        limits: From where on it is a finding.

    Returns:
        The finding on the feature that differs most, or None.
    """
    gaps = [one for one in _arm_gaps(reference, current) if one[2] >= limits.leak and one[3] < limits.alpha]
    if not gaps:
        return None
    feature, arm, gap, p_value = max(gaps, key=lambda one: one[2])
    return Finding(
        *("treatment_leakage", PAGE, gap, limits.leak),
        f"feature {feature} differs between arm {arm} and the control by a distance of {gap:.2f} more than it used to "
        f"(p = {p_value:.2g}): it was probably measured after the treatment",
        *(p_value, feature, "take its value as of the assignment, and do not train or score with it until then"),
    )


def confounding(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F3: arms differ before the treatment by more than chance and the design make.

    Args:
        reference: Counts by arm, which hold what the design itself makes.
        current: Counts by arm.
        limits: From where on it is a finding.

    Returns:
        The finding, with the features that differ most, or None.
    """
    gaps = [
        one
        for one in _arm_gaps(reference, current)
        if limits.confounded <= one[2] < limits.leak and one[3] < limits.alpha
    ]
    if not gaps:
        return None
    gaps.sort(key=lambda one: -one[2])
    shown = ", ".join(f"{feature} of {arm} by {gap:.3f}" for feature, arm, gap, _ in gaps[:5])
    return Finding(
        *("confounding", TICKET, gaps[0][2], limits.confounded),
        f"arms differ before the treatment by more than the design makes: {shown} (distance to the control; p = "
        f"{gaps[0][3]:.2g}): something other than the design decides who is treated",
        *(gaps[0][3], gaps[0][0], "find what assigns or filters units; until then no lift of this window is causal"),
    )


# --------------------------------------------------------------------------------------------------------------------
# F2: labels that come late, or not at all.


def label_lag(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F2: outcomes become known later than they used to, or hardly any do.

    Args:
        reference: Delays of events that all had the time to be known.
        current: Delays of the window's events; those longer than its age cannot be known yet.
        limits: From where on it is a finding.

    Returns:
        The finding on the outcome with the most labels missing, or None.
    """
    results = [_lag_of(name, reference, current, limits, len(current.delays)) for name in current.delays]
    return max((one for one in results if one), key=lambda one: one.figure, default=None)


def _lag_of(
    name: str, reference: WindowFacts, current: WindowFacts, limits: DetectorLimits, tests: int
) -> Finding | None:
    usual, now = reference.delays.get(name), current.delays[name]
    units = [facts.units if facts.labelled is None else facts.labelled for facts in (reference, current)]
    if usual is None or not usual.sum() or not all(units):
        return None
    days = len(usual) if current.age_days is None else min(len(usual), current.age_days + 1)
    usual, now = usual[:days].astype(float), now[:days].astype(float)
    usual_by_now = usual.sum() / units[0] * units[1]
    lost = 1 - now.sum() / usual_by_now if usual_by_now else 0.0
    p_lost = min(1.0, 2 * tests * float(poisson.cdf(now.sum(), (1 - limits.lost) * usual_by_now)))
    action = (
        "ask the source of the events what is held up; wait with labels, readouts and retraining until it is mended"
    )
    if lost > limits.lost and p_lost < limits.alpha:
        return Finding(
            *("label_lag", PAGE, lost, limits.lost),
            f"outcome {name}: {lost:.0%} of the events usual by now are missing ({now.sum():,.0f} in place of "
            f"{usual_by_now:,.0f})",
            *(p_lost, name, action),
        )
    if not now.sum() or not usual.sum():
        return None
    later = float((usual.cumsum() / usual.sum() - now.cumsum() / now.sum()).max())
    size = usual.sum() * now.sum() / (usual.sum() + now.sum())
    p_later = min(1.0, 2 * tests * float(np.exp(-2 * size * max(0.0, later) ** 2)))  # Smirnov's one-sided law
    if later < limits.later or p_later >= limits.alpha:
        return None
    means = [float(side @ np.arange(days) / side.sum()) for side in (usual, now)]
    return Finding(
        *("label_lag", TICKET, later, limits.later),
        f"outcome {name}: events become known after {means[1]:.1f} days on average in place of {means[0]:.1f}, so "
        "fewer labels are complete than it seems",
        *(p_later, name, action + "; or raise labels.wait_days"),
    )


# --------------------------------------------------------------------------------------------------------------------
# F4: drift.


def drift_trigger(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F4: units are no longer those that the model was trained on, lastingly and beyond the season.

    Args:
        reference: Not used: `monitoring.drift` has compared the counts.
        current: What became of each column.
        limits: `drifted` is what it was compared with.

    Returns:
        The finding, with the columns that drift, or None.
    """
    lasting = sorted((one for one in current.drift or () if one.state == "trigger"), key=lambda one: -one.distance)
    if not lasting:
        return None
    shown = ", ".join(f"{one.column} by {max(one.distance, abs(one.missing)):.2f}" for one in lasting[:5])
    more = f" and {len(lasting) - 5} more" if len(lasting) > 5 else ""
    worst = lasting[0]
    return Finding(
        *("drift", TICKET, max(worst.distance, abs(worst.missing)), limits.drifted),
        f"{len(lasting)} {'column has' if len(lasting) == 1 else 'columns have'} drifted lastingly: {shown}{more}",
        *(worst.adjusted_p, worst.column, "check what changed at the source; if it is real, retrain"),
    )


# --------------------------------------------------------------------------------------------------------------------
# F5, F6: too few units, too many treated.


def low_sample(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F5: too few units for the lift that the reference showed.

    A window is read while its labels still ripen, so what counts is the units that it has once all are mature.

    Args:
        reference: Sums with labels.
        current: Sums with labels.
        limits: `power` is what the window is held to.

    Returns:
        The finding on the level that lacks most units, with the number that would do, or None.
    """
    ripe = 1.0 if current.labelled is None or not current.units else current.labelled / current.units
    worst: tuple[float, str, int, float] | None = None
    for level, sums in current.scores.items():
        if level not in reference.scores or not sums.arms[:, :, 0].sum() or not ripe:
            continue
        usual, now = observed_lift(reference.scores[level]), observed_lift(sums)
        if not abs(usual.value) > 2 * usual.error:
            continue  # nothing to detect
        spread = now.error * math.sqrt(max(1, now.n))
        if ripe < 1 or not (math.isfinite(spread) and spread > 0):  # of the first labels an error is a guess
            spread = usual.error * math.sqrt(usual.n)
        steps = float(norm.isf(0.025) + norm.ppf(limits.power))
        needed, n = (steps * spread / abs(usual.value)) ** 2, max(now.n, round(now.n / ripe))
        lacking = needed / max(1, n)
        if lacking > 1 and (worst is None or lacking > worst[0]):
            worst = (lacking, level, n, needed)
    if worst is None:
        return None
    lacking, level, n, needed = worst
    has, then = ("has", "") if ripe >= 1 else ("will have", " once all labels are mature")
    return Finding(
        *("low_sample", TICKET, float(n), float(math.ceil(needed))),
        f"level {level} {has} {n:,} units in its smaller arm{then}: to see a lift like the reference's "
        f"{limits.power:.0%} of the time it takes {math.ceil(needed):,}",
        *(None, level, "merge windows, or give the smaller arm a larger share"),
    )


def over_targeting(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F6: money goes to units on whom treating costs more than it brings.

    Args:
        reference: Not used.
        current: Sums with labels, and what outcomes are worth and cost.
        limits: `waste` is the share of the spending that may be lost so.

    Returns:
        The finding on the level with the largest share lost, or None.
    """
    worst: Finding | None = None
    for level, sums in current.scores.items():
        margin = current.margins.get(level)
        treated = sums.arms[:, 1, 0].sum()
        if margin is None or not treated or not margin.cost > 0:
            continue
        losing = losing_units(sums, margin.value, margin.cost, limits.alpha / max(1, len(current.scores)))
        if losing is None or losing.share <= limits.waste or (worst is not None and losing.share <= worst.figure):
            continue
        worst = Finding(
            *("over_targeting", TICKET, losing.share, limits.waste),
            f"level {level}: {losing.share:.0%} of the units treated cost more than they bring, at least "
            f"{losing.lost:,.0f} in all (p < {limits.alpha:g})",
            *(limits.alpha, level, "treat only units whose predicted gain exceeds the cost: run `uplift policy` anew"),
        )
    return worst


# --------------------------------------------------------------------------------------------------------------------
# F7: what is deployed is not what was trained.


def deployment_mismatch(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F7: units get what the model does not know, or features are not computed as they were in training.

    Args:
        reference: Counts of all arms.
        current: Counts of all arms, units of unknown levels.
        limits: From where on it is a finding.

    Returns:
        The finding, or None. A single window is enough: nature is not that fast.
    """
    if strange := sum(current.unknown.values()):
        total = strange + current.units
        return Finding(
            *("deployment_mismatch", PAGE, strange / total, 0.0),
            f"{strange:,} of {total:,} units were assigned to {', '.join(sorted(current.unknown))}, which the model "
            "does not know: no figure counts them",
            *(None, "treatment", "take the level back, or train a model that knows it"),
        )
    usual, now = reference.all_arms, current.all_arms
    if not usual.rows or not now.rows:
        return None
    gaps = distances(current.bins, usual, now)
    size = np.fmax(gaps.size, gaps.new)
    size = np.where([name in current.features for name in current.bins.names], size, np.nan)
    p_values = np.minimum(1.0, np.fmin(gaps.p_value, 1.0) * len(size))
    broken = [i for i in np.argsort(-np.nan_to_num(size)) if size[i] >= limits.broken and p_values[i] < limits.alpha]
    if not broken:
        return None
    i = int(broken[0])
    what = "has values missing" if abs(gaps.missing[i]) >= limits.broken else "has other values"
    return Finding(
        *("deployment_mismatch", PAGE, float(size[i]), limits.broken),
        f"feature {current.bins.names[i]} {what} than in training, by {size[i]:.2f} in a single window: its code, its "
        "unit or its source has changed",
        *(
            *(float(p_values[i]), current.bins.names[i]),
            "roll back to the last deployment that was sound, and do not retrain on these rows",
        ),
    )


# --------------------------------------------------------------------------------------------------------------------
# F8: who is assigned a treatment does not get it.


def non_compliance(reference: WindowFacts, current: WindowFacts, limits: DetectorLimits) -> Finding | None:
    """F8: fewer units are reached than used to be, or units of the control are treated.

    Args:
        reference: Units reached by arm; where an arm has none, all should be.
        current: Units reached by arm, and treated units of the control.
        limits: From where on it is a finding.

    Returns:
        The finding on the arm that lacks most, or None.
    """
    arms = [arm for arm in current.sends if arm != current.control and current.sends[arm][1]]
    tests, worst = len(arms) + 1, None
    for arm in arms:
        reached, n = current.sends[arm]
        before, total = reference.sends.get(arm, (0, 0))
        usual = before / total if total else 1.0
        gap = usual - reached / n
        if total:
            pooled = (before + reached) / (total + n)
            error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / total))
            p_value = float(norm.sf(gap / error)) if error else 1.0
        else:
            p_value = float(binom.cdf(reached, n, 1 - limits.undelivered))
        p_value = min(1.0, tests * p_value)
        if gap > limits.undelivered and p_value < limits.alpha and (worst is None or gap > worst.figure):
            worst = Finding(
                *("non_compliance", PAGE, gap, limits.undelivered),
                f"arm {arm}: {reached / n:.1%} of {n:,} units were reached, {usual:.1%} used to be",
                *(
                    p_value,
                    arm,
                    "find what holds the sends up; read effects of assignment, not of receiving, until then",
                ),
            )
    n = current.sends.get(current.control, (0, 0))[1] or (
        current.arms[current.control].rows if current.control in current.arms else 0
    )
    if worst is None and current.treated and n:
        share = current.treated / n
        p_value = min(1.0, tests * float(binom.sf(current.treated - 1, n, limits.treated)))
        if share > limits.treated and p_value < limits.alpha:
            worst = Finding(
                *("non_compliance", PAGE, share, limits.treated),
                f"{current.treated:,} of {n:,} units of the control ({share:.1%}) got a treatment, which dilutes the "
                "lift",
                *(p_value, current.control, "find which system treats the control, and exclude it there"),
            )
    return worst


Detector = Callable[[WindowFacts, WindowFacts, DetectorLimits], Finding | None]

DETECTORS: Mapping[str, Detector] = {
    "treatment_leakage": treatment_leakage,
    "label_lag": label_lag,
    "confounding": confounding,
    "drift": drift_trigger,
    "low_sample": low_sample,
    "over_targeting": over_targeting,
    "deployment_mismatch": deployment_mismatch,
    "non_compliance": non_compliance,
}
"""F1 to F8, by the name of their finding."""


def window_findings(
    reference: WindowFacts, current: WindowFacts, limits: DetectorLimits | None = None
) -> list[Finding]:
    """All that the detectors find, what pages first.

    Args:
        reference: Sums of what is usual.
        current: Sums of the window.
        limits: From where on something is a finding.

    Returns:
        The findings, at most one of a detector.
    """
    results = (detector(reference, current, limits or DetectorLimits()) for detector in DETECTORS.values())
    return sorted((one for one in results if one), key=lambda one: one.severity != PAGE)
