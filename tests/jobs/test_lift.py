"""`uplift lift`: three gold tables from the last scores, a rerun that adds nothing, and what it refuses beforehand."""

import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.evaluation.scored import LEVELS, campaign
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lakehouse, Lift, RegistryConf, RolesConf
from uplift_spark.errors import ConfigError, DataError, ModelFileError
from uplift_spark.evaluation.drivers import driver_sentence
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.jobs import audit, lift
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registered, Registry
from uplift_spark.roles import Roles

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

TRAINING, SCORES = "silver.training_spring", "gold.uplift_scores"
GOLD = ("gold.lift_table", "gold.uplift_curve", "gold.uplift_metrics")
ROLES = RolesConf(outcome="visit", control="none", features=("age", "city"), dose={"none": 0, "5%": 5, "10%": 10})


def conf(lake, **changes):
    return replace(
        Config(
            campaign="spring",
            source={"kind": "simulation"},
            roles=ROLES,
            lakehouse=lake.lakehouse,
            economics=Economics(value={"visit": 5.0, "spend": 0.4}, cost={"5%": 0.1, "10%": 0.2}),
            lift=Lift(segments=("city", "age x city"), outcomes=("spend",), bins=20, replicates=50),
        ),
        **changes,
    )


def training_rows():
    holdout, scores, truth = campaign(n=1200, seed=9)
    split = np.where(np.arange(1200) % 4 == 0, "train", "holdout")
    return holdout.assign(split=split, assigned_at=pd.Timestamp("2025-01-06")), scores, truth


def scored(scores, version="1", at="2025-02-01", feature_version=0):
    return scores.assign(
        uplift_se=0.1, uplift_lower=scores.uplift - 0.2, uplift_upper=scores.uplift + 0.2, low_support=False,
        model_name="spring", model_version=version, feature_version=feature_version, scored_at=pd.Timestamp(at),
    )  # fmt: skip


def lakehouse(spark, folder):
    lake = Lake(spark, Lakehouse(path=str(folder)))
    training, scores, truth = training_rows()
    lake.write(TRAINING, spark.createDataFrame(training), "features-1", mode="overwrite")
    # The last run counts, and of it only this campaign's model.
    old = spark.createDataFrame(scored(scores.assign(uplift=-scores.uplift), at="2025-01-31"))
    lake.write(SCORES, old, "score-1")
    lake.write(SCORES, spark.createDataFrame(scored(scores, version="2")), "score-2")
    truth = truth.assign(campaign="spring", outcome="visit")
    lake.write("bronze.truth", spark.createDataFrame(truth), "ingest-1")
    return lake


@pytest.fixture(scope="module")
def campaigned(spark, tmp_path_factory):
    """A lakehouse with training set, scores of two runs and truth; tests that add to it do so last or in a copy."""
    return lakehouse(spark, tmp_path_factory.mktemp("lift"))


@pytest.fixture(scope="module")
def evaluated(campaigned, tmp_path_factory):
    """The job's result, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("work")
    messages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return lift.run(Campaign(conf(campaigned), campaigned), progress=messages.append), folder, messages


def test_tables_are_written(campaigned, evaluated):
    result, _, _ = evaluated
    assert tuple(result.tables) == GOLD
    frames = {table: campaigned.read(table).toPandas() for table in GOLD}
    table = frames["gold.lift_table"]
    assert set(table.run_id) == {result.run_id} and set(table.model_version) == {"2"}
    assert table.groupby("cut").bucket.nunique().to_dict() == {
        "all": 1, "decile": 10, "segment:city": 2, "segment:age x city": 10,
    }  # fmt: skip
    assert len(table) == 2 * 2 * 23
    training, _, _ = training_rows()
    held_out = training[training.split == "holdout"]
    crossed, city = (table[table.cut == f"segment:{segment}"] for segment in ("age x city", "city"))
    assert set(crossed.bucket.str[-4:]) == {" x x", " x y"} and "missing x x" in set(crossed.bucket)
    keys = ["outcome", "treatment"]
    assert (crossed.groupby([*keys, crossed.bucket.str[-1]]).n.sum() == city.groupby([*keys, "bucket"]).n.sum()).all()
    whole = table[(table.cut == "all") & (table.outcome == "visit")].set_index("treatment")
    assert result.details["units"] == held_out.treatment.value_counts().to_dict()
    for level in LEVELS:
        means = held_out.groupby("treatment").visit.mean()
        assert whole.uplift[level] == pytest.approx(means[level] - means["none"])
        assert whole.n_treated[level] == (held_out.treatment == level).sum()
    assert whole.cost["5%"] == pytest.approx(0.1 * whole.n_treated["5%"])
    assert len(frames["gold.uplift_curve"]) == 2 * 2 * 21
    assert set(frames["gold.uplift_metrics"].metric) >= {"qini", "auuc", "ate", "calibration_slope"}


def test_the_last_scores_count(campaigned, evaluated):
    """The older run's scores were turned upside down: its Qini would be negative."""
    result, _, _ = evaluated
    metrics = campaigned.read("gold.uplift_metrics").toPandas().set_index(["outcome", "treatment", "metric"])
    assert metrics.value["visit", "10%", "qini"] > 0
    assert (result.details["model"], result.details["version"]) == ("spring", "2")


