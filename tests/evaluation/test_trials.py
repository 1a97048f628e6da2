"""The judge of the benchmark of real trials: scores by enumeration, verdicts on simulated trials of known truth."""

from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.benchmarks.trial_files import TRIALS, NotHere, rows_of
from tests.benchmarks.trial_scores import (
    Z95,
    Difference,
    Judge,
    dealt_again,
    effect_scores,
    fold_of,
    measures,
    treated_shares,
    widening,
)
from uplift_spark.stats.sampling import unit_hashes


def test_scores_average_to_the_effects_over_all_deals():
    """Whatever was expected of the outcome, strata of unlike shares: exactly."""
    stratum = np.array([0, 0, 0, 0, 1, 1, 1])
    control, effect = np.array([3.0, -1, 4, 1, -5, 9, 2]), np.array([6.0, 5, -3, 5, 8, -9, 7])
    expected, scores = np.array([2.0, 7, 1, -8, 2, 8, 1]), []
    for first in combinations(range(4), 1):
        for second in combinations(range(4, 7), 2):
            w = np.zeros(7, np.int64)
            w[[*first, *second]] = 1
            scores.append(effect_scores(w, treated_shares(w, stratum), control + w * effect - expected))
    np.testing.assert_allclose(np.mean(scores, axis=0), effect, atol=1e-12)


def test_another_deal_keeps_each_stratums_share():
    rng = np.random.default_rng(0)
    stratum, w = rng.integers(5, size=500), (rng.random(500) < 0.3).astype(np.int64)
    again = [dealt_again(w, stratum, seed) for seed in range(200)]
    for one in again:
        np.testing.assert_array_equal(np.bincount(stratum, one, 5), np.bincount(stratum, w, 5))
    share = np.mean(again, axis=0) - treated_shares(w, stratum)
    assert np.abs(share).max() < 5 * np.sqrt(0.25 / 200), "some units are dealt treatment more often than others"


def test_measures_of_a_ranking_by_hand():
    """Gain curve of scores 4, 0, 2, -2 taken in this order: 1, 1, 1.5, 1 at quarters; the random line ends at 1."""
    one, score = np.ones((4, 1)), np.array([4.0, 0, 2, -2])
    best = measures(np.array([9.0, 8, 7, 6]), score, np.zeros(4, np.int64), [0.25, 0.5], one)
    np.testing.assert_allclose(best, [[(0.5 + 1 + 1.25 + 1.25) / 4 - 0.5, 1.0, 1.0]])
    tied = measures(np.zeros(4), score, np.zeros(4, np.int64), [0.25, 0.5], one)
    np.testing.assert_allclose(tied, [[0.0, 0.25, 0.5]], atol=1e-12)
    weighed = measures(np.array([9.0, 8, 7, 6]), score, np.zeros(4, np.int64), [0.5], np.array([[1.0], [0], [1], [0]]))
    np.testing.assert_allclose(weighed, [[(1 + 2.5) / 2 - 1.5, 2.0]])


def test_units_are_ranked_within_their_fold():
    rng = np.random.default_rng(1)
    predicted, score, fold = rng.normal(size=300), rng.normal(size=300), rng.integers(5, size=300)
    one = np.ones((300, 1))
    shifted = measures(predicted + 10 * fold, score, fold, [0.2], one)
    np.testing.assert_allclose(shifted, measures(predicted, score, fold, [0.2], one))


def straight_lines(x, y, w, fold):
    """Effects by least squares in each arm of the other folds."""
    design, effect = np.column_stack([np.ones(len(x)), x]), np.empty(len(y))
    for f in np.unique(fold):
        arms = [(fold != f) & (w == k) for k in (0, 1)]
        control, treated = (np.linalg.lstsq(design[arm], y[arm], rcond=None)[0] for arm in arms)
        effect[fold == f] = design[fold == f] @ (treated - control)
    return effect


def by_heart(group, y, w, fold):
    """Each group's difference of arms in the other folds, nought where they did not see it."""
    effect = np.zeros(len(y))
    for f in np.unique(fold):
        rest = pd.DataFrame({"group": group, "w": w, "y": y})[fold != f]
        means = rest.groupby(["group", "w"]).y.mean().unstack()
        effect[fold == f] = (means[1] - means[0]).reindex(group[fold == f]).fillna(0.0)
    return effect


def simulated(draw, n=400, share=0.5, signal=0.15, clusters=0, shock=0.0):
    """(x [n, 6], w, y, cluster): the effect is signal (x0 + x1), and a cluster's own."""
    rng = np.random.default_rng(draw)
    cluster = rng.integers(clusters, size=n) if clusters else np.arange(n)
    x = rng.normal(size=(n, 6))
    if clusters:
        x = 0.9 * rng.normal(size=(clusters, 6))[cluster] + 0.44 * x
    w = (rng.random(n) < share).astype(np.int64)
    effect = signal * (x[:, 0] + x[:, 1]) + shock * rng.normal(size=clusters or n)[cluster]
    return x, w, effect * w + rng.normal(size=n), cluster


