"""DuckDB gives what Spark gives, or hands the query on; it reads nothing but the tables of the lakehouse."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.security import sql_attacks
from uplift_spark.console import csv_text
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.lake.duck import as_texts, local_query
from uplift_spark.lake.local_tables import LocalTables, NotLocal
from uplift_spark.lake.queries import query_rows
from uplift_spark.lake.tables import Lake

# Of both engines: every row in an order that leaves nothing open.
ALIKE = (
    "SELECT name, big, x, f, b, at, day, price, part, raw FROM silver.odd ORDER BY big",
    "SELECT * FROM silver.plain ORDER BY unit DESC",
    "SELECT name, big, `an x`, at, part FROM silver.mapped ORDER BY 2",
    "SELECT name, part FROM silver.parts ORDER BY name DESC, big",
    "SELECT name, part FROM silver.parts WHERE part IS NOT NULL ORDER BY part, name LIMIT 2",
    "SELECT count(*), count(unit), count(DISTINCT arm), sum(n), min(y), max(at) FROM silver.plain",
    "SELECT count(*) AS n FROM silver.mapped",
    "SELECT arm, count(*) AS n, sum(y) AS total, avg(n) AS mean, stddev(y) AS spread, count_if(y > 0.5) AS many "
    "FROM silver.plain GROUP BY arm HAVING count(*) > 1 ORDER BY arm NULLS LAST",
    "SELECT arm, sum(n) FILTER (WHERE y > 1) AS s, max(y) FILTER (WHERE n = 2) AS m "
    "FROM silver.plain GROUP BY 1 ORDER BY 1",
    "SELECT unit, round(y, 2) AS r, round(y, 1) AS q, n / 3 AS third, y * 0.1 AS tenth, -y AS less "
    "FROM silver.plain ORDER BY unit",
    "SELECT unit, int(digits) + 1 AS d, CAST(y AS INT) AS cut, CAST(n AS STRING) AS t FROM silver.plain "
    "WHERE NOT isnan(y) ORDER BY unit",
    "SELECT unit, CASE WHEN y > 1 THEN 'high' WHEN y IS NULL THEN 'none' ELSE 'low' END AS k "
    "FROM silver.plain ORDER BY unit",
    "SELECT unit, coalesce(arm, '?') AS a, nullif(n, 2) AS z, if(y > 1, n, 7) AS i, isnan(y) AS nan "
    "FROM silver.plain ORDER BY unit",
    "SELECT upper(arm) AS u, length(name) AS l, substr(name, 1, 1) AS s FROM silver.plain JOIN silver.odd ON n = big "
    "ORDER BY unit",
    "SELECT unit, row_number() OVER (PARTITION BY arm ORDER BY y DESC, unit) AS place, "
    "sum(n) OVER (ORDER BY unit ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS so_far "
    "FROM silver.plain ORDER BY unit",
    "WITH a(arm, n) AS (SELECT arm, count(*) FROM silver.plain GROUP BY arm) "
    "SELECT p.unit, a.n FROM silver.plain p LEFT JOIN a USING (arm) ORDER BY p.unit",
    "SELECT arm FROM silver.plain UNION SELECT name FROM silver.odd ORDER BY arm",
    "SELECT unit FROM silver.plain WHERE arm IN (SELECT name FROM silver.odd) OR unit LIKE '%2' ORDER BY unit",
    "SELECT unit FROM silver.plain p WHERE EXISTS (SELECT 1 FROM silver.odd o WHERE o.big = p.n) ORDER BY 1",
    "SELECT unit FROM silver.plain WHERE NOT (y BETWEEN 0 AND 1) AND at >= '2025-01-01' ORDER BY unit",
    "SELECT DISTINCT year(at) AS y, month(at) AS m, date(at) AS d, date_trunc('month', at) AS f "
    "FROM silver.odd ORDER BY d",
    "SELECT datediff(at, day) AS d, quarter(day) AS q FROM silver.odd ORDER BY big",
    "SELECT 9223372036854775807 AS most, 1234567890123456789 - 1 AS less, 'it''s \"so\"' AS t, NULL AS no, 1e3 AS k",
    "SELECT max(n) AS n FROM silver.plain VERSION AS OF 0",
)
# Spark's own to answer, or to refuse: whatever might mean something else in DuckDB.
SPARKS = (
    "SELECT n + 0.5 AS a FROM silver.plain",  # a decimal there
    "SELECT 0.5 AS a FROM silver.plain",
    "SELECT n + 1 FROM silver.plain",  # a name of Spark's own
    "SELECT list FROM silver.odd",
    "SELECT * FROM silver.odd",
    "SELECT y / 0 AS a FROM silver.plain",
    "SELECT int(arm) AS a FROM silver.plain",
    "SELECT big + 1 AS a FROM silver.odd",  # overflows
    "SELECT upper(name) AS a FROM silver.odd",  # é
    "SELECT arm = 1 AS a FROM silver.plain",
    "SELECT CAST(y AS STRING) AS a FROM silver.plain",
    "SELECT percentile(y, 0.5) AS a FROM silver.plain",
    "SELECT regexp_replace(arm, 'a', 'b') AS a FROM silver.plain",
    "SELECT unit, count(*) AS n FROM silver.plain",
    "SELECT unit FROM silver.plain WHERE arm LIKE 'a\\\\_%'",
    "SELECT current_date() AS d",
    "DESCRIBE silver.plain",
    "SELECT unit FROM silver.plain a JOIN silver.plain b ON a.n = b.n",  # ambiguous
    "SELECT unit FROM silver.plain VERSION AS OF 7",
)
PLAIN = pa.table(
    {
        "unit": ["u1", "u2", "u3", "u4", "u5"],
        "arm": ["a", "b", None, "a", ""],
        "n": pa.array([1, 2, 3, 2, None], pa.int64()),
        "y": [0.125, 2.675, math.nan, None, -1.005],
        "digits": ["1", " 2 ", "+3", None, "-4"],
        "at": pa.array([0, 10**15, 1736166896500000, None, -1], pa.timestamp("us", "UTC")),
    }
)


@pytest.fixture
def tables(tmp_path: Path) -> LocalTables:
    write_deltalake(tmp_path / "silver" / "plain", PLAIN)
    odd = {"name": ["é", None], "big": pa.array([2**63 - 1, None], pa.int64()), "list": [[1.0], None]}
    write_deltalake(tmp_path / "silver" / "odd", pa.table(odd))
    return LocalTables(tmp_path)


def test_values_are_exact(tables: LocalTables) -> None:
    rows = local_query(tables, "SELECT unit, round(y, 2) AS r, at FROM silver.plain ORDER BY y NULLS LAST")
    assert csv_text(as_texts(rows)).splitlines() == [
        "unit,r,at",
        "u5,-1.01,1969-12-31 23:59:59.999999",
        "u1,0.13,1970-01-01 00:00:00",
        "u2,2.68,2001-09-09 01:46:40",
        "u3,NaN,2025-01-06 12:34:56.5",
        "u4,,",
    ]


def test_nulls_come_first_as_in_spark(tables: LocalTables) -> None:
    rows = local_query(tables, "SELECT arm FROM silver.plain ORDER BY arm LIMIT 2")
    assert rows.to_pydict() == {"arm": [None, ""]}


def test_bounds_are_kept_and_said(tables: LocalTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uplift_spark.lake.duck.MOST_CELLS", 9)
    assert len(local_query(tables, "SELECT unit FROM silver.plain")) == 5
    with pytest.raises(NotLocal, match=r"5 rows of silver\.plain are many"):
        local_query(tables, "SELECT unit, arm FROM silver.plain")


def test_versions_and_sizes(tables: LocalTables) -> None:
    write_deltalake(tables.path / "silver" / "plain", PLAIN, mode="append")
    assert tables.sizes() == [("silver.odd", 2, 0), ("silver.plain", 10, 1)]
    counts = [local_query(tables, f"SELECT count(*) FROM silver.plain{of}") for of in ("", " VERSION AS OF 0")]
    assert [rows.to_pydict() for rows in counts] == [{"count(1)": [10]}, {"count(1)": [5]}]


@pytest.mark.parametrize("query", SPARKS)
def test_what_might_differ_is_left_to_spark(tables: LocalTables, query: str) -> None:
    with pytest.raises(NotLocal):
        local_query(tables, query)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("SELECT arn FROM silver.plain", "no column 'arn', did you mean 'arm'"),
        ("SELECT 1 AS a FROM silver.plan", "table silver.plan does not exist .* did you mean 'silver.plain'"),
    ],
)
def test_unknown_names_are_refused_at_once(tables: LocalTables, query: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        local_query(tables, query)


def test_a_missing_file_is_one_sentence(tables: LocalTables) -> None:
    next(tables.path.glob("silver/plain/*.parquet")).unlink()
    with pytest.raises(DataError, match=r"a file of table silver.plain version 0 is gone"):
        local_query(tables, "SELECT unit FROM silver.plain")


def test_attacks_do_not_reach_duckdb(tables: LocalTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb, "connect", lambda *a, **k: pytest.fail("an attack reached DuckDB"))
    queries = [one for one in sql_attacks.attacks() if one.text.startswith("uplift sql ")]
    assert len(queries) > 100
    for attack in queries:
        with pytest.raises(ConfigError, match=attack.expected):
            local_query(tables, attack.text.removeprefix("uplift sql "))


@pytest.mark.parametrize("command", ["SELECT * FROM read_text('{0}')", "SELECT * FROM '{0}'", "COPY r0 TO '{0}.csv'"])
def test_duckdb_itself_reads_and_writes_no_file(
    tables: LocalTables, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the gate to fail, DuckDB has nothing but the tables."""
    (tmp_path / "secret.csv").write_text("a\n1\n")
    connect = duckdb.connect

    class Open:
        def __init__(self, *arguments: object, **options: object) -> None:
            self.real = connect(*arguments, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def sql(self, text: str) -> object:
            for attempt in (command.format(tmp_path / "secret.csv"), "SET enable_external_access = true"):
                with pytest.raises(duckdb.Error):
                    self.real.execute(attempt)
            return self.real.sql(text)

    monkeypatch.setattr(duckdb, "connect", Open)
    assert local_query(tables, "SELECT count(*) AS n FROM silver.plain").to_pydict() == {"n": [5]}
    assert not (tmp_path / "secret.csv.csv").exists()


def _odd_tables(lake: Lake) -> LocalTables:
    """Tables of Spark's own: times of years 1500 and 9999, partitions, deleted rows, renamed columns."""
    spark, base = lake.spark, f"{lake.lakehouse.path}/silver"
    frame = spark.sql(
        """SELECT * FROM VALUES
        ('a', 9223372036854775807L, 1.5D, 0.1F, true, timestamp'1500-01-01 00:00:00', date'1500-01-01',
         12345678901234567.89BD, 'p1', X'00ff'),
        ('', -9223372036854775808L, double('NaN'), float('NaN'), false, timestamp'9999-12-31 23:59:59.999999',
         date'9999-12-31', -0.01BD, '', X''),
        (null, null, null, null, null, null, null, null, null, null),
        ('é😀', 1234567890123456789L, double('Infinity'), -0.0F, true, timestamp'2025-01-06 12:34:56.5',
         date'2025-01-06', 0.00BD, 'p 2/ü=%', null),
        ('z', 2L, -0.0D, 3.4e38F, true, timestamp'1969-12-31 23:59:59.999999', date'0001-01-01', 1.00BD, 'p1', null)
        AS t(name, big, x, f, b, at, day, price, part, raw)"""
    ).coalesce(1)
    frame.write.format("delta").save(f"{base}/odd")
    frame.write.format("delta").partitionBy("part").save(f"{base}/parts")
    spark.createDataFrame(PLAIN).coalesce(1).write.format("delta").save(f"{base}/plain")
    writer = frame.write.format("delta").option("delta.enableDeletionVectors", "true")
    writer.option("delta.columnMapping.mode", "name").save(f"{base}/mapped")
    spark.sql(f"DELETE FROM delta.`{base}/mapped` WHERE name = 'a'")
    spark.sql(f"ALTER TABLE delta.`{base}/mapped` RENAME COLUMN x TO `an x`")
    return LocalTables(lake.lakehouse.path)


@pytest.mark.slow
def test_both_engines_say_the_same(lake: Lake) -> None:
    tables = _odd_tables(lake)
    assert next(Path(tables.path).glob("silver/mapped/deletion_vector*"))
    for query in ALIKE:
        here, there = as_texts(local_query(tables, query)), query_rows(lake, query, texts_only=True)
        assert here.column_names == there.column_names, query
        for mine, theirs in zip(here.columns, there.columns, strict=True):
            assert [_plain(v) for v in mine.to_pylist()] == [_plain(v) for v in theirs.to_pylist()], query


def _plain(value: object) -> object:
    """Fractions to 14 digits: sums of them come in another order."""
    return f"{value:.14g}" if isinstance(value, float) else value
