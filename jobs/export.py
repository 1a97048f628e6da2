"""Export the newest scores of the campaign's model, or its newest plan, of units that may be contacted now, to files.

Reads gold.uplift_scores, or with --plan gold.policy_decisions, and bronze.consent where consent is required or the
table is there; writes a folder and no table. With governance.price_levels each row of a plan says whether its unit must
be informed of a personalised price.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, EnvironmentProblem, hint
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.privacy import GATE, MAY, ConsentGate, held_back, units_by_gate
from uplift_spark.governance.spark import record_event
from uplift_spark.roles import RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

NAMES_ITS_RUN = True  # its name is of what was exported

EXPORT_FORMATS = ("csv", "parquet")
PRICE_NOTICE = "price_notice"
"""Column of an exported plan: whether the unit must be informed that an automated decision made its price."""


@dataclass(frozen=True)
class Export:
    """Where rows go: a folder of files that is not there yet, `csv` or `parquet`; purpose None: `consent.purpose`.

    plan  the plan's units that get a treatment, with their level, in place of scores of all units
    reason  why, for the audit log
    Raises ConfigError when the folder is there, or the format is another.
    """

    to: str
    format: str = "parquet"
    purpose: str | None = None
    plan: bool = False
    reason: str = "not stated"

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


def scores_to_export(campaign: Campaign, export: Export) -> tuple[DataFrame, str, dict[str, Any]]:
    """The newest scores by the campaign's model of all units that may be contacted, the run, and counts of who may not.

    Consent is read as it is now, at one version for rows and counts alike. Raises DataError when that model has not
    scored, or consent is required and there is no table of it.
    """
    model = campaign.model_in_use
    scored = campaign.last_scored(model.version)
    gate = ConsentGate.of(campaign.lake, campaign.config.consent, export.purpose)
    rows = gate.judged(campaign.scores(scored).drop(RUN_ID, "scored_at"))
    counts = units_by_gate(rows)
    run_id = derive_run_id("export", {"to": export.to}, scores=scored, consent=gate.version, purpose=gate.purpose)
    details = {"model": model.name, "version": model.version, **_facts(gate)}
    details |= {"units": counts.get(MAY, 0), "held_back": held_back(counts) or 0}
    return rows.where(F.col(GATE) == MAY).drop(GATE), run_id, details


def plan_to_export(campaign: Campaign, export: Export) -> tuple[DataFrame, str, dict[str, Any]]:
    """The units that the newest plan by the campaign's model treats and that may be contacted, each with its level, the
    run, and counts of who gets nothing and who may not.

    Consent is read as in `scores_to_export`. Raises DataError when there is no plan by that model, or consent is
    required and there is no table of it.
    """
    model, control = campaign.model_in_use, campaign.config.roles.control
    plan = campaign.plan_run(model.version)
    gate = ConsentGate.of(campaign.lake, campaign.config.consent, export.purpose)
    rows = gate.judged(campaign.decisions(plan).drop(RUN_ID, "value"))
    counted = rows.groupBy(TREATMENT, GATE).agg(F.count_distinct(UNIT).alias("n")).collect()
    levels = {row[TREATMENT]: row["n"] for row in sorted(counted) if row[GATE] == MAY and row[TREATMENT] != control}
    counts: dict[str, int] = {}
    for row in counted:
        if row[TREATMENT] != control:
            counts[row[GATE]] = counts.get(row[GATE], 0) + row["n"]
    untreated = sum(row["n"] for row in counted if row[TREATMENT] == control)
    run_id = derive_run_id("export", {"to": export.to}, plan=plan, consent=gate.version, purpose=gate.purpose)
    details = {"model": model.name, "version": model.version, "plan": plan, **_facts(gate)}
    details |= {"units": counts.get(MAY, 0), "levels": levels or "none", "untreated": untreated}
    treated = rows.where((F.col(GATE) == MAY) & (F.col(TREATMENT) != control)).drop(GATE)
    if priced := campaign.config.governance.price_levels:
        known = {*campaign.config.roles.level_doses, *campaign.config.economics.cost}
        known |= {row[TREATMENT] for row in counted}
        if strangers := [level for level in priced if level not in known]:
            raise ConfigError(f"governance.price_levels names {strangers[0]!r}: {hint(strangers[0], known)}")
        treated = treated.withColumn(PRICE_NOTICE, F.col(TREATMENT).isin(*priced))
        details["price_notices"] = sum(n for level, n in levels.items() if level in priced)
    return treated, run_id, details | {"held_back": held_back(counts) or 0}


def _facts(gate: ConsentGate) -> dict[str, Any]:
    return {"purpose": gate.purpose, "consent_version": gate.version}


def _write(rows: DataFrame, export: Export) -> None:
    target = export.local
    if target is None:
        return _save(rows, export.format, export.to, "error")
    # A name that nobody else has: what is removed when this fails was made here.
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        _save(rows, export.format, str(partial), "error")
        if not partial.exists():
            raise EnvironmentProblem(f"--to {export.to} is a folder of Spark's server, not of this machine: give a URI")
        if target.exists():
            raise ConfigError(f"--to {export.to!r} came to be meanwhile: name a folder that is not there")
        partial.rename(target)
    except OSError as error:
        raise EnvironmentProblem(f"--to {export.to} cannot be made: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# RFC 4180, as other programs read it: quotes are doubled, lines end alike, blanks stay.
_CSV = {
    **{"header": "true", "escape": '"', "lineSep": "\r\n", "emptyValue": ""},
    **{"ignoreLeadingWhiteSpace": "false", "ignoreTrailingWhiteSpace": "false"},
}
# Spreadsheets compute cells that begin so, whatever stands in them; numbers stay numbers.
_FORMULA = r"^\s*[=+\-@\t\r]"
_PLAIN_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def without_formulas(rows: DataFrame) -> DataFrame:
    """The rows with an apostrophe before each text that a spreadsheet would take for a formula."""
    cells = {}
    for name in (field.name for field in rows.schema.fields if isinstance(field.dataType, StringType)):
        text = F.col(name)
        formula = text.rlike(_FORMULA) & ~text.rlike(_PLAIN_NUMBER)
        cells[name] = F.when(formula, F.concat(F.lit("'"), text)).otherwise(text)
    return rows.withColumns(cells)


def _save(rows: DataFrame, format_: str, to: str, mode: str) -> None:
    rows = without_formulas(rows) if format_ == "csv" else rows
    rows.write.format(format_).mode(mode).options(**(_CSV if format_ == "csv" else {})).save(to)


def options(
    to: Annotated[str, typer.Option("--to", help="Folder to make; must not be there.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "parquet",
    purpose: Annotated[str | None, typer.Option(help="Purpose of consent; default: consent.purpose.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Units to treat by `uplift policy`, not scores.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "not stated",
) -> dict[str, Any]:
    """Where files go, for which purpose, and whether they hold the plan."""
    return {"export": Export(to, format_, purpose, plan, reason)}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, export: Export
) -> JobResult:
    """Write the folder `export` names; consent is read as it is now, whatever it was when scores were made.

    The entry comes first, so that no file leaves without one. A local folder appears whole or not at all; where folders
    cannot be renamed, as in object stores, files count once `_SUCCESS` lies beside them.
    """
    rows, run_id, details = (plan_to_export if export.plan else scores_to_export)(campaign, export)
    rests_on = {"model", "version", "plan", "consent_version"}
    versions = {name: value for name, value in details.items() if name in rests_on}
    facts = {
        name: details[name] for name in details if name in {"units", "held_back", "levels", "price_notices", "purpose"}
    }
    event = AuditEvent("", "export", export.to, export.reason, "", run_id, versions, facts)
    record_event(campaign.config, campaign.lake, event, once=False)
    _write(rows, export)
    progress(f"{details['units']:,} units exported to {export.to}")
    return JobResult.of("export", run_id, **details, files=export.to)


if __name__ == "__main__":
    main_job(run, options)
