"""A campaign whose deliveries fail: effects on compliers, from the lakehouse to scores, and after an erasure."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, Labels, LearnerConf, RolesConf
from uplift_spark.errors import ConfigError
from uplift_spark.governance.erasure import Erasure, run_erasure
from uplift_spark.jobs import features, score, train
from uplift_spark.registry.models import Registry, rebuild

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # runs whole jobs, tens of seconds each
N = 4000


def campaign(lake):
    """Half of the mails arrive, at those who would have spent less anyway; one that arrives brings 2."""
    rng, spark, at = np.random.default_rng(3), lake.spark, pd.Timestamp("2025-01-06")
    x, mailed, noise = rng.random(N), rng.random(N) < 0.5, rng.normal(size=N)
    arrived = mailed & (noise < 0)
    who = {"unit_id": [f"u{i}" for i in range(N)], "campaign": "spring", "source": "test"}
    late = {"known_at": at + pd.Timedelta(days=1)}
    assigned = {**who, "treatment": np.where(mailed, "mail", "none"), "assigned_at": at, "propensity": 0.5}
    spent = {**who, "outcome": "spend", "value": 2.0 * arrived + x + noise, "occurred_at": late["known_at"], **late}
    sent = pd.DataFrame(
        {
            **who,
            "delivery_id": who["unit_id"],
            "status": np.where(arrived, "delivered", "bounced"),
            "delivered_at": at,
            **late,
        }
    )[mailed]
    profile = {"unit_id": who["unit_id"], "observed_at": pd.Timestamp("2025-01-01"), "x": x, "source": "test"}
    for table, frame, more in (
        ("assignment", assigned, ()),
        ("outcome", spent, ("CAST(NULL AS string) AS event_id",)),
        ("delivery", sent, ("CAST(NULL AS string) AS event_id",)),
        ("profile_spring", {**profile, "known_at": datetime(2025, 1, 1)}, ()),
    ):
        lake.write(f"bronze.{table}", spark.createDataFrame(pd.DataFrame(frame)).selectExpr("*", *more), "load-1")
    return arrived


def test_effects_on_compliers_from_the_lakehouse_to_scores(lake):
    arrived = campaign(lake)
    config = Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=RolesConf("spend", "none", ("x",)),
        labels=Labels(as_of=datetime(2025, 3, 1), delivered=True),
        learner=LearnerConf(kind="instrumental_forest"),
        lakehouse=lake.lakehouse,
        forest=ForestConf(n_trees=20, min_leaf=200),
    )
    features.run(Campaign(config, lake))
    kept = lake.read("silver.training_spring").toPandas().set_index("unit_id")["delivered"]
    assert kept[[f"u{i}" for i in range(N)]].tolist() == arrived.astype(float).tolist()
    first = train.run(Campaign(config, lake))
    score.run(Campaign(config, lake))
    scores = lake.read("gold.uplift_scores").toPandas()
    assert len(scores) == N and scores["uplift"].mean() == pytest.approx(2.0, abs=0.4)
    assert rebuild(config, lake, first.run_id).details["same_bytes"]

    train.run(
        Campaign(replace(config, learner=LearnerConf(), registry=replace(config.registry, name="assigned")), lake)
    )
    registry = Registry.of(config)
    assigned = registry.load(registry.find("assigned")).effect_arrays(lake.read("silver.training_spring").toArrow())[0]
    assert assigned.mean() == pytest.approx(1.0, abs=0.25)

    run_erasure(config, lake, Erasure(("u1", "u2", "u3")))
    after = registry.load(registry.find("spring"))
    assert after.forest.facts["rows"] == registry.load(registry.find("spring", 1)).forest.facts["rows"] - sum(
        unit in ("u1", "u2", "u3")
        for unit in lake.read("silver.training_spring", 0).where("split = 'train'").toPandas()["unit_id"]
    )


def test_it_needs_to_know_who_was_reached():
    with pytest.raises(ConfigError, match=r"set labels\.delivered: true"):
        Config(
            campaign="spring",
            source={"kind": "simulation"},
            roles=RolesConf("spend", "none", ("x",)),
            learner=LearnerConf(kind="instrumental_forest"),
        )
