"""A hold-out in memory is evaluated as one in Spark is: figures by hand, buckets, and what is refused. No Spark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.scored import LEVELS, campaign, compared
from uplift_spark.config import Economics
from uplift_spark.errors import DataError
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import MOST_VALUES, EvaluationSpec, evaluate_rows, metric_table, row_buckets

SPEC = EvaluationSpec("none", ("visit", "spend"), ("city",), bins=20, replicates=50, order=LEVELS, table="the frame")


@pytest.mark.parametrize("varying", [False, True])
def test_effects_of_every_arm_and_segment_are_weighted_differences(varying: bool) -> None:
    holdout, scores, _ = campaign(varying=varying)
    lift = lift_table(evaluate_rows(holdout, scores, SPEC), Economics({"visit": 2.0}, dict.fromkeys(LEVELS, 0.1)))
    for level in LEVELS:
        rows = compared(holdout, scores, level)
        rows["w"] = 1 / rows["propensity"] if varying else 1.0
        for cut, bucket, mine in (
            ("all", "all", rows),
            ("segment:city", "x", rows[rows["city"] == "x"]),
        ):
            treated, control = (mine[mine["treated"] == one] for one in (True, False))
            means = [np.average(arm["spend"], weights=arm["w"]) for arm in (treated, control)]
            found = lift[(lift["outcome"] == "spend") & (lift["treatment"] == level) & (lift["cut"] == cut)]
            assert found[found["bucket"] == bucket]["uplift"].item() == pytest.approx(means[0] - means[1], rel=1e-4)
    assert lift["roi"].notna().any() and set(lift["cut"]) == {"all", "decile", "segment:city"}


def test_a_ranking_by_the_effect_has_a_qini_above_zero_and_one_at_random_has_not() -> None:
    holdout, _, truth = campaign(n=6000)
    scores = truth.rename(columns={"effect": "uplift"})
    rng = np.random.default_rng(2)
    shuffled = scores.assign(uplift=rng.random(len(scores)))
    for ranked, sure in ((scores, True), (shuffled, False)):
        metrics = metric_table(evaluate_rows(holdout, ranked, SPEC))
        qini = metrics.query("metric == 'qini' and outcome == 'visit' and treatment == '10%'")
        assert (qini["lower"].item() > 0) is sure


def test_units_of_a_cluster_are_drawn_together() -> None:
    holdout, scores, _ = campaign(n=1200)
    holdout["household"] = np.arange(1200) // 3
    evaluation = evaluate_rows(holdout, scores, replace(SPEC, cluster="household"))
    assert evaluation.arms.clusters["none"] == holdout[holdout["treatment"] == "none"]["household"].nunique()
    assert evaluation.sums.cuts[0].resampled is not None


def change(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("holdout", "scores", "message"),
    [
        (lambda h: h[:0], lambda s: s, "has no hold-out rows"),
        (lambda h: h.drop(columns="city"), lambda s: s, r"lacks columns \['city'\]"),
        (lambda h: h[h["treatment"] != "none"], lambda s: s, "no hold-out unit of the control arm"),
        (
            lambda h: change(h, visit=h["visit"].where(h.index != 3)),
            lambda s: s,
            "'visit' is missing or not finite in 1",
        ),
        (lambda h: change(h, propensity=2.0), lambda s: s, "propensity is not in"),
        (lambda h: h, lambda s: s[5:], "missing score"),
        (lambda h: h, lambda s: pd.concat([s, s[:4]]), "duplicate score"),
        (lambda h: h, lambda s: change(s, uplift=np.nan), "missing or not finite"),
        (lambda h: change(h, city=[f"c{i}" for i in range(len(h))]), lambda s: s, f"at most {MOST_VALUES}"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(holdout: Any, scores: Any, message: str) -> None:
    rows, predicted, _ = campaign()
    with pytest.raises(DataError, match=message) as caught:
        evaluate_rows(holdout(rows), scores(predicted), SPEC)
    assert "\n" not in str(caught.value)


def test_buckets_of_numbers_are_quarters_and_a_crossing_joins_them() -> None:
    frame = pd.DataFrame({"x": [*np.arange(1.0, 101.0), np.nan], "city": ["a"] * 50 + ["b"] * 51})
    quarters, crossing = row_buckets(frame, ("x", "x x city"), "t")
    assert pd.Series(quarters).value_counts().tolist() == [25, 25, 25, 25, 1]
    assert quarters[0].startswith("1: <= 25.") and quarters[99].startswith("4: > 75.")
    assert crossing[0] == f"{quarters[0]} x a" and crossing[-1] == "missing x b"
    few = [0.0005, -1.25e-4, 0.001, 0.1, 2.5e7 + 0.5, 3e8, -7.0]
    (texts,) = row_buckets(pd.DataFrame({"x": few}), ("x",), "t")
    assert texts.tolist() == ["5.0E-4", "-1.25E-4", "0.001", "0.1", "2.50000005E7", "300000000", "-7"]  # as Spark does


def test_every_level_has_predicted_effects() -> None:
    holdout, scores, _ = campaign(varying=False)
    with pytest.raises(DataError, match=f"no predicted effect of level '{LEVELS[0]}': score it, too"):
        evaluate_rows(holdout, scores[scores["treatment"] != LEVELS[0]], SPEC)
