"""The forest as a whole: honest sums, effects and errors against brute force, invariances, files, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import FEATURES, arm_roles, ordered_frame, ordered_roles
from uplift_spark import CausalForest, Roles, load_model
from uplift_spark.errors import ConfigError, DataError, ModelFileError
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.encode import bin_rows, encode
from uplift_spark.forest.forest import average_effect
from uplift_spark.forest.trees import (
    CATEGORICAL,
    LEAF,
    goes_right,
    leaves_of,
    node_child,
    node_feature,
    node_set,
    outside,
)
from uplift_spark.stats.sampling import growth_rows, halves_of, in_half

SMALL = {"n_trees": 16, "min_leaf": 10}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return ordered_frame()


@pytest.fixture(scope="module")
def model(frame):
    return CausalForest(**SMALL).fit(frame, ordered_roles())


def encoded(frame, model):
    """Rows and the leaf each falls into, [n, T], walked node by node."""
    table = pa.Table.from_pandas(frame[list(model.roles.columns)], preserve_index=False)
    forest = model.forest
    rows = bin_rows(encode(table, forest.roles), forest.plan, (forest.baseline,))
    leaves = np.empty((len(frame), forest.structure.n_trees), np.int32)
    leaves_of(forest.structure.routes, rows.bins, leaves)
    return rows, leaves


def walked(structure, tree, row):
    """Leaf of one row, step by step through the stored nodes."""
    at = 0
    while True:
        word = structure.nodes[structure.node_start[tree] + at]
        if word & np.uint64(LEAF):
            return structure.leaf_start[tree] + node_child(word)
        b = int(row[node_feature(word)])
        if word & np.uint64(CATEGORICAL):
            at = node_child(word) + outside(structure.sets, structure.set_start[tree] + node_set(word), b)
        else:
            at = node_child(word) + goes_right(word, b)


def test_routing_walks_every_tree(frame, model):
    rows, leaves = encoded(frame, model)
    for i in range(0, len(frame), 97):
        assert [walked(model.forest.structure, t, rows.bins[i]) for t in range(16)] == leaves[i].tolist()


@pytest.mark.parametrize(("n_buckets", "growth_buckets", "min_leaf"), [(4, 1, 10), (4, 2, 10), (8, 1, 10), (4, 3, 1)])
def test_leaf_sums_are_honest_and_exact(frame, n_buckets, growth_buckets, min_leaf):
    options = {"n_trees": 16, "n_buckets": n_buckets, "growth_buckets": growth_buckets, "min_leaf": min_leaf}
    model = CausalForest(**options).fit(frame, ordered_roles())
    plan, forest = model.forest.plan, model.forest
    rows, leaves = encoded(frame, model)
    seed, expected = np.uint64(plan.seed), np.zeros_like(forest.sums)
    halves = halves_of(rows.key, seed, 4)
    share = forest.sums[:, :, :2] / np.maximum(forest.sums[:, :, 0].sum(axis=1), 1)[:, None, None]
    for i in range(len(frame)):
        out_of_bag = [t for t in range(16) if not in_half(halves, i, t // 4)]
        known = share[leaves[i, out_of_bag], rows.level[i]].sum(axis=0)
        wy = rows.wy[i, 0]
        corrected = 2 * wy - np.rint(known[1] / known[0] * rows.w[i]).astype(np.int64) if known[0] > 0 else wy
        for t in set(range(16)) - set(out_of_bag):
            if (rows.bucket[i] - t) % n_buckets >= growth_buckets:
                expected[leaves[i, t], rows.level[i]] += (rows.w[i], wy, corrected)
    if min_leaf == 1:  # leaves without rows know nothing
        assert (forest.sums[:, :, 0].sum(axis=1) == 0).any()
    # The last bit of an expected outcome may round the other way.
    assert np.array_equal(expected[:, :, :2], forest.sums[:, :, :2])
    assert np.abs(expected[:, :, 2] - forest.sums[:, :, 2]).max() <= 4
    for t in range(16):
        grew = growth_rows((rows.key, rows.bucket), seed, t, (4, n_buckets, growth_buckets))
        assert grew.any() and ((rows.bucket[grew] - t) % n_buckets < growth_buckets).all()


def test_trees_of_a_bag_share_their_half_sample(frame, model):
    rows, _ = encoded(frame, model)
    grew = [growth_rows((rows.key, rows.bucket), np.uint64(7), t, (4, 8, 1)) for t in (0, 8, 16, 2)]
    mine = rows.bucket == 0
    assert abs(np.mean(grew[0][mine]) - 0.5) < 0.1 and not grew[0][~mine].any()
    assert not np.array_equal(grew[0], grew[1]) and not np.array_equal(grew[1], grew[2])
    halves = halves_of(rows.key, np.uint64(7), 4)
    third = rows.bucket == 2
    assert np.array_equal(grew[3][third], [in_half(halves, i, 0) for i in np.flatnonzero(third)])


def effects_by_force(forest, leaves):
    """Effect of one unit, and its little-bag variance before debiasing with its noise, in numpy. leaves [T]."""
    share = forest.sums[leaves].astype(float)
    total = share[:, :, 0].sum(axis=1)
    n = share[:, :, 0] / total[:, None]
    s = share[:, :, 2 if forest.plan.debias else 1] * 2.0 ** -forest.plan.exponents[1] / total[:, None]
    mean = s.mean(axis=0) / n.mean(axis=0)
    psi = (s - mean * n) / n.mean(axis=0)
    psi = (psi - psi[:, :1])[:, 1:]
    buckets = forest.plan.n_buckets
    for b in range(buckets):
        mine = psi[b::buckets]
        psi[b::buckets] = (mine - mine.mean(axis=0)) * np.sqrt(len(mine) / (len(mine) - 1))
    bags = psi.reshape(-1, 4, psi.shape[1])
    between = (bags.mean(axis=1) ** 2).mean(axis=0)
    noise = bags.var(axis=1).mean(axis=0) / 3
    return mean[1:] - mean[0], between, noise


@pytest.mark.parametrize("options", [{"n_buckets": 4}, {"growth_buckets": 2, "n_buckets": 4}, {"debias": False}])
def test_effects_and_errors_equal_the_formula(frame, options):
    options = {"n_buckets": 8} | options
    model = CausalForest(**SMALL, **options).fit(frame, arm_roles())
    _, leaves = encoded(frame, model)
    table = pa.Table.from_pandas(frame[list(model.roles.columns)])
    effect, se, _ = replace(model.forest, level_shrinkage=None).effect_arrays(table)
    b = options["n_buckets"]
    # Known by hand: 1.5 for half of four buckets, of which .8 is taken; (B - 1)² / (B (B - 2)) for one bucket of B.
    factor = 1.2 if "growth_buckets" in options else (b - 1) ** 2 / (b * (b - 2))
    factor *= 0.6 if model.forest.plan.debias else 1.0
    for i in range(0, len(frame), 301):
        expected, between, noise = effects_by_force(model.forest, leaves[i])
        assert effect[i] == pytest.approx(expected, rel=1e-9)
        # The debiased variance is the mean of N(between - noise, spread²) cut off below zero.
        spread = np.maximum(between, noise) * np.sqrt(2 / 4)
        draws = np.random.default_rng(0).normal(size=400_000)[:, None] * spread + (between - noise)
        cut = np.array([d[d > 0].mean() for d in draws.T])
        assert se[i] ** 2 == pytest.approx(cut * factor, rel=0.02)


def test_out_of_bag_effects_leave_out_the_bags_that_hold_the_row(frame):
    model = CausalForest(**SMALL).fit(frame, arm_roles())
    rows, leaves = encoded(frame, model)
    table = pa.Table.from_pandas(frame[list(model.roles.columns)])
    effect, _, _ = replace(model.forest, level_shrinkage=None).effect_arrays(table, out_of_bag=True)
    halves = halves_of(rows.key, np.uint64(model.forest.plan.seed), 4)
    for i in range(0, len(frame), 301):
        mine = [t for t in range(16) if not in_half(halves, i, t // 4)]
        if mine:
            share = model.forest.sums[leaves[i, mine]].astype(float)
            share = (share / share[:, :, [0]].sum(axis=1, keepdims=True)).sum(axis=0)
            mean = share[:, 2] * 2.0 ** -model.forest.plan.exponents[1] / share[:, 0]
            assert effect[i] == pytest.approx(mean[1:] - mean[0], rel=1e-9)


def test_levels_share_one_shape_as_far_as_noise_demands(frame):
    model = CausalForest(**SMALL, n_buckets=8).fit(frame, ordered_roles())
    forest = model.forest
    _, leaves = encoded(frame, model)
    shape, own, common, extra, _, _ = forest.level_shrinkage
    plain = replace(forest, level_shrinkage=None)
    table = pa.Table.from_pandas(frame[list(model.roles.columns)])
    effect, se, _ = forest.effect_arrays(table)
    raw, raw_se, _ = plain.effect_arrays(table)
    assert shape[0] == 0 and np.allclose(common[1:], (1 - own[1:]) * shape[1:]) and (extra >= 0).all()
    for i in range(0, len(frame), 301):
        share = forest.sums[leaves[i]].astype(float)
        n = (share[:, :, 0] / share[:, :, 0].sum(axis=1, keepdims=True)).mean(axis=0)
        means = np.r_[0.0, raw[i]]
        slope = np.cov(shape, means, aweights=n)[0, 1] / np.cov(shape, aweights=n)
        assert effect[i] == pytest.approx(own[1:] * raw[i] + common[1:] * slope, rel=1e-9)
    assert se.mean() < raw_se.mean()


def test_a_level_average_stands_in_as_far_as_support_lacks(frame):
    frame = frame.assign(arm=np.where(frame.index < 100, "rare", frame["arm"]))
    model = CausalForest(n_trees=40, n_buckets=8).fit(frame, arm_roles())
    facts = {name: fact for name, fact in model.forest.facts.items() if name != "few"}  # see test_few_events
    forest, table = replace(model.forest, facts=facts), pa.Table.from_pandas(frame)
    effect, se, low = forest.effect_arrays(table)
    own, own_se, _ = replace(forest, level_shrinkage=None).effect_arrays(table)
    assert np.array_equal(effect[~low], own[~low]) and np.array_equal(se[~low], own_se[~low])
    assert 100 < low.sum() < 1000
    average, spread = forest.level_shrinkage[4:, 1:]
    values = forest.sums[encoded(frame, model)[1]][:, :, :, 0]
    held = ((values[:, :, 1:] >= 5) & (values[:, :, :1] >= 5)).mean(axis=1)
    for i, k in np.argwhere(low)[::23]:
        share = 2.0 * held[i, k]
        assert effect[i, k] == pytest.approx(share * own[i, k] + (1 - share) * average[k], rel=1e-9)
        assert se[i, k] ** 2 == pytest.approx(share * own_se[i, k] ** 2 + (1 - share) * spread[k], rel=1e-9)


def test_sharing_keeps_what_is_peculiar_to_a_level():
    """A level that works on others than the rest: departures are no noise, so they stay."""
    rng = np.random.default_rng(0)
    n = 20_000
    x, w = rng.random((n, 2)), rng.integers(0, 4, n)
    tau = np.column_stack([np.zeros(n), 1.0 * (x[:, 0] > 0.5), 2.0 * (x[:, 0] > 0.5), 3.0 * (x[:, 1] > 0.5)])
    frame = pd.DataFrame({"unit": np.arange(n), "w": w, "a": x[:, 0], "b": x[:, 1]})
    frame["y"] = tau[np.arange(n), w] + rng.normal(size=n)
    roles = Roles("unit", "w", "y", ("a", "b"), "0", dose={str(k): float(k) for k in range(4)})
    forest = CausalForest(n_trees=100).fit(frame, roles).forest
    effects = forest.effect_arrays(pa.Table.from_pandas(frame))[0]
    assert forest.plan.criterion == "one_hot"  # no slope is common to these levels, and the default sees that
    assert (forest.level_shrinkage[1, 1:] > 0.9).all()
    assert np.sqrt(np.mean((effects - tau[:, 1:]) ** 2)) < 0.25


@pytest.mark.filterwarnings("error")
def test_the_fewest_trees_give_effects_without_errors(frame):
    """Four trees are one bag: nothing says how noisy they are, so levels cannot learn from each other."""
    effects = CausalForest(n_trees=4, n_buckets=2).fit(frame, ordered_roles()).effect(frame)
    assert effects["uplift"].notna().all() and effects["uplift_se"].isna().all()


@pytest.mark.parametrize("roles", [ordered_roles(), arm_roles()], ids=["ordered", "arms"])
def test_averages_follow_from_the_sums(frame, roles):
    forest = CausalForest(n_trees=40).fit(frame, roles).forest
    table = pa.Table.from_pandas(frame[list(roles.columns)])
    bins = apply_bins(table, forest.plan.bins)
    segment = (frame["age"].fillna(0) > 40).to_numpy().astype(np.int64)
    averages, covariance = forest.averages(bins, segment)
    plain = replace(forest, level_shrinkage=None, plan=replace(forest.plan, debias=False)).effect_arrays(table)[0]
    for s in (0, 1):
        assert averages[s] == pytest.approx(plain[segment == s].mean(axis=0), rel=1e-9)
        assert np.linalg.eigvalsh(covariance[s]).min() > -1e-12
    assert averages[1, 1] - averages[0, 1] > 4 * np.sqrt(covariance[0, 1, 1] + covariance[1, 1, 1])
    everyone, overall = forest.averages(bins)
    # The control is common to both levels, so their difference is surer than two unrelated effects.
    assert everyone[0] == pytest.approx(list(average_effect(forest).values()), abs=0.05)
    assert overall[0, 0, 1] > 0


def test_effect_frame_has_a_row_per_unit_and_level(frame, model):
    effects = model.effect(frame.head(5))
    assert list(effects.columns) == [
        "unit", "treatment", "uplift", "uplift_se", "uplift_lower", "uplift_upper", "low_support",
    ]  # fmt: skip
    assert effects["unit"].tolist() == [u for u in frame["unit"].head(5) for _ in range(2)]
    assert effects["treatment"].tolist() == ["5%", "10%"] * 5
    assert model.levels.names == ("none", "5%", "10%")
    assert len(model.effect(frame.head(0))) == 0


def test_it_finds_the_effect(frame):
    model = CausalForest(n_trees=100).fit(ordered_frame(8000, seed=1), ordered_roles())
    effects = model.effect(frame).pivot(index="unit", columns="treatment", values="uplift")
    for level, dose in (("5%", 5), ("10%", 10)):
        truth = frame.set_index("unit")["tau"] * dose
        estimate = effects[level].reindex(truth.index)
        assert np.corrcoef(estimate, truth)[0, 1] > 0.9
        assert np.sqrt(np.mean((estimate - truth) ** 2)) < 0.5 * truth.std()


@pytest.mark.parametrize("criterion", ["slope", "one_hot"])
def test_bytes_do_not_depend_on_row_order_or_types(frame, criterion):
    first = CausalForest(**SMALL, criterion=criterion).fit(frame, ordered_roles()).to_bytes()
    shuffled = frame.sample(frac=1, random_state=1)
    shuffled["region"] = shuffled["region"].astype("category")
    assert CausalForest(**SMALL, criterion=criterion).fit(shuffled, ordered_roles()).to_bytes() == first
    assert CausalForest(**{**SMALL, "n_trees": 20}).fit(frame, ordered_roles()).to_bytes() != first
    assert CausalForest(**SMALL, criterion=criterion, seed=8).fit(frame, ordered_roles()).to_bytes() != first


def test_clusters_stay_together(frame):
    frame = frame.assign(house=np.arange(len(frame)) // 3)
    model = CausalForest(**SMALL, n_buckets=4).fit(frame, ordered_roles(cluster="house"))
    rows, _ = encoded(frame, model)
    bucket = pd.Series(rows.bucket).groupby(frame["house"].to_numpy()).nunique()
    assert bucket.max() == 1 and len(np.unique(rows.unit)) == len(frame)


def test_varying_propensities_remove_confounding():
    rng = np.random.default_rng(0)
    n = 20_000
    x = rng.random(n)
    e = 0.2 + 0.6 * (x > 0.5)
    treated = rng.random(n) < e
    frame = pd.DataFrame({"u": np.arange(n), "w": treated.astype(int), "x": rng.random(n)})
    frame["y"] = 1.0 * treated + 4.0 * (x > 0.5) + rng.normal(size=n)  # x drives both and is no feature
    frame["p"] = np.where(treated, e, 1 - e)
    plain = CausalForest(n_trees=8).fit(frame, Roles("u", "w", "y", ("x",), "0"))
    logged = CausalForest(n_trees=8).fit(frame, Roles("u", "w", "y", ("x",), "0", propensity="p"))
    assert logged.forest.plan.weighted_by_propensity
    assert average_effect(plain.forest)["1"] > 2.5
    assert average_effect(logged.forest)["1"] == pytest.approx(1.0, abs=0.12)


def test_constant_outcome_gives_zero_effect_with_finite_error(frame):
    model = CausalForest(**SMALL).fit(frame.assign(y=3.0), ordered_roles())
    effects = model.effect(frame)
    assert np.allclose(effects["uplift"], 0) and np.isfinite(effects["uplift_se"]).all()


def test_a_single_armed_bucket_is_reported_and_the_others_go_on(frame):
    plain = CausalForest(**SMALL, n_buckets=8).fit(frame, arm_roles())
    rows, _ = encoded(frame, plain)
    spoiled = frame.assign(arm=np.where(rows.bucket == 3, "none", frame["arm"]))
    model = CausalForest(**SMALL, n_buckets=8).fit(spoiled, arm_roles())
    statuses = {s["bucket"]: s for s in model.manifest["facts"]["buckets"]}
    assert len(statuses) == 8 and statuses[3]["status"] == "single arm" and statuses[3]["trees"] == 0
    assert all(s["status"] == "ok" and s["trees"] == 2 for b, s in statuses.items() if b != 3)
    effects = load_model(model.to_bytes()).effect(frame)
    assert effects["uplift"].notna().all() and (effects["uplift_se"] > 0).all()


def test_a_level_with_few_units_is_flagged(frame):
    frame = frame.assign(arm=np.where(frame.index < 12, "rare", frame["arm"]))
    effects = CausalForest(n_trees=40).fit(frame, arm_roles()).effect(frame)
    share = effects.groupby("treatment")["low_support"].mean()
    assert share["rare"] > 0.8 and share["5%"] < 0.1


def test_file_round_trip(frame, model, tmp_path):
    path = tmp_path / "forest.arrow"
    model.save(path)
    again = load_model(path)
    assert path.read_bytes() == model.to_bytes() == again.to_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["forest.arrow"]
    pd.testing.assert_frame_equal(again.effect(frame), model.effect(frame))


def test_a_damaged_file_is_refused(model, tmp_path):
    content = model.to_bytes()
    path = tmp_path / "forest.arrow"
    offsets = np.random.default_rng(0).integers(0, len(content), 20)
    spoiled = [content[: len(content) // 2], content[:-9], content * 2, b"", b"\x80\x04cos\nsystem\n."]
    spoiled += [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in offsets]
    for bad in spoiled:
        path.write_bytes(bad)
        with pytest.raises(ModelFileError, match=r"forest\.arrow"):
            load_model(path)
    with pytest.raises(ModelFileError, match="absent"):
        load_model(tmp_path / "absent")


BAD = [
    (lambda f: f.drop(columns="age"), {}, "column 'age' is missing"),
    (lambda f: f.rename(columns={"spend": "spent"}), {}, "did you mean 'spent'"),
    (lambda f: f.assign(y=f["y"].astype(str)), {}, "outcome column 'y' has type"),
    (lambda f: f.assign(unit=f["y"]), {}, "ids must be text or integers"),
    (lambda f: f.head(0).astype(f.dtypes.replace("object", "string")), {}, "no rows"),
    (lambda f: f.assign(arm=f["arm"].where(f.index > 4)), {}, "'?arm'?: null or NaN in 5 of"),
    (lambda f: f.assign(arm=f["arm"].replace("5%", "7%")), {}, "without a dose"),
    (lambda f: f[f["arm"] != "none"], {}, "control level 'none' is missing"),
    (lambda f: f[f["arm"] == "none"], {}, "at least one treated level"),
    (lambda f: f.assign(y=f["y"].where(f.index > 2, np.inf)), {}, "y: null, NaN or infinite in 3 of"),
    (lambda f: f.assign(spend=f["spend"].where(f.index > 6, np.inf)), {}, "spend: infinite in 7 of"),
    (lambda f: pd.concat([f, f.head(4)]), {}, "repeats a unit in 4 rows"),
    (lambda f: f.assign(unit=f["unit"].where(f.index > 1)), {}, "unit: null in 2 of"),
    (lambda f: f.assign(p=0.0), {"propensity": "p"}, r"p: not a probability in \(0, 1\] in 3000 of"),
    (lambda f: f.assign(wt=-1.0), {"weight": "wt"}, "wt: not a positive finite weight"),
    (lambda f: f.assign(age=pd.Timestamp("2024-01-01")), {}, "'age' has type timestamp"),
]


@pytest.mark.parametrize(("spoil", "more", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input_is_named(frame, spoil, more, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(spoil(frame), ordered_roles(**more))


def test_scoring_refuses_what_training_did_not_see(frame, model):
    with pytest.raises(DataError, match="'region' has type"):
        model.effect(frame.assign(region=1.0))
    with pytest.raises(DataError, match="'member' is missing"):
        model.effect(frame.drop(columns="member"))
    with pytest.raises(DataError, match="'spend' is infinite in 1 rows"):
        model.effect(frame.head(9).assign(spend=[np.inf, *range(8)]))


def test_roles_are_checked():
    with pytest.raises(ConfigError, match="another part"):
        Roles("unit", "arm", "y", ("y",), "none")
    with pytest.raises(ConfigError, match="control level"):
        Roles("unit", "arm", "y", FEATURES, "none", dose={"5%": 5})
