"""Levels sampled by the effects' errors: propensities are exact, values by them unbiased; what learning costs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chi2, norm

from tests.serving.test_decisions import IDS, LEVELS, effects, planned, policy
from uplift_spark.errors import ConfigError
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.decisions import HELD_OUT
from uplift_spark.serving.reasons import EXPLORATION, SAMPLED
from uplift_spark.serving.scorer import LevelEffect
from uplift_spark.stats.offpolicy import probability_best


def test_how_likely_a_level_is_the_best_is_the_normal_law_for_two_levels():
    for mean, error in ((0.3, 0.2), (-1.0, 0.5), (0.0, 3.0), (5.0, 0.001)):
        wanted = norm.cdf(mean / error)
        np.testing.assert_allclose(
            probability_best(np.array([mean]), np.array([error])), [1 - wanted, wanted], atol=1e-15
        )


@pytest.mark.parametrize(
    ("mean", "error"),
    [
        ([0.1, 0.3], [0.2, 0.2]), ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]), ([1.0, 1.2], [0.01, 1.0]),
        ([-1.0, -2.0], [0.5, 0.7]), ([0.2, -0.1, 0.4, 0.0], [0.1, 0.9, 0.3, 0.05]),
    ],
)  # fmt: skip
def test_of_several_levels_it_is_what_draws_say(mean, error):
    draws = np.random.default_rng(3).normal(mean, error, (400_000, len(mean)))
    best = np.where(draws.max(axis=1) > 0, draws.argmax(axis=1) + 1, 0)
    wanted = np.bincount(best, minlength=len(mean) + 1) / len(best)
    result = probability_best(np.array(mean), np.array(error))
    assert result.sum() == pytest.approx(1.0, abs=1e-12) and np.all(result >= 0)
    np.testing.assert_allclose(result, wanted, atol=0.006)


def test_estimates_that_are_not_known_are_never_best_and_none_errs_without_error():
    np.testing.assert_allclose(probability_best(np.array([np.nan, 9.0]), np.array([1.0, 1.0])), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(probability_best(np.array([9.0, 0.0]), np.array([np.nan, 1.0])), [0.5, 0, 0.5])
    np.testing.assert_array_equal(probability_best(np.array([np.nan] * 2), np.ones(2)), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(probability_best(np.array([1.0, 2.0]), np.zeros(2)), [0.0, 0.0, 1.0])
    np.testing.assert_allclose(probability_best(np.array([-1.0, -2.0]), np.zeros(2)), [1.0, 0.0, 0.0])


def uncertain(five, ten, error):
    return [LevelEffect("5%", five, error, False), LevelEffect("10%", ten, error, False)]


def test_a_level_is_as_likely_as_it_is_the_best_and_no_less_than_its_part_of_exploration():
    """By hand: value 10, prices 1.5 a unit of cost: gains 10·0.25 - 1.5 and 10·0.3 - 3, with errors of 1."""
    live = policy(thompson=True, exploration=0.15)
    made = [live.decide(unit, planned(), uncertain(0.25, 0.3, 0.1)) for unit in IDS]
    wanted = 0.05 + 0.85 * probability_best(np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    for one in made:
        assert one.propensity == one.overall == pytest.approx(wanted[LEVELS.index(one.level)])
        assert one.explored and one.reason in (SAMPLED, EXPLORATION)
    certain = [live.decide(unit, planned(), uncertain(0.9, 0.0, 1e-6)) for unit in IDS]
    assert {one.level: round(one.propensity, 12) for one in certain} == {"none": 0.05, "5%": 0.9, "10%": 0.05}
    assert [live.decide(unit, planned(), uncertain(0.25, 0.3, 0.1)) for unit in IDS] == made  # sticky
    again = policy(thompson=True, exploration=0.15)
    assert [again.decide(unit, planned(), uncertain(0.25, 0.3, 0.1)) for unit in IDS[:500]] == made[:500]


def test_published_effects_are_sampled_from_where_none_are_fresh():
    live, plan = policy(thompson=True, exploration=0.1), policy(exploration=0.1)
    unit = planned(effects=((0.3, 0.1, False), (None, None, True)))
    fresh = [LevelEffect("5%", 0.3, 0.1, False), LevelEffect("10%", math.nan, math.nan, True)]
    assert live.decide("u7", unit, None) == live.decide("u7", unit, fresh)
    unscored = planned(effects=None)
    assert [live.decide(one, unscored, None) for one in IDS[:50]] == [
        plan.decide(one, unscored, None) for one in IDS[:50]
    ]


def test_units_that_are_barred_or_held_out_stay_so():
    live = policy(thompson=True, exploration=0.1, holdout=0.3)
    assert live.decide("u1", planned("none", "too often"), effects(9.0, 9.0)).reason == "too often"
    held = {unit for unit in IDS if live.decide(unit, planned(), None).reason == HELD_OUT}
    assert held == {
        u for u in IDS if policy(exploration=0.1, holdout=0.3).decide(u, planned(), None).reason == HELD_OUT
    }


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ConfigError, match=r"serving\.thompson is true without serving\.exploration"):
        Serving(thompson=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        Serving(thompson=True, exploration=0.1, budget=5.0)
    with pytest.raises(ConfigError, match=r"serving\.thompson needs levels whose cost is the same"):
        policy({"planned": True}, thompson=True, exploration=0.1)


def day(live, rng, units):
    """A day of units whose effects are known with errors: (law of each unit's level, its level, its true gains)."""
    error = np.exp(rng.normal(-1.5, 0.7, (len(units), 2)))
    true = rng.normal([0.2, 0.35], 0.25, (len(units), 2))
    estimate = true + error * rng.normal(size=true.shape)
    gains = np.column_stack([np.zeros(len(units)), true * 10.0 - np.array([1.0, 2.0]) * 1.5])
    laws, levels, logged = [], [], []
    for unit, mean, se in zip(units, estimate, error, strict=True):
        known = [LevelEffect(level, m, s, False) for level, m, s in zip(LEVELS[1:], mean, se, strict=True)]
        one = live.decide(unit, planned(), known)
        sampled = live._sampled(planned(), known)
        assert sampled is not None
        laws.append(list(live._law("none", sampled).values()))
        levels.append(LEVELS.index(one.level))
        logged.append(one.propensity)
    return np.array(laws), np.array(levels), gains, np.array(logged)


def check_days(n_days, n_units):
    """Levels against logged propensities by χ² in ten bins of them, and the value of two policies by their inverse."""
    rng, inside, counts, wanted = np.random.default_rng(8), Counter(), defaultdict(float), defaultdict(float)
    errors = defaultdict(list)
    for number in range(n_days):
        live = policy(thompson=True, exploration=0.15)
        live.manifest = type(live.manifest)(**{**vars(live.manifest), "campaign": f"day{number}"})
        laws, levels, gains, logged = day(live, rng, IDS[:n_units])
        assert np.array_equal(laws[np.arange(n_units), levels], logged) and logged.min() >= 0.05 - 1e-12
        for level in range(3):
            bins = np.minimum((laws[:, level] * 10).astype(int), 9)
            for one in np.unique(bins):
                counts[level, one] += (levels[bins == one] == level).sum()
                wanted[level, one] += laws[bins == one, level].sum()
                wanted["variance", level, one] += (laws[bins == one, level] * (1 - laws[bins == one, level])).sum()
        outcome = 2.0 + gains[np.arange(n_units), levels] + rng.normal(size=n_units)
        targets = {"5% for all": np.full(n_units, 1), "the best": gains.argmax(axis=1)}
        for what, target in targets.items():
            terms = (levels == target) / logged * outcome
            truth = 2.0 + gains[np.arange(n_units), target]
            error = (terms - truth).mean()
            spread = (terms - truth).std(ddof=1) / math.sqrt(n_units)
            inside[what] += abs(error) < 2 * spread
            errors[what].append(error)
    scores = [
        (counts[key] - wanted[key]) ** 2 / wanted[("variance", *key)]
        for key in list(counts)
        if wanted[("variance", *key)] > 5
    ]
    return sum(scores), len(scores), inside, errors


@pytest.mark.slow
def test_propensities_hold_and_values_by_them_are_unbiased():
    statistic, bins, inside, errors = check_days(20, 300)
    assert statistic < chi2.ppf(1 - 1e-4, bins)
    for what, each in errors.items():
        assert abs(np.mean(each)) < 3 * np.std(each, ddof=1) / math.sqrt(len(each)), what
        assert inside[what] >= 16, what


@pytest.mark.simulation
def test_propensities_hold_and_values_by_them_are_unbiased_on_200_days():
    statistic, bins, inside, errors = check_days(200, 600)
    print(f"chi square {statistic:.1f} on {bins} bins")
    for what, each in errors.items():
        se = np.std(each, ddof=1) / math.sqrt(len(each))
        print(f"{what}: {inside[what]} of 200 within 2 SE; mean error {np.mean(each):+.4f}, SE {se:.4f}")
        assert inside[what] >= 186 and abs(np.mean(each)) < 2 * se, what
    assert statistic < chi2.ppf(1 - 1e-4, bins)


def regret(rule, seed, rounds=40, segments=12, visitors=25):
    """What a rule loses against always knowing: segments whose gains are learnt from the outcomes of each round.

    rule(mean, error) gives the propensities [3] of a segment's levels. Known before are means of 0 with errors of 1;
    gains are normal around them, outcomes have noise of 3.
    """
    rng, lost = np.random.default_rng(seed), 0.0
    gains = np.column_stack([np.zeros(segments), rng.normal(0.0, 1.0, (segments, 2))])
    sums, n = np.zeros((segments, 3)), np.zeros((segments, 3))
    for _ in range(rounds):
        error = 1.0 / np.sqrt(1.0 + n[:, 1:] / 9.0)
        mean = sums[:, 1:] / 9.0 * error**2
        for one in range(segments):
            levels = rng.choice(3, visitors, p=rule(mean[one], error[one]))
            outcome = gains[one, levels] + 3.0 * rng.normal(size=visitors)
            np.add.at(sums[one], levels, outcome)
            np.add.at(n[one], levels, 1.0)
            lost += (gains[one].max() - gains[one, levels]).sum()
    return lost / (rounds * segments * visitors)


def fixed(share):
    def rule(mean, error):
        law = np.full(3, share / 3)
        law[int(np.argmax(np.r_[0.0, mean]))] += 1.0 - share
        return law

    return rule


def thompson(share):
    return lambda mean, error: share / 3 + (1.0 - share) * probability_best(mean, error)


def check_regret(seeds):
    rules = {
        "fixed share 20 %": fixed(0.2), "fixed share 5 %": fixed(0.05), "Thompson, 20 %": thompson(0.2),
        "Thompson, 5 %": thompson(0.05),
    }  # fmt: skip
    lost = {name: np.array([regret(rule, seed) for seed in seeds]) for name, rule in rules.items()}
    for name, each in lost.items():
        print(f"{name:20} regret {each.mean():.4f} a visitor, SE {each.std(ddof=1) / math.sqrt(len(each)):.4f}")
    gain = lost["fixed share 20 %"] - lost["Thompson, 5 %"]
    return gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain)))


@pytest.mark.simulation
def test_learning_by_sampling_loses_less_than_a_fixed_share():
    assert check_regret(range(40)) > 3
