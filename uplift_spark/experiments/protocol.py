"""One trial of a campaign in its lakehouse: the design that the configuration lays down, the rows that are read, and
what is on record of it. The work of the jobs `assign`, `check` and `readout`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial, reduce
from typing import Any

import numpy as np
import pandas as pd
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.ingest import SecondWave, SimulatedTrial
from uplift_spark.events.load import SOURCE, TEXTS, find_delta, find_files, read_delta, read_files
from uplift_spark.events.simulate import CampaignSimulator
from uplift_spark.events.training_set import LOGGED_PROPENSITY
from uplift_spark.experiments.assignment import (
    AssignmentColumns,
    Experiment,
    ProgrammeHoldout,
    Slot,
    arm_codes,
    check_change,
    check_together,
    exploration_sql,
)
from uplift_spark.experiments.backtest import BacktestLayout, LoggedColumns, PolicyReadout, layout_of, read_policy
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, value_columns
from uplift_spark.experiments.health import REFUSE, HealthFinding, ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import BROKEN, PRIMARY, ReadoutMetric, TrialReadout, TrialSums
from uplift_spark.experiments.rerandomise import BalanceRule
from uplift_spark.experiments.sequential import StoppingRule
from uplift_spark.experiments.spark import backtest_sums, unit_sums, with_arms
from uplift_spark.experiments.switchback import BLOCK_ID, Switchback
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.permissions import acting_user
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.contracts import UNREAD, trimmed_id
from uplift_spark.lake.schemas import (
    DECISIONS_TABLE,
    EXPERIMENT_TABLE,
    HEALTH_TABLE,
    LABEL_TABLE,
    profile_table,
)
from uplift_spark.lake.session import instant, moment, parsed_time, plus_hours, utc
from uplift_spark.lake.tables import Lake, Written
from uplift_spark.roles import CAMPAIGN, DELIVERED, PROPENSITY, RUN_ID, TREATMENT, UNIT
from uplift_spark.sections.experiment import PLANS, ExperimentConf
from uplift_spark.sections.source import EventTable, Simulation

_SPENDING = dict(zip(PLANS, ("obrien_fleming", "pocock", "hwang_shih_decani"), strict=True))
ASSIGNED, READ = "assign", "readout"
"""Jobs that leave a row in the record of a trial."""
_STRATUM, _ALL_STRATA, _DAY = "stratum", "__stratum", "assigned_at"

# --------------------------------------------------------------------------------------------------------------------
# What the configuration lays down.


def trial_of(config: Config) -> ExperimentConf:
    """The section `experiment`, or ConfigError where the configuration has none."""
    if config.experiment is None:
        raise ConfigError(
            f"campaign {config.campaign} has no section `experiment`: add one with salt, arms and metrics"
        )
    return config.experiment


def designed(config: Config) -> Experiment:
    """How arms are assigned. Raises ConfigError as `assignment.Experiment`, `Switchback` and `trial_of`."""
    trial = trial_of(config)
    if trial.switchback is not None:
        return switchback_plan(trial).experiment()
    clustered, place, holdout = trial.cluster is not None, trial.namespace, trial.holdout
    rule = balance_rule(trial)
    return Experiment(
        trial.salt,
        trial.arms,
        ramp=trial.ramp,
        stopped=trial.stopped,
        slot=Slot(place.name, place.start, place.stop) if place else None,
        programme=ProgrammeHoldout(holdout.salt, holdout.share, clustered) if holdout else None,
        exploration=trial.exploration,
        clustered=clustered,
        stratified=bool(trial.strata),
        balanced=rule.text if rule else None,
    )


def switchback_plan(trial: ExperimentConf) -> Switchback:
    """The plan of a trial with `experiment.switchback`, in UTC. Raises ConfigError as `Switchback`."""
    conf = trial.switchback
    if conf is None or trial.start is None or trial.end is None:
        raise ConfigError("the trial has no experiment.switchback: its units have arms, not blocks")
    offset = timedelta(hours=conf.start_hour)
    start, end = datetime.combine(trial.start, time(), UTC) + offset, _midnight_after(trial.end) + offset
    hours = (conf.hours, conf.burn_in_hours, conf.round_hours)
    return Switchback(trial.salt, trial.arms, start, end, *hours, region=conf.region, time=conf.time)


def balance_rule(trial: ExperimentConf) -> BalanceRule | None:
    """Which deals of arms are accepted; None where arms are dealt once."""
    conf = trial.rerandomise
    return None if conf is None else BalanceRule(trial.balance, conf.accept, conf.draws)


def assignment_columns(trial: ExperimentConf) -> AssignmentColumns:
    """Columns of what is assigned."""
    return AssignmentColumns(trial.unit, trial.cluster, trial.strata, trial.decision)


def readout_metrics(trial: ExperimentConf) -> tuple[ReadoutMetric, ...]:
    """What is read."""
    return tuple(
        ReadoutMetric(
            *(one.name, one.outcome, one.denominator, one.covariates, one.role, one.better, one.margin, one.margin_of)
        )
        for one in trial.metrics
    )


def readout_design(config: Config) -> ReadoutDesign:
    """What a reading is held to: shares and planned units of the arms that are not stopped, days, when it is read."""
    trial = trial_of(config)
    shares = {arm: share for arm, share in trial.arms.items() if arm not in trial.stopped}
    total = sum(shares.values())
    # Units are planned for all arms; those of a stopped one are no part of a reading.
    units = trial.units if trial.units is None or not trial.stopped else trial.units * total
    kind = {"none": "fixed", "anytime": "anytime"}.get(trial.plan, "group_sequential")
    rule = StoppingRule(*(kind, trial.alpha, trial.analyses, _SPENDING.get(trial.plan, "obrien_fleming"), trial.gamma))
    days = None
    if trial.start and trial.end:
        days = (trial.end - trial.start).days + 1
        days += 0 if trial.switchback else math.ceil(outcome_days(config))
    randomised = BLOCK_ID if trial.switchback else trial.cluster or _unit(trial)
    return ReadoutDesign(
        {arm: share / total for arm, share in shares.items()},
        *(units, days, rule, randomised, trial.multiplicity, balance_rule(trial)),
    )


def simulated_trial(campaign: Campaign) -> tuple[SimulatedTrial | None, dict[str, Any]]:
    """The trial that a simulated source plays, and what it adds to the identity of the source's run.

    Args:
        campaign: Simulated; with `source.follows` the tables of the campaign that it follows are read.

    Returns:
        (the trial, {"trial": what decides arms and days}); nothing where the source is no simulation, or has no trial.

    Raises:
        ConfigError: The trial assigns by more than ids, or names a level that the simulation has not; a campaign that
            follows another one explores no share.
        DataError: The campaign that is followed has no plan.
    """
    config = campaign.config
    trial, source = config.experiment, config.source
    if not isinstance(source, Simulation):
        return None, {}
    if source.follows is not None and (trial is None or trial.decision is None or config.pseudonyms):
        raise ConfigError(
            f"source.follows {source.follows}, whose plan decides: set experiment.exploration and experiment.decision, "
            "and leave pseudonyms out"
        )
    if trial is None:
        return None, {}
    by_more = (trial.strata, trial.cluster, trial.switchback, trial.rerandomise)
    if any(by_more) or (trial.decision and source.follows is None):
        raise ConfigError(
            "a simulation assigns arms by ids alone: leave strata, cluster, decision, switchback and rerandomise "
            "out of `experiment`, or name a source of your own"
        )
    levels = CampaignSimulator(source.design, source.arms).levels.names
    if unknown := sorted(set(trial.arms) - set(levels)):
        raise ConfigError(f"experiment.arms has {unknown[0]!r}, no level of the simulation: {hint(unknown[0], levels)}")
    experiment = designed(config)
    start = datetime.combine(trial.start, time(), UTC) if trial.start else utc(source.assigned_at)
    days = max(1, (trial.end - start.date()).days + 1 if trial.end else 1)
    identity = [experiment.text, start, days]
    if source.follows is None:
        return SimulatedTrial(partial(arm_codes, experiment), start, days), {"trial": identity}
    plan, again = _second_wave(campaign, source.follows, experiment)
    return SimulatedTrial(None, start, days, again), {"trial": [*identity, plan]}


def _second_wave(campaign: Campaign, earlier: str, experiment: Experiment) -> tuple[str, SecondWave]:
    """The newest plan of an earlier campaign, and its customers with the arms that follow from it.

    Who is in no plan, as those whom the programme holds out, is decided to get the control.
    """
    trial, lake = trial_of(campaign.config), campaign.lake
    plan = campaign.changed(replace(campaign.config, campaign=earlier)).plan_run()
    decided = lake.read(DECISIONS_TABLE).where(F.col(RUN_ID) == plan)
    decision = F.coalesce(TREATMENT, F.lit(trial.control)).alias(str(trial.decision))
    customers = lake.read(profile_table(earlier)).select(UNIT).distinct()
    units = customers.join(decided.select(UNIT, TREATMENT), UNIT, "left").select(UNIT, decision)
    dealt = with_arms(units, experiment, AssignmentColumns(decision=trial.decision))
    number = int.from_bytes(hashlib.sha256(campaign.name.encode()).digest()[:4]) or 1
    return plan, SecondWave(earlier, number, dealt, str(trial.decision))


def planned_readings(config: Config) -> dict[str, ReadingOptions]:
    """Readings of a trial as its configuration plans them, for a trial with start and end.

    Args:
        config: Of the campaign.

    Returns:
        {share of the units, in words: how it is read}: at each planned share, as if units came evenly, or at the end.

    Raises:
        ConfigError: The trial has no start or no end.
    """
    trial = trial_of(config)
    if trial.start is None or trial.end is None:
        raise ConfigError("experiment.start and experiment.end are not set: without them no reading has a day")
    start, days = datetime.combine(trial.start, time(), UTC), (trial.end - trial.start).days + 1
    complete = timedelta(days=outcome_days(config))
    at = {share: start + timedelta(days=math.ceil(share * days)) + complete for share in trial.analyses or (1.0,)}
    return {f"{share:.0%}": ReadingOptions(day) for share, day in at.items()}


def outcome_days(config: Config) -> float:
    """Days from a unit's assignment until all its outcomes are complete."""
    labels, trial = config.labels, trial_of(config)
    return max(labels.days(column) for column in trial.outcome_columns) + labels.wait_days


