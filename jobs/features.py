"""Join assignments with their outcomes, deliveries and profile as it was then: labels, and one training set.

Reads bronze.assignment, bronze.outcome, bronze.profile_<campaign>, bronze.delivery if it is there and bronze.event if
a feature needs it, at one Delta version each; appends to silver.label, overwrites silver.training_<campaign>, and adds
what its columns were made from to silver.feature_registry and silver.feature_versions.
"""

from __future__ import annotations

from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.cli import main_job
from uplift_spark.events.features import TrainingSetFacts, record, register
from uplift_spark.events.labels import label_table, late_and_missing
from uplift_spark.events.leakage import guard_training, leakage_sample
from uplift_spark.events.training_set import events_of, label_counts, training_counts, training_of, with_weights
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write labels and training set; features that are unknown or name treatment or outcomes are refused before any
    write, features that leak these by their values before the training set is written.
    """
    config, lake = campaign.config, campaign.lake
    events = events_of(config, lake)
    run_id = run_id or derive_run_id("features", config, upstream=events.run_ids)
    definitions = config.feature_definitions
    registered = register(lake, definitions)
    windows = ", ".join(f"{name} {config.labels.days(name):g}" for name in events.names)
    progress(f"labels as of {events.as_of:%Y-%m-%d %H:%M} UTC, days of the windows: {windows}")
    history = (events.assignments, events.outcomes, events.names, config.labels, events.as_of)
    labelled = lake.write("silver.label", label_table(*history, events.deliveries), run_id)
    stored = lake.read("silver.label", labelled.version).filter(F.col("run_id") == run_id)
    labels, sends = label_counts(stored, events.as_of)

    # A sample of units is small enough for every worker to have it, so no event is shuffled to look for leaks.
    some = leakage_sample(config, labels)
    sample = training_of(config, events, F.broadcast(events.assignments.filter(some)), stored.filter(some))
    guarded = guard_training(sample, config, progress)
    table = f"silver.training_{config.campaign}"
    rows = training_of(config, events, events.assignments, stored)
    rows = with_weights(config, events, stored, rows, labels, progress)
    trained = lake.write(table, rows, run_id, mode="overwrite")
    counts, missing = training_counts(labels, lake.read(table, trained.version), events.columns)
    recorded = record(lake, definitions, TrainingSetFacts(table, events.read, events.as_of, counts, missing), run_id)
    progress(", ".join(f"{name} {n:,}" for name, n in counts.items()))
    details = {**counts, **late_and_missing(config, history, sends, progress), "leakage": guarded}
    written = (*registered, labelled, trained, recorded)
    return JobResult.of("features", run_id, *written, inputs=events.versions, **details)


if __name__ == "__main__":
    main_job(run)
