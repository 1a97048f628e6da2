"""The pages as HTML that stands alone (`dashboard_pages`), of one or more campaigns, and a server of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from uplift_spark.dashboards.metrics import (
    Metric,
    campaign_decision,
    debug_metrics,
    executive_metrics,
    no_signal,
    oncall_metrics,
    segment_names,
)
from uplift_spark.dashboards.tables import ALERT_DAYS, CampaignTables
from uplift_spark.dashboards.whatif import whatif_script
from uplift_spark.evaluation.drivers import AGREE, driver_words
from uplift_spark.evaluation.html_page import between, coded, figure, package_text, page_template, short
from uplift_spark.evaluation.lift_tables import SEGMENT
from uplift_spark.evaluation.report import drivers_svg
from uplift_spark.evaluation.svg import bars_svg, curves_svg, histogram_svg, interval_svg, sizes_svg, trend_svg
from uplift_spark.gold_views import LEAST_IN_GROUP
from uplift_spark.monitoring.kpis import FORECAST_KPI
from uplift_spark.roles import RUN_ID, TREATMENT, UNIT, benefit_name
from uplift_spark.spark_versions import sql_text

PageKind = Literal["executive", "oncall", "debug"]
PAGES: dict[PageKind, tuple[str, str]] = {
    "executive": ("executive.html", "Executive"),
    "oncall": ("oncall.html", "On call"),
    "debug": ("debug.html", "Debug"),
}
"""{page: (file, title)}."""
_PACKAGE = "uplift_spark.dashboards"
_MOST_DRIVER_ROWS = 12
_MOST_ROWS = 200  # of a table below the figures
_APART = 0.05
_MOST_DRIVERS = 2  # sentences on the page of those who decide


@dataclass(frozen=True)
class RowsTable:
    """A table of a page.

    Cells are texts (the first `texts` of a row) or figures that name their table; `low` marks rows of few units. Of a
    `query` the reader fills in whom it is about, in the place of 'ID'.
    """

    title: str
    sentence: str
    heads: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    texts: int = 1
    query: str = ""


def dashboard_pages(campaigns: Sequence[CampaignTables], version: str = "") -> dict[str, str]:
    """Write the pages.

    Args:
        campaigns: Tables of each campaign; names may hold any text, which is escaped.
        version: Of the tables, where a server gives the pages: they load anew when it changes.

    Returns:
        {file: HTML}; each page stands alone, for screens from 320 pixels and for paper, light and dark.
    """
    return {file: _page_of(kind, campaigns, version) for kind, (file, _) in PAGES.items()}


def _page_of(kind: PageKind, campaigns: Sequence[CampaignTables], version: str) -> str:
    data = {"version": version, "campaigns": [_facts(kind, one) for one in campaigns]}
    packed = gzip.compress(json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), 9, mtime=0)
    style = Markup(package_text(_PACKAGE, "dashboard.css"))
    script = Markup(whatif_script() + package_text(_PACKAGE, "dashboard.js"))
    several = len(campaigns) > 1 and kind == "executive"
    return page_template(_PACKAGE, "page.html.j2").render(
        kind=kind, title=PAGES[kind][1], pages=list(PAGES.values()), names=", ".join(one.campaign for one in campaigns),
        panels=[_panel(kind, one) for one in campaigns], overview=_overview(campaigns) if several else None,
        version=version, blob=base64.b64encode(packed).decode(), script=script, more_style=style,
        written=f"{max(one.now for one in campaigns):%Y-%m-%d %H:%M} UTC" if campaigns else "",
    )  # fmt: skip


def _panel(kind: PageKind, tables: CampaignTables) -> dict[str, Any]:
    metrics = {"executive": executive_metrics, "oncall": oncall_metrics, "debug": debug_metrics}[kind](tables)
    pictures = _debug_pictures(tables) if kind == "debug" else []
    whole = {"executive": _executive_tables, "oncall": _oncall_tables, "debug": _debug_tables}[kind](tables)
    less = " (less is better)" if tables.direction == "decrease" else ""
    versions = sorted({str(v) for v in tables.page.lift.get("model_version", [])})
    model = f" · model version {', '.join(versions)}" if versions else ""
    other, decision = tables.policy.other, campaign_decision(tables)
    return {
        "name": tables.campaign, "about": f"outcome {tables.outcome}{less} · compared with {tables.control}{model}",
        "decision": decision, "plan_words": _plan_words(tables, decision.action), "signal": no_signal(tables),
        "why": next((one.title for one in whole if one.query), ""),
        "simulated": tables.simulated,
        "tiles": [_tile(one, tables) for one in metrics], "unit": tables.unit,
        "pictures": pictures, "pictures_title": "Does the model rank units rightly?",
        "pictures_sentence": "Bars that fall from left to right say yes; bars that jump say that the order is chance. "
        "Lines and bands: 95 % intervals. Diamonds: predicted effects. Dashed: units in random order.",
        "tables": whole, "tables_title": "Behind the figures", "has_segments": len(tables.page.lift) > 0,
        "has_whatif": tables.whatif is not None, "why_not": tables.why_not,
        "whatif_words": "Move a slider: the plan is made anew, here, from sums of the scores and of the hold-out."
        + (f" Limits beside the budget do not count here ({', '.join(other)}): use `uplift simulate`." if other else "")
        + (
            f" The cost of {', '.join(tables.policy.by_unit)} differs by unit: one cost counts for all here."
            if tables.policy.by_unit else ""
        )
        + " Units with almost equal predictions are planned together, so its figures differ a little from the tables'."
        + (f" {tables.why_not}" if tables.why_not else ""),
    }  # fmt: skip


def _tile(metric: Metric, tables: CampaignTables) -> dict[str, Any]:
    level = _kpi_level(tables, metric.kpi not in ("", FORECAST_KPI))
    dot = "hollow" if metric.low else "dot"
    bar = interval_svg(metric.value, metric.lower, metric.upper, metric.scale, level, dot)
    return {"metric": metric, "bar": bar, "trend": _trend(metric, tables), "level": level}


def _kpi_level(tables: CampaignTables, of_kpi: bool = True) -> str:
    """The level of an interval, in words: those of KPIs are wider, because nobody is to be called for noise."""
    return f"{100 * tables.kpi_level if of_kpi else 95:g} %"


def _trend(metric: Metric, tables: CampaignTables) -> Markup:
    if not metric.kpi:
        return Markup("")
    rows = tables.kpis[(tables.kpis["kpi"] == metric.kpi) & (tables.kpis["cut"] == "all")]
    return trend_svg(rows, metric.scale, f"{metric.label} over {len(rows)} windows") if len(rows) else Markup("")


# --------------------------------------------------------------------------------------------------------------------
# What the script reads.


def _facts(kind: PageKind, tables: CampaignTables) -> dict[str, Any]:
    if kind == "oncall":
        return {}
    levels, best = tables.page.levels, tables.verdict
    facts: dict[str, Any] = {
        "levels": levels, "unit": tables.unit, "control": tables.control,
        "best": levels.index(best.level) if best is not None else 0,
    }  # fmt: skip
    if len(tables.page.lift):
        facts["cuts"] = {cut: _cut_facts(tables, cut) for cut in segment_names(tables)}
    if kind == "executive" and tables.whatif is not None:
        facts["whatif"] = _whatif_facts(tables)
    return facts


def _cut_facts(tables: CampaignTables, cut: str) -> dict[str, Any]:
    page = tables.page
    parts = [page.rows(level, cut).drop_duplicates("bucket").set_index("bucket") for level in page.levels]
    buckets = list(dict.fromkeys(bucket for part in parts for bucket in part.index))
    return {
        "buckets": [str(one) for one in buckets],
        "levels": [_bucket_facts(p, buckets, tables.scale) for p in parts],
    }


def _bucket_facts(part: pd.DataFrame, buckets: Sequence[str], scale: float) -> dict[str, list[Any]]:
    rows = part.reindex(list(buckets))
    counts = {"n": "n", "treated": "n_treated", "control": "n_control"}
    effects = {"effect": "uplift", "lower": "uplift_lower", "upper": "uplift_upper", "predicted": "predicted_uplift"}
    facts: dict[str, list[Any]] = {name: rows[column].fillna(0).astype(int).tolist() for name, column in counts.items()}
    if facts["n"] == [treated + control for treated, control in zip(facts["treated"], facts["control"], strict=True)]:
        del facts["n"]  # the page adds them up
    facts |= {name: [_three(value * scale) for value in rows[column].astype(float)] for name, column in effects.items()}
    facts["low"] = [int(value is True or value == 1) for value in rows["low_sample"]]
    facts["apart"] = [int(value < _APART) for value in rows["different_p"].astype(float).fillna(1)]
    return facts


def _three(value: float) -> float | int | None:
    """The number that `short` prints: what the page shows of it anyway; None where it is not known."""
    if not np.isfinite(value):
        return None
    short_value = float(short(value).replace(",", ""))
    return int(short_value) if short_value.is_integer() else short_value


def _known(value: float | None) -> float | None:
    """None for what is not known or without limit: JSON has neither."""
    return float(value) if value is not None and np.isfinite(value) else None


def _whatif_facts(tables: CampaignTables) -> dict[str, Any]:
    policy, outcome = tables.policy, tables.outcome
    levels = list(tables.whatif["levels"]) if tables.whatif is not None else []
    value = float(policy.value.get(outcome, np.nan)) if policy.net else 1.0
    settings = {
        "budget": _known(policy.budget), "value": _known(value) or 0.0,
        "cost": [float(policy.cost.get(level, 0.0)) for level in levels],
        "levels": [True] * len(levels), "safe": policy.safe, "net": policy.net,
    }  # fmt: skip
    curve = tables.rows("policy_curve")
    dots = [
        {name: _three(float(row[column])) for name, column in (
            ("cost", "cost"), ("observed", "observed"), ("lower", "observed_lower"), ("upper", "observed_upper"))}
        for row in curve.to_dict("records")
    ]  # fmt: skip
    unit = "money" if policy.net else benefit_name(outcome, tables.direction)
    sums = {name: part for name, part in (tables.whatif or {}).items() if name != "levels"}
    names = {"levels": levels, "outcome": outcome}
    return {"sums": sums, "settings": settings, "names": names, "curve": dots, "gainUnit": unit}


# --------------------------------------------------------------------------------------------------------------------
# Tables below the figures.


def _overview(campaigns: Sequence[CampaignTables]) -> RowsTable:
    rows = []
    for one in campaigns:
        decision, best, plan = campaign_decision(one), one.verdict, one.plan
        effect = {"value": np.nan, "lower": np.nan, "upper": np.nan} if best is None else best.effect
        tag = Markup('<span class="tag {}">{}</span>').format(decision.tone, decision.action)
        cells = (
            Markup("<bdi>{}</bdi>").format(one.campaign), tag, "" if best is None else best.level,
            figure(effect["value"], "uplift_metrics", one.scale),
            between(effect["lower"], effect["upper"], "uplift_metrics", one.scale),
            figure(np.nan if plan is None else plan["cost"], "policy_curve"),
        )  # fmt: skip
        rows.append({"cells": cells, "low": False})
    actions = [campaign_decision(one).action for one in campaigns]
    counts = ", ".join(
        f"{actions.count(action)} {action}" for action in ("expand", "hold", "stop") if action in actions
    )
    heads = ("campaign", "decision", "level", "uplift", "95 % interval", "spend of the plan")
    words = f"{counts}. Single campaigns' gains do not add up where they reach the same people."
    return RowsTable("Decisions", words, heads, tuple(rows))


def _executive_tables(tables: CampaignTables) -> list[RowsTable]:
    curve, kept = tables.rows("policy_curve"), []
    source = "policy_curve"
    for row in curve.sort_values("budget").to_dict("records") if len(curve) else ():
        gains = between(float(row["observed_lower"]), float(row["observed_upper"]), source)
        cells = [figure(float(row[name]), source) for name in ("budget", "treated", "cost", "gain", "observed")]
        kept.append({"cells": (*cells, gains), "low": False})
    heads = ("budget", "units treated", "cost", "gain, predicted", "gain, by the hold-out", "95 % interval")
    words = "Plans of other budgets at today's costs." if kept else "No plan was made with a budget."
    words += _half_words(tables) + _prediction_words(tables.plan)
    return [
        *_decided_tables(tables),
        *_driver_sentences(tables),
        RowsTable("What a budget brings", words, heads, tuple(kept)),
        _scenarios_table(tables),
    ]


def _prediction_words(plan: Mapping[str, float] | None) -> str:
    """Which of two gains counts, where the prediction lies outside the hold-out's interval; else empty."""
    if plan is None or not np.isfinite(plan["observed_lower"]):
        return ""
    if plan["observed_lower"] <= plan["gain"] <= plan["observed_upper"]:
        return ""
    side = "less" if plan["gain"] < plan["observed_lower"] else "more"
    return f" The model predicts {side} than the hold-out shows: decide by the hold-out, do not promise the prediction."


