"""The table of inputs: files, frames and configurations as users have them; before, and what the platform does now.

Every row runs the platform's own code, none needs Spark. A row holds when the value is exactly the expected one and
every row of the input goes on or is counted in a sentence, or when the input is refused in one sentence that names
place and remedy and leaves nothing behind. `make faults ARGS="--parts files"` prints the table.
"""

from __future__ import annotations

import bz2
import gzip
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.matrix import aligned
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, load_config
from uplift_spark.errors import UpliftError
from uplift_spark.events.files import FileFormat, read_typed
from uplift_spark.events.guesses import Answers, Guesses, guess_roles
from uplift_spark.events.quickstart import read_source, with_types
from uplift_spark.events.table_source import check_names, refuse_wrong_propensities
from uplift_spark.sections.source import TableSource

N = 600  # units of a campaign


@dataclass(frozen=True)
class Result:
    """What came out: a value, the rows that go on, those that a sentence counts as left out, and the sentences."""

    value: object
    rows: int
    counted: int = 0
    said: str = ""


@dataclass(frozen=True)
class Refused:
    """The pattern of the sentence in which an input is refused."""

    pattern: str


@dataclass(frozen=True)
class Input:
    """A row: `rows` of the input, what happened to it `before` issue 22 or on the way, what reads it, and what is
    `expected` now.

    said  pattern of what must be said beside a value
    """

    kind: str
    words: str
    before: str
    rows: int
    read: Callable[[Path], Result]
    expected: object
    said: str = ""


def found(one: Input, folder: Path) -> tuple[str, list[str]]:
    """(what happens to an input now, what is wrong about that)."""
    try:
        result = one.read(folder)
    except UpliftError as error:
        message = " ".join(str(error).replace(f"{folder}/", "").split(" "))
        return message, wrong_refusal(one, str(error), folder)
    except Exception as error:  # a traceback for the user
        return f"{type(error).__name__}: {error}", ["ends in a traceback"]
    wrong = [] if same(result.value, one.expected) else [f"{result.value!r} is not {one.expected!r}"]
    if result.rows + result.counted != one.rows:
        wrong.append(f"{one.rows} rows came, {result.rows} go on and {result.counted} are counted")
    if not re.search(one.said, result.said):
        wrong.append(f"{one.said!r} is not said in {result.said!r}")
    return f"{result.rows} rows: {result.value}", wrong


def wrong_refusal(one: Input, message: str, folder: Path) -> list[str]:
    """What is wrong about a refusal: other words, more than a sentence, no remedy, or something left behind."""
    if not isinstance(one.expected, Refused):
        return [f"refused: {message}"]
    wrong = [] if re.search(one.expected.pattern, message) else [f"{message!r} is not {one.expected.pattern!r}"]
    if "\n" in message or "Traceback" in message or len(message) > 600:
        wrong.append("more than one sentence")
    if not re.search(r"[:;,] ", message):
        wrong.append("no remedy")
    left = [path for part in ("conf", "lakehouse") for path in (folder / part).rglob("*") if path.is_file()]
    return wrong + [f"{path.name} is left behind" for path in left]


def same(value: object, expected: object) -> bool:
    """Whether two values are equal, and their types, too: 1 is not True, and not 1.0."""
    if isinstance(expected, Refused) or type(value) is not type(expected):
        return False
    if isinstance(value, dict) and isinstance(expected, dict):
        return list(value) == list(expected) and all(same(value[key], expected[key]) for key in value)
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same, value, expected))
    return value == expected


# ---------------------------------------------------------------- what reads an input


def csv(content: str | bytes, name: str = "rows.csv", encoding: str = "utf-8", **form: Any) -> Callable[..., Result]:
    """A file of this content, read; `form` says what is not to be guessed."""

    def read(folder: Path) -> Result:
        path = folder / name
        path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
        return cells(path, **form)

    return read


def parquet(columns: dict[str, Any], **written: Any) -> Callable[..., Result]:
    """A Parquet file of these columns, read."""

    def read(folder: Path) -> Result:
        pq.write_table(pa.table(columns), folder / "rows.parquet", **written)
        return cells(folder / "rows.parquet")

    return read


def made(make: Callable[[Path], object]) -> Callable[..., Result]:
    """What `make` puts into a folder and returns the path of, read."""
    return lambda folder: cells(make(folder))


def cells(path: Any, **form: Any) -> Result:
    """The cells of files, and what is said of them."""
    typed = read_typed(path, FileFormat(**form))
    return Result(typed.table.to_pydict(), typed.table.num_rows, said="; ".join(typed.notes))


def campaign(**columns: Any) -> pa.Table:
    """N units of a sound trial, with other columns in place of some of its own; None takes one out."""
    rng = np.random.default_rng(3)
    usual: dict[str, Any] = {
        "customer": np.arange(N) + 100,
        "group": rng.choice(["none", "mail"], N),
        "bought": rng.integers(0, 4, N) == 0,
        "age": rng.normal(size=N).round(3),
        "shop": rng.choice(["a", "b"], N),
    }
    return pa.table({name: values for name, values in {**usual, **columns}.items() if values is not None})


def first(n: int, value: object, other: object) -> list[object]:
    """`value` in the first n of N rows, `other` in the rest."""
    return [value] * n + [other] * (N - n)


