"""Files of rows as typed Arrow tables: CSV of any kind, Parquet, Stata; one file, a folder, or a pattern. No Spark.

`read_typed` reads them, `read_texts` reads the cells of CSV files as they stand. Types are those that all rows of all
files share, never those of the first: a text that would lose a zero or an exponent as a number (`01234`, `1E5`) stays a
text. What was guessed, and what is not kept, is said in sentences; what cannot be read is refused with file, line and
reason.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import hashlib
import io
import lzma
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.roles import DoseBins, Levels

NO_VALUE = ("", "NA", "NaN", "nan", "null", "NULL", "N/A", "n/a", "#N/A", "NaT", "<NA>", ".")
"""Cells that hold no value; of a column that is declared text, the empty one only."""

SEPARATORS = (",", ";", "\t", "|")
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__|_c\d+")  # what pandas and Spark call columns without a name
_PROBED = 1000  # records that the separator is guessed from

_LEADING_ZERO = r"^[+-]?0\d"  # as a number it would lose the zero
_CODE = _LEADING_ZERO + r"|^[+-]?\d+[eE]\d+$"  # or be another one
_INTEGER = r"^[+-]?\d+$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
_NUMBER_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d*([eE][+-]?\d+)?$|^[+-]?\d+$"
_TRUTH = r"^(?i:true|false)$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)?$"
_THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})*(\.\d*)?$|^[+-]?\d+(\.\d*)?$"
_TOO_LONG = r"^[+-]?\d{17,}(\.\d*)?$"  # a double would round it
# A number with its unit; where the unit is behind, a comma may as well begin the fraction.
_AMOUNT = r"^-?[$€£¥]\s?-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?$|^[+-]?\d+(\.\d+)?\s?[%$€£¥]$"
_ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)$"
YES_NO = {"true": 1.0, "yes": 1.0, "y": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "n": 0.0, "f": 0.0}


@dataclass(frozen=True)
class FileFormat:
    """How files are read where a guess would be wrong.

    separator  between cells of a CSV file; encoding of its text; decimal, the sign before a fraction
    types      {column: text, number, time, or a pattern of a time such as %d.%m.%Y}
    rename     {name in the file: name}; `types` and all that follows know the new name
    missing    numbers that stand for a missing value
    kept       columns to keep even if their names are those of an index
    """

    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[float, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class TypedFiles:
    """Rows of files: bool, int64, double, string, date32 or timestamp columns, and sentences about the reading.

    files   that were read, sorted
    notes   what was guessed and what is not kept
    digest  SHA-256 of what the files hold, whatever their names
    """

    table: pa.Table
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    digest: str


def read_typed(path: str | Path, form: FileFormat | None = None) -> TypedFiles:
    """Read one file, the files of a folder, or those that a pattern matches, as one table.

    Args:
        path: CSV (also .gz, .bz2, .xz, .zip), Parquet or Stata files, in any mixture of names, one kind at a time.
        form: what is not to be guessed.

    Returns:
        The rows, file by file in the order of their names.

    Raises:
        DataError: there is no file or no row, or one cannot be read; names file, line and reason.
        ConfigError: `form` names a column that is not there, or gives two columns one name.
    """
    form = form or FileFormat()
    files = matching_files(path)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise DataError(f"{path} matches files of several kinds ({', '.join(sorted(kinds))}): name those of one kind")
    read = {"text": _read_csv_files, "parquet": _read_parquet_files, "stata": _read_stata_files}[kinds.pop()]
    table, notes = read(files, form)
    table, dropped = _named(table, form, files[0])
    if table.num_rows == 0:
        raise DataError(f"{path} has a header but no rows: replace the file")
    typed, more = _typed_table(table, form, files[0])
    if folders := sorted({parent.name for file in files for parent in file.parents if "=" in parent.name}):
        more.append(f"names of folders are not read as columns, as {folders[0]}")
    return TypedFiles(typed, files, (*notes, *dropped, *more), content_digest(files))


def matching_files(path: str | Path) -> tuple[Path, ...]:
    """Files that a path names: itself, those in a folder, or those a pattern matches. Raises DataError if none."""
    try:
        files = _matched(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; ask for the right to read it") from error
    for file in files:
        if delta := next((folder for folder in file.parents if (folder / "_delta_log").is_dir()), None):
            raise DataError(f"{delta} is a Delta table, whose files hold removed rows, too: name that folder in full")
    return files


def _matched(path: str | Path) -> tuple[Path, ...]:
    one = Path(os.path.expanduser(path))
    if one.is_file():
        return (one,)
    matched = list(one.iterdir() if one.is_dir() else map(Path, glob.glob(str(one), recursive=True)))
    files = sorted(file for file in matched if file.is_file() and file.name[0] not in "._")
    below = sorted(folder.name for folder in matched if folder.is_dir() and folder.name[0] not in "._")
    if one.is_dir() and below:
        raise DataError(
            f"{path} holds {len(below)} folders ({', '.join(below[:3])}), whose files would be left out: name all "
            f"files by a pattern, as in '{path}/**/*.parquet'"
        )
    if not files:
        folder = one.parent if one.parent.is_dir() else Path()
        near = hint(one.name, [other.name for other in folder.iterdir() if other.is_file()])
        why = (
            "holds no file: name the folder that does"
            if one.is_dir()
            else f"is not there: {folder.resolve()} has no such file, {near}"
        )
        raise DataError(f"{path} {why}")
    return tuple(files)


def content_digest(files: Iterable[Path]) -> str:
    """SHA-256 of what files hold, one after another, in hexadecimal."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _kind(file: Path) -> str:
    head = _head(file)
    if head.startswith(b"PAR1"):
        return "parquet"
    if file.suffix.lower() == ".dta" or head.startswith(b"<stata_dta>"):
        return "stata"
    if file.suffix.lower() in (".xlsx", ".xls", ".ods") or head.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError(f"{file} is a workbook: save the sheet as CSV, or as Parquet with pandas")
    if head.startswith((b"ARROW1", b"ORC", b"\x89HDF", b"$FL2", b"SQLite", b"%PDF", b"\x28\xb5\x2f\xfd")):
        raise DataError(f"{file} is neither CSV nor Parquet: write it as Parquet with pandas")
    return "text"


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(16)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


