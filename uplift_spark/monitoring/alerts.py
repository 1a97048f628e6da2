"""The life of an alert: when it fires, who is notified, when it resolves, and the history that `gold.alerts` keeps.

Rules say what is wrong (`Condition`), an `AlertBook` says what that changes (`AlertEvent`), `notifications` groups what
people are to read. The book holds nothing but the events so far: `AlertBook.replay` rebuilds it from the table's rows.
An alert is known by its rule, its campaign and its labels, never by a measured value: the same fault is the same alert,
however large it is at the moment.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.monitoring.kpis import Severity

Happening = Literal[
    "pending", "cancelled", "fired", "clearing", "broken_again", "resolved", "notified", "reminded", "acknowledged",
    "closed",
]  # fmt: skip
"""What an event says. `clearing`: well again, not yet for long enough; `notified`: what kept people from being notified
is over, or the ticket is a page now; `closed`: resolved by hand."""

BY_HAND = ("acknowledged", "closed")

Phase = Literal["inactive", "pending", "firing", "clearing"]

RUNBOOK = "docs/alerts.md"
"""The page of the guide that says what to do about an alert that has no runbook of its own."""
_RUNBOOKS = {
    **dict.fromkeys(("label_lag", "outcome_completeness"), "label-outage"),
    **dict.fromkeys(("delivery_rate", "non_compliance"), "delivery-outage"),
    **dict.fromkeys(("deployment_mismatch", "error_rate", "prediction_latency"), "rollback"),
}
"""{rule: its runbook, a name of `uplift runbook`}"""


def runbook_of(rule: str) -> str:
    """Name the page of the guide that says what to do when this rule fires."""
    return f"docs/runbooks.md#{_RUNBOOKS[rule]}" if rule in _RUNBOOKS else RUNBOOK


SETTLE = timedelta(minutes=15)
"""An alert that fires again this soon after it resolved notifies nobody until this time is over."""

# Measured values as labels would make every measurement another alert.
_MEASURED = {"value", "threshold", "n", "lower", "upper", "p", "p_value", "error", "at", "window", "target", "run_id"}
_RESERVED = {"campaign", "rule", "severity", "alertname"}


@dataclass(frozen=True)
class AlertRule:
    """What makes an alert of a measurement.

    name      of the rule, as `delivery_rate`
    severity  page or ticket
    hold      how long it must be breached before it fires
    clear     how long it must be well before it resolves
    remind    time after which nobody's acknowledgement makes it notify again; None: once is enough
    runbook   the page of the guide that says what to do
    """

    name: str
    severity: Severity = "ticket"
    hold: timedelta = timedelta(0)
    clear: timedelta = timedelta(0)
    remind: timedelta | None = None
    runbook: str = ""

    def __post_init__(self) -> None:
        if self.severity not in ("page", "ticket"):
            raise ConfigError(f"rule {self.name} has severity {self.severity!r}: use page or ticket")
        for name in ("hold", "clear"):
            if getattr(self, name) < timedelta(0):
                raise ConfigError(f"rule {self.name}: {name} is negative, give a time from 0 on")
        if self.remind is not None and self.remind <= timedelta(0):
            raise ConfigError(f"rule {self.name}: remind must be above 0, or left out")


@dataclass(frozen=True)
class Condition:
    """What one rule says about one thing at one time.

    breached  None where nothing could be measured: the alert then stays as it is, silence resolves nothing
    labels    what the thing is, as {"feature": "recency"}; never what was measured
    """

    rule: AlertRule
    campaign: str
    at: datetime
    breached: bool | None
    summary: str = ""
    value: float | None = None
    threshold: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise DataError(f"rule {self.rule.name} was evaluated at {self.at} of no time zone: give the time in UTC")
        if measured := sorted(set(self.labels) & _MEASURED):
            raise ConfigError(
                f"rule {self.rule.name} has the measured {', '.join(measured)} among its labels, so that every value "
                "would be another alert: put it into the summary"
            )
        if taken := sorted(set(self.labels) & _RESERVED):
            raise ConfigError(f"rule {self.rule.name} has a label {taken[0]}, a name of the alert's own: rename it")

    @property
    def fingerprint(self) -> str:
        """What the alert is known by."""
        return alert_fingerprint(self.rule.name, self.campaign, self.labels)


def alert_fingerprint(rule: str, campaign: str, labels: Mapping[str, str]) -> str:
    """Give the 16 hex digits that an alert is known by, whatever was measured.

    Args:
        rule: Name of the rule.
        campaign: Name of the campaign.
        labels: What the alert is about, in any order.

    Returns:
        The beginning of the SHA-256 of all of them.
    """
    text = json.dumps([rule, campaign, dict(labels)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SuppressionWindow:
    """A time in which alerts notify nobody; they fire and resolve all the same. Names may be patterns, as `drift*`."""

    start: datetime
    end: datetime
    reason: str
    campaigns: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ConfigError(f"suppression window {self.reason!r} has times of no time zone: give them in UTC")
        if self.end <= self.start:
            raise ConfigError(f"suppression window {self.reason!r} ends at {self.end}, not after it starts: swap them")

    def covers(self, campaign: str, rule: str, at: datetime) -> bool:
        """Say whether the window keeps such an alert quiet at this time; its end is no part of it."""
        named = any(fnmatchcase(campaign, one) for one in self.campaigns)
        return self.start <= at < self.end and named and any(fnmatchcase(rule, one) for one in self.rules)


@dataclass(frozen=True)
class AlertEvent:
    """One change of one alert: a row of `gold.alerts`.

    notify    whether people are to be notified of it
    quiet     why they are not; empty where there is nothing to keep quiet
    sequence  1, 2, 3 ... of the alert's events, the order in which they happened to it
    episode   1 from the alert's first breach on, 2 from its next one after it resolved
    by        who acknowledged or closed it, and `note` why
    """

    campaign: str
    alert: str
    rule: str
    severity: Severity
    labels: str
    sequence: int
    episode: int
    event: Happening
    at: datetime
    notify: bool = False
    quiet: str = ""
    value: float | None = None
    threshold: float | None = None
    summary: str = ""
    runbook: str = ""
    by: str = ""
    note: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> AlertEvent:
        """Make an event of a row of `gold.alerts`; further columns, as run_id, are left out."""
        return cls(**{one.name: row[one.name] for one in fields(cls)})

    @property
    def label_map(self) -> dict[str, str]:
        """What the alert is about."""
        return dict(json.loads(self.labels))


@dataclass(frozen=True)
class AlertState:
    """Where an alert stands: all of it follows from its events.

    since           start of the present phase            fired_at     when this episode fired
    resolved_at     end of the last episode               notified_at  when people last read of this episode
    acknowledged_by who took it on in this episode, as severe as it was then
    known_as        the highest severity that people read of in this episode, or acknowledged
    evaluated_at    when its rule changed it last
    last            its newest event
    """

    phase: Phase
    since: datetime
    episode: int
    last: AlertEvent
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    notified_at: datetime | None = None
    acknowledged_by: str = ""
    known_as: Severity | None = None
    evaluated_at: datetime | None = None

    @property
    def active(self) -> bool:
        """Whether the alert has fired and is not resolved."""
        return self.phase in ("firing", "clearing")

    def risen(self, severity: Severity) -> bool:
        """Whether this is more severe than what people know of."""
        return severity == "page" and self.known_as == "ticket"


_PHASE_AFTER: dict[Happening, Phase] = {
    "pending": "pending",
    "cancelled": "inactive",
    "fired": "firing",
    "clearing": "clearing",
    "broken_again": "firing",
    "resolved": "inactive",
    "closed": "inactive",
}


def applied(state: AlertState | None, event: AlertEvent) -> AlertState:
    """Give the state after an event: the one place where states change.

    Args:
        state: Before it; None for an alert's first event.
        event: What happened.

    Returns:
        The state afterwards.
    """
    phase: Phase = _PHASE_AFTER.get(event.event, state.phase if state else "inactive")
    if state is None or event.episode > state.episode:
        resolved = state.resolved_at if state else None
        state = AlertState(phase, event.at, event.episode, event, resolved_at=resolved)
    since = state.since if phase == state.phase else event.at
    evaluated = state.evaluated_at if event.event in BY_HAND else event.at
    state = replace(state, phase=phase, since=since, last=event, evaluated_at=evaluated)
    if event.event == "fired":
        state = replace(state, fired_at=event.at)
    if event.event in ("resolved", "closed"):
        state = replace(state, resolved_at=event.at)
    if event.event == "acknowledged":
        return replace(state, acknowledged_by=event.by, known_as=_higher(state.known_as, event.severity))
    if not event.notify:
        return state
    # Whoever took on a ticket did not take on the page that it became.
    by = "" if state.risen(event.severity) else state.acknowledged_by
    return replace(state, notified_at=event.at, acknowledged_by=by, known_as=_higher(state.known_as, event.severity))


def _higher(known: Severity | None, severity: Severity) -> Severity:
    return "page" if "page" in (known, severity) else "ticket"


def _next_step(state: AlertState | None, condition: Condition) -> Happening | None:
    """What the condition changes of an alert's phase; None where it stays in it."""
    phase, rule, at = (state.phase if state else "inactive"), condition.rule, condition.at
    if condition.breached is None:
        return None
    if condition.breached:
        if phase == "inactive":
            return "pending" if rule.hold else "fired"
        if phase == "pending" and state is not None:
            return "fired" if at - state.since >= rule.hold else None
        return "broken_again" if phase == "clearing" else None
    if phase == "pending":
        return "cancelled"
    if phase == "firing":
        return "clearing" if rule.clear else "resolved"
    if phase == "clearing" and state is not None:
        return "resolved" if at - state.since >= rule.clear else None
    return None


