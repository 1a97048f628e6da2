"""Shapley values of what trees sum: every leaf is a game, units side by side (step 1 of `causal.shapley`)."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.causal.forest import Forest
from uplift_spark.causal.nodes import (
    CATEGORICAL,
    LEAF,
    MAX_FEATURES,
    goes_right,
    node_child,
    node_feature,
    node_set,
    outside,
)
from uplift_spark.causal.structure import frozen

_BLOCK = 256  # units side by side: what a leaf needs of them stays in the first cache


class Paths(NamedTuple):
    """What every leaf with rows asks of a unit.

    start    int64 [leaves + 1]: a leaf's entries, one per feature on its path
    feature  int32 [entries]
    share    float64 [entries]: z_f, in (0, 1]
    passing  uint64 [entries, 4]: bins that pass all of the feature's splits, a bit each
    moments  float64 [leaves, M]
    points   float64 [Q + 1, 2, Q]: Gauss-Legendre points in [0, 1] and weights, by their number
    base     float64 [M]: the moments' sum over trees, expected where no feature is known
    """

    start: np.ndarray
    feature: np.ndarray
    share: np.ndarray
    passing: np.ndarray
    moments: np.ndarray
    points: np.ndarray
    base: np.ndarray


@nb.njit(cache=True, nogil=True)
def _left_bins(nodes, sets, set_start, node_start, left):
    """Bins that go left at every split, a bit each, into left uint64 [N, 4]."""
    for t in range(node_start.size - 1):
        for v in range(node_start[t], node_start[t + 1]):
            word = nodes[v]
            if word & np.uint64(LEAF):
                continue
            for b in range(256):
                if word & np.uint64(CATEGORICAL):
                    right = outside(sets, set_start[t] + node_set(word), b)
                else:
                    right = goes_right(word, b)
                if not right:
                    left[v, b >> 6] |= np.uint64(1) << np.uint64(b & 63)


@nb.njit(cache=True, nogil=True)
def _climb(nodes, node_start, leaf_start, cover, parent, weight):
    """Parent of every node (-1 of a root) and the weight of the rows below it; node of every leaf, int64 [leaves]."""
    at = np.empty(leaf_start[-1], np.int64)
    for t in range(node_start.size - 1):
        base = node_start[t]
        for v in range(base, node_start[t + 1]):
            child = node_child(nodes[v])
            if nodes[v] & np.uint64(LEAF):
                at[leaf_start[t] + child] = v
                weight[v] = cover[leaf_start[t] + child]
            else:
                parent[base + child] = parent[base + child + 1] = v
        for v in range(node_start[t + 1] - 1, base, -1):  # parents come before their children
            weight[parent[v]] += weight[v]
    return at


@nb.njit(cache=True, nogil=True)
def _entries(nodes, node_start, tree_nodes, leaf_node, start, entries):
    """Entries of the leaves at leaf_node: counted into start [leaves + 1] and, where entries have room, written.

    tree_nodes  (parent, weight, left bins, tree of every node)
    """
    parent, weight, left, tree = tree_nodes
    feature, share, passing = entries
    seen = np.empty(MAX_FEATURES, np.int64)
    for leaf in range(leaf_node.size):
        first, v = start[leaf], leaf_node[leaf]
        found = 0
        while parent[v] >= 0:
            up = parent[v]
            f, right = node_feature(nodes[up]), v == node_start[tree[v]] + node_child(nodes[up]) + 1
            place = 0
            while place < found and seen[place] != f:
                place += 1
            if place == found:
                seen[found] = f
                found += 1
            if feature.size > 0:
                feature[first + place] = f
                share[first + place] *= weight[v] / weight[up]
                for word in range(4):
                    passing[first + place, word] &= ~left[up, word] if right else left[up, word]
            v = up
        start[leaf + 1] = first + found


def paths_of(forest: Forest) -> Paths:
    """The forest's leaves as `shapley_values` needs them: once per forest, a fraction of a second."""
    structure, cover = forest.structure, forest.sums[:, :, 0].sum(axis=1).astype(np.float64)
    n = structure.nodes.size
    left, parent, weight = np.zeros((n, 4), np.uint64), np.full(n, -1, np.int64), np.zeros(n)
    nodes, node_start, sets, set_start, leaf_start = frozen(structure)
    _left_bins(nodes, sets, set_start, node_start, left)
    at = _climb(nodes, node_start, leaf_start, cover, parent, weight)
    spoken = np.flatnonzero(cover > 0)
    tree = np.repeat(np.arange(structure.n_trees), np.diff(node_start))
    start, none = np.zeros(spoken.size + 1, np.int64), np.empty(0, np.int32)
    tree_nodes = (parent, weight, left, tree)
    _entries(nodes, node_start, tree_nodes, at[spoken], start, (none, np.empty(0), np.empty((0, 4), np.uint64)))
    size = int(start[-1])
    entries = np.zeros(size, np.int32), np.ones(size), np.full((size, 4), ~np.uint64(0))
    if size:
        _entries(nodes, node_start, tree_nodes, at[spoken], start, entries)
    values = leaf_moments(forest)[spoken]
    root = weight[node_start[tree[at[spoken]]]]
    points = _points((int(np.diff(start).max(initial=1)) + 1) // 2)
    return Paths(*frozen((start, *entries, values, points, (cover[spoken] / root) @ values)))


def leaf_moments(forest: Forest) -> np.ndarray:
    """Moments of every leaf, float64 [leaves, M], zero without rows. The last is 1 of a leaf with rows."""
    values = forest._shares.reshape(len(forest.sums), -1)
    speaks = (values[:, :1] >= 0).astype(np.float64)
    return np.concatenate([values * speaks, speaks], axis=1)


def _points(most: int) -> np.ndarray:
    points = np.zeros((most + 1, 2, most))
    for q in range(1, most + 1):
        at, weight = np.polynomial.legendre.leggauss(q)
        points[q, 0, :q], points[q, 1, :q] = (at + 1.0) / 2.0, weight / 2.0
    return points


@nb.njit(cache=True, nogil=True)
def _leaf_games(paths, leaf, bins, passes, found):
    """Integrals of `causal.shapley` at one leaf for a block of units: into passes (o_f) and found, [d, block]."""
    first, d = paths.start[leaf], paths.start[leaf + 1] - paths.start[leaf]
    n, product = bins.shape[1], np.empty(bins.shape[1])
    for i in range(d):
        words, own, column = paths.passing[first + i], passes[i], bins[paths.feature[first + i]]
        for j in range(n):
            own[j] = np.float64((words[column[j] >> 6] >> np.uint64(column[j] & 63)) & np.uint64(1))
        found[i, :n] = 0.0
    q = (d + 1) // 2
    for x in range(q):
        t = paths.points[q, 0, x]
        product[:] = paths.points[q, 1, x]
        for i in range(d):
            out, own = (1.0 - t) * paths.share[first + i], passes[i]
            for j in range(n):
                product[j] *= out + t * own[j]
        for i in range(d):
            out, own, total = (1.0 - t) * paths.share[first + i], passes[i], found[i]
            inverse, step = 1.0 / out, 1.0 / (out + t) - 1.0 / out
            for j in range(n):
                total[j] += product[j] * (inverse + step * own[j])


@nb.njit(cache=True, nogil=True)
def explain_moments(paths, bins, slopes, values):
    """Add slopes @ (Shapley values of the moments) to values float64 [p, L, n].

    bins uint8 [p, n]; slopes float64 [L, M, n]
    """
    deepest = 1
    for leaf in range(paths.start.size - 1):
        deepest = max(deepest, paths.start[leaf + 1] - paths.start[leaf])
    passes, found, pull = np.empty((deepest, _BLOCK)), np.empty((deepest, _BLOCK)), np.empty(_BLOCK)
    for low in range(0, bins.shape[1], _BLOCK):
        n = min(_BLOCK, bins.shape[1] - low)
        here = bins[:, low : low + n].copy()
        for leaf in range(paths.start.size - 1):
            first, d = paths.start[leaf], paths.start[leaf + 1] - paths.start[leaf]
            _leaf_games(paths, leaf, here, passes, found)
            for line in range(slopes.shape[0]):
                pull[:] = 0.0
                for m in range(slopes.shape[1]):
                    moment, slope = paths.moments[leaf, m], slopes[line, m, low : low + n]
                    if moment != 0.0:
                        for j in range(n):
                            pull[j] += moment * slope[j]
                for i in range(d):
                    share, own, integral = paths.share[first + i], passes[i], found[i]
                    total = values[paths.feature[first + i], line, low : low + n]
                    for j in range(n):
                        total[j] += pull[j] * (own[j] - share) * integral[j]


@nb.njit(cache=True, nogil=True)
def add_up(leaves, values, totals):
    """Add the moments [leaves, M] of every unit's leaves [n, T], -1 for none, to totals [n, M]."""
    for i in range(leaves.shape[0]):
        for leaf in leaves[i]:
            if leaf >= 0:
                for m in range(values.shape[1]):
                    totals[i, m] += values[leaf, m]
