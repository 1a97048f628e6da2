"""What differs between the versions of Spark that the package runs on, 3.5 to 4.2: nobody else asks for a version.

Spark 3.5 lacks methods of Spark 4 that the package calls. They are added to its classes here, built from its public
methods, so that the callers read the same for every version. Nothing that a version has is replaced, but for
`createDataFrame`, which in 3.5 does not take Arrow tables, and Connect's `sql`, which takes no frames, and `count`.
Every module that calls one of them imports this one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from importlib import metadata
from inspect import signature
from itertools import pairwise
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyspark
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

# --------------------------------------------------------------------------------------------------------------------
# Versions, and what belongs to each.

DELTA_OF_SPARK = {"3.5": "3.3.2", "4.0": "4.0.1", "4.1": "4.4.0", "4.2": "4.4.0"}
"""Spark -> the Delta Lake that belongs to it."""


def spark_version() -> str:
    """Give the major and minor version of the installed PySpark, as in "4.2"."""
    return ".".join(pyspark.__version__.split(".")[:2])


def delta_version() -> str:
    """Give the version of the installed delta-spark, else of the Delta Lake that belongs to the installed Spark."""
    try:
        return metadata.version("delta-spark")
    except ImportError:
        return DELTA_OF_SPARK.get(spark_version(), DELTA_OF_SPARK["4.2"])


def delta_package() -> str:
    """Maven coordinates of the Delta Lake that belongs to the installed Python packages."""
    return delta_artefact(spark_version(), delta_version())


def delta_artefact(spark: str, delta: str) -> str:
    """Maven coordinates of a Delta Lake: Spark 3.5 is built with Scala 2.12, and from 4.1 on Delta's artefacts name
    their Spark."""
    if spark.startswith("3."):
        return f"io.delta:delta-spark_2.12:{delta}"
    named = tuple(int(part) for part in re.findall(r"\d+", delta)[:2]) >= (4, 1)
    return f"io.delta:delta-spark_{spark}_2.13:{delta}" if named else f"io.delta:delta-spark_2.13:{delta}"


def oldest_java() -> int:
    """Give the oldest Java that the installed Spark starts with."""
    return 8 if spark_version().startswith("3.") else 17


def quiet_queries() -> None:
    """From 4.0 on, PySpark logs every failed query as JSON with the JVM's trace, beside the exception that says it."""
    try:
        from pyspark.logger import PySparkLogger
    except ImportError:
        return
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)


def on_this_machine(session: SparkSession) -> bool:
    """Say whether the session runs in this machine's memory and so reads and writes its files; False for sessions of
    Connect, whose server may be anywhere."""
    if type(session).__module__.startswith("pyspark.sql.connect"):
        return False
    return str(session.conf.get("spark.master", "")).startswith("local")


def try_settings(session: SparkSession, settings: Mapping[str, str]) -> dict[str, str]:
    """Set what the session lets us set.

    Serverless compute refuses most settings of Spark, and a session that runs refuses static ones.

    Args:
        session: any session, of Connect too.
        settings: names and values.

    Returns:
        The settings that were refused, each with the first line of the reason.
    """
    refused = {}
    for key, value in settings.items():
        try:
            session.conf.set(key, value)
        except Exception as error:  # Py4J, Connect and Databricks each raise a class of their own
            refused[key] = str(error).strip().partition("\n")[0]
    return refused


LOCAL_BYTES = 96 * 2**20
"""Most bytes of local rows that one frame is made of: serverless compute takes no more than 128 MB. Spark Connect sends
parts of 64 MB and more beside the query, smaller ones in it, so parts are full but for the last."""


def local_frame(session: SparkSession, rows: pa.Table, most: int = LOCAL_BYTES) -> DataFrame:
    """Make a frame of Arrow rows, of any size, in their order: the union of frames of at most `most` bytes each."""
    # In one piece each: Spark 4.2 leaves out what follows an empty piece, and a file of a table may have no row.
    frames = [session.createDataFrame(part.combine_chunks()) for part in _parts(rows, most)]
    return reduce(lambda left, right: left.unionAll(right), frames)


