"""What is shown under load, each part a table and whether everything was as it has to be."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tests.load.caller import Question, Tally, at_rate, in_turn, percentile
from tests.load.service import AVERAGES, CampaignOnTrial, RunningService, served

Shown = tuple[Table, bool]
_HEAD = b"POST /v1/effects HTTP/1.1\r\nhost: x\r\n"
EFFECTS, DECISIONS = "/v1/effects", "/v1/decisions"


# --------------------------------------------------------------------------------------------------------------------
# Requests, and what is right.


def effects_of(units: int, seed: int = 0) -> Callable[[int], Question]:
    """Requests for the effects on a unit by chance."""
    chosen = np.random.default_rng(seed).integers(0, units, 1 << 16)

    def make(i: int) -> Question:
        unit = int(chosen[i % len(chosen)])
        return Question(EFFECTS, f'{{"unit_id": "u{unit:06d}"}}'.encode(), unit)

    return make


def decisions_of(units: int, name: str, seed: int = 1) -> Callable[[int], Question]:
    """Requests for a decision on a unit by chance, each under a key of its own."""
    chosen = np.random.default_rng(seed).integers(0, units, 1 << 16)

    def make(i: int) -> Question:
        unit, key = int(chosen[i % len(chosen)]), f"{name}-{i}"
        return Question(
            DECISIONS, f'{{"requests": [{{"request_key": "{key}", "unit_id": "u{unit:06d}"}}]}}'.encode(), key
        )

    return make


def both_of(units: int, name: str) -> Callable[[int], Question]:
    """Effects and decisions in turn."""
    one, other = effects_of(units), decisions_of(units, name)
    return lambda i: one(i) if i % 2 else other(i)


class Judge:
    """Holds each answer against what was published.

    Args:
        campaign: What was.
    """

    def __init__(self, campaign: CampaignOnTrial) -> None:
        self._campaign = campaign
        self.decided: dict[str, dict[str, Any]] = {}
        self.lacked: dict[str, int] = {}

    def __call__(self, question: Question, status: int, body: bytes) -> str | None:
        """What is wrong with an answer, in words."""
        if status != 200:
            return f"status {status}"
        answer = json.loads(body)
        if question.path == EFFECTS:
            return self._of_effects(question.what, answer["answers"][0])
        return self._of_decision(str(question.what), answer["decisions"][0])

    def _lacks(self, degraded: list[str]) -> None:
        for why in degraded:
            self.lacked[why] = self.lacked.get(why, 0) + 1

    def _of_effects(self, unit: Any, answer: Mapping[str, Any]) -> str | None:
        self._lacks(answer["degraded"])
        version = "v" + str(answer["model"]["version"])
        effect, error = self._campaign.effects[version]
        if answer["source"] in ("model", "batch_effects"):
            right = [(float(effect[unit, k]), float(error[unit, k])) for k in range(effect.shape[1])]
        else:
            right = [(AVERAGES["uplift"], AVERAGES["uplift_se"])] * effect.shape[1]
        said = [(one["uplift"], one["uplift_se"]) for one in answer["effects"]]
        if answer["source"] != "model" and not answer["degraded"]:
            return "another source than the model, and nothing says so"
        return None if said == right else "other effects than were published"

    def _of_decision(self, key: str, answer: Mapping[str, Any]) -> str | None:
        self._lacks(answer["degraded"])
        if answer["request_key"] != key or answer["level"] not in self._campaign.levels:
            return "the decision of another request"
        if not answer["logged"]:
            return None if answer["level"] == "none" else "a level that nobody logged"
        before = self.decided.setdefault(key, {"level": answer["level"], "propensity": answer["propensity"]})
        return None if before["level"] == answer["level"] else "another answer under the same key"

    def lost(self) -> int:
        """Decisions that were answered as logged and that the log does not hold as they were answered."""
        log = self._campaign.decisions()
        return sum(
            key not in log or any(log[key][name] != value for name, value in said.items())
            for key, said in self.decided.items()
        )


def milliseconds(values: np.ndarray, *shares: float) -> list[str]:
    """Percentiles as a table shows them."""
    return [f"{percentile(values, share):.1f}" for share in shares]


# --------------------------------------------------------------------------------------------------------------------
# Parts.


def at_a_rate(campaign: CampaignOnTrial, seconds: float, rate: float) -> Shown:
    """Latencies at a fixed rate; the service's counters equal the requests."""
    table, right = Table("path", "asked/s", "p50 ms", "p95 ms", "p99 ms", "requests", "counted", "errors"), True
    table.title = (
        f"at a fixed rate, {campaign.serving['workers']} workers, caller and service on {os.cpu_count()} cores"
    )
    with served(campaign) as service:
        for path, make in _paths(campaign, "rate"):
            warm(campaign)
            before = service.counted(path)
            tally = at_rate(campaign.port, rate, seconds, make)
            counted, answered = service.counted(path) - before, len(tally.seconds)
            failed = answered - len(tally.of(200)) + tally.lost
            right &= failed == 0 and counted == answered + tally.broken
            shown = milliseconds(tally.of(200), 0.5, 0.95, 0.99)
            table.add_row(path, f"{rate:,.0f}", *shown, f"{answered:,}", f"{counted:,}", f"{failed}")
    return table, right