def judged(ours, peer, w, y, cluster):
    """Ours less the peer's, learners as in Judge."""
    key = unit_hashes(pa.array(cluster), "cluster")
    judge = Judge(w, np.zeros(len(w), np.int64), key, y - y.mean(), resamples=100)
    both = widening(judge.placebos(ours), judge.placebos(peer))
    return Difference.of(judge.reached(ours), judge.reached(peer), both)


def differences(ours, peer, draws, **trial):
    """Of least squares on two sets of columns, for each draw."""
    out = []
    for draw in range(draws):
        x, w, y, cluster = simulated(draw, **trial)
        learners = (partial(straight_lines, x[:, columns], y) for columns in (ours, peer))
        out.append(judged(*learners, w, y, cluster))
    return out


def covered(found):
    """Share of the intervals of the Qini, and of those by bootstrap alone, that hold zero."""
    apart, bootstrap, error = (
        np.array([getattr(one, part)[0] for one in found]) for part in ("apart", "bootstrap", "error")
    )
    return np.mean(np.abs(apart) <= Z95 * error), np.mean(np.abs(apart) <= Z95 * bootstrap)


KINDS = {
    "plain": {},
    "nothing to find": {"signal": 0.0},
    "unlike arms": {"share": 0.7, "signal": 0.3},
    "clusters": {"n": 600, "clusters": 60, "shock": 0.7},
}
# Alike: each has one of the two columns that matter and two that do not.
ALIKE = ([0, 2, 4], [1, 3, 5])


def test_learners_that_are_alike_are_within_chance():
    assert covered(differences(*ALIKE, draws=30))[0] >= 0.85


@pytest.mark.simulation
@pytest.mark.parametrize("kind", KINDS)
def test_learners_that_are_alike_are_within_chance_19_times_of_20(kind):
    """The bootstrap given the fits alone does not suffice."""
    whole, bootstrap = covered(differences(*ALIKE, draws=300, **KINDS[kind]))
    print(f"{kind}: intervals of like learners' difference hold zero in {whole:.3f}, by bootstrap in {bootstrap:.3f}")
    assert whole >= 0.93
    assert bootstrap < 0.9


def test_a_better_learner_is_ahead_and_a_worse_one_behind():
    right, wrong = [0, 1], [2, 3]
    assert [one.verdict for one in differences(right, wrong, 3, n=2000, signal=0.3)] == ["ahead"] * 3
    assert [one.verdict for one in differences(wrong, right, 3, n=2000, signal=0.3)] == ["behind"] * 3


def test_what_is_learnt_of_a_cluster_by_heart_counts_nowhere_else():
    """A learner of clusters is ahead only where a cluster's units are both learnt from and judged on."""
    verdicts = {}
    for together in (True, False):
        x, w, y, cluster = simulated(3, n=3000, clusters=60, shock=1.0)
        learners = partial(by_heart, cluster, y), partial(straight_lines, x[:, [2, 3]], y)
        verdicts[together] = judged(*learners, w, y, cluster if together else np.arange(len(y))).verdict
    assert verdicts == {True: "within chance", False: "ahead"}


def test_clusters_share_a_fold_that_differs_between_repeats():
    cluster = np.random.default_rng(0).integers(50, size=1000)
    key = unit_hashes(pa.array(cluster), "cluster")
    folds = [pd.Series(fold_of(key, 5, repeat)) for repeat in range(2)]
    assert all((fold.groupby(cluster).nunique() == 1).all() for fold in folds)
    assert (folds[0] != folds[1]).mean() > 0.5


def test_like_rankings_have_no_difference_and_no_error():
    x, w, y, cluster = simulated(0)
    learner = partial(straight_lines, x, y)
    same = judged(learner, learner, w, y, cluster)
    assert same.verdict == "within chance"
    assert same.error.tolist() == [0.0] * 3


def test_rows_are_complete_and_in_strata_with_both_arms():
    frame = pd.DataFrame(
        {"a": [1.0, None, 3, 4, 5, 6], "y": [0.0, 1, None, 1, 0, 1], "village": ["n", "n", "n", "s", "s", "w"]}
    )
    rows = rows_of(frame, pd.Series([1, 0, 1, 1, 0, 1]), ["y"], ["a"], "village", "village")
    assert rows.outcomes["y"].tolist() == [0, 1, 1, 0]  # one has no outcome, one is alone in its village
    np.testing.assert_array_equal(rows.matrix, [[1, 0.5], [np.nan, 0.5], [4, 0.5], [5, 0.5]])
    assert rows.stratum.tolist() == rows.cluster.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", TRIALS)
def test_real_trials_have_both_arms_in_each_stratum(name):
    try:
        rows = TRIALS[name]()
    except NotHere as reason:
        pytest.skip(f"{name}: {reason}")
    share = treated_shares(rows.w, rows.stratum)
    assert len(rows.w) > 1000
    assert 0 < share.min() <= share.max() < 1
    assert set(rows.outcomes).isdisjoint(rows.frame.columns)
    assert all(np.isfinite(y).all() and y.std() > 0 for y in rows.outcomes.values())
    assert np.isfinite(rows.matrix).mean() > 0.9
