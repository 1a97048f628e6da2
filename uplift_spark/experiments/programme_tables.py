"""A programme in the lakehouse: its campaigns, its units with what they brought, and what was read of each campaign."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.labels import events_once
from uplift_spark.experiments.assignment import Experiment, ProgrammeHoldout, programme_sql
from uplift_spark.experiments.backtest import POLICY_ROLE
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns
from uplift_spark.experiments.health import TrialFacts
from uplift_spark.experiments.programme import (
    ALL_CAMPAIGNS,
    HELD_OUT_ARM,
    ProgrammeReadout,
    SingleEffect,
    programme_design,
    programme_figures,
    programme_metrics,
)
from uplift_spark.experiments.protocol import READ, designed, readout_metrics, trial_of
from uplift_spark.experiments.readout import BROKEN, COMPLIER, ReadoutMetric, read_sums
from uplift_spark.experiments.spark import unit_sums
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, EXPERIMENT_TABLE, OUTCOME_TABLE, READOUT_TABLE, profile_table
from uplift_spark.lake.session import moment
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT


@dataclass(frozen=True)
class ProgrammeTables:
    """What the tables say of a programme.

    campaign   whose configuration names the holdout and the metrics
    programme  the holdout
    designs    {campaign: how its arms are assigned}, of all campaigns on record with this holdout
    readings   {campaign: run of its last reading}
    as_of      of the newest row on record: until when outcomes were read, or units assigned
    """

    campaign: Campaign
    programme: ProgrammeHoldout
    designs: dict[str, Experiment]
    readings: dict[str, str]
    as_of: datetime

    @classmethod
    def of(cls, campaign: Campaign) -> ProgrammeTables:
        """The programme of a campaign.

        Args:
            campaign: With `experiment.holdout`.

        Returns:
            What is on record of it.

        Raises:
            ConfigError: The campaign has no such holdout, holds out clusters, or another campaign another share.
            DataError: No trial is on record.
        """
        holdout = designed(campaign.config).programme
        if holdout is None:
            raise ConfigError(
                "experiment.holdout is not set: only units that no campaign treats say what all campaigns bring "
                "together; name the holdout that all of them share"
            )
        if holdout.clustered:
            raise ConfigError("a programme of clusters is read in Python: see experiments.programme.programme_readout")
        record = campaign.lake.read(EXPERIMENT_TABLE).withColumn("micros", F.unix_micros("as_of")).orderBy("micros")
        designs: dict[str, Experiment] = {}
        readings: dict[str, str] = {}
        last = 0
        for row in record.select(CAMPAIGN, "job", RUN_ID, "design", "verdict", "micros").collect():
            design = Experiment.of_text(row["design"])
            if design.programme is None or design.programme.salt != holdout.salt:
                continue
            if (design.programme.share, design.programme.clustered) != (holdout.share, holdout.clustered):
                raise ConfigError(
                    f"campaign {row[CAMPAIGN]} holds out {design.programme.share:g} of programme {holdout.salt}, and "
                    f"experiment.holdout says {holdout.share:g}: read it with the share that all campaigns keep"
                )
            designs[row[CAMPAIGN]], last = design, row["micros"]
            if row["job"] == READ and row["verdict"] != BROKEN:
                readings[row[CAMPAIGN]] = row[RUN_ID]
        return cls(campaign, holdout, designs | {campaign.name: designed(campaign.config)}, readings, moment(last))

    @property
    def campaigns(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(sorted(self.designs))

    @property
    def unread(self) -> tuple[str, ...]:
        """Campaigns without a reading on record."""
        return tuple(name for name in self.campaigns if name not in self.readings)

    @property
    def metrics(self) -> tuple[ReadoutMetric, ...]:
        """What is read: means of outcomes, without covariates."""
        chosen = programme_metrics(readout_metrics(trial_of(self.campaign.config)))
        return tuple(ReadoutMetric(one.name, one.column, role=one.role, better=one.better) for one in chosen)

    @property
    def identity(self) -> list[object]:
        """Whatever the figures depend on."""
        lake, tables = self.campaign.lake, (OUTCOME_TABLE, ASSIGNMENT_TABLE)
        profiles = [profile_table(name) for name in self.campaigns]
        versions = [f"{table}@{lake.version(table)}" for table in (*tables, *profiles)]
        return [self.programme, self.readings, versions]

    def readout(self, alpha: float, override: str | None) -> tuple[ProgrammeReadout, TrialFacts]:
        """Read the units that are held out against all others.

        Args:
            alpha: Level of intervals, two-sided.
            override: Why a broken holdout is read all the same.

        Returns:
            (figures, counts behind them).

        Raises:
            DataError: A check refuses it, and nothing overrides that; as `spark.unit_sums`.
        """
        design, time = programme_design(self.programme, alpha), ReadingTime(at_end=True)
        sums, facts = unit_sums(self.rows(), self.metrics, design, ReadoutColumns(), time)
        trial = read_sums(sums, self.metrics, design, facts, override=override)
        if trial.verdict.word == BROKEN:
            raise DataError(
                f"the holdout of programme {self.programme.salt} is broken: {trial.verdict.reason}. Read it all the "
                'same with --override "why"'
            )
        return programme_figures(trial, sums, self.single_effects(), alpha), facts

    def rows(self) -> DataFrame:
        """A row a unit of any campaign's profile, held out or not: its arm, and the sum of each outcome over all
        campaigns, 0 where nothing happened; an event that is there twice counts once."""
        lake, names = self.campaign.lake, self.campaigns
        profiles = [lake.read(profile_table(name)).select(UNIT) for name in names]
        units = reduce(lambda one, other: one.unionByName(other), profiles).distinct()
        columns = list(dict.fromkeys(metric.column for metric in self.metrics))
        loaded = lake.read(OUTCOME_TABLE).where(F.col(CAMPAIGN).isin(list(names)))
        events = events_once(loaded, (CAMPAIGN, "outcome"), (CAMPAIGN, UNIT, "outcome", "value", "occurred_at"))
        sums = [F.sum(F.when(F.col("outcome") == name, F.col("value"))).alias(name) for name in columns]
        rows = units.join(events.groupBy(UNIT).agg(*sums), UNIT, "left").fillna(0.0, columns)
        held = F.expr(programme_sql(self.programme, UNIT))
        return rows.withColumn(TREATMENT, F.when(held, HELD_OUT_ARM).otherwise(ALL_CAMPAIGNS))

    def single_effects(self) -> list[SingleEffect]:
        """Effects of each campaign's last reading with the units that they hold for; none where a campaign has no
        reading, and none of a metric of which one is not known. Of a targeted campaign these are the policy's units and
        those with random arms."""
        if self.unread:
            return []
        lake, runs = self.campaign.lake, list(self.readings.values())
        counted = lake.read(ASSIGNMENT_TABLE).where(F.col(CAMPAIGN).isin(list(self.campaigns)))
        sizes = {
            (row[CAMPAIGN], row[TREATMENT]): row["n"]
            for row in counted.groupBy(CAMPAIGN, TREATMENT).agg(F.count("*").alias("n")).collect()
        }
        figures = lake.read(READOUT_TABLE).where(F.col(RUN_ID).isin(runs) & (F.col("role") != COMPLIER))
        known = {one.name for one in self.metrics}
        effects, unknown = [], set()
        for row in figures.select(CAMPAIGN, "metric", "role", TREATMENT, "effect", "error").collect():
            if row["metric"] not in known:
                continue
            design = self.designs[row[CAMPAIGN]]
            units = self._units(row[CAMPAIGN], design, (row["role"], row[TREATMENT]), sizes)
            if units and None in row[4:]:
                unknown.add(row["metric"])
            elif units:
                effects.append(SingleEffect(*(row[CAMPAIGN], row["metric"], row[TREATMENT], units), *row[4:]))
        return [one for one in effects if one.metric not in unknown]

    def _units(self, name: str, design: Experiment, row: tuple[str, str], sizes: dict[tuple[str, str], int]) -> float:
        """Units for which a figure holds; 0 for figures that say nothing of what the campaign did."""
        role, arm = row
        if design.exploration is None:
            return 0.0 if role == POLICY_ROLE else float(sizes.get((name, arm), 0))
        whole = float(sum(n for (campaign, _), n in sizes.items() if campaign == name))
        if role == POLICY_ROLE:
            return (1 - design.exploration) * whole if arm == design.control else 0.0
        return design.exploration * design.arms[arm] * whole
