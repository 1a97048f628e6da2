"""The tables: name, columns, comments and rules of each, declared once. Those of gold are in `gold_tables`.

`contract_of` finds the contract of a table by its name. The code that checks rows against contracts is in
`lake.contracts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pyspark.sql.types import StructType

from uplift_spark.lake.contracts import INGESTED_AT, Contract, Rule, check, conform, declared
from uplift_spark.lake.gold_tables import GOLD, OF_A_CAMPAIGN, RUN
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT, UNIT
from uplift_spark.spark_versions import sql_text

# --------------------------------------------------------------------------------------------------------------------
# Bronze: raw events. Silver: labels, features and what models are trained on.
# Raw events are append-only, and each says when it was known. `known_at` is the time of its arrival, or for a historic
# load the time that the source itself states; `ingested_at` is when this platform took the row in. Assignments are
# known when they are made. Rows with the same `event_id` are one event that was delivered more than once.

__all__ = ["QUARANTINE", "RAW_TABLES", "Contract", "Rule", "check", "conform", "contract_of", "with_levels"]

QUARANTINE = "bronze.quarantine"


def contract_of(table: str) -> Contract | None:
    """Find the contract of `schema.table`; None for a table without one. All campaigns share a contract."""
    if table in _CONTRACTS:
        return _CONTRACTS[table]
    for prefix, shared in _PER_CAMPAIGN.items():
        if table.startswith(prefix) and len(table) > len(prefix):
            return replace(shared, table=table)
    return None


def all_contracts() -> tuple[Contract, ...]:
    """List the contracts of all tables by name; those that each campaign has of its own end in `_<campaign>`."""
    own = (replace(contract, table=f"{prefix}<campaign>") for prefix, contract in _PER_CAMPAIGN.items())
    return tuple(sorted((*_CONTRACTS.values(), *own), key=lambda contract: contract.table))


def is_table_of(table: str, campaign: str, model: str) -> bool:
    """Whether a table is shared by all campaigns, or is this campaign's own: of its name, or with rows that its model
    was trained on."""
    kind = table.partition(".")[2].removesuffix(f"_{campaign}")
    own = table.endswith(f"_{campaign}") and "_" not in kind  # training_late_spring is not spring's
    trained = re.fullmatch(rf"{re.escape(TRAINED_TABLES + model)}_\d+", table)  # not of a model `spring_2`
    return own or trained is not None or table in _CONTRACTS


def optional_columns(table: str) -> tuple[str, ...]:
    """List the columns of a raw table that its source may lack, `known_at` beside them: no row has a value then.

    `value` of an outcome is required: its absence is a mistake.
    """
    return ("event_id", "item", "value") if table == EVENT_TABLE else ("event_id",)


def rule_of(name: str) -> str:
    """Give the present name of a rule that the last release called `name`; other names stay."""
    return _QUARANTINE.reworded["rule"].get(name, name)


def with_levels(contract: Contract, levels: Sequence[str]) -> Contract:
    """Make `contract` reject treatments other than `levels`, too."""
    known = ", ".join(map(sql_text, levels))
    rule = Rule("treatment_known", f"{TREATMENT} IN ({known})", f"treatment is none of {', '.join(levels)}")
    return replace(contract, rules=(*contract.rules, rule))


_INGEST = ("source string: file, table or simulator", *RUN, f"{INGESTED_AT} timestamp: when the row was ingested")
_KNOWN = ("known_at timestamp: when the business knew the row, its arrival or what a historic load's source states",)
_EVENT = (
    "event_id string: the source's key of what happened to the unit, by which repeats are known; null when it has none",
    *_KNOWN,
)
_FINITE = "value > CAST('-Infinity' AS DOUBLE) AND value < CAST('Infinity' AS DOUBLE)"

_UNIT_PRESENT = Rule(
    "unit_present", f"{UNIT} IS NOT NULL AND trim({UNIT}) <> ''", f"{UNIT} is missing", constraint=True
)
_CAMPAIGN_PRESENT = Rule("campaign_present", f"trim({CAMPAIGN}) <> ''", f"{CAMPAIGN} is missing")
_VALUE_FINITE = Rule("value_finite", f"value IS NULL OR ({_FINITE})", "value is not finite", constraint=True)
# Blank ids would make one event of all the rows that have none.
_EVENT_ID = Rule("event_id_filled", "event_id IS NULL OR trim(event_id) <> ''", "event_id is blank", constraint=True)


def _times(happened: str) -> tuple[Rule, ...]:
    """Both times are there, and nothing is known before it happened. Enforced by the table: as-of joins rely on it."""
    ordered = f"known_at IS NULL OR {happened} IS NULL OR known_at >= {happened}"
    return (
        Rule(f"{happened}_present", f"{happened} IS NOT NULL", f"{happened} is missing"),
        Rule("known_at_present", "known_at IS NOT NULL", "known_at is missing", constraint=True),
        Rule("known_at_order", ordered, f"known_at is before {happened}", constraint=True),
    )


_ASSIGNMENT = Contract(
    table="bronze.assignment",
    job="ingest",
    columns=declared(
        f"{UNIT} string: pseudonymous unit, one assignment per campaign",
        f"{CAMPAIGN} string",
        f"{TREATMENT} string: level assigned",
        "assigned_at timestamp",
        f"{PROPENSITY} double: logged probability of the level received; null when it was not logged",
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _CAMPAIGN_PRESENT,
        Rule(
            "treatment_present",
            f"trim({TREATMENT}) <> '' AND lower(trim({TREATMENT})) <> 'nan'",
            f"{TREATMENT} is missing",
        ),
        Rule("assigned_at_present", "assigned_at IS NOT NULL", "assigned_at is missing"),
        Rule(
            "propensity_range",
            f"{PROPENSITY} IS NULL OR ({PROPENSITY} > 0 AND {PROPENSITY} <= 1)",
            f"{PROPENSITY} is outside (0, 1]",
            constraint=True,
        ),
    ),
    unique=(CAMPAIGN, UNIT),
    append_only=True,
    cluster_by=(CAMPAIGN, "assigned_at"),
    renamed=OF_A_CAMPAIGN,
)

_SCHEDULE = Contract(
    table="bronze.schedule",
    job="assign",
    columns=declared(
        f"{CAMPAIGN} string",
        "block string: region and start, as region|2026-03-02T04:00",
        "region string",
        "starts_at timestamp",
        "ends_at timestamp: the next block's start",
        "round string: region and number of the round, within which arms have their exact shares",
        f"{TREATMENT} string: level of the whole region during the block",
        f"{PROPENSITY} double: by design",
        "assigned_at timestamp",
        *_INGEST,
    ),
    rules=(
        _CAMPAIGN_PRESENT,
        Rule("block_present", "trim(block) <> ''", "block is missing"),
        Rule("treatment_present", f"trim({TREATMENT}) <> ''", f"{TREATMENT} is missing"),
        Rule("block_order", "ends_at > starts_at", "ends_at is not after starts_at", constraint=True),
        Rule(
            "propensity_range",
            f"{PROPENSITY} > 0 AND {PROPENSITY} <= 1",
            f"{PROPENSITY} is outside (0, 1]",
            constraint=True,
        ),
    ),
    unique=(CAMPAIGN, "block"),
    append_only=True,
    cluster_by=(CAMPAIGN, "starts_at"),
)

_DECISION = Contract(
    table="bronze.decision",
    job="load",
    columns=declared(
        f"{UNIT} string",
        f"{CAMPAIGN} string: under which decisions of the service assign",
        "request_key string: the caller's name of the occasion",
        f"{TREATMENT} string: level answered",
        "reason string",
        f"{PROPENSITY} double: probability of the level once the holdout is dealt; null when it is not known",
        "overall_propensity double: probability of the level, the holdout's draw counted; null when no design chose it",
        "explored boolean: the level is random",
        "assigns boolean: the log's first decision of the unit by design; its assignment, if it had none before",
        "model_name string",
        "model_version string",
        "published string: version of the online store that answered",
        "degraded string: what the decision could not rest on; null for nothing",
        "decided_at timestamp",
        *_KNOWN,
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _CAMPAIGN_PRESENT,
        Rule("request_key_present", "trim(request_key) <> ''", "request_key is missing"),
        Rule("treatment_present", f"trim({TREATMENT}) <> ''", f"{TREATMENT} is missing"),
        *_times("decided_at"),
    ),
    append_only=True,
    cluster_by=(CAMPAIGN, "decided_at"),
)

# What became of a send. `suppressed` never left: consent, a frequency cap or another rule held it back.
DELIVERY_STATUSES = ("sent", "delivered", "bounced", "failed", "suppressed")

_DELIVERY = Contract(
    table="bronze.delivery",
    job="load",
    columns=declared(
        f"{UNIT} string",
        f"{CAMPAIGN} string",
        "delivery_id string: one send; each change of its status is a row",
        f"status string: {', '.join(DELIVERY_STATUSES)}",
        "delivered_at timestamp: when the send came to this status",
        *_EVENT,
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _CAMPAIGN_PRESENT,
        Rule("delivery_id_present", "trim(delivery_id) <> ''", "delivery_id is missing"),
        Rule(
            "status_known",
            f"status IN ({', '.join(map(repr, DELIVERY_STATUSES))})",
            f"status is none of {', '.join(DELIVERY_STATUSES)}",
            constraint=True,
        ),
        *_times("delivered_at"),
        _EVENT_ID,
    ),
    append_only=True,
    cluster_by=(CAMPAIGN, "delivered_at"),
    renamed=OF_A_CAMPAIGN,
)

# Of what happened to a unit and has an amount.
_HAPPENED = (_VALUE_FINITE, *_times("occurred_at"), _EVENT_ID)

_OUTCOME = Contract(
    table="bronze.outcome",
    job="ingest",
    columns=declared(
        f"{UNIT} string",
        f"{CAMPAIGN} string",
        "outcome string: name, such as visit or revenue",
        "value double: amount of this event; null when it is not known",
        "occurred_at timestamp",
        *_EVENT,
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _CAMPAIGN_PRESENT,
        Rule("outcome_present", "trim(outcome) <> ''", "outcome is missing"),
        *_HAPPENED,
    ),
    append_only=True,
    cluster_by=(CAMPAIGN, "occurred_at"),
    renamed=OF_A_CAMPAIGN,
)

_BEHAVIOUR = Contract(
    table="bronze.event",
    job="load",
    columns=declared(
        f"{UNIT} string",
        "event string: name, such as page_view or login",
        "item string: what it was about, such as a product or a page; null when it has none",
        "value double: amount of this event; null when it has none or it is not known",
        "occurred_at timestamp",
        *_EVENT,
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        Rule("event_present", "trim(event) <> ''", "event is missing"),
        *_HAPPENED,
    ),
    append_only=True,
    cluster_by=(UNIT, "occurred_at"),
)

# No key is unique: rejecting both of two rows of one moment could lose a withdrawal.
_CONSENT = Contract(
    table="bronze.consent",
    job="load",
    columns=declared(
        f"{UNIT} string",
        "purpose string: what is agreed to, such as marketing; a withdrawal of profiling is an objection to it",
        "granted boolean: true gives the consent, false withdraws it",
        "changed_at timestamp",
        *_KNOWN,
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        Rule("purpose_present", "trim(purpose) <> ''", "purpose is missing"),
        Rule("granted_present", "granted IS NOT NULL", "granted is missing", constraint=True),
        *_times("changed_at"),
    ),
    append_only=True,
    cluster_by=(UNIT, "changed_at"),
)

_EXPENSE = Contract(
    table="bronze.expense",
    job="load",
    columns=declared(
        f"{CAMPAIGN} string",
        "expense_id string: one item of a bill; a later row of the same id corrects the earlier one",
        "item string: what was paid for, such as agency or clusters",
        "amount double: money; below 0 where it came back",
        "spent_at timestamp",
        *_KNOWN,
        *_INGEST,
    ),
    rules=(
        _CAMPAIGN_PRESENT,
        Rule("expense_id_present", "trim(expense_id) <> ''", "expense_id is missing"),
        Rule("item_present", "trim(item) <> ''", "item is missing"),
        Rule(
            "amount_finite",
            f"amount IS NOT NULL AND {_FINITE.replace('value', 'amount')}",
            "amount is no finite number",
        ),
        *_times("spent_at"),
    ),
    append_only=True,
    cluster_by=(CAMPAIGN, "spent_at"),
)

_PROFILE = Contract(
    table="bronze.profile",
    job="ingest",
    columns=declared(f"{UNIT} string", "observed_at timestamp: when the attributes held", *_KNOWN, *_INGEST),
    rules=(_UNIT_PRESENT, *_times("observed_at")),
    unique=(UNIT, "observed_at"),
    open=True,
    append_only=True,
    skip_by=("observed_at", "known_at", RUN_ID),
)

_QUARANTINE = Contract(
    table=QUARANTINE,
    job="ingest",
    columns=declared(
        "source_table string: table the row was meant for",
        "rule string: first rule it broke",
        "reason string: every reason",
        "row string: the row as JSON",
        "source string: file, table or simulator it came from",
        f"{CAMPAIGN} string",
        *RUN,
        f"{INGESTED_AT} timestamp",
    ),
    renamed=OF_A_CAMPAIGN,
    reworded={
        "rule": {"experiment_present": _CAMPAIGN_PRESENT.name},
        "reason": {"experiment is missing": "campaign is missing", "experiment and unit_id": "campaign and unit_id"},
    },
)

_TRUTH = Contract(
    table="bronze.truth",
    job="ingest",
    columns=declared(
        f"{UNIT} string",
        f"{CAMPAIGN} string: simulated",
        f"{TREATMENT} string: level compared with control",
        "outcome string",
        "effect double: true individual effect against control",
        *RUN,
    ),
    skip_by=(CAMPAIGN, RUN_ID),
    renamed=OF_A_CAMPAIGN,
)

_LABEL = Contract(
    table="silver.label",
    job="features",
    columns=declared(
        f"{CAMPAIGN} string",
        f"{UNIT} string",
        f"{TREATMENT} string: level assigned",
        "assigned_at timestamp",
        f"{PROPENSITY} double",
        "outcomes map<string,double>: sum of values inside each outcome's attribution window, 0 without events",
        "mature boolean: every outcome's window had closed at as_of, days of waiting for late events included",
        "delivered boolean: a delivery inside the longest window was known; null when no delivery was logged at all",
        "as_of timestamp: only what was known by then counts",
        *RUN,
    ),
    skip_by=(CAMPAIGN, "as_of", RUN_ID),
    renamed=OF_A_CAMPAIGN,
)

_TRAINING = Contract(
    table="silver.training",
    job="features",
    columns=declared(
        f"{UNIT} string",
        f"{TREATMENT} string: level assigned",
        f"{PROPENSITY} double",
        "assigned_at timestamp",
        "split string: train, holdout, or targeted: a policy was certain of the unit's level, so it shows no effect",
        *RUN,
    ),
    open=True,
    skip_by=("split",),
)

_ADJUSTED = Contract(
    table="silver.adjusted",
    job="nuisances",
    columns=declared(
        f"{UNIT} string",
        f"{TREATMENT} string: level received",
        f"{PROPENSITY} double: probability of the level received, as logged or as the features tell it",
        "assigned_at timestamp",
        "split string: train, holdout, or trimmed: units like this one hardly ever receive some level",
        "fold bigint: a unit's nuisances come from models of the other folds",
        "outcome_mean array<double>: expected outcome under every level, the control first",
        "propensities array<double>: probability of every level, the control first",
        "scores map<string,double>: doubly robust score of every level, what the forest is trained on",
        *RUN,
    ),
    open=True,
    skip_by=("split",),
    renamed={"outcome_mean": "expected", "propensities": "odds"},
    reworded={"split": {"set aside": "trimmed"}},
)

_COMPARED = Contract(
    table="silver.compared",
    job="compare",
    columns=declared(f"{UNIT} string", "outcome_mean array<double>: by a T-learner, under every level", *RUN),
    open=True,
    skip_by=(RUN_ID,),
    renamed={"outcome_mean": "expected"},
)

# What a model rests on once its own version of the training table is to go. As unit_id is not in skip_by, no id gets
# into the table's log, so that its versions stay readable when purging cleans the logs of the others.
_TRAINED = replace(_TRAINING, table="silver.trained", job="erase")

_FEATURE_REGISTRY = Contract(
    table="silver.feature_registry",
    job="features",
    columns=declared(
        "feature string",
        "version bigint: raised by its owner when the meaning changes",
        "source string: event or profile",
        "aggregate string",
        "definition string: all of it as JSON",
        "definition_hash string: SHA-256 of what decides the values",
        "owner string",
        "description string",
        "ttl_minutes double: age of the source's newest row from which the feature is stale",
        "targeting boolean: may decide whom to treat",
        "protected boolean: looked at by audits for bias",
        "code_version string",
        *RUN,
    ),
)

_FEATURE_VERSIONS = Contract(
    table="silver.feature_versions",
    job="features",
    columns=declared(
        "training_table string: training set that has the feature as a column",
        "feature string",
        "version bigint",
        "definition_hash string",
        "source_table string",
        "source_version bigint: Delta version read",
        "label_as_of timestamp",
        "units bigint",
        "missing bigint: units without a value",
        "code_version string",
        *RUN,
    ),
)

_RAW = (_ASSIGNMENT, _DELIVERY, _OUTCOME, _BEHAVIOUR, _CONSENT, _DECISION, _EXPENSE)
_FEATURES = (_FEATURE_REGISTRY, _FEATURE_VERSIONS)
_SHARED = (*_RAW, _SCHEDULE, _QUARANTINE, _TRUTH, _LABEL, *_FEATURES, *GOLD)
_CONTRACTS = {contract.table: contract for contract in _SHARED}
RAW_TABLES = (*(contract.table for contract in _RAW), f"{_PROFILE.table}_<campaign>")
_PER_CAMPAIGN = {f"{contract.table}_": contract for contract in (_PROFILE, _TRAINING, _ADJUSTED, _TRAINED, _COMPARED)}

# Names, for code that reads and writes the tables.
ASSIGNMENT_TABLE, DELIVERY_TABLE, OUTCOME_TABLE = _ASSIGNMENT.table, _DELIVERY.table, _OUTCOME.table
EVENT_TABLE, CONSENT_TABLE, TRUTH_TABLE = _BEHAVIOUR.table, _CONSENT.table, _TRUTH.table
DECISION_TABLE, EXPENSE_TABLE, SCHEDULE_TABLE = _DECISION.table, _EXPENSE.table, _SCHEDULE.table
LABEL_TABLE, FEATURE_REGISTRY, FEATURE_VERSIONS = _LABEL.table, _FEATURE_REGISTRY.table, _FEATURE_VERSIONS.table
TRAINED_TABLES = f"{_TRAINED.table}_"
"""How the names of tables with rows of trained models begin."""


def bronze_table(name: str) -> str:
    """Name of a table of raw events."""
    return f"bronze.{name}"


def profile_table(campaign: str) -> str:
    """Name of the table with a campaign's profiles."""
    return f"{_PROFILE.table}_{campaign}"