class AlertBook:
    """All alerts, and what new conditions change of them.

    Args:
        windows: Times in which alerts notify nobody.
        settle: See `SETTLE`.

    `known_when_closed` may say of an alert's fingerprint as of when its rule was evaluated before somebody closed it,
    where that is later than its last event by rule: what was known then does not open it anew.
    """

    def __init__(self, windows: Sequence[SuppressionWindow] = (), settle: timedelta = SETTLE) -> None:
        self.windows, self.settle = tuple(windows), settle
        self.states: dict[str, AlertState] = {}
        self._evaluated: dict[str, datetime] = {}  # by campaign
        self._recorded: dict[tuple[str, int], AlertEvent] = {}
        self.known_when_closed: dict[str, datetime] = {}

    @classmethod
    def replay(
        cls,
        events: Iterable[AlertEvent],
        windows: Sequence[SuppressionWindow] = (),
        settle: timedelta = SETTLE,
        evaluated: Mapping[str, datetime] | None = None,
    ) -> AlertBook:
        """Rebuild the book from its history.

        Args:
            events: Rows of `gold.alerts`, in any order.
            windows: As of the constructor.
            settle: As of the constructor.
            evaluated: {campaign: when its rules were last evaluated}, where that is later than its newest event.

        Returns:
            The book as it was after the newest event.

        Raises:
            DataError: Two events of an alert have one sequence, or one between them is not there.
        """
        book = cls(windows, settle)
        for event in sorted(events, key=lambda one: (one.alert, one.sequence)):
            state = book.states.get(event.alert)
            due = state.last.sequence + 1 if state else 1
            if event.sequence != due:
                wrong = "occurs twice: two monitors ran at once" if event.sequence < due else f"comes without {due}"
                raise DataError(
                    f"column sequence of the alerts' table: {event.sequence} of alert {event.alert} ({event.rule}) "
                    f"{wrong}; remove the run that is too much, or restore the table's version before it"
                )
            book.states[event.alert] = applied(state, event)
            book.record([event])
            if event.event not in BY_HAND:  # people act now, rules are evaluated as of what was known
                book._evaluated[event.campaign] = max(event.at, book._evaluated.get(event.campaign, event.at))
        for campaign, at in (evaluated or {}).items():
            book._evaluated[campaign] = max(at, book._evaluated.get(campaign, at))
        return book

    def record(self, events: Iterable[AlertEvent]) -> None:
        """Take note that events are in `gold.alerts` now."""
        self._recorded.update({(event.alert, event.sequence): event for event in events})

    def recorded(self, event: AlertEvent) -> bool | None:
        """Say whether an event is in `gold.alerts`; None: not yet; False: never, as another one has its place."""
        there = self._recorded.get((event.alert, event.sequence))
        if there is None:
            return None
        return (there.event, there.at, there.notify) == (event.event, event.at, event.notify)

    def observe(self, conditions: Sequence[Condition]) -> list[AlertEvent]:
        """Take in what the rules say; conditions of a campaign have one time each, and times never go back.

        Args:
            conditions: Of one evaluation. The same conditions again change nothing.

        Returns:
            What changed, to be added to `gold.alerts`; `notifications` groups those that people are to read.

        Raises:
            DataError: A condition is older than the campaign's last evaluation, or two are about one alert.
        """
        self._check(conditions)
        events: list[AlertEvent] = []
        for condition in conditions:
            events += self._observe_one(condition)
            self._evaluated[condition.campaign] = condition.at
        return events

    def _check(self, conditions: Sequence[Condition]) -> None:
        newest, known = dict(self._evaluated), set()
        for one in conditions:
            last = newest.get(one.campaign)
            if last is not None and one.at < last:
                raise DataError(
                    f"rule {one.rule.name} of campaign {one.campaign} was evaluated at {one.at}, before the last "
                    f"evaluation at {last}: the clock went back, so nothing was changed; correct it and run again"
                )
            if one.fingerprint in known:
                about = f" ({_shown(one.labels)})" if one.labels else ""
                raise DataError(
                    f"rule {one.rule.name} of campaign {one.campaign}{about} occurs twice in one evaluation: give what "
                    "it is about as labels that differ"
                )
            known.add(one.fingerprint)
            newest[one.campaign] = one.at

    def _observe_one(self, condition: Condition) -> list[AlertEvent]:
        state = self.states.get(condition.fingerprint)
        if state is not None and state.last.event == "closed":
            known = self.known_when_closed.get(condition.fingerprint, state.evaluated_at)
            if known is not None and condition.at <= known:
                return []
        happening = _next_step(state, condition)
        if happening is None:
            happening = self._message_due(state, condition)
        if happening is None:
            return []
        event = self._event(state, condition, happening)
        self.states[event.alert] = applied(state, event)
        return [event]

    def _message_due(self, state: AlertState | None, condition: Condition) -> Happening | None:
        """A message about an alert that stays as it is: the first if it was kept quiet, a ticket's page, a reminder."""
        if state is None or state.phase != "firing" or self._quiet(state, condition):
            return None
        if condition.at == state.last.at and state.last.event not in BY_HAND:
            return None  # the same evaluation again
        if state.risen(condition.rule.severity):
            return "notified"
        if state.acknowledged_by:
            return None
        if state.notified_at is None:
            return "notified"
        remind = condition.rule.remind
        return "reminded" if remind is not None and condition.at - state.notified_at >= remind else None

    def _quiet(self, state: AlertState | None, condition: Condition) -> str:
        """Why nobody is to be notified now; empty if somebody is."""
        for window in self.windows:
            if window.covers(condition.campaign, condition.rule.name, condition.at):
                return window.reason
        resolved = state.resolved_at if state else None
        # What was known before somebody closed it is no flapping.
        if resolved is not None and timedelta(0) <= condition.at - resolved < self.settle:
            return f"it resolved less than {self.settle.total_seconds() / 60:g} minutes before"
        return ""

    def _event(self, state: AlertState | None, condition: Condition, happening: Happening) -> AlertEvent:
        fresh = state is None or state.phase == "inactive"
        episode = (state.episode if state else 0) + fresh
        notify, quiet = happening in ("notified", "reminded"), ""
        if happening == "fired" or (happening == "broken_again" and state and state.risen(condition.rule.severity)):
            quiet = self._quiet(state, condition)
            notify = not quiet
        elif happening == "resolved":  # whoever read that it fired reads that it is over, in a quiet time, too
            notify = state is not None and state.notified_at is not None
            quiet = "" if notify else "nobody was notified that it fired"
        rule = condition.rule
        return AlertEvent(
            condition.campaign,
            condition.fingerprint,
            rule.name,
            rule.severity,
            json.dumps(dict(condition.labels), sort_keys=True, ensure_ascii=False),
            state.last.sequence + 1 if state else 1,
            episode,
            happening,
            condition.at,
            notify,
            quiet,
            condition.value,
            condition.threshold,
            condition.summary,
            rule.runbook,
        )

    def acknowledge(self, alert: str, by: str, at: datetime, note: str = "") -> AlertEvent:
        """Put on record who takes care of an alert: it reminds nobody any more until it resolves.

        Args:
            alert: Fingerprint, the beginning of one, or the rule where one alert of it fires.
            by: Who.
            at: When, not before the alert's newest event.
            note: Why, or what is to be done.

        Returns:
            The event, to be added to `gold.alerts`.

        Raises:
            DataError: No such alert fires, or the time is before its newest event.
        """
        return self._by_hand(alert, "acknowledged", by, at, note)

    def close(self, alert: str, by: str, at: datetime, note: str = "") -> AlertEvent:
        """Resolve by hand an alert of what is measured no more; arguments and errors as of `acknowledge`."""
        return self._by_hand(alert, "closed", by, at, note)

    def _by_hand(self, alert: str, happening: Happening, by: str, at: datetime, note: str) -> AlertEvent:
        state = self._named(alert)
        if not by.strip():
            raise DataError(f"alert {alert} cannot be {happening} by nobody: give a name")
        if at < state.last.at:
            raise DataError(
                f"alert {alert} cannot be {happening} at {at}, before its newest event at {state.last.at}: correct "
                "the time"
            )
        quiet = "" if happening == "acknowledged" or state.notified_at else "nobody was notified that it fired"
        notify = happening == "closed" and not quiet
        last, sequence = state.last, state.last.sequence + 1
        event = replace(last, sequence=sequence, event=happening, at=at, notify=notify, quiet=quiet, by=by, note=note)
        self.states[event.alert] = applied(state, event)
        return event

    def firing(self, alert: str) -> list[AlertState]:
        """List the alerts of this name (see `acknowledge`) that fire."""
        return _of_name(alert, self.active())

    def closed_already(self, alert: str) -> AlertState | None:
        """Find the one closed alert of this name (see `acknowledge`) that did not open since; None where none is."""
        closed = _of_name(alert, [state for state in self.states.values() if state.last.event == "closed"])
        return closed[0] if len(closed) == 1 else None

    def _named(self, alert: str) -> AlertState:
        states, named = self.active(), self.firing(alert)
        if len(named) == 1:
            return named[0]
        if named:
            which = "; ".join(f"{one.last.alert} ({_shown(one.last.label_map)})" for one in named)
            raise DataError(f"{alert!r} names {len(named)} alerts that fire: name one by its fingerprint, {which}")
        known = {name for one in states for name in (one.last.rule, one.last.alert)}
        raise DataError(f"{alert!r} is no alert that fires: {hint(alert, known) if known else 'none fires'}")

    def active(self) -> list[AlertState]:
        """List the alerts that fire, pages first, then the oldest."""
        firing = [state for state in self.states.values() if state.active]
        return sorted(firing, key=lambda one: (one.last.severity, one.fired_at or one.since, one.last.alert))


