"""Labels on hand-made events: window edges, sums, what is not known, and what is not known yet."""

from datetime import UTC, datetime

from uplift_spark.config import Labels
from uplift_spark.flow.labels import label_table

ASSIGNED = "2024-03-01 12:00:00"
AS_OF = datetime(2024, 3, 15, tzinfo=UTC)
WINDOW = Labels(window_days=7)


def _frames(spark, units, events):
    assignments = spark.createDataFrame(
        [("shop", unit, "5%", at, 0.5) for unit, at in units],
        "experiment string, unit_id string, treatment string, at string, propensity double",
    ).selectExpr("*", "cast(at AS timestamp) AS assigned_at")
    outcomes = spark.createDataFrame(events, "unit_id string, outcome string, value double, at string").selectExpr(
        "*", "cast(at AS timestamp) AS occurred_at"
    )
    return assignments, outcomes


def test_labels_by_hand(spark):
    units = [(unit, ASSIGNED) for unit in ("edges", "sums", "unknown", "nothing")]
    units += [("late", "2024-03-10 00:00:00"), ("just", "2024-03-08 00:00:00"), ("almost", "2024-03-08 00:00:01")]
    events = [
        ("edges", "spend", 1.0, "2024-03-01 11:59:59"),
        ("edges", "spend", 2.0, ASSIGNED),
        ("edges", "spend", 4.0, "2024-03-08 11:59:59"),
        ("edges", "spend", 8.0, "2024-03-08 12:00:00"),
        ("sums", "visit", 1.0, "2024-03-02 00:00:00"),
        ("sums", "visit", 1.0, "2024-03-02 00:00:00"),
        ("sums", "spend", 0.1, "2024-03-03 00:00:00"),
        ("sums", "other", 9.0, "2024-03-03 00:00:00"),
        ("unknown", "spend", None, "2024-03-02 00:00:00"),
        ("unknown", "visit", 1.0, "2024-03-02 00:00:00"),
        ("late", "visit", 1.0, "2024-03-14 23:00:00"),
        ("late", "visit", 1.0, "2024-03-15 00:00:01"),
        ("stranger", "visit", 1.0, "2024-03-02 00:00:00"),
    ]
    labels = label_table(*_frames(spark, units, events), ("visit", "spend"), WINDOW, AS_OF)
    rows = {row["unit_id"]: row for row in labels.collect()}
    assert {unit: row["outcomes"] for unit, row in rows.items()} == {
        "edges": {"visit": 0.0, "spend": 6.0},
        "sums": {"visit": 2.0, "spend": 0.1},
        "unknown": {"visit": 1.0, "spend": None},
        "nothing": {"visit": 0.0, "spend": 0.0},
        "late": {"visit": 1.0, "spend": 0.0},
        "just": {"visit": 0.0, "spend": 0.0},
        "almost": {"visit": 0.0, "spend": 0.0},
    }
    assert {unit for unit, row in rows.items() if not row["mature"]} == {"late", "almost"}
    assert dict(labels.dtypes) == {
        "experiment": "string",
        "unit_id": "string",
        "treatment": "string",
        "assigned_at": "timestamp",
        "propensity": "double",
        "outcomes": "map<string,double>",
        "mature": "boolean",
        "as_of": "timestamp",
    }


def test_sums_do_not_depend_on_the_order_of_events(spark):
    values = [1e16, 1.0, -1e16, 1.0, 0.1, 0.2, 0.3]
    orders = {"a": values, "b": values[::-1], "c": sorted(values)}
    events = [(unit, "spend", value, ASSIGNED) for unit, order in orders.items() for value in order]
    frames = _frames(spark, [(unit, ASSIGNED) for unit in orders], events)
    labels = label_table(*frames, ("spend",), WINDOW, AS_OF).collect()
    assert len(labels) == 3 and len({row["outcomes"]["spend"] for row in labels}) == 1
