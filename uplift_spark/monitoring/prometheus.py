"""What Prometheus and Alertmanager need, derived from the KPIs' declarations: names, text file, rules, routes.

A monitor's figures reach Prometheus by a text file that the node exporter serves (`write_kpis`); a service is scraped
itself. `monitor_rules` and `service_rules` make the rules, `rule_files` and the other functions their YAML. Every rule
says of which kind it is, so that `monitoring.scenarios` can prove that it fires, holds, resets and stays quiet without
traffic or data.

No measured value is a label: alerts are known by rule and campaign, so that Alertmanager can tell repeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.monitoring.alerts import newest_windows, runbook_of
from uplift_spark.monitoring.budgets import (
    PERIOD_DAYS,
    BurnWindow,
    duration_text,
    least_errors,
    objective_of,
    usable_windows,
)
from uplift_spark.monitoring.kpis import Kpi, Severity, kpi_named

WINDOW_END, KPI_INFO = "uplift_kpi_window_end_seconds", "uplift_kpi_info"
REQUESTS, LATENCY = "uplift_requests_total", "uplift_request_seconds"
SERVED_PATHS = 'path=~"/v1/.*"'
"""Requests that count: health checks and scrapes would thin out the errors."""
NODE_JOB, SERVING_JOB = "uplift-node", "uplift-serving"
OOM_KILLS = "node_vmstat_oom_kill"
DEGRADED, UNLOGGED = "uplift_degraded_total", 'why="log_unavailable"'
"""What a service's answers lack, and that they lack a place in the log of decisions."""

RuleKind = Literal["threshold", "absent", "stale", "burn", "latency", "unlogged", "down", "memory", "node_down"]
SERVICE_KINDS: tuple[RuleKind, ...] = ("burn", "latency", "unlogged", "down")
"""Rules about a service that is scraped; the others are about figures in text files, and the machine."""


# --------------------------------------------------------------------------------------------------------------------
# The text file.


def kpi_metric(name: str, part: str = "") -> str:
    """Name of a KPI in Prometheus.

    Args:
        name: Of the KPI.
        part: `lower`, `upper` or `n`; empty for its value.

    Returns:
        As in `uplift_delivery_rate_lower`.
    """
    return f"uplift_{name}_{part}" if part else f"uplift_{name}"


def write_kpis(rows: Iterable[Mapping[str, Any]], kpis: Sequence[Kpi], path: str | Path) -> int:
    """Write the newest window with a value of each KPI and cut where the node exporter's text file collector reads it.

    The file is replaced as a whole, so that no scrape meets half of it. A KPI that has no value in any window has none
    there, but an n. The end of the newest window with a value is that of the whole KPI: a figure that is measured no
    more grows old.

    Args:
        rows: Of `gold.kpi`: campaign, kpi, cut, value, lower, upper, n, window_end, model_version; `newest_windows`
            chooses those that count.
        kpis: Their declarations.
        path: A file that ends in `.prom`.

    Returns:
        Values written, one for each KPI and cut.

    Raises:
        ConfigError: The file's name ends otherwise, or a row's KPI is not declared.
        DataError: Two rows are of one KPI, cut and window.
        EnvironmentProblem: The file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    path = Path(path)
    if path.suffix != ".prom":
        raise ConfigError(f"the text file {path} is read by no exporter: its name must end in .prom")
    newest = newest_windows(rows)
    registry, gauges = CollectorRegistry(), dict[str, Gauge]()

    def put(metric: str, text: str, labels: dict[str, str], value: float) -> None:
        if metric not in gauges:
            gauges[metric] = Gauge(metric, text, list(labels), registry=registry)
        gauges[metric].labels(**labels).set(value)

    ends: dict[tuple[str, str], datetime] = {}
    for row in newest:
        campaign, name, cut = row["campaign"], row["kpi"], str(row.get("cut") or "all")
        kpi, of, own = kpi_named(name, kpis), {"campaign": campaign}, {"campaign": campaign, "cut": cut}
        put(kpi_metric(name, "n"), f"How many {kpi.n_of} are behind uplift_{name}.", own, float(row["n"] or 0))
        value = _number(row["value"])
        if math.isnan(value):
            continue
        ends[campaign, name] = max(row["window_end"], ends.get((campaign, name), row["window_end"]))
        about = {"model_version": str(row.get("model_version") or ""), "unit": kpi.unit}
        put(KPI_INFO, "What a KPI's newest value is of.", {**of, "kpi": name, **about}, 1)
        for part in ("", "lower", "upper"):
            end = _number(row[part]) if part else value
            text = kpi.definition if not part else f"{part.capitalize()} end of the interval of uplift_{name}."
            put(kpi_metric(name, part), text, own, value if math.isnan(end) else end)
    for (campaign, name), newest_end in ends.items():
        text = "End of the newest window with a value, seconds since 1970."
        put(WINDOW_END, text, {"campaign": campaign, "kpi": name}, newest_end.timestamp())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise EnvironmentProblem(f"the text file {path} cannot be written: {error.strerror or error}") from error
    return len(newest)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# --------------------------------------------------------------------------------------------------------------------
# Rules.


@dataclass(frozen=True)
class RecordRule:
    """A figure that Prometheus computes ahead."""

    record: str
    expr: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class PromRule:
    """An alerting rule, and what it is derived from.

    hold    minutes that the expression must hold before it fires
    kpi     its declaration; None for rules about the machinery
    window  of a burn rate
    hours   of a monitor's window
    """

    name: str
    kind: RuleKind
    campaign: str
    expr: str
    hold: int
    severity: Severity
    summary: str
    kpi: Kpi | None = None
    window: BurnWindow | None = None
    hours: float = 24.0

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its alerts: what Alertmanager groups by and knows repeats by."""
        about = {"kpi": self.kpi.name} if self.kpi else {}
        of = {"campaign": self.campaign} if self.campaign else {}
        return {"severity": self.severity, **of, **about}