def _of_name(alert: str, states: Sequence[AlertState]) -> list[AlertState]:
    of_rule = [one for one in states if one.last.rule == alert]
    return of_rule or [one for one in states if alert and one.last.alert.startswith(alert)]


# --------------------------------------------------------------------------------------------------------------------
# What people read.


def state_line(state: AlertState) -> str:
    """Say in a line where an alert stands: fingerprint, severity, rule, since when, who took it on, what is wrong."""
    last = state.last
    about = f" ({_shown(last.label_map)})" if last.label_map else ""
    stands = f"closed by {last.by}" if last.event == "closed" else state.phase
    by = f", acknowledged by {state.acknowledged_by}" if state.acknowledged_by and state.active else ""
    summary = f": {last.summary}" if last.summary else ""
    since = (state.fired_at or state.since) if state.active else state.since
    return f"{last.alert} {last.severity} {last.rule}{about} {stands} since {since:%Y-%m-%d %H:%M} UTC{by}{summary}"


@dataclass(frozen=True)
class Notification:
    """Everything of one campaign and one severity that people are to read at one time."""

    campaign: str
    severity: Severity
    at: datetime
    events: tuple[AlertEvent, ...]

    @property
    def key(self) -> str:
        """Name of the notification: the same events have the same one, so that a repeated delivery can be known."""
        parts = [[one.alert, one.sequence, one.at.isoformat()] for one in self.events]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """How many alerts fire and are resolved, in a line."""
        over = sum(one.event in ("resolved", "closed") for one in self.events)
        fire = len(self.events) - over
        counts = [f"{fire} firing"] * (fire > 0) + [f"{over} resolved"] * (over > 0)
        return f"[{self.severity}] {self.campaign}: {', '.join(counts)}"

    def lines(self) -> list[str]:
        """One line for each alert: what happened, what is wrong, where to read what to do."""
        return [_line(one) for one in self.events]


