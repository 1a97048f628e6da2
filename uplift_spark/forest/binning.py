"""Features to bins: numbers by quantile edges, text by category; bin 0 is missing. One byte per value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import DataError
from uplift_spark.forest.trees import LANES, search_step

MAX_CATEGORIES = 253  # bins 1..253 for the most frequent, 254 for all the others, 0 for missing
OTHER = MAX_CATEGORIES + 1


@dataclass(frozen=True)
class FeatureBins:
    """How one feature becomes a byte.

    Numeric: `edges` ascending, bin = 1 + number of edges < x, so bin b holds edges[b-2] < x ≤ edges[b-1].
    Categorical: `categories` in bin order; anything else falls into OTHER if `has_other`, else is missing.
    """

    name: str
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] | None = None
    has_other: bool = False

    @property
    def categorical(self) -> bool:
        return self.categories is not None

    @property
    def n_bins(self) -> int:
        """Number of bins including the missing one; every bin is below it."""
        if self.categories is None:
            return len(self.edges) + 2
        return OTHER + 1 if self.has_other else len(self.categories) + 1

    def to_dict(self) -> dict[str, Any]:
        if self.categories is None:
            return {"name": self.name, "edges": list(self.edges)}
        return {"name": self.name, "categories": list(self.categories), "has_other": self.has_other}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> FeatureBins:
        categories = tuple(raw["categories"]) if "categories" in raw else None
        return cls(raw["name"], tuple(raw.get("edges", ())), categories, bool(raw.get("has_other", False)))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type is categorical."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type is numeric (booleans count as 0/1)."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A text or dictionary column as one plain string array."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.cast(array, pa.large_string())


def as_numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A numeric column as float64 [n], null as NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.uint8())
    return np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def fit_bins(sample: pa.Table, features: Sequence[str], max_bins: int, threads: int = 1) -> tuple[FeatureBins, ...]:
    """Bins of every feature from a sample of rows; depends on the set of rows only, not on their order."""
    with ThreadPoolExecutor(threads) as pool:
        return tuple(pool.map(lambda name: _fit_one(name, sample.column(name), max_bins), features))


def _fit_one(name: str, column: pa.ChunkedArray, max_bins: int) -> FeatureBins:
    return _fit_categories(name, column) if is_text(column.type) else _fit_edges(name, as_numbers(column), max_bins)


def _fit_categories(name: str, column: pa.ChunkedArray) -> FeatureBins:
    counts = pc.value_counts(as_text(column).drop_null())
    pairs = sorted(
        zip(counts.field(1).to_pylist(), counts.field(0).to_pylist(), strict=True), key=lambda p: (-p[0], p[1])
    )
    kept = tuple(value for _, value in pairs[:MAX_CATEGORIES])
    return FeatureBins(name, categories=kept, has_other=len(pairs) > MAX_CATEGORIES)


def _fit_edges(name: str, values: np.ndarray, max_bins: int) -> FeatureBins:
    finite = np.sort(values[np.isfinite(values)])
    distinct = finite[np.r_[True, finite[1:] > finite[:-1]][: finite.size]]
    if distinct.size <= max_bins:
        # Midpoints: a value that falls between two known ones goes to the nearer.
        edges = distinct[:-1] + np.diff(distinct) / 2
    else:
        ranks = (np.arange(1, max_bins) * finite.size) // max_bins
        edges = np.unique(finite[ranks - 1])
        edges = edges[edges < finite[-1]]
    return FeatureBins(name, edges=tuple(float(e) for e in edges))


@nb.njit(cache=True, nogil=True)
def _digitise(values, edges, out):
    """1 + number of edges below each value, 0 where missing. Sixteen searches side by side, of fixed length."""
    padded = np.full(256, np.inf)
    padded[: edges.size] = edges
    half = 1
    while half < edges.size + 1:
        half *= 2
    below, last = np.empty(LANES, np.int32), np.full(LANES, np.nan)
    for i in range(0, values.size, LANES):
        count = min(LANES, values.size - i)
        last[:count] = values[i : i + count]
        below[:] = 0
        step = half // 2
        while step > 0:
            search_step(padded, last, below, step)
            step //= 2
        for j in range(count):
            out[i + j] = 0 if np.isnan(last[j]) else below[j] + 1


def apply_bins(
    columns: Mapping[str, Any] | pa.Table | pa.RecordBatch, bins: Sequence[FeatureBins], threads: int = 1
) -> np.ndarray:
    """Bins of every row, uint8 [n, p] row-major. Raises DataError on a missing or retyped column or infinite values."""
    with ThreadPoolExecutor(threads) as pool:
        by_feature = list(pool.map(lambda one: _apply_one(_column(columns, one.name), one), bins))
    if not by_feature:
        return np.empty((0, 0), np.uint8)
    out = np.empty((by_feature[0].size, len(bins)), np.uint8)
    for low in range(0, len(out), 4096):  # in blocks: turning columns into rows at once would miss the cache
        out[low : low + 4096] = np.stack([column[low : low + 4096] for column in by_feature], axis=1)
    return out


def _column(columns: Any, name: str) -> Any:
    try:
        return columns[name] if isinstance(columns, Mapping) else columns.column(name)
    except KeyError as error:
        raise DataError(f"column {name!r} is missing from the frame: the model was trained with it; add it") from error


def _apply_one(column: Any, one: FeatureBins) -> np.ndarray:
    kind = column.type
    if one.categorical != is_text(kind) and not pa.types.is_null(kind):
        trained_type = "text" if one.categorical else "numeric"
        raise DataError(
            f"column {one.name!r} has type {kind} but the model was trained with a {trained_type} column; cast it"
        )
    return _apply_categories(column, one) if one.categorical else _apply_edges(column, one)


def _apply_edges(column: Any, one: FeatureBins) -> np.ndarray:
    values = as_numbers(column)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"column {one.name!r} is infinite in {infinite} rows: replace them by null or a finite value")
    out = np.empty(values.size, np.uint8)
    _digitise(values, np.asarray(one.edges, dtype=np.float64), out)
    return out


def _apply_categories(column: Any, one: FeatureBins) -> np.ndarray:
    text = as_text(column)
    positions = pc.index_in(text, value_set=pa.array(one.categories, pa.large_string()), skip_nulls=True)
    codes = pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    if one.has_other:
        codes[(codes == 0) & text.is_valid().to_numpy(zero_copy_only=False)] = OTHER
    return codes.astype(np.uint8)
