"""Turn a campaign's source into immutable bronze events: the user's own tables, a trial's file, or a simulation.

Appends to bronze.profile_<campaign>, bronze.outcome, bronze.assignment, bronze.truth (simulated) and bronze.quarantine.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.events.event_source import load_events
from uplift_spark.events.ingest import prepare, refuse_second_load
from uplift_spark.events.table_source import Replacement, open_source, refuse_unfinished, table_batch
from uplift_spark.experiments.protocol import simulated_trial
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import record_event
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.sections.source import EventsSource


def options(
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the campaign's earlier rows.")] = False,
) -> dict[str, Any]:
    """Whether the campaign was loaded before, and that was wrong."""
    return {"replace": replace}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    replace: bool = False,
) -> JobResult:
    """Write the campaign's events, the assignment last; an unfit source is refused before any write.

    Of two at once the first to write goes on, and the other is refused before it has written anything.

    With `replace` rows of earlier runs go first, once the new ones are checked; older versions of the tables keep them.
    """
    config, lake = campaign.config, campaign.lake
    if isinstance(config.source, EventsSource):
        result = load_events(config, config.source, lake, progress, run_id, replace)
        return _on_record(campaign, result, ()) if replace else result
    opened = open_source(config, lake, progress)
    trial, dealt = simulated_trial(campaign)
    identity = {**opened.identity, **dealt}

    def named(earlier: Replacement) -> str:
        return run_id or campaign.run_id("ingest", **identity, **earlier.identity)

    earlier = Replacement.begun(lake, config.campaign, replace, named)
    run_id = named(earlier)
    if not replace:
        refuse_second_load(lake, config.campaign, run_id)
        refuse_unfinished(lake, config.campaign, run_id)
    if opened.rows is None:
        batch = prepare(config, lake, run_id, progress, trial)
    else:
        batch = table_batch(config, lake, opened, run_id, progress)
    earlier.remove(lake, progress)
    written = []
    for table, frame in batch.tables.items():
        progress(f"writing {table}")
        written.append(earlier.write(lake, table, frame, run_id))
    result = JobResult.of("ingest", run_id, *written, **batch.details)
    gone = tuple(filter(None, earlier.before.split(",")))  # of a run that was killed, too, whose rows are gone already
    return _on_record(campaign, result, gone) if replace and gone else result


def _on_record(campaign: Campaign, result: JobResult, runs: tuple[str, ...]) -> JobResult:
    """Have the audit log say that rows of earlier runs went."""
    versions = {table: written["version"] for table, written in result.tables.items()}
    subject, facts = f"events of campaign {campaign.name}", {"runs": list(runs)} if runs else {}
    event = AuditEvent("", "replace", subject, "--replace", "", result.run_id, versions, facts)
    record_event(campaign.config, campaign.lake, event)
    return result


if __name__ == "__main__":
    main_job(run, options)
