"""Versions of the online store: what is written, left and removed; switched at one stroke; the same from Redis."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem
from uplift_spark.serving import store
from uplift_spark.serving.store import (
    Manifest,
    RedisUnits,
    StoredUnit,
    current_version,
    open_version,
    publish_version,
    publishing,
    read_manifest,
    redis_client,
    unit_key,
)

MODEL = b"the model's file"


def manifest(version: str, **changes) -> Manifest:

    model = {"name": "spring", "version": 1, "sha256": hashlib.sha256(MODEL).hexdigest()}
    made = Manifest(
        "spring", version, "spend", (("age", "number"), ("city", "text")), ("none", "5%"), model, {"5%": (1.0, 2.0)},
        (), {"purpose": "marketing"}, {"made": version},
    )  # fmt: skip
    return replace(made, **changes)


def unit(age: float | None, uplift: float = 0.1) -> StoredUnit:
    return StoredUnit((age, "Zürich"), 1_700_000_000_000_000, ((uplift, 1 / 3, False),), ("5%", "best"))


@pytest.fixture(params=["file", "redis"])
def place(request, tmp_path):
    """(publish, open) of either kind of store."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    client = None if url is None else redis_client(url)
    if client is not None:
        client.flushall()

    def publish(one, units):
        return publish_version(tmp_path, one, MODEL, units, client)

    return publish, lambda: open_version(tmp_path, url), tmp_path


def test_units_come_back_to_the_bit(place):
    publish, opened, _ = place
    units = {"a": unit(0.1 + 0.2), "b": unit(None), "ü": unit(5e-324, 1e308)}
    assert publish(manifest("v1"), units.items()).written == 3
    version = opened()
    assert version.model == MODEL and version.manifest.units == 3
    found = version.units.get(["a", "b", "ü", "nobody"])
    assert found == units and repr(found["a"].features[0]) == repr(0.1 + 0.2)
    version.units.close()


def test_only_what_changed_is_written_and_what_is_gone_is_removed(place):
    publish, opened, folder = place
    publish(manifest("v1"), {f"u{i}": unit(i) for i in range(2500)}.items())
    rest = {f"u{i}": unit(i) for i in range(10, 2500)} | {"u11": unit(-1.0), "new": unit(7.0)}
    done = publish(manifest("v2"), rest.items())
    assert (done.written, done.unchanged, done.removed, done.skipped) == (2, 2489, 10, False)
    version = opened()
    assert version.manifest.units == len(rest) == 2491
    assert version.units.get(["u3", "u11", "new"]) == {"u11": unit(-1.0), "new": unit(7.0)}
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["v2"]
    version.units.close()


def test_the_same_inputs_are_published_once(place):
    publish, _, _ = place
    publish(manifest("v1"), {"a": unit(1.0)}.items())
    again = publish(manifest("v9", inputs={"made": "v1"}), {"a": unit(2.0)}.items())
    assert again.skipped and again.version == "v1"
    assert not publish(manifest("v9", inputs={"made": "v1"}, policy={"price": 1}), {"a": unit(2.0)}.items()).skipped


def test_a_served_version_that_is_damaged_is_made_anew(place, request):
    publish, opened, folder = place
    client = redis_client(request.getfixturevalue("redis_url")) if "redis" in request.node.name else None
    units = {"a": unit(1.0), "b": unit(2.0)}

    def units_gone(home):
        (home / store.UNITS).unlink() if client is None else client.flushall()

    def unit_changed(home):
        if client is not None:
            client.hdel(unit_key("spring", home.name), "a")
        else:
            text = (home / store.UNITS).read_bytes()
            (home / store.UNITS).write_bytes(text[:-1] + b"x")

    def no_database(home):
        client.flushall() if client is not None else (home / store.UNITS).write_bytes(b"no database" * 999)

    publish(manifest("v1"), units.items())
    damages = [units_gone, unit_changed, no_database, lambda home: (home / store.MODEL).unlink()]
    damages += [lambda home: (home / store.MODEL).write_bytes(b"x"), lambda home: (home / store.MANIFEST).unlink()]
    for damage in damages:
        name = current_version(folder)
        damage(folder / name)
        done = publish(manifest("v1"), units.items())
        assert not done.skipped and done.version == current_version(folder) != name  # workers turn to it
        version = opened()
        assert version.units.get(["a", "b"]) == units and version.manifest.version == done.version
        version.units.close()
        assert publish(manifest("v1"), units.items()).skipped
        assert [path.name for path in folder.iterdir() if path.is_dir()] == [done.version]


def test_an_id_that_is_there_twice_is_refused_and_the_version_before_stays(place):
    publish, opened, _ = place
    publish(manifest("v1"), {"a": unit(1.0)}.items())
    with pytest.raises(DataError, match="have an id twice: keep one row per unit"):
        publish(manifest("v2"), [("a", unit(2.0)), ("b", unit(2.0)), ("a", unit(3.0))])
    version = opened()
    assert version.manifest.version == "v1" and version.units.get(["a"]) == {"a": unit(1.0)}
    version.units.close()


def test_a_removed_unit_is_in_no_file(tmp_path):
    publish_version(tmp_path, manifest("v1"), MODEL, {"secret-person": unit(1.0), "b": unit(2.0)}.items())
    publish_version(tmp_path, manifest("v2"), MODEL, {"b": unit(2.0)}.items())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"secret-person" in path.read_bytes()]


