"""Canaries and rollbacks on record: whose plan is whose, who was the champion before, units of a mixed plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
import pytest

from uplift_spark.config import Config, RegistryConf
from uplift_spark.errors import ConfigError
from uplift_spark.governance.rollout import (
    CanaryRecord,
    PlanRun,
    check_unpinned,
    earlier_champion,
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
