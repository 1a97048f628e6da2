"""From a source to labels and a training set: simulated, tiny made-up trials, and a real one."""

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Labels, Lift, RolesConf, Simulation, TrialConf, load_config
from uplift_spark.errors import ConfigError, ConflictError, DataError, UpliftError
from uplift_spark.events.ingest import DATA_FOLDER
from uplift_spark.events.simulate import CampaignSimulator, effect_column
from uplift_spark.jobs import features, ingest

CONF = Path(__file__).parents[2] / "conf"
UNITS = 2_000
DOSE = {"none": 0.0, "5%": 5.0, "10%": 10.0}
SIMULATED = Config(
    campaign="toy",
    source=Simulation(units=UNITS),
    roles=RolesConf("conversion", "none", ("recency_days", "region"), DOSE, more_outcomes=("revenue",)),
    lift=Lift(segments=("device",)),
)
TRIAL = Config(
    campaign="shop",
    source=TrialConf(
        kind="trial",
        file="trial.csv",
        sha256="",
        unit="customer",
        treatment="arm",
        arms={"0": "none", "1": "mail"},
        outcomes=("bought", "spend"),
        attributes=("age", "city"),
        assigned_at=datetime(2024, 1, 1),
        missing=(-999,),
    ),
    roles=RolesConf(outcome="bought", control="none", features=("age", "city")),
    lift=Lift(outcomes=("spend",)),
)
ROWS = """customer,arm,bought,spend,age,city
a,0,1,9.5,31,Rome
b,1,0,0,,Oslo
c,1,1,-999,44,
d,0,0,0,-999,Rome
e,2,1,3,20,Rome
f,,1,3,20,Rome
g,1,1,3,inf,Rome
h,1,1,3,20,Rome
h,0,0,0,21,Oslo
,0,0,0,22,Oslo
"""


@pytest.fixture
def shop(published):
    """A function that publishes a trial's text and gives the configuration that names it."""
    return lambda text=ROWS, **changes: replace(TRIAL, source=published(text, TRIAL.source, **changes))


@pytest.mark.slow
def test_simulated_campaign_from_source_to_training_set(lake):
    first = ingest.run(Campaign(SIMULATED, lake))
    truth = CampaignSimulator("ordered", 3, seed=SIMULATED.seed, prefix="toy-").units(UNITS).to_pandas()
    truth = truth.set_index("unit_id").sort_index()
    events = rows_of(lake, "bronze.outcome", campaign="toy")
    assert first.tables["bronze.assignment"]["rows"] == UNITS
    assert (events["value"] != 0).all() and len(events) == 2 * truth["conversion"].sum()
    assert (events["known_at"] == events["occurred_at"]).all() and (events["known_at"] < events["ingested_at"]).all()
    assert events["event_id"].isna().all()
    effects = rows_of(lake, "bronze.truth", outcome="revenue", treatment="10%").set_index("unit_id").sort_index()
    np.testing.assert_array_equal(effects["effect"], truth[effect_column("revenue", "10%")])

    profile = rows_of(lake, "bronze.profile_toy")
    assert (profile["known_at"] == profile["observed_at"]).all()

    result = features.run(Campaign(SIMULATED, lake))
    training = rows_of(lake, "silver.training_toy").set_index("unit_id").sort_index()
    for column in ("treatment", "propensity", "conversion", "revenue", "recency_days", "region", "device"):
        assert training[column].to_list() == truth[column].to_list(), column
    assert result.details["train"] + result.details["holdout"] == result.details["labelled"] == UNITS
    assert (result.details["duplicate_events"], result.details["late_events"]) == (0, 0)
    assert result.details["label_lag_hours_95"] == {"conversion": 0.0, "revenue": 0.0}
    assert "delivery_rate" not in result.details
    assert result.details["outcome_completeness"] == {"conversion": 1.0, "revenue": 1.0}
    assert result.details["warnings"] == []
    assert set(result.details["inputs"]) == {"bronze.assignment", "bronze.outcome", "bronze.profile_toy"}

    for job, before in ((ingest, first), (features, result)):
        again = job.run(Campaign(SIMULATED, lake))
        assert again.run_id == before.run_id and all(table["skipped"] for table in again.tables.values())
    with pytest.raises(ConflictError, match="already holds campaign 'toy'"):
        ingest.run(Campaign(replace(SIMULATED, source=Simulation(units=UNITS + 1)), lake))


