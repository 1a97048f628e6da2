"""What differential privacy costs: error, ranking and interval width of forests and lift tables over ε.

    make bench ONLY=privacy
    make bench ONLY=privacy ARGS="--units 20000 --draws 20"

Conversions of 10 to 20 %; the level brings 5 points, and 15 where a feature is above a half. Trees grow on as many
public units, on synthetic ones with half of the budget, or, without privacy, on the units themselves. Figures are means
over draws, at new units.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from tests.governance.test_differential_privacy import FEATURES, POINTS, ROLES, campaign
from uplift_spark import CausalForest
from uplift_spark.governance.differential_privacy import private_forest, private_lift, synthetic_units
from uplift_spark.stats.noise import PrivacyBudget, epsilon_of

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=50_000)
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_known_args()[0]
    print(forests(arguments.units, arguments.draws).to_string(index=False), "\n")
    print(lifts(arguments.units, arguments.draws).to_string(index=False))


def forests(units: int, draws: int) -> pd.DataFrame:
    """A row per way to grow trees and ε: RMSE, Qini as a share of the true effects', width of intervals, coverage."""
    learner, (points, truth) = CausalForest(n_trees=60), campaign(POINTS, 10**6)
    public, values = campaign(units, 999)[0], dict.fromkeys(FEATURES, (0.0, 1.0))
    rows = []
    for draw in range(draws):
        frame, _ = campaign(units, draw)
        fits = [("its own", np.inf, learner.fit(frame, ROLES))]
        for epsilon in EPSILONS:
            fits.append(("public", epsilon, private_forest(learner, public, frame, ROLES, PrivacyBudget(epsilon))))
            half = PrivacyBudget(epsilon_of(PrivacyBudget(epsilon).rho / 2.0, 1e-6))
            synthetic = synthetic_units(frame, ROLES, ["0", "1"], values, half)
            fits.append(("synthetic", epsilon, private_forest(learner, synthetic, frame, ROLES, half)))
        for name, epsilon, model in fits:
            effects = model.effect(points)
            effect, error = effects["uplift"].to_numpy(), effects["uplift_se"].to_numpy()
            off = effect - truth[:, 0]
            rows.append(
                {
                    "trees grown on": name,
                    "epsilon": epsilon,
                    "RMSE": np.sqrt((off**2).mean()),
                    "Qini share": true_qini(effect, truth[:, 0]) / true_qini(truth[:, 0], truth[:, 0]),
                    "width": 2 * 1.96 * error.mean(),
                    "covers": (np.abs(off) <= 1.96 * error).mean(),
                }
            )
    return pd.DataFrame(rows).groupby(["trees grown on", "epsilon"], sort=False).mean().round(4).reset_index()


def true_qini(ranking: np.ndarray, truth: np.ndarray) -> float:
    """What treating by the ranking brings beyond treating at random, over all shares treated, by the true effects."""
    gains = np.cumsum(truth[np.argsort(-ranking, kind="stable")]) / len(truth)
    return float((gains - gains[-1] * np.arange(1, len(truth) + 1) / len(truth)).mean())


def lifts(units: int, draws: int) -> pd.DataFrame:
    """A row per ε: mean width of the intervals of all units' lift and of ten segments', and their coverage."""
    rows = []
    for draw in range(draws):
        frame, gain = campaign(units, draw)
        frame["tenth"] = (frame["x1"] * 10).astype(int).astype(str)
        for epsilon in (*EPSILONS, 1000.0):
            segments = {"tenth": [str(k) for k in range(10)]}
            table = private_lift(frame, ROLES, ["0", "1"], segments, PrivacyBudget(epsilon))
            covered = table["lift_lower"].le(gain.mean()) & table["lift_upper"].ge(gain.mean())
            width = table["lift_upper"] - table["lift_lower"]
            parts = (width[0], width[1:].mean(), covered.mean())
            rows.append(
                dict(zip(("epsilon", "width, all units", "width, a tenth", "covers"), (epsilon, *parts), strict=True))
            )
    return pd.DataFrame(rows).groupby("epsilon").mean().round(4).reset_index()


if __name__ == "__main__":
    main()
