"""Tests of the checks before a readout: each break is found, clean trials pass, sizes and levels hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, ttest_ind

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.health import (
    REFUSE,
    WARN,
    HealthFinding,
    HealthLimits,
    PropensitySums,
    ReadoutDesign,
    TrialFacts,
    arm_faults,
    association,
    balance_test,
    health_findings,
    standardised_gaps,
)
from uplift_spark.experiments.sequential import StoppingRule
from uplift_spark.stats.moments import CrossMoments

HALVES = ReadoutDesign({"off": 0.5, "on": 0.5})
CLEAN = TrialFacts({"off": 5000, "on": 5020})


def finding(facts: TrialFacts, check: str, design: ReadoutDesign = HALVES) -> HealthFinding | None:
    named = [one for one in health_findings(facts, design) if one.check == check]
    assert len(named) <= 1
    return named[0] if named else None


def found_in(facts: TrialFacts, check: str, design: ReadoutDesign = HALVES) -> HealthFinding:
    one = finding(facts, check, design)
    assert one is not None, health_findings(facts, design)
    return one


# ---------------------------------------------------------------- sample ratio


def test_only_what_is_wrong_with_the_arms_is_a_fault_of_them() -> None:
    rule = StoppingRule("group_sequential", analyses=(0.5, 1.0))
    looks = replace(HALVES, planned_units=19_000, stopping=rule)
    ended = TrialFacts({"off": 9000, "on": 10_000}, earlier=(0.5, 1.0))
    with pytest.raises(ConfigError, match="this is look 3 of 2 planned"):
        health_findings(ended, looks)
    assert [one.check for one in arm_faults(ended, looks)] == ["sample_ratio"]
    assert arm_faults(replace(ended, units=CLEAN.units), looks) == []


def test_a_clean_trial_has_no_finding() -> None:
    assert health_findings(CLEAN, HALVES) == []


def test_sample_ratio_says_which_arm_and_by_how_much() -> None:
    one = found_in(TrialFacts({"off": 9000, "on": 10_000}), "sample_ratio")
    assert one.severity == REFUSE and one.figure == pytest.approx(-500 / 9500) and one.p_value is not None
    assert one.sentence.startswith("arm off has -5.26% of the units that its share of 0.5 means (off 9,000, on 10,000")
    assert "start again with a new salt" in one.sentence


def test_designed_shares_and_not_equal_ones() -> None:
    """95/5 by design is no broken 50/50, and 50/50 is a broken 95/5."""
    uneven = ReadoutDesign({"off": 0.95, "on": 0.05})
    assert health_findings(TrialFacts({"off": 95_100, "on": 4_900}), uneven) == []
    assert finding(TrialFacts({"off": 9500, "on": 500}), "sample_ratio", uneven) is None
    assert found_in(TrialFacts({"off": 5000, "on": 5000}), "sample_ratio", uneven).severity == REFUSE
    three = ReadoutDesign({"off": 0.5, "a": 0.3, "b": 0.2})
    assert "arm b" in found_in(TrialFacts({"off": 5000, "a": 3000, "b": 2500}), "sample_ratio", three).sentence


@pytest.mark.parametrize(
    "units",
    [
        {"off": 2, "on": 0},  # two users say nothing
        {"off": 15, "on": 0},
        {"off": 50_050_000, "on": 49_950_000},  # p = 1e-23, but .1 % off
        {"off": 5_012_000, "on": 4_988_000},
    ],
)
def test_neither_two_users_nor_a_hair_of_ten_million_raise_an_alarm(units: dict[str, float]) -> None:
    assert finding(TrialFacts(units), "sample_ratio") is None


def test_a_splitter_that_was_mended_stays_in_the_record() -> None:
    """60/40 for a week, then 50/50 with enough units for the total to look fair."""
    days = {"off": [600] * 7 + [5000] * 60, "on": [400] * 7 + [5020] * 60}
    facts = TrialFacts({arm: float(sum(n)) for arm, n in days.items()}, by_day=days)
    assert finding(replace(facts, by_day=None), "sample_ratio") is None
    assert finding(facts, "sample_ratio") is None  # small in the total: no figure suffers
    worse = {"off": [6000] * 7 + [5000] * 60, "on": [4000] * 7 + [5020] * 60}
    total = {arm: float(sum(n)) for arm, n in worse.items()}
    assert found_in(TrialFacts(total, by_day=worse), "sample_ratio").p_value is not None


def exact_power(units: int, share: float) -> float:
    """Probability that the chi-square test with its floor refuses, by the binomial distribution alone."""
    k = np.arange(units // 2 - 3000, units // 2 + 3000)
    caught = [finding(TrialFacts({"off": float(units - n), "on": float(n)}), "sample_ratio") is not None for n in k]
    return float(binom.pmf(k, units, share)[np.array(caught)].sum())


def test_half_a_point_is_caught_nine_times_in_ten() -> None:
    """50.5/49.5 needs 209,039 units at level .001."""
    assert exact_power(209_039, 0.505) >= 0.8995
    assert exact_power(209_039, 0.5) <= 0.00101  # whole units: the normal approximation is off by as much


# ---------------------------------------------------------------- who is in which arm


def test_units_without_a_share_or_in_two_arms() -> None:
    design = ReadoutDesign({"off": 0.5, "on": 0.5, "old": 0.0})
    one = found_in(TrialFacts({"off": 5000, "on": 5000, "old": 50}), "no_share", design)
    assert one.severity == REFUSE and "50 units (0.50%) are in arm 'old'" in one.sentence
    assert found_in(TrialFacts({"off": 5000, "on": 5000, "b": 2}), "no_share").severity == WARN
    assert found_in(replace(CLEAN, twice=300), "two_arms").severity == REFUSE
    few = found_in(replace(CLEAN, twice=3), "two_arms")
    assert few.severity == WARN and "3 units (0.03%) are in two arms and left out" in few.sentence


def covariates(shift: float, units: int = 4000, seed: int = 1, arms: int = 2) -> CrossMoments:
    """Three covariates, correlated and skewed; the first is shifted in the last arm."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(units, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0], [0, 0, 1.0]])
    x[:, 2] = np.exp(x[:, 2])
    arm = rng.integers(0, arms, units)
    x[arm == arms - 1, 0] += shift
    return CrossMoments.of(x, arm, (arms,))


