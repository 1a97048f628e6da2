"""New rows into a forest: refreshing its sums, estimating its trees from all rows, growing anew, in one run.

    python tests/benchmarks/bench_refresh.py --rows 1000000

The forest is grown on so many rows, and as many are new; all passes are in this process, from Arrow to the forest. With
--spark the verbs of the package follow, on Spark, from a Delta table of all rows. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from lakes import fresh_lake
from processes import Usage
from rich.console import Console
from rich.table import Table

from uplift_spark import CausalForest, Roles
from uplift_spark.estimators import UpliftModel
from uplift_spark.events.simulate import multi
from uplift_spark.forest.estimate import estimate_table
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.refresh import forest_of, forest_residuals, refreshed, staleness, trained
from uplift_spark.forest.training import Params, fit_table

FEATURES = tuple(f"x{j}" for j in range(20))
HELD_OUT = 20_000
WARM_UP = 3_000
ROLES = Roles("unit", "arm", "y", FEATURES, "0", dose={str(k): k for k in range(3)})

console = Console(width=120, highlight=False)


def main() -> None:
    """Measure and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--spark", action="store_true", help="on Spark, too")
    arguments = parser.parse_known_args()[0]
    ways(WARM_UP, 8, Table())  # compiled
    table = Table("way", "seconds", "cpu s", "RMSE")
    ways(arguments.rows, arguments.trees, table)
    if arguments.spark:
        on_spark(arguments.rows, arguments.trees, table)
    cores = len(os.sched_getaffinity(0))
    console.print(f"{arguments.rows:,} rows, as many new, {arguments.trees} trees, {cores} cores of a shared machine")
    console.print(table)


def ways(rows: int, trees: int, lines: Table) -> None:
    """Every way once, a line each."""
    old, new, held_out = draw(rows, 0), draw(rows, 1), multi(HELD_OUT, 99, levels=3)
    both = pa.concat_tables([old, new]).combine_chunks()

    def timed(way: str, run: Callable[[], Any]) -> Any:
        usage = Usage()
        result = run()
        usage.stop()
        error = f"{rmse(result, held_out):.4f}" if isinstance(result, Forest) else ""
        lines.add_row(way, f"{usage.seconds:.1f}", f"{usage.cpu:.1f}", error)
        return result

    forest = timed("the forest of the old rows", lambda: fit_table(old, ROLES, Params(n_trees=trees)))
    tally = timed("its tally, once", lambda: trained(forest, old))
    timed("refreshed with the new rows", lambda: forest_of(refreshed(tally, new)))
    timed("its trees estimated from all rows", lambda: estimate_table(both, forest))
    timed("grown anew on all rows", lambda: fit_table(both, ROLES, Params(n_trees=trees)))
    before = timed("residuals of the old rows, once", lambda: forest_residuals(forest, old))
    timed("are the splits stale for the new rows?", lambda: staleness(forest, before, new))


def on_spark(rows: int, trees: int, lines: Table) -> None:
    """The verbs, a line each; rows are of two months."""
    old, new, held_out = draw(rows, 0), draw(rows, 1), multi(HELD_OUT, 99, levels=3)
    both = pa.concat_tables([old, new]).append_column("day", pa.array(np.arange(2 * rows) * 60 // (2 * rows)))
    learner = CausalForest(n_trees=trees)
    model = UpliftModel(fit_table(old, ROLES, learner))
    with fresh_lake("refresh", 2 * rows) as lake:
        lake.write("silver.rows", lake.spark.createDataFrame(both).repartition(16), "bench")
        frame = lake.read("silver.rows")
        model.refresh(frame.limit(WARM_UP))  # workers started
        verbs: dict[str, Callable[[], UpliftModel]] = {
            "refreshed": lambda: model.refresh(frame),
            "refreshed, rows fade by day": lambda: model.refresh(frame, 30.0, "day"),
            "its trees estimated": lambda: model.estimate(frame),
            "grown anew": lambda: learner.fit(frame, ROLES),
        }
        for verb, run in verbs.items():
            start = perf_counter()
            result = run()
            seconds = perf_counter() - start
            lines.add_row(f"on Spark, all rows: {verb}", f"{seconds:.1f}", "", f"{rmse(result.forest, held_out):.4f}")


def draw(rows: int, seed: int) -> pa.Table:
    """Rows of a trial with two doses and a control."""
    trial = multi(rows, seed, levels=3)
    columns = dict(zip(FEATURES, trial.X.T, strict=True))
    return pa.table({"unit": np.arange(rows) + seed * rows, "arm": trial.w, "y": trial.y, **columns})


def rmse(forest: Forest, held_out: Any) -> float:
    """Of both levels' effects."""
    rows = pa.table({"unit": np.arange(HELD_OUT), **dict(zip(FEATURES, held_out.X.T, strict=True))})
    return float(np.sqrt(((forest.effect_arrays(rows, errors=False)[0] - held_out.tau) ** 2).mean()))


if __name__ == "__main__":
    main()
