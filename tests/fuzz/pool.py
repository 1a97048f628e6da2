"""Mutations in worker processes with a bound on memory and time: a crash of a worker is a result, not an end.

A worker says which mutation it begins before it begins it, so that one that kills or hangs it is known.
"""

from __future__ import annotations

import json
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SECONDS = 10.0  # of computing that a mutation may take
_PATIENCE = 300.0  # seconds of the clock after which a worker that computes nothing is ended, too
MEMORY = 2 << 30  # bytes that a mutation may take beyond what the worker needs for an intact input
CRASH, HANG, BIG, UNTYPED, ACCEPTED = "segfault", "hang", "over 2 GB", "untyped error", "changed structure loaded"
FAILURES = (CRASH, HANG, BIG, UNTYPED, ACCEPTED)
_ENDED_BY_CLOCK = -signal.SIGPROF


@dataclass(frozen=True)
class Work:
    """Mutations first ≤ number < first + count of a target."""

    target: str
    seed: int
    first: int
    count: int


@dataclass(frozen=True)
class Result:
    """What became of one mutation."""

    number: int
    kind: str
    verdict: str
    detail: str


def run(work: Work, workers: int, progress: Callable[[str], None]) -> list[Result]:
    """Results of all mutations, in order."""
    step = -(-work.count // workers)
    spans = [
        (low, min(low + step, work.first + work.count)) for low in range(work.first, work.first + work.count, step)
    ]
    drivers = [_Driver(work, *span) for span in spans]
    results: list[Result] = []
    with selectors.DefaultSelector() as selector:
        for driver in drivers:
            driver.start(selector)
        while any(driver.alive for driver in drivers):
            for key, _ in selector.select(timeout=0.5):
                before = len(results) // 2000
                results += key.data.take(selector)
                if len(results) // 2000 > before:
                    bad = sum(result.verdict in FAILURES for result in results)
                    progress(f"  {len(results):,} of {work.count:,}, {bad} failures")
            for driver in drivers:
                results += driver.late(selector)
    return sorted(results, key=lambda result: result.number)


class _Driver:
    """One worker after another for mutations low ≤ number < high."""

    def __init__(self, work: Work, low: int, high: int) -> None:
        self.work, self.next, self.high, self.alive = work, low, high, True

    def start(self, selector: selectors.BaseSelector) -> None:
        arguments = [self.work.target, *map(str, (self.work.seed, self.next, self.high, SECONDS))]
        command = [sys.executable, "-m", "tests.fuzz.worker", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        self.begun, self.deadline, self.rest = None, time.monotonic() + _PATIENCE, b""
        selector.register(self.process.stdout, selectors.EVENT_READ, self)

    def take(self, selector: selectors.BaseSelector) -> Iterator[Result]:
        """Read what the worker wrote; at its end begin another one behind the mutation that killed it."""
        assert self.process.stdout is not None
        chunk = self.process.stdout.read1(1 << 16)
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            self.deadline = time.monotonic() + _PATIENCE
            number, *said = json.loads(line)
            if said:
                yield Result(number, *said)
                self.begun, self.next = None, number + 1
            else:
                self.begun = number
        if not chunk:
            code = self.process.wait()
            if self.begun is None and code:
                raise RuntimeError(f"the worker ended with {code} before mutation {self.next}")
            verdict = HANG if code == _ENDED_BY_CLOCK else CRASH
            yield from self._again(selector, verdict, f"exit code {code}")

    def late(self, selector: selectors.BaseSelector) -> Iterator[Result]:
        """End a worker that waits for something."""
        if self.alive and time.monotonic() > self.deadline:
            self.process.kill()
            self.process.wait()
            yield from self._again(selector, HANG, f"no answer in {_PATIENCE:.0f} s")

    def _again(self, selector: selectors.BaseSelector, verdict: str, detail: str) -> Iterator[Result]:
        selector.unregister(self.process.stdout)
        self.process.stdout.close()
        if self.begun is not None:
            yield Result(self.begun, "", verdict, detail)
            self.next = self.begun + 1
        if self.next < self.high:
            self.start(selector)
        else:
            self.alive = False


def bound_time(seconds: float) -> None:
    """Let the kernel end this process unless it comes here again within so many seconds of computing."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def bound_memory() -> None:
    """Let this process map no more than MEMORY beyond what it has mapped already."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))


def table(results: list[Result]) -> str:
    """Mutations by kind (rows) and verdict (columns)."""
    verdicts = sorted({result.verdict for result in results}, key=lambda verdict: (verdict in FAILURES, verdict))
    counts = Counter((result.kind or "(the worker died)", result.verdict) for result in results)
    kinds = sorted({kind for kind, _ in counts})
    width = max(map(len, [*kinds, "all"])) + 2
    lines = [" " * width + "  ".join(verdicts)]
    for kind in [*kinds, "all"]:
        cells = [sum(n for (k, v), n in counts.items() if kind in (k, "all") and v == verdict) for verdict in verdicts]
        lines.append(
            kind.ljust(width) + "  ".join(f"{n:,}".rjust(len(v)) for n, v in zip(cells, verdicts, strict=True))
        )
    return "\n".join(lines)
