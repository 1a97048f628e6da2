"""The generated trials of the literature, with known individual effects, that forests are measured on. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

__all__ = ["BENCHMARKS", "Benchmark", "conf", "conv", "mconv", "multi", "nie_wager", "no_effect", "peak", "rct"]


@dataclass(frozen=True)
class Benchmark:
    """A generated trial of n units, p features and K levels (control first).

    X    float64 [n, p]      features
    w    int64 [n]           level received, 0 = control
    y    float64 [n]         outcome
    tau  float64 [n, K - 1]  true effect of each treated level against control
    e    float64 [n, K]      true probability of each level
    """

    X: np.ndarray
    w: np.ndarray
    y: np.ndarray
    tau: np.ndarray
    e: np.ndarray

    @property
    def propensity(self) -> np.ndarray:
        """Probability of the level each unit received, [n]: what a trial logs."""
        return self.e[np.arange(len(self.w)), self.w]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _varsigma(x: np.ndarray) -> np.ndarray:
    """Wager and Athey (2018), equation 28: a step from 1 to 2 at one third."""
    return 1.0 + _sigmoid(20.0 * (x - 1.0 / 3.0))


def _step_effect(x: np.ndarray) -> np.ndarray:
    return _varsigma(x[:, 0]) * _varsigma(x[:, 1])


def _responders(x: np.ndarray) -> np.ndarray:
    """Share of the largest lift a unit shows, in (0, 1): two smooth steps that multiply."""
    return _sigmoid(12.0 * (x[:, 0] - 0.5)) * (0.3 + 0.7 * _sigmoid(12.0 * (x[:, 1] - 0.4)))


def _concave(levels: int) -> np.ndarray:
    """Dose response k - .08 k² of levels 1 .. K-1."""
    k = np.arange(1, levels)
    return k - 0.08 * k**2


def _draw_binary(rng: np.random.Generator, p_treated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = (rng.random(len(p_treated)) < p_treated).astype(np.int64)
    return w, np.column_stack([1.0 - p_treated, p_treated])


def _with_control(tau: np.ndarray) -> np.ndarray:
    return np.column_stack([np.zeros(len(tau)), tau])


def _received(tau: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _with_control(tau)[np.arange(len(w)), w]


def rct(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), design 2: τ=ς(x₀)ς(x₁), Y=(W-½)τ+N(0,1), e=½, X uniform."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = _step_effect(x)
    w, e = _draw_binary(rng, np.full(n, 0.5))
    return Benchmark(x, w, (w - 0.5) * tau + rng.standard_normal(n), tau[:, None], e)


def no_effect(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), design 1: no effect, confounded: τ=0, Y=2x₀-1+N(0,1), e=¼(1+β₂,₄(x₀)), X uniform."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    w, e = _draw_binary(rng, 0.25 * (1.0 + 20.0 * x[:, 0] * (1.0 - x[:, 0]) ** 3))
    return Benchmark(x, w, 2.0 * x[:, 0] - 1.0 + rng.standard_normal(n), np.zeros((n, 1)), e)


def peak(n: int, seed: int, p: int = 20) -> Benchmark:
    """Wager and Athey (2018), their second table: `rct` with a peak, τ=4/[(1+exp(-12(x₀-½)))(1+exp(-12(x₁-½)))]."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = 4.0 * _sigmoid(12.0 * (x[:, 0] - 0.5)) * _sigmoid(12.0 * (x[:, 1] - 0.5))
    w, e = _draw_binary(rng, np.full(n, 0.5))
    return Benchmark(x, w, (w - 0.5) * tau + rng.standard_normal(n), tau[:, None], e)


