"""The lakehouse (`Lake`): named Delta tables, and writes that happen exactly once per run.

`digest` is an exact fingerprint of a frame's rows, by which a repeated write is recognised.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import numpy as np
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError, ConflictError, DataError, OvertakenError
from uplift_spark.lake.contracts import ADDED, Contract, added_columns, conform, current, old_names, with_columns
from uplift_spark.lake.schemas import OTHER_NAMES, columns_to_fill, contract_of
from uplift_spark.lake.session import planned_for_few_rows
from uplift_spark.lake.storage import Commit, Layout, Save, frame_or_none, storage_of
from uplift_spark.roles import CAMPAIGN, RUN_ID, checked_name
from uplift_spark.spark_versions import few_rows, sql_text

# --------------------------------------------------------------------------------------------------------------------
# Fingerprints of frames: the same rows in any order have the same digest.

Digest = tuple[int, ...]

_LOW_HALF = 0xFFFFFFFF


def digest(frame: DataFrame, columns: Iterable[str]) -> Digest:
    """Fingerprint the rows of `frame` over `columns`, in one Spark job.

    Returns the number of rows, and for each of two seeds the sums of both halves of a 64-bit hash of each row.

    Sums see duplicates and not order. Nulls, NaN and nested values count; -0.0 equals 0.0. Up to 2^31 rows.
    """
    cells = [_cell(F.col(name), frame.schema[name].dataType) for name in sorted(columns)]
    hashes = [F.xxhash64(F.lit(seed), *cells) for seed in (1, 2)]
    halves = [half for code in hashes for half in (code.bitwiseAND(F.lit(_LOW_HALF)), F.shiftrightunsigned(code, 32))]
    sums = [F.coalesce(F.sum(half), F.lit(0)).alias(f"h{number}") for number, half in enumerate(halves)]
    row = frame.agg(F.count(F.lit(1)).alias("rows"), *sums).first()
    return tuple(int(value) for value in row) if row is not None else (0,)


def _cell(value: Column, kind: DataType) -> Column:
    # xxhash64 skips nulls, so (null, 1) and (1, null) would collide without the flag.
    return F.struct(value.isNull().alias("absent"), _hashable(value, kind).alias("value"))


def _hashable(value: Column, kind: DataType) -> Column:
    """`value` in a form that xxhash64 takes and that tells [[1], [2]] from [[1, 2]] and knows no order of map keys."""
    if isinstance(kind, MapType):
        return _list(F.array_sort(F.map_entries(value)), _entry(kind))
    if isinstance(kind, ArrayType):
        return _list(value, kind.elementType)
    if isinstance(kind, StructType):
        return F.struct(*(_cell(value[field.name], field.dataType).alias(field.name) for field in kind))
    return value


def _list(values: Column, kind: DataType) -> Column:
    return F.struct(F.size(values).alias("size"), F.transform(values, lambda value: _cell(value, kind)).alias("items"))


def _entry(kind: MapType) -> StructType:
    return StructType().add("key", kind.keyType).add("value", kind.valueType)


# --------------------------------------------------------------------------------------------------------------------
# Tables and writes.

Mode = Literal["append", "overwrite"]
T = TypeVar("T")

# Columns that say when, by what code and at which version of a table a row was made, not what it says: a rerun may
# differ in them. A table gets new versions without new rows, as when its files are merged.
CLOCKS = ("ingested_at", "scored_at", "code_version", "source_version")

APPEND_ONLY = "delta.appendOnly"
ERASED = "uplift.erased"  # property of a table: its version when rows of people last went from it for good
ATTEMPTS = 6
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")  # texts in a query
_RECENT = 20  # commits looked at before the whole history is
_SMALL = 1_000_000  # bytes of the files of a table that this process reads at once, however many raw events there are
_CLAIM = "claim"  # key in a commit's notes

_LOST_RACE = re.compile(
    r"DELTA_CONCURRENT|DELTA_METADATA_CHANGED|DELTA_PROTOCOL_CHANGED|DELTA_TABLE_ALREADY_EXISTS"
    r"|Concurrent\w+Exception|MetadataChangedException|ProtocolChangedException|TABLE_OR_VIEW_ALREADY_EXISTS"
    r"|CONCURRENT_STREAM_LOG_UPDATE|CONCURRENT_QUERY"
)
_LOCKED_AGAIN = "DELTA_CANNOT_MODIFY_APPEND_ONLY"  # by another one who deletes; lost only to who unlocks the table


@dataclass(frozen=True)
class Written:
    """What a write did: the Delta version that holds the run's rows, and the rows this call added (0 when skipped)."""

    table: str
    version: int
    rows: int
    skipped: bool