# --------------------------------------------------------------------------------------------------------------------
# CSV: bytes, text, separator, cells.


def read_texts(file: Path, form: FileFormat | None = None) -> tuple[pa.Table, list[str]]:
    """Read the cells of one CSV file as texts, names of columns as they stand in the header.

    Args:
        file: the file, plain or compressed.
        form: separator and encoding where they are not to be guessed.

    Returns:
        The cells (empty ones are empty texts), and sentences on what was guessed.

    Raises:
        DataError: the file is empty, has another encoding, a line of other length, or a quote that never ends.
    """
    form = form or FileFormat()
    text, notes = _text(file, form.encoding)
    _refuse_other_text(file, text)
    first, _, rest = text.partition("\n")
    declared = form.separator
    if match := re.fullmatch(r"(?i)\"?sep=(.)\"?\r?", first):  # Excel's own line
        text, declared = rest, declared or match.group(1)
    if not text.strip():
        raise DataError(f"{file} is empty: replace the file")
    separator = declared or _separator(text)
    if declared is None and separator != ",":
        notes.append(f"{file.name}: cells end at {_shown(separator)} (--set source.separator=… says otherwise)")
    text, quoted = _with_doubled_quotes(file, text, separator)
    notes += quoted
    width = len(next(_records(text, separator), []))
    text = text if text.endswith(("\n", "\r")) else text + "\n"
    try:
        table = pcsv.read_csv(
            io.BytesIO(text.encode("utf-8", "surrogatepass")),
            read_options=pcsv.ReadOptions(autogenerate_column_names=True, block_size=1 << 24),
            parse_options=pcsv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(
                column_types={f"f{number}": pa.string() for number in range(width)},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a readable CSV ({_why_unreadable(text, separator, error)})") from error
    _refuse_open_quote(file, text, table)
    header = [str(column[0].as_py()).strip() for column in table.columns]
    rows = table.slice(1).rename_columns(header)
    _refuse_no_header(file, header, rows)
    if width == 1 and re.search(r"[^\w-]", header[0]):
        notes.append(
            f"{file.name}: one column, {header[0]!r}: if it holds several, say what is between them under "
            "source.separator"
        )
    return rows, notes


def _records(text: str, separator: str, strict: bool = False) -> Any:
    """Records of a CSV text; `line_num` of the reader is the line it has come to."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # else a long cell ends the reading
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)


def _refuse_other_text(file: Path, text: str) -> None:
    if re.match(r'\s*(\{\s*"|\[\s*[\[{])', text):
        raise DataError(f"{file} is JSON, not CSV: write it as Parquet, as pandas.read_json(...).to_parquet(...) does")
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        raise DataError(f"{file} is a web page or XML, not a table: fetch the file that it links to")


def _with_doubled_quotes(file: Path, text: str, separator: str) -> tuple[str, list[str]]:
    """The text with each quote inside a cell doubled; Spark and MySQL write \\" in its place.

    Raises DataError where text follows the quote that ends a cell: a quote that was left open takes lines with it up to
    the next one, and no row would be missed.
    """
    line = _stray_quote(text, separator)
    if line is None:
        return text, []
    doubled = text.replace('\\"', '""')
    if doubled != text and _stray_quote(doubled, separator) is None:
        return doubled, [f'{file.name}: \\" inside a cell is read as a quote']
    raise DataError(
        f"{file}: text follows the quote that ends a cell in line {line}: double quotes inside cells, and end the one "
        "that is open there or before"
    )


def _stray_quote(text: str, separator: str) -> int | None:
    """Line in which text follows the quote that ends a cell, if there is one."""
    if '"' not in text:
        return None
    reader = _records(text, separator, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        return None if "unexpected end" in str(error) else int(reader.line_num)
    return None


def _text(file: Path, encoding: str | None) -> tuple[str, list[str]]:
    """The file's text, and how it was read if that is a guess."""
    raw = _bytes(file)
    if encoding is not None:
        try:
            return raw.decode(encoding).removeprefix("\ufeff"), []
        except LookupError as error:
            raise ConfigError(f"source.encoding {encoding!r} is unknown: use a name such as utf-8 or cp1252") from error
        except UnicodeDecodeError as error:
            raise DataError(_not_encoded(file, raw, encoding, error)) from error
    for mark, name in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                       (b"\xfe\xff", "utf-16")):  # fmt: skip
        if raw.startswith(mark):
            return _decoded(file, raw, name), [f"{file.name}: read as {name}, which its first bytes name"]
    if (zeros := raw[:4000].count(0)) > len(raw[:4000]) // 4:
        name = "utf-16-le" if raw[1:4000:2].count(0) > zeros // 2 else "utf-16-be"
        return _decoded(file, raw, name), [f"{file.name}: read as {name}"]
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        name = "cp1252"
        note = f"{file.name}: line {line} is not UTF-8, read as {name} (--set source.encoding=… says otherwise)"
        return _decoded(file, raw, name), [note]


def _decoded(file: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(_not_encoded(file, raw, encoding, error)) from error


def _not_encoded(file: Path, raw: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    line = raw.count(b"\n", 0, error.start) + 1
    return f"{file}: line {line} is not {encoding}: name its encoding under source.encoding, or save it as UTF-8"


def _bytes(file: Path) -> bytes:
    raw = file.read_bytes()
    try:
        if raw.startswith(b"\x1f\x8b"):
            return gzip.decompress(raw)
        if raw.startswith(b"BZh"):
            return bz2.decompress(raw)
        if raw.startswith(b"\xfd7zXZ\0"):
            return lzma.decompress(raw)
        if raw.startswith(b"PK\x03\x04"):
            return _only_member(file, raw)
    except DataError:
        raise
    except Exception as error:  # what is not there any more shows in as many ways as there are formats
        raise DataError(f"{file} is damaged or cut off ({error}): fetch it again") from error
    return raw


def _only_member(file: Path, raw: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise DataError(f"{file} holds {len(names)} files ({', '.join(names[:5])}): unpack the one to read")
        return archive.read(names[0])


def _separator(text: str) -> str:
    """The separator at which the first records have the same number of cells, and more than one."""
    sample = text[:2_000_000]
    best, most = ",", (0.0, 0)
    for separator in SEPARATORS:
        reader = _records(sample, separator)
        lengths: list[int] = []
        try:
            for record in reader:
                if record:
                    lengths.append(len(record))
                if len(lengths) >= _PROBED:
                    break
        except csv.Error:
            continue
        if len(lengths) > 2 and len(sample) < len(text):
            lengths.pop()  # cut off
        if not lengths or lengths[0] < 2:
            continue
        alike = sum(length == lengths[0] for length in lengths) / len(lengths)
        if (round(alike, 2), lengths[0]) > most:
            best, most = separator, (round(alike, 2), lengths[0])
    return best


def _why_unreadable(text: str, separator: str, error: Exception) -> str:
    """The first line with another number of cells than the header; else Arrow's words."""
    reader = _records(text, separator)
    width = None
    try:
        for record in reader:
            if not record:
                continue
            width = width or len(record)
            if len(record) != width:
                return (
                    f"line {reader.line_num} has {len(record)} cells at {_shown(separator)}, the header has {width}: "
                    "put cells that hold the separator in quotes, or name another with source.separator"
                )
    except csv.Error as broken:
        return f"line {reader.line_num}: {broken}"
    return str(error).splitlines()[0]


def _refuse_open_quote(file: Path, text: str, table: pa.Table) -> None:
    """A quote that nothing ends takes all lines after it into one cell, and no row is missed."""
    last = table.column(table.num_columns - 1)[-1].as_py()
    if "\n" not in last.rstrip() or text.rstrip().endswith('"'):
        return
    line = text.count("\n", 0, text.rindex('"')) + 1 if '"' in text else 1
    raise DataError(f"{file}: the quote in line {line} never ends, and takes the lines after it into one cell: end it")


def _refuse_no_header(file: Path, header: Sequence[str], rows: pa.Table) -> None:
    """Raise DataError where the first line is a row: wherever the rows below hold numbers or times, it does, too."""
    if header and all(re.match(_NUMBER, name) for name in header if name) and any(header):
        raise DataError(f"{file}: the first line holds numbers, not the names of columns: add a line of names")
    data = f"{_NUMBER}|{_DATE}|{_TIME}"
    cells = [_without_blanks(column, NO_VALUE).drop_null() for column in rows.slice(0, _PROBED).columns]
    names = [name for name, some in zip(header, cells, strict=True) if len(some) and _all(some, data)]
    counted = len(names) > 1 and all(name.isdecimal() for name in names)  # 0, 1, 2 of an array, or 2023, 2024
    if counted and [int(name) - int(names[0]) for name in names] == [*range(len(names))]:
        return
    if names and all(re.search(data, name) for name in names):
        raise DataError(
            f"{file}: the first line ({', '.join(header[:5])}) is like the rows below it, which hold numbers or times "
            "in the same places: add a line with the names of columns"
        )


def _shown(separator: str) -> str:
    return {"\t": "tabs"}.get(separator, f"{separator!r}")


def _read_csv_files(files: Sequence[Path], form: FileFormat) -> tuple[pa.Table, list[str]]:
    tables: list[pa.Table] = []
    notes: list[str] = []
    for file in files:
        table, more = read_texts(file, form)
        table = _unique_names(table, file, notes)
        if tables and set(table.column_names) != set(tables[0].column_names):
            odd = sorted(set(table.column_names) ^ set(tables[0].column_names))
            raise DataError(f"{file} does not have the columns of {files[0]}: they differ in {', '.join(odd[:10])}")
        tables.append(table.select(tables[0].column_names) if tables else table)
        notes += more
    return pa.concat_tables(tables), notes


def _unique_names(table: pa.Table, file: Path, notes: list[str]) -> pa.Table:
    """A column of a name that came before gets a number, so that no cell is lost; one without a name its position."""
    count: Counter[str] = Counter()
    names: list[str] = []
    for position, name in enumerate(table.column_names):
        name = name or f"Unnamed: {position}"
        count[name] += 1
        names.append(name if count[name] == 1 else f"{name}_{count[name]}")
        if count[name] > 1:
            notes.append(f"{file.name}: a second column {name!r} is called {names[-1]!r}")
    if len(set(names)) < len(names):
        twice = next(name for name, n in Counter(names).items() if n > 1)
        raise DataError(f"{file} has several columns {twice!r}: rename them in the file")
    return table.rename_columns(names)


# --------------------------------------------------------------------------------------------------------------------
# Parquet and Stata: the types of the files, in those few that rows are kept in.


def _read_parquet_files(files: Sequence[Path], form: FileFormat) -> tuple[pa.Table, list[str]]:
    tables: list[pa.Table] = []
    notes: list[str] = []
    for file in files:
        try:
            table = pq.read_table(file, coerce_int96_timestamp_unit="us", partitioning=None)
            table.validate(full=True)  # that texts are UTF-8, too
            _ = table.column_names  # a name that is no UTF-8 fails here
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} is no readable Parquet ({_first_line(error)}): write it again") from error
        tables.append(plain_table(_unique_names(table, file, notes), file.name, notes))
    return _concatenated(tables, files), list(dict.fromkeys(notes))


def _read_stata_files(files: Sequence[Path], form: FileFormat) -> tuple[pa.Table, list[str]]:
    import pandas as pd

    tables: list[pa.Table] = []
    notes: list[str] = []
    for file in files:
        try:
            frame = pd.read_stata(file, convert_categoricals=False)
            # One by one: a damaged file may give one name to several columns.
            columns = [pa.array(frame.iloc[:, k], from_pandas=True) for k in range(frame.shape[1])]
            table = pa.Table.from_arrays(columns, [str(name) for name in frame.columns])
        except Exception as error:  # the reader takes what it finds in the file for granted
            raise DataError(f"{file} is no readable Stata file ({_first_line(error)}): write it again") from error
        tables.append(plain_table(_unique_names(table, file, notes), file.name, notes))
    return _concatenated(tables, files), notes


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _concatenated(tables: list[pa.Table], files: Sequence[Path]) -> pa.Table:
    for file, table in zip(files, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            odd = sorted(set(table.column_names) ^ set(tables[0].column_names))
            raise DataError(f"{file} does not have the columns of {files[0]}: they differ in {', '.join(odd[:10])}")
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for one in table.schema:
            kinds.setdefault(one.name, set()).add(one.type)
    fields = [pa.field(name, _common(name, types, files)) for name, types in kinds.items()]
    return pa.concat_tables([table.select([f.name for f in fields]).cast(pa.schema(fields)) for table in tables])


def _common(name: str, types: set[pa.DataType], files: Sequence[Path]) -> pa.DataType:
    types = types - {pa.null()}
    if len(types) < 2:
        return next(iter(types), pa.float64())
    if types <= {pa.int64(), pa.float64(), pa.bool_()}:
        return pa.float64() if pa.float64() in types else pa.int64()
    listed = ", ".join(sorted(map(str, types)))
    raise DataError(f"{files[0].parent}: column {name!r} is {listed} in different files: write it as one type")


def plain_table(table: pa.Table, where: str, notes: list[str]) -> pa.Table:
    """Cast every column as `plain_column`; those that cannot be cast are left out, which `notes` say."""
    columns, skipped = {}, []
    for name in table.column_names:
        try:
            columns[name] = plain_column(table.column(name))
        except pa.ArrowException:
            skipped.append(f"{name} ({table.schema.field(name).type})")
    if skipped:
        notes.append(f"{where}: {', '.join(skipped)} not kept: no number, text or time")
    return pa.table(columns)


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to bool, int64, double, string, date32 or timestamp (microseconds); NaN becomes null.

    Whole numbers that int64 cannot hold become texts. Raises ArrowInvalid for other types, such as lists.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type))
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column.cast(pa.string())
    if pa.types.is_decimal(kind):
        return column.cast(pa.int64()) if kind.scale == 0 and kind.precision <= 18 else column.cast(pa.float64())
    if pa.types.is_floating(kind):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_date(kind):
        return column.cast(pa.date32())
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", "UTC" if kind.tz else None), safe=False)
    raise pa.ArrowInvalid(f"no plain column: {kind}")


# --------------------------------------------------------------------------------------------------------------------
# Names and types.


def _named(table: pa.Table, form: FileFormat, file: Path) -> tuple[pa.Table, list[str]]:
    """Columns under their new names, without those of an index."""
    for old in form.rename:
        if old not in table.column_names:
            raise ConfigError(f"source.rename: {file} has no column {old!r}, {hint(old, table.column_names)}")
    names = [form.rename.get(name, name) for name in table.column_names]
    if len(set(names)) < len(names):
        twice = next(name for name, n in Counter(names).items() if n > 1)
        raise ConfigError(f"source.rename gives {twice!r} to several columns of {file}: choose other names")
    table = table.rename_columns(names)
    index = [name for name in names if _INDEX.fullmatch(name) and name not in form.kept]
    if not index or len(index) == len(names):
        return table, []
    return table.drop_columns(index), [
        f"{', '.join(index)} not kept, as such columns number the lines (source.rename gives one a name and keeps it)"
    ]


def _typed_table(table: pa.Table, form: FileFormat, file: Path) -> tuple[pa.Table, list[str]]:
    for name, kind in form.types.items():
        if name not in table.column_names:
            raise ConfigError(f"source.types: {file} has no column {name!r}, {hint(name, table.column_names)}")
        if kind not in ("text", "number", "time") and "%" not in kind:
            raise ConfigError(
                f"source.types.{name} {kind!r} is unknown: use text, number, time or a pattern (%d.%m.%Y)"
            )
    texts = {
        name: table.column(name) for name in table.column_names if pa.types.is_string(table.schema.field(name).type)
    }
    decimal = form.decimal or "."
    notes: list[str] = []
    if form.decimal is None and (commas := _with_decimal_comma(texts, form)):
        decimal = ","
        notes.append(f"a comma before the fraction in {', '.join(commas)} (--set source.decimal=. says otherwise)")
    csv_cells = len(texts) == table.num_columns
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        declared = form.types.get(name)
        if declared is not None:
            columns[name] = _as_declared(column, declared, decimal, name, file)
        elif name in texts and csv_cells:
            columns[name] = typed_texts(column, decimal)
        elif name in texts:
            columns[name] = _without_blanks(column, ("",))
        else:
            columns[name] = column
        columns[name] = _without_codes(columns[name], form.missing)
    return pa.table(columns), notes


def _with_decimal_comma(texts: Mapping[str, pa.ChunkedArray], form: FileFormat) -> list[str]:
    """Columns of fractions after a comma. Where each has three digits they may be thousands: these stay texts."""
    fractional = []
    for name, column in texts.items():
        values = _without_blanks(column, NO_VALUE).drop_null()
        if name in form.types or not len(values) or not _all(values, _NUMBER_COMMA) or _any(values, _LEADING_ZERO):
            continue
        fractions = values.filter(pc.match_substring(values, ","))
        if len(fractions) and not _all(fractions, r"^[+-]?\d{1,3},\d{3}$"):
            fractional.append(name)
    return fractional


def _all(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _any(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def _without_blanks(column: pa.ChunkedArray, blanks: Sequence[str]) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(trimmed, pa.array(blanks)), pa.scalar(None, pa.string()), trimmed)


def _without_codes(column: pa.ChunkedArray, codes: Sequence[float]) -> pa.ChunkedArray:
    if not codes or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column
    coded = pc.is_in(column.cast(pa.float64()), pa.array(codes, pa.float64()))
    return pc.if_else(coded, pa.scalar(None, column.type), column)


def typed_texts(column: pa.ChunkedArray, decimal: str = ".") -> pa.ChunkedArray:
    """Give texts the type that all of them are of: bool, int64, double, date32, timestamp, else string.

    Cells of `NO_VALUE` are null. Texts that a number would change, such as 01234 and 1E5, keep the column text.
    """
    texts = _without_blanks(column, NO_VALUE)
    present = texts.drop_null()
    if not len(present):
        return pa.chunked_array([pa.nulls(len(column), pa.float64())])
    if _all(present, _TRUTH):
        return pc.equal(pc.utf8_lower(texts), "true")
    if _any(present, _CODE):
        return texts
    if _all(present, _INTEGER):
        try:
            return pc.replace_substring_regex(texts, r"^\+", "").cast(pa.int64())
        except pa.ArrowInvalid:  # an id of twenty digits
            return texts
    if _any(present, _TOO_LONG):
        return texts
    if decimal == "," and _all(present, _NUMBER_COMMA):
        return _numbers(texts, ",")
    if decimal == "." and _all(present, _NUMBER):
        return _numbers(texts, ".")
    if decimal == "." and _all(present, _THOUSANDS) and _any(present, r",\d{3}\."):
        return _numbers(pc.replace_substring(texts, ",", ""), ".")
    return _times(texts) if _all(present, f"{_DATE}|{_TIME}") else texts


def _numbers(texts: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    if decimal == ",":
        texts = pc.replace_substring(pc.replace_substring(texts, ".", ""), ",", ".")
    return pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())


def _times(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO dates, or times; where one names a zone all are UTC. Dates that no calendar has stay texts."""
    present = texts.drop_null()
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")  # times are kept to the microsecond
    try:
        if _all(present, _DATE):
            return texts.cast(pa.date32())
        if not _any(present, _ZONE):
            return texts.cast(pa.timestamp("us"))
        zoned = pc.replace_substring_regex(texts, r"([+-]\d{2})(\d{2})$", r"\1:\2")
        zoned = pc.replace_substring_regex(zoned, r"([T ][\d:.]+)$", r"\1Z")
        zoned = pc.replace_substring_regex(zoned, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00Z")
        return zoned.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        return texts


def _as_declared(column: pa.ChunkedArray, kind: str, decimal: str, name: str, file: Path) -> pa.ChunkedArray:
    text = pa.types.is_string(column.type)
    if kind == "text":
        return _without_blanks(column, ("",)) if text else id_text(column)
    if kind == "number":
        return number_column(_without_blanks(column, NO_VALUE) if text else column, f"{file}: column {name!r}", decimal)
    if not text:
        if pa.types.is_temporal(column.type):
            return column
        raise DataError(f"{file}: column {name!r} is {column.type}, which is no time: remove it from source.types")
    texts = _without_blanks(column, NO_VALUE)
    parsed = _times(texts) if kind == "time" else pc.strptime(texts, format=kind, unit="us", error_is_null=True)
    lost = (
        texts.filter(pc.and_(pc.is_valid(texts), pc.is_null(parsed))) if not pa.types.is_string(parsed.type) else texts
    )
    if len(lost):
        how = "an ISO time such as 2025-01-31T09:30:00Z" if kind == "time" else f"a time as {kind}"
        raise DataError(f"{file}: column {name!r} holds {len(lost):,} texts that are not {how}, as {lost[0].as_py()!r}")
    return parsed


def id_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as texts: whole numbers without a fraction, even if a null made doubles of them."""
    kind = column.type
    if pa.types.is_floating(kind):
        whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
        if pc.all(whole, min_count=0).as_py():
            column = column.cast(pa.int64())
    return column.cast(pa.string())


def level_texts(column: pa.ChunkedArray, grid: Levels | None) -> pa.Array | pa.ChunkedArray:
    """The text of each row's level, of a number the grid point that is nearest; null where there is none."""
    if grid is None:
        return id_text(column)
    bins, doses = DoseBins.around(grid), number_column(column, "the treatment").to_pylist()
    levels = [None if dose is None or not math.isfinite(dose) else bins.level(dose) for dose in doses]
    return pa.array(levels, pa.string())


def is_amount_text(texts: pa.ChunkedArray) -> bool:
    """Whether all texts are amounts with a sign of money or per cent, such as $1,200.50 and 12 %."""
    return len(texts) > 0 and _all(texts, _AMOUNT)


def number_column(column: pa.ChunkedArray, what: str, decimal: str = ".") -> pa.ChunkedArray:
    """A column as double: True and Yes are 1, False and No are 0, $1,200 is 1200, times are days since 1970.

    Raises DataError that names `what`, the number of texts that are no numbers, and one of them.
    """
    kind = column.type
    if pa.types.is_temporal(kind):
        micros = column.cast(pa.timestamp("us")).cast(pa.int64())
        return pc.divide(micros.cast(pa.float64()), 86_400_000_000.0)
    if not pa.types.is_string(kind):
        return column.cast(pa.int64()).cast(pa.float64()) if pa.types.is_boolean(kind) else column.cast(pa.float64())
    texts = column.drop_null()
    if not len(texts):
        return column.cast(pa.float64())
    if _all(texts, _NUMBER_COMMA if decimal == "," else _NUMBER):
        return _numbers(column, decimal)
    if decimal == "." and is_amount_text(texts):
        return pc.replace_substring_regex(column, r"[$€£¥%,\s]", "").cast(pa.float64())
    words = pc.utf8_lower(column)
    known = pc.is_in(words, pa.array(list(YES_NO)))
    if pc.all(known.filter(pc.is_valid(column))).as_py():
        yes = pc.is_in(words, pa.array([word for word, number in YES_NO.items() if number]))
        return pc.if_else(pc.is_valid(column), yes.cast(pa.float64()), pa.scalar(None, pa.float64()))
    stray = pc.invert(pc.match_substring_regex(column, _NUMBER_COMMA if decimal == "," else _NUMBER))
    first = pc.index(stray, True).as_py()
    raise DataError(
        f"{what} must hold numbers but {pc.sum(stray).as_py():,} rows hold text such as {column[first].as_py()!r} in "
        f"row {first + 1:,}: correct them, or say what they mean under source.values"
    )
