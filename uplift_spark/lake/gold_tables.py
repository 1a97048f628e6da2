"""Contracts of the gold tables: results, which people query by SQL.

`lake.schemas` has those of bronze and silver, and the names by which code reads and writes all of them.
"""

from __future__ import annotations

from uplift_spark.lake.contracts import INGESTED_AT, Contract, declared
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT

RUN = (f"{RUN_ID} string: run that wrote the row",)
# Tables that version 0.1 made have this column under another name. They stay readable for one version.
OF_A_CAMPAIGN = {CAMPAIGN: "experiment"}

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

_OF_LEVEL = (
    *RUN,
    f"{CAMPAIGN} string",
    "model_version string",
    "outcome string",
    f"{TREATMENT} string: level compared with control",
)

_LIFT_TABLE = Contract(
    table="gold.lift_table",
    job="lift",
    columns=declared(
        *_OF_LEVEL,
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
        f"{INGESTED_AT} timestamp: when the row was written",
    ),
    later=(CAMPAIGN, INGESTED_AT),
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

_DRIVERS = Contract(
    table="gold.lift_driver",
    job="lift",
    columns=declared(
        *_OF_LEVEL,
        "cut string: all, or segment:<feature>",
        "bucket string: all, or value of the segment",
        "rank bigint: of the feature by mean_shap, over all units; 1 is the first",
        "feature string",
        "condition string: in words; chosen by the model, without any outcome of the hold-out",
        "mean_shap double: mean size of the feature's Shapley values over hold-out units; null in segments",
        "n bigint: hold-out units of both arms that are compared; those whose feature is missing are not, unless the "
        "condition is about that",
        "n_meets bigint: of them, that meet the condition",
        "effect_meets double: observed effect on units that meet the condition",
        "effect_misses double: observed effect on the others",
        "gain double: effect_meets less effect_misses; a difference between units, no effect of the feature",
        "gain_lower double: 95 % interval, which holds for all conditions of the campaign together",
        "gain_upper double: 95 % interval; in segments it holds for all conditions in segments together",
        "adjusted_p double: p-value of no difference, adjusted for as many",
        "low_sample boolean: too few units or events for the interval to be more than rough",
        "proven boolean: the interval leaves out nought on the side that the model expects, and units are enough",
        "agreement double: share of refits on other rows that would expect a difference of the same sign",
        "stable boolean: 90 % of such refits would agree",
        "sentence string: all of it in words",
        f"{INGESTED_AT} timestamp: when the row was written",
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
        f"{INGESTED_AT} timestamp: when the row was written",
    ),
    cluster_by=(UNIT,),
    skip_by=(UNIT, RUN_ID),
    renamed=OF_A_CAMPAIGN,
    later=(INGESTED_AT,),
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
    renamed=OF_A_CAMPAIGN,
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
    renamed=OF_A_CAMPAIGN,
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
    renamed=OF_A_CAMPAIGN,
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
    renamed=OF_A_CAMPAIGN,
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
    renamed={**OF_A_CAMPAIGN, "question": "asks"},
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
    renamed=OF_A_CAMPAIGN,
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
    renamed={**OF_A_CAMPAIGN, "trimmed": "set_aside"},
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
    renamed=OF_A_CAMPAIGN,
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
    renamed=OF_A_CAMPAIGN,
)

_AUDIT_LOG = Contract(
    table="gold.audit_log",
    job="train",
    columns=declared(
        "seq bigint: number of the entry, from 1",
        "at string: when it was written (UTC)",
        f"{CAMPAIGN} string",
        "actor string: who did it",
        "action string: what was done: register, promote, decide, allow, override, replace, erase, export, approve …",
        "subject string: on what",
        "reason string: why",
        "job_run string: run of the job that did it; empty where none ran",
        "entry string: all of it as canonical JSON (RFC 8785), with versions, figures and the hash of the one before",
        "hash string: SHA-256 of the entry",
        *RUN,
    ),
    append_only=True,
    cluster_by=("seq",),
    skip_by=("seq", CAMPAIGN, "action", "subject", "job_run"),
)

_AUDIT_TREES = Contract(
    table="gold.audit_trees",
    job="policy",
    columns=declared(
        f"{CAMPAIGN} string",
        "bucket bigint: number of the bucket, by hash of the unit",
        "buckets bigint: that the plan's decisions fall into",
        "units bigint: decisions in the bucket",
        "root string: of the bucket's Merkle tree (RFC 6962)",
        "leaves binary: hash of each decision, 32 bytes each, sorted",
        *RUN,
    ),
    append_only=True,
    cluster_by=("bucket",),
    skip_by=(RUN_ID, "bucket"),
)

_BIAS = Contract(
    table="gold.bias_audit",
    job="audit",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "model_version string",
        "cut string: attribute, or crossing of some",
        "bucket string: group of it",
        "measure string: treated, cost, predicted and realised gain of the plan; without a plan of each level",
        "units bigint: of the hold-out",
        "mean double: of the group",
        "lower double: 95 % interval",
        "upper double: 95 % interval",
        "difference double: from all other units",
        "difference_lower double: 95 % interval",
        "difference_upper double: 95 % interval",
        "p_value double: of no difference that matters; null for groups with too few units",
        "adjusted_p double: holding the level over the whole audit (Holm)",
        "flag string: difference, explained by need, harm, or empty",
        "within double: difference between units of the same need; null where none is configured",
        "harm_p double: adjusted p-value of a mean not below nought; null where that is no harm",
    ),
)

