"""Users' own events, from files and Delta tables to a raw table of bronze: the work of `uplift load`.

`events.load_source` finds and reads the source, `events.earlier` tells what earlier runs left, `arrivals` gives the
rows to write: checked, stamped with their source and times, each added once. `uplift stream` and `uplift replay` use
the same checks (`refuse_misfits`, `stamped`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DoubleType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from uplift_spark.errors import ConfigError, DataError, OvertakenError
from uplift_spark.events.earlier import (
    KEY_DIGITS,
    NAME_OF_SOURCE,
    OF_INGEST,
    Outgoing,
    Rejected,
    known_keys,
    known_version,
    not_yet_quarantined,
    of_others,
    version_of,
)
from uplift_spark.events.load_source import (
    ARRIVED,
    SOURCE,
    TEXTS,
    DeltaVersion,
    File,
    Settings,
    find_delta,
    find_files,
    read_delta,
    read_files,
    short_digest,
)
from uplift_spark.governance.privacy import pseudonymised
from uplift_spark.lake.contracts import (
    ADDED,
    FAULTS,
    INGESTED_AT,
    RAW_ROW,
    UNREAD,
    RowCounts,
    added_columns,
    content_of,
    count_checked,
    entry,
    fits,
    numbers_or_text,
    old_names,
    read_cells,
    row_hash,
    with_columns,
)
from uplift_spark.lake.schemas import QUARANTINE, RAW_TABLES, Contract, check, contract_of, optional_columns
from uplift_spark.lake.session import instant, moment
from uplift_spark.lake.tables import ATTEMPTS, Claim, Lake, Written
from uplift_spark.roles import RUN_ID, UNIT, checked_name
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id
from uplift_spark.spark_versions import local_frame, union_by_name

LOAD_FORMATS = ("csv", "parquet", "json", "delta")
LOG_FORMAT = "log"
"""Of `Load.log`, which is no file that users name."""

_KNOWN_AT = "known_at"
# Set here, for every row of a run.
_STAMPS = ("source", RUN_ID, INGESTED_AT)

# The rule that a row breaks if the table has it: it is left out, not rejected.
ALREADY = "already_there"
_ASSIGNED = "already_assigned"
IN_QUARANTINE = "already_quarantined"
NOT_ADDED = {
    "equal_rows": "the source has an equal row",
    ALREADY: "the table has an equal row",
    _ASSIGNED: "the unit has its assignment from elsewhere",
    IN_QUARANTINE: f"an earlier run rejected them, too, and {QUARANTINE} has them",
}

Parts = list[tuple[str, DataFrame]]  # where the rows come from, for messages; the rows


class NumberedRows(Protocol):
    """Rows of an append-only log for a raw table, each with a number that no other row of the log ever gets.

    key   KEY_DIGITS hexadecimal digits that no other log has
    last  the last number that the log gave
    """

    @property
    def key(self) -> str: ...

    @property
    def last(self) -> int: ...

    def rows(self, after: int) -> pa.Table:
        """The rows behind a number, or the first of them, in the order of their column `number`."""
        ...

    def unit(self, number: int) -> str | None:
        """Whom the row with a number is about; None where it is gone."""
        ...


class SourceShape(Protocol):
    """How rows of a source become rows of a raw table; see `events.event_source`."""

    @property
    def identity(self) -> Any:
        """What it does, as values that a run's id can depend on."""
        ...

    @property
    def name(self) -> str:
        """The table's key under `source` in the configuration."""
        ...

    @property
    def owner(self) -> str | None:
        """The campaign that the rows are of; None where campaigns share them."""
        ...

    def apply(self, rows: DataFrame) -> DataFrame:
        """The rows with the table's columns; SOURCE and UNREAD stay. Raises ConfigError for a missing column."""
        ...


