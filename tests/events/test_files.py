"""Files as users have them: each cell arrives with its value, or the file is refused with line and reason."""

from __future__ import annotations

import gzip
import zipfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.files import FileFormat, id_text, number_column, read_texts, read_typed


def written(folder: Path, content: str | bytes, name: str = "rows.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def columns(path: str | Path, **form: Any) -> dict[str, list[Any]]:
    return read_typed(path, FileFormat(**form)).table.to_pydict()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("zip\n01234\n1234\n", ["01234", "1234"]),
        ("store\n1E5\n2\n", ["1E5", "2"]),
        ("plan\n001\n1\n", ["001", "1"]),
        ("id\n12345678901234567890\n1\n", ["12345678901234567890", "1"]),
        ("id\n1234567890123456789\n1\n", [1234567890123456789, 1]),
        ("share\n1e-05\n2.5E+20\n.5\n3.\n", [1e-05, 2.5e20, 0.5, 3.0]),
        ("n\n+1\n-2\n", [1, -2]),
        ("n\n0\n0.5\n", [0.0, 0.5]),
        ("n\n1\nNA\n\"\"\n", [1, None, None]),
        ("n\n1\nx\n", ["1", "x"]),
        ("flag\nTrue\nFALSE\nNA\n", [True, False, None]),
        ("answer\nYes\nNo\n", ["Yes", "No"]),
        ("day\n2024-01-31\n2024-02-01\n", [date(2024, 1, 31), date(2024, 2, 1)]),
        ("day\n2024-02-31\n2024-02-01\n", ["2024-02-31", "2024-02-01"]),
        ("at\n2024-01-31 09:30\n2024-02-01T10:00:01\n", [datetime(2024, 1, 31, 9, 30), datetime(2024, 2, 1, 10, 0, 1)]),
        ("at\n2024-01-31T09:30+02:00\n2024-01-31T09:30Z\n", [datetime(2024, 1, 31, h, 30, tzinfo=UTC) for h in (7, 9)]),
        ("empty\nNA\nNA\n", [None, None]),
    ],
)  # fmt: skip
def test_texts_get_the_type_that_all_of_them_are_of(text: str, values: list[Any], tmp_path: Path) -> None:
    (column,) = columns(written(tmp_path, text)).values()
    assert column == values and list(map(type, column)) == list(map(type, values))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_encoding_keeps_units_apart(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path, "id,city\nMüller,Köln\nMöller,Bonn\n", encoding=encoding)
    assert columns(path) == {"id": ["Müller", "Möller"], "city": ["Köln", "Bonn"]}


