"""Growing trees: histograms, the best split of a node, a sparse split prior, and the outcome's baseline."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.forest.trees import (
    BLOCK,
    CATEGORICAL,
    MAX_SETS,
    Structure,
    Tree,
    assemble,
    frozen,
    goes_right,
    leaf_word,
    leaves_of,
    outside,
    split_word,
)
from uplift_spark.stats.sampling import FOLDS_SALT, TREE_SALT, folds_of, mix64, mix64_all

# --------------------------------------------------------------------------------------------------------------------
# The best split of one node: histograms of exact sums, a linear map to basis moments, one scan per feature.
# A histogram cell holds, per treatment level, the exact integer sums (Σw, Σwy). Every criterion is a linear map of the
# cell (its basis φ), so one kernel serves slope, one-hot and any later basis. Integers make cells exact; the order in
# which rows arrive cannot change a bit of the tree.

_SCALE_EPS = 1e-10


class Limits(NamedTuple):
    """What stops a node from splitting.

    min_leaf    smallest child, in units of fixed-point weight
    usual_leaf  smallest child that a split may leave without paying for it (`small_toll`), at least min_leaf
    max_depth   deepest leaf
    min_gain    smallest gain, in outcome-sum-of-squares units
    imbalance   a child's treatment scatter per unit weight, as a share of the root's, must stay above this
    mtry        features tried per node
    min_share   smallest child as a share of its parent, for a usual leaf; in proportion for a smaller one
    """

    min_leaf: float
    usual_leaf: float
    max_depth: int
    min_gain: float
    imbalance: float
    mtry: int
    min_share: float


class Split(NamedTuple):
    """The best split of a node; feature is -1 if there is none."""

    gain: float
    feature: int
    threshold: int
    missing_left: bool


@nb.njit(cache=True, nogil=True)
def histogram(column, rows, start, stop, n_bins, hist):
    """Fill hist [bins, 2K] with Σw (even places) and Σwy (odd places) per level for one node's rows and one feature."""
    index, level, weight, outcome = rows
    hist[:n_bins] = 0
    for i in range(start, stop):
        b = np.int64(column[index[i]])
        k = 2 * np.int64(level[i])
        hist[b, k] += weight[i]
        hist[b, k + 1] += outcome[i]


@nb.njit(cache=True, nogil=True)
def _moments(hist, n_bins, shape, moments, where):
    """Basis moments of the occupied bins of a feature, packed: [n, s, Σφ (q), Σφy (q), Σφφ' (lower triangle)].

    Writes moments [c] and the bin each belongs to, where [c]; returns the number of occupied bins. Without centring
    Σφ is left zero, so that the moments are about zero and not about the node's mean: a plain regression.
    """
    basis = shape.basis
    q, levels = basis.shape
    count = 0
    for b in range(n_bins):
        occupied = False
        for k in range(levels):
            n = float(hist[b, 2 * k])
            if n == 0.0:
                continue
            if not occupied:
                occupied = True
                where[count] = b
                for a in range(moments.shape[1]):
                    moments[count, a] = 0.0
            s = float(hist[b, 2 * k + 1])
            moments[count, 0] += n
            moments[count, 1] += s
            at = 2 + 2 * q
            for a in range(q):
                f = basis[a, k]
                moments[count, 2 + a] += f * n * shape.centred
                moments[count, 2 + q + a] += f * s
                for c in range(a + 1):
                    moments[count, at] += f * basis[c, k] * n
                    at += 1
        if occupied:
            count += 1
    return count


