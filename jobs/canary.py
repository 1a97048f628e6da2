"""Try the challenger on a small slice of the units beside the champion, and promote it or roll it back by what happens.

`start` gives the slice the challenger's decisions; `status` says how the slices compare, and writes nothing; `decide`
promotes, rolls back or goes on, and ends without a verdict after `canary.max_days`. What was begun and killed is
carried out by the next call. Reads the plan in force, bronze.outcome, bronze.delivery, bronze.consent and the table of
`monitoring.requests`, those of them that are there; appends to gold.canary, gold.uplift_scores, gold.policy_decisions
and the audit log, and publishes where the campaign has an online store.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import typer
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.experiments.canary import (
    CHALLENGER_SLICE,
    CanaryEvidence,
    CanaryReading,
    canary_design,
    read_canary,
    reading_text,
)
from uplift_spark.experiments.spark import CanarySlices, in_canary_slices
from uplift_spark.governance.approvals import waits_for
from uplift_spark.governance.privacy import of_purpose
from uplift_spark.governance.rollout import (
    CanaryLog,
    CanaryRecord,
    InForce,
    check_unpinned,
    end_trial,
    make_champion,
    new_canary,
    note,
    other_champion,
    plan_decisions,
    plan_runs,
    with_challenger,
    write_plan,
)
from uplift_spark.lake.schemas import CONSENT_TABLE, DECISIONS_TABLE, DELIVERY_TABLE, OUTCOME_TABLE, silver_table
from uplift_spark.policy.planning import candidates_of, decide, policy_inputs
from uplift_spark.registry.models import CHALLENGER, Registered
from uplift_spark.roles import CAMPAIGN, RUN_ID, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress
from uplift_spark.sections.canary import UNFINISHED, state_after, state_at_end
from uplift_spark.serving.store import is_published

NAMES_ITS_RUN = True  # each of its deeds is a run
CANARY_STEPS = ("start", "status", "decide")


def options(
    what: Annotated[str, typer.Argument(help="start, status or decide.", show_default=False)],
) -> dict[str, Any]:
    """Which step."""
    if what not in CANARY_STEPS:
        raise ConfigError(f"`uplift canary` has no {what!r}: {hint(what, CANARY_STEPS)}")
    return {"what": what}


@dataclass(frozen=True)
class Trial:
    """What a call works with: the campaign, its log of canaries, and both versions of the canary at hand."""

    campaign: Campaign
    log: CanaryLog
    record: CanaryRecord
    champion: Registered
    challenger: Registered
    progress: ProgressCallback

    @property
    def in_force(self) -> InForce:
        """What brings the champion's decisions into force."""
        run = partial(self.campaign.job, progress=self.progress)
        return InForce(self.log, run, is_published(self.campaign.config))

    @property
    def other_champion(self) -> Registered | None:
        """A version that became the champion meanwhile, by none of the canary's doing."""
        return other_champion(self.campaign.config, self.campaign.registry, self.record)


# --------------------------------------------------------------------------------------------------------------------
# Start, and the plan in which the slice has the challenger's decisions.


def renew_plan(trial: Trial) -> CanaryRecord:
    """See that the plan in force is the champion's newest with the challenger's decisions in its slice.

    The first call makes it; later ones make it anew where the champion has planned since.
    """
    campaign, record, config = trial.campaign, trial.record, trial.campaign.config
    plans = plan_runs(campaign.lake, campaign.name)
    base = next((plan for plan in plans if plan.is_by(trial.champion.version)), None)
    if base is None:
        raise DataError(
            f"{DECISIONS_TABLE} has lost the plans by version {trial.champion.version}: run `uplift policy`"
        )
    run_id = derive_run_id("canary", {"canary": record.canary}, plan=base.run_id)
    if run_id not in {plan.run_id for plan in plans}:
        note(config, campaign.lake, record, f"decide for the slice in plan {run_id}", record.reason)
        pinned = campaign.changed(replace(config, registry=replace(config.registry, version=trial.challenger.version)))
        pinned.job("score", trial.progress)
        inputs = policy_inputs(pinned)
        staged = campaign.lake.write(
            silver_table("candidates", campaign.name), candidates_of(inputs), f"{run_id}-candidates", mode="overwrite"
        )
        theirs = decide(inputs, campaign.lake.read(staged.table, staged.version), trial.progress).decisions()
        rows = plan_decisions(campaign.lake, campaign.name, base.run_id)
        slices = in_canary_slices(rows.select(UNIT), canary_design(record.canary, record.share))
        units = slices.where(F.col("slice") == CHALLENGER_SLICE).select(UNIT)
        mixed = with_challenger(rows, theirs, units)
        trial.log.refuse_overtaken()
        write_plan(config, campaign.lake, mixed, run_id, base.run_id, record.reason)
    if run_id not in trial.log.plans(record.canary):
        if is_published(campaign.config):
            note(config, campaign.lake, record, f"publish plan {run_id}", record.reason)
            campaign.job("publish", trial.progress)
        words = f"the challenger's slice has its decisions by plan {run_id}"
        record = trial.log.add(replace(record, plan=run_id, reason=words))
    return record


