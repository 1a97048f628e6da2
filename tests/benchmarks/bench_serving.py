"""Microseconds of one unit's effects, beside boosted trees of the same number and size.

    python tests/benchmarks/bench_serving.py

One thread, the least of several rounds over 100 units, ten at a time. The forest gives the effects of two levels with
their errors; the others one number without an error, from an array. LightGBM, Treelite and ONNX Runtime run where they
are installed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from uplift_spark import Roles
from uplift_spark.events.simulate import multi
from uplift_spark.forest.onnx import export_onnx
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.serving.scorer import Scorer

FEATURES = tuple(f"x{j}" for j in range(20))
UNITS, GROUP = 100, 10

console = Console(width=120, highlight=False)


def main() -> None:
    """Train, time and print a line for each way to a number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--rows", type=int, default=20_000, help="that are trained on")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_known_args()[0]
    trial = multi(arguments.rows, 7, levels=3)
    columns = dict(zip(FEATURES, trial.X.T, strict=True))
    table = pa.table({"unit": np.arange(arguments.rows), "arm": trial.w, "y": trial.y, **columns})
    forest = fit_table(table, Roles("unit", "arm", "y", FEATURES, "0"), Params(arguments.trees))
    leaves = max(2, round(forest.structure.n_leaves / arguments.trees))
    lines = Table("what", "µs a unit")
    for name, call in ways(forest, trial.X, trial.y, leaves):
        lines.add_row(name, f"{least(call, arguments.rounds):.1f}")
    console.print(f"{arguments.trees} trees of {leaves} leaves, {len(FEATURES)} features, one thread")
    console.print(lines)


def ways(forest: Any, x: np.ndarray, y: np.ndarray, leaves: int) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Name, and a call for unit i."""
    scorer, rows = Scorer(forest), np.ascontiguousarray(x[:UNITS])
    scorer.warm()
    dicts = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in rows]
    encoded = [scorer.encoder.encode(one) for one in dicts]
    bins = [np.frombuffer(one.bins, np.uint8).reshape(1, -1) for one in encoded]
    yield "forest, effects and errors, from bins", lambda i: forest.unit_effects(bins[i])
    yield "the same from a dict of features", lambda i: scorer.effects([scorer.encoder.encode(dicts[i])])
    yield "the same by the kernel of batches", lambda i: forest.effects_of(bins[i])
    if find_spec("lightgbm"):
        booster = boosted(x, y, forest.structure.n_trees, leaves)
        yield "LightGBM, one number", lambda i: booster.predict(rows[i : i + 1], num_threads=1)
        if find_spec("treelite"):
            yield "Treelite, LightGBM's trees, one number", interpreted(booster, rows)
    if find_spec("onnxruntime"):
        yield "ONNX Runtime, this forest, effects alone", portable(forest, rows)


def boosted(x: np.ndarray, y: np.ndarray, trees: int, leaves: int) -> Any:
    """LightGBM's booster of as many trees and leaves."""
    import lightgbm

    warnings.filterwarnings("ignore", module="lightgbm")
    options = {"num_leaves": leaves, "num_threads": 1, "verbose": -1, "min_data_in_leaf": 5, "objective": "regression"}
    return lightgbm.train(options, lightgbm.Dataset(x, y), trees)


def interpreted(booster: Any, rows: np.ndarray) -> Callable[[int], object]:
    """The booster's trees as Treelite walks them, without a compiler."""
    import treelite

    model = treelite.frontend.from_lightgbm(booster)
    return lambda i: treelite.gtil.predict(model, rows[i : i + 1], nthread=1)


def portable(forest: Any, rows: np.ndarray) -> Callable[[int], object]:
    """The forest's own file for ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(export_onnx(forest, forest.levels.treated[-1]), options)
    columns = [{name: row[j : j + 1, None] for j, name in enumerate(FEATURES)} for row in rows]
    return lambda i: session.run(None, columns[i])


def least(call: Callable[[int], object], rounds: int) -> float:
    """Microseconds of a call, in the ten that took least: others have the processor, too."""
    best = float("inf")
    for low in list(range(0, UNITS, GROUP)) * rounds:
        start = perf_counter()
        for i in range(low, low + GROUP):
            call(i)
        best = min(best, (perf_counter() - start) / GROUP)
    return best * 1e6


if __name__ == "__main__":
    main()
