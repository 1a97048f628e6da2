"""Where notifications go: Alertmanager, a webhook, mail, a file; and the outbox that loses none while a sink is down.

A notification is held until its events are in the table, so that nobody reads of an alert that nobody recorded; then it
is in the outbox, before the first try, and leaves it after the sink took it. So it may come twice, after a crash in
between, and is never lost: Alertmanager knows repeats by labels, mail by Message-ID, a webhook by the header
Idempotency-Key, the file by the key of a line. Secrets are read when they are needed and stand in no message.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from uplift_spark.errors import ConfigError, DataError, UpliftError
from uplift_spark.monitoring.alerts import (
    AlertBook,
    AlertEvent,
    AlertState,
    Condition,
    Notification,
    SuppressionWindow,
    notifications,
)
from uplift_spark.monitoring.prometheus import alert_name
from uplift_spark.runtime import state_folder
from uplift_spark.sections.alerts import Alerts, Secrets, SinkConf, checked_address

_OVER = ("resolved", "closed")
# The message itself is refused: later ones may be taken.
_OF_THIS_MESSAGE = {400, 413, 422}


class SinkFailure(UpliftError):
    """A sink did not take a notification: `reason` in words, and whether this notification alone is refused.

    `taken`: somebody has it, and who has not will not get it by another try.
    """

    def __init__(self, reason: str, refused: bool = False, again: bool = True, taken: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.refused, self.again, self.taken = reason, refused, again and not taken, taken


def sink_secret(sink: str, conf: SinkConf, name: Secrets) -> str | None:
    """Read a secret of a sink from where its section says it is.

    Args:
        sink: Name of the sink.
        conf: Its section.
        name: Of the secret.

    Returns:
        The secret; None where the section names none.

    Raises:
        ConfigError: The variable or the file is not there or empty.
    """
    variable, file = getattr(conf, f"{name}_env"), getattr(conf, f"{name}_file")
    if variable is not None:
        text, where = os.environ.get(variable, ""), f"{name}_env names ${variable}, which is not set"
    elif file is not None:
        try:
            text, where = Path(file).read_text().strip(), f"{name}_file names {file}, which is empty"
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"alerts.sinks.{sink}.{name}_file {file} cannot be read: {why}") from None
    else:
        return getattr(conf, name, None)
    if not text or any(mark in text for mark in "\r\n"):
        raise ConfigError(f"alerts.sinks.{sink}.{where} or has several lines: put the secret there")
    return text


class SinkMessage(Protocol):
    """What webhooks, mail and files take: a notification, or a digest."""

    @property
    def title(self) -> str:
        """Its subject."""
        ...

    @property
    def key(self) -> str:
        """Its name, by which a repeated delivery is known."""
        ...

    @property
    def at(self) -> datetime:
        """When what it says was so."""
        ...

    @property
    def campaign(self) -> str:
        """What it is about."""
        ...

    def lines(self) -> list[str]:
        """Its text."""
        ...


def deliver(sink: str, conf: SinkConf, notification: SinkMessage, now: datetime) -> None:
    """Send one notification, or a digest, to one sink, once.

    Args:
        sink: Name of the sink.
        conf: Its section.
        notification: What is to be read; Alertmanager takes alerts alone.
        now: The present time, from which Alertmanager's lease counts.

    Raises:
        SinkFailure: The sink did not take it.
        ConfigError: A secret is not there.
    """
    _WAYS[conf.kind](sink, conf, notification, now)


# --------------------------------------------------------------------------------------------------------------------
# Kinds of sinks.


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token along to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(sink: str, conf: SinkConf, path: str, content: Any, headers: Mapping[str, str]) -> None:
    url = sink_secret(sink, conf, "url")
    assert url is not None
    checked_address(f"alerts.sinks.{sink}: the url", url)
    token = sink_secret(sink, conf, "token")
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(
        url.rstrip("/") + path if path else url,
        json.dumps(content, ensure_ascii=False).encode(),
        {"Content-Type": "application/json", **bearer, **headers},
    )
    where = f"at {urlsplit(url).hostname}"
    try:
        with urllib.request.build_opener(_NoRedirect()).open(request, timeout=conf.timeout):
            return
    except urllib.error.HTTPError as error:  # its text may repeat the address
        code = error.code
        error.close()
        again = code >= 500 or code == 429
        raise SinkFailure(f"{where} answers {code}", refused=code in _OF_THIS_MESSAGE, again=again) from None
    except (OSError, ValueError) as error:
        raise SinkFailure(f"{where} cannot be reached ({_network_reason(error)})") from None
    except Exception as error:  # http.client has classes of its own for broken answers
        raise SinkFailure(f"{where} gives no HTTP answer ({type(error).__name__})") from None


def _network_reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return getattr(reason, "strerror", None) or type(reason).__name__


def _to_alertmanager(sink: str, conf: SinkConf, notification: SinkMessage, now: datetime) -> None:
    if not isinstance(notification, Notification):
        raise SinkFailure("takes alerts alone, and this is a message", refused=True, again=False)
    lease = now + timedelta(hours=conf.lease_hours)
    _post(sink, conf, "/api/v2/alerts", [alertmanager_alert(one, lease) for one in notification.events], {})


def alertmanager_alert(event: AlertEvent, lease: datetime) -> dict[str, Any]:
    """Write an alert as Alertmanager's API v2 takes it.

    Args:
        event: The alert's event; one that resolves it ends it.
        lease: Until when it fires if nothing more is heard.

    Returns:
        Labels, annotations, when it starts and ends. What was measured is in the annotations: labels are what
        Alertmanager knows the alert by, and those of a KPI's rule in Prometheus, so that both ways are one alert.
    """
    labels = {
        "alertname": alert_name(event.rule),
        "campaign": event.campaign,
        "severity": event.severity,
        **event.label_map,
    }
    measured = {
        name: f"{getattr(event, name):.6g}" for name in ("value", "threshold") if getattr(event, name) is not None
    }
    ends = event.at if event.event in _OVER else lease
    times = (
        {"endsAt": ends.isoformat()}
        if event.event in _OVER
        else {"startsAt": event.at.isoformat(), "endsAt": ends.isoformat()}
    )
    return {"labels": labels, "annotations": {"summary": event.summary, "runbook": event.runbook, **measured}, **times}


def _to_webhook(sink: str, conf: SinkConf, notification: SinkMessage, now: datetime) -> None:
    text = "\n".join([f"*{notification.title}*", *notification.lines()])
    for mark, written in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
    ):  # Slack reads <!channel> as a call to everybody
        text = text.replace(mark, written)
    _post(sink, conf, "", {"text": text}, {"Idempotency-Key": notification.key})


def _to_mail(sink: str, conf: SinkConf, notification: SinkMessage, now: datetime) -> None:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = notification.title, conf.sender, ", ".join(conf.to)
    message["Message-ID"] = f"<{notification.key}@uplift-spark>"
    message["Date"] = notification.at
    message.set_content("\n".join(notification.lines()) + "\n")
    password = sink_secret(sink, conf, "password")
    try:
        with smtplib.SMTP(str(conf.host), conf.port, timeout=conf.timeout) as server:
            if conf.starttls:
                server.starttls(context=ssl.create_default_context())
            if conf.user and password:
                server.login(conf.user, password)
            refused = server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise SinkFailure(
            f"at {conf.host} refuses it ({', '.join(map(str, sorted(set(codes))))}, all of `to`)",
            refused=all(code >= 500 for code in codes),
            again=False,
        ) from None
    except smtplib.SMTPResponseException as error:  # its text may repeat what was sent
        # A 5xx to the message or its sender is about this mail; one to the connection or the login is about the sink.
        this_mail = error.smtp_code >= 500 and isinstance(error, smtplib.SMTPSenderRefused | smtplib.SMTPDataError)
        raise SinkFailure(f"at {conf.host} answers {error.smtp_code}", this_mail, error.smtp_code < 500) from None
    except smtplib.SMTPException as error:
        raise SinkFailure(f"at {conf.host} refuses it ({type(error).__name__})", again=False) from None
    except OSError as error:
        raise SinkFailure(f"at {conf.host} cannot be reached ({_network_reason(error)})") from None
    except UnicodeError:  # of the login; what it says is the password
        raise SinkFailure(f"at {conf.host}: user or password has letters other than ASCII", again=False) from None
    if refused:
        raise SinkFailure(
            f"at {conf.host} took it for the others, but refuses {', '.join(sorted(refused))}: correct `to`", taken=True
        )


def _to_file(sink: str, conf: SinkConf, notification: SinkMessage, now: datetime) -> None:
    path = Path(str(conf.path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read()
            if any(_key_of(line) == notification.key for line in before.splitlines()):
                return
            # A line that a crash cut off ends here, so that this one is whole.
            start = b"\n" if before and not before.endswith(b"\n") else b""
            file.write(start + json.dumps(_as_json(notification), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SinkFailure(f"{path} cannot be written ({error.strerror or type(error).__name__})", again=False) from None


def _key_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError):
        return None


_WAYS: dict[str, Callable[[str, SinkConf, SinkMessage, datetime], None]] = {
    "alertmanager": _to_alertmanager,
    "webhook": _to_webhook,
    "mail": _to_mail,
    "file": _to_file,
}


def _as_json(notification: SinkMessage) -> dict[str, Any]:
    head = {"key": notification.key, "title": notification.title, "campaign": notification.campaign}
    head["at"] = notification.at.isoformat()
    if not isinstance(notification, Notification):
        return {**head, "lines": notification.lines()}
    events = [{**asdict(one), "at": one.at.isoformat()} for one in notification.events]
    return {**head, "severity": notification.severity, "events": events}


def _from_json(content: Mapping[str, Any]) -> Notification:
    events = tuple(AlertEvent.from_row({**one, "at": datetime.fromisoformat(one["at"])}) for one in content["events"])
    return Notification(content["campaign"], content["severity"], datetime.fromisoformat(content["at"]), events)


# --------------------------------------------------------------------------------------------------------------------
# The outbox.


@dataclass(frozen=True)
class DeliveryReport:
    """What became of an outbox: deliveries, notifications that wait, a sentence for each sink that has a problem, and
    notifications that a sink refused for their content."""

    sent: int
    waiting: int
    sentences: tuple[str, ...]
    refused: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The numbers, for a run's summary."""
        return {"sent": self.sent, "waiting": self.waiting, "refused": self.refused}


