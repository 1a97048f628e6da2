"""Where features tell the level received: effects are those of comparable units, and units without any are flagged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.forest.frames import plain_frame, plain_roles
from uplift_spark import CausalForest, MetaLearner, Roles, average_effects, load_model
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.overlap import fit_overlap

MAIL = Roles("unit", "arm", "y", ("x1", "z"), control="none")
TRUE = -0.35


def always_mailed(n, seed, share=0.1):
    """Mail halves the units where z is 0 and reaches all where z is 1; it takes .35 from everybody's chance of y."""
    rng = np.random.default_rng(seed)
    x1, z = rng.random(n), (rng.random(n) < share).astype(int)
    mail = np.where(z == 1, 1, rng.integers(0, 2, n))
    y = (rng.random(n) < np.where(mail == 1, 0.10, 0.45) + 0.10 * (x1 > 0.5)).astype(float)
    return pd.DataFrame({"unit": np.arange(n), "x1": x1, "z": z, "arm": np.where(mail, "mail", "none"), "y": y})


def confounded(n, seed, strength, levels=2):
    """Units with a large x1 have larger outcomes and get higher levels; level k brings k x0; effects are [n, L]."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 3))
    e = np.exp(strength * (x[:, [1]] - 0.5) * np.arange(levels))
    w = (rng.random(n)[:, None] > (e / e.sum(axis=1, keepdims=True)).cumsum(axis=1)).sum(axis=1)
    y = 2 * x[:, 1] + x[:, 0] * w + rng.normal(size=n)
    frame = pd.DataFrame(x, columns=["x0", "x1", "x2"]).assign(unit=np.arange(n), w=w, y=y)
    return frame, x[:, [0]] * np.arange(1, levels)


def covered(effects, truth):
    return ((effects["uplift_lower"] <= truth) & (truth <= effects["uplift_upper"])).to_numpy()


def check_always_mailed(reps, n, **options):
    frames = [always_mailed(n, 10 + seed) for seed in range(reps)]
    effects = [CausalForest(seed=seed, **options).fit(one, MAIL).effect(one) for seed, one in enumerate(frames)]
    alone = np.concatenate([one["z"] == 1 for one in frames])
    inside, low = (
        np.concatenate(parts)
        for parts in ([covered(one, TRUE) for one in effects], [e["low_support"] for e in effects])
    )
    assert low[alone].all() and not low[~alone].any()
    least = 0.94 - 0.25 / np.sqrt(reps)
    assert inside[~alone].mean() > least and inside[alone].mean() > least
    mean = np.mean([one["uplift"].mean() for one in effects])
    assert mean == pytest.approx(TRUE, abs=0.012 / np.sqrt(reps / 8))
    return effects


def test_units_that_are_always_mailed_do_not_dilute_the_effect():
    check_always_mailed(8, 20_000, n_trees=60)


@pytest.mark.simulation
def test_units_that_are_always_mailed_do_not_dilute_the_effect_in_full():
    check_always_mailed(200, 20_000)


def check_confounded(reps, n, strength, levels, **options):
    points, truth = confounded(300, 10**6, strength, levels)
    roles = plain_roles(points)
    effects, errors, low = [], [], []
    for seed in range(reps):
        table = CausalForest(seed=seed, **options).fit(confounded(n, seed, strength, levels)[0], roles).effect(points)
        parts = [table[name].to_numpy().reshape(truth.shape) for name in ("uplift", "uplift_se", "low_support")]
        for kept, part in zip((effects, errors, low), parts, strict=True):
            kept.append(part)
    off, flagged = np.stack(effects) - truth, np.stack(low)
    inside = np.abs(off) < 1.96 * np.stack(errors)
    print(f"strength {strength}, {levels} levels: covers {inside[~flagged].mean():.3f}, flagged {flagged.mean():.3f}")
    assert inside[~flagged].mean() > 0.93 - 0.3 / np.sqrt(reps * levels)
    assert abs(off[~flagged].mean()) < 0.03
    return flagged.mean()


@pytest.mark.parametrize("levels", [2, 3])
def test_a_feature_that_moves_level_and_outcome_does_not_pass_for_an_effect(levels):
    assert check_confounded(10, 4000, 3.0, levels, n_trees=60) < 0.02


@pytest.mark.simulation
@pytest.mark.parametrize("strength", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("levels", [2, 3])
def test_a_feature_that_moves_level_and_outcome_does_not_pass_for_an_effect_in_full(strength, levels):
    check_confounded(100, 4000, strength, levels)


def test_a_level_of_many_that_lacks_somewhere_is_flagged_there_alone():
    rng = np.random.default_rng(3)
    n, z = 9000, rng.random(9000) < 0.15
    arm = np.where(z, rng.integers(0, 2, n), rng.integers(0, 3, n))
    frame = pd.DataFrame({"unit": np.arange(n), "x": rng.random(n), "z": z, "w": np.array(["0", "b", "c"])[arm]})
    frame["y"] = 2.0 * z + np.array([0.0, -0.35, -0.2])[arm] + rng.normal(size=n)
    roles = Roles("unit", "w", "y", ("x", "z"), "0")
    for per_level in (False, True):
        effects = CausalForest(n_trees=60, per_level=per_level).fit(frame, roles).effect(frame)
        low = effects["low_support"].groupby([effects["treatment"].to_numpy(), np.repeat(z, 2)]).mean()
        assert low["c", True] == 1.0 and low[["c", "b"]].sum() == 1.0
        means = effects["uplift"][~effects["low_support"]].groupby(effects["treatment"]).mean()
        assert means["b"] == pytest.approx(-0.35, abs=0.09) and means["c"] == pytest.approx(-0.2, abs=0.09)


@pytest.mark.parametrize("kind", ["s_learner", "class_transformation"])
def test_meta_learners_keep_to_the_same_rule(kind):
    frame = always_mailed(6000, 1)
    model = MetaLearner(kind, replicates=2).fit(frame, MAIL)
    effects = load_model(model.to_bytes()).effect(frame)
    assert (effects["low_support"].to_numpy() == (frame["z"] == 1)).all()
    assert effects["uplift"].groupby(frame["z"].to_numpy()).mean().to_numpy() == pytest.approx([TRUE, TRUE], abs=0.06)


def test_average_effects_take_propensities_from_the_features():
    averages = average_effects(confounded(4000, 2, 3.0)[0], plain_roles(confounded(10, 2, 3.0)[0]))
    table = averages.set_index("estimand")
    assert table.loc["ate", "lower"] < 0.5 < table.loc["ate", "upper"] and table.loc["ate", "error"] < 0.06


def test_a_trial_is_left_as_it_is():
    """The test of randomisation is wrong once in ten thousand trials, so never here; clusters do not mislead it."""
    rng = np.random.default_rng(5)
    for seed in range(100):
        frame = plain_frame(600, seed)
        house = rng.integers(0, 60, 600)
        frame["x0"], arm = rng.random(60)[house], rng.integers(0, 2, 60)[house]
        bins = np.ascontiguousarray((frame[["x0", "x1", "x2"]].to_numpy() * 20).astype(np.uint8))
        n_bins = np.full(3, 21), np.zeros(3, bool)
        for level, key in ((arm, house), (frame["w"].to_numpy(), np.arange(600))):
            order = np.argsort(key, kind="stable")
            rows = (
                bins[order],
                level[order],
                (key[order].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15),
            )
            assert fit_overlap(rows, ("0", "1"), n_bins, seed) is None
    assert (
        "overlap" not in CausalForest(n_trees=8).fit(plain_frame(2000), plain_roles(plain_frame(5))).manifest["facts"]
    )


def test_logged_propensities_stay_and_sure_units_are_left_out():
    frame = always_mailed(20_000, 4).assign(p=lambda f: np.where(f["z"] == 1, 1.0, 0.5))
    effects = CausalForest(n_trees=60).fit(frame, replace(MAIL, propensity="p")).effect(frame)
    assert effects["uplift"].mean() == pytest.approx(TRUE, abs=0.02)
    assert (effects["low_support"].to_numpy() == (frame["z"] == 1)).all()


def test_it_is_kept_in_the_file_and_by_what_estimates_anew():
    frame, said = always_mailed(4000, 6), []
    model = CausalForest(n_trees=16).fit(frame, MAIL, said.append)
    (sentence,) = [line for line in said if "the features tell the level received" in line]
    share = (frame["z"] == 1).mean()
    assert f"{share:.1%} for mail" in sentence
    assert model.manifest["facts"]["overlap"]["lacking"]["mail"] == pytest.approx(share)
    again = load_model(model.to_bytes())
    pd.testing.assert_frame_equal(again.effect(frame), model.effect(frame))
    assert again.estimate(frame).to_bytes() == model.to_bytes()
    assert again.refresh(frame).effect(frame)["low_support"].sum() == (frame["z"] == 1).sum()
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match="the features tell the level received"):
        model.to_onnx("mail")


def test_where_features_decide_the_level_training_refuses():
    frame = plain_frame(2000).assign(w=lambda f: (f["x1"] > 0.5).astype(int))
    message = r"of 2000 rows have features with which units received either '0' alone or never: .* drop the feature"
    for learner in (CausalForest(n_trees=8), MetaLearner("s_learner", replicates=0)):
        with pytest.raises(DataError, match=message):
            learner.fit(frame, plain_roles(frame))
