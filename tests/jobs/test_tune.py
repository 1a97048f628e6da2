"""`uplift tune`: trials judged by units held back, logged once, gone on with; and the loss that judges."""

from dataclasses import replace

import numpy as np
import pytest

from tests.jobs.test_train_score import ROLES, TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import ForestConf, Lakehouse, Tune
from uplift_spark.errors import ConfigError
from uplift_spark.jobs import tune
from uplift_spark.jobs import tune as tuning
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # runs whole jobs, tens of seconds each


def clear(n=4000):
    """Who came lately gains much, the others lose as much: leaves of nearly everybody miss that."""
    rows = training_rows(n)
    arm = rows["treatment"].map({"none": 0, "5%": 1, "10%": 2})
    noise = np.random.default_rng(5).normal(size=n)
    return rows.assign(visit=2.0 * arm * np.sign(6 - rows["recency"]) + noise)


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    fresh = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("tune"))))
    fresh.write(TABLE, spark.createDataFrame(clear()), "features-1", mode="overwrite")
    return fresh


def conf_of(lake, **changes):
    section = {"trials": 2, "held_out": 1000, "space": {"min_leaf": [20]}, **changes}
    forest = ForestConf(n_trees=12, min_leaf=1400, n_buckets=2)  # hardly a split
    return replace(conf(lake), forest=forest, tune=Tune(**section), roles=replace(ROLES, features=("recency", "zip")))


def test_better_arguments_win_and_trials_are_not_repeated(lake, monkeypatch):
    first = tune.run(Campaign(conf_of(lake), lake))
    assert first.details["best"]["min_leaf"] == 20 and first.details["trials"] == 2
    assert "the best has min_leaf 20" in first.details["summary"] and "chance" not in first.details["summary"]
    logged = Registry.of(conf_of(lake)).logged_metrics("spring", f"{first.run_id}-1")
    assert logged["difference"] < -1 and logged["error"] > 0 and logged["seconds"] > 0

    fitted = []
    fit = tuning._losses
    monkeypatch.setattr(
        tuning, "_losses", lambda *arguments: fitted.append(arguments[2]["min_leaf"]) or fit(*arguments)
    )
    assert tune.run(Campaign(conf_of(lake), lake)) == first and not fitted
    # More trials go on where these ended; of the values asked for there is but one more that was not drawn.
    more = tune.run(Campaign(conf_of(lake, trials=3, space={"min_leaf": [20]}), lake))
    assert more.details["trials"] == 2 and not fitted
    assert lake.tables() == [TABLE]


def test_a_budget_of_time_ends_it_and_a_rerun_goes_on(lake):
    config = conf_of(lake, trials=3, minutes=1e-9, space={"min_leaf": [1400, 1500, 1600]})
    messages = []
    first = tune.run(Campaign(config, lake), progress=messages.append)
    assert first.details["trials"] == 1 and any("run again for more" in line for line in messages)
    assert "none tells effects better" in first.details["summary"]
    again = tune.run(Campaign(replace(config, tune=replace(config.tune, minutes=60)), lake))
    assert again.run_id == first.run_id and again.details["trials"] == 3


@pytest.mark.parametrize(
    ("space", "message"),
    [({"min_leaf": [0]}, r"tune\.space\.min_leaf: 0 is no value"), ({"leaves": [3]}, r"tune\.space\.leaves: 3 is no")],
)
def test_values_that_a_forest_does_not_take_are_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        Tune(space=space)
