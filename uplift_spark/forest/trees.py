"""Trees as flat arrays: nodes, split structure, and the walk of many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# --------------------------------------------------------------------------------------------------------------------
# One node is one 64-bit word: child or leaf id (32 bits) | threshold or set id (16) | flags (3) | feature (13).
# The bits are laid out so that a step down the tree needs no branch: with m the MISSING_RIGHT bit a row goes right if
# (bin - m) mod 256 > threshold, the threshold being stored less m; the missing bin 0 wraps to 255 where m is set.

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


# --------------------------------------------------------------------------------------------------------------------
# One step, for sixteen rows at once, down a tree or of a search: vector instructions that numba does not write
# itself.
# Numba cannot know that the arrays of a loop with table look-ups do not overlap, so it takes the rows one by one. Here
# the look-ups are LLVM's gathers: single instructions where the processor has them (AVX2, AVX-512), sixteen loads where
# it has not; the results are the same. Low halves of words come first in memory, as on every processor Spark runs on.

LANES = 16
OVERREAD = 3  # bytes that a gather of a row's last bin reads beyond it

_BIT, _BYTE, _INT, _LONG = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_INTS, _BITS = ir.VectorType(_INT, LANES), ir.VectorType(_BIT, LANES)
_POINTERS = ir.VectorType(ir.PointerType(), LANES)
_REALS = ir.VectorType(ir.DoubleType(), LANES)
_EVERY = ir.Constant(_BITS, [1] * LANES)


def _all(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _lanes_of(b, scalar):
    """A 32-bit integer in every lane."""
    return b.shuffle_vector(b.insert_element(_all(0), b.trunc(scalar, _INT), _INT(0)), _all(0), _all(0))


def _gather(b, base, index, element, wanted=_EVERY, kind=_INTS, name="i32"):
    """What stands at base + index · size of `element`, 32-bit words unless said; zero where not wanted."""
    addresses = b.gep(base, [index], source_etype=element)
    addresses.type = _POINTERS  # llvmlite takes the base's type; a vector of indices gives a vector of pointers
    signature = ir.FunctionType(kind, [_POINTERS, _INT, _BITS, kind])
    gather = cgutils.get_or_insert_function(b.module, signature, f"llvm.masked.gather.v{LANES}{name}.v{LANES}p0")
    return b.call(gather, [addresses, ir.Constant(_INT, 1), wanted, ir.Constant(kind, None)])


def _data(context, b, kinds, arrays):
    """Pointers to the arrays' first elements."""
    return [context.make_array(kind)(context, b, one).data for kind, one in zip(kinds, arrays, strict=True)]


def _outside(b, sets, low, bin_, wanted):
    """1 in lanes whose category is not in the set that goes left; see `outside`."""
    word_index = b.add(b.shl(b.lshr(low, _all(16)), _all(3)), b.lshr(bin_, _all(5)))  # a set is eight 32-bit words
    word = _gather(b, sets, word_index, _INT, wanted)
    return b.and_(b.not_(b.lshr(word, b.and_(bin_, _all(31)))), _all(1))


def _step(categorical: bool) -> Callable[..., ir.Value]:
    def build(context, b, signature, arguments):
        words, sets, bins, which, at = _data(context, b, signature.args[0], cgutils.unpack_tuple(b, arguments[0]))
        (first, first_set, width), j = cgutils.unpack_tuple(b, arguments[1]), arguments[2]
        at = b.bitcast(b.gep(at, [j]), _INTS.as_pointer())
        which = b.bitcast(b.gep(which, [j]), _INTS.as_pointer())
        words, here = b.gep(words, [first]), b.shl(b.load(at, align=4), _all(1))
        low = _gather(b, words, here, _INT)
        child = _gather(b, words, b.or_(here, _all(1)), _INT)
        row = b.mul(b.load(which, align=4), _lanes_of(b, width))
        offset = b.add(row, b.and_(low, _all(MAX_FEATURES - 1)))
        bin_ = b.and_(_gather(b, bins, offset, _BYTE), _all(255))
        missing_right = b.and_(b.lshr(low, _all(13)), _all(1))
        shifted = b.and_(b.sub(bin_, missing_right), _all(255))
        right = b.zext(b.icmp_unsigned(">", shifted, b.lshr(low, _all(16))), _INTS)
        if categorical:
            by_set = b.icmp_unsigned("!=", b.and_(low, _all(CATEGORICAL)), _all(0))
            sets = b.gep(sets, [b.mul(first_set, ir.Constant(_LONG, 4))])
            right = b.select(by_set, _outside(b, sets, low, bin_, by_set), right)
        b.store(b.add(child, right), at, align=4)
        return context.get_dummy_value()

    return build


@intrinsic
def step_numeric(context, arrays, start, j):
    """Rows which[j : j + 16] take one step from the nodes at[j : j + 16] of a tree.

    arrays is (words, sets, bins, which, at): words uint64 and sets uint64 [., 4] as in `Routes`; bins uint8,
    flat, with `OVERREAD` bytes more at the end; which and at int32, at written. start is (the tree's first node, its
    first set, bins of a row). No node may be categorical.
    """
    return types.void(arrays, start, j), _step(False)


