"""Approve a version of the campaign's model, which then becomes the champion; refused while its checklist lacks a part.

Reads gold.uplift_metrics, gold.bias_audit and gold.audit_log; adds an entry to gold.audit_log and tags to the version.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import DataError
from uplift_spark.governance.approvals import VersionVerdict, decide_version, promotion_facts
from uplift_spark.roles import TREATMENT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

NAMES_ITS_RUN = True  # a verdict is no run


def options(
    version: Annotated[int, typer.Argument(min=1, help="The version to approve.", show_default=False)],
    by: Annotated[str, typer.Option("--by", help="Who approves: not the one who trained it.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", help="Why.", show_default=False)],
) -> dict[str, Any]:
    """Which version, who, and why."""
    return {"verdict": VersionVerdict(version, by, reason)}


def evaluations(campaign: Campaign, version: int) -> dict[str, float]:
    """Lower ends of the checklist's metric by level, from the version's newest scores; empty where there are none."""
    approval = campaign.config.governance.approval
    if approval is None:
        return {}
    try:
        lift = campaign.run_id("lift", scores=campaign.last_scored(version))
        rows = campaign.metrics(campaign.config.roles.outcome, metric=approval.metric, run_id=lift)
    except DataError:
        return {}
    return dict(zip(rows[TREATMENT], rows["lower"].astype(float), strict=True))


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, verdict: VersionVerdict
) -> JobResult:
    """Check the checklist, record the verdict, tag the version and promote it."""
    config, lake, registry = campaign.config, campaign.lake, campaign.registry
    facts = promotion_facts(config, lake, registry, verdict.version, evaluations(campaign, verdict.version))
    details = decide_version(config, lake, registry, verdict, facts)
    return JobResult("approve", "", details=details)


if __name__ == "__main__":
    main_job(run, options)
