"""Evaluation of a small scored campaign against brute force in pandas, and what it refuses."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from pyspark.sql import functions as F

from tests.evaluation.scored import LEVELS, campaign, compared, mid_ranks
from uplift_spark.config import Economics
from uplift_spark.errors import DataError
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import METRICS, EvaluationSpec, curve_table, evaluate_rows, metric_table
from uplift_spark.evaluation.spark import describe_arms, evaluate, winsorised
from uplift_spark.lake.session import planned_for_few_rows
from uplift_spark.stats.moments import FIELDS

SPEC = EvaluationSpec(
    "none", ("visit", "spend"), ("city",), bins=20, replicates=50, order=("none", *LEVELS), table="silver.t"
)


@pytest.fixture(scope="module", params=[False, True], ids=["equal odds", "varying odds"])
def evaluated(spark, request):
    holdout, scores, _ = campaign(varying=request.param)
    frames = spark.createDataFrame(holdout), spark.createDataFrame(scores)
    return holdout, scores, evaluate(*frames, SPEC)


def _gain(rows, outcome, w, bins):
    """Curve by brute force: means above each cut of the mid-ranks."""
    bin_of = np.floor(mid_ranks(rows.uplift.to_numpy(), w) * bins)
    points = [(0.0, 0.0)]
    for b in range(bins):
        top = bin_of <= b
        share = w[top].sum() / w.sum()
        means = [np.average(rows[outcome][top & (rows.treated == arm)], weights=w[top & (rows.treated == arm)])
                 if (top & (rows.treated == arm)).any() else np.nan for arm in (True, False)]  # fmt: skip
        points.append((share, share * (means[0] - means[1])))
    return np.array(points)


def test_curves_and_metrics_equal_brute_force(evaluated):
    holdout, scores, evaluation = evaluated
    assert evaluation.levels == LEVELS
    table = metric_table(evaluation).set_index(["outcome", "treatment", "metric"])["value"]
    for k, level in enumerate(LEVELS):
        rows = compared(holdout, scores, level)
        w = 1 / rows.propensity.to_numpy() if evaluation.arms.weighted else np.ones(len(rows))
        for j, outcome in enumerate(SPEC.outcomes):
            points = _gain(rows, outcome, w, SPEC.bins)
            assert np.isfinite(points).all()
            np.testing.assert_allclose(evaluation.curves[j].fraction[k], points[:, 0], atol=1e-9)
            np.testing.assert_allclose(evaluation.curves[j].gain[k], points[:, 1], rtol=1e-6, atol=1e-9)
            auuc = np.trapezoid(points[:, 1], points[:, 0])
            assert table[outcome, level, "ate"] == pytest.approx(points[-1, 1], rel=1e-6)
            assert table[outcome, level, "auuc"] == pytest.approx(auuc, rel=1e-6)
            assert table[outcome, level, "qini"] == pytest.approx(auuc - points[-1, 1] / 2, rel=1e-5)
            top = np.interp(0.3, *points.T) / 0.3
            assert table[outcome, level, "top_30_percent_uplift"] == pytest.approx(top, rel=1e-6)
            assert table[outcome, level, "top_30_percent_minus_average"] == pytest.approx(top - points[-1, 1], rel=1e-5)


def test_weights_only_where_propensities_vary(evaluated):
    holdout, _, evaluation = evaluated
    assert evaluation.arms.weighted == (holdout.propensity.nunique() > 3)
    assert evaluation.arms.logged
    assert evaluation.arms.units == holdout.treatment.value_counts().to_dict()
    assert evaluation.rates == {"visit"}


def test_bootstrap_recomputes_the_same_statistic(evaluated):
    """Means of the resamples lie around the value, spread like the error of the difference in means."""
    _, _, evaluation = evaluated
    draws = evaluation.resampled[0].average_effect
    assert draws.shape == (50, 2)
    assert (np.abs(draws.mean(axis=0) - evaluation.curves[0].average_effect) < 0.5 * draws.std(axis=0)).all()
    m = evaluation.sums.moments.sum(axis=2)
    error = np.sqrt(m.squared_error[..., 0].sum(axis=1))
    assert (np.abs(draws.std(axis=0) / error - 1) < 0.4).all()  # four standard errors of a spread of 50


def test_tables_have_their_shape(evaluated):
    _, _, evaluation = evaluated
    curves = curve_table(evaluation)
    assert len(curves) == 2 * 2 * 21
    ends = curves[curves.fraction == 0]
    assert (ends[["gain", "gain_lower", "gain_upper", "random_gain"]] == 0).all().all()
    inside = curves[curves.fraction > 0]
    assert ((inside.gain_lower < inside.gain) & (inside.gain < inside.gain_upper)).all()
    full = curves[curves.fraction == 1]
    np.testing.assert_allclose(full.gain, full.random_gain)
    metrics = metric_table(evaluation)
    tests = {"calibration_p", "heterogeneity_p"}
    # Deciles of 60 units have too few of an arm for a slope.
    assert set(metrics.metric[metrics.value.isna()]) <= {"calibration_slope", *tests}
    assert metrics[metrics.metric.isin(tests)][["lower", "upper"]].isna().all().all()
    known = metrics[metrics.value.notna() & ~metrics.metric.isin(tests)]
    assert ((known.lower < known.value) & (known.value < known.upper)).all()
    assert list(metrics.columns) == ["outcome", "treatment", "metric", "value", "lower", "upper"]
    # Calibration is a matter of the outcome the model predicts.
    calibration = {"calibration_slope", "prediction_bias", *tests}
    assert set(metrics[metrics.outcome == "visit"].metric) - set(METRICS) == calibration
    assert set(metrics[metrics.outcome == "spend"].metric) == set(METRICS)


@pytest.mark.parametrize("evaluated", [True], indirect=True)
def test_evaluation_does_not_depend_on_partitions(spark, evaluated):
    holdout, scores, evaluation = evaluated
    again = evaluate(
        spark.createDataFrame(holdout.sample(frac=1, random_state=1)).repartition(7),
        spark.createDataFrame(scores.sample(frac=1, random_state=2)).repartition(5),
        SPEC,
    )
    for f in FIELDS:
        np.testing.assert_array_equal(getattr(again.sums.moments, f), getattr(evaluation.sums.moments, f))
        np.testing.assert_array_equal(
            getattr(again.cuts["city"].moments, f), getattr(evaluation.cuts["city"].moments, f)
        )
    np.testing.assert_array_equal(again.sums.resampled_wy, evaluation.sums.resampled_wy)
    assert metric_table(again).equals(metric_table(evaluation))


@pytest.mark.slow
def test_calibration_of_perfect_and_of_doubled_predictions(spark):
    holdout, _, truth = campaign(n=4000, seed=5)
    slopes = []
    for factor in (1.0, 2.0):
        scores = truth.assign(uplift=factor * truth.effect)
        evaluation = evaluate(spark.createDataFrame(holdout), spark.createDataFrame(scores), SPEC)
        table = metric_table(evaluation).set_index(["outcome", "treatment", "metric"]).loc["visit"].loc["10%"]
        slope, bias = table.loc["calibration_slope"], table.loc["prediction_bias"]
        assert slope.lower < 1 / factor < slope.upper
        expected = (factor - 1) * truth.effect[truth.treatment == "10%"].mean()
        assert bias.lower < expected < bias.upper
        slopes.append(slope.value)
    assert slopes[0] == pytest.approx(2 * slopes[1])


def test_propensities_that_were_not_logged_count_as_equal(spark):
    holdout = campaign(n=200, varying=True)[0].drop(columns="propensity")
    frame = spark.createDataFrame(holdout).selectExpr("*", "cast(null AS double) propensity")
    arms = describe_arms(frame, SPEC)
    assert (arms.logged, arms.weighted, arms.largest_weight) == (False, False, 1.0)
    some = frame.selectExpr("* except (propensity)", "if(unit_id = 'u1', 0.5, null) AS propensity")
    with pytest.raises(DataError, match="199 hold-out rows whose propensity"):
        describe_arms(some, SPEC)


def test_ties_everywhere_and_an_empty_segment_say_nothing(spark):
    """One score for all: no decile to compare, no Qini. A segment without any value is one bucket."""
    holdout, scores, _ = campaign(n=600, seed=3)
    frame = spark.createDataFrame(holdout).selectExpr("*", "cast(null AS string) region", "cast(null AS double) dues")
    spec = replace(SPEC, segments=("region", "dues", "region x dues"))
    evaluation = evaluate(frame, spark.createDataFrame(scores.assign(uplift=0.1)), spec)
    metrics = metric_table(evaluation).set_index(["outcome", "treatment", "metric"])
    for outcome in spec.outcomes:
        for level in LEVELS:
            figures = metrics.loc[outcome].loc[level]
            assert figures.loc[["qini", "autoc", "top_30_percent_minus_average"]].abs().max(axis=None) < 1e-12
            assert figures.value["ate"] != 0
    assert metrics.xs("calibration_slope", level="metric").value.isna().all()
    table = lift_table(evaluation, Economics()).set_index(["outcome", "treatment", "cut"])
    for outcome, level in product(spec.outcomes, LEVELS):
        rows = table.loc[outcome].loc[level]
        buckets = {"all": "all", "decile": "6", "segment:region": "missing", "segment:dues": "missing"}
        assert rows.bucket.to_dict() == buckets | {"segment:region x dues": "missing x missing"}
        assert rows.n.nunique() == rows.uplift.nunique() == 1


def test_features_of_crossings_must_be_there(spark):
    holdout, scores, _ = campaign(n=20)
    with pytest.raises(DataError, match=r"silver.t lacks columns \['town'\]"):
        crossed = replace(SPEC, segments=("city x town",))
        evaluate(spark.createDataFrame(holdout), spark.createDataFrame(scores), crossed)


@pytest.mark.slow
def test_units_in_clusters_say_no_more_than_their_clusters(spark):
    """Every unit three times: by cluster, the figures and intervals of the units themselves; one by one, too narrow."""
    holdout, scores, _ = campaign(2400)
    thrice = spark.createDataFrame(holdout).selectExpr("explode(array('a', 'b', 'c')) AS copy", "*")
    thrice = thrice.withColumns({"home": F.col("unit_id"), "unit_id": F.concat("unit_id", "copy")})
    scored = spark.createDataFrame(scores).selectExpr("explode(array('a', 'b', 'c')) AS copy", "*")
    scored = scored.withColumn("unit_id", F.concat("unit_id", "copy"))
    spec = replace(SPEC, replicates=200)
    units = evaluate(spark.createDataFrame(holdout), spark.createDataFrame(scores), spec)
    homes = evaluate(thrice, scored, replace(spec, cluster="home"))
    alone = evaluate(thrice, scored, spec)
    assert homes.arms.clusters == holdout.treatment.value_counts().to_dict() and not alone.arms.clusters
    one, three, wrong = (
        metric_table(evaluation).set_index(["outcome", "treatment", "metric"]) for evaluation in (units, homes, alone)
    )
    same = one.index[~one.index.get_level_values("metric").str.endswith("_p")]
    np.testing.assert_allclose(three.loc[same].astype(float), one.loc[same].astype(float), rtol=1e-6, atol=1e-9)
    width = (three.upper - three.lower) / (wrong.upper - wrong.lower)
    assert width.loc[same].between(1.35, 2.2).all()
    rows = [lift_table(evaluation, Economics()) for evaluation in (units, homes, alone)]
    width = [(table.uplift_upper - table.uplift_lower).to_numpy() for table in rows]
    np.testing.assert_allclose(rows[1].uplift, rows[0].uplift, rtol=1e-6)
    # Those of units are Welch's, those of clusters are resampled: 200 times, so they are a twentieth off.
    np.testing.assert_allclose(width[1] / width[0], 1, atol=0.25)
    assert abs(np.median(width[1] / width[0]) - 1) < 0.05 and np.allclose(width[2] / width[0], 3**-0.5, atol=0.01)


def test_outcomes_are_cut_off_in_size(spark):
    holdout, _, _ = campaign()
    holdout.loc[:1, "spend"] = [-9000.0, np.inf]
    result, cuts = winsorised(spark.createDataFrame(holdout), {"spend": 0.95}, "silver.t")
    finite = np.isfinite(holdout.spend)
    at = np.quantile(holdout.spend[finite].abs(), 0.95)
    assert cuts["spend"].at == pytest.approx(at) and cuts["spend"].units == (holdout.spend[finite].abs() > at).sum()
    expected = holdout.spend.clip(-at, at).where(finite, holdout.spend)  # what is no number is for others to refuse
    assert result.toPandas().spend.tolist() == pytest.approx(expected.tolist())
    assert winsorised(spark.createDataFrame(holdout), {}, "silver.t")[1] == {}
    with pytest.raises(DataError, match=r"0\.5 of the hold-out's values of 'visit' are 0, so all would be cut off"):
        winsorised(spark.createDataFrame(holdout), {"visit": 0.5}, "silver.t")
    with pytest.raises(DataError, match=r"silver.t lacks columns \['spent'\]"):
        winsorised(spark.createDataFrame(holdout), {"spent": 0.5}, "silver.t")


def test_clusters_are_a_column(spark):
    holdout = spark.createDataFrame(campaign(n=120)[0])
    with pytest.raises(DataError, match=r"silver.t lacks columns \['house'\]"):
        describe_arms(holdout, replace(SPEC, cluster="house"))


BAD = {
    "no hold-out rows": (lambda h, s: (h.head(0), s), "silver.t has no hold-out rows"),
    "no control": (lambda h, s: (h[h.treatment != "none"], s), "no hold-out unit of the control arm 'none'"),
    "one arm": (lambda h, s: (h[h.treatment == "none"], s), "only the arm 'none'"),
    "missing column": (lambda h, s: (h.drop(columns="spend"), s), r"silver.t lacks columns \['spend'\]"),
    "propensity": (lambda h, s: (h.assign(propensity=1.5), s), "120 hold-out rows whose propensity"),
    "outcome": (lambda h, s: (h.assign(visit=np.inf), s), "column 'visit' is missing or not finite in"),
    "null cluster": (
        lambda h, s: (h.assign(home=h.unit_id.where(h.index > 2)), s),
        "silver.t column 'home' is null in 3 hold-out rows",
    ),
    "few clusters": (
        lambda h, s: (h.assign(home=h.city), s),
        r"fewer than 10 clusters \('home'\).* of 10%, 5%, none: no interval",
    ),
    "null treatment": (lambda h, s: (h.assign(treatment=None).astype({"treatment": object}), s), "null treatment"),
    "level without scores": (lambda h, s: (h, s[s.treatment == "5%"]), "no row for treatment '10%'"),
    "unit without score": (lambda h, s: (h, s.drop(index=s.index[s.unit_id == h.unit_id[0]])), "1 of .* missing score"),
    "score twice": (lambda h, s: (h, s._append(s[s.unit_id == h.unit_id[0]])), "1 of .* duplicate score"),
    "score NaN": (lambda h, s: (h, s.assign(uplift=np.nan)), "scores of treatment '5%' are missing or not finite"),
}


TYPES = dict.fromkeys(("unit_id", "treatment", "city", "home"), "string")
TYPES |= dict.fromkeys(("propensity", "visit", "spend"), "double")


@pytest.mark.parametrize("case", BAD)
def test_refused(spark, case):
    change, message = BAD[case]
    holdout, scores, _ = campaign(n=120)
    bad_holdout, bad_scores = change(holdout, scores)
    types = {name: kind for name, kind in TYPES.items() if name in bad_holdout}
    frame = spark.createDataFrame(bad_holdout[list(types)], ", ".join(f"{n} {t}" for n, t in types.items()))
    spec = replace(SPEC, cluster="home" if "home" in bad_holdout else None)
    with pytest.raises(DataError, match=message):
        evaluate(frame, spark.createDataFrame(bad_scores), spec)


def test_rows_in_memory_give_the_same_bits(evaluated):
    holdout, scores, evaluation = evaluated
    same = evaluate_rows(holdout.sample(frac=1, random_state=3), scores[::-1], SPEC)
    assert (same.levels, same.arms) == (evaluation.levels, evaluation.arms)
    for field in FIELDS:
        assert np.array_equal(getattr(same.sums.moments, field), getattr(evaluation.sums.moments, field))
        for mine, other in zip(same.sums.cuts, evaluation.sums.cuts, strict=True):
            assert mine.buckets == other.buckets
            assert np.array_equal(getattr(mine.moments, field), getattr(other.moments, field))
    assert np.array_equal(same.sums.resampled_wy, evaluation.sums.resampled_wy)
    assert metric_table(same).equals(metric_table(evaluation)) and curve_table(same).equals(curve_table(evaluation))


def test_few_rows_are_summed_up_in_this_process_and_refused_in_the_same_words(spark, evaluated, monkeypatch):
    holdout, scores, evaluation = evaluated
    frames = spark.createDataFrame(holdout), spark.createDataFrame(scores)
    with planned_for_few_rows(spark):
        with pytest.raises(DataError, match=r"silver\.t has no hold-out rows: run the features job"):
            evaluate(frames[0].limit(0), frames[1], SPEC)
        monkeypatch.setattr("uplift_spark.evaluation.spark.describe_arms", lambda *_: pytest.fail("Spark sums up"))
        assert metric_table(evaluate(*frames, SPEC)).equals(metric_table(evaluation))