def test_covariate_balance_names_the_feature() -> None:
    names = ("age", "visits", "spend")
    one = found_in(replace(CLEAN, covariates=covariates(0.2), names=names), "covariate_balance")
    assert one.severity == REFUSE and "arms differ before the treatment in age by 0." in one.sentence
    assert "spend" not in one.sentence
    assert finding(replace(CLEAN, covariates=covariates(0.0), names=names), "covariate_balance") is None
    # Beyond chance, but .002 sd: no figure suffers.
    hair = CrossMoments(np.full(2, 1e8), np.array([[0.0], [0.002]]), np.full((2, 1, 1), 1e8))
    assert balance_test(hair)[0] < 1e-9
    assert finding(replace(CLEAN, covariates=hair, names=("age",)), "covariate_balance") is None


def test_balance_test_is_hotelling_and_welch_known() -> None:
    """Two arms: Hotelling's T² in its F form, and Student's t for one covariate."""
    rng = np.random.default_rng(2)
    x, arm = rng.normal(size=(60, 2)), np.arange(60) % 2
    joint, single = balance_test(CrossMoments.of(x, arm, (2,)))
    gap = x[arm == 1].mean(axis=0) - x[arm == 0].mean(axis=0)
    within = (29 * np.cov(x[arm == 0].T) + 29 * np.cov(x[arm == 1].T)) / 58
    t2 = gap @ np.linalg.solve(within * (2 / 30), gap)
    from scipy.stats import f

    assert joint == pytest.approx(f.sf(t2 * 57 / (58 * 2), 2, 57), rel=1e-9)
    assert single == pytest.approx(ttest_ind(x[arm == 1], x[arm == 0]).pvalue, rel=1e-9)


