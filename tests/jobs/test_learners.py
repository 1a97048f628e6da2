"""A campaign whose model is a meta-learner: trained, registered, scored, rebuilt, erased from, compared."""

from dataclasses import replace

import numpy as np
import pytest

from tests.jobs.test_train_score import ROLES, SCORES, TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import Compare, Lakehouse, LearnerConf, Lift
from uplift_spark.errors import ConfigError
from uplift_spark.governance.erasure import Erasure, run_erasure
from uplift_spark.jobs import compare, score, train
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.metalearners import PerLevel
from uplift_spark.registry.models import Registry, rebuild

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # runs whole jobs, tens of seconds each


def conf_of(lake, kind, **registry):
    roles = replace(ROLES, more_outcomes=())
    return replace(
        conf(lake, **registry), roles=roles, learner=LearnerConf(kind=kind, replicates=2), lift=Lift(replicates=50)
    )


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    """A lakehouse with a training set."""
    fresh = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("learners"))))
    fresh.write(TABLE, spark.createDataFrame(training_rows()), "features-1", mode="overwrite")
    return fresh


@pytest.fixture(scope="module")
def trained(lake):
    return train.run(Campaign(conf_of(lake, "x_learner"), lake))


def test_a_meta_learner_is_registered_and_scored_like_a_forest(lake, trained):
    registry = Registry.of(conf_of(lake, "x_learner"))
    model = registry.find("spring")
    assert model.version == trained.details["version"] and dict(model.params)["kind"] == "x_learner"
    score.run(Campaign(conf_of(lake, "x_learner"), lake))
    scores = lake.read(SCORES).where(f"model_version = '{model.version}'").toPandas()
    here = registry.load(model).effect_arrays(lake.read(TABLE).toArrow())[0]
    assert len(scores) == 800 and np.sort(scores["uplift"]) == pytest.approx(np.sort(here.ravel()))
    assert (scores["uplift_lower"] < scores["uplift_upper"]).all()
    with pytest.raises(ConfigError, match=r"one outcome: drop roles\.more_outcomes"):
        train.run(Campaign(replace(conf_of(lake, "x_learner"), roles=ROLES), lake))


def test_a_run_of_a_meta_learner_is_rebuilt_to_the_same_effects(lake, trained):
    again = rebuild(conf_of(lake, "forest"), lake, trained.run_id)
    assert again.details["same_effects"] and again.details["version"] == trained.details["version"]


def test_versions_of_any_kind_are_compared(lake, trained):
    per_level = train.run(Campaign(conf_of(lake, "forest_per_level", champion=False), lake))
    assert isinstance(
        Registry.of(conf_of(lake, "forest")).load(
            Registry.of(conf_of(lake, "forest")).find("spring", per_level.details["version"])
        ),
        PerLevel,
    )
    both = replace(conf_of(lake, "x_learner"), compare=Compare(against=(per_level.details["version"], "t_learner")))
    result = compare.run(Campaign(both, lake))
    names = [str(trained.details["version"]), str(per_level.details["version"]), "t_learner"]
    assert result.details["models"] == names
    qini = lake.read("gold.uplift_metrics").where("metric = 'qini'").toPandas()
    assert set(qini["model_version"]) == set(names)


def test_who_is_erased_is_learnt_from_no_more(lake, trained):
    """Last: it changes the table."""
    before = Registry.of(conf_of(lake, "forest")).find("spring")
    run_erasure(conf_of(lake, "x_learner"), lake, Erasure(("u1", "u2")))
    registry = Registry.of(conf_of(lake, "x_learner"))
    model = registry.find("spring")
    assert model.erasure_of == before.version and registry.load(model).facts["rows"] == 298
