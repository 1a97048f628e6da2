"""Who gets which arm: salted hashes of ids that Python, Spark and a warehouse compute alike. No Spark here.

A draw is the MD5 of `salt/draw:id` in UTF-8, as 32 lower-case hexadecimal digits. Python and every common warehouse
have MD5 and write it so; hashes that are faster (xxhash, murmur) differ between them or are missing. A draw below a
threshold is a text below a text of eight digits: both sort as their numbers do, so no warehouse needs to read a
hexadecimal number, which each does differently. Eight digits are shares exact to 2.4e-10. MD5 keeps no secrets; all
that counts here is that its digits are even and independent between salts, which `tests/experiments` measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.roles import PROPENSITY, TREATMENT, UNIT, checked_name, checked_salt, checked_shares

GRID = 1 << 32
"""Thresholds are whole numbers on this grid: the first eight hexadecimal digits of a hash."""

LEFT_OUT, EXPLORED, PARTICIPATION = "left_out", "explored", "participation"
PROGRAMME_REASON, SLOT_REASON, RAMP_REASON, STOPPED_REASON = (
    *("programme holdout", "slot of another experiment", "ramp not reached", "arm stopped"),
)
MISSING_REASON, DECISION_REASON = "id, stratum or decision missing", "decision is no arm"
"""Reasons of SQL alone: `assign` refuses such rows."""

_MOST_UNITS = 1 << 31  # a rank times the grid stays below 2⁶³, in Python and in every warehouse


@dataclass(frozen=True)
class Slot:
    """The part of a namespace's units that one experiment takes.

    Experiments with slots of one namespace that do not overlap exclude each other: no unit is in both. Experiments in
    different namespaces, or in none, cross each other at random.

    namespace    salt that all experiments of the namespace share
    start, stop  from here up to there, as shares of all units: (0, .25) is the first quarter
    """

    namespace: str
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        checked_salt(self.namespace, "slot.namespace")
        if not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                f"slot of {self.namespace} goes from {self.start} to {self.stop}: use 0 <= start < stop <= 1"
            )


@dataclass(frozen=True)
class ProgrammeHoldout:
    """Units that no campaign of a programme treats, the same in every campaign, to read all campaigns together.

    salt       the programme's own, for all its campaigns
    share      share of the units; a larger share later keeps those that are out and adds others
    clustered  whether whole clusters are out, in experiments that assign clusters
    """

    salt: str
    share: float
    clustered: bool = False

    def __post_init__(self) -> None:
        checked_salt(self.salt, "programme.salt")
        if not 0 < self.share < 1:
            raise ConfigError(f"programme.share is {self.share}: use a share between 0 and 1, such as .05")


@dataclass(frozen=True)
class Experiment:
    """How arms are assigned. Everything but `ramp` and `stopped` is fixed once units were assigned.

    salt         the experiment's own: another salt assigns independently
    arms         {arm: share}, control first; shares add up to 1
    ramp         share of the units that take part; raising it moves nobody between arms
    stopped      arms that assign no more units; the units of other arms stay where they are
    slot         its place in a namespace of experiments that exclude each other
    programme    holdout over all campaigns
    exploration  share of the units whose arm is random in a targeted campaign; the others get what the policy decided
    clustered    whether all units of a cluster get one arm
    stratified   whether arms are balanced exactly within strata, for a list of units that is assigned as a whole
    blocks       of a switchback: when its blocks begin and end, in words
    balanced     of a re-randomisation: which deals are accepted, in words

    Raises ConfigError when shares do not add up, a salt or an arm's name is unusable, or parts exclude each other.
    """

    salt: str
    arms: Mapping[str, float]
    ramp: float = 1.0
    stopped: tuple[str, ...] = ()
    slot: Slot | None = None
    programme: ProgrammeHoldout | None = None
    exploration: float | None = None
    clustered: bool = False
    stratified: bool = False
    blocks: str | None = None
    balanced: str | None = None

    def __post_init__(self) -> None:
        checked_salt(self.salt, "salt")
        object.__setattr__(self, "arms", checked_shares(self.arms, self.salt))
        object.__setattr__(self, "stopped", tuple(self.stopped))
        self._check_arms()
        if not 0 < self.ramp <= 1:
            raise ConfigError(f"ramp of {self.salt} is {self.ramp}: use a share above 0 and up to 1")
        if self.exploration is not None and not 0 < self.exploration <= 1:
            raise ConfigError(f"exploration of {self.salt} is {self.exploration}: use a share above 0 and up to 1")
        if self.exploration is not None and self.stratified:
            raise ConfigError(
                f"{self.salt} has strata and exploration: decisions of a policy upset strata; drop one of them"
            )
        others = [self.slot.namespace] if self.slot else []
        others += [self.programme.salt] if self.programme else []
        if len({self.salt, *others}) <= len(others):
            raise ConfigError(
                f"{self.salt} uses one salt twice: give experiment, namespace and programme salts of their own"
            )

    def _check_arms(self) -> None:
        for arm in self.arms:
            if not arm.strip() or any(c in arm for c in "'\"\\\n\r\0"):
                raise ConfigError(f"arm {arm!r} of {self.salt} reaches SQL: name it without quotes and backslashes")
        unknown = sorted(set(self.stopped) - set(self.arms))
        if unknown:
            raise ConfigError(f"{self.salt} stops arm {unknown[0]!r}, which it has not: {hint(unknown[0], self.arms)}")
        if self.control in self.stopped or len(self.open_arms) < 2:
            raise ConfigError(f"{self.salt} stops the control or all arms beside it: end the experiment instead")

    @property
    def control(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    @property
    def open_arms(self) -> tuple[str, ...]:
        """Arms that still assign units."""
        return tuple(arm for arm in self.arms if arm not in self.stopped)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Upper thresholds of the arms on the grid, the last being the grid's end."""
        shares = np.cumsum(list(self.arms.values()))
        return (*(round(float(share) * GRID) for share in shares[:-1]), GRID)

    @property
    def text(self) -> str:
        """The design as JSON, for `of_text`."""
        return json.dumps(self._facts(), ensure_ascii=False)

    def _facts(self) -> dict[str, Any]:
        """All that is laid down; what came later only where it is used: designs on record keep their fingerprint."""
        later = ("blocks", "balanced")
        return {name: value for name, value in asdict(self).items() if name not in later or value is not None}

    @classmethod
    def of_text(cls, text: str) -> Experiment:
        """The design that `text` wrote."""
        facts = json.loads(text)
        slot, programme = facts.pop("slot"), facts.pop("programme")
        held = ProgrammeHoldout(**programme) if programme else None
        return cls(**facts, slot=Slot(**slot) if slot else None, programme=held)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of whatever decides the arm of a unit; `ramp` and `stopped` are no part of it."""
        facts = replace(self, ramp=1.0, stopped=())._facts()
        facts["arms"] = list(self.arms.items())
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def check_change(before: Experiment, after: Experiment) -> None:
    """Refuse a change that would move units between arms under the same salt.

    Args:
        before: The experiment as units were assigned.
        after: The experiment as it shall go on.

    Raises:
        ConfigError: Something other than `ramp` or `stopped` differs and the salt is the same, the ramp falls, or a
            stopped arm starts again: units would leave or change their arm.
    """
    if before.salt != after.salt:
        return
    new_salt = f"give the new design a salt of its own, such as {after.salt}-2"
    if before.fingerprint != after.fingerprint:
        names = ("arms", "slot", "programme", "exploration", "clustered", "stratified", "blocks", "balanced")
        # Python takes dictionaries of another order for equal, but thresholds follow the order.
        changed = [name for name in names if repr(getattr(before, name)) != repr(getattr(after, name))]
        raise ConfigError(f"{after.salt} has other {', '.join(changed)} than units were assigned with: {new_salt}")
    if after.ramp < before.ramp:
        raise ConfigError(
            f"ramp of {after.salt} falls from {before.ramp:g} to {after.ramp:g}: units would leave; {new_salt}"
        )
    again = sorted(set(before.stopped) - set(after.stopped))
    if again:
        raise ConfigError(f"{after.salt} starts arm {again[0]!r} again, which was stopped: {new_salt}")


def check_together(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments that cannot run beside each other.

    Args:
        experiments: All that run at one time.

    Raises:
        ConfigError: Two share a salt, so that their arms would be correlated; two overlap in a namespace, or one
            assigns clusters and another units there; the programme's holdouts differ in their share.
    """
    salts = [experiment.salt for experiment in experiments]
    if len(set(salts)) < len(salts):
        twice = next(salt for salt in salts if salts.count(salt) > 1)
        raise ConfigError(
            f"{salts.count(twice)} experiments have salt {twice}, so their arms would go together: change one"
        )
    placed = sorted(
        ((one.slot.namespace, one.slot.start, one.slot.stop, one) for one in experiments if one.slot),
        key=lambda place: place[:3],
    )
    for (name, _, stop, one), (other_name, start, _, other) in pairwise(placed):
        if name == other_name and start < stop:
            raise ConfigError(
                f"{one.salt} and {other.salt} overlap in namespace {name} from {start:g} on: move one of them"
            )
        if name == other_name and one.clustered != other.clustered:
            raise ConfigError(
                f"{one.salt} and {other.salt} in namespace {name} assign clusters and units: use two namespaces"
            )
    shares: dict[str, ProgrammeHoldout] = {}
    for one in experiments:
        if one.programme and shares.setdefault(one.programme.salt, one.programme) != one.programme:
            raise ConfigError(
                f"programme {one.programme.salt} has another holdout in {one.salt}: use the same in all campaigns"
            )