def _half_words(tables: CampaignTables) -> str:
    """What half the budget of the plan brings, and whether the plan spends its budget at all."""
    plan, curve = tables.plan, tables.rows("policy_curve")
    if plan is None:
        return ""
    budget, cost = plan["budget"], plan["cost"]
    words = f" The plan's budget is {short(budget)}."
    half = curve[np.isclose(curve["budget"].astype(float), budget / 2)].head(1).to_dict("records")
    if half:
        words += f" Half of it, {short(budget / 2)}, brings {_gain_words(half[0])}; all of it {_gain_words(plan)}."
    if cost < 0.99 * budget:
        words += (
            f" The plan spends {short(cost)} of it, so any budget from there on brings the same. For half of what is "
            f"spent, set the slider Budget to {short(cost / 2)}."
        )
    return words


def _gain_words(row: Mapping[Any, Any]) -> str:
    words = f"{short(float(row['gain']))} by prediction"
    if not np.isfinite(float(row["observed_lower"])):
        return words
    observed, lower, upper = (short(float(row[name])) for name in ("observed", "observed_lower", "observed_upper"))
    return f"{words} and {observed} by the hold-out (95 % interval {lower} to {upper})"


def _treated_by_plan(tables: CampaignTables) -> dict[str, int]:
    """{level: units that the plan gives it}, without the control."""
    rows = tables.decisions
    if rows is None or rows.empty:
        return {}
    sums = rows[rows["treatment"] != tables.control].groupby("treatment")["n"].sum()
    return {str(level): int(n) for level, n in sums.items()}


