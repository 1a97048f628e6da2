"""The rules that choose what the user left open, from n, p, levels and signal."""

from __future__ import annotations

import math

import numpy as np

from uplift_spark.causal.criteria import CRITERIA
from uplift_spark.causal.rows import Encoded, Plan

MAX_DEPTH = 20
ROWS_PER_BUCKET = 12_500  # eight buckets of 12,500 rows equalled one forest of 100 k rows; fewer rows lost accuracy
LEAVES_PER_BUCKET = 100  # a bucket holds this many smallest leaves, or its trees are too coarse to find the effect
FEWEST_BUCKETS = 4  # below this the trees of a little bag would share their growing rows and not be different trees
MOST_ROWS = 250_000  # a bucket that one worker grows in seconds
LEAF_SCALE = 2.0
SMALLEST_LEAF = 5.0  # rows per level that a leaf needs at least, however strong the signal


def n_buckets(rows: int, wanted_leaf: float) -> int:
    """Buckets by rows per bucket and signal, never by cores: 1, then 4 to 8, then as many as keep a bucket small."""
    fitting = min(8, int(rows // max(ROWS_PER_BUCKET, LEAVES_PER_BUCKET * wanted_leaf)))
    return max(fitting if fitting >= FEWEST_BUCKETS else 1, math.ceil(rows / MOST_ROWS) if rows > 4 * MOST_ROWS else 1)


def max_bins(rows: int) -> int:
    """Numeric bins: enough to place a cut among the rows of a bucket, few enough to scan quickly."""
    return 64 if rows < 1_000_000 else 128


def mtry(n_features: int) -> int:
    """Features tried per node (grf's rule: √p + 20, capped)."""
    return min(n_features, math.ceil(math.sqrt(n_features) + 20))


def sample_rows(n_features: int) -> int:
    """Rows collected to fix bins and leaf size: 100,000, fewer for very wide frames so that memory stays bounded."""
    return max(20_000, min(100_000, 20_000_000 // max(1, n_features)))


def wanted_leaf(sample: Encoded, plan: Plan) -> float:
    """Leaf size in rows at which a leaf's effect is about as large as its noise; infinite without signal.

    signal  explained sum of squares per row: of the average effect, plus what each feature's quarters add beyond
            chance (three standard deviations)
    noise   residual variance x number of contrasts, as each level's effect comes from its own rows
    """
    basis = CRITERIA[plan.criterion].basis(plan.levels)
    root = _cells(sample, np.zeros(sample.level.size, np.int64), 1, len(plan.levels))[0]
    explained, noise = _explained(root, basis), _noise(sample, root)
    q = basis.shape[0]
    signal = max(0.0, explained - q * noise)
    for j in range(sample.bins.shape[1]):
        groups = _quarters(sample.bins[:, j])
        cells = _cells(sample, groups, int(groups.max()) + 1, len(plan.levels))
        extra = sum(_explained(c, basis) for c in cells) - explained
        chance = (len(cells) - 1) * q
        if extra > (chance + 3 * math.sqrt(2 * chance)) * noise:
            signal += extra - chance * noise
    contrasts = len(plan.levels) - 1
    return LEAF_SCALE * contrasts * noise * sample.level.size / signal if signal > 0 else math.inf


def min_leaf(wanted: float, rows: int, buckets: int, n_levels: int) -> int:
    """Smallest growing leaf in rows: the wanted size on a coarse grid, from a floor per level to 1/8 of a tree's rows.

    Across buckets a leaf is estimated on several times the rows that grew it, so half the floor does.
    """
    smallest = SMALLEST_LEAF * n_levels / (1 if buckets == 1 else 2)
    largest = max(smallest, rows / buckets / 4 / 8)
    grid = 2.0 ** round(math.log2(max(1.0, min(wanted, largest))))
    return max(1, round(min(max(grid, smallest), largest)))


def _quarters(bins: np.ndarray) -> np.ndarray:
    """Group rows by bin into at most four groups of about equal size: int64 [n]."""
    counts = np.bincount(bins, minlength=256)
    before = np.cumsum(counts) - counts
    group = np.minimum(4 * before // max(1, bins.size), 3)
    _, compact = np.unique(group[bins], return_inverse=True)
    return compact


def _cells(sample: Encoded, groups: np.ndarray, n_groups: int, n_levels: int) -> np.ndarray:
    """Σw and Σwy per group and level, float64 [groups, K, 2]; exact sums of integers."""
    cells = np.zeros((2, n_groups * n_levels), np.int64)
    at = groups * n_levels + sample.level
    np.add.at(cells[0], at, sample.w)
    np.add.at(cells[1], at, sample.wy)
    return np.moveaxis(cells.reshape(2, n_groups, n_levels), 0, 2).astype(np.float64)


def _explained(cells: np.ndarray, basis: np.ndarray) -> float:
    """θ'Aθ of one group of rows from its level cells [K, 2]; coordinates without scatter explain nothing."""
    n, s = cells[:, 0], cells[:, 1]
    total = n.sum()
    if total == 0:
        return 0.0
    centred = basis - (basis * n).sum(axis=1, keepdims=True) / total
    scatter = (centred[:, None, :] * centred[None, :, :] * n).sum(axis=2)
    target = (centred * s).sum(axis=1)
    return float(target @ np.linalg.pinv(scatter, rcond=1e-10) @ target)


def _noise(sample: Encoded, root: np.ndarray) -> float:
    """Residual variance of the outcome within levels, in the fixed-point units of Σwy² / Σw."""
    n, s = root[:, 0], root[:, 1]
    means = s / np.maximum(n, 1)
    residual = sample.wy - means[sample.level] * sample.w
    return float((residual * residual / np.maximum(sample.w, 1)).sum() / max(1, sample.level.size))
