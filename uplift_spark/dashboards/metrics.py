"""The figures of the pages, each with a sentence that says what it means for the campaign and what to do.

Sentences follow from the figures alone: `campaign_decision`, `executive_metrics`, `oncall_metrics`, `debug_metrics`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from uplift_spark.dashboards.tables import CampaignTables
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.html_page import short
from uplift_spark.monitoring.budgets import objective_of
from uplift_spark.monitoring.costs import CostForecast, budget_verdict
from uplift_spark.monitoring.kpis import FORECAST_KPI, FOUNDING_KPIS, LIFT_FIGURES, Kpi
from uplift_spark.policy.allocation import CHOSEN, GLOBAL_HOLDOUT, NOT_WORTH
from uplift_spark.roles import benefit_interval

Tone = Literal["good", "bad", "warn", "plain"]
_BUDGET_DAYS = 28
_OF_STATE: dict[str, Tone] = {"ok": "good", "alert": "bad", "missed": "warn", "unsure": "warn", "too_few": "warn"}


@dataclass(frozen=True)
class Metric:
    """One figure of a page.

    source    table that the figure is of; n_source of its n, the same by default
    sentence  what it means and what to do; scale is what the figure is multiplied by to be shown, in `unit`
    low       few units: shown in grey
    kpi       name of the KPI that it is, whose windows are drawn
    """

    label: str
    sentence: str
    source: str = ""
    value: float = np.nan
    lower: float = np.nan
    upper: float = np.nan
    n: float = np.nan
    scale: float = 1.0
    unit: str = ""
    tone: Tone = "plain"
    low: bool = False
    n_source: str = ""
    kpi: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return bool(np.isfinite(self.lower) and np.isfinite(self.upper))


@dataclass(frozen=True)
class CampaignDecision:
    """What is advised about the campaign: expand, hold or stop, the reasons in sentences, and the way to act on it."""

    action: Literal["expand", "hold", "stop"]
    reasons: tuple[str, ...]

    @property
    def tone(self) -> Tone:
        """Colour of the badge."""
        tones: dict[str, Tone] = {"expand": "good", "hold": "warn", "stop": "bad"}
        return tones[self.action]


def campaign_decision(tables: CampaignTables) -> CampaignDecision:
    """Advise on the campaign.

    Args:
        tables: Of the campaign.

    Returns:
        `stop` where the 95 % interval says that treating costs more than it brings, or a trial says roll back; `hold`
        where nothing is proven, or something is wrong that must be mended first; else `expand`.
    """
    best, plan = tables.verdict, tables.plan
    if best is None:
        return CampaignDecision("hold", ("Nothing was evaluated yet: run `uplift lift`.",))
    trial = _trial_verdict(tables)
    if trial == "roll back":
        return CampaignDecision(
            "stop", ("The trial's readout says roll back: a guardrail or the main metric is harmed.",)
        )
    judged = plan is not None and np.isfinite(plan["observed_lower"]) and tables.policy.net
    if judged and plan is not None and plan["observed_upper"] < 0:
        text = "By the hold-out the plan loses money: even the upper end of its 95 % interval, {}, is below zero."
        return CampaignDecision("stop", (text.format(short(plan["observed_upper"])),))
    if best.action == "none":
        return CampaignDecision(
            "stop", (f"Even the upper end of the interval of {best.level} does not pay for its cost.",)
        )
    pays = plan is not None and plan["observed_lower"] > 0 if judged else best.is_advised
    if not pays:
        return CampaignDecision("hold", (_not_proven(tables),))
    if wrong := _must_be_mended(tables):
        return CampaignDecision("hold", (*wrong, "The campaign pays, but mend this before it grows."))
    if judged and plan is not None:
        text = "By the hold-out the plan brings {} after costs, 95 % interval {} to {}: all of it above zero."
        figures = (short(plan[name]) for name in ("observed", "observed_lower", "observed_upper"))
        return CampaignDecision("expand", (text.format(*figures),))
    return CampaignDecision("expand", (f"{best.badge}: the hold-out shows with 95 % confidence that this pays.",))


def _not_proven(tables: CampaignTables) -> str:
    if signal := no_signal(tables):
        return signal
    return (
        "It is not proven that treating pays: the 95 % interval of the gain reaches below zero. Go on with the trial."
    )


def no_signal(tables: CampaignTables) -> str:
    """A sentence where the hold-out shows no effect of any level; empty where it shows one, or nothing is there."""
    verdicts = tables.page.verdicts
    if not verdicts:
        return ""
    bounds = [(one.effect["lower"], one.effect["upper"]) for one in verdicts]
    known = [(low, high) for low, high in bounds if np.isfinite(low) and np.isfinite(high)]
    if not known:
        return "There is no signal: too few units for the effect of any level. Collect more before anything is decided."
    if any(low > 0 or high < 0 for low, high in known) or any(one.ranked for one in verdicts):
        return ""
    return (
        f"There is no signal: the effect of {' and of '.join(one.level for one in verdicts)} on {tables.outcome} may "
        "be zero, and the order of the units may be chance. Do not choose by it."
    )


def _must_be_mended(tables: CampaignTables) -> tuple[str, ...]:
    """Why a campaign that pays must not grow now."""
    wrong = []
    health = tables.rows("experiment_health")
    if len(health):  # what an earlier reading refused may be mended since
        health = health[health["as_of"] == health["as_of"].max()]
    if len(health) and (refused := health[health["severity"] == "refuse"]["check"].tolist()):
        wrong.append(f"The trial's health check refuses a reading: {', '.join(map(str, refused))}.")
    paging = tables.open_alerts
    if len(paging) and (rules := sorted(set(paging[paging["severity"] == "page"]["rule"]))):
        wrong.append(f"An alert that pages is open: {', '.join(map(str, rules))}.")
    drifted = tables.of_newest_window("drift")
    if len(drifted) and (names := drifted[drifted["state"] == "trigger"]["name"].tolist()):
        wrong.append(f"Drift persists in {', '.join(map(str, names[:5]))}: the model may be out of date.")
    return tuple(wrong)


def _trial_verdict(tables: CampaignTables) -> str:
    read = tables.rows("experiment")
    if read.empty or "verdict" not in read:
        return ""
    read = read[read["job"] == "readout"]
    return "" if read.empty else str(read.sort_values("as_of").iloc[-1]["verdict"])


# --------------------------------------------------------------------------------------------------------------------
# Executive.


def executive_metrics(tables: CampaignTables) -> list[Metric]:
    """Money, uplift, spend, coverage, drift, and the programme's holdout.

    Args:
        tables: Of the campaign.

    Returns:
        The figures in their order; what no table holds is a metric without a value, whose sentence says so.
    """
    return [
        _roi_metric(tables), *(_uplift_metric(tables, level) for level in tables.page.levels), _spend_metric(tables),
        *_cost_metrics(tables), _coverage_metric(tables), _drift_metric(tables), _programme_metric(tables),
    ]  # fmt: skip


def _roi_metric(tables: CampaignTables) -> Metric:
    label, plan = "Return on investment of the plan", tables.plan
    if plan is None:
        return Metric(label, "There is no plan with a budget: set policy.budget and run `uplift policy`.")
    if not tables.policy.net:
        return Metric(label, "The plan counts outcomes, not money: set economics and policy.objective to profit.")
    cost = plan["cost"]
    if not cost > 0:
        return Metric(label, "The plan spends nothing: no unit is predicted to bring more than treating it costs.")
    value, lower, upper = (plan[name] / cost for name in ("observed", "observed_lower", "observed_upper"))
    if not np.isfinite(value):
        return Metric(label, "Too few units of the hold-out got what the plan gives, so nobody knows what it brings.")
    parts = (value, lower, upper)
    if lower > 0:
        words = f"Each unit of money spent brings {short(value)} beyond itself, at the lower end {short(lower)}."
        words += " Spending pays."
    elif upper < 0:
        words = f"Each unit of money spent loses {short(-value)}. Stop, or lower the costs."
    else:
        words = (
            "The interval holds zero: the plan may pay or lose. Keep the budget small until more outcomes are known."
        )
    tone: Tone = "good" if lower > 0 else "bad" if upper < 0 else "warn"
    return Metric(label, words, "policy_curve: observed / cost", *parts, plan["treated"], 100.0, "%", tone)


def _uplift_metric(tables: CampaignTables, level: str) -> Metric:
    whole = tables.page.rows(level, "all")
    n = float(whole["n"].iloc[0]) if len(whole) else np.nan
    low = bool(whole["low_sample"].iloc[0]) if len(whole) and "low_sample" in whole else False
    effect, scale = tables.page.metric("ate", level), tables.scale
    label, parts = f"Uplift of {level} on {tables.outcome}", (effect["value"], effect["lower"], effect["upper"])
    if not all(map(np.isfinite, parts)):
        return Metric(label, "Too few units in one of its arms for an effect. Collect more.", low=True, n=n)
    least, most = benefit_interval(effect["lower"], effect["upper"], tables.direction)
    times = 1000 if scale == 100 else 1
    size = short(abs(effect["value"]) * times)
    more = "more" if effect["value"] > 0 else "fewer" if scale == 100 else "less"
    of = "of 1,000 units" if scale == 100 else "a unit"
    if least > 0:
        words = (
            f"If all got it, {size} {more} {of} would have {tables.outcome}."
            if scale == 100
            else (f"If all got it, {tables.outcome} would be {size} {more} {of}.")
        )
        words += " It works on average; the plan says for whom it pays."
    elif most < 0:
        words = f"It does harm on average: {size} {more} {of}. Give it to nobody outside the plan."
    else:
        words = "It may do nothing on average: the interval holds zero. Let the trial go on, or choose by the plan."
    tone: Tone = "good" if least > 0 else "bad" if most < 0 else "warn"
    return Metric(label, words, "uplift_metrics", *parts, n, scale, tables.unit, tone, low, "lift_table")


def _spend_metric(tables: CampaignTables) -> Metric:
    plan, limits = tables.plan, tables.rows("policy_limits")
    if plan is None:
        return Metric("Spend", "There is no plan with a budget, so nothing is planned to be spent.")
    row = limits[limits["name"] == "spend"] if len(limits) else limits
    if row.empty:
        words = f"The plan costs {short(plan['cost'])} without a limit."
        return Metric("Spend", words, "policy_curve", plan["cost"], unit="money")
    used, most, price = (float(row.iloc[0][name]) for name in ("used", "most", "price"))
    share = 100 * used / most if most > 0 else np.nan
    words = f"The plan uses {short(share)} % of the budget of {short(most)}."
    if price > 0:
        words += (
            f" One unit of money more would gain {short(price)}, by prediction: raise it if money earns less elsewhere."
        )
    else:
        words += " More money would bring nothing: all who pay are treated already. Use the rest elsewhere."
    return Metric("Spend", words, "policy_limits", used, unit="money", tone="plain")


def _cost_metrics(tables: CampaignTables) -> list[Metric]:
    """What the campaign brought net of all its costs, and what it will have cost by its end."""
    label, rows = "Net of all costs, so far", tables.rows("roi")
    if rows.empty:
        return [Metric(label, "Nobody added up deliveries, jobs and bills: run `uplift costs`.")]
    row = rows[rows["model_version"] == "all"].sort_values(["as_of", "ingested_at"], kind="stable").iloc[-1]
    net, lower, upper = (_number(row[name]) for name in ("net", "net_lower", "net_upper"))
    spent = f"{short(_number(row['cost']))} were spent on {row['treated']:,} treated units"
    if np.isfinite(net):
        words = f"{spent}, against treating nobody that brought {short(_number(row['gain']))}."
        words += {
            (True, True): " The campaign has paid for itself.",
            (False, False): " The campaign has lost money: stop it, or lower its costs.",
        }.get((lower > 0, upper > 0), " The interval holds zero: it may have paid or lost.")
    else:
        words = f"{spent}. What that brought is not known: {row['note']}."
    tone: Tone = "plain" if not np.isfinite(net) else "good" if lower > 0 else "bad" if upper < 0 else "warn"
    metrics = [Metric(label, words, "roi: net", net, lower, upper, unit="money", tone=tone)]
    budget, ends = _number(row["budget"]), row["ends"]
    if pd.isna(ends):
        return metrics
    forecast, lower, upper = (_number(row[name]) for name in ("forecast", "forecast_lower", "forecast_upper"))
    if not np.isfinite(forecast):
        words = "Money was spent on too few days that are over to forecast what comes: `uplift costs` says why."
        return [*metrics, Metric("Cost by the end", words)]
    words = f"By {ends} the campaign will have cost this, if its days go on as they did."
    tone = "plain"
    if np.isfinite(budget):
        verdict = budget_verdict(CostForecast(forecast, lower, upper), budget)
        tone = {"within the budget": "good", "over the budget": "bad"}.get(verdict, "warn")  # type: ignore[assignment]
        to_do = {
            "within the budget": "nothing to do",
            "over the budget": "lower policy.budget, or end it sooner",
        }.get(verdict, "look again when more days are known")
        words += f" It is {verdict} of {short(budget)}: {to_do}."
    return [
        *metrics,
        Metric("Cost by the end", words, "roi: forecast", forecast, lower, upper, unit="money", tone=tone),
    ]


def _coverage_metric(tables: CampaignTables) -> Metric:
    rows = tables.decisions
    if rows is None or rows.empty:
        words = "The plan's decisions were not read" if rows is None else "There is no plan"
        return Metric("Coverage", f"{words}, so the share of treated units is not known here.")
    total = int(rows["n"].sum())
    treated = int(rows.loc[rows["treatment"] != tables.control, "n"].sum())
    barred = rows[(rows["treatment"] == tables.control) & ~rows["reason"].isin([CHOSEN, NOT_WORTH])]
    words = f"{treated:,} of {total:,} units are to be treated."
    if barred["n"].sum():
        top = barred.sort_values("n", ascending=False).iloc[0]
        words += f" A rule bars {int(barred['n'].sum()):,}, most by “{top['reason']}”: check that this is meant."
    else:
        words += " No rule bars anybody: the others are not worth their cost, or the budget ends before them."
    return Metric("Coverage", words, "policy_decisions", treated / total, n=total, scale=100.0, unit="%")


def _drift_metric(tables: CampaignTables) -> Metric:
    rows = tables.of_newest_window("drift")
    if rows.empty:
        return Metric("Drift", "No window was monitored yet, so drift is not known: run `uplift monitor`.")
    lasting = rows[rows["state"] == "trigger"]["name"].tolist()
    once = rows[rows["state"] == "drift"]["name"].tolist()
    share = (len(lasting) + len(once)) / len(rows)
    source, tone = "drift", ("bad" if lasting else "warn" if once else "good")
    if lasting:
        words = f"Drift persists in {', '.join(map(str, lasting[:5]))}: retrain before the campaign grows."
    elif once:
        verb = "differs" if len(once) == 1 else "differ"
        words = f"{', '.join(map(str, once[:5]))} {verb} in the newest window only: wait for the next before acting."
    else:
        words = f"All {len(rows)} columns are as in the training set: the model is used on units like those it knows."
    return Metric("Drift", words, source, share, n=float(len(rows)), scale=100.0, unit="% of columns", tone=tone)  # type: ignore[arg-type]


def _programme_metric(tables: CampaignTables) -> Metric:
    label, rows = "Programme lift, from the holdout", tables.rows("readout")
    primary = rows[rows["role"] == "primary"] if len(rows) else rows
    if len(primary):
        row = primary.sort_values("as_of").iloc[-1]
        words = f"The trial reads {row['metric']} of {row['treatment']} as {row['status']}."
        words += {"better": " The campaign works as a whole.", "worse": " The campaign harms: stop it."}.get(
            str(row["status"]), " Wait for the planned units before anything is concluded."
        )
        effect, lower, upper = (float(row[name]) for name in ("effect", "lower", "upper"))
        return Metric(label, words, "readout", effect, lower, upper, tone=_status_tone(str(row["status"])))
    left = 0
    if tables.decisions is not None and len(tables.decisions):
        left = int(tables.decisions.loc[tables.decisions["reason"] == GLOBAL_HOLDOUT, "n"].sum())
    if left:
        words = (
            f"{left:,} units are kept out at random; none was read yet: run `uplift readout` when outcomes are known."
        )
    else:
        words = "Nobody is kept out at random, so the programme's lift is not measured: set `policy.global_holdout`."
    return Metric(label, words)


def _status_tone(status: str) -> Tone:
    return {"better": "good", "safe": "good", "worse": "bad", "harmed": "bad"}.get(status, "warn")  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------------
# On call.

_WHAT_TO_DO = {
    "prediction_latency": "look at the load and at the serving hosts",
    "error_rate": "read the service's log, and roll back what was deployed last",
    "drift_score": "see which column drifts below, and retrain if it persists",
    "lift_degradation": "check deliveries first, then whether a retrain is due",
    "delivery_rate": "check the sending channel and its queue",
    "outcome_completeness": "check the feed of outcomes: labels are not whole",
    "feature_freshness": "check the load of the oldest source",
    "uplift_interval_width": "predictions say less than they did: check for new kinds of units",
    "uplift_roi": "check costs and the value of the outcome before money is spent on",
    "cost_per_incremental": "compare it with what one outcome is worth",
    FORECAST_KPI: "lower policy.budget, end the campaign sooner, or raise costs.budget",
}


def oncall_metrics(tables: CampaignTables) -> list[Metric]:
    """KPIs of the newest monitored window, the monitor's backlog, open alerts, error budgets.

    Args:
        tables: Of the campaign.

    Returns:
        As `executive_metrics`.
    """
    rows = tables.kpis_now
    if rows.empty:
        none = (
            "No window was monitored yet: delivery, latency, freshness and errors are not known. Run `uplift monitor`."
        )
        return [Metric("Monitoring", none), _alert_metric(tables)]
    known = {kpi.name: kpi for kpi in (*FOUNDING_KPIS, *LIFT_FIGURES)}
    order = {name: number for number, name in enumerate(known)}
    whole = rows[rows["cut"] == "all"]
    whole = whole.assign(_at=whole["kpi"].map(lambda name: order.get(name, len(order)))).sort_values("_at")
    metrics = [_kpi_metric(row, known.get(str(row["kpi"]))) for row in whole.to_dict("records")]
    p99 = "No table holds the 99th percentile: it is on the service's own page of Prometheus (docs/alerts.md)."
    at = next((n for n, row in enumerate(whole["kpi"]) if row == "prediction_latency"), -1) + 1
    if at:
        metrics.insert(at, Metric("Latency, p99", p99))
    return [_backlog_metric(tables), _alert_metric(tables), *metrics, *_budget_metrics(tables)]


def _kpi_metric(row: Mapping[Hashable, Any], declared: Kpi | None) -> Metric:
    name, state = str(row["kpi"]), str(row["state"])
    label = "Latency, p95" if name == "prediction_latency" else name.replace("_", " ").capitalize()
    scale, unit = (100.0, "%") if row["unit"] == "share" else (1.0, str(row["unit"]))
    value, lower, upper = (_number(row[key]) for key in ("value", "lower", "upper"))
    n, target, alert = (_number(row[key]) for key in ("n", "target", "alert"))
    bound = f"{short(alert * scale)} {unit}" if np.isfinite(alert) else ""
    about = declared.definition if declared is not None else ""
    what = _WHAT_TO_DO.get(name, "read its definition in the configuration")
    needed = _number(row["n_needed"])
    certain = np.isfinite(lower + upper)
    whole = certain and not lower <= alert <= upper
    noted = isinstance(row.get("note"), str) and bool(row["note"])
    chance = ", by more than chance" if certain and not whole else ""
    texts = {
        "ok": "In order: nothing to do."
        if np.isfinite(target) or bound
        else "It has no target: read it beside the others.",
        "missed": f"Worse than the target of {short(target * scale)} {unit}, nobody is called yet: {what}.",
        "alert": f"{'The whole interval' if whole else 'It'} is beyond {bound}{chance}: {what}, now.",
        "unsure": f"The value is beyond {bound}, its interval is not"
        + (f": {short(needed)} observations would tell. Wait." if np.isfinite(needed) else ". Wait for more days."),
        "too_few": f"Beyond {bound}, but only {short(n)} observations: too few to act on.",
        "no_data": "Nothing was measured in the window" + ("." if noted else ": check that its source is loaded."),
    }
    note = f" Note: {str(row['note']).strip()}." if noted else ""
    words = f"{about} {texts.get(state, state)}{note}".strip()
    tone = _OF_STATE.get(state, "plain")
    low = state in ("too_few", "no_data")
    return Metric(label, words, "kpi", value, lower, upper, n, scale, unit, tone, low, kpi=name)


def _number(value: Any) -> float:
    return np.nan if value is None or pd.isna(value) else float(value)


def _backlog_metric(tables: CampaignTables) -> Metric:
    end = pd.Timestamp(tables.kpis["window_end"].max())
    end = end.tz_localize("UTC") if end.tzinfo is None else end
    late = max(0.0, (pd.Timestamp(tables.now) - end).total_seconds() / 3600 / tables.hours)
    windows = float(np.floor(late))
    words = f"The newest monitored window ended {end:%Y-%m-%d %H:%M} UTC."
    words += (
        " The monitor is up to date."
        if windows < 1
        else f" {windows:,.0f} windows wait: run `uplift monitor` by schedule; windows after the "
        "campaign's last unit stay empty, and nothing is missing there."
    )
    return Metric(
        "Backlog of windows",
        words,
        "kpi: window_end",
        windows,
        unit="windows",
        tone="good" if windows < 1 else "warn",
    )


def _alert_metric(tables: CampaignTables) -> Metric:
    if "alerts" not in tables.frames:
        return Metric("Open alerts", "Alerts were never evaluated here: `uplift monitor` does it with each window.")
    rows = tables.open_alerts
    if rows.empty:
        return Metric("Open alerts", "None is open: nothing to do.", "alerts", 0.0, tone="good")
    pages = int((rows["severity"] == "page").sum())
    words = f"{pages} of them page. " if pages else "None of them pages: handle them in working hours. "
    words += f"The oldest is {rows.iloc[0]['rule']}: begin with it."
    return Metric("Open alerts", words, "alerts", float(len(rows)), tone="bad" if pages else "warn")


def _budget_metrics(tables: CampaignTables) -> list[Metric]:
    """Error budget of each KPI that is a share, over the windows of the last days."""
    rows, metrics = tables.kpis, []
    since = rows["window_end"].max() - pd.Timedelta(days=_BUDGET_DAYS)
    for kpi in FOUNDING_KPIS:
        mine = rows[(rows["kpi"] == kpi.name) & (rows["cut"] == "all") & (rows["window_end"] > since)]
        mine = mine[mine["value"].notna() & (mine["n"] > 0)]
        if kpi.measure != "share" or mine.empty:
            continue
        try:
            allowed = 1 - objective_of(kpi)
        except ConfigError:
            continue
        n = float(mine["n"].sum())
        bad = mine["value"] if kpi.better == "below" else 1 - mine["value"]
        left = 1 - float((bad * mine["n"]).sum()) / (allowed * n)
        label = f"Error budget of {kpi.name.replace('_', ' ')}"
        if left > 0:
            words = f"{short(100 * left)} % of what may go wrong in {_BUDGET_DAYS} days is left: changes may go on."
        else:
            words = f"It is used up {short(1 - left)} times over: stop changes until it recovers."
        tone: Tone = "good" if left > 0.25 else "warn" if left > 0 else "bad"
        metrics.append(Metric(label, words, "kpi: windows added up", left, n=n, scale=100.0, unit="% left", tone=tone))
    return metrics


# --------------------------------------------------------------------------------------------------------------------
# Debug.


def debug_metrics(tables: CampaignTables) -> list[Metric]:
    """How well the model ranks, how wide its intervals are, what was retrained, and what is on trial.

    Args:
        tables: Of the campaign.

    Returns:
        As `executive_metrics`.
    """
    metrics = []
    for one in tables.page.verdicts:
        qini = tables.page.metric("qini", one.level)
        if one.ranked:
            words = f"The order of the units is right for {one.level}: treat the best first."
        elif np.isfinite(qini["value"]):
            words = f"The order for {one.level} may be chance: do not choose by it until the interval leaves zero."
        else:
            words = f"Too few units to judge the order for {one.level}."
        parts = (qini["value"], qini["lower"], qini["upper"])
        metrics.append(
            Metric(
                f"Qini of {one.level}",
                words,
                "uplift_metrics",
                *parts,
                scale=tables.scale,
                unit=tables.unit,
                tone="good" if one.ranked else "warn",
            )
        )
    for level, (width, n) in tables.widths.items():
        effect = abs(tables.page.metric("ate", level)["value"])
        words = f"The 95 % interval of one unit's effect is {short(width * tables.scale)} {tables.unit} wide on average"
        if np.isfinite(effect) and effect > 0:
            words += f", {short(width / effect)} times the average effect"
        words += ": trust groups of units more than single ones."
        metrics.append(
            Metric(
                f"Interval width, {level}",
                words,
                "uplift_scores",
                width,
                n=float(n),
                scale=tables.scale,
                unit=tables.unit,
            )
        )
    features = [_features_metric(tables, level) for level in tables.page.levels]
    return [*metrics, _retrain_metric(tables), _canary_metric(tables), *features]


def _retrain_metric(tables: CampaignTables) -> Metric:
    rows = tables.rows("retrain")
    if rows.empty:
        return Metric("Retrains", "No retrain was considered yet: run `uplift retrain` after monitoring.")
    known = rows[rows["window_end"].notna()]
    if known.empty:
        return Metric("Retrains", "No decision to retrain names its window: run `uplift retrain` again.")
    last = known[known["window_end"] == known["window_end"].max()]
    decided = last[last["check"] == "decision"]
    row = (decided if len(decided) else last).iloc[-1]
    tone: Tone = "warn" if row["decision"] in ("blocked", "stopped", "rejected") else "good"
    return Metric(
        "Retrains",
        f"The last decision was {str(row['decision']).replace('_', ' ')}: {row['sentence']}",
        "retrain",
        float(rows["run_id"].nunique()),
        unit="decisions",
        tone=tone,
    )


def _canary_metric(tables: CampaignTables) -> Metric:
    row = tables.last_canary
    if row is None:
        return Metric("Canaries", "No version was tried on a slice yet, so none is on trial.")
    words = f"{row['canary']}: version {row['challenger']} against {row['champion']} is {row['state']}."
    if isinstance(row["reason"], str) and row["reason"]:
        words += f" {row['reason']}"
    tone: Tone = "bad" if "back" in str(row["state"]) else "plain"
    return Metric("Canaries", words, "canary", float(row["share"]), scale=100.0, unit="% of units a slice", tone=tone)


def _features_metric(tables: CampaignTables, level: str) -> Metric:
    """The feature that moves a level's predictions most, by SHAP, and whether the hold-out bears it out."""
    label, rows = f"Top features of {level}", tables.page.driver_rows(level)
    if rows.empty:
        words = "No SHAP values are known: run `uplift lift` with scores of a causal forest, whose trees have splits."
        return Metric(label, words)
    first, *more = rows.to_dict("records")
    words = f"By SHAP, {first['feature']} moves the model's predictions most: by this much, on average over units."
    words += f" Then: {', '.join(str(one['feature']) for one in more)}." if more else ""
    tone: Tone = "good" if first["proven"] and first["stable"] else "warn"
    words += (
        f" The hold-out bears {first['feature']} out."
        if first["proven"]
        else f" The hold-out does not bear {first['feature']} out: promise nothing."
    )
    size, n = float(first["mean_shap"]), float(first["n"])
    return Metric(label, words, "lift_driver", size, n=n, scale=tables.scale, unit=tables.unit, tone=tone)


def segment_names(tables: CampaignTables) -> Sequence[str]:
    """Cuts of gold.lift_table in their order: all, then segments and crossings."""
    return [cut for cut in dict.fromkeys(tables.page.lift["cut"]) if cut != "decile"]
