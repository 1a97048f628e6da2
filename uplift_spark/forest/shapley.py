"""Shapley values of effects: how much each feature adds to a unit's effect, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numba as nb
import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.effects import bag_covariance
from uplift_spark.forest.forest import LOW_SUPPORT, Forest
from uplift_spark.forest.trees import (
    CATEGORICAL,
    LEAF,
    MAX_FEATURES,
    frozen,
    goes_right,
    leaves_of,
    node_child,
    node_feature,
    node_set,
    outside,
)
from uplift_spark.roles import TREATMENT

# --------------------------------------------------------------------------------------------------------------------
# Shapley values of what trees sum: every leaf is a game, units side by side (step 1 of the second part).

_BLOCK = 256  # units side by side: what a leaf needs of them stays in the first cache


class Paths(NamedTuple):
    """What every leaf with rows asks of a unit.

    start    int64 [leaves + 1]: a leaf's entries, one per feature on its path
    feature  int32 [entries]
    share    float64 [entries]: z_f, in (0, 1]
    passing  uint64 [entries, 4]: bins that pass all of the feature's splits, a bit each
    moments  float64 [leaves, M]
    points   float64 [Q + 1, 2, Q]: Gauss-Legendre points in [0, 1] and weights, by their number
    base     float64 [M]: the moments' sum over trees, expected where no feature is known
    """

    start: np.ndarray
    feature: np.ndarray
    share: np.ndarray
    passing: np.ndarray
    moments: np.ndarray
    points: np.ndarray
    base: np.ndarray


@nb.njit(cache=True, nogil=True)
def _left_bins(nodes, sets, set_start, node_start, left):
    """Bins that go left at every split, a bit each, into left uint64 [N, 4]."""
    for t in range(node_start.size - 1):
        for v in range(node_start[t], node_start[t + 1]):
            word = nodes[v]
            if word & np.uint64(LEAF):
                continue
            for b in range(256):
                if word & np.uint64(CATEGORICAL):
                    right = outside(sets, set_start[t] + node_set(word), b)
                else:
                    right = goes_right(word, b)
                if not right:
                    left[v, b >> 6] |= np.uint64(1) << np.uint64(b & 63)


@nb.njit(cache=True, nogil=True)
def _climb(nodes, node_start, leaf_start, cover, parent, weight):
    """Parent of every node (-1 of a root) and the weight of the rows below it; node of every leaf, int64 [leaves]."""
    at = np.empty(leaf_start[-1], np.int64)
    for t in range(node_start.size - 1):
        base = node_start[t]
        for v in range(base, node_start[t + 1]):
            child = node_child(nodes[v])
            if nodes[v] & np.uint64(LEAF):
                at[leaf_start[t] + child] = v
                weight[v] = cover[leaf_start[t] + child]
            else:
                parent[base + child] = parent[base + child + 1] = v
        for v in range(node_start[t + 1] - 1, base, -1):  # parents come before their children
            weight[parent[v]] += weight[v]
    return at


@nb.njit(cache=True, nogil=True)
def _entries(nodes, node_start, tree_nodes, leaf_node, start, entries):
    """Entries of the leaves at leaf_node: counted into start [leaves + 1] and, where entries have room, written.

    tree_nodes  (parent, weight, left bins, tree of every node)
    """
    parent, weight, left, tree = tree_nodes
    feature, share, passing = entries
    path_features = np.empty(MAX_FEATURES, np.int64)
    for leaf in range(leaf_node.size):
        first, v = start[leaf], leaf_node[leaf]
        n_features = 0
        while parent[v] >= 0:
            up = parent[v]
            f, right = node_feature(nodes[up]), v == node_start[tree[v]] + node_child(nodes[up]) + 1
            slot = 0
            while slot < n_features and path_features[slot] != f:
                slot += 1
            if slot == n_features:
                path_features[n_features] = f
                n_features += 1
            if feature.size > 0:
                feature[first + slot] = f
                share[first + slot] *= weight[v] / weight[up]
                for word in range(4):
                    passing[first + slot, word] &= ~left[up, word] if right else left[up, word]
            v = up
        start[leaf + 1] = first + n_features


def paths_of(forest: Forest) -> Paths:
    """The forest's leaves as `shapley_values` needs them: once per forest, a fraction of a second."""
    structure, cover = forest.structure, forest.sums[:, :, 0].sum(axis=1).astype(np.float64)
    n = structure.nodes.size
    left, parent, weight = np.zeros((n, 4), np.uint64), np.full(n, -1, np.int64), np.zeros(n)
    nodes, node_start, sets, set_start, leaf_start = frozen(structure)
    _left_bins(nodes, sets, set_start, node_start, left)
    at = _climb(nodes, node_start, leaf_start, cover, parent, weight)
    spoken = np.flatnonzero(cover > 0)
    tree = np.repeat(np.arange(structure.n_trees), np.diff(node_start))
    start, none = np.zeros(spoken.size + 1, np.int64), np.empty(0, np.int32)
    tree_nodes = (parent, weight, left, tree)
    _entries(nodes, node_start, tree_nodes, at[spoken], start, (none, np.empty(0), np.empty((0, 4), np.uint64)))
    size = int(start[-1])
    entries = np.zeros(size, np.int32), np.ones(size), np.full((size, 4), ~np.uint64(0))
    if size:
        _entries(nodes, node_start, tree_nodes, at[spoken], start, entries)
    values = leaf_moments(forest)[spoken]
    root = weight[node_start[tree[at[spoken]]]]
    points = _points((int(np.diff(start).max(initial=1)) + 1) // 2)
    return Paths(*frozen((start, *entries, values, points, (cover[spoken] / root) @ values)))


def leaf_moments(forest: Forest) -> np.ndarray:
    """Moments of every leaf, float64 [leaves, M], zero without rows. The last is 1 of a leaf with rows."""
    values = forest._shares.reshape(len(forest.sums), -1)
    speaks = (values[:, :1] >= 0).astype(np.float64)
    return np.concatenate([values * speaks, speaks], axis=1)


def _points(most: int) -> np.ndarray:
    points = np.zeros((most + 1, 2, most))
    for q in range(1, most + 1):
        at, weight = np.polynomial.legendre.leggauss(q)
        points[q, 0, :q], points[q, 1, :q] = (at + 1.0) / 2.0, weight / 2.0
    return points


@nb.njit(cache=True, nogil=True)
def _leaf_games(paths, leaf, bins, passes, integrals):
    """Integrals of `forest.shapley` at one leaf for a block of units: into passes (o_f) and found, [d, block]."""
    first, d = paths.start[leaf], paths.start[leaf + 1] - paths.start[leaf]
    n, product = bins.shape[1], np.empty(bins.shape[1])
    for i in range(d):
        words, own, column = paths.passing[first + i], passes[i], bins[paths.feature[first + i]]
        for j in range(n):
            own[j] = np.float64((words[column[j] >> 6] >> np.uint64(column[j] & 63)) & np.uint64(1))
        integrals[i, :n] = 0.0
    q = (d + 1) // 2
    for x in range(q):
        t = paths.points[q, 0, x]
        product[:] = paths.points[q, 1, x]
        for i in range(d):
            out, own = (1.0 - t) * paths.share[first + i], passes[i]
            for j in range(n):
                product[j] *= out + t * own[j]
        for i in range(d):
            out, own, total = (1.0 - t) * paths.share[first + i], passes[i], integrals[i]
            inverse, step = 1.0 / out, 1.0 / (out + t) - 1.0 / out
            for j in range(n):
                total[j] += product[j] * (inverse + step * own[j])


@nb.njit(cache=True, nogil=True)
def explain_moments(paths, bins, slopes, values):
    """Add slopes @ (Shapley values of the moments) to values float64 [p, L, n].

    bins uint8 [p, n]; slopes float64 [L, M, n]
    """
    deepest = 1
    for leaf in range(paths.start.size - 1):
        deepest = max(deepest, paths.start[leaf + 1] - paths.start[leaf])
    passes, integrals, leaf_value = np.empty((deepest, _BLOCK)), np.empty((deepest, _BLOCK)), np.empty(_BLOCK)
    for low in range(0, bins.shape[1], _BLOCK):
        n = min(_BLOCK, bins.shape[1] - low)
        here = bins[:, low : low + n].copy()
        for leaf in range(paths.start.size - 1):
            first, d = paths.start[leaf], paths.start[leaf + 1] - paths.start[leaf]
            _leaf_games(paths, leaf, here, passes, integrals)
            for line in range(slopes.shape[0]):
                leaf_value[:] = 0.0
                for m in range(slopes.shape[1]):
                    moment, slope = paths.moments[leaf, m], slopes[line, m, low : low + n]
                    if moment != 0.0:
                        for j in range(n):
                            leaf_value[j] += moment * slope[j]
                for i in range(d):
                    share, own, integral = paths.share[first + i], passes[i], integrals[i]
                    total = values[paths.feature[first + i], line, low : low + n]
                    for j in range(n):
                        total[j] += leaf_value[j] * (own[j] - share) * integral[j]


@nb.njit(cache=True, nogil=True)
def add_up(leaves, values, totals):
    """Add the moments [leaves, M] of every unit's leaves [n, T], -1 for none, to totals [n, M]."""
    for i in range(leaves.shape[0]):
        for leaf in leaves[i]:
            if leaf >= 0:
                for m in range(values.shape[1]):
                    totals[i, m] += values[leaf, m]


# --------------------------------------------------------------------------------------------------------------------
# Shapley values of the effects a forest shows: per unit and level, base + sum over features = effect, exactly.
# An effect is solved once from moments summed over the trees, so it is no sum over trees; the moments are. Two steps:
#
# 1. Shapley values of every moment by path-dependent TreeSHAP (Lundberg et al. 2020): features of a set follow the
#    unit, the others go both ways by the weight of the rows that estimate the leaves. In one leaf the game is a product
#    over the d features on its path, o_f inside the set (1 if the unit passes all of f's splits, else 0), z_f
#    outside (the share of weight that passes), and the value of f is
#
#        (o_f - z_f) * integral over t in [0, 1] of prod over g != f of ((1 - t) z_g + t o_g).
#
#    Gauss-Legendre with ceil(d / 2) points is exact for it, all factors are positive, and units of a block are vector
#    lanes: no table of sets, no polynomial to unwind.
# 2. From moments to the effect by the two-point rule: every operation passes on the change from base to unit exactly,
#
#        change of a b = mean(b) change(a) + mean(a) change(b),
#        change of a / b = (change(a) - mean(a / b) change(b)) / mean(b),
#
#    mean being that of base and unit: the Shapley split between the operands. So the effect's change is a linear form
#    in the moments' changes, with coefficients of the unit's own, applied to the moments' Shapley values. Means of
#    levels, θ and the stand-in for low support are such operations, and so, with matrices, is a fitted response. The
#    second step is the rule of DeepSHAP (Chen, Lundberg & Lee 2022): values add up exactly, yet they are the Shapley
#    values of the effect itself only where it is linear in the moments.
#
# base is what the forest shows of a unit about which nothing is known: the same effect from each tree's totals.

_ROWS_PER_CALL = 1 << 11


class _Change(NamedTuple):
    """A quantity at the base [1] and at every unit [n]; slope [n, M] times the change of the moments is end - start."""

    start: np.ndarray
    end: np.ndarray
    slope: np.ndarray

    def plus(self, other: _Change, factor: float = 1.0) -> _Change:
        return _Change(*(a + factor * b for a, b in zip(self, other, strict=True)))

    def times(self, other: _Change) -> _Change:
        means = [((one.start + one.end) / 2.0)[:, None] for one in (self, other)]
        slope = means[1] * self.slope + means[0] * other.slope
        return _Change(self.start * other.start, self.end * other.end, slope)

    def over(self, other: _Change) -> _Change:
        """The ratio; where it is 0 / 0 at a unit, it is as at the base."""
        start, none = self.start / other.start, other.end == 0.0
        end = np.where(none, start, self.end / np.where(none, 1.0, other.end))
        slope = self.slope - ((start + end) / 2.0)[:, None] * other.slope
        slope /= ((other.start + other.end) / 2.0)[:, None]
        return _Change(start, end, np.where(none[:, None], 0.0, slope))


def _linear(counts: np.ndarray, base: np.ndarray, totals: np.ndarray) -> _Change:
    slope = np.broadcast_to(counts, totals.shape)
    return _Change(np.atleast_1d(base @ counts), totals @ counts, slope)


def _level_changes(forest: Forest, base: np.ndarray, totals: np.ndarray) -> list[_Change]:
    """Own effects of the levels, mixed: `kernels._solve` as changes from the base."""
    shrinkage = forest._shrinkage(forest._contrasts)
    k = shrinkage.shape[1]
    unit, shape = np.eye(base.size), shrinkage[0]

    def moment(counts: np.ndarray, offset: int) -> _Change:
        return _linear(counts @ unit[offset : 3 * k : 3], base, totals)

    means = [moment(one, 1).over(moment(one, 0)) for one in np.eye(k)]
    effects = [mean.plus(means[0], -1.0) for mean in means[1:]]
    if not shrinkage[2].any():
        return [_scaled(one, shrinkage[1, j]) for j, one in enumerate(effects, 1)]
    n, s, ones = moment(shape, 0), moment(shape, 1), np.ones(k)
    weight = moment(ones, 0)
    top = s.times(weight).plus(n.times(moment(ones, 1)), -1.0)
    common = top.over(moment(shape**2, 0).times(weight).plus(n.times(n), -1.0))
    return [_scaled(one, shrinkage[1, j]).plus(common, shrinkage[2, j]) for j, one in enumerate(effects, 1)]


def _scaled(change: _Change, factor: float) -> _Change:
    return _Change(*(factor * part for part in change))


def _response_changes(forest: Forest, base: np.ndarray, totals: np.ndarray, known: np.ndarray) -> list[_Change]:
    """Effects from a response: A θ = b, so that change(θ) = mean(A)^-1 (change(b) - change(A) mean(θ))."""
    contrasts = forest._contrasts
    q = contrasts.shape[1]
    matrix, right = np.zeros((base.size, 1 + q, 1 + q)), np.zeros((base.size, 1 + q))
    matrix[0, 0, 0] = right[1, 0] = 1.0
    at = 2 + 2 * q
    for a in range(q):
        matrix[2 + a, 0, 1 + a] = matrix[2 + a, 1 + a, 0] = right[2 + q + a, 1 + a] = 1.0
        for b in range(a + 1):
            matrix[at, 1 + a, 1 + b] = matrix[at, 1 + b, 1 + a] = 1.0
            at += 1
    held = np.where(known[:, None], totals, base)
    ends = [np.einsum("nm,mab->nab", one, matrix) for one in (base[None], held)]
    sides = zip(ends, (base[None], held), strict=True)
    fits = [np.linalg.solve(a, (one @ right)[:, :, None])[:, :, 0] for a, one in sides]
    wide = np.column_stack([np.zeros(len(contrasts)), contrasts])
    response_weights = np.linalg.solve((ends[0] + ends[1]) / 2.0, np.broadcast_to(wide.T, (len(held), *wide.T.shape)))
    change = right - np.einsum("mab,nb->nma", matrix, (fits[0] + fits[1]) / 2.0)
    slopes = np.einsum("nma,nal->lnm", change, response_weights) * known[:, None]
    return [_Change(fits[0] @ wide[k], fits[1] @ wide[k], slopes[k]) for k in range(len(contrasts))]


def _shown(forest: Forest, base: np.ndarray, totals: np.ndarray, known: np.ndarray) -> list[_Change]:
    """The effects shown, a level each: their own, and the average that stands in as far as support lacks.

    Where a level's own effect is not known (known [n, L] is False) it is held at the base's, and what counts is the
    loss of support.
    """
    responses = bool(forest.plan.reported)
    if responses:
        changes = _response_changes(forest, base, totals, known[:, 0])
    else:
        changes = _level_changes(forest, base, totals)
    stand_in, shown, trees = forest._shrinkage(forest._contrasts)[4:, 1:], [], np.eye(base.size)[-1]
    average, stands_in = stand_in[0], np.isfinite(stand_in).all(axis=0)
    for k, effect in enumerate(changes):
        if not stands_in[k]:
            missing = np.where(known[:, k], 0.0, np.nan)
            shown.append(effect._replace(end=effect.end + missing, slope=effect.slope + missing[:, None]))
            continue
        effect = _held(effect, known[:, k])
        support = _linear(np.eye(base.size)[-2 if responses else 3 * (k + 1) + 2], base, totals)
        share = _own_share(support.over(_linear(trees, base, totals)), known[:, k], base, totals)
        constant = _Change(np.full(1, average[k]), np.full(len(totals), average[k]), np.zeros(totals.shape))
        shown.append(share.times(effect.plus(constant, -1.0)).plus(constant))
    return shown


def _held(change: _Change, known: np.ndarray) -> _Change:
    end = np.where(known, change.end, change.start)
    return _Change(change.start, end, np.where(known[:, None], change.slope, 0.0))


def _own_share(support: _Change, known: np.ndarray, base: np.ndarray, totals: np.ndarray) -> _Change:
    """What a unit's own effect counts for, by its support.

    Where the share changes and support does not (no response can be fitted though leaves have rows), or no tree speaks,
    every moment's change counts in proportion to its size.
    """
    start = np.minimum(support.start / LOW_SUPPORT, 1.0)
    end = np.where(known, np.minimum(support.end / LOW_SUPPORT, 1.0), 0.0)
    moved, change = support.end - support.start, end - start
    by_support = known & (moved != 0.0)
    slope = support.slope * np.where(by_support, change / np.where(by_support, moved, 1.0), 0.0)[:, None]
    apart = totals - base
    size = np.maximum((apart**2).sum(axis=1), 1e-300)
    return _Change(start, end, slope + apart * np.where(by_support, 0.0, change / size)[:, None])


def shapley_values(
    forest: Forest, rows: pa.RecordBatch | pa.Table | np.ndarray, threads: int = 1, paths: Paths | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(values [n, L, p], base [L]) of the effects `Forest.effect_arrays` shows, in the outcome's units.

    rows   an Arrow batch or table, or bins, uint8 [n, p]
    paths  of `paths_of`, if at hand

    base + values.sum(axis=2) is the effect shown, up to rounding; NaN where that is NaN. Raises ConfigError for effects
    held monotone in the dose, whose rule ties levels together.
    """
    if forest.plan.monotone and not forest.plan.partial:
        raise ConfigError(f"effects are held {forest.plan.monotone}: Shapley values need a forest without `monotone`")
    paths = paths_of(forest) if paths is None else paths
    bins = rows if isinstance(rows, np.ndarray) else apply_bins(rows, forest.plan.bins, threads)
    effects = len(forest._contrasts) or len(forest.levels) - 1
    values, everything = np.empty((len(bins), effects, bins.shape[1])), leaf_moments(forest)
    step = max(1, min(_ROWS_PER_CALL, -(-len(bins) // threads), (1 << 24) // (effects * paths.base.size)))

    def some_rows(low: int) -> np.ndarray:
        part = frozen([bins[low : low + step]])[0]
        shown = _shown(forest, paths.base, *_totals(forest, part, everything))
        slopes = np.ascontiguousarray(np.stack([one.slope.T for one in shown]))
        out = np.zeros((part.shape[1], effects, len(part)))
        explain_moments(paths, np.ascontiguousarray(part.T), slopes, out)
        for k in range(effects):  # of a unit not known at all, features without splits are not known either
            out[:, k, np.isnan(shown[k].end)] = np.nan
        values[low : low + step] = out.transpose(2, 1, 0)
        return np.array([one.start[0] for one in shown])

    with ThreadPoolExecutor(threads) as pool:
        bases = list(pool.map(some_rows, range(0, max(len(bins), 1), step)))
    return values, bases[0]


def unit_shapley(forest: Forest, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values [L, p], standard errors [L, p]) of one unit, bins uint8 [1, p]: Shapley values as of `shapley_values`.

    To first order each tree adds its own part, so that errors are those of little bags, as of effects. Raises
    ConfigError as `shapley_values`.
    """
    values = shapley_values(forest, bins)[0][0]
    paths, cover = paths_of(forest), forest.sums[:, :, 0].sum(axis=1)
    shown = _shown(forest, paths.base, *_totals(forest, bins, leaf_moments(forest)))
    slopes = np.ascontiguousarray(np.stack([one.slope.T for one in shown]))
    ends = np.append(0, np.cumsum(cover > 0))[forest.structure.leaf_start]
    column, parts = np.ascontiguousarray(frozen([bins])[0].T), np.zeros((forest.structure.n_trees, *values.shape))
    for t, (low, high) in enumerate(pairwise(ends.tolist())):
        out = np.zeros((bins.shape[1], len(values), 1))
        explain_moments(_leaves_between(paths, low, high), column, slopes, out)
        parts[t] = out[:, :, 0].T
    parts *= max(int((np.diff(ends) > 0).sum()), 1)
    spread = [np.diag(bag_covariance(parts[:, k].copy(), forest._design)) for k in range(len(values))]
    return values, np.sqrt(np.stack(spread) * forest._variance_factor)


def _leaves_between(paths: Paths, low: int, high: int) -> Paths:
    """The entries of some of the leaves."""
    first, stop = paths.start[low], paths.start[high]
    some = np.s_[first:stop]
    parts = (paths.start[low : high + 1] - first, paths.feature[some], paths.share[some], paths.passing[some])
    return Paths(*frozen((*parts, paths.moments[low:high], paths.points, paths.base)))


def _totals(forest: Forest, bins: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of every unit summed over trees [n, M], and whether its levels' own effects are known [n, L]."""
    leaves, totals = np.empty((len(bins), forest.structure.n_trees), np.int32), np.zeros((len(bins), moments.shape[1]))
    leaves_of(forest._routes, bins, leaves)
    add_up(leaves, moments, totals)
    alone = replace(forest, level_shrinkage=None).effects_of(bins, errors=False)[0]
    return totals, np.isfinite(alone)


def shapley_table(
    forest: Forest, batch: pa.RecordBatch | pa.Table, threads: int = 1, paths: Paths | None = None
) -> pa.Table:
    """A row per unit and treated level, unit-major: unit, treatment, uplift, base, values (list, by roles.features)."""
    values, base = shapley_values(forest, batch, threads, paths)
    n, effects, p = values.shape
    units = batch.column(forest.roles.unit)
    flat = units.combine_chunks() if isinstance(units, pa.ChunkedArray) else units
    starts = pa.array(np.arange(n * effects + 1, dtype=np.int32) * p, pa.int32())
    columns = {
        forest.roles.unit: flat.take(pa.array(np.repeat(np.arange(n), effects))),
        TREATMENT: pa.array(list(forest.levels.treated) * n, pa.string()),
        "uplift": (base + values.sum(axis=2)).ravel(),
        "base": np.tile(base, n),
        "values": pa.ListArray.from_arrays(starts, pa.array(values.ravel())),
    }
    return pa.table(columns)


def explain_batches(forest: Forest, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """`shapley_table` of every batch: the body of a mapInArrow function."""
    paths = paths_of(forest)
    for batch in batches:
        yield from shapley_table(forest, batch, paths=paths).combine_chunks().to_batches()


def shapley_sums(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(units with known effects [L], their sums of absolute values [L, p]): add up over batches, then divide."""
    known = ~np.isnan(values).any(axis=2)
    return known.sum(axis=0), np.where(known[:, :, None], np.abs(values), 0.0).sum(axis=0)
