"""Append users' own raw events, files or a Delta table, to one of the raw tables of bronze; or a service's decisions.

Rows that cannot be read or break the table's contract go to bronze.quarantine, before the good ones are appended.
`uplift load decisions` adds what is new in the log of `uplift serve` to bronze.decision, bronze.assignment,
bronze.delivery and bronze.outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.load import LOG_FORMAT, NOT_ADDED, Added, Load, add_arrivals, arrivals, until_first
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.privacy import key_of
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, DECISION_TABLE, DELIVERY_TABLE, OUTCOME_TABLE
from uplift_spark.lake.tables import Written
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress
from uplift_spark.serving.decisions import DecisionLog
from uplift_spark.serving.store import check_plain_ids, decision_log_file

DECISIONS = "decisions"
"""What stands in the place of a table's name for the log of decisions."""
LOGGED_TABLES = (DECISION_TABLE, ASSIGNMENT_TABLE, DELIVERY_TABLE, OUTCOME_TABLE)


@dataclass(frozen=True)
class LoggedDecisions:
    """The log of decisions in a file, None for the campaign's own; at most `most` of its entries become one commit."""

    file: Path | None = None
    most: int = 100_000


def options(
    table: Annotated[str, typer.Argument(help="A raw table, such as bronze.event; or decisions.", show_default=False)],
    source: Annotated[str | None, typer.Option("--from", help="File, folder, or Delta table.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="csv, parquet, json or delta.")] = None,
    known_at: Annotated[str | None, typer.Option(help="Column saying when a row was known; else its arrival.")] = None,
    historic: Annotated[bool, typer.Option("--historic", help="Rows were known when they happened.")] = False,
    new_column: Annotated[list[str] | None, typer.Option(help="Column the table gets; repeatable.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of rows of the same content.")] = False,
    replaced: Annotated[list[str] | None, typer.Option(help="Source whose rows go, too; repeatable.")] = None,
) -> dict[str, Any]:
    """What to load, into which table, and whether an earlier load of it was wrong."""
    if table == DECISIONS:
        if format_ or known_at or historic or new_column or replace or replaced:
            raise ConfigError("`uplift load decisions` takes --from FILE alone, by default serving.log")
        return {"load": LoggedDecisions(None if source is None else Path(source))}
    if source is None or format_ is None:
        raise ConfigError(f"say what to load into {table} with --from and --format")
    more = tuple(new_column or ()), replace, tuple(replaced or ())
    return {"load": Load(table, source, format_, known_at, historic, *more)}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    load: Load | LoggedDecisions,
) -> JobResult:
    """Add what no run has added before; a source that does not fit the table is refused before any write.

    With `load.replace` the rows that earlier loads of the same files, or of the same Delta table, brought go first.
    """
    if isinstance(load, LoggedDecisions):
        return _add_decisions(campaign, progress, run_id, load)
    config, lake = campaign.config, campaign.lake
    key, added = key_of(config), Added()

    def attempt() -> JobResult:
        new = arrivals(load, lake, run_id, progress, key)
        add_arrivals(load, lake, new, progress, added)
        counts = {"good": added.rows(load.table), "rejected": added.rejected(load.table)}
        return JobResult.of("load", new.run_id, *added.written, **new.details, **counts)

    result = until_first(attempt, progress)
    if load.replace:
        versions, facts = {one.table: one.version for one in added.written}, {"source": load.source}
        event = AuditEvent("", "replace", load.table, "--replace", "", result.run_id, versions, facts)
        record_event(config, lake, event)
    return result


@dataclass(frozen=True)
class _RowsOfLog:
    """Rows of the log for one table; see `events.load.NumberedRows`."""

    key: str
    last: int
    rows: Callable[[int], pa.Table]
    unit: Callable[[int], str | None]


def _add_decisions(
    campaign: Campaign, progress: ProgressCallback, run_id: str | None, logged: LoggedDecisions
) -> JobResult:
    """Add the entries of the log that are in no table yet; a run that was killed is completed by the next one.

    Each table's newest entry says how far it is. Of several machines that serve, each has a log of its own.
    """
    if run_id is not None:
        raise ConfigError("`uplift load decisions` names its runs by the entries they add: leave --run-id out")
    config = campaign.config
    check_plain_ids(config)
    file = logged.file or decision_log_file(config)
    if not file.exists():
        raise DataError(f"no log of decisions is at {file}: correct serving.log or --from, or serve first")
    if not DecisionLog.is_at(file):
        raise DataError(f"{file} is no log of decisions: name the file that `uplift serve` writes")
    name, log = config.serving.campaign_of(config.campaign), DecisionLog(file)
    key, last = log.numbering()
    written, added = list[Written](), dict[str, int]()
    rejected, left_out = dict[str, int](), dict[str, int]()
    for table in LOGGED_TABLES:
        what = table.partition(".")[2]

        def rows(after: int, what: str = what) -> pa.Table:
            return log.rows(what, name, after, logged.most)

        load = Load(table, str(file), LOG_FORMAT, log=_RowsOfLog(key, last, rows, log.unit))
        counts, others = _add_rows(campaign, progress, load, logged.most)
        written += counts.written
        added[what] = counts.rows(table)
        rejected |= {f"{what}: {rule}": n for rule, n in counts.rejected(table).items()}
        left_out |= {f"{what}: {why}": n for why, n in others.items()}
    run_id = derive_run_id("load", {"log": key, "campaign": name}, until=last)
    facts = {"added": added, "rejected": rejected, "left_out": left_out}
    return JobResult.of("load", run_id, *written, campaign=name, log=key, **facts)


def _add_rows(campaign: Campaign, progress: ProgressCallback, load: Load, most: int) -> tuple[Added, Mapping[str, int]]:
    """Add a table's rows, at most so many at once; with the numbers of those left out, by why."""
    lake, added, until, left_out = campaign.lake, Added(), 0, Counter[str]()

    def attempt() -> JobResult:
        nonlocal until
        part = changed(load, after=until)
        new = arrivals(part, lake, None, progress)
        add_arrivals(part, lake, new, progress, added)
        until = new.details.get("until", until)
        return JobResult.of("load", new.run_id, **new.details)

    entries = most
    while entries == most:
        details = until_first(attempt, progress).details
        entries = details["entries"]
        left_out.update({why: details[why] for why in NOT_ADDED if why in details})
    return added, left_out


if __name__ == "__main__":
    main_job(run, options)
