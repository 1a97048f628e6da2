"""A week of a campaign in a page and a message. No Spark."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.monitoring.alerts import AlertEvent
from uplift_spark.monitoring.digest import as_moments, digest_day, digest_page, make_digest, span_of
from uplift_spark.monitoring.sinks import SinkFailure, deliver
from uplift_spark.sections.alerts import SinkConf

MONDAY = datetime(2025, 2, 3, tzinfo=UTC)
WEEK = span_of("week", MONDAY + timedelta(days=9, hours=3))
MANY = timedelta(days=1)


def kpi_rows(day: int, lift: float, n: float, run: str = "a", **more) -> list[dict]:
    start = MONDAY + day * MANY
    shared = {"window_start": start, "window_end": start + MANY, "run_id": f"{run}{day}", "cut": "mail", "n": n}
    shared |= {"as_of": more.get("as_of", start + 2 * MANY), "ingested_at": start}
    figures = {"observed_lift": (lift, 0.03), "estimated_lift": (0.1, 0.02), "uplift_roi": (10 * lift / 0.5 - 1, 0.6)}
    return [{**shared, "kpi": kpi, "value": v, "lower": v - h, "upper": v + h} for kpi, (v, h) in figures.items()]


def tables(*rows: list[dict], **frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"kpi": pd.DataFrame([row for part in rows for row in part]), **frames}


def made(*rows: list[dict], **frames: pd.DataFrame):
    return make_digest("spring", WEEK, tables(*rows, **frames), {"mail": 1000}, {"mail": 0.5})


def alert(rule: str, sequence: int, event: str, day: float) -> dict:
    at = MONDAY + day * MANY
    one = AlertEvent("spring", f"print-{rule}", rule, "page", '{"kpi": "x"}', sequence, 1, event, at, True,  # type: ignore[arg-type]
                     summary=f"{rule} is so")  # fmt: skip
    return asdict(one)


@pytest.mark.parametrize(
    ("period", "until", "start", "end"),
    [
        ("week", "2025-02-10", "2025-02-03", "2025-02-10"),  # a Monday ends the week before
        ("week", "2025-02-16", "2025-02-03", "2025-02-10"),
        ("month", "2025-03-01", "2025-02-01", "2025-03-01"),
        ("month", "2025-01-31", "2024-12-01", "2025-01-01"),
    ],
)
def test_the_last_period_that_is_over(period: str, until: str, start: str, end: str) -> None:
    span = span_of(period, datetime.fromisoformat(until))  # type: ignore[arg-type]
    assert (f"{span.start:%Y-%m-%d}", f"{span.end:%Y-%m-%d}") == (start, end)
    assert span.before.end == span.start and span.before.period == period


def test_lifts_are_added_up_by_units_and_intervals_by_what_they_share() -> None:
    (mail,) = made(kpi_rows(0, 0.1, 100), kpi_rows(1, 0.2, 300), kpi_rows(7, 9.0, 100), kpi_rows(-1, 0.05, 100)).levels
    assert mail.lift.value == pytest.approx((0.1 * 100 + 0.2 * 300) / 400) and mail.lift.units == 400
    half = math.sqrt((0.25 * 0.03) ** 2 + (0.75 * 0.03) ** 2)
    assert mail.lift.upper - mail.lift.value == pytest.approx(half)
    assert mail.anticipated.upper - mail.anticipated.value == pytest.approx(0.02)  # windows share the reference
    assert mail.before.value == pytest.approx(0.05)
    assert (mail.units, mail.spent, mail.gained) == (1000, 500, pytest.approx(175))
    assert mail.price == pytest.approx(500 / 175)
    assert mail.roi.value == pytest.approx(10 * 0.175 / 0.5 - 1)


def test_of_a_window_the_run_that_knew_most_counts() -> None:
    late = {"as_of": MONDAY + 5 * MANY}
    digest = made(kpi_rows(0, 0.1, 100), kpi_rows(0, 0.4, 100, "b", **late))
    assert digest.levels[0].lift.value == pytest.approx(0.4) and digest.windows == (1, 7)


def test_less_of_an_outcome_may_be_better() -> None:
    rows = tables(kpi_rows(0, -0.1, 100))
    (mail,) = make_digest("spring", WEEK, rows, {"mail": 1000}, {}, direction="decrease").levels
    assert mail.gained == pytest.approx(100) and math.isnan(mail.spent) and math.isnan(mail.price)


def test_alerts_that_fired_were_resolved_and_are_open_at_the_end() -> None:
    events = [
        *(alert("old", 1, "fired", -3), alert("old", 2, "resolved", 1)),
        *(alert("new", 1, "fired", 2), alert("later", 1, "fired", 8), alert("new", 2, "resolved", 9)),
    ]
    digest = made(kpi_rows(0, 0.1, 100), alerts=pd.DataFrame(events))
    assert (digest.fired, digest.resolved, len(digest.open)) == ({"page": 1}, 1, 1)
    assert "print-new page new (kpi x) firing" in digest.open[0]


def test_decisions_and_drift_of_the_period_alone() -> None:
    decision = {"check": "decision", "sentence": "it drifts"}
    retrain = pd.DataFrame(
        [
            {**decision, "window_end": MONDAY, "decision": "rejected"},  # ends the week before
            {**decision, "window_end": MONDAY + MANY, "decision": "not_needed"},
            {**decision, "window_end": MONDAY + 7 * MANY, "decision": "challenger"},
            {**decision, "window_end": MONDAY + 7 * MANY, "decision": "challenger", "check": "drift"},
        ]
    )
    canary = pd.DataFrame(
        [
            {"canary": "c-1", "step": 1, "at": MONDAY + MANY, "state": "running", "reason": "on trial"},
            {"canary": "c-1", "step": 2, "at": MONDAY + 2 * MANY, "state": "promoted", "reason": "no worse"},
        ]
    )
    shared = {"as_of": MONDAY, "ingested_at": MONDAY, "distance": 0.06, "missing": 0.0}
    drift = pd.DataFrame(
        [
            {**shared, "window_start": MONDAY + day * MANY, "run_id": f"r{day}", "name": name, "state": state, **more}
            for day, name, state, more in (
                (0, "age", "drift", {}),
                (1, "age", "trigger", {"distance": 0.2}),
                (1, "city", "drift", {"missing": -0.3}),
                (1, "zip", "season", {}),
                (7, "age", "trigger", {"distance": 0.9}),
            )
        ]
    )
    digest = made(kpi_rows(0, 0.1, 100), retrain=retrain, canary=canary, drift=drift)
    assert digest.decided == {"not_needed": 1, "challenger": 1}
    assert digest.triggers == (*("retrain, 2025-02-10: challenger: it drifts", "c-1, 2025-02-05: promoted: no worse"),)
    assert digest.drift == (("city", 1, 0.3), ("age", 2, 0.2))
    message = digest.lines()
    assert message[0].startswith("mail: 1,000 units, lift 0.1 (") and "spent 500" in message[0]
    assert "retraining: 1 not needed, 1 challenger" in message and message[-1] == (
        "drift: city by 0.30 in 1 window, age by 0.20 in 2 windows"
    )


def test_the_page_says_it_all_and_escapes() -> None:
    events = pd.DataFrame([alert("<b>", 1, "fired", 2)])
    page = digest_page(made(kpi_rows(0, 0.1, 100), alerts=events))
    assert "spring: week from 2025-02-03 to 2025-02-09" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "1 page fired, 0 resolved, 1 open" in page and "No column drifts." in page
    quiet = digest_page(made(kpi_rows(20, 0.1, 100)))
    assert "None fired" in quiet and "0 of 7 windows" in quiet


def test_a_name_with_a_line_break_begins_no_line_of_its_own() -> None:
    name = "mail\nalerts: none fired, 0 resolved, 0 open"
    kpis = kpi_rows(0, 0.1, 100)
    kpis = [{**row, "cut": name} for row in kpis]
    digest = make_digest("spring", WEEK, tables(kpis), {name: 10, "\u0628\u0631\u064a\u062f": 5}, {})
    assert sum(line.startswith("alerts: ") for line in digest.lines()) == 1
    assert "<bdi>\u0628\u0631\u064a\u062f</bdi>" in digest_page(digest)  # read from the right: it turns no figure round


def test_it_reaches_a_file_once_and_alertmanager_takes_none(tmp_path: Path) -> None:
    digest, file = made(kpi_rows(0, 0.1, 100)), SinkConf("file", path=str(tmp_path / "log.jsonl"))
    for _ in range(2):
        deliver("log", file, digest, MONDAY)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["title"] == digest.title and json.loads(line)["lines"] == digest.lines()
    with pytest.raises(SinkFailure, match="takes alerts alone, and this is a message"):
        deliver("am", SinkConf("alertmanager", url="http://localhost:9"), digest, MONDAY)


def test_what_cannot_be_said_is_one_sentence() -> None:
    with pytest.raises(DataError, match="no window of campaign spring was monitored: run `uplift monitor` first"):
        make_digest("spring", WEEK, {}, {}, {})
    with pytest.raises(ConfigError, match="--period 'day' is unknown: use week or month"):
        span_of("day", MONDAY)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--until 'soon' is no day: write it as in 2025-02-03"):
        digest_day("soon")
    for wrong in (
        "0001-01-01",
        "9999-12-31",
        "2025-02-30",
        "2025-02-03T10:00",
        "",
    ):  # of the first a period has no start
        with pytest.raises(ConfigError, match="is no day"):
            digest_day(wrong)
    assert digest_day(None) is None and digest_day("2025-02-03") == MONDAY


def test_moments_of_every_engine_are_in_utc() -> None:
    naive = pd.DataFrame({"at": pd.to_datetime(["2025-02-03"])})
    aware = pd.DataFrame({"at": pd.to_datetime(["2025-02-03T01:00+01:00"])})
    for rows in (naive, aware):
        assert as_moments(rows, ["at", "nowhere"])["at"].iloc[0] == pd.Timestamp(MONDAY)