# --------------------------------------------------------------------------------------------------------------------
# Hashes of arrays.


def id_texts(ids: Any, column: str = UNIT) -> list[str]:
    """Ids as the text that is hashed: no case, blank, leading zero or accent is changed.

    Args:
        ids: Texts or integers: list, numpy, pandas or Arrow array, [n].
        column: Its name in messages.

    Returns:
        Texts, [n]; integers in decimal digits, all 19 of them.

    Raises:
        DataError: Ids are missing, empty, or of a type that is no id (floats lose digits).
    """
    try:
        array = pa.array(ids) if not isinstance(ids, pa.Array | pa.ChunkedArray) else ids
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"column {column!r} mixes types or has no valid text: make all ids text ({error})") from None
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if array.null_count:
        raise DataError(f"column {column!r} is null in {array.null_count} rows: every row needs one; drop or fill them")
    if pa.types.is_integer(array.type):
        return [str(one) for one in array.to_pylist()]
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        if len(array) == 0:
            return []
        raise DataError(f"column {column!r} has type {array.type}: ids must be text or integers; cast it to text")
    empty = pc.sum(pc.equal(array, pa.scalar("", array.type))).as_py() or 0
    if empty:
        raise DataError(f"column {column!r} is empty in {empty} rows: every row needs one; drop or fill them")
    return list(array.to_pylist())


