"""What the policy job reads, decides and writes: from scores to one decision a unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DoubleType, FloatType

from uplift_spark.campaign import Campaign, Scored
from uplift_spark.config import Config, Limit
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.pictures import budget_picture, save
from uplift_spark.evaluation.spark import describe_arms, resampling_hash, segment_buckets
from uplift_spark.evaluation.summary import amount, number, tables_text, text_table
from uplift_spark.governance.privacy import GATE, HELD_BACK, gated
from uplift_spark.lake.schemas import CONSENT_TABLE, DELIVERY_TABLE
from uplift_spark.policy.allocation import GLOBAL_HOLDOUT, TOO_MANY, Allocation, Problem, allocate, first_scan
from uplift_spark.policy.spark import (
    Observed,
    Pass,
    Point,
    barred,
    candidates,
    check_limit_levels,
    code_buckets,
    constraints,
    contacted,
    curve,
    decided,
    in_global_holdout,
    observed,
    offers,
    sizes,
    spark_scanner,
)
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT, UNIT, crossed
from uplift_spark.runtime import ProgressCallback
from uplift_spark.stats.moments import FixedPoint

BUDGETS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the curve, as shares of the budget or else of what is spent

IN_SUMMARY = (
    "excluded",
    "units",
    "gain",
    "cost",
    "bound",
    "gap",
    "observed",
    "observed_lower",
    "observed_upper",
    "scans",
)
"""Details of a plan that `policy_summary` says in words, or that programs alone read."""

_RULE, _NOT_KNOWN = "rule {}", ": not known"


@dataclass(frozen=True)
class PolicyInputs:
    """What a policy is made from; `levels` are the treated levels that were scored, in the order of their doses."""

    campaign: Campaign
    scored: Scored
    scores: DataFrame
    training: DataFrame
    levels: tuple[str, ...]
    consent: DataFrame | None
    deliveries: DataFrame | None
    versions: Mapping[str, int]

    @property
    def config(self) -> Config:
        return self.campaign.config

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.config.policy.all_limits

    @property
    def segments(self) -> tuple[str, ...]:
        """Columns, or crossings of some, that limits name."""
        return tuple(dict.fromkeys(limit.segment for limit in self.limits if limit.segment))

    @property
    def value(self) -> float:
        """Of one unit more of the outcome in the plan's objective; negative where less is better."""
        return self.campaign.outcome_value

    @property
    def sources(self) -> dict[str, int | str]:
        """What the plan rests on, for the audit log: versions of tables and of the model, the run that scored."""
        scored = self.scored
        return {**self.versions, "model": f"{scored.model_name} {scored.model_version}", "scores": scored.run_id}

    @property
    def net(self) -> bool:
        return self.config.policy.objective == "profit"

    def checked(self) -> PolicyInputs:
        """Itself. Raises ConfigError when the plan needs a value or costs that nobody gave, or names a level that was
        not scored or a segment that is no column of the training set."""
        for segment in self.segments:
            if strangers := [part for part in crossed(segment) if part not in self.training.columns]:
                table = self.config.training_table
                raise ConfigError(f"policy: segment {strangers[0]!r} is no column of {table}: add it to lift.segments")
        check_limit_levels(self.limits, self.levels)
        _check_money(self.campaign, self.levels)
        return self


def policy_inputs(campaign: Campaign) -> PolicyInputs:
    """The last scores of the campaign's model and what belongs to them.

    Raises DataError when nothing was scored, ConfigError as `PolicyInputs.checked`.
    """
    scored, lake, table = campaign.last_scored(), campaign.lake, campaign.training_table
    training, scores = campaign.training_set(scored.feature_version), campaign.scores(scored)
    scored_levels = {row[TREATMENT] for row in scores.select(TREATMENT).distinct().collect()}
    order = {level: position for position, level in enumerate(campaign.evaluation_spec.order)}
    levels = tuple(sorted(scored_levels, key=lambda level: (order.get(level, len(order)), level)))
    versions = {table: scored.feature_version}
    read: dict[str, DataFrame | None] = {CONSENT_TABLE: None, DELIVERY_TABLE: None}
    for name, needed in (
        (CONSENT_TABLE, lake.exists(CONSENT_TABLE)),
        (DELIVERY_TABLE, campaign.config.policy.contacts is not None),
    ):
        if needed:
            versions[name] = lake.version(name)
            read[name] = lake.read(name, versions[name])
    return PolicyInputs(
        campaign, scored, scores, training, levels, read[CONSENT_TABLE], read[DELIVERY_TABLE], versions
    ).checked()


