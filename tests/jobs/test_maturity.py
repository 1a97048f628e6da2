"""Training on labels that are mature, weighted so that they stand for everybody who was assigned."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, Labels, RolesConf
from uplift_spark.errors import DataError
from uplift_spark.forest.forest import average_effect
from uplift_spark.jobs import features, train
from uplift_spark.registry.models import Registry

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # runs whole jobs, tens of seconds each
N = 6000


def campaign(lake, late=0.7):
    """Units with much x are assigned later, and gain more: effects are 4 x, 2 on average over all."""
    rng = np.random.default_rng(3)
    x, treated = rng.random(N), rng.integers(0, 2, N)
    early = rng.random(N) < 0.5 + late / 2 - late * x
    at = np.where(early, pd.Timestamp("2025-01-06"), pd.Timestamp("2025-02-03"))
    who = {"unit_id": [f"u{i}" for i in range(N)], "campaign": "spring", "source": "test"}
    assigned = pd.DataFrame(
        {**who, "treatment": np.where(treated, "mail", "none"), "assigned_at": at, "propensity": 0.5}
    )
    events = pd.DataFrame({**who, "outcome": "spend", "value": 4 * x * treated + rng.normal(size=N)})
    events = events.assign(occurred_at=at + pd.Timedelta(days=1), known_at=at + pd.Timedelta(days=1))
    profile = pd.DataFrame({"unit_id": who["unit_id"], "observed_at": pd.Timestamp("2025-01-01"), "x": x})
    spark, known = lake.spark, datetime(2025, 1, 1)
    lake.write("bronze.assignment", spark.createDataFrame(assigned), "load-1")
    outcome = spark.createDataFrame(events).selectExpr("*", "CAST(NULL AS string) AS event_id")
    lake.write("bronze.outcome", outcome, "load-1")
    lake.write("bronze.profile_spring", spark.createDataFrame(profile.assign(known_at=known, source="test")), "load-1")
    return x, early


def conf(lake, **labels):
    return Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=RolesConf("spend", "none", ("x",)),
        labels=Labels(as_of=datetime(2025, 2, 5), **labels),
        lakehouse=lake.lakehouse,
        forest=ForestConf(n_trees=20),
        holdout=0.01,
    )


@pytest.mark.slow
def test_mature_units_stand_for_all(lake):
    x, early = campaign(lake)
    plain, weighted = conf(lake), conf(lake, maturity_weights=True)
    means = []
    for config in (plain, weighted):
        features.run(Campaign(config, lake))
        train.run(Campaign(config, lake))
        registry = Registry.of(config)
        forest = registry.load(registry.find("spring"))
        means.append(average_effect(forest)["mail"])
    training = lake.read("silver.training_spring").toPandas().set_index("unit_id")
    weight, mine = training["maturity_weight"], pd.Series(x, [f"u{i}" for i in range(N)])[training.index]
    assert len(training) == early.sum() and forest.roles.weight == "maturity_weight"
    assert weight.mean() == pytest.approx(1.0, abs=0.05) and np.average(mine, weights=weight) == pytest.approx(
        0.5, abs=0.02
    )
    # Of the mature alone 4 times .38; of all 2.
    assert means[0] == pytest.approx(4 * x[early].mean(), abs=0.12) and means[0] < 1.7
    assert means[1] == pytest.approx(2.0, abs=0.15)


def test_it_takes_some_of_both(lake):
    campaign(lake)
    everybody = replace(conf(lake), labels=Labels(as_of=datetime(2025, 6, 1), maturity_weights=True))
    with pytest.raises(
        DataError, match=r"6,000 of 6,000 labels are mature: for labels\.maturity_weights at least 100 must"
    ):
        features.run(Campaign(everybody, lake))
