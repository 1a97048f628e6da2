"""Treatments that are doses: cells, responses against least squares, curved, two-dimensional and monotone ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import arm_roles, ordered_frame
from uplift_spark import CausalForest
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.effects import CRITERIA, dose_matrix
from uplift_spark.forest.encode import CELLS, cell_rows, cells_of, counted_as, monotone
from uplift_spark.forest.forest import Forest, load_forest
from uplift_spark.roles import Levels, Roles

FEATURES = ("x0", "x1", "x2")
SMALL = {"n_trees": 16, "n_buckets": 4, "min_leaf": 30}


def dose_roles(**more) -> Roles:
    return Roles("unit", "dose", "y", FEATURES, "0", grid=(2, 5, 8), **more)


def dose_frame(n: int, seed: int = 0, curve: float = 1.0) -> pd.DataFrame:
    """A third gets nothing, the others a dose up to 10; per unit of dose to the power `curve` `tau`: 1 or 2."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.random((n, 3)), columns=list(FEATURES))
    frame["unit"], frame["tau"] = np.arange(n), 1.0 + (frame["x0"] > 0.5)
    frame["dose"] = 10 * rng.random(n) * (rng.random(n) > 1 / 3)
    frame["y"] = frame["tau"] * frame["dose"] ** curve + 2 * frame["x1"] + rng.normal(size=n)
    return frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return dose_frame(3000)


@pytest.fixture(scope="module")
def forest(frame) -> Forest:
    return CausalForest(**SMALL, criterion="spline").fit(frame, dose_roles()).forest


def test_doses_are_counted_by_three_digits():
    doses = np.array([0.0, -0.0, 12.345, 12.349, -0.0012345, 98765.0, np.nan, np.inf])
    assert counted_as(doses).to_pylist() == ["0", "0", "12.3", "12.3", "-0.00123", "9.88e+04", None, None]


def test_cells_hold_as_many_rows_each_and_frequent_doses_stand_alone():
    rng = np.random.default_rng(0)
    doses = np.r_[np.zeros(4000), rng.gamma(2, 2, 8000), np.full(1000, 5.0)]
    counts = dict(zip(*np.unique(counted_as(doses).to_numpy(zero_copy_only=False), return_counts=True), strict=True))
    cells, edges = cells_of(counts, dose_roles())
    rows = cell_rows(counts, cells, edges)
    assert len(cells) in (CELLS, CELLS + 1) and rows["0"] == 4000 and rows["5"] >= 1000
    others = [n for name, n in rows.items() if name not in ("0", "5")]
    assert max(others) < 700 and sum(rows.values()) == doses.size
    cell = np.searchsorted(edges, doses)
    means = np.bincount(cell, doses) / np.bincount(cell)
    assert dose_matrix(cells)[:, 0] == pytest.approx(means, rel=2e-3)


def test_few_doses_are_cells_of_their_own():
    cells, edges = cells_of({"10": 3, "0": 5, "2.5": 1}, dose_roles())
    assert (cells.names, cells.doses) == (("0", "2.5", "10"), (0.0, 2.5, 10.0))
    assert edges == (1.25, 6.25)


def by_least_squares(forest: Forest, bins: np.ndarray) -> np.ndarray:
    """Effects [n, L] from leaf sums by hand: a weighted regression of the cells' means for each row."""
    from uplift_spark.forest.trees import leaves_of

    plan = forest.plan
    at = np.empty((len(bins), plan.n_trees), np.int32)
    leaves_of(forest.structure.routes, bins, at)
    criterion, doses = CRITERIA[plan.criterion], dose_matrix(forest.levels)
    phi = criterion.basis(plan.levels)
    contrasts = criterion.at(plan.levels, doses[1:]) - criterion.at(plan.levels, doses[:1])
    effects = []
    for row in at:
        sums = forest.sums[row].astype(float)
        share = sums / sums[:, :, 0].sum(axis=1)[:, None, None]
        n, s = share[:, :, 0].sum(axis=0), share[:, :, 2 if plan.debias else 1].sum(axis=0)
        root = np.sqrt(n)
        design = np.column_stack([np.ones(n.size), phi.T]) * root[:, None]
        wanted = np.divide(s, root, out=np.zeros_like(s), where=root > 0)
        theta = np.linalg.lstsq(design, wanted, rcond=None)[0][1:]
        effects.append(contrasts.T @ theta * 2.0 ** (plan.exponents[0] - plan.exponents[1]))
    return np.array(effects)


def test_effects_are_a_regression_of_the_cells_means(forest, frame):
    from uplift_spark.forest.binning import apply_bins

    bins = apply_bins(pa.Table.from_pandas(frame[:50]), forest.plan.bins)
    plain = replace(forest, level_shrinkage=None)
    assert plain.effects_of(bins)[0] == pytest.approx(by_least_squares(forest, bins), rel=1e-8)