def test_balance_test_keeps_its_level_and_bears_useless_columns() -> None:
    for arms in (2, 4):
        p = [balance_test(covariates(0.0, 400, seed, arms))[0] for seed in range(800)]
        assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.025)
    sums = covariates(0.1)
    wide = sums.columns([0, 1, 2, 0])
    assert balance_test(wide)[0] == pytest.approx(balance_test(sums)[0], rel=1e-6)
    flat = CrossMoments.of(np.column_stack([np.ones(100), np.arange(100) % 7]), np.arange(100) % 2, (2,))
    joint, single = balance_test(flat)
    assert 0 < joint <= 1 and np.isnan(single[0]) and standardised_gaps(flat)[0] == 0.0
    for constant in (1.0, 0.1, 1e9 / 3):
        sums = CrossMoments.of(np.full((50, 1), constant), np.arange(50) % 2, (2,))
        assert balance_test(sums)[0] == 1.0 and standardised_gaps(sums)[0] == 0.0
    # The worst imbalance: the same within an arm, another between them.
    apart = CrossMoments.of(np.column_stack([np.arange(50) % 2, np.arange(50) % 7]), np.arange(50) % 2, (2,))
    joint, single = balance_test(apart)
    assert joint == single[0] == 0.0 and standardised_gaps(apart)[0] == np.inf
    found = finding(replace(CLEAN, covariates=apart, names=("segment", "age")), "covariate_balance")
    assert found is not None and found.severity == REFUSE and "segment" in found.sentence


# ---------------------------------------------------------------- what happened to them


def test_delivery_and_treated_control() -> None:
    three = ReadoutDesign({"off": 0.4, "a": 0.3, "b": 0.3})
    facts = TrialFacts({"off": 4000, "a": 3000, "b": 3000}, delivered={"a": (2900, 3000), "b": (2700, 3000)})
    one = found_in(facts, "delivery", three)
    assert one.severity == WARN and one.sentence.startswith("arm b was delivered to 90.0% of its units")
    broken = replace(facts, delivered={"a": (2900, 3000), "b": (900, 3000)})
    assert found_in(broken, "delivery", three).severity == REFUSE
    assert finding(replace(facts, delivered={"a": (2900, 3000), "b": (2880, 3000)}), "delivery", three) is None
    with pytest.raises(DataError, match="arm 'a' reached 3,100 of 3,000 units"):
        health_findings(replace(facts, delivered={"a": (3100, 3000)}), three)
    taken = found_in(replace(CLEAN, treated=400), "treated_control")
    assert taken.severity == WARN and "400 units of the control (8.0%) received a treatment" in taken.sentence
    assert finding(replace(CLEAN, treated=10), "treated_control") is None


def propensity_sums(p: np.ndarray) -> PropensitySums:
    return PropensitySums(p.size, float((1 / p).sum()), float((1 / p**2).sum()))


def test_propensities_stand_for_all_units() -> None:
    """Units of one stratum have .5, of the other .2; logged as .5 throughout, the treated stand for too few."""
    rng = np.random.default_rng(3)
    p = np.where(rng.random(40_000) < 0.5, 0.5, 0.2)
    on = rng.random(40_000) < p
    design = ReadoutDesign({"off": 0.65, "on": 0.35})
    facts = TrialFacts({"off": float((~on).sum()), "on": float(on.sum())})
    good = {"on": propensity_sums(p[on]), "off": propensity_sums(1 - p[~on])}
    assert health_findings(replace(facts, propensities=good), design) == []
    wrong = {"on": propensity_sums(np.full(on.sum(), 0.5)), "off": good["off"]}
    one = found_in(replace(facts, propensities=wrong), "propensity", design)
    assert one.severity == REFUSE and one.figure == pytest.approx(0.7 - 1, abs=0.02)
    assert "mean 0.5 where the design has 0.35" in one.sentence
    exact = {"on": PropensitySums(5020, 10_020, 2 * 10_020)}
    assert finding(replace(CLEAN, propensities=exact), "propensity") is None


