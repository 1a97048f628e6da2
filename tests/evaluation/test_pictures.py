"""Pictures: written, drawn from the tables' figures, and left out with one sentence where matplotlib is missing."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_lift_tables import MONEY, evaluation
from uplift_spark.config import RolesConf
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import Truth, curve_table, metric_table
from uplift_spark.evaluation.pictures import (
    budget_picture,
    calibration_picture,
    comparison_picture,
    decile_picture,
    dose_picture,
    qini_picture,
    save,
    write_pictures,
)
from uplift_spark.stats.curves import Curve

EVALUATION = evaluation((0.4, 0.0))
LIFT, CURVES, METRICS = lift_table(EVALUATION, MONEY), curve_table(EVALUATION), metric_table(EVALUATION)


def test_pictures_are_written_for_every_outcome(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_pictures(tmp_path / "new" / "folder", LIFT, CURVES, METRICS, {"visit"})
    names = ["qini_visit.png", "lift_visit.png", "calibration_visit.png", "qini_spend.png", "lift_spend.png"]
    assert [p.name for p in paths] == names
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_lines_are_the_tables_figures():
    pytest.importorskip("matplotlib")
    curve = EVALUATION.curves[0]
    one = Curve(curve.fraction[0], curve.gain[0] / 2)
    truth = {"mail": Truth(rmse=0.1, correlation=0.9, average_effect=0.2, curve=one, oracle=one)}
    rows = CURVES[CURVES.outcome == "visit"]
    (axes,) = qini_picture(rows, METRICS[METRICS.outcome == "visit"], True, truth).axes
    lines = {len(line.get_ydata()): np.asarray(line.get_ydata()) for line in axes.lines}
    line_values = [np.asarray(line.get_ydata()) for line in axes.lines]
    assert any(np.allclose(y, 100 * rows.gain) for y in line_values if len(y) == len(rows))
    assert any(np.allclose(y, 100 * rows.random_gain) for y in line_values if len(y) == len(rows))
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


def _points(axes):
    """Heights of the points drawn, in groups."""
    return [np.asarray(group.get_offsets()) for group in axes.collections if len(group.get_offsets()) > 1]


def test_calibration_is_the_tables_figures():
    pytest.importorskip("matplotlib")
    metrics = METRICS[METRICS.outcome == "visit"]
    figure = calibration_picture(LIFT[LIFT.outcome == "visit"], metrics, True)
    (axes,) = figure.axes
    rows = LIFT[(LIFT.outcome == "visit") & (LIFT.cut == "decile")]
    (points,) = _points(axes)
    np.testing.assert_allclose(points, 100 * rows[["predicted_uplift", "uplift"]])
    (bars,) = [group for group in axes.collections if hasattr(group, "get_segments")]
    ends = np.array(bars.get_segments())[:, :, 1]
    np.testing.assert_allclose(ends, 100 * rows[["uplift_lower", "uplift_upper"]])
    (diagonal,) = [line for line in axes.lines if getattr(line, "get_slope", lambda: None)() == 1]
    assert diagonal.get_xy1() == (0, 0)
    figures = metrics.set_index("metric")
    slope = figures.loc["calibration_slope"]
    words = f"slope {slope.value:.2g} ({slope.lower:.2g} to {slope.upper:.2g})"
    assert figures.value["calibration_p"] < 0.001
    assert axes.get_title(loc="left") == f"mail\n{words}, p < 0.001"
    true = metrics.assign(value=metrics.value.where(metrics.metric != "calibration_p", 0.25))
    (axes,) = calibration_picture(LIFT[LIFT.outcome == "visit"], true, True).axes
    assert axes.get_title(loc="left") == f"mail\n{words}, p = 0.25"


def _by_dose(buckets=2):
    """Lift rows of two more levels, twice and three times the first one's effect, and of a second segment."""
    effects = ["uplift", "uplift_lower", "uplift_upper"]
    more = [LIFT.assign(treatment=f"mail{k}", **{c: k * LIFT[c] for c in effects}) for k in (3, 2)]
    table = pd.concat([LIFT, *more], ignore_index=True)
    region = table[table.cut == "segment:region"]
    many = [region.assign(cut="segment:town", bucket=f"t{b}", n=100 + b) for b in range(buckets)]
    return pd.concat([table, *many], ignore_index=True)


DOSES = RolesConf("visit", "none", ("region",), dose={"none": 1.0, "mail": 2.0, "mail2": 3.0, "mail3": 10.0})


