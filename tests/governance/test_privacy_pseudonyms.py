"""Keyed hashes in place of ids, in a worker and in plans that show no key."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from uplift_spark.config import Config, Pseudonyms, RolesConf, Simulation
from uplift_spark.errors import ConfigError
from uplift_spark.governance.privacy import key_of, pseudonym, pseudonymised

KEY = b"a key of sixteen bytes and more"


def by_hand(unit: str, key: bytes = KEY) -> str:
    return hmac.new(key, unit.encode("utf-8"), hashlib.sha256).hexdigest()[:32]


def test_it_is_the_standard_hash() -> None:
    assert pseudonym(KEY, "zoë") == by_hand("zoë") != pseudonym(b"another key of 16", "zoë")
    # RFC 4231, test case 2.
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == "5bdcc146bf60754e6a042426089575c7"


def conf(**key: str) -> Config:
    simulation = Simulation(units=1000)
    return Config("shop", simulation, RolesConf("visit", "none", ("age",)), pseudonyms=Pseudonyms(**key))


class Secrets:
    """Of Databricks."""

    def get(self, scope: str, key: str) -> str:
        if (scope, key) != ("uplift", "ids"):
            raise RuntimeError(f"Secret does not exist with scope: {scope} and key: {key}\nat line 1")
        return KEY.decode()


def test_where_there_is_no_environment_the_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "databricks.sdk.runtime", None)
        with pytest.raises(ConfigError, match="install uplift-spark\\[databricks\\], or name key_env"):
            key_of(conf(key_secret="uplift/ids"))
    sdk = SimpleNamespace(dbutils=SimpleNamespace(secrets=Secrets()))
    for name in ("databricks", "databricks.sdk", "databricks.sdk.runtime"):
        monkeypatch.setitem(sys.modules, name, sdk)
    assert key_of(conf(key_secret="uplift/ids")) == KEY
    with pytest.raises(ConfigError, match="key_secret uplift/x cannot be read: Secret does not exist") as caught:
        key_of(conf(key_secret="uplift/x"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("IDS", "short")
    with pytest.raises(ConfigError, match=r"key_env names \$IDS, which has 5 bytes"):
        key_of(conf(key_env="IDS"))


@pytest.mark.parametrize(
    "key", [{}, {"key_env": "IDS", "key_secret": "a/b"}, {"key_secret": "ids"}, {"key_secret": "/b"}]
)
def test_a_key_has_one_place(key: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"SCOPE/KEY"):
        Pseudonyms(**key)


@pytest.mark.spark
def test_ids_of_a_frame_and_of_rows_as_json(spark: SparkSession) -> None:
    rows = [
        ("ann", '{"unit_id":"ann","value":1.5,"note":null}'),
        (" ", '{"unit_id":" "}'),
        (None, '{"unit_id":null,"é":"ü"}'),
        (None, '{"__unread":"ann,1,2"}'),
        ("bob", None),
    ]
    frame = spark.createDataFrame(rows, "unit_id string, row string")
    hashed = pseudonymised(frame, KEY, "row", "__unread")
    assert hashed.columns == ["unit_id", "row"]
    ids = [(row["unit_id"], row["row"] and json.loads(row["row"])) for row in hashed.collect()]
    assert ids == [
        (by_hand("ann"), {"unit_id": by_hand("ann"), "value": 1.5, "note": None}),
        (" ", {"unit_id": " "}),
        (None, {"unit_id": None, "é": "ü"}),
        (None, {"__unread": "7 characters, which may hold an id"}),
        (by_hand("bob"), None),
    ]
    hashed.createOrReplaceTempView("hashed")
    plan = str(spark.sql("EXPLAIN EXTENDED SELECT * FROM hashed").collect()[0][0])
    assert "MapInArrow" in plan and KEY.decode() not in plan and KEY.hex() not in plan


@pytest.mark.spark
def test_whole_numbers_hash_as_their_text_and_without_a_key_nothing_changes(spark: SparkSession) -> None:
    frame = spark.range(12, 13).withColumnRenamed("id", "unit_id")
    assert [row["unit_id"] for row in pseudonymised(frame, KEY).collect()] == [by_hand("12")]
    assert pseudonymised(frame, None) is frame
    other = spark.range(1)
    assert pseudonymised(other, KEY) is other
