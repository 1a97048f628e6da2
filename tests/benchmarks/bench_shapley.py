"""Shapley values per second, beside the package shap on as large an ensemble of plain trees.

    python tests/benchmarks/bench_shapley.py --users 20000

With --spark the last forest explains them on Spark, too, from a Delta table to the sums that the gap is told from. The
last column is the largest gap between the effect shown and the sum of its parts, in scales of the effect. The line
of shap, if it can be imported, is its TreeExplainer on a random forest of scikit-learn with as many trees and about as
many leaves, one thread, of fewer users; its leaves hold one number, not moments.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from time import perf_counter

import numpy as np
import pyarrow as pa
from lakes import fresh_lake
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from uplift_spark import Roles
from uplift_spark.estimators import UpliftModel
from uplift_spark.events.simulate import multi
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.shapley import paths_of, shapley_values
from uplift_spark.forest.training import Params, fit_table

FEATURES = tuple(f"x{j}" for j in range(20))
SHAP_USERS = 100

console = Console(width=120, highlight=False)


def main() -> None:
    """Measure and print a line for each size of forest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--spark", action="store_true", help="explain them on Spark, too")
    parser.add_argument("--min-leaf", type=int, help="rows of a leaf; by default as the forest chooses")
    arguments = parser.parse_known_args()[0]
    names = ("trained on", "levels", "trees", "leaves", "features per leaf", "threads", "users", "users/s", "worst gap")
    table = Table(*names)
    for rows, levels in ((10_000, 2), (100_000, 2), (100_000, 3)):
        forest, bins = trained(rows, levels, arguments.users, Params(arguments.trees, min_leaf=arguments.min_leaf))
        for threads in (1, 2):
            table.add_row(f"{rows:,}", str(levels), *measured(forest, bins, threads))
    if arguments.spark:
        table.add_row("", "", *on_spark(forest, draw(arguments.users, 3, 1)))
    if find_spec("shap"):
        table.add_row("", "", *peer(arguments.trees, forest.structure.n_leaves // arguments.trees))
    console.print(table)


def trained(rows: int, levels: int, users: int, params: Params) -> tuple[Forest, np.ndarray]:
    """A forest of so many rows, and the bins of users it has not seen."""
    roles = Roles("unit", "arm", "y", FEATURES, "0", dose={str(k): k for k in range(levels)})
    forest = fit_table(draw(rows, levels, 0), roles, params)
    return forest, apply_bins(draw(users, levels, 1), forest.plan.bins)


def draw(rows: int, levels: int, seed: int) -> pa.Table:
    """Rows of a trial with so many levels."""
    trial = multi(rows, seed, levels=levels)
    columns = dict(zip(FEATURES, trial.X.T, strict=True))
    return pa.table({"unit": np.arange(rows), "arm": trial.w, "y": trial.y, **columns})


def measured(forest: Forest, bins: np.ndarray, threads: int) -> list[str]:
    """The line of one forest, from its trees on."""
    shapley_values(forest, bins[:10])  # compiled
    paths, start = paths_of(forest), perf_counter()
    values, base = shapley_values(forest, bins, threads, paths)
    seconds = perf_counter() - start
    shown = forest.effects_of(bins, threads, errors=False)[0]
    gap = np.nanmax(np.abs(base + values.sum(axis=2) - shown)) / np.nanmax(np.abs(shown))
    leaves, entries = len(paths.moments), len(paths.feature)
    cells = [f"{forest.plan.n_trees}", f"{leaves:,}", f"{entries / leaves:.1f}", f"{threads}", f"{len(bins):,}"]
    return [*cells, f"{len(bins) / seconds:,.0f}", f"{gap:.0e}"]


def on_spark(forest: Forest, users: pa.Table) -> list[str]:
    """The line of `UpliftModel.explain` on a table of users, read, explained and summed up by all cores."""
    with fresh_lake("shapley", users.num_rows) as lake:
        lake.write("silver.users", lake.spark.createDataFrame(users).repartition(16), "bench")
        explained = UpliftModel(forest).explain(lake.read("silver.users"))
        parts = F.aggregate("values", F.col("base"), lambda total, value: total + value)
        gap = F.max(F.abs(parts - F.col("uplift"))) / F.max(F.abs("uplift"))
        start = perf_counter()
        result = explained.agg(gap.alias("gap"), F.countDistinct("unit").alias("units")).collect()[0]
        seconds = perf_counter() - start
    cells = [f"{forest.plan.n_trees} (Spark)", f"{forest.structure.n_leaves:,}", "", f"{len(os.sched_getaffinity(0))}"]
    return [*cells, f"{result['units']:,}", f"{result['units'] / seconds:,.0f}", f"{result['gap']:.0e}"]


def peer(trees: int, leaves: int) -> list[str]:
    """The line of shap."""
    import shap
    from sklearn.ensemble import RandomForestRegressor

    rng = np.random.default_rng(0)
    x = rng.random((20_000, len(FEATURES)))
    y = x[:, 0] * x[:, 1] + rng.normal(size=len(x))
    model = RandomForestRegressor(trees, max_leaf_nodes=max(2, leaves), max_features=0.5, random_state=0).fit(x, y)
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    start = perf_counter()
    values = explainer.shap_values(x[:SHAP_USERS], check_additivity=False)
    seconds = perf_counter() - start
    shown = model.predict(x[:SHAP_USERS])
    gap = np.abs(explainer.expected_value + values.sum(axis=1) - shown).max() / np.abs(shown).max()
    total = sum(tree.get_n_leaves() for tree in model.estimators_)
    cells = [f"{trees} (shap)", f"{total:,}", "", "1", f"{SHAP_USERS}"]
    return [*cells, f"{SHAP_USERS / seconds:,.0f}", f"{gap:.0e}"]


if __name__ == "__main__":
    main()
