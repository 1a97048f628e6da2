"""What observational campaigns need before a forest: nuisances of every unit, cross-fitted, and its scores (R3.5).

Units fall into folds by hash of the unit or its cluster. Models of a fold's nuisances are fitted by a task of its own,
on a bounded sample of the other folds' training rows; a map over all units applies them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from uplift_spark.causal.binning import FeatureBins, as_numbers
from uplift_spark.causal.crossfit import (
    Fitted,
    Spec,
    check_arms,
    crossfit_folds,
    features_of,
    fit_nuisances,
    placebo,
    placebo_outcome,
)
from uplift_spark.causal.little_bags import Z95
from uplift_spark.causal.rows import keys_of
from uplift_spark.causal.samples import Sample, places_of
from uplift_spark.causal.training import Say
from uplift_spark.flow.learned import fit_parts
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.vocabulary import PROPENSITY, TREATMENT, Roles

EXPECTED, ODDS, SCORES, FOLD, SPLIT, SET_ASIDE = "expected", "odds", "scores", "fold", "split", "set aside"
REFUTED = 10_000  # rows that `refutations` fits nuisances on anew, every time


@dataclass(frozen=True)
class Folds:
    """Models of every fold, fitted on the rows of the others.

    lowest  probability of a level below which a unit is set aside
    logged  whether the probability of the level received is as the campaign logged it
    """

    roles: Roles
    bins: tuple[FeatureBins, ...]
    spec: Spec
    models: tuple[Fitted, ...]
    lowest: float
    logged: bool


def fit_folds(spark: SparkSession, sample: Sample, lowest: float, logged: bool, say: Say) -> Folds:
    """Models of every fold, a task for each. Raises DataError when an arm has too few rows outside some fold."""
    fold, spec = crossfit_folds(sample.key, sample.spec), sample.spec
    others = fold[:, None] != np.arange(spec.folds)
    for mine in others.T:
        check_arms(sample.place[mine], spec)
    numbers = np.column_stack([sample.place, sample.outcome, sample.features])
    say(f"fitting nuisances of {spec.folds} folds on {len(fold):,} of {sample.coding.total:,} training rows")
    models = fit_parts(spark, sample.key, numbers, others, partial(_fit_fold, spec))
    return Folds(sample.roles, sample.coding.bins, spec, tuple(models), lowest, logged)


def refutations(sample: Sample, draws: int, placebo_outcomes: Sequence[str], say: Say) -> pd.DataFrame:
    """Effects that must be nought, re-estimated from at most REFUTED of the sample's rows: of levels dealt out at
    random, `draws` times, and on features that the treatment came too late to change.

    Columns as gold.sensitivity but for run_id and campaign. Clusters are not dealt out: their units are not alike.
    """
    some = slice(None) if len(sample.place) <= REFUTED else np.sort(np.argsort(sample.key, kind="stable")[:REFUTED])
    key, place, outcome, features = (part[some] for part in (sample.key, sample.place, sample.outcome, sample.features))
    found = []
    if draws and sample.roles.cluster is None:
        say(f"dealing out treatments at random, {draws} times, among {len(place):,} units")
        dealt = placebo(features, place, outcome, key, sample.spec, draws)
        found += [("permuted treatment", f"draw {r + 1}", *dealt.of(r)) for r in range(draws)]
    names = [one.name for one in sample.coding.bins]
    for name in placebo_outcomes:
        say(f"looking for effects on {name}, which there cannot be")
        at = placebo_outcome(features, place, key, sample.spec, names.index(name), sample.roles.cluster is not None)
        found.append(("placebo outcome", name, *at.of(0)))
    lines = [
        (level, check, setting, value[k], value[k] - Z95 * error[k], value[k] + Z95 * error[k], p_value[k])
        for check, setting, value, error, p_value in found
        for k, level in enumerate(sample.spec.levels[1:])
    ]
    return pd.DataFrame(lines, columns=[TREATMENT, "check", "setting", "value", "lower", "upper", "p_value"])


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


def _fit_fold(spec: Spec, _: int, __: np.ndarray, numbers: np.ndarray) -> Fitted:
    return fit_nuisances(numbers[:, 2:], numbers[:, 0].astype(np.int64), numbers[:, 1], spec)


def _scored(folds: Folds, kept: list[str], batches: Batches) -> Batches:
    roles, levels = folds.roles, folds.spec.levels
    for batch in filter(len, batches):
        fold = crossfit_folds(keys_of(batch, roles)[1], folds.spec)
        features, shape = features_of(batch, folds.bins), (len(batch), len(levels))
        expected, odds = np.empty(shape), np.empty(shape)
        for f in np.unique(fold):
            mine, models = fold == f, folds.models[f]
            expected[mine], odds[mine] = models.expected(features[mine]), models.propensity(features[mine])
        place, outcome = places_of(batch, roles, levels), as_numbers(batch.column(roles.outcome))
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


def _maps(levels: tuple[str, ...], values: np.ndarray) -> pa.Array:
    return pa.MapArray.from_arrays(_ends(values), pa.array(levels * len(values)), pa.array(values.ravel()))
