"""Rows down the trees: the layout that is walked, and the walk, many rows a step at a time."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.causal.nodes import (
    CATEGORICAL,
    LEAF,
    NO_THRESHOLD,
    goes_right,
    node_child,
    node_feature,
    node_set,
    outside,
)

BLOCK = 512


class Routes(NamedTuple):
    """A structure laid out for walking: leaves point at themselves, so that rows need no test for having arrived.

    words      uint64 [N]: nodes, a leaf's child being itself and nothing going right of it
    leaf       int32 [N]: global leaf index of a leaf
    root       int64 [T + 1]: first node of each tree
    rounds     int64 [T]: steps after which most rows have arrived; -1 where a tree has no structure
    sets, set_start   as in the structure
    """

    words: np.ndarray
    leaf: np.ndarray
    root: np.ndarray
    rounds: np.ndarray
    sets: np.ndarray
    set_start: np.ndarray


@nb.njit(cache=True, nogil=True)
def routes_of(nodes, node_start, leaf_start):
    """(words, leaf, rounds) of `Routes` from a structure."""
    n_trees = node_start.size - 1
    words, leaf, rounds = nodes.copy(), np.full(nodes.size, -1, np.int32), np.full(n_trees, -1)
    depth = np.zeros(nodes.size, np.int64)
    for t in range(n_trees):
        base, total, leaves = node_start[t], 0, 0
        for v in range(base, node_start[t + 1]):  # parents come before their children
            word = nodes[v]
            child = node_child(word)
            if word & np.uint64(LEAF):
                leaf[v] = leaf_start[t] + child
                words[v] = np.uint64(v - base) << np.uint64(32) | np.uint64(NO_THRESHOLD) << np.uint64(16)
                total, leaves = total + depth[v], leaves + 1
            else:
                depth[base + child] = depth[base + child + 1] = depth[v] + 1
        if leaves > 0:
            rounds[t] = (total + leaves - 1) // leaves
    return words, leaf, rounds


@nb.njit(cache=True, nogil=True, inline="always")
def _step(routes, base, first_set, at, bins, i, plain):
    """Where row i goes from node `at` of a tree; a leaf goes to itself. `plain` is a constant: no categorical split."""
    word = routes.words[base + np.int64(at)]
    b = np.int64(bins[i, node_feature(word)])
    if plain or word & np.uint64(CATEGORICAL) == np.uint64(0):
        return node_child(word) + goes_right(word, b)
    return node_child(word) + outside(routes.sets, first_set + node_set(word), b)


@nb.njit(cache=True, nogil=True, inline="always")
def _descend(routes, t, bins, which, count, at, left, plain):
    base, first_set = routes.root[t], routes.set_start[t]
    for j in range(count):
        at[j] = 0
    for _ in range(routes.rounds[t]):
        for j in range(count):
            at[j] = _step(routes, base, first_set, at[j], bins, which[j], plain)
    under_way = 0
    for j in range(count):
        left[under_way] = j
        under_way += int(routes.leaf[base + np.int64(at[j])] < 0)
    while under_way > 0:
        still = 0
        for x in range(under_way):
            j = left[x]
            at[j] = _step(routes, base, first_set, at[j], bins, which[j], plain)
            left[still] = j
            still += int(routes.leaf[base + np.int64(at[j])] < 0)
        under_way = still
    for j in range(count):
        at[j] = routes.leaf[base + np.int64(at[j])]


@nb.njit(cache=True, nogil=True)
def walk(routes, t, bins, lists, count):
    """Leave in at[j] the global leaf index, in tree t, of row which[j], j < count. bins uint8 [n, p].

    lists is (which, at, scratch), int32 [BLOCK] each. All rows take a step before any takes the next: the steps of
    different rows do not wait for one another's memory. After a tree's usual depth only those under way go on.
    """
    which, at, left = lists
    if routes.set_start[t] == routes.set_start[t + 1]:
        _descend(routes, t, bins, which, count, at, left, True)
    else:
        _descend(routes, t, bins, which, count, at, left, False)


@nb.njit(cache=True, nogil=True)
def new_lists():
    """Buffers of `walk`: (which, at, scratch), int32 [BLOCK] each."""
    return np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)


@nb.njit(cache=True, nogil=True)
def leaves_of(routes, bins, out):
    """Global leaf index of every row in every tree, int32 [n, T]; -1 where a tree has no structure."""
    lists = new_lists()
    which, at, _ = lists
    for low in range(0, bins.shape[0], BLOCK):
        count = min(BLOCK, bins.shape[0] - low)
        for j in range(count):
            which[j] = low + j
        for t in range(routes.rounds.size):
            if routes.rounds[t] >= 0:
                walk(routes, t, bins, lists, count)
            for j in range(count):
                out[low + j, t] = at[j] if routes.rounds[t] >= 0 else -1
