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
from uplift_spark.jobs import features, ingest
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult
from uplift_spark.source_conf import EventsSource, EventTable

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
        (
            "assignment",
            {"rename": {**SENDS, "note": "Propensity"}},
            ConfigError,
            "raw table's 'propensity'",
        ),
        (
            "profile",
            {"rename": {"id": "unit_id", "phone": "Source"}},
            ConfigError,
            "raw table's 'source': rename",
        ),
        ("outcome", {"columns": {}}, DataError, r"does not have the columns of bronze\.outcome: it lacks outcome"),
        (
            "assignment",
            {"rename": {**SENDS, "note": "Unit_Id"}},
            ConfigError,
            "several columns 'unit_id' after renaming",
        ),
        (
            "profile",
            {"attributes": ("age", "town")},
            ConfigError,
            r"source\.profile\.attributes: .* has no column 'town'",
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
