"""`uplift features` and leaks: a blocked training set says which feature and why, an override is on record."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Leakage, RolesConf, TrialConf
from uplift_spark.errors import DataError
from uplift_spark.events.features import hash_sample, hash_split
from uplift_spark.events.leakage import guard_training
from uplift_spark.jobs import features, ingest

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

TABLE = "silver.training_shop"
UNITS = 1_200


@pytest.fixture
def shop(published, lake):
    """A trial in the lakehouse whose attribute `visits` was counted after the mailing, and its configuration."""
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 2, UNITS)
    rows = pd.DataFrame(
        {
            "customer": [f"c{i}" for i in range(UNITS)],
            "arm": np.where(arm, "mail", "none"),
            "bought": rng.integers(0, 2, UNITS),
            "age": rng.integers(18, 80, UNITS),
            "visits": rng.poisson(1.0 + 2.0 * arm),
        }
    )
    source = TrialConf(
        kind="trial",
        file="trial.csv",
        sha256="",
        unit="customer",
        treatment="arm",
        outcomes=("bought",),
        attributes=("age", "visits"),
        assigned_at=datetime(2024, 1, 1),
    )
    config = Config(
        campaign="shop", source=published(rows.to_csv(index=False), source), roles=RolesConf("bought", "none", ("age",))
    )
    ingest.run(Campaign(config, lake))
    return config


def test_a_leak_blocks_the_training_set_until_it_is_allowed_on_record(lake, shop):
    messages = []
    clean = features.run(Campaign(shop, lake), progress=messages.append).details["leakage"]
    assert clean["rows"] == clean["compared"] > UNITS / 3 and clean["allowed"] == []
    assert any("sampled rows were compared between arms" in line for line in messages)
    before = lake.read(TABLE).toPandas()

    leaking = replace(shop, roles=replace(shop.roles, features=("age", "visits")))
    with pytest.raises(DataError) as caught:
        features.run(Campaign(leaking, lake))
    message = str(caught.value)
    for words in (
        "silver.training_shop was not written, 1 of 2 features leak",
        "feature 'visits' predicts the treatment",
        "recorded or changed afterwards",
        "leakage.allow: {visits: <reason>}",
    ):
        assert words in message
    assert "'age'" not in message and "\n" not in message
    assert lake.version(TABLE) == 0
    pd.testing.assert_frame_equal(lake.read(TABLE).toPandas(), before)

    messages.clear()
    allowed = replace(leaking, leakage=Leakage(allow={"visits": "counted by the old system"}))
    result = features.run(Campaign(allowed, lake), progress=messages.append)
    (one,) = result.details["leakage"]["allowed"]
    assert (one["feature"], one["rule"], one["reason"]) == ("visits", "predicts_treatment", "counted by the old system")
    assert any("allowed because 'counted by the old system': feature 'visits' predicts" in line for line in messages)
    assert lake.version(TABLE) == 1 and "visits" in lake.read(TABLE).columns

    observational = replace(leaking, leakage=Leakage(randomised=False))
    unlogged = lake.read(TABLE).withColumn("propensity", F.lit(None).cast("double"))
    for config, frame, why in (
        (observational, lake.read(TABLE), "leakage.randomised is false"),
        (leaking, unlogged, "no propensity was logged"),
    ):
        messages.clear()
        assert guard_training(frame, config, messages.append)["compared"] == 0
        assert messages == [f"leakage: features were not compared between arms, because {why}"]


def test_the_sample_is_by_hash_whatever_the_split_is(spark):
    rows = spark.range(10_000).select(F.concat(F.lit("u"), "id").alias("unit_id"))
    rows = rows.withColumn("split", hash_split(7, 0.5))
    sample = rows.filter(hash_sample(7, 0.2)).toPandas()
    assert 1_800 < len(sample) < 2_200 and 0.45 < (sample.split == "train").mean() < 0.55
    again = rows.repartition(3).filter(hash_sample(7, 0.2)).toPandas()
    assert set(sample.unit_id) == set(again.unit_id)
    assert set(sample.unit_id) != set(rows.filter(hash_sample(8, 0.2)).toPandas().unit_id)
