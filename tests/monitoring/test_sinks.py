"""Sinks take notifications, secrets stay secret, and nothing is lost while a sink is down."""

from __future__ import annotations

import fcntl
import json
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.services import Receiver, alertmanager, fetched, program, receiver, waited_for
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.monitoring.alerts import AlertBook, AlertEvent, AlertRule, Condition, Notification, notifications
from uplift_spark.monitoring.prometheus import alertmanager_file
from uplift_spark.monitoring.sinks import (
    DeliveryReport,
    Outbox,
    SinkFailure,
    alert_book,
    campaign_outbox,
    deliver,
    raise_alerts,
    sink_secret,
)
from uplift_spark.sections.alerts import Alerts, SinkConf, SuppressConf

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
PAGE, TICKET = AlertRule("delivery_rate", "page", runbook="docs/alerts.md"), AlertRule("drift_score")


def conditions(at: datetime, breached: bool, *campaigns: str) -> list[Condition]:
    return [
        Condition(rule, name, at, breached, "97 of 100 <came> & went", 0.97, 0.99, {"kpi": rule.name})
        for name in campaigns or ("spring",)
        for rule in (PAGE, TICKET)
    ]


def groups(at: datetime = NOW, *campaigns: str) -> list[Notification]:
    return notifications(AlertBook().observe(conditions(at, True, *campaigns)))


def outbox(folder: Path, **sinks: SinkConf) -> Outbox:
    return Outbox(folder / "outbox", sinks, sleep=lambda seconds: None)


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


