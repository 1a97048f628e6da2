"""Whether a model is fitted anew, and whether the new one may be the challenger. No Spark.

`retrain_triggers` are reasons for it, `retrain_blocks` what forbids it, `arm_checks` whether the new rows tell effects,
`validation_checks` whether the new model may take part. Each is a `RetrainCheck`, a row of gold.retrain: what was
measured, the threshold, one sentence, and how many units would tell where too few did. `retrain_decision` draws the
conclusion. `jobs/retrain.py` collects the facts and fits.

A reading such as "p < .01" or "the lift is 5 % lower" fires on noise: of a hundred sound columns one has p < .01 most
days. So a drift must be large and last, and a drop of the lift must be larger than the limit while a bound excludes
that there is none. Where the plain reading fires and the rule does not, the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
from scipy.stats import norm, t

from uplift_spark.monitoring.lift import LiftDrop, LiftEstimate, lift_drop
from uplift_spark.roles import Direction
from uplift_spark.sections.retraining import Retrain

CheckState = Literal["fires", "quiet", "blocks", "passes", "fails", "not_measured"]
"""fires, quiet: of a reason. blocks, passes, fails: of what must hold. not_measured: nobody can say, which is no
reason; of what must hold it fails."""

RetrainOutcome = Literal["not_needed", "blocked", "stopped", "rejected", "challenger"]
"""not_needed: no reason. blocked: an incident forbids it. stopped: the new rows are not fit for it. rejected: the new
model did not pass. challenger: it did."""

INCIDENTS: Mapping[str, str] = {
    "deployment_mismatch": "roll back what was deployed: new rows hold what the bug made of the features",
    "label_lag": "wait until the labels are there: a model of what is left learns the outage",
    "outcome_completeness": "wait until the labels are there: a model of what is left learns the outage",
    "treatment_leakage": "take the feature's value as of the assignment first: a model would learn the treatment",
    "confounding": "find what decides who is treated first: effects read off these rows are not causal",
    "canary": "run `uplift canary decide` until it is over, or `uplift rollback`: its challenger would change under it",
    "non_compliance": "mend the delivery first: the lift has fallen because units are not reached, not by the model",
}
"""What forbids to retrain, by the name of a finding or of a KPI in state alert, and what to do about it."""


REASONS = ("volume", "drift", "lift_drop", "age", "by_hand")
"""What a model is fitted anew for, by the name of its check."""


@dataclass(frozen=True)
class RetrainCheck:
    """One thing that was looked at: a row of gold.retrain.

    n         observations behind the figure
    n_needed  that would tell what these could not; NaN where nothing is open
    noise     a quiet reason whose plain reading would fire: the figure is within what chance does
    """

    check: str
    state: CheckState
    sentence: str
    figure: float = math.nan
    threshold: float = math.nan
    n: float = math.nan
    n_needed: float = math.nan
    noise: bool = False

    def __post_init__(self) -> None:
        for name in ("figure", "threshold", "n", "n_needed"):  # columns of doubles take no whole numbers
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class DriftedColumn:
    """A feature in the newest window, as gold.drift has it.

    triggers  whether it drifts lastingly (`monitoring.drift`)
    """

    name: str
    distance: float
    p_value: float
    adjusted_p: float
    n: float
    n_reference: float
    triggers: bool


@dataclass(frozen=True)
class LiftWindow:
    """The lift of one level in one window: what its covariates let expect, and what its labels show."""

    end: datetime
    estimated: LiftEstimate
    observed: LiftEstimate


@dataclass(frozen=True)
class NewArm:
    """New units of one level that models learn from.

    units           their number
    logged          how many have a logged propensity
    inverse         Σ1/p of these
    inverse_square  Σ1/p²
    certain         units beside these whose policy was certain of the level (propensity 1): they show no effect
    """

    units: int
    logged: int
    inverse: float
    inverse_square: float
    certain: int = 0


@dataclass(frozen=True)
class RetrainFacts:
    """What a decision is made from.

    window      the newest monitored one, in words
    new_units   with mature labels, assigned after the newest unit that the champion was trained on
    age_days    between that unit's assignment and the end of the newest window
    columns     features in the newest window that the champion was monitored in
    lift        {level: windows with mature labels, oldest first}
    incidents   {finding, or KPI in state alert: (window or alert, sentence)}, of the newest windows and of open alerts
    quarantine  (rows in quarantine, rows taken in), both since the first new unit came
    arms        {level: new units}, the control among them
    weighted    whether fitted propensities and doubly robust scores take the place of random assignment
    because     why somebody wants it; None where nobody does
    """

    window: str
    new_units: int
    age_days: float = math.nan
    columns: Sequence[DriftedColumn] = ()
    lift: Mapping[str, Sequence[LiftWindow]] = field(default_factory=dict)
    incidents: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    quarantine: tuple[int, int] = (0, 0)
    arms: Mapping[str, NewArm] = field(default_factory=dict)
    weighted: bool = False
    because: str | None = None
    direction: Direction = "increase"


def drifted_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[DriftedColumn, ...]:
    """Read the features of a window.

    Args:
        rows: Of gold.drift; those of scores and propensities are left out.

    Returns:
        A column each; the gap of missing values counts as a distance.
    """
    columns = []
    for row in rows:
        if ":" in row["name"]:
            continue
        gap, distance = _number(row["missing"]), _number(row["distance"])
        p_value, adjusted, n, usual = (_number(row[key]) for key in ("p_value", "adjusted_p", "n", "n_reference"))
        size = float(np.fmax(distance, abs(gap)))
        columns.append(DriftedColumn(row["name"], size, p_value, adjusted, n, usual, row["state"] == "trigger"))
    return tuple(columns)


def lift_by_level(rows: Iterable[Mapping[str, Any]], alpha: float) -> dict[str, list[LiftWindow]]:
    """Read the lift of each level in each window that has labels.

    Args:
        rows: Of gold.kpi: estimated_lift and observed_lift, of one run a window.
        alpha: `monitoring.alpha`, whose level the intervals have.

    Returns:
        {level: windows, oldest first}.
    """
    z, by = float(norm.isf(alpha / 2)), {}
    for row in rows:
        value, lower, upper, n = (_number(row[name]) for name in ("value", "lower", "upper", "n"))
        estimate = LiftEstimate(value, (upper - lower) / (2 * z), 0 if math.isnan(n) else int(n))
        by[row["cut"], row["window_end"], row["kpi"]] = estimate
    levels: dict[str, list[LiftWindow]] = {}
    for level, end in sorted({(level, end) for level, end, _ in by}):
        pair = [by.get((level, end, kpi)) for kpi in ("estimated_lift", "observed_lift")]
        if pair[0] is None or pair[1] is None or not pair[1].n or not pair[1].error > 0:
            continue
        levels.setdefault(level, []).append(LiftWindow(end, pair[0], pair[1]))
    return levels


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _p_words(p: float) -> str:
    """A p-value in words: one that underflows is not nought."""
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}"


# --------------------------------------------------------------------------------------------------------------------
# Reasons.


def retrain_triggers(facts: RetrainFacts, conf: Retrain) -> list[RetrainCheck]:
    """Look for reasons to fit anew.

    Args:
        facts: What is known.
        conf: Thresholds.

    Returns:
        A check for each of `REASONS`, in state fires, quiet or not_measured. With fewer new units than `conf.least`
        none but by_hand fires.
    """
    checks = [_volume(facts, conf), _drift(facts, conf), _lift(facts, conf), _age(facts, conf), _by_hand(facts)]
    if facts.new_units >= conf.least:
        return checks
    waits = f"; but only {facts.new_units:,} units are new, and from fewer than {conf.least:,} nothing is learnt"
    return [
        replace(one, state="quiet", sentence=one.sentence + waits, n_needed=float(conf.least))
        if one.state == "fires" and one.check != "by_hand"
        else one
        for one in checks
    ]


def _volume(facts: RetrainFacts, conf: Retrain) -> RetrainCheck:
    n, fires = facts.new_units, facts.new_units > conf.volume
    compared = "more than" if fires else "not more than"
    sentence = f"{n:,} units with mature labels are new since the champion was trained, {compared} {conf.volume:,}"
    return RetrainCheck("volume", "fires" if fires else "quiet", sentence, n, conf.volume, n)


def _age(facts: RetrainFacts, conf: Retrain) -> RetrainCheck:
    if conf.age_days is None or math.isnan(facts.age_days):
        why = "retrain.age_days is null" if conf.age_days is None else "nobody knows when its newest unit was assigned"
        return RetrainCheck("age", "not_measured", f"the champion's age is no reason: {why}")
    fires = facts.age_days > conf.age_days
    sentence = (
        f"the newest unit that the champion was trained on is {facts.age_days:,.0f} days older than the newest window, "
        f"{'more than' if fires else 'not more than'} {conf.age_days:g}"
    )
    return RetrainCheck("age", "fires" if fires else "quiet", sentence, facts.age_days, conf.age_days)


def _by_hand(facts: RetrainFacts) -> RetrainCheck:
    if facts.because is None:
        return RetrainCheck("by_hand", "quiet", "nobody wants it by hand")
    return RetrainCheck("by_hand", "fires", f"by hand: {facts.because}")


def _drift(facts: RetrainFacts, conf: Retrain) -> RetrainCheck:
    columns = facts.columns
    if not columns:
        return RetrainCheck(
            "drift", "not_measured", f"drift of the champion's features is not in window {facts.window}"
        )
    lasting = [
        one for one in columns if one.triggers and one.distance >= conf.drift_size and one.adjusted_p <= conf.drift_p
    ]
    if lasting:
        lasting.sort(key=lambda one: -one.distance)
        shown = ", ".join(f"{one.name} by {one.distance:.2f} ({_p_words(one.adjusted_p)})" for one in lasting[:5])
        more = f" and {len(lasting) - 5} more" if len(lasting) > 5 else ""
        worst = lasting[0]
        return RetrainCheck(
            *("drift", "fires", f"features drift lastingly: {shown}{more}"),
            *(worst.distance, conf.drift_size, worst.n),
        )
    worst = min(columns, key=lambda one: (one.p_value, -one.distance))
    figure = max(one.distance for one in columns)
    if not worst.p_value < 0.01:
        return RetrainCheck("drift", "quiet", "no feature drifts", figure, conf.drift_size, worst.n)
    needed = _units_that_tell(worst, conf, len(columns))
    rule = f"a reason is a distance of {conf.drift_size:g} to the season, too, in several windows"
    tell = f"; {needed:,.0f} units in the window would tell whether it is that large" if math.isfinite(needed) else ""
    sentence = (
        f"p < .01 alone would fire: {worst.name} has p {worst.p_value:.2g} at a distance of {worst.distance:.3f}, of "
        f"{len(columns)} columns; {rule}{tell}"
    )
    return RetrainCheck("drift", "quiet", sentence, figure, conf.drift_size, worst.n, needed, noise=True)


def _units_that_tell(column: DriftedColumn, conf: Retrain, tests: int) -> float:
    """Units with which an interval about the distance (Dvoretzky, Kiefer, Wolfowitz; Massart) ends at the threshold."""
    gap = abs(column.distance - conf.drift_size)
    if not gap > 0 or not column.n_reference > 0:
        return math.nan
    both = math.log(2 * tests / conf.drift_p) / (2 * gap**2)
    return math.ceil(1 / (1 / both - 1 / column.n_reference)) if both < column.n_reference else math.inf


def _lift(facts: RetrainFacts, conf: Retrain) -> RetrainCheck:
    drops = [
        (drop, level, back)
        for level, windows in facts.lift.items()
        for back, drop in recent_drops(windows, conf, len(facts.lift), facts.direction)
        if not math.isnan(drop.drop)
    ]
    if not drops:
        why = "no window of the champion has mature labels, or its expected lift cannot be distinguished from nought"
        return RetrainCheck("lift_drop", "not_measured", f"whether the lift has dropped is not known: {why}")
    if sure := [one for one in drops if one[0].sure]:
        drop, level, back = min(sure, key=lambda one: one[0].p_value)
        of = f"the last {back} windows" if back > 1 else "the newest window"
        return RetrainCheck(
            *("lift_drop", "fires"),
            f"level {level}: {drop.drop:.0%} of the expected lift is gone in {of} with labels, at least "
            f"{max(0.0, drop.lower):.1%} beyond chance ({_p_words(drop.p_value)})",
            *(drop.drop, conf.lift_drop, drop.n),
        )
    drop, level, back = max(drops, key=lambda one: one[0].drop)
    whole = max((one for one in drops if one[1] == level), key=lambda one: one[2])[0]
    each = f"{drop.n_needed:,.0f} units an arm" if math.isfinite(drop.n_needed) else "more units than the reference has"
    if drop.drop > conf.lift_drop:
        sentence = (
            f'"{conf.lift_drop:.0%} less lift" read as a point would fire: level {level} shows {drop.drop:.0%} less in '
            f"{back} {'windows' if back > 1 else 'window'}, which may be chance ({_p_words(drop.p_value)}); to see a "
            f"drop of {conf.lift_drop:.0%} takes {each}"
        )
        return RetrainCheck(
            "lift_drop", "quiet", sentence, drop.drop, conf.lift_drop, drop.n, drop.n_needed, noise=True
        )
    sentence = f"no level has lost more than {conf.lift_drop:.0%} of its expected lift; to see that takes {each}"
    return RetrainCheck("lift_drop", "quiet", sentence, drop.drop, conf.lift_drop, whole.n, whole.n_needed)


def lookbacks(windows: int, most: int) -> list[int]:
    """Numbers of windows that are added up: 1, 2, 4 ... and all, so that a large drop shows at once and a small one in
    time.

    Args:
        windows: That there are.
        most: That may be added up.

    Returns:
        Ascending numbers; none without windows.
    """
    longest = min(windows, most)
    return [*(2**k for k in range(longest.bit_length()) if 2**k < longest), *([longest] if longest else [])]


def recent_drops(
    windows: Sequence[LiftWindow], conf: Retrain, levels: int, direction: Direction
) -> list[tuple[int, LiftDrop]]:
    """Test whether the lift of a level has dropped, over lookbacks that share `conf.alpha` with the other levels.

    Args:
        windows: Of one level, oldest first.
        conf: Limit, level and the longest lookback.
        levels: That are tested.
        direction: Which way the outcome should go.

    Returns:
        (windows added up, drop) of each lookback.
    """
    backs = lookbacks(len(windows), conf.lift_windows)
    # Of the longest lookback there could be, so that a drop is not harder to see once there are more windows.
    alpha = conf.alpha / (max(1, levels) * max(1, len(lookbacks(conf.lift_windows, conf.lift_windows))))
    return [(back, lift_drop(*added_lift(windows[-back:]), direction, conf.lift_drop, alpha)) for back in backs]


def added_lift(windows: Sequence[LiftWindow]) -> tuple[LiftEstimate, LiftEstimate]:
    """Add up windows by their units: observed lifts have errors of their own, expected ones share the reference's.

    Args:
        windows: One or more.

    Returns:
        (expected, observed).
    """
    n = np.array([window.observed.n for window in windows], float)
    share = n / n.sum()
    observed = np.array([(window.observed.value, window.observed.error) for window in windows])
    estimated = np.array([(window.estimated.value, window.estimated.error) for window in windows])
    value, error = share @ estimated
    own = math.sqrt(float(share**2 @ observed[:, 1] ** 2))
    total = int(n.sum())
    return (
        LiftEstimate(float(value), float(error), windows[-1].estimated.n),
        LiftEstimate(float(share @ observed[:, 0]), own, total),
    )


# --------------------------------------------------------------------------------------------------------------------
# What forbids it.


def retrain_blocks(facts: RetrainFacts, conf: Retrain) -> list[RetrainCheck]:
    """Look for what forbids to fit anew: incidents that are open, quarantine, units that only a policy chose.

    Args:
        facts: What is known.
        conf: Thresholds.

    Returns:
        A check for each incident that is open, and for quarantine and targeting in any case.
    """
    weighted = targeting_fault(facts) is None
    checks = []
    for name, (where, sentence) in facts.incidents.items():
        if name == "confounding" and weighted and _is_weighted(facts) and _differ(facts):
            continue  # a policy chose, and propensities undo its choice
        checks.append(RetrainCheck(name, "blocks", f"{where}: {sentence}; {INCIDENTS[name]}"))
    return [*checks, _quarantine(facts, conf), _targeting(facts)]


def _quarantine(facts: RetrainFacts, conf: Retrain) -> RetrainCheck:
    rows, taken = facts.quarantine
    share = rows / (rows + taken) if rows + taken else 0.0
    blocks = share > conf.quarantine
    sentence = f"{rows:,} of {rows + taken:,} rows that came since the first new unit are in quarantine"
    more = "; repair them with `uplift replay`, or raise retrain.quarantine" if blocks else ""
    state: CheckState = "blocks" if blocks else "passes"
    return RetrainCheck("quarantine", state, sentence + more, share, conf.quarantine, rows + taken)


def _is_weighted(facts: RetrainFacts) -> bool:
    """Whether what decided is known of hardly fewer than all new units."""
    units = sum(arm.units for arm in facts.arms.values())
    return facts.weighted or sum(arm.logged for arm in facts.arms.values()) >= 0.99 * max(1, units)


def _differ(facts: RetrainFacts) -> bool:
    """Whether propensities tell what a policy chose from what was random, be it by a fit: those that all units share
    do not."""
    if any(arm.certain for arm in facts.arms.values()):
        return True
    squares = ((arm.inverse_square * arm.logged, arm.inverse**2) for arm in facts.arms.values())
    return facts.weighted or any(mean_of > of_mean * (1 + 1e-6) for mean_of, of_mean in squares)


def _certain_fault(units: str) -> str:
    """Say that these units' levels show no effect, as a policy was certain of all of them."""
    return (
        f"{units} got their level by a policy that was certain of it (propensity 1), so nothing shows what they would "
        "have done otherwise: keep an exploration slice (experiment.exploration, serving.exploration) or a holdout, or "
        "fit propensities (section nuisances)"
    )