def _unit(trial: ExperimentConf) -> str:
    return trial.unit if trial.table else UNIT


# --------------------------------------------------------------------------------------------------------------------
# Rows: users' own tables and files, or the campaign's training set.


def rows_at(lake: Lake, location: str, key: str) -> tuple[DataFrame, str]:
    """Rows of a user's file, folder or table, and the identity of its content.

    Args:
        lake: Where it is read.
        location: A file or folder (CSV, JSON, Parquet, Delta), `schema.table` or `catalog.schema.table`.
        key: The option or key that names it, for messages.

    Returns:
        (rows, identity); cells of CSV and JSON files are texts.

    Raises:
        DataError: Nothing is there, or it cannot be read.
    """
    kind = EventTable(path=location).read_as
    try:
        if kind == "delta":
            table = find_delta(lake, location)
            return read_delta(lake, table, None).drop(SOURCE), f"{table.key}@{table.version}"
        files = find_files(lake.spark, location, kind)
        parts = [rows for _, rows in read_files(lake.spark, files, kind)]
    except DataError as error:
        reason = re.split(r": (?:correct|use) ", str(error))[0]
        raise DataError(
            f"{reason}: correct {key}; a file ends in .csv, .json or .parquet, all else is a Delta table"
        ) from error
    rows = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), parts)
    return rows.drop(SOURCE, UNREAD), "+".join(sorted(file.key for file in files))


