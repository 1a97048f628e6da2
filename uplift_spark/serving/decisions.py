"""Decisions in life: the level a unit gets now, how likely it was to get it, and the log that forgets none.

Holdout and exploration are dealt by the hashes of `experiments.assignment`, so a unit's part in them is the same in
every process and after every restart, and `assignment.assign` gives the same arms in Python and in SQL.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem
from uplift_spark.experiments.assignment import GRID, Experiment, ProgrammeHoldout, uniform
from uplift_spark.experiments.canary import CHALLENGER_SLICE, canary_design
from uplift_spark.forest.forest import Model
from uplift_spark.roles import plain_id
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.guard import REQUEST_LOG
from uplift_spark.serving.pacing import SLOTS, DayCounts, Spend
from uplift_spark.serving.reasons import (
    BEST_NOW,
    BEST_TODAY,
    EXPLORATION,
    HELD_OUT,
    NO_PLAN,
    NONE_TODAY,
    NONE_WORTH,
    NOT_PUBLISHED,
    NOT_READ,
    OFF,
    SAMPLED,
)
from uplift_spark.serving.scorer import LevelEffect, Scorer
from uplift_spark.serving.store import Manifest, StoredUnit
from uplift_spark.stats.offpolicy import probability_best


@dataclass(frozen=True)
class Decision:
    """What a unit gets.

    level       treatment level, the control for nothing
    reason      why
    propensity  probability by design of this level for this unit, given what was known of it; None where no design
                chose the level
    explored    whether the level is random
    overall     probability by design of this level before anything was dealt, the holdout too; None where the decision
                is no part of the design: whoever has such a decision is not assigned by it
    """

    level: str
    reason: str
    propensity: float | None
    explored: bool = False
    overall: float | None = None


class DecisionPolicy:
    """The campaign's policy as it is published, with the shares that `serving` sets aside for learning.

    Args:
        manifest: The version that is served.
        conf: Section `serving` of the configuration.

    Raises:
        ConfigError: Levels are to be sampled, and the version has no price to compare them by.
    """

    def __init__(self, manifest: Manifest, conf: Serving) -> None:
        self.manifest, self.conf = manifest, conf
        if conf.thompson and "price" not in manifest.policy:
            raise ConfigError(
                "serving.thompson needs levels whose cost is the same for all units, and limits that are all of money: "
                "set economics and policy so and run `uplift publish` again, or set serving.thompson to false"
            )
        self._barred = frozenset(manifest.barred)

    @property
    def control(self) -> str:
        """The level that means nothing is done."""
        return self.manifest.levels[0]

    @cached_property
    def experiment(self) -> Experiment | None:
        """The design of holdout and exploration, as `assignment.assign` takes it; None without exploration."""
        if not self.conf.exploration:
            return None
        levels = self.manifest.levels
        programme = ProgrammeHoldout(self._holdout_salt, self.conf.holdout) if self.conf.holdout else None
        arms = dict.fromkeys(levels, 1.0 / len(levels))
        return Experiment(self._salt, arms, exploration=self.conf.exploration, programme=programme)

    @property
    def _salt(self) -> str:
        return f"serving-{self.manifest.campaign}"

    @property
    def _holdout_salt(self) -> str:
        return f"serving-{self.manifest.campaign}-holdout"

    def decide(
        self,
        unit: str,
        stored: StoredUnit | None,
        fresh: Sequence[LevelEffect] | None,
        answered: bool = True,
        price: float | None = None,
    ) -> Decision:
        """Decide what a unit gets now.

        Args:
            unit: Its id.
            stored: What is published of it. None: it is not published, so that nobody knows whether it may be
                contacted, and it gets the control.
            fresh: Effects by features that came with the request; None: the plan's decision stands.
            answered: Whether the store answered; where it did not, nobody knows what is published.
            price: Of money at this moment, where a day's budget is paced; None: the plan's.

        Returns:
            The decision.
        """
        if not self.conf.enabled:
            return Decision(self.control, OFF, 1.0)
        if not answered:
            return Decision(self.control, NOT_READ, None)
        if stored is None:
            return Decision(self.control, NOT_PUBLISHED, 1.0)
        # Rules of the policy are applied when it plans: nobody knows whether they bar a unit without a plan.
        if stored.decision is None and self.manifest.policy.get("rules", True):
            return Decision(self.control, NO_PLAN, 1.0)
        if stored.decision is not None and stored.decision[1] in self._barred:
            return Decision(self.control, stored.decision[1], 1.0)
        level, reason = self.by_policy(stored, fresh, price)
        sampled = self._sampled(stored, fresh) if self.conf.thompson else None
        law = self._law(level, sampled)
        if self.conf.holdout and _draw(unit, self._holdout_salt, "holdout") < round(self.conf.holdout * GRID):
            return Decision(self.control, HELD_OUT, 1.0, overall=self._overall(self.control, law))
        level, reason, random = self._dealt(unit, level, reason, sampled)
        return Decision(level, reason, law[level], random, self._overall(level, law))

    def _law(self, by_policy: str, sampled: np.ndarray | None) -> dict[str, float]:
        """Probability of each level for a unit that is not held out."""
        levels, share = self.manifest.levels, self.conf.exploration
        rest = [float(level == by_policy) for level in levels] if sampled is None else sampled.tolist()
        return {level: share / len(levels) + (1.0 - share) * one for level, one in zip(levels, rest, strict=True)}

    def _overall(self, level: str, law: Mapping[str, float]) -> float:
        """Probability that holdout, exploration and policy together give a level."""
        held = self.conf.holdout
        return law[level] * (1.0 - held) + (held if level == self.control else 0.0)

    def _sampled(self, stored: StoredUnit, fresh: Sequence[LevelEffect] | None) -> np.ndarray | None:
        """How likely each level is the best at the plan's price, by the effects' errors; None without effects.

        Errors of a unit's levels count as independent, and its effects as normal.
        """
        effects, facts = stored_effects(self.manifest, stored) if fresh is None else fresh, self.manifest.policy
        if effects is None:
            return None
        price = float(facts["net"]) + facts["price"]
        gain = np.array([one.uplift * facts["value"] - facts["cost"][one.level] * price for one in effects])
        return probability_best(gain, np.array([one.uplift_se * facts["value"] for one in effects]))

    def by_policy(
        self, stored: StoredUnit, fresh: Sequence[LevelEffect] | None, price: float | None
    ) -> tuple[str, str]:
        """(level, reason) by the policy alone, before holdout and exploration; see `decide`."""
        facts = self.manifest.policy
        if "price" in facts and (fresh is not None or stored.decision is None or price is not None):
            effects = stored_effects(self.manifest, stored) if fresh is None else fresh
            if price is None:
                return self._by_price(effects or (), facts["price"], (BEST_NOW, NONE_WORTH))
            return self._by_price(effects or (), price, (BEST_TODAY, NONE_TODAY))
        if stored.decision is not None:
            return stored.decision
        return self.control, NO_PLAN

    def _by_price(self, effects: Sequence[LevelEffect], price: float, reasons: tuple[str, str]) -> tuple[str, str]:
        """The level whose gain exceeds what it costs, at the price of money, by most; with the reason for it."""
        facts, best = self.manifest.policy, (0.0, self.control, reasons[1])
        for one in effects:
            cost = facts["cost"][one.level]
            net = one.uplift * facts["value"] - cost * (float(facts["net"]) + price)
            if net > best[0]:
                best = (net, one.level, reasons[0])
        return best[1:]

    def _dealt(self, unit: str, level: str, reason: str, sampled: np.ndarray | None) -> tuple[str, str, bool]:
        """(level, reason, whether it is random) of a unit that is not held out, by its hashes."""
        design, arms = self.experiment, self.manifest.levels
        if design is None:
            return level, reason, False
        if _draw(unit, self._salt, "explore") < round(self.conf.exploration * GRID):
            place = np.searchsorted(design.cuts, _draw(unit, self._salt, "arm"), side="right")
            return arms[int(place)], EXPLORATION, True
        if sampled is None:
            return level, reason, False
        place = np.searchsorted(np.cumsum(sampled)[:-1], _draw(unit, self._salt, "thompson") / GRID, side="right")
        return arms[int(place)], SAMPLED, True


class Routing:
    """Which version answers for a unit: the challenger in its slice, the champion elsewhere.

    The slice is that of `uplift canary`, by the same hash: a unit has one version in the plan, in the service, in every
    worker and after every restart.

    Args:
        manifest: The version that is served.
    """

    def __init__(self, manifest: Manifest) -> None:
        trial = manifest.challenger
        self.design = canary_design(trial["salt"], trial["share"]) if trial and trial["share"] else None
        self.shadow = trial is not None and self.design is None
        if self.design is not None:
            self._code = list(self.design.arms).index(CHALLENGER_SLICE)

    def is_challengers(self, unit: str | None) -> bool:
        """Whether the challenger answers for a unit; for whom has no id the champion does."""
        if self.design is None or unit is None:
            return False
        place = np.searchsorted(self.design.cuts, _draw(unit, self.design.salt, "arm"), side="right")
        return int(place) == self._code


def check_challenger(champion: Model, challenger: Model, version: int) -> None:
    """Refuse a challenger that takes what is not published, of which there is one row a unit, or has other levels.

    Args:
        champion: The model in use.
        challenger: The one on trial.
        version: Its number.

    Raises:
        DataError: Their features, kinds of features or levels differ.
    """
    ours, theirs = ({one.name: one.categorical for one in model.bins} for model in (champion, challenger))
    if ours != theirs or champion.levels.names != challenger.levels.names:
        raise DataError(
            f"version {version} on trial has other features or levels than the version in use, of which one row a unit "
            "is published: end its canary with `uplift rollback`, or set serving.shadow to false"
        )


def with_slice(
    units: Iterable[tuple[str, StoredUnit]], manifest: Manifest, challenger: Model
) -> Iterator[tuple[str, StoredUnit]]:
    """Units to publish, with the challenger's effects in its slice.

    Args:
        units: (id, unit) with the champion's effects.
        manifest: Of the version.
        challenger: Its model.

    Yields:
        (id, unit).
    """
    routing, scorer, names = Routing(manifest), Scorer(challenger), [name for name, _ in manifest.features]
    for unit, stored in units:
        if not routing.is_challengers(unit):
            yield unit, stored
            continue
        (effects,) = scorer.effects([scorer.encoder.encode(dict(zip(names, stored.features, strict=True)))])
        scores = tuple((_finite(one.uplift), _finite(one.uplift_se), one.low_support) for one in effects)
        yield unit, replace(stored, effects=scores)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _draw(unit: str, salt: str, what: str) -> int:
    return int(uniform([unit], salt, what)[0])


def stored_effects(manifest: Manifest, stored: StoredUnit) -> tuple[LevelEffect, ...] | None:
    """Batch effects of a published unit; None where it was not scored."""
    if stored.effects is None:
        return None
    nan = float("nan")
    return tuple(
        LevelEffect(level, nan if uplift is None else uplift, nan if error is None else error, low)
        for level, (uplift, error, low) in zip(manifest.levels[1:], stored.effects, strict=True)
    )


# --------------------------------------------------------------------------------------------------------------------
# The log. A decision counts once it is on disk: every batch of entries is one transaction that ends with fsync, before
# any of them is answered. A request key stands in the log once, whichever process writes it, so that a request that is
# repeated gets the answer it got before.

DECISION, DELIVERY, OUTCOME = "decision", "delivery", "outcome"
ASSIGNMENT = "assignment"  # what a decision also is, where it is the unit's first by design


@dataclass(frozen=True)
class LogEntry:
    """An entry of the log.

    kind       decision, delivery or outcome
    key        the request key that makes it unique
    body       its content as JSON values
    spend      what it costs of the day's budget; None: it is not paced
    otherwise  what the log holds in place of `body` where the day's budget is spent
    """

    kind: str
    key: str
    body: Mapping[str, Any]
    spend: Spend | None = None
    otherwise: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Logged:
    """What the log holds under a key: the content, and whether it was written now."""

    body: dict[str, Any]
    new: bool


def is_over(entry: LogEntry, logged: Logged) -> bool:
    """Whether a decision of before is answered again that the unit could not get now: it is off, gone, or barred.

    Args:
        entry: The decision as it would be made now.
        logged: What the log holds under its key.
    """
    now, before = (body["overall_propensity"] for body in (entry.body, logged.body))
    return not logged.new and now is None and before is not None


_MOMENT = pa.timestamp("us", "UTC")
_UNIT_FIELDS = {"number": pa.int64(), "unit_id": pa.string(), "campaign": pa.string()}


def _columns(**fields: pa.DataType) -> pa.Schema:
    return pa.schema({**_UNIT_FIELDS, **fields})


_COLUMNS = {
    DECISION: _columns(
        request_key=pa.string(), treatment=pa.string(), reason=pa.string(), propensity=pa.float64(),
        overall_propensity=pa.float64(), explored=pa.bool_(), assigns=pa.bool_(), model_name=pa.string(),
        model_version=pa.string(), published=pa.string(), degraded=pa.string(), decided_at=_MOMENT, known_at=_MOMENT,
    ),
    ASSIGNMENT: _columns(treatment=pa.string(), propensity=pa.float64(), assigned_at=_MOMENT),
    DELIVERY: _columns(delivery_id=pa.string(), status=pa.string(), delivered_at=_MOMENT, known_at=_MOMENT),
    OUTCOME: _columns(
        outcome=pa.string(), value=pa.float64(), occurred_at=_MOMENT, event_id=pa.string(), known_at=_MOMENT
    ),
}  # fmt: skip
"""{what: columns of its rows}."""

_OTHERS = "SELECT number, body, logged_at, 0 AS assigns FROM entry WHERE kind = ?"
_BY_DESIGN = "json_extract(body, '$.overall_propensity') IS NOT NULL"
_FIRSTS = (
    f"SELECT number, body, logged_at, {_BY_DESIGN} AND row_number() OVER "
    f"(PARTITION BY json_extract(body, '$.unit_id'), {_BY_DESIGN} ORDER BY number) = 1 AS assigns "
    "FROM entry WHERE kind = ?"
)


def _decision_row(body: Mapping[str, Any], logged_at: int, assigns: bool) -> dict[str, Any]:
    decided, model = _time(body["decided_at"]), body["model"]
    same = ("unit_id", "request_key", "reason", "propensity", "overall_propensity", "explored")
    return {
        **{name: body.get(name) for name in same},
        "treatment": body["level"], "assigns": assigns, "model_name": model["name"],
        "model_version": str(model["version"]), "published": model["published"],
        "degraded": ", ".join(body["degraded"]) or None,
        "decided_at": decided, "known_at": max(decided, _EPOCH + timedelta(microseconds=logged_at)),
    }  # fmt: skip


def _assignment_row(body: Mapping[str, Any], logged_at: int, assigns: bool) -> dict[str, Any]:
    facts = {"unit_id": body["unit_id"], "treatment": body["level"], "propensity": body["overall_propensity"]}
    return {**facts, "assigned_at": _time(body["decided_at"])}


def _delivery_row(body: Mapping[str, Any], logged_at: int, assigns: bool) -> dict[str, Any]:
    times = {name: _time(body[name]) for name in ("delivered_at", "known_at")}
    return {**{name: body[name] for name in ("unit_id", "delivery_id", "status")}, **times}


def _outcome_row(body: Mapping[str, Any], logged_at: int, assigns: bool) -> dict[str, Any]:
    times = {name: _time(body[name]) for name in ("occurred_at", "known_at")}
    # Two units may have used one id: labels would take the second one's event for a repetition.
    event = json.dumps([body["unit_id"], body["event_id"]], separators=(",", ":"), ensure_ascii=False)
    return {**{name: body[name] for name in ("unit_id", "outcome", "value")}, **times, "event_id": event}


_ROW_OF = {DECISION: _decision_row, ASSIGNMENT: _assignment_row, DELIVERY: _delivery_row, OUTCOME: _outcome_row}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


_TAKEN = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_AT_ONCE = 200  # rows of one statement: SQLite of old takes 999 parameters


def _values(rows: Sequence[tuple[str | int, ...]]) -> Iterator[tuple[str, list[str | int]]]:
    """Rows as parameters of few statements, (VALUES clause, parameters) each."""
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        marks = "(" + ", ".join("?" * len(some[0])) + ")"
        yield "VALUES " + ", ".join([marks] * len(some)), [value for row in some for value in row]


def _known(db: sqlite3.Connection, entries: Sequence[LogEntry]) -> dict[tuple[str, str], str]:
    """What the log holds under the entries' keys."""
    result: dict[tuple[str, str], str] = {}
    for values, parameters in _values([(one.kind, one.key) for one in entries]):
        # Written as a join in this order, as SQLite goes through the whole log for (kind, key) IN (VALUES ...).
        query = (
            f"WITH given (kind, key) AS ({values}) SELECT kind, key, body FROM given CROSS JOIN entry USING (kind, key)"
        )
        result |= {(kind, key): body for kind, key, body in db.execute(query, parameters)}
    return result


