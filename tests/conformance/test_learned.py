"""Meta-learners as models: in a file and back, what is refused, what their intervals and seeds mean; no Spark."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift_spark import CausalForest, MetaLearner, Roles, load_model
from uplift_spark.errors import ConfigError, DataError, ModelFileError
from uplift_spark.forest.modelfile import packed_file
from uplift_spark.learners.estimator_files import restored
from uplift_spark.learners.metalearners import LEARNERS, Learned

FEATURES = ("x0", "x1", "city")
ROLES = Roles("unit", "w", "y", FEATURES, "none", {"none": 0, "10": 10, "5": 5})


def rows(n=1500, seed=0):
    """Effects of half the dose, over 10, and twice that in a."""
    rng = np.random.default_rng(seed)
    x, level_code, city = rng.random((n, 2)), rng.integers(0, 3, n), rng.choice(["a", "b"], n)
    y = 2 * x[:, 1] + 0.5 * level_code * (1 + (city == "a")) + rng.normal(size=n)
    names = {"unit": [f"u{i}" for i in range(n)], "w": np.array(["none", "5", "10"])[level_code]}
    return pd.DataFrame(
        {**names, "y": y, "x0": np.where(rng.random(n) < 0.1, np.nan, x[:, 0]), "x1": x[:, 1], "city": city}
    )


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_file_gives_the_same_effects_and_errors_back(kind, tmp_path):
    model = MetaLearner(kind, replicates=2, folds=3).fit(rows(), ROLES)
    model.save(tmp_path / "model")
    again, new = load_model(tmp_path / "model"), rows(50, 1)
    effects = again.effect(new)
    pd.testing.assert_frame_equal(effects, model.effect(new))
    assert again.manifest == model.manifest and again.levels.names == ("none", "5", "10")
    means = effects.groupby("treatment")["uplift"].mean()
    assert means["5"] == pytest.approx(0.75, abs=0.45) and means["10"] == pytest.approx(1.5, abs=0.6)
    assert (effects["uplift_se"] > 0).all() and not effects["low_support"].any()


def test_the_same_rows_in_any_order_and_the_same_seed_give_the_same_effects():
    frame, new = rows(), rows(100, 1)
    one, other, third = (
        MetaLearner("s_learner", replicates=2, seed=seed).fit(data, ROLES).effect(new)
        for data, seed in ((frame, 7), (frame.sample(frac=1, random_state=1), 7), (frame, 8))
    )
    pd.testing.assert_frame_equal(one, other)
    assert not one["uplift_se"].equals(third["uplift_se"])


def test_few_rows_of_each_arm_can_be_requested():
    model = MetaLearner("t_learner", replicates=0, rows=100).fit(rows(), ROLES).model
    assert isinstance(model, Learned)
    assert model.facts["rows"] == 1500 and all(70 < n < 130 for n in model.facts["level_rows"].values())


def test_without_replicates_there_are_no_intervals():
    effects = MetaLearner("t_learner", replicates=0).fit(rows(), ROLES).effect(rows(10))
    assert effects[["uplift_se", "uplift_lower"]].isna().all(axis=None) and effects["uplift"].notna().all()


def test_propensities_that_differ_between_units_are_learnt():
    """Units with much x1 are treated, and have large outcomes anyway; odds are logged."""
    rng, frame = np.random.default_rng(3), rows(4000)
    propensity = 0.1 + 0.8 * frame["x1"]
    treated = rng.random(4000) < propensity
    frame = frame.assign(
        w=np.where(treated, "5", "none"), p=np.where(treated, propensity, 1 - propensity), y=4 * frame["x1"] + treated
    )
    roles = Roles("unit", "w", "y", ("x0", "x1"), "none", propensity="p")
    effects = MetaLearner("class_transformation", replicates=0).fit(frame, roles).effect(frame)
    assert frame["y"][treated].mean() - frame["y"][~treated].mean() > 1.8
    assert effects["uplift"].mean() == pytest.approx(1.0, abs=0.25)


def test_one_forest_for_each_level_is_a_model_too(tmp_path):
    model = CausalForest(n_trees=12, per_level=True).fit(rows(), ROLES)
    alone = rows().query("w != '10'")
    pair = CausalForest(n_trees=12).fit(alone, Roles("unit", "w", "y", FEATURES, "none"))
    new = rows(40, 1)
    effects = model.effect(new)
    columns = ["uplift", "uplift_se", "low_support"]
    assert (
        effects.query("treatment == '5'")[columns].to_numpy().tolist() == pair.effect(new)[columns].to_numpy().tolist()
    )
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.to_bytes() == model.to_bytes()
    pd.testing.assert_frame_equal(again.effect(new), effects)
    pd.testing.assert_frame_equal(model.estimate(rows()).effect(new), effects)


def test_what_only_a_forest_can_do_is_refused():
    model = MetaLearner("t_learner", replicates=0).fit(rows(), ROLES)
    with pytest.raises(ConfigError, match="needs a causal forest, not the model's t_learner"):
        model.explain(rows(5))
    with pytest.raises(ConfigError, match="no outcome 'z': it was trained for 'y' alone"):
        model.effect(rows(5), "z")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kind": "dr_lerner"}, "no learner 'dr_lerner': did you mean 'dr_learner'"),
        ({"replicates": 1}, "replicates must be 0 or at least 2"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ConfigError, match=message):
        MetaLearner(**parameters)


@pytest.mark.parametrize(
    ("roles", "error", "message"),
    [
        (Roles("unit", "x0", "y", ("x1",), "0", grid=(1.0,)), ConfigError, "take neither roles.grid"),
        (Roles("unit", "w", "y", ("x1",), "none", more_outcomes=("x0",)), ConfigError, "has one outcome"),
        (Roles("unit", "w", "y", ("x1",), "nothing"), DataError, "control level 'nothing' is missing"),
        (Roles("unit", "w", "x0", ("x1",), "none"), DataError, "x0: null, NaN or infinite in"),
    ],
)
def test_roles_and_rows_are_checked(roles, error, message):
    with pytest.raises(error, match=message):
        MetaLearner("t_learner", replicates=0).fit(rows(), roles)


def test_a_part_that_is_not_known_to_be_harmless_is_not_loaded():
    """A file may be well formed, checksum and all, and still hold any object: only boosted trees are made from it."""
    import skops.io
    from sklearn.pipeline import FunctionTransformer

    spoilt = skops.io.dumps({"models": [[FunctionTransformer(print)]], "shares": [[1.0]], "shift": 0.0})
    with pytest.raises(ModelFileError, match="which is not loaded"):
        restored(spoilt)
    model = MetaLearner("t_learner", replicates=0).fit(rows(), ROLES)
    with pytest.raises(ModelFileError, match="which is not loaded"):
        load_model(packed_file(model.manifest, {"fit_0": np.frombuffer(spoilt, np.uint8)}))
    with pytest.raises(ModelFileError, match="not a readable model"):
        load_model(packed_file(model.manifest, {"fit_1": np.frombuffer(spoilt, np.uint8)}))