@dataclass(frozen=True)
class Load:
    """What to load into which raw table.

    source    a file or folder; for the format delta also `schema.table` of the lakehouse or `catalog.schema.table`
    known_at  the source's column that says when a row was known; None: its column known_at, else the arrival
    historic  rows were known when they happened
    new_columns  columns of the source that the table gets if it has them not; rows need not have them
    replace   rows that earlier loads of the same files, or of the same Delta table, brought go first, and what was
              replayed of those rejected; with a shape that has an owner all rows that `uplift ingest` has brought
    shape     how the source's columns become those of the table; as they are by default
    replaced  so do rows of these sources, as the table's column `source` names them: files that were edited since
    log       what is read in place of a file, with the format `LOG_FORMAT`: its rows behind number `after` that the
              table has not

    Raises ConfigError when the table is no raw one, or the rest makes no sense for it.
    """

    table: str
    source: str
    format: str
    known_at: str | None = None
    historic: bool = False
    new_columns: tuple[str, ...] = ()
    replace: bool = False
    replaced: tuple[str, ...] = ()
    shape: SourceShape | None = None
    log: NumberedRows | None = None
    after: int = 0

    def __post_init__(self) -> None:
        contract = contract_of(self.table)
        if contract is None or not contract.append_only:
            raise ConfigError(f"{self.table!r} is no raw table: choose one of {', '.join(RAW_TABLES)}")
        for part in self.table.split("."):
            checked_name(part, f"table {self.table!r}: part")
        if self.format not in LOAD_FORMATS and not (self.format == LOG_FORMAT and self.log is not None):
            raise ConfigError(f"--format {self.format!r} is unknown: use one of {', '.join(LOAD_FORMATS)}")
        if not self.source or re.search(r"[`;\x00-\x1f]", self.source):
            raise ConfigError(f"--from {self.source!r} must be a path or a table, without backquotes and semicolons")
        if self.known_at is not None:
            checked_name(self.known_at, "--known-at")
        if self.known_at is not None and self.historic:
            raise ConfigError("--known-at and --historic contradict each other: give one of the two")
        if (self.known_at is not None or self.historic) and _KNOWN_AT not in contract.columns.fieldNames():
            raise ConfigError(f"rows of {self.table} have no known_at: leave --known-at and --historic out")
        if self.replaced and (not self.replace or self.format == "delta"):
            raise ConfigError("--replaced needs --replace and files: a Delta table is known by its id")
        for source in self.replaced:
            if not re.fullmatch(f".*#[0-9a-f]{{{KEY_DIGITS}}}", source):
                raise ConfigError(f"--replaced {source!r} must be as the column source has it: NAME#KEY")
            if re.search(r"@\d+#[^#]*$", source) or source.startswith("quarantine#"):
                raise ConfigError(
                    f"--replaced {source!r} is no file: rows of a Delta table go with `--replace --format delta`, and "
                    "what was replayed goes with the file whose rows it was"
                )
        taken = {name.lower() for name in (*contract.columns.fieldNames(), self.known_at or "")}
        for name in self.new_columns:
            # Delta and the checks here keep names that begin with an underscore for themselves.
            if checked_name(name, "--new-column").startswith("_") or name.lower() in taken:
                raise ConfigError(f"--new-column {name!r} is taken: choose a name that {self.table} has not")

    @property
    def params(self) -> dict[str, Any]:
        """What the id of a run depends on beside the source's content."""
        return {"table": self.table, **({"shape": self.shape.identity} if self.shape else {})}

    @property
    def owner(self) -> str | None:
        """The campaign whose rows these are alone; None where campaigns share them."""
        return self.shape.owner if self.shape else None

    @property
    def verb(self) -> str:
        """How the ids of its runs begin."""
        return OF_INGEST if self.shape else "load"

    @property
    def claim(self) -> str:
        """Name of the claim that runs make which must not add the same rows at once; see `Lake.claim`."""
        return f"load {self.table}" if self.owner is None else ingest_claim(self.owner)

    @property
    def settings(self) -> Settings:
        """What the user may correct."""
        if self.shape is None:
            return Settings()
        key = f"source.{self.shape.name}"
        return Settings(f"{key}.path or {key}.table", f"{key}.format")

    def own_key(self, key: str) -> str:
        """Identity of a source's rows in the table: campaigns that read one source each have rows of their own."""
        return key if self.owner is None else short_digest(f"{key}|{self.owner}")

    def shaped(self, rows: DataFrame) -> DataFrame:
        """Rows of the source with the columns of the table."""
        return self.shape.apply(rows) if self.shape else rows

    @property
    def contract(self) -> Contract:
        """The contract of the table."""
        contract = contract_of(self.table)
        assert contract is not None  # since __post_init__
        return contract