def monitor_rules(campaign: str, kpis: Sequence[Kpi], hours: float) -> list[PromRule]:
    """Derive the alerting rules about what a campaign's monitor measures.

    Args:
        campaign: Its name.
        kpis: Declarations of what its monitor measures.
        hours: Of a monitor's window.

    Returns:
        For each KPI with an alert threshold one that it is crossed and one that nothing is measured; one that the
        monitor is late.

    Raises:
        ConfigError: A threshold can never be crossed.
    """
    rules = []
    for kpi in kpis:
        if kpi.alert is not None:
            rules += [_threshold_rule(campaign, kpi), _absent_rule(campaign, kpi)]
    return [*rules, _stale_rule(campaign, hours)] if rules else []


def platform_rules() -> list[PromRule]:
    """Derive the rules about the machine that jobs run on: out of memory, and that nobody watches it."""
    oom = f'max by (instance) (increase({OOM_KILLS}{{job="{NODE_JOB}"}}[15m])) > 0'
    down = f'absent(up{{job="{NODE_JOB}"}} == 1)'
    killed = "{{ $labels.instance }} ran out of memory and the kernel ended a process."
    gone = "No node exporter answers: the KPIs' text files are read by nobody."
    return [
        PromRule("UpliftOutOfMemory", "memory", "", oom, 1, "page", killed),
        PromRule("UpliftNodeDown", "node_down", "", down, 10, "page", gone),
    ]


def alert_name(rule: str) -> str:
    """Name of a rule's alerts, by whatever way they reach Alertmanager: `UpliftDeliveryRate` of delivery_rate."""
    return "Uplift" + "".join(part[:1].upper() + part[1:] for part in rule.split("_"))


def _of(metric: str, campaign: str, *more: str) -> str:
    matchers = ", ".join([f'campaign="{campaign}"', *more])
    return f"{metric}{{{matchers}}}"


def _is(label: str, value: str) -> str:
    return f'{label}="{value}"'


def _threshold_rule(campaign: str, kpi: Kpi) -> PromRule:
    assert kpi.alert is not None
    end, fold, sign, word = ("lower", "max", ">", "above") if kpi.better == "below" else ("upper", "min", "<", "below")
    near = f"{fold} by (campaign, cut) ({_of(kpi_metric(kpi.name, end), campaign)})"
    enough = f"max by (campaign, cut) ({_of(kpi_metric(kpi.name, 'n'), campaign)}) >= {kpi.min_n}"
    value = kpi_metric(kpi.name) + f'{{campaign=\\"{campaign}\\", cut=\\"%s\\"}}'
    beyond = "" if kpi.baseline is None else f"{word} {kpi.alert:g}, "
    summary = (
        f'{kpi.name} of {campaign} ({{{{ $labels.cut }}}}) is {{{{ with printf "{value}" $labels.cut | query }}}}'
        f'{{{{ . | first | value | printf "%.4g" }}}}{{{{ end }}}} {kpi.unit}, '
        f'{beyond}its whole interval (to {{{{ $value | printf "%.4g" }}}}) {word} {kpi.must_exclude:g}. '
        f"{kpi.definition}"
    )
    hold = 5 if kpi.severity == "page" else 30
    terms = [f"{near} {sign} {kpi.must_exclude!r}", enough]
    if kpi.baseline is not None:
        terms.insert(1, f"{fold} by (campaign, cut) ({_of(kpi_metric(kpi.name), campaign)}) {sign} {kpi.alert!r}")
    expr = " and ".join(terms)
    return PromRule(alert_name(kpi.name), "threshold", campaign, expr, hold, kpi.severity, summary, kpi)