def guessed(pick: Callable[[Guesses], object], table: pa.Table, **answers: Any) -> Callable[..., Result]:
    """What is guessed of a campaign's rows; those that a sentence calls rejected are counted."""
    known = Answers(**{"treatment": "group", "outcomes": ("bought",), **answers})

    def read(_: Path) -> Result:
        guesses = guess_roles(table, known)
        said = "; ".join(guesses.report())
        counted = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) rows [^;,]*are rejected", said))
        return Result(pick(guesses), table.num_rows - counted, counted, said)

    return read


DAYS = [(10 + i % 80, 1 + i % 9, 1 + i % 28) for i in range(N)]


def typed_guess(cells: list[str]) -> Callable[..., Result]:
    """What a configuration says a column of texts is to be read as."""

    def read(folder: Path) -> Result:
        rows = campaign().to_pandas().assign(cells=[cells[i % len(cells)] for i in range(N)])
        file = folder / "rows.csv"
        rows.to_csv(file, index=False)
        data = with_types(read_source(str(file), None), Answers("group", ("bought",)))
        return Result(data.source.get("types", {}).get("cells"), data.table.num_rows, 0, "; ".join(data.notes))

    return read


def framed(pick: Callable[[Config], object], frame: Any, **options: Any) -> Callable[..., Result]:
    """What `Campaign.from_frame` makes of a frame; its rows are those of the file it leaves."""

    def read(folder: Path) -> Result:
        said: list[str] = []
        usual: dict[str, Any] = {"treatment": "group", "outcome": "bought", "folder": folder, "progress": said.append}
        config = Campaign.from_frame(frame, **{**usual, **options}).config
        assert isinstance(config.source, TableSource)
        return Result(pick(config), pq.read_metadata(str(config.source.path)).num_rows, said="; ".join(said))

    return read


CONF = """campaign: spring
source: {kind: table, path: x.csv, treatment: arm, outcomes: [visit], attributes: [age]}
roles: {outcome: visit, control: none, features: [age]}
"""


def conf(pick: Callable[[Config], object], text: str) -> Callable[..., Result]:
    """A configuration of this text, read; it has no rows."""

    def read(folder: Path) -> Result:
        (folder / "spring.yaml").write_text(text)
        return Result(pick(load_config(folder / "spring.yaml")), 0)

    return read


def named(*attributes: str, **changes: Any) -> Callable[..., Result]:
    """Names of a table source's columns, checked."""
    usual: dict[str, Any] = {"path": "x.csv", "treatment": "arm", "outcomes": ("visit",), "attributes": attributes}
    return lambda _: Result(check_names(TableSource(kind="table", **{**usual, **changes})), 0)


def propensities(mail: float, none: float) -> Callable[..., Result]:
    """Probabilities of a trial in which 180 of 600 got a mail: those logged for the mail's units and for the others."""
    counts = [
        {"treatment": arm, "n": n, "_inverse": n / p, "_spread": n * (1 - p) / p**2}
        for arm, n, p in (("mail", 180, mail), ("none", 420, none))
    ]
    source: Any = SimpleNamespace(propensity_columns=("p",))
    return lambda _: Result(refuse_wrong_propensities(counts, source, "x.csv"), N)


def in_home(folder: Path) -> Result:
    """A path that begins with ~."""
    before = os.environ["HOME"]
    (folder / "own.csv").write_text("id,n\n1,2\n")
    os.environ["HOME"] = str(folder)
    try:
        return cells("~/own.csv")
    finally:
        os.environ["HOME"] = before


@contextmanager
def nobody() -> Iterator[None]:
    """Another user than root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def locked(what: str) -> Callable[..., Result]:
    """A file or a folder that one has no right to read."""

    def read(_: Path) -> Result:
        with tempfile.TemporaryDirectory() as folder:  # others may come as far as here
            os.chmod(folder, 0o755)
            file = written(Path(folder) / "private", "id\n1\n")
            path = file if what == "file" else file.parent
            os.chmod(path, 0)
            try:
                with nobody():
                    return cells(path)
            finally:
                os.chmod(path, 0o755)

    return read


def written(folder: Path, content: bytes | str, name: str = "rows.csv") -> Path:
    """A file in a folder, which is made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(*names: str) -> Callable[..., Result]:
    """An archive of files."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "rows.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "id,n\n1,2\n")
        return folder / "rows.zip"

    return made(make)


def delta(folder: Path) -> Path:
    """A Delta table's folder, with a file whose rows may be gone."""
    written(folder / "crm" / "_delta_log", "{}", "00000000000000000000.json")
    pq.write_table(pa.table({"id": [1]}), folder / "crm" / "part-0.parquet")
    return folder / "crm"


