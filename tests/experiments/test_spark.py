"""Tests of assignment on Spark: the arms of Python, and refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from tests.experiments.test_assignment import DESIGNS, THIRDS, assert_same, in_python, users
from tests.experiments.test_frames import COLUMNS, DESIGN, PER_VISIT, SPEND, trial
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import AssignmentColumns, assign
from uplift_spark.experiments.canary import canary_design
from uplift_spark.experiments.frames import ReadoutColumns, trial_sums
from uplift_spark.experiments.health import ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import ReadoutMetric, TrialSums, read_sums


@pytest.mark.parametrize("name", DESIGNS)
def test_spark_gives_the_same_arms(spark, name: str) -> None:
    from uplift_spark.experiments.spark import with_arms

    rows = users(2000)
    experiment, columns = DESIGNS[name]
    wanted = in_python(rows, experiment, columns)
    result = with_arms(spark.createDataFrame(rows).repartition(5), experiment, columns).toPandas()
    assert_same(result, wanted)
    by_unit = result.set_index("unit_id").participation.loc[wanted.unit_id]
    assert by_unit.to_numpy() == pytest.approx(wanted.participation.to_numpy(), rel=1e-12)


def test_long_integers_keep_their_digits(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    numbers = [9223372036854775807, 1234567890123456789, 17]
    frame = spark.createDataFrame([(k,) for k in numbers], "unit_id bigint")
    result = {row.unit_id: row.treatment for row in with_arms(frame, THIRDS).collect()}
    rows = users(20)
    wanted = in_python(rows, THIRDS, AssignmentColumns()).set_index("unit_id").treatment
    assert result == {k: wanted[str(k)] for k in numbers}


def test_rows_that_get_a_wrong_arm_are_refused(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    schema = "unit_id string, household string, region string, decision string, number double"
    good = [("a", "h", "x", "control", 1.0), ("b", "h", "x", "10%", 1.0)]
    clusters = replace(THIRDS, clustered=True, stratified=True)
    in_strata = AssignmentColumns(cluster="household", strata=("region",))
    cases = [
        (
            [*good, (None, "h", "x", "control", 1.0)],
            THIRDS,
            AssignmentColumns(),
            "'unit_id' is null or empty in 1 rows",
        ),
        ([*good, *good], THIRDS, AssignmentColumns(), "repeats 2 units"),
        (good, THIRDS, AssignmentColumns(unit="number"), "has type double"),
        ([*good, ("c", "h", "y", "control", 1.0)], clusters, in_strata, "1 clusters lie in two strata"),
        (
            [*good, ("c", "h", "x", "30%", 1.0)],
            replace(THIRDS, exploration=0.5),
            AssignmentColumns(decision="decision"),
            "is no arm in 1 rows",
        ),
    ]
    for rows, experiment, columns, sentence in cases:
        with pytest.raises(DataError, match=sentence):
            with_arms(spark.createDataFrame(rows, schema), experiment, columns)
    with pytest.raises(DataError, match="'explored' is there already"):
        with_arms(with_arms(spark.createDataFrame(good, schema), THIRDS), THIRDS)


def test_names_of_columns_have_no_case(spark) -> None:
    from uplift_spark.experiments.spark import with_arms

    rows = users(50).rename(columns={"unit_id": "Unit_ID"})
    result = with_arms(spark.createDataFrame(rows), THIRDS).toPandas()
    arms = in_python(users(50), THIRDS, AssignmentColumns()).set_index("unit_id")["treatment"]
    assert result["treatment"].tolist() == arms[result["Unit_ID"]].tolist()


# ---------------------------------------------------------------- sums


HOUSEHOLDS = ReadoutDesign({"off": 0.5, "on": 0.5}, randomised="household")


def torn_trial() -> pd.DataFrame:
    """Users of whom one is in two arms, and one in an arm without a share; ids are texts."""
    d = trial(1200).astype({"unit_id": str, "took": int})
    extra = d.iloc[[3, 7]].assign(treatment=["on" if d["treatment"][3] == "off" else "off", "test"])
    extra.iloc[1, 0] = "stranger"
    return pd.concat([d, extra], ignore_index=True)


def plain_trial() -> pd.DataFrame:
    """Every unit once, as most trials have them."""
    return trial(1200).astype({"unit_id": str, "took": int})


def household_trial() -> pd.DataFrame:
    d = trial(1200).astype({"unit_id": str, "took": int})
    d["treatment"] = np.where(d["household"] % 2 == 0, "off", "on")
    d["region"] = np.where(d["household"] % 3 == 0, "north", "south")
    return d


def assert_equal_sums(one: tuple[TrialSums, TrialFacts], other: tuple[TrialSums, TrialFacts]) -> None:
    """Every figure to 1e-9 of its size."""
    (sums, facts), (wanted, wanted_facts) = one, other
    names = ("arms", "strata", "columns", "taken", "counted")
    assert [getattr(sums, name) for name in names] == [getattr(wanted, name) for name in names]
    for mine, theirs in ((sums.moments, wanted.moments), (sums.by_day, wanted.by_day)):
        for part in ("n", "mean", "products"):
            scale = np.abs(getattr(theirs, part)).max()
            np.testing.assert_allclose(getattr(mine, part), getattr(theirs, part), rtol=1e-9, atol=1e-9 * scale)
    assert sums.groups is not None and wanted.groups is not None
    np.testing.assert_allclose(sums.groups.totals, wanted.groups.totals, rtol=1e-12)
    assert (facts.units, facts.twice, facts.days) == (wanted_facts.units, wanted_facts.twice, wanted_facts.days)
    whole = ("delivered", "treated", "names", "by_day", "analysed")
    assert [getattr(facts, name) for name in whole] == [getattr(wanted_facts, name) for name in whole]
    for arm, logged in (wanted_facts.propensities or {}).items():
        ours = (facts.propensities or {})[arm]
        assert tuple(vars(ours).values()) == pytest.approx(tuple(vars(logged).values()), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "design"), [(plain_trial, DESIGN), (torn_trial, DESIGN), (household_trial, HOUSEHOLDS)]
)
def test_spark_and_pandas_add_up_to_the_same(spark, make, design: ReadoutDesign) -> None:
    from uplift_spark.experiments.spark import unit_sums

    rows, metrics = make(), [SPEND, PER_VISIT]
    ours = unit_sums(spark.createDataFrame(rows).repartition(5), metrics, design, COLUMNS)
    wanted = trial_sums(rows, metrics, design, COLUMNS)
    assert_equal_sums(ours, wanted)
    tables = [read_sums(sums, metrics, design, facts, override="to compare").table() for sums, facts in (ours, wanted)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


def test_a_worker_s_parts_merge_whatever_the_batches() -> None:
    """Without Spark: units in one batch, or in many, give the same moments."""
    from uplift_spark.experiments.spark import TrialLayout, _Merged, add_units

    rng, layout = np.random.default_rng(3), TrialLayout(("off", "on"), 2, False, None, True, False)
    n = 500
    arms = pa.array(rng.choice(["off", "on"], n))
    batch = pa.RecordBatch.from_pydict({
        **dict.fromkeys(("low_arm", "high_arm"), arms), **dict.fromkeys(("low_stratum", "high_stratum"), ["all"] * n),
        "low_day": rng.integers(0, 5, n), "v0": rng.normal(1e6, 1, n), "v1": rng.normal(size=n), "rows": [1] * n,
        "repeated": [0] * n, "group": rng.integers(0, 1024, n),
    })  # fmt: skip
    whole = _Merged(pa.Table.from_batches(add_units(layout, [batch])), layout)
    slices = [[batch.slice(0, 7)], [batch.slice(7, 200), batch.slice(207, 0)], [batch.slice(207)]]
    parts = _Merged(pa.Table.from_batches([out for one in slices for out in add_units(layout, one)]), layout)
    for family in ("stratum", "day"):
        mine, theirs = (one.cells(family, one.buckets(family)) for one in (parts, whole))
        np.testing.assert_allclose(mine.n, theirs.n)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-12)
        np.testing.assert_allclose(mine.products, theirs.products, rtol=1e-9, atol=1e-6)
    mine, theirs = (one.groups(["all"]) for one in (parts, whole))
    assert theirs.groups == 1024 and theirs.totals[..., 0].sum() == n
    np.testing.assert_allclose(mine.totals, theirs.totals, rtol=1e-12)
    assert parts.units == whole.units == {arm: float(arms.to_pylist().count(arm)) for arm in ("off", "on")}


def test_frames_that_spark_refuses_as_pandas_does(spark) -> None:
    from uplift_spark.experiments.spark import unit_sums

    rows = trial(60).astype({"unit_id": str, "took": int})
    whole = spark.createDataFrame(rows)
    one, other = rows.loc[rows["treatment"] == "off", "unit_id"].iloc[:2]
    spoiled = [
        ("spend", np.inf, "column 'spend' is missing or not finite in 1 units"),
        ("before", None, "column 'before' is missing or not finite in 1 units"),
        ("treatment", None, "column 'treatment' is missing in 1 rows"),
        ("region", None, "column 'region' is missing in 1 rows"),
        ("day", None, "column 'day' is missing in 1 rows"),
        ("propensity", 0.0, r"column 'propensity' is outside \(0, 1\] in 1 rows"),
        ("unit_id", other, "column 'unit_id' repeats 1 units in one arm"),
    ]
    for column, value, sentence in spoiled:
        frame = whole.withColumn(column, F.when(F.col("unit_id") == one, F.lit(value)).otherwise(F.col(column)))
        with pytest.raises(DataError, match=sentence):
            unit_sums(frame, [SPEND], DESIGN, COLUMNS)
    with pytest.raises(DataError, match="arm 'on' has no unit: the frame has arms off"):
        unit_sums(whole.where("treatment = 'off'"), [SPEND], DESIGN)
    with pytest.raises(DataError, match="the frame has no row"):
        unit_sums(whole.where("treatment = 'none'"), [SPEND], DESIGN)
    with pytest.raises(DataError, match="column 'region' is no number"):
        unit_sums(whole, [ReadoutMetric("region", "region", role="primary")], DESIGN)
    with pytest.raises(DataError, match="column 'region' is no date"):
        unit_sums(whole, [SPEND], DESIGN, ReadoutColumns(day="region"))
    with pytest.raises(ConfigError, match="shop was randomised, but rows are of unit_id and have no column 'shop'"):
        unit_sums(whole, [SPEND], replace(HOUSEHOLDS, randomised="shop"))


def test_slices_of_a_canary_are_added_up_from_each_table(spark, monkeypatch):
    """By hand: every unit of the challenger's slice fails once in two requests, is not reached and opts out."""
    from uplift_spark.experiments.spark import CanarySlices

    design, start, ripe = (
        canary_design("trial", 0.4),
        datetime(2025, 3, 1, tzinfo=UTC),
        datetime(2025, 3, 20, tzinfo=UTC),
    )
    ids = [f"u{i}" for i in range(60)]
    arms = dict(zip(ids, assign(ids, design)["treatment"], strict=True))
    config = Config(
        campaign="spring", source=None, roles={"outcome": "y", "control": "none", "features": ["age"]},
        monitoring={"requests": {"table": "bronze.log", "time": "at", "ms": "ms", "failed": "bad", "version": "v"}},
    )  # fmt: skip
    frame = pd.DataFrame({"unit_id": ids, "campaign": "spring", "treatment": "5%", "run_id": "plan-1"})
    later = frame.assign(treatment="none", run_id="plan-2")  # a later plan changes nothing of when a unit came in
    planned = spark.createDataFrame(pd.concat([frame, later]))
    at = pd.Timestamp("2025-03-02")
    bad = np.array([arms[unit] == "challenger" for unit in ids])
    outcomes = frame[["unit_id", "campaign"]].assign(
        outcome="y", value=2.0, occurred_at=at, known_at=at, ingested_at=at, event_id=frame["unit_id"]
    )
    deliveries = frame[["unit_id", "campaign"]].assign(
        status=np.where(bad, "bounced", "delivered"), delivered_at=at, known_at=at
    )
    early = deliveries.assign(status="bounced", delivered_at=pd.Timestamp("2025-02-01"))  # of another campaign's time
    consent = frame[["unit_id"]][bad].assign(granted=False, changed_at=at, known_at=at)
    served = frame[["unit_id"]].assign(at=at, ms=10.0 + 900 * bad, v=np.where(bad, "2", "1"))
    requests = pd.concat([served.assign(bad=bad), served.assign(bad=False)])
    strangers = requests.assign(v="7", bad=True)  # answered by another version than the slice's
    tables = {
        "outcomes": spark.createDataFrame(outcomes),
        "deliveries": spark.createDataFrame(pd.concat([deliveries, early])),
        "consent": spark.createDataFrame(consent),
        "requests": spark.createDataFrame(pd.concat([requests, strangers])),
    }
    slices = CanarySlices(config, design, ("1", "2"), start, ripe)
    plans = {"plan-1": start, "plan-2": datetime(2025, 3, 10, tzinfo=UTC)}
    queries, collect = [], type(planned).collect
    with monkeypatch.context() as patch:
        patch.setattr(type(planned), "collect", lambda frame: queries.append(frame) or collect(frame))
        evidence = slices.evidence(planned, plans, tables)
    assert len(queries) == 3  # the plan with all that happened; whose requests they are; the requests
    n = [sum(arm == name for arm in arms.values()) for name in ("champion", "challenger")]
    assert evidence.assigned == tuple(n) and not evidence.not_measured
    figures = {
        check: [(one.units, one.events, one.value, one.per, one.vp) for one in both]
        for check, both in evidence.sums.items()
    }
    assert figures == {
        "errors": [(n[0], 0, 0, 2 * n[0], 0), (n[1], n[1], n[1], 2 * n[1], 2 * n[1])],
        "latency": [(n[0], 0, 0, 2 * n[0], 0), (n[1], n[1], 2 * n[1], 2 * n[1], 4 * n[1])],
        "delivery": [(n[0], 0, 0, n[0], 0), (n[1], n[1], n[1], n[1], n[1])],
        "opt_outs": [(n[0], 0, 0, n[0], 0), (n[1], n[1], n[1], n[1], n[1])],
        "outcome": [(n[0], n[0], 2 * n[0], n[0], 2 * n[0]), (n[1], n[1], 2 * n[1], n[1], 2 * n[1])],
    }
    fewer = slices.evidence(planned, plans, {"requests": tables["requests"]})
    assert set(fewer.sums) == {"errors", "latency"} and set(fewer.not_measured) == {"delivery", "opt_outs", "outcome"}
    alone = spark.createDataFrame(requests.assign(v="1"))
    assert (
        "version 1 answers the requests of both slices"
        in slices.evidence(planned, plans, {"requests": alone}).not_measured["errors"]
    )
    lost = spark.createDataFrame(requests.assign(v=np.where(requests["bad"], None, requests["v"])))
    (_, failing), _ = slices.evidence(planned, plans, {"requests": lost}).sums.values()
    assert failing.value == n[1]  # a version that could not answer is not named, and counts
    # The champion answers what the challenger lost: a failure of the challenger, once, whether that is logged or not.
    mine = served[bad].assign(bad=False)
    instead, earlier = (mine.assign(v="1", at=at + pd.Timedelta(hours=hours)) for hours in (1, -1))
    for logged in (mine.assign(bad=True), mine.iloc[:0]):
        log = spark.createDataFrame(pd.concat([served[~bad].assign(bad=False), mine, logged, instead, earlier]))
        both = slices.evidence(planned, plans, {"requests": log}).sums
        assert [(one.value, one.per) for one in both["errors"]] == [(0, n[0]), (n[1], 2 * n[1])]
        assert both["latency"][1].per == len(mine) + len(logged)  # nobody knows how long it would have taken
    unknown = tables["requests"].drop("unit_id")
    with pytest.raises(ConfigError, match=r"table bronze\.log has no column 'unit_id' with the unit of a request"):
        slices.evidence(planned, plans, {"requests": unknown})


