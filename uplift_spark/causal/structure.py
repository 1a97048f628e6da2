"""Split structure as flat arrays: trees back to back, and the layout they are walked in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from uplift_spark.causal.routing import Routes, routes_of


class Structure(NamedTuple):
    """Trees back to back. Tree t owns nodes[node_start[t]:node_start[t+1]], likewise sets and leaves; may own none."""

    nodes: np.ndarray
    node_start: np.ndarray
    sets: np.ndarray
    set_start: np.ndarray
    leaf_start: np.ndarray

    @property
    def n_trees(self) -> int:
        return self.node_start.size - 1

    @property
    def n_leaves(self) -> int:
        return int(self.leaf_start[-1])

    @property
    def routes(self) -> Routes:
        """The layout the kernels walk; made in a millisecond, so never stored."""
        words, leaf, rounds = routes_of(*frozen((self.nodes, self.node_start, self.leaf_start)))
        return Routes(*frozen((words, leaf, self.node_start, rounds, self.sets, self.set_start)))


class Tree(NamedTuple):
    """One grown tree before it joins the forest."""

    number: int
    nodes: np.ndarray
    sets: np.ndarray
    n_leaves: int


def assemble(trees: list[Tree], n_trees: int) -> Structure:
    """Concatenate trees in the order of their numbers; a number without a tree owns nothing."""
    ordered = sorted(trees, key=lambda tree: tree.number)
    sizes = np.zeros((3, n_trees + 1), np.int64)
    for tree in ordered:
        sizes[:, tree.number + 1] = (tree.nodes.size, len(tree.sets), tree.n_leaves)
    starts = np.cumsum(sizes, axis=1)
    nodes = np.concatenate([t.nodes for t in ordered]) if ordered else np.empty(0, np.uint64)
    # The kernels index sets unconditionally, so there is always one row.
    sets = np.concatenate([*(t.sets for t in ordered), np.zeros((1, 4), np.uint64)])
    return Structure(nodes, starts[0], sets, starts[1], starts[2])


def frozen(arrays: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Read-only views: arrays from Arrow are read-only, and compiled kernels come in one kind only if all are."""
    views = tuple(array.view() for array in arrays)
    for view in views:
        view.flags.writeable = False
    return views
