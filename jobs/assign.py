"""Assign arms to the units of a table or file, by a salted hash of their ids; --sql prints it for any warehouse.

Reads the source and gold.experiment; appends units that have no arm yet, with their propensity by design, to
bronze.assignment, and a design that is not on record to gold.experiment. The same source and design add nothing; a
raised ramp adds units and moves none. Of a switchback the source has regions, and their blocks of time get arms, in
bronze.schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.console import ConfOption, RunOption, SetOption, main_command, read_config, run_jobs
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.load import until_first
from uplift_spark.events.load_source import short_digest
from uplift_spark.experiments.assignment import LEFT_OUT, AssignmentColumns, Experiment, assignment_sql
from uplift_spark.experiments.protocol import (
    ASSIGNED,
    assignment_columns,
    balance_rule,
    check_record,
    check_trial_columns,
    designed,
    record_row,
    roles_of_columns,
    rows_at,
    trial_of,
    with_trimmed_ids,
)
from uplift_spark.experiments.rerandomise import BalanceRule
from uplift_spark.experiments.spark import with_arms
from uplift_spark.experiments.switchback_tables import regions_at, schedule_of, schedule_rows
from uplift_spark.governance.privacy import key_of, pseudonymised
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, EXPERIMENT_TABLE, SCHEDULE_TABLE
from uplift_spark.lake.session import instant, parsed_time
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import CAMPAIGN, PROPENSITY, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress
from uplift_spark.sections.experiment import ExperimentConf

_CLAIMS = {EXPERIMENT_TABLE: "assign", ASSIGNMENT_TABLE: f"load {ASSIGNMENT_TABLE}"}
"""Runs that must not write at once: a salt is checked over all campaigns, and `uplift load` adds assignments, too."""
_KNOWN, _MOST_DEALT = "__known", 2_000_000
_DECISION = "__decision"  # a policy's arms often stand in a column `treatment`, which assignment fills itself


@dataclass(frozen=True)
class UnitsToAssign:
    """A file, folder or table with a row a unit, or a region of a switchback; and when it is assigned: now if None."""

    source: str
    at: datetime | None = None


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, units: UnitsToAssign
) -> JobResult:
    """Add the units that have no arm yet; a salt that was used otherwise is refused before any write.

    Of runs at the same time the first to write wins, and the others read again what is left to add.
    """
    at = units.at or datetime.now(UTC)
    attempt = _attempt if trial_of(campaign.config).switchback is None else _attempt_schedule
    return until_first(lambda: attempt(campaign, progress, run_id, units.source, at), progress)


def _attempt(
    campaign: Campaign, progress: ProgressCallback, run_id: str | None, location: str, at: datetime
) -> JobResult:
    """Assign by what is on record now. Raises OvertakenError when another run has written meanwhile."""
    lake, trial, experiment = campaign.lake, trial_of(campaign.config), designed(campaign.config)
    claims = {table: lake.claim(table, name) for table, name in _CLAIMS.items()}
    on_record = check_record(campaign, experiment, at)
    rows, identity = rows_at(lake, location, "--from")
    check_trial_columns(rows, roles_of_columns(trial), location)
    source = _source_name(location, identity)
    selected, columns = _selected(with_trimmed_ids(rows, trial.unit), trial)
    progress(f"assigning units of {source}")
    dealt_by, deal = experiment, dict[str, str]()
    rule = balance_rule(trial)
    if rule is not None:
        if _all_dealt(campaign, selected, trial):
            progress("every unit of the source has its arm already: nothing is added")
            return JobResult.of("assign", run_id or "", salt=experiment.salt)
        dealt_by, before = _balanced(selected, trial, rule, experiment)
        deal = {"deal": f"accepted after {before:,} others, with salt {dealt_by.salt}"}
    dealt = with_arms(selected, dealt_by, columns)
    picked = dealt.select(F.col(trial.unit).cast("string").alias(UNIT), TREATMENT, PROPENSITY, LEFT_OUT)
    known = _with_known(campaign, pseudonymised(picked, key_of(campaign.config)))
    kinds = known.groupBy(TREATMENT, LEFT_OUT, _KNOWN).count().collect()
    if trial.strata:
        _refuse_other_lists(source, {row[_KNOWN]: row["count"] for row in kinds if row[TREATMENT] is not None})
    details = _counts(trial, [(row[TREATMENT], row[LEFT_OUT], row["count"]) for row in kinds]) | deal
    if not any(row[TREATMENT] is not None and row[_KNOWN] is None for row in kinds):
        progress("every unit of the source that takes part has its arm already: nothing is added")
        return JobResult.of("assign", run_id or "", salt=experiment.salt, **details)
    run_id = run_id or campaign.run_id("assign", source=identity, at=at)
    new = known.where(F.col(TREATMENT).isNotNull() & F.col(_KNOWN).isNull()).select(UNIT, TREATMENT, PROPENSITY)
    common = {CAMPAIGN: F.lit(campaign.name), "assigned_at": instant(at), "source": F.lit(source)}
    # The design goes on record first: units without one could be assigned again by another.
    records = [] if on_record else [(EXPERIMENT_TABLE, record_row(campaign, ASSIGNED, at))]
    tables = [*records, (ASSIGNMENT_TABLE, new.withColumns(common))]
    written = [lake.write(table, rows, run_id, claim=claims[table]) for table, rows in tables]
    return JobResult.of("assign", run_id, *written, salt=experiment.salt, **details)


def _all_dealt(campaign: Campaign, rows: DataFrame, trial: ExperimentConf) -> bool:
    """Whether all units have their arm. Raises ConfigError where the campaign was dealt and some have none."""
    lake = campaign.lake
    if (
        not lake.exists(ASSIGNMENT_TABLE)
        or lake.read(ASSIGNMENT_TABLE).where(F.col(CAMPAIGN) == campaign.name).isEmpty()
    ):
        return False
    ids = pseudonymised(rows.select(F.col(trial.unit).cast("string").alias(UNIT)), key_of(campaign.config))
    new = _with_known(campaign, ids).where(F.col(_KNOWN).isNull()).count()
    if new:
        raise ConfigError(
            f"{new:,} units have no arm, and those of campaign {campaign.name} were dealt together until they were "
            "balanced: give units that come later a trial of their own"
        )
    return True


def _balanced(
    rows: DataFrame, trial: ExperimentConf, rule: BalanceRule, experiment: Experiment
) -> tuple[Experiment, int]:
    """The first accepted deal's design, and the deals before it. Raises DataError as `BalanceRule.balanced`."""
    names = [f"v{k}" for k in range(len(trial.balance))]
    numbers = [
        F.expr(f"try_cast(`{one}` AS double)").alias(name) for one, name in zip(trial.balance, names, strict=True)
    ]
    units = rows.select(F.col(trial.unit).cast("string").alias(UNIT), *numbers).limit(_MOST_DEALT + 1).toPandas()
    if len(units) > _MOST_DEALT:
        raise DataError(
            f"the source has more than {_MOST_DEALT:,} units, which are not dealt anew: at this size arms are alike "
            "without, so drop experiment.rerandomise"
        )
    return rule.balanced(units[UNIT].tolist(), units[names].to_numpy(float), experiment)