@dataclass(frozen=True)
class Arrivals:
    """Rows to write: `rejected` first, so that a run that was killed completes when it runs again.

    refused   {rule: rejected rows}
    details   of the source, for the job's result
    outgoing  what goes first; None: nothing is replaced
    claims    {table: what it was when the rows were chosen}: no other run may have added to it meanwhile
    A frame without rows is None.
    """

    run_id: str
    good: DataFrame | None
    rejected: DataFrame | None
    refused: dict[str, int]
    details: dict[str, Any]
    outgoing: Outgoing | None = None
    claims: Mapping[str, Claim] = field(default_factory=dict)


@dataclass(frozen=True)
class _Selected:
    """What a load reads: parts of rows, the identities of their sources, and of a Delta table the version known."""

    run_id: str
    parts: Parts
    details: dict[str, Any]
    keys: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    outgoing: Outgoing | None = None


def ingest_claim(campaign: str) -> str:
    """Name of the claim of all `uplift ingest` of a campaign."""
    return f"{OF_INGEST} {campaign}"


def arrivals(
    load: Load, lake: Lake, run_id: str | None, progress: ProgressCallback, key: bytes | None = None
) -> Arrivals:
    """Find the rows that a load adds, with pseudonyms for ids if there is a `key`; frames are lazy.

    Raises a named error before anything is written when the source is unfit.
    """
    if load.replace and run_id is not None:
        raise ConfigError("--replace makes a run of its own: leave --run-id out")
    claims = {load.table: lake.claim(load.table, load.claim)}
    claims[QUARANTINE] = lake.claim(QUARANTINE, f"{load.claim} of {load.table}")
    select = _of_log if load.log is not None else _of_table if load.format == "delta" else _of_files
    selected = (_to_replace if load.replace else select)(load, lake, run_id)
    run_id, details, outgoing = selected.run_id, selected.details, selected.outgoing
    progress(f"{load.source}: " + ", ".join(f"{name} {n}" for name, n in details.items()))
    if outgoing is not None:
        outgoing.tell_absent(lake, progress)
        if load.shape is not None and load.owner is None:
            outgoing.tell_left(lake, progress)
    if not selected.parts:
        return Arrivals(run_id, None, None, {}, details, outgoing, claims)
    wanted = wanted_columns(load, lake, selected.parts)
    for where, frame in selected.parts:
        refuse_misfits(load, where, frame, wanted)
        tell_old_names(load, where, frame, progress)
    arrived = instant(_arrival(lake, load.table, run_id))
    read = [stamped(load, frame.withColumn(ARRIVED, arrived), wanted, arrived) for _, frame in selected.parts]
    rows = pseudonymised(union_by_name(read), key, RAW_ROW, UNREAD)
    rows, contract = with_known_keys(load, lake, rows, run_id, outgoing), with_columns(load.contract, wanted)
    counts = count_checked(rows, contract)
    good, bad = check(rows, contract, counts)
    refused = {rule: n for rule, n in counts.rejected.items() if rule not in (ALREADY, _ASSIGNED)}
    rejected = Rejected(bad.where(~F.col("rule").isin(ALREADY, _ASSIGNED)), refused)
    if outgoing is None and lake.exists(QUARANTINE):
        between = selected.since, selected.until
        rejected = not_yet_quarantined(lake, load.table, rejected, run_id, selected.keys, between)
    _tell_left_out(rejected, counts, details, progress)
    unfit = rejected.rows if rejected.refused else None
    return Arrivals(run_id, good if counts.good else None, unfit, rejected.refused, details, outgoing, claims)