@pytest.mark.slow
def test_units_of_a_cluster_are_split_together(lake, shop):
    rows = [f"{i},{i // 10 % 2},{i % 3 % 2},1,{i % 50},v{i // 10}" for i in range(600)]
    text = "\n".join([ROWS.splitlines()[0], *rows])
    config = replace(shop(text), campaign="villages", roles=RolesConf("bought", "none", ("age",), cluster="city"))
    ingest.run(Campaign(config, lake))
    features.run(Campaign(config, lake))
    training = rows_of(lake, "silver.training_villages")
    assert len(training) == 600 and set(training["split"]) == {"train", "holdout"}
    assert (training.groupby("city")["split"].nunique() == 1).all()
    assert config.training_roles.cluster == "city"
    nobodys = replace(shop(text + "\n600,0,1,1,30,"), campaign="hamlets", roles=config.roles)
    ingest.run(Campaign(nobodys, lake))
    with pytest.raises(DataError, match="column 'city' is null in 1 rows"):
        features.run(Campaign(replace(nobodys, holdout=1e-6), lake))
    with pytest.raises(ConfigError, match=r"features contains \['city'\], which already play another part"):
        features.run(Campaign(replace(config, roles=replace(config.roles, features=("age", "city"))), lake))


@pytest.mark.slow
def test_a_trial_from_file_to_training_set_without_its_badrows_of(lake, shop):
    with pytest.raises(DataError, match="ingest"):
        features.run(Campaign(TRIAL, lake))
    messages = []
    config = shop()
    result = ingest.run(Campaign(config, lake), progress=messages.append)
    assert result.details == {
        "rows": 10,
        "units": {"mail": 2, "none": 2},
        "rejected": {
            "treatment_known": 1,
            "treatment_present": 1,
            "attribute_finite": 1,
            "repeated": 2,
            "unit_present": 1,
        },
        "unknown": {"spend": 1},
    }
    assert any("2 rows rejected by rule repeated" in line for line in messages)
    quarantine = rows_of(lake, "bronze.quarantine", campaign="shop")
    assert sorted(json.loads(row)["unit_id"] or "" for row in quarantine["row"]) == ["", "e", "f", "g", "h", "h"]
    assert set(quarantine["run_id"]) == {result.run_id} and quarantine["reason"].str.len().min() > 5
    assignment = rows_of(lake, "bronze.assignment")
    assert dict(zip(assignment["unit_id"], assignment["treatment"], strict=True)) == {
        "a": "none", "b": "mail", "c": "mail", "d": "none",
    }  # fmt: skip
    assert set(assignment["propensity"]) == {0.5}
    profile = rows_of(lake, "bronze.profile_shop").set_index("unit_id")
    assert sorted(profile.index) == ["a", "b", "c", "d"]
    assert np.isnan(profile.loc["d", "age"]) and profile.loc["c", "city"] is None
    events = rows_of(lake, "bronze.outcome")
    assert sorted(zip(events["unit_id"], events["outcome"], strict=True)) == [
        ("a", "bought"), ("a", "spend"), ("c", "bought"), ("c", "spend"),
    ]  # fmt: skip
    assert events["value"].isna().sum() == 1

    for change, message in (
        ({"features": ("age", "spend")}, r"contain \['spend'\]"),
        ({"features": ("agee",)}, "no column 'agee'"),
        ({"more_outcomes": ("spent",)}, "no event of outcome 'spent'.*did you mean 'spend'"),
        ({"more_outcomes": ("age",)}, r"features contains \['age'\], which already play another part"),
        ({"outcome": "bougt"}, "no event of outcome 'bougt'.*did you mean 'bought'"),
    ):
        with pytest.raises(ConfigError, match=message):
            features.run(Campaign(replace(config, roles=replace(config.roles, **change)), lake))
    assert not [table for table in lake.tables() if table.startswith("silver")]

    details = features.run(Campaign(config, lake)).details
    assert (details["labelled"], details["outcome_unknown"], details["train"] + details["holdout"]) == (4, 1, 3)
    early = replace(config, labels=Labels(window_days=7, as_of=datetime(2024, 1, 7)))
    with pytest.raises(DataError, match="all 4 labels are immature as of 2024-01-07"):
        features.run(Campaign(early, lake))