def test_a_webhook_reads_what_slack_reads(server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_URL", f"{server.address}/services/T0/B0/hush")
    monkeypatch.setenv("CHAT_TOKEN", "sesame")
    chat = SinkConf("webhook", ("page",), url_env="CHAT_URL", token_env="CHAT_TOKEN")
    box = outbox(tmp_path, chat=chat)
    assert box.put(groups()) == 1
    assert box.flush(NOW).sent == 1
    ((path, headers, content),) = server.came
    assert path == "/services/T0/B0/hush" and headers["Authorization"] == "Bearer sesame"
    assert headers["Idempotency-Key"] == groups()[0].key
    assert content == {
        "text": "*[page] spring: 1 firing*\n"
        "firing delivery_rate (kpi delivery_rate): 97 of 100 &lt;came&gt; &amp; went [docs/alerts.md]"
    }


def test_alertmanager_reads_labels_without_values(server: Receiver) -> None:
    conf = SinkConf("alertmanager", url=server.address + "/", lease_hours=2)
    book = AlertBook()
    (page, _) = notifications(book.observe(conditions(NOW, True)))
    deliver("am", conf, page, NOW)
    later = NOW + timedelta(hours=1)
    (over, _) = notifications(book.observe(conditions(later, False)))
    deliver("am", conf, over, later)
    (path, _, (fires,)), (_, _, (ends,)) = server.came
    assert path == "/api/v2/alerts"
    assert fires["labels"] == ends["labels"]
    assert fires["labels"] == {
        "alertname": "UpliftDeliveryRate", "campaign": "spring", "severity": "page", "kpi": "delivery_rate",
    }  # fmt: skip
    assert fires["annotations"]["value"] == "0.97" and fires["annotations"]["threshold"] == "0.99"
    assert (fires["startsAt"], fires["endsAt"]) == (NOW.isoformat(), (NOW + timedelta(hours=2)).isoformat())
    assert ends["endsAt"] == later.isoformat()


@pytest.mark.parametrize(
    ("status", "says", "tries"),
    [(500, "answers 500", 3), (429, "answers 429", 3), (404, "answers 404", 1), (302, "answers 302", 1)],
)
def test_a_sink_that_is_down_loses_nothing(
    server: Receiver, tmp_path: Path, status: int, says: str, tries: int
) -> None:
    server.status, server.location = status, "http://127.0.0.1:1/elsewhere"
    box = outbox(tmp_path, chat=SinkConf("webhook", url=server.address + "/hush"))
    box.put(groups(NOW, "a", "b"))
    report = box.flush(NOW)
    (sentence,) = report.sentences
    assert (report.sent, report.waiting, len(server.came)) == (0, 4, tries)
    assert f"sink chat (webhook) at 127.0.0.1 {says}: 4 notifications wait in " in sentence and "hush" not in sentence
    server.status, server.came = 200, []
    again = outbox(tmp_path, chat=SinkConf("webhook", url=server.address + "/hush"))  # another process, later
    assert again.flush(NOW).sent == 4
    texts = [content["text"].split("\n")[0] for _, _, content in server.came]
    assert texts == [f"*{one.title}*" for one in groups(NOW, "a", "b")]  # in their order
    assert again.flush(NOW) == type(report)(0, 0, ())


def test_a_server_that_hangs_or_is_not_there_is_left_in_time(server: Receiver, tmp_path: Path) -> None:
    server.delay = 5
    box = outbox(tmp_path, chat=SinkConf("webhook", ("page",), url=server.address, timeout=0.2, tries=1))
    box.put(groups())
    assert "cannot be reached (no answer in time): 1 notification waits" in box.flush(NOW).sentences[0]
    gone = outbox(tmp_path, chat=SinkConf("webhook", url="http://127.0.0.1:1"))
    assert "cannot be reached (Connection refused)" in gone.flush(NOW).sentences[0]


def test_one_refused_notification_does_not_hold_up_the_others(server: Receiver, tmp_path: Path) -> None:
    box = outbox(tmp_path, chat=SinkConf("webhook", ("page",), url=server.address))
    box.put(groups(NOW, "a"))
    server.status = 422
    (sentence,) = box.flush(NOW).sentences
    assert "answers 422 to" in sentence and "it is kept in" in sentence
    (kept,) = (tmp_path / "outbox" / "refused").iterdir()
    assert json.loads(kept.read_text())["campaign"] == "a"
    server.status = 200
    box.put(groups(NOW, "b"))
    assert box.flush(NOW).sent == 1


def test_notifications_are_kept_once_whole_and_emptied_by_one_run(server: Receiver, tmp_path: Path) -> None:
    box = outbox(tmp_path, chat=SinkConf("webhook", url=server.address))
    for _ in range(3):  # a monitor that was killed after `put` and runs again
        box.put(groups())
    folder = tmp_path / "outbox"
    assert len(list(folder.glob("*.json"))) == 2
    (folder / ".20260302T090000000000-0000-abc.chat.json.77").write_text("{half")  # killed while it wrote
    (folder / "20200101T000000000000-0000-abc.chat.json").write_text("{broken")
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        report = box.flush(NOW)
        assert (report.sent, report.waiting) == (0, 3) and "another run empties the outbox" in report.sentences[0]
    report = box.flush(NOW)
    assert (report.sent, report.waiting) == (2, 1)
    assert "is no notification and was left there" in report.sentences[0]


def test_a_sink_that_is_named_no_more_keeps_its_notifications(server: Receiver, tmp_path: Path) -> None:
    outbox(tmp_path, chat=SinkConf("webhook", url=server.address)).put(groups())
    report = outbox(tmp_path).flush(NOW)
    assert report.waiting == 2 and "for the sink chat, which alerts.sinks does not name" in report.sentences[0]


def test_an_outbox_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file")
    with pytest.raises(DataError, match=r"the outbox .* cannot be written"):
        outbox(tmp_path, log=SinkConf("file", path="x")).put(groups())


def test_the_file_has_each_notification_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "alerts.jsonl"
    conf = SinkConf("file", path=str(path))
    for one in (*groups(), *groups()):  # as after a crash between the line and the outbox
        deliver("log", conf, one, NOW)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["title"] for line in lines] == ["[page] spring: 1 firing", "[ticket] spring: 1 firing"]
    with path.open("a") as file:
        file.write('{"key": "cut o')
    deliver("log", conf, groups(NOW + timedelta(1))[0], NOW)
    assert json.loads(path.read_text().splitlines()[-1])["at"] == "2026-03-03T09:00:00+00:00"
    with pytest.raises(SinkFailure, match="cannot be written"):
        deliver("log", SinkConf("file", path=str(tmp_path)), groups()[0], NOW)


