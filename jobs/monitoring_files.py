"""Write what Prometheus, Alertmanager and Grafana need to watch campaigns: rules, their tests, routes, dashboards.

Reads no table and starts no Spark: everything follows from the KPIs' declarations and the configurations. With --check
promtool proves every rule and the table of what it proved is printed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

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
from uplift_spark.monitoring.files import monitoring_texts
from uplift_spark.monitoring.kpis import campaign_kpis, kpi_named
from uplift_spark.monitoring.prometheus import PromRule, ScrapeTargets
from uplift_spark.monitoring.scenarios import CASES, Case, proven_cases
from uplift_spark.runtime import write_files


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
