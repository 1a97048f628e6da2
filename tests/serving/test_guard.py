"""Keys, rates and the file of keys; what the door does to requests over HTTP stands in test_api."""

from __future__ import annotations

import stat

import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.guard import KeyRing, RateLimit, new_key


def test_a_key_opens_what_it_was_made_for_and_is_kept_nowhere(tmp_path):
    file = tmp_path / "keys"
    key = new_key(file, "shop", ("effects", "decide"))
    assert key not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = KeyRing(file)
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        caller = ring.caller(headers)
        assert caller is not None and (caller.name, caller.scopes) == ("shop", {"effects", "decide"})
    for headers in ({}, {"authorization": f"Basic {key}"}, {"x-api-key": key[:-1]}, {"authorization": "Bearer "}):
        assert ring.caller(headers) is None


def test_keys_are_changed_while_the_service_runs(tmp_path):
    file = tmp_path / "keys"
    first = new_key(file, "first", ("effects",))
    ring = KeyRing(file)
    second = new_key(file, "second", ("metrics",))
    assert ring.caller({"x-api-key": second}).name == "second"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("first")))
    assert ring.caller({"x-api-key": first}) is None and ring.caller({"x-api-key": second}).name == "second"
    file.write_text("half a li")
    assert ring.caller({"x-api-key": second}).name == "second"  # the keys read last stay
    file.unlink()
    assert ring.caller({"x-api-key": second}).name == "second"


def test_a_file_of_keys_that_is_none_is_refused(tmp_path):
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"serving\.keys .* cannot be read"):
        KeyRing(file)
    file.write_text("# keys\nshop effects 1234\n")
    with pytest.raises(ConfigError, match="key 1 is no `name scope,scope sha256`"):
        KeyRing(file)
    with pytest.raises(ConfigError, match="scopes all are not known: choose from effects, decide, metrics"):
        new_key(file, "x", ("all",))
    file.unlink()
    new_key(file, "x", ("effects",))
    with pytest.raises(ConfigError, match="has a key 'x' already"):
        new_key(file, "x", ("effects",))


def test_others_are_served_with_keys_alone():
    with pytest.raises(
        ConfigError, match=r"serving\.host is '0\.0\.0\.0', which others reach: name a file of API keys"
    ):
        Serving(host="0.0.0.0")
    assert Serving(host="0.0.0.0", keys="keys").host == "0.0.0.0"
    with pytest.raises(ConfigError, match=r"serving\.redis is no URL"):
        Serving(redis="localhost")


def test_a_caller_has_its_rate_and_others_have_theirs():
    now = [0.0]
    limit = RateLimit(10.0, lambda: now[0])
    assert [limit.wait("a") for _ in range(20)] == [0.0] * 20  # two seconds' worth
    assert limit.wait("a") == pytest.approx(0.1) and limit.wait("b") == 0.0
    now[0] = 0.1
    assert limit.wait("a") == 0.0 and limit.wait("a") > 0
    now[0] = 1000.0
    assert [limit.wait("a") for _ in range(20)] == [0.0] * 20 and limit.wait("a") > 0
