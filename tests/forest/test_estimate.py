"""Leaf sums of other rows in trees that stand: what erasing a unit from a model rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import ordered_frame, ordered_roles
from uplift_spark import CausalForest, load_model
from uplift_spark.errors import DataError
from uplift_spark.estimators import UpliftModel
from uplift_spark.forest import defaults
from uplift_spark.forest.encode import bin_rows, encode
from uplift_spark.forest.estimate import add_to_leaves, correct, empty_sums, grown_parts, plain_shares

ROLES = ordered_roles(more_outcomes=("money",), weight="wt")
ERASED = ("u000003", "u000700", "u001999")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """2,000 rows; one of those to be erased holds the largest outcome, so that the facts tell of it."""
    rng = np.random.default_rng(3)
    frame = ordered_frame(2000)
    frame = frame.assign(money=20 + 0.6 * frame["age"].fillna(40) + rng.normal(size=2000), wt=rng.uniform(0.5, 2, 2000))
    frame.loc[frame["unit"] == ERASED[1], "y"] = 50.0
    return frame


@pytest.fixture(scope="module")
def model(frame):
    return CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame, ROLES)


def without(frame: pd.DataFrame, units: tuple[str, ...]) -> pd.DataFrame:
    return frame[~frame["unit"].isin(units)]


def rows_of(frame, model):
    plan, _, baselines = grown_parts(model.forest)
    return bin_rows(encode(pa.Table.from_pandas(frame, preserve_index=False), plan.roles), plan, baselines)


def plain(rows, model):
    plan, structure, _ = grown_parts(model.forest)
    sums = empty_sums(structure, plan)
    add_to_leaves(sums, rows, structure.routes, plan)
    return sums


def test_the_training_rows_give_the_same_model_whatever_sums_it_held_before(frame, model):
    assert model.estimate(frame).to_bytes() == model.to_bytes()
    forest = replace(model.forest, sums=model.forest.sums * 3 + 1, level_shrinkage=None)
    assert UpliftModel(forest).estimate(frame.sample(frac=1, random_state=1)).to_bytes() == model.to_bytes()


def test_a_sample_of_the_rows_is_that_of_training(frame, monkeypatch):
    monkeypatch.setattr(defaults, "sample_rows", lambda features: 500)
    model = CausalForest(n_trees=8, min_leaf=10, n_buckets=4).fit(frame, ROLES)
    assert model.estimate(frame).to_bytes() == model.to_bytes()


@pytest.mark.parametrize("units", [ERASED[:1], ERASED])
def test_without_units_the_sums_are_the_old_ones_less_theirs(frame, model, units):
    rest = without(frame, units)
    less = model.estimate(rest)
    plan, structure, _ = grown_parts(model.forest)
    gone = plain(rows_of(frame[frame["unit"].isin(units)], model), model)
    left = model.forest.sums - gone
    assert gone[:, :, 0].any()
    weights_and_sums = np.s_[:, :, [0, 1, 3]]
    np.testing.assert_array_equal(less.forest.sums[weights_and_sums], left[weights_and_sums])
    # The corrected sums, from what the subtraction left: every row's correction looks at the others' plain sums.
    rows, again = rows_of(rest, model), empty_sums(structure, plan)
    values = plain_shares(np.where(np.isin(np.arange(5), [0, 1, 3]), left, 0))
    add_to_leaves(again, correct(rows, structure.routes, values, plan), structure.routes, plan, corrected=True)
    np.testing.assert_array_equal(less.forest.sums[:, :, [2, 4]], again[:, :, [2, 4]])


def test_without_units_nothing_of_them_is_left_and_the_trees_stand(frame, model):
    less = model.estimate(without(frame, ERASED))
    assert less.forest.facts["rows"] == 1997
    assert sum(less.forest.facts["level_rows"].values()) == 1997
    assert model.forest.facts["outcome_range"]["y"][1] == 50.0 > less.forest.facts["outcome_range"]["y"][1]
    assert less.forest.structure is model.forest.structure and less.forest.plan == model.forest.plan
    # Whatever they had been, the model without them is the same.
    other = frame.assign(y=frame["y"].where(~frame["unit"].isin(ERASED), -9.0))
    as_if = model.estimate(other)
    assert as_if.to_bytes() != model.to_bytes()
    assert as_if.estimate(without(other, ERASED)).to_bytes() == less.to_bytes()
    # One after the other or at once, from the object or from its file.
    stepwise = load_model(model.to_bytes())
    for unit in ERASED:
        frame = without(frame, (unit,))
        stepwise = load_model(stepwise.estimate(frame).to_bytes())
    assert stepwise.to_bytes() == less.to_bytes()


def test_an_arm_without_rows_is_refused(frame, model):
    with pytest.raises(DataError, match="'arm' has no row of 5%, so this forest of levels none, 5%, 10%"):
        model.estimate(frame[frame["arm"] != "5%"])
    with pytest.raises(DataError, match=r"'arm' has levels \['20%'\]"):
        model.estimate(frame.assign(arm=frame["arm"].where(frame["unit"] != "u000001", "20%")))
    with pytest.raises(DataError, match="no rows"):
        model.estimate(frame.head(0))