def test_maturity_and_length() -> None:
    assert found_in(replace(CLEAN, immature=500), "maturity").severity == REFUSE
    assert found_in(replace(CLEAN, immature=50), "maturity").severity == WARN
    assert found_in(replace(CLEAN, days=5), "too_short").sentence.startswith("the trial covers 5 days: wait for 7")
    weeks = found_in(replace(CLEAN, days=17, at_end=True), "whole_weeks")
    assert weeks.severity == WARN and "end it after 21 days" in weeks.sentence
    assert health_findings(replace(CLEAN, days=14, at_end=True), HALVES) == []
    planned = replace(HALVES, planned_days=28)
    early = found_in(replace(CLEAN, days=14, at_end=True), "ended_early", planned)
    assert early.severity == REFUSE and "ended after 14 of 28 planned days" in early.sentence


def test_looks_that_were_not_planned() -> None:
    planned = replace(HALVES, planned_units=40_000, planned_days=28)
    one = found_in(replace(CLEAN, days=7), "unplanned_look", planned)
    assert one.severity == REFUSE and "7 of 28 planned days and 10,020 of 40,000 planned units" in one.sentence
    assert health_findings(replace(CLEAN, days=28), replace(planned, planned_units=10_100)) == []
    anytime = replace(planned, stopping=StoppingRule("anytime"))
    assert health_findings(replace(CLEAN, days=8), anytime) == []
    looks = replace(planned, stopping=StoppingRule("group_sequential", analyses=(0.25, 0.5, 1.0)))
    assert health_findings(CLEAN, looks) == []
    off = found_in(replace(CLEAN, earlier=(0.25,)), "unplanned_look", replace(looks, planned_units=11_133))
    assert "look 2 comes at 90% of the units and is planned at 50%" in off.sentence
    with pytest.raises(ConfigError, match="this is look 4 of 3 planned"):
        health_findings(replace(CLEAN, earlier=(0.25, 0.5, 0.9)), looks)
    with pytest.raises(ConfigError, match="the trial's last look has been"):
        health_findings(replace(CLEAN, earlier=(0.25, 1.0)), looks)


def test_carry_over_from_other_trials() -> None:
    assert "trial spring had the same salt" in found_in(replace(CLEAN, same_salt=("spring",)), "carry_over").sentence
    tied = np.array([[3000, 2000], [2000, 3020]])
    one = found_in(replace(CLEAN, crossings={"banner": tied}), "carry_over")
    assert one.severity == REFUSE and "arms depend on those of trial banner" in one.sentence
    free = np.array([[2500, 2500], [2510, 2510]])
    assert finding(replace(CLEAN, crossings={"banner": free}), "carry_over") is None
    # By hand: chi-square 10020 · (3000·3020 - 2000²)² / (5000 · 5020 · 5000 · 5020).
    strength, _ = association(tied)
    assert strength == pytest.approx((3000 * 3020 - 2000**2) / (5000 * 5020))
    assert association(np.array([[5, 0], [3, 0]])) == (0.0, 1.0)


def test_rows_of_another_unit() -> None:
    one = found_in(replace(CLEAN, analysed="session"), "unit_of_analysis", replace(HALVES, randomised="user"))
    assert one.severity == REFUSE and one.sentence.startswith("rows are of session, but user was randomised")


