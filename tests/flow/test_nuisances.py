"""Nuisances on Spark: those of one process for any partitioning; averages, overlap and balance by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F

from uplift_spark import Roles
from uplift_spark.flow.averages import average_table, balance_table, overlap_table
from uplift_spark.flow.evaluation import Setup
from uplift_spark.flow.nuisances import SET_ASIDE, fit_folds, with_scores
from uplift_spark.vocabulary import DataError

pytestmark = pytest.mark.spark
LEVELS = ("none", "call", "mail")
ROLES = Roles("unit_id", "treatment", "bought", ("age", "city"), "none")
SETUP = Setup("none", ("bought",), ("city",))
ASKED = {"folds": 3, "rows": 1000, "lowest": 0.05, "propensity": "fitted"}


def observed(n=3000, seed=0):
    """The old get mail, those of y get calls, hardly anybody else does; both groups buy more anyway."""
    rng = np.random.default_rng(seed)
    age, city = rng.uniform(20, 80, n), rng.choice(["x", "y"], n)
    weights = np.column_stack([np.ones(n), np.exp((age - 50) / 15), np.where(city == "y", 1.0, 0.02)])
    odds = weights / weights.sum(axis=1, keepdims=True)
    place = (rng.random(n)[:, None] > odds.cumsum(axis=1)).sum(axis=1)
    return pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.array(["none", "mail", "call"])[place],
            "propensity": np.nan,
            "bought": (rng.random(n) < 0.2 + 0.004 * (age - 20) + 0.1 * (place == 1)).astype(float),
            "age": np.where(rng.random(n) < 0.1, np.nan, age),
            "city": city,
            "split": np.where(np.arange(n) % 3, "train", "holdout"),
        }
    )


@pytest.fixture(scope="module")
def units(spark):
    frame = observed()
    return spark.createDataFrame(frame.astype({"age": object}).where(frame.notna(), None))


@pytest.fixture(scope="module")
def scored(units):
    folds = fit_folds(units.where("split = 'train'"), ROLES, 7, ASKED, lambda _: None)
    return with_scores(units, folds)


def arrays(table):
    return [np.array(table[name].tolist()) for name in ("expected", "odds")]


def test_the_same_for_any_partitioning(units, scored):
    one = scored.toPandas().sort_values("unit_id", ignore_index=True)
    shuffled = units.repartition(5)
    folds = fit_folds(shuffled.where("split = 'train'"), ROLES, 7, ASKED, lambda _: None)
    other = with_scores(shuffled, folds).toPandas().sort_values("unit_id", ignore_index=True)
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert np.array_equal(a, b)
    assert one.scores.tolist() == other.scores.tolist() and one.fold.tolist() == other.fold.tolist()


def test_scores_are_doubly_robust_and_who_has_no_overlap_is_set_aside(scored):
    rows = scored.toPandas()
    expected, odds = arrays(rows)
    place = rows.treatment.map({level: k for k, level in enumerate(LEVELS)}).to_numpy()
    mine = odds[np.arange(len(rows)), place]
    assert rows.propensity.to_numpy() == pytest.approx(mine) and odds.sum(axis=1) == pytest.approx(1)
    scores = np.array([[one[level] for level in LEVELS] for one in rows.scores])
    for k in range(3):
        seen = (place == k) * (rows.bought.to_numpy() - expected[:, k]) / np.maximum(mine, 0.05)
        assert scores[:, k] == pytest.approx(expected[:, k] + seen)
    aside = (odds < 0.05).any(axis=1)
    assert (rows.split == SET_ASIDE).tolist() == aside.tolist() and 0.2 < aside.mean() < 0.7
    assert set(rows.split[~aside]) == {"train", "holdout"}


def test_logged_odds_count_where_they_are_trusted(units):
    logged = units.withColumn("propensity", F.lit(0.25))
    folds = fit_folds(logged.where("split = 'train'"), ROLES, 7, {**ASKED, "propensity": "logged"}, lambda _: None)
    assert with_scores(logged, folds).where("propensity != 0.25").isEmpty()


def test_averages_overlap_and_balance(scored):
    rows, kept = scored.toPandas(), scored.where(F.col("split") != SET_ASIDE)
    inside = rows[rows.split != SET_ASIDE]
    table = average_table(kept, SETUP, LEVELS, 0.05).set_index(["treatment", "estimand", "cut", "bucket"])
    scores = {level: np.array([one[level] for one in inside.scores]) for level in LEVELS}
    for level in LEVELS[1:]:
        gained = scores[level] - scores["none"]
        row = table.loc[level, "ate", "all", "all"]
        assert row.value == pytest.approx(gained.mean(), rel=1e-5)
        assert row.error == pytest.approx(gained.std(ddof=1) / len(inside) ** 0.5, rel=1e-4)
        own = (inside.city == "y").to_numpy()
        assert table.loc[level, "ate", "segment:city", "y"].value == pytest.approx(gained[own].mean(), rel=1e-5)
        arms = [inside.bought[inside.treatment == arm] for arm in (level, "none")]
        naive = table.loc[level, "naive", "all", "all"]
        assert naive.value == pytest.approx(arms[0].mean() - arms[1].mean(), rel=1e-5)
        assert (naive.n_treated, naive.n_control) == (len(arms[0]), len(arms[1]))
    shuffled = average_table(kept.repartition(4), SETUP, LEVELS, 0.05)
    assert shuffled.equals(table.reset_index()[shuffled.columns])

    overlap = overlap_table(scored, LEVELS, SET_ASIDE).set_index("treatment")
    for level in LEVELS:
        p = inside.propensity[inside.treatment == level]
        assert overlap.units[level] == len(p) and overlap.lowest[level] == pytest.approx(p.min())
        assert overlap.effective_units[level] == pytest.approx((1 / p).sum() ** 2 / (1 / p**2).sum(), abs=0.06)
        assert overlap.set_aside[level] == ((rows.treatment == level) & (rows.split == SET_ASIDE)).sum()

    balance = balance_table(kept, ROLES.features, LEVELS).fillna({"category": "mean"})
    balance = balance.set_index(["treatment", "feature", "category"])
    mail, none = (inside[inside.treatment == level] for level in ("mail", "none"))
    spread = ((mail.age.var(ddof=0) + none.age.var(ddof=0)) / 2) ** 0.5
    row = balance.loc["mail", "age", "mean"]
    assert row.difference == pytest.approx((mail.age.mean() - none.age.mean()) / spread, abs=1e-5)
    assert abs(row.difference_weighted) < 0.5 * abs(row.difference) and row.difference > 0.3
    assert {"x", "y"} == set(balance.loc["mail"].loc["city"].index) and ("mail", "age", "missing") in balance.index
    ratio = mail.age.var(ddof=0) / none.age.var(ddof=0)
    assert row.variance_ratio == pytest.approx(ratio, abs=1e-5)


def test_an_arm_that_training_lacks_is_named(units):
    bare = units.where("split = 'train'")
    few = bare.where("treatment != 'call'").unionByName(bare.where("treatment = 'call'").limit(1))
    with pytest.raises(DataError, match=r"received call: use fewer nuisances\.folds"):
        fit_folds(few, ROLES, 7, ASKED, lambda _: None)
