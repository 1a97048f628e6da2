"""Tests of assignment on Spark: the arms of Python, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from tests.experiments.test_assignment import DESIGNS, THIRDS, assert_same, in_python, users
from tests.experiments.test_frames import COLUMNS, DESIGN, PER_VISIT, SPEND, trial
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import AssignmentColumns
from uplift_spark.experiments.frames import ReadoutColumns, trial_sums
from uplift_spark.experiments.health import ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import ReadoutMetric, TrialSums, read_sums


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


def test_names_of_columns_have_no_case(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    rows = users(50).rename(columns={"unit_id": "Unit_ID"})
    result = with_arms(spark.createDataFrame(rows), THIRDS).toPandas()
    arms = in_python(users(50), THIRDS, AssignmentColumns()).set_index("unit_id")["treatment"]
    assert result["treatment"].tolist() == arms[result["Unit_ID"]].tolist()


# ---------------------------------------------------------------- sums


HOUSEHOLDS = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")


def torn_trial() -> pd.DataFrame:
    """Users of whom one is in two arms, and one in an arm without a share; ids are texts."""
    d = trial(1200).astype({"unit_id": str, "took": int})
    extra = d.iloc[[3, 7]].assign(treatment=["on" if d["treatment"][3] == "off" else "off", "test"])
    extra.iloc[1, 0] = "stranger"
    return pd.concat([d, extra], ignore_index=True)


def household_trial() -> pd.DataFrame:
    d = trial(1200).astype({"unit_id": str, "took": int})
    d["treatment"] = np.where(d["household"] % 2 == 0, "off", "on")
    d["region"] = np.where(d["household"] % 3 == 0, "north", "south")
    return d


def assert_equal_sums(one: tuple[TrialSums, TrialFacts], other: tuple[TrialSums, TrialFacts]) -> None:
    """Every figure to 1e-9 of its size."""
    (sums, facts), (wanted, wanted_facts) = one, other
    names = ("arms", "strata", "columns", "taken", "counted")
    assert [getattr(sums, name) for name in names] == [getattr(wanted, name) for name in names]
    for mine, theirs in ((sums.moments, wanted.moments), (sums.by_day, wanted.by_day)):
        for part in ("n", "mean", "products"):
            scale = np.abs(getattr(theirs, part)).max()
            np.testing.assert_allclose(getattr(mine, part), getattr(theirs, part), rtol=1e-9, atol=1e-9 * scale)
    assert (facts.units, facts.twice, facts.days) == (wanted_facts.units, wanted_facts.twice, wanted_facts.days)
    whole = ("delivered", "treated", "names", "by_day", "analysed")
    assert [getattr(facts, name) for name in whole] == [getattr(wanted_facts, name) for name in whole]
    for arm, logged in (wanted_facts.propensities or {}).items():
        ours = (facts.propensities or {})[arm]
        assert tuple(vars(ours).values()) == pytest.approx(tuple(vars(logged).values()), rel=1e-9)


@pytest.mark.parametrize(("make", "design"), [(torn_trial, DESIGN), (household_trial, HOUSEHOLDS)])
def test_spark_and_pandas_add_up_to_the_same(spark, make, design: ReadoutDesign) -> None:
    from uplift_spark.experiments.spark import unit_sums

    rows, metrics = make(), [SPEND, PER_VISIT]
    ours = unit_sums(spark.createDataFrame(rows).repartition(5), metrics, design, COLUMNS)
    wanted = trial_sums(rows, metrics, design, COLUMNS)
    assert_equal_sums(ours, wanted)
    tables = [read_sums(sums, metrics, design, facts, override="to compare").table() for sums, facts in (ours, wanted)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


def test_a_worker_s_parts_merge_whatever_the_batches() -> None:
    """Without Spark: units in one batch, or in many, give the same moments."""
    from uplift_spark.experiments.spark import TrialLayout, _Merged, add_units

    rng, layout = np.random.default_rng(3), TrialLayout(("off", "on"), 2, False, None, True, False)
    n = 500
    arms = pa.array(rng.choice(["off", "on"], n))
    batch = pa.RecordBatch.from_pydict({
        **dict.fromkeys(("low_arm", "high_arm"), arms), **dict.fromkeys(("low_stratum", "high_stratum"), ["all"] * n),
        "low_day": rng.integers(0, 5, n), "v0": rng.normal(1e6, 1, n), "v1": rng.normal(size=n), "rows": [1] * n,
        "repeated": [0] * n,
    })  # fmt: skip
    whole = _Merged(pa.Table.from_batches(add_units(layout, [batch])), layout)
    slices = [[batch.slice(0, 7)], [batch.slice(7, 200), batch.slice(207, 0)], [batch.slice(207)]]
    parts = _Merged(pa.Table.from_batches([out for one in slices for out in add_units(layout, one)]), layout)
    for family in ("stratum", "day"):
        mine, theirs = (one.cells(family, one.buckets(family)) for one in (parts, whole))
        np.testing.assert_allclose(mine.n, theirs.n)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-12)
        np.testing.assert_allclose(mine.products, theirs.products, rtol=1e-9, atol=1e-6)
    assert parts.units == whole.units == {arm: float(arms.to_pylist().count(arm)) for arm in ("off", "on")}


def test_frames_that_spark_refuses_as_pandas_does(spark) -> None:
    from uplift_spark.experiments.spark import unit_sums

    rows = trial(60).astype({"unit_id": str, "took": int})
    whole = spark.createDataFrame(rows)
    one, other = rows.loc[rows["treatment"] == "off", "unit_id"].iloc[:2]
    spoiled = [
        ("spend", np.inf, "column 'spend' is missing or not finite in 1 units"),
        ("before", None, "column 'before' is missing or not finite in 1 units"),
        ("treatment", None, "column 'treatment' is missing in 1 rows"),
        ("region", None, "column 'region' is missing in 1 rows"),
        ("day", None, "column 'day' is missing in 1 rows"),
        ("propensity", 0.0, r"column 'propensity' is outside \(0, 1\] in 1 rows"),
        ("unit_id", other, "column 'unit_id' repeats 1 units in one arm"),
    ]
    for column, value, sentence in spoiled:
        frame = whole.withColumn(column, F.when(F.col("unit_id") == one, F.lit(value)).otherwise(F.col(column)))
        with pytest.raises(DataError, match=sentence):
            unit_sums(frame, [SPEND], DESIGN, COLUMNS)
    with pytest.raises(DataError, match="arm 'on' has no unit: the frame has arms off"):
        unit_sums(whole.where("treatment = 'off'"), [SPEND], DESIGN)
    with pytest.raises(DataError, match="the frame has no row"):
        unit_sums(whole.where("treatment = 'none'"), [SPEND], DESIGN)
    with pytest.raises(DataError, match="column 'region' is no number"):
        unit_sums(whole, [ReadoutMetric("region", "region", role="primary")], DESIGN)
    with pytest.raises(DataError, match="column 'region' is no date"):
        unit_sums(whole, [SPEND], DESIGN, ReadoutColumns(day="region"))
    with pytest.raises(ConfigError, match="shop was randomised, but rows are of unit_id and have no column 'shop'"):
        unit_sums(whole, [SPEND], replace(HOUSEHOLDS, randomised="shop"))
