"""Points in time as Spark columns, independent of the session's and the machine's time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pyspark.sql import Column
from pyspark.sql import functions as F

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(at: datetime) -> datetime:
    """The moment in UTC; without a zone it is taken to be UTC already."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def moment(micros: int) -> datetime:
    """The moment that many microseconds after 1970 began, in UTC; a float would round it."""
    return _EPOCH + timedelta(microseconds=micros)


def instant(at: datetime) -> Column:
    """A timestamp literal."""
    return F.lit(utc(at).isoformat()).cast("timestamp")


def plus_hours(start: Column, hours: Column) -> Column:
    """`start` moved by a number of hours, to the microsecond."""
    return F.timestamp_micros(F.unix_micros(start) + F.round(hours * 3_600_000_000).cast("bigint"))
