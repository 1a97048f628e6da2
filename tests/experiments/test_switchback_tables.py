"""Switchbacks by the verbs: the schedule on record, observations by block, refusals, and what intervals hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.experiments.test_switchback import simulated
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import switchback_tables
from uplift_spark.experiments.assignment import Experiment
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns
from uplift_spark.experiments.health import health_findings
from uplift_spark.experiments.protocol import (
    ReadingOptions,
    designed,
    readout_design,
    readout_metrics,
    switchback_plan,
)
from uplift_spark.experiments.readout import read_sums
from uplift_spark.experiments.switchback import Switchback, redealt_effects, switchback_readout
from uplift_spark.experiments.switchback_tables import read_observations
from uplift_spark.jobs import assign as assign_job
from uplift_spark.jobs import check as check_job
from uplift_spark.jobs import readout as readout_job
from uplift_spark.jobs.assign import UnitsToAssign, warehouse_query
from uplift_spark.sections.experiment import ExperimentConf, ExperimentMetric, SwitchbackConf

METRICS = (
    ExperimentMetric("sales", "revenue", "primary", covariates=("demand",)),
    ExperimentMetric("sales a visit", "ratio", column="sales", denominator="visits"),
)
TRIAL = ExperimentConf(
    *("surge-2026", {"off": 0.5, "on": 0.5}, METRICS),
    **{"table": "rides.parquet", "start": date(2026, 3, 2), "end": date(2026, 3, 15)},
    switchback=SwitchbackConf(hours=6.0, burn_in_hours=1.0, redeals=199),
)
CONFIG = Config("surge", None, RolesConf("sales", "off", ("demand",)), experiment=TRIAL)
PLAN = switchback_plan(TRIAL)
BEFORE, AFTER = datetime(2026, 3, 1, tzinfo=UTC), ReadingOptions(datetime(2026, 3, 16, tzinfo=UTC))


def with_trial(**changes: Any) -> Config:
    return replace(CONFIG, experiment=replace(TRIAL, **changes))


def without_zone(plan: Switchback) -> Switchback:
    return replace(plan, start=plan.start.replace(tzinfo=None), end=plan.end.replace(tzinfo=None))


def observations(regions: int = 3, seed: int = 1) -> pd.DataFrame:
    """Times as files have them, without a zone: in UTC."""
    rows = simulated(without_zone(PLAN), regions, seed)
    rng = np.random.default_rng(seed)
    return rows.assign(demand=rows["sales"] + rng.normal(0, 2, len(rows)), visits=1 + rng.poisson(3, len(rows)))


# ---------------------------------------------------------------- without Spark


def test_the_configuration_becomes_the_plan() -> None:
    assert (PLAN.start, PLAN.end) == (datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 16, tzinfo=UTC))
    late = switchback_plan(replace(TRIAL, switchback=SwitchbackConf(hours=6.0, start_hour=5.0)))
    assert (late.start.hour, late.end.hour, late.periods) == (5, 5, PLAN.periods)
    design = readout_design(CONFIG)
    assert (design.randomised, design.planned_days, design.planned_units) == ("block", 14, None)
    one = designed(CONFIG)
    assert Experiment.of_text(one.text) == one and "6 h each, without the first 1 h" in str(one.blocks)


def test_trials_of_units_keep_the_fingerprint_that_is_on_record() -> None:
    assert Experiment("spring-2026", {"off": 0.5, "on": 0.5}).fingerprint == "132affbd06ade989"
    assert "blocks" not in Experiment("spring-2026", {"off": 0.5, "on": 0.5}).text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ramp": 0.5}, "randomises blocks and is read once, at its end: drop experiment.ramp"),
        ({"strata": ("city",)}, "drop experiment.strata"),
        ({"units": 100.0, "plan": "anytime"}, "drop experiment.units"),
        ({"table": None}, "needs experiment.table: set it to the table of observations"),
        ({"end": None}, "needs experiment.end: set it to a day"),
        ({"metrics": (ExperimentMetric("region", "count", "primary"),)}, "region is a metric, .* and also the region"),
        ({"metrics": ()}, "of experiment.metrics none is primary"),
        ({"switchback": {"hours": 6.0, "time": "region"}}, "region and time from one column 'region'"),
    ],
)
def test_configurations_that_do_not_fit(changes, message) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        parts = dict(changes)
        if isinstance(parts.get("switchback"), dict):
            parts["switchback"] = SwitchbackConf(**parts["switchback"])
        replace(TRIAL, **parts)


def test_plans_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="blocks of 6 hours with a burn-in of 7"):
        designed(with_trial(switchback=SwitchbackConf(hours=6.0, burn_in_hours=7.0)))
    with pytest.raises(ConfigError, match=r"blocks of 0\.3333 hours: make them whole minutes long"):
        designed(with_trial(switchback=SwitchbackConf(hours=0.3333)))
    with pytest.raises(ConfigError, match=r"has no experiment\.switchback"):
        switchback_plan(replace(TRIAL, switchback=None))


def test_a_schedule_is_no_query(tmp_path: Path) -> None:
    path = tmp_path / "surge.yaml"
    path.write_text(
        "campaign: surge\nroles: {outcome: sales, control: off, features: [demand]}\n"
        "experiment:\n  salt: surge-2026\n  arms: {off: 0.5, on: 0.5}\n  table: rides.parquet\n"
        "  start: 2026-03-02\n  end: 2026-03-15\n  switchback: {hours: 6}\n"
        "  metrics: [{name: sales, kind: revenue, role: primary}]\n"
    )
    with pytest.raises(ConfigError, match=r"a table, not a query: .* bronze\.schedule"):
        warehouse_query(path, [], "regions", "duckdb")


def cells(rows: pd.DataFrame, names: list[str], plan=PLAN) -> pd.DataFrame:
    """Lines as Spark counts them, of rows that all lie in blocks of the schedule."""
    hours = (rows["time"] - pd.Timestamp(plan.start).tz_localize(None)).dt.total_seconds().to_numpy() / 3600
    lines = pd.DataFrame({"of_region": rows["region"], "of_period": np.floor(hours / plan.hours)})
    lines["place"] = np.where(hours % plan.hours < plan.burn_in_hours, "burn-in", "block")
    lines = lines.assign(of_arm=None, n=1, **{f"v{k}": rows[name] for k, name in enumerate(names)})
    by_cell = lines.groupby(["place", "of_region", "of_period"], as_index=False).sum(numeric_only=True)
    return by_cell.assign(of_arm=None, **{f"wrong{k}": 0 for k in range(len(names))})


def replicated(runs: int, effect: float) -> dict[str, float]:
    """What the verbs' own sums give, over trials with schedules of their own: cover and level of both intervals."""
    figures = []
    only = (ExperimentMetric("sales", "revenue", "primary"),)
    for run in range(runs):
        config = with_trial(salt=f"surge-{run}", metrics=only)
        plan, metrics, design = (
            switchback_plan(config.experiment),
            readout_metrics(config.experiment),
            readout_design(config),
        )
        rows = simulated(without_zone(plan), 3, run, effect)
        schedule = plan.blocks(sorted(rows["region"].unique())).set_index("block")
        blocks = switchback_tables._block_sums(cells(rows, ["sales"], plan), plan, schedule, ["sales"])
        sums, facts = blocks.trial(metrics, design, ReadoutColumns("block"), ReadingTime(14, at_end=True))
        result = read_sums(sums, metrics, design, facts)
        (again,) = redealt_effects(blocks, metrics, plan, (sums, result), 199).itertuples()
        one = result.metrics[0]
        figures.append(
            (
                *(one.effect, one.lower <= effect <= one.upper, one.p_value <= 0.05),
                *(again.lower <= effect <= again.upper, again.p_value <= 0.05),
            )
        )
    mean = np.array(figures, float).mean(axis=0)
    return dict(zip(("effect", "cover", "rejects", "cover_redealt", "rejects_redealt"), mean, strict=True))


