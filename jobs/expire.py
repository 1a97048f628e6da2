"""Delete the rows about units that are older than `governance.retention` keeps them, and the files of old versions.

Rows go from every table of the campaign that the section names; what a model in use was trained on stays in
silver.trained_<model>_<version>. With governance.audit it adds entries to gold.audit_log.
"""

from __future__ import annotations

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.governance.retention import run_retention
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

NAMES_ITS_RUN = True  # what is due depends on the day


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Delete what is due; a rerun completes a killed run and otherwise finds nothing due."""
    return run_retention(campaign.config, campaign.lake, progress)


if __name__ == "__main__":
    main_job(run)
