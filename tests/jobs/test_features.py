"""Features of behaviour and attributes in a training set, and what the registry keeps of them."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from pyspark.sql import functions as F

from tests.jobs.conftest import rows_of
from tests.jobs.test_ingest import ROWS, TRIAL
from uplift_spark.campaign import Campaign
from uplift_spark.config import Alarms, Feature
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.events import features as registry
from uplift_spark.jobs import features, ingest

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

ORDERS = Feature("orders_30d", aggregate="count", source="event", event="order", window_days=30, owner="crm")
SPENT = Feature("spent", aggregate="sum", source="event", event="order", ttl_minutes=1e9)
DEFINED = (ORDERS, SPENT, Feature("basket", aggregate="ratio", of=("spent", "orders_30d")), Feature("age", owner="hr"))


def _behaving(config, definitions=DEFINED):
    names = tuple(f.name for f in definitions if f.name != "spent")
    return replace(config, features=definitions, roles=replace(config.roles, features=(*names, "city")))


def test_features_of_behaviour_are_registered_with_their_sources(lake, published):
    config = _behaving(replace(TRIAL, source=published(ROWS, TRIAL.source)))
    ingest.run(Campaign(config, lake))
    with pytest.raises(DataError, match=r"table bronze\.event does not exist"):
        features.run(Campaign(config, lake))
    row = "SELECT '{}' AS unit_id, 'order' AS event, 'book' AS item, {}D AS value, timestamp'{}Z' AS occurred_at"
    row += ", timestamp'{}Z' AS known_at, CAST(NULL AS string) AS event_id, 'web' AS source"
    happened = [
        ("a", 2.5, "2023-12-30 00:00:00", "2023-12-30 00:00:00"),
        ("a", 4.0, "2023-11-01 00:00:00", "2023-12-31 00:00:00"),
        ("a", 9.0, "2023-12-30 00:00:00", "2024-01-01 00:00:01"),  # filled in after the assignment
        ("c", 1.0, "2024-01-02 00:00:00", "2024-01-02 00:00:00"),  # after the assignment
    ]
    lake.write("bronze.event", lake.spark.sql(" UNION ALL ".join(row.format(*one) for one in happened)), "web")
    result = features.run(Campaign(config, lake))
    training = rows_of(lake, "silver.training_shop").set_index("unit_id")
    assert training.loc["a", ["orders_30d", "basket", "age", "city"]].to_list() == [1.0, 6.5, 31.0, "Rome"]
    assert training.loc["d", "orders_30d"] == 0.0 and np.isnan(training.loc["d", "basket"])
    assert "spent" not in training and set(result.details["inputs"]) >= {"bronze.event"}

    registered = rows_of(lake, "silver.feature_registry").set_index("feature")
    assert set(registered.index) == {"orders_30d", "spent", "basket", "age", "city"}
    assert registered.loc["orders_30d", "owner"] == "crm"
    versions = rows_of(lake, "silver.feature_versions", run_id=result.run_id).set_index("feature")
    assert versions.loc["basket", "source_table"] == "bronze.event" and versions.loc["age", "source_version"] == 0
    assert versions.loc["basket", ["units", "missing"]].to_list() == [3, 2]
    assert all(written["skipped"] for written in features.run(Campaign(config, lake)).tables.values())

    about = registry.described(lake, "orders_30d")
    assert about["source_table"] == "bronze.event" and about["ttl_minutes"] == 30.0
    fresh = registry.freshness(lake, datetime(2024, 1, 2, 0, 20)).set_index("feature")
    assert fresh.loc["orders_30d", "age_minutes"] == 20.0 and not fresh.loc[["orders_30d", "spent"], "stale"].any()
    assert registry.freshness(lake, datetime(2024, 1, 2, 1)).set_index("feature")["stale"].to_dict() == {
        "orders_30d": True, "spent": False, "age": True, "city": True,
    }  # fmt: skip
    typo = Feature("orders_7d", aggregate="count", source="event", event="ordr", window_days=7)
    with pytest.raises(
        ConfigError, match=r"bronze\.event has no event 'ordr' of feature 'orders_7d': did you mean 'order'"
    ):
        features.run(Campaign(_behaving(config, (*DEFINED, typo)), lake))
    assert set(registry.listed(lake)["feature"]) == set(registered.index)
    with pytest.raises(DataError, match="has no feature 'orders': it has age"):
        registry.described(lake, "orders")


def test_versions_without_new_rows_change_no_run_and_new_profiles_make_one(lake, published):
    config = replace(TRIAL, source=published(ROWS, TRIAL.source))
    ingest.run(Campaign(config, lake))
    first = features.run(Campaign(config, lake))
    for table in ("bronze.profile_shop", "bronze.assignment"):
        lake.spark.sql(f"ALTER TABLE {lake.reference(table)} SET TBLPROPERTIES ('team' = 'crm')")
    again = features.run(Campaign(config, lake))
    assert again.run_id == first.run_id and all(written["skipped"] for written in again.tables.values())
    more = lake.read("bronze.profile_shop").limit(1).withColumn("unit_id", F.lit("new"))
    lake.write("bronze.profile_shop", more.drop("run_id", "ingested_at"), "night")
    assert features.run(Campaign(config, lake)).run_id != first.run_id


def test_a_definition_changes_only_with_its_version(lake, monkeypatch):
    age = Feature("age")
    (first,) = registry.register(lake, (age, ORDERS))
    assert first.rows == 2 and registry.register(lake, (age, replace(ORDERS, owner="web"))) == ()
    # Who looked before the other had written adds the same once more, under the same run.
    with monkeypatch.context() as patched:
        patched.setattr(lake, "exists", lambda table: False)
        assert registry.register(lake, (ORDERS, age))[0].skipped
    changed = replace(age, column="city")
    with pytest.raises(ConflictError, match="has age version 1 with another definition: raise the version"):
        registry.register(lake, (changed, SPENT))
    assert lake.version("silver.feature_registry") == first.version
    registry.register(lake, (replace(changed, version=2), ORDERS))
    known = lake.read("silver.feature_registry").select("feature", "version").toPandas()
    assert sorted(map(tuple, known.to_numpy())) == [("age", 1), ("age", 2), ("orders_30d", 1)]


def test_units_that_are_there_twice_are_refused_with_the_remedy(lake, published):
    config = replace(TRIAL, source=published(ROWS, TRIAL.source))
    ingest.run(Campaign(config, lake))
    rows = lake.read("bronze.assignment").where("unit_id IN ('a', 'b')").drop("run_id", "ingested_at")
    lake.write("bronze.assignment", rows.withColumn("source", F.lit("crm.csv#0123456789abcdef")), "load-2")
    message = (
        r"bronze\.assignment has 2 units of campaign 'shop' more than once, such as 'a' by ingest-\w+ and load-2: run "
        r"`uplift ingest` with --replace, .* with `uplift load --replace --replaced crm\.csv#0123456789abcdef`"
    )
    with pytest.raises(DataError, match=message):
        features.run(Campaign(config, lake))
    assert not [table for table in lake.tables() if table.startswith("silver")]


def test_keys_that_join_nothing_are_counted_and_refused(lake, published):
    config = replace(TRIAL, source=published(ROWS, TRIAL.source))
    ingest.run(Campaign(config, lake))
    known, said = lake.read("bronze.outcome").count(), []

    def more(table, run, where, **columns):
        rows = lake.read(table).where(where).withColumns({n: F.expr(sql) for n, sql in columns.items()})
        lake.write(table, rows.drop("run_id", "ingested_at"), run)

    more("bronze.outcome", "crm-1", "unit_id = 'a' AND outcome = 'bought'", unit_id="' A '")
    more("bronze.outcome", "crm-2", "unit_id = 'a' AND outcome = 'bought'", campaign="'Shop'")
    result = features.run(Campaign(config, lake), said.append)
    assert result.details["unmatched"] == {"bronze.outcome": 1}
    assert (
        f"bronze.outcome: 1 of {known + 1} rows are of units that were never assigned; unit ids there look like ' A ', "
        "in bronze.assignment like 'a' (1 of them would join without blanks, upper case, leading zeros and '.0')"
    ) in said
    assert "bronze.outcome: 1 rows of campaign 'Shop' are left out, this one is 'shop': write the name alike" in said
    more("bronze.outcome", "crm-3", "campaign = 'shop'", unit_id="concat(unit_id, '.0')")
    with pytest.raises(DataError, match=r"bronze\.outcome: \d+ of \d+ rows .* like ' A '.* or raise alarms.unmatched"):
        features.run(Campaign(config, lake))
    assert features.run(Campaign(replace(config, alarms=Alarms(unmatched=0.6)), lake)).details["unmatched"]
    shouting = replace(config, campaign="SHOP")
    lake.write("bronze.profile_SHOP", lake.read("bronze.profile_shop").drop("run_id"), "crm-9")
    with pytest.raises(DataError, match=r"no row of campaign 'SHOP', but of 'shop': write the name alike"):
        features.run(Campaign(shouting, lake))
