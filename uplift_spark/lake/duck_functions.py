"""The functions, casts and types of `lake.duck`: how each is written for DuckDB so that it means what Spark means.

A function that is not listed, or has other arguments, raises NotLocal. Each takes its arguments as `DuckValue`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from uplift_spark.lake.local_tables import NESTED, NotLocal

NUMBER_KINDS = ("int", "bigint", "double")
DUCK_TYPES = {"int": "INTEGER", "bigint": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "boolean": "BOOLEAN"}
DUCK_TYPES |= {"date": "DATE", "timestamp": "TIMESTAMP"}

# Spark's meaning where DuckDB's differs. An error in one of them hands the query to Spark.
MACROS = (
    "CREATE MACRO divided(a, b) AS CASE WHEN b = 0 AND a IS NOT NULL THEN error('division by zero') ELSE a / b END",
    "CREATE MACRO modulo(a, b) AS CASE WHEN b = 0 AND a IS NOT NULL THEN error('division by zero') ELSE a % b END",
    "CREATE MACRO whole(t) AS CASE WHEN t IS NULL OR regexp_full_match(t, '[+-]?[0-9]+') THEN t "
    "ELSE error('no whole number') END",
    "CREATE MACRO numeral(t) AS CASE WHEN t IS NULL OR regexp_full_match(t, '[+-]?[0-9]+([.][0-9]+)?(e[+-]?[0-9]+)?') "
    "THEN t ELSE error('no number') END",
    "CREATE MACRO ascii_only(t) AS CASE WHEN t IS NULL OR regexp_full_match(t, '[\\x00-\\x7f]*') THEN t "
    "ELSE error('other letters') END",
    # By the shortest decimal digits of the number, half up, as Spark does; -0.0 and what is not finite stay.
    "CREATE MACRO rounded(x, n) AS CASE WHEN isnan(x) OR isinf(x) OR x = 0 THEN x ELSE "
    "CAST(round(CAST(CAST(x AS VARCHAR) AS DECIMAL(38, 26)), n) AS DOUBLE) END",
    "CREATE MACRO usual_day(d) AS CASE WHEN d IS NULL OR (d >= DATE '0001-01-01' AND d <= DATE '9999-12-31') THEN d "
    "ELSE error('unusual year') END",
)


@dataclass(frozen=True)
class DuckValue:
    """An expression in DuckDB's SQL, its kind, and the digits of a decimal constant."""

    sql: str
    kind: str
    constant: str | None = None


def not_the_same(what: str) -> NoReturn:
    """Raise NotLocal: `what` might mean something else in DuckDB."""
    raise NotLocal(f"{what} is not one of those that are known to give the same")


def as_double(value: DuckValue) -> str:
    """A number as a double, in DuckDB's SQL."""
    if value.kind == "decimal" and value.constant is None:
        return f"CAST({value.sql} AS DOUBLE)"
    return value.sql if value.kind in ("double", "decimal") else f"CAST({value.sql} AS DOUBLE)"


def in_number_type(values: Sequence[DuckValue], what: str) -> tuple[list[str], str]:
    """Cast numbers to their common type.

    Args:
        values: Numbers and nulls.
        what: They are for, in words.

    Returns:
        Their SQL, and the common kind.

    Raises:
        NotLocal: Spark would count in decimals, or they are no numbers.
    """
    kinds = {value.kind for value in values} - {"null"}
    if kinds <= {"int", "bigint"} and kinds:
        kind = "bigint" if "bigint" in kinds else "int"
        return [f"CAST({v.sql} AS {DUCK_TYPES[kind]})" if v.kind != kind else v.sql for v in values], kind
    if "double" in kinds and kinds <= {*NUMBER_KINDS, "decimal"}:
        return ["NULL" if v.kind == "null" else as_double(v) for v in values], "double"
    not_the_same(f"{what} of {' and '.join(sorted(kinds)) or 'nothing'}")


def in_common_type(values: Sequence[DuckValue], what: str) -> tuple[list[str], str]:
    """Values of one type as they are, numbers of several like `in_number_type`, which says what is taken and raised."""
    kinds = {value.kind for value in values} - {"null"}
    if not kinds:
        return [value.sql for value in values], "null"
    if len(kinds) == 1 and not kinds & {"decimal", NESTED, "float", "binary"}:
        return [value.sql for value in values], kinds.pop()
    if kinds == {"decimal"} and all(value.constant is None for value in values):
        return [value.sql for value in values], "decimal"
    return in_number_type(values, what)


