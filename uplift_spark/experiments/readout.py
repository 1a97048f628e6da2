"""What a trial showed: each metric's effect, and in words what to do about it. numpy and pandas, no Spark.

`read_sums` takes sums, from whatever engine; `frames.readout` makes them from a frame of one row a unit. First,
`health` says whether the trial may be read at all: a broken one gets no figures, unless someone overrides that and says
why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.experiments.bootstrap import BootstrapInterval, Resampler, UnitGroupSums
from uplift_spark.experiments.estimates import (
    ArmEffect,
    MetricColumns,
    arm_effect,
    complier_effect,
    covariate_slopes,
    point_effects,
    variance_saved,
)
from uplift_spark.experiments.health import (
    REFUSE,
    WARN,
    HealthFinding,
    HealthLimits,
    ReadoutDesign,
    TrialFacts,
    health_findings,
)
from uplift_spark.experiments.rerandomise import BalanceRule
from uplift_spark.stats.intervals import MIN_CLUSTERS
from uplift_spark.stats.moments import CrossMoments
from uplift_spark.stats.tests import false_discovery, holm

PRIMARY, SECONDARY, GUARDRAIL, COMPLIER = "primary", "secondary", "guardrail", "complier"
SHIP, ROLL_BACK, KEEP_GOING, BROKEN = "ship", "roll back", "keep going", "broken"


# --------------------------------------------------------------------------------------------------------------------
# What is read.


@dataclass(frozen=True)
class ReadoutMetric:
    """A metric: the mean of a column, or the ratio of two columns' means.

    name         its name
    column       outcome of a unit, 0 or 1 of a conversion
    denominator  column below it, such as sessions of revenue a session; None is a mean over units
    covariates   columns measured before the treatment, which take variance off (CUPED); of a ratio, pairs of columns
    role         'primary' (one, which decides), 'secondary', or 'guardrail' (must not get worse by its margin)
    better       'up' or 'down'
    margin       of a guardrail: how much worse is still accepted, above 0
    margin_of    'relative' (.01 is 1 % of the control's mean) or 'absolute'

    Raises ConfigError when parts do not fit.
    """

    name: str
    column: str
    denominator: str | None = None
    covariates: tuple[str | tuple[str, str], ...] = ()
    role: str = SECONDARY
    better: str = "up"
    margin: float | None = None
    margin_of: str = "relative"

    def __post_init__(self) -> None:
        pairs = [one if isinstance(one, str) else tuple(one) for one in self.covariates]
        object.__setattr__(self, "covariates", tuple(pairs))
        for value, known, what in (
            (self.role, (PRIMARY, SECONDARY, GUARDRAIL), "role"),
            (self.better, ("up", "down"), "better"),
            (self.margin_of, ("relative", "absolute"), "margin_of"),
        ):
            if value not in known:
                raise ConfigError(f"{what} {value!r} of metric {self.name} is unknown: {hint(value, known)}")
        if self.role == GUARDRAIL and not (self.margin is not None and self.margin > 0):
            raise ConfigError(f"guardrail {self.name} has no margin: say how much worse is accepted, such as .01")
        if self.role != GUARDRAIL and self.margin is not None:
            raise ConfigError(f"margin of {self.name} is for guardrails: make it one, or drop the margin")

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.better == "up" else -1.0

    @property
    def columns_used(self) -> tuple[str, ...]:
        """Columns of a frame."""
        pairs = [part for one in self.covariates for part in ((one,) if isinstance(one, str) else one)]
        return tuple(dict.fromkeys([self.column, *([self.denominator] if self.denominator else []), *pairs]))


def checked_metrics(metrics: Sequence[ReadoutMetric]) -> tuple[ReadoutMetric, ...]:
    """The metrics, if there is one primary among them and names differ, else ConfigError."""
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"metric {twice} is there twice: give metrics names of their own")
    primary = [metric.name for metric in metrics if metric.role == PRIMARY]
    if not primary:
        raise ConfigError(f"no metric is primary ({', '.join(names) or 'there is none'}): name the one that decides")
    if len(primary) > 1:
        raise ConfigError(f"{', '.join(primary)} are primary: one decides; make the others secondary")
    return tuple(metrics)


@dataclass(frozen=True)
class TrialSums:
    """Sums of a trial; rows are the randomised units.

    arms      the arms with a share, control first
    strata    names of the strata, one without strata
    columns   names of the columns
    moments   [arms, strata], of the columns
    counted   place among the moments' columns, behind the named ones, of the units that a row holds; None: one each
    by_day    the same moments [arms, days] by the day of the assignment, from the first to the last
    taken     column that says whether, or how often, the treatment was received
    groups    units and totals of the same columns [arms, strata, groups], for bootstrap intervals
    """

    arms: tuple[str, ...]
    strata: tuple[str, ...]
    columns: tuple[str, ...]
    moments: CrossMoments
    taken: str | None = None
    counted: int | None = None
    by_day: CrossMoments | None = None
    groups: UnitGroupSums | None = None

    def placed(self, metric: ReadoutMetric) -> MetricColumns:
        """Where the metric's columns lie, or ConfigError where one is missing."""
        for name in metric.columns_used:
            if name not in self.columns:
                raise ConfigError(f"column {name!r} of metric {metric.name} is not there: {hint(name, self.columns)}")
        place = self.columns.index
        bottom = self.counted if metric.denominator is None else place(metric.denominator)
        pairs = [(place(one), self.counted) if isinstance(one, str) else (place(one[0]), place(one[1])) for one in
                 metric.covariates]  # fmt: skip
        return MetricColumns(place(metric.column), bottom, tuple(pairs))

    def pair(self, arm: int) -> CrossMoments:
        """Control and an arm, [2, strata]."""
        return self.moments[[0, arm]]


# --------------------------------------------------------------------------------------------------------------------
# What comes out.


@dataclass(frozen=True)
class MetricReadout:
    """One metric of one arm against the control.

    control, treated, effect, error, lower, upper, relative, relative_lower, relative_upper
                     as in `estimates.ArmEffect`; intervals hold at this look and at all others of the design. Of role
                     'complier', control and treated are the shares that received the treatment
    p_value          holds at every look, too
    p_adjusted       for the arms (primary), or arms and metrics (secondary); to be read at the trial's alpha
    saved            share of the variance that covariates and strata take off
    status           'better', 'worse' or 'open'; of a guardrail 'safe', 'harmed' or 'open'
    bootstrap_lower, bootstrap_upper, relative_bootstrap_lower, relative_bootstrap_upper
                     intervals from resampled units, which hold at the same looks; NaN where sums have no groups
    """

    metric: str
    role: str
    arm: str
    control: float
    treated: float
    effect: float
    error: float
    lower: float
    upper: float
    p_value: float
    relative: float
    relative_lower: float
    relative_upper: float
    p_adjusted: float
    saved: float
    status: str
    bootstrap_lower: float = math.nan
    bootstrap_upper: float = math.nan
    relative_bootstrap_lower: float = math.nan
    relative_bootstrap_upper: float = math.nan


@dataclass(frozen=True)
class ReadoutVerdict:
    """What to do: `word` is 'ship', 'roll back', 'keep going' or 'broken'; `arm` is the one to ship."""

    word: str
    reason: str
    arm: str | None = None
    days_left: int | None = None

    def __str__(self) -> str:
        word = f"{self.word} {self.arm}" if self.arm else self.word
        days = f" (about {self.days_left} days)" if self.days_left is not None else ""
        return f"{word}{days}: {self.reason}"


@dataclass(frozen=True)
class TrialReadout:
    """Verdict, findings, and figures by metric and arm; a broken trial has none.

    units     randomised units by arm
    level     level at which this look's intervals are drawn
    override  why findings that refuse were overridden
    """

    verdict: ReadoutVerdict
    findings: tuple[HealthFinding, ...]
    metrics: tuple[MetricReadout, ...]
    units: Mapping[str, float]
    level: float
    override: str | None = None

    def table(self) -> pd.DataFrame:
        """A row for each metric and arm."""
        names = [*MetricReadout.__dataclass_fields__]
        frame = pd.DataFrame([asdict(one) for one in self.metrics], columns=names)
        return frame.assign(override=self.override) if self.override else frame

    def text(self) -> str:
        """Verdict, findings and effects, a line each."""
        lines = [str(self.verdict), *(f"{one.severity}: {one.sentence}" for one in self.findings)]
        if self.override:
            lines.append(f"override: {self.override}")
        return "\n".join([*lines, *(_sentence(one) for one in self.metrics)])


def _sentence(one: MetricReadout) -> str:
    share = f" ({one.relative:+.2%})" if math.isfinite(one.relative) else ""
    ends = f"between {one.lower:+.5g} and {one.upper:+.5g}"
    if one.role == PRIMARY and math.isfinite(one.bootstrap_lower):
        ends += f" (bootstrap: {one.bootstrap_lower:+.5g} and {one.bootstrap_upper:+.5g})"
    effect = f"{one.role} {one.metric}, arm {one.arm}: {one.effect:+.5g}{share}"
    return f"{effect}, {ends}, p = {one.p_adjusted:.2g}: {one.status}"


# --------------------------------------------------------------------------------------------------------------------
# From sums to a verdict.


def read_sums(
    sums: TrialSums,
    metrics: Sequence[ReadoutMetric],
    design: ReadoutDesign,
    facts: TrialFacts,
    *,
    limits: HealthLimits | None = None,
    override: str | None = None,
) -> TrialReadout:
    """Read a trial from its sums.

    Args:
        sums: Sums of the columns by arm and stratum.
        metrics: One of them primary.
        design: What was laid down.
        facts: Counts for the checks.
        limits: From where on a check refuses.
        override: Why a broken trial is read all the same; stays on the readout.

    Returns:
        The readout; without figures where a finding refuses it and nothing overrides that.

    Raises:
        ConfigError: There is not one primary metric, a column is missing, the look comes after the last, or the
            override is empty.
        DataError: A metric does not vary, or an arm has too few units in a stratum.

    Example:
        >>> sums = TrialSums(("off", "on"), ("all",), ("spend",), CrossMoments.of_sums(
        ...     np.array([[500.0], [500.0]]), np.array([[[5000.0]], [[5200.0]]]),
        ...     np.array([[[[52000.0]]], [[[56080.0]]]])))
        >>> design = ReadoutDesign({"off": 0.5, "on": 0.5})
        >>> metric = ReadoutMetric("spend", "spend", role="primary")
        >>> print(read_sums(sums, [metric], design, TrialFacts({"off": 500, "on": 500})).verdict)
        ship on: spend +0.4 (+4.00%), between +0.15153 and +0.64847, p = 0.0016
    """
    metrics = checked_metrics(metrics)
    if override is not None and not override.strip():
        raise ConfigError("the override has no reason: say why this trial is read all the same")
    findings = tuple(health_findings(facts, design, limits))
    refused = [one for one in findings if one.severity == REFUSE]
    if refused and override is None:
        verdict = ReadoutVerdict(BROKEN, "; ".join(one.sentence for one in refused))
        return TrialReadout(verdict, findings, (), facts.units, math.nan)
    _check_sums(sums, metrics)
    findings = (*findings, *_effect_over_time(sums, metrics, limits or HealthLimits()))
    planned, fractions = design.planned_units or facts.total, design.fractions(facts)
    level = design.stopping.level(fractions, facts.total, planned)
    rows = _metric_rows(sums, metrics, level, design.balanced, design.stopping.alpha)
    p_values = design.stopping.valid_p(np.array([row.p_value for row in rows]), fractions, facts.total, planned)
    by_name = {metric.name: metric for metric in metrics}
    rows = _adjusted(rows, p_values, design.multiplicity)
    rows = [replace(row, status=_status(row, by_name[row.metric], design.stopping.alpha)) for row in rows]
    verdict = _verdict(rows, facts, design)
    return TrialReadout(verdict, findings, tuple(rows), facts.units, level, override)


def _check_sums(sums: TrialSums, metrics: Sequence[ReadoutMetric]) -> None:
    few = np.argwhere(sums.moments.n < 2)
    if few.size:
        arm, stratum = few[0]
        raise DataError(
            f"arm {sums.arms[arm]} has {sums.moments.n[arm, stratum]:.0f} units in stratum {sums.strata[stratum]} and "
            f"fewer than 2 in {len(few)} strata: merge small strata"
        )
    by_arm = sums.moments.n.sum(axis=1)
    if sums.counted is not None and by_arm.min() < MIN_CLUSTERS:
        arm = int(by_arm.argmin())
        raise DataError(
            f"arm {sums.arms[arm]} has {by_arm[arm]:.0f} clusters, of at least {MIN_CLUSTERS}: from fewer no error "
            "follows; randomise more of them"
        )
    whole = sums.moments.sum(1).sum(0)
    for metric in metrics:
        place = sums.placed(metric)
        columns = [place.numerator] if place.denominator is None else [place.numerator, place.denominator]
        mean, spread = whole.mean[columns], np.diagonal(whole.products)[columns] / whole.n
        constant = not (spread > 1e-18 * (mean**2 + 1e-300)).any()
        value = mean[0]
        if place.denominator is not None and mean[1] > 0:
            # Where rows are sums, those of a constant follow the number of units: what is left beside them counts.
            value = mean[0] / mean[1]
            off = np.array([1.0, -value])
            constant |= bool(off @ whole.products[np.ix_(columns, columns)] @ off <= 1e-14 * whole.n * spread[0])
        if constant:
            raise DataError(
                f"metric {metric.name} is {value:g} in all {whole.n:,.0f} units: it tells no arms apart; drop it or "
                "wait for outcomes"
            )
        if place.denominator is not None and not mean[-1] > 0:
            raise DataError(
                f"the denominator of {metric.name} has mean {mean[-1]:g}: a ratio needs one above 0, such as sessions"
            )
        if metric.margin is not None and metric.margin_of == "relative":
            control = sums.moments.sum(1).mean[0, place.numerator]
            if not control > 0:
                raise DataError(f"guardrail {metric.name} has control mean {control:g}: give its margin as absolute")


def _metric_rows(
    sums: TrialSums,
    metrics: Sequence[ReadoutMetric],
    level: float,
    balanced: BalanceRule | None = None,
    alpha: float = 0.05,
) -> list[MetricReadout]:
    rows, resamples = [], _Resamples.of(sums, level, alpha)
    for metric in metrics:
        place = sums.placed(metric)
        for arm in range(1, len(sums.arms)):
            pair = sums.pair(arm)
            effect = arm_effect(pair, place, level)
            if balanced is not None:
                effect = _balanced_effect(effect, sums, place, (balanced, level))
            saved = float(variance_saved(pair, place)) if place.covariates or len(sums.strata) > 1 else 0.0
            row = _row(effect, (metric.name, metric.role, sums.arms[arm]), saved)
            rows.append(replace(row, **resamples.ends(effect, arm, place)))
    for metric in metrics:
        if sums.taken is None or metric.role != PRIMARY:
            continue
        for arm in range(1, len(sums.arms)):
            place, taken = sums.placed(metric), sums.columns.index(sums.taken)
            effect = complier_effect(sums.pair(arm), place, taken, level)
            row = _row(effect, (metric.name, COMPLIER, sums.arms[arm]), 0.0)
            rows.append(replace(row, **resamples.ends(effect, arm, place, taken)))
    return rows


@dataclass(frozen=True)
class _Resamples:
    """Resamples of a trial's units at the level of this look and of the trial; none where sums have no groups."""

    sums: TrialSums
    units: Resampler | None
    level: float
    alpha: float

    @classmethod
    def of(cls, sums: TrialSums, level: float, alpha: float) -> _Resamples:
        there = sums.groups is not None and sums.groups.groups > 0
        return cls(sums, Resampler(sums.groups) if sums.groups and there else None, level, alpha)

    def ends(self, effect: ArmEffect, arm: int, place: MetricColumns, taken: int | None = None) -> dict[str, Any]:
        """Ends of an effect's intervals, by their names in a readout; with `taken` of the effect on compliers."""
        if self.units is None:
            return {}
        pair, slopes = [0, arm], covariate_slopes(self.sums.pair(arm), place)

        def values(n: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return point_effects(n[:, pair], mean[:, pair], place, slopes)

        def per_complier(n: np.ndarray, mean: np.ndarray) -> np.ndarray:
            took = MetricColumns(int(taken or 0), place.denominator)
            moved = point_effects(n[:, pair], mean[:, pair], took, np.zeros(0))[0]
            return values(n, mean)[0] / np.where(moved == 0, np.nan, moved)

        how = BootstrapInterval(self.level, self.alpha, float(effect.freedom))
        if taken is not None:
            low, high = self.units.interval(per_complier, float(effect.effect), how)
            return {"bootstrap_lower": low, "bootstrap_upper": high}
        ends: dict[str, Any] = {}
        for name, place_of in (("", 0), ("relative_", 1)):
            value = float((effect.effect, effect.relative)[place_of])
            low, high = self.units.interval(lambda n, mean, k=place_of: values(n, mean)[k], value, how)  # type: ignore[misc]
            ends |= {f"{name}bootstrap_lower": low, f"{name}bootstrap_upper": high}
        return ends


def _balanced_effect(
    effect: ArmEffect, sums: TrialSums, place: MetricColumns, rule: tuple[BalanceRule, float]
) -> ArmEffect:
    """Interval and p-value of an effect whose arms were dealt until covariates were balanced.

    The error stays that of a trial that is dealt once, and so does the relative interval, which is then too wide.
    """
    balanced, level = rule
    for name in balanced.covariates:
        if name not in sums.columns:
            raise ConfigError(f"column {name!r}, by which arms were balanced, is not there: {hint(name, sums.columns)}")
    pairs = [(sums.columns.index(name), None) for name in balanced.covariates]
    every = replace(place, covariates=tuple(dict.fromkeys([*place.covariates, *pairs])))
    n, more = float(sums.moments.n.sum()), len(every.covariates) - len(place.covariates)
    left = (arm_effect(sums.moments, every).error / effect.error) ** 2 * (n - 1) / max(n - 1 - more, 1.0)
    explained, freedom = float(np.clip(1 - left, 0.0, 1.0)), float(effect.freedom)
    if not math.isfinite(float(effect.error)):
        return effect
    half = balanced.quantile(level, explained, freedom) * effect.error
    p_value = balanced.tail(np.abs(effect.effect / effect.error), explained, freedom)
    return replace(effect, lower=effect.effect - half, upper=effect.effect + half, p_value=p_value)


def _row(effect: ArmEffect, names: tuple[str, str, str], saved: float) -> MetricReadout:
    figures = {key: float(value) for key, value in vars(effect).items() if key in MetricReadout.__dataclass_fields__}
    metric, role, arm = names
    return MetricReadout(metric, role, arm, **figures, p_adjusted=math.nan, saved=saved, status="open")


def _adjusted(rows: list[MetricReadout], p_values: np.ndarray, multiplicity: str) -> list[MetricReadout]:
    """Adjust p-values: the primary's arms are one family, secondary metrics and their arms another; guardrails must all
    hold, so none of them may raise the level of the others."""
    adjusted = p_values.copy()
    roles = np.array([row.role for row in rows])
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {"holm": holm, "bh": false_discovery, "none": np.copy}
    adjusted[roles == PRIMARY] = holm(p_values[roles == PRIMARY])
    adjusted[roles == SECONDARY] = ways[multiplicity](p_values[roles == SECONDARY])
    adjusted[roles == COMPLIER] = holm(p_values[roles == COMPLIER])
    return [
        replace(row, p_value=float(p), p_adjusted=float(a)) for row, p, a in zip(rows, p_values, adjusted, strict=True)
    ]


def _status(row: MetricReadout, metric: ReadoutMetric, alpha: float) -> str:
    if row.role != GUARDRAIL:
        if not row.p_adjusted <= alpha:
            return "open"
        return "better" if row.effect * metric.sign > 0 else "worse"
    absolute = metric.margin_of == "absolute"
    low, high = (row.lower, row.upper) if absolute else (row.relative_lower, row.relative_upper)
    worst, best = (low, high) if metric.sign > 0 else (-high, -low)
    margin = metric.margin or 0.0
    if worst > -margin:
        return "safe"
    return "harmed" if best < -margin else "open"


_LEAST_DAYS, _LEAST_UNITS = 14, 100


def _effect_over_time(
    sums: TrialSums, metrics: Sequence[ReadoutMetric], limits: HealthLimits
) -> Iterator[HealthFinding]:
    """Warn where the primary metric's effect on those who came early is another than on those who came late."""
    days = 0 if sums.by_day is None else sums.by_day.n.shape[1]
    if sums.by_day is None or days < _LEAST_DAYS:
        return
    (primary,) = (metric for metric in metrics if metric.role == PRIMARY)
    halves = [sums.by_day[:, part].sum(1) for part in (slice(0, days // 2), slice(days // 2, days))]
    if min(half.n.min() for half in halves) < _LEAST_UNITS:
        return
    for arm in range(1, len(sums.arms)):
        early, late = (arm_effect(half[[0, arm]][:, None], sums.placed(primary)) for half in halves)
        change = float(late.effect - early.effect)
        error = math.hypot(float(early.error), float(late.error))
        p_value = 2 * float(norm.sf(abs(change) / error)) if error > 0 else math.nan
        if p_value * (len(sums.arms) - 1) < limits.alpha:
            yield HealthFinding(
                *("effect_over_time", WARN, change, 0.0),
                f"arm {sums.arms[arm]} changes {primary.name} by {float(early.effect):+.4g} for units of the first "
                f"{days // 2} days and by {float(late.effect):+.4g} for those after (p = {p_value:.2g}): the mean is "
                "not what stays; run on until it settles, and read the later units by themselves",
                p_value,
            )


def effects_by_day(sums: TrialSums, metric: ReadoutMetric, design: ReadoutDesign) -> pd.DataFrame:
    """Effect of each arm by the units that had come by each day, as a trial that is read daily would show it.

    Args:
        sums: With moments by day.
        metric: Which one.
        design: Its rule sets the intervals: at each day those of a reading that day, after the planned ones before it.

    Returns:
        Rows of day (from 1), arm, effect, lower, upper, plain_lower, plain_upper (of a single reading at alpha); days
        on which an arm has fewer than two units or nothing varies are left out.

    Raises:
        ConfigError: There are no moments by day, or a column is missing.
    """
    if sums.by_day is None:
        raise ConfigError("the sums have no days: name the column of the day")
    place, rule, days = sums.placed(metric), design.stopping, sums.by_day.n.shape[1]
    rows = []
    for day in range(1, days + 1):
        so_far = sums.by_day[:, :day].sum(1)
        units = float(so_far.n.sum())
        planned = design.planned_units or float(sums.by_day.n.sum())
        fraction = min(1.0, units / planned)
        fractions = (*(one for one in rule.analyses if one < fraction), fraction)
        if so_far.n.min() < 2:
            continue
        level = rule.level(fractions, units, planned)
        for arm in range(1, len(sums.arms)):
            pair = so_far[[0, arm]][:, None]
            wide, plain = arm_effect(pair, place, max(level, 1e-300)), arm_effect(pair, place, rule.alpha)
            ends = (wide.lower, wide.upper, plain.lower, plain.upper)
            rows.append((day, sums.arms[arm], float(plain.effect), *map(float, ends)))
    names = ["day", "arm", "effect", "lower", "upper", "plain_lower", "plain_upper"]
    return pd.DataFrame(rows, columns=names).dropna(subset=["plain_lower"])


# --------------------------------------------------------------------------------------------------------------------
# The verdict.


def _verdict(rows: Sequence[MetricReadout], facts: TrialFacts, design: ReadoutDesign) -> ReadoutVerdict:
    """Ship the best arm that gains and harms nothing; else go on while an arm is open and the trial not over."""
    primary = {row.arm: row for row in rows if row.role == PRIMARY}
    guards = {arm: [row for row in rows if row.role == GUARDRAIL and row.arm == arm] for arm in primary}
    harmed = {arm for arm in primary if any(row.status == "harmed" for row in guards[arm])}
    unsure = {arm for arm in primary if any(row.status == "open" for row in guards[arm])}
    gains = [arm for arm, row in primary.items() if row.status == "better" and arm not in harmed]
    safe = [arm for arm in gains if arm not in unsure]
    if safe:
        best = max(safe, key=lambda arm: abs(primary[arm].effect))
        others = sorted(set(gains) - {best})
        beside = f"; {', '.join(others)} also gain" if others else ""
        return ReadoutVerdict(SHIP, _shown(primary[best]) + beside, best)
    out = [arm for arm in primary if arm in harmed or primary[arm].status == "worse"]
    reasons = [_out(primary[arm], [row for row in guards[arm] if row.status == "harmed"]) for arm in out]
    if len(out) == len(primary):
        return ReadoutVerdict(ROLL_BACK, "; ".join(reasons))
    over = _is_over(facts, design)
    still = [
        _open(row, [guard for guard in guards[arm] if guard.status == "open"], over)
        for arm, row in primary.items()
        if arm not in out
    ]
    days = None if over else _days_left(facts, design)
    return ReadoutVerdict(ROLL_BACK if over else KEEP_GOING, "; ".join([*still, *reasons]), days_left=days)


def _shown(row: MetricReadout) -> str:
    share = f" ({row.relative:+.2%})" if math.isfinite(row.relative) else ""
    return (
        f"{row.metric} {row.effect:+.5g}{share}, between {row.lower:+.5g} and {row.upper:+.5g}, p = "
        f"{row.p_adjusted:.2g}"
    )


def _out(row: MetricReadout, harmed: Sequence[MetricReadout]) -> str:
    if not harmed:
        return f"arm {row.arm} makes it worse: {_shown(row)}"
    return f"arm {row.arm} harms guardrail {_shown(harmed[0])}, beyond its margin"


def _open(row: MetricReadout, unsure: Sequence[MetricReadout], over: bool) -> str:
    if row.status == "better" and unsure:
        return f"arm {row.arm} gains, but guardrail {_shown(unsure[0])} is not shown to hold its margin"
    return f"arm {row.arm} shows no gain{'' if over else ' yet'}: {_shown(row)}"


def _is_over(facts: TrialFacts, design: ReadoutDesign) -> bool:
    """Whether the trial has ended, or has all that was planned; a fixed trial without a plan has no other end."""
    if facts.at_end:
        return True
    units, days = design.planned_units, design.planned_days
    if design.stopping.kind != "fixed":
        return facts.total >= (units or math.inf)
    # As in `health`: an arm or a day may bring a few units less than planned.
    reached = [facts.total >= 0.95 * units] if units else []
    reached += [(facts.days or 0) >= days] if days else []
    return bool(reached) and all(reached)


def _days_left(facts: TrialFacts, design: ReadoutDesign) -> int | None:
    """Days until the planned units, at the traffic so far."""
    if not facts.days or not design.planned_units:
        return None
    return max(1, math.ceil((design.planned_units - facts.total) * facts.days / facts.total))
