"""Dicts of features: scored to the bits of batches; what does not fit is refused or flagged, and nothing filled in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.forest.frames import FEATURES
from tests.serving.published import features_of
from uplift_spark import MetaLearner
from uplift_spark.errors import DataError
from uplift_spark.forest.binning import OTHER, FeatureBins
from uplift_spark.serving.scorer import Scorer, UnitEncoder

GOOD = {"age": 30, "spend": 1.5, "region": "north", "member": True}


@pytest.fixture(scope="module")
def scorer(trained):
    scorer = Scorer(trained[1].model)
    scorer.warm()
    return scorer


def test_a_dict_has_the_bits_of_the_batch_s_row(trained, scorer):
    frame, model = trained
    rows = model.effect(frame[:200])
    units = [scorer.encoder.encode(features_of(frame, i)) for i in range(200)]
    alone = [scorer.effects([unit])[0] for unit in units]
    assert alone == scorer.effects(units)
    flat = [one for effects in alone for one in effects]
    assert [one.level for one in flat] == rows["treatment"].tolist()
    for column, name in (("uplift",) * 2, ("uplift_se",) * 2, ("uplift_lower", "lower"), ("uplift_upper", "upper")):
        assert np.array([getattr(one, name) for one in flat]).tobytes() == rows[column].to_numpy().tobytes(), column
    assert [one.low_support for one in flat] == rows["low_support"].tolist()


def test_a_meta_learner_has_the_values_of_the_batch_s_rows(trained):
    frame, model = trained
    learner = MetaLearner("t_learner", replicates=0).fit(frame[:400], model.roles)
    rows, scorer = learner.effect(frame[:5]), Scorer(learner.model)
    alone = [one for i in range(5) for one in scorer.effects([scorer.encoder.encode(features_of(frame, i))])[0]]
    assert [one.uplift for one in alone] == rows["uplift"].tolist()
    assert all(math.isnan(one.uplift_se) for one in alone)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"age": ...}, "feature 'age' is missing: the model was trained with it; send it, or null"),
        ({"age": ..., "aeg": 30}, "'aeg' is none of the model's: was it renamed?"),
        ({"aeg": 30}, "feature 'aeg' is none of the model's: did you mean 'age'"),
        ({"age": "30"}, "feature 'age' is a text but the model was trained with a numeric column"),
        ({"age": [30]}, "feature 'age' is a list but"),
        ({"region": 4}, "feature 'region' is a number but the model was trained with a text column"),
        ({"region": True}, "feature 'region' is true or false but"),
        ({"spend": math.inf}, "feature 'spend' is infinite"),
        ({"spend": 10**400}, "feature 'spend' is infinite"),
        ({"age": ..., "spend": ...}, "feature 'age' and 1 more is missing"),
    ],
)
def test_features_that_do_not_fit_are_refused(scorer, change, sentence):
    features = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(DataError, match=sentence.replace("?", r"\?")):
        scorer.encoder.encode(features)


def test_a_new_category_is_flagged_and_a_missing_value_is_none(scorer):
    assert scorer.encoder.names == FEATURES
    new = scorer.encoder.encode({**GOOD, "region": "moon"})
    missing = scorer.encoder.encode({**GOOD, "region": None})
    assert new.new_categories == ("region",) and missing.new_categories == ()
    assert new.bins == missing.bins and new.values[2] == "moon" and missing.values[2] is None
    assert scorer.encoder.encode({**GOOD, "age": math.nan}).bins == scorer.encoder.encode({**GOOD, "age": None}).bins


def test_values_at_the_edges_fall_where_batches_have_them():
    encoder = UnitEncoder([FeatureBins("x", edges=(0.0, 1.5)), FeatureBins("c", categories=("a",), has_other=True)])
    bins = [
        encoder.encode({"x": x, "c": "a"}).bins[0] for x in (-0.0, 0.0, 1e-300, 1.5, 1.5000000000000002, None, True)
    ]
    assert bins == [1, 1, 2, 2, 3, 0, 2]
    assert encoder.encode({"x": 0, "c": "new"}).bins[1] == OTHER
