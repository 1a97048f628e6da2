"""The service: effects and decisions over HTTP, feedback, health and metrics (`uplift serve`).

A worker holds one published version in memory, looks for a newer one every second, and goes on with the one it has when
the newer one is refused. What could not be had, an answer says in `degraded`; it never becomes an error.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat
from starlette.exceptions import HTTPException

from uplift_spark import __version__
from uplift_spark.config import Config, load_config
from uplift_spark.errors import ConflictError, DataError, EnvironmentProblem, UpliftError
from uplift_spark.learners.metalearners import load_any
from uplift_spark.roles import plain_id
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.connections import OVERLOAD
from uplift_spark.serving.decisions import (
    DECISION,
    DELIVERY,
    OUTCOME,
    Decision,
    DecisionLog,
    DecisionPolicy,
    LogEntry,
    LogWriter,
    Routing,
    is_over,
    stored_effects,
)
from uplift_spark.serving.guard import NEEDS, REQUEST_LOG, Guard, Overload
from uplift_spark.serving.pacing import DayCounts, Pacer
from uplift_spark.serving.reasons import (
    AVERAGE,
    BATCH,
    KEPT,
    LOG_DOWN,
    NOT_COMPLETE,
    NOT_LOGGED,
    SPENT,
    STALE,
    STORE_DOWN,
    UNKNOWN,
)
from uplift_spark.serving.scorer import EncodedUnit, LevelEffect, Scorer
from uplift_spark.serving.store import (
    ServedVersion,
    StoredUnit,
    check_plain_ids,
    current_version,
    decision_log_file,
    open_version,
    serving_folder,
)
from uplift_spark.serving.tokens import JWKS_PATH, JWKS_SECONDS, SigningKeys, signing_keys

SETTINGS = "UPLIFT_SERVING"
"""Environment variable by which `uplift serve` tells its workers the configuration, as JSON [file, overrides]."""

_REFRESH = 1.0  # seconds between looks for a newer version
_LONGEST = 512  # characters of an id

MODEL_SOURCE = "model"  # of effects


# --------------------------------------------------------------------------------------------------------------------
# What comes in. Unknown fields are refused: a misspelt one would be silently ignored.


def _plain_unit(unit: str) -> str:
    # SQLite reads a text up to a zero byte: an erasure would not find such a unit in the log.
    if (plain := plain_id(unit)) and "\0" not in plain:
        return plain
    raise ValueError("the id is blank, or holds a zero byte")


Id = Annotated[str, Field(min_length=1, max_length=_LONGEST)]
UnitId = Annotated[Id, AfterValidator(_plain_unit)]
Value = bool | FiniteFloat | Annotated[str, Field(max_length=_LONGEST)] | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class UnitQuery(_Body):
    """A unit: its id, its features, or both; features that are sent count in place of those that were published."""

    unit_id: UnitId | None = None
    features: dict[str, Value] | None = None


class EffectsRequest(UnitQuery):
    """One unit, or several under `units`."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"unit_id": "u1"}, {"units": [{"unit_id": "u1"}]}]}
    )
    units: list[UnitQuery] | None = None


class DecisionQuery(_Body):
    """A unit that something is to be decided for; the same `request_key` gets the same answer for ever."""

    request_key: Id
    unit_id: UnitId
    features: dict[str, Value] | None = None


class DecisionsRequest(_Body):
    """Decisions that are wanted; with `sign` each comes with a signed token, or null where it must not be kept."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"requests": [{"request_key": "visit-17", "unit_id": "u1"}]}]},
    )
    requests: Annotated[list[DecisionQuery], Field(min_length=1)]
    sign: bool = False


class DeliveryEvent(_Body):
    """What became of a send."""

    model_config = ConfigDict(extra="forbid", strict=False)  # times come as texts
    delivery_id: Id
    unit_id: UnitId
    status: Literal["sent", "delivered", "bounced", "failed", "suppressed"]
    delivered_at: AwareDatetime


class DeliveriesRequest(_Body):
    """Deliveries that happened; each status of a unit's delivery counts once."""

    model_config = ConfigDict(extra="forbid", strict=False)  # times come as texts
    deliveries: Annotated[list[DeliveryEvent], Field(min_length=1)]