@dataclass(frozen=True)
class Claim:
    """What a run read of a table before it decided what to add; see `Lake.claim`.

    name    of the writers that must not decide at once, such as all ingests of one campaign
    number  larger than those of all commits under this name that there were, equal for all who saw the same ones
    """

    name: str
    number: int


@dataclass(frozen=True)
class _Write:
    """One call of `Lake.write`; `token` tells its commit from those of other calls with the same run id."""

    table: str
    run_id: str
    mode: Mode = "append"
    partition_by: tuple[str, ...] = ()
    new_columns: tuple[str, ...] = ()
    claim: Claim | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def options(self) -> dict[str, str]:
        # Delta adds no second commit of a name with this number or a smaller one.
        name, number = (self.run_id, 1) if self.claim is None else (f"claim:{self.claim.name}", self.claim.number)
        options = {"txnAppId": f"{self.table}:{name}", "txnVersion": str(number), "userMetadata": self.metadata()}
        if self.new_columns:
            options["mergeSchema"] = "true"
        return {**options, "overwriteSchema": "true"} if self.mode == "overwrite" else options

    def metadata(self) -> str:
        """Metadata of the commit as JSON: run id, token, added columns, name of the claim."""
        added: dict[str, object] = {"new_columns": self.new_columns} if self.new_columns else {}
        claimed = {} if self.claim is None else {_CLAIM: self.claim.name}
        return json.dumps({"run_id": self.run_id, "write": self.token, **added, **claimed})


@dataclass(frozen=True)
class Optimized:
    """Result of `Lake.optimize`: files and their bytes, each before and after, and whether anything was rewritten."""

    table: str
    version: int
    files: tuple[int, int]
    bytes: tuple[int, int]
    rewritten: bool


