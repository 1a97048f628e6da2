"""Where tables live: a folder per table under one path (`Folder`), or a catalog (`Catalog`).

`lake.tables.Lake` works through one of the two, which `storage_of` chooses.
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import DataStreamWriter, StreamingQuery
from pyspark.sql.types import StructType

from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.gold_views import GOLD_VIEWS
from uplift_spark.lake.local_tables import LocalTables, NotLocal
from uplift_spark.lake.schemas import gold_table
from uplift_spark.roles import SCHEMAS, checked_name
from uplift_spark.runtime import session_provided
from uplift_spark.spark_versions import arrow_type, delta_package, local_frame, on_this_machine, sql_text

# Versions that a model may name stay readable: VACUUM leaves their files and their log alone.
LOG_RETENTION = "interval 400 days"
PROPERTIES = {
    "delta.enableChangeDataFeed": "true",
    "delta.logRetentionDuration": LOG_RETENTION,
    "delta.deletedFileRetentionDuration": LOG_RETENTION,
}

_MOST_HELD = 256e6  # bytes of rows, of all tables together, that a process keeps

_ABSENT = {
    "DELTA_MISSING_DELTA_TABLE",
    "DELTA_PATH_DOES_NOT_EXIST",
    "DELTA_TABLE_NOT_FOUND",
    "NO_SUCH_TABLE_EXCEPTION",
    "PATH_NOT_FOUND",
    "SCHEMA_NOT_FOUND",
    "TABLE_OR_VIEW_NOT_FOUND",
}
_NO_DELTA = ("DATA_SOURCE_NOT_FOUND", "CATALOG_PLUGIN_CLASS_NOT_FOUND", "UNSUPPORTED_DATASOURCE_FOR_DIRECT_QUERY")


class Storage(Protocol):
    """Storage of tables named `schema.table` (both checked before they come here).

    checkpoints  folder for the states of streams; None where the configuration must name one
    """

    checkpoints: str | None

    def name(self, table: str) -> str:
        """Backquoted name for SQL text."""

    def reference(self, table: str) -> str:
        """What SQL commands such as DESCRIBE HISTORY take, whether or not the table is registered."""

    def load(self, reader: DataFrameReader, table: str) -> DataFrame:
        """The table through a reader that may carry a version."""

    def history(self, table: str, limit: int | None = None) -> list[Commit]:
        """The table's commits that its log still holds, newest first."""

    def properties(self, table: str) -> dict[str, str]:
        """The table's properties."""

    def create(self, table: str, schema: StructType, layout: Layout) -> Mapping[str, str]:
        """Prepare an absent table; returns writer options the first write must carry to finish the creation."""

    def save(self, frame: DataFrame, save: Save) -> None:
        """Write `frame` in one commit."""

    def stream(self, writer: DataStreamWriter, table: str) -> StreamingQuery:
        """Start a stream into an existing table."""

    def tables(self) -> list[str]:
        """Every table, sorted."""

    def exists(self, table: str) -> bool | None:
        """Whether there is such a table; None where only Spark can tell."""

    def holds(self, schema: str, most: float) -> bool:
        """Whether a schema's tables have at most so many bytes, of all versions; False where only Spark can tell."""

    def held(self, table: str, version: int, most: float) -> DataFrame | None:
        """The rows of a version as rows of this process; None where its files have more bytes, or only Spark reads
        them."""

    def register(self, tables: Sequence[str]) -> None:
        """Make `tables` known by name to this session's SQL."""


@dataclass(frozen=True)
class Commit:
    """One version of a table: what made it, what its writer noted (see `Lake.write`), what Delta counted, and when it
    was."""

    version: int
    operation: str
    notes: Mapping[str, Any]
    metrics: Mapping[str, str]
    at: datetime = field(compare=False)