def hashed(texts: Sequence[str], salt: str, draw: str) -> np.ndarray:
    """MD5 of `salt/draw:text` as two words, high one first: uint64 [n, 2].

    `draw` names what the hash decides (arm, ramp, slot, ...), so that one salt gives independent draws.
    """
    start = hashlib.md5(f"{salt}/{draw}:".encode(), usedforsecurity=False)
    digests = bytearray()
    for text in texts:
        one = start.copy()
        one.update(text.encode())
        digests += one.digest()
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def uniform(texts: Sequence[str], salt: str, draw: str) -> np.ndarray:
    """The hash's first eight hexadecimal digits: int64 [n] in [0, GRID)."""
    return (hashed(texts, salt, draw)[:, 0] >> np.uint64(32)).astype(np.int64)


# --------------------------------------------------------------------------------------------------------------------
# Assignment in Python.


def assign(
    ids: Any, experiment: Experiment, *, clusters: Any = None, strata: Any = None, decisions: Any = None
) -> pd.DataFrame:
    """Assign arms to units: the same id gets the same arm, in any order and any subset of the units.

    With `stratified`, arms are exact within strata: of n units, an arm of share s gets n·s rounded up or down. Ranks
    then depend on the list: assign a list once and as a whole, with its date as a stratum when more lists follow.

    Args:
        ids: Unit ids, text or integers, [n].
        experiment: The design.
        clusters: Cluster ids, [n], if the experiment is `clustered`.
        strata: Stratum of each unit, [n], or a sequence of several such arrays, if the experiment is `stratified`.
        decisions: Arm that the policy chose for each unit, [n], if the experiment has an `exploration` share.

    Returns:
        One row for each id, in the order of `ids`: `unit_id`; `treatment`, None for units that take no part;
        `left_out`, why they take no part, else None; `explored`, whether the arm is random; `propensity`, the
        probability of the arm by design among the units that take part (NaN for the others); `participation`, the
        probability by design that a unit like this takes part.

    Raises:
        ConfigError: An array that the design needs is missing, or one that it does not use is there.
        DataError: Ids are missing, of different lengths, or repeated in strata; a cluster lies in two strata; a
            decision is none of the arms.

    Example:
        >>> trial = Experiment("spring-2026", {"control": 0.5, "10%": 0.5})
        >>> assign(["0017", "17", "Zoë"], trial).treatment.tolist()
        ['10%', 'control', '10%']
    """
    units = id_texts(ids)
    extra = {"clusters": clusters, "strata": strata, "decisions": decisions}
    _check_arrays(experiment, {name: value for name, value in extra.items() if value is not None})
    keys = _same_length(id_texts(clusters, "clusters"), units, "clusters") if experiment.clustered else units
    reason = _left_out(experiment, units, keys)
    if experiment.stratified:
        places = _arm_in_strata(
            experiment, keys, _strata_texts(strata, units), pd.isna(reason) | (reason == RAMP_REASON)
        )
    else:
        places = np.searchsorted(experiment.cuts, uniform(keys, experiment.salt, "arm"), side="right")
    places, shares, explored = _after_exploration(experiment, places, decisions, units, keys)
    names = np.array(list(experiment.arms), dtype=object)
    is_open = np.isin(names, experiment.open_arms)
    reason = np.where(pd.isna(reason) & ~is_open[places], STOPPED_REASON, reason)
    takes_part = pd.isna(reason)
    still_open = shares[:, is_open].sum(axis=1)
    of_arm = shares[np.arange(len(units)), places] if len(units) else np.empty(0)
    return pd.DataFrame(
        {
            UNIT: np.array(units, dtype=object),
            TREATMENT: np.where(takes_part, names[places], None),
            LEFT_OUT: reason,
            EXPLORED: explored & takes_part,
            PROPENSITY: np.where(takes_part, of_arm / np.where(still_open > 0, still_open, 1.0), np.nan),
            PARTICIPATION: participation(experiment) * still_open,
        }
    )