@pytest.mark.slow
def test_deliveries_and_late_events_are_counted(lake, shop):
    config = shop()
    ingest.run(Campaign(config, lake))
    at = "timestamp'2024-01-02 06:00:00Z' AS {}, CAST({} AS string) AS event_id"
    at += ", timestamp'{}' AS known_at, 'crm' AS source"
    unit = "SELECT '{}' AS unit_id, 'shop' AS campaign"
    send = f"{unit}, 'd' AS delivery_id, '{{}}' AS status, {at}"
    sends = [("b", "delivered"), ("b", "sent"), ("c", "failed"), ("stranger", "delivered")]
    known = "2024-01-02 09:00:00Z"
    rows = " UNION ALL ".join(send.format(who, status, "delivered_at", "NULL", known) for who, status in sends)
    lake.write("bronze.delivery", lake.spark.sql(rows), "sends")
    spend = f"{unit}, 'spend' AS outcome, 5D AS value, {at}"
    arrivals = [("'e1'", "2024-01-03 06:00:00Z"), ("'e1'", "2024-01-04 06:00:00Z"), ("'e2'", "2024-02-01 00:00:01Z")]
    rows = " UNION ALL ".join(spend.format("b", "occurred_at", *arrival) for arrival in arrivals)
    lake.write("bronze.outcome", lake.spark.sql(rows), "orders")
    config = replace(config, labels=Labels(as_of=datetime(2024, 2, 1), windows={"spend": 3}))
    result = features.run(Campaign(config, lake))
    assert result.details["delivery_rate"] == {"mail": 0.5, "none": 0.0}
    assert (result.details["duplicate_events"], result.details["late_events"]) == (1, 1)
    assert result.details["label_lag_hours_median"] == {"bought": 0.0, "spend": 0.0}
    assert result.details["label_lag_hours_95"] == {"bought": 0.0, "spend": 21.6}
    assert set(result.details["inputs"]) == {
        "bronze.assignment", "bronze.delivery", "bronze.outcome", "bronze.profile_shop",
    }  # fmt: skip
    labels = rows_of(lake, "silver.label").set_index("unit_id")
    assert dict(labels["delivered"]) == {"a": False, "b": True, "c": False, "d": False}
    assert dict(labels.loc["b", "outcomes"]) == {"bought": 0.0, "spend": 5.0}
    assert features.run(Campaign(config, lake)).tables["silver.label"]["skipped"]
    with pytest.raises(DataError, match="no assignment was made by 2023-12-31"):
        features.run(Campaign(replace(config, labels=Labels(as_of=datetime(2023, 12, 31))), lake))


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "is empty"),
        (ROWS.replace("spend", "spent"), {}, "no column 'spend'"),
        (ROWS.replace("9.5", "much"), {}, "'spend' must hold numbers"),
        (ROWS, {"sha256": "0" * 64}, "not the declared"),
        (ROWS.replace(",0,", ",1,"), {}, "is the control 'none', found mail"),
        (ROWS.replace("b,1", "b,0").replace("c,1", "c,0"), {}, "one arm only"),
        (ROWS, {"arms": {"0": "control", "1": "mail"}}, "none of the source's levels"),
    ],
)
def test_an_unfit_file_is_refused_and_nothing_written(lake, shop, text, changes, message):
    with pytest.raises(UpliftError, match=message) as caught:
        ingest.run(Campaign(shop(text, **changes), lake))
    assert "\n" not in str(caught.value) and lake.tables() == []


def test_levels_of_the_simulation_must_be_those_of_the_roles(lake):
    wrong = replace(SIMULATED, source=replace(SIMULATED.source, arms=4))
    with pytest.raises(
        ConfigError, match=r"roles.dose names none, 5%, 10%; the source's levels are none, 5%, 10%, 15%"
    ):
        ingest.run(Campaign(wrong, lake))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(DATA_FOLDER), reason="UPLIFT_DATA is not set: the trials' files are not here")
def test_karlan_and_list_arrive_whole(lake):
    config = load_config(CONF / "karlan_list.yaml")
    result = ingest.run(Campaign(config, lake))
    assert result.details["rows"] == result.tables["bronze.assignment"]["rows"] == 50_083
    assert result.details["unknown"] == {"out_amountgive": 2} and result.details["rejected"] == {}
    rates = lake.sql(
        """SELECT treatment, round(100 * avg(coalesce(value, 0)), 2) AS gave FROM bronze.assignment
           LEFT JOIN (SELECT * FROM bronze.outcome WHERE outcome = 'out_gavedum') USING (unit_id) GROUP BY treatment"""
    )
    assert dict(rates.toPandas().to_numpy()) == {"none": 1.79, "1:1": 2.07, "2:1": 2.26, "3:1": 2.27}
