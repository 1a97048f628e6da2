"""The user's own tables of events: what arrives each night, under which names, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.load import Load
from uplift_spark.jobs import features, ingest, load, replay
from uplift_spark.jobs.replay import Replay
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult
from uplift_spark.sections.source import EventsSource, EventTable

SENDS = {"customer": "unit_id", "sent": "assigned_at"}
ORDERS = {"customer": "unit_id", "total": "value", "at": "occurred_at"}


def source(folder: Path, **changes: Any) -> EventsSource:
    tables = {
        "assignment": EventTable(
            str(folder / "sends"),
            rename=SENDS,
            where="wave = 2 AND treatment <> 'both'",
            columns={"treatment": "if(treatment = 'none', 'none', 'both')"},
        ),
        "outcome": EventTable(
            str(folder / "orders"), format="csv", rename=ORDERS, columns={"outcome": "'spend'"}, historic=True
        ),
        "profile": EventTable(
            str(folder / "people.csv"),
            rename={"id": "unit_id"},
            columns={"observed_at": "timestamp'2024-01-01'"},
            attributes=("age", "city"),
            historic=True,
        ),
    }
    return EventsSource("events", **{**tables, **changes})


def config(one: EventsSource) -> Config:
    return Config("own", one, RolesConf("spend", "none", ("age", "city")))


def sent(spark: SparkSession, folder: Path, units: range, mode: str = "append") -> None:
    """Units in the second wave of a campaign, and one of the first; with a column that no raw table has."""
    rows = [(i, "mail" if i % 2 else "none", "2024-02-01 10:00:00", 2, f"note {i}") for i in units]
    frame = spark.createDataFrame(
        [*rows, (-1, "mail", "2023-02-01 10:00:00", 1, "")],
        "customer bigint, treatment string, sent string, wave int, note string",
    )
    frame.selectExpr("customer", "treatment", "cast(sent AS timestamp) AS sent", "wave", "note").write.format(
        "delta"
    ).mode(mode).save(str(folder / "sends"))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def shop(spark: SparkSession, tmp_path: Path) -> Path:
    sent(spark, tmp_path, range(40))
    orders = "".join(f"{i},{i}.5,2024-02-0{2 + i % 5}T00:00:00Z,shop\n" for i in range(0, 40, 3))
    put(tmp_path / "orders" / "1.csv", "customer,total,at,channel\n" + orders)
    put(tmp_path / "people.csv", "id,age,city,phone\n" + "".join(f"{i},{20 + i},c{i % 2},0{i}\n" for i in range(50)))
    return tmp_path


def counts(result: JobResult) -> dict[str, int]:
    return dict(result.details["rows"])


@pytest.mark.slow
def test_own_tables_arrive_and_each_night_what_is_new(lake: Lake, spark: SparkSession, shop: Path) -> None:
    campaign, said = Campaign(config(source(shop)), lake), list[str]()
    first = ingest.run(campaign, progress=said.append)
    assert counts(first) == {"profile": 50, "outcome": 14, "assignment": 40} and first.details["rejected"] == {}
    assignment = lake.read("bronze.assignment").toPandas()
    assert set(assignment["campaign"]) == {"own"} and assignment["propensity"].isna().all()
    assert set(assignment["unit_id"]) == {str(i) for i in range(40)}
    assert set(lake.read("bronze.outcome").toPandas()["outcome"]) == {"spend"}
    assert "phone" not in lake.read("bronze.profile_own").columns
    again = ingest.run(campaign)
    assert all(table["skipped"] for table in again.tables.values()) and again.run_id == first.run_id
    assert lake.version("bronze.assignment") == 0
    sent(spark, shop, range(40, 44))
    spark.sql(f"UPDATE delta.`{shop / 'sends'}` SET note = 'changed' WHERE customer < 10")  # no column that is used
    put(
        shop / "orders" / "2.csv",
        "customer,total,at,channel\n41,3,2024-02-03T00:00:00Z,shop\n41,x,2024-02-03T00:00:00Z,\n",
    )
    night = ingest.run(campaign)
    assert (counts(night)["outcome"], counts(night)["assignment"]) == (1, 4)
    assert night.tables["bronze.profile_own"]["skipped"]  # its file is as it was
    assert night.details["rejected"] == {"outcome": {"value_readable": 1}}
    trained = features.run(campaign)
    assert trained.details["labelled"] == 44
    training = lake.read("silver.training_own").toPandas().set_index("unit_id")
    assert (
        training.loc["41", "spend"] == 3.0 and training.loc["3", "spend"] == 3.5 and training.loc["4", "spend"] == 0.0
    )


@pytest.mark.slow
def test_campaigns_that_read_the_same_tables_keep_their_own_rows(lake: Lake, shop: Path) -> None:
    first, second = config(source(shop)), replace(config(source(shop)), campaign="other")
    for one in (first, second):
        assert counts(ingest.run(Campaign(one, lake))) == {"profile": 50, "outcome": 14, "assignment": 40}
    before = lake.read("bronze.outcome").where("campaign = 'own'").toPandas()
    orders = shop / "orders" / "1.csv"
    orders.write_text(orders.read_text().rsplit("\n", 2)[0] + "\n")  # the file is edited: its last line goes
    again = ingest.run(Campaign(second, lake), replace=True)
    assert counts(again) == {"profile": 50, "outcome": 13, "assignment": 40}
    rows = lake.read("bronze.outcome").groupBy("campaign").count().collect()
    assert {row["campaign"]: row["count"] for row in rows} == {"own": 14, "other": 13}
    assert set(before["run_id"]) == {
        row["run_id"] for row in lake.read("bronze.outcome").where("campaign = 'own'").collect()
    }


@pytest.mark.slow
def test_replaced_tables_hold_what_the_source_holds_now(lake: Lake, shop: Path) -> None:
    """Rows of a file that is gone go, and what was replayed goes with the row it came from; other campaigns' stay, and
    what `uplift load` brought."""
    put(
        shop / "orders" / "2.csv",
        'customer,total,at,channel\n2,7,2024-02-03T00:00:00Z,\n4,"1,5",2024-02-03T00:00:00Z,\n',
    )
    mine, other = Campaign(config(source(shop)), lake), Campaign(replace(config(source(shop)), campaign="other"), lake)
    for campaign in (mine, other):
        assert ingest.run(campaign).details["rejected"] == {"outcome": {"value_readable": 1}}
    comma = Replay.of("bronze.outcome", None, ["value=replace(value, ',', '.')"])
    assert replay.run(mine, replay=comma).details["replayed"] == 2
    header = "unit_id,campaign,outcome,value,occurred_at\n"
    put(shop / "late.csv", header + "6,own,spend,3,2024-02-04\n")
    load.run(mine, load=Load("bronze.outcome", str(shop / "late.csv"), "csv", historic=True))
    (shop / "orders" / "1.csv").rename(shop / "gone.csv")
    put(
        shop / "orders" / "2.csv", "customer,total,at,channel\n2,7,2024-02-03T00:00:00Z,\n4,1.5,2024-02-03T00:00:00Z,\n"
    )
    said: list[str] = []
    assert counts(ingest.run(mine, said.append, replace=True)) == {"profile": 50, "outcome": 2, "assignment": 40}
    assert "outcome: bronze.outcome: 1 replayed rows of earlier loads removed, older versions have them" in said

    def outcomes(campaign: str) -> list[tuple[str, float]]:
        rows = lake.read("bronze.outcome").where(f"campaign = '{campaign}'").collect()
        return sorted((row["unit_id"], row["value"]) for row in rows)

    assert outcomes("own") == [("2", 7.0), ("4", 1.5), ("6", 3.0)]
    assert len(outcomes("other")) == 14 + 1 + 1  # of both files, and the row that was replayed
    assert {row["campaign"] for row in lake.read("bronze.quarantine").collect()} == {"other"}
    again = ingest.run(mine)
    assert set(counts(again).values()) == {0} and again.tables == {}
    with pytest.raises(ConfigError, match="leave --run-id out"):
        ingest.run(mine, run_id="mine", replace=True)


@pytest.mark.slow
def test_rows_of_named_runs_are_replaced_too(lake: Lake, shop: Path) -> None:
    campaign = Campaign(config(source(shop)), lake)
    ingest.run(campaign, run_id="monday")
    assert {row["run_id"] for row in lake.read("bronze.outcome").collect()} == {"monday-outcome"}
    (shop / "orders" / "1.csv").unlink()
    put(shop / "orders" / "9.csv", "customer,total,at\n2,7,2024-02-03T00:00:00Z\n")
    assert counts(ingest.run(campaign, replace=True))["outcome"] == 1
    assert lake.read("bronze.outcome").count() == 1


@pytest.mark.slow
def test_rows_of_gone_files_stay_in_a_table_that_campaigns_share_and_are_named(lake: Lake, shop: Path) -> None:
    events = EventTable(
        str(shop / "visits"), format="csv", rename={"customer": "unit_id"}, columns={"event": "'visit'"}, historic=True
    )
    campaign = Campaign(config(source(shop, event=events)), lake)
    put(shop / "visits" / "1.csv", "customer,occurred_at\n1,2024-01-02\n2,2024-01-02\n")
    ingest.run(campaign)
    (shop / "visits" / "1.csv").unlink()
    put(shop / "visits" / "2.csv", "customer,occurred_at\n3,2024-01-02\n")
    said: list[str] = []
    ingest.run(campaign, said.append, replace=True)
    assert sorted(row["unit_id"] for row in lake.read("bronze.event").collect()) == ["1", "2", "3"]
    (warning,) = [line for line in said if "stay in bronze.event" in line]
    assert "2 rows of 1.csv#" in warning and "uplift load bronze.event --replace --replaced 1.csv#" in warning


def test_a_cast_that_fails_is_named_and_nothing_is_written(lake: Lake, shop: Path) -> None:
    put(shop / "orders" / "2.csv", "customer,total,at,channel\n2,much,2024-02-03T00:00:00Z,shop\n")
    good = source(shop)
    computed = replace(
        good.outcome,
        rename={**ORDERS, "total": "paid"},
        columns={"outcome": "'spend'", "value": "CAST(paid AS double)"},
    )
    filtered = replace(good.outcome, where="CAST(value AS double) > 1")
    for table, key in ((computed, "columns.value='CAST"), (filtered, "where='CAST")):
        with pytest.raises(
            ConfigError, match=rf"^source\.outcome\.{key}.* fails on rows .*'much'.* as try_cast\("
        ) as error:
            ingest.run(Campaign(config(source(shop, outcome=table)), lake))
        assert "\n" not in str(error.value) and lake.tables() == []


@pytest.mark.slow
def test_a_column_that_came_later_may_be_renamed(lake: Lake, spark: SparkSession, shop: Path) -> None:
    people = spark.createDataFrame([(1, 30), (2, 40)], "id bigint, age int")
    people.write.format("delta").save(str(shop / "people"))
    table = EventTable(
        str(shop / "people"), rename={"id": "unit_id"}, columns={"observed_at": "timestamp'2024-01-01'"}, historic=True
    )
    first = config(source(shop, profile=replace(table, columns={**table.columns, "city": "CAST(NULL AS string)"})))
    assert counts(ingest.run(Campaign(first, lake)))["profile"] == 2
    more = spark.createDataFrame([(3, 50, "Rome")], "id bigint, age int, town string")
    more.write.format("delta").mode("append").option("mergeSchema", "true").save(str(shop / "people"))
    second = config(source(shop, profile=replace(table, rename={"id": "unit_id", "town": "city"})))
    assert counts(ingest.run(Campaign(second, lake)))["profile"] == 1
    rows = lake.read("bronze.profile_own").collect()
    assert sorted((row["unit_id"], row["age"], row["city"]) for row in rows) == [
        ("1", 30.0, None), ("2", 40.0, None), ("3", 50.0, "Rome"),
    ]  # fmt: skip


def test_a_folder_that_is_read_as_another_format_names_the_key_to_correct(lake: Lake, shop: Path) -> None:
    orders = source(shop).outcome
    for changes, message in (
        ({"format": None}, r"is no Delta table: correct source\.outcome\.path or .*, or source\.outcome\.format if"),
        ({"path": str(shop / "nowhere")}, r"nothing is at .*nowhere: correct source\.outcome\.path"),
        ({"format": "parquet"}, r"does not read as parquet: correct source\.outcome\.format or the file"),
    ):
        with pytest.raises(DataError, match=message) as error:
            ingest.run(Campaign(config(source(shop, outcome=replace(orders, **changes))), lake))
        assert "--" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "changes", "error", "message"),
    [
        (
            "assignment",
            {"rename": {"costumer": "unit_id"}},
            ConfigError,
            r"rename: .* has no column 'costumer', did you",
        ),
        ("assignment", {"where": "wav = 2"}, ConfigError, r"source\.assignment\.where=.*there is no column 'wav'"),
        pytest.param(
            "assignment",
            {"rename": {**SENDS, "note": "Propensity"}},
            ConfigError,
            "raw table's 'propensity'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "profile",
            {"rename": {"id": "unit_id", "phone": "Source"}},
            ConfigError,
            "raw table's 'source': rename",
            marks=pytest.mark.slow,
        ),
        ("outcome", {"columns": {}}, DataError, r"does not have the columns of bronze\.outcome: it lacks outcome"),
        pytest.param(
            "assignment",
            {"rename": {**SENDS, "note": "Unit_Id"}},
            ConfigError,
            "several columns 'unit_id' after renaming",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "profile",
            {"attributes": ("age", "town")},
            ConfigError,
            r"source\.profile\.attributes: .* has no column 'town'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_write(
    lake: Lake, shop: Path, part: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    good = source(shop)
    broken = replace(good, **{part: replace(good.tables[part], **changes)})
    with pytest.raises(error, match=message):
        ingest.run(Campaign(config(broken), lake))
    assert lake.tables() == []


def test_declarations_that_contradict_themselves() -> None:
    with pytest.raises(ConfigError, match="needs one of `path`"):
        EventTable()
    with pytest.raises(ConfigError, match="read as delta: leave out `format: csv`"):
        EventTable(table="main.crm.sends", format="csv")
    with pytest.raises(ConfigError, match="'treatment' is both renamed and computed"):
        EventTable("sends", rename={"treatment": "treatment"}, columns={"treatment": "'mail'"})
    with pytest.raises(ConfigError, match=r"source\.outcome\.attributes: only a profile has attributes"):
        EventsSource("events", EventTable("a"), EventTable("b", attributes=("x",)))
    with pytest.raises(ConfigError, match=r"source\.outcome\.columns\.outcome='nope\(1\)' .* nope is not allowed"):
        EventsSource("events", EventTable("a"), EventTable("b", columns={"outcome": "nope(1)"}))
    formats = {"a.csv": "csv", "a.csv.gz": "csv", "x/b.parquet": "parquet", "folder": "delta", "a.json": "json"}
    assert {path: EventTable(path).read_as for path in formats} == formats
