"""`uplift policy`: one decision a unit within the limits, rules counted, refusals, what the hold-out says."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.scored import LEVELS, campaign
from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Consent, Economics, Lakehouse, Lift, Limit, Policy, RolesConf, Scenario
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import policy, simulate
from uplift_spark.lake.tables import Lake
from uplift_spark.policy.allocation import Candidates, Constraint, Problem, allocate, scan_candidates
from uplift_spark.policy.planning import candidates_of, decide, policy_inputs
from uplift_spark.runtime import no_progress

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

N = 3_000
ROLES = RolesConf(outcome="visit", control="none", features=("age", "city"), dose={"none": 0, "5%": 5, "10%": 10})
BUDGET, CAPACITY = 150.0, 400
LIMITS = (Limit(units=CAPACITY, level="10%"), Limit(gap=0.05, segment="city"))


def conf(lake, economics=None, consent=None, **changes):
    return Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=ROLES,
        lakehouse=lake.lakehouse,
        economics=economics or Economics(value={"visit": 5.0}, cost={"5%": 0.1, "10%": 0.2}),
        consent=consent or Consent(),
        lift=Lift(segments=("city",)),
        policy=Policy(**{"budget": BUDGET, "limits": LIMITS, **changes}),
    )


def frames():
    holdout, scores, _ = campaign(n=N, seed=4)
    training = holdout.assign(
        split=np.where(np.arange(N) % 4 == 0, "train", "holdout"), assigned_at=pd.Timestamp("2025-01-06"),
        home=[f"home-{i // 2}" for i in range(N)],
    )  # fmt: skip
    scores = scores.assign(
        uplift_se=0.1, uplift_lower=scores.uplift - 0.05, uplift_upper=scores.uplift + 0.05, low_support=False,
        model_name="spring", model_version="1", feature_version=0, scored_at=pd.Timestamp("2025-02-01"),
    )  # fmt: skip
    return training, scores


@pytest.fixture(scope="module")
def lake(spark, tmp_path_factory):
    """A lakehouse with a training set and one run of scores."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("policy"))))
    training, scores = frames()
    lake.write("silver.training_spring", spark.createDataFrame(training), "features-1", mode="overwrite")
    lake.write("gold.uplift_scores", spark.createDataFrame(scores), "score-1")
    truth = campaign(n=N, seed=4)[2].assign(campaign="spring", outcome="visit")
    lake.write("bronze.truth", spark.createDataFrame(truth), "ingest-1")
    return lake