def test_effects_by_dose_are_the_tables_figures():
    pytest.importorskip("matplotlib")
    table = _by_dose(8)
    table = table[table.outcome == "visit"]
    region, town = dose_picture(table, DOSES.dose, "none", True).axes
    whole, north, south = _points(region)
    for points, rows in ((whole, table[table.cut == "all"]), (north, table[table.bucket == "north"])):
        np.testing.assert_allclose(points[:, 1], 100 * rows.set_index("treatment").uplift[["mail", "mail2", "mail3"]])
        np.testing.assert_allclose(points[:, 0], [2, 3, 10], atol=0.5)
    assert (whole[:, 0] < north[:, 0]).all() and (north[:, 0] < south[:, 0]).all()  # side by side, not on each other
    starts = [(line.get_xdata()[0], line.get_ydata()[0]) for line in region.lines if len(line.get_xdata()) == 4]
    assert starts == [(1.0, 0.0)] * 3  # control
    # Levels are 1 apart on a scale of 9: enough for names.
    assert [t.get_text() for t in region.get_xticklabels()] == ["none", "mail", "mail2", "mail3"]
    assert town.get_title(loc="left") == "town: 6 largest of 8 buckets"
    unknown = table.assign(uplift=table.uplift.where(~table.bucket.isin([f"t{b}" for b in range(5)])))
    assert (
        dose_picture(unknown, DOSES.dose, "none", True).axes[1].get_title(loc="left") == "town: 3 largest of 8 buckets"
    )
    names = [t.get_text() for t in town.get_legend().get_texts()]
    assert names == ["all units", *(f"t{b}" for b in range(2, 8))]


def test_effects_by_dose_need_doses_and_two_levels(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_pictures(tmp_path, LIFT, CURVES, METRICS, (), None, DOSES)
    assert not [p for p in paths if "dose" in p.name]
    flat = dataclasses.replace(DOSES, dose=None)
    levels = pd.concat([METRICS.assign(treatment=level) for level in DOSES.dose])
    table = _by_dose()
    paths = write_pictures(tmp_path, table, CURVES, levels, (), None, DOSES)
    assert {"dose_visit.png", "dose_spend.png"} < {p.name for p in paths}
    assert not [p for p in write_pictures(tmp_path, table, CURVES, levels, (), None, flat) if "dose" in p.name]
    # Without segments one panel of all units.
    (axes,) = dose_picture(table[~table.cut.str.startswith("segment")], DOSES.dose, "none", False).axes
    assert len(_points(axes)) == 1 and axes.get_title(loc="left") == "all units"


def test_a_plan_is_pictured_with_its_holdout_value(tmp_path):
    pytest.importorskip("matplotlib")
    budgets = np.array([100.0, 50.0, 200.0])
    curve = pd.DataFrame(
        {"budget": budgets, "cost": budgets * 0.99, "gain": 3 * np.sqrt(budgets), "observed": budgets / 10}
    )
    curve = curve.assign(observed_lower=curve.observed - 5, observed_upper=curve.observed + 8)
    figure = budget_picture(curve.assign(observed=[10.0, np.nan, 20.0]), "money", 99.0, 30.0)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(lines[0].get_xdata(), [0, 49.5, 99, 198])
    assert save(figure, tmp_path / "new" / "policy.png").stat().st_size > 10_000


def test_thin_deciles_can_be_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    thin = evaluation(n=10)
    lift = lift_table(thin, MONEY)
    paths = write_pictures(tmp_path, lift, curve_table(thin), metric_table(thin))
    assert len(paths) == 5
    lift = pd.concat([lift, lift.assign(treatment="mail2")])
    assert dose_picture(lift[lift.outcome == "visit"], DOSES.dose, "none", True).axes
    (axes,) = calibration_picture(
        lift[lift.treatment == "mail"], metric_table(thin).query("outcome == 'visit'"), True
    ).axes
    assert axes.get_title(loc="left") == "mail\ntoo few units for a slope"


def test_without_matplotlib_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentProblem, match=r"matplotlib.*uplift-spark\[plots\]"):
        write_pictures(tmp_path / "none", LIFT, CURVES, METRICS)
    assert not (tmp_path / "none").exists()


def test_models_are_named_and_free_treatment_is_said():
    pytest.importorskip("matplotlib")
    names = ("1", "forest_per_level", "t_learner")
    metrics = pd.DataFrame(
        [(name, "y", "mail", "qini", 0.01, -0.01, 0.02) for name in names],
        columns=["model_version", "outcome", "treatment", "metric", "value", "lower", "upper"],
    )
    columns = ["model", "outcome", "cost", "gain", "gain_lower", "gain_upper"]
    for price in (0.0, 1.0):
        points = [(name, "y", price * g, g, g - 0.1, g + 0.1) for name in names for g in (0, 0.01)]
        right = comparison_picture(metrics, pd.DataFrame(points, columns=columns), rate=True).axes[1]
        shown = [text.get_text() for text in right.get_legend().get_texts()]
        assert shown == ["version 1", "forest per level", "T-learner"]
        assert any("costs nothing" in text.get_text() for text in right.texts) == (price == 0)
