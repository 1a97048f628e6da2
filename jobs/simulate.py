"""Tell what the plan would bring under other budgets, costs and levels; nothing is decided.

Reads what the policy job reads, and bronze.truth of simulated campaigns; overwrites silver.simulated_<campaign> once a
scenario, appends to gold.policy_scenarios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Scenario
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.comparison import ANY_LEVEL
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.summary import interval, number
from uplift_spark.lake.schemas import SCENARIOS_TABLE, silver_table
from uplift_spark.policy.planning import PolicyInputs, PolicyResult, candidates_of, decide, policy_inputs
from uplift_spark.policy.spark import decided
from uplift_spark.roles import CAMPAIGN, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

PLAN = "plan"


def scenarios_of(campaign: Campaign) -> dict[str, PolicyInputs]:
    """What each scenario decides from, the configured plan first. Raises ConfigError without scenarios, and like
    `beside_plan`."""
    if not campaign.config.scenarios:
        raise ConfigError("there is no scenario: name some in `scenarios`, such as `half: {budget: 500}`")
    if PLAN in campaign.config.scenarios:
        raise ConfigError(f"scenarios: {PLAN!r} is the policy as it is configured: choose another name")
    return beside_plan(policy_inputs(campaign))


def beside_plan(plan: PolicyInputs) -> dict[str, PolicyInputs]:
    """The plan and the scenarios of its configuration. Raises ConfigError for levels that were not scored, outcomes
    that plans are not made for, and like `policy.planning.PolicyInputs.checked`."""
    config, scenarios = plan.config, {PLAN: plan}
    for name, scenario in config.scenarios.items():
        named = {*scenario.cost, *(scenario.levels or ())}
        if unknown := sorted(named - {*plan.levels}):
            raise ConfigError(
                f"scenario {name!r} names {unknown}, none of the scored levels {', '.join(plan.levels)}: correct them"
            )
        if other := sorted({*scenario.value} - {config.roles.outcome}):
            raise ConfigError(
                f"scenario {name!r} gives {other} a value, but plans are made for {config.roles.outcome}: correct it"
            )
        offered = tuple(level for level in plan.levels if scenario.levels is None or level in scenario.levels)
        # The tables and their versions stay those of the plan: scenarios differ in nothing but what they name.
        scenarios[name] = replace(replace(plan, campaign=_changed(plan.campaign, scenario)).checked(), levels=offered)
    return scenarios


def _changed(campaign: Campaign, scenario: Scenario) -> Campaign:
    policy, economics = campaign.config.policy, campaign.config.economics
    limits = policy.limits if scenario.limits is None else scenario.limits
    if scenario.levels is not None:
        limits = tuple(limit for limit in limits if limit.least or limit.level in (None, *scenario.levels))
    changed = replace(
        policy,
        budget=policy.budget if scenario.budget is None else scenario.budget if isfinite(scenario.budget) else None,
        limits=limits,
        cost=_without(policy.cost, scenario),
        cost_most=_without(policy.cost_most, scenario),
    )
    money = replace(economics, cost=economics.cost | scenario.cost, value=economics.value | scenario.value)
    return campaign.changed(replace(campaign.config, policy=changed, economics=money))


def _without(costs: Mapping[str, str], scenario: Scenario) -> dict[str, str]:
    return {level: sql for level, sql in costs.items() if level not in scenario.cost}


def outcome_of(name: str, result: PolicyResult, truth: DataFrame | None) -> list[dict[str, Any]]:
    """Rows of gold.policy_scenarios but for run_id and campaign: one a level that units get, then one for all.

    truth  unit_id, treatment, effect: of the predicted outcome, where it is known
    """
    inputs, plan = result.inputs, result.plan
    rows = decided(result.rows, inputs.levels, inputs.config.roles.control, result.problem, plan)
    if truth is None:
        rows = rows.withColumn("effect", F.lit(None))
    else:
        rows = rows.join(truth.select(UNIT, TREATMENT, "effect"), [UNIT, TREATMENT], "left")
    sums = [F.sum(F.col(column).cast("double")).alias(column) for column in ("gain", "cost", "value", "effect")]
    known = F.count("effect").alias("known")
    by_level = {
        row[TREATMENT]: row for row in rows.groupBy(TREATMENT).agg(F.count("*").alias("n"), known, *sums).collect()
    }
    levels = [level for level in inputs.levels if level in by_level]

    def line(treatment: str, parts: list[Row]) -> dict[str, Any]:
        units, cost, gain = (sum(part[column] for part in parts) for column in ("n", "cost", "gain"))
        line_row = {
            "scenario": name,
            TREATMENT: treatment,
            "units": units,
            "cost": cost,
            "gain": gain,
            "true_gain": np.nan,
        }
        if truth is not None and all(part["known"] == part["n"] for part in parts):
            line_row["true_gain"] = inputs.value * sum(part["effect"] for part in parts) - (cost if inputs.net else 0.0)
        return line_row

    whole, observed = line(ANY_LEVEL, [by_level[level] for level in levels]), result.observed
    _, whole["gap"] = result.certificate(whole["gain"], sum(row["value"] for row in by_level.values()))
    whole |= {"observed": observed.gain[-1], "observed_lower": observed.lower[-1], "observed_upper": observed.upper[-1]}
    return [*(line(level, [by_level[level]]) for level in levels), whole]


def scenarios_summary(rows: pd.DataFrame, unit: str) -> str:
    """Each scenario in a line, its levels' units in brackets."""
    lines = []
    for name, mine in rows.groupby("scenario", sort=False):
        whole, levels = mine[mine[TREATMENT] == ANY_LEVEL].iloc[0], mine[mine[TREATMENT] != ANY_LEVEL]
        units = ", ".join(f"{row[TREATMENT]} {row['units']:,}" for row in levels.to_dict("records"))
        truth = "" if np.isnan(whole["true_gain"]) else f", in truth {number(whole['true_gain'])}"
        lines.append(
            f"{name}: gain {number(whole['gain'])} ({unit}) predicted, {number(whole['observed'])} "
            f"({interval(whole['observed_lower'], whole['observed_upper'])}) by the hold-out{truth}, "
            f"for a cost of {number(whole['cost'])} ({units or 'nobody is treated'})"
        )
    return "\n".join(lines)


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write what each scenario brings; one whose limits cannot be kept is refused, and nothing written to gold."""
    lake, scenarios = campaign.lake, scenarios_of(campaign)
    first = next(iter(scenarios.values()))
    run_id = run_id or campaign.run_id("simulate", scores=first.scored, data=first.versions)
    truth, staging = campaign.true_effects(), silver_table("simulated", campaign.name)
    rows = []
    for name, one in scenarios.items():
        progress(f"scenario {name}")
        staged = lake.write(staging, candidates_of(one), f"{run_id}-{name}", mode="overwrite")
        result = decide(one, lake.read(staging, staged.version), progress, budgets=())
        rows += outcome_of(name, result, truth)
    table = pd.DataFrame(rows)
    frame = lake.spark.createDataFrame(as_arrow(table, **{CAMPAIGN: campaign.name}))
    written = lake.write(SCENARIOS_TABLE, frame, run_id)
    summary = scenarios_summary(table, campaign.gain_unit)
    return JobResult.of("simulate", run_id, written, scenarios=len(scenarios), summary=summary)


if __name__ == "__main__":
    main_job(run)
