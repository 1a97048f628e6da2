"""Average effects by roles: of a trial, of units outside it, of a dose; what is refused. No Spark."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift_spark import Roles, average_effects
from uplift_spark.errors import ConfigError, DataError

ROLES = Roles("u", "w", "y", ("x", "z"), "c")


def trial(n=1200):
    """The treated gain 1 + x; one unit more of the dose brings 2."""
    rng = np.random.default_rng(1)
    x, treated, dose = rng.normal(size=n), rng.integers(0, 2, n), rng.uniform(0, 10, n)
    columns = {"w": np.where(treated, "t", "c"), "x": x, "z": rng.choice(["a", "b"], n), "dose": dose}
    columns |= {"y": x + treated * (1 + x) + rng.normal(size=n), "on_dose": 2 * dose + x + rng.normal(size=n)}
    return pd.DataFrame({"u": np.arange(n), **columns})


def near(row, truth):
    return abs(row["estimate"] - truth) < 4 * row["error"] and 0 < row["error"] < 0.3


def test_averages_of_a_trial():
    table = average_effects(trial(), ROLES, folds=2).set_index("estimand")
    assert list(table.index) == ["ate", "att", "overlap", "naive"] and set(table["treatment"]) == {"t"}
    assert all(near(table.loc[name], 1.0) for name in table.index)
    assert table.loc["ate", "error"] < table.loc["naive", "error"]


def test_the_average_of_units_outside():
    outside = trial(600).assign(u=lambda f: f["u"] + 5_000, x=lambda f: f["x"] + 1)
    (row,) = average_effects(trial(), ROLES, outside[["u", "x", "z"]], folds=2).to_dict("records")
    assert row["estimand"] == "outside" and near(row, 1 + outside["x"].mean())


def test_one_unit_more_of_a_dose():
    roles = Roles("u", "dose", "on_dose", ("x", "z"), "0", grid=(1.0,))
    (row,) = average_effects(trial(), roles, folds=2).to_dict("records")
    assert (row["treatment"], row["estimand"]) == ("dose", "one unit more") and near(row, 2.0)


@pytest.mark.parametrize(
    ("roles", "outside", "error", "message"),
    [
        (Roles("u", "w", "y", ("x",), "c", weight="dose"), None, ConfigError, r"drop roles\.weight"),
        (Roles("u", "dose", "y", ("x",), "0", grid=(1.0,)), ("u", "x"), ConfigError, "no average partial effect"),
        (ROLES, ("u", "x"), DataError, "column 'z' is missing"),
    ],
)
def test_what_has_no_average_is_refused(roles, outside, error, message):
    frame = trial(200)
    with pytest.raises(error, match=message):
        average_effects(frame, roles, None if outside is None else frame[list(outside)])
