"""Switchbacks: blocks and their arms, rows in blocks, refusals, and what intervals hold by simulation."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import switchback
from uplift_spark.experiments.readout import ReadoutMetric
from uplift_spark.experiments.switchback import Switchback, switchback_readout

MONDAY = datetime(2026, 3, 2)
SALES = ReadoutMetric("sales", "sales", role="primary")


def plan(**changes) -> Switchback:
    """Two weeks of blocks of six hours."""
    parts = {
        **{"salt": "surge-2026", "arms": {"off": 0.5, "on": 0.5}, "start": MONDAY, "end": MONDAY + timedelta(days=14)},
        **{"hours": 6.0, "burn_in_hours": 1.0},
    }
    return Switchback(**{**parts, **changes})


def simulated(of: Switchback, regions: int, seed: int, effect: float = 0.5, lingers: float = 1.0) -> pd.DataFrame:
    """A row each half hour and region: demand has a daily wave and shocks that last for hours; an arm's effect grows
    over the first `lingers` hours of its block, while that of the block before fades."""
    rng = np.random.default_rng(seed)
    blocks = of.blocks([f"r{k}" for k in range(regions)])
    each = round(of.hours * 2)
    on = np.repeat((blocks["treatment"] == "on").to_numpy(float).reshape(regions, -1), each, axis=1)
    steps, width = on.shape[1], max(1, round(lingers * 2))
    running = np.cumsum(np.hstack([np.zeros((regions, width)), on]), axis=1)
    under = (running[:, width:] - running[:, :-width]) / width
    shock, push = np.zeros((regions, steps)), rng.normal(0, 0.3, (regions, steps))
    for step in range(1, steps):
        shock[:, step] = 0.9 * shock[:, step - 1] + push[:, step]
    wave = np.sin(np.arange(steps) / 48 * 2 * np.pi)
    sales = 10 + np.arange(regions)[:, None] + wave + shock + effect * under + rng.normal(0, 1, (regions, steps))
    return pd.DataFrame(
        {
            "region": np.repeat([f"r{k}" for k in range(regions)], steps),
            "time": np.tile(pd.Timestamp(of.start) + pd.to_timedelta(np.arange(steps) * 0.5, unit="h"), regions),
            "sales": sales.ravel(),
        }
    )


def by_regression(rows: pd.DataFrame, group: str) -> tuple[float, float]:
    """Effect of "on" and its error by least squares on arm and round, with a sandwich over groups."""
    x = pd.get_dummies(rows["round"]).assign(on=rows["treatment"] == "on").to_numpy(float)
    bread = np.linalg.inv(x.T @ x)
    fit = bread @ x.T @ rows["sales"].to_numpy()
    scores = pd.DataFrame(x * (rows["sales"].to_numpy() - x @ fit)[:, None]).groupby(rows[group].to_numpy()).sum()
    return float(fit[-1]), float(np.sqrt((bread @ (scores.T @ scores).to_numpy() @ bread)[-1, -1]))


def test_arms_are_exact_in_every_region_and_round_and_the_same_again() -> None:
    blocks = plan().blocks(["south", "north"])
    assert len(blocks) == 2 * 56 and blocks["block"].is_unique
    assert (pd.crosstab(blocks["round"], blocks["treatment"]) == 14).all(axis=None)
    pd.testing.assert_frame_equal(blocks, plan().blocks(["north", "south"]))
    one = plan().blocks(["north"])
    pd.testing.assert_frame_equal(one, blocks[blocks["region"] == "north"].reset_index(drop=True))
    assert (plan(salt="other-salt").blocks(["north"])["treatment"] != one["treatment"]).any()


def test_a_short_last_round_joins_the_one_before() -> None:
    blocks = plan(end=MONDAY + timedelta(days=16)).blocks(["north"])
    assert blocks["round"].value_counts().to_dict() == {"north|0": 28, "north|1": 36}


def test_rows_are_placed_by_the_clock() -> None:
    times = ["2026-03-01 23:59", "2026-03-02 00:59", "2026-03-02 01:00", "2026-03-02 06:30", "2026-03-02 07:00",
             "2026-03-16 00:00"]  # fmt: skip
    rows = plan().placed(pd.DataFrame({"region": "north", "time": pd.to_datetime(times), "treatment": "on"}))
    assert rows["block"].tolist() == ["north|2026-03-02T00:00", "north|2026-03-02T06:00"]
    assert rows["time"].dt.strftime("%H:%M").tolist() == ["01:00", "07:00"]
    by_plan = plan().blocks(["north"]).set_index("block")["treatment"]
    assert rows["treatment"].tolist() == by_plan[rows["block"]].tolist()
    assert set(rows["observed_treatment"]) == {"on"}


def test_times_with_a_zone_lie_in_the_same_blocks() -> None:
    zoned = plan(start=MONDAY.replace(tzinfo=UTC), end=(MONDAY + timedelta(days=14)).replace(tzinfo=UTC))
    frame = pd.DataFrame({"region": "north", "time": [pd.Timestamp("2026-03-02 09:00", tz="Europe/Berlin")]})
    assert zoned.placed(frame)["block"].tolist() == ["north|2026-03-02T06:00"]
    with pytest.raises(DataError, match="column 'time' holds no times that compare with the start 2026-03-02"):
        plan().placed(frame)


def test_errors_follow_from_blocks() -> None:
    """The same as a regression on arms and strata with errors clustered by block, but for the strata's small sample."""
    frame = simulated(plan(), 6, 1)
    read = switchback_readout(frame, [SALES], plan(), redeals=199)
    one = read.readout.metrics[0]
    rows = plan().placed(frame)
    effect, error = by_regression(rows, "block")
    assert one.effect == pytest.approx(effect, abs=1e-6)
    assert one.error == pytest.approx(error, rel=0.05)
    assert one.error > 1.5 * by_regression(rows.assign(row=np.arange(len(rows))), "row")[1]
    redealt = read.redealt.set_index("metric").loc["sales"]
    assert redealt["upper"] - redealt["lower"] == pytest.approx(one.upper - one.lower, rel=0.25)
    assert redealt["effect"] == one.effect and (read.rows, read.total) == (len(rows), len(frame))
    assert "re-dealt sales, arm on" in read.text() and "rows lie in blocks behind their burn-in" in read.text()