def arm_codes(experiment: Experiment, levels: tuple[str, ...], ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Arms as a simulation takes them: level codes [n], -1 where a unit takes no part, and propensities [n].

    Args:
        experiment: A design that assigns by ids alone.
        levels: Names of the levels, control first.
        ids: Unit ids, [n].

    Returns:
        (int64 codes, float64 propensities).
    """
    rows = assign(ids, experiment)
    return np.asarray(pd.Index(levels).get_indexer(pd.Index(rows[TREATMENT]))), rows[PROPENSITY].to_numpy()


def participation(experiment: Experiment) -> float:
    """Share of all units that holdout, slot and ramp let take part; stopped arms take theirs off it."""
    held = experiment.programme.share if experiment.programme else 0.0
    slot = experiment.slot.stop - experiment.slot.start if experiment.slot else 1.0
    return (1 - held) * slot * experiment.ramp


def in_programme_holdout(ids: Any, programme: ProgrammeHoldout) -> np.ndarray:
    """Whether each id is held out of every campaign of the programme: bool [n]."""
    return _below(uniform(id_texts(ids), programme.salt, "holdout"), programme.share)


def _below(draws: np.ndarray, share: float) -> np.ndarray:
    return np.asarray(draws < round(share * GRID))


def _check_arrays(experiment: Experiment, arrays: Mapping[str, Any]) -> None:
    needed = {
        "clusters": experiment.clustered,
        "strata": experiment.stratified,
        "decisions": experiment.exploration is not None,
    }
    wants = {"clusters": "clustered=True", "strata": "stratified=True", "decisions": "an exploration share"}
    for name, need in needed.items():
        if need and name not in arrays:
            raise ConfigError(f"{experiment.salt} has {wants[name]}: give assign() the array `{name}`")
        if not need and name in arrays:
            raise ConfigError(
                f"{experiment.salt} does not use `{name}`: drop the array, or give the design {wants[name]}"
            )


def _same_length(texts: list[str], units: list[str], what: str) -> list[str]:
    if len(texts) != len(units):
        raise DataError(f"`{what}` has {len(texts)} rows and ids {len(units)}: give one for each unit")
    return texts


def _left_out(experiment: Experiment, units: list[str], keys: list[str]) -> np.ndarray:
    """Why each unit takes no part, None where it does: object [n]. What keeps out for longest is named."""
    out = np.full(len(units), None, dtype=object)
    if experiment.ramp < 1:
        out[~_below(uniform(keys, experiment.salt, "ramp"), experiment.ramp)] = RAMP_REASON
    if experiment.slot:
        draws = uniform(keys, experiment.slot.namespace, "slot")
        out[_below(draws, experiment.slot.start) | ~_below(draws, experiment.slot.stop)] = SLOT_REASON
    if experiment.programme:
        held = keys if experiment.programme.clustered else units
        out[_below(uniform(held, experiment.programme.salt, "holdout"), experiment.programme.share)] = PROGRAMME_REASON
    return out


def _after_exploration(
    experiment: Experiment, places: np.ndarray, decisions: Any, units: list[str], keys: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arm of each unit [n], probability of every arm [n, arms], and whether the arm is random [n]."""
    shares = np.broadcast_to(list(experiment.arms.values()), (len(units), len(experiment.arms)))
    if experiment.exploration is None:
        return places, shares, np.ones(len(units), bool)
    chosen = _decided(experiment, decisions, units)
    explored = _below(uniform(keys, experiment.salt, "explore"), experiment.exploration)
    shares = experiment.exploration * shares + (1 - experiment.exploration) * np.eye(len(experiment.arms))[chosen]
    return np.where(explored, places, chosen), shares, explored


def _decided(experiment: Experiment, decisions: Any, units: list[str]) -> np.ndarray:
    texts = _same_length(id_texts(decisions, "decisions"), units, "decisions")
    places = pd.Index(list(experiment.arms)).get_indexer(pd.Index(texts))
    wrong = places < 0
    if wrong.any():
        name = texts[int(np.argmax(wrong))]
        raise DataError(
            f"`decisions` names {name!r} in {wrong.sum()} rows, which is no arm: {hint(name, experiment.arms)}"
        )
    return np.asarray(places)


def _strata_texts(strata: Any, units: list[str]) -> list[str]:
    """Several strata as one text, joined by `|` as the SQL expression does."""
    several = isinstance(strata, list | tuple) and bool(strata) and not isinstance(strata[0], str | int | np.integer)
    parts = [_same_length(id_texts(part, "strata"), units, "strata") for part in (strata if several else [strata])]
    return ["|".join(values) for values in zip(*parts, strict=True)]


def _arm_in_strata(experiment: Experiment, keys: list[str], strata: list[str], ranked: np.ndarray) -> np.ndarray:
    """Arm of each unit by the rank of its hash in its stratum: int64 [n]; 0 for units that are not ranked.

    The points (rank + u) / n, with u from the stratum's own hash, lie evenly in [0, 1): an arm gets n·share of them,
    rounded up or down, and each unit's probability of an arm is its share exactly.
    """
    frame = pd.DataFrame({"key": keys, "stratum": strata})[ranked].reset_index()
    if not experiment.clustered and frame.key.duplicated().any():
        count = int(frame.key.duplicated().sum())
        raise DataError(f"{count} ids are there twice: strata are ranked over units; drop the repeated rows")
    distinct = frame[["key", "stratum"]].drop_duplicates()
    split = int(distinct.key.duplicated().sum())
    if split:
        raise DataError(f"{split} clusters lie in two strata: stratify by what all units of a cluster share")
    words = hashed(distinct.key.tolist(), experiment.salt, "arm")
    distinct = distinct.assign(high=words[:, 0], low=words[:, 1]).sort_values(["stratum", "high", "low", "key"])
    groups = distinct.groupby("stratum", sort=False)
    rank = groups.cumcount().to_numpy(np.int64)
    sizes: np.ndarray = groups["key"].transform("size").to_numpy(np.int64)
    if len(sizes) and sizes.max() >= _MOST_UNITS:
        raise DataError(f"a stratum has {sizes.max():,} units: at most {_MOST_UNITS - 1:,}; cut it further")
    starts = {name: uniform([name], experiment.salt, "stratum")[0] for name in distinct.stratum.unique()}
    points = rank * GRID + distinct.stratum.map(starts).to_numpy(np.int64)
    arms = (points[:, None] >= sizes[:, None] * np.array(experiment.cuts[:-1])).sum(axis=1)
    by_key = dict(zip(distinct.key, arms, strict=True)) if len(distinct) else {}
    out = np.zeros(len(keys), dtype=np.int64)
    out[frame["index"].to_numpy()] = frame.key.map(by_key).to_numpy(np.int64)
    return out


# --------------------------------------------------------------------------------------------------------------------
# Assignment in SQL.


@dataclass(frozen=True)
class Dialect:
    """How a warehouse writes what differs between them: the type of texts, MD5 as hexadecimal text, a digit's place."""

    text: str = "VARCHAR"
    md5: str = "md5({})"
    position: str = "position({digit} IN '0123456789abcdef')"


DIALECTS = {
    "spark": Dialect(text="STRING", position="instr('0123456789abcdef', {digit})"),
    "duckdb": Dialect(),
    "snowflake": Dialect(),
    "redshift": Dialect(),
    "postgres": Dialect(),
    "bigquery": Dialect("STRING", "to_hex(md5({}))", "strpos('0123456789abcdef', {digit})"),
    "trino": Dialect(md5="lower(to_hex(md5(to_utf8({}))))"),
}
"""Dialects of SQL. Tests run `spark` and `duckdb`; the others are written after their manuals."""


@dataclass(frozen=True)
class AssignmentSql:
    """SQL expressions over the columns of one table; `propensity` and `explored` also use the columns `treatment`."""

    treatment: str
    left_out: str
    explored: str
    propensity: str
    participation: str

    def select(self, table: str) -> str:
        """A query that gives the table's rows with arm, reason, exploration and propensity."""
        return (
            f"SELECT assigned.*,\n  {self.explored} AS {EXPLORED},\n  {self.propensity} AS {PROPENSITY}\n"
            f"FROM (\n  SELECT units.*,\n    {self.treatment} AS {TREATMENT},\n    {self.left_out} AS {LEFT_OUT}\n"
            f"  FROM {table} AS units\n) AS assigned"
        )


@dataclass(frozen=True)
class AssignmentColumns:
    """Columns that SQL reads: the unit, its cluster, its strata, and the arm that a policy chose for it."""

    unit: str = UNIT
    cluster: str | None = None
    strata: tuple[str, ...] = ()
    decision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strata", tuple(self.strata))
        for name in self.names:
            checked_name(name, "column")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns without which a unit gets no arm, each once."""
        parts = (self.unit, self.cluster, *self.strata, self.decision)
        return tuple(dict.fromkeys(name for name in parts if name))


def assignment_sql(
    experiment: Experiment, columns: AssignmentColumns | None = None, dialect: str = "spark"
) -> AssignmentSql:
    """Write the assignment as SQL that gives the arms of `assign`.

    Args:
        experiment: The design.
        columns: Names of the columns; `unit_id` without clusters, strata and decisions by default.
        dialect: One of `DIALECTS`.

    Returns:
        Expressions for Spark's `expr` or any query; `AssignmentSql.select` makes a whole query of them. Ids must be
        texts or integers, of one row a unit where there are strata.

    Raises:
        ConfigError: The dialect is unknown, or the design needs a column that is not named.
    """
    if dialect not in DIALECTS:
        raise ConfigError(f"SQL dialect {dialect!r} is unknown: {hint(dialect, DIALECTS)}")
    columns = columns or AssignmentColumns()
    _check_columns(experiment, columns)
    return _SqlWriter(experiment, columns, DIALECTS[dialect]).all_parts()


def exploration_sql(experiment: Experiment, columns: AssignmentColumns, dialect: str = "spark") -> str:
    """SQL that says whether a unit's arm is random: true of all units without an exploration share.

    Args:
        experiment: The design.
        columns: Names of the columns of unit and cluster.
        dialect: One of `DIALECTS`.

    Returns:
        An expression; that a unit takes part is no part of it.
    """
    return _SqlWriter(experiment, columns, DIALECTS[dialect]).explores()


def programme_sql(programme: ProgrammeHoldout, column: str, dialect: str = "spark") -> str:
    """SQL that says whether a unit is held out of every campaign, as `in_programme_holdout` does.

    Args:
        programme: The holdout.
        column: Name of the column of the unit, or of the cluster where clusters are held out.
        dialect: One of `DIALECTS`.

    Returns:
        An expression.
    """
    held = Experiment("any-campaign", {"off": 0.5, "on": 0.5}, programme=programme)
    return _SqlWriter(held, AssignmentColumns(column), DIALECTS[dialect]).held_out(column, programme)


def _check_columns(experiment: Experiment, columns: AssignmentColumns) -> None:
    needed = {
        "cluster": (experiment.clustered, columns.cluster),
        "strata": (experiment.stratified, columns.strata),
        "decision": (experiment.exploration is not None, columns.decision),
    }
    for name, (need, column) in needed.items():
        if need != bool(column):
            fix = f"name its column `{name}`" if need else f"drop the column `{name}`, which it does not use"
            raise ConfigError(f"{experiment.salt} needs other columns than these: {fix}")


def _double(number: float) -> str:
    """A literal that warehouses read as a double: without exponent it would be a decimal."""
    text = repr(float(number))
    return text if "e" in text else f"{text}E0"


class _SqlWriter:
    """Expressions of one experiment over one table's columns."""

    def __init__(self, experiment: Experiment, columns: AssignmentColumns, dialect: Dialect) -> None:
        self.experiment, self.columns, self.dialect = experiment, columns, dialect
        self.key = columns.cluster if experiment.clustered and columns.cluster else columns.unit

    def text(self, column: str) -> str:
        return f"CAST({column} AS {self.dialect.text})"

    def all_parts(self) -> AssignmentSql:
        own = (self.treatment(), self.left_out(), self.explored(), self.propensity())
        return AssignmentSql(*own, self.participation())

    def hash(self, text: str, salt: str, draw: str) -> str:
        return self.dialect.md5.format(f"'{salt}/{draw}:' || {text}")

    def draw(self, column: str, salt: str, draw: str) -> str:
        return self.hash(self.text(column), salt, draw)

    def below(self, hash_: str, threshold: int) -> str:
        """Hexadecimal texts sort as their numbers; the whole grid has nine digits, so it is no text to compare with."""
        return "TRUE" if threshold >= GRID else f"{hash_} < '{threshold:08x}'"

    def reasons(self, with_ramp: bool) -> list[tuple[str, str]]:
        """(condition, reason) in order of precedence."""
        one = self.experiment
        missing = (f"{column} IS NULL OR {self.text(column)} = ''" for column in self.columns.names)
        pairs = [(" OR ".join(missing), MISSING_REASON)]
        if self.columns.decision:
            decided = f"{self.text(self.columns.decision)} IN ({self.named(tuple(one.arms))})"
            pairs.append((f"NOT {decided}", DECISION_REASON))
        if one.programme:
            column = self.key if one.programme.clustered else self.columns.unit
            pairs.append((self.held_out(column, one.programme), PROGRAMME_REASON))
        if one.slot:
            draw = self.draw(self.key, one.slot.namespace, "slot")
            before = self.below(draw, round(one.slot.start * GRID))
            within = self.below(draw, round(one.slot.stop * GRID))
            pairs.append((f"{before} OR NOT ({within})", SLOT_REASON))
        if one.ramp < 1 and with_ramp:
            within = self.below(self.draw(self.key, one.salt, "ramp"), round(one.ramp * GRID))
            pairs.append((f"NOT ({within})", RAMP_REASON))
        return pairs

    def held_out(self, column: str, programme: ProgrammeHoldout) -> str:
        return self.below(self.draw(column, programme.salt, "holdout"), round(programme.share * GRID))

    def cases(self, pairs: Sequence[tuple[str, str]], last: str) -> str:
        whens = "".join(f" WHEN {condition} THEN {value}" for condition, value in pairs)
        return f"CASE{whens} ELSE {last} END" if pairs else last

    def random_arm(self) -> str:
        *first, last = self.experiment.arms
        if self.experiment.stratified:
            point, count = self.point_and_count()
            conditions = [f"{point} < {count} * {cut}" for cut in self.experiment.cuts[:-1]]
        else:
            arm = self.draw(self.key, self.experiment.salt, "arm")
            conditions = [self.below(arm, cut) for cut in self.experiment.cuts[:-1]]
        return self.cases([(c, f"'{arm}'") for c, arm in zip(conditions, first, strict=True)], f"'{last}'")

    def point_and_count(self) -> tuple[str, str]:
        """Rank of the unit's hash on the grid, and units, both within its stratum."""
        stratum = " || '|' || ".join(self.text(column) for column in self.columns.strata)
        ranked = self.cases([(condition, "0") for condition, _ in self.reasons(with_ramp=False)], "1")
        among = f"PARTITION BY {stratum}, {ranked}"
        arm = self.draw(self.key, self.experiment.salt, "arm")
        if self.experiment.clustered:
            rank = f"(dense_rank() OVER ({among} ORDER BY {arm}) - 1)"
            count = f"({rank} + dense_rank() OVER ({among} ORDER BY {arm} DESC))"
        else:
            rank, count = f"(row_number() OVER ({among} ORDER BY {arm}) - 1)", f"count(*) OVER ({among})"
        own = self.hash(stratum, self.experiment.salt, "stratum")
        digits = [self.dialect.position.format(digit=f"substr({own}, {k + 1}, 1)") for k in range(8)]
        # As 64 bits before the product: places are 32-bit numbers in Spark and Postgres, and 15 * 16⁷ is none.
        start = " + ".join(f"(CAST({digit} AS BIGINT) - 1) * {16 ** (7 - k)}" for k, digit in enumerate(digits))
        whole = f"CAST({rank} AS BIGINT)"
        return f"({whole} * {GRID} + {start})", f"CAST({count} AS BIGINT)"

    def any_arm(self) -> str:
        """The arm of a unit that nothing keeps out, stopped or not."""
        if self.experiment.exploration is None:
            return self.random_arm()
        return self.cases([(self.explores(), self.random_arm())], self.text(str(self.columns.decision)))

    def explores(self) -> str:
        share = self.experiment.exploration
        draw = self.draw(self.key, self.experiment.salt, "explore")
        return "TRUE" if share is None else self.below(draw, round(share * GRID))

    def named(self, arms: Sequence[str]) -> str:
        return ", ".join(f"'{arm}'" for arm in arms)

    def treatment(self) -> str:
        pairs = [(condition, "NULL") for condition, _ in self.reasons(with_ramp=True)]
        arm = self.any_arm()
        if self.experiment.stopped:
            pairs.append((f"{arm} IN ({self.named(self.experiment.stopped)})", "NULL"))
        return self.cases(pairs, arm)

    def left_out(self) -> str:
        pairs = [(condition, f"'{reason}'") for condition, reason in self.reasons(with_ramp=True)]
        if self.experiment.stopped:
            pairs.append((f"{self.any_arm()} IN ({self.named(self.experiment.stopped)})", f"'{STOPPED_REASON}'"))
        return self.cases(pairs, f"CAST(NULL AS {self.dialect.text})")

    def explored(self) -> str:
        return f"({TREATMENT} IS NOT NULL AND {self.explores()})"

    def participation(self) -> str:
        """Where arms are stopped it depends on the policy's decision."""
        one = self.experiment
        share, explores = participation(one), 1.0 if one.exploration is None else one.exploration
        still_open = explores * sum(one.arms[arm] for arm in one.open_arms)
        if one.exploration is None or not one.stopped:
            return _double(share * (still_open + 1 - explores))
        stopped = self.named(one.stopped)
        pairs = [(f"{self.text(str(self.columns.decision))} IN ({stopped})", _double(share * still_open))]
        return self.cases(pairs, _double(share * (still_open + 1 - explores)))

    def propensity(self) -> str:
        one = self.experiment
        share = 1.0 if one.exploration is None else one.exploration
        random = self.cases(
            [(f"{TREATMENT} = '{arm}'", f"{_double(share * p)}") for arm, p in one.arms.items()], "NULL"
        )
        open_share = share * sum(one.arms[arm] for arm in one.open_arms)
        if one.exploration is None:
            return f"{random} / {_double(open_share)}" if one.stopped else random
        decision = self.text(str(self.columns.decision))
        same = (f"{TREATMENT} = {decision}", _double(1 - share))
        chosen = self.cases([(f"{TREATMENT} IS NULL", "NULL"), same], _double(0))
        if not one.stopped:
            return f"{random} + {chosen}"
        stopped = f"{decision} IN ({self.named(one.stopped)})"
        still = self.cases([(stopped, _double(open_share))], _double(open_share + 1 - share))
        return f"({random} + {chosen}) / ({still})"
