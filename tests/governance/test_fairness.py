"""The pass of the bias audit over rows: the same sums as by hand, whatever the batches. No session."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.evaluation.sums import added_sums
from uplift_spark.forest.spark import packed_bins
from uplift_spark.governance.bias import BiasMeasure, group_sums
from uplift_spark.governance.fairness import _SumsPlan, bias_batches

NAMES = ("treated", "cost", "predicted", "realised")
PLANNED = _SumsPlan(
    (("sex", ("f", "m")), ("sex x age", ("f x old", "f x young", "m x old", "m x young"))), ("mild", "severe"),
    tuple(BiasMeasure(name, 16.0) for name in NAMES), (3, 2), True,
)  # fmt: skip


def rows(n: int = 200) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    return {
        "sex": draw.integers(0, 2, n), "age": draw.integers(0, 2, n), "need": draw.integers(0, 2, n),
        "rewards": draw.normal(size=(n, 3)), "predicted": draw.normal(size=(n, 2)), "code": draw.integers(0, 3, n),
        "cost": draw.random(n), "bins": draw.integers(0, 2, (n, 2)).astype(np.uint8),
    }  # fmt: skip


def batch(data: dict[str, np.ndarray], planned: bool = True) -> pa.RecordBatch:
    sexes, ages = np.array(["f", "m"])[data["sex"]], np.array(["old", "young"])[data["age"]]
    crossed = [f"{s} x {a}" for s, a in zip(sexes, ages, strict=True)]
    return pa.record_batch(
        {
            "__cut_0": pa.array(sexes), "__cut_1": pa.array(crossed),
            "__need": pa.array(np.array(["mild", "severe"])[data["need"]]), "bins": packed_bins(data["bins"]),
            "rewards": pa.array(data["rewards"].tolist()), "predicted": pa.array(data["predicted"].tolist()),
            "code": pa.array(data["code"] if planned else [None] * len(sexes), pa.int32()),
            "cost": pa.array(data["cost"]),
        }
    )  # fmt: skip


def test_sums_are_those_by_hand_whatever_the_batches() -> None:
    data = rows()
    whole = batch(data)
    parts = [whole.slice(0, 30), whole.slice(30, 0), whole.slice(30)]
    sums = added_sums([one for part in parts for one in bias_batches(PLANNED, iter([part]))])
    n, code = np.arange(200), data["code"]
    treated = code > 0
    effect = data["rewards"][n, code] - data["rewards"][:, 0]
    predicted = np.where(treated, data["predicted"][n, np.maximum(code - 1, 0)], 0)
    values = np.column_stack([treated, np.where(treated, data["cost"], 0), predicted, np.where(treated, effect, 0)])
    by_hand = group_sums(data["sex"], data["need"], values.astype(float), (2, 2), PLANNED.measures)
    assert np.array_equal(sums[0].reshape(by_hand.shape), by_hand)
    assert sums[1].reshape(4, 2, -1)[..., 0].sum() == 200
    counts = sums[2].reshape(2, 3)  # sex by the first feature
    assert [list(row) for row in counts] == [
        [int(((data["sex"] == s) & (data["bins"][:, 0] == b)).sum()) for b in range(3)] for s in range(2)
    ]
    assert set(sums) == set(range(2 + 2 * 2)) and list(bias_batches(PLANNED, iter([]))) == []


def test_without_a_plan_every_level_has_its_measures_and_units_without_scores_count_as_nought() -> None:
    names = ("predicted a", "realised a", "predicted b", "realised b")
    plan = _SumsPlan(PLANNED.cuts[:1], PLANNED.strata, tuple(BiasMeasure(n, 16.0) for n in names), (3, 2), False)
    data = rows(50)
    part = batch(data, planned=False)
    missing = part.set_column(5, "predicted", pa.array([None] * 50, pa.list_(pa.float64())))
    sums, without = (
        added_sums(bias_batches(plan, iter([one])))[0].reshape(2, 2, 9).sum((0, 1)) for one in (part, missing)
    )
    point = plan.measures[0].point
    assert point.floats("wy", sums[1]) == pytest.approx(data["predicted"][:, 0].sum(), abs=1e-6)
    assert point.floats("wy", sums[7]) == pytest.approx((data["rewards"][:, 2] - data["rewards"][:, 0]).sum(), abs=1e-6)
    assert without[1] == without[5] == 0 and without[3] == sums[3]
