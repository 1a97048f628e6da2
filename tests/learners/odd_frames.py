"""Frames as people have them: each is fitted and scored as the plain one is, or refused in one sentence; on pandas and
on Spark. `make faults ARGS="--parts frames"` prints what both answer.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark import CausalForest, Roles
from uplift_spark.errors import UpliftError

N = 400
ROLES = Roles("unit", "arm", "spend", ("recency", "age"), control="0")


def plain() -> pd.DataFrame:
    """A trial of two arms, of which the kinds below are made."""
    rng = np.random.default_rng(7)
    arm, recency = rng.integers(0, 2, N), rng.integers(0, 12, N)
    spend = 10 + arm * np.where(recency < 6, 4, 0) + rng.normal(size=N)
    return pd.DataFrame(
        {"unit": np.arange(N), "arm": arm, "spend": spend, "recency": recency, "age": rng.integers(18, 80, N)}
    )


def fitted(frame: Any, roles: Roles) -> Any:
    return CausalForest(n_trees=4, n_buckets=2, min_leaf=10, seed=1).fit(frame, roles)


def with_columns(**columns: Callable[[pd.DataFrame], Any]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**columns)


def as_type(column: str, kind: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.astype({column: kind})


# {kind: (frame made of the plain one, changes of roles)}; the effects are those of the plain frame.
SAME: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any]]] = {
    "features of 8 bits": (as_type("age", "int8"), {}),
    "features without sign": (as_type("age", "uint16"), {}),
    "features of 32 bits": (as_type("age", "float32"), {}),
    "nullable integers": (as_type("age", "Int64"), {}),
    "nullable doubles": (as_type("recency", "Float64"), {}),
    "features of Arrow": (as_type("age", "int64[pyarrow]"), {}),
    "all columns of Arrow": (lambda f: f.convert_dtypes(dtype_backend="pyarrow"), {}),
    "decimal features": (with_columns(age=lambda f: [Decimal(int(v)) for v in f.age]), {}),
    "sparse features": (with_columns(age=lambda f: pd.arrays.SparseArray(f.age)), {}),
    "sparse features with another fill": (with_columns(age=lambda f: pd.arrays.SparseArray(f.age, fill_value=20)), {}),
    "sparse outcome": (with_columns(spend=lambda f: pd.arrays.SparseArray(f.spend)), {}),
    "control as a number": (lambda f: f, {"control": 0}),
    "control as a double": (lambda f: f, {"control": 0.0}),
    "control as a NumPy number": (lambda f: f, {"control": np.int64(0)}),
    "control as a decimal": (lambda f: f, {"control": Decimal("0.00")}),
    "levels as doubles": (as_type("arm", float), {}),
    "levels as doubles, control too": (as_type("arm", float), {"control": 0.0}),
    "levels as decimals": (with_columns(arm=lambda f: [Decimal(int(v)).quantize(Decimal("0.01")) for v in f.arm]), {}),
    "levels as nullable integers": (as_type("arm", "Int8"), {}),
    "levels as categories of numbers": (as_type("arm", "category"), {}),
    "levels as text": (as_type("arm", str), {}),
    "levels as booleans": (as_type("arm", bool), {"control": False}),
    "levels as NumPy booleans": (as_type("arm", bool), {"control": np.False_}),
    "levels as nullable booleans": (as_type("arm", "boolean"), {"control": "false"}),
    "ids of 32 bits": (as_type("unit", "int32"), {}),
    "nullable ids": (as_type("unit", "Int64"), {}),
    "names with dots": (lambda f: f.rename(columns={"recency": "a.b.c"}), {"features": ("a.b.c", "age")}),
    "names with spaces": (lambda f: f.rename(columns={"recency": " days ago "}), {"features": (" days ago ", "age")}),
    "names with backticks": (lambda f: f.rename(columns={"recency": "`r`"}), {"features": ("`r`", "age")}),
    "names with quotes": (lambda f: f.rename(columns={"recency": 'it\'s "r"'}), {"features": ('it\'s "r"', "age")}),
    "names in other scripts": (lambda f: f.rename(columns={"recency": "Tage 日"}), {"features": ("Tage 日", "age")}),
    "columns named by numbers": (lambda f: f.rename(columns={"recency": 3, "age": 4}), {"features": (3, 4)}),
    "all columns named by numbers": (
        lambda f: f.set_axis(range(5), axis=1),
        {"unit": 0, "treatment": 1, "outcome": 2, "features": [3, 4]},
    ),
    "an index of times": (lambda f: f.set_index(pd.date_range("2026-01-01", periods=N)), {}),
    "an index that repeats": (lambda f: f.set_index(np.zeros(N, int)), {}),
    "an index of two levels": (lambda f: f.set_index([f.age, f.arm.to_numpy()]), {}),
    "further columns of any type": (with_columns(lists=lambda f: [[1, "a"]] * len(f), objects=lambda f: object()), {}),
    "features as a list": (lambda f: f, {"features": ["recency", "age"]}),
    "levels as pandas' own text": (lambda f: f.astype({"arm": str}).astype({"arm": "string"}), {}),
    "levels as categories of text": (lambda f: f.astype({"arm": str}).astype({"arm": "category"}), {}),
    "levels without sign": (as_type("arm", "uint8"), {}),
    "features of 16 bits": (as_type("age", "float16"), {}),
    "columns in another order": (lambda f: f[["age", "spend", "unit", "recency", "arm"]], {}),
    "names that SQL keeps": (
        lambda f: f.rename(columns={"recency": "select", "arm": "from"}),
        {"features": ("select", "age"), "treatment": "from"},
    ),
    "names of the engine's own columns": (
        lambda f: f.rename(columns={"recency": "bucket", "age": "_level"}),
        {"features": ("bucket", "_level")},
    ),
}


# {kind: (frame, changes of roles, what the sentence says)}
REFUSED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = {
    "no rows": (lambda f: f[:0], {}, "has no rows"),
    "one arm": (lambda f: f[f.arm == 0], {}, "only '0'"),
    "no control": (lambda f: f, {"control": "none"}, "control level 'none' is missing"),
    "repeated units": (lambda f: pd.concat([f, f[:3]]), {}, "repeats a unit in 3 rows"),
    "units without an id": (with_columns(unit=lambda f: f.unit.astype("Int64").mask(f.unit < 2)), {}, "null in 2 of"),
    "ids as doubles": (as_type("unit", float), {}, "ids must be text or integers"),
    "ids in the index": (lambda f: f.set_index("unit"), {}, "is the frame's index"),
    "categories of numbers": (as_type("recency", "category"), {}, "categories that are numbers"),
    "times": (with_columns(age=lambda f: pd.Timestamp("2026-01-01")), {}, "cast it to a number or text"),
    "spans of time": (with_columns(age=lambda f: pd.to_timedelta(f.age, unit="D")), {}, "cast it to a number or text"),
    "dates": (with_columns(age=lambda f: [dt.date(2026, 1, 1)] * len(f)), {}, "cast it to a number or text"),
    "lists": (with_columns(age=lambda f: [[1]] * len(f)), {}, "cast it to a number or text"),
    "dictionaries": (with_columns(age=lambda f: [{"a": 1}] * len(f)), {}, "cast it to a number or text"),
    "intervals": (with_columns(age=lambda f: pd.cut(f.age, 3)), {}, "."),
    "complex numbers": (with_columns(age=lambda f: f.age * 1j), {}, "neither numbers nor text"),
    "bytes": (with_columns(age=lambda f: [b"x"] * len(f)), {}, "cast it to a number or text"),
    "numbers and text": (with_columns(age=lambda f: [1, "a"] * (len(f) // 2)), {}, "mixes types"),
    "infinite": (with_columns(age=lambda f: f.age.where(f.unit > 1, np.inf)), {}, "infinite in 2 of"),
    "columns twice": (lambda f: pd.concat([f, f[["age"]]], axis=1), {}, "several columns 'age'"),
    "a number and its text as names": (
        lambda f: f.assign(**{"3": f.age}).rename(columns={"age": 3}),
        {"features": ("recency", "3")},
        "several columns '3'",
    ),
    "outcome as text": (as_type("spend", str), {}, "must be numeric"),
    "outcome that is not there": (with_columns(spend=lambda f: f.spend.where(f.unit > 4)), {}, "null, NaN or infinite"),
    "a level that is not there": (with_columns(arm=lambda f: f.arm.where(f.unit > 4)), {}, "null or NaN in 5 of"),
    "a feature that is not there": (lambda f: f, {"features": ("income",)}, "column 'income' is missing"),
    "features twice": (lambda f: f, {"features": ("age", "age")}, "twice"),
    "no features": (lambda f: f, {"features": ()}, "features is empty"),
    "the outcome as a feature": (lambda f: f, {"features": ("age", "spend")}, "already play another part"),
}  # fmt: skip

PANDAS_ALONE = {"categories of numbers"}  # Spark has no categories: it makes numbers of them


def of_kind(roles: dict[str, Any]) -> Roles:
    """The plain frame's roles with these changes."""
    known = dict(unit="unit", treatment="arm", outcome="spend", features=("recency", "age"), control="0")
    return Roles(**{**known, **roles})


