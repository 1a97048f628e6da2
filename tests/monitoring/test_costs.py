"""Costs of a campaign: its gain against nobody, the forecast of its cost, and their words, with the truth known."""

from __future__ import annotations

import math
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from uplift_spark.monitoring.costs import (
    CampaignGain,
    CostForecast,
    WorthSums,
    budget_verdict,
    cost_summary,
    forecast_cost,
    gain_against_nobody,
    prices_of_days,
    roi_rows,
)

FIRST = date(2026, 3, 2)  # a Monday


def sums_of(worth: np.ndarray, control: np.ndarray, p: np.ndarray) -> WorthSums:
    y, p = worth[control], p[control]
    a, b = 1 / p, (1 - p) / p**2
    rest = (a.sum(), a @ y, b.sum(), b @ y, b @ y**2, worth @ worth)
    return WorthSums(len(worth), float(worth.sum()), int(control.sum()), *map(float, rest), int(np.count_nonzero(y)))


def trial(rng: np.random.Generator, n: int = 2000, targeted: bool = False) -> tuple[WorthSums, float]:
    """Sums and the gain that units really had: three levels, of which the second is worth less than nothing."""
    x = rng.random(n)
    nobody = rng.exponential(3.0, n) * (rng.random(n) < 0.3 + 0.3 * x)
    p = np.where(x > 0.6, 0.15, 0.7) if targeted else np.full(n, 0.4)
    control = rng.random(n) < p
    level = np.where(control, 0, rng.integers(1, 3, n))
    effect = np.where(level == 1, 1.5 * x, np.where(level == 2, -0.4, 0.0))
    return sums_of(nobody + effect, control, p), float(effect.sum())


@pytest.mark.parametrize("targeted", [False, True], ids=["trial", "targeted"])
@pytest.mark.parametrize("draws", [400, pytest.param(4000, marks=pytest.mark.simulation)])
def test_the_gain_covers_what_treated_units_really_gained(draws: int, targeted: bool) -> None:
    rng = np.random.default_rng(11)
    inside, off = 0, []
    for _ in range(draws):
        sums, truth = trial(rng, targeted=targeted)
        gain = gain_against_nobody(sums)
        lower, upper = gain.interval()
        inside += lower <= truth <= upper
        off.append(gain.value - truth)
    error = math.sqrt(0.95 * 0.05 / draws)
    assert abs(inside / draws - 0.95) < 3 * error + 0.005
    assert abs(np.mean(off)) < 4 * np.std(off) / math.sqrt(draws)


def test_parts_add_to_the_whole_and_a_control_too_small_tells_nothing() -> None:
    rng = np.random.default_rng(3)
    n = 900
    worth, control, p = rng.random(n), rng.random(n) < 0.3, np.full(n, 0.3)
    parts = [sums_of(worth[i::3], control[i::3], p[i::3]) for i in range(3)]
    whole = sums_of(worth, control, p)
    added = parts[0] + parts[1] + parts[2]
    assert gain_against_nobody(added).value == pytest.approx(gain_against_nobody(whole).value)
    few = gain_against_nobody(sums_of(worth, np.arange(n) < 29, p))
    assert math.isnan(few.value) and few.note.startswith("29 units of the control are too few")


@pytest.mark.parametrize("heavy", [False, True], ids=["alike", "uneven"])
@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize("draws", [300, pytest.param(4000, marks=pytest.mark.simulation)])
def test_the_gain_covers_where_few_units_of_the_control_are_worth_anything(
    draws: int, rate: float, heavy: bool
) -> None:
    """3 or 15 of 300 buy: chance may leave the dear ones out, and then the control's own scatter is too small as well.

    By the control's own scatter alone the intervals hold in 68 to 88 of 100 where amounts are uneven.
    """
    rng = np.random.default_rng(17)
    inside, n = 0, 900
    for _ in range(draws):
        x = rng.random(n)
        bought = rng.random(n) < rate * (0.5 + x)
        nobody = bought * (rng.lognormal(3, 1, n) if heavy else 25.0)
        p = np.where(x > 0.6, 0.15, 0.5)
        control = rng.random(n) < p
        effect = ~control * (rng.random(n) < 0.5 * rate) * 25.0
        lower, upper = gain_against_nobody(sums_of(nobody + effect, control, p)).interval()
        inside += lower <= effect.sum() <= upper
    assert inside / draws > 0.93 - 2 * math.sqrt(0.93 * 0.07 / draws)


