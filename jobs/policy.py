"""Decide whom to treat with what: the best plan within budget and limits, with a certified gap.

Reads gold.uplift_scores (the last run of the campaign's model), silver.training_<campaign> as it was scored, and
bronze.consent and bronze.delivery if they are there; overwrites silver.candidates_<campaign>, appends to
gold.policy_decisions, gold.policy_limits and gold.policy_curve.
"""

from __future__ import annotations

from dataclasses import replace

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.governance.spark import record_plan
from uplift_spark.lake.schemas import DECISIONS_TABLE, gold_table, silver_table
from uplift_spark.policy.planning import IN_SUMMARY, candidates_of, decide, picture, policy_inputs, policy_summary
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write a decision for every scored unit; limits that cannot be kept are refused before any decision is written."""
    inputs, lake = policy_inputs(campaign), campaign.lake
    run_id = run_id or campaign.run_id("policy", scores=inputs.scored, data=inputs.versions)
    staged = lake.write(silver_table("candidates", campaign.name), candidates_of(inputs), run_id, mode="overwrite")
    progress(f"{staged.rows:,} candidates")
    result = decide(inputs, lake.read(staged.table, staged.version), progress)
    written = [lake.write(DECISIONS_TABLE, result.decisions(), run_id)]
    details = result.details(lake.read(DECISIONS_TABLE, written[0].version), run_id)
    tables = result.tables(lake.spark, details)
    written += [lake.write(gold_table(name), frame, run_id) for name, frame in tables.items()]
    record_plan(campaign.config, lake, run_id, inputs.sources, result.on_record(details))
    try:
        details["picture"] = picture(result, details, campaign.reports(run_id))
    except (EnvironmentProblem, OSError) as error:
        progress(f"no picture: {error}")
    shown = JobResult.of("policy", run_id, staged, *written, **details, summary=policy_summary(result, details))
    return replace(shown, unprinted=IN_SUMMARY)


if __name__ == "__main__":
    main_job(run)
