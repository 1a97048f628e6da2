"""`uplift monitor`: a campaign that assigns units day by day, from its reference to triggers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from pyspark.sql import functions as F

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import features, ingest, monitor, train
from uplift_spark.lake.schemas import COSTS_TABLE, ROI_TABLE
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.detectors import DETECTORS
from uplift_spark.monitoring.kpis import FOUNDING_KPIS
from uplift_spark.monitoring.spark import last_runs, lasting, request_sums
from uplift_spark.sections.alerts import Alerts

START, DAYS, UNITS = datetime(2025, 1, 6, tzinfo=UTC), (0, 1, 7, 8, 14, 15), 700
SHIFTED = (14, 15)


def assigned() -> pd.DataFrame:
    """Units of each day; `age` is shifted from the third week on."""
    rng = np.random.default_rng(5)
    n = UNITS * len(DAYS)
    day = np.repeat(DAYS, UNITS)
    age = rng.normal(40, 10, n) + 12 * np.isin(day, SHIFTED)
    arm = rng.choice(["none", "mail"], n)
    bought = rng.random(n) < 0.2 + (arm == "mail") * (0.25 + 0.1 * (age > 40))
    when = pd.Timestamp(START.replace(tzinfo=None)) + pd.to_timedelta(day * 24 + rng.uniform(0, 24, n), unit="h")
    city = rng.choice(["Rome", "Oslo"], n)
    columns = {
        "unit": [f"u{i}" for i in range(n)],
        "arm": arm,
        "bought": bought.astype(float),
        "age": age,
        "city": city,
    }
    return pd.DataFrame({**columns, "at": when.astype("datetime64[us]")})


def conf(folder, lake: Lake, **monitoring) -> Config:
    return TypeAdapter(Config).validate_python(
        {
            "campaign": "daily",
            "source": {
                **{"kind": "table", "path": str(folder / "units.parquet"), "unit": "unit", "treatment": "arm"},
                **{"outcomes": ["bought"], "attributes": ["age", "city"], "assigned_at": "at"},
            },
            "roles": {"outcome": "bought", "control": "none", "features": ["age", "city"]},
            "labels": {"window_days": 2},
            "forest": {"n_trees": 8, "min_leaf": 20, "n_buckets": 2},
            "economics": {"value": {"bought": 10}, "cost": {"mail": 0.5}},
            "lakehouse": {"path": lake.lakehouse.path},
            "monitoring": {
                "kpis": {
                    "buyers": {
                        **{"table": "bronze.outcome", "time": "occurred_at", "value": "value"},
                        **{"better": "above", "alert": 0.1, "unit": "share"},
                    }
                },
                **monitoring,
            },
        }
    )


@pytest.fixture(scope="module")
def campaign(spark, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("daily")
    assigned().to_parquet(folder / "units.parquet")
    lake = Lake(spark, Lakehouse(path=str(folder / "lakehouse")))
    campaign = Campaign(conf(folder, lake), lake)
    for job in (ingest, features, train):
        job.run(campaign)
    return campaign


def day(number: int) -> datetime:
    return START + timedelta(days=number, hours=9)


def test_a_window_is_monitored_once(campaign: Campaign) -> None:
    result = monitor.run(campaign, window=day(0))
    kpis = rows_of(campaign.lake, "gold.kpi", run_id=result.run_id)
    assert set(kpis["kpi"]) >= {kpi.name for kpi in FOUNDING_KPIS} | {"buyers", "estimated_lift", "observed_lift"}
    assert set(kpis["campaign"]) == {"daily"} and set(kpis["model_version"]) == {"1"}
    by = kpis.set_index("kpi")
    truth = assigned()
    today = truth[truth["at"].dt.day == 6]
    means = today.groupby("arm")["bought"].mean()
    assert by.loc["observed_lift", "value"] == pytest.approx(means["mail"] - means["none"], abs=1e-9)
    assert by.loc["estimated_lift", "lower"] < 0.3 < by.loc["estimated_lift", "upper"]
    assert by.loc["uplift_roi", "value"] == pytest.approx(10 * by.loc["observed_lift", "value"] / 0.5 - 1)
    assert by.loc["outcome_completeness", "state"] == "ok"
    assert by.loc["prediction_latency", "state"] == "no_data" and np.isnan(by.loc["prediction_latency", "value"])
    tables = {"gold.kpi", "gold.drift", "gold.findings", "gold.window_sums"}
    assert tables <= set(result.tables) <= tables | {"gold.alerts"}
    drift = rows_of(campaign.lake, "gold.drift", run_id=result.run_id).set_index("name")
    assert set(drift.index) == {"age", "city", "uplift:mail", "propensity:none", "propensity:mail"}
    assert drift.loc["city", "n"] == len(today)
    assert "estimated_lift of mail" in result.details["summary"]

    again = monitor.run(campaign, window=day(0))
    assert again.run_id == result.run_id and not again.tables
    assert len(rows_of(campaign.lake, "gold.kpi", run_id=result.run_id)) == len(kpis)
    for table in tables - {"gold.alerts"}:  # of two runs that knew the same the one that wrote last counts
        assert campaign.lake.read(table).where("ingested_at IS NULL").isEmpty(), table


@pytest.mark.slow
def test_what_cannot_be_monitored_is_one_sentence(campaign: Campaign) -> None:
    with pytest.raises(DataError, match=r"2025-01-09 .* is empty: table bronze.assignment has no unit .* 2025-01-21"):
        monitor.run(campaign, window=day(3))
    with pytest.raises(ConfigError, match="is not over"):
        monitor.run(campaign, window=day(3), now=day(2))
    monitor.run(campaign, window=day(1))
    with pytest.raises(ConfigError, match="the clock goes back"):
        monitor.run(campaign, now=day(1))
    with pytest.raises(ConfigError, match=r"--window 'soon' is no time"):
        monitor.options("soon")
    config = replace(campaign.config, registry=replace(campaign.config.registry, version=9))
    with pytest.raises(ConfigError, match="9"):
        monitor.run(campaign.changed(config), window=day(0))


@pytest.mark.slow
def test_a_shift_is_drift_in_its_first_window_and_a_trigger_in_the_next(campaign: Campaign) -> None:
    states = {}
    for number in DAYS:
        result = monitor.run(campaign, window=day(number))
        drift = rows_of(campaign.lake, "gold.drift", run_id=result.run_id).set_index("name")
        states[number] = drift["state"].to_dict()
        checks = set(rows_of(campaign.lake, "gold.findings", run_id=result.run_id)["finding"])
        assert checks <= set(DETECTORS)
        assert ("drift" in checks) == (number == 15)
    assert [states[number]["age"] for number in (7, 8)] == ["season", "season"]  # the training set has the shift
    assert [states[number]["age"] for number in SHIFTED] == ["drift", "trigger"]
    assert {states[number]["city"] for number in DAYS} == {"steady"}


@pytest.mark.slow
def test_requests_that_were_served(campaign: Campaign) -> None:
    times = campaign.lake.spark.range(1000).select(
        F.timestamp_seconds(F.lit(int(START.timestamp())) + F.col("id") * 80).alias("at"),
        (F.col("id") % 100 + 1.0).alias("took"),
        (F.when(F.col("id") % 20 == 0, 500).otherwise(200)).alias("status"),
    )
    ends, counts, failed, n = request_sums(times.withColumn("took", F.col("took") - 1), "took", "status >= 500")
    assert (ends[0], counts[0], counts.sum(), failed, n) == (
        pytest.approx(1e-3, rel=0.07),
        10,
        1000,
        50,
        1000,
    )  # none took none
    for ms, fails, says in (
        ("if(took > 99, null, took)", "status >= 500", "ms is no time from 0 on in 10 of 1,000 requests"),
        ("if(took > 99, double('NaN'), took)", "status >= 500", "ms is no time from 0 on in 10 of 1,000 requests"),
        ("took", "if(status = 500, null, false)", "failed is null in 50 of 1,000 requests"),
    ):
        with pytest.raises(DataError, match=says):
            request_sums(times, ms, fails)
    campaign.lake.write("bronze.requests", times, "log")
    section = {"table": "bronze.requests", "time": "at", "ms": "took * 10", "failed": "status >= 500"}
    monitoring = replace(campaign.config.monitoring, requests=section)
    result = monitor.run(campaign.changed(replace(campaign.config, monitoring=monitoring)), window=day(0))
    by = rows_of(campaign.lake, "gold.kpi", run_id=result.run_id).set_index("kpi")
    assert by.loc["prediction_latency", "value"] == pytest.approx(950, rel=0.07)
    assert by.loc["prediction_latency", "state"] == "alert"
    assert by.loc["error_rate", ["value", "state"]].to_list() == [0.05, "alert"]


@pytest.mark.slow
def test_of_a_window_the_run_that_knew_most_counts_and_of_those_the_last(spark) -> None:
    at = [START + timedelta(hours=hour) for hour in (0, 1, 24)]
    rows = [
        (at[0], at[2], at[0], at[1], "zzz"),  # knew less
        (at[0], at[2], at[1], at[0], "yyy"),  # as much, but wrote first
        (at[0], at[2], at[1], at[1], "aaa"),
        (at[0], at[1], at[2], at[2], "hour"),  # of another length
    ]
    frame = spark.createDataFrame(
        rows, "window_start timestamp, window_end timestamp, as_of timestamp, ingested_at timestamp, run_id string"
    )
    assert last_runs(frame.where(lasting(24))) == {START: "aaa"}
    assert last_runs(frame.where(lasting(1))) == {START: "hour"}


@pytest.mark.slow
def test_alerts_open_reach_people_and_resolve_whoever_is_killed(campaign: Campaign, tmp_path, monkeypatch) -> None:
    log, prom = tmp_path / "alerts.jsonl", tmp_path / "uplift.prom"
    sinks = {"log": {"kind": "file", "path": str(log)}}
    alerts = {"sinks": sinks, "outbox": str(tmp_path / "outbox"), "textfile": str(prom), "settle_minutes": 0}

    def with_alert(threshold: float) -> Campaign:
        """The campaign with a KPI of about .3 that must lie below the threshold."""
        own = {
            "table": "bronze.outcome",
            "time": "occurred_at",
            "value": "value",
            "better": "below",
            "severity": "page",
        }
        plain = conf(tmp_path, campaign.lake, kpis={"sales": {**own, "alert": threshold}})
        return campaign.changed(
            replace(plain, source=campaign.config.source, alerts=TypeAdapter(Alerts).validate_python(alerts))
        )

    def history() -> list[tuple[str, str, bool]]:
        rows = rows_of(campaign.lake, "gold.alerts", rule="sales").sort_values("sequence")
        return list(zip(rows["event"], rows["severity"], rows["notify"], strict=True))

    def lines(happening: str) -> int:
        events = [one for line in log.read_text().splitlines() for one in json.loads(line)["events"]]
        return sum((one["rule"], one["event"]) == ("sales", happening) for one in events)

    result = monitor.run(with_alert(0.01), window=day(15))
    assert history() == [("fired", "page", True)] and lines("fired") == 1
    assert "page sales" in result.details["alerts"] and "gold.alerts" in result.tables
    assert 'uplift_sales{campaign="daily",cut="all"}' in prom.read_text()
    assert not list((tmp_path / "outbox").glob("*/*.json"))
    again = monitor.run(with_alert(0.01), window=day(15))
    assert again.run_id == result.run_id and not again.tables and lines("fired") == 1

    write = Lake.write

    def killed(self, table, *args, **options):
        if table == "gold.alerts":
            raise KeyboardInterrupt
        return write(self, table, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "write", killed)
        monitor.run(with_alert(1000.0), window=day(15))
    assert len(history()) == 1
    monitor.run(with_alert(1000.0), window=day(15))  # the figures are there already; what is lacking are the alerts
    assert history() == [("fired", "page", True), ("resolved", "page", True)] and lines("resolved") == 1
    rules = set(rows_of(campaign.lake, "gold.alerts")["rule"])
    assert rules <= {kpi.name for kpi in FOUNDING_KPIS} | set(DETECTORS) | {"sales", "buyers"}


@pytest.mark.slow
def test_a_budget_that_will_not_hold_is_an_alert(campaign: Campaign) -> None:
    """Of the forecasts the last one counts that was known before the next window was over."""
    lake, days = campaign.lake, [day(number).date() for number in range(16)]
    for as_of, budget in ((day(16), 1000.0), (day(17), 10.0), (day(15), 5000.0)):
        known = {"campaign": "daily", "model_version": "all", "as_of": as_of, "budget": budget, "cost": 900.0}
        known |= {"forecast": 1100.0, "forecast_lower": 1050.0, "forecast_upper": 1200.0, "ends": date(2025, 2, 28)}
        spent = [{"campaign": "daily", "day": one, "kind": "treating", "amount": 1.0} for one in days]
        spent += [{"campaign": "daily", "day": date(2024, 1, 1), "kind": "expense", "amount": 1.0}]
        lake.write(COSTS_TABLE, lake.filled(COSTS_TABLE, spent), f"costs-{as_of:%d}")
        other = {**known, "campaign": "another", "budget": 1.0}
        lake.write(ROI_TABLE, lake.filled(ROI_TABLE, [known, other]), f"costs-{as_of:%d}")
    result = monitor.run(campaign, window=day(15))
    by = rows_of(lake, "gold.kpi", run_id=result.run_id).set_index("kpi")
    figures = by.loc["cost_forecast", ["value", "lower", "upper", "n", "state", "severity"]].to_list()
    assert figures == [pytest.approx(1.1), pytest.approx(1.05), pytest.approx(1.2), 16, "alert", "ticket"]
    assert "ticket cost_forecast" in result.details["alerts"] and "cost_forecast: 1.1" in result.details["summary"]
    assert not monitor.run(campaign, window=day(15)).tables  # nothing is new
    early = monitor.run(campaign, window=day(1))
    assert rows_of(lake, "gold.kpi", run_id=early.run_id).set_index("kpi").loc["cost_forecast", "state"] == "no_data"
