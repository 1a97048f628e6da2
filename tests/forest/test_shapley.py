"""Shapley values of a forest: against every coalition counted out, the package shap, and the effect that is shown."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import arm_roles, ordered_frame, ordered_roles, plain_frame, plain_roles, thousand_buckets
from tests.forest.test_doses import dose_frame, dose_roles
from uplift_spark import CausalForest
from uplift_spark.errors import ConfigError
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.forest import Forest, effect_table
from uplift_spark.forest.shapley import (
    explain_batches,
    explain_moments,
    leaf_moments,
    paths_of,
    shapley_sums,
    shapley_table,
    shapley_values,
    unit_shapley,
)
from uplift_spark.forest.trees import CATEGORICAL, LEAF, MAX_FEATURES, node_child, node_feature, node_set

SMALL = {"n_trees": 16, "n_buckets": 4, "min_leaf": 10}


def forest_of(frame: pd.DataFrame, roles, **more) -> Forest:
    return CausalForest(**{**SMALL, **more}).fit(frame, roles).forest


def bins_of(forest: Forest, frame: pd.DataFrame) -> np.ndarray:
    return apply_bins(pa.Table.from_pandas(frame), forest.plan.bins)


def goes_left(forest: Forest, t: int, word: int, b: int) -> bool:
    """As `uplift_spark.forest.trees` says in words: missing is bin 0, sets are bits."""
    at = node_set(np.uint64(word))
    if word & CATEGORICAL:
        return bool(int(forest.structure.sets[forest.structure.set_start[t] + at, b >> 6]) >> (b & 63) & 1)
    return (b - (word >> 13 & 1)) % 256 <= at


def moments_by_force(forest: Forest, row: np.ndarray, coalition: frozenset[int]) -> np.ndarray:
    """Moments of a row of which the coalition's features alone are known: down both sides of any other split."""
    s, total, values = forest.structure, 0.0, leaf_moments(forest)
    cover = forest.sums[:, :, 0].sum(axis=1)

    def below(t: int, v: int) -> tuple[float, np.ndarray]:
        word = int(s.nodes[s.node_start[t] + v])
        child = int(node_child(np.uint64(word)))
        if word & LEAF:
            leaf = s.leaf_start[t] + child
            return float(cover[leaf]), values[leaf]
        (n, left), (m, right) = below(t, child), below(t, child + 1)
        f = int(node_feature(np.uint64(word)))
        if f in coalition:
            return n + m, left if goes_left(forest, t, word, int(row[f])) else right
        return n + m, (n * left + m * right) / (n + m) if n + m else 0.0 * left

    for t in range(s.n_trees):
        if s.node_start[t] < s.node_start[t + 1]:
            total = total + below(t, 0)[1]
    return np.asarray(total)