def test_a_control_of_which_nobody_bought_is_no_proof() -> None:
    worth, control, p = np.zeros(1000), np.arange(1000) < 300, np.full(1000, 0.3)
    worth[500:520] = 25.0
    gain = gain_against_nobody(sums_of(worth, control, p))
    lower, upper = gain.interval()
    assert gain.value == 500 and lower < 300 and upper > 700  # 20 of 700 bought: among 300 others some would have, too
    everybody = gain_against_nobody(sums_of(worth, np.ones(1000, bool), np.ones(1000)))
    assert everybody == CampaignGain(0.0, 0.0)  # the design left nothing to chance


def test_sums_that_are_no_number_are_not_known() -> None:
    control, p = np.arange(100) < 40, np.full(100, 0.4)
    with np.errstate(over="ignore"):
        gain = gain_against_nobody(sums_of(np.full(100, 1e300), control, p))
    assert math.isnan(gain.value) and "economics.value" in gain.note


def spent(rng: np.random.Generator, days: int, alike: float) -> np.ndarray:
    """Money of each day: weekdays cost more, and days that follow each other are alike."""
    noise = rng.normal(size=days + 50)
    for i in range(1, len(noise)):
        noise[i] = alike * noise[i - 1] + math.sqrt(1 - alike**2) * noise[i]
    usual = np.array([120, 100, 100, 110, 130, 40, 30.0])[np.arange(days) % 7]
    return np.maximum(0.0, usual * (1 + 0.15 * noise[50:]))


@pytest.mark.parametrize("alike", [0.0, 0.4])
@pytest.mark.parametrize("draws", [300, pytest.param(4000, marks=pytest.mark.simulation)])
def test_forecasts_cover_what_the_campaign_costs(draws: int, alike: float) -> None:
    rng = np.random.default_rng(5)
    inside, widths = 0, []
    for _ in range(draws):
        known, length = int(rng.integers(21, 60)), int(rng.integers(65, 90))
        money = spent(rng, length, alike)
        daily = {FIRST + timedelta(days=i): float(money[i]) for i in range(known)}
        forecast = forecast_cost(daily, FIRST + timedelta(days=known - 1), FIRST + timedelta(days=length - 1))
        inside += forecast.lower <= money.sum() <= forecast.upper
        widths.append((forecast.upper - forecast.lower) / money.sum())
    assert inside / draws > 0.93 - 2 * math.sqrt(0.93 * 0.07 / draws)
    assert np.mean(widths) < 0.25  # of the whole cost: no interval that covers by saying nothing


def test_a_forecast_knows_weekdays_days_without_cost_and_the_end() -> None:
    week = [70.0, 70, 70, 70, 70, 0, 0]
    daily = {FIRST + timedelta(days=i): week[i % 7] for i in range(28) if week[i % 7]}
    today = FIRST + timedelta(days=27)
    assert forecast_cost(daily, today, today + timedelta(days=5)).value == pytest.approx(1400 + 350)
    assert forecast_cost(daily, today, today + timedelta(days=7)) == CostForecast(1750, 1750, 1750)
    assert forecast_cost(daily, today, today) == CostForecast(1400, 1400, 1400)
    few = {FIRST + timedelta(days=i): amount for i, amount in enumerate((10.0, 12.0, 0.0, 18.0))}
    few = forecast_cost(few, FIRST + timedelta(days=3), FIRST + timedelta(days=7))
    assert few.value == 80 and math.isnan(few.lower) and "4 days are too few" in few.note
    assert "no day" in forecast_cost({}, today, today + timedelta(days=1)).note
    # A bill of the year before, and jobs that ran on after the last event, count once.
    beside = {**daily, FIRST - timedelta(days=365): 500.0, today + timedelta(days=1): 25.0}
    assert forecast_cost(beside, today, today + timedelta(days=7), FIRST).value == pytest.approx(1750 + 525)


