"""Add the labels that have come since training to the champion's trees, without growing them anew, and register that.

Reads silver.training_<campaign> at one Delta version, and the one the trees were grown on; writes no table.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.refreshing import due, grown, refresh
from uplift_spark.operations.registry import Registry
from uplift_spark.operations.runs import JobResult, Say, derive_run_id, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent) -> JobResult:
    """Refresh, register, point the alias champion at it when `registry.champion` asks so, say if a regrow is due."""
    registry = Registry.of(config)
    base, table = grown(config, registry), config.training_table
    version = lake.version(table)
    same_trees = [base.name, base.version, base.sha256]
    run_id = run_id or derive_run_id("refresh", config, data={table: version}, trees=same_trees)
    if dict(base.data_versions) == {table: version} and config.refresh.half_life_days is None:
        known = {"model": base.name, "version": base.version, "trees_of": base.version}
        return JobResult.of("refresh", run_id, **known, regrow="not due: no row is new since these trees were grown")
    model = registry.version_for_run(config.model_name, run_id)
    if model is None:
        model = refresh(config, lake, registry, base, (table, version, run_id), say)
    else:
        say(f"{model.name} version {model.version} is registered already")
    if config.registry.champion:
        registry.set_champion(model)
    regrow = due(registry.logged_metrics(model.name, run_id) or {})
    found = {"model": model.name, "version": model.version, "trees_of": base.version, "regrow": regrow}
    return JobResult.of("refresh", run_id, **found)


if __name__ == "__main__":
    main_job(run)
