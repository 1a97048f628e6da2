"""Policy trees on Spark: the same bytes as in one process, whatever the partitions (R5.3).

A *frame of rewards* has one row per unit: `bins` binary (uint8 [p]) and `rewards` array<double> [K], see `policy.tree`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.flow.aggregate import KEYED, keyed, sums_by_key
from uplift_spark.policy.tree import Overview, PolicyTree, Value, difference_point, drawn_sums, value_sums, values
from uplift_spark.policy.tree_search import GROUPS, Path, Plan, add_pairs, best_tree, empty_pairs, plan_of
from uplift_spark.stats.intervals import Draws
from uplift_spark.stats.moments import MIN_UNITS, FixedPoint

_OVERVIEW = "counts binary, largest double, wrong bigint"
_VALUES = "sums binary, drawn binary"


def tree_of(
    frame: DataFrame,
    features: Sequence[FeatureBins],
    levels: Sequence[str],
    depth: int = 2,
    min_units: int = MIN_UNITS,
    groups: int = GROUPS,
) -> PolicyTree:
    """`best_tree` of a frame of rewards: two passes, four at depth 3. Levels name the rewards, the control first.

    Raises DataError and ConfigError as `plan_of` and `best_tree`.
    """
    rows = frame.select("bins", "rewards")
    plan = plan_of(_overview_of(rows, len(features), len(levels)), features, levels, groups)
    return best_tree(partial(_look, rows, plan), plan, depth, min_units)


def values_of(frame: DataFrame, tree: PolicyTree, draws: Draws | None = None) -> list[Value]:
    """`values` of a tree for a frame of rewards of units that had no part in growing it: two passes.

    draws  of clusters, where units come in some; the frame then has `unit_hash` bigint, of the unit's cluster
    """
    rows = frame.select("bins", "rewards", *(["unit_hash"] if draws else []))
    point = difference_point(_overview_of(rows, len(tree.features), len(tree.levels)).checked())
    found = rows.mapInArrow(partial(value_batches, tree, point, draws), _VALUES).toArrow()
    sums, drawn = (
        np.sum([np.frombuffer(part.as_buffer(), np.int64) for part in found.column(name)], axis=0)
        for name in ("sums", "drawn")
    )
    levels = len(tree.levels)
    return values(tree, sums.reshape(levels, -1), point, drawn.reshape(-1, 1 + levels) if draws else None)


def _overview_of(rows: DataFrame, p: int, k: int) -> Overview:
    found = rows.mapInArrow(partial(overview_batches, p, k), _OVERVIEW).toArrow().to_pylist()
    each = (Overview(np.frombuffer(r["counts"], np.int64).reshape(p, 256), r["largest"], r["wrong"]) for r in found)
    return reduce(Overview.__add__, each, Overview.empty(p))


def _look(rows: DataFrame, plan: Plan, path: Path) -> np.ndarray:
    total = empty_pairs(plan)
    for first, part in sums_by_key(rows.mapInArrow(partial(pair_batches, plan, path), KEYED)).items():
        total[first] = part.reshape(total[first].shape)
    return total


# Workers: Arrow in, Arrow out, no Spark.

Batches = Iterator[pa.RecordBatch]


def read_units(batch: pa.RecordBatch, p: int, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(bins uint8 [n, p], rewards float64 [n, k]) of a frame of rewards, null as NaN, and rows of another length."""
    packed, lists = pc.cast(batch.column("bins"), pa.binary()), batch.column("rewards")
    lengths = (pc.binary_length(packed), p), (pc.list_value_length(lists), k)
    good = pc.and_(*(pc.fill_null(pc.equal(length, wanted), False) for length, wanted in lengths))
    packed, lists = packed.filter(good), lists.filter(good)
    bins = np.frombuffer(b"".join(packed.to_pylist()), np.uint8).reshape(-1, p)
    rewards = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, k)
    return bins, rewards, len(batch) - len(packed)


def overview_batches(p: int, k: int, batches: Batches) -> Batches:
    """One row: the overview of a partition."""
    total = Overview.empty(p)
    for batch in batches:
        bins, rewards, wrong = read_units(batch, p, k)
        total += Overview.of(bins, rewards) + replace(Overview.empty(p), wrong=wrong)
    yield pa.record_batch(
        {
            "counts": pa.array([total.counts.tobytes()], pa.binary()),
            "largest": pa.array([total.largest], pa.float64()),
            "wrong": pa.array([total.wrong], pa.int64()),
        }
    )


def pair_batches(plan: Plan, path: Path, batches: Batches) -> Batches:
    """Pair sums of a partition's units on a path, by the pair's first group."""
    sums = empty_pairs(plan)
    for batch in batches:
        bins, rewards, _ = read_units(batch, len(plan.features), len(plan.levels))
        add_pairs(sums, plan, bins, rewards, path)
    yield keyed({int(first): sums[first] for first in np.flatnonzero(sums[..., 0].any(axis=1))})


def value_batches(tree: PolicyTree, point: FixedPoint, draws: Draws | None, batches: Batches) -> Batches:
    """Sums of the tree's value, one row per batch, of units that were looked at before: none of them is wrong."""
    for batch in batches:
        bins, rewards, _ = read_units(batch, len(tree.features), len(tree.levels))
        sums = {"sums": value_sums(tree, bins, rewards, point), "drawn": np.zeros(0, np.int64)}
        if draws:
            hashes = batch.column("unit_hash").to_numpy(zero_copy_only=False)
            sums["drawn"] = drawn_sums(tree, bins, rewards, point, (hashes, draws))
        yield pa.record_batch({name: pa.array([array.tobytes()], pa.binary()) for name, array in sums.items()})
