"""What is known about a running campaign when its model is decided on: windows, incidents, new units. Spark.

All of it is read from what `uplift monitor` wrote and from raw events; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Labels
from uplift_spark.errors import DataError
from uplift_spark.lake.schemas import (
    ALERTS_TABLE,
    ASSIGNMENT_TABLE,
    CANARY_TABLE,
    OUTCOME_TABLE,
    QUARANTINE,
    gold_table,
)
from uplift_spark.lake.session import instant, moment, plus_hours
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.alerts import AlertBook
from uplift_spark.monitoring.spark import alert_events, last_runs, lasting
from uplift_spark.registry.retraining import INCIDENTS, NewArm
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT
from uplift_spark.sections.canary import GOES_ON

_KPI_TABLE = gold_table("kpi")
_REPLAYED = "quarantine#"  # how the source of rows begins that `uplift replay` added


@dataclass(frozen=True)
class MonitoredWindows:
    """The windows of a campaign that were monitored.

    runs        {start: run that knew most}, oldest first
    start, end  of the newest one
    """

    lake: Lake
    campaign: str
    runs: Mapping[datetime, str]
    start: datetime
    end: datetime

    @property
    def words(self) -> str:
        """The newest one, for a reader."""
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} UTC"

    def last(self, n: int) -> list[str]:
        """Runs of the last windows.

        Args:
            n: How many windows, at most.

        Returns:
            Their runs, oldest first.
        """
        return list(self.runs.values())[-n:]

    def rows(self, table: str, runs: Sequence[str], version: str | None = None) -> list[dict[str, Any]]:
        """Read what runs of monitor wrote.

        Args:
            table: kpi, drift or findings.
            runs: Of which runs.
            version: Of this model version alone; None: of any.

        Returns:
            Rows, moments in UTC; none where the table is not there.
        """
        if not self.lake.exists(gold_table(table)):
            return []
        rows = self.lake.read(gold_table(table)).where(
            (F.col(CAMPAIGN) == self.campaign) & F.col(RUN_ID).isin(list(runs))
        )
        rows = rows if version is None else rows.where(F.col("model_version") == version)
        times = {name: F.unix_micros(name) for name in ("window_start", "window_end")}
        collected = [row.asDict() for row in rows.withColumns(times).collect()]
        return [{**row, **{name: moment(row[name]) for name in times}} for row in collected]

    def check_newest(self, last: datetime, hours: int) -> None:
        """Refuse to decide while whole windows wait to be monitored.

        Args:
            last: When the newest unit was assigned.
            hours: Of a window.

        Raises:
            DataError: A whole window lies between the newest monitored one and this unit.
        """
        if last >= self.end + timedelta(hours=hours):
            raise DataError(
                f"units were assigned until {last:%Y-%m-%d %H:%M} UTC, but the newest window in {_KPI_TABLE} ends "
                f"{self.end:%Y-%m-%d %H:%M}: run `uplift monitor` for the windows since"
            )


def monitored_windows(lake: Lake, campaign: str, hours: int) -> MonitoredWindows:
    """Find the windows of a campaign that were monitored.

    Args:
        lake: The lakehouse.
        campaign: Name of the campaign.
        hours: Of a window (`monitoring.hours`); windows of another length do not count.

    Returns:
        The windows.

    Raises:
        DataError: None of this length was.
    """
    row = None
    if lake.exists(_KPI_TABLE):
        mine = lake.read(_KPI_TABLE).where((F.col(CAMPAIGN) == campaign) & lasting(hours))
        ends = (F.unix_micros("window_start").alias("start"), F.unix_micros("window_end").alias("end"))
        row = mine.select(*ends).orderBy(F.desc("start")).first()
    if row is None:
        raise DataError(
            f"table {_KPI_TABLE} has no window of {hours} h of campaign {campaign}: run `uplift monitor` first, so "
            "that incidents are known before a model is fitted"
        )
    runs = dict(sorted(last_runs(mine).items()))
    return MonitoredWindows(lake, campaign, runs, moment(row["start"]), moment(row["end"]))


def open_incidents(windows: MonitoredWindows, newest: int) -> dict[str, tuple[str, str]]:
    """Find incidents that forbid to fit a model.

    Args:
        windows: That were monitored.
        newest: Windows that count.

    Returns:
        {name among `INCIDENTS`: (where, sentence)}, of KPIs in state alert, findings, alerts that have fired and are
        not resolved, and a canary that goes on.
    """
    runs, incidents = windows.last(newest), {}
    for row in windows.rows("kpi", runs):
        if row["kpi"] in INCIDENTS and row["state"] == "alert":
            sentence = f"{row['kpi']} of {row['cut']} is {row['value']:.4g}, the threshold is {row['alert']:.4g}"
            incidents[row["kpi"]] = (_from(row), sentence)
    for row in windows.rows("findings", runs):
        if row["finding"] in INCIDENTS:
            incidents[row["finding"]] = (_from(row), row["sentence"])
    if windows.lake.exists(ALERTS_TABLE):
        events = alert_events(windows.lake.read(ALERTS_TABLE), windows.campaign)
        for state in AlertBook.replay(events).states.values():
            if state.active and state.last.rule in INCIDENTS:
                incidents.setdefault(state.last.rule, ("an alert is open", state.last.summary))
    if windows.lake.exists(CANARY_TABLE):
        canaries = windows.lake.read(CANARY_TABLE).where(F.col(CAMPAIGN) == windows.campaign)
        last = canaries.orderBy(F.desc("step")).first()
        if last is not None and last["state"] in GOES_ON:
            sentence = f"{last['canary']} of version {last['challenger']} is {last['state']}"
            incidents["canary"] = ("a canary goes on", sentence)
    return dict(sorted(incidents.items()))


def was_on_trial(lake: Lake, campaign: str, version: int) -> str | None:
    """Say in which canary a version was on trial: it had its chance, however that ended.

    Args:
        lake: The lakehouse.
        campaign: Name of the campaign.
        version: Of the model.

    Returns:
        One clause; None where it never was.
    """
    if not lake.exists(CANARY_TABLE):
        return None
    tried = (F.col("challenger") == str(version)) & (F.col("share") > 0)  # a rollback has no slices
    rows = lake.read(CANARY_TABLE).where((F.col(CAMPAIGN) == campaign) & tried)
    last = rows.orderBy(F.desc("step")).first()
    return None if last is None else f"version {version} was on trial already, in canary {last['canary']}"


def _from(row: Mapping[str, Any]) -> str:
    return f"in the window from {row['window_start']:%Y-%m-%d %H:%M}"


def new_arms(newer: DataFrame, mature: Column, levels: Iterable[str], fitted: bool) -> dict[str, NewArm]:
    """Count new units by level; those apart whose policy was certain of it, as training sets set them apart.

    Args:
        newer: Rows of assignments.
        mature: Whether the labels of a row are mature.
        levels: That must be there, with no unit if need be.
        fitted: Whether propensities are fitted, so that nobody is set apart for the logged one.

    Returns:
        {level: sums over mature rows}.
    """
    certain = F.lit(False) if fitted else F.coalesce(F.col(PROPENSITY) >= 1, F.lit(False))
    inverse = F.when(~certain, 1 / F.col(PROPENSITY))
    sums = {
        "units": F.count_if(~certain),
        "logged": F.count(inverse),
        "one": F.sum(inverse),
        "two": F.sum(inverse * inverse),
        "certain": F.count_if(certain),
    }
    arms = {level: NewArm(0, 0, 0.0, 0.0) for level in levels}
    for row in newer.where(mature).groupBy(TREATMENT).agg(*(of.alias(name) for name, of in sums.items())).collect():
        squares = row["one"] or 0.0, row["two"] or 0.0
        arms[row[TREATMENT]] = NewArm(row["units"], row["logged"], *squares, row["certain"])
    return arms


def matured(labels: Labels, names: Sequence[str], as_of: datetime) -> Column:
    """Say whether the labels of an assignment are mature.

    Args:
        labels: The section of the configuration.
        names: Outcomes.
        as_of: When labels are read.

    Returns:
        A condition over rows of assignments.
    """
    longest = max(labels.days(name) for name in names) + labels.wait_days
    return plus_hours(F.col("assigned_at"), F.lit(24.0 * longest)) <= instant(as_of)


def quarantined_since(lake: Lake, campaign: str, newer: DataFrame) -> tuple[int, int]:
    """Count rows in quarantine and rows taken in since the first of the new units came.

    Args:
        lake: The lakehouse.
        campaign: Name of the campaign.
        newer: Assignments of new units.

    Returns:
        (rows in quarantine that no replay has repaired, rows of assignments and outcomes).
    """
    since, runs = newer.agg(F.min(F.unix_micros("ingested_at")), F.collect_set(RUN_ID)).collect()[0]
    if since is None:
        return 0, 0
    # A run writes its tables one after another, quarantine first.
    came = (F.unix_micros("ingested_at") >= since) | F.col(RUN_ID).isin(runs)
    mine = (F.col(CAMPAIGN) == campaign) & came
    replayed = F.count_if(F.col("source").startswith(_REPLAYED))
    taken = repaired = 0
    for table in (ASSIGNMENT_TABLE, OUTCOME_TABLE):
        n, again = lake.read(table).where(mine).agg(F.count(F.lit(1)), replayed).collect()[0]
        taken, repaired = taken + n, repaired + again
    rejected = lake.read(QUARANTINE).where(mine).count() if lake.exists(QUARANTINE) else 0
    return max(0, rejected - repaired), taken
