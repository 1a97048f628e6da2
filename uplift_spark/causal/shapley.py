"""Shapley values of the effects a forest shows: per unit and level, base + sum over features = effect, exactly.

An effect is solved once from moments summed over the trees, so it is no sum over trees; the moments are. Two steps:

1. Shapley values of every moment by path-dependent TreeSHAP (Lundberg et al. 2020): a coalition's features follow the
   unit, the others go both ways by the weight of the rows that estimate the leaves. In one leaf the game is a product
   over the d features on its path, o_f inside the coalition (1 if the unit passes all of f's splits, else 0), z_f
   outside (the share of weight that passes), and the value of f is

       (o_f - z_f) * integral over t in [0, 1] of prod over g != f of ((1 - t) z_g + t o_g).

   Gauss-Legendre with ceil(d / 2) points is exact for it, all factors are positive, and units of a block are vector
   lanes: no table of coalitions, no polynomial to unwind.
2. From moments to the effect by the two-point rule: every operation passes on the change from base to unit exactly,

       change of a b = mean(b) change(a) + mean(a) change(b),
       change of a / b = (change(a) - mean(a / b) change(b)) / mean(b),

   mean being that of base and unit: the Shapley split between the two operands. So the effect's change is a linear form
   in the moments' changes, with coefficients of the unit's own; it is applied to the moments' Shapley values. Means of
   levels, θ and the stand-in for low support are such operations, and so, with matrices, is a fitted response. The
   second step is the rule of DeepSHAP (Chen, Lundberg & Lee 2022): values add up exactly, yet they are the Shapley
   values of the effect itself only where it is linear in the moments.

base is what the forest shows of a unit about which nothing is known: the same effect from each tree's totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from uplift_spark.causal.binning import apply_bins
from uplift_spark.causal.coalitions import Paths, add_up, explain_moments, leaf_moments, paths_of
from uplift_spark.causal.forest import LOW_SUPPORT, Forest
from uplift_spark.causal.routing import leaves_of
from uplift_spark.causal.structure import frozen
from uplift_spark.vocabulary import TREATMENT, ConfigError

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
    mix = forest._mix(forest._told)
    k = mix.shape[1]
    unit, shape = np.eye(base.size), mix[0]

    def moment(counts: np.ndarray, place: int) -> _Change:
        return _linear(counts @ unit[place : 3 * k : 3], base, totals)

    means = [moment(one, 1).over(moment(one, 0)) for one in np.eye(k)]
    effects = [mean.plus(means[0], -1.0) for mean in means[1:]]
    if not mix[2].any():
        return [_scaled(one, mix[1, j]) for j, one in enumerate(effects, 1)]
    n, s, ones = moment(shape, 0), moment(shape, 1), np.ones(k)
    weight = moment(ones, 0)
    top = s.times(weight).plus(n.times(moment(ones, 1)), -1.0)
    common = top.over(moment(shape**2, 0).times(weight).plus(n.times(n), -1.0))
    return [_scaled(one, mix[1, j]).plus(common, mix[2, j]) for j, one in enumerate(effects, 1)]


def _scaled(change: _Change, factor: float) -> _Change:
    return _Change(*(factor * part for part in change))


def _response_changes(forest: Forest, base: np.ndarray, totals: np.ndarray, known: np.ndarray) -> list[_Change]:
    """Effects told from a response: A θ = b, so that change(θ) = mean(A)^-1 (change(b) - change(A) mean(θ))."""
    told = forest._told
    q = told.shape[1]
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
    wide = np.column_stack([np.zeros(len(told)), told])
    pulls = np.linalg.solve((ends[0] + ends[1]) / 2.0, np.broadcast_to(wide.T, (len(held), *wide.T.shape)))
    change = right - np.einsum("mab,nb->nma", matrix, (fits[0] + fits[1]) / 2.0)
    slopes = np.einsum("nma,nal->lnm", change, pulls) * known[:, None]
    return [_Change(fits[0] @ wide[k], fits[1] @ wide[k], slopes[k]) for k in range(len(told))]


def _shown(forest: Forest, base: np.ndarray, totals: np.ndarray, known: np.ndarray) -> list[_Change]:
    """The effects shown, a level each: their own, and the average that stands in as far as support lacks.

    Where a level's own effect is not known (known [n, L] is False) it is held at the base's, and what counts is the
    loss of support.
    """
    responses = bool(forest.plan.told)
    if responses:
        changes = _response_changes(forest, base, totals, known[:, 0])
    else:
        changes = _level_changes(forest, base, totals)
    stand_in, shown, trees = forest._mix(forest._told)[4:, 1:], [], np.eye(base.size)[-1]
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
    effects = len(forest._told) or len(forest.levels) - 1
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


def _totals(forest: Forest, bins: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of every unit summed over trees [n, M], and whether its levels' own effects are known [n, L]."""
    leaves, totals = np.empty((len(bins), forest.structure.n_trees), np.int32), np.zeros((len(bins), moments.shape[1]))
    leaves_of(forest._routes, bins, leaves)
    add_up(leaves, moments, totals)
    alone = replace(forest, mix=None).effects_of(bins, errors=False)[0]
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
