"""A window of a monitored campaign, counted in one pass: seconds beside those of counting the values of its columns.

    make bench ONLY=monitor                           # 1,000,000 units, 100 features, 200 trees
    python tests/benchmarks/bench_monitor.py --units 200000 --features 20

The units lie in a Delta table. The pass counts every feature, the propensities and the predicted uplift by arm, so each
unit is scored on the way; how long scoring alone takes stands beside it. The best of the repetitions is shown, of each
taken in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from uplift_spark.config import Lakehouse
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.lake.session import check_java, local_conf, local_session
from uplift_spark.monitoring.spark import counted_rows, reference_plan, window_sums
from uplift_spark.roles import DELIVERED, PROPENSITY, TREATMENT, UNIT, Roles

OUTCOME = "bought"


def main() -> None:
    """Write the window, count it both ways in turn, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--times", type=int, default=3, help="repetitions")
    arguments = parser.parse_known_args()[0]
    names = [f"x{j}" for j in range(arguments.features)]
    model = trained(names, arguments.trees)
    check_java()
    with tempfile.TemporaryDirectory(prefix="bench-monitor-") as folder:
        spark = local_session(local_conf(Lakehouse(path=f"{folder}/lakehouse"), "bench"))
        path = f"{folder}/window"
        made_up(spark.range(0, arguments.units), names).write.format("delta").save(path)
        rows = counted_rows(spark.read.format("delta").load(path), names, F.col(OUTCOME), True)
        plan = reference_plan(rows, model, 20_000 / arguments.units, 256)

        def counted() -> int:
            return len(rows.agg(*(F.count(f"`{name}`") for name in rows.columns)).collect())

        def scored() -> int:
            return rows.mapInArrow(lambda batches: scores_of(batches, model), "n bigint").count()

        ways = {"counts of values": counted, "scores alone": scored}
        ways["the window, in one pass"] = lambda: window_sums(rows, plan, model).num_rows
        seconds = in_turn(ways, arguments.times)
        spark.stop()
        size = sum(file.stat().st_size for file in Path(path).rglob("*.parquet")) / 2**20
    table = Table(title=f"{arguments.units:,} units, {arguments.features} features, {size:,.0f} MiB")
    for head in ("what", "seconds", "times the counts", "units a second"):
        table.add_column(head, justify="left" if head == "what" else "right")
    least = min(seconds["counts of values"])
    for name, taken in seconds.items():
        best = min(taken)
        table.add_row(name, f"{best:.2f}", f"{best / least:.2f}", f"{arguments.units / best:,.0f}")
    Console().print(table)


def trained(names: list[str], trees: int) -> Forest:
    """A forest of 20,000 units whose effect rises with the first feature."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, len(names)))
    mail = rng.random(len(x)) < 0.5
    bought = (rng.random(len(x)) < 0.1 + 0.1 * mail * (x[:, 0] > 0)).astype(float)
    arms = {UNIT: np.arange(len(x)), TREATMENT: np.where(mail, "mail", "none"), OUTCOME: bought}
    frame = pd.DataFrame({**arms, PROPENSITY: 0.5, **dict(zip(names, x.T, strict=True))})
    roles = Roles(UNIT, TREATMENT, OUTCOME, tuple(names), "none", propensity=PROPENSITY)
    return fit_table(pa.Table.from_pandas(frame), roles, Params(n_trees=trees))


def made_up(ids: DataFrame, names: list[str]) -> DataFrame:
    """The units of a window, made where they are written."""
    mail = F.rand(1) < 0.5
    arms = ids.select(F.col("id").alias(UNIT), F.when(mail, "mail").otherwise("none").alias(TREATMENT))
    known = {PROPENSITY: F.lit(0.5), DELIVERED: F.lit(1.0), OUTCOME: (F.rand(2) < 0.1).cast("double")}
    return arms.withColumns({**known, **{name: F.randn(3 + j) for j, name in enumerate(names)}})


def scores_of(batches: Iterator[pa.RecordBatch], model: Forest) -> Iterator[pa.RecordBatch]:
    """Units of a batch that have a predicted effect."""
    for batch in batches:
        effect, _, _ = model.effect_arrays(batch)
        yield pa.RecordBatch.from_pydict({"n": [len(effect)]})


def in_turn(ways: dict[str, Callable[[], int]], times: int) -> dict[str, list[float]]:
    """Seconds of each way, which take turns; a first round without a clock warms everything up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
