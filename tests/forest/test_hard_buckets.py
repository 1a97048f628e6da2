"""Hard inputs on Spark: buckets that cannot grow a tree report it and stop nothing; skew and scale change no bit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.forest.frames import SPOILED, plain_frame, plain_roles, thousand_buckets
from uplift_spark import CausalForest

pytestmark = pytest.mark.spark


@pytest.mark.slow
def test_a_thousand_buckets_each_report_and_none_loses_the_job(spark):
    frame, expected = thousand_buckets()
    forest, roles = CausalForest(n_trees=200, n_buckets=1000), plain_roles(frame)
    model = forest.fit(spark.createDataFrame(frame.drop(columns="tau")).repartition(3), roles)
    statuses = model.manifest["facts"]["buckets"]
    assert [status["bucket"] for status in statuses] == list(range(1000))
    assert {status["bucket"]: status["status"] for status in statuses} == expected
    assert set(SPOILED.values()) <= {status["status"] for status in statuses}
    assert (
        sum(status["rows"] for status in statuses) == len(frame) and sum(status["trees"] for status in statuses) == 198
    )
    assert model.to_bytes() == forest.fit(frame, roles).to_bytes()


@pytest.mark.slow
def test_skew_and_scale_give_the_bytes_of_pandas(spark):
    rng = np.random.default_rng(0)
    frame = plain_frame(6000, 1)
    frame["house"] = np.where(np.arange(6000) < 1800, 0, np.arange(6000))
    frame["wt"] = 10.0 ** rng.uniform(-3, 3, 6000)
    frame["y"] = np.minimum(np.exp(2.5 * rng.normal(size=6000) + 0.5 * frame["tau"] * frame["w"]), 1e7)
    frame["x5"] = [f"c{i % 3000}" for i in range(6000)]
    frame["x6"] = np.nan
    forest, roles = CausalForest(n_trees=16, n_buckets=5), plain_roles(frame, cluster="house", weight="wt")
    model = forest.fit(spark.createDataFrame(frame).repartition(7), roles)
    assert model.to_bytes() == forest.fit(frame, roles).to_bytes()
    assert max(status["rows"] for status in model.manifest["facts"]["buckets"]) > 2400
    unseen = spark.createDataFrame(pd.DataFrame(frame.head(50)).assign(x5="new"))
    assert np.isfinite(model.effect(unseen).toPandas()[["uplift", "uplift_se"]]).all(axis=None)
