"""Whether a trial may be read: findings that refuse a readout, or warn of one, each with its figure and its remedy.

All checks work on counts and sums (`TrialFacts`), which one pass over the units gives, whatever the engine. A check
refuses only what is both beyond chance and large enough to matter: at ten million units everything is beyond chance,
and of two users nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import chi2, f, norm

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.rerandomise import BalanceRule
from uplift_spark.experiments.sequential import StoppingRule, sequential_ratio_p
from uplift_spark.roles import UNIT, checked_shares
from uplift_spark.stats.findings import Finding
from uplift_spark.stats.moments import CrossMoments
from uplift_spark.stats.tests import false_discovery, unreached_arms

REFUSE, WARN = "refuse", "warn"


@dataclass(frozen=True)
class HealthLimits:
    """From where on a finding is one.

    alpha        level of each test; a clean trial is refused with at most a few times this probability
    feature_rate false discoveries among the features that are named as out of balance
    ratio        deviation of an arm's units from its designed share of them, over that share
    least        units that each arm needs before its ratio says anything
    twice        share of the units that are in two arms
    foreign      share of the units in arms that have no share
    balance      standardised difference of a covariate between two arms
    propensity   deviation of Σ1/p from the units, over the units
    delivered    points by which an arm is delivered less than the others: a warning
    undelivered  the same, refused
    treated      share of the control that got a treatment
    immature     share of the units whose outcome is not complete yet
    overlap      dependence on another trial's arms (Cramér's V)
    days         least days, a week
    """

    alpha: float = 0.001
    feature_rate: float = 0.01
    ratio: float = 0.005
    least: int = 8
    twice: float = 0.01
    foreign: float = 0.001
    balance: float = 0.005
    propensity: float = 0.01
    delivered: float = 0.02
    undelivered: float = 0.2
    treated: float = 0.01
    immature: float = 0.01
    overlap: float = 0.01
    days: int = 7


@dataclass(frozen=True)
class ReadoutDesign:
    """What was laid down before the first unit came; a readout is held to it.

    shares         {arm: share}, control first; an arm of share 0 gets no units
    planned_units  units of the whole trial, all arms; clusters, where clusters are randomised
    planned_days   days of the whole trial
    stopping       when it may be read
    randomised     column of the unit that was randomised: what rows of the sums are
    multiplicity   'holm' (any false alarm) or 'bh' (share of false among the discoveries) over secondary metrics and
                   their arms, or 'none'; the primary metric's arms always share one level (Holm)
    balanced       by which covariates arms were dealt anew, if they were; the sums have their columns

    Raises ConfigError when shares do not add up, or parts do not fit.
    """

    shares: Mapping[str, float]
    planned_units: float | None = None
    planned_days: int | None = None
    stopping: StoppingRule = field(default_factory=StoppingRule)
    randomised: str = UNIT
    multiplicity: str = "bh"
    balanced: BalanceRule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", checked_shares(self.shares, "the trial", least=0.0))
        if len(self.open_arms) < 2 or self.shares[next(iter(self.shares))] == 0:
            raise ConfigError("a trial has a control with a share and at least one other arm with one: give both")
        if self.multiplicity not in ("holm", "bh", "none"):
            raise ConfigError(f"multiplicity {self.multiplicity!r} is unknown: use holm, bh or none")
        if self.stopping.kind != "fixed" and not self.planned_units:
            raise ConfigError(f"a trial of kind {self.stopping.kind} needs planned_units: its looks are shares of them")
        if self.balanced is not None and len(self.open_arms) > 2:
            raise ConfigError("a re-randomised trial has two arms: drop the others, or read it without `balanced`")
        if self.planned_units is not None and not self.planned_units > 0:
            raise ConfigError(f"planned_units are {self.planned_units:g}: a trial needs some")

    @property
    def control(self) -> str:
        """The first arm."""
        return next(iter(self.shares))

    @property
    def open_arms(self) -> tuple[str, ...]:
        """Arms that have a share."""
        return tuple(arm for arm, share in self.shares.items() if share > 0)

    def fractions(self, facts: TrialFacts) -> tuple[float, ...]:
        """Share of the planned units at each look so far, this one last; the last of all has the whole."""
        whole = facts.at_end or not self.planned_units
        return (*facts.earlier, 1.0 if whole else min(1.0, facts.total / (self.planned_units or 1.0)))


@dataclass(frozen=True)
class PropensitySums:
    """Of the units in one arm: their count, Σ1/p and Σ1/p² of the logged propensity of that arm."""

    units: float
    inverse: float
    inverse_square: float


@dataclass(frozen=True)
class TrialFacts:
    """Counts and sums of a trial. What is None was not measured, and its check does not run.

    units         {arm: randomised units}, without those in two arms; arms outside the design included
    by_day        {arm: new units on each day of the trial}, for the sequential test
    twice         units in two arms
    covariates    moments of what no arm can have moved, [arms with a share], in the order of the design
    names         the covariates' names
    delivered     {arm: (units reached, units assigned)} of the arms other than the control
    treated       units of the control that received a treatment
    propensities  {arm: sums}
    immature      units whose outcome is not complete
    days          days from the first assignment to the last complete outcome
    earlier       share of the planned units at each look before this one
    at_end        whether assignment has ended
    crossings     {other trial: units by arm of this trial and of that one, [arms, arms]}
    same_salt     earlier trials with the same salt
    analysed      column of the unit that a row of the sums is
    """

    units: Mapping[str, float]
    by_day: Mapping[str, Sequence[float]] | None = None
    twice: int = 0
    covariates: CrossMoments | None = None
    names: tuple[str, ...] = ()
    delivered: Mapping[str, tuple[int, int]] | None = None
    treated: int | None = None
    propensities: Mapping[str, PropensitySums] | None = None
    immature: int | None = None
    days: int | None = None
    earlier: tuple[float, ...] = ()
    at_end: bool = False
    crossings: Mapping[str, np.ndarray] = field(default_factory=dict)
    same_salt: tuple[str, ...] = ()
    analysed: str | None = None

    @property
    def total(self) -> float:
        """Units of all arms."""
        return float(sum(self.units.values()))


class HealthFinding(Finding):
    """One thing that is wrong with a trial; its severity is 'refuse' or 'warn'."""


def health_findings(
    facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits | None = None
) -> list[HealthFinding]:
    """All that is wrong with a trial, what refuses a readout first.

    Args:
        facts: Counts and sums.
        design: What was laid down.
        limits: From where on a finding is one.

    Returns:
        Findings; none of a clean trial.

    Raises:
        DataError: No unit is in the trial.
        ConfigError: The look comes after the last one.
    """
    limits = limits or HealthLimits()
    if not facts.total > 0:
        raise DataError("no unit is in the trial: check the campaign's name and the days that are read")
    checks = (
        _sample_ratio, _foreign_arms, _two_arms, _covariate_balance, _delivery, _treated_control, _propensities,
        _maturity, _length, _unplanned, _carry_over, _unit_of_analysis,
    )  # fmt: skip
    findings = [one for check in checks for one in check(facts, design, limits)]
    return sorted(findings, key=lambda one: one.severity != REFUSE)


def arm_faults(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits | None = None) -> list[HealthFinding]:
    """What says that the arms are not what the design makes, whenever the trial is looked at, also after its end.

    Args:
        facts: Counts and sums.
        design: What was laid down.
        limits: From where on a finding is one.

    Returns:
        Findings that refuse a readout; those about reading the trial, such as one that is read too early, are left out.
    """
    limits = limits or HealthLimits()
    checks = (_sample_ratio, _foreign_arms, _two_arms, _covariate_balance, _propensities)
    return [one for check in checks for one in check(facts, design, limits) if one.severity == REFUSE]


# --------------------------------------------------------------------------------------------------------------------
# Who is in which arm.


def _sample_ratio(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    arms = design.open_arms
    counts = np.array([facts.units.get(arm, 0.0) for arm in arms], float)
    shares = np.array([design.shares[arm] for arm in arms])
    usual = counts.sum() * shares
    if usual.min() < limits.least:
        return
    p_value = float(chi2.sf(((counts - usual) ** 2 / usual).sum(), len(arms) - 1))
    if facts.by_day is not None:
        days = np.array([np.asarray(facts.by_day.get(arm, 0.0), float) for arm in arms]).T
        # Both tests have the level alpha; the sequential one sees a splitter that broke and was mended.
        p_value = min(p_value, sequential_ratio_p(days, shares))
    off = counts / usual - 1
    worst = int(np.argmax(np.abs(off)))
    if p_value >= limits.alpha or abs(off[worst]) <= limits.ratio:
        return
    shown = ", ".join(f"{arm} {count:,.0f}" for arm, count in zip(arms, counts, strict=True))
    yield HealthFinding(
        *("sample_ratio", REFUSE, float(off[worst]), limits.ratio),
        f"arm {arms[worst]} has {off[worst]:+.2%} of the units that its share of {shares[worst]:g} means ({shown}; "
        f"p = {p_value:.2g}): find where units are lost or added after assignment, such as redirects, crashes, bots or "
        "filters, mend it and start again with a new salt",
        p_value,
    )


def _foreign_arms(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    for arm, count in facts.units.items():
        if count and design.shares.get(arm, 0.0) == 0:
            share = count / facts.total
            yield HealthFinding(
                *("no_share", REFUSE if share >= limits.foreign and count >= limits.least else WARN),
                *(share, limits.foreign),
                f"{count:,.0f} units ({share:.2%}) are in arm {arm!r}, which has no share in the design: find what "
                "assigns them, or declare the arm",
            )


def _two_arms(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    if facts.twice:
        share = facts.twice / (facts.total + facts.twice)
        yield HealthFinding(
            *("two_arms", REFUSE if share >= limits.twice and facts.twice >= limits.least else WARN),
            *(share, limits.twice),
            f"{facts.twice:,} units ({share:.2%}) are in two arms and left out: assign by one id that lasts, and do "
            "not change shares under the same salt",
        )


def _covariate_balance(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    sums = facts.covariates
    if sums is None or sums.n.min() < limits.least:
        return
    joint, single = balance_test(sums)
    gaps = standardised_gaps(sums)
    out = (false_discovery(single) <= limits.feature_rate) & (gaps > limits.balance)
    if not joint < limits.alpha or not gaps.max() > limits.balance:
        return
    order = [int(v) for v in np.argsort(single) if out[v]][:5] or [int(np.argmax(gaps))]
    shown = ", ".join(f"{facts.names[v]} by {gaps[v]:.3f} sd" for v in order)
    yield HealthFinding(
        *("covariate_balance", REFUSE, float(gaps.max()), limits.balance),
        f"arms differ before the treatment in {shown} (all covariates together: p = {joint:.2g}): units were lost "
        "after assignment, or a covariate was measured after it; check both, or randomise again with a new salt",
        joint,
    )


def balance_test(sums: CrossMoments) -> tuple[float, np.ndarray]:
    """Whether covariates' means are alike in all arms.

    Args:
        sums: Moments of V covariates, [arms].

    Returns:
        (p-value of all together, Wilks' lambda with Rao's F, exact for two arms; p-values of each, [V], NaN of one
        that does not vary).
    """
    arms, pooled = len(sums.n), sums.sum(0)
    within = sums.products.sum(axis=0)
    freedom = float(pooled.n) - arms
    total, inside = np.diagonal(pooled.products), np.diagonal(within)
    noise = 1e-20 * float(pooled.n) * pooled.mean**2  # of sums of a constant
    varies = inside > np.maximum(1e-12 * total, noise)
    split = ~varies & (total > noise)  # constant within every arm, and not the same in all
    single = np.where(split, 0.0, np.nan)
    between = (total - inside)[varies] / (arms - 1)
    single[varies] = f.sf(np.maximum(between, 0) / (inside[varies] / freedom), arms - 1, freedom)
    if split.any() or not varies.any():
        return (0.0 if split.any() else 1.0), single
    scale = np.sqrt(inside[varies])
    e = within[np.ix_(varies, varies)] / np.outer(scale, scale)
    h = pooled.products[np.ix_(varies, varies)] / np.outer(scale, scale) - e
    # Directions in which covariates do not vary, such as a sum of others, say nothing.
    size, axes = np.linalg.eigh(e)
    basis = axes[:, size > 1e-9 * size.max()]
    e, h = basis.T @ e @ basis, basis.T @ h @ basis
    rank = len(e)
    if freedom <= rank:
        return 1.0, single
    log_wilks = -float(np.linalg.slogdet(np.eye(rank) + np.linalg.solve(e, h))[1])
    return _wilks_p(log_wilks, rank, arms - 1, freedom), single


def _wilks_p(log_wilks: float, p: int, q: int, freedom: float) -> float:
    """Rao's F of Wilks' lambda (Rao 1951): exact where p or q is 1 or 2."""
    below = p * p + q * q - 5
    power = math.sqrt((p * p * q * q - 4) / below) if below > 0 else 1.0
    second = (freedom + q - (p + q + 1) / 2) * power - (p * q - 2) / 2
    statistic = math.expm1(-log_wilks / power) * second / (p * q)
    return float(f.sf(max(0.0, statistic), p * q, second))


def standardised_gaps(sums: CrossMoments) -> np.ndarray:
    """Largest difference of each covariate's means between two arms, in standard deviations, [V].

    Args:
        sums: Moments of V covariates, [arms].

    Returns:
        Differences, [V]; 0 of a constant, infinite of what is constant within every arm and differs between them.
    """
    freedom = max(1.0, float(sums.n.sum()) - len(sums.n))
    spread = np.sqrt(np.diagonal(sums.products.sum(axis=0)) / freedom)
    gap = sums.mean.max(axis=0) - sums.mean.min(axis=0)
    noise = 1e-10 * np.abs(sums.mean).max(axis=0)
    return np.divide(gap, spread, out=np.where(gap > noise, np.inf, 0.0), where=spread > noise)


# --------------------------------------------------------------------------------------------------------------------
# What happened to them.


def _delivery(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    if facts.delivered is None:
        return
    for arm, (reached, assigned) in facts.delivered.items():
        if reached > assigned:
            raise DataError(f"arm {arm!r} reached {reached:,} of {assigned:,} units: count each delivered unit once")
    for one in unreached_arms(facts.delivered, limits.alpha, limits.delivered):
        gap = one.others - one.rate
        yield HealthFinding(
            *("delivery", REFUSE if gap > limits.undelivered else WARN, gap, limits.delivered),
            f"arm {one.arm} was delivered to {one.rate:.1%} of its units, the others to {one.others:.1%} "
            f"(p = {one.p_value:.2g}): mend the arm's delivery; effects of the assignment stay true but small, so read "
            "the complier effect beside them",
            one.p_value,
        )


def _treated_control(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    control = facts.units.get(design.control, 0.0)
    if facts.treated and control and facts.treated / control > limits.treated:
        share = facts.treated / control
        yield HealthFinding(
            *("treated_control", WARN, share, limits.treated),
            f"{facts.treated:,} units of the control ({share:.1%}) received a treatment: keep them out of other "
            "channels, and read the complier effect beside that of the assignment",
        )


def _propensities(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    """Σ1/p over an arm's units estimates all units; its variance by Σ1/p² - Σ1/p."""
    if facts.propensities is None:
        return
    total = sum(facts.units.get(arm, 0.0) for arm in design.open_arms)
    for arm, sums in facts.propensities.items():
        if design.shares.get(arm, 0.0) == 0 or sums.units < limits.least:
            continue
        mean, share = sums.units / sums.inverse, design.shares[arm]
        if abs(mean / share - 1) <= limits.propensity:
            continue  # the design's own propensities: what is left is the sample ratio's
        off = sums.inverse / total - 1
        error = math.sqrt(max(sums.inverse_square - sums.inverse, 0.0)) / total
        p_value = 2 * float(norm.sf(abs(off) / error)) if error > 0 else float(abs(off) < 1e-9)
        if p_value * len(facts.propensities) >= limits.alpha or abs(off) <= limits.propensity:
            continue
        yield HealthFinding(
            *("propensity", REFUSE, off, limits.propensity),
            f"logged propensities of arm {arm} stand for {sums.inverse:,.0f} of {total:,.0f} units ({off:+.1%}, mean "
            f"{mean:.3g} where the design has {share:g}): log the probability that the assignment used, "
            "or correct the design's shares",
            p_value,
        )