def test_what_refuses_comes_first() -> None:
    both = health_findings(replace(CLEAN, twice=3, days=3, immature=2000), HALVES)
    assert [one.severity for one in both] == [REFUSE, REFUSE, WARN]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"shares": {"off": 0.5, "on": 0.4}}, r"shares of the trial add up to 0.9: make them add up to 1"),
        ({"shares": {"off": 1.0}}, "at least one other arm"),
        ({"shares": {"off": 0.0, "on": 1.0}}, "a control with a share"),
        ({"shares": {"off": 1.5, "on": -0.5}}, "give each arm a share from 0 to 1"),
        ({"shares": {"off": 0.5, "on": 0.5}, "multiplicity": "tukey"}, "multiplicity 'tukey' is unknown"),
        ({"shares": {"off": 0.5, "on": 0.5}, "planned_units": 0.0}, "planned_units are 0"),
        ({"shares": {"off": 0.5, "on": 0.5}, "stopping": StoppingRule("anytime")}, "needs planned_units"),
    ],
)
def test_designs_that_do_not_fit(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ReadoutDesign(**parts)


def test_no_unit() -> None:
    with pytest.raises(DataError, match="no unit is in the trial"):
        health_findings(TrialFacts({"off": 0, "on": 0}), HALVES)


# ---------------------------------------------------------------- level


def clean_trial(rng: np.random.Generator, design: ReadoutDesign) -> TrialFacts:
    """Four weeks, 4 skewed covariates, propensities, deliveries and another trial, all as they should be."""
    arms = list(design.shares)
    shares = np.array([design.shares[arm] for arm in arms])
    days = rng.multinomial(rng.integers(20, 200), shares, 28)
    n = days.sum(axis=0)
    x = rng.normal(size=(n.sum(), 4))
    x[:, 1:3] = np.exp(0.7 * x[:, 1:3])
    other = rng.integers(0, 2, n.sum())
    arm = np.repeat(np.arange(len(arms)), n)
    return TrialFacts(
        dict(zip(arms, n.astype(float), strict=True)),
        by_day={name: days[:, k].tolist() for k, name in enumerate(arms)},
        covariates=CrossMoments.of(x, arm, (len(arms),)),
        names=("a", "b", "c", "d"),
        delivered={name: (int(rng.binomial(n[k], 0.9)), int(n[k])) for k, name in enumerate(arms) if k},
        propensities={name: propensity_sums(np.full(n[k], shares[k])) for k, name in enumerate(arms)},
        immature=0,
        days=28,
        at_end=True,
        crossings={"other": np.histogram2d(arm, other, bins=[len(arms), 2])[0]},
    )


DESIGNS = (HALVES, ReadoutDesign({"off": 0.95, "on": 0.05}), ReadoutDesign({"off": 0.4, "a": 0.3, "b": 0.3}))


def refused(trials: int, seed: int) -> tuple[float, float, int]:
    """Shares of clean trials refused for their ratio and for anything, and 95/5 trials refused for their ratio."""
    rng = np.random.default_rng(seed)
    ratio = anything = uneven = 0
    for k in range(trials):
        design = DESIGNS[k % 3]
        checks = {one.check for one in health_findings(clean_trial(rng, design), design) if one.severity == REFUSE}
        ratio += "sample_ratio" in checks
        uneven += "sample_ratio" in checks and k % 3 == 1
        anything += bool(checks)
    return ratio / trials, anything / trials, uneven


def test_clean_trials_pass_quickly() -> None:
    """600 trials at .002: 6 refused have probability .002."""
    ratio, anything, _ = refused(600, 4)
    assert ratio <= 5 / 600 and anything <= 0.05


@pytest.mark.simulation
def test_level_over_10000_clean_trials() -> None:
    ratio, anything, uneven = refused(10_000, 1)
    print(
        f"clean trials refused for the sample ratio {ratio:.4f}, for anything {anything:.4f}; 95/5: {uneven} of 3,333"
    )
    assert ratio <= 0.002 and anything <= 0.05


@pytest.mark.simulation
def test_power_at_209039_units() -> None:
    rng = np.random.default_rng(2)
    caught = 0
    for _ in range(4000):
        days = rng.multinomial(209_039 // 28, (0.495, 0.505), 28)
        days[-1] += rng.multinomial(209_039 % 28, (0.495, 0.505))
        units = {"off": float(days[:, 0].sum()), "on": float(days[:, 1].sum())}
        facts = TrialFacts(units, by_day={"off": days[:, 0].tolist(), "on": days[:, 1].tolist()})
        caught += finding(facts, "sample_ratio") is not None
    print(f"50.5/49.5 at 209,039 units caught: {caught / 4000:.4f}")
    assert caught / 4000 >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / 4000)


def test_limits_are_the_callers() -> None:
    facts = TrialFacts({"off": 5_012_000, "on": 4_988_000})
    assert health_findings(facts, HALVES, HealthLimits(ratio=0.001)) != []