def test_an_encoding_that_is_a_guess_is_said_and_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "id\nŁódź\nKraków\n", encoding="cp1250")
    assert "line 2 is not UTF-8, read as cp1252" in read_typed(path).notes[0]
    assert columns(path, encoding="cp1250") == {"id": ["Łódź", "Kraków"]}
    with pytest.raises(DataError, match=r"rows.csv: line 2 is not utf-8: name its encoding under source.encoding"):
        columns(path, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"source.encoding 'latin-x' is unknown"):
        columns(path, encoding="latin-x")
    with pytest.raises(DataError, match="line 2 is not cp1252"):
        columns(written(tmp_path, b"id\n\x81\n"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_the_one_that_makes_rows_alike(separator: str, tmp_path: Path) -> None:
    text = separator.join(["id", "note", "x"]) + "\n" + "".join(
        separator.join([str(i), f'"a, b; c{separator}d"', "1"]) + "\n" for i in range(5)
    )  # fmt: skip
    assert columns(written(tmp_path, text)) == {"id": [*range(5)], "note": [f"a, b; c{separator}d"] * 5, "x": [1] * 5}


def test_line_breaks_in_cells_make_no_row(tmp_path: Path) -> None:
    path = written(tmp_path, 'id,note,n\n1,"two\nlines",3\r\n2,"a ""quote""",4\n')
    assert columns(path) == {"id": [1, 2], "note": ["two\nlines", 'a "quote"'], "n": [3, 4]}


def test_decimal_commas(tmp_path: Path) -> None:
    path = written(tmp_path, "id;spend;big\n1;1,5;1.234,50\n2;22,25;3,5\n")
    assert columns(path) == {"id": [1, 2], "spend": [1.5, 22.25], "big": [1234.5, 3.5]}
    assert any("comma before the fraction in spend, big" in note for note in read_typed(path).notes)
    thousands = written(tmp_path, "id;n\n1;1,234\n2;2,345\n", "thousands.csv")
    assert columns(thousands)["n"] == ["1,234", "2,345"]  # nobody can tell which it is
    assert columns(thousands, decimal=",")["n"] == [1.234, 2.345]


def test_packed_files(tmp_path: Path) -> None:
    text = b"id,n\n1,2\n"
    packed = [written(tmp_path, gzip.compress(text), "a.csv.gz"), written(tmp_path, gzip.compress(text), "b.csv")]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("c.csv", text)
    assert [columns(path) for path in (*packed, tmp_path / "c.zip")] == [{"id": [1], "n": [2]}] * 3
    with pytest.raises(DataError, match="damaged or cut off"):
        columns(written(tmp_path, gzip.compress(text)[:-9], "d.csv.gz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv is empty"),
        ("id,n\n", "has a header but no rows"),
        ("id,n\n1,2\n2,3,4\n", "line 3 has 3 cells at ',', the header has 2"),
        ('id,n\n1,"a\nb"\n2\n', "line 4 has 1 cells"),
        ('id,n\n1,"a\n2,b\n3,c\n', "the quote in line 2 never ends"),
        ("1,2\n3,4\n", "the first line holds numbers"),
    ],
)
def test_broken_files_are_refused_with_line_and_reason(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        columns(written(tmp_path, text))
    assert "rows.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_programs_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a workbook: save the sheet as CSV"):
        columns(written(tmp_path, b"PK\x03\x04", "book.xlsx"))
    with pytest.raises(DataError, match="neither CSV nor Parquet"):
        columns(written(tmp_path, b"ARROW1\0\0", "rows.feather"))
    with pytest.raises(DataError, match=r"row\.csv is not there.*did you mean 'rows.csv'"):
        written(tmp_path, "id\n1\n")
        columns(tmp_path / "row.csv")


def test_names_of_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "Unnamed: 0,total ads,x,x,,_c0\n0,5,1,2,,7\n")
    rows = read_typed(path)
    assert rows.table.to_pydict() == {"total ads": [5], "x": [1], "x_2": [2]}
    assert "a second column 'x' is called 'x_2'" in rows.notes[0]
    assert "Unnamed: 0, Unnamed: 4, _c0 not kept" in rows.notes[1]
    assert columns(path, rename={"total ads": "ads", "_c0": "seventh"}) == {
        "ads": [5],
        "x": [1],
        "x_2": [2],
        "seventh": [7],
    }
    assert "_c0" in columns(path, kept=("_c0",))
    with pytest.raises(ConfigError, match=r"no column 'total_ads', did you mean 'total ads'"):
        columns(path, rename={"total_ads": "ads"})
    with pytest.raises(ConfigError, match="gives 'x' to several columns"):
        columns(path, rename={"total ads": "x"})


def test_files_in_folders_are_not_left_out_in_silence(tmp_path: Path) -> None:
    for day in ("day=1", "day=2"):
        (tmp_path / day).mkdir()
        written(tmp_path / day, f"a,b\n{day[-1]},x\n")
    with pytest.raises(DataError, match=r"holds 2 folders \(day=1, day=2\), whose files would be left out"):
        read_typed(tmp_path)
    read = read_typed(tmp_path / "*" / "*.csv")
    assert read.table["a"].to_pylist() == [1, 2] and "names of folders are not read as columns, as day=1" in read.notes


def test_types_are_those_of_all_files(tmp_path: Path) -> None:
    written(tmp_path, "zip,n\n1234,1\n", "a.csv")
    written(tmp_path, "n,zip\n2,01234\n", "b.csv")
    written(tmp_path, "", "_SUCCESS")
    expected = {"zip": ["1234", "01234"], "n": [1, 2]}
    assert columns(tmp_path) == columns(f"{tmp_path}/*.csv") == expected
    written(tmp_path, "n,zap\n2,01234\n", "c.csv")
    with pytest.raises(DataError, match=r"c.csv does not have the columns of .*a.csv: they differ in zap, zip"):
        columns(tmp_path)


def test_declared_types(tmp_path: Path) -> None:
    path = written(tmp_path, "id,day,n,gone\n1,31.12.2024,Yes,-999\nNA,01.01.2025,No,5\n")
    rows = columns(path, types={"id": "text", "day": "%d.%m.%Y", "n": "number"}, missing=(-999,))
    assert rows == {
        "id": ["1", "NA"], "day": [datetime(2024, 12, 31), datetime(2025, 1, 1)], "n": [1.0, 0.0], "gone": [None, 5],
    }  # fmt: skip
    for types, message in (
        ({"day": "time"}, "'day' holds 2 texts that are not an ISO time .* as '31.12.2024'"),
        ({"day": "number"}, "must hold numbers but 2 rows hold text such as '31.12.2024'"),
        ({"day": "%Y"}, "not a time as %Y"),
    ):
        with pytest.raises(DataError, match=message):
            columns(path, types=types)
    with pytest.raises(ConfigError, match=r"source.types.day 'date' is unknown"):
        columns(path, types={"day": "date"})
    with pytest.raises(ConfigError, match=r"source.types: .* no column 'dya', did you mean 'day'"):
        columns(path, types={"dya": "time"})


