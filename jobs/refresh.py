"""Add the labels that have come since training to the champion's trees, without growing them anew, and register that.

Reads silver.training_<campaign> at one Delta version, and the one the trees were grown on; writes no table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError, UnfitRowsError
from uplift_spark.estimators import UpliftModel
from uplift_spark.events.features import hash_sample
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.refresh import LEVEL, forest_residuals, staleness
from uplift_spark.governance.approvals import settle
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Origin, Registered, log_facts, refresh_model, still_there
from uplift_spark.roles import UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress

STALENESS_ROWS = (
    200_000  # of training and of new rows, at most about, that are looked at for splits that have become stale
)
DUE = "due: "  # how the text of a regrow begins that is
TREBLED = 3  # times the rows that trees were grown on: more rows than these deserve finer trees


def grown_version(campaign: Campaign) -> Registered:
    """The version whose trees the champion has, or the version that `registry.version` names: itself if it was grown.

    Raises ConfigError where there is none.
    """
    registry = campaign.registry
    return registry.trees_of(registry.current(campaign.model_in_use))


def refresh(
    campaign: Campaign,
    base: Registered,
    version: int,
    run_id: str,
    progress: ProgressCallback,
    unless_due: bool = False,
) -> Registered | str:
    """Register `base` with the sums of the training rows as of this version of their table.

    With `unless_due` nothing is registered where a regrow is due, and the result is why: splits that have become stale,
    or rows that only a new forest can take. Raises ConfigError for a model that is no causal forest, or whose roles are
    not the configuration's, and UnfitRowsError for such rows without `unless_due`.
    """
    config, table = campaign.config, campaign.training_table
    model = UpliftModel(campaign.registry.load(base))
    _check(campaign, base, model)
    frame, started = campaign.training_set(version), time.monotonic()
    rows = frame.where("split = 'train'")
    tested, grown_on = None, model.forest.facts["rows"]
    if unless_due:
        tested = _stale(campaign.lake, base, model.forest, rows, config.seed, progress)
        why = due({"rows": rows.count(), "rows_grown_on": grown_on, **tested})
        if why.startswith(DUE):
            return why
    how = {"of": base.version, "half_life_days": config.refresh.half_life_days}
    try:
        refreshed_model = refresh_model(model, rows, how, progress)
    except UnfitRowsError as error:  # such as a category that has come since
        if unless_due:
            return f"{DUE}{error}"
        raise
    params, metrics = log_facts(refreshed_model.model, time.monotonic() - started)
    if tested is None:
        tested = _stale(campaign.lake, base, model.forest, rows, config.seed, progress)
    roles, inputs = model.roles, dict(frame.dtypes)
    origin = Origin(run_id, roles, inputs, {table: version}, version, code_version(), base.params, refresh=how)
    params = {"campaign": config.campaign, "refresh_of": base.version, **params}
    metrics = {**metrics, "rows_grown_on": grown_on, **tested}
    return campaign.registry.log_model(config.model_name, refreshed_model.to_bytes(), origin, params, metrics)


def due(metrics: Mapping[str, float]) -> str:
    """Whether trees should be grown anew, and why, from the figures of a refreshed version."""
    rows, grown_on, stale = metrics["rows"], metrics["rows_grown_on"], metrics.get("stale_p")
    if stale is not None and stale < LEVEL:
        return f"{DUE}the splits cannot tell apart what new rows do (p = {stale:.2g})"
    if rows > TREBLED * grown_on:
        return f"{DUE}{rows:,.0f} rows deserve finer trees than the {grown_on:,.0f} they were grown on"
    return "not due" if stale is not None else "not due by the number of rows; splits were not tested"


def _check(campaign: Campaign, base: Registered, model: UpliftModel) -> None:
    where = f"model {base.name!r} version {base.version}"
    if not isinstance(model.model, Forest):
        raise ConfigError(f"{where} is no causal forest, and only sums in its trees add: use `uplift train`")
    roles = campaign.config.training_roles
    if replace(model.roles, direction=roles.direction) != roles:  # which way is better changes no sum
        raise ConfigError(f"{where} was trained with other roles than the configuration's: use `uplift train`")


def _stale(
    lake: Lake, base: Registered, forest: Forest, rows: DataFrame, seed: int, progress: ProgressCallback
) -> dict[str, float]:
    """rows_new; and p-values changed_p and stale_p of `forest.refresh`, where rows can be compared.

    New are units that the base was not trained on; of units it knows, new values are not looked for.
    """
    ((table, version),) = base.data_versions.items()
    known = lake.read(table, version).where("split = 'train'")
    try:
        with still_there(table, version, "train anew"):
            ids = rows.select(UNIT).join(known.select(UNIT), UNIT, "left_anti")
            n = ids.count()
            if not n or forest.roles.cluster is not None:
                progress("whether splits are stale is not tested: " + ("units in clusters" if n else "no unit is new"))
                return {"rows_new": n}
            some = ids.where(hash_sample(seed, min(1.0, STALENESS_ROWS / n)))
            columns = [f"`{column}`" for column in forest.roles.columns]
            new = rows.join(F.broadcast(some), UNIT, "left_semi").select(*columns).toArrow()
            share = min(1.0, STALENESS_ROWS / forest.facts["rows"])
            old = known.where(hash_sample(seed, share)).select(*columns).toArrow()
    except DataError as error:
        progress(f"whether splits are stale is not tested: {error}")
        return {}
    progress(f"asking {new.num_rows:,} new rows whether the splits are stale")
    test = staleness(forest, forest_residuals(forest, old), new)
    progress(f"effects have changed: p = {test.changed:.2g}; splits are stale: p = {test.stale:.2g}, by {test.feature}")
    return {"rows_new": n, "changed_p": test.changed, "stale_p": test.stale}


def options(
    unless_due: Annotated[
        bool, typer.Option("--unless-due", help="Test the splits first, and register nothing where a regrow is due.")
    ] = False,
) -> dict[str, Any]:
    """Whether splits are tested first."""
    return {"unless_due": True} if unless_due else {}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    unless_due: bool = False,
) -> JobResult:
    """Refresh, register, point the alias champion at it when `registry.champion` asks so, say if a regrow is due."""
    config, registry, table = campaign.config, campaign.registry, campaign.training_table
    base, version = grown_version(campaign), campaign.lake.version(table)
    same_trees = [base.name, base.version, base.sha256]
    run_id = run_id or campaign.run_id("refresh", data={table: version}, trees=same_trees)
    if dict(base.data_versions) == {table: version} and config.refresh.half_life_days is None:
        known = {"model": base.name, "version": base.version, "trees_of": base.version}
        return JobResult.of("refresh", run_id, **known, regrow="not due: no row is new since these trees were grown")
    model = registry.version_for_run(config.model_name, run_id)
    if model is None:
        refreshed = refresh(campaign, base, version, run_id, progress, unless_due)
        if isinstance(refreshed, str):
            return JobResult.of("refresh", run_id, model=base.name, trees_of=base.version, regrow=refreshed)
        model = refreshed
    else:
        progress(f"{model.name} version {model.version} is registered already")
    settle(config, campaign.lake, registry, model, run_id, progress)
    regrow = due(registry.figures_of(model))
    details = {"model": model.name, "version": model.version, "trees_of": base.version, "regrow": regrow}
    return JobResult.of("refresh", run_id, **details)


if __name__ == "__main__":
    main_job(run, options)