def _absent_rule(campaign: str, kpi: Kpi) -> PromRule:
    ends = _of(WINDOW_END, campaign, _is("kpi", kpi.name))
    expr = f"absent({ends})"
    summary = f"{kpi.name} of {campaign} is measured by nobody, so no alert of it can fire: look at `uplift monitor`."
    return PromRule(f"{alert_name(kpi.name)}Absent", "absent", campaign, expr, 15, kpi.severity, summary, kpi)


def _stale_rule(campaign: str, hours: float) -> PromRule:
    late = 2.5 * hours
    expr = f"time() - max by (campaign) ({_of(WINDOW_END, campaign)}) > {late * 3600:.0f}"
    summary = f"The newest window of {campaign} ended more than {late:g} hours ago: `uplift monitor` does not run."
    return PromRule("UpliftMonitorStale", "stale", campaign, expr, 15, "ticket", summary, hours=hours)


def _errors_of(campaign: str) -> tuple[str, str]:
    """(selector of failed requests, selector of all) of a service."""
    return _of(REQUESTS, campaign, SERVED_PATHS, 'status=~"5.."'), _of(REQUESTS, campaign, SERVED_PATHS)


def serving_records(campaign: str, kpis: Sequence[Kpi]) -> list[RecordRule]:
    """Derive the figures that rules and dashboards take from a service's counters.

    Args:
        campaign: Its name.
        kpis: Declarations; `error_rate` has the objective.

    Returns:
        Error ratios and errors by window, burn rate, what is left of the error budget, latencies.
    """
    kpi = kpi_named("error_rate", kpis)
    objective, labels = objective_of(kpi), {"campaign": campaign, "kpi": kpi.name}
    bad, every = _errors_of(campaign)
    windows = usable_windows(objective)
    lengths = sorted({one for window in windows for one in (window.long, window.short)} | {60})
    records = []
    for name in [*(duration_text(length) for length in lengths), f"{PERIOD_DAYS}d"]:
        total = f"sum by (campaign) (rate({every}[{name}]))"
        # Before the first error there is no counter of errors: that is a ratio of 0, not none.
        ratio = f"(sum by (campaign) (rate({bad}[{name}])) or 0 * {total}) / ({total} > 0)"
        records.append(RecordRule(f"slo:sli_error:ratio_rate{name}", ratio, labels))
    for window in windows:
        count = f"sum by (campaign) (increase({bad}[{window.name}]))"
        records.append(RecordRule(f"slo:sli_error:increase{window.name}", count, labels))
    hour, period = (_of(f"slo:sli_error:ratio_rate{name}", campaign) for name in ("1h", f"{PERIOD_DAYS}d"))
    budget = _text(1 - objective)
    records.append(RecordRule("slo:current_burn_rate:ratio", f"{hour} / {budget}", labels))
    records.append(RecordRule("slo:period_error_budget_remaining:ratio", f"1 - {period} / {budget}", labels))
    for quantile in (95, 99):
        buckets = f"sum by (campaign, le) (rate({_of(LATENCY + '_bucket', campaign, SERVED_PATHS)}[5m]))"
        expr = f"1000 * histogram_quantile({quantile / 100}, {buckets})"
        records.append(RecordRule(f"uplift:request_ms:p{quantile}", expr, {"campaign": campaign}))
    return records


