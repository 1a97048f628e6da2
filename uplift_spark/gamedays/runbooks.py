"""Runbooks: what to do about an incident, in steps that say what must hold, look, act if it does not, and look again.

A step that holds is left alone, so a runbook that was killed, or that waits for people, is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.training_set import Events, events_of
from uplift_spark.governance.approvals import waits_for
from uplift_spark.governance.permissions import acting_user
from uplift_spark.governance.rollout import CanaryLog
from uplift_spark.jobs import alert, monitor, retrain, rollback
from uplift_spark.lake.schemas import ALERTS_TABLE, QUARANTINE
from uplift_spark.lake.session import instant, moment
from uplift_spark.monitoring.alerts import MEASURED_BY, AlertBook, AlertState
from uplift_spark.monitoring.sinks import alert_book
from uplift_spark.monitoring.spark import alert_events
from uplift_spark.monitoring.windows import TimeWindow, window_of
from uplift_spark.registry.evidence import MonitoredWindows, monitored_windows
from uplift_spark.registry.models import Registered
from uplift_spark.roles import CAMPAIGN
from uplift_spark.runtime import ProgressCallback
from uplift_spark.sections.canary import ON_TRIAL

Standing = Literal["holds", "to do", "waits", "later"]
"""holds: nothing is left to do. to do: the step can do it. waits: for people or data. later: after the steps before."""

_NAMED = 5  # windows that a sentence names
_BACK = 28  # windows among which the first one that shows an incident is looked for
_HOUR = 3_600_000_000  # in microseconds


@dataclass(frozen=True)
class StepState:
    """How a step stands, and a sentence that says why."""

    standing: Standing
    sentence: str

    @property
    def holds(self) -> bool:
        """Whether nothing is left to do."""
        return self.standing == "holds"


@dataclass(frozen=True)
class Incident:
    """What a runbook is about.

    now      the clock
    reason   why it is carried out, for the record
    since    a moment in the first window that the incident touched; None: the first one that shows it
    version  of the model, of a hotfix or a rollback; None: the version before the champion
    """

    campaign: Campaign
    progress: ProgressCallback
    now: datetime
    reason: str
    since: datetime | None = None
    version: int | None = None

    @cached_property
    def events(self) -> Events:
        """What is known of units now; read once, so that all steps go by the same rows."""
        return events_of(self.campaign.config, self.campaign.lake, self.progress)

    @property
    def windows(self) -> MonitoredWindows:
        """The windows that were monitored. Raises DataError where none was."""
        return monitored_windows(self.campaign.lake, self.campaign.name, self.campaign.config.monitoring.hours)

    def alerts(self, rules: Iterable[str] | None = None) -> list[AlertState]:
        """The alerts that fire, of these rules or of all."""
        campaign, lake = self.campaign, self.campaign.lake
        history = lake.read(ALERTS_TABLE) if lake.exists(ALERTS_TABLE) else None
        book: AlertBook = alert_book(campaign.config.alerts, alert_events(history, campaign.name))
        return [one for one in book.active() if rules is None or one.last.rule in rules]

    def breaches(self, rules: Iterable[str], runs: Sequence[str]) -> list[Mapping[str, object]]:
        """What runs of monitor said about these rules: KPIs in state alert, and findings."""
        kpis = [one for one in self.windows.rows("kpi", runs) if one["kpi"] in rules and one["state"] == "alert"]
        return kpis + [one for one in self.windows.rows("findings", runs) if one["finding"] in rules]

    def measured(self, rules: Iterable[str], runs: Sequence[str]) -> list[Mapping[str, object]]:
        """KPIs that have a value where these rules had what they need to judge a window."""
        by = {MEASURED_BY.get(rule, rule) for rule in rules}
        return [one for one in self.windows.rows("kpi", runs) if one["kpi"] in by and one["state"] != "no_data"]

    def unmeasured(self, start: datetime) -> list[TimeWindow]:
        """Windows with units, from the one of this moment to the last that is over, that nobody measured on what is
        known now."""
        campaign, hours = self.campaign, self.campaign.config.monitoring.hours
        last, known = window_of(self.now - timedelta(hours=hours), hours), self.windows.runs
        due, window, model = [], window_of(start, hours), campaign.model_in_use
        busy = self._starts_with_units(window.start, last.end)
        while window.start <= last.start:
            forecast = monitor.forecast_at(campaign, window)
            measured = known.get(window.start) == monitor.window_run(campaign, model, self.events, window, forecast)
            if window.start in busy and not measured:
                due.append(window)
            window = window_of(window.end, hours)
        return due

    def _starts_with_units(self, start: datetime, end: datetime) -> set[datetime]:
        """Starts of the windows to which somebody was assigned."""
        hours = self.campaign.config.monitoring.hours
        at = F.col("assigned_at")
        rows = self.events.assignments.where((at >= instant(start)) & (at < instant(end)))
        each = rows.select(F.floor(F.unix_micros(at) / _HOUR).cast("bigint").alias("hour")).distinct().collect()
        return {window_of(moment(row["hour"] * _HOUR), hours).start for row in each}


@dataclass(frozen=True)
class RunbookStep:
    """One step.

    goal    what holds after it, as a sentence
    check   how it stands; writes nothing
    act     brings it about; None: only people or data can
    """

    goal: str
    check: Callable[[Incident], StepState]
    act: Callable[[Incident], None] | None = None


@dataclass(frozen=True)
class Runbook:
    """When it is for, and its steps in their order; `needs`: the option without which it makes no sense."""

    when: str
    steps: tuple[RunbookStep, ...]
    needs: Literal["", "since", "version"] = ""


def follow(
    steps: Sequence[RunbookStep], incident: Incident, execute: bool, begin: Callable[[], None]
) -> Iterator[tuple[RunbookStep, StepState]]:
    """Carry out steps until one waits; without `execute` only look.

    Args:
        steps: In their order.
        incident: What they are about.
        execute: Act where something is to do.
        begin: Called once, before the first act.

    Yields:
        Each step and how it stands; after the first that does not hold the others are `later`.
    """
    stopped, begun = False, False
    for number, step in enumerate(steps, 1):
        if stopped:
            yield step, StepState("later", "after the steps before it")
            continue
        state = step.check(incident)
        if state.standing == "to do" and execute and step.act is not None:
            if not begun:
                begin()
                begun = True
            incident.progress(f"step {number}: {state.sentence}")
            step.act(incident)
            state = step.check(incident)
        stopped = not state.holds
        yield step, state


# --------------------------------------------------------------------------------------------------------------------
# Steps.


def _measure_since(rules: Sequence[str]) -> RunbookStep:
    """Windows since the incident are measured on what is known now: rows that came late count in them."""

    def first(incident: Incident) -> datetime:
        if incident.since is not None:
            return incident.since
        windows = incident.windows
        touched = [_start_of(one) for one in incident.breaches(rules, windows.last(_BACK))] if rules else []
        return min([windows.start, *touched])

    def check(incident: Incident) -> StepState:
        try:
            start = first(incident)
            due = incident.unmeasured(start)
        except DataError as error:  # no window ever was
            return StepState("holds", str(error)) if not rules else StepState("waits", str(error))
        if not due:
            return StepState("holds", f"every window since {start:%Y-%m-%d %H:%M} UTC is measured")
        named = ", ".join(f"{one.start:%Y-%m-%d %H:%M}" for one in due[:_NAMED]) + (", …" if due[_NAMED:] else "")
        return StepState("to do", f"{len(due)} windows are not measured on what is known now, from {named}")

    def act(incident: Incident) -> None:
        for window in incident.unmeasured(first(incident)):
            incident.progress(f"measuring the window from {window.words}")
            monitor.run(incident.campaign, incident.progress, window=window.start, now=incident.now)

    return RunbookStep("Every window since the incident began is measured on what is known now.", check, act)


def _start_of(row: Mapping[str, object]) -> datetime:
    """Start of the window that a row of monitor is about."""
    start = row["window_start"]
    assert isinstance(start, datetime)
    return start


def _rule_of(row: Mapping[str, object]) -> str:
    """The KPI or the finding that a row of monitor is about."""
    return str(row.get("kpi") or row["finding"])


def _over(rules: Sequence[str], what: str, ask: str) -> RunbookStep:
    """The newest window that can tell does not show the incident any more; labels of later ones have yet to ripen."""

    def check(incident: Incident) -> StepState:
        recent = incident.windows.last(_BACK)
        breaches = incident.breaches(rules, recent)
        tell = [*breaches, *incident.measured(rules, recent)]
        if not tell:
            return StepState("waits", f"no window has a value of {' or '.join(rules)} yet: monitor the days to come")
        newest = max(_start_of(one) for one in tell)
        words = f"the window from {window_of(newest, incident.campaign.config.monitoring.hours).words}"
        if still := sorted({_rule_of(one) for one in breaches if _start_of(one) == newest}):
            return StepState("waits", f"{words} still shows {' and '.join(still)}: {ask}")
        return StepState("holds", f"{words} does not show it")

    return RunbookStep(what, check)


def _closed(rules: Sequence[str]) -> RunbookStep:
    def check(incident: Incident) -> StepState:
        if firing := incident.alerts(rules):
            return StepState("to do", f"{_alert_names(firing)} fires, and what it is about is over")
        return StepState("holds", "none fires")

    def act(incident: Incident) -> None:
        by = acting_user(incident.campaign.config)
        for state in incident.alerts(rules):
            deed = alert.AlertDeed("close", state.last.alert, by, incident.reason)
            alert.run(incident.campaign, incident.progress, deed=deed, now=incident.now)

    return RunbookStep("No alert about it is open.", check, act)


def _may_learn() -> RunbookStep:
    def check(incident: Incident) -> StepState:
        try:
            decided = retrain.run(incident.campaign, incident.progress, dry_run=True).details
        except (ConfigError, DataError) as error:
            return StepState("waits", str(error))
        if decided["decision"] == "blocked":
            return StepState("waits", f"`uplift retrain` is blocked: {decided['summary'].splitlines()[-1]}")
        return StepState("holds", "`uplift retrain` is not blocked")

    return RunbookStep("A model may be fitted again.", check)


def _known_version() -> RunbookStep:
    def check(incident: Incident) -> StepState:
        try:
            target = _target(incident)
        except (ConfigError, DataError) as error:
            return StepState("waits", str(error))
        if waits := waits_for(incident.campaign.config, incident.campaign.lake, target):
            return StepState("waits", f"{target.name} version {target.version}: {waits}")
        champion = incident.campaign.registry.known(target.name)
        now = "none" if champion is None else champion.version
        return StepState("holds", f"version {target.version}; the champion is version {now}")

    return RunbookStep("The version to put in force is there, and approved where that is needed.", check)


def _in_force() -> RunbookStep:
    def check(incident: Incident) -> StepState:
        target, log = _target(incident), CanaryLog(incident.campaign.config, incident.campaign.lake, incident.now)
        champion = incident.campaign.registry.known(target.name)
        goes_on = log.last is not None and log.last.state in (*ON_TRIAL, "restoring")
        if champion is not None and champion.version == target.version and not goes_on:
            return StepState("holds", f"version {target.version} is the champion, with its scores and decisions")
        ends = "a canary ends, and " if log.last is not None and log.last.state in ON_TRIAL else ""
        sentence = f"{ends}version {target.version} takes over, with its scores, decisions and online store"
        return StepState("to do", sentence)

    def act(incident: Incident) -> None:
        rollback.run(
            incident.campaign, incident.progress, to=incident.version, reason=incident.reason, now=incident.now
        )

    return RunbookStep("That version is in force: the alias, its scores, its decisions, the online store.", check, act)


def _target(incident: Incident) -> Registered:
    log = CanaryLog(incident.campaign.config, incident.campaign.lake, incident.now)
    return rollback.target_of(incident.campaign, log, incident.version)


def _quiet() -> RunbookStep:
    def check(incident: Incident) -> StepState:
        if firing := incident.alerts():
            why = "they resolve when the next windows are well; `uplift alert close` ends one by hand"
            return StepState("waits", f"{_alert_names(firing)} fires: {why}")
        return StepState("holds", "none fires")

    return RunbookStep("No alert of the campaign is open.", check)


def _rejected() -> RunbookStep:
    def check(incident: Incident) -> StepState:
        lake = incident.campaign.lake
        if incident.since is None or not lake.exists(QUARANTINE):
            return StepState("holds", "no row was rejected")
        mine = F.col(CAMPAIGN).isNull() | (F.col(CAMPAIGN) == incident.campaign.name)
        rows = lake.read(QUARANTINE).where(mine & (F.col("ingested_at") >= instant(incident.since)))
        counts = rows.groupBy("source_table", "rule").count().orderBy("source_table", "rule").collect()
        if not counts:
            return StepState("holds", "no row was rejected")
        total = sum(row["count"] for row in counts)
        each = "; ".join(f"{row['count']:,} of {row['source_table']} by {row['rule']}" for row in counts[:_NAMED])
        each += f"; …, {total:,} in all" if counts[_NAMED:] else ""
        return StepState("holds", f"rejected since then and in bronze.quarantine: {each}; `uplift replay` repairs rows")

    return RunbookStep("What was rejected since is known.", check)


def _alert_names(states: Sequence[AlertState]) -> str:
    return ", ".join(sorted({one.last.rule for one in states}))


# --------------------------------------------------------------------------------------------------------------------
# Runbooks.

_PUT_IN_FORCE = (_known_version(), _in_force(), _measure_since(()), _quiet())


def _outage(rules: Sequence[str], goal: str, ask: str) -> tuple[RunbookStep, ...]:
    """Steps about something that is not reported any more, which these rules show."""
    return (_measure_since(rules), _over(rules, goal, f"{ask}, and run this again"), _closed(rules), _may_learn())


RUNBOOKS: Mapping[str, Runbook] = {
    "rollback": Runbook(
        "A version in force does harm: errors, worse outcomes, features it was not trained on.", _PUT_IN_FORCE
    ),
    "hotfix": Runbook(
        "A mended version must take over at once, without the days of a canary; a canary that runs ends.",
        _PUT_IN_FORCE,
        needs="version",
    ),
    "backfill": Runbook(
        "Rows came late, or jobs did not run for a while: windows are missing or know too little.",
        (_rejected(), _measure_since(()), _may_learn()),
        needs="since",
    ),
    "label-outage": Runbook(
        "Outcomes stopped being reported; until they are there again no model is fitted and no canary promotes.",
        _outage(
            ("label_lag", "outcome_completeness"),
            "Outcomes are reported again.",
            "ask the source, `uplift load` what was missing",
        ),
    ),
    "delivery-outage": Runbook(
        "Units that should get a treatment do not: the provider is down, or an export did not arrive.",
        _outage(
            ("delivery_rate", "non_compliance"),
            "Treatments are delivered again.",
            "stop what is sent (`serving.off`, no `uplift export`), ask the provider, `uplift load` deliveries",
        ),
    ),
}
"""{name: runbook} of `uplift runbook`."""


def chosen_runbook(name: str) -> Runbook:
    """Find a runbook. Raises ConfigError for another name."""
    if name not in RUNBOOKS:
        raise ConfigError(f"`uplift runbook` has no {name!r}: {hint(name, RUNBOOKS)}")
    return RUNBOOKS[name]
