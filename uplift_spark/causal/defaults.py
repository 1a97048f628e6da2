"""The rules that choose what the user left open, from n, p, levels and signal.

Signal decides. Let h be the effect's heterogeneity per row, θ'Aθ over noise: about .2 for an effect as variable as the
noise in a balanced trial, 4e-4 for lifts of a few points on a 5 % base rate. n·h then counts how much the data can tell
of the effect's shape. In simulations of both kinds from 2,000 to 1 M rows the smallest errors were at 5 leaves per tree
for n·h = 44, 14 for 400, 25 for 2,000, 60 for 20,000, 150 for 200,000, and intervals were truest at somewhat more where
signals are strong: (n·h)^.44 leaves. Weak signals need as many rows to grow on as they can get, a quarter of them;
strong ones are found in few, and more is then gained from estimating on the rest: buckets multiply as √(n·h) does
(`tests/benchmarks/statistical_tables.py buckets leaves` prints both sides of each rule).
"""

from __future__ import annotations

import math

import numpy as np

from uplift_spark.causal.criteria import CRITERIA
from uplift_spark.causal.grower import Shape, grow_tree
from uplift_spark.causal.rows import Encoded, Plan
from uplift_spark.causal.splits import Limits

MAX_DEPTH = 20
LEAVES = 0.44  # power of n·h that a tree has leaves
MOST_ROWS = 250_000  # a bucket that one worker grows in seconds
SKEW = 2  # a bucket may be this many times MOST_ROWS before its growing rows are thinned; hashing varies by far less
MOST_BUCKETS = 32  # unless buckets would be larger than that
STRONG, WEAK = 1600.0, 320.0  # n·h from which one of 8 buckets, and below which half of them, grow a tree best
SMALLEST_LEAF = 5.0  # rows per level that a leaf needs at least, however strong the signal
UNSEEN = 4.0  # n·h that a sample may hide: what is taken where it shows nothing


def buckets(rows: int, signal: float) -> tuple[int, int]:
    """(number of buckets, buckets that grow a tree) for n rows with n·h = signal. By signal, never by cores."""
    largest = math.ceil(rows / MOST_ROWS)
    if signal < WEAK:
        return max(8, largest), 4 if largest <= 8 else 1
    wanted = 4 if signal < STRONG else min(MOST_BUCKETS, 2 ** round(math.log2(max(8.0, math.sqrt(signal) / 8.0))))
    return max(wanted, largest), 1


def most_rows(growth_buckets: int) -> int:
    """Rows that one worker may be given to grow trees from; a bucket that exceeds them is thinned."""
    return SKEW * MOST_ROWS * growth_buckets


def min_leaf(rows: int, signal: float, design: tuple[int, int], n_levels: int) -> int:
    """Smallest growing leaf in rows for `buckets`' design, from a floor per level upwards."""
    n_buckets, growth_buckets = design
    grown = min(rows * growth_buckets / n_buckets, most_rows(growth_buckets)) / 2
    wanted = grown / max(signal, UNSEEN) ** LEAVES
    # Across buckets a leaf is estimated on several times the rows that grew it, so half the floor does.
    smallest = SMALLEST_LEAF * n_levels / (2 if growth_buckets < n_buckets / 2 else 1)
    return max(1, round(max(smallest, min(wanted, grown / 4))))


def max_bins(rows: int) -> int:
    """Numeric bins: enough to place a cut among the rows of a bucket, few enough to scan quickly."""
    return 64 if rows < 1_000_000 else 128


def mtry(n_features: int) -> int:
    """Features tried per node: all of them, until a pilot has learnt which have evidence."""
    return n_features


def sample_rows(n_features: int) -> int:
    """Rows collected for planning (bins, baseline, signal): 100,000, fewer for very wide frames to bound memory."""
    return max(20_000, min(100_000, 20_000_000 // max(1, n_features)))


def shape_of(plan: Plan) -> Shape:
    """What the grower needs to know of the columns."""
    basis = np.ascontiguousarray(CRITERIA[plan.criterion].basis(plan.levels))
    return Shape(basis, *bins_of(plan), 1.0)


def bins_of(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(number of bins int64 [p], categorical bool [p])."""
    return np.array([b.n_bins for b in plan.bins], np.int64), np.array([b.categorical for b in plan.bins], np.bool_)


def signal(sample: Encoded, plan: Plan, rows: int) -> float:
    """n·h of all `rows`, from a shallow pilot tree on the sample; at least what the sample could not have shown."""
    n = sample.unit.size
    work = (np.arange(n, dtype=np.int32), sample.level.copy(), sample.w.copy(), sample.wy.copy())
    leaf = max(SMALLEST_LEAF * len(plan.levels), n / 64) * sample.w.mean()
    limits = Limits(float(leaf), 8, 0.0, 0.2, len(plan.bins), 0.1)
    known = np.zeros(len(plan.bins))
    *_, found = grow_tree(np.ascontiguousarray(sample.bins.T), work, shape_of(plan), limits, np.uint64(0), known)
    return max(2.0 * float(found), UNSEEN) * rows / n