def _paths(campaign: CampaignOnTrial, name: str) -> list[tuple[str, Callable[[int], Question]]]:
    units = len(campaign.frame)
    return [(EFFECTS, effects_of(units)), (DECISIONS, decisions_of(units, f"{name}{time.time_ns()}"))]


def warm(campaign: CampaignOnTrial, requests: int = 500) -> None:
    """A few requests before those that are timed."""
    in_turn(campaign.port, 16, requests, both_of(len(campaign.frame), f"warm{time.time_ns()}"))


def clients_in_turn(campaign: CampaignOnTrial, requests: int, clients: int) -> Shown:
    """Requests a second of clients that ask again at once; the last tenth beside the first; memory."""
    head = (
        "path",
        "requests/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "p95 first tenth",
        "last",
        "MiB before",
        "after",
        "errors",
    )
    table, right = Table(*head), True
    table.title = f"{clients} clients, {requests:,} requests each path, {campaign.serving['workers']} workers"
    with served(campaign) as service:
        for path, make in _paths(campaign, "turn"):
            warm(campaign)
            memory, before = service.memory(), service.counted(path)
            tally = in_turn(campaign.port, clients, requests, make)
            counted, times = service.counted(path) - before, tally.of(200)
            tenth = max(1, len(times) // 10)
            ends = [*milliseconds(times[:tenth], 0.95), *milliseconds(times[-tenth:], 0.95)]
            failed = requests - len(times)
            right &= failed == 0 and counted == requests + tally.broken
            table.add_row(
                path, f"{requests / tally.lasted:,.0f}", *milliseconds(times, 0.5, 0.95, 0.99), *ends, f"{memory:,.0f}",
                f"{service.memory():,.0f}", f"{failed}",
            )  # fmt: skip
    return table, right


def too_much(campaign: CampaignOnTrial, seconds: float, times: float, connections: int = 512) -> Shown:
    """So many times what one worker can do: who is refused is refused at once, who is not waits little.

    One worker, so that the caller has a core to itself.
    """
    head = (
        "path",
        "asked/s",
        "answered/s",
        "p95 ms",
        "refused/s",
        "p95 ms",
        "not sent",
        "MiB before",
        "after",
        "errors",
    )
    table, right = Table(*head, title=f"{times:g} times what a worker can do, {connections} connections"), True
    campaign = campaign.with_settings(workers=1)
    with served(campaign) as service:
        for path, make in _paths(campaign, "much"):
            warm(campaign)
            rate = times * 4000 / in_turn(campaign.port, 64, 4000, make).lasted
            warm(campaign)
            more, memory = dict(_paths(campaign, "more"))[path], service.memory()
            tally = at_rate(campaign.port, rate, seconds, more, most=connections)
            taken, refused, after = tally.of(200), tally.of(503), service.memory()
            wrong = len(tally.seconds) - len(taken) - len(refused) - tally.kept
            right &= wrong == 0 and len(refused) > 0 and after - memory < 20
            table.add_row(
                path, f"{rate:,.0f}", f"{len(taken) / tally.lasted:,.0f}", *milliseconds(taken, 0.95),
                f"{len(refused) / tally.lasted:,.0f}", *milliseconds(refused, 0.95), f"{tally.kept:,}",
                f"{memory:,.0f}", f"{after:,.0f}", f"{wrong}",
            )  # fmt: skip
    return table, right


def attacked(campaign: CampaignOnTrial, gigabytes: float, connections: int) -> Shown:
    """A body without an end, heads and bodies that never come: refused, closed, and nothing grows."""
    table, right = Table("attack", "answer", "seconds", "MiB more", "others meanwhile, p95 ms"), True
    table.title = "attacks on one door"
    campaign = campaign.with_settings(timeout_seconds=2.0)
    with served(campaign) as service:
        warm(campaign)
        attacks = {
            f"{gigabytes:g} GB in chunks": lambda: _endless(campaign.port, gigabytes),
            f"{connections} heads that never end": lambda: _slow(campaign.port, connections, _HEAD, b"x-a: b\r\n"),
            f"{connections} bodies that never come": lambda: _slow(
                campaign.port, connections, _HEAD + b"content-length: 100\r\n\r\n", b"{"
            ),
            f"{connections} connections that say nothing": lambda: _slow(campaign.port, connections, b"", b""),
        }  # fmt: skip
        for name, attack in attacks.items():
            before, start, said = service.memory(), time.monotonic(), list[str]()
            thread = threading.Thread(target=lambda said=said, attack=attack: said.append(attack()))
            thread.start()
            others = at_rate(campaign.port, 50, 8, effects_of(len(campaign.frame)))
            thread.join(120)
            more = service.memory() - before
            answer = said[0] if said else "none within two minutes"
            right &= answer in ("413", "closed", "408, closed") and more < 20 and others.errors + others.lost == 0
            shown = milliseconds(others.of(200), 0.95)[0]
            table.add_row(name, answer, f"{time.monotonic() - start:.0f}", f"{more:.1f}", shown)
    return table, right


def _endless(port: int, gigabytes: float) -> str:
    """Status of a chunked body of so many gigabytes."""
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        head = _HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        with suppress(OSError):  # the service closes before all is sent
            one.sendall(head)
            for _ in range(int(gigabytes * 2**30 / 65536)):
                one.sendall(chunk)
        with suppress(OSError):
            return one.recv(100).split(b" ")[1].decode()
    return "closed"


def _slow(port: int, connections: int, head: bytes, drop: bytes) -> str:
    """What becomes of connections that send a little every second; closed: all of them, within 30 seconds."""
    every = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(connections)]
    answers, end = set[str](), time.monotonic() + 30
    for one in every:
        one.sendall(head)
        one.settimeout(0.0)
    left = every
    while left and time.monotonic() < end:
        time.sleep(1.0)
        still = []
        for one in left:
            try:
                if drop:
                    one.sendall(drop)
                got = one.recv(1000)
                if got:
                    answers.add(got.split(b" ")[1].decode())
                if got:
                    still.append(one)
            except BlockingIOError:
                still.append(one)
            except OSError:
                pass
        left = still
    for one in every:
        one.close()
    return f"{len(left)} of {connections} still open" if left else ", ".join([*sorted(answers), "closed"])