def check_trial_columns(rows: DataFrame, names: Mapping[str, str], location: str) -> None:
    """Refuse rows without a column; `names` are {column: what it is}. Raises ConfigError."""
    there = {name.lower() for name in rows.columns}
    for name, what in names.items():
        if name.lower() not in there:
            raise ConfigError(f"{what} {name!r} is no column of {location}: {hint(name, rows.columns)}")


def with_trimmed_ids(rows: DataFrame, unit: str) -> DataFrame:
    """Rows of a user's own with ids as the tables have them; ids that are no texts stay as they are."""
    texts = isinstance(rows.select(unit).schema[0].dataType, StringType)
    return rows.withColumn(unit, trimmed_id(F.col(unit))) if texts else rows


def roles_of_columns(trial: ExperimentConf) -> dict[str, str]:
    """{column that assignment reads: what it is}, for messages."""
    parts = {trial.unit: "unit", **({trial.cluster: "cluster"} if trial.cluster else {})}
    parts |= dict.fromkeys(trial.strata, _STRATUM)
    parts |= dict.fromkeys(trial.balance if trial.rerandomise else (), "balance")
    return parts | ({trial.decision: "decision"} if trial.decision else {})


@dataclass(frozen=True)
class TrialReading:
    """Sums and counts of a trial as of a moment.

    sums, facts  for the checks and the readout
    as_of        units whose outcomes were complete by then are read
    waiting      units whose outcomes were not; None where rows do not say when they were assigned
    identity     of the rows that were read
    rows         that a policy is read from: those with complete outcomes, whether their arms are random or not
    columns      of these rows
    findings     what else is wrong with the rows, beside what follows from the counts
    """

    sums: TrialSums
    facts: TrialFacts
    as_of: datetime
    waiting: int | None
    identity: str
    rows: DataFrame | None = None
    columns: ReadoutColumns = field(default_factory=ReadoutColumns)
    findings: tuple[HealthFinding, ...] = ()

    @property
    def noun(self) -> str:
        """What has arms."""
        return "units"

    @property
    def details(self) -> dict[str, str]:
        """As of when it was read, and whose outcomes were not complete then, for printing."""
        if self.waiting is None:
            waiting = {"complete": f"not checked: rows have no column {_DAY}, so every outcome counts"}
        else:
            waiting = {"not_complete_yet": f"{self.waiting:,} units"} if self.waiting else {}
        return {"as_of": f"{self.as_of:%Y-%m-%d %H:%M} UTC", **waiting}


