"""Pseudonyms in place of unit ids (`pseudonymised`), consent, the gate before units leave (`ConsentGate`), and who
objects to being profiled (`Objections`)."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config, Consent
from uplift_spark.errors import DataError
from uplift_spark.lake.contracts import trimmed_id
from uplift_spark.lake.schemas import CONSENT_TABLE
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import RUN_ID, UNIT, plain_id
from uplift_spark.runtime import secret_key

# --------------------------------------------------------------------------------------------------------------------
# Keyed hashes in place of unit ids, before anything is written.
# The key travels to the workers inside their function's closure: no plan, log or table shows it.

_DIGITS = 32  # hexadecimal, 128 bits


def key_of(config: Config) -> bytes | None:
    """Find the key of the campaign's pseudonyms; None when ids stay as they are.

    Raises ConfigError when the environment variable or the secret is not there, or too short to be one.
    """
    return None if config.pseudonyms is None else secret_key("pseudonyms", config.pseudonyms)


def pseudonym(key: bytes, unit: str) -> str:
    """Compute a pseudonym: the first 32 hexadecimal digits of HMAC-SHA256 of the id's UTF-8 text, as `plain_id`."""
    return hmac.digest(key, plain_id(unit).encode(), hashlib.sha256).hex()[:_DIGITS]


def pseudonymised(frame: DataFrame, key: bytes | None, json_column: str | None = None, unread: str = "") -> DataFrame:
    """Replace ids by pseudonyms in the column unit_id, and under that key in a column of rows as JSON.

    Null and blank ids stay, for the rules to find. The text of a line that is no row, which JSON holds under `unread`,
    may contain an id anywhere and is left out. Without a key `frame` as it is.
    """
    if key is None or UNIT not in frame.columns:
        return frame
    text = frame.withColumn(UNIT, F.col(UNIT).cast("string"))
    return text.mapInArrow(partial(hash_batches, key, json_column, unread), text.schema)


