"""What hidden confounders could do: bounds that hold what one does, robustness values, E-values."""

from __future__ import annotations

import numpy as np
import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.stats.aipw import averages_of, confounder_terms, e_values, sensitivity


def simulated(n=600, levels=3, seed=0, binary=False):
    """Confounded units with nuisances as they truly are: outcome, received, expected, odds."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    propensity = np.exp(0.8 * x[:, None] * np.arange(levels) / levels)
    propensity /= propensity.sum(axis=1, keepdims=True)
    level_code = (rng.random(n)[:, None] > propensity.cumsum(axis=1)).sum(axis=1)
    mean = x[:, None] + (0.5 + 0.5 * x[:, None]) * np.arange(levels)
    mean = 1 / (1 + np.exp(-mean)) if binary else mean
    own = mean[np.arange(n), level_code]
    return (rng.random(n) < own) * 1.0 if binary else own + rng.normal(size=n), level_code, mean, propensity


def term_moments(units):
    """(means, covariance of the means, levels) of the terms."""
    terms = confounder_terms(*units)
    return terms.mean(axis=0), np.cov(terms.T) / len(terms), units[2].shape[1]


def test_without_a_confounder_bounds_are_the_interval():
    units = simulated()
    plain, result = averages_of(*units), sensitivity(*term_moments(units))
    lower, upper = plain.interval
    for k, one in enumerate(result):
        assert one.bounds(0, 0) == pytest.approx((plain.estimate[k, 0],) * 2 + (lower[k, 0], upper[k, 0]), rel=1e-5)


def test_robustness_is_where_the_bound_is_zero():
    for one in sensitivity(*term_moments(simulated())):
        estimate, interval = one.robustness()
        assert 0 < interval < estimate < 1
        assert one.bounds(estimate, estimate)[0] == pytest.approx(0, abs=1e-9)
        assert one.bounds(interval, interval)[2] == pytest.approx(0, abs=1e-9)
        assert one.bounds(0.2, 0.1)[2] < one.bounds(0.1, 0.1)[2] < one.bounds(0, 0)[2]
    with pytest.raises(ConfigError, match=r"not in \[0, 1\)"):
        one.bounds(1.0, 0)


def test_bounds_hold_what_a_hidden_confounder_does():
    """Short and long regressions in closed form: Y = W + 1.5 U + noise, P(W) by the sign of U, nothing measured."""
    rng = np.random.default_rng(1)
    n, up = 200_000, 0.7
    u = np.where(rng.random(n) < 0.5, 1.0, -1.0)
    w = (rng.random(n) < np.where(u > 0, up, 1 - up)) * 1
    y = w + 1.5 * u + rng.normal(size=n)
    means = np.array([y[w == k].mean() for k in (0, 1)])
    units = (y, w, np.tile(means, (n, 1)), np.full((n, 2), 0.5))
    outcome_share = 2.25 * (1 - 0.4**2) / (1 + 2.25 * (1 - 0.4**2))
    treatment_share = 1 - 4 / (1 / up + 1 / (1 - up))  # E of the squared weights is 4 without U
    (result,) = sensitivity(*term_moments(units))
    lower, _, lower_95, _ = result.bounds(outcome_share, treatment_share)
    assert lower <= 1.01 and lower_95 < 1
    assert lower == pytest.approx(1, abs=0.02)  # U is as harmful as one of its strength can be
    assert result.bounds(0, 0)[2] > 2


def test_e_values_are_those_of_the_risk_ratio():
    units = simulated(2000, 2, binary=True)
    mean, covariance, levels = term_moments(units)
    risk = mean[-1] / mean[-2]
    ((estimate, interval),) = e_values(mean, covariance, levels)
    assert estimate == pytest.approx(risk + np.sqrt(risk * (risk - 1)))
    assert 1 <= interval < estimate
    assert np.isnan(e_values(-mean, covariance, levels)).all()


@pytest.mark.simulation
def test_bounds_cover_the_truth_under_their_confounder():
    """The limit for the confounder's true strength lies below the truth in about 97.5 % of draws: it is one-sided."""
    inside = []
    for seed in range(500):
        rng = np.random.default_rng(seed)
        n, up = 2000, 0.7
        u = np.where(rng.random(n) < 0.5, 1.0, -1.0)
        w = (rng.random(n) < np.where(u > 0, up, 1 - up)) * 1
        y = w + 1.5 * u + rng.normal(size=n)
        means = np.array([y[w == k].mean() for k in (0, 1)])
        share = 2.25 * (1 - 0.4**2) / (1 + 2.25 * (1 - 0.4**2))
        (result,) = sensitivity(*term_moments((y, w, np.tile(means, (n, 1)), np.full((n, 2), 0.5))))
        inside.append(result.bounds(share, 1 - 4 / (1 / up + 1 / (1 - up)))[2] <= 1)
    print(f"\nlimit below the truth in {np.mean(inside):.3f} of 500 draws")
    assert 0.955 < np.mean(inside) < 0.995