@dataclass(frozen=True)
class ReadingOptions:
    """How a trial is read.

    as_of     until when outcomes count; by default the training set's moment, of another table the start of this day
    final     whether assignment has ended
    override  why a trial that a check refuses is read all the same
    policy    SQL over the columns of the rows: the arm that a policy gives each unit, which is compared, too

    Raises ConfigError for a moment that is none and for an empty reason.
    """

    as_of: datetime | None = None
    final: bool = False
    override: str | None = None
    policy: str | None = None

    @classmethod
    def of_texts(
        cls, as_of: str | None, final: bool, override: str | None, policy: str | None = None
    ) -> ReadingOptions:
        """Options of a command line."""
        if override is not None and not override.strip():
            raise ConfigError("--override has no reason: say why this trial is read all the same")
        return cls(None if as_of is None else parsed_time(as_of, "--as-of"), final, override, policy)


def read_trial_rows(campaign: Campaign, options: ReadingOptions) -> TrialReading:
    """Add up a trial's rows: those whose outcomes were complete, of arms that are not stopped, with random arms.

    Args:
        campaign: With a section `experiment`.
        options: How it is read.

    Returns:
        The reading.

    Raises:
        ConfigError: The configuration has no trial, a column is missing, or random arms cannot be found
            again.
        DataError: There are no rows, or they do not fit; as `spark.unit_sums`.
    """
    config, trial = campaign.config, trial_of(campaign.config)
    _refuse_pseudonyms(config)
    metrics, design = readout_metrics(trial), readout_design(config)
    rows, identity, moment_of = _rows(campaign, trial)
    as_of = utc(options.as_of) if options.as_of else moment_of
    rows, columns = _with_columns(rows, trial, metrics)
    if options.as_of and columns.day is None:
        raise ConfigError(
            f"--as-of needs the column {_DAY}, and {_location(trial)} has none, so every outcome would count: leave "
            "--as-of out, or add the column"
        )
    unstopped = ~F.col(TREATMENT).cast("string").isin(list(trial.stopped)) if trial.stopped else F.lit(True)
    whole = rows = rows.where(F.coalesce(unstopped, F.lit(True)))
    if trial.exploration is not None:
        rows = rows.where(F.expr(exploration_sql(designed(config), AssignmentColumns(columns.unit, trial.cluster))))
    first: datetime | None = None
    waiting: int | None = None
    if columns.day:
        complete = plus_hours(F.col(columns.day), F.lit(24.0 * outcome_days(config))) <= instant(as_of)
        counted = rows.agg(F.min(F.unix_micros(columns.day)), F.count_if(~complete)).first()
        first = None if counted is None or counted[0] is None else moment(counted[0])
        waiting = 0 if counted is None else counted[1]
        rows, whole = (part.where(complete | F.col(columns.day).isNull()) for part in (rows, whole))
    if waiting and rows.isEmpty():
        raise DataError(
            f"no outcome of the {waiting:,} units is complete by {as_of:%Y-%m-%d %H:%M} UTC: an outcome takes "
            f"{outcome_days(config):g} days; wait, or read a later --as-of"
        )
    when, record = _reading_time(config, (first, as_of), options.final), _record(campaign)
    if design.stopping.kind == "group_sequential":
        when = replace(when, earlier=_earlier_shares(record, campaign, as_of))
    sums, facts = unit_sums(rows, metrics, design, columns, when)
    facts = replace(facts, same_salt=_same_salt(record, campaign))
    return TrialReading(sums, facts, as_of, waiting, identity, whole, columns)


