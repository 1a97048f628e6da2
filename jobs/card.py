"""Write the model card, the data sheet and the privacy impact assessment of a version, from what is on record.

Reads the registry and gold tables, the training table as it was trained on, bronze.consent and bronze.quarantine; a
folder on this machine without Java. Writes each document as Markdown and as one page of HTML, keeps them beside the
version in the registry, and with governance.audit adds an entry to gold.audit_log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import EnvironmentProblem, UpliftError
from uplift_spark.governance.approvals import CARD_ACTION, version_name
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.cards import card_documents
from uplift_spark.governance.documents import document_files
from uplift_spark.governance.facts import CardFacts, TableOfUnits
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.local_tables import local_tables
from uplift_spark.lake.schemas import (
    AUDIT_TABLE,
    BIAS_TABLE,
    CONSENT_TABLE,
    DECISIONS_TABLE,
    QUARANTINE,
    SCORES_TABLE,
    gold_table,
    is_table_of,
)
from uplift_spark.registry.models import Registered
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT, Roles
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress, write_files
from uplift_spark.spark_versions import sql_text

READS_RESULTS = True  # so Spark starts only for the entry, or where DuckDB cannot read
NAMES_ITS_RUN = True  # documents have no run: they show those of the tables
_ABOUT_VERSIONS = ("register", "approve", "reject", "promote", "bias")
_PASSED = ("allow", "override")
_FILES, _LOG = "delta.deletedFileRetentionDuration", "delta.logRetentionDuration"


def options(
    version: Annotated[int, typer.Argument(min=1, help="The version to document.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Folder of the documents; by default beside the reports.")] = None,
) -> dict[str, Any]:
    """Which version, and where its documents go."""
    return {"version": version, "to": to}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    version: int,
    to: Path | None = None,
) -> JobResult:
    """Write the documents, keep them with the version, and put them on record."""
    config = campaign.config
    model = campaign.registry.find(config.model_name, version)
    progress("reading the registry and tables")
    facts = card_facts(campaign, model)
    documents = card_documents(facts)
    files = document_files(documents)
    folder = to or campaign.reports("cards") / str(version)
    write_files(folder, files)
    kept = _kept(campaign, model, [folder / name for name in files], progress)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    if config.governance.audit is not None:
        details = {"files": digests, "runs": dict(facts.runs), "registry": kept}
        event = AuditEvent("", CARD_ACTION, version_name(model), "documents of the version", "", "", {}, details)
        record_event(config, campaign.lake, event)
    questions = sum(len(one.questions) for one in documents)
    shown: dict[str, Any] = {
        "folder": folder,
        "files": ", ".join(files),
        "questions to the owner": questions,
        "registry": kept,
    }
    return JobResult("card", "", details=shown)


def _kept(campaign: Campaign, model: Registered, files: Sequence[Path], progress: ProgressCallback) -> str:
    """Keep the files beside the version; what came of it, in words."""
    try:
        campaign.registry.log_files(model, files, "card")
    except EnvironmentProblem as error:  # rights to read a model do not always allow to add to it
        progress(f"the registry does not keep the documents: {error}")
        return "not kept"
    return "kept with the version"


# --------------------------------------------------------------------------------------------------------------------
# Reading.


def card_facts(campaign: Campaign, model: Registered) -> CardFacts:
    """Read what the documents rest on.

    Args:
        campaign: The campaign; a folder of this machine is read without Spark.
        model: The version.

    Returns:
        The facts; what is not there has no entry, and `absent` says why where that is not plain.
    """
    config, registry = campaign.config, campaign.registry
    champion = registry.known(config.model_name)
    ((table, read),) = model.data_versions.items()
    roles = registry.load(model).roles
    absent: dict[str, str] = {}
    runs, frames = _evaluated(campaign, model)
    of_version = {**_trained_rows(campaign, roles, (table, read), absent), **_on_record(campaign, model)}
    return CardFacts(
        config, model, roles, None if champion is None else champion.version, (table, read),
        logged=registry.figures_of(model),
        environment=registry.environment(model), runs=runs,
        frames={name: _steady(rows) for name, rows in {**frames, **of_version}.items() if rows is not None},
        tables=_tables_of_units(campaign), absent=absent,
    )  # fmt: skip


def _steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers to 12 digits: the last ones of a mean depend on the order of adding."""
    numbers = rows.select_dtypes("float").columns
    return rows.assign(**{name: rows[name].map(lambda value: float(f"{value:.12g}")) for name in numbers})


