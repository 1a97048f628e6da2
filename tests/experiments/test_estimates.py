"""Tests of effects from sums: tea-tasting on the same data, formulas by hand, merging, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from uplift_spark.errors import ConfigError
from uplift_spark.experiments.estimates import (
    ArmEffect,
    MetricColumns,
    arm_effect,
    complier_effect,
    variance_saved,
)
from uplift_spark.stats.moments import CrossMoments

METRICS = {
    "mean": MetricColumns(0),
    "cuped": MetricColumns(0, None, ((2, None),)),
    "ratio": MetricColumns(0, 1),
    "cuped ratio": MetricColumns(0, 1, ((2, 3),)),
}


def shop(units: int = 3000, seed: int = 1) -> pd.DataFrame:
    """Revenue and sessions, each before and during a trial whose arms differ by 5 %."""
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"variant": rng.integers(0, 2, units)})
    d["sessions_before"] = rng.poisson(3, units) + 1
    d["revenue_before"] = rng.gamma(2, 5, units) * d["sessions_before"]
    d["sessions"] = rng.poisson(2, units) + d["sessions_before"]
    d["revenue"] = 0.5 * d["revenue_before"] + d["sessions"] * rng.gamma(2, 3, units) * (1 + 0.05 * d["variant"])
    return d


def sums_of(d: pd.DataFrame) -> CrossMoments:
    columns = ["revenue", "sessions", "revenue_before", "sessions_before"]
    return CrossMoments.of(d[columns].to_numpy(float), d["variant"].to_numpy(), (2, 1))


# ---------------------------------------------------------------- the same figures elsewhere


def test_equal_to_tea_tasting() -> None:
    """tea-tasting 1.14.0: means, CUPED and ratios; relative intervals by logarithms, as it has them."""
    tt = pytest.importorskip("tea_tasting")
    d = shop()
    theirs = tt.Experiment(
        {
            "mean": tt.Mean("revenue"),
            "cuped": tt.Mean("revenue", "revenue_before"),
            "ratio": tt.RatioOfMeans("revenue", "sessions"),
            "cuped ratio": tt.RatioOfMeans("revenue", "sessions", "revenue_before", "sessions_before"),
        }
    ).analyze(d)
    for name, metric in METRICS.items():
        ours, other = arm_effect(sums_of(d), metric, relative="log"), theirs[name]
        pairs = {
            "control": other.control,
            "treated": other.treatment,
            "effect": other.effect_size,
            "lower": other.effect_size_ci_lower,
            "upper": other.effect_size_ci_upper,
            "p_value": other.pvalue,
            "relative": other.rel_effect_size,
            "relative_lower": other.rel_effect_size_ci_lower,
            "relative_upper": other.rel_effect_size_ci_upper,
        }
        for key, value in pairs.items():
            assert float(getattr(ours, key)) == pytest.approx(value, rel=1e-9, abs=1e-12), (name, key)


def test_welch_by_scipy() -> None:
    from scipy.stats import ttest_ind

    d = shop(200)
    a, b = (d.loc[d["variant"] == k, "revenue"] for k in (1, 0))
    ours, theirs = arm_effect(sums_of(d), METRICS["mean"]), ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.p_value, ours.lower, ours.upper, ours.freedom) == pytest.approx(
        (theirs.pvalue, interval.low, interval.high, theirs.df), rel=1e-10
    )


def test_complier_effect_is_two_stage_least_squares() -> None:
    """By hand: coefficient and robust (HC0) error of an instrumental regression, up to n/(n - 1)."""
    rng = np.random.default_rng(4)
    n = 2000
    z = rng.integers(0, 2, n)
    took = (rng.random(n) < np.where(z == 1, 0.6, 0.1)).astype(float)
    y = 1 + 2 * took + rng.normal(size=n)
    ours = complier_effect(CrossMoments.of(np.column_stack([y, took]), z, (2, 1)), MetricColumns(0), 1)
    instruments, regressors = np.column_stack([np.ones(n), z]), np.column_stack([np.ones(n), took])
    inverse = np.linalg.inv(instruments.T @ regressors)
    coefficient = inverse @ instruments.T @ y
    residual = y - regressors @ coefficient
    robust = inverse @ (instruments.T * residual**2) @ instruments @ inverse.T
    assert float(ours.effect) == pytest.approx(coefficient[1], rel=1e-10)
    assert float(ours.error) == pytest.approx(np.sqrt(robust[1, 1]), rel=2e-3)
    assert (ours.control, ours.treated) == pytest.approx((took[z == 0].mean(), took[z == 1].mean()))
    assert ours.lower < ours.effect < ours.upper


def test_an_assignment_that_moves_nobody_has_no_complier_effect() -> None:
    rng = np.random.default_rng(5)
    took = (rng.random(2000) < 0.3).astype(float)
    sums = CrossMoments.of(np.column_stack([rng.normal(size=2000), took]), rng.integers(0, 2, 2000), (2, 1))
    assert np.isnan(complier_effect(sums, MetricColumns(0), 1).effect)


def test_post_stratification_by_hand() -> None:
    """Strata of 4 and 4: effects 1 and 3, variances of arms' means 1 (2/2) in each cell."""
    y = np.array([0.0, 2.0, 1.0, 3.0, 0.0, 2.0, 3.0, 5.0])
    arm, stratum = np.array([0, 0, 1, 1] * 2), np.repeat([0, 1], 4)
    effect = arm_effect(CrossMoments.of(y[:, None], arm * 2 + stratum, (2, 2)), MetricColumns(0))
    assert float(effect.effect) == 2.0
    # 4 cells of weight 1/2 squared, and strata that a sample of 8 drew: ((1-2)² + (3-2)²) / 2 / 8.
    assert float(effect.error) ** 2 == pytest.approx(4 * 0.25 * 1.0 + 1 / 8)


