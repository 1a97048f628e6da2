"""Rows through trees: exact leaf sums, expected outcomes, effects with little-bag standard errors.

Every kernel takes rows in blocks that stay in cache and routes a block through one tree before the next.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from uplift_spark.forest.trees import BLOCK, LANES, load_block, new_lists, take, walk
from uplift_spark.stats.sampling import in_half, shapes

IN_CACHE = 1 << 16  # sums by row, bucket and level that stay in cache while trees are added to them


@nb.njit(cache=True, nogil=True, inline="always")
def _choose(halves, block, bag, wanted, chosen):
    """List the rows of a block (first row, rows) that are in the bag's half-sample, or those that are not."""
    count = 0
    for j in range(block[1]):
        chosen[count] = j
        count += int(in_half(halves, block[0] + j, bag) == wanted)
    return count


@nb.njit(cache=True, nogil=True, inline="always")
def _add(lists, count, low, rows, corrected, sums, outcomes):
    """Add the rows which[j], j < count, to the leaves at[j]; see `accumulate`. A constant for `outcomes` is fast."""
    _, level, w, wy, _, _ = rows
    which, at, _, _ = lists
    for j in range(count):
        i = low + which[j]
        if not corrected:
            sums[at[j], level[i], 0] += w[i]
        for y in range(outcomes):
            sums[at[j], level[i], 1 + 2 * y + corrected] += wy[i, y]


@nb.njit(cache=True, nogil=True)
def accumulate(routes, rows, design, span, corrected, sums):
    """Add every row to the leaves that are estimated on it, for trees span[0] ≤ t < span[1].

    rows       (bins uint8 [n, p], level uint8 [n], w int64 [n], wy int64 [n, m], bucket int32 [n],
               halves uint64 [n, words])
    design     (trees per little bag, buckets, growth buckets)
    corrected  False: add w to place 0 of a cell and wy of outcome j to 1 + 2j; True: add wy to 2 + 2j
    sums       int64 [leaves, K, 1 + 2m], added to in place
    """
    bins, _, _, wy, bucket, halves = rows
    bag, n_buckets, growth_buckets = design
    lists, chosen, n_chosen = new_lists(bins.shape[1]), np.empty(BLOCK, np.int32), 0
    which = lists[0]
    for low in range(0, bins.shape[0], BLOCK):
        block, of_bag = (low, min(BLOCK, bins.shape[0] - low)), -1
        load_block(bins, low, block[1], lists)
        for t in range(span[0], span[1]):
            if routes.root[t] == routes.root[t + 1]:
                continue
            if t // bag != of_bag:
                of_bag = t // bag
                n_chosen = _choose(halves, block, of_bag, True, chosen)
            count, first = 0, t % n_buckets
            for x in range(n_chosen):
                which[count] = chosen[x]
                count += int(not shapes(bucket[low + chosen[x]], first, n_buckets, growth_buckets))
            walk(routes, t, lists, count, bins.shape[1])
            if wy.shape[1] == 1:
                _add(lists, count, low, rows, corrected, sums, 1)
            else:
                _add(lists, count, low, rows, corrected, sums, wy.shape[1])


@nb.njit(cache=True, nogil=True, inline="always")
def _sum_own(lists, count, level, values, totals, n_columns):
    """Add what the leaves at[j] hold of each row's own level to its totals; see `leaf_outcome_means` and `_add`."""
    which, at, _, _ = lists
    for j in range(count):
        for column in range(n_columns):
            totals[which[j], column] += values[at[j], level[which[j]], column]


