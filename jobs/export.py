"""Export the newest scores of the campaign's model, of units that may be contacted now, to files.

Reads gold.uplift_scores and bronze.consent; writes a folder and no table.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign, last_scored
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.governance.privacy import GATE, MAY, NO_GRANT, WITHDREW, gated
from uplift_spark.lake.schemas import CONSENT_TABLE
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import CHAMPION, Registry
from uplift_spark.roles import RUN_ID, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

EXPORT_FORMATS = ("csv", "parquet")


@dataclass(frozen=True)
class Export:
    """Where scores go: a folder of files that is not there yet, `csv` or `parquet`; purpose None: `consent.purpose`.

    Raises ConfigError when the folder is there, or the format is another.
    """

    to: str
    format: str = "parquet"
    purpose: str | None = None

    def __post_init__(self) -> None:
        if self.format not in EXPORT_FORMATS:
            raise ConfigError(f"--format {self.format!r} is unknown: use one of {', '.join(EXPORT_FORMATS)}")
        if not self.to.strip() or (self.local is not None and self.local.exists()):
            raise ConfigError(f"--to {self.to!r} is blank or there already: name a folder that is not there")
        if self.purpose is not None and not self.purpose.strip():
            raise ConfigError("--purpose is blank: name one, or leave it out")

    @property
    def local(self) -> Path | None:
        """The folder on this machine; None when it is a URI."""
        return None if re.match(r"[A-Za-z][\w+.-]+:", self.to) else Path(self.to).absolute()


def export_scores(config: Config, lake: Lake, export: Export, progress: ProgressCallback = no_progress) -> JobResult:
    """Write the newest scores by the campaign's model of all units that may be contacted, and count who may not.

    Consent is read as it is now, at one version for rows and counts alike. A local folder appears whole or not at all;
    where folders cannot be renamed, as in object stores, files count once `_SUCCESS` lies beside them. Raises DataError
    when that model has not scored, or consent is required and there is no table of it.
    """
    registry = Registry.of(config)
    model = registry.find(config.model_name, config.registry.version or CHAMPION)
    scored = last_scored(config, lake, registry, model.version)
    purpose = export.purpose or config.consent.purpose
    known = config.consent.required or lake.exists(CONSENT_TABLE)
    version = lake.version(CONSENT_TABLE) if known else None
    consent = lake.read(CONSENT_TABLE, version) if known else None
    scores = scored.scores(lake).drop(RUN_ID, "scored_at")
    rows = gated(scores, consent, purpose, config.consent.required)
    _write(rows.where(F.col(GATE) == MAY).drop(GATE), export)
    counts = {row[GATE]: row["n"] for row in _units(rows).collect()}
    progress(f"{counts.get(MAY, 0):,} units exported to {export.to}")
    held = {reason: counts[reason] for reason in (WITHDREW, NO_GRANT) if reason in counts}
    run_id = derive_run_id("export", {"to": export.to}, scores=scored, consent=version, purpose=purpose)
    details = {"model": model.name, "version": model.version, "purpose": purpose, "consent_version": version}
    return JobResult.of("export", run_id, **details, units=counts.get(MAY, 0), held_back=held or 0, files=export.to)


def _units(rows: DataFrame) -> DataFrame:
    return rows.groupBy(GATE).agg(F.count_distinct(UNIT).alias("n"))


def _write(rows: DataFrame, export: Export) -> None:
    target = export.local
    if target is None:
        return _save(rows, export.format, export.to, "errorifexists")
    partial = target.with_name(f".{target.name}.partial")
    _save(rows, export.format, str(partial), "overwrite")
    if not partial.exists():
        raise EnvironmentProblem(f"--to {export.to} is a folder of Spark's server, not of this machine: give a URI")
    try:
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial)
        raise EnvironmentProblem(f"--to {export.to} cannot be made: {error.strerror}") from error


def _save(rows: DataFrame, format_: str, to: str, mode: str) -> None:
    writer = rows.write.format(format_).mode(mode)
    (writer.option("header", "true") if format_ == "csv" else writer).save(to)


def options(
    to: Annotated[str, typer.Option("--to", help="Folder to make; must not be there.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "parquet",
    purpose: Annotated[str | None, typer.Option(help="Purpose of consent; default: consent.purpose.")] = None,
) -> dict[str, Any]:
    """Where files go, and for which purpose."""
    return {"export": Export(to, format_, purpose)}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, export: Export
) -> JobResult:
    """Write the folder `export` names; consent is read as it is now, whatever it was when scores were made."""
    config, lake = campaign.config, campaign.lake
    return export_scores(config, lake, export, progress)


if __name__ == "__main__":
    main_job(run, options)
