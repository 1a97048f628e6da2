"""Which version of a model may become the champion: registration, approval and promotion, all on record.

Without `governance.approval` a trained version is promoted as `registry.champion` says. With it a version waits until
someone approves it, and nobody can while a part of the checklist is missing. What counts is the audit log; the tags in
MLflow are a copy of it, which deployment jobs of Databricks read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.permissions import acting_user
from uplift_spark.governance.spark import newest_entry, record_event
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import CHALLENGER, CHAMPION, Registered, Registry
from uplift_spark.runtime import ProgressCallback
from uplift_spark.sections.governance import ApprovalConf

APPROVED, REJECTED, PENDING = "Approved", "Rejected", "Pending"
"""Values of the tag: a deployment job of Databricks goes on when its approval task's tag says Approved."""
CARD_ACTION = "card"
"""Action of the audit log's entries about documents of a version."""


def version_name(model: Registered) -> str:
    """Name a version as the audit log does."""
    return f"model {model.name} version {model.version}"


def settle(
    config: Config, lake: Lake, registry: Registry, model: Registered, run_id: str, progress: ProgressCallback
) -> bool:
    """Put a registered version on record, and make it the champion where `registry.champion` says so and nothing is
    missing.

    Returns:
        Whether this made it the champion.
    """
    facts = {"sha256": model.sha256, "params": dict(model.params)}
    event = AuditEvent("", "register", version_name(model), "trained", "", run_id, _versions(model), facts)
    record_event(config, lake, event)
    if not config.registry.champion:
        return False
    conf = config.governance.approval
    if conf is not None and (waits := waits_for(config, lake, model)):
        progress(waits)
        if newest_entry(lake, ("reject",), version_name(model)) is None:
            registry.set_tags(model, {conf.tag: PENDING})
        return False
    promote(config, lake, registry, model, "registry.champion of the configuration", run_id)
    return True


def promote(config: Config, lake: Lake, registry: Registry, model: Registered, reason: str, run_id: str = "") -> None:
    """Point the alias champion at a version, on record; the entry comes first, so that no promotion is without one."""
    before = registry.known(config.model_name)
    if before is None or before.version != model.version:
        facts = {"version": model.version, "sha256": model.sha256}
        facts["instead_of"] = None if before is None else before.version
        subject = f"champion of {model.name}"
        record_event(config, lake, AuditEvent("", "promote", subject, reason, "", run_id, _versions(model), facts))
    registry.set_alias(model, CHAMPION)


def waits_for(config: Config, lake: Lake, model: Registered) -> str:
    """Say what a version that has proved itself still lacks to become the champion; empty where nothing is missing."""
    if config.governance.approval is None or is_approved(lake, model):
        return ""
    return f"{version_name(model)} waits for approval: uplift approve {model.version} --by NAME --reason WHY"


def is_approved(lake: Lake, model: Registered) -> bool:
    """Whether the newest verdict on record about a version is an approval."""
    verdict = newest_entry(lake, ("approve", "reject"), version_name(model))
    return verdict is not None and verdict.fields["action"] == "approve"


def _versions(model: Registered) -> dict[str, int | str]:
    return {"model": model.version, "code": model.git_version, **model.data_versions}


# --------------------------------------------------------------------------------------------------------------------
# The checklist.


@dataclass(frozen=True)
class VersionFacts:
    """What is known about a version when someone wants to approve it.

    trained_by   who registered it; None where that is not on record
    evaluations  {level: lower end of the interval of the checklist's metric}; empty where it was not evaluated
    bias         (groups compared, findings that need an answer); None without a bias audit of the version
    uncompared   attributes of that audit of which no group was compared
    metadata     {owner, purpose, legal_basis, data, code, ...: value}; empty ones are missing
    card         whether its documents were written since that audit; None where they were not written
    rests_on     {action: number of its newest entry in the audit log}, of the version's training, audit and documents
    """

    trained_by: str | None = None
    evaluations: Mapping[str, float] = field(default_factory=dict)
    bias: tuple[int, int] | None = None
    uncompared: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    card: bool | None = None
    rests_on: Mapping[str, int] = field(default_factory=dict)