@nb.njit(cache=True, nogil=True)
def leaf_outcome_means(routes, values, rows, bag, outcome_mean):
    """What the forest expects of each row's outcomes at its own level, from the bags that do not hold the row.

    values    float64 [leaves, K, 1 + m]: each leaf's Σw_k / Σw and, per outcome, Σwy_k / Σw; zero without rows
    rows      (bins, level, halves)
    outcome_mean  float64 [n, m], written; NaN if nothing is known
    """
    bins, level, halves = rows
    lists, count = new_lists(bins.shape[1]), 0
    which = lists[0]
    totals = np.empty((BLOCK, values.shape[2]))
    for low in range(0, bins.shape[0], BLOCK):
        block, of_bag = (low, min(BLOCK, bins.shape[0] - low)), -1
        load_block(bins, low, block[1], lists)
        totals[:] = 0.0
        for t in range(len(routes.rounds)):
            if routes.root[t] == routes.root[t + 1]:
                continue
            if t // bag != of_bag:
                of_bag = t // bag
                count = _choose(halves, block, of_bag, False, which)
            walk(routes, t, lists, count, bins.shape[1])
            if values.shape[2] == 2:
                _sum_own(lists, count, level[low:], values, totals, 2)
            else:
                _sum_own(lists, count, level[low:], values, totals, values.shape[2])
        for j in range(block[1]):
            share = totals[j, 0]
            for y in range(outcome_mean.shape[1]):
                outcome_mean[low + j, y] = totals[j, 1 + y] / share if share > 0.0 else np.nan


@nb.njit(cache=True, nogil=True)
def debiased_variance(between, noise, groups):
    """Posterior mean of a non-negative variance given a noisy, possibly negative estimate (grf's objective Bayes)."""
    if math.isnan(between):
        return math.nan  # no leaf holds the level
    if groups == 0 or between <= 0.0:
        return 0.0
    estimate = between - noise
    spread = max(between, noise) * math.sqrt(2.0 / groups)
    ratio = estimate / spread
    density = math.exp(-0.5 * ratio * ratio) / math.sqrt(2.0 * math.pi)
    mass = 0.5 * math.erfc(-ratio / math.sqrt(2.0))
    return estimate + spread * density / mass if mass > 1e-300 else 0.0