@nb.njit(cache=True, nogil=True)
def explained(m, floor, work):
    """θ'Aθ of a node from its basis moments; -1 where some scatter A_jj per unit weight is below floor [q] (≥ 0).

    work is float64 [q, q + 1]. The Cholesky pivots are tested too, so a rank-deficient child never wins.
    """
    q = floor.size
    n, s = m[0], m[1]
    if n <= 0.0:
        return -1.0
    if q == 1:  # the common case, without the factorisation
        scatter = m[4] - m[2] * m[2] / n
        if scatter <= floor[0] * n:
            return -1.0
        b = m[3] - m[2] * s / n
        return b * b / scatter
    at = 2 + 2 * q
    total = 0.0
    for a in range(q):
        for b in range(a + 1):
            value = m[at] - m[2 + a] * m[2 + b] / n
            at += 1
            if a == b and value <= floor[a] * n:
                return -1.0
            for c in range(b):
                value -= work[a, c] * work[b, c]
            if a == b:
                if value <= _SCALE_EPS * n:
                    if floor[a] >= 0.0:
                        return -1.0
                    value = np.inf  # a level too rare to ask for: where it is absent it explains nothing
                work[a, a] = np.sqrt(value)
            else:
                work[a, b] = value / work[b, b]
        rhs = m[2 + q + a] - m[2 + a] * s / n
        for c in range(a):
            rhs -= work[a, c] * work[c, q]
        rhs /= work[a, a]
        work[a, q] = rhs
        total += rhs * rhs
    return total


@nb.njit(cache=True, nogil=True)
def _category_score(m, total, q):
    """A category's effect in the direction "treated against control" (Σ_q φ), shrunk to the node's."""
    f = fy = ff = tf = tfy = tff = 0.0
    at = 2 + 2 * q
    for a in range(q):
        f += m[2 + a]
        fy += m[2 + q + a]
        tf += total[2 + a]
        tfy += total[2 + q + a]
        for b in range(a + 1):
            twice = 1.0 if a == b else 2.0
            ff += twice * m[at]
            tff += twice * total[at]
            at += 1
    node_scatter = (tff - tf * tf / total[0]) / total[0]
    node_effect = (tfy - tf * total[1] / total[0]) / total[0] / max(node_scatter, _SCALE_EPS)
    prior = 0.02 * total[0] * node_scatter  # a category of 2 % of the node counts half
    scatter = ff - f * f / m[0]
    return (fy - f * m[1] / m[0] + prior * node_effect) / max(scatter + prior, _SCALE_EPS)


@nb.njit(cache=True, nogil=True)
def _scan(moments, order, total, start, sizes, floor, work):
    """Best cut of the occupied bins in `order`, left to right; `start` is a bin put left beforehand, -1 for none.

    sizes is (smallest child, smallest usual child, what a cut that leaves a smaller one pays of its gain); work is
    (left [M], right [M], Cholesky [q, q + 1]). Returns (Σ_children θ'Aθ, bins of `order` on the left), -1 and -1 if no
    cut is allowed.
    """
    if floor.size == 1:
        return _scan_one(moments, order, total, start, sizes, floor[0])
    min_leaf, usual, toll = sizes
    left, right, cholesky = work
    for a in range(left.size):
        left[a] = moments[start, a] if start >= 0 else 0.0
    best, cut = -1.0, -1
    for t in range(order.size + 1):
        if t > 0:
            here = order[t - 1]
            for a in range(left.size):
                left[a] += moments[here, a]
        if left[0] < min_leaf:
            continue
        if total[0] - left[0] < min_leaf:
            break
        gain_left = explained(left, floor, cholesky)
        if gain_left < 0.0:
            continue
        for a in range(left.size):
            right[a] = total[a] - left[a]
        gain_right = explained(right, floor, cholesky)
        if gain_right < 0.0:
            continue
        value = gain_left + gain_right - (toll if left[0] < usual or right[0] < usual else 0.0)
        if value > best:
            best, cut = value, t
    return best, cut


@nb.njit(cache=True, nogil=True)
def _scan_one(moments, order, total, start, sizes, floor):
    """`_scan` for a one-dimensional basis, in registers: the common case and five times faster."""
    min_leaf, usual, toll = sizes
    n = s = f = fy = ff = 0.0
    tn, ts, tf, tfy, tff = total[0], total[1], total[2], total[3], total[4]
    best, cut = -1.0, -1
    for t in range(order.size + 1):
        if t > 0 or start >= 0:
            here = order[t - 1] if t > 0 else start
            n += moments[here, 0]
            s += moments[here, 1]
            f += moments[here, 2]
            fy += moments[here, 3]
            ff += moments[here, 4]
        rn = tn - n
        if n < min_leaf:
            continue
        if rn < min_leaf:
            break
        rf = tf - f
        left = ff - f * f / n
        right = tff - ff - rf * rf / rn
        if left <= floor * n or right <= floor * rn:
            continue
        bl = fy - f * s / n
        br = tfy - fy - rf * (ts - s) / rn
        value = bl * bl / left + br * br / right - (toll if n < usual or rn < usual else 0.0)
        if value > best:
            best, cut = value, t
    return best, cut


