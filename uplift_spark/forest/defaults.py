"""The rules that choose what the user left open, from n, p, levels and signal.

Signal decides. Let h be the effect's heterogeneity per row, θ'Aθ over noise: about .2 for an effect as variable as the
noise in a balanced trial, 4e-4 for lifts of a few points on a 5 % base rate. n·h then counts how much the data can tell
of the effect's shape. In simulations of both kinds from 2,000 to 1 M rows the smallest errors were at 5 leaves per tree
for n·h = 44 and less, 14 for 400, 25 for 2,000, 60 for 20,000, 150 for 200,000, and intervals were truest at somewhat
more where signals are strong: (n·h)^.44 leaves. Weak signals need as many rows to grow on as they can get, a quarter
of them; strong ones are found in few, and more is then gained from estimating on the rest and from trees that differ:
the best number of buckets was 4 for n·h = 400, 16 for 2,000, 64 for 11,000, 128 for 20,000 and beyond, about
(n·h)^.75 / 20 (`tests/benchmarks/statistical_tables.py buckets leaves` prints these figures).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from uplift_spark.forest.effects import CRITERIA
from uplift_spark.forest.encode import BinnedRows, ForestPlan
from uplift_spark.forest.grow import Limits, Shape, grow_tree, noise_level, null_gain
from uplift_spark.forest.trees import Tree, assemble, leaves_of
from uplift_spark.stats.sampling import folds_of

MAX_DEPTH = 20
LEAVES_POWER = 0.44  # power of n·h that a tree has leaves
MOST_ROWS = 250_000  # a bucket that one worker grows in seconds
SKEW = 2  # a bucket may be this many times MOST_ROWS before its growing rows are thinned; hashing varies by far less
MOST_BUCKETS = 128  # unless they would be too large; with 200 trees each of them still grows one
STRONG_SIGNAL, WEAK_SIGNAL = (
    1600.0,
    320.0,
)  # n·h from which more than 4 buckets, and below which half of 8, grow a tree best
SMALLEST_LEAF = 5.0  # rows per level that a leaf needs at least, however strong the signal
MIN_SIGNAL = 40.0  # n·h that a sample may hide: what is taken where it shows less
SMALL = 0.2  # of a usual leaf is the smallest where signals are weak


def buckets(rows: int, signal: float) -> tuple[int, int]:
    """(number of buckets, buckets that grow a tree) for n rows with n·h = signal. By signal, never by cores."""
    largest = math.ceil(rows / MOST_ROWS)
    if signal < WEAK_SIGNAL:
        return max(8, largest), 4 if largest <= 8 else 1
    wanted = 4 if signal < STRONG_SIGNAL else min(MOST_BUCKETS, 2 ** round(math.log2(max(8.0, signal**0.75 / 20.0))))
    return max(wanted, largest), 1


def most_rows(growth_buckets: int) -> int:
    """Rows that one worker may be given to grow trees from; a bucket that exceeds them is thinned."""
    return SKEW * MOST_ROWS * growth_buckets


def leaf_sizes(rows: int, signal: float, design: tuple[int, int], n_levels: int) -> tuple[int, int]:
    """(smallest, smallest usual) growing leaf in rows for `buckets`' design, from a floor per level upwards.

    A weak signal makes usual leaves so large that a group of a tenth of the rows could not be seen; there a leaf
    may be a fifth of the usual one where the group clearly stands out (`grow.small_toll`). In simulations of such a
    group errors fell by a third; where signals are strong, and leaves small anyway, they rose by 2 %.
    """
    n_buckets, growth_buckets = design
    grown = min(rows * growth_buckets / n_buckets, most_rows(growth_buckets)) / 2
    wanted = grown / signal**LEAVES_POWER
    # Across buckets a leaf is estimated on several times the rows that grew it, so half the floor does.
    floor = SMALLEST_LEAF * n_levels / (2 if growth_buckets < n_buckets / 2 else 1)
    usual = max(floor, min(wanted, grown / 4))
    smallest = max(floor, SMALL * usual) if signal < WEAK_SIGNAL else usual
    return max(1, round(smallest)), max(1, round(usual))


def max_bins(rows: int) -> int:
    """Numeric bins: enough to place a cut among the rows of a bucket, few enough to scan quickly."""
    return 64 if rows < 1_000_000 else 128


def mtry(n_features: int) -> int:
    """Features tried per node: all of them, until a pilot has learnt which have evidence."""
    return n_features


def sample_rows(n_features: int) -> int:
    """Rows collected for planning (bins, baseline, signal): 100,000, fewer for very wide frames to bound memory."""
    return max(20_000, min(100_000, 20_000_000 // max(1, n_features)))


def shape_of(plan: ForestPlan) -> Shape:
    """What the grower needs to know of the columns."""
    basis = np.ascontiguousarray(CRITERIA[plan.criterion].basis(plan.levels))
    return Shape(basis, *bins_of(plan), 1.0)


def arms_of(plan: ForestPlan) -> int:
    """Means that a leaf must tell apart: of every level, or as many as a response has coefficients."""
    return len(plan.levels) if plan.reported is None else 2 + 2 * len(CRITERIA[plan.criterion].basis(plan.levels))


def bins_of(plan: ForestPlan) -> tuple[np.ndarray, np.ndarray]:
    """(number of bins int64 [p], categorical bool [p])."""
    return np.array([b.n_bins for b in plan.bins], np.int64), np.array([b.categorical for b in plan.bins], np.bool_)


class Signal(NamedTuple):
    """n·h as found in a sample, and the standard deviation it has where there is no effect to find."""

    estimate: float
    noise: float

    def of_all(self, rows: int, sample: int) -> float:
        """n·h of all `rows`; at least what a sample of that size could not have shown."""
        return max(self.estimate, MIN_SIGNAL) * rows / sample


def signal(sample: BinnedRows, plan: ForestPlan) -> Signal:
    """n·h of the sample's rows, from a pilot tree grown on each half of them and judged on the other half.

    The pilots split only where chance hardly does; the effects of their leaves explain what they do in rows that had no
    part in shaping them. So it is unbiased for what the pilots found, and near zero where there is nothing.
    """
    fold = folds_of(sample.key, np.uint64(plan.seed))
    columns = np.ascontiguousarray(sample.bins.T)
    with ThreadPoolExecutor() as pool:
        halves = list(pool.map(lambda half: _pilot(columns, sample, fold == half, plan), (0, 1)))
    explained, freedom = np.sum(halves, axis=0)
    return Signal(float(explained), math.sqrt(2.0 * freedom))


def _pilot(columns: np.ndarray, sample: BinnedRows, grown: np.ndarray, plan: ForestPlan) -> tuple[float, float]:
    """(explained effect less its expectation by chance, degrees of freedom) of one half's tree on the other half."""
    shape, n_levels = shape_of(plan), len(plan.levels)
    mine, rest = np.flatnonzero(grown), np.flatnonzero(~grown)
    if min(mine.size, rest.size) == 0:
        return 0.0, 0.0
    work = (mine.astype(np.int32), sample.level[mine], sample.w[mine], sample.wy[mine, 0])
    noise = noise_level(work, shape)
    leaf = float(max(SMALLEST_LEAF * arms_of(plan), mine.size / 64) * work[2].mean())
    by_chance = noise * (null_gain(256, False, shape.basis.shape[0]) + 2.0 * math.log(len(columns)))
    limits = Limits(leaf, leaf, 8, by_chance, 0.2, len(columns), 0.1)
    nodes, sets, leaves, _, _ = grow_tree(columns, work, shape, limits, np.uint64(0), np.zeros(len(columns)))
    at = np.empty((rest.size, 1), np.int32)
    leaves_of(assemble([Tree(0, nodes, sets, int(leaves))], 1).routes, sample.bins[rest], at)
    cell = at[:, 0] * n_levels + sample.level[rest]
    sums = [np.bincount(cell, x[rest].astype(float), leaves * n_levels) for x in (sample.w, sample.wy[:, 0])]
    w, wy = (x.reshape(leaves, n_levels) for x in sums)
    apart = _explained(w, wy, shape.basis) - _explained(w.sum(axis=0)[None], wy.sum(axis=0)[None], shape.basis)
    return (float(apart[0] / noise - apart[1]), float(apart[1])) if noise > 0.0 else (0.0, 0.0)


def _explained(w: np.ndarray, wy: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """(Σ θ'Aθ, its degrees of freedom) of leaves with sums w, wy [L, K]."""
    mean = w @ basis.T / np.maximum(w.sum(axis=1), 1.0)[:, None]
    centred = basis - mean[:, :, None]
    scatter = np.einsum("lqk,lk,lrk->lqr", centred, w, centred)
    moment = np.einsum("lqk,lk->lq", centred, wy)
    total = np.einsum("lq,lqr,lr->", moment, np.linalg.pinv(scatter, hermitian=True), moment)
    return np.array([total, np.linalg.matrix_rank(scatter, hermitian=True).sum()])
