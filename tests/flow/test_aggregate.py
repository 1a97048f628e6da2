"""Sums by rank bin, resample and cut: equal to brute force, and to the last bit for any partitioning."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from tests.flow.scored import mid_ranks
from uplift_spark.flow.aggregate import (
    KEYS,
    Grid,
    Histogram,
    Plan,
    Ranking,
    add_rows,
    cut_sums,
    histograms,
    merge_cells,
    rank_sums,
    sql_integers,
)
from uplift_spark.stats.intervals import poisson_weights
from uplift_spark.stats.moments import FIELDS, POWERS, FixedPoint

LEVELS = ("a", "b")
BINS = 10


def _rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "level": rng.choice(LEVELS, n),
        "treated": rng.integers(0, 2, n).astype(np.int32),
        "key": rng.integers(0, 40, n) * 1000,  # many ties
        "unit_hash": rng.integers(-(2**63), 2**63, n, dtype=np.int64),
        "weight": rng.uniform(1, 4, n),
        "value_0": rng.integers(0, 2, n).astype(float),
        "value_1": rng.lognormal(3, 1, n),
        "predicted": rng.normal(size=n),
        "cut_0": rng.choice(["x", "y", "missing"], n),
        "cut_1": rng.choice(["p", "q"], n),
    }


ROWS = _rows()
POINTS = tuple(FixedPoint.of(4.0, np.abs(ROWS[v]).max()) for v in ("value_0", "value_1", "predicted"))
PLAN = Plan(LEVELS, POINTS, replicates=9, seed=3)


def _ranking(rows):
    counted = []
    for level in LEVELS:
        key, mass = np.unique(rows["key"][rows["level"] == level], return_counts=True)
        counted.append(Histogram(key[::-1], mass[::-1], mass[::-1], mass[::-1]))
    return Ranking.of(counted, BINS)


def _by_hand(rows, cells, n_cells):
    """Moments and resampled sums per cell, by loops over cells."""
    draws = poisson_weights(rows["unit_hash"], PLAN.seed, PLAN.replicates)
    moments = {f: np.zeros((n_cells, 3)) for f in FIELDS}
    resampled_w, resampled_wy = np.zeros((PLAN.replicates, n_cells)), np.zeros((PLAN.replicates, n_cells, 2))
    for cell in range(n_cells):
        mine = cells == cell
        w = rows["weight"][mine]
        resampled_w[:, cell] = draws[mine].T @ w
        moments["n"][cell] = mine.sum()
        for j, value in enumerate(PLAN.values):
            y = rows[value][mine]
            for f, (a, b) in POWERS.items():
                moments[f][cell, j] = (w**a * y**b).sum()
            if j < 2:
                resampled_wy[:, cell, j] = draws[mine].T @ (w * y)
    return moments, resampled_w, resampled_wy


def _cells(rows, bin_of_row):
    codes = np.array([LEVELS.index(level) for level in rows["level"]])
    return (codes * 2 + rows["treated"]) * BINS + bin_of_row


@pytest.fixture(scope="module")
def frame(spark):
    return spark.createDataFrame(pa.table(ROWS))


def test_bins_are_those_of_the_mid_ranks():
    ranking = _ranking(ROWS)
    codes = np.array([LEVELS.index(level) for level in ROWS["level"]])
    found = ranking.bin_of(codes, ROWS["key"])
    for code in (0, 1):
        mine = codes == code
        middle = mid_ranks(ROWS["key"][mine].astype(float), np.ones(mine.sum()))
        np.testing.assert_array_equal(found[mine], np.floor(middle * BINS))
    # All tied: one bin, the middle one. Keys beyond the ones counted go to the ends.
    tied = Ranking.of([Histogram(np.array([7]), np.array([5]), np.array([5]), np.array([5]))], BINS)
    assert tied.bin_of(np.zeros(1, int), np.array([7])).tolist() == [5]
    assert ranking.bin_of(np.zeros(2, int), np.array([KEYS, -1])).tolist() == [0, BINS - 1]


def test_worker_adds_up_what_brute_force_does():
    ranking = _ranking(ROWS)
    codes = pa.array([LEVELS.index(level) for level in ROWS["level"]], pa.int32())
    table = pa.table({**ROWS, "level": codes})
    batches = table.to_batches(max_chunksize=250)
    parts = [batch for b in batches for batch in add_rows([b], ranking, PLAN)]
    (merged,) = merge_cells(parts)
    (at_once,) = add_rows(batches, ranking, PLAN)
    apart = dict(zip(merged["cell"].to_pylist(), merged["sums"].to_pylist(), strict=True))
    assert apart == dict(zip(at_once["cell"].to_pylist(), at_once["sums"].to_pylist(), strict=True))
    cells = _cells(ROWS, ranking.bin_of(codes.to_numpy(), ROWS["key"]))
    assert sorted(apart) == sorted(set(cells.tolist()))


def test_no_rows_give_no_cells():
    (empty,) = add_rows([], _ranking(ROWS), PLAN)
    assert empty.num_rows == 0
    assert next(merge_cells([empty])).num_rows == 0


@pytest.fixture(scope="module")
def summed(frame):
    ranking = _ranking(ROWS)
    return {p: rank_sums(frame.repartition(p), ranking, PLAN) for p in (1, 3, 7)}


def test_rank_sums_equal_brute_force(summed):
    ranking, found = _ranking(ROWS), summed[3]
    codes = np.array([LEVELS.index(level) for level in ROWS["level"]])
    cells = _cells(ROWS, ranking.bin_of(codes, ROWS["key"]))
    moments, resampled_w, resampled_wy = _by_hand(ROWS, cells, 2 * 2 * BINS)
    for f in FIELDS:
        np.testing.assert_allclose(getattr(found.moments, f).reshape(-1, 3), moments[f], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.resampled_w.reshape(9, -1), resampled_w, rtol=1e-7)
    np.testing.assert_allclose(found.resampled_wy.reshape(9, -1, 2), resampled_wy, rtol=1e-6)


@pytest.mark.parametrize("partitions", [3, 7])
def test_rank_sums_do_not_depend_on_partitions(summed, partitions):
    one, many = summed[1], summed[partitions]
    for f in FIELDS:
        np.testing.assert_array_equal(getattr(one.moments, f), getattr(many.moments, f))
    np.testing.assert_array_equal(one.resampled_w, many.resampled_w)
    np.testing.assert_array_equal(one.resampled_wy, many.resampled_wy)


def test_cut_sums_in_sql_equal_rank_sums_in_numpy(frame, summed):
    """Two engines, one set of integers: summed over buckets and over bins, cuts and ranks agree to the last bit."""
    total = summed[3].moments.sum(axis=2)
    cuts = cut_sums(frame.repartition(5), 2, PLAN)
    assert [cut.buckets for cut in cuts] == [("missing", "x", "y"), ("p", "q")]
    for cut in cuts:
        for f in FIELDS:
            np.testing.assert_array_equal(getattr(cut.moments.sum(axis=2), f), getattr(total, f))
    inside = (ROWS["level"] == "b") & (ROWS["treated"] == 1) & (ROWS["cut_0"] == "x")
    assert cuts[0].moments.n[1, 1, 1, 0] == inside.sum()
    assert cuts[0].moments.wy[1, 1, 1, 1] == pytest.approx((ROWS["weight"] * ROWS["value_1"])[inside].sum(), rel=1e-7)
    assert cut_sums(frame, 0, PLAN) == []


def test_sql_integers_are_numpys(frame):
    point = POINTS[1]
    columns = [sql_integers(point, f, F.col("weight"), F.col("value_1")).alias(f) for f in POWERS]
    table = frame.select("unit_hash", *columns).toArrow().sort_by("unit_hash")
    order = np.argsort(ROWS["unit_hash"])
    for f in POWERS:
        expected = point.integers(f, ROWS["weight"], ROWS["value_1"])[order]
        np.testing.assert_array_equal(table[f].to_numpy(), expected)


def test_keys_keep_the_order_of_scores_and_counts_are_exact(frame):
    grid = Grid(*(tuple(float(end(ROWS["predicted"][ROWS["level"] == v])) for v in LEVELS) for end in (np.min, np.max)))
    keyed = frame.withColumn("key", grid.key(F.col("predicted"), F.col("level"), LEVELS))
    counted = histograms(keyed, LEVELS, F.lit(2).cast("bigint"), F.col("value_0").cast("bigint"))
    for level, found in zip(LEVELS, counted, strict=True):
        mine = ROWS["level"] == level
        assert found.key[0] >= KEYS - 2 and found.key[-1] == 0 and (np.diff(found.key) < 0).all()
        assert found.n.sum() == mine.sum() and found.mass.sum() == 2 * mine.sum()
        score = ROWS["predicted"][mine]
        scale = (KEYS - 1) / (score.max() - score.min())
        keys, inverse = np.unique(-np.floor((score - score.min()) * scale).astype(int), return_inverse=True)
        np.testing.assert_array_equal(found.key, -keys)
        np.testing.assert_array_equal(found.value, np.bincount(inverse, weights=ROWS["value_0"][mine]))


def test_scores_all_equal_share_one_key(frame):
    grid = Grid((0.5, 0.5), (0.5, 0.5))
    keyed = frame.withColumn("key", grid.key(F.lit(0.5), F.col("level"), LEVELS))
    one = F.lit(1).cast("bigint")
    assert [h.key.tolist() for h in histograms(keyed, LEVELS, one, one)] == [[0], [0]]
