"""`uplift contract`: what a table must hold, from its declaration, without a session."""

import json

import pytest
from pyspark.sql import SparkSession

from uplift_spark.errors import ConfigError
from uplift_spark.jobs.contract import command, contract_facts, contract_names


@pytest.fixture(autouse=True)
def no_spark(monkeypatch):
    monkeypatch.setattr(SparkSession, "builder", None)


def filled(table):
    return {one["name"]: one["filled_by"] for one in contract_facts(table)["columns"]}


def test_a_raw_table_says_what_its_source_must_bring():
    facts = contract_facts("bronze.outcome")
    kinds = {one["name"]: one["type"] for one in facts["columns"]}
    assert kinds["value"] == "double" and kinds["occurred_at"] == "timestamp" and facts["append_only"]
    by = filled("bronze.outcome")
    assert by["unit_id"] == by["value"] == "the source" and by["event_id"] == "the source, or none"
    assert by["known_at"] == "the source, or its arrival"
    assert by["run_id"] == by["source"] == by["ingested_at"] == "the platform"
    assert filled("bronze.event")["value"] == "the source, or none"
    rules = {rule["name"]: rule for rule in facts["rules"]}
    assert (
        rules["known_at_order"]["reason"] == "known_at is before occurred_at" and "trim" in rules["unit_present"]["sql"]
    )
    assert contract_facts("bronze.assignment")["unique"] == ["campaign", "unit_id"]


def test_tables_of_a_campaign_go_by_their_kind_or_by_their_name():
    for name in ("bronze.profile", "bronze.profile_spring", "bronze.profile_<campaign>"):
        facts = contract_facts(name)
        assert facts["open"] and facts["unique"] == ["unit_id", "observed_at"]
        assert filled(name)["observed_at"] == "the source"
    assert contract_facts("bronze.profile_spring")["table"] == "bronze.profile_spring"
    assert set(filled("gold.uplift_scores").values()) == {"uplift score"}
    assert contract_facts("silver.label")["columns"][5]["type"] == "map<string,double>"


def test_an_unknown_table_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'bronze.outcomes' is none of the tables: did you mean 'bronze.outcome'"):
        contract_facts("bronze.outcomes")
    with pytest.raises(ConfigError, match="use one of table, json"):
        command("bronze.outcome", "yaml")


def test_every_table_is_named_and_printed(capsys, monkeypatch):
    command()
    names = capsys.readouterr().out.splitlines()
    assert names == contract_names() == sorted(names)
    assert {"bronze.consent", "bronze.profile_<campaign>", "silver.training_<campaign>", "gold.policy_tree"} <= set(
        names
    )
    for name in names:
        command(name)
        shown = capsys.readouterr().out
        for column in contract_facts(name)["columns"]:
            assert column["name"] in shown and column["type"] in shown
        command(name, "json")
        assert json.loads(capsys.readouterr().out) == contract_facts(name)
    command("bronze.assignment")
    shown = capsys.readouterr().out
    assert "propensity_range" in shown and "Unique together: campaign, unit_id" in shown
