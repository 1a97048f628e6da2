"""Canaries and rollbacks on record: whose plan is whose, who was the champion before, units of a mixed plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pandas as pd
import pytest

from uplift_spark.config import Config, RegistryConf
from uplift_spark.errors import ConfigError, ConflictError
from uplift_spark.governance.rollout import (
    CanaryLog,
    CanaryRecord,
    PlanRun,
    check_unpinned,
    earlier_champion,
    other_champion,
    was_champion,
    with_challenger,
)

NOW = datetime(2025, 3, 1, tzinfo=UTC)
CONF = Config(campaign="spring", source=None, roles={"outcome": "y", "control": "none", "features": ["age"]})
RECORD = CanaryRecord("spring-canary-2-1", 1, NOW, NOW, "promoted", "promote", "all checks hold", "1", "2", 0.05)
NO_LOG = SimpleNamespace(exists=lambda table: False)


def version(number):
    return SimpleNamespace(name="spring", version=number)


def test_the_version_before_the_champion_is_the_one_that_its_canary_replaced():
    assert earlier_champion(NO_LOG, [RECORD], version(2)) == 1
    later = replace(RECORD, champion="2", challenger="5")
    assert earlier_champion(NO_LOG, [RECORD, later], version(5)) == 2
    assert earlier_champion(NO_LOG, [RECORD], version(3)) is None  # it came by training, and there is no log
    assert earlier_champion(NO_LOG, [replace(RECORD, state="rolled back")], version(2)) is None
    assert was_champion(NO_LOG, [RECORD], version(1)) and not was_champion(NO_LOG, [RECORD], version(7))


def test_a_canary_is_as_old_as_the_first_plan_of_its_slices():
    lake = SimpleNamespace(claim=lambda *_: None, exists=lambda table: False)
    log, hour = CanaryLog(CONF, lake, NOW + timedelta(days=9)), timedelta(hours=1)
    running = replace(RECORD, state="running", at=NOW)
    log.records = [
        replace(running, canary="spring-canary-1-1", plan="earlier", at=NOW - 5 * hour),
        running,
        replace(running, plan="a", at=NOW + 3 * hour),
        replace(running, plan="b", at=NOW + 5 * hour),
        replace(running, plan="a", at=NOW + 7 * hour),
    ]
    assert log.plans(RECORD.canary) == {"a": NOW + 3 * hour, "b": NOW + 5 * hour}
    assert log.since(RECORD.canary) == NOW + 3 * hour and log.since("spring-canary-9-3") is None
    clock = CanaryLog(CONF, lake)
    assert clock.now < clock.now  # each record has the time at which it is written


@pytest.mark.parametrize(
    ("state", "champion", "other"),
    [
        ("running", 1, False),
        ("running", 2, True),
        ("running", 3, True),
        ("promoting", 2, False),
        ("promoting", 3, True),
        ("rolling back", 2, True),
        ("running", None, False),
    ],
)
def test_a_champion_that_a_canary_did_not_make_is_another_one(state, champion, other):
    registry = SimpleNamespace(known=lambda name: None if champion is None else version(champion))
    found = other_champion(CONF, registry, replace(RECORD, state=state))
    assert (None if found is None else found.version) == (champion if other else None)


def test_who_is_overtaken_does_nothing_more(lake, monkeypatch):
    ours, theirs = CanaryLog(CONF, lake, NOW), CanaryLog(CONF, lake, NOW)
    ours.refuse_overtaken()
    ours.add(RECORD)
    ours.refuse_overtaken()
    with pytest.raises(ConflictError, match="another `uplift canary` or `uplift rollback` of campaign spring runs"):
        theirs.refuse_overtaken()
    # Somebody writes between our record and our claim to be the next one, which then is of their record.
    ours, claim = CanaryLog(CONF, lake, NOW), lake.claim

    def meanwhile(*of):
        monkeypatch.setattr(lake, "claim", claim)
        CanaryLog(CONF, lake, NOW).add(replace(RECORD, reason="meanwhile"))
        return claim(*of)

    monkeypatch.setattr(lake, "claim", meanwhile)
    with pytest.raises(ConflictError, match="of campaign spring runs"):
        ours.add(RECORD)


def test_a_version_that_the_configuration_names_cannot_be_rolled_back():
    check_unpinned(CONF, "rollback")
    with pytest.raises(ConfigError, match=r"registry\.version names version 3, .* leave it out for `uplift rollback`"):
        check_unpinned(replace(CONF, registry=RegistryConf(version=3)), "rollback")


def test_a_mixed_plan_is_nobodys():
    assert PlanRun("policy-1", frozenset({"1"})).is_by(1)
    assert not PlanRun("canary-1", frozenset({"1", "2"})).is_by(1)


def test_a_mixed_plan_has_every_unit_once(spark):
    def plan(units, by):
        return spark.createDataFrame(pd.DataFrame({"unit_id": units, "treatment": by, "model_version": by}))

    champion = plan(["a", "b", "c", "d"], "1")
    challenger = plan(["a", "b", "x"], "2").select("model_version", "treatment", "unit_id")
    slice_ = spark.createDataFrame([("a",), ("c",), ("x",)], "unit_id string")
    rows = with_challenger(champion, challenger, slice_).orderBy("unit_id").collect()
    # c is in the slice and the challenger decides nothing about it; x is in nobody's plan.
    assert [tuple(row) for row in rows] == [("a", "2", "2"), ("b", "1", "1"), ("c", "1", "1"), ("d", "1", "1")]
