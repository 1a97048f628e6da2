"""Split criteria as treatment bases: a criterion is the map from levels to φ, the kernel is the same for all.

A node's effect θ is the coefficient of Y on φ(W) inside the node; a split's gain is Σ_children θ'Aθ - parent's, A the
node's scatter of φ (Athey, Tibshirani & Wager 2019). A new criterion is one
class and one entry in CRITERIA.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from uplift_spark.vocabulary import Levels


class Criterion(Protocol):
    """Maps treatment levels to the basis in which effects are compared."""

    def basis(self, levels: Levels) -> np.ndarray:
        """φ of each level, float64 [q, K]; column 0 is the control."""
        ...


class Slope:
    """Ordered levels: φ = dose, θ = conditional average partial effect (the continuous causal forest, R3.2)."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Doses scaled to unit range, float64 [1, K]: scale-free, so ridge and limits mean the same for any unit."""
        doses = np.asarray(levels.doses, dtype=np.float64)
        return ((doses - doses[0]) / (doses.max() - doses.min()))[None, :]


class OneHot:
    """Unordered arms: φ = one indicator per treated level, θ = each arm's effect (R3.4); binary is its K = 2 case."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Indicators, float64 [K-1, K]."""
        return np.eye(len(levels))[1:]


CRITERIA: dict[str, Criterion] = {"slope": Slope(), "one_hot": OneHot()}


def default_criterion(levels: Levels) -> str:
    """Slope when the levels carry doses, else one-hot."""
    return "slope" if levels.doses is not None else "one_hot"