class Lake:
    """The tables of one lakehouse, named `schema.table`; on a catalog `catalog.schema.table`."""

    def __init__(self, spark: SparkSession, lakehouse: Lakehouse) -> None:
        self.spark = spark
        self.lakehouse = lakehouse
        self._storage = storage_of(spark, lakehouse)
        self._unlocked: set[str] = set()
        self._has_delta = False

    def name(self, table: str) -> str:
        """Backquoted name for SQL text. Raises ConfigError unless `table` is two plain names and a dot."""
        return self._storage.name(_checked(table))

    def reference(self, table: str) -> str:
        """What SQL commands such as DESCRIBE DETAIL take, registered or not. Raises ConfigError like `name`."""
        return self._storage.reference(_checked(table))

    def exists(self, table: str) -> bool:
        there = self._there(table)
        return self._frame(table) is not None if there is None else there

    def tables(self) -> list[str]:
        """Every table of the lakehouse as `schema.table`, sorted."""
        return self._storage.tables()

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """Read the table as it is now, or at a Delta version, with the column names of this release.

        Where rows are few (`planned`), and where the table is small, this process reads them at once and keeps them.
        Raises DataError when there is no such table or version.
        """
        held = self._held(table, version)
        if held is not None:
            return current(held, contract_of(table))
        if version is None:
            newest = self._frame(table)
            if newest is None:
                raise DataError(self._absent(table))
            return current(newest, contract_of(table))
        if not self.exists(table):
            raise DataError(self._absent(table))
        reader = self.spark.read.format("delta").option("versionAsOf", version)
        try:
            frame = self._storage.load(reader, table)
            frame.schema  # noqa: B018 - over Connect nothing is looked up before this
        except AnalysisException as error:
            raise DataError(
                f"table {table} has no version {version} to read; its newest is {self.version(table)}: choose one "
                f"that `DESCRIBE HISTORY {table}` lists"
            ) from error
        return current(frame, contract_of(table))

    def filled(self, table: str, rows: Iterable[Mapping[str, Any]]) -> DataFrame:
        """Rows of a declared table as its writer fills them, see `schemas.columns_to_fill`: {column: value} each.

        A column that a row lacks, and a figure that is not finite, is null. Figures have ten digits: the order in which
        workers' sums are added does not show in them, so that a repeated run has equal rows.
        """
        schema = columns_to_fill(table)
        cells = [tuple(_to_fill(row.get(name)) for name in schema.fieldNames()) for row in rows]
        return self.spark.createDataFrame(cells, schema)

    def version(self, table: str) -> int:
        """Newest Delta version. Raises DataError when the table does not exist."""
        if not self.exists(table):
            raise DataError(self._absent(table))
        return self.history(table, 1)[0].version

    @contextmanager
    def planned(self, coming: float = 0.0) -> Iterator[bool]:
        """Within the body queries are planned for the size of the data; whether for few rows.

        Rows are few where the raw events and `coming` bytes more of them have at most `lakehouse.few_mb`; where the
        session does not run on this machine, nothing changes.
        """
        most = self.lakehouse.few_mb * 1e6
        few = most > 0 and self._storage.holds("bronze", most - coming)
        with planned_for_few_rows(self.spark) if few else nullcontext():
            yield few

    def history(self, table: str, limit: int | None = None) -> list[Commit]:
        """The commits of a table that its log still holds, newest first; at most `limit`."""
        return self._storage.history(_checked(table), limit)

    def properties(self, table: str) -> dict[str, str]:
        """The table's properties."""
        return self._storage.properties(_checked(table))

    def set_properties(self, table: str, values: Mapping[str, str]) -> None:
        """Set properties of a table. Raises ConflictError when other writers won every race."""
        pairs = ", ".join(f"'{key}' = '{value}'" for key, value in values.items())
        statement = f"ALTER TABLE {self.reference(table)} SET TBLPROPERTIES ({pairs})"
        retried(lambda: self.spark.sql(statement), table, "a change of its properties")

    @contextmanager
    def unlocked(self, table: str) -> Iterator[None]:
        """Within the body rows of a raw table may be deleted, and the table be overwritten; afterwards it is
        append-only again, also if the body fails."""
        contract = contract_of(table)
        if contract is None or not contract.append_only:
            yield
            return
        self.set_properties(table, {APPEND_ONLY: "false"})
        self._unlocked.add(table)
        try:
            yield
        finally:
            self._unlocked.discard(table)
            self.set_properties(table, {APPEND_ONLY: "true"})

    def delete_runs(self, table: str, runs: Sequence[str], campaign: str) -> int:
        """Delete the rows that runs of a campaign wrote from the newest version, of raw tables, too; older versions
        keep them. Returns how many there were."""
        texts = ", ".join(map(sql_text, runs))
        condition = f"{RUN_ID} IN ({texts})"
        rows = self.read(table).where(condition)
        if CAMPAIGN in rows.columns:
            stored = old_names(contract_of(table), (self._schema(table) or StructType()).fieldNames())
            condition += f" AND {stored.get(CAMPAIGN, CAMPAIGN)} = '{checked_name(campaign)}'"
            rows = rows.where(F.col(CAMPAIGN) == campaign)
        return self._delete(table, condition, rows.count())

    def delete_rows(self, table: str, condition: str) -> int:
        """Delete the rows for which the SQL `condition` holds, as `delete_runs` does. Returns how many there were."""
        n = self.read(table).where(condition).count()
        stored = (self._schema(table) or StructType()).fieldNames()
        for new, old in old_names(contract_of(table), stored).items():
            condition = _renamed_in(condition, new, old)
        return self._delete(table, condition, n)

    def delete_matching(self, table: str, values: DataFrame) -> int:
        """Delete the rows whose value of a column is among `values`, which have this column alone; no value becomes
        part of a plan or of a commit. Returns how many there were."""
        (column,) = values.columns
        if self.read(table).join(values, column, "left_semi").isEmpty():
            return 0
        with self.unlocked(table):
            merge = f"MERGE INTO {self.reference(table)} AS t USING {{values}} AS s ON t.{column} = s.{column}"
            statement = f"{merge} WHEN MATCHED THEN DELETE"
            rows = retried(
                lambda: self.spark.sql(statement, values=values).collect(), table, "a deletion", self._unlock(table)
            )
        return int(rows[0]["num_deleted_rows"])

    def _delete(self, table: str, condition: str, n: int) -> int:
        if n:
            with self.unlocked(table):
                statement = f"DELETE FROM {self.reference(table)} WHERE {condition}"
                retried(lambda: self.spark.sql(statement).collect(), table, "a deletion", self._unlock(table))
        return n

    def _unlock(self, table: str) -> Callable[[], None] | None:
        """What lets rows of a raw table be deleted though another one, who has done so, has locked it meanwhile."""
        contract = contract_of(table)
        if contract is None or not contract.append_only:
            return None
        return lambda: self.set_properties(table, {APPEND_ONLY: "false"})

    def sql(self, query: str) -> DataFrame:
        """Run a query in which every table of the lakehouse is known by its name.

        A column that a table has under its name of another release is found, too, with a FutureWarning.
        """
        self._storage.register(self.tables())
        settled: set[str] = set()
        while True:
            try:
                frame = self.spark.sql(query)
                frame.schema  # noqa: B018 - over Connect nothing is looked up before this
                return frame
            except AnalysisException as error:
                column = _unknown_column(error)
                if column not in OTHER_NAMES or column in settled:
                    raise
            settled |= {column, OTHER_NAMES[column]}
            query = _with_other_name(query, column)

    def write(
        self,
        table: str,
        frame: DataFrame,
        run_id: str,
        *,
        mode: Mode = "append",
        partition_by: Sequence[str] = (),
        new_columns: Sequence[str] = (),
        claim: Claim | None = None,
    ) -> Written:
        """Write `frame` in one commit, exactly once per (run, table), however often and by whomever it is repeated.

        Sets the column run_id, and ingested_at where the contract has it. A repeated run with equal rows (but for
        CLOCKS and units erased since, in any order) is skipped. `mode` overwrite replaces rows and schema; older
        versions stay readable. The table gets those `new_columns` of the frame it has not, in the same commit; rows
        without them have nulls. With a `claim` nothing is written when another run has written under its name since it
        was made.

        Raises ConflictError when the run wrote other rows before, or other writers won every race; OvertakenError when
        another run was first with the claim; DataError when the frame does not fit the table or breaks one of its
        constraints, or would overwrite raw events.
        """
        contract = contract_of(table)
        if mode == "overwrite" and contract is not None and contract.append_only and table not in self._unlocked:
            raise DataError(f"table {table} holds raw events and cannot be overwritten: append rows under a new run id")
        stored = self._schema(table)
        new = tuple(name for name in new_columns if stored is None or name not in stored.fieldNames())
        frame = self._fitted(table, frame, run_id, stored, new)
        as_stored = frame
        if stored is not None and mode == "append":
            as_stored = _with_stored_names(table, frame, stored)
            new += tuple(name for name in _later(contract) if name not in stored.fieldNames())
            _same_columns(table, as_stored.schema, [*stored, *(frame.schema[name] for name in new)])
        call = _Write(table, run_id, mode, tuple(partition_by), new, claim)
        if claim is None or stored is None or not self._has_written(table, run_id):
            self._commit(call, as_stored, new=stored is None)
            mine = self._commit_of(table, "write", call.token)
            if mine is not None:
                return Written(table, *mine, skipped=False)
        if claim is not None and not self._has_written(table, run_id):
            raise OvertakenError(
                f"another run wrote {table} while run {run_id} read what was there, so this one added nothing to it: "
                "run it again"
            )
        return self._repeated(call, frame)

    def claim(self, table: str, name: str) -> Claim:
        """Claim to be the next who writes `table` under `name`; what the run reads afterwards decides what it writes.

        Of runs that claim at the same time the first to commit wins, and `write` refuses the others, whatever process
        or machine they are in: Delta compares the number with that of the last commit under this name. It is taken
        from the versions of those commits, or of the oldest that the log still has, so it grows with each of them.
        """
        if not self.exists(table):
            return Claim(name, 1)
        for limit in (_RECENT, None):
            commits = self.history(table, limit)
            last = next((commit.version for commit in commits if commit.notes.get(_CLAIM) == name), None)
            if last is not None:
                return Claim(name, last + 2)
        return Claim(name, commits[-1].version + 1)

    def take_over(self, table: str, name: str) -> None:
        """Have the writes fail of all who claimed `table` under `name` before; a commit without rows."""
        rows = self.read(table).drop(RUN_ID).limit(0)

        def overtake() -> Written:
            return self.write(table, rows, f"takes-over-{uuid.uuid4().hex}", claim=self.claim(table, name))

        for _ in range(ATTEMPTS - 1):
            try:
                overtake()
                return
            except OvertakenError:
                continue
        overtake()

    def runs_of(self, table: str, name: str) -> set[str]:
        """Find the runs that wrote a table under the name of a claim, as far back as its history goes."""
        commits = self.history(table) if self.exists(table) else []
        return {str(commit.notes.get("run_id")) for commit in commits if commit.notes.get(_CLAIM) == name}

    def _has_written(self, table: str, run_id: str) -> bool:
        commits = self.history(table)
        if any(commit.notes.get("run_id") == run_id for commit in commits):
            return True
        # A log that was cleaned may have lost the commit.
        return commits[-1].version > 0 and not self.read(table).where(F.col(RUN_ID) == run_id).isEmpty()

    def stream(self, table: str, frame: DataFrame, run_id: str, checkpoint: str) -> Written:
        """Append the rows that a streaming frame has now; each of its batches once per checkpoint, whoever repeats it.

        Delta notes the stream and its batch in the batch's own commit, so this needs no Python on Spark's side.
        Raises ConflictError when other streams with this checkpoint win every race; DataError like `write`.
        """
        stored = self._schema(table)
        frame = self._fitted(table, frame, run_id, stored)
        if stored is None:  # a stream would make it without its contract's constraints
            self.write(table, self.spark.createDataFrame([], frame.schema), run_id)
        else:
            frame = _with_stored_names(table, frame, stored)
            _same_columns(table, frame.schema, stored)
        call = _Write(table, run_id)
        writer = frame.writeStream.format("delta").option("userMetadata", call.metadata())
        writer = writer.option("checkpointLocation", checkpoint).trigger(availableNow=True)
        retried(lambda: self._storage.stream(writer, table).awaitTermination(), table, f"run {run_id}")
        commits = self.history(table)
        mine = [commit for commit in commits if commit.notes.get("write") == call.token]
        rows = sum(int(commit.metrics.get("numOutputRows", 0)) for commit in mine)
        return Written(table, (mine or commits)[0].version, rows, skipped=False)

    def checkpoint(self, name: str) -> str:
        """Folder in which the stream `name` keeps how far it is. Raises ConfigError when a catalog has no place."""
        root = self.lakehouse.checkpoints or self._storage.checkpoints
        if root is None:
            raise ConfigError(
                f"streams need a folder to keep how far they are, which catalog {self.lakehouse.catalog} is not: name "
                "one under `lakehouse.checkpoints`"
            )
        return f"{root.rstrip('/')}/{name}"

    def optimize(self, table: str, run_id: str) -> Optimized:
        """Merge small files and order rows by the contract's `cluster_by`; no row changes, older versions stay.

        Safe beside writers: a lost race is tried again. Nothing is done right after another such commit.
        Raises DataError when the table does not exist, ConflictError when other writers won every race.
        """
        stored = self._schema(table)
        if stored is None:
            raise DataError(self._absent(table))
        before, removed = self._detail(table), 0
        if self.history(table, 1)[0].operation != "OPTIMIZE":
            # A table with liquid clusters knows its columns; any other takes their names each time.
            contract = contract_of(table)
            order = () if contract is None or before["clusteringColumns"] else contract.cluster_by
            stored_names = old_names(contract, stored.fieldNames())
            order = tuple(stored_names.get(name, name) for name in order if name not in before["partitionColumns"])
            by = f" ZORDER BY ({', '.join(order)})" if order else ""
            query = f"OPTIMIZE {self._storage.reference(table)}{by}"
            metrics = retried(lambda: self.spark.sql(query).select("metrics.*").collect(), table, f"run {run_id}")
            removed = metrics[0]["numFilesRemoved"]
        after = self._detail(table)
        files, sizes = ((before[of], after[of]) for of in ("numFiles", "sizeInBytes"))
        return Optimized(table, self.version(table), files, sizes, rewritten=removed > 0)

    def _detail(self, table: str) -> Row:
        names = ("numFiles", "sizeInBytes", "clusteringColumns", "partitionColumns")
        return self.spark.sql(f"DESCRIBE DETAIL {self._storage.reference(table)}").select(*names).collect()[0]

    def _fitted(
        self, table: str, frame: DataFrame, run_id: str, stored: StructType | None, new: Sequence[str] = ()
    ) -> DataFrame:
        if not run_id or not isinstance(run_id, str):
            raise ConfigError(f"run id {run_id!r} for table {table} must be a text that is not empty")
        for column in frame.columns:
            checked_name(column, f"column of table {table}")
        frame = frame.withColumn(RUN_ID, F.lit(run_id))
        for name in new:
            comment = f"{ADDED}{run_id} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            frame = frame.withMetadata(name, {"comment": comment})
        added = added_columns(stored)
        absent = {f.name: F.lit(None).cast(f.dataType) for f in added if f.name not in frame.columns}
        frame = frame.withColumns(absent) if absent else frame
        contract = contract_of(table)
        if contract is None:
            return frame
        return conform(frame, with_columns(contract, [*added, *(frame.schema[name] for name in new)]))

    def _commit(self, call: _Write, frame: DataFrame, new: bool) -> None:
        created = self._create(call, frame.schema) if new else {}
        partition_by = call.partition_by if new or call.mode == "overwrite" else ()
        save = Save(call.table, call.mode, {**call.options(), **created}, partition_by)
        unlock = self._unlock(call.table) if call.table in self._unlocked else None
        retried(lambda: self._storage.save(frame, save), call.table, f"run {call.run_id}", unlock)

    def _create(self, call: _Write, schema: StructType) -> Mapping[str, str]:
        contract = contract_of(call.table)
        if contract is None:
            layout = Layout(call.partition_by)
        else:
            keep = (contract.cluster_by, contract.skip_by, contract.constraints, contract.append_only)
            layout = Layout(call.partition_by, *keep)
        return self._storage.create(call.table, schema, layout)

    def _repeated(self, call: _Write, frame: DataFrame) -> Written:
        """The run wrote this table before: the same rows, or a conflict."""
        commit = self._commit_of(call.table, "run_id", call.run_id)
        overwrites = call.mode == "overwrite"
        if commit is None and overwrites:
            raise ConflictError(
                f"run {call.run_id} overwrote table {call.table} before, in a version its history no longer holds: "
                "choose a new --run-id"
            )
        version = self.version(call.table) if commit is None else commit[0]
        stored = self.read(call.table, version if overwrites else None).where(F.col(RUN_ID) == call.run_id)
        columns = [name for name in stored.columns if name not in (*CLOCKS, RUN_ID, *_later(contract_of(call.table)))]
        again = _cast_like(frame, stored.schema)
        before, now = digest(stored, columns), digest(again, columns)
        if before != now and ERASED in self.properties(call.table) and not overwrites:
            # Units were erased since; what is left must be among what the run would write.
            before = now if stored.select(columns).exceptAll(again.select(columns)).isEmpty() else before
        if before != now or set(frame.columns) != set(stored.columns):
            raise ConflictError(
                f"run {call.run_id} wrote table {call.table} before with other data ({before[0]} rows then, "
                f"{now[0]} now): choose a new --run-id"
            )
        return Written(call.table, version, rows=0, skipped=True)

    def _commit_of(self, table: str, key: str, value: str) -> tuple[int, int] | None:
        """(version, rows) of the newest commit whose metadata hold `value` under `key`."""
        for limit in (_RECENT, None):
            for commit in self.history(table, limit):
                if commit.notes.get(key) == value:
                    return commit.version, int(commit.metrics.get("numOutputRows", 0))
        return None

    def _held(self, table: str, version: int | None) -> DataFrame | None:
        if not self._there(table):
            return None
        # Where raw events are many, tables of results are still small.
        most = self.lakehouse.few_mb * 1e6
        most = most if few_rows(self.spark) else min(most, _SMALL)
        number = self.history(table, 1)[0].version if version is None else version
        return self._storage.held(table, number, most) if most else None

    def _there(self, table: str) -> bool | None:
        """Whether the table exists, by its files; None where Spark is to tell, as of the first table: a session
        without Delta is then refused in a sentence."""
        return self._storage.exists(_checked(table)) if self._has_delta else None

    def _frame(self, table: str) -> DataFrame | None:
        frame = frame_or_none(self._storage, self.spark.read, _checked(table))
        self._has_delta = True
        return frame

    def _schema(self, table: str) -> StructType | None:
        frame = None if self._there(table) is False else self._frame(table)
        return None if frame is None else frame.schema

    def _absent(self, table: str) -> str:
        return absence(table, self.lakehouse)


