"""Monitor a window of a running campaign: KPIs, drift, estimated and observed lift, and what goes wrong.

Reads bronze.assignment, bronze.outcome, bronze.delivery, bronze.profile_<campaign> and bronze.event as the features job
does, at one Delta version each, gold.roi and gold.costs for the forecast of the cost, and for the reference the
hold-out that the model was trained beside; appends to gold.kpi, gold.drift, gold.findings and gold.window_sums of one
window, and to gold.alerts what that changes of the alerts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

import uplift_spark.monitoring.figures as figures
import uplift_spark.monitoring.windows as windows
from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.features import features_as_of
from uplift_spark.events.labels import event_days, label_table
from uplift_spark.events.training_set import Events, events_of
from uplift_spark.forest.forest import Model
from uplift_spark.lake.schemas import ALERTS_TABLE, COSTS_TABLE, ROI_TABLE, gold_table
from uplift_spark.lake.session import instant, moment, parsed_time, utc
from uplift_spark.lake.tables import Written
from uplift_spark.monitoring.alerts import AlertEvent
from uplift_spark.monitoring.detectors import DetectorLimits, WindowFacts, level_margins, window_findings
from uplift_spark.monitoring.drift import ColumnDrift, DriftLimits, season_windows, window_drift, with_triggers
from uplift_spark.monitoring.figures import FigureSpec, KpiValue
from uplift_spark.monitoring.kpis import campaign_kpis
from uplift_spark.monitoring.spark import (
    alert_on_windows,
    arm_counts,
    counted_rows,
    drifting_columns,
    inside,
    last_forecast,
    last_runs,
    lasting,
    log_values,
    newest_row,
    newest_window,
    reference_plan,
    season_counts,
    send_counts,
    window_sums,
)
from uplift_spark.registry.models import Registered, still_there
from uplift_spark.roles import CAMPAIGN, DELIVERED, PROPENSITY, RUN_ID, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

KPI_TABLE, DRIFT_TABLE, SUMS_TABLE = gold_table("kpi"), gold_table("drift"), gold_table("window_sums")
FINDINGS_TABLE = gold_table("findings")


def options(
    window: Annotated[
        str | None, typer.Option(help="A moment in the window, as in 2025-01-31; by default the last one over.")
    ] = None,
) -> dict[str, Any]:
    """Which window is monitored."""
    return {} if window is None else {"window": parsed_time(window, "--window")}


@dataclass(frozen=True)
class Monitored:
    """What a run works with: the campaign, its model, its events, the window and the reference."""

    campaign: Campaign
    registered: Registered
    model: Model
    events: Events
    window: windows.TimeWindow
    reference_run: str = ""
    forecast: dict[str, Any] | None = None
    plan: windows.WindowPlan | None = None
    reference: WindowFacts | None = None


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    window: datetime | None = None,
    now: datetime | None = None,
) -> JobResult:
    """Write the gold tables for a window, raise alerts and notify people; a run that was done adds nothing.

    Refused before any write: a window that is empty or not over, a model without a reference, a clock that is behind.
    """
    config, lake, now = campaign.config, campaign.lake, now or datetime.now(UTC)
    kpis = campaign_kpis(config.monitoring)
    newest = newest_window(_mine(campaign, KPI_TABLE)) if lake.exists(KPI_TABLE) else None
    chosen = windows.window_to_monitor(now, config.monitoring.hours, newest, window)
    registered = campaign.model_in_use
    events = events_of(config, lake, progress)
    forecast = forecast_at(campaign, chosen)
    run_id = run_id or window_run(campaign, registered, events, chosen, forecast)
    if (already := _rows_of(campaign, KPI_TABLE, run_id)) is not None:
        progress(f"the window from {chosen.words} was monitored by this run already")
        result = JobResult("monitor", run_id, details={"window": chosen.words, "kpis": already.count()})
        return _with_alerts(campaign, result, now, progress)
    progress(f"window from {chosen.words}, model {registered.name} version {registered.version}")
    it = Monitored(campaign, registered, campaign.registry.load(registered), events, chosen, forecast=forecast)
    it = _with_reference(it, progress)
    facts = _facts(it, progress)
    facts = replace(facts, drift=tuple(drift := _drift(it, facts)))
    limits = DetectorLimits(alpha=config.monitoring.alpha, drifted=config.monitoring.drift.size)
    findings = window_findings(it.reference, facts, limits)  # type: ignore[arg-type]
    spec = FigureSpec(kpis, config.roles.direction, config.monitoring.alpha)
    values = _values(it, spec, facts, drift)
    sums = [*windows.kept_sums(windows.sum_rows(facts)), *windows.kept_delays(facts)]
    written = [
        _write(it, run_id, SUMS_TABLE, [{"reference": it.reference_run, **row} for row in sums]),
        _write(it, run_id, DRIFT_TABLE, [figures.drift_row(one) for one in drift]),
        _write(it, run_id, FINDINGS_TABLE, [figures.finding_row(one) for one in findings]),
        _write(it, run_id, KPI_TABLE, [value.row for value in values]),  # last: a run that has KPIs is complete
    ]
    details = {"window": chosen.words, "units": facts.units, "kpis": len(values), "findings": len(findings)}
    details["summary"] = figures.window_summary(values, drift, findings)
    return _with_alerts(campaign, JobResult.of("monitor", run_id, *written, **details), now, progress)


def forecast_at(campaign: Campaign, window: windows.TimeWindow) -> dict[str, Any] | None:
    """What `uplift costs` forecast last, as a window knows it; None without costs."""
    if not (lake := campaign.lake).exists(ROI_TABLE):
        return None
    return last_forecast(lake.read(ROI_TABLE), lake.read(COSTS_TABLE), campaign.name, window)


def window_run(
    campaign: Campaign, registered: Registered, events: Events, window: windows.TimeWindow, forecast: Any
) -> str:
    """Name the run that measures a window by a model on what these events and this forecast know."""
    config, identity = campaign.config, [registered.name, registered.version, registered.sha256]
    beside = [*config.monitoring.logs, *([campaign.training_table] if config.nuisances is not None else [])]
    known = {} if forecast is None else {ROI_TABLE: forecast[RUN_ID]}
    upstream = [events.run_ids, events.as_of, {table: campaign.lake.version(table) for table in beside} | known]
    return campaign.run_id("monitor", model=identity, window=[window.start, window.end], data=upstream)


def _with_alerts(campaign: Campaign, result: JobResult, now: datetime, progress: ProgressCallback) -> JobResult:
    lake, written = campaign.lake, list[Written]()
    claim = lake.claim(ALERTS_TABLE, f"alerts of {campaign.name}")
    history = lake.read(ALERTS_TABLE) if lake.exists(ALERTS_TABLE) else None

    def append(events: Sequence[AlertEvent]) -> None:
        changes = [[one.alert, one.sequence, one.event, one.at.isoformat()] for one in events]
        run_id = derive_run_id("alerts", {"campaign": campaign.name}, changes=changes)
        rows = lake.filled(ALERTS_TABLE, [asdict(one) for one in events])
        written.append(lake.write(ALERTS_TABLE, rows, run_id, claim=claim))

    kpis, findings = _mine(campaign, KPI_TABLE), _mine(campaign, FINDINGS_TABLE)
    report, firing = alert_on_windows(campaign.config, kpis, findings, history, append, now)
    for sentence in report.sentences:
        progress(sentence)
    details = {**result.details, "alerts": firing, **report.counts}
    return replace(result, tables={**result.tables, **JobResult.of("", "", *written).tables}, details=details)


def _with_reference(it: Monitored, progress: ProgressCallback) -> Monitored:
    """The hold-out of the model's training set, counted once for a model version."""
    campaign, conf = it.campaign, it.campaign.config.monitoring.drift
    ((table, version),) = it.registered.data_versions.items()
    # Not of the thresholds: with other ones the windows counted so far still count.
    labels = asdict(replace(campaign.config.labels, as_of=None))
    conf_part = {"campaign": campaign.name, "bins": conf.bins, "rows": conf.rows, "labels": labels}
    run_id = derive_run_id("reference", conf_part, model=it.registered.sha256, data={table: version})
    levels, features = tuple(it.model.levels.names), tuple(it.model.roles.features)
    rows = _rows_of(campaign, SUMS_TABLE, run_id)
    if rows is None:
        progress(f"counting the reference, {table} version {version}")
        with still_there(table, version, "train the model anew, or name another version under registry.version"):
            holdout = campaign.lake.read(table, version).where(F.col("split") == "holdout")
            logged = not holdout.where(F.col(PROPENSITY).isNotNull()).isEmpty()
            counted = counted_rows(holdout.drop(DELIVERED), features, F.col(it.model.roles.outcome), logged)
            plan = reference_plan(counted, it.model, min(1.0, conf.rows / max(1, holdout.count())), conf.bins)
            sums = windows.kept_sums(window_sums(counted, plan, it.model))
        last = holdout.agg(F.max(F.unix_micros("assigned_at"))).collect()[0][0]
        mine = it.events.assignments.where(F.unix_micros("assigned_at") <= last)
        # Deliveries and delays are those of all units so far: they need no unit that the model has not seen.
        sends = send_counts(_labels(it, mine)) if it.events.deliveries is not None else {}
        known = WindowFacts(plan.control, plan.bins, sends=sends, **_delays(it, mine, moment(last)))
        sums += windows.kept_sums(windows.sum_rows(known))
        kept = [*windows.kept_plan(plan), *sums, *windows.kept_delays(known)]
        _write(it, run_id, SUMS_TABLE, [{"reference": run_id, **row} for row in kept], dated=False)
        rows = _rows_of(campaign, SUMS_TABLE, run_id)
    kept = [row.asDict() for row in rows.collect()]  # type: ignore[union-attr]
    plan = windows.read_plan(kept, levels, features)
    delays, labelled = windows.read_delays(kept)
    reference = windows.window_facts(plan, windows.read_kept_sums(kept))
    reference = replace(reference, delays=delays, labelled=labelled)
    return replace(it, reference_run=run_id, plan=plan, reference=reference)