def _check_money(campaign: Campaign, levels: tuple[str, ...]) -> None:
    policy, economics = campaign.config.policy, campaign.config.economics
    _ = campaign.outcome_value  # raises where it is not known
    spends = any(limit.spend is not None for limit in policy.all_limits)
    missing = [level for level in levels if level not in policy.costs_by_unit and level not in economics.cost]
    if missing and (spends or policy.objective == "profit"):
        raise ConfigError(
            f"policy: the cost of {', '.join(map(repr, missing))} is not known: set it in economics.cost, or as SQL "
            "in policy.cost"
        )
    for key, named in (("cost", policy.cost), ("cost_most", policy.cost_most)):
        if unknown := sorted(set(named) - set(levels)):
            raise ConfigError(
                f"policy.{key} names {unknown}, none of the levels {', '.join(levels)}: correct the spelling"
            )
    if negative := sorted(level for level in levels if economics.cost.get(level, 0) < 0):
        raise ConfigError(
            f"policy: the cost of {', '.join(negative)} is negative: correct economics.cost or cost_per_dose"
        )


def candidates_of(inputs: PolicyInputs) -> DataFrame:
    """The frame of candidates, rules applied. Raises ConfigError when a cost or a rule is no SQL over the columns."""
    policy, config = inputs.config.policy, inputs.config
    by_unit = policy.costs_by_unit
    costs = [
        _expression(inputs, *by_unit[level]) if level in by_unit else F.lit(config.economics.cost.get(level, 0.0))
        for level in inputs.levels
    ]
    excluded = {
        name: _condition(inputs, f"policy.exclude.{name}", condition) for name, condition in policy.exclude.items()
    }
    buckets = segment_buckets(inputs.training, inputs.segments, config.training_table)
    # The lower end of a gain is the upper end of an effect that is worth less than nothing.
    lower = "uplift_lower" if inputs.value >= 0 else "uplift_upper"
    column = "uplift" if policy.bound == "expected" else lower
    uplifts = offers(inputs.scores, inputs.levels, column)
    training = _without_nan(inputs.training)
    rules: dict[str, Column] = {}
    if inputs.consent is not None:
        training = gated(training, inputs.consent, config.consent.purpose, config.consent.required)
        rules |= {gate: F.col(GATE) == gate for gate in HELD_BACK}
    rules |= {_RULE.format(name): rule for name, rule in excluded.items()}
    rules |= {_RULE.format(name) + _NOT_KNOWN: rule.isNull() for name, rule in excluded.items()}
    if inputs.deliveries is not None and policy.contacts is not None:
        training = contacted(training, inputs.deliveries, policy)
        rules[TOO_MANY] = F.col("_contacts") >= policy.contacts
    if policy.global_holdout:
        rules[GLOBAL_HOLDOUT] = in_global_holdout(config.seed, policy.global_holdout)
    rows = barred(candidates(uplifts, training, costs, inputs.value, inputs.net, buckets), rules)
    return rows.select(UNIT, "key", "excluded", "gain", "cost", *(f"bucket_{c}" for c in range(len(buckets))))


def _without_nan(rows: DataFrame) -> DataFrame:
    """The rows with null for NaN: NaN is larger than any number to SQL, so `age < 18` would be false, not unknown."""
    numbers = [field.name for field in rows.schema if isinstance(field.dataType, DoubleType | FloatType)]
    return rows.withColumns({name: F.when(~F.isnan(name), F.col(name)) for name in numbers}) if numbers else rows


