"""What a window holds, in one pass over its units: counts of every column by arm, sums by predicted uplift, deliveries.

Sums of batches, partitions and windows add. They travel as rows (part, arm, column, bin, n, total), which any engine
adds up, and are kept in gold.window_sums; a window that was counted once is never read again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.forest import Z95, Model
from uplift_spark.monitoring.detectors import WindowFacts
from uplift_spark.monitoring.drift import ColumnBins, WindowCounts
from uplift_spark.monitoring.lift import SCORE_BINS, SUMS, ScoreSums
from uplift_spark.roles import DELIVERED, PROPENSITY, TREATMENT
from uplift_spark.stats.tests import completeness, completeness_error, known_shares

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


@dataclass(frozen=True)
class TimeWindow:
    """From `start` to before `end`, UTC."""

    start: datetime
    end: datetime

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} UTC"


def window_of(at: datetime, hours: int) -> TimeWindow:
    """The window that a moment lies in; windows begin at midnight, those of a week on Mondays.

    Args:
        at: The moment; without a zone UTC.
        hours: Length of a window.

    Returns:
        The window.
    """
    moment = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    length = timedelta(hours=hours)
    start = MONDAY + (moment - MONDAY) // length * length
    return TimeWindow(start, start + length)


def window_to_monitor(now: datetime, hours: int, newest: datetime | None, start: datetime | None = None) -> TimeWindow:
    """Choose the window of a run: the last one that is over, or the one that is named.

    Args:
        now: By the clock.
        hours: Length of a window.
        newest: Start of the newest window that was monitored; None without one.
        start: A moment in the window that is named.

    Returns:
        The window.

    Raises:
        ConfigError: The window named is not over, or the clock is behind the newest window.
    """
    last = window_of(now - timedelta(hours=hours), hours)
    chosen = last if start is None else window_of(start, hours)
    if chosen.start > last.start:
        raise ConfigError(f"the window from {chosen.words} is not over: name an earlier one, or run it after its end")
    if start is None and newest is not None and chosen.start < newest:
        raise ConfigError(
            f"the clock goes back: the last window over is {chosen.words}, but the one from {newest:%Y-%m-%d %H:%M} "
            "was monitored already; set the clock, or name an older window with --window"
        )
    return chosen


WINDOW_OUTCOME = "_outcome"
"""Column of the units' outcome in the frames that are counted; null where it is not known or must not be used."""

SUM_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("part", "arm", "column")),
        ("bin", pa.int32()),
        ("n", pa.int64()),
        ("total", pa.float64()),
    ]
)
SUM_KEYS = ("part", "arm", "column", "bin")

_COUNT, _MISSING, _NEW, _SCORE, _ARM, _WIDTH, _SENDS = "count", "missing", "new", "score", "arm", "width", "sends"


@dataclass(frozen=True)
class WindowPlan:
    """How the units of a campaign are counted.

    control   name of the control
    levels    all levels, the control first
    features  that the model reads
    bins      of features, of the predicted uplift of each level, and of the propensity within each arm
    scores    {level: upper ends of the bins of its predicted uplift but the last}
    """

    control: str
    levels: tuple[str, ...]
    features: tuple[str, ...]
    bins: ColumnBins
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)


def uplift_column(level: str) -> str:
    """Name of the column of a level's predicted uplift, among a window's columns."""
    return f"uplift:{level}"


def propensity_column(arm: str) -> str:
    """Name of the column of the propensity within an arm; missing for units of other arms, whose share is the arm's."""
    return f"propensity:{arm}"


