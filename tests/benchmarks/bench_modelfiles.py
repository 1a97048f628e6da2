"""How long a model's file takes to load: its digest, the check of its structure, all of it. Forests of 200 trees.

`python tests/benchmarks/bench_modelfiles.py [ROWS ...]` prints a row for each number of training rows.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from uplift_spark.forest.forest import forest_of_parts, load_forest
from uplift_spark.forest.modelfile import read_file
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles

TREES, REPEATS = 200, 15


def forest_file(rows: int) -> bytes:
    """The file of a forest of three levels and ten features."""
    rng = np.random.default_rng(1)
    features = {f"x{j}": rng.normal(size=rows) for j in range(9)} | {"zip": rng.choice(list("abcdefgh"), rows)}
    level = rng.integers(0, 3, rows)
    outcome = rng.normal(size=rows) + level * (features["x0"] > 0)
    table = pa.table({"unit": np.arange(rows), "arm": level.astype(str), "y": outcome, **features})
    return fit_table(table, Roles("unit", "arm", "y", tuple(features), "0"), Params(n_trees=TREES, seed=1)).to_bytes()


def milliseconds(call: Callable[[], object]) -> float:
    """The fastest of several calls: what others do meanwhile is not in it."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    """Print the table."""
    print("rows      file MB   digest ms   check ms   load ms")
    for rows in [int(one) for one in sys.argv[1:]] or [5_000, 50_000, 500_000]:
        content = forest_file(rows)
        parts = read_file(content)
        digest = milliseconds(lambda content=content: hashlib.sha256(content).digest())
        check = milliseconds(lambda parts=parts: forest_of_parts(*parts))
        load = milliseconds(lambda content=content: load_forest(content))
        print(f"{rows:<9,} {len(content) / 1e6:7.2f}   {digest:9.2f}   {check:8.2f}   {load:7.2f}", flush=True)


if __name__ == "__main__":
    main()
