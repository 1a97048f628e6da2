"""Predictions against known effects: equal to numpy on the same rows."""

import numpy as np
import pytest

from tests.evaluation.scored import LEVELS, campaign
from uplift_spark.evaluation.metrics import truth_of_rows
from uplift_spark.evaluation.spark import against_truth


def _qini(rank_by, effect):
    gain = np.concatenate([[0], np.cumsum(effect[np.argsort(-rank_by, kind="stable")])]) / len(effect)
    return np.trapezoid(gain, dx=1 / len(effect)) - gain[-1] / 2


def test_truth_equals_numpy(spark):
    holdout, scores, truth = campaign(n=700, seed=3)
    strangers = truth.head(5).assign(unit_id="not held out")
    frames = [spark.createDataFrame(f) for f in (holdout, scores, truth._append(strangers))]
    result = against_truth(*frames, LEVELS)
    assert list(result) == list(LEVELS)
    for level in LEVELS:
        both = scores[scores.treatment == level].merge(truth[truth.treatment == level], on="unit_id")
        predicted, effect = both.uplift.to_numpy(), both.effect.to_numpy()
        details = result[level].details()
        assert details["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - effect) ** 2)))
        assert details["correlation"] == pytest.approx(np.corrcoef(predicted, effect)[0, 1])
        assert details["average_effect"] == pytest.approx(effect.mean())
        assert details["oracle_qini"] == pytest.approx(_qini(effect, effect), rel=1e-5)
        assert details["true_qini"] == pytest.approx(_qini(predicted, effect), rel=2e-3)  # ties
        assert details["true_qini"] < details["oracle_qini"] < details["oracle_auuc"]
    # Rows in memory are compared alike.
    long = [
        frame.rename(columns={"unit_id": "unit", "treatment": "level", name: "value"})[["unit", "level", "value"]]
        for frame, name in ((scores, "uplift"), (truth._append(strangers), "effect"))
    ]
    here = truth_of_rows(holdout[["unit_id"]].set_axis(["unit"], axis=1), *long, LEVELS)
    assert {level: one.details() for level, one in here.items()} == {
        level: pytest.approx(one.details()) for level, one in result.items()
    }
    # Every unit counts, whatever it received.
    np.testing.assert_allclose(np.unique(np.rint(np.diff(result["5%"].oracle.fraction) * 700)), [1, 2])


def test_levels_without_truth_are_left_out(spark):
    holdout, scores, truth = campaign(n=100)
    frames = [spark.createDataFrame(f) for f in (holdout, scores, truth[truth.treatment == "5%"])]
    assert list(against_truth(*frames, LEVELS)) == ["5%"]


def test_effects_without_spread_have_no_correlation(spark):
    holdout, scores, truth = campaign(n=100)
    frames = [spark.createDataFrame(f) for f in (holdout, scores, truth.assign(effect=0.02))]
    result = against_truth(*frames, LEVELS)["5%"]
    assert np.isnan(result.correlation) and float(result.oracle.qini) == pytest.approx(0, abs=1e-12)
    assert result.average_effect == pytest.approx(0.02)
