"""Add up what a campaign costs and what it brought: deliveries, incentives, jobs, bills; and whether its budget holds.

Reads bronze.assignment, bronze.outcome, bronze.delivery, bronze.expense, gold.run_log and gold.policy_decisions.
Appends to gold.costs a row a day, kind and item, and to gold.roi the sums, with what treating brought against treating
nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, hint
from uplift_spark.events.labels import label_table
from uplift_spark.events.training_set import Events, events_of
from uplift_spark.governance.permissions import VERBS_OF
from uplift_spark.lake.schemas import (
    ASSIGNMENT_TABLE,
    COSTS_TABLE,
    DECISIONS_TABLE,
    EXPENSE_TABLE,
    ROI_TABLE,
    RUN_LOG_TABLE,
)
from uplift_spark.monitoring.costs import CostForecast, cost_summary, forecast_cost, prices_of_days, roi_rows
from uplift_spark.monitoring.spark import expenses_by_day, money_spent, runs_on_record, with_plan, worth_by_version
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, benefit
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.sections.costs import Costs

_CLUSTERS = "units come in clusters, and these errors are those of single units: see `uplift readout`"


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Append the campaign's costs and its return as known now; a run with the same inputs adds nothing.

    Raises ConfigError where the cost of a level that units were treated with is not known, or an outcome is.
    """
    config, lake = campaign.config, campaign.lake
    conf = config.costs or Costs()
    _check_rates(conf)
    events = events_of(config, lake, progress)
    runs = runs_on_record(_mine(campaign, RUN_LOG_TABLE))
    runs = runs[runs["job"] != "costs"]  # else each run of this job would be news to the next one
    versions = {table: lake.version(table) for table in (EXPENSE_TABLE, DECISIONS_TABLE) if lake.exists(table)}
    run_id = run_id or campaign.run_id("costs", data=[events.run_ids, events.as_of, versions, len(runs)])
    if lake.exists(ROI_TABLE) and not lake.read(ROI_TABLE).where(F.col(RUN_ID) == run_id).isEmpty():
        progress("nothing is new since the last run")
        return JobResult("costs", run_id)
    progress(f"adding up what {config.campaign} cost until {events.as_of:%Y-%m-%d}")
    values = _values(config)
    names = _outcomes(config, conf, values, events)
    # Who objects to profiling was treated all the same: sums of money are no profile.
    assigned = lake.read(ASSIGNMENT_TABLE, events.versions[ASSIGNMENT_TABLE]).where(F.col(CAMPAIGN) == config.campaign)
    labels = label_table(assigned, events.outcomes, names, config.labels, events.as_of, events.deliveries)
    units = with_plan(labels, _mine(campaign, DECISIONS_TABLE), _plans(campaign))
    _check_incentives(conf, units, config.roles.control)
    rows = money_spent(units, conf, config.economics, config.roles.control)
    first = min((row["day"] for row in rows), default=events.as_of.date())
    rows += prices_of_days(runs, conf.rates)
    if (bills := _mine(campaign, EXPENSE_TABLE)) is not None:
        rows += expenses_by_day(bills)
    costs = pd.DataFrame(rows, columns=["day", "kind", "item", "quantity", "amount", "model_version"])
    worth, why_not = worth_by_version(units, values, config.roles.control)
    returns = roi_rows(costs, worth, _CLUSTERS if config.roles.cluster is not None else why_not)
    forecast = None
    if conf.end is not None:
        today = events.as_of.date() - timedelta(days=1)  # the day of the last event may go on
        forecast = forecast_cost(dict(costs.groupby("day")["amount"].sum()), today, conf.end, first)
    lines = [_line(config, conf, events, row, forecast) for row in returns]
    rows = [{CAMPAIGN: config.campaign, **row} for row in rows]
    written = [
        lake.write(COSTS_TABLE, lake.filled(COSTS_TABLE, rows), run_id),
        lake.write(ROI_TABLE, lake.filled(ROI_TABLE, lines), run_id),  # last: a run that is in it is complete
    ]
    return JobResult.of("costs", run_id, *written, summary=cost_summary(lines[0], forecast))


def _mine(campaign: Campaign, table: str) -> DataFrame | None:
    """The campaign's rows of a table that need not be there."""
    lake = campaign.lake
    return lake.read(table).where(F.col(CAMPAIGN) == campaign.name) if lake.exists(table) else None


def _plans(campaign: Campaign) -> dict[str, datetime]:
    """{run of a plan: when it was written}."""
    lake = campaign.lake
    commits = lake.history(DECISIONS_TABLE) if lake.exists(DECISIONS_TABLE) else []
    return {str(one.notes.get(RUN_ID)): one.at for one in reversed(commits)}  # of a run's commits the last one counts


def _check_rates(conf: Costs) -> None:
    jobs = {verb.partition(" ")[0] for verbs in VERBS_OF.values() for verb in verbs}
    if unknown := [job for job in conf.rates if job not in jobs | {"other"}]:
        raise ConfigError(f"costs.rates names {unknown[0]!r}, which is no job: {hint(unknown[0], [*jobs, 'other'])}")


def _check_incentives(conf: Costs, units: DataFrame, control: str) -> None:
    if control in conf.incentives:
        raise ConfigError(
            f"costs.incentives names {control!r}, the control, whose units are given nothing to redeem: remove it"
        )
    if conf.incentives:
        levels = [row[0] for row in units.select(TREATMENT).distinct().collect()]
        if unknown := [level for level in conf.incentives if level not in levels]:
            raise ConfigError(
                f"costs.incentives names {unknown[0]!r}, which no unit was assigned: {hint(unknown[0], levels)}"
            )


def _values(config: Config) -> dict[str, float]:
    """What one unit more of each outcome is worth."""
    direction = {config.roles.outcome: config.roles.direction}
    return {name: benefit(one, direction.get(name, "increase")) for name, one in config.economics.value.items()}


def _outcomes(config: Config, conf: Costs, values: Mapping[str, float], events: Events) -> tuple[str, ...]:
    """Outcomes that money depends on. Raises ConfigError where the campaign has no event of one."""
    wanted = {f"costs.incentives.{level}.outcome": one.outcome for level, one in conf.incentives.items()}
    wanted |= {f"economics.value.{name}": name for name in values}
    if unsure := {key: name for key, name in wanted.items() if name not in config.outcomes}:
        there = [row[0] for row in events.outcomes.select("outcome").distinct().collect()]
        for key, name in unsure.items():
            if name not in there:
                raise ConfigError(f"{key}: {config.campaign} has no event of outcome {name!r}: {hint(name, there)}")
    return tuple(dict.fromkeys([*config.outcomes, *wanted.values()]))


def _line(
    config: Config, conf: Costs, events: Events, row: Mapping[str, Any], forecast: CostForecast | None
) -> dict[str, Any]:
    """A row of gold.roi; the forecast is of all versions together."""
    known = {CAMPAIGN: config.campaign, "as_of": events.as_of, "budget": conf.budget, "ends": conf.end}
    if forecast is not None and row["model_version"] == "all":
        known |= {"forecast": forecast.value, "forecast_lower": forecast.lower, "forecast_upper": forecast.upper}
    return {**row, **known}


if __name__ == "__main__":
    main_job(run)
