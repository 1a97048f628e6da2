"""Who may be contacted, by what is known of consent now: the last gate before scores leave the platform (R1.7)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.vocabulary import UNIT

GATE, MAY = "gate", "may be contacted"
WITHDREW, NO_GRANT = "withdrew", "no consent"


def gated(rows: DataFrame, consent: DataFrame | None, purpose: str, required: bool) -> DataFrame:
    """`rows` with the column GATE: MAY, WITHDREW or NO_GRANT, by the unit's latest word on `purpose`.

    The latest is the one last changed, then the one known last; of a grant and a withdrawal at the same time the
    withdrawal counts, and a grant that lies in the future does not. Units who never said a word may be contacted unless
    consent is `required`. consent: rows of bronze.consent; None when there is none.
    """
    silence = F.lit(NO_GRANT if required else MAY)
    if consent is None:
        return rows.withColumn(GATE, silence)
    said = consent.where((F.col("purpose") == purpose) & (~F.col("granted") | F.expr("changed_at <= now()")))
    latest = F.max(F.struct("changed_at", "known_at", (~F.col("granted")).alias("withdrawn")))["withdrawn"]
    units = said.groupBy(UNIT).agg(latest.alias("__withdrawn"))
    gate = F.when(F.col("__withdrawn"), F.lit(WITHDREW)).when(F.col("__withdrawn").isNull(), silence)
    return rows.join(units, UNIT, "left").withColumn(GATE, gate.otherwise(F.lit(MAY))).drop("__withdrawn")
