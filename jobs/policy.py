"""Decide whom to treat with what: the best plan within budget and limits, with a certified gap.

Reads gold.uplift_scores (the last run of the campaign's model), silver.training_<campaign> as it was scored, and
bronze.consent and bronze.delivery if they are there; overwrites silver.candidates_<campaign>, appends to
gold.policy_decisions, gold.policy_limits and gold.policy_curve.
"""

from __future__ import annotations

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.lake.schemas import DECISIONS_TABLE, gold_table, silver_table
from uplift_spark.policy.planning import candidates_of, decide, picture, policy_inputs, policy_summary
from uplift_spark.registry.models import Registry
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write a decision for every scored unit; limits that cannot be kept are refused before any decision is written."""
    config, lake = campaign.config, campaign.lake
    inputs = policy_inputs(config, lake, Registry.of(config))
    run_id = run_id or derive_run_id("policy", config, scores=inputs.scored, data=inputs.versions)
    staged = lake.write(silver_table("candidates", config.campaign), candidates_of(inputs), run_id, mode="overwrite")
    progress(f"{staged.rows:,} candidates")
    result = decide(inputs, lake.read(staged.table, staged.version), progress)
    written = [lake.write(gold_table(name), frame, run_id) for name, frame in result.tables(lake.spark).items()]
    details = result.details(lake.read(DECISIONS_TABLE, written[0].version), run_id)
    try:
        details["picture"] = picture(result, details)
    except (EnvironmentProblem, OSError) as error:
        progress(f"no picture: {error}")
    return JobResult.of("policy", run_id, staged, *written, **details, summary=policy_summary(result, details))


if __name__ == "__main__":
    main_job(run)