def test_rows_that_saw_another_arm() -> None:
    frame = simulated(plan(), 2, 2)
    placed = plan().placed(frame)
    few = frame.assign(treatment="off")
    few.loc[placed.index, "treatment"] = placed["treatment"]
    assert not switchback_readout(few, [SALES], plan(), redeals=99).readout.findings
    few.loc[placed.index[:3], "treatment"] = "neither"
    finding = switchback_readout(few, [SALES], plan(), redeals=99).readout.findings[-1]
    assert finding.check == "crossed" and finding.sentence.startswith("3 of 1,120 rows (0.27%) saw another arm")
    with pytest.raises(DataError, match="saw another arm than their block's: compare the clocks"):
        switchback_readout(few.assign(treatment="on"), [SALES], plan(), redeals=99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"burn_in_hours": 6.0}, "blocks of 6 hours with a burn-in of 6"),
        ({"hours": 200.0}, "rounds of 168 hours: a round holds whole blocks"),
        ({"end": MONDAY + timedelta(hours=5)}, "ends before its first block of 6 hours does"),
        ({"hours": 84.0}, "2 blocks a round and region, 1 of its smallest arm, of at least 2"),
        ({"end": MONDAY.replace(tzinfo=UTC)}, "without a time zone"),
        ({"arms": {"off": 0.5, "on": 0.4}}, "add up to 0.9"),
        ({"salt": "no salt"}, "is no salt"),
    ],
)
def test_plans_that_cannot_be(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


def test_frames_that_cannot_be_read() -> None:
    frame = simulated(plan(), 2, 3)
    with pytest.raises(ConfigError, match="column 'region' is not in the frame"):
        switchback_readout(frame.drop(columns="region"), [SALES], plan())
    with pytest.raises(DataError, match="column 'time' is missing in 2 rows"):
        switchback_readout(frame.assign(time=frame["time"].mask(frame.index < 2)), [SALES], plan())
    with pytest.raises(DataError, match="no row lies in a block behind its burn-in"):
        switchback_readout(frame.assign(time=frame["time"] + pd.Timedelta(days=90)), [SALES], plan())
    with pytest.raises(DataError, match="metric sales is 3 in all 112 units: it tells no arms apart"):
        switchback_readout(frame.assign(sales=3.0), [SALES], plan())
    uneven = frame.assign(sales=3.0)[(frame.index % 7 > 1) | (frame.index % 3 > 0)]
    with pytest.raises(DataError, match="metric sales is 3 in all 112 units: it tells no arms apart"):
        switchback_readout(uneven, [SALES], plan())
    with pytest.raises(ConfigError, match="at least 99"):
        switchback_readout(frame, [SALES], plan(), redeals=10)
    with pytest.raises(ConfigError, match="at least one"):
        plan().blocks([])


# --------------------------------------------------------------------------------------------------------------------
# Known truth.


def replicated(runs: int, effect: float, burn_in: float, redeals: int) -> dict[str, float]:
    """Over trials with arms of their own: cover of both intervals, rejections at .05, mean effect."""
    rows = []
    for run in range(runs):
        one = plan(salt=f"surge-{run}", burn_in_hours=burn_in)
        read = switchback_readout(simulated(one, 3, run, effect), [SALES], one, redeals=redeals)
        figures, again = read.readout.metrics[0], read.redealt.iloc[0]
        rows.append(
            (
                *(figures.effect, figures.lower <= effect <= figures.upper, figures.p_value <= 0.05),
                *(again["lower"] <= effect <= again["upper"], again["p_value"] <= 0.05),
            )
        )
    mean = np.array(rows, float).mean(axis=0)
    return dict(zip(("effect", "cover", "rejects", "cover_redealt", "rejects_redealt"), mean, strict=True))


@pytest.mark.simulation
def test_intervals_hold_and_the_burn_in_takes_the_bias_off() -> None:
    """336 blocks, shocks that last for hours, an effect that takes an hour: .5 everywhere."""
    runs = 1000
    noise = 2.5 * np.sqrt(0.05 * 0.95 / runs)
    none = replicated(runs, 0.0, 1.0, 199)
    assert abs(none["rejects"] - 0.05) < noise and abs(none["rejects_redealt"] - 0.05) < noise, none
    some = replicated(runs, 0.5, 1.0, 99)
    assert abs(some["cover"] - 0.95) < noise and some["cover_redealt"] > 0.95 - noise, some
    assert some["effect"] == pytest.approx(0.5, abs=0.015), some
    bare = replicated(runs, 0.5, 0.0, 99)
    # Half of the first of twelve half hours still has the arm of the block before, the other one in half of the blocks.
    assert bare["effect"] == pytest.approx(0.5 * (1 - 1 / 24), abs=0.01), bare
    print(pd.DataFrame({"no effect": none, "effect .5": some, "effect .5, no burn-in": bare}).round(4).to_string())


def test_a_quick_simulation() -> None:
    """Binomial bounds that 40 sound trials exceed about once in a million runs."""
    some = replicated(40, 0.5, 1.0, 99)
    assert some["cover"] >= 0.7 and some["effect"] == pytest.approx(0.5, abs=0.1)


def test_examples() -> None:
    assert doctest.testmod(switchback).failed == 0
