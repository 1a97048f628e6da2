"""A challenger against the champion on two equal slices of the units: sums, tests, a verdict in words. No Spark.

A unit's slice comes from the salted hash of its id, so the slices are alike and run at the same time. What happens in
them is kept as sums over units, which add. Requests of one unit are not independent of each other, so every share is a
ratio of two sums over units, whose error the delta method gives.

Each check has a confidence sequence of its own, which holds at every look at once: a canary may be read every hour. A
check is `safe` when the challenger is worse by less than the margin, `worse` when it is worse and that by more than the
margin may well be, and else `open`. One check that is worse rolls back; only checks that are all safe promote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from uplift_spark.errors import DataError
from uplift_spark.experiments.assignment import Experiment
from uplift_spark.experiments.sequential import sequence_width, sequential_ratio_p
from uplift_spark.sections.canary import CanaryConf, CanaryVerdict

CHAMPION_SLICE, CHALLENGER_SLICE, REST = "champion", "challenger", "rest"
CANARY_CHECKS = ("errors", "latency", "delivery", "opt_outs", "outcome")
"""What a challenger is compared by; the level of a canary is shared among all of them, measured or not."""

CanaryCheckState = Literal["safe", "worse", "open"]

_FEWEST_EVENTS = 10  # in both slices together: under so many a check does not call anything worse
_TESTS = len(CANARY_CHECKS) + 1  # the outcome has two: of its mean, and of the units that have any
_WORDS = {
    "errors": "requests that fail",
    "latency": "slow requests",
    "delivery": "treated units that were not reached",
    "opt_outs": "units that withdrew their consent",
    "outcome": "outcome per unit",
}


def canary_design(salt: str, share: float) -> Experiment:
    """Lay down the slices of a canary.

    Args:
        salt: The canary's own: another canary has other slices.
        share: of the units in each of the two slices, up to .5.

    Returns:
        The design, whose arms `assignment.assign` gives in Python and `assignment.assignment_sql` in SQL.
    """
    rest = 1.0 - 2 * share
    arms = {CHAMPION_SLICE: share, CHALLENGER_SLICE: share}
    if rest < 1e-9:
        return Experiment(salt, {CHAMPION_SLICE: 0.5, CHALLENGER_SLICE: 0.5})
    return Experiment(salt, {**arms, REST: rest})


# --------------------------------------------------------------------------------------------------------------------
# Sums of a slice, and how much worse the challenger is.


@dataclass(frozen=True)
class SliceSums:
    """Sums over the units of a slice, each a number or an array of many canaries at once; they add.

    units   units that count
    events  units whose value is not 0
    value   Σ value, such as a unit's failed requests
    per     Σ of what the value is of, such as a unit's requests
    vv, vp, pp  sums of their products
    """

    units: np.ndarray | float = 0.0
    events: np.ndarray | float = 0.0
    value: np.ndarray | float = 0.0
    per: np.ndarray | float = 0.0
    vv: np.ndarray | float = 0.0
    vp: np.ndarray | float = 0.0
    pp: np.ndarray | float = 0.0

    def __add__(self, other: SliceSums) -> SliceSums:
        return SliceSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @classmethod
    def of_share(cls, events: np.ndarray | float, n: np.ndarray | float) -> SliceSums:
        """Sums of units of which each counts once, as so many of n do."""
        return cls(n, events, events, n, events, events, n)

    @property
    def ratio(self) -> np.ndarray:
        """Σ value / Σ per; NaN without any."""
        per = np.asarray(self.per, np.float64)
        return np.asarray(self.value, np.float64) / np.where(per > 0, per, np.nan)

    def variance(self, factor: np.ndarray | float, bounded: bool) -> np.ndarray:
        """Variance of the ratio; of a share (`bounded`) at least that of Wilson's middle, which no event still has."""
        ratio, per = self.ratio, np.maximum(np.asarray(self.per, np.float64), 1e-300)
        units = np.maximum(np.asarray(self.units, np.float64), 1.0)
        spread = np.maximum(0.0, self.vv - 2 * ratio * self.vp + ratio**2 * np.asarray(self.pp))
        variance = spread / per**2 * units / np.maximum(units - 1, 1)
        if not bounded:
            return np.asarray(variance)
        square = np.asarray(factor) ** 2
        middle = (np.clip(ratio, 0, 1) * units + square / 2) / (units + square)
        return np.asarray(np.maximum(variance, middle * (1 - middle) / (units + square)))


@dataclass(frozen=True)
class Harm:
    """How much worse the challenger is: difference of ratios, positive for worse, with its confidence sequence."""

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    width: np.ndarray