def missing_parts(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> list[str]:
    """Say what of the checklist is missing, each with its remedy; approvers: names of who approves.

    An evaluation passes where the lower end of the metric's interval is above `least` for some level.
    """
    checks = {
        "evaluation": _evaluation_faults,
        "bias": _bias_faults,
        "other_approver": _approver_faults,
        "metadata": _metadata_faults,
        "card": _card_faults,
    }
    return [fault for need in conf.needs for fault in checks[need](conf, facts, approvers)]


def _evaluation_faults(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> Iterator[str]:
    if not facts.evaluations:
        yield f"an evaluation with {conf.metric} (run `uplift score` and `uplift lift` with this version)"
    elif not max(facts.evaluations.values()) > conf.least:
        best = max(facts.evaluations, key=facts.evaluations.__getitem__)
        yield (
            f"an evaluation that passed ({conf.metric} must be above {conf.least:g} by the lower end of its interval, "
            f"which is {facts.evaluations[best]:.4g} for {best})"
        )


def _bias_faults(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> Iterator[str]:
    if facts.bias is None:
        yield "a bias audit (run `uplift audit bias` with this version)"
    elif facts.bias[1]:
        yield f"a bias audit without findings (it has {facts.bias[1]}, see gold.bias_audit)"
    elif facts.uncompared or not facts.bias[0]:
        yield (
            f"a bias audit that compared groups of {', '.join(facts.uncompared) or 'any attribute'} (none has enough "
            "units: audit a larger hold-out, lower governance.bias.min_units or change governance.bias.attributes)"
        )


def _approver_faults(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> Iterator[str]:
    if facts.trained_by is None:
        yield "an entry of who trained it (train it with governance.audit)"
    elif facts.trained_by in approvers:
        yield f"an approver other than {facts.trained_by}, who trained it"


def _metadata_faults(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> Iterator[str]:
    if empty := [name for name, value in facts.metadata.items() if not value]:
        yield f"metadata: {', '.join(empty)} (set governance.approval.{empty[0]})"


def _card_faults(conf: ApprovalConf, facts: VersionFacts, approvers: tuple[str, ...]) -> Iterator[str]:
    if facts.card is None:
        yield "a model card (run `uplift card` with this version)"
    elif not facts.card:
        yield "a model card with its newest bias audit (run `uplift card` with this version again)"


def promotion_facts(
    config: Config, lake: Lake, registry: Registry, version: int, evaluations: Mapping[str, float]
) -> VersionFacts:
    """Collect what is on record about a version; feature schema and environment are refused at registration if missing.

    Raises ConfigError without such a version, or without `governance.approval`.
    """
    conf = _approval(config)
    model = registry.find(config.model_name, version)
    name = version_name(model)
    trained, audited = (newest_entry(lake, (action,), name) for action in ("register", "bias"))
    named = {key: getattr(conf, key) for key in ("owner", "purpose", "legal_basis")}
    metadata = {**named, "data versions": dict(model.data_versions), "code version": model.git_version}
    details = None if audited is None else audited.fields["details"]
    bias = None if details is None else (details["groups"], details["findings"])
    uncompared = () if details is None else tuple(details.get("uncompared", ()))
    by = None if trained is None else trained.fields["actor"]
    documented = newest_entry(lake, (CARD_ACTION,), name)
    card = None if documented is None else audited is None or documented.seq > audited.seq
    rests_on = {one.fields["action"]: one.seq for one in (trained, audited, documented) if one is not None}
    return VersionFacts(by, evaluations, bias, uncompared, metadata, card, rests_on)


def _approval(config: Config) -> ApprovalConf:
    if config.governance.approval is None:
        raise ConfigError("governance.approval is not set: versions need no approval; set it in the configuration")
    return config.governance.approval


# --------------------------------------------------------------------------------------------------------------------
# Verdicts.


@dataclass(frozen=True)
class VersionVerdict:
    """A verdict about a version: who gives it, and why. Raises ConfigError where either is blank."""

    version: int
    by: str
    reason: str
    approves: bool = True

    def __post_init__(self) -> None:
        for name in ("by", "reason"):
            if not getattr(self, name).strip():
                raise ConfigError(f"--{name} is blank: say {'who decides' if name == 'by' else 'why'}")


def decide_version(
    config: Config, lake: Lake, registry: Registry, verdict: VersionVerdict, facts: VersionFacts
) -> dict[str, object]:
    """Approve or reject a version on record; an approved one becomes the champion where `registry.champion` says so.

    Raises:
        ConfigError: `governance.approval` is not set, or there is no such version.
        DataError: Something of the checklist is missing; the sentence names all of it.
    """
    conf = _approval(config)
    model, actor = registry.find(config.model_name, verdict.version), acting_user(config)
    if config.governance.access is not None and verdict.by != actor:
        raise ConfigError(f"--by {verdict.by} is not {actor}, who runs this: decide in your own name")
    name, action = version_name(model), "approve" if verdict.approves else "reject"
    if verdict.approves and (missing := missing_parts(conf, facts, (verdict.by, actor))):
        raise DataError(f"{name} cannot be approved, it lacks {'; '.join(missing)}")
    details = {"by": verdict.by, "needs": list(conf.needs), "metadata": dict(facts.metadata), "bias": facts.bias}
    details |= {"evaluations": dict(facts.evaluations), "rests_on": dict(facts.rests_on)}
    event = AuditEvent(actor, action, name, verdict.reason, "", "", _versions(model), details)
    # A verdict may be given, taken back, and given again, also on new evidence; one that says the same on the same
    # evidence only carries on what a kill left.
    entry = record_event(config, lake, event, among=("approve", "reject"))
    tags = {conf.tag: APPROVED if verdict.approves else REJECTED, f"{conf.tag}_by": verdict.by}
    tags |= {f"{conf.tag}_reason": verdict.reason, f"{conf.tag}_entry": entry.hash if entry else ""}
    named = {key: str(facts.metadata[key]) for key in ("owner", "purpose", "legal_basis") if facts.metadata.get(key)}
    registry.set_tags(model, {**tags, **named})
    on_trial = registry.known(config.model_name, CHALLENGER)  # its canary promotes it, not its approval
    champion = verdict.approves and config.registry.champion and (on_trial is None or on_trial.version != model.version)
    if champion:
        promote(config, lake, registry, model, f"approved by {verdict.by}: {verdict.reason}")
    return {"model": model.name, "version": model.version, "verdict": tags[conf.tag], "champion": champion}
