"""The online store: published versions of a campaign's units and model, switched at one stroke.

A version is a folder below the campaign's serving folder:

    CURRENT                    name of the version that is served
    <version>/manifest.json    what the version holds and was made from
    <version>/model.uplift     the model's file, whose SHA-256 stands in the manifest
    <version>/challenger.uplift  the challenger's, while there is one: it answers for its slice, or beside the model
    <version>/units.sqlite     one row per unit; with Redis the units lie in the hash uplift:<campaign>:<version>

A version never changes once it is whole. `publish_version` makes the next one beside it and renames CURRENT, so that
readers see the units, the model and the policy of one version, never a mixture. Versions before it are removed in the
same run: whoever was taken out, by an erasure or a withdrawn consent, is in no file any more. Redis forgets them within
a minute: until a worker turns to the new version, it answers from the one before.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem
from uplift_spark.roles import checked_name

CURRENT, MANIFEST, MODEL, UNITS = "CURRENT", "manifest.json", "model.uplift", "units.sqlite"
CHALLENGER_MODEL = "challenger.uplift"
LOG_FILE = "decisions.sqlite"
STORE_FORMAT = 1
_CHUNK = 1000  # units that go to Redis at once
_WHOLE = ""  # field of a hash in Redis with the number of its units, written last; no id is blank
_GRACE = 60  # seconds that Redis keeps the version before
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of volumes of a cloud: their jobs run one at a time


@dataclass(frozen=True)
class StoredUnit:
    """What is kept of a unit.

    features  values in the order of the manifest's features, None where not known
    at        microseconds since 1970 (UTC) at which the features held
    effects   [uplift, standard error, low support] of each treated level by the last batch run; None: not scored
    decision  [level, reason] of the last plan; None: there is no plan
    """

    features: tuple[float | str | None, ...]
    at: int
    effects: tuple[tuple[float | None, float | None, bool], ...] | None = None
    decision: tuple[str, str] | None = None

    def to_json(self) -> str:
        """The unit as text; numbers keep all their bits."""
        body = {"f": self.features, "t": self.at, "e": self.effects, "d": self.decision}
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> StoredUnit:
        """The inverse of `to_json`."""
        raw = json.loads(text)
        effects = None if raw["e"] is None else tuple((u, se, low) for u, se, low in raw["e"])
        return cls(tuple(raw["f"]), raw["t"], effects, None if raw["d"] is None else tuple(raw["d"]))


@dataclass(frozen=True)
class Manifest:
    """What a version holds, and what it was made from.

    version        its name, the publish run's id
    features       (name, number or text) of each feature, in the model's order
    levels         of the treatment, control first
    model          name, version and SHA-256 of the file
    averages       {level: [mean uplift, error of one unit's about it]} over the units
    barred         reasons of the plan with which a unit gets nothing, not even at random
    policy         value of the outcome and costs, prices of the limits, whether there are rules that bar units, consent
    spend          (price of money, mean cost of a unit that is decided by it), prices rising; empty where costs differ
                   by unit, or a limit is not of money
    challenger     name, version and SHA-256 of the version on trial, salt and share of its slice; with share 0 it only
                   decides beside the model and never answers; None: there is none
    inputs         versions of tables and identities of runs; the same inputs make the same version
    held_back      {why: units that may not be contacted, and are not in the version}
    units          number of units
    redis          whether they lie in Redis
    units_sha256   SHA-256 of their file; empty with Redis
    published_at   microseconds since 1970, UTC
    """

    campaign: str
    version: str
    outcome: str
    features: tuple[tuple[str, str], ...]
    levels: tuple[str, ...]
    model: Mapping[str, Any]
    averages: Mapping[str, tuple[float, float]]
    barred: tuple[str, ...]
    policy: Mapping[str, Any]
    inputs: Mapping[str, Any]
    held_back: Mapping[str, int] = field(default_factory=dict)
    units: int = 0
    redis: bool = False
    units_sha256: str = ""
    published_at: int = 0
    spend: tuple[tuple[float, float], ...] = ()
    challenger: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the features' names, kinds and order, and of the levels."""
        return hashlib.sha256(json.dumps([self.features, self.levels]).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The manifest as text."""
        facts = {"format": STORE_FORMAT, "fingerprint": self.fingerprint, **asdict(self)}
        return json.dumps(facts, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`. Raises DataError for another format, or features that were changed."""
        raw = json.loads(text)
        if raw.pop("format", None) != STORE_FORMAT:
            raise DataError(f"the published version has another format than {STORE_FORMAT}: run `uplift publish` again")
        fingerprint = raw.pop("fingerprint", None)
        raw["features"] = tuple((name, kind) for name, kind in raw["features"])
        raw["averages"] = {level: (mean, error) for level, (mean, error) in raw["averages"].items()}
        raw["spend"] = tuple((price, cost) for price, cost in raw.get("spend", ()))
        manifest = cls(**{**raw, "levels": tuple(raw["levels"]), "barred": tuple(raw["barred"])})
        if manifest.fingerprint != fingerprint:
            raise DataError("the published version's features are not those of its fingerprint: run `uplift publish`")
        return manifest


# --------------------------------------------------------------------------------------------------------------------
# Where the units of one version lie.


class UnitStore(Protocol):
    """Units of a version, by id."""

    def get(self, units: Sequence[str]) -> dict[str, StoredUnit]:
        """Those of the units that are there. Raises EnvironmentProblem when the store does not answer."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class SqliteUnits:
    """Units in a file that never changes: opened for reading, without locks."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(
            f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )

    def get(self, units: Sequence[str]) -> dict[str, StoredUnit]:
        """See `UnitStore`."""
        try:
            known = {}
            for unit in units:
                row = self._connection.execute("SELECT body FROM unit WHERE unit_id = ?", (unit,)).fetchone()
                if row is not None:
                    known[unit] = StoredUnit.from_json(row[0])
            return known
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise EnvironmentProblem(f"the file of units cannot be read: {error}") from error

    def close(self) -> None:
        """See `UnitStore`."""
        self._connection.close()


class RedisUnits:
    """Units in a Redis hash. A Redis that did not answer is left alone for a second: requests do not wait for it."""

    WAIT, PAUSE = 0.1, 1.0  # seconds

    def __init__(self, url: str, key: str, client: Any = None) -> None:
        self._client = redis_client(url, self.WAIT) if client is None else client
        self._key, self._down_until = key, 0.0

    def get(self, units: Sequence[str]) -> dict[str, StoredUnit]:
        """See `UnitStore`."""
        if time.monotonic() < self._down_until:
            raise EnvironmentProblem("Redis did not answer a moment ago")
        try:
            *texts, whole = self._client.hmget(self._key, [*units, _WHOLE])
        except Exception as error:
            self._down_until = time.monotonic() + self.PAUSE
            raise EnvironmentProblem(f"Redis does not answer: {type(error).__name__}") from error
        if whole is None:
            raise EnvironmentProblem("the units are gone from Redis: run `uplift publish` again")
        try:
            pairs = zip(units, texts, strict=True)
            return {unit: StoredUnit.from_json(text) for unit, text in pairs if text is not None}
        except (ValueError, KeyError, TypeError) as error:
            raise EnvironmentProblem("Redis holds something else in place of units") from error

    def close(self) -> None:
        """See `UnitStore`."""
        self._client.close()


def redis_client(url: str, timeout: float | None = None) -> Any:
    """A client of the Redis at `url`. Raises EnvironmentProblem where the package redis is not installed."""
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise EnvironmentProblem(
            "serving.redis needs the package redis: pip install 'uplift-spark[serving]'"
        ) from error
    return Redis.from_url(
        url, decode_responses=True, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


def unit_key(campaign: str, version: str) -> str:
    """Redis key of the hash with a version's units."""
    return f"uplift:{campaign}:{version}"


# --------------------------------------------------------------------------------------------------------------------
# Publishing.


@dataclass(frozen=True)
class Published:
    """What a publish run did: units written because they are new or changed, left as they were, and removed."""

    version: str
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: bool = False


def serving_folder(config: Config) -> Path:
    """The campaign's serving folder: `serving.folder`, or `serving/<campaign>` in the lakehouse's folder.

    Raises ConfigError for a lakehouse without a folder on this machine that does not name one.
    """
    if config.serving.folder is not None:
        return Path(config.serving.folder)
    house = config.lakehouse
    if house.catalog is not None or "://" in house.path:
        where = house.catalog or house.path
        raise ConfigError(f"lakehouse {where} is no folder of this machine: name one in serving.folder")
    return Path(house.path) / "serving" / config.campaign


def check_plain_ids(config: Config) -> None:
    """Refuse a campaign whose tables hold pseudonyms: callers send plain ids. Raises ConfigError."""
    if config.pseudonyms is not None:
        raise ConfigError(
            f"campaign {config.campaign} has pseudonyms in place of unit ids, which the service cannot find by the ids "
            "that callers send: publish and serve a campaign without the section pseudonyms"
        )


def decision_log_file(config: Config) -> Path:
    """File of the campaign's log of decisions: `serving.log`, or decisions.sqlite in its serving folder."""
    log = config.serving.log
    return serving_folder(config) / LOG_FILE if log is None else Path(log)


def current_version(folder: Path) -> str | None:
    """Name of the version that is served; None before the first."""
    file = folder / CURRENT
    return (file.read_text(errors="replace").strip() or None) if file.exists() else None


def is_published(config: Config) -> bool:
    """Whether the campaign has an online store: something was published on this machine or a volume it sees."""
    try:
        return current_version(serving_folder(config)) is not None
    except ConfigError:  # the lakehouse is no folder here, and serving.folder names none
        return False


def read_manifest(folder: Path, version: str) -> Manifest:
    """The manifest of a version. Raises DataError when it is not there or no manifest."""
    try:
        return Manifest.from_json((folder / version / MANIFEST).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"version {version} in {folder} cannot be read: run `uplift publish` again ({error})"
        ) from error


@contextmanager
def publishing(folder: Path) -> Iterator[None]:
    """Be the only one who publishes to a folder, from reading what is to be published to the switch.

    The lock is the kernel's: of a process that was killed nothing is left of it.

    Args:
        folder: The campaign's serving folder; made when it is not there.

    Raises:
        ConflictError: Another process publishes to it.
        EnvironmentProblem: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".publishing").open("w")
    except OSError as error:
        raise EnvironmentProblem(f"serving folder {folder} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another `uplift publish` publishes to {folder}: wait until it is done, then run it again"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise EnvironmentProblem(f"serving folder {folder} cannot be locked: {error.strerror}") from error
        yield


def published_already(folder: Path, manifest: Manifest, redis: Any = None) -> str | None:
    """Find out whether a version is served already; then what a killed run left beside it is removed.

    Args:
        folder: The campaign's serving folder.
        manifest: What the version would be; what its units tell does not count.
        redis: Client of the Redis that keeps the units; None: a file does.

    Returns:
        Name of the served version if it was made from the same inputs and nothing of it is damaged or gone, else None.

    Raises:
        EnvironmentProblem: Redis does not answer.
    """
    name = current_version(folder)
    served = _readable(folder, name)
    if name is None or served is None or not _same(served, manifest, redis):
        return None
    if not _intact(folder / name, served, redis):
        return None
    _remove_others(folder, name, served.campaign, redis)
    return name


def publish_version(
    folder: Path,
    manifest: Manifest,
    model: bytes,
    units: Iterable[tuple[str, StoredUnit]],
    redis: Any = None,
    challenger: bytes | None = None,
) -> Published:
    """Make a version and serve it, once: with the inputs that are served already nothing happens.

    A unit whose row did not change is not written again. A run that is killed leaves the version before it in place,
    and leftovers that the next run removes. A served version that is damaged is made anew, under another name.

    Args:
        folder: The campaign's serving folder.
        manifest: What the version is; number of units, place and time are filled in here.
        model: The model's file.
        units: (id, unit), each id once.
        redis: Client of the Redis that keeps the units; None: a file does.
        challenger: Its model's file, where the manifest has one.

    Returns:
        What the run did.

    Raises:
        DataError: An id is there twice, or a unit does not have the manifest's features.
        ConflictError: The version that is served has this name, and was made from other inputs.
        EnvironmentProblem: The folder or Redis cannot be written.
    """
    version, before = checked_name(manifest.version, "version"), current_version(folder)
    if known := published_already(folder, manifest, redis):
        return Published(known, skipped=True)
    if version == before:
        served = _readable(folder, before)
        if served is not None and not _same(served, manifest, redis):
            raise ConflictError(f"version {version} was published with other inputs before: choose a new --run-id")
        version += "_again"  # workers look for another name
    partial = folder / f".{version}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        rows = _checked_units(units, manifest)
        if redis is None:
            result = _write_sqlite(_basis(folder, before), partial, rows, version)
        else:
            result = _write_redis(redis, manifest.campaign, before, version, rows)
        manifest = replace(
            manifest, version=version, units=result.written + result.unchanged, redis=redis is not None,
            units_sha256=_sha256(partial / UNITS) or "", published_at=time.time_ns() // 1000,
        )  # fmt: skip
        _write_file(partial / MODEL, model)
        if challenger is not None:
            _write_file(partial / CHALLENGER_MODEL, challenger)
        _write_file(partial / MANIFEST, manifest.to_json().encode())
        _switch(folder, partial, version)
    except OSError as error:
        raise EnvironmentProblem(f"serving folder {folder} cannot be written: {error.strerror or error}") from error
    _remove_others(folder, version, manifest.campaign, redis)
    return result


def _switch(folder: Path, partial: Path, version: str) -> None:
    """Give a version that is whole its name, and serve it."""
    if (folder / version).exists():  # of a run that was killed before the switch
        shutil.rmtree(folder / version)
    os.replace(partial, folder / version)
    _write_file(folder / f".{CURRENT}.partial", version.encode())
    os.replace(folder / f".{CURRENT}.partial", folder / CURRENT)
    _sync_folder(folder)


def _readable(folder: Path, version: str | None) -> Manifest | None:
    try:
        return None if version is None else read_manifest(folder, version)
    except DataError:
        return None


def _same(served: Manifest, manifest: Manifest, redis: Any) -> bool:
    facts = ("inputs", "fingerprint", "policy")
    alike = all(_plain(getattr(served, fact)) == _plain(getattr(manifest, fact)) for fact in facts)
    return alike and served.redis == (redis is not None)


def _intact(home: Path, served: Manifest, redis: Any) -> bool:
    """Whether model and units are those that were published; units in Redis are counted."""
    if _sha256(home / MODEL) != served.model["sha256"]:
        return False
    if served.challenger is not None and _sha256(home / CHALLENGER_MODEL) != served.challenger["sha256"]:
        return False
    if redis is None:
        return _sha256(home / UNITS) == served.units_sha256
    key = unit_key(served.campaign, home.name)
    with _of_redis():
        return bool(redis.hget(key, _WHOLE) == str(redis.hlen(key) - 1))


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _checked_units(units: Iterable[tuple[str, StoredUnit]], manifest: Manifest) -> Iterator[tuple[str, str]]:
    width, treated = len(manifest.features), len(manifest.levels) - 1
    for unit, stored in units:
        if len(stored.features) != width or (stored.effects is not None and len(stored.effects) != treated):
            raise DataError(
                f"a unit has {len(stored.features)} features, the model {width}: score with the model that is published"
            )
        yield unit, stored.to_json()


def _basis(folder: Path, before: str | None) -> Path | None:
    """The file of units that a version goes on from; None where there is none, or it is damaged."""
    served = _readable(folder, before)
    if before is None or served is None or served.redis:
        return None
    file = folder / before / UNITS
    return file if _sha256(file) == served.units_sha256 else None


def _write_sqlite(basis: Path | None, partial: Path, rows: Iterable[tuple[str, str]], version: str) -> Published:
    # A database is written here and there in its file, which volumes of a cloud refuse: it is made on a local disk.
    with tempfile.TemporaryDirectory(prefix="uplift-publish-") as local:
        file = Path(local) / UNITS
        if basis is not None:
            shutil.copyfile(basis, file)
        counts = _change_units(file, rows)
        shutil.copyfile(file, partial / UNITS)
    with (partial / UNITS).open("rb+") as handle:
        os.fsync(handle.fileno())
    return Published(version, *counts)


def _change_units(file: Path, rows: Iterable[tuple[str, str]]) -> tuple[int, int, int]:
    """Make the rows a database's only ones; units written, left as they were, and removed."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")  # the file is nobody's before it is whole
        db.execute("PRAGMA secure_delete = ON")  # a removed unit's bytes are overwritten
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE IF NOT EXISTS unit (unit_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TEMP TABLE present (unit_id TEXT PRIMARY KEY) WITHOUT ROWID")
        db.execute("BEGIN")
        written = unchanged = 0
        for unit, body in rows:
            if not db.execute("INSERT OR IGNORE INTO present VALUES (?)", (unit,)).rowcount:
                raise DataError("the units to publish have an id twice: keep one row per unit")
            known = db.execute("SELECT body FROM unit WHERE unit_id = ?", (unit,)).fetchone()
            if known is not None and known[0] == body:
                unchanged += 1
                continue
            db.execute("INSERT OR REPLACE INTO unit VALUES (?, ?)", (unit, body))
            written += 1
        gone = db.execute("DELETE FROM unit WHERE unit_id NOT IN (SELECT unit_id FROM present)").rowcount
        db.execute("COMMIT")
    return written, unchanged, gone


def _write_redis(
    redis: Any, campaign: str, before: str | None, version: str, rows: Iterable[tuple[str, str]]
) -> Published:
    key = unit_key(campaign, version)
    with _of_redis():
        redis.delete(key)
        if before is not None:
            redis.copy(unit_key(campaign, before), key)
            redis.hdel(key, _WHOLE)
        present: set[str] = set()
        written = unchanged = 0
        rows = iter(rows)
        while chunk := dict(part := list(islice(rows, _CHUNK))):
            if len(chunk) < len(part) or not present.isdisjoint(chunk):
                raise DataError("the units to publish have an id twice: keep one row per unit")
            present.update(chunk)
            known = redis.hmget(key, list(chunk))
            new = {unit: body for (unit, body), old in zip(chunk.items(), known, strict=True) if old != body}
            if new:
                redis.hset(key, mapping=new)
            written, unchanged = written + len(new), unchanged + len(chunk) - len(new)
        gone = [unit for unit, _ in redis.hscan_iter(key) if unit not in present]
        for low in range(0, len(gone), _CHUNK):
            redis.hdel(key, *gone[low : low + _CHUNK])
        redis.hset(key, _WHOLE, str(len(present)))
    return Published(version, written, unchanged, len(gone))


@contextmanager
def _of_redis() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise EnvironmentProblem(f"Redis does not answer: {error}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "redis":
            raise
        raise EnvironmentProblem(f"Redis does not answer as it should: {error}") from error


def _write_file(file: Path, content: bytes) -> None:
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_others(folder: Path, version: str, campaign: str, redis: Any) -> None:
    for path in folder.iterdir():
        ours = path.name.endswith(".partial") or any((path / file).exists() for file in (MANIFEST, MODEL, UNITS))
        if path.is_dir() and path.name != version and ours:
            shutil.rmtree(path, ignore_errors=True)
    if redis is None:
        return
    with _of_redis():
        for key in redis.scan_iter(f"{unit_key(campaign, '*')}"):
            # Workers answer from the version before for a second or two; a later run does not keep it for longer.
            if key != unit_key(campaign, version) and redis.ttl(key) < 0:
                redis.expire(key, _GRACE)


# --------------------------------------------------------------------------------------------------------------------
# Reading.


@dataclass(frozen=True)
class ServedVersion:
    """A version that is open: its manifest, the bytes of its verified models and its units."""

    manifest: Manifest
    model: bytes
    units: UnitStore
    challenger: bytes | None = None


def open_version(folder: Path, redis_url: str | None = None) -> ServedVersion:
    """Open the version that CURRENT names.

    Raises:
        DataError: Nothing is published, or a file is damaged: the model is not that of the manifest.
        ConfigError: The units lie in a Redis that `serving.redis` does not name.
    """
    version = current_version(folder)
    if version is None:
        raise DataError(f"nothing is published in {folder}: run `uplift publish` first")
    manifest = read_manifest(folder, version)
    if manifest.redis and redis_url is None:
        raise ConfigError("the units were published to Redis: name it in serving.redis")
    model = _model(folder / version / MODEL, manifest.model)
    challenger = None
    if manifest.challenger is not None:
        challenger = _model(folder / version / CHALLENGER_MODEL, manifest.challenger)
    units: UnitStore
    if redis_url is not None and manifest.redis:
        units = RedisUnits(redis_url, unit_key(manifest.campaign, version))
    else:
        if not (folder / version / UNITS).exists():
            raise DataError(f"the units of version {version} are gone: run `uplift publish` again")
        units = SqliteUnits(folder / version / UNITS)
    return ServedVersion(manifest, model, units, challenger)


def _model(file: Path, facts: Mapping[str, Any]) -> bytes:
    """A model's file, which must be the one that was published."""
    version = file.parent.name
    try:
        model = file.read_bytes()
    except OSError as error:
        raise DataError(f"the model of version {version} cannot be read: run `uplift publish` again") from error
    if hashlib.sha256(model).hexdigest() != facts["sha256"]:
        raise DataError(f"the model of version {version} is not the one that was published: run `uplift publish` again")
    return model
