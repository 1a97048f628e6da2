"""Features cast once, and their bins: numbers by quantile edges, text by category; bin 0 is missing.

A bin is one byte. Only this module and `forest.encode` look at a frame's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class NumberColumn:
    """A numeric column: values float64 [n], NaN where missing; `kind` is the type that it had in the frame."""

    kind: pa.DataType
    values: np.ndarray

    def take(self, which: np.ndarray) -> NumberColumn:
        """The rows that a mask or an index array picks."""
        return NumberColumn(self.kind, self.values[which])


@dataclass(frozen=True)
class TextColumn:
    """A text column: codes int32 [n] into its dictionary `names` [D], -1 where missing; no name is there twice.

    `kind` is the type that the column had in the frame. After `take` some names may have no row.
    """

    kind: pa.DataType
    codes: np.ndarray
    names: pa.Array

    def take(self, which: np.ndarray) -> TextColumn:
        """The rows that a mask or an index array picks, with the whole dictionary."""
        return TextColumn(self.kind, self.codes[which], self.names)

    def counts(self) -> dict[str, int]:
        """Rows of every name that has any, in the order of the dictionary."""
        rows = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).tolist()
        return {name: n for name, n in zip(self.names.to_pylist(), rows, strict=True) if n}

    def coded_by(self, names: Sequence[str], missing: int = -1) -> np.ndarray:
        """Position of each row's name among `names`, int64 [n]; `missing` for other names and for none."""
        positions = pc.index_in(self.names, value_set=pa.array(names, pa.large_string()))
        return np.append(pc.fill_null(positions, missing).to_numpy(zero_copy_only=False), missing)[self.codes]


TypedColumn: TypeAlias = NumberColumn | TextColumn
Features: TypeAlias = Mapping[str, TypedColumn]
ArrowRows: TypeAlias = pa.RecordBatch | pa.Table


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


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def as_numbers(column: pa.ChunkedArray | pa.Array) -> NumberColumn:
    """Cast a numeric column to float64; null becomes NaN."""
    array = flat(column)
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.uint8())
    values = np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return NumberColumn(column.type, values)


def as_text(column: pa.ChunkedArray | pa.Array) -> TextColumn:
    """Cast a column to text, coded by a dictionary. A dictionary of the frame's own is cast, not its rows."""
    array = flat(column)
    if pa.types.is_dictionary(array.type):
        coded = pc.cast(array.dictionary, pa.large_string()).dictionary_encode()  # its names may repeat
        new_code = np.append(_codes(coded), np.int32(-1))
        return TextColumn(column.type, new_code[_codes(array)], coded.dictionary)
    coded = pc.cast(array, pa.large_string()).dictionary_encode()
    return TextColumn(column.type, _codes(coded), coded.dictionary)


def _codes(coded: pa.DictionaryArray) -> np.ndarray:
    """Codes of a dictionary array, int32 [n], -1 where null."""
    codes = pc.fill_null(pc.cast(coded.indices, pa.int32()), -1)
    return np.asarray(codes.to_numpy(zero_copy_only=False))


def encode_features(frame: Features | ArrowRows, names: Iterable[str], threads: int = 1) -> Features:
    """Cast these columns of a frame, each once; columns that are encoded already pass as they are.

    Raises DataError where a column is missing, or is neither numeric nor text.
    """
    columns = {name: _column(frame, name) for name in names}
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(columns, pool.map(_encode_feature, columns, columns.values()), strict=True))


def _column(frame: Features | ArrowRows, name: str) -> Any:
    try:
        return frame[name] if isinstance(frame, Mapping) else frame.column(name)
    except KeyError as error:
        raise DataError(f"column {name!r} is missing from the frame: the model was trained with it; add it") from error


def _encode_feature(name: str, column: Any) -> TypedColumn:
    if isinstance(column, NumberColumn | TextColumn):
        return column
    check_feature(name, column.type)
    return as_text(column) if is_text(column.type) else as_numbers(column)


def check_feature(name: str, kind: pa.DataType) -> None:
    """Raise DataError unless a feature of this Arrow type is numeric or text."""
    if pa.types.is_dictionary(kind) and is_number(kind.value_type):
        raise DataError(
            f"feature {name!r} has categories that are numbers: cast it to text if they are names, else to a number"
        )
    if not (is_text(kind) or is_number(kind)):
        raise DataError(f"feature {name!r} has type {kind}: cast it to a number or text")


def check_kind(one: FeatureBins, kind: pa.DataType) -> None:
    """Raise DataError where a column of this Arrow type is text and the bins are of numbers, or the reverse."""
    if one.categorical != is_text(kind) and not pa.types.is_null(kind):
        trained_type = "text" if one.categorical else "numeric"
        raise DataError(
            f"column {one.name!r} has type {kind} but the model was trained with a {trained_type} column; cast it"
        )


def fit_bins(
    sample: Features | ArrowRows, features: Sequence[str], max_bins: int, threads: int = 1
) -> tuple[FeatureBins, ...]:
    """Bins of every feature from a sample of rows; depends on the set of rows only, not on their order."""
    columns = encode_features(sample, features, threads)
    with ThreadPoolExecutor(threads) as pool:
        return tuple(pool.map(lambda name: _fit_one(name, columns[name], max_bins), features))


def _fit_one(name: str, column: TypedColumn, max_bins: int) -> FeatureBins:
    if isinstance(column, TextColumn):
        return _fit_categories(name, column)
    return _fit_edges(name, column.values, max_bins)


def _fit_categories(name: str, column: TextColumn) -> FeatureBins:
    pairs = sorted(column.counts().items(), key=lambda pair: (-pair[1], pair[0]))
    kept = tuple(value for value, _ in pairs[:MAX_CATEGORIES])
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


def apply_bins(frame: Features | ArrowRows, bins: Sequence[FeatureBins], threads: int = 1) -> np.ndarray:
    """Bins of every row, uint8 [n, p] row-major. Raises DataError on a missing or retyped column or infinite values."""
    columns = encode_features(frame, [one.name for one in bins], threads)
    with ThreadPoolExecutor(threads) as pool:
        by_feature = list(pool.map(lambda one: _apply_one(columns[one.name], one), bins))
    if not by_feature:
        return np.empty((0, 0), np.uint8)
    out = np.empty((by_feature[0].size, len(bins)), np.uint8)
    for low in range(0, len(out), 4096):  # in blocks: turning columns into rows at once would miss the cache
        out[low : low + 4096] = np.stack([column[low : low + 4096] for column in by_feature], axis=1)
    return out


def _apply_one(column: TypedColumn, one: FeatureBins) -> np.ndarray:
    check_kind(one, column.kind)
    if isinstance(column, TextColumn):
        return _apply_categories(column, one)
    if one.categorical:  # a column of nulls
        return np.zeros(column.values.size, np.uint8)
    return _apply_edges(column.values, one)


def _apply_edges(values: np.ndarray, one: FeatureBins) -> np.ndarray:
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"column {one.name!r} is infinite in {infinite} rows: replace them by null or a finite value")
    out = np.empty(values.size, np.uint8)
    _digitise(values, np.asarray(one.edges, dtype=np.float64), out)
    return out


def _apply_categories(column: TextColumn, one: FeatureBins) -> np.ndarray:
    positions = pc.index_in(column.names, value_set=pa.array(one.categories, pa.large_string()))
    bins = np.append(pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1, 0)
    if one.has_other:
        bins[:-1][bins[:-1] == 0] = OTHER
    return bins.astype(np.uint8)[column.codes]