def absence(table: str, lakehouse: Lakehouse) -> str:
    """What to say of a table that does not exist."""
    contract = contract_of(table)
    fix = "check its name with `uplift tables`" if contract is None else f"run `uplift {contract.job}` first"
    return f"table {table} does not exist in lakehouse {lakehouse.catalog or lakehouse.path}: {fix}"


def _checked(table: str) -> str:
    parts = table.split(".") if isinstance(table, str) else []
    if len(parts) != 2:
        raise ConfigError(f"table {table!r} is not of the form schema.table: name both parts")
    for part in parts:
        checked_name(part, f"table {table!r}: part")
    return table


def _same_columns(table: str, have: StructType, want: Iterable[StructField]) -> None:
    """Refuse a changed schema: a column that appears, vanishes or changes its type is a decision, not an accident."""
    mine = {column.name: column.dataType.simpleString() for column in have}
    stored = {column.name: column.dataType.simpleString() for column in want}
    wrong = [
        f"column {name} is {mine.get(name, 'missing')} but {stored.get(name, 'not')} in the table"
        for name in {**stored, **mine}
        if mine.get(name) != stored.get(name)
    ]
    if wrong:
        raise DataError(f"rows for {table} do not fit it: {'; '.join(wrong)}; change the rows or write a new table")