def hash_batches(
    key: bytes, json_column: str | None, unread: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Worker: see `pseudonymised`."""
    for batch in batches:
        changed = {UNIT: [_hashed(key, unit) for unit in batch.column(UNIT).to_pylist()]}
        if json_column is not None:
            changed[json_column] = [_hashed_row(key, row, unread) for row in batch.column(json_column).to_pylist()]
        for name, values in changed.items():
            position = batch.schema.get_field_index(name)
            batch = batch.set_column(
                position, batch.schema.field(position), pa.array(values, batch.schema.field(position).type)
            )
        yield batch


def _hashed(key: bytes, unit: str | None) -> str | None:
    return pseudonym(key, unit) if unit is not None and unit.strip() else unit


def _hashed_row(key: bytes, row: str | None, unread: str) -> str | None:
    if row is None:
        return None
    cells = json.loads(row)
    if cells.get(UNIT) is not None:
        cells[UNIT] = _hashed(key, str(cells[UNIT]))
    if cells.get(unread) is not None:
        cells[unread] = f"{len(cells[unread])} characters, which may hold an id"
    return json.dumps(cells, ensure_ascii=False, separators=(",", ":"))


# --------------------------------------------------------------------------------------------------------------------
# Consent: who may be contacted by the statements known now.

GATE, MAY = "gate", "may be contacted"
WITHDREW, NO_GRANT, OBJECTED = "withdrew", "no consent", "objects to profiling"
HELD_BACK = (OBJECTED, WITHDREW, NO_GRANT)
"""Values of GATE of units that may not be contacted."""
PROFILING = "profiling"
"""Purpose whose withdrawal is an objection to profiling (art. 21 GDPR)."""


def gated(rows: DataFrame, consent: DataFrame | None, purpose: str, required: bool) -> DataFrame:
    """Add the column GATE to `rows`: MAY, WITHDREW or NO_GRANT, by the unit's latest statement on `purpose`; OBJECTED,
    whatever that says, where the latest one on PROFILING is a withdrawal.

    The latest is the one last changed, then the one known last; of a grant and a withdrawal at the same time the
    withdrawal counts, and a grant that lies in the future does not. Units who never said a word may be contacted unless
    consent is `required`. consent: rows of bronze.consent; None when there is none.
    """
    silence = F.lit(NO_GRANT if required else MAY)
    if consent is None:
        return rows.withColumn(GATE, silence)
    units = _withdrawn(consent, {"__withdrawn": purpose, "__objects": PROFILING})
    gate = F.when(F.col("__objects"), F.lit(OBJECTED)).when(F.col("__withdrawn"), F.lit(WITHDREW))
    gate = gate.when(F.col("__withdrawn").isNull(), silence).otherwise(F.lit(MAY))
    return rows.join(units, UNIT, "left").withColumn(GATE, gate).drop("__withdrawn", "__objects")


def _withdrawn(consent: DataFrame, purposes: Mapping[str, str]) -> DataFrame:
    """A row a unit: whether its latest statement on each purpose is a withdrawal, null where it never said a word."""
    counts = consent.where(~F.col("granted") | F.expr("changed_at <= now()")).withColumn(UNIT, trimmed_id(F.col(UNIT)))
    word = F.struct("changed_at", "known_at", (~F.col("granted")).alias("withdrawn"))
    latest = [F.max(F.when(_is_of(name), word))["withdrawn"].alias(column) for column, name in purposes.items()]
    return counts.where(reduce(or_, map(_is_of, purposes.values()))).groupBy(UNIT).agg(*latest)


def _is_of(purpose: str) -> Column:
    """Whether a statement is on a purpose, whatever its case and blanks."""
    return F.lower(F.trim("purpose")) == purpose.strip().lower()


def of_purpose(consent: DataFrame, purpose: str) -> DataFrame:
    """The statements on a purpose, whatever its case and blanks, with ids as the tables have them."""
    return consent.where(_is_of(purpose)).withColumn(UNIT, trimmed_id(F.col(UNIT)))


@dataclass(frozen=True)
class Objections:
    """Who objects to profiling, as bronze.consent says now.

    units    one column unit_id
    run_ids  the loads that brought statements on it: what a run depends on that leaves these units out
    """

    units: DataFrame
    run_ids: tuple[str, ...]

    @classmethod
    def of(cls, lake: Lake) -> Objections | None:
        """The objections; None where there is no statement on profiling."""
        if not lake.exists(CONSENT_TABLE):
            return None
        consent = lake.read(CONSENT_TABLE)
        runs = consent.where(_is_of(PROFILING)).select(RUN_ID).distinct().collect()
        if not runs:
            return None
        units = _withdrawn(consent, {"__objects": PROFILING}).where("__objects").select(UNIT)
        return cls(units, tuple(sorted(row[RUN_ID] for row in runs)))

    def count_in(self, rows: DataFrame) -> int:
        """Number of the rows of these units."""
        return rows.join(self.units, UNIT, "left_semi").count()

    def without(self, rows: DataFrame) -> DataFrame:
        """The rows of all other units."""
        return rows.join(self.units, UNIT, "left_anti")


@dataclass(frozen=True)
class ConsentGate:
    """Who may be contacted, by bronze.consent at one version: what every job passes before units leave the lakehouse.

    consent   rows of the table; None: there is none, and none is needed
    version   of the table
    purpose   that the units are to be contacted for
    required  whether a unit that never said a word is held back
    """

    consent: DataFrame | None
    version: int | None
    purpose: str
    required: bool

    @classmethod
    def of(cls, lake: Lake, conf: Consent, purpose: str | None = None) -> ConsentGate:
        """The gate as it stands now; purpose None: `consent.purpose`.

        Raises DataError when consent is required and there is no table of it.
        """
        there = lake.exists(CONSENT_TABLE)
        if conf.required and not there:
            raise DataError(
                f"table {CONSENT_TABLE} does not exist, and consent.required is true: run `uplift load "
                f"{CONSENT_TABLE}`, or set consent.required to false where no consent is needed"
            )
        version = lake.version(CONSENT_TABLE) if there else None
        consent = lake.read(CONSENT_TABLE, version) if there else None
        return cls(consent, version, purpose or conf.purpose, conf.required)

    def judged(self, rows: DataFrame) -> DataFrame:
        """The rows with the column GATE. Raises DataError when no statement is of any of their units."""
        self._refuse_strangers(rows)
        return gated(rows, self.consent, self.purpose, self.required)

    def _refuse_strangers(self, rows: DataFrame) -> None:
        """Ids or purposes that are written otherwise would let withdrawals through, or hold everybody back."""
        if self.consent is None:
            return
        said = of_purpose(self.consent, self.purpose)
        if rows.isEmpty() or not said.join(rows, UNIT, "left_semi").isEmpty():
            return
        purposes = self.consent.groupBy("purpose").agg(F.count("*").alias("n")).collect()
        others = {str(row["purpose"]).strip().lower() for row in purposes} - {PROFILING}
        if not purposes or (not others and not self.required):
            return  # nobody said a word on contacts, which is a yes
        example = said.select(F.min(UNIT)).collect()[0][0]
        if example is None:
            raise DataError(
                f"{CONSENT_TABLE} has {sum(row['n'] for row in purposes):,} rows, none of them of purpose "
                f"{self.purpose!r} but of {', '.join(sorted(str(row['purpose']) for row in purposes)[:10])}: correct "
                "consent.purpose, or --purpose of an export, or load the rows with this purpose"
            )
        raise DataError(
            f"none of the rows of {CONSENT_TABLE} of purpose {self.purpose!r} is of a unit that was scored: unit ids "
            f"there look like {example!r}, here like {rows.select(F.min(UNIT)).collect()[0][0]!r}; write the ids alike "
            "and load the rows again"
        )


def units_by_gate(judged: DataFrame) -> dict[str, int]:
    """Count the units of each value of GATE."""
    return {row[GATE]: row["n"] for row in judged.groupBy(GATE).agg(F.count_distinct(UNIT).alias("n")).collect()}


def held_back(counts: Mapping[str, int]) -> dict[str, int]:
    """Of counts by GATE those of units that may not be contacted."""
    return {reason: counts[reason] for reason in HELD_BACK if reason in counts}
