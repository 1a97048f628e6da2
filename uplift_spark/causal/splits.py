"""The best split of one node: histograms of exact sums, a linear map to basis moments, one scan per feature.

A histogram cell holds, per treatment level, the exact integer sums (Σw, Σwy). Every criterion is a linear map of the
cell (its basis φ), so one kernel serves slope, one-hot and any later basis. Integers make cells exact; the order in
which rows arrive cannot change a bit of the tree.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

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
    simulations (the sup-F process of Andrews 1993); categories ordered by their own effect can be told apart by chance
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
