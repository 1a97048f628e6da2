"""Append the events that a Delta table got since the last stream to a raw table of bronze, by Structured Streaming.

Rows that cannot be read or break the table's contract go to bronze.quarantine, before the good ones are appended.
"""

from __future__ import annotations

from uplift_spark.cli import main_job
from uplift_spark.cli import stream as command
from uplift_spark.config import Config
from uplift_spark.flow.pseudonyms import key_of
from uplift_spark.lake.contracts import QUARANTINE
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.loading import Load
from uplift_spark.operations.runs import JobResult, Say, silent
from uplift_spark.operations.streaming import append, refused, streams


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent, *, load: Load) -> JobResult:
    """Add what the table has not; a source that does not fit the table is refused before any write."""
    new = streams(load, lake, run_id, say, key_of(config))
    written = {part.table: append(lake, new, part) for part in new.parts}
    rejected = refused(lake, load, new)
    for rule, n in rejected.items():
        say(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    good = written[load.table].rows if load.table in written else 0
    if not good and not rejected:
        say("every row is there already")
    return JobResult.of("stream", new.run_id, *written.values(), **new.details, good=good, rejected=rejected)


if __name__ == "__main__":
    main_job(run, command)
