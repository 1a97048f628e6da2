"""What a person reads at the end: tables, true values, and plain words on what the data do not show."""

import pandas as pd

from tests.evaluation.test_lift_tables import MONEY, evaluation
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import Arms, Truth, metric_table, with_mean_doses
from uplift_spark.evaluation.summary import caveats, dose_words, interval, lift_summary, number
from uplift_spark.stats.curves import Curve


def _text(source, truth=None):
    return lift_summary(lift_table(source, MONEY), metric_table(source), truth)


def test_tables_hold_the_figures():
    text = _text(evaluation((0.4, 0.0), n=400))
    assert "Lift of mail on visit, by decile of predicted uplift" in text
    (first,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["1"]]
    assert first[1:6] == ["800", "800", "0.59", "0.2", "0.2921"]
    assert "all" in text and "calibration_slope" in text
    assert "not distinguishable" not in text and "true value" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_true_values_stand_beside_the_estimates():
    curve = evaluation((0.4, 0.0)).curves[0]
    one = Curve(curve.fraction[0], curve.gain[0])
    best = Curve(curve.fraction[0], 2 * curve.gain[0])
    truth = {"mail": Truth(rmse=0.0123, correlation=0.9, average_effect=0.2, curve=one, oracle=best)}
    text = _text(evaluation((0.4, 0.0)), truth)
    (qini,) = [line.split() for line in text.splitlines() if line.split()[:3] == ["visit", "mail", "qini"]]
    assert qini[-2:] == [number(float(one.qini)), number(float(best.qini))]
    assert "best possible" in text and "…" not in text
    assert "root mean squared error 0.0123, correlation 0.900" in text


def test_what_the_data_do_not_support_is_said():
    text = _text(evaluation((0.0, 0.0)))
    assert "average effect of mail on visit: 0 (" in text
    assert "Qini of mail on spend: " in text and text.count("is not distinguishable from zero.") == 4
    thin = _text(evaluation(n=10))
    assert "20 of 26 rows of the lift table have too few units in an arm for a mean: null." in thin


def test_caveats():
    trial = Arms({"a": 1, "b": 1}, logged=True, weighted=False, largest_weight=1.0, largest_outcomes=(1.0,))
    assert caveats(trial, unseen=True) == []
    assert len(caveats(Arms(trial.units, False, False, 1.0, (1.0,)), unseen=False)) == 2
    assert caveats(trial, unseen=True, fitted=True)[0].startswith("This was no trial")
    assert "inverse" in caveats(Arms(trial.units, True, True, 3.0, (1.0,)), unseen=True)[0]


def test_few_clusters_are_said():
    units = {"none": 4000, "mail": 4000}
    many, few = (Arms(units, True, False, 1.0, (1.0,), {}, {"none": 50, "mail": n}) for n in (60, 39))
    assert caveats(many, unseen=True) == [
        "Units come in clusters, which intervals take as independent (none 50, mail 60)."
    ]
    assert "below 40 intervals are too narrow" in caveats(few, unseen=True)[0]


def test_unknown_numbers_are_dashes():
    assert number(float("nan")) == "-" and number(0.123456) == "0.1235"
    assert interval(float("nan"), 1.0) == "not known" and interval(-1.0, 2.0) == "-1 to 2"


def test_mean_doses_are_said():
    metrics = pd.DataFrame(
        [("visit", "1", "ate", 0.1, 0.0, 0.2)], columns=["outcome", "treatment", "metric", "value", "lower", "upper"]
    )
    assert dose_words(metrics, "0") == []
    (said,) = dose_words(with_mean_doses(metrics, {"0": 0.25, "1": 1.5}), "0")
    assert "Mean doses are 1 1.5, and 0.25 where it counts as the control 0" in said