def _later(contract: Contract | None) -> tuple[str, ...]:
    return () if contract is None else contract.later


def _with_stored_names(table: str, frame: DataFrame, stored: StructType) -> DataFrame:
    """`frame` with the names that the columns have in a table of the last release."""
    return frame.withColumnsRenamed(old_names(contract_of(table), stored.fieldNames()))


def _unknown_column(error: AnalysisException) -> str:
    """Name of the column that Spark does not find; empty when the error is another one."""
    if not (error.getCondition() or "").startswith("UNRESOLVED_COLUMN"):
        return ""
    return (error.getMessageParameters() or {}).get("objectName", "").split(".")[-1].strip("`")


def _with_other_name(query: str, column: str) -> str:
    """The query with the other name of a renamed column, texts in quotes as they are."""
    other = OTHER_NAMES[column]
    warnings.warn(
        f"a table of the query has column {column} as {other}: it was renamed, and the next version knows one name",
        FutureWarning,
        stacklevel=3,
    )
    return _renamed_in(query, column, other)


def _renamed_in(text: str, name: str, other: str) -> str:
    """SQL with another name for a column, texts in quotes as they are."""
    parts = _QUOTED.split(text)
    return "".join(part if i % 2 else re.sub(rf"\b{name}\b", other, part) for i, part in enumerate(parts))