def as_compared(left: DuckValue, right: DuckValue) -> tuple[str, str]:
    """Two values in a type in which they can be compared; a constant text beside a time is a time.

    Raises NotLocal for values that Spark would cast in another way.
    """
    if {left.kind, right.kind} in ({"timestamp", "string"}, {"date", "string"}):
        time, text = (left, right) if right.kind == "string" else (right, left)
        shape = r"\d{4}-\d\d-\d\d" + (r"( \d\d:\d\d:\d\d(\.\d{1,6})?)?" if time.kind == "timestamp" else "")
        if text.constant is None or not re.fullmatch(shape, text.constant):
            not_the_same("a time compared with this text")
        cast = f"CAST({text.sql} AS {time.kind.upper()})"
        return (time.sql, cast) if time is left else (cast, time.sql)
    (a, b), _ = in_common_type([left, right], "comparing")
    return a, b


# --------------------------------------------------------------------------------------------------------------------
# Functions. Each takes its arguments; a number of arguments that is not listed is Spark's.


def converted(value: DuckValue, kind: str) -> DuckValue:
    """A cast as Spark does it: texts must be numbers, fractions are cut off."""
    have, sql, to = value.kind, value.sql, DUCK_TYPES[kind]
    if have in (kind, "null"):
        return DuckValue(f"CAST({sql} AS {to})", kind)
    if have == "string" and kind in ("int", "bigint"):
        return DuckValue(f"CAST(whole(trim({sql}, ' ')) AS {to})", kind)
    if have == "string" and kind == "double":
        return DuckValue(f"CAST(numeral(lower(trim({sql}, ' '))) AS {to})", kind)
    if have in ("int", "bigint") and kind in (*NUMBER_KINDS, "string"):
        return DuckValue(f"CAST({sql} AS {to})", kind)
    if have == "double" and kind in ("int", "bigint"):
        return DuckValue(f"CAST(trunc({sql}) AS {to})", kind)
    if have == "boolean" and kind in ("int", "string"):
        return DuckValue(f"CAST({sql} AS {to})", kind)
    if have == "decimal" and kind == "double":
        return DuckValue(f"CAST({sql} AS {to})", kind)
    if (have, kind) in (("timestamp", "date"), ("date", "timestamp")):
        return DuckValue(f"CAST({sql} AS {to})", kind)
    if (have, kind) == ("date", "string"):
        return DuckValue(f"CAST(usual_day({sql}) AS {to})", kind)
    not_the_same(f"a cast from {have} to {kind}")


def _expect(values: Sequence[DuckValue], *kinds: Sequence[str]) -> None:
    if len(values) != len(kinds) or any(value.kind not in kind for value, kind in zip(values, kinds, strict=True)):
        not_the_same(f"a function of {', '.join(value.kind for value in values) or 'nothing'}")


def put_together(values: Sequence[DuckValue]) -> DuckValue:
    """Texts and whole numbers as one text; null where any is."""
    texts = []
    for value in values:
        if value.kind not in ("string", "int", "bigint"):
            not_the_same(f"a text put together from {value.kind}")
        texts.append(value.sql if value.kind == "string" else f"CAST({value.sql} AS VARCHAR)")
    return DuckValue(f"({' || '.join(texts)})", "string")


def _first_known(values: Sequence[DuckValue]) -> DuckValue:
    texts, kind = in_common_type(values, "coalesce")
    return DuckValue(f"coalesce({', '.join(texts)})", kind)