_POLICY = "arm of the policy"


def read_trial_policy(
    campaign: Campaign, reading: TrialReading, options: ReadingOptions, level: float
) -> PolicyReadout | None:
    """Read what a policy brings, from all units of the reading, whose arms were assigned with known probabilities.

    Args:
        campaign: With a section `experiment`.
        reading: Of its rows.
        options: `policy` says which; by default the one that decided, where the rows have its column.
        level: Of this reading's intervals.

    Returns:
        The figures; None where no policy is named, or nothing says what the one that decided would have done.

    Raises:
        ConfigError: `policy` is no SQL over what rows have before the treatment, or there are no propensities.
        DataError: The policy names no arm of the trial; as `spark.backtest_sums`.
    """
    trial, rows, design = trial_of(campaign.config), reading.rows, readout_design(campaign.config)
    if rows is None or (options.policy is None and (trial.decision is None or trial.decision not in rows.columns)):
        return None
    rows = rows.withColumn(_POLICY, _policy_column(options.policy, campaign.config, rows))
    if PROPENSITY not in rows.columns:
        if trial.exploration is not None:
            raise ConfigError(
                f"{_location(trial)} has no column {PROPENSITY}, and arms of a targeted campaign have others than the "
                "shares: add the propensities that `uplift assign` wrote"
            )
        shares = [F.lit(part) for pair in design.shares.items() for part in pair]
        rows = rows.withColumn(PROPENSITY, F.create_map(*shares)[F.col(TREATMENT).cast("string")])
    layout = policy_layout(campaign.config)
    if not layout.rewards:
        if options.policy is not None:
            raise ConfigError("--policy compares means over units, and every metric of experiment is a ratio: add one")
        return None
    propensity = LOGGED_PROPENSITY if LOGGED_PROPENSITY in rows.columns else PROPENSITY
    logged = LoggedColumns(_POLICY, reading.columns.treatment, propensity, trial.cluster)
    facts, rule = reading.facts, design.stopping
    at = (design.fractions(facts), facts.total, design.planned_units or facts.total)
    held = partial(_valid_p, rule, at)
    return read_policy(layout, backtest_sums(rows, layout, logged), rule.alpha, level=level, valid_p=held)


def _valid_p(rule: StoppingRule, at: tuple[Sequence[float], float, float], p_value: np.ndarray) -> np.ndarray:
    return rule.valid_p(p_value, *at)


def policy_layout(config: Config) -> BacktestLayout:
    """What a policy is compared by: metrics that are means, and profit where values and costs are known."""
    trial = trial_of(config)
    arms = tuple(readout_design(config).shares)
    return layout_of(readout_metrics(trial), arms, money=_money(config), clustered=trial.cluster is not None)


def _policy_column(text: str | None, config: Config, rows: DataFrame) -> Column:
    """The policy's arm; a rule cannot name what is known after the treatment, nor the arm itself."""
    trial = trial_of(config)
    if text is None:
        return F.col(str(trial.decision)).cast("string")
    from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

    later = {*trial.outcome_columns, *config.outcomes, TREATMENT, PROPENSITY, DELIVERED}
    before = [name for name in rows.columns if name not in later]
    value = F.expr(checked_expression("--policy", text, before)).cast("string")
    try:
        rows.select(value).schema  # noqa: B018
    except PySparkException as error:
        message = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"--policy {text!r} is no SQL over the columns of the rows: {message}") from error
    return value


def _money(config: Config) -> tuple[float, Mapping[str, float]] | None:
    """Value of one unit of the primary metric and costs of the arms, where the configuration knows all of them."""
    trial, economics = trial_of(config), config.economics
    primary = next(one for one in trial.metrics if one.role == PRIMARY)
    treated = [arm for arm in trial.arms if arm != trial.control]
    if primary.denominator or primary.outcome not in economics.value or not set(treated) <= set(economics.cost):
        return None
    falls = config.roles.direction == "decrease" and primary.outcome == config.roles.outcome
    return economics.value[primary.outcome] * (-1.0 if falls else 1.0), {arm: economics.cost[arm] for arm in treated}


