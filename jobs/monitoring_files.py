"""Write what Prometheus, Alertmanager and Grafana need to watch campaigns: rules, their tests, routes, dashboards.

Reads no table and starts no Spark: everything follows from the KPIs' declarations and the configurations. With --check
promtool proves every rule and the table of what it proved is printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from uplift_spark.config import Config
from uplift_spark.console import SetOption, main_command, out, read_config, words_table
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.monitoring.budgets import (
    least_errors,
    minutes_to_alert,
    most_false_alarms,
    objective_of,
    usable_windows,
)
from uplift_spark.monitoring.grafana import dashboards
from uplift_spark.monitoring.kpis import Kpi, Severity, campaign_kpis, kpi_named
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
from uplift_spark.monitoring.scenarios import CASES, Case, case_files, proven_cases
from uplift_spark.runtime import write_files
from uplift_spark.sections.alerts import SinkConf

NAMES = RuleFileNames()
DASHBOARDS = "dashboards"
OF_REQUESTS = ("prediction_latency", "error_rate")
"""KPIs that a monitor measures where it has a log of requests, and Prometheus itself where it scrapes the service."""
OF_MONEY = ("uplift_roi", "cost_per_incremental")
"""KPIs that need costs and the outcome's value."""


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
    files = rule_files(rules, records, NAMES)
    files |= {
        "prometheus.yml": prometheus_file(targets, list(files)),
        "alertmanager.yml": alertmanager_file({config.campaign: receivers(config) for config in configs}),
        **case_files(rules, NAMES, "test"),
    }
    for name, page in dashboards(list(pages.values()), bool(targets.services)).items():
        files[f"{DASHBOARDS}/{name}.json"] = json.dumps(page, indent=1, ensure_ascii=False) + "\n"
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
    if kpi.name in OF_REQUESTS:
        return config.monitoring.requests is not None
    if kpi.name in OF_MONEY:
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


def proof_rows(rules: Sequence[PromRule], proven: Mapping[tuple[str, str, Case], bool]) -> list[list[str]]:
    """Rows of the table of what promtool proved.

    Args:
        rules: Of the files.
        proven: As `proven_cases` returns it.

    Returns:
        For each rule its campaign, name, severity, hold, and `yes` or `NO` for each of `CASES`.
    """
    words = {True: "yes", False: "NO"}
    heads = [(one.campaign or "all", one.name, one.severity, f"{one.hold} min") for one in rules]
    cases = [[words[proven[one.campaign, one.name, case]] for case in CASES] for one in rules]
    return [[*head, *own] for head, own in zip(heads, cases, strict=True)]


def outage_rows(configs: Sequence[Config], targets: ScrapeTargets) -> list[list[str]]:
    """Rows of the table of burn rates: how soon an outage pages, how often noise does.

    Args:
        configs: Of the campaigns.
        targets: Those with a service have burn rates.

    Returns:
        Campaign, objective, window, severity, errors needed, minutes of a total outage until it fires, false alarms a
        year at most.
    """
    rows = []
    for config in configs:
        if config.campaign not in targets.services:
            continue
        objective = objective_of(kpi_named("error_rate", campaign_kpis(config.monitoring)))
        for window in usable_windows(objective):
            least = least_errors(window, objective)
            minutes = minutes_to_alert(window, objective, 1.0)
            often = most_false_alarms(window, objective, least)
            figures = [str(least), f"{minutes:.2f}", f"{often:.2g}"]
            rows.append([config.campaign, f"{objective:.4%}", window.name, window.severity, *figures])
    return rows


def parsed_services(pairs: Sequence[str], campaigns: Sequence[str]) -> dict[str, str]:
    """Read `--serving`.

    Args:
        pairs: HOST:PORT, with CAMPAIGN= before it where there are several campaigns.
        campaigns: Their names.

    Returns:
        {campaign: HOST:PORT}.

    Raises:
        ConfigError: It is of no campaign, or no HOST:PORT.
    """
    services = {}
    for pair in pairs:
        name, equals, address = pair.rpartition("=")
        if not equals and len(campaigns) > 1:
            raise ConfigError(f"--serving {pair} is of none of the {len(campaigns)} campaigns: write CAMPAIGN={pair}")
        name = name or campaigns[0]
        if name not in campaigns:
            raise ConfigError(f"--serving names {name}, none of the campaigns {', '.join(campaigns)}: correct it")
        if not re.fullmatch(r"[\w.-]+:\d{1,5}", address):
            raise ConfigError(f"--serving {pair} is no HOST:PORT, as localhost:8080: correct it")
        services[name] = address
    return services


def command(
    conf: Annotated[list[Path], typer.Option("--conf", help="A campaign's YAML file; repeatable.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="Folder to write to.", show_default=False)],
    serving: Annotated[
        list[str] | None,
        typer.Option("--serving", metavar="[CAMPAIGN=]HOST:PORT", help="Where a campaign is served; repeatable."),
    ] = None,
    key_file: Annotated[
        str | None, typer.Option("--serving-key-file", help="File with the API key that opens the service's /metrics.")
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", help="HOST:PORT of a node exporter; localhost:9100; repeatable.")
    ] = None,
    alertmanager: Annotated[str, typer.Option("--alertmanager", help="Its HOST:PORT.")] = "localhost:9093",
    set_: SetOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Have promtool prove every rule; print what it proved.")
    ] = False,
) -> None:
    """Write the files, and print what they are."""
    configs = [read_config(path, set_, "monitoring_files") for path in conf]
    campaigns = [config.campaign for config in configs]
    if twice := sorted({name for name in campaigns if campaigns.count(name) > 1}):
        raise ConfigError(f"--conf names campaign {twice[0]} twice: name each once")
    services = parsed_services(serving or [], campaigns)
    targets = ScrapeTargets(tuple(node or ["localhost:9100"]), services, key_file, alertmanager)
    files, rules = monitoring_texts(configs, targets)
    write_files(to, files)
    out().print(f"wrote {len(files)} files to {to}: {len(rules)} alerting rules of {', '.join(campaigns)}")
    for name in files:
        out().print(f"  {to / name}")
    rows = outage_rows(configs, targets)
    if rows:
        heads = (
            "campaign",
            "objective",
            "window",
            "calls",
            "errors needed",
            "outage fires after, min",
            "false a year <",
        )
        out().print(words_table(heads, rows))
    if check:
        proven = proven_cases(to, rules, [name for name in files if name.startswith("test-")])
        out().print(words_table(("campaign", "rule", "calls", "hold", *CASES), proof_rows(rules, proven)))
        if not all(proven.values()):
            raise EnvironmentProblem(f"{list(proven.values()).count(False)} of {len(proven)} cases came out otherwise")


if __name__ == "__main__":
    main_command(command, __doc__)
