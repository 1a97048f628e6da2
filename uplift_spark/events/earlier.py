"""Rows that earlier loads left in a raw table and in quarantine: which are known, which go, which are there already.

Each row's column `source` ends in `#KEY`, the identity of its file or Delta table; rows of `uplift replay` have
`quarantine#KEY` there, made from the quarantined row (`quarantine_name`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from uplift_spark.lake.contracts import INGESTED_AT, as_json
from uplift_spark.lake.schemas import QUARANTINE, profile_table
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import CAMPAIGN, RUN_ID
from uplift_spark.runtime import ProgressCallback
from uplift_spark.spark_versions import sql_text

KEY_DIGITS = 16  # hexadecimal digits of an identity
KEY_OF_SOURCE = f"regexp_extract(source, '#([0-9a-f]{{{KEY_DIGITS}}})$', 1)"
NAME_OF_SOURCE = f"regexp_extract(source, '^(.*)#[0-9a-f]{{{KEY_DIGITS}}}$', 1)"
OF_INGEST = "ingest"  # how the ids of runs begin that `uplift ingest` names itself
_REPLAYED = "quarantine#"
_NUMBER = "__number"

# --------------------------------------------------------------------------------------------------------------------
# What is known.


def of_others(lake: Lake, table: str, run_id: str, outgoing: Outgoing | None = None) -> DataFrame:
    """Rows of other runs, without those that go."""
    rows = lake.read(table).where(F.col(RUN_ID) != run_id)
    return rows if outgoing is None else outgoing.kept(lake, rows)


def known_keys(lake: Lake, table: str, keys: Collection[str], run_id: str) -> set[str]:
    """Find those of these keys whose rows other runs have added to `table`."""
    if not lake.exists(table):
        return set()
    have = of_others(lake, table, run_id).select(F.expr(KEY_OF_SOURCE).alias("key")).distinct()
    return {row["key"] for row in have.where(F.col("key").isin(*keys)).collect()}


def known_version(lake: Lake, table: str, key: str, run_id: str) -> int | None:
    """Find the newest version of the Delta table with this key whose rows other runs have added to `table`."""
    if not lake.exists(table):
        return None
    version = of_others(lake, table, run_id).agg(F.max(version_of(key)).alias("version")).collect()[0]["version"]
    return None if version is None else int(version)


def version_of(key: str) -> Column:
    """The version of the Delta table with this key that a row's source names; null of rows from elsewhere."""
    return F.regexp_extract("source", f"@([0-9]+)#{key}$", 1).try_cast("bigint")


# --------------------------------------------------------------------------------------------------------------------
# Quarantined rows by name, and those that a run need not add again.


def quarantined(lake: Lake, table: str) -> DataFrame:
    """Rows of quarantine that were meant for `table`, with what `uplift replay` calls each in a column `name`."""
    rows = lake.read(QUARANTINE).where(F.col("source_table") == table)
    key = ("source_table", "row", "source", RUN_ID)
    # Rows that are alike in everything are rows nonetheless.
    numbered = rows.withColumn(_NUMBER, F.row_number().over(Window.partitionBy(*key).orderBy(INGESTED_AT)))
    name = F.concat(F.lit(_REPLAYED), F.substring(F.sha2(as_json([*key, _NUMBER]), 256), 1, KEY_DIGITS))
    return numbered.withColumn("name", name).drop(_NUMBER)


def replayed_before(rows: DataFrame) -> DataFrame:
    """Those rows of a raw table that `uplift replay` added."""
    return rows.where(F.col("source").startswith(_REPLAYED))


@dataclass(frozen=True)
class Rejected:
    """Rejected rows that are not in quarantine yet.

    refused   {rule: how many}
    already   rejected rows that are there from earlier runs
    decided   rows of these sources that earlier runs rejected and this one does not, or by another rule
    """

    rows: DataFrame
    refused: dict[str, int]
    already: int = 0
    decided: int = 0


def not_yet_quarantined(
    lake: Lake,
    table: str,
    rejected: Rejected,
    run_id: str,
    keys: Collection[str],
    between: tuple[int | None, int | None] = (None, None),
) -> Rejected:
    """Leave out rejected rows that other runs have put there from the same source: as many as they have of each.

    Such a run was killed before it added good rows, or had none. Rows are the same when their text and the rule they
    break are.

    keys    of the sources that are read
    between  of a Delta table, or a log, only rows of versions after the first and up to the second are read; None: all
    """
    others = lake.read(QUARANTINE).where((F.col("source_table") == table) & (F.col(RUN_ID) != run_id))
    others = others.where(F.expr(KEY_OF_SOURCE).isin(*keys))
    since, until = between
    if since is not None:
        (key,) = keys
        others = others.where(version_of(key) > since)
    if until is not None:
        (key,) = keys
        others = others.where(version_of(key) <= until)
    if others.isEmpty():
        return rejected
    same = ["__row", "__rule", "__key", _NUMBER]

    def numbered(rows: DataFrame) -> DataFrame:
        key = F.coalesce(F.expr(KEY_OF_SOURCE), F.lit("")).alias("__key")
        named = rows.select("*", F.col("row").alias("__row"), F.col("rule").alias("__rule"), key)
        return named.withColumn(_NUMBER, F.row_number().over(Window.partitionBy(*same[:3]).orderBy("reason")))

    mine, theirs = numbered(rejected.rows), numbered(others).select(*same, F.lit(True).alias("__theirs"))
    both = mine.select(*same, "rule").join(theirs, same, "full")
    counts = both.groupBy("rule", "__theirs").agg(F.count("*").alias("n")).collect()
    new = {row["rule"]: row["n"] for row in counts if row["__theirs"] is None}
    already = sum(row["n"] for row in counts if row["__theirs"] and row["rule"] is not None)
    decided = sum(row["n"] for row in counts if row["rule"] is None)
    rows = mine.join(theirs, same, "left_anti").select(*rejected.rows.columns)
    return Rejected(rows, dict(sorted(new.items())), already, decided)


