"""Roles: who may run which verb here, and the same as GRANTs of Unity Catalog.

No Spark, except on Databricks, where it knows the user.

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
from uplift_spark.gold_views import GOLD_VIEWS
from uplift_spark.runtime import os_user
from uplift_spark.sections.governance import AccessConf, RoleName

TOKEN_ENV = "UPLIFT_TOKEN"
_READERS = ("contract", "power", "doctor", "gameday", "dashboard", "digest", "audit verify", "audit show", "alert list")
_ANALYSES = ("report", "tables", "sql", "lift", "compare", "simulate", "tree", "audit bias", "check", "readout")
VERBS_OF: Mapping[RoleName, tuple[str, ...]] = {
    "viewer": _READERS,
    "analyst": (*_READERS, *_ANALYSES),
    "operator": (
        *(*_READERS, *_ANALYSES, "ingest", "load", "stream", "replay", "features", "nuisances", "train", "tune"),
        *("refresh", "score", "policy", "export", "optimize", "demo", "quickstart", "assign"),
        *(
            "monitor",
            "monitoring_files",
            "publish",
            "serve",
            "package",
            "retrain",
            "canary",
            "rollback",
            "runbook",
            "card",
        ),
        *("expire", "costs"),
        *("alert acknowledge", "alert close"),
    ),
    "approver": (*_READERS, "report", "audit bias", "approve", "reject", "grants"),
    "privacy_officer": (*_READERS, "report", "tables", "sql", "audit explain", "erase", "expire", "card"),
}
"""What each role may do; nobody may do what no role of theirs has. A viewer's verbs read no row of a unit."""


def acting_user(config: Config) -> str:
    """Name who runs this: on Databricks the user that Spark knows; elsewhere whose token $UPLIFT_TOKEN is, or without
    one the system's user.

    Raises ConfigError for a token that is nobody's.
    """
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:  # a session is there, and the system's user is root for everybody
        from uplift_spark.lake.session import spark_session

        return str(spark_session(config.lakehouse).sql("SELECT current_user()").collect()[0][0])
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
    action = action.replace("_", "-")  # as it is typed
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
    *("lift_table", "uplift_curve", "uplift_metrics", "lift_driver", "cost_curve", "policy_limits", "policy_curve"),
    *("policy_tree", "policy_scenarios", "average_effects", "overlap", "balance", "sensitivity", "bias_audit"),
    *("experiment", "experiment_health", "readout", "kpi", "drift", "findings", "window_sums", "alerts", "retrain"),
    "canary",
    *("run_log", "costs", "roi"),
)
"""Gold tables in which nobody is a row: what a viewer may read."""
_AUDIT = ("audit_log", "audit_trees")
"""Of the audit trail: entries, and hashes of decisions, without the id of a unit."""
_ANALYSED = (
    *("lift_table", "uplift_curve", "uplift_metrics", "lift_driver", "cost_curve", "policy_tree", "policy_scenarios"),
    *("bias_audit", "experiment", "experiment_health", "readout", "audit_log"),
)
"""Gold tables that an analyst's verbs write; overrides and bias audits are entries of the log."""
_STAGED = ("compared", "rewards", "simulated")
"""Silver tables of a campaign in which an analyst's verbs put rows down between two steps."""
_APPROVED = ("bias_audit", "audit_log")
"""Gold tables that an approver's verbs write."""


def grants(config: Config) -> list[str]:
    """Write the GRANTs of every role to its users and groups; a principal in backquotes.

    Viewers read gold tables and views of figures, never of units; analysts and approvers read silver and gold, and
    write what their verbs write; operators write everywhere; privacy officers read and delete everywhere. The model is
    managed by approvers and privacy officers, and by operators where versions need no approval. Raises ConfigError
    without `governance.access` or a catalog.
    """
    access, catalog = config.governance.access, config.lakehouse.catalog
    if access is None or catalog is None:
        raise ConfigError(
            "GRANTs need governance.access, which says who has which role, and lakehouse.catalog: set both"
        )
    model = f"`{catalog}`.`gold`.`{config.model_name}`"
    models = {role: [f"{right} ON FUNCTION {model}" for right in rights] for role, rights in _model_rights(config)}
    statements: list[str] = []
    for role in VERBS_OF:
        for principal in access.roles.get(role, ()):
            to = "`" + principal.replace("`", "``") + "`"
            statements += [f"GRANT {rights} TO {to};" for rights in (*_rights(role, config), *models[role])]
    return list(dict.fromkeys(statements))  # of a user with two roles each once


def _rights(role: RoleName, config: Config) -> Iterator[str]:
    """Rights to tables."""
    catalog = f"`{config.lakehouse.catalog}`"
    yield f"USE CATALOG ON CATALOG {catalog}"
    yield f"USE SCHEMA ON SCHEMA {catalog}.`gold`"
    if role == "viewer":
        # A view reads as its owner, so none needs a right to the tables below it; of a plan it shows sums alone. All
        # other roles may read the whole schema, in which views lie, too.
        yield from (f"SELECT ON TABLE {catalog}.`gold`.`{name}`" for name in (*_AGGREGATES, *_AUDIT, *GOLD_VIEWS))
    if role in ("analyst", "approver"):
        yield f"USE SCHEMA ON SCHEMA {catalog}.`silver`"
        yield from (f"SELECT ON SCHEMA {catalog}.`{schema}`" for schema in ("silver", "gold"))
        yield from (f"CREATE TABLE ON SCHEMA {catalog}.`{schema}`" for schema in _CREATED_IN[role])
        written = _ANALYSED if role == "analyst" else _APPROVED
        timed = ("run_log",) if config.costs is not None else ()  # each job leaves its seconds
        yield from (f"MODIFY ON TABLE {catalog}.`gold`.`{table}`" for table in (*written, *timed))
    if role == "analyst":
        yield from (f"MODIFY ON TABLE {catalog}.`silver`.`{table}_{config.campaign}`" for table in _STAGED)
    if role in ("operator", "privacy_officer"):
        yield from (f"USE SCHEMA ON SCHEMA {catalog}.`{schema}`" for schema in ("bronze", "silver"))
        yield from (f"SELECT, MODIFY ON SCHEMA {catalog}.`{schema}`" for schema in ("bronze", "silver", "gold"))
        yield from (f"CREATE TABLE ON SCHEMA {catalog}.`{schema}`" for schema in _CREATED_IN[role])
    if role == "operator":
        yield f"CREATE MODEL ON SCHEMA {catalog}.`gold`"


_CREATED_IN: Mapping[RoleName, tuple[str, ...]] = {
    "analyst": ("silver", "gold"),
    "operator": ("bronze", "silver", "gold"),
    "approver": ("gold",),
    "privacy_officer": ("silver", "gold"),  # training rows of a model that never saw the units, and the audit log
}
"""Schemas in which a role's verbs make the tables that are not there yet."""


def _model_rights(config: Config) -> Iterator[tuple[RoleName, tuple[str, ...]]]:
    """Rights to the model; aliases are moved by who may manage it."""
    promotes = () if config.governance.approval is not None else ("MANAGE",)
    yield "viewer", ()
    yield "analyst", ("EXECUTE",)
    yield "operator", ("EXECUTE", "CREATE MODEL VERSION", "APPLY TAG", *promotes)
    yield "approver", ("EXECUTE", "APPLY TAG", "MANAGE")
    yield "privacy_officer", ("EXECUTE", "CREATE MODEL VERSION", "APPLY TAG", "MANAGE")