def _tell_left_out(rejected: Rejected, counts: RowCounts, details: dict[str, Any], progress: ProgressCallback) -> None:
    """Say what becomes of rows that are not added, and count it in `details`."""
    for rule, n in rejected.refused.items():
        progress(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    known = {rule: counts.rejected.get(rule, 0) for rule in (ALREADY, _ASSIGNED)}
    left_out = {"equal_rows": counts.copies, **known, IN_QUARANTINE: rejected.already}
    for what, n in left_out.items():
        if n:
            details[what] = n
            progress(f"{n:,} rows left out: {NOT_ADDED[what]}")
    if rejected.decided:
        details["decided_anew"] = rejected.decided
        progress(
            f"warning: {rejected.decided:,} rows of {QUARANTINE}, which earlier runs rejected, are accepted now or "
            "rejected by another rule: to replay these would add them twice; run this again with --replace, which "
            "removes them"
        )


@dataclass
class Added:
    """What a run has written, by (table, id of the run): one that was overtaken goes on under another id."""

    written: list[Written] = field(default_factory=list)
    good: dict[tuple[str, str], int] = field(default_factory=dict)
    refused: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)

    def rows(self, table: str) -> int:
        """How many rows the table has of it."""
        return sum(n for (name, _), n in self.good.items() if name == table)

    def rejected(self, table: str) -> dict[str, int]:
        """{rule: rows} that quarantine has of it."""
        total: Counter[str] = Counter()
        for (name, _), counts in self.refused.items():
            total.update(counts if name == table else {})
        return dict(sorted(total.items()))


def add_arrivals(load: Load, lake: Lake, new: Arrivals, progress: ProgressCallback, added: Added) -> None:
    """Write what `arrivals` gave, and note it in `added`.

    Raises OvertakenError when another run has added rows since `arrivals` looked.
    """
    if new.outgoing is not None:
        new.outgoing.remove(lake, progress)
    this = load.table, new.run_id
    if new.rejected is not None:
        added.written.append(lake.write(QUARANTINE, new.rejected, new.run_id, claim=new.claims[QUARANTINE]))
        added.refused[this] = new.refused
    if new.good is None:  # a commit without rows would make a new version of the table, of which nothing is new
        progress(f"{load.table}: no row is added")
        return
    claim = new.claims[load.table]
    landed = lake.write(load.table, new.good, new.run_id, new_columns=load.new_columns, claim=claim)
    added.written.append(landed)
    # A commit tells the rows it added; those of an earlier one are counted, for units may have been erased since.
    mine = lake.read(load.table).where(F.col(RUN_ID) == new.run_id)
    added.good[this] = mine.count() if landed.skipped else landed.rows


def until_first(attempt: Callable[[], JobResult], progress: ProgressCallback) -> JobResult:
    """Read and write anew when another run was first; raises its OvertakenError after ATTEMPTS."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except OvertakenError as error:
            progress(f"{str(error).partition(',')[0]}: reading again what is left to add")
    return attempt()


def count_by_rule(rejected: DataFrame) -> dict[str, int]:
    """{rule: rows}, sorted, of rows in the shape of bronze.quarantine."""
    counts = {row["rule"]: row["n"] for row in rejected.groupBy("rule").agg(F.count("*").alias("n")).collect()}
    return dict(sorted(counts.items()))


def _of_files(load: Load, lake: Lake, run_id: str | None) -> _Selected:
    """The files that no other run has added."""
    files = _own_files(load, lake)
    run = run_id or derive_run_id(load.verb, load.params, source=sorted(file.key for file in files))
    known = known_keys(lake, load.table, [file.key for file in files], run)
    new = [file for file in files if file.key not in known]
    details: dict[str, Any] = {"files": len(files), "files_known": len(known)}
    if not new:
        return _Selected(run, [], details)
    keys = tuple(sorted(file.key for file in new))
    if known and run_id is None:
        run = derive_run_id(load.verb, load.params, source=list(keys))
    return _Selected(run, _shaped_files(load, lake, new), details, keys)


def _own_files(load: Load, lake: Lake) -> list[File]:
    files = find_files(lake.spark, load.source, load.format, load.settings)
    return [replace(file, key=load.own_key(file.key)) for file in files]


def _own_table(load: Load, lake: Lake) -> DeltaVersion:
    table = find_delta(lake, load.source, load.settings)
    return replace(table, key=load.own_key(table.key))


def _shaped_files(load: Load, lake: Lake, files: Sequence[File]) -> Parts:
    parts = read_files(lake.spark, files, load.format, load.settings.format)
    return [(where, load.shaped(rows)) for where, rows in parts]


def source_rows(load: Load, lake: Lake) -> list[DataFrame]:
    """All rows of the source as they are."""
    if load.format == "delta":
        return [read_delta(lake, find_delta(lake, load.source, load.settings), None)]
    files = find_files(lake.spark, load.source, load.format, load.settings)
    return [rows for _, rows in read_files(lake.spark, files, load.format, load.settings.format)]


def _of_table(load: Load, lake: Lake, run_id: str | None) -> _Selected:
    """A Delta table's newest version, without the rows of the version added last."""
    table = _own_table(load, lake)
    run = run_id or derive_run_id(load.verb, load.params, source=[table.key, table.version])
    before = known_version(lake, load.table, table.key, run)
    details: dict[str, Any] = {"version": table.version}
    if before is not None:
        details["version_known"] = before
    parts: Parts = [(load.source, read_delta(lake, table, before, load.shaped))]
    return _Selected(run, parts, details, (table.key,), before)


