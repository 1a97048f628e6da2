"""`uplift train` and `uplift score`: what they write, that a rerun writes nothing, and what they refuse beforehand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, Lakehouse, RegistryConf, RolesConf
from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem, ModelFileError
from uplift_spark.estimators import UpliftModel
from uplift_spark.forest.forest import average_effect
from uplift_spark.jobs import score, train
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry, rebuild

TABLE, SCORES = "silver.training_spring", "gold.uplift_scores"
COLUMNS = [
    "unit_id", "treatment", "uplift", "uplift_se", "uplift_lower", "uplift_upper", "low_support",
    "model_name", "model_version", "feature_version", "run_id", "scored_at",
]  # fmt: skip
DOSE = {"none": 0, "5%": 5, "10%": 10}
ROLES = RolesConf("visit", "none", ("recency", "zip"), DOSE, more_outcomes=("spend",))


def training_rows(n=400):
    rng = np.random.default_rng(11)
    arm = rng.integers(0, 3, n)
    recency = rng.uniform(0, 12, n)
    return pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.array(["none", "5%", "10%"])[arm],
            "propensity": 1 / 3,
            "assigned_at": pd.Timestamp("2025-01-06"),
            "visit": arm * (recency < 6) + rng.normal(size=n),
            "spend": arm * 10.0,
            "recency": recency,
            "zip": pd.Series([f"z{i % 3}" for i in range(n)], dtype=object),
            "split": np.where(np.arange(n) % 4, "train", "holdout"),
        }
    )


def conf(lake, **registry):
    return Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=ROLES,
        lakehouse=lake.lakehouse,
        forest=ForestConf(n_trees=8, min_leaf=5, n_buckets=4),
        registry=RegistryConf(**registry),
    )


@pytest.fixture(scope="module")
def campaign(spark, tmp_path_factory):
    """A lakehouse with a training set; the tests below add to it, each under runs of its own."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("campaign"))))
    lake.write(TABLE, spark.createDataFrame(training_rows()), "features-1", mode="overwrite")
    return lake


@pytest.fixture(scope="module")
def trained(campaign):
    return train.run(Campaign(conf(campaign), campaign))


@pytest.fixture(scope="module")
def scored(campaign, trained):
    return score.run(Campaign(conf(campaign, version=trained.details["version"]), campaign))


def test_train_registers_the_forest_of_the_training_split_as_champion(campaign, trained):
    registry = Registry.of(conf(campaign))
    model = registry.find("spring")
    assert (model.version, model.run_id) == (trained.details["version"], trained.run_id)
    assert dict(model.data_versions) == {TABLE: 0}
    forest = registry.load(model)
    rows = training_rows()
    assert forest.facts["rows"] == (rows.split == "train").sum() == 300
    assert forest.plan.n_trees == 8
    assert forest.levels.names == ("none", "5%", "10%")
    assert average_effect(forest.of("spend")) == pytest.approx({"5%": 10.0, "10%": 20.0})
    assert trained.tables == {}


def test_training_again_is_the_same_run_and_registers_nothing(campaign, trained):
    messages = []
    again = train.run(Campaign(conf(campaign), campaign), progress=messages.append)
    assert again == trained
    assert messages == [f"spring version {trained.details['version']} is registered already"]


def test_another_forest_is_another_version_and_leaves_the_champion_unless_requested(campaign, trained):
    other = replace(conf(campaign, champion=False), seed=8)
    result = train.run(Campaign(other, campaign))
    registry = Registry.of(other)
    assert result.details["version"] == trained.details["version"] + 1
    assert registry.find("spring").version == trained.details["version"]


def test_a_run_id_used_for_other_data_is_refused(campaign, trained, monkeypatch):
    monkeypatch.setattr(campaign, "version", lambda table: 17)
    with pytest.raises(ConflictError, match=rf"{trained.run_id}.*{TABLE}.*--run-id"):
        train.run(Campaign(conf(campaign), campaign), run_id=trained.run_id)


@pytest.mark.slow
def test_a_run_is_rebuilt_to_the_byte_after_its_table_moved_on(spark, tmp_path):
    lake = Lake(spark, Lakehouse(path=str(tmp_path)))
    lake.write(TABLE, spark.createDataFrame(training_rows()), "features-1", mode="overwrite")
    first = train.run(Campaign(conf(lake), lake))
    moved = training_rows().assign(visit=0.5, recency=1.0)
    lake.write(TABLE, spark.createDataFrame(moved), "features-2", mode="overwrite")
    lake.sql(f"VACUUM {lake.reference(TABLE)}")  # keeps what models may name
    other = replace(conf(lake), seed=9, forest=ForestConf(n_trees=4))  # what the run recorded counts
    again = rebuild(other, lake, first.run_id)
    assert again.details["same_bytes"] and again.details["version"] == first.details["version"]
    assert lake.tables() == [TABLE] and Registry.of(other).find("spring").version == 1
    with pytest.raises(ConfigError, match="no version of run 'train-x'"):
        rebuild(other, lake, "train-x")

    lake.spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    lake.sql(f"VACUUM {lake.reference(TABLE)} RETAIN 0 HOURS")
    with pytest.raises(DataError, match="files of version 0 are gone"):
        rebuild(other, lake, first.run_id)


