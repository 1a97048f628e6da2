"""The source of a load: files, identified by their content, or a Delta table at a version.

Each row carries the identity of its file or table version in the column SOURCE. So the target table itself shows which
files it holds: a file's rows are added once, whatever the file's name and whatever lies beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import DataStreamReader
from pyspark.sql.types import StringType, StructType

from uplift_spark.errors import DataError
from uplift_spark.events.earlier import KEY_DIGITS
from uplift_spark.events.ingest import sha256
from uplift_spark.lake.contracts import UNREAD
from uplift_spark.lake.storage import absolute, globless
from uplift_spark.lake.tables import Lake

# What rows bring beside their cells: it becomes the column source; when they arrived.
SOURCE, ARRIVED = "__source", "__arrived"
TEXTS = ("csv", "json")

AnyReader = DataFrameReader | DataStreamReader

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


@dataclass(frozen=True)
class Settings:
    """What messages call the settings that say where rows lie and how they are read."""

    where: str = "--from"
    format: str = "--format"


def find_files(spark: SparkSession, path: str, kind: str, settings: Settings = Settings()) -> list[File]:
    """The files at `path`, a file or a folder with all below it, one of each content; empty ones count for nothing.

    The content is identified by SHA-256 where this process can read the file, else by path, size and modification time.
    Raises DataError when there is none, or the folder is a Delta table, whose files may hold rows it has no more.
    """
    there = absolute(path)
    if kind == "parquet" and _is_delta(spark, there):
        raise DataError(f"{there} is a Delta table: use {settings.format} delta")
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    changed = F.unix_micros("modificationTime").alias("changed")
    try:
        listed = reader.load(globless(there) if os.path.exists(there) else there)
        metadata = listed.select("path", "length", changed, F.col("_metadata.file_path").alias("uri"))
        rows = metadata.where("length > 0").collect()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        raise DataError(f"nothing is at {there}: correct {settings.where}") from error
    if not rows:
        raise DataError(f"{there} holds no file with rows: correct {settings.where}")
    files = [File(r["path"], r["uri"], _content(r["path"], r["length"], r["changed"])) for r in rows]
    once: dict[str, File] = {}
    for file in sorted(files, key=lambda file: file.path):
        once.setdefault(file.key, file)
    return list(once.values())


def read_files(
    spark: SparkSession, files: Sequence[File], kind: str, setting: str = "--format"
) -> list[tuple[str, DataFrame]]:
    """(a file's path, rows with SOURCE) of each set of files with the same columns; cells of TEXTS are texts.

    Lines that are no row are in a column UNREAD. Raises DataError when the files are not of this kind.
    """
    try:
        return [(part[0].path, _rows(spark, part, kind)) for part in _alike(spark, files, kind)]
    except Exception as error:  # what fails in a worker reaches Python untyped
        raise DataError(
            f"{files[0].path} does not read as {kind}: correct {setting} or the file ({_reason(error)})"
        ) from error


def find_delta(lake: Lake, location: str, settings: Settings = Settings()) -> DeltaVersion:
    """The table or path `location`: `schema.table` of the lakehouse, `catalog.schema.table`, else a folder.

    Raises DataError when it is no Delta table.
    """
    if not _TABLE.fullmatch(location):
        reference = "delta.`" + absolute(location).replace("`", "``") + "`"
    elif location.count(".") == 1:
        reference = lake.reference(location)
    else:
        reference = ".".join(f"`{part}`" for part in location.split("."))
    no_delta = f"{location} is no Delta table: correct {settings.where}, or {settings.format} if it holds other files"
    try:
        detail = lake.spark.sql(f"DESCRIBE DETAIL {reference}").select("id", "properties").collect()[0]
        newest = lake.spark.sql(f"DESCRIBE HISTORY {reference} LIMIT 1").select("version").collect()[0]["version"]
    except AnalysisException as error:
        raise DataError(no_delta) from error
    if detail["id"] is None:  # a folder of other files
        raise DataError(no_delta)
    feed = (detail["properties"] or {}).get("delta.enableChangeDataFeed") == "true"
    return DeltaVersion(location, reference, int(newest), short_digest(detail["id"]), feed)


def read_delta(
    lake: Lake, table: DeltaVersion, before: int | None, shaped: Callable[[DataFrame], DataFrame] = lambda rows: rows
) -> DataFrame:
    """Rows of the table's version with SOURCE; without the rows it had at version `before`, if one is given.

    Versions are compared as `shaped`: rows that differ elsewhere alone are no new ones. A column that the table got
    since is null in the older version. Raises DataError when that version is gone.
    """
    new = _at(lake, table, table.version)
    rows = shaped(new)
    if before is not None:
        try:
            old = _at(lake, table, before)
            had = {name.lower() for name in old.columns}
        except PySparkException as error:
            raise DataError(
                f"{table.location} was loaded at version {before}, which is gone, so nothing shows which rows are new: "
                "load a table or files that hold only these"
            ) from error
        cells = ((f"`{c.name.replace('`', '``')}`", c) for c in new.schema)
        aligned = (F.col(n) if c.name.lower() in had else F.lit(None).cast(c.dataType) for n, c in cells)
        before_rows = old.select(*(one.alias(c.name) for one, c in zip(aligned, new.schema, strict=True)))
        rows = rows.exceptAll(shaped(before_rows))
    return rows.withColumn(SOURCE, F.lit(table.source))


def open_delta(reader: AnyReader, table: DeltaVersion) -> DataFrame:
    """The table through a reader, or a reader of streams, that carries options."""
    path = re.fullmatch(r"delta\.`(.*)`", table.reference)
    return reader.format("delta").load(path.group(1).replace("``", "`")) if path else reader.table(table.reference)


def _is_delta(spark: SparkSession, path: str) -> bool:
    try:
        return bool(spark.read.format("binaryFile").load(f"{globless(path)}/_delta_log/*.json").select("path").head())
    except AnalysisException:
        return False


def _content(path: str, size: int, changed: int) -> str:
    local = Path(re.sub(r"^file:(//)?", "", path))
    try:
        if local.is_file() and local.stat().st_size == size:
            return sha256(local)[:KEY_DIGITS]
    except OSError:
        pass  # another machine's file, as far as this process can tell
    return short_digest(f"{path}|{size}|{changed}")


def short_digest(text: str) -> str:
    """Shorten a text to KEY_DIGITS hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


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
    options = _OPTIONS[kind] | ({"multiLine": "true"} if kind == "csv" and _has_long_cells(spark, paths) else {})
    reader = spark.read.format(kind).options(**options)
    schema = reader.load(paths).schema
    if kind in TEXTS:
        schema = StructType([field for field in schema if field.name != UNREAD]).add(UNREAD, StringType())
        reader = spark.read.format(kind).options(**options).schema(schema)
    rows = reader.load(paths)
    by_file = spark.createDataFrame([(file.uri, file.source) for file in files], f"{_FILE} string, {SOURCE} string")
    with_path = rows.select("*", F.col("_metadata.file_path").alias(_FILE))
    return with_path.join(F.broadcast(by_file), _FILE, "left").drop(_FILE)


def _has_long_cells(spark: SparkSession, paths: Sequence[str]) -> bool:
    """Whether quoted cells hold line breaks: some line, and with it another, has an odd number of quotes.

    Files without are read in parts, which those with them cannot be.
    """
    quotes = F.length("value") - F.length(F.replace(F.col("value"), F.lit('"'), F.lit("")))
    odd = spark.read.text(list(paths)).where(quotes % 2 == 1)
    by_file = odd.groupBy(F.col("_metadata.file_path")).agg(F.count(F.lit(1)).alias("n"))
    return not by_file.where("n % 2 = 0").isEmpty()


def _at(lake: Lake, table: DeltaVersion, version: int) -> DataFrame:
    return lake.spark.sql(f"SELECT * FROM {table.reference} VERSION AS OF {version}")


def _reason(error: Exception) -> str:
    """The deepest cause that Spark names, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.split(": ", 2)[-1] for line in lines if line.startswith("Caused by: ")]
    return (causes or lines[:1])[-1][:300]