class OutcomeEvent(_Body):
    """Something that a unit did, with its amount."""

    model_config = ConfigDict(extra="forbid", strict=False)  # times come as texts
    event_id: Id
    unit_id: UnitId
    outcome: Id
    value: FiniteFloat
    occurred_at: AwareDatetime


class OutcomesRequest(_Body):
    """Outcomes that happened; each event counts once for its unit and outcome."""

    model_config = ConfigDict(extra="forbid", strict=False)  # times come as texts
    outcomes: Annotated[list[OutcomeEvent], Field(min_length=1)]


# --------------------------------------------------------------------------------------------------------------------
# What is served.

StoreAnswer: TypeAlias = tuple[Mapping[str, StoredUnit], bool]
"""What is published of the units of a request, and whether the store answered."""


@dataclass(frozen=True)
class _Open:
    """A version with all that answers come from."""

    version: ServedVersion
    scorer: Scorer
    policy: DecisionPolicy
    pacer: Pacer | None
    routing: Routing
    challenger: Scorer | None

    @property
    def model(self) -> dict[str, Any]:
        """The champion."""
        return self._named(self.version.manifest.model)

    def model_of(self, unit: str | None) -> dict[str, Any]:
        """The version that answers for a unit."""
        trial = self.version.manifest.challenger
        return self._named(trial) if trial and self.routing.is_challengers(unit) else self.model

    def scorer_of(self, unit: str | None) -> Scorer:
        """Its scorer."""
        return self.challenger if self.challenger and self.routing.is_challengers(unit) else self.scorer

    def _named(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": facts["name"], "version": facts["version"], "published": self.version.manifest.version}


class Served:
    """The version that a worker answers from, and the newer one it turns to.

    Args:
        config: The campaign's configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.conf = config, config.serving
        self.folder = serving_folder(config)
        self.now: _Open | None = None
        self.problem: str | None = None
        self._refused: str | None = None
        self.days: Mapping[str, DayCounts] = {}  # requests and money, where a budget is paced

    def newer(self) -> _Open | None:
        """Open and warm the version that is published now; None where it is served already, or is refused."""
        name = None
        try:
            name = current_version(self.folder)
            return self._opened(name)
        except Exception as error:  # whatever a damaged version or disk raises, the version at hand goes on
            self.problem = str(error) if isinstance(error, UpliftError) else f"{type(error).__name__} on opening {name}"
            if self._refused != name:
                REQUEST_LOG.error(json.dumps({"event": "version refused", "version": name, "reason": self.problem}))
            self._refused = name
            return None

    def _opened(self, name: str | None) -> _Open | None:
        if self.now is not None and name in (self.now.version.manifest.version, None):
            self.problem = None
            return None
        version = open_version(self.folder, self.conf.redis)
        scorer = _warm(version.model)
        challenger = None if version.challenger is None else _warm(version.challenger)
        pacer = None if self.conf.budget is None else Pacer(version.manifest, self.conf)
        policy, routing = DecisionPolicy(version.manifest, self.conf), Routing(version.manifest)
        return _Open(version, scorer, policy, pacer, routing, challenger)

    def turn_to(self, version: _Open | None) -> None:
        """Answer from this version, if any, from now on; between two requests, so that an answer comes from one."""
        if version is None:
            return
        before, self.now = self.now, version
        self.problem = self._refused = None
        if before is not None:
            before.version.units.close()

    @property
    def kept(self) -> tuple[str, ...]:
        """What `degraded` says while a newer version is refused."""
        return (KEPT,) if self.problem else ()

    def stored(self, units: Iterable[str | None]) -> StoreAnswer:
        """What is published of the units, and whether the store answered."""
        ids = list(dict.fromkeys(unit for unit in units if unit is not None))
        if self.now is None or not ids:
            return {}, True
        try:
            return self.now.version.units.get(ids), True
        except EnvironmentProblem:
            return {}, False


def _warm(content: bytes) -> Scorer:
    scorer = Scorer(load_any(content))
    scorer.warm()
    return scorer


@dataclass(frozen=True)
class UnitAnswer:
    """Effects on one unit: by which version, where from, how old its features are, and what could not be had."""

    unit_id: str | None
    effects: tuple[LevelEffect, ...]
    model: Mapping[str, Any]
    source: str
    age: float | None
    degraded: tuple[str, ...]
    new_categories: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {
            "unit_id": self.unit_id,
            "effects": [_effect(one) for one in self.effects],
            "model": self.model,
            "source": self.source,
            "feature_age_seconds": None if self.age is None else round(self.age, 3),
            "degraded": list(self.degraded),
            "new_categories": list(self.new_categories),
        }


def _effect(one: LevelEffect) -> dict[str, Any]:
    numbers = {"uplift": one.uplift, "uplift_se": one.uplift_se, "lower": one.lower, "upper": one.upper}
    shown = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"level": one.level, **shown, "low_support": one.low_support}


def answer_units(
    served: Served,
    queries: Mapping[str, tuple[str | None, Mapping[str, Any] | None]],
    published: StoreAnswer,
) -> list[UnitAnswer]:
    """Effects on units, each by the best that can be had: the model, the last batch run, the average.

    Args:
        served: With a version.
        queries: {place in the request: (id, features)} of each unit; either may be None.
        published: What `Served.stored` says of the units.

    Returns:
        The answers in the order of the queries.

    Raises:
        DataError: Features are not those of the model.
    """
    now, (stored, answered) = served.now, published
    assert now is not None
    judged = []
    for place, (unit, features) in queries.items():
        scorer = now.scorer_of(unit)
        try:
            one, why, age = _features_of(served, unit, stored.get(unit or ""), features, scorer)
        except DataError as error:
            raise DataError(f"{place}: {error}" if place else str(error)) from error
        if unit is not None and unit not in stored:
            why = (STORE_DOWN if not answered else UNKNOWN, *why)
        judged.append((unit, one, (*why, *served.kept), age, scorer))
    scores = {
        id(scorer): iter(scorer.effects([one for _, one, _, _, by in judged if one is not None and by is scorer]))
        for scorer in (now.scorer, now.challenger)
        if scorer is not None
    }
    answers = []
    for unit, one, why, age, scorer in judged:
        known, model = stored.get(unit or ""), now.model_of(unit)
        if one is not None:
            effects = next(scores[id(scorer)])
            answers.append(UnitAnswer(unit, effects, model, MODEL_SOURCE, age, why, one.new_categories))
            continue
        batch, source = None if known is None else stored_effects(now.version.manifest, known), BATCH
        if batch is None:
            batch, source = _averages(now), AVERAGE
        answers.append(UnitAnswer(unit, batch, model, source, age, (*why, source)))
    return answers


def _features_of(
    served: Served, unit: str | None, stored: StoredUnit | None, sent: Mapping[str, Any] | None, scorer: Scorer
) -> tuple[EncodedUnit | None, tuple[str, ...], float | None]:
    """A unit's features as a model takes them, None where they are not complete; what is degraded; their age."""
    assert served.now is not None
    encoder = scorer.encoder
    if stored is None:
        if sent is None:
            return None, (), None
        if unit is not None and set(sent) < set(encoder.names):
            return None, (NOT_COMPLETE,), None
        return encoder.encode(sent), (), 0.0
    names = (name for name, _ in served.now.version.manifest.features)
    features = dict(zip(names, stored.features, strict=True))
    if sent is not None:
        features.update(sent)
    complete = sent is not None and set(encoder.names) <= set(sent)
    age = 0.0 if complete else max(time.time() - stored.at / 1e6, 0.0)
    why = (STALE,) if age > served.conf.ttl_minutes * 60 else ()
    try:
        return encoder.encode(features), why, age
    except DataError:
        if sent is not None:
            raise
        return None, why, age  # what was published does not fit, which the caller cannot mend


def _averages(now: _Open) -> tuple[LevelEffect, ...]:
    """Effects of a unit of which nothing is known: the mean over all, with the spread of units in its error."""
    means, nan = now.version.manifest.averages, (float("nan"), float("nan"))
    levels = now.version.manifest.levels[1:]
    return tuple(LevelEffect(level, *means.get(level, nan), True) for level in levels)


# --------------------------------------------------------------------------------------------------------------------
# The application.


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        paths = ("path",)
        self.requests = Counter("uplift_requests", "Requests answered", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "uplift_request_seconds", "Seconds until a request was answered", paths, registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2.5),
        )  # fmt: skip
        self.degraded = Counter("uplift_degraded", "Answers that lack something", ("why",), registry=self.registry)
        self.degraded.labels(LOG_DOWN)  # 0 from the start: alerts see the first one
        self.decisions = Counter("uplift_decisions", "Decisions made", ("level", "explored"), registry=self.registry)
        newest: dict[str, Any] = {"registry": self.registry, "multiprocess_mode": "livemostrecent"}
        self.published = Gauge("uplift_published_seconds", "When the version was published", **newest)
        self.spent = Gauge("uplift_budget_spent", "Money that the day's decisions have cost", **newest)
        self.price = Gauge("uplift_budget_price", "What money counts for beside itself at the moment", **newest)

    def lacks(self, reasons: Iterable[str]) -> None:
        for why in reasons:
            self.degraded.labels(why).inc()

    def observe(self, path: str, status: int, seconds: float) -> None:
        path = path if path in NEEDS or path in ("/health/live", "/health/ready") else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Of all workers, where they share a folder of counters."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return bytes(generate_latest(registry))


