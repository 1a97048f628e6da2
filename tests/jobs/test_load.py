"""Users' own events on their way to the raw tables: four formats, bad rows, clocks, repeated and grown sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Labels, Leakage, RolesConf, Simulation
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.events import load as loading
from uplift_spark.events.load import Load
from uplift_spark.jobs import features, load, replay
from uplift_spark.jobs.replay import Replay
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult

CONF = Config(campaign="shop", source=Simulation(units=1000), roles=RolesConf("conversion", "none", ("age",)))
HEADER = "unit_id,event,item,value,occurred_at,event_id\n"
GOOD = '''a,order,book,2.5,2024-01-02T09:30:00Z,e1
b,order,"pen, ""blue""",1e2,2024-01-02T10:30:00.000001+01:00,e2
c,login,,,2024-01-02 09:30:00,
d,login,,,2024-03-10,
e,login,,,2024-03-10 02:30:00.25,
'''
EVENTS = {
    ("a", "book", 2.5, "2024-01-02 09:30:00", "e1"),
    ("b", 'pen, "blue"', 100.0, "2024-01-02 09:30:00.000001", "e2"),
    ("c", None, None, "2024-01-02 09:30:00", None),
    ("d", None, None, "2024-03-10 00:00:00", None),
    # An hour that New York's clocks leave out.
    ("e", None, None, "2024-03-10 02:30:00.250000", None),
}


@pytest.fixture
def new_york(spark: SparkSession) -> Iterator[None]:
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "America/New_York")
    yield
    spark.conf.set("spark.sql.session.timeZone", before)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def loaded(lake: Lake, source: Any, format_: str = "csv", table: str = "bronze.event", **how: Any) -> JobResult:
    run_id = how.pop("run_id", None)
    return load.run(Campaign(CONF, lake), run_id=run_id, load=Load(table, str(source), format_, **how))


def events(lake: Lake) -> set[tuple[Any, ...]]:
    kept = ("unit_id", "item", "value", "occurred_at", "event_id")
    return {tuple(row[name] for name in kept) for row in events_in(lake)}


def events_in(lake: Lake) -> list[dict[str, Any]]:
    """Rows of bronze.event, times as texts in UTC whatever the session's zone."""
    times = ("occurred_at", "known_at", "ingested_at")
    rows = lake.read("bronze.event").withColumns({name: F.unix_micros(name) for name in times}).collect()
    at = {name: datetime(1970, 1, 1) for name in times}
    return [{k: str(at[k] + timedelta(microseconds=v)) if k in at else v for k, v in r.asDict().items()} for r in rows]


def typed(spark: SparkSession) -> DataFrame:
    """The good rows as a program writes them: typed, in another order of columns; `at` is the time as text."""
    rows = [(at, unit, item, value, key) for unit, item, value, at, key in EVENTS]
    frame = spark.createDataFrame(rows, "at string, unit_id string, item string, value double, event_id string")
    event = F.when(F.col("item").isNull(), "login").otherwise("order")
    return frame.withColumns({"event": event, "occurred_at": F.concat("at", F.lit("Z")).cast("timestamp")})


def written(spark: SparkSession, folder: Path, format_: str) -> Path:
    """The good rows in one format."""
    if format_ == "csv":
        return put(folder / "events.csv", HEADER + GOOD)
    frame = typed(spark)
    if format_ == "json":
        rows = [row.asDict() for row in frame.drop("occurred_at").collect()]
        lines = [json.dumps({"occurred_at": row.pop("at"), **row}) for row in rows]
        return put(folder / "events.jsonl", "\n".join(lines))
    frame.drop("at").repartition(2).write.format(format_).save(str(folder / "events"))
    return folder / "events"


@pytest.mark.parametrize(
    ("format_", "twice"),
    [
        pytest.param("csv", True, marks=pytest.mark.slow),
        ("json", False),
        ("parquet", False),
        pytest.param("delta", True, marks=pytest.mark.slow),
        pytest.param("json", True, marks=pytest.mark.slow),
        pytest.param("parquet", True, marks=pytest.mark.slow),
    ],
)
def test_every_format_gives_the_same_rows_whatever_the_session_s_zone(
    lake: Lake, spark: SparkSession, tmp_path: Path, format_: str, twice: bool, new_york: None
) -> None:
    source = written(spark, tmp_path / "in", format_)
    result = loaded(lake, source, format_, historic=True)
    assert events(lake) == EVENTS
    rows = events_in(lake)
    assert all(row["known_at"] == row["occurred_at"] for row in rows)
    assert {row["run_id"] for row in rows} == {result.run_id} and all("#" in row["source"] for row in rows)
    assert (result.details["good"], result.details["rejected"]) == (5, {})
    assert "bronze.quarantine" not in lake.tables()
    if twice:
        again = loaded(lake, source, format_, historic=True)
        assert again.run_id == result.run_id and again.tables["bronze.event"]["skipped"]
        assert again.details["good"] == 5


TIMES = {
    "2024-01-02": "2024-01-02 00:00:00",
    "2024-01-02T10:30": "2024-01-02 10:30:00",
    "2024-01-02 10:30Z": "2024-01-02 10:30:00",
    "2024-01-02T10:30+01:00": "2024-01-02 09:30:00",
    "2024-01-02T10:30:00+0130": "2024-01-02 09:00:00",
    "2024-01-02 10:30:00-05": "2024-01-02 15:30:00",
    "2024-01-02T10:30:00.123456789Z": "2024-01-02 10:30:00.123456",
    " 2024-01-02T10:30:00 ": "2024-01-02 10:30:00",
    **dict.fromkeys(("2024", "2024-1-2", "10:30", "2024-02-30", "2024-01-02T25:00", "2024-01-02T10:30 PST", "now")),
    **dict.fromkeys(("2024-01-02T10", "2024-01-02T10:30+99:00", "1704187800", "2024-01-02Z", "02/01/2024")),
}


@pytest.mark.slow
def test_times_are_iso_8601_and_nothing_else(lake: Lake, tmp_path: Path, new_york: None) -> None:
    lines = "".join(f"u,{number},login,{text}\n" for number, text in enumerate(TIMES))
    result = loaded(lake, put(tmp_path / "t.csv", f"unit_id,item,event,occurred_at\n{lines}"))
    good = {int(row["item"]): row["occurred_at"] for row in events_in(lake)}
    assert good == {number: at for number, at in enumerate(TIMES.values()) if at is not None}
    assert result.details["rejected"] == {"occurred_at_readable": len(TIMES) - len(good)}


@pytest.mark.slow
def test_unzoned_times_of_parquet_are_utc(lake: Lake, spark: SparkSession, tmp_path: Path, new_york: None) -> None:
    row = "SELECT 'a' AS unit_id, 'login' AS event, timestamp_ntz'2024-03-10 02:30:00.5' AS occurred_at"
    spark.sql(row).write.parquet(str(tmp_path / "in"))
    loaded(lake, tmp_path / "in", "parquet")
    assert events(lake) == {("a", None, None, "2024-03-10 02:30:00.500000", None)}


BAD = {
    "x1,order,,1,2024-13-01T00:00:00Z,": ("occurred_at_readable", "occurred_at '2024-13-01T00:00:00Z' is not a point"),
    "x2,order,,1,12:30,": ("occurred_at_readable", "occurred_at '12:30' is not a point in time"),
    "x3,order,,1d,2024-01-02,": ("value_readable", "value '1d' is not a number"),
    ",order,,1,2024-01-02,": ("unit_present", "unit_id is missing"),
    "x5,order,,-Infinity,2024-01-02,": ("value_finite", "value is not finite"),
    "x6,order,,1,2999-01-01,": ("known_at_order", "known_at is before occurred_at"),
    "x7,order,,1,2024-01-02,,,": ("row_readable", "the line is not a row"),
    "x8,order,,1,,": ("occurred_at_present", "occurred_at is missing"),
}


def test_bad_rows_are_kept_with_their_reason_and_counted(lake: Lake, tmp_path: Path) -> None:
    source = put(tmp_path / "events.csv", HEADER + GOOD + "\n".join(BAD) + "\n")
    result = loaded(lake, source)
    counts = {"occurred_at_readable": 2, **dict.fromkeys((r for r, _ in list(BAD.values())[2:]), 1)}
    assert result.details["rejected"] == counts and result.details["good"] == 5
    assert events(lake) == EVENTS
    kept = lake.read("bronze.quarantine").collect()
    by_rule = {row["rule"]: row for row in kept}
    for line, (rule, reason) in BAD.items():
        (row,) = (r for r in kept if r["rule"] == rule and reason in r["reason"])
        raw_row = json.loads(row["row"])
        assert raw_row == {"__unread": line} or raw_row["occurred_at"] == (line.split(",")[4] or None)
        assert (row["source_table"], row["run_id"]) == ("bronze.event", result.run_id)
        assert row["source"].startswith("events.csv#")
    assert ";" not in by_rule["value_readable"]["reason"]
    again = loaded(lake, source)
    assert all(table["skipped"] for table in again.tables.values()) and again.details == result.details
    assert lake.read("bronze.quarantine").count() == len(BAD)


@pytest.mark.slow
def test_bad_rows_of_json_and_parquet(lake: Lake, spark: SparkSession, tmp_path: Path) -> None:
    lines = ['{"unit_id": "a", "event": "login", "occurred_at": "2024-01-02", "value": "much"}', '{"unit_id": ']
    lines += ['{"unit_id": 7, "event": "login", "occurred_at": "2024-01-02T00:00Z", "value": 2}']
    result = loaded(lake, put(tmp_path / "a.json", "\n".join(lines)), "json")
    assert result.details["rejected"] == {"value_readable": 1, "row_readable": 1}
    row = "SELECT 'b' AS unit_id, 'login' AS event, now() AS occurred_at, double('inf') AS value"
    spark.sql(row).write.parquet(str(tmp_path / "p"))
    assert loaded(lake, tmp_path / "p", "parquet").details["rejected"] == {"value_finite": 1}
    assert events(lake) == {("7", None, 2.0, "2024-01-02 00:00:00", None)}


@pytest.mark.slow
def test_known_at_is_a_column_or_the_event_s_time_or_the_arrival(lake: Lake, tmp_path: Path) -> None:
    def rows(name: str, columns: str, line: str) -> Path:
        return put(tmp_path / name, f"unit_id,event,occurred_at{columns}\n{line}\n")

    loaded(lake, rows("arrived.csv", "", "a,login,2024-01-02"))
    loaded(lake, rows("own.csv", ",known_at", "b,login,2024-01-02,2024-01-03"))
    loaded(lake, rows("named.csv", ",seen", "c,login,2024-01-02,2024-01-04"), known_at="seen")
    early = loaded(lake, rows("early.csv", ",seen", "d,login,2024-01-02,2024-01-01"), known_at="seen")
    assert early.details["rejected"] == {"known_at_order": 1}
    known = {row["unit_id"]: row for row in events_in(lake)}
    assert known["a"]["known_at"] == known["a"]["ingested_at"] > "2025"
    assert (known["b"]["known_at"], known["c"]["known_at"]) == ("2024-01-03 00:00:00", "2024-01-04 00:00:00")
    with pytest.raises(ConfigError, match="leave --historic out"):
        loaded(lake, rows("other.csv", ",known_at", "e,login,2024-01-02,2024-01-03"), historic=True)
    with pytest.raises(ConflictError, match="choose a new --run-id"):
        loaded(lake, tmp_path / "arrived.csv", historic=True)


def test_a_folder_that_grows_adds_its_new_files_only(lake: Lake, tmp_path: Path) -> None:
    folder = tmp_path / "days [1]"
    put(folder / "2024 01.csv", HEADER + "a,login,,,2024-01-02,\n,login,,,2024-01-02,\n")
    first = loaded(lake, folder)
    put(folder / "02.csv", "occurred_at,unit_id,event\n2024-02-02,b,login\n2024-02-02,,login\n")
    put(folder / "deep" / "copy.csv", (folder / "2024 01.csv").read_text())
    put(folder / "empty.csv", "")
    second = loaded(lake, folder)
    assert second.run_id != first.run_id
    assert second.details == {"files": 2, "files_known": 1, "good": 1, "rejected": {"unit_present": 1}}
    assert [row[0] for row in sorted(events(lake))] == ["a", "b"]
    third = loaded(lake, folder)
    assert (third.tables, third.details["files_known"], third.details["good"]) == ({}, 2, 0)
    assert lake.read("bronze.event").count() == lake.read("bronze.quarantine").count() == 2
    with pytest.raises(DataError, match="holds no file with rows"):
        loaded(lake, folder / "empty.csv")


@pytest.mark.slow
def test_a_killed_run_completes_though_it_runs_later_and_beside_another_file(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second row has not happened when the run is killed, and has when it runs again: it stays rejected."""
    folder = tmp_path / "in"
    put(folder / "a.csv", "unit_id,event,occurred_at\na,login,2024-01-02\nb,login,2024-01-04\n")
    write = Lake.write

    def killed(self: Lake, table: str, *rest: Any, **more: Any) -> Any:
        if table == "bronze.event":
            raise KeyboardInterrupt
        return write(self, table, *rest, **more)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2024, 1, 3, tzinfo=UTC)

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "write", killed)
        patched.setattr(loading, "datetime", Clock)
        with pytest.raises(KeyboardInterrupt):
            loaded(lake, folder)
    assert lake.tables() == ["bronze.quarantine"]
    result = loaded(lake, folder)
    assert result.details["good"] == 1 and result.tables["bronze.quarantine"]["skipped"]
    assert events_in(lake)[0]["known_at"] == "2024-01-03 00:00:00"


@pytest.mark.slow
def test_a_delta_table_adds_the_rows_of_its_new_versions(lake: Lake, spark: SparkSession, tmp_path: Path) -> None:
    row = "SELECT '{}' AS unit_id, 'login' AS event, timestamp'2024-01-02 00:00:00Z' AS occurred_at"
    lake.write("silver.visits", spark.sql(row.format("a")).drop("run_id"), "r0")
    with pytest.raises(DataError, match=r"silver\.visits does not have the columns.* unknown run_id"):
        loaded(lake, "silver.visits", "delta")
    folder = str(tmp_path / "visits")
    spark.sql(row.format("a")).write.format("delta").save(folder)
    first = loaded(lake, folder, "delta")
    more = spark.sql(row.format("a") + " UNION ALL " + row.format("b"))
    more.withColumn("item", F.lit("x")).write.format("delta").mode("append").option("mergeSchema", "true").save(folder)
    second = loaded(lake, folder, "delta")
    assert (first.details["good"], second.details["good"], second.details["version_known"]) == (1, 2, 0)
    assert loaded(lake, folder, "delta").tables["bronze.event"]["skipped"]
    assert lake.read("bronze.event").count() == 3
    with pytest.raises(DataError, match="is a Delta table: use --format delta"):
        loaded(lake, folder, "parquet")
    with pytest.raises(DataError, match=r"no\.table is no Delta table"):
        loaded(lake, "no.table", "delta")


def test_assignments_and_profiles_are_there_once(lake: Lake, tmp_path: Path) -> None:
    header = "unit_id,campaign,treatment,assigned_at,propensity\n"
    loaded(lake, put(tmp_path / "1.csv", header + "a,shop,mail,2024-01-01,0.5\n"), table="bronze.assignment")
    more = header + "a,shop,none,2024-01-01,0.5\na,other,none,2024-01-01,\nb,shop,none,2024-01-01,0.5\n"
    again = loaded(lake, put(tmp_path / "2.csv", more), table="bronze.assignment")
    assert (again.details["good"], again.details["rejected"]) == (2, {"repeated": 1})
    reason = lake.read("bronze.quarantine").collect()[0]["reason"]
    assert reason == "campaign and unit_id are in bronze.assignment already, with other values"
    profile = "unit_id,observed_at,age,city\na,2024-01-01,31,7\nb,2024-01-01,,Rome\n"
    loaded(lake, put(tmp_path / "p.csv", profile), table="bronze.profile_shop", historic=True)
    assert dict(lake.read("bronze.profile_shop").select("age", "city").dtypes) == {"age": "double", "city": "string"}
    other = put(tmp_path / "q.csv", "unit_id,observed_at,age,town\nc,2024-01-01,31,7\n")
    with pytest.raises(DataError, match="it lacks city; it has unknown town"):
        loaded(lake, other, table="bronze.profile_shop")


@pytest.mark.slow
def test_equal_lines_are_one_row_and_a_source_exported_whole_each_night_adds_what_is_new(
    lake: Lake, tmp_path: Path
) -> None:
    folder, header = tmp_path / "in", "unit_id,observed_at,age,city\n"
    put(folder / "1.csv", header + "a,2024-01-01,31,Rome\na,2024-01-01,31,Rome\nb,2024-01-01,,Bern\n")
    how = {"table": "bronze.profile_shop", "historic": True}
    first = loaded(lake, folder, **how)
    assert (first.details["good"], first.details["equal_rows"], first.details["rejected"]) == (2, 1, {})
    put(folder / "2.csv", header + "a,2024-01-01,31,Rome\nb,2024-01-01,40,Bern\nc,2024-01-01,50,Oslo\n")
    second = loaded(lake, folder, **how)
    assert (second.details["good"], second.details["already_there"]) == (1, 1)
    assert second.details["rejected"] == {"repeated": 1}
    assert lake.read("bronze.profile_shop").count() == 3
    put(folder / "3.csv", header + "c,2024-01-01,50,Oslo\n")
    version = lake.version("bronze.profile_shop")
    third = loaded(lake, folder, **how)
    assert (third.details["good"], third.details["already_there"], third.tables) == (0, 1, {})
    assert lake.version("bronze.profile_shop") == version


@pytest.mark.slow
def test_a_commit_without_new_rows_at_the_source_makes_none_here(
    lake: Lake, spark: SparkSession, tmp_path: Path
) -> None:
    folder = str(tmp_path / "visits")
    row = "SELECT 'a' AS unit_id, 'login' AS event, timestamp'2024-01-02 00:00:00Z' AS occurred_at"
    spark.sql(row).write.format("delta").save(folder)
    loaded(lake, folder, "delta")
    spark.sql(f"ALTER TABLE delta.`{folder}` SET TBLPROPERTIES ('team' = 'crm')")
    version = lake.version("bronze.event")
    again = loaded(lake, folder, "delta")
    assert (again.details["good"], again.tables, lake.version("bronze.event")) == (0, {}, version)


@pytest.mark.slow
def test_a_header_of_the_last_release_is_loaded_with_a_warning(lake: Lake, tmp_path: Path) -> None:
    lines: list[str] = []
    header = "unit_id,experiment,treatment,assigned_at,propensity\n"
    source = put(tmp_path / "old.csv", header + "a,shop,mail,2024-01-01,0.5\nb, ,mail,2024-01-01,0.5\n")
    result = load.run(Campaign(CONF, lake), lines.append, load=Load("bronze.assignment", str(source), "csv"))
    assert (result.details["good"], result.details["rejected"]) == (1, {"campaign_present": 1})
    assert [row["campaign"] for row in lake.read("bronze.assignment").collect()] == ["shop"]
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 1 and "has a column experiment, which is called campaign now" in warnings[0]
    both = put(tmp_path / "both.csv", header.replace("unit_id", "unit_id,campaign") + "c,shop,shop,mail,2024-01-01,\n")
    with pytest.raises(DataError, match="it has unknown experiment"):
        loaded(lake, both, table="bronze.assignment")


@pytest.mark.slow
def test_a_new_column_comes_on_record_and_is_optional_from_then_on(
    lake: Lake, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(tmp_path / "old.csv", "unit_id,event,occurred_at\na,login,2024-01-02\n")
    new = put(tmp_path / "new.csv", "unit_id,event,occurred_at,price,shop\nb,order,2024-01-02,2.5,Rome\n,x,x,1,\n")
    loaded(lake, old)
    with pytest.raises(DataError, match=r"it has unknown price, shop; .* with --new-column NAME adds a column"):
        loaded(lake, new)
    with pytest.raises(DataError, match="it has unknown shop; "):
        loaded(lake, new, new_columns=("price",))
    with pytest.raises(DataError, match="it lacks colour; "):
        loaded(lake, put(tmp_path / "x.csv", old.read_text() + "x,login,2024-01-02\n"), new_columns=("colour",))
    assert lake.read("bronze.event").columns == own_columns()
    write = Lake.write

    def killed(self: Lake, table: str, *rest: Any, **more: Any) -> Any:
        outcome = write(self, table, *rest, **more)
        if table == "bronze.event":
            raise KeyboardInterrupt
        return outcome

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Lake, "write", killed)
        loaded(lake, new, new_columns=("price", "shop"))
    again = loaded(lake, new, new_columns=("price", "shop"))
    assert again.tables["bronze.event"]["skipped"] and again.details["good"] == 1
    stored = lake.read("bronze.event").schema
    assert [stored[name].dataType.simpleString() for name in ("price", "shop")] == ["double", "string"]
    assert stored["price"].metadata["comment"].startswith(f"added by run {again.run_id} at 20")
    commits = lake.sql("DESCRIBE HISTORY bronze.event").collect()
    assert [json.loads(row["userMetadata"]).get("new_columns") for row in commits] == [["price", "shop"], None]
    # With and without the columns rows fit now, and the run of before stays what it was.
    assert loaded(lake, old).tables["bronze.event"]["skipped"]
    loaded(lake, put(tmp_path / "c.csv", "unit_id,event,occurred_at,shop\nc,login,2024-01-02,Bern\n"))
    row = "SELECT 'd' AS unit_id, 'order' AS event, now() AS occurred_at, 3 AS price, true AS vip, now() AS sent"
    spark.sql(row).write.parquet(str(tmp_path / "p"))
    loaded(lake, tmp_path / "p", "parquet", new_columns=("vip", "sent"))
    rows = {row["unit_id"]: row for row in lake.read("bronze.event").collect()}
    assert {unit: (row["price"], row["shop"], row["vip"]) for unit, row in rows.items()} == {
        "a": (None, None, None),
        "b": (2.5, "Rome", None),
        "c": (None, "Bern", None),
        "d": (3.0, None, True),
    }
    assert lake.read("bronze.event").schema["sent"].dataType.simpleString() == "timestamp"


def own_columns() -> list[str]:
    return loading.Load("bronze.event", "x", "csv").contract.columns.fieldNames()


@pytest.mark.slow
def test_a_profile_gets_an_attribute(lake: Lake, tmp_path: Path) -> None:
    first = put(tmp_path / "1.csv", "unit_id,observed_at,age\na,2024-01-01,31\n")
    second = put(tmp_path / "2.csv", "unit_id,observed_at,age,city\nb,2024-01-01,32,Rome\n")
    how = {"table": "bronze.profile_shop", "historic": True}
    loaded(lake, first, **how)
    loaded(lake, second, **how, new_columns=("city",))
    loaded(lake, put(tmp_path / "3.csv", "unit_id,observed_at,age\nc,2024-01-01,33\n"), **how)
    profiles = lake.read("bronze.profile_shop").select("unit_id", "age", "city").collect()
    assert {tuple(row) for row in profiles} == {("a", 31.0, None), ("b", 32.0, "Rome"), ("c", 33.0, None)}


def test_files_whose_columns_do_not_fit_are_refused_before_any_write(lake: Lake, tmp_path: Path) -> None:
    source = put(tmp_path / "in" / "wrong.csv", "unit_id,event,when\nx,x,x\n")
    with pytest.raises(DataError, match=r"wrong\.csv does not have the columns of bronze\.event: it lacks occurred_at"):
        loaded(lake, source.parent)
    assert lake.tables() == []


def test_typed_columns_of_another_type_are_refused(lake: Lake, spark: SparkSession, tmp_path: Path) -> None:
    row = "SELECT 'a' AS unit_id, 'login' AS event, '2024-01-02' AS occurred_at, 1.5BD AS value, 'x' AS more"
    spark.sql(row).write.parquet(str(tmp_path / "in"))
    message = r"unknown more; column value is decimal\(2,1\), not double; column occurred_at is string, not timestamp;"
    with pytest.raises(DataError, match=message):
        loaded(lake, tmp_path / "in", "parquet")
    with pytest.raises(DataError, match="does not read as parquet"):
        loaded(lake, put(tmp_path / "x.csv", HEADER + GOOD), "parquet")
    with pytest.raises(DataError, match="nothing is at"):
        loaded(lake, tmp_path / "nowhere")
    assert lake.tables() == []


@pytest.mark.slow
def test_a_load_is_replaced_whole_and_others_stay(lake: Lake, tmp_path: Path) -> None:
    line = "{},order,,{},2024-01-02,\n".format
    first, other = tmp_path / "first.csv", tmp_path / "other.csv"
    put(first, HEADER + line("a", 1) + line("b", "x") + line("c", 2))
    put(other, HEADER + line("z", 9))
    loaded(lake, first)
    loaded(lake, other)
    arrived = {row["unit_id"]: row["known_at"] for row in events_in(lake)}
    assert arrived["a"] > "2026" and loaded(lake, first).tables["bronze.event"]["skipped"]  # known: nothing happens
    again = loaded(lake, first, historic=True, replace=True)
    assert (again.details["good"], again.details["rejected"]) == (2, {"value_readable": 1})
    rows = {row["unit_id"]: row["known_at"] for row in events_in(lake)}
    assert rows == {"a": "2024-01-02 00:00:00", "c": "2024-01-02 00:00:00", "z": arrived["z"]}
    assert lake.read("bronze.quarantine").count() == 1
    assert loaded(lake, first).details["good"] == 0
    back = loaded(lake, first, replace=True)  # to what it was, and once more
    assert back.details["good"] == 2 and len(events_in(lake)) == 3 and back.run_id != again.run_id
    with pytest.raises(DataError, match="does not have the columns"):
        loaded(lake, put(tmp_path / "bad.csv", "unit_id\na\n"), replace=True)
    with pytest.raises(ConfigError, match="leave --run-id out"):
        loaded(lake, first, replace=True, run_id="mine")
    assert len(events_in(lake)) == 3
    put(first, HEADER + line("a", 1) + line("b", 5) + line("c", 2))  # the line that was rejected is mended in the file
    with pytest.raises(
        DataError, match=r"bronze\.event has 2 rows of first\.csv#\w+, which had the name but not"
    ) as error:
        loaded(lake, first, replace=True)
    (source,) = {row["source"] for row in lake.read("bronze.event").collect() if row["source"].startswith("first")}
    assert f"--replace --replaced {source}` (repeatable)" in str(error.value)
    mended = loaded(lake, first, replace=True, replaced=(source,))
    assert mended.details["good"] == 3 and not mended.details["rejected"]
    assert sorted(row["unit_id"] for row in events_in(lake)) == ["a", "b", "c", "z"]
    assert lake.read("bronze.quarantine").count() == 0
    with pytest.raises(ConfigError, match="--replaced needs --replace"):
        loaded(lake, first, replaced=(source,))


def rejected_in(lake: Lake) -> list[tuple[str, str]]:
    """(unit, rule) of the rows in quarantine, sorted."""
    rows = lake.read("bronze.quarantine").collect()
    return sorted((json.loads(row["row"]).get("unit_id") or "", row["rule"]) for row in rows)


def test_rows_that_a_corrected_load_rejects_otherwise_are_kept_and_equal_ones_are_there_once(
    lake: Lake, tmp_path: Path
) -> None:
    """A file without a good row is read again by every run: quarantine has its rows as often as the file."""
    bad = put(tmp_path / "in" / "bad.csv", HEADER + "a,order,,x,2024-01-02,\n" * 2 + "b,order,,1,2999-01-01,\n")
    loaded(lake, bad)
    twice = [("a", "value_readable"), ("a", "value_readable"), ("b", "known_at_order")]
    assert rejected_in(lake) == twice
    put(tmp_path / "in" / "more.csv", HEADER + "c,order,,1,2024-01-02,\na,order,,x,2024-01-02,\n")
    said: list[str] = []
    grown = load.run(Campaign(CONF, lake), said.append, load=Load("bronze.event", str(bad.parent), "csv"))
    # The third `a` is another file's.
    assert grown.details["rejected"] == {"value_readable": 1} and grown.details["already_quarantined"] == 3
    assert rejected_in(lake) == sorted([*twice, twice[0]])
    assert any("3 rows left out: an earlier run rejected them, too" in line for line in said)
    other = load.run(
        Campaign(CONF, lake), said.append, "other", load=Load("bronze.event", str(bad), "csv", historic=True)
    )
    assert other.details["good"] == 1 and other.details["already_quarantined"] == 2  # `b` is no fault any more
    assert other.details["decided_anew"] == 1 and rejected_in(lake) == sorted([*twice, twice[0]])
    assert any("1 rows of bronze.quarantine, which earlier runs rejected, are accepted now" in line for line in said)


@pytest.mark.slow
def test_rejected_rows_of_a_delta_table_are_in_quarantine_once_whatever_the_night(
    lake: Lake, spark: SparkSession, tmp_path: Path
) -> None:
    folder = str(tmp_path / "visits")

    def add(*units: str) -> None:
        rows = [(unit, "login" if unit else None) for unit in units]
        frame = spark.createDataFrame(rows, "unit_id string, event string")
        frame = frame.selectExpr("nullif(unit_id, '') AS unit_id", "event", "timestamp'2024-01-02' AS occurred_at")
        frame.write.format("delta").mode("append").save(folder)

    add("a", "")
    assert loaded(lake, folder, "delta").details["rejected"] == {"unit_present": 1}
    for night in range(2):  # nothing but a row that is rejected
        add("")
        result = loaded(lake, folder, "delta")
        assert (result.details["good"], result.details["rejected"]) == (0, {"unit_present": 1})
        assert result.details.get("already_quarantined", 0) == night
    add("b")
    result = loaded(lake, folder, "delta")
    assert (result.details["good"], result.details["rejected"]) == (1, {})
    assert result.details["already_quarantined"] == 2 and len(rejected_in(lake)) == 3
    add("")  # equal to the others, and a row of its own
    assert loaded(lake, folder, "delta").details["rejected"] == {"unit_present": 1}
    assert len(rejected_in(lake)) == 4


@pytest.mark.slow
def test_what_goes_with_replaced_is_named_whole_and_what_is_nowhere_is_said(lake: Lake, tmp_path: Path) -> None:
    line = "{},order,,{},2024-01-02,\n".format
    first, other = tmp_path / "first.csv", tmp_path / "other.csv"
    loaded(lake, put(first, HEADER + line("a", 1)))
    loaded(lake, put(other, HEADER + line("z", 9)))
    sources = {row["unit_id"]: row["source"] for row in events_in(lake)}
    put(first, HEADER + line("b", 2))
    typed = f"frist.csv#{sources['a'].partition('#')[2]}"  # the key is right, the name is not
    with pytest.raises(DataError, match=r"bronze\.event has 1 rows of first\.csv#"):
        loaded(lake, first, replace=True, replaced=(typed,))
    assert len(events_in(lake)) == 2
    said: list[str] = []
    both = Load("bronze.event", str(first), "csv", replace=True, replaced=(sources["a"], typed))
    load.run(Campaign(CONF, lake), said.append, load=both)
    assert {row["unit_id"] for row in events_in(lake)} == {"b", "z"}
    (warning,) = [line for line in said if "--replaced" in line]
    assert f"neither bronze.event nor bronze.quarantine has rows of --replaced {typed}" in warning
    bad = put(tmp_path / "bad.csv", HEADER + line("", 1))
    for _ in range(2):  # of a file without a good row, too
        assert loaded(lake, bad, replace=True).details["rejected"] == {"unit_present": 1}
    assert lake.read("bronze.quarantine").count() == 1
    said.clear()
    load.run(Campaign(CONF, lake), said.append, load=both)  # a repetition finds neither, and works
    assert sum("--replaced" in line for line in said) == 2 and len(events_in(lake)) == 2


@pytest.mark.slow
def test_what_was_replayed_goes_with_the_file_that_is_replaced(lake: Lake, tmp_path: Path) -> None:
    line = "{},order,,{},2024-01-02,\n".format
    first, other = tmp_path / "first.csv", tmp_path / "other.csv"
    loaded(lake, put(first, HEADER + line("a", '"1,5"') + line("b", 2)))
    loaded(lake, put(other, HEADER + line("z", '"3,5"')))
    comma = Replay.of("bronze.event", None, ["value=replace(value, ',', '.')"])
    assert replay.run(Campaign(CONF, lake), replay=comma).details["replayed"] == 2
    said: list[str] = []
    load.run(Campaign(CONF, lake), said.append, load=Load("bronze.event", str(first), "csv", replace=True))
    assert "bronze.event: 1 replayed rows of earlier loads removed, older versions have them" in said
    assert sorted(row["unit_id"] for row in events_in(lake)) == ["b", "z"]
    again = replay.run(Campaign(CONF, lake), replay=comma)
    assert (again.details["replayed"], again.details["already_replayed"]) == (1, 1)
    assert sorted((row["unit_id"], row["value"]) for row in events_in(lake)) == [("a", 1.5), ("b", 2.0), ("z", 3.5)]


def test_ids_are_one_thing_and_quoted_line_breaks_end_no_row(lake: Lake, tmp_path: Path) -> None:
    text = (
        HEADER + ' a,order,,1,2024-01-02,\n"b\n",order,"two\nlines",2,2024-01-02,\n\ufeffc\u00a0,order,,3,2024-01-02,\n'
    )
    result = loaded(lake, put(tmp_path / "ids.csv", text + '"d\n",order,,4\n"e\n",order,,x,2024-01-02,\n'))
    rows = {row["unit_id"]: (row["item"], row["value"]) for row in events_in(lake)}
    assert rows == {"a": (None, 1.0), "b": ("two\nlines", 2.0), "c": (None, 3.0)}
    assert result.details["rejected"] == {"row_readable": 1, "value_readable": 1}
    kept = [json.loads(row["row"]) for row in lake.read("bronze.quarantine").collect()]
    assert any('"d' in row.get("__unread", "") for row in kept) and any(row.get("unit_id") == "e\n" for row in kept)
    inch = HEADER + 'f,order,5" disk,1,2024-01-02,\ng,order,x,1,2024-01-02,\nh,order,7" disk,1,2024-01-02,\n'
    assert loaded(lake, put(tmp_path / "inch.csv", inch)).details["good"] == 3
    assert {row["item"] for row in events_in(lake) if row["unit_id"] in "fgh"} == {'5" disk', "x", '7" disk'}


def test_loads_at_once_add_each_row_once(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another load of the same folder, which has one file more, commits after this one has looked."""
    folder = tmp_path / "in"
    put(folder / "1.csv", HEADER + "a,order,,1,2024-01-02,\n,order,,1,2024-01-02,\n")
    real, said = loading.add_arrivals, list[str]()

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(load, "add_arrivals", real)
        put(folder / "2.csv", HEADER + "b,order,,1,2024-01-02,\n")
        loaded(lake, folder, run_id="other")
        return real(*arguments)

    monkeypatch.setattr(load, "add_arrivals", overtaken)
    result = load.run(Campaign(CONF, lake), said.append, load=Load("bronze.event", str(folder), "csv"))
    assert result.details["good"] == 0 and result.details["files_known"] == 2
    assert sorted(row["unit_id"] for row in events_in(lake)) == ["a", "b"]
    assert lake.read("bronze.quarantine").count() == 1
    assert any("another run wrote bronze.quarantine while run load-" in line for line in said)


@pytest.mark.slow
def test_profiles_that_came_too_late_end_features_with_the_remedy(lake: Lake, tmp_path: Path) -> None:
    units = [f"u{i}" for i in range(40)]
    config = Config(
        campaign="shop", source=None, roles=RolesConf("bought", "none", ("age",)), lakehouse=lake.lakehouse,
        leakage=Leakage(randomised=False), labels=Labels(as_of=datetime(2026, 1, 1, tzinfo=UTC)),
    )  # fmt: skip
    levels = [f"{unit},shop,{'mail' if i % 2 else 'none'},2025-01-06,0.5" for i, unit in enumerate(units)]
    outcomes = [f"{unit},shop,bought,1,2025-01-07" for unit in units[:20]]
    ages = [f"{unit},2025-01-01,{20 + i}" for i, unit in enumerate(units)]
    tables = {
        "assignment": ("unit_id,campaign,treatment,assigned_at,propensity", levels),
        "outcome": ("unit_id,campaign,outcome,value,occurred_at", outcomes),
        "profile_shop": ("unit_id,observed_at,age", ages),
    }
    files = {name: put(tmp_path / f"{name}.csv", "\n".join([head, *rows, ""])) for name, (head, rows) in tables.items()}
    for name, file in files.items():
        loaded(lake, file, table=f"bronze.{name}", historic=name == "outcome")
    late = (
        r"40 of 40 units have no profile that was known when they were assigned; 40 units have one in "
        r"bronze\.profile_shop that became known later.*--replace and --historic.*alarms\.without_profile \(0\.5\)"
    )
    for _ in range(2):  # a repetition says it, too
        with pytest.raises(DataError, match=late):
            features.run(Campaign(config, lake))
    loaded(lake, files["profile_shop"], table="bronze.profile_shop", historic=True, replace=True)
    details = features.run(Campaign(config, lake)).details
    assert details["without_profile"] == 0 and details["train"] + details["holdout"] == 40
