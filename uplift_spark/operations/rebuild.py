"""A registered forest once more, from the versions of tables, roles and parameters that its run recorded (R1.6)."""

from __future__ import annotations

import hashlib
import re

from uplift_spark import CausalForest
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, code_version, silent
from uplift_spark.vocabulary import ConfigError, DataError

_GONE = re.compile(r"FILE_NOT_EXIST|DELTA_FILE_NOT_FOUND|FileNotFoundException")


def rebuild(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Train again what train run `run_id` registered; nothing is written.

    Of the configuration only lakehouse, registry and model name count. Raises ConfigError for a run that registered no
    model, DataError when its table's version is gone, or when the bytes differ: then other code or another machine's
    arithmetic made them, or the version was tampered with.
    """
    registry = Registry.of(config)
    model = registry.version_for_run(config.model_name, run_id or "")
    if model is None:
        raise ConfigError(
            f"model {config.model_name!r} has no version of run {run_id!r}: `uplift train` names its runs"
        )
    roles = registry.load(model).roles
    ((table, version),) = model.data_versions.items()
    say(f"{model.name} version {model.version}: {table} as of version {version}, code {model.git_version}")
    frame = lake.read(table, version).where("split = 'train'")
    try:
        forest = CausalForest(**model.params).fit(frame, roles, say)
    except Exception as error:  # typed by Connect, an error of the JVM's without
        if not _GONE.search(str(error)):
            raise
        raise DataError(
            f"table {table}: files of version {version} are gone, so its training set cannot be read again: VACUUM ran "
            "with less than the table's retention; restore them from a backup"
        ) from error
    made = hashlib.sha256(forest.to_bytes()).hexdigest()
    if made != model.sha256:
        raise DataError(
            f"the forest of run {run_id} rebuilt from {table} version {version} has SHA-256 {made[:16]}, registered is "
            f"{model.sha256[:16]}: it was made by code {model.git_version}, this is {code_version()}; use that one"
        )
    return JobResult.of("train", model.run_id, model=model.name, version=model.version, sha256=made, same_bytes=True)