def serving_app(config: Config) -> FastAPI:
    """Make the service of one campaign.

    Args:
        config: Its configuration.

    Returns:
        The application; its start loads and warms the published version, so that it is ready when it answers.

    Raises:
        ConfigError: Ids are pseudonyms, or the serving folder is not known.
        EnvironmentProblem: The log of decisions cannot be written.
    """
    check_plain_ids(config)
    served, metrics = Served(config), _Metrics()
    overload = Overload(config.serving.max_running, metrics.observe)
    keys = signing_keys(config.serving)
    log = LogWriter(DecisionLog(decision_log_file(config)))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        served.turn_to(await asyncio.to_thread(served.newer))
        await _update_budget(served, log, metrics)
        gc.collect()
        gc.freeze()  # all that was imported and loaded is never looked through again: that takes a seventh of a second
        task = asyncio.create_task(_keep_fresh(served, log, metrics))
        yield {OVERLOAD: overload}
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        log.close()

    app = FastAPI(title=f"Uplift of {config.campaign}", version=__version__, lifespan=life, redoc_url=None)
    app.state.served, app.state.overload = served, overload
    app.add_middleware(Guard, conf=config.serving, observe=metrics.observe, overload=overload)
    _add_errors(app)
    _add_health(app, served, metrics)
    _add_effects(app, served, metrics)
    _add_decisions(app, served, log, metrics, keys)
    _add_public_keys(app, keys)
    _add_feedback(app, served, log, metrics)
    return app


