"""The KPIs of a window from its sums: each with its interval, what it is of, and how it reads.

Intervals have the level 1 - alpha of the configuration, so that a threshold is crossed by chance in one window of a
thousand, not of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from scipy.stats import norm

from uplift_spark.monitoring.detectors import WindowFacts
from uplift_spark.monitoring.drift import ColumnDrift
from uplift_spark.monitoring.kpis import FORECAST_KPI, Kpi, KpiState, kpi_named
from uplift_spark.monitoring.lift import LiftEstimate, estimated_lift, lift_drop, observed_lift
from uplift_spark.roles import Direction, benefit, benefit_interval
from uplift_spark.stats.findings import Finding
from uplift_spark.stats.intervals import wilson_interval

WHOLE_WINDOW = "all"
NO_LABELS = "no label of the window is mature"
NO_EXPECTATION = "the model predicts nothing here, or the reference has too few units of both arms"


@dataclass(frozen=True)
class KpiValue:
    """A KPI of one window: a row of gold.kpi.

    cut       all, or the level, outcome or source that it is of
    n_needed  observations that would make a value beyond its alert threshold an alert; NaN: nobody can say
    note      what a reader must know
    """

    kpi: Kpi
    cut: str
    value: float
    lower: float
    upper: float
    n: float
    note: str = ""

    @classmethod
    def nothing(cls, kpi: Kpi, cut: str = WHOLE_WINDOW, note: str = "") -> KpiValue:
        """A KPI of which nothing was measured."""
        return cls(kpi, cut, math.nan, math.nan, math.nan, 0, note)

    @property
    def state(self) -> KpiState:
        """How the value reads."""
        return self.kpi.state(self.value, self.lower, self.upper, self.n)

    @property
    def n_needed(self) -> float:
        """See the class."""
        beyond = self.state in ("unsure", "too_few", "alert")
        return self.kpi.n_needed(self.value, self.lower, self.upper, self.n) if beyond else math.nan

    @property
    def row(self) -> dict[str, Any]:
        """A row of gold.kpi."""
        figures = {name: float(getattr(self, name)) for name in ("value", "lower", "upper", "n", "n_needed")}
        declared = {name: getattr(self.kpi, name) for name in ("unit", "target", "alert", "severity")}
        return {"kpi": self.kpi.name, "cut": self.cut, **figures, **declared, "state": self.state, "note": self.note}

    @property
    def sentence(self) -> str:
        """The value in words, for a terminal."""
        of = "" if self.cut == WHOLE_WINDOW else f" of {self.cut}"
        if self.state == "no_data":
            return f"{self.kpi.name}{of}: not measured{': ' + self.note if self.note else ''}"
        interval = f" ({self.lower:.4g} to {self.upper:.4g})" if math.isfinite(self.lower + self.upper) else ""
        needed = self.n_needed
        more = f"; {needed:,.0f} {self.kpi.n_of} would tell" if self.state == "unsure" and math.isfinite(needed) else ""
        threshold = "" if self.kpi.alert is None else f", alert at {self.kpi.alert:g}"
        note = f"; {self.note}" if self.note else ""
        value = f"{self.value:.4g}{interval} {self.kpi.unit}"
        return f"{self.kpi.name}{of}: {value}, n {self.n:,.0f}{threshold}: {self.state}{more}{note}"


DROP_ALPHA = 0.01
"""Probability that a window in which no lift is lost alerts of `lift_degradation`: at `monitoring.alpha` a drop of 30 %
would take twice the units to see, and a drop is a ticket, not a page."""


@dataclass(frozen=True)
class FigureSpec:
    """What KPIs are computed with.

    kpis       declarations
    direction  which way the outcome should go
    alpha      probability that an interval misses
    """

    kpis: Sequence[Kpi]
    direction: Direction = "increase"
    alpha: float = 0.001

    def named(self, name: str) -> Kpi:
        """A declaration by its name."""
        return kpi_named(name, self.kpis)

    @property
    def z(self) -> float:
        """Half width of an interval in standard errors."""
        return float(norm.isf(self.alpha / 2))


def share_value(spec: FigureSpec, name: str, cut: str, k: float, n: float) -> KpiValue:
    """A KPI that is a share.

    Args:
        spec: Declarations.
        name: of the KPI.
        cut: What it is of.
        k: Events.
        n: of so many.

    Returns:
        The value with Wilson's interval.
    """
    if not n > 0:
        return KpiValue.nothing(spec.named(name), cut)
    return KpiValue(spec.named(name), cut, k / n, *wilson_interval(k / n, n, 1 - spec.alpha), n)


def freshness_value(spec: FigureSpec, newest: Mapping[str, tuple[datetime | None, int]], end: datetime) -> KpiValue:
    """Age of the newest row of the features' oldest source.

    Args:
        spec: Declarations.
        newest: {table: (when its newest row was known, rows)}, of rows known before the end.
        end: of the window.

    Returns:
        The value in minutes; without one where no source has a row.
    """
    ages = {table: (end - at) / timedelta(minutes=1) for table, (at, _) in newest.items() if at is not None}
    oldest = max(ages, key=ages.__getitem__) if ages else ""
    rows = newest[oldest][1] if oldest else 0
    return KpiValue(
        spec.named("feature_freshness"), WHOLE_WINDOW, ages.get(oldest, math.nan), math.nan, math.nan, rows, oldest
    )


def completeness_value(spec: FigureSpec, outcome: str, share: float, events: int, error: float = 0.0) -> KpiValue:
    """Share of the events of mature labels that are known, as their delays tell (`stats.tests.completeness`).

    Args:
        spec: Declarations.
        outcome: whose events.
        share: NaN without any event.
        events: that are known.
        error: of the share over its value, by the noise of the delays (`stats.tests.completeness_error`).

    Returns:
        The value, with Wilson's interval of a share of as many events as would be that uncertain: the events that
        there must be, or fewer, where the delays of a few late ones say how many those are.
    """
    value = share_value(spec, "outcome_completeness", outcome, events, events / share if share > 0 else 0.0)
    spread = share * (1 - share)
    if not (value.n > 0 and error > 0 and spread > 0):
        return value
    alike = spread / (spread / value.n + (share * error) ** 2)
    lower, upper = wilson_interval(share, alike, 1 - spec.alpha)
    return replace(value, lower=lower, upper=upper)


def latency_value(spec: FigureSpec, upper_ends: np.ndarray, counts: np.ndarray) -> KpiValue:
    """95th percentile of latencies from a histogram; its interval by order statistics.

    Args:
        spec: Declarations.
        upper_ends: Ascending upper ends of the bins, in ms.
        counts: Requests in each.

    Returns:
        The value, to the width of a bin.
    """
    n = float(counts.sum())
    if not n:
        return KpiValue.nothing(spec.named("prediction_latency"))
    half = spec.z * math.sqrt(n * 0.95 * 0.05)
    ranks = np.clip([0.95 * n, 0.95 * n - half, 0.95 * n + half], 1, n)
    ends = upper_ends[np.searchsorted(np.cumsum(counts), ranks, side="left")]
    value, lower, upper = (float(end) for end in ends)
    return KpiValue(spec.named("prediction_latency"), WHOLE_WINDOW, value, lower, upper, n)


def drift_value(spec: FigureSpec, drift: Iterable[ColumnDrift], features: Iterable[str]) -> KpiValue:
    """The largest distance of a feature: to the training set, or to its season where that is nearer.

    Args:
        spec: Declarations.
        drift: of the window's columns.
        features: that count.

    Returns:
        The value; its interval holds for all features together (Massart's constant in the bound of Dvoretzky, Kiefer
        and Wolfowitz).
    """
    wanted = set(features)
    sizes = [(_nearest(one), one) for one in drift if one.column in wanted and not math.isnan(one.distance)]
    if not sizes:
        return KpiValue.nothing(spec.named("drift_score"))
    size, worst = max(sizes, key=lambda pair: pair[0])
    n = worst.n * worst.n_reference / max(1, worst.n + worst.n_reference)
    half = math.sqrt(math.log(2 * len(sizes) / spec.alpha) / (2 * max(1.0, n)))
    lower, upper = max(0.0, size - half), min(1.0, size + half)
    return KpiValue(
        spec.named("drift_score"), WHOLE_WINDOW, size, lower, upper, worst.n, f"feature {worst.column}, {worst.state}"
    )


def _nearest(one: ColumnDrift) -> float:
    size = float(np.fmax(one.distance, abs(one.missing)))
    return size if math.isnan(one.season_distance) else min(size, one.season_distance)


def lift_values(spec: FigureSpec, reference: WindowFacts, current: WindowFacts) -> Iterator[KpiValue]:
    """Lift of each level: expected from covariates, observed by labels, lost, and what it is worth.

    Args:
        spec: Declarations, direction of the outcome.
        reference: Sums with labels.
        current: Sums of the window.

    Yields:
        Values; what needs labels has n 0 without them.
    """
    for level, sums in current.scores.items():
        usual = reference.scores[level]
        estimated = estimated_lift(usual, sums, spec.direction)
        note = f"{estimated.lift.outside:.0%} of the units are unlike the reference's" if estimated.lift.outside else ""
        if math.isnan(estimated.lift.value):
            note = NO_EXPECTATION
        yield _of_lift(spec, "estimated_lift", level, estimated.lift, note)
        yield _of_lift(spec, "estimated_qini", level, estimated.qini, note)
        now = observed_lift(sums)
        yield _of_lift(spec, "observed_lift", level, now, "" if now.n else NO_LABELS)
        yield _degradation(spec, level, estimated.lift, now)
        ratio = sums.mean_width / usual.mean_width if usual.mean_width > 0 else math.nan
        units = float(sums.units.sum())
        yield KpiValue(spec.named("uplift_interval_width"), level, ratio, math.nan, math.nan, units)
        yield from _money(spec, level, current, now)


def _of_lift(spec: FigureSpec, name: str, level: str, lift: LiftEstimate, note: str) -> KpiValue:
    half = spec.z * lift.error
    return KpiValue(spec.named(name), level, lift.value, lift.value - half, lift.value + half, lift.n, note)


def _degradation(spec: FigureSpec, level: str, estimated: LiftEstimate, now: LiftEstimate) -> KpiValue:
    kpi = spec.named("lift_degradation")
    limit = 0.05 if kpi.target is None else kpi.target
    drop = lift_drop(estimated, now, spec.direction, limit, spec.alpha / 2)
    if math.isnan(drop.drop):
        note = NO_LABELS if not now.n else "the expected lift cannot be distinguished from nought"
        return KpiValue.nothing(kpi, level, NO_EXPECTATION if math.isnan(estimated.value) else note)
    error = math.hypot(estimated.error, now.error) / benefit(estimated.value, spec.direction)
    takes = (
        f"the reference is too small to see a drop of {limit:.0%}"
        if math.isinf(drop.n_needed)
        else f"to see a drop of {limit:.0%} four times in five takes {drop.n_needed:,.0f} units an arm"
    )
    note = f"{takes} (p of no drop {drop.p_value:.2g})"
    half = float(norm.isf(DROP_ALPHA)) * error
    return KpiValue(kpi, level, drop.drop, drop.drop - half, drop.drop + half, now.n, note)


def _money(spec: FigureSpec, level: str, current: WindowFacts, now: LiftEstimate) -> Iterator[KpiValue]:
    margin = current.margins.get(level)
    if margin is None or not margin.cost > 0:
        return
    gain = benefit(now.value, spec.direction)
    half = spec.z * now.error
    lower, upper = benefit_interval(now.value - half, now.value + half, spec.direction)
    worth = abs(margin.value)
    roi = [worth * one / margin.cost - 1 for one in (gain, lower, upper)]
    yield KpiValue(spec.named("uplift_roi"), level, roi[0], roi[1], roi[2], now.n)
    # No gain that may be nought or less has a price.
    value, least, most = (margin.cost / one if one > 0 else math.inf for one in (gain, upper, lower))
    kpi = spec.named("cost_per_incremental")
    if math.isfinite(value):
        yield KpiValue(kpi, level, value, least, most, now.n)
    else:
        yield KpiValue(kpi, level, math.nan, math.nan, math.nan, now.n, "nothing was gained")


def delivery_value(spec: FigureSpec, current: WindowFacts) -> KpiValue:
    """Share of the units assigned to a treatment that were reached.

    Args:
        spec: Declarations.
        current: Deliveries by arm.

    Returns:
        The value of all arms but the control.
    """
    sends = [counts for arm, counts in current.sends.items() if arm != current.control]
    return share_value(spec, "delivery_rate", WHOLE_WINDOW, sum(k for k, _ in sends), sum(n for _, n in sends))


def forecast_value(spec: FigureSpec, known: Mapping[str, Any] | None) -> KpiValue:
    """What the campaign will have cost by its end, over its budget.

    Args:
        spec: Declarations.
        known: Of a run of `uplift costs`: cost so far, budget, ends, forecast with its ends, as_of, and `days` that the
            campaign has run; None without one that has a budget.

    Returns:
        The value with the forecast's interval of 95 %. Where that is not known, what is spent is the least that it can
        be, so that a budget that is spent already is an alert.
    """
    kpi = spec.named(FORECAST_KPI)
    if known is None:
        return KpiValue.nothing(kpi, note="no forecast by then: set costs.budget, and run `uplift costs` before")
    money = {name: math.nan if known[name] is None else float(known[name]) for name in _OF_FORECAST}
    value, lower, upper = (money[name] / money["budget"] for name in _OF_FORECAST[2:])
    spent, interval = money["cost"] / money["budget"], "interval of 95 %"
    if math.isnan(lower):
        lower, interval = spent, "no interval: too few days, or too uneven ones"
        value = spent if math.isnan(value) and spent > 1 else value
    if math.isnan(value):
        return KpiValue.nothing(kpi, note="no forecast: the days so far say nothing of days to come")
    note = f"budget {money['budget']:,.2f}, ends {known['ends']}, as of {known['as_of']:%Y-%m-%d}; {interval}"
    return KpiValue(kpi, WHOLE_WINDOW, value, lower, upper, float(known["days"]), note)


_OF_FORECAST = ("budget", "cost", "forecast", "forecast_lower", "forecast_upper")


def ratio_value(kpi: Kpi, sums: Mapping[str, float], z: float) -> KpiValue:
    """A user's KPI: Σ value / Σ per, with the interval of a ratio of sums (delta method).

    Args:
        kpi: The declaration.
        sums: n, v, p, vv, vp and pp: rows, Σ value, Σ per, and sums of their products.
        z: Half width in standard errors.

    Returns:
        The value; NaN without rows or with Σ per nought.
    """
    n, v, p = (float(sums[key] or 0) for key in ("n", "v", "p"))
    if not n or not p:
        return KpiValue.nothing(kpi)
    ratio = v / p
    square = float(sums["vv"]) - 2 * ratio * float(sums["vp"]) + ratio**2 * float(sums["pp"])
    half = z * math.sqrt(max(0.0, square)) / abs(p)
    return KpiValue(kpi, WHOLE_WINDOW, ratio, ratio - half, ratio + half, n)


def window_summary(values: Iterable[KpiValue], drift: Iterable[ColumnDrift], findings: Iterable[Finding]) -> str:
    """Say a window in words: findings first, then columns that are not steady, then each KPI.

    Args:
        values: of its KPIs.
        drift: of its columns.
        findings: of the detectors.

    Returns:
        A line for each.
    """
    lines = [f"{one.severity}: {one.sentence}; {one.action}" for one in findings]
    for one in drift:
        if one.state != "steady":
            size = max(one.distance, abs(one.missing))
            season = "" if math.isnan(one.season_distance) else f", to its season {one.season_distance:.3f}"
            lines.append(f"{one.column}: {one.state}, distance to the training set {size:.3f}{season}")
    return "\n".join([*lines, *(value.sentence for value in values)])


def finding_row(finding: Finding) -> dict[str, Any]:
    """A row of gold.findings.

    Args:
        finding: The finding.

    Returns:
        {column: value}.
    """
    return {**asdict(finding), "finding": finding.check}


def drift_row(drift: ColumnDrift) -> dict[str, Any]:
    """A row of gold.drift.

    Args:
        drift: of a column.

    Returns:
        {column: value}.
    """
    return {**asdict(drift), "name": drift.column}
