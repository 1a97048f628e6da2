"""Processes and what they use, from /proc (Linux only)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PAUSE = 0.5  # seconds between looks at memory: one look at a large JVM takes tens of milliseconds


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {pid: parent for pid in running() if (parent := parent_of(pid)) is not None}
    pids = [root]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids


def running() -> list[int]:
    """Ids of all processes."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int | None:
    """Parent's id, None when the process has ended meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def status_kib(pid: int, key: str) -> int:
    """A memory line of a process's status, as VmRSS or VmHWM, in KiB; 0 when it has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def cpu_ticks(pid: int) -> int:
    """Clock ticks a process and its ended children have run; 0 when it has ended meanwhile."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def machine_ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores since start; what a hypervisor took away counts as busy."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


@dataclass
class Usage:
    """What a stretch of this process and everything below it used, from `Usage()` to `stop()`.

    seconds  wall clock
    cpu      seconds of all cores together
    peak     highest resident memory less that at the start, bytes
    others   share of the machine's cores that other processes used meanwhile
    """

    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    others: float = 0.0

    def __post_init__(self) -> None:
        for pid in family(os.getpid()):
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak so far: imports, data, warm-up
        self._resident = sum(status_kib(pid, "VmRSS") for pid in family(os.getpid()))
        self._ticks = (*machine_ticks(), sum(map(cpu_ticks, family(os.getpid()))))
        self._started = time.perf_counter()

    def stop(self) -> Usage:
        """Take the figures."""
        self.seconds = time.perf_counter() - self._started
        mine = family(os.getpid())
        busy, total = machine_ticks()
        used = sum(map(cpu_ticks, mine)) - self._ticks[2]
        self.cpu = used / os.sysconf("SC_CLK_TCK")
        self.others = max(0.0, (busy - self._ticks[0] - used) / max(1, total - self._ticks[1]))
        self.peak = max(0, sum(status_kib(pid, "VmHWM") for pid in mine) - self._resident) * 1024
        return self


@dataclass
class Peak:
    """Highest memory seen so far, in MiB."""

    mib: float = 0.0


@contextmanager
def watched() -> Iterator[Peak]:
    """Look at memory from a thread while the body runs."""
    peak, finished = Peak(), threading.Event()

    def poll() -> None:
        while not finished.is_set():
            peak.mib = max(peak.mib, sum(map(memory, family(os.getpid()))))
            finished.wait(PAUSE)

    watcher = threading.Thread(target=poll, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def memory(pid: int) -> float:
    """Proportional set size in MiB, 0 when the process has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
