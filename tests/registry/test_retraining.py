"""Reasons to retrain, what forbids it, and whether a new model passes: right values, and rates in simulations."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.stats import norm, t

from uplift_spark.config import Compare, Config, Labels, LearnerConf, NuisancesConf
from uplift_spark.errors import ConfigError
from uplift_spark.monitoring.detectors import DETECTORS
from uplift_spark.monitoring.drift import ColumnBins, DriftLimits, WindowCounts, window_drift, with_triggers
from uplift_spark.monitoring.kpis import FOUNDING_KPIS
from uplift_spark.monitoring.lift import LiftEstimate
from uplift_spark.registry.retraining import (
    INCIDENTS,
    REASONS,
    DriftedColumn,
    LiftWindow,
    NewArm,
    PlanValue,
    RetrainCheck,
    RetrainFacts,
    added_lift,
    arm_checks,
    decision_lines,
    drifted_columns,
    lift_by_level,
    lookbacks,
    over_margin,
    plan_figures,
    recent_drops,
    retrain_blocks,
    retrain_decision,
    retrain_triggers,
    targeting_fault,
    validation_checks,
)
from uplift_spark.runtime import derive_run_id
from uplift_spark.sections.retraining import Refresh, Retrain

CONF, START = Retrain(), datetime(2026, 1, 5, tzinfo=UTC)
EVEN = {"none": NewArm(5000, 5000, 10_000.0, 20_000.0), "mail": NewArm(5000, 5000, 10_000.0, 20_000.0)}
FACTS = RetrainFacts("2026-01-05", 10_000, arms=EVEN)


def state_of(checks: list[RetrainCheck], name: str) -> RetrainCheck:
    return next(one for one in checks if one.check == name)


def windows(drops: list[float], n: int, reference: int = 2_500_000, rng: np.random.Generator | None = None):
    """Windows of `n` units an arm at 5 % conversion and half a point of lift, of which so much is gone in each."""
    lift, base = 0.005, 0.05

    def error(units: int) -> float:
        return math.sqrt(base * (1 - base) * 2 / units)

    z = np.zeros(1 + len(drops)) if rng is None else rng.normal(size=1 + len(drops))
    estimated = LiftEstimate(lift + z[0] * error(reference), error(reference), reference)
    return [
        LiftWindow(
            START + timedelta(days=i), estimated, LiftEstimate(lift * (1 - d) + z[1 + i] * error(n), error(n), n)
        )
        for i, d in enumerate(drops)
    ]


# --------------------------------------------------------------------------------------------------------------------
# Reasons.


def test_more_new_units_than_the_volume_are_a_reason() -> None:
    at = state_of(retrain_triggers(replace(FACTS, new_units=1_000_000), CONF), "volume")
    above = state_of(retrain_triggers(replace(FACTS, new_units=1_000_001), CONF), "volume")
    assert (at.state, above.state) == ("quiet", "fires") and isinstance(above.figure, float)
    assert above.sentence == (
        "1,000,001 units with mature labels are new since the champion was trained, more than 1,000,000"
    )


def test_with_hardly_a_new_unit_only_a_person_is_a_reason() -> None:
    facts = replace(FACTS, new_units=999, age_days=400.0, because="new prices")
    checks = retrain_triggers(facts, CONF)
    assert state_of(checks, "age").state == "quiet" and state_of(checks, "age").n_needed == 1000
    assert "only 999 units are new" in state_of(checks, "age").sentence
    assert (
        state_of(checks, "by_hand").sentence == "by hand: new prices" and state_of(checks, "by_hand").state == "fires"
    )
    assert state_of(retrain_triggers(replace(facts, new_units=1000), CONF), "age").state == "fires"


@pytest.mark.parametrize(("days", "limit", "state"), [(90, 90, "quiet"), (91, 90, "fires"), (91, None, "not_measured")])
def test_age_is_a_reason_beyond_its_limit(days: float, limit: float | None, state: str) -> None:
    check = state_of(retrain_triggers(replace(FACTS, age_days=days), Retrain(age_days=limit)), "age")
    assert check.state == state


def column(name: str = "age", **changes) -> DriftedColumn:
    return replace(DriftedColumn(name, 0.12, 1e-9, 1e-8, 20_000, 100_000, True), **changes)


def test_a_feature_that_drifts_lastingly_is_a_reason() -> None:
    checks = retrain_triggers(replace(FACTS, columns=(column(), column("city", triggers=False))), CONF)
    assert state_of(checks, "drift").state == "fires"
    assert state_of(checks, "drift").sentence == "features drift lastingly: age by 0.12 (p < 0.001)"
    for change in ({"triggers": False}, {"distance": 0.049}, {"adjusted_p": 0.011}):
        assert state_of(retrain_triggers(replace(FACTS, columns=(column(**change),)), CONF), "drift").state == "quiet"


def test_a_p_value_alone_is_none_and_the_sentence_says_what_would_tell() -> None:
    small = column(distance=0.012, p_value=0.004, adjusted_p=0.3, triggers=False)
    columns = (small, *(column(f"c{i}", distance=0.01, p_value=0.5, triggers=False) for i in range(99)))
    check = state_of(retrain_triggers(replace(FACTS, columns=columns), CONF), "drift")
    assert check.state == "quiet"
    assert check.sentence.startswith("p < .01 alone would fire: age has p 0.004 at a distance of 0.012, of 100 columns")
    both = math.log(2 * 100 / 0.01) / (2 * 0.038**2)
    assert check.n_needed == math.ceil(1 / (1 / both - 1 / 100_000))
    silent = state_of(retrain_triggers(replace(FACTS, columns=columns[1:]), CONF), "drift")
    assert (silent.state, silent.sentence) == ("quiet", "no feature drifts")
    assert state_of(retrain_triggers(FACTS, CONF), "drift").state == "not_measured"


def test_a_large_drop_of_the_lift_is_a_reason_on_a_bound_and_not_on_the_point() -> None:
    large = replace(FACTS, lift={"mail": windows([0.0, 0.3], 5_000_000)})
    check = state_of(retrain_triggers(large, CONF), "lift_drop")
    assert check.state == "fires" and check.figure == pytest.approx(0.3)
    assert "level mail: 30% of the expected lift is gone in the newest window" in check.sentence
    noise = replace(FACTS, lift={"mail": windows([0.3], 100_000)})
    check = state_of(retrain_triggers(noise, CONF), "lift_drop")
    assert check.state == "quiet" and check.figure == pytest.approx(0.3)
    assert check.sentence.startswith('"5% less lift" read as a point would fire: level mail shows 30% less')
    assert check.n_needed == math.inf and "more units than the reference has" in check.sentence


def test_the_units_that_a_drop_takes_are_on_record() -> None:
    facts = replace(FACTS, lift={"mail": windows([0.2], 100_000, reference=2_000_000_000)})
    check = state_of(retrain_triggers(facts, CONF), "lift_drop")
    steps = norm.isf(CONF.alpha / 6) + norm.ppf(0.8)
    variance = (0.05 * 0.005 / steps) ** 2 - 2 * 0.05 * 0.95 / 2_000_000_000
    assert check.n_needed == pytest.approx(2 * 0.05 * 0.95 / variance, rel=1e-6)
    assert f"{check.n_needed:,.0f} units an arm" in check.sentence


def test_small_windows_add_up_to_what_one_does_not_show() -> None:
    drops = windows([0.4] * 28, 100_000)
    backs = dict(recent_drops(drops, CONF, 1, "increase"))
    assert list(backs) == [1, 2, 4, 8, 16, 28] == lookbacks(28, 28)
    assert not backs[1].sure and backs[28].sure
    assert lookbacks(0, 28) == [] and lookbacks(1, 28) == [1] and lookbacks(40, 5) == [1, 2, 4, 5]
    estimated, observed = added_lift(drops[:4])
    assert observed.error == pytest.approx(drops[0].observed.error / 2) and observed.n == 400_000
    assert estimated.error == pytest.approx(drops[0].estimated.error)  # all share the reference's


def test_less_is_better_of_a_falling_outcome() -> None:
    rising = [
        LiftWindow(one.end, replace(one.estimated, value=-0.005), replace(one.observed, value=-0.0035))
        for one in windows([0.0], 5_000_000)
    ]
    check = state_of(retrain_triggers(replace(FACTS, lift={"mail": rising}, direction="decrease"), CONF), "lift_drop")
    assert check.state == "fires" and check.figure == pytest.approx(0.3)


def test_without_labels_nobody_knows_whether_the_lift_has_dropped() -> None:
    check = state_of(retrain_triggers(FACTS, CONF), "lift_drop")
    assert check.state == "not_measured" and "no window of the champion has mature labels" in check.sentence


def test_rows_of_gold_tables_are_read() -> None:
    shared = {"p_value": 0.5, "adjusted_p": 0.6, "n": 10, "n_reference": 20}
    rows = [
        {"name": "age", "distance": 0.1, "missing": -0.2, "state": "trigger", **shared},
        {"name": "plan", "distance": None, "missing": 0.0, "state": "steady", **shared},
        {"name": "uplift:mail", "distance": 0.9, "missing": 0.0, "state": "trigger", **shared},
    ]
    assert drifted_columns(rows) == (
        DriftedColumn("age", 0.2, 0.5, 0.6, 10, 20, True),
        DriftedColumn("plan", 0.0, 0.5, 0.6, 10, 20, False),
    )
    z, later = norm.isf(0.0005), START + timedelta(days=1)

    def kpi(name: str, end: datetime, value: float | None, n: int) -> dict[str, object]:
        ends = {"lower": None, "upper": None} if value is None else {"lower": value - z, "upper": value + z}
        return {"kpi": name, "cut": "mail", "window_end": end, "value": value, "n": n, **ends}

    rows = [
        *(kpi("observed_lift", later, 2.0, 50), kpi("estimated_lift", later, 3.0, 90)),
        *(kpi("estimated_lift", START, 3.0, 90), kpi("observed_lift", START, None, 0)),
    ]
    (window,) = lift_by_level(rows, 0.001)["mail"]
    assert (window.end, window.observed.value, window.observed.n) == (later, 2.0, 50)
    assert window.observed.error == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------------------------
# What forbids it.


@pytest.mark.parametrize("name", [name for name in INCIDENTS if name != "confounding"])
def test_an_open_incident_forbids_whatever_the_reason(name: str) -> None:
    facts = replace(FACTS, because="I want it", incidents={name: ("in the window from 2026-01-04", "it broke")})
    outcome, reason = retrain_decision([*retrain_triggers(facts, CONF), *retrain_blocks(facts, CONF)])
    assert outcome == "blocked"
    assert reason.startswith("in the window from 2026-01-04: it broke; ") and "by hand: I want it" in reason


def test_a_deployment_bug_is_rolled_back_and_not_learnt() -> None:
    facts = replace(FACTS, because="x", incidents={"deployment_mismatch": ("in the window", "age is in months")})
    block = state_of(retrain_blocks(facts, CONF), "deployment_mismatch")
    assert block.sentence.endswith("roll back what was deployed: new rows hold what the bug made of the features")


def test_without_a_reason_an_incident_changes_nothing() -> None:
    facts = replace(FACTS, incidents={"label_lag": ("in the window", "labels are missing")})
    assert retrain_decision([*retrain_triggers(facts, CONF), *retrain_blocks(facts, CONF)])[0] == "not_needed"


@pytest.mark.parametrize(("rows", "state"), [(10, "passes"), (11, "blocks")])
def test_quarantine_forbids_beyond_its_share(rows: int, state: str) -> None:
    check = state_of(retrain_blocks(replace(FACTS, quarantine=(rows, 1000 - rows)), CONF), "quarantine")
    assert check.state == state and check.sentence.startswith(f"{rows} of 1,000 rows")


CONFOUNDED = {"confounding": ("in the window from 2026-01-04", "arms differ")}
UNLOGGED = {name: replace(arm, logged=0, inverse=0.0, inverse_square=0.0) for name, arm in EVEN.items()}
NEVER = {"none": NewArm(500, 500, 5_000.0, 50_000.0), "mail": NewArm(9_500, 9_500, 9_500.0, 9_500.0)}
EXPLORED = {
    "none": NewArm(950, 950, 10_000.0, 110_000.0),
    "mail": NewArm(9_050, 9_050, 10_000.0, 13_000.0),
}

TARGETED = {**EVEN, "mail": replace(EVEN["mail"], certain=9_000)}
ALL_TARGETED = {"none": NewArm(0, 0, 0.0, 0.0), "mail": NewArm(0, 0, 0.0, 0.0, 9_000)}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (FACTS, None),
        (replace(FACTS, arms=UNLOGGED), None),  # nobody logs the propensity of even arms
        (replace(FACTS, arms={**EVEN, "none": NewArm(0, 0, 0.0, 0.0)}), "none of the 5,000 new units got none"),
        (replace(FACTS, arms=UNLOGGED, incidents=CONFOUNDED), "propensities were not logged: a policy chose"),
        (replace(FACTS, arms=UNLOGGED, incidents=CONFOUNDED, weighted=True), None),
        (replace(FACTS, arms=NEVER, incidents=CONFOUNDED), "new units with none stand for 50% of all new units"),
        (replace(FACTS, arms=EXPLORED, incidents=CONFOUNDED), None),
        (replace(FACTS, arms=TARGETED, incidents=CONFOUNDED), None),
        (replace(FACTS, arms=ALL_TARGETED), "all 9,000 new units got their level by a policy that was certain of it"),
    ],
)
def test_units_that_only_a_policy_chose_are_not_learnt_from(facts: RetrainFacts, words: str | None) -> None:
    fault = targeting_fault(facts)
    assert fault is None if words is None else words in str(fault)
    checks = retrain_blocks(replace(facts, because="x"), CONF)
    assert any(one.state == "blocks" for one in checks) == (words is not None)


def test_propensities_that_all_units_share_undo_no_choice() -> None:
    """Arms differ although everybody was logged with 1/2: whatever chose, the log does not know it."""
    confounded = replace(FACTS, because="x", incidents=CONFOUNDED)
    block = state_of(retrain_blocks(confounded, CONF), "confounding")
    assert block.state == "blocks" and "effects read off these rows are not causal" in block.sentence
    for chosen in (replace(confounded, weighted=True), replace(confounded, arms=EXPLORED)):
        assert "confounding" not in {one.check for one in retrain_blocks(chosen, CONF)}


def test_every_level_needs_training_rows() -> None:
    checks = arm_checks({"none": 500, "mail": 499}, CONF)
    assert [(one.check, one.state) for one in checks] == [("arm:none", "passes"), ("arm:mail", "fails")]
    outcome, reason = retrain_decision([RetrainCheck("by_hand", "fires", "by hand: x"), *checks])
    assert (outcome, reason.partition(" (")[0]) == ("stopped", "499 training rows of level mail, not 500")


# --------------------------------------------------------------------------------------------------------------------
# The new model.


def value(at: float, error: float) -> PlanValue:
    half = float(norm.isf(0.025)) * error
    return PlanValue(at, at - half, at + half)


def figures(champion: float, new: float, errors: tuple[float, float, float]) -> dict[str, tuple[PlanValue, ...]]:
    parts = (value(champion, errors[0]), value(new, errors[1]), value(new - champion, errors[2]))
    return {"policy_value_dr": parts}


def test_a_model_passes_where_a_bound_excludes_that_it_is_worse_by_the_margin() -> None:
    z = t.isf(0.01, 199)
    # Errors of 3, 4 and 5: the two are independent. Error of the difference and a twentieth of the champion: by hand.
    checks = validation_checks(figures(1.0, 1.0, (0.003, 0.004, 0.005)), 10_000, CONF, 200)
    error = math.sqrt(0.004**2 + (0.95 * 0.003) ** 2)
    assert checks[0].state == "passes" and checks[0].figure == pytest.approx(0.05 - z * error)
    assert [one.check for one in checks] == ["champion", "floor:policy_value_dr"]
    worse = validation_checks(figures(1.0, 0.9, (0.003, 0.004, 0.005)), 10_000, CONF, 200)[0]
    assert worse.state == "fails" and worse.sentence.endswith("it is worse beyond chance")


def test_too_few_units_to_tell_do_not_pass_and_the_sentence_says_how_many_would() -> None:
    check = validation_checks(figures(1.0, 1.0, (0.03, 0.04, 0.05)), 10_000, CONF, 200)[0]
    error = math.sqrt(0.04**2 + (0.95 * 0.03) ** 2)
    needed = 10_000 * ((t.isf(0.01, 199) + norm.isf(0.2)) * error / 0.05) ** 2
    assert check.state == "fails" and check.n_needed == math.ceil(needed)
    assert f"not worse by 5% is not shown; {check.n_needed:,.0f} units of the hold-out would tell" in check.sentence


def test_two_models_that_decide_alike_are_equal() -> None:
    same = {"policy_value_dr": (value(1.0, 0.1), value(1.0, 0.1), PlanValue(0.0, math.nan, math.nan))}
    assert [one.state for one in validation_checks(same, 100, CONF, 200)] == ["passes", "passes"]
    # Without an interval a difference is not known, and what is not known does not pass.
    apart = {"policy_value_dr": (value(1.0, 0.1), value(1.5, 0.1), PlanValue(0.5, math.nan, math.nan))}
    assert validation_checks(apart, 100, CONF, 200)[0].state == "not_measured"


def test_a_floor_holds_by_the_bound_and_what_is_not_known_does_not_pass() -> None:
    conf = Retrain(floors={"policy_value_dr": 0.5, "multi_arm_qini": 0.0})
    checks = validation_checks(figures(0.6, 0.6, (0.05, 0.05, 0.001)), 1000, conf, 200)
    assert [one.state for one in checks] == ["passes", "fails", "not_measured"]
    assert checks[1].n_needed == pytest.approx(1000 * (t.isf(0.01, 199) * 0.05 / 0.1) ** 2)
    assert validation_checks({}, 1000, CONF, 200)[0].state == "not_measured"
    fires = RetrainCheck("volume", "fires", "many")
    assert retrain_decision([fires, *checks])[0] == "rejected"
    assert retrain_decision([fires, *validation_checks({}, 1000, CONF, 200)])[0] == "rejected"


def test_figures_are_read_by_version() -> None:
    row = {"metric": "policy_value_dr", "lower": 0.0, "upper": 2.0}
    rows = [
        *({"model_version": "3", "value": 1.0, **row}, {"model_version": "4", "value": 1.5, **row}),
        {"model_version": "4", **row, "value": None, "metric": "policy_value_dr_difference"},
        {"model_version": "3", **row, "value": 1.0, "metric": "policy_cost"},
    ]
    (name, (champion, new, apart)), *more = plan_figures(rows, "3", "4").items()
    assert (name, champion.value, new.value, more) == ("policy_value_dr", 1.0, 1.5, []) and math.isnan(apart.value)


def test_a_decision_goes_from_reasons_to_a_challenger() -> None:
    quiet, fires = RetrainCheck("volume", "quiet", "few"), RetrainCheck("drift", "fires", "age drifts")
    assert retrain_decision([quiet]) == ("not_needed", "there is no reason to retrain")
    assert retrain_decision([quiet, fires]) == (None, "age drifts")
    passes = RetrainCheck("champion", "passes", "it is better")
    outcome, reason = retrain_decision([quiet, fires, passes])
    assert (outcome, reason) == ("challenger", "it is better (reason to retrain: age drifts)")
    assert list(decision_lines([fires], "challenger", reason)) == [
        "drift: fires: age drifts",
        "challenger: it is better (reason to retrain: age drifts)",
    ]


def test_what_chance_does_is_flagged_and_each_reason_has_its_check() -> None:
    checks = retrain_triggers(FACTS, CONF)
    assert tuple(one.check for one in checks) == REASONS and not any(one.noise for one in checks)
    column = DriftedColumn("age", 0.02, 0.001, 0.1, 5000, 20_000, False)
    facts = replace(FACTS, columns=[column], lift={"mail": windows([0.3], 20_000)})
    noise = [one for one in retrain_triggers(facts, CONF) if one.noise]
    assert [(one.check, one.state) for one in noise] == [("drift", "quiet"), ("lift_drop", "quiet")]
    # What a decision says of it does not hang on the words of a sentence.
    words = RetrainCheck("age", "quiet", "nothing would fire")
    assert retrain_decision([words, *noise])[1].count(";") >= 2 and words.sentence not in retrain_decision([words])[1]
    unknown = [RetrainCheck(name, "not_measured", "nobody knows") for name in REASONS[:-1]]
    assert retrain_decision([*unknown, RetrainCheck("by_hand", "fires", "I want it")])[0] is None


def test_what_forbids_to_retrain_are_detectors_or_kpis() -> None:
    names = {*DETECTORS, *(kpi.name for kpi in FOUNDING_KPIS)}
    assert set(INCIDENTS) - names == {"canary"}


@pytest.mark.parametrize("verb", ["features", "nuisances", "refresh", "train", "compare"])
def test_a_decision_depends_on_all_that_its_jobs_depend_on(verb: str) -> None:
    sections = (Labels, NuisancesConf, Refresh, LearnerConf, Compare)
    keys = {job: text.split() for one in sections for job, text in getattr(one, "RUNS", {}).items()}
    mine = {*Retrain.RUNS["retrain"].split()}
    missing = [key for key in keys[verb] if key not in mine and key.partition(".")[0] not in mine]
    assert missing == (["compare"] if verb == "compare" else [])  # against what, retrain says itself


METRIC = {"name": "y", "kind": "conversion", "role": "primary"}


@pytest.mark.parametrize(
    "changes",
    [
        {"lift": {"bins": 50}},
        {"lift": {"winsorise": {"y": 0.99}}},
        {"lift": {"segments": ["region"]}},
        {"lift": {"outcomes": ["visits"]}},
        {"compare": {"points": 7}},
        {"leakage": {"allow": {"age": "known before"}}},
        {"features": [{"name": "age", "source": "event", "event": "visit", "aggregate": "count"}]},
        {"experiment": {"salt": "spring", "arms": {"none": 0.5, "mail": 0.5}, "metrics": [METRIC]}},
    ],
    ids=str,
)
def test_another_configuration_is_another_decision(changes: dict[str, object]) -> None:
    plain = {"campaign": "spring", "source": None, "roles": {"outcome": "y", "control": "none", "features": ["age"]}}
    run = [
        derive_run_id("retrain", TypeAdapter(Config).validate_python(conf)) for conf in (plain, {**plain, **changes})
    ]
    assert run[0] != run[1]


def test_thresholds_the_wrong_way_round_are_one_sentence() -> None:
    read = TypeAdapter(Retrain).validate_python
    with pytest.raises(ConfigError, match=r"wrong way round: least \(5,000\) is above volume \(1,000\).*swap them"):
        read({"least": 5000, "volume": 1000})
    for wrong in ({"margin": 0.5}, {"alpha": 0.2}, {"floors": {"lift": 0.1}}, {"metric": "auc"}, {"lift_drop": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read(wrong)


# --------------------------------------------------------------------------------------------------------------------
# Simulations with known truth: a quick variant, and one of many replications (`make simulations` prints its figures).

LONG = pytest.mark.simulation


def rate_of(hits: int, n: int) -> str:
    return f"{hits} of {n:,} ({hits / n:.2%})"


def most(rate: float, n: int) -> float:
    """So many hits of n at a rate that no more are chance: four standard errors."""
    return n * rate + 4 * math.sqrt(n * rate) + 1


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=LONG)])
def test_where_nothing_changed_a_decision_sees_a_drop_at_most_at_the_stated_rate(n: int) -> None:
    rng = np.random.default_rng(1)
    for units in (20_000, 850_000):
        hits = sum(
            any(drop.sure for _, drop in recent_drops(windows([0.0] * 28, units, rng=rng), CONF, 1, "increase"))
            for _ in range(n // 2)
        )
        print(f"nothing changed, 28 windows of {units:,} an arm: a decision sees a drop in {rate_of(hits, n // 2)}")
        assert hits <= most(CONF.alpha, n // 2)


@pytest.mark.parametrize("n", [2, pytest.param(100, marks=LONG)])
def test_where_nothing_changed_a_quarter_of_daily_decisions_has_hardly_a_false_one(n: int) -> None:
    rng, false = np.random.default_rng(2), 0
    for _ in range(n):
        days = windows([0.0] * 118, 100_000, rng=rng)
        decisions = (recent_drops(days[: 28 + day], CONF, 1, "increase") for day in range(90))
        false += any(drop.sure for drops in decisions for _, drop in drops)
    print(f"nothing changed, 90 daily decisions: one of them sees a drop in {rate_of(false, n)} of the quarters")
    assert false <= most(0.04, n)


@pytest.mark.parametrize("n", [60, pytest.param(500, marks=LONG)])
def test_a_drop_of_30_percent_is_seen_at_many_units(n: int) -> None:
    rng = np.random.default_rng(3)
    for units, since, least in ((850_000, 1, 0.5), (850_000, 2, 0.9), (850_000, 7, 0.98), (100_000, 28, 0.95)):
        hits = sum(
            any(
                drop.sure
                for _, drop in recent_drops(
                    windows([0.0] * (28 - since) + [0.3] * since, units, rng=rng), CONF, 1, "increase"
                )
            )
            for _ in range(n)
        )
        print(f"30 % gone for {since} windows of {units:,} an arm: seen in {rate_of(hits, n)}")
        assert hits >= n * least - 4 * math.sqrt(n * least * (1 - least))


def drift_reasons(rng: np.random.Generator, days: int, n: int, shift_from: int | None) -> list[bool]:
    """Whether drift is a reason on each day; 20 features of 32 bins, windows of `n` rows."""
    names, size, limits = tuple(f"x{i}" for i in range(20)), 32, DriftLimits()
    bins = ColumnBins(names, {name: np.linspace(-1, 1, size - 1) for name in names})
    usual = np.full((20, size), 1 / size)
    moved = usual.copy()
    moved[0, : size // 2] += 0.1 * 2 / size  # a distance of .1
    moved[0, size // 2 :] -= 0.1 * 2 / size

    def counts(shares: np.ndarray, total: int) -> WindowCounts:
        empty, drawn = bins.empty(), np.stack([rng.multinomial(total, one) for one in shares])
        whole = np.zeros_like(empty.counts)
        whole[:, :size] = drawn
        return WindowCounts(whole, empty.totals, empty.missing, empty.new)

    reference, history, flagged, reasons = counts(usual, 100_000), [], [], []
    for day in range(days):
        now = counts(moved if shift_from is not None and day >= shift_from else usual, n)
        season = history[-7] + history[-14] if len(history) >= 14 else None
        drift = with_triggers(window_drift(bins, reference, season, now, limits), flagged, limits)
        flagged.append([one.column for one in drift if one.state in ("drift", "trigger")])
        history.append(now)
        columns = drifted_columns({**vars(one), "name": one.column} for one in drift)
        reasons.append(state_of(retrain_triggers(replace(FACTS, columns=columns), CONF), "drift").state == "fires")
    return reasons


@pytest.mark.parametrize("n", [1, pytest.param(30, marks=LONG)])
def test_drift_is_a_reason_when_there_is_some_and_not_when_there_is_none(n: int) -> None:
    rng = np.random.default_rng(4)
    false = sum(any(drift_reasons(rng, 90, 5_000, None)) for _ in range(n))
    seen = sum(any(drift_reasons(rng, 23, 5_000, 20)[20:]) for _ in range(n))
    print(
        f"20 features, 5,000 rows a day: a false drift in {rate_of(false, n)} quarters; D = .1 seen in 3 days: {seen}"
    )
    assert false <= most(0.01, n) - 1 and seen == n


def validated(rng: np.random.Generator, n: int, rules: tuple[float, float]) -> bool:
    """Whether the new model passes on `n` units. Effects are .1 x, x uniform in -1 to 1; a rule treats x above a bound.

    Outcomes have a standard deviation of .3. Resamples are drawn from their limit law, with the errors that 200 give.
    """
    x, treated = rng.uniform(-1, 1, n), rng.random(n) < 0.5
    y = 0.1 * x * treated + rng.normal(0, 0.3, n)
    scores = np.where(treated, 2.0, -2.0) * (y - 0.05 * x)
    gains = np.stack([np.where(x > bound, scores, 0.0) for bound in rules])
    means = gains.mean(axis=1)
    draws = rng.multivariate_normal(np.zeros(2), np.cov(gains) / n, 200, method="cholesky")
    errors = draws.std(axis=0, ddof=1)
    apart = value(means[1] - means[0], float((draws[:, 1] - draws[:, 0]).std(ddof=1)))
    parts = (value(means[0], errors[0]), value(means[1], errors[1]), apart)
    return all(one.state == "passes" for one in validation_checks({"policy_value_dr": parts}, n, CONF, 200))


class PlanErrors(NamedTuple):
    """Values and errors of many replications at once."""

    value: np.ndarray
    error: np.ndarray


def gain(bound: float) -> float:
    """True gain of a rule of `validated`."""
    return 0.025 * (1 - bound**2)


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=LONG)])
def test_a_worse_model_does_not_become_the_challenger(n: int) -> None:
    rng = np.random.default_rng(5)
    by_margin = (0.0, math.sqrt(CONF.margin))
    assert gain(by_margin[1]) == pytest.approx((1 - CONF.margin) * gain(0.0))
    for units in (5_000, 20_000):
        hits = sum(validated(rng, units, by_margin) for _ in range(n))
        print(f"worse by {CONF.margin:.0%}, {units:,} units: the challenger in {rate_of(hits, n)}")
        assert hits <= most(CONF.error, n)
    hits = sum(validated(rng, 20_000, (0.0, math.sqrt(0.3))) for _ in range(n // 4))
    print(f"worse by 30 %, 20,000 units: the challenger in {rate_of(hits, n // 4)}")
    assert hits == 0


@pytest.mark.parametrize("n", [4_000, pytest.param(100_000, marks=LONG)])
def test_of_many_models_that_are_worse_by_the_margin_one_in_a_hundred_passes(n: int) -> None:
    """As above, from the limit law of both gains with errors of 200 resamples; the rule is the one of the checks."""
    rng, units, rules = np.random.default_rng(13), 20_000, (0.0, math.sqrt(CONF.margin))
    x = rng.uniform(-1, 1, 200_000)
    treats = np.stack([np.where(x > bound, 1.0, 0.0) for bound in rules])
    factor = np.linalg.cholesky(treats @ treats.T / x.size * 4 * 0.3**2 / units).T
    hits = 0
    for _ in range(0, n, 2_000):
        draws = rng.normal(size=(2_000, 200, 2)) @ factor
        means = rng.normal(size=(2_000, 2)) @ factor + [gain(bound) for bound in rules]
        champion, new = (PlanErrors(means[:, i], draws[..., i].std(axis=1, ddof=1)) for i in (0, 1))
        apart = PlanErrors(means[:, 1] - means[:, 0], (draws[..., 1] - draws[..., 0]).std(axis=1, ddof=1))
        gap, error = over_margin(champion, new, apart, CONF.margin)
        hits += int((gap - t.isf(CONF.error, 199) * error >= 0).sum())
    print(f"worse by {CONF.margin:.0%}, limit law: the challenger in {rate_of(hits, n)}")
    assert abs(hits - n * CONF.error) <= 4 * math.sqrt(n * CONF.error)


@pytest.mark.parametrize("n", [40, pytest.param(500, marks=LONG)])
def test_equal_models_pass_at_the_rate_that_their_errors_say(n: int) -> None:
    rng, z, rules = np.random.default_rng(6), t.isf(CONF.error, 199), (0.1, -0.1)
    assert gain(0.1) == gain(-0.1)
    for units in (20_000, 100_000):
        hits = sum(validated(rng, units, rules) for _ in range(n))
        # Variance of the new gain less .95 of the champion's, from a large draw.
        x = np.random.default_rng(7).uniform(-1, 1, 400_000)
        weight = np.where(x > rules[1], 1.0, 0.0) - (1 - CONF.margin) * np.where(x > rules[0], 1.0, 0.0)
        error = math.sqrt(float(np.mean(weight**2)) * 4 * (0.3**2) / units)
        expected = float(norm.cdf(CONF.margin * gain(0.1) / error - z))
        print(
            f"equal, choices differ for 10 %, {units:,} units: the challenger in {rate_of(hits, n)}, {expected:.1%} due"
        )
        assert abs(hits / n - expected) < 4 * math.sqrt(expected * (1 - expected) / n) + 0.02
