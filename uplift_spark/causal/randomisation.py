"""Randomisation inference: what else the design of a trial could have drawn, and statistics compared with that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from uplift_spark.causal.binning import as_numbers
from uplift_spark.causal.hashing import unit_hashes
from uplift_spark.causal.rows import level_names
from uplift_spark.vocabulary import DataError, Roles

DRAWS = 999


@dataclass(frozen=True)
class TrialRows:
    """Rows with those of a cluster side by side, smaller clusters first; without clusters each row is its own.

    level  code of the arm received, int64 [n]
    size   rows of each cluster, ascending, [G]
    """

    table: pa.Table
    level: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, roles: Roles) -> TrialRows:
        """Rows of a table in any order; DataError for ids or treatments that are null."""
        names = level_names(table.column(roles.treatment))
        if names.null_count:
            raise DataError(
                f"column {roles.treatment!r} is null in {names.null_count} rows: every row needs a level; drop them"
            )
        unit = unit_hashes(table.column(roles.unit), roles.unit)
        cluster = unit_hashes(table.column(roles.cluster), roles.cluster) if roles.cluster else unit
        level = np.unique(names.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
        return cls._ordered(table, level, unit, cluster)

    @classmethod
    def _ordered(cls, table: pa.Table, level: np.ndarray, unit: np.ndarray, cluster: np.ndarray) -> TrialRows:
        _, code, size = np.unique(cluster, return_inverse=True, return_counts=True)
        order = np.lexsort((unit, code, size[code]))
        return cls(table.take(pa.array(order)), level[order], np.sort(size))

    @property
    def n_levels(self) -> int:
        return np.unique(self.level).size

    @property
    def cluster(self) -> np.ndarray:
        """Cluster of each row, 0 .. G-1."""
        return np.repeat(np.arange(self.size.size), self.size)

    @property
    def whole(self) -> bool:
        """Whether every cluster has one arm only."""
        first = self.level[np.cumsum(self.size) - self.size]
        return bool((self.level == first[self.cluster]).all())

    def keep(self, mask: np.ndarray) -> TrialRows:
        """The rows of a mask [n]."""
        rows = np.arange(self.level.size, dtype=np.uint64)
        kept = self.table.filter(pa.array(mask))
        return self._ordered(kept, self.level[mask], rows[mask], self.cluster[mask])

    def halves(self, rng: np.random.Generator) -> np.ndarray:
        """Mask of the rows of a random half of the clusters."""
        chosen = rng.permutation(self.size.size) < self.size.size // 2
        return chosen[self.cluster]

    def drawer(self, rng: np.random.Generator) -> Callable[[], np.ndarray]:
        """A function that draws the levels [n] anew, as the design could have.

        Whole clusters change places where each has one arm, else the levels of clusters of a size do, as they are:
        right for units randomised one by one, and for arms that exclude each other in a cluster.
        """
        start, cluster = np.cumsum(self.size) - self.size, self.cluster
        if self.whole:
            levels = self.level[start]
            return lambda: levels[rng.permutation(start.size)][cluster]
        bounds = np.searchsorted(self.size, [*np.unique(self.size), np.inf])
        within = np.arange(cluster.size) - start[cluster]

        def draw() -> np.ndarray:
            source = [low + rng.permutation(high - low) for low, high in pairwise(bounds)]
            return self.level[start[np.concatenate(source)][cluster] + within]

        return draw


def thinned(rows: TrialRows, roles: Roles, rng: np.random.Generator) -> TrialRows:
    """The rows, thinned until every arm has the same odds for everyone.

    A row is kept with probability min(e of its arm) / e, its own logged propensity: P(arm, kept | features) is then the
    same whatever the features (rejection sampling, von Neumann 1951). Only the propensity of the arm received is
    needed, and a constant one keeps every row. Clusters with one arm and one propensity are kept or dropped as one.
    """
    if roles.propensity is None:
        return rows
    e = as_numbers(rows.table.column(roles.propensity))
    bad = int((~((e > 0) & (e <= 1))).sum())
    if bad:
        raise DataError(f"column {roles.propensity!r} is not in (0, 1] in {bad} of {e.size} rows: correct the log")
    least = np.full(int(rows.level.max(initial=0)) + 1, np.inf)
    np.minimum.at(least, rows.level, e)
    first = e[np.cumsum(rows.size) - rows.size][rows.cluster]
    together = rows.whole and bool((e == first).all())
    draw = rng.random(rows.size.size)[rows.cluster] if together else rng.random(e.size)
    return rows.keep(draw * e < least[rows.level])


def max_p_values(
    statistic: Callable[[np.ndarray], np.ndarray], rows: TrialRows, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Single-step max-statistic p-values of `statistic(level)` [p], whatever their dependence; 1 if all exceed alpha.

    Drawing stops once no p-value can be as small as alpha: no decision changes, and clean data take a handful of draws.
    """
    observed, draw = statistic(rows.level), rows.drawer(rng)
    total = max(DRAWS, math.ceil(1 / alpha - 1e-9) - 1)
    above, most = np.zeros(observed.size), alpha * (total + 1) - 1 + 1e-9
    tied = observed - 1e-9 * np.abs(observed)  # sums of the same numbers in another order
    for _ in range(total):
        above += statistic(draw()).max() >= tied
        if above.min() > most:
            return np.ones(observed.size)
    return (1 + above) / (1 + total)
