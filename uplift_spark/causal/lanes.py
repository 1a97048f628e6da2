"""One step, for sixteen rows at once, down a tree or of a search: vector instructions that numba does not write itself.

Numba cannot know that the arrays of a loop with table look-ups do not overlap, so it takes the rows one by one. Here
the look-ups are LLVM's gathers: single instructions where the processor has them (AVX2, AVX-512), sixteen loads where
it has not; the results are the same. Low halves of words come first in memory, as on every processor Spark runs on.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from uplift_spark.causal.nodes import CATEGORICAL, MAX_FEATURES

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
    places = b.gep(base, [index], source_etype=element)
    places.type = _POINTERS  # llvmlite takes the base's type; a vector of indices gives a vector of pointers
    signature = ir.FunctionType(kind, [_POINTERS, _INT, _BITS, kind])
    gather = cgutils.get_or_insert_function(b.module, signature, f"llvm.masked.gather.v{LANES}{name}.v{LANES}p0")
    return b.call(gather, [places, ir.Constant(_INT, 1), wanted, ir.Constant(kind, None)])


def _data(context, b, kinds, arrays):
    """Pointers to the arrays' first elements."""
    return [context.make_array(kind)(context, b, one).data for kind, one in zip(kinds, arrays, strict=True)]


def _outside(b, sets, low, bin_, wanted):
    """1 in lanes whose category is not in the set that goes left; see `nodes.outside`."""
    place = b.add(b.shl(b.lshr(low, _all(16)), _all(3)), b.lshr(bin_, _all(5)))  # a set is eight 32-bit words
    word = _gather(b, sets, place, _INT, wanted)
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
        place = b.add(row, b.and_(low, _all(MAX_FEATURES - 1)))
        bin_ = b.and_(_gather(b, bins, place, _BYTE), _all(255))
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

    arrays is (words, sets, bins, which, at): words uint64 and sets uint64 [., 4] as in `routing.Routes`; bins uint8,
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
def take(context, values, leaves, out, j, width, place):
    """out[j : j + 16] = values[leaves[j : j + 16] · width + place]; a negative leaf counts as 0.

    values and out float64, flat; leaves int32; both may be read or written up to the next multiple of 16.
    """

    def build(context, b, signature, arguments):
        values, leaves, out = _data(context, b, signature.args[:3], arguments[:3])
        j, width, place = arguments[3:]
        leaf = b.load(b.bitcast(b.gep(leaves, [j]), _INTS.as_pointer()), align=4)
        leaf = b.select(b.icmp_signed("<", leaf, _all(0)), _all(0), leaf)
        places = b.add(b.mul(leaf, _lanes_of(b, width)), _lanes_of(b, place))
        found = _gather(b, values, places, ir.DoubleType(), kind=_REALS, name="f64")
        b.store(found, b.bitcast(b.gep(out, [j]), _REALS.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(values, leaves, out, j, width, place), build