def plan_of(model: Model, sample: pa.Table, most: int) -> WindowPlan:
    """Choose bins from a sample of the reference.

    Args:
        model: whose features and predictions are counted.
        sample: Rows with `treatment`, `propensity` and the features.
        most: Bins of a column, at most.

    Returns:
        The plan.

    Raises:
        DataError: The sample has no row.
    """
    levels = model.levels
    if not sample.num_rows:
        raise DataError(
            "there is no reference: the hold-out of the model's training set has no row; train the model anew, or name "
            "another version under registry.version"
        )
    uplift, _ = _effects(model, sample)
    columns = _columns(tuple(levels.names), model.roles.features, sample, uplift)
    inner = np.arange(1, SCORE_BINS) / SCORE_BINS
    known = {level: uplift[np.isfinite(uplift[:, k]), k] for k, level in enumerate(levels.treated)}
    scores = {level: np.unique(np.quantile(of, inner)) if of.size else of for level, of in known.items()}
    bins = ColumnBins.of_sample(columns, most)
    return WindowPlan(levels.control, tuple(levels.names), tuple(model.roles.features), bins, scores)


def _effects(model: Model, rows: pa.RecordBatch | pa.Table) -> tuple[np.ndarray, np.ndarray]:
    effect, error, _ = model.effect_arrays(rows)
    return np.asarray(effect, np.float64), 2 * Z95 * np.asarray(error, np.float64)


def _columns(
    levels: tuple[str, ...], features: Iterable[str], rows: pa.RecordBatch | pa.Table, uplift: np.ndarray
) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: rows.column(name) for name in features}
    columns |= {uplift_column(level): pa.array(uplift[:, k]) for k, level in enumerate(levels[1:])}
    arm = np.asarray(rows.column(TREATMENT).to_pylist(), object)
    propensity = rows.column(PROPENSITY).cast(pa.float64()).to_numpy(zero_copy_only=False)
    for name in levels:
        within = np.where(arm == name, propensity, np.nan)
        columns[propensity_column(name)] = pa.array(within, from_pandas=True)
    return pa.table(columns)


