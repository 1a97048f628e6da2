"""Treatments that are numbers: doses cut into cells, so that leaf sums of a few cells stand for all doses (R3.4).

A cell is to the forest what a level is: leaf sums hold Σw and Σwy of each. The effect of any dose is the regression of
the cells' means on the basis of their mean doses (`causal.responses`), as one regresses on the rows themselves:
grouping rows by what is regressed on leaves coefficients unbiased (Prais & Aitchison 1954), and 16 groups of equal size
keep 98 % of a normal dose's variance between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from uplift_spark.vocabulary import DataError, Levels, Roles

CELLS = 16
MONOTONE = ("increasing", "decreasing")
_DIGITS = 3  # significant ones, by which doses are counted: a summary stays small whatever the doses


def counted_as(doses: np.ndarray) -> pa.Array:
    """What doses [n] are counted as in a summary: three significant digits as text, null where not finite."""
    known = np.isfinite(doses)
    distinct, where = np.unique(np.where(known, doses, 0.0), return_inverse=True)
    texts = np.array([f"{dose:.{_DIGITS}g}" for dose in distinct + 0.0])
    return pa.array(texts[where], mask=~known)


def cells_of(counts: Mapping[str, int], roles: Roles) -> tuple[Levels, tuple[float, ...]]:
    """Cells of about as many rows each, and the doses that part them, from rows by dose as `counted_as` text.

    A dose that a cell's share of the rows received has a cell to itself. Raises DataError if all doses are the same.
    """
    doses = np.array([float(dose) for dose in counts])
    order = np.argsort(doses, kind="stable")
    doses, rows = doses[order], np.array(list(counts.values()), np.float64)[order]
    if doses.size < 2:
        raise DataError(
            f"column {roles.treatment!r} holds the dose {', '.join(counts) or 'none'} in all rows: no effect shows"
        )
    place = np.arange(doses.size)
    if doses.size > CELLS:
        alone = rows >= rows.sum() / CELLS
        others = np.where(alone, 0.0, rows)
        middle = (np.cumsum(others) - others / 2) / max(others.sum(), 1.0) * (CELLS - alone.sum())
        new = np.r_[True, np.diff(np.floor(middle)) > 0] | alone | np.r_[False, alone[:-1]]
        place = np.cumsum(new) - 1
    weight = np.bincount(place, rows)
    means = np.bincount(place, rows * doses) / weight
    first = np.flatnonzero(np.r_[True, np.diff(place) > 0])
    last = np.r_[first[1:] - 1, doses.size - 1]
    names = tuple(
        f"{doses[a]:g}" if a == b else f"{doses[a]:g} to {doses[b]:g}" for a, b in zip(first, last, strict=True)
    )
    edges = (doses[last[:-1]] + doses[first[1:]]) / 2
    return Levels(names, tuple(means.tolist())), tuple(edges.tolist())


def told_levels(control: str, doses: Sequence[float]) -> Levels:
    """Levels for these doses, the control first."""
    return Levels((control, *(f"{dose:g}" for dose in doses)), (float(control), *map(float, doses)))


def cell_rows(counts: Mapping[str, int], cells: Levels, edges: tuple[float, ...]) -> dict[str, int]:
    """Rows of each cell, from rows by dose as `counted_as` text."""
    found = dict.fromkeys(cells.names, 0)
    for dose, rows in counts.items():
        found[cells.names[int(np.searchsorted(edges, float(dose)))]] += rows
    return found


def monotone(effect: np.ndarray, doses: np.ndarray, direction: str) -> np.ndarray:
    """The effects [n, K-1] nearest to the given ones that only rise, or only fall, with the dose [K], control's first.

    Isotonic regression of each row (Barlow et al. 1972), zero at the control. No farther from any response that goes
    that way than the given effects were, so their errors hold.
    """
    order = np.argsort(doses[1:], kind="stable")
    sorted_doses, sign = doses[1:][order], 1.0 if direction == "increasing" else -1.0
    below, x = int(np.searchsorted(sorted_doses, doses[0])), sign * effect[:, order]
    sides = (np.minimum(_isotonic(x[:, :below]), 0.0), np.maximum(_isotonic(x[:, below:]), 0.0))
    found = np.empty_like(effect)
    found[:, order] = sign * np.concatenate(sides, axis=1)
    return found


def _isotonic(x: np.ndarray) -> np.ndarray:
    """Largest of the smallest means: max over a <= i of min over b >= i of the mean of x[a..b]; [n, m]."""
    sums = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1)
    found = np.full_like(x, -np.inf)
    for a in range(x.shape[1]):
        means = (sums[:, a + 1 :] - sums[:, a : a + 1]) / np.arange(1, x.shape[1] - a + 1)
        found[:, a:] = np.maximum(found[:, a:], np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1])
    return found