def targeting_fault(facts: RetrainFacts) -> str | None:
    """Say why the new units tell no effects because a policy chose who is treated.

    Args:
        facts: New units by level with their propensities; incidents.

    Returns:
        One sentence; None where they do: drawn at random, or by propensities that stand for all units.
    """
    certain = sum(arm.certain for arm in facts.arms.values())
    if not sum(arm.units for arm in facts.arms.values()):
        return _certain_fault(f"all {certain:,} new units") if certain else None
    if empty := [level for level, arm in facts.arms.items() if not arm.units]:
        return (
            f"none of the {sum(arm.units for arm in facts.arms.values()):,} new units got {empty[0]}: they are those "
            "that a policy chose, and nothing shows what they would have done otherwise; keep an exploration slice or "
            "a holdout (serving.exploration, policy.global_holdout) and log propensities"
        )
    if facts.weighted:
        return None
    if not _is_weighted(facts):
        if "confounding" not in facts.incidents:
            return None
        return (
            "arms of the new units differ and their propensities were not logged: a policy chose who is treated; log "
            "the propensity of each unit, or fit them (section `nuisances`)"
        )
    units = sum(arm.units for arm in facts.arms.values())
    for level, arm in facts.arms.items():
        stands_for = arm.inverse / units
        # Variance of Σ1/p of those who got the level: Σ (1 - p)/p² at most, as far as they tell.
        error = math.sqrt(max(arm.inverse_square - arm.inverse, 0.0)) / units
        if abs(stands_for - 1) > 0.1 + norm.isf(0.001) * error:
            return (
                f"new units with {level} stand for {stands_for:.0%} of all new units by their propensities, not for "
                "all: some units can never get it; keep an exploration slice, in which every level has a probability"
            )
    return None


