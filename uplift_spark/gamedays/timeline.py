"""What happened on a game day when, and what it proves: as a table, and as a page with a picture. No Spark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from markupsafe import Markup

from uplift_spark.evaluation.html_page import page_template
from uplift_spark.evaluation.svg import lanes_svg

Happened = Literal["fault", "job", "alert", "decision", "people", "mended"]
"""fault: it begins or ends. job: what a job found. alert: one fires or resolves. decision: of retraining or a canary.
people: what somebody does. mended: all is as it should be again."""


@dataclass(frozen=True)
class TimelineEntry:
    """What happened when, by the campaign's clock."""

    at: datetime
    day: int
    kind: Happened
    words: str

    @property
    def clock(self) -> str:
        """Day and time, for a reader."""
        return f"day {self.day} {self.at:%H:%M}"

    @property
    def days(self) -> float:
        """Days from the campaign's beginning."""
        return self.day + (self.at.hour + self.at.minute / 60) / 24


@dataclass(frozen=True)
class GameDayResult:
    """What a game day proves: when the fault began, was noticed, acted on and over, and what was lost.

    detected, acted, recovered  moments by the campaign's clock; None where it never happened
    alert, action, recovery     what each was, in words
    lost                        rows that are nowhere, {table: n}; none where all are there
    """

    name: str
    began: datetime
    detected: datetime | None
    alert: str
    acted: datetime | None
    action: str
    recovered: datetime | None
    recovery: str
    lost: Mapping[str, int]

    def minutes(self, moment: datetime | None) -> str:
        """Minutes since the fault began, for a table."""
        return "-" if moment is None else f"{(moment - self.began) / timedelta(minutes=1):,.0f}"

    @property
    def row(self) -> tuple[str, ...]:
        """A row of the table of game days."""
        lost = ", ".join(f"{n:,} rows of {table}" for table, n in self.lost.items() if n) or "nothing"
        steps = ((self.detected, self.alert), (self.acted, self.action), (self.recovered, self.recovery))
        cells = (cell for at, words in steps for cell in (self.minutes(at), words))
        return (self.name, *cells, lost)


def timeline_lines(entries: Iterable[TimelineEntry]) -> list[tuple[str, str, str]]:
    """Rows of the timeline as a table: when, what, in words."""
    return [(one.clock, one.kind, one.words) for one in entries]


TIMELINE_LANES = {
    "fault": "what goes wrong", "job": "jobs", "alert": "alerts", "decision": "decisions", "people": "people",
    "mended": "well again",
}  # fmt: skip
"""{kind of an entry: name of its lane}, from top to bottom."""
RESULT_HEADS = ("game day", "min", "detected by", "min", "action", "min", "recovery", "lost")
"""Heads of the table of game days; minutes count from the beginning of the fault."""


def timeline_page(name: str, entries: Sequence[TimelineEntry], results: Sequence[GameDayResult]) -> str:
    """Draw the timeline of a game day.

    Args:
        name: Of the game day.
        entries: What happened, in order.
        results: What it proves; none where it did not come to its end.

    Returns:
        The page as HTML, which stands alone.
    """
    marks = [(one.days, TIMELINE_LANES[one.kind], one.words) for one in entries]
    picture = lanes_svg(list(TIMELINE_LANES.values()), marks, f"Days of game day {name}") if marks else Markup("")
    rows = [one.row for one in results]
    template = page_template("uplift_spark.gamedays", "timeline.html.j2")
    return template.render(
        name=name, picture=picture, heads=RESULT_HEADS, rows=rows, entries=entries, lanes=TIMELINE_LANES
    )