def _refuse_pseudonyms(config: Config) -> None:
    """Random arms are found again by the hash of ids, which a training set with pseudonyms does not have."""
    trial = trial_of(config)
    if trial.exploration is not None and config.pseudonyms and trial.table is None and trial.cluster is None:
        raise ConfigError(
            "experiment.exploration is drawn from ids, and the training set has pseudonyms in their place: name a "
            "table with the ids in experiment.table"
        )


def random_propensity(config: Config) -> Column | None:
    """Find the units of the training set whose arm is random, and how likely it was.

    Args:
        config: Of the campaign.

    Returns:
        The share of the unit's arm, null where a policy decided; None where models do not learn from random arms alone
        (`experiment.train_on`).

    Raises:
        ConfigError: Random arms cannot be found again from pseudonyms.
    """
    if not config.random_arms_only:
        return None
    trial = trial_of(config)
    if config.pseudonyms and trial.cluster is None:
        raise ConfigError(
            "experiment.train_on is random, and random arms are found again by ids, which the training set has as "
            "pseudonyms: leave train_on out, so that all units count by their logged propensities"
        )
    shares = [F.lit(part) for pair in readout_design(config).shares.items() for part in pair]
    explored = F.expr(exploration_sql(designed(config), AssignmentColumns(UNIT, trial.cluster)))
    return F.when(explored, F.create_map(*shares)[F.col(TREATMENT)])


def _location(trial: ExperimentConf) -> str:
    return trial.table or "the training set"


def _rows(campaign: Campaign, trial: ExperimentConf) -> tuple[DataFrame, str, datetime]:
    """Rows, the identity of their content, and the moment as of which they are read by default."""
    lake, table = campaign.lake, campaign.training_table
    if trial.table is not None:
        rows, identity = rows_at(lake, trial.table, "experiment.table")
        return rows, identity, start_of_today()
    version = lake.version(table)
    rows = lake.read(table, version)
    run = rows.select(RUN_ID).first()
    if run is None:
        raise DataError(
            f"{table} has no row: no label is mature yet; wait until the windows of its outcomes have closed"
        )
    labels = lake.read(LABEL_TABLE).where(F.col(CAMPAIGN) == campaign.name)
    at, of_run = F.unix_micros("as_of"), F.col(RUN_ID) == run[RUN_ID]
    # `uplift nuisances` writes the training set anew under a run of its own, which has no labels.
    known = labels.agg(F.coalesce(F.max(F.when(of_run, at)), F.max(at))).collect()[0][0]
    return rows, f"{table}@{version}", start_of_today() if known is None else moment(known)


def start_of_today() -> datetime:
    """The start of this day, so that a reading that is repeated on it is the same one."""
    return datetime.combine(datetime.now(UTC).date(), time(), UTC)


def _with_columns(
    rows: DataFrame, trial: ExperimentConf, metrics: Sequence[ReadoutMetric]
) -> tuple[DataFrame, ReadoutColumns]:
    """Rows with numbers as numbers and one column of strata, and the names of the columns."""
    location, there = _location(trial), set(rows.columns)
    needed = {_unit(trial): "unit", TREATMENT: "arm", **dict.fromkeys(trial.strata, _STRATUM)}
    needed |= dict.fromkeys(trial.outcome_columns, "metric") | dict.fromkeys(trial.balance, "balance")
    needed |= {column: "covariate" for one in trial.metrics for column in one.covariate_columns}
    check_trial_columns(rows, needed, location)
    if trial.cluster and trial.cluster not in there:
        raise ConfigError(
            f"{trial.cluster} was randomised, but {location} has a row a {_unit(trial)} and no column "
            f"{trial.cluster!r}: the unit of analysis must be the unit of randomisation, so add the column"
        )
    columns = ReadoutColumns(
        unit=_unit(trial),
        stratum=(trial.strata[0] if len(trial.strata) == 1 else _ALL_STRATA) if trial.strata else None,
        day=_DAY if _DAY in there else None,
        taken=DELIVERED if DELIVERED in there else None,
        propensity=PROPENSITY if PROPENSITY in there and trial.exploration is None else None,
        balance=trial.balance,
    )
    if len(trial.strata) > 1:
        parts = [part for name in trial.strata for part in (F.lit("|"), F.col(name).cast("string"))]
        rows = rows.withColumn(_ALL_STRATA, F.concat(*parts[1:]))
    if trial.table is None:
        return rows, columns
    rows = with_trimmed_ids(rows, columns.unit)
    kinds = {columns.day: "timestamp"} if columns.day else {}
    if EventTable(path=trial.table).read_as in TEXTS:
        numbers = [*value_columns(metrics, columns), *([PROPENSITY] if columns.propensity else [])]
        kinds |= dict.fromkeys(numbers, "double")
    # A cell that is no number or time becomes null, which is refused with the count.
    rows = rows.withColumns({name: F.expr(f"try_cast(`{name}` AS {kind})") for name, kind in kinds.items()})
    return rows, columns