def start(campaign: Campaign, log: CanaryLog, progress: ProgressCallback) -> JobResult:
    """Start a canary, or finish the start of one that was killed."""
    check_unpinned(campaign.config, "canary")
    last = log.last
    if last is not None and last.state in UNFINISHED:
        verb = "rollback" if last.state == "restoring" else "canary decide"
        raise ConfigError(f"canary {last.canary} is {last.state}: run `uplift {verb}` to finish that first")
    if last is not None and last.state == "running":
        challenger = campaign.registry.known(campaign.config.model_name, CHALLENGER)
        if challenger is not None and str(challenger.version) != last.challenger:
            raise ConfigError(
                f"canary {last.canary} of version {last.challenger} runs: version {challenger.version} has to wait "
                "until `uplift canary decide` or `uplift rollback` ends it"
            )
        progress(f"canary {last.canary} runs already")
        record = last
    else:
        record = log.add(new_canary(log, campaign.registry))
    trial = _trial(campaign, log, record, progress)
    if trial.other_champion is not None:
        raise ConfigError(f"{_ended_by(trial, trial.other_champion)}: run `uplift canary decide` to end it")
    record = renew_plan(trial)
    return _result(record, f"Canary {record.canary}: {record.reason}.")


# --------------------------------------------------------------------------------------------------------------------
# Status and decision.


def evidence_of(trial: Trial, since: datetime, now: datetime) -> CanaryEvidence:
    """Sums of both slices since they are in force, from the tables that are there."""
    campaign, record = trial.campaign, trial.record
    config, lake, requests = campaign.config, campaign.lake, campaign.config.monitoring.requests
    names = {"outcomes": OUTCOME_TABLE, "deliveries": DELIVERY_TABLE, "consent": CONSENT_TABLE}
    names |= {} if requests is None else {"requests": requests.table}
    tables = {name: lake.read(table) for name, table in names.items() if lake.exists(table)}
    if "consent" in tables:
        tables["consent"] = of_purpose(tables["consent"], config.consent.purpose)
    plans = trial.log.plans(record.canary)
    planned = lake.read(DECISIONS_TABLE).where((F.col(CAMPAIGN) == campaign.name) & F.col(RUN_ID).isin(list(plans)))
    design = canary_design(record.canary, record.share)
    slices = CanarySlices(config, design, (record.champion, record.challenger), since, now)
    return slices.evidence(planned, plans, tables)


def read_now(trial: Trial) -> tuple[CanaryReading, str]:
    """Read the canary now: the verdict, and all of it as text."""
    now, since = trial.log.now, trial.log.since(trial.record.canary)
    if since is None:
        raise ConfigError(
            f"canary {trial.record.canary} has no plan yet: run `uplift canary start` to finish its start"
        )
    evidence, days = evidence_of(trial, since, now), (now - since) / timedelta(days=1)
    reading = read_canary(evidence, days, trial.campaign.config.canary)
    sizes = f"{evidence.assigned[0]:,} units in the champion's slice, {evidence.assigned[1]:,} in the challenger's"
    head = (
        f"Canary {trial.record.canary}, {days:.3g} days old: version {trial.record.challenger} against version "
        f"{trial.record.champion}; {sizes}"
    )
    return reading, f"{head}\n{reading_text(reading, evidence.not_measured)}"


