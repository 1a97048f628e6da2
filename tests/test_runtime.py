"""A run's identity: equal for equal work everywhere, other for other work; the version of the code behind it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

import uplift_spark
from uplift_spark import runtime as runs
from uplift_spark.campaign import Campaign
from uplift_spark.config import (
    Config,
    ForestConf,
    Labels,
    Lakehouse,
    Lift,
    RegistryConf,
    RolesConf,
    Simulation,
    load_config,
)
from uplift_spark.runtime import JobResult, code_version, derive_run_id

CONFIG = Config("spring", Simulation(), RolesConf("visit", "none", ("age", "zip")))


def test_a_run_id_is_the_job_and_twelve_hex_digits() -> None:
    assert derive_run_id("train", {"b": 1, "a": [2.5, None, True]}, data={"t": 3}) == "train-c2beee757547"


def test_the_same_work_has_the_same_id_in_another_process() -> None:
    code = (
        "from uplift_spark.config import *; from uplift_spark.runtime import derive_run_id;"
        "c = Config('spring', Simulation(), RolesConf('visit', 'none', ('age', 'zip')));"
        "print(derive_run_id('features', c, upstream={'b', 'a'}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}
    )
    assert process.stdout.strip() == derive_run_id("features", CONFIG, upstream={"a", "b"})


@pytest.mark.parametrize("job", ["ingest", "features", "train", "score", "lift", "policy"])
def test_where_tables_are_kept_is_no_part_of_a_run(job: str) -> None:
    moved = replace(CONFIG, lakehouse=Lakehouse("/elsewhere"), registry=RegistryConf(tracking_uri="sqlite:///x/y.db"))
    assert derive_run_id(job, moved) == derive_run_id(job, CONFIG)


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"campaign": "autumn"}, {"ingest", "features", "train", "score", "lift"}),
        ({"source": Simulation(units=5)}, {"ingest"}),
        ({"labels": Labels(window_days=3)}, {"features"}),
        ({"labels": Labels(windows={"visit": 3})}, {"features"}),
        ({"forest": ForestConf(n_trees=8)}, {"train"}),
        ({"lift": Lift(bins=50)}, {"lift"}),
        ({"seed": 8}, {"ingest", "features", "train", "lift"}),
        ({"holdout": 0.3}, {"features"}),
    ],
)
def test_only_what_a_job_depends_on_changes_its_id(changes: dict[str, Any], changed: set[str]) -> None:
    other = replace(CONFIG, **changes)
    jobs = ("ingest", "features", "train", "score", "lift")
    assert {job for job in jobs if derive_run_id(job, other) != derive_run_id(job, CONFIG)} == changed


PINNED = {
    "demo": {
        "ingest": "732d1c29158c", "features": "8fb45f73d367", "train": "c24429fcbab2", "refresh": "a1e537a22e2d",
        "tune": "2f69c824d694", "score": "99675db4e1c7", "lift": "2a87e15ccf91", "compare": "70c2bf550f18",
        "tree": "5daca4ef4197", "policy": "fd995e3458a0", "simulate": "12da67ed7af7",
    },
    "confounded": {"ingest": "c6be1f109c7a", "nuisances": "34157a1e40cc", "train": "f72369784c62"},
}  # fmt: skip


# Of a configuration that has changed since.
AS_IT_WAS = {"demo": ("source.max_lift=0.03", "economics.cost={5%: 0.1, 10%: 0.2}", "policy.budget=1000")}


@pytest.mark.parametrize("campaign", PINNED)
def test_ids_are_those_of_earlier_versions(campaign: str) -> None:
    """Another id would write the rows of every lakehouse a second time."""
    conf = Path(__file__).resolve().parents[1] / "conf" / f"{campaign}.yaml"
    config = load_config(conf, AS_IT_WAS.get(campaign, ()))
    ids = {job: derive_run_id(job, config, data={"t": 3}) for job in PINNED[campaign]}
    assert ids == {job: f"{job}-{digits}" for job, digits in PINNED[campaign].items()}


def test_a_key_that_came_later_makes_no_new_run_until_it_is_used() -> None:
    later = replace(CONFIG, source=Simulation(max_lift=0.05))
    usual = replace(CONFIG, source=Simulation(max_lift=0.03))
    assert derive_run_id("ingest", usual) == derive_run_id("ingest", CONFIG) != derive_run_id("ingest", later)


def test_inputs_and_job_are_part_of_the_id() -> None:
    ids = [derive_run_id("a", {}), derive_run_id("b", {}), derive_run_id("a", {}, x=1), derive_run_id("a", {}, x="1")]
    assert len(set(ids)) == 4


@dataclass(frozen=True)
class Part:
    """Something with parts."""

    when: datetime
    where: PurePosixPath


def test_values_with_one_meaning_have_one_id() -> None:
    when = datetime(2025, 1, 6, tzinfo=UTC)
    part = {"when": when.isoformat(), "where": "a/b"}
    assert derive_run_id("a", Part(when, PurePosixPath("a/b"))) == derive_run_id("a", part)
    assert derive_run_id("a", (1, 2)) == derive_run_id("a", [np.int64(1), 2])


@pytest.mark.parametrize("value", [object(), lambda: None, {"x": object()}, Part])
def test_values_without_a_stable_form_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be part of a run id"):
        derive_run_id("a", value)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        derive_run_id("a", float("nan"))


@dataclass(frozen=True)
class WrittenStub:
    """What `Lake.write` returns."""

    table: str
    version: int
    rows: int
    skipped: bool


def test_a_result_lists_what_was_written() -> None:
    result = JobResult.of("score", "r", WrittenStub("gold.uplift_scores", 2, 10, False), model="spring")  # type: ignore[arg-type]
    assert result.tables == {"gold.uplift_scores": {"version": 2, "rows": 10, "skipped": False}}
    assert result.details == {"model": "spring"}


def test_a_table_that_was_written_several_times_has_the_sum_of_its_rows() -> None:
    kept, event = "bronze.quarantine", WrittenStub("bronze.event", 0, 9, True)
    parts = [WrittenStub(kept, 1, 3, False), event, WrittenStub(kept, 0, 0, True), WrittenStub(kept, 2, 4, False)]
    result = JobResult.of("ingest", "r", *parts)
    assert result.tables == {
        kept: {"version": 2, "rows": 7, "skipped": False},
        "bronze.event": {"version": 0, "rows": 9, "skipped": True},
    }


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout in which this package seems to lie, nothing committed yet."""
    package = tmp_path / "uplift_spark"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(runs, "__file__", str(package / "runtime.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command with an author of its own."""
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    process = subprocess.run(["git", "-C", folder, *author, *arguments], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_the_code_s_version_is_its_commit(checkout: Path) -> None:
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "one")
    commit = git(checkout, "rev-parse", "--short", "HEAD")
    assert code_version() == commit
    (checkout / "uplift_spark" / "__init__.py").write_text("two")
    assert code_version() == f"{commit}-dirty"


def test_an_installed_package_inside_another_checkout_has_its_own_version(checkout: Path) -> None:
    (checkout / "README.md").write_text("another project")
    git(checkout, "add", "README.md")
    git(checkout, "commit", "-q", "-m", "one")
    assert code_version() == uplift_spark.__version__


def test_without_git_the_version_is_the_package_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() == uplift_spark.__version__


def test_queries_to_try_can_stand_in_double_quotes() -> None:
    queries = Campaign(CONFIG).queries_to_try("lift-abc")
    assert len(queries) == 3
    assert not [q for q in queries if set(q) & set('"$`\\!\n')]
    assert [q for q in queries if "lift-abc" in q] == queries[:2]
    plan, *others = Campaign(CONFIG).queries_to_try("lift-abc", "policy-abc")
    assert others == queries and "policy-abc" in plan and not set(plan) & set('"$`\\!\n')


def test_a_store_begins_as_a_copy_of_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "state_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    runs.begin_store(first)
    assert not first.exists()  # none is kept
    with closing(sqlite3.connect(first)) as store:
        store.execute("CREATE TABLE experiments (name, artifact_location, creation_time, last_update_time)")
        store.executescript("CREATE TABLE runs (x); CREATE TABLE registered_models (x)")
        store.execute("INSERT INTO experiments VALUES ('Default', '/elsewhere/mlruns/0', 1, 1)")
        store.execute("INSERT INTO runs VALUES (1)")
        store.commit()
        runs.keep_empty_store(first)
        runs.begin_store(second)
        assert not second.exists()  # a store with a run is not kept
        store.execute("DELETE FROM runs")
        store.commit()
    runs.keep_empty_store(first)
    runs.begin_store(second)
    with closing(sqlite3.connect(second)) as store:
        ((name, place, created, _),) = store.execute("SELECT * FROM experiments").fetchall()
    assert (name, place) == ("Default", str(tmp_path / "mlruns" / "0")) and created > 1
    second.write_bytes(b"somebody's")
    runs.begin_store(second)
    assert second.read_bytes() == b"somebody's" and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("module", ["estimators", "events.leakage", "policy.trees"])
def test_kernels_are_kept_in_one_place_whoever_needs_them_first(module: str) -> None:
    """Else `make setup` compiles them for a folder that no job looks into, and the first job compiles them again."""
    code = f"import uplift_spark.{module}, numba; print(numba.config.CACHE_DIR)"
    folder = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert folder and folder == runs.keep_kernels()