_ALERTS = Contract(
    table="gold.alerts",
    job="monitor",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "alert string: fingerprint of rule, campaign and labels; no measured value is part of it",
        "rule string",
        "severity string: page or ticket",
        "labels string: what the alert is about, as JSON",
        "sequence bigint: 1, 2, 3 ... of the alert's events",
        "episode bigint: raised each time it is breached anew after it was resolved",
        "event string: pending, cancelled, fired, clearing (well, not yet for long), broken_again, resolved, notified "
        "(what kept it quiet is over), reminded, acknowledged, closed (resolved by hand)",
        "at timestamp: what was known by then was evaluated, or when somebody acted",
        "notify boolean: people were to be notified",
        "quiet string: why they were not; empty where nothing was kept quiet",
        "value double: measured",
        "threshold double",
        "summary string",
        "runbook string: page that says what to do",
        "by string: who acknowledged or closed it",
        "note string",
    ),
    unique=("alert", "sequence"),
    append_only=True,
    cluster_by=(CAMPAIGN, "at"),
    skip_by=(CAMPAIGN, "at", "alert"),
)

_OF_A_WINDOW = (
    *RUN,
    f"{CAMPAIGN} string",
    "window_start timestamp",
    "window_end timestamp: the first moment after the window",
    "as_of timestamp: what was known by then counts; of runs of one window the last counts",
    f"{INGESTED_AT} timestamp: when the row was written",
    "model_version string",
)

_KPI = Contract(
    table="gold.kpi",
    job="monitor",
    columns=declared(
        *_OF_A_WINDOW,
        "kpi string",
        "cut string: all, or the level, outcome or source that the value is of",
        "value double: null where nothing was measured",
        "lower double: end of its interval of level 1 - monitoring.alpha; null where there is none",
        "upper double",
        "unit string",
        "n double: observations behind the value",
        "target double",
        "alert double: from where on somebody is called",
        "state string: ok, missed (worse than the target), alert (the whole interval is beyond), unsure (the value is, "
        "the interval is not), too_few, no_data",
        "n_needed double: observations that would tell a value beyond the alert from it",
        "severity string: page or ticket",
        "note string",
    ),
)

_DRIFT = Contract(
    table="gold.drift",
    job="monitor",
    columns=declared(
        *_OF_A_WINDOW,
        "name string: a feature, uplift:<level>, or propensity:<arm> (missing for units of other arms)",
        "state string: steady, season (differs from the training set as in this season), unmatched (there is no window "
        "of the season), drift, trigger (drift that persists)",
        "n bigint: values in the window",
        "n_reference bigint",
        "distance double: Kolmogorov-Smirnov; of categories half the sum of the shares' differences",
        "distance_most double: that it can be at most",
        "p_value double",
        "adjusted_p double: for all columns of the window",
        "season_distance double",
        "season_p double: adjusted",
        "wasserstein double: in standard deviations of the reference",
        "stability double: population stability index",
        "missing double: share of missing values less that of the reference",
        "new double: share of unknown categories less that of the reference",
    ),
)

_FINDINGS = Contract(
    table="gold.findings",
    job="monitor",
    columns=declared(
        *_OF_A_WINDOW,
        "finding string: treatment_leakage, label_lag, confounding, drift, low_sample, over_targeting, "
        "deployment_mismatch or non_compliance",
        "severity string: page or ticket",
        "about string: column, arm, level or outcome",
        "figure double",
        "threshold double",
        "p_value double",
        "sentence string: what is wrong",
        "action string: what to do",
    ),
)

_WINDOW_SUMS = Contract(
    table="gold.window_sums",
    job="monitor",
    columns=declared(
        *_OF_A_WINDOW,
        "reference string: run of the reference whose bins these are; its own rows have no window",
        "part string: count, missing, new, score, arm, width, sends, delays; bins and score_bins of a reference",
        "arm string: arm or level",
        "name string: column or outcome",
        "bins array<bigint>",
        "n array<bigint>: units",
        "totals array<double>: sums of values",
        "edges array<double>: upper ends of bins",
        "categories array<string>",
    ),
)

