"""A small scored campaign as pandas frames, and the references its evaluation is compared with."""

from __future__ import annotations

import numpy as np
import pandas as pd

LEVELS = ("5%", "10%")


def campaign(n: int = 900, seed: int = 0, varying: bool = False) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Hold-out, scores and true effects of n units, three arms; `varying` makes the odds of an arm depend on x."""
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    effect = np.stack([np.zeros(n), 0.2 * x, 0.5 * x**2], axis=1)
    propensity = (
        np.stack([0.6 - 0.4 * x, np.full(n, 0.2), 0.2 + 0.4 * x], axis=1) if varying else np.full((n, 3), 1 / 3)
    )
    arm = (rng.random(n)[:, None] > propensity.cumsum(axis=1)).sum(axis=1)
    visit = (rng.random(n) < 0.2 + 0.1 * x + effect[np.arange(n), arm]).astype(float)
    holdout = pd.DataFrame(
        {
            "unit_id": [f"u{i}" for i in range(n)],
            "treatment": np.array(["none", *LEVELS])[arm],
            "propensity": propensity[np.arange(n), arm],
            "visit": visit,
            "spend": (visit * rng.lognormal(3, 1, n)).round(2),
            "age": np.where(np.arange(n) % 50 == 0, np.nan, rng.normal(40, 10, n).round(1)),
            "city": rng.choice(["x", "y"], n),
        }
    )
    noisy = effect[:, 1:] + rng.normal(0, 0.05, (n, 2))
    noisy[:: n // 20, 0] = 0.1  # ties
    long = [pd.DataFrame({"unit_id": holdout.unit_id, "treatment": level}) for level in LEVELS]
    scores = pd.concat([frame.assign(uplift=noisy[:, k]) for k, frame in enumerate(long)], ignore_index=True)
    truth = pd.concat([frame.assign(effect=effect[:, k + 1]) for k, frame in enumerate(long)], ignore_index=True)
    return holdout, scores, truth


def compared(holdout: pd.DataFrame, scores: pd.DataFrame, level: str) -> pd.DataFrame:
    """Units of a level and of the control with that level's score, best first."""
    rows = holdout.merge(scores[scores.treatment == level][["unit_id", "uplift"]], on="unit_id")
    rows = rows[rows.treatment.isin(["none", level])]
    return rows.assign(treated=rows.treatment == level).sort_values("uplift", ascending=False, kind="stable")


def mid_ranks(score: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Share of the mass ranked before each unit's tie group, plus half of the group's own."""
    higher = (w[None, :] * (score[None, :] > score[:, None])).sum(axis=1)
    same = (w[None, :] * (score[None, :] == score[:, None])).sum(axis=1)
    return (higher + same / 2) / w.sum()
