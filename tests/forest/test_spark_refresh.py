"""New labels into standing trees on Spark: the bytes of one process, and what cannot be counted refused by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.forest.frames import ordered_frame, ordered_roles
from uplift_spark import CausalForest
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.roles import Roles

pytestmark = pytest.mark.spark
OLD, ALL = 2000, 3000
ROLES = ordered_roles(more_outcomes=("money",), weight="wt")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """3,000 rows; the model is trained on the first 2,000, all of one day."""
    rng = np.random.default_rng(3)
    frame = ordered_frame(ALL)
    frame = frame.assign(money=20 + 0.6 * frame["age"].fillna(40) + rng.normal(size=ALL), wt=rng.uniform(0.5, 2, ALL))
    return frame.assign(day=np.where(frame.index < OLD, 20_000, 20_003 + frame.index % 3))


@pytest.fixture(scope="module")
def on_spark(spark, frame):
    return spark.createDataFrame(frame.astype({"region": object}).where(frame.notna(), None)).repartition(3)


@pytest.fixture(scope="module")
def base(frame):
    return CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame[:OLD], ROLES)


@pytest.mark.parametrize("half_life", [pytest.param(None, marks=pytest.mark.slow), 2.5])
def test_bytes_equal_pandas_for_any_partitioning(base, frame, on_spark, half_life):
    expected = base.refresh(frame, half_life, "day").to_bytes()
    assert expected != base.to_bytes()
    for partitions in (1, 5):
        assert base.refresh(on_spark.repartition(partitions), half_life, "day").to_bytes() == expected
    if half_life is None:
        assert base.refresh(on_spark).to_bytes() == expected  # days say nothing where nothing fades


def test_a_day_of_many_rows_goes_to_several_workers(base, frame, on_spark, monkeypatch):
    expected = base.refresh(frame, 1.0, "day").to_bytes()
    monkeypatch.setattr("uplift_spark.forest.spark.WORKERS", 40)
    assert base.refresh(on_spark, 1.0, "day").to_bytes() == expected


def test_the_training_rows_give_the_sums_the_model_has(base, frame, on_spark):
    again = base.refresh(on_spark.where("day = 20000"))
    np.testing.assert_array_equal(again.forest.sums, base.forest.sums)


def test_a_forest_of_doses_of_any_value_is_refreshed_too(frame, on_spark):
    roles = Roles("unit", "spend", "y", ("age", "region"), "0", grid=(1.0, 2.0))
    base = CausalForest(n_trees=8, min_leaf=20, n_buckets=4).fit(frame[:OLD], roles)
    np.testing.assert_array_equal(base.refresh(frame[:OLD]).forest.sums, base.forest.sums)
    assert base.refresh(on_spark).to_bytes() == base.refresh(frame).to_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "CASE WHEN unit < 'u000003' THEN 'u000000' ELSE unit END"}, "'unit' repeats a unit in 2 rows"),
        (
            {"region": "CASE WHEN unit < 'u000004' THEN 'moon' ELSE region END"},
            "'region' in 4 of 3000 rows has cat",
        ),
        ({"y": "CASE WHEN unit = 'u000001' THEN 1e300D ELSE y END"}, "'y' in 1 of 3000 rows has"),
        ({"day": "CASE WHEN unit < 'u000007' THEN NULL ELSE day END"}, "'day' is null in 7 of 3000 rows"),
        ({"y": "CASE WHEN unit < 'u000002' THEN NULL ELSE y END"}, "y: null, NaN or infinite in 2 of 3000"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(base, on_spark, changes, message):
    from pyspark.sql import functions as F

    bad = on_spark.withColumns({column: F.expr(text) for column, text in changes.items()})
    with pytest.raises(DataError, match=message):
        base.refresh(bad, 2.0, "day")


def test_days_are_needed_to_fade(base, frame, on_spark):
    for rows in (frame, on_spark):
        with pytest.raises(ConfigError, match="rows need days"):
            base.refresh(rows, 2.0)
        with pytest.raises(ConfigError, match="above 0"):
            base.refresh(rows, 0.0, "day")
    with pytest.raises(DataError, match="'day'"):
        base.refresh(frame.assign(day=None), 2.0, "day")
