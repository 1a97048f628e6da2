"""What drives lift, in words with uncertainty: of a campaign's levels, of segments, and of one unit.

Two steps share no outcome. The model says where to look: on hold-out units the features are ranked by the mean size of
their Shapley values (`forest.shapley`), and of each of the first `TOP` the condition is taken that parts these values
best: a cut, some categories, or that the feature is missing (`lift_drivers`). Training alone decided both. The hold-out
then measures the condition: how far the effect on the units that meet it is from that on the others, by the sums that
the lift table's segments are of (`driver_table`). Intervals hold for all conditions of a campaign together with 95 %,
and for all in its segments together (Šidák 1967); a driver is proven where its interval leaves out nought on the side
that the model expects. It is a difference between units: changing the feature may change nothing.

A driver is stable where at least `AGREE` of forests trained on other rows would expect a difference of the same sign,
by the error of the model's own difference: that of little bags, which are refits on random halves of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd

from uplift_spark.evaluation.html_page import short
from uplift_spark.evaluation.lift_tables import LOW_CLUSTERS, SEGMENT, is_low_sample
from uplift_spark.evaluation.metrics import Evaluation
from uplift_spark.evaluation.sums import CutSums
from uplift_spark.forest.binning import OTHER, FeatureBins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.forest import Forest, Model
from uplift_spark.forest.shapley import shapley_values, unit_shapley
from uplift_spark.learners.metalearners import PerLevel
from uplift_spark.roles import CROSSING, Direction, benefit, crossed
from uplift_spark.stats.intervals import cluster_effects, resampled_error
from uplift_spark.stats.moments import difference

TOP, TOP_OF_SEGMENTS = 5, 3
"""Features a level whose conditions are measured: over all units, and within segments."""

DRIVER_UNITS = 2000
"""Units of the hold-out, the first by the hash of their id, that rank features and conditions."""

DRIVER_VALUES = 20
"""A text segment with more values among these units is not crossed with drivers: its cells would be too small."""

AGREE = 0.9
"""Share of refits on other rows that must expect the same sign for a driver to be stable."""

MEETS, MISSES, NEITHER = "meets", "misses", "unknown"
"""Buckets of a condition: units that meet it, those that do not, and those whose feature is missing."""

DRIVER_COLUMNS = (
    "outcome", "treatment", "cut", "bucket", "rank", "feature", "condition", "mean_shap", "n", "n_meets",
    "effect_meets", "effect_misses", "gain", "gain_lower", "gain_upper", "adjusted_p", "low_sample", "proven",
    "agreement", "stable", "sentence",
)  # fmt: skip
DRIVER_CUT = "__driver_"
"""How the names of columns with a condition's buckets begin."""

_LEVEL = 0.95
_LEAST = 0.05  # of the units: a condition that fewer meet, or miss, is taken only where no other parts the values
_MOST_NAMED = 3  # categories of a condition in words
_ROUNDING = 0.05  # of the gap between edges


@dataclass(frozen=True)
class DriverCondition:
    """A condition on one feature.

    kind        at_most (a number), categories (a text, one of some), or missing
    cut         of at_most; as it is in words, so that the words are the rule
    categories  of categories
    negated     units that do not fulfil it meet the condition; a missing value does neither, but for kind missing
    """

    feature: str
    kind: Literal["at_most", "categories", "missing"]
    cut: float = np.nan
    categories: tuple[str, ...] = ()
    negated: bool = False

    @property
    def words(self) -> str:
        """The units that meet it, as the subject of a sentence."""
        name = self.feature
        if self.kind == "missing":
            return f"{name} that is {'known' if self.negated else 'missing'}"
        if self.kind == "at_most":
            return f"{name} {'above' if self.negated else 'of at most'} {self.cut:,.10g}"
        named, more = self.categories[:_MOST_NAMED], len(self.categories) - _MOST_NAMED
        parts = [*named, *([f"one of {more} others"] if more > 0 else [])]
        listed = " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        return f"{name} {'other than ' if self.negated else ''}{listed}"


@dataclass(frozen=True)
class LiftDriver:
    """A feature that a model's effects of a level differ by, chosen without the hold-out's outcomes.

    mean_shap  mean size of its Shapley values, in the outcome's units
    agreement  share of refits on other rows that would expect a difference of the same sign
    """

    level: str
    rank: int
    condition: DriverCondition
    mean_shap: float
    agreement: float

    @property
    def feature(self) -> str:
        """Name of the feature."""
        return self.condition.feature

    @property
    def is_stable(self) -> bool:
        """Whether chance hardly changes the sign."""
        return self.agreement >= AGREE


