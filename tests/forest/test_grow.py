"""The grower against brute force: every split of every feature tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from uplift_spark.forest.grow import Limits, Shape, grow_tree
from uplift_spark.forest.trees import CATEGORICAL, LEAF, goes_right, node_child, node_feature, node_set, outside

ONE_HOT = {k: np.eye(k)[1:] for k in (2, 3, 4)}
SLOPE = np.array([[0.0, 0.5, 1.0]])
SEED = np.uint64(3)


def grown(bins, level, outcome, basis, *, categorical=None, weight=None, known=None, regression=False, **limits):
    n, p = bins.shape
    limits = {"min_leaf": 5.0, "max_depth": 1, "min_gain": 0.0} | limits
    weight = np.ones(n, np.int64) if weight is None else weight
    rows = (np.arange(n, dtype=np.int32), level.astype(np.uint8), weight.copy(), outcome.copy())
    flags = np.zeros(p, bool) if categorical is None else np.asarray(categorical)
    shape = Shape(np.ascontiguousarray(basis), np.full(p, int(bins.max()) + 1), flags, 0.0 if regression else 1.0)
    known = np.zeros(p) if known is None else np.asarray(known, float)
    limits = {"usual_leaf": limits["min_leaf"]} | limits
    limits = Limits(imbalance=0.0, mtry=p, min_share=0.0, **limits)
    return grow_tree(np.ascontiguousarray(bins.T), rows, shape, limits, SEED, known)


def goes_left(word, bin_, members):
    return not (outside(members[None], 0, bin_) if word & np.uint64(CATEGORICAL) else goes_right(word, bin_))


def explained(level, outcome, basis, weight):
    """θ'Aθ by weighted least squares of the outcome on (1, φ)."""
    phi = basis[:, level].T
    centred = phi - np.average(phi, axis=0, weights=weight)
    scatter = (centred * weight[:, None]).T @ centred
    target = centred.T @ outcome
    return float(target @ np.linalg.solve(scatter, target))


def best_by_force(bins, level, outcome, basis, min_leaf, weight=None):
    """Largest Σ_children θ'Aθ over thresholds and both directions of the missing bin."""
    weight = np.ones(len(level)) if weight is None else weight.astype(float)
    best = -np.inf
    for f, t, missing in itertools.product(range(bins.shape[1]), range(bins.max() + 1), (False, True)):
        left = np.where(bins[:, f] == 0, missing, (bins[:, f] <= t) & (bins[:, f] > 0))
        if min(weight[left].sum(), weight[~left].sum()) < min_leaf:
            continue
        try:
            value = sum(explained(level[s], outcome[s], basis, weight[s]) for s in (left, ~left))
        except np.linalg.LinAlgError:
            continue
        best = max(best, value)
    return best


def value_of_root(tree, bins, level, outcome, basis, weight=None):
    nodes, sets = tree[:2]
    weight = np.ones(len(level)) if weight is None else weight.astype(float)
    word = nodes[0]
    members = sets[node_set(word)] if word & np.uint64(CATEGORICAL) else np.zeros(4, np.uint64)
    left = np.array([goes_left(word, int(b), members) for b in bins[:, node_feature(word)]])
    return sum(explained(level[s], outcome[s], basis, weight[s]) for s in (left, ~left))


@pytest.mark.parametrize(
    "basis", [ONE_HOT[2], SLOPE, ONE_HOT[3], ONE_HOT[4]], ids=["binary", "slope", "arms3", "arms4"]
)
@pytest.mark.parametrize("seed", range(4))
def test_root_split_is_the_best_one(basis, seed):
    rng = np.random.default_rng(seed)
    n = 160
    bins = rng.integers(0, 9, (n, 3)).astype(np.uint8)  # bin 0 is missing
    level = rng.integers(0, basis.shape[1], n)
    outcome = (100 * rng.normal(size=n) + 60 * level * (bins[:, 1] > 4)).astype(np.int64)
    tree = grown(bins, level, outcome, basis, min_leaf=20.0)
    expected = best_by_force(bins, level, outcome, basis, 20.0)
    assert value_of_root(tree, bins, level, outcome, basis) == pytest.approx(expected, rel=1e-9)


def test_weights_count_like_copies():
    rng = np.random.default_rng(0)
    bins = rng.integers(1, 9, (90, 1)).astype(np.uint8)  # one feature: weights tell noise differently than copies do
    level, weight = rng.integers(0, 2, 90), rng.integers(1, 4, 90)
    outcome = rng.integers(-50, 50, 90)
    once = grown(bins, level, outcome * weight, ONE_HOT[2], weight=weight, max_depth=4)
    again = np.repeat(np.arange(90), weight)
    copied = grown(bins[again], level[again], outcome[again], ONE_HOT[2], max_depth=4)
    assert np.array_equal(once[0], copied[0])


def test_categories_split_by_effect():
    rng = np.random.default_rng(1)
    n = 3000
    category = rng.integers(1, 7, n).astype(np.uint8)
    level = rng.integers(0, 2, n)
    strong = np.isin(category, [2, 5])
    outcome = (1000 * level * strong + 30 * rng.normal(size=n)).astype(np.int64)
    nodes, sets, leaves, _, _ = grown(category[:, None], level, outcome, ONE_HOT[2], categorical=[True])
    assert leaves == 2 and nodes[0] & np.uint64(CATEGORICAL)
    left = {b for b in range(1, 7) if goes_left(nodes[0], b, sets[0])}
    assert left in ({2, 5}, {1, 3, 4, 6})