def test_secrets_are_read_where_they_are_and_printed_nowhere(
    server: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\n")
    conf = SinkConf("webhook", url=server.address, token_file=str(file))
    assert sink_secret("chat", conf, "token") == "sesame"
    assert "sesame" not in repr(conf)
    file.write_text("sesame\r\nX-Other: 1\n")
    with pytest.raises(ConfigError, match="several lines") as refused:
        sink_secret("chat", conf, "token")
    assert "sesame" not in str(refused.value)
    box = outbox(tmp_path, chat=SinkConf("webhook", url=server.address, token_env="NOT_SET"))
    box.put(groups())
    report = box.flush(NOW)
    assert report.waiting == 2 and server.came == []
    assert "alerts.sinks.chat.token_env names $NOT_SET, which is not set" in report.sentences[0]
    monkeypatch.setenv("CHAT_URL", "ftp://hush.example/secret")
    with pytest.raises(ConfigError, match="is no address of a host") as address:
        deliver("chat", SinkConf("webhook", url_env="CHAT_URL"), groups()[0], NOW)
    assert "hush" not in str(address.value)
    with pytest.raises(ConfigError, match=r"token_file .* cannot be read: No such file"):
        sink_secret("chat", SinkConf("webhook", url=server.address, token_file="/nowhere"), "token")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"kind": "webhook"}, "needs one of url, url_env, url_file"),
        ({"kind": "webhook", "url": "http://a", "url_env": "A"}, "needs one of url"),
        ({"kind": "webhook", "url": "hooks.example"}, "is no address of a host"),
        ({"kind": "webhook", "url": "https://ann:hush@a"}, "holds a password"),
        ({"kind": "webhook", "url": "http://a", "path": "x"}, "takes no path"),
        ({"kind": "webhook", "url": "http://a", "token_env": "A", "token_file": "b"}, "keep one"),
        ({"kind": "mail", "host": "a", "sender": "b"}, "needs to"),
        ({"kind": "mail", "host": "a", "sender": "b", "to": ("c",), "user": "d"}, "needs user and its password_env"),
        ({"kind": "file", "path": "x", "severities": ()}, "is sent nothing"),
    ],
)
def test_sections_that_cannot_work_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SinkConf(**keys)


def test_sections_around_the_sinks_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"must end in \.prom"):
        Alerts(textfile="kpis.txt")
    with pytest.raises(ConfigError, match="not after it starts"):
        SuppressConf(NOW, NOW, "nothing")
    with pytest.raises(ConfigError, match="one of start and end has a time zone"):
        SuppressConf(NOW, datetime(2027, 1, 1), "mixed")


class _Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as takes one message."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        server: Any = self.server
        for line in self.rfile:
            word = line[:4].upper()
            if word == b"MAIL" and server.turns_away:
                self.wfile.write(server.turns_away.pop(0) + b"\r\n")
            elif word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    text += self.rfile.readline()
                server.came.append(text.decode())
                self.wfile.write(b"250 taken\r\n")
            elif word == b"RCPT":
                answer = b"250 fine" if b"known@" in line else server.answer
                self.wfile.write(answer + b"\r\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


@contextmanager
def mail_server(answer: bytes) -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mail) as server:
        server.came, server.answer, server.turns_away = [], answer, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_mail_is_a_message_that_programs_know_again() -> None:
    with mail_server(b"250 fine") as server:
        port = server.server_address[1]
        conf = SinkConf("mail", host="127.0.0.1", port=port, starttls=False, sender="a@b.example", to=("c@d.example",))
        deliver("post", conf, groups()[0], NOW)
        (text,) = server.came
    assert "Subject: [page] spring: 1 firing" in text and f"Message-ID: <{groups()[0].key}@uplift-spark>" in text
    assert "firing delivery_rate (kpi delivery_rate): 97 of 100" in text


