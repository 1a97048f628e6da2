"""The last gate: whose latest word on a purpose lets them be contacted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, RolesConf
from uplift_spark.events.load import Load
from uplift_spark.governance.privacy import GATE, MAY, NO_GRANT, OBJECTED, WITHDREW, Objections, gated
from uplift_spark.jobs import features, load, score, train
from uplift_spark.jobs import ingest as ingest_job
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.source import TableSource

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
    consent = consent.unionByName(other.withColumn("purpose", F.lit("calls"))).withColumns(times)
    rows = spark.createDataFrame([(unit, arm) for unit in wanted for arm in ("a", "b")], "unit_id string, arm string")
    gates = [(row["unit_id"], row[GATE]) for row in gated(rows, consent, "marketing", required).collect()]
    assert sorted(gates) == sorted([*wanted.items()] * 2)


@pytest.mark.parametrize(("required", "gate"), [(True, NO_GRANT), (False, MAY)])
def test_without_any_word_of_anybody(spark: SparkSession, required: bool, gate: str) -> None:
    rows = spark.createDataFrame([("a",)], "unit_id string")
    assert [row[GATE] for row in gated(rows, None, "marketing", required).collect()] == [gate]


PROFILED = [
    # unit, purpose, granted, changed, what the gate says
    ("objects", "marketing", True, "2025-01-01", OBJECTED),
    ("objects", " Profiling", False, "2025-01-02", OBJECTED),
    ("objects and never said more", "profiling", False, "2025-01-02", OBJECTED),
    ("agrees again", "profiling", False, "2025-01-02", MAY),
    ("agrees again", "profiling", True, "2025-01-03", MAY),
    ("agrees again", "marketing", True, "2025-01-01", MAY),
    ("agrees and withdraws", "profiling", True, "2025-01-01", WITHDREW),
    ("agrees and withdraws", "marketing", False, "2025-01-01", WITHDREW),
    ("objects to calls", "calls", False, "2025-01-01", NO_GRANT),
    ("objects from tomorrow on", "profiling", False, "2999-01-01", OBJECTED),
]


def test_who_objects_to_profiling_is_held_back_whatever_else_they_said(lake: Lake) -> None:
    assert Objections.of(lake) is None
    says(lake, "c0", [row for row in PROFILED if row[1] == "calls"])
    assert Objections.of(lake) is None
    says(lake, "c1", [row for row in PROFILED if row[1] != "calls"])
    wanted = {unit: gate for unit, *_, gate in PROFILED}
    rows = lake.spark.createDataFrame([(unit,) for unit in wanted], "unit_id string")
    gates = gated(rows, lake.read("bronze.consent"), "marketing", True).collect()
    assert {row["unit_id"]: row[GATE] for row in gates} == wanted
    objections = Objections.of(lake)
    assert objections is not None and objections.run_ids == ("c1",)
    left = {row["unit_id"] for row in objections.without(rows).collect()}
    assert left == {unit for unit, gate in wanted.items() if gate != OBJECTED}


def says(lake: Lake, run: str, statements: list[tuple[str, str, bool, str, str]]) -> None:
    rows = [row[:4] for row in statements]
    frame = lake.spark.createDataFrame(rows, "unit_id string, purpose string, granted boolean, changed string")
    at = "to_timestamp(changed)"
    columns = ("unit_id", "purpose", "granted", f"{at} AS changed_at", f"{at} AS known_at", "'file' AS source")
    lake.write("bronze.consent", frame.selectExpr(*columns), run)


@pytest.mark.slow
def test_who_objects_gets_no_features_and_no_scores(lake: Lake, tmp_path: Path) -> None:
    draw, n = np.random.default_rng(2), 300
    frame = pd.DataFrame({"unit": [f"u{i}" for i in range(n)], "arm": draw.choice(["none", "mail"], n)})
    frame = frame.assign(bought=draw.integers(0, 2, n), age=draw.integers(18, 80, n))
    frame.to_csv(tmp_path / "trial.csv", index=False)
    source = TableSource(
        kind="table", path=str(tmp_path / "trial.csv"), unit="unit", treatment="arm", outcomes=("bought",),
        attributes=("age",),
    )  # fmt: skip
    config = Config(
        "trial", source, RolesConf("bought", "none", ("age",)), forest=ForestConf(n_trees=8), lakehouse=lake.lakehouse
    )
    campaign, table = Campaign(config, lake), "silver.training_trial"
    for job in (ingest_job, features, train, score):
        job.run(campaign)
    assert lake.read(table).count() == n and lake.read("gold.uplift_scores").count() == n
    unchanged = features.run(campaign)
    assert unchanged.tables[table]["skipped"]

    def objects(unit: str) -> None:
        (tmp_path / f"{unit}.csv").write_text(
            f"unit_id,purpose,granted,changed_at\n{unit},profiling,false,2025-01-01\n"
        )
        load.run(campaign, load=Load("bronze.consent", str(tmp_path / f"{unit}.csv"), "csv"))

    objects("u1")
    lines: list[str] = []
    features.run(campaign, lines.append)
    assert "1 assigned units object to profiling: they get no features" in lines
    assert "u1" not in {row["unit_id"] for row in lake.read(table).collect()} and lake.read(table).count() == n - 1
    # An objection after the features were computed stops the next scoring by itself.
    objects("u2")
    run_id = score.run(campaign).run_id
    scored = {row["unit_id"] for row in lake.read("gold.uplift_scores").where(f"run_id = '{run_id}'").collect()}
    assert len(scored) == n - 2 and not scored & {"u1", "u2"}
    assert score.run(campaign).run_id == run_id
