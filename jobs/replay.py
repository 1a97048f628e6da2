"""Append rows of bronze.quarantine, repaired, to the raw table they were meant for.

Rows that still break a rule stay where they are; quarantine never changes.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.cli import replay as command
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.replaying import Replay, replayed
from uplift_spark.operations.runs import JobResult, Say, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent, *, replay: Replay) -> JobResult:
    """Add each repaired row that meets the contract now and that no replay has added."""
    new = replayed(replay, lake, run_id, say)
    if new.good is None:
        say("no row to add")
        return JobResult.of("replay", new.run_id, replayed=0, still_broken=new.broken, already_replayed=new.already)
    written = lake.write(replay.table, new.good, new.run_id)
    already = new.already + new.rows - written.rows
    return JobResult.of(
        "replay", new.run_id, written, replayed=written.rows, still_broken=new.broken, already_replayed=already
    )


if __name__ == "__main__":
    main_job(run, command)
