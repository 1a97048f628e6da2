"""Tallies: equal sets of rows give equal forests, byte for byte, whoever counted them, when and in which order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import ordered_frame, ordered_roles
from tests.forest.test_coverage import FEATURES, dose, draw, linear, null
from uplift_spark import CausalForest, Roles
from uplift_spark.errors import ConfigError, DataError, UnfitRowsError
from uplift_spark.forest.encode import Summary, exponents, room
from uplift_spark.forest.estimate import estimate_table, with_roles
from uplift_spark.forest.forest import load_forest
from uplift_spark.forest.refresh import (
    counted,
    day_weight,
    forest_of,
    less,
    merged,
    refreshed,
    refreshed_table,
    scaled,
    trained,
    without,
)

ROLES = ordered_roles(more_outcomes=("money",), weight="wt")
PLAIN = [0, 1, 3]  # places of Σw and Σwy in a cell; 2 and 4 are corrected for bias


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """3,000 rows of four days; the forest is trained on those of the first."""
    rng = np.random.default_rng(3)
    frame = ordered_frame(3000)
    frame = frame.assign(money=20 + 0.6 * frame["age"].fillna(40) + rng.normal(size=3000), wt=rng.uniform(0.5, 2, 3000))
    return frame.assign(day=np.where(frame.index < 2000, 0, 3 + frame.index % 3))


@pytest.fixture(scope="module")
def old(frame):
    return arrow(frame[:2000])


@pytest.fixture(scope="module")
def new(frame):
    return arrow(frame[2000:])


@pytest.fixture(scope="module")
def base(frame):
    return CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame[:2000], ROLES).forest


def arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def content(tally, **forgetting) -> bytes:
    return forest_of(tally, **forgetting).to_bytes()


def in_parts(base, frame, seed):
    """A tally of the frame, its rows shuffled, split at random and merged in a random order, days apart."""
    rng = np.random.default_rng(seed)
    frame = frame.sample(frac=1, random_state=seed)
    part = rng.integers(0, 6, len(frame))
    days = frame["day"].to_numpy()
    tallies = [
        counted(base, arrow(frame[(part == p) & (days == day)]), day)
        for p, day in sorted(set(zip(part.tolist(), days.tolist(), strict=True)))
    ]
    while len(tallies) > 1:
        first, second = (tallies.pop(rng.integers(len(tallies))) for _ in range(2))
        tallies.append(merged(first, second))
    return tallies[0]


def test_the_training_rows_give_the_forest_as_it_was(base, old):
    again = forest_of(trained(base, old))
    np.testing.assert_array_equal(again.sums, base.sums)
    for outcome in ("y", "money"):
        np.testing.assert_array_equal(again.of(outcome).level_shrinkage, base.of(outcome).level_shrinkage)
    assert {**again.facts, "outcome_range": None} == {**base.facts, "outcome_range": None}
    assert again.to_bytes() == content(counted(base, old))


def test_refreshing_is_estimating_all_rows_afresh(frame, base, old, new):
    afresh = content(counted(base, arrow(frame)))
    assert content(refreshed(trained(base, old), new)) == afresh
    assert content(merged(counted(base, new), trained(base, old))) == afresh
    assert afresh != base.to_bytes()
    assert load_forest(afresh).to_bytes() == afresh
    # What adds does so as in an estimate with a correction by all rows; no bias is kept for the other columns.
    whole = estimate_table(arrow(frame), base)
    np.testing.assert_array_equal(load_forest(afresh).sums[:, :, PLAIN], whole.sums[:, :, PLAIN])


@pytest.mark.parametrize("seed", range(5))
def test_any_partition_in_any_order_gives_the_same_bytes(frame, base, seed):
    tally, whole = in_parts(base, frame, seed), in_parts(base, frame, 99)
    assert content(tally) == content(whole) == content(counted(base, arrow(frame)))
    assert content(tally, half_life=2.5) == content(whole, half_life=2.5) != content(whole)


@pytest.mark.parametrize("seed", range(3))
def test_rows_taken_out_leave_what_never_had_them(frame, base, old, new, seed):
    gone = np.random.default_rng(seed).random(len(frame)) < 0.2
    rest = content(counted(base, arrow(frame[~gone])))
    tally = refreshed(trained(base, old), new)
    assert content(without(tally, arrow(frame[gone]))) == rest
    for part in np.array_split(np.flatnonzero(gone), 4):
        tally = without(tally, arrow(frame.iloc[part]))
    assert content(tally) == rest
    # And back again, or of another day.
    assert content(refreshed(tally, arrow(frame[gone]))) == content(counted(base, arrow(frame)))


def test_a_day_taken_out_whole_is_forgotten(frame, base, old, new):
    tally = less(refreshed(trained(base, old), new, 5), counted(base, new, 5))
    assert content(tally, half_life=1.0) == content(trained(base, old), half_life=1.0)


def test_the_sample_of_rows_follows_the_rows(frame, base, old, new, monkeypatch):
    monkeypatch.setattr("uplift_spark.forest.refresh.SHAPE_ROWS", 500)
    tally = refreshed(trained(base, old), new)
    assert 500 < tally.units.size < 1000  # a quarter of three thousand
    assert content(tally) == content(in_parts(base, frame, 1)) == content(counted(base, arrow(frame)))
    rest = frame.iloc[::2]
    assert content(without(tally, arrow(frame.iloc[1::2]))) == content(counted(base, arrow(rest)))


def test_without_correction_there_is_none_to_keep(frame, old, new):
    base = CausalForest(n_trees=8, min_leaf=10, n_buckets=4, debias=False, centre=False).fit(frame[:2000], ROLES).forest
    result = forest_of(refreshed(trained(base, old), new))
    assert result.sums.any() and not result.sums[:, :, 2::2].any()
    assert result.to_bytes() == estimated_without_range(arrow(frame), base)


def estimated_without_range(table, base):
    estimated = estimate_table(table, base)
    return replace(
        estimated, facts={**estimated.facts, "outcome_range": {"y": [None] * 2, "money": [None] * 2}}
    ).to_bytes()


# ---------------------------------------------------------------- forgetting


def test_decayed_sums_follow_the_stated_rule(frame, base):
    """The rule in fractions, over the whole history at once."""
    tally = in_parts(base, frame, 4)
    decayed = forest_of(tally, half_life=2.5, as_of=9).sums[:, :, PLAIN]
    wanted = np.zeros(decayed.shape, object)
    for day, sums in tally.days.items():
        weight = Fraction(round(2 ** (30 - (9 - day) / 2.5)), 2**30)
        wanted += np.vectorize(lambda x, w=weight: (2 * x * w + 1) // 2, otypes=[object])(sums.astype(object))
    assert (decayed == wanted).all()


def test_forgetting_is_weighing_rows_by_their_age(frame, base, old, new):
    plain = CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame[:2000], ordered_roles()).forest
    for forest in (base, plain):
        tally, weighted = in_parts(forest, frame, 0), 0
        for day, sums in tally.days.items():
            weighted = weighted + sums * 2.0 ** -((8 - day) / 3.0)
        result = forest_of(tally, half_life=3.0, as_of=8)
        scale = 2.0 ** (result.plan.exponents[0] - forest.plan.exponents[0])
        np.testing.assert_allclose(result.sums[:, :, 0], weighted[:, :, 0] * scale, rtol=1e-6, atol=3)
        np.testing.assert_allclose(result.sums[:, :, 1], weighted[:, :, 1], rtol=1e-6, atol=3)
        # Over days without end nothing fades.
        still, whole = (forest_of(tally, **more).effect_arrays(arrow(frame[:50])) for more in ({"half_life": 1e9}, {}))
        np.testing.assert_allclose(still[0], whole[0], rtol=1e-5)


def test_support_counts_rows_as_they_weigh(frame, base, old, new):
    forest = CausalForest(n_trees=16, min_leaf=10, n_buckets=4).fit(frame[:2000], ordered_roles()).forest
    tally, points = counted(forest, arrow(frame)), arrow(frame[:200])
    assert forest_of(tally).effect_arrays(points)[2].mean() < 0.05
    assert not forest_of(tally, half_life=1.0, as_of=0).effect_arrays(points)[2].any()
    assert forest_of(tally, half_life=1.0, as_of=8).effect_arrays(points)[2].all()  # three rows of 3,000 are left


def test_bags_stand_for_less_of_the_noise_once_old_rows_fade(base, old, new):
    def told(**forgetting):
        return forest_of(refreshed(trained(base, old), new, 30), **forgetting).facts.get("corrected_variance")

    assert told() is None and told(half_life=1e9) == pytest.approx(0.2 + 0.8 * 2 / 3, abs=0.02)
    assert told(half_life=3.0) == 1.0  # a thousand rows, and a bias known from two thousand


def test_weights_of_days():
    assert day_weight(0, 7) == 2**30 and day_weight(7, 7) == 2**29 and day_weight(70, 7) == 2**20
    assert day_weight(7, 7.0) == day_weight(14, 14) and day_weight(7 * 32, 7) == 0
    assert day_weight(1, 7) == round(2**30 * 2 ** (-1 / 7))


def test_scaling_loses_nothing_in_between():
    rng = np.random.default_rng(0)
    sums = np.r_[rng.integers(-(2**62), 2**62, 500), rng.integers(-9, 9, 100), 0, 2**62, -(2**62), 1, -1]
    for weight in (2**30, 2**29, 2**30 - 1, 12345, 1, 0):
        wanted = [(int(x) * weight + 2**29) >> 30 for x in sums]
        assert scaled(sums, weight, 30).tolist() == wanted
        small = sums >> 20
        assert scaled(small, weight, 10).tolist() == [(int(x) * weight + 2**9) >> 10 for x in small]


# ---------------------------------------------------------------- refused


def test_units_counted_already_are_refused(frame, base, old, new):
    tally = refreshed(trained(base, old), new)
    with pytest.raises(DataError, match=r"'unit' has units that are counted already, 1000 of 1000 in a sample"):
        refreshed(tally, new)
    with pytest.raises(DataError, match=r"counted already, 1 of 1 in a sample"):
        refreshed(tally, arrow(frame[:1]), day=5)
    with pytest.raises(DataError, match="'unit' repeats a unit in 1 rows"):
        counted(base, arrow(pd.concat([frame[:5], frame[4:5]])))
    with pytest.raises(DataError, match="counted already"):
        merged(tally, trained(base, old))


def test_only_rows_that_were_counted_are_taken_out(frame, base, old, new):
    tally = refreshed(trained(base, old), new, 5)
    for wrong, day in [
        (frame[:5].assign(unit=list("abcde")), 0),
        (frame[:500], 5),  # of another day
        (frame[:500].assign(arm="none"), 0),
        (frame[:2000].assign(y=frame["y"] + 1), 0),
        (frame[2000:], 6),
    ]:
        with pytest.raises(DataError, match=r"'unit' has units, among .* that were not counted on that day"):
            without(tally, arrow(wrong), day)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "20%"}, r"'arm' in 1000 of 1000 rows has levels the forest does not know, \['20%'\]: leave these out"),
        ({"region": "west"}, r"'region' in 1000 of 1000 rows has categories the forest does not know, \['west'\]"),
        ({"money": 1e6}, r"'money' in 1000 of 1000 rows has \(weighted\) values beyond \d+, the most"),
        ({"wt": 1e9}, r"'wt' in 1000 of 1000 rows has \(weighted\) values beyond"),
        ({"y": np.nan}, r"y: null, NaN or infinite in 1000 of 1000 rows"),
        ({"age": np.inf}, r"age: infinite in 1000 of 1000 rows"),
        ({"wt": -1.0}, r"wt: not a positive finite weight in 1000"),
        ({"age": "old"}, r"'age' has type .* but the model was trained with a numeric column"),
        ({"unit": 0.5}, r"'unit' has type double: ids must be text or integers"),
    ],
)
def test_rows_that_the_forest_cannot_take_are_refused(frame, base, old, change, message):
    with pytest.raises(DataError, match=message) as refused:
        refreshed(trained(base, old), arrow(frame[2000:].assign(**change)))
    assert isinstance(refused.value, UnfitRowsError) == ("does not know" in message or "weighted" in message)


def test_propensities_that_begin_to_vary_are_refused(frame):
    roles = ordered_roles(propensity="p")
    even = frame.assign(p=1 / 3)
    base = CausalForest(n_trees=4, min_leaf=10, n_buckets=4).fit(even[:2000], roles).forest
    assert counted(base, arrow(even[2000:])).rows == 1000
    with pytest.raises(DataError, match="'p' in 1000 of 1000 rows has propensities that vary"):
        counted(base, arrow(frame[2000:].assign(p=np.linspace(0.2, 0.5, 1000))))


def test_a_level_without_rows_and_other_trees_are_refused(frame, base, old):
    with pytest.raises(DataError, match="'arm' has no row of 5%, 10%"):
        forest_of(counted(base, arrow(frame[frame["arm"] == "none"])))
    other = CausalForest(n_trees=4, min_leaf=10, n_buckets=4).fit(frame[:2000], ROLES).forest
    with pytest.raises(ConfigError, match="different forests"):
        merged(trained(base, old), trained(other, old))
    with pytest.raises(DataError, match=r"\[.*\] rows of none, 5%, 10%, the forest was trained on"):
        trained(base, arrow(frame))
    for wrong in ({"half_life": 0.0}, {"half_life": float("nan")}, {"half_life": 2.0, "as_of": -1}):
        with pytest.raises(ConfigError, match="it must be above 0, and rows no later"):
            forest_of(trained(base, old), **wrong)
    loaded = load_forest(base.to_bytes())  # the same trees, from a file
    assert merged(trained(base, old), counted(loaded, arrow(frame[2000:]))).rows == 3000


@pytest.mark.parametrize("rows", [1, 7, 1000, 65_535, 65_536, 10**6, 3 * 10**9])
def test_sums_have_room_for_what_is_let_in(rows):
    most, heaviest, largest = room(rows)
    assert most * heaviest <= 2**62 and most * largest * 6 < 2**62  # corrected, an outcome is six times itself at most
    roles = ordered_roles(weight="wt")
    w_bits, y_bits = exponents(Summary(rows, {}, {}, {"y": (-50.0, 3.0)}, 4.0), roles)
    assert heaviest >= 4.0 * 4.0 * 2.0**w_bits and largest >= 4.0 * 200.0 * 2.0**y_bits


def test_more_rows_than_there_is_room_for_are_refused(base, old, new, monkeypatch):
    monkeypatch.setattr("uplift_spark.forest.refresh.room", lambda rows: (2500, 2**60, 2**60))
    with pytest.raises(DataError, match="3000 rows, the forest's sums hold 2500: train a new one"):
        refreshed(trained(base, old), new)


# ---------------------------------------------------------------- what it is worth


def turned(x):
    return 1.0 - x[:, [0]], np.zeros(len(x))


def replicate(scenario, later, reps, n, **options):
    """(RMSE, coverage of the truth) at 200 points by way: the base, refreshed with n rows, with the old ones forgotten,
    a pass over all rows."""
    points, tau = draw(later, 200, 10**6)
    levels = tau.shape[1] + 1
    roles = Roles("unit", "w", "y", FEATURES, "0", dose={str(k): k for k in range(levels)} if levels > 2 else None)
    results: dict[str, list] = {}
    for seed in range(reps):
        old = draw(scenario, n, 2 * seed)[0]
        new = draw(later, n, 2 * seed + 1)[0].assign(unit=lambda rows: rows["unit"] + n)
        base = CausalForest(**options, seed=seed).fit(old, roles).forest
        tally = refreshed(trained(base, arrow(old)), arrow(new), 10)
        ways = {"base": base, "refreshed": forest_of(tally), "forgetful": forest_of(tally, half_life=2.0)}
        ways["afresh"] = estimate_table(arrow(pd.concat([old, new])), base)
        for way, forest in ways.items():
            effect, error, _ = forest.effect_arrays(arrow(points))
            results.setdefault(way, []).append(((effect - tau) ** 2, np.abs(effect - tau) < 1.96 * error))
    return {way: (np.sqrt(np.mean([a for a, _ in x])), np.mean([b for _, b in x])) for way, x in results.items()}


def check(scenario, reps, n, slack, **options):
    results = replicate(scenario, scenario, reps, n, **options)
    print(scenario.__name__, {way: [round(float(x), 4) for x in figures] for way, figures in results.items()})
    assert results["refreshed"][0] < 0.9 * results["base"][0]
    assert results["refreshed"][0] < (1.06 + slack) * results["afresh"][0]
    for way in ("refreshed", "forgetful"):
        assert 0.92 - 2 * slack < results[way][1] < 0.99


def check_turned(reps, n, **options):
    results = replicate(linear, turned, reps, n, **options)
    assert results["forgetful"][0] < 0.5 * results["refreshed"][0] < 0.4 * results["base"][0]


@pytest.mark.parametrize(
    "scenario", [linear, pytest.param(null, marks=pytest.mark.slow), pytest.param(dose, marks=pytest.mark.slow)]
)
def test_refreshed_forests_err_little_more_than_those_estimated_afresh(scenario):
    check(scenario, 15, 1500, 0.02, n_trees=60)


def test_changed_effects_are_followed_where_old_rows_are_forgotten():
    check_turned(5, 1500, n_trees=60)


@pytest.mark.simulation
@pytest.mark.parametrize("scenario", [linear, null, dose])
def test_refreshed_forests_err_little_more_than_those_estimated_afresh_in_full(scenario):
    check(scenario, 500, 4000, 0.0, n_trees=200)


@pytest.mark.simulation
def test_changed_effects_are_followed_where_old_rows_are_forgotten_in_full():
    check_turned(500, 4000, n_trees=200)


def test_a_table_is_counted_by_day(frame, base, old, new):
    table = arrow(frame)
    assert refreshed_table(table, base, None, None).to_bytes() == content(refreshed(trained(base, old), new))
    assert refreshed_table(table, base, 2.5, "day").to_bytes() == content(in_parts(base, frame, 4), half_life=2.5)


def test_scores_do_not_add(base, old):
    by_scores = with_roles(base, replace(ROLES, scores="scores", more_outcomes=(), weight=None))
    with pytest.raises(ConfigError, match=r"roles\.scores 'scores'.*estimate the trees anew"):
        refreshed_table(old, by_scores, None, None)
