"""One user's features now, from a small history: the definitions of the training set, equal to its values to the bit.

Pure Python, for serving: `events.features` computes the same for all users in Spark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from uplift_spark.config import DAY, HAPPENED_AT, STEPS, Feature

Row = Mapping[str, Any]
FeatureValue = float | str | None

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def features_at(
    definitions: Sequence[Feature], history: Mapping[str, Iterable[Row]], at: datetime
) -> dict[str, FeatureValue]:
    """Compute every definition at the time `at`, from the rows that had happened and were known by then.

    history   {"event": rows, "profile": rows} of one user, in any order, in the columns of bronze.event and
              bronze.profile_<campaign>; times without a zone are UTC
    """
    now = micros(at)
    known = {source: _known(rows, HAPPENED_AT[source], now) for source, rows in history.items()}
    values = {f.name: _value(f, known.get(f.source, []), now) for f in definitions if f.aggregate != "ratio"}
    for feature in definitions:
        if feature.of is not None:
            values[feature.name] = _ratio(*(values[part] for part in feature.of))
    return {feature.name: values[feature.name] for feature in definitions}


def micros(moment: datetime) -> int:
    """Convert a moment to microseconds since 1970 in UTC."""
    return int(((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH) // _MICROSECOND)


def _known(rows: Iterable[Row], time: str, now: int) -> list[tuple[int, int, int, Row]]:
    """(happened, known, ingested, row) of the rows that had happened and were known."""
    timed = [(micros(row[time]), micros(row["known_at"]), _arrived(row), row) for row in rows]
    return _once([one for one in timed if one[0] <= now and one[1] <= now])


def _once(known: list[tuple[int, int, int, Row]]) -> list[tuple[int, int, int, Row]]:
    """Of rows with the same event and event_id, delivered again, the one known first."""
    first: dict[tuple[str, str], tuple[int, int, int, Row]] = {}
    for one in sorted(known, key=_order):
        first.setdefault((one[3].get("event", ""), one[3].get("event_id") or ""), one)
    return [one for one in known if one[3].get("event_id") is None or first[one[3]["event"], one[3]["event_id"]] is one]


def _order(one: tuple[int, int, int, Row]) -> tuple[Any, ...]:
    happened, known, arrived, row = one
    values = [(row.get(c) is not None, "" if row.get(c) is None else row[c]) for c in ("value", "item")]
    return (known, arrived, happened, *values)


def _arrived(row: Row) -> int:
    ingested = row.get("ingested_at")
    return 0 if ingested is None else micros(ingested)


def _value(feature: Feature, known: list[tuple[int, int, int, Row]], now: int) -> FeatureValue:
    start = None if feature.window_micros is None else now - feature.window_micros
    inside = [
        one
        for one in known
        if (start is None or one[0] > start) and (feature.event is None or one[3]["event"] == feature.event)
    ]
    if feature.aggregate == "count":
        return float(len(inside))
    if feature.aggregate == "recency":
        return (now - max(one[0] for one in inside)) / float(DAY) if inside else None
    if feature.aggregate == "latest":
        return _latest(inside, feature.taken)
    values = [one[3][feature.taken] for one in inside if one[3][feature.taken] is not None]
    if feature.aggregate == "distinct":
        return float(len(set(values)))
    return _number(feature.aggregate, values)


def _latest(inside: list[tuple[int, int, int, Row]], column: str) -> FeatureValue:
    """Of rows at the same time the one that was known, then arrived, last; then the largest value."""
    keys = [(t, k, a, (v := row[column]) is not None, 0.0 if v is None else _plain(v)) for t, k, a, row in inside]
    if not keys:
        return None
    *_, present, value = max(keys)
    return value if present else None


def _plain(value: Any) -> float | str:
    return value if isinstance(value, str) else float(value) + 0.0


def _number(aggregate: str, values: list[Any]) -> float | None:
    if aggregate in ("min", "max"):
        ordered = sorted(map(float, values))
        return ordered[0 if aggregate == "min" else -1] + 0.0 if values else None
    total = sum(round(float(value) * STEPS) for value in values) / STEPS
    if aggregate == "sum":
        return total
    return total / len(values) if values else None


def _ratio(part: FeatureValue, whole: FeatureValue) -> float | None:
    if part is None or whole is None or isinstance(part, str) or isinstance(whole, str) or whole == 0.0:
        return None
    return part / whole
