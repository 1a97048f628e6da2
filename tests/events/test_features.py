"""Features as of assignment, the split, and features that are refused."""

import random
from contextlib import contextmanager

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from tests.events.histories import DEFINITIONS, NAMES, by_force, person
from uplift_spark.config import Feature
from uplift_spark.errors import ConfigError
from uplift_spark.events.features import check_features, features_as_of, hash_split, mature_units
from uplift_spark.serving.features import features_at


def _profile(spark, rows):
    """Rows (unit, observed, known, ingested, age, city, member)."""
    schema = "unit_id string, observed string, known string, ingested string, age int, city string, member boolean"
    times = {f"{name}_at": F.col(name).cast("timestamp") for name in ("observed", "known", "ingested")}
    frame = spark.createDataFrame(rows, schema).withColumns(times).drop("observed", "known", "ingested")
    return frame.withColumns({"run_id": F.lit("r1"), "source": F.lit("crm")})


def _units(spark, *units):
    frame = spark.createDataFrame([(u,) for u in units], "unit_id string")
    return frame.withColumn("assigned_at", F.lit("2024-03-01 12:00:00").cast("timestamp"))


def test_the_latest_observation_known_at_assignment_counts(spark):
    noon = "2024-03-01 12:00:00"
    profile = _profile(
        spark,
        [
            ("a", "2024-02-01", "2024-02-01", "2024-06-01", 30, "Rome", True),
            ("a", noon, noon, "2024-06-01", 31, None, False),
            ("a", "2024-03-01 12:00:01", "2024-03-01 12:00:01", "2024-06-01", 99, "Oslo", True),
            ("b", "2024-02-01", "2024-02-01", "2024-06-02", 41, "Bonn", None),
            ("b", "2024-02-01", "2024-02-01", "2024-06-01", 40, "Lyon", None),
            ("c", "2024-03-02", "2024-03-02", "2024-06-01", 50, "Kyiv", True),
            ("d", "2024-02-01", "2024-02-01", "2024-06-01", 60, "Bern", True),
            ("e", "2024-02-01", "2024-02-01", "2024-06-01", 20, "Graz", True),
            # True of a time before the assignment, but filled in afterwards.
            ("e", "2024-02-20", "2024-03-02", "2024-03-02", 77, "Linz", True),
        ],
    )
    names = ("age", "city", "member")
    features = features_as_of(_units(spark, *"abce"), {"profile": profile}, [Feature(n) for n in names], names)
    kinds = {"unit_id": "string", "assigned_at": "timestamp", "age": "double", "city": "string", "member": "double"}
    assert dict(features.dtypes) == kinds
    assert {row["unit_id"]: tuple(row)[2:] for row in features.collect()} == {
        "a": (31.0, None, 0.0),
        "b": (41.0, "Bonn", None),
        "c": (None, None, None),
        "e": (20.0, "Graz", 1.0),
    }


@pytest.mark.parametrize(
    ("zone", "n"),
    [("UTC", 1_000), ("America/New_York", 1_000), pytest.param("America/New_York", 10_000, marks=pytest.mark.slow)],
)
def test_random_histories_equal_brute_force_and_serving_to_the_bit(spark, zone, n):
    """Backfills, ties, redelivered events, window edges, and a change of clocks inside the windows."""
    rng = random.Random(zone)
    people = [person(rng) for _ in range(n)]
    with _time_zone(spark, zone):
        rows = features_as_of(*_frames(spark, people), DEFINITIONS, NAMES).toArrow().to_pylist()
    assert len(rows) == len(people)
    for row in rows:
        one = people[int(row.pop("unit_id"))]
        assert row.pop("assigned_at") == one["at"]
        online = features_at(DEFINITIONS, {"event": one["event"], "profile": one["profile"]}, one["at"])
        both = {k: (repr(v), repr(online[k])) for k, v in by_force(one).items()}
        assert {k: (repr(v), repr(v)) for k, v in row.items()} == both, one


@contextmanager
def _time_zone(spark, zone):
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", zone)
    yield
    spark.conf.set("spark.sql.session.timeZone", before)


def _frames(spark, people):
    def table(source, schema):
        rows = [{"unit_id": str(i), **row} for i, person in enumerate(people) for row in person[source]]
        times = [(n, pa.timestamp("us", "UTC")) for n in ("known_at", "ingested_at")]
        return spark.createDataFrame(pa.Table.from_pylist(rows, pa.schema([("unit_id", pa.string()), *schema, *times])))

    instant = pa.timestamp("us", "UTC")
    units = pa.table(
        {"unit_id": [str(i) for i in range(len(people))], "assigned_at": pa.array([p["at"] for p in people], instant)}
    )
    event = [
        ("event_id", pa.string()),
        ("event", pa.string()),
        ("value", pa.float64()),
        ("item", pa.string()),
        ("occurred_at", instant),
    ]
    profile = [("age", pa.int32()), ("city", pa.string()), ("observed_at", instant)]
    return spark.createDataFrame(units), {"event": table("event", event), "profile": table("profile", profile)}


def test_mature_units_have_known_outcomes(spark):
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
    units = mature_units(labels, ("visit", "spend"))
    assert units.columns == ["unit_id", "treatment", "propensity", "assigned_at", "visit", "spend"]
    rows = {row["unit_id"]: (row["visit"], row["spend"]) for row in units.collect()}
    assert rows == {"a": (1.0, 2.5), "d": (0.0, 0.0)}


def test_split_is_a_hash_of_seed_and_unit(spark):
    units = spark.range(20_000).select(F.concat(F.lit("u"), F.col("id")).alias("unit_id"))
    share = F.avg((F.col("split") == "holdout").cast("double"))
    by_sql = "CASE WHEN pmod(xxhash64(concat('7|split|', unit_id)), 1000000) < 300000 THEN 'holdout' ELSE 'train' END"
    splits = (
        units.repartition(3)
        .withColumns({"split": hash_split(7, 0.3), "other": hash_split(8, 0.3), "sql": F.expr(by_sql)})
        .agg(
            share,
            F.avg((F.col("split") == F.col("sql")).cast("double")),
            F.corr((F.col("split") == "train").cast("double"), (F.col("other") == "train").cast("double")),
        )
        .collect()[0]
    )
    assert splits[0] == pytest.approx(0.3, abs=0.013) and splits[1] == 1.0 and abs(splits[2]) < 0.03


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("agee"), r"table bronze.profile_shop has no column 'agee'.*did you mean 'age'"),
        (Feature("height"), "it has age, city, member"),
        (Feature("visit"), r"contain \['visit'\].*outcome"),
        (Feature("earlier", column="visit"), r"contain \['visit'\].*outcome"),
        (Feature("arm"), r"contain \['arm'\]"),
        (Feature("propensity"), "key column"),
        (Feature("delivered"), "delivery"),
        (Feature("ingested_at"), "key column"),
    ],
)
def test_leaking_and_unknown_features_are_refused(spark, feature, message):
    with pytest.raises(ConfigError, match=message):
        check_features((Feature("age"), feature), _profile(spark, []), "bronze.profile_shop", ("arm", "visit"))


def test_features_of_other_types_are_refused(spark):
    profile = _profile(spark, []).withColumn("tags", F.array(F.lit("x")))
    with pytest.raises(ConfigError, match="column 'tags' is array<string>"):
        check_features((Feature("tags"),), profile, "bronze.profile_shop", ())