def status(campaign: Campaign, log: CanaryLog, progress: ProgressCallback) -> JobResult:
    """Say how the canary stands; of one that is over, how it ended."""
    record = log.last
    if record is None:
        return _none_yet(campaign)
    if record.state != "running":
        return _result(record, f"{record.canary} is {record.state}: {record.reason}")
    trial = _trial(campaign, log, record, progress)
    if trial.other_champion is not None:
        return _result(record, f"{_ended_by(trial, trial.other_champion)}: `uplift canary decide` ends it")
    return _result(record, read_now(trial)[1])


def decide_now(campaign: Campaign, log: CanaryLog, progress: ProgressCallback) -> JobResult:
    """Look, write the verdict down, and carry it out; carry out one that was written down before."""
    record, text = log.last, ""
    if record is None:
        return _none_yet(campaign)
    check_unpinned(campaign.config, "canary")
    if record.state == "restoring":
        raise ConfigError(f"a rollback to version {record.challenger} is not finished: run `uplift rollback` first")
    trial, config = _trial(campaign, log, record, progress), campaign.config
    if record.state in ("running", "promoting") and (other := trial.other_champion) is not None:
        why = f"{_ended_by(trial, other)}, and version {other.version} stays"
        text = why
        record = log.add(replace(record, state="ending", verdict="ended", reason=why, plan=None, evidence=None))
    if record.state == "running":
        record = renew_plan(trial)
        trial = replace(trial, record=record)
        reading, text = read_now(trial)
        if reading.verdict == "promote" and (waits := waits_for(config, campaign.lake, trial.challenger)):
            reading = replace(reading, verdict="inconclusive", reasons=(waits, *reading.reasons))
            text += f"\n{waits}"
        evidence = json.dumps([asdict(one) for one in reading.checks]).replace("NaN", "null")
        verdict: dict[str, Any] = {"verdict": reading.verdict, "reason": reading.text, "evidence": evidence}
        if any(getattr(record, name) != value for name, value in verdict.items()):
            record = log.add(replace(record, state=state_after(reading.verdict), plan=None, **verdict))
        else:
            log.refuse_overtaken()
    if record.state in UNFINISHED:
        record = carry_out(replace(trial, record=record))
    return _result(record, text or f"{record.canary} is {record.state}: {record.reason}")


def carry_out(trial: Trial) -> CanaryRecord:
    """Do what was decided; each deed is done once, however often this runs."""
    campaign, record = trial.campaign, trial.record
    config, lake, registry = campaign.config, campaign.lake, campaign.registry
    trial.log.refuse_overtaken()
    if record.state == "promoting":
        make_champion(config, lake, registry, trial.challenger, record)
        trial.in_force.bring(trial.challenger, record, trial.progress)
    else:
        end_trial(config, lake, registry, record)
        trial.in_force.bring(trial.other_champion or trial.champion, record, trial.progress)
    return trial.log.add(replace(record, state=state_at_end(record.state)))  # type: ignore[arg-type]


def _none_yet(campaign: Campaign) -> JobResult:
    text = f"Campaign {campaign.name} has no canary: `uplift canary start` begins one."
    return JobResult("canary", "", details={"canary": "none", "state": "none", "verdict": "none yet", "summary": text})


def _ended_by(trial: Trial, other: Registered) -> str:
    on_trial = f"canary {trial.record.canary} of version {trial.record.challenger}"
    return f"version {other.version} became the champion while {on_trial} ran"


def _trial(campaign: Campaign, log: CanaryLog, record: CanaryRecord, progress: ProgressCallback) -> Trial:
    find, name = campaign.registry.find, campaign.config.model_name
    versions = (find(name, int(record.champion)), find(name, int(record.challenger)))
    return Trial(campaign, log, record, *versions, progress)


def _result(record: CanaryRecord, text: str) -> JobResult:
    details = {"canary": record.canary, "state": record.state, "verdict": record.verdict or "none yet", "summary": text}
    return JobResult("canary", "", details=details)


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    what: str,
    now: datetime | None = None,
) -> JobResult:
    """Start a canary, say how it stands, or decide."""
    log = CanaryLog(campaign.config, campaign.lake, now)
    steps = {"start": start, "status": status, "decide": decide_now}
    return steps[what](campaign, log, progress)


if __name__ == "__main__":
    main_job(run, options)
