"""`uplift costs`: a campaign with deliveries, coupons, bills and timed jobs, each figure known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse
from uplift_spark.dashboards.metrics import executive_metrics
from uplift_spark.errors import ConfigError, UpliftError
from uplift_spark.events.labels import label_table
from uplift_spark.events.load import Load
from uplift_spark.events.training_set import events_of
from uplift_spark.jobs import costs, load
from uplift_spark.jobs.dashboard import campaign_tables
from uplift_spark.lake.schemas import DECISIONS_TABLE, columns_to_fill, contract_of, profile_table
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.costs import gain_against_nobody
from uplift_spark.monitoring.spark import expenses_by_day, with_plan, worth_by_version

START, DAYS, N = datetime(2026, 3, 2, tzinfo=UTC), 20, 1200
CONF = {
    "campaign": "spring",
    "source": None,
    "roles": {"outcome": "bought", "control": "none", "features": ["age"]},
    "labels": {"window_days": 2, "as_of": "2026-03-23"},
    "economics": {"value": {"bought": 20}, "cost": {"mail": 0.5}},
    "costs": {
        **{"budget": 2000, "end": "2026-04-05", "rates": {"features": 3.0, "other": 0.36}},
        "incentives": {"coupon": {"outcome": "redeemed", "amount": 2.0}},
    },
}


def rows() -> dict[str, pd.DataFrame]:
    """Raw events: a third of the units have no treatment; one mail in ten bounces; coupons cost what plans say."""
    rng = np.random.default_rng(7)
    unit, arm = [f"u{i}" for i in range(N)], rng.choice(["none", "mail", "coupon"], N)
    at = pd.Series(pd.Timestamp(START) + pd.to_timedelta(np.arange(N) * DAYS * 24 / N, unit="h"))
    known = {"campaign": "spring", "known_at": at}
    assigned = pd.DataFrame({"unit_id": unit, "treatment": arm, "assigned_at": at, "propensity": 1 / 3, **known})
    sent = assigned[assigned["treatment"] != "none"]
    status = np.where(np.arange(len(sent)) % 10 == 0, "bounced", "delivered")
    ids = {"delivery_id": sent["unit_id"], "event_id": sent["unit_id"]}
    delivered = pd.DataFrame({"unit_id": sent["unit_id"], "status": status, "delivered_at": sent["assigned_at"], **ids})
    bought = assigned[rng.random(N) < np.where(arm == "none", 0.2, 0.4)]
    redeemed = bought[bought["treatment"] == "coupon"]
    events = pd.concat([bought.assign(outcome="bought", value=1.0), redeemed.assign(outcome="redeemed", value=1.0)])
    later = events["assigned_at"] + pd.Timedelta(hours=1)
    events = events.assign(occurred_at=later, known_at=later, event_id=events["unit_id"] + events["outcome"])
    bills = pd.DataFrame(
        {
            **{
                "expense_id": ["a", "b", "a", "c", "d", "d"],
                "item": ["agency", "agency", "agency", "print", "print", "print"],
                "campaign": "spring",
            },
            **{"amount": [100.0, 40.0, 90.0, 15.0, 7.0, 3.0], "spent_at": [pd.Timestamp(START)] * 6},
            "known_at": [pd.Timestamp(START) + timedelta(days=i) for i in (0, 1, 2, 3, 3, 3)],
        }
    )
    return {
        "bronze.assignment": assigned,
        "bronze.delivery": delivered.assign(campaign="spring", known_at=delivered["delivered_at"]),
        "bronze.outcome": events[["unit_id", "campaign", "outcome", "value", "occurred_at", "known_at", "event_id"]],
        profile_table("spring"): pd.DataFrame(
            {"unit_id": unit, "age": rng.integers(20, 70, N), "observed_at": at, "known_at": at}
        ),
        "bronze.expense": bills,
    }


@pytest.fixture(scope="module")
def campaign(spark, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("costs")
    conf = TypeAdapter(Config).validate_python(CONF | {"lakehouse": {"path": str(folder / "lakehouse")}})
    campaign = Campaign(conf, Lake(spark, Lakehouse(path=str(folder / "lakehouse"))))
    for table, frame in rows().items():
        file = folder / f"{table}.parquet"
        frame = frame if "known_at" in contract_of(table).columns.fieldNames() else frame.drop(columns="known_at")
        frame.astype({name: "datetime64[us, UTC]" for name in frame if name.endswith("_at")}).to_parquet(
            file, index=False
        )
        known = "known_at" if "known_at" in contract_of(table).columns.fieldNames() else None
        load.run(campaign, load=Load(table, str(file), "parquet", known_at=known))
    plan = columns_to_fill(DECISIONS_TABLE)
    units = rows()["bronze.assignment"]
    made = [
        {**dict.fromkeys(plan.fieldNames()), **{"campaign": "spring", "unit_id": unit, "treatment": arm, "cost": 0.25}}
        | {"model_version": "3"}
        for unit, arm in zip(units["unit_id"], units["treatment"], strict=True)
    ]
    frame = spark.createDataFrame([[row[name] for name in plan.fieldNames()] for row in made], plan)
    campaign.lake.write(DECISIONS_TABLE, frame, "plan-1")
    return campaign


def figures(campaign: Campaign, table: str) -> pd.DataFrame:
    return campaign.lake.read(table).where("campaign = 'spring'").toPandas()


def test_a_level_whose_cost_nobody_said_is_refused_before_any_write(campaign: Campaign) -> None:
    with pytest.raises(ConfigError, match=r"units got 'coupon' on 2026-03-02, .* set economics\.cost\.coupon"):
        costs.run(campaign)
    assert not campaign.lake.exists("gold.costs")


def test_an_incentive_on_an_outcome_without_events_is_refused(campaign: Campaign) -> None:
    wrong = {**CONF["costs"], "incentives": {"coupon": {"outcome": "redemed", "amount": 2.0}}}
    config = TypeAdapter(Config).validate_python(CONF | {"costs": wrong})
    with pytest.raises(ConfigError, match=r"costs\.incentives\.coupon\.outcome: .*'redemed'.*redeemed"):
        costs.run(campaign.changed(replace(config, lakehouse=campaign.config.lakehouse)))


def test_levels_and_jobs_that_nobody_knows_are_refused(campaign: Campaign) -> None:
    economics = {"value": {"bought": 20}, "cost": {"mail": 0.5, "coupon": 0.25}}
    for section, sentence in (
        ({"incentives": {"coupn": {"outcome": "redeemed", "amount": 2.0}}}, r"costs\.incentives names 'coupn'.*coupon"),
        (
            {"incentives": {"none": {"outcome": "redeemed", "amount": 2.0}}},
            r"costs\.incentives names 'none', the control",
        ),
        ({"rates": {"trian": 2.0}}, r"costs\.rates names 'trian', which is no job.*train"),
    ):
        config = TypeAdapter(Config).validate_python(CONF | {"economics": economics, "costs": section})
        with pytest.raises(ConfigError, match=sentence):
            costs.run(campaign.changed(replace(config, lakehouse=campaign.config.lakehouse)))
    assert not campaign.lake.exists("gold.costs")


@pytest.fixture(scope="module")
def added(campaign: Campaign) -> tuple[Campaign, pd.DataFrame, pd.DataFrame, str]:
    economics = {"value": {"bought": 20}, "cost": {"mail": 0.5, "coupon": 0.25}}
    config = TypeAdapter(Config).validate_python(CONF | {"economics": economics})
    both = campaign.changed(replace(config, lakehouse=campaign.config.lakehouse))
    with both.planned("features"):
        pass
    with pytest.raises(UpliftError), both.planned("train"), both.planned("score"):
        raise UpliftError("a job that fails is paid for, too")
    result = costs.run(both)
    return both, figures(both, "gold.costs"), figures(both, "gold.roi"), str(result.details["summary"])


def test_every_kind_of_cost_is_there_once(added) -> None:
    both, rows_of_costs, *_ = added
    source = rows()
    sent = (
        source["bronze.delivery"]["status"]
        .eq("delivered")
        .groupby(
            source["bronze.delivery"]["unit_id"].map(source["bronze.assignment"].set_index("unit_id")["treatment"])
        )
    )
    n = sent.sum()
    redeemed = source["bronze.outcome"]["outcome"].eq("redeemed").sum()
    money = rows_of_costs.groupby(["kind", "item"])["amount"].sum()
    assert money["treating", "mail"] == pytest.approx(0.5 * n["mail"])
    assert money["treating", "coupon"] == pytest.approx(0.25 * n["coupon"])
    assert money["incentive", "coupon"] == pytest.approx(2.0 * redeemed)
    assert money["expense", "agency"] == 130.0 and money["expense", "print"] == 22.0  # bill a was corrected
    log = figures(both, "gold.run_log")
    assert sorted(zip(log["job"], log["state"], strict=True)) == [("features", "complete"), ("train", "failed")]
    hours = log.set_index("job")["seconds"] / 3600
    assert money["infrastructure", "features"] == pytest.approx(3.0 * hours["features"])
    assert money["infrastructure", "train"] == pytest.approx(0.36 * hours["train"])
    days = rows_of_costs[rows_of_costs["kind"] == "treating"]["day"]
    assert set(days) == {date(2026, 3, 2) + timedelta(days=i) for i in range(DAYS)}


def test_the_return_is_that_of_the_units_and_the_forecast_says_whether_the_budget_holds(added) -> None:
    both, rows_of_costs, roi, summary = added
    (row,) = roi.to_dict("records")  # the plan came after the assignments: no version's
    assert row["model_version"] == "all" and (row["units"], row["treated"]) == (N, N - control())
    assert row["cost"] == pytest.approx(rows_of_costs["amount"].sum())
    source = rows()
    arm = source["bronze.assignment"].set_index("unit_id")["treatment"]
    bought = source["bronze.outcome"].query("outcome == 'bought'").set_index("unit_id")["value"].reindex(arm.index)
    y = 20 * bought.fillna(0.0)
    assert row["gain"] == pytest.approx(N * (y.mean() - y[arm == "none"].mean()))
    assert row["gain_lower"] < 20 * 0.2 * row["treated"] < row["gain_upper"]  # the truth: .2 more buy, of those treated
    assert row["net"] == pytest.approx(row["gain"] - row["cost"])
    assert row["budget"] == 2000 and row["ends"] == date(2026, 4, 5)
    assert row["forecast_lower"] < row["forecast"] < row["forecast_upper"]
    known = rows_of_costs["day"].map(lambda day: day <= date(2026, 3, 22))
    assert row["forecast"] > rows_of_costs[known]["amount"].sum()
    shown = {one.label: one for one in executive_metrics(campaign_tables(both))}
    assert shown["Net of all costs, so far"].value == row["net"]
    assert shown["Cost by the end"].upper == row["forecast_upper"]
    assert "within the budget, which is 2,000.00" in summary and "against treating nobody" in summary


def control() -> int:
    return int(rows()["bronze.assignment"]["treatment"].eq("none").sum())


def test_without_the_section_what_units_cost_is_added_up(added) -> None:
    both, *_ = added
    plain = both.changed(replace(both.config, costs=None))
    result = costs.run(plain)
    rows = plain.lake.read("gold.costs").where(F.col("run_id") == result.run_id).toPandas()
    assert set(rows["kind"]) == {"treating", "expense"} and "by 2026" not in str(result.details["summary"])


def test_a_second_run_adds_nothing_and_a_plan_before_the_assignment_is_credited(added) -> None:
    both, *_ = added
    with both.planned("costs"):
        pass
    before = both.lake.version("gold.roi")
    assert costs.run(both).tables == {} and both.lake.version("gold.roi") == before

    events = events_of(both.config, both.lake)
    later = events.assignments.withColumn("assigned_at", F.lit(datetime.now(UTC) + timedelta(days=1)))
    labels = label_table(later, events.outcomes, ("bought",), both.config.labels, datetime.now(UTC) + timedelta(days=2))
    written = {"plan-1": both.lake.history(DECISIONS_TABLE)[0].at}
    planned = with_plan(labels, both.lake.read(DECISIONS_TABLE), written).groupBy("version").count().collect()
    assert [(row["version"], row["count"]) for row in planned] == [("3", N)]


def test_bills_known_at_the_same_time_have_one_order_whatever_the_partitions(spark) -> None:
    at = datetime(2026, 3, 2, tzinfo=UTC)
    bills = [("a", "print", float(amount), at, at, at) for amount in range(50)]
    names = (
        "expense_id string, item string, amount double, spent_at timestamp, known_at timestamp, ingested_at timestamp"
    )
    for order in (bills, bills[::-1], bills[25:] + bills[:25]):
        (row,) = expenses_by_day(spark.createDataFrame(order, names).repartition(4))
        assert row["amount"] == 49.0 and row["quantity"] == 1.0


def test_a_propensity_whose_square_is_zero_is_no_division_by_zero(spark) -> None:
    units = [("none", "none", 1e-200 if i == 0 else 0.5, {"bought": 1.0}) for i in range(40)]
    frame = spark.createDataFrame(
        units, "treatment string, version string, propensity double, outcomes map<string,double>"
    )
    worth, why_not = worth_by_version(frame, {"bought": 20.0}, "none")
    gain = gain_against_nobody(worth["none"][1])
    assert not why_not and np.isnan(gain.value) and "propensities near 0" in gain.note


def test_who_objects_to_profiling_was_treated_all_the_same(added) -> None:
    both, rows_of_costs, *_ = added
    consent = pd.DataFrame({"unit_id": ["u1", "u2"], "purpose": "profiling", "granted": False})
    when = pd.Timestamp("2026-03-20", tz="UTC")
    consent = consent.assign(changed_at=when, known_at=when, source="crm")
    both.lake.write("bronze.consent", both.lake.spark.createDataFrame(consent), "consent-1")
    result = costs.run(both)
    now = both.lake.read("gold.costs").where(F.col("run_id") == result.run_id).toPandas()
    for kind in ("treating", "incentive"):
        sums = [one.loc[one["kind"] == kind, "amount"].sum() for one in (rows_of_costs, now)]
        assert sums[0] == pytest.approx(sums[1])