@nb.njit(cache=True, nogil=True)
def _try_numeric(moments, where, order, total, sizes, floor, work):
    """Best threshold, missing values (bin 0) tried on both sides; returns (sum, threshold, missing_left)."""
    missing = where[0] == 0
    first = 1 if missing else 0
    present = order[first : where.size]
    best, cut = _scan(moments, present, total, -1, sizes, floor, work)
    missing_left = False
    if missing:
        other, other_cut = _scan(moments, present, total, 0, sizes, floor, work)
        if other > best:
            best, cut, missing_left = other, other_cut, True
    elif cut > 0:
        left = 0.0
        for t in range(cut):
            left += moments[t, 0]
        missing_left = 2.0 * left >= total[0]  # none here: values missing later go with the larger child
    threshold = 0 if cut <= 0 else where[first + cut - 1]
    return best, threshold, missing_left


@nb.njit(cache=True, nogil=True)
def _try_categorical(moments, where, total, sizes, floor, work, members):
    """Best cut of the categories ordered by effect (Fisher 1958); `members` uint64 [4] gets the set that goes left."""
    scores = np.empty(where.size)
    for c in range(where.size):
        scores[c] = _category_score(moments[c], total, floor.size)
    order = np.argsort(scores, kind="mergesort")
    best, cut = _scan(moments, order, total, -1, sizes, floor, work)
    left = 0.0
    members[:] = 0
    for t in range(max(cut, 0)):
        left += moments[order[t], 0]
        b = where[order[t]]
        members[b >> 6] |= np.uint64(1) << np.uint64(b & 63)
    if 2.0 * left >= total[0]:
        _add_absent(where, members)
    return best, cut


@nb.njit(cache=True, nogil=True)
def _add_absent(where, members):
    """Categories unseen in this node join the set on the left (the larger child)."""
    at = 0
    for b in range(256):
        if at < where.size and where[at] == b:
            at += 1
        else:
            members[b >> 6] |= np.uint64(1) << np.uint64(b & 63)


@nb.njit(cache=True, nogil=True)
def best_split(hist, feature, shape, limits, floor, noise, scratch):
    """Best split of a node by one feature's histogram: (Split with Σ_children θ'Aθ as its gain, node's moments, bins).

    scratch is `split_scratch`'s; its last place gets a categorical split's left set. Feature -1: no cut is allowed.
    """
    _, moments, where, order, work, members = scratch
    count = _moments(hist, shape.n_bins[feature], shape, moments, where)
    total = np.zeros(moments.shape[1])
    for c in range(count):
        for a in range(total.size):
            total[a] += moments[c, a]
    value, cut, missing_left = -1.0, -1, False
    if count >= 2:
        usual = max(limits.usual_leaf, limits.min_share * total[0])
        toll = small_toll(floor.size) * noise if limits.min_leaf < limits.usual_leaf else 0.0
        sizes = (usual * limits.min_leaf / limits.usual_leaf, usual, toll)
        if shape.categorical[feature]:
            value, cut = _try_categorical(moments, where[:count], total, sizes, floor, work, members)
        else:
            value, cut, missing_left = _try_numeric(moments, where[:count], order, total, sizes, floor, work)
    return Split(value, feature if value >= 0.0 else -1, cut, missing_left), total, count


@nb.njit(cache=True, nogil=True)
def small_toll(q):
    """Gain / noise that a cut pays for leaving a child smaller than usual: what chance gives a cut, and a nat more."""
    return null_gain(256, False, q) + 2.0