def test_a_mail_that_some_do_not_get_is_delivered_and_they_are_named(tmp_path: Path) -> None:
    with mail_server(b"550 no such hush") as server:
        port = server.server_address[1]
        sink = SinkConf("mail", host="127.0.0.1", port=port, starttls=False, sender="a@b.example",
                        to=("known@d.example", "gone@d.example"))  # fmt: skip
        box = outbox(tmp_path, post=sink)
        box.put(groups())
        report = box.flush(NOW)
        assert (report.sent, report.waiting, len(server.came)) == (2, 0, 2)  # once each: no try gives it to the other
        assert len(report.sentences) == 2 and "refuses gone@d.example: correct `to`" in report.sentences[0]


def test_a_file_of_the_outbox_that_nobody_can_read_holds_up_no_other(server: Receiver, tmp_path: Path) -> None:
    box = outbox(tmp_path, chat=SinkConf("webhook", url=server.address))
    box.put(groups())
    (tmp_path / "outbox" / "00000000T000000-x.chat.json").write_text("{")
    report = box.flush(NOW)
    assert (report.sent, report.waiting) == (2, 1) and "is no notification and was left there" in report.sentences[0]


def test_a_mail_server_that_refuses_is_named_without_its_text(tmp_path: Path) -> None:
    with mail_server(b"550 no such hush") as server:
        port = server.server_address[1]
        sink = SinkConf("mail", host="127.0.0.1", port=port, starttls=False, sender="a@b.example", to=("c@d.example",))
        box = outbox(tmp_path, post=sink)
        box.put(groups())
        report = box.flush(NOW)
        assert "sink post (mail) at 127.0.0.1 refuses it (550, all of `to`)" in report.sentences[0]
        assert "hush" not in str(report) and (report.sent, report.waiting, report.refused) == (0, 0, 2)
    with mail_server(b"250 fine") as server:
        secure = SinkConf(
            "mail", host="127.0.0.1", port=server.server_address[1], sender="a@b.example", to=("c@d.example",)
        )
        with pytest.raises(SinkFailure):  # a server without STARTTLS is sent nothing in the open
            deliver("post", secure, groups()[0], NOW)
        assert server.came == []


@pytest.mark.parametrize(("code", "counts"), [(b"552 too large", (3, 0, 1)), (b"451 later", (2, 2, 0))])
def test_a_mail_that_is_refused_for_good_blocks_no_other(tmp_path: Path, code: bytes, counts: tuple[int, ...]) -> None:
    """552 is about this mail; 451 about the server, for which the mails wait in their order."""
    with mail_server(b"250 fine") as server:
        server.turns_away.append(code)
        sink = SinkConf("mail", host="127.0.0.1", port=server.server_address[1], starttls=False, tries=1,
                        sender="a@b.example", to=("c@d.example",))  # fmt: skip
        box = outbox(tmp_path, post=sink, log=SinkConf("file", path=str(tmp_path / "alerts.jsonl")))
        box.put(groups())
        report = box.flush(NOW)
        assert (report.sent, report.waiting, report.refused) == counts
        assert len(report.sentences) == 1 and f"at 127.0.0.1 answers {code[:3].decode()}" in report.sentences[0]
        assert len(list((tmp_path / "outbox" / "refused").glob("*.post.json"))) == report.refused


def test_only_alerts_that_people_read_of_are_renewed(server: Receiver, tmp_path: Path) -> None:
    book = AlertBook()
    book.observe(conditions(NOW, True))
    box = outbox(tmp_path, am=SinkConf("alertmanager", ("page",), url=server.address), log=SinkConf("file", path="x"))
    assert box.renew(book.active(), NOW + timedelta(hours=1)) == ()
    ((_, _, (alert,)),) = server.came
    assert alert["labels"]["severity"] == "page" and alert["startsAt"] == NOW.isoformat()
    server.status = 503
    (sentence,) = box.renew(book.active(), NOW)
    assert sentence == "sink am (alertmanager) at 127.0.0.1 answers 503: 1 alerts are not renewed there"


