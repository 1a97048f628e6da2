"""Features as of assignment, the split, and features that are refused."""

import pytest
from pyspark.sql import functions as F

from uplift_spark.flow.features import check_features, features_as_of, hash_split, training_set
from uplift_spark.vocabulary import ConfigError


def _profile(spark, rows):
    schema = "unit_id string, observed string, ingested string, age int, city string, member boolean, source string"
    frame = spark.createDataFrame([(*row, "crm") for row in rows], schema)
    times = {"observed_at": F.col("observed").cast("timestamp"), "ingested_at": F.col("ingested").cast("timestamp")}
    return frame.withColumns({**times, "run_id": F.lit("r1")}).drop("observed", "ingested")


def _units(spark, *units):
    frame = spark.createDataFrame([(u,) for u in units], "unit_id string")
    return frame.withColumn("assigned_at", F.lit("2024-03-01 12:00:00").cast("timestamp"))


def test_the_latest_observation_before_assignment_counts(spark):
    profile = _profile(
        spark,
        [
            ("a", "2024-02-01", "2024-06-01", 30, "Rome", True),
            ("a", "2024-03-01 12:00:00", "2024-06-01", 31, None, False),
            ("a", "2024-03-01 12:00:01", "2024-06-01", 99, "Oslo", True),
            ("b", "2024-02-01", "2024-06-02", 41, "Bonn", None),
            ("b", "2024-02-01", "2024-06-01", 40, "Lyon", None),
            ("c", "2024-03-02", "2024-06-01", 50, "Kyiv", True),
            ("d", "2024-02-01", "2024-06-01", 60, "Bern", True),
        ],
    )
    features = features_as_of(_units(spark, "a", "b", "c"), profile, ("age", "city", "member"))
    assert dict(features.dtypes) == {"unit_id": "string", "age": "double", "city": "string", "member": "double"}
    assert {row["unit_id"]: tuple(row)[1:] for row in features.collect()} == {
        "a": (31.0, None, 0.0),
        "b": (41.0, "Bonn", None),
    }


def test_training_set_keeps_mature_units_with_known_outcomes(spark):
    schema = "unit_id string, treatment string, propensity double, outcomes map<string,double>, mature boolean"
    labels = spark.createDataFrame(
        [
            ("a", "5%", 0.5, {"visit": 1.0, "spend": 2.5}, True),
            ("b", "none", 0.5, {"visit": 0.0, "spend": None}, True),
            ("c", "none", 0.5, {"visit": 0.0, "spend": 0.0}, False),
            ("d", "none", 0.5, {"visit": 0.0, "spend": 0.0}, True),
        ],
        schema,
    ).withColumn("assigned_at", F.lit("2024-03-01").cast("timestamp"))
    features = spark.createDataFrame([("a", 31.0)], "unit_id string, age double")
    training = training_set(labels, features, ("visit", "spend"), F.lit("train"))
    assert training.columns == ["unit_id", "treatment", "propensity", "assigned_at", "visit", "spend", "age", "split"]
    rows = {row["unit_id"]: (row["visit"], row["spend"], row["age"]) for row in training.collect()}
    assert rows == {"a": (1.0, 2.5, 31.0), "d": (0.0, 0.0, None)}


def test_split_is_a_hash_of_seed_and_unit(spark):
    units = spark.range(20_000).select(F.concat(F.lit("u"), F.col("id")).alias("unit_id"))
    share = F.avg((F.col("split") == "holdout").cast("double"))
    by_sql = "CASE WHEN pmod(xxhash64(concat('7|split|', unit_id)), 1000000) < 300000 THEN 'holdout' ELSE 'train' END"
    found = (
        units.repartition(3)
        .withColumns({"split": hash_split(7, 0.3), "other": hash_split(8, 0.3), "sql": F.expr(by_sql)})
        .agg(
            share,
            F.avg((F.col("split") == F.col("sql")).cast("double")),
            F.corr((F.col("split") == "train").cast("double"), (F.col("other") == "train").cast("double")),
        )
        .collect()[0]
    )
    assert found[0] == pytest.approx(0.3, abs=0.013) and found[1] == 1.0 and abs(found[2]) < 0.03


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("agee", r"table bronze.profile_shop has no column 'agee'.*did you mean 'age'"),
        ("height", "choose from age, city, member"),
        ("visit", r"contain \['visit'\].*outcome"),
        ("arm", r"contain \['arm'\]"),
        ("propensity", "key column"),
        ("ingested_at", "key column"),
    ],
)
def test_leaking_and_unknown_features_are_refused(spark, feature, message):
    profile = _profile(spark, [("a", "2024-02-01", "2024-06-01", 30, "Rome", True)])
    with pytest.raises(ConfigError, match=message):
        check_features(("age", feature), profile, "bronze.profile_shop", ("arm", "visit"))


def test_features_of_other_types_are_refused(spark):
    profile = _profile(spark, []).withColumn("tags", F.array(F.lit("x")))
    with pytest.raises(ConfigError, match="column 'tags' is array<string>"):
        check_features(("tags",), profile, "bronze.profile_shop", ())
