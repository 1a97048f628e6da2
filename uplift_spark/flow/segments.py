"""Segments as readable buckets: every value where there are few, quarters of the units where numbers are many.

Buckets of a crossing are those of its features, joined: `north x mobile`.
"""

from __future__ import annotations

import math

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from uplift_spark.vocabulary import CROSSING, DataError, crossed

FEW_VALUES = 12
"""Numbers with at most so many distinct values are taken as they are."""

MOST_VALUES = 200
"""A text segment with more values is refused: its cells would be too small to say anything."""

MISSING = "missing"

_REFUSED = 1.1 * MOST_VALUES  # counts are within a few per cent

_STEPS = 1 << 16  # quartiles are exact on this grid between the lowest and the highest value, in bounded memory


def segment_buckets(frame: DataFrame, segments: tuple[str, ...], table: str) -> tuple[Column, ...]:
    """One string column per segment (a feature or a crossing), never null, from at most three passes over the frame.

    Text and few-valued numbers keep their values; other numbers become `1: <= a`, `2: a to b` (above a, up to b), …
    with distinct quartiles rounded to four digits, so that the label is the rule. DataError when text has too many
    values, a crossing too many buckets, or text of a crossing holds what stands between its buckets.
    """
    if not segments:
        return ()
    parts = {segment: crossed(segment) for segment in segments}
    features = tuple(dict.fromkeys(feature for of_segment in parts.values() for feature in of_segment))
    numeric = {c for c in features if isinstance(frame.schema[c].dataType, NumericType)}
    found = frame.agg(*[e for c in features for e in _profile(c, c in numeric)]).first()
    assert found is not None
    counts = {c: found[f"{c}_distinct"] for c in features}
    for c in features:
        if c not in numeric and counts[c] > _REFUSED:
            raise DataError(f"segment {c!r} of {table} has about {counts[c]} values: at most {MOST_VALUES} make sense")
    many = [c for c in features if c in numeric and counts[c] > FEW_VALUES]
    quartiles = _quartiles(frame, {c: (found[f"{c}_low"], found[f"{c}_high"]) for c in many})
    single = {c: _quarters(c, quartiles[c]) if c in quartiles else _as_is(c, c in numeric) for c in features}
    buckets = {s: F.concat_ws(CROSSING, *(single[c] for c in of_segment)) for s, of_segment in parts.items()}
    crossings = {s: of_segment for s, of_segment in parts.items() if len(of_segment) > 1}
    _check_parted({c: found[f"{c}_clashes"] for cs in crossings.values() for c in cs if c not in numeric}, table)
    most = {c: 1 + (len(quartiles[c]) + 1 if c in quartiles else counts[c]) for c in features}  # with missing values
    large = [s for s, of_segment in crossings.items() if math.prod(most[c] for c in of_segment) > MOST_VALUES]
    _check_large(frame, {s: buckets[s] for s in large}, table)
    return tuple(buckets.values())


def _check_parted(clashes: dict[str, int], table: str) -> None:
    for feature, rows in clashes.items():
        if rows:
            raise DataError(
                f"{rows} rows of {table} have {CROSSING!r} in {feature!r}, which parts the buckets of a crossing: "
                "replace it there, or do not cross this feature"
            )


def _check_large(frame: DataFrame, crossings: dict[str, Column], table: str) -> None:
    """Count the buckets that occur of crossings that could have too many."""
    if not crossings:
        return
    found = frame.agg(*[F.approx_count_distinct(b, rsd=0.02).alias(s) for s, b in crossings.items()]).first()
    assert found is not None
    for segment in crossings:
        if found[segment] > _REFUSED:
            raise DataError(
                f"crossing {segment!r} of {table} has about {found[segment]} buckets: at most {MOST_VALUES} make "
                "sense, so cross fewer features, or such with fewer values"
            )


def _profile(name: str, numeric: bool) -> list[Column]:
    distinct = F.approx_count_distinct(F.col(name), rsd=0.02).alias(f"{name}_distinct")
    if not numeric:
        return [distinct, F.count_if(F.col(name).cast("string").contains(CROSSING)).alias(f"{name}_clashes")]
    finite = _finite(name)
    return [distinct, F.min(finite).alias(f"{name}_low"), F.max(finite).alias(f"{name}_high")]


def _finite(name: str) -> Column:
    number = F.col(name).cast("double")
    return F.when(~F.isnan(number) & (F.abs(number) < float("inf")), number)


def _quartiles(frame: DataFrame, ranges: dict[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Distinct quartiles per column, rounded to four digits; the same for any partitioning."""
    if not ranges:
        return {}
    steps = {c: (high - low) / _STEPS for c, (low, high) in ranges.items()}
    keys = {c: F.ceil((_finite(c) - F.lit(low)) / F.lit(steps[c])) for c, (low, _) in ranges.items()}
    three = F.array(F.lit(0.25), F.lit(0.5), F.lit(0.75))
    found = frame.agg(*[F.percentile(key, three).alias(c) for c, key in keys.items()]).first()
    assert found is not None
    return {
        c: sorted({_rounded(low + math.ceil(p) * steps[c]) for p in found[c]} - {high})
        for c, (low, high) in ranges.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quarters(name: str, cuts: list[float]) -> Column:
    number = _finite(name)
    texts = [f"{cut:.4g}" for cut in cuts]
    column = F.when(number.isNull(), F.lit(MISSING))
    for q, cut in enumerate(cuts):
        text = f"<= {texts[0]}" if q == 0 else f"{texts[q - 1]} to {texts[q]}"
        column = column.when(number <= F.lit(cut), F.lit(f"{q + 1}: {text}"))
    return column.otherwise(F.lit(f"{len(cuts) + 1}: > {texts[-1]}" if cuts else "all"))


def _as_is(name: str, numeric: bool) -> Column:
    text = F.col(name).cast("string")
    if numeric:
        number = _finite(name)
        text = F.when(number == F.floor(number), number.cast("bigint").cast("string")).otherwise(number.cast("string"))
    return F.coalesce(text, F.lit(MISSING))
