"""The three pages as AI/BI dashboards of Databricks (`lakeview_files`): SQL over gold views, and what shows its rows.

Campaign and outcome are parameters of the datasets. The catalog stands in their text, and so do the views' queries: a
dashboard works where nobody has created the views.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from uplift_spark.gold_views import GOLD_VIEWS, view_query
from uplift_spark.roles import CAMPAIGN, TREATMENT
from uplift_spark.spark_versions import quoted

WidgetKind = Literal["counter", "table", "bar", "line"]
_WIDE = 6  # columns of the grid
_VERSIONS: Mapping[WidgetKind, int] = {"counter": 2, "table": 2, "bar": 3, "line": 3}
_HEIGHTS: Mapping[WidgetKind, int] = {"counter": 3, "table": 6, "bar": 6, "line": 6}


@dataclass(frozen=True)
class LakeviewParameters:
    """What the datasets are about; all but the catalog are defaults of parameters that a reader can change."""

    catalog: str
    campaign: str
    outcome: str


@dataclass(frozen=True)
class _Widget:
    """What shows a dataset: of a table all `fields`, of a counter the first, of charts x, y and perhaps a colour."""

    kind: WidgetKind
    title: str
    sentence: str
    dataset: str
    fields: tuple[str, ...]
    width: int = _WIDE
    x_type: str = "categorical"


_CATALOG = "<catalog>"  # a name in SQL is no parameter that every engine takes: the file is written for one catalog
_MINE = f"{CAMPAIGN} = :campaign"
_OF_LIFT = f"WHERE {_MINE} AND outcome = :outcome"

_QUERIES: Mapping[str, str] = {
    "net_of_costs": "SELECT as_of, cost, gain, gain_lower, gain_upper, net, net_lower, net_upper, budget, forecast, "
    f"forecast_lower, forecast_upper, note FROM v_roi WHERE {_MINE} AND model_version = 'all'",
    "spending": f"SELECT day, kind, sum(amount) AS amount FROM v_costs WHERE {_MINE} GROUP BY day, kind ORDER BY day",
    "plans": "SELECT budget, treated, cost, gain, observed, observed_lower, observed_upper "
    f"FROM v_plan_curve WHERE {_MINE} ORDER BY budget",
    # A sum that leaves out the few units of one version would be no sum.
    "decisions": f"SELECT {TREATMENT}, reason, sum(units) AS units, "
    "CASE WHEN count(gain) = count(*) THEN sum(gain) END AS gain, "
    "CASE WHEN count(cost) = count(*) THEN sum(cost) END AS cost "
    f"FROM v_plan WHERE {_MINE} GROUP BY {TREATMENT}, reason ORDER BY units DESC",
    "levels": f"SELECT {TREATMENT}, n, uplift, uplift_lower, uplift_upper, roi, roi_lower, roi_upper, low_sample "
    f"FROM v_lift {_OF_LIFT} AND cut = 'all' ORDER BY {TREATMENT}",
    "segments": f"SELECT {TREATMENT}, substring(cut, 9) AS segment, bucket, n, uplift, uplift_lower, uplift_upper, "
    f"low_sample FROM v_lift {_OF_LIFT} AND cut LIKE 'segment:%' ORDER BY {TREATMENT}, segment, bucket",
    "deciles": f"SELECT int(bucket) AS decile, concat({TREATMENT}, ', ', which) AS figure, value FROM (SELECT "
    f"{TREATMENT}, bucket, explode(map('observed', uplift, 'predicted', predicted_uplift)) AS (which, value) "
    f"FROM v_lift {_OF_LIFT} AND cut = 'decile') ORDER BY decile, figure",
    "curves": f"SELECT {TREATMENT}, fraction, gain, gain_lower, gain_upper, random_gain FROM v_lift_curve {_OF_LIFT} "
    f"ORDER BY {TREATMENT}, fraction",
    "quality": f"SELECT outcome, {TREATMENT}, metric, value, lower, upper, model_version "
    f"FROM v_lift_metrics WHERE {_MINE} ORDER BY outcome, {TREATMENT}, metric",
    "drivers": f"SELECT {TREATMENT}, cut, bucket, rank, feature, mean_shap, gain, gain_lower, gain_upper, proven, "
    f"stable, sentence FROM v_driver {_OF_LIFT} ORDER BY {TREATMENT}, cut, bucket, rank",
    "kpis": "SELECT kpi, cut, value, lower, upper, n, unit, target, alert, state, severity, note, window_end "
    f"FROM v_kpi WHERE {_MINE} AND newest ORDER BY state, kpi, cut",
    "kpi_trends": f"SELECT window_end, kpi, value FROM v_kpi WHERE {_MINE} AND cut = 'all' AND value IS NOT NULL "
    "ORDER BY window_end, kpi",
    "open_alerts": f"SELECT rule, severity, event, summary, at FROM v_alerts WHERE {_MINE} AND open ORDER BY at",
    "findings": "SELECT severity, finding, about, sentence, action, window_end "
    f"FROM v_findings WHERE {_MINE} AND newest ORDER BY severity, finding",
    "drift": "SELECT name, state, distance, adjusted_p, stability, n, window_end "
    f"FROM v_drift WHERE {_MINE} AND newest ORDER BY distance DESC",
    "canaries": "SELECT at, canary, state, verdict, champion, challenger, share, reason "
    f"FROM {_CATALOG}.gold.canary WHERE {_MINE} ORDER BY step DESC",
}

_EXECUTIVE = (
    _Widget("counter", "Net of all costs", "Gain less all costs so far, in money.", "net_of_costs", ("net",), 2),
    _Widget("counter", "Cost so far", "Treating, incentives, jobs and bills.", "net_of_costs", ("cost",), 2),
    _Widget("counter", "Cost by the end", "Forecast; its interval is in the table.", "net_of_costs", ("forecast",), 2),
    _Widget(
        *("table", "What it cost and brought", "Intervals are of 95 %. `uplift costs` writes this.", "net_of_costs"),
        (
            *("as_of", "cost", "gain", "gain_lower", "gain_upper", "net", "net_lower", "net_upper", "budget"),
            *("forecast", "forecast_lower", "forecast_upper", "note"),
        ),
    ),
    _Widget("bar", "Spending by day", "By kind.", "spending", ("day", "amount", "kind"), 3, "temporal"),
    _Widget(
        *("line", "What a budget brings", "By the hold-out, after costs.", "plans", ("budget", "observed")),
        *(3, "quantitative"),
    ),
    _Widget(
        *("table", "Effect of each level", "On the outcome of units that the model never saw.", "levels"),
        (TREATMENT, "n", "uplift", "uplift_lower", "uplift_upper", "roi", "roi_lower", "roi_upper", "low_sample"),
    ),
    _Widget(
        *("table", "Whom the plan treats, and why", "No sums over fewer than five units.", "decisions"),
        (TREATMENT, "reason", "units", "gain", "cost"),
    ),
    _Widget(
        *("table", "By segment", "Rows of few units (low_sample) say little.", "segments"),
        (TREATMENT, "segment", "bucket", "n", "uplift", "uplift_lower", "uplift_upper", "low_sample"),
    ),
)
_ONCALL = (
    _Widget(
        *("table", "Open alerts", "Begin with those that page.", "open_alerts"),
        ("severity", "rule", "event", "summary", "at"),
    ),
    _Widget(
        *("table", "KPIs of the newest window", "`unsure` is beyond the threshold, its interval is not.", "kpis"),
        ("kpi", "cut", "state", "value", "lower", "upper", "n", "unit", "target", "alert", "severity", "note"),
    ),
    _Widget(
        *("line", "KPIs over time", "Units of measure differ: choose one by the legend.", "kpi_trends"),
        *(("window_end", "value", "kpi"), _WIDE, "temporal"),
    ),
    _Widget(
        *("table", "Findings of the newest window", "What goes wrong, and what to do.", "findings"),
        ("severity", "finding", "about", "sentence", "action"),
    ),
)
_DEBUG = (
    _Widget(
        *("bar", "Tenths by predicted uplift", "Bars that fall say that the order is right.", "deciles"),
        *(("decile", "value", "figure"), 3),
    ),
    _Widget(
        *("line", "Gain by share treated", "Best predictions first.", "curves", ("fraction", "gain", TREATMENT)),
        *(3, "quantitative"),
    ),
    _Widget(
        *("table", "Quality of the model", "On the hold-out, with 95 % intervals.", "quality"),
        ("outcome", TREATMENT, "metric", "value", "lower", "upper", "model_version"),
    ),
    _Widget(
        *(
            "table",
            "What drives lift",
            "Differences between units, on the hold-out; no effects of features.",
            "drivers",
        ),
        (
            *(TREATMENT, "cut", "bucket", "feature", "mean_shap", "gain", "gain_lower", "gain_upper", "proven"),
            *("stable", "sentence"),
        ),
    ),
    _Widget(
        *("table", "Drift by column", "`trigger` is drift that lasts.", "drift"),
        ("name", "state", "distance", "adjusted_p", "stability", "n"),
    ),
    _Widget(
        *("table", "Canaries and rollbacks", "The newest first.", "canaries"),
        ("at", "canary", "state", "verdict", "champion", "challenger", "share", "reason"),
    ),
)
_PAGES: Mapping[str, tuple[str, tuple[_Widget, ...]]] = {
    "executive": ("Executive", _EXECUTIVE),
    "oncall": ("On call", _ONCALL),
    "debug": ("Debug", _DEBUG),
}


def lakeview_files(about: LakeviewParameters) -> dict[str, str]:
    """Write the three pages in the format that Databricks imports.

    Args:
        about: Defaults of the parameters.

    Returns:
        {file: JSON}: `executive.lvdash.json`, `oncall.lvdash.json`, `debug.lvdash.json`.
    """
    return {
        f"{name}.lvdash.json": json.dumps(_dashboard(name, title, widgets, about), indent=1, ensure_ascii=False) + "\n"
        for name, (title, widgets) in _PAGES.items()
    }


def _dashboard(name: str, title: str, widgets: Iterable[_Widget], about: LakeviewParameters) -> dict[str, Any]:
    datasets = dict.fromkeys(widget.dataset for widget in widgets)
    layout, x, y, tall = [], 0, 0, 0
    for number, widget in enumerate(widgets):
        if x + widget.width > _WIDE:
            x, y, tall = 0, y + tall, 0
        height = _HEIGHTS[widget.kind]
        position = {"x": x, "y": y, "width": widget.width, "height": height}
        layout.append({"widget": _widget(f"{name}_{number}", widget), "position": position})
        x, tall = x + widget.width, max(tall, height)
    page = {"name": name, "displayName": f"{about.campaign}: {title}", "pageType": "PAGE_TYPE_CANVAS", "layout": layout}
    return {"datasets": [_dataset(one, about) for one in datasets], "pages": [page]}


def _dataset(name: str, about: LakeviewParameters) -> dict[str, Any]:
    query = _QUERIES[name].replace(_CATALOG, quoted(about.catalog))
    views = [view for view in GOLD_VIEWS if f"FROM {view} " in query]
    named = ", ".join(f"{view} AS ({view_query(view, about.catalog)})" for view in views)
    query = f"WITH {named} {query}" if views else query
    used = [key for key in ("campaign", "outcome") if f":{key}" in query]
    parameters = [
        {
            **{"displayName": key, "keyword": key, "dataType": "STRING"},
            "defaultSelection": {"values": {"dataType": "STRING", "values": [{"value": getattr(about, key)}]}},
        }
        for key in used
    ]
    shown = {"name": name, "displayName": name.replace("_", " "), "queryLines": [query]}
    return {**shown, "parameters": parameters}


def _widget(name: str, widget: _Widget) -> dict[str, Any]:
    """A widget; fields of its query and of what it shows have the same names, or it stays blank."""
    fields = [{"name": field, "expression": f"`{field}`"} for field in widget.fields]
    query = {"datasetName": widget.dataset, "fields": fields, "disaggregated": True}
    frame = {"showTitle": True, "title": widget.title, "showDescription": True, "description": widget.sentence}
    spec = {"version": _VERSIONS[widget.kind], "widgetType": widget.kind, "encodings": _encodings(widget)}
    return {"name": name, "queries": [{"name": "main_query", "query": query}], "spec": {**spec, "frame": frame}}


def _encodings(widget: _Widget) -> dict[str, Any]:
    named = [{"fieldName": field, "displayName": field.replace("_", " ")} for field in widget.fields]
    if widget.kind == "counter":
        return {"value": named[0]}
    if widget.kind == "table":
        return {"columns": named}
    x, y, *colour = named
    shown = {"x": {**x, "scale": {"type": widget.x_type}}, "y": {**y, "scale": {"type": "quantitative"}}}
    return {**shown, **({"color": {**colour[0], "scale": {"type": "categorical"}}} if colour else {})}
