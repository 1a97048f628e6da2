"""Write three pages for the browser (executive, on-call, debug), serve them, or write them as AI/BI dashboards.

Reads gold tables; for what-if also the training table's hold-out as it was scored. Writes executive.html, oncall.html
and debug.html, each of which stands alone, and no table; a folder on this machine is read without Java. `serve` shows
the pages and follows the tables; `lakeview` writes .lvdash.json files for Databricks, whose queries read a catalog, and
views.sql, which creates the gold views there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from uplift_spark.campaign import Campaign, Scored
from uplift_spark.config import Config
from uplift_spark.console import err, main_job, read_config
from uplift_spark.dashboards.lakeview import LakeviewParameters, lakeview_files
from uplift_spark.dashboards.pages import HOST, FreshPages, dashboard_pages, page_server
from uplift_spark.dashboards.tables import GOLD_OF_PAGES, CampaignTables, PolicyFacts
from uplift_spark.dashboards.whatif import MOST_GROUPS, whatif_sums, whatif_units
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem, UpliftError
from uplift_spark.gold_views import create_views
from uplift_spark.governance.permissions import check_permitted
from uplift_spark.lake.local_tables import local_tables
from uplift_spark.lake.schemas import DECISIONS_TABLE, SCORES_TABLE, gold_table
from uplift_spark.policy.allocation import CHOSEN, NOT_WORTH
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress, write_files
from uplift_spark.sections.source import Simulation
from uplift_spark.spark_versions import sql_text

READS_RESULTS = True  # so Spark starts only where DuckDB cannot read them
NAMES_ITS_RUN = True  # pages have no run: they show those of the tables
MOST_SCORES = 4_000_000
"""Rows of gold.uplift_scores that one machine adds up for what-if in seconds."""
_MOST_NUMBERS = 500_000  # of all campaigns' sums in one page
_OF_LIFT = {"lift_table": "lift_table", "uplift_curve": "curve", "uplift_metrics": "metrics", "lift_driver": "drivers"}
_OF_NEWEST_RUN = {"policy_limits": "policy", "policy_curve": "policy", "policy_scenarios": "simulate"}
_FOLLOWED_EVERY = 300.0  # seconds, where the tables are no folder of this machine
_BINS = 30


@dataclass(frozen=True)
class DashboardRequest:
    """What to do with the pages: write them `to` a folder, or serve them on a port.

    also  configurations of further campaigns on the same pages

    Raises ConfigError for anything but `serve`.
    """

    what: str = "write"
    to: Path | None = None
    also: tuple[Path, ...] = ()
    port: int = 8750

    def __post_init__(self) -> None:
        if self.what not in ("write", "serve", "lakeview"):
            raise ConfigError(f"`uplift dashboard` has no {self.what!r}: leave it out, or write `serve` or `lakeview`")


def options(
    what: Annotated[str, typer.Argument(help="write, serve, or lakeview.")] = "write",
    to: Annotated[Path | None, typer.Option(help="Folder of the pages; by default beside the reports.")] = None,
    also: Annotated[list[Path] | None, typer.Option(help="YAML of a further campaign; repeatable.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of `serve`, on this machine alone.")] = 8750,
) -> dict[str, Any]:
    """What to do with the pages."""
    return {"request": DashboardRequest(what, to, tuple(also or ()), port)}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    request: DashboardRequest | None = None,
) -> JobResult:
    """Write or serve the pages of the campaign and of further ones."""
    request = request or DashboardRequest()
    every = [campaign]
    for conf in request.also:
        config = read_config(conf, (), "dashboard")
        shared = config.lakehouse == campaign.config.lakehouse  # one session, one cache of tables
        every.append(campaign.changed(config) if shared else Campaign(config))
    if request.what == "serve":
        return _serve(every, request.port)
    if request.what == "lakeview":
        return _lakeview(campaign, request.to)
    progress("reading tables")
    pages = dashboard_pages([campaign_tables(one, len(every)) for one in every])
    folder = request.to or campaign.reports("dashboards")
    write_files(folder, pages)  # each whole: a killed run leaves the page before
    sizes = {name: f"{len(text.encode()) / 1e6:.2f} MB" for name, text in pages.items()}
    return JobResult("dashboard", "", details={"folder": folder, "pages": sizes})


def _lakeview(campaign: Campaign, to: Path | None) -> JobResult:
    """Write the pages for AI/BI dashboards of Databricks."""
    catalog = campaign.config.lakehouse.catalog
    if catalog is None:
        raise ConfigError(
            "AI/BI dashboards read tables of a catalog, and lakehouse.catalog is not set: name it, as with "
            "--set lakehouse.catalog=main"
        )
    files = lakeview_files(LakeviewParameters(catalog, campaign.name, campaign.config.roles.outcome))
    files["views.sql"] = create_views(catalog)
    folder = to or campaign.reports("dashboards")
    write_files(folder, files)
    return JobResult("dashboard", "", details={"folder": folder, "files": ", ".join(files)})


def _serve(campaigns: Sequence[Campaign], port: int) -> JobResult:
    def fingerprint() -> str:
        folders, now = [local_tables(one.config.lakehouse) for one in campaigns], datetime.now(UTC).timestamp()
        if gone := [one.path for one in folders if one is not None and not one.path.is_dir()]:
            raise DataError(f"lakehouse {gone[0]} is not there: put it back, or name another by lakehouse.path")
        known = [str(int(now // _FOLLOWED_EVERY)) if one is None else one.fingerprint() for one in folders]
        return "-".join(dict.fromkeys(known))

    def make(version: str) -> Mapping[str, str]:
        return dashboard_pages([campaign_tables(one, len(campaigns)) for one in campaigns], version)

    pages = FreshPages(fingerprint, make)
    try:
        server = page_server(pages, port)
    except OSError as error:
        fix = "name another by `--port`, or 0 for any that is free"
        raise EnvironmentProblem(f"port {port} of {HOST} cannot be used ({error.strerror or error}): {fix}") from error
    try:
        pages.current()  # what is wrong with the tables is said here
    except BaseException:
        server.server_close()
        raise
    threading.Thread(target=server.serve_forever, daemon=True).start()
    err().print(f"serving on http://{HOST}:{server.server_address[1]} until Ctrl-C", soft_wrap=True)
    try:
        pages.follow()
    except KeyboardInterrupt:
        err().print("stopped")
    finally:
        server.shutdown()
        server.server_close()
    return JobResult("dashboard", "")


# --------------------------------------------------------------------------------------------------------------------
# Reading.


def campaign_tables(campaign: Campaign, campaigns: int = 1) -> CampaignTables:
    """Read what the pages show of a campaign.

    Args:
        campaign: The campaign; a folder of this machine is read without Spark.
        campaigns: How many share the pages: what-if has fewer groups of many.

    Returns:
        Its tables; what is not there yet has no entry.
    """
    config, local = campaign.config, local_tables(campaign.config.lakehouse)
    there = set(local.names() if local is not None else campaign.lake.tables())
    frames = {name: _rows_of(campaign, name) for name in GOLD_OF_PAGES if gold_table(name) in there}
    scored = _or_none(campaign.last_scored) if SCORES_TABLE in there else None
    levels = _levels(campaign, frames)
    parts: dict[str, Any] = {"why_not": "", "decisions": None}
    try:
        check_permitted(config, "simulate")
        parts |= _of_units(campaign, there, scored, levels, campaigns)
    except UpliftError as error:
        parts["why_not"] = f"What-if is left out: {error}."
    versions = [] if local is None else [one for one in local.sizes() if not one[0].startswith("bronze")]
    roles = config.roles
    return CampaignTables(
        campaign.name, roles.control, roles.outcome, roles.direction, _policy_facts(config, levels),
        {name: rows for name, rows in frames.items() if rows is not None},
        versions=tuple(versions), hours=float(config.monitoring.hours),
        kpi_level=1 - config.monitoring.alpha, simulated=isinstance(config.source, Simulation),
        **parts,
    )  # fmt: skip


def _or_none(read: Any) -> Any:
    try:
        return read()
    except DataError:
        return None


def _rows_of(campaign: Campaign, name: str) -> pd.DataFrame | None:
    """Rows of the campaign: of its newest run where a run replaces the one before it."""
    if name in _OF_LIFT:
        rows: pd.DataFrame | None = _or_none(getattr(campaign, _OF_LIFT[name]))
        return rows
    table, mine = gold_table(name), f"{CAMPAIGN} = {sql_text(campaign.name)}"
    if name in _OF_NEWEST_RUN:
        run_id = _or_none(lambda: campaign.newest_run(table, _OF_NEWEST_RUN[name]))
        if run_id is None:
            return None
        mine += f" AND {RUN_ID} = {sql_text(run_id)}"
    return campaign.sql(f"SELECT * FROM {table} WHERE {mine}")


def _levels(campaign: Campaign, frames: Mapping[str, pd.DataFrame | None]) -> list[str]:
    lift = frames.get("lift_table")
    return [] if lift is None else [str(level) for level in dict.fromkeys(lift[TREATMENT])]


def _policy_facts(config: Config, levels: Sequence[str]) -> PolicyFacts:
    policy, economics = config.policy, config.economics
    budget = policy.budget if policy.budget is not None and np.isfinite(policy.budget) else None
    return PolicyFacts(
        economics.value, economics.cost, budget, policy.objective == "profit", policy.bound == "lower",
        tuple(limit.name for limit in policy.limits), tuple(level for level in levels if level in policy.costs_by_unit),
    )  # fmt: skip


def _of_units(
    campaign: Campaign, there: set[str], scored: Scored | None, levels: Sequence[str], campaigns: int
) -> dict[str, Any]:
    """Sums over the rows of units: decisions, widths and distribution of scores, groups for what-if."""
    plan = _or_none(campaign.plan_run) if DECISIONS_TABLE in there else None
    parts: dict[str, Any] = {"decisions": _decisions(campaign, plan), "plan_run": plan or ""}
    if scored is None or not levels:
        return parts | {"why_not": "What-if is left out: nothing was scored and evaluated yet."}
    parts["scores_run"] = scored.run_id
    of_run = f"model_name = {sql_text(scored.model_name)} AND {RUN_ID} = {sql_text(scored.run_id)}"
    n = int(campaign.sql(f"SELECT count(*) AS n FROM {SCORES_TABLE} WHERE {of_run}")["n"].iloc[0])
    if n > MOST_SCORES:
        return parts | {
            "why_not": f"What-if is left out: {n:,} scores are too many to add up here; use `uplift simulate`."
        }
    columns = f"{UNIT}, {TREATMENT}, uplift, uplift_lower, uplift_upper"
    scores = campaign.sql(f"SELECT {columns} FROM {SCORES_TABLE} WHERE {of_run}")
    for level, rows in scores.groupby(TREATMENT):
        width = (rows["uplift_upper"] - rows["uplift_lower"]).mean()
        parts.setdefault("widths", {})[str(level)] = (float(width), len(rows))
        counts, edges = np.histogram(rows["uplift"].dropna(), _BINS)
        parts.setdefault("histogram", {})[str(level)] = (edges.tolist(), counts.tolist())
    return parts | _whatif(campaign, plan, scored, scores, levels, campaigns)


def _decisions(campaign: Campaign, plan: str | None) -> pd.DataFrame | None:
    if plan is None:
        return pd.DataFrame(columns=[TREATMENT, "reason", "n", "gain", "cost"])
    return campaign.sql(
        f"SELECT {TREATMENT}, reason, count(*) AS n, sum(gain) AS gain, sum(cost) AS cost FROM {DECISIONS_TABLE} "
        f"WHERE {CAMPAIGN} = {sql_text(campaign.name)} AND {RUN_ID} = {sql_text(plan)} GROUP BY {TREATMENT}, reason"
    )


def _whatif(
    campaign: Campaign, plan: str | None, scored: Scored, scores: pd.DataFrame, levels: Sequence[str], campaigns: int
) -> dict[str, Any]:
    config, why = campaign.config, ""
    profit, outcome = config.policy.objective == "profit", config.roles.outcome
    if profit and not config.economics.value.get(outcome, -1.0) >= 0:
        return {"why_not": f"What-if is left out: economics.value.{outcome} is not set, so no plan can be valued."}
    free = scores[UNIT].unique().tolist()
    if plan is not None:
        rows = campaign.sql(f"SELECT {UNIT}, reason FROM {DECISIONS_TABLE} WHERE {RUN_ID} = {sql_text(plan)}")
        free = rows.loc[rows["reason"].isin([CHOSEN, NOT_WORTH]), UNIT].tolist()
    holdout = None
    if config.roles.cluster is not None:
        why = "Units come in clusters, so the hold-out's interval of a scenario is left to `uplift simulate`."
    else:
        holdout, why = _holdout(campaign, scored)
    units = whatif_units(scores, free, levels, holdout, config.roles.direction, config.roles.control)
    if not len(units):
        return {"why_not": "What-if is left out: no unit may be treated, a rule bars each."}
    columns = 2 * (1 + len(levels) + 3 * (len(levels) + 1))  # numbers of a group, grouped in two ways
    most = max(64, min(MOST_GROUPS, _MOST_NUMBERS // columns // campaigns))
    return {"whatif": whatif_sums(units, levels, 1 << (most.bit_length() - 1)), "why_not": why}


def _holdout(campaign: Campaign, scored: Scored) -> tuple[pd.DataFrame | None, str]:
    roles = campaign.config.roles
    try:
        rows = campaign.sql(
            f"SELECT {UNIT}, {TREATMENT}, propensity, `{roles.outcome}` AS outcome FROM {campaign.training_table} "
            f"VERSION AS OF {scored.feature_version} WHERE split = 'holdout'"
        )
    except UpliftError as error:
        return (
            None,
            f"The hold-out was not read ({error}), so what scenarios bring is predicted alone.",
        )
    return rows, ""


if __name__ == "__main__":
    main_job(run, options)
