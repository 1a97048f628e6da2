"""Decide whether the champion is fitted anew, and if so fit, validate and make the new version the challenger.

Reads the windows that `uplift monitor` wrote (gold.kpi, gold.drift, gold.findings), gold.alerts and raw events. Where
there is a reason and nothing forbids it: runs features (and nuisances), refreshes the champion's trees or grows new
ones, compares both on the hold-out, and points the alias challenger at a version that passes. Appends each decision
with its reasons to gold.retrain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple

import typer
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.estimators import params_of
from uplift_spark.evaluation.comparison import ANY_LEVEL
from uplift_spark.events.training_set import Events, events_of
from uplift_spark.experiments.switchback_tables import trial_faults
from uplift_spark.forest.forest import Forest
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.schemas import gold_table
from uplift_spark.lake.session import instant, moment
from uplift_spark.learners.metalearners import AnyModel
from uplift_spark.registry.evidence import (
    MonitoredWindows,
    matured,
    monitored_windows,
    new_arms,
    open_incidents,
    quarantined_since,
    was_on_trial,
)
from uplift_spark.registry.models import CHALLENGER, Registered, still_there
from uplift_spark.registry.retraining import (
    RetrainCheck,
    RetrainFacts,
    arm_checks,
    decision_lines,
    drifted_columns,
    lift_by_level,
    plan_figures,
    retrain_blocks,
    retrain_decision,
    retrain_triggers,
    validation_checks,
)
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress, plain_values

RETRAIN_TABLE, METRICS_TABLE = gold_table("retrain"), gold_table("uplift_metrics")
_CONCLUSION = "decision"


def options(
    because: Annotated[str | None, typer.Option(help="Retrain by hand; why, for the record.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Whether somebody wants it, and whether anything is written."""
    if because is not None and not because.strip():
        raise ConfigError("--because is blank: say why the model is to be fitted anew")
    if dry_run and run_id is not None:
        raise ConfigError("--dry-run makes no run: leave --run-id out")
    return {"because": because, "dry_run": dry_run}


class NewVersion(NamedTuple):
    """A new version, and how it came to be: refresh or regrow."""

    version: int
    how: str


@dataclass(frozen=True)
class Retraining:
    """What a run works with; `trained` is when the newest unit was assigned that the champion was trained on."""

    campaign: Campaign
    champion: Registered
    model: AnyModel
    events: Events
    windows: MonitoredWindows
    trained: datetime


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    because: str | None = None,
    dry_run: bool = False,
) -> JobResult:
    """Decide, fit where that is the decision, and write it down; a run that was done adds nothing.

    Of two at once the first to finish counts, and the other is refused. Raises ConfigError without a champion,
    DataError where no window was monitored or newer ones wait for `uplift monitor`.
    """
    config, lake = campaign.config, campaign.lake
    claim = lake.claim(RETRAIN_TABLE, f"retrain {campaign.name}")
    it = _retraining(campaign, progress)
    champion, facts = it.champion, _facts(it, because)
    identity = {"model": [champion.name, champion.version, champion.sha256], "because": because}
    upstream = [sorted(it.windows.runs.values()), it.events.run_ids, it.events.as_of, list(facts.incidents)]
    run_id = run_id or campaign.run_id("retrain", **identity, data=upstream)
    if (known := _known(it, run_id)) is not None:
        return _again(it, run_id, known, progress)
    checks = [*retrain_triggers(facts, config.retrain), *retrain_blocks(facts, config.retrain)]
    outcome, reason = retrain_decision(checks)
    if dry_run:
        would = {"decision": outcome or "would fit a new model", "sentence": reason}
        return JobResult("retrain", "", details=_details({**would, "champion_version": champion.version}, checks))
    fitted = None
    if outcome is None:
        progress(f"fitting anew: {reason}")
        more, fitted = _fit_and_validate(it, progress)
        checks += more
        outcome, reason = retrain_decision(checks)
    assert outcome is not None
    model = {} if fitted is None else {"model_version": str(fitted.version), "fit": fitted.how}
    known = {"decision": outcome, "sentence": reason, "champion_version": str(champion.version), **model}
    shared = {**known, CAMPAIGN: campaign.name, "window_end": it.windows.end}
    rows = [*({**shared, **asdict(check)} for check in checks), {**shared, "check": _CONCLUSION, "state": outcome}]
    written = lake.write(RETRAIN_TABLE, lake.filled(RETRAIN_TABLE, rows), run_id, claim=claim)
    _conclude(it, run_id, known)
    return JobResult.of("retrain", run_id, written, **_details(known, checks))


