"""Decisions and sentences: each claim recomputed from the figures."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd
import pytest

from tests.dashboards.samples import monitored, sample_frames, sample_tables
from uplift_spark.dashboards.metrics import (
    campaign_decision,
    debug_metrics,
    executive_metrics,
    no_signal,
    oncall_metrics,
)
from uplift_spark.evaluation.html_page import short


def plan_of(observed: float, half: float) -> dict[str, pd.DataFrame]:
    frames = sample_frames()
    plan = frames["policy_curve"].assign(
        observed=observed, observed_lower=observed - half, observed_upper=observed + half
    )
    return {**{k: v for k, v in frames.items() if k not in monitored()}, "policy_curve": plan}


HEALTH = pd.DataFrame({"as_of": [1, 2], "severity": ["refuse", "refuse"], "check": ["too early", "ratio"]})
MENDED = HEALTH.assign(severity=["refuse", "ok"])


@pytest.mark.parametrize(
    ("frames", "action", "words"),
    [
        (plan_of(900.0, 100.0), "expand", "brings 900 after costs, 95 % interval 800 to 1,000"),
        (plan_of(50.0, 100.0), "hold", "not proven"),
        (plan_of(-900.0, 100.0), "stop", "loses money"),
        ({}, "hold", "Nothing was evaluated"),
        (plan_of(900.0, 100.0) | {"alerts": monitored()["alerts"]}, "hold", "An alert that pages is open: error_rate"),
        (
            plan_of(900.0, 100.0) | {"kpi": monitored()["kpi"], "drift": monitored()["drift"].assign(state="trigger")},
            "hold", "Drift persists in age, region",
        ),
        (
            plan_of(900.0, 100.0)
            | {"experiment": pd.DataFrame({"job": ["readout"], "as_of": [1], "verdict": ["roll back"]})},
            "stop", "roll back",
        ),
        (
            plan_of(900.0, 100.0) | {"experiment_health": HEALTH},
            "hold", "refuses a reading: ratio",
        ),
    ],
)  # fmt: skip
def test_the_badge_follows_from_the_tables(frames, action, words):
    decision = campaign_decision(sample_tables(frames))
    assert decision.action == action and words in " ".join(decision.reasons)


def test_what_an_earlier_reading_refused_is_past():
    assert campaign_decision(sample_tables(plan_of(900.0, 100.0) | {"experiment_health": MENDED})).action == "expand"


def test_executive_figures_and_sentences():
    tables = sample_tables()
    roi, uplift, spend, net, coverage, drift, programme = executive_metrics(tables)
    row = tables.frames["policy_curve"].iloc[1]
    assert roi.value == row["observed"] / row["cost"] and roi.lower == row["observed_lower"] / row["cost"]
    assert short(roi.value) in roi.sentence and "Spending pays" in roi.sentence
    effect = tables.page.metric("ate", "mail")
    assert (uplift.value, uplift.scale, uplift.unit) == (effect["value"], 100.0, "percentage points")
    assert f"{short(effect['value'] * 1000)} more of 1,000 units" in uplift.sentence
    assert (
        spend.value == 1000 and "100 % of the budget of 1,000" in spend.sentence and "would gain 0.31" in spend.sentence
    )
    assert coverage.value == 2000 / 5000 and "bars 100, most by “kept out at random”" in coverage.sentence
    assert drift.value == 0.5 and "region differs in the newest window only" in drift.sentence
    assert "100 units are kept out at random" in programme.sentence
    assert np.isnan(net.value) and "run `uplift costs`" in net.sentence


def roi(net: tuple[float, float, float], forecast: tuple[float, float, float] = (np.nan,) * 3, ends=None) -> dict:
    """gold.roi of two runs, of which the second knows more."""
    names = ("", "_lower", "_upper")
    row = {f"net{name}": value for name, value in zip(names, net, strict=True)}
    row |= {f"forecast{name}": value for name, value in zip(names, forecast, strict=True)}
    row |= {
        "model_version": "all",
        "cost": 250.0,
        "gain": net[0] + 250,
        "treated": 2000,
        "budget": 1000.0,
        "ends": ends,
    }
    at = pd.to_datetime(["2025-03-08", "2025-03-09"], utc=True)
    rows = pd.DataFrame([row | {"net": -1.0}, row]).assign(as_of=at, ingested_at=at, note="12 units of the control")
    return {"roi": rows.sample(frac=1, random_state=1)}


@pytest.mark.parametrize(
    ("net", "tone", "said"),
    [
        ((500.0, 100.0, 900.0), "good", "brought 750. The campaign has paid for itself"),
        ((-500.0, -900.0, -100.0), "bad", "has lost money"),
        ((100.0, -300.0, 500.0), "warn", "may have paid or lost"),
        ((np.nan, np.nan, np.nan), "plain", "not known: 12 units of the control"),
    ],
)
def test_all_costs_are_held_against_what_came_back(net, tone, said):
    (metric,) = [one for one in executive_metrics(sample_tables(roi(net))) if one.label == "Net of all costs, so far"]
    assert metric.tone == tone and said in metric.sentence and "2,000 treated units" in metric.sentence
    np.testing.assert_array_equal([metric.value, metric.lower, metric.upper], net)


@pytest.mark.parametrize(
    ("forecast", "tone", "said"),
    [
        ((800.0, 700.0, 900.0), "good", "within the budget of 1,000: nothing to do"),
        ((1200.0, 1050.0, 1350.0), "bad", "over the budget of 1,000: lower policy.budget"),
        ((1020.0, 900.0, 1140.0), "warn", "perhaps over the budget of 1,000: look again"),
        ((np.nan, np.nan, np.nan), "plain", "on too few days that are over to forecast what comes"),
    ],
)
def test_the_cost_by_the_end_is_held_against_the_budget(forecast, tone, said):
    metrics = executive_metrics(sample_tables(roi((1.0, 0.0, 2.0), forecast, date(2025, 3, 31))))
    (metric,) = [one for one in metrics if one.label == "Cost by the end"]
    assert metric.tone == tone and said in metric.sentence


def test_outcomes_of_which_less_is_better_turn_the_words():
    better = executive_metrics(sample_tables())[1]
    worse = executive_metrics(sample_tables(direction="decrease"))[1]
    assert better.tone == "good" and worse.tone == "bad" and "does harm" in worse.sentence


def test_oncall_figures_and_sentences():
    metrics = {one.label: one for one in oncall_metrics(sample_tables())}
    assert metrics["Latency, p95"].value == 120.5 and "In order" in metrics["Latency, p95"].sentence
    assert "99th percentile" in metrics["Latency, p99"].sentence
    errors = metrics["Error rate"]
    assert (errors.tone, errors.value, errors.scale) == ("bad", 0.0301, 100.0) and "beyond 2 %" in errors.sentence
    assert "nobody is called yet" in metrics["Feature freshness"].sentence
    assert metrics["Open alerts"].value == 1 and "1 of them page" in metrics["Open alerts"].sentence
    assert metrics["Backlog of windows"].value == 0  # the newest window ended an hour ago
    budget = metrics["Error budget of error rate"]
    assert budget.value == pytest.approx(1 - 0.0301 / 0.01) and "used up 3.01 times over" in budget.sentence
    delivery = metrics["Error budget of delivery rate"]
    assert delivery.value == pytest.approx(1 - 0.005 / 0.01) and delivery.tone == "good"


def test_a_monitor_that_stands_still_is_a_backlog():
    tables = sample_tables(now=sample_tables().now + pd.Timedelta(days=4).to_pytimedelta())
    backlog = {one.label: one for one in oncall_metrics(tables)}["Backlog of windows"]
    assert backlog.value == 4 and "4 windows wait" in backlog.sentence


def test_too_few_observations_are_grey():
    frames = sample_frames()
    frames["kpi"] = frames["kpi"].assign(state="too_few", n=12.0)
    assert all(one.low for one in oncall_metrics(sample_tables(frames)) if one.source == "kpi" and one.unit == "ms")


def test_debug_figures_and_sentences():
    frames = sample_frames() | {
        "retrain": pd.DataFrame(
            {"window_end": [1, 1], "check": ["age", "decision"], "decision": ["blocked"] * 2, "run_id": ["r"] * 2,
             "sentence": ["", "An incident forbids it."]}
        ),
        "canary": pd.DataFrame(
            {"step": [1, 2], "canary": ["c"] * 2, "challenger": ["4"] * 2, "champion": ["3"] * 2, "share": [0.05] * 2,
             "state": ["running", "rolled back"], "reason": [None, "Errors rose."]}
        ),
    }  # fmt: skip
    metrics = {one.label: one for one in debug_metrics(sample_tables(frames))}
    assert "The order of the units is right" in metrics["Qini of mail"].sentence
    assert (
        metrics["Interval width, mail"].value == 0.05
        and "5 percentage points wide" in metrics["Interval width, mail"].sentence
    )
    assert "The last decision was blocked: An incident forbids it." in metrics["Retrains"].sentence
    assert "version 4 against 3 is rolled back. Errors rose." in metrics["Canaries"].sentence
    top = metrics["Top features of mail"]
    assert "By SHAP, recency moves the model's predictions most" in top.sentence and "bears recency out" in top.sentence
    assert (top.value, top.scale, top.n, top.tone) == (0.0171, 100.0, 4321.0, "good")


def test_no_signal_is_said_where_there_is_none():
    assert "may be zero" in no_signal(sample_tables(sample_frames((0.0, 0.0))))
    assert "too few units" in no_signal(sample_tables(sample_frames(n=1)))
    assert no_signal(sample_tables()) == "" == no_signal(sample_tables({}))
    assert np.isnan(executive_metrics(sample_tables({}, decisions=None))[0].value)
