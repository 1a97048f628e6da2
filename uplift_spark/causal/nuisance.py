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
from uplift_spark.causal.kernels import leaves_of
from uplift_spark.causal.splits import Limits
from uplift_spark.causal.structure import Structure, Tree, assemble

TREES = 16  # per fold: more lowered the residual variance by under half a percent
LEAVES = 400  # at most, so that the baseline stays small in the model file
SMALLEST = 10  # rows per leaf
WORTH = 0.01  # share of the outcome's variance that the baseline must explain on rows it was not grown on


class Baseline(NamedTuple):
    """Trees of fold 0's rows, then those of fold 1's; values float64 [leaves] on the outcome's scale."""

    structure: Structure
    values: np.ndarray

    def predict(self, bins: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """m(x) of rows with bins uint8 [n, p] in folds int64 [n]: float64 [n]."""
        return _averages(self.structure.routes, self.values, bins, fold)


@nb.njit(cache=True, nogil=True)
def _averages(routes, values, bins, fold):
    half = routes.rounds.size // 2
    leaves = np.empty((bins.shape[0], routes.rounds.size), np.int32)
    leaves_of(routes, bins, leaves)
    out = np.zeros(bins.shape[0])
    for i in range(bins.shape[0]):
        for t in range(fold[i] * half, (fold[i] + 1) * half):
            out[i] += values[leaves[i, t]]
        out[i] /= half
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

    def one(number: int) -> Tree:
        others = fold != number // TREES
        draw = (mix_all(key, seed, FOLDS + np.uint64(1 + number)) & np.uint64(1)) == 1
        mine = np.flatnonzero(others & draw).astype(np.int32)
        work = (mine, np.zeros(mine.size, np.uint8), w[mine], wy[mine])
        leaf = max(SMALLEST, mine.size / LEAVES) * w.mean()
        limits = Limits(float(leaf), 12, 0.0, 0.0, len(columns), 0.05)
        tree_seed = np.uint64(mix(np.uint64(number), seed, TREE))
        nodes, sets, leaves, _, _ = grow_tree(columns, work, shape, limits, tree_seed, np.zeros(len(columns)))
        return Tree(number, nodes, sets, int(leaves))

    if min(np.bincount(fold, minlength=2)) < 4 * SMALLEST:
        return None
    with ThreadPoolExecutor() as pool:
        structure = assemble(list(pool.map(one, range(2 * TREES))), 2 * TREES)
    leaves = np.empty((key.size, 2 * TREES), np.int32)
    by_row = np.ascontiguousarray(columns.T)
    leaves_of(structure.routes, by_row, leaves)
    baseline = Baseline(structure, _leaf_means(leaves, fold, w, wy, structure.n_leaves) * scale)
    y = wy / w * scale
    centre = np.average(y, weights=w)
    before, after = ((y - m) ** 2 @ w for m in (centre, baseline.predict(by_row, fold)))
    return baseline if after < (1.0 - WORTH) * before else None


def _leaf_means(leaves: np.ndarray, fold: np.ndarray, w: np.ndarray, wy: np.ndarray, n_leaves: int) -> np.ndarray:
    """Mean of the rows a leaf's tree may use, float64 [leaves], the overall mean where a leaf has none."""
    sums = np.zeros((2, n_leaves), np.int64)
    for t in range(leaves.shape[1]):
        others = fold != t // TREES
        np.add.at(sums[0], leaves[others, t], w[others])
        np.add.at(sums[1], leaves[others, t], wy[others])
    overall = wy.sum() / w.sum()
    return np.where(sums[0] > 0, sums[1] / np.maximum(sums[0], 1), overall)
