"""Pictures: written, drawn from the tables' figures, and left out with one sentence where matplotlib is missing."""

import sys

import numpy as np
import pandas as pd
import pytest

from tests.flow.test_lift import MONEY, evaluation
from uplift_spark.flow.evaluation import curve_table, metric_table
from uplift_spark.flow.lift import lift_table
from uplift_spark.flow.pictures import budget_picture, decile_picture, qini_picture, save, write_pictures
from uplift_spark.flow.truth import Truth
from uplift_spark.stats.qini import Curve
from uplift_spark.vocabulary import EnvironmentProblem

FOUND = evaluation((0.4, 0.0))
LIFT, CURVES, METRICS = lift_table(FOUND, MONEY), curve_table(FOUND), metric_table(FOUND)


def test_pictures_are_written_for_every_outcome(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_pictures(tmp_path / "new" / "folder", LIFT, CURVES, METRICS, {"visit"})
    assert [p.name for p in paths] == ["qini_visit.png", "lift_visit.png", "qini_spend.png", "lift_spend.png"]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_lines_are_the_tables_figures():
    pytest.importorskip("matplotlib")
    curve = FOUND.curves[0]
    one = Curve(curve.fraction[0], curve.gain[0] / 2)
    truth = {"mail": Truth(rmse=0.1, correlation=0.9, average_effect=0.2, curve=one, oracle=one)}
    rows = CURVES[CURVES.outcome == "visit"]
    (axes,) = qini_picture(rows, METRICS[METRICS.outcome == "visit"], True, truth).axes
    lines = {len(line.get_ydata()): np.asarray(line.get_ydata()) for line in axes.lines}
    drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
    assert any(np.allclose(y, 100 * rows.gain) for y in drawn if len(y) == len(rows))
    assert any(np.allclose(y, 100 * rows.random_gain) for y in drawn if len(y) == len(rows))
    np.testing.assert_allclose(lines[101], 100 * one.at(np.linspace(0, 1, 101)))
    (text,) = [t.get_text() for t in axes.get_legend().get_texts()]
    assert text.startswith("mail: Qini ") and text.endswith("pp")


def test_bars_are_the_tables_figures():
    pytest.importorskip("matplotlib")
    figure = decile_picture(LIFT[LIFT.outcome == "spend"], False)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    rows = LIFT[(LIFT.outcome == "spend") & (LIFT.cut == "decile")]
    np.testing.assert_allclose(heights, rows.uplift)
    # Predictions are of another outcome: no mark.
    assert "predicted" not in [t.get_text() for t in axes.get_legend().get_texts()]


def test_a_plan_is_drawn_with_what_the_holdout_says(tmp_path):
    pytest.importorskip("matplotlib")
    budgets = np.array([100.0, 50.0, 200.0])
    curve = pd.DataFrame(
        {"budget": budgets, "cost": budgets * 0.99, "gain": 3 * np.sqrt(budgets), "observed": budgets / 10}
    )
    curve = curve.assign(observed_lower=curve.observed - 5, observed_upper=curve.observed + 8)
    figure = budget_picture(curve.assign(observed=[10.0, np.nan, 20.0]), "money", 99.0, 30.0)
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(drawn[0].get_xdata(), [0, 49.5, 99, 198])
    assert save(figure, tmp_path / "new" / "policy.png").stat().st_size > 10_000


def test_thin_deciles_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    thin = evaluation(n=10)
    paths = write_pictures(tmp_path, lift_table(thin, MONEY), curve_table(thin), metric_table(thin))
    assert len(paths) == 4


def test_without_matplotlib_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentProblem, match=r"matplotlib.*uplift-spark\[plots\]"):
        write_pictures(tmp_path / "none", LIFT, CURVES, METRICS)
    assert not (tmp_path / "none").exists()