def test_a_response_with_a_coefficient_per_arm_is_the_arms_own_effects():
    """The same estimates and errors by two ways: every arm's mean, and a regression on indicators of arms."""
    frame = ordered_frame()
    forest = CausalForest(**SMALL, criterion="one_hot").fit(frame, arm_roles()).forest
    table = pa.Table.from_pandas(frame[:300])
    plain = replace(forest, level_shrinkage=None)
    reported = replace(plain, plan=replace(plain.plan, reported=plain.levels))
    reported.__dict__["_contrasts"] = np.eye(2)  # `at` of arms without order has no meaning
    for mine, theirs in zip(reported.effect_arrays(table)[:2], plain.effect_arrays(table)[:2], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-7)
    bins = np.zeros((40, 4), np.uint8) + np.arange(40, dtype=np.uint8)[:, None] % 5
    for mine, theirs in zip(reported.averages(bins), plain.averages(bins), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-7)


def test_bytes_do_not_depend_on_row_order_and_survive_a_file(forest, frame):
    again = CausalForest(**SMALL, criterion="spline").fit(frame.sample(frac=1, random_state=1), dose_roles())
    assert again.to_bytes() == forest.to_bytes()
    loaded, table = load_forest(forest.to_bytes()), pa.Table.from_pandas(frame[:100])
    for mine, theirs in zip(loaded.effect_arrays(table), forest.effect_arrays(table), strict=True):
        assert np.array_equal(mine, theirs)
    assert loaded.levels == Levels(("0", "2", "5", "8"), (0.0, 2.0, 5.0, 8.0))


def test_other_doses_and_one_unit_more_come_from_the_same_file(frame):
    forest = CausalForest(**SMALL, criterion="slope").fit(frame, dose_roles()).forest
    table = pa.Table.from_pandas(frame[:100])
    at_five = forest.effect_arrays(table)[0][:, 1]
    other = forest.at((5, 2.5, -1)).effect_arrays(table)[0]
    assert other == pytest.approx(np.outer(at_five, [1, 0.5, -0.2]))
    more, error, _ = forest.at((0, 9), partial=True).effect_arrays(table)
    assert more == pytest.approx(np.repeat(at_five[:, None] / 5, 2, axis=1))
    assert error == pytest.approx(np.repeat(forest.effect_arrays(table)[1][:, 1:2] / 5, 2, axis=1))
    with pytest.raises(ConfigError, match=r"roles\.grid"):
        CausalForest(**SMALL).fit(ordered_frame(), arm_roles()).at((1,))


def test_slopes_of_a_spline_are_its_derivative(forest, frame):
    table = pa.Table.from_pandas(frame[:50])
    ends = forest.at((3.999, 4.001)).effect_arrays(table)[0]
    slope = forest.at((4,), partial=True).effect_arrays(table)[0]
    assert slope[:, 0] == pytest.approx((ends[:, 1] - ends[:, 0]) / 0.002, rel=1e-3)


def test_effects_of_doses_and_their_errors():
    frame = dose_frame(6000, 1)
    table = dose_frame(2000, 2)
    model = CausalForest(n_trees=100).fit(frame, dose_roles())
    assert model.forest.plan.criterion == "slope" and "straight line" in model.forest.plan.reason
    effect, error, low = model.forest.effect_arrays(pa.Table.from_pandas(table))
    true = np.outer(table["tau"], (2, 5, 8))
    assert np.sqrt(((effect - true) ** 2).mean()) < 0.5 and not low.any()  # a constant effect misses by 2.7
    assert (np.abs(effect - true) < 1.96 * error).mean() > 0.8


def test_a_bent_response_is_detected_and_followed():
    frame, table = dose_frame(6000, 1, curve=0.5), dose_frame(2000, 2)
    true = np.outer(table["tau"], np.sqrt((2, 5, 8)))
    missed = {}
    for criterion in (None, "slope"):
        forest = CausalForest(n_trees=100, criterion=criterion).fit(frame, dose_roles()).forest
        missed[forest.plan.criterion] = np.sqrt(
            ((forest.effect_arrays(pa.Table.from_pandas(table))[0] - true) ** 2).mean()
        )
    assert missed["spline"] < 0.5 * missed["slope"]


