"""Reading a lakehouse without a campaign: queries that users write, and what tables there are."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.errors import ConfigError
from uplift_spark.lake.contracts import EXACT_TIME
from uplift_spark.lake.tables import Lake


def query_rows(lake: Lake, query: str, limit: int | None = None, texts_only: bool = False) -> pa.Table:
    """Rows of a query that only reads: the first `limit`, or all.

    Args:
        lake: Where its tables are.
        query: SQL; two of its columns may have one name.
        limit: Most rows to give.
        texts_only: Have Spark write dates, times, bytes (hexadecimal) and nested values (JSON) as texts, so that only
            numbers, truth values and texts remain; else only the types that Arrow lacks, such as intervals.

    Returns:
        An Arrow table: no value is rounded, and null is neither NaN nor an empty text.

    Raises:
        ConfigError: The query does more than read tables of the lakehouse; or Spark refuses it: what it says in one
            sentence.
    """
    from uplift_spark.sql_gate import checked_query  # its parser takes half a second to load

    checked = checked_query(query, lake.lakehouse.catalog)
    try:
        rows = lake.sql(checked)
        names = rows.columns
        rows = rows.toDF(*(f"c{number}" for number in range(len(names))))
        values = [_readable(field, texts_only).alias(field.name) for field in rows.schema]
        rows = rows.select(*values) if values else rows
        return (rows if limit is None else rows.limit(limit)).toArrow().rename_columns(names)
    except PySparkException as error:
        raise ConfigError(f"the query does not run: {str(error).strip().splitlines()[0]}") from error


_PLAIN = (
    *(T.BooleanType, T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.FloatType, T.DoubleType, T.DecimalType),
    *(T.StringType, T.NullType),
)
_OF_ARROW = (T.DateType, T.TimestampType, T.TimestampNTZType, T.BinaryType)


def _readable(field: T.StructField, texts_only: bool) -> Column:
    """A column of a query as it is, or as text, see `query_rows`."""
    kind, value = field.dataType, F.col(field.name)
    if isinstance(kind, _PLAIN):
        return value
    if isinstance(kind, T.BinaryType) and texts_only:
        return F.hex(value)
    if isinstance(kind, T.ArrayType | T.MapType | T.StructType) and (texts_only or not _known_to_arrow(kind)):
        return F.to_json(value, EXACT_TIME)
    return value.cast("string") if texts_only or not _known_to_arrow(kind) else value


def _known_to_arrow(kind: T.DataType) -> bool:
    if isinstance(kind, T.ArrayType):
        return _known_to_arrow(kind.elementType)
    if isinstance(kind, T.MapType):
        return _known_to_arrow(kind.keyType) and _known_to_arrow(kind.valueType)
    if isinstance(kind, T.StructType):
        names = kind.fieldNames()
        return len(set(names)) == len(names) and all(_known_to_arrow(field.dataType) for field in kind)
    return isinstance(kind, (*_PLAIN, *_OF_ARROW))


def arrow_frame(table: pa.Table) -> pd.DataFrame:
    """A pandas frame of an Arrow table in which nothing is rounded: whole numbers beside nulls are `Int64`, dates and
    decimals objects, times without a zone (UTC) in microseconds; dates beyond the year 9999 are texts."""
    columns = []
    for column in table.columns:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit))
        kind = pd.Int64Dtype() if pa.types.is_integer(column.type) and column.null_count else None
        exact = {"date_as_object": True, "integer_object_nulls": True, "types_mapper": {column.type: kind}.get}
        try:
            columns.append(column.to_pandas(**exact))
        except ValueError:  # Python's dates end with the year 9999, Spark's do not
            columns.append(column.cast(pa.string()).to_pandas())
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(len(table)))
    return frame.set_axis(table.column_names, axis=1)


def table_sizes(lake: Lake) -> list[tuple[str, int, int]]:
    """(table, rows, newest Delta version) of every table in the lakehouse, by name."""
    return [(name, lake.read(name).count(), lake.version(name)) for name in lake.tables()]