# Frames of Spark alone, by SQL expressions over the plain one's columns.
PLAIN = ("unit", "arm", "spend", "recency", "age")
SPARK_SAME: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "small types": (("int(unit) unit", "tinyint(arm) arm", "spend", "smallint(recency) recency", "float(age) age"), {}),
    "decimal features": (("unit", "arm", "spend", "recency", "cast(age as decimal(10, 2)) age"), {}),
    "levels as doubles": (("unit", "double(arm) arm", "spend", "recency", "age"), {"control": 0.0}),
    "levels as decimals": (("unit", "cast(arm as decimal(10, 2)) arm", "spend", "recency", "age"), {"control": 0}),
    "levels as booleans": (("unit", "boolean(arm) arm", "spend", "recency", "age"), {"control": False}),
    "levels as text": (("unit", "string(arm) arm", "spend", "recency", "age"), {"control": 0}),
    "names with dots and spaces": (
        ("unit", "arm", "spend", "recency as `a.b c`", "age as `it's 日`"),
        {"features": ("a.b c", "it's 日")},
    ),
    "further columns": (
        (*PLAIN, "array(1, null) as numbers", "map('a', age) as by_name", "struct(age, arm) as `both.of them`",
         "timestamp '2026-01-01 00:00:00' as seen", "date '2026-01-01' as day", "cast('x' as binary) as bytes",
         "cast(null as string) as nothing", "cast(1.5 as decimal(38, 10)) as exact"),
        {},
    ),
}  # fmt: skip
SPARK_REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "ids as doubles": (("double(unit) unit", *PLAIN[1:]), {}, "ids must be text or integers"),
    "dates": ((*PLAIN[:4], "date '2026-01-01' as age"), {}, "cast it to a number or text"),
    "lists": ((*PLAIN[:4], "array(age) as age"), {}, "cast it to a number or text"),
    "outcome as text": (("unit", "arm", "string(spend) spend", "recency", "age"), {}, "must be numeric"),
    "a feature that is not there": (PLAIN, {"features": ("income",)}, "column 'income' is missing"),
    "no control": (PLAIN, {"control": "none"}, "control level 'none' is missing"),
    "columns twice": ((*PLAIN, "age"), {}, "several columns 'age'"),
    "columns that differ in case": ((*PLAIN, "age as Age"), {}, "several columns 'age', 'Age'"),
}


