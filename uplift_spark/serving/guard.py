"""The door of the service: keys, limits and timeouts before a request is looked at, one log line after it.

Everything here holds for a worker; rates and requests at hand are counted per worker. No line of the log holds a unit's
id or its features, and no answer a stack trace.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import time
import traceback
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.tokens import JWKS_PATH

SCOPES = ("effects", "decide", "metrics")
NEEDS = {
    "/v1/effects": "effects",
    "/v1/decisions": "decide",
    "/v1/deliveries": "decide",
    "/v1/outcomes": "decide",
    "/metrics": "metrics",
}
"""Scope that a path needs."""
OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json", "/docs", "/docs/oauth2-redirect", JWKS_PATH})
"""Paths that need no key: health, the description of the API, public keys. They take no body; no other paths exist."""
NEVER_REFUSED = OPEN | {"/metrics"}
"""Paths that are answered however much there is to do."""

REQUEST_LOG = logging.getLogger("uplift_spark.serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY_BYTES = 32
_TOGETHER = 8  # requests that are answered before the worker sees to those who came meanwhile
_BURST = 2.0  # seconds of its rate that a key may use at once

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Observe: TypeAlias = Callable[[str, int, float], None]


# --------------------------------------------------------------------------------------------------------------------
# Keys: the file holds a line for each, `name scope,scope sha256`; the key itself is shown once, when it is made.


def new_key(file: Path, name: str, scopes: tuple[str, ...]) -> str:
    """Make an API key and add its hash to the file.

    Args:
        file: File of keys; made, readable by its owner alone, where it is not there.
        name: Of whoever gets the key; letters, digits and underscores.
        scopes: What it opens, of `SCOPES`.

    Returns:
        The key, which is kept nowhere.

    Raises:
        ConfigError: The name is taken, or a scope is unknown.
    """
    checked_name(name, "name of the key")
    if not scopes or set(scopes) - set(SCOPES):
        raise ConfigError(f"scopes {','.join(scopes) or '(none)'} are not known: choose from {', '.join(SCOPES)}")
    if file.exists() and any(line.split()[0] == name for line in _lines(file)):
        raise ConfigError(f"{file} has a key {name!r} already: remove its line first, or choose another name")
    key = secrets.token_urlsafe(_KEY_BYTES)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as handle:
        handle.write(f"{name} {','.join(scopes)} {_hash(key)}\n")
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()  # keys are random: nothing is gained by a slow hash


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise ConfigError(f"serving.keys {file} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class Caller:
    """Whose key came with a request, and what it opens."""

    name: str
    scopes: frozenset[str]


class KeyRing:
    """The keys of a file, read again whenever it changes; without a file whoever reaches loopback may do everything.

    Args:
        file: File of keys, or None.

    Raises:
        ConfigError: The file cannot be read, or a line is none.
    """

    def __init__(self, file: Path | None) -> None:
        self._file, self._stamp = file, (0, 0)
        self._callers: dict[str, Caller] = {}
        if file is not None:
            self._callers = self._read(file)
            self._stamp = self._stamp_of(file)

    def caller(self, headers: MutableMapping[str, str]) -> Caller | None:
        """Whose request this is, by `Authorization: Bearer KEY` or `X-API-Key: KEY`; None for an unknown key."""
        if self._file is None:
            return Caller("loopback", frozenset(SCOPES))
        self._refresh(self._file)
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # The digest of what was sent is looked up, so that the time it takes says nothing about the keys there are.
        return self._callers.get(_hash(key)) if key else None

    def _refresh(self, file: Path) -> None:
        try:
            stamp = self._stamp_of(file)
            if stamp != self._stamp:
                self._callers, self._stamp = self._read(file), stamp
        except (ConfigError, OSError) as error:  # half-written: the keys that were read last stay
            REQUEST_LOG.warning(json.dumps({"event": "keys not read", "reason": str(error)}))

    @staticmethod
    def _stamp_of(file: Path) -> tuple[int, int]:
        state = file.stat()
        return state.st_mtime_ns, state.st_size

    @staticmethod
    def _read(file: Path) -> dict[str, Caller]:
        callers = {}
        for number, line in enumerate(_lines(file), 1):
            parts = line.split()
            scopes = frozenset(parts[1].split(",")) if len(parts) == 3 else frozenset()
            if not scopes or scopes - set(SCOPES) or not re.fullmatch(r"[0-9a-f]{64}", parts[2]):
                raise ConfigError(
                    f"serving.keys {file}: key {number} is no `name scope,scope sha256`: make it with "
                    "`uplift serve --new-key`"
                )
            callers[parts[2]] = Caller(parts[0], scopes)
        return callers


class RateLimit:
    """A bucket of tokens for each caller: `rate` a second, and what _BURST seconds bring at most."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(rate * _BURST, 1.0), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, caller: str) -> float:
        """Take a token of the caller's; 0, or the seconds until there is one."""
        now = self._clock()
        tokens, then = self._buckets.get(caller, (self._most, now))
        tokens = min(tokens + (now - then) * self._rate, self._most)
        if tokens < 1.0:
            self._buckets[caller] = (tokens, now)
            return (1.0 - tokens) / self._rate
        self._buckets[caller] = (tokens - 1.0, now)
        return 0.0


