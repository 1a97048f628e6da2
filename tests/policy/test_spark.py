"""Limits as constraints; policy trees on Spark: tree and value are those of one process, whatever the partitions."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pyarrow as pa
import pytest

from tests.policy.test_trees import NUMERIC, TEXT, units_of
from uplift_spark.config import Limit
from uplift_spark.errors import ConfigError
from uplift_spark.policy.spark import constraints, overview_batches, read_units, tree_of, values_of
from uplift_spark.policy.trees import fit_tree, honest_values
from uplift_spark.stats.intervals import Draws

LEVELS = ["none", "mail", "call"]
SCHEMA = pa.schema([("bins", pa.binary()), ("rewards", pa.list_(pa.float64()))])


def table_of(bins, rewards):
    return pa.table([[row.tobytes() for row in bins], rewards.tolist()], schema=SCHEMA)


def test_rows_that_are_not_whole_are_counted_and_left_out():
    rows = [
        (b"ab", [1.0, 2.0]),
        (b"abc", [1.0, 2.0]),
        (None, [1.0, 2.0]),
        (b"ab", [1.0]),
        (b"ab", None),
        (b"cd", [3, None]),
    ]
    batch = pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    for part, units, wrong in ((batch, 2, 4), (batch.slice(4), 1, 1), (batch.slice(1, 3), 0, 3)):
        bins, rewards, incomplete = read_units(part, 2, 2)
        assert (bins.shape, rewards.shape, incomplete) == ((units, 2), (units, 2), wrong)
    bins, rewards, _ = read_units(batch, 2, 2)
    assert bins.tobytes() == b"abcd" and rewards[0].tolist() == [1, 2] and np.isnan(rewards[1, 1])
    (overview,) = overview_batches(2, 2, iter([batch, batch.slice(5), batch.slice(0, 1)]))
    assert overview.column("wrong").to_pylist() == [6]  # null rewards count as wrong, too
    counts = np.frombuffer(overview.column("counts")[0].as_py(), np.int64).reshape(2, 256)
    assert counts.sum() == 4 and counts[0, ord("a")] == counts[1, ord("b")] == 2


def test_spark_finds_the_tree_and_its_value_whatever_the_partitions(spark):
    rng = np.random.default_rng(6)
    features = [NUMERIC, TEXT, NUMERIC]
    bins, _ = units_of(rng, 2000, features, 3)
    rewards = rng.normal(size=(2000, 3)) * np.exp(rng.normal(size=(2000, 1))) + (bins[:, :1] - 2.0) * [0, 1, -1]
    frame = spark.createDataFrame(table_of(bins, rewards))
    tree = fit_tree(bins, rewards, features, LEVELS, 3)
    assert len(tree.nodes) > 7  # depth 3
    assert tree_of(frame.repartition(5), features, LEVELS, 3) == tree
    assert tree_of(frame.coalesce(1), features, LEVELS, 2) == fit_tree(bins, rewards, features, LEVELS, 2)
    here = [astuple(value) for value in honest_values(tree, bins, rewards)]
    assert [astuple(value) for value in values_of(frame.repartition(3), tree)] == here
    hashes, draws = np.arange(2000) // 4, Draws(3, 50)
    clustered = frame.toArrow().append_column("unit_hash", pa.array(hashes))
    values = values_of(spark.createDataFrame(clustered).repartition(3), tree, draws)
    bins, rewards, _ = read_units(clustered.combine_chunks().to_batches()[0], 3, 3)
    assert [astuple(v) for v in values] == [astuple(v) for v in honest_values(tree, bins, rewards, (hashes, draws))]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Limit(units=5, segment="city", bucket="z"), "no candidate has city = 'z'; there are x, y"),
        (Limit(units=3001, least=True), "1 more than there are"),
        (Limit(units=5, level="20%"), "level '20%' is none of 5%, 10%"),
    ],
)
def test_limits_beyond_the_candidates_are_refused(limit, message):
    segments = (limit.segment,) if limit.segment else ()
    units = {"": {"": 3000}, "city": {"x": 1500, "y": 1500}}
    with pytest.raises(ConfigError, match=message):
        constraints((limit,), ("5%", "10%"), segments, units)
