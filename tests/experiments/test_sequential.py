"""Tests of looks at running trials: published bounds, exact identities, and false alarms of simulated A/A trials."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal, norm

from uplift_spark.errors import ConfigError
from uplift_spark.experiments import sequential
from uplift_spark.experiments.estimates import MetricColumns, arm_effect
from uplift_spark.experiments.sequential import (
    StoppingRule,
    crossing_probability,
    sequence_width,
    sequential_ratio_p,
    spending_bounds,
    spent_level,
)
from uplift_spark.stats.moments import CrossMoments

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
TWENTY = tuple((k + 1) / 20 for k in range(20))


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize(
    ("spending", "bounds"),
    [
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_lan_demets_bounds(spending: str, bounds: tuple[float, ...]) -> None:
    """Lan and DeMets' program, 5 looks, two-sided .05. Its integration is a little coarse: the second of O'Brien and
    Fleming is 3.35701, see the exact test below."""
    assert spending_bounds(FIFTHS, 0.05, spending) == pytest.approx(bounds, abs=1.2e-4)


def test_second_bound_by_a_bivariate_normal() -> None:
    """What two looks spend, by scipy's bivariate normal: exact, where the published 3.3569 spends 1.3e-7 too much."""
    first, second = spending_bounds(FIFTHS[:2])
    both = multivariate_normal(cov=[[1, np.sqrt(0.5)], [np.sqrt(0.5), 1]], abseps=1e-13, releps=1e-13)

    def inside(b: float) -> float:
        return float(both.cdf([first, b], lower_limit=[-first, -b]))

    assert 1 - inside(second) == pytest.approx(spent_level(0.4, 0.05), abs=1e-10)
    assert abs(1 - inside(3.3569) - spent_level(0.4, 0.05)) > 1e-7


def test_hwang_shih_decani_bounds() -> None:
    """gsDesign, gamma -4, one-sided .025."""
    bounds = spending_bounds(FIFTHS, 0.025, "hwang_shih_decani", two_sided=False)
    assert bounds == pytest.approx((3.25, 2.99, 2.69, 2.37, 2.03), abs=0.005)
    two_sided = spending_bounds(FIFTHS, 0.05, "hwang_shih_decani")
    assert two_sided == pytest.approx(bounds, abs=1e-4)  # hardly any path passes both


def test_confidence_sequence_golden() -> None:
    """GrowthBook: tuned for 1000, 3000 and 3461 units, effect .50336, error .33341."""
    half = sequence_width(3000 + 3461, 1000) * 0.33341
    assert (0.50336 - half, 0.50336 + half) == pytest.approx((-0.55844, 1.56516), abs=1e-4)


def test_confidence_sequence_is_never_narrower_than_1_55_intervals() -> None:
    widths = [sequence_width(units, 1000) / norm.isf(0.025) for units in np.geomspace(10, 1e6, 400)]
    assert min(widths) == pytest.approx(1.5486, abs=5e-4)
    assert np.geomspace(10, 1e6, 400)[np.argmin(widths)] == pytest.approx(1000, rel=0.05)


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("spending", sequential.SPENDING)
@pytest.mark.parametrize("fractions", [FIFTHS, TWENTY, (0.11, 0.12, 0.7, 1.0), (1.0,)])
def test_all_of_the_level_is_spent_as_declared(spending: str, fractions: tuple[float, ...]) -> None:
    bounds = spending_bounds(fractions, 0.05, spending)
    for k in range(1, len(fractions) + 1):
        spent = spent_level(fractions[k - 1], 0.05, spending)
        assert crossing_probability(fractions[:k], bounds[:k]) == pytest.approx(spent, abs=1e-8)
    assert spent_level(1.0, 0.05, spending) == pytest.approx(0.05)


