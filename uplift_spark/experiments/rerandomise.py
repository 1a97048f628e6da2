"""Re-randomisation: two arms are dealt anew until covariates are balanced, and what is read allows for that.

A deal is accepted when the Mahalanobis distance between the arms' covariate means is among the smallest that chance
gives (Morgan and Rubin 2012). That takes variance off every effect that the covariates explain, so the usual interval
is too wide and the usual test too careful. An effect then follows a normal and a bounded part (Li, Ding and Rubin
2018), of which both follow from sums; no unit is dealt anew for a reading. numpy and scipy, no Spark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, chi2, t

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import Experiment, id_texts, uniform

_GRID = 128  # points of each part of the bounded one: p-values to 1e-4 of themselves and better


@dataclass(frozen=True)
class BalanceRule:
    """When a deal of two arms is accepted.

    covariates  their names, measured before the treatment
    accept      probability that a deal is accepted: .01 takes the best of a hundred
    draws       most deals

    Raises ConfigError when parts do not fit.

    Example:
        >>> round(BalanceRule(("age", "spend"), 0.01).variance_left, 3)
        0.005
    """

    covariates: tuple[str, ...]
    accept: float
    draws: int = 10_000

    def __post_init__(self) -> None:
        if not self.covariates:
            raise ConfigError("re-randomisation balances covariates: name at least one")
        if not 0 < self.accept < 1:
            raise ConfigError(f"re-randomisation accepts a share of {self.accept:g}: use one between 0 and 1, as .01")
        if self.draws < 1:
            raise ConfigError(f"re-randomisation has {self.draws} draws: use at least 1")

    @property
    def text(self) -> str:
        """The rule in words, as designs on record have it."""
        return f"the best {self.accept:g} of deals, of at most {self.draws}, by {', '.join(self.covariates)}"

    @property
    def most(self) -> float:
        """The largest distance that is accepted: a quantile of chi-square."""
        return float(chi2.ppf(self.accept, len(self.covariates)))

    @property
    def variance_left(self) -> float:
        """Share of the variance that is left in what covariates explain (Morgan and Rubin 2012)."""
        k = len(self.covariates)
        return float(chi2.cdf(self.most, k + 2) / self.accept)

    def balanced(self, ids: Any, covariates: np.ndarray, experiment: Experiment) -> tuple[Experiment, int]:
        """Deal arms until a deal is accepted: each has a salt of its own, so the same units end in the same deal.

        Args:
            ids: Of all units of the trial, [n].
            covariates: [n, covariates].
            experiment: A design that assigns by ids alone, to two arms.

        Returns:
            (the design with the salt of the accepted deal, deals before it).

        Raises:
            ConfigError: The design assigns by more than ids, or has other than two arms.
            DataError: A covariate is not finite, or no deal is accepted.
        """
        check_balanced(experiment)
        texts, x = id_texts(ids), _whitened(covariates, self.covariates)
        order = sorted(range(len(texts)), key=texts.__getitem__)  # sums are the same whatever the order of the list
        texts, x = [texts[k] for k in order], x[order]
        for deal in range(self.draws):
            one = replace(experiment, salt=f"{experiment.salt}.{deal}" if deal else experiment.salt)
            treated = uniform(texts, one.salt, "arm") >= one.cuts[0]
            if mahalanobis(x, treated) <= self.most:
                return one, deal
        raise DataError(
            f"none of {self.draws:,} deals of {experiment.salt} is accepted, where {self.draws * self.accept:,.1f} are "
            "due: raise the draws or the accepted share, or balance fewer covariates"
        )

    def tail(self, distance: np.ndarray, explained: float, freedom: float = math.inf) -> np.ndarray:
        """Probability that an effect without cause is this many standard errors off, either way.

        Args:
            distance: In the standard errors of a trial that is dealt once, [...], 0 or more.
            explained: Share of that variance that the covariates explain.
            freedom: Degrees of freedom of the standard error.

        Returns:
            Probabilities [...].
        """
        k, share = len(self.covariates), min(max(explained, 0.0), 0.9999)
        points = (np.arange(_GRID) + 0.5) / _GRID
        length = np.sqrt(chi2.ppf(points * self.accept, k))
        towards = np.sqrt(beta.ppf(points, 0.5, (k - 1) / 2)) if k > 1 else np.ones(1)
        bounded = math.sqrt(share) * np.outer(length, towards).ravel()
        off = np.asarray(distance, float)[..., None]
        scale = math.sqrt(1 - share)
        return np.asarray((t.sf((off - bounded) / scale, freedom) + t.sf((off + bounded) / scale, freedom)).mean(-1))

    def quantile(self, level: float, explained: float, freedom: float = math.inf) -> float:
        """Half-width of the interval of this level, two-sided, in the standard errors of a trial that is dealt once."""
        widest = float(t.isf(level / 2, freedom)) + 1.0
        return float(brentq(lambda off: float(self.tail(off, explained, freedom)) - level, 0.0, widest + 1.0))


def check_balanced(experiment: Experiment) -> None:
    """Refuse designs whose units are not all known when arms are dealt, or that deal them otherwise; ConfigError."""
    parts = {
        **{"ramp": experiment.ramp < 1, "stopped arms": experiment.stopped, "namespace": experiment.slot},
        **{"holdout": experiment.programme, "exploration": experiment.exploration},
        **{"clusters": experiment.clustered, "strata": experiment.stratified, "third arm": len(experiment.arms) > 2},
    }
    if names := [name for name, there in parts.items() if there]:
        raise ConfigError(
            f"{experiment.salt} deals two arms anew until they are balanced, for units that are all known at once: "
            f"drop its {names[0]}, or the re-randomisation"
        )


def mahalanobis(x: np.ndarray, treated: np.ndarray) -> float:
    """Distance between the means of both arms, chi-square with K degrees of freedom over deals.

    Args:
        x: Covariates with mean 0, variance 1 and no correlation, [n, K].
        treated: [n], bool.

    Returns:
        The distance; infinite where an arm is empty.
    """
    n, of_arm = len(x), int(treated.sum())
    if not 0 < of_arm < n:
        return math.inf
    gap = x[treated].sum(axis=0) * (1 / of_arm + 1 / (n - of_arm))  # all rows add up to 0
    return float(of_arm * (n - of_arm) / n * (gap @ gap))


def _whitened(covariates: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    x = np.asarray(covariates, float).reshape(len(covariates), -1)
    if len(x) < len(names) + 2:
        raise DataError(f"{len(x)} units are too few to balance {len(names)} covariates: use more of them")
    for name, column in zip(names, x.T, strict=True):
        if wrong := int((~np.isfinite(column)).sum()):
            raise DataError(f"column {name!r} is missing or not finite in {wrong:,} rows: fill or drop them")
        if len(column) and not column.std() > 1e-12 * abs(column).max():
            raise DataError(f"column {name!r} is the same in all rows, so every deal balances it: leave it out")
    centred = (x - x.mean(axis=0)) / x.std(axis=0)
    size, axes = np.linalg.eigh(centred.T @ centred / max(1, len(x) - 1))
    if size[0] < 1e-9 * size[-1]:
        raise DataError(f"{', '.join(names)} follow from each other in all rows: leave one of them out")
    return np.asarray(centred @ (axes / np.sqrt(size)))
