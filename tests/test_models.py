"""A fitted model goes on: lift, Qini and pictures of new rows, one line of repr; no Spark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.estimators import CausalForest, InstrumentalForest, MetaLearner, UpliftModel
from uplift_spark.roles import Roles

ROLES = Roles("customer", "level", "bought", ("recency", "region"), "0", more_outcomes=("spend",))


def trial(n: int = 6000, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"customer": np.arange(n), "level": rng.integers(0, 3, n), "recency": rng.integers(0, 12, n)})
    frame["region"] = rng.choice(["north", "south"], n)
    frame["bought"] = rng.random(n) < 0.1 + 0.1 * frame["level"] * (frame["recency"] < 4)
    frame["spend"] = frame["bought"] * rng.exponential(20.0, n)
    frame["household"] = frame["customer"] // 2
    return frame


@pytest.fixture(scope="module")
def fitted() -> tuple[UpliftModel, pd.DataFrame]:
    frame = trial()
    return CausalForest(n_trees=24, seed=7).fit(frame[:3000], ROLES), frame[3000:]


def test_lift_of_every_level_decile_and_segment(fitted: Any) -> None:
    model, rest = fitted
    lift = model.lift(rest, segments=["region", "recency x region"], value=10.0, cost={"1": 0.5})
    assert lift["treatment"].drop_duplicates().tolist() == ["1", "2"] and set(lift["outcome"]) == {"bought"}
    whole = lift[(lift["treatment"] == "2") & (lift["cut"] == "all")].iloc[0]
    rows = rest[rest["level"] != 1]
    means = rows.groupby("level")["bought"].mean()
    assert whole["n"] == len(rows) and whole["uplift"] == pytest.approx(means[2] - means[0])
    north = lift[(lift["treatment"] == "1") & (lift["bucket"] == "north")].iloc[0]
    assert north["roi"] == pytest.approx((north["uplift"] * 10.0 - 0.5) / 0.5)
    assert lift.loc[lift["treatment"] == "2", "roi"].isna().all()  # its cost is not known
    assert "3 x south" in set(lift["bucket"])


def test_measures_of_every_outcome_and_kind_of_model(fitted: Any) -> None:
    model, rest = fitted
    assert model.qini(rest)["lower"][1] > 0 and (model.qini(rest, "spend")["outcome"] == "spend").all()
    roles = replace(ROLES, more_outcomes=(), cluster="household")
    learner = MetaLearner("t_learner", replicates=0).fit(trial()[:3000], roles)
    mine, others = model.qini(rest), learner.qini(rest)
    assert mine["treatment"].equals(others["treatment"]) and not mine["value"].equals(others["value"])
    assert set(learner.metrics(rest)["metric"]) == set(model.metrics(rest)["metric"])


def test_units_count_by_the_inverse_of_their_propensity() -> None:
    frame, rng = trial(), np.random.default_rng(3)
    p = np.where(frame["recency"] < 4, 0.8, 0.3)
    frame["level"] = (rng.random(len(frame)) < p).astype(int)
    frame["p"] = np.where(frame["level"] == 1, p, 1 - p)
    frame["bought"] = rng.random(len(frame)) < np.where(frame["recency"] < 4, 0.5, 0.1)  # nobody responds
    roles = Roles("customer", "level", "bought", ("recency",), "0")
    weighed = CausalForest(n_trees=8).fit(frame, replace(roles, propensity="p"))
    plain = CausalForest(n_trees=8).fit(frame, roles)
    assert abs(weighed.lift(frame)["uplift"][0]) < 0.05 < plain.lift(frame)["uplift"][0]


def test_pictures_are_figures(fitted: Any) -> None:
    pytest.importorskip("matplotlib")
    model, rest = fitted
    figures = [model.plot.qini(rest), model.plot.deciles(rest), model.plot.calibration(rest, "spend")]
    assert [len(figure.axes) for figure in figures] == [1, 2, 2]
    assert "percentage points" in figures[0].axes[0].get_ylabel()
    assert "percentage points" not in figures[2].axes[0].get_ylabel()


def test_what_cannot_be_measured_is_refused(fitted: Any) -> None:
    model, rest = fitted
    with pytest.raises(DataError, match=r"column 'level' holds none of 0, 1, 2 in 1,000 rows: leave them out"):
        model.lift(rest.assign(level=np.where(np.arange(3000) < 1000, 7, rest["level"])))
    with pytest.raises(DataError, match="'spend'"):
        model.lift(rest.drop(columns="spend"), "spend")
    with pytest.raises(DataError, match="column 'customer' repeats in 10 rows of the frame: keep one row of each unit"):
        model.lift(pd.concat([rest, rest[:10]]))
    with pytest.raises(DataError, match="the frame has no row: give"):
        model.metrics(rest[:0])
    with pytest.raises(ConfigError, match="no outcome 'visits'"):
        model.qini(rest, "visits")
    with pytest.raises(DataError, match="'city'"):
        model.lift(rest, segments=["city"])
    doses = Roles("customer", "level", "spend", ("recency",), "0", grid=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"roles\.grid has none"):
        CausalForest(n_trees=8).fit(trial(2000), doses).lift(rest)


def test_models_are_one_line() -> None:
    frame, roles = trial(2000), Roles("customer", "level", "spend", ("recency",), "0")
    frame["delivered"] = (frame["level"] > 0) & (frame["customer"] % 3 > 0)
    two = frame[frame["level"] < 2]
    models = [
        CausalForest(n_trees=8).fit(frame, roles),
        CausalForest(n_trees=8, per_level=True).fit(frame, roles),
        InstrumentalForest(n_trees=8).fit(two, roles, "delivered"),
        MetaLearner("s_learner", replicates=0).fit(frame, roles),
    ]
    assert [repr(model.model).partition(":")[0] for model in models] == [
        "<Forest of 8 trees",
        "<PerLevel of 2 forests",
        "<Instrumental forest",
        "<Learned s_learner",
    ]
    for model in models:
        assert "\n" not in repr(model) and len(repr(model)) < 120 and repr(model).startswith("<UpliftModel ")
