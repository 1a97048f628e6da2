"""Three Grafana dashboards from the KPIs' declarations: for managers, for those on call, for those who look for causes.

Each panel has the sentence of its KPI's declaration, its thresholds as lines and the ends of its interval.
`panel_queries` lists what they query, so that a test can query a real Prometheus. The campaign and the data source are
chosen on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from uplift_spark.monitoring.alerts import RUNBOOK
from uplift_spark.monitoring.kpis import FORECAST_KPI, Kpi
from uplift_spark.monitoring.prometheus import KPI_INFO, SERVED_PATHS, WINDOW_END, kpi_metric

EXECUTIVE_KPIS = (
    *("uplift_roi", "observed_lift", "estimated_lift", "cost_per_incremental", "lift_degradation", "delivery_rate"),
    *("drift_score", FORECAST_KPI),
)
ON_CALL_KPIS = ("delivery_rate", "outcome_completeness", "feature_freshness", "error_rate", "prediction_latency")

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OF = '{campaign=~"$campaign"}'
_UNITS = {"ms": "ms", "minutes": "m", "share": "percentunit"}


@dataclass(frozen=True)
class DashboardPanel:
    """A picture of a dashboard.

    queries   {PromQL: what its line is called}
    kind      timeseries, stat or table
    lines     thresholds: (value, colour)
    interval  whether the queries are a value and the two ends of its interval
    """

    title: str
    queries: dict[str, str]
    text: str
    unit: str = ""
    kind: str = "timeseries"
    lines: tuple[tuple[float, str], ...] = ()
    interval: bool = False
    width: int = 8
    options: dict[str, Any] = field(default_factory=dict)


def dashboards(kpis: Sequence[Kpi], served: bool) -> dict[str, dict[str, Any]]:
    """Make the dashboards.

    Args:
        kpis: Declarations of what is measured; each is on the page for causes, and on the others where it belongs.
        served: Whether a service is scraped: its requests and its error budget are then on the page of those on call.

    Returns:
        {name: the dashboard as Grafana imports it} of `executive`, `on-call` and `debug`.
    """
    known = {kpi.name: kpi for kpi in kpis}
    executive = [_alerts_panel("page", "ticket"), *(kpi_panel(known[name]) for name in EXECUTIVE_KPIS if name in known)]
    on_call = [_alerts_panel("page"), _firing_panel(), *(_service_panels() if served else ())]
    on_call += [kpi_panel(known[name]) for name in ON_CALL_KPIS if name in known]
    debug = [_age_panel(), _version_panel()]
    for kpi in kpis:
        debug += [kpi_panel(kpi), _n_panel(kpi)]
    pages = {"executive": executive, "on-call": on_call, "debug": debug}
    return {name: _dashboard(name, panels) for name, panels in pages.items()}


def panel_queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """List what a dashboard queries.

    Args:
        dashboard: As `dashboards` makes it, or as read from its file.

    Returns:
        (title of the panel, PromQL with `$campaign` in it).
    """
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def kpi_panel(kpi: Kpi) -> DashboardPanel:
    """Draw a KPI with its interval and thresholds.

    Args:
        kpi: The declaration.

    Returns:
        The panel; it says in words what is measured and when somebody is called.
    """
    lines = [(value, colour) for value, colour in ((kpi.target, "green"), (kpi.alert, "red")) if value is not None]
    parts = {"": kpi.name, "lower": "lower end", "upper": "upper end"}
    called = f" {kpi.severity.capitalize()} when {kpi.when_called}." if kpi.when_called else ""
    aim = f" Target: {kpi.target:g} {kpi.unit}." if kpi.target is not None else ""
    return DashboardPanel(
        kpi.name.replace("_", " "),
        {kpi_metric(kpi.name, part) + _OF: "{{campaign}} {{cut}} " + name for part, name in parts.items()},
        f"{kpi.definition}{aim}{called}",
        kpi.unit,
        lines=tuple(lines),
        interval=True,
    )


def _alerts_panel(*severities: str) -> DashboardPanel:
    of = "|".join(severities)
    count = f'count(ALERTS{{alertstate="firing", campaign=~"$campaign", severity=~"{of}"}}) or vector(0)'
    text = f"Alerts that fire now ({' and '.join(severities)}s). {RUNBOOK} says what to do."
    return DashboardPanel("alerts firing", {count: "firing"}, text, kind="stat", lines=((1, "red"),), width=8)


def _firing_panel() -> DashboardPanel:
    each = 'sum by (alertname, kpi, severity) (ALERTS{alertstate="firing", campaign=~"$campaign"}) or vector(0)'
    return DashboardPanel(
        "which alerts", {each: "{{alertname}}"}, "Name, KPI and severity of each.", kind="table", width=16
    )


def _service_panels() -> list[DashboardPanel]:
    requests = f'sum by (campaign, status) (rate(uplift_requests_total{{campaign=~"$campaign", {SERVED_PATHS}}}[5m]))'
    burn, left = (f"slo:{name}:ratio{_OF}" for name in ("current_burn_rate", "period_error_budget_remaining"))
    latencies = {f"uplift:request_ms:{p}{_OF}": "{{campaign}} " + p for p in ("p95", "p99")}
    return [
        DashboardPanel("requests", {requests: "{{campaign}} {{status}}"}, "Requests a second by status.", "reqps"),
        DashboardPanel("latency of requests", latencies, "95 and 99 of 100 requests are quicker.", "ms"),
        DashboardPanel(
            "errors of requests",
            {f"slo:sli_error:ratio_rate{name}{_OF}": "{{campaign}} " + name for name in ("5m", "1h", "6h")},
            "Share of requests that failed by a fault of the service, in the last five minutes, hour, six hours.",
            "share",
        ),
        DashboardPanel(
            "burn rate",
            {burn: "{{campaign}}"},
            "1 uses the error budget up in 30 days; 14.4 for an hour pages.",
            lines=((1.0, "orange"), (14.4, "red")),
        ),
        DashboardPanel(
            "error budget left",
            {left: "{{campaign}}"},
            "Of 30 days; below 0 more failed than the objective allows.",
            "share",
            lines=((0.0, "red"),),
        ),
    ]


def _age_panel() -> DashboardPanel:
    age = f"(time() - max by (campaign, kpi) ({WINDOW_END}{_OF})) / 3600"
    text = "Hours since the newest window of each KPI ended: a line that rises for days is a monitor that does not run."
    return DashboardPanel("age of the newest window", {age: "{{campaign}} {{kpi}}"}, text, "h", width=16)


def _version_panel() -> DashboardPanel:
    info = f"max by (campaign, kpi, model_version) ({KPI_INFO}{_OF})"
    text = "Version of the model that each KPI's newest value is of."
    return DashboardPanel("model versions", {info: "{{kpi}} {{model_version}}"}, text, kind="table", width=8)


def _n_panel(kpi: Kpi) -> DashboardPanel:
    text = f"How many {kpi.n_of} are behind {kpi.name}; under {kpi.min_n:,} nobody is called."
    query = kpi_metric(kpi.name, "n") + _OF
    return DashboardPanel(
        f"{kpi.name.replace('_', ' ')}: n", {query: "{{campaign}}"}, text, lines=((kpi.min_n, "orange"),)
    )


def _dashboard(name: str, panels: Sequence[DashboardPanel]) -> dict[str, Any]:
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y = 0, y + 8
        placed.append(_panel_entry(panel, number, x, y))
        x += panel.width
    campaigns = f"label_values({WINDOW_END}, campaign)"
    return {
        "uid": f"uplift-{name}",
        "title": f"Uplift: {name}",
        "tags": ["uplift"],
        "timezone": "utc",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "campaign", "type": "query", "label": "Campaign", "datasource": _SOURCE, "query": campaigns,
                    "refresh": 2, "multi": True, "includeAll": True, "allValue": ".+",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": placed,
    }  # fmt: skip


def _panel_entry(panel: DashboardPanel, number: int, x: int, y: int) -> dict[str, Any]:
    steps = [{"color": "text", "value": None}, *({"color": colour, "value": at} for at, colour in sorted(panel.lines))]
    style = {"thresholdsStyle": {"mode": "line"}} if panel.lines and panel.kind == "timeseries" else {}
    instant = {"instant": True, "format": "table"} if panel.kind == "table" else {}
    targets = [
        {"refId": chr(ord("A") + position), "datasource": _SOURCE, "expr": query, "legendFormat": legend, **instant}
        for position, (query, legend) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": panel.width, "x": x, "y": y},
        "targets": targets,
        "fieldConfig": {
            "defaults": {
                "unit": _UNITS.get(panel.unit, panel.unit or "none"),
                "custom": style if panel.kind == "timeseries" else {},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": _interval_overrides() if panel.interval else [],
        },
        "options": panel.options,
    }


def _interval_overrides() -> list[dict[str, Any]]:
    """The ends of the interval as dashed lines."""
    dashed = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}}
    return [{"matcher": {"id": "byFrameRefID", "options": query}, "properties": [dashed]} for query in ("B", "C")]
