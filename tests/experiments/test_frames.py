"""Tests of readouts of frames: what is summed, counted, left out and refused."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import frames
from uplift_spark.experiments.assignment import Experiment, assign
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, readout, trial_sums
from uplift_spark.experiments.health import HealthLimits, ReadoutDesign
from uplift_spark.experiments.readout import ReadoutMetric
from uplift_spark.experiments.sequential import StoppingRule

DESIGN = ReadoutDesign({"off": 0.5, "on": 0.5})
SPEND = ReadoutMetric("spend", "spend", covariates=("before",), role="primary")
PER_VISIT = ReadoutMetric("spend a visit", "spend", denominator="visits")
COLUMNS = ReadoutColumns(stratum="region", day="day", taken="took", propensity="propensity", balance=("age",))


def trial(units: int = 4000, seed: int = 1) -> pd.DataFrame:
    """Four weeks; half of the treated take the treatment, which adds 1 to a spend of about 10."""
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"unit_id": np.arange(units), "treatment": rng.permutation(["off", "on"] * (units // 2))})
    d["household"] = d["unit_id"] // 2
    d["region"] = rng.choice(["north", "south"], units)
    d["day"] = pd.Timestamp("2026-03-02") + pd.to_timedelta(rng.integers(0, 28, units), unit="D")
    d["took"] = (d["treatment"] == "on") & (rng.random(units) < 0.5)
    d["age"] = rng.integers(18, 80, units)
    d["before"] = rng.normal(10, 2, units)
    d["visits"] = rng.poisson(3, units) + 1
    d["spend"] = d["before"] + rng.normal(0, 1, units) + d["took"]
    d["propensity"] = 0.5
    return d


def test_a_whole_readout() -> None:
    one = readout(trial(), [SPEND, PER_VISIT], DESIGN, COLUMNS, time=ReadingTime(at_end=True))
    assert one.verdict.word == "ship" and one.findings == ()
    table = one.table().set_index(["role", "metric"])
    assert table.loc[("primary", "spend"), "saved"] == pytest.approx(0.8, abs=0.05)
    assert table.loc[("primary", "spend"), "effect"] == pytest.approx(0.5, abs=0.15)
    assert table.loc[("complier", "spend"), "effect"] == pytest.approx(1.0, abs=0.3)
    assert set(table.index.get_level_values(0)) == {"primary", "secondary", "complier"}


def test_order_of_rows_and_type_of_arms_do_not_matter() -> None:
    d = trial(400)
    one = readout(d, [SPEND], DESIGN).table()
    other = readout(d.sample(frac=1, random_state=3).astype({"treatment": "category"}), [SPEND], DESIGN).table()
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)
    numbers = d.assign(treatment=(d["treatment"] == "on").astype(int))
    as_numbers = readout(numbers, [SPEND], ReadoutDesign({"0": 0.5, "1": 0.5})).table()
    assert as_numbers["effect"][0] == pytest.approx(one["effect"][0])


def test_sums_by_hand() -> None:
    d = pd.DataFrame({
        "unit_id": ["a", "b", "c", "d", "e", "e", "f"],
        "treatment": ["off", "off", "on", "on", "on", "off", "test"],
        "spend": [1.0, 3, 5, 9, 100, 100, 100],
    })  # fmt: skip
    sums, facts = trial_sums(d, [ReadoutMetric("spend", "spend", role="primary")], DESIGN)
    assert sums.moments.n.tolist() == [[2], [2]] and sums.moments.mean.ravel().tolist() == [2, 7]
    assert sums.moments.products.ravel().tolist() == [2, 8]
    assert facts.units == {"off": 2, "on": 2, "test": 1} and facts.twice == 1


def test_clusters_are_rows() -> None:
    """Households of two: means over users, errors of households."""
    d = trial()
    d["treatment"] = np.where(d["household"] % 2 == 0, "off", "on")
    d["spend"] += np.random.default_rng(2).normal(0, 3, 2000)[d["household"]]
    by_household = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")
    metric = ReadoutMetric("spend", "spend", role="primary")
    clustered, naive = (readout(d, [metric], design).metrics[0] for design in (by_household, DESIGN))
    assert clustered.effect == pytest.approx(naive.effect) and clustered.error > 1.25 * naive.error
    means = d.groupby("household").agg(spend=("spend", "mean"), treatment=("treatment", "first"))
    spread = means.groupby("treatment")["spend"].agg(lambda x: x.var() / len(x)).sum()
    assert clustered.error == pytest.approx(np.sqrt(spread), rel=1e-9)
    assert readout(d, [metric], by_household).units == {"off": 1000, "on": 1000}


def test_a_household_in_two_arms_is_left_out() -> None:
    d = trial(2000)
    d["treatment"] = np.where(d["household"] % 2 == 0, "off", "on")
    d.loc[0, "treatment"] = "on"
    design = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")
    _, facts = trial_sums(d, [SPEND], design)
    assert facts.twice == 1 and facts.units == {"off": 499, "on": 500}


def test_propensities_by_design_of_an_assignment_pass() -> None:
    """What `assign` logs agrees with what it assigns; a share that was only meant does not."""
    ids = [f"u{k}" for k in range(6000)]
    arms = assign(ids, Experiment("autumn-1", {"off": 0.7, "on": 0.3}))
    d = arms.assign(spend=np.random.default_rng(1).normal(size=6000))
    design = ReadoutDesign({"off": 0.7, "on": 0.3})
    metric = ReadoutMetric("spend", "spend", role="primary")
    columns = ReadoutColumns(propensity="propensity")
    assert readout(d, [metric], design, columns).findings == ()
    d["propensity"] = 0.5
    assert readout(d, [metric], design, columns).verdict.word == "broken"


def test_breaks_are_found_in_a_frame() -> None:
    d = trial()
    lost = d[(d["treatment"] == "off") | (d["before"] > 8)]
    checks = {one.check for one in readout(lost, [SPEND], DESIGN, COLUMNS).findings}
    assert {"sample_ratio", "covariate_balance"} <= checks and "propensity" not in checks
    week = d[d["day"] < pd.Timestamp("2026-03-06")]
    assert "too_short" in {one.check for one in readout(week, [SPEND], DESIGN, COLUMNS).findings}
    assert readout(d, [SPEND], DESIGN, time=ReadingTime(immature=400)).verdict.word == "broken"
    allowed = HealthLimits(immature=0.2)
    assert readout(d, [SPEND], DESIGN, time=ReadingTime(immature=400), limits=allowed).verdict.word == "ship"


def test_looks_of_a_frame() -> None:
    rule = StoppingRule("group_sequential", analyses=(0.5, 1.0))
    design = ReadoutDesign({"off": 0.5, "on": 0.5}, planned_units=8000, stopping=rule)
    first = readout(trial(), [SPEND], design, COLUMNS)
    assert first.verdict.word == "ship" and first.level == pytest.approx(0.00305, abs=1e-4)
    late = readout(trial(8000), [SPEND], design, COLUMNS, time=ReadingTime(earlier=(0.5,)))
    assert late.level == pytest.approx(0.049, abs=1e-3)
    with pytest.raises(ConfigError, match="this is look 3 of 2 planned"):
        readout(trial(8000), [SPEND], design, COLUMNS, time=ReadingTime(earlier=(0.5, 0.9)))


# ---------------------------------------------------------------- bad input


def test_a_unit_of_analysis_that_was_not_randomised() -> None:
    with pytest.raises(ConfigError, match="shop was randomised, but rows are of unit_id and have no column 'shop'"):
        readout(trial(100), [SPEND], ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="shop"))


def test_columns_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="column 'spent' is not in the frame: did you mean 'spend'"):
        readout(trial(100), [ReadoutMetric("spend", "spent", role="primary")], DESIGN)
    with pytest.raises(ConfigError, match="column 'arm' is not in the frame"):
        readout(trial(100), [SPEND], DESIGN, ReadoutColumns(treatment="arm"))
    with pytest.raises(ConfigError, match="no metric is primary"):
        readout(trial(100), [PER_VISIT], DESIGN)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("spend", None, "column 'spend' is missing or not finite in 1 rows"),
        ("before", np.inf, "column 'before' is missing or not finite in 1 rows"),
        ("treatment", None, "column 'treatment' is missing in 1 rows"),
        ("unit_id", 7, "column 'unit_id' repeats 1 units in one arm"),
        ("propensity", 0.0, r"column 'propensity' is outside \(0, 1\] in 1 rows"),
        ("region", None, "column 'region' is missing in 1 rows"),
        ("day", None, "column 'day' is missing in 1 rows"),
    ],
)
def test_values_that_do_not_fit(column: str, value: object, sentence: str) -> None:
    d = trial(100).sort_values("treatment", ignore_index=True)
    d["unit_id"] = np.arange(100)
    d.loc[3, column] = value
    with pytest.raises(DataError, match=sentence):
        readout(d, [SPEND], DESIGN, COLUMNS)


def test_frames_that_do_not_fit() -> None:
    d = trial(100)
    with pytest.raises(DataError, match="the frame has no row"):
        readout(d.head(0), [SPEND], DESIGN)
    with pytest.raises(DataError, match="arm 'on' has no unit: the frame has arms off"):
        readout(d[d["treatment"] == "off"], [SPEND], DESIGN)
    with pytest.raises(DataError, match="column 'spend' is no number in some rows"):
        readout(d.assign(spend="many"), [SPEND], DESIGN)
    with pytest.raises(DataError, match="column 'day' is no date in some rows"):
        readout(d.assign(day="Monday"), [SPEND], DESIGN, COLUMNS)
    households = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")
    torn = d.assign(treatment=np.where(d["household"] % 2 == 0, "off", "on"), region=d["unit_id"] % 2)
    with pytest.raises(DataError, match="some units of one household lie in two strata"):
        readout(torn, [SPEND], households, ReadoutColumns(stratum="region"))


def test_examples() -> None:
    assert doctest.testmod(frames).failed == 0 and doctest.testmod(frames).attempted > 0


def test_a_column_may_have_any_name() -> None:
    """What counts the units of a cluster has a place and no name, so no column of a user's can be taken for it."""
    frame = trial()
    frame["treatment"] = np.where(frame["household"] % 2 == 0, "off", "on")
    by_household = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")
    metrics = [SPEND, ReadoutMetric("visits", "1")]
    one = readout(frame.assign(**{"1": frame["visits"]}), metrics, by_household).metrics[1]
    assert one.control == pytest.approx(frame["visits"][frame["treatment"] == "off"].mean())