def _cast_like(frame: DataFrame, schema: StructType) -> DataFrame:
    names = set(frame.columns)
    return frame.select(
        *((F.col(c.name) if c.name in names else F.lit(None)).cast(c.dataType).alias(c.name) for c in schema)
    )


def retried(change: Callable[[], T], table: str, who: str, unlock: Callable[[], object] | None = None) -> T:
    """Try again after a lost race: Delta then sees the winner's commit, and this run's own if its reply got lost.

    unlock  of a table that others lock: what lets rows be deleted, called before each further attempt

    Raises ConflictError after ATTEMPTS, DataError when a row breaks a constraint.
    """
    for attempt in range(ATTEMPTS):
        try:
            return change()
        except Exception as error:
            text = str(error)
            if "DELTA_VIOLATE_CONSTRAINT" in text or "DELTA_NOT_NULL_CONSTRAINT" in text:
                raise DataError(_broken_constraint(table, text)) from error
            if not _LOST_RACE.search(text) and not (unlock is not None and _LOCKED_AGAIN in text):
                raise
            time.sleep(0.2 * 2**attempt * random.uniform(0.5, 1.5))
            if unlock is not None:
                unlock()
    raise ConflictError(
        f"other writers won table {table} {ATTEMPTS} times in a row against {who}: run it again when they are done"
    )


def _broken_constraint(table: str, text: str) -> str:
    match = re.search(r"CHECK constraint (.*?) violated by row with values:\s*(.*?)\s*(?:\n\s*at |$)", text, re.S)
    violation = f"{match.group(1)} (values: {' '.join(match.group(2).split())})" if match else text.splitlines()[0]
    return f"a row for {table} breaks its constraint {violation[:300]}: pass the rows through `contracts.check` first"


def _to_fill(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value  # Spark takes Python's numbers alone
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
