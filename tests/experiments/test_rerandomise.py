"""Re-randomisation: deals that are accepted, refusals, and by simulation what it saves and what its test holds."""

from __future__ import annotations

import doctest
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import rerandomise
from uplift_spark.experiments.assignment import Experiment, ProgrammeHoldout, assign
from uplift_spark.experiments.frames import ReadoutColumns, readout
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.protocol import ReadingOptions, designed, readout_design
from uplift_spark.experiments.readout import MetricReadout, ReadoutMetric, TrialSums, _metric_rows
from uplift_spark.experiments.rerandomise import BalanceRule
from uplift_spark.jobs import assign as assign_job
from uplift_spark.jobs import readout as readout_job
from uplift_spark.jobs.assign import UnitsToAssign
from uplift_spark.sections.experiment import ExperimentConf, ExperimentMetric, RerandomiseConf
from uplift_spark.stats.moments import CrossMoments

RULE = BalanceRule(("age", "before", "visits"), 0.1)
HALVES = Experiment("spring-2026", {"off": 0.5, "on": 0.5})
SPEND = ReadoutMetric("spend", "spend", role="primary")
CUPED = ReadoutMetric("spend, adjusted", "spend", covariates=RULE.covariates)


def units(seed: int, n: int = 200) -> pd.DataFrame:
    """Correlated covariates, one of them skewed, that explain about .6 of the outcome's variance."""
    rng = np.random.default_rng([26, seed])
    shared = rng.normal(size=n)
    frame = pd.DataFrame({"unit_id": [f"u{k}" for k in range(n)], "age": 40 + 10 * (shared + rng.normal(size=n))})
    frame["before"] = 20 + 8 * (0.5 * shared + rng.normal(size=n))
    frame["visits"] = rng.gamma(2, 2, n)
    explained = 0.05 * frame["age"] + 0.1 * frame["before"] + 0.2 * frame["visits"]
    return frame.assign(spend=explained + rng.normal(0, 0.94, n))


def dealt(frame: pd.DataFrame, salt: str, rule: BalanceRule | None = RULE, effect: float = 0.0) -> pd.DataFrame:
    one = replace(HALVES, salt=salt)
    if rule is not None:
        one, _ = rule.balanced(frame["unit_id"], frame[list(rule.covariates)].to_numpy(), one)
    arm = assign(frame["unit_id"], one)["treatment"]
    return frame.assign(treatment=arm, spend=frame["spend"] + effect * (arm == "on"))


def test_the_same_units_end_in_the_same_deal_in_any_order() -> None:
    frame = units(1)
    x = frame[list(RULE.covariates)]
    one, deals = RULE.balanced(frame["unit_id"], x.to_numpy(), HALVES)
    assert one.salt == (f"spring-2026.{deals}" if deals else "spring-2026") and one.arms == HALVES.arms
    mixed = frame.sample(frac=1, random_state=3)
    assert RULE.balanced(mixed["unit_id"], mixed[list(RULE.covariates)].to_numpy(), HALVES) == (one, deals)
    scaled = x.to_numpy() * [1000.0, 0.001, -1.0] + [5.0, -3.0, 0.0]  # the distance knows no units of measure
    assert RULE.balanced(frame["unit_id"], scaled, HALVES) == (one, deals)


def test_distances_are_those_of_the_textbook() -> None:
    frame = units(2, 60)
    x = frame[list(RULE.covariates)].to_numpy()
    treated = np.arange(60) % 3 == 0
    gap = x[treated].mean(axis=0) - x[~treated].mean(axis=0)
    whole = np.cov(x.T) * (1 / 20 + 1 / 40)
    ours = rerandomise.mahalanobis(rerandomise._whitened(x, RULE.covariates), treated)
    assert ours == pytest.approx(gap @ np.linalg.solve(whole, gap), rel=1e-9)


