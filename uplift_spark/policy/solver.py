"""Small plans solved exactly by HiGHS: whole ones, and linear programs whose duals are prices (R5.1).

Units come as gains [n, K] (NaN or -inf: not offered) and what they use of each limit [R, n, K]; `room` [R] is left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix, hstack, vstack

from uplift_spark.policy.problem import NONE

_FEW = 200
_SECONDS = 3.0  # for one mixed-integer program
_TIGHTER = (0.0, 2e-6, 1e-4)  # in largest uses: HiGHS keeps limits to a tolerance of 1e-6, a budget is kept to rounding


def whole_plan(gain: np.ndarray, use: np.ndarray, room: np.ndarray, gap: float) -> np.ndarray | None:
    """Levels [n] of a plan at most `gap` below the best, as far as time allows; None when none is found."""
    unit, level, one = _options(gain)
    if not len(unit):
        return np.full(len(gain), NONE) if np.all(room >= 0) else None
    worth, each = gain[unit, level], use[:, unit, level]
    scale = _largest(each)
    close = float(min(0.1, gap / max(np.maximum(worth, 0).sum(), 1e-300)))
    for margin in _TIGHTER:
        rules = [LinearConstraint(one, -np.inf, 1)]
        if len(room):
            rules.append(LinearConstraint(each / scale[:, None], -np.inf, room / scale - margin))
        with _quiet():
            told = milp(
                -worth, constraints=rules, integrality=np.ones(len(unit)), bounds=Bounds(0, 1),
                options={"time_limit": _SECONDS, "mip_rel_gap": close},
            )  # fmt: skip
        if told.x is None:
            return None
        taken = np.flatnonzero(told.x > 0.5)
        # A sum of 0.3 that comes out as 0.3 + 4e-17 keeps a limit of 0.3: adding up rounds so much.
        rounding = len(taken) * np.finfo(float).eps * np.abs(each[:, taken]).sum(axis=1)
        if np.all(each[:, taken].sum(axis=1) <= room + rounding):
            chosen = np.full(len(gain), NONE)
            chosen[unit[taken]] = level[taken]
            return chosen
    return None


def linear_prices(gain: np.ndarray, use: np.ndarray, room: np.ndarray) -> np.ndarray | None:
    """Prices [R] of the limits when units may be treated in part; None when no plan keeps the limits."""
    unit, level, one = _options(gain)
    each = use[:, unit, level]
    scale = _largest(each)
    told = linprog(
        -gain[unit, level],
        A_ub=vstack([csr_matrix(each / scale[:, None]), one]),
        b_ub=np.r_[room / scale, np.ones(len(gain))],
        method="highs",
    )
    return None if told.status != 0 else np.maximum(-told.ineqlin.marginals[: len(room)], 0) / scale


def shortfalls(gain: np.ndarray, use: np.ndarray, room: np.ndarray, floors: Sequence[int]) -> np.ndarray | None:
    """What each of the limits `floors` lacks when as little as possible is lacking; None when the others are broken.

    Of more than _FEW units parts may be treated.
    """
    unit, level, one = _options(gain)
    n, m = len(unit), len(floors)
    slack = np.zeros((len(room), m))
    slack[list(floors), np.arange(m)] = -1
    each = use[:, unit, level]
    with _quiet():
        told = milp(
            np.r_[np.zeros(n), np.ones(m)],
            constraints=[
                LinearConstraint(hstack([one, csr_matrix((len(gain), m))]), -np.inf, 1),
                LinearConstraint(np.hstack([each, slack]), -np.inf, room),
            ],
            integrality=np.r_[np.full(n, len(gain) <= _FEW), np.zeros(m)],
            bounds=Bounds(0, np.r_[np.ones(n), np.full(m, np.inf)]),
            options={"time_limit": _SECONDS},
        )
    return None if told.x is None else told.x[n:]


def _options(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """(unit, level) of everything on offer, and the matrix that counts a unit's levels."""
    unit, level = np.nonzero(np.isfinite(gain))
    return unit, level, csr_matrix((np.ones(len(unit)), (unit, np.arange(len(unit)))), (len(gain), len(unit)))


def _largest(each: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(each).max(axis=1, initial=0), 1e-300)


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS leaves lines of its developers on standard output, past every option: nothing is shown in the body."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
