"""List the alerts that fire, or put on record that somebody takes care of one (acknowledge) or that it is over (close).

`list` reads gold.alerts and writes nothing. `acknowledge` and `close` take the rule's name or the fingerprint of an
alert, or its beginning, and append who, when and why to the audit log, then to gold.alerts. An acknowledged alert is
not sent again until it becomes a page; a closed one stays closed until something that is measured later opens it anew.
An open alert of an incident keeps `uplift retrain` from fitting a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, hint
from uplift_spark.governance.audit import AuditEvent, signing_key
from uplift_spark.governance.permissions import acting_user, check_permitted
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.schemas import ALERTS_TABLE
from uplift_spark.lake.tables import Claim, Written
from uplift_spark.monitoring.alerts import AlertBook, AlertEvent, state_line
from uplift_spark.monitoring.sinks import alert_book, notify_of
from uplift_spark.monitoring.spark import alert_events
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

NAMES_ITS_RUN = True  # events are named by what they say
ALERT_DEEDS = ("list", "acknowledge", "close")


@dataclass(frozen=True)
class AlertDeed:
    """What to do: `list`, or `acknowledge` or `close` with an alert, by whom and why.

    Raises ConfigError for anything else.
    """

    what: str
    alert: str | None = None
    by: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.what not in ALERT_DEEDS:
            raise ConfigError(f"`uplift alert` has no {self.what!r}: {hint(self.what, ALERT_DEEDS)}")
        chosen = {"an alert": self.alert, "--by": self.by, "--reason": self.reason}
        if self.what == "list":
            if extra := [name for name, text in chosen.items() if text is not None]:
                raise ConfigError(f"`uplift alert list` takes no {extra[0].removeprefix('an ')}: leave it out")
        elif blank := [name for name, text in chosen.items() if not (text or "").strip()]:
            raise ConfigError(
                f"`uplift alert {self.what}` needs {' and '.join(blank)}, as in `uplift alert {self.what} "
                'delivery_rate --by ann --reason "the provider was down"`'
            )


def options(
    what: Annotated[str, typer.Argument(help="list, acknowledge or close.", show_default=False)],
    alert: Annotated[str | None, typer.Argument(help="Rule or fingerprint of the alert.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who acknowledges or closes it.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why.")] = None,
) -> dict[str, Any]:
    """What to do, with which alert, who, and why."""
    return {"deed": AlertDeed(what, alert, by, reason)}


def active_alerts(book: AlertBook) -> str:
    """The alerts that fire, a line each, pages first."""
    return "\n".join(state_line(state) for state in book.active()) or "No alert fires."


def why_no_change(book: AlertBook, deed: AlertDeed) -> str:
    """Say that the alert is as the deed would leave it; empty where it is not."""
    alert, by = str(deed.alert), str(deed.by)
    if deed.what == "close":
        closed = book.closed_already(alert) if not book.firing(alert) else None
        return "" if closed is None else f"{state_line(closed)}: it is closed already"
    for state in book.firing(alert):
        if (state.last.event, state.last.by, state.last.note) == ("acknowledged", by, deed.reason):
            return f"{state_line(state)}: it is acknowledged already"
    return ""


def put_on_record(campaign: Campaign, event: AlertEvent) -> None:
    """Add the deed to the audit log, before it is done."""
    subject = f"alert {event.alert} ({event.rule}): {event.event} ({event.sequence})"
    details = {"by": event.by, "severity": event.severity, "labels": event.labels}
    record_event(campaign.config, campaign.lake, AuditEvent("", "alert", subject, event.note, "", "", {}, details))


def append_event(campaign: Campaign, event: AlertEvent, claim: Claim) -> Written:
    """Add the event to gold.alerts; refused where another run added one meanwhile."""
    lake = campaign.lake
    change = [event.alert, event.sequence, event.event, event.by, event.at.isoformat()]
    run_id = derive_run_id("alert", {"campaign": campaign.name}, change=change)
    return lake.write(ALERTS_TABLE, lake.filled(ALERTS_TABLE, [asdict(event)]), run_id, claim=claim)


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    deed: AlertDeed,
    now: datetime | None = None,
) -> JobResult:
    """List, acknowledge or close; what was done already is done once."""
    config, lake, now = campaign.config, campaign.lake, now or datetime.now(UTC)
    check_permitted(config, f"alert {deed.what}")
    claim = lake.claim(ALERTS_TABLE, f"alerts of {campaign.name}")  # before the table is read
    history = lake.read(ALERTS_TABLE) if lake.exists(ALERTS_TABLE) else None
    book = alert_book(config.alerts, alert_events(history, campaign.name))
    if deed.what == "list":
        return JobResult("alert", "", details={"alerts": len(book.active()), "summary": active_alerts(book)})
    if config.governance.access is not None and deed.by != (actor := acting_user(config)):
        raise ConfigError(f"--by {deed.by} is not {actor}, who runs this: act in your own name")
    signing_key(config.governance.audit)
    written, events = list[Written](), list[AlertEvent]()
    summary = why_no_change(book, deed)
    if not summary:
        act = book.acknowledge if deed.what == "acknowledge" else book.close
        event = act(str(deed.alert), str(deed.by), now, str(deed.reason))
        put_on_record(campaign, event)
        events, summary = [event], state_line(book.states[event.alert])

    def append(new: Sequence[AlertEvent]) -> None:
        written.extend(append_event(campaign, one, claim) for one in new)

    report = notify_of(config.alerts, campaign.name, book, events, append, now)
    for sentence in report.sentences:
        progress(sentence)
    return JobResult.of("alert", "", *written, alerts=len(book.active()), **report.counts, summary=summary)


if __name__ == "__main__":
    main_job(run, options)
