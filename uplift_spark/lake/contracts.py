"""What each table holds: columns, comments and the rules of its rows (R1.1). The code behind is in `lake.checks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uplift_spark.lake.checks import INGESTED_AT, Contract, Rule, check, conform, declared
from uplift_spark.vocabulary import EXPERIMENT, PROPENSITY, RUN_ID, TREATMENT, UNIT

__all__ = ["Contract", "Rule", "check", "conform", "contract_of", "with_levels"]


def contract_of(table: str) -> Contract | None:
    """Contract of `schema.table`; None for tables the platform does not know. One contract serves every campaign."""
    if table in _CONTRACTS:
        return _CONTRACTS[table]
    for prefix, shared in _PER_CAMPAIGN.items():
        if table.startswith(prefix) and len(table) > len(prefix):
            return replace(shared, table=table)
    return None


def with_levels(contract: Contract, levels: Sequence[str]) -> Contract:
    """`contract` that also rejects treatments other than `levels`."""
    known = ", ".join("'" + level.replace("\\", "\\\\").replace("'", "\\'") + "'" for level in levels)
    rule = Rule("treatment_known", f"{TREATMENT} IN ({known})", f"treatment is none of {', '.join(levels)}")
    return replace(contract, rules=(*contract.rules, rule))


_RUN = (f"{RUN_ID} string: run that wrote the row",)
_INGEST = ("source string: file or simulator", *_RUN, f"{INGESTED_AT} timestamp: when the row was ingested")
_FINITE = "value > CAST('-Infinity' AS DOUBLE) AND value < CAST('Infinity' AS DOUBLE)"

_UNIT_PRESENT = Rule(
    "unit_present", f"{UNIT} IS NOT NULL AND trim({UNIT}) <> ''", f"{UNIT} is missing", constraint=True
)
_EXPERIMENT_PRESENT = Rule("experiment_present", f"trim({EXPERIMENT}) <> ''", f"{EXPERIMENT} is missing")

_ASSIGNMENT = Contract(
    table="bronze.assignment",
    job="ingest",
    columns=declared(
        f"{UNIT} string: pseudonymous unit, one assignment per experiment",
        f"{EXPERIMENT} string: campaign",
        f"{TREATMENT} string: level assigned",
        "assigned_at timestamp",
        f"{PROPENSITY} double: logged probability of the level received; null when it was not logged",
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _EXPERIMENT_PRESENT,
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
    unique=(EXPERIMENT, UNIT),
    cluster_by=(EXPERIMENT, "assigned_at"),
)

_OUTCOME = Contract(
    table="bronze.outcome",
    job="ingest",
    columns=declared(
        f"{UNIT} string",
        f"{EXPERIMENT} string: campaign",
        "outcome string: name, such as visit or revenue",
        "value double: amount of this event; null when it is not known",
        "occurred_at timestamp",
        *_INGEST,
    ),
    rules=(
        _UNIT_PRESENT,
        _EXPERIMENT_PRESENT,
        Rule("outcome_present", "trim(outcome) <> ''", "outcome is missing"),
        Rule("value_finite", f"value IS NULL OR ({_FINITE})", "value is not finite", constraint=True),
        Rule("occurred_at_present", "occurred_at IS NOT NULL", "occurred_at is missing"),
    ),
    cluster_by=(EXPERIMENT, "occurred_at"),
)

_PROFILE = Contract(
    table="bronze.profile",
    job="ingest",
    columns=declared(f"{UNIT} string", "observed_at timestamp: when the attributes held", *_INGEST),
    rules=(_UNIT_PRESENT, Rule("observed_at_present", "observed_at IS NOT NULL", "observed_at is missing")),
    unique=(UNIT, "observed_at"),
    open=True,
)

_QUARANTINE = Contract(
    table="bronze.quarantine",
    job="ingest",
    columns=declared(
        "source_table string: table the row was meant for",
        "rule string: first rule it broke",
        "reason string: every reason",
        "row string: the row as JSON",
        f"{EXPERIMENT} string",
        *_RUN,
        f"{INGESTED_AT} timestamp",
    ),
)

_TRUTH = Contract(
    table="bronze.truth",
    job="ingest",
    columns=declared(
        f"{UNIT} string",
        f"{EXPERIMENT} string: simulated campaign",
        f"{TREATMENT} string: level compared with control",
        "outcome string",
        "effect double: true individual effect against control",
        *_RUN,
    ),
)

_LABEL = Contract(
    table="silver.label",
    job="features",
    columns=declared(
        f"{EXPERIMENT} string: campaign",
        f"{UNIT} string",
        f"{TREATMENT} string: level assigned",
        "assigned_at timestamp",
        f"{PROPENSITY} double",
        "outcomes map<string,double>: sum of values inside the attribution window, 0 without events",
        "mature boolean: the window had closed at as_of",
        "as_of timestamp",
        *_RUN,
    ),
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
        *_RUN,
    ),
    open=True,
)

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
        *_RUN,
        "scored_at timestamp",
    ),
    cluster_by=(UNIT,),
    skip_by=(UNIT, RUN_ID),
)

_LIFT_TABLE = Contract(
    table="gold.lift_table",
    job="lift",
    columns=declared(
        *_RUN,
        "model_version string",
        "outcome string",
        f"{TREATMENT} string: level compared with control",
        "cut string: decile or segment:<feature>",
        "bucket string: decile (1 is the highest predicted uplift) or value of the segment",
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
    ),
)

_CURVE = Contract(
    table="gold.uplift_curve",
    job="lift",
    columns=declared(
        *_RUN,
        "outcome string",
        f"{TREATMENT} string",
        "fraction double: share of units targeted, highest predicted uplift first",
        "gain double",
        "gain_lower double: 95 % interval",
        "gain_upper double: 95 % interval",
        "random_gain double",
    ),
)

_METRICS = Contract(
    table="gold.uplift_metrics",
    job="lift",
    columns=declared(
        *_RUN,
        "model_version string",
        "outcome string",
        f"{TREATMENT} string",
        "metric string",
        "value double",
        "lower double: 95 % interval",
        "upper double: 95 % interval",
    ),
)

_SHARED = (_ASSIGNMENT, _OUTCOME, _QUARANTINE, _TRUTH, _LABEL, _SCORES, _LIFT_TABLE, _CURVE, _METRICS)
_CONTRACTS = {contract.table: contract for contract in _SHARED}
_PER_CAMPAIGN = {f"{contract.table}_": contract for contract in (_PROFILE, _TRAINING)}