def _attempt_schedule(
    campaign: Campaign, progress: ProgressCallback, run_id: str | None, location: str, at: datetime
) -> JobResult:
    """Add the blocks of regions that have none yet. Raises OvertakenError when another run has written meanwhile."""
    lake, experiment = campaign.lake, designed(campaign.config)
    claims = {table: lake.claim(table, "assign") for table in (EXPERIMENT_TABLE, SCHEDULE_TABLE)}
    on_record = check_record(campaign, experiment, at)
    regions, identity = regions_at(campaign, location)
    known = set(schedule_of(campaign)["region"])
    new = [region for region in regions if region not in known]
    source = _source_name(location, identity)
    details: dict[str, object] = {"salt": experiment.salt, "regions": f"{len(regions):,}"}
    if not new:
        progress("every region of the source has its blocks already: nothing is added")
        return JobResult.of("assign", run_id or "", **details)
    run_id = run_id or campaign.run_id("assign", source=identity, at=at)
    blocks, past = schedule_rows(campaign, new, at, source)
    if past:
        progress(
            f"{past:,} blocks of new regions began before {at:%Y-%m-%d %H:%M} UTC and are left out of the schedule"
        )
    records = [] if on_record else [(EXPERIMENT_TABLE, record_row(campaign, ASSIGNED, at))]
    written = [
        lake.write(table, rows, run_id, claim=claims[table]) for table, rows in [*records, (SCHEDULE_TABLE, blocks)]
    ]
    counts = {row[TREATMENT]: f"{row['count']:,}" for row in blocks.groupBy(TREATMENT).count().collect()}
    added = {"new_regions": f"{len(new):,}", "new_blocks": {arm: counts.get(arm, "0") for arm in experiment.arms}}
    return JobResult.of("assign", run_id, *written, **details, **added)


