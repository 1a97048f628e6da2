"""Drift: whether the units of a window are those that the model was trained on, from counts alone.

`ColumnBins` fixes, once for a model, bins of every column: quantiles of the training set, or its categories. What a
window holds is `WindowCounts` in these bins; counts add, so windows merge into weeks and references without reading a
row again. From two sets of counts follow the Kolmogorov-Smirnov distance with the most it can be off, the Wasserstein
distance in standard deviations, the population stability index, missing values and new categories.

At a million rows everything is significant, and of a hundred sound columns one is at p < .01 most days. So a column
drifts only where the distance is large and significant after adjustment for all columns, against windows of the same
season; it triggers something only where that persists. The distance to the training set is kept beside the season's:
a weekday may lie far from the average of all days and be as it always is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import chi2, kstwobign, norm

from uplift_spark.errors import DataError
from uplift_spark.stats.moments import ratio
from uplift_spark.stats.tests import false_discovery

DRIFT_BINS = 256
"""Bins of a column: between two quantiles this far apart distributions that differ smoothly cross no sooner."""

SMALL_SHARE = 0.5  # of one unit: what an empty group counts in a population stability index
GROUPS = 10  # of a population stability index


@dataclass(frozen=True)
class ColumnBins:
    """How the values of each column are counted.

    names       of the columns
    edges       {column: ascending upper ends of its bins but the last, float64}: bin j holds values in
                (edge j-1, edge j]
    categories  {column: its known values}, of columns of text
    """

    names: tuple[str, ...]
    edges: Mapping[str, np.ndarray]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sizes(self) -> np.ndarray:
        """Bins of each column, int64 [C]."""
        return np.array([self._size(name) for name in self.names], np.int64)

    def _size(self, name: str) -> int:
        return len(self.categories[name]) if name in self.categories else len(self.edges[name]) + 1

    @classmethod
    def of_sample(cls, sample: pa.Table, most: int = DRIFT_BINS) -> ColumnBins:
        """Bins with about as many values of a sample each; of a column with few distinct values, one for each.

        Args:
            sample: Rows of the training set; columns are numbers, booleans or texts.
            most: Bins or categories of a column, at most; rarer categories count as new ones.

        Returns:
            The bins.

        Raises:
            DataError: The sample has no row.
        """
        if not sample.num_rows:
            raise DataError("there is no reference: the training set has no row to make bins from")
        edges, categories = {}, {}
        for name in sample.column_names:
            column = sample.column(name)
            if _categorical(column.type):
                counted = pc.value_counts(column.cast(pa.string()).drop_null()).to_pylist()
                often = sorted(counted, key=lambda one: (-one["counts"], one["values"]))[:most]
                categories[name] = tuple(one["values"] for one in often)
                continue
            values = _numbers_of(column)
            values = values[np.isfinite(values)]
            distinct = np.unique(values)
            if len(distinct) > most:
                distinct = np.unique(np.quantile(values, np.arange(1, most + 1) / most, method="inverted_cdf"))
            edges[name] = distinct[:-1] if distinct.size else np.zeros(0)
        return cls(tuple(sample.column_names), edges, categories)

    def empty(self) -> WindowCounts:
        """Counts of no row."""
        shape = (len(self.names), max(1, int(self.sizes.max(initial=0))))
        nothing = np.zeros(len(self.names), np.int64)
        return WindowCounts(np.zeros(shape, np.int64), np.zeros(shape), nothing, nothing.copy())

    def grid(self, name: str) -> float:
        """Steps that values are added up in: multiples of a power of two, so that no order of adding changes a bit."""
        largest = float(np.abs(self.edges[name]).max(initial=0.0)) or 1.0
        return 2.0 ** (math.ceil(math.log2(largest)) - 20)

    def count(self, rows: pa.RecordBatch | pa.Table) -> WindowCounts:
        """Count rows.

        Args:
            rows: Columns as in the sample.

        Returns:
            Their counts.
        """
        counts = self.empty()
        for i, name in enumerate(self.names):
            column = rows.column(name)
            if name in self.categories:
                texts = column.cast(pa.string()).drop_null()
                codes = pc.index_in(texts, pa.array(self.categories[name], pa.string())).drop_null()
                counts.missing[i], counts.new[i] = rows.num_rows - len(texts), len(texts) - len(codes)
                counts.counts[i] += np.bincount(np.asarray(codes), minlength=counts.counts.shape[1])
                continue
            values = _numbers_of(column)
            values = values[~np.isnan(values)]
            bins = np.searchsorted(self.edges[name], values, side="left")
            counts.missing[i] = rows.num_rows - values.size
            counts.counts[i] += np.bincount(bins, minlength=counts.counts.shape[1])
            grid = self.grid(name)
            steps = np.rint(np.clip(values / grid, -(2.0**32), 2.0**32))
            counts.totals[i] += np.bincount(bins, steps * grid, minlength=counts.counts.shape[1])
        return counts


def _categorical(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _numbers_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


@dataclass(frozen=True)
class WindowCounts:
    """What a window holds of each column, arrays over columns [C] and bins [C, B]; sums of counts are counts of both.

    counts   int64 [C, B]; columns with fewer bins have zeros at the end
    totals   sums of the values in each bin, float64 [C, B]
    missing  rows without a value, int64 [C]
    new      rows with a category that the bins do not know, int64 [C]
    """

    counts: np.ndarray
    totals: np.ndarray
    missing: np.ndarray
    new: np.ndarray

    def __add__(self, other: WindowCounts) -> WindowCounts:
        return WindowCounts(*(a + b for a, b in zip(self._arrays(), other._arrays(), strict=True)))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.counts, self.totals, self.missing, self.new

    @property
    def known(self) -> np.ndarray:
        """Rows with a value that the bins know, int64 [C]."""
        return self.counts.sum(axis=1)

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int((self.known + self.missing + self.new)[0]) if len(self.missing) else 0


# --------------------------------------------------------------------------------------------------------------------
# How far two sets of counts are apart.


@dataclass(frozen=True)
class Distances:
    """Of each column, arrays [C]; NaN where a side has no value.

    distance       Kolmogorov-Smirnov distance at the edges; of categories half the sum of the shares' differences, new
                   ones together as one more
    distance_most  the most that it can be if the values inside the bins were known
    p_value        of no difference: of values, of missing ones, twice the smaller
    wasserstein    mean shift that turns one distribution into the other, in standard deviations of the reference; NaN
                   of categories
    stability      population stability index of ten groups of the reference
    missing        share of missing values less that of the reference
    new            share of unknown categories less that of the reference
    """

    distance: np.ndarray
    distance_most: np.ndarray
    p_value: np.ndarray
    wasserstein: np.ndarray
    stability: np.ndarray
    missing: np.ndarray
    new: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """What is held against the least distance that matters: the larger of distance and gap of missing values."""
        return np.fmax(self.distance, np.abs(self.missing))


def distances(bins: ColumnBins, reference: WindowCounts, current: WindowCounts) -> Distances:
    """Compare two sets of counts in the same bins.

    Args:
        bins: of the columns.
        reference: What is usual.
        current: What is compared.

    Returns:
        The distances.

    Raises:
        DataError: One side has no row.
    """
    for which, counts in (("the reference", reference), ("the window", current)):
        if not counts.rows:
            raise DataError(f"{which} has no row: drift compares rows of a window with those of a reference")
    categorical = np.array([name in bins.categories for name in bins.names])
    below, above = (ratio(c.counts.cumsum(axis=1).astype(float), c.known[:, None]) for c in (reference, current))
    distance = np.abs(below - above).max(axis=1)
    before = [np.hstack([np.zeros((len(c), 1)), c[:, :-1]]) for c in (below, above)]
    most = np.maximum(below - before[1], above - before[0]).max(axis=1)
    size = ratio(reference.known * current.known.astype(float), (reference.known + current.known).astype(float))
    p_values = kstwobign.sf(np.sqrt(size) * distance)
    for i in np.flatnonzero(categorical):
        distance[i], p_values[i] = _categories(*(np.append(c.counts[i], c.new[i]) for c in (reference, current)))
    gaps, unequal = _shares(reference.missing, reference.rows, current.missing, current.rows)
    p_both = np.minimum(1.0, 2 * np.fmin(p_values, unequal))
    return Distances(
        distance,
        np.where(categorical, distance, most),
        p_both,
        np.where(categorical, np.nan, _wasserstein(bins, reference, current, below, above)),
        np.array([_stability(r, c) for r, c in zip(reference.counts, current.counts, strict=True)]),
        gaps,
        current.new / current.rows - reference.new / reference.rows,
    )


def _categories(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """(half the sum of the shares' differences, p-value by chi-square, rare categories together)."""
    n, m = reference.sum(), current.sum()
    if not n or not m:
        return math.nan, math.nan
    gap = float(np.abs(reference / n - current / m).sum() / 2)
    pooled = (reference + current) * (min(n, m) / (n + m))
    rare = pooled < 5
    sides = [np.append(side[~rare], side[rare].sum()).astype(float) for side in (reference, current)]
    usual = (sides[0] + sides[1]) / (n + m)
    kept = usual > 0
    statistic = sum(
        float(((side - total * usual)[kept] ** 2 / (total * usual)[kept]).sum())
        for side, total in zip(sides, (n, m), strict=True)
    )
    return gap, float(chi2.sf(statistic, max(1, int(kept.sum()) - 1)))


def _shares(a: np.ndarray, n: int, b: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(share of b less share of a, p-value of no difference), [C]."""
    gap, pooled = b / m - a / n, (a + b) / (n + m)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return gap, np.where(error > 0, 2 * norm.sf(np.abs(ratio(gap, error))), 1.0)


def _wasserstein(
    bins: ColumnBins, reference: WindowCounts, current: WindowCounts, below: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """Between the bins' means, and in the outer bins, which have no end, between the means of both sides; the spread is
    that of the bins' means, too."""
    means, now = (ratio(c.totals, c.counts.astype(float)) for c in (reference, current))
    n = reference.known
    mean = ratio(reference.totals.sum(axis=1), n)
    square = (reference.counts * (np.nan_to_num(means) - np.nan_to_num(mean)[:, None]) ** 2).sum(axis=1)
    spread = np.sqrt(ratio(square, n))
    moved = np.zeros(len(bins.names))
    for i, size in enumerate(bins.sizes):
        if bins.names[i] in bins.categories or not n[i] or not current.known[i]:
            continue
        places = np.where(np.isnan(means[i, :size]), now[i, :size], means[i, :size])
        used = ~np.isnan(places)
        at, gap = places[used], np.abs(below - above)[i, :size][used]
        ends = {0, size - 1}
        shift = sum(ratio(current.counts[i, j], current.known[i]) * abs(now[i, j] - places[j]) for j in ends
                    if current.counts[i, j] and used[j])  # fmt: skip
        moved[i] = float(gap[:-1] @ np.diff(at)) + float(shift)
    return np.where((n > 0) & (current.known > 0), ratio(moved, spread), np.nan)


def _stability(reference: np.ndarray, current: np.ndarray) -> float:
    n, m = reference.sum(), current.sum()
    if not n or not m:
        return math.nan
    group = np.minimum((reference.cumsum() - 1) * GROUPS // n, GROUPS - 1)
    group = np.maximum(group, 0)
    p, q = (np.bincount(group, side, minlength=GROUPS) for side in (reference, current))
    used = (p + q) > 0
    p, q = np.maximum(p[used], SMALL_SHARE) / n, np.maximum(q[used], SMALL_SHARE) / m
    return float(((q - p) * np.log(q / p)).sum())


# --------------------------------------------------------------------------------------------------------------------
# Which windows are of the same season.

WEEK = timedelta(days=7)
YEAR = 52 * WEEK  # the same weekday of last year


def season_windows(
    start: datetime, known: Iterable[datetime], holidays: Iterable[date] = (), weeks: int = 2
) -> list[datetime]:
    """Earlier windows that a window is compared with: last year's, else those of the same weekday of the last weeks.

    Args:
        start: of the window.
        known: Starts of earlier windows.
        holidays: Days that are compared with earlier holidays alone, and with which nothing else is.
        weeks: that are looked back; a yearly season moves a column by half a standard deviation in no less than a
            quarter, so two weeks see little of it.

    Returns:
        Starts, ascending; none where there is no window of the season.
    """
    feasts = set(holidays)
    earlier = {one for one in known if one < start}
    if start.date() in feasts:
        return sorted(one for one in earlier if one.date() in feasts and one.time() == start.time())
    usual = {one for one in earlier if one.date() not in feasts}
    last_year = [start - YEAR + step * WEEK for step in (-1, 0, 1)]
    if len(of_last_year := [one for one in last_year if one in usual]) > 1:
        return of_last_year
    return sorted(one for one in (start - step * WEEK for step in range(1, weeks + 1)) if one in usual)


# --------------------------------------------------------------------------------------------------------------------
# Whether a column drifts.

DriftState = Literal["steady", "season", "unmatched", "drift", "trigger"]


@dataclass(frozen=True)
class DriftLimits:
    """From where on a column drifts.

    size     least distance, and least gap of shares of missing values
    alpha    of the p-values after adjustment for all columns of the window (Benjamini and Hochberg 1995)
    windows  of the last so many windows, the newest among them,
    needed   so many must drift for a trigger
    """

    size: float = 0.05
    alpha: float = 0.01
    windows: int = 5
    needed: int = 2


@dataclass(frozen=True)
class ColumnDrift:
    """What became of one column in one window.

    state  steady; season: it differs from the training set, as it does in this season; unmatched: it differs, and there
           is no window of the season to compare with; drift: it differs from its season; trigger: drift that persists
    """

    column: str
    state: DriftState
    n: int
    n_reference: int
    distance: float
    distance_most: float
    p_value: float
    adjusted_p: float
    season_distance: float
    season_p: float
    wasserstein: float
    stability: float
    missing: float
    new: float


def window_drift(
    bins: ColumnBins,
    reference: WindowCounts,
    season: WindowCounts | None,
    current: WindowCounts,
    limits: DriftLimits | None = None,
) -> list[ColumnDrift]:
    """Compare a window with the training set and with the windows of its season.

    Args:
        bins: of the columns.
        reference: Counts of the training set.
        season: Counts of the season's windows together; None without any.
        current: Counts of the window.
        limits: From where on a column drifts.

    Returns:
        One for each column, in their order; `with_triggers` looks at earlier windows, too.

    Raises:
        DataError: The window or a reference has no row.
    """
    limits = limits or DriftLimits()
    now = distances(bins, reference, current)
    adjusted = false_discovery(now.p_value)
    differs = (now.size >= limits.size) & (adjusted <= limits.alpha)
    in_season, season_p = np.full(len(bins.names), np.nan), np.full(len(bins.names), np.nan)
    state = np.where(differs, "unmatched", "steady")
    if season is not None:
        then = distances(bins, season, current)
        in_season, season_p = then.size, false_discovery(then.p_value)
        still = (in_season >= limits.size) & (season_p <= limits.alpha)
        state = np.where(still, "drift", np.where(differs, "season", "steady"))
    known, usual = current.known, reference.known
    return [
        ColumnDrift(
            *(name, str(state[i]), int(known[i]), int(usual[i])),  # type: ignore[arg-type]
            *(float(now.distance[i]), float(now.distance_most[i]), float(now.p_value[i]), float(adjusted[i])),
            *(float(in_season[i]), float(season_p[i]), float(now.wasserstein[i]), float(now.stability[i])),
            *(float(now.missing[i]), float(now.new[i])),
        )
        for i, name in enumerate(bins.names)
    ]


def with_triggers(
    drifts: Sequence[ColumnDrift], earlier: Sequence[Iterable[str]], limits: DriftLimits | None = None
) -> list[ColumnDrift]:
    """Turn drift that persists into triggers.

    Args:
        drifts: of the newest window.
        earlier: Columns that drifted (or triggered) in each of the windows before, newest last.
        limits: How many windows it takes.

    Returns:
        The same with state `trigger` where it persists.
    """
    limits = limits or DriftLimits()
    back = limits.windows - 1
    before = [set(columns) for columns in (earlier[-back:] if back else ())]
    return [
        replace(one, state="trigger")
        if one.state == "drift" and 1 + sum(one.column in columns for columns in before) >= limits.needed
        else one
        for one in drifts
    ]