def notifications(events: Iterable[AlertEvent]) -> list[Notification]:
    """Group what people are to read by campaign and severity.

    Args:
        events: As `AlertBook.observe` returns them.

    Returns:
        One notification for each campaign and severity, pages first; none where nobody is to be notified.
    """
    groups: dict[tuple[str, Severity], list[AlertEvent]] = defaultdict(list)
    for event in events:
        if event.notify:
            groups[event.campaign, event.severity].append(event)
    ordered = sorted(groups.items(), key=lambda item: (item[0][1], item[0][0]))
    return [Notification(name, kind, max(one.at for one in own), tuple(own)) for (name, kind), own in ordered]


_WORDS: dict[Happening, str] = {"resolved": "resolved", "closed": "closed", "reminded": "still firing"}


def _line(event: AlertEvent) -> str:
    about = f" ({_shown(event.label_map)})" if event.label_map else ""
    by = f" by {event.by}" if event.event == "closed" else ""
    summary = f": {event.summary}" if event.summary else ""
    runbook = f" [{event.runbook}]" if event.runbook and event.event not in ("resolved", "closed") else ""
    return f"{_WORDS.get(event.event, 'firing')}{by} {event.rule}{about}{summary}{runbook}"


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in sorted(labels.items()))


# --------------------------------------------------------------------------------------------------------------------
# Alerts of KPIs and findings.


