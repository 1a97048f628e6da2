"""Meta-learners and nuisances fitted on Spark: a bounded sample of rows, a task for every model, no row in two places.

The driver holds the sample, as a table of numbers; each replicate, or fold, is a group of one shuffle of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.causal.learned import (
    Learned,
    LearnerParams,
    fit_of,
    fit_replicate,
    learned,
    parts_of,
    rows_of,
    setting_of,
    trial_roles,
)
from uplift_spark.causal.metalearners import Rows, Setting
from uplift_spark.causal.models import restored, stored
from uplift_spark.causal.samples import Coding, Sample, coded, coding_of, packed_rows, unpacked_rows
from uplift_spark.causal.training import Say
from uplift_spark.flow.training import on_group, sample_of, summary_of
from uplift_spark.stats.intervals import poisson_weights
from uplift_spark.vocabulary import Roles

_CODED = "unit_hash bigint, key bigint, place int, outcome double, weight double, features binary"
_ROWS_PER_BATCH = 100_000

Fit: TypeAlias = Callable[[int, np.ndarray, np.ndarray], Any]  # of a part's number, its keys and numbers


def sampled_rows(train: DataFrame, roles: Roles, spec: tuple[int, int], rows: int) -> Sample:
    """At most about `rows` training rows of each arm, by hash; `spec` is folds and seed. Raises as `coding_of`."""
    some = train.select(*(f"`{column}`" for column in roles.columns))
    summary = summary_of(some, roles)
    coding = coding_of(summary, sample_of(some, roles, spec[1], summary.rows), roles, spec, rows)
    return Sample.of(some.mapInArrow(partial(coded_batches, coding), _CODED).toArrow(), coding)


def fit_learned_frame(frame: DataFrame, roles: Roles, params: LearnerParams, say: Say = lambda _: None) -> Learned:
    """Train on a Spark frame of one row per unit: the same effects as `causal.learned.fit_learned`, which see."""
    plain, confounded = trial_roles(roles)
    sample = sampled_rows(frame, plain, (params.folds, params.seed), params.rows)
    say(f"fitting a {params.kind} on {len(sample.place):,} of {sample.coding.total:,} rows")
    rows = rows_of(sample, confounded)
    counts = poisson_weights(rows.key.view(np.int64), params.seed, params.replicates)
    drawn = np.column_stack([np.ones(len(counts), bool), counts > 0])
    numbers = np.column_stack([rows.place, rows.outcome, rows.weight, rows.odds, rows.features])
    fit = partial(_fit_replicate, params.kind, setting_of(sample), rows.odds.shape[1])
    return learned(
        params, roles, sample, list(map(fit_of, fit_parts(frame.sparkSession, rows.key, numbers, drawn, fit)))
    )


def fit_parts(spark: SparkSession, key: np.ndarray, numbers: np.ndarray, drawn: np.ndarray, fit: Fit) -> list[Any]:
    """What `fit` makes of each part of the rows, a task for every part: key uint64 [n], numbers float64 [n, q], and
    which parts draw a row, bool [n, R] -> R results, of the kinds that `models.stored` takes."""

    def some(low: int) -> pa.RecordBatch:
        high = min(low + _ROWS_PER_BATCH, len(key))
        columns = {"at": np.arange(low, high), "key": key[low:high].view(np.int64)}
        packed = {"numbers": packed_rows(numbers[low:high]), "drawn": packed_rows(drawn[low:high].astype(np.uint8))}
        return pa.record_batch({**columns, **packed})

    table = spark.createDataFrame(pa.Table.from_batches(map(some, range(0, len(key), _ROWS_PER_BATCH))))
    parts, width = drawn.shape[1], numbers.shape[1]
    copies = table.withColumn("part", F.explode(F.sequence(F.lit(0), F.lit(parts - 1))))
    copies = copies.where(F.expr("substring(drawn, part + 1, 1) <> X'00'")).drop("drawn")
    grouped = copies.repartition(parts, "part").groupBy("part")  # a number of its own is never coalesced
    found = grouped.applyInArrow(on_group(fit_group, fit, width), "part int, fit binary").toArrow()
    results = dict(zip(found["part"].to_pylist(), found["fit"].to_pylist(), strict=True))
    return [restored(results[part]) for part in range(parts)]


# Workers: Arrow in, Arrow out, no Spark.


def coded_batches(coding: Coding, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The sample's rows of one partition."""
    for batch in filter(len, batches):
        yield coded(batch, coding)


def fit_group(fit: Fit, width: int, group: pa.Table) -> pa.Table:
    """One part's result, from its rows in the order of the sample."""
    group, part = group.sort_by("at"), group.column("part")[0].as_py()
    numbers = unpacked_rows(group.column("numbers"), width)
    found = stored(fit(part, group.column("key").to_numpy().view(np.uint64), numbers))
    return pa.table({"part": pa.array([part], pa.int32()), "fit": pa.array([found.tobytes()], pa.binary())})


def _fit_replicate(
    kind: str, setting: Setting, levels: int, replicate: int, key: np.ndarray, numbers: np.ndarray
) -> dict[str, Any]:
    place, outcome, weight = numbers[:, 0].astype(np.int64), numbers[:, 1], numbers[:, 2]
    rows = Rows(numbers[:, 3 + levels :], place, outcome, weight, numbers[:, 3 : 3 + levels], key)
    return parts_of(fit_replicate(kind, setting, rows, replicate))