@pytest.mark.parametrize(
    ("spending", "said"),
    [
        ([1000.0], "100% of what was spent fell on one day"),
        ([1000.0] + [0.0] * 20, "100% of what was spent fell on one day"),
        ([5000.0] + [100.0] * 27, "65% of what was spent fell on one day"),
        ([0.0] * 20, "nothing was spent yet"),
        ([1e308] * 20, "too large to be added up"),
    ],
)
def test_days_that_say_nothing_of_days_to_come_give_no_forecast(spending: list[float], said: str) -> None:
    daily = {FIRST + timedelta(days=i): one for i, one in enumerate(spending) if one}
    today = FIRST + timedelta(days=len(spending) - 1)
    forecast = forecast_cost(daily, today, today + timedelta(days=20), FIRST)
    assert math.isnan(forecast.value) and math.isnan(forecast.upper) and said in forecast.note
    assert forecast_cost(daily, today, today, FIRST).value == sum(spending)  # at the end it is known all the same


def test_money_that_comes_back_may_lower_the_cost() -> None:
    daily = {FIRST + timedelta(days=i): -10.0 - i % 3 for i in range(28)}
    forecast = forecast_cost(daily, FIRST + timedelta(days=27), FIRST + timedelta(days=40))
    assert forecast.lower < forecast.value < forecast.upper < sum(daily.values())


def test_shared_costs_are_divided_by_units_and_parts_add_up() -> None:
    costs = pd.DataFrame(
        [
            ("treating", 30.0, "1"),
            ("treating", 50.0, "2"),
            ("treating", 5.0, None),
            ("incentive", 7.0, "2"),
            ("infrastructure", 8.0, None),
            ("expense", 16.0, None),
        ],
        columns=["kind", "amount", "model_version"],
    )
    rng = np.random.default_rng(1)
    of = {"1": 400, "2": 400, "none": 800}
    worth = {k: (n // 2, sums_of(rng.random(n), np.arange(n) < n // 2, np.full(n, 0.5))) for k, n in of.items()}
    rows = {row["model_version"]: row for row in roi_rows(costs, worth)}
    assert list(rows) == ["all", "1", "2", "none"]
    assert [rows[k]["cost"] for k in rows] == pytest.approx([116, 30 + 6, 57 + 6, 5 + 12])
    for name in ("cost", "units", "treated", "expenses"):
        assert sum(rows[k][name] for k in of) == pytest.approx(rows["all"][name])
    assert rows["all"]["roi"] == pytest.approx((rows["all"]["gain"] - 116) / 116)
    assert rows["all"]["net_lower"] == pytest.approx(rows["all"]["gain_lower"] - 116)
    (alone,) = roi_rows(costs, {"none": worth["none"]}, "nobody knows")
    assert alone["model_version"] == "all" and math.isnan(alone["gain"]) and alone["note"] == "nobody knows"


def test_jobs_cost_their_hours_at_their_rate() -> None:
    at = pd.to_datetime(["2026-03-02 23:00", "2026-03-02 01:00", "2026-03-03 01:00", "2026-03-03 02:00"])
    runs = pd.DataFrame(
        {"job": ["train", "train", "train", "lift"], "started_at": at, "seconds": [1800.0, 5400, 3600, 900]}
    )
    rows = prices_of_days(runs, {"train": 6.0})
    assert [(r["item"], r["quantity"], r["amount"]) for r in rows] == [("train", 2.0, 12.0), ("train", 1.0, 6.0)]
    assert sum(r["amount"] for r in prices_of_days(runs, {"train": 6.0, "other": 2.0})) == 18.5


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((900, 880, 950), "within the budget"),
        ((1100, 1010, 1200), "over the budget"),
        ((990, 900, 1050), "perhaps over the budget"),
        ((1020, 950, 1100), "perhaps over the budget"),
        ((900, math.nan, math.nan), "perhaps over the budget"),
    ],
)
def test_a_budget_is_over_only_where_the_whole_interval_is(ends: tuple[float, ...], said: str) -> None:
    forecast = CostForecast(*ends, note="2 days are too few")
    assert budget_verdict(forecast, 1000) == said
    row = {"units": 100, "treated": 50, "cost": 500.0, "treating": 500.0, "incentives": 0.0, "infrastructure": 0.0}
    row |= {"expenses": 0.0, "gain": math.nan, "note": "2 units", "budget": 1000.0, "ends": date(2026, 12, 31)}
    text = cost_summary(row, forecast)
    assert said in text and "by 2026-12-31" in text and "not known: 2 units" in text