def _listed(treated: Mapping[str, int]) -> str:
    return ", ".join(f"{level} to {n:,} units" for level, n in treated.items()) or "nothing to anybody"


def _plan_words(tables: CampaignTables, action: str) -> str:
    """What the plan has to do with the decision; empty without a plan that treats somebody."""
    if not (treated := _treated_by_plan(tables)):
        return ""
    gives = f"The plan below gives {_listed(treated)}"
    return {
        "expand": f"{gives}: these are whom to treat; `uplift export --plan --to FOLDER` writes the ids of those who "
        "may be contacted.",
        "hold": f"{gives}. That is the best choice by prediction, for as long as the campaign goes on as it is; the "
        "decision says whether it may grow.",
        "stop": f"{gives}. It is not to be carried out.",
    }[action]


def _choice_words(tables: CampaignTables, treated: Mapping[str, int]) -> str:
    """Why levels go to nobody, and whether the hold-out shows that those chosen gain more than the others."""
    words, idle = "", [level for level in tables.page.levels if level not in treated]
    if treated and idle:
        words += (
            f" {' and '.join(idle)} {'goes' if len(idle) == 1 else 'go'} to nobody: within the limits each unit is "
            "predicted to gain more from another level, or from none."
        )
    ranked = {one.level: one.ranked for one in tables.page.verdicts}
    for level in (level for level in treated if level in ranked):
        words += (
            f" The hold-out shows that {level} works better on some than on others: the order of the units is right."
            if ranked[level]
            else f" The hold-out does not show that {level} works better on those chosen than on the others (Qini, on "
            "the debug page): the choice rests on the prediction alone."
        )
    return words


