"""Tests of readouts from sums: verdicts, guardrails, several arms, looks, overrides, and what is refused."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import readout
from uplift_spark.experiments.estimates import MetricColumns, arm_effect
from uplift_spark.experiments.health import ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import ReadoutMetric, TrialReadout, TrialSums, read_sums
from uplift_spark.experiments.sequential import StoppingRule
from uplift_spark.stats.moments import CrossMoments

SPEND = ReadoutMetric("spend", "spend", role="primary")
VISITS = ReadoutMetric("visits", "visits")
CHURN = ReadoutMetric("churn", "churn", role="guardrail", better="down", margin=0.05)
HALVES = ReadoutDesign({"off": 0.5, "on": 0.5})
THREE = ReadoutDesign({"off": 0.4, "a": 0.3, "b": 0.3})
LOOKS = StoppingRule("group_sequential", analyses=(0.25, 0.5, 0.75, 1.0))


def sums_of(effects: dict[str, tuple[float, float, float]], n: int = 1000, sd: float = 1.0) -> TrialSums:
    """An arm's means of spend, visits and churn over the control's 10, 2 and .2; every column has this sd."""
    means = np.array([[10.0, 2.0, 0.2], *(np.array([10.0, 2.0, 0.2]) + e for e in effects.values())])
    arms = len(means)
    products = np.tile(np.eye(3) * (n - 1) * sd**2, (arms, 1, 1, 1))
    moments = CrossMoments(np.full((arms, 1), float(n)), means[:, None], products)
    return TrialSums(("off", *effects), ("all",), ("spend", "visits", "churn"), moments)


def read(
    effects: dict[str, tuple[float, float, float]],
    metrics: tuple[ReadoutMetric, ...] = (SPEND,),
    design: ReadoutDesign = HALVES,
    n: int = 1000,
    sd: float = 1.0,
    **facts: Any,
) -> TrialReadout:
    units = {arm: round(share * n * len(design.shares)) for arm, share in design.shares.items()}
    if design.stopping.kind == "fixed":  # without a plan it ends when somebody says so
        facts.setdefault("at_end", True)
    options = {key: facts.pop(key) for key in ("override",) if key in facts}
    return read_sums(sums_of(effects, n, sd), metrics, design, TrialFacts(units, **facts), **options)


# ---------------------------------------------------------------- verdicts


def test_a_gain_is_shipped_and_a_loss_rolled_back() -> None:
    gain, loss = read({"on": (0.3, 0, 0)}), read({"on": (-0.3, 0, 0)})
    assert (gain.verdict.word, gain.verdict.arm) == ("ship", "on")
    assert str(gain.verdict).startswith("ship on: spend +0.3 (+3.00%), between +0.21")
    assert loss.verdict.word == "roll back" and "arm on makes it worse" in loss.verdict.reason


def test_both_directions() -> None:
    less = replace(SPEND, better="down")
    assert read({"on": (-0.3, 0, 0)}, (less,)).verdict.word == "ship"
    assert read({"on": (0.3, 0, 0)}, (less,)).verdict.word == "roll back"
    assert [read({"on": (0.3, 0, 0)}, (m,)).metrics[0].status for m in (SPEND, less)] == ["better", "worse"]


def test_no_gain_at_the_end_is_rolled_back_and_before_it_goes_on() -> None:
    end = read({"on": (0.02, 0, 0)})
    assert end.verdict.word == "roll back" and "arm on shows no gain: spend +0.02" in end.verdict.reason
    unplanned = read({"on": (0.02, 0, 0)}, at_end=False, days=8)
    assert unplanned.verdict.word == "keep going"
    running = replace(HALVES, planned_units=8000, stopping=LOOKS)
    going = read({"on": (0.02, 0, 0)}, design=running, days=10)
    assert (going.verdict.word, going.verdict.days_left) == ("keep going", 30)
    assert str(going.verdict).startswith("keep going (about 30 days): arm on shows no gain yet")


@pytest.mark.parametrize(
    ("churn", "status", "word"), [(0.0, "safe", "ship"), (0.02, "harmed", "roll back"), (0.009, "open", "roll back")]
)
def test_guardrails(churn: float, status: str, word: str) -> None:
    """Of a churn of .2, .01 is accepted; errors are .0013."""
    one = read({"on": (0.3, 0, churn)}, (SPEND, CHURN), sd=0.03)
    assert (one.metrics[1].status, one.verdict.word) == (status, word)
    assert ("guardrail" in one.verdict.reason) == (word == "roll back")
    absolute = replace(CHURN, margin=0.01, margin_of="absolute")
    assert read({"on": (0.3, 0, churn)}, (SPEND, absolute), sd=0.03).metrics[1].status == status
    upside_down = replace(CHURN, better="up")
    assert read({"on": (0.3, 0, -churn)}, (SPEND, upside_down), sd=0.03).metrics[1].status == status


def test_a_guardrail_that_is_not_sure_yet_lets_the_trial_go_on() -> None:
    running = replace(HALVES, planned_units=8000, stopping=LOOKS)
    one = read({"on": (0.3, 0, 0.009)}, (SPEND, CHURN), running, sd=0.03, days=8)
    assert one.verdict.word == "keep going" and "is not shown to hold its margin" in one.verdict.reason


def test_the_best_of_several_arms() -> None:
    one = read({"a": (0.2, 0, 0), "b": (0.3, 0, 0)}, design=THREE)
    assert one.verdict.arm == "b" and one.verdict.reason.endswith("; a also gain")
    harmful = read({"a": (0.2, 0, 0), "b": (0.3, 0, 0.5)}, (SPEND, CHURN), THREE, sd=0.03)
    assert (harmful.verdict.word, harmful.verdict.arm) == ("ship", "a")
    mixed = read({"a": (-0.3, 0, 0), "b": (0.0, 0, 0)}, design=THREE)
    assert mixed.verdict.word == "roll back" and "arm b shows no gain" in mixed.verdict.reason


def test_multiplicity() -> None:
    """Arms of the primary metric by Holm; secondary metrics by what the design says; guardrails by themselves."""
    effects = {"a": (0.1, 0.1, 0), "b": (0.095, 0.09, 0)}
    tables = {
        way: read(effects, (SPEND, VISITS, CHURN), replace(THREE, multiplicity=way)).table() for way in
        ("holm", "bh", "none")
    }  # fmt: skip
    for way, table in tables.items():
        p, adjusted = (table.set_index(["metric", "arm"])[key] for key in ("p_value", "p_adjusted"))
        assert adjusted["spend", "a"] == pytest.approx(max(2 * p["spend", "a"], 0))
        assert adjusted["spend", "b"] == pytest.approx(max(2 * p["spend", "a"], p["spend", "b"]))
        first = {"holm": 2 * p["visits", "a"], "bh": min(2 * p["visits", "a"], p["visits", "b"]), "none": None}[way]
        assert adjusted["visits", "a"] == pytest.approx(p["visits", "a"] if first is None else first)
        assert adjusted["churn", "a"] == p["churn", "a"]


# ---------------------------------------------------------------- looks


def test_bounds_widen_intervals_early_and_hardly_at_the_end() -> None:
    running = replace(HALVES, planned_units=2000, stopping=LOOKS)
    widths = []
    for n, earlier in ((250, ()), (500, (0.25,)), (1000, (0.25, 0.5, 0.75))):
        one = read({"on": (0.3, 0, 0)}, design=running, n=n, earlier=earlier).metrics[0]
        widths.append((one.upper - one.lower) / 2 / one.error)
    assert widths == pytest.approx([4.3326, 2.9631, 2.0141], rel=0.05) and widths[0] > widths[1] > widths[2] > 1.97


def test_the_same_effect_ships_at_the_end_and_not_at_a_first_look() -> None:
    running = replace(HALVES, planned_units=8000, stopping=LOOKS)
    early = read({"on": (0.15, 0, 0)}, design=running, days=7)
    assert early.metrics[0].p_value > 0.05 and early.verdict.word == "keep going"
    assert read({"on": (0.15, 0, 0)}).metrics[0].p_value < 0.001
    late = read({"on": (0.15, 0, 0)}, design=replace(running, planned_units=2000), earlier=(0.25, 0.5, 0.75))
    assert late.verdict.word == "ship"


def test_anytime() -> None:
    rule = replace(HALVES, planned_units=8000, stopping=StoppingRule("anytime"))
    one = read({"on": (0.3, 0, 0)}, design=rule, days=8)
    assert one.verdict.word == "ship" and one.level < 0.01
    assert read({"on": (0.1, 0, 0)}, design=rule, days=8).verdict.word == "keep going"
    assert read({"on": (0.1, 0, 0)}, design=replace(rule, planned_units=2000), days=8).verdict.word == "roll back"


def test_a_look_after_the_end() -> None:
    running = replace(HALVES, planned_units=2000, stopping=LOOKS)
    with pytest.raises(ConfigError, match="this is look 5 of 4 planned: the trial ended with the last"):
        read({"on": (0.3, 0, 0)}, design=running, earlier=(0.25, 0.5, 0.75, 0.9))
    with pytest.raises(ConfigError, match="the trial's last look has been"):
        read({"on": (0.3, 0, 0)}, design=running, earlier=(0.5, 1.0))


# ---------------------------------------------------------------- broken trials


def test_a_broken_trial_has_no_figures_unless_someone_says_why() -> None:
    broken = read({"on": (0.3, 0, 0)}, twice=500)
    assert broken.verdict.word == "broken" and broken.metrics == () and math.isnan(broken.level)
    assert "500 units (20.00%) are in two arms" in str(broken.verdict) and len(broken.table()) == 0
    read_anyway = read({"on": (0.3, 0, 0)}, twice=500, override="ids were merged on Monday; both arms alike")
    assert read_anyway.verdict.word == "ship" and read_anyway.findings == broken.findings
    assert set(read_anyway.table()["override"]) == {"ids were merged on Monday; both arms alike"}
    assert "override: ids were merged" in read_anyway.text()
    with pytest.raises(ConfigError, match="the override has no reason"):
        read({"on": (0.3, 0, 0)}, twice=500, override=" ")


def test_warnings_do_not_refuse() -> None:
    one = read({"on": (0.3, 0, 0)}, twice=3)
    assert one.verdict.word == "ship" and "warn: 3 units" in one.text()


def test_rows_of_another_unit_than_the_randomised_one() -> None:
    one = read({"on": (0.3, 0, 0)}, design=replace(HALVES, randomised="household"), analysed="unit_id")
    assert one.verdict.word == "broken" and "household was randomised" in one.verdict.reason


# ---------------------------------------------------------------- figures


def test_figures_are_those_of_the_estimates() -> None:
    one = read({"on": (0.3, 0, 0)}).metrics[0]
    effect = arm_effect(sums_of({"on": (0.3, 0, 0)}).moments, MetricColumns(0))
    for key in ("control", "treated", "effect", "error", "lower", "upper", "p_value", "relative", "relative_upper"):
        assert getattr(one, key) == pytest.approx(float(getattr(effect, key)))


def test_strata_and_covariates_save_variance_and_compliers_are_read() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    stratum, arm, before = rng.integers(0, 2, n), rng.integers(0, 2, n), rng.normal(size=n)
    took = ((rng.random(n) < 0.5) & (arm == 1)).astype(float)
    y = 10 + 2 * stratum + before + rng.normal(size=n) + took
    moments = CrossMoments.of(np.column_stack([y, before, took]), arm * 2 + stratum, (2, 2))
    sums = TrialSums(("off", "on"), ("0", "1"), ("spend", "before", "took"), moments, taken="took")
    facts = TrialFacts({"off": float((arm == 0).sum()), "on": float((arm == 1).sum())})
    one = read_sums(sums, [replace(SPEND, covariates=("before",))], HALVES, facts)
    itt, complier = one.metrics
    assert itt.saved == pytest.approx(2 / 3, abs=0.03)
    assert complier.role == "complier" and (complier.control, complier.treated) == pytest.approx((0, 0.5), abs=0.03)
    assert complier.effect == pytest.approx(itt.effect / complier.treated, rel=0.05)
    assert complier.lower < 1 < complier.upper and itt.lower < 0.5 < itt.upper


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"role": "main"}, "role 'main' of metric spend is unknown"),
        ({"better": "higher"}, "better 'higher' of metric spend is unknown"),
        ({"role": "guardrail"}, "guardrail spend has no margin"),
        ({"role": "guardrail", "margin": -0.1}, "guardrail spend has no margin"),
        ({"margin": 0.1}, "margin of spend is for guardrails"),
        ({"margin_of": "share"}, "margin_of 'share' of metric spend is unknown"),
    ],
)
def test_metrics_that_do_not_fit(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ReadoutMetric("spend", "spend", **parts)


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ((), r"no metric is primary \(there is none\): name the one that decides"),
        ((VISITS, CHURN), r"no metric is primary \(visits, churn\)"),
        ((SPEND, replace(VISITS, role="primary")), "spend, visits are primary: one decides"),
        ((SPEND, SPEND), "metric spend is there twice"),
        ((replace(SPEND, column="spent"),), "column 'spent' of metric spend is not there: did you mean 'spend'"),
    ],
)
def test_lists_of_metrics(metrics: tuple[ReadoutMetric, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read({"on": (0.3, 0, 0)}, metrics)


def test_a_metric_without_variance() -> None:
    sums = sums_of({"on": (0, 0, 0)}, sd=0.0)
    with pytest.raises(DataError, match="metric spend is 10 in all 2,000 units: it tells no arms apart"):
        read_sums(sums, [SPEND], HALVES, TrialFacts({"off": 1000, "on": 1000}))


def test_denominators_margins_and_small_strata() -> None:
    sums = sums_of({"on": (0.3, 0, 0)})
    facts = TrialFacts({"off": 1000, "on": 1000})
    empty = replace(sums, moments=replace(sums.moments, mean=sums.moments.mean * [1, 0, 1]))
    with pytest.raises(DataError, match="the denominator of spend has mean 0"):
        read_sums(empty, [replace(SPEND, denominator="visits")], HALVES, facts)
    negative = replace(sums, moments=replace(sums.moments, mean=-sums.moments.mean))
    with pytest.raises(DataError, match=r"guardrail churn has control mean -0\.2: give its margin as absolute"):
        read_sums(negative, [SPEND, CHURN], HALVES, facts)
    lone = replace(sums, moments=replace(sums.moments, n=np.array([[1000.0], [1.0]])))
    with pytest.raises(DataError, match="arm on has 1 units in stratum all and fewer than 2 in 1 strata"):
        read_sums(lone, [SPEND], HALVES, facts)


def test_examples() -> None:
    assert doctest.testmod(readout).failed == 0 and doctest.testmod(readout).attempted > 0


def test_an_effect_that_wears_off_is_a_warning() -> None:
    """By hand: .9 in the first week and .1 in the second, from 700 units an arm each with sd 1: 10 errors."""

    def of_days(late: float, days: int = 14, n: float = 100.0) -> TrialSums:
        means = np.tile(np.array([10.0, 2.0, 0.2]), (2, days, 1))
        means[1, :, 0] += np.where(np.arange(days) < days // 2, 0.9, late)
        products = np.tile(np.eye(3) * (n - 1), (2, days, 1, 1))
        by_day = CrossMoments(np.full((2, days), n), means, products)
        return TrialSums(("off", "on"), ("all",), ("spend", "visits", "churn"), by_day.sum(1)[:, None], by_day=by_day)

    def said(sums: TrialSums) -> list[str]:
        units = float(sums.moments.n[0, 0])
        facts = TrialFacts({"off": units, "on": units}, at_end=True, days=14)
        findings = read_sums(sums, [SPEND], HALVES, facts).findings
        assert all(one.severity == "warn" for one in findings)
        return [one.sentence for one in findings if one.check == "effect_over_time"]

    (sentence,) = said(of_days(0.1))
    assert "arm on changes spend by +0.9 for units of the first 7 days and by +0.1 for those after" in sentence
    assert said(of_days(0.9)) == said(of_days(0.75)) == []  # .15 is 2 errors
    assert said(of_days(0.1, days=13)) == said(of_days(0.1, n=10.0)) == []  # no two weeks, few units
