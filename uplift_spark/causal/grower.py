"""Growing one tree level by level, with a sparse split prior learnt from all nodes of a level together.

Most features do not move the effect. A forest that tries them all at every node splits deep nodes on noise, which makes
leaves small without making them homogeneous. Here the evidence for a feature is pooled over the nodes of a level: its
gain in nats less what noise would show; its share of all evidence is the prior probability that a split is on it
(Linero 2018's sparse split prior, by empirical Bayes), and a node takes the split with the largest posterior. A *pilot*
tree on all growing rows of a bucket learns the evidence; the bucket's trees then try the features that have some. All
of it sees growing rows only, so honesty is untouched.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.causal.nodes import CATEGORICAL, MAX_SETS, goes_right, leaf_word, outside, split_word
from uplift_spark.causal.splits import (
    Split,
    best_split,
    explained,
    histogram,
    noise_level,
    null_gain,
    root_floor,
    split_scratch,
)

SPARSITY = 5.0  # prior evidence in nats over all features: .2 to 5 are alike on strong signals, more helps weak ones
CLEAR = 2.0  # nats of evidence below which nothing is known and every feature is tried alike
KEPT = 0.001  # share of the best feature's evidence below which a feature is no longer tried


class Shape(NamedTuple):
    """Of the columns: basis float64 [q, K], n_bins int64 [p], categorical bool [p], centred (0 for a regression)."""

    basis: np.ndarray
    n_bins: np.ndarray
    categorical: np.ndarray
    centred: float


@nb.njit(cache=True, nogil=True)
def _partition(column, rows, buffer, start, stop, word, members):
    """Reorder the node's rows in place, left child first, order kept; returns where the right child starts."""
    index, level, weight, outcome = rows
    b_index, b_level, b_weight, b_outcome = buffer
    at, held = start, 0
    by_set = word & np.uint64(CATEGORICAL) != 0
    for i in range(start, stop):
        b = np.int64(column[index[i]])
        right = outside(members, 0, b) if by_set else goes_right(word, b)
        # Both places are written and one is moved on: no branch to mispredict.
        b_index[held], b_level[held], b_weight[held], b_outcome[held] = index[i], level[i], weight[i], outcome[i]
        index[at], level[at], weight[at], outcome[at] = index[i], level[i], weight[i], outcome[i]
        held += right
        at += 1 - right
    for i in range(held):
        index[at + i], level[at + i] = b_index[i], b_level[i]
        weight[at + i], outcome[at + i] = b_weight[i], b_outcome[i]
    return at


@nb.njit(cache=True, nogil=True)
def _heavy(weight, start, stop, total, min_leaf):
    """Whether a node weighs enough for two leaves; sums only where row counts leave it open."""
    if total == weight.size:
        return stop - start >= 2 * min_leaf
    return weight[start:stop].sum() >= 2 * min_leaf


@nb.njit(cache=True, nogil=True)
def _features(evidence, mtry):
    """Features to try at this depth: those with evidence, else all; at most mtry, the best ones first."""
    p = evidence.size
    best = evidence.max()
    order = np.argsort(-evidence, kind="mergesort")
    count = p
    if best > CLEAR:
        count = 0
        while count < p and evidence[order[count]] > max(0.5, KEPT * best):
            count += 1
    elif mtry < p:  # nothing is known: a random choice, another one at each depth
        order = np.random.permutation(p)
    return np.sort(order[: min(count, mtry)])


@nb.njit(cache=True, nogil=True)
def _score_level(columns, rows, setting, frontier, active, scratch):
    """Best split of every (node, feature) of a level, Split fields as arrays [nodes, features], and its excess in nats.

    The excess is half of gain / noise less its expectation where there is no effect; -1e300 where no split is allowed.
    """
    shape, limits, floor, noise, total_weight = setting
    shaped = (frontier.shape[0], active.size)
    gain, excess = np.full(shaped, -1.0), np.full(shaped, -1e300)
    cut, missing_left = np.zeros(shaped, np.int64), np.zeros(shaped, np.bool_)
    hist = scratch[0]
    for v in range(frontier.shape[0]):
        start, stop = frontier[v, 1], frontier[v, 2]
        if not _heavy(rows[2], start, stop, total_weight, limits.min_leaf):
            continue
        parent = -1.0
        for j in range(active.size):
            f = active[j]
            histogram(columns[f], rows, start, stop, shape.n_bins[f], hist)
            split, total, bins = best_split(hist, f, shape, limits, floor, noise, scratch)
            if split.feature < 0:
                continue
            if parent < 0.0:
                parent = max(explained(total, floor, scratch[4][2]), 0.0)
            gain[v, j] = split.gain - parent
            cut[v, j], missing_left[v, j] = split.threshold, split.missing_left
            expected = null_gain(bins, shape.categorical[f], floor.size)
            excess[v, j] = 0.5 * (gain[v, j] / noise - expected) if noise > 0.0 else 0.0
    return gain, cut, missing_left, excess


