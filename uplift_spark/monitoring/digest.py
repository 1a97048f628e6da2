"""A week or a month of a campaign in a page and a message: lift and return, triggers, alerts, drift, costs. No Spark.

Figures of windows are added up by their units. Observed lifts have errors of their own; lifts that are expected from
covariates share the reference's, so their intervals do not shrink with the number of windows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.evaluation.html_page import page_template, short
from uplift_spark.monitoring.alerts import AlertBook, AlertEvent, state_line
from uplift_spark.roles import Direction, benefit
from uplift_spark.sections.canary import CanaryState

DigestPeriod = Literal["week", "month"]
DIGEST_PERIODS: tuple[DigestPeriod, ...] = ("week", "month")
DIGEST_TABLES = ("kpi", "drift", "alerts", "retrain", "canary")
"""Gold tables that a digest is made from; one that is not there has nothing to say."""
_POOLED = {"observed_lift": False, "estimated_lift": True, "uplift_roi": False}
_ENDS_OF_CANARIES: tuple[CanaryState, ...] = ("promoted", "rolled back", "ended", "restored")
_MOST_LISTED = 10
_YEARS = 1900, 2200  # that times of tables can be compared with, whichever engine read them


@dataclass(frozen=True)
class DigestSpan:
    """From the beginning of a period to before its end, UTC."""

    period: DigestPeriod
    start: datetime
    end: datetime

    @property
    def words(self) -> str:
        """For titles."""
        last = self.end - timedelta(days=1)
        return f"{self.start:%Y-%m-%d} to {last:%Y-%m-%d}"

    @property
    def before(self) -> DigestSpan:
        """The period before this one."""
        return span_of(self.period, self.start)

    def holds(self, times: pd.Series) -> np.ndarray:
        """Whether moments lie in it, bool [n]."""
        return ((times >= self.start) & (times < self.end)).to_numpy(bool)


def span_of(period: DigestPeriod, until: datetime) -> DigestSpan:
    """Find the last week (from Monday on) or month that was over at a moment.

    Args:
        period: week or month.
        until: The moment; without a zone UTC.

    Returns:
        The span.

    Raises:
        ConfigError: The period is neither.
    """
    if period not in DIGEST_PERIODS:
        raise ConfigError(f"--period {period!r} is unknown: use week or month")
    moment = until.replace(tzinfo=UTC) if until.tzinfo is None else until.astimezone(UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        end = midnight - timedelta(days=midnight.weekday())
        return DigestSpan(period, end - timedelta(days=7), end)
    end = midnight.replace(day=1)
    return DigestSpan(period, (end - timedelta(days=1)).replace(day=1), end)


@dataclass(frozen=True)
class DigestFigure:
    """A figure of a level over the windows of a span; NaN where no window has one."""

    value: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    units: float = 0.0

    @property
    def text(self) -> str:
        """Value and interval for a reader."""
        if not math.isfinite(self.value):
            return "not known"
        interval = f" ({short(self.lower)} to {short(self.upper)})" if math.isfinite(self.lower + self.upper) else ""
        return f"{short(self.value)}{interval}"


@dataclass(frozen=True)
class LevelDigest:
    """What a level brought and cost.

    lift, before  observed lift a unit in the span and in the one before
    anticipated   lift that the covariates let expect
    roi           return on what was spent
    units         that were assigned to it
    spent         units by their cost; NaN where the configuration has no cost
    gained        units by the observed lift, as a benefit
    """

    level: str
    lift: DigestFigure
    before: DigestFigure
    anticipated: DigestFigure
    roi: DigestFigure
    units: int
    spent: float
    gained: float

    @property
    def price(self) -> float:
        """Cost of one more unit of the outcome; NaN where nothing was gained or the cost is not known."""
        return self.spent / self.gained if self.gained > 0 else math.nan

    @property
    def line(self) -> str:
        """In words, for a message."""
        cost = f"; spent {short(self.spent)}" if math.isfinite(self.spent) else ""
        price = f", {short(self.price)} for one more" if math.isfinite(self.price) else ""
        roi = f"; ROI {self.roi.text}" if math.isfinite(self.roi.value) else ""
        before = f", before {short(self.before.value)}" if math.isfinite(self.before.value) else ""
        return f"{self.level}: {self.units:,} units, lift {self.lift.text}{before}{roi}{cost}{price}"


@dataclass(frozen=True)
class CampaignDigest:
    """A period of a campaign.

    windows   monitored, and those that the period has
    levels    what each brought and cost
    triggers  decisions of retraining and ends of canaries, in sentences
    decided   {decision of retraining: times}
    fired     {severity: alerts that fired}
    resolved  alerts that were resolved or closed
    open      those that fire at its end, a line each
    drift     (column, windows in which it drifts, largest distance), the largest first
    """

    campaign: str
    span: DigestSpan
    windows: tuple[int, int]
    levels: Sequence[LevelDigest] = ()
    triggers: Sequence[str] = ()
    decided: Mapping[str, int] = field(default_factory=dict)
    fired: Mapping[str, int] = field(default_factory=dict)
    resolved: int = 0
    open: Sequence[str] = ()
    drift: Sequence[tuple[str, int, float]] = ()

    @property
    def title(self) -> str:
        """Of page and message."""
        return f"{self.campaign}: {self.span.period} from {self.span.words}"

    @property
    def at(self) -> datetime:
        """The end of the period."""
        return self.span.end

    @property
    def key(self) -> str:
        """Name of the message: the same text has the same one, so that a repeated delivery can be known."""
        return hashlib.sha256("\n".join([self.title, *self.lines()]).encode()).hexdigest()[:16]

    @property
    def spent(self) -> float:
        """What all levels cost; NaN where no cost is known."""
        known = [one.spent for one in self.levels if math.isfinite(one.spent)]
        return sum(known) if known else math.nan

    def lines(self) -> list[str]:
        """The message: what was brought and spent, what was decided, what fires, what drifts."""
        monitored, all_windows = self.windows
        none = "no window of the period was monitored: name another day by `--until`, or run `uplift monitor`"
        lines = [one.line for one in self.levels] or [none]
        lines += [f"spent in all: {short(self.spent)}"] if math.isfinite(self.spent) else []
        lines += [f"windows monitored: {monitored} of {all_windows}"]
        counts = ", ".join(f"{n} {decision.replace('_', ' ')}" for decision, n in self.decided.items())
        lines += [f"retraining: {counts or 'not decided on'}", *self.triggers]
        fired = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in self.fired.items())
        lines += [f"alerts: {fired or 'none'} fired, {self.resolved} resolved, {len(self.open)} open"]
        lines += [f"open: {one}" for one in self.open[:_MOST_LISTED]]
        worst = ", ".join(
            f"{name} by {size:.2f} in {n} window{'s' * (n != 1)}" for name, n, size in self.drift[:_MOST_LISTED]
        )
        # Names come from data: one with a line break in it does not begin a line of its own.
        return [" ".join(line.split()) for line in (*lines, f"drift: {worst or 'none'}")]


def make_digest(
    campaign: str,
    span: DigestSpan,
    tables: Mapping[str, pd.DataFrame],
    assigned: Mapping[str, int],
    costs: Mapping[str, float],
    hours: int = 24,
    direction: Direction = "increase",
) -> CampaignDigest:
    """Add up a period.

    Args:
        campaign: Its name.
        span: The period.
        tables: {name among DIGEST_TABLES: the campaign's rows, moments in UTC}, of windows of this length.
        assigned: {level: units assigned in the period}, without the control.
        costs: {level: money that treating one unit costs}.
        hours: Of a window.
        direction: Which way the outcome should go.

    Returns:
        The digest.

    Raises:
        DataError: No window was monitored at all.
    """
    if not len(kpis := tables.get("kpi", pd.DataFrame())):
        raise DataError(f"no window of campaign {campaign} was monitored: run `uplift monitor` first")
    kpis = _last_of_each(kpis)
    mine, earlier = kpis[span.holds(kpis["window_start"])], kpis[span.before.holds(kpis["window_start"])]
    cuts = mine.loc[mine["kpi"] == "observed_lift", "cut"].astype(str)
    levels = []
    for level in dict.fromkeys([*sorted(cuts), *sorted(assigned)]):
        figures = {name: _pooled(mine, name, level, shared) for name, shared in _POOLED.items()}
        lift, units = figures["observed_lift"], int(assigned.get(level, 0))
        spent = units * costs[level] if level in costs else math.nan
        before = _pooled(earlier, "observed_lift", level, False)
        gained = units * benefit(lift.value, direction)
        levels.append(
            LevelDigest(level, lift, before, figures["estimated_lift"], figures["uplift_roi"], units, spent, gained)
        )
    windows = (mine["window_start"].nunique(), int((span.end - span.start) / timedelta(hours=hours)))
    triggers, decided = _triggers(span, tables)
    fired, resolved, still_open = _alerts(span, tables)
    drift = _drift(span, tables)
    return CampaignDigest(campaign, span, windows, tuple(levels), triggers, decided, fired, resolved, still_open, drift)


def _last_of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each window the rows of the run that knew most, of those the one that wrote last."""
    runs = rows.groupby(["window_start", "run_id"], as_index=False)[["as_of", "ingested_at"]].max()
    last = runs.sort_values(["as_of", "ingested_at", "run_id"]).groupby("window_start")["run_id"].last()
    return rows[rows["run_id"] == rows["window_start"].map(last)]


def _pooled(rows: pd.DataFrame, kpi: str, level: str, shared: bool) -> DigestFigure:
    own = rows[(rows["kpi"] == kpi) & (rows["cut"] == level) & rows["value"].notna() & (rows["n"] > 0)]
    if not len(own):
        return DigestFigure()
    n = own["n"].to_numpy(float)
    share, value = n / n.sum(), float(n @ own["value"].to_numpy(float) / n.sum())
    half = (own["upper"] - own["lower"]).to_numpy(float) / 2
    width = float(share @ half if shared else math.sqrt(float((share**2) @ (half**2))))
    return DigestFigure(value, value - width, value + width, float(n.sum()))


def _triggers(span: DigestSpan, tables: Mapping[str, pd.DataFrame]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(sentences, {decision: times}) of retraining and canaries."""
    lines, decided = list[str](), dict[str, int]()
    rows = tables.get("retrain", pd.DataFrame())
    if len(rows):
        # A window ends with the period that it is of.
        within = (rows["window_end"] > span.start) & (rows["window_end"] <= span.end)
        rows = rows[within & (rows["check"] == "decision")].sort_values("window_end")
        decided = {str(name): int(n) for name, n in rows["decision"].value_counts(sort=False).items()}
        lines += [
            f"retrain, {row['window_end']:%Y-%m-%d}: {str(row['decision']).replace('_', ' ')}: {row['sentence']}"
            for row in rows[rows["decision"] != "not_needed"].to_dict("records")
        ]
    rows = tables.get("canary", pd.DataFrame())
    if len(rows):
        over = rows[span.holds(rows["at"]) & rows["state"].isin(_ENDS_OF_CANARIES)].sort_values("step")
        lines += [
            f"{row['canary']}, {row['at']:%Y-%m-%d}: {row['state']}: {row['reason']}" for row in over.to_dict("records")
        ]
    return tuple(lines), decided


def _alerts(span: DigestSpan, tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, int], int, tuple[str, ...]]:
    """(alerts that fired by severity, resolved, those that fire at the end)."""
    rows = tables.get("alerts", pd.DataFrame())
    if not len(rows):
        return {}, 0, ()
    events = [
        AlertEvent.from_row({**{str(name): one for name, one in row.items()}, "at": _moment(row["at"])})
        for row in rows.to_dict("records")
    ]
    fired = [one.severity for one in events if one.event == "fired" and span.start <= one.at < span.end]
    over = sum(one.event in ("resolved", "closed") and span.start <= one.at < span.end for one in events)
    book = AlertBook.replay(one for one in events if one.at < span.end)
    return {name: fired.count(name) for name in sorted(set(fired))}, over, tuple(map(state_line, book.active()))


def _moment(at: Any) -> datetime:
    moment: datetime = pd.Timestamp(at).to_pydatetime()
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _drift(span: DigestSpan, tables: Mapping[str, pd.DataFrame]) -> tuple[tuple[str, int, float], ...]:
    rows = tables.get("drift", pd.DataFrame())
    if not len(rows):
        return ()
    rows = _last_of_each(rows)
    rows = rows[span.holds(rows["window_start"]) & rows["state"].isin(["drift", "trigger"])]
    size = np.fmax(rows["distance"].to_numpy(float), np.abs(rows["missing"].to_numpy(float)))
    sizes = rows.assign(size=size).groupby("name")["size"].agg(["count", "max"]).sort_values("max", ascending=False)
    return tuple((str(name), int(row["count"]), float(row["max"])) for name, row in sizes.iterrows())


def digest_page(digest: CampaignDigest) -> str:
    """Write a digest as a page.

    Args:
        digest: The digest.

    Returns:
        HTML that stands alone.
    """
    return page_template("uplift_spark.monitoring", "digest.html.j2").render(digest=digest)


def digest_day(text: str | None) -> datetime | None:
    """Read the day of `--until`.

    Args:
        text: As in 2025-02-03; None: not named.

    Returns:
        Its midnight, UTC; None where none is named.

    Raises:
        ConfigError: It is no day.
    """
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
        if not _YEARS[0] <= day.year < _YEARS[1]:
            raise ValueError(text)
    except ValueError:
        raise ConfigError(f"--until {text!r} is no day: write it as in 2025-02-03") from None
    return datetime.combine(day, datetime.min.time(), UTC)


def as_moments(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Give columns of moments, as engines read them, the time zone UTC.

    Args:
        rows: Of a gold table.
        columns: Those of moments; what is not there is left out.

    Returns:
        The rows.
    """
    return rows.assign(**{name: pd.to_datetime(rows[name], utc=True) for name in columns if name in rows})
