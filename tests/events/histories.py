"""Random histories of users, and their features by brute force: nothing shared with the package."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from hypothesis import strategies as st

from uplift_spark.config import Feature

START = datetime(2024, 3, 8, tzinfo=UTC)  # the clocks of New York change two days later
HOUR = timedelta(hours=1)

DEFINITIONS = (
    *(
        Feature(f"{aggregate}_{days}", aggregate=aggregate, source="event", event="order", window_days=days)
        for days in (1, 3)
        for aggregate in ("count", "sum", "mean", "min", "max", "distinct", "recency", "latest")
    ),
    Feature("visits", aggregate="count", source="event", event="visit"),
    Feature("last_item", source="event", event="visit", column="item"),
    Feature("orders_per_visit", aggregate="ratio", of=("count_3", "visits")),
    Feature("age"),
    Feature("town", column="city"),
)
NAMES = tuple(f.name for f in DEFINITIONS)

VALUES = (None, 0.0, -0.0, 0.1, 1 / 3, 1e9, -2.5)


def person(rng):
    """{at, event, profile}: a user's history and when it is looked at, drawn from `random.Random`.

    Few distinct times, so that ties and edges of windows happen; microseconds off the hour, for rounding to show.
    """
    return {
        "at": _moment(rng),
        "event": [_event(rng) for _ in range(rng.randint(0, 8))],
        "profile": [_attributes(rng) for _ in range(rng.randint(0, 4))],
    }


def _moment(rng):
    return START + rng.randint(0, 96) * HOUR + timedelta(microseconds=rng.choice((0, 0, 1)))


def _times(rng, happened):
    at = _moment(rng)
    known = at + rng.choice((0, 1, 30)) * HOUR
    return {happened: at, "known_at": known, "ingested_at": known + rng.choice((0, 1, 30)) * HOUR}


def _event(rng):
    return {
        "event_id": rng.choice((None, None, "e1", "e2")),
        "event": rng.choice(("order", "visit", "other")),
        "value": rng.choice((*VALUES, rng.uniform(-1e6, 1e6))),
        "item": rng.choice((None, "a", "b", "é", "z")),
        **_times(rng, "occurred_at"),
    }


def _attributes(rng):
    row = {"age": rng.choice((None, rng.randint(18, 99))), "city": rng.choice((None, "Rome", "Århus"))}
    return row | _times(rng, "observed_at")


users = st.randoms(use_true_random=False).map(person)


def by_force(user):
    """{name: value} of DEFINITIONS for one user."""
    at = user["at"]
    events = [e for e in user["event"] if e["occurred_at"] <= at and e["known_at"] <= at]
    events = [e for i, e in enumerate(events) if not any(_repeats(e, o, i > j) for j, o in enumerate(events) if i != j)]
    orders = [e for e in events if e["event"] == "order"]
    visits = [e for e in events if e["event"] == "visit"]
    attributes = [p for p in user["profile"] if p["observed_at"] <= at and p["known_at"] <= at]
    last_values = {}
    for days in (1, 3):
        recent = [e for e in orders if e["occurred_at"] > at - timedelta(days=days)]
        values = [e["value"] for e in recent if e["value"] is not None]
        # Values count in steps of 2^-20; fractions add up exactly.
        total = sum((Fraction(round(Fraction(v) * 2**20), 2**20) for v in values), Fraction(0))
        last_values |= {
            f"count_{days}": float(len(recent)),
            f"sum_{days}": float(total),
            f"mean_{days}": float(total) / len(values) if values else None,
            f"min_{days}": sorted(values)[0] + 0.0 if values else None,
            f"max_{days}": sorted(values)[-1] + 0.0 if values else None,
            f"distinct_{days}": float(len({e["item"] for e in recent} - {None})),
            f"recency_{days}": min(((at - e["occurred_at"]) / timedelta(days=1) for e in recent), default=None),
            f"latest_{days}": _last(recent, "occurred_at", "value"),
        }
    age = _last(attributes, "observed_at", "age")
    return {
        **last_values,
        "visits": float(len(visits)),
        "last_item": _last(visits, "occurred_at", "item"),
        "orders_per_visit": last_values["count_3"] / len(visits) if visits else None,
        "age": None if age is None else float(age),
        "town": _last(attributes, "observed_at", "city"),
    }


def _repeats(event, other, later):
    """Whether the other row is the same event and was known before; of equal rows the later in the list repeats."""
    if event["event_id"] is None or (other["event"], other["event_id"]) != (event["event"], event["event_id"]):
        return False
    for key in ("known_at", "ingested_at", "occurred_at", "value", "item"):
        if event[key] != other[key]:
            return event[key] is not None and (other[key] is None or other[key] < event[key])
    return later


def _last(rows, time, column):
    last = None
    for row in rows:
        if last is None or _before(last, row, time, column):
            last = row
    value = None if last is None else last[column]
    return value + 0.0 if isinstance(value, float) else value


def _before(one, other, time, column):
    for key in (time, "known_at", "ingested_at"):
        if one[key] != other[key]:
            return one[key] < other[key]
    if one[column] is None or other[column] is None:
        return one[column] is None and other[column] is not None
    return one[column] < other[column]
