"""Bias audit: do plan and effects differ between groups of a protected attribute, by more than chance and than need.

Every figure follows from counts, sums and sums of squares of a group's units, whole numbers that add up, so the audit
of parts is the audit of all. Effects are doubly robust scores of units that the model never saw. A group is compared
with all other units by Welch's test; all comparisons and all tests for harm make one family, in which any false alarm
has at most the audit's level (Holm 1979). A difference is explained where it is gone between units that are alike in
the features that the configuration names as need. No Spark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from uplift_spark.stats.moments import FixedPoint, ratio
from uplift_spark.stats.tests import holm

# --------------------------------------------------------------------------------------------------------------------
# Sums: cuts are attributes and their crossings, B buckets each; S strata of need; M measures of a unit.

_ONE = 1.0


@dataclass(frozen=True)
class BiasMeasure:
    """What is compared between groups.

    name       in the table, such as treated, cost, predicted, realised
    largest    size that no unit's value exceeds
    harm       whether a group's mean below nought is harm: of effects, in the direction in which more is better
    tolerance  difference that does not matter
    """

    name: str
    largest: float
    harm: bool = False
    tolerance: float = 0.0

    @property
    def point(self) -> FixedPoint:
        """How values become whole numbers."""
        return FixedPoint.of(_ONE, self.largest)


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums of one cut: int64 [B, S, 1 + 2 M], units first, then each measure's sum and sum of squares."""

    cut: str
    buckets: tuple[str, ...]
    sums: np.ndarray


def group_sums(
    bucket: np.ndarray, stratum: np.ndarray, values: np.ndarray, shape: tuple[int, int], measures: Sequence[BiasMeasure]
) -> np.ndarray:
    """Add up units by bucket and stratum.

    Args:
        bucket: int [n], in [0, B).
        stratum: int [n], in [0, S); all 0 without features of need.
        values: float64 [n, M], a column for each measure; NaN counts as nought.
        shape: (B, S).
        measures: What the columns are.

    Returns:
        int64 [B, S, 1 + 2 M], the same for any order of the units.
    """
    ones, columns = np.ones(len(values)), [np.ones(len(values), np.int64)]
    for j, measure in enumerate(measures):
        column, point = np.nan_to_num(values[:, j]), measure.point
        columns += [point.integers(field, ones, column) for field in ("wy", "wyy")]
    sums = np.zeros((*shape, len(columns)), np.int64)
    np.add.at(sums, (bucket, stratum), np.stack(columns, axis=1))
    return sums


# --------------------------------------------------------------------------------------------------------------------
# The audit.


@dataclass(frozen=True)
class BiasRow:
    """One group and measure.

    units, mean, lower, upper  of the group, with a 95 % interval
    difference, difference_lower, difference_upper  from all other units
    p_value  of no difference beyond the tolerance; NaN for groups with too few units
    adjusted_p  holding the level over the whole audit
    flag  difference, explained (a difference that is gone between units of the same need), harm, or nothing
    within  difference between units of the same need; NaN where none was named
    harm_p  adjusted p-value of a mean that is not below nought; NaN where that is no harm
    """

    cut: str
    bucket: str
    measure: str
    units: int
    mean: float
    lower: float
    upper: float
    difference: float
    difference_lower: float
    difference_upper: float
    p_value: float
    adjusted_p: float
    flag: str
    within: float
    harm_p: float