def as_in_batches(campaign: CampaignOnTrial) -> Shown:
    """Effects of every unit, by the service and by the batch: to the last bit."""
    different, units, size = 0, len(campaign.frame), 500
    effect, error = campaign.effects["v1"]
    judge = Judge(campaign)
    with served(campaign):
        import urllib3

        pool = urllib3.PoolManager()
        for first in range(0, units, size):
            ids = [f"u{i:06d}" for i in range(first, min(first + size, units))]
            body = json.dumps({"units": [{"unit_id": one} for one in ids]})
            answers = pool.request("POST", campaign.url + EFFECTS, json=json.loads(body)).json()["answers"]
            different += sum(judge._of_effects(first + i, one) is not None for i, one in enumerate(answers))
    table = Table(
        "units", "levels", "answers that differ", title="effects by the service and by the batch, to the last bit"
    )
    table.add_row(f"{units:,}", str(effect.shape[1]), str(different))
    return table, different == 0 and error.shape == effect.shape


# --------------------------------------------------------------------------------------------------------------------
# Faults.

Fault = Callable[[CampaignOnTrial, RunningService], Iterator[None]]
"""A context: the fault is there within it, and over behind it."""


@contextmanager
def _worker_killed(campaign: CampaignOnTrial, service: RunningService) -> Iterator[None]:
    service.workers()[-1].kill()
    yield


