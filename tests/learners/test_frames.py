"""Frames as people have them: each is fitted and scored as the plain one is, or refused in one sentence."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from uplift_spark import CausalForest, InstrumentalForest, MetaLearner, Roles, average_effects
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


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Effects of the plain frame."""
    frame = plain()
    return fitted(frame, ROLES).effect(frame)["uplift"].to_numpy()


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


def of_kind(roles: dict[str, Any]) -> Roles:
    """The plain frame's roles with these changes."""
    known = dict(unit="unit", treatment="arm", outcome="spend", features=("recency", "age"), control="0")
    return Roles(**{**known, **roles})


@pytest.mark.parametrize("kind", SAME)
def test_such_a_frame_is_as_good_as_the_plain_one(kind: str, expected: np.ndarray) -> None:
    make, changes = SAME[kind]
    frame = make(plain())
    model = fitted(frame, of_kind(changes))
    assert model.effect(frame)["uplift"].to_numpy().tobytes() == expected.tobytes()
    beside = model.effect(frame, keep=True)
    assert beside["uplift"].to_numpy().tobytes() == expected.tobytes()
    assert beside.index.equals(frame.index) and len(beside.columns) == len(frame.columns) + 6


@pytest.mark.parametrize("kind", REFUSED)
def test_such_a_frame_is_refused_in_one_sentence(kind: str) -> None:
    make, changes, sentence = REFUSED[kind]
    with pytest.raises(UpliftError, match=re.escape(sentence)) as raised:
        fitted(make(plain()), of_kind(changes))
    assert "\n" not in str(raised.value)


def test_one_feature_needs_no_list() -> None:
    assert of_kind({"features": "recency"}).features == ("recency",)


def test_two_columns_that_differ_in_case_are_two() -> None:
    frame = plain().assign(Recency=lambda f: f.age).drop(columns="age")
    model = fitted(frame, of_kind({"features": ("recency", "Recency")}))
    again = fitted(plain(), ROLES)
    assert model.effect(frame)["uplift"].tolist() == again.effect(plain())["uplift"].tolist()


def test_units_that_repeat_are_refused_by_whatever_fits_or_estimates() -> None:
    frame = plain()
    twice, model = pd.concat([frame, frame[:3]]), fitted(frame, ROLES)
    delivered = twice.assign(opened=twice.arm * (twice.age % 2))
    verbs: list[Callable[[], Any]] = [
        lambda: CausalForest(n_trees=4, per_level=True).fit(twice, ROLES),
        lambda: MetaLearner("t_learner", replicates=2).fit(twice, ROLES),
        lambda: InstrumentalForest(n_trees=4).fit(delivered, ROLES, "opened"),
        lambda: average_effects(twice, ROLES),
        lambda: model.estimate(twice),
        lambda: model.refresh(twice),
        lambda: model.heterogeneity_test(twice),
        lambda: model.best_linear_projection(twice),
        lambda: model.lift(twice),
        lambda: model.metrics(twice),
    ]
    for verb in verbs:
        with pytest.raises(UpliftError, match=r"repeat.* in 3 rows"):
            verb()


def test_effects_beside_a_column_of_their_name_are_refused() -> None:
    frame = plain().rename(columns={"arm": "Treatment"})
    model = fitted(frame, of_kind({"treatment": "Treatment"}))
    assert len(model.effect(frame)) == N
    with pytest.raises(UpliftError, match="a column 'Treatment', and effects come with one named 'treatment': rename"):
        model.effect(frame, keep=True)


# ---------------------------------------------------------------- the same on Spark


@pytest.fixture(scope="module")
def on_spark(spark: Any) -> Any:
    """A function that makes a Spark frame of a pandas frame by SQL expressions over its columns."""

    def make(*expressions: str) -> Any:
        return spark.createDataFrame(plain()).repartition(3).selectExpr(*expressions)

    return make


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPARK_SAME)
def test_such_a_spark_frame_is_as_good_as_the_plain_one(kind: str, on_spark: Any, expected: np.ndarray) -> None:
    expressions, changes = SPARK_SAME[kind]
    frame = on_spark(*expressions)
    model = fitted(frame, of_kind(changes))
    kept = model.effect(frame, keep=True)
    assert kept.columns == [*frame.columns, *model.effect(frame).columns[1:]]
    rows = kept.toPandas().sort_values("unit")
    assert rows["uplift"].to_numpy().tobytes() == expected.tobytes()
    assert rows["spend"].tolist() == plain()["spend"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPARK_REFUSED)
def test_such_a_spark_frame_is_refused_in_one_sentence(kind: str, on_spark: Any) -> None:
    expressions, changes, sentence = SPARK_REFUSED[kind]
    with pytest.raises(UpliftError, match=re.escape(sentence)) as raised:
        fitted(on_spark(*expressions), of_kind(changes))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_units_that_repeat_on_spark_are_refused_by_whatever_fits_or_estimates(on_spark: Any) -> None:
    frame = on_spark(*PLAIN)
    twice, model = frame.unionAll(frame.where("unit < 3")), fitted(plain(), ROLES)
    verbs: list[Callable[[], Any]] = [
        lambda: fitted(twice, ROLES),
        lambda: MetaLearner("t_learner", replicates=2).fit(twice, ROLES),
        lambda: average_effects(twice, ROLES),
        lambda: model.estimate(twice),
        lambda: model.refresh(twice),
        lambda: model.heterogeneity_test(twice),
        lambda: model.lift(twice),
    ]
    for verb in verbs:
        with pytest.raises(UpliftError, match=r"repeat.* in 3 rows"):
            verb()


@pytest.mark.slow
def test_rows_on_spark_keep_their_effects_though_their_ids_are_made_anew(spark: Any) -> None:
    """Ids by place change with the plan that reads them; effects beside the frame's own columns need no join."""
    model = fitted(plain(), ROLES)
    frame = spark.createDataFrame(plain().drop(columns="unit")).repartition(5, "spend")
    unstable = frame.selectExpr("monotonically_increasing_id() as unit", "*")
    rows = model.effect(unstable, keep=True).toPandas()
    again = model.effect(rows[["unit", "recency", "age"]])
    assert rows["uplift"].tolist() == again["uplift"].tolist()
