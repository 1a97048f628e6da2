"""Append the events that a Delta table got since the last stream to a raw table of bronze, by Structured Streaming.

Rows that cannot be read or break the table's contract go to bronze.quarantine, before the good ones are appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.earlier import version_of
from uplift_spark.events.load import (
    Load,
    count_by_rule,
    refuse_misfits,
    stamped,
    tell_old_names,
    wanted_columns,
)
from uplift_spark.events.load_source import ARRIVED, SOURCE, AnyReader, DeltaVersion, find_delta, open_delta
from uplift_spark.governance.privacy import key_of, pseudonymised
from uplift_spark.lake.contracts import RAW_ROW, UNREAD, with_columns
from uplift_spark.lake.schemas import QUARANTINE, check
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

_CHANGE, _VERSION, _TIME = "_change_type", "_commit_version", "_commit_timestamp"


@dataclass(frozen=True)
class Stream:
    """One sink's part: what the source has beyond what the sink has."""

    table: str
    rows: DataFrame
    checkpoint: str


@dataclass(frozen=True)
class Streams:
    """The rejected rows' stream and the good rows', to run in this order, but for those with nothing to come.

    source  the table read, at the version that was its newest
    known   newest version whose good rows were in the table before, -1 for none
    since   newest version whose rejected rows were in quarantine before, -1 for none
    """

    run_id: str
    parts: tuple[Stream, ...]
    source: DeltaVersion
    known: int
    since: int
    details: dict[str, Any]


def streams(
    load: Load, lake: Lake, run_id: str | None, progress: ProgressCallback, key: bytes | None = None
) -> Streams:
    """What a stream adds, with pseudonyms for ids if there is a `key`; frames are lazy.

    Raises a named error before anything is written when the source is unfit.
    """
    if load.contract.unique:
        raise ConfigError(f"keys of {load.table} are unique, which a stream cannot see to: use `uplift load`")
    table = find_delta(lake, load.source)
    if not table.feed:
        raise DataError(
            f"{load.source} has no change data feed, so its rows do not say when they came: set its property "
            "delta.enableChangeDataFeed to true, or use `uplift load --format delta`"
        )
    good, rejected = _newest(lake, load.table, load.table, table), _newest(lake, QUARANTINE, load.table, table)
    run_id = run_id or derive_run_id("stream", {"table": load.table}, source=[table.key, good])
    details: dict[str, Any] = {"version": table.version, "version_known": good}
    details["ignored"] = _ignored(lake, table, good, progress)
    source_rows = open_delta(lake.spark.read, table).withColumn(SOURCE, F.lit(table.source))
    wanted = wanted_columns(load, lake, [(load.source, source_rows)])
    refuse_misfits(load, load.source, source_rows, wanted)
    tell_old_names(load, load.source, source_rows, progress)
    contract = with_columns(load.contract, wanted)

    def arriving(known: int) -> DataFrame:
        rows = stamped(load, _inserts(lake, table, known, good), wanted, F.current_timestamp())
        return pseudonymised(rows, key, RAW_ROW, UNREAD)

    state, parts = lake.checkpoint(f"{load.table}-{table.key}"), []
    # The good rows may be ahead: their stream starts later, and sees what came to the source meanwhile.
    if rejected < table.version:
        _, bad = check(arriving(rejected), contract)
        parts.append(Stream(QUARANTINE, bad, f"{state}/rejected"))
    if good < table.version:
        fit, _ = check(arriving(good), contract)
        parts.append(Stream(load.table, fit, f"{state}/good"))
    return Streams(run_id, tuple(parts), table, good, rejected, details)


def append(lake: Lake, plan: Streams, part: Stream) -> Written:
    """Run one stream to its end. Raises DataError when the source was updated meanwhile, or like `Lake.stream`."""
    try:
        return lake.stream(part.table, part.rows, plan.run_id, part.checkpoint)
    except Exception:  # what failed in a task is not in the error: the feed tells whether it was an update
        _ignored(lake, find_delta(lake, plan.source.location), plan.known, no_progress)
        raise


def refused(lake: Lake, load: Load, plan: Streams) -> dict[str, int]:
    """{rule: rows} that came to quarantine since the streams were made."""
    if not lake.exists(QUARANTINE):
        return {}
    mine = lake.read(QUARANTINE).where(F.col("source_table") == load.table)
    return count_by_rule(mine.where(version_of(plan.source.key) > plan.since))


