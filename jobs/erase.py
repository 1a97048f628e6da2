"""Erase units from the models in use and from every table; with --purge also from old files and logs.

Registers a model version without the units where one in use was trained on them, and writes its training rows to
silver.trained_<model>_<version>.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.governance.erasure import Erasure, run_erasure
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

NAMES_ITS_RUN = True  # its name must say nothing about the units


def options(
    unit: Annotated[list[str] | None, typer.Option("--unit", help="Id of a unit; repeatable.")] = None,
    units: Annotated[Path | None, typer.Option("--units", help="File with one id a line.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove what deleted rows left in files and logs.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "not stated",
) -> dict[str, Any]:
    """Whom to erase, and whether nothing may be left in old files."""
    return {"erasure": replace(Erasure.from_options(unit, units, purge), reason=reason)}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, erasure: Erasure
) -> JobResult:
    """Erase what `erasure` names; a rerun completes a killed run and otherwise finds nothing left."""
    return run_erasure(campaign.config, campaign.lake, erasure, progress)


if __name__ == "__main__":
    main_job(run, options)
