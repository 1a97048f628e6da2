"""Several outcomes from one structure: the first as if alone, the others as if the trees were re-estimated on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import FEATURES, arm_roles, ordered_frame, ordered_roles, plain_roles
from uplift_spark import CausalForest, load_model
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.encode import bin_rows, encode
from uplift_spark.forest.explain import variable_importance
from uplift_spark.forest.forest import average_effect
from uplift_spark.forest.trees import leaves_of
from uplift_spark.stats.sampling import folds_of, halves_of, in_half

SMALL = {"n_trees": 16, "min_leaf": 10, "n_buckets": 4}
MORE = ("money", "cost")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Beside `y`: money, which age explains, with half the effect on members and a heavy tail; a cost of 2 if treated.

    Weights vary, so that money has to be weighed, too.
    """
    frame, rng = ordered_frame(3000), np.random.default_rng(5)
    treated = frame["arm"] != "none"
    mean = 20.0 + 0.6 * frame["age"].fillna(40.0) + treated * np.where(frame["member"], 3.0, 6.0)
    return frame.assign(money=mean * rng.lognormal(-0.08, 0.4, 3000), cost=2.0 * treated, wt=rng.uniform(0.5, 2, 3000))


@pytest.fixture(scope="module")
def model(frame):
    return CausalForest(**SMALL).fit(frame, ordered_roles(more_outcomes=MORE, weight="wt"))


def rows_of(frame, roles):
    return pa.Table.from_pandas(frame[list(roles.columns)], preserve_index=False)


@pytest.mark.parametrize("roles", [ordered_roles(weight="wt"), arm_roles(), arm_roles(cluster="unit")])
@pytest.mark.parametrize("options", [{}, {"debias": False, "centre": False, "growth_buckets": 2}])
def test_the_first_outcome_is_as_if_alone(frame, roles, options):
    forest = CausalForest(**SMALL, **options)
    alone = forest.fit(frame, roles)
    model = forest.fit(frame, replace(roles, more_outcomes=MORE))
    assert model.forest.of("y").to_bytes() == alone.to_bytes() == alone.forest.of("y").to_bytes()
    assert len(model.to_bytes()) < 3 * len(alone.to_bytes())
    # Without a name, and through everything that knows of one outcome only, it is the first.
    pd.testing.assert_frame_equal(model.effect(frame), alone.effect(frame))
    assert average_effect(model.forest) == average_effect(alone.forest)


def effects_by_hand(model, frame, outcome):
    """Effects of a further outcome in numpy, from float outcomes: [n, K-1]; levels without sharing."""
    plan, structure = model.forest.plan, model.forest.structure
    rows = bin_rows(encode(rows_of(frame, model.roles), plan.roles), plan)
    leaves = np.empty((len(frame), structure.n_trees), np.int32)
    leaves_of(structure.routes, rows.bins, leaves)
    bag, y, w = np.arange(plan.n_trees) // plan.bag_size, frame[outcome].to_numpy().copy(), frame["wt"].to_numpy()
    baseline = model.forest.of(outcome).baseline
    if baseline is not None:
        y -= baseline.predict(rows.bins, folds_of(rows.key, np.uint64(plan.seed)))
    halves = halves_of(rows.key, np.uint64(plan.seed), 4)
    inside = np.array([[in_half(halves, i, b) for b in bag] for i in range(len(frame))])
    other = (rows.bucket[:, None] - np.arange(plan.n_trees)) % plan.n_buckets >= plan.growth_buckets

    def shares(y):
        sums = np.zeros((structure.n_leaves, 3, 2))
        for t in range(plan.n_trees):
            mine = inside[:, t] & other[:, t]
            np.add.at(sums, (leaves[mine, t], rows.level[mine]), np.column_stack([w, w * y])[mine])
        return sums / np.maximum(sums[:, :, 0].sum(axis=1), 1e-300)[:, None, None]

    own = shares(y)[leaves, rows.level[:, None]]
    out_of_bag = (own * ~inside[:, :, None]).sum(axis=1)
    covered = out_of_bag[:, 0] > 0
    outcome_mean = np.where(covered, out_of_bag[:, 1] / np.where(covered, out_of_bag[:, 0], 1.0), y)
    total = shares(2 * y - outcome_mean)[leaves].sum(axis=1)
    mean = total[:, :, 1] / total[:, :, 0]
    return mean[:, 1:] - mean[:, :1]