@pytest.mark.simulation
def test_intervals_of_the_verbs_hold_the_truth() -> None:
    runs = 1000
    none, some = replicated(runs, 0.0), replicated(runs, 0.5)
    print(pd.DataFrame({"no effect": none, "effect .5": some}).round(4).to_string())
    for one in (none, some):
        assert 0.93 <= one["cover"] <= 0.97 and 0.93 <= one["cover_redealt"] <= 0.98, one
    assert none["rejects"] <= 0.07 and none["rejects_redealt"] <= 0.07, none
    assert some["effect"] == pytest.approx(0.5, abs=0.02)


def test_a_quick_simulation_by_the_sums_of_the_verbs() -> None:
    """Binomial bounds that 30 sound trials exceed about once in a million runs."""
    some = replicated(30, 0.5)
    assert some["cover"] >= 0.66 and some["effect"] == pytest.approx(0.5, abs=0.12)


# ---------------------------------------------------------------- with Spark


def prepared(lake: Any, folder: Path, rows: pd.DataFrame, config: Config = CONFIG, regions: int = 3) -> Campaign:
    """A campaign with a schedule on record and observations in a file."""
    listed = folder / "regions.csv"
    listed.write_text("\n".join(["region", *(f"r{k}" for k in range(regions))]) + "\n")
    campaign = at_table(lake, folder, rows, config)
    assign_job.run(campaign, units=UnitsToAssign(str(listed), BEFORE))
    return campaign


