"""Named tables and exactly-once writes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F

from tests.conftest import ROOT
from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem, OvertakenError
from uplift_spark.lake import storage, tables
from uplift_spark.lake.local_tables import LocalTables
from uplift_spark.lake.storage import Folder, Save, described_properties, storage_of
from uplift_spark.lake.tables import Claim, Lake, Written

HOSTILE = [
    "gold.x`",
    "gold.`x",
    "gold.x; DROP TABLE gold.sentinel",
    "gold.x--",
    "gold.x\n",
    "gold.x/../canary",
    "gold.x y",
    "gold",
    "gold.",
    "a.gold.x",
    "",
]


def rows(spark: SparkSession, n: int, start: int = 0) -> DataFrame:
    """unit_id, value (null in every third row), outcomes (a map)."""
    number = F.col("id").cast("double")
    return spark.range(start, start + n).select(
        F.concat(F.lit("u"), "id").alias("unit_id"),
        F.when(F.col("id") % 3 > 0, number).alias("value"),
        F.create_map(F.lit("visit"), number, F.lit("spend"), -number).alias("outcomes"),
    )


def test_hostile_names_are_refused_and_touch_nothing(lake: Lake) -> None:
    lake.write("gold.sentinel", rows(lake.spark, 2), "r1")
    calls: list[Callable[[str], object]] = [
        lake.name,
        lake.exists,
        lake.read,
        lake.version,
        lambda name: lake.write(name, rows(lake.spark, 1), "r2"),
    ]
    for name in HOSTILE:
        for call in calls:
            with pytest.raises(ConfigError, match=r"name"):
                call(name)
    with pytest.raises(ConfigError, match=r"column of table gold.sentinel"):
        lake.write("gold.sentinel", rows(lake.spark, 1).withColumn("x` y", F.lit(1)), "r2")
    with pytest.raises(ConfigError, match=r"lakehouse.catalog"):
        Lake(lake.spark, Lakehouse(catalog="main`; DROP"))
    assert lake.tables() == ["gold.sentinel"]
    assert (lake.version("gold.sentinel"), lake.read("gold.sentinel").count()) == (0, 2)


def test_a_rerun_adds_nothing_and_other_data_is_a_conflict(lake: Lake) -> None:
    stamped = rows(lake.spark, 6).withColumn("ingested_at", F.current_timestamp())
    assert lake.write("bronze.demo", stamped, "r1") == Written("bronze.demo", 0, 6, skipped=False)
    assert (
        lake.write("bronze.demo", rows(lake.spark, 3, 6).withColumn("ingested_at", F.current_timestamp()), "r2").rows
        == 3
    )
    shuffled = stamped.orderBy(F.desc("unit_id")).select("outcomes", "ingested_at", "value", "unit_id")
    assert lake.write("bronze.demo", shuffled, "r1") == Written("bronze.demo", 0, 0, skipped=True)
    other = stamped.withColumn("value", F.coalesce("value", F.lit(0.0)))
    for changed in (other, stamped.limit(5), stamped.union(stamped.limit(1))):
        with pytest.raises(ConflictError, match=r"run r1 wrote table bronze.demo before .*choose a new --run-id"):
            lake.write("bronze.demo", changed, "r1")
    assert (lake.version("bronze.demo"), lake.read("bronze.demo").count()) == (1, 9)


@pytest.mark.slow
def test_overwriting_keeps_the_version_of_each_run(lake: Lake) -> None:
    first, second = rows(lake.spark, 4), rows(lake.spark, 2).withColumn("more", F.lit("x"))
    lake.write("silver.demo", first, "r1", mode="overwrite", partition_by=["unit_id"])
    assert lake.write("silver.demo", second, "r2", mode="overwrite") == Written("silver.demo", 1, 2, skipped=False)
    assert lake.write("silver.demo", first, "r1", mode="overwrite") == Written("silver.demo", 0, 0, skipped=True)
    with pytest.raises(ConflictError, match=r"4 rows then, 3 now"):
        lake.write("silver.demo", first.limit(3), "r1", mode="overwrite")
    assert "more" in lake.read("silver.demo").columns
    assert lake.read("silver.demo", version=0).count() == 4
    assert lake.sql("SELECT * FROM silver.demo VERSION AS OF 0").count() == 4
    with pytest.raises(DataError, match=r"silver.demo has no version 7 to read; its newest is 1"):
        lake.read("silver.demo", version=7)


def test_missing_tables_name_the_job_that_writes_them(lake: Lake) -> None:
    assert lake.tables() == []
    assert not lake.exists("gold.lift_table")
    for call in (lake.read, lake.version):
        with pytest.raises(DataError, match=r"gold.lift_table does not exist .*: run `uplift lift` first"):
            call("gold.lift_table")
    with pytest.raises(DataError, match=r"silver.training_x .*: run `uplift features` first"):
        lake.read("silver.training_x")
    assert lake.tables() == []


def test_an_empty_frame_makes_an_empty_table_under_any_path(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(spark, Lakehouse(path=str(tmp_path / "it's [a] `lake` #%20")))
    assert lake.write("gold.demo", rows(spark, 0), "r1") == Written("gold.demo", 0, 0, skipped=False)
    assert lake.write("gold.demo", rows(spark, 0), "r1").skipped
    assert lake.tables() == ["gold.demo"]
    assert lake.sql("SELECT * FROM gold.demo").columns == ["unit_id", "value", "outcomes", "run_id"]
    assert lake.read("gold.demo").count() == 0


def test_a_changed_schema_is_refused(lake: Lake) -> None:
    lake.write("gold.demo", rows(lake.spark, 2), "r1")
    changed = rows(lake.spark, 2).withColumn("value", F.lit("a")).withColumnRenamed("unit_id", "unit")
    with pytest.raises(
        DataError,
        match=r"column unit_id is missing but string.* value is string but double.* unit is string but not in",
    ):
        lake.write("gold.demo", changed, "r2")
    assert lake.version("gold.demo") == 0


def test_names_mean_the_lakehouse_that_is_queried(lake: Lake, tmp_path: Path) -> None:
    other = Lake(lake.spark, Lakehouse(path=str(tmp_path / "other")))
    lake.write("gold.demo", rows(lake.spark, 1), "r1")
    other.write("gold.demo", rows(lake.spark, 2), "r1")
    query = "SELECT count(*) AS n FROM gold.demo"
    assert [one.sql(query).collect()[0]["n"] for one in (lake, other, lake)] == [1, 2, 1]
    assert other.read("gold.demo").count() == 2


@pytest.mark.slow
def test_another_process_finds_the_tables_by_name_quietly(lake: Lake) -> None:
    lake.write("gold.demo", rows(lake.spark, 3), "r1")
    lake.write("gold.demo", rows(lake.spark, 3), "r2")
    script = (
        "import sys\n"
        "from uplift_spark.config import Lakehouse\n"
        "from uplift_spark.lake.session import spark_session\n"
        "from uplift_spark.lake.tables import Lake\n"
        "where = Lakehouse(path=sys.argv[1])\n"
        "lake = Lake(spark_session(where), where)\n"
        "for query in sys.argv[2:]:\n    print(lake.sql(query).collect()[0][0])\n"
    )
    count = "SELECT count(*) FROM gold.demo"
    run = subprocess.run(
        [sys.executable, "-c", script, lake.lakehouse.path, count, f"{count} VERSION AS OF 0", "SHOW TABLES IN gold"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.split() == ["6", "3", "gold"]
    assert run.stderr == ""


def test_writers_at_the_same_time_each_write_once(lake: Lake) -> None:
    def write(run: str) -> Written:
        return lake.write("gold.demo", rows(lake.spark, 5), run)

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write, ["r1", "r2", "r1", "r2"]))
    assert sorted((w.rows, w.skipped) for w in written) == [(0, True), (0, True), (5, False), (5, False)]
    counts = {row["run_id"]: row["count"] for row in lake.read("gold.demo").groupBy("run_id").count().collect()}
    assert counts == {"r1": 5, "r2": 5}


def test_a_lost_reply_does_not_write_twice(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter([RuntimeError("[DELTA_CONCURRENT_WRITE] the reply of a commit that succeeded"), None])
    real = Folder.save

    def save(self: Folder, frame: DataFrame, save: Save) -> None:
        real(self, frame, save)
        if lost := next(replies):
            raise lost

    monkeypatch.setattr(Folder, "save", save)
    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    assert lake.write("gold.demo", rows(lake.spark, 5), "r1") == Written("gold.demo", 0, 5, skipped=False)
    assert lake.read("gold.demo").count() == 5


def test_losing_every_race_is_a_conflict(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def save(self: Folder, frame: DataFrame, save: Save) -> None:
        tries.append(save.table)
        raise RuntimeError("[DELTA_CONCURRENT_APPEND] somebody was faster")

    monkeypatch.setattr(Folder, "save", save)
    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    with pytest.raises(ConflictError, match=r"other writers won table gold.demo 6 times in a row against run r1"):
        lake.write("gold.demo", rows(lake.spark, 1), "r1")
    assert len(tries) == tables.ATTEMPTS


def test_a_session_without_delta_is_named(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Folder, reader: object, table: str) -> DataFrame:
        raise RuntimeError("[DATA_SOURCE_NOT_FOUND] Failed to find the data source: delta.")

    monkeypatch.setattr(Folder, "load", load)
    with pytest.raises(EnvironmentProblem, match=r"no Delta Lake: start it with `--packages io.delta:delta-spark_"):
        lake.exists("gold.demo")


def test_queries_are_planned_for_the_size_of_the_raw_events(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    spark, setting = lake.spark, "spark.sql.adaptive.enabled"
    before = spark.conf.get(setting)
    spark.conf.set(setting, "true")
    try:
        with Lake(spark, replace(lake.lakehouse, few_mb=0)).planned() as planned:
            assert not planned  # though there is nothing yet
        lake.write("bronze.demo", rows(spark, 100), "r1")
        size = sum(file.stat().st_size for file in Path(lake.lakehouse.path).glob("bronze/demo/*.parquet"))
        for megabytes, coming, few in ((size / 1e6, 0, True), (size / 1e6, 1, False), (0, 0, False)):
            planner = Lake(spark, replace(lake.lakehouse, few_mb=megabytes))
            with planner.planned(coming) as planned:
                assert (planned, spark.conf.get(setting)) == (few, "false" if few else "true")
            assert spark.conf.get(setting) == "true"
        monkeypatch.setattr(storage, "on_this_machine", lambda session: False)
        with Lake(spark, replace(lake.lakehouse, few_mb=1000)).planned() as planned:
            assert not planned and spark.conf.get(setting) == "true"
    finally:
        spark.conf.set(setting, before)


def test_few_rows_are_read_once_and_are_those_that_spark_reads(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    spark = lake.spark
    at = F.timestamp_micros(F.lit(1_000_000_000_000_000) + F.col("id"))
    plain = spark.range(3).select(
        "id", F.col("id").cast("smallint").alias("short"), at.alias("at"), F.lit("x").alias("p")
    )
    nested = plain.select(
        "id", F.create_map(F.lit("a"), F.col("id").cast("double")).alias("map"), F.array("short").alias("list")
    )
    for table, frame in {"gold.plain": plain, "gold.nested": nested}.items():
        lake.write(table, frame, "r1", partition_by=("p",) if "p" in frame.columns else ())
    lake.write("gold.plain", plain.withColumn("p", F.lit(None).cast("string")), "r2")
    by_workers = Lake(spark, replace(lake.lakehouse, few_mb=0.0))
    calls: list[object] = []
    load = Folder.load

    def counted(self: Folder, reader: DataFrameReader, table: str) -> DataFrame:
        calls.append(table)
        return load(self, reader, table)

    monkeypatch.setattr(Folder, "load", counted)
    for table, version, by_spark in (("gold.plain", None, 0), ("gold.plain", 0, 0), ("gold.nested", None, 1)):
        calls.clear()
        slow = by_workers.read(table, version)
        assert calls == [table]  # Spark's own way
        wanted = sorted(map(str, slow.collect()))
        calls.clear()
        with lake.planned() as planned:
            assert planned
            first, again = lake.read(table, version), lake.read(table, version)
            assert len(calls) == by_spark and sorted(map(str, first.collect())) == wanted
        assert again.schema.simpleString() == slow.schema.simpleString()
    with lake.planned():
        assert lake.properties("gold.plain") == described_properties(spark, lake.reference("gold.plain"))
        lake.write("gold.nested", nested, "r2")
        assert lake.read("gold.nested").count() == 2 * lake.read("gold.nested", 0).count() == 6
        assert LocalTables(lake.lakehouse.path).table("gold.nested").rows == 6  # though no file says how many it has
        with pytest.raises(DataError, match="has no version 7 to read"):
            lake.read("gold.nested", 7)
    calls.clear()
    lake.read("gold.plain")
    assert calls == []  # a small table, however many raw events there are
    monkeypatch.setattr("uplift_spark.lake.tables._SMALL", 10)
    Lake(spark, lake.lakehouse).read("gold.plain", 0)
    assert set(calls) == {"gold.plain"}


def test_more_rows_than_few_are_left_to_spark(lake: Lake) -> None:
    lake.write("gold.demo", rows(lake.spark, 100), "r1")
    assert storage_of(lake.spark, lake.lakehouse).held("gold.demo", 0, 10.0) is None


def test_a_table_is_there_by_its_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.write("gold.demo", rows(lake.spark, 1), "r1")
    expected = {"gold.demo": True, "gold.other": False}
    assert {table: lake.exists(table) for table in expected} == expected
    monkeypatch.setattr(storage, "on_this_machine", lambda session: False)
    assert {table: Lake(lake.spark, lake.lakehouse).exists(table) for table in expected} == expected


def test_every_commit_says_its_run_and_feeds_changes(lake: Lake) -> None:
    lake.write("gold.demo", rows(lake.spark, 2), "r1")
    (commit,) = lake.sql("DESCRIBE HISTORY gold.demo").collect()
    assert json.loads(commit["userMetadata"])["run_id"] == "r1"
    changes = lake.sql("SELECT * FROM table_changes('gold.demo', 0)")
    assert changes.count() == 2


def test_a_run_needs_a_name(lake: Lake) -> None:
    with pytest.raises(ConfigError, match=r"run id '' for table gold.demo"):
        lake.write("gold.demo", rows(lake.spark, 1), "")


@pytest.mark.slow
@pytest.mark.parametrize("catalog", [None, "spark_catalog"])
def test_delta_itself_refuses_to_change_raw_events(lake: Lake, catalog: str | None) -> None:
    # The session's own catalog keeps its tables where the last lakehouse is: a name of its own for each.
    table = f"bronze.profile_of_{catalog or 'folder'}"
    target, spark = Lake(lake.spark, lake.lakehouse if catalog is None else Lakehouse(catalog=catalog)), lake.spark
    spark.sql(f"DROP TABLE IF EXISTS {target.name(table)}")
    now = F.lit("2025-01-06").cast("timestamp")
    times = {"observed_at": now, "known_at": now, "source": F.lit("crm"), "age": F.lit(30.0)}
    profile = rows(spark, 4).select("unit_id").withColumns(times)
    assert target.write(table, profile, "r1").rows == 4
    version, before = target.version(table), target.sql(f"SELECT * FROM {target.name(table)}").collect()
    for change in (
        f"UPDATE {target.name(table)} SET age = 31",
        f"DELETE FROM {target.name(table)} WHERE unit_id = 'u1'",
    ):
        with pytest.raises(Exception, match=r"DELTA_CANNOT_MODIFY_APPEND_ONLY"):
            spark.sql(change)
    with pytest.raises(DataError, match=rf"table {table} holds raw events and cannot be overwritten: append"):
        target.write(table, profile, "r2", mode="overwrite")
    assert target.version(table) == version
    assert sorted(target.read(table).collect()) == sorted(before)
    assert target.write(table, profile, "r3").rows == 4
    spark.sql(f"DROP TABLE {target.name(table)}")


def test_missing_raw_tables_name_their_load(lake: Lake) -> None:
    with pytest.raises(DataError, match=r"bronze.consent does not exist .*: run `uplift load` first"):
        lake.read("bronze.consent")


def test_the_log_read_here_is_the_one_that_spark_describes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, n in (("r1", 3), ("r2", 2)):
        lake.write("gold.demo", rows(lake.spark, n), run)
    rows(lake.spark, 1).withColumn("run_id", F.lit("x")).write.format("delta").mode("append").option(
        "userMetadata", "not {json"
    ).save(str(Path(lake.lakehouse.path, "gold", "demo")))
    here = {limit: lake.history("gold.demo", limit) for limit in (None, 2)}
    assert [(one.version, one.operation, one.notes.get("run_id")) for one in here[None]] == [
        (2, "WRITE", None),
        (1, "WRITE", "r2"),
        (0, "WRITE", "r1"),
    ]
    assert [one.metrics["numOutputRows"] for one in here[None]] == ["1", "2", "3"] and here[2] == here[None][:2]
    monkeypatch.setattr(storage, "on_this_machine", lambda session: False)
    elsewhere = Lake(lake.spark, lake.lakehouse)
    assert {limit: elsewhere.history("gold.demo", limit) for limit in (None, 2)} == here
    for one, same in zip(here[None], elsewhere.history("gold.demo"), strict=True):
        assert abs(one.at - same.at) < timedelta(minutes=1)  # noted in the commit; the time of its file
    assert elsewhere.tables() == lake.tables() == ["gold.demo"]


@pytest.mark.slow
def test_a_catalog_gives_three_level_names(spark: SparkSession) -> None:
    lake = Lake(spark, Lakehouse(catalog="spark_catalog"))
    assert lake.name("gold.on_catalog") == "`spark_catalog`.`gold`.`on_catalog`"
    spark.sql("DROP TABLE IF EXISTS spark_catalog.gold.on_catalog")
    first, second = rows(spark, 4), rows(spark, 2).drop("value")
    written = lake.write("gold.on_catalog", first, "r1", mode="overwrite", partition_by=["unit_id"])
    assert (written.rows, written.skipped) == (4, False)
    assert lake.write("gold.on_catalog", second, "r2", mode="overwrite").rows == 2
    again = lake.write("gold.on_catalog", first, "r1", mode="overwrite")
    assert again == Written("gold.on_catalog", written.version, 0, skipped=True)
    assert lake.write("gold.on_catalog", second, "r3").rows == 2
    assert lake.read("gold.on_catalog", written.version).count() == 4
    assert lake.sql("SELECT * FROM spark_catalog.gold.on_catalog").columns == ["unit_id", "outcomes", "run_id"]
    assert "gold.on_catalog" in lake.tables()
    with pytest.raises(DataError, match=r"gold.lift_table does not exist in lakehouse spark_catalog"):
        lake.read("gold.lift_table")
    spark.sql("DROP TABLE spark_catalog.gold.on_catalog")


def test_files_of_tables_are_the_user_s_alone(lake: Lake, spark: SparkSession) -> None:
    lake.write("gold.demo", rows(spark, 3), "r1")
    modes = {path: path.stat().st_mode & 0o077 for path in Path(lake.lakehouse.path, "gold").rglob("*")}
    assert len(modes) > 4 and set(modes.values()) == {0}, modes


def claimed(lake: Lake, run: str, n: int, claim: Claim) -> Written:
    return lake.write("gold.demo", rows(lake.spark, n), run, claim=claim)


def test_of_runs_that_claimed_a_table_at_once_the_first_writes(lake: Lake) -> None:
    first, second = (lake.claim("gold.demo", "loads") for _ in range(2))
    assert first == second == Claim("loads", 1)
    assert claimed(lake, "r1", 3, first).rows == 3
    with pytest.raises(OvertakenError, match=r"another run wrote gold\.demo while run r2 read what was there"):
        claimed(lake, "r2", 2, second)
    assert claimed(lake, "r1", 3, second).skipped  # the run again, or twice at once
    lake.write("gold.demo", rows(lake.spark, 1), "r3")  # of others no claim is overtaken
    other, third, fourth = lake.claim("gold.demo", "others"), *(lake.claim("gold.demo", "loads") for _ in range(2))
    assert claimed(lake, "r4", 1, other).rows == claimed(lake, "r5", 1, third).rows == 1
    with pytest.raises(OvertakenError):
        claimed(lake, "r6", 1, fourth)
    assert claimed(lake, "r6", 1, lake.claim("gold.demo", "loads")).rows == 1
    assert lake.read("gold.demo").groupBy("run_id").count().count() == 5
    assert lake.runs_of("gold.demo", "loads") == {"r1", "r5", "r6"}


def test_a_claim_outlives_the_log_and_a_lost_reply(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(lake, "r1", 3, lake.claim("gold.demo", "loads"))
    late = lake.claim("gold.demo", "loads")
    real = type(lake._storage).save

    def reply_lost(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        monkeypatch.undo()
        raise RuntimeError("[DELTA_CONCURRENT_WRITE] the reply was lost")

    monkeypatch.setattr(type(lake._storage), "save", reply_lost)
    assert claimed(lake, "r2", 2, lake.claim("gold.demo", "loads")).rows == 2
    with pytest.raises(OvertakenError):
        claimed(lake, "r3", 1, late)
    lake.take_over("gold.demo", "loads")
    with monkeypatch.context() as patched:  # a log that was cleaned: the commits with notes are gone
        history = lake.history
        patched.setattr(lake, "history", lambda table, limit=None: [one for one in history(table) if one.version > 2])
        lake.write("gold.demo", rows(lake.spark, 1), "r4")
        both = [lake.claim("gold.demo", "loads") for _ in range(2)]
        assert claimed(lake, "r5", 1, both[0]).rows == 1
        with pytest.raises(OvertakenError):
            claimed(lake, "r6", 1, both[1])
        assert claimed(lake, "r5", 1, lake.claim("gold.demo", "loads")).skipped


def test_figures_of_declared_rows_have_ten_digits_and_null_where_none_is_known(lake: Lake) -> None:
    def added(*parts: float) -> dict[str, object]:
        return {"campaign": "spring", "kind": "expense", "quantity": np.float64(3), "amount": sum(parts)}

    assert sum((0.1, 0.2, 0.3)) != sum((0.3, 0.2, 0.1))  # workers add in any order
    lake.write("gold.costs", lake.filled("gold.costs", [added(0.1, 0.2, 0.3)]), "r1")
    assert lake.write("gold.costs", lake.filled("gold.costs", [added(0.3, 0.2, 0.1)]), "r1").skipped
    cells = {"campaign": "spring", "amount": math.nan, "quantity": -math.inf}
    (row,) = lake.filled("gold.costs", [cells]).collect()
    assert (row["campaign"], row["amount"], row["quantity"], row["day"]) == ("spring", None, None, None)
    (row,) = lake.filled("gold.costs", [{"amount": 1 / 3}]).collect()
    assert row["amount"] == 0.3333333333