@nb.njit(cache=True, nogil=True)
def sum_shares(routes, values, block, design, lists, leaves, totals, counts):
    """First pass over a block of rows: the leaf of each tree, and per bucket the sums of its trees' shares.

    block   (bins, halves, first row, rows)
    leaves  int32 [T, BLOCK], written; -1 where a tree does not speak: no structure, an empty leaf, or, with halves, a
            bag that holds the row
    totals  float64 [B, BLOCK, 3K] and counts of trees that speak, float64 [B, BLOCK], written
    """
    bins, halves, low, rows = block
    bag, n_buckets, _ = design
    which, at, _, _ = lists
    flat, n_columns = values.reshape(values.shape[0], -1), totals.shape[2]  # one loop without inner ones is fast
    load_block(bins, low, rows, lists)
    for j in range(rows):
        which[j] = j
    totals[:], counts[:] = 0.0, 0.0
    for t in range(leaves.shape[0]):
        b = t % n_buckets
        if routes.root[t] == routes.root[t + 1]:
            leaves[t, :rows] = -1
            continue
        walk(routes, t, lists, rows, bins.shape[1])
        for j in range(rows):
            leaf = at[j]
            if flat[leaf, 0] < 0.0 or (halves.shape[1] > 0 and in_half(halves, low + j, t // bag)):
                leaves[t, j] = -1
                continue
            leaves[t, j] = leaf
            counts[b, j] += 1.0
            for column in range(n_columns):
                totals[b, j, column] += flat[leaf, column]


@nb.njit(cache=True, nogil=True)
def _dose_effect(measure, shape):
    """θ of one row, the effect common to all levels in the direction `shape` [K], by least squares over the levels.

    Writes into measure[2] what each level's mean counts for; they add to zero. Levels without rows count nothing.
    """
    total = mean = 0.0
    for k in range(shape.size):
        if measure[0, k] > 0.0:
            total, mean = total + 1.0 / measure[0, k], mean + shape[k] / measure[0, k]
    scatter = 0.0
    for k in range(shape.size):
        measure[2, k] = (shape[k] - mean / total) / measure[0, k] if measure[0, k] > 0.0 else 0.0
        scatter += measure[2, k] * shape[k]
    theta = 0.0
    for k in range(shape.size):
        measure[2, k] = measure[2, k] / scatter if scatter > 0.0 else 0.0
        theta += measure[2, k] * measure[1, k] if measure[2, k] != 0.0 else 0.0
    return theta


@nb.njit(cache=True, nogil=True)
def _solve(totals, counts, shrinkage, block, effect, support, theta):
    """Effects of a block's rows, and what their trees' influence is measured by.

    block is (measure [3, K, BLOCK]: 1 / mean share N_k, mean outcome μ_k, weight in θ; centre [B, K, BLOCK]: mean
    influence of a bucket's trees), written. Counts are replaced by what `_add_influence` stretches influence by.
    """
    measure, centre = block
    rows, levels, n_buckets = effect.shape[0], shrinkage.shape[1], totals.shape[0]
    totals = totals.reshape(n_buckets, totals.shape[1], levels, 3)
    for j in range(rows):
        trees = max(counts[:, j].sum(), 1.0)
        for k in range(levels):
            n, s = 0.0, 0.0
            for b in range(n_buckets):
                n, s = n + totals[b, j, k, 0], s + totals[b, j, k, 1]
            measure[0, k, j] = trees / n if n > 0.0 else np.nan
            measure[1, k, j] = s / n if n > 0.0 else np.nan
        theta[j] = _dose_effect(measure[:, :, j], shrinkage[0])
        for k in range(1, levels):
            effect[j, k - 1] = shrinkage[1, k] * (measure[1, k, j] - measure[1, 0, j]) + shrinkage[2, k] * theta[j]
            support[j, k - 1] = totals[:, j, k, 2].sum() / trees
        for b in range(n_buckets):
            for k in range(levels):
                influence = (totals[b, j, k, 1] - measure[1, k, j] * totals[b, j, k, 0]) * measure[0, k, j]
                centre[b, k, j] = influence / counts[b, j] if counts[b, j] > 1.0 else 0.0
            counts[b, j] = math.sqrt(counts[b, j] / max(counts[b, j] - 1.0, 1.0))


@nb.njit(cache=True, nogil=True)
def _influence(leaves, values, measure, centre, speaks, shares, influence):
    """One tree's influence on the means of the levels, and on their differences from the control for k > 0.

    leaves int32 [block] -> speaks float64 [block], 0 where the tree does not; shares (scratch) and
    influence [K, block], written. Loops over rows are innermost, so that they become vector instructions.
    """
    flat, width = values.reshape(-1), 3 * values.shape[1]
    for j in range(speaks.size):
        speaks[j] = 1.0 if leaves[j] >= 0 else 0.0
    for k in range(values.shape[1]):
        share, level_influence, inverse, mean, middle = shares[k], influence[k], measure[0, k], measure[1, k], centre[k]
        for j in range(0, speaks.size, LANES):
            take(flat, leaves, share, j, width, 3 * k)
            take(flat, leaves, level_influence, j, width, 3 * k + 1)
        for j in range(speaks.size):
            level_influence[j] = (level_influence[j] - mean[j] * share[j]) * inverse[j] - middle[j]
        if k > 0:
            base = influence[0]
            for j in range(speaks.size):
                level_influence[j] -= base[j]


@nb.njit(cache=True, nogil=True)
def _add_influence(influence, weights, scratch, shrinkage, sums, squares):
    """Add one tree's influence on the effects of a block's rows, [K, rows], and their squares.

    influence as from `_influence`; weights (what levels count for in θ [K, rows], stretch, speaks).

    Influence is taken less its mean over the bucket's trees: they share rows in all their bags, so what they
    have in common is no noise between trees of a bag, and left in, the correction for that noise would take away true
    variance. The stretch restores the variance that centring takes. A bucket's only tree has nothing in common with
    another: its influence stays whole.
    """
    in_theta, stretch, speaks = weights
    common, factor = scratch
    for j in range(speaks.size):
        factor[j] = stretch[j] * speaks[j]
        common[j] = 0.0
    if shrinkage[2].any():
        for k in range(1, len(influence)):
            level_influence, weight = influence[k], in_theta[k]
            for j in range(speaks.size):
                common[j] += weight[j] * level_influence[j] if weight[j] != 0.0 else 0.0
    for k in range(1, len(influence)):
        level_influence, own, of_common, total, square = (
            influence[k],
            shrinkage[1, k],
            shrinkage[2, k],
            sums[k],
            squares[k],
        )
        for j in range(speaks.size):
            level_influence[j] = (own * level_influence[j] + of_common * common[j]) * factor[j]
        for j in range(speaks.size):
            total[j] += level_influence[j]
        for j in range(speaks.size):
            square[j] += level_influence[j] * level_influence[j]


@nb.njit(cache=True, nogil=True)
def _spread(leaves, values, design, shrinkage, block, variance):
    """Second pass: little-bag variance of each effect of a block (Athey, Tibshirani & Wager 2019, s. 4).

    A bag speaks through those of its trees that do, two at least: a bucket without trees silences no bag.
    """
    stretch, measure, centre, theta = block
    bag, n_buckets, _ = design
    (rows, _), (_, levels, size) = variance.shape, measure.shape
    shares, influence, scratch = np.empty((levels, size)), np.empty((levels, size)), (np.empty(size), np.empty(size))
    speaks, trees, groups = np.empty(size), np.empty(size), np.zeros(size)
    sums, squares = np.empty((levels, size)), np.empty((levels, size))
    between, within = np.zeros((levels, size)), np.zeros((levels, size))
    for first in range(0, leaves.shape[0], bag):
        sums[:], squares[:], trees[:] = 0.0, 0.0, 0.0
        for t in range(first, first + bag):
            b = t % n_buckets
            _influence(leaves[t], values, measure, centre[b], speaks, shares, influence)
            _add_influence(influence, (measure[2], stretch[b], speaks), scratch, shrinkage, sums, squares)
            trees += speaks
        for j in range(rows):
            if trees[j] < 2.0:
                continue
            groups[j] += 1.0
            for k in range(1, levels):
                mean = sums[k, j] / trees[j]
                between[k, j] += mean * mean
                within[k, j] += (squares[k, j] / trees[j] - mean * mean) / (trees[j] - 1.0)
    for j in range(rows):
        g = groups[j]
        for k in range(1, levels):
            debiased = debiased_variance(between[k, j] / g, within[k, j] / g, g) if g >= 2.0 else np.nan
            variance[j, k - 1] = debiased + shrinkage[3, k] * theta[j] * theta[j]


@nb.njit(cache=True, nogil=True)
def predict_effects(routes, values, design, rows, shrinkage, with_errors, out):
    """Effects of every level against the control, solved once from leaf shares summed over the trees.

    values    float64 [leaves, K, 3]: each leaf's Σw_k / Σw and Σwy_k / Σw, and 1 if it supports level k's effect;
              -1 in the first place of a leaf without rows
    design    (trees per little bag, buckets, growth buckets): tree t is in bag t // bag, of bucket t % buckets
    rows      (bins uint8 [n, p], halves uint64 [n, words]); with zero words every tree speaks, else only out of bag
    shrinkage  float64 [6, K], how levels learn from each other (`forest.estimate`): direction of the common effect θ,
              what a level's own effect and θ count for, and the variance that comes with θ²; the rest is not used here
    out       (effect, variance, support), float64 [n, K - 1] each, written; NaN where a level or the control is absent
    """
    bins, halves = rows
    effect, variance, support = out
    levels, n_buckets = values.shape[1], min(design[1], len(routes.rounds))  # others have no tree
    if not with_errors:
        n_buckets = 1  # only errors ask which bucket a tree is of
    design = (design[0], n_buckets, design[2])
    # An odd number of lanes: columns of [K, block] arrays that are a power of two apart would share a place in cache.
    block = min(BLOCK // LANES, max(4, IN_CACHE // (n_buckets * levels * LANES))) // 2 * 2 * LANES + LANES
    block = min(block, BLOCK - LANES)
    lists, leaves = new_lists(bins.shape[1]), np.full((len(routes.rounds), block), -1, np.int32)
    totals, counts = np.empty((n_buckets, block, levels * 3)), np.empty((n_buckets, block))
    measure, centre, theta = np.empty((3, levels, block)), np.empty((n_buckets, levels, block)), np.empty(block)
    for low in range(0, bins.shape[0], block):
        rows_here = min(block, bins.shape[0] - low)
        part = slice(low, low + rows_here)
        sum_shares(routes, values, (bins, halves, low, rows_here), design, lists, leaves, totals, counts)
        _solve(totals, counts, shrinkage, (measure, centre), effect[part], support[part], theta)
        if with_errors:
            _spread(leaves, values, design, shrinkage, (counts, measure, centre, theta), variance[part])


@nb.njit(cache=True, nogil=True)
def average_influence(routes, values, design, rows, influence, effects, counts):
    """Add every row's effects, and its trees' influence on them, to the row's segment.

    rows     (bins uint8 [n, p], segment int64 [n])
    influence  float64 [S, T, K - 1], effects float64 [S, K - 1], counts float64 [S], added to in place; rows at which a
             level has no leaf are left out
    """
    bins, segment = rows
    levels, n_buckets = values.shape[1], min(design[1], len(routes.rounds))
    halves, shrinkage = np.zeros((bins.shape[0], 0), np.uint64), no_shrinkage(levels)
    lists, leaves = new_lists(bins.shape[1]), np.empty((len(routes.rounds), BLOCK), np.int32)
    totals, counts_here = np.empty((n_buckets, BLOCK, levels * 3)), np.empty((n_buckets, BLOCK))
    measure, centre, theta = np.empty((3, levels, BLOCK)), np.empty((n_buckets, levels, BLOCK)), np.empty(BLOCK)
    effect, support = np.empty((BLOCK, levels - 1)), np.empty((BLOCK, levels - 1))
    for low in range(0, bins.shape[0], BLOCK):
        count = min(BLOCK, bins.shape[0] - low)
        sum_shares(routes, values, (bins, halves, low, count), design, lists, leaves, totals, counts_here)
        _solve(totals, counts_here, shrinkage, (measure, centre), effect[:count], support[:count], theta)
        for j in range(count):
            if np.isnan(effect[j].sum()):
                continue
            s = segment[low + j]
            counts[s] += 1.0
            effects[s] += effect[j]
            for t in range(leaves.shape[0]):
                leaf = leaves[t, j]
                if leaf < 0:
                    continue
                base = (values[leaf, 0, 1] - measure[1, 0, j] * values[leaf, 0, 0]) * measure[0, 0, j]
                for k in range(1, levels):
                    tree_influence = (values[leaf, k, 1] - measure[1, k, j] * values[leaf, k, 0]) * measure[0, k, j]
                    influence[s, t, k - 1] += tree_influence - base


@nb.njit(cache=True, nogil=True)
def no_shrinkage(levels):
    """The `mix` of `Forest` that takes every level's own effect, whatever its support: float64 [6, K]."""
    shrinkage = np.zeros((6, levels))
    shrinkage[4:] = np.nan
    for k in range(1, levels):
        shrinkage[0, k] = shrinkage[1, k] = 1.0
    return shrinkage