@dataclass(frozen=True)
class BiasAudit:
    """Rows of an audit, its level, and the features that tell an attribute."""

    rows: tuple[BiasRow, ...]
    level: float
    proxies: tuple[Proxy, ...] = ()

    @property
    def flags(self) -> list[BiasRow]:
        """Rows that need an answer: differences that are not explained, and harm."""
        return [row for row in self.rows if row.flag in ("difference", "harm")]

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """(cut, bucket) of each group that was compared with all other units."""
        return tuple(dict.fromkeys((row.cut, row.bucket) for row in self.rows if not math.isnan(row.p_value)))

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Cuts of which no group was compared: about them the audit says nothing."""
        known = {cut for cut, _ in self.compared}
        return tuple(dict.fromkeys(row.cut for row in self.rows if row.cut not in known))

    @property
    def passed(self) -> bool:
        """Whether nothing is flagged, and groups of every cut were compared."""
        return bool(self.compared) and not self.uncompared and not self.flags

    def sentences(self) -> list[str]:
        """The result in words, a line for each finding."""
        n = len(self.compared)
        few = len({(row.cut, row.bucket) for row in self.rows}) - n
        lines = [
            f"{n} groups were compared with all other units; any false alarm among all comparisons has a "
            f"probability of at most {self.level:g}."
        ]
        if few:
            lines.append(f"{few} more have too few units to tell.")
        if self.uncompared or not n:
            lines.append(
                f"Nothing is known about {', '.join(self.uncompared) or 'any group'}: no group and its rest have "
                "governance.bias.min_units each."
            )
        lines += [_row_words(row) for row in self.rows if row.flag]
        if self.passed:
            lines.append("No group is treated or served differently by more than chance and need; none is harmed.")
        lines += [
            f"Feature {one.feature} tells {one.cut} (strength {one.strength:.2f} of 1): leaving {one.cut} out of the "
            "model does not keep it out."
            for one in self.proxies
        ]
        return lines


def _row_words(row: BiasRow) -> str:
    where = f"{row.cut} = {row.bucket} ({row.units:,} units)"
    if row.flag == "harm":
        return (
            f"Harm: {where} loses by treatment: {row.measure} {row.mean:.4g} ({row.lower:.4g} to {row.upper:.4g}, "
            f"p = {row.harm_p:.2g})."
        )
    apart = (
        f"{row.difference:+.4g} ({row.difference_lower:+.4g} to {row.difference_upper:+.4g}, p = {row.adjusted_p:.2g})"
    )
    words = f"{where}: {row.measure} {row.mean:.4g}, apart from the others by {apart}"
    if row.flag == "explained":
        return f"Explained by need: {words}; between units of the same need by {row.within:+.4g}."
    return f"Difference: {words}."


def bias_audit(
    groups: Sequence[GroupSums], measures: Sequence[BiasMeasure], level: float = 0.05, min_units: int = 100
) -> BiasAudit:
    """Compare every group of every cut with all other units.

    Args:
        groups: Sums of each cut.
        measures: As `group_sums` had them.
        level: Probability that anything is flagged where nothing differs and nobody is harmed.
        min_units: Units that a group and all others must have each.

    Returns:
        A row for each cut, bucket and measure, in their order.
    """
    compared = [_compared(group, measures, min_units) for group in groups]
    tests = np.concatenate([one.family for one in compared]) if compared else np.empty(0)
    adjusted = holm(tests)
    rows: list[BiasRow] = []
    at = 0
    for group, one in zip(groups, compared, strict=True):
        rows += _rows(group, measures, one, adjusted[at : at + len(one.family)], level)
        at += len(one.family)
    return BiasAudit(tuple(_explained(rows, groups, measures, level)), level)


@dataclass(frozen=True, eq=False)
class _Compared:
    """Arrays [B, M] of one cut; `family` are its p-values that count: differences, then harm, flat."""

    units: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    difference: np.ndarray
    difference_half: np.ndarray
    p_value: np.ndarray
    harm: np.ndarray
    mirrored: bool

    @property
    def family(self) -> np.ndarray:
        # With two buckets the second comparison is the first once more.
        differences = self.p_value[:1] if self.mirrored else self.p_value
        return np.concatenate([differences.ravel(), self.harm.ravel()])


def _compared(group: GroupSums, measures: Sequence[BiasMeasure], min_units: int) -> _Compared:
    sums = group.sums.sum(axis=1)
    units, mean, variance = _moments(sums, measures)
    others, other_mean, other_variance = _moments(sums.sum(axis=0) - sums, measures)
    enough = ((units >= min_units) & (others >= min_units))[:, None]
    n, rest = units[:, None].astype(float), others[:, None].astype(float)
    own, other = ratio(variance, n), ratio(other_variance, rest)
    error, freedom = np.sqrt(own + other), _freedom(own, other, n, rest)
    tolerance = np.array([measure.tolerance for measure in measures])
    difference = mean - other_mean
    p_value = _two_sided(np.maximum(np.abs(difference) - tolerance, 0.0), error, freedom)
    harmful = np.array([measure.harm for measure in measures])
    harm = np.where(harmful, _below(mean, np.sqrt(own), np.maximum(n - 1, 1)), np.nan)
    with np.errstate(invalid="ignore"):
        half = scipy.stats.t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(own)
        apart = scipy.stats.t.ppf(0.975, freedom) * error
    return _Compared(
        units, mean, half, difference, apart, np.where(enough, p_value, np.nan),
        np.where(enough | (n >= min_units), harm, np.nan), len(group.buckets) == 2,
    )  # fmt: skip


def _moments(sums: np.ndarray, measures: Sequence[BiasMeasure]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units [...], mean and variance [..., M] from sums [..., 1 + 2 M]; an unbiased variance."""
    units = sums[..., 0]
    n = units.astype(np.float64)
    means, variances = [], []
    for j, measure in enumerate(measures):
        total = measure.point.floats("wy", sums[..., 1 + 2 * j])
        square = measure.point.floats("wyy", sums[..., 2 + 2 * j])
        mean = ratio(total, n)
        means.append(mean)
        variances.append(ratio(np.maximum(square - total * np.nan_to_num(mean), 0.0), n - 1))
    return units, np.stack(means, -1), np.stack(variances, -1)


