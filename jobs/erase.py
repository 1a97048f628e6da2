"""Erase units from the models in use and from every table; with --purge also from old files and logs.

Registers a model version without the units where one in use was trained on them, and writes its training rows to
silver.trained_<model>_<version>.
"""

from __future__ import annotations

from uplift_spark.campaign import Campaign
from uplift_spark.cli import erase as command
from uplift_spark.cli import main_job
from uplift_spark.governance.erasure import Erasure
from uplift_spark.governance.erasure import run_erasure as erase_units
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, erasure: Erasure
) -> JobResult:
    """Erase what `erasure` names; a rerun completes a killed run and otherwise finds nothing left."""
    config, lake = campaign.config, campaign.lake
    return erase_units(config, lake, erasure, progress)


if __name__ == "__main__":
    main_job(run, command)
