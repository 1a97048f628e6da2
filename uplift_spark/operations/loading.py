"""Users' files and tables of raw events on their way to bronze: checked, stamped, each row once (R1.1, R1.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, StringType, StructField, StructType, TimestampType

from uplift_spark.flow.clock import instant, moment
from uplift_spark.lake.casts import UNREAD, fits, numbers_or_text, read_cells
from uplift_spark.lake.checks import FAULTS, INGESTED_AT, entry
from uplift_spark.lake.contracts import RAW_TABLES, Contract, check, contract_of
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.inputs import (
    SOURCE,
    TEXTS,
    find_delta,
    find_files,
    known_files,
    known_version,
    read_delta,
    read_files,
)
from uplift_spark.operations.runs import Say, derive_run_id
from uplift_spark.vocabulary import RUN_ID, ConfigError, DataError, checked_name

FORMATS = ("csv", "parquet", "json", "delta")
QUARANTINE = "bronze.quarantine"

_KNOWN_AT = "known_at"
# Set here, for every row of a run.
_STAMPS = ("source", RUN_ID, INGESTED_AT)
# An absent column means that no row has one. An outcome without its column `value` is a mistake, so that is asked for.
_OPTIONAL = {"bronze.event": ("event_id", "item", "value")}

Parts = list[tuple[str, DataFrame]]  # where the rows come from, for messages; the rows


@dataclass(frozen=True)
class Load:
    """What to load into which raw table.

    source    a file or folder; for the format delta also `schema.table` of the lakehouse or `catalog.schema.table`
    known_at  the source's column that says when a row was known; None: its column known_at, else the arrival
    historic  rows were known when they happened

    Raises ConfigError when the table is no raw one, or the rest makes no sense for it.
    """

    table: str
    source: str
    format: str
    known_at: str | None = None
    historic: bool = False

    def __post_init__(self) -> None:
        contract = contract_of(self.table)
        if contract is None or not contract.append_only:
            raise ConfigError(f"{self.table!r} is no raw table: choose one of {', '.join(RAW_TABLES)}")
        for part in self.table.split("."):
            checked_name(part, f"table {self.table!r}: part")
        if self.format not in FORMATS:
            raise ConfigError(f"--format {self.format!r} is unknown: use one of {', '.join(FORMATS)}")
        if not self.source or re.search(r"[`;\x00-\x1f]", self.source):
            raise ConfigError(f"--from {self.source!r} must be a path or a table, without backquotes and semicolons")
        if self.known_at is not None:
            checked_name(self.known_at, "--known-at")
        if self.known_at is not None and self.historic:
            raise ConfigError("--known-at and --historic contradict each other: give one of the two")
        if (self.known_at is not None or self.historic) and _KNOWN_AT not in contract.columns.fieldNames():
            raise ConfigError(f"rows of {self.table} have no known_at: leave --known-at and --historic out")

    @property
    def contract(self) -> Contract:
        """The contract of the table."""
        found = contract_of(self.table)
        assert found is not None  # since __post_init__
        return found


@dataclass(frozen=True)
class Arrivals:
    """Rows to write: `rejected` first, so that a run that was killed completes when it runs again.

    refused   {rule: rejected rows}
    details   what to tell about the source
    Both frames are None when other runs have added everything there is.
    """

    run_id: str
    good: DataFrame | None
    rejected: DataFrame | None
    refused: dict[str, int]
    details: dict[str, Any]


def arrivals(load: Load, lake: Lake, run_id: str | None, say: Say) -> Arrivals:
    """What a load adds; frames are lazy. Raises a named error before anything is written when the source is unfit."""
    run_id, parts, details = (_of_table if load.format == "delta" else _of_files)(load, lake, run_id)
    say(f"{load.source}: " + ", ".join(f"{name} {n}" for name, n in details.items()))
    if not parts:
        return Arrivals(run_id, None, None, {}, details)
    wanted = _wanted(load, lake, parts)
    text = load.format in TEXTS
    for where, frame in parts:
        _refuse_misfits(load, where, _given(frame), wanted, text)
    arrived = _arrival(lake, load.table, run_id)
    read = [_stamped(load, frame, wanted, arrived) for _, frame in parts]
    rows = _without_known_keys(load, lake, reduce(DataFrame.unionByName, read), run_id)
    good, rejected = check(rows, load.contract)
    rejected = _not_yet_quarantined(load, lake, rejected, run_id)
    refused = {row["rule"]: row["n"] for row in rejected.groupBy("rule").agg(F.count("*").alias("n")).collect()}
    for rule, n in sorted(refused.items()):
        say(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    return Arrivals(run_id, good, rejected if refused else None, refused, details)


def _of_files(load: Load, lake: Lake, run_id: str | None) -> tuple[str, Parts, dict[str, Any]]:
    """(run id, rows, what to tell) of the files that no other run has added."""
    files = find_files(lake.spark, load.source, load.format)
    run = run_id or derive_run_id("load", {"table": load.table}, source=sorted(file.key for file in files))
    known = known_files(lake, load.table, files, run)
    new = [file for file in files if file.key not in known]
    details: dict[str, Any] = {"files": len(files), "files_known": len(known)}
    if not new:
        return run, [], details
    if known and run_id is None:
        run = derive_run_id("load", {"table": load.table}, source=sorted(file.key for file in new))
    return run, read_files(lake.spark, new, load.format), details


def _of_table(load: Load, lake: Lake, run_id: str | None) -> tuple[str, Parts, dict[str, Any]]:
    """(run id, rows, what to tell) of a Delta table's newest version, without the rows of the version added last."""
    table = find_delta(lake, load.source)
    run = run_id or derive_run_id("load", {"table": load.table}, source=[table.key, table.version])
    before = known_version(lake, load.table, table, run)
    details: dict[str, Any] = {"version": table.version}
    if before is not None:
        details["version_known"] = before
    return run, [(load.source, read_delta(lake, table, before))], details


