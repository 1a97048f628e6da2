"""Windows on Spark: one pass over the units of a window, whatever the number of features; sums of logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.forest import Model
from uplift_spark.monitoring.alerts import AlertBook, AlertEvent, finding_conditions, kpi_conditions, newest_windows
from uplift_spark.monitoring.costs import COST_KINDS, WorthSums
from uplift_spark.monitoring.drift import WindowCounts
from uplift_spark.monitoring.figures import (
    WHOLE_WINDOW,
    FigureSpec,
    KpiValue,
    latency_value,
    ratio_value,
    share_value,
)
from uplift_spark.monitoring.kpis import campaign_kpis
from uplift_spark.monitoring.prometheus import write_kpis
from uplift_spark.monitoring.sinks import DeliveryReport, alert_book, raise_alerts
from uplift_spark.monitoring.windows import (
    SUM_KEYS,
    WINDOW_OUTCOME,
    TimeWindow,
    WindowPlan,
    count_batches,
    plan_of,
    read_kept_sums,
    window_facts,
)
from uplift_spark.roles import CAMPAIGN, DELIVERED, PROPENSITY, RUN_ID, TREATMENT, UNIT
from uplift_spark.sections.costs import Costs, Economics
from uplift_spark.sections.monitoring import Monitoring

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUMS = "part string, arm string, column string, bin int, n bigint, total double"
_FINE = 40  # bins of a latency between x and 10 x


def counted_rows(rows: DataFrame, features: Sequence[str], outcome: Column, logged: bool) -> DataFrame:
    """Columns that `window_sums` counts.

    Args:
        rows: with unit, treatment and the features; propensity and delivered where they are known.
        features: of the model.
        outcome: of a unit; null where it is not known or must not be used.
        logged: Whether propensities are known; without any, units of an arm count alike. Where some are, the outcomes
            of units without one are not used.

    Returns:
        The frame.
    """
    propensity = F.col(PROPENSITY) if logged else F.lit(1.0)
    delivered = F.col(DELIVERED) if DELIVERED in rows.columns else F.lit(None)
    return rows.select(
        UNIT,
        TREATMENT,
        propensity.cast("double").alias(PROPENSITY),
        delivered.cast("double").alias(DELIVERED),
        outcome.cast("double").alias(WINDOW_OUTCOME),
        *(f"`{name}`" for name in features),
    )


def reference_plan(rows: DataFrame, model: Model, share: float, bins: int) -> WindowPlan:
    """Bins from a sample of the reference, by a hash of the units.

    Args:
        rows: `counted_rows` of the reference.
        model: whose predictions are counted.
        share: of the units that bins are made from.
        bins: of a column, at most.

    Returns:
        The plan. Raises DataError when the reference has no row.
    """
    steps = 1_000_000
    some = F.pmod(F.xxhash64(F.concat(F.lit("monitor|"), F.col(UNIT).cast("string"))), F.lit(steps)) < share * steps
    return plan_of(model, rows.where(some).toArrow(), bins)


def window_sums(rows: DataFrame, plan: WindowPlan, model: Model) -> pa.Table:
    """Sums of all columns in one pass.

    Args:
        rows: `counted_rows` of a window or of the reference.
        plan: Bins.
        model: whose predictions are counted.

    Returns:
        Rows of `windows.SUM_SCHEMA`; none of an empty window.
    """
    parts = rows.mapInArrow(partial(count_batches, plan, model), _SUMS)
    return parts.groupBy(*SUM_KEYS).agg(F.sum("n").alias("n"), F.sum("total").alias("total")).toArrow()


def arm_counts(assignments: DataFrame) -> dict[str, tuple[int, int]]:
    """Units by arm.

    Args:
        assignments: with `treatment` and `propensity`.

    Returns:
        {arm: (units, units whose propensity is known)}.
    """
    rows = assignments.groupBy(TREATMENT).agg(F.count(F.lit(1)).alias("n"), F.count(PROPENSITY).alias("logged"))
    return {row[TREATMENT]: (row["n"], row["logged"]) for row in rows.collect()}


def send_counts(labels: DataFrame) -> dict[str, tuple[int, int]]:
    """Deliveries by arm.

    Args:
        labels: with `treatment` and `delivered`, null where none was logged.

    Returns:
        {arm: (units reached, units assigned)}, of arms with any.
    """
    logged = labels.where(F.col(DELIVERED).isNotNull()).groupBy(TREATMENT)
    rows = logged.agg(F.count_if(F.col(DELIVERED).cast("boolean")).alias("reached"), F.count(F.lit(1)).alias("n"))
    return {row[TREATMENT]: (row["reached"], row["n"]) for row in rows.collect()}


def inside(time: str, start: datetime, end: datetime) -> Column:
    """Whether a row's time lies in a window; the end does not.

    Args:
        time: Column.
        start: of the window (UTC).
        end: of the window (UTC).

    Returns:
        The condition, whatever the session's time zone.
    """
    at = F.col(time).cast("timestamp")
    return (at >= _literal(start)) & (at < _literal(end))


def _literal(at: datetime) -> Column:
    return F.timestamp_micros(F.lit((at - _EPOCH) // timedelta(microseconds=1)))


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def ratio_sums(rows: DataFrame, name: str, value: str, per: str) -> dict[str, float]:
    """Sums for a KPI of the user's own.

    Args:
        rows: of the window.
        name: of the KPI, for messages.
        value: SQL.
        per: SQL.

    Returns:
        {n, v, p, vv, vp, pp}.

    Raises:
        DataError: A value is not known or is no finite number.
    """
    v, p = F.expr(value).cast("double"), F.expr(per).cast("double")
    bad = v.isNull() | p.isNull() | F.isnan(v) | F.isnan(p)
    sums = {"v": v, "p": p, "vv": v * v, "vp": v * p, "pp": p * p}
    totals = [F.sum(column).alias(key) for key, column in sums.items()]
    row = rows.agg(F.count(F.lit(1)).alias("n"), F.count_if(bad).alias("bad"), *totals).collect()[0]
    if row["bad"]:
        raise DataError(
            f"monitoring.kpis.{name}: value or per is missing in {row['bad']:,} of {row['n']:,} rows: leave these rows "
            "out with `where`, or give them a value with coalesce"
        )
    return {key: float(row[key] or 0) for key in ("n", *sums)}


def request_sums(rows: DataFrame, ms: str, failed: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Latencies as a histogram, and failures, in one pass.

    Args:
        rows: of the window.
        ms: SQL: milliseconds.
        failed: SQL: whether a request failed.

    Returns:
        (upper ends of the bins in ms, requests in each, failures, requests).

    Raises:
        DataError: Of a request it is not known how long it took or whether it failed.
    """
    took, bad = F.expr(ms).cast("double"), F.expr(failed).cast("boolean")
    unknown = ~F.coalesce((took >= 0) & (took < math.inf), F.lit(False)) | F.isnan(took)
    # Less than a microsecond is as good as none.
    step = F.when(~unknown, F.ceil(F.log10(F.greatest(took, F.lit(1e-3))) * _FINE)).cast("int")
    counts = [F.count(F.lit(1)).alias("n"), F.count_if(bad).alias("bad"), F.count_if(bad.isNull()).alias("unclear")]
    table = rows.groupBy(step.alias("step")).agg(*counts).toPandas()
    n, unclear = int(table["n"].sum()), int(table["unclear"].sum())
    known = table[table["step"].notna()].sort_values("step")
    for key, lacking, has in (("ms", n - int(known["n"].sum()), "no time from 0 on"), ("failed", unclear, "null")):
        if lacking:
            raise DataError(
                f"monitoring.requests.{key} is {has} in {lacking:,} of {n:,} requests of the window: give them a value "
                "there, as with coalesce"
            )
    ends = 10 ** (known["step"].to_numpy(float) / _FINE)
    return ends, known["n"].to_numpy(), int(table["bad"].sum()), n