def app_from_environment() -> FastAPI:
    """The service that `uplift serve` starts its workers with."""
    file, overrides = json.loads(os.environ[SETTINGS])
    return serving_app(load_config(Path(file), tuple(overrides)))


async def _keep_fresh(served: Served, log: LogWriter, metrics: _Metrics) -> None:
    while True:
        if served.now is not None:
            metrics.published.set(served.now.version.manifest.published_at / 1e6)
        await asyncio.sleep(_REFRESH)
        served.turn_to(await asyncio.to_thread(served.newer))
        await _update_budget(served, log, metrics)


async def _update_budget(served: Served, log: LogWriter, metrics: _Metrics) -> None:
    """See what all workers have spent; where the log cannot be read, the counts at hand go on."""
    if served.now is None or (pacer := served.now.pacer) is None:
        return
    now = time.time()
    with suppress(EnvironmentProblem):
        served.days = await asyncio.to_thread(log.spending, pacer.day(now))
    metrics.spent.set(pacer.spent(now, served.days))
    metrics.price.set(pacer.price(now, served.days))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UpliftError)
    async def refused(request: Request, error: UpliftError) -> JSONResponse:
        status = 409 if isinstance(error, ConflictError) else 503 if isinstance(error, EnvironmentProblem) else 422
        headers = {"retry-after": "1"} if status == 503 else None
        return JSONResponse(_error(request, str(error)), status, headers)

    @app.exception_handler(HTTPException)  # what the framework refuses: another method, a body it cannot read
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_error(request, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path, said = first["loc"], first["msg"]
        if "features" in path[:-2]:  # said of the first kind alone that a feature may have
            path, said = path[:-1], "send a number, a text of at most 512 characters, true, false or null"
        where = ".".join(str(part) for part in path if part != "body")[:200]
        return JSONResponse(_error(request, f"{where or 'body'}: {said}"), 422)


def _error(request: Request, sentence: str) -> dict[str, Any]:
    text = sentence.encode("utf-8", "replace").decode()  # half a character of what was sent has no JSON
    return {"error": text, "request_id": request.state.request_id}


def _add_health(app: FastAPI, served: Served, metrics: _Metrics) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the worker runs."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether a version is loaded and warm; `problem` says why a newer one is not used."""
        facts: dict[str, Any] = {"status": "ready" if served.now else "not ready", "problem": served.problem}
        if served.now is not None:
            campaign, control = served.now.version.manifest.campaign, served.now.policy.control
            facts |= {"campaign": campaign, "control": control, "model": served.now.model}
        return JSONResponse(facts, 200 if served.now else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def counters() -> Response:
        """Counters of all workers, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _now(served: Served) -> _Open:
    if served.now is None:
        raise EnvironmentProblem("no version is loaded yet: run `uplift publish`, or try again in a moment")
    return served.now


def _check_number(n: int, conf: Serving) -> None:
    if n > conf.max_units:
        raise DataError(f"the request has {n} units, {conf.max_units} at most: send them in parts")


def _add_effects(app: FastAPI, served: Served, metrics: _Metrics) -> None:
    @app.post("/v1/effects")
    async def effects(body: EffectsRequest) -> JSONResponse:
        """Effect of every level on one unit or several, with 95 % intervals."""
        now, one = _now(served), (body.unit_id, body.features)
        if (body.units is not None) == (one != (None, None)):
            raise DataError("name one unit by unit_id or features, or several under units")
        queries = [one] if body.units is None else [(unit.unit_id, unit.features) for unit in body.units]
        _check_number(len(queries), served.conf)
        for place, query in enumerate(queries):
            if query == (None, None):
                raise DataError(f"units[{place}] has neither unit_id nor features: give one of them")
        places = [""] if len(queries) == 1 else [f"units[{place}]" for place in range(len(queries))]
        published = served.stored(unit for unit, _ in queries)
        answers = answer_units(served, dict(zip(places, queries, strict=True)), published)
        metrics.lacks(why for answer in answers for why in answer.degraded)
        shown = [answer.to_dict() for answer in answers]
        return JSONResponse({"outcome": now.version.manifest.outcome, "model": now.model, "answers": shown})


def _add_decisions(app: FastAPI, served: Served, log: LogWriter, metrics: _Metrics, keys: SigningKeys | None) -> None:
    @app.post("/v1/decisions")
    async def decisions(body: DecisionsRequest) -> JSONResponse:
        """The level to give each unit now; an answer is on disk before it is sent."""
        now = _now(served)
        _check_number(len(body.requests), served.conf)
        if body.sign and keys is None:
            raise DataError(_NOT_SIGNED)
        published = served.stored(one.unit_id for one in body.requests)
        entries = []
        for query, fresh in zip(body.requests, _fresh_effects(served, body.requests, published), strict=True):
            effects = fresh.effects if fresh is not None and fresh.source == MODEL_SOURCE else None
            at = time.time()
            price = None if now.pacer is None else now.pacer.price(at, served.days)
            stored = published[0].get(query.unit_id)
            decision = now.policy.decide(query.unit_id, stored, effects, published[1], price)
            facts = {
                "request_key": query.request_key, "unit_id": query.unit_id, "campaign": now.version.manifest.campaign,
                "level": decision.level, "reason": decision.reason, "propensity": decision.propensity,
                "explored": decision.explored, "overall_propensity": decision.overall,
                "decided_at": _moment(at), "expires_at": _moment(at + served.conf.decision_minutes * 60),
                "model": now.model_of(query.unit_id), "degraded": _lacking(served, query.unit_id, fresh, published),
            }  # fmt: skip
            if now.routing.shadow and stored is not None and decision.overall is not None:
                facts["shadow"] = _shadow(served, now, query, stored, price)
            entries.append(_paced(LogEntry(DECISION, query.request_key, facts), decision, now, at, price))
        try:
            logged = await log.write(entries)
        except EnvironmentProblem:
            metrics.lacks([LOG_DOWN] * len(entries))
            unlogged = [_unlogged(one.body, now.policy.control) for one in entries]
            return await _sent(unlogged, keys if body.sign else None, served.conf)
        for one in logged:
            if one.new:
                metrics.decisions.labels(one.body["level"], str(one.body["explored"]).lower()).inc()
                metrics.lacks(one.body["degraded"])
        answers = [{name: value for name, value in one.body.items() if name != "shadow"} for one in logged]
        answers = [{**answer, "logged": True} for answer in answers]
        over = [is_over(entry, one) for entry, one in zip(entries, logged, strict=True)]
        return await _sent(answers, keys if body.sign else None, served.conf, over)


_NOT_SIGNED = "decisions are not signed here: name a folder of keys in serving.signing.keys"


async def _sent(
    decisions: list[dict[str, Any]], keys: SigningKeys | None, conf: Serving, over: Sequence[bool] = ()
) -> JSONResponse:
    """The answer, with a token for each decision that is not over where keys are given; it may be kept as long as all
    tokens hold."""
    cache = {"cache-control": "no-store"}
    if keys is not None and conf.signing is not None:
        seconds = conf.signing.seconds
        ended = over or [False] * len(decisions)
        tokens = await asyncio.to_thread(
            lambda: [None if end else keys.token(one, seconds) for one, end in zip(decisions, ended, strict=True)]
        )
        decisions = [{**one, "token": token} for one, token in zip(decisions, tokens, strict=True)]
        if None not in tokens:
            last = min(datetime.fromisoformat(one["expires_at"]).timestamp() for one in decisions)
            cache = {"cache-control": f"private, max-age={int(max(min(seconds, last - time.time()) - 1.0, 0.0))}"}
    return JSONResponse({"decisions": decisions}, headers=cache)


def _add_public_keys(app: FastAPI, keys: SigningKeys | None) -> None:
    @app.get(JWKS_PATH)
    async def public_keys(request: Request) -> Response:
        """Public keys of signed decisions, as a JSON Web Key Set."""
        if keys is None:
            return JSONResponse(_error(request, _NOT_SIGNED), 404)
        content = json.dumps(keys.jwks()).encode()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"cache-control": f"public, max-age={JWKS_SECONDS}", "etag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/jwk-set+json", headers=headers)


def _shadow(
    served: Served, now: _Open, query: DecisionQuery, stored: StoredUnit, price: float | None
) -> dict[str, Any] | None:
    """What the policy would decide by the challenger's effects, for the log alone; None where it cannot tell."""
    trial, scorer = now.version.manifest.challenger, now.challenger
    assert trial is not None and scorer is not None
    try:
        one, _, _ = _features_of(served, query.unit_id, stored, query.features, scorer)
    except DataError:  # it takes other features: nobody who waits for an answer is to know
        return None
    if one is None:
        return None
    level, reason = now.policy.by_policy(stored, scorer.effects([one])[0], price)
    return {"name": trial["name"], "version": trial["version"], "level": level, "reason": reason}


def _paced(entry: LogEntry, decision: Decision, now: _Open, at: float, price: float | None) -> LogEntry:
    """The entry with what it costs of the day's budget, and with what is said where that is spent."""
    if now.pacer is None or price is None or decision.overall is None:  # no design chose the level: it is the control
        return entry
    facts = {"level": now.policy.control, "reason": SPENT, "propensity": 1.0, "overall_propensity": None}
    otherwise = {**entry.body, **facts, "explored": False}
    return replace(entry, spend=now.pacer.spend(decision.level, at, price), otherwise=otherwise)


def _fresh_effects(
    served: Served, requests: Sequence[DecisionQuery], published: StoreAnswer
) -> list[UnitAnswer | None]:
    """Effects by the features that requests bring; None for requests without, whose plan needs no model."""
    queries = {
        f"requests[{place}]": (one.unit_id, one.features)
        for place, one in enumerate(requests)
        if one.features is not None
    }
    answers = iter(answer_units(served, queries, published))
    return [None if one.features is None else next(answers) for one in requests]


def _lacking(served: Served, unit: str, fresh: UnitAnswer | None, published: StoreAnswer) -> list[str]:
    """What a decision could not rest on; where effects come from in place of the model is nothing to a decision."""
    if fresh is not None:
        return [why for why in fresh.degraded if why not in (BATCH, AVERAGE)]
    stored, answered = published
    missing = () if unit in stored else (UNKNOWN if answered else STORE_DOWN,)
    return [*missing, *served.kept]


def _unlogged(facts: Mapping[str, Any], control: str) -> dict[str, Any]:
    """The control in place of a decision that nobody would know of afterwards."""
    said = {"level": control, "reason": NOT_LOGGED, "propensity": None, "explored": False, "logged": False}
    said |= {"overall_propensity": None}
    facts = {name: value for name, value in facts.items() if name != "shadow"}
    return {**facts, **said, "degraded": [*facts["degraded"], LOG_DOWN]}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _add_feedback(app: FastAPI, served: Served, log: LogWriter, metrics: _Metrics) -> None:
    @app.post("/v1/deliveries")
    async def deliveries(body: DeliveriesRequest) -> JSONResponse:
        """Take in what became of sends."""
        _check_number(len(body.deliveries), served.conf)
        return await _logged(DELIVERY, [((one.unit_id, one.delivery_id, one.status), one) for one in body.deliveries])

    @app.post("/v1/outcomes")
    async def outcomes(body: OutcomesRequest) -> JSONResponse:
        """Take in what units did."""
        _check_number(len(body.outcomes), served.conf)
        return await _logged(OUTCOME, [((one.unit_id, one.outcome, one.event_id), one) for one in body.outcomes])

    async def _logged(kind: str, rows: Sequence[tuple[tuple[str, ...], _Body]]) -> JSONResponse:
        facts = {"campaign": served.config.campaign, "known_at": _moment(time.time())}
        entries = [LogEntry(kind, json.dumps(key), {**row.model_dump(mode="json"), **facts}) for key, row in rows]
        try:
            new = sum(one.new for one in await log.write(entries))
        except EnvironmentProblem:
            metrics.lacks([LOG_DOWN])
            raise
        return JSONResponse({"accepted": new, "known": len(rows) - new}, 202)