def _targeting(facts: RetrainFacts) -> RetrainCheck:
    fault = targeting_fault(facts)
    counts = ", ".join(f"{level} {arm.units:,}" for level, arm in facts.arms.items())
    if certain := sum(arm.certain for arm in facts.arms.values()):
        counts += f"; {certain:,} others got theirs from a policy that was certain, and are not learnt from"
    if fault is not None:
        return RetrainCheck("targeted_only", "blocks", fault)
    return RetrainCheck("targeted_only", "passes", f"new units of every level: {counts}" if counts else "no new units")


def arm_checks(rows: Mapping[str, int], conf: Retrain) -> list[RetrainCheck]:
    """Check that the training rows hold enough units of every level.

    Args:
        rows: {level: training rows}, of the champion's levels and all others.
        conf: Thresholds.

    Returns:
        A check for each level.
    """
    return [
        RetrainCheck(
            f"arm:{level}",
            "passes" if n >= conf.arm_units else "fails",
            f"{n:,} training rows of level {level}" + ("" if n >= conf.arm_units else f", not {conf.arm_units:,}"),
            *(n, conf.arm_units, n),
        )
        for level, n in rows.items()
    ]


# --------------------------------------------------------------------------------------------------------------------
# Whether the new model may be the challenger.


@dataclass(frozen=True)
class PlanValue:
    """A figure of a model's rule with the ends of its 95 % interval, as gold.uplift_metrics has it."""

    value: float
    lower: float
    upper: float

    @property
    def error(self) -> float:
        """Standard error: half the interval over 1.96; nought of a figure of nought in which nothing varied, as of two
        models that decide alike; NaN of others without an interval."""
        half = (self.upper - self.lower) / 2
        return 0.0 if math.isnan(half) and self.value == 0 else half / float(norm.isf(0.025))


