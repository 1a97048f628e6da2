"""Mergeable sums of weighted outcomes, and what follows from them: means, differences, intervals.

A cell (a decile of one arm, a segment, a whole arm) is seven sums. Cells add, so sums of parts of the data, in any
order, give the sums of the whole; every figure divides last. To make addition exact whatever the partitioning,
rows become fixed-point integers once (`FixedPoint`), and only totals become floats again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

POWERS = {"w": (1, 0), "ww": (2, 0), "wy": (1, 1), "wyy": (1, 2), "wwy": (2, 1), "wwyy": (2, 2)}
"""Powers of weight and outcome in each sum."""

FIELDS = ("n", *POWERS)

MIN_UNITS = 30
"""An arm with fewer units gives no mean: a normal interval would not be true."""

LARGEST = 1e70
"""Sizes of outcomes and weights from which their products are no longer sure to be finite."""

_BITS = 31


def normal_quantile(level: float) -> float:
    """Half-width of a two-sided normal interval in standard errors: 1.96 for .95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


@dataclass(frozen=True)
class FixedPoint:
    """Rows as 64-bit integers that add exactly: term w^a·y^b becomes rint(w^a·y^b·2^shift).

    A term is at most 2^31, so 2^31 rows can be added in 64 bits. Each row is rounded to 2^-32 of the largest term;
    whole-number outcomes up to 2^31 are not rounded at all.
    """

    shifts: dict[str, int]

    @classmethod
    def of(cls, largest_weight: float, largest_outcome: float) -> FixedPoint:
        """Shifts for terms whose factors are at most these in size, which must be below LARGEST.

        Zero or missing sizes count as one, sizes below 1 / LARGEST as that.
        """
        weight, outcome = (_log2(x) for x in (largest_weight, largest_outcome))
        return cls({f: _BITS - math.ceil(a * weight + b * outcome) for f, (a, b) in POWERS.items()})

    def integers(self, field: str, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Terms of one sum, int64 [rows], from weights and outcomes, float64 [rows]."""
        a, b = POWERS[field]
        term = w if a == 1 else w * w
        for _ in range(b):
            term = term * y
        return np.rint(term * 2.0 ** self.shifts[field]).astype(np.int64)

    def floats(self, field: str, sums: np.ndarray) -> np.ndarray:
        """Integer sums of one field back in the outcome's units, float64."""
        return np.asarray(sums, np.float64) * 2.0 ** -self.shifts.get(field, 0)


def _log2(size: float) -> float:
    return math.log2(max(abs(size), 1 / LARGEST)) if size and math.isfinite(size) else 0.0


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of each cell; all arrays have one shape, the last axis being outcomes where there are several.

    n     rows          w    Σw          ww    Σw²
    wy    Σw·y          wyy  Σw·y²       wwy   Σw²·y       wwyy  Σw²·y²
    """

    n: np.ndarray
    w: np.ndarray
    ww: np.ndarray
    wy: np.ndarray
    wyy: np.ndarray
    wwy: np.ndarray
    wwyy: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, w: np.ndarray | None = None) -> Moments:
        """Sums of rows y [rows, ...] with weights w [rows, ...] (default one) over the first axis."""
        y = np.asarray(y, np.float64)
        w = np.ones_like(y) if w is None else np.broadcast_to(np.asarray(w, np.float64), y.shape)
        terms = (np.ones_like(y), w, w * w, w * y, w * y * y, w * w * y, w * w * y * y)
        return cls(*(t.sum(axis=0) for t in terms))

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Moments:
        """Empty cells."""
        return cls(*(np.zeros(shape) for _ in FIELDS))

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f) + getattr(other, f) for f in FIELDS))

    def __getitem__(self, index: object) -> Moments:
        return Moments(*(getattr(self, f)[index] for f in FIELDS))

    def sum(self, axis: int) -> Moments:
        """Cells along one axis merged into one."""
        return Moments(*(getattr(self, f).sum(axis=axis) for f in FIELDS))

    @property
    def mean(self) -> np.ndarray:
        """Hájek mean Σw·y / Σw; NaN for an empty cell."""
        return ratio(self.wy, self.w)

    @property
    def squared_error(self) -> np.ndarray:
        """Squared standard error of `mean`: n/(n-1)·Σw²(y-mean)² / (Σw)².

        Equal weights give the classical s²/n; others the linearised (Taylor) error of a ratio of totals.
        NaN below two rows.
        """
        mean = self.mean
        spread = self.wwyy - 2 * mean * self.wwy + mean * mean * self.ww
        # Subtracting nearly equal sums leaves rounding of their own size: below it, the spread is zero.
        spread = np.where(spread <= 1e-9 * self.wwyy, 0.0, spread)
        return ratio(self.n * spread, (self.n - 1) * self.w * self.w)


# --------------------------------------------------------------------------------------------------------------------
# Several columns of a unit at once: what ratios, covariates and compliance need of them.


@dataclass(frozen=True)
class CrossMoments:
    """Counts, means and products about the means of V columns; cells have any shape [...].

    Products about the mean add as well as raw sums do (Chan, Golub and LeVeque 1983) and lose no digits where a mean is
    large beside its spread.

    n         rows, [...]
    mean      [..., V]
    products  Σ(x - mean)(x - mean)', [..., V, V]
    """

    n: np.ndarray
    mean: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, cell: np.ndarray | None = None, shape: tuple[int, ...] = ()) -> CrossMoments:
        """Moments of rows.

        Args:
            x: Columns of each row, [rows, V].
            cell: Flat index of each row's cell in `shape`, [rows]; one cell without it.
            shape: Shape of the cells.

        Returns:
            Moments [*shape]; empty cells have n 0 and mean 0.
        """
        x = np.asarray(x, np.float64)
        cells, columns = math.prod(shape), x.shape[1]
        code = np.zeros(len(x), np.int64) if cell is None else np.asarray(cell)
        pivot = x.mean(axis=0) if len(x) else np.zeros(columns)
        x = x - pivot
        n = np.bincount(code, minlength=cells).astype(np.float64)
        sums, products = np.zeros((cells, columns)), np.zeros((cells, columns, columns))
        order = np.argsort(code, kind="stable")
        x, ends = x[order], np.cumsum(n).astype(np.int64)
        for one in np.flatnonzero(n):  # a product of matrices adds up all pairs of columns at once
            rows = x[ends[one] - int(n[one]) : ends[one]]
            sums[one], products[one] = rows.sum(axis=0), rows.T @ rows
        wide = (*shape, columns)
        return cls.of_sums(n.reshape(shape), sums.reshape(wide), products.reshape(*wide, columns), pivot)

    @classmethod
    def of_sums(
        cls, n: np.ndarray, sums: np.ndarray, products: np.ndarray, pivot: np.ndarray | float = 0.0
    ) -> CrossMoments:
        """From n [...], Σ(x - pivot) [..., V] and Σ(x - pivot)(x - pivot)' [..., V, V], as one pass of any engine adds
        them; a pivot near the means keeps all digits."""
        n = np.asarray(n, np.float64)
        shift = np.asarray(sums, np.float64) / np.maximum(n, 1)[..., None]
        about = np.asarray(products, np.float64) - n[..., None, None] * shift[..., :, None] * shift[..., None, :]
        return cls(n, np.where(n[..., None] > 0, shift + pivot, 0.0), about)

    def __add__(self, other: CrossMoments) -> CrossMoments:
        pairs = zip((self.n, self.mean, self.products), (other.n, other.mean, other.products), strict=True)
        return CrossMoments(*(np.stack(pair) for pair in pairs)).sum(0)

    def __getitem__(self, index: Any) -> CrossMoments:
        """Cells by an index of their axes; an ellipsis would reach into the columns."""
        return CrossMoments(self.n[index], self.mean[index], self.products[index])

    def columns(self, index: Sequence[int]) -> CrossMoments:
        """Some of the columns, in this order."""
        order = np.asarray(index, np.int64)
        return CrossMoments(self.n, self.mean[..., order], self.products[..., order[:, None], order[None, :]])

    def sum(self, axis: int) -> CrossMoments:
        """Cells along one axis, counted from the first, merged into one."""
        n = self.n.sum(axis=axis)
        mean = (self.n[..., None] * self.mean).sum(axis=axis) / np.maximum(n, 1)[..., None]
        off = self.mean - np.expand_dims(mean, axis)
        between = self.n[..., None, None] * off[..., :, None] * off[..., None, :]
        return CrossMoments(n, mean, (self.products + between).sum(axis=axis))

    @property
    def covariance(self) -> np.ndarray:
        """Sample covariance, [..., V, V]; NaN below two rows."""
        freedom = np.where(self.n > 1, self.n - 1, np.nan)
        return np.asarray(self.products / freedom[..., None, None])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where the bottom is not positive."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    out = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    return np.divide(top, bottom, out=out, where=bottom > 0)


@dataclass(frozen=True)
class Difference:
    """Difference of two arms' means with its interval; NaN means not known. Arrays of one shape."""

    treated: np.ndarray
    control: np.ndarray
    estimate: np.ndarray
    error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def difference(
    treated: Moments,
    control: Moments,
    level: float = 0.95,
    min_units: int = MIN_UNITS,
    error: np.ndarray | None = None,
) -> Difference:
    """Mean of the treated minus mean of the control, with a normal interval by Welch's standard error or by `error`.

    A mean of fewer than `min_units` rows is NaN, and so is everything that needs it. Where neither arm varies (no
    event seen at all) the standard error would be zero; the estimate stays, its error and interval are NaN, because
    unseen is not impossible.
    """
    means = [np.where(arm.n >= min_units, arm.mean, np.nan) for arm in (treated, control)]
    estimate = means[0] - means[1]
    if error is None:
        error = np.sqrt(treated.squared_error + control.squared_error)
    error = np.where((error > 0) & np.isfinite(estimate), error, np.nan)
    half = normal_quantile(level) * error
    return Difference(means[0], means[1], estimate, error, estimate - half, estimate + half)
