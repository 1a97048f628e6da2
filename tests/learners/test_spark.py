"""Meta-learners and forests for each level on Spark: those of one process, for any partitioning."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.conformance.test_learned import ROLES, rows
from tests.forest.test_instrument import roles, trial
from uplift_spark import CausalForest, InstrumentalForest, MetaLearner
from uplift_spark.errors import DataError

pytestmark = pytest.mark.spark


def sparked(spark, frame, parts):
    return spark.createDataFrame(frame.astype({"x0": object}).where(frame.notna(), None)).repartition(parts)


@pytest.mark.parametrize(
    "learner",
    [
        MetaLearner("dr_learner", 2, 400, 2),
        pytest.param(CausalForest(n_trees=8, per_level=True), marks=pytest.mark.slow),
    ],
)
def test_the_same_as_in_one_process(spark, learner):
    frame, new = rows(), rows(60, 1)
    here = learner.fit(frame, ROLES).effect(new)
    for parts in (1, 5):
        model = learner.fit(sparked(spark, frame, parts), ROLES)
        there = model.effect(sparked(spark, new, parts)).toPandas()
        keys = ["unit", "treatment"]
        pd.testing.assert_frame_equal(
            there.sort_values(keys, ignore_index=True), here.sort_values(keys, ignore_index=True), check_exact=True
        )


@pytest.mark.slow
def test_complier_effects_are_those_of_one_process(spark):
    frame, learner = trial(1500), InstrumentalForest(n_trees=8)
    here = learner.fit(frame, roles(), "w")
    there = learner.fit(spark.createDataFrame(frame).repartition(5), roles(), "w")
    assert there.to_bytes() == here.to_bytes()
    for spoilt, message in (
        (frame.assign(w=0.0), r"'w' is the same in all arms of 1500 rows"),
        (frame.assign(w=frame.w.where(frame.index > 6)), r"'w' is null, NaN or infinite in 7 of 1500 rows"),
    ):
        with pytest.raises(DataError, match=message):
            learner.fit(spark.createDataFrame(spoilt), roles(), "w")
