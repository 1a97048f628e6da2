"""Users' own events, from files and Delta tables to a raw table of bronze: the work of `uplift load`.

`find_files` and `find_delta` find the source, `arrivals` gives the rows to write. `uplift stream` and `uplift replay`
use the same checks (`refuse_misfits`, `stamped`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import DataStreamReader
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DoubleType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.ingest import sha256
from uplift_spark.governance.privacy import pseudonymised
from uplift_spark.lake.contracts import (
    ADDED,
    FAULTS,
    INGESTED_AT,
    RAW_ROW,
    UNREAD,
    added_columns,
    content_of,
    count_checked,
    entry,
    fits,
    numbers_or_text,
    old_names,
    read_cells,
    row_hash,
    with_columns,
)
from uplift_spark.lake.schemas import QUARANTINE, RAW_TABLES, Contract, check, contract_of, optional_columns
from uplift_spark.lake.session import instant, moment
from uplift_spark.lake.storage import absolute, globless
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.roles import CAMPAIGN, RUN_ID, checked_name
from uplift_spark.runtime import ProgressCallback, derive_run_id

# --------------------------------------------------------------------------------------------------------------------
# The source of a load: files, identified by their content, or a Delta table at a version.
# Each row carries the identity of its file or table version in the column SOURCE. So the target table itself shows
# which files it holds: a file's rows are added once, whatever the file's name and whatever lies beside it.

# What rows bring beside their cells: it becomes the column source; when they arrived.
SOURCE, ARRIVED = "__source", "__arrived"
TEXTS = ("csv", "json")

AnyReader = DataFrameReader | DataStreamReader

_KEY = 16  # hexadecimal digits of an identity
_KEY_OF_SOURCE = f"regexp_extract(source, '#([0-9a-f]{{{_KEY}}})$', 1)"
_FILE = "__file"
_TABLE = re.compile(r"\w+(\.\w+){1,2}")
_OPTIONS = {
    # With pruned columns Spark does not see that a line has too few or too many cells.
    "csv": {
        **{"header": "true", "escape": '"', "columnPruning": "false"},
        **{"mode": "PERMISSIVE", "columnNameOfCorruptRecord": UNREAD},
    },
    "json": {"primitivesAsString": "true", "mode": "PERMISSIVE", "columnNameOfCorruptRecord": UNREAD},
    "parquet": {"mergeSchema": "true"},
}


@dataclass(frozen=True)
class File:
    """A file with rows. `uri` is the name that Spark gives the file of a row, `key` identifies the content."""

    path: str
    uri: str
    key: str

    @property
    def source(self) -> str:
        """What its rows carry in SOURCE."""
        return f"{self.path.rsplit('/', 1)[-1]}#{self.key}"


@dataclass(frozen=True)
class DeltaVersion:
    """A Delta table at its newest version. `reference` is its name in SQL, `key` identifies it wherever it lies.

    feed  whether it keeps a change data feed
    """

    location: str
    reference: str
    version: int
    key: str
    feed: bool = False

    @property
    def source(self) -> str:
        """What its rows carry in SOURCE."""
        return f"{self.location}@{self.version}#{self.key}"


def find_files(spark: SparkSession, path: str, kind: str) -> list[File]:
    """The files at `path`, a file or a folder with all below it, one of each content; empty ones count for nothing.

    The content is identified by SHA-256 where this process can read the file, else by path, size and modification time.
    Raises DataError when there is none, or the folder is a Delta table, whose files may hold rows it has no more.
    """
    there = absolute(path)
    if kind == "parquet" and _is_delta(spark, there):
        raise DataError(f"{there} is a Delta table: use --format delta")
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    changed = F.unix_micros("modificationTime").alias("changed")
    try:
        listed = reader.load(globless(there) if os.path.exists(there) else there)
        metadata = listed.select("path", "length", changed, F.col("_metadata.file_path").alias("uri"))
        rows = metadata.where("length > 0").collect()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        raise DataError(f"nothing is at {there}: correct --from") from error
    if not rows:
        raise DataError(f"{there} holds no file with rows: correct --from")
    files = [File(r["path"], r["uri"], _content(r["path"], r["length"], r["changed"])) for r in rows]
    once: dict[str, File] = {}
    for file in sorted(files, key=lambda file: file.path):
        once.setdefault(file.key, file)
    return list(once.values())


def read_files(spark: SparkSession, files: Sequence[File], kind: str) -> list[tuple[str, DataFrame]]:
    """(a file's path, rows with SOURCE) of each set of files with the same columns; cells of TEXTS are texts.

    Lines that are no row are in a column UNREAD. Raises DataError when the files are not of this kind.
    """
    try:
        return [(part[0].path, _rows(spark, part, kind)) for part in _alike(spark, files, kind)]
    except Exception as error:  # what fails in a worker reaches Python untyped
        raise DataError(
            f"{files[0].path} does not read as {kind}: correct --format or the file ({_reason(error)})"
        ) from error


def find_delta(lake: Lake, location: str) -> DeltaVersion:
    """The table or path `location`: `schema.table` of the lakehouse, `catalog.schema.table`, else a folder.

    Raises DataError when it is no Delta table.
    """
    if not _TABLE.fullmatch(location):
        reference = "delta.`" + absolute(location).replace("`", "``") + "`"
    elif location.count(".") == 1:
        reference = lake.reference(location)
    else:
        reference = ".".join(f"`{part}`" for part in location.split("."))
    no_delta = f"{location} is no Delta table: correct --from, or --format if it holds other files"
    try:
        detail = lake.spark.sql(f"DESCRIBE DETAIL {reference}").select("id", "properties").collect()[0]
        newest = lake.spark.sql(f"DESCRIBE HISTORY {reference} LIMIT 1").select("version").collect()[0]["version"]
    except AnalysisException as error:
        raise DataError(no_delta) from error
    if detail["id"] is None:  # a folder of other files
        raise DataError(no_delta)
    feed = (detail["properties"] or {}).get("delta.enableChangeDataFeed") == "true"
    return DeltaVersion(location, reference, int(newest), _digest(detail["id"]), feed)


def read_delta(
    lake: Lake, table: DeltaVersion, before: int | None, shaped: Callable[[DataFrame], DataFrame] = lambda rows: rows
) -> DataFrame:
    """Rows of the table's version with SOURCE; without the rows it had at version `before`, if one is given.

    Versions are compared as `shaped`: rows that differ elsewhere alone are no new ones. Raises DataError when that
    version is gone.
    """
    rows = shaped(_at(lake, table, table.version))
    if before is not None:
        try:
            old = shaped(_at(lake, table, before))
            had = set(old.columns)
        except PySparkException as error:
            raise DataError(
                f"{table.location} was loaded at version {before}, which is gone, so nothing shows which rows are new: "
                "load a table or files that hold only these"
            ) from error
        kept = (F.col(c.name) if c.name in had else F.lit(None).cast(c.dataType).alias(c.name) for c in rows.schema)
        rows = rows.exceptAll(old.select(*kept))
    return rows.withColumn(SOURCE, F.lit(table.source))


def open_delta(reader: AnyReader, table: DeltaVersion) -> DataFrame:
    """The table through a reader, or a reader of streams, that carries options."""
    path = re.fullmatch(r"delta\.`(.*)`", table.reference)
    return reader.format("delta").load(path.group(1).replace("``", "`")) if path else reader.table(table.reference)


def known_files(lake: Lake, table: str, files: Sequence[File], run_id: str) -> set[str]:
    """Find the keys of those files whose rows other runs have added to `table`."""
    if not lake.exists(table):
        return set()
    keys = _of_others(lake, table, run_id).select(F.expr(_KEY_OF_SOURCE).alias("key")).distinct()
    return {row["key"] for row in keys.where(F.col("key").isin([file.key for file in files])).collect()}


def known_version(lake: Lake, target: str, table: DeltaVersion, run_id: str) -> int | None:
    """Find the newest version of a Delta table whose rows other runs have added to `target`."""
    if not lake.exists(target):
        return None
    version = _of_others(lake, target, run_id).agg(F.max(version_of(table)).alias("version")).collect()[0]["version"]
    return None if version is None else int(version)


def version_of(table: DeltaVersion) -> Column:
    """The version of `table` that a row's source names; null of rows from elsewhere."""
    return F.regexp_extract("source", f"@([0-9]+)#{table.key}$", 1).try_cast("bigint")


def _of_others(lake: Lake, table: str, run_id: str, replaced: Collection[str] = ()) -> DataFrame:
    """Rows of other runs, but for those of sources that are replaced."""
    rows = lake.read(table).where(F.col("run_id") != run_id)
    return rows.where(~F.expr(_KEY_OF_SOURCE).isin(*replaced)) if replaced else rows


def _is_delta(spark: SparkSession, path: str) -> bool:
    try:
        return bool(spark.read.format("binaryFile").load(f"{globless(path)}/_delta_log/*.json").select("path").head())
    except AnalysisException:
        return False


def _content(path: str, size: int, changed: int) -> str:
    local = Path(re.sub(r"^file:(//)?", "", path))
    try:
        if local.is_file() and local.stat().st_size == size:
            return sha256(local)[:_KEY]
    except OSError:
        pass  # another machine's file, as far as this process can tell
    return _digest(f"{path}|{size}|{changed}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def _alike(spark: SparkSession, files: Sequence[File], kind: str) -> list[list[File]]:
    """Files by their columns. Spark takes the first file's header for all files, and reads by position."""
    if kind != "csv":
        return [list(files)]
    groups: dict[tuple[str, ...], list[File]] = {}
    for file in files:
        header = spark.read.format(kind).options(**_OPTIONS[kind]).load(globless(file.path)).columns
        groups.setdefault(tuple(header), []).append(file)
    return list(groups.values())


def _rows(spark: SparkSession, files: Sequence[File], kind: str) -> DataFrame:
    paths = [globless(file.path) for file in files]
    reader = spark.read.format(kind).options(**_OPTIONS[kind])
    schema = reader.load(paths).schema
    if kind in TEXTS:
        schema = StructType([field for field in schema if field.name != UNREAD]).add(UNREAD, StringType())
        reader = spark.read.format(kind).options(**_OPTIONS[kind]).schema(schema)
    rows = reader.load(paths)
    by_file = spark.createDataFrame([(file.uri, file.source) for file in files], f"{_FILE} string, {SOURCE} string")
    with_path = rows.select("*", F.col("_metadata.file_path").alias(_FILE))
    return with_path.join(F.broadcast(by_file), _FILE, "left").drop(_FILE)


def _at(lake: Lake, table: DeltaVersion, version: int) -> DataFrame:
    return lake.spark.sql(f"SELECT * FROM {table.reference} VERSION AS OF {version}")


def _reason(error: Exception) -> str:
    """The deepest cause that Spark names, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.split(": ", 2)[-1] for line in lines if line.startswith("Caused by: ")]
    return (causes or lines[:1])[-1][:300]


# --------------------------------------------------------------------------------------------------------------------
# One load: rows are checked, stamped with their source and times, and each is added once.

LOAD_FORMATS = ("csv", "parquet", "json", "delta")

_KNOWN_AT = "known_at"
# Set here, for every row of a run.
_STAMPS = ("source", RUN_ID, INGESTED_AT)

# The rule that a row breaks if the table has it: it is left out, not rejected.
ALREADY = "already_there"
_LEFT_OUT = {"equal_rows": "the source has an equal row", ALREADY: "the table has an equal row"}

Parts = list[tuple[str, DataFrame]]  # where the rows come from, for messages; the rows


class SourceShape(Protocol):
    """How rows of a source become rows of a raw table; see `events.event_source`."""

    @property
    def identity(self) -> Any:
        """What it does, as values that a run's id can depend on."""
        ...

    @property
    def owner(self) -> str | None:
        """The campaign that the rows are of; None where campaigns share them."""
        ...

    def apply(self, rows: DataFrame) -> DataFrame:
        """The rows with the table's columns; SOURCE and UNREAD stay. Raises ConfigError for a missing column."""
        ...


@dataclass(frozen=True)
class Load:
    """What to load into which raw table.

    source    a file or folder; for the format delta also `schema.table` of the lakehouse or `catalog.schema.table`
    known_at  the source's column that says when a row was known; None: its column known_at, else the arrival
    historic  rows were known when they happened
    new_columns  columns of the source that the table gets if it has them not; rows need not have them
    replace   rows that earlier loads of the same files, or of the same Delta table, brought go first
    shape     how the source's columns become those of the table; as they are by default
    replaced  so do rows of these sources, as the table's column `source` names them: files that were edited since

    Raises ConfigError when the table is no raw one, or the rest makes no sense for it.
    """

    table: str
    source: str
    format: str
    known_at: str | None = None
    historic: bool = False
    new_columns: tuple[str, ...] = ()
    replace: bool = False
    replaced: tuple[str, ...] = ()
    shape: SourceShape | None = None

    def __post_init__(self) -> None:
        contract = contract_of(self.table)
        if contract is None or not contract.append_only:
            raise ConfigError(f"{self.table!r} is no raw table: choose one of {', '.join(RAW_TABLES)}")
        for part in self.table.split("."):
            checked_name(part, f"table {self.table!r}: part")
        if self.format not in LOAD_FORMATS:
            raise ConfigError(f"--format {self.format!r} is unknown: use one of {', '.join(LOAD_FORMATS)}")
        if not self.source or re.search(r"[`;\x00-\x1f]", self.source):
            raise ConfigError(f"--from {self.source!r} must be a path or a table, without backquotes and semicolons")
        if self.known_at is not None:
            checked_name(self.known_at, "--known-at")
        if self.known_at is not None and self.historic:
            raise ConfigError("--known-at and --historic contradict each other: give one of the two")
        if (self.known_at is not None or self.historic) and _KNOWN_AT not in contract.columns.fieldNames():
            raise ConfigError(f"rows of {self.table} have no known_at: leave --known-at and --historic out")
        if self.replaced and (not self.replace or self.format == "delta"):
            raise ConfigError("--replaced needs --replace and files: a Delta table is known by its id")
        for source in self.replaced:
            if not re.fullmatch(f".*#[0-9a-f]{{{_KEY}}}", source):
                raise ConfigError(f"--replaced {source!r} must be as the column source has it: NAME#KEY")
        taken = {name.lower() for name in (*contract.columns.fieldNames(), self.known_at or "")}
        for name in self.new_columns:
            # Delta and the checks here keep names that begin with an underscore for themselves.
            if checked_name(name, "--new-column").startswith("_") or name.lower() in taken:
                raise ConfigError(f"--new-column {name!r} is taken: choose a name that {self.table} has not")

    @property
    def params(self) -> dict[str, Any]:
        """What the id of a run depends on beside the source's content."""
        return {"table": self.table, **({"shape": self.shape.identity} if self.shape else {})}

    def own_key(self, key: str) -> str:
        """Identity of a source's rows in the table: campaigns that read one source each have rows of their own."""
        owner = self.shape.owner if self.shape else None
        return key if owner is None else _digest(f"{key}|{owner}")

    def shaped(self, rows: DataFrame) -> DataFrame:
        """Rows of the source with the columns of the table."""
        return self.shape.apply(rows) if self.shape else rows

    @property
    def contract(self) -> Contract:
        """The contract of the table."""
        contract = contract_of(self.table)
        assert contract is not None  # since __post_init__
        return contract


@dataclass(frozen=True)
class Arrivals:
    """Rows to write: `rejected` first, so that a run that was killed completes when it runs again.

    refused   {rule: rejected rows}
    details   of the source, for the job's result
    A frame without rows is None.
    """

    run_id: str
    good: DataFrame | None
    rejected: DataFrame | None
    refused: dict[str, int]
    details: dict[str, Any]
    replaced: tuple[str, ...] = ()

    def make_room(self, lake: Lake, table: str, progress: ProgressCallback) -> None:
        """Delete the rows that earlier loads of the sources brought, if they are replaced; older versions have them."""
        if not self.replaced:
            return
        keys = ", ".join(f"'{key}'" for key in self.replaced)
        mine = f"{_KEY_OF_SOURCE} IN ({keys})"
        for name, condition in ((table, mine), (QUARANTINE, f"{mine} AND source_table = '{table}'")):
            if lake.exists(name) and (gone := lake.delete_rows(name, condition)):
                progress(f"{name}: {gone:,} rows of earlier loads removed, older versions have them")


def arrivals(
    load: Load, lake: Lake, run_id: str | None, progress: ProgressCallback, key: bytes | None = None
) -> Arrivals:
    """Find the rows that a load adds, with pseudonyms for ids if there is a `key`; frames are lazy.

    Raises a named error before anything is written when the source is unfit.
    """
    if load.replace and run_id is not None:
        raise ConfigError("--replace makes a run of its own: leave --run-id out")
    find = _to_replace if load.replace else _of_table if load.format == "delta" else _of_files
    run_id, parts, details = find(load, lake, run_id)
    replaced = tuple(details.pop("keys", ()))
    progress(f"{load.source}: " + ", ".join(f"{name} {n}" for name, n in details.items()))
    if not parts:
        return Arrivals(run_id, None, None, {}, details)
    wanted = wanted_columns(load, lake, parts)
    for where, frame in parts:
        refuse_misfits(load, where, frame, wanted)
        tell_old_names(load, where, frame, progress)
    arrived = instant(_arrival(lake, load.table, run_id))
    read = [stamped(load, frame.withColumn(ARRIVED, arrived), wanted, arrived) for _, frame in parts]
    rows = pseudonymised(reduce(DataFrame.unionByName, read), key, RAW_ROW, UNREAD)
    rows, contract = with_known_keys(load, lake, rows, run_id, replaced), with_columns(load.contract, wanted)
    counts = count_checked(rows, contract)
    good, rejected = check(rows, contract, counts)
    rejected = rejected.where(F.col("rule") != ALREADY)
    refused = {rule: n for rule, n in counts.rejected.items() if rule != ALREADY}
    if refused and not replaced and lake.exists(QUARANTINE):
        rejected = _not_yet_quarantined(load, lake, rejected, run_id)
        refused = count_by_rule(rejected)
    for rule, n in refused.items():
        progress(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    for what, n in (("equal_rows", counts.copies), (ALREADY, counts.rejected.get(ALREADY, 0))):
        if n:
            details[what] = n
            progress(f"{n:,} rows left out: {_LEFT_OUT[what]}")
    return Arrivals(run_id, good if counts.good else None, rejected if refused else None, refused, details, replaced)


def add_arrivals(load: Load, lake: Lake, new: Arrivals, progress: ProgressCallback) -> tuple[list[Written], int]:
    """Write what `arrivals` gave; (what was written, how many rows the table got by this run)."""
    new.make_room(lake, load.table, progress)
    written = []
    if new.rejected is not None:
        written.append(lake.write(QUARANTINE, new.rejected, new.run_id))
    if new.good is None:  # a commit without rows would make a new version of the table, of which nothing is new
        progress(f"{load.table}: no row is added")
        return written, 0
    added = lake.write(load.table, new.good, new.run_id, new_columns=load.new_columns)
    # A commit tells the rows it added; those of an earlier one are counted, for units may have been erased since.
    good = lake.read(load.table).where(F.col(RUN_ID) == new.run_id).count() if added.skipped else added.rows
    return [*written, added], good


def count_by_rule(rejected: DataFrame) -> dict[str, int]:
    """{rule: rows}, sorted, of rows in the shape of bronze.quarantine."""
    counts = {row["rule"]: row["n"] for row in rejected.groupBy("rule").agg(F.count("*").alias("n")).collect()}
    return dict(sorted(counts.items()))


def _of_files(load: Load, lake: Lake, run_id: str | None) -> tuple[str, Parts, dict[str, Any]]:
    """(run id, rows, what to tell) of the files that no other run has added."""
    files = _own_files(load, lake)
    run = run_id or derive_run_id("load", load.params, source=sorted(file.key for file in files))
    known = known_files(lake, load.table, files, run)
    new = [file for file in files if file.key not in known]
    details: dict[str, Any] = {"files": len(files), "files_known": len(known)}
    if not new:
        return run, [], details
    if known and run_id is None:
        run = derive_run_id("load", load.params, source=sorted(file.key for file in new))
    return run, _shaped_files(load, lake, new), details


def _own_files(load: Load, lake: Lake) -> list[File]:
    return [replace(file, key=load.own_key(file.key)) for file in find_files(lake.spark, load.source, load.format)]


def _own_table(load: Load, lake: Lake) -> DeltaVersion:
    table = find_delta(lake, load.source)
    return replace(table, key=load.own_key(table.key))


def _shaped_files(load: Load, lake: Lake, files: Sequence[File]) -> Parts:
    return [(where, load.shaped(rows)) for where, rows in read_files(lake.spark, files, load.format)]


def _to_replace(load: Load, lake: Lake, run_id: str | None) -> tuple[str, Parts, dict[str, Any]]:
    """As `_of_files` and `_of_table`, but of all rows, with the `keys` of the sources whose earlier rows are to go.

    The run's id depends on the table's version: what was replaced once can be replaced again.
    """
    version = lake.version(load.table) if lake.exists(load.table) else -1
    if load.format == "delta":
        table = _own_table(load, lake)
        rows = read_delta(lake, table, None, load.shaped)
        parts, keys, details = [(load.source, rows)], [table.key], {"version": table.version}
    else:
        files = _own_files(load, lake)
        keys = sorted({*(file.key for file in files), *(source.rpartition("#")[2] for source in load.replaced)})
        if version >= 0:
            keys = sorted({*keys, *_edited_files(load, lake, files, keys)})
        parts, details = _shaped_files(load, lake, files), {"files": len(files)}
    run = derive_run_id("load", {**load.params, "replaces": version}, source=keys)
    return run, parts, {**details, "keys": keys}


def _edited_files(load: Load, lake: Lake, files: Sequence[File], keys: Collection[str]) -> list[str]:
    """Find the keys of rows that a campaign has from files of these names, when their content was another.

    Raises DataError when the table belongs to no campaign and has such rows: they may be the rows to go, or those of
    another day's file.
    """
    names = {file.path.rsplit("/", 1)[-1] for file in files}
    name = F.regexp_extract("source", f"^(.*)#[0-9a-f]{{{_KEY}}}$", 1)
    rows = lake.read(load.table).where(name.isin(*names) & ~F.expr(_KEY_OF_SOURCE).isin(*keys))
    owner = load.shape.owner if load.shape else None
    if owner is not None and CAMPAIGN in rows.columns:
        rows = rows.where(F.col(CAMPAIGN) == owner)
    others = rows.groupBy("source").agg(F.count(F.lit(1)).alias("n")).orderBy("source").collect()
    if others and owner is None:
        some = ", ".join(f"{row['n']:,} rows of {row['source']}" for row in others[:5])
        more = f" and of {len(others) - 5} other files" if len(others) > 5 else ""
        raise DataError(
            f"{load.table} has {some}{more}, which had the name but not the content of a file of {load.source}: name "
            f"those to go with `uplift load --replaced {others[0]['source']}` (repeatable), or rename the new file"
        )
    return [row["source"].rpartition("#")[2] for row in others]


def _of_table(load: Load, lake: Lake, run_id: str | None) -> tuple[str, Parts, dict[str, Any]]:
    """(run id, rows, what to tell) of a Delta table's newest version, without the rows of the version added last."""
    table = _own_table(load, lake)
    run = run_id or derive_run_id("load", load.params, source=[table.key, table.version])
    before = known_version(lake, load.table, table, run)
    details: dict[str, Any] = {"version": table.version}
    if before is not None:
        details["version_known"] = before
    return run, [(load.source, read_delta(lake, table, before, load.shaped))], details


def wanted_columns(load: Load, lake: Lake, parts: Parts) -> StructType:
    """The columns a source gives, a profile's attributes and new columns included: as stored, else by the rows."""
    contract = load.contract
    wanted = StructType([field for field in contract.columns if field.name not in _STAMPS])
    taken = {*contract.columns.fieldNames(), load.known_at}
    stored = lake.read(load.table).schema if lake.exists(load.table) else None
    if stored is not None:
        more = stored if contract.open else added_columns(stored)
        extra = [field for field in more if field.name not in taken]
        wanted = StructType([*wanted, *extra])
        taken |= set(stored.fieldNames())
    requested = [name for name in load.new_columns if name not in taken]
    inferred = _inferred_types(load, parts, None if contract.open and stored is None else requested, taken)
    optional = {"comment": ADDED}
    more = [StructField(n, kind, metadata=optional if n in requested else {}) for n, kind in inferred.items()]
    # What no part has is required, and so refused as lacking.
    return StructType([*wanted, *more, *(StructField(n, StringType()) for n in requested if n not in inferred)])


def _inferred_types(
    load: Load, parts: Parts, names: Sequence[str] | None, taken: Collection[str | None]
) -> dict[str, DataType]:
    """{name: type} of the parts' columns beyond `taken`, or of those in `names`."""
    types: dict[str, DataType] = {}
    for _, frame in parts:
        fields = [f for f in _source_schema(frame) if f.name not in taken and (names is None or f.name in names)]
        for field in fields:
            if checked_name(field.name, f"column of table {load.table}").startswith("_"):
                raise DataError(
                    f"column {field.name} of {load.source} begins with an underscore, as columns of the checks do: "
                    "rename or drop it in the source"
                )
        if load.format in TEXTS:
            kinds = numbers_or_text(frame, [field.name for field in fields])
        else:
            kinds = {field.name: _kept(field.dataType, load.contract.open) for field in fields}
        types.update({name: kind for name, kind in kinds.items() if not isinstance(types.get(name), StringType)})
    return types


def _kept(have: DataType, open_: bool) -> DataType:
    """The type in which a column of the source's own choice is kept; what does not fit it is refused later."""
    if isinstance(have, StringType) or (isinstance(have, BooleanType | TimestampType) and not open_):
        return have
    return TimestampType() if isinstance(have, TimestampNTZType) and not open_ else DoubleType()


def _source_schema(frame: DataFrame) -> StructType:
    return StructType([field for field in frame.schema if field.name not in (SOURCE, ARRIVED, UNREAD)])


def refuse_misfits(load: Load, where: str, frame: DataFrame, wanted: StructType) -> None:
    """Raise DataError that spells out how the columns of a source differ from those of the table."""
    renamed = _renamed(load, frame)
    added = [field.name for field in added_columns(wanted)]
    optional = {*optional_columns(load.table), *(() if load.known_at else (_KNOWN_AT,)), *added}
    have = {field.name: field.dataType for field in _source_schema(frame)}
    required = {renamed.get(field.name, field.name): field for field in wanted}
    if load.historic and _KNOWN_AT in have:
        raise ConfigError(f"{where} has a column known_at itself: leave --historic out, or the column")
    missing = [name for name, field in required.items() if name not in have and field.name not in optional]
    unknown = [name for name in have if name not in required]
    retyped = [
        f"column {name} is {have[name].simpleString()}, not {field.dataType.simpleString()}"
        for name, field in required.items()
        if name in have and not fits(have[name], field.dataType, load.format in TEXTS)
    ]
    wrong = [f"it lacks {', '.join(missing)}"] if missing else []
    wrong += [f"it has unknown {', '.join(unknown)}"] if unknown else []
    if wrong := wrong + retyped:
        flag = "; `uplift load` with --new-column NAME adds a column to the table" if unknown else ""
        raise DataError(
            f"{where} does not have the columns of {load.table}: {'; '.join(wrong)}; rename, add, cast or drop them in "
            f"the source (source, run_id and ingested_at are set by the load){flag}"
        )


def tell_old_names(load: Load, where: str, frame: DataFrame, progress: ProgressCallback) -> None:
    """Warn of columns that have the name of the last release; this version still loads them."""
    for new, old in old_names(load.contract, frame.columns).items():
        progress(f"warning: {where} has a column {old}, which is called {new} now: rename it before the next version")


def _renamed(load: Load, frame: DataFrame) -> dict[str, str]:
    """{the table's column: the source's name of it} where the two differ."""
    return {**old_names(load.contract, frame.columns), **({_KNOWN_AT: load.known_at} if load.known_at else {})}


def stamped(load: Load, frame: DataFrame, wanted: StructType, taken_in: Column) -> DataFrame:
    """Cast rows to the columns of the table, all but run_id, and add the columns that `check` needs beside them.

    frame  the source's columns, SOURCE, and ARRIVED: when a row was known that does not say so itself
    """
    rows = read_cells(frame, wanted, _renamed(load, frame), SOURCE, ARRIVED)
    absent = {field.name: F.lit(None).cast(field.dataType) for field in wanted if field.name not in rows.columns}
    if _KNOWN_AT in absent:
        absent[_KNOWN_AT] = _happened(load.contract) if load.historic else F.col(ARRIVED)
    return rows.withColumns({**absent, INGESTED_AT: taken_in}).drop(ARRIVED).withColumnRenamed(SOURCE, "source")


def _happened(contract: Contract) -> Column:
    """The one time of a row that is not about its being known."""
    times = [field.name for field in contract.columns if isinstance(field.dataType, TimestampType)]
    (happened,) = (name for name in times if name not in (_KNOWN_AT, INGESTED_AT))
    return F.col(happened)


def _arrival(lake: Lake, table: str, run_id: str) -> datetime:
    """When the run first took rows in: a rerun decides by the same time what was known before it happened."""
    for sink in (QUARANTINE, table):
        if lake.exists(sink):
            mine = lake.read(sink).where(F.col(RUN_ID) == run_id)
            first = mine.agg(F.min(F.unix_micros(INGESTED_AT)).alias("first")).collect()[0]["first"]
            if first is not None:
                return moment(first)
    return datetime.now(UTC)


def with_known_keys(load: Load, lake: Lake, rows: DataFrame, run_id: str, replaced: Collection[str] = ()) -> DataFrame:
    """Give rows a fault whose key other runs have added: ALREADY if the table has an equal row, else `repeated`.

    A unit is assigned once per campaign, and a source that is exported whole every night brings it every night.
    """
    key: Sequence[str] = load.contract.unique
    if not key or not lake.exists(load.table):
        return rows
    content = [name for name in content_of(rows.columns) if name not in (FAULTS, RAW_ROW)]
    stored = _of_others(lake, load.table, run_id, replaced)
    absent = {name: F.lit(None).cast(rows.schema[name].dataType) for name in content if name not in stored.columns}
    stored = stored.withColumns(absent).groupBy(*key).agg(F.collect_set(row_hash(content)).alias("__known"))
    differs = entry("repeated", F.lit(f"{' and '.join(key)} are in {load.table} already, with other values"))
    equal = entry(ALREADY, F.lit(f"{load.table} has an equal row"))
    fault = F.when(F.array_contains("__known", row_hash(content)), equal).otherwise(differs)
    joined = rows.join(stored, list(key), "left")
    faults = F.when(F.col("__known").isNotNull() & (F.size(FAULTS) == 0), F.array(fault)).otherwise(F.col(FAULTS))
    return joined.withColumn(FAULTS, faults).select(*rows.columns)


def _not_yet_quarantined(load: Load, lake: Lake, rejected: DataFrame, run_id: str) -> DataFrame:
    """Without rows of files that other runs have rejected rows of: such a run was killed before it added good rows."""
    others = lake.read(QUARANTINE).where((F.col("source_table") == load.table) & (F.col(RUN_ID) != run_id))
    return rejected.join(F.broadcast(others.select("source").distinct()), "source", "left_anti").select(
        *rejected.columns
    )
