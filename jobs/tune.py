"""Try arguments of the forest on the campaign's training rows; judge them by the R-loss of units held back.

Reads silver.training_<campaign>; writes no table. Every trial is a run in MLflow: a rerun goes on where one ended.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent
from uplift_spark.operations.tuning import best_of, inputs_of, summary, tuned


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Try, log, and say which arguments are best and what they gain."""
    given = inputs_of(config, lake)
    run_id = run_id or derive_run_id("tune", config, data=given.data)
    trials = tuned(given, Registry.of(config), run_id, say)
    best = dict(best_of(trials).params)
    return JobResult.of("tune", run_id, trials=len(trials), best=best, summary=summary(config, trials))


if __name__ == "__main__":
    main_job(run)