# ---------------------------------------------------------------- what both answer


@dataclass(frozen=True)
class Answered:
    """What a frame ends in: effects of its units, in bytes, or a sentence; a traceback is neither."""

    effects: bytes | None = None
    sentence: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        return self.traceback or self.sentence or "works"


def answer(frame: Any, changes: dict[str, Any]) -> Answered:
    """Fit a forest and score the frame's own rows, in the order of their ids."""
    try:
        roles = of_kind(changes)
        effects = fitted(frame, roles).effect(frame)
        if not isinstance(effects, pd.DataFrame):
            effects = effects.toPandas()
        by_id = effects["uplift"].to_numpy()[np.argsort(effects[roles.unit].to_numpy(), kind="stable")]
        return Answered(by_id.astype(float).tobytes())
    except UpliftError as error:
        return Answered(sentence=str(error))
    except Exception as error:  # a traceback for the user
        return Answered(traceback=f"{type(error).__name__}: {error}".splitlines()[0])


def on_spark(spark: Any, frame: pd.DataFrame) -> Any:
    """The frame on Spark, or None where Spark has none like it: by its columns' names, types, or an index of ids."""
    if "unit" in frame.index.names or len({str(name).lower() for name in frame.columns}) < frame.shape[1]:
        return None
    try:
        plain_columns = {name: kind.subtype for name, kind in frame.dtypes.items() if isinstance(kind, pd.SparseDtype)}
        table = pa.Table.from_pandas(frame.astype(plain_columns), preserve_index=False)
        return spark.createDataFrame(table.rename_columns(list(map(str, frame.columns)))).repartition(2)
    except Exception:
        return None


def rows_of_kinds(spark: Any) -> Iterator[tuple[str, str, str, list[str]]]:
    """(kind, what pandas answers, what Spark answers, what is wrong about that) of every kind of frame."""
    good = answer(plain(), {})
    for kind, (make, changes, *sentence) in {**SAME, **REFUSED}.items():
        frame = make(plain())
        there = None if kind in PANDAS_ALONE else on_spark(spark, frame)
        answers = [answer(frame, changes), *([] if there is None else [answer(there, changes)])]
        wrong = [fault for one in answers for fault in faults(one, good, *sentence)]
        yield kind, str(answers[0]), "no such frame" if there is None else str(answers[1]), wrong
    for kind, (expressions, changes, *sentence) in {**SPARK_SAME, **SPARK_REFUSED}.items():
        one = answer(spark.createDataFrame(plain()).repartition(3).selectExpr(*expressions), changes)
        yield kind, "", str(one), faults(one, good, *sentence)


def faults(one: Answered, good: Answered, sentence: str | None = None) -> list[str]:
    """What is wrong about an answer, where the plain frame's effects are those of `good`."""
    if one.traceback:
        return ["a traceback"]
    if sentence is None:
        return [] if one == good else ["not the plain frame's effects"]
    if not one.sentence:
        return ["not refused"]
    more = ["more than a sentence"] if "\n" in one.sentence else []
    return more if sentence in one.sentence else [*more, f"{sentence!r} is not said"]


def table(spark: Any) -> tuple[pd.DataFrame, int]:
    """(the kinds, with what pandas and Spark answer, how many are not as they should be)."""
    rows = [(kind, *map(_short, said), "; ".join(wrong)) for kind, *said, wrong in rows_of_kinds(spark)]  # type: ignore
    lines = pd.DataFrame(rows, columns=["frame", "pandas", "Spark", "wrong"])
    return lines, int((lines["wrong"] != "").sum())


def _short(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:67]}..."
