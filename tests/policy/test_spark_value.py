"""What a plan brings by the hold-out's outcomes: intervals that hold where units come in clusters."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from uplift_spark.policy.allocation import Constraint, Problem
from uplift_spark.policy.spark import Pass, add_observed, observed_from_sums
from uplift_spark.stats.intervals import Draws
from uplift_spark.stats.moments import FixedPoint

VILLAGES, EACH, LEVELS, VALUE, COST = 240, 8, 2, 3.0, 0.1
EFFECTS = np.array([[0.2, 0.1], [0.1, 0.4]])  # of each level, by kind of village
PROBLEM = Problem((Constraint("spend", 1e9, "spend", np.ones(LEVELS)),), LEVELS, 0, 2.0, COST)
POINT = FixedPoint.of(1.0, 20.0)


def trial(rng, villages=VILLAGES):
    """(rows, kind of each unit): whole villages get a level or the control, and have much in common."""
    village = np.repeat(np.arange(villages), EACH)
    kind, treated_index = rng.integers(0, 2, villages)[village], rng.integers(-1, LEVELS, villages)[village]
    effect = np.where(treated_index >= 0, EFFECTS[kind, treated_index], 0.0)
    outcome = effect + rng.normal(size=villages)[village] + rng.normal(size=len(village))
    n = len(village)
    gain = VALUE * EFFECTS[kind] - COST
    rows = {
        "gain": pa.array(list(gain)),
        "cost": pa.array(list(np.full((n, LEVELS), COST))),
        "buckets": pa.array([[]] * n, pa.list_(pa.int64())),
        "key": np.arange(n),
        "treated_index": treated_index,
        "outcome": outcome,
        "weight": np.ones(n),
        "unit_hash": rng.integers(-(2**63), 2**63 - 1, villages)[village],
    }
    return pa.record_batch(rows), kind


def pass_of(replicates):
    return Pass(PROBLEM, np.zeros((1, 1)), POINT, Draws(7, replicates) if replicates else None)


def observed_gain(rows, replicates, parts=1, value=VALUE):
    cuts = np.linspace(0, rows.num_rows, parts + 1).astype(int)
    wanted = pass_of(replicates)
    sums = [add_observed(wanted, iter([rows.slice(a, b - a)])) for a, b in pairwise(cuts)]
    return observed_from_sums(
        pa.Table.from_batches([batch for one in sums for batch in one]), wanted, (value, True), rows.num_rows
    )


def covered(draws, replicates):
    """Shares of intervals that hold what the plan brings: by cluster, and by unit."""
    hits = []
    for seed in range(draws):
        rows, kind = trial(np.random.default_rng([5, seed]))
        truth = (VALUE * EFFECTS.max(axis=1)[kind] - COST).sum()
        intervals = (observed_gain(rows, replicates), observed_gain(rows, 0))
        hits.append([one.lower[0] <= truth <= one.upper[0] for one in intervals])
    return np.mean(hits, axis=0)


def test_intervals_of_a_plan_hold_with_clusters():
    by_cluster, by_unit = covered(80, 100)
    assert by_cluster > 0.88 and by_unit < 0.8


@pytest.mark.simulation
def test_intervals_of_a_plan_hold_with_clusters_at_full_size():
    by_cluster, by_unit = covered(500, 200)
    print(f"\nplan's gain covered: by cluster {by_cluster:.3f}, by unit {by_unit:.3f}")
    assert 0.93 <= by_cluster <= 0.97 and by_unit < 0.8


def test_any_partition_gives_the_same_sums():
    rows, _ = trial(np.random.default_rng(1))
    one, many = observed_gain(rows, 50), observed_gain(rows, 50, parts=7)
    assert (one.gain, one.lower, one.upper) == (many.gain, many.lower, many.upper)


@pytest.mark.parametrize("replicates", [0, 50])
def test_an_outcome_of_which_less_is_better_is_its_mirror(replicates):
    rows, _ = trial(np.random.default_rng(1))
    falls = rows.set_column(rows.column_names.index("outcome"), "outcome", pc.negate(rows["outcome"]))
    more, fewer = observed_gain(rows, replicates), observed_gain(falls, replicates, value=-VALUE)
    for end in ("gain", "lower", "upper"):
        assert getattr(fewer, end)[0] == pytest.approx(getattr(more, end)[0])
    assert fewer.lower[0] < fewer.gain[0] < fewer.upper[0]


def test_too_few_clusters_tell_nothing():
    rows, _ = trial(np.random.default_rng(2), villages=48)  # eight of each kind and arm
    assert np.isfinite(observed_gain(rows, 0).lower[0]) and np.isnan(observed_gain(rows, 50).lower[0])
