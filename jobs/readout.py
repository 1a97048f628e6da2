"""Read a trial: check it, then each metric's effect and a verdict: ship, roll back, keep going, or broken.

Reads the training set, or the table that `experiment.table` names, gold.experiment, and of a switchback
bronze.schedule; appends to gold.experiment_health, gold.readout and gold.experiment, and draws the effect over time.
Ends with exit code 1 and the reasons where the trial is broken and nobody overrides that. With --programme it reads
profiles, outcomes and assignments of all campaigns with the same holdout, and what was read of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import pandas as pd
import typer
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.evaluation.pictures import effect_picture, save
from uplift_spark.experiments.backtest import POLICY_ROLE, PolicyReadout
from uplift_spark.experiments.programme_tables import ProgrammeTables
from uplift_spark.experiments.protocol import (
    READ,
    ReadingOptions,
    TrialReading,
    planned_readings,
    policy_layout,
    read_trial_policy,
    reading_identity,
    readout_design,
    readout_metrics,
    readout_rows,
    record_row,
    refuse_broken,
    trial_of,
    write_findings,
)
from uplift_spark.experiments.readout import PRIMARY, TrialReadout, effects_by_day, read_sums
from uplift_spark.experiments.switchback_tables import RedealtEffect, SwitchbackReading, trial_reading
from uplift_spark.lake.schemas import EXPERIMENT_TABLE, READOUT_TABLE, TRUTH_TABLE
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress


def options(
    as_of: Annotated[str | None, typer.Option(help="Read outcomes until then, in UTC, such as 2026-03-09.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Assignment has ended: this reading is the last.")] = False,
    override: Annotated[str | None, typer.Option(help="Why a broken trial is read; stays on every figure.")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="SQL", help="Arm of a policy, over the rows' columns: read it, too.")
    ] = None,
    programme: Annotated[
        bool, typer.Option("--programme", help="What all campaigns with this holdout bring together.")
    ] = False,
) -> dict[str, Any]:
    """How the trial is read."""
    if programme and (as_of or final or policy):
        raise ConfigError("--programme reads all outcomes that are there: leave --as-of, --final and --policy out")
    return {"reading": ReadingOptions.of_texts(as_of, final, override, policy), "programme": programme}


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    reading: ReadingOptions | None = None,
    programme: bool = False,
) -> JobResult:
    """Write findings, figures and verdict; a broken trial has no figures and is a DataError once that is written, a
    `policy` that the logged arms tell nothing of before anything is.

    With `programme` the units that no campaign treats are read against all others.
    """
    how, lake = reading or ReadingOptions(), campaign.lake
    if programme:
        return _read_programme(campaign, progress, run_id, how)
    trial, design = trial_of(campaign.config), readout_design(campaign.config)
    read, metrics = trial_reading(campaign, how), readout_metrics(trial)
    result = read_sums(read.sums, metrics, design, read.facts, override=how.override)
    result = replace(result, findings=(*result.findings, *read.findings))
    redealt = read.redealt(metrics, result) if isinstance(read, SwitchbackReading) else ()
    policy = read_trial_policy(campaign, read, how, result.level) if result.metrics else None
    if policy is not None and how.policy is not None:
        policy.refuse()
    run_id = run_id or campaign.run_id("readout", **reading_identity(campaign, read, how))
    written = [write_findings(campaign, read, result.findings, how, run_id)]
    if result.metrics:
        others = (*redealt, *(policy.metrics if policy else ()))
        rows = lake.filled(READOUT_TABLE, readout_rows(campaign, read, result, others))
        written.append(lake.write(READOUT_TABLE, rows, run_id))
    verdict = result.verdict
    figures = {
        "units": int(read.facts.total), "share": design.fractions(read.facts)[-1], "level": result.level,
        "verdict": verdict.word, "arm": verdict.arm, "reason": verdict.reason, "days_left": verdict.days_left,
        "override": result.override,
    }  # fmt: skip
    written.append(lake.write(EXPERIMENT_TABLE, record_row(campaign, READ, read.as_of, **figures), run_id))
    refuse_broken(campaign, result.findings, how.override)
    picture = _picture(campaign, read, progress, run_id)
    details = read.details | ({"picture": picture} if picture else {})
    return JobResult.of("readout", run_id, *written, **details, readout=_text(result, policy, redealt))


def _read_programme(
    campaign: Campaign, progress: ProgressCallback, run_id: str | None, how: ReadingOptions
) -> JobResult:
    """Write what all campaigns with the holdout bring together; raises DataError where it is broken."""
    lake, tables = campaign.lake, ProgrammeTables.of(campaign)
    for name in tables.unread:
        progress(
            f"no reading of campaign {name} is on record: effects are not added up; run `uplift readout` with its conf"
        )
    result, facts = tables.readout(trial_of(campaign.config).alpha, how.override)
    run_id = run_id or campaign.run_id("readout", programme=tables.identity, override=how.override)
    common = {CAMPAIGN: campaign.name, "as_of": tables.as_of, "override": how.override}
    lines = [{**common, **vars(one), TREATMENT: one.arm} for one in result.rows]
    written = lake.write(READOUT_TABLE, lake.filled(READOUT_TABLE, lines), run_id)
    units = {arm: f"{n:,.0f}" for arm, n in facts.units.items()}
    campaigns = ", ".join(tables.campaigns)
    return JobResult.of("readout", run_id, written, campaigns=campaigns, units=units, readout=result.text())


def planned_jobs(config: Config) -> dict[str, Callable[..., JobResult]]:
    """{readout and share of the units: the job} of each reading that is planned; `uplift demo` runs them."""
    return {f"readout {share}": partial(run, reading=how) for share, how in planned_readings(config).items()}


def readings_beside_truth(campaign: Campaign, results: Sequence[JobResult]) -> pd.DataFrame:
    """What each reading of a simulated trial showed of the primary metric, beside the true effect.

    Args:
        campaign: Simulated.
        results: Of jobs; those of `readout` count.

    Returns:
        A row for each reading and arm: as_of, share of the units, arm, effect, its interval, the true mean effect on
        all units, verdict.
    """
    lake, runs = campaign.lake, [one.run_id for one in results if one.job == "readout"]
    primary = next(one for one in trial_of(campaign.config).metrics if one.role == PRIMARY)
    truth = lake.read(TRUTH_TABLE).where((F.col(CAMPAIGN) == campaign.name) & (F.col("outcome") == primary.outcome))
    truth = truth.groupBy(TREATMENT).agg(F.mean("effect").alias("true_effect"))
    figures = lake.read(READOUT_TABLE).where(F.col(RUN_ID).isin(runs) & (F.col("role") == PRIMARY))
    verdicts = lake.read(EXPERIMENT_TABLE).where(F.col(RUN_ID).isin(runs)).select(RUN_ID, "share", "verdict")
    rows = figures.join(verdicts, RUN_ID).join(F.broadcast(truth), TREATMENT, "left").orderBy("as_of", TREATMENT)
    columns = ("share", TREATMENT, "effect", "lower", "upper", "true_effect", "verdict")
    return rows.select(F.date_format("as_of", "yyyy-MM-dd").alias("as_of"), *columns).toPandas()


def policy_beside_truth(campaign: Campaign, result: JobResult) -> pd.DataFrame:
    """What a readout of a simulated targeted campaign showed of its policy, beside the truth.

    Args:
        campaign: Simulated, with `experiment.decision` in its training set.
        result: Of its readout.

    Returns:
        A row for each metric and level that all units would get: metric, against, effect of the policy a unit, its
        interval, the true mean on these units, status.
    """
    lake, config = campaign.lake, campaign.config
    mine = (F.col(RUN_ID) == result.run_id) & (F.col("role") == POLICY_ROLE)
    rows = lake.read(READOUT_TABLE).where(mine).toPandas()
    decision = F.col(str(trial_of(config).decision))
    truth = lake.read(TRUTH_TABLE).where(F.col(CAMPAIGN) == campaign.name)
    known = campaign.training_set().select(UNIT, decision.alias("decision")).join(truth, UNIT)
    gets = F.col("decision") == F.col(TREATMENT)
    means = {"all": F.avg("effect"), "policy": F.avg(F.when(gets, F.col("effect")).otherwise(0.0))}
    means |= {"share": F.avg(gets.cast("double"))}
    by_level = known.groupBy("outcome", TREATMENT).agg(*(mean.alias(name) for name, mean in means.items()))
    true = by_level.toPandas().set_index(["outcome", TREATMENT])
    layout = policy_layout(config)

    def true_effect(metric: str, level: str) -> float:
        reward = next(one for one in layout.rewards if one.name == metric)
        costs = dict(zip(layout.arms, reward.costs or [0.0] * len(layout.arms), strict=True))
        effects = true.loc[reward.column]
        spent = sum(costs[str(name)] * share for name, share in effects["share"].items())
        return float(reward.value * (effects["policy"].sum() - effects["all"].get(level, 0.0)) - spent + costs[level])

    true_effects = [true_effect(*names) for names in zip(rows["metric"], rows[TREATMENT], strict=True)]
    shown = rows.rename(columns={TREATMENT: "against"}).assign(true_effect=true_effects)
    return shown[["metric", "against", "effect", "lower", "upper", "true_effect", "status"]]


def _text(result: TrialReadout, policy: PolicyReadout | None, redealt: Sequence[RedealtEffect] = ()) -> str:
    """The readout's lines, those of re-deals and a policy behind them, the verdict last, where it is read."""
    verdict, *lines = result.text().splitlines()
    return "\n".join([*lines, *map(str, redealt), *([policy.text()] if policy else []), "", verdict])


def _picture(campaign: Campaign, read: TrialReading, progress: ProgressCallback, run_id: str) -> str:
    """Draw the primary metric's effect over time; returns the path, nothing without days or matplotlib."""
    primary = next(one for one in readout_metrics(trial_of(campaign.config)) if one.role == PRIMARY)
    if read.sums.by_day is None:
        return ""
    try:
        days = effects_by_day(read.sums, primary, readout_design(campaign.config))
        figure = effect_picture(days, primary.name)
        return str(save(figure, campaign.reports(run_id) / "effect_over_time.png"))
    except (EnvironmentProblem, OSError) as error:
        progress(f"no picture: {error}")
        return ""


if __name__ == "__main__":
    main_job(run, options)
