"""Training rows in memory, in one order whatever partitions they came from: what meta-learners and nuisances are
fitted on. At most so many of each arm, chosen by hash of the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.causal.binning import FeatureBins, as_numbers, fit_bins
from uplift_spark.causal.crossfit import Spec, features_of
from uplift_spark.causal.estimation import sample_limit, sampled
from uplift_spark.causal.hashing import SAMPLE, mix_all
from uplift_spark.causal.learners import categorical_of
from uplift_spark.causal.rows import Summary, check_summary, keys_of, make_levels, summarise
from uplift_spark.vocabulary import ConfigError, Levels, Roles

_MOST_BINS = 254
_OTHER_ROWS = np.uint64(0x51)  # drawn apart from the rows that fix bins


@dataclass(frozen=True)
class Coding:
    """How rows become numbers.

    spec    levels, categories, folds and seed
    limits  hash bound of each level below which its rows are taken, uint64 [K]
    total   training rows there are
    confounded  whether the odds of levels differ between units
    """

    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    spec: Spec
    limits: np.ndarray
    total: int
    confounded: bool


def coding_of(summary: Summary, sample: pa.Table, roles: Roles, spec: tuple[int, int], rows: int) -> Coding:
    """From the summary of all rows and a sample of them (`estimation.sampled`); `spec` is folds and seed.

    rows  of each arm to take, at most about; raises DataError when rows break the rules, ConfigError for roles with
          scores or with doses that take any value
    """
    if roles.grid or roles.scores:
        raise ConfigError("learners of arms take neither roles.grid nor roles.scores: train a CausalForest on those")
    check_summary(summary, roles)
    levels = make_levels(summary, roles)[0]
    bins = fit_bins(sample, roles.features, _MOST_BINS)
    counts = [summary.levels[name] for name in levels.names]
    limits = np.array([2**64 - 1 if n <= rows else int(rows / n * 2.0**64) for n in counts], np.uint64)
    folds, seed = spec
    given = Spec(levels.names, categorical_of(bins), folds, seed)
    return Coding(roles, levels, bins, given, limits, summary.rows, summary.weighted_by_propensity)


def coded(batch: pa.RecordBatch | pa.Table, coding: Coding) -> pa.RecordBatch:
    """The rows taken, as the columns unit_hash, key bigint, place int, outcome, weight double, features binary."""
    roles = coding.roles
    unit, key = keys_of(batch, roles)
    place = places_of(batch, roles, coding.levels.names)
    taken = mix_all(unit, np.uint64(coding.spec.seed) ^ _OTHER_ROWS, SAMPLE) <= coding.limits[place]
    some = batch.filter(pa.array(taken))
    weight = np.ones(len(place)) if roles.weight is None else as_numbers(batch.column(roles.weight))
    return pa.record_batch(
        {
            "unit_hash": pa.array(unit[taken].view(np.int64)),
            "key": pa.array(key[taken].view(np.int64)),
            "place": place[taken].astype(np.int32),
            "outcome": as_numbers(some.column(roles.outcome)),
            "weight": weight[taken],
            "features": packed_rows(features_of(some, coding.bins)),
        }
    )


def places_of(batch: pa.RecordBatch | pa.Table, roles: Roles, levels: Sequence[str]) -> np.ndarray:
    """Place of the level received among the levels, int [n]."""
    column = batch.column(roles.treatment)
    found = pc.index_in(column.cast(pa.string()), pa.array(levels))
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy())


def packed_rows(values: np.ndarray) -> pa.Array:
    """An array [n, p] of up to 2 GiB as one binary value a row."""
    n, size = len(values), values.shape[1] * values.itemsize
    offsets = pa.py_buffer((np.arange(n + 1, dtype=np.int64) * size).astype(np.int32))
    return pa.BinaryArray.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(np.ascontiguousarray(values))])


def unpacked_rows(column: pa.ChunkedArray | pa.Array, p: int) -> np.ndarray:
    """float64 [n, p] from `packed_rows`."""
    return np.frombuffer(b"".join(column.to_pylist()), np.float64).reshape(-1, p)


@dataclass(frozen=True)
class Sample:
    """Rows taken, in order of their hashes.

    features  float64 [n, p] as `crossfit.features_of`; key uint64 [n] of units or clusters; place int [n] of the level
    outcome, weight  float64 [n]
    """

    coding: Coding
    features: np.ndarray
    key: np.ndarray
    place: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, found: pa.Table, coding: Coding) -> Sample:
        """From all batches of `coded`."""
        found = found.sort_by("unit_hash")
        place, outcome, key, weight = (found[name].to_numpy() for name in ("place", "outcome", "key", "weight"))
        features = unpacked_rows(found["features"], len(coding.bins))
        return cls(coding, features, key.view(np.uint64), place, outcome, weight)

    @property
    def roles(self) -> Roles:
        """Columns the rows came from."""
        return self.coding.roles

    @property
    def spec(self) -> Spec:
        """Levels, categories, folds and seed."""
        return self.coding.spec


def sample_table(table: pa.Table, roles: Roles, spec: tuple[int, int], rows: int) -> Sample:
    """The sample of a table in memory; see `coding_of`."""
    summary = summarise(table, roles)
    limit = sample_limit(summary.rows, len(roles.features))
    some = table.filter(pa.array(sampled(table, roles.unit, spec[1], limit)))
    coding = coding_of(summary, some, roles, spec, rows)
    return Sample.of(pa.Table.from_batches([coded(table, coding)]), coding)
