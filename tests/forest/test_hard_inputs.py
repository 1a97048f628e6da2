"""Inputs that break forests: buckets without an effect to show, rare levels, wide and skewed data, heavy tails."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import SPOILED, buckets_of, plain_frame, plain_roles, thousand_buckets
from uplift_spark import CausalForest, load_model
from uplift_spark.forest import defaults
from uplift_spark.forest import training as steps
from uplift_spark.forest.encode import bin_rows, encode
from uplift_spark.forest.forest import average_effect
from uplift_spark.forest.trees import CATEGORICAL, LEAF, MAX_FEATURES
from uplift_spark.stats.sampling import halves_of, in_half

MB = 2**20
POOLS: list[pa.MemoryPool] = []


def fitted(frame, roles=None, **options):
    """(model, effects of the training rows), which are as many as they should be and all finite."""
    roles = roles or plain_roles(frame)
    model = CausalForest(**{"n_trees": 60} | options).fit(frame, roles)
    return model, scored(model, frame)


def scored(model, frame):
    effects = load_model(model.to_bytes()).effect(frame)
    assert len(effects) == len(frame) * (len(model.levels) - 1)
    assert np.isfinite(effects[["uplift", "uplift_se"]]).all(axis=None)
    return effects


def rmse(effects, truth):
    return float(np.sqrt(np.mean((effects["uplift"].to_numpy() - np.asarray(truth)) ** 2)))


def covered(effects, truth):
    return float(((effects["uplift_lower"] <= truth) & (truth <= effects["uplift_upper"])).mean())


def statuses(model):
    return {status["bucket"]: status for status in model.manifest["facts"]["buckets"]}


def split_features(model):
    """Feature of every split of the forest."""
    nodes = model.forest.structure.nodes
    splits = nodes[nodes & np.uint64(LEAF) == 0]
    return np.array(model.roles.features)[(splits & np.uint64(MAX_FEATURES - 1)).astype(int)], splits


def encoded(model, frame):
    table = pa.Table.from_pandas(frame[list(model.roles.columns)], preserve_index=False)
    return bin_rows(encode(table, model.roles), model.forest.plan, (model.forest.baseline,))


def estimating(model, rows):
    """Rows that estimate each tree, bool [n, T], from the definition."""
    plan = model.forest.plan
    halves = halves_of(rows.key, np.uint64(plan.seed), plan.n_trees // plan.bag_size)
    out = np.empty((rows.unit.size, plan.n_trees), bool)
    for t in range(plan.n_trees):
        honest = (rows.bucket - t) % plan.n_buckets >= plan.growth_buckets
        out[:, t] = honest & [in_half(halves, i, t // plan.bag_size) for i in range(rows.unit.size)]
    return out


def tree_sums(model, t):
    start = model.forest.structure.leaf_start
    return model.forest.sums[start[t] : start[t + 1]]


@contextmanager
def peak() -> Iterator[list[int]]:
    """Leaves the most bytes that numpy, Python and Arrow held at once in the list it gives."""
    usual, result = pa.default_memory_pool(), []
    pool = pa.proxy_memory_pool(usual)
    POOLS.append(pool)  # buffers do not keep their pool alive
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield result
        result.append(tracemalloc.get_traced_memory()[1] + pool.max_memory())
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


# Buckets


@pytest.mark.slow
def test_a_thousand_buckets_each_report_and_all_rows_estimate():
    frame, expected = thousand_buckets()
    model, effects = fitted(frame, n_trees=200, n_buckets=1000)
    result = statuses(model)
    assert {b: status["status"] for b, status in result.items()} == expected
    assert set(SPOILED.values()) <= set(expected.values()) and sum(s["rows"] for s in result.values()) == len(frame)
    assert all(s["trees"] == (b < 200 and s["status"] not in ("empty", "single arm")) for b, s in result.items())
    rows = encoded(model, frame)
    assert [status["rows"] for status in result.values()] == np.bincount(rows.bucket, minlength=1000).tolist()
    weighs = estimating(model, rows).sum(axis=0)
    for t in range(200):
        grew = result[t]["trees"] == 1
        assert tree_sums(model, t)[:, :, 0].sum() == (weighs[t] if grew else 0)
        if expected[t] in ("missing features", "constant features"):
            assert len(tree_sums(model, t)) == 1
    assert np.corrcoef(effects["uplift"], frame["tau"])[0, 1] > 0.85
    assert effects["uplift"].mean() == pytest.approx(frame["tau"].mean(), abs=0.06)
    assert effects["uplift_se"].min() > 0.01  # the error of an average over all rows is .014
    assert not effects["low_support"].any()
    average, covariance = model.forest.averages(rows.bins)
    assert average[0, 0] == pytest.approx(frame["tau"].mean(), abs=0.06)
    assert 0.01 < np.sqrt(covariance[0, 0, 0]) < 0.06


def test_a_bucket_without_trees_leaves_errors_as_they_were():
    """Each little bag of four trees has one of the bucket's."""
    frame = plain_frame(4000)
    spoiled = frame.assign(w=np.where(buckets_of(frame, 4) == 1, 0, frame["w"]))
    untouched, plain = fitted(frame, n_buckets=4)
    model, effects = fitted(spoiled, n_buckets=4)
    assert [s["trees"] for s in statuses(model).values()] == [15, 0, 15, 15]
    assert effects["uplift_se"].mean() == pytest.approx(1.25 * plain["uplift_se"].mean(), rel=0.4)
    of_average = [m.forest.averages(encoded(m, frame).bins)[1].item() for m in (model, untouched)]
    assert 0.3 < of_average[0] / of_average[1] < 3.0  # of fifteen bags: their logarithm has a deviation of a half
    assert rmse(effects, frame["tau"]) < 0.3


