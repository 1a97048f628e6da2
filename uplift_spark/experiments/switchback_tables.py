"""Switchbacks in the lakehouse: the schedule that `uplift assign` writes, and observations added up by its blocks.

Spark reads the observations once, to a row a block; all else happens here, on a table as long as the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, NumericType, StringType, TimestampNTZType, TimestampType

from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.load import TEXTS
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, value_columns
from uplift_spark.experiments.health import HealthFinding, arm_faults
from uplift_spark.experiments.protocol import (
    ReadingOptions,
    TrialReading,
    check_record,
    check_trial_columns,
    designed,
    read_trial_rows,
    readout_design,
    readout_metrics,
    rows_at,
    start_of_today,
    switchback_plan,
    trial_of,
)
from uplift_spark.experiments.readout import ReadoutMetric, TrialReadout
from uplift_spark.experiments.switchback import BLOCK_ID, ROUND, STARTS_AT, BlockSums, Switchback, redealt_effects
from uplift_spark.lake.contracts import trimmed_id
from uplift_spark.lake.schemas import SCHEDULE_TABLE
from uplift_spark.lake.session import utc
from uplift_spark.roles import CAMPAIGN, PROPENSITY, TREATMENT
from uplift_spark.runtime import ProgressCallback
from uplift_spark.sections.experiment import ExperimentConf
from uplift_spark.sections.source import EventTable

_REGION = "region"
_OF_SCHEDULE = (BLOCK_ID, _REGION, STARTS_AT, "ends_at", ROUND, TREATMENT, PROPENSITY)
_MOST_REGIONS = 10_000
REDEALT_ROLE = "redealt"
"""Role of a switchback's second test and interval, from other deals of its schedule."""

# --------------------------------------------------------------------------------------------------------------------
# The schedule.


def regions_at(campaign: Campaign, location: str) -> tuple[list[str], str]:
    """Regions of a file, folder or table: each once, in order.

    Args:
        campaign: With `experiment.switchback`.
        location: With a column of that name; rows may repeat a region.

    Returns:
        (regions, identity of the content).

    Raises:
        ConfigError: The column is missing.
        DataError: Nothing is there, or a region is missing.
    """
    name = switchback_plan(trial_of(campaign.config)).region
    rows, identity = rows_at(campaign.lake, location, "--from")
    check_trial_columns(rows, {name: _REGION}, location)
    counts = rows.groupBy(trimmed_id(F.col(name).cast("string")).alias(_REGION)).count().limit(_MOST_REGIONS + 1)
    counted = {row[_REGION]: row["count"] for row in counts.collect()}
    if len(counted) > _MOST_REGIONS:
        raise DataError(f"column {name!r} of {location} has more than {_MOST_REGIONS:,} regions: name their column")
    if missing := counted.get(None, 0) + counted.get("", 0):
        raise DataError(f"column {name!r} of {location} is missing in {missing:,} rows: fill or drop them")
    if not counted:
        raise DataError(f"{location} has no row: name at least one region")
    return sorted(counted), identity


def schedule_of(campaign: Campaign) -> pd.DataFrame:
    """The campaign's blocks on record, as `Switchback.blocks` has them; none before `uplift assign`."""
    if not campaign.lake.exists(SCHEDULE_TABLE):
        return pd.DataFrame(columns=list(_OF_SCHEDULE))
    rows = campaign.lake.read(SCHEDULE_TABLE, campaign.lake.version(SCHEDULE_TABLE))
    return rows.where(F.col(CAMPAIGN) == campaign.name).select(*_OF_SCHEDULE).orderBy(BLOCK_ID).toPandas()