def _or_none(read: Callable[[], Any]) -> Any:
    """What is read; None where it is not there."""
    try:
        return read()
    except UpliftError:
        return None


def _evaluated(campaign: Campaign, model: Registered) -> tuple[dict[str, str], dict[str, Any]]:
    """Runs and rows of scores, lift, plan and bias audit of the version."""
    mine = f"{CAMPAIGN} = {sql_text(campaign.name)}"
    scored = _or_none(lambda: campaign.last_scored(model.version))
    lift = scored and campaign.run_id("lift", scores=scored)
    plan = _or_none(lambda: campaign.plan_run(model.version))
    bias = _or_none(lambda: campaign.newest_run(BIAS_TABLE, "audit", str(model.version)))
    runs = {"scores": scored and scored.run_id, "lift": lift, "plan": plan, "bias": bias}
    frames: dict[str, Any] = {}
    if scored is not None:
        frames["scores"] = campaign.sql(
            f"SELECT {TREATMENT}, count(*) AS n, "
            "avg(CAST(CASE WHEN low_support THEN 1 ELSE 0 END AS DOUBLE)) AS low_support, "
            f"avg(uplift_upper - uplift_lower) AS width FROM {SCORES_TABLE} WHERE {RUN_ID} = {sql_text(scored.run_id)} "
            f"AND model_version = {sql_text(str(model.version))} GROUP BY {TREATMENT} ORDER BY {TREATMENT}"
        )
        frames |= {"lift": _or_none(lambda: campaign.lift_table(run_id=lift))}
        frames |= {"metrics": _or_none(lambda: campaign.metrics(run_id=lift))}
    if plan is not None:
        frames["decisions"] = campaign.sql(
            f"SELECT {TREATMENT}, reason, count(*) AS n, sum(gain) AS gain, sum(cost) AS cost FROM {DECISIONS_TABLE} "
            f"WHERE {mine} AND {RUN_ID} = {sql_text(plan)} GROUP BY {TREATMENT}, reason ORDER BY {TREATMENT}, reason"
        )
        frames["limits"] = _rows(campaign, gold_table("policy_limits"), f"{RUN_ID} = {sql_text(plan)}", "name")
    if bias is not None:
        frames["bias"] = _rows(campaign, BIAS_TABLE, f"{RUN_ID} = {sql_text(bias)}", "cut, bucket, measure")
    averages = _or_none(lambda: campaign.newest_run(gold_table("average_effects"), "nuisances"))
    if averages is not None:
        where = f"{mine} AND {RUN_ID} = {sql_text(averages)}"
        frames["averages"] = _rows(campaign, gold_table("average_effects"), where, f"outcome, {TREATMENT}, estimand")
    return {name: run for name, run in runs.items() if run}, frames


def _there(campaign: Campaign, table: str) -> bool:
    local = local_tables(campaign.config.lakehouse)
    return campaign.lake.exists(table) if local is None else local.exists(table)


