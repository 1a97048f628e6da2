"""The split of good rows from rejected ones, and frames made to fit their table."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from uplift_spark.errors import DataError
from uplift_spark.lake.contracts import count_checked
from uplift_spark.lake.schemas import Contract, check, conform, contract_of, with_levels
from uplift_spark.lake.tables import Lake

NOW = datetime(2025, 1, 6, 12, 0, 0, 123456, tzinfo=UTC)
INF = float("inf")
PUBLIC = {
    "gold.uplift_scores": "unit_id treatment uplift uplift_se uplift_lower uplift_upper low_support model_name"
    " model_version feature_version run_id scored_at",
    "gold.lift_table": "run_id campaign model_version outcome treatment cut bucket n n_treated n_control mean_treated"
    " mean_control predicted_uplift uplift uplift_lower uplift_upper incremental_outcomes revenue cost roi"
    " cost_per_incremental roi_lower roi_upper cost_per_incremental_lower cost_per_incremental_upper low_sample"
    " shrunk_uplift different_p ingested_at",
    "gold.uplift_curve": "run_id outcome treatment fraction gain gain_lower gain_upper random_gain",
    "gold.uplift_metrics": "run_id model_version outcome treatment metric value lower upper",
    "gold.policy_decisions": "run_id campaign unit_id treatment reason gain cost value model_version ingested_at",
    "gold.policy_limits": "run_id campaign name most least used price",
    "gold.policy_curve": "run_id campaign budget treated cost gain observed observed_lower observed_upper",
}


def contract(table: str) -> Contract:
    declared = contract_of(table)
    assert declared is not None
    return declared


def frame_of(spark: SparkSession, table: str, rows: list[dict[str, Any]], **extra: str) -> DataFrame:
    """Rows with the columns a source gives: all but run_id and ingested_at, then `extra` ones."""
    schema = StructType([c for c in contract(table).columns if c.name not in ("run_id", "ingested_at")])
    for name, kind in extra.items():
        schema = schema.add(name, kind)
    return spark.createDataFrame([tuple(row.get(name) for name in schema.fieldNames()) for row in rows], schema)


def assignment(unit: str | None, **cells: Any) -> dict[str, Any]:
    usual = {"unit_id": unit, "campaign": "demo", "treatment": "a", "assigned_at": NOW, "propensity": 0.5}
    return {**usual, "source": "file", **cells}


def rules_by_unit(rejected: DataFrame) -> dict[str, str]:
    return {json.loads(row["row"])["unit_id"]: row["rule"] for row in rejected.collect()}


def test_every_row_is_good_or_rejected_with_its_reason(spark: SparkSession) -> None:
    rows = [
        assignment("good"),
        assignment("unlogged", propensity=None),
        assignment("elsewhere"),
        assignment("elsewhere", campaign="other"),
        assignment("twice"),
        assignment("twice", treatment="b"),
        assignment(None),
        assignment(None, treatment="b"),
        assignment(" "),
        assignment("lost", campaign=None),
        assignment("armless", treatment=None),
        assignment("nan", treatment="NaN"),
        assignment("stranger", treatment="c"),
        assignment("timeless", assigned_at=None),
        assignment("zero", propensity=0.0),
        assignment("above", propensity=1.5),
        assignment("undefined", propensity=float("nan")),
        assignment("wrong", treatment=None, propensity=2.0),
    ]
    frame = frame_of(spark, "bronze.assignment", rows)
    good, rejected = check(frame, with_levels(contract("bronze.assignment"), ["a", "b", "it's \\ odd"]))
    assert good.columns == frame.columns
    assert sorted(row["unit_id"] for row in good.collect()) == ["elsewhere", "elsewhere", "good", "unlogged"]
    kept = rejected.collect()
    assert len(kept) == len(rows) - 4
    by_unit = {json.loads(row["row"])["unit_id"]: row for row in kept}
    assert {unit: row["rule"] for unit, row in by_unit.items()} == {
        "twice": "repeated",
        None: "unit_present",
        " ": "unit_present",
        "lost": "campaign_present",
        "armless": "treatment_present",
        "nan": "treatment_present",
        "stranger": "treatment_known",
        "timeless": "assigned_at_present",
        "zero": "propensity_range",
        "above": "propensity_range",
        "undefined": "propensity_range",
        "wrong": "treatment_present",
    }
    assert by_unit["twice"]["reason"] == "campaign and unit_id occur in 2 rows that differ"
    assert by_unit["wrong"]["reason"].startswith("treatment is missing; propensity is outside (0, 1]")
    assert json.loads(by_unit["zero"]["row"])["assigned_at"].startswith("2025-01-06T12:00:00.123456")
    assert by_unit["zero"]["source_table"] == "bronze.assignment"
    assert by_unit["zero"]["campaign"] == "demo"
    assert rejected.columns == contract("bronze.quarantine").columns.fieldNames()


def test_equal_rows_are_one_row_and_contradictions_none(spark: SparkSession) -> None:
    rows = [
        *(assignment("once"), assignment("twice"), assignment("twice", source="again"), assignment("thrice")),
        *(assignment("thrice"), assignment("thrice"), assignment("null", propensity=None)),
        *(assignment("null", propensity=None), assignment("differs"), assignment("differs", propensity=None)),
        *(assignment("broken", treatment=None), assignment("broken", treatment=None)),
    ]
    frame = frame_of(spark, "bronze.assignment", rows)
    good, rejected = check(frame, contract("bronze.assignment"))
    assert sorted(row["unit_id"] for row in good.collect()) == ["null", "once", "thrice", "twice"]
    assert sorted(json.loads(row["row"])["unit_id"] for row in rejected.collect()) == ["broken"] * 2 + ["differs"] * 2
    counts = count_checked(frame, contract("bronze.assignment"))
    assert (counts.good, counts.copies, counts.rejected) == (4, 4, {"repeated": 2, "treatment_present": 2})


def test_a_copy_that_breaks_a_rule_costs_its_twin_nothing(spark: SparkSession) -> None:
    late, early = NOW + timedelta(days=1), NOW - timedelta(days=1)
    known = {"one": [NOW], "late": [NOW, late, early], "both": [early, early], "two": [late, NOW]}
    usual = {"observed_at": NOW, "source": "file", "age": 3.0}
    rows = [{**usual, "unit_id": unit, "known_at": at} for unit, times in known.items() for at in times]
    frame, profile = frame_of(spark, "bronze.profile_demo", rows, age="double"), contract("bronze.profile_demo")
    counts = count_checked(frame, profile)
    assert (counts.good, counts.copies, counts.rejected) == (3, 2, {"known_at_order": 3})
    for good, rejected in (check(frame, profile), check(frame, profile, counts)):
        first = good.select("unit_id", (F.unix_micros("known_at") - F.unix_micros("observed_at")).alias("after"))
        assert sorted(map(tuple, first.collect())) == [("late", 0), ("one", 0), ("two", 0)]
        assert rejected.count() == 3
    alone = frame.where("known_at >= observed_at").dropDuplicates(["unit_id"])
    plain, _ = check(alone, profile, count_checked(alone, profile))
    assert plain.count() == check(alone, profile)[0].count() == 3


def test_outcomes_may_be_unknown_but_not_endless(spark: SparkSession) -> None:
    usual = {"campaign": "demo", "outcome": "visit", "occurred_at": NOW, "known_at": NOW, "source": "file"}
    values = {"known": 1.0, "unknown": None, "nan": float("nan"), "endless": INF, "minus": -INF}
    rows = [{**usual, "unit_id": unit, "value": value} for unit, value in values.items()]
    good, rejected = check(frame_of(spark, "bronze.outcome", rows), contract("bronze.outcome"))
    assert sorted(row["unit_id"] for row in good.collect()) == ["known", "unknown"]
    assert rules_by_unit(rejected) == {"nan": "value_finite", "endless": "value_finite", "minus": "value_finite"}


def test_profiles_may_lack_attributes_but_not_have_endless_ones(spark: SparkSession) -> None:
    usual = {"observed_at": NOW, "known_at": NOW, "source": "file", "city": "x"}
    rows = [{**usual, "unit_id": str(age), "age": age} for age in (None, 3.0, INF)]
    frame = frame_of(spark, "bronze.profile_demo", rows, age="double", city="string")
    good, rejected = check(frame, contract("bronze.profile_demo"))
    assert sorted(row["unit_id"] for row in good.collect()) == ["3.0", "None"]
    (row,) = rejected.collect()
    assert (row["rule"], row["reason"], row["campaign"]) == ("attribute_finite", "age is infinite", None)


RAW: dict[str, dict[str, Any]] = {
    "bronze.delivery": {
        "unit_id": "u", "campaign": "demo", "delivery_id": "d", "status": "delivered", "delivered_at": NOW,
        "event_id": None, "known_at": NOW, "source": "file",
    },
    "bronze.outcome": {
        "unit_id": "u", "campaign": "demo", "outcome": "visit", "value": 1.0, "occurred_at": NOW,
        "event_id": None, "known_at": NOW, "source": "file",
    },
    "bronze.event": {
        "unit_id": "u", "event": "login", "value": None, "occurred_at": NOW,
        "event_id": "e", "known_at": NOW, "source": "file",
    },
    "bronze.consent": {
        "unit_id": "u", "purpose": "marketing", "granted": False, "changed_at": NOW, "known_at": NOW, "source": "file",
    },
    "bronze.profile_demo": {"unit_id": "u", "observed_at": NOW, "known_at": NOW, "source": "file"},
}  # fmt: skip
HAPPENED = {
    "bronze.delivery": "delivered_at",
    "bronze.outcome": "occurred_at",
    "bronze.event": "occurred_at",
    "bronze.consent": "changed_at",
    "bronze.profile_demo": "observed_at",
}
BROKEN = {
    "bronze.delivery": [
        ("campaign", None, "campaign_present"), ("delivery_id", " ", "delivery_id_present"),
        ("status", "lost", "status_known"), ("status", None, "status_known"), ("event_id", "", "event_id_filled"),
    ],
    "bronze.outcome": [("event_id", " ", "event_id_filled")],
    "bronze.event": [
        ("event", None, "event_present"), ("value", INF, "value_finite"), ("value", float("nan"), "value_finite"),
        ("event_id", "", "event_id_filled"),
    ],
    "bronze.consent": [("purpose", "", "purpose_present"), ("granted", None, "granted_present")],
    "bronze.profile_demo": [],
}  # fmt: skip


@pytest.mark.parametrize("table", RAW)
def test_raw_events_have_their_keys_and_are_not_known_before_they_happen(spark: SparkSession, table: str) -> None:
    happened, tick = HAPPENED[table], timedelta(microseconds=1)
    cases = [
        (happened, None, f"{happened}_present"),
        ("known_at", None, "known_at_present"),
        ("known_at", NOW - tick, "known_at_order"),
        *BROKEN[table],
    ]
    rows = [{**RAW[table], column: value, "unit_id": f"u{i}"} for i, (column, value, _) in enumerate(cases)]
    fine = [{**RAW[table], "unit_id": "at once"}, {**RAW[table], "unit_id": "later", "known_at": NOW + tick}]
    good, rejected = check(frame_of(spark, table, [*rows, *fine, {**RAW[table], "unit_id": ""}]), contract(table))
    assert {row["unit_id"] for row in good.collect()} == {"at once", "later"}
    assert rules_by_unit(rejected) == {"": "unit_present", **{f"u{i}": rule for i, (_, _, rule) in enumerate(cases)}}
    assert not any(";" in row["reason"] for row in rejected.collect())


def test_two_statements_about_consent_at_one_moment_are_both_kept(spark: SparkSession) -> None:
    rows = [{**RAW["bronze.consent"], "granted": granted} for granted in (True, False)]
    good, rejected = check(frame_of(spark, "bronze.consent", rows), contract("bronze.consent"))
    assert (good.count(), rejected.count()) == (2, 0)


def test_raw_tables_are_append_only_and_others_are_not() -> None:
    assert all(contract(table).append_only for table in (*RAW, "bronze.assignment"))
    others = ("bronze.quarantine", "bronze.truth", "silver.label", "silver.training_demo", *PUBLIC)
    assert not any(contract(table).append_only for table in others)


def test_a_source_of_another_shape_is_refused(spark: SparkSession) -> None:
    frame = frame_of(spark, "bronze.assignment", [assignment("u")])
    with pytest.raises(DataError, match=r"bronze.assignment lack columns treatment, propensity: add them"):
        check(frame.drop("propensity", "treatment"), contract("bronze.assignment"))
    with pytest.raises(DataError, match=r"column propensity of bronze.assignment is string, not double: cast it first"):
        check(frame.withColumn("propensity", F.lit("often")), contract("bronze.assignment"))


def test_frames_are_widened_ordered_and_commented(spark: SparkSession) -> None:
    metrics = spark.sql(
        "SELECT 1 AS upper, 0.5D AS lower, CAST(2 AS FLOAT) AS value, 'qini' AS metric, 'a' AS treatment,"
        " 'visit' AS outcome, 3 AS model_version, 'r' AS run_id"
    )
    fitted = conform(metrics, contract("gold.uplift_metrics"))
    assert " ".join(fitted.columns) == PUBLIC["gold.uplift_metrics"]
    assert fitted.first() == ("r", "3", "visit", "a", "qini", 2.0, 0.5, 1.0)
    assert fitted.schema["upper"].metadata == {"comment": "95 % interval"}


def test_frames_that_do_not_fit_are_refused(spark: SparkSession) -> None:
    fits = spark.sql("SELECT 'r' AS run_id, 'v' AS outcome, 't' AS treatment, 0D AS fraction, 0D AS gain,"
                     " 0D AS gain_lower, 0D AS gain_upper, 0D AS random_gain")  # fmt: skip
    curve = contract("gold.uplift_curve")
    with pytest.raises(DataError, match=r"gold.uplift_curve lack column gain: add it before writing"):
        conform(fits.drop("gain"), curve)
    with pytest.raises(DataError, match=r"gold.uplift_curve have unknown column more: drop it"):
        conform(fits.withColumn("more", F.lit(1)), curve)
    with pytest.raises(DataError, match=r"column gain of gold.uplift_curve is string, not double"):
        conform(fits.withColumn("gain", F.lit("much")), curve)


def test_open_tables_take_further_columns_of_numbers_and_text(spark: SparkSession) -> None:
    rows = frame_of(spark, "bronze.profile_demo", [{"unit_id": "u"}], age="integer", city="string", dead="boolean")
    fitted = conform(rows.withColumn("run_id", F.lit("r")), contract("bronze.profile_demo"))
    types = dict(fitted.dtypes)
    assert (types["age"], types["city"], types["dead"], types["ingested_at"]) == (
        "double",
        "string",
        "double",
        "timestamp",
    )
    # Doubly robust scores, which erasures keep with a model's training rows.
    scored = rows.selectExpr("unit_id", "'t' AS treatment", "1D AS propensity", "timestamp'2025-01-01' AS assigned_at")
    scored = scored.selectExpr(
        "*", "'train' AS split", "map('mail', 1D) AS scores", "array(1D) AS means", "'r' AS run_id"
    )
    kept = dict(conform(scored, contract("silver.trained_spring_2")).dtypes)
    assert (kept["scores"], kept["means"]) == ("map<string,double>", "array<double>")
    with pytest.raises(DataError, match=r"column born of bronze.profile_demo is date, not double"):
        check(rows.withColumn("born", F.lit("2000-01-01").cast("date")), contract("bronze.profile_demo"))


@pytest.mark.parametrize("table", PUBLIC)
def test_public_tables_have_their_promised_columns(table: str) -> None:
    assert " ".join(contract(table).columns.fieldNames()) == PUBLIC[table]


def test_unknown_tables_have_no_contract() -> None:
    assert contract_of("gold.something") is None
    assert contract_of("bronze.profile_") is None
    assert contract("silver.training_spring").table == "silver.training_spring"


def test_the_table_itself_refuses_broken_rows(lake: Lake) -> None:
    frame = frame_of(lake.spark, "bronze.assignment", [assignment("u")])
    lake.write("bronze.assignment", frame, "r1")
    with pytest.raises(DataError, match=r"breaks its constraint propensity_range .* 1.5"):
        lake.write("bronze.assignment", frame.withColumn("propensity", F.lit(1.5)), "r2")
    assert lake.version("bronze.assignment") == 0
    late = frame_of(lake.spark, "bronze.outcome", [{**RAW["bronze.outcome"], "known_at": NOW - timedelta(days=1)}])
    with pytest.raises(DataError, match=r"breaks its constraint known_at_order"):
        lake.write("bronze.outcome", late, "r1")
    comments = {field.name: field.metadata.get("comment") for field in lake.read("bronze.assignment").schema}
    assert comments["treatment"] == "level assigned"