@nb.njit(cache=True, nogil=True)
def _learn(excess, active, running, evidence):
    """Add a level's pooled excess to each feature's running sum; its evidence is the largest sum so far, ≥ 0."""
    for j in range(active.size):
        f = active[j]
        for v in range(excess.shape[0]):
            if excess[v, j] > -1e299:
                running[f] += excess[v, j]
        evidence[f] = max(evidence[f], running[f])


@nb.njit(cache=True, nogil=True)
def _log_prior(evidence, active):
    """Log of each active feature's share of the evidence: float64 [a]."""
    total = evidence.sum()
    out = np.empty(active.size)
    for j in range(active.size):
        out[j] = math.log((SPARSITY / evidence.size + evidence[active[j]]) / (SPARSITY + total))
    return out


@nb.njit(cache=True, nogil=True)
def _choose(v, scores, active, prior, min_gain):
    """The node's split of largest posterior and that posterior in nats; feature -1 if none gains enough."""
    gain, cut, missing_left, excess = scores
    best, at = -1e300, -1
    for j in range(active.size):
        if gain[v, j] > min_gain and excess[v, j] + prior[j] > best:
            best, at = excess[v, j] + prior[j], j
    if at < 0:
        return Split(-1.0, -1, 0, False), best
    return Split(gain[v, at], active[at], cut[v, at], missing_left[v, at]), best


@nb.njit(cache=True, nogil=True)
def _members(columns, rows, node, split, setting, scratch):
    """The set of categories that goes left, uint64 [1, 4]; found again, as only winners need it."""
    shape, limits, floor, noise, _ = setting
    histogram(columns[split.feature], rows, node[1], node[2], shape.n_bins[split.feature], scratch[0])
    best_split(scratch[0], split.feature, shape, limits, floor, noise, scratch)
    return scratch[5].copy().reshape(1, 4)


@nb.njit(cache=True, nogil=True)
def _with_set(sets, n_sets, members):
    """`sets` with `members` at n_sets, doubled when full."""
    if n_sets == sets.shape[0]:
        bigger = np.zeros((2 * n_sets, 4), np.uint64)
        bigger[:n_sets] = sets
        sets = bigger
    sets[n_sets] = members[0]
    return sets


@nb.njit(cache=True, nogil=True)
def grow_tree(columns, rows, shape, limits, seed, known):
    """Grow one tree level by level.

    columns  uint8 [p, N]: bins of the bucket's rows, a row of memory per feature
    rows     (index int32 [n] into the columns, level uint8 [n], weight int64 [n], outcome int64 [n]); reordered
    seed     uint64 of this tree; matters where mtry leaves features out
    known    evidence for each feature in nats, float64 [p], from a pilot; all zero: learn it here
    Returns (nodes uint64 [N], sets uint64 [S, 4], number of leaves, evidence float64 [p], explained effect in nats).
    """
    np.random.seed(np.int64(seed & np.uint64(0x7FFFFFFF)))
    n, p = rows[0].size, columns.shape[0]
    buffer = (np.empty_like(rows[0]), np.empty_like(rows[1]), np.empty_like(rows[2]), np.empty_like(rows[3]))
    floor = root_floor(rows, shape, limits)
    setting = (shape, limits, floor, noise_level(rows, shape), rows[2].sum())
    scratch = split_scratch(shape.n_bins.max(), shape.basis)
    learning = known.max() <= CLEAR
    evidence, running = known.copy(), np.zeros(p)
    nodes, sets = np.zeros(3 + 2 * n, np.uint64), np.zeros((16, 4), np.uint64)
    frontier = np.array([[0, 0, n]])
    used, leaves, n_sets, found = 1, 0, 0, 0.0
    for depth in range(limits.max_depth + 1):
        deeper, last = np.empty((2 * frontier.shape[0], 3), np.int64), depth == limits.max_depth
        active = _features(evidence, limits.mtry) if not last else np.empty(0, np.int64)
        scores = _score_level(columns, rows, setting, frontier, active, scratch)
        if learning:
            _learn(scores[3], active, running, evidence)
        prior, added = _log_prior(evidence, active), 0
        for v in range(frontier.shape[0]):
            node, start, stop = frontier[v]
            split, posterior = _choose(v, scores, active, prior, limits.min_gain)
            if split.feature < 0 or n_sets == MAX_SETS:
                nodes[node] = leaf_word(leaves)
                leaves += 1
                continue
            by_set = shape.categorical[split.feature]
            members = np.zeros((1, 4), np.uint64)
            if by_set:
                members = _members(columns, rows, frontier[v], split, setting, scratch)
                sets = _with_set(sets, n_sets, members)
            nodes[node] = split_word(split, used, n_sets, by_set)
            n_sets += by_set
            middle = _partition(columns[split.feature], rows, buffer, start, stop, nodes[node], members)
            deeper[added] = (used, start, middle)
            deeper[added + 1] = (used + 1, middle, stop)
            added, used = added + 2, used + 2
            found += 0.5 * split.gain / setting[3] if posterior > 0.0 else 0.0
        frontier = deeper[:added]
        if added == 0:
            break
    return nodes[:used].copy(), sets[:n_sets].copy(), leaves, evidence, found
