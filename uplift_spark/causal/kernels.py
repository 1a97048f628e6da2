"""Rows through trees: routing, exact leaf sums, effects with little-bag standard errors."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from uplift_spark.causal.nodes import LEAF, goes_left, node_child, node_feature, node_set

BLOCK = 1024  # rows routed through one tree before the next tree: they stay in cache, and so does the tree


@nb.njit(cache=True, nogil=True, inline="always")
def _leaf_of(nodes, base, sets, set_base, row):
    """Leaf id of one row (uint8 [p]) in the tree whose root is nodes[base]."""
    word = nodes[base]
    while word & np.uint64(LEAF) == 0:
        child = node_child(word)
        members = sets[min(set_base + node_set(word), sets.shape[0] - 1)]
        if not goes_left(word, np.int64(row[node_feature(word)]), members):
            child += 1
        word = nodes[base + child]
    return node_child(word)


@nb.njit(cache=True, nogil=True)
def accumulate(structure, rows, estimates, first, last, sums):
    """Add every row to the leaves that are estimated on it, for trees first ≤ t < last.

    structure  (nodes, node_start, sets, set_start, leaf_start); sets has at least one row
    rows       (bins uint8 [n, p], level uint8 [n], w int64 [n], wy int64 [n], wyy int64 [n])
    estimates  bool [n, last - first]: whether the row is in the tree's estimation sample
    sums       int64 [leaves, K, 3], added to in place
    """
    nodes, node_start, sets, set_start, leaf_start = structure
    bins, level, w, wy, wyy = rows
    n = bins.shape[0]
    for low in range(0, n, BLOCK):
        high = min(low + BLOCK, n)
        for t in range(first, last):
            if node_start[t] == node_start[t + 1]:
                continue
            for i in range(low, high):
                if estimates[i, t - first]:
                    leaf = leaf_start[t] + _leaf_of(nodes, node_start[t], sets, set_start[t], bins[i])
                    cell = sums[leaf, level[i]]
                    cell[0] += w[i]
                    cell[1] += wy[i]
                    cell[2] += wyy[i]


@nb.njit(cache=True, nogil=True)
def leaves_of(structure, bins, out):
    """Global leaf index of every row in every tree, int32 [n, T]; -1 where a tree has no structure."""
    nodes, node_start, sets, set_start, leaf_start = structure
    n_trees = node_start.size - 1
    for t in range(n_trees):
        empty = node_start[t] == node_start[t + 1]
        for i in range(bins.shape[0]):
            if empty:
                out[i, t] = -1
            else:
                out[i, t] = leaf_start[t] + _leaf_of(nodes, node_start[t], sets, set_start[t], bins[i])


@nb.njit(cache=True, nogil=True)
def _debias(between, noise, groups):
    """Posterior mean of a non-negative variance given a noisy, possibly negative estimate (grf's objective Bayes)."""
    if groups == 0 or between <= 0.0:
        return 0.0
    estimate = between - noise
    spread = max(between, noise) * math.sqrt(2.0 / groups)
    ratio = estimate / spread
    density = math.exp(-0.5 * ratio * ratio) / math.sqrt(2.0 * math.pi)
    mass = 0.5 * math.erfc(-ratio / math.sqrt(2.0))
    return estimate + spread * density / mass if mass > 1e-300 else 0.0


@nb.njit(cache=True, nogil=True)
def _totals(leaves, values, usable, totals):
    """Sum of the leaf shares [K, 2] over a row's usable trees; returns their number."""
    totals[:] = 0.0
    count = 0
    for t in range(leaves.size):
        leaf = leaves[t]
        if leaf >= 0 and usable[leaf]:
            count += 1
            for k in range(totals.shape[0]):
                totals[k, 0] += values[leaf, k, 0]
                totals[k, 1] += values[leaf, k, 1]
    return count


@nb.njit(cache=True, nogil=True)
def _deviations(leaves, values, usable, scale, k, n_buckets, psi):
    """Fill psi [T] with each tree's pull on level k's effect at one row, less the mean of its bucket's trees.

    Trees of one bucket share rows in all their bags, so what they have in common is no noise between trees of a bag:
    left in, the correction for that noise would take away true variance. NaN where a tree is not usable.
    scale holds (mean share N, mean outcome μ) of level 0 in [0] and of level k in [1].
    """
    for t in range(leaves.size):
        leaf = leaves[t]
        psi[t] = np.nan
        if leaf >= 0 and usable[leaf]:
            v0, vk = values[leaf, 0], values[leaf, k]
            psi[t] = (vk[1] - scale[1, 1] * vk[0]) / scale[1, 0] - (v0[1] - scale[0, 1] * v0[0]) / scale[0, 0]
    for b in range(n_buckets):
        total, count = 0.0, 0
        for t in range(b, leaves.size, n_buckets):
            if not np.isnan(psi[t]):
                total += psi[t]
                count += 1
        # One tree alone says nothing of its bucket; the factor restores the variance that centring takes.
        stretch = math.sqrt(count / (count - 1.0)) if count > 1 else np.nan
        for t in range(b, leaves.size, n_buckets):
            psi[t] = (psi[t] - total / max(count, 1)) * stretch


@nb.njit(cache=True, nogil=True)
def _bag_variance(psi, bag):
    """Little-bag variance from the trees' deviations (Athey, Tibshirani & Wager 2019, s. 4); NaN below two bags."""
    groups, between, within = 0, 0.0, 0.0
    for low in range(0, psi.size, bag):
        total, squares = 0.0, 0.0
        for t in range(low, low + bag):
            total += psi[t]
            squares += psi[t] * psi[t]
        if np.isnan(total):
            continue
        groups += 1
        mean = total / bag
        between += mean * mean
        within += squares / bag - mean * mean
    if groups < 2:
        return np.nan
    return _debias(between / groups, within / groups / (bag - 1), groups)


@nb.njit(cache=True, nogil=True)
def _support(leaves, values, usable, k, count):
    """Share of a row's usable trees whose leaf holds both level k and the control."""
    both = 0
    for t in range(leaves.size):
        leaf = leaves[t]
        if leaf >= 0 and usable[leaf] and values[leaf, 0, 0] > 0.0 and values[leaf, k, 0] > 0.0:
            both += 1
    return both / count


@nb.njit(cache=True, nogil=True)
def predict(structure, values, usable, design, bins, effect, variance, support):
    """Effects of every level against the control, solved once from leaf shares summed over the trees.

    values    float64 [leaves, K, 2]: each leaf's Σw_k / Σw and Σwy_k / Σw
    usable    bool [leaves]: the leaf holds estimation rows
    design    (trees per little bag, buckets): tree t is in bag t // bag and was grown in bucket t % buckets
    effect, variance, support   float64 [n, K - 1], written; NaN where a level or the control is absent
    """
    bag, n_buckets = design
    n = bins.shape[0]
    n_trees = structure[1].size - 1
    levels = values.shape[1]
    totals = np.empty((levels, 2))
    scale = np.empty((2, 2))
    psi = np.empty(n_trees)
    block = np.empty((BLOCK, n_trees), np.int32)
    for low in range(0, n, BLOCK):
        high = min(low + BLOCK, n)
        leaves_of(structure, bins[low:high], block)
        for i in range(low, high):
            leaves = block[i - low]
            count = _totals(leaves, values, usable, totals)
            for k in range(1, levels):
                effect[i, k - 1] = np.nan
                variance[i, k - 1] = np.nan
                support[i, k - 1] = 0.0
                if count == 0 or totals[0, 0] <= 0.0 or totals[k, 0] <= 0.0:
                    continue
                for side in range(2):
                    of = 0 if side == 0 else k
                    scale[side, 0] = totals[of, 0] / count
                    scale[side, 1] = totals[of, 1] / totals[of, 0]
                effect[i, k - 1] = scale[1, 1] - scale[0, 1]
                _deviations(leaves, values, usable, scale, k, n_buckets, psi)
                variance[i, k - 1] = _bag_variance(psi, bag)
                support[i, k - 1] = _support(leaves, values, usable, k, count)
