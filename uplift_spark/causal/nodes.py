"""One node is one 64-bit word: child or leaf id (32 bits) | threshold or set id (16) | feature (13) | flags (3)."""

from __future__ import annotations

import numba as nb
import numpy as np

LEAF, CATEGORICAL, MISSING_LEFT = 1, 2, 4
MAX_FEATURES = 1 << 13
MAX_SETS = 1 << 16


@nb.njit(cache=True, nogil=True, inline="always")
def goes_left(word, bin_, members):
    """Whether a row with this bin goes left at this split; `members` is the node's set of categories."""
    if word & np.uint64(CATEGORICAL):
        return (members[bin_ >> 6] >> np.uint64(bin_ & 63)) & np.uint64(1) != 0
    if bin_ == 0:
        return word & np.uint64(MISSING_LEFT) != 0
    return bin_ <= np.int64((word >> np.uint64(16)) & np.uint64(0xFFFF))


@nb.njit(cache=True, nogil=True, inline="always")
def node_feature(word):
    """Feature index of a split's word."""
    return np.int64((word >> np.uint64(3)) & np.uint64(MAX_FEATURES - 1))


@nb.njit(cache=True, nogil=True, inline="always")
def node_set(word):
    """Set index of a categorical split's word (the threshold field)."""
    return np.int64((word >> np.uint64(16)) & np.uint64(0xFFFF))


@nb.njit(cache=True, nogil=True, inline="always")
def node_child(word):
    """Left child of a split (the right one is next to it), or the leaf id of a leaf."""
    return np.int64(word >> np.uint64(32))


@nb.njit(cache=True, nogil=True)
def split_word(split, child, set_id, categorical):
    """The node word of a split whose left child is `child`."""
    word = np.uint64(child) << np.uint64(32) | np.uint64(split.feature) << np.uint64(3)
    if categorical:
        return word | np.uint64(set_id) << np.uint64(16) | np.uint64(CATEGORICAL)
    return word | np.uint64(split.threshold) << np.uint64(16) | np.uint64(MISSING_LEFT if split.missing_left else 0)
