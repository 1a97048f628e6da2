"""Section `governance` of a configuration: audit log, approvals, bias audit, who may do what. `config` names it; see
there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.sections.source import STRICT

Words = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class CheckpointKey:
    """`governance.audit.key`: what signs checkpoints of the audit log.

    kind  ed25519: a private key in PEM signs, and whoever has the public one can verify; hmac: one secret does both
    key_env, key_file, key_secret  where the key is, one of them: environment variable, file, SCOPE/KEY of a secret
    public_key_file  of ed25519, in PEM: enough to verify, for auditors who must not sign
    """

    kind: Literal["ed25519", "hmac"] = "ed25519"
    key_env: str | None = None
    key_file: str | None = None
    key_secret: str | None = None
    public_key_file: str | None = None

    def __post_init__(self) -> None:
        named = 3 - [self.key_env, self.key_file, self.key_secret].count(None)
        if named > 1 or (named == 0 and self.public_key_file is None):
            raise ConfigError("governance.audit.key: name one of key_env, key_file and key_secret, or public_key_file")
        if self.public_key_file is not None and self.kind == "hmac":
            raise ConfigError("governance.audit.key: a secret of kind hmac has no public_key_file: leave it out")
        if self.key_secret is not None and not all(self.key_secret.partition("/")):
            raise ConfigError(f"governance.audit.key.key_secret {self.key_secret!r} must look like SCOPE/KEY")

    @property
    def signs(self) -> bool:
        """Whether a key to sign with is named, not only one to verify with."""
        return (self.key_env or self.key_file or self.key_secret) is not None


@dataclass(frozen=True, config=STRICT)
class AuditConf:
    """`governance.audit`: with this section every decision, promotion, override, erasure, export and approval gets an
    entry in gold.audit_log; `audit: {}` is enough to begin with.

    checkpoints  folder of signed checkpoints, kept where those who write the lakehouse cannot change files: a mounted
                 volume, a bucket with object lock; without it a truncated or rewritten log goes unnoticed
    key          what signs them; needed with checkpoints
    decisions    keep a hash of each decision, so that `uplift audit explain` proves it
    """

    checkpoints: Words | None = None
    key: CheckpointKey | None = None
    decisions: bool = True

    def __post_init__(self) -> None:
        if (self.checkpoints is None) != (self.key is None):
            raise ConfigError("governance.audit: checkpoints and key belong together: name both, or neither")


ApprovalNeed = Literal["evaluation", "bias", "other_approver", "metadata", "card"]


@dataclass(frozen=True, config=STRICT)
class ApprovalConf:
    """`governance.approval`: with this section a version becomes the champion only after `uplift approve`.

    needs    what must be there: an evaluation that passed, a bias audit without findings, an approver who is not the
             one who trained, metadata; `card` if it is named: documents by `uplift card` since the bias audit
    metric   of gold.uplift_metrics that the evaluation is judged by
    least    what the lower end of the metric's 95 % interval must exceed for some level
    owner, purpose, legal_basis  of the model's use; mandatory metadata
    tag      tag of the version in MLflow that gets Approved or Rejected; a deployment job of Databricks goes on when
             the tag named like its approval task says Approved
    """

    needs: tuple[ApprovalNeed, ...] = ("evaluation", "bias", "other_approver", "metadata")
    metric: Words = "qini"
    least: float = 0.0
    owner: str = ""
    purpose: str = ""
    legal_basis: str = ""
    tag: Words = "approval"

    def __post_init__(self) -> None:
        if self.tag.startswith("uplift_"):
            raise ConfigError(
                f"governance.approval.tag {self.tag!r} begins like tags that a signature covers: rename it"
            )


@dataclass(frozen=True, config=STRICT)
class BiasConf:
    """`governance.bias`, for `uplift audit bias`.

    attributes  columns of the training set, or crossings such as `sex x region`; by default the features that are
                `protected`
    need        columns whose differences between groups are a reason to treat them differently
    level       probability that anything is flagged where no group is treated or served differently
    min_units   units that a group must have to be compared
    tolerance   {measure: difference that does not matter}; measures of a plan are treated, cost, predicted, realised
    proxy_strength  from which a feature is said to tell an attribute: Cramer's V, from 0 to 1
    """

    attributes: tuple[Words, ...] = ()
    need: tuple[Words, ...] = ()
    level: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    min_units: Annotated[int, Field(ge=30)] = 100
    tolerance: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    proxy_strength: Annotated[float, Field(gt=0, le=1)] = 0.3

    def __post_init__(self) -> None:
        for name, listed in (("attributes", self.attributes), ("need", self.need)):
            if len(set(listed)) < len(listed):
                raise ConfigError(f"governance.bias.{name} names a column twice: remove the duplicate")
        if both := sorted(set(self.attributes) & set(self.need)):
            raise ConfigError(
                f"governance.bias names {both[0]!r} as attribute and as need: a difference would explain itself; "
                "remove it from one of them"
            )


RoleName = Literal["viewer", "analyst", "operator", "approver", "privacy_officer"]


@dataclass(frozen=True, config=STRICT)
class AccessConf:
    """`governance.access`: with this section a verb runs only for users with a role that may run it.

    roles   {viewer, analyst, operator, approver or privacy_officer: users, or groups of the catalog}
    tokens  {user: SHA-256 of a token}: whoever has the token in $UPLIFT_TOKEN is that user; else the system's user acts
    """

    roles: dict[RoleName, tuple[Words, ...]]
    tokens: dict[str, Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]] = Field(default_factory=dict)


_LAYERS = ("bronze", "silver", "gold")


@dataclass(frozen=True, config=STRICT)
class RetentionConf:
    """`governance.retention`: how old rows about units may become; `uplift expire` deletes the others.

    days     {table, or bronze, silver or gold for all its tables: days}; a table's own days count before its layer's. A
             row's age counts from when it happened or was assigned, observed or scored; where its table does not say,
             from when it was written. Consent and the audit log are never due
    history_days  how long versions from before a deletion can be read, 7 by default: then their files go, too
    """

    days: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
    history_days: Annotated[float, Field(ge=0, le=400)] = 7.0

    def __post_init__(self) -> None:
        for name in self.days:
            layer, dot, table = name.partition(".")
            if layer not in _LAYERS or bool(dot) != bool(table):
                raise ConfigError(
                    f"governance.retention.days names {name!r}: name a table, such as bronze.event, or one of "
                    f"{', '.join(_LAYERS)}"
                )

    def days_of(self, table: str) -> float | None:
        """Days that a table keeps a row: its own, else its layer's; None where neither is named."""
        return self.days.get(table, self.days.get(table.partition(".")[0]))


@dataclass(frozen=True, config=STRICT)
class Governance:
    """`governance`: what auditors and regulators want; nothing of it is part of any run's identity.

    audit     the audit log; without it no entry is written
    approval  what a version needs to become the champion; without it training promotes as `registry.champion` says
    bias      what `uplift audit bias` looks at
    access    who may run what; without it everybody may run everything
    retention  how old rows about units may become; without it none is deleted for its age
    price_levels  levels that change a unit's price: exported plans say who must be informed that an automated decision
              made their price (directive 2011/83/EU, art. 6 (1) (ea))
    """

    audit: AuditConf | None = None
    approval: ApprovalConf | None = None
    bias: BiasConf = Field(default_factory=BiasConf)
    access: AccessConf | None = None
    retention: RetentionConf | None = None
    price_levels: tuple[Words, ...] = ()

    def __post_init__(self) -> None:
        if self.approval is not None and self.audit is None:
            raise ConfigError(
                "governance.approval needs the audit log, which keeps verdicts: set governance.audit, too"
            )
