"""Cross-fitted nuisances: of a unit's own fold nothing is seen, and an arm that is missing is named."""

from __future__ import annotations

import numpy as np
import pytest

from uplift_spark.causal.crossfit import fit_nuisances, fold_of
from uplift_spark.vocabulary import DataError

NAMES = ("none", "mail", "call")


def rows(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 20, (n, 3)).astype(np.uint8)
    place = (rng.random(n) < 0.2 + 0.6 * (bins[:, 0] > 9)).astype(np.int64) + (bins[:, 2] > 14)
    return bins, place, (rng.random(n) < 0.1 + 0.3 * (bins[:, 1] > 9) + 0.2 * (place == 1)).astype(float)


def test_what_is_learnt_is_what_made_the_rows():
    bins, place, outcome = rows(20_000)
    fitted = fit_nuisances(bins, place, outcome, NAMES, np.zeros(3, bool), 7)
    new, *_ = rows(4000, 1)
    expected, odds = fitted.expected(new), fitted.propensity(new)
    base = 0.1 + 0.3 * (new[:, 1] > 9)
    assert expected.shape == odds.shape == (4000, 3) and odds.sum(axis=1) == pytest.approx(1.0)
    assert np.abs(expected[:, 0] - base).mean() < 0.03 and np.abs(expected[:, 1] - base - 0.2).mean() < 0.03
    high, more = new[:, 0] > 9, new[:, 2] > 14
    low = np.where(high, 0.2, 0.8)
    truth = np.zeros((4000, 3))
    truth[np.arange(4000), more.astype(int)] += low  # the third feature moves everybody one level up
    truth[np.arange(4000), 1 + more] += 1 - low
    assert np.abs(odds - truth).mean() < 0.02


def test_folds_follow_the_key_alone():
    key = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
    fold = fold_of(key, 7, 5)
    assert np.array_equal(fold_of(key[::-1], 7, 5), fold[::-1]) and np.bincount(fold).min() > 900
    assert not np.array_equal(fold_of(key, 8, 5), fold)


def test_a_constant_outcome_is_expected_of_everybody():
    bins, place, outcome = rows()
    outcome[place == 1] = 0.0
    fitted = fit_nuisances(bins, place, outcome, NAMES, np.zeros(3, bool), 7)
    assert (fitted.expected(bins)[:, 1] == 0).all()


def test_a_missing_arm_is_named():
    bins, place, outcome = rows()
    kept = place != 2
    with pytest.raises(DataError, match="received call: use fewer"):
        fit_nuisances(bins[kept], place[kept], outcome[kept], NAMES, np.zeros(3, bool), 7)
