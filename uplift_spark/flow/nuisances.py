"""What observational campaigns need before a forest: nuisances of every unit, cross-fitted, and its scores (R3.5).

Units fall into folds by hash of the unit or its cluster. Models of a fold's nuisances are fitted in the driver, on a
bounded sample of the other folds' training rows; a map over all units applies them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from uplift_spark.causal.binning import FeatureBins, apply_bins, as_numbers, fit_bins
from uplift_spark.causal.crossfit import Nuisance, fit_nuisances, fold_of
from uplift_spark.causal.learners import categorical_of
from uplift_spark.causal.rows import check_summary, keys_of, make_levels
from uplift_spark.causal.training import Say
from uplift_spark.flow.learners import thinned
from uplift_spark.flow.training import packed_bins, sample_of, summary_of, unpacked_bins
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.vocabulary import PROPENSITY, Levels, Roles

EXPECTED, ODDS, SCORES, FOLD, SPLIT, SET_ASIDE = "expected", "odds", "scores", "fold", "split", "set aside"
_MOST_BINS = 254


@dataclass(frozen=True)
class Folds:
    """Models of every fold, fitted on the rows of the others.

    lowest  probability of a level below which a unit is set aside
    logged  whether the probability of the level received is as the campaign logged it
    """

    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    models: tuple[Nuisance, ...]
    seed: int
    lowest: float
    logged: bool


def fit_folds(train: DataFrame, roles: Roles, seed: int, asked: Mapping[str, float], say: Say) -> Folds:
    """Models of `asked["folds"]` folds from at most `asked["rows"]` training rows of each arm.

    Raises DataError when rows break the rules or an arm has no row in some fold's training part.
    """
    summary = summary_of(train.select(*(f"`{c}`" for c in roles.columns)), roles)
    check_summary(summary, roles)
    levels, folds = make_levels(summary, roles)[0], int(asked["folds"])
    bins = fit_bins(sample_of(train, roles, seed, summary.rows), roles.features, _MOST_BINS)
    some = thinned(train, roles, dict(summary.levels), seed, int(asked["rows"]))
    columns = "unit_hash bigint, fold int, place int, outcome double, bins binary"
    rows = some.mapInArrow(partial(_coded, (roles, levels, bins), seed, folds), columns).toArrow().sort_by("unit_hash")
    fold, place, outcome = (rows[name].to_numpy() for name in ("fold", "place", "outcome"))
    coded, categorical = unpacked_bins(rows["bins"], len(bins)), categorical_of(bins)

    def one(mine: int) -> Nuisance:
        others = fold != mine
        return fit_nuisances(coded[others], place[others], outcome[others], levels.names, categorical, seed)

    say(f"fitting nuisances of {folds} folds on {len(rows):,} of {summary.rows:,} training rows")
    with ThreadPoolExecutor() as pool:
        models = tuple(pool.map(one, range(folds)))
    return Folds(roles, levels, bins, models, seed, asked["lowest"], asked["propensity"] == "logged")


def with_scores(frame: DataFrame, folds: Folds) -> DataFrame:
    """The frame and, of every unit, map only: `fold` bigint, `expected` and `odds` array<double> [K] under every level,
    `scores` map<string,double>, in `propensity` the odds of the level received; `split` of units without overlap is
    `set aside`."""
    kept = [name for name in frame.columns if name not in (PROPENSITY, SPLIT)]
    head = [f"`{name}` {frame.schema[name].dataType.simpleString()}" for name in kept]
    added = "fold bigint, expected array<double>, odds array<double>, scores map<string,double>"
    columns = f"{', '.join(head)}, {added}, {PROPENSITY} double, {SPLIT} string"
    return frame.select(*(f"`{n}`" for n in kept), PROPENSITY, SPLIT).mapInArrow(partial(_scored, folds, kept), columns)


# Workers: Arrow in, Arrow out, no Spark.

Batches = Iterator[pa.RecordBatch]


def _coded(known: tuple[Roles, Levels, tuple[FeatureBins, ...]], seed: int, folds: int, batches: Batches) -> Batches:
    roles, levels, bins = known
    for batch in batches:
        unit, key = keys_of(batch, roles)
        yield pa.record_batch(
            {
                "unit_hash": pa.array(unit.view(np.int64)),
                "fold": pa.array(fold_of(key, seed, folds).astype(np.int32)),
                "place": _places(batch, roles, levels).astype(np.int32),
                "outcome": as_numbers(batch.column(roles.outcome)),
                "bins": packed_bins(apply_bins(batch, bins)),
            }
        )


def _places(batch: pa.RecordBatch, roles: Roles, levels: Levels) -> np.ndarray:
    found = pc.index_in(batch.column(roles.treatment).cast(pa.string()), pa.array(levels.names))
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _scored(folds: Folds, kept: list[str], batches: Batches) -> Batches:
    roles, levels = folds.roles, folds.levels
    for batch in filter(len, batches):
        fold = fold_of(keys_of(batch, roles)[1], folds.seed, len(folds.models))
        bins, shape = apply_bins(batch, folds.bins), (len(batch), len(levels))
        expected, odds = np.empty(shape), np.empty(shape)
        for f in np.unique(fold):
            mine = fold == f
            expected[mine], odds[mine] = folds.models[f].expected(bins[mine]), folds.models[f].propensity(bins[mine])
        place, outcome = _places(batch, roles, levels), as_numbers(batch.column(roles.outcome))
        received = np.arange(len(batch)), place
        if folds.logged:
            odds[received] = as_numbers(batch.column(PROPENSITY))
        weight = 1.0 / np.maximum(odds[received], folds.lowest)
        apart = (odds < folds.lowest).any(axis=1)
        added = {
            FOLD: pa.array(fold),
            EXPECTED: _lists(expected),
            ODDS: _lists(odds),
            SCORES: _maps(levels, doubly_robust(outcome, place, weight, expected)),
            PROPENSITY: pa.array(odds[received]),
            SPLIT: pc.if_else(pa.array(apart), SET_ASIDE, batch.column(SPLIT)),
        }
        yield pa.RecordBatch.from_arrays([*map(batch.column, kept), *added.values()], [*kept, *added])


def _ends(values: np.ndarray) -> pa.Array:
    return pa.array(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32))


def _lists(values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(_ends(values), pa.array(values.ravel()))


def _maps(levels: Levels, values: np.ndarray) -> pa.Array:
    return pa.MapArray.from_arrays(_ends(values), pa.array(levels.names * len(values)), pa.array(values.ravel()))
