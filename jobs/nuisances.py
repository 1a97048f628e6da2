"""Learn what decided who was treated and what was to be expected, and give every unit its doubly robust scores.

Reads silver.training_<campaign> at one Delta version; overwrites silver.adjusted_<campaign>, appends to
gold.average_effects, gold.overlap, gold.balance and gold.sensitivity.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.nuisances import adjusted, report_of, sample_of, source_of
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent
from uplift_spark.vocabulary import EnvironmentProblem


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Write the table that the forest is trained on, and how treated and untreated compare before and after."""
    given = source_of(config, lake)
    run_id = run_id or derive_run_id("nuisances", config, data=given.versions)
    sample = sample_of(given)
    staged = lake.write(config.training_table, adjusted(given, sample, say), run_id, mode="overwrite")
    say("averages, overlap, balance and checks")
    report = report_of(given, sample, lake.read(staged.table, staged.version), say)
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in report.tables(lake.spark).items()]
    details = report.details
    try:
        details["picture"] = str(report.picture())
    except (EnvironmentProblem, OSError) as error:
        say(f"no picture: {error}")
    return JobResult.of("nuisances", run_id, staged, *written, **details, summary=report.summary)


if __name__ == "__main__":
    main_job(run)