@pytest.mark.parametrize("clusters", [0, 800])
def test_a_policy_is_read_alike(spark, clusters: int) -> None:
    from tests.experiments.test_backtest import ARMS, MONEY, SPEND, campaign
    from uplift_spark.experiments.backtest import LoggedColumns, backtest, layout_of, read_policy
    from uplift_spark.experiments.spark import backtest_sums

    frame, _ = campaign(2400, 11, 0.6, clusters)
    columns = LoggedColumns(cluster="group" if clusters else None)
    wanted = backtest(frame, [SPEND], ARMS, columns, money=MONEY)
    layout = layout_of([SPEND], ARMS, money=MONEY, clustered=bool(clusters))
    names = ["unit_id", "treatment", "policy", "propensity", "before", "spend", "group"]
    rows = spark.createDataFrame(frame[names]).repartition(3)
    result = read_policy(layout, backtest_sums(rows, layout, columns))
    for one, other in zip(result.metrics, wanted.metrics, strict=True):
        assert (one.metric, one.arm, one.status) == (other.metric, other.arm, other.status)
        assert (one.effect, one.error, one.relative) == pytest.approx(
            (other.effect, other.error, other.relative), rel=1e-8
        )
    with pytest.raises(DataError, match="column 'policy' is no arm in 2,400 rows: use none, 5%, 10%"):
        backtest_sums(rows.withColumn("policy", F.lit("20%")), layout, columns)
