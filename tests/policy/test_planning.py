"""What a plan is made from: limits, costs and scenarios that cannot be are refused before Spark does any work."""

from types import SimpleNamespace

import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lift, Limit, Policy, RolesConf, Scenario
from uplift_spark.errors import ConfigError
from uplift_spark.jobs import simulate
from uplift_spark.policy.planning import PolicyInputs

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
