"""Train the campaign's causal forest, or the learner it asks for, on the training split and register it in MLflow.

Reads silver.training_<campaign> at one Delta version; writes no table. A run registers one version: a rerun finds it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, ConflictError
from uplift_spark.estimators import params_of, train_model
from uplift_spark.events.training_set import units_that_show_effects
from uplift_spark.governance.approvals import settle
from uplift_spark.registry.models import Origin, Registered, log_facts, rebuild
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress


def options(
    from_run: Annotated[str | None, typer.Option(help="Rebuild the model of this run and compare it.")] = None,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Whether to rebuild a registered model from the data it came from."""
    if from_run is not None and run_id is not None:
        raise ConfigError("--from-run names the run to rebuild: leave --run-id out")
    return {"from_run": from_run}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    from_run: str | None = None,
) -> JobResult:
    """Fit, register, and point the alias champion at the version when `registry.champion` asks for it.

    With `from_run` the model of that run is trained once more and compared with the registered one; nothing is written.
    """
    config, registry, table = campaign.config, campaign.registry, campaign.training_table
    if from_run is not None:
        return rebuild(config, campaign.lake, from_run, progress)
    versions = {table: campaign.lake.version(table)}
    run_id = run_id or campaign.run_id("train", data=versions)
    model = registry.version_for_run(config.model_name, run_id)
    if model is None:
        model = _train(campaign, versions[table], run_id, progress)
    elif dict(model.data_versions) != versions:
        raise ConflictError(
            f"run {run_id!r} registered model {model.name!r} from {dict(model.data_versions)}, not from {versions}: "
            "choose another --run-id"
        )
    else:
        progress(f"{model.name} version {model.version} is registered already")
    champion = settle(config, campaign.lake, registry, model, run_id, progress)
    return JobResult.of("train", run_id, model=model.name, version=model.version, champion=champion)


def _train(campaign: Campaign, version: int, run_id: str, progress: ProgressCallback) -> Registered:
    config, table, frame = campaign.config, campaign.training_table, campaign.training_set(version)
    if config.nuisances is None and (targeted := units_that_show_effects(frame)):
        progress(targeted)
    arguments = params_of(config)
    origin = Origin(
        run_id, config.training_roles, dict(frame.dtypes), {table: version}, version, code_version(), arguments
    )
    started = time.monotonic()
    model = train_model(arguments, frame.where("split = 'train'"), config.training_roles, progress)
    params, metrics = log_facts(model.model, time.monotonic() - started)
    progress(f"registering {config.model_name}")
    params = {"campaign": config.campaign, "holdout": config.holdout, **params}
    return campaign.registry.log_model(config.model_name, model.to_bytes(), origin, params, metrics)


if __name__ == "__main__":
    main_job(run, options)
