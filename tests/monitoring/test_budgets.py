"""Burn rates: golden figures of the SRE workbook, and false alarms against a simulation of the traffic itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.monitoring.budgets import (
    BURN_WINDOWS,
    FALSE_ALARMS_A_YEAR,
    BurnWindow,
    duration_text,
    false_alarms_a_year,
    least_errors,
    minutes_to_alert,
    most_false_alarms,
    objective_of,
    usable_windows,
)
from uplift_spark.monitoring.kpis import kpi_named

HOUR, SIX_HOURS, DAY, THREE_DAYS = BURN_WINDOWS
YEAR = 365 * 24 * 60


def test_a_total_outage_pages_after_the_published_minutes() -> None:
    """8.6 minutes at 99 %, 43 at 95 %, and below 93.06 % a burn rate of 14.4 never fires."""
    assert minutes_to_alert(HOUR, 0.99, 1.0) == pytest.approx(8.64)
    assert minutes_to_alert(HOUR, 0.95, 1.0) == pytest.approx(43.2)
    assert minutes_to_alert(HOUR, 0.99, 0.144) == math.inf
    assert [window.name for window in usable_windows(0.9306)] == ["1h", "6h", "1d", "3d"]
    assert [window.name for window in usable_windows(0.9305)] == ["6h", "1d", "3d"]
    # So many errors take so long where requests are few: seven of them an hour.
    assert minutes_to_alert(HOUR, 0.99, 1.0, 1 / 6, least_errors(HOUR, 0.99)) == pytest.approx(42)
    assert minutes_to_alert(HOUR, 0.99, 1.0, 1 / 10, least_errors(HOUR, 0.99)) == math.inf


def test_lengths_as_prometheus_writes_them() -> None:
    assert [duration_text(minutes) for minutes in (5, 60, 90, 360, 1440, 4320)] == ["5m", "1h", "90m", "6h", "1d", "3d"]


def test_objectives_come_from_the_declarations() -> None:
    assert objective_of(kpi_named("error_rate")) == pytest.approx(0.99)
    assert objective_of(kpi_named("delivery_rate")) == pytest.approx(0.99)
    with pytest.raises(ConfigError, match="KPI drift_score has no error budget"):
        objective_of(kpi_named("drift_score"))
    with pytest.raises(ConfigError, match="target is 0, which leaves no error budget"):
        objective_of(replace(kpi_named("error_rate"), target=0.0))


def test_one_error_of_one_request_is_not_enough() -> None:
    for objective in (0.9, 0.95, 0.99, 0.999, 0.9999):
        for window in usable_windows(objective):
            least = least_errors(window, objective)
            assert least >= 5 and most_false_alarms(window, objective, least) <= FALSE_ALARMS_A_YEAR
            assert most_false_alarms(window, objective, least - 1) > FALSE_ALARMS_A_YEAR  # no more than are needed
            traffic = {int(n) for n in np.geomspace(1, 2_000_000, 200)}
            assert max(false_alarms_a_year(window, objective, n, least) for n in traffic) <= FALSE_ALARMS_A_YEAR
    assert false_alarms_a_year(HOUR, 0.99, 1, 1) > 80  # what the plain reading does at one request an hour


def alarms(window: BurnWindow, objective: float, per_minute: float, least: int, years: int, seed: int) -> int:
    """Alarms in so many years of Poisson traffic of a service that is in order, minute by minute."""
    draw, count = np.random.default_rng(seed), 0
    rate = (1 - objective) * min(1.0, window.factor / 2)
    for _ in range(years):
        requests = draw.poisson(per_minute, YEAR)
        sums = [np.concatenate([[0], np.cumsum(one)]) for one in (requests, draw.binomial(requests, rate))]
        long, short = (
            [total[window.long :] - total[window.long - size : total.size - size] for total in sums]
            for size in (window.long, window.short)
        )
        limit = window.factor * (1 - objective)
        fires = (long[1] > limit * long[0]) & (long[1] >= least) & (short[1] > limit * short[0])
        count += int(fires[0]) + int((fires[1:] & ~fires[:-1]).sum())
    return count


def test_noise_fires_no_more_often_than_the_bound_says() -> None:
    """At the traffic where it is most likely, with the errors that are needed, and with fewer."""
    least = least_errors(HOUR, 0.99)
    n = math.ceil(least / 0.144) - 1
    assert alarms(HOUR, 0.99, n / 60, least, years=5, seed=1) <= 2
    n = math.ceil(3 / 0.144) - 1
    bound, years = false_alarms_a_year(HOUR, 0.99, n, 3), 5
    fired = alarms(HOUR, 0.99, n / 60, 3, years, seed=2)
    assert 0.1 * bound < fired / years < 1.3 * bound  # Poisson traffic; the short window spares some


@pytest.mark.simulation
@pytest.mark.parametrize("window", BURN_WINDOWS, ids=lambda one: one.name)
def test_a_century_of_noise(window: BurnWindow) -> None:
    objective = 0.99
    least = least_errors(window, objective)
    n = math.ceil(least / (window.factor * (1 - objective))) - 1
    fired = alarms(window, objective, n / window.long, least, years=100, seed=3)
    assert fired <= 100 * FALSE_ALARMS_A_YEAR + 3 * math.sqrt(100 * FALSE_ALARMS_A_YEAR)


def test_a_total_outage_pages_within_ten_minutes_in_a_simulation() -> None:
    """A day in order, then every request fails; 200 times."""
    draw, least, minutes = np.random.default_rng(4), least_errors(HOUR, 0.99), []
    for _ in range(200):
        requests = draw.poisson(10, 1500)
        errors = np.where(np.arange(1500) < 1440, draw.binomial(requests, 0.005), requests)
        for minute in range(1440, 1500):
            long, short = slice(minute - 59, minute + 1), slice(minute - 4, minute + 1)
            shares = [errors[one].sum() / requests[one].sum() for one in (long, short)]
            if min(shares) > 0.144 and errors[long].sum() >= least:
                minutes.append(minute - 1439)
                break
    assert len(minutes) == 200
    assert np.percentile(minutes, 50) <= 10 and max(minutes) <= 13
