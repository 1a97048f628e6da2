"""Learners a campaign's forest is held against, as jobs see them, and a T-learner on its bins (R4.2).

A learner gives the effects of rows in Arrow, float64 [n, K-1] in the order of the campaign's treated levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.causal.models import Model

Rows: TypeAlias = pa.RecordBatch | pa.Table
Effects: TypeAlias = Callable[[Rows], np.ndarray]

_MOST_CATEGORIES = 255  # of scikit-learn's boosted trees; features with more are split in the order of their bins


def model_effects(model: Model, rows: Rows) -> np.ndarray:
    """Effects of a model, without errors."""
    return model.effect_arrays(rows, errors=False)[0]


@dataclass(frozen=True)
class TLearner:
    """One outcome model per level, control first (Künzel et al. 2019): boosted trees on the bins of a forest.

    lowest, highest  outcome seen in training; expectations stay between them
    """

    bins: tuple[FeatureBins, ...]
    models: tuple[Any, ...]
    lowest: float
    highest: float

    def expected(self, bins: np.ndarray) -> np.ndarray:
        """Expected outcome under every level, float64 [n, K], from bins uint8 [n, p]."""
        with threadpool_limits(1):  # workers share the cores already
            found = [_predicted(model, bins) for model in self.models]
        return np.clip(np.column_stack(found), self.lowest, self.highest)


def fit_arm(bins: np.ndarray, outcome: np.ndarray, categorical: np.ndarray, seed: int) -> Any:
    """Outcome model of the rows of one arm: bins uint8 [n, p], outcome [n]; a classifier if that is 0 or 1."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    binary = set(np.unique(outcome)) == {0.0, 1.0}
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    return kind(categorical_features=categorical, random_state=seed).fit(bins, outcome)


def categorical_of(bins: Sequence[FeatureBins]) -> np.ndarray:
    """Which features a T-learner takes as categorical, bool [p]."""
    return np.array([one.categorical and one.n_bins <= _MOST_CATEGORIES for one in bins])


def _predicted(model: Any, bins: np.ndarray) -> np.ndarray:
    return model.predict_proba(bins)[:, 1] if hasattr(model, "predict_proba") else model.predict(bins)
