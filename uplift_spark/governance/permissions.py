"""Roles: who may run which verb here, and the same as GRANTs of Unity Catalog. No Spark.

On a laptop or a shared machine the command line checks who runs it and what that role may do. That is a guard rail
against mistakes: whoever may write the lakehouse's files can pass it by. What protects tables and models are the
catalog's own rights, which `grants` writes from the same roles.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping, Sequence

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError
from uplift_spark.runtime import os_user
from uplift_spark.sections.governance import AccessConf, RoleName

TOKEN_ENV = "UPLIFT_TOKEN"
_READERS = ("report", "contract", "power", "doctor", "audit verify", "audit show")
_ANALYSES = ("lift", "compare", "simulate", "tree", "audit bias", "check", "readout")
VERBS_OF: Mapping[RoleName, tuple[str, ...]] = {
    "viewer": _READERS,
    "analyst": (*_READERS, *_ANALYSES),
    "operator": (
        *(*_READERS, *_ANALYSES, "ingest", "load", "stream", "replay", "features", "nuisances", "train", "tune"),
        *("refresh", "score", "policy", "export", "optimize", "demo", "quickstart", "assign"),
        *("monitor", "monitoring_files", "publish", "serve", "retrain"),
    ),
    "approver": (*_READERS, "audit bias", "approve", "reject", "grants"),
    "privacy_officer": (*_READERS, "audit explain", "erase"),
}
"""What each role may do; nobody may do what no role of theirs has."""


def acting_user(config: Config) -> str:
    """Name who runs this: by the token in $UPLIFT_TOKEN where one is set, else the system's user.

    Raises ConfigError for a token that is nobody's.
    """
    access, token = config.governance.access, os.environ.get(TOKEN_ENV, "")
    if access is None or not token:
        return os_user()
    digest = hashlib.sha256(token.encode()).hexdigest()
    users = [user for user, known in access.tokens.items() if hmac.compare_digest(known.lower(), digest)]
    if not users:
        raise ConfigError(f"${TOKEN_ENV} is nobody's token: add its SHA-256 to governance.access.tokens, or unset it")
    return users[0]


def check_permitted(config: Config, action: str) -> None:
    """Refuse an action that no role of the acting user has; action: a verb, or `audit` with its question.

    Without `governance.access` everybody may do everything. Raises ConfigError that names the roles that may.
    """
    access = config.governance.access
    if access is None:
        return
    user = acting_user(config)
    mine = roles_of(access, user)
    if any(_covers(VERBS_OF[role], action) for role in mine):
        return
    may = [role for role, verbs in VERBS_OF.items() if _covers(verbs, action)]
    have = f"is {' and '.join(mine)}" if mine else "has no role"
    raise ConfigError(
        f"{user} {have} and may not run `uplift {action}`, which {' or '.join(may)} may: ask whoever keeps "
        "governance.access for the role"
    )


def _covers(verbs: Sequence[str], action: str) -> bool:
    # A verb with questions may start; which question it is, is checked when it is known.
    return any(verb == action or verb.partition(" ")[0] == action for verb in verbs)


def roles_of(access: AccessConf, user: str) -> tuple[RoleName, ...]:
    """List the roles of a user, in the order of VERBS_OF."""
    return tuple(role for role in VERBS_OF if user in access.roles.get(role, ()))


# --------------------------------------------------------------------------------------------------------------------
# GRANTs: least privilege, a statement each.

_AGGREGATES = (
    *("lift_table", "uplift_curve", "uplift_metrics", "cost_curve", "policy_limits", "policy_curve", "policy_tree"),
    *("policy_scenarios", "average_effects", "overlap", "balance", "sensitivity", "bias_audit"),
    *("experiment", "experiment_health", "readout", "kpi", "drift", "findings", "window_sums", "alerts", "retrain"),
)
"""Gold tables in which nobody is a row: what a viewer may read."""
_AUDIT = ("audit_log", "audit_trees")


def grants(config: Config) -> list[str]:
    """Write the GRANTs of every role to its users and groups; a principal in backquotes.

    Viewers read gold tables of figures, never of units; analysts read silver and gold; operators write; approvers read
    figures and the log, add to the log, and manage the model; privacy officers read and delete everywhere. Raises
    ConfigError without `governance.access` or a catalog.
    """
    access, catalog = config.governance.access, config.lakehouse.catalog
    if access is None or catalog is None:
        raise ConfigError(
            "GRANTs need governance.access, which says who has which role, and lakehouse.catalog: set both"
        )
    model = f"`{catalog}`.`gold`.`{config.model_name}`"
    statements: list[str] = []
    for role in VERBS_OF:
        for principal in access.roles.get(role, ()):
            to = "`" + principal.replace("`", "``") + "`"
            statements += [f"GRANT {rights} TO {to};" for rights in _rights(role, f"`{catalog}`", model)]
    return list(dict.fromkeys(statements))  # of a user with two roles each once


def _rights(role: RoleName, catalog: str, model: str) -> Iterator[str]:
    yield f"USE CATALOG ON CATALOG {catalog}"
    yield f"USE SCHEMA ON SCHEMA {catalog}.`gold`"
    if role in ("viewer", "approver"):
        yield from (f"SELECT ON TABLE {catalog}.`gold`.`{table}`" for table in (*_AGGREGATES, _AUDIT[0]))
    if role == "approver":
        yield f"MODIFY ON TABLE {catalog}.`gold`.`{_AUDIT[0]}`"
        yield from (f"{right} ON FUNCTION {model}" for right in ("EXECUTE", "APPLY TAG", "MANAGE"))
    if role == "analyst":
        yield f"USE SCHEMA ON SCHEMA {catalog}.`silver`"
        yield from (f"SELECT ON SCHEMA {catalog}.`{schema}`" for schema in ("silver", "gold"))
        yield f"EXECUTE ON FUNCTION {model}"
    if role in ("operator", "privacy_officer"):
        yield from (f"USE SCHEMA ON SCHEMA {catalog}.`{schema}`" for schema in ("bronze", "silver"))
        rights = "SELECT, MODIFY, CREATE TABLE" if role == "operator" else "SELECT, MODIFY"
        yield from (f"{rights} ON SCHEMA {catalog}.`{schema}`" for schema in ("bronze", "silver", "gold"))
        yield f"EXECUTE, CREATE MODEL VERSION ON FUNCTION {model}"
