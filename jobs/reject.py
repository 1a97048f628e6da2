"""Reject a version of the campaign's model: it does not become the champion, whatever trains it again.

Adds an entry to gold.audit_log and tags to the version. A version that is the champion already stays it until another
one is promoted.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.governance.approvals import VersionFacts, VersionVerdict, decide_version
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

NAMES_ITS_RUN = True  # a verdict is no run


def options(
    version: Annotated[int, typer.Argument(min=1, help="The version to reject.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="Who rejects.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", help="Why.", show_default=False)],
) -> dict[str, Any]:
    """Which version, who, and why."""
    return {"verdict": VersionVerdict(version, by, reason, approves=False)}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, verdict: VersionVerdict
) -> JobResult:
    """Record the verdict and tag the version."""
    details = decide_version(campaign.config, campaign.lake, campaign.registry, verdict, VersionFacts())
    return JobResult("reject", "", details=details)


if __name__ == "__main__":
    main_job(run, options)