def _details(known: Mapping[str, Any], checks: list[RetrainCheck]) -> dict[str, Any]:
    shown = {key: known.get(key) or "none" for key in ("decision", "champion_version", "model_version", "fit")}
    return {**shown, "summary": "\n".join(decision_lines(checks, known["decision"], known["sentence"]))}


def _known(it: Retraining, run_id: str) -> dict[str, Any] | None:
    """The decision that this run wrote; None where it wrote none."""
    lake = it.campaign.lake
    if not lake.exists(RETRAIN_TABLE):
        return None
    row = lake.read(RETRAIN_TABLE).where((F.col(RUN_ID) == run_id) & (F.col("check") == _CONCLUSION)).first()
    return None if row is None else row.asDict()


def _again(it: Retraining, run_id: str, known: dict[str, Any], progress: ProgressCallback) -> JobResult:
    progress("this run has decided already")
    _conclude(it, run_id, known)  # it may have been killed before this
    return JobResult("retrain", run_id, details=_details(known, []))


def _conclude(it: Retraining, run_id: str, known: Mapping[str, Any]) -> None:
    """What follows from a decision that is written: its entry in the audit log, and the alias."""
    campaign, registry = it.campaign, it.campaign.registry
    decision, version = known["decision"], known.get("model_version")
    if decision == "not_needed":
        return
    facts = {"decision": decision, "champion": it.champion.version, "version": version, "fit": known.get("fit")}
    versions: dict[str, Any] = {"model": it.champion.version, **it.champion.data_versions}
    subject = f"challenger of {it.champion.name}"
    event = AuditEvent("", "retrain", subject, known["sentence"], "", run_id, versions, facts)
    record_event(campaign.config, campaign.lake, event)
    if decision == CHALLENGER and was_on_trial(campaign.lake, campaign.name, int(str(version))) is None:
        before = registry.known(campaign.config.model_name, CHALLENGER)
        if before is None or before.version < int(str(version)):
            registry.set_alias(registry.find(campaign.config.model_name, int(str(version))), CHALLENGER)


# --------------------------------------------------------------------------------------------------------------------
# Facts.


def _retraining(campaign: Campaign, progress: ProgressCallback) -> Retraining:
    """Champion, windows and events. Raises as `run`."""
    config, lake = campaign.config, campaign.lake
    # First: where nothing was monitored no store of models is opened, which would make one.
    windows = monitored_windows(lake, campaign.name, config.monitoring.hours)
    champion, events = campaign.champion, events_of(config, lake, progress)
    events = replace(events, assignments=events.assignments.where(F.col("assigned_at") <= instant(events.as_of)))
    last = events.assignments.agg(F.max(F.unix_micros("assigned_at"))).collect()[0][0]
    windows.check_newest(moment(last), config.monitoring.hours)
    ((table, version),) = champion.data_versions.items()
    with still_there(table, version, "train the model anew with `uplift train`"):
        trained = lake.read(table, version).agg(F.max(F.unix_micros("assigned_at"))).collect()[0][0]
    return Retraining(campaign, champion, campaign.registry.load(champion), events, windows, moment(trained))


def _facts(it: Retraining, because: str | None) -> RetrainFacts:
    config, conf, windows, events = it.campaign.config, it.campaign.config.retrain, it.windows, it.events
    version, newer = str(it.champion.version), events.assignments.where(F.col("assigned_at") > instant(it.trained))
    kpis = windows.rows("kpi", windows.last(conf.lift_windows), version)
    mature = matured(config.labels, events.names, events.as_of)
    arms = new_arms(newer, mature, it.model.levels.names, config.nuisances is not None)
    return RetrainFacts(
        window=windows.words,
        new_units=sum(arm.units for arm in arms.values()),
        age_days=(windows.end - it.trained) / timedelta(days=1),
        columns=drifted_columns(windows.rows("drift", windows.last(1), version)),
        lift=lift_by_level(kpis, config.monitoring.alpha),
        incidents=open_incidents(windows, conf.quiet_windows),
        quarantine=quarantined_since(it.campaign.lake, it.campaign.name, newer),
        arms=arms,
        weighted=config.nuisances is not None,
        because=because,
        direction=config.roles.direction,
    )