def test_peeking_without_bounds() -> None:
    """Armitage, McPherson and Rowe (1969): 5 looks at 1.96 raise 14.2 % alarms, 20 looks 24.8 %."""
    assert crossing_probability(FIFTHS, [norm.isf(0.025)] * 5) == pytest.approx(0.142, abs=5e-4)
    assert crossing_probability(TWENTY, [norm.isf(0.025)] * 20) == pytest.approx(0.248, abs=5e-4)


def test_inflation_of_units() -> None:
    """gsDesign's fixed-to-maximum ratios for 5 looks, power .9; a single look costs nothing."""
    inflation = {
        s: StoppingRule("group_sequential", analyses=FIFTHS, spending=s).inflation(0.9) for s in sequential.SPENDING
    }
    assert 1.02 < inflation["obrien_fleming"] < 1.03 < 1.18 < inflation["pocock"] < 1.21
    assert StoppingRule("group_sequential", analyses=(1.0,)).inflation() == pytest.approx(1.0, abs=1e-5)
    assert StoppingRule().inflation() == 1.0
    drift = np.sqrt(inflation["pocock"]) * (norm.isf(0.025) + norm.ppf(0.9))
    assert crossing_probability(FIFTHS, spending_bounds(FIFTHS, 0.05, "pocock"), drift) == pytest.approx(0.9)


@pytest.mark.parametrize("rule", [
    StoppingRule("group_sequential", analyses=FIFTHS),
    StoppingRule("group_sequential", 0.01, FIFTHS, "pocock"),
    StoppingRule("anytime", tuned_for=500),
    StoppingRule(),
])  # fmt: skip
@pytest.mark.parametrize("place", [1, 3, 5])
def test_valid_p_rejects_where_the_interval_does(rule: StoppingRule, place: int) -> None:
    fractions, units = FIFTHS[:place], 1000 * FIFTHS[place - 1]
    level = rule.level(fractions, units, 1000)
    p = np.array([level * 0.99, level * 1.01, np.nan, 1.0, level / 2])
    valid = rule.valid_p(p, fractions, units, 1000)
    assert valid[0] < rule.alpha < valid[1] and np.isnan(valid[2]) and valid[3] == 1.0 and valid[4] < valid[0]
    assert float(rule.valid_p(np.array(level), fractions, units, 1000)) == pytest.approx(rule.alpha, rel=1e-6)


def test_valid_p_is_the_level_at_which_the_bound_is_passed() -> None:
    """Between the levels of its table, too: the bound of a trial at that level is the statistic."""
    rule = StoppingRule("group_sequential", analyses=FIFTHS)
    for z in (2.2, 2.8, 3.6):
        valid = float(rule.valid_p(np.array(2 * norm.sf(z)), FIFTHS[:3], 600, 1000))
        assert spending_bounds(FIFTHS[:3], valid)[-1] == pytest.approx(z, abs=5e-3)


def test_nothing_can_be_found_very_early() -> None:
    rule = StoppingRule("group_sequential", analyses=TWENTY)
    assert rule.level(TWENTY[:1], 50, 1000) == 0.0
    assert float(rule.valid_p(np.array(1e-12), TWENTY[:1], 50, 1000)) > 0.05


# ---------------------------------------------------------------- A/A trials


def alarms(trials: int, seed: int) -> dict[str, float]:
    """Share of A/A trials of 2,000 units with skewed outcomes that reject at any of 20 looks."""
    y = np.random.default_rng(seed).exponential(size=(trials, 20, 2, 50))
    sums, squares = (a.sum(axis=3).cumsum(axis=1)[..., None, None] for a in (y - 1, (y - 1) ** 2))
    n = np.broadcast_to(50.0 * np.arange(1, 21)[:, None, None], (trials, 20, 2, 1))
    so_far = CrossMoments.of_sums(n, sums, squares[..., None], 1.0)
    p = arm_effect(so_far, MetricColumns(0)).p_value
    rules = {
        "peeking at .05": StoppingRule(),
        "group-sequential": StoppingRule("group_sequential", analyses=TWENTY),
        "pocock": StoppingRule("group_sequential", analyses=TWENTY, spending="pocock"),
        "anytime-valid": StoppingRule("anytime"),
    }
    levels = {
        name: [rule.level(TWENTY[: k + 1], 100 * (k + 1), 2000) for k in range(20)] for name, rule in rules.items()
    }
    return {name: float((p <= np.array(level)).any(axis=1).mean()) for name, level in levels.items()}


