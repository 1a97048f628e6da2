"""Hold the champion against other learners, or versions of itself, on one hold-out with paired intervals.

Reads silver.training_<campaign>; overwrites silver.compared_<campaign> (every model's predictions for the hold-out),
appends to gold.uplift_metrics and gold.cost_curve, and logs the metrics and a picture in MLflow.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.comparing import compared, contenders_of, logged, summary, trained
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Fit what is not registered, score the hold-out once with all, and write how they differ from the champion."""
    registry = Registry.of(config)
    contenders = contenders_of(config, lake, registry)
    run_id = run_id or derive_run_id("compare", config, data=contenders.data, models=list(contenders.registered))
    predictions, seconds = trained(contenders, say)
    staged = lake.write(contenders.staging, predictions, run_id, mode="overwrite")
    done = compared(contenders, lake.read(staged.table, staged.version), say)
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in done.tables(lake.spark).items()]
    details = logged(done, seconds, registry, run_id, say)
    return JobResult.of("compare", run_id, staged, *written, **details, summary=summary(done))


if __name__ == "__main__":
    main_job(run)