_WHY = "Why one unit gets what it gets"


def _why_table(tables: CampaignTables) -> RowsTable:
    """How one unit's decision is looked up: pages name nobody."""
    columns = ", ".join(f"d.{name}" for name in (TREATMENT, "reason", "gain", "cost"))
    effects = ", ".join(f"s.{name}" for name in ("uplift", "uplift_lower", "uplift_upper", "low_support"))
    query = (
        f"SELECT {columns}, s.{TREATMENT} AS level, {effects} FROM gold.policy_decisions d JOIN gold.uplift_scores s "
        f"ON s.{UNIT} = d.{UNIT} AND s.model_version = d.model_version WHERE d.{UNIT} = 'ID' "
        f"AND d.{RUN_ID} = {sql_text(tables.plan_run)} AND s.{RUN_ID} = {sql_text(tables.scores_run)}"
    )
    value = tables.policy.value.get(tables.outcome)
    worth = ""
    if tables.policy.net and value is not None and tables.direction == "increase":
        worth = (
            f" A level is worth its effect times {short(value)}, less its cost. Within the limits a unit gets the one "
            "that is worth most, or none."
        )
    words = (
        "No page names anybody. Write a unit's id below, put the campaign's configuration in place of CAMPAIGN.yaml, "
        "and run the command: it prints a row a level, the predicted effect on this unit with its 95 % interval, "
        "beside what the plan gives it, the reason, the gain and the cost."
        f"{worth} Where `governance.audit` is set, `uplift audit explain ID` also says prices, rules and consent, and "
        "proves the entry, and which features move the prediction most."
    )
    return RowsTable(_WHY, words, query=query)


