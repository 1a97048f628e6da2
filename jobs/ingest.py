"""Turn a campaign's source, simulated or a real trial's file, into immutable bronze events.

Appends to bronze.profile_<campaign>, bronze.outcome, bronze.assignment, bronze.truth (simulated) and bronze.quarantine.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.events.ingest import prepare
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: ProgressCallback = silent) -> JobResult:
    """Write the campaign's events, the assignment last; an unfit source is refused before any write."""
    run_id = run_id or derive_run_id("ingest", config)
    batch = prepare(config, lake, run_id, say)
    written = []
    for table, frame in batch.tables.items():
        say(f"writing {table}")
        written.append(lake.write(table, frame, run_id))
    return JobResult.of("ingest", run_id, *written, **batch.details)


if __name__ == "__main__":
    main_job(run)
