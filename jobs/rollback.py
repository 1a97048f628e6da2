"""Take back what is in force: an earlier version becomes the champion, with its scores, decisions and online store.

Without --to it is the version before the champion; where a canary runs, the canary ends and the champion stays. What
was begun and killed is carried out by the next call. Reads gold.canary and gold.audit_log; appends to gold.canary, the
audit log and, by a copy of the version's last plan, gold.policy_decisions; publishes where the campaign has an online
store.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError
from uplift_spark.governance.approvals import waits_for
from uplift_spark.governance.rollout import (
    CanaryLog,
    CanaryRecord,
    InForce,
    check_unpinned,
    earlier_champion,
    end_trial,
    make_champion,
    was_champion,
)
from uplift_spark.registry.models import Registered
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.sections.canary import ON_TRIAL, state_at_end
from uplift_spark.serving.store import is_published

NAMES_ITS_RUN = True  # its name is of what was rolled back


def options(
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Version to restore, or before: the one before the champion.")
    ] = "before",
    reason: Annotated[str, typer.Option("--reason", help="Why.")] = "rolled back by hand",
) -> dict[str, Any]:
    """Which version, and why."""
    if not reason.strip():
        raise ConfigError("--reason is blank: say why, or leave it out")
    if to != "before" and not (to.isdecimal() and int(to) > 0):
        raise ConfigError(f"--to {to!r} is no version: give its number, or before for the one before the champion")
    return {"to": None if to == "before" else int(to), "reason": reason}


def target_of(campaign: Campaign, log: CanaryLog, to: int | None) -> Registered:
    """The version to restore. Raises ConfigError where nobody can tell, where it was never in force and is not
    approved, or its units were erased since."""
    registry, name = campaign.registry, campaign.config.model_name
    target = registry.find(name, _version_before(campaign, log) if to is None else to)
    waits = waits_for(campaign.config, campaign.lake, target)
    if waits and not was_champion(campaign.lake, log.records, target):
        raise ConfigError(f"{name} version {target.version} was never the champion, and {waits}")
    if (now := registry.current(target)).version != target.version:
        raise ConfigError(
            f"{name} version {target.version} was trained on units erased since: restore version {now.version}, which "
            f"it became without them, by `uplift rollback --to {now.version}`"
        )
    return target


def _version_before(campaign: Campaign, log: CanaryLog) -> int:
    current, last = campaign.champion, log.last
    if last is not None:
        # Repeated, a rollback comes to the same end: the champion that it restored is not rolled back in its turn.
        if last.state == "restoring" or (last.state == "restored" and last.challenger == str(current.version)):
            return int(last.challenger)
        if last.state in ON_TRIAL:
            third = str(current.version) not in (last.champion, last.challenger)  # it stays: the canary alone ends
            return current.version if third else int(last.champion)
    before = earlier_champion(campaign.lake, log.records, current)
    if before is None and current.version == 1:
        raise ConfigError(
            f"version 1 is the first of model {current.name}: none was the champion before it, none is to restore"
        )
    if before is None:
        raise ConfigError(
            f"nobody recorded which version was the champion before version {current.version}: name it, as in "
            f"`uplift rollback --to {max(1, current.version - 1)}`"
        )
    return before


def restoring(campaign: Campaign, log: CanaryLog, target: Registered, reason: str) -> CanaryRecord:
    """Write down what is to be restored; a rollback to the same version that was not finished goes on."""
    last, champion = log.last, campaign.registry.known(campaign.config.model_name)
    if last is not None and last.state == "restoring" and last.challenger == str(target.version):
        return last
    before = str(champion.version) if champion is not None else ""
    name = f"{campaign.name}-rollback-{len({one.canary for one in log.records}) + 1}"
    why = f"{reason}: version {target.version} is restored, the champion was {before or 'none'}"
    return log.add(CanaryRecord(name, 0, log.now, log.now, "restoring", None, why, before, str(target.version), 0.0))


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    to: int | None = None,
    reason: str = "rolled back by hand",
    now: datetime | None = None,
) -> JobResult:
    """Restore a version; restored already, nothing happens."""
    config, lake, registry = campaign.config, campaign.lake, campaign.registry
    check_unpinned(config, "rollback")
    log = CanaryLog(config, lake, now)
    before, target = log.last, target_of(campaign, log, to)
    champion = registry.known(config.model_name)
    details: dict[str, Any] = {"model": target.name, "version": target.version}
    restored = before is not None and before.state == "restored" and before.challenger == str(target.version)
    if restored and champion is not None and champion.version == target.version:
        return JobResult(
            "rollback", "", details={**details, "summary": f"Version {target.version} is restored already."}
        )
    record = restoring(campaign, log, target, reason)
    trial = next((one for one in reversed(log.records) if one.canary != record.canary), None)
    if trial is not None and trial.state in ON_TRIAL:
        end_trial(config, lake, registry, replace(record, challenger=trial.challenger))
    log.refuse_overtaken()
    make_champion(config, lake, registry, target, record)
    run_job = partial(campaign.job, progress=progress)
    details |= InForce(log, run_job, is_published(config)).bring(target, record, progress)
    log.add(replace(record, state=state_at_end("restoring")))
    return JobResult(
        "rollback", "", details={**details, "summary": f"{record.reason}.\nVersion {target.version} is in force."}
    )


if __name__ == "__main__":
    main_job(run, options)
