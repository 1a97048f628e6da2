"""Verify the audit log, show its entries, explain why a unit got what it got, or look for bias.

`verify` checks every entry, every signed checkpoint and the hashes of decisions, and fails where something was edited;
`show` prints the newest entries; `explain UNIT` prints a decision with scores, the features that move these most,
prices, rules, consent and versions, and proves that it is the one that was recorded: these read gold.audit_log and
gold.audit_trees, of the unit also its row of the training table, and write nothing. `bias` compares groups of protected
attributes on the hold-out, by the newest plan of the model in use if there is one, and appends to gold.bias_audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import typer
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError, UpliftError, hint
from uplift_spark.evaluation.drivers import reason_words, unit_reasons
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.summary import number
from uplift_spark.forest.binning import apply_bins
from uplift_spark.governance.approvals import version_name
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.fairness import BiasInputs, audit_of
from uplift_spark.governance.permissions import check_permitted
from uplift_spark.governance.spark import AuditLog, check_on_record, record_event
from uplift_spark.lake.schemas import BIAS_TABLE
from uplift_spark.roles import CAMPAIGN, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress
from uplift_spark.spark_versions import quoted

READS_RESULTS = True  # so that Spark does not start to say that there is no log
NAMES_ITS_RUN = True  # only `bias` has one, named by what it compared
QUESTIONS = ("verify", "show", "explain", "bias")


@dataclass(frozen=True)
class AuditQuestion:
    """What to do: `verify`, `show`, `explain` with the id of a unit, or `bias`.

    plan       run id of the plan that explain is about; the campaign's newest by default
    decisions  verify compares every decision with its hash, too
    limit      entries that show prints; action: only those of this action

    Raises ConfigError for anything else.
    """

    what: str
    unit: str | None = None
    plan: str | None = None
    decisions: bool = False
    limit: int = 20
    action: str | None = None

    def __post_init__(self) -> None:
        if self.what not in QUESTIONS:
            raise ConfigError(f"`uplift audit` has no {self.what!r}: {hint(self.what, QUESTIONS)}")
        if (self.what == "explain") != (self.unit is not None):
            raise ConfigError("`uplift audit explain` needs the id of a unit, and nothing else takes one")


def options(
    what: Annotated[str, typer.Argument(help="verify, show, explain or bias.", show_default=False)],
    unit: Annotated[str | None, typer.Argument(help="Id of the unit to explain.")] = None,
    plan: Annotated[str | None, typer.Option(help="Run of the plan to explain; the newest by default.")] = None,
    decisions: Annotated[bool, typer.Option("--decisions", help="Verify every decision, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to show.")] = 20,
    action: Annotated[str | None, typer.Option(help="Show only entries of this action.")] = None,
) -> dict[str, Any]:
    """Which question to answer."""
    return {"question": AuditQuestion(what, unit, plan, decisions, limit, action)}


def verified(log: AuditLog, decisions: bool, progress: ProgressCallback) -> dict[str, Any]:
    """What was verified. Raises DataError with the first finding where the log does not hold; all are reported."""
    checked = log.verify(decisions)
    for finding in checked.findings:
        progress(finding)
    if not checked.holds:
        raise DataError(
            f"the audit log does not hold, {checked.wrong} findings: {checked.findings[0]}; restore it from a backup, "
            "and find out who changed it"
        )
    conf = log.config.governance.audit
    if conf is not None and conf.checkpoints is not None:
        signed = f"all {checked.covered:,} entries are covered by signed checkpoints in {conf.checkpoints}"
    else:
        signed = "none: a log whose end was cut off, or that was written anew, looks the same; set governance.audit"
    return {"entries": checked.entries, "chain": "holds", "checkpoints": signed, "head": checked.head}


def explanation_text(answer: Mapping[str, Any]) -> str:
    """An explanation in lines of words, see `AuditLog.explain`."""
    decision, entry = answer["decision"], answer["entry"]
    lines = [
        f"Unit {decision['unit_id']} gets {decision['treatment']}: {decision['reason']}.",
        f"Predicted gain {number(decision['gain'])}, cost {number(decision['cost'])}, by plan {decision['run_id']}, "
        f"model version {decision['model_version']}.",
        "",
    ]
    for level, score in answer["scores"].items():
        support = "; too few units like this one to rely on it" if score["low_support"] else ""
        interval = f"{number(score['uplift_lower'])} to {number(score['uplift_upper'])}"
        lines.append(f"Score of {level}: {number(score['uplift'])} ({interval}){support}")
    lines += [f"Why this score: {words}" for words in answer.get("reasons", ())]
    lines += [f"Price of {name}: {number(price)}" for name, price in answer["prices"].items()] or [
        "No limit has a price."
    ]
    rules = answer["rules"]
    lines += [f"Rule {name}: {condition}" for name, condition in rules["exclude"].items()]
    if rules["contacts"] is not None:
        lines.append(f"Rule on contacts: at most {rules['contacts']}")
    if rules["global_holdout"]:
        lines.append(f"Left out at random: {rules['global_holdout']:.4g} of all units")
    consent = answer["consent"]
    for when, words in (("then", "when the plan was made"), ("now", "now")):
        if when in consent:
            lines.append(f"Consent to {consent['purpose']} {words}: {consent[when]}")
    assigned = answer["assignment"]
    if assigned:
        chance = "not logged" if assigned["propensity"] is None else number(assigned["propensity"])
        lines.append(f"Assigned in the trial: {assigned['treatment']}, propensity {chance}")
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in answer["versions"].items()))
    proof = "a proof leads from the decision to its root" if answer["proven"] else "decisions have no hashes there"
    lines.append(f"On record: entry {entry['seq']} of {entry['at']} by {entry['actor']} ({entry['reason']}); {proof}")
    return "\n".join(lines)


def score_reasons(campaign: Campaign, answer: Mapping[str, Any]) -> list[str]:
    """What moves a unit's scores most, in words with intervals: Shapley values of the model that scored it.

    Empty where the model is no causal forest, or is not in the registry any more, or the unit is not in the table.
    """
    config, decision, table = campaign.config, answer["decision"], campaign.training_table
    version = str(decision["model_version"])
    try:
        registered = campaign.registry.known(config.model_name, int(version)) if version.isdigit() else None
        if registered is None:
            return []
        model = campaign.registry.load(registered).of(config.roles.outcome)
        mine = campaign.training_set(answer["versions"].get(table)).where(F.col(UNIT) == decision["unit_id"])
        row = mine.select(*map(quoted, model.roles.features)).limit(1).toArrow()
        texts = ["missing" if one is None else str(one) for values in row.to_pylist() for one in values.values()]
        return [reason_words(one) for one in unit_reasons(model, apply_bins(row, model.bins), texts)] if texts else []
    except UpliftError as error:
        return [f"not known: {error}"]


def audit_bias(campaign: Campaign, progress: ProgressCallback) -> JobResult:
    """Audit the model in use, or its newest plan; a rerun adds no row."""
    config, lake, model = campaign.config, campaign.lake, campaign.model_in_use
    scored = campaign.last_scored(model.version)
    try:
        plan = campaign.plan_run(model.version)
    except DataError:
        plan = None
        progress("there is no plan by this version: every level is audited as if all units got it")
    loaded = campaign.registry.load(model).of(config.roles.outcome)
    training, decisions = (
        campaign.training_set(scored.feature_version),
        None if plan is None else campaign.decisions(plan),
    )
    inputs = BiasInputs(config, campaign.evaluation_spec, loaded, training, campaign.scores(scored), decisions)
    with campaign.readable(scored):
        result = audit_of(inputs, progress)
    settings = {"campaign": campaign.name, "bias": config.governance.bias, "attributes": inputs.attributes}
    run_id = derive_run_id("bias", settings, scores=scored, plan=plan, model=model.sha256)
    rows = pd.DataFrame([vars(row) for row in result.rows])
    constants = {CAMPAIGN: campaign.name, "model_version": str(model.version)}
    written = lake.write(BIAS_TABLE, lake.spark.createDataFrame(as_arrow(rows, **constants)), run_id)
    summary = "\n".join(result.sentences())
    groups = len(result.compared)
    facts: dict[str, Any] = {"groups": groups, "findings": len(result.flags), "uncompared": list(result.uncompared)}
    facts |= {"text": result.sentences(), "plan": plan, "proxies": [vars(one) for one in result.proxies]}
    versions = {"model": model.version, "scores": scored.run_id, BIAS_TABLE: written.version}
    name, why = version_name(model), "governance.bias of the configuration"
    record_event(config, lake, AuditEvent("", "bias", name, why, "", run_id, versions, facts))
    return JobResult.of("audit", run_id, written, groups=groups, findings=len(result.flags), summary=summary)


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, question: AuditQuestion
) -> JobResult:
    """Answer; only `bias` writes, and only it has a run."""
    check_permitted(campaign.config, f"audit {question.what}")
    if question.what != "bias":
        check_on_record(campaign.config, decisions=question.what == "explain")
    progress("reading the audit log" if question.what != "bias" else "reading the hold-out")
    with campaign.planned("audit"):
        return _answered(campaign, progress, question)


def _answered(campaign: Campaign, progress: ProgressCallback, question: AuditQuestion) -> JobResult:
    if question.what == "bias":
        return audit_bias(campaign, progress)
    log = AuditLog(campaign.config, campaign.lake)
    if question.what == "verify":
        details = verified(log, question.decisions, progress)
    elif question.what == "show":
        details = {"entries": log.show(question.limit, question.action).to_pandas()}
    else:
        answer = log.explain(str(question.unit), question.plan)
        answer["reasons"] = score_reasons(campaign, answer)
        details = {"explanation": explanation_text(answer), "answer": {"figures": answer}}
    return JobResult("audit", "", details=details, unprinted=("answer",))


if __name__ == "__main__":
    main_job(run, options)
