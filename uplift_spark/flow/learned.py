"""Meta-learners and nuisances fitted on Spark: a bounded sample of rows, a task for every model, no row in two places.

The driver holds the sample, as a table of numbers; each replicate, or fold, is a group of one shuffle of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.causal.learned import (
    Learned,
    LearnerParams,
    dumped,
    fit_replicate,
    learned,
    loaded,
    rows_of,
    setting_of,
    trial_roles,
)
from uplift_spark.causal.metalearners import Rows, Setting
from uplift_spark.causal.samples import Coding, Sample, coded, coding_of, packed_rows, unpacked_rows
from uplift_spark.causal.training import Say
from uplift_spark.flow.training import sample_of, summary_of
from uplift_spark.stats.intervals import poisson_weights
from uplift_spark.vocabulary import Roles

_CODED = "unit_hash bigint, key bigint, place int, outcome double, weight double, features binary"
_FITTED = "replicate int, fit binary"


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
    copies = _copied(frame.sparkSession, rows, params)
    shape, setting = (rows.features.shape[1], rows.odds.shape[1]), setting_of(sample)
    # PySpark reads the type hints of a grouped worker and fails on those of a partial; a lambda has none.
    worker = lambda group: fit_group(params.kind, setting, shape, group)  # noqa: E731
    found = copies.groupBy("replicate").applyInArrow(worker, _FITTED).toArrow().to_pylist()
    fits = {row["replicate"]: loaded(row["fit"]) for row in found}
    return learned(params, roles, sample, [fits[r] for r in range(params.replicates + 1)])


def _copied(spark: SparkSession, rows: Rows, params: LearnerParams) -> DataFrame:
    """A row of every replicate that draws it, and how often it does."""
    counts = poisson_weights(rows.key.view(np.int64), params.seed, params.replicates)
    times = np.column_stack([np.ones(len(counts), np.uint8), counts])
    columns = {
        "at": pa.array(np.arange(len(counts))),
        "key": pa.array(rows.key.view(np.int64)),
        "place": pa.array(rows.place),
        "outcome": pa.array(rows.outcome),
        "weight": pa.array(rows.weight),
        "numbers": packed_rows(np.column_stack([rows.features, rows.odds])),
        "times": pa.array([row.tobytes() for row in times], pa.binary()),
    }
    table = spark.createDataFrame(pa.table(columns))
    drawn = F.sequence(F.lit(0), F.lit(params.replicates))
    held = table.select("*", F.explode(drawn).alias("replicate"))
    return held.where(F.expr("substring(times, replicate + 1, 1) <> X'00'"))


# Workers: Arrow in, Arrow out, no Spark.


def coded_batches(coding: Coding, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The sample's rows of one partition."""
    for batch in filter(len, batches):
        yield coded(batch, coding)


def fit_group(kind: str, setting: Setting, shape: tuple[int, int], group: pa.Table) -> pa.Table:
    """One replicate's model, from the rows it draws: p features and K odds are `shape`."""
    p, k = shape
    group, replicate = group.sort_by("at"), group.column("replicate")[0].as_py()
    numbers = unpacked_rows(group.column("numbers"), p + k)
    places, outcomes, weights, keys = (group.column(n).to_numpy() for n in ("place", "outcome", "weight", "key"))
    rows = Rows(numbers[:, :p], places, outcomes, weights, numbers[:, p:], keys.view(np.uint64))
    fit = dumped(fit_replicate(kind, setting, rows, replicate))
    return pa.table({"replicate": pa.array([replicate], pa.int32()), "fit": pa.array([fit.tobytes()], pa.binary())})
