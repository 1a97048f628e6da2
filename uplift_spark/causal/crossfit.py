"""Nuisances of observational campaigns: what is expected under every level, and how probable each level is (R3.5).

A row's values must come from models that never saw it (Chernozhukov et al. 2018): fit them on the other folds' rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from uplift_spark.causal.hashing import FOLDS, mix_all
from uplift_spark.vocabulary import DataError

SHAPE = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.08}


@dataclass(frozen=True)
class Nuisance:
    """Outcome models of every level, control first, and one of the level received; all take bins uint8 [n, p]."""

    outcomes: tuple[Any, ...]
    treatment: Any
    lowest: float
    highest: float

    def expected(self, bins: np.ndarray) -> np.ndarray:
        """Expected outcome under every level, float64 [n, K], within what was seen."""
        with threadpool_limits(1):  # workers share the cores already
            found = [_predicted(model, bins) for model in self.outcomes]
        return np.clip(np.column_stack(found), self.lowest, self.highest)

    def propensity(self, bins: np.ndarray) -> np.ndarray:
        """Probability of every level, float64 [n, K]; rows sum to 1."""
        with threadpool_limits(1):
            return np.asarray(self.treatment.predict_proba(bins))


def fold_of(key: np.ndarray, seed: int, folds: int) -> np.ndarray:
    """The fold of each row by the key of its unit or cluster, uint64 [n]: int64 [n]."""
    return (mix_all(key, np.uint64(seed), FOLDS) % np.uint64(folds)).astype(np.int64)


def fit_nuisances(
    bins: np.ndarray, place: np.ndarray, outcome: np.ndarray, names: Sequence[str], categorical: np.ndarray, seed: int
) -> Nuisance:
    """Boosted trees of every nuisance from bins uint8 [n, p], the place of the level received and outcome, [n] each.

    categorical  which features are, bool [p]
    Raises DataError when a level has no row.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    counts = np.bincount(place, minlength=len(names))
    if not counts.all():
        missing = ", ".join(name for name, count in zip(names, counts, strict=True) if not count)
        raise DataError(f"no row outside a fold received {missing}: use fewer nuisances.folds, or leave the level out")
    given: dict[str, Any] = {
        **SHAPE,
        "categorical_features": categorical,
        "random_state": seed,
        "early_stopping": False,
    }
    binary = set(np.unique(outcome)) == {0.0, 1.0}
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    with threadpool_limits(1):
        models = [_constant_or(kind(**given), bins[place == k], outcome[place == k]) for k in range(len(names))]
        treatment = HistGradientBoostingClassifier(**given).fit(bins, place)
    return Nuisance(tuple(models), treatment, float(outcome.min()), float(outcome.max()))


def _constant_or(model: Any, bins: np.ndarray, outcome: np.ndarray) -> Any:
    return float(outcome[0]) if np.all(outcome == outcome[0]) else model.fit(bins, outcome)


def _predicted(model: Any, bins: np.ndarray) -> np.ndarray:
    if isinstance(model, float):
        return np.full(len(bins), model)
    return np.asarray(model.predict_proba(bins)[:, 1] if hasattr(model, "predict_proba") else model.predict(bins))
