"""The forest on Spark: the same bytes as in one process, whatever the partitions and retries; scores likewise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F

from tests.forest.frames import arm_roles, ordered_frame, ordered_roles
from tests.forest.test_overlap import MAIL, always_mailed
from uplift_spark import CausalForest
from uplift_spark.errors import DataError
from uplift_spark.roles import Roles

pytestmark = pytest.mark.spark
SMALL = {"n_trees": 16, "min_leaf": 10}
PACKAGES = {
    f"{arm}/{member}": (dose, member) for arm, dose in (("none", 0), ("5%", 5), ("10%", 10)) for member in (0, 1)
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    frame = ordered_frame(4000)
    return frame.assign(spent=frame["age"].fillna(0.0) + frame["y"])  # an outcome whose baseline is worth a pass


@pytest.fixture(scope="module")
def on_spark(spark, frame):
    # Cells of one type: Spark refuses a column that mixes text and NaN.
    return spark.createDataFrame(frame.astype({"region": object}).where(frame.notna(), None)).repartition(3)


def fail_once(marker: str, batches):
    """Lose the task after its first batch, the first time it runs."""
    for batch in batches:
        yield batch
        if not Path(marker).exists():
            Path(marker).touch()
            raise RuntimeError("task lost on purpose")


@pytest.mark.parametrize(
    ("growth_buckets", "more"), [pytest.param(1, (), marks=pytest.mark.slow), (2, ("spent", "tau"))]
)
def test_bytes_equal_pandas_for_any_partitioning(frame, on_spark, growth_buckets, more):
    forest = CausalForest(**SMALL, n_buckets=4, growth_buckets=growth_buckets)
    roles = ordered_roles(more_outcomes=more)
    expected = forest.fit(frame, roles).to_bytes()
    for partitions in (1, 2, 7):
        assert forest.fit(on_spark.repartition(partitions), roles).to_bytes() == expected


@pytest.mark.slow
def test_units_without_comparable_ones_are_flagged_on_spark_too(spark):
    frame = always_mailed(4000, 6)
    on_spark = spark.createDataFrame(frame).repartition(3)
    said = []
    model = CausalForest(**SMALL).fit(on_spark, MAIL, said.append)
    assert model.to_bytes() == CausalForest(**SMALL).fit(frame, MAIL).to_bytes()
    assert any("the features tell the level received" in line for line in said)
    effects = model.effect(on_spark).toPandas().sort_values("unit", ignore_index=True)
    pd.testing.assert_frame_equal(effects, model.effect(frame))
    assert effects["low_support"].sum() == frame["z"].sum()


@pytest.mark.parametrize(
    "roles",
    [
        pytest.param(Roles("unit", "spend", "y", ("age", "region"), "0", grid=(1.0, 2.0)), marks=pytest.mark.slow),
        pytest.param(Roles("unit", "package", "y", ("age", "spend"), "none/0", dose=PACKAGES), marks=pytest.mark.slow),
    ],
)
def test_forests_of_doses_agree_too(frame, on_spark, roles):
    frame = frame.assign(package=frame["arm"] + "/" + frame["member"].astype(int).astype(str))
    on_spark = on_spark.withColumn("package", F.concat_ws("/", "arm", F.col("member").cast("int")))
    forest = CausalForest(**SMALL)
    expected_bytes = forest.fit(frame, roles).to_bytes()
    for partitions in (1, 2, 7):
        model = forest.fit(on_spark.repartition(partitions), roles)
        assert model.to_bytes() == expected_bytes
    result = model.effect(on_spark).toPandas().sort_values(["unit", "treatment"], ignore_index=True)
    expected = model.effect(frame).sort_values(["unit", "treatment"], ignore_index=True)
    pd.testing.assert_frame_equal(result, expected, check_dtype=False)


@pytest.mark.slow
def test_bytes_equal_when_a_task_is_retried(frame, on_spark, tmp_path):
    forest = CausalForest(**SMALL, n_buckets=4)
    marker = tmp_path / "failed"
    shaky = on_spark.mapInArrow(partial(fail_once, str(marker)), on_spark.schema)
    model = forest.fit(shaky, ordered_roles())
    assert marker.exists() and model.to_bytes() == forest.fit(frame, ordered_roles()).to_bytes()


def count_rows(folder: str, batches):
    """Leave a file of each pass over a partition, with its number of rows."""
    n_rows = 0
    for batch in batches:
        n_rows += batch.num_rows
        yield batch
    (Path(folder) / uuid4().hex).write_text(str(n_rows))


def test_rows_are_read_once_by_each_call(frame, on_spark, tmp_path):
    counted = on_spark.mapInArrow(partial(count_rows, str(tmp_path)), on_spark.schema)
    model = CausalForest(**SMALL, n_buckets=4).fit(counted, ordered_roles())
    assert sum(int(file.read_text()) for file in tmp_path.iterdir()) == len(frame)
    model.estimate(counted)
    assert sum(int(file.read_text()) for file in tmp_path.iterdir()) == 2 * len(frame)


def test_weights_and_clusters_agree_too(spark, frame):
    rng = np.random.default_rng(0)
    extra = frame.assign(house=np.arange(len(frame)) // 2, wt=rng.random(len(frame)) + 0.5).drop(columns="region")
    roles = arm_roles(cluster="house", weight="wt")
    roles = type(roles)(**{**roles.__dict__, "features": ("age", "spend", "member")})
    forest = CausalForest(**SMALL, n_buckets=4)
    assert forest.fit(spark.createDataFrame(extra), roles).to_bytes() == forest.fit(extra, roles).to_bytes()


@pytest.mark.slow
def test_forests_on_scores_agree_too(frame, on_spark):
    levels = {"none": "y", "5%": "spent", "10%": "tau"}  # any numbers will do
    named = [dict(zip(levels, map(float, row), strict=True)) for row in frame[list(levels.values())].to_numpy()]
    pairs = F.map_from_arrays(F.array(*map(F.lit, levels)), F.array(*levels.values()))
    forest, roles = CausalForest(**SMALL, n_buckets=4), ordered_roles(scores="dr")
    alone, far = forest.fit(frame.assign(dr=named), roles), on_spark.withColumn("dr", pairs)
    model = forest.fit(far, roles)
    assert model.to_bytes() == alone.to_bytes() and model.effect(far).count() == 2 * len(frame)
    assert (
        model.estimate(far.where("age > 30")).to_bytes()
        == alone.estimate(frame.assign(dr=named)[frame["age"] > 30]).to_bytes()
    )
    with pytest.raises(DataError, match="'dr' is missing"):
        forest.fit(on_spark, roles)
    with pytest.raises(DataError, match=f"null or NaN in {(~(frame['age'] <= 30)).sum()} of"):
        forest.fit(far.withColumn("dr", F.when(F.col("age") <= 30, F.col("dr"))), roles)


def test_estimating_without_units_gives_the_bytes_of_pandas(frame, on_spark):
    roles = ordered_roles(more_outcomes=("spent",))
    model = CausalForest(**SMALL, n_buckets=4).fit(frame, roles)
    rest = frame["unit"] > "u000041"
    assert (~rest).sum() == 42
    less = model.estimate(on_spark.where("unit > 'u000041'"))
    assert less.to_bytes() == model.estimate(frame[rest]).to_bytes() != model.to_bytes()
    with pytest.raises(DataError, match="has no row of 5%"):
        model.estimate(on_spark.where("arm <> '5%'"))


@pytest.mark.slow
def test_explanations_on_spark_equal_those_on_pandas_and_add_up(frame, on_spark):
    model = CausalForest(**SMALL, n_buckets=4).fit(frame, ordered_roles())
    keys = ["unit", "treatment"]
    result = model.explain(on_spark).toPandas().sort_values(keys, ignore_index=True)
    expected = model.explain(frame).sort_values(keys, ignore_index=True)
    values = np.array(result["values"].tolist())
    assert np.array_equal(values, np.array(expected["values"].tolist()))
    shown = model.effect(frame).sort_values(keys, ignore_index=True).uplift.to_numpy()
    assert result.base.to_numpy() + values.sum(axis=1) == pytest.approx(shown, abs=1e-6)


def test_effects_on_spark_equal_those_on_pandas(frame, on_spark):
    model = CausalForest(**SMALL).fit(frame, ordered_roles(more_outcomes=("spent",)))
    for outcome in (None, "spent"):
        lazy = model.effect(on_spark, outcome)
        assert lazy.columns == list(model.effect(frame.head(1)).columns)
        result = lazy.toPandas().sort_values(["unit", "treatment"], ignore_index=True)
        expected = model.effect(frame, outcome).sort_values(["unit", "treatment"], ignore_index=True)
        pd.testing.assert_frame_equal(result, expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("select * from {f} where false", "no rows"),
        ("select * from {f} union all (select * from {f} order by unit limit 3)", "repeats a unit in 3 rows"),
    ],
)
def test_bad_rows_are_named(spark, on_spark, spoil, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(spark.sql(spoil, f=on_spark), ordered_roles())


@pytest.mark.parametrize(
    ("column", "spoil", "message"),
    [
        ("y", "cast(y as string)", "outcome column 'y' has type"),
        ("age", "array(age)", "'age' has type list"),
        ("y", "if(unit < 'u000002', null, y)", "y: null, NaN or infinite in 2 of 4000"),
    ],
)
def test_bad_columns_are_named(on_spark, column, spoil, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(on_spark.withColumn(column, F.expr(spoil)), ordered_roles())


def test_scoring_refuses_a_retyped_column_before_any_row(frame, on_spark):
    model = CausalForest(**SMALL).fit(frame, ordered_roles())
    with pytest.raises(DataError, match="'spend' has type"):
        model.effect(on_spark.withColumn("spend", on_spark["spend"].cast("string")))
