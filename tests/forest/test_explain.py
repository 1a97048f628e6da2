"""Tests of heterogeneity: against brute force and statsmodels, their level without any effect, their power with one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.forest.frames import ordered_frame, ordered_roles
from uplift_spark import CausalForest, Roles
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.explain import best_linear_projection, heterogeneity_test, trial_scores, variable_importance
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.forest.trees import LEAF, node_child, node_feature

FEATURES = tuple(f"x{j}" for j in range(5))
ROLES = Roles("unit", "w", "y", FEATURES, "0", cluster="household")


def table():
    """Features [60, 3], score, weights, clusters: no random numbers, so that other programs can repeat them."""
    i = np.arange(1, 61)
    x = np.column_stack([np.sin(i), np.cos(3 * i) + 2, i % 7 - 3.0])
    y = 0.5 + 0.3 * x[:, 0] + np.sin(i * i) * (1 + x[:, 0] ** 2)
    return x, y, 1 + (i % 3) / 2, i // 4


def project(**more):
    x, y, _, _ = table()
    return best_linear_projection(x, y, ["a", "b", "c"], **more)


# ---------------------------------------------------------------- scores


def test_scores_average_to_the_effect_whatever_the_baseline():
    rng = np.random.default_rng(0)
    potential = rng.normal(size=(50, 3))
    e = rng.dirichlet([5, 3, 2], 50)
    unit, level = np.divmod(np.arange(150), 3)
    for baseline in (0.0, 7.5, rng.normal(size=50)[unit]):
        scores = trial_scores(potential[unit, level], level, e[unit], baseline)
        mean = (scores * e[unit, level][:, None]).reshape(50, 3, 2).sum(axis=1)
        assert mean == pytest.approx(potential[:, 1:] - potential[:, :1])


def test_default_baseline_is_the_mean_of_the_others():
    y, w, e = np.array([1.0, 4.0, 10.0, 2.0]), np.array([0, 1, 2, 0]), np.array([0.5, 0.3, 0.2])
    others = np.array([np.delete(y, i).mean() for i in range(4)])
    assert trial_scores(y, w, e) == pytest.approx(trial_scores(y, w, e, others))
    assert trial_scores(y, w, e)[1] == pytest.approx([(4 - others[1]) / 0.3, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensities": np.array([0.0, 1.0])}, "2 of 2 propensities are not inside"),
        ({"propensities": np.array([0.5, np.nan])}, "1 of 2 propensities are not inside"),
        ({"propensities": np.array([0.9, 0.9])}, "add to 1.8"),
        ({"propensities": np.array([0.5, 0.25, 0.25])}, r"levels \[2\] occur in none of 4"),
        ({"level": np.array([1, 1, 1, 1])}, r"levels \[0\] occur in none of 4"),
        ({"level": np.array([0, 1, 2, -1])}, r"level is not in 0 .. 1 in 2 of 4"),
        ({"outcome": np.array([0.0, 1.0, np.nan, np.inf])}, "'outcome' is missing or infinite in 2 of 4"),
        ({"baseline": np.array([0.0, 1.0, np.nan, 0.0])}, "'baseline' is missing or infinite in 1 of 4"),
    ],
)
def test_scores_refuse(change, message):
    good = {"outcome": np.arange(4.0), "level": np.array([0, 1, 0, 1]), "propensities": np.array([0.5, 0.5])}
    assert trial_scores(**good).shape == (4, 1)
    with pytest.raises(DataError, match=message):
        trial_scores(**good | change)


def test_shapes_that_do_not_fit_are_refused():
    y, w, e = np.arange(4.0), np.array([0, 1, 0, 1]), np.array([0.5, 0.5])
    x = np.column_stack([y, y**2])
    for call in (
        lambda: trial_scores(y[:3], w, e),
        lambda: trial_scores(y, w.astype(float), e),
        lambda: trial_scores(y, w, np.full((3, 2), 0.5)),
        lambda: heterogeneity_test(x, y),
        lambda: heterogeneity_test(y, y, weight=np.ones(3)),
        lambda: best_linear_projection(x, y, ["a"]),
        lambda: best_linear_projection(x[:3], y, ["a", "b"]),
        lambda: best_linear_projection(y[:, None, None], y, ["a"]),
    ):
        with pytest.raises(ConfigError):
            call()


# ---------------------------------------------------------------- regressions


def test_projection_is_that_of_statsmodels():
    """WLS(y, add_constant(x), weights).fit(cov_type="HC3", use_t=True) and f_test, statsmodels 0.15.0."""
    plain, weighted = project(), project(weight=table()[2])
    assert plain.names == ("intercept", "a", "b", "c")
    assert (plain.df, plain.joint_df) == (56, (3, 56))
    figures = [
        (plain.estimate, [0.8393095502895901, 0.36878682565056564, -0.15578228132276056, -0.1164911001770515]),
        (plain.error, [0.4693933050715319, 0.25706192242338677, 0.23052332857531388, 0.08062691034903556]),
        (plain.p_value, [0.07917479387740625, 0.15695596370971546, 0.5019637360138622, 0.15408195276408668]),
        (plain.lower, [-0.10099823158428378, -0.14617008461327552, -0.6175759997691765, -0.2780062100231364]),
        (plain.upper, [1.7796173321634638, 0.8837437359144068, 0.30601143712365536, 0.045024009669033416]),
        (weighted.estimate, [0.7670924364725098, 0.28234937962663637, -0.12198478394750031, -0.13062527735686297]),
        (weighted.error, [0.455028877355461, 0.26133835636755065, 0.22385687369572888, 0.07908273094984083]),
    ]
    for figure, expected in figures:
        assert figure[:, 0] == pytest.approx(expected, rel=1e-9)
    assert (plain.wald[0], plain.joint_p_value[0]) == pytest.approx((1.7100329240271581, 0.17536583365692407))
    assert (weighted.wald[0], weighted.joint_p_value[0]) == pytest.approx((1.2883863053253648, 0.28733060693001816))


def test_calibration_is_that_of_statsmodels():
    """OLS of the score on (mean, prediction - mean), HC3; the p-value halved."""
    x, y, _, _ = table()
    calibration = heterogeneity_test(0.2 * x[:, 0] + 0.1, y)
    expected = [5.157245360805262, 1.439195191189607, 1.7881805402855404, 1.2936705291789854, 0.1721939864092822 / 2]
    figures = [
        calibration.mean[0],
        calibration.mean_error[0],
        calibration.slope[0],
        calibration.slope_error[0],
        calibration.p_value[0],
    ]
    assert figures == pytest.approx(expected, rel=1e-9)
    assert heterogeneity_test(-x[:, 0], y).p_value[0] == pytest.approx(1 - calibration.p_value[0])


def left_out(x, y, w, cluster):
    """Σ over clusters of the squared change of the weighted coefficients when one is left out: [p, p]."""
    root = np.sqrt(w)[:, None]

    def coefficients(keep):
        return np.linalg.lstsq((root * x)[keep], (root[:, 0] * y)[keep], rcond=None)[0]

    whole = coefficients(np.ones(len(y), bool))
    changes = np.array([coefficients(cluster != g) - whole for g in np.unique(cluster)])
    return whole, changes.T @ changes


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_errors_are_the_changes_when_rows_or_clusters_are_left_out(clustered, block, monkeypatch):
    monkeypatch.setattr("uplift_spark.forest.explain._CELLS", block)
    x, y, w, cluster = table()
    full = np.column_stack([np.ones(60), x])
    whole, covariance = left_out(full, y, w, cluster if clustered else np.arange(60))
    labels = np.array([f"h{g}" for g in cluster]) if clustered else None
    result = project(weight=w, cluster=labels)
    assert result.estimate[:, 0] == pytest.approx(whole)
    assert result.error[:, 0] == pytest.approx(np.sqrt(np.diag(covariance)))
    wald = whole[1:] @ np.linalg.solve(covariance[1:, 1:], whole[1:]) / 3
    groups = len(np.unique(cluster))
    assert result.df == (groups - 1 if clustered else 56)
    assert result.joint_df == (3, groups - 3 if clustered else 56)
    assert result.wald[0] == pytest.approx(wald * (groups - 3) / (groups - 1) if clustered else wald)
    effect = x[:, 0] + 0.3
    mean = w @ effect / w.sum()
    whole, covariance = left_out(np.column_stack([np.full(60, mean), effect - mean]), y, w, np.arange(60))
    result = heterogeneity_test(effect, y, weight=w)
    assert (result.mean[0], result.slope[0]) == pytest.approx(whole)
    assert (result.mean_error[0], result.slope_error[0]) == pytest.approx(np.sqrt(np.diag(covariance)))


def test_every_row_its_own_cluster_gives_the_same_errors():
    assert project(cluster=np.arange(60)).error == pytest.approx(project().error)
    x, y, _, _ = table()
    alone = heterogeneity_test(x[:, 0], y, cluster=np.arange(60))
    assert alone.slope_error == pytest.approx(heterogeneity_test(x[:, 0], y).slope_error)


def test_levels_stand_side_by_side():
    x, y, _, _ = table()
    scores, effects = np.column_stack([y, x[:, 1] + y]), x[:, :2]
    both, cal = best_linear_projection(x, scores, "abc"), heterogeneity_test(effects, scores)
    for k in range(2):
        one = best_linear_projection(x, scores[:, k], "abc")
        assert both.error[:, k] == pytest.approx(one.error[:, 0])
        assert both.joint_p_value[k] == pytest.approx(one.joint_p_value[0])
        assert cal.t[k] == pytest.approx(heterogeneity_test(effects[:, k], scores[:, k]).t[0])


def test_units_of_a_feature_do_not_matter():
    x, y, _, _ = table()
    projection = best_linear_projection(x * [1e9, 1e-9, 1] + [1e12, 0, 0], y, ["a", "b", "c"])
    assert projection.t[1:] == pytest.approx(project().t[1:], rel=1e-4)
    assert projection.joint_p_value == pytest.approx(project().joint_p_value, rel=1e-4)


def test_nothing_that_varies_is_said_to_be_not_known():
    x, y, _, _ = table()
    same = heterogeneity_test(np.full(60, 0.1), y)
    assert same.mean[0] == pytest.approx(y.mean() / 0.1) and same.mean_error[0] > 0
    assert np.isnan([same.slope[0], same.slope_error[0], same.t[0], same.p_value[0]]).all()
    flat = heterogeneity_test(x[:, 0], np.full(60, 0.3))
    assert flat.slope[0] == pytest.approx(0, abs=1e-9) and np.isnan(flat.p_value[0])
    none = best_linear_projection(x, np.zeros(60), ["a", "b", "c"])
    assert not none.estimate.any() and np.isnan(none.error).all() and np.isnan(none.joint_p_value[0])
    assert np.isnan(heterogeneity_test(x[:, 0] * 0.0, y).mean[0])


def altered(column, row, value):
    x = table()[0]
    x[row, column] = value
    return x


X = table()[0]
SINGLE = "would be constant or depend on each other without a single"


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (altered(1, [3, 9], np.nan), {}, "'b' is missing or infinite in 2 of 60 rows"),
        (altered(2, slice(None), 0.1), {}, r"features \['c'\] are the same in all 60 rows"),
        (np.column_stack([X[:, :2], X[:, 0] - 2 * X[:, 1] + 5]), {}, r"features \['a', 'b', 'c'\] depend"),
        (np.column_stack([X[:, :2], 3 * X[:, 1]]), {}, r"features \['b', 'c'\] depend"),
        (np.column_stack([X[:, :2], np.eye(60)[:, 4]]), {}, rf"features \['c'\] {SINGLE} row"),
        (
            np.column_stack([X[:, :2], table()[3] == 5]),
            {"cluster": table()[3]},
            rf"features \['c'\] {SINGLE} cluster",
        ),
        (X, {"cluster": np.arange(60) % 3}, "3 clusters are too few for 3 columns"),
        (X, {"cluster": np.array([None] * 2 + ["h"] * 58)}, "'cluster' is missing in 2 of 60"),
        (X, {"weight": np.where(np.arange(60) < 4, 0.0, 1.0)}, "'weight' is not a positive finite number in 4 of 60"),
    ],
)
def test_projection_refuses(x, more, message):
    with pytest.raises(DataError, match=message):
        best_linear_projection(x, table()[1], ["a", "b", "c"], **more)


def test_missing_predictions_and_scores_are_refused():
    x, y, _, _ = table()
    with pytest.raises(DataError, match="'effect of level 2' is missing or infinite in 1 of 60 rows"):
        heterogeneity_test(altered(1, 3, np.nan)[:, :2], x[:, :2])
    with pytest.raises(DataError, match="'score of level 1' is missing or infinite in 60 of 60 rows"):
        best_linear_projection(x, y * np.nan, ["a", "b", "c"])
    with pytest.raises(DataError, match="4 rows are too few"):
        best_linear_projection(x[:4], y[:4], ["a", "b", "c"])


# ---------------------------------------------------------------- level and power


def trial(rng, n, effect, size=1):
    """A trial of households of `size` that share features, treatment and, if more than one, noise."""
    x = rng.normal(size=(n // size, 5))
    noise = rng.normal(size=n // size) * (size > 1)
    house = np.repeat(np.arange(n // size), size)
    w = rng.integers(0, 2, n // size)[house]
    x = x[house]
    y = np.minimum(x[:, 2], 0) + effect(x) * w + noise[house] + rng.normal(size=n)
    columns = {"unit": np.arange(n), "w": w, "y": y, "household": house}
    return pa.table(columns | {name: x[:, j] for j, name in enumerate(FEATURES)}), x


def p_values(seed, effect, size=1, cluster=True, own=False):
    """{statistic: p-value} of a forest trained on one half (by household) and tested on the other, or on its own."""
    rows, x = trial(np.random.default_rng(seed), 1500, effect, size)
    train, test = slice(0, 750), slice(0 if own else 750, 750 if own else 1500)
    forest = fit_table(rows[train], ROLES, Params(n_trees=50, seed=seed))
    rows, x = rows[test], x[test]
    score = trial_scores(rows["y"].to_numpy(), rows["w"].to_numpy(), np.array([0.5, 0.5]))
    groups = rows["household"].to_numpy() if cluster and size > 1 else None
    calibration = heterogeneity_test(forest.effect_arrays(rows)[0], score, cluster=groups)
    linear = best_linear_projection(x, score, FEATURES, cluster=groups)
    slopes = dict(zip(FEATURES, linear.p_value[1:, 0], strict=True))
    return {"calibration": calibration.p_value[0], "joint": linear.joint_p_value[0], **slopes}


def rejections(reps, effect, **options):
    """{statistic: share of data sets in which it rejects at the 5 % level}."""
    results = [p_values(seed, effect, **options) for seed in range(reps)]
    rates = {name: float(np.mean([p[name] < 0.05 for p in results])) for name in results[0]}
    print(f"{reps} x {effect.__name__} {options}: " + ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))
    return rates


def none(x):
    return np.zeros(len(x))


def step(x):
    return 1.0 * (x[:, 0] > 0)


def high_step(x):
    return 4.0 * (x[:, 0] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5])
def test_without_an_effect_tests_hold_their_level(size):
    rates = rejections(150, none, size=size)
    assert all(rate < 0.11 for rate in rates.values())  # .05 and over three standard errors
    assert rates["calibration"] > 0 and rates["joint"] > 0
    assert 0.025 < np.mean([rates[name] for name in FEATURES]) < 0.075


@pytest.mark.slow
def test_misuse_breaks_the_level():
    assert rejections(40, none, own=True)["calibration"] > 0.3  # a forest's own rows agree with it
    assert rejections(40, none, size=5, cluster=False)["joint"] > 0.3  # households taken for strangers


@pytest.mark.parametrize(("effect", "size"), [(step, 1), (high_step, 5)])
def test_a_real_effect_is_detected(effect, size):
    rates = rejections(40, effect, size=size)
    assert rates["calibration"] >= 0.9 and rates["joint"] >= 0.9 and rates["x0"] >= 0.9
    assert np.mean([rates[name] for name in FEATURES[1:]]) < 0.11


@pytest.mark.simulation
@pytest.mark.parametrize("size", [1, 5])
def test_without_an_effect_tests_hold_their_level_in_full(size):
    rates = rejections(500, none, size=size)
    assert all(0.025 <= rate <= 0.075 for rate in rates.values())


# ---------------------------------------------------------------- variable importance


def test_importance_is_the_weight_that_passes_each_feature():
    """Against a walk down every tree node by node, with weights and categories."""
    frame = ordered_frame()
    frame["weight"] = np.random.default_rng(1).integers(1, 4, len(frame))
    model = CausalForest(n_trees=8, min_leaf=10).fit(frame, ordered_roles(weight="weight"))
    s, names = model.forest.structure, model.roles.features
    expected, deepest = dict.fromkeys(names, 0.0), 0

    def weight_below(t, node, depth):
        nonlocal deepest
        deepest = max(deepest, depth)
        word = s.nodes[s.node_start[t] + node]
        child = node_child.py_func(word)
        if word & np.uint64(LEAF):
            return model.forest.sums[s.leaf_start[t] + child, :, 0].sum()
        weight = weight_below(t, child, depth + 1) + weight_below(t, child + 1, depth + 1)
        if depth <= 4:
            expected[names[node_feature.py_func(word)]] += weight / depth**2
        return weight

    assert sum(weight_below(t, 0, 1) for t in range(s.n_trees)) == model.forest.sums[:, :, 0].sum()
    importance = variable_importance(model.forest)
    assert tuple(importance) == names and deepest > 5
    assert list(importance.values()) == pytest.approx([w / sum(expected.values()) for w in expected.values()])
    assert sum(importance.values()) == pytest.approx(1)


def test_importance_is_largest_where_the_effect_is():
    rows, _ = trial(np.random.default_rng(0), 4000, step)
    importance = variable_importance(fit_table(rows, ROLES, Params(n_trees=48)))
    assert importance["x0"] > 0.7


def test_importance_without_splits_is_zero():
    rows, _ = trial(np.random.default_rng(0), 500, none)
    forest = fit_table(rows, ROLES, Params(n_trees=8, min_leaf=500))
    assert variable_importance(forest) == dict.fromkeys(FEATURES, 0.0)
