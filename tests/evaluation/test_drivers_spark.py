"""Drivers of lift in Spark: buckets as pandas has them, choices without outcomes, cuts of segments that can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_drivers import campaign, forest_of, marked
from uplift_spark.evaluation.drivers import DRIVER_CUT, DriverCondition, LiftDriver
from uplift_spark.evaluation.spark import drivers_of, with_drivers

CONDITIONS = [
    DriverCondition("recency", "at_most", cut=30.0), DriverCondition("recency", "missing"),
    DriverCondition("region", "categories", categories=("north", "we'st")), DriverCondition("region", "missing"),
    DriverCondition("member", "at_most", cut=0.0),
]  # fmt: skip


def test_buckets_are_those_of_pandas(spark) -> None:
    frame = campaign(200, 3, 0.0).assign(member=np.arange(200) % 3 == 0)
    frame["region"] = frame["region"].replace({"west": "we'st", "east": None})
    every = [*CONDITIONS, *(replace(one, negated=True) for one in CONDITIONS)]
    drivers = [LiftDriver("mail 1", 1, one, 0.1, 1.0) for one in every]
    names = [f"{DRIVER_CUT}{i}" for i in range(len(drivers))]
    shown = with_drivers(spark.createDataFrame(frame), drivers).select("unit_id", *names).toPandas()
    expected = marked(frame, drivers).set_index("unit_id")[names]
    pd.testing.assert_frame_equal(shown.set_index("unit_id").loc[expected.index], expected, check_dtype=False)


def test_choices_know_no_outcome_and_cross_segments_of_few_values(spark) -> None:
    forest = forest_of(campaign(6000, 1, 0.2))
    holdout = campaign(800, 2, 0.2).assign(shop=[f"shop {i % 90}" for i in range(800)], age=np.arange(800) / 7)
    holdout["street"] = np.where(np.arange(800) % 2 == 0, "a x b", "c")
    segments = ("region", "shop", "street", "age", "region x device")
    drivers, cuts = drivers_of(spark.createDataFrame(holdout), forest, segments)
    blind = holdout.drop(columns=["visit", "treatment", "propensity"])
    assert drivers_of(spark.createDataFrame(blind.sample(frac=1, random_state=1)), forest, segments) == (drivers, cuts)
    assert drivers[0].feature == "recency" and drivers[0].condition.words.startswith("recency of at most")
    assert cuts[: len(drivers)] == tuple(f"{DRIVER_CUT}{i}" for i in range(len(drivers)))
    assert f"region x {DRIVER_CUT}0" in cuts and f"age x {DRIVER_CUT}0" in cuts
    assert not [cut for cut in cuts if cut.startswith(("shop", "street", "region x device"))]


@pytest.mark.parametrize("n", [0, 3])
def test_hold_outs_of_few_units_have_drivers_or_none(spark, n: int) -> None:
    forest = forest_of(campaign(6000, 1, 0.2))
    holdout = spark.createDataFrame(campaign(5, 2, 0.2)).limit(n)
    drivers, _ = drivers_of(holdout, forest, ())
    assert len(drivers) <= 5 and (n > 0 or not drivers)
