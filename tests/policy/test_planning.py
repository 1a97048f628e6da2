"""What a plan is made from: limits, costs and scenarios that cannot be are refused before Spark does any work."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lift, Limit, Policy, RolesConf, Scenario
from uplift_spark.errors import ConfigError
from uplift_spark.jobs import simulate
from uplift_spark.policy.planning import PolicyInputs, PolicyResult, plan_text
from uplift_spark.policy.spark import Observed, Point

LEVELS = ("5%", "10%")
ROLES = RolesConf(outcome="visit", control="none", features=("age", "city"), dose={"none": 0, "5%": 5, "10%": 10})


def conf(economics=None, scenarios=None, **changes):
    return Config(
        campaign="spring",
        source={"kind": "simulation"},
        roles=ROLES,
        economics=economics or Economics(value={"visit": 5.0}, cost={"5%": 0.1, "10%": 0.2}),
        lift=Lift(segments=("city",)),
        policy=Policy(**{"budget": 150.0, "limits": (Limit(units=400, level="10%"),), **changes}),
        scenarios=scenarios or {},
    )


def inputs_of(config):
    """Of a training set that has these columns, and no rows to read."""
    training = SimpleNamespace(columns=["unit_id", "treatment", "propensity", "age", "city", "visit", "split"])
    return PolicyInputs(Campaign(config), None, None, training, LEVELS, None, None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"economics": Economics(value={"visit": 5.0}, cost={"5%": 0.1})}, "cost of '10%' is not known"),
        ({"economics": Economics(cost={"5%": 0.1, "10%": 0.2})}, "value of outcome 'visit' is not known"),
        ({"economics": Economics(value={"visit": 5.0}, cost={"5%": -0.1, "10%": 0.2})}, "cost of 5% is negative"),
        ({"limits": (Limit(units=5, level="20%"),)}, "level '20%' is none of 5%, 10%"),
        ({"limits": (Limit(units=5, segment="town", bucket="x"),)}, "segment 'town' is no column"),
        ({"limits": (Limit(gap=0.1, segment="city x town"),)}, "segment 'town' is no column"),
        ({"cost": {"7%": "1"}}, "none of the levels 5%, 10%"),
        ({"bound": "lower", "cost_most": {"7%": "1"}}, r"policy.cost_most names \['7%'\], none of the levels 5%, 10%"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        inputs_of(conf(**changes)).checked()


@pytest.mark.parametrize(
    ("scenarios", "message"),
    [
        ({}, "no scenario: name some"),
        ({"plan": Scenario(budget=1)}, "choose another name"),
    ],
)
def test_scenarios_need_names_of_their_own(scenarios, message):
    with pytest.raises(ConfigError, match=message):
        simulate.scenarios_of(Campaign(conf(scenarios=scenarios)))  # neither lakehouse nor registry is touched


@pytest.mark.parametrize(
    ("scenarios", "message"),
    [
        ({"sms": Scenario(levels=("5%", "sms"))}, r"scenario 'sms' names \['sms'\], none of the scored levels 5%, 10%"),
        ({"sms": Scenario(cost={"sms": 1})}, r"scenario 'sms' names \['sms'\]"),
        (
            {"rich": Scenario(value={"visits": 9})},
            r"scenario 'rich' gives \['visits'\] a value, but plans are made for visit",
        ),
        ({"north": Scenario(limits=(Limit(units=5, segment="region", bucket="north"),))}, "'region' is no column"),
    ],
)
def test_scenarios_that_cannot_be_are_refused_before_any_plan(scenarios, message):
    with pytest.raises(ConfigError, match=message):
        simulate.beside_plan(inputs_of(conf(scenarios=scenarios)))


def test_scenarios_stand_beside_the_plan_each_with_its_own_money_and_levels():
    named = {"dear": Scenario(cost={"10%": 50.0}, limits=()), "mail_only": Scenario(levels=("5%",))}
    plans = simulate.beside_plan(inputs_of(conf(scenarios=named)).checked())
    assert list(plans) == ["plan", "dear", "mail_only"]
    assert {name: plan.levels for name, plan in plans.items()} == {"plan": LEVELS, "dear": LEVELS, "mail_only": ("5%",)}
    assert [plan.config.economics.cost["10%"] for plan in plans.values()] == [0.2, 50.0, 0.2]
    assert [len(plan.limits) for plan in plans.values()] == [2, 1, 1]  # the budget, and 10 % to 400 units


DETAILS = {
    "by_level": {
        "5%": {"n": 12_000, "gain": 869.4, "cost": 1200.0},
        "[b]10%": {"n": 30, "gain": 9.5, "cost": 6.0},
        "none": {"n": 7, "gain": 0.0, "cost": 0.0},
    },
    "excluded": {"withdrew": 1_003}, "units": {"5%": 12_000, "[b]10%": 30, "none": 7},
    "gain": 878.9, "cost": 1206.0, "gap": 1e-6,
    "observed": 780.0, "observed_lower": 650.0, "observed_upper": 910.0,
}  # fmt: skip


def test_at_its_own_budget_the_curve_is_the_plan_and_not_a_samples():
    prices = np.array([2.0])
    points = [Point(600.0, np.array([3.0]), 500.0, 599.0, 6_000.0), Point(1206.0, prices, 900.0, 1206.0, np.nan)]
    known = Observed(*(np.array([1.0, 780.0, 780.0]) + end for end in (0, -130, 130)))
    inputs = SimpleNamespace(config=SimpleNamespace(roles=ROLES))
    result = PolicyResult(inputs, None, None, SimpleNamespace(prices=prices), {}, points, known, 12_037)
    curve = result.curve_table(DETAILS)
    assert curve.iloc[0].tolist() == [600.0, 6_000.0, 599.0, 500.0, 1.0, -129.0, 131.0]
    assert curve.iloc[1].tolist() == [1206.0, 12_030.0, 1206.0, 878.9, 780.0, 650.0, 910.0]


def test_a_plan_is_told_in_tables_and_sentences():
    limits = pd.DataFrame(
        [("spend", 1206.0, np.nan, 1206.0, 0.35), ("least units", np.nan, 400.0, 12_030.0, 0.0)],
        columns=["name", "most", "least", "used", "price"],
    )
    lines = [" ".join(line.split()) for line in plan_text(DETAILS, limits, "money", "none").splitlines()]
    for line in (
        "5% 12,000 869.4 1,200", "[b]10% 30 9.5 6", "none (no treatment) 7 0 0", "all 12,037 878.9 1,206",
        "withdrew 1,003", "spend 1,206 at most 1,206 0.35", "least units 12,030 at least 400 0",
        "By the outcomes of the hold-out it brings 780, 95 % interval 650 to 910.",
    ):  # fmt: skip
        assert line in lines
    few = plan_text(DETAILS | {"observed": np.nan, "excluded": {}}, limits[:0], "visit", "none")
    assert "Too few units" in few and "Limits" not in few and "left out" not in few and "{" not in few