# --------------------------------------------------------------------------------------------------------------------
# The door.


class Overload:
    """Counts the requests that a worker has at hand, and says when they are too many.

    A request counts once all of it is there: heads and bodies that never come take nobody's place. Answers are computed
    one after another, so each request more makes all of them wait longer; after a few the worker sees to those who come
    meanwhile, so that who must be refused learns it soon.

    Args:
        most: Requests that a worker may have at hand.
        observe: Is called with path, status and seconds of every request that is refused by its head alone.
    """

    def __init__(self, most: int, observe: Observe) -> None:
        self._most, self._observe = most, observe
        self.running = 0
        self._begun, self._queue = 0, deque[asyncio.Future[None]]()
        self._refused, self._said = 0, 0.0

    async def turn(self) -> None:
        """Wait for one's turn."""
        loop = asyncio.get_running_loop()
        if self._begun < _TOGETHER:
            if not self._begun:
                loop.call_soon(self._next)
            self._begun += 1
            return
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append(future)
        await future

    def _next(self) -> None:
        """Once the loop has been round: the next few."""
        self._begun = min(_TOGETHER, len(self._queue))
        for _ in range(self._begun):
            future = self._queue.popleft()
            if not future.cancelled():  # the service ends
                future.set_result(None)
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next)

    def admits(self, path: str) -> bool:
        """Whether a request whose head is there may come in; one that may not counts as answered."""
        if self.running < self._most or path in NEVER_REFUSED:
            return True
        self._observe(path if path in NEEDS else "other", 503, 0.0)
        self._refused += 1
        if (now := time.monotonic()) - self._said >= 1.0:  # a line a second, not one a request: refusing costs little
            REQUEST_LOG.warning(json.dumps({"event": "overloaded", "refused": self._refused}))
            self._refused, self._said = 0, now
        return False

    @property
    def exceeded(self) -> bool:
        """Whether more requests are there than were admitted: their bodies came late, and together."""
        return self.running > self._most


class Place:
    """One request's place among those at hand."""

    def __init__(self, overload: Overload) -> None:
        self._overload, self._state = overload, "coming"

    def take(self) -> None:
        """All of the request is there."""
        if self._state == "coming":
            self._state = "taken"
            self._overload.running += 1

    def leave(self) -> None:
        """It is answered, or nobody waits for an answer."""
        if self._state == "taken":
            self._overload.running -= 1
        self._state = "left"


OVERLOADED = "too many requests are under way: try again"
PLACE = "place"
"""Where a request's state has its place, if its connection has one for it."""