def test_strata_with_uneven_shares_do_not_bias() -> None:
    """Simpson's paradox: the treated are mostly of the stratum that spends less, and the effect is 1 in both."""
    rng = np.random.default_rng(2)
    stratum = rng.integers(0, 2, 20_000)
    arm = (rng.random(20_000) < np.where(stratum == 1, 0.8, 0.2)).astype(int)
    y = 10 - 5 * stratum + arm + rng.normal(size=20_000)
    by_stratum = CrossMoments.of(y[:, None], arm * 2 + stratum, (2, 2))
    effect = arm_effect(by_stratum, MetricColumns(0))
    assert float(effect.effect) == pytest.approx(1.0, abs=4 * float(effect.error))
    assert float(arm_effect(by_stratum.sum(1)[:, None], MetricColumns(0)).effect) < 0


def test_relative_intervals() -> None:
    """Fieller's holds no ratio that a test rejects; near a control mean of 0 it is unbounded, and delta is not."""
    d = shop()
    for relative in ("fieller", "delta", "log"):
        one = arm_effect(sums_of(d), METRICS["mean"], relative=relative)
        assert one.relative_lower < one.relative < one.relative_upper
    for bound in ("relative_lower", "relative_upper"):
        r = 1 + float(getattr(arm_effect(sums_of(d), METRICS["mean"]), bound))
        arms = sums_of(d).columns([0])
        mean, error = arms.mean[:, 0, 0], arms.covariance[:, 0, 0, 0] / arms.n[:, 0]
        gap = abs(mean[1] - r * mean[0]) / np.sqrt(error[1] + r**2 * error[0])
        freedom = float(arm_effect(sums_of(d), METRICS["mean"]).freedom)
        assert gap == pytest.approx(student.isf(0.025, freedom), rel=1e-9)
    y = np.random.default_rng(1).normal(size=400)
    zero = CrossMoments.of((y - y[::2].mean())[:, None], np.arange(400) % 2, (2, 1))
    assert np.isinf(arm_effect(zero, MetricColumns(0)).relative_upper)
    with pytest.raises(ConfigError, match="relative interval 'fiel' is unknown: did you mean 'fieller'"):
        arm_effect(zero, MetricColumns(0), relative="fiel")


