"""Decide whom to treat with what: the best plan within budget and limits, with a certified gap.

Reads gold.uplift_scores (the last run of the campaign's model), silver.training_<campaign> as it was scored, and
bronze.consent and bronze.delivery if they are there; overwrites silver.candidates_<campaign>, appends to
gold.policy_decisions, gold.policy_limits and gold.policy_curve.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.lake.tables import Lake
from uplift_spark.policy.planning import candidates_of, decide, inputs_of, picture, summary
from uplift_spark.registry.models import Registry
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: ProgressCallback = silent) -> JobResult:
    """Write a decision for every scored unit; limits that cannot be kept are refused before any decision is written."""
    given = inputs_of(config, lake, Registry.of(config))
    run_id = run_id or derive_run_id("policy", config, scores=given.scored, data=given.versions)
    staged = lake.write(f"silver.candidates_{config.campaign}", candidates_of(given), run_id, mode="overwrite")
    say(f"{staged.rows:,} candidates")
    done = decide(given, lake.read(staged.table, staged.version), say)
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in done.tables(lake.spark).items()]
    details = done.details(lake.read("gold.policy_decisions", written[0].version), run_id)
    try:
        details["picture"] = picture(done, details)
    except (EnvironmentProblem, OSError) as error:
        say(f"no picture: {error}")
    return JobResult.of("policy", run_id, staged, *written, **details, summary=summary(done, details))


if __name__ == "__main__":
    main_job(run)
