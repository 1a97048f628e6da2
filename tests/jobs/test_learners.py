"""A campaign whose model is a meta-learner: trained, registered, scored, rebuilt, erased from, compared."""

from dataclasses import replace

import numpy as np
import pytest

from tests.jobs.test_train_score import ROLES, SCORES, TABLE, conf, training_rows
from uplift_spark.config import Compare, Lakehouse, Learner, Lift
from uplift_spark.errors import ConfigError
from uplift_spark.governance.erasure import Erasure, erase
from uplift_spark.jobs import compare, score, train
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.metalearners import PerLevel
from uplift_spark.registry.models import Registry, rebuild

pytestmark = pytest.mark.spark


def asked(lake, kind, **registry):
    roles = replace(ROLES, more_outcomes=())
    return replace(
        conf(lake, **registry), roles=roles, learner=Learner(kind=kind, replicates=2), lift=Lift(replicates=50)
    )


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    """A lakehouse with a training set."""
    made = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("learners"))))
    made.write(TABLE, spark.createDataFrame(training_rows()), "features-1", mode="overwrite")
    return made


@pytest.fixture(scope="module")
def trained(lake):
    return train.run(asked(lake, "x_learner"), lake)


def test_a_meta_learner_is_registered_and_scored_like_a_forest(lake, trained):
    registry = Registry.of(asked(lake, "x_learner"))
    model = registry.find("spring")
    assert model.version == trained.details["version"] and dict(model.params)["kind"] == "x_learner"
    score.run(asked(lake, "x_learner"), lake)
    found = lake.read(SCORES).where(f"model_version = '{model.version}'").toPandas()
    here = registry.load(model).effect_arrays(lake.read(TABLE).toArrow())[0]
    assert len(found) == 800 and np.sort(found["uplift"]) == pytest.approx(np.sort(here.ravel()))
    assert (found["uplift_lower"] < found["uplift_upper"]).all()
    with pytest.raises(ConfigError, match=r"one outcome: drop roles\.more_outcomes"):
        train.run(replace(asked(lake, "x_learner"), roles=ROLES), lake)


def test_a_run_of_a_meta_learner_is_rebuilt_to_the_same_effects(lake, trained):
    again = rebuild(asked(lake, "forest"), lake, trained.run_id)
    assert again.details["same_effects"] and again.details["version"] == trained.details["version"]


def test_versions_of_any_kind_are_compared(lake, trained):
    per_level = train.run(asked(lake, "forest_per_level", champion=False), lake)
    assert isinstance(
        Registry.of(asked(lake, "forest")).load(
            Registry.of(asked(lake, "forest")).find("spring", per_level.details["version"])
        ),
        PerLevel,
    )
    both = replace(asked(lake, "x_learner"), compare=Compare(against=(per_level.details["version"], "t_learner")))
    done = compare.run(both, lake)
    names = [str(trained.details["version"]), str(per_level.details["version"]), "t_learner"]
    assert done.details["models"] == names
    found = lake.read("gold.uplift_metrics").where("metric = 'qini'").toPandas()
    assert set(found["model_version"]) == set(names)


def test_who_is_erased_is_learnt_from_no_more(lake, trained):
    """Last: it changes the table."""
    before = Registry.of(asked(lake, "forest")).find("spring")
    erase(asked(lake, "x_learner"), lake, Erasure(("u1", "u2")))
    registry = Registry.of(asked(lake, "x_learner"))
    model = registry.find("spring")
    assert model.erasure_of == before.version and registry.load(model).facts["rows"] == 298