def test_alarms_quickly() -> None:
    """500 trials: .05 has a standard error of .01; peeking raises five times as many."""
    shares = alarms(500, 2)
    assert shares.pop("peeking at .05") > 0.18
    assert max(shares.values()) <= 0.08


@pytest.mark.simulation
def test_alarms_of_2000_trials_with_20_looks() -> None:
    shares = alarms(2000, 1)
    print("any rejection over 20 looks:", ", ".join(f"{name} {share:.4f}" for name, share in shares.items()))
    assert shares.pop("peeking at .05") > 0.2
    assert max(shares.values()) <= 0.06


# ---------------------------------------------------------------- ratio of arms


def test_sequential_ratio_by_hand() -> None:
    """One unit of two arms: the Bayes factor is 1; total and daily counts end alike where the last day is the worst."""
    assert sequential_ratio_p(np.array([1, 0]), (0.5, 0.5), 2.0) == 1.0
    # Uniform prior (1, 1): the probability of 10 of 10 is 1/11, against 2^-10.
    assert sequential_ratio_p(np.array([10, 0]), (0.5, 0.5), 2.0) == pytest.approx(11 / 1024)
    daily = sequential_ratio_p(np.array([[5, 0], [5, 0]]), (0.5, 0.5), 2.0)
    assert daily == pytest.approx(11 / 1024)


def test_sequential_ratio_keeps_its_level_every_day() -> None:
    rng = np.random.default_rng(8)
    smallest = [sequential_ratio_p(rng.multinomial(1000, (0.7, 0.2, 0.1), 28), (0.7, 0.2, 0.1)) for _ in range(1500)]
    assert np.mean(np.array(smallest) <= 0.05) <= 0.05
    broken = [sequential_ratio_p(rng.multinomial(1000, (0.68, 0.22, 0.1), 28), (0.7, 0.2, 0.1)) for _ in range(50)]
    assert np.mean(np.array(broken) <= 0.001) == 1.0


def test_sequential_ratio_is_weak_early() -> None:
    """400 to 500 has p = .0008 by chance; the sequential test is far from sure, which is why both are run."""
    assert 2 * binom.cdf(400, 900, 0.5) < 0.001 < 0.05 < sequential_ratio_p(np.array([400, 500]), (0.5, 0.5))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"kind": "sequential"}, "stopping 'sequential' is unknown"),
        ({"alpha": 0.7}, "alpha is 0.7"),
        ({"kind": "group_sequential"}, "looks at none of the information do not rise"),
        ({"kind": "group_sequential", "analyses": (0.5, 0.4, 1)}, "looks at 0.5, 0.4, 1 of the information"),
        ({"kind": "group_sequential", "analyses": (0.3, 0.6)}, "the last look is at 0.6 of the units"),
        ({"analyses": (0.5, 1.0)}, "analyses are for group_sequential trials, not for fixed"),
        ({"spending": "haybittle"}, "spending 'haybittle' is unknown"),
    ],
)
def test_rules_that_do_not_fit(parts: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        StoppingRule(**parts)  # type: ignore[arg-type]


def test_other_bad_input() -> None:
    with pytest.raises(ConfigError, match="a confidence sequence of 0 units"):
        sequence_width(0, 100)
    with pytest.raises(ConfigError, match="2 counts have 3 shares above 0"):
        sequential_ratio_p(np.array([1, 2]), (0.2, 0.3, 0.5))
    with pytest.raises(ConfigError, match="an anytime trial has no largest size"):
        StoppingRule("anytime").inflation()


def test_examples() -> None:
    assert doctest.testmod(sequential).failed == 0 and doctest.testmod(sequential).attempted > 0