def _of_log(load: Load, lake: Lake, run_id: str | None) -> _Selected:
    """The rows of a log behind the last number that the table has of it.

    Its numbers grow in the order of its commits, and a run adds its rows in one commit, so the table has all rows up to
    that number, but those that were rejected or erased. Raises DataError when the log lost rows that were loaded.
    """
    log = load.log
    assert log is not None
    mark = known_version(lake, load.table, log.key, "") or 0
    if mark > log.last:
        raise DataError(
            f"{load.table} has entry {mark:,} of {load.source}, whose last one is {log.last:,}: it is an older copy of "
            "the log, which may give numbers twice; put back the newest one, or remove it to begin a new log"
        )
    unit = log.unit(mark) if mark else None
    if (
        unit is not None
        and lake.read(load.table).where((version_of(log.key) == mark) & (F.col(UNIT) == unit)).isEmpty()
    ):
        raise DataError(
            f"entry {mark:,} of {load.source} is not the one that {load.table} has under this number: an older copy of "
            "the log was written on and gave numbers twice; put back the newest one, or remove it to begin a new log"
        )
    after = max(mark, load.after)
    rows = log.rows(after)
    if not len(rows):
        return _Selected(run_id or "", [], {"entries": 0})
    until = rows.column("number")[-1].as_py()
    run = run_id or derive_run_id(load.verb, load.params, source=[log.key, after, until])
    name = load.source.replace("\\", "/").rsplit("/", 1)[-1]
    source = F.concat(F.lit(f"{name}@"), F.col("number"), F.lit(f"#{log.key}"))
    frame = local_frame(lake.spark, rows).withColumn(SOURCE, source).drop("number")
    details = {"entries": len(rows), "until": until}
    return _Selected(run, [(load.source, frame)], details, (log.key,), after or None, until)


def _to_replace(load: Load, lake: Lake, run_id: str | None) -> _Selected:
    """As `_of_files` and `_of_table`, but of all rows, with the earlier ones that go.

    The run's id depends on the versions of the tables: what was replaced once can be replaced again.
    """
    version, kept = (lake.version(table) if lake.exists(table) else -1 for table in (load.table, QUARANTINE))
    sources = tuple(dict.fromkeys(load.replaced))
    if load.format == "delta":
        table = _own_table(load, lake)
        keys: tuple[str, ...] = (table.key,)
        parts, details = [(load.source, read_delta(lake, table, None, load.shaped))], {"version": table.version}
    else:
        files = _own_files(load, lake)
        keys = tuple(sorted(file.key for file in files))
        parts, details = _shaped_files(load, lake, files), {"files": len(files)}
    if load.owner is None:
        outgoing = Outgoing(load.table, keys, sources)
        if version >= 0 and load.format != "delta":
            _refuse_edited(load, lake, {file.path.rsplit("/", 1)[-1] for file in files}, outgoing)
    else:
        runs = lake.runs_of(load.table, load.claim) | lake.runs_of(QUARANTINE, f"{load.claim} of {load.table}")
        outgoing = Outgoing(load.table, keys, sources, load.owner, tuple(sorted(runs)))
    identity = {**load.params, "replaces": [version, kept]}
    run = derive_run_id(load.verb, identity, source=[*keys, *sorted(source.rpartition("#")[2] for source in sources)])
    return _Selected(run, parts, details, keys, outgoing=outgoing)


