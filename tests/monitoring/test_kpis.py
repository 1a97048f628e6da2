"""KPIs: founding thresholds, thresholds the wrong way round, and how a value with an interval is read."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError
from uplift_spark.monitoring.files import is_measured
from uplift_spark.monitoring.kpis import FORECAST_KPI, FOUNDING_KPIS, Kpi, campaign_kpis, kpi_named, with_thresholds
from uplift_spark.sections.costs import Costs
from uplift_spark.sections.monitoring import Monitoring

NAN = math.nan


def test_founding_thresholds() -> None:
    thresholds = {kpi.name: (kpi.target, kpi.alert) for kpi in FOUNDING_KPIS}
    assert thresholds == {
        "prediction_latency": (200, 250),
        "error_rate": (0.01, 0.02),
        "drift_score": (0.05, 0.1),
        "lift_degradation": (0.05, 0.1),
        "delivery_rate": (0.99, 0.99),
        "outcome_completeness": (0.99, 0.99),
        "feature_freshness": (5, 30),
        "uplift_interval_width": (1.25, 1.5),
        "uplift_roi": (0, 0),
        "cost_per_incremental": (None, None),
        "cost_forecast": (1, 1),
    }


@pytest.mark.parametrize(
    ("name", "value", "lower", "upper", "n", "state"),
    [
        ("error_rate", 0.005, 0.004, 0.006, 5000, "ok"),
        ("error_rate", 0.015, 0.012, 0.018, 5000, "missed"),
        ("error_rate", 0.03, 0.025, 0.035, 5000, "alert"),
        ("error_rate", 0.03, 0.019, 0.041, 5000, "unsure"),
        ("error_rate", 1.0, 0.2, 1.0, 1, "too_few"),
        ("error_rate", NAN, NAN, NAN, 0, "no_data"),
        ("lift_degradation", 0.3, 0.02, 0.58, 5000, "alert"),
        ("lift_degradation", 0.3, -0.02, 0.62, 5000, "unsure"),
        ("lift_degradation", 0.08, 0.02, 0.14, 5000, "missed"),
        ("delivery_rate", 0.95, 0.94, 0.96, 5000, "alert"),
        ("delivery_rate", 0.985, 0.97, 0.995, 5000, "unsure"),
        ("delivery_rate", 0.995, 0.99, 1.0, 5000, "ok"),
        ("feature_freshness", 45, NAN, NAN, 1, "alert"),
        ("cost_per_incremental", 1e9, NAN, NAN, 5000, "ok"),
        ("cost_forecast", 0.98, 0.9, 1.06, 20, "ok"),
        ("cost_forecast", 1.02, 0.94, 1.1, 20, "unsure"),
        ("cost_forecast", 1.2, 1.1, 1.3, 20, "alert"),
    ],
)
def test_states(name: str, value: float, lower: float, upper: float, n: float, state: str) -> None:
    assert kpi_named(name).state(value, lower, upper, n) == state


def test_an_interval_of_the_needed_size_would_tell() -> None:
    kpi = kpi_named("error_rate")
    needed = kpi.n_needed(0.03, 0.019, 0.041, 5000)
    assert needed == pytest.approx(5000 * (0.011 / 0.01) ** 2, abs=2)
    half = 0.011 * math.sqrt(5000 / (needed + 1))
    assert kpi.state(0.03, 0.03 - half, 0.03 + half, needed + 1) == "alert"
    assert kpi.n_needed(0.02, 0.01, 0.03, 5000) == math.inf
    assert kpi_named("lift_degradation").n_needed(0.3, -0.3, 0.9, 5000) == 20_000
    assert math.isnan(kpi_named("cost_per_incremental").n_needed(1, 0, 2, 50))
    assert math.isnan(kpi_named("cost_forecast").n_needed(1.02, 0.94, 1.1, 20))  # days to come are no sample


def test_error_rates_at_the_threshold_alert_as_often_as_the_interval_misses() -> None:
    """True rate at the alert threshold, 99.9 % intervals: 1 window in 2,000 is an alert, plus noise."""
    rng, kpi, n = np.random.default_rng(5), kpi_named("error_rate"), 20_000
    rate = rng.binomial(n, 0.02, 4000) / n
    half = 3.29 * np.sqrt(rate * (1 - rate) / n)
    states = [kpi.state(r, r - h, r + h, n) for r, h in zip(rate, half, strict=True)]
    assert states.count("alert") / len(states) < 0.002
    assert states.count("unsure") / len(states) > 0.4  # what a plain reading would call alerts


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"error_rate.*wrong way round: less is better.*\(0.005\).*swap"):
        with_thresholds(FOUNDING_KPIS, {"error_rate": {"alert": 0.005}})
    with pytest.raises(ConfigError, match=r"delivery_rate.*wrong way round: more is better"):
        with_thresholds(FOUNDING_KPIS, {"delivery_rate": {"alert": 0.995}})
    with pytest.raises(ConfigError, match=r"alert is inf"):
        with_thresholds(FOUNDING_KPIS, {"error_rate": {"alert": math.inf}})
    with pytest.raises(ConfigError, match="min_n is 0"):
        with_thresholds(FOUNDING_KPIS, {"error_rate": {"min_n": 0}})


def test_unknown_kpis_are_refused_with_what_they_may_mean() -> None:
    with pytest.raises(ConfigError, match="KPI 'eror_rate' is unknown: did you mean 'error_rate'"):
        with_thresholds(FOUNDING_KPIS, {"eror_rate": {"alert": 0.5}})


def test_thresholds_are_replaced_one_by_one() -> None:
    kpis = with_thresholds(FOUNDING_KPIS, {"error_rate": {"alert": 0.5}, "uplift_roi": {"target": None}})
    assert kpi_named("error_rate", kpis) == Kpi(
        *("error_rate", "share", "below", 0.01, 0.5, 100),
        "Share of the requests for predictions that fail by a fault of the service.",
        *("share", "page", "requests"),
    )
    assert kpi_named("uplift_roi", kpis).target is None
    assert [kpi.name for kpi in kpis] == [kpi.name for kpi in FOUNDING_KPIS]


def test_users_add_kpis_and_thresholds() -> None:
    section = TypeAdapter(Monitoring).validate_python(
        {
            "kpis": {
                "error_rate": {"alert": "0.05"},
                "uplift_roi": {"target": None, "alert": None},
                "refunds": {
                    **{"table": "bronze.outcome", "time": "occurred_at", "value": "if(outcome = 'refund', 1, 0)"},
                    **{"better": "below", "alert": 0.1, "unit": "share", "definition": "Share of refunds."},
                },
            }
        }
    )
    kpis = {kpi.name: kpi for kpi in campaign_kpis(section)}
    assert (kpis["error_rate"].target, kpis["error_rate"].alert) == (0.01, 0.05)
    assert (kpis["uplift_roi"].target, kpis["uplift_roi"].alert) == (None, None)
    assert kpis["refunds"].alert == 0.1 and kpis["refunds"].definition == "Share of refunds."


@pytest.mark.parametrize(
    ("kpis", "sentence"),
    [
        ({"eror_rate": {"alert": 0.1}}, r"kpis.eror_rate is no KPI \(.* and better\): did you mean 'error_rate'"),
        ({"error_rate": {"alert": 0.001}}, r"wrong way round"),
        ({"error_rate": {"alert": 2.0}}, r"error_rate.alert is 2, but a share is never above that: nobody would"),
        ({"delivery_rate": {"alert": 0.0}}, r"delivery_rate.alert is 0, but a share is never below that"),
        ({"mine": {"value": "1"}}, r"kpis.mine has value and no table"),
        ({"mine": {"table": "gold.x", "value": "1"}}, r"kpis.mine is a KPI of your own and lacks time, better"),
        ({"error_rate": {"table": "gold.x", "time": "t", "value": "1", "better": "below"}}, r"give your own another"),
        ({"mine": {"table": "gold.x", "time": "t", "value": "(select 1)", "better": "below"}}, r"kpis.mine.value"),
    ],
)
def test_kpis_of_a_configuration_that_are_wrong(kpis: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        campaign_kpis(TypeAdapter(Monitoring).validate_python({"kpis": kpis}))


def test_the_forecast_is_watched_where_there_is_a_budget() -> None:
    plain = Config("spring", None, RolesConf("visit", "none", ("age",)))
    kpi = kpi_named(FORECAST_KPI)
    budget = Costs(budget=1000.0, end=date(2026, 12, 31))
    shown = [is_measured(replace(plain, costs=costs), kpi) for costs in (None, Costs(), budget)]
    assert shown == [False, False, True]