class _Paced:
    """The day's budget while a batch of entries is written, and what they add to it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._spent: dict[str, int] = {}
        self._added: dict[tuple[str, int], list[int]] = {}

    def fits(self, spend: Spend) -> bool:
        """Whether the day's budget pays for the dearest level still."""
        if spend.day not in self._spent:
            query = "SELECT coalesce(sum(spent), 0) FROM pace WHERE day = ?"
            (self._spent[spend.day],) = self._db.execute(query, (spend.day,)).fetchone()
        return self._spent[spend.day] + spend.most <= spend.budget

    def count(self, spend: Spend, refused: bool) -> None:
        """Add a request, and its money where it was not refused."""
        added = self._added.setdefault((spend.day, spend.slot), [0, 0, 0])
        added[0] += 1
        if not refused:
            added[1] += spend.foreseen
            added[2] += spend.cost
            self._spent[spend.day] += spend.cost

    def write(self) -> None:
        """Write down what was added."""
        for values, parameters in _values([(*place, *added) for place, added in self._added.items()]):
            self._db.execute(
                f"INSERT INTO pace {values} ON CONFLICT (day, slot) DO UPDATE SET requests = requests + "
                "excluded.requests, foreseen = foreseen + excluded.foreseen, spent = spent + excluded.spent",
                parameters,
            )