def _maturity(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    if facts.immature:
        share = facts.immature / facts.total
        yield HealthFinding(
            *("maturity", REFUSE if share > limits.immature else WARN, share, limits.immature),
            f"outcomes of {facts.immature:,} units ({share:.1%}) are not complete yet: leave these units out, or wait "
            "until their window has passed",
        )


def _length(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    if facts.days is None:
        return
    if facts.days < limits.days:
        yield HealthFinding(
            *("too_short", REFUSE, float(facts.days), float(limits.days)),
            f"the trial covers {facts.days} days: wait for {limits.days}, since weekdays differ",
        )
    elif facts.days % 7 and facts.at_end:
        yield HealthFinding(
            *("whole_weeks", WARN, float(facts.days), float(7 * (facts.days // 7 + 1))),
            f"the trial covers {facts.days} days, no whole weeks: some weekdays count more; "
            f"end it after {7 * (facts.days // 7 + 1)} days",
        )
    fixed = design.stopping.kind == "fixed"
    if fixed and design.planned_days and facts.at_end and facts.days < design.planned_days:
        yield HealthFinding(
            *("ended_early", REFUSE, float(facts.days), float(design.planned_days)),
            f"the trial ended after {facts.days} of {design.planned_days} planned days: let it run, or plan looks "
            "beforehand (group_sequential or anytime)",
        )


def _unplanned(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    """A fixed trial is read once, at its end; a group-sequential one at about the planned shares of its units."""
    rule, fractions = design.stopping, design.fractions(facts)
    share = fractions[-1]
    if rule.kind == "anytime":
        return
    if rule.kind == "fixed":
        # An arm or a day may bring a few units less than planned: that is no look before the end.
        early = design.planned_units is not None and share < 0.95 and not facts.at_end
        days, planned_days = facts.days or 0, design.planned_days
        early |= planned_days is not None and facts.days is not None and days < planned_days and not facts.at_end
        if early:
            has = [f"{days} of {planned_days} planned days"] if planned_days else []
            has += [f"{facts.total:,.0f} of {design.planned_units:,.0f} planned units"] if design.planned_units else []
            yield HealthFinding(
                *("unplanned_look", REFUSE, share if design.planned_units else days / (planned_days or 1), 1.0),
                f"the trial has {' and '.join(has)}, and its design has no look before the end: wait, or declare "
                "stopping group_sequential or anytime first",
            )
        return
    if len(fractions) > len(rule.analyses):
        raise ConfigError(
            f"this is look {len(fractions)} of {len(rule.analyses)} planned: the trial ended with the last; keep its "
            "readout"
        )
    if len(fractions) > 1 and fractions[-2] >= 1:
        raise ConfigError("the trial's last look has been: its readout stands; start a new trial to go on")
    planned = rule.analyses[len(fractions) - 1]
    # Traffic never gives a share to the digit; the bound follows the real one (Lan and DeMets 1983).
    gap = min([*np.diff([0.0, *rule.analyses])]) / 2
    if abs(fractions[-1] - planned) > gap + 1e-9 and not facts.at_end:
        yield HealthFinding(
            *("unplanned_look", REFUSE, fractions[-1], planned),
            f"look {len(fractions)} comes at {fractions[-1]:.0%} of the units and is planned at {planned:.0%}: looks "
            "must not follow from the results; wait for the planned share, or declare stopping anytime",
        )


def _carry_over(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    for other in facts.same_salt:
        yield HealthFinding(
            *("carry_over", REFUSE, 1.0, 0.0),
            f"trial {other} had the same salt, so the same units are treated again: start with a new salt",
        )
    for other, table in facts.crossings.items():
        strength, p_value = association(table)
        if p_value < limits.alpha and strength > limits.overlap:
            yield HealthFinding(
                *("carry_over", REFUSE, strength, limits.overlap),
                f"arms depend on those of trial {other} (Cramér's V {strength:.3f}, p = {p_value:.2g}): its effects "
                "carry over into this one; give each trial a salt of its own",
                p_value,
            )


def _unit_of_analysis(facts: TrialFacts, design: ReadoutDesign, limits: HealthLimits) -> Iterator[HealthFinding]:
    if facts.analysed is not None and facts.analysed != design.randomised:
        yield HealthFinding(
            *("unit_of_analysis", REFUSE, 1.0, 0.0),
            f"rows are of {facts.analysed}, but {design.randomised} was randomised, so errors would be too small: add "
            f"up to one row a {design.randomised}",
        )


def association(table: np.ndarray) -> tuple[float, float]:
    """Cramér's V and the chi-square p-value of a table of counts, [a, b].

    Args:
        table: Units by two classifications.

    Returns:
        (V, p); (0, 1) where a side has one class only or a cell is too rare for the test.
    """
    counts = np.asarray(table, float)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        return 0.0, 1.0
    usual = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    if usual.min() < 5:
        return 0.0, 1.0
    statistic = float(((counts - usual) ** 2 / usual).sum())
    least = min(counts.shape) - 1
    return math.sqrt(statistic / counts.sum() / least), float(chi2.sf(statistic, least * (max(counts.shape) - 1)))
