"""`uplift lift`, `policy`, `simulate` and `report` where less of the outcome is better: as their mirror, on Spark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from tests.evaluation.scored import LEVELS, campaign
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lift, Limit, Policy, RolesConf, Scenario
from uplift_spark.jobs import lift, policy, simulate
from uplift_spark.lake.tables import Lake

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

N = 2400
COSTS = {"5%": 0.1, "10%": 0.2}
NAMES = {"decrease": "leavers", "increase": "stayers"}


def conf(lake: Lake, direction: Any, **changes: Any) -> Config:
    outcome = "churn" if direction == "decrease" else "stays"
    doses = {"none": 0.0, "5%": 5.0, "10%": 10.0}
    return Config(
        campaign=NAMES[direction],
        source={"kind": "simulation"},  # type: ignore[arg-type]
        roles=RolesConf(outcome=outcome, control="none", features=("age", "city"), dose=doses, direction=direction),
        lakehouse=lake.lakehouse,
        economics=Economics(value={outcome: 5.0}, cost=COSTS),
        lift=Lift(segments=("city",), bins=20, replicates=50),
        policy=Policy(**{"budget": 90.0, "limits": (Limit(units=300, level="10%"),), **changes}),
        scenarios={"half": Scenario(budget=45.0)},
    )


def written(spark: SparkSession, lake: Lake, direction: str) -> None:
    """The same campaign, as churn that treatment lowers or as staying that it raises."""
    training, scores, truth = campaign(n=N, seed=4)
    falls, name = direction == "decrease", NAMES[direction]
    stays, sign = training.pop("visit"), -1.0 if falls else 1.0
    training = training.assign(**{"churn" if falls else "stays": 1 - stays if falls else stays})
    training = training.assign(
        split=np.where(np.arange(N) % 4 == 0, "train", "holdout"), assigned_at=pd.Timestamp("2025-01-06")
    )
    uplift = sign * scores["uplift"]
    scores = scores.assign(
        uplift=uplift, uplift_se=0.1, uplift_lower=uplift - 0.05, uplift_upper=uplift + 0.05, low_support=False,
        model_name=name, model_version="1", feature_version=0, scored_at=pd.Timestamp("2025-02-01"),
    )  # fmt: skip
    truth = truth.assign(effect=sign * truth["effect"], campaign=name, outcome="churn" if falls else "stays")
    lake.write(f"silver.training_{name}", spark.createDataFrame(training), "features-1", mode="overwrite")
    lake.write("gold.uplift_scores", spark.createDataFrame(scores), f"score-{name}")
    lake.write("bronze.truth", spark.createDataFrame(truth), f"ingest-{name}")


def decisions(one: Campaign) -> pd.DataFrame:
    rows = one.decisions().select("unit_id", "treatment", "reason", "gain", "cost").toPandas()
    return rows.sort_values("unit_id", ignore_index=True)


@pytest.mark.slow
def test_lift_and_policy_rank_and_treat_first_whom_treatment_keeps(spark: SparkSession, lake: Lake) -> None:
    both = {}
    for direction in NAMES:
        written(spark, lake, direction)
        one = both[direction] = Campaign(conf(lake, direction), lake)
        assert ("Less churn is better" in lift.run(one).details["summary"]) is (direction == "decrease")
    fewer, more = both["decrease"], both["increase"]
    for level in LEVELS:
        rows, others = (each.lift_table(treatment=level, cut="decile") for each in (fewer, more))
        assert rows["predicted_uplift"].is_monotonic_increasing and rows["uplift"].iloc[0] < 0 < rows["roi"].iloc[0]
        np.testing.assert_allclose(rows["uplift"], -others["uplift"], atol=1e-7)
        np.testing.assert_allclose(rows[["n", "roi"]], others[["n", "roi"]], rtol=1e-4)
        qini, mirror = (each.metrics(treatment=level, metric="qini")["value"].item() for each in (fewer, more))
        assert qini == pytest.approx(mirror) and qini > 0
        np.testing.assert_allclose(fewer.curve(treatment=level)["gain"], more.curve(treatment=level)["gain"], atol=1e-7)

    results = [policy.run(each) for each in (fewer, more)]
    pd.testing.assert_frame_equal(*map(decisions, (fewer, more)), rtol=1e-9)
    observed = [result.details["observed"] for result in results]
    assert observed[0] == pytest.approx(observed[1], rel=1e-4) and observed[0] > 0
    assert "less churn" not in results[0].details["summary"]  # a gain in money
    effects = fewer.scores().groupBy("unit_id").agg(F.min("uplift").alias("uplift")).toPandas()
    table = decisions(fewer).merge(effects, on="unit_id")
    treated = table["treatment"] != "none"
    assert 0 < treated.sum() < N and table[treated]["uplift"].max() < 0
    assert table[treated]["uplift"].mean() < table[~treated]["uplift"].mean()

    texts = [simulate.run(each).details["summary"] for each in (fewer, more)]
    assert texts[0] == texts[1] and "in truth" in texts[0]
    page, mirror_page = fewer.report(), more.report()
    assert "less churn" in page.decision and page.decision.split(".")[0] == mirror_page.decision.split(".")[0]


def test_a_cautious_plan_counts_on_the_smaller_fall(spark: SparkSession, lake: Lake) -> None:
    plans = []
    for direction in NAMES:
        written(spark, lake, direction)
        settings = conf(lake, direction, bound="lower", objective="outcome")
        one = Campaign(replace(settings, scenarios={}), lake)
        result = policy.run(one)
        assert ("predicted gain (less churn)" in result.details["summary"]) is (direction == "decrease")
        plans.append(decisions(one))
    pd.testing.assert_frame_equal(*plans, rtol=1e-9)
    assert (plans[0]["treatment"] != "none").any()
