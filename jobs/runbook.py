"""Follow a runbook: rollback, hotfix, backfill, label-outage or delivery-outage, step by step, each checked.

Without --execute it says how each step stands, and writes nothing. With --execute it acts where something is left to
do, checks again, and stops at the first step that waits for people or data; run again, it goes on there. The
first act is an entry of the audit log. It writes what `monitor`, `alert` and `rollback` write.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError
from uplift_spark.gamedays.runbooks import RUNBOOKS, Incident, Runbook, chosen_runbook, follow
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.session import parsed_time
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

NAMES_ITS_RUN = True  # what it runs has names of its own


@dataclass(frozen=True)
class RunbookRequest:
    """What to follow.

    name     of the runbook
    execute  act where something is to do; needs a reason
    since    a moment in the first window concerned
    version  of the model that comes into force

    Raises ConfigError for anything that makes no sense.
    """

    name: str
    execute: bool = False
    reason: str = ""
    since: datetime | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        name, needs = self.name, chosen_runbook(self.name).needs
        if self.execute and not self.reason.strip():
            raise ConfigError(
                f'`uplift runbook {name} --execute` needs --reason, as in --reason "the provider was down"'
            )
        if needs and getattr(self, needs) is None:
            example = {"since": "2025-01-31", "version": "3"}[needs]
            raise ConfigError(f"`uplift runbook {name}` needs --{needs}, as in --{needs} {example}")
        if self.version is not None and name not in ("rollback", "hotfix"):
            raise ConfigError(f"`uplift runbook {name}` puts no version in force: leave --version out")


def options(
    name: Annotated[str, typer.Argument(help=f"{', '.join(RUNBOOKS)}.", show_default=False)],
    execute: Annotated[bool, typer.Option("--execute", help="Act; without it nothing is written.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the record; needed to act.")] = None,
    since: Annotated[
        str | None, typer.Option(help="A moment in the first window concerned; by default what shows the incident.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Model version to put in force; of a rollback the one before.")
    ] = None,
) -> dict[str, Any]:
    """Which runbook, about what, and whether it acts."""
    start = None if since is None else parsed_time(since, "--since")
    return {"request": RunbookRequest(name, execute, reason or "", start, version)}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    request: RunbookRequest,
    now: datetime | None = None,
) -> JobResult:
    """Check each step, and act where the request says so; all that holds already stays as it is."""
    name, book, reason = request.name, chosen_runbook(request.name), request.reason
    incident = Incident(campaign, progress, now or datetime.now(UTC), reason, request.since, request.version)

    def begin() -> None:
        details = {"since": request.since, "version": request.version}
        event = AuditEvent("", "runbook", f"runbook {name}", reason, "", "", {}, details)
        record_event(campaign.config, campaign.lake, event, once=False)

    lines, states = [book.when], list[str]()
    for number, (step, state) in enumerate(follow(book.steps, incident, request.execute, begin), 1):
        lines.append(f"{number}. {step.goal} {state.standing}: {state.sentence}")
        states.append(state.standing)
    lines.append(_conclusion(request, book, states))
    return JobResult("runbook", "", details={"runbook": name, "summary": "\n".join(lines)})


def _conclusion(request: RunbookRequest, book: Runbook, states: list[str]) -> str:
    open_ = next((number for number, state in enumerate(states, 1) if state != "holds"), None)
    if open_ is None:
        return f"All {len(book.steps)} steps hold: nothing is left to do about {request.name}."
    if states[open_ - 1] == "waits":
        return f"Step {open_} of {len(book.steps)} waits; run it again when that has come."
    verb = "is not done yet: run it again" if request.execute else "is to do: add --execute and --reason to act"
    return f"Step {open_} of {len(book.steps)} {verb}."


if __name__ == "__main__":
    main_job(run, options)
