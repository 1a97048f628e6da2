"""Dashboards: each KPI where it belongs, and every query answered by a Prometheus that scrapes the real text file."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tests.monitoring.services import prometheus, query, receiver, waited_for
from uplift_spark.monitoring.grafana import dashboards, panel_queries
from uplift_spark.monitoring.kpis import FOUNDING_KPIS
from uplift_spark.monitoring.prometheus import (
    RuleFileNames,
    ScrapeTargets,
    monitor_rules,
    platform_rules,
    prometheus_file,
    rule_files,
    service_rules,
    serving_records,
    write_kpis,
)


def test_each_kpi_has_a_panel_with_its_sentence_and_thresholds() -> None:
    pages = dashboards(FOUNDING_KPIS, served=True)
    assert list(pages) == ["executive", "on-call", "debug"]
    panels = {panel["title"]: panel for panel in pages["debug"]["panels"]}
    for kpi in FOUNDING_KPIS:
        panel = panels[kpi.name.replace("_", " ")]
        assert panel["description"].startswith(kpi.definition)
        steps = {step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]}
        assert steps >= {one for one in (kpi.target, kpi.alert) if one is not None}
        assert [target["expr"].split("{")[0] for target in panel["targets"]] == [
            f"uplift_{kpi.name}{ending}" for ending in ("", "_lower", "_upper")
        ]
    assert "uplift roi" in {panel["title"] for panel in pages["executive"]["panels"]}
    assert {"latency of requests", "error budget left"} <= {panel["title"] for panel in pages["on-call"]["panels"]}
    assert "burn rate" not in {p["title"] for p in dashboards(FOUNDING_KPIS, served=False)["on-call"]["panels"]}


def test_pages_are_whole() -> None:
    for name, page in dashboards(FOUNDING_KPIS, served=True).items():
        assert page == json.loads(json.dumps(page)) and page["uid"] == f"uplift-{name}"
        assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
        boxes = [panel["gridPos"] for panel in page["panels"]]
        cells = [(x, box["y"]) for box in boxes for x in range(box["x"], box["x"] + box["w"])]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
        variables = {one["name"] for one in page["templating"]["list"]}
        assert variables == {"datasource", "campaign"}
        assert all("$campaign" in text for _, text in panel_queries(page))


@pytest.mark.slow
def test_every_panel_has_data_from_a_real_prometheus(tmp_path: Path) -> None:
    """The node exporter is played by a server that answers with the text file, the service by its counters."""
    end = datetime.now(UTC) - timedelta(hours=1)
    rows = [
        {
            "campaign": "spring", "kpi": kpi.name, "value": 1.5 * (kpi.alert or 1), "lower": None, "upper": None,
            "n": 10_000, "window_end": end, "model_version": "3",
        }
        for kpi in FOUNDING_KPIS
    ]  # fmt: skip
    write_kpis(rows, FOUNDING_KPIS, tmp_path / "uplift.prom")
    registry = CollectorRegistry()
    requests = Counter("uplift_requests", "Requests answered", ("path", "status"), registry=registry)
    seconds = Histogram("uplift_request_seconds", "Seconds", ("path",), registry=registry)
    for status in ("200", "500"):
        requests.labels("/v1/effects", status)
    with receiver() as node, receiver() as service:
        node.page = (tmp_path / "uplift.prom").read_text()
        targets = ScrapeTargets(
            nodes=(node.address.removeprefix("http://"),), services={"spring": service.address.removeprefix("http://")}
        )
        rules = [
            *monitor_rules("spring", FOUNDING_KPIS, 24),
            *service_rules("spring", FOUNDING_KPIS),
            *platform_rules(),
        ]
        files = rule_files(rules, serving_records("spring", FOUNDING_KPIS), RuleFileNames())
        files["prometheus.yml"] = prometheus_file(targets, files, interval="1s")
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with prometheus(tmp_path) as address:
            for _ in range(20):  # traffic that goes on, of which some fails
                requests.labels("/v1/effects", "200").inc(5)
                requests.labels("/v1/effects", "500").inc(2)
                seconds.labels("/v1/effects").observe(0.12)
                service.page = generate_latest(registry).decode()
                time.sleep(0.5)
            waited_for(lambda: query(address, "slo:period_error_budget_remaining:ratio"))
            waited_for(lambda: query(address, 'ALERTS{alertname="UpliftErrorRateBurn1h", alertstate="firing"}'))
            pages = dashboards(FOUNDING_KPIS, served=True)
            every = [(name, *pair) for name, page in pages.items() for pair in panel_queries(page)]
            assert len(every) > 70
            without = [
                (name, title, text)
                for name, title, text in every
                if not query(address, text.replace("$campaign", "spring"))
            ]
            assert without == []
            assert float(query(address, "uplift_delivery_rate")[0]["value"][1]) == pytest.approx(1.485)