def at_table(lake: Any, folder: Path, rows: pd.DataFrame, config: Config = CONFIG) -> Campaign:
    path = folder / f"rides{len(list(folder.glob('rides*')))}.parquet"
    times = {"time": "datetime64[us]"} if rows["time"].dtype.kind == "M" else {}
    rows.astype(times).to_parquet(path)
    assert config.experiment is not None
    changed = replace(config, experiment=replace(config.experiment, table=str(path)), lakehouse=lake.lakehouse)
    return Campaign(changed, lake)


@pytest.mark.slow
def test_the_verbs_say_what_python_says(lake, tmp_path: Path) -> None:
    rows = observations()
    placed = without_zone(PLAN).placed(rows)
    rows.loc[placed.index, "treatment"] = placed["treatment"]
    rows.loc[placed.index[:3], "treatment"] = "neither"
    campaign = prepared(lake, tmp_path, rows)
    schedule = lake.read("bronze.schedule").orderBy("block").toPandas()
    wanted = PLAN.blocks(["r0", "r1", "r2"]).sort_values("block", ignore_index=True)
    for name in ("block", "region", "round", "treatment", "propensity"):
        assert schedule[name].tolist() == wanted[name].tolist(), name
    assert (schedule["starts_at"] == wanted["starts_at"].dt.tz_localize(None)).all()
    again = assign_job.run(campaign, units=UnitsToAssign(str(tmp_path / "regions.csv"), BEFORE))
    assert again.tables == {} and lake.read("bronze.schedule").count() == len(schedule)

    checked = check_job.run(campaign, reading=AFTER)
    assert checked.details["blocks"] == {"off": "84", "on": "84"} and checked.details["trial"] == "may be read"
    result = readout_job.run(campaign, reading=AFTER)
    theirs = switchback_readout(
        rows.assign(time=rows["time"].dt.tz_localize("UTC")), readout_metrics(TRIAL), PLAN, redeals=199
    )
    ours = lake.read("gold.readout").toPandas().set_index(["metric", "role"])
    table = theirs.readout.table().set_index(["metric", "role"])
    for name in ("control", "treated", "effect", "error", "lower", "upper", "p_value", "p_adjusted", "relative"):
        np.testing.assert_allclose(ours.loc[table.index, name].astype(float), table[name], rtol=1e-9, err_msg=name)
    for row in theirs.redealt.itertuples():
        figures = ours.loc[(row.metric, "redealt"), ["effect", "p_value", "lower", "upper"]].astype(float)
        np.testing.assert_allclose(figures, [row.effect, row.p_value, row.lower, row.upper], rtol=1e-9)
    assert result.details["rows"] == f"{theirs.rows:,} of {theirs.total:,} lie in blocks behind their burn-in"
    assert "re-dealt sales, arm on" in result.details["readout"]
    (record,) = lake.read("gold.experiment").where("job = 'readout'").collect()
    assert (record["verdict"], record["units"]) == (theirs.readout.verdict.word, 168)
    health = lake.read("gold.experiment_health").toPandas()
    assert set(health["check"]) == {"crossed"}
    assert all(one["skipped"] for one in readout_job.run(campaign, reading=AFTER).tables.values())
    half = read_observations(campaign, ReadingOptions(datetime(2026, 3, 9, 3, tzinfo=UTC)))
    assert half.planned == half.facts.total == 84
    (finding,) = health_findings(half.facts, readout_design(CONFIG))
    assert finding.check == "unplanned_look" and "the trial has 7 of 14 planned days" in finding.sentence
    assert half.waiting == int((rows["time"] >= "2026-03-09").sum())


