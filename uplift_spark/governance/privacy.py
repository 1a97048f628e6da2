"""Pseudonyms in place of unit ids (`pseudonymised`), and consent, the gate before units leave (`ConsentGate`)."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config, Consent
from uplift_spark.errors import DataError
from uplift_spark.lake.contracts import trimmed_id
from uplift_spark.lake.schemas import CONSENT_TABLE
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import UNIT, plain_id
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
WITHDREW, NO_GRANT = "withdrew", "no consent"


def gated(rows: DataFrame, consent: DataFrame | None, purpose: str, required: bool) -> DataFrame:
    """Add the column GATE to `rows`: MAY, WITHDREW or NO_GRANT, by the unit's latest statement on `purpose`.

    The latest is the one last changed, then the one known last; of a grant and a withdrawal at the same time the
    withdrawal counts, and a grant that lies in the future does not. Units who never said a word may be contacted unless
    consent is `required`. consent: rows of bronze.consent; None when there is none.
    """
    silence = F.lit(NO_GRANT if required else MAY)
    if consent is None:
        return rows.withColumn(GATE, silence)
    statements = of_purpose(consent, purpose).where(~F.col("granted") | F.expr("changed_at <= now()"))
    latest = F.max(F.struct("changed_at", "known_at", (~F.col("granted")).alias("withdrawn")))["withdrawn"]
    units = statements.groupBy(UNIT).agg(latest.alias("__withdrawn"))
    gate = F.when(F.col("__withdrawn"), F.lit(WITHDREW)).when(F.col("__withdrawn").isNull(), silence)
    return rows.join(units, UNIT, "left").withColumn(GATE, gate.otherwise(F.lit(MAY))).drop("__withdrawn")


def of_purpose(consent: DataFrame, purpose: str) -> DataFrame:
    """The statements on a purpose, whatever its case and blanks, with ids as the tables have them."""
    same = F.lower(F.trim("purpose")) == purpose.strip().lower()
    return consent.where(same).withColumn(UNIT, trimmed_id(F.col(UNIT)))


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
        if not purposes:
            return
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
    return {reason: counts[reason] for reason in (WITHDREW, NO_GRANT) if reason in counts}