def service_rules(campaign: str, kpis: Sequence[Kpi]) -> list[PromRule]:
    """Derive the alerting rules about a service that Prometheus scrapes.

    Args:
        campaign: Its name.
        kpis: Declarations; of `error_rate` and `prediction_latency` the objective and the threshold.

    Returns:
        Burn rates of the error budget, latency, that the log of decisions cannot be written, and that nobody answers.
    """
    errors, latency = kpi_named("error_rate", kpis), kpi_named("prediction_latency", kpis)
    objective = objective_of(errors)
    rules = []
    for window in usable_windows(objective):
        limit, about = _text(window.factor * (1 - objective)), _is("kpi", errors.name)
        short = duration_text(window.short)
        parts = [
            f"{_of(f'slo:sli_error:ratio_rate{window.name}', campaign, about)} > {limit}",
            f"{_of(f'slo:sli_error:ratio_rate{short}', campaign, about)} > {limit}",
            f"{_of(f'slo:sli_error:increase{window.name}', campaign, about)} >= {least_errors(window, objective)}",
        ]
        summary = (
            f"{{{{ $value | humanizePercentage }}}} of the requests to {campaign} failed in the last {window.name}: "
            f"{window.factor:g} times what an objective of {objective * 100:.4g} % allows."
        )
        name = f"{alert_name(errors.name)}Burn{window.name}"
        rules.append(PromRule(name, "burn", campaign, " and ".join(parts), 0, window.severity, summary, errors, window))
    if latency.alert is not None:
        counted = f"sum by (campaign) (increase({_of(LATENCY + '_count', campaign, SERVED_PATHS)}[5m]))"
        expr = f"{_of('uplift:request_ms:p95', campaign)} > {latency.alert!r} and {counted} >= {latency.min_n}"
        summary = (
            f'One request in twenty to {campaign} takes {{{{ $value | printf "%.0f" }}}} ms or more, above '
            f"{latency.alert:g}."
        )
        name = f"{alert_name(latency.name)}Served"
        rules.append(PromRule(name, "latency", campaign, expr, 10, latency.severity, summary, latency))
    # Such answers are no errors to the caller: every unit gets the control, and nothing else tells of it.
    expr = f"sum by (campaign) (increase({_of(DEGRADED, campaign, UNLOGGED)}[15m])) > 0"
    summary = f"The log of decisions of {campaign} cannot be written: every unit gets the control. Is the disk full?"
    rules.append(PromRule("UpliftDecisionsNotLogged", "unlogged", campaign, expr, 1, "page", summary))
    answers = _of("up", campaign, _is("job", SERVING_JOB))
    expr = f"absent({answers} == 1)"
    summary = f"No service of {campaign} answers."
    return [*rules, PromRule("UpliftServiceDown", "down", campaign, expr, 5, "page", summary)]


def _text(value: float) -> str:
    """A number of 12 digits: 14.4 * (1 - .99) is .144, not .14400000000000013."""
    return f"{value:.12g}"


# --------------------------------------------------------------------------------------------------------------------
# Files.


@dataclass(frozen=True)
class RuleFileNames:
    """Names of the two files of rules; the service's are a file of their own, as most campaigns have no service."""

    kpis: str = "uplift-kpis.yaml"
    service: str = "uplift-service.yaml"


def rule_files(rules: Sequence[PromRule], records: Sequence[RecordRule], names: RuleFileNames) -> dict[str, str]:
    """Write the rules as Prometheus reads them.

    Args:
        rules: Alerting rules of all campaigns and of the platform.
        records: What is computed ahead of a service's counters.
        names: Of the files.

    Returns:
        {file: YAML}, each with a group for each campaign; without a service one file.
    """
    of_kpis = [rule for rule in rules if rule.kind not in SERVICE_KINDS]
    of_services = [rule for rule in rules if rule.kind in SERVICE_KINDS]
    groups = _groups(of_services, "-service", records)
    files = {names.kpis: yaml_text({"groups": _groups(of_kpis, "")})}
    return files | ({names.service: yaml_text({"groups": groups})} if groups else {})


def _groups(rules: Sequence[PromRule], ending: str, records: Sequence[RecordRule] = ()) -> list[dict[str, Any]]:
    """A group for each campaign. Rules of a group are evaluated one after the other, those of two groups in any order:
    what is recorded stands before the alerts that read it, or they would read what was recorded the time before."""
    return [
        {
            "name": f"uplift-{campaign or 'platform'}{ending}",
            "rules": [
                *(_record_entry(one) for one in records if one.labels["campaign"] == campaign),
                *(_rule_entry(one) for one in rules if one.campaign == campaign),
            ],
        }
        for campaign in dict.fromkeys(rule.campaign for rule in rules)
    ]


