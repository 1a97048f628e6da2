"""Bins: edges, categories, missing values, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.errors import DataError
from uplift_spark.forest.binning import MAX_CATEGORIES, OTHER, FeatureBins, apply_bins, fit_bins
from uplift_spark.stats.sampling import unit_hashes


def one(values, max_bins=64):
    table = pa.table({"x": values})
    (bins,) = fit_bins(table, ["x"], max_bins)
    return bins, apply_bins(table, [bins])[:, 0]


def test_few_values_get_a_bin_each_and_missing_is_zero():
    _, bins = one(pa.array([3.0, 1.0, None, 2.0, float("nan"), 1.0]))
    assert bins.tolist() == [3, 1, 0, 2, 0, 1]


def test_many_values_share_bins_evenly_and_keep_order():
    values = np.random.default_rng(0).lognormal(size=10_000)
    _, bins = one(values, 50)
    assert np.all(np.diff(bins[np.argsort(values)].astype(int)) >= 0)
    counts = np.bincount(bins)[1:]
    assert len(counts) == 50 and counts.min() > 150


def test_heavy_ties_do_not_lose_the_tail():
    values = np.r_[np.zeros(9_000), np.arange(1, 1001)]
    bins_, bins = one(values, 20)
    assert bins_.n_bins <= 21 and len(np.unique(bins)) > 1 and len(set(bins[:9000])) == 1


def test_edges_do_not_depend_on_row_order():
    values = np.random.default_rng(1).normal(size=5000)
    assert one(values)[0] == one(values[::-1].copy())[0]


def test_categories_by_frequency_missing_and_unseen():
    bins, codes = one(pa.array(["b", "a", None, "b"]))
    assert bins.categories == ("b", "a") and codes.tolist() == [1, 2, 0, 1]
    assert apply_bins(pa.table({"x": ["new", "a"]}), [bins])[:, 0].tolist() == [0, 2]


def test_a_million_categories_stay_bounded():
    names = np.random.default_rng(2).integers(0, 1_000_000, 50_000).astype(str)
    bins, codes = one(names)
    assert len(bins.categories) == MAX_CATEGORIES and codes.max() == OTHER


def test_booleans_and_integers_are_numbers():
    _, bins = one(pa.array([True, False, None]))
    assert bins.tolist() == [2, 1, 0]


def test_round_trip_through_json():
    for values in (pa.array([1.5, 2.5]), pa.array(["x", "y"])):
        bins, _ = one(values)
        assert FeatureBins.from_dict(bins.to_dict()) == bins


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"y": [1.0]}), "'x' is missing"),
        (pa.table({"x": ["a"]}), "trained with a numeric column"),
        (pa.table({"x": [float("inf"), 1.0]}), "infinite in 1 rows"),
    ],
)
def test_a_broken_column_is_named(table, message):
    with pytest.raises(DataError, match=message):
        apply_bins(table, [FeatureBins("x", edges=(0.5,))])


def test_hash_is_sparks_xxhash64():
    # SELECT xxhash64('Spark'), xxhash64('12345678901'), xxhash64(repeat('x', 40)), xxhash64('')
    expected = [-4294468057691064905, 1289184137244022994, -5348608777870439244, -7444071767201028348]
    hashes = unit_hashes(pa.array(["Spark", "12345678901", "x" * 40, ""]), "id").astype(np.int64)
    assert hashes.tolist() == expected
    sliced = unit_hashes(pa.array(["zzz", "Spark"]).slice(1), "id").astype(np.int64)
    assert sliced.tolist() == expected[:1]
    assert unit_hashes(pa.array([12345678901]), "id").astype(np.int64).tolist() == expected[1:2]
