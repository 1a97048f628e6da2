"""Join assignments with their outcomes, deliveries and profile as it was then: labels, and one training set.

Reads bronze.assignment, bronze.outcome, bronze.profile_<campaign>, bronze.delivery if it is there and bronze.event if
a feature needs it, at one Delta version each; appends to silver.label, overwrites silver.training_<campaign>, and adds
what its columns were made from to silver.feature_registry and silver.feature_versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError
from uplift_spark.events.features import TrainingSetFacts, described, freshness, listed, record, register
from uplift_spark.events.labels import label_table, late_and_missing
from uplift_spark.events.leakage import guard_training, leakage_sample
from uplift_spark.events.training_set import events_of, label_counts, training_counts, training_of, with_weights
from uplift_spark.experiments.protocol import random_propensity
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.schemas import LABEL_TABLE, silver_table
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import DOSE
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.spark_versions import few_rows, local_frame


@dataclass(frozen=True)
class RegistryQuestion:
    """What to read from the feature registry: `list`, `stale`, or `describe` with a feature's name.

    Raises ConfigError for anything else.
    """

    what: str
    name: str | None = None

    def __post_init__(self) -> None:
        if self.what not in ("list", "describe", "stale") or (self.what == "describe") != (self.name is not None):
            raise ConfigError("use `uplift features`, or with list, describe NAME or stale after it")

    def answer(self, lake: Lake) -> JobResult:
        """A result without a run: nothing is written."""
        if self.what == "describe":
            return JobResult("features", "", details=described(lake, str(self.name)))
        return JobResult("features", "", details={"features": listed(lake) if self.what == "list" else freshness(lake)})


def options(
    what: Annotated[str | None, typer.Argument(help="list, describe or stale; without it the job runs.")] = None,
    name: Annotated[str | None, typer.Argument(help="The feature to describe.")] = None,
    run_id: str | None = None,
) -> dict[str, Any]:
    """What to read from the feature registry, if anything."""
    if what is None:
        return {}
    question = RegistryQuestion(what, name)
    if run_id is not None:
        raise ConfigError(f"`uplift features {what}` runs no job: leave --run-id out")
    return {"question": question}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    question: RegistryQuestion | None = None,
) -> JobResult:
    """Write labels and training set; features that are unknown or name treatment or outcomes are refused before any
    write, features that leak these by their values before the training set is written.

    With a `question` nothing runs: the result is the feature registry's answer.
    """
    config, lake = campaign.config, campaign.lake
    if question is not None:
        return question.answer(lake)
    events = events_of(config, lake, progress)
    run_id = run_id or campaign.run_id("features", upstream=events.run_ids)
    definitions = config.feature_definitions
    registered = register(lake, definitions)
    windows = ", ".join(f"{name} {config.labels.days(name):g}" for name in events.names)
    progress(f"labels as of {events.as_of:%Y-%m-%d %H:%M} UTC, days of the windows: {windows}")
    history = (events.assignments, events.outcomes, events.names, config.labels, events.as_of)
    doses = (DOSE,) if config.roles.grid else ()
    labelled = lake.write(LABEL_TABLE, label_table(*history, events.deliveries), run_id, new_columns=doses)
    stored = lake.read(LABEL_TABLE, labelled.version).filter(F.col("run_id") == run_id)
    stored = stored if doses else stored.drop(DOSE)
    labels, sends = label_counts(stored, events.as_of)

    some, random = leakage_sample(config, labels), random_propensity(config)
    if few_rows(lake.spark):  # both are made at once
        rows = local_frame(lake.spark, training_of(config, events, stored, random).toArrow())
        sample = rows.filter(some)
    else:  # a sample of units is small enough for every worker to have it, so no event is shuffled to look for leaks
        rows = training_of(config, events, stored, random)
        sample = training_of(config, events, F.broadcast(stored.filter(some)), random)
    guarded = guard_training(sample, config, progress)
    table = silver_table("training", config.campaign)
    rows = with_weights(config, events, stored, rows, labels, progress)
    trained = lake.write(table, rows, run_id, mode="overwrite")
    counts, missing = training_counts(labels, lake.read(table, trained.version), events.columns)
    recorded = record(lake, definitions, TrainingSetFacts(table, events.read, events.as_of, counts, missing), run_id)
    progress(", ".join(f"{name} {n:,}" for name, n in counts.items()))
    details = {**counts, **late_and_missing(config, history, sends, progress), "leakage": guarded}
    details |= {"unmatched": events.unmatched} if events.unmatched else {}
    details |= {"objecting": events.objecting} if events.objecting else {}
    for leak in guarded["allowed"]:
        event = AuditEvent(
            "", "allow", f"leak of {leak['feature']}", leak["reason"], "", run_id, {table: trained.version}, leak
        )
        record_event(config, lake, event)
    written = (*registered, labelled, trained, recorded)
    return JobResult.of("features", run_id, *written, inputs=events.versions, **details)


if __name__ == "__main__":
    main_job(run, options)