# ---------------------------------------------------------------- sums


def test_cross_moments_merge_and_keep_their_digits() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(900, 3)) @ rng.normal(size=(3, 3)) + [1e6, 5, -2]
    cell = rng.integers(0, 6, 900)
    cells = CrossMoments.of(x, cell, (2, 3))
    assert np.allclose(cells.sum(0).sum(0).covariance, np.cov(x.T), rtol=1e-9, atol=0)
    assert np.allclose(cells[1, 2].mean, x[cell == 5].mean(axis=0), rtol=1e-14)
    halves = CrossMoments.of(x[:400], cell[:400], (2, 3)) + CrossMoments.of(x[400:], cell[400:], (2, 3))
    assert np.allclose(halves.products, cells.products, rtol=1e-9)
    raw = CrossMoments.of_sums(np.array(900.0), (x - [1e6, 0, 0]).sum(0), (x - [1e6, 0, 0]).T @ (x - [1e6, 0, 0]),
                               np.array([1e6, 0, 0]))  # fmt: skip
    assert np.allclose(raw.covariance, np.cov(x.T), rtol=1e-9)
    assert np.allclose(cells.columns([2, 0]).products[..., 0, 1], cells.products[..., 2, 0])
    empty = CrossMoments.of(np.empty((0, 2)), np.empty(0, np.int64), (2,))
    assert (empty.n == 0).all() and (empty + CrossMoments.of(x[:, :2], cell % 2, (2,))).n.sum() == 900


def test_useless_covariates_take_nothing_off() -> None:
    d = shop().assign(sessions_before=1.0)
    sums = sums_of(d)
    bare = arm_effect(sums, METRICS["mean"])
    constant = arm_effect(sums, MetricColumns(0, None, ((3, None),)))
    twice = arm_effect(sums, MetricColumns(0, None, ((2, None), (2, None), (3, None))))
    assert float(constant.error) == pytest.approx(float(bare.error), rel=1e-12)
    assert float(twice.error) == pytest.approx(float(arm_effect(sums, METRICS["cuped"]).error), rel=1e-9)


# ---------------------------------------------------------------- simulated trials


def simulated(kind: str, trials: int, seed: int) -> tuple[ArmEffect, float]:
    """(effects of the trials, the true effect)."""
    rng = np.random.default_rng(seed)
    if kind == "clustered":
        return _clustered(rng, trials)
    units = 400
    shape = (trials, units)
    arm = rng.permuted(np.tile(np.arange(units) % 2, (trials, 1)), axis=1)
    before = rng.normal(size=shape)
    noise = rng.normal(size=shape)
    stratum = (rng.random(shape) < 0.3).astype(int)
    y = 5 + 0.6 * before + 0.8 * noise + 0.3 * arm
    truth, metric = 0.3, MetricColumns(0)
    columns = [y, before]
    if kind == "cuped":
        metric = MetricColumns(0, None, ((1, None),))
    if kind == "skewed":
        columns, truth = [np.exp(noise) * (1 + 0.1 * arm)], 0.1 * np.exp(0.5)
    if kind == "ratio":
        sessions = rng.poisson(2, shape) + 1 + (before > 1)
        columns = [sessions * (3 + before + 0.2 * arm) + noise, sessions]
        metric, truth = MetricColumns(0, 1), 0.2
    if kind == "stratified":  # effects differ by stratum
        columns, truth = [y + 2 * stratum + arm * (stratum - 0.3)], 0.3
    if kind == "complier":
        complier = rng.random(shape) < 0.6
        always = ~complier & (before > 0.8)
        took = np.where(complier, arm == 1, always).astype(float)
        columns, truth = [before + noise + 0.5 * took, took], 0.5
    strata = 2 if kind == "stratified" else 1
    cell = (np.arange(trials)[:, None] * 2 + arm) * strata + (stratum if strata == 2 else 0)
    x = np.column_stack([one.ravel() for one in columns])
    sums = CrossMoments.of(x, cell.ravel(), (trials, 2, strata))
    return (complier_effect(sums, metric, 1) if kind == "complier" else arm_effect(sums, metric)), truth


