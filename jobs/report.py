"""Write the report: one page for whoever decides.

It says what to do, for whom, what it brings, how sure that is, and what the data do not show.

Reads gold.lift_table, gold.uplift_curve, gold.uplift_metrics and gold.policy_curve of the newest runs, and the hold-out
as it was scored; writes report.html into the run's reports and a copy, latest.html, into the campaign's.
"""

from __future__ import annotations

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

READS_RESULTS = True  # so Spark starts only where DuckDB cannot read them


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write the page of the newest lift run. Raises DataError when nothing was evaluated."""
    run_id = run_id or campaign.run_id("report", lift=campaign.lift_run)
    progress("reading results")
    report = campaign.report()
    path, latest = report.save(campaign.reports(run_id))
    return JobResult.of("report", run_id, page=path, latest=latest, summary=report.decision)


if __name__ == "__main__":
    main_job(run)