_RETRAIN = Contract(
    table="gold.retrain",
    job="retrain",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "window_end timestamp: of the newest monitored window when it was decided",
        "decision string: not_needed, blocked (an incident forbids it), stopped (the new rows are not fit for it), "
        "rejected (the new model did not pass) or challenger",
        "check string: decision is the conclusion; beside it were looked at: volume, drift, lift_drop, age, by_hand; "
        "incidents, quarantine, targeted_only; training_set, arm:<level>, trial:<finding>, fit; champion and "
        "floor:<figure>, which the new model was held against",
        "state string: fires or quiet of a reason; blocks, passes or fails of what must hold; not_measured; of the "
        "decision the decision",
        "figure double: what was measured",
        "threshold double",
        "n double: observations behind it",
        "n_needed double: that would tell what these could not",
        "sentence string: in words; of the decision its reason",
        "champion_version string",
        "model_version string: that was fitted; null where none was",
        "fit string: refresh (sums of the new rows in the champion's trees) or regrow",
    ),
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
        "role string: primary, secondary, guardrail; complier: the effect on those who take the treatment; policy; "
        "programme: all campaigns with one holdout; redealt: test and interval from re-deals of a switchback",
        f"{TREATMENT} string: level compared with control; of a policy the level that it is compared with; of a "
        "programme all campaigns, sum of single effects, or beyond the sum",
        "control double: mean, less what covariates explain; of a complier the share that received the treatment; of a "
        "policy the mean if all units got the level",
        "treated double: of a policy the mean under it",
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
        "bootstrap_lower double: interval of the effect from resampled units, that holds at the same readings; null of "
        "switchbacks and policies, and where arms times strata are more than 128",
        "bootstrap_upper double",
        "relative_bootstrap_lower double: of the relative effect",
        "relative_bootstrap_upper double",
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

_CANARY = Contract(
    table="gold.canary",
    job="canary",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "canary string: name, which is the salt of its slices, too; of a rollback a name of its own",
        "step bigint: from 1, over all canaries and rollbacks of the campaign",
        "at timestamp: when it came to this state",
        "started_at timestamp: of the canary",
        "state string: running, promoting, promoted, rolling back, rolled back, ending, ended, restoring or restored",
        "verdict string: promote, roll back, inconclusive or ended; null before the first look",
        "reason string: why, in sentences",
        "champion string: model version that was the champion when the canary started",
        "challenger string: model version on trial; of a rollback the version that is restored",
        "share double: of the units in each slice",
        "plan string: run of the plan in which the challenger's slice has its decisions; null where none is new",
        "evidence string: figures of each check as JSON; null without a look",
    ),
)

_RUN_LOG = Contract(
    table="gold.run_log",
    job="costs",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "job string",
        "started_at timestamp",
        "seconds double: that the job took",
        "state string: complete or failed",
    ),
)

_COSTS = Contract(
    table="gold.costs",
    job="costs",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "day date",
        "kind string: treating, incentive, infrastructure or expense",
        "item string: the level, the job, or what bronze.expense calls it",
        "quantity double: units treated, units of the outcome, hours, or rows of bronze.expense",
        "amount double: money",
        "model_version string: whose plan the units were treated by; null before any plan, and for what is shared",
        f"{INGESTED_AT} timestamp: when the row was written",
    ),
)

_ROI = Contract(
    table="gold.roi",
    job="costs",
    columns=declared(
        *RUN,
        f"{CAMPAIGN} string",
        "model_version string: of the plan that the units were assigned by; none before any plan; all",
        "as_of timestamp: what was known then",
        "units bigint: assigned",
        "treated bigint: assigned to a level that is not the control",
        "treating double: money for treating units",
        "incentives double: money for what treated units redeemed",
        "infrastructure double: money for jobs; of a version its share by units",
        "expenses double: money by bronze.expense; of a version its share by units",
        "cost double: all of it",
        "gain double: value of the outcomes less what it would be with nobody treated; null where no control tells",
        "gain_lower double: 95 % interval",
        "gain_upper double: 95 % interval",
        "net double: gain less cost",
        "net_lower double: 95 % interval",
        "net_upper double: 95 % interval",
        "roi double: net over cost",
        "roi_lower double: 95 % interval",
        "roi_upper double: 95 % interval",
        "budget double: of the whole campaign, by costs.budget",
        "ends date: last day of the campaign, by costs.end",
        "forecast double: cost by the end; null without an end",
        "forecast_lower double: 95 % interval; null with fewer than 14 days to judge by",
        "forecast_upper double: 95 % interval",
        "note string: what is not known, and why",
        f"{INGESTED_AT} timestamp: when the row was written",
    ),
)

GOLD = (
    _CANARY,
    *(_RUN_LOG, _COSTS, _ROI),
    *(_EXPERIMENT, _READOUT, _EXPERIMENT_HEALTH),
    *(_KPI, _DRIFT, _FINDINGS, _WINDOW_SUMS, _ALERTS, _RETRAIN),
    *(_AVERAGES, _OVERLAP, _BALANCE, _SENSITIVITY),
    *(_SCORES, _LIFT_TABLE, _CURVE, _METRICS, _DRIVERS, _COST_CURVE),
    *(_DECISIONS, _LIMITS, _POLICY_CURVE, _POLICY_TREE, _SCENARIOS),
    *(_AUDIT_LOG, _AUDIT_TREES, _BIAS),
)
