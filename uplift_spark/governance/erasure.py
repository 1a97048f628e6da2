"""Erasure of units on request: from the models in use, from every table, and from old files and logs of the tables.

`run_erasure` does all of it; `erase_units` and `purge` treat one table.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, ConflictError
from uplift_spark.estimators import UpliftModel
from uplift_spark.governance.approvals import promote
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.privacy import key_of, pseudonym
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.contracts import UNREAD, trimmed_id
from uplift_spark.lake.schemas import QUARANTINE, TRAINED_TABLES, contract_of
from uplift_spark.lake.storage import PROPERTIES
from uplift_spark.lake.tables import APPEND_ONLY, ERASED, Lake, Written, digest, retried
from uplift_spark.registry.models import Origin, Registered, Registry, log_facts, still_there
from uplift_spark.roles import RUN_ID, UNIT, plain_id
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, derive_run_id, no_progress

# --------------------------------------------------------------------------------------------------------------------
# Erasure from one table, and from its old files and logs.
# No id becomes part of a plan or of a commit: units come as a frame, and Delta logs only the condition of a join.

_DELIMITERS = r"[,;\t\r\n|\"']"  # of cells in a line that is no row of its file
_FILES_KEPT = "delta.deletedFileRetentionDuration"
_NO_FILES_KEPT = {_FILES_KEPT: "interval 0 hours"}
# A commit that checkpoints has Delta delete the log files of days gone by; all of them, as none is kept.
_NO_LOG_KEPT = {"delta.logRetentionDuration": "interval 0 hours", "delta.checkpointInterval": "1"}
_USUAL_CHECKPOINTS = {"delta.checkpointInterval": "10"}
_USUAL = PROPERTIES | _USUAL_CHECKPOINTS


def erase_units(lake: Lake, table: str, units: DataFrame) -> int:
    """Delete the rows of `units`, one string column unit_id, from the newest version; returns how many there were.

    Of bronze.quarantine the rows that hold such an id as a value, whatever its key, or as a cell of a line that could
    not be read. Tables without units are left alone. Raw tables take back rows while this runs and are append-only
    again afterwards; if it is killed in between, when it runs again. Raises ConflictError when other writers win every
    race.
    """
    held = _held(lake, table, units)
    if held is None:
        return 0
    contract = contract_of(table)
    locked = contract is not None and contract.append_only
    try:
        if held.isEmpty():
            return 0

        def unlock() -> None:
            if locked:
                lake.set_properties(table, {APPEND_ONLY: "false"})

        unlock()
        # Another erasure that ends meanwhile locks the table again.
        return retried(lambda: _delete(lake, table, held), table, "an erasure", unlock)
    finally:
        if locked and lake.properties(table).get(APPEND_ONLY) != "true":
            lake.set_properties(table, {APPEND_ONLY: "true", ERASED: str(lake.version(table))})


def _held(lake: Lake, table: str, units: DataFrame) -> DataFrame | None:
    """What tells the rows to delete, in a column of the table: ids, or rows as JSON; None where no unit can be."""
    rows = lake.read(table)
    if table == QUARANTINE:
        cells = F.from_json("row", "map<string,string>")
        values = rows.select("row", F.explode(F.map_values(cells)).alias("value"))
        values = values.withColumn(UNIT, trimmed_id(F.col("value"))).join(F.broadcast(units), UNIT, "left_semi")
        # An id may hold what separates cells, so it is looked for in the whole line.
        lines = rows.select("row", cells[UNREAD].alias("text")).where("text IS NOT NULL")
        wanted = F.broadcast(units.select(_in_line(F.col(UNIT)).alias("id")))
        lines = lines.join(wanted, F.contains(_in_line(F.col("text")), F.col("id")), "left_semi")
        return values.select("row").unionByName(lines.select("row")).distinct()
    if UNIT not in rows.columns:
        return None
    # Rows of earlier releases may have blanks around an id.
    ids = rows.select(UNIT).distinct().withColumn("plain", trimmed_id(F.col(UNIT)))
    return ids.join(F.broadcast(units.withColumnRenamed(UNIT, "plain")), "plain", "left_semi").select(UNIT)


def _in_line(text: Column) -> Column:
    """A text between separators, with one separator in place of any."""
    return F.concat(F.lit(","), F.regexp_replace(F.trim(text), rf"\s*{_DELIMITERS}+\s*", ","), F.lit(","))


def _delete(lake: Lake, table: str, held: DataFrame) -> int:
    (column,) = held.columns
    merge = f"MERGE INTO {lake.reference(table)} AS t USING {{held}} AS s ON t.{column} = s.{column}"
    metrics = lake.spark.sql(f"{merge} WHEN MATCHED THEN DELETE", held=held).collect()[0]
    return int(metrics["num_deleted_rows"])


def purge(lake: Lake, table: str, log: bool = True) -> None:
    """Remove the files of all versions but the newest, and with `log` the entries of the transaction log about them.

    Delta deletes log files by the day: bounds of columns written today are gone after a purge on a later day (UTC).
    Nothing else may write the table meanwhile: files of a write that is not committed yet would be taken for old ones.
    If it is killed the table keeps no history until it runs again.
    """
    have = lake.properties(table)
    _without_deletion_vectors(lake, table, have)
    none = _NO_FILES_KEPT | _NO_LOG_KEPT
    try:
        if log:
            # First of all: log files go as far as a checkpoint before which there is none of today.
            lake.set_properties(table, none)
        lake.set_properties(table, _NO_FILES_KEPT | _USUAL_CHECKPOINTS)
        lake.spark.sql(f"VACUUM {lake.reference(table)}").collect()
    finally:
        # All at once: Delta compares the two times of one statement.
        usual = {key: have[key] if have.get(key, no) != no else _USUAL[key] for key, no in none.items()}
        lake.set_properties(table, usual)


def vacuum(lake: Lake, table: str, days: float) -> None:
    """Remove the files that no version of the last `days` days needs; from now on the table keeps files so long.

    With 0 days nothing else may write the table meanwhile, as in `purge`.
    """
    have = lake.properties(table)
    _without_deletion_vectors(lake, table, have)
    kept = {_FILES_KEPT: f"interval {round(days * 24)} hours"}
    if have.get(_FILES_KEPT) != kept[_FILES_KEPT]:
        lake.set_properties(table, kept)
    # Where no file goes there is no commit: runs are named after versions of tables. Empty folders are listed, too.
    going = lake.spark.sql(f"VACUUM {lake.reference(table)} DRY RUN").collect()
    if any(str(row[0]).endswith((".parquet", ".bin")) for row in going):
        lake.spark.sql(f"VACUUM {lake.reference(table)}").collect()


def _without_deletion_vectors(lake: Lake, table: str, have: Mapping[str, str]) -> None:
    """Rewrite the files of which some rows are deleted and still there."""
    if have.get("delta.enableDeletionVectors") == "true":
        retried(lambda: lake.spark.sql(f"REORG TABLE {lake.reference(table)} APPLY (PURGE)"), table, "a purge")


# --------------------------------------------------------------------------------------------------------------------
# Erasure from models and from all tables.
# A rerun completes a run that was killed: forests without the units are registered before the rows go that they are
# estimated from, and every step finds out by itself what is left to do. Ids are stored nowhere, nor hashes of them.


@dataclass(frozen=True)
class Erasure:
    """The units to erase, whether to remove the old files and logs of all tables, and why, for the audit log.

    Raises ConfigError for a blank id, and when there is nothing to do.
    """

    units: tuple[str, ...] = ()
    purge: bool = False
    reason: str = "not stated"

    def __post_init__(self) -> None:
        blank = sum(not plain_id(unit) for unit in self.units)
        if blank:
            raise ConfigError(f"{blank} of {len(self.units)} units to erase are blank: correct --unit or --units")
        if not self.units and not self.purge:
            raise ConfigError("nothing to erase: name units with --unit or --units, or give --purge")

    @classmethod
    def from_options(cls, units: Sequence[str] | None, file: Path | None, purge: bool) -> Erasure:
        """Of the command's options; `file` holds one id a line."""
        try:
            listed = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--units {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if file is not None and not listed:
            raise ConfigError(f"--units {file} is empty: it must hold one id a line")
        return cls(tuple(dict.fromkeys([*(units or ()), *listed])), purge)


def run_erasure(
    config: Config,
    lake: Lake,
    erasure: Erasure,
    progress: ProgressCallback = no_progress,
    beside: Mapping[str, Callable[[Sequence[str]], int]] | None = None,
) -> JobResult:
    """Erase units from the leaf sums of the champion and of the version `registry.version` names, then from the places
    that lie `beside` the tables ({name: what deletes all of the units there, and counts}), then from all tables.

    A unit that is nowhere is no error. Older versions of a model hold sums over all their units, and no id. With
    `purge` versions of tables before this one cannot be read any more, so earlier runs cannot be rebuilt; models in use
    still can, and be erased from: their training rows are kept in silver.trained_<model>_<version>.

    The audit log gets two entries, before the first row goes and after the last: the first without the other is a run
    that was killed.
    """
    key = key_of(config)
    clear = tuple(dict.fromkeys(map(plain_id, erasure.units)))
    erasure = replace(erasure, units=clear if key is None else tuple(pseudonym(key, unit) for unit in clear))
    registry = Registry.of(config)
    run_id = f"erase-{uuid.uuid4().hex[:16]}"  # a hash of the ids would say whether a unit was among them
    written: list[Written] = []
    details: dict[str, object] = {"units": len(erasure.units)}
    subject = f"units of run {run_id}" if erasure.units else f"old files and logs, run {run_id}"
    event = AuditEvent("", "erase", subject, erasure.reason, "", run_id, {"code": code_version()}, details)
    record_event(config, lake, replace(event, details={**details, "purge": erasure.purge}))  # no row goes without it
    if erasure.units:
        units = lake.spark.createDataFrame([(unit,) for unit in erasure.units], f"{UNIT} string")
        new_versions = {}
        for base in models_in_use(config, lake, registry):
            kept = _erase_from_model(config, lake, registry, base, F.broadcast(units), progress)
            if kept is not None:
                written.append(kept)
                new_versions[f"version {base.version}"] = f"is now version {registry.current(base).version}"
        models_in_use(config, lake, registry)  # moves the alias
        removed = {}
        for name, erase in (beside or {}).items():  # first: what is still there could be loaded into the tables again
            if gone := erase(clear):
                progress(f"{name}: {gone:,} entries removed")
                removed[name] = gone
        for table in lake.tables():
            if gone := erase_units(lake, table, units):
                progress(f"{table}: {gone:,} rows removed")
                removed[table] = gone
        details |= {"removed": removed or "0 rows", "model": new_versions or "no version in use was trained on them"}
    if erasure.purge:
        details["purged"] = _purge_all(config, lake, registry, progress)
    versions = {**event.versions, **{one.table: one.version for one in written}}
    record_event(config, lake, replace(event, action="erased", versions=versions, details=details))
    return JobResult.of("erase", run_id, *written, **details)


def models_in_use(config: Config, lake: Lake, registry: Registry) -> list[Registered]:
    """The champion, and the version that the configuration names if it is another one.

    Of a version that units were erased from what came of it; the alias champion moves there, if it was not yet.
    """
    champion, named = registry.known(config.model_name), config.registry.version
    models = [] if champion is None else [registry.current(champion)]
    if champion is not None and champion.version != models[0].version:
        promote(config, lake, registry, models[0], f"units were erased from version {champion.version}")
    other = registry.known(config.model_name, named) if named else None
    models += [] if other is None else [registry.current(other)]
    return list({model.version: model for model in models}.values())


def _erase_from_model(
    config: Config,
    lake: Lake,
    registry: Registry,
    base: Registered,
    units: DataFrame,
    progress: ProgressCallback,
) -> Written | None:
    """Register a version of `base` that never saw the units; None when `base` never did.

    Its training rows, those of `base` less the units, become the newest version of a table of their own: whatever has
    become of the campaign's training table since, the next erasure starts from there.
    """
    table, version = training_table_of(base)
    rows = lake.read(table, version).where("split = 'train'")
    with still_there(table, version, "train the model again, then erase"):
        if rows.join(units, UNIT, "left_semi").isEmpty():
            return None
        progress(f"{base.name} version {base.version} was trained on some of the units: estimating it without them")
        left = rows.join(units, UNIT, "left_anti")
        run_id = derive_run_id("erase", {}, left=digest(left, left.columns), **_identity(base))
        kept = lake.write(_kept_table(config, base), left, run_id, mode="overwrite")
    _register(config, lake, registry, base, kept, progress)
    return kept


def _register(
    config: Config, lake: Lake, registry: Registry, base: Registered, kept: Written, progress: ProgressCallback
) -> None:
    """Estimate the trees of `base` from the rows kept, register that forest; raises ConflictError if `base` has one.

    Rows of a refreshed forest that fade count alike again, until the next refresh.
    """
    frame, started = lake.read(kept.table, kept.version), time.monotonic()
    model = UpliftModel(registry.load(registry.trees_of(base))).estimate(frame, progress)
    params, metrics = log_facts(model.model, time.monotonic() - started)
    if registry.current(base).version != base.version:
        raise ConflictError(f"another erasure took units out of {base.name} version {base.version}: run this one again")
    run_id = derive_run_id("erase", {}, rows=[kept.table, kept.version], **_identity(base))
    data = {kept.table: kept.version}
    roles, inputs = model.roles, dict(frame.dtypes)
    origin = Origin(run_id, roles, inputs, data, kept.version, code_version(), base.params, base.version)
    params = {"campaign": config.campaign, "erasure_of": base.version, **params}
    registry.log_model(config.model_name, model.to_bytes(), origin, params, metrics)


def _purge_all(config: Config, lake: Lake, registry: Registry, progress: ProgressCallback) -> str:
    for base in models_in_use(config, lake, registry):
        keep_training_rows(config, lake, registry, base)
    tables = lake.tables()
    for table in tables:
        progress(f"purging {table}")
        purge(lake, table, log=not table.startswith(TRAINED_TABLES))
    return f"{len(tables)} tables; what their logs tell of rows written today goes with a purge tomorrow (UTC)"


def keep_training_rows(config: Config, lake: Lake, registry: Registry, base: Registered) -> None:
    """Have the model's training rows in the newest version of a table of their own, so that they stay when old files of
    all others go.

    Raises DataError where the version that it was trained on cannot be read any more.
    """
    table, version = training_table_of(base)
    rows = lake.read(table, version)
    with still_there(table, version, "train the model again, then purge"):
        if table.startswith(TRAINED_TABLES) and rows.select(RUN_ID).first() == lake.read(table).select(RUN_ID).first():
            return
        run_id = derive_run_id("keep", {}, **_identity(base))
        kept = lake.write(_kept_table(config, base), rows.where("split = 'train'"), run_id, mode="overwrite")
    registry.set_data_versions(base, {kept.table: kept.version})


def _identity(model: Registered) -> dict[str, object]:
    return {"model": [model.name, model.version, model.sha256], "data": dict(model.data_versions)}


def training_table_of(model: Registered) -> tuple[str, int]:
    """Table and Delta version that a model was trained on, or that its rows were moved to."""
    ((table, version),) = model.data_versions.items()
    return table, version


def _kept_table(config: Config, base: Registered) -> str:
    """One table for a trained version and all erasures from it."""
    table, _ = training_table_of(base)
    return table if table.startswith(TRAINED_TABLES) else f"{TRAINED_TABLES}{config.model_name}_{base.version}"
