"""Grow a policy tree: a few questions that say which level a unit gets, and what they bring to other units.

Reads the hold-out of silver.training_<campaign>, the champion (for its features' bins) and fits a T-learner on the
training split; overwrites silver.rewards_<campaign>, appends to gold.policy_tree and gold.uplift_metrics.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent
from uplift_spark.operations.trees import grown, inputs_of, rewarded


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Grow the tree on one half of the hold-out and value it on the other."""
    given = inputs_of(config, lake, Registry.of(config))
    run_id = run_id or derive_run_id("tree", config, data=given.data, model=given.model.version)
    staged = lake.write(f"silver.rewards_{config.campaign}", rewarded(given, say), run_id, mode="overwrite")
    say(f"the best tree for {staged.rows:,} units of the hold-out")
    tree = grown(given, lake.read(staged.table, staged.version))
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in tree.tables(lake.spark).items()]
    return JobResult.of("tree", run_id, staged, *written, bins_of=given.model.version, summary=tree.summary)


if __name__ == "__main__":
    main_job(run)