def two_products(n: int, seed: int = 0) -> pd.DataFrame:
    """Discounts and reminders in nine packages; each works, more so with x0, and they work better together."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.random((n, 3)), columns=list(FEATURES))
    frame["unit"], frame["a"], frame["b"] = np.arange(n), rng.integers(0, 3, n), rng.integers(0, 3, n)
    frame["package"] = frame["a"].astype(str) + "/" + frame["b"].astype(str)
    frame["y"] = effects_of(frame, frame["a"], frame["b"]) + rng.normal(size=n)
    return frame


def effects_of(frame: pd.DataFrame, a: object, b: object) -> object:
    return 0.3 * (1 + (frame["x0"] > 0.5)) * a + 0.2 * b + 0.3 * (frame["x1"] > 0.5) * a * b


def test_two_products_by_their_doses_and_their_interaction():
    packages = {f"{a}/{b}": (a, b) for a in range(3) for b in range(3)}
    roles = Roles("unit", "package", "y", FEATURES, "0/0", dose=packages)
    frame, table = two_products(8000), two_products(2000, 1)
    missed = {}
    for criterion in (None, "one_hot"):
        own_roles = roles if criterion is None else replace(roles, dose=None)
        forest = CausalForest(n_trees=100, criterion=criterion).fit(frame, own_roles).forest
        true = np.column_stack([effects_of(table, *packages[name]) for name in forest.levels.treated])
        effect, error, _ = forest.effect_arrays(pa.Table.from_pandas(table))
        missed[forest.plan.criterion] = np.sqrt(((effect - true) ** 2).mean())
        assert (np.abs(effect - true) < 1.96 * error).mean() > 0.8
    assert missed["product"] < 0.8 * missed["one_hot"]


def test_too_few_packages_to_tell_products_apart_stand_alone():
    packages = {"0/0": (0, 0), "1/1": (1, 1), "2/1": (2, 1)}
    frame = two_products(3000)
    frame = frame[frame["package"].isin(packages)]
    roles = Roles("unit", "package", "y", FEATURES, "0/0", dose=packages)
    forest = CausalForest(**SMALL).fit(frame, roles).forest
    assert (forest.plan.criterion, forest.plan.reported) == ("one_hot", None) and "too few" in forest.plan.reason
    with pytest.raises(ConfigError, match="product asks for more than the doses of 3 levels tell"):
        CausalForest(**SMALL, criterion="product").fit(frame, roles)


def test_monotone_effects_are_the_nearest_ones():
    effect = np.array([[0.3, 0.1, 0.5], [-0.2, 0.1, 0.0], [0.1, 0.2, 0.3]])
    result = monotone(effect, np.array([0.0, 1.0, 2.0, 3.0]), "increasing")
    assert result == pytest.approx(np.array([[0.2, 0.2, 0.5], [0.0, 0.05, 0.05], [0.1, 0.2, 0.3]]))
    assert monotone(-effect, np.array([0.0, 1.0, 2.0, 3.0]), "decreasing") == pytest.approx(-result)
    below = monotone(np.array([[0.4, 1.0]]), np.array([0.0, -1.0, 1.0]), "increasing")
    assert below == pytest.approx(np.array([[0.0, 1.0]]))


def test_a_monotone_forest_has_no_level_below_a_smaller_dose(frame):
    noise = frame.assign(y=np.random.default_rng(0).normal(size=len(frame)))
    effects = {}
    for direction in (None, "increasing"):
        model = CausalForest(**SMALL, criterion="spline", monotone=direction).fit(noise, dose_roles())
        effects[direction] = model.forest.effect_arrays(pa.Table.from_pandas(frame))[0]
    steps = np.diff(effects["increasing"], axis=1, prepend=0.0)
    assert (steps >= 0).all() and (np.diff(effects[None], axis=1) < 0).any()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.assign(dose=f["dose"].where(f.index > 4)), r"'?dose: null, NaN or infinite in 5 of 3000 rows"),
        (lambda f: f.assign(dose=np.inf), r"dose: null, NaN or infinite in 3000"),
        (lambda f: f.assign(dose=4.0), r"holds the dose 4 in all rows"),
        (lambda f: f.assign(dose=f["dose"].astype(str)), r"treatment column 'dose' has type .*must be numeric"),
    ],
)
def test_bad_doses_are_named(frame, spoil, message):
    with pytest.raises(DataError, match=message):
        CausalForest(**SMALL).fit(spoil(frame), dose_roles())


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"control": "none", "grid": (1,)}, r"roles\.control is 'none'"),
        ({"control": "0", "grid": (1, 1)}, r"names a dose twice"),
        ({"control": "0", "grid": (0, 1)}, r"names a dose twice, or the control's"),
        ({"control": "0", "grid": (1,), "propensity": "p"}, r"no propensities"),
        ({"control": "0", "grid": (1,), "dose": {"0": 0, "1": 1}}, r"drop one of them"),
        ({"control": "0", "dose": {"0": (0, 0), "1": (1,)}}, r"give each as many"),
    ],
)
def test_roles_of_doses_are_checked(roles, message):
    with pytest.raises(ConfigError, match=message):
        Roles("unit", "dose", "y", FEATURES, **roles)


def test_unknown_criteria_are_named(frame):
    with pytest.raises(ConfigError, match=r"criterion 'splin' is unknown: did you mean 'spline'"):
        CausalForest(criterion="splin").fit(frame, dose_roles())
    with pytest.raises(ConfigError, match=r"5 knots, and there are 2 levels"):
        CausalForest(criterion="spline").fit(frame.assign(dose=frame["dose"].round(-1)), dose_roles())
    with pytest.raises(ConfigError, match=r"monotone is 'up'"):
        CausalForest(monotone="up").fit(frame, dose_roles())
