"""A caller of HTTP for load: at a fixed rate, whatever the service does, or so many clients, each in turn.

One thread and a poll, as a library's request costs the caller more than the service: the machine is theirs together.

At a fixed rate a request's time counts from when it was due, not from when a connection was free: a service that stops
for a second has made all wait who came in that second.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

WAIT = 10.0  # seconds after which an answer is given up
TRIES = 3  # of a request whose connection broke, as a client makes them

Check = Callable[["Question", int, bytes], str | None]
"""What is wrong with an answer: from the request, its status and body; None: nothing."""


@dataclass(frozen=True)
class Question:
    """One request: `what` is whatever its check must know."""

    path: str
    body: bytes
    what: object = None

    def to_bytes(self) -> bytes:
        """As it goes over the wire."""
        head = f"POST {self.path} HTTP/1.1\r\nhost: loopback\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclass
class Tally:
    """What callers saw.

    seconds, statuses  of each answer, in the order in which they were due
    broken   connections that broke before an answer, whose request was sent again
    lost     requests that got no answer
    kept     requests that were not sent, as every connection had one under way
    faults   what was wrong with answers, in words
    lasted   seconds of all
    """

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    lost: int = 0
    kept: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lasted: float = 0.0

    @property
    def by_status(self) -> dict[int, int]:
        """Answers of each status."""
        return dict(sorted(Counter(self.statuses).items()))

    def of(self, *statuses: int) -> np.ndarray:
        """Milliseconds of the answers with these statuses."""
        some = np.isin(np.array(self.statuses, int), statuses)
        return 1000 * np.array(self.seconds)[some]

    @property
    def errors(self) -> int:
        """Answers of 5xx, without those that say that too many are under way."""
        return sum(n for status, n in self.by_status.items() if status >= 500 and status != 503)


def percentile(values: np.ndarray, share: float) -> float:
    """Of milliseconds; NaN of none."""
    return float(np.percentile(values, 100 * share)) if len(values) else float("nan")


@dataclass
class _Asked:
    """A request under way: when it was due, its place among all, how often it was sent, what came back so far."""

    question: Question
    due: float
    place: int
    attempt: int = 1
    sent: float = 0.0
    came: bytes = b""


def _answer_in(came: bytes) -> tuple[int, bytes, bool] | None:
    """Status, body and whether the connection ends, once all is there."""
    head, apart, body = came.partition(b"\r\n\r\n")
    if not apart:
        return None
    lower = head.lower()
    at = lower.find(b"content-length:")
    length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return (int(head[9:12]), body[:length], b"connection: close" in lower) if len(body) >= length else None


class Callers:
    """Connections to a port of loopback, and what they saw.

    Args:
        port: Of the service.
        check: Judges each answer.
        most: Connections, each with one request under way at most.
    """

    def __init__(self, port: int, check: Check | None, most: int) -> None:
        self._port, self._check, self._most, self.tally = port, check, most, Tally()
        self._poll = select.epoll()
        self._idle: list[socket.socket] = []
        self._busy: dict[int, tuple[socket.socket, _Asked]] = {}
        self._again: list[tuple[float, int, _Asked]] = []

    def ask(self, dues: Iterator[float] | None, n: int, make: Callable[[int], Question]) -> Tally:
        """Make n requests, each when it is due; or as soon as a connection is free."""
        self.tally.seconds, self.tally.statuses = [float("nan")] * n, [0] * n
        start, i = time.perf_counter(), 0
        due = None if dues is None else start + next(dues)
        while i < n or self._busy or self._again:
            now = time.perf_counter()
            while self._again and self._again[0][0] <= now and len(self._busy) < self._most:
                self._send(heapq.heappop(self._again)[2])
            while i < n and (len(self._busy) < self._most if due is None else due <= now):
                if len(self._busy) < self._most:
                    self._send(_Asked(make(i), now if due is None else due, i))
                else:
                    self.tally.kept += 1
                i += 1
                if dues is not None and i < n:
                    due = start + next(dues)
            self._receive(0.001 if self._again else 0.2 if due is None or i >= n else max(due - time.perf_counter(), 0))
        self.tally.lasted = time.perf_counter() - start
        for one in self._idle:
            one.close()
        self._poll.close()
        return self.tally

    def _send(self, asked: _Asked) -> None:
        asked.sent, asked.came, one = time.perf_counter(), b"", None
        try:
            one = self._idle.pop() if self._idle else self._connected()
            one.sendall(asked.question.to_bytes())
        except OSError:
            if one is not None:
                self._close(one)
            self._failed(asked)
            return
        self._busy[one.fileno()] = one, asked

    def _connected(self) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self._port), timeout=WAIT)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(one, select.EPOLLIN)
        return one

    def _close(self, one: socket.socket) -> None:
        self._poll.unregister(one)
        one.close()

    def _failed(self, asked: _Asked) -> None:
        """Again, as a client does; after some attempts no more."""
        self.tally.broken += 1
        asked.attempt += 1
        if asked.attempt > TRIES:
            self.tally.lost += 1
        else:
            heapq.heappush(self._again, (time.perf_counter() + 0.1 * asked.attempt, asked.place, asked))

    def _receive(self, wait: float) -> None:
        for number, _ in self._poll.poll(wait):
            if number not in self._busy:  # closed by the service while nobody asked
                for one in [one for one in self._idle if one.fileno() == number]:
                    self._idle.remove(one)
                    self._close(one)
                continue
            one, asked = self._busy[number]
            try:
                came = one.recv(1 << 18)
            except OSError:
                came = b""
            asked.came += came
            answer = _answer_in(asked.came)
            if came and answer is None:
                continue
            del self._busy[number]
            if answer is None or answer[2]:
                self._close(one)
            else:
                self._idle.append(one)
            if answer is None:
                self._failed(asked)
            else:
                self._answered(asked, *answer[:2])
        late = time.perf_counter() - WAIT
        for number, (one, asked) in [item for item in self._busy.items() if item[1][1].sent < late]:
            del self._busy[number]
            self._close(one)
            self._failed(asked)

    def _answered(self, asked: _Asked, status: int, body: bytes) -> None:
        self.tally.seconds[asked.place] = time.perf_counter() - asked.due
        self.tally.statuses[asked.place] = status
        if self._check is not None and (fault := self._check(asked.question, status, body)):
            self.tally.faults[fault] += 1


def at_rate(
    port: int,
    rate: float,
    seconds: float,
    make: Callable[[int], Question],
    check: Check | None = None,
    most: int = 1000,
) -> Tally:
    """So many requests a second for so long, each when it is due; not sent where all connections are taken."""
    n = int(rate * seconds)
    return Callers(port, check, most).ask((i / rate for i in range(n)), n, make)


def in_turn(
    port: int, clients: int, requests: int, make: Callable[[int], Question], check: Check | None = None
) -> Tally:
    """So many clients, each of which asks again once it is answered, until all requests are made."""
    return Callers(port, check, clients).ask(None, requests, make)
