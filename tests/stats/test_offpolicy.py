"""Values of rules from doubly robust scores, and cost curves: by hand, by brute force, under known truth."""

import numpy as np
import pytest

from uplift_spark.stats.offpolicy import CostCurve, blind_area, choice, doubly_robust, prices, r_losses, weighted_gain


def test_doubly_robust_scores_by_hand():
    expected = np.array([[1.0, 2.0], [3.0, 5.0]])
    scores = doubly_robust(np.array([4.0, 1.0]), np.array([1, 0]), np.array([2.0, 4.0]), expected)
    # Unit 0 received level 1: 2 + 2·(4 - 2); unit 1 the control: 3 + 4·(1 - 3).
    assert scores.tolist() == [[1.0, 6.0], [-5.0, 5.0]]
    assert expected.tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_without_expectations_they_are_weighted_outcomes():
    scores = doubly_robust(np.array([4.0, 1.0]), np.array([1, 0]), np.array([2.0, 4.0]), np.zeros((2, 2)))
    assert scores.tolist() == [[0.0, 8.0], [4.0, 0.0]]


def test_choice_takes_what_is_left_after_the_cost():
    effects, cost = np.array([[0.2, 0.5], [0.2, 0.25], [-0.1, -0.2], [0.1, 0.2]]), np.array([1.0, 2.0])
    assert choice(effects, cost, 0.0).tolist() == [2, 2, 0, 2]
    assert choice(effects, cost, 0.1).tolist() == [2, 1, 0, 0]  # nothing is left of unit 3's gain: not worth it
    assert choice(effects, cost, 1.0).tolist() == [0, 0, 0, 0]


def test_prices_part_the_cost_evenly():
    rng = np.random.default_rng(1)
    effects, cost = rng.normal(0.1, 1, (2000, 3)), np.array([1.0, 2.0, 5.0])
    price_grid = prices(effects, cost, 20)
    spent = [np.r_[0, cost][choice(effects, cost, price)].mean() for price in price_grid]
    assert price_grid[-1] == 0 and (np.diff(price_grid) < 0).all() and len(price_grid) == 20
    assert np.abs(np.diff([0, *spent]) - spent[-1] / 20).max() < 0.01 * spent[-1]


def test_nobody_to_treat_is_one_price():
    assert prices(np.full((5, 2), -1.0), np.array([1.0, 2.0]), 10).tolist() == [0.0]
    assert prices(np.zeros((5, 2)), np.array([1.0, 2.0]), 10).tolist() == [0.0]


def test_area_of_a_cost_curve_by_hand():
    curve = CostCurve(np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 4.0]))
    assert curve.area(2.0) == pytest.approx((1.5 + 3.5) / 2)
    assert curve.area(4.0) == pytest.approx((1.5 + 3.5 + 8.0) / 4)  # what is not spent brings no more


def test_blind_rules_follow_the_upper_hull():
    cost = np.array([1.0, 2.0, 4.0])
    # The second level is worth more than mixing its neighbours, the third less than the second.
    assert blind_area(np.array([1.0, 3.0, 2.0]), cost, 4.0) == pytest.approx((2 * 3.0 / 2 + 2 * 3.0) / 4)
    assert blind_area(np.array([-1.0, -1.0, -1.0]), cost, 4.0) == 0.0
    stacked = blind_area(np.array([[1.0, 3.0, 2.0], [2.0, 0.0, 0.0]]), cost, 4.0)
    assert stacked == pytest.approx([2.25, (2.0 / 2 + 3 * 2.0) / 4])


def test_weighted_gain_by_hand():
    matched, control = np.array([[2.0, 4.0], [0.0, 0.0]]), np.array([[5.0, 5.0], [1.0, 0.0]])
    # 6 of 20 units are treated, with a mean of 2 against 1; then nobody received what the rule gives, or nobody gets.
    assert weighted_gain(np.array(20.0), np.array([6.0]), matched[:1], control[:1]) == pytest.approx(0.3)
    assert np.isnan(weighted_gain(np.array(20.0), np.array([6.0]), matched[1:], control[1:]))
    assert weighted_gain(np.array(20.0), np.array([0.0]), matched[1:], control[1:]) == 0.0


def test_r_losses_are_least_for_the_true_effects_whatever_the_outcome_mean():
    """Three levels with odds that differ between units; what is expected of them is wrong, the same for all."""
    rng, n = np.random.default_rng(4), 200_000
    x = rng.random(n)
    propensity = np.column_stack([0.6 - 0.4 * x, np.full(n, 0.2), 0.2 + 0.4 * x])
    level_code = (rng.random(n)[:, None] > propensity.cumsum(axis=1)[:, :-1]).sum(axis=1)
    tau = np.column_stack([x, 1 - x])
    y = np.column_stack([np.zeros(n), tau])[np.arange(n), level_code] + 2 * x + rng.normal(size=n)
    wrong = np.tile([0.3, 0.5, 0.1], (n, 1))

    def loss(effects):
        return r_losses(y, level_code, propensity, wrong, effects).mean()

    others = [tau + shift for shift in (0.3, -0.3)] + [np.column_stack([tau[:, 0], 0 * x]), tau[:, ::-1], 0.5 * tau]
    assert all(loss(other) > loss(tau) + 0.005 for other in others)
    right = np.column_stack([2 * x, 2 * x + tau[:, 0], 2 * x + tau[:, 1]])
    assert r_losses(y, level_code, propensity, right, tau).mean() == pytest.approx(1.0, abs=0.02)
