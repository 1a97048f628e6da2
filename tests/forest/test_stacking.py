"""Forests on doubly robust scores: right where treatment is confounded, one unit however many rows it is stacked to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import ordered_frame, ordered_roles
from uplift_spark import CausalForest, Roles
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.simulate import BENCHMARKS
from uplift_spark.forest.estimate import WHOLE, stacked, stacked_roles, with_roles
from uplift_spark.stats.offpolicy import doubly_robust

SMALL = {"n_trees": 16, "min_leaf": 10, "n_buckets": 4}
LEVELS = ("none", "5%", "10%")


def scored(n=2000):
    """A trial with equal odds and its scores, each unit's expectation a little wrong."""
    frame = ordered_frame(n)
    level_code = frame["arm"].map({level: k for k, level in enumerate(LEVELS)}).to_numpy()
    scores = doubly_robust(frame["y"].to_numpy(), level_code, np.full(n, 3.0), np.full((n, 3), 0.1))
    return frame.assign(dr=[dict(zip(LEVELS, map(float, row), strict=True)) for row in scores])


ROLES = ordered_roles(scores="dr")


def test_a_unit_is_a_row_for_every_level():
    table = pa.Table.from_pandas(scored(50))
    rows = stacked(table, ROLES).to_pandas()
    assert len(rows) == 150 and rows["unit"].is_unique and set(rows["arm"]) == set(LEVELS)
    one = rows[rows[WHOLE] == "u000007"].set_index("arm")
    unit_row = table.to_pandas().set_index("unit").loc["u000007"]
    assert one["y"].to_dict() == unit_row["dr"] and set(one["region"]) == {unit_row["region"]}
    kind = pa.map_(pa.string(), pa.float64())
    pairs = pa.array([list(row.items()) for row in table.column("dr").to_pylist()], kind)
    same = stacked(table.set_column(table.column_names.index("dr"), "dr", pairs), ROLES).to_pandas()
    assert same.sort_values("unit", ignore_index=True).equals(rows.sort_values("unit", ignore_index=True))
    assert stacked_roles(replace(ROLES, cluster="home")).cluster == "home"


def test_the_forest_is_that_of_the_stacked_rows_with_units_as_clusters():
    frame = scored()
    model = CausalForest(**SMALL).fit(frame, ROLES)
    rows = stacked(pa.Table.from_pandas(frame), ROLES).to_pandas()
    same = CausalForest(**SMALL).fit(rows, stacked_roles(ROLES))
    assert model.roles == ROLES and model.to_bytes() == with_roles(same.forest, ROLES).to_bytes()
    # Half of the units, not of the rows, are in a bag: what is left out of bag is whole units.
    assert np.isfinite(model.effect(frame)["uplift"]).all()
    again = model.estimate(frame)
    assert again.to_bytes() == model.to_bytes()
    less = model.estimate(frame.iloc[:1500])
    assert less.forest.facts["rows"] == 4500 and less.to_bytes() != model.to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(dr=f["dr"].where(f.index > 2)), "'dr' is null in 3 rows"),
        (lambda f: f.assign(dr=1.0), "'dr' has type double: give a map or a struct"),
        (lambda f: f.drop(columns="dr"), "column 'dr' is missing"),
        (lambda f: f.assign(dr=[{**one, "5%": np.nan if i < 4 else 0.0} for i, one in enumerate(f["dr"])]), "in 4 of"),
    ],
)
def test_bad_scores_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(change(scored(200)), ROLES)


def test_scores_are_of_one_outcome():
    with pytest.raises(ConfigError, match=r"roles\.scores are those of one outcome"):
        ordered_roles(scores="dr", more_outcomes=("spend2",))


# ---------------------------------------------------------------- under confounding, with known truth


def errors(name, n, seed):
    """(bias, mean squared error, share of 95 % intervals that hold) of single effects: as in a trial, and by scores."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    data, other = BENCHMARKS[name](n, seed), BENCHMARKS[name](1000, seed + 1000)
    levels, fold = np.arange(data.e.shape[1]), np.random.default_rng(seed).integers(0, 5, n)
    outcome_mean, propensity = np.zeros(data.e.shape), np.zeros(data.e.shape)
    few = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.08}
    for f in range(5):
        mine, rest = fold == f, fold != f
        propensity[mine] = (
            HistGradientBoostingClassifier(**few).fit(data.X[rest], data.w[rest]).predict_proba(data.X[mine])
        )
        for k in levels:
            arm = rest & (data.w == k)
            outcome_mean[mine, k] = (
                HistGradientBoostingRegressor(**few).fit(data.X[arm], data.y[arm]).predict(data.X[mine])
            )
    weight = 1 / np.maximum(propensity[np.arange(n), data.w], 0.02)
    scores = doubly_robust(data.y, data.w, weight, outcome_mean)
    features = [f"x{j}" for j in range(data.X.shape[1])]
    frame = pd.DataFrame(data.X, columns=features).assign(unit=np.arange(n), w=data.w, y=data.y)
    frame["dr"] = [{str(k): float(row[k]) for k in levels} for row in scores]
    roles, effects = Roles("unit", "w", "y", tuple(features), "0"), []
    crowd = pd.DataFrame(other.X, columns=features).assign(unit=np.arange(1000))
    for one in (roles, replace(roles, scores="dr")):
        effect = CausalForest().fit(frame, one).effect(crowd)
        wide = [effect[c].to_numpy().reshape(other.tau.shape) for c in ("uplift", "uplift_lower", "uplift_upper")]
        off = wide[0] - other.tau
        held = (wide[1] <= other.tau) & (other.tau <= wide[2])
        effects.append((off.mean(), (off**2).mean(), held.mean()))
    return np.array(effects)


def print_errors(name, n, draws):
    mean = np.mean([errors(name, n, seed) for seed in range(draws)], axis=0)
    for who, (bias, mse, held) in zip(("as a trial", "by scores"), mean, strict=True):
        print(f"{name}, {n:,} rows, {draws} draws, {who}: bias {bias:+.3f}, MSE {mse:.4f}, covered {held:.3f}")
    return mean


@pytest.mark.slow
def test_scores_take_confounding_out():
    trial, scores = print_errors("nie_wager_c", 2000, 3)
    # Without scores rows weigh by learnt propensities (`forest.overlap`), which takes out most of it already.
    assert abs(trial[0]) < 0.15 and trial[1] < 0.06 and trial[2] > 0.8
    assert abs(scores[0]) < 0.5 * abs(trial[0]) and scores[1] < trial[1] and scores[2] > 0.88


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("name", "n", "draws", "most"),
    [
        *(("nie_wager_a", 1000, 40, 0.07), ("nie_wager_b", 1000, 40, 0.20), ("nie_wager_c", 1000, 40, 0.09)),
        *(("nie_wager_d", 1000, 40, 0.95), ("conf", 10_000, 20, 0.012), ("multi", 10_000, 10, 0.020)),
    ],
)
def test_effects_under_confounding(name, n, draws, most):
    """Nie and Wager's R-learner on boosted trees has .05, .22, .11 and .46 with 1,000 rows of A to D; the effect in D
    is a sum of three features, which trees of a thousand rows hardly see."""
    trial, scores = print_errors(name, n, draws)
    assert scores[1] < most and abs(scores[0]) < max(abs(trial[0]), 0.06)