def _rows(campaign: Campaign, table: str, where: str, order: str, columns: str = "*") -> pd.DataFrame | None:
    if not _there(campaign, table):
        return None
    rows: pd.DataFrame | None = _or_none(
        lambda: campaign.sql(f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {order}")
    )
    return rows


def _trained_rows(
    campaign: Campaign, roles: Roles, training: tuple[str, int], absent: dict[str, str]
) -> dict[str, pd.DataFrame]:
    """Arms, features and period of the training table as it was trained on."""
    table, version = training
    rows = f"{table} VERSION AS OF {version}"
    try:
        arms = campaign.sql(
            f"SELECT split, {TREATMENT}, count(*) AS n, avg(CAST(`{roles.outcome}` AS DOUBLE)) AS mean FROM {rows} "
            f"GROUP BY split, {TREATMENT} ORDER BY split, {TREATMENT}"
        )
        period = campaign.sql(f"SELECT min(assigned_at) AS first, max(assigned_at) AS last FROM {rows}")
        features = _feature_rows(campaign, roles.features, rows)
    except UpliftError as error:
        why = f"{table} version {version} cannot be read any more, so its figures are not known ({error})."
        absent |= dict.fromkeys(("arms", "period", "features"), why)
        return {}
    shown = period.map(lambda at: f"{at:%Y-%m-%d}").dropna() if period.notna().all(axis=None) else period.dropna()
    return {"arms": arms, "period": shown, "features": features}


def _feature_rows(campaign: Campaign, features: Sequence[str], rows: str) -> pd.DataFrame:
    """What the units of split train have of each feature, in one pass."""
    one = campaign.sql(f"SELECT {', '.join(f'`{name}`' for name in features)} FROM {rows} LIMIT 1")
    numbers = {name: one[name].dtype.kind in "iufb" for name in features}
    parts = []
    for j, name in enumerate(features):
        parts += [f"avg(CAST(CASE WHEN `{name}` IS NULL THEN 1 ELSE 0 END AS DOUBLE)) AS missing_{j}"]
        parts += [f"count(DISTINCT `{name}`) AS kinds_{j}"]
        if numbers[name]:
            number = f"CAST(`{name}` AS DOUBLE)"
            parts += [f"min({number}) AS least_{j}", f"avg({number}) AS mean_{j}", f"max({number}) AS most_{j}"]
    takes = ("missing", "kinds", "least", "mean", "most")
    figures = campaign.sql(f"SELECT {', '.join(parts)} FROM {rows} WHERE split = 'train'").iloc[0].to_dict()
    return pd.DataFrame(
        [
            {"feature": name, "kind": "number" if numbers[name] else "text"}
            | {t: figures.get(f"{t}_{j}") for t in takes}
            for j, name in enumerate(features)
        ]
    )


def _on_record(campaign: Campaign, model: Registered) -> dict[str, Any]:
    """Consent, quarantine, and the audit log without the entries of cards."""
    mine = f"{CAMPAIGN} = {sql_text(campaign.name)}"

    def counted(table: str, keys: str, where: str) -> pd.DataFrame | None:
        columns = f"{keys}, count(*) AS n"
        return _rows(campaign, table, f"{where} GROUP BY {keys}", keys, columns)

    listed = ", ".join(map(sql_text, _ABOUT_VERSIONS))
    about = f"subject = {sql_text(version_name(model))} AND action IN ({listed})"
    columns = "seq, at, actor, action, subject, reason, entry"
    entries, logged = _rows(campaign, AUDIT_TABLE, about, "seq", columns), f"{mine} AND action"
    passed = f"{logged} IN ({', '.join(map(sql_text, _PASSED))})"
    return {
        "consent": counted(CONSENT_TABLE, "purpose, granted", "true"),
        "quarantine": counted(QUARANTINE, "source_table, rule", mine),
        "actions": counted(AUDIT_TABLE, "action", f"{logged} <> {sql_text(CARD_ACTION)}"),
        "entries": entries,
        "proxies": _proxies(entries),
        "allowed": _rows(campaign, AUDIT_TABLE, passed, "seq", columns),
    }


def _proxies(entries: pd.DataFrame | None) -> pd.DataFrame | None:
    """Features that tell an attribute, of the newest bias audit on record; None where its entry names none."""
    audits = [] if entries is None else [row for row in entries.to_dict("records") if row["action"] == "bias"]
    if not audits:
        return None
    named = json.loads(audits[-1]["entry"])["details"].get("proxies", [])
    return pd.DataFrame([{"seq": audits[-1]["seq"], **one} for one in named]) if named else None


def _tables_of_units(campaign: Campaign) -> list[TableOfUnits]:
    """Tables of the campaign, or of all campaigns, that have a column of unit ids."""
    local = local_tables(campaign.config.lakehouse)
    if local is not None:
        tables = [
            local.table(name) for name in local.names() if is_table_of(name, campaign.name, campaign.config.model_name)
        ]
        return [
            TableOfUnits(t.name, t.rows, t.version, t.properties.get(_FILES, ""), t.properties.get(_LOG, ""))
            for t in tables if UNIT in [column.name for column in t.columns]
        ]  # fmt: skip
    lake = campaign.lake
    named = [
        name
        for name in lake.tables()
        if is_table_of(name, campaign.name, campaign.config.model_name) and UNIT in lake.read(name).columns
    ]
    kept = {name: lake.properties(name) for name in named}
    return [
        TableOfUnits(
            name, lake.read(name).count(), lake.version(name), kept[name].get(_FILES, ""), kept[name].get(_LOG, "")
        )
        for name in named
    ]


if __name__ == "__main__":
    main_job(run, options)
