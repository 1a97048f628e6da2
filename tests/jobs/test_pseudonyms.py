"""Ids that are pseudonyms from the first write on: one unit of two sources is one unit, and no clear id is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.governance.test_erasure import hits
from tests.governance.test_privacy_pseudonyms import by_hand
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Pseudonyms, RolesConf, Simulation
from uplift_spark.errors import ConfigError
from uplift_spark.events.load import Load
from uplift_spark.governance.erasure import Erasure
from uplift_spark.jobs import erase, ingest, load
from uplift_spark.lake.tables import Lake

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

KEY = "a secret of the shop's own"
CONF = Config(
    "shop", Simulation(units=1000), RolesConf("conversion", "none", ("age",)), pseudonyms=Pseudonyms("SHOP_KEY")
)


def loaded(lake: Lake, table: str, path: Path, text: str, config: Config = CONF):
    path.write_text(text)
    return load.run(Campaign(replace(config, lakehouse=lake.lakehouse), lake), load=Load(table, str(path), "csv"))


def test_one_unit_of_two_sources_is_one_unit_and_no_clear_id_is_stored(lake: Lake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    at = "2025-01-01"
    assigned = (
        f"unit_id,campaign,treatment,assigned_at,propensity\nann-clear,shop,none,{at},0.5\nbob-clear,shop,x,{at},2\n"
    )
    loaded(lake, "bronze.assignment", tmp_path / "a.csv", assigned)
    events = f"unit_id,event,occurred_at\nann-clear,login,{at}\ncarl-clear,login,late\nann-clear,{at},x,y\n"
    result = loaded(lake, "bronze.event", tmp_path / "e.csv", events)
    assert result.details["good"] == 1 and sum(result.details["rejected"].values()) == 2
    joined = lake.read("bronze.assignment").join(lake.read("bronze.event"), "unit_id")
    assert [row["unit_id"] for row in joined.collect()] == [by_hand("ann-clear", KEY.encode())]
    quarantined = "".join(row["row"] for row in lake.read("bronze.quarantine").collect())
    assert by_hand("bob-clear", KEY.encode()) in quarantined and by_hand("carl-clear", KEY.encode()) in quarantined
    assert hits(lake.lakehouse.path, "-clear") == {} == hits(lake.lakehouse.path, KEY)
    assert hits(lake.lakehouse.path, by_hand("ann-clear", KEY.encode()))
    # A unit that comes again is known by its pseudonym.
    again = loaded(lake, "bronze.assignment", tmp_path / "b.csv", assigned.replace("x,", "y,").replace("none", "z"))
    assert again.details["rejected"] == {"repeated": 1, "propensity_range": 1}
    erased = erase.run(Campaign(replace(CONF, lakehouse=lake.lakehouse), lake), erasure=Erasure(("ann-clear",)))
    assert erased.details["removed"] == {"bronze.assignment": 1, "bronze.event": 1, "bronze.quarantine": 1}
    monkeypatch.setenv("SHOP_KEY", KEY + "!")
    loaded(lake, "bronze.event", tmp_path / "f.csv", f"unit_id,event,occurred_at\nann-clear,login,{at}T01:00\n")
    assert [row["unit_id"] for row in lake.read("bronze.event").collect()] == [
        by_hand("ann-clear", (KEY + "!").encode())
    ]


def test_ingested_units_are_pseudonyms_in_every_table(lake: Lake, monkeypatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    ingest.run(Campaign(replace(CONF, lakehouse=lake.lakehouse), lake))
    tables = [table for table in lake.tables() if "unit_id" in lake.read(table).columns]
    assert tables == ["bronze.assignment", "bronze.outcome", "bronze.profile_shop", "bronze.truth"]
    units = [{row["unit_id"] for row in lake.read(table).select("unit_id").collect()} for table in tables]
    assert len(units[0]) == 1000 and units[0] == units[2] == units[3] and units[1] <= units[0]
    assert {len(unit) for unit in units[0]} == {32}


@pytest.mark.parametrize(("value", "message"), [(None, "is not set"), ("short", "has 5 bytes")])
def test_without_a_good_key_nothing_begins(lake: Lake, tmp_path: Path, monkeypatch, value, message) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP_KEY", value)
    config = replace(CONF, lakehouse=lake.lakehouse)
    for run in (
        lambda: ingest.run(Campaign(config, lake)),
        lambda: loaded(lake, "bronze.event", tmp_path / "e.csv", "unit_id,event,occurred_at\na,login,2025-01-01\n"),
        lambda: erase.run(Campaign(config, lake), erasure=Erasure(("a",))),
    ):
        with pytest.raises(ConfigError, match=rf"\$SHOP_KEY, which {message}: set it to a secret of at least 16 bytes"):
            run()
    assert lake.tables() == []
