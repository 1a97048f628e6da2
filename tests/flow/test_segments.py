"""Buckets of segment features: labels say the rule, nothing is left out."""

import re

import numpy as np
import pandas as pd
import pytest

from uplift_spark.flow.segments import MISSING, MOST_VALUES, segment_buckets
from uplift_spark.vocabulary import DataError

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
    return frame.select(*segments, *[b.alias(f"bucket_{s}") for b, s in zip(buckets, segments, strict=True)]).toPandas()


def test_few_values_are_taken_as_they_are(frame):
    found = _labels(frame, "city", "kids", "rate")
    assert set(found.bucket_city) == {"x", "y", MISSING}
    assert set(found.bucket_kids) == {"0", "1", "2", "3", MISSING}
    assert set(found.bucket_rate) == {"0.25", "1.5"}
    assert (found.bucket_kids[found.kids == 2] == "2").all()
    assert (found.bucket_kids == MISSING).sum() == FRAME.kids.isna().sum()


def test_many_numbers_are_cut_at_their_quartiles(frame):
    found = _labels(frame, "age")
    counts = found.bucket_age.value_counts()
    assert len(counts) == 4 and (abs(counts - N / 4) < 5).all()
    for label, rows in found.groupby("bucket_age"):
        numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", label[2:])]
        low, high = {"1": (-np.inf, numbers[0]), "4": (numbers[0], np.inf)}.get(label[0], tuple(numbers))
        assert ((rows.age > low) & (rows.age <= high)).all(), label


def test_quartiles_that_coincide_are_one(frame):
    found = _labels(frame, "spend")
    zero, some, most = sorted(set(found.bucket_spend))
    assert zero == "1: <= 0" and some.startswith("2: 0 to ") and most.startswith("3: > ")
    assert ((found.bucket_spend == zero) == (found.spend == 0)).all()
    assert abs((found.bucket_spend == most).sum() - N / 4) < 5


def test_buckets_do_not_depend_on_partitions(frame):
    one = _labels(frame.repartition(1), "age", "spend").sort_values("age", ignore_index=True)
    assert one.equals(_labels(frame.repartition(6), "age", "spend").sort_values("age", ignore_index=True))


def test_too_many_texts_are_refused(frame):
    with pytest.raises(DataError, match=rf"segment 'many' of silver.t has about \d+ values: at most {MOST_VALUES}"):
        segment_buckets(frame, ("city", "many"), "silver.t")


def test_no_segments_need_no_pass():
    assert segment_buckets(None, (), "silver.t") == ()