def _newest(lake: Lake, sink: str, meant_for: str, table: DeltaVersion) -> int:
    """The newest version of the source whose rows `sink` has, whoever added them; -1 for none."""
    if not lake.exists(sink):
        return -1
    rows = lake.read(sink)
    rows = rows.where(F.col("source_table") == meant_for) if sink == QUARANTINE else rows
    version = rows.agg(F.max(version_of(table.key)).alias("version")).collect()[0]["version"]
    return -1 if version is None else int(version)


def _ignored(lake: Lake, table: DeltaVersion, known: int, progress: ProgressCallback) -> dict[str, int]:
    """{"deleted": rows} since the version `known`: what happened stays so, and `uplift erase` forgets a user.

    Raises DataError for updates, of which nobody can say what they correct, and when the feed is too short.
    """
    if known in (-1, table.version):  # the first stream reads the table as it is
        return {}
    reader = _feed(lake.spark.read, known + 1).option("endingVersion", str(table.version))
    try:
        changes = open_delta(reader, table).groupBy(_CHANGE).agg(F.count("*").alias("n")).collect()
    except Exception as error:  # Delta's errors reach Python with and without a type
        raise DataError(
            f"the change data feed of {table.location} does not tell what came after its version {known}: "
            f"add that with "
            "`uplift load --format delta`; the stream goes on from there"
        ) from error
    counts = {row[_CHANGE]: row["n"] for row in changes}
    if updated := counts.get("update_postimage", 0):
        raise DataError(
            f"{updated:,} rows of {table.location} were updated after its version {known}, and raw events "
            f"do not change: "
            "send corrections as new rows, or add the rows as they are now with `uplift load --format delta`; the "
            "stream goes on from there"
        )
    deleted = counts.get("delete", 0)
    if deleted:
        progress(f"{deleted:,} rows were deleted at the source after its version {known}: ignored")
    return {"deleted": deleted} if deleted else {}


def _inserts(lake: Lake, table: DeltaVersion, known: int, settled: int) -> DataFrame:
    """Rows that came after the version `known`, or the table as it is and what comes, with SOURCE and ARRIVED.

    settled  version up to which the good rows are there. A stream without its checkpoint starts after it, and an
             update after it, which came since `_ignored` has looked, makes the stream fail
    """
    # One batch for all there is: a sink that has a row of a version then has all rows of that version.
    reader = lake.spark.readStream.option("maxFilesPerTrigger", str(2**31 - 1))
    start = max(known, settled) + 1
    # Delta refuses to start after the newest version, even with a checkpoint.
    rows = open_delta(_feed(reader, min(start, table.version) if start else None), table)
    change, version = F.col(_CHANGE), F.col(_VERSION)
    updated = change.startswith("update") & (version > settled)
    inserted = (change == "insert") & (version > known)
    rows = rows.where(F.when(updated, F.raise_error(F.lit("updated")).cast("boolean")).otherwise(inserted))
    source = F.concat(F.lit(f"{table.location}@"), version, F.lit(f"#{table.key}"))
    rows = rows.withColumns({SOURCE: source, ARRIVED: F.col(_TIME)})
    return rows.drop(_CHANGE, _VERSION, _TIME)


def _feed(reader: AnyReader, start: int | None) -> AnyReader:
    reader = reader.option("readChangeFeed", "true")
    return reader if start is None else reader.option("startingVersion", str(start))


def options(
    table: Annotated[str, typer.Argument(help="The raw table, such as bronze.event.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help="Delta table with a change data feed.", show_default=False)],
    known_at: Annotated[str | None, typer.Option(help="Column saying when a row was known; else its arrival.")] = None,
    historic: Annotated[bool, typer.Option("--historic", help="Rows were known when they happened.")] = False,
) -> dict[str, Any]:
    """Which Delta table to read, and which table gets its events."""
    return {"load": Load(table, source, "delta", known_at, historic)}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, load: Load
) -> JobResult:
    """Add what the table has not; a source that does not fit the table is refused before any write."""
    config, lake = campaign.config, campaign.lake
    new = streams(load, lake, run_id, progress, key_of(config))
    written = {part.table: append(lake, new, part) for part in new.parts}
    rejected = refused(lake, load, new)
    for rule, n in rejected.items():
        progress(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    good = written[load.table].rows if load.table in written else 0
    if not good and not rejected:
        progress("every row is there already")
    return JobResult.of("stream", new.run_id, *written.values(), **new.details, good=good, rejected=rejected)


if __name__ == "__main__":
    main_job(run, options)
