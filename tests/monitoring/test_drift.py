"""Drift: binned distances against SciPy, counts that merge, seasons, and a year with known truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import ndtr
from scipy.stats import ks_2samp, wasserstein_distance

from uplift_spark.errors import DataError
from uplift_spark.monitoring.drift import (
    ColumnBins,
    ColumnDrift,
    DriftLimits,
    WindowCounts,
    distances,
    season_windows,
    window_drift,
    with_triggers,
)

DAY = timedelta(days=1)
START = datetime(2025, 1, 6)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.25, 1.0])
@pytest.mark.parametrize("shape", ["normal", "lognormal", "counts"])
def test_binned_distance_is_within_a_thousandth_of_scipy(shape: str, shift: float) -> None:
    rng = np.random.default_rng(3)
    reference, current = rng.normal(size=200_000), rng.normal(shift, 1 + shift / 4, 150_000)
    turn = {"normal": np.asarray, "lognormal": np.exp, "counts": lambda x: np.floor(np.exp(x))}[shape]
    reference, current = turn(reference), turn(current)
    bins = ColumnBins.of_sample(pa.table({"x": reference[:20_000]}))
    result = distances(bins, bins.count(pa.table({"x": reference})), bins.count(pa.table({"x": current})))
    exact = float(ks_2samp(reference, current).statistic)
    assert abs(result.distance[0] - exact) < 1e-3
    assert result.distance[0] <= exact + 1e-12 <= result.distance_most[0] + 1e-9
    moved = wasserstein_distance(reference, current) / reference.std()
    assert result.wasserstein[0] == pytest.approx(moved, rel=0.05, abs=0.01)


def test_windows_merge_to_the_counts_of_all_rows() -> None:
    rng = np.random.default_rng(4)
    rows = pa.table(
        {
            "x": pa.array(np.where(rng.random(5000) < 0.1, np.nan, rng.normal(size=5000)), from_pandas=True),
            "n": rng.poisson(2.0, 5000),
            "flag": rng.random(5000) < 0.3,
            "region": pa.array(rng.choice(["north", "south", None], 5000)),
        }
    )
    bins = ColumnBins.of_sample(rows.slice(0, 1000))
    parts = bins.empty()
    for start in range(0, 5000, 700):
        parts = parts + bins.count(rows.slice(start, 700))
    whole = bins.count(rows)
    for name in ("counts", "missing", "new"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(parts.totals, whole.totals)  # to the bit, in whatever order
    assert whole.rows == 5000 and whole.missing[0] == rows.column("x").null_count
    assert list(bins.sizes[1:]) == [len(np.unique(rows.column("n").slice(0, 1000))), 2, 2]


def test_missing_values_and_new_categories_are_counted_by_hand() -> None:
    bins = ColumnBins.of_sample(pa.table({"x": [1.0, 2.0, 3.0], "c": ["a", "b", "a"]}))
    reference = bins.count(pa.table({"x": [1.0, 1.0, 2.0, 3.0], "c": ["a", "a", "b", "b"]}))
    current = bins.count(pa.table({"x": [None, 3.0, 3.0, 3.0], "c": ["a", "z", "z", "b"]}))
    result = distances(bins, reference, current)
    assert list(result.missing) == [0.25, 0.0]
    assert list(result.new) == [0.0, 0.5]
    assert result.distance[0] == pytest.approx(0.75)
    assert result.distance[1] == pytest.approx((0.25 + 0.25 + 0.5) / 2)


def test_p_values_of_small_windows_are_no_drift() -> None:
    bins = ColumnBins.of_sample(pa.table({"x": np.arange(1000.0)}))
    reference = bins.count(pa.table({"x": np.arange(1000.0)}))
    (one,) = window_drift(bins, reference, reference, bins.count(pa.table({"x": [3.0, 900.0, 950.0]})))
    assert one.distance > 0.5 and one.state == "steady"


def test_an_empty_window_and_no_reference_are_one_sentence() -> None:
    bins = ColumnBins.of_sample(pa.table({"x": [1.0, 2.0]}))
    full = bins.count(pa.table({"x": [1.0]}))
    with pytest.raises(DataError, match="the window has no row"):
        distances(bins, full, bins.empty())
    with pytest.raises(DataError, match="the reference has no row"):
        distances(bins, bins.empty(), full)
    with pytest.raises(DataError, match="there is no reference"):
        ColumnBins.of_sample(pa.table({"x": pa.array([], pa.float64())}))


def test_columns_without_any_value_are_missing_not_broken() -> None:
    bins = ColumnBins.of_sample(pa.table({"x": pa.array([None, None], pa.float64()), "y": [1.0, 2.0]}))
    reference = bins.count(pa.table({"x": pa.array([None] * 4000, pa.float64()), "y": np.ones(4000)}))
    current = bins.count(pa.table({"x": np.ones(4000), "y": pa.array([None] * 4000, pa.float64())}))
    gone = distances(bins, reference, current)
    assert list(gone.missing) == [-1.0, 1.0]
    assert list(gone.size) == [1.0, 1.0] and (gone.p_value < 1e-9).all()


def test_seasons() -> None:
    days = [START + i * DAY for i in range(400)]
    assert season_windows(days[21], days) == [days[7], days[14]]
    assert season_windows(days[21], days, weeks=4) == [days[0], days[7], days[14]]
    assert season_windows(days[3], days) == []
    assert season_windows(days[372], days) == [days[1], days[8], days[15]]  # last year's
    feast = [date(2025, 1, 20), days[364].date()]
    assert season_windows(days[21], days, feast, weeks=4) == [days[0], days[7]]
    assert season_windows(days[364], days, feast) == [days[14]]
    hours = [START + timedelta(hours=i) for i in range(24 * 9)]
    assert season_windows(hours[-1], hours) == [hours[-1] - timedelta(days=7)]


def test_triggers_need_drift_in_two_of_five_windows_the_newest_among_them() -> None:
    def column(state: str) -> ColumnDrift:
        return ColumnDrift("x", state, 1, 1, *[0.0] * 10)  # type: ignore[arg-type]

    assert with_triggers([column("drift")], [])[0].state == "drift"
    assert with_triggers([column("drift")], [["x"], [], [], []])[0].state == "trigger"
    assert with_triggers([column("drift")], [["x"], [], [], [], []])[0].state == "drift"
    assert with_triggers([column("steady")], [["x"], ["x"]])[0].state == "steady"
    assert with_triggers([column("drift")], [], DriftLimits(needed=1))[0].state == "trigger"


# --------------------------------------------------------------------------------------------------------------------
# A year with weekly and yearly seasons, and shifts that are known.

COLUMNS, ROWS = 100, 20_000


class Year:
    """Days of columns that are normal; their means move with weekday and season, and by `shift` where one is due."""

    def __init__(self, seed: int, columns: int = COLUMNS) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = tuple(f"x{i}" for i in range(columns))
        self.weekday = self.rng.normal(0, 0.3, (7, columns))
        self.season = self.rng.uniform(-0.5, 0.5, columns)
        sample = self.rng.normal(size=(2000, columns))
        self.bins = ColumnBins.of_sample(pa.table(dict(zip(self.names, sample.T, strict=True))), most=64)
        self.edges = np.array([np.concatenate([self.bins.edges[n], [np.inf]]) for n in self.names])

    def day(self, day: int, shift: np.ndarray | float = 0.0) -> WindowCounts:
        mean = self.weekday[day % 7] + self.season * math.sin(2 * math.pi * day / 365) + shift
        below = ndtr(self.edges - mean[:, None])
        shares = np.diff(np.hstack([np.zeros((len(self.names), 1)), below]), axis=1)
        counts = self.rng.multinomial(ROWS, shares)
        totals = counts * np.where(np.isfinite(self.edges), self.edges, 3.0)
        zero = np.zeros(len(self.names), np.int64)
        return WindowCounts(counts, totals, zero, zero)


def played(year: Year, days: int, shift_from: int | None = None, shift: np.ndarray | float = 0.0) -> Iterator[list]:
    """What each day after four weeks of training says."""
    windows = {START + i * DAY: year.day(i) for i in range(28)}
    reference = sum(list(windows.values())[1:], windows[START])
    flagged: list[list[str]] = []
    for day in range(28, days):
        start = START + day * DAY
        counts = year.day(day, shift if shift_from is not None and day >= shift_from else 0.0)
        matched = season_windows(start, windows)
        season = sum((windows[one] for one in matched[1:]), windows[matched[0]])
        columns = with_triggers(window_drift(year.bins, reference, season, counts), flagged)
        flagged.append([one.column for one in columns if one.state in ("drift", "trigger")])
        windows[start] = counts
        yield columns


def triggers_of(days: list[list[ColumnDrift]]) -> int:
    return sum(any(one.state == "trigger" for one in columns) for columns in days)


def test_four_weeks_with_seasons_trigger_nothing_and_a_plain_reading_would() -> None:
    days = list(played(Year(1), 56))
    assert triggers_of(days) == 0
    plain = sum(any(one.p_value < 0.01 for one in columns) for columns in days)
    assert plain == len(days)


@pytest.mark.simulation
def test_a_year_of_a_hundred_columns_has_at_most_one_false_trigger_a_quarter() -> None:
    days = list(played(Year(2), 365 + 28))
    quarters = [triggers_of(days[start : start + 92]) for start in range(0, 365, 92)]
    print("days with a false trigger in each quarter:", quarters)
    assert len(days) == 365 and max(quarters) <= 1


def test_a_shift_of_a_tenth_is_drift_at_once_and_triggers_in_the_next_window() -> None:
    shifted = np.zeros(25)
    shifted[:5] = 0.2513  # 2 Φ(δ/2) - 1 = .1
    caught = missed = 0
    for seed in range(4):
        *_, first, second = played(Year(seed, 25), 44, 42, shifted)
        assert [one.state == "drift" for one in first[:5]] == [True] * 5
        caught += sum(one.state == "trigger" for one in second[:5])
        missed += sum(one.state != "trigger" for one in second[:5])
    assert caught / (caught + missed) >= 0.99


@pytest.mark.simulation
def test_power_of_a_shift_of_a_tenth() -> None:
    shifted = np.full(25, 0.2513)
    at_once, next_window = [], []
    for seed in range(20):
        *_, first, second = played(Year(100 + seed, 25), 44, 42, shifted)
        at_once += [one.state == "drift" for one in first]
        next_window += [one.state == "trigger" for one in second]
    print(
        f"shift of D = .1: drift at once {np.mean(at_once):.1%}, trigger in the next window {np.mean(next_window):.1%}"
    )
    assert np.mean(next_window) >= 0.99
