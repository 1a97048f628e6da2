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

from uplift_spark.campaign import setup_of, true_effects
from uplift_spark.cli import main_job
from uplift_spark.config import Config, Nuisances
from uplift_spark.errors import ConfigError, EnvironmentProblem, hint
from uplift_spark.evaluation.average_effects import average_table, balance_table, hidden_table, overlap_table
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.pictures import balance_picture, save
from uplift_spark.evaluation.report import UNSEEN, interval, number
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.nuisances import Sample
from uplift_spark.learners.spark import SET_ASIDE, fit_folds, refutations, sampled_rows, with_scores
from uplift_spark.roles import EXPERIMENT, TREATMENT, UNIT, Roles
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent

ALPHA = 0.05  # of the checks, over all of a kind together (Bonferroni)
BALANCED = 0.1  # standardised differences below are held to be negligible (Austin 2009)


@dataclass(frozen=True)
class Source:
    """The campaign's training set at a version, and true effects where they are known."""

    config: Config
    asked: Nuisances
    training: DataFrame
    truth: DataFrame | None
    versions: Mapping[str, int]

    @property
    def roles(self) -> Roles:
        """Without scores; a propensity that is not to be trusted plays no part."""
        roles = self.config.unit_roles
        return roles if self.asked.propensity == "logged" else replace(roles, propensity=None)

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels in their order, the control first."""
        found = {row[0] for row in self.training.select(F.col(TREATMENT).cast("string")).distinct().collect()}
        doses = self.config.roles.dose or {}
        treated = sorted(found - {self.config.roles.control}, key=lambda level: (doses.get(level, 0.0), level))
        return (self.config.roles.control, *treated)


def source_of(config: Config, lake: Lake) -> Source:
    """Raises ConfigError when the campaign asks for no nuisances."""
    if config.nuisances is None:
        raise ConfigError("the conf has no `nuisances`: add `nuisances: {}` for a campaign that was no trial")
    table = f"silver.training_{config.campaign}"
    version = lake.version(table)
    return Source(config, config.nuisances, lake.read(table, version), true_effects(config, lake), {table: version})


def sample_of(given: Source) -> Sample:
    """Training rows that nuisances are fitted on. Raises ConfigError for a placebo outcome that is no numeric feature,
    DataError for rows that break the rules."""
    asked, train = given.asked, given.training.where("split = 'train'")
    sample = sampled_rows(train, given.roles, (asked.folds, given.config.seed), asked.rows)
    numeric = [one.name for one in sample.coding.bins if not one.categorical]
    for name in asked.placebo_outcomes:
        if name not in numeric:
            raise ConfigError(f"nuisances.placebo_outcomes: {name!r} is no numeric feature: {hint(name, numeric)}")
    return sample


def adjusted(given: Source, sample: Sample, say: ProgressCallback) -> DataFrame:
    """The training set with nuisances and scores. Raises DataError as `learners.spark.fit_folds`."""
    folds = fit_folds(given.training.sparkSession, sample, given.asked.lowest, given.asked.propensity == "logged", say)
    return with_scores(given.training, folds)


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
        mine = {EXPERIMENT: self.config.campaign}
        return {name: spark.createDataFrame(as_arrow(frame, **mine)) for name, frame in frames.items()}

    @property
    def details(self) -> dict[str, Any]:
        """Counts for the job's result."""
        counted = self.overlap.set_index(TREATMENT)
        return {
            "units": {level: int(n) for level, n in counted["units"].items()},
            "set_aside": {level: int(n) for level, n in counted["set_aside"].items()},
        }

    def picture(self) -> Path:
        """Draw balance into reports/<campaign>/balance.png. Raises like `pictures.write_pictures`."""
        return save(balance_picture(self.balance, BALANCED), Path("reports") / self.config.campaign / "balance.png")

    @property
    def summary(self) -> str:
        """In words."""
        whole = self.effects[self.effects["cut"] == "all"]
        lines = [f"Average effects on {self.config.roles.outcome}, 95 % intervals:"]
        for level, mine in whole.groupby(TREATMENT, sort=False):
            told = {row["estimand"]: row for row in mine.to_dict("records")}
            said = [
                f"{name} {number(told[name]['value'])} ({interval(told[name]['lower'], told[name]['upper'])})"
                for name in ("ate", "att", "overlap", "naive")
            ]
            truth = f"; in truth {number(self.truth[str(level)])}" if str(level) in self.truth else ""
            lines.append(f"  {level}: {', '.join(said)}{truth}")
        worst = self.balance[["difference", "difference_weighted"]].abs()
        off = (worst > BALANCED).sum()
        largest, of = worst.max().map(number), f"of {len(worst)} above {BALANCED}"
        lines.append(
            f"Features differ between arms by up to {largest.iloc[0]} standard deviations ({off.iloc[0]} {of}), "
            f"weighed by {largest.iloc[1]} ({off.iloc[1]} {of})."
        )
        if gone := int(self.overlap["set_aside"].sum()):
            lines.append(f"{gone:,} units are set aside: a level has hardly ever been received by units like them.")
        lines += [*self._refuted, *self._hidden, UNSEEN]
        return "\n".join(lines)

    @property
    def _refuted(self) -> list[str]:
        """What effects that must be nought are, in words."""
        said = []
        for check, mine in self.checks[self.checks["p_value"].notna()].groupby("check", sort=False):
            low = mine[mine["p_value"] * len(mine) < ALPHA]
            found = ", ".join(f"{one.treatment} ({one.setting}, p = {one.p_value:.2g})" for one in low.itertuples())
            said.append(f"Effects that must be nought, by {check}: {len(mine)}; not nought: {found or 'none'}.")
        return said

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


def report_of(given: Source, sample: Sample, table: DataFrame, say: ProgressCallback) -> Report:
    """What the written table says, and what the checks find."""
    config, setup, levels = given.config, setup_of(given.config), given.levels
    kept = table.where(F.col("split") != SET_ASIDE)
    effects = average_table(kept, setup, levels, max(given.asked.lowest, 1e-6))
    balance = balance_table(kept, config.roles.features, levels)
    truth: dict[str, float] = {}
    if given.truth is not None:
        known = given.truth.join(kept.select(UNIT), UNIT, "left_semi").groupBy(TREATMENT).agg(F.avg("effect"))
        truth = {row[0]: row[1] for row in known.collect()}
    asked = given.asked
    checks = [
        refutations(sample, asked.permuted, asked.placebo_outcomes, say),
        hidden_table(kept, setup, levels, asked.hidden),
    ]
    checked = pd.concat([part for part in checks if len(part)] or checks, ignore_index=True)
    return Report(config, effects, overlap_table(table, levels, SET_ASIDE), balance, checked, truth)


def run(config: Config, lake: Lake, run_id: str | None = None, say: ProgressCallback = silent) -> JobResult:
    """Write the table that the forest is trained on, and how treated and untreated compare before and after."""
    given = source_of(config, lake)
    run_id = run_id or derive_run_id("nuisances", config, data=given.versions)
    sample = sample_of(given)
    staged = lake.write(config.training_table, adjusted(given, sample, say), run_id, mode="overwrite")
    say("averages, overlap, balance and checks")
    report = report_of(given, sample, lake.read(staged.table, staged.version), say)
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in report.tables(lake.spark).items()]
    details = report.details
    try:
        details["picture"] = str(report.picture())
    except (EnvironmentProblem, OSError) as error:
        say(f"no picture: {error}")
    return JobResult.of("nuisances", run_id, staged, *written, **details, summary=report.summary)


if __name__ == "__main__":
    main_job(run)