def halved(folder: Path) -> Path:
    """A Parquet file of which the second half is missing."""
    pq.write_table(pa.table({"id": list(range(1000))}), folder / "rows.parquet")
    content = (folder / "rows.parquet").read_bytes()
    return written(folder, content[: len(content) // 2], "rows.parquet")


def two(one: str, other: str, first_name: str = "a.csv", second_name: str = "b.csv") -> Callable[..., Result]:
    """A folder of two files."""

    def make(folder: Path) -> Path:
        written(folder / "both", one, first_name)
        return written(folder / "both", other, second_name).parent

    return made(make)


CITIES = "id,city\nMüller,Köln\nMöller,Bonn\n"
TOWNS = {"id": ["Müller", "Möller"], "city": ["Köln", "Bonn"]}
ONE = {"id": [1], "n": [2]}

# ---------------------------------------------------------------- the rows

_BYTES = "\\uFFFD in cells: two users became one"
_NONSENSE = "nonsense columns"
_ONE_COLUMN = "read as one column"
_TRACEBACK = "a traceback"
_BY_FIRST = "the type of the first file or lines"

ENCODINGS = [
    Input("encoding", "UTF-8 with a byte order mark", "the same", 2,
          csv(CITIES, encoding="utf-8-sig"), TOWNS),
    Input("encoding", "UTF-16 with a mark, little end first", _NONSENSE, 2,
          csv(b"\xff\xfe" + CITIES.encode("utf-16-le")), TOWNS, "read as utf-16"),
    Input("encoding", "UTF-16 with a mark, big end first", _NONSENSE, 2,
          csv(b"\xfe\xff" + CITIES.encode("utf-16-be")), TOWNS, "read as utf-16"),
    Input("encoding", "UTF-16 without a mark", _NONSENSE, 2, csv("id,n\n1,2\n3,4\n", encoding="utf-16-be"),
          {"id": [1, 3], "n": [2, 4]}, "read as utf-16-be"),
    Input("encoding", "cp1252: Müller, Möller", _BYTES, 2, csv(CITIES, encoding="cp1252"), TOWNS,
          "line 2 is not UTF-8, read as cp1252"),
    Input("encoding", "Latin-1, declared", _BYTES, 2,
          lambda folder: cells(written(folder, CITIES.encode("latin-1")), encoding="latin-1"), TOWNS),
    Input("encoding", "UTF-8 declared, one byte is none", "no encoding could be declared", 1,
          lambda folder: cells(written(folder, b"id\n\xfc\n"), encoding="utf-8"),
          Refused(r"rows.csv: line 2 is not utf-8: name its encoding under source.encoding")),
    Input("packed", "gz", "not read without .gz in its name", 1, csv(gzip.compress(b"id,n\n1,2\n")), ONE),
    Input("packed", "bz2", "not read without .bz2 in its name", 1, csv(bz2.compress(b"id,n\n1,2\n")), ONE),
    Input("packed", "a zip of one file", "not read", 1, zipped("rows.csv"), ONE),
    Input("packed", "a zip of two files", "not read", 2, zipped("a.csv", "b.csv"),
          Refused(r"holds 2 files \(a.csv, b.csv\): unpack the one to read")),
    Input("packed", "a gz that is cut off", "refused, without a remedy", 999,
          csv(gzip.compress(b"id,n\n" + b"1,2\n" * 999)[:40]),
          Refused(r"rows.csv is damaged or cut off .*: fetch it again")),
]  # fmt: skip

LINES = [
    *(
        Input("separator", words.replace("\\", ""), _ONE_COLUMN, 2, csv(f"id{sep}note\n1{sep}\"a{sep}b\"\n2{sep}c\n"),
              {"id": [1, 2], "note": [f"a{sep}b", "c"]}, f"cells end at {words}")
        for sep, words in ((";", "';'"), ("\t", "tabs"), ("|", r"'\|'"))
    ),
    Input("separator", "cells padded with blanks", "read as one column", 2,
          csv("id ; arm \n 1 ; a\n2; a \n"), {"id": [1, 2], "arm": ["a", "a"]}),
    Input("separator", "blanks between cells", "one column, not said", 1, csv("id arm n\n1 a 0\n"),
          {"id arm n": ["1 a 0"]}, "one column, 'id arm n': .* under source.separator"),
    Input("separator", "Excel's line sep=;", "read as one column", 1, csv("sep=;\nid;n\n1;2\n"), ONE),
    Input("number", "a comma before the fraction", "texts, or units refused", 2, csv("id;n\n1;1,5\n2;22,25\n"),
          {"id": [1, 2], "n": [1.5, 22.25]}, "a comma before the fraction in n"),
    Input("number", "points in thousands: 1.234,50", "texts", 2, csv("id;n\n1;1.234,50\n2;3,5\n"),
          {"id": [1, 2], "n": [1234.5, 3.5]}),
    Input("number", "commas in thousands: 1,234.50", "texts, refused as an outcome", 2,
          csv('id,n\n1,"1,234.50"\n2,7\n'), {"id": [1, 2], "n": [1234.5, 7.0]}),
    Input("number", "1,234 may be either", "1.234 or 1234 by chance", 2, csv("id;n\n1;1,234\n2;2,345\n"),
          {"id": [1, 2], "n": ["1,234", "2,345"]}),
    Input("quotes", "a line break in a cell", "a user invented, or half the value lost", 2,
          csv('id,note\n1,"two\nlines"\n2,c\n'), {"id": [1, 2], "note": ["two\nlines", "c"]}),
    Input("quotes", "doubled quotes", "the same", 1, csv('id,note\n1,"a ""b"", c"\n'),
          {"id": [1], "note": ['a "b", c']}),
    Input("quotes", 'quotes as Spark writes them: \\"', r'another text: say \no\""', 2,
          csv('id,note\n1,"say \\"no\\""\n2,x\n'), {"id": [1, 2], "note": ['say "no"', "x"]}, "is read as a quote"),
    Input("quotes", "a quote without an end", "units invented or lost", 3, csv('id,note\n1,"a\n2,b\n3,c\n'),
          Refused("the quote in line 2 never ends, .*: end it")),
    Input("quotes", "a quote that ends in a later row", "two of three rows in one cell, without a word", 3,
          csv('id,note\n1,"a\n2,b\n3,"c"\n'), Refused("text follows the quote that ends a cell in line 4: double")),
    Input("quotes", 'a quote amid a cell: "5" pipe"', "5 pipe, without a word", 1, csv('id,note\n1,"5" pipe"\n'),
          Refused("text follows the quote that ends a cell in line 2")),
    Input("quotes", "inches without quotes: 5\" pipe", "the same", 1, csv('id,note\n1,5" pipe\n'),
          {"id": [1], "note": ['5" pipe']}),
    Input("quotes", "a cell of 200,000 letters", "the separator ; not found", 1,
          csv(f"id;note\n1;{'a' * 200_000}\n"), {"id": [1], "note": ["a" * 200_000]}),
    Input("lines", "too few cells in line 3", "refused, without a remedy", 2, csv("id,n\n1,2\n2\n"),
          Refused("line 3 has 1 cells at ',', the header has 2: ")),
    Input("lines", "too many cells in line 3", "refused, without a remedy", 2, csv("id,n\n1,2\n2,3,4\n"),
          Refused("line 3 has 3 cells at ',', the header has 2: ")),
    Input("lines", "ends of lines of an old Mac", "the same", 2, csv("id,n\r1,2\r2,3\r"), {"id": [1, 2], "n": [2, 3]}),
    Input("lines", "empty lines among the rows", "the same", 2, csv("id,n\n\n1,2\n\n2,3\n"),
          {"id": [1, 2], "n": [2, 3]}),
    Input("lines", "an empty file", "the same", 0, csv(""), Refused("rows.csv is empty: replace the file")),
    Input("lines", "a header alone", "the same", 0, csv("id,n\n"), Refused("has a header but no rows: ")),
    Input("lines", "a header alone, its line has no end", "'cannot infer number of columns'", 0, csv("id,n"),
          Refused("has a header but no rows: replace")),
    Input("header", "none, numbers alone", "the first unit lost as names", 2, csv("1,2\n3,4\n"),
          Refused("the first line holds numbers, not the names of columns: add")),
    Input("header", "none: 1,mail,0", "the first unit lost as names, without a word", 2,
          csv("7,mail,0\n9,none,1\n"), Refused(r"the first line \(7, mail, 0\) is like the rows .*: add a line")),
    Input("header", "none: anna,2024-01-02", "the first unit lost as names, without a word", 2,
          csv("anna,2024-01-02\nberta,2024-01-03\n"), Refused("is like the rows below it")),
    Input("header", "years as names", "the same", 1,
          csv("id,2023,2024\na,1,2\n"), {"id": ["a"], "2023": [1], "2024": [2]}),
    Input("header", "one name twice", "refused", 1, csv("id,x,x\n1,2,3\n"),
          {"id": [1], "x": [2], "x_2": [3]}, "a second column 'x' is called 'x_2'"),
    Input("header", "x, x and x_2", "refused", 1, csv("x,x,x_2\n1,2,3\n"),
          Refused("several columns 'x_2': rename them")),
    Input("header", "__index_level_0__, _c0, Unnamed: 0, no name", "features that number the rows", 1,
          csv("id,__index_level_0__,_c0,Unnamed: 0,\n1,2,3,4,5\n"), {"id": [1]},
          r"__index_level_0__, _c0, Unnamed: 0, Unnamed: 4 not kept.*source.rename"),
]  # fmt: skip

_AT = datetime(2024, 1, 31, 9, 30)

TYPES = [
    Input("texts", "zip 01234", "1234.0", 2, csv("zip\n01234\n1234\n"), {"zip": ["01234", "1234"]}),
    Input("texts", "zip 1234 in one file, 01234 in the next", _BY_FIRST, 2, two("zip\n1234\n", "zip\n01234\n"),
          {"zip": ["1234", "01234"]}),
    Input("texts", "store 1E5", "100000.0", 2, csv("store\n1E5\n2\n"), {"store": ["1E5", "2"]}),
    Input("texts", "plan 001 beside 1", "one plan", 2, csv("plan\n001\n1\n"), {"plan": ["001", "1"]}),
    Input("ids", "19 digits beside an empty cell", "rounded to a double", 2,
          csv("id,n\n9007199254740993001,1\n,2\n"), {"id": [9007199254740993001, None], "n": [1, 2]}),
    Input("ids", "19 digits with .0", "rounded, without a word", 2,
          csv("id\n9007199254740993001.0\n9007199254740993002.0\n"),
          {"id": ["9007199254740993001.0", "9007199254740993002.0"]}),
    Input("ids", "20 digits", "rounded", 2, csv("id\n12345678901234567890\n1\n"),
          {"id": ["12345678901234567890", "1"]}),
    Input("ids", "uint64 beyond int64", "not read: CSV alone", 1, parquet({"id": pa.array([2**64 - 1], pa.uint64())}),
          {"id": ["18446744073709551615"]}),
    Input("truth", "True, FALSE, empty", "texts", 3, csv('b\nTrue\nFALSE\n""\n'), {"b": [True, False, None]}),
    Input("truth", "Yes and No as an outcome", "refused as text", N,
          guessed(lambda g: g.outcomes, campaign(bought=first(50, "Yes", "No"))), {"bought": "bought"}, "8.33% yes"),
    Input("numbers", "decimals", "not read: CSV alone", 2, parquet({"n": [Decimal("1.50"), None]}), {"n": [1.5, None]}),
    Input("numbers", "Int64 with nulls of pandas", "1001.0, which joins nothing", 2,
          parquet({"id": pa.array(pd.array([1001, None], dtype="Int64"))}), {"id": [1001, None]}),
    Input("numbers", "inf and NaN", "the same", 3, csv("n\ninf\nNaN\n1\n"), {"n": [float("inf"), None, 1.0]}),
    Input("numbers", "one text among numbers, declared a number", "refused, without the row", 4,
          csv("n\n1\n2\nx\n4\n", types={"n": "number"}),
          Refused("column 'n' .* 1 rows hold text such as 'x' in row 3: ")),
    Input("numbers", "whole numbers in one file, fractions in the next", "one file alone was read", 2,
          two("n\n1\n", "n\n1.5\n"),
          {"n": [1.0, 1.5]}),
    Input("times", "dates", "texts", 2, csv("d\n2024-01-31\n2024-02-01\n"),
          {"d": [date(2024, 1, 31), date(2024, 2, 1)]}),
    Input("times", "31.12.2024, declared", "a text", 1, csv("d\n31.12.2024\n", types={"d": "%d.%m.%Y"}),
          {"d": [datetime(2024, 12, 31)]}),
    Input("times", "31.12.2024 beside 12/31/2024, declared", "texts", 2,
          csv("d\n31.12.2024\n12/31/2024\n", types={"d": "%d.%m.%Y"}),
          Refused("column 'd' holds 1 texts that are not a time as %d.%m.%Y, as '12/31/2024'")),
    Input("times", "with a zone", "a text", 1, csv("d\n2024-01-31T09:30+02:00\n"),
          {"d": [datetime(2024, 1, 31, 7, 30, tzinfo=UTC)]}),
    Input("times", "texts with nanoseconds", "texts", 1, csv("d\n2024-01-31T09:30:00.000000789\n"), {"d": [_AT]}),
    Input("times", "nanoseconds in Parquet", "not read: CSV alone", 1,
          parquet({"d": pa.array([pd.Timestamp(_AT)], pa.timestamp("ns"))}), {"d": [_AT]}),
    Input("times", "INT96", "not read: CSV alone", 1,
          parquet({"d": pa.array([pd.Timestamp(_AT)], pa.timestamp("ns"))}, use_deprecated_int96_timestamps=True),
          {"d": [_AT]}),
    Input("columns", "a dictionary", "not read: CSV alone", 2, parquet({"k": pa.array(["a", "b"]).dictionary_encode()}),
          {"k": ["a", "b"]}),
    Input("columns", "lists, structs, bytes", "not read: CSV alone", 1,
          parquet({"id": [1], "items": [[1]], "who": [{"a": 1}], "raw": [b"x"]}), {"id": [1]},
          r"items \(list.*, who \(struct.*, raw \(binary\) not kept: no number, text or time"),
]  # fmt: skip


def one_name(name: str) -> Callable[..., Result]:
    """What the column `age` is called in the tables when the file calls it so."""
    table = campaign()
    names = [name if column == "age" else column for column in table.column_names]
    return guessed(lambda g: g.names[name], table.rename_columns(names))


NAMES = [
    *(
        Input("names", f"a feature called {name[:20]!r}", before, N, one_name(name), new,
              "" if new == name else f"renamed: .*{re.escape(name)} is {new}")
        for name, before, new in (
            ("Source", "lost, or a traceback", "Source_1"), ("Treatment", "lost, or a traceback", "Treatment_1"),
            ("odds", "lost, or a traceback", "odds"),
            ("total ads", "not a plain name, no way to rename", "total_ads"), ("a.b", "not a plain name", "a_b"),
            ("Größe", "not a plain name", "Gr_e"), ("SELECT", "the same", "SELECT"),
            ("MATURE", "lost, or a traceback", "MATURE_1"),
            ("a`b", "not a plain name", "a_b"), ("1st", "not a plain name", "c_1st"),
            ("Group", "beside the treatment group: a traceback in Spark", "Group_1"),
            ("x" * 300, "not a plain name", "x" * 100),
        )
    ),
    Input("names", "x1 beside X1", "lost, or a traceback", N,
          guessed(lambda g: g.names, campaign(x1=np.arange(N) % 7, X1=np.arange(N) % 5, age=None, shop=None)),
          {"bought": "bought", "x1": "x1", "X1": "X1_1"}),
    Input("names", "x1 beside X1 in a configuration", "lost, or a traceback", 0, named("x1", "X1"),
          Refused(r"'x1' and 'X1' differ by their case alone: give it .*source.rename: \{X1: X1_1\}")),
    Input("names", "Arm beside the treatment arm", "a traceback in Spark", 0, named("Arm"),
          Refused(r"'arm' and 'Arm' differ by their case alone: .*source.rename: \{Arm: ")),
    Input("names", "Run_ID in a configuration", "lost, or a traceback", 0, named("Run_ID"),
          Refused(r"'Run_ID' is a name that the tables use themselves: .*source.rename: \{Run_ID")),
]  # fmt: skip

YAML = [
    Input("YAML", "control: no", "False", 0, conf(lambda c: c.roles.control, CONF.replace("none", "no")), "no"),
    Input("YAML", "control: 1:1", "61", 0, conf(lambda c: c.roles.control, CONF.replace("none", "1:1")), "1:1"),
    Input("YAML", "a level on: {on: mail}", "True", 0,
          conf(lambda c: c.source.arms, CONF.replace("arm,", "arm, arms: {on: mail, 010: none},")),  # type: ignore
          {"on": "mail", "010": "none"}),
    Input("YAML", "seed: 1e3", "the same", 0, conf(lambda c: c.seed, CONF + "seed: 1e3\n"),
          Refused("seed: Input should be a valid integer, ")),
    Input("YAML", "control: null", "'Input should be a valid string'", 0,
          conf(lambda c: c.roles.control, CONF.replace("none", "null")),
          Refused("roles.control: YAML reads .* put the text in quotes")),
    Input("YAML", "features: V1", "V and 1, or pydantic's words", 0,
          conf(lambda c: c.roles.features, CONF.replace("features: [age]", "features: V1")),
          Refused(r"spring.yaml: roles.features: a list is needed, as in \[V1\]$")),
    Input("YAML", "an unknown key", "the same", 0,
          conf(lambda c: c, CONF + "sed: 3\n"), Refused("unknown key 'sed': ")),
    Input("YAML", "a key twice", "the last one won", 0, conf(lambda c: c, CONF + "seed: 3\nseed: 4\n"),
          Refused("line 5: key 'seed' is there twice: keep one")),
    Input("YAML", "a tab before a key", "the same", 0, conf(lambda c: c, CONF + "labels:\n\tseed: 3\n"),
          Refused("not valid YAML: line 5")),
    Input("YAML", "budget: null", "the plan's budget in a scenario", 0,
          conf(lambda c: c.policy.budget, CONF + "policy: {budget: null}\n"), None),
    Input("YAML", "brackets 5,000 deep", _TRACEBACK, 0, conf(lambda c: c, "a: " + "[" * 5000), Refused("too deep")),
]  # fmt: skip

GUESSES = [
    *(
        Input("guesses", f"outcome {one} or {other}", "refused", N,
              guessed(lambda g: g.values, campaign(bought=[(one, other)[i % 3 > 0] for i in range(N)])),
              {"bought": {one: float(one == counts), other: float(other == counts)}}, f"{counts} counts")
        for one, other, counts in (
            ("did not vote", "voted", "voted"), ("failure", "success", "success"), ("0_no", "1_yes", "1_yes"),
            ("Dead", "Alive", "Alive"), ("kept", "cancelled", "cancelled"),
        )
    ),
    *(
        Input("guesses", f"levels {', '.join(levels)}", before, N,
              guessed(lambda g: g.control, campaign(group=[levels[i % len(levels)] for i in range(N)])), control)
        for levels, before, control in (
            (("Lev+5FU", "Lev", "Obs"), "Lev+5FU is the control", "Obs"), (("P", "A"), "A is the control", "P"),
            (("new_page", "old_page"), "new_page is the control", "old_page"),
            (("small", "regular", "regular with aide"), "the same, by its numbers", "regular"),
        )
    ),
    Input("guesses", "levels 1, 2, 3 of a class", "doses", N,
          guessed(lambda g: g.dose, campaign(group=[str(1 + i % 3) for i in range(N)])), None),
    *(
        Input("guesses", f"{name} beside the outcome {outcome}", "a feature", N,
              guessed(lambda g, name=name: name in g.features,
                      campaign(**{outcome: np.arange(N) % 7, name: np.arange(N) % 11}), outcomes=(outcome,)), False,
              "an outcome of after the treatment by its name")
        for name, outcome in (
            ("outcome.time", "outcome.score"), ("g4reading", "g4math"), ("pain 90min", "pain 30min"),
            ("vote_12", "turnout_12"), ("futime", "status"), ("retention_1", "retention_7"),
        )
    ),
    *(
        Input("guesses", f"a text such as {text}", "no feature, or a text", N,
              typed_guess([text.format(*at) for at in DAYS]), kind, "type: cells is")
        for text, kind in (
            ("${0},{1}00.50", "number"), ("{0}{1} %", "number"), ("{1}/{2}/2024", "%m/%d/%Y"),
            ("{2}.{1}.2024", "%d.%m.%Y"), ("2024/{1}/{2}", "%Y/%m/%d"),
        )
    ),
    Input("guesses", "days that may be months", "the same", N,
          typed_guess([f"{d}/{m}/2024" for _, m, d in DAYS if d < 13]), None),
    Input("guesses", "schools treated as one", "'this does not look like a randomised trial'", N,
          guessed(lambda g: g.cluster, campaign(
              group=[("none", "mail")[i // 10 * 7 % 13 % 2] for i in range(N)], school=np.arange(N) // 10)),
          "school", "all rows of each of its 60 values got one level"),
    Input("guesses", "lines delivered twice, with ids", "rows without ids", N,
          guessed(lambda g: g.unit, pa.concat_tables([campaign().slice(0, 300)] * 2)),
          "customer", "300 rows that repeat another are left out"),
    Input("guesses", "a unit that repeats in all rows", "every row rejected later", N,
          guessed(lambda g: g.unit, campaign(), unit="shop"),
          Refused(r"column 'shop' repeats in 600 of 600 rows, which would be rejected")),
    Input("guesses", "an outcome of one case", "nothing said", N,
          guessed(lambda g: len(g.warnings), campaign(bought=first(1, 1, 0))), 2, "too few to tell on whom it works"),
    Input("guesses", "value -5", "a plan that treats nobody", N, guessed(lambda g: g.value, campaign(), value=-5.0),
          Refused(r"--value -5 is no amount of money")),
]  # fmt: skip

ROWS = [
    Input("rows", "one level", "said by a Spark job alone", N, guessed(lambda g: g, campaign(group=["mail"] * N)),
          Refused(r"column 'group' has one level only \(mail\): effects need two")),
    Input("rows", "a control that is no level", "said by a Spark job alone", N,
          guessed(lambda g: g, campaign(), control="nobody"),
          Refused("'nobody' is no level of column 'group': it has")),
    Input("rows", "40 levels", "not said", N,
          guessed(lambda g: g, campaign(group=[f"a{i % 40}" for i in range(N)])),
          Refused("column 'group' has 40 different values: .* name another column")),
    Input("rows", "50 units without a level", "counted by ingest alone", N,
          guessed(lambda g: g.levels, campaign(group=[None] * 50 + ["none", "mail"] * 275)),
          {"none": "none", "mail": "mail"}, "50 rows without a level are rejected"),
    Input("rows", "levels mail and MAIL", "two levels, without a word", N,
          guessed(lambda g: list(g.levels), campaign(group=["none", "mail", "MAIL"] * 200)),
          ["none", "MAIL", "mail"], "levels MAIL, mail differ by their case alone"),
    Input("rows", "levels 'mail' and ' mail '", "the same", N,
          guessed(lambda g: list(g.levels), campaign(group=["none", "mail", "none", " mail "] * 150)),
          ["none", "mail"]),
    Input("rows", "every unit twice, with other cells", "counted by ingest alone", N,
          guessed(lambda g: g.unit, campaign(customer=np.arange(N) // 2), unit="customer"),
          Refused(r"column 'customer' repeats in 600 of 600 rows, which would be rejected")),
    Input("rows", "60 units twice, with other cells", "counted by ingest alone", N,
          guessed(lambda g: g.unit, campaign(customer=np.maximum(np.arange(N) - 60, np.arange(N) % 60)),
                  unit="customer"), "customer", "rows share one and are rejected"),
    Input("rows", "50 units without an id", "counted by ingest alone", N,
          guessed(lambda g: g.unit, campaign(customer=[None] * 50 + list(range(550))), unit="customer"), "customer",
          "50 rows without one are rejected"),
    Input("rows", "ids of 19 digits as doubles", "all units one or two", N,
          guessed(lambda g: g, campaign(customer=np.arange(N) + 9007199254740993.0e3), unit="customer"),
          Refused("column 'customer' holds 600 ids that doubles round, .*: save ids as text")),
    Input("rows", "an outcome that never varies", "effects of 0, without a word", N,
          guessed(lambda g: g, campaign(bought=[0] * N)), Refused("'bought' is 0 in all 600 rows .*: no effect")),
    Input("rows", "an outcome without any value", "nan% yes, and NumPy's warnings", N,
          guessed(lambda g: g, campaign(bought=pa.nulls(N, pa.float64()))), Refused("'bought' is empty in all rows: ")),
    Input("rows", "an outcome of inf", "column '_outcome' is infinite", N,
          guessed(lambda g: g, campaign(bought=first(12, float("inf"), 1.0))),
          Refused("column 'bought' is infinite in 12 rows: correct")),
    Input("rows", "an outcome of texts", "refused, without a way out", N,
          guessed(lambda g: g, campaign(bought=first(9, "Left", "Stays"))),
          Refused("'bought' must hold numbers but 600 rows .* as in --outcome bought=Left")),
    Input("rows", "50 outcomes that are not known", "counted by ingest alone", N,
          guessed(lambda g: g.outcomes, campaign(bought=[None] * 50 + [0.0, 1.0] * 275)), {"bought": "bought"},
          "not known in 50 rows"),
    Input("roles", "treatment and outcome in one column", "refused", N,
          guessed(lambda g: g, campaign(), outcomes=("group",)),
          Refused("column 'group' cannot be two of treatment, outcome")),
    Input("roles", "no column left as a feature", "refused", N,
          guessed(lambda g: g, campaign(age=None, shop=None)), Refused("no column is left as a feature: name some")),
    Input("roles", "propensity 0 in a sixth of the rows", "counted by ingest alone", N,
          framed(lambda c: c, campaign(p=first(100, 0.0, 0.5)), propensity="p"),
          Refused(r"column 'p' is not in \(0, 1\] in 100 of 600 rows: correct")),
    Input("roles", "propensity 50 %", "counted by ingest alone", N,
          framed(lambda c: c, campaign(p=[50.0] * N), propensity="p"),
          Refused(r"column 'p' is not in \(0, 1\] in 600 of 600 rows: correct")),
    Input("roles", "propensity 'half'", "p must hold numbers", N,
          framed(lambda c: c, campaign(p=["half"] * N), propensity="p"),
          Refused("column 'p' must hold numbers but 600 rows hold text such as 'half' in row 1: ")),
    Input("roles", "P(treated) on all rows", "accepted: 1/p of the control adds up to 2.33 n", N,
          propensities(0.3, 0.3),
          Refused(r"'p' is not the probability .* 2.33 times in none, .*source.propensity: \{mail: p\}")),
    Input("roles", "the probability of the level received", "the same", N, propensities(0.3, 0.7), None),
    Input("money", "a budget of -5", "refused, with a configuration left behind", N,
          framed(lambda c: c, campaign(), budget=-5.0), Refused("^budget=-5 is no amount of money: give 0 or more")),
    Input("money", "a cost of -1", "refused by policy, four jobs later", N,
          framed(lambda c: c, campaign(), cost=-1.0), Refused("^cost=-1 is no amount of money: give 0 or more")),
    Input("money", "a cost for an unknown level", "left out", N, framed(lambda c: c, campaign(), cost={"Mial": 1.0}),
          Refused("names 'Mial', no level of the treatment: ")),
    Input("money", "a cost of the control", "left out, without a word", N,
          framed(lambda c: c, campaign(), cost={"none": 1.0}),
          Refused("none: the control is not treated .* leave it out")),
    Input("frames", "a sound one, ids in the index", "no frame could be given", N,
          framed(lambda c: (c.source.unit, c.roles.features), campaign().to_pandas().set_index("customer")),
           # type: ignore
          ("customer", ("age", "shop"))),
    Input("frames", "a column of complex numbers", "a traceback: ArrowNotImplementedError", N,
          framed(lambda c: c, campaign().to_pandas().assign(z=1j)), Refused("a column has a type .* cast it")),
    Input("frames", "a sparse column", "'not a DataFrame'", N,
          framed(lambda c: c, campaign().to_pandas().assign(z=pd.arrays.SparseArray([0.0] * N))),
          Refused("a column has a type .* cast it")),
    Input("frames", "numbers and texts in a column", "no frame could be given", N,
          framed(lambda c: c, campaign().to_pandas().assign(z=pd.Series(first(9, 1, "x"), dtype=object))),
          Refused("a column mixes types .* cast it to one type")),
]  # fmt: skip

SOURCES = [
    Input("source", "a name that is misspelt", "the same", 1,
          lambda folder: cells(written(folder, "id\n1\n").with_name("row.csv")),
          Refused("row.csv is not there: .* did you mean 'rows.csv'")),
    Input("source", "a folder without files", "one file alone was read", 0,
          lambda folder: cells(written(folder / "in", "", "_SUCCESS").parent), Refused("in holds no file")),
    Input("source", "a folder of CSV and Parquet", "one file alone was read", 2,
          made(lambda folder: (written(folder / "in", "id\n1\n"),
                               pq.write_table(pa.table({"id": [1]}), folder / "in" / "b.parquet"))[0].parent),
          Refused(r"files of several kinds \(parquet, text\): name those of one kind")),
    Input("source", "a folder of folders", "one file alone was read", 1,
          lambda folder: cells(written(folder / "in" / "day=1", "id\n1\n").parent.parent),
          Refused(r"in holds 1 folders \(day=1\), whose files would be left out: name all")),
    Input("source", "files of other columns", "one file alone was read", 2, two("id,n\n1,2\n", "id,m\n1,2\n"),
          Refused("b.csv does not have the columns of .*a.csv: they differ in m, n")),
    Input("source", "a Delta table's folder, as files", "removed rows read, too, without a word", 1, made(delta),
          Refused("crm is a Delta table, whose files hold removed rows, too: name that folder")),
    Input("source", "a Delta table's files, by a pattern", "removed rows read, too, without a word", 1,
          made(lambda folder: delta(folder) / "*.parquet"), Refused("crm is a Delta table, whose files hold removed")),
    Input("source", "a file without the right to read it", "refused, without a remedy", 1, locked("file"),
          Refused("rows.csv cannot be read: Permission denied")),
    Input("source", "a folder without the right to read it", _TRACEBACK, 1, locked("folder"),
          Refused("private cannot be read: Permission denied; ask for the right")),
    Input("source", "a path that begins with ~", "not there", 1, in_home, ONE),
    Input("source", "blanks, % and [ in a path", "the same", 1,
          csv("id,n\n1,2\n", "50% off [new].csv"), ONE),
    Input("source", "a Parquet file cut in half", "not read: CSV alone", 1000, made(halved),
          Refused("is no readable Parquet .*: write it again")),
    Input("source", "an Excel file", "'not a readable CSV'", 1, csv(b"PK\x03\x04", "book.xlsx"),
          Refused("book.xlsx is a workbook: save the sheet as CSV")),
    Input("source", "JSON, a row a line", "columns '{\"id\":1', the first row lost", 2,
          csv('{"id":1,"n":2}\n{"id":2,"n":3}\n'), Refused("is JSON, not CSV: write it as Parquet")),
    Input("source", "a web page in the file's place", "'cannot infer number of columns'", 0,
          csv("<!DOCTYPE html><html>404</html>"), Refused("is a web page or XML, not a table: fetch")),
    Input("source", "a PDF", "line 3 is not cp1252", 0, csv(b"%PDF-1.4\n\x80\x81"),
          Refused("neither CSV nor Parquet: ")),
]  # fmt: skip

INPUTS = (*ENCODINGS, *LINES, *TYPES, *NAMES, *GUESSES, *YAML, *ROWS, *SOURCES)


def checked(folder: Path) -> tuple[str, int]:
    """(the table as text, how many rows are not as expected); every row gets a folder of its own below `folder`."""
    body, failed = [], 0
    for number, one in enumerate(INPUTS):
        home = folder / str(number)
        home.mkdir()
        now, wrong = found(one, home)
        failed += bool(wrong)
        cell = " ".join((f"NO: {'; '.join(wrong)}" if wrong else now).split())
        body.append((one.kind, one.words, one.before, cell if len(cell) <= 150 else f"{cell[:147]}..."))
    return aligned(("kind", "input", "before", "now"), body), failed
