"""Sums from which a page plans anew (`whatif_sums`), without the rows of units.

Units with almost the same predicted benefits form a group. Of a group the page knows how many units it has, the mean of
their benefits by level, and by arm the sums of its hold-out units' outcomes: sums of groups add, so the plan of any
budget, cost and value follows from them, up to the few units of a group that a plan's border runs through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from uplift_spark.evaluation.html_page import package_text
from uplift_spark.gold_views import LEAST_IN_GROUP
from uplift_spark.roles import PROPENSITY, TREATMENT, UNIT, Direction, benefit, benefit_interval
from uplift_spark.stats.moments import MIN_UNITS

MOST_GROUPS = 4096
"""Groups of one campaign: at twice as many a slider takes twice as long, and the page is twice as large."""

_DIGITS = 6  # of benefits and sums


@dataclass(frozen=True, eq=False)
class WhatIfUnits:
    """Units that no rule bars, in arrays.

    benefit, lower  [n, K]: predicted benefit of each level and the lower end of its 95 % interval
    arm      int [n]: level_code that a unit of the hold-out received (0 = control); -1 for all other units
    outcome  [n]: of the hold-out's units, in the direction in which more is better; 0 elsewhere
    weight   [n]: inverse propensity of the level received
    """

    benefit: np.ndarray
    lower: np.ndarray
    arm: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.arm)


def whatif_units(
    scores: pd.DataFrame, free: Sequence[str], levels: Sequence[str], holdout: pd.DataFrame | None,
    direction: Direction, control: str,
) -> WhatIfUnits:  # fmt: skip
    """Bring the rows of tables into arrays.

    Args:
        scores: Rows of gold.uplift_scores of one run.
        free: Ids of the units that the plan might treat.
        levels: Treated levels, in the order of the result's columns.
        holdout: unit_id, treatment, propensity and `outcome` of the hold-out; None where it is not read.
        direction: Which way the outcome should go.
        control: The level of the untreated.

    Returns:
        The units that have a score of every level.
    """
    mine = scores[scores[UNIT].isin(free)]
    wide = {
        column: mine.pivot_table(index=UNIT, columns=TREATMENT, values=column, aggfunc="first").reindex(
            columns=list(levels)
        )
        for column in ("uplift", "uplift_lower", "uplift_upper")
    }
    index = wide["uplift"].dropna().index
    value, low, high = (wide[column].reindex(index).to_numpy(np.float64) for column in wide)
    lower, _ = benefit_interval(low, high, direction)
    n = len(index)
    arm, outcome, weight = np.full(n, -1), np.zeros(n), np.zeros(n)
    if holdout is not None and len(holdout):
        known = holdout.drop_duplicates(UNIT).set_index(UNIT).reindex(index)
        codes = {level: code for code, level in enumerate((control, *levels))}
        arm = known[TREATMENT].map(codes).fillna(-1).to_numpy(np.int64)
        held = arm >= 0
        outcome[held] = benefit(known["outcome"].to_numpy(np.float64)[held], direction)
        weight[held] = 1.0 / known[PROPENSITY].to_numpy(np.float64)[held]
    gains = benefit(value, direction)
    never = -np.abs(gains).max(initial=0.0)  # without an interval a level is not used where the lower end counts
    return WhatIfUnits(gains, np.where(np.isfinite(lower), lower, never), arm, outcome, weight)


def whatif_groups(points: np.ndarray, most: int = MOST_GROUPS) -> np.ndarray:
    """Group units that are alike: halves of halves, each at the median of the benefit that varies most within it.

    Args:
        points: [n, K], benefits by level.
        most: Groups.

    Returns:
        Number of each unit's group, int [n]; of 10 units or more no group has fewer than LEAST_IN_GROUP.
    """
    group = np.zeros(len(points), np.int64)
    parts = [np.arange(len(points))]
    while len(parts) * 2 <= most:
        halves: list[np.ndarray] = []
        for rows in parts:
            spread = points[rows].std(axis=0) if len(rows) >= 2 * LEAST_IN_GROUP else np.zeros(1)
            if not spread.max() > 0:
                halves.append(rows)
                continue
            middle = len(rows) // 2
            order = np.argpartition(points[rows, int(spread.argmax())], middle)
            halves += [rows[order[:middle]], rows[order[middle:]]]
        if len(halves) == len(parts):
            break
        parts = halves
    for number, rows in enumerate(parts):
        group[rows] = number
    return group


def whatif_sums(units: WhatIfUnits, levels: Sequence[str], most: int = MOST_GROUPS) -> dict[str, Any]:
    """Add up units by group, as `planOf` of whatif.js takes it.

    Args:
        units: See `WhatIfUnits`.
        levels: Treated levels.
        most: Groups, of each of the two ways to group: by benefits, and by their lower ends.

    Returns:
        `plain` and `safe`, which plans without and with a margin of safety start from, each with `n` units of each
        group, `benefit`, its mean by level, and `arms`, by arm the sums `n`, `w`, `wy`, `ww`, `wwy`, `wwyy` (`w`, `ww`
        and `wwy` are left out where weights are equal; without a hold-out there is no arm); `units`; `levels`;
        `leastUnits` of an arm for a mean.
    """
    parts = {
        name: _grouped(units, points, whatif_groups(points, most), len(levels) + 1)
        for name, points in (("plain", units.benefit), ("safe", units.lower))
    }
    return {**parts, "units": len(units), "leastUnits": MIN_UNITS, "levels": list(levels)}


def _grouped(units: WhatIfUnits, points: np.ndarray, group: np.ndarray, codes: int) -> dict[str, Any]:
    count = np.bincount(group)
    means = [_digits(np.bincount(group, points[:, k], len(count)) / count) for k in range(codes - 1)]
    weights = [np.unique(units.weight[units.arm == code]) for code in range(codes)]
    flat = all(len(one) < 2 or one[-1] - one[0] < 1e-9 * one[-1] for one in weights)
    arms = []
    for code in range(codes) if (units.arm >= 0).any() else ():
        mine = units.arm == code
        w, y, at = (np.ones(int(mine.sum())) if flat else units.weight[mine]), units.outcome[mine], group[mine]
        terms = {"n": np.ones_like(y), "wy": w * y, "wwyy": w * w * y * y}
        terms |= {} if flat else {"w": w, "ww": w * w, "wwy": w * w * y}
        arms.append({name: _digits(np.bincount(at, term, len(count))) for name, term in terms.items()})
    return {"n": count.tolist(), "benefit": means, "arms": arms}


def _digits(values: np.ndarray) -> list[float]:
    """Numbers to `_DIGITS` digits, whole ones without a point: a page has many of them."""
    short = [float(f"{value:.{_DIGITS}g}") for value in values]
    return [int(value) if value.is_integer() else value for value in short]


def whatif_script() -> str:
    """The script that plans: functions without a browser, so that node and tests run them, too."""
    return package_text("uplift_spark.dashboards", "whatif.js")
