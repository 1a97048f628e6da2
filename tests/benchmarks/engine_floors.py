"""What this machine can do at best, and how near our scoring comes: in memory and on Spark. For bench_engine.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numba as nb
import numpy as np
import pyarrow as pa
from engine_peers import forest_of, table_of
from processes import Usage

from uplift_spark.events.simulate import BENCHMARKS
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params
from uplift_spark.roles import Roles

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROWS = 200_000
FEATURES = 20
DEPTH = 10
COPIED = 1 << 28  # bytes per thread
Row = list[str]


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Shortest of some calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def at_once(call: Callable[[int], object], threads: int) -> None:
    """call(0), ..., call(threads - 1) in as many threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))


def copied(threads: int) -> float:
    """GB/s of copying memory, bytes read and bytes written both counted."""
    pairs = [(np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)) for _ in range(threads)]
    took = seconds(lambda: at_once(lambda i: np.copyto(pairs[i][1], pairs[i][0]), threads))
    return 2 * COPIED * threads / took / 1e9


@nb.njit(nogil=True)
def walk(feature, threshold, value, rows, out):
    """Plain traversal: every row through every tree, one comparison after the other.

    feature, threshold uint8 [T, 2^d - 1] in heap order; value float32 [T, 2^d]; rows uint8 [n, p]; out float32 [n]
    """
    inner = feature.shape[1]
    for i in range(rows.shape[0]):
        total = np.float32(0.0)
        for t in range(feature.shape[0]):
            node = 0
            while node < inner:
                node = 2 * node + 1 + (rows[i, feature[t, node]] > threshold[t, node])
            total += value[t, node - inner]
        out[i] = total


