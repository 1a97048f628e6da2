"""Learn what decided who was treated and what was to be expected, and give every unit its doubly robust scores.

Reads silver.training_<campaign> at one Delta version; overwrites silver.adjusted_<campaign>, appends to
gold.average_effects, gold.overlap, gold.balance and gold.sensitivity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, NuisancesConf
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, EnvironmentProblem, hint
from uplift_spark.evaluation.average_effects import average_table, balance_table, hidden_table, overlap_table
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.pictures import balance_picture, save
from uplift_spark.evaluation.summary import NO_TRIAL_CAVEAT, interval, number
from uplift_spark.lake.schemas import gold_table, silver_table
from uplift_spark.learners.nuisances import Sample
from uplift_spark.learners.spark import TRIMMED, fit_folds, refutations, sampled_rows, with_scores
from uplift_spark.roles import CAMPAIGN, TREATMENT, UNIT, Roles
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

ALPHA = 0.05  # of the checks, over all of a kind together (Bonferroni)
BALANCED = 0.1  # standardised differences below are held to be negligible (Austin 2009)


@dataclass(frozen=True)
class NuisanceInputs:
    """The campaign's training set at a version, and true effects where they are known."""

    campaign: Campaign
    section: NuisancesConf
    training: DataFrame
    truth: DataFrame | None
    versions: Mapping[str, int]

    @property
    def config(self) -> Config:
        return self.campaign.config

    @property
    def roles(self) -> Roles:
        """Without scores; a propensity that is not to be trusted plays no part."""
        roles = self.config.unit_roles
        return roles if self.section.propensity == "logged" else replace(roles, propensity=None)

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels in their order, the control first."""
        present = {row[0] for row in self.training.select(F.col(TREATMENT).cast("string")).distinct().collect()}
        doses = self.config.roles.dose or {}
        treated = sorted(present - {self.config.roles.control}, key=lambda level: (doses.get(level, 0.0), level))
        return (self.config.roles.control, *treated)


def nuisance_inputs(campaign: Campaign) -> NuisanceInputs:
    """Raises ConfigError when the campaign asks for no nuisances."""
    section, lake = campaign.config.nuisances, campaign.lake
    if section is None:
        raise ConfigError("the conf has no `nuisances`: add `nuisances: {}` for a campaign that was no trial")
    table = silver_table("training", campaign.name)
    version = lake.version(table)
    return NuisanceInputs(campaign, section, lake.read(table, version), campaign.true_effects(), {table: version})


def nuisance_sample(inputs: NuisanceInputs) -> Sample:
    """Training rows that nuisances are fitted on. Raises ConfigError for a placebo outcome that is no numeric feature,
    DataError for rows that break the rules."""
    section, train = inputs.section, inputs.training.where("split = 'train'")
    sample = sampled_rows(train, inputs.roles, (section.folds, inputs.config.seed), section.rows)
    numeric = [one.name for one in sample.coding.bins if not one.categorical]
    for name in section.placebo_outcomes:
        if name not in numeric:
            raise ConfigError(f"nuisances.placebo_outcomes: {name!r} is no numeric feature: {hint(name, numeric)}")
    return sample


def adjusted(inputs: NuisanceInputs, sample: Sample, progress: ProgressCallback) -> DataFrame:
    """The training set with nuisances and scores. Raises DataError as `learners.spark.fit_folds`."""
    folds = fit_folds(
        inputs.training.sparkSession, sample, inputs.section.lowest, inputs.section.propensity == "logged", progress
    )
    return with_scores(inputs.training, folds)


@dataclass(frozen=True)
class Report:
    """Average effects, overlap, balance, checks, and true average effects by level where they are known."""

    config: Config
    effects: pd.DataFrame
    overlap: pd.DataFrame
    balance: pd.DataFrame
    checks: pd.DataFrame
    truth: Mapping[str, float]

    def tables(self, spark: SparkSession) -> dict[str, DataFrame]:
        """What to write to gold."""
        frames = {"average_effects": self.effects, "overlap": self.overlap, "balance": self.balance}
        frames["sensitivity"] = self.checks
        mine = {CAMPAIGN: self.config.campaign}
        return {name: spark.createDataFrame(as_arrow(frame, **mine)) for name, frame in frames.items()}

    @property
    def details(self) -> dict[str, Any]:
        """Counts for the job's result."""
        counted = self.overlap.set_index(TREATMENT)
        return {
            "units": {level: int(n) for level, n in counted["units"].items()},
            "trimmed": {level: int(n) for level, n in counted["trimmed"].items()},
        }

    def picture(self, folder: Path) -> Path:
        """Draw balance into `folder`/balance.png. Raises like `pictures.write_pictures`."""
        return save(balance_picture(self.balance, BALANCED), folder / "balance.png")

    @property
    def summary(self) -> str:
        """In words."""
        whole = self.effects[self.effects["cut"] == "all"]
        lines = [f"Average effects on {self.config.roles.outcome}, 95 % intervals:"]
        for level, mine in whole.groupby(TREATMENT, sort=False):
            by_estimand = {row["estimand"]: row for row in mine.to_dict("records")}
            parts = [
                f"{name} {number(row['value'])} ({interval(row['lower'], row['upper'])})"
                for name, row in ((name, by_estimand[name]) for name in ("ate", "att", "overlap", "naive"))
            ]
            truth = f"; in truth {number(self.truth[str(level)])}" if str(level) in self.truth else ""
            lines.append(f"  {level}: {', '.join(parts)}{truth}")
        worst = self.balance[["difference", "difference_weighted"]].abs()
        off = (worst > BALANCED).sum()
        largest, of = worst.max().map(number), f"of {len(worst)} above {BALANCED}"
        lines.append(
            f"Features differ between arms by up to {largest.iloc[0]} standard deviations ({off.iloc[0]} {of}), "
            f"weighed by {largest.iloc[1]} ({off.iloc[1]} {of})."
        )
        if gone := int(self.overlap["trimmed"].sum()):
            lines.append(f"{gone:,} units are trimmed: units like them hardly ever received some level.")
        lines += [*self._refuted, *self._hidden, NO_TRIAL_CAVEAT]
        return "\n".join(lines)

    @property
    def _refuted(self) -> list[str]:
        """What effects that must be nought are, in words."""
        sentences = []
        for check, mine in self.checks[self.checks["p_value"].notna()].groupby("check", sort=False):
            low = mine[mine["p_value"] * len(mine) < ALPHA]
            failures = ", ".join(f"{one.treatment} ({one.setting}, p = {one.p_value:.2g})" for one in low.itertuples())
            sentences.append(f"Effects that must be nought, by {check}: {len(mine)}; not nought: {failures or 'none'}.")
        return sentences

    @property
    def _hidden(self) -> list[str]:
        """How much a confounder would have to explain, in words."""
        mine = self.checks[self.checks["check"] == "robustness"]
        by_level = mine.pivot(index=TREATMENT, columns="setting", values="value")
        return [
            f"  {level}: a confounder that nobody measured takes the average effect to nought if it explains "
            f"{row['estimate']:.1%} of what is left of outcome and treatment, its interval if {row['interval']:.1%}."
            for level, row in by_level.iterrows()
        ]