def log_values(
    read: Callable[[str], DataFrame], monitoring: Monitoring, spec: FigureSpec, window: TimeWindow
) -> list[KpiValue]:
    """KPIs that are measured from tables beside the campaign's events: of requests, and the user's own.

    Args:
        read: Gives a table by its name.
        monitoring: The section of the configuration.
        spec: Declarations.
        window: whose rows count.

    Returns:
        The values.

    Raises:
        DataError: A value is not known.
    """
    values = []
    if (conf := monitoring.requests) is not None:
        rows = read(conf.table).where(inside(conf.time, window.start, window.end))
        ends, counts, failed, n = request_sums(rows, conf.ms, conf.failed)
        errors = share_value(spec, "error_rate", WHOLE_WINDOW, failed, n)
        values += [latency_value(spec, ends, counts), errors]
    for name, own in monitoring.kpis.items():
        if own.own:
            within = inside(str(own.time), window.start, window.end)
            rows = read(str(own.table)).where(within).where(own.where or "true")
            values.append(ratio_value(spec.named(name), ratio_sums(rows, name, str(own.value), own.per), spec.z))
    return values


def newest_row(rows: DataFrame, end: datetime) -> tuple[datetime | None, int]:
    """When the newest row was known, of those known before a moment.

    Args:
        rows: with `known_at`.
        end: The moment (UTC).

    Returns:
        (when, None without a row; rows).
    """
    known = rows.where(F.col("known_at") < _literal(end))
    last, n = known.agg(F.max(F.unix_micros("known_at")), F.count(F.lit(1))).collect()[0]
    return (None if last is None else _moment(last)), n


