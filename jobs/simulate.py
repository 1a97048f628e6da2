"""Tell what the plan would bring under other budgets, costs and levels; nothing is decided.

Reads what the policy job reads, and bronze.truth of simulated campaigns; overwrites silver.simulated_<campaign> once a
scenario, appends to gold.policy_scenarios.
"""

from __future__ import annotations

import pandas as pd

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.flow.lift import as_arrow
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.evaluation import true_effects
from uplift_spark.operations.policy import candidates_of, decide
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent
from uplift_spark.operations.simulating import outcome_of, scenarios_of, summary
from uplift_spark.vocabulary import EXPERIMENT


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Write what each scenario brings; one whose limits cannot be kept is refused, and nothing written to gold."""
    given = scenarios_of(config, lake, Registry.of(config))
    first = next(iter(given.values()))
    run_id = run_id or derive_run_id("simulate", config, scores=first.scored, data=first.versions)
    truth, staging = true_effects(config, lake), f"silver.simulated_{config.campaign}"
    rows = []
    for name, one in given.items():
        say(f"scenario {name}")
        staged = lake.write(staging, candidates_of(one), f"{run_id}-{name}", mode="overwrite")
        done = decide(one, lake.read(staging, staged.version), say, budgets=())
        rows += outcome_of(name, done, truth)
    table = pd.DataFrame(rows)
    frame = lake.spark.createDataFrame(as_arrow(table, **{EXPERIMENT: config.campaign}))
    written = lake.write("gold.policy_scenarios", frame, run_id)
    unit = "money" if first.net else config.roles.outcome
    return JobResult.of("simulate", run_id, written, scenarios=len(given), summary=summary(table, unit))


if __name__ == "__main__":
    main_job(run)