@dataclass(frozen=True)
class Layout:
    """How a new table is laid out. Partitions win over clusters (Delta takes one of the two); files keep the bounds of
    the columns `skip_by`, if any are named; constraints are {name: SQL condition that every row must meet}; rows of an
    `append_only` table are never changed nor deleted."""

    partition_by: tuple[str, ...] = ()
    cluster_by: tuple[str, ...] = ()
    skip_by: tuple[str, ...] = ()
    constraints: Mapping[str, str] = field(default_factory=dict)
    append_only: bool = False

    @property
    def properties(self) -> dict[str, str]:
        """Table properties, constraints aside."""
        skipping = {"delta.dataSkippingStatsColumns": ",".join(self.skip_by)} if self.skip_by else {}
        return {**PROPERTIES, **skipping, **({"delta.appendOnly": "true"} if self.append_only else {})}


@dataclass(frozen=True)
class Save:
    """One write: appended or in place of all rows; `partition_by` takes effect where the table is created."""

    table: str
    mode: Literal["append", "overwrite"]
    options: Mapping[str, str]
    partition_by: tuple[str, ...] = ()


def storage_of(spark: SparkSession, lakehouse: Lakehouse) -> Storage:
    """Choose the storage of a lakehouse: its catalog if it names one, else its folder."""
    if lakehouse.catalog is not None:
        return Catalog(spark, checked_name(lakehouse.catalog, "lakehouse.catalog"))
    return Folder(spark, lakehouse.path)


def frame_or_none(storage: Storage, reader: DataFrameReader, table: str) -> DataFrame | None:
    """Read a table as it is now; None when there is no such table, EnvironmentProblem when the session has no Delta."""
    try:
        frame = storage.load(reader.format("delta"), table)
        frame.schema  # noqa: B018 - over Connect nothing is looked up before this
        return frame
    except Exception as error:  # a missing class reaches Python untyped
        if isinstance(error, AnalysisException) and (error.getCondition() or "").split(".")[0] in _ABSENT:
            return None
        if any(sign in str(error) for sign in _NO_DELTA):
            raise EnvironmentProblem(
                f"this Spark session has no Delta Lake: start it with `--packages {delta_package()}`, or run without "
                "spark-submit"
            ) from error
        raise


def _commit(version: int, operation: str, notes: str | None, metrics: Mapping[str, str] | None, at: datetime) -> Commit:
    try:
        noted = json.loads(notes or "{}")
    except ValueError:  # another writer's own text
        noted = {}
    return Commit(version, operation, noted if isinstance(noted, dict) else {}, metrics or {}, at)


def described_history(spark: SparkSession, reference: str, limit: int | None) -> list[Commit]:
    """Ask Spark for a table's commits, newest first; at most `limit`."""
    newest = "" if limit is None else f" LIMIT {limit}"
    names = ("version", "operation", "userMetadata", "operationMetrics")
    # Put in order here: to select costs Spark no job of its own, to sort does. In microseconds: collected times lose
    # their zone.
    history = spark.sql(f"DESCRIBE HISTORY {reference}{newest}")
    rows = history.select(*names, F.unix_micros("timestamp").alias("micros")).collect()
    commits = (_commit(row[0], row[1], row[2], row[3], _moment(row[4])) for row in rows)
    return sorted(commits, key=lambda commit: -commit.version)


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)


def described_properties(spark: SparkSession, reference: str) -> dict[str, str]:
    """Ask Spark for a table's properties."""
    detail = spark.sql(f"DESCRIBE DETAIL {reference}").select("properties").collect()[0]
    return dict(detail["properties"] or {})


@dataclass(frozen=True)
class _Held:
    """Rows of a version as rows of this process, their size in memory, and the files that they were read from."""

    frame: DataFrame
    bytes: int
    paths: tuple[str, ...]


