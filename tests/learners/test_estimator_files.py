"""Estimators as files: those of scikit-learn come back as they were, with one tree an iteration or one a class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from uplift_spark.learners.estimator_files import restored, stored


@pytest.mark.parametrize("classes", [0, 2, 3, 5])
def test_boosted_trees_of_any_number_of_classes_come_back(classes: int) -> None:
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(400, 3))
    if classes:
        model = HistGradientBoostingClassifier(max_iter=5).fit(x, rng.permutation(400) % classes)
        back = restored(stored(model).tobytes())
        assert np.array_equal(back.predict_proba(x), model.predict_proba(x))
    else:
        model = HistGradientBoostingRegressor(max_iter=5).fit(x, x[:, 0])
        back = restored(stored(model).tobytes())
        assert np.array_equal(back.predict(x), model.predict(x))


@pytest.mark.parametrize("change", ["fewer", "more", "none"])
def test_an_iteration_has_a_tree_for_each_class(change: str) -> None:
    rng = np.random.default_rng(1)
    model = HistGradientBoostingClassifier(max_iter=3).fit(rng.normal(size=(300, 2)), rng.permutation(300) % 3)
    trees = model._predictors[1]
    model._predictors[1] = {"fewer": trees[:2], "more": [*trees, trees[0]], "none": []}[change]
    with pytest.raises(ValueError, match="not 3 an iteration"):
        restored(stored(model).tobytes())
