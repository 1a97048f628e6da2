"""Section `serving` of a configuration: where published versions lie, how the service answers, and its limits."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name
from uplift_spark.sections.source import STRICT

Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(m|Mi|Gi|Ti)?$")]
"""An amount as Kubernetes writes it."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, config=STRICT)
class PackageConf:
    """`serving.package`, for `uplift package`: what the files for containers and clusters say.

    image        name of the image, with its registry; its tag is the code version
    base         image that it is built on; by default Python's slim one, of the Python that packages
    uid          of the user that the service runs as, not root
    namespace    of Kubernetes
    replicas, most_replicas, cpu_percent  pods at least and at most; more are started above this use of their CPU
    cpu, memory  what a pod requests, and the most memory that it gets
    claim        volume claim with the serving folder, which pods read
    log_size     of each pod's disk for its log of decisions
    keys_secret  secret whose entry `keys` is the file of API keys
    clients, monitors  labels of the pods that may call the service, and of Prometheus
    redis_image, prometheus_image, alertmanager_image  of the Compose file
    nodes        HOST:PORT of the node exporters that Compose's Prometheus scrapes
    mlserver     requirement of the MLServer in the image for KServe
    """

    image: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*[a-z0-9]$")] = "uplift-serving"
    base: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    uid: Annotated[int, Field(ge=1)] = 10001
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")] = "uplift"
    replicas: Annotated[int, Field(ge=1)] = 2
    most_replicas: Annotated[int, Field(ge=1)] = 10
    cpu_percent: Annotated[int, Field(ge=1, le=100)] = 70
    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    claim: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")] = "uplift-serving"
    log_size: Quantity = "5Gi"
    keys_secret: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")] = "uplift-keys"
    clients: dict[str, str] = Field(default_factory=lambda: {"uplift-client": "true"})
    monitors: dict[str, str] = Field(default_factory=lambda: {"app.kubernetes.io/name": "prometheus"})
    redis_image: str = "redis:7.4-alpine"
    prometheus_image: str = "prom/prometheus:v3.5.0"
    alertmanager_image: str = "prom/alertmanager:v0.28.1"
    nodes: tuple[str, ...] = ("host.docker.internal:9100",)
    mlserver: Annotated[str, Field(pattern=r"^mlserver==\S+$")] = "mlserver==1.7.1"

    def __post_init__(self) -> None:
        if self.most_replicas < self.replicas:
            raise ConfigError(
                f"serving.package.most_replicas is {self.most_replicas}, below the {self.replicas} of "
                "serving.package.replicas: raise it"
            )
        for name in ("clients", "monitors"):
            if not getattr(self, name):  # a selector without labels is every pod
                raise ConfigError(f"serving.package.{name} has no label, which would let every pod in: name one")


@dataclass(frozen=True, config=STRICT)
class SigningConf:
    """`serving.signing`: decisions as signed tokens, which edge functions check for themselves.

    keys     folder of Ed25519 private keys in PEM, *.pem, read again whenever it changes; the last one by name signs
    seconds  time for which a token holds, at most as long as the decision: so long an edge may not know of a consent
             that was withdrawn, of an off switch, or of a spent budget
    """

    keys: str
    seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0


@dataclass(frozen=True, config=STRICT)
class Serving:
    """`serving`, for `uplift publish` and `uplift serve`; no part of any run's identity.

    folder       of published versions; by default `serving/<campaign>` in the lakehouse's folder
    log          file of the log of decisions, on a disk of the machine that serves; by default decisions.sqlite in
                 the folder
    campaign     that `uplift load decisions` loads the log under: assignments, deliveries, outcomes; by default the
                 campaign's name with _served behind it, as each unit has one assignment a campaign, and the trial that
                 the model was trained on has them
    redis        URL of a Redis that keeps the units in place of a file, such as redis://127.0.0.1:6379/0
    enabled      False: every decision is the control
    holdout      share of the units that get the control from the service, by hash, to read its effect off later
    exploration  share of the other units, by hash, whose level is random, each as likely as the others; the rest follow
                 the policy
    thompson     whether the rest gets a sampled level, each as likely as it is the best by the effects' errors, not the
                 best by the estimates (Thompson sampling); needs exploration, of which each level keeps its part
    shadow       whether the version with the alias challenger decides beside the champion, for the log alone, while no
                 canary runs
    budget       money that a day's decisions may cost, by the costs of `economics`: a price of money sees that it lasts
                 over the day and is spent; by default there is none, and the plan's price holds
    timezone     in which the budget's day begins at midnight
    ttl_minutes  age of a unit's features from which an answer says that they are stale
    decision_minutes  time for which a decision holds, at most a year
    keys         file of hashed API keys, made by `uplift serve --new-key`; without it only loopback is served
    host, port   where the service listens
    workers      processes
    max_bytes    largest body of a request
    max_units    most units in a request
    max_running  requests that a worker has at hand at once; more are refused and may come again later
    rate         requests a second that one API key may make of a worker, on average over a few seconds
    timeout_seconds  within which a request's body must have arrived
    signing      keys of signed decisions; by default none are signed
    package      what `uplift package` writes
    """

    folder: str | None = None
    log: str | None = None
    campaign: str | None = None
    redis: str | None = None
    enabled: bool = True
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    exploration: Annotated[float, Field(ge=0, lt=1)] = 0.0
    thompson: bool = False
    shadow: bool = False
    budget: Annotated[float, Field(gt=0)] | None = None
    timezone: str = "UTC"
    ttl_minutes: Annotated[float, Field(gt=0)] = 30.0
    decision_minutes: Annotated[float, Field(gt=0, le=525_600)] = 30.0
    keys: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    max_units: Annotated[int, Field(ge=1)] = 1000
    max_running: Annotated[int, Field(ge=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 2000.0
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    signing: SigningConf | None = None
    package: PackageConf = Field(default_factory=PackageConf)

    def campaign_of(self, campaign: str) -> str:
        """Campaign under which the log of a campaign's service is loaded."""
        return self.campaign or f"{campaign}_served"

    def __post_init__(self) -> None:
        if self.campaign is not None:
            checked_name(self.campaign, "serving.campaign")
        try:
            ZoneInfo(self.timezone)
        except (ValueError, OSError, KeyError):
            raise ConfigError(
                f"serving.timezone {self.timezone!r} is not known: write one such as Europe/Berlin, or UTC"
            ) from None
        if self.thompson and not self.exploration:
            raise ConfigError(
                "serving.thompson is true without serving.exploration, which keeps each level's propensity above zero: "
                "set exploration, such as 0.05"
            )
        if self.thompson and self.budget is not None:
            raise ConfigError(
                "serving.thompson and serving.budget exclude each other, as the day's price foresees the best levels: "
                "leave one of them out"
            )
        if self.keys is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"serving.host is {self.host!r}, which others reach: name a file of API keys in serving.keys, or "
                "listen on 127.0.0.1"
            )
        if self.redis is not None and not self.redis.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("serving.redis is no URL of a Redis: write redis://HOST:PORT/NUMBER")