def test_what_follows_a_monitors_run(server: Receiver, tmp_path: Path) -> None:
    """Notified once, renewed while it fires, quiet in a suppression window; a run that died is made up for."""
    quiet = SuppressConf(datetime(2026, 3, 3), datetime(2026, 3, 4), "holiday", ("drift_*",))
    sinks = {"am": SinkConf("alertmanager", url=server.address, tries=1)}
    conf = Alerts(sinks, (quiet,), outbox=str(tmp_path))
    table: list[AlertEvent] = []

    def run(at: datetime, append: Any = table.extend) -> DeliveryReport:
        """A run that knows the table alone."""
        return raise_alerts(conf, "spring", alert_book(conf, table), conditions(at, True), append, at)

    def killed(events: object) -> None:
        raise KeyboardInterrupt

    server.status = 503
    with pytest.raises(KeyboardInterrupt):
        run(NOW, killed)
    # Nobody reads of what nobody recorded: held until the table has it, whatever empties the outbox meanwhile.
    held = tmp_path / "spring" / "held"
    assert table == [] and len(list(held.glob("*.json"))) == 2 and not list((tmp_path / "spring").glob("*.json"))
    assert campaign_outbox(conf, "spring").flush(NOW).sent == 0 and server.came == []
    report = run(NOW)  # down: nothing is lost, and nothing is there twice
    assert not list(held.glob("*.json"))
    assert (report.sent, report.waiting, len(table)) == (0, 2, 2) and len(report.sentences) == 1
    server.status, server.came = 200, []
    report = run(NOW)
    assert (report.sent, report.waiting, report.sentences, len(table)) == (2, 0, (), 2)
    server.came.clear()
    report = run(NOW + timedelta(hours=1))
    ((_, _, renewed),) = server.came
    rules = {one["labels"]["alertname"] for one in renewed}
    assert (report.sent, len(table)) == (0, 2) and rules == {"UpliftDeliveryRate", "UpliftDriftScore"}
    fresh = alert_book(conf, []).observe(conditions(datetime(2026, 3, 3, 12, tzinfo=UTC), True))
    assert [(event.rule, event.notify, event.quiet) for event in fresh] == [
        ("delivery_rate", True, ""),
        ("drift_score", False, "holiday"),
    ]


def test_what_is_held_goes_out_once_its_events_are_recorded_and_never_if_others_have_their_place(
    tmp_path: Path,
) -> None:
    log = tmp_path / "alerts.jsonl"
    conf = Alerts({"log": SinkConf("file", path=str(log))}, outbox=str(tmp_path / "outbox"))
    table: list[AlertEvent] = []

    def run(at: datetime, breached: bool, killed: bool = False, after: bool = False) -> DeliveryReport:
        def append(events: Any) -> None:
            if not killed or after:
                table.extend(events)
            if killed:
                raise KeyboardInterrupt

        return raise_alerts(conf, "spring", alert_book(conf, table), conditions(at, breached), append, at)

    def lines() -> list[str]:
        return [json.loads(line)["at"] for line in log.read_text().splitlines()] if log.exists() else []

    with pytest.raises(KeyboardInterrupt):
        run(NOW, True, killed=True)
    later = NOW + timedelta(hours=1)
    run(later, True)  # what was held of the run before never happened: this one's events have its place
    assert lines() == [later.isoformat()] * 2
    assert not list((tmp_path / "outbox" / "spring" / "held").glob("*.json"))
    over = later + timedelta(hours=1)
    with pytest.raises(KeyboardInterrupt):
        run(over, False, killed=True, after=True)  # recorded, and then killed
    assert lines() == [later.isoformat()] * 2
    report = run(over + timedelta(hours=1), False)  # changes nothing, and sends what was held
    assert lines()[2:] == [over.isoformat()] * 2 and (report.sent, report.waiting, len(table)) == (2, 0, 4)


def test_of_held_notifications_about_one_event_one_goes_out(tmp_path: Path) -> None:
    (page, ticket) = AlertBook().observe(conditions(NOW, True))
    box = outbox(tmp_path, log=SinkConf("file", path=str(tmp_path / "alerts.jsonl")))
    box.hold([Notification("spring", "page", NOW, (page,))])  # of a run that was killed before it knew of the other
    box.hold([Notification("spring", "page", NOW, (page, ticket))])
    book = AlertBook()
    assert box.settle(book.recorded) == 0
    book.record([page, ticket])
    assert box.settle(book.recorded) == 1 and box.flush(NOW).sent == 1
    assert not list((tmp_path / "outbox" / "held").glob("*.json"))