# --------------------------------------------------------------------------------------------------------------------
# What a run takes the place of.


@dataclass(frozen=True)
class Outgoing:
    """Earlier rows of a raw table and of quarantine that a replacement removes, and what was replayed from the latter.

    keys      identities of the sources that are read anew
    sources   more sources, as the column `source` names them
    owner     campaign whose rows go that any `uplift ingest` brought, whatever their source; None: none of these
    runs      ids of these runs, as far as the tables tell
    """

    table: str
    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    owner: str | None = None
    runs: tuple[str, ...] = ()

    def condition(self, columns: Collection[str]) -> str:
        """SQL over rows with these columns; true or false, never null."""
        parts = [f"{KEY_OF_SOURCE} IN ({_texts(self.keys)})"] if self.keys else []
        parts += [f"source IN ({_texts(self.sources)})"] if self.sources else []
        if self.owner is not None:
            parts += [f"{RUN_ID} IN ({_texts(self.runs)})"] if self.runs else []
            # A profile's table is the campaign's own.
            shared = self.table != profile_table(self.owner) and CAMPAIGN in columns
            mine = f" AND {CAMPAIGN} = {_texts([self.owner])}" if shared else ""
            parts.append(f"({RUN_ID} LIKE '{OF_INGEST}-%'{mine})")
        return f"coalesce({' OR '.join(parts) or 'false'}, false)"

    def replayed(self, lake: Lake) -> DataFrame | None:
        """Names of the quarantined rows that go, in a column `source`; None when there are none."""
        if not lake.exists(QUARANTINE):
            return None
        rows = quarantined(lake, self.table)
        return rows.where(self.condition(rows.columns)).select(F.col("name").alias("source"))

    def kept(self, lake: Lake, rows: DataFrame) -> DataFrame:
        """Rows of the raw table without those that go."""
        rows = rows.where(f"NOT {self.condition(rows.columns)}")
        names = self.replayed(lake)
        return rows if names is None else rows.join(names, "source", "left_anti").select(*rows.columns)

    def remove(self, lake: Lake, progress: ProgressCallback) -> None:
        """Delete them; older versions of the tables have them. A repetition finds what a killed run left."""
        names = self.replayed(lake)
        if lake.exists(self.table):
            rows = lake.read(self.table)
            if names is not None and not replayed_before(rows).isEmpty():
                self._tell(progress, self.table, lake.delete_matching(self.table, names), "replayed rows of")
            self._tell(progress, self.table, lake.delete_rows(self.table, self.condition(rows.columns)))
        # Last, for it says which replayed rows go.
        if lake.exists(QUARANTINE):
            mine = f"{self.condition([CAMPAIGN])} AND source_table = {_texts([self.table])}"
            self._tell(progress, QUARANTINE, lake.delete_rows(QUARANTINE, mine))

    def _tell(self, progress: ProgressCallback, table: str, gone: int, what: str = "rows of") -> None:
        if gone:
            progress(f"{table}: {gone:,} {what} earlier loads removed, older versions have them")

    def tell_left(self, lake: Lake, progress: ProgressCallback) -> None:
        """Say which sources any `uplift ingest` read have rows that stay: campaigns share the table."""
        if not lake.exists(self.table):
            return
        rows = lake.read(self.table).where(F.col(RUN_ID).startswith(f"{OF_INGEST}-"))
        rows = rows.where(f"NOT {self.condition(rows.columns)}")
        left = rows.groupBy("source").agg(F.count(F.lit(1)).alias("n")).orderBy("source").collect()
        if left:
            some = ", ".join(row["source"] for row in left[:3]) + (" and others" if len(left) > 3 else "")
            progress(
                f"warning: {sum(row['n'] for row in left):,} rows of {some} stay in {self.table}, which campaigns "
                f"share: if no campaign has these files any more, run `uplift load {self.table} --replace --replaced "
                f"{left[0]['source']}` with one of the files that are there"
            )

    def tell_absent(self, lake: Lake, progress: ProgressCallback) -> None:
        """Say which of `sources` have no rows: they are misspelled, or an earlier run removed them."""
        have: set[str] = set()
        for table in filter(lake.exists, (self.table, QUARANTINE)):
            rows = lake.read(table).where(F.col("source").isin(*self.sources)) if self.sources else None
            if rows is not None and table == QUARANTINE:
                rows = rows.where(F.col("source_table") == self.table)
            have |= set() if rows is None else {row["source"] for row in rows.select("source").distinct().collect()}
        for source in self.sources:
            if source not in have:
                progress(
                    f"warning: neither {self.table} nor {QUARANTINE} has rows of --replaced {source}: nothing of it is "
                    "removed; correct it if no earlier run removed them"
                )


def _texts(values: Iterable[str]) -> str:
    """SQL literals, separated by commas."""
    return ", ".join(map(sql_text, values))
