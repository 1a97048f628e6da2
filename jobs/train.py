"""Train the campaign's causal forest, or the learner it asks for, on the training split and register it in MLflow.

Reads silver.training_<campaign> at one Delta version; writes no table but, with an override, the audit log. A run
registers one version: a rerun finds it. Where the configuration has a trial whose arms are broken, nothing is trained.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.estimators import params_of, train_model
from uplift_spark.events.training_set import units_that_show_effects
from uplift_spark.experiments.switchback_tables import trial_faults
from uplift_spark.governance.approvals import settle
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import record_event
from uplift_spark.registry.models import Origin, Registered, log_facts, rebuild
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress


def options(
    from_run: Annotated[str | None, typer.Option(help="Rebuild the model of this run and compare it.")] = None,
    override: Annotated[str | None, typer.Option(help="Why to learn from a broken trial; stays on record.")] = None,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Whether to rebuild a registered model from the data it came from, or to learn from a broken trial."""
    if from_run is not None and (run_id is not None or override is not None):
        raise ConfigError("--from-run names the run to rebuild: leave --run-id and --override out")
    if override is not None and not override.strip():
        raise ConfigError("--override is empty: say why a broken trial may teach a model")
    return {"from_run": from_run, "override": override}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    from_run: str | None = None,
    override: str | None = None,
) -> JobResult:
    """Fit, register, and point the alias champion at the version when `registry.champion` asks for it.

    With `from_run` the model of that run is trained once more and compared with the registered one; nothing is written.
    A trial whose arms are broken is a DataError, unless `override` says why, which is on record before the fit.
    """
    config, registry, table = campaign.config, campaign.registry, campaign.training_table
    if from_run is not None:
        return rebuild(config, campaign.lake, from_run, progress)
    versions = {table: campaign.lake.version(table)}
    run_id = run_id or campaign.run_id("train", data=versions)
    model = registry.version_for_run(config.model_name, run_id)
    if model is None:
        _check_trial(campaign, run_id, override, progress)
        model = _train(campaign, versions[table], run_id, override, progress)
    elif dict(model.data_versions) != versions:
        raise ConflictError(
            f"run {run_id!r} registered model {model.name!r} from {dict(model.data_versions)}, not from {versions}: "
            "choose another --run-id"
        )
    else:
        progress(f"{model.name} version {model.version} is registered already")
    champion = settle(config, campaign.lake, registry, model, run_id, progress)
    return JobResult.of("train", run_id, model=model.name, version=model.version, champion=champion)


def _check_trial(campaign: Campaign, run_id: str, override: str | None, progress: ProgressCallback) -> None:
    broken, _ = trial_faults(campaign, progress)
    if not broken:
        return
    reasons = "; ".join(one.sentence for one in broken)
    if override is None:
        raise DataError(
            f"the experiment of campaign {campaign.name} is broken, so a model would learn what its arms differ by: "
            f'{reasons}. Train all the same with --override "why", which stays on record'
        )
    progress(f"learning from a broken trial ({override}): {reasons}")
    facts = {"refused": [one.check for one in broken]}
    subject = f"training of {campaign.config.model_name}"
    record_event(campaign.config, campaign.lake, AuditEvent("", "override", subject, override, "", run_id, {}, facts))


def _train(
    campaign: Campaign, version: int, run_id: str, override: str | None, progress: ProgressCallback
) -> Registered:
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
    params |= {} if override is None else {"override": override}
    return campaign.registry.log_model(config.model_name, model.to_bytes(), origin, params, metrics)


if __name__ == "__main__":
    main_job(run, options)
