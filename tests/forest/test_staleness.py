"""The test of splits: holds its level without change, tells new effects that the trees can follow from others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import ordered_frame, ordered_roles, plain_frame, plain_roles
from uplift_spark import CausalForest
from uplift_spark.errors import ConfigError
from uplift_spark.forest.refresh import BIN_GROUPS, departures, forest_residuals, staleness

OLD = 2000
SAME, DOUBLED, MOVED = (lambda f: f["tau"]), (lambda f: 2 * f["tau"]), (lambda f: 1.0 * (f["x1"] > 0.5))


def arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def rejected(effect, reps, n, low=0.0):
    """(shares of replications in which effects are found changed, splits stale; the feature named most often).

    New rows are of features above `low`.
    """
    p_values, named = [], []
    for seed in range(reps):
        old, new = plain_frame(OLD, 2 * seed), plain_frame(n, 2 * seed + 1)
        new = new.assign(unit=new["unit"] + OLD, x0=low + (1 - low) * new["x0"])
        noise = new["y"] - new["tau"] * new["w"]
        new["tau"] = 1.0 * (new["x0"] > 0.5)
        new["y"] = noise + effect(new) * new["w"]
        roles = plain_roles(old)
        forest = CausalForest(n_trees=16, seed=seed, n_buckets=4, min_leaf=20).fit(old, roles).forest
        one = staleness(forest, forest_residuals(forest, arrow(old)), arrow(new))
        assert one.regrow == (one.stale < 0.05)
        p_values.append((one.changed < 0.05, one.stale < 0.05))
        named.append(one.feature)
    changed, stale = np.mean(p_values, axis=0)
    print(f"{n} new rows: changed {changed:.3f}, stale {stale:.3f}")
    return changed, stale, max(set(named), key=named.count)


@pytest.mark.parametrize("n", [pytest.param(500, marks=pytest.mark.slow), 4000])
def test_without_change_little_is_rejected(n):
    changed, stale, _ = rejected(SAME, 40, n)
    assert changed < 0.15 and stale < 0.1


def test_effects_that_move_to_another_feature_make_splits_stale():
    changed, stale, feature = rejected(MOVED, 10, 1500)
    assert changed == 1.0 and stale >= 0.9 and feature == "x1"


def test_effects_that_change_along_the_splits_do_not():
    changed, stale, _ = rejected(DOUBLED, 20, 1500)
    assert changed == 1.0 and stale < 0.2


@pytest.mark.simulation
@pytest.mark.parametrize("low", [0.0, 0.25])
@pytest.mark.parametrize("n", [500, 2000, 8000])
def test_it_holds_its_level(n, low):
    changed, stale, _ = rejected(SAME, 500, n, low)
    assert stale < 0.05
    assert 0.03 <= changed <= 0.07 if low == 0 else changed < 0.1


@pytest.mark.simulation
@pytest.mark.parametrize("n", [500, 2000])
def test_it_tells_what_trees_can_follow_from_what_they_cannot(n):
    assert rejected(MOVED, 200, n)[1] > 0.7
    changed, stale, _ = rejected(DOUBLED, 200, n)
    assert changed > 0.95 and stale < 0.1


@pytest.fixture(scope="module")
def ordered():
    frame = ordered_frame(4000).assign(money=1.0)
    roles = ordered_roles(more_outcomes=("money",))
    return frame, CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame[:2000], roles).forest


def test_residuals_add(ordered):
    frame, forest = ordered
    whole = forest_residuals(forest, arrow(frame))
    parts = forest_residuals(forest, arrow(frame[:900])) + forest_residuals(forest, arrow(frame[900:]))
    np.testing.assert_allclose(parts.sums, whole.sums, rtol=1e-9, atol=1e-6)
    assert whole.sums.shape == (4, BIN_GROUPS, 3, 6)
    np.testing.assert_array_equal(whole.sums[..., 0].sum(axis=(1, 2)), 4000)


def test_missing_values_categories_and_several_levels_are_compared(ordered):
    frame, forest = ordered
    before = forest_residuals(forest, arrow(frame[:2000]))
    assert (departures(before, before) == 1.0).all()
    new = frame[2000:]
    assert not staleness(forest, before, arrow(new)).regrow
    north = new.assign(y=new["y"] + 5.0 * (new["region"] == "east") * (new["arm"] == "5%"))
    assert staleness(forest, before, arrow(north)).changed < 1e-6
    # A group with hardly a row of a level is not asked.
    few = forest_residuals(forest, arrow(new[:60]))
    assert (departures(before, few) <= 1.0).all()


def test_clusters_are_refused(ordered):
    frame, _ = ordered
    frame = frame.assign(house=frame.index // 2)
    forest = CausalForest(n_trees=4, min_leaf=10, n_buckets=4).fit(frame, ordered_roles(cluster="house")).forest
    with pytest.raises(ConfigError, match="'house': the test of splits takes rows as independent"):
        forest_residuals(forest, arrow(frame))