@nb.njit(cache=True, nogil=True)
def null_gain(bins, categorical, q):
    """Expected gain / noise of the best cut of a feature without effect, by its occupied bins.

    One cut is a χ² of q degrees; the best of many correlated cuts of a numeric feature came to q + 2.6 √q in
    simulations (the sup-F process of Andrews 1993); categories ordered by their own effect can differ by chance
    in proportion to their number (the mean of a half-normal squared, 2/π each).
    """
    numeric = q + 2.6 * np.sqrt(q) * (1.0 - 1.0 / max(bins - 1, 1))
    return max(numeric, 2.0 / np.pi * q * bins) if categorical else numeric


@nb.njit(cache=True, nogil=True)
def noise_level(rows, shape):
    """Residual variance of the outcome within levels, in fixed-point units: what a gain without effect averages."""
    _, level, weight, outcome = rows
    n, s = np.zeros(shape.basis.shape[1]), np.zeros(shape.basis.shape[1])
    for i in range(level.size):
        n[level[i]] += weight[i]
        s[level[i]] += outcome[i]
    squares = 0.0
    for i in range(level.size):
        residual = outcome[i] - s[level[i]] / n[level[i]] * weight[i]
        squares += residual * residual
    return squares / n.sum()


@nb.njit(cache=True, nogil=True)
def split_scratch(most_bins, basis):
    """Buffers of `best_split`, once per tree: histogram, moments, bins, order, work, categories on the left."""
    q, levels = basis.shape
    size = 2 + 2 * q + q * (q + 1) // 2
    work = (np.empty(size), np.empty(size), np.zeros((q, q + 1)))
    moments, where, order = np.empty((most_bins, size)), np.empty(most_bins, np.int64), np.arange(most_bins)
    return np.empty((most_bins, 2 * levels), np.int64), moments, where, order, work, np.zeros(4, np.uint64)


@nb.njit(cache=True, nogil=True)
def root_floor(rows, shape, limits):
    """imbalance x the root's scatter per unit weight, for each coordinate of φ: float64 [q].

    -1 where even the root's scatter comes to less than one row in a smallest leaf: asking for a level that rare would
    keep every other level's tree from growing. Zero for a plain regression.
    """
    basis = shape.basis
    _, level, weight, _ = rows
    counts = np.zeros(basis.shape[1])
    for i in range(level.size):
        counts[level[i]] += weight[i]
    n = counts.sum()
    rows_per_leaf = limits.min_leaf * level.size / n
    floor = np.zeros(basis.shape[0])
    for a in range(basis.shape[0]):
        mean = (basis[a] * counts).sum() / n
        scatter = (basis[a] * basis[a] * counts).sum() / n - mean * mean
        rare = basis.shape[0] > 1 and scatter * rows_per_leaf < 1.0
        floor[a] = (-1.0 if rare else limits.imbalance * scatter) * shape.centred
    return floor


# --------------------------------------------------------------------------------------------------------------------
# Growing one tree level by level, with a sparse split prior learnt from all nodes of a level together.
# Most features do not move the effect. A forest that tries them all at every node splits deep nodes on noise, which
# makes leaves small without making them homogeneous. Here the evidence for a feature is pooled over the nodes of a
# level: its gain in nats less what noise would show; its share of all evidence is the prior probability that a split
# is on it (Linero 2018's sparse split prior, by empirical Bayes), and a node takes the split with the largest
# posterior. A *pilot* tree on all growing rows of a bucket learns the evidence; the bucket's trees then try the
# features that have some. All of it sees growing rows only, so honesty is untouched.

SPARSITY = 5.0  # prior evidence in nats over all features: .2 to 5 are alike on strong signals, more helps weak ones
CLEAR = 2.0  # nats of evidence below which nothing is known and every feature is tried alike
MIN_EVIDENCE_SHARE = 0.001  # share of the best feature's evidence below which a feature is no longer tried


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
        while count < p and evidence[order[count]] > max(0.5, MIN_EVIDENCE_SHARE * best):
            count += 1
    elif mtry < p:  # nothing is known: a random choice, another one at each depth
        order = np.random.permutation(p)
    return np.sort(order[: min(count, mtry)])