def test_score_writes_every_unit_and_level(campaign, trained, scored):
    table = campaign.read(SCORES).where(f"run_id = '{scored.run_id}'")
    assert table.columns == COLUMNS
    got = table.toPandas()
    rows = training_rows()
    assert scored.tables[SCORES]["rows"] == len(got) == 2 * len(rows)
    assert set(zip(got.unit_id, got.treatment, strict=True)) == {(u, t) for u in rows.unit_id for t in ("5%", "10%")}
    assert set(got.model_name) == {"spring"}
    assert set(got.model_version) == {str(trained.details["version"])}
    assert set(got.feature_version) == {0}

    registry = Registry.of(conf(campaign))
    expected = UpliftModel(registry.load(registry.find("spring", trained.details["version"]))).effect(rows)
    key = ["unit_id", "treatment"]
    columns = COLUMNS[:7]
    pd.testing.assert_frame_equal(
        got.sort_values(key)[columns].reset_index(drop=True), expected.sort_values(key)[columns].reset_index(drop=True)
    )
    detail = campaign.spark.sql(f"DESCRIBE DETAIL delta.`{campaign.lakehouse.path}/gold/uplift_scores`")
    assert detail.select("partitionColumns").first()[0] == ["model_name", "model_version"]
    assert detail.select("properties").first()[0]["delta.dataSkippingStatsColumns"] == "unit_id,run_id"


def test_scoring_again_adds_no_row(campaign, scored, trained):
    before = campaign.version(SCORES)
    again = score.run(Campaign(conf(campaign, version=trained.details["version"]), campaign))
    assert again.run_id == scored.run_id
    assert again.tables[SCORES] == {**scored.tables[SCORES], "rows": 0, "skipped": True}
    assert campaign.version(SCORES) == before


def test_a_wrong_model_or_store_is_refused_before_any_write(campaign, trained, tmp_path):
    (tmp_path / "file").write_text("")
    nowhere = f"sqlite:///{tmp_path}/file/mlflow.db"
    before = (campaign.tables(), {t: campaign.version(t) for t in campaign.tables()})
    for job in (train, score):
        with pytest.raises(EnvironmentProblem, match=nowhere):
            job.run(Campaign(conf(campaign, tracking_uri=nowhere), campaign))
    with pytest.raises(ConfigError, match="no version 99"):
        score.run(Campaign(conf(campaign, version=99), campaign))
    with pytest.raises(ConfigError, match=r"'autumn' has no alias 'champion'"):
        score.run(Campaign(conf(campaign, name="autumn"), campaign))
    assert before == (campaign.tables(), {t: campaign.version(t) for t in campaign.tables()})


def test_a_changed_model_file_is_refused_before_any_write(campaign, trained, monkeypatch):
    store = Registry.of(conf(campaign))
    model = store.find("spring", trained.details["version"])
    monkeypatch.setattr(Registry, "find", lambda *_: replace(model, sha256="0" * 64))
    before = campaign.tables()
    with pytest.raises(ModelFileError, match="not the file that was registered"):
        score.run(Campaign(conf(campaign), campaign))
    assert campaign.tables() == before


def test_without_a_training_set_the_error_says_what_to_run(campaign):
    autumn = replace(conf(campaign), campaign="autumn")
    for job in (train, score):
        with pytest.raises(DataError, match=r"silver\.training_autumn does not exist.*uplift features"):
            job.run(Campaign(autumn, campaign))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("recency"), "recency"),
        (lambda f: f.withColumnRenamed("zip", "postcode"), "zip"),
        (lambda f: f.withColumn("zip", f.recency), "column 'zip' has type double"),
        (lambda f: f.withColumn("recency", f.zip), "column 'recency' has type string"),
    ],
    ids=["missing", "renamed", "number for text", "text for number"],
)
def test_features_unlike_the_models_are_refused_before_any_write(campaign, trained, monkeypatch, change, message):
    frame = change(campaign.read(TABLE, 0))
    monkeypatch.setattr(campaign, "read", lambda *_: frame)
    monkeypatch.setattr(campaign, "write", lambda *_, **__: pytest.fail("wrote a table"))
    with pytest.raises(DataError, match=rf"{TABLE} does not fit spring version 1: .*{message}"):
        score.run(Campaign(conf(campaign, version=trained.details["version"]), campaign))


@pytest.mark.slow
def test_a_new_training_set_makes_new_runs(campaign, trained, scored):
    """Last, because the training table moves on."""
    rows = training_rows(300)
    campaign.write(TABLE, campaign.spark.createDataFrame(rows), "features-2", mode="overwrite")
    result = score.run(Campaign(conf(campaign, version=trained.details["version"]), campaign))
    assert result.run_id != scored.run_id
    counts = campaign.read(SCORES).groupBy("run_id", "feature_version").count().collect()
    assert {tuple(row) for row in counts} == {(scored.run_id, 0, 800), (result.run_id, 1, 600)}
    retrained = train.run(Campaign(conf(campaign), campaign))
    assert retrained.run_id != trained.run_id
    assert dict(Registry.of(conf(campaign)).find("spring").data_versions) == {TABLE: 1}
