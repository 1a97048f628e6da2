"""Export the newest scores of the campaign's model, of units that may be contacted now, to files.

Reads gold.uplift_scores and bronze.consent; writes a folder and no table.
"""

from __future__ import annotations

from uplift_spark.cli import export as command
from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.export import Export, export_scores
from uplift_spark.operations.runs import JobResult, Say, silent


def run(config: Config, lake: Lake, run_id: str | None = None, say: Say = silent, *, export: Export) -> JobResult:
    """Write the folder `export` names; consent is read as it is now, whatever it was when scores were made."""
    return export_scores(config, lake, export, say)


if __name__ == "__main__":
    main_job(run, command)
