"""`uplift assign`, `check` and `readout`: what they write, add once, refuse, and print; figures are those of pandas."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.experiments.test_frames import trial as simulated_trial
from uplift_spark import cli
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.experiments import protocol
from uplift_spark.experiments.assignment import DIALECTS, Experiment, assign
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, readout
from uplift_spark.experiments.health import ReadoutDesign, TrialFacts
from uplift_spark.experiments.protocol import (
    ReadingOptions,
    TrialReading,
    designed,
    read_trial_rows,
    reading_identity,
    readout_design,
    readout_metrics,
)
from uplift_spark.governance.spark import AuditLog
from uplift_spark.jobs import assign as assign_job
from uplift_spark.jobs import check as check_job
from uplift_spark.jobs import readout as readout_job
from uplift_spark.jobs import train as train_job
from uplift_spark.jobs.assign import UnitsToAssign, warehouse_query
from uplift_spark.lake.session import parsed_time
from uplift_spark.runtime import os_user
from uplift_spark.sections.experiment import ExperimentConf, ExperimentMetric
from uplift_spark.sections.governance import AuditConf, Governance
from uplift_spark.sections.source import Pseudonyms

METRICS = (
    ExperimentMetric("spend", "revenue", "primary", covariates=("before",)),
    ExperimentMetric("spend a visit", "ratio", column="spend", denominator="visits"),
)
TRIAL = ExperimentConf("spring-2026", {"off": 0.5, "on": 0.5}, METRICS, strata=("region",), balance=("age",))
CONFIG = Config("spring", None, RolesConf("spend", "off", ("age",)), experiment=TRIAL)
AT = datetime(2026, 3, 2, tzinfo=UTC)
LATER = ReadingOptions(datetime(2026, 5, 1, tzinfo=UTC), final=True)


def with_trial(**changes: Any) -> Config:
    return replace(CONFIG, experiment=replace(TRIAL, **changes))


# ---------------------------------------------------------------- without Spark


def test_the_configuration_becomes_the_design() -> None:
    config = with_trial(plan="hsd", analyses=(0.5, 1.0), gamma=-2.0, units=4000.0, stopped=(), alpha=0.1)
    rule = readout_design(config).stopping
    assert (rule.kind, rule.spending, rule.analyses, rule.gamma, rule.alpha) == (
        *("group_sequential", "hwang_shih_decani", (0.5, 1.0), -2.0, 0.1),
    )
    assert readout_design(CONFIG).stopping.kind == "fixed"
    assert readout_design(with_trial(plan="anytime", units=100.0)).stopping.kind == "anytime"
    assert [(one.name, one.column, one.role) for one in readout_metrics(TRIAL)] == [
        ("spend", "spend", "primary"), ("spend a visit", "spend", "secondary"),
    ]  # fmt: skip
    assert designed(CONFIG) == Experiment("spring-2026", {"off": 0.5, "on": 0.5}, stratified=True)
    dated = with_trial(start=AT.date(), end=datetime(2026, 3, 29, tzinfo=UTC).date())
    assert readout_design(dated).planned_days == 28 + 14  # four weeks, and the window of the last day's outcomes


def test_arms_that_were_stopped_are_no_part_of_a_reading() -> None:
    three = with_trial(arms={"off": 0.5, "on": 0.25, "more": 0.25}, stopped=("more",), units=4000.0)
    assert readout_design(three).shares == pytest.approx({"off": 2 / 3, "on": 1 / 3})
    # 4,000 units are planned for three arms; else the two that are read could never be all there.
    assert readout_design(three).planned_units == pytest.approx(3000)
    assert readout_design(with_trial(units=4000.0)).planned_units == 4000


def test_random_arms_are_not_found_again_from_pseudonyms() -> None:
    """The hash of a pseudonym is another draw than that of the id, so a share of the wrong units would be read."""
    trial = {"exploration": 0.2, "decision": "wish", "strata": ()}
    hidden = replace(with_trial(**trial), pseudonyms=Pseudonyms(key_env="UPLIFT_KEY"))
    with pytest.raises(ConfigError, match=r"drawn from ids, .* pseudonyms .* experiment\.table"):
        read_trial_rows(Campaign(hidden), ReadingOptions())


def test_a_run_is_named_by_all_that_its_rows_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = TrialFacts({"off": 1.0, "on": 1.0})
    reading = TrialReading(None, facts, AT, 0, "units@1")  # type: ignore[arg-type]
    signed = replace(LATER, override="a rehearsal")
    identities = [
        reading_identity(Campaign(CONFIG), reading, how) for how in (LATER, signed, replace(signed, final=False))
    ]
    for changes in ({"earlier": (0.5,)}, {"same_salt": ("autumn",)}):
        other = replace(reading, facts=replace(facts, **changes))
        identities.append(reading_identity(Campaign(CONFIG), other, LATER))
    monkeypatch.setattr("uplift_spark.governance.permissions.os_user", lambda: "somebody else")
    identities.append(reading_identity(Campaign(CONFIG), reading, signed))
    assert len({Campaign(CONFIG).run_id("check", **one) for one in identities}) == len(identities) == 6


def test_a_design_is_what_its_text_says() -> None:
    from uplift_spark.experiments.assignment import ProgrammeHoldout, Slot

    one = Experiment(
        *("a-1", {"off": 0.4, "10 % Zoë": 0.6}, 0.2, ()),
        *(Slot("shop", 0, 0.5), ProgrammeHoldout("all", 0.1)),
    )
    assert Experiment.of_text(one.text) == one and Experiment.of_text(one.text).fingerprint == one.fingerprint


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_query_for_a_warehouse(tmp_path: Path, dialect: str) -> None:
    path = tmp_path / "spring.yaml"
    path.write_text(
        "campaign: spring\nroles: {outcome: spend, control: off, features: [age]}\n"
        "experiment:\n  salt: spring-2026\n  arms: {off: 0.5, on: 0.5}\n"
        "  metrics: [{name: spend, kind: revenue, role: primary}]\n"
    )
    query = warehouse_query(path, ["experiment.ramp=0.5"], "crm.users", dialect)
    assert "FROM crm.users AS units" in query and "spring-2026/ramp:" in query
    with pytest.raises(ConfigError, match="SQL dialect 'oracle' is unknown"):
        warehouse_query(path, [], "crm.users", "oracle")


@pytest.mark.parametrize("name", ["spend", "visits", "returns", "treatment", "propensity", "delivered"])
def test_a_policy_knows_nothing_of_what_comes_after_the_treatment(name: str) -> None:
    """Every outcome of the campaign, also one that is no metric of the trial: who bought is not known before."""
    config = replace(CONFIG, roles=replace(CONFIG.roles, more_outcomes=("returns",)))
    columns = ["unit_id", "age", "before", "spend", "visits", "returns", "treatment", "propensity", "delivered"]
    rows: Any = SimpleNamespace(columns=columns)
    with pytest.raises(ConfigError, match=rf"--policy.*{name}"):
        protocol._policy_column(f"CASE WHEN {name} > '0' THEN 'on' ELSE 'off' END", config, rows)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="--override has no reason"):
        ReadingOptions.of_texts(None, False, " ")
    with pytest.raises(ConfigError, match="--as-of 'monday' is no time"):
        check_job.options(as_of="monday")
    assert parsed_time("2026-03-02T06:00+02:00", "--at") == datetime(2026, 3, 2, 4, tzinfo=UTC)
    with pytest.raises(ConfigError, match="campaign spring has no section `experiment`"):
        designed(replace(CONFIG, experiment=None))


# ---------------------------------------------------------------- assign


def units_file(folder: Path, ids: list[str], name: str = "users.csv") -> str:
    path = folder / name
    lines = [f"{unit},{('north', 'south')[k % 2]}" for k, unit in enumerate(ids)]
    path.write_text("\n".join(["unit_id,region", *lines]) + "\n", encoding="utf-8")
    return str(path)


def assigned(lake: Any, campaign: str) -> pd.DataFrame:
    rows = lake.read("bronze.assignment").where(f"campaign = '{campaign}'").toPandas()
    return rows.sort_values("unit_id", ignore_index=True)


def test_units_get_their_arm_once(lake, tmp_path: Path) -> None:
    ids = [f"{k:05d}" for k in range(300)] + ["Zoë", "9223372036854775807"]
    units = UnitsToAssign(units_file(tmp_path, ids), AT)
    small = with_trial(ramp=0.3, strata=())
    first = assign_job.run(Campaign(small, lake), units=units)
    before = assigned(lake, "spring")
    experiment = designed(small)
    wanted = assign(ids, experiment).dropna(subset=["treatment"]).sort_values("unit_id", ignore_index=True)
    columns = ["unit_id", "treatment", "propensity"]
    pd.testing.assert_frame_equal(before[columns], wanted[columns])
    assert (
        set(before["assigned_at"]) == {pd.Timestamp("2026-03-02")}
        and before["source"].str.fullmatch(r"users\.csv#[0-9a-f]+").all()
    )
    blanks = UnitsToAssign(units_file(tmp_path, [f" {one}\t" for one in ids], "blanks.csv"))
    assert assign_job.run(Campaign(small, lake), units=blanks).tables == {}  # ids are trimmed as at every other door
    again = assign_job.run(Campaign(small, lake), units=UnitsToAssign(units.source))
    assert again.tables == {} and len(assigned(lake, "spring")) == len(before)
    assert again.details["units"] == first.details["units"]
    assert sum(int(n) for n in again.details["left_out"].values()) == len(ids) - len(before)
    assign_job.run(Campaign(with_trial(ramp=1.0, strata=()), lake), units=UnitsToAssign(units.source, AT))
    after = assigned(lake, "spring").set_index("unit_id")
    assert len(after) == len(ids)
    assert (after.loc[before["unit_id"], "treatment"].to_numpy() == before["treatment"].to_numpy()).all()
    record = lake.read("gold.experiment").toPandas()
    assert record["job"].tolist() == ["assign", "assign"] and set(record["salt"]) == {"spring-2026"}

    new = replace(with_trial(salt="new-1", strata=("regio",)), campaign="new")
    refusals = [
        (
            with_trial(arms={"off": 0.4, "on": 0.6}, strata=()),
            "spring-2026 has other arms than units were assig",
        ),
        (with_trial(ramp=0.1, strata=()), "ramp of spring-2026 falls from .* to 0.1"),
        (with_trial(salt="spring-2027", strata=()), "campaign spring was assigned with salt spring-2026"),
        (replace(with_trial(strata=()), campaign="autumn"), "salt spring-2026 was used by campaign spring"),
        (new, "stratum 'regio' is no column of .*users.csv: did you mean 'region'"),
    ]
    for config, sentence in refusals:
        with pytest.raises(ConfigError, match=sentence):
            assign_job.run(Campaign(replace(config, lakehouse=lake.lakehouse), lake), units=units)
    assert len(assigned(lake, "spring")) == len(ids) and assigned(lake, "autumn").empty


@pytest.mark.slow
def test_of_two_assignments_at_once_the_second_sees_the_first(lake, tmp_path: Path, monkeypatch) -> None:
    """The other run writes between what this one reads and what it writes."""
    units = UnitsToAssign(units_file(tmp_path, [f"u{k}" for k in range(200)]), AT)
    check, others = assign_job.check_record, list[Config]()

    def overtaken(*arguments: Any) -> bool:
        on_record = check(*arguments)
        if others:
            assign_job.run(Campaign(others.pop(), lake), units=units)
        return on_record

    monkeypatch.setattr(assign_job, "check_record", overtaken)
    spring = with_trial(strata=())
    others.append(spring)
    assert assign_job.run(Campaign(spring, lake), units=UnitsToAssign(units.source)).tables == {}
    assert len(assigned(lake, "spring")) == 200 and assigned(lake, "spring")["unit_id"].is_unique
    summer = replace(with_trial(strata=(), salt="summer-2026"), campaign="summer")
    others.append(replace(summer, campaign="winter"))
    with pytest.raises(ConfigError, match="salt summer-2026 was used by campaign winter"):
        assign_job.run(Campaign(summer, lake), units=units)
    assert assigned(lake, "summer").empty and len(assigned(lake, "winter")) == 200


# ---------------------------------------------------------------- check and readout


def trial_file(folder: Path, rows: pd.DataFrame) -> str:
    path = folder / "units.parquet"
    rows.rename(columns={"day": "assigned_at", "took": "delivered"}).assign(
        unit_id=rows["unit_id"].astype(str),
        delivered=rows["took"].astype(int),
        assigned_at=rows["day"].astype("datetime64[us]"),
    ).to_parquet(path)
    return str(path)


def test_a_readout_says_what_pandas_says(lake, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = simulated_trial(2000)
    config = with_trial(table=trial_file(tmp_path, rows), start=AT.date())
    result = readout_job.run(Campaign(config, lake), reading=LATER)
    ours = lake.read("gold.readout").toPandas().set_index(["metric", "role"])
    design = ReadoutDesign({"off": 0.5, "on": 0.5})
    columns = ReadoutColumns(stratum="region", day="day", taken="took", propensity="propensity", balance=("age",))
    wanted = readout(rows, readout_metrics(TRIAL), design, columns, time=ReadingTime(60, at_end=True))
    theirs = wanted.table().set_index(["metric", "role"])
    ends = ("lower", "upper", "relative", "relative_lower", "relative_upper")
    for name in ("control", "treated", "effect", "error", *ends, "p_value", "p_adjusted", "saved"):
        np.testing.assert_allclose(
            ours[name].astype(float), theirs.loc[ours.index, name], rtol=1e-9, atol=1e-12, err_msg=name
        )
    (record,) = lake.read("gold.experiment").collect()
    assert (record["verdict"], record["arm"], record["units"], record["share"]) == ("ship", "on", 2000, 1.0)
    assert record["reason"] == wanted.verdict.reason and "ship on" in result.details["readout"]
    health = lake.read("gold.experiment_health").toPandas()
    assert health["check"].tolist() == [one.check for one in wanted.findings] == ["whole_weeks"]
    assert Path(result.details["picture"]).stat().st_size > 10_000
    again = readout_job.run(Campaign(config, lake), reading=LATER)
    assert all(one["skipped"] for one in again.tables.values())


@pytest.mark.slow
def test_a_broken_trial_is_refused_with_its_reasons(lake, tmp_path: Path) -> None:
    rows = simulated_trial(2000)
    lost = rows[(rows["treatment"] == "off") | (rows["before"] > 9)]
    config = replace(with_trial(table=trial_file(tmp_path, lost)), governance=Governance(audit=AuditConf()))
    campaign = Campaign(config, lake)
    for job in (check_job, readout_job):
        with pytest.raises(DataError, match=r"experiment of campaign spring is broken: arm off has \+.* --override"):
            job.run(campaign, reading=LATER)
    health = lake.read("gold.experiment_health").toPandas()
    assert {"sample_ratio", "covariate_balance"} <= set(health["check"]) and health["override"].isna().all()
    assert not lake.exists("gold.readout")
    assert [row["verdict"] for row in lake.read("gold.experiment").collect()] == ["broken"]
    result = readout_job.run(campaign, reading=replace(LATER, override="a rehearsal"))
    figures = lake.read("gold.readout").toPandas()
    assert set(figures["override"]) == {"a rehearsal"} and "override: a rehearsal" in result.details["readout"]
    signed = lake.read("gold.experiment_health").where("override IS NOT NULL").toPandas()
    assert set(signed["override_by"]) == {os_user()} and len(signed) >= 2
    readout_job.run(campaign, reading=replace(LATER, override="a rehearsal"))  # a rerun says nothing new
    (entry,) = AuditLog(config, lake).show(10).to_pylist()
    assert (entry["action"], entry["subject"], entry["reason"], entry["actor"], entry["job_run"]) == (
        *("override", "trial spring", "a rehearsal", os_user(), result.run_id),
    )


@pytest.mark.slow
def test_no_model_learns_from_a_broken_trial(lake, tmp_path: Path) -> None:
    rows = simulated_trial(2000)
    lost = rows[(rows["treatment"] == "off") | (rows["before"] > 9)]
    config = with_trial(table=trial_file(tmp_path, lost))
    config = replace(config, governance=Governance(audit=AuditConf()), lakehouse=lake.lakehouse)
    campaign = Campaign(replace(config, forest=replace(config.forest, n_trees=4)), lake)
    training = rows[["treatment", "spend", "age", "propensity"]].assign(
        unit_id=rows["unit_id"].astype(str), assigned_at=rows["day"].astype("datetime64[us]"), split="train"
    )
    lake.write(campaign.training_table, lake.spark.createDataFrame(training), "features-1")
    with pytest.raises(
        DataError, match=r"broken, so a model would learn what its arms differ by: arm off has .* --over"
    ):
        train_job.run(campaign)
    assert campaign.registry.known(config.model_name) is None and not lake.exists("gold.audit_log")
    with pytest.raises(ConfigError, match="--override is empty"):
        train_job.options(override=" ")
    result = train_job.run(campaign, override="a rehearsal")
    (entry,) = [one for one in AuditLog(config, lake).show(10).to_pylist() if one["action"] == "override"]
    assert (entry["reason"], entry["job_run"], entry["subject"]) == ("a rehearsal", result.run_id, "training of spring")


def test_readings_before_the_end(lake, tmp_path: Path) -> None:
    """Units that came lately wait for their outcomes; looks are on record, and none follows the last."""
    table = trial_file(tmp_path, simulated_trial(2000))
    plan = {"plan": "obf", "analyses": (0.5, 1.0), "units": 2000.0, "table": table, "start": AT.date()}
    campaign = Campaign(with_trial(**plan), lake)
    half = readout_job.run(campaign, reading=ReadingOptions(datetime(2026, 3, 30, tzinfo=UTC)))
    assert half.details["not_complete_yet"] == f"{(simulated_trial(2000)['day'] > '2026-03-16').sum():,} units"
    with pytest.raises(DataError, match=r"look 2 comes at 6\d%.* planned at 100%"):
        readout_job.run(campaign, reading=ReadingOptions(datetime(2026, 4, 1, tzinfo=UTC)))
    readout_job.run(campaign, reading=LATER)
    rows = lake.read("gold.experiment").where("verdict <> 'broken'").orderBy("as_of").toPandas()
    assert rows["share"].round(1).tolist() == [0.5, 1.0] and rows["level"][0] < 0.01 < 0.04 < rows["level"][1]
    with pytest.raises(ConfigError, match="this is look 3 of 2 planned: the trial ended with the last"):
        readout_job.run(campaign, reading=ReadingOptions(datetime(2026, 6, 1, tzinfo=UTC), final=True))


def test_rows_that_do_not_fit(lake, tmp_path: Path) -> None:
    rows = simulated_trial(200)
    table = trial_file(tmp_path, rows)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"strata": ("regio",)}, ConfigError, "stratum 'regio' is no column of .*: did you mean 'region'"),
        ({"metrics": (ExperimentMetric("spent", "revenue", "primary"),)}, ConfigError, "metric 'spent' is no column"),
        (
            {"table": str(tmp_path / "none.parquet")},
            DataError,
            "nothing is at .*none.parquet: correct experiment.",
        ),
    ]
    for changes, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            check_job.run(Campaign(with_trial(**{"table": table, **changes}), lake), reading=LATER)
    by_shop = replace(
        CONFIG, roles=replace(CONFIG.roles, cluster="shop"), experiment=replace(TRIAL, table=table, cluster="shop")
    )
    with pytest.raises(ConfigError, match=r"shop was randomised, but .* has a row a unit_id and no column 'shop'"):
        check_job.run(Campaign(by_shop, lake), reading=LATER)
    early = ReadingOptions(datetime(2026, 3, 9, tzinfo=UTC))
    with pytest.raises(DataError, match="no outcome of the 200 units is complete by 2026-03-09 00:00 UTC"):
        check_job.run(Campaign(with_trial(table=table), lake), reading=early)
    undated = tmp_path / "undated.parquet"
    pd.read_parquet(table).drop(columns="assigned_at").to_parquet(undated)
    with pytest.raises(ConfigError, match=r"--as-of needs the column assigned_at, and .*undated.parquet has none"):
        check_job.run(Campaign(with_trial(table=str(undated)), lake), reading=LATER)
    undone = check_job.run(Campaign(with_trial(table=str(undated)), lake), reading=ReadingOptions(final=True)).details
    assert undone["complete"] == "not checked: rows have no column assigned_at, so every outcome counts"
    flat = trial_file(tmp_path, rows.assign(spend=3.0))
    with pytest.raises(DataError, match="metric spend is 3 in all 200 units: it tells no arms apart"):
        readout_job.run(Campaign(with_trial(table=flat), lake), reading=replace(LATER, override="to see"))


def test_a_training_set_that_nuisances_wrote_anew_is_read_as_of_its_labels(lake) -> None:
    """Its run has no labels; a reading as of now would be another one at each call."""
    label = {"campaign": "spring", "unit_id": "u1", "outcome": "spend", "as_of": AT}
    lake.write("silver.label", lake.filled("silver.label", [label]), "features-1")
    rows = pd.DataFrame({"unit_id": ["u1", "u2"], "treatment": ["off", "on"], "spend": [0.0, 1.0], "age": [30.0, 40.0]})
    rows = rows.assign(propensity=0.5, assigned_at=pd.Timestamp(AT).tz_localize(None), split="train")
    lake.write("silver.training_spring", lake.spark.createDataFrame(rows), "nuisances-1", mode="overwrite")
    campaign = Campaign(replace(CONFIG, lakehouse=lake.lakehouse), lake)
    assert protocol._rows(campaign, TRIAL)[2] == AT


@pytest.mark.slow
def test_the_life_of_a_trial_beside_the_truth(lake, tmp_path: Path) -> None:
    """The campaign of conf/experiment.yaml, smaller: arms are those of the salt, the last reading covers the truth."""
    from uplift_spark.config import load_config
    from uplift_spark.jobs import features, ingest
    from uplift_spark.jobs.readout import planned_jobs, readings_beside_truth

    smaller = ("source.units=18000", "experiment.units=16200", f"lakehouse.path={lake.lakehouse.path}")
    campaign = Campaign(load_config(Path(__file__).resolve().parents[2] / "conf/experiment.yaml", smaller), lake)
    results = [ingest.run(campaign), features.run(campaign)]
    rows = assigned(lake, "autumn")
    wanted = assign(rows["unit_id"].tolist(), designed(campaign.config))
    assert (rows["treatment"] == wanted["treatment"]).all() and len(rows) == pytest.approx(16200, rel=0.01)
    assert rows["assigned_at"].dt.date.nunique() == 28
    results += [job(campaign) for job in planned_jobs(campaign.config).values()]
    table = readings_beside_truth(campaign, results)
    assert table["share"].tolist() == sorted(table["share"]) and table["share"].iloc[-1] > 0.99 and len(table) == 4
    last = table.iloc[-1]
    assert last["lower"] < last["true_effect"] < last["upper"] and 0.001 < last["true_effect"] < 0.03
    other = replace(campaign.config, experiment=replace(campaign.config.experiment, salt="autumn-2026"))
    with pytest.raises(ConflictError, match="already holds campaign 'autumn'"):
        ingest.run(Campaign(other, lake))


@pytest.mark.slow
def test_the_targeted_campaign_after_a_trial(lake, tmp_path: Path) -> None:
    """The campaign of conf/experiment_targeted.yaml follows a plan: arms, propensities and holdout are those of the
    design, customers are the same and what they buy is not, and intervals cover what the policy brings in truth."""
    from pyspark.sql import functions as F

    from uplift_spark.config import load_config
    from uplift_spark.experiments.assignment import ProgrammeHoldout, in_programme_holdout
    from uplift_spark.jobs import features, ingest
    from uplift_spark.jobs.readout import policy_beside_truth

    folder, smaller = Path(__file__).resolve().parents[2] / "conf", ("source.units=12000",)
    place = f"lakehouse.path={lake.lakehouse.path}"
    trial = Campaign(load_config(folder / "experiment.yaml", (*smaller, place)), lake)
    ingest.run(trial)
    later = Campaign(load_config(folder / "experiment_targeted.yaml", (*smaller, place)), lake)
    with pytest.raises(DataError, match=r"gold\.policy_decisions"):
        ingest.run(later)
    # A plan as `uplift policy` writes it: bargain hunters get the discount.
    profile = lake.read("bronze.profile_autumn").join(lake.read("bronze.assignment").select("unit_id"), "unit_id")
    gets = F.when(F.col("discount_share") > 0.4, "5%").otherwise("none")
    nothing = {name: F.lit(0.0) for name in ("gain", "cost", "value")}
    plan = profile.select("unit_id", gets.alias("treatment")).withColumns(
        {"campaign": F.lit("autumn"), "reason": F.lit("rule"), "model_version": F.lit("1"), **nothing}
    )
    lake.write("gold.policy_decisions", plan, "policy-by-hand")
    written = ingest.run(later)
    assert ingest.run(later).run_id == written.run_id
    rows = assigned(lake, "autumn_targeted")
    customers = lake.read("bronze.profile_autumn_targeted").select("unit_id", "planned").toPandas()
    assert len(customers) == 12000 and not customers["unit_id"].duplicated().any()
    out = in_programme_holdout(customers["unit_id"].tolist(), ProgrammeHoldout("shop-programme", 0.1))
    assert set(rows["unit_id"]) == set(customers["unit_id"][~out]) and 1000 < out.sum() < 1400
    design = designed(later.config)
    decided = customers.set_index("unit_id").loc[rows["unit_id"], "planned"]
    wanted = assign(rows["unit_id"].tolist(), design, decisions=decided.tolist())
    assert (wanted["treatment"].to_numpy() == rows["treatment"].to_numpy()).all()
    assert rows["propensity"].to_numpy() == pytest.approx(wanted["propensity"].to_numpy())
    assert set(np.round(rows["propensity"], 9)) == {0.1, 0.9}
    outcomes = lake.read("bronze.outcome").where("outcome = 'conversion'").toPandas()
    first, second = (set(outcomes.loc[outcomes["campaign"] == one, "unit_id"]) for one in ("autumn", "autumn_targeted"))
    both = len(first & second) / 12000
    assert both == pytest.approx(len(first) * len(second) / 12000**2, abs=0.006)  # by chance, and as they are alike
    features.run(later)
    result = readout_job.run(later)
    table = policy_beside_truth(later, result).set_index(["metric", "against"])
    assert set(table.index) == {(m, a) for m in ("conversion", "revenue", "profit") for a in ("none", "5%")}
    assert ((table["lower"] < table["true_effect"]) & (table["true_effect"] < table["upper"])).all(), table
    assert table.loc[("conversion", "none"), "true_effect"] > 0 > table.loc[("conversion", "5%"), "true_effect"]
    text = str(result.details["readout"])
    assert "policy against none for all, conversion a unit:" in text and "effective units)" in text
    # Any other rule from the same rows; one that logged arms tell nothing of is refused.
    again = readout_job.run(
        later, reading=ReadingOptions(policy="CASE WHEN recency_days < 30 THEN '5%' ELSE 'none' END")
    )
    assert again.run_id != result.run_id
    with pytest.raises(ConfigError, match="'age_of'"):
        readout_job.run(later, reading=ReadingOptions(policy="age_of"))
    with pytest.raises(ConfigError, match="conversion"):  # it is known only after the treatment
        readout_job.run(later, reading=ReadingOptions(policy="CASE WHEN conversion > 0 THEN '5%' ELSE 'none' END"))
    with pytest.raises(DataError, match="column 'arm of the policy' is no arm in"):
        readout_job.run(later, reading=ReadingOptions(policy="'10%'"))


@pytest.mark.slow
def test_a_programme_is_read_from_the_tables(lake) -> None:
    """Two campaigns with one holdout: figures are those of pandas; without a reading of both nothing is added up."""
    from pyspark.sql import functions as F

    from uplift_spark.config import load_config
    from uplift_spark.experiments.assignment import ProgrammeHoldout
    from uplift_spark.experiments.programme import SingleEffect, programme_readout
    from uplift_spark.experiments.protocol import record_row
    from uplift_spark.experiments.readout import ReadoutMetric
    from uplift_spark.jobs import ingest

    conf = Path(__file__).resolve().parents[2] / "conf/experiment.yaml"
    place, campaigns = f"lakehouse.path={lake.lakehouse.path}", {}
    for name in ("autumn", "winter"):
        own = ("source.units=2000", "experiment.units=1800", f"campaign={name}", f"experiment.salt={name}-2025", place)
        campaigns[name] = Campaign(load_config(conf, own), lake)
        ingest.run(campaigns[name])
    autumn, winter = campaigns.values()
    without = replace(autumn.config, experiment=replace(autumn.config.experiment, holdout=None))
    with pytest.raises(ConfigError, match=r"experiment\.holdout is not set: only units that no campaign treats"):
        readout_job.run(autumn.changed(without), programme=True)

    def reading(campaign: Campaign, effect: float) -> SingleEffect:
        run_id = f"readout-{campaign.name}"
        lake.write("gold.experiment", record_row(campaign, "readout", AT, verdict="ship"), run_id)
        row = {"campaign": campaign.name, "metric": "conversion", "role": "primary", "treatment": "5%"}
        lake.write("gold.readout", lake.filled("gold.readout", [{**row, "effect": effect, "error": 0.004}]), run_id)
        units = (assigned(lake, campaign.name)["treatment"] == "5%").sum()
        return SingleEffect(campaign.name, "conversion", "5%", float(units), effect, 0.004)

    singles = [reading(autumn, 0.02)]
    lake.write("gold.experiment", record_row(winter, "assign", AT), "assign-winter")
    said: list[str] = []
    how = {"reading": ReadingOptions(override="small"), "programme": True}
    half = readout_job.run(autumn, said.append, **how)
    assert any("no reading of campaign winter is on record" in line for line in said)
    assert "sum of single effects" not in str(half.details["readout"])
    singles.append(reading(winter, 0.01))
    # Events with ids, which are sent twice; those of `ingest` have none, and each counts.
    content = ["campaign", "unit_id", "outcome", "value", "occurred_at"]
    named = lake.read("bronze.outcome").drop("run_id", "ingested_at").withColumn("event_id", F.concat_ws("-", *content))
    lake.write("bronze.outcome", named, "sent")
    events = lake.read("bronze.outcome").toPandas()
    lake.write("bronze.outcome", named, "sent-again")
    whole = readout_job.run(autumn, **how)
    assert whole.details["campaigns"] == "autumn, winter" and whole.run_id != half.run_id
    profiles = [lake.read(f"bronze.profile_{name}").select("unit_id").toPandas() for name in campaigns]
    sums = events.pivot_table(index="unit_id", columns="outcome", values="value", aggfunc="sum")
    units = pd.concat(profiles).join(sums, on="unit_id").fillna(0.0)
    metrics = [ReadoutMetric("conversion", "conversion", role="primary"), ReadoutMetric("revenue", "revenue")]
    held = ProgrammeHoldout("shop-programme", 0.1)
    wanted = programme_readout(units, held, metrics, singles=singles, override="small")
    shown = lake.read("gold.readout").where(f"run_id = '{whole.run_id}'").toPandas()
    shown = shown.set_index(["metric", "treatment"])
    assert len(shown) == len(wanted.rows) == 4 and set(shown["role"]) == {"programme"}
    for row in wanted.rows:
        mine = shown.loc[(row.metric, row.arm)]
        assert (mine["effect"], mine["error"]) == pytest.approx((row.effect, row.error))
    # An effect that is not known leaves no sum that others could be taken for.
    lake.write("gold.experiment", record_row(winter, "readout", AT, verdict="ship"), "readout-unknown")
    row = {"campaign": "winter", "metric": "conversion", "role": "primary", "treatment": "5%", "effect": None}
    lake.write("gold.readout", lake.filled("gold.readout", [row]), "readout-unknown")
    assert "sum of single effects" not in str(readout_job.run(autumn, **how).details["readout"])
    other = replace(winter.config.experiment, holdout=replace(winter.config.experiment.holdout, share=0.2))
    lake.write(
        "gold.experiment", record_row(winter.changed(replace(winter.config, experiment=other)), "assign", AT), "x"
    )
    with pytest.raises(ConfigError, match=r"campaign winter holds out 0\.2 of programme shop-programme"):
        readout_job.run(autumn, programme=True)


@pytest.mark.slow
def test_the_page_shows_what_the_commands_print(spark, tmp_path: Path, monkeypatch, capsys) -> None:
    """Every line below a command of docs/experiments.md is among what the command prints."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "experiments.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, re.S):
        Path(name).write_text(text)
    capsys.readouterr()
    commands = re.findall(r"^\$ uplift (.*)\n((?:(?!\$|```).*\n)*)", page, re.M)
    assert len(commands) >= 4
    for arguments, lines in commands:
        monkeypatch.setattr(sys, "argv", ["uplift", *shlex.split(arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr().out
        assert not stop.value.code
        assert [line for line in lines.splitlines() if line not in printed] == [], printed