class Folder:
    """Delta tables in `<path>/<schema>/<table>`; names are entries of the session's own in-memory catalog."""

    def __init__(self, spark: SparkSession, path: str) -> None:
        self._spark = spark
        # Spark resolves a relative path against the server's folder, users against theirs.
        self.path = absolute(path.rstrip("/"))
        self._held: OrderedDict[tuple[object, ...], _Held] = OrderedDict()
        self.checkpoints: str | None = f"{self.path}/_checkpoints"

    def name(self, table: str) -> str:
        return ".".join(f"`{part}`" for part in table.split("."))

    def reference(self, table: str) -> str:
        return f"delta.`{self._location(table).replace('`', '``')}`"

    def load(self, reader: DataFrameReader, table: str) -> DataFrame:
        return reader.load(self._location(table))

    def history(self, table: str, limit: int | None = None) -> list[Commit]:
        # A local session's files are this process's, too: to read the log here takes a millisecond, by Spark a third
        # of a second, and every write looks there.
        log = self._here(self._location(table), "_delta_log")
        if log is None:
            return described_history(self._spark, self.reference(table), limit)
        files = sorted((file for file in log.iterdir() if re.fullmatch(r"\d{20}\.json", file.name)), reverse=True)
        return [_logged(file) for file in islice(files, limit)]

    def properties(self, table: str) -> dict[str, str]:
        if self._here(self._location(table), "_delta_log") is not None:
            try:
                return LocalTables(self.path).table(table).properties
            except (ConfigError, NotLocal):
                pass
        return described_properties(self._spark, self.reference(table))

    def create(self, table: str, schema: StructType, layout: Layout) -> Mapping[str, str]:
        # The first write creates the table in its one commit, so nobody ever sees it half made.
        return {**layout.properties, **{f"delta.constraints.{name}": rule for name, rule in layout.constraints.items()}}

    def save(self, frame: DataFrame, save: Save) -> None:
        """Write `frame` in one commit, creating the table in the same one if there is none."""
        writer = frame.write.format("delta").mode(save.mode).options(**save.options)
        if save.partition_by:
            writer = writer.partitionBy(*save.partition_by)
        writer.save(self._location(save.table))

    def stream(self, writer: DataStreamWriter, table: str) -> StreamingQuery:
        return writer.start(self._location(table))

    def tables(self) -> list[str]:
        # No log here may mean that the path is one of a cluster's file system, and this folder holds reports alone.
        folder = self._here(self.path)
        logs = [] if folder is None else list(folder.glob("*/*/_delta_log/*.json"))
        if logs:
            return sorted({f"{log.parents[2].name}.{log.parents[1].name}" for log in logs})
        pattern = f"{globless(self.path)}/*/*/_delta_log/*.json"
        parts = F.regexp_extract(F.col("path"), r"([^/]+/[^/]+)/_delta_log/[^/]+$", 1)
        try:
            commits = self._spark.read.format("binaryFile").load(pattern).select(parts.alias("table")).collect()
        except AnalysisException as error:
            if error.getCondition() == "PATH_NOT_FOUND":
                return []
            raise
        return sorted({row["table"].replace("/", ".") for row in commits})

    def exists(self, table: str) -> bool | None:
        if not self._local:
            return None
        log = self._here(self._location(table), "_delta_log")
        # A log without a commit may be one that a writer begins, or that Delta has cleaned up to a checkpoint.
        return False if log is None else any(log.glob("*.json")) or None

    def holds(self, schema: str, most: float) -> bool:
        sizes = (file.stat().st_size for file in Path(self.path, schema).glob("**/*.parquet"))
        return self._local and all(total <= most for total in accumulate(sizes, initial=0))  # stops at the first above

    def held(self, table: str, version: int, most: float) -> DataFrame | None:
        # Spark plans every query anew and runs jobs to learn which files a table has; of few rows this takes longer
        # than to read them once. A version never changes, unless a lakehouse is put in the place of another.
        log = self._here(self._location(table), "_delta_log")
        commit = None if log is None else log / f"{version:020}.json"
        if commit is None or not commit.is_file():
            return None
        state = commit.stat()
        key = (table, version, state.st_ino, state.st_mtime_ns)
        known = self._held.pop(key, None)
        if known is None or not all(map(os.path.exists, known.paths)):  # what a purge removed is not read again
            known = self._collected(table, version, most)
        if known is None:
            return None
        self._held[key] = known
        while len(self._held) > 1 and sum(one.bytes for one in self._held.values()) > _MOST_HELD:
            self._held.popitem(last=False)
        return known.frame

    def _collected(self, table: str, version: int, most: float) -> _Held | None:
        try:
            stored = LocalTables(self.path).table(table, version)
            if stored.bytes > most:
                return None
        except NotLocal:
            return None
        kinds = StructType.fromJson(json.loads(stored.schema))
        try:
            rows = stored.read(kinds.fieldNames())
            rows = rows.cast(pa.schema([(field.name, arrow_type(field.dataType)) for field in kinds]))
        except NotLocal:  # nested columns
            rows = self.load(self._spark.read.format("delta").option("versionAsOf", version), table).toArrow()
        except DataError:  # a file is gone, which Spark says when it reads it
            return None
        commented = [F.col(field.name).alias(field.name, metadata=field.metadata) for field in kinds]
        return _Held(local_frame(self._spark, rows).select(*commented), rows.nbytes, stored.paths)

    def register(self, tables: Sequence[str]) -> None:
        for schema in sorted({table.split(".")[0] for table in tables}):
            location = sql_text(f"{self.path}/{schema}")
            self._spark.sql(f"CREATE DATABASE IF NOT EXISTS `{schema}` LOCATION {location}")
            known = self._registered(schema)
            for table in (table for table in tables if table.startswith(f"{schema}.")):
                self._point(table, known.get(table))

    def _point(self, table: str, known: str | None) -> None:
        """Let the name mean this lakehouse's folder; a session may have served another lakehouse before."""
        if known == self._location(table):
            return
        if known is not None:
            self._spark.sql(f"DROP TABLE IF EXISTS {self.name(table)}")  # external: the other lakehouse keeps its files
        location = sql_text(self._location(table))
        self._spark.sql(f"CREATE TABLE IF NOT EXISTS {self.name(table)} USING DELTA LOCATION {location}")

    def _registered(self, schema: str) -> dict[str, str]:
        """{schema.table: folder} as the session's catalog has them."""
        listed = self._spark.sql(f"SHOW TABLE EXTENDED IN `{schema}` LIKE '*'").collect()
        locations = {
            f"{schema}.{row['tableName']}": re.search(r"^Location: (.*)$", row["information"], re.M) for row in listed
        }
        return {table: re.sub(r"^file:(//)?", "", hit.group(1)) if hit else "" for table, hit in locations.items()}

    def _here(self, *parts: str) -> Path | None:
        """The folder, if this process sees it as Spark does: a plain path may be one of a cluster's file system."""
        folder = Path(*parts)
        return folder if self._local and folder.is_dir() else None

    @property
    def _local(self) -> bool:
        # A session of somebody else may take the path for one of another file system, such as HDFS.
        return ":/" not in self.path and on_this_machine(self._spark) and not session_provided()

    def _location(self, table: str) -> str:
        return f"{self.path}/{table.replace('.', '/')}"


