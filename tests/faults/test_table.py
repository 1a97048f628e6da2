"""Rows of the fault table that no other test covers; `make faults` runs them all."""

from __future__ import annotations

import pytest

from tests.faults.table import FAULTS, warned
from uplift_spark.lake.tables import Lake

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.mark.parametrize("name", ["hour that exists twice", "empty file", "empty table"])
def test_a_fault_is_detected_and_reported(lake: Lake, name: str) -> None:
    result = BY_NAME[name].check(lake)
    assert BY_NAME[name].holds(result), result


@pytest.mark.slow
def test_an_outage_and_an_arm_that_is_not_reached_are_reported_in_one_campaign(lake: Lake) -> None:
    outage, unreached = BY_NAME["label outage"], BY_NAME["delivery failure in one arm"]
    warnings = warned(lake, lost=(2, 3, 4), bounced="10%")
    first, second = warnings.message.split("; arm ")
    assert outage.holds(type(warnings)(warnings.by, first)), warnings
    assert unreached.holds(type(warnings)(warnings.by, f"arm {second}")), warnings