@contextmanager
def _promoted(campaign: CampaignOnTrial, service: RunningService) -> Iterator[None]:
    campaign.publish("v2")
    yield
    if service.facts()["model"]["version"] != 2:
        raise AssertionError("the new version is not served")


@contextmanager
def _file_overwritten(campaign: CampaignOnTrial, service: RunningService) -> Iterator[None]:
    """The file of units becomes something else under the service's hands; then it is published anew."""
    home = campaign.folder / "serving" / "spring" / (campaign.folder / "serving" / "spring" / "CURRENT").read_text()
    (units,) = home.glob("units*")
    with units.open("r+b") as file:
        file.write(b"\0" * units.stat().st_size)
    yield
    campaign.publish("v1", f"v1_{time.time_ns()}")


@contextmanager
def _file_replaced(campaign: CampaignOnTrial, service: RunningService) -> Iterator[None]:
    """Another file of units is put in the place of the one that is served; then it is published anew."""
    home = campaign.folder / "serving" / "spring" / (campaign.folder / "serving" / "spring" / "CURRENT").read_text()
    (units,) = home.glob("units*")
    other = units.with_name("other")
    other.write_bytes(b"not a database")
    os.replace(other, units)
    yield
    campaign.publish("v1", f"v1_{time.time_ns()}")