def _logged(file: Path) -> Commit:
    """Read one commit of a Delta log: lines of JSON, of which one is `commitInfo` (Delta's protocol, "Delta Log")."""
    with file.open(encoding="utf-8") as lines:
        info: dict[str, Any] = next(
            (json.loads(line)["commitInfo"] for line in lines if '"commitInfo"' in line[:20]), {}
        )
    said = info.get("operation", ""), info.get("userMetadata"), info.get("operationMetrics")
    return _commit(int(file.stem), *said, _moment(info.get("timestamp", file.stat().st_mtime * 1e3) * 1000))


class Catalog:
    """Managed tables `catalog.schema.table`, as on Unity Catalog."""

    def __init__(self, spark: SparkSession, catalog: str) -> None:
        self._spark = spark
        self._catalog = catalog
        self.checkpoints: str | None = None

    def name(self, table: str) -> str:
        return ".".join(f"`{part}`" for part in (self._catalog, *table.split(".")))

    def reference(self, table: str) -> str:
        return self.name(table)

    def load(self, reader: DataFrameReader, table: str) -> DataFrame:
        return reader.table(self.name(table))

    def history(self, table: str, limit: int | None = None) -> list[Commit]:
        return described_history(self._spark, self.reference(table), limit)

    def properties(self, table: str) -> dict[str, str]:
        return described_properties(self._spark, self.reference(table))

    def create(self, table: str, schema: StructType, layout: Layout) -> Mapping[str, str]:
        # A created-as-select commit carries no userMetadata, so an empty table comes first and the write appends.
        self._spark.sql(f"CREATE SCHEMA IF NOT EXISTS `{self._catalog}`.`{table.split('.')[0]}`")
        self._spark.sql(_ddl(self.name(table), schema, layout))
        for constraint, rule in layout.constraints.items():
            self._spark.sql(f"ALTER TABLE {self.name(table)} ADD CONSTRAINT `{constraint}` CHECK ({rule})")
        return {}

    def save(self, frame: DataFrame, save: Save) -> None:
        """Write `frame` in one commit to the table that `create` made.

        Overwriting replaces rows; saveAsTable would replace the table itself, with its clustering and grants.
        """
        writer = frame.writeTo(self.name(save.table)).options(**save.options)
        if save.mode == "overwrite":
            writer.overwrite(F.lit(True))
        else:
            writer.append()

    def stream(self, writer: DataStreamWriter, table: str) -> StreamingQuery:
        return writer.toTable(self.name(table))

    def tables(self) -> list[str]:
        schemas = {row[0] for row in self._spark.sql(f"SHOW SCHEMAS IN `{self._catalog}`").collect()}
        names = []
        for schema in sorted(schemas.intersection(SCHEMAS)):
            rows = self._spark.sql(f"SHOW TABLES IN `{self._catalog}`.`{schema}`").collect()
            names += [f"{schema}.{row['tableName']}" for row in rows if not row["isTemporary"]]
        return sorted(set(names).difference(map(gold_table, GOLD_VIEWS)))

    def exists(self, table: str) -> bool | None:
        return None

    def holds(self, schema: str, most: float) -> bool:
        return False

    def held(self, table: str, version: int, most: float) -> DataFrame | None:
        return None

    def register(self, tables: Sequence[str]) -> None:
        return None  # a catalog knows its tables


def _ddl(name: str, schema: StructType, layout: Layout) -> str:
    columns = ", ".join(
        f"`{column.name}` {column.dataType.simpleString()}"
        + (f" COMMENT {sql_text(column.metadata['comment'])}" if "comment" in column.metadata else "")
        for column in schema
    )
    properties = ", ".join(f"{sql_text(key)} = {sql_text(value)}" for key, value in layout.properties.items())
    clauses = [f"CREATE TABLE IF NOT EXISTS {name} ({columns}) USING DELTA"]
    if layout.partition_by:
        clauses.append(f"PARTITIONED BY ({', '.join(layout.partition_by)})")
    elif layout.cluster_by:
        clauses.append(f"CLUSTER BY ({', '.join(layout.cluster_by)})")
    clauses.append(f"TBLPROPERTIES ({properties})")
    return " ".join(clauses)


def absolute(path: str) -> str:
    """Make a path absolute; one with a scheme such as `s3://...` stays."""
    return path if re.match(r"[A-Za-z][\w+.-]+:", path) else os.path.abspath(path)


def globless(path: str) -> str:
    """Escape a path for Spark's readers, which take brackets and stars for patterns."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path)