@pytest.fixture(scope="module")
def planned(lake, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        return policy.run(Campaign(conf(lake), lake))


@pytest.fixture(scope="module")
def inputs(lake):
    """What plans are made from, read once for the tests that need no more."""
    return policy_inputs(Campaign(conf(lake), lake))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Pictures go to the working folder."""
    monkeypatch.chdir(tmp_path)


def decisions(lake, result):
    rows = rows_of(lake, "gold.policy_decisions", run_id=result.run_id)
    return rows.set_index("unit_id").sort_index()


def offered():
    """(units, gain [N, 2], cost [N, 2], city) in the order of decisions."""
    training, scores = frames()
    wide = scores.pivot(index="unit_id", columns="treatment", values="uplift")[list(LEVELS)].sort_index()
    cost = np.tile([0.1, 0.2], (N, 1))
    return wide.index, 5 * wide.to_numpy() - cost, cost, training.set_index("unit_id").city[wide.index].to_numpy()


def test_every_unit_gets_one_decision_within_the_limits(lake, planned):
    rows = decisions(lake, planned)
    units, gain, cost, city = offered()
    assert rows.index.tolist() == units.tolist() and set(rows.treatment) == {"none", *LEVELS}
    chosen = rows.treatment.map({"none": -1, "5%": 0, "10%": 1}).to_numpy()
    mine = np.flatnonzero(chosen >= 0)
    assert rows.gain.to_numpy()[mine] == pytest.approx(gain[mine, chosen[mine]])
    assert rows.gain[rows.treatment == "none"].eq(0).all()
    assert 0.99 * BUDGET < cost[mine, chosen[mine]].sum() <= BUDGET
    assert (chosen == 1).sum() <= CAPACITY
    shares = pd.Series(chosen >= 0).groupby(city).mean()
    assert (shares - (chosen >= 0).mean()).abs().max() <= 0.05
    assert planned.details["gain"] == pytest.approx(gain[mine, chosen[mine]].sum())
    assert 0 <= planned.details["gap"] < 1e-4
    limits = rows_of(lake, "gold.policy_limits").set_index("name")
    assert limits.used["spend"] == pytest.approx(planned.details["cost"]) and limits.price["spend"] > 0


def test_the_plan_is_that_of_one_process(lake, planned):
    units, gain, cost, city = offered()
    every, here = np.ones(2), np.eye(2)
    codes = np.array([[{"x": 0, "y": 1}[c]] for c in city])
    size = np.bincount(codes[:, 0])
    limits = [Constraint("spend", BUDGET, "spend", every), Constraint("10%", CAPACITY, "units", np.array([0.0, 1.0]))]
    limits += [
        Constraint("gap", 0.05, "units", every, 0, s * (here[b] / size[b] - 1 / N)) for b in (0, 1) for s in (1, -1)
    ]
    keys = {row.unit_id: row.key for row in lake.read("silver.candidates_spring").select("unit_id", "key").collect()}
    key = np.array([keys[unit] for unit in units]).view(np.uint64)
    candidates = Candidates(gain, cost, codes, key)
    problem = Problem(tuple(limits), 2, 1, float(np.abs(gain).max()), 0.2)
    alone = allocate(problem, partial(scan_candidates, problem, candidates))
    expected = np.array([*LEVELS, "none"])[alone.of(problem, candidates)]
    assert decisions(lake, planned).treatment.tolist() == expected.tolist()


def test_the_holdout_tells_what_the_plan_brings(lake, planned):
    rows = decisions(lake, planned)
    training, _ = frames()
    held_out = training[training.split == "holdout"].set_index("unit_id")
    gain, variance = 0.0, 0.0
    for level, cost in zip(LEVELS, (0.1, 0.2), strict=True):
        n = (rows.treatment == level).sum()
        mine = held_out[rows.treatment[held_out.index] == level]
        arms = [mine.visit[mine.treatment == arm] for arm in (level, "none")]
        scale = (rows.treatment[held_out.index] == level).sum() * N / len(held_out)
        assert scale == pytest.approx(n, rel=0.1)
        gain += scale * (5 * (arms[0].mean() - arms[1].mean()) - cost)
        variance += (scale * 5) ** 2 * sum(arm.var() / len(arm) for arm in arms)
    details = planned.details
    # Units listed one by one, next to indifferent, are decided by price alone here.
    assert details["observed"] == pytest.approx(gain, rel=0.05)
    assert details["observed_upper"] - details["observed"] == pytest.approx(1.96 * variance**0.5, rel=0.05)


def test_in_clusters_the_holdout_knows_less(lake, planned):
    homes = replace(conf(lake), roles=replace(ROLES, cluster="home"))
    details = policy.run(Campaign(homes, lake), run_id="homes").details
    assert details["gain"] == planned.details["gain"] and details["observed"] == planned.details["observed"]
    half = [one["observed_upper"] - one["observed"] for one in (details, planned.details)]
    # Homes of two strangers: the same width but for the noise of 200 resamples.
    assert half[0] != half[1] and half[0] == pytest.approx(half[1], rel=0.2)


def test_the_curve_rises_with_the_budget(lake, planned):
    curve = rows_of(lake, "gold.policy_curve", run_id=planned.run_id).sort_values("budget")
    assert curve.budget.tolist() == [BUDGET * share for share in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2)]
    assert (curve.cost <= curve.budget + 1e-9).all() and (np.diff(curve.gain) >= -1e-6 * curve.gain.max()).all()
    mine, details = curve[curve.budget == BUDGET].iloc[0], planned.details
    same = ("gain", "cost", "observed", "observed_lower", "observed_upper")
    assert {name: mine[name] for name in same} == {name: details[name] for name in same}
    assert mine.treated == details["units"]["5%"] + details["units"]["10%"]


def test_a_rerun_adds_nothing(lake, planned):
    again = policy.run(Campaign(conf(lake), lake))
    assert again.details["picture"].is_file()
    assert again.run_id == planned.run_id and all(table["skipped"] for table in again.tables.values())
    assert again.details == planned.details


SCENARIOS = {
    "half": Scenario(budget=BUDGET / 2),
    "mail_only": Scenario(levels=("5%",)),
    "dear": Scenario(cost={"10%": 50.0}, limits=()),
    "nobody": Scenario(budget=0),
}


def test_scenarios_tell_what_plans_would_bring(lake, planned):
    decided = lake.version("gold.policy_decisions")
    result = simulate.run(Campaign(replace(conf(lake), scenarios=SCENARIOS), lake))
    assert lake.version("gold.policy_decisions") == decided
    rows = rows_of(lake, "gold.policy_scenarios").set_index(["scenario", "treatment"])
    whole = rows.xs("any", level="treatment")
    assert set(whole.index) == {"plan", *SCENARIOS}
    same = ("gain", "cost", "gap", "observed", "observed_lower", "observed_upper")
    assert {name: whole.loc["plan", name] for name in same} == pytest.approx({n: planned.details[n] for n in same})
    assert rows.units["plan"].drop("any").to_dict() == {n: planned.details["units"][n] for n in LEVELS}
    # The truth of the plan, from its decisions one by one.
    truth = campaign(n=N, seed=4)[2].set_index(["unit_id", "treatment"]).effect
    chosen = decisions(lake, planned).query("treatment != 'none'")
    expected = 5 * truth[list(zip(chosen.index, chosen.treatment, strict=True))].sum() - chosen.cost.sum()
    assert whole.true_gain["plan"] == pytest.approx(expected)
    assert 0.99 * BUDGET / 2 < whole.cost["half"] <= BUDGET / 2 + 1e-9 and whole.gain["half"] < whole.gain["plan"]
    assert rows.loc["mail_only"].index.tolist() == ["5%", "any"] and whole.gap.max() < 1e-3
    assert "10%" not in rows.loc["dear"].index and whole.units["dear"] > 0
    assert whole.loc["nobody", ["units", "cost", "gain", "true_gain", "observed"]].tolist() == [0, 0, 0, 0, 0]
    assert "half: gain" in result.details["summary"] and "in truth" in result.details["summary"]
    assert "nobody is treated" in result.details["summary"]


@pytest.mark.slow
def test_scenarios_told_again_add_nothing(lake, planned):
    result = simulate.run(Campaign(replace(conf(lake), scenarios=SCENARIOS), lake))
    again = simulate.run(Campaign(replace(conf(lake), scenarios=SCENARIOS), lake))
    assert again.tables["gold.policy_scenarios"]["skipped"] and again.details == result.details


def test_without_truth_there_is_no_true_gain(lake, planned, inputs):
    staged = lake.read("silver.candidates_spring", planned.tables["silver.candidates_spring"]["version"])
    plan = decide(inputs, staged, no_progress, budgets=())
    lines = pd.DataFrame(simulate.outcome_of("blind", plan, None))
    assert lines.treatment.tolist() == ["5%", "10%", "any"] and lines.true_gain.isna().all()
    assert lines.units.iloc[-1] == lines.units.iloc[:-1].sum() > 0


@pytest.mark.slow
def test_a_scenario_whose_limits_cannot_be_kept_writes_nothing_to_gold(lake, planned):
    before = lake.version("gold.policy_scenarios") if lake.exists("gold.policy_scenarios") else None
    scenarios = {"many": Scenario(limits=(Limit(units=N + 1, least=True),))}
    with pytest.raises(ConfigError, match="1 more than there are"):
        simulate.run(Campaign(replace(conf(lake), scenarios=scenarios), lake))
    assert (lake.version("gold.policy_scenarios") if lake.exists("gold.policy_scenarios") else None) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exclude": {"old": "agee > 3"}},
            "policy.exclude.old='agee > 3' must be an expr.*: there is no column 'agee'",
        ),
        ({"exclude": {"old": "age"}}, "policy.exclude.old='age' is a double, neither true nor false"),
        (
            {"bound": "lower", "cost_most": {"5%": "agee"}},
            "policy.cost_most.5%='agee' must be an expr.*: there is no column 'agee'",
        ),
    ],
)
def test_sql_over_no_columns_is_refused_before_anything_is_written(lake, inputs, changes, message):
    with pytest.raises(ConfigError, match=message):
        candidates_of(replace(inputs, campaign=Campaign(conf(lake, **changes), lake)).checked())


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Limit(units=5, segment="city x age", bucket="x"), "= 'x'; there are x x 1: <= .*, y x 4: > "),
        (Limit(units=2000, least=True), "least units by 500"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_before_any_decision(lake, planned, limit, message):
    before = lake.version("gold.policy_decisions")
    with pytest.raises(ConfigError, match=message):
        policy.run(Campaign(conf(lake, limits=(limit,)), lake))
    assert lake.version("gold.policy_decisions") == before


@pytest.mark.slow
def test_costs_may_differ_by_unit_and_the_lower_bound_may_decide(lake, planned, inputs):
    careful = {"bound": "lower", "limits": ()}
    result = policy.run(Campaign(conf(lake, **careful, cost={"5%": "0.1 + coalesce(age, 40) / 1000"}), lake))
    rows = decisions(lake, result)
    age = frames()[0].set_index("unit_id").age[rows.index].fillna(40)
    treated = rows.treatment == "5%"
    assert rows.cost[treated].to_numpy() == pytest.approx(0.1 + age[treated].to_numpy() / 1000)
    assert rows.cost.sum() <= BUDGET and result.details["gain"] < planned.details["gain"]
    dear = policy.run(Campaign(conf(lake, **careful, cost={"5%": "age"}, cost_most={"5%": "0.3", "10%": "0.5"}), lake))
    assert set(decisions(lake, dear).query("treatment == '5%'").cost) == {0.3}
    assert 0.98 * BUDGET < dear.details["cost"] <= BUDGET + 1e-9 and dear.details["gain"] < result.details["gain"]
    with pytest.raises(ConfigError, match=r"set policy\.bound to lower"):
        conf(lake, cost_most={"5%": "0.3"})
    missing = replace(inputs, campaign=Campaign(conf(lake, limits=(), cost={"5%": "age / 1000"}), lake))
    with pytest.raises(DataError, match="60 candidates have a cost"):
        decide(missing, candidates_of(missing), no_progress)


def test_a_plan_without_limits_treats_everyone_whom_it_pays_to_treat(lake, planned):
    result = policy.run(Campaign(conf(lake, budget=None, limits=()), lake))
    _, gain, _, _ = offered()
    assert result.details["gain"] == pytest.approx(np.maximum(gain.max(axis=1), 0).sum())
    assert np.isfinite(result.details["observed"]) and result.details["gap"] < 1e-9


def test_rules_leave_units_out_and_are_counted(lake, planned):
    population = range(1000)
    consent = pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in population], "purpose": "marketing", "granted": [i >= 100 for i in population],
            "changed_at": pd.Timestamp("2025-01-01"), "known_at": pd.Timestamp("2025-01-01"), "source": "test",
        }
    )  # fmt: skip
    sends = pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in (200, 200, 200, 201, 201)], "campaign": "spring",
            "delivery_id": list("abbcd"), "status": ["sent", "delivered", "delivered", "sent", "failed"],
            "delivered_at": pd.Timestamp("2025-01-02"), "known_at": pd.Timestamp("2025-01-02"), "event_id": None,
            "source": "test",
        }
    ).astype({"event_id": object})  # fmt: skip
    lake.write("bronze.consent", lake.spark.createDataFrame(consent), "consent")
    lake.write("bronze.delivery", lake.spark.createDataFrame(sends.replace({np.nan: None}), _SENDS), "sends")
    config = conf(
        lake,
        limits=(),
        exclude={"old": "coalesce(age > 55, false)"},
        contacts=2,
        global_holdout=0.2,
        consent=Consent(required=False),
    )
    messages = []
    result = policy.run(Campaign(config, lake), progress=messages.append)
    rows = decisions(lake, result)
    reasons = rows.reason.value_counts().to_dict()
    age = frames()[0].set_index("unit_id").age[rows.index]
    withdrew = rows.index.isin([f"u{i}" for i in range(100)])
    assert reasons["withdrew"] == 100 and (rows.reason[withdrew] == "withdrew").all()
    assert (rows.reason == "rule old").eq((age > 55) & ~withdrew).all()
    assert rows.reason[["u200", "u201"]].eq("contacted often enough").tolist() == [not age["u200"] > 55, False]
    assert 0.17 < reasons["kept out at random"] / (N - 100) < 0.23
    assert result.details["excluded"] == {r: n for r, n in sorted(reasons.items()) if "within the limits" not in r}
    assert rows.treatment[~rows.reason.str.contains("within the limits")].eq("none").all()
    assert any("100 units left out: withdrew" in line for line in messages)


def test_units_for_which_a_rule_is_not_known_are_left_out_and_counted(lake, inputs):
    campaign_ = Campaign(conf(lake, limits=(), exclude={"young": "age < 30", "x": "city = 'x' AND age > 60"}), lake)
    rows = candidates_of(replace(inputs, campaign=campaign_)).select("unit_id", "excluded").toPandas()
    reason, known = rows.set_index("unit_id").excluded, frames()[0].set_index("unit_id")
    age = known.age[reason.index]
    assert age.isna().sum() == 60
    assert (reason == "rule young").eq(age < 30).all() and (reason == "rule young: not known").eq(age.isna()).all()
    assert (reason == "rule x").eq((known.city[reason.index] == "x") & (age > 60)).all()


_SENDS = (
    "unit_id string, campaign string, delivery_id string, status string, delivered_at timestamp, "
    "known_at timestamp, event_id string, source string"
)
