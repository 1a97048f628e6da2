"""Points in time as Spark columns, independent of the session's and the machine's time zone."""

from __future__ import annotations

from datetime import UTC, datetime

from pyspark.sql import Column
from pyspark.sql import functions as F


def utc(moment: datetime) -> datetime:
    """The moment in UTC; without a zone it is taken to be UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def instant(moment: datetime) -> Column:
    """A timestamp literal."""
    return F.lit(utc(moment).isoformat()).cast("timestamp")


def plus_hours(start: Column, hours: Column) -> Column:
    """`start` moved by a number of hours, to the microsecond."""
    return F.timestamp_micros(F.unix_micros(start) + F.round(hours * 3_600_000_000).cast("bigint"))
