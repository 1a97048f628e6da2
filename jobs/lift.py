"""Evaluate the scores on the hold-out: lift tables, uplift curves and metrics, with intervals and pictures.

Reads gold.uplift_scores (the last run of the campaign's model, of `registry.version` where it is set), the hold-out of
silver.training_<campaign> as it was scored and, for simulated campaigns, bronze.truth; appends to gold.lift_table,
gold.uplift_curve, gold.uplift_metrics and, of a registered causal forest, gold.lift_driver.
"""

from __future__ import annotations

from dataclasses import replace

from pyspark.sql import DataFrame

from uplift_spark.campaign import Campaign, Scored
from uplift_spark.console import main_job
from uplift_spark.errors import DataError, EnvironmentProblem, UpliftError
from uplift_spark.evaluation.drivers import LiftDriver, driver_table, driver_words, without_drivers
from uplift_spark.evaluation.lift_tables import as_arrow, lift_table
from uplift_spark.evaluation.metrics import Evaluation, curve_table, metric_table, with_cuts, with_mean_doses
from uplift_spark.evaluation.pictures import write_pictures
from uplift_spark.evaluation.spark import against_truth, drivers_of, evaluate, mean_doses, winsorised, with_drivers
from uplift_spark.evaluation.summary import caveats, direction_words, dose_words, lift_summary
from uplift_spark.forest.forest import Model
from uplift_spark.lake.schemas import gold_table
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write the three gold tables; a hold-out without control, scores or strangers to the model is refused before."""
    config, lake = campaign.config, campaign.lake
    scored = campaign.last_scored()
    run_id = run_id or campaign.run_id("lift", scores=scored)
    unseen = campaign.check_unseen(scored)
    progress(f"evaluating {scored.model_name} version {scored.model_version} on the hold-out")
    scores, truth, spec = campaign.scores(scored), campaign.true_effects(), campaign.evaluation_spec
    with campaign.readable(scored):
        holdout, cuts = winsorised(campaign.holdout(scored), config.lift.winsorise, spec.table)
        evaluation, drivers = _evaluated(campaign, scored, holdout, scores, progress)
    known = {} if truth is None else against_truth(holdout, scores, truth, evaluation.levels, spec.direction)
    driven, evaluation = driver_table(evaluation, drivers), without_drivers(evaluation)
    lift, curves, metrics = lift_table(evaluation, config.economics), curve_table(evaluation), metric_table(evaluation)
    metrics = with_mean_doses(metrics, {} if not config.roles.grid else mean_doses(holdout, [*config.roles.grid_doses]))
    model = {"model_version": scored.model_version}
    tables = {"lift_table": as_arrow(lift, campaign=campaign.name, **model), "uplift_curve": as_arrow(curves)}
    tables["uplift_metrics"] = as_arrow(with_cuts(metrics, cuts), **model)
    if len(driven):
        tables["lift_driver"] = as_arrow(driven, campaign=campaign.name, **model)
    written = [lake.write(gold_table(n), lake.spark.createDataFrame(table), run_id) for n, table in tables.items()]
    details = {"model": scored.model_name, "version": scored.model_version, "units": evaluation.arms.units}
    if known:
        details["truth"] = {level: accuracy.details() for level, accuracy in known.items()}
    try:
        folder = campaign.reports(run_id)
        pictures = write_pictures(folder, lift, curves, metrics, evaluation.rates, known, config.roles)
        details["pictures"] = ", ".join(map(str, pictures))
    except (EnvironmentProblem, OSError) as error:
        progress(f"no pictures: {error}")
    sentences = direction_words(config.roles.outcome, spec.direction)
    sentences += caveats(evaluation.arms, unseen, cuts, fitted=config.nuisances is not None)
    sentences += dose_words(metrics, config.roles.control)
    summary = "\n".join([lift_summary(lift, metrics, known), *sentences, *driver_words(driven)])
    return JobResult.of("lift", run_id, *written, **details, summary=summary)


def _evaluated(
    campaign: Campaign, scored: Scored, holdout: DataFrame, scores: DataFrame, progress: ProgressCallback
) -> tuple[Evaluation, list[LiftDriver]]:
    """The hold-out's sums, also by what the model that scored it says drives lift."""
    spec = campaign.evaluation_spec
    model = _model_of(campaign, scored, progress)
    drivers, cuts = ([], ()) if model is None else drivers_of(holdout, model, spec.segments, spec.direction)
    marked = with_drivers(holdout, drivers)
    if len(cuts) > len(drivers):
        try:
            return evaluate(marked, scores, replace(spec, segments=(*spec.segments, *cuts))), drivers
        except DataError as error:  # such as a bucket whose name no crossing can have
            progress(f"drivers are not measured within segments: {error}")
    return evaluate(marked, scores, replace(spec, segments=(*spec.segments, *cuts[: len(drivers)]))), drivers


def _model_of(campaign: Campaign, scored: Scored, progress: ProgressCallback) -> Model | None:
    """The model that scored, of the predicted outcome; None where it is not to be had: figures need no model."""
    if not scored.model_version.isdigit():
        return None
    try:
        registered = campaign.registry.known(campaign.config.model_name, int(scored.model_version))
        return None if registered is None else campaign.registry.load(registered).of(campaign.config.roles.outcome)
    except UpliftError as error:
        progress(f"drivers of lift are left out: {error}")
        return None


if __name__ == "__main__":
    main_job(run)
