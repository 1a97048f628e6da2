"""Simulated trials: sound ones show the truth and pass every check, each break is noticed by its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift_spark.experiments.simulation import BREAKS, TrialOverTime, break_table, findings_of

TABLE_COLUMNS = ["name", "check", "caught", "false_alarms", "effect", "true_effect"]


def test_the_same_seed_is_the_same_trial_and_weekends_are_busier() -> None:
    one = TrialOverTime().frame(3)
    pd.testing.assert_frame_equal(one, TrialOverTime().frame(3))
    assert not one["spend"].equals(TrialOverTime().frame(4)["spend"])
    weekend = one["day"].dt.dayofweek.isin((5, 6))
    assert weekend.mean() == pytest.approx(3 / 8, abs=0.03) and one["day"].nunique() == 28
    assert one["treatment"].value_counts(normalize=True)["on"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("changes", [{}, {"weekend_effect": 3.0}, {"clustered": True}])
def test_a_sound_trial_shows_the_truth(changes: dict) -> None:
    shown = []
    for seed in range(12):
        d = TrialOverTime(**changes).frame(seed)
        rest = (d["spend"] - d["spend_before"]).groupby(d["treatment"]).mean()
        shown.append(rest["on"] - rest["off"])
    assert np.mean(shown) == pytest.approx(0.5, abs=4 * 0.06 / np.sqrt(12))


def test_what_is_broken_is_as_large_as_it_says() -> None:
    whole = TrialOverTime(lost=0.1).frame(1)["treatment"].value_counts()
    assert whole["on"] == pytest.approx(0.9 * 4000, abs=150) and whole["off"] == pytest.approx(4000, abs=150)
    moved = TrialOverTime(moved=0.02).frame(1)
    assert moved["unit_id"].duplicated().sum() == pytest.approx(160, abs=45)
    bots = TrialOverTime(bots=0.05).frame(1)
    machines = bots[bots["unit_id"].str.startswith("machine")]
    assert set(machines["treatment"]) == {"on"} and len(machines) == pytest.approx(400, abs=80)
    same = TrialOverTime(same_salt=True).frame(1)
    assert (same["treatment"] == same["earlier_arm"]).all()
    spilt = TrialOverTime(spill=1.0, units=30_000).frame(1)
    rest = (spilt["spend"] - spilt["spend_before"]).groupby(spilt["treatment"]).mean()
    assert rest["off"] == pytest.approx(0.25, abs=0.08)  # of two others at home one is treated: half of .5
    late = TrialOverTime(waiting=6.0).frame(1)
    assert (late["known_on"] - late["day"]).dt.total_seconds().mean() == pytest.approx(6 * 86_400, rel=0.05)


def test_each_break_is_noticed_quickly() -> None:
    """Six trials of each kind: a check with power .9 misses four of them once in 800 tables."""
    for one in BREAKS:
        caught = [one.check in {finding.check for finding in findings_of(one, seed)[0]} for seed in range(6)]
        assert sum(caught) >= 3, one.name
    names = [one.name for one in BREAKS]
    assert len(set(names)) == len(names) and {one.check for one in BREAKS} >= {"effect_over_time", "sample_ratio"}


@pytest.mark.simulation
def test_each_break_is_noticed_by_its_check_and_no_sound_trial_is() -> None:
    table = break_table(200)
    print(table.round(3).to_string(index=False))
    assert table.columns.tolist() == TABLE_COLUMNS
    assert (table["caught"] >= 0.8).all(), table
    assert (table["false_alarms"] <= 0.02).all(), table


def test_a_table_has_a_row_for_each_break() -> None:
    table = break_table(1)
    assert table["name"].tolist() == [one.name for one in BREAKS] and table.columns.tolist() == TABLE_COLUMNS