def _facts(it: Monitored, progress: ProgressCallback) -> WindowFacts:
    """Sums of the window. Raises DataError when nobody was assigned in it to a level that the model knows."""
    config, events, plan = it.campaign.config, it.events, it.plan
    assert plan is not None
    if lacking := sorted(set(plan.features) - set(events.columns)):
        raise ConfigError(
            f"model {it.registered.name} version {it.registered.version} reads {', '.join(lacking)}, which the "
            "configuration has not under roles.features: add them, or name another version under registry.version"
        )
    mine = events.assignments.where(inside("assigned_at", it.window.start, it.window.end))
    arms = arm_counts(mine)
    unknown = {str(arm): n for arm, (n, _) in arms.items() if arm not in plan.levels}
    if sum(unknown.values()) == sum(n for n, _ in arms.values()):
        last = moment(events.assignments.agg(F.max(F.unix_micros("assigned_at"))).collect()[0][0])
        why = windows.why_empty(unknown, last)
        raise DataError(f"the window from {it.window.words} {why}, or name another with --window")
    outcome = F.when(F.col("mature"), F.col("outcomes")[it.model.roles.outcome])
    rows = features_as_of(_labels(it, mine), events.sources, config.feature_definitions, events.columns)
    if config.nuisances is not None:
        fitted = it.campaign.training_set().select(UNIT, F.col(PROPENSITY).alias("_fitted"))
        rows = rows.join(fitted, UNIT, "left").withColumn(PROPENSITY, F.coalesce("_fitted", PROPENSITY))
    logged = config.nuisances is not None or any(known for _, known in arms.values())
    facts = windows.window_facts(plan, window_sums(counted_rows(rows, plan.features, outcome, logged), plan, it.model))
    if without := windows.without_propensity(facts):
        fix = "run `uplift features` and `uplift nuisances`" if config.nuisances is not None else "load it"
        progress(f"{without:,} of {facts.units:,} units have no propensity, so no lift counts their outcomes: {fix}")
    counts = it.model.roles.outcome in config.economics.value and config.policy.objective == "profit"
    margins = level_margins(plan.levels[1:], it.campaign.outcome_value, config.economics.cost) if counts else {}
    return replace(facts, margins=margins, unknown=unknown, **_delays(it, mine, it.window.end))


