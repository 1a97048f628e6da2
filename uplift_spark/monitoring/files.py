"""The files of Prometheus, Alertmanager and Grafana that watch campaigns, put together (`monitoring_texts`).

No table is read: everything follows from the KPIs' declarations and the configurations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError
from uplift_spark.monitoring.grafana import dashboards
from uplift_spark.monitoring.kpis import FORECAST_KPI, Kpi, Severity, campaign_kpis
from uplift_spark.monitoring.prometheus import (
    PromRule,
    Receivers,
    RecordRule,
    RuleFileNames,
    ScrapeTargets,
    alertmanager_file,
    monitor_rules,
    platform_rules,
    prometheus_file,
    rule_files,
    service_rules,
    serving_records,
)
from uplift_spark.monitoring.scenarios import case_files
from uplift_spark.sections.alerts import SinkConf

_NAMES = RuleFileNames()
_DASHBOARDS = "dashboards"
# Measured by a monitor where it has a log of requests, and by Prometheus itself where it scrapes the service.
_OF_REQUESTS = ("prediction_latency", "error_rate")
_OF_MONEY = ("uplift_roi", "cost_per_incremental")  # need costs and the outcome's value


def monitoring_texts(configs: Sequence[Config], targets: ScrapeTargets) -> tuple[dict[str, str], list[PromRule]]:
    """Make all files.

    Args:
        configs: Of the campaigns.
        targets: What is scraped.

    Returns:
        ({path below the folder: text}, the rules).

    Raises:
        ConfigError: A threshold can never be crossed, or Alertmanager cannot read a sink's secret.
    """
    pages: dict[str, Kpi] = {}
    rules: list[PromRule] = []
    records: list[RecordRule] = []
    for config in configs:
        name, declared = config.campaign, campaign_kpis(config.monitoring)
        measured = [kpi for kpi in declared if is_measured(config, kpi)]
        pages |= {kpi.name: kpi for kpi in measured}
        rules += monitor_rules(name, measured, config.monitoring.hours)
        if name in targets.services:
            rules += service_rules(name, declared)
            records += serving_records(name, declared)
    rules += platform_rules()
    files = rule_files(rules, records, _NAMES)
    files |= {
        "prometheus.yml": prometheus_file(targets, list(files)),
        "alertmanager.yml": alertmanager_file({config.campaign: receivers(config) for config in configs}),
        **case_files(rules, _NAMES, "test"),
    }
    for name, page in dashboards(list(pages.values()), bool(targets.services)).items():
        files[f"{_DASHBOARDS}/{name}.json"] = json.dumps(page, indent=1, ensure_ascii=False) + "\n"
    return files, rules


def receivers(config: Config) -> Receivers:
    """A campaign's receivers in Alertmanager, from its sinks; an Alertmanager and files are none.

    Args:
        config: Of the campaign.

    Returns:
        {severity: {kind of Alertmanager's: its entries}}; secrets are named by their files.

    Raises:
        ConfigError: A sink's secret is in an environment variable, which Alertmanager does not read.
    """
    entries: dict[Severity, dict[str, list[dict[str, Any]]]] = {"page": {}, "ticket": {}}
    for name, conf in sorted(config.alerts.sinks.items()):
        if conf.kind not in ("webhook", "mail"):
            continue
        if variable := conf.url_env or conf.token_env or conf.password_env:
            raise ConfigError(
                f"alerts.sinks.{name} has its secret in ${variable}, which Alertmanager does not read: put it into "
                "a file and name that (url_file, token_file or password_file)"
            )
        kind, entry = _receiver(conf)
        for severity in conf.severities:
            entries[severity].setdefault(kind, []).append(entry)
    return entries


def is_measured(config: Config, kpi: Kpi) -> bool:
    """Whether a campaign's monitor can measure a KPI: of others nobody is to be called because it is absent."""
    if kpi.name in _OF_REQUESTS:
        return config.monitoring.requests is not None
    if kpi.name == FORECAST_KPI:
        return config.costs is not None and config.costs.budget is not None
    if kpi.name in _OF_MONEY:
        worth = config.roles.outcome in config.economics.value and bool(config.economics.cost)
        return worth and config.policy.objective == "profit"
    return True


def _receiver(conf: SinkConf) -> tuple[str, dict[str, Any]]:
    if conf.kind == "mail":
        login = {"auth_username": conf.user, "auth_password_file": conf.password_file} if conf.user else {}
        host = {"smarthost": f"{conf.host}:{conf.port}", "require_tls": conf.starttls}
        return "email_configs", {"to": ", ".join(conf.to), "from": conf.sender, **host, **login, "send_resolved": True}
    url = {"api_url_file": conf.url_file} if conf.url_file else {"api_url": conf.url}
    token = {"http_config": {"authorization": {"credentials_file": conf.token_file}}} if conf.token_file else {}
    texts = "{{ range .Alerts }}{{ .Status }} {{ .Labels.alertname }}: {{ .Annotations.summary }}\n{{ end }}"
    title = "[{{ .CommonLabels.severity }}] {{ .CommonLabels.campaign }}: {{ .Alerts.Firing | len }} firing"
    return "slack_configs", {**url, **token, "title": title, "text": texts, "send_resolved": True}