@nb.njit(cache=True, nogil=True)
def _score_level(columns, rows, context, frontier, active, scratch):
    """Best split of every (node, feature) of a level, Split fields as arrays [nodes, features], and its excess in nats.

    The excess is half of gain / noise less its expectation where there is no effect; -1e300 where no split is allowed.
    """
    shape, limits, floor, noise, total_weight = context
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
            chance_gain = null_gain(bins, shape.categorical[f], floor.size)
            excess[v, j] = 0.5 * (gain[v, j] / noise - chance_gain) if noise > 0.0 else 0.0
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
def _members(columns, rows, node, split, context, scratch):
    """The set of categories that goes left, uint64 [1, 4]; found again, as only winners need it."""
    shape, limits, floor, noise, _ = context
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
    context = (shape, limits, floor, noise_level(rows, shape), rows[2].sum())
    scratch = split_scratch(shape.n_bins.max(), shape.basis)
    learning = known.max() <= CLEAR
    evidence, running = known.copy(), np.zeros(p)
    nodes, sets = np.zeros(3 + 2 * n, np.uint64), np.zeros((16, 4), np.uint64)
    frontier = np.array([[0, 0, n]])
    used, leaves, n_sets, total_gain = 1, 0, 0, 0.0
    for depth in range(limits.max_depth + 1):
        deeper, last = np.empty((2 * frontier.shape[0], 3), np.int64), depth == limits.max_depth
        active = _features(evidence, limits.mtry) if not last else np.empty(0, np.int64)
        scores = _score_level(columns, rows, context, frontier, active, scratch)
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
                members = _members(columns, rows, frontier[v], split, context, scratch)
                sets = _with_set(sets, n_sets, members)
            nodes[node] = split_word(split, used, n_sets, by_set)
            n_sets += by_set
            middle = _partition(columns[split.feature], rows, buffer, start, stop, nodes[node], members)
            deeper[added] = (used, start, middle)
            deeper[added + 1] = (used + 1, middle, stop)
            added, used = added + 2, used + 2
            total_gain += 0.5 * split.gain / context[3] if posterior > 0.0 else 0.0
        frontier = deeper[:added]
        if added == 0:
            break
    return nodes[:used].copy(), sets[:n_sets].copy(), leaves, evidence, total_gain


# --------------------------------------------------------------------------------------------------------------------
# The outcome's baseline m(x) = E[Y | X]: a cross-fitted regression forest on the planning sample, subtracted from
# every outcome before effects are sought ("centring", Robinson 1988; Athey, Tibshirani & Wager 2019, s. 6.1).
#
# In a trial any m(x) that a row's own outcome has no part in leaves effects unbiased, so a bounded sample does: what
# the features explain of the outcome is taken out of the noise. Rows are in one of two folds by hash; a row's baseline
# comes from the trees that were grown on the other fold.

TREES = 16  # per fold: more lowered the residual variance by under half a percent
MAX_BASELINE_LEAVES = 400  # at most, so that the baseline stays small in the model file
SMALLEST = 10  # rows per leaf
WORTH = 0.01  # share of the outcome's variance that the baseline must explain on rows it was not grown on


@nb.njit(cache=True, nogil=True)
def fold_means(routes, values, bins, fold, out):
    """Mean leaf value of the trees of each row's fold: out float64 [n]."""
    half = len(routes.rounds) // 2
    leaves = np.empty((BLOCK, len(routes.rounds)), np.int32)
    for low in range(0, bins.shape[0], BLOCK):
        high = min(low + BLOCK, bins.shape[0])
        leaves_of(routes, bins[low:high], leaves)
        for i in range(low, high):
            total = 0.0
            for t in range(fold[i] * half, (fold[i] + 1) * half):
                total += values[leaves[i - low, t]]
            out[i] = total / half