def season_counts(sums: DataFrame, plan: WindowPlan, runs: Sequence[str]) -> WindowCounts | None:
    """Add up what earlier windows counted of all arms.

    Args:
        sums: Rows of gold.window_sums.
        plan: Bins and categories that they were counted in.
        runs: Of these windows.

    Returns:
        The counts; None without windows.
    """
    if not runs:
        return None
    rows = sums.where(F.col(RUN_ID).isin(list(runs)) & F.col("part").isin("count", "missing", "new")).collect()
    return window_facts(plan, read_kept_sums(row.asDict() for row in rows)).all_arms


def drifting_columns(states: DataFrame | None, runs: Mapping[datetime, str]) -> list[list[str]]:
    """Name the columns that drifted in each of some windows.

    Args:
        states: Rows of gold.drift; None where there are none: a run may have been killed before it wrote them.
        runs: {start of a window: its run}.

    Returns:
        For each window, oldest first, the columns in state drift or trigger.
    """
    flagged: dict[datetime, list[str]] = {start: [] for start in sorted(runs)}
    if states is not None:
        drifting = F.col(RUN_ID).isin(list(runs.values())) & F.col("state").isin("drift", "trigger")
        for row in states.where(drifting).select(F.unix_micros("window_start").alias("at"), "name").collect():
            flagged[_moment(row["at"])].append(row["name"])
    return list(flagged.values())


def last_forecast(returns: DataFrame, costs: DataFrame, campaign: str, window: TimeWindow) -> dict[str, Any] | None:
    """What `uplift costs` knew of the campaign's cost before the next window was over, so that an older window keeps
    what was known then.

    Args:
        returns: Rows of gold.roi.
        costs: Rows of gold.costs.
        campaign: Its name.
        window: That is monitored.

    Returns:
        Columns of the row of all versions, its run, and `days` from the first that cost anything to `as_of`; None
        where no run had a budget by then.
    """
    until = window.end + (window.end - window.start)
    mine = (F.col(CAMPAIGN) == campaign) & (F.col("model_version") == "all") & F.col("budget").isNotNull()
    columns = ("ends", "budget", "cost", "forecast", "forecast_lower", "forecast_upper", RUN_ID)
    at = F.unix_micros("as_of").alias("as_of")
    rows = returns.where(mine & (F.col("as_of") < _literal(until))).orderBy(F.desc("as_of"), F.desc("ingested_at"))
    if (row := next(iter(rows.select(*columns, at).limit(1).collect()), None)) is None:
        return None
    of_units = (F.col(RUN_ID) == row[RUN_ID]) & F.col("kind").isin(*COST_KINDS[:2])
    as_of, first = _moment(row["as_of"]), costs.where(of_units).agg(F.min("day")).collect()[0][0]
    return {**row.asDict(), "as_of": as_of, "days": 0 if first is None else max(0, (as_of.date() - first).days)}


def lasting(hours: int) -> Column:
    """Whether a row is of a window of this length: windows of another one are never compared with it.

    Args:
        hours: of a window.

    Returns:
        The condition on `window_start` and `window_end`.
    """
    return F.unix_micros("window_end") - F.unix_micros("window_start") == hours * 3_600_000_000


def newest_window(kpis: DataFrame) -> datetime | None:
    """Start of the newest window that was monitored.

    Args:
        kpis: Rows of gold.kpi of a campaign, of windows of one length.

    Returns:
        The start; None without one.
    """
    last = kpis.agg(F.max(F.unix_micros("window_start"))).collect()[0][0]
    return None if last is None else _moment(last)


