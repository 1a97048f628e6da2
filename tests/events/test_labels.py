"""Labels on hand-made events: window edges, sums, what is not known, what is not known yet; and by brute force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from uplift_spark.config import Labels
from uplift_spark.events.labels import event_counts, event_days, label_table

ASSIGNED = "2024-03-01 12:00:00"
AS_OF = datetime(2024, 3, 15, tzinfo=UTC)
WINDOW = Labels(window_days=7)
SECOND = "2024-03-02 00:00:00"

TIMES = {"assigned_at", "occurred_at", "delivered_at", "known_at", "ingested_at"}
ASSIGNMENT = "campaign string, unit_id string, treatment string, assigned_at long, propensity double"
KNOWN = "event_id string, known_at long, ingested_at long"
OUTCOME = f"unit_id string, outcome string, value double, occurred_at long, {KNOWN}"
DELIVERY = f"unit_id string, status string, delivered_at long, {KNOWN}"


def micros(moment: str | datetime) -> int:
    """Microseconds since 1970 of a time in UTC."""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return (at.replace(tzinfo=at.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def frame(spark: SparkSession, schema: str, rows: list[tuple[Any, ...]]) -> DataFrame:
    """Rows whose times are microseconds, so that no session's time zone has a part in them."""
    names = [column.split()[0] for column in schema.split(", ")]
    result = spark.createDataFrame(rows, schema)
    return result.selectExpr(*(f"timestamp_micros({n}) AS {n}" if n in TIMES else n for n in names))


def units_frame(spark: SparkSession, units: list[tuple[str, str]]) -> DataFrame:
    return frame(spark, ASSIGNMENT, [("shop", unit, "5%", micros(at), 0.5) for unit, at in units])


def events_frame(spark: SparkSession, events: list[tuple[Any, ...]]) -> DataFrame:
    """Events (unit, outcome, value, occurred_at), then optionally event_id, known_at, ingested_at."""
    rows = []
    for unit, outcome, value, at, *more in events:
        event_id, known, ingested = (*more, *(None, at, "2024-06-01")[len(more) :])
        rows.append((unit, outcome, value, micros(at), event_id, micros(known), micros(ingested)))
    return frame(spark, OUTCOME, rows)


def outcomes_of(labels: DataFrame) -> dict[str, dict[str, float | None]]:
    return {row["unit_id"]: row["outcomes"] for row in labels.collect()}


def test_labels_by_hand(spark: SparkSession) -> None:
    units = [(unit, ASSIGNED) for unit in ("edges", "sums", "unknown", "nothing")]
    units += [("late", "2024-03-10 00:00:00"), ("just", "2024-03-08 00:00:00"), ("almost", "2024-03-08 00:00:01")]
    units += [("now", "2024-03-15 00:00:00"), ("future", "2024-03-15 00:00:01")]
    events = [
        ("edges", "spend", 1.0, "2024-03-01 11:59:59"),
        ("edges", "spend", 2.0, ASSIGNED),
        ("edges", "spend", 4.0, "2024-03-08 11:59:59"),
        ("edges", "spend", 8.0, "2024-03-08 12:00:00"),
        ("sums", "visit", 1.0, SECOND),
        ("sums", "visit", 1.0, SECOND),
        ("sums", "spend", 0.1, "2024-03-03 00:00:00"),
        ("sums", "other", 9.0, "2024-03-03 00:00:00"),
        ("unknown", "spend", None, SECOND),
        ("unknown", "visit", 1.0, SECOND),
        ("late", "visit", 1.0, "2024-03-14 23:00:00"),
        ("late", "visit", 1.0, "2024-03-15 00:00:01"),
        ("stranger", "visit", 1.0, SECOND),
    ]
    frames = (units_frame(spark, units), events_frame(spark, events))
    labels = label_table(*frames, ("visit", "spend"), WINDOW, AS_OF)
    rows = {row["unit_id"]: row for row in labels.collect()}
    assert {unit: row["outcomes"] for unit, row in rows.items()} == {
        "edges": {"visit": 0.0, "spend": 6.0},
        "sums": {"visit": 2.0, "spend": 0.1},
        "unknown": {"visit": 1.0, "spend": None},
        "nothing": {"visit": 0.0, "spend": 0.0},
        "late": {"visit": 1.0, "spend": 0.0},
        "just": {"visit": 0.0, "spend": 0.0},
        "almost": {"visit": 0.0, "spend": 0.0},
        "now": {"visit": 0.0, "spend": 0.0},
    }
    assert {unit for unit, row in rows.items() if not row["mature"]} == {"late", "almost", "now"}
    assert {row["delivered"] for row in rows.values()} == {None}
    assert dict(labels.dtypes) == {
        "campaign": "string",
        "unit_id": "string",
        "treatment": "string",
        "assigned_at": "timestamp",
        "propensity": "double",
        "outcomes": "map<string,double>",
        "mature": "boolean",
        "delivered": "boolean",
        "as_of": "timestamp",
    }