def test_a_constant_bucket_is_detected_behind_the_baseline():
    frame = plain_frame(3000).assign(y=lambda f: f["y"] + 4 * f["x1"])
    frame.loc[buckets_of(frame, 6) == 2, "y"] = 1.0
    model, _ = fitted(frame, n_buckets=6)
    assert model.forest.baseline is not None
    assert [s["status"] for s in statuses(model).values()].count("constant outcome") == 1
    assert statuses(model)[2]["status"] == "constant outcome"


def test_a_skewed_bucket_is_thinned(monkeypatch):
    frame = plain_frame(4000)
    frame["house"] = np.where(np.arange(4000) < 1600, 0, np.arange(4000))
    options = {"n_buckets": 8, "min_leaf": 20, "centre": False}
    roles = plain_roles(frame, cluster="house")
    whole, _ = fitted(frame, roles, **options)
    grown, plain = [], steps.grow_one

    def watched(columns, rows, mine, plan, index, evidence=None):
        grown.append((index, len(rows.unit), mine.size, evidence is None))
        return plain(columns, rows, mine, plan, index, evidence)

    monkeypatch.setattr(defaults, "MOST_ROWS", 300)
    monkeypatch.setattr(steps, "grow_one", watched)
    model, effects = fitted(frame, roles, **options)
    huge = int(buckets_of(frame, 8, column="house")[0])
    assert statuses(model)[huge]["rows"] > 1800  # reported as it is
    rows_by_bucket = {index % 8: rows for index, rows, _, _ in grown}
    assert 500 < rows_by_bucket[huge] < 700 and max(rows for _, rows, _, _ in grown) == rows_by_bucket[huge]
    assert all(mine == rows for _, rows, mine, pilot in grown if pilot) and sum(pilot for *_, pilot in grown) == 8
    rows = encoded(model, frame)
    assert [tree_sums(model, t)[:, :, 0].sum() for t in range(60)] == estimating(model, rows).sum(axis=0).tolist()
    for t in range(60):
        start, other = model.forest.structure.node_start, whole.forest.structure.node_start
        mine, theirs = (m.forest.structure.nodes[s[t] : s[t + 1]] for m, s in ((model, start), (whole, other)))
        assert np.array_equal(mine, theirs) == (t % 8 != huge)
    assert rmse(effects, frame["tau"]) < 0.3
    shuffled = frame.sample(frac=1, random_state=0)
    assert CausalForest(n_trees=60, **options).fit(shuffled, roles).to_bytes() == model.to_bytes()


