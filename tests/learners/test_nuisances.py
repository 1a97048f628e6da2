"""Cross-fitted nuisances: folds, what a row's models saw, and whether averages built on them cover the truth."""

from functools import partial

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeRegressor

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.simulate import nie_wager
from uplift_spark.learners.nuisances import NuisanceSpec, crossfit, crossfit_folds, fit_nuisances, fit_trees, placebo
from uplift_spark.stats.aipw import ESTIMANDS, averages_of
from uplift_spark.stats.sampling import FOLDS_SALT, mix64_all

SMALL = {"max_iter": 25, "max_leaf_nodes": 4, "learning_rate": 0.15, "early_stopping": False}


def lines(binary):
    """Right for what `smooth` draws, and quick."""
    return LogisticRegression() if binary else LinearRegression()


def trees(binary):
    """Boosted trees at a fraction of the default's time."""
    return (HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor)(**SMALL)


def keys(n, seed=0):
    return mix64_all(np.arange(n, dtype=np.uint64), np.uint64(seed), FOLDS_SALT)


def smooth(n, seed, levels=2, size=1):
    """Units in clusters of `size` that share features, level and noise: chances by x0, outcome by x0 and x1.

    (features [n, 4], place, outcome, cluster, expected [n, K], propensity [n, K])
    """
    rng = np.random.default_rng(seed)
    house = np.repeat(np.arange(n // size), size)
    x = rng.random((n // size, 4))[house]
    weights = np.exp((x[:, :1] - 0.5) * 2.0 * np.arange(levels))
    e = weights / weights.sum(axis=1, keepdims=True)
    level_code = (rng.random(n // size)[house][:, None] > np.cumsum(e, axis=1)).sum(axis=1)
    outcome_mean = 2 * x[:, :1] + x[:, 1:2] + (0.5 + x[:, :1]) * np.arange(levels)
    noise = rng.normal(size=n) + (size > 1) * rng.normal(size=n // size)[house]
    return x, level_code, outcome_mean[np.arange(n), level_code] + noise, house, outcome_mean, e


# ---------------------------------------------------------------- folds and contracts


def test_folds_follow_the_key_alone():
    key, spec = keys(5000), NuisanceSpec(("0", "1"))
    fold = crossfit_folds(key, spec)
    assert set(fold) == set(range(5)) and np.bincount(fold).min() > 850
    assert (crossfit_folds(key[::-1], spec)[::-1] == fold).all()
    assert (crossfit_folds(key, NuisanceSpec(("0", "1"), seed=8)) != fold).any()


def test_values_do_not_depend_on_the_order_of_rows():
    x, w, y, *_ = smooth(600, 0)
    key, mixed = keys(600), np.random.default_rng(1).permutation(600)
    result, other = (
        crossfit(x, w, y, key, NuisanceSpec(("0", "1"))),
        crossfit(x[mixed], w[mixed], y[mixed], key[mixed], NuisanceSpec(("0", "1"))),
    )
    assert other.outcome_mean == pytest.approx(result.outcome_mean[mixed])
    assert other.propensity == pytest.approx(result.propensity[mixed])


def test_weighted_trees_are_those_of_the_weights_without_their_quantiles(monkeypatch):
    """Weighted quantiles take scikit-learn ten times as long as the trees."""
    x, _, y, *_ = smooth(2000, 0)
    x[:50, 0], x[:, 3] = np.nan, np.round(4 * x[:, 3])
    own = np.where(np.arange(2000) % 2 == 0, 1.0, 0.05)
    y += np.arange(2000) % 2
    slow = HistGradientBoostingRegressor(**SMALL).fit(x, y, own).predict(x)
    unweighted = HistGradientBoostingRegressor(**SMALL).fit(x, y).predict(x)
    monkeypatch.delattr("sklearn.ensemble._hist_gradient_boosting.binning._weighted_percentile")
    predicted = fit_trees(HistGradientBoostingRegressor(**SMALL), x, y, own).predict(x)
    assert np.abs(predicted - slow).mean() < 0.15 * np.abs(unweighted - slow).mean()
    same = fit_trees(HistGradientBoostingRegressor(**SMALL), x, y, np.full(2000, 3.0)).predict(x)
    assert (same == unweighted).all()


class Spy:
    """Remembers the rows it was fitted on, which are their own feature, and predicts how many of those it is asked."""

    def __init__(self, binary):
        self.rows = set()

    def fit(self, x, y, sample_weight=None):
        self.rows, self.classes = set(x[:, 0]), len(np.unique(y))
        return self

    def predict(self, x):
        return np.array([float(row in self.rows) for row in x[:, 0]])

    def predict_proba(self, x):
        return np.column_stack([1 - self.predict(x) / 2, self.predict(x) / 2])


def test_no_row_or_cluster_is_in_its_own_models():
    x, w, y, house, *_ = smooth(400, 0, size=4)
    x[:, 0] = house
    spec = NuisanceSpec(("0", "1"), outcome=Spy, propensity=Spy)
    nuisances = crossfit(x, w, y, keys(100)[house], spec)
    assert not nuisances.propensity[:, 1].any() and not nuisances.outcome_mean.any()  # none was seen
    assert fit_nuisances(x, w, y, spec).outcome_mean(x).any()  # as they would be


def test_known_propensities_are_passed_on():
    x, w, y, _, _, e = smooth(400, 0)
    nuisances = crossfit(x, w, y, keys(400), NuisanceSpec(("0", "1"), outcome=lines), known=e)
    assert (nuisances.propensity == e).all()
    fitted = fit_nuisances(x, w, y, NuisanceSpec(("0", "1"), outcome=lines), known=True)
    with pytest.raises(ConfigError, match="were given"):
        fitted.propensity(x)


def test_an_arm_that_is_too_small_is_named():
    x, w, y, *_ = smooth(400, 0)
    with pytest.raises(DataError, match=r"level 'mail' has 0 rows in fold 0 of 5.*take fewer folds"):
        crossfit(x, np.zeros(400, int), y, keys(400), NuisanceSpec(("none", "mail")))
    with pytest.raises(DataError, match=r"level 'none' has 9 rows in the training part, of at least 10"):
        fit_nuisances(x, (np.arange(400) >= 9) * 1, y, NuisanceSpec(("none", "mail")))
    with pytest.raises(DataError, match=r"2 levels|levels are"):
        crossfit(x, w + 1, y, keys(400), NuisanceSpec(("none", "mail")))


@pytest.mark.parametrize("binary", [False, True])
def test_missing_values_categories_and_three_levels(binary):
    x, w, y, *_ = smooth(900, 0, levels=3)
    y = (y > 2.5) * 1.0 if binary else y
    x[::7, 1] = np.nan
    x[:, 2] = np.random.default_rng(1).integers(0, 5, 900)
    spec = NuisanceSpec(("a", "b", "c"), categorical=np.array([False, False, True, False]), folds=3)
    nuisances = crossfit(x, w, y, keys(900), spec, np.random.default_rng(2).random(900) + 0.5)
    assert nuisances.propensity.sum(axis=1) == pytest.approx(1) and (nuisances.propensity > 0).all()
    assert nuisances.outcome_mean.min() >= y.min() and nuisances.outcome_mean.max() <= y.max()
    assert np.corrcoef(nuisances.outcome_mean[np.arange(900), w], y)[0, 1] > 0.2


def test_an_arm_without_events_expects_none():
    x, w, _, *_ = smooth(400, 0)
    y = w * (np.arange(400) % 2) * 1.0
    assert (crossfit(x, w, y, keys(400), NuisanceSpec(("0", "1"))).outcome_mean[:, 0] == 0).all()


def test_levels_dealt_at_random_have_no_effect():
    x, w, y, *_ = smooth(1000, 3)
    result = placebo(x, w, y, keys(1000), NuisanceSpec(("0", "1"), folds=2, outcome=lines, propensity=lines), 4)
    assert result.estimate.shape == (4, 1) and np.abs(result.estimate).max() < 4 * result.error.min()
    assert 0.001 < result.p_value[0] <= 1
    assert len(np.unique(result.estimate)) == 4


# ---------------------------------------------------------------- known truth


def truths(levels):
    """{estimand: effects [L]} of `smooth`, from a million units."""
    *_, outcome_mean, e = smooth(1_000_000, 99, levels)
    effect = outcome_mean[:, 1:] - outcome_mean[:, :1]
    tilt = {"ate": np.ones_like(effect), "att": e[:, 1:], "overlap": e[:, 1:] * e[:, :1] / (e[:, 1:] + e[:, :1])}
    averages = {name: (h * effect).sum(axis=0) / h.sum(axis=0) for name, h in tilt.items()}
    return averages | {"naive": averages["ate"]}


def replicate(draw, truth, reps, spec, clustered=False):
    """{estimand: (bias [L], mean error over spread [L], coverage [L])}, printed with the spread after the bias."""
    table = {name: [] for name in truth}
    for seed in range(reps):
        x, w, y, house, *_ = draw(seed)
        fitted = crossfit(x, w, y, keys(len(y), seed)[house], spec)
        hashes = keys(len(y), seed)[house].view(np.int64) if clustered else None
        one = averages_of(y, w, fitted.outcome_mean, fitted.propensity, hashes)
        for name in truth:
            j = ESTIMANDS.index(name)
            table[name].append([part[:, j] for part in (one.estimate, one.error, *one.interval)])
    out = {}
    for name, rows in table.items():
        estimate, error, lower, upper = (np.array(column) for column in zip(*rows, strict=True))
        bias, spread = estimate.mean(axis=0) - truth[name], estimate.std(axis=0, ddof=1)
        ratio, covered = error.mean(axis=0) / spread, ((lower < truth[name]) & (truth[name] < upper)).mean(axis=0)
        out[name] = bias, ratio, covered
        print(f"{name:6}", *(f"{column.round(4)}" for column in (bias, spread, ratio, covered)))
    return out


def of_nie_wager(seed, setup, n=2000):
    b = nie_wager(n, seed, setup=setup)
    return b.X, b.w, b.y, np.arange(n)


CHEAP = NuisanceSpec(("0", "1"), outcome=lines, propensity=lines)


def test_intervals_cover_and_naive_ones_do_not():
    result = replicate(partial(smooth, 1000), truths(2), 60, CHEAP)
    assert result["naive"][2] < 0.2
    for name in ("ate", "att", "overlap"):
        bias, ratio, covered = result[name]
        assert np.abs(bias) < 0.05 and 0.7 < ratio < 1.4 and covered >= 0.85


def test_without_cross_fitting_errors_are_too_small():
    """Nuisances of rows that they were fitted on: the outcome's noise is taken for expected."""
    errors, estimates = [], []
    for seed in range(20):
        x, w, y, *_ = smooth(600, seed)
        spec = NuisanceSpec(("0", "1"), outcome=lambda _: DecisionTreeRegressor(min_samples_leaf=2), propensity=lines)
        own = fit_nuisances(x, w, y, spec)
        result = averages_of(y, w, own.outcome_mean(x), own.propensity(x))
        errors.append(result.error[0, 0])
        estimates.append(result.estimate[0, 0])
    assert np.mean(errors) < 0.75 * np.std(estimates, ddof=1)


@pytest.mark.slow
def test_clusters_taken_for_strangers_are_too_sure():
    spec = NuisanceSpec(("0", "1"), outcome=lines, propensity=lines)
    draw, truth = partial(smooth, 1600, size=8), {"ate": truths(2)["ate"]}
    right, wrong = (replicate(draw, truth, 60, spec, clustered)["ate"] for clustered in (True, False))
    assert right[1] > 1.6 * wrong[1] and right[2] >= 0.8 and wrong[2] < 0.8


@pytest.mark.simulation
@pytest.mark.parametrize(("levels", "size", "n"), [(2, 1, 1000), (3, 1, 1500), (2, 5, 2500)])
def test_intervals_cover_in_full(levels, size, n):
    spec = NuisanceSpec(tuple("012")[:levels], outcome=lines, propensity=lines)
    result = replicate(partial(smooth, n, levels=levels, size=size), truths(levels), 500, spec, size > 1)
    for name in ("ate", "att", "overlap"):
        assert ((result[name][2] >= 0.925) & (result[name][2] <= 0.975)).all()
    assert (result["naive"][2] < 0.2).all()


@pytest.mark.simulation
@pytest.mark.parametrize(("setup", "effect"), [("a", 0.5), ("b", 0.806), ("c", 1.0)])
def test_boosted_trees_take_out_most_of_the_confounding(setup, effect):
    """Set-up B is a trial. Trees of 1500 rows are off in both nuisances: what is left of the bias is printed."""
    spec, truth = NuisanceSpec(("0", "1"), outcome=trees, propensity=trees), {"naive": effect, "ate": effect}
    result = replicate(partial(of_nie_wager, setup=setup), truth, 100, spec)
    assert np.abs(result["ate"][0]) < 0.08 and 0.8 < result["ate"][1] < 1.5
