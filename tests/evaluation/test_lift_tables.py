"""Lift tables from hand-made sums: every figure by hand, nothing certain where the data are thin."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from uplift_spark.config import Economics
from uplift_spark.evaluation.lift_tables import LIFT_COLUMNS, as_arrow, lift_table, unclear_metrics
from uplift_spark.evaluation.metrics import Arms, Evaluation, EvaluationSpec, curve_table, metric_table
from uplift_spark.evaluation.sums import CutSums, Sums
from uplift_spark.stats.moments import Moments

MONEY = Economics(value={"visit": 7.0}, cost={"mail": 0.5})


def evaluation(effect=(0.3, 0.0), n=100, bins=20, replicates=100, seed=0):
    """One level `mail`; n units per arm and bin; visits of the control 20 %, effect falling from first to last bin."""
    rng = np.random.default_rng(seed)
    chance = 0.2 + np.stack([np.zeros(bins), np.linspace(*effect, bins)])
    events = np.rint(chance * n)
    w = np.full((1, 2, bins), float(n))
    sums = np.stack([events[None], 10 * events[None], w * np.linspace(0.3, 0, bins)], axis=-1)
    squares = np.stack([events[None], 100 * events[None], w * np.linspace(0.3, 0, bins) ** 2], axis=-1)
    count = np.repeat(w[..., None], 3, axis=-1)
    moments = Moments(n=count, w=count, ww=count, wy=sums, wyy=squares, wwy=sums, wwyy=squares)
    bootstrap_w = rng.poisson(w, (replicates, 1, 2, bins)).astype(float)
    bootstrap = rng.poisson(events, (replicates, 1, 2, bins)).astype(float)
    halves = Moments(*(a.reshape(1, 2, 2, bins // 2, 3).sum(axis=3) for a in dataclasses.astuple(moments)))
    spec = EvaluationSpec("none", ("visit", "spend"), ("region",), bins=bins, replicates=replicates)
    arms = Arms({"mail": n * bins, "none": n * bins}, True, False, 1.0, (1.0, 10.0))
    cut = CutSums(("north", "south"), halves)
    return Evaluation(
        ("mail",), spec, arms, Sums(moments, bootstrap_w, np.stack([bootstrap, 10 * bootstrap], axis=-1), (cut,))
    )


def _row(table, **where):
    (row,) = table[np.logical_and.reduce([table[c] == v for c, v in where.items()])].to_dict("records")
    return row


def test_a_row_by_hand():
    table = lift_table(evaluation(), MONEY)
    assert tuple(table.columns) == LIFT_COLUMNS
    first = _row(table, outcome="visit", cut="decile", bucket="1")
    # Two bins of 100 + 100: 50 and 48 visits of the treated, 20 and 20 of the control.
    assert (first["n"], first["n_treated"], first["n_control"]) == (400, 200, 200)
    assert (first["mean_treated"], first["mean_control"]) == (pytest.approx(0.49), pytest.approx(0.2))
    assert first["uplift"] == pytest.approx(0.29)
    error = np.sqrt(0.49 * 0.51 / 199 + 0.2 * 0.8 / 199)
    assert first["uplift_lower"] == pytest.approx(0.29 - 1.959964 * error, rel=1e-6)
    assert first["predicted_uplift"] == pytest.approx(0.3 - 0.3 / 19 / 2)
    assert first["incremental_outcomes"] == pytest.approx(58)
    assert (first["revenue"], first["cost"]) == (pytest.approx(406), 100)
    assert first["roi"] == pytest.approx(3.06)
    assert first["cost_per_incremental"] == pytest.approx(100 / 58)
    # What treating one unit costs is known: intervals are those of uplift.
    bounds = first["uplift_lower"], first["uplift_upper"]
    assert (first["roi_lower"], first["roi_upper"]) == pytest.approx(tuple(7 * b / 0.5 - 1 for b in bounds))
    paid = first["cost_per_incremental_upper"], first["cost_per_incremental_lower"]
    assert paid == pytest.approx(tuple(0.5 / b for b in bounds))
    assert not first["low_sample"] and np.isnan(first["shrunk_uplift"])


def test_buckets_of_a_segment_are_compared():
    table = lift_table(evaluation(), MONEY)
    north, south = (_row(table, outcome="visit", cut="segment:region", bucket=b) for b in ("north", "south"))
    assert south["uplift"] < south["shrunk_uplift"] < north["shrunk_uplift"] < north["uplift"]
    assert north["different_p"] == south["different_p"] < 1e-6
    same = lift_table(evaluation((0.1, 0.1)), MONEY).query("cut == 'segment:region'")
    assert (same.different_p > 0.5).all()
    assert lift_table(evaluation(), MONEY).query("cut == 'decile'").different_p.isna().all()


def test_few_units_or_events_are_marked():
    assert lift_table(evaluation(n=40), MONEY).query("cut == 'decile'").low_sample.all()
    deciles = lift_table(evaluation((-0.19, -0.19), n=100), MONEY).query("cut == 'decile'")
    assert (deciles.n_treated == 200).all() and deciles[deciles.outcome == "visit"].low_sample.all()
    assert not deciles[deciles.outcome == "spend"].low_sample.any()


def test_cuts_and_buckets():
    table = lift_table(evaluation(), MONEY)
    buckets_of = {cut: rows.bucket.tolist() for cut, rows in table[table.outcome == "visit"].groupby("cut")}
    assert buckets_of == {
        "all": ["all"],
        "decile": [str(d) for d in range(1, 11)],
        "segment:region": ["north", "south"],
    }
    for outcome in ("visit", "spend"):
        for cut in buckets_of:
            rows = table[(table.outcome == outcome) & (table.cut == cut)]
            assert rows.n.sum() == 4000
            assert rows.incremental_outcomes.sum() == pytest.approx(
                2000 * _row(table, outcome=outcome, cut="all")["uplift"]
            )


def test_money_and_predictions_only_where_they_are_known():
    spend = lift_table(evaluation(), MONEY).query("outcome == 'spend'")
    assert spend[["revenue", "roi", "predicted_uplift"]].isna().all().all()
    assert (spend.cost > 0).all()
    free = lift_table(evaluation(), Economics(value={"visit": 7.0}, cost={"mail": 0.0})).query("outcome == 'visit'")
    assert free.roi.isna().all() and (free.revenue != 0).any()
    assert lift_table(evaluation(), Economics())[["revenue", "cost", "roi", "cost_per_incremental"]].isna().all().all()


@pytest.mark.parametrize("effect", [(0.0, 0.0), (-0.15, -0.15)])
def test_no_cost_per_outcome_without_a_sure_gain(effect):
    table = lift_table(evaluation(effect), MONEY)
    assert table.cost_per_incremental.isna().all()
    assert table.uplift.notna().all() and np.isfinite(table.roi.dropna()).all()


def test_thin_rows_are_null_not_certain():
    table = lift_table(evaluation(n=10), MONEY)
    deciles = table[table.cut == "decile"]
    assert (deciles.n_treated == 20).all()
    empty = [
        "mean_treated",
        "mean_control",
        "uplift",
        "uplift_lower",
        "uplift_upper",
        "incremental_outcomes",
        "revenue",
    ]
    assert deciles[empty].isna().all().all()
    assert table[table.cut == "all"].uplift.notna().all()
    # A whole level below the limit has no curve and no metrics either.
    thin = evaluation(n=1)
    assert metric_table(thin)[["value", "lower", "upper"]].isna().all().all()
    assert curve_table(thin)[["gain", "gain_lower"]].isna().all().all()


def test_unclear_metrics():
    metrics = metric_table(evaluation((0.0, 0.0)))
    assert set(unclear_metrics(metrics).metric) == {"ate", "qini"}
    clear = metric_table(evaluation((0.4, 0.0), n=400))
    assert unclear_metrics(clear).empty
    none = clear.assign(lower=np.nan, upper=np.nan)
    assert len(unclear_metrics(none)) == 4  # an interval that is not known supports nothing


def test_nan_becomes_null_and_constants_come_first():
    result = as_arrow(pd.DataFrame({"x": [1.0, np.nan]}), model_version="3")
    assert result.to_pylist() == [{"model_version": "3", "x": 1.0}, {"model_version": "3", "x": None}]
    assert as_arrow(lift_table(evaluation(), MONEY)).column("n").type == "int64"