def test_leaves_are_meant_for_the_rows_that_are_left():
    assert defaults.leaf_sizes(100_000_000, 1e4, (4, 1), 2) == defaults.leaf_sizes(2_000_000, 1e4, (4, 1), 2)
    assert defaults.leaf_sizes(1_000_000, 1e3, (4, 1), 2) < defaults.leaf_sizes(2_000_000, 1e3, (4, 1), 2)


# Levels


def leveled(n, levels, seed=0, rare=0):
    """Level k works as k does where x0 is above a half; the last `rare` rows got a level of their own that does 0."""
    frame, rng = plain_frame(n, seed), np.random.default_rng(seed + 1)
    w = rng.integers(0, levels, n)
    strength = np.where(np.arange(n) < n - rare, 2.0 * w / (levels - 1), 0.0)
    frame["y"] = strength * frame["tau"] + rng.normal(size=n)
    frame["w"] = np.where(np.arange(n) < n - rare, w.astype(str), "rare")
    return frame


def level_truth(effects, frame, levels):
    strength = pd.to_numeric(effects["treatment"], errors="coerce").fillna(0.0) * 2.0 / (levels - 1)
    return strength.to_numpy() * np.repeat(frame["tau"].to_numpy(), len(effects) // len(frame))


@pytest.mark.parametrize("ordered", [True, False], ids=["doses", "arms"])
def test_twenty_levels(ordered):
    frame = leveled(16_000, 20)
    roles = plain_roles(frame, dose={str(k): k for k in range(20)} if ordered else None)
    model, effects = fitted(frame, roles)
    truth = level_truth(effects, frame, 20)
    assert len(model.levels) == 20 and len(set(effects["treatment"])) == 19
    assert rmse(effects, truth) < 0.4 * truth.std()
    assert covered(effects, truth) > 0.85 and effects["low_support"].mean() < 0.01


@pytest.mark.parametrize("levels", [3, 20])
def test_a_level_of_thirty_units_is_flagged_and_costs_the_others_nothing(levels):
    frame = leveled(16_000, levels, rare=30)
    _, without = fitted(frame[frame["w"] != "rare"])
    model = CausalForest(n_trees=60).fit(frame, plain_roles(frame))
    effects = model.effect(frame)
    assert model.manifest["facts"]["level_rows"]["rare"] == 30
    rare = effects["treatment"] == "rare"
    # Its average over units stands in, even where not one leaf of all trees holds the level: true effects are zero.
    assert effects["uplift"].notna().all() and (effects["uplift_se"] > 0).all()
    assert rmse(effects[rare], 0.0) < 3 / np.sqrt(30) and covered(effects[rare], 0.0) > 0.95
    support = effects["low_support"].groupby(rare).mean()
    assert support[True] > 0.95 and support[False] < 0.01
    errors = effects["uplift_se"].groupby(rare).mean()
    assert errors[True] > 3 * errors[False] / np.sqrt(levels / 3)
    kept = (frame["w"] != "rare").to_numpy()
    others = effects[~rare & np.repeat(kept, levels)]
    before = rmse(without, level_truth(without, frame[kept], levels))
    assert rmse(others, level_truth(others, frame[kept], levels)) < 1.1 * before


# Features


def categories(n, seed, *, matters):
    """x9 has 100,000 categories, the first 40 of them frequent; every other of these has the effect, or none has."""
    frame, rng = plain_frame(n, seed, p=3), np.random.default_rng(seed + 1)
    code, rare = rng.integers(0, 40, n), rng.random(n) < 0.3
    code[rare] = 40 + np.arange(rare.sum()) % 99_960
    frame["x9"] = [f"c{c:05d}" for c in code]
    if matters:
        frame["tau"] = 1.0 * ((code % 2 == 0) & (code < 40))
        frame["y"] = frame["tau"] * frame["w"] + rng.normal(size=n)
    return frame


def test_categories_that_are_noise_win_no_splits():
    frame = categories(20_000, 0, matters=False)
    model, effects = fitted(frame)
    by, _ = split_features(model)
    assert frame["x9"].nunique() > 5000 and len(by) > 500 and (by == "x9").mean() < 0.01
    _, without = fitted(frame.drop(columns="x9"))
    assert rmse(effects, frame["tau"]) < 1.05 * rmse(without, frame["tau"])


def test_a_hundred_thousand_categories_split_where_they_matter_and_cost_little():
    frame = categories(300_000, 1, matters=True)
    assert frame["x9"].nunique() > 89_000
    with peak() as memory:
        model = CausalForest(n_trees=24).fit(frame, plain_roles(frame))
    assert memory[0] < 400 * len(frame) and len(model.to_bytes()) < 10 * MB
    test = categories(5000, 2, matters=True)
    assert rmse(scored(model, test), test["tau"]) < 0.35 * test["tau"].std()
    by, splits = split_features(model)
    assert ((splits & np.uint64(CATEGORICAL) != 0) == (by == "x9")).all() and (by == "x9").mean() > 0.5
    unseen = scored(model, test.assign(x9=[f"new{i}" for i in range(5000)]))
    assert unseen["uplift"].abs().mean() < 0.2  # like those too rare for a bin of their own, which have no effect
    assert np.isfinite(scored(model, test.assign(x9=None))["uplift"]).all()


@pytest.mark.slow
def test_two_of_five_hundred_features_are_detected():
    frame = plain_frame(5000, 1, p=500)
    frame["tau"] += 1.0 * (frame["x321"] > 0.5)
    frame["y"] += frame["w"] * (frame["x321"] > 0.5)
    with peak() as memory:
        model, effects = fitted(frame, n_trees=40)
    assert memory[0] < 6 * frame.memory_usage().sum()
    by, _ = split_features(model)
    used = pd.Series(by).value_counts()
    assert set(used.index[:2]) == {"x0", "x321"} and used.iloc[1] > 5 * used.iloc[2]
    assert rmse(effects, frame["tau"]) < 0.35 * frame["tau"].std()


@pytest.mark.parametrize("kind", ["number", "text"])
def test_missing_values_that_carry_the_effect(kind):
    frame, rng = plain_frame(8000, 3), np.random.default_rng(4)
    missing = rng.random(8000) < 0.3
    complete = pd.Series(rng.normal(size=8000) if kind == "number" else rng.choice(["a", "b"], 8000))
    frame["x5"] = complete.mask(missing, None)
    frame["tau"] = 1.0 * missing
    frame["y"] = frame["tau"] * frame["w"] + rng.normal(size=8000)
    model, effects = fitted(frame)
    nodes, by = model.forest.structure.nodes, split_features(model)[0]
    roots = np.isin(np.flatnonzero(nodes & np.uint64(LEAF) == 0), model.forest.structure.node_start)
    assert rmse(effects, frame["tau"]) < 0.3 * frame["tau"].std() and (by[roots] == "x5").mean() > 0.9
    means = effects["uplift"].groupby(missing).mean()
    assert means[True] > 0.85 and means[False] < 0.15


@pytest.mark.parametrize("option", [{}, {"n_buckets": 8}], ids=["defaults", "eighths"])
def test_all_ties_give_one_effect_with_an_honest_error(option):
    frame = plain_frame(4000).assign(x0=1.0, x1="same", x2=None, x3=np.nan, x4=False)
    frame["y"] = np.random.default_rng(5).integers(0, 3, 4000) + 0.5 * frame["w"]
    model, effects = fitted(frame, **option)
    assert {status["status"] for status in statuses(model).values()} == {"constant features"}
    arms = frame.groupby("w")["y"].agg(["mean", "var", "size"])
    assert effects["uplift"].nunique() == 1 and effects["uplift_se"].nunique() == 1
    error = np.sqrt((arms["var"] / arms["size"]).sum())
    assert effects["uplift"][0] == pytest.approx(arms["mean"][1] - arms["mean"][0], abs=0.3 * error)
    assert 0.85 * error < effects["uplift_se"][0] < 2.0 * error
    other = frame.head(7).assign(x0=5.0, x1="other", x3=2.0)
    assert np.allclose(scored(model, other)["uplift"], effects["uplift"][0])


# Clusters


def clustered(seed, n=3000):
    """No effect on average, one of its own in each house; the first house has a tenth of the rows."""
    frame, rng = plain_frame(n, seed, p=3), np.random.default_rng(seed + 1000)
    frame["house"] = np.where(np.arange(n) < n // 10, 0, 1 + np.arange(n) // 4)
    frame["y"] = frame["w"] * rng.normal(size=n)[frame["house"]] + rng.normal(size=n)
    return frame


def test_a_giant_cluster_never_grows_and_estimates_the_same_tree():
    """Turning its outcomes around moves leaf sums of trees it had no part in growing, and shapes no others."""
    frame = clustered(0)
    options = {"n_buckets": 5, "min_leaf": 20, "centre": False, "debias": False, "n_trees": 20}
    turned = frame.assign(y=np.where(frame["house"] == 0, -frame["y"], frame["y"]))
    roles = plain_roles(frame, cluster="house")
    (one, _), (other, _) = (fitted(f, roles, **options) for f in (frame, turned))
    home = int(buckets_of(frame, 5, column="house")[0])
    moved = reshaped = 0
    for t in range(20):
        start, later = one.forest.structure.node_start, other.forest.structure.node_start
        mine = one.forest.structure.nodes[start[t] : start[t + 1]]
        theirs = other.forest.structure.nodes[later[t] : later[t + 1]]
        if t % 5 == home:
            reshaped += not np.array_equal(mine, theirs)
            assert np.array_equal(tree_sums(one, t).sum(axis=0), tree_sums(other, t).sum(axis=0))
        else:
            assert np.array_equal(mine, theirs)
            weights = [tree_sums(model, t)[:, :, 0] for model in (one, other)]
            assert np.array_equal(*weights)
            moved += not np.array_equal(tree_sums(one, t), tree_sums(other, t))
    assert reshaped >= 1 and moved >= 4


@pytest.mark.slow
def test_a_giant_cluster_does_not_shrink_errors():
    points = plain_frame(100, 99, p=3)
    roles = plain_roles(points, cluster="house")
    off, claimed, naive = [], [], []
    for seed in range(20):
        frame, forest = clustered(seed), CausalForest(n_trees=40, seed=seed)
        effects = forest.fit(frame, roles).effect(points)
        off.append(effects["uplift"])
        claimed.append(effects["uplift_se"])
        naive.append(forest.fit(frame, plain_roles(frame)).effect(points)["uplift_se"])
    spread, error, less = (np.sqrt(np.mean(np.square(values))) for values in (off, claimed, naive))
    assert 0.95 * spread < error < 1.8 * spread and error > 1.15 * less
    assert np.mean(np.abs(off) < 1.96 * np.array(claimed)) > 0.9


# Outcomes and weights


def exact_sums(model, frame):
    """Leaf sums of every tree against sums of Python's unbounded integers; returns the largest of these."""
    rows = encoded(model, frame)
    w, wy = rows.w.tolist(), rows.wy[:, 0].tolist()
    inside, largest = estimating(model, rows), 0
    for t in range(model.forest.plan.n_trees):
        mine = np.flatnonzero(inside[:, t])
        sums = tree_sums(model, t).astype(object).sum(axis=(0, 1))
        assert sums[0] == sum(w[i] for i in mine) and sums[1] == sum(wy[i] for i in mine)
        largest = max(largest, sum(w[i] for i in mine), sum(abs(wy[i]) for i in mine))
    return largest


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_money_with_a_heavy_tail_fits_the_sums(weighted):
    frame, rng = plain_frame(8000, 5), np.random.default_rng(6)
    money = np.minimum(np.exp(2.5 * rng.normal(size=8000)) * np.exp(0.5 * frame["tau"] * frame["w"]), 1e7)
    money[rng.random(8000) < 0.5] = 0.0
    money[17] = 1e7
    frame["y"], frame["wt"] = money, 10.0 ** rng.uniform(-3, 3, 8000)
    model, effects = fitted(frame, plain_roles(frame, weight="wt" if weighted else None), n_trees=20)
    largest = exact_sums(model, frame)
    assert largest * 64 < 2**63
    corrected = model.forest.sums[:, :, 2].astype(float)
    assert np.abs(corrected).sum() / 20 < 8 * largest < 2.0**62
    # Nothing that matters was rounded away: the sums hold the mean outcomes to eight digits.
    rows, weight = encoded(model, frame), frame["wt"].to_numpy() if weighted else np.ones(8000)
    w_bits, y_bits = model.forest.plan.exponents
    back = np.ldexp(rows.wy[:, 0], w_bits - y_bits) / rows.w
    if model.forest.baseline is None:
        for arm in (0, 1):
            mine = rows.level == arm
            held = np.average(back[mine], weights=rows.w[mine])
            assert held == pytest.approx(np.average(money[mine], weights=weight[mine]), rel=1e-6)
    assert effects["uplift"].abs().max() < 1e7


def test_counts():
    frame, rng = plain_frame(10_000, 7), np.random.default_rng(8)
    usual = np.exp(0.2 + frame["x1"])
    frame["y"] = rng.poisson(usual * np.exp(0.7 * frame["tau"] * frame["w"]))
    truth = usual * (np.exp(0.7 * frame["tau"]) - 1.0)
    model, effects = fitted(frame)
    assert rmse(effects, truth) < 0.3 * truth.std() and covered(effects, truth) > 0.8
    assert average_effect(model.forest)["1"] == pytest.approx(truth.mean(), abs=0.15)
    assert exact_sums(model, frame) * 64 < 2**63


def test_weights_from_a_thousandth_to_a_thousand():
    frame, rng = plain_frame(16_000, 9), np.random.default_rng(10)
    frame["wt"] = 10.0 ** rng.uniform(-3, 3, 16_000)
    _, effects = fitted(frame, plain_roles(frame, weight="wt"))
    _, plain = fitted(frame)
    assert covered(effects, frame["tau"]) > 0.85
    # Seven rows of such weights say as much as one: (Σw)² / Σw² is n / 6.9.
    assert plain["uplift_se"].mean() < effects["uplift_se"].mean() < 5 * plain["uplift_se"].mean()
    assert rmse(effects, frame["tau"]) < 0.5 * frame["tau"].std()


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**24])
def test_the_scale_of_weights_and_outcomes_does_not_matter(scale):
    """Weights that add up to one, outcomes in billionths: nothing is rounded away."""
    frame = plain_frame(3000, 11).assign(wt=1.0)
    roles = plain_roles(frame, weight="wt")
    _, effects = fitted(frame, roles)
    _, light = fitted(frame.assign(wt=scale), roles)
    assert np.allclose(light["uplift"], effects["uplift"], rtol=1e-6)
    _, small = fitted(frame.assign(y=frame["y"] * scale), roles)
    assert np.allclose(small["uplift"] / scale, effects["uplift"], rtol=1e-6)
    assert np.allclose(small["uplift_se"] / scale, effects["uplift_se"], rtol=1e-6)


def test_an_arm_of_next_to_no_weight_keeps_its_mean():
    frame = plain_frame(3000, 12).assign(tau=3.0)
    frame["y"] += 3.0 * frame["w"]
    frame["wt"] = np.where(frame["w"] == 1, 1e-9, 1.0)
    _, effects = fitted(frame, plain_roles(frame, weight="wt"))
    assert effects["uplift"].mean() == pytest.approx(3.5, abs=0.2)
