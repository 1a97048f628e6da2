"""Simulated campaigns and benchmark trials: the stated moments, the truth, and independence of chunking."""

import numpy as np
import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.events.simulate import (
    ATTRIBUTES,
    BENCHMARKS,
    CHUNK,
    OUTCOMES,
    CampaignSimulator,
    chunk_sizes,
    effect_column,
)


def _standard_error_units(values: np.ndarray, expected: float) -> float:
    return abs(values.mean() - expected) / (values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize(("name", "levels"), [(n, 5 if n.startswith("m") else 2) for n in BENCHMARKS])
def test_benchmark_shapes_and_assignment(name, levels):
    data = BENCHMARKS[name](4_000, seed=3)
    n, p = data.X.shape
    assert n == 4_000 and p == (6 if name.startswith("nie_wager") else 20)
    assert data.tau.shape == (n, levels - 1) and data.e.shape == (n, levels)
    np.testing.assert_allclose(data.e.sum(axis=1), 1.0)
    for level in range(levels):
        assert _standard_error_units((data.w == level) - data.e[:, level], 0.0) < 4
    np.testing.assert_array_equal(data.propensity[:5], [data.e[i, data.w[i]] for i in range(5)])


@pytest.mark.parametrize(("name", "spread"), [("rct", 0.993), ("conf", 0.993), ("conv", 0.0103)])
def test_benchmark_effects_spread_as_published(name, spread):
    assert BENCHMARKS[name](200_000, seed=1).tau.std() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_benchmark_outcomes_carry_the_effect(name):
    data = BENCHMARKS[name](200_000, seed=5)
    for level in range(1, data.e.shape[1]):
        contrast = (data.w == level) / data.e[:, level] - (data.w == 0) / data.e[:, 0]
        assert _standard_error_units(contrast * data.y - data.tau[:, level - 1], 0.0) < 4


def test_nie_wager_formulas_at_one_point():
    from uplift_spark.events.simulate import _SETUPS

    x = np.array([[0.2, 0.5, 0.9, 0.4, -0.6]])
    expected = {
        "a": (np.sin(0.1 * np.pi) + 2 * 0.16 + 0.4 - 0.3, np.sin(0.1 * np.pi), 0.35),
        "b": (0.9 + 0.0, 0.5, 0.2 + np.log(1 + np.exp(0.5))),
        "c": (2 * np.log(1 + np.exp(1.6)), 1 / (1 + np.exp(1.4)), 1.0),
        "d": (1.6 / 2, 1 / (1 + np.exp(-0.2) + np.exp(-0.5)), 1.6),
    }
    for setup, values in expected.items():
        np.testing.assert_allclose(np.ravel(_SETUPS[setup](x)), values, rtol=1e-12)


def test_levels_are_named_and_dosed():
    assert CampaignSimulator("binary", 2).levels.names == ("none", "5%")
    ordered = CampaignSimulator("ordered", 4).levels
    assert ordered.names == ("none", "5%", "10%", "15%") and ordered.doses == (0.0, 5.0, 10.0, 15.0)
    packages = CampaignSimulator("unordered", 3).levels
    assert packages.names == ("none", "package_a", "package_b") and packages.doses is None


def test_units_do_not_depend_on_how_many_are_simulated():
    simulator = CampaignSimulator(seed=11)
    table = simulator.units(CHUNK + 50)
    assert table.num_rows == CHUNK + 50 and chunk_sizes(CHUNK + 50) == [(0, CHUNK), (1, 50)]
    assert table.slice(0, 100).to_pylist() == simulator.units(100).to_pylist()
    assert table.slice(CHUNK).to_pylist() == simulator.chunk(1).slice(0, 50).to_pylist()
    assert len(set(table["unit_id"].to_pylist())) == CHUNK + 50
    assert CampaignSimulator(seed=12).units(5)["recency_days"] != simulator.units(5)["recency_days"]


def test_attributes_are_twenty_skewed_and_partly_missing():
    frame = CampaignSimulator().units(CHUNK).select(list(ATTRIBUTES)).to_pandas()
    assert len(ATTRIBUTES) == 20
    assert sorted(frame.select_dtypes(object).columns) == ["channel", "device", "region"]
    missing = frame.isna().mean()
    assert set(missing.index[missing > 0]) >= {"avg_basket", "email_open_rate", "age", "channel"}
    assert (frame["avg_basket"].isna() == (frame["orders_12m"] == 0)).all()
    assert frame["recency_days"].skew() > 1.5 and frame["loyalty_points"].skew() > 3


@pytest.mark.parametrize(
    "simulator",
    [
        CampaignSimulator("binary", 2),
        CampaignSimulator("ordered", 4, confounding=1.0),
        CampaignSimulator("unordered", 6, confounding=0.5, noise=0.0),
    ],
    ids=lambda s: s.design,
)
def test_truth_agrees_with_weighted_differences(simulator):
    frame = simulator.units(300_000).to_pandas()
    control = (frame["treatment"] == "none") / frame["propensity"]
    assert _standard_error_units(control * frame["conversion"], 0.05) < 4
    for level in simulator.levels.treated:
        contrast = (frame["treatment"] == level) / frame["propensity"] - control
        for outcome in OUTCOMES:
            truth = frame[effect_column(outcome, level)]
            assert _standard_error_units(contrast * frame[outcome] - truth, 0.0) < 4
        lift = frame[effect_column("conversion", level)]
        assert lift.min() > 0 and lift.max() <= 0.03 and lift.std() > 0.2 * lift.mean()


def test_revenue_comes_with_conversion_only():
    frame = CampaignSimulator().units(CHUNK).to_pandas()
    assert ((frame["revenue"] > 0) == (frame["conversion"] == 1)).all()
    assert frame["delay_hours"].between(0, 240).all()


def test_ordered_response_is_concave_in_the_dose():
    frame = CampaignSimulator("ordered", 4).units(1_000).to_pandas()
    first, second, third = (frame[effect_column("conversion", level)] for level in ("5%", "10%", "15%"))
    assert (first > second - first).all() and (second - first > third - second).all() and (third > second).all()


@pytest.mark.parametrize("design", ["ordered", "unordered"])
def test_effects_grow_with_the_largest_and_nothing_else_changes(design):
    small, large = (CampaignSimulator(design, 3, max_lift=lift).units(500).to_pandas() for lift in (0.03, 0.09))
    for level in CampaignSimulator(design, 3).levels.treated:
        name = effect_column("conversion", level)
        np.testing.assert_allclose(large[name], 3 * small[name])
    assert (small[list(ATTRIBUTES)].fillna(-1) == large[list(ATTRIBUTES)].fillna(-1)).all(axis=None)
    with pytest.raises(ConfigError, match=r"max_lift must be in \[0, 0.1\], not 0.2"):
        CampaignSimulator(max_lift=0.2)


def test_packages_move_different_customers():
    frame = CampaignSimulator("unordered", 5).units(CHUNK).to_pandas()
    effects = [frame[effect_column("conversion", f"package_{c}")] for c in "abcd"]
    correlation = np.corrcoef(effects)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 0.5


def test_confounding_makes_the_raw_difference_wrong():
    plain = CampaignSimulator("binary", 2).units(CHUNK).to_pandas()
    assert set(plain["propensity"]) == {0.5}
    frame = CampaignSimulator("binary", 2, confounding=1.0).units(200_000).to_pandas()
    rates = frame.groupby("treatment")["conversion"].mean()
    assert rates["5%"] - rates["none"] > 2 * frame[effect_column("conversion", "5%")].mean()
    assert frame["propensity"].min() >= 0.025


def test_noise_widens_money_but_not_the_truth():
    quiet, loud = (CampaignSimulator(noise=noise).units(100_000).to_pandas() for noise in (0.0, 2.0))
    column = effect_column("revenue", "10%")
    np.testing.assert_array_equal(quiet[column], loud[column])
    assert loud["revenue"].std() > 2 * quiet["revenue"].std()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"design": "crossover"}, "crossover"),
        ({"design": "binary", "arms": 3}, "has 2 arms"),
        ({"arms": 21}, "2 to 20"),
        ({"confounding": 1.5}, "confounding"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_impossible_campaigns_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CampaignSimulator(**arguments)


def alternate(levels: tuple[str, ...], ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every third unit takes no part, the others get the levels in turn."""
    codes = np.arange(len(ids)) % 3 - 1
    return codes, np.where(codes < 0, np.nan, 1 / len(levels))


def test_a_designed_trial_has_its_own_arms_and_days_and_the_same_customers():
    drawn, designed = CampaignSimulator("binary", 2), CampaignSimulator("binary", 2, arms_of=alternate, days=28)
    own, other = designed.units(3000).to_pandas(), drawn.units(3000).to_pandas()
    assert own["treatment"].tolist() == [None, "none", "5%"] * 1000
    assert own["propensity"].isna().sum() == 1000 and set(own["propensity"].dropna()) == {0.5}
    assert set(own["day"]) == set(range(28)) and "day" not in other
    same = ["unit_id", "recency_days", "region", "effect:conversion:5%"]
    assert own[same].equals(other[same])
    both = own["treatment"] == other["treatment"]
    assert own.loc[both, "conversion"].equals(other.loc[both, "conversion"])
