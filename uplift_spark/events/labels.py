"""Labels: the outcomes of each unit inside its attribution windows (`label_table`), and warnings of missing events
(`late_and_missing`)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from uplift_spark.config import DAY, Config, Labels
from uplift_spark.events.training_set import Sends, event_details
from uplift_spark.lake.session import instant, plus_hours, utc
from uplift_spark.roles import CAMPAIGN, DOSE
from uplift_spark.runtime import ProgressCallback
from uplift_spark.stats.tests import completeness, known_shares, missing_days, unreached_arms

# --------------------------------------------------------------------------------------------------------------------
# Labels as known at a stated time.
# An event counts when it occurred inside [assigned_at, assigned_at + the outcome's window) and was known (`known_at`)
# by `as_of`. Nothing that becomes known later changes the labels of an earlier `as_of`. Rows that share an event_id
# are one event: the row known first counts, of several known at the same time the one ingested first.

_COUNTED, _DUPLICATE, _LATE = "counted", "duplicate", "late"
_UNIT = (CAMPAIGN, "unit_id", "treatment", "assigned_at", "propensity")


def label_table(
    assignments: DataFrame,
    outcomes: DataFrame,
    names: tuple[str, ...],
    labels: Labels,
    as_of: datetime,
    deliveries: DataFrame | None = None,
) -> DataFrame:
    """Label every assignment made by `as_of`: the rows of silver.label without run_id.

    assignments, outcomes, deliveries   rows of one campaign from the bronze tables of these names; a column `dose` of
                                        the assignments becomes one of the labels
    names                               outcomes to label; the map has exactly these keys

    An outcome is the sum of its events' values: 0 without an event, null when an event's value is not known. A label is
    mature when `as_of` is `labels.wait_days` past the end of its longest window. `delivered` says whether a delivery
    inside the longest window was known by `as_of`; null when no delivery of the campaign was.
    """
    units = _units(assignments, as_of)
    longest = max(labels.days(name) for name in names)
    counted = _events(outcomes, units, names, labels, as_of).filter(F.col("fate") == _COUNTED)
    mature_at = _after(longest + labels.wait_days)
    reached = _with_delivered(units, deliveries, longest, as_of)
    return reached.join(_totals(counted, names), "unit_id", "left").select(
        *_unit_columns(assignments),
        _as_map(names).alias("outcomes"),
        (mature_at <= instant(as_of)).alias("mature"),
        "delivered",
        instant(as_of).alias("as_of"),
    )


def event_counts(
    assignments: DataFrame, outcomes: DataFrame, names: tuple[str, ...], labels: Labels, as_of: datetime
) -> DataFrame:
    """Count the events of labelled units by what became of them; one row per outcome that has any.

    outcome      one of `names`
    counted      events that are part of a label
    duplicates   rows known by `as_of` and left out, because their event was known before
    late         events that had occurred by `as_of` and were known only after it
    lag_hours    median and 95 % quantile of known_at - occurred_at of the counted, in whole minutes; null without any
    """
    events = _events(outcomes, _units(assignments, as_of), names, labels, as_of)
    # Quantiles merge as counts of distinct values: whole minutes keep these few, and the quantiles exact.
    lag = F.floor((F.unix_micros("known_at") - F.unix_micros("occurred_at")) / 60_000_000)
    quantiles = F.percentile(F.when(F.col("fate") == _COUNTED, lag), [0.5, 0.95])
    return (
        events.filter("fate IS NOT NULL")
        .groupBy("outcome")
        .agg(
            F.count_if(F.col("fate") == _COUNTED).alias("counted"),
            F.count_if(F.col("fate") == _DUPLICATE).alias("duplicates"),
            F.count_if(F.col("fate") == _LATE).alias("late"),
            F.transform(quantiles, lambda minutes: minutes / 60).alias("lag_hours"),
        )
    )


def event_days(
    assignments: DataFrame,
    outcomes: DataFrame,
    names: tuple[str, ...],
    labels: Labels,
    as_of: datetime,
    end: datetime | None = None,
) -> DataFrame:
    """Count labelled units and the events of their labels by whole days, for `stats.tests`.

    `end` is when the last event may have happened, `as_of` by default.

    outcome   one of `names`; null in rows that count units
    since     days from the assignment to `as_of`
    age       days from the assignment to the event; null of units
    day       days from the event to `as_of`; null of units
    delay     `day` less the days from the event's being known to `as_of`; null of units
    fewer     1 if `day` would be one fewer with days that begin at `end`'s time of day, else 0; null of units
    first     whether the event is its unit's first of this outcome
    mature    whether the label is
    n         units or events
    """
    longest = max(labels.days(name) for name in names)
    mature = (_after(longest + labels.wait_days) <= instant(as_of)).alias("mature")
    units = _units(assignments, as_of)
    counted = _events(outcomes, units, names, labels, as_of).filter(F.col("fate") == _COUNTED)
    ordered = F.array_sort(F.collect_list(F.struct("occurred_at", "known_at")))
    each = counted.groupBy("unit_id", "assigned_at", "outcome").agg(ordered.alias("events"))
    exploded = each.select("assigned_at", "outcome", F.posexplode("events").alias("position", "event"))
    day, known = _days_to(F.col("event.occurred_at"), as_of), _days_to(F.col("event.known_at"), as_of)
    since, age = _days_to(F.col("assigned_at"), as_of), _days_to(F.col("assigned_at"), F.col("event.occurred_at"))
    part = (as_of - utc(end or as_of)) % timedelta(days=1)
    fewer = day - _days_to(F.col("event.occurred_at"), as_of - part)
    events = exploded.select(
        *("outcome", since.alias("since"), age.alias("age"), day.alias("day"), (day - known).alias("delay")),
        fewer.alias("fewer"),
        *((F.col("position") == 0).alias("first"), mature),
    )
    assigned = units.select(since.alias("since"), mature)
    rows = events.unionByName(assigned, allowMissingColumns=True)
    return rows.groupBy(*events.columns).agg(F.count("*").alias("n"))


def _days_to(start: Column, end: Column | datetime) -> Column:
    micros = F.unix_micros(instant(end) if isinstance(end, datetime) else end) - F.unix_micros(start)
    return F.floor(micros / DAY)


def _units(assignments: DataFrame, as_of: datetime) -> DataFrame:
    return assignments.filter(F.col("assigned_at") <= instant(as_of)).select(*_unit_columns(assignments))


def _unit_columns(assignments: DataFrame) -> list[str]:
    return [*_UNIT, *([DOSE] if DOSE in assignments.columns else [])]


def _after(days: float | Column) -> Column:
    """assigned_at moved by days of 24 hours, whatever clocks change meanwhile."""
    return plus_hours(F.col("assigned_at"), F.lit(24.0) * days)


def _events(
    outcomes: DataFrame, units: DataFrame, names: tuple[str, ...], labels: Labels, as_of: datetime
) -> DataFrame:
    """unit_id, assigned_at, outcome, value, occurred_at, known_at and fate of the rows inside their unit's window.

    fate   counted, duplicate or late as in `event_counts`; null of what neither had occurred nor was known by `as_of`
    """
    rows = _marked(outcomes, ("outcome",), ("unit_id", "outcome", "value", "occurred_at")).filter(
        F.col("outcome").isin(*names)
    )
    days = F.create_map(*[F.lit(part) for name in names for part in (name, float(labels.days(name)))])
    joined = rows.join(units.select("unit_id", "assigned_at"), "unit_id")
    known, repeated = F.col("known_at") <= instant(as_of), F.col("_repeated")
    fate = (
        F.when(known & ~repeated, _COUNTED)
        .when(known, _DUPLICATE)
        .when(~repeated & (F.col("occurred_at") <= instant(as_of)), _LATE)
    )
    inside = _inside(joined, "occurred_at", F.element_at(days, F.col("outcome")))
    return inside.select("unit_id", "assigned_at", "outcome", "value", "occurred_at", "known_at", fate.alias("fate"))


def _inside(rows: DataFrame, time: str, days: float | Column) -> DataFrame:
    return rows.filter((F.col(time) >= F.col("assigned_at")) & (F.col(time) < _after(days)))


def _marked(rows: DataFrame, what: tuple[str, ...], content: tuple[str, ...]) -> DataFrame:
    """`content`, known_at, and whether the row's event has a row that was known before (_repeated).

    Rows of the same event share the id and `what` happened: one order may be a conversion and a revenue.
    Rows without an id stand for themselves and are kept out of the shuffle by id; each branch reads the files it needs.
    """
    first = Window.partitionBy(*what, "event_id").orderBy("known_at", "ingested_at", *content)
    named = rows.filter("event_id IS NOT NULL").withColumn("_repeated", F.row_number().over(first) > 1)
    nameless = rows.filter("event_id IS NULL").withColumn("_repeated", F.lit(False))
    columns = (*content, "known_at", "_repeated")
    return nameless.select(*columns).unionByName(named.select(*columns))


def events_once(rows: DataFrame, what: tuple[str, ...], content: tuple[str, ...]) -> DataFrame:
    """Leave out rows whose event was known before by another row.

    Args:
        rows: Of bronze.outcome or bronze.delivery.
        what: Columns that tell events of the same id apart.
        content: Columns to keep; of rows known at the same time, and ingested so, they decide which is the first.

    Returns:
        `content` and known_at.
    """
    return _marked(rows, what, content).filter("NOT _repeated").drop("_repeated")


def _with_delivered(units: DataFrame, deliveries: DataFrame | None, days: float, as_of: datetime) -> DataFrame:
    """`units` with the column delivered."""
    if deliveries is None:
        return units.withColumn("delivered", F.lit(None).cast("boolean"))
    known = deliveries.filter(F.col("known_at") <= instant(as_of))
    marked = _marked(known, (), ("unit_id", "status", "delivered_at"))
    arrived = marked.filter("NOT _repeated AND status = 'delivered'")
    reached = _inside(arrived.join(units.select("unit_id", "assigned_at"), "unit_id"), "delivered_at", days)
    reached = reached.select("unit_id").distinct().withColumn("_reached", F.lit(True))
    logged = known.agg((F.count("*") > 0).alias("_logged"))
    delivered = F.when(F.col("_logged"), F.coalesce("_reached", F.lit(False)))
    return units.join(reached, "unit_id", "left").crossJoin(F.broadcast(logged)).withColumn("delivered", delivered)


def _totals(events: DataFrame, names: tuple[str, ...]) -> DataFrame:
    """unit_id and one array of values per outcome."""
    values = [
        F.collect_list(F.when(F.col("outcome") == name, F.struct("value"))).alias(_position(i))
        for i, name in enumerate(names)
    ]
    return events.groupBy("unit_id").agg(*values)


def _position(i: int) -> str:
    return f"_outcome_{i}"


def _as_map(names: tuple[str, ...]) -> Column:
    pairs = [part for i, name in enumerate(names) for part in (F.lit(name), _sum(F.col(_position(i))))]
    return F.create_map(*pairs)


def _sum(values: Column) -> Column:
    """Sum of an array of structs of one value: in sorted order, so that no partitioning changes the last bit."""
    ordered = F.array_sort(values)
    total = F.aggregate(ordered, F.lit(0.0), lambda running, item: running + item["value"])
    return F.when(values.isNull(), F.lit(0.0)).otherwise(total)


# --------------------------------------------------------------------------------------------------------------------
# Warnings of the features job about events that are missing: late, lost for whole days, or never sent.

History = tuple[DataFrame, DataFrame, tuple[str, ...], Labels, datetime]

_TYPES = {**dict.fromkeys(("since", "age", "day", "delay", "n"), "int64"), "first": "bool", "mature": "bool"}


def late_and_missing(config: Config, history: History, sends: Sends, progress: ProgressCallback) -> dict[str, Any]:
    """What became of the outcomes' events and of the deliveries, and what is missing among them; see `event_details`
    and `missing_events`."""
    # Both in one query, so that the events are put beside their units once.
    both = event_days(*history).unionByName(event_counts(*history), allowMissingColumns=True).toArrow()
    of_events = pc.is_valid(both["counted"])
    days = both.filter(pc.invert(of_events)).to_pandas()
    details = event_details(both.filter(of_events).to_pylist(), sends)
    return details | missing_events(config, days, sends, history[-1], progress)


def missing_events(
    config: Config, rows: pd.DataFrame, sends: Sends, as_of: datetime, progress: ProgressCallback
) -> dict[str, Any]:
    """{"outcome_completeness": {outcome: share of the mature labels' events that are known}, "warnings": sentences}.

    rows    of `events.labels.event_days`
    sends   `label_counts`; the control, which is sent nothing, is left out
    Completeness is null without any event. Every warning also goes to `progress`.
    """
    units = rows[rows["outcome"].isna()]
    shares: dict[str, float | None] = {}
    warnings = []
    for name in config.outcomes:
        events = rows[rows["outcome"] == name].astype(_TYPES)
        span = int(rows["since"].max()) + 1
        known = known_shares(events["day"].to_numpy(), events["delay"].to_numpy(), events["n"].to_numpy(), span)
        mature = events[events["mature"]]
        share = completeness(mature["day"].to_numpy(), mature["n"].to_numpy(), known)
        shares[name] = None if np.isnan(share) else round(share, 4)
        if share < config.alarms.complete:
            warnings.append(
                f"{name}: {share:.1%} of the mature labels' events are known, less than "
                f"{config.alarms.complete:.1%}: raise labels.wait_days, or labels count too little"
            )
        warnings += _outage(name, config, units, events, known, as_of)
    treated = {arm: counts for arm, counts in sends.items() if arm != config.roles.control}
    for arm in unreached_arms(treated, config.alarms.alpha, config.alarms.delivery_gap):
        reached, n = treated[arm.arm]
        warnings.append(
            f"arm {arm.arm!r}: {reached:,} of {n:,} units were reached ({arm.rate:.1%}), against {arm.others:.1%} of "
            f"the other treated arms (p = {arm.p_value:.2g}): its deliveries fail; mend them before arms are compared"
        )
    for warning in warnings:
        progress(f"warning: {warning}")
    return {"outcome_completeness": shares, "warnings": warnings}


def _outage(
    name: str, config: Config, units: pd.DataFrame, events: pd.DataFrame, known: np.ndarray, as_of: datetime
) -> list[str]:
    """One sentence if whole days lack their events. Ages count that the window covers whole."""
    ages = int(config.labels.days(name))
    firsts = events[events["first"] & (events["age"] < ages)]
    table = np.zeros((len(known), ages))
    np.add.at(table, (firsts["since"].to_numpy(), firsts["age"].to_numpy()), firsts["n"].to_numpy())
    assigned = np.bincount(units["since"].to_numpy(), units["n"].to_numpy(), len(known))
    missing = missing_days(assigned, table, known, config.alarms.alpha)
    if not missing:
        return []
    first, last = (as_of - timedelta(days=one.day + 1) for one in (missing[-1], missing[0]))
    observed, usual = sum(one.known for one in missing), sum(one.usual for one in missing)
    return [
        f"{name}: {observed:,} first events on {len(missing)} days from about {first:%Y-%m-%d} to "
        f"{last:%Y-%m-%d} where "
        f"{usual:,.0f} were expected from units of the same age: its feed was out; load what is missing, or set an "
        "earlier labels.as_of"
    ]
