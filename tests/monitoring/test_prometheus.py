"""The text file, and rules that keep to their declarations; the proofs by promtool are in test_scenarios."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.monitoring.kpis import FOUNDING_KPIS, kpi_named
from uplift_spark.monitoring.prometheus import (
    RuleFileNames,
    ScrapeTargets,
    alertmanager_file,
    monitor_rules,
    platform_rules,
    prometheus_file,
    rule_files,
    service_rules,
    serving_records,
    write_kpis,
)

END = datetime(2026, 3, 2, tzinfo=UTC)


def kpi_row(kpi: str, value: float | None, **cells: Any) -> dict[str, Any]:
    usual = {
        "campaign": "spring",
        "kpi": kpi,
        "value": value,
        "lower": None,
        "upper": None,
        "n": 500,
        "window_end": END,
    }
    return {**usual, "model_version": "7", **cells}


def values_of(path: Path) -> Mapping[tuple[str, str], float]:
    """{(metric, campaign): value} of what is not cut, {(metric, campaign:cut): value} of cuts."""
    samples = [one for family in text_string_to_metric_families(path.read_text()) for one in family.samples]
    cuts = [one for one in samples if "cut" in one.labels]
    names = [one.labels["campaign"] + f":{one.labels['cut']}".removesuffix(":all") for one in cuts]
    return {(one.name, name): one.value for one, name in zip(cuts, names, strict=True)}


def test_the_newest_window_of_each_kpi_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "uplift.prom"
    rows = [
        kpi_row("delivery_rate", 0.97, lower=0.96, upper=0.98),
        kpi_row("delivery_rate", 0.5, window_end=END - timedelta(days=1)),
        kpi_row("delivery_rate", 0.99, campaign="autumn", n=20),
        kpi_row("drift_score", 0.2),
        kpi_row("uplift_roi", None, n=0, cut="mail"),
        kpi_row("drift_score", 0.9, cut="a feature of yesterday", window_end=END - timedelta(days=1)),
    ]
    assert write_kpis(rows, FOUNDING_KPIS, path) == 4
    assert values_of(path) == {
        ("uplift_delivery_rate", "spring"): 0.97,
        ("uplift_delivery_rate_lower", "spring"): 0.96,
        ("uplift_delivery_rate_upper", "spring"): 0.98,
        ("uplift_delivery_rate_n", "spring"): 500,
        ("uplift_delivery_rate", "autumn"): 0.99,
        ("uplift_delivery_rate_lower", "autumn"): 0.99,  # without an interval the value counts as exact
        ("uplift_delivery_rate_upper", "autumn"): 0.99,
        ("uplift_delivery_rate_n", "autumn"): 20,
        ("uplift_drift_score", "spring"): 0.2,
        ("uplift_drift_score_lower", "spring"): 0.2,
        ("uplift_drift_score_upper", "spring"): 0.2,
        ("uplift_drift_score_n", "spring"): 500,
        ("uplift_uplift_roi_n", "spring:mail"): 0,  # measured, and nothing there
    }
    text = path.read_text()
    assert 'uplift_kpi_window_end_seconds{campaign="spring",kpi="drift_score"} 1.772' in text
    assert 'kpi="uplift_roi"' not in text  # of no window known: it is absent, and its rule says so
    assert 'uplift_kpi_info{campaign="spring",kpi="drift_score",model_version="7",unit="distance"} 1.0' in text
    assert write_kpis(rows[:1], FOUNDING_KPIS, path) == 1
    assert "autumn" not in path.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_rows_that_cannot_be_right_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "uplift.prom"
    write_kpis([kpi_row("drift_score", 0.2)], FOUNDING_KPIS, path)
    before = path.read_text()
    with pytest.raises(
        DataError, match=r"KPI drift_score of campaign spring \(cut all\) has two rows of the window that ends at"
    ):
        write_kpis([kpi_row("drift_score", 0.2), kpi_row("drift_score", 0.3)], FOUNDING_KPIS, path)
    with pytest.raises(ConfigError, match="KPI 'drift_scor' is unknown: did you mean 'drift_score'"):
        write_kpis([kpi_row("drift_scor", 0.2)], FOUNDING_KPIS, path)
    with pytest.raises(DataError, match="has a time of no time zone"):
        write_kpis([kpi_row("drift_score", 0.2, window_end=datetime(2026, 3, 2))], FOUNDING_KPIS, path)
    with pytest.raises(ConfigError, match=r"must end in \.prom"):
        write_kpis([], FOUNDING_KPIS, tmp_path / "uplift.txt")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_kpis([kpi_row("drift_score", 0.2)], FOUNDING_KPIS, path / "below_a_file.prom")
    assert path.read_text() == before


def test_every_threshold_of_a_rule_is_its_declarations() -> None:
    rules = {rule.name: rule for rule in monitor_rules("spring", FOUNDING_KPIS, 24)}
    for kpi in FOUNDING_KPIS:
        name = "Uplift" + "".join(part.title() for part in kpi.name.split("_"))
        assert (name in rules) == (kpi.alert is not None) == (f"{name}Absent" in rules)
        if kpi.alert is not None:
            rule = rules[name]
            sign = re.escape("> " if kpi.better == "below" else "< ")
            assert re.search(rf"\) {sign}{re.escape(repr(kpi.alert))} and .* >= {kpi.min_n}$", rule.expr)
            assert rule.severity == kpi.severity and kpi.definition in rule.summary
    changed = monitor_rules("spring", [replace(kpi_named("drift_score"), alert=0.3)], 24)
    assert "> 0.3 and" in changed[0].expr
    assert monitor_rules("spring", [kpi_named("cost_per_incremental")], 24) == []


def test_no_label_of_a_rule_holds_a_value() -> None:
    for rule in [
        *monitor_rules("spring", FOUNDING_KPIS, 24),
        *service_rules("spring", FOUNDING_KPIS),
        *platform_rules(),
    ]:
        assert set(rule.labels) <= {"severity", "campaign", "kpi"} and "{{" not in str(rule.labels)


def test_a_rule_that_cannot_fire_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.kpis\.error_rate\.alert is 1, but a share is never above that"):
        monitor_rules("spring", [replace(kpi_named("error_rate"), alert=1.0)], 24)
    with pytest.raises(ConfigError, match="a share is never below that"):
        monitor_rules("spring", [replace(kpi_named("delivery_rate"), alert=0.0)], 24)
    # A burn rate that even a total outage does not reach has no rule.
    loose = [replace(kpi, target=0.1, alert=None) if kpi.name == "error_rate" else kpi for kpi in FOUNDING_KPIS]
    names = [rule.name for rule in service_rules("spring", loose)]
    assert "UpliftErrorRateBurn1h" not in names and "UpliftErrorRateBurn6h" in names


def test_files_name_one_another_and_keep_campaigns_apart() -> None:
    names = RuleFileNames()
    rules = [rule for name in ("spring", "autumn") for rule in monitor_rules(name, FOUNDING_KPIS, 24)]
    files = rule_files(
        [*rules, *service_rules("spring", FOUNDING_KPIS)], serving_records("spring", FOUNDING_KPIS), names
    )
    assert list(files) == [names.kpis, names.service]
    assert list(rule_files(rules, [], names)) == [names.kpis]
    for group in yaml.safe_load(files[names.kpis])["groups"]:
        campaign = group["name"].removeprefix("uplift-")
        assert all(f'campaign="{campaign}"' in rule["expr"] for rule in group["rules"])
    targets = ScrapeTargets(services={"spring": "localhost:8000"}, key_file="/etc/key")
    content = yaml.safe_load(prometheus_file(targets, files))
    assert content["rule_files"] == list(files)
    service = content["scrape_configs"][1]
    assert service["authorization"] == {"credentials_file": "/etc/key"}
    assert service["static_configs"] == [{"targets": ["localhost:8000"], "labels": {"campaign": "spring"}}]


def test_alertmanager_groups_by_campaign_and_severity() -> None:
    x, y = ({"slack_configs": [{"api_url_file": name}]} for name in "xy")
    content = yaml.safe_load(alertmanager_file({"spring": {"page": x}, "autumn": {"page": y, "ticket": y}}))
    assert content["route"]["group_by"] == ["campaign", "severity"]
    routes, receivers = content["route"]["routes"], {one.pop("name"): one for one in content["receivers"]}
    assert set(receivers) == {one["receiver"] for one in routes}
    # Nobody reads of another campaign's alerts; those of the machine, which have no campaign, reach everybody once.
    first = next(one for one in routes if 'campaign="spring"' in one["matchers"])
    assert 'severity="page"' in first["matchers"] and receivers[first["receiver"]] == x
    assert receivers["spring-ticket"] == {} and receivers["autumn-ticket"] == y
    assert receivers["page"] == {"slack_configs": x["slack_configs"] + y["slack_configs"]} and receivers["ticket"] == y
