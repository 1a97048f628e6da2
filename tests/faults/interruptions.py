"""Replies that get lost after the commit has landed, and two jobs at once: nothing is lost, nothing there twice."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlflow import MlflowClient

from tests.faults.campaign import Job, Run
from tests.faults.driver import Driver
from tests.faults.matrix import Stage, aligned, different
from tests.faults.states import State
from tests.faults.workers import wait
from uplift_spark.errors import ConflictError
from uplift_spark.lake.storage import Folder
from uplift_spark.lake.tables import Lake

# Tables that each run overwrites; a run reads what it staged at the version that it wrote.
OVERWRITTEN = ("silver.training_", "silver.simulated_", "silver.compared_", "silver.rewards_")

# A client cannot know whether its commit landed; on some stores Delta itself takes it for another writer's.
NETWORK = ConnectionResetError("[Errno 104] Connection reset by peer")
RACE = RuntimeError("[DELTA_CONCURRENT_WRITE] a concurrent transaction has written new data")


@dataclass
class Case:
    """One fault of one job: `what` came of it, and in sentences what should not have."""

    job: str
    fault: str
    what: str
    wrong: list[str] = field(default_factory=list)


@dataclass
class Replies:
    """Counts the commits of tables and registered models; after commit number `lost` (from 0) `error` is raised."""

    lost: int | None = None
    error: Exception = NETWORK
    commits: int = 0

    def after(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, and then perhaps the error."""

        def commit(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            self.commits += 1
            if self.commits - 1 == self.lost:
                raise self.error
            return result

        return commit

    @contextmanager
    def watched(self) -> Iterator[Replies]:
        """Every commit in the body goes through `after`."""
        saves = patch.object(Folder, "save", self.after(Folder.save))
        models = patch.object(MlflowClient, "create_model_version", self.after(MlflowClient.create_model_version))
        with saves, models:
            yield self


def interrupted(name: str, job: Job, stage: Stage) -> list[Case]:
    """Every fault of one job whose lakehouses are kept."""
    stage.reset(name)
    old = stage.reader.state()
    with Replies().watched() as replies:
        job.second(stage.lake)
    expected = stage.reader.state()
    cases = [_lost(name, job.second, stage, replies.commits, error, expected) for error in (NETWORK, RACE)]
    twice: dict[str, Callable[[], list[object]]] = {
        "threads": lambda: _at_once([job.second] * 2, stage.lake),
        "drivers": lambda: drivers_at_once(stage.folder, [name, name]),
    }
    for kind, run_both in twice.items():
        stage.reset(name)
        cases.append(_case(name, f"the same run twice, two {kind}", run_both()))
        cases[-1].wrong += different(stage.reader.state(), expected)
    apart: dict[str, Callable[[], list[object]]] = {
        "threads": lambda: _at_once([job.first, job.second], stage.lake),
        "drivers": lambda: drivers_at_once(stage.folder, [f"{name}:first", name]),
    }
    for kind, run_both in apart.items() if job.apart else ():
        stage.reset(f"{name}-0")
        cases.append(_case(name, f"two runs, two {kind}", run_both()))
        for run in (job.first, job.second):  # who lost a race runs again, who won adds nothing
            run(stage.lake)
        cases[-1].wrong += _different_in_any_order(stage.reader.state(), old, expected)
    print_cases(cases)
    return cases


def _lost(name: str, run: Run, stage: Stage, commits: int, error: Exception, expected: State) -> Case:
    """Each commit's reply lost once: the job fails or goes on, a rerun completes it."""
    case = Case(name, f"reply lost: {type(error).__name__} after the commit", "")
    failed = 0
    for lost in range(commits):
        stage.reset(name)
        try:
            with Replies(lost, error).watched():
                run(stage.lake)
        except Exception:
            failed += 1
            run(stage.lake)
        case.wrong += different(stage.reader.state(), expected)
    case.what = f"{commits} commits; {failed} runs failed and completed when run again, {commits - failed} went on"
    return case


def _at_once(runs: list[Run], lake: Lake) -> list[object]:
    """What each run gave or raised."""

    def attempt(run: Run) -> object:
        try:
            return run(lake)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(attempt, runs))


def drivers_at_once(folder: Path, jobs: Sequence[str], *settings: str) -> list[object]:
    """What drivers said that ran these jobs at once, each in a process of its own; conflicts as errors."""
    drivers = [Driver(folder, job, "local[2]", *settings) for job in jobs]
    try:
        for driver in drivers:
            driver.ready()
        for driver in drivers:
            driver.go()
        wait(lambda: all(driver.ended() for driver in drivers), "two drivers at once did not end")
        outputs = [driver.next_line() for driver in drivers]
        return [ConflictError(one) if re.match("(Conflict|Overtaken)Error", one) else one for one in outputs]
    finally:
        for driver in drivers:
            driver.kill()


def _case(name: str, fault: str, outcomes: list[object]) -> Case:
    conflicts = [one for one in outcomes if isinstance(one, ConflictError)]
    wrong = [f"{type(one).__name__}: {one}" for one in outcomes if isinstance(one, Exception) and one not in conflicts]
    if len(conflicts) == len(outcomes):
        wrong.append(f"nobody won: {conflicts[0]}")
    return Case(name, fault, f"{len(outcomes) - len(conflicts)} completed, {len(conflicts)} typed conflicts", wrong)


def print_cases(cases: list[Case]) -> None:
    """Progress for who waits."""
    for case in cases:
        print(f"{case.job}: {case.fault}: {case.what} {case.wrong or ''}", file=sys.stderr, flush=True)


def shown(cases: list[Case]) -> str:
    """The cases as text."""
    body = [(case.job, case.fault, case.what, "NO" if case.wrong else "yes") for case in cases]
    wrong = "".join(f"\nWRONG {case.job}, {case.fault}: {one}" for case in cases for one in case.wrong)
    return aligned(("job", "fault", "what came of it", "equal"), body) + wrong


def _different_in_any_order(final: State, old: State, expected: State) -> list[str]:
    """Differences from both runs one after the other, but for who came first: numbers of models, who overwrote whom."""

    def unordered(state: State) -> dict[str, Any]:
        models = frozenset(content for name, content in state.items() if name.startswith("model version"))
        free = ("model version", "champion of ", *OVERWRITTEN)
        return {"models": models, **{name: content for name, content in state.items() if not name.startswith(free)}}

    overwritten = [name for name in expected if name.startswith(OVERWRITTEN)]
    either = [
        f"{name} is neither run's" for name in overwritten if final.get(name) not in (old.get(name), expected[name])
    ]
    return different(unordered(final), unordered(expected)) + either
