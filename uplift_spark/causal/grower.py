"""Growing one tree depth first, its rows kept grouped by node so that histograms read memory in order."""

from __future__ import annotations

import numba as nb
import numpy as np

from uplift_spark.causal.hashing import FEATURES, mix
from uplift_spark.causal.nodes import LEAF, MAX_SETS, goes_left, node_feature, split_word
from uplift_spark.causal.splits import Split, best_split, histogram, root_floor, split_scratch


@nb.njit(cache=True, nogil=True)
def _sample_features(n_features, mtry, seed, node, out):
    """The first mtry of a Fisher-Yates shuffle keyed by (seed, node)."""
    for j in range(n_features):
        out[j] = j
    if mtry >= n_features:
        return
    for j in range(mtry):
        draw = mix(np.uint64(node) << np.uint64(16) | np.uint64(j), seed, FEATURES)
        pick = j + np.int64(draw % np.uint64(n_features - j))
        out[j], out[pick] = out[pick], out[j]


@nb.njit(cache=True, nogil=True)
def _partition(rows, buffer, start, stop, word, members):
    """Reorder the node's rows in place, left child first, order kept; returns where the right child starts."""
    bins, level, weight, outcome = rows
    b_bins, b_level, b_weight, b_outcome = buffer
    f = node_feature(word)
    p = bins.shape[1]
    at, held = start, 0
    for i in range(start, stop):
        if goes_left(word, np.int64(bins[i, f]), members):
            if at != i:
                for j in range(p):
                    bins[at, j] = bins[i, j]
                level[at], weight[at], outcome[at] = level[i], weight[i], outcome[i]
            at += 1
        else:
            for j in range(p):
                b_bins[held, j] = bins[i, j]
            b_level[held], b_weight[held], b_outcome[held] = level[i], weight[i], outcome[i]
            held += 1
    for i in range(held):
        for j in range(p):
            bins[at + i, j] = b_bins[i, j]
        level[at + i], weight[at + i], outcome[at + i] = b_level[i], b_weight[i], b_outcome[i]
    return at


@nb.njit(cache=True, nogil=True)
def grow_tree(rows, buffer, shape, limits, seed):
    """Grow one tree depth first.

    rows    (bins uint8 [n, p], level uint8 [n], weight int64 [n], outcome int64 [n]); reordered in place
    buffer  scratch of the same shapes
    shape   (basis float64 [q, K], n_bins int64 [p], categorical bool [p])
    seed    uint64 of this tree
    Returns (nodes uint64 [N], sets uint64 [S, 4], number of leaves).
    """
    n, p = rows[0].shape
    basis, n_bins, categorical = shape
    nodes = np.zeros(3 + 2 * n, np.uint64)
    sets = np.zeros((16, 4), np.uint64)
    stack = np.empty((2 + limits.max_depth, 4), np.int64)  # node, first row, last row, depth
    features = np.empty(p, np.int64)
    mtry = min(limits.mtry, p)
    hist = np.empty((mtry, n_bins.max(), 2 * basis.shape[1]), np.int64)
    scratch = split_scratch(n_bins.max(), basis.shape[0])
    members = scratch[-1]
    floor = root_floor(rows, basis, limits)
    total = rows[2].sum()
    used, leaves, n_sets, top = 1, 0, 0, 1
    stack[0] = (0, 0, n, 0)
    while top > 0:
        top -= 1
        node, start, stop, depth = stack[top]
        split = Split(-1.0, -1, 0, False)
        if depth < limits.max_depth and n_sets < MAX_SETS and _heavy(rows[2], start, stop, total, n, limits.min_leaf):
            _sample_features(p, mtry, seed, node, features)
            histogram(rows, start, stop, features[:mtry], hist)
            split = best_split(hist, features[:mtry], shape, limits, floor, scratch)
        if split.feature < 0 or split.gain <= limits.min_gain:
            nodes[node] = np.uint64(leaves) << np.uint64(32) | np.uint64(LEAF)
            leaves += 1
            continue
        by_set = categorical[split.feature]
        nodes[node] = split_word(split, used, n_sets, by_set)
        middle = _partition(rows, buffer, start, stop, nodes[node], members)
        if by_set:
            sets = _with_set(sets, n_sets, members)
            n_sets += 1
        stack[top] = (used + 1, middle, stop, depth + 1)
        stack[top + 1] = (used, start, middle, depth + 1)
        top += 2
        used += 2
    return nodes[:used].copy(), sets[:n_sets].copy(), leaves


@nb.njit(cache=True, nogil=True)
def _heavy(weight, start, stop, total, n, min_leaf):
    """Whether a node weighs enough for two leaves; sums only where row counts leave it open."""
    if total == n:
        return stop - start >= 2 * min_leaf
    return weight[start:stop].sum() >= 2 * min_leaf


@nb.njit(cache=True, nogil=True)
def _with_set(sets, n_sets, members):
    """`sets` with `members` at n_sets, doubled when full."""
    if n_sets == sets.shape[0]:
        bigger = np.zeros((2 * n_sets, 4), np.uint64)
        bigger[:n_sets] = sets
        sets = bigger
    sets[n_sets] = members
    return sets