def _once_free(db: sqlite3.Connection, statement: str, wait: float) -> None:
    """Run a statement that the others who use the file may keep waiting.

    SQLite itself waits longer from try to try, up to a tenth of a second: of two workers that write without a break one
    would wait for seconds. Of several that open a new file at once it refuses all but one, without waiting at all.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            db.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline or error.sqlite_errorcode & 0xFF not in _TAKEN:
                raise
            time.sleep(0.0005)


def _truncated(db: sqlite3.Connection, wait: float) -> bool:
    """Empty what SQLite writes ahead of a file; whether others kept it for too long."""
    deadline = time.monotonic() + wait
    while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.0005)
    return False


class DecisionLog:
    """An append-only log in one SQLite file, shared by all workers.

    Args:
        file: The file; made, readable by its owner alone, where it is not there.

    Raises:
        EnvironmentProblem: The file cannot be opened.
    """

    WAIT = 2.0  # seconds that a worker waits for the others

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        with closing(self._open()):
            pass

    @staticmethod
    def is_at(file: Path) -> bool:
        """Whether a file is a log; it is not changed."""
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
                return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone() is not None
        except sqlite3.Error:
            return False

    def _open(self) -> sqlite3.Connection:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Never opened but to be made: whoever closes a file lets go of all locks that SQLite has on it in this
            # process, and another process then removes what is being written. SQLite's other files get the same rights.
            with suppress(FileExistsError):
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            db = sqlite3.connect(self._file, timeout=self.WAIT, isolation_level=None, check_same_thread=False)
            _once_free(db, "PRAGMA journal_mode = WAL", self.WAIT)
            db.execute("PRAGMA synchronous = FULL")  # each commit waits until it is on disk
            db.execute(
                "CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
                "key TEXT NOT NULL, body TEXT NOT NULL, logged_at INTEGER NOT NULL, UNIQUE (kind, key))"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS pace (day TEXT NOT NULL, slot INTEGER NOT NULL, requests INTEGER NOT NULL, "
                "foreseen INTEGER NOT NULL, spent INTEGER NOT NULL, PRIMARY KEY (day, slot)) WITHOUT ROWID"
            )
            db.execute("CREATE TABLE IF NOT EXISTS log (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)")
            if db.execute("SELECT id FROM log").fetchone() is None:  # of two workers the first names it
                db.execute("INSERT OR IGNORE INTO log VALUES (1, lower(hex(randomblob(8))))")
            return db
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentProblem(f"the log of decisions {self._file} cannot be written: {error}") from error

    def append(self, entries: Sequence[LogEntry]) -> list[Logged]:
        """Write entries, and wait until they are on disk.

        Args:
            entries: New ones, or some that were written before.

        Returns:
            For each what the log holds under its key: the entry itself, or the first with this key.

        Raises:
            ConflictError: A key was used for another unit before: none of the entries is logged.
            EnvironmentProblem: The disk is full, or the file cannot be written: none of the entries is logged.
        """
        try:
            if self._connection is not None and self._place() != self._opened:
                REQUEST_LOG.error(json.dumps({"event": "log begun anew", "reason": "its file was removed or replaced"}))
                self.close()  # what is written into a file without a name is lost
            if self._connection is None:
                self._connection = self._open()
                self._opened = self._place()
                self._connection.execute("PRAGMA busy_timeout = 0")
            return self._append(self._connection, entries)
        except sqlite3.Error as error:
            self.close()  # a connection that failed may hold a transaction
            raise EnvironmentProblem(f"the log of decisions {self._file} cannot be written: {error}") from error

    def _place(self) -> tuple[int, int] | None:
        """Which file has the log's name; None where none has."""
        try:
            state = self._file.stat()
        except OSError:
            return None
        return state.st_dev, state.st_ino

    def _append(self, db: sqlite3.Connection, entries: Sequence[LogEntry]) -> list[Logged]:
        # Few statements for a whole batch: after each one this thread waits until the service's thread lets it run.
        _once_free(db, "BEGIN IMMEDIATE", self.WAIT)
        try:
            known, paced, now = _known(db, entries), _Paced(db), time.time_ns() // 1000
            result, new = list[Logged](), list[tuple[str, str, str, int]]()
            for one in entries:
                body = known.get((one.kind, one.key))
                first = body is None
                if body is None:
                    refused = one.spend is not None and not paced.fits(one.spend)
                    said = one.otherwise if refused and one.otherwise is not None else one.body
                    body = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
                    known[one.kind, one.key] = body
                    new.append((one.kind, one.key, body, now))
                    if one.spend is not None:
                        paced.count(one.spend, refused)
                result.append(Logged(json.loads(body), first))
                if result[-1].body.get("unit_id") != one.body.get("unit_id"):
                    raise ConflictError(
                        f"request key {one.key!r} was used for another unit before: give each request a key of its own"
                    )
            for values, parameters in _values(new):
                db.execute(f"INSERT INTO entry (kind, key, body, logged_at) {values}", parameters)
            paced.write()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def spending(self, until: str, days: int = 8) -> dict[str, DayCounts]:
        """Requests and money of the newest days on which a budget was paced, by quarters of an hour.

        Args:
            until: The last of them, YYYY-MM-DD: a clock that was ahead once may have left days to come.
            days: At most so many.

        Returns:
            {day as YYYY-MM-DD: counts}.

        Raises:
            EnvironmentProblem: The file cannot be read.
        """
        newest = "SELECT DISTINCT day FROM pace WHERE day <= ? ORDER BY day DESC LIMIT ?"
        query = f"SELECT day, slot, requests, foreseen, spent FROM pace WHERE day IN ({newest})"
        result: dict[str, DayCounts] = {}
        try:
            with closing(self._open()) as db:
                rows = db.execute(query, (until, days)).fetchall()
        except sqlite3.Error as error:
            raise EnvironmentProblem(f"the log of decisions {self._file} cannot be read: {error}") from error
        for day, slot, *counts in rows:
            of_day = result.setdefault(day, (np.zeros(SLOTS), np.zeros(SLOTS), np.zeros(SLOTS)))
            for array, count in zip(of_day, counts, strict=True):
                array[slot] = count
        return result

    def entries(self, kind: str, after: int = 0, limit: int = 1000) -> list[tuple[int, dict[str, Any]]]:
        """Entries of a kind in their order, (number, content) each, from the first behind number `after`."""
        query = "SELECT number, body FROM entry WHERE kind = ? AND number > ? ORDER BY number LIMIT ?"
        with closing(self._open()) as db:
            return [(number, json.loads(body)) for number, body in db.execute(query, (kind, after, limit))]

    def numbering(self) -> tuple[str, int]:
        """The log's id, 16 hexadecimal digits that no other log has, and the number of the last entry it ever had."""
        with closing(self._open()) as db:
            (name,) = db.execute("SELECT id FROM log").fetchone()
            last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
        return name, 0 if last is None else last[0]

    def unit(self, number: int) -> str | None:
        """Whom an entry is about, without blanks around; None where the entry is gone."""
        query = "SELECT json_extract(body, '$.unit_id') FROM entry WHERE number = ?"
        with closing(self._open()) as db:
            row = db.execute(query, (number,)).fetchone()
        return None if row is None else plain_id(row[0])

    def rows(self, what: str, campaign: str, after: int = 0, limit: int = 100_000) -> pa.Table:
        """Entries as rows of a raw table.

        Args:
            what: decision, delivery or outcome: those entries; assignment: of each unit the first decision by the
                campaign's design.
            campaign: That the rows are of.
            after: Number behind which they begin.
            limit: Most rows.

        Returns:
            Columns of bronze.<what>, and `number`, by which the rows are sorted.
        """
        kind, columns = (DECISION if what == ASSIGNMENT else what), _COLUMNS[what]
        condition = " AND assigns" if what == ASSIGNMENT else ""
        query = f"SELECT number, body, logged_at, assigns FROM ({_FIRSTS if kind == DECISION else _OTHERS})"
        with closing(self._open()) as db:
            query += f" WHERE number > ?{condition} ORDER BY number LIMIT ?"
            entries = db.execute(query, (kind, after, limit)).fetchall()
        rows = [
            {**_ROW_OF[what](json.loads(body), logged_at, bool(assigns)), "campaign": campaign, "number": number}
            for number, body, logged_at, assigns in entries
        ]
        return pa.Table.from_pylist(rows, columns)

    def erase(self, units: Iterable[str]) -> int:
        """Delete all entries of units; their bytes are overwritten, in the file and in what SQLite writes ahead of it.

        Args:
            units: Their ids.

        Returns:
            Entries that were deleted.

        Raises:
            EnvironmentProblem: The file cannot be written, or a worker reads or writes it for longer than `WAIT`: run
                it again.
        """
        try:
            with closing(self._open()) as db:
                db.execute("PRAGMA secure_delete = ON")
                db.execute("PRAGMA busy_timeout = 0")
                db.execute("CREATE TEMP TABLE gone (unit_id TEXT PRIMARY KEY) WITHOUT ROWID")
                db.execute("CREATE TEMP TABLE theirs (number INTEGER PRIMARY KEY)")
                db.executemany("INSERT OR IGNORE INTO gone VALUES (?)", ((unit,) for unit in units))
                search = (
                    "INSERT OR IGNORE INTO theirs SELECT number FROM entry WHERE number > ? AND "
                    "json_extract(body, '$.unit_id') IN (SELECT unit_id FROM gone)"
                )
                # Workers write while the whole log is searched, and wait while it is for what came meanwhile.
                (last,) = db.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()
                db.execute(search, (0,))
                _once_free(db, "BEGIN IMMEDIATE", self.WAIT)
                db.execute(search, (last,))
                n = db.execute("DELETE FROM entry WHERE number IN (SELECT number FROM theirs)").rowcount
                db.execute("COMMIT")
                busy = _truncated(db, self.WAIT)
        except sqlite3.Error as error:
            raise EnvironmentProblem(f"the log of decisions {self._file} cannot be written: {error}") from error
        if busy:
            raise EnvironmentProblem(f"the log of decisions {self._file} is in use, and holds old bytes: erase again")
        return n

    def close(self) -> None:
        """Let go of the file; the next `append` opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class LogWriter:
    """Writes entries of many requests in one transaction: whatever waits for the log goes to disk together.

    Args:
        log: The log of decisions.
    """

    def __init__(self, log: DecisionLog) -> None:
        self._log, self._pool = log, ThreadPoolExecutor(1, "decision-log")
        self._waiting: list[tuple[list[LogEntry], asyncio.Future[list[Logged]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, entries: list[LogEntry]) -> list[Logged]:
        """`DecisionLog.append`, together with what other requests write now."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Logged]] = loop.create_future()
        self._waiting.append((entries, future))
        if self._task is None:
            self._task = loop.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        # Nothing awaits between the last check of the list and the end: no request can be left waiting.
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._settle(batch)
        self._task = None

    async def _settle(self, batch: list[tuple[list[LogEntry], asyncio.Future[list[Logged]]]]) -> None:
        """Write a batch and answer its requests; a request with a used key is refused alone, the others are written."""
        every, loop = [entry for entries, _ in batch for entry in entries], asyncio.get_running_loop()
        try:
            logged = iter(await loop.run_in_executor(self._pool, self._log.append, every))
        except Exception as error:
            if isinstance(error, ConflictError) and len(batch) > 1:
                for one in batch:
                    await self._settle([one])
                return
            if not isinstance(error, ConflictError):
                reason = str(error) if isinstance(error, EnvironmentProblem) else type(error).__name__
                REQUEST_LOG.error(json.dumps({"event": "log not written", "entries": len(every), "reason": reason}))
            for _, future in batch:
                if not future.cancelled():
                    future.set_exception(error)
            return
        for entries, future in batch:
            mine = [next(logged) for _ in entries]
            if not future.cancelled():
                future.set_result(mine)

    def spending(self, until: str) -> dict[str, DayCounts]:
        """`DecisionLog.spending`."""
        return self._log.spending(until)

    def close(self) -> None:
        """Wait for what is being written, and let go of the file."""
        self._pool.shutdown()
        self._log.close()