def newest_windows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose of each KPI and cut the row that counts: the newest window with a value, else the newest window.

    A figure of labels has no value in the newest window, whose labels are not ripe: what counts is the newest one that
    has. So an older window that is monitored again, now that its labels are ripe, raises alerts of these figures, and
    takes nothing back of figures that a newer window has.

    Args:
        rows: Of `gold.kpi`, one for each KPI, cut and window; of several runs of a window those of the last.

    Returns:
        One row for each campaign, KPI and cut. A cut that is not there in the newest window with any value of the KPI
        is left out.

    Raises:
        DataError: Two rows are of one KPI, cut and window, or an end has no time zone.
    """
    by_kpi: dict[tuple[str, str], dict[tuple[str, datetime], Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        campaign, kpi, cut, end = str(row["campaign"]), str(row["kpi"]), str(row.get("cut") or "all"), row["window_end"]
        if end.tzinfo is None:
            raise DataError(f"column window_end of KPI {kpi} has a time of no time zone ({end}): give it in UTC")
        windows = by_kpi[campaign, kpi]
        if (cut, end) in windows:
            raise DataError(
                f"KPI {kpi} of campaign {campaign} (cut {cut}) has two rows of the window that ends at {end}: give "
                "those of the newest run alone"
            )
        windows[cut, end] = row
    chosen = []
    for _, windows in sorted(by_kpi.items()):
        newest = max(windows, key=lambda key: _counts_before(windows[key]))[1]
        for cut in sorted(cut for cut, end in windows if end == newest):
            chosen.append(max((row for (name, _), row in windows.items() if name == cut), key=_counts_before))
    return chosen


def _counts_before(row: Mapping[str, Any]) -> tuple[bool, datetime]:
    return _known(row["value"]) is not None, row["window_end"]


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def kpi_conditions(rows: Iterable[Mapping[str, Any]], at: datetime) -> list[Condition]:
    """Read rows of `gold.kpi` as conditions: what a monitor hands to `AlertBook.observe`.

    A KPI is breached where its state is `alert`, and well where its value is not beyond the alert threshold. Between
    the two, and with too few observations or none, nobody can say, and its alert stays as it is.

    Args:
        rows: As `newest_windows` chooses them; KPIs without an alert threshold are left out.
        at: When they are evaluated: as of when what they say was known.

    Returns:
        One condition for each KPI and cut. Its summary says how many observations would tell.
    """
    conditions = []
    for row in rows:
        threshold = _known(row["alert"])
        if threshold is None:
            continue
        breached = {"alert": True, "ok": False, "missed": False}.get(str(row["state"]))
        labels = {"kpi": str(row["kpi"]), "cut": str(row["cut"])}
        rule = AlertRule(str(row["kpi"]), row["severity"], runbook=runbook_of(str(row["kpi"])))
        value = _known(row["value"])
        summary = _kpi_summary(row, value)
        conditions.append(Condition(rule, row["campaign"], at, breached, summary, value, threshold, labels))
    return conditions


MEASURED_BY = {"label_lag": "outcome_completeness", "low_sample": "observed_lift", "over_targeting": "uplift_roi",
           "non_compliance": "delivery_rate"}  # fmt: skip
"""{detector: KPI that has a value where the detector had what it needs}; of all others drift_score."""


def finding_conditions(
    findings: Iterable[Mapping[str, Any]],
    kpis: Iterable[Mapping[str, Any]],
    active: Iterable[AlertState],
    at: datetime,
) -> list[Condition]:
    """Read rows of `gold.findings` of one campaign as conditions; what a detector finds no more is well.

    A detector has one alert, whatever it is about at the moment. What counts is the newest window in which it found
    something or had what it needs.

    Args:
        findings: Of the last run of each window.
        kpis: Rows of `gold.kpi`, as `newest_windows` chooses them: they say what was measured.
        active: Alerts of the campaign, as `AlertBook.active` lists them.
        at: When they are evaluated.

    Returns:
        One condition for each detector that finds something, or has an alert and finds nothing any more.
    """
    measured: dict[str, datetime] = {}
    for row in kpis:
        if _known(row["value"]) is not None:
            measured[row["kpi"]] = max(row["window_end"], measured.get(row["kpi"], row["window_end"]))
    newest: dict[str, Mapping[str, Any]] = {}
    for row in findings:
        name = str(row["finding"])
        if name not in newest or row["window_end"] > newest[name]["window_end"]:
            newest[name] = row
    firing = {state.last.rule: state.last for state in active if "finding" in state.last.label_map}
    conditions = []
    for name in sorted({*newest, *firing}):
        looked, there, labels = measured.get(MEASURED_BY.get(name, "drift_score")), newest.get(name), {"finding": name}
        if there is not None and (looked is None or there["window_end"] >= looked):
            rule = AlertRule(name, there["severity"], runbook=runbook_of(name))
            summary = f"{there['sentence']}; {there['action']}"
            figures = _known(there["figure"]), _known(there["threshold"])
            conditions.append(Condition(rule, there["campaign"], at, True, summary, *figures, labels))
        elif name in firing and looked is not None:
            last = firing[name]
            rule = AlertRule(name, last.severity, runbook=runbook_of(name))
            text = f"not found any more in the window that ends at {looked:%Y-%m-%d %H:%M} UTC"
            conditions.append(Condition(rule, last.campaign, at, False, text, labels=labels))
    return conditions


def _kpi_summary(row: Mapping[str, Any], value: float | None) -> str:
    if value is None:
        return f"{row['kpi']} was not measured"
    ends = [row[name] for name in ("lower", "upper")]
    interval = "" if any(end is None or end != end for end in ends) else f" ({ends[0]:.4g} to {ends[1]:.4g})"
    needed = row["n_needed"]
    known = needed is not None and needed == needed and needed != float("inf")
    tells = f"; n {needed:,.0f} would be enough" if known else ""
    return f"{value:.4g}{interval} {row['unit']}, n {row['n']:,.0f}, alert at {row['alert']:.4g}{tells}"
