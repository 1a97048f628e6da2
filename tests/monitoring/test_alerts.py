"""The life of an alert, by examples and by all histories that hypothesis thinks of."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.lake.schemas import contract_of, gold_table
from uplift_spark.monitoring.alerts import (
    MEASURED_BY,
    AlertBook,
    AlertEvent,
    AlertRule,
    Condition,
    SuppressionWindow,
    alert_fingerprint,
    finding_conditions,
    kpi_conditions,
    newest_windows,
    notifications,
)
from uplift_spark.monitoring.detectors import DETECTORS
from uplift_spark.monitoring.kpis import FOUNDING_KPIS, LIFT_FIGURES

START = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PLAIN = AlertRule("delivery_rate", "page", runbook="docs/alerts.md")
SLOW = AlertRule("drift_score", hold=10 * MINUTE, clear=10 * MINUTE)


def said(
    minute: float, breached: bool | None, rule: AlertRule = PLAIN, campaign: str = "demo", **labels: str
) -> Condition:
    return Condition(rule, campaign, START + minute * MINUTE, breached, f"at minute {minute}", minute, 0.99, labels)


def history(conditions: list[Condition], book: AlertBook | None = None) -> list[tuple[str, bool]]:
    """(event, whether people are notified) of one condition after another."""
    book = book or AlertBook()
    return [(event.event, event.notify) for one in conditions for event in book.observe([one])]


def test_fires_once_resolves_and_fires_again() -> None:
    conditions = [said(minute, minute not in (3, 4, 5)) for minute in range(0, 60)]
    book = AlertBook(settle=timedelta(0))
    events = [event for one in conditions for event in book.observe([one])]
    assert [(e.event, e.episode, e.at) for e in events] == [
        ("fired", 1, START),
        ("resolved", 1, START + 3 * MINUTE),
        ("fired", 2, START + 6 * MINUTE),
    ]
    assert all(event.notify for event in events)
    assert len({event.alert for event in events}) == 1
    assert [event.sequence for event in events] == [1, 2, 3]


def test_a_breach_must_hold_and_wellness_must_hold() -> None:
    minutes = [0, 5, 6, 7, 16, 17, 20, 25, 26, 30, 40]
    breached = [True, True, False, True, True, True, False, True, False, False, False]
    events = history([said(m, b, SLOW) for m, b in zip(minutes, breached, strict=True)])
    assert events == [
        ("pending", False),
        ("cancelled", False),
        ("pending", False),
        ("fired", True),
        ("clearing", False),
        ("broken_again", False),
        ("clearing", False),
        ("resolved", True),
    ]


def test_silence_resolves_nothing() -> None:
    assert history([said(0, True), *(said(minute, None) for minute in range(1, 50))]) == [("fired", True)]
    assert history([said(minute, None) for minute in range(5)]) == []


def test_the_fingerprint_holds_no_value() -> None:
    assert said(0, True, feature="age").fingerprint == said(7, False, feature="age").fingerprint
    assert said(0, True, feature="age").fingerprint != said(0, True, feature="recency").fingerprint
    assert alert_fingerprint("r", "c", {"a": "1", "b": "2"}) == alert_fingerprint("r", "c", {"b": "2", "a": "1"})
    assert alert_fingerprint("r", "c", {}) != alert_fingerprint("r", "d", {}) != alert_fingerprint("s", "c", {})
    with pytest.raises(ConfigError, match="rule delivery_rate has the measured value among its labels"):
        said(0, True, value=".97")
    with pytest.raises(ConfigError, match="a label severity"):
        said(0, True, severity="page")


def test_an_alert_that_flaps_notifies_once_in_a_quarter_of_an_hour() -> None:
    conditions = [said(minute, minute % 2 == 0) for minute in range(0, 31)]
    told_of = [event for event, notify in history(conditions) if notify]
    assert told_of == ["fired", "resolved"]  # later ones fire within 15 minutes of the last resolution
    steady = [said(0, True), said(1, False), said(2, True), *(said(minute, True) for minute in range(3, 30))]
    assert history(steady) == [("fired", True), ("resolved", True), ("fired", False), ("notified", True)]


def test_a_suppression_window_keeps_people_quiet_not_the_history() -> None:
    window = SuppressionWindow(START, START + 30 * MINUTE, "load test", ("demo",), ("delivery_*",))
    goes_on = [said(minute, True) for minute in (5, 29, 30, 31)]
    assert history(goes_on, AlertBook([window])) == [("fired", False), ("notified", True)]
    book = AlertBook([window])
    (event,) = book.observe([said(5, True)])
    assert event.quiet == "load test"
    assert history([said(6, False)], book) == [("resolved", False)]
    assert history([said(5, True, campaign="other")], AlertBook([window])) == [("fired", True)]
    assert history([said(5, True, SLOW), said(16, True, SLOW)], AlertBook([window])) == [
        ("pending", False),
        ("fired", True),
    ]
    # Whoever read that it fires reads that it is over.
    later = SuppressionWindow(START + MINUTE, START + 30 * MINUTE, "load test")
    assert history([said(0, True), said(5, False)], AlertBook([later])) == [("fired", True), ("resolved", True)]
    both = SuppressionWindow(START, START + MINUTE, "holidays", rules=("drift*",))  # as docs/alerts.md writes it
    assert both.covers("demo", "drift", START) and both.covers("demo", "drift_score", START)
    with pytest.raises(ConfigError, match="not after it starts"):
        SuppressionWindow(START, START, "nothing")
    with pytest.raises(ConfigError, match="no time zone"):
        SuppressionWindow(datetime(2026, 1, 1), START, "local")


def test_acknowledged_alerts_remind_nobody() -> None:
    rule = AlertRule("errors", "page", remind=10 * MINUTE)
    conditions = [said(minute, True, rule) for minute in range(0, 31)]
    assert history(conditions) == [("fired", True), ("reminded", True), ("reminded", True), ("reminded", True)]
    book = AlertBook()
    (fired,) = book.observe(conditions[:1])
    event = book.acknowledge(fired.alert[:6], "ann", START + MINUTE, "looking into it")
    assert (event.event, event.by, event.note, event.notify) == ("acknowledged", "ann", "looking into it", False)
    assert history(conditions[2:], book) == []
    assert history([said(40, False, rule), said(60, True, rule), said(70, True, rule)], book) == [
        ("resolved", True),
        ("fired", True),
        ("reminded", True),  # the next episode is acknowledged by nobody yet
    ]


def test_an_alert_that_breaks_again_as_a_page_pages_though_it_was_acknowledged() -> None:
    ticket = AlertRule("label_lag", clear=10 * MINUTE)
    page = replace(ticket, severity="page")
    book = AlertBook()
    book.observe([said(0, True, ticket)])
    book.acknowledge("label_lag", "ann", START + MINUTE)  # by its rule's name
    first = [said(5, False, ticket), said(6, True, ticket), said(7, False, ticket), said(8, True, page)]
    assert history(first, book) == [
        ("clearing", False),
        ("broken_again", False),  # no worse than what was acknowledged
        ("clearing", False),
        ("broken_again", True),
    ]
    (state,) = book.active()
    assert state.last.severity == "page" and state.acknowledged_by == ""  # nobody took on the page
    assert history([said(9, True, page), said(30, False, page), said(31, True, page)], book) == [
        ("clearing", False),
        ("broken_again", False),
    ]
    # In a quiet time the page waits for its end.
    window = SuppressionWindow(START + 5 * MINUTE, START + 20 * MINUTE, "load test")
    steps = [said(0, True, ticket), said(6, False, ticket), said(8, True, page), said(9, True, page)]
    quiet = [("fired", True), ("clearing", False), ("broken_again", False), ("notified", True)]
    assert history([*steps, said(20, True, page), said(21, True, page)], AlertBook([window])) == quiet


def test_an_acknowledged_alert_that_nobody_read_of_stays_quiet_until_it_rises() -> None:
    ticket = AlertRule("label_lag")
    window = SuppressionWindow(START, START + 20 * MINUTE, "load test")
    book = AlertBook([window])
    assert history([said(1, True, ticket)], book) == [("fired", False)]
    book.acknowledge("label_lag", "ann", START + 2 * MINUTE)
    steps = [said(30, True, ticket), said(31, True, replace(ticket, severity="page"))]
    assert history(steps, book) == [("notified", True)]


def test_a_closed_alert_stays_closed_for_what_was_known_and_opens_by_what_is_new() -> None:
    book = AlertBook()
    events = book.observe([said(10, True)])
    events.append(book.close("delivery_rate", "ben", START + 90 * MINUTE, "known"))
    for knows in (book, AlertBook.replay(events)):
        assert knows.observe([said(10, True)]) == []  # the same window again
        assert knows.closed_already(events[0].alert[:8]) is not None
    later = AlertBook.replay(events)
    later.known_when_closed[events[0].alert] = START + 20 * MINUTE
    assert later.observe([said(20, True)]) == []
    (again,) = later.observe([said(30, True)])
    assert (again.event, again.episode, again.notify) == ("fired", 2, True)
    assert later.closed_already("delivery_rate") is None


def test_an_alert_is_named_by_its_rule_or_its_fingerprint() -> None:
    book = AlertBook()
    events = book.observe([said(0, True, feature="age"), said(0, True, feature="x")])
    with pytest.raises(DataError, match=r"names 2 alerts that fire: name one by its fingerprint, .*\(feature age\)"):
        book.acknowledge("delivery_rate", "ann", START)
    assert book.acknowledge(events[1].alert, "ann", START).label_map == {"feature": "x"}


def test_an_alert_of_what_is_measured_no_more_is_closed_by_hand() -> None:
    book = AlertBook()
    (fired,) = book.observe([said(0, True, feature="gone")])
    closed = book.close(fired.alert, "ben", START + 90 * MINUTE, "the feature was removed")
    assert closed.notify and book.active() == []
    for act in (book.close, book.acknowledge):
        with pytest.raises(DataError, match="is no alert that fires"):
            act(fired.alert, "ben", START + 91 * MINUTE)
    # Rules are evaluated at the end of their window, which may lie before the moment somebody acted.
    (again,) = book.observe([said(60, True, feature="gone")])
    assert (again.event, again.episode, again.sequence) == ("fired", 2, 3)
    assert AlertBook.replay([again, closed, fired]).states == book.states


def test_what_people_may_not_do() -> None:
    book = AlertBook()
    (fired,) = book.observe([said(5, True)])
    book.observe([said(5, True, campaign="other")])
    with pytest.raises(DataError, match="by nobody"):
        book.acknowledge(fired.alert, " ", START + 6 * MINUTE)
    with pytest.raises(DataError, match="before its newest event"):
        book.acknowledge(fired.alert, "ann", START)
    with pytest.raises(DataError, match="is no alert that fires"):
        book.acknowledge("", "ann", START + 6 * MINUTE)
    with pytest.raises(ConfigError, match="use page or ticket"):
        AlertRule("errors", "phone")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hold is negative"):
        AlertRule("errors", hold=-MINUTE)
    with pytest.raises(ConfigError, match="remind must be above 0"):
        AlertRule("errors", remind=0 * MINUTE)


def test_a_clock_that_goes_back_is_refused_and_changes_nothing() -> None:
    book = AlertBook()
    events = book.observe([said(10, True)])
    before = dict(book.states)
    with pytest.raises(
        DataError, match=r"campaign demo was evaluated at .*00:09.*, before the last evaluation at .*00:10"
    ):
        book.observe([said(11, True, SLOW, "third"), said(9, False)])
    assert book.states == before
    again = AlertBook.replay(events, evaluated={"demo": START + 20 * MINUTE})
    with pytest.raises(DataError, match="the clock went back"):
        again.observe([said(15, False)])
    assert book.observe([said(9, True, campaign="other")])  # has a clock of its own
    with pytest.raises(DataError, match="of no time zone"):
        Condition(PLAIN, "demo", datetime(2026, 1, 1), True)


def test_two_conditions_about_one_alert_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(feature age\) occurs twice in one evaluation"):
        AlertBook().observe([said(0, True, feature="age"), said(0, False, feature="age")])


def test_two_monitors_at_once_show_in_the_history() -> None:
    first, second = AlertBook().observe([said(0, True)]), AlertBook().observe([said(0, True)])
    with pytest.raises(DataError, match=r"1 of alert .* occurs twice: two monitors ran at once"):
        AlertBook.replay(first + second)
    with pytest.raises(DataError, match=r"2 of alert .* comes without 1"):
        AlertBook.replay([replace(first[0], sequence=2)])


def test_notifications_are_grouped_by_campaign_and_severity() -> None:
    book = AlertBook()
    ticket = AlertRule("wide_intervals")
    conditions = [said(0, True, c, n, feature=f) for n in ("b", "a") for c in (ticket, PLAIN) for f in ("x", "y")]
    groups = notifications(book.observe(conditions))
    assert [(one.severity, one.campaign, len(one.events)) for one in groups] == [
        ("page", "a", 2),
        ("page", "b", 2),
        ("ticket", "a", 2),
        ("ticket", "b", 2),
    ]
    assert groups[0].title == "[page] a: 2 firing"
    assert groups[0].lines()[0] == "firing delivery_rate (feature x): at minute 0 [docs/alerts.md]"
    (over,) = notifications(
        book.observe([said(1, False, PLAIN, "a", feature="x"), said(1, True, PLAIN, "a", feature="z")])
    )
    assert over.title == "[page] a: 1 firing, 1 resolved"
    assert over.lines()[0] == "resolved delivery_rate (feature x): at minute 1"
    assert len({one.key for one in [*groups, over]}) == 5
    assert [state.last.severity for state in book.active()] == ["page"] * 4 + ["ticket"] * 4


def test_the_table_has_a_column_for_each_part_of_an_event() -> None:
    contract = contract_of(gold_table("alerts"))
    assert contract is not None
    assert contract.columns.fieldNames() == ["run_id", *(one.name for one in fields(AlertEvent))]
    (event,) = AlertBook().observe([said(0, True, feature="age")])
    assert AlertEvent.from_row({"run_id": "monitor-1", **asdict(event)}) == event
    assert event.label_map == {"feature": "age"}


def test_kpis_become_alerts_by_their_state() -> None:
    row = {
        "campaign": "demo", "kpi": "delivery_rate", "cut": "mail", "value": 0.97, "lower": 0.96, "upper": 0.98,
        "n": 5000.0, "n_needed": 1200.0, "alert": 0.99, "unit": "share", "severity": "page", "state": "alert",
    }  # fmt: skip
    book, states = AlertBook(settle=0 * MINUTE), ["unsure", "alert", "no_data", "too_few", "unsure", "alert", "missed"]
    events = []
    for day, state in enumerate(states):
        rows = [{**row, "state": state}]
        events += book.observe(kpi_conditions(rows, START + timedelta(days=day)))
    assert [(event.event, event.at.day) for event in events] == [("fired", 3), ("resolved", 8)]
    assert notifications(events[:1])[0].lines() == [
        "firing delivery_rate (cut mail, kpi delivery_rate): 0.97 (0.96 to 0.98) share, n 5,000, alert at 0.99; n "
        "1,200 would be enough [docs/runbooks.md#delivery-outage]"
    ]
    assert kpi_conditions([{**row, "alert": None}, {**row, "alert": float("nan")}], START) == []
    (nothing,) = kpi_conditions([{**row, "value": float("nan"), "state": "no_data"}], START)
    assert (nothing.breached, nothing.value, nothing.summary) == (None, None, "delivery_rate was not measured")


def kpi_row(kpi: str, day: int, value: float | None, state: str = "ok", cut: str = "all") -> dict[str, Any]:
    return {
        "campaign": "demo", "kpi": kpi, "cut": cut, "value": value, "lower": None, "upper": None, "n": 5000.0,
        "n_needed": None, "alert": 0.1, "unit": "share", "severity": "ticket", "state": state,
        "window_end": START + timedelta(days=day),
    }  # fmt: skip


def test_a_figure_of_ripe_labels_raises_its_alert_though_newer_windows_have_no_labels() -> None:
    newer = [kpi_row("lift_degradation", 20, None, "no_data", "mail"), kpi_row("drift_score", 20, 0.05)]
    old = [kpi_row("lift_degradation", 6, 0.4, "alert", "mail"), kpi_row("drift_score", 6, 0.4, "alert")]
    retired = kpi_row("lift_degradation", 5, 0.9, "alert", "call")
    chosen = newest_windows([*newer, *old, retired])
    assert [(row["kpi"], row["cut"], row["value"]) for row in chosen] == [
        ("drift_score", "all", 0.05),  # the old window takes nothing back of what a newer one has
        ("lift_degradation", "mail", 0.4),
    ]
    book, at = AlertBook(), START + timedelta(days=20)
    assert book.observe(kpi_conditions(newest_windows(newer), at)) == []
    (event,) = book.observe(kpi_conditions(chosen, at))  # of the same events, hence as of the same time
    assert (event.event, event.rule, event.notify) == ("fired", "lift_degradation", True)
    nothing = [kpi_row("uplift_roi", day, None, "no_data", "mail") for day in (1, 2)]
    assert [row["window_end"].day for row in newest_windows(nothing)] == [(START + timedelta(days=2)).day]


def found(name: str, day: int, severity: str = "ticket") -> dict[str, Any]:
    return {
        "campaign": "demo", "finding": name, "severity": severity, "about": "x", "figure": 0.3, "threshold": 0.05,
        "sentence": "x drifts", "action": "look", "window_end": START + timedelta(days=day),
    }  # fmt: skip


def test_findings_are_alerts_until_their_detector_finds_nothing() -> None:
    book = AlertBook(settle=timedelta(0))

    def step(findings: list[dict[str, Any]], kpis: list[dict[str, Any]], day: int) -> list[tuple[str, str]]:
        at = START + timedelta(days=day)
        events = book.observe(finding_conditions(findings, kpis, book.active(), at))
        assert book.observe(finding_conditions(findings, kpis, book.active(), at)) == []
        return [(event.rule, event.event) for event in events]

    drift, labels = kpi_row("drift_score", 1, 0.2), kpi_row("outcome_completeness", 1, 0.9, cut="buy")
    both = [found("drift", 1), found("label_lag", 1)]
    assert step(both, [drift, labels], 1) == [("drift", "fired"), ("label_lag", "fired")]
    newer = kpi_row("drift_score", 2, 0.01)
    assert step(both, [newer, labels], 2) == [("drift", "resolved")]  # the window has no labels: label_lag stays
    assert step([found("label_lag", 3, "page")], [newer, labels], 3) == [("label_lag", "notified")]  # now it pages
    assert book.active()[0].last.severity == "page"
    assert step([], [newer, kpi_row("outcome_completeness", 4, 1.0, cut="buy")], 4) == [("label_lag", "resolved")]
    assert notifications(book.observe(finding_conditions([found("drift", 5)], [], [], START + timedelta(days=5))))[
        0
    ].lines() == ["firing drift (finding drift): x drifts; look [docs/alerts.md]"]


def test_every_detector_knows_what_shows_that_it_could_look() -> None:
    assert set(MEASURED_BY) < set(DETECTORS) and {*MEASURED_BY.values(), "drift_score"} <= {
        kpi.name for kpi in (*FOUNDING_KPIS, *LIFT_FIGURES)
    }


# ---------------------------------------------------------------- all histories

STEPS = st.lists(st.tuples(st.integers(1, 20), st.sampled_from([True, False, None])), min_size=1, max_size=25)
RULES = st.builds(
    AlertRule,
    st.just("r"),
    st.sampled_from(["page", "ticket"]),
    hold=st.sampled_from([0, 5, 12]).map(lambda minutes: minutes * MINUTE),
    clear=st.sampled_from([0, 5, 12]).map(lambda minutes: minutes * MINUTE),
    remind=st.sampled_from([None, 30 * MINUTE]),
)
SETTLES = st.sampled_from([0, 15]).map(lambda minutes: minutes * MINUTE)
WINDOWS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 100)).map(
        lambda pair: SuppressionWindow(START + pair[0] * MINUTE, START + sum(pair) * MINUTE, "quiet")
    ),
    max_size=2,
)


def conditions_of(rule: AlertRule, steps: list[tuple[int, bool | None]]) -> list[Condition]:
    minute, conditions = 0, []
    for gap, breached in steps:
        minute += gap
        conditions.append(said(minute, breached, rule))
    return conditions


@settings(deadline=None, max_examples=60)
@given(RULES, STEPS, SETTLES, WINDOWS)
def test_every_history_keeps_the_promises(
    rule: AlertRule, steps: list[tuple[int, bool | None]], settle: timedelta, windows: list[SuppressionWindow]
) -> None:
    book = AlertBook(windows, settle)
    conditions = conditions_of(rule, steps)
    events: list[AlertEvent] = []
    for one in conditions:
        fresh = book.observe([one])
        assert len(fresh) <= 1
        assert book.observe([one]) == []  # a rerun adds nothing
        events += fresh
        if fresh or one is conditions[-1]:
            rebuilt = AlertBook.replay(events, windows, settle, {"demo": one.at})
            assert rebuilt.states == book.states and rebuilt.observe([one]) == []
        for event in fresh:
            assert (
                not (event.notify and any(w.covers("demo", "r", event.at) for w in windows))
                or event.event == "resolved"
            )
    for _, episode in groupby(events, key=lambda event: event.episode):
        own = list(episode)
        counts = Counter(event.event for event in own)
        assert counts["fired"] <= 1 and counts["resolved"] <= counts["fired"]
        assert sum(event.notify for event in own if event.event in ("fired", "notified")) <= 1
        assert not counts["resolved"] or own[-1].event == "resolved"
        started = next(event.at for event in own)
        for event in own:
            if event.event == "fired":
                assert event.at - started >= rule.hold
            if event.event == "resolved":
                assert event.notify == any(other.notify for other in own[:-1])
                well = (
                    next(other.at for other in reversed(own) if other.event == "clearing") if rule.clear else event.at
                )
                assert event.at - well >= rule.clear
                between = [one.breached for one in conditions if well <= one.at <= event.at]
                assert True not in between
    for notification in notifications(events):
        assert all(event.notify for event in notification.events)


@settings(deadline=None, max_examples=25)
@given(RULES, STEPS, st.data())
def test_no_order_of_campaigns_and_no_split_changes_what_happens(
    rule: AlertRule, steps: list[tuple[int, bool | None]], data: st.DataObject
) -> None:
    conditions = conditions_of(rule, steps)
    others = [replace(one, campaign="other", breached=not one.breached) for one in conditions]
    apart, together = AlertBook(), AlertBook()
    expected = sorted(str(event) for one in [*conditions, *others] for event in apart.observe([one]))
    observed = []
    for pair in zip(conditions, others, strict=True):
        swapped = data.draw(st.booleans())
        observed += [str(event) for event in together.observe(pair[::-1] if swapped else pair)]
    assert sorted(observed) == expected
    assert together.states == apart.states
