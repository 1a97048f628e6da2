"""How good a ranking of units is in a trial, and how sure of it one trial lets us be.

A unit's score stands in for its effect, without bias where the probability e of being treated is known:

    score = (w - e) / (e (1 - e)) * (y - m)        m expected of the outcome, by models that did not see the unit

It is the doubly robust score of two arms, of whose two outcome means only e m0 + (1 - e) m1 matters; any m is right,
and one that says nothing of the arms serves every other deal of the treatment, too. Units are ranked within their fold:
a model that saw a fold's high effects less predicts less for it, so ranks over folds would lean against every learner.

How far learners are apart is uncertain in two ways, and deals of the folds tell of neither, as they share their units:
which units there are to judge on, and what the fits made of them. The bootstrap of units or clusters, given the fits,
knows the first only. Placebos, treatment dealt again and everything fitted anew, tell of both where no effect is; how
many times as large as their bootstrap errors they are is by how much the trial's own bootstrap error is widened.

Axes: n units, R resamples, M measures: the Qini, then the gain at each share treated, all per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

from uplift_spark.stats.curves import true_curve
from uplift_spark.stats.intervals import poisson_weights, resampled_error
from uplift_spark.stats.moments import normal_quantile, ratio
from uplift_spark.stats.sampling import mix64_all

Z95 = normal_quantile(0.95)
Learner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def treated_shares(w: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Share of the treated in each unit's stratum, [n]; 0 or 1 where a stratum lacks an arm."""
    return pd.Series(np.asarray(w, np.float64)).groupby(stratum).transform("mean").to_numpy()


def effect_scores(w: np.ndarray, share: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Scores [n] from treatment (0 or 1), its probability and what was not expected of the outcome."""
    return np.asarray((w - share) / (share * (1 - share)) * residual)


def dealt_again(w: np.ndarray, stratum: np.ndarray, seed: int) -> np.ndarray:
    """Treatment [n] shuffled among the units of each stratum."""
    shuffled = np.random.default_rng(seed).random(len(w))
    from_, to = np.lexsort((shuffled, stratum)), np.argsort(stratum, kind="stable")
    again = np.empty_like(w)
    again[to] = w[from_]
    return again


def fold_of(key: np.ndarray, folds: int, repeat: int) -> np.ndarray:
    """Fold [n] by hashes uint64 [n] of units or clusters, another for each repeat."""
    return (mix64_all(key, np.uint64(repeat), np.uint64(0x7472)) % np.uint64(folds)).astype(np.int64)


def measures(
    predicted: np.ndarray, score: np.ndarray, fold: np.ndarray, shares: Sequence[float], weight: np.ndarray
) -> np.ndarray:
    """Qini and gains [R, M] of a ranking by predicted effects [n], units weighed by weight [n, R]."""
    total = np.zeros((weight.shape[1], 1 + len(shares)))
    for f in np.unique(fold):
        mine = np.flatnonzero(fold == f)
        mine = mine[np.argsort(-predicted[mine], kind="stable")]
        starts = np.flatnonzero(np.r_[True, np.diff(predicted[mine]) != 0])  # ties share a bin
        units = np.add.reduceat(weight[mine].astype(np.float64), starts, axis=0).T
        sums = np.add.reduceat(weight[mine] * score[mine, None], starts, axis=0).T
        curve = true_curve(units, sums)
        total += units.sum(axis=1, keepdims=True) * np.column_stack([curve.qini, curve.at(np.array(shares))])
    return np.asarray(total / weight.sum(axis=0, dtype=np.float64)[:, None])


@dataclass(frozen=True)
class Judge:
    """One outcome of one trial, by which learners are judged. A learner is a function from treatment and folds, int64
    [n] each, to the units' effects [n] by models of the other folds.

    w, stratum  treated or not, and within which units it was dealt, int64 [n] each
    key         hashes of units or of the clusters that share a fold and a resample, uint64 [n]
    residual    what was not expected of the outcome, without knowing the arm, [n]
    shares      treated shares at which gains are taken
    folds       number of folds
    repeats     deals of the folds over which measures are averaged
    redeals     placebos
    resamples   R; a quarter of them for each placebo
    """

    w: np.ndarray
    stratum: np.ndarray
    key: np.ndarray
    residual: np.ndarray
    shares: Sequence[float] = (0.2, 0.5)
    folds: int = 5
    repeats: int = 1
    redeals: int = 10
    resamples: int = 200

    def reached(self, learner: Learner) -> np.ndarray:
        """Measures [1 + R, M]: those of the trial, then those of resamples, which all learners share."""
        return self._measures(learner, self.w, self.resamples)

    def placebos(self, learner: Learner) -> np.ndarray:
        """Measures [redeals, 1 + R/4, M] after each deal of the treatment anew, which all learners share."""
        deals = (dealt_again(self.w, self.stratum, 1 + deal) for deal in range(self.redeals))
        return np.array([self._measures(learner, w, self.resamples // 4) for w in deals])

    def _measures(self, learner: Learner, w: np.ndarray, resamples: int) -> np.ndarray:
        weight = np.column_stack([np.ones(len(w), np.uint8), poisson_weights(self.key, 11, resamples)])
        score, total = effect_scores(w, treated_shares(w, self.stratum), self.residual), 0.0
        for repeat in range(self.repeats):
            fold = fold_of(self.key, self.folds, repeat)
            total = total + measures(learner(w, fold), score, fold, self.shares, weight)
        return np.asarray(total / self.repeats)


def widening(ours: np.ndarray, peer: np.ndarray) -> np.ndarray:
    """By how much the bootstrap error of ours less the peer's is too small, [M], at least 1: from placebos of both.

    Nobody has anything to find there, so the expected difference is zero and its mean square the whole variance, which
    is set against the variance by bootstrap. Student's t allows for there being few placebos.
    """
    apart = ours - peer
    given_fits = resampled_error(np.moveaxis(apart[:, 1:], 1, 0))
    times = np.sqrt(ratio((apart[:, 0] ** 2).mean(axis=0), (given_fits**2).mean(axis=0)))
    return np.fmax(1.0, scipy.stats.t.ppf(0.975, len(apart)) / Z95 * times)


@dataclass(frozen=True)
class Difference:
    """Ours less a peer's measures, [M], from `Judge.reached` of both, and by how much to widen bootstrap errors."""

    apart: np.ndarray
    bootstrap: np.ndarray
    widened: np.ndarray

    @classmethod
    def of(cls, ours: np.ndarray, peer: np.ndarray, widened: np.ndarray) -> Difference:
        """From measures [1 + R, M]."""
        return cls((ours - peer)[0], resampled_error((ours - peer)[1:]), widened)

    @property
    def error(self) -> np.ndarray:
        """Standard error [M]: 1.96 of them make a 95 % interval."""
        return self.bootstrap * self.widened

    @property
    def verdict(self) -> str:
        """Whether our Qini is ahead or behind by more than chance."""
        half = Z95 * self.error[0]
        return "ahead" if self.apart[0] > half else "behind" if self.apart[0] < -half else "within chance"