def last_runs(rows: DataFrame) -> dict[datetime, str]:
    """Of each window the run that knew most; of runs that knew the same the one that wrote last.

    Args:
        rows: of a table with `window_start`, `as_of`, `ingested_at` and `run_id`, of windows of one length.

    Returns:
        {start: run}.
    """
    clocks = [F.max(name).alias(name) for name in ("as_of", "ingested_at")]
    runs = rows.groupBy("window_start", RUN_ID).agg(*clocks).orderBy("as_of", "ingested_at", RUN_ID)
    ordered = runs.select(F.unix_micros("window_start").alias("at"), RUN_ID).collect()
    return {_moment(row["at"]): row[RUN_ID] for row in ordered}


# --------------------------------------------------------------------------------------------------------------------
# What units cost and are worth.


def with_plan(labels: DataFrame, decisions: DataFrame | None, written: Mapping[str, datetime]) -> DataFrame:
    """Add the plan that each unit was assigned by: the newest that was written before.

    Args:
        labels: `label_table` of the campaign.
        decisions: The campaign's rows of gold.policy_decisions; None where there is no plan.
        written: {run of a plan: when it was written}; a run that is not there is older than all of them.

    Returns:
        The labels with `version` of the plan's model, `none` before any plan, and `planned_cost` of the unit's level.
    """
    if decisions is None:
        return labels.withColumns({"version": F.lit("none"), "planned_cost": F.lit(None).cast("double")})
    known = [(run, round(at.timestamp() * 1e6)) for run, at in written.items()] or [("", 0)]
    runs = labels.sparkSession.createDataFrame(known, f"{RUN_ID} string, written bigint")
    decided = decisions.join(F.broadcast(runs), RUN_ID, "left")
    decided = decided.select(
        UNIT,
        F.coalesce("written", F.lit(0)).alias("written"),
        F.struct("model_version", TREATMENT, "cost").alias("plan"),
    )
    earlier = labels.select(UNIT, F.unix_micros("assigned_at").alias("at")).join(decided, UNIT).where("written <= at")
    newest = earlier.groupBy(UNIT).agg(F.max_by("plan", "written").alias("plan"))
    joined = labels.join(newest, UNIT, "left")
    planned = F.when(F.col("plan.treatment") == F.col(TREATMENT), F.col("plan.cost"))
    version = F.coalesce("plan.model_version", F.lit("none"))
    return joined.withColumns({"version": version, "planned_cost": planned}).drop("plan")


def money_spent(units: DataFrame, conf: Costs, economics: Economics, control: str) -> list[dict[str, Any]]:
    """Rows of gold.costs for treating units and for what they redeem, on the day of their assignment.

    Args:
        units: `with_plan`; a unit that was not delivered to costs nothing, where deliveries are logged.
        conf: Incentives.
        economics: Cost of each level; of a level that is not there each unit's cost by its plan counts.
        control: Its units cost nothing.

    Returns:
        {column: value}, one for each day, level, kind and model version.

    Raises:
        ConfigError: What a level costs is not known.
    """
    redeemed = {level: F.col("outcomes").getItem(one.outcome) for level, one in conf.incentives.items()}
    amount = F.lit(0.0)
    for level, value in redeemed.items():
        amount = F.when(F.col(TREATMENT) == level, F.coalesce(value, F.lit(0.0))).otherwise(amount)
    reached = F.coalesce(F.col(DELIVERED).cast("boolean"), F.lit(True))
    sums = (
        units.where(F.col(TREATMENT) != control)
        .groupBy(_utc_day("assigned_at"), TREATMENT, "version")
        .agg(
            F.count_if(reached).alias("n"),
            F.count_if(reached & F.col("planned_cost").isNull()).alias("unplanned"),
            F.sum(F.when(reached, F.col("planned_cost"))).alias("planned"),
            F.sum(amount).alias("redeemed"),
        )
    )
    rows: list[dict[str, Any]] = []
    for one in sums.orderBy("day", TREATMENT, "version").collect():
        level, n = one[TREATMENT], one["n"]
        cost = economics.cost.get(level)
        if cost is None and one["unplanned"]:
            raise ConfigError(
                f"{one['unplanned']:,} units got {level!r} on {one['day']}, and what that costs is not known: "
                f"set economics.cost.{level}"
            )
        version = None if one["version"] == "none" else one["version"]
        shared = {"day": one["day"], "item": level, "model_version": version}
        treating = one["planned"] if cost is None else cost * n
        if n:
            rows.append({**shared, "kind": "treating", "quantity": float(n), "amount": float(treating)})
        if level in conf.incentives and one["redeemed"]:
            money = one["redeemed"] * conf.incentives[level].amount
            rows.append({**shared, "kind": "incentive", "quantity": float(one["redeemed"]), "amount": money})
    return rows


