"""Canaries: slices, sums, verdicts in words; and by simulation with known truth how often they are wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.experiments import canary_simulation as simulated
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import assign
from uplift_spark.experiments.canary import (
    CANARY_CHECKS,
    CanaryEvidence,
    SliceSums,
    canary_design,
    harm_of,
    read_canary,
    read_check,
    reading_text,
    sums_by_slice,
)
from uplift_spark.sections.canary import UNFINISHED, CanaryConf, CanaryMargins, state_after, state_at_end

CONF = CanaryConf()


def shares(champion, challenger, n):
    return SliceSums.of_share(champion, n), SliceSums.of_share(challenger, n)


def evidence(n=60_000, assigned=None, **checks):
    usual = {"errors": shares(600, 590, n), "outcome": shares(6000, 6050, n)}
    return CanaryEvidence({**usual, **checks}, assigned or (n, n))


def test_slices_are_equal_and_another_canary_has_others():
    ids = [f"u{i}" for i in range(20_000)]
    arms = assign(ids, canary_design("canary-1", 0.05))["treatment"].to_numpy()
    counts = {arm: (arms == arm).sum() for arm in ("champion", "challenger", "rest")}
    assert abs(counts["champion"] - 1000) < 120 and abs(counts["challenger"] - 1000) < 120
    other = assign(ids, canary_design("canary-2", 0.05))["treatment"].to_numpy()
    assert 20 < ((arms == "challenger") & (other == "challenger")).sum() < 90  # independent: 50
    assert set(assign(ids, canary_design("half", 0.5))["treatment"]) == {"champion", "challenger"}


def test_sums_of_units_add_and_count_units_that_make_many_requests_as_one():
    rng = np.random.default_rng(1)
    requests = rng.integers(1, 30, 4000).astype(float)
    failed = rng.binomial(requests.astype(int), np.where(rng.random(4000) < 0.05, 0.5, 0.01)).astype(float)

    def sums(part):
        v, p = failed[part], requests[part]
        return SliceSums(len(v), (v > 0).sum(), v.sum(), p.sum(), (v * v).sum(), (v * p).sum(), (p * p).sum())

    whole = sums(slice(None))
    assert sums(slice(0, 1000)) + sums(slice(1000, None)) == whole
    resampled = [failed[i].sum() / requests[i].sum() for i in rng.integers(0, 4000, (400, 4000))]
    assert np.sqrt(whole.variance(0.0, False)) == pytest.approx(np.std(resampled), rel=0.12)
    naive = np.sqrt(whole.ratio * (1 - whole.ratio) / requests.sum())
    assert np.sqrt(whole.variance(0.0, False)) > 2 * naive
    fields = {"units": 2, "events": 1, "value": 1, "per": 5, "vv": 1, "vp": 3, "pp": None}
    assert sums_by_slice([{"slice": "rest", **fields}, {"slice": "challenger", **fields}]) == (
        SliceSums(),
        SliceSums(2.0, 1.0, 1.0, 5.0, 1.0, 3.0, 0.0),
    )


def test_all_checks_safe_promote_and_the_reasons_say_so():
    reading = read_canary(evidence(), 3, CONF)
    assert reading.verdict == "promote" and [one.state for one in reading.checks] == ["safe", "safe"]
    assert reading.reasons[0].startswith("requests that fail: 1.00% of the champion, 0.98% of the challenger; no worse")
    said = reading_text(reading, {"delivery": "bronze.delivery is not there"})
    assert "Verdict: promote" in said and "- treated units that were not reached: not compared, bronze.delivery" in said


@pytest.mark.parametrize(
    ("changes", "days", "verdict", "words"),
    [
        ({"errors": shares(600, 1800, 60_000)}, 0.1, "roll back", "requests that fail: 1.00% of the champion, 3.00%"),
        ({"outcome": shares(6000, 5000, 60_000)}, 3, "roll back", "outcome per unit: 0.1 of the champion"),
        ({"delivery": shares(600, 1500, 60_000)}, 3, "roll back", "treated units that were not reached"),
        ({"opt_outs": shares(60, 800, 60_000)}, 3, "roll back", "units that withdrew their consent"),
        ({"latency": shares(600, 2500, 60_000)}, 3, "roll back", "slow requests"),
        ({"outcome": shares(600, 605, 6000)}, 3, "inconclusive", "units a slice would tell if they were alike"),
        ({"outcome": shares(6000, 0, 60_000)}, 3, "roll back", "outcome per unit: 0.1 of the champion, 0 of the"),
        ({"outcome": shares(0, 6000, 60_000)}, 3, "inconclusive", "not known yet"),
        ({"outcome": shares(12, 0, 60_000)}, 3, "inconclusive", "not known yet"),
        ({"errors": (SliceSums(), SliceSums())}, 3, "inconclusive", "requests that fail: no data yet in either slice"),
        ({"errors": (SliceSums.of_share(6, 600), SliceSums())}, 3, "inconclusive", "no data yet in one slice"),
        ({"errors": shares(0, 0, 40)}, 3, "inconclusive", "40 units in the smaller slice are too few, 500 are needed"),
        ({"errors": shares(0, 40, 40)}, 3, "inconclusive", "are too few"),
        ({"errors": shares(0, 9, 600)}, 3, "inconclusive", "not known yet"),
        ({"assigned": (60_000, 50_000)}, 3, "inconclusive", "where they should be equal"),
        ({"assigned": (60_000, 0)}, 3, "inconclusive", "a slice has no unit"),
        ({}, 0.5, "inconclusive", "0.5 days are fewer than canary.min_days 1"),
        ({"outcome": shares(600, 605, 6000)}, 28, "ended", "after 28 days, canary.max_days 28, there is no verdict"),
    ],
)
def test_verdicts_and_their_words(changes, days, verdict, words):
    reading = read_canary(evidence(**changes), days, CONF)
    assert reading.verdict == verdict and words in reading.text
    assert state_after(reading.verdict) != "promoting"


def test_without_the_outcome_nothing_is_promoted():
    only = CanaryEvidence({"errors": shares(600, 590, 60_000)}, (60_000, 60_000))
    assert read_canary(only, 3, CONF).verdict == "inconclusive"
    assert "nobody can tell the outcome" in read_canary(only, 3, CONF).text
    assert read_canary(CanaryEvidence({}, (9, 9)), 3, CONF).verdict == "inconclusive"


def test_less_of_an_outcome_may_be_better():
    worse_if_less = evidence(outcome=shares(6000, 5000, 60_000))
    assert read_canary(dataclasses.replace(worse_if_less, decrease=True), 3, CONF).verdict == "promote"
    assert read_check("outcome", *shares(6000, 0, 60_000), CONF, decrease=True).state == "open"
    assert read_check("outcome", *shares(0, 6000, 60_000), CONF, decrease=True).state == "worse"


def test_a_clock_that_went_back_and_a_share_above_half_are_refused():
    with pytest.raises(DataError, match=r"the clock is 0\.5 days behind the start of the canary"):
        read_canary(evidence(), -0.5, CONF)
    with pytest.raises(ConfigError, match=r"canary\.share is 0\.6, but the champion needs a slice as large"):
        CanaryConf(share=0.6)
    with pytest.raises(ConfigError, match=r"canary\.min_days is 30, but canary\.max_days ends the canary after 28"):
        CanaryConf(min_days=30)


def test_no_failure_yet_is_not_taken_for_none_ever():
    """By the plain error of a share, 0 of 600 would be exact."""
    none = read_check("errors", *shares(0, 0, 600), CONF)
    assert none.state == "open" and none.upper > 0.01
    assert read_check("errors", *shares(0, 0, 20_000), CONF).state == "safe"


def test_many_canaries_at_once_read_like_one():
    counts = np.array([10.0, 300.0])
    many = harm_of(SliceSums.of_share(counts, 5000.0), SliceSums.of_share(counts * 2, 5000.0), CONF)
    one = harm_of(*shares(300.0, 600.0, 5000.0), CONF)
    assert (many.lower[1], many.upper[1]) == (one.lower, one.upper)


def test_states_lead_to_an_end():
    assert [state_after(v) for v in ("promote", "roll back", "ended", "inconclusive")] == [
        "promoting", "rolling back", "ending", "running",
    ]  # fmt: skip
    assert [state_at_end(state) for state in UNFINISHED] == ["promoted", "rolled back", "ended", "restored"]
    assert set(CANARY_CHECKS) == {field.name for field in dataclasses.fields(CanaryMargins)}


# --------------------------------------------------------------------------------------------------------------------
# Simulations with known truth: `python -m tests.experiments.canary_simulation` prints these figures.


def check_figures(runs):
    figures = simulated.figures(runs)
    slack = 3 * np.sqrt(0.01 * 0.99 / runs)
    assert figures["alike"]["roll back"] <= 0.01 + slack
    assert figures["alike, spiky traffic, few units"]["roll back"] <= 0.01 + slack
    assert figures["errors 1 to 3 %"]["roll back"] >= 0.99 - slack
    assert figures["outcome 10 % worse"]["promote"] <= 0.01 + slack
    assert figures["alike, large"]["promote"] > 0.8  # a canary that promoted nothing would pass all the others
    for case in ("outcome 20 % more, less is better", "no outcome at all"):
        assert figures[case]["roll back"] >= 0.99 - slack
    return figures


def test_so_many_units_know_that_slices_are_alike():
    n = simulated.units_alike("outcome", 0.05)
    assert 40_000 < n < 80_000
    states = [read_check("outcome", *shares(0.05 * k, 0.05 * k, k), CONF).state for k in (n - 100, n)]
    assert states == ["open", "safe"]
    alike = simulated.Case("alike", n, looks=1)  # one look: half of those that are alike are known to be
    assert 0.3 < simulated.shares_of_verdicts(alike, 400)["promote"] < 0.6


def test_a_quick_simulation_keeps_its_level():
    check_figures(200)


@pytest.mark.simulation
def test_two_thousand_canaries_keep_their_level():
    figures = check_figures(2000)
    assert figures["alike"]["roll back"] <= 0.01
    assert figures["errors 1 to 3 %"]["roll back"] >= 0.99
    assert figures["outcome 10 % worse"]["promote"] <= 0.01