def _record_entry(rule: RecordRule) -> dict[str, Any]:
    return {"record": rule.record, "expr": rule.expr, "labels": dict(rule.labels)}


def _rule_entry(rule: PromRule) -> dict[str, Any]:
    hold = {"for": duration_text(rule.hold)} if rule.hold else {}
    runbook = runbook_of(rule.kpi.name if rule.kpi is not None else rule.kind)
    page = {"summary": rule.summary, "runbook": runbook}
    return {"alert": rule.name, "expr": rule.expr, **hold, "labels": rule.labels, "annotations": page}


def yaml_text(content: Any) -> str:
    """Write YAML in the order of its keys, long texts unbroken."""
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000))


@dataclass(frozen=True)
class ScrapeTargets:
    """What Prometheus scrapes and whom it tells.

    nodes         HOST:PORT of the node exporters beside the text files
    services      {campaign: HOST:PORT of its service}
    key_file      file with the API key that opens a service's /metrics
    alertmanager  HOST:PORT
    """

    nodes: tuple[str, ...] = ("localhost:9100",)
    services: Mapping[str, str] = field(default_factory=dict)
    key_file: str | None = None
    alertmanager: str = "localhost:9093"


def prometheus_file(targets: ScrapeTargets, rules: Iterable[str], interval: str = "15s") -> str:
    """Write Prometheus' configuration.

    Args:
        targets: See there.
        rules: Files of `rule_files`, beside this one.
        interval: Between two scrapes, and between two evaluations of the rules.

    Returns:
        YAML.
    """
    scrapes: list[dict[str, Any]] = [{"job_name": NODE_JOB, "static_configs": [{"targets": list(targets.nodes)}]}]
    if targets.services:
        services = [{"targets": [to], "labels": {"campaign": name}} for name, to in targets.services.items()]
        key = {"authorization": {"credentials_file": targets.key_file}} if targets.key_file else {}
        scrapes.append({"job_name": SERVING_JOB, **key, "static_configs": services})
    return yaml_text(
        {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": list(rules),
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [targets.alertmanager]}]}]},
            "scrape_configs": scrapes,
        }
    )


Receivers = Mapping[Severity, Mapping[str, list[dict[str, Any]]]]
"""{severity: a receiver's configurations, as {"slack_configs": [...]}}."""


def alertmanager_file(campaigns: Mapping[str, Receivers]) -> str:
    """Write Alertmanager's routes: pages at once and again every four hours, tickets gathered and once a day.

    Args:
        campaigns: {campaign: its receivers}; without any, its alerts are in Alertmanager's own pages alone.

    Returns:
        YAML. A campaign's alerts go to its own receivers, those of the machine to the receivers of all. Alerts of a
        campaign and severity are one message; while a page of a campaign's KPI fires, its tickets are quiet.
    """
    waits: dict[Severity, dict[str, str]] = {
        "page": {"group_wait": "30s", "repeat_interval": "4h"},
        "ticket": {"group_wait": "5m", "repeat_interval": "24h"},
    }
    of_all: dict[Severity, dict[str, list[dict[str, Any]]]] = {severity: {} for severity in waits}
    routes, named = [], []
    for campaign, receivers in campaigns.items():
        for severity, times in waits.items():
            own = receivers.get(severity, {})
            for kind, entries in own.items():
                shared = of_all[severity].setdefault(kind, [])
                shared += [entry for entry in entries if entry not in shared]
            name, of = f"{campaign}-{severity}", [_is("campaign", campaign), _is("severity", severity)]
            routes.append({"receiver": name, "matchers": of, **times})
            named.append({"name": name, **own})
    routes += [{"receiver": one, "matchers": [_is("severity", one)], **times} for one, times in waits.items()]
    named += [{"name": severity, **kinds} for severity, kinds in of_all.items()]
    inhibited = {
        "source_matchers": ['severity="page"', 'kpi=~".+"'],
        "target_matchers": ['severity="ticket"'],
        "equal": ["campaign", "kpi"],
    }
    return yaml_text(
        {
            "route": {
                "receiver": "ticket",
                "group_by": ["campaign", "severity"],
                "group_interval": "5m",
                "routes": routes,
            },
            "inhibit_rules": [inhibited],
            "receivers": named,
        }
    )