def conf(n: int, seed: int, p: int = 20) -> Benchmark:
    """`rct` with a main effect 2x₀-1 and confounded treatment, e=¼(1+β₂,₄(x₀)), as in their design 3."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = _step_effect(x)
    w, e = _draw_binary(rng, 0.25 * (1.0 + 20.0 * x[:, 0] * (1.0 - x[:, 0]) ** 3))
    y = 2.0 * x[:, 0] - 1.0 + (w - 0.5) * tau + rng.standard_normal(n)
    return Benchmark(x, w, y, tau[:, None], e)


def conv(n: int, seed: int, p: int = 20) -> Benchmark:
    """Rare conversions: base .05·exp(1.2(x₂-½)+.8(x₃-½)), lift up to 3 points, e=½."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    base = 0.05 * np.exp(1.2 * (x[:, 2] - 0.5) + 0.8 * (x[:, 3] - 0.5))
    tau = 0.03 * _responders(x)
    w, e = _draw_binary(rng, np.full(n, 0.5))
    y = (rng.random(n) < base + w * tau).astype(np.float64)
    return Benchmark(x, w, y, tau[:, None], e)


def multi(n: int, seed: int, p: int = 20, levels: int = 5) -> Benchmark:
    """Ordered levels with a concave response: Y=2x₂-1+.4·ς(x₀)ς(x₁)·(k-.08k²)+N(0,1), equal odds."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    tau = 0.4 * _step_effect(x)[:, None] * _concave(levels)
    w = rng.integers(0, levels, n)
    y = 2.0 * x[:, 2] - 1.0 + _received(tau, w) + rng.standard_normal(n)
    return Benchmark(x, w, y, tau, np.full((n, levels), 1.0 / levels))


def mconv(n: int, seed: int, p: int = 20, levels: int = 5) -> Benchmark:
    """`conv` with ordered levels: lift .015·responders·(k-.08k²), base .05·exp(1.2(x₂-½)), equal odds."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, p))
    base = 0.05 * np.exp(1.2 * (x[:, 2] - 0.5))
    tau = 0.015 * _responders(x)[:, None] * _concave(levels)
    w = rng.integers(0, levels, n)
    y = (rng.random(n) < base + _received(tau, w)).astype(np.float64)
    return Benchmark(x, w, y, tau, np.full((n, levels), 1.0 / levels))


def _plus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def _setup_a(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wave = np.sin(np.pi * x[:, 0] * x[:, 1])
    base = wave + 2.0 * (x[:, 2] - 0.5) ** 2 + x[:, 3] + 0.5 * x[:, 4]
    return base, np.clip(wave, 0.1, 0.9), (x[:, 0] + x[:, 1]) / 2.0


def _setup_b(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = np.maximum(_plus(x[:, 0] + x[:, 1]), x[:, 2]) + _plus(x[:, 3] + x[:, 4])
    return base, np.full(len(x), 0.5), x[:, 0] + np.log1p(np.exp(x[:, 1]))


def _setup_c(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = 2.0 * np.log1p(np.exp(x[:, 0] + x[:, 1] + x[:, 2]))
    return base, _sigmoid(-(x[:, 1] + x[:, 2])), np.ones(len(x))


def _setup_d(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second = _plus(x[:, 0] + x[:, 1] + x[:, 2]), _plus(x[:, 3] + x[:, 4])
    return (first + second) / 2.0, 1.0 / (1.0 + np.exp(-x[:, 0]) + np.exp(-x[:, 1])), first - second


_SETUPS = {"a": _setup_a, "b": _setup_b, "c": _setup_c, "d": _setup_d}


def nie_wager(n: int, seed: int, p: int = 6, *, setup: str = "a", sigma: float = 1.0) -> Benchmark:
    """Nie and Wager (2021), section 4, set-ups A to D: Y=b(X)+(W-½)τ(X)+sigma·N(0,1).

    X is uniform in set-up A and standard normal in the others; p is at least 5.
    """
    rng = np.random.default_rng(seed)
    x = rng.random((n, p)) if setup == "a" else rng.standard_normal((n, p))
    base, odds, tau = _SETUPS[setup](x)
    w, e = _draw_binary(rng, odds)
    return Benchmark(x, w, base + (w - 0.5) * tau + sigma * rng.standard_normal(n), tau[:, None], e)


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "rct": rct,
    "no_effect": no_effect,
    "peak": peak,
    "conf": conf,
    "conv": conv,
    "multi": multi,
    "mconv": mconv,
    **{f"nie_wager_{setup}": partial(nie_wager, setup=setup) for setup in _SETUPS},
}
