"""Budgets of differential privacy, and integer noise that holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from uplift_spark.errors import ConfigError

_LEAST_EPSILON = 1e-6  # with less the noise is beyond the sums of any population


@dataclass(frozen=True)
class PrivacyBudget:
    """What may become known of one person: (ε, δ)-differential privacy.

    With any one person's rows added or removed, whatever can be seen in what is published becomes at most exp(ε) times
    as likely, but for a chance of δ. ε = 1 is strict, 5 is weak; δ should be far below one over the number of persons.

    Example:
        >>> round(PrivacyBudget(1.0, 1e-6).rho, 4)
        0.0175
    """

    epsilon: float
    delta: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):  # NumPy's short floats would round rho
            object.__setattr__(self, name, float(getattr(self, name)))
        if not _LEAST_EPSILON <= self.epsilon < math.inf:
            raise ConfigError(
                f"epsilon is {self.epsilon}: give a number above 0 and of {_LEAST_EPSILON:g} at least, such as 1"
            )
        if not 0 < self.delta < 0.01:
            raise ConfigError(f"delta is {self.delta}: give a number above 0 and far below 1, such as 1e-6")

    @property
    def rho(self) -> float:
        """The budget as rho of zero-concentrated differential privacy, which adds up over what is published.

        Source: Bun & Steinke (2016), proposition 1.3: rho gives ε = rho + 2 √(rho ln 1/δ).
        """
        chance = -math.log(self.delta)
        # The difference of both roots, without what it would lose to rounding.
        return (self.epsilon / (math.sqrt(chance + self.epsilon) + math.sqrt(chance))) ** 2


def epsilon_of(rho: float, delta: float) -> float:
    """The ε at this δ of what is published with rho in all; 0 of nothing."""
    return rho + 2.0 * math.sqrt(-rho * math.log(delta))


NOISE_MARGIN = 4.0
"""Standard deviations of noise that a count must exceed to be used."""
_BITS = 20  # of half an outcome's range in fixed point: rounding is a millionth of it
_HALVES = (1e-50, 1e50)  # of an outcome's range, whose squares floats still hold
_LEAST_SHARE = 1e-3  # of the largest variance: outcomes that hardly vary are no reason for errors of nothing


@dataclass(frozen=True)
class OutcomeEnds:
    """The least and the largest outcome that can be, stated without looking; outcomes count from the middle.

    Raises:
        ConfigError: they are no range.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and _HALVES[0] <= self.half <= _HALVES[1]):
            raise ConfigError(
                f"the outcome's ends are {self.low} and {self.high}: give the least and the largest that can be, "
                "1e-49 to 1e50 apart"
            )

    @property
    def middle(self) -> float:
        """Outcomes are counted from it."""
        return (self.low + self.high) / 2.0

    @property
    def half(self) -> float:
        """How far an outcome can be from the middle."""
        return (self.high - self.low) / 2.0

    @property
    def bits(self) -> int:
        """Binary places of the fixed point."""
        return _BITS - math.ceil(math.log2(self.half))

    @property
    def most(self) -> int:
        """`half` in fixed point: what one row adds to a sum at most."""
        return math.ceil(math.ldexp(self.half, self.bits))

    @property
    def parts(self) -> tuple[float, float, float]:
        """Shares of rho for counts, for sums and for sums of squares.

        Conversions, between 0 and 1, need no squares: their variance follows from their mean.
        """
        return (0.5, 0.5, 0.0) if (self.low, self.high) == (0.0, 1.0) else (0.45, 0.45, 0.1)

    def squares(self, fixed: np.ndarray) -> np.ndarray:
        """Squares of outcomes in fixed point, in a fixed point of their own: int64, at most about 2^20."""
        return np.right_shift(fixed * fixed, _BITS)

    @property
    def most_square(self) -> int:
        """What one row adds to a sum of squares at most."""
        return int(self.squares(np.array(self.most)))

    def variance_shares(
        self, rows: np.ndarray, mean: np.ndarray, squares: np.ndarray, sds: tuple[np.ndarray, np.ndarray, float]
    ) -> np.ndarray:
        """Variance of each level's outcomes as a share of the largest that the ends allow with its mean, float64 [K].

        The largest is (high - mean) (mean - low), which is that of conversions (Bhatia & Davis 2000). Two standard
        deviations of noise go on top, so that intervals are rather too wide than too narrow.

        Args:
            rows: noisy rows of each level, [K].
            mean: their noisy mean outcome, from the middle, [K].
            squares: their noisy sums of `squares`, [K].
            sds: standard deviations of the noise on the mean [K], on rows as a share of them [K], and on `squares`.
        """
        of_square = math.ldexp(1.0, _BITS - 2 * self.bits)
        moment = of_square * squares / rows
        noise = np.sqrt((of_square * sds[2] / rows) ** 2 + (2.0 * mean * sds[0]) ** 2 + (moment * sds[1]) ** 2)
        variance, largest = moment - mean**2 + 2.0 * noise, (self.half - mean) * (self.half + mean)
        shares = np.divide(variance, largest, out=np.ones_like(mean), where=largest > 0)
        return np.asarray(np.clip(shares, _LEAST_SHARE, 1.0))

    def from_middle(self, outcome: np.ndarray) -> np.ndarray:
        """Outcomes, cut off at the ends, less the middle: float64 of the same shape."""
        return np.asarray(np.clip(outcome, self.low, self.high) - self.middle)


def noise_sd(sensitivity: float, rho: float) -> float:
    """Standard deviation of noise on sums that one person changes by `sensitivity` in Euclidean length."""
    return sensitivity / math.sqrt(2.0 * rho)


def opendp_prelude() -> Any:
    """The module of OpenDP that noise comes from. Raises ConfigError if it is not installed."""
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise ConfigError(
            "differential privacy needs OpenDP: install the extra, pip install 'uplift-spark[privacy]'"
        ) from error
    return dp


def with_integer_noise(sums: np.ndarray, sensitivity: float, rho: float) -> np.ndarray:
    """The integer sums with noise from the discrete Gaussian law, exact to the last bit and from the system's entropy.

    Args:
        sums: int64, any shape.
        sensitivity: how far one person can move all of them together, in Euclidean length.
        rho: the budget that this spends.

    Returns:
        int64 of the same shape. No seed: whoever knew it could take the noise off.

    Raises:
        ConfigError: OpenDP is not installed (see `opendp_prelude`).

    References:
        Canonne, Kamath & Steinke (2020), The discrete Gaussian for differential privacy. Floating noise can be
        reversed: Mironov (2012).
    """
    if not np.issubdtype(sums.dtype, np.integer):
        raise TypeError(f"noise goes on integers alone, not on {sums.dtype}")
    dp = opendp_prelude()
    dp.enable_features("contrib")
    vector = dp.vector_domain(dp.atom_domain(T="i64"))
    gaussian = dp.m.make_gaussian(vector, dp.l2_distance(T="f64"), scale=noise_sd(sensitivity, rho))
    return np.array(gaussian(sums.ravel().tolist()), np.int64).reshape(sums.shape)
