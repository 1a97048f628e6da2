"""Erasure of units on request: from the models in use, from every table, and from what tables leave behind (R1.7).

The order makes a rerun complete what a killed run began: forests without the units are registered before the rows go
that they are estimated from, and every step finds out by itself what is left to do. Ids are stored nowhere; run ids
are hashes over them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.flow.pseudonyms import key_of, pseudonym
from uplift_spark.flow.verbs import UpliftModel
from uplift_spark.lake.erasure import erase_units, purge
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.operations.rebuild import still_there
from uplift_spark.operations.registry import Origin, Registered, Registry, facts_of
from uplift_spark.operations.runs import JobResult, Say, code_version, derive_run_id, silent
from uplift_spark.vocabulary import RUN_ID, UNIT, ConfigError, ConflictError

_KEPT = "silver.trained_"


@dataclass(frozen=True)
class Erasure:
    """Whom to erase, and whether to remove what tables leave behind of all that is deleted.

    Raises ConfigError for a blank id, and when there is nothing to do.
    """

    units: tuple[str, ...] = ()
    purge: bool = False

    def __post_init__(self) -> None:
        blank = sum(not unit.strip() for unit in self.units)
        if blank:
            raise ConfigError(f"{blank} of {len(self.units)} units to erase are blank: correct --unit or --units")
        if not self.units and not self.purge:
            raise ConfigError("nothing to erase: name units with --unit or --units, or give --purge")

    @classmethod
    def asked(cls, units: Sequence[str] | None, file: Path | None, purge: bool) -> Erasure:
        """Of the command's options; `file` holds one id a line."""
        try:
            listed = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--units {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if file is not None and not listed:
            raise ConfigError(f"--units {file} is empty: it must hold one id a line")
        return cls(tuple(dict.fromkeys([*(units or ()), *listed])), purge)


def erase(config: Config, lake: Lake, erasure: Erasure, say: Say = silent) -> JobResult:
    """Erase units from the leaf sums of the champion and of the version `registry.version` names, then from all tables.

    A unit that is nowhere is no error. Older versions of a model hold sums over all their units, and no id. With
    `purge` versions of tables before this one cannot be read any more, so earlier runs cannot be rebuilt; models in use
    still can, and be erased from: their training rows are kept in silver.trained_<model>_<version>.
    """
    key = key_of(config)
    if key is not None:
        erasure = replace(erasure, units=tuple(pseudonym(key, unit) for unit in erasure.units))
    registry = Registry.of(config)
    run_id = derive_run_id("erase", {"units": sorted(erasure.units)})
    written: list[Written] = []
    details: dict[str, object] = {"units": len(erasure.units)}
    if erasure.units:
        units = lake.spark.createDataFrame([(unit,) for unit in erasure.units], f"{UNIT} string")
        made = {}
        for base in models_in_use(config, registry):
            kept = _erase_from_model(config, lake, registry, base, (erasure.units, units), say)
            if kept is not None:
                written.append(kept)
                made[f"version {base.version}"] = f"is now version {registry.current(base).version}"
        models_in_use(config, registry)  # moves the alias
        removed = {}
        for table in lake.tables():
            if gone := erase_units(lake, table, units):
                say(f"{table}: {gone:,} rows removed")
                removed[table] = gone
        details |= {"removed": removed or "0 rows", "model": made or "no version in use was trained on them"}
    if erasure.purge:
        details["purged"] = _purge_all(config, lake, registry, say)
    return JobResult.of("erase", run_id, *written, **details)


def models_in_use(config: Config, registry: Registry) -> list[Registered]:
    """The champion, and the version that the configuration names if it is another one.

    Of a version that units were erased from what came of it; the alias champion moves there, if it was not yet.
    """
    champion, named = registry.known(config.model_name), config.registry.version
    found = [] if champion is None else [registry.current(champion)]
    if champion is not None and champion.version != found[0].version:
        registry.set_champion(found[0])
    other = registry.known(config.model_name, named) if named else None
    found += [] if other is None else [registry.current(other)]
    return list({model.version: model for model in found}.values())


def _erase_from_model(
    config: Config, lake: Lake, registry: Registry, base: Registered, gone: tuple[tuple[str, ...], DataFrame], say: Say
) -> Written | None:
    """Register a version of `base` that never saw the units; None when `base` never did.

    Its training rows, those of `base` less the units, become the newest version of a table of their own: whatever has
    become of the campaign's training table since, the next erasure starts from there.
    """
    ids, units = gone[0], F.broadcast(gone[1])
    table, version = _rows_of(base)
    rows = lake.read(table, version).where("split = 'train'")
    with still_there(table, version, "train the model again, then erase"):
        if rows.join(units, UNIT, "left_semi").isEmpty():
            return None
        say(f"{base.name} version {base.version} was trained on some of the units: estimating it without them")
        run_id = derive_run_id("erase", {"units": sorted(ids)}, **_identity(base))
        kept = lake.write(_kept_table(config, base), rows.join(units, UNIT, "left_anti"), run_id, mode="overwrite")
    _register(config, lake, registry, base, kept, say)
    return kept


def _register(config: Config, lake: Lake, registry: Registry, base: Registered, kept: Written, say: Say) -> None:
    """Estimate the trees of `base` from the rows kept, register that forest; raises ConflictError if `base` has one.

    Rows of a refreshed forest that fade count alike again, until the next refresh.
    """
    frame, started = lake.read(kept.table, kept.version), time.monotonic()
    model = UpliftModel(registry.load(registry.trees_of(base))).estimate(frame, say)
    params, metrics = facts_of(model.model, time.monotonic() - started)
    if registry.current(base).version != base.version:
        raise ConflictError(f"another erasure took units out of {base.name} version {base.version}: run this one again")
    run_id = derive_run_id("erase", {}, rows=[kept.table, kept.version], **_identity(base))
    data = {kept.table: kept.version}
    roles, inputs = model.roles, dict(frame.dtypes)
    origin = Origin(run_id, roles, inputs, data, kept.version, code_version(), base.params, base.version)
    params = {"campaign": config.campaign, "erasure_of": base.version, **params}
    registry.log_model(config.model_name, model.to_bytes(), origin, params, metrics)


def _purge_all(config: Config, lake: Lake, registry: Registry, say: Say) -> str:
    for base in models_in_use(config, registry):
        _keep_rows(config, lake, registry, base)
    tables = lake.tables()
    for table in tables:
        say(f"purging {table}")
        purge(lake, table, log=not table.startswith(_KEPT))
    return f"{len(tables)} tables; what their logs tell of rows written today goes with a purge tomorrow (UTC)"


def _keep_rows(config: Config, lake: Lake, registry: Registry, base: Registered) -> None:
    """Have the model's training rows in the newest version of a table of their own, so that purging leaves them."""
    table, version = _rows_of(base)
    rows = lake.read(table, version)
    with still_there(table, version, "train the model again, then purge"):
        if table.startswith(_KEPT) and rows.select(RUN_ID).first() == lake.read(table).select(RUN_ID).first():
            return
        run_id = derive_run_id("keep", {}, **_identity(base))
        kept = lake.write(_kept_table(config, base), rows.where("split = 'train'"), run_id, mode="overwrite")
    registry.set_data_versions(base, {kept.table: kept.version})


def _identity(model: Registered) -> dict[str, object]:
    return {"model": [model.name, model.version, model.sha256], "data": dict(model.data_versions)}


def _rows_of(model: Registered) -> tuple[str, int]:
    ((table, version),) = model.data_versions.items()
    return table, version


def _kept_table(config: Config, base: Registered) -> str:
    """One table for a trained version and all erasures from it."""
    table, _ = _rows_of(base)
    return table if table.startswith(_KEPT) else f"{_KEPT}{config.model_name}_{base.version}"
