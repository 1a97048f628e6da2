"""Policy trees: exact by enumeration, the same from any parts, right about themselves, as good as published ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import FeatureBins, apply_bins, fit_bins
from uplift_spark.policy import trees as tree_search
from uplift_spark.policy.trees import (
    Overview,
    add_pairs,
    best_tree,
    difference_point,
    empty_pairs,
    fit_tree,
    honest_values,
    pair_sums_at,
    tree_search_plan,
    value_sums,
)
from uplift_spark.stats.intervals import Draws

NUMERIC = FeatureBins("age", edges=(20.0, 30.5, 40.0, 1 / 3 + 50))
TEXT = FeatureBins("channel", categories=("web", "it's", "post"))


def units_of(rng, n, features, levels, largest=20):
    """Random units with missing values; whole rewards, so that sums by hand are exact."""
    bins = np.column_stack([rng.integers(0, f.n_bins, n) for f in features]).astype(np.uint8)
    return bins, rng.integers(-largest, largest + 1, (n, levels)).astype(float)


def questions(bins, features):
    """Answers of all units to every question a tree may ask."""
    for f, one in enumerate(features):
        for b in range(one.n_bins if one.categorical else one.n_bins - 1):
            yield bins[:, f] == b if one.categorical else bins[:, f] <= b


def enumerated(bins, rewards, features, depth, min_units):
    """Greatest reward of all trees, one by one."""
    best = rewards.sum(axis=0).max() if len(rewards) >= min_units else -np.inf
    if depth:
        for yes in questions(bins, features):
            if min(yes.sum(), (~yes).sum()) >= min_units:
                sides = [enumerated(bins[s], rewards[s], features, depth - 1, min_units) for s in (yes, ~yes)]
                best = max(best, sum(sides))
    return best


def reward_of(tree, bins, rewards):
    return rewards[np.arange(len(bins)), tree.actions(bins)].sum()


@pytest.mark.parametrize("seed", range(60))
def test_the_best_tree_is_that_of_enumeration(seed):
    rng = np.random.default_rng(seed)
    features = [(NUMERIC, TEXT)[kind] for kind in rng.integers(0, 2, rng.integers(1, 4))]
    features = [replace(one, name=f"x{j}") for j, one in enumerate(features)]
    n, levels, min_units = rng.integers(8, 60), rng.integers(2, 5), int(rng.integers(1, 8))
    bins, rewards = units_of(rng, n, features, levels)
    names = [f"a{k}" for k in range(levels)]
    trees = {d: fit_tree(bins, rewards, features, names, d, min_units) for d in (1, 2, 3)}
    for depth in (1, 2):
        assert reward_of(trees[depth], bins, rewards) == enumerated(bins, rewards, features, depth, min_units)
    three = reward_of(trees[3], bins, rewards)
    assert reward_of(trees[2], bins, rewards) <= three <= enumerated(bins, rewards, features, 3, min_units)
    for tree in trees.values():
        leaves = [node for node in tree.nodes if node.feature < 0]
        assert sum(leaf.units for leaf in leaves) == n
        assert len(leaves) == 1 or min(leaf.units for leaf in leaves) >= min_units
        gain = reward_of(tree, bins, rewards) - rewards[:, 0].sum()
        assert tree.nodes[0].value * n == pytest.approx(gain)
        assert sum(leaf.value * leaf.units for leaf in leaves) == pytest.approx(gain)
        assert tree.constant == rewards.sum(axis=0).argmax()


def test_a_question_that_brings_nothing_is_left_out():
    bins = np.array([[0], [1], [2], [3]] * 10, np.uint8)
    rewards = np.column_stack([np.zeros(40), np.ones(40)])
    tree = fit_tree(bins, rewards, [NUMERIC], ["none", "mail"], min_units=1)
    assert [node.action for node in tree.nodes] == [1]
    rewards[:, 1] = np.where(bins[:, 0] <= 1, 1, -1)
    doubled = fit_tree(np.hstack([bins[::-1], bins]), rewards, [NUMERIC, NUMERIC], ["none", "mail"], min_units=1)
    assert len(doubled.nodes) == 3  # depth 1 says it all
    # Nobody gains from any level: all get the first, the control.
    assert fit_tree(bins, np.zeros((40, 3)), [NUMERIC], ["none", "mail", "call"], 3).nodes[0].action == 0


def test_sums_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(1)
    features = [NUMERIC, TEXT, NUMERIC]
    bins, _ = units_of(rng, 3000, features, 3)
    rewards = rng.normal(size=(3000, 3)) * np.exp(rng.normal(size=(3000, 1)) * 3)  # sums of floats would differ
    overview = Overview.of(bins, rewards)
    parts = np.array_split(rng.permutation(3000), 7)
    merged = sum((Overview.of(bins[part], rewards[part]) for part in parts), Overview.empty(3))
    assert np.array_equal(merged.counts, overview.counts) and merged.largest == overview.largest
    plan = tree_search_plan(overview, features, "abc")
    whole, sums = pair_sums_at(plan, bins, rewards, ()), empty_pairs(plan)
    for part in parts:
        add_pairs(sums, plan, bins[part], rewards[part])
    assert np.array_equal(sums, whole)
    for question in range(len(plan.low)):
        sides = [pair_sums_at(plan, bins, rewards, ((question, yes),)) for yes in (True, False)]
        assert np.array_equal(sides[0] + sides[1], whole)
    # What the pairs say is what counting says.
    rows = (bins[:, 0] == 2) & (bins[:, 1] == 3)
    cell = whole[plan.group[0, 2], plan.group[1, 3]]
    assert cell[0] == rows.sum() and plan.point.floats("wy", cell[1:]) == pytest.approx(rewards[rows].sum(axis=0))
    tree, point = best_tree(partial(pair_sums_at, plan, bins, rewards), plan), difference_point(overview)
    summed = [value_sums(tree, bins[part], rewards[part], point) for part in parts]
    assert np.array_equal(sum(summed), value_sums(tree, bins, rewards, point))


def test_rules_read_as_they_act():
    ages = [None, 18.0, 25.0, 35.0, 45.0, 60.0] * 100
    channels = ["web", "it's", "post", None, "web", "it's", "new"] * 86
    table = pa.table({"age": pa.array(ages), "channel": pa.array(channels[:600])})
    bins = apply_bins(table, (NUMERIC, TEXT))
    young, apostrophe = bins[:, 0] <= 2, bins[:, 1] == 2
    rewards = np.column_stack([np.zeros(600), np.where(young, 2.0, -1), np.where(apostrophe, 1.0, -1)])
    tree = fit_tree(bins, rewards, (NUMERIC, TEXT), ["none", "mail", "call"])
    assert np.array_equal(tree.actions(bins), np.where(young, 1, np.where(apostrophe, 2, 0)))
    swapped = fit_tree(bins[:, ::-1], rewards, (TEXT, NUMERIC), ["none", "mail", "call"])
    assert swapped.text() == tree.text()  # not the channel first, and then the age on both sides
    assert tree.text().split("\n") == [
        "if age <= 30.5 or missing:",
        "    mail  (300 units, +2 each over none)",
        "else:",
        '    if channel is "it\'s":',
        f"        call  ({(~young & apostrophe).sum()} units, +1 each over none)",
        "    else:",
        f"        none  ({(~young & ~apostrophe).sum()} units, +0 each over none)",
    ]
    rows = tree.rows()
    assert [(r["node"], r["depth"], r["yes"], r["no"]) for r in rows] == [
        (0, 0, 1, 2), (1, 1, None, None), (2, 1, 3, 4), (3, 2, None, None), (4, 2, None, None),
    ]  # fmt: skip
    assert (rows[0]["feature"], rows[0]["operator"], rows[0]["threshold"]) == ("age", "<=", 30.5)
    assert (rows[2]["operator"], rows[2]["category"], rows[3]["action"]) == ("is", "it's", "call")
    assert len({tuple(row) for row in rows}) == 1  # the same fields in every row


@pytest.mark.parametrize("one", [NUMERIC, TEXT])
def test_missing_can_be_a_question(one):
    bins = np.tile(np.arange(4, dtype=np.uint8), 50)[:, None]
    rewards = np.column_stack([np.zeros(200), np.where(bins[:, 0] == 0, 1.0, -1.0)])
    tree = fit_tree(bins, rewards, [one], ["none", "mail"])
    assert tree.rows()[0]["question"] == f"{one.name} is missing"
    assert np.array_equal(tree.actions(bins), bins[:, 0] == 0)
    full = fit_tree(bins[bins[:, 0] > 0][:, :1], rewards[bins[:, 0] > 0] * [1, -1], [one], ["none", "mail"])
    assert "missing" not in full.text()


def test_groups_have_equal_mass_and_the_rarest_categories_are_no_question():
    rng = np.random.default_rng(2)
    wide = FeatureBins("x", edges=tuple(float(e) for e in range(254)))
    many = FeatureBins("c", categories=tuple(f"c{i}" for i in range(100)))
    bins = np.column_stack([np.ceil(255 * rng.random(20_000) ** 2), rng.integers(0, 101, 20_000)]).astype(np.uint8)
    plan = tree_search_plan(Overview.of(bins, np.zeros((20_000, 2))), [wide, many], ["none", "mail"], groups=16)
    mass = np.bincount(plan.group[0][bins[:, 0]])
    assert mass[0] == 0 and len(mass) == 16 and mass[1:].min() > 0.6 * mass[1:].mean()
    assert np.all(np.diff(plan.group[0]) >= 0) and plan.starts.tolist() == [0, 16, 32]
    assert plan.bin[plan.feature == 1].tolist() == list(range(15))
    for question in range(len(plan.low)):  # a tree asks bins what the plan asks groups
        mine, last = bins[:, plan.feature[question]], plan.bin[question]
        answers = mine == last if plan.feature[question] == 1 else mine <= last
        assert np.array_equal(plan.reached(bins, ((question, True),)), answers)
    empty = tree_search_plan(Overview.of(np.zeros((9, 1), np.uint8), np.zeros((9, 2))), [wide], ["none", "mail"])
    assert empty.starts.tolist() == [0, 32]


def test_bad_input_is_refused_with_the_number_and_the_fix(monkeypatch):
    rng = np.random.default_rng(3)
    bins, rewards = units_of(rng, 50, [NUMERIC, TEXT], 2)
    fit = partial(fit_tree, features=[NUMERIC, TEXT], levels=["none", "mail"])
    for value, column in product((np.nan, np.inf, -1e80), (0, 1)):
        wrong = rewards.copy()
        wrong[[3, 7], column] = value
        for call in (fit, partial(honest_values, fit(bins, rewards))):
            with pytest.raises(DataError, match="in 2 of 50 units"):
                call(bins, wrong)
    with pytest.raises(DataError, match="0 units"):
        fit(bins[:0], rewards[:0])
    with pytest.raises(DataError, match="1 units have bins that feature 'channel' lacks"):
        fit(np.vstack([bins[:49], [[0, 4]]]).astype(np.uint8), rewards)
    for options in ({"depth": 4}, {"depth": 0}, {"min_units": 0}, {"groups": 1}, {"levels": ["none"]}):
        with pytest.raises(ConfigError, match="a policy tree of"):
            fit(bins, rewards, **options)
    monkeypatch.setattr(tree_search, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"2 features needs sums .* choose about 1 of them"):
        fit(bins, rewards)


# ---------------------------------------------------------------- the value on other units


def test_value_is_that_of_the_differences_by_hand():
    rng = np.random.default_rng(4)
    bins, rewards = units_of(rng, 400, [NUMERIC, TEXT], 3)
    tree = fit_tree(bins[:200], rewards[:200], [NUMERIC, TEXT], ["none", "mail", "call"])
    rewards = rng.normal(size=(200, 3)) * 7 + rewards[200:]
    for k, value in enumerate(honest_values(tree, bins[200:], rewards)):
        y = rewards[np.arange(200), tree.actions(bins[200:])] - rewards[:, k]
        assert (value.against, value.units) == (tree.levels[k], 200)
        assert value.estimate == pytest.approx(y.mean(), abs=1e-7)
        assert value.error == pytest.approx(y.std(ddof=1) / 200**0.5, rel=1e-6)
        assert value.upper - value.lower == pytest.approx(2 * 1.959964 * value.error)
    few = honest_values(tree, bins[:29], rewards[:29])
    assert all(np.isnan(v.estimate) and np.isnan(v.lower) for v in few)


def test_units_in_clusters_say_no_more_than_their_clusters():
    rng = np.random.default_rng(8)
    bins, rewards = units_of(rng, 600, [NUMERIC, TEXT], 3)
    tree = fit_tree(bins[:300], rewards[:300], [NUMERIC, TEXT], ["none", "mail", "call"])
    rewards = rng.normal(size=(300, 3)) * 7 + rewards[300:]
    hashes = rng.integers(-(2**63), 2**63 - 1, 300)
    thrice = [np.repeat(part, 3, axis=0) for part in (bins[300:], rewards, hashes)]
    alone, naive = honest_values(tree, bins[300:], rewards), honest_values(tree, *thrice[:2])
    for one, three, clustered in zip(
        alone, naive, honest_values(tree, *thrice[:2], (thrice[2], Draws(3, 2000))), strict=True
    ):
        assert clustered.estimate == pytest.approx(one.estimate) and clustered.units == 900
        assert clustered.error == pytest.approx(one.error, rel=0.06)  # 2,000 resamples; Poisson weights, not all kept
        assert three.error == pytest.approx(one.error / 3**0.5, rel=0.01)
    few = honest_values(tree, *thrice[:2], (thrice[2] // 2**62, Draws(3, 200)))  # four clusters
    assert all(np.isnan(v.lower) and np.isnan(v.upper) and np.isfinite(v.estimate) for v in few)


def randomised(rng, n, effect):
    """Bins of two features, scores with known propensities under an effect, and the true rewards [n, 3]."""
    x = rng.random((n, 2))
    bins = (1 + np.floor(16 * x)).astype(np.uint8)
    truth = np.column_stack([np.zeros(n), effect * (x[:, 0] - 0.5), effect * (x[:, 1] - 0.6)])
    arm = rng.choice(3, n, p=(0.5, 0.3, 0.2))
    y = x.sum(axis=1) + truth[np.arange(n), arm] + rng.normal(size=n)
    model = x.sum(axis=1) * 0.8  # a wrong regression: the propensities keep scores unbiased
    scores = np.tile(model[:, None], 3)
    scores[np.arange(n), arm] += (y - model) / np.array([0.5, 0.3, 0.2])[arm]
    return bins, scores, truth


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_intervals_on_other_units_cover_the_truth(effect):
    features = [FeatureBins(name, edges=tuple(np.arange(1, 16) / 16)) for name in ("a", "b")]
    rng = np.random.default_rng(5)
    levels = ["none", "mail", "call"]
    crowd, _, known = randomised(rng, 20_000, effect)
    covered, promised = [], []
    for _ in range(500):
        grown, held = randomised(rng, 400, effect), randomised(rng, 400, effect)
        tree = fit_tree(*grown[:2], features, levels)
        values = honest_values(tree, *held[:2])
        truth = reward_of(tree, crowd, known) / len(crowd) - known.mean(axis=0)
        against = {0, tree.constant} - ({0} if {n.action for n in tree.nodes if n.feature < 0} == {0} else set())
        covered += [values[k].lower <= truth[k] <= values[k].upper for k in against if values[k].error > 0]
        promised.append(tree.nodes[0].value - truth[0])
    print(
        f"effect {effect}: covered {np.mean(covered):.4f} of {len(covered)}; "
        f"the tree promises {np.mean(promised):+.3f} too much"
    )
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(promised) > 0.05  # why the honest value is needed


# ---------------------------------------------------------------- the published simulation

PUBLISHED = {1000: 0.153, 1500: 0.094, 2000: 0.058, 2500: 0.045}
"""Mean regrets of policytree, depth 2, 400 draws each, in its replication of Zhou, Athey & Wager (2023), s. 6.4."""

X = [f"x{j}" for j in range(1, 11)]


def three_regions(rng, n):
    """Features [n, 10], true rewards [n, 3] and region [n]."""
    x = rng.random((n, 10))
    x5, x7 = x[:, 4], x[:, 6]
    corner = x5**2 / 0.6**2 + x7**2 / 0.35**2 < 1
    other = (x5 - 1) ** 2 / 0.4**2 + (x7 - 1) ** 2 / 0.35**2 < 1
    region = np.where((x5 < 0.6) & (x7 > 0.35), 0, np.where(corner | other, 2, 1))
    a = np.arange(3)
    return x, np.stack([3.0 - a, 2 - np.abs(a - 1) / 2, 1.5 * (a - 1)])[region], region


def scores_of(rng, n, trees):
    """Features and cross-fitted doubly robust scores [n, 3] of one draw."""
    x, truth, region = three_regions(rng, n)
    propensity = np.array([[0.2, 0.6, 0.2], [0.2, 0.6, 0.2], [0.4, 0.2, 0.4]])[region]
    arm = (rng.random(n)[:, None] > propensity.cumsum(axis=1)[:, :2]).sum(axis=1)
    y = truth[np.arange(n), arm] + 2 * rng.normal(size=n)
    fold, scores = rng.integers(0, 5, n), np.empty((n, 3))
    for f in range(5):
        train, test = fold != f, fold == f
        classifier = RandomForestClassifier(trees, min_samples_leaf=20, max_features=0.5, random_state=f)
        share = np.clip(classifier.fit(x[train], arm[train]).predict_proba(x[test]), 0.05, 1)
        for k in range(3):
            mine = train & (arm == k)
            model = RandomForestRegressor(trees, min_samples_leaf=5, max_features=0.5, random_state=f)
            mean = model.fit(x[mine], y[mine]).predict(x[test])
            scores[test, k] = mean + (arm[test] == k) / share[:, k] * (y[test] - mean)
    return x, scores


def tree_of_values(x, rewards, groups=tree_search.DEFAULT_GROUPS):
    table = pa.table(dict(zip(X, x.T, strict=True)))
    features = fit_bins(table, X, 255)
    return fit_tree(apply_bins(table, features), rewards, features, ["a0", "a1", "a2"], min_units=1, groups=groups)


def regrets(n, draws, seed, trees=50):
    """Loss against the best tree of depth 2, by draw; what is published is its mean."""
    rng = np.random.default_rng(seed)
    x, truth, _ = three_regions(rng, 100_000)
    test = pa.table(dict(zip(X, x.T, strict=True)))
    ours = [tree_of_values(*three_regions(rng, 100_000)[:2], groups=64)]
    ours += [tree_of_values(*scores_of(rng, n, trees)) for _ in range(draws)]
    best, *rewards = (reward_of(tree, apply_bins(test, tree.features), truth) / len(x) for tree in ours)
    return best - np.array(rewards)


def test_regret_in_the_published_simulation_is_small():
    assert regrets(2500, 2, seed=1, trees=20).mean() < 0.15  # everyone gets the level that is best for all: .4


@pytest.mark.simulation
@pytest.mark.parametrize("n", PUBLISHED)
def test_mean_regret_is_that_of_policytree(n):
    result = regrets(n, 20, seed=n)
    error = result.std(ddof=1) / len(result) ** 0.5
    print(f"n {n}: mean regret {result.mean():.3f} (error {error:.3f}), published {PUBLISHED[n]}")
    assert result.mean() < PUBLISHED[n] + 2 * error
