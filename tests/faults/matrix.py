"""The crash matrix: every writing job's driver is killed at moments spread over what it writes, and run again.

A moment is "N new files are below the lakehouse". After each kill every table and model must read, in a state it had
before the job or comes to have in an undisturbed run; the rerun must then end in the undisturbed run's state: no row
lost, none there twice, models equal to the byte.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.campaign import CAMPAIGN, JOBS, Job, lakehouse
from tests.faults.driver import Driver
from tests.faults.states import Reader, State, copied, files
from tests.faults.workers import PATIENCE
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry


@dataclass
class Stage:
    """A folder with the lakehouse, always at the same path, and copies of it as it was before each job.

    Models are registered with absolute paths, so a copy is good at the path of the original only.
    """

    folder: Path
    reader: Reader

    @classmethod
    def of(cls, folder: Path, lake: Lake) -> Stage:
        """A stage below `folder` with the session of `lake`; its models are read past every pool of connections.

        MLflow makes a store's tables once in a process, so every copy has to have them already.
        """
        os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
        Registry.of(replace(CAMPAIGN, lakehouse=lakehouse(folder)))
        return cls(folder, Reader(Lake(lake.spark, lakehouse(folder))))

    @property
    def lake(self) -> Lake:
        return self.reader.lake

    def reset(self, name: str) -> None:
        """The lakehouse as it was kept under `name`."""
        copied(self.folder / name, Path(self.lake.lakehouse.path), self.lake)

    def keep(self, name: str) -> None:
        """Keep the lakehouse as it is now."""
        Path(self.lake.lakehouse.path).mkdir(exist_ok=True)
        shutil.copytree(self.lake.lakehouse.path, self.folder / name)

    def prepared(self, jobs: Collection[str]) -> Iterator[tuple[str, Job]]:
        """Each of `jobs`; the lakehouse is kept under its name before its second run, as NAME-0 before its first."""
        left = set(jobs)
        for name, job in JOBS.items() if left else ():
            wanted = name in left
            if wanted:
                self.keep(f"{name}-0")
            job.first(self.lake)
            if wanted:
                left.remove(name)
                self.keep(name)
                yield name, job
                self.reset(name)
            if not left:
                return
            job.second(self.lake)


@dataclass
class Row:
    """What became of one job; `wrong` says what should not have been, in sentences."""

    job: str
    files: int
    kills: int = 0
    landed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("none", "some", "all"), 0))
    old: int = 0
    new: int = 0
    complete: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def tell(self, old: State, expected: State, state: State, legal: dict[str, set[Hashable]]) -> None:
        """Count what readers see after a kill."""
        changed = [name for name in expected if expected[name] != old.get(name)]
        new = [name for name in changed if state.get(name) == expected[name]]
        self.landed["all" if len(new) == len(changed) else "some" if new else "none"] += 1
        self.old, self.new = self.old + len(changed) - len(new), self.new + len(new)
        self.wrong += [
            f"after a kill {name} is neither old nor new: {state.get(name)}"
            for name in {*legal, *state}
            if state.get(name) not in legal.get(name, ())
        ]


def crash(name: str, job: Job, stage: Stage, kills: int, first: int = 0) -> Row:
    """Kill the job's driver at `kills` moments, each time in a fresh copy; without those before number `first`."""
    stage.reset(name)
    old = stage.reader.state()
    following = Driver(stage.folder, name)
    try:
        row = Row(name, _watched(following, stage, None))
        assert (output := following.next_line()) == "done", f"undisturbed, the job failed: {output}"
        expected, legal = stage.reader.state(), stage.reader.between(old)
        following = Driver(stage.folder, name)
        for kill in range(first, kills):
            stage.reset(name)
            driver, target = following, 1 + round((row.files - 1) * kill / max(1, kills - 1))
            _watched(driver, stage, target)
            if kill + 1 < kills:  # the next one starts while this one's remains are looked at
                following = Driver(stage.folder, name)
            row.kills += 1
            _observe(row, job, stage, (old, expected, legal))
            text = f"{row.complete} reruns complete, {row.equal} equal, {len(row.wrong)} things wrong so far"
            print(f"{name}: {row.kills}. kill, at file {target} of {row.files}: {text}", file=sys.stderr, flush=True)
    finally:
        following.kill()
    print(shown([row]), file=sys.stderr, flush=True)
    return row


def _observe(row: Row, job: Job, stage: Stage, states: tuple[State, State, dict[str, set[Hashable]]]) -> None:
    """Read after a kill, run again, read again."""
    old, expected, legal = states
    try:
        row.tell(old, expected, stage.reader.state(), legal)
    except Exception as error:
        row.wrong.append(f"after a kill tables do not read: {_line(error)}")
    try:
        job.second(stage.lake)
    except Exception as error:
        row.wrong.append(f"the rerun failed: {_line(error)}")
        return
    row.complete += 1
    differences = different(stage.reader.state(), expected)
    row.equal += not differences
    row.wrong += [f"after the rerun {one}" for one in differences]


def _watched(driver: Driver, stage: Stage, target: int | None) -> int:
    """Let the driver run until `target` new files have been seen, or to its end, and kill it; the files seen."""
    folder = Path(stage.lake.lakehouse.path)
    before, new_files, deadline = files(folder), set[str](), time.monotonic() + PATIENCE
    try:
        driver.go()
        while not driver.ended() and (target is None or len(new_files) < target):
            new_files |= files(folder) - before
            assert time.monotonic() < deadline, "the driver never got to the moment"
    finally:
        driver.kill()
    return len(new_files | (files(folder) - before))


def different(state: State, expected: State) -> list[str]:
    """A sentence for each table or model that is not as expected."""
    names = sorted({*state, *expected})
    return [
        f"{name} is {state.get(name, 'absent')}, not {expected.get(name, 'absent')}"
        for name in names
        if state.get(name) != expected.get(name)
    ]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"


def shown(rows: list[Row]) -> str:
    """The matrix as text."""
    head = ("job", "files", "kills", "commits: none", "some", "all", "read old", "new", "reruns", "equal")
    body = [(r.job, r.files, r.kills, *r.landed.values(), r.old, r.new, r.complete, r.equal) for r in rows]
    return aligned(head, body) + "".join(f"\nWRONG {r.job}: {one}" for r in rows for one in r.wrong)


def aligned(head: Sequence[object], body: Sequence[Sequence[object]]) -> str:
    """Rows of cells as text in columns."""
    cells = [[str(cell) for cell in row] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
