"""One unit at a time gives the bits that blocks of rows give, for every kind of forest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.forest.frames import arm_roles, ordered_frame, ordered_roles
from tests.forest.test_doses import dose_frame, dose_roles
from uplift_spark import CausalForest, Roles
from uplift_spark.forest.forest import Forest, load_forest

SMALL = {"n_trees": 16, "n_buckets": 4, "min_leaf": 10}


def confounded() -> Forest:
    """The level follows the age, and the old are as good as never treated: rows are weighted, some lack a level."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"unit": range(3000), "age": rng.uniform(18, 80, 3000), "x": rng.normal(size=3000)})
    share = np.where(frame["age"] < 40, 0.8, np.where(frame["age"] < 70, 0.3, 0.004))
    frame["arm"] = np.where(rng.random(3000) < share, "on", "off")
    frame["y"] = (frame["arm"] == "on") * (frame["age"] < 50) + rng.normal(size=3000)
    model = CausalForest(**SMALL).fit(frame, Roles("unit", "arm", "y", ("age", "x"), "off")).forest
    assert model.plan.overlap is not None
    return model


def few_events() -> Forest:
    """A level without a dozen events: it is flagged, and its errors have a least size."""
    frame = ordered_frame(1500, seed=2)
    frame["y"] = (np.arange(1500) % 211 == 0).astype(float)
    return CausalForest(**SMALL).fit(frame, arm_roles()).forest


def two_outcomes() -> Forest:
    """A second outcome in the leaves of the first."""
    return CausalForest(**SMALL).fit(ordered_frame(), arm_roles(more_outcomes=("tau",))).forest


FORESTS = {
    "levels": lambda: CausalForest(**SMALL).fit(ordered_frame(), arm_roles()).forest,
    "ordered": lambda: CausalForest(**SMALL).fit(ordered_frame(), ordered_roles()).forest,
    "two outcomes": lambda: (
        CausalForest(**SMALL).fit(ordered_frame(), arm_roles(more_outcomes=("tau",))).forest.of("y")
    ),
    "doses": lambda: CausalForest(**SMALL, criterion="spline").fit(dose_frame(2000), dose_roles()).forest,
    "one dose more": lambda: CausalForest(**SMALL).fit(dose_frame(2000), dose_roles()).forest.at((2.0, 5.0), True),
    "monotone": lambda: CausalForest(**SMALL, monotone="increasing").fit(dose_frame(2000), dose_roles()).forest,
    "confounded": confounded,
    "few events": few_events,
}


def rows_for(forest: Forest, n: int = 150) -> np.ndarray:
    """Bins of rows that training need not have seen: every combination may come up, missing values too."""
    rng = np.random.default_rng(5)
    return np.column_stack([rng.integers(0, one.n_bins, n) for one in forest.bins]).astype(np.uint8)


@pytest.mark.parametrize("name", FORESTS)
def test_one_unit_has_the_bits_of_a_batch(name: str) -> None:
    forest = FORESTS[name]()
    bins = rows_for(forest)
    batch = forest.effects_of(bins)
    assert np.isfinite(batch[0]).any() and np.isfinite(batch[1]).any()
    for i in range(len(bins)):
        for one, all_ in zip(forest.unit_effects(bins[i : i + 1]), batch, strict=True):
            assert one.dtype == all_.dtype and one.tobytes() == all_[i : i + 1].tobytes(), (name, i)


def test_trees_that_grew_nothing_do_not_speak() -> None:
    """Buckets without rows of both arms grow no tree; the file, mapped into memory, gives the same."""
    frame = ordered_frame(400, seed=9)
    forest = CausalForest(n_trees=32, n_buckets=16, min_leaf=40).fit(frame, arm_roles()).forest
    bins = rows_for(forest, 40)
    again = load_forest(forest.to_bytes())
    for i in range(len(bins)):
        for one, other in zip(again.unit_effects(bins[i : i + 1]), forest.effects_of(bins), strict=True):
            assert one.tobytes() == other[i : i + 1].tobytes()
