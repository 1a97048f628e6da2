"""`uplift compare`: the champion, forests per level and a T-learner on one hold-out, paired; `uplift tree`: its rules,
and what they bring to others; what both refuse."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import (
    Compare,
    Config,
    Economics,
    ForestConf,
    Lakehouse,
    LearnerConf,
    Lift,
    Policy,
    RegistryConf,
    RolesConf,
    TreeConf,
)
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.evaluation.metrics import metric_table
from uplift_spark.evaluation.spark import evaluate
from uplift_spark.forest.forest import effect_table
from uplift_spark.jobs import compare, train, tree
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

TABLE, STAGED = "silver.training_spring", "silver.compared_spring"
DOSE = {"none": 0, "5%": 5, "10%": 10}
N = 4_000


def training_rows():
    rng = np.random.default_rng(11)
    arm, x = rng.integers(0, 3, N), rng.uniform(0, 1, N)
    effect = np.array([0.0, 0.1, 0.15])[arm] * np.where(x < 0.4, 2.0, -0.5)
    return pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(N)],
            "treatment": np.array(list(DOSE))[arm],
            "propensity": 1 / 3,
            "assigned_at": pd.Timestamp("2025-01-06"),
            "visit": (rng.random(N) < 0.3 + effect).astype(float),
            "x": np.where(np.arange(N) % 40 == 0, np.nan, x),
            "zip": pd.Series([f"z{i % 3}" for i in range(N)], dtype=object),
            "split": np.where(np.arange(N) % 2, "train", "holdout"),
        }
    )


def conf(lake, **changes):
    return replace(
        Config(
            campaign="spring",
            source={"kind": "simulation"},
            roles=RolesConf("visit", "none", ("x", "zip"), DOSE),
            lakehouse=lake.lakehouse,
            forest=ForestConf(n_trees=16, min_leaf=20, n_buckets=4),
            lift=Lift(bins=20, replicates=60),
            economics=Economics(value={"visit": 10.0}, cost={"5%": 0.5, "10%": 1.0}),
            registry=RegistryConf(champion=True),
            compare=Compare(against=("forest_per_level", "t_learner", "x_learner", "dr_learner")),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    """A lakehouse with a training set and a champion."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("compare"))))
    lake.write(TABLE, spark.createDataFrame(training_rows()), "features-1", mode="overwrite")
    train.run(Campaign(conf(lake), lake))
    return lake


@pytest.fixture(scope="module")
def compared(lake, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("work"))
        return compare.run(Campaign(conf(lake), lake)), folder


def metrics_of(lake, result):
    metrics = rows_of(lake, "gold.uplift_metrics", run_id=result.run_id)
    return metrics.set_index(["model_version", "treatment", "metric"]).sort_index()


def test_every_model_has_every_metric_and_its_difference(lake, compared):
    result, folder = compared
    metrics = metrics_of(lake, result)
    for model in ("1", "forest_per_level", "t_learner", "x_learner", "dr_learner"):
        for level in ("5%", "10%"):
            assert np.isfinite(metrics.loc[(model, level, "qini"), ["value", "lower", "upper"]].astype(float)).all()
        assert np.isfinite(metrics.loc[(model, "any", "policy_value_dr"), "value"])
        assert ((model, "any", "multi_arm_qini_difference") in metrics.index) == (model != "1")
    apart = metrics.loc[("t_learner", "5%", "qini_difference")]
    pair = [metrics.loc[(model, "5%", "qini"), "value"] for model in ("t_learner", "1")]
    assert apart["value"] == pytest.approx(pair[0] - pair[1])
    # Paired: the same units are in both, so the difference is known better than if they were strangers.
    widths = [metrics.loc[(model, "5%", "qini"), ["lower", "upper"]].diff().iloc[-1] for model in ("t_learner", "1")]
    assert apart["upper"] - apart["lower"] < 0.9 * np.hypot(*widths)
    assert (folder / result.details["pictures"]).stat().st_size > 10_000
    assert "policy_value_dr of t_learner" in result.details["summary"]