PlanFigures = Mapping[str, tuple[PlanValue, PlanValue, PlanValue]]
"""{figure: (the champion's, the new model's, the new one's less the champion's)}, of the same units and resamples."""


def plan_figures(rows: Iterable[Mapping[str, Any]], champion: str, new: str) -> PlanFigures:
    """Read what `uplift compare` wrote of two versions.

    Args:
        rows: Of gold.uplift_metrics, of one run, of all levels together.
        champion: Its version.
        new: The other version.

    Returns:
        Figures that both have.
    """
    values = {
        (row["model_version"], row["metric"]): PlanValue(*(_number(row[key]) for key in ("value", "lower", "upper")))
        for row in rows
    }
    return {
        name: (value, values[new, name], values[new, f"{name}_difference"])
        for (version, name), value in values.items()
        if version == champion and (new, f"{name}_difference") in values
    }


def validation_checks(figures: PlanFigures, n: int, conf: Retrain, replicates: int) -> list[RetrainCheck]:
    """Hold a new model against the champion and against the floors.

    The model passes where the lower bound of its figure less 1 - margin of the champion's is not below nought. All
    three come from the same units under the same resamples, so their errors tell how the two agree.

    Args:
        figures: Of both.
        n: Units of the hold-out.
        conf: Metric, margin, probability of an error, floors.
        replicates: Resamples behind the errors.

    Returns:
        `champion`, then `floor:<figure>` of each floor, in state passes, fails or not_measured.
    """
    z = float(t.isf(conf.error, max(1, replicates - 1)))
    checks = [_against_champion(figures, n, conf, z)]
    for name, floor in conf.floors.items():
        _, new, _ = figures.get(name, (None, PlanValue(math.nan, math.nan, math.nan), None))
        bound = new.value - z * new.error
        state: CheckState = "not_measured" if math.isnan(bound) else "passes" if bound > floor else "fails"
        sentence = f"{name} of the new model is {new.value:.4g}, at least {bound:.4g}; the floor is {floor:g}"
        needed = n * (z * new.error / (new.value - floor)) ** 2 if state == "fails" and new.value > floor else math.nan
        checks.append(RetrainCheck(f"floor:{name}", state, sentence, bound, floor, n, needed))
    return checks


