"""`uplift alert`: who takes care of an alert and why, on record before it holds; a killed run loses nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.governance import permissions
from uplift_spark.jobs import alert
from uplift_spark.jobs.alert import AlertDeed, active_alerts, why_no_change
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.alerts import AlertBook, AlertEvent, AlertRule, Condition
from uplift_spark.registry.evidence import monitored_windows, open_incidents

START, HOUR = datetime(2026, 3, 2, tzinfo=UTC), timedelta(hours=1)
LAG = AlertRule("label_lag", "ticket")


def fired(*cuts: str) -> tuple[AlertBook, list[AlertEvent]]:
    book = AlertBook()
    conditions = [Condition(LAG, "spring", START, True, "labels are missing", labels={"cut": cut}) for cut in cuts]
    return book, book.observe(conditions)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (("resolve",), r"`uplift alert` has no 'resolve': it has acknowledge, close, list"),
        (("list", "label_lag"), r"`uplift alert list` takes no alert: leave it out"),
        (("list", None, "ann"), r"`uplift alert list` takes no --by: leave it out"),
        (("close", "label_lag", " "), r"`uplift alert close` needs --by and --reason, as in"),
        (("acknowledge",), r"`uplift alert acknowledge` needs an alert and --by and --reason"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(chosen: tuple[str | None, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        alert.options(*chosen)  # type: ignore[arg-type]


def test_alerts_are_listed_and_what_was_done_is_known() -> None:
    book, (one, _) = fired("mail", "call")
    assert active_alerts(AlertBook()) == "No alert fires."
    deed = alert.options("acknowledge", one.alert, "ann", "asked the provider")["deed"]
    assert why_no_change(book, deed) == ""
    book.acknowledge(one.alert, "ann", START + HOUR, "asked the provider")
    lines = active_alerts(book).splitlines()
    about = "ticket label_lag (cut mail) firing since 2026-03-02 00:00 UTC, acknowledged by ann: labels are missing"
    assert len(lines) == 2 and f"{one.alert} {about}" in lines
    assert why_no_change(book, deed) == f"{one.alert} {about}: it is acknowledged already"
    assert why_no_change(book, AlertDeed("acknowledge", one.alert, "ben", "I do it")) == ""
    closing = AlertDeed("close", one.alert, "ben", "over")
    assert why_no_change(book, closing) == ""
    book.close(one.alert, "ben", START + 2 * HOUR, "over")
    assert "closed by ben since 2026-03-02 02:00 UTC: labels are missing: it is closed" in why_no_change(book, closing)


def add(lake: Lake, table: str, run_id: str, *rows: dict[str, object]) -> None:
    lake.write(table, lake.filled(table, rows), run_id)


def with_alert(lake: Lake, folder: Path, *cuts: str, **sections: object) -> Campaign:
    """A campaign that was monitored once, with an alert that fires, of which people were notified."""
    config = {
        "campaign": "spring", "source": {"kind": "simulation"}, "lakehouse": {"path": lake.lakehouse.path},
        "roles": {"outcome": "conversion", "control": "none", "features": ["age"]},
        "alerts": {"sinks": {"log": {"kind": "file", "path": str(folder / "sent")}}, "outbox": str(folder / "outbox")},
        "governance": {"audit": {}, **sections},
    }  # fmt: skip
    of_window = {"campaign": "spring", "window_start": START - 24 * HOUR, "window_end": START, "as_of": START}
    add(lake, "gold.kpi", "monitor-0", {**of_window, "kpi": "drift_score", "cut": "all", "state": "ok"})
    add(lake, "gold.alerts", "alerts-0", *map(asdict, fired(*cuts)[1]))
    return Campaign(TypeAdapter(Config).validate_python(config), lake)


@pytest.mark.slow
def test_an_alert_is_acknowledged_and_closed_on_record_and_unblocks_retrain(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = with_alert(lake, tmp_path, "mail")
    windows = monitored_windows(lake, "spring", 24)
    assert list(open_incidents(windows, 1)) == ["label_lag"]
    (name,) = rows_of(lake, "gold.alerts")["alert"]

    def act(what: str, by: str, reason: str, hours: int, named: str = "label_lag") -> object:
        return alert.run(campaign, deed=AlertDeed(what, named, by, reason), now=START + hours * HOUR)

    assert "label_lag (cut mail) firing" in alert.run(campaign, deed=AlertDeed("list")).details["summary"]
    with pytest.raises(DataError, match=r"'drift' is no alert that fires: it has .*label_lag"):
        act("close", "ann", "over", 1, "drift")
    act("acknowledge", "ann", "asked the provider", 1)
    again = act("acknowledge", "ann", "asked the provider", 2)
    assert not again.tables and "acknowledged already" in again.details["summary"]  # type: ignore[attr-defined]

    write, deeds = Lake.write, list[str]()

    def killed(self: Lake, table: str, *args: object, **options: object) -> object:
        deeds.append(table)
        if table == "gold.alerts" and len(deeds) == 2:
            raise KeyboardInterrupt
        return write(self, table, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "write", killed)
        act("close", "ben", "labels came", 3, name[:8])
    assert deeds == ["gold.audit_log", "gold.alerts"] and not (tmp_path / "sent").exists()
    result = act("close", "ben", "labels came", 3, name)
    rows = rows_of(lake, "gold.alerts").sort_values("sequence")
    assert rows[["event", "by", "note"]].to_numpy().tolist() == [
        ["fired", "", ""], ["acknowledged", "ann", "asked the provider"], ["closed", "ben", "labels came"],
    ]  # fmt: skip
    entries = [json.loads(text) for text in rows_of(lake, "gold.audit_log", action="alert").sort_values("seq")["entry"]]
    assert [(one["details"]["by"], one["reason"]) for one in entries] == [
        ("ann", "asked the provider"),
        ("ben", "labels came"),  # once, though the first run was killed after it
    ]
    assert entries[1]["subject"] == f"alert {name} (label_lag): closed (3)"
    (line,) = (tmp_path / "sent").read_text().splitlines()
    assert "closed by ben label_lag" in line or json.loads(line)["events"][0]["event"] == "closed"
    assert result.details["sent"] == 1 and result.details["alerts"] == 0  # type: ignore[attr-defined]
    assert open_incidents(windows, 1) == {}
    over = act("close", "ben", "labels came", 4)
    assert not over.tables and "closed already" in over.details["summary"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_who_may_act_and_two_at_once(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = {"operator": ["olga"], "viewer": ["vic"]}
    campaign = with_alert(lake, tmp_path, "mail", "call", access={"roles": roles})
    monkeypatch.setattr(permissions, "os_user", lambda: "vic")
    assert alert.run(campaign, deed=AlertDeed("list")).details["alerts"] == 2
    with pytest.raises(ConfigError, match=r"vic is viewer and may not run `uplift alert close`, which operator may"):
        alert.run(campaign, deed=AlertDeed("close", "label_lag", "vic", "over"))
    monkeypatch.setattr(permissions, "os_user", lambda: "olga")
    with pytest.raises(ConfigError, match="--by ann is not olga, who runs this"):
        alert.run(campaign, deed=AlertDeed("close", "label_lag", "ann", "over"))
    with pytest.raises(DataError, match=r"names 2 alerts that fire: name one by its fingerprint"):
        alert.run(campaign, deed=AlertDeed("close", "label_lag", "olga", "over"))
    names = sorted(rows_of(lake, "gold.alerts")["alert"])
    put_on_record = alert.put_on_record

    def meanwhile(campaign: Campaign, event: AlertEvent) -> None:
        """Another run adds its event after this one has read the table."""
        monkeypatch.setattr(alert, "put_on_record", put_on_record)
        alert.run(campaign, deed=AlertDeed("close", names[1], "olga", "over"))

    monkeypatch.setattr(alert, "put_on_record", meanwhile)
    with pytest.raises(ConflictError):
        alert.run(campaign, deed=AlertDeed("close", names[0], "olga", "over"))
    assert alert.run(campaign, deed=AlertDeed("list")).details["alerts"] == 1
