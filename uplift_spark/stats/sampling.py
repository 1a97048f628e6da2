"""Draws from the hash of a unit id: buckets, half-samples, folds and resampling weights."""

from __future__ import annotations

import numba as nb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import DataError

# --------------------------------------------------------------------------------------------------------------------
# Unit hashes, and everything drawn from them: buckets, half-samples, folds.
# Randomness that depends on a unit is a function of its id, never of its place in a table, so the same forest grows
# whatever the order or partitioning of the rows. The base hash is XXH64 with seed 42 over the UTF-8 id, which is
# what Spark's `xxhash64(cast(id as string))` computes: SQL users can reproduce every draw.

BUCKET_SALT, HALVES_SALT, FOLDS_SALT, SAMPLE_SALT, TREE_SALT = (
    np.uint64(s) for s in (0xB0C, 0xBA6, 0x40E, 0x5A3, 0x7EE)
)

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_SEED = np.uint64(42)


@nb.njit(cache=True, nogil=True, inline="always")
def _rotl(x, r):
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@nb.njit(cache=True, nogil=True, inline="always")
def _round(acc, word):
    return _rotl(acc + word * _P2, 31) * _P1


@nb.njit(cache=True, nogil=True, inline="always")
def _word(data, at, size):
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return value


@nb.njit(cache=True, nogil=True)
def _stripes(data, at, stop):
    """The 32-byte stripes of XXH64; returns the merged accumulator."""
    v1, v2, v3, v4 = _SEED + _P1 + _P2, _SEED + _P2, _SEED, _SEED - _P1
    while at + 32 <= stop:
        v1 = _round(v1, _word(data, at, 8))
        v2 = _round(v2, _word(data, at + 8, 8))
        v3 = _round(v3, _word(data, at + 16, 8))
        v4 = _round(v4, _word(data, at + 24, 8))
        at += 32
    h = _rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18)
    for v in (v1, v2, v3, v4):
        h = (h ^ _round(np.uint64(0), v)) * _P1 + _P4
    return h


@nb.njit(cache=True, nogil=True)
def _xxh64(data, start, stop):
    length = stop - start
    h = _stripes(data, start, stop) if length >= 32 else _SEED + _P5
    h += np.uint64(length)
    at = start + length // 32 * 32
    while at + 8 <= stop:
        h = _rotl(h ^ _round(np.uint64(0), _word(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= stop:
        h = _rotl(h ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < stop:
        h = _rotl(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@nb.njit(cache=True, nogil=True)
def _hash_all(data, offsets, out):
    for i in range(out.size):
        out[i] = _xxh64(data, offsets[i], offsets[i + 1])


@nb.njit(cache=True, nogil=True, inline="always")
def mix64(x, seed, salt):
    """One 64-bit draw for hash `x` under (`seed`, `salt`): splitmix64's finaliser over both (Steele et al. 2014)."""
    z = x ^ (seed * np.uint64(0x9E3779B97F4A7C15)) ^ (salt * np.uint64(0xD1B54A32D192ED03))
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@nb.njit(cache=True, nogil=True)
def mix64_all(hashes, seed, salt):
    """`mix64` of every hash: uint64 [n] -> uint64 [n]."""
    out = np.empty_like(hashes)
    for i in range(hashes.size):
        out[i] = mix64(hashes[i], seed, salt)
    return out


def unit_hashes(ids: pa.ChunkedArray | pa.Array, column: str) -> np.ndarray:
    """XXH64 of the ids' text, uint64 [n]. Ids must be strings or integers without nulls, else DataError."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not (pa.types.is_integer(array.type) or pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise DataError(f"column {column!r} has type {array.type}: ids must be text or integers; cast it")
    if array.null_count:
        raise DataError(f"column {column!r} is null in {array.null_count} rows: every row needs an id; drop them")
    text = pc.cast(array, pa.large_string())
    _, offsets, data = text.buffers()
    out = np.empty(len(text), dtype=np.uint64)
    if len(text):
        bounds = np.frombuffer(offsets, dtype=np.int64)[text.offset : text.offset + len(text) + 1]
        content = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
        _hash_all(content, bounds, out)
    return out


def folds_of(key: np.ndarray, seed: np.uint64) -> np.ndarray:
    """The cross-fitting fold of each row, 0 or 1: int64 [n]."""
    return (mix64_all(key, seed, FOLDS_SALT) & np.uint64(1)).astype(np.int64)


@nb.njit(cache=True, nogil=True)
def halves_of(key, seed, n_bags):
    """Which half-samples each key is in, a bit per little bag: uint64 [n, words]."""
    words = (n_bags + 63) // 64
    out = np.empty((key.size, words), np.uint64)
    for i in range(key.size):
        for word in range(words):
            out[i, word] = mix64(key[i], seed, HALVES_SALT + (np.uint64(word) << np.uint64(16)))
    return out


@nb.njit(cache=True, nogil=True, inline="always")
def in_half(halves, i, bag):
    """Whether row i is in the bag's half-sample."""
    return (halves[i, bag >> 6] >> np.uint64(bag & 63)) & np.uint64(1) != 0


@nb.njit(cache=True, nogil=True, inline="always")
def shapes(bucket, first, n_buckets, growth_buckets):
    """Whether a bucket's rows shape the trees that start at bucket `first`: they are then no part of their leaves."""
    ahead = bucket - first  # no remainder: a division per row and tree would cost as much as the walk
    return ahead + (n_buckets if ahead < 0 else 0) < growth_buckets


@nb.njit(cache=True, nogil=True)
def growth_rows(rows, seed, tree, design):
    """Mask of the rows (key, bucket) that shape the tree: bool [n]. design is (bag size, buckets, growth buckets)."""
    key, bucket = rows
    bag, n_buckets, growth_buckets = design
    halves = halves_of(key, seed, tree // bag + 1)
    out = np.empty(key.size, np.bool_)
    for i in range(key.size):
        out[i] = shapes(bucket[i], tree % n_buckets, n_buckets, growth_buckets) and in_half(halves, i, tree // bag)
    return out
