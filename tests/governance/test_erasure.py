"""Units taken out of tables: rows, quarantined rows, append-only tables, and what a purge leaves of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame

from tests.jobs import test_policy
from uplift_spark.config import Config
from uplift_spark.errors import ConflictError, EnvironmentProblem
from uplift_spark.governance import erasure
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.erasure import Erasure, erase_units, purge, run_erasure
from uplift_spark.governance.spark import AuditLog
from uplift_spark.lake.storage import PROPERTIES
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.governance import AuditConf, Governance

CONSENT, QUARANTINE = "bronze.consent", "bronze.quarantine"
ERASED = "unit-to-erase"


def units(lake: Lake, *ids: str) -> DataFrame:
    return lake.spark.createDataFrame([(one,) for one in ids], "unit_id string")


def consents(lake: Lake, run: str, *ids: str) -> None:
    rows = [(one, "marketing", True, "file") for one in ids]
    frame = lake.spark.createDataFrame(rows, "unit_id string, purpose string, granted boolean, source string")
    at = "timestamp'2025-01-01'"
    lake.write(CONSENT, frame.selectExpr("*", f"{at} AS changed_at", f"{at} AS known_at").coalesce(1), run)


def ids(lake: Lake, table: str = CONSENT) -> list[str]:
    return sorted(row["unit_id"] for row in lake.read(table).collect())


def hits(folder: str | Path, text: str = ERASED) -> dict[str, int]:
    """{file: occurrences of `text`} in the raw bytes of every file below, those of Parquet files decompressed, too."""
    counts = {}
    for path in Path(folder).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += repr(pq.ParquetFile(path).read().to_pylist()).encode()
            if count := content.count(text.encode()):
                counts[str(path.relative_to(folder))] = count
    return counts


def a_day_passes(folder: str | Path) -> None:
    """Log files a day older, each by as much: Delta looks at their order, too."""
    for path in Path(folder).rglob("_delta_log/*"):
        written = path.stat().st_mtime_ns - 86_400_000_000_000
        os.utime(path, ns=(written, written))


def test_rows_go_from_an_append_only_table_that_stays_one(lake: Lake) -> None:
    consents(lake, "r1", "a", "b", "a", "c")
    assert erase_units(lake, CONSENT, units(lake, "a", "c", "nobody")) == 3
    assert ids(lake) == ["b"]
    assert lake.properties(CONSENT)["delta.appendOnly"] == "true"
    version = lake.version(CONSENT)
    assert erase_units(lake, CONSENT, units(lake, "a", "c", "nobody")) == 0
    assert lake.version(CONSENT) == version
    # The run again, from a source that still has them: nothing is written; with other rows it is refused as ever.
    consents(lake, "r1", "a", "b", "a", "c")
    assert ids(lake) == ["b"]
    with pytest.raises(ConflictError, match=r"run r1 wrote table bronze\.consent before with other data"):
        consents(lake, "r1", "a", "c", "d")
    consents(lake, "r2", "d")
    assert ids(lake) == ["b", "d"]


@pytest.mark.slow
def test_an_erasure_killed_before_the_lock_was_set_again_is_completed(lake: Lake, monkeypatch) -> None:
    consents(lake, "r1", "a", "b")

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(erasure, "_delete", killed)
        patched.setattr(Lake, "set_properties", lambda lake, table, values: None)
        with pytest.raises(KeyboardInterrupt):
            erase_units(lake, CONSENT, units(lake, "a"))
    lake.spark.sql(f"ALTER TABLE {lake.reference(CONSENT)} SET TBLPROPERTIES ('delta.appendOnly' = 'false')")
    assert erase_units(lake, CONSENT, units(lake, "nobody")) == 0
    assert lake.properties(CONSENT)["delta.appendOnly"] == "true" and ids(lake) == ["a", "b"]
    assert erase_units(lake, CONSENT, units(lake, "a")) == 1


def test_quarantined_rows_go_by_any_value_and_by_cells_of_unread_lines(lake: Lake) -> None:
    rows = {
        "by unit": '{"unit_id":"a","value":null}',
        "by another key": '{"customer":"a"}',
        "a number": '{"unit_id":12}',
        "unread": '{"__unread":"x, a ,\\"late\\""}',
        "a part of a value": '{"unit_id":"ab","note":"a b"}',
        "a key": '{"a":"b"}',
        "a part of a cell": '{"__unread":"ab,ba"}',
        "no JSON": "a",
    }
    frame = lake.spark.createDataFrame(list(rows.items()), "reason string, row string")
    empty = ("source_table", "rule", "source", "campaign")
    lake.write(QUARANTINE, frame.selectExpr("*", *(f"CAST(null AS STRING) AS {name}" for name in empty)), "r1")
    assert erase_units(lake, QUARANTINE, units(lake, "a", "12")) == 4
    left = {row["reason"] for row in lake.read(QUARANTINE).collect()}
    assert left == {"a part of a value", "a key", "a part of a cell", "no JSON"}


def test_tables_without_units_are_left_alone(lake: Lake) -> None:
    lake.write("gold.demo", lake.spark.createDataFrame([("a",)], "name string"), "r1")
    assert erase_units(lake, "gold.demo", units(lake, "a")) == 0
    assert lake.version("gold.demo") == 0


@pytest.mark.slow
def test_no_byte_of_the_id_outlives_a_purge_and_the_one_of_the_next_day(lake: Lake) -> None:
    folder = lake.lakehouse.path
    consents(lake, "r1", "a", "b", "z")
    consents(lake, "r2", "c", ERASED)
    lake.write("gold.demo", units(lake, "a", ERASED, "z").coalesce(1), "r1")
    vectors = f"ALTER TABLE {lake.reference('gold.demo')} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
    lake.spark.sql(vectors)
    before = hits(folder)
    assert {path.split("/")[1] for path in before} == {"consent", "demo"}
    assert any("_delta_log" in path for path in before) and any(path.endswith(".parquet") for path in before)
    for table in (CONSENT, "gold.demo"):
        assert erase_units(lake, table, units(lake, ERASED)) == 1
    assert list(Path(folder).rglob("deletion_vector_*"))
    for table in (CONSENT, "gold.demo"):
        purge(lake, table)
    assert not [path for path in hits(folder) if "_delta_log" not in path]
    assert not list(Path(folder).rglob("deletion_vector_*"))
    a_day_passes(folder)
    for table in (CONSENT, "gold.demo"):
        purge(lake, table)
        assert lake.properties(table).items() >= PROPERTIES.items()
    assert hits(folder) == {}
    assert ids(lake) == ["a", "b", "c", "z"] and ids(lake, "gold.demo") == ["a", "z"]
    consents(lake, "r2", "c")
    assert ids(lake) == ["a", "b", "c", "z"]  # Delta still knows the runs
    consents(lake, "r3", "d")
    assert ids(lake) == ["a", "b", "c", "d", "z"]


def test_an_id_that_holds_what_separates_cells_goes_from_unread_lines_too(lake: Lake) -> None:
    lines = {
        "with a comma": "x,Doe; Jane ,5",
        "with a line break": 'y,"two\nlines",5',
        "another's": "x,Doe;Janet,5",
        "parts of other cells": "y,two,x,lines",
    }
    frame = lake.spark.createDataFrame(list(lines.items()), "reason string, line string")
    empty = ("source_table", "rule", "source", "campaign")
    row = "to_json(struct(line AS __unread)) AS row"
    lake.write(QUARANTINE, frame.selectExpr("reason", row, *(f"CAST(null AS STRING) AS {n}" for n in empty)), "r1")
    assert erase_units(lake, QUARANTINE, units(lake, "Doe, Jane", "two\nlines", "nobody")) == 2
    left = {row["reason"] for row in lake.read(QUARANTINE).collect()}
    assert left == {"another's", "parts of other cells"}


def test_rows_of_an_earlier_release_go_though_blanks_stand_around_the_id(lake: Lake) -> None:
    consents(lake, "r1", " a", "a\n", "a", "a b", "b")
    assert erase_units(lake, CONSENT, units(lake, "a")) == 3
    assert ids(lake) == ["a b", "b"]


@pytest.mark.slow
def test_two_erasures_at_once_both_complete(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one ends, and locks the table, after this one has unlocked it."""
    consents(lake, "r1", "a", "b", "c")
    real = erasure._delete

    def beside(lake: Lake, table: str, held: DataFrame) -> int:
        monkeypatch.setattr(erasure, "_delete", real)
        assert erase_units(lake, CONSENT, units(lake, "b")) == 1
        return real(lake, table, held)

    monkeypatch.setattr(erasure, "_delete", beside)
    assert erase_units(lake, CONSENT, units(lake, "a")) == 1
    assert ids(lake) == ["c"] and lake.properties(CONSENT)["delta.appendOnly"] == "true"