def _condition(inputs: PolicyInputs, key: str, text: str) -> Column:
    """A rule as a column. Raises ConfigError like `_expression`, and for SQL that is neither true nor false."""
    condition = _expression(inputs, key, text)
    kind = inputs.training.select(condition.alias("value")).schema["value"].dataType
    if not isinstance(kind, BooleanType):
        raise ConfigError(
            f"{key}={text!r} is a {kind.simpleString()}, neither true nor false: write a condition such as `age < 18`"
        )
    return condition


def _expression(inputs: PolicyInputs, key: str, text: str) -> Column:
    from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

    value = F.expr(checked_expression(key, text, inputs.training.columns))
    try:
        inputs.training.select(value.alias("value")).schema  # noqa: B018
    except PySparkException as error:
        message = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"{key}={text!r} is no SQL over the columns of the training set: {message}") from error
    return value


@dataclass(frozen=True)
class PolicyResult:
    """A plan, and what is known about it; `rows` are all `code_buckets` candidates, `excluded` {rule: units}."""

    inputs: PolicyInputs
    rows: DataFrame
    problem: Problem
    plan: Allocation
    excluded: Mapping[str, int]
    points: list[Point]
    observed: Observed
    candidates: int

    def decisions(self) -> DataFrame:
        """Rows of gold.policy_decisions but for run_id."""
        config = self.inputs.config
        decisions = decided(self.rows, self.inputs.levels, config.roles.control, self.problem, self.plan)
        model = F.lit(self.inputs.scored.model_version)
        return decisions.withColumns({CAMPAIGN: F.lit(config.campaign), "model_version": model})

    def on_record(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of the plan for the audit log; `details` are those of its decisions."""
        names = ("candidates", "excluded", "gain", "cost", "gap")
        prices = dict(zip((limit.name for limit in self.problem.limits), self.plan.prices.tolist(), strict=True))
        return {**{name: details[name] for name in names}, "prices": prices, "treated": details["units"]}

    def tables(self, spark: SparkSession, details: Mapping[str, Any]) -> dict[str, DataFrame]:
        """What to write to gold beside the decisions, whose `details` these are."""
        mine = {CAMPAIGN: self.inputs.config.campaign}
        frames = {"policy_limits": self.limit_table(), "policy_curve": self.curve_table(details)}
        return {name: spark.createDataFrame(as_arrow(frame, **mine)) for name, frame in frames.items() if len(frame)}

    def limit_table(self) -> pd.DataFrame:
        """gold.policy_limits but for run_id and campaign."""
        rows = []
        for limit, used, price in zip(self.problem.limits, self.plan.used, self.plan.prices, strict=True):
            most, least = (np.nan, limit.bound) if limit.floor else (limit.bound, np.nan)
            sign = -1.0 if limit.floor else 1.0
            rows.append((limit.name, most, least, sign * used, sign * price))
        return pd.DataFrame(rows, columns=["name", "most", "least", "used", "price"])

    def curve_table(self, details: Mapping[str, Any]) -> pd.DataFrame:
        """gold.policy_curve but for run_id and campaign: plans that a sample of the candidates predicts, and at the
        plan's own budget the plan itself, by the `details` of its decisions."""
        hold_out_gain, control = self.observed, self.inputs.config.roles.control
        treated = sum(n for level, n in details["units"].items() if level != control)
        rows = [
            (p.budget, p.treated, p.spent, p.gain)
            if p.prices is not self.plan.prices
            else (p.budget, float(treated), details["cost"], details["gain"])
            for p in self.points
        ]
        curve = pd.DataFrame(rows, columns=["budget", "treated", "cost", "gain"], dtype="float64")
        intervals = {"observed": hold_out_gain.gain, "observed_lower": hold_out_gain.lower}
        intervals["observed_upper"] = hold_out_gain.upper
        return curve.assign(**{name: values[: len(curve)] for name, values in intervals.items()})

    def certificate(self, gain: float, value: float) -> tuple[float, float]:
        """What no plan can exceed, and how far below that this one may lie, as a share; from the sums over its units
        of gain, and of gain less the prices of what they use."""
        bound = value + float(self.plan.prices @ self.problem.bounds)
        return bound, (bound - gain) / bound if bound > 0 else 0.0

    def details(self, decisions: DataFrame, run_id: str) -> dict[str, Any]:
        """Figures of the plan as it was written: the certificate is taken from the table itself."""
        mine = decisions.where(F.col(RUN_ID) == run_id)
        sums = [F.sum(name).alias(name) for name in ("gain", "cost", "value")]
        rows = mine.groupBy(TREATMENT).agg(F.count("*").alias("n"), *sums).collect()
        gain, cost, value = (sum(row[name] for row in rows) for name in ("gain", "cost", "value"))
        bound, gap = self.certificate(gain, value)
        units = {row[TREATMENT]: row["n"] for row in sorted(rows, key=lambda row: row[TREATMENT])}
        by_level = {row[TREATMENT]: {name: row[name] for name in ("n", "gain", "cost")} for row in rows}
        hold_out_gain = self.observed
        return {
            "model": self.inputs.scored.model_name, "version": self.inputs.scored.model_version,
            "candidates": self.candidates, "excluded": dict(self.excluded), "units": units,
            "by_level": {level: by_level[level] for level in (*self.inputs.levels, *by_level) if level in by_level},
            "gain": gain, "cost": cost, "bound": bound, "gap": gap,
            "observed": float(hold_out_gain.gain[-1]), "observed_lower": float(hold_out_gain.lower[-1]),
            "observed_upper": float(hold_out_gain.upper[-1]), "scans": self.plan.scans,
        }  # fmt: skip


def decide(
    inputs: PolicyInputs, rows: DataFrame, progress: ProgressCallback, budgets: tuple[float, ...] = BUDGETS
) -> PolicyResult:
    """The best plan for the candidates, and the curve of its gain by `budgets`, in shares of the budget.

    Raises DataError for costs that are no numbers, ConfigError for limits that cannot be kept.
    """
    counted = rows.groupBy("excluded").agg(F.count("*").alias("n")).collect()
    excluded = dict(sorted((row["excluded"], row["n"]) for row in counted if row["excluded"] is not None))
    for rule, n in excluded.items():
        fix = "; to treat them, write it as `coalesce(CONDITION, false)`" if rule.endswith(_NOT_KNOWN) else ""
        progress(f"{n:,} units left out: {rule}{fix}")
    n, largest_gain, largest_cost, wrong, large = sizes(rows)
    if wrong or large:
        raise DataError(f"{wrong or large:,} candidates have a cost or gain that is missing, negative or not finite")
    if not n:
        raise DataError("no scored unit may be treated: every one is left out by a rule, see `policy` in the conf")
    free = rows.where(F.col("excluded").isNull())
    units: dict[str, dict[str, int]] = {"": {"": n}}
    for c, segment in enumerate(inputs.segments):
        counts = free.groupBy(f"bucket_{c}").agg(F.count("*").alias("n")).collect()
        units[segment] = {row[0]: row["n"] for row in counts}
    limits, codes = constraints(inputs.limits, inputs.levels, inputs.segments, units)
    problem = Problem(limits, len(inputs.levels), len(inputs.segments), largest_gain, largest_cost)
    rows = code_buckets(rows, codes)
    scan = spark_scanner(rows, problem)
    progress(f"deciding about {n:,} units under {len(limits)} limits")
    first = first_scan(problem, scan)
    plan = allocate(problem, scan, first=first)
    points: list[Point] = []
    if (budget := inputs.config.policy.budget) and math.isfinite(budget):  # the first limit
        shares = [share for share in budgets if share != 1]
        points = curve(problem, first.rows, n / len(first.rows), [share * budget for share in shares], 0)
        if 1 in budgets:  # the plan itself: a sample would find another one, with other figures than the plan's
            points.append(Point(budget, plan.prices, plan.gain, float(plan.used[0]), math.nan))
            points.sort(key=lambda point: point.budget)
    observed_gain = _observed(inputs, rows, problem, np.array([*(p.prices for p in points), plan.prices]), n)
    return PolicyResult(inputs, rows, problem, plan, excluded, points, observed_gain, n)


def _observed(inputs: PolicyInputs, rows: DataFrame, problem: Problem, prices: np.ndarray, n: int) -> Observed:
    """What plans with these prices [B, R] bring on the hold-out."""
    holdout = inputs.training.where(F.col("split") == "holdout")
    config = inputs.config
    spec = inputs.campaign.evaluation_spec
    arms = describe_arms(holdout, spec)
    treated_index = F.lit(-2)
    for code, level in enumerate((config.roles.control, *inputs.levels)):
        treated_index = F.when(F.col(TREATMENT) == level, F.lit(code - 1)).otherwise(treated_index)
    known = holdout.select(
        F.xxhash64(UNIT).alias("key"),
        treated_index.alias("treated_index"),
        F.col(config.roles.outcome).cast("double").alias("outcome"),
        (F.lit(1.0) / F.col(PROPENSITY) if arms.weighted else F.lit(1.0)).alias("weight"),
        resampling_hash(spec).alias("unit_hash"),
    )
    matched = rows.where(F.col("excluded").isNull()).join(known, "key")
    point = FixedPoint.of(arms.largest_weight, arms.largest_outcomes[0])
    wanted = Pass(problem, prices, point, spec.cluster_draws)
    return observed(matched, wanted, (inputs.value, inputs.net), n)


def picture(result: PolicyResult, details: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw gain by budget into `folder`/policy.png; None without a budget. Raises like `write_pictures`."""
    if not result.points:
        return None
    unit = result.inputs.campaign.gain_unit
    figure = budget_picture(result.curve_table(details), unit, details["cost"], details["gain"])
    return save(figure, folder / "policy.png")


def policy_summary(result: PolicyResult, details: Mapping[str, Any]) -> str:
    """The plan as text: units, gain and cost by level, units left out, limits, and in sentences what it brings."""
    inputs = result.inputs
    return plan_text(details, result.limit_table(), inputs.campaign.gain_unit, inputs.config.roles.control)


def plan_text(details: Mapping[str, Any], limits: pd.DataFrame, unit: str, control: str) -> str:
    """See `policy_summary`.

    Args:
        details: `PolicyResult.details`.
        limits: `PolicyResult.limit_table`.
        unit: of the gain, in words.
        control: level of those who get nothing.

    Returns:
        Tables and sentences, without a line break at the end.
    """
    by_level = details["by_level"]
    rows = [
        [
            f"{level} (no treatment)" if level == control else level,
            f"{row['n']:,}",
            amount(row["gain"]),
            amount(row["cost"]),
        ]
        for level, row in by_level.items()
    ]
    whole = [sum(row[name] for row in by_level.values()) for name in ("n", "gain", "cost")]
    rows.append(["all", f"{whole[0]:,}", amount(whole[1]), amount(whole[2])])
    parts = [text_table("Whom to treat with what", ["level", "units", f"predicted gain ({unit})", "cost"], rows)]
    if details["excluded"]:
        left_out = [[rule, f"{n:,}"] for rule, n in details["excluded"].items()]
        parts.append(text_table("Units left out", ["reason", "units"], left_out))
    if len(limits):
        bounds = [
            [
                row["name"], amount(row["used"]),
                f"at least {amount(row['least'])}" if np.isnan(row["most"]) else f"at most {amount(row['most'])}",
                number(row["price"]),
            ]
            for row in limits.to_dict("records")
        ]  # fmt: skip
        parts.append(text_table("Limits", ["limit", "used", "bound", "gain per unit more"], bounds))
    return "\n".join([tables_text(parts), "", *_plan_sentences(details, unit)])


def _plan_sentences(details: Mapping[str, Any], unit: str) -> list[str]:
    gain, cost = amount(details["gain"]), amount(details["cost"])
    sentences = [
        f"The plan is predicted to bring {gain} ({unit}) for a cost of {cost}, "
        f"at most {details['gap']:.4%} less than the best plan within the limits."
    ]
    if np.isnan(details["observed"]):
        return [*sentences, "Too few units of the hold-out got what the plan gives to tell what it brings."]
    low, high = details["observed_lower"], details["observed_upper"]
    known = "not known" if np.isnan(low) or np.isnan(high) else f"{amount(low)} to {amount(high)}"
    observed = f"By the outcomes of the hold-out it brings {amount(details['observed'])}, 95 % interval {known}."
    return [*sentences, observed]
