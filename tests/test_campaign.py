"""A campaign as users hold it: where its reports lie, and its results as frames and pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import uplift_spark
import uplift_spark.campaign as module
from tests.evaluation.scored import LEVELS, campaign
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, Lakehouse, Lift, Policy, RegistryConf, RolesConf, Simulation
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import lift, policy
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.costs import Costs

A_QUERY = (
    "SELECT treatment, count(*) AS n, max(uplift) AS most, max(scored_at) AS at FROM gold.uplift_scores "
    "GROUP BY treatment ORDER BY treatment"
)
ORDER = ["bucket", "feature", "category"]
DIGITS = r'(?<=value=")[^"]*'
ROLES = RolesConf("visit", "none", ("age", "city"), {"none": 0.0, "5%": 5.0, "10%": 10.0})
CONFIG = Config(
    "spring",
    Simulation(),
    ROLES,
    economics=Economics(value={"visit": 5.0}, cost={"5%": 0.1, "10%": 0.2}),
    lift=Lift(segments=("city",), outcomes=("spend",), bins=20, replicates=50),
    policy=Policy(budget=30.0),
)


def at(lakehouse: Lakehouse) -> Campaign:
    return Campaign(replace(CONFIG, lakehouse=lakehouse))


@pytest.mark.parametrize(
    ("lakehouse", "folder"),
    [
        (Lakehouse("one"), "one/reports/spring/lift-1"),
        (Lakehouse("/data/two"), "/data/two/reports/spring/lift-1"),
        (Lakehouse("ignored", catalog="main"), "reports/main/spring/lift-1"),
        (Lakehouse("s3://bucket/lake"), "reports/s3_bucket_lake/spring/lift-1"),
        (Lakehouse(catalog="main", reports="/Volumes/main/x/y"), "/Volumes/main/x/y/spring/lift-1"),
    ],
)
def test_reports_lie_apart_by_lakehouse_campaign_and_run(lakehouse: Lakehouse, folder: str) -> None:
    assert at(lakehouse).reports("lift-1") == Path(folder)


def test_a_clock_that_is_set_back_makes_no_job_cost_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []

    class Clock(datetime):
        hours = 12

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            Clock.hours -= 1
            return datetime(2026, 3, 2, Clock.hours, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Clock)
    lake: Any = SimpleNamespace(filled=lambda table, more: rows.extend(more), write=lambda *what: None)
    with Campaign(replace(CONFIG, costs=Costs()), lake)._timed("train"):
        pass
    assert [(row["job"], row["state"]) for row in rows] == [("train", "complete")] and 0 <= rows[0]["seconds"] < 60


def test_a_file_s_keys_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "spring.yaml"
    path.write_text("campaign: spring\nsource: {kind: simulation}\nroles: {outcome: y, control: c, features: [x]}\n")
    assert uplift_spark.Campaign is Campaign
    assert uplift_spark.Campaign(path, overrides=["seed=3"]).config.seed == 3


def test_what_a_plan_needs_of_the_economics() -> None:
    assert (Campaign(CONFIG).outcome_value, Campaign(CONFIG).fixed_costs(LEVELS)) == (5.0, [0.1, 0.2])
    poor = Campaign(replace(CONFIG, economics=Economics()))
    with pytest.raises(ConfigError, match=r"set economics\.value\.visit"):
        _ = poor.outcome_value
    with pytest.raises(ConfigError, match=r"known of 5%, 10%: set it in economics\.cost"):
        poor.fixed_costs(LEVELS)
    assert Campaign(replace(poor.config, policy=Policy(objective="outcome"))).outcome_value == 1.0


@pytest.fixture(scope="module")
def written(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign that has been scored, evaluated and decided about, the last twice."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("campaign"))))
    training, scores, _ = campaign(n=1200, seed=9)
    split = np.where(np.arange(1200) % 4 == 0, "train", "holdout")
    training = training.assign(split=split, assigned_at=pd.Timestamp("2025-01-06"))
    lake.write("silver.training_spring", spark.createDataFrame(training), "features-1", mode="overwrite")
    scores = scores.assign(
        uplift_se=0.1, uplift_lower=scores.uplift - 0.2, uplift_upper=scores.uplift + 0.2, low_support=False,
        model_name="spring", model_version="1", feature_version=0, scored_at=pd.Timestamp("2025-02-01"),
    )  # fmt: skip
    lake.write("gold.uplift_scores", spark.createDataFrame(scores), "score-1")
    mine = Campaign(replace(CONFIG, lakehouse=lake.lakehouse), lake)
    lift.run(mine)
    policy.run(mine)
    policy.run(Campaign(replace(mine.config, policy=Policy(budget=10.0)), lake), run_id="cheap")
    return mine


@pytest.mark.slow
def test_results_come_as_frames_in_a_reader_s_order(written: Campaign) -> None:
    table = written.lift_table()
    assert table["outcome"].drop_duplicates().tolist() == ["visit", "spend"]
    assert table["treatment"].drop_duplicates().tolist() == ["5%", "10%"]
    assert table["cut"].drop_duplicates().tolist() == ["all", "decile", "segment:city"]
    deciles = written.lift_table("visit", "10%", cut="decile")
    assert deciles["bucket"].tolist() == [str(k) for k in range(1, 11)]
    assert set(deciles["run_id"]) == {written.lift_run}
    assert written.metrics("visit", metric="qini")["treatment"].tolist() == ["5%", "10%"]
    curve = written.curve("spend", "5%")
    assert len(curve) == 21 and curve["fraction"].is_monotonic_increasing


@pytest.mark.slow
def test_frames_of_all_units_stay_in_spark(written: Campaign) -> None:
    assert written.scores().limit(3).toPandas().shape[0] == 3
    assert written.scores().count() == 2 * 1200
    assert set(written.decisions().toPandas()["run_id"]) == {"cheap"}
    first = written.decisions(
        written.run_id("policy", scores=written.last_scored(), data={"silver.training_spring": 0})
    )
    assert first.count() == written.decisions().count() == 1200


@pytest.mark.slow
def test_pictures_are_drawn_from_the_tables(written: Campaign) -> None:
    figures = [written.plot.qini(), written.plot.deciles("spend"), written.plot.calibration(), written.plot.doses()]
    titles = [
        figure._suptitle.get_text() if figure._suptitle else figure.axes[0].get_title("left") for figure in figures
    ]
    assert [title.splitlines()[0] for title in titles] == [
        "Gain in visit when the units predicted best are treated first",
        "Uplift in spend by decile of the prediction",
        "Uplift in visit, predicted and observed by decile of the prediction",
        "Uplift in visit by dose",
    ]
    assert "percentage points" in figures[0].axes[0].get_ylabel()
    assert "percentage points" not in figures[1].axes[0].get_ylabel()
    plan = written.plot.budget().axes[0].collections[-1].get_offsets()[0]
    spent = written.decisions().toPandas()[["cost", "gain"]].sum()
    assert plan.tolist() == pytest.approx(spent.tolist())
    assert "Lift of 5% on visit, by decile" in str(written.report())


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not started Spark, and must not."""
    monkeypatch.setattr(module.SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr(module, "spark_session", lambda *_: pytest.fail("Spark was started"))


@pytest.mark.slow
def test_results_are_the_same_without_spark(written: Campaign, no_session: None) -> None:
    here = Campaign(written.config)
    assert here.last_scored() == written.last_scored()
    for mine, theirs in (
        (here.lift_table(), written.lift_table()),
        (here.metrics("visit"), written.metrics("visit")),
        (here.curve(), written.curve()),
        (here.sql(A_QUERY), written.sql(A_QUERY)),
    ):
        pd.testing.assert_frame_equal(mine, theirs)
    scored = written.last_scored()
    mine, theirs = (one._page_profile(scored, "10%").sort_values(ORDER, ignore_index=True) for one in (here, written))
    pd.testing.assert_frame_equal(mine, theirs, rtol=1e-12)
    plain = [one.report() for one in (here, written)]
    assert plain[0].tables == plain[1].tables and plain[0].decision == plain[1].decision
    assert re.sub(DIGITS, "", plain[0].html) == re.sub(DIGITS, "", plain[1].html)  # but for the last digit of sums


@pytest.mark.slow
def test_with_few_rows_a_session_is_not_asked_for_results(written: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, runs = written.report(), (written.last_scored(), written.plan_run())
    with written.lake.planned() as few:
        assert few
        monkeypatch.setattr(Lake, "read", lambda *_: pytest.fail("Spark reads a table"))
        mine = written.report()
        assert (written.last_scored(), written.plan_run()) == runs
    assert (mine.tables, mine.decision) == (theirs.tables, theirs.decision)


def test_without_spark_what_is_not_there_is_named_alike(tmp_path: Path, no_session: None) -> None:
    empty = at(Lakehouse(str(tmp_path)))
    with pytest.raises(
        DataError, match=f"table gold.uplift_scores does not exist in lakehouse {tmp_path}: run `uplift"
    ):
        empty.lift_table()
    with pytest.raises(ConfigError, match="only reads"):
        empty.sql("DROP TABLE gold.uplift_scores")


@pytest.mark.slow
def test_queries_read_and_nothing_else(written: Campaign) -> None:
    assert written.sql("SELECT count(*) AS n FROM gold.uplift_scores")["n"].tolist() == [2400]
    with pytest.raises(ConfigError, match="only reads"):
        written.sql("DROP TABLE gold.uplift_scores")
    with pytest.raises(ConfigError, match="does not run"):
        written.sql("SELECT nothing FROM gold.uplift_scores")


@pytest.mark.slow
def test_what_is_not_there_is_named_with_the_verb_to_run(written: Campaign, lake: Lake) -> None:
    empty = Campaign(CONFIG, lake)
    with pytest.raises(DataError, match="run `uplift score` first"):
        empty.lift_table()
    with pytest.raises(DataError, match="run `uplift policy` first"):
        empty.decisions()
    other = Campaign(replace(written.config, seed=8), written.lake)
    with pytest.raises(DataError, match=r"gold\.lift_table has no row of run lift-\w+: run `uplift lift`"):
        other.lift_table()
    assert len(other.lift_table(run_id=written.lift_run)) == len(written.lift_table())
    with pytest.raises(DataError, match="no run of campaign autumn"):
        Campaign(replace(written.config, campaign="autumn"), written.lake).decisions()
    with pytest.raises(ConfigError, match=r"no outcome 'visits' in run lift-\w+: did you mean 'visit'"):
        written.lift_table("visits")
    unknown = Campaign(replace(written.config, registry=RegistryConf(version=3)), written.lake)
    with pytest.raises(DataError, match="no row of model 'spring' version 3"):
        unknown.scores()