_OF_CONTROL = ("a", "ay", "b", "by", "byy")


def worth_by_version(
    units: DataFrame, values: Mapping[str, float], control: str
) -> tuple[dict[str, tuple[int, WorthSums]], str]:
    """What units are worth, summed in one pass.

    Args:
        units: `with_plan`.
        values: {outcome: money that one unit more of it is worth}.
        control: The level that stands for nobody's being treated.

    Returns:
        {model version of the plan: (units that were treated, sums of all units)}, and why they cannot be used; empty
        where they can.
    """
    worth = F.lit(0.0)
    for outcome, value in values.items():
        worth = worth + F.col("outcomes").getItem(outcome) * value
    is_control = F.col(TREATMENT) == control
    p = F.col(PROPENSITY).cast("double")
    a = F.when(is_control, 1 / p)
    b = a * a * (1 - p)  # the square of a propensity may be 0, by which nothing is divided
    y = F.col("worth")
    names = {
        **{"worth_sum": F.sum(y), "a": F.sum(a), "ay": F.sum(a * y)},
        **{"b": F.sum(b), "by": F.sum(b * y), "byy": F.sum(b * y * y), "yy": F.sum(y * y)},
    }
    rows = (
        units.withColumn("worth", worth)
        .groupBy("version")
        .agg(
            F.count(F.lit(1)).alias("n"),
            F.count_if(is_control).alias("control"),
            F.count_if(y.isNull()).alias("unknown"),
            F.count_if(is_control & p.isNull()).alias("undealt"),
            F.count_if(is_control & (y != 0)).alias("worthy"),
            *(F.coalesce(value, F.lit(0.0)).alias(name) for name, value in names.items()),
        )
        .collect()
    )
    sums = {
        row["version"]: (
            row["n"] - row["control"],
            WorthSums(
                row["n"], row["worth_sum"], row["control"], *(row[name] for name in (*_OF_CONTROL, "yy", "worthy"))
            ),
        )
        for row in rows
    }
    unknown, undealt = (sum(row[name] for row in rows) for name in ("unknown", "undealt"))
    if not values:
        return sums, "economics.value is not set"
    if unknown:
        return sums, f"{unknown:,} units have an outcome whose value is not known"
    return sums, f"{undealt:,} units of the control have no propensity" if undealt else ""


def expenses_by_day(rows: DataFrame) -> list[dict[str, Any]]:
    """Rows of gold.costs for bronze.expense: of each item of a bill what was known last.

    Args:
        rows: The campaign's rows of bronze.expense.

    Returns:
        {column: value}, one for each day and item.
    """
    content = ("item", "amount", "spent_at")  # of rows known at the same time, as of one file, the order is theirs
    last = F.max_by(F.struct(*content), F.struct("known_at", "ingested_at", *content)).alias("last")
    bills = rows.groupBy("expense_id").agg(last).select("last.*")
    days = bills.groupBy(_utc_day("spent_at"), "item").agg(
        F.count(F.lit(1)).alias("n"), F.sum("amount").alias("amount")
    )
    return [
        {
            "day": row["day"],
            "kind": "expense",
            "item": row["item"],
            "quantity": float(row["n"]),
            "amount": row["amount"],
        }
        for row in days.orderBy("day", "item").collect()
    ]


def runs_on_record(log: DataFrame | None) -> pd.DataFrame:
    """Job, started_at and seconds of each run, in their order.

    Args:
        log: The campaign's rows of gold.run_log; None where there are none.

    Returns:
        A row a run.
    """
    names = ("job", "started_at", "seconds")
    if log is None:
        return pd.DataFrame(columns=list(names))
    rows = log.orderBy("started_at", "job")
    runs = rows.select("job", F.unix_micros("started_at"), "seconds").collect()
    return pd.DataFrame([(job, _moment(at), seconds) for job, at, seconds in runs], columns=list(names))