def _parts(rows: pa.Table, most: int) -> list[pa.Table]:
    """The rows in parts; a single row is never cut."""
    parts: list[pa.Table] = []
    while rows.nbytes > most and len(rows) > 1:
        n = max(1, min(len(rows) - 1, len(rows) * most // rows.nbytes))
        while n > 1 and rows.slice(0, n).nbytes > most:  # long texts come first
            n //= 2
        parts.append(rows.slice(0, n))
        rows = rows.slice(n)
    return [*parts, rows]


def union_by_name(frames: Sequence[DataFrame]) -> DataFrame:
    """Rows of all frames, columns put together by their names: by a method of each frame, because 3.5 has another class
    of frames over Connect."""
    return reduce(lambda left, right: left.unionByName(right), frames)


# --------------------------------------------------------------------------------------------------------------------
# Types of Spark and of Arrow. PySpark has functions for this, but private ones, whose arguments change.

_KINDS: tuple[tuple[str, pa.DataType], ...] = (
    ("BooleanType", pa.bool_()),
    ("ByteType", pa.int8()),
    ("ShortType", pa.int16()),
    ("IntegerType", pa.int32()),
    ("LongType", pa.int64()),
    ("FloatType", pa.float32()),
    ("DoubleType", pa.float64()),
    ("StringType", pa.string()),
    ("BinaryType", pa.binary()),
    ("DateType", pa.date32()),
    ("TimestampNTZType", pa.timestamp("us")),
    ("NullType", pa.null()),
)
_ARROW_OF = {name: kind for name, kind in _KINDS}
_SPARK_OF = {kind: name for name, kind in _KINDS} | {pa.large_string(): "StringType", pa.large_binary(): "BinaryType"}
_OTHER = pa.struct([])  # kinds that no column of a role can have: intervals, variants, geometries


def arrow_kinds(frame: DataFrame) -> dict[str, pa.DataType]:
    """Give the Arrow type of every column of a Spark frame, as its workers get it; times are in UTC."""
    return {field.name: arrow_type(field.dataType) for field in frame.schema}


def arrow_type(kind: T.DataType, zone: str = "UTC") -> pa.DataType:
    """Give the Arrow type of a Spark type; what no column of a role can be, such as an interval, is an empty struct."""
    if isinstance(kind, T.UserDefinedType):
        return arrow_type(kind.sqlType(), zone)
    if isinstance(kind, T.TimestampType):
        return pa.timestamp("us", zone)
    if isinstance(kind, T.DecimalType):
        return pa.decimal128(kind.precision, kind.scale)
    if isinstance(kind, T.ArrayType):
        return pa.list_(pa.field("element", arrow_type(kind.elementType, zone), kind.containsNull))
    if isinstance(kind, T.MapType):
        value = pa.field("value", arrow_type(kind.valueType, zone), kind.valueContainsNull)
        return pa.map_(pa.field("key", arrow_type(kind.keyType, zone), False), value)
    if isinstance(kind, T.StructType):
        return pa.struct([pa.field(part.name, arrow_type(part.dataType, zone), part.nullable) for part in kind])
    return _ARROW_OF.get(type(kind).__name__, _OTHER)


def spark_type(kind: pa.DataType) -> T.DataType:
    """Give the Spark type of an Arrow type; TypeError where Spark has none, as for unsigned integers."""
    if pa.types.is_dictionary(kind):
        return spark_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return T.TimestampNTZType() if kind.tz is None else T.TimestampType()
    if pa.types.is_decimal(kind):
        return T.DecimalType(kind.precision, kind.scale)
    if pa.types.is_map(kind):
        return T.MapType(spark_type(kind.key_type), spark_type(kind.item_type), kind.item_field.nullable)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return T.ArrayType(spark_type(kind.value_type), kind.value_field.nullable)
    if pa.types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        return T.StructType([T.StructField(part.name, spark_type(part.type), part.nullable) for part in parts])
    if kind not in _SPARK_OF:
        raise TypeError(f"Arrow type {kind} has no type of Spark: cast it")
    return getattr(T, _SPARK_OF[kind])()


# --------------------------------------------------------------------------------------------------------------------
# Workers on frames whose columns have any name.

Batches = Iterator[pa.RecordBatch]
Worker = Callable[[Batches], Batches]


def quoted(column: str) -> str:
    """A column's name as Spark's functions and expressions take it whole, whatever letters it has."""
    return "`" + column.replace("`", "``") + "`"


def sql_text(text: str) -> str:
    """A text as a literal of Spark's SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def map_batches(frame: DataFrame, worker: Worker, schema: str | T.StructType) -> DataFrame:
    """`frame.mapInArrow` for columns of any name: Spark looks for the part `b` of a column named `a.b`.

    The worker sees the frame's own names.
    """
    names = frame.columns
    if not any(letter in name for name in names for letter in ".`"):
        return frame.mapInArrow(worker, schema)
    renamed = frame.toDF(*(f"column_{place}" for place in range(len(names))))
    return renamed.mapInArrow(partial(with_names, names, worker), schema)


def with_names(names: Sequence[str], worker: Worker, batches: Batches) -> Batches:
    """Worker: another one on columns under these names."""
    return worker(batch.rename_columns(list(names)) for batch in batches)


# --------------------------------------------------------------------------------------------------------------------
# Few rows: `lake.session.planned_for_few_rows` notes in a session that rows are few. They are then collected once, and
# the workers' functions run in this process: starting Python workers would take longer than their work. As the
# functions take any partition of rows, what they make is the same to the last bit.

FEW_ROWS = "uplift.few_rows"
"""Setting of a session: "true" while rows are few."""


def few_rows(session: SparkSession) -> bool:
    """Say whether rows are few; never where the session runs elsewhere, which costs no call."""
    return on_this_machine(session) and session.conf.get(FEW_ROWS, "false") == "true"


def held(frame: DataFrame) -> DataFrame | pa.Table:
    """Collect the rows if they are few, for several passes over them; else give the frame as it is."""
    return frame.toArrow() if few_rows(frame.sparkSession) else frame


def mapped(rows: DataFrame | pa.Table, worker: Worker, schema: str | T.StructType | pa.Schema) -> pa.Table:
    """Collect what a worker makes of rows: `frame.mapInArrow(worker, schema).toArrow()`, or the same in this process.

    Args:
        rows: a frame, or what `held` collected.
        worker: from the batches of a partition to batches.
        schema: columns of what the worker makes; of Arrow only for what `held` collected.

    Returns:
        The worker's rows, of all partitions.
    """
    held_rows = rows if isinstance(rows, pa.Table) else held(rows)
    if not isinstance(held_rows, pa.Table):
        assert not isinstance(schema, pa.Schema)
        return map_batches(held_rows, worker, schema).toArrow()
    batches = list(worker(iter(held_rows.combine_chunks().to_batches())))
    if batches:
        return pa.Table.from_batches(batches)
    if isinstance(schema, pa.Schema):
        return schema.empty_table()
    session = SparkSession.active() if isinstance(rows, pa.Table) else rows.sparkSession
    return session.createDataFrame([], schema).toArrow()


def mapped_frame(frame: DataFrame, worker: Worker, schema: str | T.StructType) -> DataFrame:
    """Make a frame of what a worker makes of a frame's rows: `frame.mapInArrow(worker, schema)`, or at once the same in
    this process."""
    lazy = map_batches(frame, worker, schema)
    if not few_rows(frame.sparkSession):
        return lazy
    rows = mapped(frame, worker, schema)
    wanted = pa.schema([(field.name, arrow_type(field.dataType)) for field in lazy.schema])
    return local_frame(frame.sparkSession, rows.select(wanted.names).cast(wanted))


# --------------------------------------------------------------------------------------------------------------------
# Groups of rows as Arrow tables, which 3.5 does not have: there, rows of a group are brought together and sorted, and a
# map over the partition cuts them at the keys.

GroupWorker = Callable[..., pa.Table]


def map_groups(
    frame: DataFrame, keys: Sequence[str], worker: GroupWorker, state: Sequence[object], schema: str, tasks: int = 0
) -> DataFrame:
    """Map every group of rows to rows, Arrow to Arrow.

    Args:
        frame: rows in any order.
        keys: columns whose values make a group; null is a value.
        worker: a module-level function of `state` and a group's rows, a pa.Table in no particular order.
        state: first arguments of the worker.
        schema: columns of what the worker returns.
        tasks: partitions that the groups are spread over; 0 leaves that to Spark.

    Returns:
        A lazy frame of the workers' rows.
    """
    rows = frame.repartition(tasks, *keys) if tasks else frame  # a number of its own is never coalesced
    grouped = rows.groupBy(*keys)
    if hasattr(grouped, "applyInArrow"):
        return grouped.applyInArrow(_on_group(worker, state), schema)
    together = (rows if tasks else rows.repartition(*keys)).sortWithinPartitions(*keys)
    return together.mapInArrow(partial(cut_groups, worker, state, keys), schema)


def _on_group(worker: GroupWorker, state: Sequence[object]) -> Callable[[pa.Table], pa.Table]:
    # PySpark reads the type hints of a grouped worker and fails on those of a partial; a lambda has none.
    return lambda group: worker(*state, group)


def cut_groups(
    worker: GroupWorker, state: Sequence[object], keys: Sequence[str], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Worker: rows sorted by their keys, cut where a key changes, each group given to `worker` whole."""
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        for low, high in _runs(batch, keys):
            part = batch.slice(low, high - low)
            if parts and any(part.column(key)[0] != parts[0].column(key)[0] for key in keys):
                yield from worker(*state, pa.Table.from_batches(parts)).to_batches()
                parts = []
            parts.append(part)
    if parts:
        yield from worker(*state, pa.Table.from_batches(parts)).to_batches()


def _runs(batch: pa.RecordBatch, keys: Sequence[str]) -> list[tuple[int, int]]:
    """Bounds of neighbouring rows with the same keys."""
    if not batch.num_rows:
        return []
    changes = np.zeros(batch.num_rows - 1, bool)
    for key in keys:
        column = batch.column(key)
        before, after = column.slice(0, len(column) - 1), column.slice(1)
        other = pc.fill_null(pc.not_equal(before, after), False)
        changes |= np.asarray(pc.or_(other, pc.xor(before.is_null(), after.is_null())))
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), batch.num_rows]
    return list(pairwise(bounds))


