"""A registered model once more, from the versions of tables, roles and parameters that its run recorded (R1.6)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from uplift_spark.causal.learned import AnyModel, Learned
from uplift_spark.config import Config
from uplift_spark.flow.verbs import UpliftModel
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.learning import refreshed, train
from uplift_spark.operations.registry import Registered, Registry
from uplift_spark.operations.runs import JobResult, Say, code_version, silent
from uplift_spark.vocabulary import ConfigError, DataError

_GONE = re.compile(r"FILE_NOT_EXIST|DELTA_FILE_NOT_FOUND|FileNotFoundException")


def rebuild(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Train again what train run `run_id` registered; nothing is written.

    Of the configuration only lakehouse, registry and model name count. Raises ConfigError for a run that registered no
    model or whose forest comes from an erasure, DataError when its table's version is gone, or when the bytes, of a
    meta-learner its effects, differ: then other code or another machine's arithmetic made them, or the version was
    tampered with.
    """
    registry = Registry.of(config)
    model = registry.version_for_run(config.model_name, run_id or "")
    if model is None:
        raise ConfigError(
            f"model {config.model_name!r} has no version of run {run_id!r}: `uplift train` names its runs"
        )
    if model.erasure_of is not None:
        raise ConfigError(
            f"run {run_id!r} is an erasure: model {config.model_name!r} version {model.version} has the trees of "
            f"version {model.erasure_of}, grown on rows that are gone, so no training gives them again"
        )
    registered = registry.load(model)
    ((table, version),) = model.data_versions.items()
    say(f"{model.name} version {model.version}: {table} as of version {version}, code {model.git_version}")
    frame = lake.read(table, version).where("split = 'train'")
    with still_there(table, version, "restore them from a backup"):
        if model.refresh is None:
            again = train(model.params, frame, registered.roles, say)
        else:
            base = UpliftModel(registry.load(registry.trees_of(model)))
            again = refreshed(base, frame, model.refresh, say)
    what, made, known = _digests(model, registered, again.model, again.to_bytes())
    if made != known:
        raise DataError(
            f"{what} of run {run_id} rebuilt from {table} version {version} have SHA-256 {made[:16]}, registered is "
            f"{known[:16]}: it was made by code {model.git_version}, this is {code_version()}; use that one"
        )
    same = {f"same_{what}": True}
    return JobResult.of("train", model.run_id, model=model.name, version=model.version, sha256=made, **same)


def _digests(model: Registered, registered: AnyModel, again: AnyModel, content: bytes) -> tuple[str, str, str]:
    """What of a model is the same for the same rows, and its SHA-256 now and when it was registered: bytes of forests,
    effects of meta-learners, whose files tell when they were written."""
    if isinstance(registered, Learned) and isinstance(again, Learned):
        return "effects", again.facts["effects_sha256"], registered.facts["effects_sha256"]
    return "bytes", hashlib.sha256(content).hexdigest(), model.sha256


@contextmanager
def still_there(table: str, version: int, fix: str) -> Iterator[None]:
    """Reading a version whose files are gone becomes a DataError that ends with `fix`."""
    try:
        yield
    except Exception as error:  # typed by Connect, an error of the JVM's without
        if not _GONE.search(str(error)):
            raise
        raise DataError(
            f"table {table}: files of version {version} are gone, so its training set cannot be read again: "
            f"`uplift erase --purge`, or VACUUM with less than the table's retention, removed them; {fix}"
        ) from error