def report_of(inputs: NuisanceInputs, sample: Sample, table: DataFrame, progress: ProgressCallback) -> Report:
    """What the written table says, and what the checks find."""
    config, spec, levels = inputs.config, inputs.campaign.evaluation_spec, inputs.levels
    kept = table.where(F.col("split") != TRIMMED)
    effects = average_table(kept, spec, levels, max(inputs.section.lowest, 1e-6))
    balance = balance_table(kept, config.roles.features, levels)
    truth: dict[str, float] = {}
    if inputs.truth is not None:
        known = inputs.truth.join(kept.select(UNIT), UNIT, "left_semi").groupBy(TREATMENT).agg(F.avg("effect"))
        truth = {row[0]: row[1] for row in known.collect()}
    section = inputs.section
    checks = [
        refutations(sample, section.permuted, section.placebo_outcomes, progress),
        hidden_table(kept, spec, levels, section.hidden),
    ]
    checked = pd.concat([part for part in checks if len(part)] or checks, ignore_index=True)
    return Report(config, effects, overlap_table(table, levels, TRIMMED), balance, checked, truth)


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Write the table that the forest is trained on, and how treated and untreated compare before and after."""
    lake, inputs = campaign.lake, nuisance_inputs(campaign)
    run_id = run_id or campaign.run_id("nuisances", data=inputs.versions)
    sample = nuisance_sample(inputs)
    staged = lake.write(campaign.training_table, adjusted(inputs, sample, progress), run_id, mode="overwrite")
    progress("averages, overlap, balance and checks")
    report = report_of(inputs, sample, lake.read(staged.table, staged.version), progress)
    written = [lake.write(gold_table(name), frame, run_id) for name, frame in report.tables(lake.spark).items()]
    details = report.details
    try:
        details["picture"] = str(report.picture(campaign.reports(run_id)))
    except (EnvironmentProblem, OSError) as error:
        progress(f"no picture: {error}")
    return JobResult.of("nuisances", run_id, staged, *written, **details, summary=report.summary)


if __name__ == "__main__":
    main_job(run)
