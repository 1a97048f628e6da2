"""Cells of a source as values of a contract's types; what cannot be read is told, never silently null (R1.1, R1.5).

Points in time without a zone are UTC, whatever the session's time zone.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, StringType, StructType, TimestampNTZType, TimestampType

from uplift_spark.lake.checks import AS_GIVEN, FAULTS, as_json, entry, widens

# A line that is no row of its file, as Spark's readers of text keep it.
UNREAD = "__unread"

_DATE, _TIME, _ZONE = r"\d{4}-\d{2}-\d{2}", r"[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?", r"(Z|[+-]\d{2}(:?\d{2})?)"
_MOMENT = f"^{_DATE}({_TIME}{_ZONE}?)?$"
# Spark's cast also takes Java's "1d" and "0x1p3".
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$|^(?i:nan)$"
_KINDS = {
    "timestamp": "a point in time (ISO 8601, as in 2025-01-31T09:30:00Z)",
    "double": "a number",
    "bigint": "a whole number",
    "boolean": "true or false",
}
_SHOWN = 100  # characters of a bad value that its reason repeats


def fits(have: DataType, want: DataType, text: bool) -> bool:
    """Whether `read_cells` reads columns of `have` as `want`; `text`: the source has no types, only texts."""
    unzoned = isinstance(have, TimestampNTZType) and isinstance(want, TimestampType)
    return widens(have, want) or unzoned or (text and isinstance(have, StringType))


def read_cells(frame: DataFrame, wanted: StructType, renamed: Mapping[str, str], *beside: str) -> DataFrame:
    """The columns of `wanted` that `frame` has, in its types, then FAULTS, AS_GIVEN and the columns `beside`.

    renamed   {wanted name: frame's name} where the two differ
    A column UNREAD of `frame` holds the lines that are no row. Columns must fit (`fits`); blank texts are null where
    the wanted type is no text.
    """
    raw = [name for name in frame.columns if name not in (UNREAD, *beside)]
    cells, faults = [], []
    for field in wanted:
        name = renamed.get(field.name, field.name)
        if name in raw:
            value = _value(F.col(name), frame.schema[name].dataType, field.dataType)
            cells.append(value.alias(field.name))
            faults.append(_fault(name, frame.schema[name].dataType, field.dataType, value))
    row = as_json(raw)
    if UNREAD in frame.columns:
        unread = F.col(UNREAD).isNotNull()
        # The cells of such a line are wherever its commas happen to be.
        whole = entry("row_readable", F.lit("the line is not a row with the columns of its file"))
        faults = [F.when(unread, whole), *(F.when(~unread, fault) for fault in faults)]
        row = F.when(unread, as_json([UNREAD])).otherwise(row)
    found = F.filter(F.array(*faults), lambda fault: fault.isNotNull())
    return frame.select(*cells, found.alias(FAULTS), row.alias(AS_GIVEN), *beside)


def numbers_or_text(frame: DataFrame, names: list[str]) -> dict[str, DataType]:
    """{name: double if all its texts are numbers, else string}, in one pass over the rows."""
    if not names:
        return {}
    found = frame.agg(*(F.min(_blank(F.col(n)) | F.trim(n).rlike(_NUMBER)).alias(n) for n in names)).collect()[0]
    return {name: StringType() if found[name] is False else DoubleType() for name in names}


def _value(cell: Column, have: DataType, want: DataType) -> Column:
    if isinstance(have, TimestampNTZType) and isinstance(want, TimestampType):
        # A direct cast would take it for local time of the session.
        return F.concat(cell.cast("string"), F.lit("Z")).cast("timestamp")
    if isinstance(have, StringType) and not isinstance(want, StringType):
        return _from_text(F.trim(cell), want)
    return cell.cast(want)


def _from_text(text: Column, want: DataType) -> Column:
    """Null where `text` is blank or not of the type."""
    if isinstance(want, TimestampType):
        # Spark's cast wants seconds before a zone, and takes what has no zone for local time of the session.
        full = F.regexp_replace(text, f"^({_DATE})$", "$1T00:00:00")
        full = F.regexp_replace(full, rf"^({_DATE}[T ]\d{{2}}:\d{{2}})(?=Z|[+-]|$)", "$1:00")
        full = F.regexp_replace(full, r"([T ][\d:.]+)$", "$1Z")
        return F.when(text.rlike(_MOMENT), full).try_cast(want)
    if isinstance(want, DoubleType):
        return F.when(text.rlike(_NUMBER), text).try_cast(want)
    return text.try_cast(want)


def _fault(name: str, have: DataType, want: DataType, value: Column) -> Column:
    """{rule, reason} where a text is there and no value came of it, else null."""
    if not isinstance(have, StringType) or isinstance(want, StringType):
        return F.lit(None).cast("struct<rule:string,reason:string>")
    cell = F.col(name)
    kind = _KINDS.get(want.simpleString(), want.simpleString())
    reason = F.concat(F.lit(f"{name} '"), F.substring(cell, 1, _SHOWN), F.lit(f"' is not {kind}"))
    return F.when(~_blank(cell) & value.isNull(), entry(f"{name}_readable", reason))


def _blank(cell: Column) -> Column:
    return cell.isNull() | (F.trim(cell) == "")
