"""Merge the small files of tables and order their rows by the columns queries ask for; no row changes.

Older versions stay readable. Append-only tables are optimized as all others: nothing is added or taken away.
"""

from __future__ import annotations

from typing import Any

from uplift_spark.cli import main_job
from uplift_spark.cli import optimize as command
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent


def run(
    config: Config,
    lake: Lake,
    run_id: str | None = None,
    say: ProgressCallback = silent,
    *,
    tables: tuple[str, ...] = (),
) -> JobResult:
    """Optimize `tables`, all by default; one that has not changed since is left alone."""
    tables = tables or tuple(lake.tables())
    run_id = run_id or derive_run_id("optimize", {"tables": tables})
    details: dict[str, Any] = {"optimized": 0}
    for table in tables:
        found = lake.optimize(table, run_id)
        files, size = (f"{before:,} -> {after:,}" for before, after in (found.files, found.bytes))
        say(f"{table}: " + (f"{files} files" if found.done else "nothing to do"))
        details["optimized"] += found.done
        details[table] = {"files": files, "bytes": size, "version": found.version}
    return JobResult("optimize", run_id, details=details)


if __name__ == "__main__":
    main_job(run, command)
