"""A user's features online, against brute force on random histories."""

from __future__ import annotations

from datetime import datetime, timedelta

import pandas as pd
import pytest
from hypothesis import given, settings

from tests.events.histories import DEFINITIONS, START, by_force, users
from uplift_spark.serving.features import features_at


@settings(max_examples=300, deadline=None)
@given(users)
def test_every_definition_equals_brute_force(user):
    history = {"event": user["event"], "profile": user["profile"]}
    assert same(features_at(DEFINITIONS, history, user["at"]), by_force(user))


def same(one, other):
    """Equal to the bit: repr tells 0.0 from -0.0 and every double from every other."""
    return {k: repr(v) for k, v in one.items()} == {k: repr(v) for k, v in other.items()}


def test_rows_may_come_from_pandas_and_times_without_zone_are_utc():
    when = [START - timedelta(hours=h) for h in (1, 30, 100)]
    rows = pd.DataFrame(
        {"event": "order", "value": [1.5, 2.5, 4.0], "item": "a", "occurred_at": when, "known_at": when}
    )
    values = features_at(DEFINITIONS, {"event": rows.to_dict("records")}, datetime(2024, 3, 8))
    assert (
        values["sum_1"] == 1.5 and values["sum_3"] == 4.0 and values["recency_3"] == 1 / 24 and values["visits"] == 0.0
    )
    assert values["age"] is None and values["orders_per_visit"] is None


@pytest.mark.parametrize("late", ["occurred_at", "known_at"])
def test_what_happens_or_becomes_known_afterwards_is_not_used(late):
    row = {"event": "visit", "value": None, "item": "x", "occurred_at": START, "known_at": START}
    row[late] = START + timedelta(microseconds=1)
    assert features_at(DEFINITIONS, {"event": [row]}, START)["visits"] == 0.0
    assert features_at(DEFINITIONS, {"event": [row]}, row[late])["visits"] == 1.0