@contextmanager
def _disk_full(campaign: CampaignOnTrial, service: RunningService) -> Iterator[None]:
    disk = Path(campaign.serving["log"]).parent
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    yield
    filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of 64 MiB of its own; None where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def redis_at(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis that keeps what it is given across a restart."""
    folder.mkdir(exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield process
    finally:
        process.kill()
        process.wait(30)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as one:
            one.sendall(b"PING\r\n")
            if one.recv(100).startswith(b"+PONG"):
                return
        time.sleep(0.1)
    raise RuntimeError(f"Redis did not start on port {port}")


class FaultTable:
    """Faults under load, a line each.

    Args:
        rate: Requests a second, effects and decisions in turn.
        seconds: That a fault lasts; as long before it, and as long behind it.
    """

    def __init__(self, rate: float, seconds: float) -> None:
        self._rate, self._seconds, self.right = rate, seconds, True
        self.table = Table(
            "fault", "requests", "wrong", "5xx", "lost", "tried again", "p99 ms", "decisions", "of them not in the log",
            "degraded", title="faults under load; all of an answer is held against what was published",
        )  # fmt: skip

    def run(self, name: str, campaign: CampaignOnTrial, service: RunningService, fault: Any) -> None:
        """Load, with the fault in its second third."""
        judge, said = Judge(campaign), list[BaseException]()

        def injected() -> None:
            try:
                time.sleep(self._seconds)
                with fault(campaign, service):
                    time.sleep(self._seconds)
            except BaseException as error:  # shown with the table
                said.append(error)

        thread = threading.Thread(target=injected)
        thread.start()
        make = both_of(len(campaign.frame), f"{name.replace(' ', '')}{time.time_ns()}")
        tally = at_rate(campaign.port, self._rate, 3 * self._seconds, make, judge)
        thread.join()
        self._show(name, tally, judge, said)

    def _show(self, name: str, tally: Tally, judge: Judge, said: list[BaseException]) -> None:
        failed = tally.errors + tally.by_status.get(503, 0)
        wrong = sum(n for fault, n in tally.faults.items() if not fault.startswith("status 5"))
        lost, lacked = judge.lost(), ", ".join(f"{why} {n:,}" for why, n in sorted(judge.lacked.items()))
        self.right &= not (wrong or failed or tally.lost or lost or said)
        self.table.add_row(
            name, f"{len(tally.seconds):,}", str(wrong), str(failed), str(tally.lost), str(tally.broken),
            f"{percentile(tally.of(200), 0.99):.0f}", f"{len(judge.decided):,}", str(lost),
            "; ".join([lacked, *tally.faults, *map(repr, said)]),
        )  # fmt: skip

    def skipped(self, name: str, why: str) -> None:
        """A fault that this machine cannot make."""
        self.table.add_row(name, *[""] * 8, f"skipped: {why}")


def faults(campaign: CampaignOnTrial, rate: float, seconds: float) -> Shown:
    """Every fault under load: 0 wrong answers, 0 answers of 5xx, 0 lost decisions."""
    table = FaultTable(rate, seconds)
    with served(campaign) as service:
        warm(campaign)
        table.run("a worker is killed", campaign, service, _worker_killed)
        table.run("a version is promoted", campaign, service, _promoted)
        table.run("the file of units is replaced", campaign, service, _file_replaced)
        table.run("the file of units is overwritten", campaign, service, _file_overwritten)
    _disk(table, campaign)
    _moved_clock(table, campaign)
    _redis(table, campaign)
    return table.table, table.right


def _disk(table: FaultTable, campaign: CampaignOnTrial) -> None:
    with small_disk(campaign.folder / "disk") as disk:
        if disk is None:
            table.skipped("the log's disk is full", "this user may not mount a disk")
            return
        other = campaign.with_settings(log=str(disk / "decisions.sqlite"))
        with served(other) as service:
            warm(other)
            table.run("the log's disk is full", other, service, _disk_full)


_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

/* The clock of the wall, as many seconds ahead as a file says; what measures time that passes is left alone. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    static volatile long *ahead;
    if (!real) {
        int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
        ahead = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    }
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += *ahead;
    return failed;
}
"""


def _set_clock(clock: Path, seconds: int) -> None:
    with clock.open("r+b" if clock.exists() else "wb", buffering=0) as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@contextmanager
def _clock(campaign: CampaignOnTrial, service: RunningService, days: int) -> Iterator[None]:
    clock = campaign.folder / "clock"
    _set_clock(clock, 86_400 * days)
    yield
    _set_clock(clock, 0)


def _moved_clock(table: FaultTable, campaign: CampaignOnTrial) -> None:
    if (compiler := shutil.which("cc")) is None:
        table.skipped("the clock is moved", "there is no C compiler")
        return
    library, source = campaign.folder / "clock.so", campaign.folder / "clock.c"
    source.write_text(_CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    _set_clock(campaign.folder / "clock", 0)
    environment = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(campaign.folder / "clock")}
    with served(campaign, environment) as service:
        warm(campaign)
        for name, days in (("forward by two days", 2), ("back by two days", -2)):
            table.run(f"the clock goes {name}", campaign, service, lambda c, s, days=days: _clock(c, s, days))


def _redis(table: FaultTable, campaign: CampaignOnTrial) -> None:
    if shutil.which("redis-server") is None:
        table.skipped("Redis is killed, and comes back", "redis-server is not installed")
        return
    from tests.load.service import free_port
    from uplift_spark.serving.store import redis_client

    port, data = free_port(), campaign.folder / "redis"
    with tempfile.TemporaryDirectory() as home, redis_at(port, data) as first:
        other = CampaignOnTrial(
            Path(home), campaign.frame, campaign.models, campaign.effects,
            {**campaign.serving, "redis": f"redis://127.0.0.1:{port}/0", "log": f"{home}/decisions.sqlite"},
        )  # fmt: skip
        other.publish("v1", redis=redis_client(other.serving["redis"]))
        with served(other) as service:
            warm(other)

            @contextmanager
            def killed(_: CampaignOnTrial, __: RunningService) -> Iterator[None]:
                first.kill()
                first.wait(30)
                yield
                back.append(subprocess.Popen(first.args, stdout=subprocess.DEVNULL))
                _wait_for(port)

            back: list[subprocess.Popen[bytes]] = []
            try:
                table.run("Redis is killed, and comes back", other, service, killed)
            finally:
                for one in back:
                    one.kill()
                    one.wait(30)
