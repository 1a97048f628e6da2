"""Split criteria as treatment bases: a criterion is the map from doses to φ, the kernel is the same for all.

A node's effect θ is the coefficient of Y on φ(W) inside the node; a split's gain is Σ_children θ'Aθ - parent's, A the
node's scatter of φ (Athey, Tibshirani & Wager 2019). Where effects are told of doses that are no levels of their own,
or of levels with several doses, θ is what they are told from, too (`causal.responses`). A new criterion is one class
and one entry in CRITERIA.
"""

from __future__ import annotations

from itertools import combinations
from typing import Protocol

import numpy as np

from uplift_spark.vocabulary import ConfigError, Levels

KNOTS = 5
_BETWEEN = (0.05, 0.275, 0.5, 0.725, 0.95)  # quantiles of the levels at which knots lie (Harrell 2015, table 2.3)


class Criterion(Protocol):
    """Maps treatment levels to the basis in which effects are compared."""

    def basis(self, levels: Levels) -> np.ndarray:
        """φ of each level, float64 [q, K]; column 0 is the control."""
        ...

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """φ of any doses [m, d] on the scale that `levels` fix, float64 [q, m]."""
        ...


class Slope:
    """Ordered levels: φ = dose, θ = conditional average partial effect (the continuous causal forest, R3.2)."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Doses scaled to unit range, float64 [1, K]: scale-free, so ridge and limits mean the same for any unit."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`; float64 [1, m]."""
        return _scaled(levels, _of_one_dose(doses, "slope")).T


class Spline:
    """Ordered levels with a curved response: a natural cubic spline of the dose, straight beyond the outer knots."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Dose and three curved terms, float64 [4, K]."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`; float64 [4, m]. Raises ConfigError when there are fewer levels than knots."""
        own = _scaled(levels, dose_matrix(levels))[:, 0]
        if own.size < KNOTS:
            raise ConfigError(f"criterion spline has {KNOTS} knots, and there are {own.size} levels: take slope")
        knots = np.quantile(own, _BETWEEN)
        x = _scaled(levels, _of_one_dose(doses, "spline"))[:, 0]
        cubes = np.maximum(x[:, None] - knots, 0.0) ** 3
        pieces = (cubes[:, :-1] - cubes[:, -1:]) / (knots[-1] - knots[:-1])
        return np.vstack([x, (pieces[:, :-1] - pieces[:, -1:]).T])


class Product:
    """Levels with several doses, such as discount and frequency: φ = each dose and the products of any two (R3.4)."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Doses scaled to unit range, then pairwise interactions, float64 [d + d (d - 1) / 2, K]."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`."""
        x = _scaled(levels, doses)
        return np.vstack([x.T, *(x[:, a] * x[:, b] for a, b in combinations(range(x.shape[1]), 2))])


class OneHot:
    """Unordered arms: φ = one indicator per treated level, θ = each arm's effect (R3.4); binary is its K = 2 case."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Indicators, float64 [K-1, K]."""
        return np.eye(len(levels))[1:]

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """Raises ConfigError: arms without order have nothing between them."""
        raise ConfigError("criterion one_hot knows the levels only, no doses between them: take slope or spline")


CRITERIA: dict[str, Criterion] = {"slope": Slope(), "spline": Spline(), "product": Product(), "one_hot": OneHot()}


def default_criterion(levels: Levels) -> str:
    """Slope when the levels carry a dose, product when they carry several and are enough of them, else one-hot."""
    if levels.doses is None:
        return "one_hot"
    if dose_matrix(levels).shape[1] == 1:
        return "slope"
    return "product" if identified(CRITERIA["product"].basis(levels)) else "one_hot"


def identified(basis: np.ndarray) -> bool:
    """Whether the levels of a basis [q, K] tell its coefficients apart."""
    return int(np.linalg.matrix_rank(np.vstack([np.ones(basis.shape[1]), basis]))) == 1 + len(basis)


def dose_matrix(levels: Levels) -> np.ndarray:
    """Doses of levels that have some, float64 [K, d]."""
    return np.asarray(levels.doses, np.float64).reshape(len(levels), -1)


def _scaled(levels: Levels, doses: np.ndarray) -> np.ndarray:
    """Doses [m, d] with the control's at zero and the levels' over a range of one."""
    own = dose_matrix(levels)
    return (doses - own[0]) / (own.max(axis=0) - own.min(axis=0))


def _of_one_dose(doses: np.ndarray, name: str) -> np.ndarray:
    if doses.shape[1] > 1:
        raise ConfigError(f"criterion {name} is for levels with one dose, these have {doses.shape[1]}: take product")
    return doses