def test_redis_keeps_no_removed_unit(tmp_path, redis_url):
    client = redis_client(redis_url)
    client.flushall()
    publish_version(tmp_path, manifest("v1"), MODEL, {"a": unit(1.0), "b": unit(2.0)}.items(), client)
    version = open_version(tmp_path, redis_url)
    publish_version(tmp_path, manifest("v2"), MODEL, {"b": unit(2.0)}.items(), client)
    before, now = (unit_key("spring", name) for name in ("v1", "v2"))
    assert set(client.hkeys(now)) == {"b", ""} and client.ttl(now) == -1
    # Requests that are under way, and workers that look for a newer version once a second, still read the one before.
    assert version.units.get(["a"]) == {"a": unit(1.0)} and 0 < client.ttl(before) <= 60
    client.expire(before, 5)
    publish_version(tmp_path, manifest("v3"), MODEL, {"b": unit(2.0)}.items(), client)
    assert 0 < client.ttl(before) <= 5 and 0 < client.ttl(now) <= 60 and client.ttl(unit_key("spring", "v3")) == -1
    client.delete(before)
    with pytest.raises(EnvironmentProblem, match="the units are gone from Redis"):
        version.units.get(["a"])
    version.units.close()


def test_a_name_of_the_served_version_is_not_taken_for_other_inputs(place):
    publish, opened, _ = place
    publish(manifest("v1"), {"a": unit(1.0)}.items())
    with pytest.raises(ConflictError, match="version v1 was published with other inputs before"):
        publish(manifest("v1", inputs={"made": "v2"}), {"a": unit(2.0)}.items())
    version = opened()
    assert version.units.get(["a"]) == {"a": unit(1.0)}
    version.units.close()


@pytest.mark.parametrize("step", ["_write_file", "_sync_folder", "_remove_others"])
def test_a_killed_run_leaves_a_whole_version_and_the_next_one_mends_it(tmp_path, monkeypatch, step):
    """Killed before the manifest, after the switch, and before the old version is removed."""
    publish_version(tmp_path, manifest("v1"), MODEL, {"a": unit(1.0)}.items())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, step, killed)
        with pytest.raises(KeyboardInterrupt):
            publish_version(tmp_path, manifest("v2"), MODEL, {"b": unit(2.0)}.items())
    served = open_version(tmp_path)
    assert served.manifest.version == ("v1" if step == "_write_file" else "v2")
    assert set(served.units.get(["a", "b"])) == ({"a"} if step == "_write_file" else {"b"})
    served.units.close()
    # With the same inputs, too: a version before may hold who was taken out.
    assert publish_version(tmp_path, manifest("v2"), MODEL, {"b": unit(2.0)}.items()).skipped == (step != "_write_file")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["v2"]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing is published in"):
        open_version(tmp_path)
    with pytest.raises(DataError, match="a unit has 1 features, the model 2"):
        publish_version(tmp_path, manifest("v1"), MODEL, [("a", StoredUnit((1.0,), 0))])
    publish_version(tmp_path, manifest("v1"), MODEL, [("a", unit(1.0))])
    (tmp_path / "v1" / store.MODEL).write_bytes(b"another model")
    with pytest.raises(DataError, match="the model of version v1 is not the one that was published"):
        open_version(tmp_path)
    file = tmp_path / "v1" / store.MANIFEST
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "features": [["city", "text"], ["age", "number"]]}))
    with pytest.raises(DataError, match="not those of its fingerprint"):
        read_manifest(tmp_path, "v1")
    file.write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(DataError, match="has another format"):
        read_manifest(tmp_path, "v1")
    assert current_version(tmp_path) == "v1"


def test_a_version_in_redis_needs_its_url(tmp_path, redis_url):
    client = redis_client(redis_url)
    publish_version(tmp_path, manifest("v1"), MODEL, [("a", unit(1.0))], client)
    with pytest.raises(ConfigError, match=r"name it in serving\.redis"):
        open_version(tmp_path)


def test_a_damaged_file_of_units_does_not_answer(tmp_path):
    publish_version(tmp_path, manifest("v1"), MODEL, [("a", unit(1.0))])
    version = open_version(tmp_path)
    version.units.close()
    (tmp_path / "v1" / store.UNITS).write_bytes(b"no database at all" * 500)
    with pytest.raises(EnvironmentProblem, match="the file of units cannot be read"):
        open_version(tmp_path).units.get(["a"])
    with pytest.raises(sqlite3.ProgrammingError):
        version.units._connection.execute("SELECT 1")  # closed


def test_a_redis_that_is_down_is_asked_again_only_after_a_pause(monkeypatch):
    class Down:
        calls = 0

        def hmget(self, *_):
            Down.calls += 1
            raise ConnectionError

    now = [100.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    units = RedisUnits("redis://127.0.0.1:1", "key", Down())
    for moment, calls in ((100.0, 1), (100.5, 1), (101.1, 2)):
        now[0] = moment
        with pytest.raises(EnvironmentProblem, match="Redis d"):
            units.get(["a"])
        assert Down.calls == calls


def test_one_publishes_to_a_folder_at_a_time_and_a_killed_one_holds_nobody_up(tmp_path):
    folder = tmp_path / "serving"
    code = f"""
import sys
from pathlib import Path
from uplift_spark.serving.store import publishing
with publishing(Path({str(folder)!r})):
    print("mine", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "mine\n"
        says = r"another `uplift publish` publishes to .*serving: wait until it is done"
        with pytest.raises(ConflictError, match=says), publishing(folder):
            pass
    finally:
        other.kill()
        other.wait()
    with publishing(folder), pytest.raises(ConflictError), publishing(folder):
        pass
    with publishing(folder):  # and afterwards it is free
        assert publish_version(folder, manifest("v1"), MODEL, [("a", unit(1.0))]).written == 1
    (tmp_path / "file").write_text("")
    no_folder = pytest.raises(EnvironmentProblem, match="cannot be written: Not a directory")
    with no_folder, publishing(tmp_path / "file" / "serving"):
        pass
