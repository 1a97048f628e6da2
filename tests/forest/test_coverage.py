"""Claims about the estimator as simulations with known truth: errors as large as the spread, intervals that cover.

Each case trains many forests on fresh draws and looks at 200 fixed units. "Own mean" is the forest's expectation: the
truth differs from it by the bias of finite leaves that the correction leaves over.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift_spark import CausalForest, Roles

FEATURES = ("x0", "x1", "x2", "x3")


def linear(x):
    return x[:, [0]], np.zeros(len(x))


def null(x):
    return np.zeros((len(x), 1)), x[:, 1]


def dose(x):
    return x[:, [0]] * np.array([1.0, 1.8, 2.4]), np.zeros(len(x))


def draw(scenario, n, seed):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 4))
    tau, base = scenario(x)
    w = rng.integers(0, tau.shape[1] + 1, n)
    y = base + np.column_stack([np.zeros(n), tau])[np.arange(n), w] + rng.normal(size=n)
    return pd.DataFrame(x, columns=FEATURES).assign(unit=np.arange(n), w=w, y=y), tau


def replicate(scenario, reps, n, **options):
    """Effects, errors [reps, 200, K-1] and truth [200, K-1]."""
    points, tau = draw(scenario, 200, 10**6)
    levels = tau.shape[1] + 1
    roles = Roles("unit", "w", "y", FEATURES, "0", dose={str(k): k for k in range(levels)} if levels > 2 else None)
    effects, errors = [], []
    for seed in range(reps):
        model = CausalForest(**options, seed=seed).fit(draw(scenario, n, seed)[0], roles)
        table = model.effect(points)
        effects.append(table["uplift"].to_numpy().reshape(tau.shape))
        errors.append(table["uplift_se"].to_numpy().reshape(tau.shape))
    return np.stack(effects), np.stack(errors), tau


def check(scenario, reps, n, slack, **options):
    effects, errors, tau = replicate(scenario, reps, n, **options)
    own = (np.abs(effects - effects.mean(axis=0)) < 1.96 * errors).mean()
    ratio = errors.mean() / effects.std(axis=0).mean()
    truth = (np.abs(effects - tau) < 1.96 * errors).mean()
    print(f"{scenario.__name__} {options}: covers own mean {own:.3f}, truth {truth:.3f}; se/sd {ratio:.3f}")
    assert 0.93 - 2 * slack < own < 0.97 + slack
    assert truth > 0.92 - 2 * slack
    assert 0.85 - slack < ratio < 1.25 + slack
    # Better than the average effect alone, by far, where there is heterogeneity; unbiased where there is none.
    rmse = np.sqrt(((effects - tau) ** 2).mean())
    assert rmse < (0.55 * tau.std() if tau.std() > 0 else 0.13)


DESIGNS = [{}, {"n_buckets": 4, "growth_buckets": 2}, {"n_buckets": 8}]


@pytest.mark.parametrize("scenario", [linear, null, dose])
def test_errors_match_the_spread_of_effects_in_a_few_draws(scenario):
    check(scenario, 12, 2000, 0.06, n_trees=60)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS, ids=["defaults", "half", "eighth"])
@pytest.mark.parametrize("scenario", [linear, null, dose])
def test_errors_match_the_spread_of_effects(scenario, design):
    check(scenario, 25, 2000, 0.04, n_trees=100, **design)


@pytest.mark.simulation
@pytest.mark.parametrize("design", DESIGNS, ids=["defaults", "half", "eighth"])
@pytest.mark.parametrize("scenario", [linear, null, dose])
def test_errors_match_the_spread_of_effects_in_full(scenario, design):
    check(scenario, 300, 4000, 0.02, n_trees=200, **design)