def harm_of(
    champion: SliceSums, challenger: SliceSums, conf: CanaryConf, more_is_worse: bool = True, bounded: bool = True
) -> Harm:
    """Compare the slices at a look; valid at all looks together.

    Args:
        champion: Its sums so far.
        challenger: Its sums so far.
        conf: Level, and units at which the sequence is narrowest.
        more_is_worse: Whether a larger ratio is worse.
        bounded: Whether the ratio is a share.

    Returns:
        The harm, float64 of the shape of the sums; NaN where a slice has no unit.
    """
    # The level is shared among the tests; a sequence has two sides, and harm is on one of them.
    level = 2 * conf.alpha / _TESTS
    units = np.asarray(champion.units, np.float64) + np.asarray(challenger.units, np.float64)
    width = np.asarray(_widths(np.maximum(units, 1.0), float(conf.tuned_for), level))
    error = np.sqrt(champion.variance(width, bounded) + challenger.variance(width, bounded))
    value = (challenger.ratio - champion.ratio) * (1.0 if more_is_worse else -1.0)
    return Harm(value, value - width * error, value + width * error, width * error)


_widths = np.vectorize(sequence_width, otypes=[float])


def check_states(
    check: str, champion: SliceSums, challenger: SliceSums, conf: CanaryConf, decrease: bool = False
) -> tuple[Harm, np.ndarray, np.ndarray]:
    """Read a check of one canary, or of many at once.

    Args:
        check: One of CANARY_CHECKS; `delivery` counts units that were not reached.
        champion: Its sums.
        challenger: Its sums.
        conf: Margins, level, fewest units.
        decrease: Whether less of the outcome is better.

    Returns:
        (harm, harm that does not matter in the unit of the ratio, state `safe`, `worse` or `open`), each of the shape
        of the sums. Few units or events are `open`, whatever the figures are. An error from a handful of outcomes is
        none: where a slice has hardly any, the shares of units with an outcome tell whether it is worse.
    """
    outcome = check == "outcome"
    harm = harm_of(champion, challenger, conf, not outcome or decrease, not outcome)
    margin = np.asarray(getattr(conf.margins, check) * (np.abs(champion.ratio) if outcome else 1.0))
    enough = np.minimum(champion.units, challenger.units) >= conf.min_units
    events = np.asarray(champion.events) + np.asarray(challenger.events)
    with np.errstate(invalid="ignore"):
        safe, worse = harm.upper <= margin, harm.lower > 0
        if outcome:
            handful = np.minimum(champion.events, challenger.events) < _FEWEST_EVENTS
            ours, theirs = (SliceSums.of_share(one.events, one.units) for one in (challenger, champion))
            apart = harm_of(theirs, ours, conf, decrease)
            worse = np.where(handful, (apart.lower > 0) & (harm.value > 0), worse)
            safe = safe & ~handful
    worse = worse & ~safe & (events >= _FEWEST_EVENTS)
    states = np.where(enough & safe, "safe", np.where(enough & worse, "worse", "open"))
    return harm, margin, states


# --------------------------------------------------------------------------------------------------------------------
# One canary: what was measured, and what follows.


@dataclass(frozen=True)
class CanaryEvidence:
    """What is known of a canary at a look.

    sums      {check: (champion's, challenger's)}, of checks that can be measured; one that the campaign needs and that
              has no data yet has sums of 0
    assigned  units planned in the champion's slice and in the challenger's
    decrease  whether less of the outcome is better
    not_measured  {check: why this campaign cannot be compared by it}
    """

    sums: Mapping[str, tuple[SliceSums, SliceSums]]
    assigned: tuple[int, int]
    decrease: bool = False
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CanaryCheck:
    """A check at a look: state, sentence, and figures for the table."""

    check: str
    state: CanaryCheckState
    sentence: str
    champion: float
    challenger: float
    harm: float
    lower: float
    upper: float
    units: int


def read_check(
    check: str, champion: SliceSums, challenger: SliceSums, conf: CanaryConf, decrease: bool = False
) -> CanaryCheck:
    """Read one check.

    Args:
        check: One of CANARY_CHECKS; `delivery` counts units that were not reached.
        champion: Its sums.
        challenger: Its sums.
        conf: Margins and level.
        decrease: Whether less of the outcome is better.

    Returns:
        The reading.
    """
    harm, margin, state = check_states(check, champion, challenger, conf, decrease)
    units = min(float(champion.units), float(challenger.units))
    reading = CanaryCheck(
        check, str(state), "",  # type: ignore[arg-type]
        champion=float(champion.ratio), challenger=float(challenger.ratio), harm=float(harm.value),
        lower=float(harm.lower), upper=float(harm.upper), units=int(units),
    )  # fmt: skip
    return replace(reading, sentence=_sentence(reading, float(margin), conf))


