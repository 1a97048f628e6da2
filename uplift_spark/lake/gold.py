"""What each gold table holds, the tables that are queried from SQL (R4.1, R4.3, R5.1); see `lake.contracts`."""

from __future__ import annotations

from uplift_spark.lake.checks import Contract, declared
from uplift_spark.vocabulary import EXPERIMENT, RUN_ID, TREATMENT, UNIT

RUN = (f"{RUN_ID} string: run that wrote the row",)

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
        f"{EXPERIMENT} string: campaign",
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
)

_LIMITS = Contract(
    table="gold.policy_limits",
    job="policy",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        "name string: the limit",
        "most double: what may be used; null for a floor",
        "least double: what must be used; null but for a floor",
        "used double: what the plan uses",
        "price double: gain per unit more of what may be used, or that must",
    ),
)

_POLICY_CURVE = Contract(
    table="gold.policy_curve",
    job="policy",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        "budget double",
        "treated double: units treated",
        "cost double: money spent",
        "gain double: predicted",
        "observed double: gain of such a plan by the outcomes of the hold-out; null where too few units tell",
        "observed_lower double: 95 % interval",
        "observed_upper double: 95 % interval",
    ),
)

_SCENARIOS = Contract(
    table="gold.policy_scenarios",
    job="simulate",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
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
)

_COST_CURVE = Contract(
    table="gold.cost_curve",
    job="compare",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        "model string: version of the registered model, or the learner",
        "outcome string",
        "cost double: of treating, per unit of the population",
        "gain double: in the outcome, per unit of the population, by doubly robust scores",
        "gain_lower double: 95 % interval",
        "gain_upper double: 95 % interval",
    ),
)

_POLICY_TREE = Contract(
    table="gold.policy_tree",
    job="tree",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        "node bigint: 0 is the first question",
        "depth bigint",
        "feature string: null where the tree gives a level",
        "operator string: <=, is, or is missing",
        "threshold double",
        "category string",
        "asks string: the question in words",
        "yes bigint: node that the answer leads to",
        "no bigint",
        "action string: level that units here get; null at a question",
        "units bigint: that the tree was grown from",
        "value double: mean gain over the control of these units, which the tree was chosen for",
    ),
)

_AVERAGES = Contract(
    table="gold.average_effects",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
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
)

_OVERLAP = Contract(
    table="gold.overlap",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        f"{TREATMENT} string: level received",
        "units bigint: that received it",
        "set_aside bigint: of those who received it, because some level is hardly ever received by the likes of them",
        "lowest double: probability of the level among those who received it",
        "low double: 5 % have less",
        "median double",
        "effective_units double: that would say as much if all counted alike",
    ),
)

_BALANCE = Contract(
    table="gold.balance",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
        f"{TREATMENT} string: level compared with control",
        "feature string",
        "category string: of text; missing; null for numbers",
        "difference double: of means, in standard deviations",
        "difference_weighted double: by the inverse of each unit's propensity",
        "variance_ratio double: of numbers",
        "variance_ratio_weighted double",
    ),
)

_SENSITIVITY = Contract(
    table="gold.sensitivity",
    job="nuisances",
    columns=declared(
        *RUN,
        f"{EXPERIMENT} string: campaign",
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
)

GOLD = (
    *(_AVERAGES, _OVERLAP, _BALANCE, _SENSITIVITY),
    *(_SCORES, _LIFT_TABLE, _CURVE, _METRICS, _COST_CURVE),
    *(_DECISIONS, _LIMITS, _POLICY_CURVE, _POLICY_TREE, _SCENARIOS),
)
