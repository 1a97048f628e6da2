"""Merge the small files of tables and order their rows by the columns queries ask for; no row changes.

Older versions stay readable. Append-only tables are optimized as all others: nothing is added or taken away.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress


def options(
    table: Annotated[list[str] | None, typer.Option(help="Only this table; repeatable.")] = None,
) -> dict[str, Any]:
    """Which tables to optimize."""
    return {"tables": tuple(table or ())}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    tables: tuple[str, ...] = (),
) -> JobResult:
    """Optimize `tables`, all by default; one that has not changed since is left alone."""
    lake = campaign.lake
    tables = tables or tuple(lake.tables())
    run_id = run_id or derive_run_id("optimize", {"tables": tables})
    details: dict[str, Any] = {"optimized": 0}
    for table in tables:
        optimized = lake.optimize(table, run_id)
        files, size = (f"{before:,} -> {after:,}" for before, after in (optimized.files, optimized.bytes))
        progress(f"{table}: " + (f"{files} files" if optimized.rewritten else "nothing to do"))
        details["optimized"] += optimized.rewritten
        details[table] = {"files": files, "bytes": size, "version": optimized.version}
    return JobResult("optimize", run_id, details=details)


if __name__ == "__main__":
    main_job(run, options)
