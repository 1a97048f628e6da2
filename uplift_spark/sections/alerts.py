"""The section `alerts` of a configuration: who is notified where, and when nobody is. `config` names it; see there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name
from uplift_spark.sections.source import STRICT

Secrets = Literal["url", "token", "password"]
_NEEDS = {"alertmanager": ("url",), "webhook": ("url",), "mail": ("host", "sender", "to"), "file": ("path",)}
_TAKES = {
    "alertmanager": {"url", "url_env", "url_file", "token_env", "token_file", "lease_hours"},
    "webhook": {"url", "url_env", "url_file", "token_env", "token_file"},
    "mail": {"host", "port", "starttls", "sender", "to", "user", "password_env", "password_file"},
    "file": {"path"},
}
_COMMON = {"kind", "severities", "timeout", "tries"}


@dataclass(frozen=True, config=STRICT)
class SinkConf:
    """An entry of `alerts.sinks`: one place that notifications go to.

    kind        alertmanager (its API v2), webhook (JSON with a `text`, as Slack takes it), mail (SMTP), or file (a line
                of JSON each)
    severities  page, ticket, or both
    url         of alertmanager and webhook
    url_env, url_file  in its place, where the address is a secret: the environment variable, or the file, that holds it
    token_env, token_file  in the same way a bearer token
    lease_hours of alertmanager: how long an alert counts as firing when nothing is heard of it, so more than the hours
                between two runs of the monitor
    host, port, starttls  of the mail server; starttls: false only where it is on this machine
    sender, to  addresses
    user, password_env, password_file  to log in there
    path        of the file
    timeout     seconds that one try may wait for an answer
    tries       before the sink counts as down
    """

    kind: Literal["alertmanager", "webhook", "mail", "file"]
    severities: tuple[Literal["page", "ticket"], ...] = ("page", "ticket")
    url: str | None = None
    url_env: str | None = None
    url_file: str | None = None
    token_env: str | None = None
    token_file: str | None = None
    lease_hours: Annotated[float, Field(gt=0)] = 50.0
    host: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    starttls: bool = True
    sender: str | None = None
    to: tuple[str, ...] = ()
    user: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    path: str | None = None
    timeout: Annotated[float, Field(gt=0, le=300)] = 10.0
    tries: Annotated[int, Field(ge=1, le=10)] = 3

    def __post_init__(self) -> None:
        default = {name: field.default for name, field in SinkConf.__dataclass_fields__.items()}
        chosen = {name for name, value in default.items() if getattr(self, name) != value}
        if strange := sorted(chosen - _TAKES[self.kind] - _COMMON):
            raise ConfigError(f"a sink of kind {self.kind} takes no {strange[0]}: remove it")
        for name in _NEEDS[self.kind]:
            ways = [name, f"{name}_env", f"{name}_file"] if name == "url" else [name]
            if sum(bool(getattr(self, way)) for way in ways) != 1:
                raise ConfigError(f"a sink of kind {self.kind} needs {'one of ' * (len(ways) > 1)}{', '.join(ways)}")
        for name in ("token", "password"):
            if getattr(self, f"{name}_env") and getattr(self, f"{name}_file"):
                raise ConfigError(f"a sink names {name}_env and {name}_file: keep one")
        if bool(self.user) != bool(self.password_env or self.password_file):
            raise ConfigError("a sink of kind mail needs user and its password_env or password_file, or none of them")
        if not self.severities:
            raise ConfigError("a sink without severities is sent nothing: name page, ticket, or both")
        if self.url is not None:
            checked_address("a sink's url", self.url)


@dataclass(frozen=True, config=STRICT)
class SuppressConf:
    """An entry of `alerts.suppress`: a time in which alerts notify nobody; they are kept in `gold.alerts` all the same.

    start, end  points in time; without a zone UTC
    reason      that the alerts' history repeats
    rules       names or patterns of rules, as drift*; all by default
    """

    start: datetime
    end: datetime
    reason: str
    rules: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if (self.start.tzinfo is None) != (self.end.tzinfo is None):
            raise ConfigError(
                f"alerts.suppress {self.reason!r}: one of start and end has a time zone; give both or none"
            )
        if self.end <= self.start:
            raise ConfigError(f"alerts.suppress {self.reason!r} ends at {self.end}, not after it starts: swap them")


@dataclass(frozen=True, config=STRICT)
class Alerts:
    """`alerts`: what becomes of alerts; no part of any run's identity.

    sinks     {name: where notifications go}
    suppress  times in which nobody is notified
    settle_minutes  an alert that fires again this soon after it resolved notifies nobody until then
    outbox    folder of notifications that are not delivered yet; by default below this machine's state folder. A task
              on serverless compute loses that at its end: name a folder on a volume there
    textfile  file, ending in .prom, that the monitor writes its figures to for Prometheus' node exporter
    """

    sinks: dict[str, SinkConf] = Field(default_factory=dict)
    suppress: tuple[SuppressConf, ...] = ()
    settle_minutes: Annotated[float, Field(ge=0, le=1440)] = 15.0
    outbox: str | None = None
    textfile: str | None = None

    def __post_init__(self) -> None:
        for name in self.sinks:
            checked_name(name, "alerts.sinks entry")
        if self.textfile is not None and not self.textfile.endswith(".prom"):
            raise ConfigError(f"alerts.textfile {self.textfile} is read by no exporter: its name must end in .prom")


def checked_address(what: str, url: str) -> str:
    """Check the address of a sink.

    Args:
        what: What a message calls it; the address itself may be a secret and is not repeated.
        url: The address.

    Returns:
        The address.

    Raises:
        ConfigError: It is no http(s) address of a host, or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{what} is no address of a host: begin it with https:// or http://")
    if parts.password is not None:
        raise ConfigError(f"{what} holds a password: name the secret with token_env or token_file")
    return url
