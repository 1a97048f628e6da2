"""Events of a Delta table's change data feed as a stream into a raw table: each row once, whatever is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse, RolesConf, Simulation
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.events.load import Load
from uplift_spark.jobs import load, stream
from uplift_spark.jobs import stream as streaming
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult

pytestmark = pytest.mark.slow

CONF = Config(campaign="shop", source=Simulation(units=1000), roles=RolesConf("conversion", "none", ("age",)))
FEED = {"delta.enableChangeDataFeed": "true"}


@dataclass
class Shop:
    """A Delta table of events and what streams make of it."""

    lake: Lake
    folder: Path

    @property
    def sql_name(self) -> str:
        return f"delta.`{self.folder}`"

    def add(self, *units: str | None, **options: str) -> None:
        """One commit; None is a unit that the contract rejects."""
        rows = [(unit, "login", "2024-01-02T09:30:00Z") for unit in units]
        frame = self.lake.spark.createDataFrame(rows, "unit_id string, event string, occurred_at string")
        frame = frame.withColumn("occurred_at", F.col("occurred_at").cast("timestamp"))
        frame.coalesce(1).write.format("delta").mode("append").options(**(options or FEED)).save(str(self.folder))

    def run(self, **how: Any) -> JobResult:
        return stream.run(Campaign(CONF, self.lake), load=Load("bronze.event", str(self.folder), "delta", **how))

    def units(self) -> list[str]:
        return sorted(row["unit_id"] for row in self.lake.read("bronze.event").select("unit_id").collect())

    def quarantined(self) -> int:
        return self.lake.read("bronze.quarantine").count()

    def state(self, sink: str) -> Path:
        (folder,) = Path(self.lake.lakehouse.path).glob("_checkpoints/bronze.event-*")
        return folder / sink


@pytest.fixture
def shop(lake: Lake, tmp_path: Path) -> Iterator[Shop]:
    yield Shop(lake, tmp_path / "shop")


def test_rounds_of_inserts_are_there_once_and_say_when_and_whence_they_came(shop: Shop) -> None:
    shop.add("a", "b", None)
    first = shop.run()
    assert (first.details["good"], first.details["rejected"]) == (2, {"unit_present": 1})
    shop.add("c", None)
    shop.add("d")
    second = shop.run()
    assert (second.details["good"], second.details["rejected"]) == (2, {"unit_present": 1})
    assert second.run_id != first.run_id
    assert (shop.units(), shop.quarantined()) == (list("abcd"), 2)
    history = shop.lake.spark.sql(f"DESCRIBE HISTORY {shop.sql_name}").select("version", "timestamp").collect()
    came = {row["version"]: row["timestamp"] for row in history}
    for row in shop.lake.read("bronze.event").collect():
        version = {"a": 0, "b": 0, "c": 1, "d": 2}[row["unit_id"]]
        assert row["source"].startswith(f"{shop.folder}@{version}#")
        assert (row["known_at"], row["run_id"]) == (came[version], (first if version == 0 else second).run_id)
        assert row["ingested_at"] > row["known_at"]
    bad = shop.lake.read("bronze.quarantine").where("source LIKE '%@1#%'").collect()[0]
    assert json.loads(bad["row"])["event"] == "login" and bad["source_table"] == "bronze.event"
    third = shop.run()
    assert not any(table["rows"] for table in third.tables.values())
    assert (third.details["good"], third.details["rejected"]) == (0, {})
    assert (shop.units(), shop.quarantined()) == (list("abcd"), 2)
    with pytest.raises(Exception, match="DELTA_CANNOT_MODIFY_APPEND_ONLY"):
        shop.lake.spark.sql(f"DELETE FROM {shop.lake.reference('bronze.event')}")


def test_lost_state_adds_nothing_twice(shop: Shop) -> None:
    shop.add("a", None)
    shop.run()
    known = 1
    # The first: killed after the sinks' commits, before the checkpoints'.
    for lost in ("*/commits/*", "good", "rejected"):
        state = shop.state("")
        for path in state.glob(lost):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shop.add(f"u{known}", None)
        result = shop.run()
        known += 1
        assert (result.details["good"], result.details["rejected"]) == (1, {"unit_present": 1})
        assert (len(shop.units()), len(set(shop.units())), shop.quarantined()) == (known, known, known)


def test_a_run_killed_between_its_sinks_completes(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add("a", None)
    real = Lake.stream

    def killed(self: Lake, table: str, *rest: Any) -> Any:
        if table == "bronze.event":
            raise KeyboardInterrupt
        return real(self, table, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "stream", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.run()
    assert shop.lake.tables() == ["bronze.quarantine"]
    assert (shop.run().details["good"], shop.units(), shop.quarantined()) == (1, ["a"], 1)


def test_deletes_are_ignored_on_record_and_updates_refused_until_a_load(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.add("a", "b")
    shop.run()
    shop.lake.spark.sql(f"DELETE FROM {shop.sql_name} WHERE unit_id = 'a'")
    shop.add("c")
    assert shop.run().details["ignored"] == {"deleted": 1}
    assert shop.units() == list("abc")
    shop.lake.spark.sql(f"UPDATE {shop.sql_name} SET event = 'order' WHERE unit_id = 'b'")
    shop.add("d")
    with pytest.raises(DataError, match=r"1 rows of .* were updated after its version 2, and raw events do not change"):
        shop.run()
    real, calls = streaming._ignored, []

    def late(*how: Any) -> dict[str, int]:
        """Finds nothing at first: the update comes a moment later."""
        calls.append(how)
        return real(*how) if len(calls) > 1 else {}

    with monkeypatch.context() as patched, pytest.raises(DataError, match=r"1 rows of .* were updated"):
        patched.setattr(streaming, "_ignored", late)
        shop.run()
    assert shop.units() == list("abc")
    again = load.run(Campaign(CONF, shop.lake), load=Load("bronze.event", str(shop.folder), "delta"))
    assert again.details["good"] == 2
    shop.add("e")
    assert shop.run().details["good"] == 1
    assert shop.units() == ["a", "b", "b", "c", "d", "e"]
    # What the stream added, a load does not add again.
    assert (
        load.run(Campaign(CONF, shop.lake), load=Load("bronze.event", str(shop.folder), "delta")).details["good"] == 0
    )


def test_unfit_sources_and_tables_are_refused_before_anything_is_written(shop: Shop, spark: SparkSession) -> None:
    shop.add("a", **{"delta.appendOnly": "true"})
    with pytest.raises(DataError, match=r"has no change data feed.*delta\.enableChangeDataFeed"):
        shop.run()
    spark.sql(f"ALTER TABLE {shop.sql_name} SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")
    spark.sql(f"ALTER TABLE {shop.sql_name} ADD COLUMN colour string")
    with pytest.raises(DataError, match="it has unknown colour"):
        shop.run()
    with pytest.raises(ConfigError, match=r"keys of bronze\.assignment are unique.*use `uplift load`"):
        stream.run(Campaign(CONF, shop.lake), load=Load("bronze.assignment", str(shop.folder), "delta"))
    assert shop.lake.tables() == [] and not Path(shop.lake.lakehouse.path).exists()


def test_a_feed_that_begins_after_what_was_loaded_says_so(shop: Shop, spark: SparkSession) -> None:
    shop.add("a", **{"delta.appendOnly": "true"})
    how = Load("bronze.event", str(shop.folder), "delta")
    load.run(Campaign(CONF, shop.lake), load=how)
    shop.add("b", **{"mergeSchema": "false"})
    spark.sql(f"ALTER TABLE {shop.sql_name} SET TBLPROPERTIES (delta.enableChangeDataFeed = true)")
    with pytest.raises(DataError, match="does not tell what came after its version 0: add that with"):
        shop.run()
    load.run(Campaign(CONF, shop.lake), load=how)
    shop.add("c")
    assert (shop.run().details["good"], shop.units()) == (1, list("abc"))


def test_a_catalog_needs_a_folder_for_checkpoints(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"name one under `lakehouse\.checkpoints`"):
        Lake(spark, Lakehouse(catalog="main")).checkpoint("x")
    assert Lake(spark, Lakehouse(catalog="main", checkpoints="/v/")).checkpoint("x") == "/v/x"


def test_two_streams_at_the_same_time_add_each_row_once(shop: Shop) -> None:
    shop.add("a", "b", None)

    def one(_: int) -> JobResult | ConflictError:
        try:
            return shop.run()
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    shop.add("c")
    shop.run()
    assert (shop.units(), shop.quarantined()) == (list("abc"), 1)