def _extreme(name: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        texts, kind = in_common_type(values, name)
        return DuckValue(f"{name}({', '.join(texts)})", kind)

    return write


def _either(values: Sequence[DuckValue]) -> DuckValue:
    if len(values) != 3 or values[0].kind != "boolean":
        not_the_same("if of these")
    texts, kind = in_common_type(values[1:], "if")
    return DuckValue(f"(CASE WHEN {values[0].sql} THEN {texts[0]} ELSE {texts[1]} END)", kind)


def _null_if(values: Sequence[DuckValue]) -> DuckValue:
    if len(values) != 2:
        not_the_same("nullif of these")
    a, b = as_compared(*values)
    return DuckValue(f"(CASE WHEN {a} = {b} THEN NULL ELSE {values[0].sql} END)", values[0].kind)


def _absolute(values: Sequence[DuckValue]) -> DuckValue:
    _expect(values, NUMBER_KINDS)
    return DuckValue(f"abs({values[0].sql})", values[0].kind)


def _rounded(values: Sequence[DuckValue]) -> DuckValue:
    digits = values[1].constant if len(values) == 2 else "0"
    if digits is None or not re.fullmatch(r"\d|1[0-2]", digits):
        not_the_same("round to these digits")
    _expect(values[:1], NUMBER_KINDS)
    if values[0].kind != "double":
        return values[0]
    return DuckValue(f"rounded({values[0].sql}, {digits})", "double")


def _whole(name: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        _expect(values, ("double",))
        return DuckValue(f"CAST({name}({values[0].sql}) AS BIGINT)", "bigint")

    return write


def _of_double(name: str, n: int = 1) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        _expect(values, *[(*NUMBER_KINDS, "decimal")] * n)
        return DuckValue(f"{name}({', '.join(as_double(value) for value in values)})", "double")

    return write


def _of_text(pattern: str, kind: str, n: int = 1) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        _expect(values, *[("string",)] * n)
        return DuckValue(pattern.format(*(value.sql for value in values)), kind)

    return write


def _part_of(name: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        _expect(values, ("timestamp",) if name in ("hour", "minute") else ("date", "timestamp"))
        return DuckValue(f"CAST({name}({values[0].sql}) AS INTEGER)", "int")

    return write


def _substring(values: Sequence[DuckValue]) -> DuckValue:
    numbers = [value.constant or "" for value in values[1:]]
    if not re.fullmatch(r"[1-9]\d{0,8}( \d{1,9})?", " ".join(numbers)) or values[0].kind != "string":
        not_the_same("a part of a text with these places")
    return DuckValue(f"substring({values[0].sql}, {', '.join(numbers)})", "string")


def _truncated(values: Sequence[DuckValue]) -> DuckValue:
    _expect(values, ("string",), ("date", "timestamp"))
    unit = (values[0].constant or "").lower()
    if unit not in ("year", "quarter", "month", "week", "day", "hour", "minute", "second"):
        not_the_same("date_trunc to this unit")
    return DuckValue(f"date_trunc('{unit}', CAST({values[1].sql} AS TIMESTAMP))", "timestamp")


def _days_between(values: Sequence[DuckValue]) -> DuckValue:
    _expect(values, ("date", "timestamp"), ("date", "timestamp"))
    later, earlier = (f"CAST({value.sql} AS DATE)" for value in values)
    return DuckValue(f"CAST(date_diff('day', {earlier}, {later}) AS INTEGER)", "int")


def _is_nan(values: Sequence[DuckValue]) -> DuckValue:
    _expect(values, ("double",))
    return DuckValue(f"coalesce(isnan({values[0].sql}), false)", "boolean")


def _is_null(word: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        if len(values) != 1:
            not_the_same("isnull of these")
        return DuckValue(f"({values[0].sql} IS {word})", "boolean")

    return write


def _cast_to(kind: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        if len(values) != 1:
            not_the_same(f"{kind} of these")
        return converted(values[0], kind)

    return write


def _date_of(values: Sequence[DuckValue]) -> DuckValue:
    _expect(values, ("date", "timestamp"))
    return converted(values[0], "date")


FUNCTIONS: dict[str, Callable[[Sequence[DuckValue]], DuckValue]] = {
    **{name: _first_known for name in ("coalesce", "ifnull", "nvl")},
    **{name: _cast_to(name) for name in ("int", "bigint", "double", "string")},
    **{name: _of_double(name) for name in ("sqrt", "exp", "ln", "log10")},
    **{name: _of_double("pow", 2) for name in ("pow", "power")},
    **{name: _whole("ceil") for name in ("ceil", "ceiling")},
    **{name: _of_text("length({})", "int") for name in ("length", "char_length", "character_length")},
    **{name: _substring for name in ("substring", "substr")},
    **{name: _date_of for name in ("date", "to_date")},
    **{name: _part_of(name) for name in ("year", "month", "day", "quarter", "hour", "minute")},
    **{name: _extreme(name) for name in ("greatest", "least")},
    "abs": _absolute,
    "concat": put_together,
    "contains": _of_text("contains({}, {})", "boolean", 2),
    "date_trunc": _truncated,
    "datediff": _days_between,
    "dayofmonth": _part_of("day"),
    "endswith": _of_text("ends_with({}, {})", "boolean", 2),
    "floor": _whole("floor"),
    "if": _either,
    "isnan": _is_nan,
    "isnotnull": _is_null("NOT NULL"),
    "isnull": _is_null("NULL"),
    "lower": _of_text("lower(ascii_only({}))", "string"),
    "ltrim": _of_text("ltrim({}, ' ')", "string"),
    "nullif": _null_if,
    "round": _rounded,
    "rtrim": _of_text("rtrim({}, ' ')", "string"),
    "startswith": _of_text("starts_with({}, {})", "boolean", 2),
    "trim": _of_text("trim({}, ' ')", "string"),
    "upper": _of_text("upper(ascii_only({}))", "string"),
}


def _ranked(name: str, kind: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        if values:
            not_the_same(f"{name} of these")
        return DuckValue(f"CAST({name}() AS INTEGER)" if kind == "int" else f"{name}()", kind)

    return write


def _neighbour(name: str) -> Callable[[Sequence[DuckValue]], DuckValue]:
    def write(values: Sequence[DuckValue]) -> DuckValue:
        steps = values[1].constant if len(values) == 2 else "1"
        if len(values) not in (1, 2) or steps is None or not re.fullmatch(r"\d{1,6}", steps):
            not_the_same(f"{name} of these")
        return DuckValue(f"{name}({values[0].sql}, {steps})", values[0].kind)

    return write


# Ranks are BIGINT in DuckDB and INT in Spark: the same digits.
WINDOW_FUNCTIONS = {name: _ranked(name, "bigint") for name in ("row_number", "rank", "dense_rank")}
WINDOW_FUNCTIONS |= {name: _ranked(name, "double") for name in ("percent_rank", "cume_dist")}
WINDOW_FUNCTIONS |= {name: _neighbour(name) for name in ("lag", "lead")}


def _sum(value: DuckValue, distinct: str) -> DuckValue:
    _expect([value], NUMBER_KINDS)
    if value.kind == "double":
        return DuckValue(f"sum({distinct}{value.sql})", "double")
    return DuckValue(f"CAST(sum({distinct}{value.sql}) AS BIGINT)", "bigint")


def _mean(value: DuckValue, distinct: str) -> DuckValue:
    _expect([value], NUMBER_KINDS)
    return DuckValue(f"avg({distinct}{value.sql})", "double")


def _most(name: str) -> Callable[[DuckValue, str], DuckValue]:
    def write(value: DuckValue, distinct: str) -> DuckValue:
        _expect([value], (*NUMBER_KINDS, "string", "boolean", "date", "timestamp"))
        return DuckValue(f"{name}({value.sql})", value.kind)

    return write


def _count(value: DuckValue, distinct: str) -> DuckValue:
    if value.kind == NESTED:
        not_the_same("count of nested values")
    return DuckValue(f"count({distinct}{value.sql})", "bigint")


def _count_if(value: DuckValue, distinct: str) -> DuckValue:
    _expect([value], ("boolean",))
    return DuckValue(f"count(CASE WHEN {value.sql} THEN 1 END)", "bigint")


def _spread(name: str) -> Callable[[DuckValue, str], DuckValue]:
    def write(value: DuckValue, distinct: str) -> DuckValue:
        _expect([value], NUMBER_KINDS)
        return DuckValue(f"{name}({distinct}{value.sql})", "double")

    return write


def _all_or_any(name: str) -> Callable[[DuckValue, str], DuckValue]:
    def write(value: DuckValue, distinct: str) -> DuckValue:
        _expect([value], ("boolean",))
        return DuckValue(f"{name}({value.sql})", "boolean")

    return write


AGGREGATES: dict[str, Callable[[DuckValue, str], DuckValue]] = {
    **{name: _mean for name in ("avg", "mean")},
    **{name: _spread("stddev_samp") for name in ("stddev", "stddev_samp", "std")},
    **{name: _spread("var_samp") for name in ("variance", "var_samp")},
    **{name: _all_or_any("bool_and") for name in ("bool_and", "every")},
    **{name: _all_or_any("bool_or") for name in ("bool_or", "any", "some")},
    "count": _count,
    "count_if": _count_if,
    "max": _most("max"),
    "min": _most("min"),
    "stddev_pop": _spread("stddev_pop"),
    "sum": _sum,
    "var_pop": _spread("var_pop"),
}