# --------------------------------------------------------------------------------------------------------------------
# Methods of Spark 4 for 3.5. Arrow tables travel as bytes in Arrow's own format, so that no value changes: pandas,
# which 3.5 goes through, makes floats of integers with nulls and nulls of NaN.

BACKPORTED = ("toArrow", "groupingSets", "try_cast", "getCondition")
"""Methods that are added to the classes of 3.5 where they are absent."""

_ROWS_PER_MESSAGE = 10_000


def batches_to_bytes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: every batch as one binary value."""
    for batch in batches:
        yield pa.record_batch({"message": pa.array([_message(batch)], pa.binary())})


def bytes_to_batches(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: the batches of `batches_to_bytes`, in the types of `schema`."""
    for batch in batches:
        for message in batch.column("message"):
            yield from pa.ipc.open_stream(message.as_buffer()).read_all().cast(schema).to_batches()


def _message(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def collect_arrow(frame: DataFrame) -> pa.Table:
    """`DataFrame.toArrow` by public methods of 3.5."""
    messages = [row[0] for row in frame.mapInArrow(batches_to_bytes, "message binary").collect()]
    if messages:
        return pa.concat_tables(pa.ipc.open_stream(pa.py_buffer(bytes(message))).read_all() for message in messages)
    zone = str(frame.sparkSession.conf.get("spark.sql.session.timeZone", "UTC"))
    return pa.schema([(f.name, arrow_type(f.dataType, zone)) for f in frame.schema]).empty_table()


def frame_from_arrow(create: Callable[..., DataFrame], session: SparkSession, table: pa.Table) -> DataFrame:
    """`createDataFrame` of an Arrow table by public methods of 3.5; `create` is that of 3.5."""
    kinds = T.StructType([T.StructField(f.name, spark_type(f.type), f.nullable) for f in table.schema])
    schema = pa.schema([(f.name, arrow_type(f.dataType)) for f in kinds])
    messages = [(bytearray(_message(batch)),) for batch in table.to_batches(_ROWS_PER_MESSAGE)]
    frame = create(session, messages, "message binary")
    return frame.mapInArrow(partial(bytes_to_batches, schema), kinds)


class _GroupingSets:
    """`DataFrame.groupingSets(sets, *columns)` as the union of its sets."""

    def __init__(self, frame: DataFrame, sets: Sequence[Sequence[str]], columns: Sequence[str]):
        self._frame, self._sets, self._columns = frame, sets, columns

    def agg(self, *values: Column) -> DataFrame:
        """Rows of every set one after another; columns that a set has not are null."""
        kinds = {name: self._frame.schema[name].dataType for name in self._columns}
        parts = []
        for names in self._sets:
            rows = self._frame.groupBy(*names).agg(*values)
            keys = [F.col(n) if n in names else F.lit(None).cast(kinds[n]).alias(n) for n in self._columns]
            parts.append(rows.select(*keys, *(f"`{name}`" for name in rows.columns[len(names) :])))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.unionAll(part)
        return whole


_WHOLE_NUMBERS = {"tinyint": 7, "smallint": 15, "int": 31, "bigint": 63}
_TRUE, _FALSE = ("t", "true", "y", "yes", "1"), ("f", "false", "n", "no", "0")


def try_cast_text(text: Column, kind: str | T.DataType) -> Column:
    """`Column.try_cast` of a text by public functions of 3.5: null where the text is no value of the type.

    Raises TypeError for types that no table of the package holds: those but numbers, truth values, dates and times.
    """
    name = kind if isinstance(kind, str) else kind.simpleString()
    if name == "string":
        return text.cast("string")
    if name == "timestamp":
        return F.try_to_timestamp(text)
    if name == "date":
        return F.try_to_timestamp(text).cast("date")
    cell = F.lower(F.trim(text.cast("string")))
    if name == "boolean":
        return F.when(cell.isin(*_TRUE), True).when(cell.isin(*_FALSE), False)
    if name in _WHOLE_NUMBERS:
        short = F.regexp_replace(F.when(cell.rlike(r"^[+-]?\d+$"), cell), r"^([+-]?)0+(?=\d)", "$1")
        number = F.when(F.length(short) <= 20, short).cast("decimal(20,0)")
        bound = 2 ** _WHOLE_NUMBERS[name]
        lowest, highest = (F.lit(str(value)).cast("decimal(20,0)") for value in (-bound, bound - 1))
        return F.when(number.between(lowest, highest), number).cast(name)
    if name in ("double", "float"):
        decimal = r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?[df]?$"
        return F.when(cell.rlike(decimal) | cell.rlike(r"^[+-]?inf(inity)?$|^nan$"), cell).cast(name)
    raise TypeError(f"try_cast to {name} is not there in Spark {pyspark.__version__}")


def _classes_of_3_5() -> Iterator[tuple[type, type, type]]:
    """Frames, columns and sessions, the classic ones and those of Connect where its libraries are installed."""
    yield DataFrame, Column, SparkSession
    try:
        from pyspark.sql.connect.column import Column as RemoteColumn
        from pyspark.sql.connect.dataframe import DataFrame as RemoteFrame
        from pyspark.sql.connect.session import SparkSession as RemoteSession
    except ImportError:
        return
    yield RemoteFrame, RemoteColumn, RemoteSession


def _backport() -> None:
    """Give the classes of 3.5 the methods that they lack; Databricks has some of them there already."""
    for frame, column, session in _classes_of_3_5():
        if not hasattr(frame, "toArrow"):
            frame.toArrow = collect_arrow  # type: ignore[attr-defined]
            session.createDataFrame = _taking_arrow(session.createDataFrame)  # type: ignore[attr-defined]
        if not hasattr(frame, "groupingSets"):
            frame.groupingSets = lambda self, sets, *columns: _GroupingSets(self, sets, columns)  # type: ignore[attr-defined]
        if not hasattr(column, "try_cast"):
            column.try_cast = try_cast_text  # type: ignore[attr-defined]
        frame.count = _plain_int(frame.count)  # type: ignore[attr-defined]
        if "kwargs" not in signature(session.sql).parameters:  # type: ignore[attr-defined]
            session.sql = _taking_frames(session.sql)  # type: ignore[attr-defined]
    if not hasattr(PySparkException, "getCondition"):
        PySparkException.getCondition = _condition  # type: ignore[method-assign, assignment]


def _condition(error: PySparkException) -> str | None:
    # Over Connect the condition of an error of the server stands only at the beginning of its text.
    named = re.match(r"\s*\[([A-Z0-9_.]+)\]", str(error))
    return error.getErrorClass() or (named.group(1) if named else None)


def _plain_int(count: Callable[..., Any]) -> Callable[..., int]:
    """Over Connect counts are numbers of NumPy, which JSON does not take."""
    return lambda self: int(count(self))


def _taking_frames(sql: Callable[..., Any]) -> Callable[..., Any]:
    """Queries with frames by the names that they have in braces. The frames are views of the session from then on,
    because Connect looks names up when a query runs."""

    def run(self: Any, query: str, *args: Any, **frames: Any) -> Any:
        views = {name: f"_frame_{uuid4().hex}" for name in frames}
        for name, frame in frames.items():
            frame.createOrReplaceTempView(views[name])
        return sql(self, query.format(**views) if views else query, *args)

    return run


def _taking_arrow(create: Callable[..., Any]) -> Callable[..., Any]:
    def create_frame(self: Any, data: Any, *schema: Any, **more: Any) -> Any:
        if isinstance(data, pa.Table):
            return frame_from_arrow(create, self, data)
        return create(self, data, *schema, **more)

    return create_frame


if pyspark.__version__.startswith("3."):
    _backport()