def _clustered(rng: np.random.Generator, trials: int) -> tuple[ArmEffect, float]:
    """30 clusters, 15 an arm, of 10 to 30 users, with an intra-cluster correlation of .2; users are read."""
    clusters = 30
    size = rng.integers(10, 31, (trials, clusters)).astype(float)
    arm = rng.permuted(np.tile(np.arange(clusters) % 2, (trials, 1)), axis=1)
    total = size * (np.sqrt(0.2) * rng.normal(size=size.shape) + 0.5 * arm)
    total += np.sqrt(0.8 * size) * rng.normal(size=size.shape)
    cell = np.arange(trials)[:, None] * 2 + arm
    x = np.column_stack([total.ravel(), size.ravel()])
    return arm_effect(CrossMoments.of(x, cell.ravel(), (trials, 2, 1)), MetricColumns(0, 1)), 0.5


KINDS = ("plain", "cuped", "skewed", "ratio", "clustered", "stratified", "complier")


def covered(kind: str, trials: int, seed: int) -> float:
    effect, truth = simulated(kind, trials, seed)
    return float(((effect.lower <= truth) & (truth <= effect.upper)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_quickly(kind: str) -> None:
    """800 trials: four standard errors around .95 are .92 to .98."""
    assert covered(kind, 800, 11) == pytest.approx(0.95, abs=0.031)


@pytest.mark.simulation
@pytest.mark.parametrize("kind", KINDS)
def test_coverage(kind: str) -> None:
    share = covered(kind, 4000, 7)
    print(f"coverage {kind}: {share:.4f}")
    assert 0.94 <= share <= 0.96


def test_cuped_takes_a_third_of_the_variance_off() -> None:
    """Correlation .6: 1 - .36 of the variance is left, in the formula and over trials."""
    plain, _ = simulated("plain", 1500, 3)
    less, _ = simulated("cuped", 1500, 3)
    assert float(less.effect.var() / plain.effect.var()) <= 0.67
    assert float((less.error**2).mean() / (plain.error**2).mean()) == pytest.approx(0.64, abs=0.01)
    d = shop()
    saved = float(variance_saved(sums_of(d), METRICS["cuped"]))
    errors = [float(arm_effect(sums_of(d), METRICS[name]).error) for name in ("cuped", "mean")]
    assert saved == pytest.approx(1 - (errors[0] / errors[1]) ** 2) and saved > 0.1


def test_ignoring_clusters_would_not_hold() -> None:
    """The coverage test can fail: with users as rows, intervals of clustered trials miss half the time."""
    rng = np.random.default_rng(1)
    effect = np.repeat(np.sqrt(0.2) * rng.normal(size=(300, 30)), 20, axis=1)
    y = effect + np.sqrt(0.8) * rng.normal(size=effect.shape)
    cell = np.arange(300)[:, None] * 2 + np.tile(np.arange(30) % 2, (300, 1)).repeat(20, axis=1)
    naive = arm_effect(CrossMoments.of(y.reshape(-1, 1), cell.ravel(), (300, 2, 1)), MetricColumns(0))
    assert float(((naive.lower <= 0) & (naive.upper >= 0)).mean()) < 0.75


def test_cells_that_are_too_small_are_unknown() -> None:
    sums = CrossMoments.of(np.array([[1.0], [2.0], [3.0]]), np.array([0, 0, 1]), (2, 1))
    assert np.isnan(arm_effect(sums, MetricColumns(0)).error)
    same = CrossMoments.of(np.ones((40, 1)), np.arange(40) % 2, (2, 1))
    constant = arm_effect(same, MetricColumns(0))
    assert float(constant.effect) == 0 and np.isnan(constant.p_value) and np.isnan(constant.lower)
