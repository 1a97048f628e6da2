"""`uplift nuisances`: a campaign that was no trial, from its training set to a forest on doubly robust scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.jobs.conftest import rows_of
from tests.learners.test_spark_nuisances import observed
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, Lakehouse, Lift, NuisancesConf, RolesConf
from uplift_spark.errors import ConfigError
from uplift_spark.forest.forest import effect_table
from uplift_spark.jobs import nuisances, train
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

ROLES = RolesConf("bought", "none", ("age", "city"))


def conf(lake, **changes):
    return Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=ROLES,
        lakehouse=lake.lakehouse,
        lift=Lift(segments=("city",)),
        forest=ForestConf(n_trees=8, min_leaf=20, n_buckets=4),
        **{"nuisances": NuisancesConf(folds=3, rows=1000, lowest=0.05), **changes},
    )


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("observed"))))
    frame = spark.createDataFrame(observed())
    lake.write("silver.training_spring", frame.selectExpr("*", "timestamp'2025-01-06' assigned_at"), "features-1")
    return lake


@pytest.fixture(scope="module")
def job_result(lake, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        return nuisances.run(Campaign(conf(lake), lake))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Pictures go to the working folder."""
    monkeypatch.chdir(tmp_path)


def test_what_is_written_and_reported(lake, job_result):
    table = rows_of(lake, "silver.adjusted_spring")
    assert len(table) == 3000 and set(table.split) == {"train", "holdout", "trimmed"}
    effects = rows_of(lake, "gold.average_effects").set_index(["treatment", "estimand", "cut"])
    whole = effects.xs("all", level="cut")
    # The old get mail and buy more anyway: the difference of means says twice what mail brings, .1.
    assert whole.value["mail", "naive"] > 0.13 and whole.lower["mail", "ate"] < 0.1 < whole.upper["mail", "ate"]
    assert set(effects.index.get_level_values("cut")) == {"all", "segment:city"}
    trimmed = rows_of(lake, "gold.overlap").set_index("treatment").trimmed
    assert trimmed.sum() == (table.split == "trimmed").sum() > 0 and job_result.details["trimmed"] == trimmed.to_dict()
    assert {"age", "city"} == set(rows_of(lake, "gold.balance").feature)
    for words in ("ate 0.", "naive 0.", "units are trimmed", "hold if whatever decided the treatment"):
        assert words in job_result.details["summary"]
    checks = rows_of(lake, "gold.sensitivity")
    assert set(checks.check) == {"permuted treatment", "hidden confounder", "robustness", "e-value"}
    assert (
        "not nought" in job_result.details["summary"]
        and "takes the average effect to nought" in job_result.details["summary"]
    )
    assert job_result.details["picture"] == f"{lake.lakehouse.path}/reports/spring/{job_result.run_id}/balance.png"
    again = nuisances.run(Campaign(conf(lake), lake))
    assert all(written["skipped"] for written in again.tables.values()) and again.details == job_result.details


def test_the_forest_is_trained_on_the_scores(lake, job_result):
    result = train.run(Campaign(conf(lake), lake))
    registry = Registry.of(conf(lake))
    model = registry.find("spring")
    forest = registry.load(model)
    kept = (rows_of(lake, "silver.adjusted_spring").split == "train").sum()
    assert result.details["version"] == model.version and dict(model.data_versions) == {"silver.adjusted_spring": 0}
    assert forest.roles.scores == "scores" and forest.facts["rows"] == 3 * kept
    effects = effect_table(forest, lake.read("silver.adjusted_spring").where("split = 'holdout'").toArrow())
    assert np.isfinite(effects["uplift_se"].to_numpy()).all()


def test_a_campaign_that_asks_for_none_is_refused(lake, job_result):
    with pytest.raises(ConfigError, match=r"add `nuisances: \{\}`"):
        nuisances.run(Campaign(conf(lake, nuisances=None), lake))
    with pytest.raises(ConfigError, match="one outcome: drop more_outcomes"):
        train.run(Campaign(replace(conf(lake), roles=replace(ROLES, more_outcomes=("spend",))), lake))