def _wanted(load: Load, lake: Lake, parts: Parts) -> StructType:
    """The columns a source gives, attributes of a profile included: as stored, else by what the rows hold."""
    contract = load.contract
    wanted = StructType([field for field in contract.columns if field.name not in _STAMPS])
    if not contract.open:
        return wanted
    taken = {*contract.columns.fieldNames(), load.known_at}
    if lake.exists(load.table):
        extra = [field for field in lake.read(load.table).schema if field.name not in taken]
        return StructType([*wanted, *(StructField(field.name, field.dataType) for field in extra)])
    found: dict[str, DataType] = {}
    for _, frame in parts:
        given = [field for field in _given(frame) if field.name not in taken]
        for field in given:
            checked_name(field.name, f"column of table {load.table}")
        if load.format in TEXTS:
            kinds = numbers_or_text(frame, [field.name for field in given])
        else:
            kinds = {f.name: f.dataType if isinstance(f.dataType, StringType) else DoubleType() for f in given}
        found.update({name: kind for name, kind in kinds.items() if not isinstance(found.get(name), StringType)})
    return StructType([*wanted, *(StructField(name, kind) for name, kind in found.items())])


def _given(frame: DataFrame) -> StructType:
    return StructType([field for field in frame.schema if field.name not in (SOURCE, UNREAD)])


def _refuse_misfits(load: Load, where: str, given: StructType, wanted: StructType, text: bool) -> None:
    """Raise DataError that spells out how the columns of a source differ from those of the table."""
    renamed = _renamed(load)
    optional = {*_OPTIONAL.get(load.table, ("event_id",)), *(() if load.known_at else (_KNOWN_AT,))}
    have = {field.name: field.dataType for field in given}
    asked = {renamed.get(field.name, field.name): field for field in wanted}
    if load.historic and _KNOWN_AT in have:
        raise ConfigError(f"{where} has a column known_at itself: leave --historic out, or the column")
    missing = [name for name, field in asked.items() if name not in have and field.name not in optional]
    unknown = [name for name in have if name not in asked]
    retyped = [
        f"column {name} is {have[name].simpleString()}, not {field.dataType.simpleString()}"
        for name, field in asked.items()
        if name in have and not fits(have[name], field.dataType, text)
    ]
    wrong = [f"it lacks {', '.join(missing)}"] if missing else []
    wrong += [f"it has unknown {', '.join(unknown)}"] if unknown else []
    if wrong := wrong + retyped:
        raise DataError(
            f"{where} does not have the columns of {load.table}: {'; '.join(wrong)}; rename, add, cast or drop them in "
            f"the source (source, run_id and ingested_at are set by the load)"
        )


def _renamed(load: Load) -> dict[str, str]:
    return {_KNOWN_AT: load.known_at} if load.known_at else {}


def _stamped(load: Load, frame: DataFrame, wanted: StructType, arrived: datetime) -> DataFrame:
    """Rows of one part with all columns of the table but run_id, and what `check` needs beside them."""
    rows = read_cells(frame, wanted, _renamed(load), SOURCE)
    absent = {field.name: F.lit(None).cast(field.dataType) for field in wanted if field.name not in rows.columns}
    if _KNOWN_AT in absent:
        absent[_KNOWN_AT] = _happened(load.contract) if load.historic else instant(arrived)
    return rows.withColumns({**absent, INGESTED_AT: instant(arrived)}).withColumnRenamed(SOURCE, "source")


def _happened(contract: Contract) -> Column:
    """The one time of a row that is not about its being known."""
    times = [field.name for field in contract.columns if isinstance(field.dataType, TimestampType)]
    (happened,) = (name for name in times if name not in (_KNOWN_AT, INGESTED_AT))
    return F.col(happened)


def _arrival(lake: Lake, table: str, run_id: str) -> datetime:
    """When the run first took rows in: a rerun decides by the same time what was known before it happened."""
    for place in (QUARANTINE, table):
        if lake.exists(place):
            mine = lake.read(place).where(F.col(RUN_ID) == run_id)
            first = mine.agg(F.min(F.unix_micros(INGESTED_AT)).alias("first")).collect()[0]["first"]
            if first is not None:
                return moment(first)
    return datetime.now(UTC)


def _without_known_keys(load: Load, lake: Lake, rows: DataFrame, run_id: str) -> DataFrame:
    """Rows whose key other runs have added get a fault: a unit is assigned once per experiment."""
    key: Sequence[str] = load.contract.unique
    if not key or not lake.exists(load.table):
        return rows
    stored = lake.read(load.table).where(F.col(RUN_ID) != run_id).select(*key).distinct()
    fault = F.array(entry("repeated", F.lit(f"{' and '.join(key)} are in {load.table} already")))
    joined = rows.join(stored.withColumn("__known", F.lit(True)), list(key), "left")
    faults = F.when(F.col("__known") & (F.size(FAULTS) == 0), fault).otherwise(F.col(FAULTS))
    return joined.withColumn(FAULTS, faults).select(*rows.columns)


def _not_yet_quarantined(load: Load, lake: Lake, rejected: DataFrame, run_id: str) -> DataFrame:
    """Without rows of files that other runs have rejected rows of: such a run was killed before it added good rows."""
    if not lake.exists(QUARANTINE):
        return rejected
    others = lake.read(QUARANTINE).where((F.col("source_table") == load.table) & (F.col(RUN_ID) != run_id))
    return rejected.join(F.broadcast(others.select("source").distinct()), "source", "left_anti").select(
        *rejected.columns
    )
