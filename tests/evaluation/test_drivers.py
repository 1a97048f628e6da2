"""Drivers of lift: conditions by hand, figures by hand, and claims as simulations with known truth."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from uplift_spark.evaluation import drivers as module
from uplift_spark.evaluation.drivers import (
    DRIVER_COLUMNS,
    DRIVER_CUT,
    DRIVER_UNITS,
    MEETS,
    MISSES,
    NEITHER,
    TOP,
    DriverCondition,
    LiftDriver,
    driver_cuts,
    driver_sentence,
    driver_table,
    driver_words,
    lift_drivers,
    reason_words,
    unit_reasons,
    without_drivers,
)
from uplift_spark.evaluation.metrics import EvaluationSpec, evaluate_rows
from uplift_spark.forest.binning import OTHER, FeatureBins, apply_bins
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles
from uplift_spark.stats.moments import Moments, difference

FEATURES = ("recency", "spend", "region", "device", "noise_1", "noise_2")
ROLES = Roles("unit_id", "treatment", "visit", FEATURES, "none")


def campaign(n: int, seed: int, gap: float, levels: int = 1, effect: float = 0.02) -> pd.DataFrame:
    """A trial whose visits rise by `effect`, and by `gap` more where recency is at most 30; else nothing matters."""
    rng = np.random.default_rng(seed)
    arms = np.array(["none", *(f"mail {k}" for k in range(1, levels + 1))])
    frame = pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(n)], "recency": rng.integers(1, 91, n).astype(float),
            "spend": rng.lognormal(3, 1, n), "region": rng.choice(["north", "south", "east", "west"], n),
            "device": rng.choice(["mobile", "desktop"], n, p=[0.7, 0.3]), "noise_1": rng.random(n),
            "noise_2": rng.random(n), "treatment": arms[rng.integers(0, levels + 1, n)],
        }
    )  # fmt: skip
    frame.loc[rng.random(n) < 0.02, "recency"] = np.nan
    treated = frame["treatment"] != "none"
    chance = 0.1 + 0.1 * (frame["region"] == "north") + treated * (effect + gap * (frame["recency"] <= 30))
    frame["visit"] = (rng.random(n) < chance).astype(float)
    return frame.assign(propensity=1 / (levels + 1))


def forest_of(frame: pd.DataFrame, **options: object) -> Forest:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return fit_table(table, ROLES, Params(**{"n_trees": 100, **options}))


def marked(holdout: pd.DataFrame, drivers: list[LiftDriver]) -> pd.DataFrame:
    """The buckets of every driver, in plain words of pandas: what `evaluation.spark.with_drivers` does in Spark."""
    columns = {}
    for i, driver in enumerate(drivers):
        one, values = driver.condition, holdout[driver.feature]
        fulfilled = {
            "at_most": lambda c=one, v=values: v <= c.cut,
            "categories": lambda c=one, v=values: v.isin(c.categories),
            "missing": lambda v=values: v.isna(),
        }[one.kind]()
        sides = np.where(fulfilled != one.negated, MEETS, MISSES)
        columns[f"{DRIVER_CUT}{i}"] = sides if one.kind == "missing" else np.where(values.isna(), NEITHER, sides)
    return holdout.assign(**columns)


def measured(
    frame: pd.DataFrame, holdout: pd.DataFrame, segments: tuple[str, ...] = (), **options: object
) -> tuple[pd.DataFrame, list[LiftDriver]]:
    """Drivers of a forest on a hold-out."""
    forest = forest_of(frame, **options)
    table = pa.Table.from_pandas(holdout, preserve_index=False)
    drivers = lift_drivers(forest, apply_bins(table.slice(0, DRIVER_UNITS), forest.bins))
    effects = forest.effects_of(apply_bins(table, forest.bins), errors=False)[0]
    parts = [
        pd.DataFrame({"unit_id": holdout["unit_id"], "treatment": level, "uplift": effects[:, k]})
        for k, level in enumerate(forest.levels.treated)
    ]
    spec = EvaluationSpec("none", ("visit",), (*segments, *driver_cuts(drivers, segments)), bins=10, replicates=4)
    return driver_table(evaluate_rows(marked(holdout, drivers), pd.concat(parts), spec), drivers), drivers


# ---------------------------------------------------------------- conditions


def parted(feature: FeatureBins, column: list[int], values: list[float], direction: str = "increase") -> object:
    result = module._parted(feature, np.array(column, np.uint8), np.array(values), direction)  # type: ignore[arg-type]
    return None if result is None else (result[0], result[1].tolist(), result[2].tolist())


def test_a_cut_is_where_values_part_best_and_units_that_gain_meet_it():
    feature = FeatureBins("age", edges=(20.0, 30.0, 40.0))
    condition, meets, misses = parted(feature, [1, 2, 3, 4, 4, 0], [0.1, 0.1, -0.1, -0.1, -0.1, 0.0])
    assert condition == DriverCondition("age", "at_most", cut=30.0)
    assert meets == [True, True, False, False, False, False] and misses == [False, False, True, True, True, False]
    assert condition.words == "age of at most 30"
    turned, meets, _ = parted(feature, [1, 2, 3, 4, 4, 0], [0.1, 0.1, -0.1, -0.1, -0.1, 0.0], "decrease")
    assert turned == replace(condition, negated=True) and turned.words == "age above 30"
    assert meets == [False, False, True, True, True, False]


def test_categories_are_those_of_one_side_and_the_named_side_has_no_others():
    feature = FeatureBins("city", categories=("a", "b", "c", "d"), has_other=True)
    column, values = [1, 2, 3, 4, OTHER, OTHER], [0.3, -0.2, 0.3, -0.2, -0.2, -0.2]
    condition, meets, _ = parted(feature, column, values)
    assert condition == DriverCondition("city", "categories", categories=("a", "c"))
    assert meets == [True, False, True, False, False, False] and condition.words == "city a or c"
    condition, meets, _ = parted(feature, column, [-one for one in values])
    assert condition == DriverCondition("city", "categories", categories=("a", "c"), negated=True)
    assert meets == [False, True, False, True, True, True] and condition.words == "city other than a or c"
    many = DriverCondition("city", "categories", categories=("a", "b", "c", "d", "e"))
    assert many.words == "city a, b, c or one of 2 others"


def test_a_feature_that_is_missing_may_be_the_condition():
    feature = FeatureBins("age", edges=(20.0,))
    condition, meets, misses = parted(feature, [0, 0, 1, 2, 1, 2], [0.4, 0.4, 0.0, 0.01, 0.0, 0.01])
    assert condition == DriverCondition("age", "missing") and condition.words == "age that is missing"
    assert meets == [True, True, False, False, False, False] and misses == [not one for one in meets]
    condition, *_ = parted(feature, [0, 0, 1, 2, 1, 2], [-0.4, -0.4, 0.0, 0.01, 0.0, 0.01])
    assert condition.words == "age that is known"


def test_units_that_are_alike_have_no_condition_and_small_sides_are_a_last_resort():
    feature = FeatureBins("age", edges=(1.0, 2.0))
    assert parted(feature, [2, 2, 2], [0.1, 0.1, 0.1]) is None
    assert parted(feature, [0, 0], [0.1, 0.1]) is None
    column, values = [1] + [2] * 50 + [3] * 49, [9.0] + [0.1] * 50 + [0.0] * 49
    assert parted(feature, column, values)[0].cut == 2.0  # one unit in a hundred is no side
    assert parted(feature, [1] + [2] * 99, [9.0] + [0.1] * 99)[0].cut == 1.0


@pytest.mark.parametrize(
    ("edges", "at", "cut"),
    [
        ((20.123456, 30.987654, 41.5), 1, 31.0), ((20240101.0, 20240102.0, 20240103.0), 1, 20240102.0),
        ((0.00012345,), 0, 0.000123), ((30.0, 31.0), 0, 30.0), ((0.0,), 0, 0.0), ((-1e-9, 1e-9), 1, 1e-9),
    ],
)  # fmt: skip
def test_cuts_have_few_digits_and_part_the_same_units(edges, at, cut):
    assert module._plain_cut(edges, at) == cut


# ---------------------------------------------------------------- figures


def test_figures_are_those_of_the_hold_out_by_hand():
    frame, holdout = campaign(6000, 1, 0.2), campaign(3000, 2, 0.2)
    table, drivers = measured(frame, holdout, ("region",))
    assert tuple(table.columns) == DRIVER_COLUMNS and 1 < len(drivers) <= TOP
    whole = table[table["cut"] == "all"]
    first, one = whole.iloc[0], drivers[0].condition
    assert (first["rank"], first["feature"], one.kind, one.negated) == (1, "recency", "at_most", False)
    assert abs(one.cut - 30) < 3 and first["condition"] == f"recency of at most {one.cut:g}"
    sides = [holdout[holdout["recency"] <= one.cut], holdout[holdout["recency"] > one.cut]]
    effects = [
        difference(*(Moments.of(side.loc[mask, "visit"].to_numpy()) for mask in (treated(side), ~treated(side))))
        for side in sides
    ]
    gain = float(effects[0].estimate - effects[1].estimate)
    error = float(np.hypot(effects[0].error, effects[1].error))
    assert first["gain"] == pytest.approx(gain) and first["n"] == len(sides[0]) + len(sides[1])
    assert first["n_meets"] == len(sides[0]) and first["effect_meets"] == pytest.approx(float(effects[0].estimate))
    half = NormalDist().inv_cdf((1 + 0.95 ** (1 / len(whole))) / 2) * error
    assert (first["gain_lower"], first["gain_upper"]) == pytest.approx((gain - half, gain + half))
    alone = 2 * NormalDist().cdf(-gain / error)
    assert first["adjusted_p"] == pytest.approx(1 - (1 - alone) ** len(whole), abs=1e-12)
    assert first["proven"] and first["stable"] and 0.9 <= first["agreement"] <= 1
    within = table[(table["cut"] == "segment:region") & (table["bucket"] == "north") & (table["rank"] == 1)].iloc[0]
    north = holdout[(holdout["region"] == "north") & holdout["recency"].notna()]
    assert within["n"] == len(north) and np.isnan(within["mean_shap"])
    assert set(table.loc[table["cut"] != "all", "rank"]) <= {1, 2, 3}
    assert "region" not in set(table.loc[table["cut"] == "segment:region", "feature"])


def treated(frame: pd.DataFrame) -> pd.Series:
    return frame["treatment"] != "none"


def test_the_lift_table_keeps_none_of_the_cuts():
    holdout = campaign(500, 2, 0.2)
    drivers = [LiftDriver("mail 1", 1, DriverCondition("recency", "at_most", cut=30.0), 0.1, 1.0)]
    scores = pd.DataFrame({"unit_id": holdout["unit_id"], "treatment": "mail 1", "uplift": 0.1})
    spec = EvaluationSpec("none", ("visit",), ("region", *driver_cuts(drivers, ("region",))), bins=10, replicates=4)
    evaluation = evaluate_rows(marked(holdout, drivers), scores, spec)
    assert list(evaluation.cuts) == ["region", "__driver_0", "region x __driver_0"]
    assert list(without_drivers(evaluation).cuts) == ["region"]
    assert driver_table(without_drivers(evaluation), drivers).empty


def test_models_without_splits_or_shapley_values_have_no_drivers():
    frame = campaign(400, 0, 0.0)
    forest = forest_of(frame, n_trees=8, min_leaf=300)
    bins = apply_bins(pa.Table.from_pandas(frame, preserve_index=False), forest.bins)
    assert lift_drivers(forest, bins) == [] and lift_drivers(forest, bins[:0]) == []
    held = replace(forest, plan=replace(forest.plan, monotone="increasing"))
    assert lift_drivers(held, bins) == []


def test_clusters_are_what_errors_are_of():
    frame, holdout = campaign(4000, 1, 0.2), campaign(4000, 2, 0.2)
    table, drivers = measured(frame, holdout)
    twice = pd.concat([holdout.assign(home=holdout["unit_id"])] * 2, ignore_index=True)
    twice["unit_id"] = [f"u{i}" for i in range(len(twice))]
    scores = pd.DataFrame({"unit_id": twice["unit_id"], "treatment": "mail 1", "uplift": np.linspace(0, 1, len(twice))})
    spec = EvaluationSpec("none", ("visit",), driver_cuts(drivers, ()), bins=10, replicates=400, cluster="home")
    both = driver_table(evaluate_rows(marked(twice, drivers), scores, spec), drivers)
    assert both["gain"].to_numpy() == pytest.approx(table["gain"].to_numpy())
    widths = [(one["gain_upper"] - one["gain_lower"]).to_numpy() for one in (both, table)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.15)  # twice the rows say no more


# ---------------------------------------------------------------- words

ROW = {
    "outcome": "visit", "treatment": "mail", "cut": "all", "bucket": "all", "condition": "recency of at most 30",
    "gain": 0.012, "gain_lower": 0.006, "gain_upper": 0.018, "low_sample": False, "proven": True,
    "agreement": 0.987, "stable": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "scale", "direction", "words"),
    [
        (
            {}, 100.0, "increase",
            "recency of at most 30 adds 1.2 points to the effect of mail on visit (95 % interval 0.6 to 1.8). "
            "Stable: 98 % of refits on other rows would agree.",
        ),
        (
            {"gain": -2.0, "gain_lower": -3.0, "gain_upper": -1.0, "agreement": 0.5, "stable": False}, 1.0, "decrease",
            "recency of at most 30 takes 2 off the effect of mail on visit (95 % interval 1 to 3). "
            "Not stable: only 50 % of refits on other rows would agree.",
        ),
        (
            {"proven": False, "gain_lower": -0.001, "low_sample": True}, 100.0, "increase",
            "recency of at most 30 is not proven to drive the effect of mail on visit: the model expects more, the "
            "hold-out shows 1.2 points (95 % interval -0.1 to 1.8, from few units). Stable: 98 % of refits on other "
            "rows would agree.",
        ),
        (
            {"proven": False, "gain": np.nan, "gain_lower": np.nan, "gain_upper": np.nan}, 100.0, "increase",
            "recency of at most 30 may change the effect of mail on visit: too few units of the hold-out tell. "
            "Stable: 98 % of refits on other rows would agree.",
        ),
    ],
)  # fmt: skip
def test_sentences_say_what_the_row_says(changes, scale, direction, words):
    assert driver_sentence(ROW | changes, scale, direction) == words


def test_segments_are_named_and_nothing_proven_is_said():
    sentence = driver_sentence(ROW | {"cut": "segment:region", "bucket": "north"}, 100.0)
    assert sentence.startswith("Where region is north: recency of at most 30 adds 1.2 points")
    rows = pd.DataFrame([ROW | {"sentence": "one"}, ROW | {"proven": False, "sentence": "two"}])
    assert driver_words(rows) == ["one"] and driver_words(rows[:0]) == []
    assert driver_words(rows[1:]) == ["No driver of lift is proven, of the 1 that the model expects most of."]


# ---------------------------------------------------------------- one unit


def test_reasons_of_a_unit_are_its_largest_shapley_values():
    frame = campaign(4000, 1, 0.3)
    forest = forest_of(frame)
    rows = frame.head(1).assign(recency=5.0)
    bins = apply_bins(pa.Table.from_pandas(rows, preserve_index=False), forest.bins)
    texts = [str(rows[name].iloc[0]) for name in FEATURES]
    first, *more = unit_reasons(forest, bins, texts)
    assert (first.feature, first.value, first.level) == ("recency", "5.0", "mail 1") and len(more) <= 2
    assert 0 < first.bounds[0] < first.adds < first.bounds[1] and first.is_stable
    assert all(abs(one.adds) <= first.adds for one in more)
    words = reason_words(replace(first, adds=0.1, error=0.05 / 1.959964))
    assert words == ("recency of 5.0 adds 0.1 to its predicted effect of mail 1 (95 % interval 0.05 to 0.15; stable)")
    takes = reason_words(replace(first, adds=-0.2, error=0.3))
    assert takes == (
        "recency of 5.0 takes 0.2 off its predicted effect of mail 1 (95 % interval -0.388 to 0.788; not stable across "
        "refits)"
    )


# ---------------------------------------------------------------- claims as simulations


def simulated(campaigns: int, n: int, gap: float, levels: int = 1) -> dict[str, float]:
    """Shares over simulated campaigns: any driver wrongly proven, truth inside all intervals, recency proven, recency
    among the drivers and called stable, and noise among the drivers called stable."""
    wrong, inside, proven, stable, noise_stable, noise = 0, 0, 0, 0, 0, 0
    for seed in range(campaigns):
        frame, holdout = (campaign(n, 2 * seed + i, gap, levels) for i in (0, 1))
        table, drivers = measured(frame, holdout)
        population = campaign(20_000, 10**6, gap, levels)
        truth = gap * (population["recency"] <= 30)
        columns = marked(population, drivers)
        true = {}
        for i, one in enumerate(drivers):
            side = columns[f"{DRIVER_CUT}{i}"]
            true[one.level, one.feature] = truth[side == MEETS].mean() - truth[side == MISSES].mean()
        gaps = np.array([true[key] for key in zip(table["treatment"], table["feature"], strict=True)])
        # What the population draws itself is no gap: features but recency have none.
        gaps = np.where(table["feature"] == "recency", gaps, 0.0)
        covered = (table["gain_lower"] <= gaps) & (gaps <= table["gain_upper"])
        wrong += bool((table["proven"] & (gaps == 0)).any())
        inside += bool(covered.all())
        mine = table["feature"] == "recency"
        proven += bool(table.loc[mine, "proven"].any())
        stable += bool(table.loc[mine, "stable"].any())
        noise_stable += int(table.loc[~mine, "stable"].sum())
        noise += int((~mine).sum())
    return {
        "wrong": wrong / campaigns, "inside": inside / campaigns, "proven": proven / campaigns,
        "stable": stable / campaigns, "noise stable": noise_stable / max(noise, 1),
    }  # fmt: skip


def test_a_planted_driver_is_proven_and_noise_is_not():
    shares = simulated(8, 4000, 0.15)
    assert shares["proven"] >= 0.75 and shares["stable"] >= 0.75 and shares["noise stable"] < 0.4
    assert shares["inside"] >= 0.75 and shares["wrong"] <= 0.25


@pytest.mark.simulation
def test_without_differences_hardly_any_campaign_has_a_proven_driver():
    shares = simulated(300, 4000, 0.0, levels=2)
    print(f"no difference, 300 campaigns of two levels: {shares}")
    assert shares["wrong"] <= 0.05 and shares["inside"] >= 0.93 and shares["noise stable"] <= 0.1


@pytest.mark.simulation
def test_a_difference_of_two_points_is_measured_rightly_proven_and_stable():
    shares = simulated(60, 100_000, 0.02)
    print(f"2 points more for a third, 60 campaigns of 100,000: {shares}")
    assert shares["proven"] >= 0.8 and shares["inside"] >= 0.88  # 60 campaigns: .95 has an error of .028
    assert shares["stable"] >= 0.6 and shares["noise stable"] <= 0.1