def _reading_time(config: Config, between: tuple[datetime | None, datetime], final: bool) -> ReadingTime:
    """Days since the start, and whether the trial has ended."""
    trial, (first, as_of) = trial_of(config), between
    start = datetime.combine(trial.start, time(), UTC) if trial.start else first
    days = None if start is None else max(0, (as_of - start).days)
    over = trial.end is not None and as_of >= _midnight_after(trial.end) + timedelta(days=outcome_days(config))
    return ReadingTime(days=days, at_end=final or over)


def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)


# --------------------------------------------------------------------------------------------------------------------
# The record of a trial: rows of gold.experiment.


_OF_RECORD = (CAMPAIGN, "job", "salt", "design", "share", "verdict")


def _record(campaign: Campaign) -> pd.DataFrame:
    """All rows of the record, oldest first; none before the first. Times are microseconds since 1970."""
    times = ("as_of", "ends")
    if not campaign.lake.exists(EXPERIMENT_TABLE):
        return pd.DataFrame(columns=[*_OF_RECORD, *times])
    micros = [F.unix_micros(name).cast("double").alias(name) for name in times]
    return campaign.lake.read(EXPERIMENT_TABLE).select(*_OF_RECORD, *micros).orderBy("as_of").toPandas()


def _micros(at: datetime) -> float:
    return utc(at).timestamp() * 1e6


def check_record(campaign: Campaign, experiment: Experiment, at: datetime) -> bool:
    """Refuse a design that the trials on record forbid.

    Args:
        campaign: With a section `experiment`.
        experiment: Its design.
        at: When units are to be assigned.

    Returns:
        Whether this design is on record already.

    Raises:
        ConfigError: The salt was used by another campaign, or with another design; the campaign was assigned with
            another salt; its namespace overlaps another trial that is not over.
    """
    record = _record(campaign)
    designs = record[record["job"] == ASSIGNED]
    mine = designs[designs[CAMPAIGN] == campaign.name]
    others = designs[designs[CAMPAIGN] != campaign.name].groupby([CAMPAIGN, "salt"], sort=False).tail(1)
    if used := sorted(others.loc[others["salt"] == experiment.salt, CAMPAIGN]):
        raise ConfigError(
            f"salt {experiment.salt} was used by campaign {used[0]}, so arms of both would go together: give this "
            "trial a salt of its own"
        )
    for row in mine.itertuples():
        if row.salt != experiment.salt:
            raise ConfigError(
                f"campaign {campaign.name} was assigned with salt {row.salt}, and a unit has one arm in a campaign: "
                f"keep the salt, or give the trial with salt {experiment.salt} a campaign of its own"
            )
        check_change(Experiment.of_text(str(row.design)), experiment)
    running = others[others["ends"].isna() | (others["ends"] >= _micros(at))]
    check_together([*map(Experiment.of_text, running["design"]), experiment])
    return experiment.text in set(mine["design"])


def _same_salt(record: pd.DataFrame, campaign: Campaign) -> tuple[str, ...]:
    """Other campaigns that were assigned with this trial's salt."""
    salt = trial_of(campaign.config).salt
    same = record[(record["job"] == ASSIGNED) & (record["salt"] == salt) & (record[CAMPAIGN] != campaign.name)]
    return tuple(sorted(set(same[CAMPAIGN])))


def _earlier_shares(record: pd.DataFrame, campaign: Campaign, as_of: datetime) -> tuple[float, ...]:
    """Share of the planned units at each reading on record before this moment; refused ones showed nothing."""
    mine = (record[CAMPAIGN] == campaign.name) & (record["job"] == READ) & (record["verdict"] != BROKEN)
    before = record["as_of"] < _micros(as_of) - 0.5  # doubles hold microseconds to the quarter
    rows = record[mine & before & (record["salt"] == trial_of(campaign.config).salt)]
    return tuple(rows.drop_duplicates("as_of", keep="last")["share"].astype(float))


