"""Tests of assignment on Spark: the arms of Python, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.experiments.test_assignment import DESIGNS, THIRDS, assert_same, in_python, users
from uplift_spark.errors import DataError
from uplift_spark.experiments.assignment import AssignmentColumns

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("name", DESIGNS)
def test_spark_gives_the_same_arms(spark, name: str) -> None:
    from uplift_spark.experiments.spark import with_arms

    rows = users(2000)
    experiment, columns = DESIGNS[name]
    wanted = in_python(rows, experiment, columns)
    result = with_arms(spark.createDataFrame(rows).repartition(5), experiment, columns).toPandas()
    assert_same(result, wanted)
    by_unit = result.set_index("unit_id").participation.loc[wanted.unit_id]
    assert by_unit.to_numpy() == pytest.approx(wanted.participation.to_numpy(), rel=1e-12)


def test_long_integers_keep_their_digits(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    numbers = [9223372036854775807, 1234567890123456789, 17]
    frame = spark.createDataFrame([(k,) for k in numbers], "unit_id bigint")
    result = {row.unit_id: row.treatment for row in with_arms(frame, THIRDS).collect()}
    rows = users(20)
    wanted = in_python(rows, THIRDS, AssignmentColumns()).set_index("unit_id").treatment
    assert result == {k: wanted[str(k)] for k in numbers}


def test_rows_that_get_a_wrong_arm_are_refused(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    schema = "unit_id string, household string, region string, decision string, number double"
    good = [("a", "h", "x", "control", 1.0), ("b", "h", "x", "10%", 1.0)]
    clusters = replace(THIRDS, clustered=True, stratified=True)
    in_strata = AssignmentColumns(cluster="household", strata=("region",))
    cases = [
        (
            [*good, (None, "h", "x", "control", 1.0)],
            THIRDS,
            AssignmentColumns(),
            "'unit_id' is null or empty in 1 rows",
        ),
        ([*good, *good], THIRDS, AssignmentColumns(), "repeats 2 units"),
        (good, THIRDS, AssignmentColumns(unit="number"), "has type double"),
        ([*good, ("c", "h", "y", "control", 1.0)], clusters, in_strata, "1 clusters lie in two strata"),
        (
            [*good, ("c", "h", "x", "30%", 1.0)],
            replace(THIRDS, exploration=0.5),
            AssignmentColumns(decision="decision"),
            "is no arm in 1 rows",
        ),
    ]
    for rows, experiment, columns, sentence in cases:
        with pytest.raises(DataError, match=sentence):
            with_arms(spark.createDataFrame(rows, schema), experiment, columns)
    with pytest.raises(DataError, match="'explored' is there already"):
        with_arms(with_arms(spark.createDataFrame(good, schema), THIRDS), THIRDS)