def silver_table(kind: str, campaign: str) -> str:
    """Name of a campaign's table of this kind: `training`, or one that a job keeps its rows in while it runs."""
    return f"silver.{kind}_{campaign}"


def gold_table(name: str) -> str:
    """Name of a table of results."""
    return f"gold.{name}"


SCORES_TABLE, DECISIONS_TABLE = gold_table("uplift_scores"), gold_table("policy_decisions")
CANARY_TABLE = gold_table("canary")
RUN_LOG_TABLE, COSTS_TABLE, ROI_TABLE = gold_table("run_log"), gold_table("costs"), gold_table("roi")
SCENARIOS_TABLE, ALERTS_TABLE = gold_table("policy_scenarios"), gold_table("alerts")
EXPERIMENT_TABLE, READOUT_TABLE = gold_table("experiment"), gold_table("readout")
HEALTH_TABLE = gold_table("experiment_health")
AUDIT_TABLE, AUDIT_TREES, BIAS_TABLE = gold_table("audit_log"), gold_table("audit_trees"), gold_table("bias_audit")
NEVER_DUE = {
    CONSENT_TABLE: "a withdrawal that went would let its unit be contacted again",
    AUDIT_TABLE: "without its first entries the chain does not hold",
    AUDIT_TREES: "proofs of decisions rest on all of it",
}
"""Tables whose rows no retention deletes, and why."""


def columns_to_fill(table: str) -> StructType:
    """Columns of a declared table that its writer fills: all but run_id and ingested_at, which `Lake.write` sets.

    Raises KeyError for any other table.
    """
    return StructType([field for field in _CONTRACTS[table].columns if field.name not in (RUN_ID, INGESTED_AT)])


_RENAMED = {pair for contract in (*_SHARED, *_PER_CAMPAIGN.values()) for pair in contract.renamed.items()}
# For queries by SQL, which find columns by the names that a table has: of each renamed column its other name.
OTHER_NAMES = {**dict(_RENAMED), **{old: new for new, old in _RENAMED}}
