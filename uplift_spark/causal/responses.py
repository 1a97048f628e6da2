"""Effects told from a response: the regression of the outcome on a treatment basis φ, solved once from sums over trees.

Where doses are cells (`causal.doses`) or levels have several doses, an effect is φ(w)'θ - φ(control)'θ with θ the
coefficient of Y on φ(W) near the unit (Athey, Tibshirani & Wager 2019, s. 6; Hastie & Tibshirani 1993). Leaf sums by
cell are all it takes: any basis is a linear map of them, and effects at doses that nobody asked for when the forest was
trained, or of one unit of dose more, come from the same file.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from uplift_spark.causal.criteria import CRITERIA, dose_matrix
from uplift_spark.causal.kernels import IN_CACHE, debiased_variance, sum_shares
from uplift_spark.causal.lanes import LANES
from uplift_spark.causal.routing import BLOCK, new_lists
from uplift_spark.causal.rows import Plan

_STEP = 1e-4  # of the range of doses, for derivatives
_PIVOT = 1e-8


def told_map(plan: Plan) -> np.ndarray:
    """What θ counts for in each effect of the plan, float64 [L, q]; [0, 0] for one whose levels speak for themselves.

    An effect is that of a dose of `told` against the control's or, with `partial`, that of one unit more of it. Raises
    ConfigError for a basis that knows no doses between the levels.
    """
    if plan.told is None:
        return np.zeros((0, 0))
    criterion, doses = CRITERIA[plan.criterion], dose_matrix(plan.told)
    if plan.partial:
        step = _STEP * np.ptp(dose_matrix(plan.levels))
        ends = [criterion.at(plan.levels, doses[1:] + side) for side in (step, -step)]
        return np.ascontiguousarray((ends[0] - ends[1]).T / (2 * step))
    phi = criterion.at(plan.levels, doses)
    return np.ascontiguousarray((phi[:, 1:] - phi[:, :1]).T)


def moments(values: np.ndarray, basis: np.ndarray, supporting: np.ndarray) -> np.ndarray:
    """Basis moments of leaves: float64 [leaves, M], M = 3 + 2q + q (q + 1) / 2.

    Per row of a leaf: 1 (-1 in a leaf without rows), mean outcome, mean φ (q), mean φy (q), mean φφ' (lower triangle),
    and 1 where the leaf supports effects.

    values      float64 [leaves, K, 2]: Σw_k / Σw and Σwy_k / Σw, -1 in the first place of an empty leaf
    basis       φ of every cell, float64 [q, K]
    supporting  bool [leaves]
    """
    empty = values[:, :1, 0] < 0
    n, s = np.where(empty, 0.0, values[:, :, 0]), values[:, :, 1]
    pairs = np.stack([basis[a] * basis[b] for a in range(len(basis)) for b in range(a + 1)])
    parts = [1.0 - 2.0 * empty, s.sum(axis=1, keepdims=True)]
    parts += [n @ basis.T, s @ basis.T, n @ pairs.T, supporting[:, None].astype(np.float64)]
    return np.concatenate(parts, axis=1)


@nb.njit(cache=True, nogil=True, inline="always")
def _score(m, fit, q, score):
    """What moments m say against the fit (a, θ, mean φ) of all trees: Σ(φ - mean φ)(y - a - φ'θ), into score [q]."""
    misfit = m[1] - fit[0] * m[0]
    for a in range(q):
        misfit -= fit[1 + a] * m[2 + a]
    at = 2 + 2 * q
    for a in range(q):
        score[a] = m[2 + q + a] - fit[0] * m[2 + a] - fit[1 + q + a] * misfit
    for a in range(q):
        for b in range(a + 1):
            score[a] -= fit[1 + b] * m[at]
            if b < a:
                score[b] -= fit[1 + a] * m[at]
            at += 1


@nb.njit(cache=True, nogil=True)
def _fit(m, told, fit, weight):
    """Solve the response from moments m, summed over trees: writes fit (a, θ, mean φ) and weight [L, q], what a score
    counts for in each effect. False where the moments do not determine it."""
    effects, q = told.shape
    scatter, at = np.empty((q, q)), 2 + 2 * q
    for a in range(q):
        fit[1 + q + a] = m[2 + a] / m[0]
        for b in range(a + 1):
            scatter[a, b] = scatter[b, a] = m[at] - m[2 + a] * m[2 + b] / m[0]
            at += 1
    for a in range(q):  # Cholesky, in place
        largest = scatter[a, a]
        for b in range(a + 1):
            for c in range(b):
                scatter[a, b] -= scatter[a, c] * scatter[b, c]
            if a == b:
                if not scatter[a, a] > _PIVOT * largest:
                    return False
                scatter[a, a] = math.sqrt(scatter[a, a])
            else:
                scatter[a, b] /= scatter[b, b]
    for line in range(effects + 1):
        x = weight[line] if line < effects else fit[1 : 1 + q]
        for a in range(q):
            x[a] = told[line, a] if line < effects else m[2 + q + a] - m[2 + a] * m[1] / m[0]
            for b in range(a):
                x[a] -= scatter[a, b] * x[b]
            x[a] /= scatter[a, a]
        for a in range(q - 1, -1, -1):
            for b in range(a + 1, q):
                x[a] -= scatter[b, a] * x[b]
            x[a] /= scatter[a, a]
    fit[0] = m[1] / m[0]
    for a in range(q):
        fit[0] -= fit[1 + a] * fit[1 + q + a]
    return True


@nb.njit(cache=True, nogil=True)
def _solve(totals, counts, told, state, effect, support):
    """Effects of a block's rows; state is (fit [block, 1 + 2q], weight [block, L, q], centre [B, block, L]), written.

    Counts are replaced by what pulls are stretched by, as in `kernels._solve`.
    """
    fit, weight, centre = state
    effects, q = told.shape
    score = np.empty(q)
    for j in range(effect.shape[0]):
        m = np.zeros(totals.shape[2])
        for b in range(totals.shape[0]):
            m += totals[b, j]
        known = m[0] > 0.0 and _fit(m, told, fit[j], weight[j])
        trees = counts[:, j].sum()
        for k in range(effects):
            effect[j, k] = np.nan
            support[j, k] = m[-1] / max(trees, 1.0)
            if known:
                effect[j, k] = 0.0
                for a in range(q):
                    effect[j, k] += told[k, a] * fit[j, 1 + a]
                    weight[j, k, a] *= trees
        for b in range(totals.shape[0]):
            if known:
                _score(totals[b, j], fit[j], q, score)
            for k in range(effects):
                centre[b, j, k] = 0.0
                if known and counts[b, j] > 1.0:
                    for a in range(q):
                        centre[b, j, k] += weight[j, k, a] * score[a] / counts[b, j]
            counts[b, j] = math.sqrt(counts[b, j] / max(counts[b, j] - 1.0, 1.0))


@nb.njit(cache=True, nogil=True)
def _spread(leaves, values, design, block, variance):
    """Little-bag variance of each effect of a block, as `kernels._spread`."""
    stretch, fit, weight, centre = block
    bag, n_buckets, _ = design
    effects, q = weight.shape[1:]
    score, sums, squares = np.empty(q), np.empty(effects), np.empty(effects)
    between, within = np.empty(effects), np.empty(effects)
    for j in range(variance.shape[0]):
        groups = 0.0
        between[:], within[:] = 0.0, 0.0
        for first in range(0, leaves.shape[0], bag):
            trees = 0.0
            sums[:], squares[:] = 0.0, 0.0
            for t in range(first, first + bag):
                if leaves[t, j] < 0:
                    continue
                trees += 1.0
                _score(values[leaves[t, j]], fit[j], q, score)
                for k in range(effects):
                    pull = -centre[t % n_buckets, j, k]
                    for a in range(q):
                        pull += weight[j, k, a] * score[a]
                    pull *= stretch[t % n_buckets, j]
                    sums[k] += pull
                    squares[k] += pull * pull
            if trees < 2.0:
                continue
            groups += 1.0
            for k in range(effects):
                mean = sums[k] / trees
                between[k] += mean * mean
                within[k] += (squares[k] / trees - mean * mean) / (trees - 1.0)
        for k in range(effects):
            variance[j, k] = (
                debiased_variance(between[k] / groups, within[k] / groups, groups) if groups >= 2.0 else np.nan
            )


@nb.njit(cache=True, nogil=True)
def predict_responses(routes, values, design, rows, told, with_errors, out):
    """`kernels.predict` of effects told @ θ: values are `moments`, told float64 [L, q], out float64 [n, L] each."""
    bins, halves = rows
    effect, variance, support = out
    (effects, q), n_buckets = told.shape, min(design[1], len(routes.rounds))
    if not with_errors:
        n_buckets = 1
    design = (design[0], n_buckets, design[2])
    block = min(BLOCK, max(4, IN_CACHE // (n_buckets * values.shape[1] * LANES)) * LANES)
    lists, leaves = new_lists(bins.shape[1]), np.full((len(routes.rounds), block), -1, np.int32)
    totals, counts = np.empty((n_buckets, block, values.shape[1])), np.empty((n_buckets, block))
    state = np.zeros((block, 1 + 2 * q)), np.zeros((block, effects, q)), np.empty((n_buckets, block, effects))
    for low in range(0, bins.shape[0], block):
        here = min(block, bins.shape[0] - low)
        part = slice(low, low + here)
        sum_shares(routes, values, (bins, halves, low, here), design, lists, leaves, totals, counts)
        _solve(totals, counts, told, state, effect[part], support[part])
        if with_errors:
            _spread(leaves, values, design, (counts, *state), variance[part])
            for j in range(here):
                if np.isnan(effect[low + j, 0]):
                    variance[low + j] = np.nan


@nb.njit(cache=True, nogil=True)
def average_responses(routes, values, design, rows, told, pulls, effects, counts):
    """`kernels.average_pulls` of effects told @ θ: values are `moments`, told float64 [L, q]."""
    bins, segment = rows
    (width, q), n_buckets = told.shape, min(design[1], len(routes.rounds))
    halves = np.zeros((bins.shape[0], 0), np.uint64)
    lists, leaves = new_lists(bins.shape[1]), np.empty((len(routes.rounds), BLOCK), np.int32)
    totals, speaking = np.empty((n_buckets, BLOCK, values.shape[1])), np.empty((n_buckets, BLOCK))
    fit, weight = np.zeros((BLOCK, 1 + 2 * q)), np.zeros((BLOCK, width, q))
    centre, score = np.empty((n_buckets, BLOCK, width)), np.empty(q)
    effect, support = np.empty((BLOCK, width)), np.empty((BLOCK, width))
    for low in range(0, bins.shape[0], BLOCK):
        here = min(BLOCK, bins.shape[0] - low)
        sum_shares(routes, values, (bins, halves, low, here), design, lists, leaves, totals, speaking)
        _solve(totals, speaking, told, (fit, weight, centre), effect[:here], support[:here])
        for j in range(here):
            if np.isnan(effect[j].sum()):
                continue
            s = segment[low + j]
            counts[s] += 1.0
            effects[s] += effect[j]
            for t in range(leaves.shape[0]):
                if leaves[t, j] < 0:
                    continue
                _score(values[leaves[t, j]], fit[j], q, score)
                for k in range(width):
                    for a in range(q):
                        pulls[s, t, k] += weight[j, k, a] * score[a]
