"""Attacks by the SQL that users write: on `uplift sql`, and on each key that takes an expression. None needs Spark."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.security.attack import Attack
from uplift_spark.config import Policy
from uplift_spark.jobs.replay import Replay
from uplift_spark.sections.source import TableSource
from uplift_spark.sql_gate import checked_query

START = "only reads: start the query with SELECT or WITH, DESCRIBE, SHOW, EXPLAIN"
NO_TABLE = "is no table of the lakehouse"
UNREAD = "it cannot be read"
DETAILS = "of what is known about tables it shows DESCRIBE"


def _no(what: str) -> str:
    return f"{what} is not allowed"


_QUERIES: dict[str, dict[str, str]] = {
    "write": {
        "WITH x AS (SELECT 1) DELETE FROM gold.lift_table": _no("delete"),
        "WITH x AS (SELECT 1) INSERT INTO gold.lift_table SELECT * FROM x": r"it cannot be read|insert is not allowed",
        "FROM gold.x INSERT OVERWRITE gold.y SELECT *": START,
        "SELECT * FROM (FROM gold.x INSERT INTO gold.y SELECT *)": _no("multitable inserts"),
        "INSERT OVERWRITE DIRECTORY '/any' SELECT 1": START,
        "INSERT INTO gold.x VALUES (1)": START,
        "(DELETE FROM gold.x)": START,
        "SELECT * FROM (DELETE FROM gold.x)": UNREAD,
        "UPDATE gold.x SET a = 1": START,
        "MERGE INTO gold.x USING gold.y ON true WHEN MATCHED THEN DELETE": START,
        "TRUNCATE TABLE gold.x": START,
        "DROP TABLE gold.x": START,
        "ALTER TABLE gold.x DROP COLUMN a": START,
        "VACUUM gold.x RETAIN 0 HOURS": START,
        "OPTIMIZE gold.x": START,
        "RESTORE TABLE gold.x TO VERSION AS OF 0": START,
        "CREATE TABLE gold.y AS SELECT 1": START,
        "CREATE OR REPLACE VIEW gold.v AS SELECT 1": START,
        "CREATE TEMPORARY VIEW v USING csv OPTIONS (path '/etc/passwd')": START,
        "LOAD DATA INPATH '/etc/passwd' INTO TABLE gold.x": START,
        "COPY INTO gold.x FROM '/any'": START,
        "EXPLAIN DELETE FROM gold.x": START,
        "EXPLAIN EXTENDED INSERT INTO gold.x SELECT 1": START,
        "SELECT a INTO OUTFILE 'x' FROM gold.x": UNREAD,
        "SELECT * FROM gold.x FOR UPDATE": _no("select with locks"),
    },
    "second statement": {
        "SELECT 1; DROP TABLE gold.x": "only one statement",
        "SELECT 1;; SELECT 2": "only one statement",
        "SELECT 1 /* ; */ ; DELETE FROM gold.x -- ": "only one statement",
        "SELECT ';' ; DELETE FROM gold.x": "only one statement",
        "BEGIN DELETE FROM gold.x; END": "only one statement",
        "EXECUTE IMMEDIATE 'DROP TABLE gold.x'": START,
        "DECLARE x INT DEFAULT 1": START,
    },
    "session": {
        "SET spark.sql.ansi.enabled = false": START,
        "RESET": START,
        "ADD JAR '/any.jar'": START,
        "CACHE TABLE a AS SELECT 1": START,
        "REFRESH TABLE gold.x": START,
        "USE gold": START,
        "CALL system.any()": START,
        "CREATE FUNCTION f AS 'any.Class'": START,
        "CREATE TEMPORARY MACRO m(x INT) x + 1": START,
        "LIST FILE": START,
        "SHOW FUNCTIONS": DETAILS,
        "SHOW CREATE TABLE gold.x": DETAILS,
        "SHOW TABLES IN default": DETAILS,
        "DESCRIBE FUNCTION EXTENDED reflect": DETAILS,
        "DESCRIBE QUERY SELECT reflect('a', 'b')": DETAILS,
    },
    "code": {
        "SELECT java_method('java.lang.System', 'load', '/any.so')": _no("function java_method"),
        "SELECT reflect('java.lang.System', 'getenv', 'KEY')": _no("function reflect"),
        "SELECT try_reflect('java.lang.System', 'exit', 1)": _no("function try_reflect"),
        "SELECT ReFlEcT /* x */ ('java.lang.System', 'getenv', 'KEY')": _no("function reflect"),
        "SELECT -- x\n reflect\n(\n'java.lang.System', 'getenv', 'KEY')": _no("function reflect"),
        "SELECT `reflect`('java.lang.System', 'getenv', 'KEY')": "must not stand in backquotes",
        "SELECT system.builtin.reflect('a', 'b')": "a function of a schema",
        "SELECT `system`.`builtin`.`reflect`('a', 'b')": "a function of a schema",
        "SELECT \uff52eflect('a', 'b')": "must stand in backquotes",
        "SELECT refl\u0435ct('a', 'b')": "must stand in backquotes",
        "SELECT reflect\u200b('a', 'b')": "has no meaning here",
        "SELECT\u00a0reflect('a', 'b')": "has no meaning here",
        "SELECT (SELECT reflect('a', 'b'))": _no("function reflect"),
        "WITH a AS (SELECT 1), b AS (SELECT reflect('a', 'b') FROM a) SELECT * FROM b": _no("function reflect"),
        "SELECT * FROM gold.x WHERE a IN (SELECT reflect('a', 'b'))": _no("function reflect"),
        "SELECT * FROM gold.x LATERAL VIEW reflect('a', 'b') t AS c": _no("function reflect"),
        "SELECT * FROM gold.x LATERAL VIEW explode(array(reflect('a', 'b'))) t AS c": _no("function reflect"),
        "SELECT * FROM gold.x, LATERAL (SELECT reflect('a', 'b'))": _no("function reflect"),
        "SELECT * FROM gold.x JOIN gold.y ON reflect('a', 'b') = 1": _no("function reflect"),
        "SELECT a FROM gold.x ORDER BY reflect('a', 'b')": _no("function reflect"),
        "SELECT a FROM gold.x GROUP BY CUBE(reflect('a', 'b'))": _no("function reflect"),
        "SELECT a FROM gold.x HAVING reflect('a', 'b')": _no("function reflect"),
        "SELECT a FROM gold.x LIMIT length(reflect('a', 'b'))": _no("function reflect"),
        "SELECT sum(a) OVER (PARTITION BY b ORDER BY reflect('a', 'b')) FROM gold.x": _no("function reflect"),
        "SELECT count(*) FILTER (WHERE reflect('a', 'b')) FROM gold.x": _no("function reflect"),
        "SELECT CASE WHEN a THEN reflect('a', 'b') END FROM gold.x": _no("function reflect"),
        "SELECT transform(array(1), x -> reflect('a', x))": _no("function reflect"),
        "SELECT CAST(reflect('a', 'b') AS INT), reflect('a', 'b')::int": _no("function reflect"),
        "SELECT 1 UNION ALL SELECT reflect('a', 'b')": _no("function reflect"),
        "VALUES (reflect('a', 'b'))": _no("function reflect"),
        "SELECT * FROM VALUES (1), (reflect('a', 'b')) AS t(x)": _no("function reflect"),
        "SELECT * FROM range(length(reflect('a', 'b')))": _no("function reflect"),
        "SELECT struct(1, reflect('a', 'b')).col2": _no("function reflect"),
        "SELECT INTERVAL (reflect('a', 'b')) DAY": "interval with this",
        "EXPLAIN SELECT reflect('a', 'b')": _no("function reflect"),
        "SELECT TRANSFORM(a) USING 'cat' AS (b) FROM gold.x": UNREAD,
        "SELECT ai_query('model', 'x'), http_request('x')": _no("function ai_query"),
        "SELECT my_registered_function(a) FROM gold.x": _no("function my_registered_function"),
    },
    "files": {
        "SELECT * FROM text.`/etc/passwd`": NO_TABLE,
        "SELECT * FROM csv.`/etc/passwd`": NO_TABLE,
        "SELECT * FROM binaryFile.`/etc/*`": NO_TABLE,
        "SELECT * FROM parquet.`s3a://any/x`": NO_TABLE,
        "SELECT * FROM delta.`/any`": NO_TABLE,
        "SELECT * FROM delta.`/any@v1`": NO_TABLE,
        "SELECT * FROM delta.`/any` VERSION AS OF 1": NO_TABLE,
        "SELECT * FROM text.passwd": NO_TABLE,
        "SELECT * FROM `text`.`/etc/passwd`": NO_TABLE,
        "SELECT * FROM gold.`../../etc/passwd`": NO_TABLE,
        "SELECT * FROM spark_catalog.text.`/etc/passwd`": NO_TABLE,
        "SELECT * FROM gold.gold.x": NO_TABLE,
        "WITH text AS (SELECT 1) SELECT * FROM text.`/etc/passwd`": NO_TABLE,
        "WITH a AS (SELECT * FROM text.`/etc/passwd`) SELECT * FROM a": NO_TABLE,
        "SELECT * FROM gold.x WHERE a = (SELECT max(value) FROM text.`/etc/passwd`)": NO_TABLE,
        "SELECT * FROM gold.x, json.`/any` WHERE 1 = 1": NO_TABLE,
        "SELECT 1 EXCEPT SELECT * FROM text.`/etc/passwd`": NO_TABLE,
        "EXPLAIN FORMATTED SELECT * FROM text.`/etc/passwd`": NO_TABLE,
        "DESCRIBE text.`/etc/passwd`": DETAILS,
        "DESCRIBE HISTORY delta.`/any`": DETAILS,
        "DESCRIBE DETAIL default.x": NO_TABLE,
        "TABLE text.`/etc/passwd`": START,
        "SELECT * FROM read_files('/etc/passwd')": _no("function read_files"),
        "SELECT * FROM identifier('text.`/etc/passwd`')": _no("function identifier"),
        "SELECT * FROM IDENTIFIER('text.' || '`/etc/passwd`')": _no("function identifier"),
        "SELECT * FROM gold.x VERSION AS OF (SELECT 1)": "the version must be a number or a time",
        "SELECT * FROM STREAM gold.x": "no table of the lakehouse|cannot be read",
        "SELECT * FROM any_view": NO_TABLE,
        "SELECT * FROM global_temp.v": NO_TABLE,
        "SELECT * FROM other.gold.x": NO_TABLE,
        "SELECT * FROM a, (WITH a AS (SELECT 1) SELECT * FROM a) b": NO_TABLE,
        "WITH a AS (SELECT * FROM a) SELECT * FROM a": NO_TABLE,
        "SELECT from_xml('<a/>', 'a int', map('rowValidationXSDPath', '/etc/passwd'))": _no("function from_xml"),
        "SELECT xpath_string('<a/>', 'a')": _no("function xpath_string"),
    },
    "secrets": {
        "SELECT '${env:KEY}'": "would put a variable in its place",
        'SELECT "${system:user.home}"': "would put a variable in its place",
        "SELECT ${env:KEY}": "would put a variable in its place",
        "SELECT a AS `${spark:spark.app.name}` FROM gold.x": "would put a variable in its place",
        "SELECT 1 /* ${env:KEY} */": "would put a variable in its place",
        "SELECT :parameter": "a colon outside of a type",
        "SELECT ?": "has no meaning here",
        "SELECT getenv('KEY')": _no("function getenv"),
        "SELECT secret('scope', 'key')": _no("function secret"),
        "SELECT current_user()": _no("function current_user"),
        "SELECT current_user": _no("current user"),
        "SELECT user": "user is not allowed",
        "SELECT `session_user`": "session_user is not allowed",
        "SELECT version()": _no("function version"),
        "SELECT input_file_name() FROM gold.x": _no("function input_file_name"),
        "SELECT _metadata.file_path FROM gold.x": "_metadata is not allowed",
        "SELECT t.`_METADATA` FROM gold.x t": "_metadata is not allowed",
        "SELECT * FROM variables()": _no("function variables"),
    },
    "odd text": {
        "": START,
        "-- nothing": START,
        "SELECT /*+ REPARTITION(1) */ a FROM gold.x": "hints are not allowed",
        "SELECT /* open": "a comment does not end",
        "SELECT /* /* */ reflect('a', 'b') */ 1": "a comment does not end, or has another one within",
        "SELECT 'open": "the quote ' is not closed",
        "SELECT 'a\\'": "the quote ' is not closed",
        "SELECT 'a' 'b'": "two texts side by side",
        "SELECT `open": "the quote ` is not closed",
        "SELECT {fn now()}": "has no meaning here",
        "SELECT 1abc": "this is no number",
        "SELECT a FROM gold.x |> DROP a": UNREAD,
        "SELECT $1": "has no meaning here",
        "SELECT 1\x00": "has no meaning here",
        "SELECT " + "(" * 3000 + "1" + ")" * 3000: "nested too deeply",
        "SELECT '" + "x" * 100_001 + "'": "more than 100,000",
    },
}  # fmt: skip


def _exclude(text: str) -> object:
    return Policy(exclude={"rule": text})


def _cost(text: str) -> object:
    return Policy(cost={"mail": text})


def _cost_most(text: str) -> object:
    return Policy(bound="lower", cost_most={"mail": text})


def _where(text: str) -> object:
    return TableSource("table", "arm", ("bought",), ("age",), path="x.csv", where=text)


def _repair(text: str) -> object:
    return Replay.of("bronze.event", None, [f"value={text}"])


_DOORS: dict[str, Callable[[str], object]] = {
    "policy.exclude.rule": _exclude,
    "policy.cost.mail": _cost,
    "policy.cost_most.mail": _cost_most,
    "source.where": _where,
    "--repair value": _repair,
}
_EXPRESSIONS: dict[str, str] = {
    "reflect('java.lang.System', 'getenv', 'KEY') = 'x'": _no("function reflect"),
    "age < 18 OR java_method('java.lang.System', 'load', '/any.so') IS NULL": _no("function java_method"),
    "`java_method`('a', 'b')": "must not stand in backquotes",
    "transform(array(1), x -> reflect('a', x))[0] = 1": _no("function reflect"),
    "'${env:KEY}' = age": "would put a variable in its place",
    "age < (SELECT max(value) FROM text.`/etc/passwd`)": "table is not allowed|select is not allowed|subquery is not",
    "EXISTS (SELECT 1 FROM gold.x)": "exists is not allowed|select is not allowed",
    "age IN (SELECT age FROM gold.x)": "in with query is not allowed|select is not allowed",
    "unit_id IN (TABLE gold.x)": UNREAD,
    "sum(age) > 1": _no("function sum"),
    "row_number() OVER (ORDER BY age) = 1": "is not allowed",
    "explode(array(1)) = 1": _no("function explode"),
    "rand() < 0.5": _no("function rand"),
    "uuid() > 'a'": _no("function uuid"),
    "signup < current_date()": _no("function current_date"),
    "signup < current_date": "is not allowed",
    "signup < now()": _no("function now"),
    "monotonically_increasing_id() < 5": _no("function monotonically_increasing_id"),
    "spark_partition_id() = 0": _no("function spark_partition_id"),
    "current_user() = 'x'": _no("function current_user"),
    "input_file_name() = 'x'": _no("function input_file_name"),
    "_metadata.file_path = 'x'": "_metadata is not allowed",
    "raise_error('x')": _no("function raise_error"),
    "true) OR (true": "it must be one expression",
    "true; DROP TABLE gold.x": "only one statement",
    "age < 18, 1": "it must be one expression",
    "age < 18 AS x": "it must not name its result",
    "*": "star is not allowed|cannot be read",
    "t.*": "star is not allowed",
    "DELETE FROM gold.x": UNREAD,
    "age < 18 UNION SELECT 1": UNREAD,
    "age < 18 FROM gold.x": UNREAD,
    "SELECT 1": "it must be one expression",
    "/*+ hint */ age < 18": "hints are not allowed",
    "age <": UNREAD,
    " ": "it is empty",
}  # fmt: skip


def attacks() -> list[Attack]:
    """Every text on `uplift sql`; every expression on one of the keys in turn, the first of them on all."""
    listed = [
        Attack(kind, f"uplift sql {text}", partial(checked_query, text), "ConfigError", expected)
        for kind, texts in _QUERIES.items()
        for text, expected in texts.items()
    ]
    doors = list(_DOORS.items())
    for number, (text, expected) in enumerate(_EXPRESSIONS.items()):
        for key, door in doors if number < 3 else doors[number % len(doors) :][:1]:
            listed.append(Attack("expression", f"{key}={text}", partial(door, text), "ConfigError", expected))
    return listed