def _labels(it: Monitored, assignments: DataFrame) -> DataFrame:
    events = it.events
    history = (events.outcomes, events.names, it.campaign.config.labels, events.as_of, events.deliveries)
    return label_table(assignments, *history).drop(CAMPAIGN, "as_of")


def _delays(it: Monitored, assignments: DataFrame, end: datetime) -> dict[str, Any]:
    labels, events = it.campaign.config.labels, it.events
    last = utc(end) + timedelta(days=max(labels.days(name) for name in events.names))
    days = event_days(assignments, events.outcomes, events.names, labels, events.as_of, last).toPandas()
    return windows.label_delays(days, events.names, (events.as_of - last) / timedelta(days=1))


def _drift(it: Monitored, facts: WindowFacts) -> list[ColumnDrift]:
    """Every column against the training set and the windows of its season, which are read as sums."""
    campaign, conf, plan = it.campaign, it.campaign.config.monitoring.drift, it.plan
    assert plan is not None and it.reference is not None
    limits = DriftLimits(conf.size, conf.alpha, conf.windows, conf.needed)
    earlier = (F.col("reference") == it.reference_run) & (F.col("window_start") < instant(it.window.start))
    known = last_runs(_mine(campaign, SUMS_TABLE).where(earlier & (F.col("part") == "count")))
    matched = season_windows(it.window.start, known, conf.holidays, conf.weeks)
    season = season_counts(campaign.lake.read(SUMS_TABLE), plan, [known[start] for start in matched])
    drift = window_drift(plan.bins, it.reference.all_arms, season, facts.all_arms, limits)
    before = sorted(known)[-limits.windows :]
    states = _mine(campaign, DRIFT_TABLE) if before and campaign.lake.exists(DRIFT_TABLE) else None
    return with_triggers(drift, drifting_columns(states, {start: known[start] for start in before}), limits)


