"""Meta-learners and forests for each level on Spark: those of one process, for any partitioning."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.conformance.test_learned import ROLES, rows
from uplift_spark import CausalForest, MetaLearner

pytestmark = pytest.mark.spark


def sparked(spark, frame, parts):
    return spark.createDataFrame(frame.astype({"x0": object}).where(frame.notna(), None)).repartition(parts)


@pytest.mark.parametrize("learner", [MetaLearner("dr_learner", 2, 400, 2), CausalForest(n_trees=8, per_level=True)])
def test_the_same_as_in_one_process(spark, learner):
    frame, asked = rows(), rows(60, 1)
    here = learner.fit(frame, ROLES).effect(asked)
    for parts in (1, 5):
        model = learner.fit(sparked(spark, frame, parts), ROLES)
        there = model.effect(sparked(spark, asked, parts)).toPandas()
        keys = ["unit", "treatment"]
        pd.testing.assert_frame_equal(
            there.sort_values(keys, ignore_index=True), here.sort_values(keys, ignore_index=True), check_exact=True
        )
