"""The last gate: whose latest word on a purpose lets them be contacted."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from uplift_spark.governance.privacy import GATE, MAY, NO_GRANT, WITHDREW, gated

pytestmark = pytest.mark.spark
STATEMENTS = [
    # unit, granted, changed, known, what the gate says
    ("grants", True, "2025-01-01", "2025-01-01", MAY),
    ("withdraws", True, "2025-01-01", "2025-01-01", WITHDREW),
    ("withdraws", False, "2025-01-02", "2025-01-02", WITHDREW),
    ("grants again", False, "2025-01-02", "2025-01-02", MAY),
    ("grants again", True, "2025-01-03", "2025-01-03", MAY),
    ("withdrew before, told later", True, "2025-01-03", "2025-01-03", MAY),
    ("withdrew before, told later", False, "2025-01-02", "2025-01-05", MAY),
    ("back-dated past the grant", True, "2025-01-01", "2025-01-01", WITHDREW),
    ("back-dated past the grant", False, "2025-01-02", "2025-06-05", WITHDREW),
    ("tie", False, "2025-01-01", "2025-01-01", WITHDREW),
    ("tie", True, "2025-01-01", "2025-01-01", WITHDREW),
    ("tie, the grant known later", False, "2025-01-01", "2025-01-01", MAY),
    ("tie, the grant known later", True, "2025-01-01", "2025-01-02", MAY),
    ("grants from tomorrow on", True, "2999-01-01", "2999-01-01", None),
    ("withdraws from tomorrow on", True, "2025-01-01", "2025-01-01", WITHDREW),
    ("withdraws from tomorrow on", False, "2999-01-01", "2999-01-01", WITHDREW),
]


@pytest.mark.parametrize("required", [True, False])
def test_the_latest_word_counts_and_withdrawals_win_ties(spark: SparkSession, required: bool) -> None:
    silence = NO_GRANT if required else MAY
    wanted = {unit: gate or silence for unit, _, _, _, gate in STATEMENTS} | {
        "silent": silence,
        "of another purpose": silence,
    }
    schema = "unit_id string, granted boolean, changed_at string, known_at string"
    consent = spark.createDataFrame([row[:4] for row in STATEMENTS], schema).withColumn("purpose", F.lit("marketing"))
    times = {name: F.to_timestamp(name) for name in ("changed_at", "known_at")}
    other = spark.sql(
        "SELECT 'of another purpose' unit_id, false granted, '2025-01-01' changed_at, '2025-01-01' known_at"
    )
    consent = consent.unionByName(other.withColumn("purpose", F.lit("profiling"))).withColumns(times)
    rows = spark.createDataFrame([(unit, arm) for unit in wanted for arm in ("a", "b")], "unit_id string, arm string")
    gates = [(row["unit_id"], row[GATE]) for row in gated(rows, consent, "marketing", required).collect()]
    assert sorted(gates) == sorted([*wanted.items()] * 2)


@pytest.mark.parametrize(("required", "gate"), [(True, NO_GRANT), (False, MAY)])
def test_without_any_word_of_anybody(spark: SparkSession, required: bool, gate: str) -> None:
    rows = spark.createDataFrame([("a",)], "unit_id string")
    assert [row[GATE] for row in gated(rows, None, "marketing", required).collect()] == [gate]