def households(count: int, each: int = 20) -> pd.DataFrame:
    """Users in households that were randomised, on days 1 to `each`, the last row first."""
    rng, users = np.random.default_rng(1), count * each
    house = np.arange(users) // each
    days = pd.Timestamp("2024-03-01") + pd.to_timedelta(each - np.arange(users) % each, "D")
    columns = {"unit_id": np.arange(users), "house": house, "treatment": np.where(house % 2, "on", "off"), "at": days}
    return pd.DataFrame({**columns, "spend": rng.normal(size=users), "p": 0.5})


def test_a_cluster_is_one_unit_with_one_propensity_from_its_first_day() -> None:
    design = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="house")
    columns = ReadoutColumns(day="at", propensity="p")
    metrics = [ReadoutMetric("spend", "spend", role="primary")]
    _, facts = trial_sums(households(40), metrics, design, columns)
    assert facts.by_day is not None and next(sum(day) for day in zip(*facts.by_day.values(), strict=True)) == 40
    mixed = households(40).assign(p=lambda rows: np.where(rows.unit_id % 2, 0.5, 0.01))
    with pytest.raises(DataError, match="units of one house have different propensities"):
        trial_sums(mixed, metrics, design, columns)
    with pytest.raises(DataError, match="arm off has 2 clusters, of at least 10: from fewer no error follows"):
        readout(households(4), metrics, design, time=ReadingTime(at_end=True, days=21), override="a test")