class Outbox:
    """Notifications on their way, one file for each and each sink, in a folder.

    Args:
        folder: Made when it is not there.
        sinks: {name: section}.
        sleep: Waits between tries.
    """

    def __init__(
        self, folder: str | Path, sinks: Mapping[str, SinkConf], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.folder, self.sinks, self._sleep = Path(folder), dict(sinks), sleep

    def put(self, notifications: Sequence[Notification]) -> int:
        """Keep notifications for every sink that takes their severity; a file is there whole or not at all.

        Args:
            notifications: In the order in which they are to arrive. One that is in the outbox already stays there once.

        Returns:
            Deliveries to be made.

        Raises:
            DataError: The folder cannot be written.
        """
        return self._keep(self.folder, notifications)

    def hold(self, notifications: Sequence[Notification]) -> int:
        """Keep notifications whose events are not recorded yet: no flush sends them before `settle` lets them go.

        Args:
            notifications: As of `put`.

        Returns:
            Deliveries that are held.

        Raises:
            DataError: The folder cannot be written.
        """
        return self._keep(self._held, notifications)

    def settle(self, recorded: Callable[[AlertEvent], bool | None]) -> int:
        """Let go of held notifications whose events are recorded, and drop those whose events never will be.

        Events of one notification are recorded together or not at all. Of two with the same event, as after a run that
        was killed, the one with more events goes out.

        Args:
            recorded: Says of an event whether it is recorded; None: not yet.

        Returns:
            Deliveries that are in the outbox now.

        Raises:
            DataError: The folder cannot be written.
        """
        held = []
        for path in sorted(self._held.glob("[0-9]*.json")):
            notification = _read_notification(path)
            if not isinstance(notification, str):  # another run may have moved it meanwhile
                held.append((path, notification))
        count, gone = 0, set[tuple[str, str, int]]()
        try:
            for path, notification in sorted(held, key=lambda pair: -len(pair[1].events)):
                known = [recorded(event) for event in notification.events]
                events = {(_sink_of(path), event.alert, event.sequence) for event in notification.events}
                if all(known) and events - gone:
                    path.replace(self.folder / path.name)
                    gone |= events
                    count += 1
                elif any(one is not None for one in known):
                    path.unlink()
        except OSError as error:
            if error.errno == errno.ENOENT:  # another run settled it
                return count + self.settle(recorded)
            raise DataError(f"the outbox {self.folder} cannot be written: {error.strerror or error}") from error
        return count

    @property
    def _held(self) -> Path:
        return self.folder / "held"

    def _keep(self, folder: Path, notifications: Sequence[Notification]) -> int:
        count = 0
        if not notifications or not self.sinks:
            return 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for position, one in enumerate(notifications):
                for sink, conf in self.sinks.items():
                    if one.severity in conf.severities:
                        name = f"{one.at.astimezone(UTC):%Y%m%dT%H%M%S%f}-{position:04}-{one.key}.{sink}.json"
                        _write_whole(folder / name, json.dumps(_as_json(one)))
                        count += 1
        except OSError as error:
            raise DataError(f"the outbox {self.folder} cannot be written: {error.strerror or error}") from error
        return count

    def flush(self, now: datetime) -> DeliveryReport:
        """Deliver what waits, the oldest first; a sink that is down keeps its notifications until the next flush.

        Args:
            now: The present time.

        Returns:
            What was sent, what waits, and why.
        """
        if not self.folder.is_dir():
            return DeliveryReport(0, 0, ())
        with self._alone() as alone:
            if not alone:
                return DeliveryReport(0, len(self._files()), (f"another run empties the outbox {self.folder}",))
            sent, refused, sentences = 0, 0, list[str]()
            for sink in dict.fromkeys([*self.sinks, *(_sink_of(path) for path in self._files())]):
                own = [path for path in self._files() if _sink_of(path) == sink]
                taken, not_taken = self._flush_sink(sink, own, now, sentences)
                sent, refused = sent + taken, refused + not_taken
            return DeliveryReport(sent, len(self._files()), tuple(sentences), refused)

    def _flush_sink(self, sink: str, files: Sequence[Path], now: datetime, sentences: list[str]) -> tuple[int, int]:
        """Deliver a sink's files; how many it took and refused. Adds a sentence for each problem."""
        if not files:
            return 0, 0
        conf = self.sinks.get(sink)
        if conf is None:
            sentences.append(
                f"{_counted(files)} in {self.folder} for the sink {sink}, which alerts.sinks does not name: name it"
            )
            return 0, 0
        sent, refused, who = 0, 0, f"sink {sink} ({conf.kind})"
        for position, path in enumerate(files):
            notification = _read_notification(path)
            if isinstance(notification, str):
                sentences.append(notification)
                continue
            try:
                self._try(sink, conf, notification, now)
            except SinkFailure as failure:
                if not failure.refused and not failure.taken:
                    rest = _counted(files[position:])
                    sentences.append(f"{who} {failure.reason}: {rest} in {self.folder} until the next run")
                    return sent, refused
                if failure.refused:
                    aside = self.folder / "refused" / path.name
                    aside.parent.mkdir(exist_ok=True)
                    path.replace(aside)
                    sentences.append(f"{who} {failure.reason} to {path.name}: it is kept in {aside.parent}")
                    refused += 1
                    continue
                sentences.append(f"{who} {failure.reason}")
            except ConfigError as error:
                sentences.append(f"{error}; {_counted(files[position:])} in {self.folder} until then")
                return sent, refused
            path.unlink()
            sent += 1
        return sent, refused

    def _try(self, sink: str, conf: SinkConf, notification: Notification, now: datetime) -> None:
        for number in range(1, conf.tries + 1):
            try:
                return deliver(sink, conf, notification, now)
            except SinkFailure as failure:
                if number == conf.tries or not failure.again:
                    raise
                self._sleep(min(2.0 ** (number - 1), 30.0))

    def renew(self, active: Sequence[AlertState], now: datetime) -> tuple[str, ...]:
        """Send Alertmanager all alerts that people were notified of and that still fire: its lease begins anew.

        Args:
            active: As `AlertBook.active` lists them.
            now: The present time.

        Returns:
            A sentence for each sink that did not hear it.
        """
        sentences = []
        for sink, conf in self.sinks.items():
            own = [one for one in active if one.notified_at and one.last.severity in conf.severities]
            if conf.kind != "alertmanager" or not own:
                continue
            events = tuple(
                AlertEvent(**{**asdict(one.last), "event": "fired", "at": one.fired_at or one.since}) for one in own
            )
            try:
                self._try(sink, conf, Notification(events[0].campaign, events[0].severity, now, events), now)
            except UpliftError as error:
                sentences.append(f"sink {sink} ({conf.kind}) {error}: {len(own)} alerts are not renewed there")
        return tuple(sentences)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process empties the outbox at the moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _write_whole(path: Path, text: str) -> None:
    part = path.parent / f".{path.name}.{os.getpid()}"
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read_notification(path: Path) -> Notification | str:
    """What a file of the outbox holds, or a sentence that says why nobody can read it."""
    try:
        return _from_json(json.loads(path.read_text()))
    except OSError as error:
        return f"{path} cannot be read and was left there: {error.strerror or type(error).__name__}"
    except (ValueError, KeyError, TypeError):
        return f"{path} is no notification and was left there: remove it"


def _sink_of(path: Path) -> str:
    return path.name.split(".")[-2]


def _counted(files: Sequence[Path]) -> str:
    return f"{len(files)} notification{'s wait' if len(files) > 1 else ' waits'}"


# --------------------------------------------------------------------------------------------------------------------
# What follows a monitor's run.


def alert_book(
    conf: Alerts, history: Iterable[AlertEvent], evaluated: Mapping[str, datetime] | None = None
) -> AlertBook:
    """Rebuild the alerts with the suppression windows of a configuration.

    Args:
        conf: The section `alerts`.
        history: Rows of `gold.alerts` as events.
        evaluated: See `AlertBook.replay`.

    Returns:
        The book.
    """
    windows = [SuppressionWindow(_utc(one.start), _utc(one.end), one.reason, rules=one.rules) for one in conf.suppress]
    return AlertBook.replay(history, windows, timedelta(minutes=conf.settle_minutes), evaluated)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def campaign_outbox(conf: Alerts, campaign: str) -> Outbox:
    """Open the outbox of a campaign.

    Args:
        conf: The section `alerts`.
        campaign: Its name.

    Returns:
        The outbox in the folder that the section names, or below this machine's state folder.
    """
    folder = Path(conf.outbox) if conf.outbox is not None else state_folder() / "outbox"
    return Outbox(folder / campaign, conf.sinks)


def raise_alerts(
    conf: Alerts,
    campaign: str,
    book: AlertBook,
    conditions: Sequence[Condition],
    append: Callable[[Sequence[AlertEvent]], object],
    now: datetime,
) -> DeliveryReport:
    """Take in what the rules say, keep what changed, and notify people of it.

    Notifications are held before their events are in the table, and sent after: whoever is killed in between sends
    nobody a message of an alert that nobody recorded, and the next run sends what was held once its events are there.
    Alerts that still fire are renewed at Alertmanager.

    Args:
        conf: The section `alerts`.
        campaign: Its name.
        book: As the table has it.
        conditions: Of one evaluation.
        append: Adds events to `gold.alerts`; raises when another run was first.
        now: The present time.

    Returns:
        What was sent, what waits, and a sentence for each sink that has a problem.

    Raises:
        DataError: The outbox cannot be written; nothing was added to the table then.
    """
    events = book.observe(conditions)
    report = notify_of(conf, campaign, book, events, append, now)
    box, fresh = campaign_outbox(conf, campaign), {event.alert for event in events if event.notify}
    still = [state for state in book.active() if state.last.campaign == campaign and state.last.alert not in fresh]
    return replace(report, sentences=(*report.sentences, *box.renew(still, now)))


def notify_of(
    conf: Alerts,
    campaign: str,
    book: AlertBook,
    events: Sequence[AlertEvent],
    append: Callable[[Sequence[AlertEvent]], object],
    now: datetime,
) -> DeliveryReport:
    """Keep events, and notify people of them; without events, of what earlier runs left.

    Args:
        conf: The section `alerts`.
        campaign: Its name.
        book: As the table has it, and the events.
        events: What changed.
        append: Adds events to `gold.alerts`.
        now: The present time.

    Returns:
        What was sent, what waits, what was refused.

    Raises:
        DataError: The outbox cannot be written; nothing was added to the table then.
    """
    box = campaign_outbox(conf, campaign)
    box.hold(notifications(events))
    if events:
        append(events)
    book.record(events)
    box.settle(book.recorded)
    return box.flush(now)