def _source_name(location: str, identity: str) -> str:
    return f"{location.rstrip('/').rsplit('/', 1)[-1]}#{short_digest(identity)}"


def _selected(rows: DataFrame, trial: ExperimentConf) -> tuple[DataFrame, AssignmentColumns]:
    """The columns that assignment reads, the decision under a name that no column of arms has."""
    names = [trial.unit, *([trial.cluster] if trial.cluster else []), *trial.strata]
    names += trial.balance if trial.rerandomise else ()
    picked: list[Column] = [F.col(name).alias(name) for name in dict.fromkeys(names)]
    if trial.decision is None:
        return rows.select(*picked), assignment_columns(trial)
    columns = AssignmentColumns(trial.unit, trial.cluster, trial.strata, _DECISION)
    return rows.select(*picked, F.col(trial.decision).alias(_DECISION)), columns


def _with_known(campaign: Campaign, rows: DataFrame) -> DataFrame:
    """Rows with the source that brought the unit into this campaign; null where it has no arm yet."""
    lake: Lake = campaign.lake
    if not lake.exists(ASSIGNMENT_TABLE):
        return rows.withColumn(_KNOWN, F.lit(None).cast("string"))
    assigned = lake.read(ASSIGNMENT_TABLE, lake.version(ASSIGNMENT_TABLE)).where(F.col(CAMPAIGN) == campaign.name)
    known = assigned.groupBy(UNIT).agg(F.min(F.coalesce("source", F.lit(""))).alias(_KNOWN))
    return rows.join(known, UNIT, "left")


def _refuse_other_lists(source: str, known: Mapping[str | None, int]) -> None:
    """Raise ConfigError where units have their arm from another list; known: {source or None: units}."""
    others = sum(count for name, count in known.items() if name not in (None, source))
    if others:
        raise ConfigError(
            f"{others:,} units of {source} have their arm from another list: arms within strata follow from the "
            "whole list, so assign new units as a list of their own"
        )


def _counts(trial: ExperimentConf, rows: list[tuple[str | None, str | None, int]]) -> dict[str, dict[str, str]]:
    """Units of the source by arm, and those that take no part by reason, for printing."""
    arms, reasons = Counter[str](), Counter[str]()
    for arm, reason, count in rows:
        if arm is None:
            reasons[str(reason)] += count
        else:
            arms[arm] += count
    details = {"units": {arm: f"{arms[arm]:,}" for arm in trial.arms}}
    return details | ({"left_out": {name: f"{n:,}" for name, n in reasons.items()}} if reasons else {})


def command(
    conf: ConfOption,
    source: Annotated[
        str | None, typer.Option("--from", help="File, folder or table with a row a unit or region.")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="When units are assigned, in UTC; by default now.")] = None,
    sql: Annotated[
        str | None, typer.Option("--sql", metavar="DIALECT", help="Print the query for a warehouse and stop.")
    ] = None,
    set_: SetOption = None,
    run_id: RunOption = None,
) -> None:
    """Assign units, or print the SQL that does."""
    if sql is not None:
        typer.echo(warehouse_query(conf, set_ or [], source or "units", sql))
        return
    if source is None:
        raise ConfigError("name the units with --from FILE or TABLE, or print the query with --sql DIALECT")
    units = UnitsToAssign(source, None if at is None else parsed_time(at, "--at"))
    run_jobs({"assign": partial(run, units=units)}, conf, set_, run_id)


def warehouse_query(conf: Path, overrides: list[str], table: str, dialect: str) -> str:
    """The query that assigns a table's units in a warehouse as `run` does. Raises ConfigError for another dialect."""
    config = read_config(conf, overrides, "assign")
    if trial_of(config).rerandomise is not None:
        raise ConfigError("arms that are dealt until they are balanced follow from the whole list: assign with --from")
    if trial_of(config).switchback is not None:
        raise ConfigError(
            f"a switchback's schedule is a table, not a query: write it with --from, read {SCHEDULE_TABLE}"
        )
    return assignment_sql(designed(config), assignment_columns(trial_of(config)), dialect).select(table)


if __name__ == "__main__":
    main_command(command, __doc__)
