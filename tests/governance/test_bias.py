"""The bias audit: sums that merge, false alarms at the stated level, planted gaps and harm, need, proxies. No Spark."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from uplift_spark.governance.bias import (
    BiasAudit,
    BiasMeasure,
    GroupSums,
    bias_audit,
    cramers_v,
    group_sums,
    proxies_of,
)
from uplift_spark.stats.offpolicy import doubly_robust

N = 4_000
MEASURES = (
    BiasMeasure("treated", 1.0),
    BiasMeasure("cost", 2.0),
    BiasMeasure("predicted", 1.0),
    BiasMeasure("realised", 20.0, harm=True),
)
SEXES, AGES = ("f", "m"), ("old", "mid", "young")


def simulated(
    draw: np.random.Generator, gap: float = 0.0, harm: float = 0.0, need: bool = False, strata: int = 1
) -> list[GroupSums]:
    """One campaign: a trial with a rare-ish outcome, a plan by the prediction; `gap` more women are treated, `harm` is
    what treatment takes from old men. With `need` women are treated more because they need it more."""
    sex, age = draw.integers(0, 2, N), draw.integers(0, 3, N)
    severe = draw.random(N) < (np.where(sex == 0, 0.6, 0.2) if need else 0.4)
    effect = np.where((sex == 1) & (age == 0), 0.05 - harm, 0.05)
    arm = (draw.random(N) < 0.5).astype(int)
    outcome = (draw.random(N) < np.clip(0.2 + effect * arm, 0, 1)).astype(float)
    scores = doubly_robust(outcome, arm, np.full(N, 2.0), np.tile([0.2, 0.24], (N, 1)))
    chance = np.where(severe, 0.7, 0.3) if need else 0.5 + gap * ((sex == 0) - 0.5)
    treated = (draw.random(N) < chance).astype(float)
    realised = scores[:, 1] - scores[:, 0]
    values = np.column_stack([treated, treated * draw.uniform(0.5, 1.5, N), draw.normal(0.05, 0.02, N), realised])
    stratum = severe.astype(int) if strata == 2 else np.zeros(N, int)
    cuts = {"sex": (sex, SEXES), "age": (age, AGES)}
    cuts["sex x age"] = (3 * sex + age, tuple(f"{s} x {a}" for s in SEXES for a in AGES))
    return [
        GroupSums(cut, names, group_sums(code, stratum, values, (len(names), strata), MEASURES))
        for cut, (code, names) in cuts.items()
    ]


def audits(replications: int, seed: int, **how) -> list[BiasAudit]:
    draw = np.random.default_rng(seed)
    return [bias_audit(simulated(draw, **how), MEASURES) for _ in range(replications)]


def test_campaigns_without_bias_are_rarely_flagged_and_planted_ones_mostly_are() -> None:
    """500 campaigns of 4,000 units, 11 groups and 4 measures: 3.4 % flagged anything."""
    false = np.mean([not one.passed for one in audits(500, 1)])
    assert false <= 0.05
    # A gap of 8 points in the rate of treatment between the sexes, the audit's other comparisons beside it.
    hits = [any(r.cut == "sex" and r.measure == "treated" for r in one.flags) for one in audits(100, 2, gap=0.08)]
    assert np.mean(hits) >= 0.8
    # Treatment takes 14 points from one of six groups and gives 5 to the others.
    named = [[(r.cut, r.bucket) for r in one.flags if r.flag == "harm"] for one in audits(100, 3, harm=0.19)]
    assert np.mean([("sex x age", "m x old") in one for one in named]) >= 0.8
    harmed = {("sex x age", "m x old"), ("sex", "m"), ("age", "old")}  # on average, all of them
    assert np.mean([bool(set(one) - harmed) for one in named]) <= 0.05


def test_differences_that_need_explains_are_told_apart_from_those_it_does_not() -> None:
    draw = np.random.default_rng(4)
    plain = bias_audit(simulated(draw, need=True), MEASURES)
    assert {(r.bucket, r.flag) for r in plain.rows if r.cut == "sex" and r.measure == "treated"} == {
        ("f", "difference"), ("m", "difference"),
    }  # fmt: skip
    with_need = bias_audit(simulated(draw, need=True, strata=2), MEASURES)
    rows = {r.bucket: r for r in with_need.rows if r.cut == "sex" and r.measure == "treated"}
    assert rows["f"].flag == rows["m"].flag == "explained" and with_need.passed
    assert abs(rows["f"].within) < 0.05 < rows["f"].difference
    # Need is there, and more women are treated at the same need.
    unfair = bias_audit(simulated(draw, gap=0.15, strata=2), MEASURES)
    assert [r.flag for r in unfair.rows if r.cut == "sex" and r.measure == "treated"] == ["difference", "difference"]
    text = "\n".join([*with_need.sentences(), *unfair.sentences()])
    assert "Explained by need: sex = f" in text and "Difference: sex = f" in text and "No group is treated" in text


def test_figures_are_those_of_welchs_test() -> None:
    draw = np.random.default_rng(5)
    values, bucket = draw.normal(size=(900, 1)), draw.integers(0, 3, 900)
    values[bucket == 1] += 0.3
    measure = (BiasMeasure("x", 8.0, harm=True),)
    sums = group_sums(bucket, np.zeros(900, int), values, (3, 1), measure)
    audit = bias_audit([GroupSums("a", ("0", "1", "2"), sums)], measure)
    for b, row in enumerate(audit.rows):
        mine, others = values[bucket == b, 0], values[bucket != b, 0]
        test = scipy.stats.ttest_ind(mine, others, equal_var=False)
        assert (row.units, row.mean) == (len(mine), pytest.approx(mine.mean()))
        assert row.p_value == pytest.approx(test.pvalue, rel=1e-6)
        low, high = test.confidence_interval()
        assert (row.difference_lower, row.difference_upper) == (pytest.approx(low), pytest.approx(high))
        assert row.lower < row.mean < row.upper
    # Tolerance: a difference that does not matter is none.
    lax = (BiasMeasure("x", 8.0, tolerance=0.5),)
    assert bias_audit([GroupSums("a", ("0", "1", "2"), sums)], lax).passed


def test_sums_of_parts_are_the_sums_of_all_to_the_bit() -> None:
    draw = np.random.default_rng(6)
    values, bucket, stratum = draw.normal(size=(500, 4)) / 9, draw.integers(0, 3, 500), draw.integers(0, 2, 500)
    whole = group_sums(bucket, stratum, values, (3, 2), MEASURES)
    order = draw.permutation(500)
    parts = [group_sums(bucket[p], stratum[p], values[p], (3, 2), MEASURES) for p in np.array_split(order, 7)]
    assert np.array_equal(whole, np.sum(parts, axis=0))


def test_few_units_and_sure_differences() -> None:
    measure = (BiasMeasure("treated", 1.0),)
    bucket = np.repeat([0, 1, 2], [500, 500, 50])
    values = (bucket == 0).astype(float)[:, None]  # nobody else is treated: no variance, and no doubt
    sums = group_sums(bucket, np.zeros(1050, int), values, (3, 1), measure)
    audit = bias_audit([GroupSums("a", ("x", "y", "z"), sums)], measure)
    flags = {row.bucket: row.flag for row in audit.rows}
    assert flags == {"x": "difference", "y": "difference", "z": ""}
    assert np.isnan(audit.rows[2].p_value) and "1 more have too few units" in audit.sentences()[1]
    nobody = group_sums(bucket, np.zeros(1050, int), 0 * values, (3, 1), measure)
    assert bias_audit([GroupSums("a", ("x", "y", "z"), nobody)], measure).passed
    # What compared nothing has not passed, nor what compared no group of one of its cuts.
    assert (
        not bias_audit([], measure).passed
        and "Nothing is known about any group" in bias_audit([], measure).sentences()[1]
    )
    small = GroupSums("b", ("p", "q"), group_sums(bucket[-50:] % 2, np.zeros(50, int), values[-50:], (2, 1), measure))
    alone = bias_audit([small], measure)
    assert (alone.compared, alone.uncompared, alone.flags, alone.passed) == ((), ("b",), [], False)
    both = bias_audit([GroupSums("a", ("x", "y", "z"), nobody), small], measure)
    assert (both.compared, both.uncompared, both.passed) == ((("a", "x"), ("a", "y")), ("b",), False)
    assert not any("No group is treated" in one for one in (*alone.sentences(), *both.sentences()))


def test_harm_that_all_of_a_group_get_alike_is_harm() -> None:
    """Without variance there is no t statistic, and no doubt either."""
    measure = (BiasMeasure("realised", 1.0, harm=True),)
    bucket = np.repeat([0, 1], [500, 500])
    for loss, flags in ((-0.25, ["harm", ""]), (0.0, ["", ""])):
        values = np.where(bucket == 0, loss, 0.0)[:, None]
        sums = group_sums(bucket, np.zeros(1000, int), values, (2, 1), measure)
        rows = bias_audit([GroupSums("a", ("x", "y"), sums)], measure).rows
        assert [row.flag if row.flag == "harm" else "" for row in rows] == flags
        assert [row.harm_p for row in rows] == ([0.0, 1.0] if loss else [1.0, 1.0])


def test_features_that_tell_an_attribute_are_named() -> None:
    draw = np.random.default_rng(7)
    attribute = draw.integers(0, 2, 3000)
    noise, copy = draw.integers(0, 8, 3000), np.where(draw.random(3000) < 0.9, attribute, 1 - attribute)

    def counts(feature: np.ndarray) -> np.ndarray:
        table = np.zeros((2, 8), int)
        np.add.at(table, (attribute, feature), 1)
        return table

    assert cramers_v(counts(attribute)) == pytest.approx(1.0, abs=1e-3)
    assert cramers_v(counts(noise)) < 0.05 and 0.7 < cramers_v(counts(copy)) < 0.9
    plain = scipy.stats.contingency.association(counts(copy)[:, :2], method="cramer")
    assert cramers_v(counts(copy)) == pytest.approx(plain, abs=0.01)
    (proxy,) = proxies_of({("sex", "shop"): counts(noise), ("sex", "size"): counts(copy)}, 0.3)
    assert (proxy.cut, proxy.feature) == ("sex", "size")
    assert "Feature size tells sex" in BiasAudit((), 0.05, (proxy,)).sentences()[-1]
    assert np.isnan(cramers_v(counts(0 * noise)))