def walked(threads: int, trees: int) -> float:
    """Million row-trees per second of `walk` over full trees of depth 10."""
    rng = np.random.default_rng(0)
    feature = rng.integers(0, FEATURES, (trees, 2**DEPTH - 1), dtype=np.uint8)
    threshold = rng.integers(64, 192, feature.shape, dtype=np.uint8)
    value = rng.random((trees, 2**DEPTH), dtype=np.float32)
    rows, out = rng.integers(0, 256, (ROWS, FEATURES), dtype=np.uint8), np.empty(ROWS, np.float32)
    share = -(-ROWS // threads)

    def part(i: int) -> None:
        walk(feature, threshold, value, rows[i * share : (i + 1) * share], out[i * share : (i + 1) * share])

    return ROWS * trees / seconds(lambda: at_once(part, threads)) / 1e6


def deep_forest(trial: str, trees: int) -> Forest:
    """A forest of depth 10 with about 1,000 leaves a tree where rows allow: 100,000 rows, half of them grow."""
    return forest_of(BENCHMARKS[trial](100_000, 1), Params(n_trees=trees, n_buckets=2, min_leaf=5, max_depth=DEPTH))


def in_memory(threads: int, trees: int) -> list[Row]:
    """The table of floors, heads first: copying, the plain traversal, and our effects of one and of four levels."""
    counts = sorted({1, threads})
    floor = [walked(n, trees) for n in counts]
    rows = [
        ["", *(f"{n} thread{'s' * (n > 1)}" for n in counts), "unit", "of the plain traversal"],
        ["memory copy", *(f"{copied(n):.1f}" for n in counts), "GB/s read and written", ""],
        [f"plain traversal, depth {DEPTH}", *(f"{rate:.1f}" for rate in floor), "M row-trees/s", ""],
    ]
    for trial, levels in (("rct", "1 level"), ("mconv", "4 levels")):
        forest = deep_forest(trial, trees)
        leaves = forest.structure.n_leaves / trees
        times = [scored(forest, n, trees) for n in counts]
        for way in times[0]:
            shares = ", ".join(f"{one[way] / best:.2f}" for one, best in zip(times, floor, strict=True))
            what = f"our effects of {levels} {way}, {leaves:,.0f} leaves a tree"
            rows.append([what, *(f"{one[way]:.1f}" for one in times), "M row-trees/s", shares])
    return rows


def scored(forest: Forest, threads: int, trees: int) -> dict[str, float]:
    """Million row-trees per second of `Forest.effect_arrays` from raw rows, binning included."""
    batch = table_of(np.random.default_rng(0).random((ROWS, FEATURES)))
    ways = {"with standard errors": True, "without standard errors": False}
    return {
        way: ROWS * trees / seconds(partial(forest.effect_arrays, batch, threads=threads, errors=errors), 2) / 1e6
        for way, errors in ways.items()
    }


# ---------------------------------------------------------------- Spark


def identity(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows as they came."""
    yield from batches


def on_spark(users: int, threads: int, trees: int) -> list[Row]:
    """The table of Spark's floors: seconds of scoring and of training beside those of moving the same rows.

    The scoring job reads the users' 20 features from Delta, scores 4 levels, and writes their effects to Delta.
    Training is on the same users and their conversions, half treated; its memory is that of driver, JVM and workers.
    """
    from pyspark.sql import functions as F

    from uplift_spark.config import Lakehouse
    from uplift_spark.forest.spark import fit_frame, score
    from uplift_spark.lake.session import spark_session

    forest = forest_of(BENCHMARKS["mconv"](100_000, 1), Params(n_trees=trees))
    with tempfile.TemporaryDirectory(prefix="bench-spark-") as folder:
        spark = spark_session(Lakehouse(path=folder), master=f"local[{threads}]")
        random_columns = [F.rand(j).alias(f"x{j}") for j in range(FEATURES)]
        times = {}
        for n in (min(20_000, users), users):  # the first warms the JVM and the workers up
            at = {name: str(Path(folder, f"{name}-{n}")) for name in ("features", "scores", "copy")}
            write(spark.range(n).select(F.col("id").alias("unit"), *random_columns), at["features"])
            features = spark.read.format("delta").load(at["features"])
            times = {
                "read features": timed(partial(drain, features)),
                "round trip": timed(partial(drain, features.mapInArrow(identity, features.schema))),
                "job": timed(partial(write, score(features, forest), at["scores"])),
            }
            times["copy"] = timed(partial(write, spark.read.format("delta").load(at["scores"]), at["copy"]))
            roles = Roles("unit", "w", "y", tuple(f"x{j}" for j in range(FEATURES)), "0")
            usage = Usage()
            fit_frame(converting(features), roles, Params(n_trees=trees))
            times["fit"], times["peak"] = usage.stop().seconds, usage.peak / 2**30
        spark.stop()
    return spark_rows(times, users)


def converting(features: DataFrame) -> DataFrame:
    """The users with a treatment `w` and a conversion `y` as in the trial `conv`."""
    from pyspark.sql import functions as F

    step = "1 / (1 + exp(-12 * ({} - {})))"
    tau = F.expr(f"0.03 * {step.format('x0', 0.5)} * (0.3 + 0.7 * {step.format('x1', 0.4)})")
    treated = features.withColumn("w", (F.rand(FEATURES) < 0.5).cast("int"))
    bought = F.rand(FEATURES + 1) < F.expr("0.05 * exp(1.2 * (x2 - 0.5))") + F.col("w") * tau
    return treated.withColumn("y", bought.cast("double"))


def spark_rows(times: dict[str, float], users: int) -> list[Row]:
    """The table of Spark's floors, heads first."""
    names = {
        "read features": f"Delta read of {FEATURES} features",
        "round trip": "the same through mapInArrow and back, untouched",
        "copy": "plain Delta read and write of the output rows",
        "job": "forest.spark.score from Delta to Delta",
        "fit": f"forest.spark.fit_frame, {1024 * times['peak'] / users * 1e6:,.0f} MiB at peak per million users",
    }
    rows = [
        [what, f"{times[key]:.1f}", f"{users / times[key]:,.0f}", f"{times[key] / times['copy']:.2f}"]
        for key, what in names.items()
    ]
    return [["", "seconds", "users/s", "of the plain read and write"], *rows]


def write(frame: DataFrame, path: str) -> None:
    """A frame as a Delta table."""
    frame.write.format("delta").mode("overwrite").save(path)


def drain(frame: DataFrame) -> None:
    """Compute every row and keep none."""
    frame.write.format("noop").mode("overwrite").save()


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
