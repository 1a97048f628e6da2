"""What readers see in a lakehouse: a digest of every table, and every registered model; copies of lakehouses."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyspark.errors import PySparkException

from tests.faults.campaign import CAMPAIGN
from uplift_spark.errors import ConfigError
from uplift_spark.governance.spark import AuditLog
from uplift_spark.lake.schemas import AUDIT_TABLE
from uplift_spark.lake.tables import CLOCKS, Lake, digest
from uplift_spark.registry.models import Registry
from uplift_spark.roles import RUN_ID

State = Mapping[str, Hashable]  # {table, model version or alias: what is in it}; without what is absent

# An entry's time is in its text and its hash, and two jobs at once write theirs in either order; the chain is verified.
_OF_THEIR_TIME = {AUDIT_TABLE: ("seq", "at", "entry", "hash", RUN_ID)}


@dataclass
class Reader:
    """Reads the states of one lakehouse folder that is replaced by copies again and again.

    What was read is kept under a hash of its files' names and bytes, so only tables that changed are read anew.
    """

    lake: Lake
    _known: dict[str, State] = field(default_factory=dict)

    def state(self) -> State:
        """All tables and models now. A table that does not read raises."""
        state: dict[str, Hashable] = {}
        for table in self.tables():
            key = _fingerprint(self.folder / table.replace(".", "/"))
            if key not in self._known:
                self._known[key] = {table: self._digest(table)}
            state.update(self._known[key])
        if AUDIT_TABLE in state:
            state["the audit log holds"] = self._log_holds()
        if (self.folder / "mlflow.db").exists():
            key = _fingerprint(self.folder, ("mlflow.db", "mlartifacts"))
            if key not in self._known:
                self._known[key] = dict(self._models())
            state.update(self._known[key])
        return state

    def between(self, old: State) -> dict[str, set[Hashable]]:
        """{name: every state it has had since `old`, None for absence}, from the versions of each table."""
        new = self.state()
        legal: dict[str, set[Hashable]] = {name: {old.get(name), new.get(name)} for name in {*old, *new}}
        for table in self.tables():
            version = self.lake.version(table)
            with suppress(PySparkException):  # a job may have removed the files of older versions
                while version > 0 and old.get(table) not in (new[table], state := self._digest(table, version)):
                    legal[table].add(state)
                    version -= 1
        return legal

    @property
    def folder(self) -> Path:
        return Path(self.lake.lakehouse.path)

    def tables(self) -> list[str]:
        """Tables with a commit; found by their files, since Spark's own listing costs a job."""
        logs = self.folder.glob("*/*/_delta_log/*.json")
        return sorted({f"{log.parts[-4]}.{log.parts[-3]}" for log in logs})

    def _digest(self, table: str, version: int | None = None) -> Hashable:
        frame = self.lake.read(table, version)
        apart = (*CLOCKS, *_OF_THEIR_TIME.get(table, ()))
        return digest(frame, [column for column in frame.columns if column not in apart])

    def _log_holds(self) -> bool:
        return AuditLog(replace(CAMPAIGN, lakehouse=self.lake.lakehouse), self.lake).verify().holds

    def _models(self) -> Iterator[tuple[str, Hashable]]:
        registry = Registry.of(replace(CAMPAIGN, lakehouse=self.lake.lakehouse))
        for name in sorted(model.name for model in registry._client.search_registered_models()):
            for version in registry._versions(name):
                model = registry.find(name, int(version.version))
                content = registry.load(model).to_bytes()
                verdict = version.tags.get("approval")
                said = (model.run_id, hashlib.sha256(content).hexdigest(), verdict)
                yield f"model version {model.version} of {name}", said
            for alias in ("champion", "challenger"):
                with suppress(ConfigError):
                    yield f"{alias} of {name}", registry.find(name, alias).version


def copied(source: Path, target: Path, lake: Lake) -> None:
    """Make `target` a copy of `source`, and the session forget what it knows about the tables that were there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    lake.spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


def files(folder: Path) -> set[str]:
    """Every file below a folder that others are writing to; a database is another file after each of its commits."""
    paths: set[str] = set()
    for where, _, names in os.walk(folder):
        for name in names:
            path = f"{where}/{name}"
            with suppress(FileNotFoundError):
                paths.add(f"{path}@{os.stat(path).st_mtime_ns}" if name.endswith(".db") else path)
    return paths


def _fingerprint(folder: Path, parts: tuple[str, ...] = ("",)) -> str:
    sha = hashlib.sha256(str(folder).encode())
    for path in sorted(file for part in parts for file in [*(folder / part).rglob("*"), folder / part]):
        if path.is_file():
            sha.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()
