"""Append users' own raw events, files or a Delta table, to one of the raw tables of bronze.

Rows that cannot be read or break the table's contract go to bronze.quarantine, before the good ones are appended.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.events.load import Added, Load, add_arrivals, arrivals, until_first
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.privacy import key_of
from uplift_spark.governance.spark import record_event
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def options(
    table: Annotated[str, typer.Argument(help="The raw table, such as bronze.event.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help="File, folder, or Delta table.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv, parquet, json or delta.", show_default=False)],
    known_at: Annotated[str | None, typer.Option(help="Column saying when a row was known; else its arrival.")] = None,
    historic: Annotated[bool, typer.Option("--historic", help="Rows were known when they happened.")] = False,
    new_column: Annotated[list[str] | None, typer.Option(help="Column the table gets; repeatable.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of rows of the same content.")] = False,
    replaced: Annotated[list[str] | None, typer.Option(help="Source whose rows go, too; repeatable.")] = None,
) -> dict[str, Any]:
    """What to load, into which table, and whether an earlier load of it was wrong."""
    return {
        "load": Load(
            table, source, format_, known_at, historic, tuple(new_column or ()), replace, tuple(replaced or ())
        )
    }


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, load: Load
) -> JobResult:
    """Add what no run has added before; a source that does not fit the table is refused before any write.

    With `load.replace` the rows that earlier loads of the same files, or of the same Delta table, brought go first.
    """
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


if __name__ == "__main__":
    main_job(run, options)
