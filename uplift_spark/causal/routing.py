"""Rows down the trees: the layout that is walked, and the walk, many rows a step at a time."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.causal.lanes import LANES, OVERREAD, step_any, step_numeric
from uplift_spark.causal.nodes import LEAF, NO_THRESHOLD, node_child

BLOCK = 512


class Routes(NamedTuple):
    """A structure laid out for walking: leaves point at themselves, so that rows need no test for having arrived.

    words      uint64 [N]: nodes, a leaf's child being itself and nothing going right of it
    leaf       int32 [N]: global leaf index of a leaf
    root       int64 [T + 1]: first node of each tree
    rounds     int64 [T, 2]: steps after which most rows have arrived, and steps from there to the deepest leaf
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
    words, leaf, rounds = nodes.copy(), np.full(nodes.size, -1, np.int32), np.zeros((n_trees, 2), np.int64)
    depth = np.zeros(nodes.size, np.int64)
    for t in range(n_trees):
        base, total, leaves, deepest = node_start[t], 0, 0, 0
        for v in range(base, node_start[t + 1]):  # parents come before their children
            word = nodes[v]
            child = node_child(word)
            if word & np.uint64(LEAF):
                leaf[v] = leaf_start[t] + child
                words[v] = np.uint64(v - base) << np.uint64(32) | np.uint64(NO_THRESHOLD) << np.uint64(16)
                total, leaves, deepest = total + depth[v], leaves + 1, max(deepest, depth[v])
            else:
                depth[base + child] = depth[base + child + 1] = depth[v] + 1
        if leaves > 0:
            rounds[t, 0] = min(total // leaves + 1, deepest)
            rounds[t, 1] = deepest - rounds[t, 0]
    return words, leaf, rounds


@nb.njit(cache=True, nogil=True, inline="always")
def _steps(routes, t, lists, count, width, rounds):
    """Rows 0 ≤ j < count of the lists take `rounds` steps down tree t, sixteen rows at a time."""
    which, at, _, bins = lists
    arrays = (routes.words, routes.sets, bins, which, at)
    start = (routes.root[t], routes.set_start[t], width)
    if routes.set_start[t] == routes.set_start[t + 1]:
        for _ in range(rounds):
            for j in range(0, count, LANES):
                step_numeric(arrays, start, j)
    else:
        for _ in range(rounds):
            for j in range(0, count, LANES):
                step_any(arrays, start, j)


@nb.njit(cache=True, nogil=True)
def walk(routes, t, lists, count, width):
    """Leave in at[j] the global leaf index, in tree t, of row which[j] of the block, j < count.

    lists is (which, at, scratch, bins) of `new_lists`, its bins loaded by `load`; width is a row's number of bins. All
    rows take a step before any takes the next: the steps of different rows do not wait for one another's memory. After
    a tree's usual depth only those under way go on.
    """
    which, at, (left, late_which, late_at), bins = lists
    first = routes.root[t]
    for j in range(count, min(BLOCK, count + LANES)):
        which[j] = 0  # lanes that are stepped along must be at some row
    for j in range(min(BLOCK, count + LANES)):
        at[j] = 0
    _steps(routes, t, lists, count, width, routes.rounds[t, 0])
    late = 0
    for j in range(count):
        left[late] = j
        late += int(routes.leaf[first + np.int64(at[j])] < 0)
    for x in range(late):
        late_which[x], late_at[x] = which[left[x]], at[left[x]]
    for x in range(late, min(BLOCK, late + LANES)):
        late_which[x], late_at[x] = 0, 0
    _steps(routes, t, (late_which, late_at, lists[2], bins), late, width, routes.rounds[t, 1])
    for x in range(late):
        at[left[x]] = late_at[x]
    for j in range(count):
        at[j] = routes.leaf[first + np.int64(at[j])]


@nb.njit(cache=True, nogil=True)
def new_lists(width):
    """Buffers of `walk` for rows of `width` bins: (which int32 [BLOCK], at int32 [BLOCK], scratch, bins uint8)."""
    scratch = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    bins = np.zeros(BLOCK * width + OVERREAD, np.uint8)
    return np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32), scratch, bins


@nb.njit(cache=True, nogil=True)
def load(bins, low, count, lists):
    """Make rows low ≤ i < low + count of bins uint8 [n, p] the block that the lists are about."""
    width = bins.shape[1]
    for j in range(count):
        for f in range(width):
            lists[3][j * width + f] = bins[low + j, f]


@nb.njit(cache=True, nogil=True)
def leaves_of(routes, bins, out):
    """Global leaf index of every row in every tree, int32 [n, T]; -1 where a tree has no structure."""
    width = bins.shape[1]
    lists = new_lists(width)
    which, at, _, _ = lists
    for j in range(BLOCK):
        which[j] = j
    for low in range(0, bins.shape[0], BLOCK):
        count = min(BLOCK, bins.shape[0] - low)
        load(bins, low, count, lists)
        for t in range(len(routes.rounds)):
            grown = routes.root[t] < routes.root[t + 1]
            if grown:
                walk(routes, t, lists, count, width)
            for j in range(count):
                out[low + j, t] = at[j] if grown else -1