@pytest.mark.slow
def test_an_erasure_is_on_record_before_the_first_row_goes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry before and one after; neither says who was erased, not even to those who guess."""
    config = replace(test_policy.conf(lake), governance=Governance(audit=AuditConf()))
    consents(lake, "r1", "a", "b")
    written, record = list[AuditEvent](), erasure.record_event

    def full(config: Config, lake: Lake, event: AuditEvent) -> None:
        written.append(event)
        raise EnvironmentProblem("no space for checkpoints")

    monkeypatch.setattr(erasure, "record_event", full)
    with pytest.raises(EnvironmentProblem):
        run_erasure(config, lake, Erasure(("a",), reason="a request"))
    assert ids(lake) == ["a", "b"] and [event.action for event in written] == ["erase"]
    monkeypatch.setattr(erasure, "record_event", record)
    first, again = [run_erasure(config, lake, Erasure(("a",), reason="a request")) for _ in range(2)]
    assert ids(lake) == ["b"] and first.details["removed"] == {CONSENT: 1} and again.details["removed"] == "0 rows"
    log = AuditLog(config, lake)
    entries = log.show(10).to_pylist()[::-1]
    assert [entry["action"] for entry in entries] == ["erase", "erased"] * 2 and log.verify().holds
    assert [entry["subject"] for entry in entries[::2]] == [f"units of run {one.run_id}" for one in (first, again)]
    assert len({written[0].subject, *(entry["subject"] for entry in entries)}) == 3  # a new name for the same unit
