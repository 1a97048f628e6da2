"""Forests as ONNX files: how large they are, how long a prediction takes, and how near the forest's own it is.

    python tests/benchmarks/bench_portable.py

One thread throughout, effects without errors; the effect of the last level. MB of the forest's own file beside those of
the ONNX file, times of `Forest.effect_arrays` (of all levels) beside those of ONNX Runtime. The gap is the largest
distance between the two, in scales of the effect, over rows that the forest has not seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import numpy as np
import onnxruntime
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from uplift_spark import Roles
from uplift_spark.events.simulate import multi
from uplift_spark.forest.onnx import export_onnx
from uplift_spark.forest.training import Params, fit_table

FEATURES = tuple(f"x{j}" for j in range(20))
ROWS = 1000

console = Console(width=150, highlight=False)


def main() -> None:
    """Measure and print a line for each forest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--min-leaf", type=int, help="rows of a leaf; by default as the forest chooses")
    arguments = parser.parse_known_args()[0]
    names = ("trained on", "levels", "leaves", "MB", "own MB", "export s", "load s")
    table = Table(*names, "1 row ms", "own ms", f"{ROWS:,} rows ms", "own ms", "worst gap")
    for rows in (10_000, 100_000):
        for levels, shops in ((2, 0), (3, 0), (2, 200)):
            label = f"{levels}, {shops} shops" if shops else f"{levels}"
            params = Params(arguments.trees, min_leaf=arguments.min_leaf)
            table.add_row(f"{rows:,}", label, *measured(rows, levels, shops, params))
    console.print(table)


def draw(rows: int, levels: int, shops: int, seed: int) -> pa.Table:
    """Rows of a trial with so many levels; with `shops`, of as many categories with a say in the effect."""
    trial = multi(rows, seed, levels=levels)
    columns = dict(zip(FEATURES, trial.X.T, strict=True))
    table = pa.table({"unit": np.arange(rows), "arm": trial.w, "y": trial.y, **columns})
    if not shops:
        return table
    shop = np.random.default_rng(seed).integers(0, shops, rows)
    raised = trial.y + 0.5 * trial.w * (shop % 3 == 0)
    names = pa.array([f"shop {i}" for i in shop])
    return table.set_column(2, "y", pa.array(raised)).append_column("shop", names)


def measured(rows: int, levels: int, shops: int, params: Params) -> list[str]:
    """The line of one forest, from its leaves on."""
    features = (*FEATURES, "shop") if shops else FEATURES
    roles = Roles("unit", "arm", "y", features, "0", dose={str(k): k for k in range(levels)})
    forest = fit_table(draw(rows, levels, shops, 0), roles, params)
    level = str(levels - 1)
    content, export_seconds = timed(lambda: export_onnx(forest, level), 1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session, load_seconds = timed(lambda: onnxruntime.InferenceSession(content, options), 1)
    line = [f"{forest.structure.n_leaves:,}", f"{len(content) / 1e6:.2f}", f"{len(forest.to_bytes()) / 1e6:.2f}"]
    line += [f"{export_seconds:.2f}", f"{load_seconds:.2f}"]
    many = draw(ROWS, levels, shops, 1)
    for some in (many[:1], many):
        columns = {name: some.column(name).to_numpy(zero_copy_only=False)[:, None] for name in features}
        (uplift, _), seconds = timed(lambda columns=columns: session.run(None, columns), 20)
        (right, _, _), own = timed(lambda some=some: forest.effect_arrays(some, errors=False), 20)
        line += [f"{1e3 * seconds:.2f}", f"{1e3 * own:.2f}"]
    gap = np.nanmax(np.abs(uplift - right[:, -1])) / np.nanmax(np.abs(right[:, -1]))
    return [*line, f"{gap:.0e}"]


def timed(work: Callable[[], object], times: int) -> tuple:
    """What the work gives, and the median seconds it takes; once more before that if it is done several times."""
    seconds = []
    for _ in range(times + (times > 1)):
        start = perf_counter()
        result = work()
        seconds.append(perf_counter() - start)
    return result, float(np.median(seconds[-times:]))


if __name__ == "__main__":
    main()
