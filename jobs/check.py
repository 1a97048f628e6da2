"""Check whether a trial may be read: units in arms as designed, arms alike, delivery, days, looks, other trials.

Reads the training set, or the table that `experiment.table` names, gold.experiment, and of a switchback
bronze.schedule; appends to gold.experiment_health. Ends with exit code 1 and the reasons where the trial is broken and
nobody overrides that.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.experiments.health import health_findings
from uplift_spark.experiments.protocol import (
    ReadingOptions,
    reading_identity,
    readout_design,
    refuse_broken,
    write_findings,
)
from uplift_spark.experiments.switchback_tables import trial_reading
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def options(
    as_of: Annotated[str | None, typer.Option(help="Read outcomes until then, in UTC, such as 2026-03-09.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Assignment has ended: this reading is the last.")] = False,
    override: Annotated[str | None, typer.Option(help="Why a broken trial is read; stays on record.")] = None,
) -> dict[str, Any]:
    """How the trial is read."""
    return {"reading": ReadingOptions.of_texts(as_of, final, override)}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    reading: ReadingOptions | None = None,
) -> JobResult:
    """Write what is wrong with the trial; a broken one is a DataError once that is written."""
    how = reading or ReadingOptions()
    read = trial_reading(campaign, how)
    findings = [*health_findings(read.facts, readout_design(campaign.config)), *read.findings]
    run_id = run_id or campaign.run_id("check", **reading_identity(campaign, read, how))
    written = write_findings(campaign, read, findings, how, run_id)
    for one in findings:
        progress(f"{one.severity}: {one.sentence}")
    refuse_broken(campaign, findings, how.override)
    units = {read.noun: {arm: f"{count:,.0f}" for arm, count in read.facts.units.items()}}
    verdict = "overridden" if any(one.severity == "refuse" for one in findings) else "may be read"
    return JobResult.of("check", run_id, written, trial=verdict, **units, **read.details)


if __name__ == "__main__":
    main_job(run, options)
