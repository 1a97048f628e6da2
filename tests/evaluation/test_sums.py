"""Sums by rank bin, resample and cut: equal to brute force, and to the last bit for any partitioning."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from tests.evaluation.scored import mid_ranks
from uplift_spark.evaluation.spark import all_sums, rank_keys
from uplift_spark.evaluation.sums import Grid, Ranking, SumsPlan, add_cells, merge_cells, thresholds, unpacked
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
SUMS_PLAN = SumsPlan(LEVELS, POINTS, replicates=9, seed=3, cuts=2)


def _ranking(rows):
    counted = [np.unique(rows["key"][rows["level"] == level], return_counts=True) for level in LEVELS]
    return Ranking(np.stack([thresholds(key[::-1], mass[::-1], BINS) for key, mass in counted]))


def _by_hand(rows, cells, n_cells):
    """Moments and resampled sums per cell, by loops over cells."""
    draws = poisson_weights(rows["unit_hash"], SUMS_PLAN.seed, SUMS_PLAN.replicates)
    moments = {f: np.zeros((n_cells, 3)) for f in FIELDS}
    resampled_w, resampled_wy = np.zeros((SUMS_PLAN.replicates, n_cells)), np.zeros((SUMS_PLAN.replicates, n_cells, 2))
    for cell in range(n_cells):
        mine = cells == cell
        w = rows["weight"][mine]
        resampled_w[:, cell] = draws[mine].T @ w
        moments["n"][cell] = mine.sum()
        for j, value in enumerate(SUMS_PLAN.values):
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
    bins = ranking.bin_of(codes, ROWS["key"])
    for code in (0, 1):
        mine = codes == code
        middle = mid_ranks(ROWS["key"][mine].astype(float), np.ones(mine.sum()))
        np.testing.assert_array_equal(bins[mine], np.floor(middle * BINS))
    # All tied: one bin, the middle one. Keys beyond the ones counted go to the ends.
    tied = Ranking(thresholds(np.array([7]), np.array([5]), BINS)[None])
    assert tied.bin_of(np.zeros(1, int), np.array([7])).tolist() == [5]
    assert ranking.bin_of(np.zeros(2, int), np.array([10**9, -1])).tolist() == [0, BINS - 1]


def _batches(size):
    codes = pa.array([LEVELS.index(level) for level in ROWS["level"]], pa.int32())
    return pa.table({**ROWS, "level": codes}).to_batches(max_chunksize=size)


def test_worker_and_brute_force_agree():
    ranking = _ranking(ROWS)
    (at_once,) = add_cells(_batches(600), ranking, SUMS_PLAN)
    (merged,) = merge_cells([part for batch in _batches(250) for part in add_cells([batch], ranking, SUMS_PLAN)])
    apart, together = (sorted(zip(*(b.to_pydict()).values(), strict=True)) for b in (merged, at_once))
    assert apart == together
    _check(unpacked(pa.Table.from_batches([merged]), BINS, SUMS_PLAN))


def _check(sums):
    ranking = _ranking(ROWS)
    codes = np.array([LEVELS.index(level) for level in ROWS["level"]])
    cells = _cells(ROWS, ranking.bin_of(codes, ROWS["key"]))
    moments, resampled_w, resampled_wy = _by_hand(ROWS, cells, 2 * 2 * BINS)
    for f in FIELDS:
        np.testing.assert_allclose(getattr(sums.moments, f).reshape(-1, 3), moments[f], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums.resampled_w.reshape(9, -1), resampled_w, rtol=1e-7)
    np.testing.assert_allclose(sums.resampled_wy.reshape(9, -1, 2), resampled_wy, rtol=1e-6)
    assert [cut.buckets for cut in sums.cuts] == [("missing", "x", "y"), ("p", "q")]
    for c, cut in enumerate(sums.cuts):
        for b, bucket in enumerate(cut.buckets):
            cells = np.where(ROWS[f"cut_{c}"] == bucket, codes * 2 + ROWS["treated"], -1)
            moments, _, _ = _by_hand(ROWS, cells, 4)
            for f in FIELDS:
                mine = getattr(cut.moments, f)[:, :, b].reshape(4, 3)
                np.testing.assert_allclose(mine, moments[f], rtol=1e-6, atol=1e-6)


def test_no_rows_give_no_cells():
    (empty,) = add_cells([], _ranking(ROWS), SUMS_PLAN)
    assert empty.num_rows == 0
    assert next(merge_cells([empty])).num_rows == 0
    assert unpacked(pa.Table.from_batches([empty]), BINS, SUMS_PLAN).moments.n.sum() == 0


@pytest.fixture(scope="module")
def summed(frame):
    return {p: all_sums(frame.repartition(p), _ranking(ROWS), SUMS_PLAN) for p in (1, 3, 7)}


def test_sums_equal_brute_force(summed):
    _check(summed[3])


@pytest.mark.parametrize("partitions", [3, 7])
def test_sums_do_not_depend_on_partitions(summed, partitions):
    one, many = summed[1], summed[partitions]
    for f in FIELDS:
        np.testing.assert_array_equal(getattr(one.moments, f), getattr(many.moments, f))
        for mine, theirs in zip(one.cuts, many.cuts, strict=True):
            np.testing.assert_array_equal(getattr(mine.moments, f), getattr(theirs.moments, f))
    np.testing.assert_array_equal(one.resampled_w, many.resampled_w)
    np.testing.assert_array_equal(one.resampled_wy, many.resampled_wy)


@pytest.mark.parametrize("units", [600, 10**9])
def test_keys_keep_the_order_of_scores(frame, units):
    bounds = ([float(end(ROWS["predicted"][ROWS["level"] == v])) for v in LEVELS] for end in (np.min, np.max))
    grid = Grid.of(*bounds, units)
    column = rank_keys(grid, F.col("predicted"), F.col("level"), LEVELS).alias("found")
    table = frame.select("level", "predicted", column).orderBy("level", "predicted").toPandas()
    for _, rows in table.groupby("level"):
        assert rows.found.iloc[0] == 0 and grid.keys - 2 <= rows.found.iloc[-1] < grid.keys
        assert (rows.found.diff().dropna() >= 0).all()
        step = (rows.predicted.max() - rows.predicted.min()) / (grid.keys - 1)
        np.testing.assert_allclose(rows.found * step + rows.predicted.min(), rows.predicted, atol=1.001 * step)


def test_scores_all_equal_share_one_key(frame):
    key = rank_keys(Grid.of((0.5, 0.5), (0.5, 0.5), 600), F.lit(0.5), F.col("level"), LEVELS)
    assert [row[0] for row in frame.select(key).distinct().collect()] == [0]