# --------------------------------------------------------------------------------------------------------------------
# Where the model says to look: without any outcome of the hold-out.


def lift_drivers(model: Model, bins: np.ndarray, direction: Direction = "increase") -> list[LiftDriver]:
    """Choose the features and conditions by which a model's effects differ most.

    Args:
        model: A causal forest, or one a level; others have no Shapley values, and effects held monotone have none.
        bins: Units of the hold-out by the model's bins, uint8 [n, p].
        direction: Which way the outcome should go: the model expects the larger benefit of units that meet a condition.

    Returns:
        Of each level at most `TOP`, the largest mean size of Shapley values first; none where a model has no splits.
    """
    if not len(bins):
        return []
    chosen: list[LiftDriver] = []
    for levels, forest in _forests_of(model):
        values = shapley_values(forest, bins)[0]
        for k, level in enumerate(levels):
            chosen += _of_level(forest, level, k, bins, values[:, k], direction)
    return chosen


def _forests_of(model: Model) -> list[tuple[tuple[str, ...], Forest]]:
    if isinstance(model, PerLevel):
        return [((level,), forest) for level, forest in model.pairs]
    if not isinstance(model, Forest) or (model.plan.monotone and not model.plan.partial):
        return []
    return [(tuple(model.levels.treated), model)]


def _of_level(
    forest: Forest, level: str, k: int, bins: np.ndarray, values: np.ndarray, direction: Direction
) -> list[LiftDriver]:
    """Drivers of the k-th level, from its Shapley values [n, p]."""
    known = ~np.isnan(values).any(axis=1)
    if not known.any():
        return []
    bins, values = bins[known], values[known]
    size = np.abs(values).mean(axis=0)
    drivers: list[LiftDriver] = []
    for f in np.argsort(-size, kind="stable"):
        if len(drivers) == TOP or not size[f] > 0:
            break
        parted = _parted(forest.bins[f], bins[:, f], values[:, f], direction)
        if parted is None:
            continue
        condition, meets, misses = parted
        some = meets | misses
        gain, error = (float(one[k]) for one in forest.contrast(bins[some], meets[some].astype(np.int64)))
        agreement = _agreement(benefit(gain, direction), error)
        drivers.append(LiftDriver(level, len(drivers) + 1, condition, float(size[f]), agreement))
    return drivers


def _agreement(value: float, error: float) -> float:
    """Chance that a forest of other rows has a value above nought: both values err by the same error."""
    if not (np.isfinite(value) and error > 0):
        return 0.0
    return float(NormalDist().cdf(value / (math.sqrt(2.0) * error)))


def _parted(
    feature: FeatureBins, column: np.ndarray, values: np.ndarray, direction: Direction
) -> tuple[DriverCondition, np.ndarray, np.ndarray] | None:
    """The condition that parts a feature's Shapley values [n] best, who meets it and who misses it, bool [n] each; None
    where all units are alike."""
    n, gain = np.bincount(column, minlength=256), benefit(values, direction)
    total = np.bincount(column, gain, minlength=256)
    order = _order(feature, n, total)
    groups = [(order[:at], order[at:]) for at in range(1, len(order))]
    if n[0] and len(order):
        groups.append((np.array([0]), order))
    if not groups:
        return None
    scores = [_apart(n, total, first, rest) for first, rest in groups]
    enough = [min(n[a].sum(), n[b].sum()) >= _LEAST * len(column) for a, b in groups]
    if any(enough):
        scores = [score if good else -1.0 for score, good in zip(scores, enough, strict=True)]
    first, rest = groups[int(np.argmax(scores))]
    negated = bool(total[first].sum() / n[first].sum() < total[rest].sum() / n[rest].sum())
    condition = _condition(feature, first, rest)  # negated where the words name the rest
    condition = replace(condition, negated=condition.negated != negated)
    sides = [np.isin(column, side) for side in (first, rest)]
    return condition, sides[int(negated)], sides[1 - int(negated)]


