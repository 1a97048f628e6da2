"""An order-free, exact fingerprint of a frame's rows: equal multisets of rows, equal digest."""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

Digest = tuple[int, ...]

_LOW_HALF = 0xFFFFFFFF


def digest(frame: DataFrame, columns: Iterable[str]) -> Digest:
    """(rows, and per seed the sums of both halves of a 64-bit hash of each row) over `columns`, in one Spark job.

    Sums see duplicates and not order. Nulls, NaN and nested values count; -0.0 equals 0.0. Up to 2^31 rows.
    """
    cells = [_cell(F.col(name), frame.schema[name].dataType) for name in sorted(columns)]
    hashes = [F.xxhash64(F.lit(seed), *cells) for seed in (1, 2)]
    halves = [half for code in hashes for half in (code.bitwiseAND(F.lit(_LOW_HALF)), F.shiftrightunsigned(code, 32))]
    sums = [F.coalesce(F.sum(half), F.lit(0)).alias(f"h{place}") for place, half in enumerate(halves)]
    row = frame.agg(F.count(F.lit(1)).alias("rows"), *sums).first()
    return tuple(int(value) for value in row) if row is not None else (0,)


def _cell(value: Column, kind: DataType) -> Column:
    # xxhash64 skips nulls, so (null, 1) and (1, null) would collide without the flag.
    return F.struct(value.isNull().alias("absent"), _hashable(value, kind).alias("value"))


def _hashable(value: Column, kind: DataType) -> Column:
    """`value` in a form that xxhash64 takes and that tells [[1], [2]] from [[1, 2]] and knows no order of map keys."""
    if isinstance(kind, MapType):
        return _list(F.array_sort(F.map_entries(value)), _entry(kind))
    if isinstance(kind, ArrayType):
        return _list(value, kind.elementType)
    if isinstance(kind, StructType):
        return F.struct(*(_cell(value[field.name], field.dataType).alias(field.name) for field in kind))
    return value


def _list(values: Column, kind: DataType) -> Column:
    return F.struct(F.size(values).alias("size"), F.transform(values, lambda value: _cell(value, kind)).alias("items"))


def _entry(kind: MapType) -> StructType:
    return StructType().add("key", kind.keyType).add("value", kind.valueType)