def test_missing_values_go_where_their_effect_is():
    rng = np.random.default_rng(2)
    n = 2000
    bins = rng.integers(0, 5, (n, 1)).astype(np.uint8)
    level = rng.integers(0, 2, n)
    outcome = (500 * level * np.isin(bins[:, 0], [0, 1, 2]) + 20 * rng.normal(size=n)).astype(np.int64)
    nodes = grown(bins, level, outcome, ONE_HOT[2])[0]
    assert [goes_left(nodes[0], b, np.zeros(4, np.uint64)) for b in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize("what", ["constant outcome", "single arm", "ties", "too few"])
def test_no_split_where_there_is_nothing_to_find(what):
    rng = np.random.default_rng(3)
    n = 8 if what == "too few" else 200
    bins = np.ones((n, 2), np.uint8) if what == "ties" else rng.integers(1, 9, (n, 2)).astype(np.uint8)
    level = np.zeros(n, np.int64) if what == "single arm" else rng.integers(0, 2, n)
    outcome = np.full(n, 7) if what == "constant outcome" else rng.integers(0, 100, n)
    nodes, _, leaves, _, _ = grown(bins, level, outcome, ONE_HOT[2], max_depth=5)
    assert leaves == 1 and nodes[0] & np.uint64(LEAF)


def test_limits_hold_in_every_leaf():
    rng = np.random.default_rng(4)
    n = 4000
    bins = rng.integers(1, 40, (n, 5)).astype(np.uint8)
    level, outcome = rng.integers(0, 2, n), rng.integers(0, 1000, n)
    nodes, _, leaves, _, _ = grown(bins, level, outcome, ONE_HOT[2], min_leaf=25.0, max_depth=6)
    counts, depths = np.zeros(leaves), np.zeros(leaves)
    for row in bins:
        at = depth = 0
        while not nodes[at] & np.uint64(LEAF):
            left = goes_left(nodes[at], int(row[node_feature(nodes[at])]), np.zeros(4, np.uint64))
            at = node_child(nodes[at]) + (0 if left else 1)
            depth += 1
        counts[node_child(nodes[at])] += 1
        depths[node_child(nodes[at])] = depth
    assert leaves > 10 and counts.min() >= 25 and depths.max() <= 6


def test_a_level_too_rare_for_a_leaf_does_not_stop_the_others():
    rng = np.random.default_rng(6)
    n = 4000
    bins = rng.integers(1, 30, (n, 2)).astype(np.uint8)
    level = rng.integers(0, 2, n)
    level[:8] = 2
    outcome = (300 * level * (bins[:, 0] > 15) + 50 * rng.normal(size=n)).astype(np.int64)
    assert grown(bins, level, outcome, ONE_HOT[3], max_depth=8, min_leaf=20.0)[2] > 20


def test_min_gain_stops_growth():
    rng = np.random.default_rng(5)
    bins = rng.integers(1, 20, (500, 2)).astype(np.uint8)
    level, outcome = rng.integers(0, 2, 500), rng.integers(0, 100, 500)
    free = grown(bins, level, outcome, ONE_HOT[2], max_depth=8)[2]
    assert grown(bins, level, outcome, ONE_HOT[2], max_depth=8, min_gain=1e12)[2] == 1 < free


def test_regression_splits_on_the_outcome_itself():
    rng = np.random.default_rng(7)
    bins = rng.integers(1, 12, (300, 3)).astype(np.uint8)
    outcome = (200 * (bins[:, 1] > 7) + 40 * rng.normal(size=300)).astype(np.int64)
    root = grown(bins, np.zeros(300, np.int64), outcome, np.ones((1, 1)), regression=True)[0][0]
    left = np.array([goes_left(root, int(b), None) for b in bins[:, node_feature(root)]])
    gain = sum(outcome[side].sum() ** 2 / side.sum() for side in (left, ~left))
    cuts = [bins[:, f] <= t for f in range(3) for t in range(1, 11)]
    assert node_feature(root) == 1
    assert gain == pytest.approx(max(sum(outcome[s].sum() ** 2 / s.sum() for s in (cut, ~cut)) for cut in cuts))


def simulated(n, p, seed):
    """An effect of the first two of p features, as frames for the grower."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(1, 30, (n, p)).astype(np.uint8)
    level = rng.integers(0, 2, n)
    effect = 1.0 * (bins[:, 0] > 15) + 1.0 * (bins[:, 1] > 10)
    return bins, level, (1000 * (effect * level + rng.normal(size=n))).astype(np.int64)


def test_pooled_evidence_tells_the_features_that_matter():
    ranks, noise = [], []
    for seed in range(10):
        evidence = grown(*simulated(4000, 20, seed), ONE_HOT[2], max_depth=6, min_leaf=50.0)[3]
        ranks.append(set(np.argsort(-evidence)[:2]) == {0, 1})
        noise.append(np.sort(evidence)[:-2].max() / np.sort(evidence)[-2])
    assert all(ranks) and np.mean(noise) < 0.1


def test_without_an_effect_there_is_hardly_any_evidence():
    """Per feature and pilot the evidence is a few nats at most, so no feature is mistaken for one that matters."""
    most = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bins, level = rng.integers(1, 30, (1500, 10)).astype(np.uint8), rng.integers(0, 2, 1500)
        outcome = (1000 * rng.normal(size=1500)).astype(np.int64)
        most.append(grown(bins, level, outcome, ONE_HOT[2], max_depth=6, min_leaf=50.0)[3].max())
    assert np.median(most) < 4.0 and max(most) < 15.0


def test_trees_try_the_features_with_evidence_only():
    bins, level, outcome = simulated(3000, 12, 1)
    known = np.zeros(12)
    known[[3, 7]] = 50.0, 5.0
    nodes = grown(bins, level, outcome, ONE_HOT[2], known=known, max_depth=6)[0]
    used = {node_feature(word) for word in nodes if not word & np.uint64(LEAF)}
    assert used == {3, 7}