def _against_champion(figures: PlanFigures, n: int, conf: Retrain, z: float) -> RetrainCheck:
    known = conf.metric in figures and not any(math.isnan(one.error) for one in figures[conf.metric])
    if not known:
        sentence = f"{conf.metric} of champion and new model is not known on the hold-out of {n:,} units"
        return RetrainCheck("champion", "not_measured", sentence, n=n)
    champion, new, apart = figures[conf.metric]
    gap, error = (float(one) for one in over_margin(champion, new, apart, conf.margin))
    bound = gap - z * error
    share = apart.value / abs(champion.value) if champion.value else math.nan
    about = f"{conf.metric}: new {new.value:.4g}, champion {champion.value:.4g}, {apart.value:+.4g} between them"
    about += f" ({share:+.1%})" if math.isfinite(share) else ""
    if bound >= 0:
        sentence = f"{about}; the new model is not worse by {conf.margin:.0%} (error {conf.error:.1%})"
        return RetrainCheck("champion", "passes", sentence, bound, 0.0, n)
    allowed = conf.margin * max(champion.value, 0.0)
    steps = z + float(norm.isf(0.2))
    needed = math.ceil(n * (steps * error / allowed) ** 2) if allowed > 0 and error > 0 else math.inf
    worse = apart.value + z * apart.error < 0
    tells = f"{needed:,.0f} units of the hold-out would tell" if math.isfinite(needed) else "no number of units tells"
    why = "it is worse beyond chance" if worse else f"that it is not worse by {conf.margin:.0%} is not shown; {tells}"
    return RetrainCheck("champion", "fails", f"{about}; {why}", bound, 0.0, n, math.nan if worse else needed)