@nb.njit(cache=True, nogil=True)
def add_leaves(routes, rows, sums):
    """Add (w, wy) of every row (bins, fold, w, wy) to its leaves in the other fold's trees: sums int64 [leaves, 2]."""
    bins, fold, w, wy = rows
    half = len(routes.rounds) // 2
    leaves = np.empty((BLOCK, len(routes.rounds)), np.int32)
    for low in range(0, bins.shape[0], BLOCK):
        high = min(low + BLOCK, bins.shape[0])
        leaves_of(routes, bins[low:high], leaves)
        for i in range(low, high):
            first = (1 - fold[i]) * half
            for t in range(first, first + half):
                sums[leaves[i - low, t], 0] += w[i]
                sums[leaves[i - low, t], 1] += wy[i]


class Baseline(NamedTuple):
    """Trees of fold 0's rows, then those of fold 1's; values float64 [leaves] on the outcome's scale."""

    structure: Structure
    values: np.ndarray

    def predict(self, bins: np.ndarray, fold: np.ndarray, threads: int = 1) -> np.ndarray:
        """m(x) of rows with bins uint8 [n, p] in folds int64 [n]: float64 [n]."""
        routes, arrays = self.structure.routes, frozen((bins, fold, self.values))
        out = np.empty(len(bins))

        def some_rows(low: int, high: int) -> None:
            fold_means(routes, arrays[2], arrays[0][low:high], arrays[1][low:high], out[low:high])

        bounds = np.linspace(0, len(bins), threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some_rows, bounds[:-1], bounds[1:]))
        return out


def fit_baseline(
    columns: np.ndarray,
    rows: tuple[np.ndarray, ...],
    seed: np.uint64,
    bins: tuple[np.ndarray, np.ndarray],
    scale: float,
) -> Baseline | None:
    """Fit the baseline, or return None where it would explain too little to be worth a pass through its trees.

    columns  uint8 [p, n]
    rows     (key uint64 [n], w int64 [n], wy int64 [n]) in canonical order
    bins     (number of bins int64 [p], categorical bool [p])
    scale    outcome units per unit of Σwy / Σw
    """
    key, w, wy = rows
    fold = folds_of(key, seed)
    shape = Shape(np.ones((1, 1)), bins[0], bins[1], 0.0)

    def grown(number: int, mine: np.ndarray, known: np.ndarray) -> tuple:
        leaf = max(SMALLEST, mine.size / MAX_BASELINE_LEAVES) * w.mean()
        limits = Limits(float(leaf), float(leaf), 12, 0.0, 0.0, len(columns), 0.05)
        work = (mine.astype(np.int32), np.zeros(mine.size, np.uint8), w[mine], wy[mine])
        return grow_tree(columns, work, shape, limits, np.uint64(mix64(np.uint64(number), seed, TREE_SALT)), known)

    def tree(number: int) -> Tree:
        draw = (mix64_all(key, seed, FOLDS_SALT + np.uint64(1 + number)) & np.uint64(1)) == 1
        mine = np.flatnonzero((fold != number // TREES) & draw)
        nodes, sets, leaves, _, _ = grown(number, mine, pilots[number // TREES][3])
        return Tree(number, nodes, sets, int(leaves))

    if min(np.bincount(fold, minlength=2)) < 4 * SMALLEST:
        return None
    with ThreadPoolExecutor() as pool:
        pilots = list(pool.map(lambda f: grown(f, np.flatnonzero(fold != f), np.zeros(len(columns))), (0, 1)))
        if 2.0 * (pilots[0][4] + pilots[1][4]) < WORTH * key.size:
            return None
        structure = assemble(list(pool.map(tree, range(2 * TREES))), 2 * TREES)
    by_row = np.ascontiguousarray(columns.T)
    sums = np.zeros((structure.n_leaves, 2), np.int64)
    arrays = frozen((by_row, fold, w, wy))
    add_leaves(structure.routes, arrays, sums)
    means = np.where(sums[:, 0] > 0, sums[:, 1] / np.maximum(sums[:, 0], 1), wy.sum() / w.sum())
    baseline = Baseline(structure, means * scale)
    y = wy / w * scale
    centre = np.average(y, weights=w)
    before, after = ((y - m) ** 2 @ w for m in (centre, baseline.predict(by_row, fold)))
    return baseline if after < (1.0 - WORTH) * before else None