def _refuse_edited(load: Load, lake: Lake, names: Collection[str], outgoing: Outgoing) -> None:
    """Raise DataError when a table that belongs to no campaign has rows of files of these names whose content was
    another and that do not go: they may be the rows to go, or those of another day's file."""
    rows = lake.read(load.table)
    rows = rows.where(F.expr(NAME_OF_SOURCE).isin(*names)).where(f"NOT {outgoing.condition(rows.columns)}")
    others = rows.groupBy("source").agg(F.count(F.lit(1)).alias("n")).orderBy("source").collect()
    if others:
        some = ", ".join(f"{row['n']:,} rows of {row['source']}" for row in others[:5])
        more = f" and of {len(others) - 5} other files" if len(others) > 5 else ""
        raise DataError(
            f"{load.table} has {some}{more}, which had the name but not the content of a file of {load.source}: name "
            f"those to go with `uplift load --replace --replaced {others[0]['source']}` (repeatable), or rename the "
            "new file"
        )


def wanted_columns(load: Load, lake: Lake, parts: Parts) -> StructType:
    """The columns a source gives, a profile's attributes and new columns included: as stored, else by the rows."""
    contract = load.contract
    wanted = StructType([field for field in contract.columns if field.name not in _STAMPS])
    taken = {*contract.columns.fieldNames(), load.known_at}
    stored = lake.read(load.table).schema if lake.exists(load.table) else None
    if stored is not None:
        more = stored if contract.open else added_columns(stored)
        extra = [field for field in more if field.name not in taken]
        wanted = StructType([*wanted, *extra])
        taken |= set(stored.fieldNames())
    requested = [name for name in load.new_columns if name not in taken]
    inferred = _inferred_types(load, parts, None if contract.open and stored is None else requested, taken)
    optional = {"comment": ADDED}
    more = [StructField(n, kind, metadata=optional if n in requested else {}) for n, kind in inferred.items()]
    # What no part has is required, and so refused as lacking.
    return StructType([*wanted, *more, *(StructField(n, StringType()) for n in requested if n not in inferred)])


def _inferred_types(
    load: Load, parts: Parts, names: Sequence[str] | None, taken: Collection[str | None]
) -> dict[str, DataType]:
    """{name: type} of the parts' columns beyond `taken`, or of those in `names`."""
    types: dict[str, DataType] = {}
    for _, frame in parts:
        fields = [f for f in _source_schema(frame) if f.name not in taken and (names is None or f.name in names)]
        for column in fields:
            if checked_name(column.name, f"column of table {load.table}").startswith("_"):
                raise DataError(
                    f"column {column.name} of {load.source} begins with an underscore, as columns of the checks do: "
                    "rename or drop it in the source"
                )
        if load.format in TEXTS:
            kinds = numbers_or_text(frame, [field.name for field in fields])
        else:
            kinds = {field.name: _kept(field.dataType, load.contract.open) for field in fields}
        types.update({name: kind for name, kind in kinds.items() if not isinstance(types.get(name), StringType)})
    return types


def _kept(have: DataType, open_: bool) -> DataType:
    """The type in which a column of the source's own choice is kept; what does not fit it is refused later."""
    if isinstance(have, StringType) or (isinstance(have, BooleanType | TimestampType) and not open_):
        return have
    return TimestampType() if isinstance(have, TimestampNTZType) and not open_ else DoubleType()


def _source_schema(frame: DataFrame) -> StructType:
    return StructType([field for field in frame.schema if field.name not in (SOURCE, ARRIVED, UNREAD)])


def refuse_misfits(load: Load, where: str, frame: DataFrame, wanted: StructType) -> None:
    """Raise DataError that spells out how the columns of a source differ from those of the table."""
    renamed = _renamed(load, frame)
    added = [field.name for field in added_columns(wanted)]
    optional = {*optional_columns(load.table), *(() if load.known_at else (_KNOWN_AT,)), *added}
    have = {field.name: field.dataType for field in _source_schema(frame)}
    required = {renamed.get(field.name, field.name): field for field in wanted}
    if load.historic and _KNOWN_AT in have:
        raise ConfigError(f"{where} has a column known_at itself: leave --historic out, or the column")
    missing = [name for name, field in required.items() if name not in have and field.name not in optional]
    unknown = [name for name in have if name not in required]
    retyped = [
        f"column {name} is {have[name].simpleString()}, not {field.dataType.simpleString()}"
        for name, field in required.items()
        if name in have and not fits(have[name], field.dataType, load.format in TEXTS)
    ]
    wrong = [f"it lacks {', '.join(missing)}"] if missing else []
    wrong += [f"it has unknown {', '.join(unknown)}"] if unknown else []
    if wrong := wrong + retyped:
        flag = "; `uplift load` with --new-column NAME adds a column to the table" if unknown else ""
        raise DataError(
            f"{where} does not have the columns of {load.table}: {'; '.join(wrong)}; rename, add, cast or drop them in "
            f"the source (source, run_id and ingested_at are set by the load){flag}"
        )


