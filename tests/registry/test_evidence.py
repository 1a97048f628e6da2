"""What is known about a running campaign: windows, incidents, new units, quarantine; and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from uplift_spark.config import Labels
from uplift_spark.errors import DataError
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.spark import alert_events
from uplift_spark.registry.evidence import (
    matured,
    monitored_windows,
    new_arms,
    open_incidents,
    quarantined_since,
    was_on_trial,
)
from uplift_spark.registry.retraining import NewArm
from uplift_spark.sections.canary import CanaryState

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def add(lake: Lake, table: str, run_id: str, *rows: dict[str, object]) -> None:
    lake.write(table, lake.filled(table, rows), run_id)


def window(day: int, as_of: int, **more: object) -> dict[str, object]:
    start = START + day * DAY
    shared = {"campaign": "spring", "window_start": start, "window_end": start + DAY, "model_version": "1"}
    return {**shared, "as_of": START + as_of * DAY, **more}


def kpi(day: int, as_of: int, state: str = "ok") -> dict[str, object]:
    figures = {"value": 0.9, "alert": 0.99, "n": 100.0, "state": state}
    return window(day, as_of, kpi="outcome_completeness", cut="bought", **figures)


@pytest.fixture
def monitored(lake: Lake) -> Lake:
    add(lake, "gold.kpi", "monitor-0", kpi(0, 1))
    add(lake, "gold.kpi", "monitor-1", kpi(1, 2, "alert"))
    add(lake, "gold.kpi", "monitor-2", kpi(2, 3, "alert"))
    add(lake, "gold.kpi", "monitor-2-again", kpi(2, 9))  # labels have come
    lag = {"severity": "page", "about": "bought", "sentence": "labels are missing"}
    add(lake, "gold.findings", "monitor-0", window(0, 1, finding="label_lag", **lag))
    add(lake, "gold.findings", "monitor-2", window(2, 3, finding="confounding", **lag))
    add(lake, "gold.findings", "monitor-2-again", window(2, 9, finding="low_sample", **lag))
    return lake


def alert(rule: str, sequence: int, event: str) -> dict[str, object]:
    texts = {name: "" for name in ("quiet", "runbook", "by", "note")} | {"labels": "{}", "severity": "page"}
    what = {"campaign": "spring", "alert": rule, "rule": rule, "sequence": sequence, "episode": 1, "event": event}
    return {**texts, **what, "at": START + sequence * DAY, "notify": True, "summary": f"{rule} is bad"}


def test_windows_and_incidents(monitored: Lake) -> None:
    windows = monitored_windows(monitored, "spring", 24)
    assert list(windows.runs.values()) == ["monitor-0", "monitor-1", "monitor-2-again"]
    assert (windows.start, windows.end) == (START + 2 * DAY, START + 3 * DAY)
    assert windows.words == "2026-01-07 00:00 to 2026-01-08 00:00 UTC"
    assert open_incidents(windows, 1) == {}
    name, (where, sentence) = next(iter(open_incidents(windows, 2).items()))
    assert (name, where) == ("outcome_completeness", "in the window from 2026-01-06 00:00")
    assert sentence == "outcome_completeness of bought is 0.9, the threshold is 0.99"
    assert list(open_incidents(windows, 3)) == ["label_lag", "outcome_completeness"]
    (row,) = windows.rows("kpi", windows.last(1))
    assert row["window_start"] == START + 2 * DAY and not windows.rows("kpi", windows.last(1), "2")
    assert windows.rows("drift", windows.last(1)) == []
    # An alert that is open is one, a resolved one is none.
    add(monitored, "gold.alerts", "a", alert("non_compliance", 1, "fired"), alert("label_lag", 1, "fired"))
    add(monitored, "gold.alerts", "b", alert("label_lag", 2, "resolved"), alert("delivery_rate", 1, "fired"))
    assert open_incidents(windows, 1) == {"non_compliance": ("an alert is open", "non_compliance is bad")}
    # A window of an hour, of another configuration, is no newer one.
    hour = {**kpi(3, 9, "alert"), "window_end": START + 3 * DAY + timedelta(hours=1)}
    add(monitored, "gold.kpi", "monitor-hour", hour)
    assert monitored_windows(monitored, "spring", 24) == windows
    assert list(monitored_windows(monitored, "spring", 1).runs.values()) == ["monitor-hour"]
    # Moments of alerts are in UTC.
    assert {one.at.utcoffset() for one in alert_events(monitored.read("gold.alerts"), "spring")} == {timedelta(0)}
    # Without a window, or with newer ones, nothing is decided.
    with pytest.raises(
        DataError, match=r"gold.kpi has no window of 24 h of campaign autumn: run `uplift monitor` first"
    ):
        monitored_windows(monitored, "autumn", 24)
    windows.check_newest(windows.end + timedelta(hours=23), 24)
    with pytest.raises(DataError, match=r"assigned until 2026-01-09 00:00 UTC, but the newest window .* ends"):
        windows.check_newest(windows.end + DAY, 24)


def test_no_model_is_fitted_while_a_canary_goes_on(lake: Lake) -> None:
    add(lake, "gold.kpi", "monitor-0", kpi(0, 1))
    windows = monitored_windows(lake, "spring", 24)
    states = get_args(CanaryState)
    for step, state in enumerate(states):
        trial = {"canary": "spring-canary-2-1", "champion": "1", "challenger": "2", "share": 0.05, "reason": "because"}
        row = {"campaign": "spring", "step": step, "state": state, "at": START, "started_at": START, **trial}
        add(lake, "gold.canary", f"c{step}", row)
        over = state in ("promoted", "rolled back", "ended", "restored")
        told = ("a canary goes on", f"spring-canary-2-1 of version 2 is {state}")
        assert open_incidents(windows, 1) == ({} if over else {"canary": told})
    assert len(states) == 9


def test_a_version_that_was_on_trial_is_known_however_it_ended(lake: Lake) -> None:
    assert was_on_trial(lake, "spring", 2) is None
    shared = {"campaign": "spring", "at": START, "started_at": START, "champion": "1", "reason": "because"}
    trial = {**shared, "canary": "spring-canary-2-1", "challenger": "2", "share": 0.05}
    taken_back = {**shared, "canary": "spring-rollback-2", "challenger": "1", "share": 0.0, "state": "restored"}
    add(lake, "gold.canary", "c", {**trial, "step": 1, "state": "rolled back"}, {**taken_back, "step": 2})
    assert was_on_trial(lake, "spring", 2) == "version 2 was on trial already, in canary spring-canary-2-1"
    assert was_on_trial(lake, "spring", 1) is None and was_on_trial(lake, "autumn", 2) is None


def test_new_units_are_counted_by_level_when_their_labels_are_mature(lake: Lake) -> None:
    rows = [("a", "mail", 0.25, 0), ("b", "mail", 0.5, 1), ("c", "none", None, 1), ("d", "none", 0.5, 2)]
    rows += [("e", "mail", 1.0, 1)]  # of whose level a policy was certain
    names = "unit_id string, treatment string, propensity double, assigned_at timestamp"
    frame = lake.spark.createDataFrame([(u, t, p, START + day * DAY) for u, t, p, day in rows], names)
    mature = matured(Labels(window_days=2, wait_days=1), ["bought"], START + 4 * DAY)
    assert new_arms(frame, mature, ["none", "mail", "sms"], fitted=False) == {
        "none": NewArm(1, 0, 0.0, 0.0),
        "mail": NewArm(2, 2, 6.0, 20.0, 1),
        "sms": NewArm(0, 0, 0.0, 0.0),
    }
    assert new_arms(frame, mature, ["none", "mail"], fitted=True)["mail"] == NewArm(3, 3, 7.0, 21.0)


def test_rows_in_quarantine_count_from_the_first_new_unit_on(lake: Lake) -> None:
    assigned = {"campaign": "spring", "treatment": "mail", "assigned_at": START, "source": "units.csv"}
    happened = {"campaign": "spring", "outcome": "bought", "value": 1.0, "occurred_at": START, "known_at": START}
    add(lake, "bronze.assignment", "i", {"unit_id": "a", **assigned}, {"unit_id": "b", **assigned})
    replayed = {"unit_id": "b", "source": "quarantine#1", **happened}
    add(lake, "bronze.outcome", "i", {"unit_id": "a", "source": "x.csv", **happened}, replayed)
    rejected = {"source_table": "bronze.outcome", "rule": "r", "reason": "r", "row": "{}", "source": "x"}
    mine = [{"campaign": "spring", **rejected}] * 3
    add(lake, "bronze.quarantine", "i", *mine, {"campaign": "autumn", **rejected})
    units = lake.read("bronze.assignment")
    assert quarantined_since(lake, "spring", units) == (3 - 1, 4)
    assert quarantined_since(lake, "spring", units.where("unit_id = 'z'")) == (0, 0)
