"""The timeline of a game day: its table, its page and its picture. No Spark."""

from __future__ import annotations

import re
from datetime import timedelta

from uplift_spark.evaluation.svg import lanes_svg
from uplift_spark.gamedays.timeline import (
    RESULT_HEADS,
    TIMELINE_LANES,
    GameDayResult,
    TimelineEntry,
    timeline_lines,
    timeline_page,
)
from uplift_spark.gamedays.world import CAMPAIGN_STARTS

BEGAN = CAMPAIGN_STARTS + timedelta(days=20)
MORNING = BEGAN + timedelta(days=1, hours=7)
ENTRIES = [
    TimelineEntry(BEGAN, 20, "fault", "four of ten mails are not delivered"),
    TimelineEntry(MORNING, 21, "alert", "page non_compliance fired: <60 % & less>"),
    TimelineEntry(MORNING + timedelta(days=2), 23, "mended", "the alerts are over"),
]
RESULT = GameDayResult(
    *("non-delivery", BEGAN, MORNING, "page non_compliance", MORNING, "acknowledged", None, "", {"a": 0, "b": 2})
)


def test_minutes_count_from_the_fault_and_what_never_came_is_a_dash() -> None:
    assert RESULT.row == (
        *("non-delivery", "1,860", "page non_compliance", "1,860", "acknowledged", "-", "", "2 rows of b"),
    )
    assert len(RESULT.row) == len(RESULT_HEADS)
    assert timeline_lines(ENTRIES)[1][0] == "day 21 07:00"


def test_nothing_lost_is_said() -> None:
    assert GameDayResult("x", BEGAN, None, "", None, "", None, "", {"a": 0}).row[-1] == "nothing"


def test_a_mark_lies_in_its_lane_on_its_day() -> None:
    lanes = list(TIMELINE_LANES.values())
    picture = lanes_svg(lanes, [(one.days, TIMELINE_LANES[one.kind], one.words) for one in ENTRIES], "days")
    marks = re.findall(r'<circle cx="([\d.]+)" cy="(\d+)" r="6" class="(\w+)"><title>day ([\d.]+): ', picture)
    assert [kind for _, _, kind, _ in marks] == ["fault", "dot", "well"]
    assert [float(day) for *_, day in marks] == [20, 21.29, 23.29]
    x = [float(at) for at, *_ in marks]
    step = (x[1] - x[0]) / (ENTRIES[1].days - ENTRIES[0].days)
    assert abs((x[2] - x[1]) / 2 - step) < 0.1
    assert [int(y) for _, y, *_ in marks] == [44 + 34 * lanes.index(TIMELINE_LANES[one.kind]) for one in ENTRIES]


def test_a_page_stands_alone_and_escapes_what_jobs_say() -> None:
    page = timeline_page("non-delivery", ENTRIES, [RESULT])
    assert "&lt;60 % &amp; less&gt;" in page and "<60 %" not in page
    assert "http://" not in page and "https://" not in page and "1,860" in page
    assert "It did not come to its end." in timeline_page("drift", ENTRIES, [])
    assert "<svg" not in timeline_page("drift", [], [])