def _decided_tables(tables: CampaignTables) -> list[RowsTable]:
    """Whom the plan treats with what, and why not the others; sums over few units are left out."""
    title, rows, source = "Whom the plan treats, and why", tables.decisions, "policy_decisions"
    if rows is None or rows.empty:
        return [RowsTable(title, "The plan's decisions were not read." if rows is None else "There is no plan.")]
    kept = []
    for row in rows.sort_values("n", ascending=False, kind="stable").to_dict("records"):
        n, few = float(row["n"]), row["n"] < LEAST_IN_GROUP
        sums = (np.nan if few else _number(row[name]) for name in ("gain", "cost"))
        cells = (*(_text(row[name]) for name in ("treatment", "reason")), *(figure(one, source) for one in (n, *sums)))
        kept.append({"cells": cells, "low": few})
    treated = _treated_by_plan(tables)
    words = (
        f"The plan gives {_listed(treated)}: by prediction those gain most for their cost within the limits."
        f"{_choice_words(tables, treated)}"
    )
    heads = ("treatment", "reason", "units", "gain, predicted", "cost")
    return [RowsTable(title, words, heads, tuple(kept), 2), *([_why_table(tables)] if tables.scores_run else [])]


_DRIVERS = "What drives lift"


def _driver_sentences(tables: CampaignTables) -> list[RowsTable]:
    """The drivers of the level to use, in words."""
    best = tables.verdict
    sentences = [] if best is None else driver_words(tables.page.driver_rows(best.level))
    return [RowsTable(_DRIVERS, " ".join(sentences[:_MOST_DRIVERS]))] if sentences else []


def _drivers_table(tables: CampaignTables) -> RowsTable:
    """What the hold-out says of the drivers of the level to use, over all units and in segments."""
    source, scale, kept = "lift_driver", tables.scale, []
    if tables.page.drivers.empty:
        return RowsTable(_DRIVERS, "No driver was measured: run `uplift lift` with scores of a causal forest.")
    level = tables.page.levels[0] if tables.verdict is None else tables.verdict.level
    rows = tables.page.drivers[tables.page.drivers["treatment"] == level]
    for row in rows.head(_MOST_DRIVER_ROWS).to_dict("records"):
        where = "all units" if row["cut"] == "all" else f"{str(row['cut']).removeprefix(SEGMENT)} {row['bucket']}"
        said = f"{'proven' if row['proven'] else 'not proven'}, {'stable' if row['stable'] else 'not stable'}"
        texts = (row["treatment"], row["condition"], where, said)
        effects = (figure(float(row[name]), source, scale) for name in ("effect_meets", "effect_misses", "gain"))
        interval = between(float(row["gain_lower"]), float(row["gain_upper"]), source, scale)
        counts = (figure(float(row[name]), source) for name in ("n_meets", "n", "adjusted_p"))
        agreement = figure(float(row["agreement"]), source, 100.0)
        shap = figure(float(row["mean_shap"]), source, scale)
        cells = (*map(_text, texts), shap, *effects, interval, agreement, *counts)
        kept.append({"cells": cells, "low": bool(row["low_sample"])})
    heads = (
        *("level", "units with", "among", "difference is", "SHAP"),
        *("effect", "on others", "difference", "95 % interval", "% of refits agree", "n", "n among", "p"),
    )
    words = " ".join(driver_words(tables.page.driver_rows(level))) + (
        " Training chose features and conditions, the hold-out measured them; intervals hold together over all units, "
        f"and over all segments. Stable is what {AGREE:.0%} of refits agree on. These are differences between units: "
        f"changing a feature need not change the effect. Effects, differences and SHAP are in {tables.unit}."
    )
    if len(tables.page.drivers) > len(kept):
        words += (
            f" The table has {len(kept)} of {len(tables.page.drivers)} rows of gold.v_driver: the first of {level}."
        )
    return RowsTable(_DRIVERS, words, heads, tuple(kept), 4)


