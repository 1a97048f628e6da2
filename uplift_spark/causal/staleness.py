"""Do new rows still fit a forest's splits? A test on what the forest leaves unexplained of effects (R3.6).

A row's residual is its outcome less what the forest expects of it at its level, from the bags that do not hold the row.
Effects of residuals, level against control, are taken in coarse groups of every feature, on the new rows and on those
the forest was trained on, and compared by chi-square. Where nothing has changed the two have the same expectation,
however biased the forest is, and errors of the forest are in both alike and cancel. So no forest need be good for the
test to hold its level, and rows of another mix of features do no harm as far as the forest explains effects.

It is asked twice. `changed`: the forest's own sums expect the outcomes; effects are not what they were. `stale`: the
same trees do with the sums of the new rows alone, so what a refresh can follow is explained and what is left is what
these splits cannot tell apart: a regrow is due. Residuals then vary somewhat less than their errors say, where splits
follow a feature, so without change `stale` is found less often than its level: in 1 to 3 % of 500 replications.

The smallest of the features' p-values counts, times their number (Bonferroni). Residuals are sums of rows and add.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import chi2

from uplift_spark.causal.defaults import bins_of
from uplift_spark.causal.estimation import add_rows, correct, empty_sums, grown_parts, plain_shares
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.rows import Encoded, encode
from uplift_spark.vocabulary import ConfigError

GROUPS = 4  # of a feature's bins, which hold about equally many rows each
LEAST = 30  # rows of a level in a group, old and new, for the group to be asked
LEVEL = 0.05


@dataclass(frozen=True)
class Residuals:
    """Sums over rows by feature, group and level, float64 [p, GROUPS, K, 6]: 1, w, wr, w², w²r, w²r² of residuals r."""

    sums: np.ndarray

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(self.sums + other.sums)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, mean residual, its variance), each [p, GROUPS, K]; NaN where there are no rows."""
        n, w, wr, ww, wwr, wwrr = np.moveaxis(self.sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = wr / w
            variance = (wwrr - 2.0 * mean * wwr + mean**2 * ww) / w**2
        return n, mean, variance


@dataclass(frozen=True)
class Staleness:
    """What `staleness` found: p-values, and the feature along which new effects are least explained by the splits.

    changed  small: the new rows' effects are not those of the rows the forest was trained on
    stale    small: nor can its splits express them
    """

    changed: float
    stale: float
    feature: str

    @property
    def regrow(self) -> bool:
        """Whether a regrow is due, at the 5 % level."""
        return self.stale < LEVEL


def residuals(forest: Forest, table: pa.Table, anew: bool = False) -> Residuals:
    """Residuals of rows, on the first outcome; `anew`: by the sums of these rows alone in the forest's trees.

    The rows are checked ones (`refresh.counted`). Raises ConfigError for units in clusters, which are not independent.
    """
    if forest.roles.cluster is not None:
        raise ConfigError(f"roles.cluster {forest.roles.cluster!r}: the test of splits takes rows as independent")
    forest, threads = forest.of(forest.roles.outcome), os.cpu_count() or 1
    plan, structure, baselines = grown_parts(forest)
    rows, sums = encode(table, plan, baselines, threads), forest.sums
    if anew:
        sums = empty_sums(structure, plan)
        add_rows(sums, rows, structure.routes, plan, threads)
    moved = correct(rows, structure.routes, plain_shares(sums), plan, threads)
    return _summed(rows, (moved.wy - rows.wy)[:, 0] / rows.w, forest)


def _summed(rows: Encoded, residual: np.ndarray, forest: Forest) -> Residuals:
    n_bins, levels = bins_of(forest.plan)[0], len(forest.plan.levels)
    weight = rows.w / rows.w.mean()
    terms = [np.ones(weight.size), weight, weight * residual]
    terms += [weight**2, weight**2 * residual, (weight * residual) ** 2]
    sums = np.empty((n_bins.size, GROUPS, levels, len(terms)))
    for j, bins in enumerate(n_bins):
        cell = (rows.bins[:, j].astype(np.int64) * GROUPS // bins) * levels + rows.level
        for i, term in enumerate(terms):
            sums[j, :, :, i] = np.bincount(cell, term, GROUPS * levels).reshape(GROUPS, levels)
    return Residuals(sums)


def departures(before: Residuals, now: Residuals) -> np.ndarray:
    """p-value of every feature, [p], that effects of residuals are the same in both, group by group.

    Cochran's Q: levels' mean changes scatter about their common one, which no effect knows, by no more than errors say.
    """
    (n, mean, variance), (n_now, mean_now, variance_now) = before.means, now.means
    known = (np.minimum(n, n_now) >= LEAST) & (variance + variance_now > 0)
    weight = np.where(known, 1.0 / np.where(known, variance + variance_now, 1.0), 0.0)
    change = np.where(known, mean_now - mean, 0.0)
    common = (weight * change).sum(axis=2) / np.maximum(weight.sum(axis=2), 1e-300)
    q = (weight * (change - common[:, :, None]) ** 2).sum(axis=(1, 2))
    freedom = np.maximum(known.sum(axis=2) - 1, 0).sum(axis=1)
    return np.where(freedom > 0, chi2.sf(q, np.maximum(freedom, 1)), 1.0)


def staleness(forest: Forest, before: Residuals, table: pa.Table) -> Staleness:
    """Whether new rows' effects have changed, and whether the forest's splits are stale for them.

    before: `residuals` of the forest's training rows, or a large random part of them; they can be kept in its place.
    """
    changed = departures(before, residuals(forest, table))
    stale = departures(before, residuals(forest, table, anew=True))
    p = [float(min(1.0, found.min() * found.size)) for found in (changed, stale)]
    return Staleness(p[0], p[1], forest.roles.features[int(stale.argmin())])
