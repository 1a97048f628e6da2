"""Section `serving` of a configuration: where published versions lie, how the service answers, and its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.sections.source import STRICT

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, config=STRICT)
class Serving:
    """`serving`, for `uplift publish` and `uplift serve`; no part of any run's identity.

    folder       of published versions; by default `serving/<campaign>` in the lakehouse's folder
    log          file of the log of decisions, on a disk of the machine that serves; by default decisions.sqlite in
                 the folder
    redis        URL of a Redis that keeps the units in place of a file, such as redis://127.0.0.1:6379/0
    enabled      False: every decision is the control
    holdout      share of the units that get the control from the service, by hash, to read its effect off later
    exploration  share of the other units, by hash, whose level is random, each as likely as the others; the rest follow
                 the policy
    ttl_minutes  age of a unit's features from which an answer says that they are stale
    decision_minutes  time for which a decision holds
    keys         file of hashed API keys, made by `uplift serve --new-key`; without it only loopback is served
    host, port   where the service listens
    workers      processes
    max_bytes    largest body of a request
    max_units    most units in a request
    max_running  requests that a worker has at hand at once; more are refused and may come again later
    rate         requests a second that one API key may make of a worker, on average over a few seconds
    timeout_seconds  within which a request's body must have arrived
    """

    folder: str | None = None
    log: str | None = None
    redis: str | None = None
    enabled: bool = True
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    exploration: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ttl_minutes: Annotated[float, Field(gt=0)] = 30.0
    decision_minutes: Annotated[float, Field(gt=0)] = 30.0
    keys: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    max_units: Annotated[int, Field(ge=1)] = 1000
    max_running: Annotated[int, Field(ge=1)] = 256
    rate: Annotated[float, Field(gt=0)] = 2000.0
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0

    def __post_init__(self) -> None:
        if self.keys is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"serving.host is {self.host!r}, which others reach: name a file of API keys in serving.keys, or "
                "listen on 127.0.0.1"
            )
        if self.redis is not None and not self.redis.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("serving.redis is no URL of a Redis: write redis://HOST:PORT/NUMBER")
