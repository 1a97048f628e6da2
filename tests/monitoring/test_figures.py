"""KPIs of a window: intervals that hold, and what a reader learns."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from uplift_spark.monitoring.detectors import Margin, WindowFacts
from uplift_spark.monitoring.drift import ColumnBins, ColumnDrift
from uplift_spark.monitoring.figures import (
    FigureSpec,
    KpiValue,
    _degradation,
    completeness_value,
    delivery_value,
    drift_value,
    forecast_value,
    freshness_value,
    latency_value,
    lift_values,
    ratio_value,
    share_value,
    window_summary,
)
from uplift_spark.monitoring.kpis import campaign_kpis, kpi_named
from uplift_spark.monitoring.lift import LiftEstimate, ScoreSums
from uplift_spark.monitoring.windows import label_delays
from uplift_spark.roles import Direction
from uplift_spark.sections.monitoring import Monitoring
from uplift_spark.stats.findings import Finding

SPEC = FigureSpec(campaign_kpis(TypeAdapter(Monitoring).validate_python({})))
BINS = ColumnBins(("x",), {"x": np.zeros(1)})


def lift_facts(seed: int, n: int, base: float, lift: float, value: float = 10.0, real: float = 1.0) -> WindowFacts:
    rng = np.random.default_rng(seed)
    low, high = sorted((0.0, 2 * lift))
    arm, uplift = rng.integers(0, 2, n), rng.uniform(low, high, n)
    outcome = (rng.random(n) < base + arm * lift * real).astype(float)
    sums = ScoreSums.of(np.linspace(low, high, 5)[1:-1], uplift, np.full(n, 0.1), arm, outcome, np.full(n, 2.0))
    return WindowFacts("none", BINS, scores={"mail": sums}, margins={"mail": Margin(value, 0.5)})


def by_name(values: object) -> dict[str, KpiValue]:
    return {one.kpi.name: one for one in values}  # type: ignore[attr-defined]


def test_shares_have_wilsons_interval() -> None:
    usual = FigureSpec(SPEC.kpis, alpha=0.05)
    value = share_value(usual, "error_rate", "all", 8, 10)
    assert (value.lower, value.upper) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_value(usual, "error_rate", "all", 0, 0).state == "no_data"
    assert share_value(SPEC, "error_rate", "all", 1, 1).state == "too_few"  # one error of one request
    assert share_value(SPEC, "error_rate", "all", 50, 1000).state == "alert"


def test_latency_is_a_quantile_with_an_interval_that_holds() -> None:
    rng, ends = np.random.default_rng(1), 10 ** (np.arange(0, 160) / 40)
    truth = 100 * math.exp(1.6449 * 0.4)
    inside = 0
    for _ in range(200):
        counts = np.bincount(np.searchsorted(ends, rng.lognormal(math.log(100), 0.4, 500)), minlength=160)
        value = latency_value(SPEC, ends, counts)
        inside += value.lower * 0.94 <= truth <= value.upper * 1.06
    assert inside >= 198
    assert latency_value(SPEC, ends, np.zeros(160)).state == "no_data"


def test_lift_of_a_level_is_expected_observed_and_worth_something() -> None:
    reference, current = lift_facts(1, 40_000, 0.2, 0.1), lift_facts(2, 10_000, 0.2, 0.1)
    by = by_name(lift_values(SPEC, reference, current))
    assert by["estimated_lift"].value == pytest.approx(0.1, abs=0.02)
    assert by["observed_lift"].lower < 0.1 < by["observed_lift"].upper
    assert by["lift_degradation"].state in ("ok", "missed", "unsure") and "a drop of 5%" in by["lift_degradation"].note
    assert by["uplift_interval_width"].value == pytest.approx(1.0)
    assert by["uplift_roi"].value == pytest.approx(10 * by["observed_lift"].value / 0.5 - 1)
    cost = by["cost_per_incremental"]
    assert cost.value == pytest.approx(0.5 / by["observed_lift"].value) and cost.lower < cost.value < cost.upper
    gone = by_name(lift_values(SPEC, reference, lift_facts(3, 40_000, 0.2, 0.1, real=0.3)))
    assert gone["lift_degradation"].state == "alert"


def test_an_alert_of_lost_lift_is_as_probable_as_the_guide_says() -> None:
    """5 % conversion, half a point of lift, 850,000 units an arm: (how large the reference, how much is lost)."""
    rng, cases = np.random.default_rng(12), [(3, 0.3), (1, 0.3), (3, 0.5), (1, 0.5), (3, 0.0)]

    def drawn(n: int, lift: float) -> LiftEstimate:
        rates = rng.binomial(n, 0.05 + lift) / n, rng.binomial(n, 0.05) / n
        return LiftEstimate(rates[0] - rates[1], math.sqrt(sum(rate * (1 - rate) / n for rate in rates)), n)

    def alerts(times: int, lost: float) -> float:
        pairs = ((drawn(times * 850_000, 0.005), drawn(850_000, (1 - lost) * 0.005)) for _ in range(1000))
        return float(np.mean([_degradation(SPEC, "mail", *pair).state == "alert" for pair in pairs]))

    assert [alerts(*case) for case in cases] == pytest.approx([0.93, 0.78, 0.995, 0.99, 0.0], abs=0.04)
    assert alerts(3, 0.0) <= 0.01 + 3 * math.sqrt(0.01 / 1000)


def test_a_level_of_which_nothing_is_known_does_not_stop_the_others() -> None:
    reference, current = lift_facts(1, 40_000, 0.2, 0.1), lift_facts(2, 10_000, 0.2, 0.1)
    mail = reference.scores["mail"]
    thin = ScoreSums(mail.units, mail.predicted, mail.width, np.zeros_like(mail.arms))
    both = [replace(one, scores={"call": other, "mail": one.scores["mail"]}) for one, other in
            ((reference, thin), (current, current.scores["mail"]))]  # fmt: skip
    values = {(one.kpi.name, one.cut): one for one in lift_values(SPEC, *both)}
    assert (
        values["estimated_lift", "call"].state == "no_data" and "too few units" in values["estimated_lift", "call"].note
    )
    assert values["lift_degradation", "call"].state == "no_data"
    assert values["estimated_lift", "mail"].value == pytest.approx(0.1, abs=0.02)


def test_less_of_the_outcome_can_be_the_benefit() -> None:
    direction: Direction = "decrease"
    spec = FigureSpec(SPEC.kpis, direction)
    by = by_name(lift_values(spec, lift_facts(4, 40_000, 0.4, -0.1, -10.0), lift_facts(5, 40_000, 0.4, -0.1, -10.0)))
    assert by["observed_lift"].value < 0 < by["uplift_roi"].lower
    assert by["cost_per_incremental"].value == pytest.approx(5, abs=1)
    assert by["lift_degradation"].state != "alert"


def test_without_labels_only_what_covariates_say_is_known() -> None:
    reference, current = lift_facts(1, 40_000, 0.2, 0.1), lift_facts(2, 10_000, 0.2, 0.1)
    sums = current.scores["mail"]
    blind = ScoreSums(sums.units, sums.predicted, sums.width, np.zeros_like(sums.arms))
    by = by_name(lift_values(SPEC, reference, WindowFacts("none", BINS, scores={"mail": blind})))
    assert by["estimated_lift"].value == pytest.approx(0.1, abs=0.02)
    assert by["observed_lift"].state == by["lift_degradation"].state == "no_data"
    assert "no label" in by["lift_degradation"].sentence


def test_a_ratio_of_sums_has_the_interval_of_the_delta_method() -> None:
    rng, inside, kpi = np.random.default_rng(6), 0, kpi_named("uplift_roi")
    for _ in range(400):
        p = rng.exponential(1, 300)
        v = 2 * p + rng.normal(size=300)
        sums = {"n": 300, "v": v.sum(), "p": p.sum(), "vv": v @ v, "vp": v @ p, "pp": p @ p}
        value = ratio_value(kpi, sums, 1.96)
        inside += value.lower <= 2 <= value.upper
    assert 0.92 <= inside / 400 <= 0.98
    assert ratio_value(kpi, dict.fromkeys(("n", "v", "p", "vv", "vp", "pp"), 0.0), 2).state == "no_data"


def test_drift_freshness_delivery_and_completeness() -> None:
    column = ColumnDrift("x", "season", 5000, 5000, 0.3, 0.31, 0.0, 0.0, 0.02, 0.5, 0.1, 0.1, 0.0, 0.0)
    assert drift_value(SPEC, [column], ["x"]).value == pytest.approx(0.02)  # nearer to its season
    assert drift_value(SPEC, [column], ["y"]).state == "no_data"
    end = datetime(2025, 1, 2, tzinfo=UTC)
    newest = {"a": (datetime(2025, 1, 1, 23, 50, tzinfo=UTC), 3), "b": (datetime(2025, 1, 1, 23, tzinfo=UTC), 4)}
    fresh = freshness_value(SPEC, {**newest, "c": (None, 0)}, end)
    assert (fresh.value, fresh.note, fresh.state) == (60.0, "b", "alert")
    assert freshness_value(SPEC, {}, end).state == "no_data"
    sends = {"none": (0, 100), "mail": (900, 1000)}
    assert delivery_value(SPEC, WindowFacts("none", BINS, sends=sends)).value == pytest.approx(0.9)
    assert completeness_value(SPEC, "buy", 0.9, 9000).state == "alert"
    assert completeness_value(SPEC, "buy", math.nan, 0).state == "no_data"


def completeness_alerts(windows: int, events: int, lost: float) -> float:
    """Simulation: share of windows whose labels alert. Labels of 14 days that are mature after two more; of the events
    one in a hundred becomes known at any time of 16 days, of lost ones so many more of 20; all others at once."""
    rng, alerts = np.random.default_rng(8), 0
    for _ in range(windows):
        n = rng.poisson(events)
        day, kind = rng.uniform(2, 16, n), rng.random(n)
        late = np.where(kind < lost, rng.uniform(0, 20, n), rng.uniform(0, 16, n))
        delay = np.where(kind < lost + 0.01, late, 0.0)
        seen = delay <= day
        frame = {
            "day": day[seen].astype(int),
            "delay": delay[seen].astype(int),
            "fewer": 0,
            "outcome": "buy",
            "mature": True,
            "n": 1,
        }
        facts = label_delays(pd.DataFrame(frame), ["buy"], 2.0)
        alerts += completeness_value(SPEC, "buy", *facts["complete"]["buy"]).state == "alert"
    return alerts / windows


def test_few_late_events_of_a_rare_outcome_are_no_alert_and_a_lost_part_is() -> None:
    """Without the noise of the delays 1 of 100 sound windows of 120 events alert."""
    assert completeness_alerts(400, 120, 0.0) <= 0.01
    assert completeness_alerts(40, 300, 0.5) >= 0.9  # of events that half of the time come late, 28 % are missing


@pytest.mark.slow
@pytest.mark.parametrize("events", [60, 120, 300, 1000])
def test_sound_windows_rarely_alert_whatever_the_number_of_events(events: int) -> None:
    assert completeness_alerts(1000, events, 0.0) <= 0.003
    if events >= 300:  # of 120 with a part missing fewer than min_n are left half of the time
        assert completeness_alerts(100, events, 0.5) >= 0.95


def test_words() -> None:
    value = share_value(SPEC, "error_rate", "all", 30, 1000)
    assert "alert at 0.02: unsure" in value.sentence and "requests would tell" in value.sentence
    assert SimpleNamespace(**value.row).state == "unsure" and value.n_needed > 1000
    found = Finding("drift", "ticket", 0.2, 0.05, "x drifts", action="look")
    column = ColumnDrift("x", "trigger", 5, 5, 0.3, 0.3, 0.0, 0.0, math.nan, 0.5, 0.1, 0.1, 0.0, 0.0)
    assert window_summary([value], [column], [found]).splitlines()[:2] == [
        "ticket: x drifts; look",
        "x: trigger, distance to the training set 0.300",
    ]


@pytest.mark.parametrize(
    ("money", "shown", "state", "note"),
    [
        ((400.0, 800.0, 700.0, 900.0), (0.8, 0.7, 0.9), "ok", "interval of 95 %"),
        ((400.0, 1050.0, 950.0, 1150.0), (1.05, 0.95, 1.15), "unsure", "interval of 95 %"),
        ((400.0, 1300.0, 1100.0, 1500.0), (1.3, 1.1, 1.5), "alert", "interval of 95 %"),
        ((400.0, 1300.0, None, None), (1.3, 0.4, math.nan), "unsure", "no interval"),  # few days
        ((1200.0, 1300.0, None, None), (1.3, 1.2, math.nan), "alert", "no interval"),  # but it is spent already
        ((1200.0, math.nan, None, None), (1.2, 1.2, math.nan), "alert", "no interval"),
        ((400.0, None, None, None), (math.nan,) * 3, "no_data", "say nothing of days to come"),
    ],
)
def test_the_forecast_of_the_cost_is_held_against_the_budget(money, shown, state, note) -> None:
    names = ("cost", "forecast", "forecast_lower", "forecast_upper")
    known = {"budget": 1000.0, "ends": date(2026, 4, 5), "as_of": datetime(2026, 3, 20, tzinfo=UTC), "days": 18}
    value = forecast_value(SPEC, known | dict(zip(names, money, strict=True)))
    np.testing.assert_allclose((value.value, value.lower, value.upper), shown)
    assert (value.kpi.name, value.state) == ("cost_forecast", state) and note in value.note
    assert math.isnan(value.n_needed) and (value.n == 18 or state == "no_data")
    nothing = forecast_value(SPEC, None)
    assert nothing.state == "no_data" and "set costs.budget, and run `uplift costs`" in nothing.note
