"""What is chosen from the data: how much signal it shows, and the leaves that follow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.forest import defaults
from uplift_spark.forest.encode import ForestPlan, encode, summarise
from uplift_spark.forest.training import Params, fit_table, make_plan
from uplift_spark.roles import Roles

P = 10
FEATURES = tuple(f"x{j}" for j in range(P))


def trial(n, seed, effect, levels=2, rate=None):
    """(units as a table, true effects [n, K-1]); `effect` of the features per level, outcomes normal or of a `rate`."""
    rng = np.random.default_rng(seed)
    x, w = rng.random((n, P)), rng.integers(0, levels, n)
    tau = np.column_stack([effect(x, k) * np.ones(n) for k in range(1, levels)])
    mean = np.column_stack([np.zeros(n), tau])[np.arange(n), w]
    y = mean + rng.standard_normal(n) if rate is None else (rng.random(n) < rate + mean).astype(float)
    columns = dict(zip(FEATURES, x.T, strict=True))
    return pa.table({"unit": np.arange(n), "w": w, "y": y, **columns}), tau


def roles(levels):
    dose = {str(k): float(k) for k in range(levels)} if levels > 2 else None
    return Roles("unit", "w", "y", FEATURES, "0", dose)


def planned(table, levels, **params) -> tuple[ForestPlan, float]:
    typed = encode(table, roles(levels))
    plan, _, rows = make_plan(summarise(typed), typed, Params(**params))
    return plan, defaults.signal(rows, plan).estimate


def test_the_signal_is_that_of_the_effect_and_nothing_where_there_is_none():
    step = [planned(trial(4000, seed, lambda x, k: x[:, 0] > 0.5)[0], 2)[1] for seed in range(8)]
    true = 4000 * 0.25 * 0.25  # n x variance of the effect x treatment scatter / noise
    # The noise the pilot knows of holds some of the effect, and each half may miss the cut by a little.
    assert 0.85 * true < np.mean(step) < 1.05 * true
    nothing = [planned(trial(4000, seed, lambda x, k: 0.0)[0], 2)[1] for seed in range(20)]
    assert abs(np.mean(nothing)) < 2.0 and max(nothing) < 20.0


@pytest.mark.parametrize("levels", [3, 8])
def test_arms_are_split_apart_only_where_they_clearly_differ(levels):
    def at(effect):
        return [planned(trial(6000, seed, effect, levels)[0], levels)[0].criterion for seed in range(6)]

    assert at(lambda x, k: 0.0) == ["slope"] * 6
    assert at(lambda x, k: 0.3 * k * x[:, 0] / levels) == ["slope"] * 6
    assert at(lambda x, k: 2.0 * (k == 1) * (x[:, 0] > 0.5) + 2.0 * (k == 2) * (x[:, 1] > 0.5)) == ["one_hot"] * 6


def test_a_small_group_is_split_off_where_signals_are_weak():
    """A tenth of the customers respond with 8 points, the others with 2: leaves as large as the weak signal asks for
    would mix them."""
    table, tau = trial(40_000, 1, lambda x, k: 0.02 + 0.06 * (x[:, 3] > 0.9), rate=0.1)
    forest = fit_table(table, roles(2), Params(n_trees=100))
    assert forest.plan.limits["min_leaf"] < forest.plan.limits["usual_leaf"]
    effect = forest.effect_arrays(table, 2)[0][:, 0]
    group = tau[:, 0] > 0.05
    assert effect[group].mean() > 0.045 and effect[~group].mean() < 0.03
    hard = fit_table(table, roles(2), Params(n_trees=100, min_leaf=int(forest.plan.limits["usual_leaf"])))
    assert effect[group].mean() > hard.effect_arrays(table, 2)[0][group, 0].mean() + 0.01