def record_row(campaign: Campaign, job: str, at: datetime, **figures: Any) -> DataFrame:
    """A row of gold.experiment.

    Args:
        campaign: With a section `experiment`.
        job: ASSIGNED or READ.
        at: As of when.
        **figures: Other columns; those that are left out are null.

    Returns:
        A frame of one row.
    """
    trial, experiment = trial_of(campaign.config), designed(campaign.config)
    row = {
        CAMPAIGN: campaign.name,
        "job": job,
        "name": trial.name or campaign.name,
        "salt": trial.salt,
        "fingerprint": experiment.fingerprint,
        "design": experiment.text,
        "starts": datetime.combine(trial.start, time(), UTC) if trial.start else None,
        "ends": _midnight_after(trial.end) if trial.end else None,
        "as_of": at,
        **figures,
    }
    return campaign.lake.filled(EXPERIMENT_TABLE, [row])


# --------------------------------------------------------------------------------------------------------------------
# Findings and figures as rows, and the sentence with which a broken trial ends.


def reading_identity(campaign: Campaign, reading: TrialReading, options: ReadingOptions) -> dict[str, Any]:
    """Whatever the findings and figures of a reading depend on beside the configuration: what its run's id is of."""
    return {
        "as_of": reading.as_of,
        "rows": reading.identity,
        "final": options.final,
        "earlier": reading.facts.earlier,
        "same_salt": reading.facts.same_salt,
        "override": _override(campaign, options),
        **({"policy": options.policy} if options.policy else {}),
    }


def _override(campaign: Campaign, options: ReadingOptions) -> dict[str, str | None]:
    """The reason of an override and whose it is; nulls without one."""
    by = None if options.override is None else acting_user(campaign.config)
    return {"override": options.override, "override_by": by}


def write_findings(
    campaign: Campaign, reading: TrialReading, findings: Sequence[HealthFinding], options: ReadingOptions, run_id: str
) -> Written:
    """Put the findings of a reading into gold.experiment_health, and an override on record before that.

    Args:
        campaign: With a section `experiment`.
        reading: What was read.
        findings: What is wrong with it.
        options: How it was read.
        run_id: Of the job.

    Returns:
        What was written.
    """
    if options.override is not None:
        refused = [one.check for one in findings if one.severity == REFUSE]
        name = trial_of(campaign.config).name or campaign.name
        facts = {"salt": trial_of(campaign.config).salt, "as_of": reading.as_of.isoformat(), "refused": refused}
        versions = {"rows": reading.identity}
        event = AuditEvent("", "override", f"trial {name}", options.override, "", run_id, versions, facts)
        record_event(campaign.config, campaign.lake, event)
    rows = _finding_rows(campaign, reading, findings, options)
    return campaign.lake.write(HEALTH_TABLE, campaign.lake.filled(HEALTH_TABLE, rows), run_id)


def _finding_rows(
    campaign: Campaign, reading: TrialReading, findings: Sequence[HealthFinding], options: ReadingOptions
) -> list[dict[str, Any]]:
    """Rows of gold.experiment_health; one that says so where nothing is wrong."""
    common = {CAMPAIGN: campaign.name, "as_of": reading.as_of, **_override(campaign, options)}
    if not findings:
        return [{**common, "check": "all", "severity": "ok", "sentence": "nothing is wrong"}]
    return [{**common, **vars(one)} for one in findings]


def readout_rows(
    campaign: Campaign, reading: TrialReading, result: TrialReadout, others: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Rows of gold.readout; the figures of others, such as a policy's, last."""
    common = {CAMPAIGN: campaign.name, "as_of": reading.as_of, "override": result.override}
    return [{**common, **vars(one), TREATMENT: one.arm} for one in (*result.metrics, *others)]


def refuse_broken(campaign: Campaign, findings: Sequence[HealthFinding], override: str | None) -> None:
    """Raise DataError with all reasons why a trial must not be read, unless someone overrides them."""
    reasons = [one.sentence for one in findings if one.severity == REFUSE]
    if reasons and override is None:
        raise DataError(
            f"the experiment of campaign {campaign.name} is broken: {'; '.join(reasons)}. Read it all the same with "
            '--override "why", which stays on record'
        )
