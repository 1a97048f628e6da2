"""The outcome's baseline m(x) = E[Y | X]: a cross-fitted regression forest on the planning sample, subtracted from
every outcome before effects are sought ("centring", Robinson 1988; Athey, Tibshirani & Wager 2019, s. 6.1).

In a trial any m(x) that a row's own outcome has no part in leaves effects unbiased, so a bounded sample does: what the
features explain of the outcome is taken out of the noise. Rows are in one of two folds by hash; a row's baseline comes
from the trees that were grown on the other fold.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba as nb
import numpy as np

from uplift_spark.causal.grower import Shape, grow_tree
from uplift_spark.causal.hashing import FOLDS, TREE, folds_of, mix, mix_all
from uplift_spark.causal.routing import BLOCK, leaves_of
from uplift_spark.causal.splits import Limits
from uplift_spark.causal.structure import Structure, Tree, assemble, frozen

TREES = 16  # per fold: more lowered the residual variance by under half a percent
LEAVES = 400  # at most, so that the baseline stays small in the model file
SMALLEST = 10  # rows per leaf
WORTH = 0.01  # share of the outcome's variance that the baseline must explain on rows it was not grown on


@nb.njit(cache=True, nogil=True)
def averages(routes, values, bins, fold, out):
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
        routes, given = self.structure.routes, frozen((bins, fold, self.values))
        out = np.empty(len(bins))

        def some_rows(low: int, high: int) -> None:
            averages(routes, given[2], given[0][low:high], given[1][low:high], out[low:high])

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
        leaf = max(SMALLEST, mine.size / LEAVES) * w.mean()
        limits = Limits(float(leaf), float(leaf), 12, 0.0, 0.0, len(columns), 0.05)
        work = (mine.astype(np.int32), np.zeros(mine.size, np.uint8), w[mine], wy[mine])
        return grow_tree(columns, work, shape, limits, np.uint64(mix(np.uint64(number), seed, TREE)), known)

    def tree(number: int) -> Tree:
        draw = (mix_all(key, seed, FOLDS + np.uint64(1 + number)) & np.uint64(1)) == 1
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
    given = frozen((by_row, fold, w, wy))
    add_leaves(structure.routes, given, sums)
    means = np.where(sums[:, 0] > 0, sums[:, 1] / np.maximum(sums[:, 0], 1), wy.sum() / w.sum())
    baseline = Baseline(structure, means * scale)
    y = wy / w * scale
    centre = np.average(y, weights=w)
    before, after = ((y - m) ** 2 @ w for m in (centre, baseline.predict(by_row, fold)))
    return baseline if after < (1.0 - WORTH) * before else None