def counted_out(forest: Forest, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapley values of the moments [p, M] by all coalitions, and the moments of no and of all features."""
    p = len(row)
    game = {
        c: moments_by_force(forest, row, c) for d in range(p + 1) for c in map(frozenset, combinations(range(p), d))
    }
    values = np.zeros((p, leaf_moments(forest).shape[1]))
    for coalition, value in game.items():
        for f in set(range(p)) - coalition:
            weight = factorial(len(coalition)) * factorial(p - len(coalition) - 1) / factorial(p)
            values[f] += weight * (game[coalition | {f}] - value)
    return values, game[frozenset()], game[frozenset(range(p))]


def moment_values(forest: Forest, bins: np.ndarray) -> np.ndarray:
    """Shapley values of the moments themselves, [n, M, p]: as many effects, each of one moment."""
    paths = paths_of(forest)
    slopes = np.repeat(np.eye(paths.base.size)[:, :, None], len(bins), axis=2)
    out = np.zeros((bins.shape[1], paths.base.size, len(bins)))
    explain_moments(paths, np.ascontiguousarray(bins.T), slopes, out)
    return out.transpose(2, 1, 0)


def worst(forest: Forest, bins: np.ndarray) -> float:
    """The largest gap between the effect that is shown and the sum of its parts, in scales of the effect."""
    values, base = shapley_values(forest, bins)
    shown = forest.effects_of(bins, errors=False)[0]
    assert np.array_equal(np.isnan(values).all(axis=2), np.isnan(shown)) and not np.isnan(shown).all()
    return float(np.nanmax(np.abs(base + values.sum(axis=2) - shown)) / np.nanmax(np.abs(shown)))


FORESTS = {
    "ordered": (lambda: ordered_frame(3000), ordered_roles, {}),
    "unordered": (lambda: ordered_frame(3000, 1), arm_roles, {"debias": False, "centre": False}),
    "deep": (lambda: ordered_frame(2000, 2), ordered_roles, {"min_leaf": 2}),
    "weighted": (lambda: ordered_frame(2000).assign(h=lambda f: 0.1 + f["spend"]), lambda: arm_roles(weight="h"), {}),
}


@pytest.fixture(scope="module", params=list(FORESTS))
def case(request) -> tuple[Forest, np.ndarray]:
    make, roles, more = FORESTS[request.param]
    frame = make()
    forest = forest_of(frame, roles(), **more)
    return forest, bins_of(forest, frame)


def test_moments_are_those_of_all_coalitions(case):
    forest, bins = case
    moments, paths = moment_values(forest, bins[:6]), paths_of(forest)
    for row, values in zip(bins[:6], moments, strict=True):
        right, none, everything = counted_out(forest, row)
        assert np.allclose(values.T, right, rtol=0, atol=1e-12 * max(1.0, np.abs(everything).max()))
        assert np.allclose(paths.base, none, rtol=1e-12)


def test_parts_add_to_the_effect_that_is_shown(case):
    assert worst(*case) < 1e-10


def test_a_ratio_is_split_between_its_two_sums():
    frame = plain_frame(2000)
    forest = replace(forest_of(frame, plain_roles(frame)), level_shrinkage=None)
    bins = bins_of(forest, frame)[:4]
    values, base = shapley_values(forest, bins)
    for row, value in zip(bins, values[:, 0], strict=True):
        right, none, everything = counted_out(forest, row)
        by_hand = np.zeros(len(row))
        for level, sign in ((0, -1.0), (1, 1.0)):
            n, s = 3 * level, 3 * level + 1
            mean = (none[s] / none[n] + everything[s] / everything[n]) / 2
            by_hand += sign * (right[:, s] - mean * right[:, n]) / ((none[n] + everything[n]) / 2)
        assert np.allclose(value, by_hand, rtol=0, atol=1e-12)
    assert base[0] == pytest.approx(none[4] / none[3] - none[1] / none[0], abs=1e-12)


def test_low_support_and_absent_levels_add_up_too():
    frame = ordered_frame(3000)
    rare = frame[(frame["arm"] != "10%") | ((frame["age"] > 60) & (frame["spend"] > 1))]
    forest = forest_of(rare, arm_roles(), min_leaf=5)
    bins = bins_of(forest, frame)
    low = forest.effects_of(bins, errors=False)[2]
    assert low.any() and not low.all()
    assert worst(forest, bins) < 1e-10
    own = replace(forest, level_shrinkage=None).effects_of(bins, errors=False)[0]
    assert np.isnan(own).any()  # so some are told by the stand-in alone
    assert worst(replace(forest, level_shrinkage=None), bins) < 1e-10
    spreadless = forest._shrinkage(forest._contrasts).copy()
    spreadless[5] = np.nan  # then no average stands in
    assert worst(replace(forest, level_shrinkage=spreadless), bins) < 1e-10


@pytest.mark.parametrize("criterion", [None, "spline"])
def test_effects_from_a_response_add_up(criterion):
    frame = dose_frame(3000)
    more = {} if criterion is None else {"criterion": criterion}
    forest = forest_of(frame, dose_roles(), min_leaf=30, **more)
    bins = bins_of(forest, frame)
    assert worst(forest, bins) < 1e-8
    assert worst(forest.at((1, 9.5)), bins) < 1e-8 and worst(forest.at((3,), partial=True), bins) < 1e-8


def test_buckets_that_grew_nothing_say_nothing():
    frame, _ = thousand_buckets()
    forest = forest_of(frame, plain_roles(frame), n_trees=200, n_buckets=1000)
    assert (np.diff(forest.structure.node_start) == 0).any()
    assert worst(forest, bins_of(forest, frame)[:500]) < 1e-10


def test_a_feature_that_no_tree_asks_has_no_value_and_the_driver_has_the_largest():
    frame = plain_frame(4000).assign(x9=0.5)
    forest = forest_of(frame, plain_roles(frame), n_trees=60, min_leaf=50)
    values, base = shapley_values(forest, pa.Table.from_pandas(frame))
    names = [one.name for one in forest.plan.bins]
    units, total = shapley_sums(values)
    mean = total[0] / units[0]
    assert (values[:, :, names.index("x9")] == 0).all()
    assert names[int(mean.argmax())] == "x0" and mean.max() > 3 * np.sort(mean)[-2]
    assert np.corrcoef(values[:, 0, names.index("x0")], frame["tau"])[0, 1] > 0.95
    assert base[0] == pytest.approx(0.5, abs=0.1)


def test_rows_do_not_depend_on_their_neighbours_nor_on_threads(case):
    forest, bins = case
    whole = shapley_values(forest, bins[:700], threads=2)[0]
    assert np.array_equal(whole[:300], shapley_values(forest, bins[:300])[0], equal_nan=True)
    parts = [shapley_sums(whole[:300]), shapley_sums(whole[300:])]
    for i, total in enumerate(shapley_sums(whole)):
        assert np.allclose(parts[0][i] + parts[1][i], total)
    assert shapley_values(forest, bins[:0])[0].shape == (0, len(forest.levels) - 1, bins.shape[1])


def test_tables_of_batches_are_those_of_rows():
    frame = ordered_frame(500)
    forest = forest_of(frame, ordered_roles())
    table = pa.Table.from_pandas(frame)
    whole = shapley_table(forest, table).to_pandas()
    parts = pa.Table.from_batches(explain_batches(forest, table.to_batches(max_chunksize=180))).to_pandas()
    assert parts.drop(columns="values").equals(whole.drop(columns="values"))
    assert np.array_equal(np.stack(parts["values"]), np.stack(whole["values"]))
    shown = effect_table(forest, table).to_pandas()
    assert (whole[["unit", "treatment"]] == shown[["unit", "treatment"]]).all(axis=None)
    assert np.allclose(whole["uplift"], shown["uplift"], rtol=0, atol=1e-12)
    assert np.allclose(whole["base"] + np.stack(whole["values"]).sum(axis=1), whole["uplift"])


def test_monotone_effects_are_refused():
    forest = forest_of(dose_frame(1000), dose_roles(), monotone="increasing")
    with pytest.raises(ConfigError, match="need a forest without `monotone`"):
        shapley_values(forest, np.zeros((1, 3), np.uint8))


def as_plain_trees(forest: Forest, moment: int) -> dict:
    """One moment of a forest of numbers without missing values, as shap's TreeExplainer takes trees."""
    s, cover, values, trees = forest.structure, forest.sums[:, :, 0].sum(axis=1), leaf_moments(forest), []
    for t in np.flatnonzero(np.diff(s.node_start)):
        words = s.nodes[s.node_start[t] : s.node_start[t + 1]]
        child, leaf = (words >> np.uint64(32)).astype(int), (words & np.uint64(LEAF)) > 0
        at = np.where(leaf, s.leaf_start[t] + child, 0)
        weight = np.where(leaf, cover[at], 0).astype(float)
        for v in range(len(words) - 1, -1, -1):
            if not leaf[v]:
                weight[v] = weight[int(child[v])] + weight[int(child[v]) + 1]
        trees.append(
            {
                "children_left": np.where(leaf, -1, child),
                "children_right": np.where(leaf, -1, child + 1),
                "children_default": np.where(leaf, -1, child),
                "features": np.where(leaf, -2, (words & np.uint64(MAX_FEATURES - 1)).astype(int)),
                "thresholds": ((words >> np.uint64(16)) & np.uint64(0xFFFF)).astype(float)
                + ((words >> np.uint64(13)) & np.uint64(1)).astype(float)
                + 0.5,
                "values": np.where(leaf, values[at, moment], 0.0)[:, None],
                "node_sample_weight": weight,
            }
        )
    return {"internal_dtype": np.float64, "input_dtype": np.float64, "trees": trees}


def test_moments_are_those_of_the_package_shap():
    shap = pytest.importorskip("shap")
    frame = plain_frame(3000, p=8)
    forest = forest_of(frame, plain_roles(frame), min_leaf=5)
    bins = bins_of(forest, frame)[:50]
    values = moment_values(forest, bins)
    for moment in (0, 1, 3, 4):
        explainer = shap.TreeExplainer(as_plain_trees(forest, moment), feature_perturbation="tree_path_dependent")
        right = explainer.shap_values(bins.astype(float), check_additivity=False)
        assert np.allclose(values[:, moment], right, rtol=0, atol=1e-6 * np.abs(right).max())


# ---------------------------------------------------------------- one unit, with errors


@pytest.mark.parametrize(("frame", "roles"), [(plain_frame(1500), None), (ordered_frame(1500), arm_roles())])
def test_a_unit_s_values_are_the_sum_of_the_trees_parts(frame, roles):
    forest = forest_of(frame, roles or plain_roles(frame), n_trees=40)
    bins = bins_of(forest, frame)[5:6]
    values, errors = unit_shapley(forest, bins)
    assert np.array_equal(values, shapley_values(forest, bins)[0][0])
    assert errors.shape == values.shape and (errors[np.abs(values) > 0] > 0).all() and not errors[values == 0].any()


def test_errors_of_a_unit_s_values_are_their_spread_over_trainings():
    point = pd.DataFrame([{f"x{i}": 0.9 if i == 0 else 0.5 for i in range(5)}])
    shown, errors = [], []
    for seed in range(16):
        frame = plain_frame(2000, seed)
        forest = forest_of(frame, plain_roles(frame), n_trees=100, seed=seed, n_buckets=4, min_leaf=20)
        values, error = unit_shapley(forest, bins_of(forest, point))
        shown.append(values[0, 0])
        errors.append(error[0, 0])
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std(shown, ddof=1)
    assert 0.5 < ratio < 2.0, ratio