def _sentence(one: CanaryCheck, margin: float, conf: CanaryConf) -> str:
    words = _WORDS[one.check]
    if not one.units:
        known = not (math.isnan(one.champion) and math.isnan(one.challenger))
        return f"{words}: no data yet {'in one slice' if known else 'in either slice'}"
    style = ".4g" if one.check == "outcome" else ".2%"
    figures = (one.challenger, one.champion, one.lower, one.upper, margin)
    a, b, low, high, most = (format(x, style) for x in figures)
    between = f"{words}: {b} of the champion, {a} of the challenger"
    interval = f"worse by {low} to {high}, {most} is allowed"
    if one.state == "worse":
        return f"{between}; the challenger is worse ({interval})"
    if one.state == "safe":
        return f"{between}; no worse than allowed ({interval})"
    if one.units < conf.min_units:
        return f"{between}; {one.units:,} units in the smaller slice are too few, {conf.min_units:,} are needed"
    needed = _units_needed(one, margin)
    more = f"; about {needed:,.0f} units a slice would tell if they were alike" if math.isfinite(needed) else ""
    return f"{between}; not known yet ({interval}){more}"


def _units_needed(one: CanaryCheck, margin: float) -> float:
    """Units a slice at which the interval of two equal versions would just reach the margin."""
    half = (one.upper - one.lower) / 2
    return one.units * (half / margin) ** 2 if margin > 0 and half > 0 else math.inf


@dataclass(frozen=True)
class CanaryReading:
    """A verdict, its reasons in sentences, the most important first, and the checks behind it."""

    verdict: CanaryVerdict
    reasons: tuple[str, ...]
    checks: tuple[CanaryCheck, ...]

    @property
    def text(self) -> str:
        """The reasons as one text."""
        return "; ".join(self.reasons)


def read_canary(evidence: CanaryEvidence, days: float, conf: CanaryConf) -> CanaryReading:
    """Read a canary: promote, roll back, inconclusive (it goes on), or ended (time is over, the champion stays).

    Args:
        evidence: Sums of both slices.
        days: since its start.
        conf: Section `canary`.

    Returns:
        The verdict with its reasons. Inconclusive never promotes.

    Raises:
        DataError: Days are negative: the clock went back.
    """
    if days < 0:
        raise DataError(
            f"the clock is {-days:.2g} days behind the start of the canary: set the machine's clock, then run it again"
        )
    checks = tuple(
        read_check(name, *evidence.sums[name], conf, evidence.decrease)
        for name in CANARY_CHECKS
        if name in evidence.sums
    )
    worse, unequal = [one.sentence for one in checks if one.state == "worse"], _unequal(evidence.assigned)
    if worse and not unequal:
        return CanaryReading("roll back", tuple(worse), checks)
    held_back = [*unequal, *(one.sentence for one in checks if one.state != "safe")]
    if not checks or all(one.check != "outcome" for one in checks):
        held_back.append("nobody can tell the outcome: no label of the campaign was measured")
    if days < conf.min_days and not held_back:
        held_back.append(f"all checks hold, but {days:.3g} days are fewer than canary.min_days {conf.min_days:g}")
    if not held_back:
        return CanaryReading("promote", tuple(one.sentence for one in checks), checks)
    if days >= conf.max_days:
        over = f"after {days:.3g} days, canary.max_days {conf.max_days:g}, there is no verdict: the champion stays"
        return CanaryReading("ended", (over, *held_back), checks)
    return CanaryReading("inconclusive", tuple(held_back), checks)


def _unequal(assigned: Sequence[int]) -> list[str]:
    """A sentence where the slices are not as large as each other, which they are by design."""
    if min(assigned) <= 0:
        return ["a slice has no unit: the plan has too few"]
    p = sequential_ratio_p(np.asarray(assigned, np.float64), (0.5, 0.5))
    if p >= 1e-4:
        return []
    return [
        f"the slices have {assigned[0]:,} and {assigned[1]:,} units where they should be equal (p = {p:.1g}): nothing "
        "in them can be compared"
    ]


def reading_text(reading: CanaryReading, not_measured: Mapping[str, str]) -> str:
    """Say a reading in lines: the verdict, each check, and what is not measured.

    Args:
        reading: From `read_canary`.
        not_measured: {check: why}.

    Returns:
        Lines.
    """
    lines = [f"Verdict: {reading.verdict}", *(f"- {reason}" for reason in reading.reasons)]
    said = set(reading.reasons)
    lines += [f"- {one.sentence}" for one in reading.checks if one.sentence not in said]
    lines += [f"- {_WORDS[check]}: not compared, {why}" for check, why in not_measured.items()]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------
# Sums as Spark gives them.


def sums_by_slice(rows: Iterable[Mapping[str, object]]) -> tuple[SliceSums, SliceSums]:
    """Make the sums of both slices from rows with `slice` and the fields of `SliceSums`; nulls are 0."""
    both = {CHAMPION_SLICE: SliceSums(), CHALLENGER_SLICE: SliceSums()}
    for row in rows:
        name = str(row["slice"])
        if name in both:
            both[name] += SliceSums(*(float(row[key] or 0) for key in vars(SliceSums())))  # type: ignore[arg-type]
    return both[CHAMPION_SLICE], both[CHALLENGER_SLICE]