def _values(it: Monitored, spec: FigureSpec, facts: WindowFacts, drift: list[ColumnDrift]) -> list[KpiValue]:
    """Every KPI that is declared; one that nothing was measured of is there without a value."""
    assert it.reference is not None
    ages = {it.events.read[name][0]: newest_row(rows, it.window.end) for name, rows in it.events.sources.items()}
    values = [
        figures.drift_value(spec, drift, facts.features),
        figures.delivery_value(spec, facts),
        figures.forecast_value(spec, it.forecast),
        *(figures.completeness_value(spec, name, *one) for name, one in facts.complete.items()),
        *figures.lift_values(spec, it.reference, facts),
        figures.freshness_value(spec, ages, it.window.end),
        *log_values(it.campaign.lake.read, it.campaign.config.monitoring, spec, it.window),
    ]
    measured = {value.kpi.name for value in values}
    return values + [KpiValue.nothing(kpi) for kpi in spec.kpis if kpi.name not in measured]


def _mine(campaign: Campaign, table: str) -> DataFrame:
    """The campaign's rows of windows of the present length."""
    of_length = lasting(campaign.config.monitoring.hours)
    return campaign.lake.read(table).where((F.col(CAMPAIGN) == campaign.name) & of_length)


def _rows_of(campaign: Campaign, table: str, run_id: str) -> DataFrame | None:
    """Rows that a run wrote; None where it wrote none."""
    if not campaign.lake.exists(table):
        return None
    rows = campaign.lake.read(table).where(F.col(RUN_ID) == run_id)
    return None if rows.isEmpty() else rows


def _write(it: Monitored, run_id: str, table: str, rows: list[dict[str, Any]], dated: bool = True) -> Written:
    shared = {CAMPAIGN: it.campaign.name, "model_version": str(it.registered.version), "as_of": it.events.as_of}
    shared |= {"window_start": it.window.start, "window_end": it.window.end} if dated else {}
    return it.campaign.lake.write(table, it.campaign.lake.filled(table, [{**shared, **row} for row in rows]), run_id)


if __name__ == "__main__":
    main_job(run, options)
