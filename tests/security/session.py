"""Attacks on a real session: each is run through the gate, where nothing must come of it, and then without it.

An attack of which nothing comes without the gate either would show nothing, so that counts as not expected.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.security.attack import Attack
from uplift_spark.config import Lakehouse
from uplift_spark.errors import UpliftError
from uplift_spark.lake.queries import query_rows
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

SECRET = "PATH"  # what every process has in its environment
NO_TABLE, START = "is no table of the lakehouse", "only reads: start the query"


class Target:
    """A lakehouse with the table gold.toy, and beside it a file that is nobody's to read and a folder to write to."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self.lake = lake
        self.file = folder / "secret.txt"
        self.file.write_text("the secret of the file\n", encoding="utf-8")
        self.out = folder / "out"
        lake.write("gold.toy", lake.spark.createDataFrame([("a", 1.5), ("b", 2.5)], "arm string, uplift double"), "r1")

    def state(self) -> tuple[object, ...]:
        """What an attack may change."""
        views = [row["viewName"] for row in self.lake.spark.sql("SHOW VIEWS").collect()]
        setting = self.lake.spark.conf.get("spark.attacked", "")
        return (self.lake.tables(), self.lake.version("gold.toy"), self.out.exists(), views, setting)

    def leaks(self, text: str) -> bool:
        """Whether a text tells a secret."""
        return os.environ[SECRET] in text or "the secret of the file" in text

    def effect(self, run: Callable[[], object]) -> str:
        """What comes of a query: `leaked`, `changed` or `nothing`."""
        before = self.state()
        try:
            result = str(run())
        except UpliftError as error:
            result = str(error)
        return "leaked" if self.leaks(result) else "changed" if self.state() != before else "nothing"


def texts(target: Target) -> dict[str, tuple[str, str]]:
    """{query: (what comes of it without the gate, what the gate should say)}."""
    toy = f"{target.lake.lakehouse.path}/gold/toy"
    return {
        f"SELECT '${{env:{SECRET}}}'": ("leaked", "would put a variable in its place"),
        f"SELECT java_method('java.lang.System', 'getenv', '{SECRET}')": ("leaked", "function java_method is not"),
        f"SELECT reflect('java.lang.System', 'getenv', '{SECRET}')": ("leaked", "function reflect is not allowed"),
        f"SELECT * FROM text.`{target.file}`": ("leaked", NO_TABLE),
        f"WITH x AS (SELECT * FROM text.`{target.file}`) SELECT value FROM x": ("leaked", NO_TABLE),
        f"SELECT (SELECT max(_c0) FROM csv.`{target.file}`) AS c": ("leaked", NO_TABLE),
        f"INSERT OVERWRITE DIRECTORY '{target.out}' USING csv SELECT * FROM gold.toy": ("changed", START),
        "FROM gold.toy INSERT INTO gold.toy SELECT *": ("changed", START),
        f"INSERT INTO delta.`{toy}` SELECT * FROM delta.`{toy}`": ("changed", START),
        "WITH x AS (SELECT 'a' AS arm) DELETE FROM gold.toy": ("changed", "delete is not allowed"),
        f"CREATE TEMPORARY VIEW attacked USING text OPTIONS (path '{target.file}')": ("changed", START),
        "SET spark.attacked = yes": ("changed", START),
        "DROP TABLE IF EXISTS gold.toy": ("nothing", START),  # of a folder's table Spark forgets the name alone
    }


def attacks(target: Target) -> list[Attack]:
    """Each of the texts, through the gate."""
    return [
        Attack("on a session", text, partial(query_rows, target.lake, text), "ConfigError", expected)
        for text, (_, expected) in texts(target).items()
    ]


def attacked(folder: Path) -> tuple[list[tuple[str, str, str, str]], int]:
    """Rows like `attack.checked` on a session of its own, and how many are not as expected."""
    lakehouse = Lakehouse(path=str(folder / "lakehouse"))
    spark = spark_session(lakehouse, "security", "local[2]")
    try:
        return outcomes(Target(Lake(spark, lakehouse), folder))
    finally:
        spark.stop()


def outcomes(target: Target) -> tuple[list[tuple[str, str, str, str]], int]:
    """Run every attack through the gate, and without it."""
    rows = []
    for attack in attacks(target):
        seen = attack.seen()
        with_gate = target.effect(attack.run)
        bare = target.effect(partial(_bare, target.lake, attack.text))
        good = attack.holds(seen) and with_gate == "nothing" and bare == texts(target)[attack.text][0]
        said = f"{seen[0]}: {seen[1]}; came of it: {with_gate}; without the gate: {bare}"
        rows.append((attack.kind, attack.text[:70], "yes" if good else "NO", said))
    return rows, sum(good != "yes" for _, _, good, _ in rows)


def _bare(lake: Lake, query: str) -> object:
    """What a session of one's own gives, which puts variables in place."""
    setting = "spark.sql.variable.substitute"
    own = lake.spark.conf.get(setting)
    lake.spark.conf.set(setting, "true")
    try:
        return lake.sql(query).collect()
    finally:
        lake.spark.conf.set(setting, own)