def test_every_outcome_has_its_window_and_the_longest_decides_maturity(spark: SparkSession) -> None:
    units = [("old", "2024-03-01 00:00:00"), ("young", "2024-03-05 00:00:00"), ("fresh", "2024-03-06 00:00:00")]
    events = [
        ("old", outcome, value, at)
        for outcome in ("visit", "spend")
        for value, at in ((1.0, "2024-03-01 23:59:59"), (2.0, "2024-03-02 00:00:00"), (4.0, "2024-03-09 23:59:59"))
    ]
    frames = (units_frame(spark, units), events_frame(spark, events), ("visit", "spend"))
    windows = Labels(window_days=1, windows={"spend": 9})
    labels = label_table(*frames, windows, AS_OF)
    assert outcomes_of(labels)["old"] == {"visit": 1.0, "spend": 7.0}
    mature = {row["unit_id"] for row in labels.collect() if row["mature"]}
    assert mature == {"old", "young", "fresh"}
    waiting = label_table(*frames, Labels(window_days=1, windows={"spend": 9}, wait_days=1), AS_OF)
    assert {row["unit_id"] for row in waiting.collect() if row["mature"]} == {"old", "young"}


def test_an_event_counts_once_as_it_was_first_known(spark: SparkSession) -> None:
    units = [(unit, ASSIGNED) for unit in ("again", "tied", "moved", "other")]
    known = ("2024-03-03 00:00:00", "2024-03-04 00:00:00")
    events = [
        ("again", "spend", 5.0, SECOND, "e1", known[1]),
        ("again", "spend", 3.0, SECOND, "e1", known[0]),
        ("again", "spend", 3.0, SECOND, "e1", known[0]),
        ("again", "spend", 1.0, SECOND),
        ("again", "spend", 1.0, SECOND),
        ("tied", "spend", 1.0, SECOND, "e2", known[0], "2024-03-06"),
        ("tied", "spend", 2.0, SECOND, "e2", known[0], "2024-03-05"),
        # First known before the window, and under another unit: the rows that come later are the same events.
        ("moved", "spend", 1.0, "2024-03-01 00:00:00", "e3", SECOND),
        ("moved", "spend", 1.0, SECOND, "e3", known[0]),
        ("moved", "visit", 1.0, SECOND, "e4", known[0]),
        ("other", "visit", 1.0, SECOND, "e4", known[1]),
    ]
    history = (units_frame(spark, units), events_frame(spark, events), ("visit", "spend"), WINDOW)
    assert outcomes_of(label_table(*history, AS_OF)) == {
        "again": {"visit": 0.0, "spend": 5.0},
        "tied": {"visit": 0.0, "spend": 2.0},
        "moved": {"visit": 1.0, "spend": 0.0},
        "other": {"visit": 0.0, "spend": 0.0},
    }
    counts = {row["outcome"]: row for row in event_counts(*history, AS_OF).collect()}
    assert (counts["spend"]["counted"], counts["spend"]["duplicates"]) == (4, 4)
    assert (counts["visit"]["counted"], counts["visit"]["duplicates"]) == (1, 1)


@pytest.mark.slow
def test_what_arrives_later_changes_later_labels_only(spark: SparkSession) -> None:
    units = units_frame(spark, [("a", ASSIGNED), ("b", ASSIGNED)])
    early = [("a", "spend", 1.0, SECOND, "e1", "2024-03-03 00:00:00")]
    late = [
        ("a", "spend", 2.0, SECOND, "e1", "2024-03-15 00:00:01"),
        ("a", "spend", 4.0, SECOND, None, "2024-03-15 00:00:01"),
        ("b", "spend", None, SECOND, "e2", "2024-03-20 06:00:00"),
        ("b", "spend", 8.0, SECOND, None, "2024-03-15 00:00:00"),
    ]
    before, after = (events_frame(spark, events) for events in (early + late[3:], early + late))
    as_of, names = AS_OF, ("spend",)
    rows = [label_table(units, events, names, WINDOW, as_of).orderBy("unit_id").collect() for events in (before, after)]
    assert rows[0] == rows[1]
    assert [row["outcomes"]["spend"] for row in rows[0]] == [1.0, 8.0]
    assert outcomes_of(label_table(units, after, names, WINDOW, as_of + timedelta(days=7))) == {
        "a": {"spend": 5.0},
        "b": {"spend": None},
    }
    (count,) = event_counts(units, after, names, WINDOW, as_of).collect()
    assert (count["counted"], count["duplicates"], count["late"]) == (2, 0, 2)
    assert count["lag_hours"] == pytest.approx(np.quantile([24, 13 * 24], [0.5, 0.95]))
    assert event_counts(units, after, ("visit",), WINDOW, as_of).collect() == []