@intrinsic
def step_any(context, arrays, start, j):
    """`step_numeric` where some nodes are categorical."""
    return types.void(arrays, start, j), _step(True)


@intrinsic
def search_step(context, edges, values, below, step):
    """Where edges[below[j] + step - 1] < values[j], 0 ≤ j < 16, add step to below[j]: one round of a binary search.

    edges float64 [.], values float64 [16], below int32 [16], written; a missing value, NaN, is below every edge.
    """

    def build(context, b, signature, arguments):
        edges, values, below = _data(context, b, signature.args[:3], arguments[:3])
        below = b.bitcast(below, _INTS.as_pointer())
        here, step = b.load(below, align=4), _lanes_of(b, arguments[3])
        last = b.add(here, b.sub(step, _all(1)))
        edge = _gather(b, edges, last, ir.DoubleType(), kind=_REALS, name="f64")
        value = b.load(b.bitcast(values, _REALS.as_pointer()), align=8)
        more = b.and_(b.sext(b.fcmp_ordered("<", edge, value), _INTS), step)
        b.store(b.add(here, more), below, align=4)
        return context.get_dummy_value()

    return types.void(edges, values, below, step), build


@intrinsic
def take(context, values, leaves, out, j, width, column):
    """out[j : j + 16] = values[leaves[j : j + 16] · width + place]; a negative leaf counts as 0.

    values and out float64, flat; leaves int32; both may be read or written up to the next multiple of 16.
    """

    def build(context, b, signature, arguments):
        values, leaves, out = _data(context, b, signature.args[:3], arguments[:3])
        j, width, column = arguments[3:]
        leaf = b.load(b.bitcast(b.gep(leaves, [j]), _INTS.as_pointer()), align=4)
        leaf = b.select(b.icmp_signed("<", leaf, _all(0)), _all(0), leaf)
        indices = b.add(b.mul(leaf, _lanes_of(b, width)), _lanes_of(b, column))
        gathered = _gather(b, values, indices, ir.DoubleType(), kind=_REALS, name="f64")
        b.store(gathered, b.bitcast(b.gep(out, [j]), _REALS.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(values, leaves, out, j, width, column), build


# --------------------------------------------------------------------------------------------------------------------
# Rows down the trees: the layout that is walked, and the walk, many rows a step at a time.

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

    lists is (which, at, scratch, bins) of `new_lists`, bins from `load_block`; width is a row's number of bins. All
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
def load_block(bins, low, count, lists):
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
        load_block(bins, low, count, lists)
        for t in range(len(routes.rounds)):
            grown = routes.root[t] < routes.root[t + 1]
            if grown:
                walk(routes, t, lists, count, width)
            for j in range(count):
                out[low + j, t] = at[j] if grown else -1


# --------------------------------------------------------------------------------------------------------------------
# Split structure as flat arrays: trees back to back, and the layout they are walked in.


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


TREE_FAULTS = (
    "",
    "has nodes and no leaves, or leaves and no nodes",
    "has a leaf that is not its own, or is there twice",
    "has a child that is not its own, comes before its parent or has two",
    "splits by a feature that is not there",
    "splits a feature in another way than its bins allow",
    "splits by a set that is not its own",
)


@nb.njit(cache=True, nogil=True)
def first_fault(nodes, node_start, sets, set_start, leaf_start, n_bins, categorical):
    """(tree, number in `TREE_FAULTS`) of the first tree that is none, (0, 0) if all are; starts lie within the arrays.

    A tree is what `routes_of` and the walk take without looking: children come after their parents, side by side, and
    have one each; every leaf is there once; features, thresholds and sets are those of the bins.
    """
    n_trees, features = node_start.size - 1, n_bins.size
    parents, known = np.zeros(nodes.size, np.bool_), np.zeros(leaf_start[n_trees], np.bool_)
    for t in range(n_trees):
        base, first = node_start[t], leaf_start[t]
        size, leaves, own_sets = node_start[t + 1] - base, leaf_start[t + 1] - first, set_start[t + 1] - set_start[t]
        if size != max(2 * leaves - 1, 0):
            return t, 1
        for v in range(size):
            word = nodes[base + v]
            child, feature, threshold = node_child(word), node_feature(word), node_set(word)
            if word & np.uint64(LEAF):
                if leaf_word(child) != word or child >= leaves or known[first + child]:
                    return t, 2
                known[first + child] = True
                continue
            if child <= v or child + 1 >= size or parents[base + child] or parents[base + child + 1]:
                return t, 3
            parents[base + child] = parents[base + child + 1] = True
            if feature >= features:
                return t, 4
            by_set = word & np.uint64(CATEGORICAL) != 0
            missing_right = np.int64(word & np.uint64(MISSING_RIGHT) != 0)
            if by_set != categorical[feature] or (by_set and missing_right):
                return t, 5
            if not by_set and threshold + missing_right >= n_bins[feature]:
                return t, 5
            if by_set and threshold >= own_sets:
                return t, 6
    return 0, 0


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
