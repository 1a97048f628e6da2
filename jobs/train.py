"""Train the campaign's causal forest, or the learner it asks for, on the training split and register it in MLflow.

Reads silver.training_<campaign> at one Delta version; writes no table. A run registers one version: a rerun finds it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, ConflictError
from uplift_spark.estimators import params_of, train_model
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Origin, Registered, Registry, log_facts, rebuild
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, derive_run_id, no_progress


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
    config, lake = campaign.config, campaign.lake
    if from_run is not None:
        return rebuild(config, lake, from_run, progress)
    registry = Registry.of(config)
    table = config.training_table
    versions = {table: lake.version(table)}
    run_id = run_id or derive_run_id("train", config, data=versions)
    model = registry.version_for_run(config.model_name, run_id)
    if model is None:
        model = _train(config, lake, registry, (table, versions[table], run_id), progress)
    elif dict(model.data_versions) != versions:
        raise ConflictError(
            f"run {run_id!r} registered model {model.name!r} from {dict(model.data_versions)}, not from {versions}: "
            "choose another --run-id"
        )
    else:
        progress(f"{model.name} version {model.version} is registered already")
    if config.registry.champion:
        registry.set_champion(model)
    return JobResult.of("train", run_id, model=model.name, version=model.version, champion=config.registry.champion)


def _train(
    config: Config, lake: Lake, registry: Registry, data: tuple[str, int, str], progress: ProgressCallback
) -> Registered:
    table, version, run_id = data
    frame = lake.read(table, version)
    arguments = params_of(config)
    origin = Origin(
        run_id, config.training_roles, dict(frame.dtypes), {table: version}, version, code_version(), arguments
    )
    started = time.monotonic()
    model = train_model(arguments, frame.where("split = 'train'"), config.training_roles, progress)
    params, metrics = log_facts(model.model, time.monotonic() - started)
    progress(f"registering {config.model_name}")
    params = {"campaign": config.campaign, "holdout": config.holdout, **params}
    return registry.log_model(config.model_name, model.to_bytes(), origin, params, metrics)


if __name__ == "__main__":
    main_job(run, options)
