"""Few units and few events: refused or flagged, with intervals that know what a handful of rows cannot tell."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from tests.forest.frames import plain_frame, plain_roles
from uplift_spark import CausalForest, MetaLearner, average_effects, load_model
from uplift_spark.errors import DataError
from uplift_spark.forest.encode import encode, summarise
from uplift_spark.forest.overlap import MANY_EVENTS, effective_shares, few_share, thin_levels

TINY = {"n_trees": 16}
LEARNERS = [
    CausalForest(**TINY),
    CausalForest(**TINY, per_level=True),
    MetaLearner("t_learner", replicates=2),
    MetaLearner("s_learner", replicates=2),
]
NAMES = ["forest", "per_level", "t_learner", "s_learner"]


def events(n, seed, rates, treated=0.5):
    """Outcomes of 0 and 1 at these rates of control and treated, whatever the features."""
    rng = np.random.default_rng(seed)
    frame = plain_frame(n, seed, p=3).assign(w=(rng.random(n) < treated).astype(int))
    return frame.assign(y=(rng.random(n) < np.array(rates)[frame["w"]]).astype(float))


@pytest.mark.parametrize("learner", LEARNERS, ids=NAMES)
@pytest.mark.parametrize("units", [1, 5])
def test_a_level_of_a_few_units_is_refused(learner, units):
    frame = events(2488, 1, (0.1, 0.1)).assign(w=lambda f: (f.index < units).astype(int))
    with pytest.raises(DataError, match=rf"level '1' has {units} of 2488 rows, of at least 10: leave it out"):
        learner.fit(frame, plain_roles(frame))


@pytest.mark.parametrize("learner", LEARNERS, ids=NAMES)
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e12])
def test_an_outcome_that_never_varies_claims_nothing(learner, constant):
    frame = events(2000, 2, (0.0, 0.0)).assign(y=constant)
    said = []
    model = learner.fit(frame, plain_roles(frame), said.append)
    effects = load_model(model.to_bytes()).effect(frame)
    assert effects["low_support"].all() and any("rows, 0 events" in line for line in said)
    # Three events in a thousand rows a level would be no surprise: the rule of three, of both levels together.
    assert (effects["uplift_se"] > 0.002 * max(constant, 1.0)).all()
    assert ((effects["uplift_lower"] < 0) & (effects["uplift_upper"] > 0)).all()


def test_average_effects_of_an_outcome_that_never_varies_have_a_width():
    frame = events(2000, 2, (0.0, 0.0))
    averages = average_effects(frame, plain_roles(frame), folds=2)
    assert (averages["error"].between(0.002, 0.004)).all() and (averages["estimate"] == 0).all()
    forest = CausalForest(**TINY).fit(frame, plain_roles(frame)).forest
    assert 0.002 < np.sqrt(forest.averages(np.ones((5, 3), np.uint8))[1].item()) < 0.004


def test_events_are_counted_alike_however_rows_are_split():
    frame = events(300, 3, (0.1, 0.3)).assign(y=lambda f: np.where(f["y"] == 1, 7.0, 2.0))
    roles = plain_roles(frame)
    parts = [summarise(encode(part, roles)) for part in _tables(frame, (0, 40, 41, 200, 300))]
    whole = summarise(encode(_tables(frame, (0, 300))[0], roles))
    assert sum(parts[1:], parts[0]) == whole
    counts = frame.groupby(["w", "y"]).size()
    assert whole.ends["y"] == {str(k): (counts[k, 2.0], counts[k, 7.0]) for k in (0, 1)}


def _tables(frame, cuts):

    table = pa.Table.from_pandas(frame, preserve_index=False)
    return [table.slice(a, b - a) for a, b in pairwise(cuts)]


def test_the_least_error_is_that_of_wilsons_bounds():
    """0 of 12 allows for rates up to .2425, 20 of 100 for .2888 (Wilson 1927, as statsmodels has it)."""
    rows, ends = {"0": 100, "1": 12}, {"0": (80, 20), "1": (12, 0)}
    (thin,) = thin_levels(rows, ends, (0.0, 1.0), ("0", "1")).values()
    assert thin["rows"] == 12 and thin["events"] == 0
    assert 1.959964 * thin["error"] == pytest.approx(np.hypot(0.24249, 0.08884), abs=2e-4)
    assert thin_levels(rows, {"0": (80, 20), "1": (12, 0)}, (0.0, 5.0), ("0", "1"))["1"]["error"] == pytest.approx(
        5 * thin["error"]
    )
    plenty = {"0": (980, 20), "1": (985, 15)}
    assert thin_levels({"0": 1000, "1": 1000}, plenty, (0.0, 1.0), ("0", "1")) == {}


def test_a_level_with_few_events_is_flagged_and_the_others_are_not():
    frame = events(6000, 4, (0.1, 0.1)).assign(w=np.arange(6000) % 3)
    frame.loc[frame["w"] == 2, "y"] = 0.0
    effects = CausalForest(**TINY).fit(frame, plain_roles(frame)).effect(frame)
    low = effects.groupby("treatment")["low_support"].mean()
    assert low["2"] == 1.0 and low["1"] == 0.0
    roles = plain_roles(frame, more_outcomes=("other",))
    both = CausalForest(**TINY).fit(frame.assign(other=frame["x0"]), roles)
    assert not both.effect(frame, "other")["low_support"].any() and both.effect(frame)["low_support"].any()


def check_coverage(reps, n, rates, treated):
    points = plain_frame(200, 99, p=3)
    truth, inside, low = rates[1] - rates[0], [], []
    for seed in range(reps):
        frame = events(n, seed, rates, treated)
        try:
            table = CausalForest(n_trees=60, seed=seed).fit(frame, plain_roles(frame)).effect(points)
        except DataError:
            continue
        inside.append((np.abs(table["uplift"] - truth) < 1.959964 * table["uplift_se"]).to_numpy())
        low.append(table["low_support"].to_numpy())
    inside, low = np.array(inside), np.array(low)
    print(f"{n} rows, rates {rates}, {treated:.0%} treated: covers {inside.mean():.3f}, flagged {low.mean():.3f}")
    assert inside.mean() > 0.93 - 0.4 / np.sqrt(len(inside))
    return inside, low


@pytest.mark.parametrize(
    ("n", "rates", "treated", "flagged"), [(1000, (0.1, 0.15), 0.02, 1), (3000, (0.1, 0.12), 0.5, 0)]
)
def test_intervals_of_few_events_cover(n, rates, treated, flagged):
    _, low = check_coverage(16, n, rates, treated)
    assert np.abs(low.mean() - flagged) < 0.02


DESIGNS = [
    (1000, (0.1, 0.15), 0.02),
    (1000, (0.1, 0.05), 0.05),
    (2500, (0.11, 0.16), 0.01),
    (2000, (0.01, 0.015), 0.5),
    (2000, (0.005, 0.005), 0.5),
    (4000, (0.002, 0.004), 0.3),
    (10_000, (0.002, 0.001), 0.5),
    (4000, (0.02, 0.03), 0.5),
    (3000, (0.9, 0.95), 0.1),
    (20_000, (0.03, 0.04), 0.5),
]


@pytest.mark.simulation
@pytest.mark.parametrize(("n", "rates", "treated"), DESIGNS)
def test_intervals_of_few_events_cover_in_full(n, rates, treated):
    inside, low = check_coverage(500, n, rates, treated)
    if (~low).mean() > 0.2:
        assert inside[~low].mean() > 0.93


def test_a_variance_is_drawn_up_to_what_is_usual_by_how_few_the_events_are():
    assert few_share(0) == 1.0 and few_share(MANY_EVENTS) == few_share(10**6) == 0.0
    shares = [few_share(n) for n in (0, 10, 30, 100, 299)]
    assert shares == sorted(shares, reverse=True) and 0.4 < shares[2] < 0.5 and shares[-1] > 0
    frame = events(3000, 5, (0.1, 0.2), treated=0.1)
    n = int(frame.loc[frame["w"] == 1, "y"].sum())
    forest = CausalForest(**TINY).fit(frame, plain_roles(frame)).forest
    few = forest.facts["few"]["y"]["1"]
    plain = replace(forest, facts={**forest.facts, "few": {}})
    effect, error, low = forest.effect_arrays(pa.Table.from_pandas(frame))
    same, own, same_low = plain.effect_arrays(pa.Table.from_pandas(frame))
    assert few["share"] == few_share(n) > 0.2 and not low.any()
    np.testing.assert_array_equal(effect, same)
    np.testing.assert_array_equal(low, same_low)
    np.testing.assert_allclose(error**2, own**2 + few["share"] * np.maximum(few["variance"] - own**2, 0.0))
    assert few["variance"] == pytest.approx((own**2).mean(), rel=0.1) and (error > own).mean() > 0.3
    assert np.array_equal(load_model(forest.to_bytes()).forest.effect_arrays(pa.Table.from_pandas(frame))[1], error)


def test_many_events_leave_each_unit_its_own_variance():
    frame = events(3000, 5, (0.3, 0.4))
    assert "few" not in CausalForest(**TINY).fit(frame, plain_roles(frame)).forest.facts


def test_a_few_large_events_count_as_kish_says():
    outcome = np.array([0.0, 0, 0, 1, 3, 0, 0, 2, 2, 2])
    level = np.repeat([0, 1], 5)
    shares = effective_shares(outcome, level, (0.0, 3.0), ("control", "mail"))
    assert shares == {"control": pytest.approx(4**2 / (2 * 10))}  # events of 2, 2, 2 are alike
    assert effective_shares(1e6 * outcome, level, (0.0, 3e6), ("control", "mail")) == pytest.approx(shares)
    assert effective_shares(3.0 - outcome, level, (0.0, 3.0), ("control", "mail")) == pytest.approx(shares)
    assert effective_shares(0 * outcome, level, (0.0, 0.0), ("control", "mail")) == {}


def test_sums_with_a_heavy_tail_count_as_fewer_events():
    rng = np.random.default_rng(3)
    frame = events(3000, 3, (0.4, 0.5))
    money = frame.assign(y=frame["y"] * np.exp(1.5 * rng.normal(size=3000)))
    conversions, forest = (CausalForest(**TINY).fit(one, plain_roles(one)).forest for one in (frame, money))
    assert "few" not in conversions.facts and "effective" not in conversions.manifest["plan"]
    buys = money[money["y"] > 0]
    kish = {str(level): y.sum() ** 2 / (y**2).sum() for level, y in buys.groupby("w")["y"]}
    assert forest.facts["few"]["y"]["1"]["share"] == pytest.approx(few_share(min(kish.values())))
    # As they stand in the file, and whatever the order of the rows.
    again = load_model(forest.to_bytes()).forest
    assert again.plan.effective == forest.plan.effective and again.to_bytes() == forest.to_bytes()
    mixed = CausalForest(**TINY).fit(money.sample(frac=1.0, random_state=1), plain_roles(money)).forest
    assert mixed.to_bytes() == forest.to_bytes()


def test_of_several_outcomes_each_has_its_own_effective_events():
    frame = events(2000, 4, (0.1, 0.2))
    frame["spend"] = frame["y"] * np.random.default_rng(4).lognormal(sigma=1.5, size=2000)
    roles = replace(plain_roles(frame), more_outcomes=("spend",), features=("x0", "x1", "x2"))
    forest = CausalForest(**TINY).fit(frame, roles).forest
    assert set(forest.plan.effective) == {"spend"}
    assert not forest.of("y").plan.effective and forest.of("spend").plan.effective == forest.plan.effective
    shares = {name: forest.facts["few"][name]["1"]["share"] for name in roles.outcomes}
    assert shares["spend"] > shares["y"] > 0