class _Refused(Exception):
    def __init__(self, status: int, sentence: str, wait: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.wait = status, sentence, wait


class Guard:
    """ASGI middleware around the whole service.

    Args:
        app: The service.
        conf: Section `serving` of the configuration.
        observe: Is called with path, status and seconds of every request.
        overload: Counts the requests at hand.
    """

    def __init__(self, app: App, conf: Serving, observe: Observe, overload: Overload) -> None:
        self._app, self._conf, self._observe, self._overload = app, conf, observe, overload
        self._keys = KeyRing(None if conf.keys is None else Path(conf.keys))
        self._rates = RateLimit(conf.rate)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here: 401, 403, 404, 408, 413, 429, 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        place: Place = state.get(PLACE) or Place(self._overload)
        answer = _Answer(send, request_id)
        start, caller, path = time.perf_counter(), None, scope["path"]
        try:
            if path in OPEN:
                await self._app(scope, _replay(b"", receive), answer.send)
            else:
                caller = self._admit(path, headers)
                body = await self._body(headers, receive)
                place.take()
                if self._overload.exceeded and path not in NEVER_REFUSED:
                    raise _Refused(503, OVERLOADED, 1.0)
                await self._overload.turn()
                await self._app(scope, _replay(body, receive), answer.send)
        except _Refused as refused:
            await answer.refuse(refused.status, refused.sentence, refused.wait)
        except Exception as error:
            _log_error(request_id, error)
            await answer.refuse(500, f"something went wrong here; the log has it under request {request_id}")
        finally:
            place.leave()
            seconds = time.perf_counter() - start
            self._observe(path, answer.status, seconds)
            _log_request(scope, request_id, caller, answer.status, seconds)

    def _admit(self, path: str, headers: MutableMapping[str, str]) -> Caller:
        needed = NEEDS.get(path)
        if needed is None:
            raise _Refused(404, "there is no such path: /docs describes those there are")
        caller = self._keys.caller(headers)
        if caller is None:
            raise _Refused(401, "the request has no API key that is known here: send Authorization: Bearer KEY")
        if needed not in caller.scopes:
            raise _Refused(403, f"the key of {caller.name} does not open {path}: it needs the scope {needed}")
        wait = self._rates.wait(caller.name)
        if wait:
            raise _Refused(429, f"the key of {caller.name} is used more often than agreed: try again later", wait)
        return caller

    async def _body(self, headers: MutableMapping[str, str], receive: Receive) -> bytes:
        """The whole body. It is counted while it arrives: chunked bodies do not say how long they are."""
        most = self._conf.max_bytes
        too_large = _Refused(413, f"the body is larger than {most} bytes: send fewer units at once")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._conf.timeout_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "the connection was closed before the body was there")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise _Refused(408, f"the body did not arrive within {self._conf.timeout_seconds:g} seconds") from None


class _Answer:
    """What went out: the first status counts, and nothing is said twice."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id, self.status = send, request_id, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self._request_id.encode())]
        await self._send(message)

    async def refuse(self, status: int, sentence: str, wait: float | None = None) -> None:
        if self.status:
            return  # the answer is under way
        body = json.dumps({"error": sentence, "request_id": self._request_id}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if wait is not None:
            headers.append((b"retry-after", str(max(1, round(wait + 0.5))).encode()))
        if status in (408, 413):
            headers.append((b"connection", b"close"))  # what is left of the body is not read
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _log_request(scope: Message, request_id: str, caller: Caller | None, status: int, seconds: float) -> None:
    known = scope["path"] if scope["path"] in NEEDS or scope["path"] in OPEN else "other"
    facts = {"event": "request", "request_id": request_id, "method": scope["method"], "path": known}
    facts |= {"status": status, "ms": round(seconds * 1000, 3), "caller": caller.name if caller else None}
    REQUEST_LOG.info(json.dumps(facts))


def _log_error(request_id: str, error: Exception) -> None:
    """Type and places of an error; its message, which may hold what was sent, stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    facts = {"event": "error", "request_id": request_id, "error": type(error).__name__, "where": where}
    REQUEST_LOG.error(json.dumps(facts))