def test_the_champions_figures_are_those_of_its_scores(spark, lake, compared):
    holdout = lake.read(TABLE).where("split = 'holdout'")
    registry = Registry.of(conf(lake))
    forest = registry.load(registry.find("spring"))
    scores = spark.createDataFrame(effect_table(forest, holdout.toArrow()).to_pandas())
    spec = Campaign(conf(lake), lake).evaluation_spec
    alone = metric_table(evaluate(holdout, scores, spec)).set_index(["treatment", "metric"])
    metrics = metrics_of(lake, compared[0]).loc["1"]
    for key in (("5%", "qini"), ("10%", "autoc")):
        assert metrics.loc[key, "value"] == alone.loc[key, "value"]
        assert metrics.loc[key, "lower"] == pytest.approx(alone.loc[key, "lower"], rel=1e-12)


def test_the_rule_pays_as_units_say(lake, compared):
    """The T-learner's rule valued by hand from the staged predictions and outcome means."""
    rows = rows_of(lake, STAGED).merge(training_rows(), on="unit_id")
    effects, outcome_mean = np.stack(rows["effects_2"]), np.stack(rows["outcome_mean"])
    gain = 10 * effects - [0.5, 1.0]
    chosen = np.where(gain.max(axis=1) > 0, gain.argmax(axis=1) + 1, 0)
    level_code = rows["treatment"].map(list(DOSE).index).to_numpy()
    scores, every = outcome_mean.copy(), np.arange(len(rows))
    scores[every, level_code] += 3 * (rows["visit"] - scores[every, level_code])
    value = metrics_of(lake, compared[0]).loc[("t_learner", "any", "policy_value_dr"), "value"]
    assert value == pytest.approx((scores[every, chosen] - scores[:, 0]).mean(), abs=1e-6)


def test_what_is_compared_is_what_training_registers(lake, compared):
    """The same figures, whether `uplift compare` fits the learner or a version of it is compared."""
    learner = LearnerConf(kind="t_learner", replicates=0)
    registered = train.run(Campaign(conf(lake, learner=learner, registry=RegistryConf(champion=False)), lake))
    registry = Registry.of(conf(lake))
    model = registry.load(registry.find("spring", registered.details["version"]))
    rows = rows_of(lake, STAGED).sort_values("unit_id")
    holdout = lake.read(TABLE).where("split = 'holdout'").orderBy("unit_id").toArrow()
    assert np.array_equal(np.stack(rows["effects_2"]), model.effect_arrays(holdout)[0])


def test_learners_are_named_by_kind_and_number():
    section = {"kind": "dr_learner", "rows": 5_000}
    contenders = Compare(against=(3, "dr_learner", section, "forest_per_level", {"kind": "forest"})).contenders
    assert list(contenders) == ["3", "dr_learner", "dr_learner_2", "forest_per_level", "forest"]
    assert contenders["3"] == 3 and contenders["dr_learner_2"] == LearnerConf("dr_learner", 0, 5_000)


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (("dr_learner", {"kind": "dr_learner", "replicates": 50}), "names a model twice"),
        ((2, 2), "names a model twice"),
        (({"kind": "instrumental_forest"},), "names an instrumental_forest"),
    ],
)
def test_what_cannot_be_compared_is_refused(against, message):
    with pytest.raises(ConfigError, match=message):
        Compare(against=against)


def test_cost_curves_start_at_nothing_and_end_where_effects_do(lake, compared):
    curves = rows_of(lake, "gold.cost_curve", run_id=compared[0].run_id)
    for _, rows in curves.groupby("model"):
        rows = rows.sort_values("cost")
        assert rows[["cost", "gain", "gain_lower", "gain_upper"]].iloc[0].tolist() == [0, 0, 0, 0]
        assert rows["cost"].iloc[-1] > 0.1 and len(rows) > 10
        assert (rows["gain_lower"].iloc[1:] < rows["gain"].iloc[1:]).all()