@pytest.mark.slow
def test_delivered_as_known_then(spark: SparkSession) -> None:
    names = ("in", "sent", "outside", "late", "failed first", "none")
    units, none = units_frame(spark, [(unit, ASSIGNED) for unit in names]), events_frame(spark, [])
    known, arrived = "2024-03-03 00:00:00", "2024-06-01"
    rows = [
        ("in", "sent", SECOND, None, known),
        ("in", "delivered", SECOND, None, known),
        ("in", "delivered", SECOND, None, known),
        ("sent", "sent", SECOND, None, known),
        ("outside", "delivered", "2024-03-01 11:59:59", None, SECOND),
        ("outside", "delivered", "2024-03-08 12:00:00", None, "2024-03-09"),
        ("late", "delivered", SECOND, None, "2024-03-15 00:00:01"),
        ("failed first", "delivered", SECOND, "d1", "2024-03-04"),
        ("failed first", "failed", SECOND, "d1", known),
        ("stranger", "delivered", SECOND, None, known),
    ]
    delivery_rows = [(unit, status, micros(at), key, micros(kn), micros(arrived)) for unit, status, at, key, kn in rows]
    deliveries = frame(spark, DELIVERY, delivery_rows)
    times = {"nothing": datetime(2024, 3, 1, 13), "then": AS_OF, "later": AS_OF + timedelta(days=1)}
    tables = {day: label_table(units, none, ("spend",), WINDOW, when, deliveries) for day, when in times.items()}
    by_day = {day: {r["unit_id"]: r["delivered"] for r in table.collect()} for day, table in tables.items()}
    assert by_day["nothing"] == dict.fromkeys(names)
    assert {unit for unit, delivered in by_day["then"].items() if delivered} == {"in"}
    assert {unit for unit, delivered in by_day["later"].items() if delivered} == {"in", "late"}
    assert None not in {*by_day["then"].values(), *by_day["later"].values()}
    longer = label_table(units, none, ("spend",), Labels(window_days=1, windows={"spend": 8}), AS_OF, deliveries)
    assert {row["unit_id"] for row in longer.collect() if row["delivered"]} == {"in", "outside"}


def test_sums_do_not_depend_on_the_order_of_events(spark: SparkSession) -> None:
    values = [1e16, 1.0, -1e16, 1.0, 0.1, 0.2, 0.3]
    orders = {"a": values, "b": values[::-1], "c": sorted(values)}
    events = events_frame(spark, [(u, "spend", value, ASSIGNED) for u, order in orders.items() for value in order])
    units = units_frame(spark, [(unit, ASSIGNED) for unit in orders])
    labels = label_table(units, events, ("spend",), WINDOW, AS_OF).collect()
    assert len(labels) == 3 and len({row["outcomes"]["spend"] for row in labels}) == 1


@contextmanager
def session_zone(spark: SparkSession, zone: str) -> Iterator[None]:
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)


@pytest.mark.parametrize("change", [datetime(2024, 3, 10, 7, tzinfo=UTC), datetime(2024, 11, 3, 6, tzinfo=UTC)])
def test_a_change_of_clocks_moves_no_window(spark: SparkSession, change: datetime) -> None:
    """New York's clocks change at `change`; a day of the window is 24 hours across it, in every session's zone."""
    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    assigned = {f"u{h}": change + h * hour for h in (-25, -24, -2, -1, 0, 1)}
    assignments = [("shop", unit, "5%", micros(at), 0.5) for unit, at in assigned.items()]
    offsets = (0 * hour, 23 * hour, 24 * hour - tick, 24 * hour, 25 * hour)
    events = [
        (unit, "spend", float(2**bit), micros(at + off), None, micros(at + off), micros(AS_OF))
        for unit, at in assigned.items()
        for bit, off in enumerate(offsets)
    ]
    names, as_of = ("spend",), change + 25 * hour
    labels = []
    for zone in ("UTC", "America/New_York"):
        with session_zone(spark, zone):
            frames = (frame(spark, ASSIGNMENT, assignments), frame(spark, OUTCOME, events))
            rows = label_table(*frames, names, Labels(window_days=1), as_of).collect()
        labels.append({row["unit_id"]: (row["outcomes"]["spend"], row["mature"]) for row in rows})
    assert labels[0] == labels[1]
    assert labels[0] == {unit: (7.0, True) for unit in assigned}