def test_parquet_of_any_type(tmp_path: Path) -> None:
    at = pd.Timestamp("2024-01-31 09:30:00.123456789")
    table = pa.table(
        {
            "unsigned": pa.array([2**63 - 1, 5], pa.uint64()),
            "huge": pa.array([2**64 - 1, 5], pa.uint64()),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "nano": pa.array([at, None], pa.timestamp("ns")),
            "zoned": pa.array([at, None], pa.timestamp("ns", "Europe/Berlin")),
            "nan": pa.array([float("nan"), 2.0]),
            "half": pa.array(np.array([1.5, 2], np.float16)),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "zip": pa.array(["01234", ""]),
            "items": pa.array([[1], [2]]),
            "__index_level_0__": [0, 1],
        }
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    rows = read_typed(path)
    got = rows.table.to_pydict()
    assert got["unsigned"] == [2**63 - 1, 5] and got["huge"] == ["18446744073709551615", "5"]
    assert (got["price"], got["half"], got["kind"]) == ([1.5, None], [1.5, 2.0], ["a", "b"])
    assert got["nano"] == [datetime(2024, 1, 31, 9, 30, 0, 123456), None] and got["zoned"][0].tzinfo is not None
    assert (got["nan"], got["zip"]) == ([None, 2.0], ["01234", None])
    assert rows.notes[0].startswith("rows.parquet: items (list<") and "__index_level_0__ not kept" in rows.notes[1]
    pq.write_table(table.select(["nano"]), path, use_deprecated_int96_timestamps=True)
    assert columns(path)["nano"][0] == datetime(2024, 1, 31, 9, 30, 0, 123456)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is no readable Parquet"):
        columns(path)


def test_parquet_files_of_different_types(tmp_path: Path) -> None:
    for name, values in (("a", [1, 2]), ("b", [1.5, None]), ("c", [None, None])):
        pq.write_table(pa.table({"n": values}), tmp_path / f"{name}.parquet")
    assert columns(tmp_path)["n"] == [1.0, 2.0, 1.5, None, None, None]
    pq.write_table(pa.table({"n": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="column 'n' is double, int64, string in different files"):
        columns(tmp_path)


def test_a_stata_file_that_names_two_columns_alike_loses_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.dta"
    pd.DataFrame({"arm": [0, 1], "xx": [1.5, 2.5]}).to_stata(file, write_index=False)
    file.write_bytes(file.read_bytes().replace(b"xx\0", b"arm"))
    assert columns(file) == {"arm": [0, 1], "arm_2": [1.5, 2.5]}


def test_stata(tmp_path: Path) -> None:
    pd.DataFrame({"arm": [0, 1], "x": [1.5, np.nan]}).to_stata(tmp_path / "rows.dta", write_index=False)
    assert columns(tmp_path / "rows.dta") == {"arm": [0, 1], "x": [1.5, None]}


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = read_typed(written(tmp_path, "id\n1\n", "a.csv")).digest
    assert read_typed(written(tmp_path, "id\n1\n", "b.csv")).digest == first
    assert read_typed(written(tmp_path, "id\n2\n", "b.csv")).digest != first


def test_whole_numbers_that_a_null_made_doubles_are_the_same_ids() -> None:
    assert id_text(pa.chunked_array([[1001.0, None]])).to_pylist() == ["1001", None]
    assert id_text(pa.chunked_array([[1001.5, 2.0]])).to_pylist() == ["1001.5", "2"]
    assert number_column(pa.chunked_array([["yes", None, "No"]]), "x").to_pylist() == [1.0, None, 0.0]
    assert number_column(pa.chunked_array([[date(1970, 1, 3)]]), "x").to_pylist() == [2.0]


def test_cells_as_they_stand(tmp_path: Path) -> None:
    table, _ = read_texts(written(tmp_path, "a,a\n01, x \n,NA\n"))
    assert table.column_names == ["a", "a"] and table.column(1).to_pylist() == [" x ", "NA"]
