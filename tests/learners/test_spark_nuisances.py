"""Nuisances on Spark: those of one process for any partitioning; averages, overlap and balance by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F

from uplift_spark import Roles
from uplift_spark.errors import DataError
from uplift_spark.evaluation.average_effects import average_table, balance_table, hidden_table, overlap_table
from uplift_spark.evaluation.metrics import EvaluationSpec
from uplift_spark.learners.spark import TRIMMED, fit_folds, refutations, sampled_rows, with_scores
from uplift_spark.stats.aipw import confounder_terms, sensitivity

pytestmark = pytest.mark.spark
LEVELS = ("none", "call", "mail")
ROLES = Roles("unit_id", "treatment", "bought", ("age", "city"), "none")
SPEC = EvaluationSpec("none", ("bought",), ("city",))


def observed(n=3000, seed=0):
    """The old get mail, those of y get calls, hardly anybody else does; both groups buy more anyway."""
    rng = np.random.default_rng(seed)
    age, city = rng.uniform(20, 80, n), rng.choice(["x", "y"], n)
    weights = np.column_stack([np.ones(n), np.exp((age - 50) / 15), np.where(city == "y", 1.0, 0.1)])
    propensity = weights / weights.sum(axis=1, keepdims=True)
    level_code = (rng.random(n)[:, None] > propensity.cumsum(axis=1)).sum(axis=1)
    return pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.array(["none", "mail", "call"])[level_code],
            "propensity": np.nan,
            "bought": (rng.random(n) < 0.2 + 0.004 * (age - 20) + 0.1 * (level_code == 1)).astype(float),
            "age": np.where(rng.random(n) < 0.1, np.nan, age),
            "city": city,
            "split": np.where(np.arange(n) % 3, "train", "holdout"),
        }
    )


@pytest.fixture(scope="module")
def units(spark):
    frame = observed()
    return spark.createDataFrame(frame.astype({"age": object}).where(frame.notna(), None))


def sampled(units):
    return sampled_rows(units.where("split = 'train'"), ROLES, (3, 7), 1000)


def folds_of(units, logged=False):
    return fit_folds(units.sparkSession, sampled(units), 0.05, logged, lambda _: None)


@pytest.fixture(scope="module")
def scored(units):
    return with_scores(units, folds_of(units))


def arrays(table):
    return [np.array(table[name].tolist()) for name in ("outcome_mean", "propensities")]


@pytest.mark.slow
def test_the_same_for_any_partitioning(units, scored):
    one = scored.toPandas().sort_values("unit_id", ignore_index=True)
    shuffled = units.repartition(5)
    other = with_scores(shuffled, folds_of(shuffled)).toPandas().sort_values("unit_id", ignore_index=True)
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert np.array_equal(a, b)
    assert one.scores.tolist() == other.scores.tolist() and one.fold.tolist() == other.fold.tolist()


def test_scores_are_doubly_robust_and_units_without_overlap_are_trimmed(scored):
    rows = scored.toPandas()
    outcome_mean, propensity = arrays(rows)
    level_code = rows.treatment.map({level: k for k, level in enumerate(LEVELS)}).to_numpy()
    mine = propensity[np.arange(len(rows)), level_code]
    assert rows.propensity.to_numpy() == pytest.approx(mine) and propensity.sum(axis=1) == pytest.approx(1)
    scores = np.array([[one[level] for level in LEVELS] for one in rows.scores])
    for k in range(3):
        residual = (level_code == k) * (rows.bought.to_numpy() - outcome_mean[:, k]) / np.maximum(mine, 0.05)
        assert scores[:, k] == pytest.approx(outcome_mean[:, k] + residual)
    trimmed = (propensity < 0.05).any(axis=1)
    assert (rows.split == TRIMMED).tolist() == trimmed.tolist() and 0.2 < trimmed.mean() < 0.7
    assert set(rows.split[~trimmed]) == {"train", "holdout"}


@pytest.mark.slow
def test_logged_propensities_count_where_they_are_trusted(units):
    logged = units.withColumn("propensity", F.lit(0.25))
    assert with_scores(logged, folds_of(logged, logged=True)).where("propensity != 0.25").isEmpty()


def test_averages_overlap_and_balance(scored):
    rows, kept = scored.toPandas(), scored.where(F.col("split") != TRIMMED)
    inside = rows[rows.split != TRIMMED]
    table = average_table(kept, SPEC, LEVELS, 0.05).set_index(["treatment", "estimand", "cut", "bucket"])
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
    shuffled = average_table(kept.repartition(4), SPEC, LEVELS, 0.05)
    assert shuffled.equals(table.reset_index()[shuffled.columns])

    overlap = overlap_table(scored, LEVELS, TRIMMED).set_index("treatment")
    for level in LEVELS:
        p = inside.propensity[inside.treatment == level]
        assert overlap.units[level] == len(p) and overlap.lowest[level] == pytest.approx(p.min())
        assert overlap.effective_units[level] == pytest.approx((1 / p).sum() ** 2 / (1 / p**2).sum(), abs=0.06)
        assert overlap.trimmed[level] == ((rows.treatment == level) & (rows.split == TRIMMED)).sum()

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


@pytest.mark.slow
def test_checks_find_nothing_where_nothing_is_and_bounds_are_those_of_the_rows(scored, units):
    kept = scored.where(F.col("split") != TRIMMED)
    rows = kept.toPandas()
    outcome_mean, propensity = arrays(rows)
    level_code = rows.treatment.map({level: k for k, level in enumerate(LEVELS)}).to_numpy()
    terms = confounder_terms(rows.bought.to_numpy(), level_code, outcome_mean, propensity)
    ones = sensitivity(terms.mean(axis=0), np.cov(terms.T) / len(terms), 3)
    table = hidden_table(kept.repartition(3), SPEC, LEVELS, (0.0, 0.1)).set_index(["treatment", "check", "setting"])
    for level, one in zip(LEVELS[1:], ones, strict=True):
        for share in (0.0, 0.1):
            row = table.loc[level, "hidden confounder", f"{share:g}"]
            assert (row.lower, row.upper) == pytest.approx(one.bounds(share, share)[2:], abs=2e-6)
        assert table.loc[level, "robustness", "estimate"].value == pytest.approx(one.robustness()[0], abs=2e-6)
        assert table.loc[level, "e-value", "interval"].value >= 1
    checks = refutations(sampled(units), 2, ("age",), lambda _: None)
    assert checks.groupby("check").size().to_dict() == {"permuted treatment": 4, "placebo outcome": 2}
    permuted = checks[checks.check == "permuted treatment"]
    assert (permuted.p_value > 0.001).all() and permuted.value.nunique() == 4
    # The old get mail whatever the city: what decided the treatment is not in the other features.
    assert (checks[checks.check == "placebo outcome"].set_index("treatment").p_value["mail"]) < 1e-6


def test_an_arm_that_training_lacks_is_named(units):
    few = units.where("treatment != 'call'").unionByName(units.where("treatment = 'call' and split = 'train'").limit(1))
    with pytest.raises(DataError, match=r"level 'call' has 1 of [\d,]+ rows, of at least 10"):
        folds_of(few)