def _scenarios_table(tables: CampaignTables) -> RowsTable:
    rows, source, kept = tables.rows("policy_scenarios"), "policy_scenarios", []
    if rows.empty:
        return RowsTable("Scenarios", "None was simulated yet: name some in `scenarios`, and run `uplift simulate`.")
    for row in rows[rows["treatment"] == "any"].to_dict("records"):
        cells = [figure(float(row[name]), source) for name in ("units", "cost", "gain", "observed")]
        interval = between(float(row["observed_lower"]), float(row["observed_upper"]), source)
        kept.append({"cells": (str(row["scenario"]), *cells, interval), "low": False})
    heads = ("scenario", "units", "cost", "gain, predicted", "gain, by the hold-out", "95 % interval")
    return RowsTable(
        "Scenarios", "What the plan and its scenarios would bring, by `uplift simulate`.", heads, tuple(kept)
    )


def _oncall_tables(tables: CampaignTables) -> list[RowsTable]:
    alerts, findings = tables.open_alerts, tables.of_newest_window("findings")
    words = (
        "Alerts that are neither over nor closed, the oldest first."
        if len(alerts)
        else _nothing(tables, "alerts", "No alert is open.")
    )
    columns = ("severity", "rule", "event", "at", "summary", "by")
    shown = [_text_table("Open alerts", words, alerts, columns)]
    recent = tables.recent_alerts
    words = _nothing(tables, "alerts", f"No alert fired or ended in the last {ALERT_DAYS} days.")
    if len(recent):
        words = f"What alerts did in the last {ALERT_DAYS} days, the newest first: also what broke and is over."
    shown.append(_text_table("What broke lately", words, recent, ("at", "severity", "rule", "event", "summary")))
    words = (
        "What is wrong with the window, and what to do."
        if len(findings)
        else (_nothing(tables, "findings", "The newest window has no finding."))
    )
    shown.append(_text_table("Findings", words, findings, ("severity", "finding", "about", "sentence", "action")))
    parts = tables.kpis_now[tables.kpis_now["cut"] != "all"] if len(tables.kpis_now) else tables.kpis_now
    rows = []
    for row in parts.head(_MOST_ROWS).to_dict("records"):
        scale = 100.0 if row["unit"] == "share" else 1.0
        unit = "%" if row["unit"] == "share" else str(row["unit"])
        cells = (str(row["kpi"]).replace("_", " "), str(row["cut"]), unit, figure(_number(row["value"]), "kpi", scale),
                 between(_number(row["lower"]), _number(row["upper"]), "kpi", scale),
                 figure(_number(row["n"]), "kpi"), str(row["state"]).replace("_", " "))  # fmt: skip
        rows.append({"cells": cells, "low": row["state"] in ("too_few", "no_data")})
    heads = ("figure", "level, outcome or source", "in", "value", f"{_kpi_level(tables)} interval", "n", "state")
    words = "" if rows else "No figure was measured by level, outcome or source."
    return [*shown, RowsTable("Figures by level, outcome and source", words, heads, tuple(rows), 3)]


def _nothing(tables: CampaignTables, name: str, words: str) -> str:
    """`words` where the monitor wrote and had nothing to say; else that it never ran."""
    return words if name in tables.frames else "Nothing was monitored yet."


def _debug_pictures(tables: CampaignTables) -> list[list[Markup]]:
    """Of each level its tenths, its curve, the distribution of its scores, and its top features."""
    scale, rows = tables.scale, []
    for level in tables.page.levels:
        label = f"effect of {level} by tenth, {tables.unit}"
        pictures = [bars_svg(tables.page.rows(level, "decile"), scale, label)]
        curve = tables.page.curve
        mine = curve[(curve["treatment"] == level) & (curve["outcome"] == tables.page.outcome)]
        pictures.append(curves_svg(level, mine, scale, tables.unit))
        if level in tables.histogram:
            edges, counts = tables.histogram[level]
            pictures.append(histogram_svg(edges, counts, scale, f"{level}: units by predicted effect, {tables.unit}"))
        top = tables.page.driver_rows(level)
        label = f"{level}: top features by mean size of SHAP, {tables.unit}"
        pictures.append(sizes_svg([str(one) for one in top["feature"]], top["mean_shap"].to_list(), scale, label))
        pictures.append(drivers_svg(top, scale, tables.unit, f"{level}: what the drivers make of its effect"))
        rows.append([picture for picture in pictures if picture])
    return [row for row in rows if row]


