"""Digests of tables that know neither row order nor column names, and sentences about how two of them differ.

A column's digest is one of the multiset of its values, a table's one of the multiset of its rows. A value goes into its
row's hash together with its column's digest, not with its column's name: a renamed column changes no digest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGITS = 10
Digests = dict[str, Any]

_NULL = np.uint64(0x9E3779B97F4A7C15)
_TAGS = {"bool": 1, "int": 2, "float": 3, "text": 4, "time": 5, "nested": 6}


def table_digest(table: pa.Table, left_out: Mapping[str, str] | None = None, rounded: tuple[str, ...] = ()) -> Digests:
    """{rows, exact, digits10, columns: {name: {exact, digits10, shows}}} of a table.

    left_out  columns that do not count
    rounded   columns of which only the first DIGITS digits count, because their last bits are not the same in two runs
    """
    names = [name for name in table.column_names if name not in (left_out or {})]
    columns: Digests = {}
    rows = {"exact": np.zeros(table.num_rows, np.uint64), "digits10": np.zeros(table.num_rows, np.uint64)}
    for name in names:
        column = table.column(name)
        hashes = {"exact": value_hashes(column, name in rounded), "digits10": value_hashes(column, True)}
        said = {kind: _multiset(values) for kind, values in hashes.items()}
        for kind, values in hashes.items():
            rows[kind] = rows[kind] + _mixed(values ^ np.uint64(int(said[kind], 16)))
        columns[name] = {**_either(said, name in rounded), "shows": _shown(column)}
    return {"rows": table.num_rows, **{k: _multiset(v) for k, v in rows.items()}, "columns": columns}


def _either(said: dict[str, str], rounded: bool) -> dict[str, str]:
    """One digest where rounding changes nothing or last bits do not count, else both."""
    if rounded:
        return {"digits10": said["digits10"]}
    return {"exact": said["exact"]} if said["exact"] == said["digits10"] else said


def value_hashes(column: pa.ChunkedArray, rounded: bool = False) -> np.ndarray:
    """A 64-bit hash of every value, uint64 [n]; -0.0 is 0.0, every NaN is the same."""
    array = column.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        return value_hashes(pa.chunked_array([array.dictionary_decode()]), rounded)
    if pa.types.is_floating(kind):
        values = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0
        values = np.where(np.isnan(values), np.nan, values)
        hashes = _tagged("float", (_round(values) if rounded else values).view(np.uint64))
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        values = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        hashes = _tagged("bool" if pa.types.is_boolean(kind) else "int", values.view(np.uint64))
    elif pa.types.is_temporal(kind):
        micros = array.cast(pa.timestamp("us", getattr(kind, "tz", None))).cast(pa.int64()).fill_null(0)
        hashes = _tagged("time", micros.to_numpy(zero_copy_only=False).view(np.uint64))
    elif pa.types.is_nested(kind):
        hashes = _tagged("nested", _of_texts([_text(value, rounded) for value in array.to_pylist()]))
    else:
        hashes = _tagged("text", _of_texts(array.cast(pa.string()).fill_null("").to_pylist()))
    return np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashes)


def _tagged(tag: str, bits: np.ndarray) -> np.ndarray:
    return _mixed(bits ^ _mixed(np.array([_TAGS[tag]], np.uint64)))


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: one changed bit changes all."""
    bits = bits + _NULL
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _round(values: np.ndarray) -> np.ndarray:
    different, place = np.unique(values, return_inverse=True)
    return np.array([float(f"{value:.{DIGITS - 1}e}") for value in different.tolist()], float)[place]


def _of_texts(texts: list[str]) -> np.ndarray:
    known = {text: int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in set(texts)}
    return np.array([known[text] for text in texts], np.uint64)


def _text(value: Any, rounded: bool) -> str:
    """A list, map or struct as text; entries of a map and fields of a struct in the order of their keys."""
    if isinstance(value, float):
        return f"{value + 0.0:.{DIGITS - 1}e}" if rounded else (value + 0.0).hex()
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(item, rounded) for item in value)}]"
    return repr(value)


def _multiset(hashes: np.ndarray) -> str:
    """Digest of the hashes in any order."""
    sums = [len(hashes), int(hashes.sum(dtype=np.uint64)), int(_mixed(hashes).sum(dtype=np.uint64))]
    return hashlib.blake2b(repr(sums).encode(), digest_size=8).hexdigest()


def _shown(column: pa.ChunkedArray) -> str:
    """What a reader sees of a column: its sum or the number of its values, and how many are missing."""
    column = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    kind, missing = column.type, column.null_count
    if pa.types.is_floating(kind):
        values = [value for value in column.to_pylist() if value is not None]
        missing += sum(math.isnan(value) for value in values)
        said = f"sum {_sum([value for value in values if not math.isnan(value)]):.6g}"
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        said = f"sum {pc.sum(column.cast(pa.int64())).as_py() or 0}"
    elif pa.types.is_nested(kind):
        said = f"{len({repr(value) for value in column.to_pylist()})} values"
    else:
        said = f"{pc.count_distinct(column).as_py()} values"
    return said + (f", {missing} missing" if missing else "")


def _sum(values: list[float]) -> float:
    infinite = [value for value in values if math.isinf(value)]
    return sum(infinite) if infinite else math.fsum(values)


# ---------------------------------------------------------------- what differs


def differences(
    name: str, old: Digests, new: Digests, renamed: Mapping[str, str] | None = None, to_the_bit: bool = True
) -> list[str]:
    """A sentence for each difference between two digests of a table; `renamed` is {column now: column then}, for
    digests that were made before the column got its name."""
    then = dict(old["columns"])
    before = {column: name for column, name in (renamed or {}).items() if name in then}
    now = {before.get(column, column): (column, said) for column, said in new["columns"].items()}
    told = [
        f"{name} lost the column {column} ({then[column]['shows']})." for column in sorted(then.keys() - now.keys())
    ]
    told += [f"{name} has the new column {now[c][0]} ({now[c][1]['shows']})." for c in sorted(now.keys() - then.keys())]
    if old["rows"] != new["rows"]:
        told.append(f"{name} had {old['rows']} rows and has {new['rows']}.")
    for column in sorted(then.keys() & now.keys()):
        known_as, said = now[column]
        before = then[column]
        if _same(before, said, to_the_bit):
            continue
        if _same(before, said, False):
            told.append(f"{name}: column {known_as} differs in bits beyond the {DIGITS}th digit ({said['shows']}).")
        else:
            told.append(f"{name}: column {known_as} showed {before['shows']} and shows {said['shows']}, other values.")
    if not told and not _same(old, new, to_the_bit):
        told.append(f"{name}: every column holds the same values, but they meet in other rows.")
    return told


def _same(old: Digests, new: Digests, to_the_bit: bool) -> bool:
    rounded = [said.get("digits10", said.get("exact")) for said in (old, new)]
    if to_the_bit and "exact" in old and "exact" in new:
        return bool(old["exact"] == new["exact"])
    return bool(rounded[0] == rounded[1])