def tell_old_names(load: Load, where: str, frame: DataFrame, progress: ProgressCallback) -> None:
    """Warn of columns that have the name of the last release; this version still loads them."""
    for new, old in old_names(load.contract, frame.columns).items():
        progress(f"warning: {where} has a column {old}, which is called {new} now: rename it before the next version")


def _renamed(load: Load, frame: DataFrame) -> dict[str, str]:
    """{the table's column: the source's name of it} where the two differ."""
    return {**old_names(load.contract, frame.columns), **({_KNOWN_AT: load.known_at} if load.known_at else {})}


def stamped(load: Load, frame: DataFrame, wanted: StructType, taken_in: Column) -> DataFrame:
    """Cast rows to the columns of the table, all but run_id, and add the columns that `check` needs beside them.

    frame  the source's columns, SOURCE, and ARRIVED: when a row was known that does not say so itself
    """
    rows = read_cells(frame, wanted, _renamed(load, frame), SOURCE, ARRIVED)
    absent = {field.name: F.lit(None).cast(field.dataType) for field in wanted if field.name not in rows.columns}
    if _KNOWN_AT in absent:
        absent[_KNOWN_AT] = _happened(load.contract) if load.historic else F.col(ARRIVED)
    return rows.withColumns({**absent, INGESTED_AT: taken_in}).drop(ARRIVED).withColumnRenamed(SOURCE, "source")


def _happened(contract: Contract) -> Column:
    """The one time of a row that is not about its being known."""
    times = [field.name for field in contract.columns if isinstance(field.dataType, TimestampType)]
    (happened,) = (name for name in times if name not in (_KNOWN_AT, INGESTED_AT))
    return F.col(happened)


def _arrival(lake: Lake, table: str, run_id: str) -> datetime:
    """When the run first took rows in: a rerun decides by the same time what was known before it happened."""
    for sink in (QUARANTINE, table):
        if lake.exists(sink):
            mine = lake.read(sink).where(F.col(RUN_ID) == run_id)
            first = mine.agg(F.min(F.unix_micros(INGESTED_AT)).alias("first")).collect()[0]["first"]
            if first is not None:
                return moment(first)
    return datetime.now(UTC)


def with_known_keys(
    load: Load, lake: Lake, rows: DataFrame, run_id: str, outgoing: Outgoing | None = None
) -> DataFrame:
    """Give rows a fault whose key other runs have added: ALREADY if the table has an equal row, else `repeated`.

    A unit is assigned once per campaign, and a source that is exported whole every night brings it every night.
    """
    key: Sequence[str] = load.contract.unique
    if not key or not lake.exists(load.table):
        return rows
    content = [name for name in content_of(rows.columns) if name not in (FAULTS, RAW_ROW)]
    stored = of_others(lake, load.table, run_id, outgoing)
    absent = {name: F.lit(None).cast(rows.schema[name].dataType) for name in content if name not in stored.columns}
    stored = stored.withColumns(absent).groupBy(*key).agg(F.collect_set(row_hash(content)).alias("__known"))
    differs = entry("repeated", F.lit(f"{' and '.join(key)} are in {load.table} already, with other values"))
    equal = entry(ALREADY, F.lit(f"{load.table} has an equal row"))
    if load.log is not None:  # a service decides about units that were assigned by a file, too
        differs = entry(_ASSIGNED, F.lit("the unit is assigned already"))
    fault = F.when(F.array_contains("__known", row_hash(content)), equal).otherwise(differs)
    joined = rows.join(stored, list(key), "left")
    faults = F.when(F.col("__known").isNotNull() & (F.size(FAULTS) == 0), F.array(fault)).otherwise(F.col(FAULTS))
    return joined.withColumn(FAULTS, faults).select(*rows.columns)