@pytest.mark.slow
def test_a_rerun_adds_nothing_and_logs_once(lake, compared, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    again = compare.run(Campaign(conf(lake), lake))
    assert again.run_id == compared[0].run_id
    assert all(written["skipped"] for written in again.tables.values())
    client = Registry.of(conf(lake)).store.client()
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.uplift_run_id = '{again.run_id}'"
    )
    assert len(runs) == 1
    assert runs[0].data.metrics["qini.2_10_.t_learner"] == pytest.approx(
        metrics_of(lake, again).loc[("t_learner", "10%", "qini"), "value"]
    )
    assert [file.path for file in client.list_artifacts(runs[0].info.run_id)] == ["compare.png"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"compare": Compare(against=(9,))}, ConfigError, "no version 9"),
        (
            {"economics": Economics(value={"visit": 1.0}, cost={"5%": 1.0})},
            ConfigError,
            "no cost of 0 or more is known of 10%",
        ),
        ({"roles": RolesConf("spend", "none", ("x", "zip"), DOSE)}, ConfigError, "has no outcome 'spend'"),
    ],
)
def test_refused_before_anything_is_fitted(lake, changes, error, words):
    with pytest.raises(error, match=words):
        compare.run(Campaign(conf(lake, **changes), lake))


@pytest.fixture(scope="module")
def rules(lake):
    return tree.run(Campaign(conf(lake, tree=TreeConf(depth=1)), lake))


def test_the_tree_asks_for_what_moves_effects(lake, rules):
    nodes = rows_of(lake, "gold.policy_tree", run_id=rules.run_id).sort_values("node")
    assert nodes["feature"].tolist()[0] == "x" and nodes["operator"].iloc[0] == "<="
    assert nodes["threshold"].iloc[0] == pytest.approx(0.4, abs=0.1)
    assert nodes["action"].tolist()[1:] == ["10%", "none"]
    assert "if x <= " in rules.details["summary"] and "over none for all" in rules.details["summary"]


def test_the_trees_worth_is_that_of_the_units_it_never_saw(lake, rules):
    rows, nodes = rows_of(lake, "silver.rewards_spring"), rows_of(lake, "gold.policy_tree", run_id=rules.run_id)
    x = training_rows().set_index("unit_id")["x"].loc[rows["unit_id"]].to_numpy()
    assert 0.4 < rows["grows"].mean() < 0.6
    action = np.where(~(x > nodes.set_index("node")["threshold"][0]), 2, 0)  # missing counts as lowest
    rewards, other = np.stack(rows["rewards"]), ~rows["grows"].to_numpy()
    gain = (rewards[np.arange(len(rows)), action] - rewards[:, 0])[other]
    row = metrics_of(lake, rules).loc[("policy_tree", "none", "policy_tree_gain")]
    assert row["value"] == pytest.approx(gain.mean(), abs=1e-6)
    assert row["upper"] - row["value"] == pytest.approx(1.96 * gain.std(ddof=1) / np.sqrt(len(gain)), rel=1e-3)


def test_a_tree_of_unknown_features_is_refused(lake):
    with pytest.raises(ConfigError, match=r"tree.features names \['y'\], none of the model's: choose from x, zip"):
        tree.run(Campaign(conf(lake, tree=TreeConf(features=("y",))), lake))


@pytest.fixture
def instead(lake, spark):
    """Puts other rows into the training table, until the test ends."""

    def put(rows):
        lake.write(TABLE, spark.createDataFrame(rows), f"features-{lake.version(TABLE) + 2}", mode="overwrite")

    yield put
    put(training_rows())


def test_a_level_without_training_rows_is_refused(lake, instead):
    rows = training_rows()
    instead(rows[(rows["treatment"] != "5%") | (rows["split"] == "holdout")])
    with pytest.raises(DataError, match="no training row received 5%"):
        tree.run(Campaign(conf(lake), lake))


def test_a_champion_that_saw_the_holdout_is_refused(lake, instead):
    instead(training_rows().assign(split=np.where(np.arange(N) % 4 > 1, "train", "holdout")))
    with pytest.raises(DataError, match="holds out 1000 units that spring version 1 was trained on"):
        compare.run(Campaign(conf(lake), lake))


@pytest.mark.parametrize(
    ("economics", "words"),
    [
        (Economics(cost={"5%": 0.5, "10%": 1.0}), "value of outcome 'visit' is not known"),
        (Economics(value={"visit": 10.0}, cost={"5%": 0.5}), "no cost of 0 or more is known of 10%"),
    ],
)
def test_a_tree_for_profit_needs_money(lake, economics, words):
    with pytest.raises(ConfigError, match=words):
        tree.run(Campaign(conf(lake, economics=economics, policy=Policy(cost={"10%": "1 + x"})), lake))