@pytest.mark.parametrize("outcome", MORE)
def test_further_outcomes_are_the_trees_estimated_on_them(frame, model, outcome):
    expected = effects_by_hand(model, frame, outcome)
    forest = replace(model.forest.of(outcome), level_shrinkage=None)
    effect, error, _ = forest.effect_arrays(rows_of(frame, model.roles))
    assert effect == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert np.isfinite(error).all()
    if outcome == "money":
        assert error.mean() > 0.1
    else:  # the same for everyone, so known without error
        assert effect == pytest.approx(2.0, abs=1e-5) and error.max() < 1e-4


def test_what_is_fitted_per_outcome_is_as_if_it_were_the_first(frame, model):
    """Exponents and baseline do not depend on the trees; levels learn from each other in every outcome on their own."""
    roles = replace(ordered_roles(weight="wt"), outcome="money")
    first, forest = CausalForest(**SMALL).fit(frame, roles).forest, model.forest.of("money")
    assert forest.roles == first.roles and forest.plan.exponents == first.plan.exponents
    assert forest.facts["outcome_range"] == first.facts["outcome_range"]
    assert forest.baseline is not None and np.array_equal(forest.baseline.values, first.baseline.values)
    assert forest.level_shrinkage is not None and not np.allclose(forest.level_shrinkage, model.forest.level_shrinkage)
    assert model.forest.of("cost").baseline is None


def test_every_outcome_survives_the_file(frame, model):
    again = load_model(model.to_bytes())
    assert again.to_bytes() == model.to_bytes()
    assert again.roles == model.roles and again.roles.outcomes == ("y", *MORE)
    for outcome in again.roles.outcomes:
        assert again.forest.of(outcome).to_bytes() == model.forest.of(outcome).to_bytes()
        pd.testing.assert_frame_equal(again.effect(frame.head(50), outcome), model.effect(frame.head(50), outcome))
    assert list(model.effect(frame.head(1), "cost").columns) == list(model.effect(frame.head(1)).columns)
    shuffled = frame.sample(frac=1, random_state=1)
    assert CausalForest(**SMALL).fit(shuffled, model.roles).to_bytes() == model.to_bytes()


def test_all_methods_work_for_every_outcome(frame, model):
    forest, table = model.forest.of("money"), rows_of(frame, model.roles)
    bins = apply_bins(table, forest.plan.bins)
    average, covariance = forest.averages(bins)
    error = np.sqrt(np.diag(covariance[0]))  # 3000 rows with a deviation of 20 or so: about 1, from 6 bags
    assert (np.abs(average[0] - 4.8) < 4 * error).all() and (error > 0.3).all() and (error < 2.5).all()
    assert average_effect(forest)["5%"] == pytest.approx(average[0, 0], abs=0.3)
    out_of_bag = forest.effect_arrays(table, out_of_bag=True)[0][:, 0]
    known = np.isfinite(out_of_bag)  # not of the sixteenth that is in all four bags
    assert known.mean() > 0.9
    assert np.corrcoef(out_of_bag[known], forest.effect_arrays(table)[0][known, 0])[0, 1] > 0.4
    assert variable_importance(forest) == variable_importance(model.forest)


def test_a_constant_further_outcome_has_no_effect(frame):
    model = CausalForest(**SMALL).fit(frame.assign(cost=7.0), ordered_roles(more_outcomes=("cost",)))
    effects = model.effect(frame, "cost")
    assert np.allclose(effects["uplift"], 0) and np.isfinite(effects["uplift_se"]).all()


