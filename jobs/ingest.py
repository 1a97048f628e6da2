"""Turn a campaign's source, simulated or a real trial's file, into immutable bronze events.

Appends to bronze.profile_<campaign>, bronze.outcome, bronze.assignment, bronze.truth (simulated) and bronze.quarantine.
"""

from __future__ import annotations

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.events.ingest import prepare
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write the campaign's events, the assignment last; an unfit source is refused before any write."""
    config, lake = campaign.config, campaign.lake
    run_id = run_id or derive_run_id("ingest", config)
    batch = prepare(config, lake, run_id, progress)
    written = []
    for table, frame in batch.tables.items():
        progress(f"writing {table}")
        written.append(lake.write(table, frame, run_id))
    return JobResult.of("ingest", run_id, *written, **batch.details)


if __name__ == "__main__":
    main_job(run)