def _freedom(own: np.ndarray, other: np.ndarray, n: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Welch and Satterthwaite's degrees of freedom."""
    below = own**2 / np.maximum(n - 1, 1) + other**2 / np.maximum(rest - 1, 1)
    return np.asarray(np.nan_to_num(ratio((own + other) ** 2, below), nan=1.0))


def _two_sided(size: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """P-value of a size; a size without any error is sure."""
    p = 2 * scipy.stats.t.sf(np.nan_to_num(ratio(size, error)), freedom)
    return np.where(error > 0, p, np.where(size > 0, 0.0, np.where(np.isnan(error), np.nan, 1.0)))


def _below(mean: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """P-value of a mean that is not below nought; a mean without any error is sure."""
    p = scipy.stats.t.cdf(ratio(mean, error), freedom)
    return np.where(error > 0, p, np.where(np.isnan(error), np.nan, np.where(mean < 0, 0.0, 1.0)))


def _rows(
    group: GroupSums, measures: Sequence[BiasMeasure], one: _Compared, adjusted: np.ndarray, level: float
) -> Iterator[BiasRow]:
    size = one.p_value.size // (2 if one.mirrored else 1)
    differences = adjusted[:size].reshape(-1, len(measures))
    differences = np.broadcast_to(differences, one.p_value.shape)
    harms = adjusted[size:].reshape(one.harm.shape)
    for b, bucket in enumerate(group.buckets):
        for j, measure in enumerate(measures):
            flag = "difference" if differences[b, j] < level else ""
            flag = "harm" if harms[b, j] < level else flag
            mean, difference = one.mean[b, j], one.difference[b, j]
            half, apart = one.half[b, j], one.difference_half[b, j]
            yield BiasRow(
                group.cut, bucket, measure.name, int(one.units[b]), float(mean), float(mean - half), float(mean + half),
                float(difference), float(difference - apart), float(difference + apart), float(one.p_value[b, j]),
                float(differences[b, j]), flag, math.nan, float(harms[b, j]),
            )  # fmt: skip


def _explained(
    rows: Sequence[BiasRow], groups: Sequence[GroupSums], measures: Sequence[BiasMeasure], level: float
) -> Iterator[BiasRow]:
    """The rows, with what is left of differences between units of the same need."""
    by_name = {group.cut: group for group in groups}
    index = {measure.name: j for j, measure in enumerate(measures)}
    within: list[tuple[float, float]] = []
    for row in rows:
        group = by_name[row.cut]
        needed = row.flag == "difference" and group.sums.shape[1] > 1
        nothing = (math.nan, math.nan)
        j = index[row.measure]
        within.append(_within(group, group.buckets.index(row.bucket), measures, j) if needed else nothing)
    left = holm(np.array([p for _, p in within], float))
    for row, (difference, _), p in zip(rows, within, left, strict=True):
        flag = "explained" if row.flag == "difference" and p >= level else row.flag
        yield BiasRow(**{**vars(row), "flag": flag, "within": difference})


def _within(group: GroupSums, bucket: int, measures: Sequence[BiasMeasure], j: int) -> tuple[float, float]:
    """Difference between a bucket's units and others of the same stratum, weighed by the bucket's units, and its
    p-value; strata that only one of the two has are left out."""
    sums = group.sums
    n, mean, variance = _moments(sums[bucket], measures)
    rest, other_mean, other_variance = _moments(sums.sum(axis=0) - sums[bucket], measures)
    shared = (n > 1) & (rest > 1)
    if not shared.any():
        return math.nan, 0.0  # nobody else has such a need: nothing explains the difference
    share = n[shared] / n[shared].sum()
    gap = (mean - other_mean)[shared, j]
    spread = variance[shared, j] / n[shared] + other_variance[shared, j] / rest[shared]
    difference, error = float(share @ gap), math.sqrt(float(share**2 @ spread))
    size = max(abs(difference) - measures[j].tolerance, 0.0)
    freedom = max(float(n[shared].sum()) - int(shared.sum()), 1.0)
    return difference, float(_two_sided(np.array(size), np.array(error), np.array(freedom)))


# --------------------------------------------------------------------------------------------------------------------
# Proxies: features that tell an attribute which the model does not have.


@dataclass(frozen=True)
class Proxy:
    """A feature that tells a cut; strength: Cramér's V corrected for chance, from 0 (nothing) to 1 (all of it)."""

    cut: str
    feature: str
    strength: float


def cramers_v(counts: np.ndarray) -> float:
    """Compute Cramér's V of a table of counts [buckets, values], corrected for chance (Bergsma 2013); NaN where either
    has fewer than two values."""
    table = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)
    n = table.sum()
    if min(table.shape, default=0) < 2 or n < 2:
        return math.nan
    independent = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi = float(((table - independent) ** 2 / independent).sum() / n)
    rows, columns = table.shape
    corrected = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    smaller = min(side - (side - 1) ** 2 / (n - 1) for side in (rows, columns))
    return math.sqrt(corrected / (smaller - 1)) if smaller > 1 else math.nan


def proxies_of(tables: Mapping[tuple[str, str], np.ndarray], least: float) -> tuple[Proxy, ...]:
    """Name the features that tell a cut at least so strongly, the strongest first; tables: {(cut, feature): counts}."""
    strengths = [Proxy(cut, feature, cramers_v(counts)) for (cut, feature), counts in tables.items()]
    strong = [one for one in strengths if one.strength >= least]
    return tuple(sorted(strong, key=lambda one: (-one.strength, one.cut, one.feature)))