BAD = [
    (lambda f: f.drop(columns="cost"), "column 'cost' is missing"),
    (lambda f: f.assign(money=f["money"].where(f.index > 2, np.inf)), "money: null, NaN or infinite in 3 of"),
    (lambda f: f.assign(cost=f["cost"].where(f.index > 4)), "cost: null, NaN or infinite in 5 of"),
    (lambda f: f.assign(cost=f["cost"].astype(str)), "outcome column 'cost' has type"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_outcomes_are_named(frame, spoil, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(spoil(frame), ordered_roles(more_outcomes=MORE))


def test_unknown_outcomes_are_refused(frame, model):
    with pytest.raises(ConfigError, match="no outcome 'spend': choose from y, money, cost"):
        model.effect(frame, outcome="spend")
    with pytest.raises(ConfigError, match="choose from y"):
        model.forest.of("y").of("money")
    with pytest.raises(ConfigError, match=r"features contains \['age'\], which already play another part"):
        arm_roles(more_outcomes=(FEATURES[0],))


def shop(n: int, seed: int) -> pd.DataFrame:
    """A trial with two outcomes and their effects: visits of a tenth, and what visitors spend, of lognormal tail."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.random((n, 5)), columns=[f"x{i}" for i in range(5)])
    frame["unit"], frame["w"] = np.arange(n), rng.integers(0, 2, n)
    rate = 0.1 + 0.1 * frame["x1"]
    lift, dearer = 0.2 * (frame["x0"] > 0.5), 1.0 + 0.3 * frame["x2"]
    frame["tau_visit"], frame["tau_spend"] = lift, 20.0 * ((rate + lift) * dearer - rate)
    frame["visit"] = (rng.random(n) < rate + lift * frame["w"]).astype(float)
    amount = 20.0 * np.where(frame["w"] == 1, dearer, 1.0) * rng.lognormal(-0.5, 1.0, n)
    return frame.assign(spend=frame["visit"] * amount)


def replicated(reps: int, n: int) -> dict[str, tuple[float, float, float]]:
    """{outcome: (mean and mean square of the average effect's error in standard errors, share of units covered)}."""
    points, by_outcome = shop(1000, 10_000), {"visit": [], "spend": []}
    for seed in range(reps):
        frame = shop(n, seed)
        roles = replace(plain_roles(frame), outcome="visit", more_outcomes=("spend",))
        forest = CausalForest(n_trees=100, seed=seed).fit(frame, roles).forest
        table = rows_of(points.assign(wt=1.0), roles)
        bins = apply_bins(table, forest.plan.bins)
        for outcome, results in by_outcome.items():
            one, truth = forest.of(outcome), points[f"tau_{outcome}"].to_numpy()
            effect, error, _ = one.effect_arrays(table, 2)
            average, covariance = one.averages(bins)
            z = (average[0, 0] - truth.mean()) / np.sqrt(covariance[0, 0, 0])
            results.append((z, z**2, np.mean(np.abs(effect[:, 0] - truth) < 1.96 * error[:, 0])))
    return {outcome: tuple(np.mean(results, axis=0)) for outcome, results in by_outcome.items()}


def test_intervals_of_both_outcomes_cover_their_truth():
    for bias, square, covered in replicated(10, 5000).values():
        assert abs(bias) < 1.2 and square < 2.5  # of 10: 3.8 standard errors, and a thousandth of chi squared
        assert 0.88 < covered < 0.99


@pytest.mark.simulation
def test_intervals_of_both_outcomes_are_nominal():
    for outcome, (bias, square, covered) in replicated(100, 5000).items():
        print(f"{outcome}: average off by {bias:.2f} se, mean square {square:.2f}, units covered {covered:.3f}")
        assert abs(bias) < 0.4 and 0.6 < square < 1.6
        assert 0.90 < covered < 0.98