@pytest.mark.slow
def test_observations_that_do_not_fit(lake, tmp_path: Path) -> None:
    rows = observations(2)
    with pytest.raises(DataError, match=r"campaign surge has no schedule in bronze\.schedule: run `uplift assign"):
        read_observations(at_table(lake, tmp_path, rows), AFTER)
    prepared(lake, tmp_path, rows, regions=2)
    first = rows.index < 4
    cases: list[tuple[pd.DataFrame, type[Exception], str]] = [
        (
            rows.assign(region=rows["region"].mask(first, "R1")),
            *(
                DataError,
                r"4 rows of .* are of regions that bronze\.schedule has not, such as 'R1': it has r0, r1, assign",
            ),
        ),
        (
            rows.assign(time=rows["time"].mask(first, pd.Timestamp("2026-03-17 08:00"))),
            *(DataError, r"4 rows of .* lie outside the trial's time .* such as at 2026-03-17 08:00"),
        ),
        (rows.assign(region=rows["region"].mask(first)), DataError, "column 'region' .* is missing in 4 rows"),
        (rows.assign(time=rows["time"].mask(first)), DataError, "column 'time' .* is missing or no time in 4 rows"),
        (rows.assign(time=1.5), DataError, "column 'time' .* holds no times: cast it to timestamps"),
        (rows.assign(sales="a"), DataError, "column 'sales' .* is no number: cast it"),
        (
            rows.assign(sales=rows["sales"].mask(rows.index % 12 == 5)),
            *(DataError, r"column 'sales' is missing or not finite in \d+ rows: fill or drop them"),
        ),
        (rows.drop(columns="visits"), ConfigError, "metric 'visits' is no column of"),
        (rows.rename(columns={"region": "town"}), ConfigError, "region 'region' is no column of"),
        (rows.assign(treatment="on"), DataError, "saw another arm than their block's: compare the clocks"),
        (rows.iloc[:0], DataError, "has no row: observations of the trial are read from it"),
        (rows.assign(sales=1.0), DataError, "metric sales is 1 in all 112 units"),
    ]
    for frame, error, sentence in cases:
        campaign = at_table(lake, tmp_path, frame)
        with pytest.raises(error, match=sentence):
            readout_job.run(campaign, reading=AFTER)
    campaign = at_table(lake, tmp_path, rows)
    with pytest.raises(ConfigError, match="--policy compares arms of units, and a switchback has arms of blocks"):
        read_observations(campaign, replace(AFTER, policy="'on'"))
    with pytest.raises(DataError, match="no row lies in a block that has ended, behind its burn-in"):
        read_observations(campaign, ReadingOptions(datetime(2026, 3, 2, 5, tzinfo=UTC)))
    assert not lake.exists("gold.readout")


@pytest.mark.slow
def test_schedules_that_do_not_fit(lake, tmp_path: Path) -> None:
    campaign = prepared(lake, tmp_path, observations(2), regions=2)
    regions = UnitsToAssign(str(tmp_path / "regions.csv"), BEFORE)
    longer = SwitchbackConf(hours=12.0, burn_in_hours=1.0)
    refusals = [
        (with_trial(switchback=longer), "surge-2026 has other blocks than units were assigned with: give the new"),
        (with_trial(end=date(2026, 3, 22)), "surge-2026 has other blocks than units were assigned with"),
        (with_trial(salt="surge-2027"), "campaign surge was assigned with salt surge-2026"),
        (replace(CONFIG, campaign="other"), "salt surge-2026 was used by campaign surge"),
    ]
    for config, sentence in refusals:
        other = Campaign(replace(config, lakehouse=lake.lakehouse), lake)
        with pytest.raises(ConfigError, match=sentence):
            assign_job.run(other, units=regions)
        if config.campaign == "surge":
            with pytest.raises(ConfigError, match=sentence):
                read_observations(other, AFTER)
    (tmp_path / "towns.csv").write_text("town\nr1\n")
    (tmp_path / "gaps.csv").write_text('region\nr1\n""\n \n')
    with pytest.raises(ConfigError, match=r"region 'region' is no column of .*towns\.csv"):
        assign_job.run(campaign, units=UnitsToAssign(str(tmp_path / "towns.csv"), BEFORE))
    with pytest.raises(DataError, match=r"column 'region' of .*gaps.csv is missing in \d rows"):
        assign_job.run(campaign, units=UnitsToAssign(str(tmp_path / "gaps.csv"), BEFORE))
    (tmp_path / "more.csv").write_text("region\nr0\nr2\n")
    more = str(tmp_path / "more.csv")
    with pytest.raises(DataError, match="the last block begins before 2026-03-20 00:00 UTC"):
        assign_job.run(campaign, units=UnitsToAssign(more, datetime(2026, 3, 20, tzinfo=UTC)))
    # A region that comes late has no blocks of before, so its rows of then lie in none.
    late = assign_job.run(campaign, units=UnitsToAssign(more, datetime(2026, 3, 9, tzinfo=UTC)))
    assert late.details["new_blocks"] == {"off": "14", "on": "14"}
    with pytest.raises(
        DataError, match=r"rows lie in 28 blocks that bronze\.schedule has not, such as r2\|2026-03-02T0"
    ):
        read_observations(at_table(lake, tmp_path, observations(3)), AFTER)
    rows = lake.read("bronze.schedule").where("block = 'r0|2026-03-02T00:00'")
    flipped = rows.drop("run_id", "ingested_at").selectExpr(
        "* EXCEPT (treatment)", "CASE treatment WHEN 'on' THEN 'off' ELSE 'on' END AS treatment"
    )
    lake.write("bronze.schedule", flipped, "by-hand")
    with pytest.raises(DataError, match=r"two arms in 1 blocks of campaign surge, such as r0\|2026-03-02T00:00"):
        read_observations(campaign, AFTER)