def over_margin(champion: Any, new: Any, apart: Any, margin: float) -> tuple[Any, Any]:
    """Say by how much a new model exceeds what it must bring, 1 - margin of the champion's figure.

    The errors of all three tell how champion and difference vary together.

    Args:
        champion: `value` and `error` of its figure; a `PlanValue`, or arrays of many.
        new: Likewise.
        apart: Of the new one less the champion, likewise.
        margin: Share of the champion's figure that may be lost.

    Returns:
        (excess, its standard error).
    """
    a, b, c = champion.error**2, new.error**2, apart.error**2
    square = c + margin**2 * a + margin * (b - a - c)
    return apart.value + margin * champion.value, np.sqrt(np.maximum(0.0, square))


# --------------------------------------------------------------------------------------------------------------------
# The conclusion.


def retrain_decision(checks: Sequence[RetrainCheck]) -> tuple[RetrainOutcome | None, str]:
    """Draw the conclusion of all checks so far.

    Args:
        checks: Reasons first; then what forbids it; then rows; then the new model's.

    Returns:
        (outcome, reason); None while nothing forbids it and no new model was validated: fit one.
    """
    fired = [one for one in checks if one.state == "fires"]
    if not fired:
        noise = [one for one in checks if one.noise]
        return "not_needed", "; ".join(["there is no reason to retrain", *(one.sentence for one in noise)])
    reason = "; ".join(one.sentence for one in fired)
    if blocks := [one for one in checks if one.state == "blocks"]:
        return "blocked", f"{blocks[0].sentence} (reason to retrain: {reason})"
    of_model = [one for one in checks if _of_model(one)]
    faults = [one for one in checks if one.state in ("fails", "not_measured") and one.check not in REASONS]
    if faults:
        return "rejected" if _of_model(faults[0]) else "stopped", f"{faults[0].sentence} (reason to retrain: {reason})"
    if not of_model:
        return None, reason
    return "challenger", f"{of_model[0].sentence} (reason to retrain: {reason})"


def _of_model(check: RetrainCheck) -> bool:
    return check.check == "champion" or check.check.startswith("floor:")


def decision_lines(checks: Sequence[RetrainCheck], outcome: str, reason: str) -> Iterator[str]:
    """Say a decision in words.

    Args:
        checks: All of them.
        outcome: Of the decision.
        reason: Of it.

    Yields:
        A line for each check, then the decision.
    """
    for one in checks:
        yield f"{one.check}: {one.state.replace('_', ' ')}: {one.sentence}"
    yield f"{outcome.replace('_', ' ')}: {reason}"