def _utc_day(time: str) -> Column:
    """The day of a moment, whatever zone the session is in."""
    days = F.floor(F.unix_micros(time) / F.lit(86_400_000_000)).cast("int")
    return F.date_add(F.lit(_EPOCH.date()), days).alias("day")


# --------------------------------------------------------------------------------------------------------------------
# What follows a window: alerts, and the file that Prometheus reads.

RIPE_DAYS = 30
"""A figure counts so many days longer than its labels take to ripen."""


def alert_on_windows(
    config: Config,
    kpis: DataFrame,
    findings: DataFrame,
    history: DataFrame | None,
    append: Callable[[Sequence[AlertEvent]], object],
    now: datetime,
) -> tuple[DeliveryReport, list[str]]:
    """Open and resolve a campaign's alerts by all that was measured so far, notify people, write Prometheus' file.

    It depends on the tables alone: after a crash it makes up for what is lacking, and again it changes nothing.

    Args:
        config: of the campaign.
        kpis: Rows of gold.kpi of the campaign, of windows of one length.
        findings: Rows of gold.findings, likewise.
        history: Rows of gold.alerts; None without any.
        append: Adds events to gold.alerts.
        now: The present time.

    Returns:
        (what became of the notifications, alerts that fire: severity and rule).

    Raises:
        DataError: The outbox cannot be written.
        EnvironmentProblem: The text file cannot be written.
    """
    declared = campaign_kpis(config.monitoring)
    book = alert_book(config.alerts, alert_events(history, config.campaign))
    book.known_when_closed = _known_when_closed(book, kpis)
    measured, detected, at = _measured(config, kpis, findings)
    rows = newest_windows(row for row in measured if row["kpi"] in {kpi.name for kpi in declared})
    conditions = kpi_conditions(rows, at) + finding_conditions(detected, rows, book.active(), at)
    report = raise_alerts(config.alerts, config.campaign, book, conditions, append, now)
    if config.alerts.textfile is not None:
        write_kpis(rows, declared, config.alerts.textfile)
    return report, [f"{one.last.severity} {one.last.rule}" for one in book.active()]


def alert_events(history: DataFrame | None, campaign: str) -> list[AlertEvent]:
    """Read the events of a campaign's alerts.

    Args:
        history: Rows of gold.alerts; None without any.
        campaign: Its name.

    Returns:
        The events, their times in UTC.
    """
    if history is None:
        return []
    rows = history.where(F.col(CAMPAIGN) == campaign).withColumn("at", F.unix_micros("at")).collect()
    return [AlertEvent.from_row({**row.asDict(), "at": _moment(row["at"])}) for row in rows]


def _known_when_closed(book: AlertBook, kpis: DataFrame) -> dict[str, datetime]:
    """{closed alert: up to when events were known to the windows that were monitored before somebody closed it}."""
    closed = [state.last for state in book.states.values() if state.last.event == "closed"]
    if not closed:
        return {}
    each = kpis.groupBy(F.unix_micros("as_of").alias("as_of")).agg(F.min(F.unix_micros("ingested_at")).alias("at"))
    knew = [(_moment(row["as_of"]), _moment(row["at"])) for row in each.collect()]
    before = {one.alert: [as_of for as_of, at in knew if at <= one.at] for one in closed}
    return {alert: max(times) for alert, times in before.items() if times}


def _measured(
    config: Config, kpis: DataFrame, findings: DataFrame
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], datetime]:
    """Rows of both by the last run of each recent window, and what time they know of."""
    end, labels = F.unix_micros("window_end"), config.labels
    days = max(labels.days(name) for name in config.outcomes) + labels.wait_days + RIPE_DAYS
    newest, as_of = kpis.agg(F.max(end), F.max(F.unix_micros("as_of"))).collect()[0]
    recent = end > newest - math.ceil(days * 86_400_000_000)
    runs = F.col(RUN_ID).isin(list(last_runs(kpis.where(recent)).values()))
    read = [
        [{**row.asDict(), "window_end": _moment(row["_end"])} for row in rows.withColumn("_end", end).collect()]
        for rows in (kpis.where(recent & runs), findings.where(recent & runs))
    ]
    return read[0], read[1], _moment(as_of)