@pytest.mark.parametrize("accept", [0.02, 0.1, 0.5])
def test_deals_are_accepted_as_often_as_the_rule_says(accept: float) -> None:
    frame, rule = units(3, 400), BalanceRule(RULE.covariates, accept)
    x = rerandomise._whitened(frame[list(RULE.covariates)].to_numpy(), RULE.covariates)
    rng, deals = np.random.default_rng(5), 20_000
    share = np.mean([rerandomise.mahalanobis(x, one) <= rule.most for one in rng.random((deals, 400)) < 0.5])
    assert share == pytest.approx(accept, abs=5 * np.sqrt(accept * (1 - accept) / deals))


def test_tails_are_those_of_simulated_effects() -> None:
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(2_000_000, 3))
    inside = normal[(normal**2).sum(axis=1) <= RULE.most]
    assert inside[:, 0].var() == pytest.approx(RULE.variance_left, rel=0.02)
    for explained in (0.0, 0.4, 0.9):
        effect = np.sqrt(1 - explained) * rng.normal(size=len(inside)) + np.sqrt(explained) * inside[:, 0]
        half = RULE.quantile(0.05, explained)
        assert (np.abs(effect) >= half).mean() == pytest.approx(0.05, abs=0.003), explained
        assert float(RULE.tail(np.array(half), explained)) == pytest.approx(0.05, abs=1e-9)
    assert RULE.quantile(0.05, 0.0) == pytest.approx(1.959964, abs=1e-5)
    one = BalanceRule(("age",), 0.1)
    assert one.quantile(0.05, 0.5) < 1.5


def test_where_covariates_adjust_the_usual_interval_stands() -> None:
    frame = dealt(units(4), "spring-4")
    design = ReadoutDesign({"off": 0.5, "on": 0.5})
    columns = ReadoutColumns(balance=RULE.covariates)
    usual = readout(frame, [SPEND, CUPED], design, columns).table().set_index("metric")
    ours = readout(frame, [SPEND, CUPED], replace(design, balanced=RULE), columns).table().set_index("metric")
    assert (ours["effect"] == usual["effect"]).all() and (ours["error"] == usual["error"]).all()
    width = (ours["upper"] - ours["lower"]) / (usual["upper"] - usual["lower"])
    assert width["spend, adjusted"] == pytest.approx(1, abs=1e-6) and 0.6 < width["spend"] < 0.85


HELD = replace(HALVES, programme=ProgrammeHoldout("shop", 0.1))


@pytest.mark.parametrize(
    ("design", "part"),
    [
        (replace(HALVES, ramp=0.5), "ramp"),
        (replace(HALVES, stratified=True), "strata"),
        (replace(HALVES, clustered=True), "clusters"),
        (HELD, "holdout"),
        (Experiment("three", {"a": 0.4, "b": 0.3, "c": 0.3}), "third arm"),
    ],
)
def test_designs_that_cannot_be_dealt_anew(design: Experiment, part: str) -> None:
    with pytest.raises(ConfigError, match=f"for units that are all known at once: drop its {part}, or the re-rand"):
        RULE.balanced(["a"], np.zeros((1, 3)), design)