def count_batches(plan: WindowPlan, model: Model, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: sums of one partition's rows, in SUM_SCHEMA.

    Rows have the model's features, `treatment`, `propensity` (null: the outcome is not used), `delivered` (null: not
    logged) and WINDOW_OUTCOME.
    """
    total: WindowFacts | None = None
    for batch in batches:
        if batch.num_rows:
            facts = batch_facts(plan, model, batch)
            total = facts if total is None else add_facts(total, facts)
    if total is not None:
        yield sum_rows(total)


def batch_facts(plan: WindowPlan, model: Model, batch: pa.RecordBatch | pa.Table) -> WindowFacts:
    """Count rows of a window.

    Args:
        plan: Bins.
        model: whose predictions are counted.
        batch: Rows as for `count_batches`.

    Returns:
        Their sums.
    """
    uplift, width = _effects(model, batch)
    columns = _columns(plan.levels, plan.features, batch, uplift)
    arm = np.asarray(batch.column(TREATMENT).to_pylist(), object)
    outcome, propensity = (
        batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in (WINDOW_OUTCOME, PROPENSITY)
    )
    outcome = np.where(np.isnan(propensity), np.nan, outcome)  # nobody knows how many such a unit stands for
    weight = 1 / propensity
    reached = np.array([np.nan if one is None else float(one) for one in batch.column(DELIVERED).to_pylist()])
    code = np.full(batch.num_rows, -1)
    for k, level in enumerate(plan.levels):
        code[arm == level] = k
    arms, sends, scores = {}, {}, {}
    for k, level in enumerate(plan.levels):
        mine = code == k
        arms[level] = plan.bins.count(columns.filter(pa.array(mine)))
        if k:
            two = np.where(code == 0, 0, np.where(mine, 1, -1))
            scores[level] = ScoreSums.of(plan.scores[level], uplift[:, k - 1], width[:, k - 1], two, outcome, weight)
        if (logged := mine & ~np.isnan(reached)).any():
            sends[level] = (int(reached[logged].sum()), int(logged.sum()))
    return WindowFacts(plan.control, plan.bins, plan.features, arms, batch.num_rows, scores=scores, sends=sends)


def why_empty(unknown: Mapping[str, int], last: datetime) -> str:
    """Say why a window has nothing to count.

    Args:
        unknown: {level that the model does not know: units assigned to it}.
        last: When the campaign's newest unit was assigned.

    Returns:
        The end of a sentence.
    """
    if unknown:
        return f"has units of {', '.join(sorted(unknown))} alone, which the model does not know: train one that does"
    return (
        "is empty: table bronze.assignment has no unit of the campaign in it, the newest was assigned "
        f"{last:%Y-%m-%d %H:%M} UTC; load what is missing"
    )


def without_propensity(facts: WindowFacts) -> int:
    """How many units of a window have no propensity.

    Args:
        facts: Its sums.

    Returns:
        A number of units of all arms.
    """
    place = facts.bins.names.index
    return sum(int(counts.missing[place(propensity_column(arm))]) for arm, counts in facts.arms.items())


def add_facts(a: WindowFacts, b: WindowFacts) -> WindowFacts:
    """Sums of two parts of a window, or of two windows with the same bins; other fields are those of the first."""
    empty = a.bins.empty()
    sends = {
        arm: (a.sends.get(arm, (0, 0))[0] + b.sends.get(arm, (0, 0))[0],
              a.sends.get(arm, (0, 0))[1] + b.sends.get(arm, (0, 0))[1])
        for arm in {**a.sends, **b.sends}
    }  # fmt: skip
    return replace(
        a,
        arms={arm: a.arms.get(arm, empty) + b.arms.get(arm, empty) for arm in {**a.arms, **b.arms}},
        units=a.units + b.units,
        scores={level: a.scores[level] + b.scores[level] for level in a.scores},
        sends=sends,
    )


def sum_rows(facts: WindowFacts) -> pa.RecordBatch:
    """Rows of SUM_SCHEMA that hold a window's sums; zeros are left out.

    Args:
        facts: The sums.

    Returns:
        One row for each sum.
    """
    rows: list[tuple[str, str, str, int, int, float]] = []
    for arm, counts in facts.arms.items():
        for i, name in enumerate(facts.bins.names):
            for j in np.flatnonzero(counts.counts[i]):
                rows.append((_COUNT, arm, name, int(j), int(counts.counts[i, j]), float(counts.totals[i, j])))
            rows += [
                (part, arm, name, 0, int(values[i]), 0.0)
                for part, values in ((_MISSING, counts.missing), (_NEW, counts.new))
                if values[i]
            ]
    for level, sums in facts.scores.items():
        rows.append((_WIDTH, level, "", 0, 0, sums.width))
        for b in np.flatnonzero(sums.units):
            rows.append((_SCORE, level, "", int(b), int(sums.units[b]), float(sums.predicted[b])))
            terms = sums.arms[b].ravel()
            rows += [(_ARM, level, str(int(b)), int(t), 0, float(terms[t])) for t in np.flatnonzero(terms)]
    for arm, (reached, n) in facts.sends.items():
        rows += [(_SENDS, arm, "", 0, n, 0.0), (_SENDS, arm, "", 1, reached, 0.0)]
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[] for _ in SUM_SCHEMA]
    return pa.record_batch(
        [pa.array(values, kind.type) for values, kind in zip(columns, SUM_SCHEMA, strict=True)], schema=SUM_SCHEMA
    )


def window_facts(plan: WindowPlan, rows: pa.Table | pa.RecordBatch) -> WindowFacts:
    """Read sums back; rows of several windows or partitions add.

    Args:
        plan: Bins that the rows were counted in.
        rows: in SUM_SCHEMA.

    Returns:
        The sums.
    """
    place = {name: i for i, name in enumerate(plan.bins.names)}
    arms: dict[str, WindowCounts] = {level: plan.bins.empty() for level in plan.levels}
    sends: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    sizes = {level: len(edges) + 1 for level, edges in plan.scores.items()}
    units = {level: np.zeros(size, np.int64) for level, size in sizes.items()}
    predicted = {level: np.zeros(size) for level, size in sizes.items()}
    terms = {level: np.zeros((size, 2 * SUMS)) for level, size in sizes.items()}
    width = dict.fromkeys(sizes, 0.0)
    for part, arm, column, bin_, n, total in zip(*(rows.column(c).to_pylist() for c in rows.schema.names), strict=True):
        if part == _COUNT:
            arms[arm].counts[place[column], bin_] += n
            arms[arm].totals[place[column], bin_] += total
        elif part in (_MISSING, _NEW):
            getattr(arms[arm], part)[place[column]] += n
        elif part == _SENDS:
            sends[arm][bin_] += n
        elif part == _SCORE:
            units[arm][bin_] += n
            predicted[arm][bin_] += total
        elif part == _ARM:
            terms[arm][int(column), bin_] += total
        else:
            width[arm] += total
    scores = {
        level: ScoreSums(units[level], predicted[level], width[level], terms[level].reshape(-1, 2, SUMS))
        for level in sizes
    }
    return WindowFacts(
        plan.control,
        plan.bins,
        plan.features,
        arms,
        sum(counts.rows for counts in arms.values()),
        scores=scores,
        sends={arm: (reached, n) for arm, (n, reached) in sends.items()},
        treated=sends[plan.control][1] if plan.control in sends else None,
    )


# --------------------------------------------------------------------------------------------------------------------
# Plans and sums as they are kept: a row for each column of an arm, its bins as arrays.

_BINS, _SCORE_BINS, _DELAYS = "bins", "score_bins", "delays"


def kept_delays(facts: WindowFacts) -> list[dict[str, Any]]:
    """Rows of gold.window_sums that hold the delays of a window's labels.

    Args:
        facts: Sums of the window.

    Returns:
        A row for each outcome: `n` are events by delay, `totals` the units behind them.
    """
    return [
        {"part": _DELAYS, "arm": "", "name": outcome, "bins": list(range(len(n))), "n": [int(one) for one in n],
         "totals": [float(facts.labelled or 0)]}
        for outcome, n in facts.delays.items()
    ]  # fmt: skip


def read_delays(kept: Iterable[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], int]:
    """Delays from rows of gold.window_sums.

    Args:
        kept: Rows of a window.

    Returns:
        ({outcome: events by delay}, units behind them).
    """
    rows = [row for row in kept if row["part"] == _DELAYS]
    delays = {str(row["name"]): np.array(row["n"], np.int64) for row in rows}
    return delays, int(rows[0]["totals"][0]) if rows else 0


def kept_sums(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows of gold.window_sums: sums of one part, arm and column together.

    Args:
        rows: in SUM_SCHEMA.

    Returns:
        Rows with `part`, `arm`, `name`, `bins`, `n` and `totals`, in an order of their own.
    """
    together: dict[tuple[str, str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for part, arm, column, *sums in zip(*(rows.column(c).to_pylist() for c in rows.schema.names), strict=True):
        together[part, arm, column].append(tuple(sums))
    kept = []
    for (part, arm, column), sums in sorted(together.items()):
        bins, n, totals = (list(values) for values in zip(*sorted(sums), strict=True))
        # In ten digits the order in which partitions were added does not show.
        totals = [float(f"{value:.10g}") for value in totals] if part in (_SCORE, _ARM, _WIDTH) else totals
        kept.append({"part": part, "arm": arm, "name": column, "bins": bins, "n": n, "totals": totals})
    return kept


def kept_plan(plan: WindowPlan) -> list[dict[str, Any]]:
    """Rows of gold.window_sums that hold a plan's bins.

    Args:
        plan: The plan.

    Returns:
        Rows with `part`, `arm`, `name`, `edges` and `categories`.
    """
    rows: list[dict[str, Any]] = [
        {
            "part": _BINS,
            "arm": f"{i:06d}",
            "name": name,
            "edges": None if name in plan.bins.categories else plan.bins.edges[name].tolist(),
            "categories": list(plan.bins.categories[name]) if name in plan.bins.categories else None,
        }
        for i, name in enumerate(plan.bins.names)
    ]
    scores = plan.scores.items()
    return rows + [{"part": _SCORE_BINS, "arm": level, "name": "", "edges": e.tolist()} for level, e in scores]


def read_plan(kept: Iterable[Mapping[str, Any]], levels: tuple[str, ...], features: tuple[str, ...]) -> WindowPlan:
    """A plan from its rows of gold.window_sums.

    Args:
        kept: Rows of a reference.
        levels: All levels, the control first.
        features: of the model.

    Returns:
        The plan.
    """
    rows = sorted((row for row in kept if row["part"] == _BINS), key=lambda row: str(row["arm"]))
    edges = {str(row["name"]): np.array(row["edges"], float) for row in rows if row["edges"] is not None}
    categories = {str(row["name"]): tuple(row["categories"]) for row in rows if row["categories"] is not None}
    scores = {str(row["arm"]): np.array(row["edges"], float) for row in kept if row["part"] == _SCORE_BINS}
    bins = ColumnBins(tuple(str(row["name"]) for row in rows), edges, categories)
    return WindowPlan(levels[0], levels, features, bins, scores)


def read_kept_sums(kept: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of SUM_SCHEMA from rows of gold.window_sums, of one window or of several.

    Args:
        kept: Rows; those of plans and delays are left out.

    Returns:
        The sums.
    """
    parts = {_COUNT, _MISSING, _NEW, _SCORE, _ARM, _WIDTH, _SENDS}
    rows = [
        (row["part"], row["arm"], row["name"], *sums)
        for row in kept
        if row["part"] in parts
        for sums in zip(row["bins"], row["n"], row["totals"], strict=True)
    ]
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[] for _ in SUM_SCHEMA]
    return pa.table(
        [pa.array(values, kind.type) for values, kind in zip(columns, SUM_SCHEMA, strict=True)], schema=SUM_SCHEMA
    )


MOST_DELAY = 30  # days that are kept apart


def label_delays(days: pd.DataFrame, names: Iterable[str], spare: float) -> dict[str, Any]:
    """Delays of the events of mature labels by whole days, and how complete these labels are.

    Args:
        days: Rows of `events.labels.event_days`.
        names: Outcomes.
        spare: Days from the end of the window's last label to the time as of which labels are read.

    Returns:
        Fields of WindowFacts: labelled; and delays, age_days and complete, where some labels are mature and no outcome
        of the window is still to come.
    """
    # Of an event as old as this every delay up to it shows, so that windows of any age compare.
    age = min(MOST_DELAY, math.floor(spare))
    mature = days[days["mature"].astype(bool)]
    labelled = int(mature.loc[mature["outcome"].isna(), "n"].sum())
    if age < 0 or mature.empty:
        return {"labelled": labelled}
    delays, complete = {}, {}
    for name in names:
        rows = mature[mature["outcome"] == name]
        day, delay, fewer, n = (rows[column].to_numpy(np.int64) for column in ("day", "delay", "fewer", "n"))
        shown = (day >= age) & (delay <= age)
        delays[name] = np.bincount(delay[shown], n[shown], age + 1).astype(np.int64)
        # A window's events end at midnight, at whatever hour it is read. Of days that begin at that hour the last one
        # would be there in part: the part of which more is known.
        day, delay = day - fewer, np.maximum(0, delay - fewer)
        known = known_shares(day, delay, n, int(day.max(initial=0)) + 1)
        complete[name] = (completeness(day, n, known), int(n.sum()), completeness_error(day, delay, n, known))
    return {"delays": delays, "age_days": age, "complete": complete, "labelled": labelled}