# ---------------------------------------------------------------- against brute force

NAMES, RANDOM = ("visit", "spend"), Labels(window_days=2, windows={"spend": 5}, wait_days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = 3_600_000_000
UNITS = 150


def histories(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Random assignments, outcomes and deliveries on a coarse grid of times, a microsecond to either side at most:
    ties, edges, redeliveries with other content, late arrivals and null values are all common."""
    draw = np.random.default_rng(seed)
    start = micros(START)

    def grid(n: int, hours: int) -> np.ndarray:
        return 6 * HOUR * draw.integers(0, hours // 6, n) + draw.integers(-1, 2, n)

    assigned = pd.DataFrame({"unit_id": [f"u{i}" for i in range(UNITS)], "assigned_at": start + grid(UNITS, 10 * 24)})
    n = 6 * UNITS
    unit = draw.integers(0, UNITS + 3, n)  # some were never assigned
    near = np.append(assigned["assigned_at"], [start] * 3)[unit]
    happened = near + draw.choice([0, 24, 48, 120, 12, 200, -6], n) * HOUR + draw.integers(-1, 2, n)
    known = happened + draw.choice([0, 0, 1, 48, 240], n) * HOUR
    # Few ids, some shared by two units: redelivered rows differ in unit, outcome, value and times.
    shared = zip(unit // 2, draw.integers(0, 4, n), strict=True)
    ids = np.where(draw.random(n) < 0.5, None, [f"{pair}-{k}" for pair, k in shared])
    keys = {"unit_id": [f"u{u}" for u in unit], "event_id": ids, "known_at": known}
    keys["ingested_at"] = known + draw.integers(0, 3, n) * HOUR
    values = draw.choice([None, 0.1, 0.2, 1e16, -1e16, 1.0], n, p=[0.05, 0.3, 0.3, 0.05, 0.05, 0.25])
    names = draw.choice(["visit", "spend", "other"], n)
    outcomes = pd.DataFrame({**keys, "outcome": names, "value": values, "occurred_at": happened})
    echo = outcomes[outcomes["event_id"].notna()].sample(frac=0.3, random_state=1)
    arrived = echo["known_at"] + draw.integers(0, 3, len(echo)) * HOUR
    outcomes = pd.concat([outcomes, echo.assign(value=draw.permutation(echo["value"]), ingested_at=arrived)])
    statuses = draw.choice(["sent", "delivered", "failed"], n)
    deliveries = pd.DataFrame({**keys, "status": statuses, "delivered_at": happened}).sample(frac=0.3, random_state=1)
    return assigned, outcomes, deliveries


def firsts(rows: pd.DataFrame, content: list[str]) -> pd.DataFrame:
    """`rows` in the order they were known, with `again`: another row of the event came before."""
    rows = rows.sort_values(["known_at", "ingested_at", *content], na_position="first")
    return rows.assign(
        again=rows["event_id"].notna() & rows.duplicated(["outcome", "event_id"] if "outcome" in rows else ["event_id"])
    )


def by_hand(assigned: pd.DataFrame, outcomes: pd.DataFrame, deliveries: pd.DataFrame, as_of: int):  # type: ignore[no-untyped-def]
    """The labels and the counts, unit by unit and row by row."""
    events = firsts(outcomes, ["unit_id", "outcome", "value", "occurred_at"])
    sends = firsts(deliveries, ["unit_id", "status", "delivered_at"])
    sends = sends[(sends["known_at"] <= as_of) & ~sends["again"] & (sends["status"] == "delivered")]
    labels, fates = {}, dict.fromkeys([(name, fate) for name in NAMES for fate in ("counted", "duplicates", "late")], 0)
    lags: dict[str, list[int]] = {name: [] for name in NAMES}
    for unit, start in assigned[assigned["assigned_at"] <= as_of].itertuples(index=False):
        sums: dict[str, float | None] = {}
        for name in NAMES:
            mine = events[(events["unit_id"] == unit) & (events["outcome"] == name)]
            inside = mine[
                (mine["occurred_at"] >= start) & (mine["occurred_at"] < start + RANDOM.days(name) * 24 * HOUR)
            ]
            counted = inside[(inside["known_at"] <= as_of) & ~inside["again"]]
            values = list(counted["value"])
            sums[name] = None if None in values else float(sum(sorted(values)))
            lags[name] += [lag // 60_000_000 for lag in counted["known_at"] - counted["occurred_at"]]
            fates[name, "counted"] += len(counted)
            fates[name, "duplicates"] += int(((inside["known_at"] <= as_of) & inside["again"]).sum())
            missed = (inside["known_at"] > as_of) & (inside["occurred_at"] <= as_of) & ~inside["again"]
            fates[name, "late"] += int(missed.sum())
        ends = start + 5 * 24 * HOUR
        at = sends.loc[sends["unit_id"] == unit, "delivered_at"]
        labels[unit] = (sums, ends + 24 * HOUR <= as_of, bool(((at >= start) & (at < ends)).any()))
    return labels, fates, lags


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), hours=st.integers(4 * 24, 16 * 24), edge=st.integers(-1, 1))
def test_random_histories_by_brute_force(spark: SparkSession, seed: int, hours: int, edge: int) -> None:
    assigned, outcomes, deliveries = histories(seed)
    as_of = START + timedelta(hours=6 * (hours // 6), microseconds=edge)
    expected, fates, lags = by_hand(assigned, outcomes, deliveries, micros(as_of))

    def frame_of(schema: str, rows: pd.DataFrame) -> DataFrame:
        names = [column.split()[0] for column in schema.split(", ")]
        return frame(spark, schema, list(rows[names].astype(object).itertuples(index=False, name=None)))

    units = frame_of(ASSIGNMENT, assigned.assign(campaign="shop", treatment="5%", propensity=0.5))
    events, sends = frame_of(OUTCOME, outcomes), frame_of(DELIVERY, deliveries)
    labels = label_table(units, events, NAMES, RANDOM, as_of, sends).collect()
    assert {r["unit_id"]: (r["outcomes"], r["mature"], r["delivered"]) for r in labels} == expected
    assert len(labels) == len(expected)

    counts = {row["outcome"]: row for row in event_counts(units, events, NAMES, RANDOM, as_of).collect()}
    assert {(name, fate): counts[name][fate] for name, fate in fates} == fates
    for name in NAMES:
        assert counts[name]["lag_hours"] == pytest.approx(np.quantile(np.array(lags[name]) / 60, [0.5, 0.95]))

    by_then = outcomes["known_at"] <= micros(as_of), deliveries["known_at"] <= micros(as_of)
    known_events, known_sends = frame_of(OUTCOME, outcomes[by_then[0]]), frame_of(DELIVERY, deliveries[by_then[1]])
    as_then = label_table(units, known_events, NAMES, RANDOM, as_of, known_sends)
    assert sorted(as_then.collect(), key=lambda row: row["unit_id"]) == sorted(labels, key=lambda row: row["unit_id"])


def test_units_and_events_by_whole_days(spark: SparkSession) -> None:
    """AS_OF is 13.5 days after the first assignment; the second label is not mature, the third unit has none."""
    units = units_frame(spark, [("a", ASSIGNED), ("b", "2024-03-13 12:00:00"), ("c", "2024-03-15 00:00:01")])
    events = [
        ("a", "visit", 1.0, "2024-03-03 13:00:00", None, "2024-03-03 13:00:00"),  # at age 2.04, 11.46 days ago
        ("a", "visit", 1.0, ASSIGNED, None, "2024-03-14 13:00:00"),
        ("a", "visit", 1.0, SECOND, None, "2024-03-16"),  # not known yet
        ("a", "visit", 1.0, "2024-03-08 12:00:00", None, SECOND),  # outside
        ("b", "visit", 1.0, "2024-03-14 11:00:00", None, "2024-03-14 11:00:00"),
    ]
    counts = event_days(units, events_frame(spark, events), ("visit",), WINDOW, AS_OF).collect()
    columns = ("outcome", "since", "age", "day", "delay", "first", "mature", "n")
    assert {tuple(row[name] for name in columns) for row in counts} == {
        (None, 13, None, None, None, None, True, 1),
        (None, 1, None, None, None, None, False, 1),
        ("visit", 13, 0, 13, 13, True, True, 1),
        ("visit", 13, 2, 11, 0, False, True, 1),
        ("visit", 1, 0, 0, 0, True, False, 1),
    }
    assert {row["fewer"] for row in counts} == {None, 0}
    # Read at seven: days begin at midnight for an event at three and one at eleven alike.
    at = ("2024-03-14 03:00:00", "2024-03-14 11:00:00")
    both = events_frame(spark, [("b", "visit", 1.0, one, None, one) for one in at])
    counts = event_days(units, both, ("visit",), WINDOW, AS_OF + timedelta(hours=7), AS_OF).collect()
    assert {(row["day"], row["fewer"]) for row in counts if row["outcome"]} == {(1, 1), (0, 0)}