def schedule_rows(campaign: Campaign, regions: Sequence[str], at: datetime, source: str) -> tuple[DataFrame, int]:
    """Rows of bronze.schedule: each region's blocks that begin no earlier than they get their arm.

    Args:
        campaign: With `experiment.switchback`.
        regions: Whose blocks.
        at: When blocks get their arms.
        source: Where the regions are from.

    Returns:
        (a frame of a row a block, blocks that are left out).

    Raises:
        DataError: No block begins later.
    """
    plan = switchback_plan(trial_of(campaign.config))
    blocks = plan.blocks(regions).rename(columns={plan.region: _REGION})
    coming = blocks[blocks[STARTS_AT] >= pd.Timestamp(utc(at))]
    if coming.empty:
        raise DataError(
            f"the last block begins before {utc(at):%Y-%m-%d %H:%M} UTC, so none can get an arm: set a later "
            "experiment.end, or say with --at when the schedule was laid down"
        )
    common = {CAMPAIGN: campaign.name, "assigned_at": at, "source": source}
    rows = ({**dict(zip(blocks.columns, row, strict=True)), **common} for row in _cells(coming))
    return campaign.lake.filled(SCHEDULE_TABLE, rows), len(blocks) - len(coming)


def _cells(blocks: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Rows as Python's values: Spark takes no times of pandas."""
    for row in blocks.itertuples(index=False, name=None):
        yield tuple(one.to_pydatetime() if isinstance(one, pd.Timestamp) else one for one in row)


def _checked_schedule(campaign: Campaign, plan: Switchback, as_of: datetime) -> pd.DataFrame:
    """The schedule on record, indexed by block, once it is that of the plan."""
    on_record = check_record(campaign, designed(campaign.config), as_of)
    schedule = schedule_of(campaign)
    if not on_record or schedule.empty:
        raise DataError(
            f"campaign {campaign.name} has no schedule in {SCHEDULE_TABLE}: run `uplift assign --from REGIONS` first"
        )
    arms = schedule.groupby(BLOCK_ID)[TREATMENT].nunique()
    if torn := sorted(arms[arms > 1].index):
        raise DataError(
            f"{SCHEDULE_TABLE} has two arms in {len(torn):,} blocks of campaign {campaign.name}, such as {torn[0]}: "
            "delete the rows that `uplift assign` did not write"
        )
    schedule = schedule.drop_duplicates(BLOCK_ID).set_index(BLOCK_ID)
    dealt = plan.blocks(list(schedule[_REGION].unique())).set_index(BLOCK_ID)[TREATMENT]
    if other := sorted(schedule.index[schedule[TREATMENT] != dealt.reindex(schedule.index)]):
        raise DataError(
            f"{SCHEDULE_TABLE} has another arm than the design deals in {len(other):,} blocks of campaign "
            f"{campaign.name}, such as {other[0]}: delete the rows that `uplift assign` did not write"
        )
    return schedule


# --------------------------------------------------------------------------------------------------------------------
# Observations.


@dataclass(frozen=True)
class SwitchbackReading(TrialReading):
    """Sums and counts of a switchback as of a moment; units are blocks.

    blocks   observations by block
    plan     what was laid down
    redeals  how often it is dealt anew
    planned  blocks of the schedule that had ended by then
    """

    blocks: BlockSums | None = None
    plan: Switchback | None = None
    redeals: int = 0
    planned: int = 0

    @property
    def noun(self) -> str:
        """What has arms."""
        return "blocks"

    @property
    def details(self) -> dict[str, str]:
        """As of when it was read, and how much of the observations, for printing."""
        assert self.blocks is not None
        rows, empty = int(self.blocks.rows.sum()), self.planned - len(self.blocks.rows)
        waiting = {"not_complete_yet": f"{self.waiting:,} rows, of blocks that had not ended"} if self.waiting else {}
        return {
            "as_of": f"{self.as_of:%Y-%m-%d %H:%M} UTC",
            "rows": f"{rows:,} of {self.blocks.total:,} lie in blocks behind their burn-in",
            **({"no_rows": f"{empty:,} of {self.planned:,} blocks"} if empty else {}),
            **waiting,
        }

    def redealt(self, metrics: Sequence[ReadoutMetric], result: TrialReadout) -> tuple[RedealtEffect, ...]:
        """Each metric's second test and interval; `result` was read of the sums."""
        assert self.blocks is not None and self.plan is not None
        if not result.metrics:
            return ()
        rows = redealt_effects(self.blocks, metrics, self.plan, (self.sums, result), self.redeals)
        return tuple(RedealtEffect(*row) for row in rows.itertuples(index=False, name=None))


@dataclass(frozen=True)
class RedealtEffect:
    """A metric's effect with p-value and interval from other deals of the schedule; its figures as `MetricReadout`."""

    metric: str
    arm: str
    effect: float
    p_value: float
    lower: float
    upper: float
    role: str = REDEALT_ROLE

    def __str__(self) -> str:
        return (
            f"re-dealt {self.metric}, arm {self.arm}: {self.effect:+.5g}, between {self.lower:+.5g} and "
            f"{self.upper:+.5g}, p = {self.p_value:.2g}"
        )


def trial_reading(campaign: Campaign, options: ReadingOptions) -> TrialReading:
    """Add up a trial's rows: by units, as `read_trial_rows`, or by blocks, as `read_observations`."""
    if trial_of(campaign.config).switchback is None:
        return read_trial_rows(campaign, options)
    return read_observations(campaign, options)


def trial_faults(campaign: Campaign, progress: ProgressCallback) -> tuple[list[HealthFinding], float]:
    """Find what says that a trial's arms are not what its protocol makes: then its units teach no effect.

    Args:
        campaign: Whose configuration may have a section `experiment`.
        progress: Says why a trial cannot be checked.

    Returns:
        The findings, and of how many units; none without a trial, nor of a switchback, whose blocks say nothing of the
        training set's arms.
    """
    trial = campaign.config.experiment
    if trial is None or trial.switchback is not None:
        return [], 0
    try:
        facts = read_trial_rows(campaign, ReadingOptions()).facts
    except ConfigError as error:
        progress(f"the trial's arms are not checked: {error}")
        return [], 0
    return arm_faults(facts, readout_design(campaign.config)), facts.total


def read_observations(campaign: Campaign, options: ReadingOptions) -> SwitchbackReading:
    """Add up the observations of a switchback in blocks that had ended.

    Args:
        campaign: With `experiment.switchback` and a schedule on record.
        options: How it is read; `--as-of` is when blocks had ended.

    Returns:
        The reading.

    Raises:
        ConfigError: A column is missing, a policy is named, or the design is not that of the schedule.
        DataError: There is no schedule; observations lie in no region, block or time of it, or are no numbers; more
            than 1 % saw another arm than their block's.
    """
    trial = trial_of(campaign.config)
    plan, conf, metrics = switchback_plan(trial), trial.switchback, readout_metrics(trial)
    assert conf is not None and trial.table is not None
    if options.policy is not None:
        raise ConfigError("--policy compares arms of units, and a switchback has arms of blocks: leave it out")
    as_of = utc(options.as_of) if options.as_of else start_of_today()
    schedule = _checked_schedule(campaign, plan, as_of)
    rows, identity = rows_at(campaign.lake, trial.table, "experiment.table")
    names = value_columns(metrics, ReadoutColumns(balance=trial.balance))
    kinds = {plan.region: _REGION, plan.time: "time"} | dict.fromkeys(names, "metric")
    check_trial_columns(rows, kinds, trial.table)
    rows = _typed(rows, plan, names, trial)
    ended = _ended(plan, as_of)
    counted = _by_cell(rows, plan, names, sorted(schedule[_REGION].unique()), (ended, list(trial.arms)))
    _refuse_strays(counted, trial, plan, schedule)
    blocks = _block_sums(counted, plan, schedule, names)
    when = ReadingTime(max(0, (min(as_of, plan.end) - plan.start).days), at_end=options.final or as_of >= plan.end)
    columns = ReadoutColumns(BLOCK_ID, balance=trial.balance)
    sums, facts = blocks.trial(metrics, readout_design(campaign.config), columns, when)
    waiting = int(counted.loc[counted["place"] == "waiting", "n"].sum())
    planned = int((schedule["ends_at"] <= pd.Timestamp(as_of).tz_localize(None)).sum())
    return SwitchbackReading(
        sums=sums,
        facts=facts,
        as_of=as_of,
        waiting=waiting,
        identity=f"{identity}, {len(schedule)} blocks",
        columns=columns,
        findings=tuple(blocks.findings()),
        blocks=blocks,
        plan=plan,
        redeals=conf.redeals,
        planned=planned,
    )


def _ended(plan: Switchback, as_of: datetime) -> int:
    """Blocks of a region that had ended."""
    return int(min(plan.periods, max(0, (as_of - plan.start) / timedelta(hours=plan.hours) + 1e-9)))


def _typed(rows: DataFrame, plan: Switchback, names: Sequence[str], trial: ExperimentConf) -> DataFrame:
    """Rows with `region`, the microseconds `since` the start, `seen` arms and numbers; what is none is null."""
    assert trial.table is not None
    texts = EventTable(path=trial.table).read_as in TEXTS
    types = {field.name.lower(): field.dataType for field in rows.schema}
    moment_type = types[plan.time.lower()]
    if not isinstance(moment_type, TimestampType | TimestampNTZType | DateType | StringType):
        raise DataError(f"column {plan.time!r} of {trial.table} holds no times: cast it to timestamps")
    for name in names:
        if not (isinstance(types[name.lower()], NumericType) or texts or types[name.lower()].typeName() == "boolean"):
            raise DataError(f"column {name!r} of {trial.table} is no number: cast it, or name another column")
    since = F.expr(f"unix_micros(try_cast(`{plan.time}` AS timestamp))") - F.lit(round(plan.start.timestamp() * 1e6))
    arm = F.col(TREATMENT).cast("string") if TREATMENT in types else F.lit(None).cast("string")
    numbers = [F.expr(f"try_cast(`{name}` AS double)").alias(f"v{k}") for k, name in enumerate(names)]
    region = trimmed_id(F.col(plan.region).cast("string"))
    return rows.select(region.alias(_REGION), since.alias("since"), arm.alias("arm"), *numbers)


_STRAYS = ("no_region", "no_time", "foreign", "outside")  # of all rows; the others lie in a block of the plan


def _by_cell(
    rows: DataFrame, plan: Switchback, names: Sequence[str], regions: list[str], known: tuple[int, list[str]]
) -> pd.DataFrame:
    """One pass over the rows: counts and sums by what is wrong with them, or by block and the arm that they saw.

    There are at most as many lines as blocks times arms, however many rows or regions there are.
    """
    ended, arms = known
    length, burn_in = (round(hours * 3_600_000_000) for hours in (plan.hours, plan.burn_in_hours))
    whole = round((plan.end - plan.start) / timedelta(microseconds=1))
    since, region = F.col("since"), F.col(_REGION)
    period = F.floor(since / F.lit(length)).cast("bigint")
    place: Column = F.when(region.isNull() | (region == ""), "no_region").when(since.isNull(), "no_time")
    place = place.when((since < 0) | (since >= whole), "outside").when(~region.isin(regions), "foreign")
    place = place.when(period >= plan.periods, "rest").when(period >= ended, "waiting")
    place = place.when(since % F.lit(length) < burn_in, "burn-in").otherwise("block")
    inside = F.col("place").isin("block", "burn-in")
    arm = F.when(F.col("arm").isin(arms), F.col("arm")).otherwise(F.when(F.col("arm").isNotNull(), "another"))
    keys = {
        _REGION: F.when(inside, region),
        "period": F.when(inside, period),
        "arm": F.when(F.col("place") == "block", arm),
    }
    values = [F.col(f"v{k}") for k in range(len(names))]
    right = [F.coalesce(F.abs(value) < F.lit(float("inf")), F.lit(False)) for value in values]
    figures = [F.count(F.lit(1)).alias("n"), F.min(region).alias("example"), F.min("since").alias("first")]
    figures += [
        F.sum(F.when(fine, value)).alias(f"v{k}") for k, (fine, value) in enumerate(zip(right, values, strict=True))
    ]
    figures += [F.count_if(~fine).alias(f"wrong{k}") for k, fine in enumerate(right)]
    placed = rows.withColumn("place", place)
    return (
        placed.groupBy("place", *(value.alias(f"of_{name}") for name, value in keys.items())).agg(*figures).toPandas()
    )


def _refuse_strays(counted: pd.DataFrame, trial: ExperimentConf, plan: Switchback, schedule: pd.DataFrame) -> None:
    """Raise DataError where observations have no block, in one sentence each."""
    table = trial.table
    if counted.empty:
        raise DataError(f"{table} has no row: observations of the trial are read from it")
    strays = {name: counted[counted["place"] == name] for name in _STRAYS}
    n = {name: int(part["n"].sum()) for name, part in strays.items()}
    for name, column in (("no_region", plan.region), ("no_time", plan.time)):
        if n[name]:
            what = "is missing" if name == "no_region" else "is missing or no time"
            raise DataError(f"column {column!r} of {table} {what} in {n[name]:,} rows: fill or drop them")
    if n["foreign"]:
        regions, example = sorted(schedule[_REGION].unique()), strays["foreign"]["example"].min()
        raise DataError(
            f"{n['foreign']:,} rows of {table} are of regions that {SCHEDULE_TABLE} has not, such as {example!r}: "
            f"{hint(example, regions)}, assign new regions with `uplift assign`, or leave their rows out"
        )
    if n["outside"]:
        first = plan.start + timedelta(microseconds=int(strays["outside"]["first"].min()))
        raise DataError(
            f"{n['outside']:,} rows of {table} lie outside the trial's time from {plan.start:%Y-%m-%d %H:%M} to "
            f"{plan.end:%Y-%m-%d %H:%M} UTC, such as at {first:%Y-%m-%d %H:%M}: leave them out, and check the time zone"
        )


def _block_sums(counted: pd.DataFrame, plan: Switchback, schedule: pd.DataFrame, names: Sequence[str]) -> BlockSums:
    """Lines of `_by_cell` added up by block. Raises DataError for a block that is not in the schedule, and for values
    that are no numbers."""
    inside = counted[counted["place"].isin(["block", "burn-in"])].copy()
    inside[BLOCK_ID] = plan.block_ids(list(inside[f"of_{_REGION}"]), inside["of_period"].to_numpy(np.int64))
    absent = inside[~inside[BLOCK_ID].isin(schedule.index)]
    if len(absent):
        n, without = int(absent["n"].sum()), absent[BLOCK_ID].nunique()
        raise DataError(
            f"{n:,} rows lie in {without:,} blocks that {SCHEDULE_TABLE} has not, such as {absent[BLOCK_ID].min()}: "
            "leave them out, for no arm was assigned to these blocks"
        )
    lines = inside[inside["place"] == "block"]
    for k, name in enumerate(names):
        if wrong := int(lines[f"wrong{k}"].sum()):
            raise DataError(f"column {name!r} is missing or not finite in {wrong:,} rows: fill or drop them")
    if lines.empty:
        raise DataError(
            f"no row lies in a block that has ended, behind its burn-in: look at {plan.time!r} and the trial's start"
        )
    dealt = schedule.loc[lines[BLOCK_ID], TREATMENT].to_numpy()
    crossed = int(lines.loc[lines["of_arm"].notna() & (lines["of_arm"] != dealt), "n"].sum())
    summed = lines.groupby(BLOCK_ID, sort=True)[["n", *(f"v{k}" for k in range(len(names)))]].sum()
    blocks = schedule.loc[summed.index].reset_index().rename(columns={_REGION: plan.region})
    values = summed.to_numpy(float)
    return BlockSums(blocks, values[:, 0], values[:, 1:], tuple(names), crossed, int(counted["n"].sum()))
