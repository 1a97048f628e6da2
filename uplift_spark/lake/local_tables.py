"""Delta tables of a folder on this machine as Arrow tables, without Spark and without Java (`LocalTables`).

`deltalake` replays a table's log: its files, deletion vectors, partitions, names of columns. The files are read by
pyarrow, which takes Spark's timestamps (INT96) of every year; `deltalake` itself gives wrong ones before 1677 and after
2262. What cannot be read here raises NotLocal, and Spark reads it; what is damaged raises DamagedTableError, as no
engine reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from uplift_spark.errors import ConfigError, DamagedTableError, DataError, hint
from uplift_spark.runtime import session_provided

if TYPE_CHECKING:
    import pyarrow as pa

    from uplift_spark.config import Lakehouse

NESTED = "nested"
"""Kind of columns that are not read here: arrays, maps, structs, times without a zone."""

# Kinds of columns that can be read, and the types of Delta that have them; numbers below 32 bits are read as 32.
_KINDS = {
    **{"byte": "int", "short": "int", "integer": "int", "long": "bigint", "float": "float", "double": "double"},
    **{"boolean": "boolean", "string": "string", "date": "date", "timestamp": "timestamp", "binary": "binary"},
}
_READER_FEATURES = frozenset(
    ("columnMapping", "deletionVectors", "v2Checkpoint", "vacuumProtocolCheck", "timestampNtz", "checkpointProtection")
)


class NotLocal(Exception):
    """What this engine cannot do, in words that follow "because"."""


@dataclass(frozen=True)
class LocalColumn:
    """A column of a table: its name, its kind (see `arrow_type`), and its name in the files."""

    name: str
    kind: str
    stored: str
    precision: tuple[int, int] = (0, 0)

    @property
    def arrow_type(self) -> pa.DataType:
        """What Arrow tables hold of it. Raises NotLocal for nested columns."""
        import pyarrow as pa

        if self.kind == NESTED:
            raise NotLocal(f"column {self.name} is nested, or of a type that is seldom used")
        types = {"int": pa.int32, "bigint": pa.int64, "float": pa.float32, "double": pa.float64, "boolean": pa.bool_}
        types |= {"string": pa.string, "date": pa.date32, "binary": pa.binary}
        if self.kind == "decimal":
            return pa.decimal128(*self.precision)
        return pa.timestamp("us", "UTC") if self.kind == "timestamp" else types[self.kind]()


@dataclass(frozen=True)
class LocalTable:
    """One version of a table.

    columns     in their order
    version     of the log
    """

    name: str
    folder: str
    version: int
    columns: tuple[LocalColumn, ...]
    _table: Any = field(repr=False)

    @cached_property
    def _files(self) -> list[dict[str, Any]]:
        """Path below the folder, rows, bytes, and values of partitions (Arrow scalars) of each file."""
        rows = _arrow(self._table.get_add_actions(flatten=True))
        keys = [name for name in rows.column_names if name.startswith("partition.")]
        counts = rows["num_records"].to_pylist() if "num_records" in rows.column_names else [None] * len(rows)
        files = zip(*(rows[name].to_pylist() for name in ("path", "size_bytes")), counts, strict=True)
        return [
            {
                "path": path,
                "n": n,
                "bytes": size,
                "partition": {key.removeprefix("partition."): rows[key][i] for key in keys},
            }
            for i, (path, size, n) in enumerate(files)
        ]

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file["bytes"] for file in self._files)

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the files are."""
        return tuple(map(self._path, self._files))

    @property
    def schema(self) -> str:
        """The columns as Delta and Spark write them in JSON."""
        return str(self._table.schema().to_json())

    @property
    def properties(self) -> dict[str, str]:
        """What the table says of itself, such as `delta.appendOnly`."""
        return dict(self._table.metadata().configuration)

    @cached_property
    def _kept(self) -> dict[str, Any]:
        """{real path: mask of the rows that are not deleted} of files with deleted rows."""
        rows = _arrow(self._table.deletion_vectors())
        paths = rows["filepath"].to_pylist()
        return {_real(path): kept.values for path, kept in zip(paths, rows["selection_vector"], strict=True)}

    @cached_property
    def rows(self) -> int:
        """How many rows there are, by what the files say of themselves."""
        return sum(self._rows_of(file) for file in self._files)

    def _rows_of(self, file: dict[str, Any]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(file)
        n = file["n"]
        kept = self._kept.get(path)
        if kept is None and n is not None:
            return int(n)
        self._check_there(path)
        try:
            whole = pq.read_metadata(path).num_rows
        except pa.ArrowInvalid as error:
            raise _damaged(self.name, self.folder, f"{os.path.basename(path)} is no Parquet file") from error
        return whole if kept is None else whole - len(kept) + (kept.true_count or 0)

    def _path(self, file: dict[str, Any]) -> str:
        path = file["path"]
        return _real(path) if re.match(r"\w+:|/", path) else _real(os.path.join(self.folder, _unquoted(self, path)))

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read columns; files come in the order of their paths.

        Args:
            names: Of the columns, in the order wanted; at least one.

        Returns:
            An Arrow table of the columns' `arrow_type`.

        Raises:
            NotLocal: a column is nested, or a file holds what pyarrow does not read as its type.
            DataError: a file of the table is gone.
            DamagedTableError: a file of the table is no Parquet file.
        """
        import pyarrow as pa

        wanted = [next(column for column in self.columns if column.name == name) for name in names]
        schema = pa.schema([(column.name, column.arrow_type) for column in wanted])
        try:
            parts = [self._part(file, wanted, schema) for file in sorted(self._files, key=lambda one: one["path"])]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise NotLocal(f"a file of {self.name} cannot be read ({str(error).splitlines()[0]})") from error
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def _check_there(self, path: str) -> None:
        if not os.path.exists(path):
            raise DataError(
                f"a file of table {self.name} version {self.version} is gone ({os.path.basename(path)}): name a newer "
                "version"
            )

    def _part(self, file: dict[str, Any], wanted: Sequence[LocalColumn], schema: pa.Schema) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(file)
        self._check_there(path)
        try:
            source = pq.ParquetFile(path, coerce_int96_timestamp_unit="us")
        except pa.ArrowInvalid as error:
            raise _damaged(self.name, self.folder, f"{os.path.basename(path)} is no Parquet file") from error
        held = set(source.schema_arrow.names)
        table = source.read([column.stored for column in wanted if column.stored in held])
        if _legacy_calendar(source):
            raise NotLocal(f"a file of {self.name} has times of an old calendar")
        n = source.metadata.num_rows
        columns = []
        for column, kind in zip(wanted, schema.types, strict=True):
            if column.stored in held:
                columns.append(table[column.stored].cast(kind))
            else:  # a partition's column, or one that the table got after this file
                value = file["partition"].get(column.name, file["partition"].get(column.stored))
                known = value is not None and value.is_valid
                columns.append(pa.repeat(value.cast(kind), n) if known else pa.nulls(n, kind))
        part = pa.Table.from_arrays(columns, schema=schema)
        kept = self._kept.get(path)
        if kept is None:
            return part
        # The mask ends with the last deleted row.
        mask = pa.concat_arrays([kept, pa.repeat(True, n - len(kept))]) if len(kept) < n else kept
        return part.filter(mask)


def _arrow(stream: Any) -> pa.Table:
    """What deltalake gives, in pyarrow; `pa.table` would load pandas, which takes longer than all the rest."""
    import pyarrow as pa

    return pa.RecordBatchReader.from_stream(stream).read_all()


def _legacy_calendar(source: Any) -> bool:
    marks = source.metadata.metadata or {}
    return any(key.startswith(b"org.apache.spark.legacy") for key in marks)


def _real(path: str) -> str:
    return os.path.realpath(re.sub(r"^file:(//)?", "", path))


def _unquoted(table: LocalTable, path: str) -> str:
    """The path of a file on disk: logs hold it as part of a URI, and deltalake may have decoded it already."""
    return path if os.path.exists(os.path.join(table.folder, path)) else unquote(path)


def _damaged(name: str, folder: str, problem: str) -> DamagedTableError:
    remedy = "restore the folder from a backup, or remove it where a job writes the table anew"
    return DamagedTableError(f"table {name} is damaged, {problem} in {folder}: {remedy}")


def _log_damage(log: Path) -> str:
    """What is wrong with a table's log, by a plain look at its files.

    Args:
        log: The folder `_delta_log`.

    Returns:
        The first file that is gone or damaged, in words; empty where none is, and where the log is being removed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    checkpoint, start = None, 0
    for file in log.glob("*.checkpoint*.parquet"):
        try:
            pq.read_metadata(file)
        except pa.ArrowInvalid:
            return f"checkpoint {file.name} is no Parquet file"
        checkpoint = max(checkpoint or 0, int(file.name.partition(".")[0]))
        start = checkpoint + 1
    commits = {int(file.stem): file for file in log.glob("*.json") if re.fullmatch(r"\d{20}", file.stem)}
    needed = range(start, max(commits, default=-1) + 1)
    if gone := [number for number in needed if number not in commits]:
        return f"commit {gone[0]} of its log is gone"
    for number in needed:
        try:
            actions = [json.loads(line) for line in commits[number].read_text(encoding="utf-8").splitlines() if line]
        except OSError:
            return ""
        except ValueError:
            return f"commit {commits[number].name} is no JSON"
        kinds = {key for one in actions for key in one}
        if number == 0 and checkpoint is None and not {"metaData", "protocol"} <= kinds:
            return f"commit {commits[number].name} does not say what its columns are"
    return ""


class LocalTables:
    """The tables `<path>/<schema>/<table>` of a lakehouse in a folder on this machine."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(re.sub(r"^file:(//)?", "", str(path)))

    def names(self) -> list[str]:
        """Every table as `schema.table`, sorted."""
        logs = [log for log in self.path.glob("*/*/_delta_log") if next(log.glob("*.json"), None)]
        return sorted(f"{log.parents[1].name}.{log.parent.name}" for log in logs)

    def exists(self, table: str) -> bool:
        """Whether there is such a table."""
        return table.lower() in map(str.lower, self.names())

    def table(self, name: str, version: int | None = None) -> LocalTable:
        """One version of a table, the newest by default.

        Raises:
            ConfigError: there is no such table or version.
            NotLocal: its log asks for what this engine does not know.
            DamagedTableError: its log is damaged.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if not self.exists(name):
            raise ConfigError(
                f"table {name} does not exist in lakehouse {self.path}: {hint(name, self.names() or ['no table'])}"
            )
        folder = str(self._folder(name))
        try:
            table = DeltaTable(folder, version=version)
        except (DeltaError, OSError) as error:
            if problem := _log_damage(Path(folder, "_delta_log")):
                raise _damaged(name, folder, problem) from error
            reason = str(error).splitlines()[0]
            raise NotLocal(f"version {version} of {name} is not there for deltalake ({reason})") from error
        features = set(table.protocol().reader_features or ())
        if unknown := sorted(features - _READER_FEATURES):
            raise NotLocal(f"table {name} has the feature {', '.join(unknown)}")
        if table.metadata().configuration.get("delta.columnMapping.mode") == "id":
            raise NotLocal(f"table {name} knows its columns by numbers")
        columns = tuple(_column(one) for one in json.loads(table.schema().to_json())["fields"])
        return LocalTable(name, folder, table.version(), columns, table)

    def sizes(self) -> list[tuple[str, int, int]]:
        """(table, rows, newest version) of every table, by name."""
        tables = map(self.table, self.names())
        return [(table.name, table.rows, table.version) for table in tables]

    def fingerprint(self) -> str:
        """A text that changes with every commit to any table, and where another table takes one's name."""
        newest = [self._newest_commit(name) for name in self.names()]
        return hashlib.sha256(json.dumps([self.names(), newest]).encode()).hexdigest()[:16]

    def _newest_commit(self, name: str) -> tuple[str, int]:
        """File name and time of the newest commit; nothing where the table is being removed."""
        logs = sorted(self._folder(name).glob("_delta_log/*.json"))
        try:
            return (logs[-1].name, logs[-1].stat().st_mtime_ns) if logs else ("", 0)
        except OSError:
            return "", 0

    def history(self, name: str) -> list[dict[str, Any]]:
        """What writers noted in the commits that the log holds, newest first; see `Lake.write`."""
        logs = sorted(self._folder(name).glob("_delta_log/*.json"), reverse=True)
        return [_notes(log) for log in logs if re.fullmatch(r"\d{20}", log.stem)]

    def _folder(self, name: str) -> Path:
        known = {one.lower(): one for one in self.names()}  # names in SQL know no case
        schema, _, table = known.get(name.lower(), name).partition(".")
        return self.path / schema / table


def _notes(log: Path) -> dict[str, Any]:
    with log.open(encoding="utf-8") as lines:
        info: dict[str, Any] = next(
            (json.loads(line)["commitInfo"] for line in lines if '"commitInfo"' in line[:20]), {}
        )
    try:
        notes = json.loads(info.get("userMetadata") or "{}")
    except ValueError:  # another writer's own text
        notes = {}
    return notes if isinstance(notes, dict) else {}


def _column(one: dict[str, Any]) -> LocalColumn:
    kind, name = one["type"], one["name"]
    stored = (one.get("metadata") or {}).get("delta.columnMapping.physicalName", name)
    if isinstance(kind, str) and (match := re.fullmatch(r"decimal\((\d+),\s*(-?\d+)\)", kind)):
        return LocalColumn(name, "decimal", stored, (int(match.group(1)), int(match.group(2))))
    return LocalColumn(name, _KINDS.get(kind, NESTED) if isinstance(kind, str) else NESTED, stored)


def local_tables(lakehouse: Lakehouse) -> LocalTables | None:
    """The tables of a lakehouse that this process reads without Spark; None for a catalog, for a folder that is
    elsewhere, and where a session of somebody else says what paths mean."""
    elsewhere = re.match(r"[A-Za-z][\w+.-]+:", lakehouse.path) and not lakehouse.path.startswith("file:")
    if lakehouse.catalog is not None or elsewhere or session_provided():
        return None
    return LocalTables(lakehouse.path)