def _debug_tables(tables: CampaignTables) -> list[RowsTable]:
    drift = tables.of_newest_window("drift")
    shown = [_arms_table(tables), _drivers_table(tables)]
    words = (
        "Distance of each column from the training set, the largest first."
        if len(drift)
        else ("No window was monitored yet, so drift is not known.")
    )
    if len(drift):
        drift = drift.sort_values("distance", ascending=False)
    figures = ("n", "distance", "distance_most", "adjusted_p", "stability")
    shown.append(_text_table("Drift by column", words, drift, ("name", "state"), figures, "drift"))
    retrain = tables.rows("retrain")
    words = (
        "Each check of each decision to retrain, newest first." if len(retrain) else "No retrain was considered yet."
    )
    if len(retrain):
        retrain = retrain.sort_values("window_end", ascending=False, kind="stable")
    columns = ("window_end", "decision", "check", "state", "sentence")
    shown.append(_text_table("Retrains", words, retrain, columns, ("figure", "threshold"), "retrain"))
    canary = tables.rows("canary")
    words = "Each step of each canary and rollback." if len(canary) else "No version was tried on a slice yet."
    steps = ("at", "canary", "state", "verdict", "champion", "challenger", "reason")
    shown.append(_text_table("Canaries and rollbacks", words, canary, steps))
    rows = [{"cells": (name, f"{n:,}", str(number)), "low": False} for name, n, number in tables.versions]
    words = (
        "Rows and Delta version of every table that the figures rest on."
        if rows
        else ("Versions were not read: the tables are not in a folder of this machine.")
    )
    return [*shown, RowsTable("Data versions", words, ("table", "rows", "version"), tuple(rows))]


def _arms_table(tables: CampaignTables) -> RowsTable:
    source, rows = "lift_table", []
    whole = tables.page.lift[tables.page.lift["cut"] == "all"]
    for row in whole.to_dict("records"):
        low, scale = bool(row.get("low_sample")), 100.0 if row["outcome"] in tables.page.rates else 1.0
        counts = [figure(float(row[name]), source) for name in ("n_treated", "n_control")]
        means = [figure(float(row[name]), source, scale) for name in ("mean_treated", "mean_control", "uplift")]
        interval = between(float(row["uplift_lower"]), float(row["uplift_upper"]), source, scale)
        cells = (row["treatment"], row["outcome"], *counts, *means, interval)
        rows.append({"cells": cells, "low": low})
    heads = ("level", "outcome", "n treated", "n control", "mean treated", "mean control", "effect", "95 % interval")
    words = "Units of the hold-out by arm; of outcomes of 0 and 1 in per cent. Counts far from the design are a fault."
    return RowsTable(
        "Counts by arm", words if rows else "Nothing was evaluated yet: run `uplift lift`.", heads, tuple(rows)
    )


def _text_table(
    title: str, words: str, rows: pd.DataFrame, texts: Sequence[str], figures: Sequence[str] = (), source: str = ""
) -> RowsTable:
    """A table of columns that are texts, then of such that are figures."""
    if rows.empty:
        return RowsTable(title, words)
    kept = [
        {
            "cells": (*(_text(row.get(c)) for c in texts), *(figure(_number(row.get(c)), source) for c in figures)),
            "low": False,
        }
        for row in rows.head(_MOST_ROWS).to_dict("records")
    ]
    more = f" The first {_MOST_ROWS} of {len(rows):,} are shown." if len(rows) > _MOST_ROWS else ""
    heads = tuple(name.replace("_", " ") for name in (*texts, *figures))
    return RowsTable(title, words + more, heads, tuple(kept), len(texts))


def _text(value: Any) -> Markup:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return Markup("")
    if isinstance(value, pd.Timestamp):
        return Markup('<span class="at">{:%Y-%m-%d %H:%M} UTC</span>').format(value)
    return Markup("<bdi>{}</bdi>").format(coded(value))