def _order(feature: FeatureBins, n: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Bins that are there and not missing: of numbers ascending, of texts by their mean value."""
    there = np.flatnonzero(n[1:]) + 1
    if not feature.categorical:
        return there
    return there[np.argsort(total[there] / n[there], kind="stable")]


def _apart(n: np.ndarray, total: np.ndarray, first: np.ndarray, rest: np.ndarray) -> float:
    """Sum of squares that two groups of bins explain."""
    a, b = (float(n[side].sum()) for side in (first, rest))
    apart = total[first].sum() / a - total[rest].sum() / b
    return float(a * b / (a + b) * apart**2)


def _condition(feature: FeatureBins, first: np.ndarray, rest: np.ndarray) -> DriverCondition:
    """The words' rule for the first of two groups of bins; negated where it names the rest."""
    if first[0] == 0:
        return DriverCondition(feature.name, "missing")
    if feature.categories is None:
        return DriverCondition(feature.name, "at_most", cut=_plain_cut(feature.edges, int(first.max()) - 1))
    names = [feature.categories[b - 1] if b <= len(feature.categories) else None for b in range(1, OTHER + 2)]
    sides = [[names[b - 1] for b in side] for side in (first, rest)]
    other = next((i for i, side in enumerate(sides) if None in side), None)
    pick = (1 - other) if other is not None else int(len(sides[1]) < len(sides[0]))
    kept = tuple(sorted(name for name in sides[pick] if name is not None))
    return DriverCondition(feature.name, "categories", categories=kept, negated=pick == 1)


def _plain_cut(edges: Sequence[float], at: int) -> float:
    """An edge with as few digits as leave it far from its neighbours: words and rule are the same number."""
    edge = edges[at]
    gap = min((abs(edge - edges[i]) for i in (at - 1, at + 1) if 0 <= i < len(edges)), default=abs(edge))
    for digits in range(3, 17):
        rounded = float(f"{edge:.{digits}g}")
        if abs(rounded - edge) <= _ROUNDING * gap:
            return rounded
    return edge


# --------------------------------------------------------------------------------------------------------------------
# What the hold-out measures.


def driver_cuts(drivers: Sequence[LiftDriver], segments: Sequence[str]) -> tuple[str, ...]:
    """Name the cuts that a hold-out is to be summed up by.

    Args:
        drivers: As `lift_drivers` chose them; the i-th's buckets are in the column `DRIVER_CUT`i.
        segments: Features whose buckets are to be crossed with the first `TOP_OF_SEGMENTS` drivers of each level.

    Returns:
        Names of columns, and crossings of segments with them.
    """
    names = [f"{DRIVER_CUT}{i}" for i in range(len(drivers))]
    within = [
        f"{segment}{CROSSING}{name}"
        for segment in segments
        for name, driver in zip(names, drivers, strict=True)
        if driver.rank <= TOP_OF_SEGMENTS and driver.feature != segment
    ]
    return (*names, *within)


def without_drivers(evaluation: Evaluation) -> Evaluation:
    """Leave the drivers' cuts out of an evaluation: what the lift table is of."""
    kept = {cut: sums for cut, sums in evaluation.cuts.items() if DRIVER_CUT not in cut}
    sums = replace(evaluation.sums, cuts=tuple(kept.values()))
    return replace(evaluation, spec=replace(evaluation.spec, segments=tuple(kept)), sums=sums)


def driver_table(evaluation: Evaluation, drivers: Sequence[LiftDriver]) -> pd.DataFrame:
    """Measure drivers on the hold-out.

    Args:
        evaluation: Summed up by the cuts of `driver_cuts`, too.
        drivers: As they were chosen.

    Returns:
        The columns of gold.lift_driver without run_id, campaign and model_version: a row a driver with cut `all`, then
        one for each segment's bucket.
    """
    outcome, direction = evaluation.spec.outcomes[0], evaluation.spec.direction
    scale = 100.0 if outcome in evaluation.rates else 1.0
    rows: list[dict[str, Any]] = []
    for cut, sums in evaluation.cuts.items():
        if DRIVER_CUT not in cut:
            continue
        parts = crossed(cut)
        driver = drivers[int(parts[-1].removeprefix(DRIVER_CUT))]
        if driver.level in evaluation.levels:
            rows += _measured(evaluation, driver, CROSSING.join(parts[:-1]), sums)
    table = pd.DataFrame(rows)
    if table.empty:
        return pd.DataFrame(columns=list(DRIVER_COLUMNS))
    whole = table["cut"] == "all"
    for family in (table.index[whole], table.index[~whole]):
        table.loc[family, ["gain_lower", "gain_upper", "adjusted_p"]] = _simultaneous(table.loc[family])
    lower, upper = (benefit(table[name], direction) for name in ("gain_lower", "gain_upper"))
    table["proven"] = (np.minimum(lower, upper) > 0) & ~table["low_sample"]
    table["outcome"] = outcome
    table["sentence"] = [driver_sentence(row, scale, direction) for row in table.to_dict("records")]
    order = table.assign(_whole=~whole, _level=table["treatment"].map(evaluation.levels.index))
    order = order.sort_values(["_whole", "_level", "cut", "bucket", "rank"], kind="stable")
    return table.loc[order.index, list(DRIVER_COLUMNS)].reset_index(drop=True)


def _measured(evaluation: Evaluation, driver: LiftDriver, segment: str, sums: CutSums) -> list[dict[str, Any]]:
    """Rows of one driver: of all units, or of each bucket of a segment."""
    k, rate = evaluation.levels.index(driver.level), evaluation.spec.outcomes[0] in evaluation.rates
    buckets: dict[str, dict[str, int]] = {}
    for b, name in enumerate(sums.buckets):
        bucket, _, side = name.rpartition(CROSSING)
        buckets.setdefault(bucket or "all", {})[side or name] = b
    clustered = None
    if evaluation.spec.cluster and sums.resampled is not None:
        clustered = cluster_effects(sums.moments[..., :-1], *sums.resampled)
    arms = sums.moments[k, :, :, 0]
    effects = difference(arms[1], arms[0]) if clustered is None else None
    rows = []
    for bucket, sides in buckets.items():
        if MEETS not in sides or MISSES not in sides:
            continue
        at = [sides[MEETS], sides[MISSES]]
        if effects is not None:
            estimate, error = effects.estimate[at], float(np.sqrt((effects.error[at] ** 2).sum()))
            few = False
        else:
            assert clustered is not None
            estimate = clustered.difference.estimate[k, at, 0]
            draws = clustered.resampled[:, k, at, 0]
            error = float(resampled_error(draws[:, 0] - draws[:, 1]))
            known = np.isfinite(clustered.difference.error[k, at, 0]).all()
            error, few = error if known else np.nan, bool((clustered.clusters[k, at] < LOW_CLUSTERS).any())
        low = few or any(is_low_sample(arms[:, b], rate) for b in at)
        n = [int(arms.n[:, b].sum()) for b in at]
        rows.append({
            "treatment": driver.level, "cut": f"{SEGMENT}{segment}" if segment else "all", "bucket": bucket,
            "rank": driver.rank, "feature": driver.feature, "condition": driver.condition.words,
            "mean_shap": np.nan if segment else driver.mean_shap, "n": sum(n), "n_meets": n[0],
            "effect_meets": estimate[0], "effect_misses": estimate[1], "gain": estimate[0] - estimate[1],
            "_error": error, "low_sample": low, "agreement": driver.agreement, "stable": driver.is_stable,
        })  # fmt: skip
    return rows


def _simultaneous(rows: pd.DataFrame) -> np.ndarray:
    """Lower and upper ends and p-values that hold for all rows together, float64 [rows, 3].

    Šidák (1967): under any correlation the chance that normal figures all lie in their intervals is at least that of
    independent ones.
    """
    gain, error = (rows[name].to_numpy(np.float64) for name in ("gain", "_error"))
    family = max(len(rows), 1)
    half = NormalDist().inv_cdf((1 + _LEVEL ** (1 / family)) / 2) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = [2 * NormalDist().cdf(-abs(z)) if np.isfinite(z) else np.nan for z in gain / error]
    adjusted = -np.expm1(family * np.log1p(-np.minimum(alone, 1 - 1e-16)))
    return np.column_stack([gain - half, gain + half, adjusted])


# --------------------------------------------------------------------------------------------------------------------
# Words.


def driver_sentence(row: Mapping[Any, Any], scale: float, direction: Direction = "increase") -> str:
    """Say a row of gold.lift_driver in words.

    Args:
        row: Of the table.
        scale: 100 where the outcome is 0 or 1, so that gains are in percentage points; else 1.
        direction: Which way the outcome should go.

    Returns:
        What the hold-out shows with its interval, or that it does not, and whether refits agree.
    """
    unit = " points" if scale == 100 else ""
    gain, lower, upper = (float(row[name]) * scale for name in ("gain", "gain_lower", "gain_upper"))
    what, effect = row["condition"], f"the effect of {row['treatment']} on {row['outcome']}"
    within = "" if row["cut"] == "all" else f"Where {row['cut'].removeprefix(SEGMENT)} is {row['bucket']}: "
    if row["proven"]:
        verb, sign = ("adds", 1) if gain > 0 else ("takes", -1)
        ends = sorted((sign * lower, sign * upper))
        size = f"{verb} {short(sign * gain)}{unit} {'to' if sign > 0 else 'off'} {effect}"
        words = f"{size} (95 % interval {short(ends[0])} to {short(ends[1])})"
    elif not np.isfinite(lower + upper):
        words = f"may change {effect}: too few units of the hold-out tell"
    else:
        more = "more" if direction == "increase" else "less"
        few = ", from few units" if row["low_sample"] else ""
        words = (
            f"is not proven to drive {effect}: the model expects {more}, the hold-out shows {short(gain)}{unit} "
            f"(95 % interval {short(lower)} to {short(upper)}{few})"
        )
    return f"{within}{what} {words}. {_stability_words(float(row['agreement']), row['stable'])}"


def driver_words(rows: pd.DataFrame) -> list[str]:
    """Say what drives lift over all units of the hold-out.

    Args:
        rows: Of gold.lift_driver.

    Returns:
        The sentences of what is proven; one that says so where nothing is; none without rows.
    """
    whole = rows[rows["cut"] == "all"] if len(rows) else rows
    if whole.empty:
        return []
    proven = whole.loc[whole["proven"].eq(True), "sentence"].tolist()
    return proven or [f"No driver of lift is proven, of the {len(whole)} that the model expects most of."]


def _stability_words(agreement: float, stable: bool) -> str:
    share = min(math.floor(100 * agreement), 99)  # nothing is known for certain
    if stable:
        return f"Stable: {share} % of refits on other rows would agree."
    return f"Not stable: only {share} % of refits on other rows would agree."


@dataclass(frozen=True)
class UnitReason:
    """What a feature adds to one unit's predicted effect: its Shapley value with a 95 % interval, in outcome units."""

    level: str
    feature: str
    value: str
    adds: float
    error: float

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        return self.adds - Z95 * self.error, self.adds + Z95 * self.error

    @property
    def is_stable(self) -> bool:
        """Whether chance hardly changes the sign."""
        return _agreement(abs(self.adds), self.error) >= AGREE


def unit_reasons(model: Model, bins: np.ndarray, texts: Sequence[str], most: int = 3) -> list[UnitReason]:
    """Say what moves one unit's predicted effects most.

    Args:
        model: As of `lift_drivers`.
        bins: The unit by the model's bins, uint8 [1, p].
        texts: The unit's value of each feature, as it is shown.
        most: Features a level.

    Returns:
        Of each level the features with the largest Shapley values. Intervals are those of single values, from the
        forest's little bags; none for models without Shapley values.
    """
    reasons = []
    for levels, forest in _forests_of(model):
        values, errors = unit_shapley(forest, bins)
        for k, level in enumerate(levels):
            if np.isnan(values[k]).any():
                continue
            for f in np.argsort(-np.abs(values[k]), kind="stable")[:most]:
                if values[k, f]:
                    size = float(values[k, f]), float(errors[k, f])
                    reasons.append(UnitReason(level, forest.bins[f].name, texts[f], *size))
    return reasons


def reason_words(reason: UnitReason) -> str:
    """Say a reason in words, in the outcome's units, as scores are."""
    adds, sign = abs(reason.adds), 1 if reason.adds > 0 else -1
    ends = sorted(sign * end for end in reason.bounds)
    verb, to = ("adds", "to") if sign > 0 else ("takes", "off")
    size = f"{short(adds)} {to} its predicted effect of {reason.level}"
    interval = f"{short(ends[0])} to {short(ends[1])}"
    stable = "stable" if reason.is_stable else "not stable across refits"
    return f"{reason.feature} of {reason.value} {verb} {size} (95 % interval {interval}; {stable})"
