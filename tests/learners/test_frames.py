"""Frames as people have them: each is fitted and scored as the plain one is, or refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.learners.odd_frames import (
    PLAIN,
    REFUSED,
    ROLES,
    SAME,
    SPARK_SAME,
    Answered,
    N,
    faults,
    fitted,
    of_kind,
    plain,
    rows_of_kinds,
)
from uplift_spark import CausalForest, InstrumentalForest, MetaLearner, average_effects
from uplift_spark.errors import UpliftError


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Effects of the plain frame."""
    frame = plain()
    return fitted(frame, ROLES).effect(frame)["uplift"].to_numpy()


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
        lambda: fitted(twice, ROLES),
        lambda: fitted(twice.assign(house=range(len(twice))), replace(ROLES, cluster="house")),
        lambda: MetaLearner("t_learner", replicates=2, rows=20).fit(twice, ROLES),
        lambda: average_effects(twice, ROLES),
        lambda: average_effects(twice, ROLES, outside=frame.assign(unit=frame.unit + N)),
        lambda: average_effects(frame, ROLES, outside=twice.assign(unit=twice.unit + N)),
        lambda: average_effects(twice, replace(ROLES, grid=(1.0,))),
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


def test_a_unit_with_rows_of_two_levels_is_refused_by_forests_of_one_level_each() -> None:
    frame = plain().assign(arm=lambda f: f.unit % 3)
    twice = pd.concat([frame, frame[frame.arm == 1][:3].assign(arm=2)])
    with pytest.raises(UpliftError, match=r"repeat.* in 3 rows"):
        CausalForest(n_trees=4, per_level=True).fit(twice, ROLES)


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


@pytest.mark.slow
def test_pandas_and_spark_give_the_same_answer_to_every_kind(spark: Any) -> None:
    rows = list(rows_of_kinds(spark))
    assert {kind: wrong for kind, *_, wrong in rows if wrong} == {}
    assert (
        sum(there != "no such frame" for _, _, there, _ in rows) >= 60 and sum(here != "" for _, here, *_ in rows) >= 60
    )


def test_an_answer_is_wrong_with_other_effects_another_sentence_or_a_traceback() -> None:
    good, refused = Answered(b"1"), Answered(sentence="column 'a' is missing")
    assert faults(good, good) == [] and faults(refused, good, "is missing") == []
    assert faults(Answered(b"2"), good) and faults(refused, good) and faults(good, good, "is missing")
    assert faults(refused, good, "has no rows") and faults(Answered(traceback="KeyError: 3"), good, "3")
    assert faults(Answered(sentence="a is missing\nb"), good, "is missing")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPARK_SAME)
def test_spark_frames_keep_their_columns_beside_their_effects(kind: str, on_spark: Any, expected: np.ndarray) -> None:
    expressions, changes = SPARK_SAME[kind]
    frame = on_spark(*expressions)
    model = fitted(frame, of_kind(changes))
    kept = model.effect(frame, keep=True)
    assert kept.columns == [*frame.columns, *model.effect(frame).columns[1:]]
    rows = kept.toPandas().sort_values("unit")
    assert rows["uplift"].to_numpy().tobytes() == expected.tobytes()
    assert rows["spend"].tolist() == plain()["spend"].tolist()


@pytest.mark.slow
def test_units_that_repeat_on_spark_are_refused_by_whatever_fits_or_estimates(on_spark: Any) -> None:
    frame = on_spark(*PLAIN)
    twice, model = frame.unionAll(frame.where("unit < 3")), fitted(plain(), ROLES)
    again = frame.where("unit < 3").selectExpr("*", "unit + 1000 as house")  # of another cluster
    apart = frame.selectExpr("*", "unit as house").unionAll(again).selectExpr("*", "arm * (age % 2) as opened")
    verbs: list[Callable[[], Any]] = [
        lambda: fitted(twice, ROLES),
        lambda: fitted(apart, replace(ROLES, cluster="house")),
        lambda: CausalForest(n_trees=4, per_level=True).fit(twice, ROLES),
        lambda: InstrumentalForest(n_trees=4).fit(apart, ROLES, "opened"),
        lambda: MetaLearner("t_learner", replicates=2, rows=20).fit(twice, ROLES),
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


@pytest.mark.slow
def test_ids_that_are_made_anew_at_each_reading_are_refused_with_a_remedy(spark: Any) -> None:
    """Rows are dealt out by their hash, so that a plan that reads fewer columns gives other rows the ids."""
    frame = spark.createDataFrame(plain().drop(columns="unit")).repartition(5)
    unstable = frame.selectExpr("*", "monotonically_increasing_id() as unit")
    model = fitted(plain(), ROLES)
    verbs: list[Callable[[], Any]] = [
        lambda: fitted(unstable, ROLES),
        lambda: MetaLearner("t_learner", replicates=2).fit(unstable, ROLES),
        lambda: InstrumentalForest(n_trees=4).fit(unstable.selectExpr("*", "arm as opened"), ROLES, "opened"),
        lambda: model.estimate(unstable),
        lambda: model.refresh(unstable),
        lambda: model.effect(unstable),
        lambda: model.explain(unstable),
    ]
    for verb in verbs:
        with pytest.raises(UpliftError, match=r"beside the ids of column 'unit' at each reading, .* keep=True"):
            verb()
    assert model.effect(unstable, keep=True).count() == N
    kept = unstable.localCheckpoint()
    assert model.effect(kept).count() == N
    in_place = spark.createDataFrame(plain().drop(columns="unit")).selectExpr(
        "*", "monotonically_increasing_id() as unit"
    )
    assert model.effect(in_place).count() == N  # the same at each reading
