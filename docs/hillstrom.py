"""Draw README's picture: Hillstrom's trial, lift by decile on the half that training never saw. No Spark.

UPLIFT_DATA=... python docs/hillstrom.py      # the folder that holds hillstrom/hillstrom.csv.gz
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from uplift_spark import CausalForest, Roles

FEATURES = ("recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel")
NAMES = {"No E-Mail": "none", "Mens E-Mail": "men's e-mail", "Womens E-Mail": "women's e-mail"}


def main() -> None:
    """Train on one half by the number of the row, draw the other."""
    trial = pd.read_csv(Path(os.environ["UPLIFT_DATA"]) / "hillstrom" / "hillstrom.csv.gz")
    trial = trial.assign(customer=range(len(trial)), segment=trial["segment"].map(NAMES))
    order = trial.sample(frac=1, random_state=7)
    train, rest = order[: len(order) // 2], order[len(order) // 2 :]
    roles = Roles("customer", "segment", "visit", FEATURES, control="none")
    model = CausalForest(n_trees=200, seed=7).fit(train, roles)
    model.plot.deciles(rest).savefig(Path(__file__).with_name("hillstrom.png"), dpi=80, facecolor="white")
    figures = model.metrics(rest).set_index(["treatment", "metric"])[["value", "lower", "upper"]]
    print(figures.loc[(slice(None), ["ate", "qini", "top_30_percent_uplift", "heterogeneity_p"]), :])


if __name__ == "__main__":
    main()
