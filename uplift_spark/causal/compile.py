"""Compile the kernels ahead of first use: `python -m uplift_spark.causal.compile`, part of `make setup`.

Half a minute that the first training, and every Spark worker of it at once, would otherwise spend.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from uplift_spark.causal.shapley import shapley_values
from uplift_spark.causal.training import Params, fit_table
from uplift_spark.vocabulary import Roles


def compile_kernels() -> None:
    """Train and apply a tiny forest with every kind of column, so that each kernel is compiled and kept."""
    n = 400
    rng = np.random.default_rng(0)
    rows = pa.table(
        {
            "unit": np.arange(n),
            "arm": rng.choice(["none", "a", "b"], n),
            "y": rng.normal(size=n),
            "number": rng.normal(size=n),
            "text": rng.choice(["x", "y", "z"], n),
        }
    )
    roles = Roles("unit", "arm", "y", ("number", "text"), control="none")
    forest = fit_table(rows, roles, Params(n_trees=8, n_buckets=4))
    forest.effect_arrays(rows)
    shapley_values(forest, rows)


if __name__ == "__main__":
    compile_kernels()