# --------------------------------------------------------------------------------------------------------------------
# Pull, fit, validate.


def _fit_and_validate(it: Retraining, progress: ProgressCallback) -> tuple[list[RetrainCheck], NewVersion | None]:
    """Checks of the new rows and of the new model; the model is None where rows are not fit for one."""
    config = it.campaign.config
    # The champion stays who it is, whatever the configuration says of trained versions.
    quiet = it.campaign.changed(replace(config, registry=replace(config.registry, champion=False, version=None)))
    try:
        for verb in ("features", *(["nuisances"] if config.nuisances else [])):
            quiet.job(verb, progress)
        good = RetrainCheck("training_set", "passes", "features, labels and leakage guards passed")
        checks = [good, *_arms(it, quiet), *_trial_faults(quiet, progress)]
    except DataError as error:
        return [RetrainCheck("training_set", "fails", str(error))], None
    if any(one.state == "fails" for one in checks):
        return checks, None
    fitted, how = _fit(it, quiet, progress)
    trial = was_on_trial(it.campaign.lake, it.campaign.name, fitted.version)
    if fitted.version == it.champion.version or trial is not None:
        why = trial or f"version {fitted.version} was fitted on these rows already"
        return [*checks, RetrainCheck("fit", "fails", why)], None
    checks.append(RetrainCheck("fit", "passes", how))
    return [*checks, *_validated(it, quiet, fitted, progress)], fitted


def _arms(it: Retraining, quiet: Campaign) -> list[RetrainCheck]:
    counts = quiet.training_set(split="train").groupBy(TREATMENT).count().collect()
    rows = {name: 0 for name in it.model.levels.names} | {row[TREATMENT]: row["count"] for row in counts}
    return arm_checks(rows, quiet.config.retrain)


def _trial_faults(quiet: Campaign, progress: ProgressCallback) -> list[RetrainCheck]:
    """What says that a trial's arms are not what its protocol makes; nothing without a protocol."""
    faults, units = trial_faults(quiet, progress)
    return [
        RetrainCheck(f"trial:{one.check}", "fails", one.sentence, one.figure, one.threshold, units) for one in faults
    ]


def _fit(it: Retraining, quiet: Campaign, progress: ProgressCallback) -> tuple[NewVersion, str]:
    """Refresh where the splits still serve, else grow anew; and why."""
    why, base = "", quiet.registry.trees_of(it.champion)
    wanted, used = (json.dumps(plain_values(p), sort_keys=True) for p in (params_of(quiet.config), dict(base.params)))
    if not isinstance(it.model, Forest):
        why = "only the sums of a causal forest add"
    elif wanted != used:
        why = f"version {base.version} was trained with other arguments than the configuration's"
    else:
        try:
            result = quiet.job("refresh", progress, unless_due=True).details
            why = f"a regrow is {result['regrow']}"
            if "version" in result:
                if (trial := was_on_trial(it.campaign.lake, it.campaign.name, result["version"])) is None:
                    return NewVersion(result["version"], "refresh"), f"refresh: {why}"
                why = trial
        except ConfigError as error:  # roles have changed
            why = str(error)
    return NewVersion(quiet.job("train", progress).details["version"], "regrow"), f"regrow: {why}"


def _validated(it: Retraining, quiet: Campaign, fitted: NewVersion, progress: ProgressCallback) -> list[RetrainCheck]:
    """Hold the new version against the champion on units of the hold-out."""
    config, conf = quiet.config, quiet.config.retrain
    since = it.trained if conf.holdout == "new" else None
    pair = quiet.changed(replace(config, compare=replace(config.compare, against=(fitted.version,))))
    try:
        result = pair.job("compare", progress, since=since)
    except DataError as error:
        return [RetrainCheck("champion", "not_measured", f"the hold-out cannot be compared on: {error}")]
    mine = (F.col(RUN_ID) == result.run_id) & (F.col(TREATMENT) == ANY_LEVEL)
    rows = it.campaign.lake.read(METRICS_TABLE).where(mine).collect()
    figures = plan_figures((row.asDict() for row in rows), str(it.champion.version), str(fitted.version))
    n = sum(result.details["units"].values())
    return validation_checks(figures, n, conf, config.lift.replicates)


if __name__ == "__main__":
    main_job(run, options)
