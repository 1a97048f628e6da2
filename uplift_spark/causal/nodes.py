"""One node is one 64-bit word: child or leaf id (32 bits) | threshold or set id (16) | flags (3) | feature (13).

The bits are laid out so that a step down the tree needs no branch: with m the MISSING_RIGHT bit a row goes right if
(bin - m) mod 256 > threshold, the threshold being stored less m; the missing bin 0 wraps to 255 where m is set.
"""

from __future__ import annotations

import numba as nb
import numpy as np

MISSING_RIGHT, CATEGORICAL, LEAF = 1 << 13, 1 << 14, 1 << 15
MAX_FEATURES = 1 << 13
MAX_SETS = 1 << 16
NO_THRESHOLD = 0xFFFF  # above every bin: nothing goes right


@nb.njit(cache=True, nogil=True, inline="always")
def goes_right(word, bin_):
    """1 if a row with this bin goes right at this numeric split, else 0."""
    shifted = (bin_ - np.int64((word >> np.uint64(13)) & np.uint64(1))) & 255
    return np.int64(shifted > np.int64((word >> np.uint64(16)) & np.uint64(0xFFFF)))


@nb.njit(cache=True, nogil=True, inline="always")
def outside(sets, at, bin_):
    """1 if the category is not in the set that goes left, else 0."""
    return np.int64((sets[at, bin_ >> 6] >> np.uint64(bin_ & 63)) & np.uint64(1)) ^ 1


@nb.njit(cache=True, nogil=True, inline="always")
def node_feature(word):
    """Feature index of a split's word."""
    return np.int64(word & np.uint64(MAX_FEATURES - 1))


@nb.njit(cache=True, nogil=True, inline="always")
def node_set(word):
    """Set index of a categorical split's word (the threshold field)."""
    return np.int64((word >> np.uint64(16)) & np.uint64(0xFFFF))


@nb.njit(cache=True, nogil=True, inline="always")
def node_child(word):
    """Left child of a split (the right one is next to it), or the leaf id of a leaf."""
    return np.int64(word >> np.uint64(32))


@nb.njit(cache=True, nogil=True)
def leaf_word(leaf):
    """The node word of a leaf."""
    return np.uint64(leaf) << np.uint64(32) | np.uint64(LEAF)


@nb.njit(cache=True, nogil=True)
def split_word(split, child, set_id, categorical):
    """The node word of a split whose left child is `child`."""
    word = np.uint64(child) << np.uint64(32) | np.uint64(split.feature)
    if categorical:
        return word | np.uint64(set_id) << np.uint64(16) | np.uint64(CATEGORICAL)
    if split.missing_left:
        return word | np.uint64(split.threshold) << np.uint64(16)
    return word | np.uint64(split.threshold - 1) << np.uint64(16) | np.uint64(MISSING_RIGHT)
