"""What lies at the source of a load: files told apart by their content, or a Delta table at a version (R1.1).

Each row carries the identity of its file or table version in the column SOURCE, so that the table loaded into knows
itself what it has: a file's rows are added once, whatever it is called and whatever lies beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import DataStreamReader
from pyspark.sql.types import StringType, StructType

from uplift_spark.lake.casts import UNREAD
from uplift_spark.lake.places import absolute, globless
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.sources import sha256
from uplift_spark.vocabulary import DataError

# What rows bring beside their cells: it becomes the column source; when they arrived.
SOURCE, ARRIVED = "__source", "__arrived"
TEXTS = ("csv", "json")

AnyReader = DataFrameReader | DataStreamReader

_KEY = 16  # hexadecimal digits of an identity
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
    """A file with rows. `uri` is what Spark says a row's file is, `key` tells its content."""

    path: str
    uri: str
    key: str

    @property
    def source(self) -> str:
        """What its rows carry in SOURCE."""
        return f"{self.path.rsplit('/', 1)[-1]}#{self.key}"


@dataclass(frozen=True)
class DeltaVersion:
    """A Delta table at its newest version. `reference` is what SQL takes, `key` tells the table wherever it lies.

    feed  whether it keeps a change data feed
    """

    given: str
    reference: str
    version: int
    key: str
    feed: bool = False

    @property
    def source(self) -> str:
        """What its rows carry in SOURCE."""
        return f"{self.given}@{self.version}#{self.key}"


def find_files(spark: SparkSession, path: str, kind: str) -> list[File]:
    """The files at `path`, a file or a folder with all below it, one of each content; empty ones count for nothing.

    The content is told by SHA-256 where this process can read the file, else by path, size and time of modification.
    Raises DataError when there is none, or the folder is a Delta table, whose files may hold rows it has no more.
    """
    there = absolute(path)
    if kind == "parquet" and _is_delta(spark, there):
        raise DataError(f"{there} is a Delta table: use --format delta")
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    changed = F.unix_micros("modificationTime").alias("changed")
    try:
        listed = reader.load(globless(there) if os.path.exists(there) else there)
        told = listed.select("path", "length", changed, F.col("_metadata.file_path").alias("uri"))
        rows = told.where("length > 0").collect()
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
            f"{files[0].path} does not read as {kind}: correct --format or the file ({_said(error)})"
        ) from error


def find_delta(lake: Lake, given: str) -> DeltaVersion:
    """The table or path `given`: `schema.table` of the lakehouse, `catalog.schema.table`, else a folder.

    Raises DataError when it is no Delta table.
    """
    if not _TABLE.fullmatch(given):
        reference = f"delta.`{absolute(given)}`"
    elif given.count(".") == 1:
        reference = lake.reference(given)
    else:
        reference = ".".join(f"`{part}`" for part in given.split("."))
    no_delta = f"{given} is no Delta table: correct --from, or --format if it holds other files"
    try:
        told = lake.spark.sql(f"DESCRIBE DETAIL {reference}").select("id", "properties").collect()[0]
        newest = lake.spark.sql(f"DESCRIBE HISTORY {reference} LIMIT 1").select("version").collect()[0]["version"]
    except AnalysisException as error:
        raise DataError(no_delta) from error
    if told["id"] is None:  # a folder of other files
        raise DataError(no_delta)
    feed = (told["properties"] or {}).get("delta.enableChangeDataFeed") == "true"
    return DeltaVersion(given, reference, int(newest), _digest(told["id"]), feed)


def read_delta(lake: Lake, table: DeltaVersion, before: int | None) -> DataFrame:
    """Rows of the table's version with SOURCE; without the rows it had at version `before`, if one is given.

    Raises DataError when that version is gone.
    """
    rows = _at(lake, table, table.version)
    if before is not None:
        try:
            old = _at(lake, table, before)
            had = set(old.columns)
        except PySparkException as error:
            raise DataError(
                f"{table.given} was loaded at version {before}, which is gone, so its new rows cannot be told: "
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
    """Keys of those files whose rows other runs have added to `table`."""
    if not lake.exists(table):
        return set()
    key = F.regexp_extract("source", f"#([0-9a-f]{{{_KEY}}})$", 1)
    found = _of_others(lake, table, run_id).select(key.alias("key")).distinct()
    return {row["key"] for row in found.where(F.col("key").isin([file.key for file in files])).collect()}


def known_version(lake: Lake, target: str, table: DeltaVersion, run_id: str) -> int | None:
    """The newest version of a Delta table whose rows other runs have added to `target`."""
    if not lake.exists(target):
        return None
    found = _of_others(lake, target, run_id).agg(F.max(version_of(table)).alias("version")).collect()[0]["version"]
    return None if found is None else int(found)


def version_of(table: DeltaVersion) -> Column:
    """The version of `table` that a row's source names; null of rows from elsewhere."""
    return F.regexp_extract("source", f"@([0-9]+)#{table.key}$", 1).try_cast("bigint")


def _of_others(lake: Lake, table: str, run_id: str) -> DataFrame:
    return lake.read(table).where(F.col("run_id") != run_id)


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
    placed = rows.select("*", F.col("_metadata.file_path").alias(_FILE))
    return placed.join(F.broadcast(by_file), _FILE, "left").drop(_FILE)


def _at(lake: Lake, table: DeltaVersion, version: int) -> DataFrame:
    return lake.spark.sql(f"SELECT * FROM {table.reference} VERSION AS OF {version}")


def _said(error: Exception) -> str:
    """The deepest cause that Spark names, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.split(": ", 2)[-1] for line in lines if line.startswith("Caused by: ")]
    return (causes or lines[:1])[-1][:300]
