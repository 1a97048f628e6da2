"""Buckets of segment features: labels say the rule, nothing is left out."""

import re

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import DataError
from uplift_spark.evaluation.metrics import MISSING_BUCKET, MOST_VALUES, row_buckets
from uplift_spark.evaluation.spark import segment_buckets
from uplift_spark.roles import crossed

RNG = np.random.default_rng(0)
N = 500
FRAME = pd.DataFrame(
    {
        "city": np.where(np.arange(N) % 10 == 0, None, RNG.choice(["x", "y"], N)),
        "kids": np.where(np.arange(N) % 7 == 0, np.nan, RNG.integers(0, 4, N).astype(float)),
        "rate": RNG.choice([0.25, 1.5], N),
        "age": RNG.normal(40, 10, N),
        "spend": np.where(np.arange(N) % 3 > 0, 0.0, RNG.lognormal(3, 1, N)),
        "many": [f"v{i}" for i in range(N)],
    }
)


@pytest.fixture(scope="module")
def frame(spark):
    return spark.createDataFrame(FRAME)


def _labels(frame, *segments):
    buckets = segment_buckets(frame, segments, "silver.t")
    columns = dict.fromkeys(part for segment in segments for part in crossed(segment))
    return frame.select(*columns, *[b.alias(f"bucket_{s}") for b, s in zip(buckets, segments, strict=True)]).toPandas()


def test_few_values_are_taken_as_they_are(frame):
    buckets = _labels(frame, "city", "kids", "rate")
    assert set(buckets.bucket_city) == {"x", "y", MISSING_BUCKET}
    assert set(buckets.bucket_kids) == {"0", "1", "2", "3", MISSING_BUCKET}
    assert set(buckets.bucket_rate) == {"0.25", "1.5"}
    assert (buckets.bucket_kids[buckets.kids == 2] == "2").all()
    assert (buckets.bucket_kids == MISSING_BUCKET).sum() == FRAME.kids.isna().sum()


def test_many_numbers_are_cut_at_their_quartiles(frame):
    buckets = _labels(frame, "age")
    counts = buckets.bucket_age.value_counts()
    assert len(counts) == 4 and (abs(counts - N / 4) < 5).all()
    for label, rows in buckets.groupby("bucket_age"):
        numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", label[2:])]
        low, high = {"1": (-np.inf, numbers[0]), "4": (numbers[0], np.inf)}.get(label[0], tuple(numbers))
        assert ((rows.age > low) & (rows.age <= high)).all(), label


def test_quartiles_that_coincide_are_one(frame):
    buckets = _labels(frame, "spend")
    zero, some, most = sorted(set(buckets.bucket_spend))
    assert zero == "1: <= 0" and some.startswith("2: 0 to ") and most.startswith("3: > ")
    assert ((buckets.bucket_spend == zero) == (buckets.spend == 0)).all()
    assert abs((buckets.bucket_spend == most).sum() - N / 4) < 5


def test_buckets_do_not_depend_on_partitions(frame):
    one = _labels(frame.repartition(1), "age", "spend").sort_values("age", ignore_index=True)
    assert one.equals(_labels(frame.repartition(6), "age", "spend").sort_values("age", ignore_index=True))


def test_too_many_texts_are_refused(frame):
    with pytest.raises(DataError, match=rf"segment 'many' of silver.t has about \d+ values: at most {MOST_VALUES}"):
        segment_buckets(frame, ("city", "many"), "silver.t")


def test_crossings_join_the_buckets_of_their_features(frame):
    buckets = _labels(frame, "city", "kids x city", "age x city x rate")
    expected = (
        FRAME.kids.map("{:.0f}".format).replace("nan", MISSING_BUCKET) + " x " + FRAME.city.fillna(MISSING_BUCKET)
    )
    assert (buckets["bucket_kids x city"] == expected).all()
    assert (buckets.bucket_city == FRAME.city.fillna(MISSING_BUCKET)).all()
    alone = _labels(frame, "age").bucket_age
    assert (
        buckets["bucket_age x city x rate"] == alone + " x " + buckets.bucket_city + " x " + FRAME.rate.map(str)
    ).all()


def test_crossings_with_too_many_buckets_are_refused(frame, spark):
    wide = pd.DataFrame({"a": [f"a{i // 25}" for i in range(500)], "b": [f"b{i % 25}" for i in range(500)]})
    wide = spark.createDataFrame(wide.assign(same=wide.a))
    words = rf"crossing 'a x b' of silver.t has about (4[89]|5[01])\d buckets: at most {MOST_VALUES} make sense"
    with pytest.raises(DataError, match=words):
        segment_buckets(wide, ("a", "a x b"), "silver.t")
    # What counts is the buckets that occur, not those that could.
    assert len(segment_buckets(wide, ("a x same",), "silver.t")) == 1


def test_text_that_resembles_a_crossing_is_not_crossed(spark):
    sizes = spark.createDataFrame(pd.DataFrame({"size": ["2 x 4", "4 x 4", "4"], "x": ["a", "b", "a"]}))
    assert len(segment_buckets(sizes, ("size",), "silver.t")) == 1
    with pytest.raises(DataError, match=r"2 rows of silver.t have ' x ' in 'size', which parts the buckets"):
        segment_buckets(sizes, ("size x x",), "silver.t")


def test_no_segments_need_no_pass():
    assert segment_buckets(None, (), "silver.t") == ()


def test_rows_in_memory_fall_into_the_same_buckets(spark):
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({
        "few": rng.choice([1.0, 2.5, 3.0, np.nan], 500),
        "many": np.where(rng.random(500) < 0.1, np.nan, rng.normal(size=500)),
        "count": rng.poisson(40, 500), "flag": rng.random(500) < 0.5, "text": rng.choice(["a", "b"], 500),
    })  # fmt: skip
    segments = ("few", "many", "count", "flag", "text", "text x many")
    rows = spark.createDataFrame(frame)
    columns = [bucket.alias(f"b{i}") for i, bucket in enumerate(segment_buckets(rows, segments, "t"))]
    expected = rows.select(*columns).toPandas()
    for i, buckets in enumerate(row_buckets(frame, segments, "t")):
        assert list(buckets) == list(expected[f"b{i}"]), segments[i]
