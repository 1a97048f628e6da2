"""Score every unit of the campaign for every treated level with a registered forest.

Reads silver.training_<campaign> (all splits) at one Delta version, and bronze.consent where it is there: who objects to
profiling is not scored. Appends to gold.uplift_scores.
"""

from __future__ import annotations

from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.spark import score
from uplift_spark.governance.privacy import Objections
from uplift_spark.lake.schemas import SCORES_TABLE
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write one row per unit and treated level; a model that does not fit the features is refused before any write."""
    lake, registry, source = campaign.lake, campaign.registry, campaign.training_table
    version = lake.version(source)
    model = campaign.model_in_use
    if (current := registry.current(model)).version != model.version:
        raise ConfigError(
            f"{model.name} version {model.version} was trained on units erased since: set registry.version to "
            f"{current.version} or leave it out; run `uplift erase` again if it was killed"
        )
    identity = [model.name, model.version, model.sha256]
    objections = Objections.of(lake)
    objected = {"profiling": objections.run_ids} if objections else {}
    run_id = run_id or campaign.run_id("score", model=identity, data={source: version}, **objected)
    rows = campaign.training_set(version)
    forest = registry.load(model)
    try:
        effects = score(objections.without(rows) if objections else rows, forest)
    except DataError as error:
        raise DataError(f"{source} does not fit {model.name} version {model.version}: {error}") from error
    scores = effects.select(
        "*",
        F.lit(model.name).alias("model_name"),
        F.lit(str(model.version)).alias("model_version"),
        F.lit(version).alias("feature_version"),
        F.lit(run_id).alias("run_id"),
        F.current_timestamp().alias("scored_at"),
    )
    progress(f"scoring with {model.name} version {model.version}")
    left_out = {"objecting": objections.count_in(rows)} if objections else {}
    if left_out:
        progress(f"{left_out['objecting']:,} units object to profiling: they get no score")
    written = lake.write(SCORES_TABLE, scores, run_id, partition_by=("model_name", "model_version"))
    return JobResult.of("score", run_id, written, model=model.name, version=model.version, **left_out)


if __name__ == "__main__":
    main_job(run)