def _number(value: Any) -> float:
    return np.nan if value is None or pd.isna(value) else float(value)


# --------------------------------------------------------------------------------------------------------------------
# Pages over HTTP on this machine alone, written anew when the tables change.

HOST = "127.0.0.1"
_HOST = re.compile(rf"(localhost|{re.escape(HOST)})(:[0-9]{{1,5}})?", re.IGNORECASE)  # as browsers name it


PATIENCE = 2.0
"""Seconds that a reader waits for pages of new tables."""


def _one_line(error: Exception) -> str:
    """What an error says first: engines go on with plans and stacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class FreshPages:
    """Pages that follow their tables.

    Args:
        fingerprint: Gives a text that changes with the tables.
        make: Makes {file: HTML} of the tables whose fingerprint it is called with.
        seconds: Between two looks at the tables.
    """

    def __init__(
        self, fingerprint: Callable[[], str], make: Callable[[str], Mapping[str, str]], seconds: float = 5.0
    ) -> None:
        self._fingerprint, self._make, self._seconds = fingerprint, make, seconds
        self._lock, self._wanted, self._refreshed = threading.Lock(), threading.Event(), threading.Event()
        self._now: tuple[str, Mapping[str, str]] = "", {}
        self._problem: Exception | None = None
        self._checked, self._followed = float("-inf"), False

    def current(self) -> tuple[str, Mapping[str, str]]:
        """The version of the tables and the pages of it; at most every few seconds tables are looked at.

        While another thread follows the tables nobody waits for it longer than `PATIENCE`: the pages at hand are given.
        Raises whatever reading the tables raised.
        """
        if not self._followed:
            self.refresh()
        elif self._is_due():
            self._refreshed.clear()
            self._wanted.set()
            self._refreshed.wait(PATIENCE)
        if self._problem is not None:
            raise self._problem
        return self._now

    def follow(self) -> None:
        """Look at the tables in this thread whenever a reader wants them, until it is interrupted.

        The main thread can be interrupted while it reads; Python cannot end while another one is in an engine's code.
        """
        self._followed = True
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self.refresh()
            self._refreshed.set()

    def refresh(self) -> None:
        """Make the pages anew if the tables have changed; what failed is kept for readers, and tried again later."""
        with self._lock:
            if not self._is_due():
                return
            try:
                version = self._fingerprint()
                if version != self._now[0]:
                    self._now = version, dict(self._make(version))
                self._problem = None
            except Exception as error:
                self._problem = error
            self._checked = time.monotonic()

    def _is_due(self) -> bool:
        return time.monotonic() - self._checked >= self._seconds


def page_server(pages: FreshPages, port: int) -> ThreadingHTTPServer:
    """Make a server of the pages on the loopback interface.

    Args:
        pages: What it serves: each file by its name, and `version`.
        port: 0 for any that is free.

    Returns:
        The server; `serve_forever` runs it.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        server_version, sys_version = "uplift", ""

        def do_GET(self) -> None:
            """Answer a page, its version, or 404; 403 where another name leads here (DNS rebinding)."""
            hosts = self.headers.get_all("Host") or [""]
            if len(hosts) > 1 or not _HOST.fullmatch(hosts[0]):
                self._answer(HTTPStatus.FORBIDDEN, "this server answers to localhost only")
                return
            try:
                version, files = pages.current()
            except Exception as error:  # the page in the browser stays; a later call tries again
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"the tables cannot be read: {_one_line(error)}")
                return
            name = self.path.partition("?")[0].lstrip("/") or next(iter(files), "")
            if name == "version":
                self._answer(HTTPStatus.OK, version)
            elif name in files:
                self._answer(HTTPStatus.OK, files[name], "text/html; charset=utf-8")
            else:
                self._answer(HTTPStatus(404), f"there is no page of this name: {', '.join(files)}")

        do_HEAD = do_GET

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """Say in a sentence what is wrong with a request; nothing of it is repeated."""
            status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
            self.close_connection = True
            self._answer(status, f"{status.phrase.lower()}: pages are read by GET or HEAD")

        def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = text.encode(errors="replace")
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            if status == HTTPStatus.METHOD_NOT_ALLOWED:
                headers["Allow"] = "GET, HEAD"
            for key, value in (*headers.items(), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY")):
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    return _PageServer((HOST, port), Handler)


class _PageServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
