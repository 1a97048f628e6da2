"""Bootstrap intervals from sums of random groups of units: one pass, whatever the number of resamples. No Spark.

Units fall into groups by the hash of their id (of their cluster's, where clusters were randomised). A resample counts
each group as often as a Poisson draw says, all of its units alike, so resamples need the groups' sums and no rows. In a
small trial hardly two units share a group, and units are resampled; in a large one a thousand groups say as much about
the error as units would (Chamandy et al. 2012). Slopes of covariates stay those of all units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix
from scipy.stats import norm, t

from uplift_spark.stats.intervals import bootstrap_interval, poisson_weights
from uplift_spark.stats.sampling import unit_hashes

UNIT_GROUPS = 1024  # errors are known to 2 %
_FEWEST_GROUPS, _MOST_CELLS = 256, 1 << 15
_RESAMPLES, _SEED = 5000, 0xB007


def group_count(cells: int) -> int:
    """Groups of units in a trial with so many arms times strata, a power of 2; 0 where these are too many for it."""
    groups = UNIT_GROUPS
    while groups >= _FEWEST_GROUPS and cells * groups > _MOST_CELLS:
        groups //= 2
    return groups if groups >= _FEWEST_GROUPS else 0


def groups_of(ids: pa.Array, column: str) -> np.ndarray:
    """Group of each unit, below UNIT_GROUPS, int64 [units]: on Spark `pmod(xxhash64(cast(id as string)), 1024)`."""
    return (unit_hashes(ids, column) % np.uint64(UNIT_GROUPS)).astype(np.int64)


@dataclass(frozen=True)
class UnitGroupSums:
    """Units, and totals of their columns, by any cells and by group; no group where cells are too many for them.

    totals  a count of units, then the columns, [..., groups, 1 + V]
    """

    totals: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, cell: np.ndarray, group: np.ndarray, shape: tuple[int, ...]) -> UnitGroupSums:
        """Sums of rows x [rows, V] by cell, a flat index [rows] in `shape`, and by group [rows] of UNIT_GROUPS."""
        groups, width = group_count(math.prod(shape)), 1 + x.shape[1]
        if not groups:
            return cls(np.zeros((*shape, 0, width)))
        place, wide = cell * groups + group % groups, math.prod(shape) * groups
        # One product with a sparse matrix adds up all columns at once.
        pick = csr_matrix((np.ones(len(x)), (place, np.arange(len(x)))), shape=(wide, len(x)))
        return cls((pick @ np.column_stack([np.ones(len(x)), x])).reshape(*shape, groups, width))

    @property
    def groups(self) -> int:
        """How many there are."""
        return int(self.totals.shape[-2])


class GroupCells:
    """Sums of cells as they come, batch by batch and worker by worker, in as few groups as their number asks for."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], np.ndarray] = {}
        self._groups = UNIT_GROUPS

    def add(self, arm: str, stratum: str, totals: np.ndarray) -> None:
        """Add the totals of a cell, [groups, 1 + V]."""
        key = (arm, stratum)
        groups = min(self._groups, len(totals), group_count(len(self.cells) + (key not in self.cells)))
        if groups < self._groups:
            self._groups, self.cells = groups, {one: _folded(sums, groups) for one, sums in self.cells.items()}
        more = _folded(totals, groups)
        self.cells[key] = self.cells[key] + more if key in self.cells else more

    def sums(self, arms: Sequence[str], strata: Sequence[str], width: int) -> UnitGroupSums:
        """Sums [arms, strata] of so many columns, cells without units included."""
        groups = min(self._groups, group_count(len(arms) * len(strata)))
        empty = np.zeros((groups, 1 + width))
        every = [[_folded(self.cells.get((arm, one), empty), groups) for one in strata] for arm in arms]
        return UnitGroupSums(np.array(every).reshape(len(arms), len(strata), groups, 1 + width))


def _folded(totals: np.ndarray, groups: int) -> np.ndarray:
    """The same units in fewer groups, by a divisor of their number."""
    return np.asarray(totals[:0] if not groups else totals.reshape(-1, groups, totals.shape[-1]).sum(axis=0))


ResampledFigure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A figure of many trials from the weights of their units [..., arms, strata] and means [..., arms, strata, V]."""


@dataclass(frozen=True)
class BootstrapInterval:
    """How an interval follows from resamples.

    level    of this look, two-sided
    alpha    of the trial, two-sided: few resamples lie beyond a smaller level, so there the interval at alpha is
             widened as a normal one would be
    freedom  degrees of freedom of the error
    """

    level: float
    alpha: float
    freedom: float


@dataclass(frozen=True)
class Resampler:
    """Resamples of a trial's units."""

    sums: UnitGroupSums
    replicates: int = _RESAMPLES

    @cached_property
    def _resamples(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [resamples, ...] and means [resamples, ..., V]."""
        weights = _weights(self.sums.groups, self.replicates).T.astype(np.float64)
        totals = np.tensordot(weights, np.moveaxis(self.sums.totals, -2, 0), 1)
        n = totals[..., 0]
        return n, totals[..., 1:] / np.maximum(n, 1e-300)[..., None]

    def interval(self, figure: ResampledFigure, value: float, how: BootstrapInterval) -> tuple[float, float]:
        """Percentile interval of a figure, as wide as few degrees of freedom ask for.

        Args:
            figure: What is computed of every resample.
            value: The figure of all units.
            how: Its level.

        Returns:
            (lower, upper); NaN where it is not known.
        """
        quantile = float(t.isf(how.alpha / 2, how.freedom))
        if not math.isfinite(quantile):  # nothing varies
            return math.nan, math.nan
        inside = 1 - 2 * float(norm.sf(quantile))
        ends = bootstrap_interval(np.asarray(value), figure(*self._resamples), inside, "percentile")
        lower, upper = (float(end) for end in ends)
        wider = float(t.isf(how.level / 2, how.freedom)) / quantile
        return value - wider * (value - lower), value + wider * (upper - value)


@cache
def _weights(groups: int, replicates: int) -> np.ndarray:
    """Times each group counts in each resample, uint8 [groups, replicates]."""
    return poisson_weights(np.arange(groups, dtype=np.uint64), _SEED, replicates)