# ---------------------------------------------------------------- a real Alertmanager


@pytest.mark.slow
def test_a_real_alertmanager_receives_groups_silences_and_resolves(server: Receiver, tmp_path: Path) -> None:
    amtool = program("amtool")
    hook = {"webhook_configs": [{"url": server.address + "/am", "send_resolved": True}]}
    config = alertmanager_file({name: {"page": hook, "ticket": hook} for name in ("spring", "autumn")})
    for long, short in (
        ("30s", "1s"),
        ("group_wait: 5m", "group_wait: 1s"),
        ("group_interval: 5m", "group_interval: 2s"),
    ):
        config = config.replace(long, short)
    book, now = AlertBook(settle=timedelta(0)), datetime.now(UTC) - timedelta(minutes=1)

    def came() -> list[tuple[str, str, list[str]]]:
        """(status, campaign, rules) of every message of Alertmanager."""
        return [
            (one["status"], one["groupLabels"]["campaign"], sorted(a["labels"]["alertname"] for a in one["alerts"]))
            for path, _, one in server.came
            if path == "/am"
        ]

    with alertmanager(tmp_path, config) as address:
        box = outbox(tmp_path, am=SinkConf("alertmanager", url=address))

        def observe(at: datetime, breached: bool, *campaigns: str) -> None:
            extra = [
                Condition(AlertRule("error_rate", "page"), name, at, breached, "errors", labels={"kpi": "error_rate"})
                for name in campaigns
            ]
            box.put(notifications(book.observe([*conditions(at, breached, *campaigns), *extra])))
            assert box.flush(datetime.now(UTC)).sentences == ()

        observe(now, True, "spring", "autumn")
        # Received and grouped: one message for each campaign and severity.
        waited_for(lambda: len(came()) >= 4)
        assert sorted(came()) == [
            ("firing", campaign, rules)
            for campaign in ("autumn", "spring")
            for rules in (["UpliftDeliveryRate", "UpliftErrorRate"], ["UpliftDriftScore"])
        ]
        box.renew(book.active(), datetime.now(UTC))  # a renewal is no news
        alerts = fetched(f"{address}/api/v2/alerts")
        assert len(alerts) == 6
        # Silenced: by amtool, as a person does.
        silence = [
            amtool,
            f"--alertmanager.url={address}",
            "silence",
            "add",
            "campaign=autumn",
            "-c",
            "test",
            "-d",
            "1h",
        ]
        subprocess.run(silence, check=True, capture_output=True, timeout=60)
        states = {(a["labels"]["campaign"], a["status"]["state"]) for a in fetched(f"{address}/api/v2/alerts")}
        assert states == {("autumn", "suppressed"), ("spring", "active")}
        server.came.clear()
        observe(now + timedelta(seconds=30), False, "spring", "autumn")
        waited_for(lambda: len(came()) >= 2)
        # Resolved: nothing fires any more, and only those who were not silenced hear of it.
        assert waited_for(lambda: fetched(f"{address}/api/v2/alerts") == [])
        assert {(status, campaign) for status, campaign, _ in came()} == {("resolved", "spring")}


@pytest.mark.slow
def test_an_alertmanager_that_is_down_gets_everything_later(tmp_path: Path) -> None:
    program("prometheus-alertmanager", "alertmanager")
    book, now = AlertBook(), datetime.now(UTC)
    events = notifications(book.observe(conditions(now, True)))
    down = outbox(tmp_path, am=SinkConf("alertmanager", url="http://127.0.0.1:1"))
    down.put(events)
    assert down.flush(now).waiting == 2
    with alertmanager(tmp_path, alertmanager_file({})) as address:
        report = outbox(tmp_path, am=SinkConf("alertmanager", url=address)).flush(now)
        assert (report.sent, report.waiting) == (2, 0)
        assert len(fetched(f"{address}/api/v2/alerts")) == 2