def test_what_cannot_be_balanced() -> None:
    frame = units(5, 30)
    x = frame[list(RULE.covariates)].to_numpy()
    gaps, same, twice = x.copy(), x.copy(), x.copy()
    gaps[3, 1], same[:, 2], twice[:, 2] = np.nan, 7.0, x[:, 0] + x[:, 1]
    cases = [
        (gaps, "column 'before' is missing or not finite in 1 rows"),
        (same, "column 'visits' is the same in all rows, so every deal balances it"),
        (twice, "age, before, visits follow from each other in all rows: leave one of them out"),
    ]
    for wrong, sentence in cases:
        with pytest.raises(DataError, match=sentence):
            RULE.balanced(frame["unit_id"], wrong, HALVES)
    with pytest.raises(
        DataError, match=r"none of 2 deals of spring-2026 is accepted, where 0\.0 are due: raise the draws"
    ):
        BalanceRule(RULE.covariates, 1e-6, 2).balanced(frame["unit_id"], x, HALVES)
    with pytest.raises(DataError, match="4 units are too few to balance 3 covariates"):
        RULE.balanced(frame["unit_id"][:4], x[:4], HALVES)
    for parts, sentence in (
        (((), 0.1), "name at least one"),
        ((("a",), 1.0), "between 0 and 1"),
        ((("a",), 0.1, 0), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            BalanceRule(*parts)
    with pytest.raises(ConfigError, match="a re-randomised trial has two arms"):
        ReadoutDesign({"a": 0.4, "b": 0.3, "c": 0.3}, balanced=RULE)
    with pytest.raises(ConfigError, match="column 'age', by which arms were balanced, is not there"):
        readout(dealt(frame, "s-5"), [SPEND], ReadoutDesign(HALVES.arms, balanced=RULE))


# --------------------------------------------------------------------------------------------------------------------
# Known truth.


def read(frame: pd.DataFrame, rule: BalanceRule | None) -> MetricReadout:
    """The metric's row of a readout, without the checks: by chance they refuse some of thousands of trials."""
    names = ("spend", *RULE.covariates)
    arm = (frame["treatment"] == "on").to_numpy(int)
    moments = CrossMoments.of(frame[[*names]].to_numpy(), arm, (2, 1))
    return _metric_rows(TrialSums(("off", "on"), ("all",), names, moments), [SPEND], 0.05, rule)[0]


def replicated(runs: int, effect: float) -> pd.Series:
    """Over trials with units of their own: level or power of the test, cover, variance by both ways to deal."""
    lines = []
    for run in range(runs):
        frame = units(100 + run)
        balanced = dealt(frame, f"s-{run}", effect=effect)
        one, usual = read(balanced, RULE), read(balanced, None)
        plain = read(dealt(frame, f"plain-{run}", None, effect), None)
        lines.append(
            {
                **{"effect": one.effect, "plain": plain.effect, "rejects": one.p_value <= 0.05},
                **{"cover": one.lower <= effect <= one.upper, "usual_cover": usual.lower <= effect <= usual.upper},
                **{"rejects_usual": usual.p_value <= 0.05, "rejects_plain": plain.p_value <= 0.05},
            }
        )
    frame = pd.DataFrame(lines)
    both = frame[["effect", "plain"]].var()
    return pd.concat([frame.astype(float).mean(), pd.Series({"variance_left": both["effect"] / both["plain"]})])


def explained_share() -> float:
    """Share of the outcome's variance that the covariates explain, of very many units."""
    frame = units(0, 200_000)
    x = np.column_stack([np.ones(len(frame)), frame[list(RULE.covariates)]])
    rest = frame["spend"] - x @ np.linalg.lstsq(x, frame["spend"], rcond=None)[0]
    return float(1 - rest.var() / frame["spend"].var())


@pytest.mark.simulation
def test_the_test_has_its_level_and_the_variance_falls_as_theory_says() -> None:
    runs = 1000
    none, some = replicated(runs, 0.0), replicated(runs, 0.35)
    theory = 1 - (1 - RULE.variance_left) * explained_share()
    print(pd.DataFrame({"no effect": none, "effect .35": some}).round(4).to_string(), f"\ntheory {theory:.3f}")
    assert 0.04 <= none["rejects"] <= 0.06 and 0.94 <= none["cover"] <= 0.96, none
    assert 0.94 <= some["cover"] <= 0.96 and some["rejects"] > some["rejects_plain"] + 0.1, some
    assert none["usual_cover"] > 0.98  # the usual interval is too wide
    assert none["variance_left"] == pytest.approx(theory, abs=0.06)


def test_a_quick_simulation() -> None:
    """Bounds that 60 sound trials exceed about once in a million runs."""
    some = replicated(60, 0.35)
    assert some["cover"] >= 0.75 and some["effect"] == pytest.approx(0.35, abs=0.13)


def test_examples() -> None:
    assert doctest.testmod(rerandomise).failed == 0


# --------------------------------------------------------------------------------------------------------------------
# By the verbs.

TRIAL = ExperimentConf(
    *("spring-2026", {"off": 0.5, "on": 0.5}, (ExperimentMetric("spend", "revenue", "primary"),)),
    balance=RULE.covariates,
    rerandomise=RerandomiseConf(0.1, 1000),
)
CONFIG = Config("spring", None, RolesConf("spend", "off", ("age",)), experiment=TRIAL)
AT = datetime(2026, 3, 2, tzinfo=UTC)


def test_configurations() -> None:
    assert readout_design(CONFIG).balanced == replace(RULE, draws=1000)
    one = designed(CONFIG)
    assert one.balanced == "the best 0.1 of deals, of at most 1000, by age, before, visits"
    assert Experiment.of_text(one.text) == one
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ramp": 0.5}, "deals all units at once, by their ids, and is read once: drop experiment.ramp"),
        ({"strata": ("region",)}, "drop experiment.strata"),
        ({"plan": "anytime", "units": 100.0}, "drop experiment.plan"),
        ({"balance": ()}, "needs experiment.balance: name the columns"),
        ({"arms": {"off": 0.4, "a": 0.3, "b": 0.3}}, "balances two arms, and there are 3"),
    ]
    for changes, sentence in cases:
        with pytest.raises(ConfigError, match=sentence):
            replace(TRIAL, **changes)


@pytest.mark.slow
def test_the_verbs_deal_and_read(lake, tmp_path) -> None:
    frame, path = units(6), tmp_path / "users.csv"
    frame.drop(columns="spend").to_csv(path, index=False)
    table = str(tmp_path / "units.parquet")
    config = replace(CONFIG, experiment=replace(TRIAL, table=table), lakehouse=lake.lakehouse)
    campaign = Campaign(config, lake)
    first = assign_job.run(campaign, units=UnitsToAssign(str(path), AT))
    arms = lake.read("bronze.assignment").toPandas().set_index("unit_id")
    wanted = dealt(frame, "spring-2026").set_index("unit_id")
    assert arms["treatment"].to_dict() == wanted["treatment"].to_dict() and set(arms["propensity"]) == {0.5}
    assert "accepted after" in first.details["deal"]
    assert assign_job.run(campaign, units=UnitsToAssign(str(path), AT)).tables == {}
    more = tmp_path / "more.csv"
    pd.concat([frame, units(7, 3).assign(unit_id=["x", "y", "z"])]).to_csv(more, index=False)
    with pytest.raises(ConfigError, match="3 units have no arm, and those of campaign spring were dealt together"):
        assign_job.run(campaign, units=UnitsToAssign(str(more), AT))
    other = replace(config, experiment=replace(TRIAL, rerandomise=RerandomiseConf(0.2, 1000)))
    with pytest.raises(ConfigError, match="spring-2026 has other balanced than units were assigned with"):
        assign_job.run(Campaign(other, lake), units=UnitsToAssign(str(path), AT))
    rows = dealt(frame, "spring-2026", effect=0.5)
    rows.assign(assigned_at=pd.Timestamp("2026-03-02")).astype({"assigned_at": "datetime64[us]"}).to_parquet(table)
    readout_job.run(campaign, reading=ReadingOptions(datetime(2026, 4, 13, tzinfo=UTC), final=True))
    ours = lake.read("gold.readout").toPandas().iloc[0]
    columns = ReadoutColumns(balance=RULE.covariates)
    theirs = readout(rows, [SPEND], ReadoutDesign(HALVES.arms, balanced=RULE), columns).metrics[0]
    for name in ("effect", "error", "lower", "upper", "p_value"):
        assert float(ours[name]) == pytest.approx(getattr(theirs, name), rel=1e-9), name
