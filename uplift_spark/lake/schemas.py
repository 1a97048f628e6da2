"""The tables: name, columns, comments and rules of each, declared once.

`contract_of` finds the contract of a table by its name. The code that checks rows against contracts is in
`lake.contracts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyspark.sql.types import StructType

from uplift_spark.lake.contracts import INGESTED_AT, Contract, Rule, check, conform, declared
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT, UNIT

# --------------------------------------------------------------------------------------------------------------------
# Gold: results, the tables that people query by SQL.

RUN = (f"{RUN_ID} string: run that wrote the row",)
# Tables that version 0.1 made have this column under another name. They stay readable for one version.
_OF_A_CAMPAIGN = {CAMPAIGN: "experiment"}

_SCORES = Contract(
    table="gold.uplift_scores",
    job="score",
    columns=declared(
        f"{UNIT} string",
        f"{TREATMENT} string: level compared with control",
        "uplift double: predicted effect on the outcome",
        "uplift_se double",
        "uplift_lower double: 95 % interval",
        "uplift_upper double: 95 % interval",
        "low_support boolean: too few units like this one to rely on the number",
        "model_name string",
        "model_version string",
        "feature_version bigint: Delta version of the training table scored",
        *RUN,
        "scored_at timestamp",
    ),
    cluster_by=(UNIT,),
    skip_by=(UNIT, RUN_ID),
)

_LIFT_TABLE = Contract(
    table="gold.lift_table",
    job="lift",
    columns=declared(
        *RUN,
        "model_version string",
        "outcome string",
        f"{TREATMENT} string: level compared with control",
        "cut string: all, decile, segment:<feature> or segment:<feature> x <feature>",
        "bucket string: decile (1 has the best predicted uplift: lowest where less is better) or value of the segment",
        "n bigint: hold-out units of both arms",
        "n_treated bigint",
        "n_control bigint",
        "mean_treated double",
        "mean_control double",
        "predicted_uplift double",
        "uplift double: observed",
        "uplift_lower double: 95 % interval",
        "uplift_upper double: 95 % interval",
        "incremental_outcomes double",
        "revenue double",
        "cost double",
        "roi double",
        "cost_per_incremental double",
        "roi_lower double: 95 % interval",
        "roi_upper double: 95 % interval",
        "cost_per_incremental_lower double: 95 % interval",
        "cost_per_incremental_upper double: 95 % interval",
        "low_sample boolean: too few units or events for the interval to be more than rough",
        "shrunk_uplift double: of segments, drawn to the mean of the buckets where the bucket itself says little",
        "different_p double: of segments, p-value of a difference from the other buckets, adjusted for their number",
    ),
)

_CURVE = Contract(
    table="gold.uplift_curve",
    job="lift",
    columns=declared(
        *RUN,
        "outcome string",
        f"{TREATMENT} string",
        "fraction double: share of units targeted, best predicted uplift first",
        "gain double: per unit of the population; what the outcome falls by where less is better",
        "gain_lower double: 95 % interval",
        "gain_upper double: 95 % interval",
        "random_gain double",
    ),
)

_METRICS = Contract(
    table="gold.uplift_metrics",
    job="lift",
    columns=declared(
        *RUN,
        "model_version string: of the registered model, or the learner it was compared with",
        "outcome string",
        f"{TREATMENT} string: level compared with control; any for rules that choose one",
        "metric string",
        "value double",
        "lower double: 95 % interval",
        "upper double: 95 % interval",
    ),
)

_DECISIONS = Contract(
    table="gold.policy_decisions",
    job="policy",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        f"{UNIT} string",
        f"{TREATMENT} string: level the unit is to get, the control for none",
        "reason string: why, or the rule that bars the unit",
        "gain double: what the treatment is predicted to bring",
        "cost double: what treating the unit costs",
        "value double: most that any level gains the unit at the limits' prices; the certificate adds these up",
        "model_version string",
    ),
    cluster_by=(UNIT,),
    skip_by=(UNIT, RUN_ID),
    renamed=_OF_A_CAMPAIGN,
)

_LIMITS = Contract(
    table="gold.policy_limits",
    job="policy",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "name string: the limit",
        "most double: what may be used; null for a floor",
        "least double: what must be used; null but for a floor",
        "used double: what the plan uses",
        "price double: gain per unit more of what may be used, or that must",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_POLICY_CURVE = Contract(
    table="gold.policy_curve",
    job="policy",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "budget double",
        "treated double: units treated",
        "cost double: money spent",
        "gain double: predicted",
        "observed double: gain of such a plan by the outcomes of the hold-out; null where too few units tell",
        "observed_lower double: 95 % interval",
        "observed_upper double: 95 % interval",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_SCENARIOS = Contract(
    table="gold.policy_scenarios",
    job="simulate",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "scenario string: plan is the policy as it is configured",
        f"{TREATMENT} string: level given; any for all of them together",
        "units bigint: that get it",
        "cost double: of treating them",
        "gain double: predicted",
        "true_gain double: by the true effects of a simulated campaign; null elsewhere",
        "gap double: how far from the best plan at most, as a share of it; only for any",
        "observed double: gain by the outcomes of the hold-out; only for any, null where too few units tell",
        "observed_lower double: 95 % interval",
        "observed_upper double: 95 % interval",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_COST_CURVE = Contract(
    table="gold.cost_curve",
    job="compare",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "model string: version of the registered model, or the learner",
        "outcome string",
        "cost double: of treating, per unit of the population",
        "gain double: in the outcome (what it falls by where less is better), per unit, by doubly robust scores",
        "gain_lower double: 95 % interval",
        "gain_upper double: 95 % interval",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_POLICY_TREE = Contract(
    table="gold.policy_tree",
    job="tree",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "node bigint: 0 is the first question",
        "depth bigint",
        "feature string: null where the tree gives a level",
        "operator string: <=, is, or is missing",
        "threshold double",
        "category string",
        "question string: in words",
        "yes bigint: node that the answer leads to",
        "no bigint",
        "action string: level that units here get; null at a question",
        "units bigint: that the tree was grown from",
        "value double: mean gain over the control of these units, which the tree was chosen for",
    ),
    renamed={**_OF_A_CAMPAIGN, "question": "asks"},
)

_AVERAGES = Contract(
    table="gold.average_effects",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "outcome string",
        f"{TREATMENT} string: level compared with control",
        "estimand string: ate of all units, att of those who received the level, overlap of those who might have "
        "received either, naive difference of means",
        "cut string: all, or segment:<feature>",
        "bucket string: value of the segment",
        "n_treated bigint",
        "n_control bigint",
        "value double",
        "error double: standard error",
        "lower double: 95 % interval",
        "upper double: 95 % interval",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_OVERLAP = Contract(
    table="gold.overlap",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        f"{TREATMENT} string: level received",
        "units bigint: that received it",
        "trimmed bigint: of those who received it, because units like them hardly ever receive some level",
        "lowest double: probability of the level among those who received it",
        "low double: 5 % have less",
        "median double",
        "effective_units double: that would say as much if all counted alike",
    ),
    renamed={**_OF_A_CAMPAIGN, "trimmed": "set_aside"},
)

_BALANCE = Contract(
    table="gold.balance",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        f"{TREATMENT} string: level compared with control",
        "feature string",
        "category string: of text; missing; null for numbers",
        "difference double: of means, in standard deviations",
        "difference_weighted double: by the inverse of each unit's propensity",
        "variance_ratio double: of numbers",
        "variance_ratio_weighted double",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_SENSITIVITY = Contract(
    table="gold.sensitivity",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        f"{TREATMENT} string: level compared with control",
        "check string: permuted treatment, placebo outcome (both: an effect that must be nought), hidden confounder "
        "(of which the ate is between lower and upper, 95 %), robustness (share of outcome and treatment that would "
        "bring the ate, or its interval, to nought), e-value (risk ratio that would)",
        "setting string: draw, feature, share, or estimate and interval",
        "value double",
        "lower double",
        "upper double",
        "p_value double",
    ),
    renamed=_OF_A_CAMPAIGN,
)

_EXPERIMENT = Contract(
    table="gold.experiment",
    job="assign",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "job string: assign where units were assigned, readout where the trial was read",
        "name string",
        "salt string",
        "fingerprint string: of all that decides arms; ramp and stopped arms are no part of it",
        "design string: how arms are assigned, as JSON",
        "starts timestamp: of the first day of assignment, where it is planned",
        "ends timestamp: of the last day, where it is planned",
        "as_of timestamp: when units were assigned; until when outcomes were read",
        "units bigint: assigned by this run, or read",
        "share double: of the planned units that were read",
        "level double: of this reading's intervals",
        "verdict string: ship, roll back, keep going or broken",
        "arm string: to ship",
        "reason string: of the verdict",
        "days_left bigint: until the planned units are there",
        "override string: why a broken trial was read all the same",
    ),
)

_READOUT = Contract(
    table="gold.readout",
    job="readout",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "as_of timestamp: until when outcomes were read",
        "metric string",
        "role string: primary, secondary, guardrail, or complier: the effect on those who take the treatment",
        f"{TREATMENT} string: level compared with control",
        "control double: mean, less what covariates explain; of a complier the share that received the treatment",
        "treated double",
        "effect double: treated less control",
        "error double: standard error",
        "lower double: interval that holds at this reading and at all others of the design",
        "upper double",
        "p_value double: holds at every reading, too",
        "p_adjusted double: for several arms and metrics",
        "relative double: effect over the mean of the control",
        "relative_lower double",
        "relative_upper double",
        "saved double: share of the variance that covariates and strata take off",
        "status string: better, worse or open; of a guardrail safe, harmed or open",
        "override string: why a broken trial was read all the same",
    ),
)

_EXPERIMENT_HEALTH = Contract(
    table="gold.experiment_health",
    job="check",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "as_of timestamp: until when outcomes were read",
        "check string: all where nothing is wrong",
        "severity string: refuse, warn or ok",
        "figure double: what was measured",
        "threshold double: from where on it is a finding",
        "p_value double",
        "sentence string: what is wrong, and the remedy",
        "override string: why a broken trial was read all the same",
        "override_by string: who says so",
    ),
)

GOLD = (
    *(_EXPERIMENT, _READOUT, _EXPERIMENT_HEALTH),
    *(_AVERAGES, _OVERLAP, _BALANCE, _SENSITIVITY),
    *(_SCORES, _LIFT_TABLE, _CURVE, _METRICS, _COST_CURVE),
    *(_DECISIONS, _LIMITS, _POLICY_CURVE, _POLICY_TREE, _SCENARIOS),
)


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
    known = ", ".join("'" + level.replace("\\", "\\\\").replace("'", "\\'") + "'" for level in levels)
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
    renamed=_OF_A_CAMPAIGN,
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
    renamed=_OF_A_CAMPAIGN,
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
    renamed=_OF_A_CAMPAIGN,
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
        "purpose string: what is agreed to, such as marketing or profiling",
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

_PROFILE = Contract(
    table="bronze.profile",
    job="ingest",
    columns=declared(f"{UNIT} string", "observed_at timestamp: when the attributes held", *_KNOWN, *_INGEST),
    rules=(_UNIT_PRESENT, *_times("observed_at")),
    unique=(UNIT, "observed_at"),
    open=True,
    append_only=True,
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
    renamed=_OF_A_CAMPAIGN,
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
    renamed=_OF_A_CAMPAIGN,
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
    renamed=_OF_A_CAMPAIGN,
)

_TRAINING = Contract(
    table="silver.training",
    job="features",
    columns=declared(
        f"{UNIT} string",
        f"{TREATMENT} string: level assigned",
        f"{PROPENSITY} double",
        "assigned_at timestamp",
        "split string: train or holdout",
        *RUN,
    ),
    open=True,
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
    renamed={"outcome_mean": "expected", "propensities": "odds"},
    reworded={"split": {"set aside": "trimmed"}},
)

_COMPARED = Contract(
    table="silver.compared",
    job="compare",
    columns=declared(f"{UNIT} string", "outcome_mean array<double>: by a T-learner, under every level", *RUN),
    open=True,
    renamed={"outcome_mean": "expected"},
)

# What a model rests on once its own version of the training table is to go. Without bounds of unit_id no id gets into
# the table's log, so that its versions stay readable when purging cleans the logs of the others.
_TRAINED = replace(_TRAINING, table="silver.trained", job="erase", skip_by=("split",))

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

_RAW = (_ASSIGNMENT, _DELIVERY, _OUTCOME, _BEHAVIOUR, _CONSENT)
_FEATURES = (_FEATURE_REGISTRY, _FEATURE_VERSIONS)
_SHARED = (*_RAW, _QUARANTINE, _TRUTH, _LABEL, *_FEATURES, *GOLD)
_CONTRACTS = {contract.table: contract for contract in _SHARED}
RAW_TABLES = (*(contract.table for contract in _RAW), f"{_PROFILE.table}_<campaign>")
_PER_CAMPAIGN = {f"{contract.table}_": contract for contract in (_PROFILE, _TRAINING, _ADJUSTED, _TRAINED, _COMPARED)}

# Names, for code that reads and writes the tables.
ASSIGNMENT_TABLE, DELIVERY_TABLE, OUTCOME_TABLE = _ASSIGNMENT.table, _DELIVERY.table, _OUTCOME.table
EVENT_TABLE, CONSENT_TABLE, TRUTH_TABLE = _BEHAVIOUR.table, _CONSENT.table, _TRUTH.table
LABEL_TABLE, FEATURE_REGISTRY, FEATURE_VERSIONS = _LABEL.table, _FEATURE_REGISTRY.table, _FEATURE_VERSIONS.table
EXPERIMENT_TABLE, READOUT_TABLE, HEALTH_TABLE = _EXPERIMENT.table, _READOUT.table, _EXPERIMENT_HEALTH.table
SCORES_TABLE, DECISIONS_TABLE, SCENARIOS_TABLE = _SCORES.table, _DECISIONS.table, _SCENARIOS.table
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


def columns_to_fill(table: str) -> StructType:
    """Columns of a declared table that its writer fills: all but run_id. Raises KeyError for any other table."""
    return StructType([field for field in _CONTRACTS[table].columns if field.name != RUN_ID])


_RENAMED = {pair for contract in (*_SHARED, *_PER_CAMPAIGN.values()) for pair in contract.renamed.items()}
# For queries by SQL, which find columns by the names that a table has: of each renamed column its other name.
OTHER_NAMES = {**dict(_RENAMED), **{old: new for new, old in _RENAMED}}