def test_truth_pictures_and_words(campaigned, evaluated):
    result, folder, messages = evaluated
    truth = result.details["truth"]
    assert list(truth) == list(LEVELS)
    assert 0 < truth["10%"]["true_qini"] < truth["10%"]["oracle_qini"]
    assert truth["10%"]["rmse"] == pytest.approx(0.05, rel=0.1)
    for path in result.details["pictures"].split(", "):
        assert (folder / path).is_file()
    reports = Campaign(conf(campaigned), campaigned).reports(result.run_id)
    pictures = {path.name for path in reports.iterdir()}
    assert pictures == {"calibration_visit.png"} | {
        f"{kind}_{y}.png" for kind in ("qini", "lift", "dose") for y in ("visit", "spend")
    }
    summary = result.details["summary"]
    assert summary.index("Lift of 5% on visit") < summary.index("Lift of 10% on visit")
    assert "true value" in summary and "The model is not in the registry" in summary
    assert messages


def test_winsorised_money_is_on_record(campaigned, evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = conf(campaigned, lift=Lift(outcomes=("spend",), bins=20, replicates=50, winsorise={"spend": 0.95}))
    result = lift.run(Campaign(config, campaigned))
    assert result.run_id != evaluated[0].run_id
    training, _, _ = training_rows()
    held_out = training[training.split == "holdout"]
    at = np.quantile(held_out.spend, 0.95)
    metrics = campaigned.read("gold.uplift_metrics").where(f"run_id = '{result.run_id}'").toPandas()
    (record,) = metrics[metrics.metric == "winsorised_at"].to_dict("records")
    assert (record["outcome"], record["treatment"]) == ("spend", "any") and record["value"] == pytest.approx(at)
    means = held_out.assign(spend=held_out.spend.clip(upper=at)).groupby("treatment").spend.mean()
    ate = metrics[(metrics.metric == "ate") & (metrics.outcome == "spend")].set_index("treatment").value
    assert ate.to_dict() == pytest.approx({level: means[level] - means["none"] for level in LEVELS})
    assert f"({(held_out.spend > at).sum()} units had more)" in result.details["summary"]
    with pytest.raises(
        ConfigError, match=r"lift.winsorise names \['spent'\], none of the outcomes evaluated: visit, spend"
    ):
        conf(campaigned, lift=Lift(outcomes=("spend",), winsorise={"spent": 0.99}))


def test_a_rerun_adds_nothing(campaigned, evaluated, tmp_path, monkeypatch):
    result, _, _ = evaluated
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    versions = {table: campaigned.version(table) for table in GOLD}
    messages = []
    again = lift.run(Campaign(conf(campaigned), campaigned), progress=messages.append)
    assert again.run_id == result.run_id
    assert all(written["skipped"] and written["rows"] == 0 for written in again.tables.values())
    assert {table: campaigned.version(table) for table in GOLD} == versions
    # Without the extra the tables are the same, and the job says what is missing.
    assert "pictures" not in again.details and any("uplift-spark[plots]" in line for line in messages)


def test_units_the_model_was_trained_on_are_refused(campaigned, monkeypatch):
    monkeypatch.setattr(Registry, "find", lambda self, name, version: registered({TRAINING: 1}))
    training, _, _ = training_rows()
    flipped = training.assign(split=np.where(np.arange(1200) % 4 == 1, "train", "holdout"))
    spark = campaigned.spark
    campaigned.write(TRAINING, spark.createDataFrame(flipped), "features-2", mode="overwrite")
    with pytest.raises(DataError, match="version 0 holds out 300 units that spring version 2 was trained on"):
        lift.run(Campaign(conf(campaigned), campaigned))


def registered(data_versions):
    return Registered("spring", 2, "train-1", "mlflow-run", "0" * 64, data_versions, "abc123", {})


def test_a_model_of_the_same_training_set_needs_no_comparison(campaigned, monkeypatch):
    campaign = Campaign(conf(campaigned), campaigned)
    last = campaign.last_scored()
    assert last.feature_version == 0
    assert campaign.check_unseen(last) is False
    monkeypatch.setattr(Registry, "find", lambda self, name, version: registered({TRAINING: 0}))
    assert campaign.check_unseen(last) is True


def test_drivers_are_measured_where_the_model_is_registered(campaigned, evaluated, monkeypatch):
    """A forest of other units chooses; the figures are those of the hold-out, the lift table is what it was."""
    training, _, _ = training_rows()
    roles = Roles("unit_id", "treatment", "visit", ("age", "city"), "none")
    table = pa.Table.from_pandas(training[training.split == "train"], preserve_index=False)
    forest = fit_table(table, roles, Params(n_trees=40, min_leaf=10))
    before = Campaign(conf(campaigned), campaigned).lift_table()
    monkeypatch.setattr(Registry, "known", lambda self, name, *version: registered({TRAINING: 0}))
    monkeypatch.setattr(Registry, "load", lambda self, model: forest)
    campaign = Campaign(replace(conf(campaigned), seed=8), campaigned)
    result = lift.run(campaign)
    rows = campaigned.read("gold.lift_driver").toPandas()
    assert set(rows.run_id) == {result.run_id} and set(rows.campaign) == {"spring"} and set(rows.treatment) == {*LEVELS}
    assert set(rows.cut) == {"all", "segment:city"}  # of crossings there are too few units
    assert set(campaign.lift_table().cut) == set(before.cut)
    first = campaign.drivers(treatment="10%").iloc[0]
    assert (first["rank"], first["cut"], first["feature"]) == (1, "all", "age")
    held_out = training[(training.split == "holdout") & training.age.notna()]
    cut = float(re.search(r"[\d.]+$", first["condition"]).group())
    meets = (held_out.age > cut) if "above" in first["condition"] else (held_out.age <= cut)
    means = held_out.groupby([meets, "treatment"]).visit.mean()
    effects = [means[side, "10%"] - means[side, "none"] for side in (True, False)]
    assert first["gain"] == pytest.approx(effects[0] - effects[1])
    assert first["n"] == held_out.treatment.isin(["10%", "none"]).sum()
    assert first["sentence"] in campaign.report().html.replace("&#39;", "'") or not first["proven"]
    assert driver_sentence(first, 100.0) == first["sentence"]
    assert all(written["skipped"] for written in lift.run(campaign).tables.values())
    unit = {"decision": {"model_version": "2", "unit_id": "u5"}, "versions": {TRAINING: 0}}
    reasons = audit.score_reasons(campaign, unit)  # what `uplift audit explain` says of a unit's scores
    age = training.set_index("unit_id").age["u5"]
    assert any(words.startswith(f"age of {age} ") and "effect of 10% (95 % interval" in words for words in reasons)
    nobody = {"decision": {"model_version": "2", "unit_id": "nobody"}, "versions": {TRAINING: 0}}
    assert audit.score_reasons(campaign, nobody) == []


def test_a_model_that_cannot_be_read_leaves_the_figures(campaigned, monkeypatch):
    def damaged(self, model):
        raise ModelFileError("its file is damaged")

    monkeypatch.setattr(Registry, "known", lambda self, name, *version: registered({TRAINING: 0}))
    monkeypatch.setattr(Registry, "load", damaged)
    messages = []
    result = lift.run(Campaign(replace(conf(campaigned), seed=9), campaigned), progress=messages.append)
    assert tuple(result.tables) == GOLD and "drivers of lift are left out: its file is damaged" in messages


def test_scores_of_the_model_must_exist(lake):
    with pytest.raises(DataError, match=r"table gold\.uplift_scores"):
        lift.run(Campaign(conf(lake), lake))
    training, scores, _ = training_rows()
    spark = lake.spark
    lake.write(SCORES, spark.createDataFrame(scored(scores).assign(model_name="autumn")), "score-9")
    with pytest.raises(DataError, match="no row of model 'spring': run `uplift score`"):
        lift.run(Campaign(conf(lake), lake))
    lake.write(SCORES, spark.createDataFrame(scored(scores)), "score-1")
    with pytest.raises(DataError, match="no row of model 'spring' version 7: run `uplift score`"):
        lift.run(Campaign(conf(lake, registry=RegistryConf(version=7)), lake))
    no_control = training[training.treatment != "none"]
    lake.write(TRAINING, spark.createDataFrame(no_control), "features-1", mode="overwrite")
    with pytest.raises(DataError, match=r"silver\.training_spring has no hold-out unit of the control arm 'none'"):
        lift.run(Campaign(conf(lake), lake))
    assert not [table for table in lake.tables() if table in GOLD]
