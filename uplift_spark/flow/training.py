"""The forest on Spark: the steps of `causal.training` over a DataFrame, one shuffle, the same bytes as in one process.

summarise → sample → encode → grow by bucket (one shuffle) → sum leaves (map only, then one merge per tree) → sum what
they missed, the same way. Workers are module-level functions from Arrow to Arrow. The frame is read once: the first
pass leaves its columns on the workers' disks for the other four.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from uplift_spark.causal.estimation import (
    Baselines,
    add_rows,
    correct,
    empty_sums,
    facts_anew,
    facts_of,
    finished,
    grown_parts,
    plain_shares,
    sample_bins,
    sample_limit,
    sampled,
)
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.rows import (
    Encoded,
    Plan,
    Summary,
    check_columns,
    check_parts,
    check_summary,
    encode,
    summarise,
)
from uplift_spark.causal.stacking import BETWEEN, WHOLE, as_given, stacked_roles
from uplift_spark.causal.structure import Structure, Tree, assemble
from uplift_spark.causal.training import Params, Say, grow_bucket, make_plan, merge_statuses
from uplift_spark.flow.progress import watched
from uplift_spark.vocabulary import Roles

_GROWN = "tree int, nodes binary, sets binary, leaves int, status string"
_SUMS = "tree int, sums binary"
WORKERS = 8  # tasks of growing to aim at when buckets are few; more than a small machine has, so that none waits long


def fit_frame(frame: DataFrame, roles: Roles, params: Params, say: Say = lambda _: None) -> Forest:
    """Train on a Spark frame of one row per unit; raises DataError before any tree is grown if rows break the rules."""
    if roles.scores:
        return as_given(fit_frame(stacked_frame(frame, roles), stacked_roles(roles), params, say), roles)
    with kept(checked(frame, roles)) as rows:
        summary = summary_of(rows, roles)
        check_summary(summary, roles)
        plan, baselines, planning = make_plan(summary, sample_of(rows, roles, params.seed, summary.rows), roles, params)
        say(
            f"growing {plan.n_trees} trees in {plan.n_buckets} buckets of about {summary.rows // plan.n_buckets:,} rows"
        )
        shaping = plan.of(roles.outcome), baselines[:1]  # the other outcomes' columns need not be shuffled
        with watched(frame.sparkSession, say):
            structure, statuses = grow(encoded_rows(rows, *shaping), *shaping)
        facts = facts_of(summary, statuses, structure, plan)
        return _estimate(rows, (plan, structure, baselines), facts, planning.bins, say)


def estimate_frame(frame: DataFrame, forest: Forest, say: Say = lambda _: None) -> Forest:
    """The forest's trees estimated anew from a Spark frame alone: four map-only passes over its rows, no tree is grown.

    See `UpliftModel.estimate`. Raises DataError if rows break the rules or a level of the forest has none.
    """
    if forest.roles.scores:
        inner = as_given(forest, stacked_roles(forest.roles))
        return as_given(estimate_frame(stacked_frame(frame, forest.roles), inner, say), forest.roles)
    with kept(checked(frame, forest.roles)) as rows:
        summary = summary_of(rows, forest.roles)
        facts = facts_anew(forest, summary)
        sample = sample_of(rows, forest.roles, forest.plan.seed, summary.rows)
        return _estimate(rows, grown_parts(forest), facts, sample_bins(sample, forest.plan), say)


def stacked_frame(frame: DataFrame, roles: Roles) -> DataFrame:
    """`causal.stacking.stacked` on Spark, lazy; a unit without scores becomes a row without treatment: refused."""
    check_columns(dict.fromkeys(frame.columns, pa.null()), roles.columns, ())
    unit, scores = F.col(f"`{roles.unit}`").cast("string"), F.col(f"`{roles.scores}`")
    kept = [name for name in stacked_roles(roles).columns if name in frame.columns]
    rows = frame.select(
        *(f"`{name}`" for name in kept), unit.alias(WHOLE), F.explode_outer(scores).alias("_level", "_score")
    )
    row = F.concat_ws(BETWEEN, WHOLE, "_level")
    return rows.withColumns({roles.unit: row, roles.treatment: F.col("_level"), roles.outcome: F.col("_score")})


def checked(frame: DataFrame, roles: Roles, *more: str) -> DataFrame:
    """The columns of the roles, and more; DataError where the roles' are missing or of a kind that they cannot have."""
    kinds = {field.name: field.type for field in to_arrow_schema(frame.schema, timezone="UTC")}
    check_columns(kinds, (*roles.columns, *more), roles.features)
    check_parts(kinds, roles)
    return frame.select(*(f"`{column}`" for column in (*roles.columns, *more)))


@contextmanager
def kept(rows: DataFrame) -> Iterator[DataFrame]:
    """Rows that the first pass leaves on the workers' disks; where a cluster refuses that, every pass reads anew."""
    try:
        kept = rows.persist(StorageLevel.DISK_ONLY)
    except PySparkException:  # serverless compute keeps nothing
        yield rows
        return
    try:
        yield kept
    finally:
        kept.unpersist()


def _estimate(
    rows: DataFrame, grown: tuple[Plan, Structure, Baselines], facts: dict[str, Any], bins: np.ndarray, say: Say
) -> Forest:
    """`causal.training.estimate` on Spark."""
    plan, structure, baselines = grown
    say(f"estimating {structure.n_leaves:,} leaves from {facts['rows']:,} rows")
    encoded = encoded_rows(rows, plan, baselines)
    with watched(rows.sparkSession, say):
        sums = leaf_sums(encoded, plan, structure)
    if plan.debias:
        say("correcting for the bias of wide leaves")
        with watched(rows.sparkSession, say):
            sums += leaf_sums(encoded, plan, structure, plain_shares(sums))
    return finished(plan, structure, sums, facts, baselines, bins)


def summary_of(rows: DataFrame, roles: Roles) -> Summary:
    """Counts and bounds of all rows, one map-only pass."""
    parts = rows.mapInArrow(partial(summarise_batches, roles), "summary string").toArrow()
    found = [Summary.from_dict(json.loads(text)) for text in parts.column("summary").to_pylist()]
    return sum(found, Summary())


def sample_of(rows: DataFrame, roles: Roles, seed: int, total: int) -> pa.Table:
    """The rows that fix bins and leaf size, chosen by hash: bounded by `defaults.sample_rows`."""
    limit = sample_limit(total, len(roles.features))
    return rows.mapInArrow(partial(sample_batches, roles.unit, seed, limit), rows.schema).toArrow()


def encoded_rows(rows: DataFrame, plan: Plan, baselines: Baselines) -> DataFrame:
    """The fields of `Encoded` as columns, see `encoded_columns`."""
    return rows.mapInArrow(partial(encode_batches, plan, baselines), encoded_columns(plan))


def encoded_columns(plan: Plan) -> str:
    """Fields of `Encoded`: wy0, wy1, ... for the outcomes, the bins of a row as one binary value."""
    outcomes = ", ".join(f"wy{j} bigint" for j in range(len(plan.roles.outcomes)))
    return f"unit bigint, key bigint, bucket int, level tinyint, w bigint, {outcomes}, bins binary"


def grow(encoded: DataFrame, plan: Plan, baselines: Baselines) -> tuple[Structure, list[dict]]:
    """One shuffle brings each bucket to the workers that grow its trees; every bucket reports a status.

    Rows go to every bucket whose trees they shape. Few buckets are copied to several workers, each growing a share of
    the trees, so that no core waits.
    """
    shares = -(-WORKERS // plan.n_buckets)
    copies = F.sequence(F.lit(0), F.lit(plan.growth_buckets * shares - 1))
    grower = F.pmod(F.col("bucket") - F.floor(F.col("copy") / shares), F.lit(plan.n_buckets)).cast("int")
    copied = encoded.withColumn("copy", F.explode(copies)).withColumn("grower", grower)
    grouped = (
        copied.withColumn("share", F.pmod("copy", F.lit(shares)).cast("int")).drop("copy").groupBy("grower", "share")
    )
    grown = grouped.applyInArrow(on_group(grow_group, plan, baselines, shares), _GROWN).toArrow().to_pylist()
    trees = [_tree_from_row(row) for row in grown if row["nodes"] is not None]
    found = [json.loads(row["status"]) for row in grown if row["status"] is not None]
    return assemble(trees, plan.n_trees), merge_statuses(found, plan.n_buckets)


def leaf_sums(encoded: DataFrame, plan: Plan, structure: Structure, values: np.ndarray | None = None) -> np.ndarray:
    """Leaf sums over all rows, int64 [leaves, K, 1 + 2m]: partial sums per partition, merged per tree.

    Without `values` the plain sums; with them (`plain_shares` of these) those of outcomes corrected for bias.
    """
    partial_sums = encoded.mapInArrow(partial(sum_batches, plan, structure, values), _SUMS)
    merged = partial_sums.groupBy("tree").applyInArrow(on_group(merge_sums), _SUMS).toArrow()
    sums = empty_sums(structure, plan)
    for tree, content in zip(merged.column("tree").to_pylist(), merged.column("sums"), strict=True):
        low, high = structure.leaf_start[tree], structure.leaf_start[tree + 1]
        sums[low:high] = np.frombuffer(content.as_buffer(), np.int64).reshape(sums[low:high].shape)
    return sums


def on_group(worker: Callable[..., pa.Table], *state: object) -> Callable[[pa.Table], pa.Table]:
    """A grouped worker with its state."""
    # PySpark reads the type hints of a grouped worker and fails on those of a partial; a lambda has none.
    return lambda group: worker(*state, group)


# Workers: Arrow in, Arrow out, no Spark.

Batches = Iterator[pa.RecordBatch]


def summarise_batches(roles: Roles, batches: Batches) -> Batches:
    """One JSON summary per partition."""
    found = sum((summarise(batch, roles) for batch in batches), Summary())
    yield pa.record_batch({"summary": [json.dumps(asdict(found))]})


def sample_batches(unit: str, seed: int, limit: np.uint64, batches: Batches) -> Batches:
    """The rows whose unit hash is below the limit."""
    for batch in batches:
        yield batch.filter(pa.array(sampled(batch, unit, seed, limit)))


def encode_batches(plan: Plan, baselines: Baselines, batches: Batches) -> Batches:
    """Rows in the columns of `encoded_columns`."""
    for batch in batches:
        yield to_arrow(encode(batch, plan, baselines))


def grow_group(plan: Plan, baselines: Baselines, shares: int, group: pa.Table) -> pa.Table:
    """One share of a bucket's trees, and the bucket's status in a row of its own."""
    rows = from_arrow(group, len(plan.bins))
    grower, share = (group.column(name)[0].as_py() for name in ("grower", "share"))
    trees, status = grow_bucket(rows, plan, grower, baselines, share=(share, shares))
    grown = [
        {"tree": t.number, "nodes": t.nodes.tobytes(), "sets": t.sets.tobytes(), "leaves": t.n_leaves} for t in trees
    ]
    fields = [("tree", pa.int32()), ("nodes", pa.binary()), ("sets", pa.binary()), ("leaves", pa.int32())]
    return pa.Table.from_pylist([*grown, {"status": json.dumps(status)}], pa.schema([*fields, ("status", pa.string())]))


def sum_batches(plan: Plan, structure: Structure, values: np.ndarray | None, batches: Batches) -> Batches:
    """Leaf sums of one partition, one row per tree; see `leaf_sums`."""
    sums, routes = empty_sums(structure, plan), structure.routes
    seen = False
    for batch in batches:
        seen = seen or batch.num_rows > 0
        rows = from_arrow(batch, len(plan.bins))
        rows = rows if values is None else correct(rows, routes, values, plan)
        add_rows(sums, rows, routes, plan, corrected=values is not None)
    if seen:
        bounds = zip(structure.leaf_start[:-1], structure.leaf_start[1:], strict=True)
        content = [sums[low:high].tobytes() for low, high in bounds]
        trees = pa.array(range(structure.n_trees), pa.int32())
        yield pa.record_batch({"tree": trees, "sums": pa.array(content, pa.binary())})


def merge_sums(parts: pa.Table) -> pa.Table:
    """Add the partial sums of one tree; integers, so any order gives the same bits."""
    total = sum(np.frombuffer(part.as_buffer(), np.int64) for part in parts.column("sums"))
    return pa.table({"tree": parts.column("tree")[:1], "sums": pa.array([np.asarray(total).tobytes()], pa.binary())})


def to_arrow(rows: Encoded) -> pa.RecordBatch:
    """Rows in the columns of `encoded_columns`."""
    columns: dict[str, object] = {"unit": rows.unit.view(np.int64), "key": rows.key.view(np.int64)}
    columns |= {"bucket": rows.bucket, "level": rows.level.astype(np.int8), "w": rows.w}
    columns |= {f"wy{j}": column for j, column in enumerate(rows.wy.T)}
    return pa.record_batch(
        {**{name: pa.array(values) for name, values in columns.items()}, "bins": packed_bins(rows.bins)}
    )


def packed_bins(bins: np.ndarray) -> pa.Array:
    """Bins uint8 [n, p] as one binary value a row."""
    n, p = bins.shape
    offsets = pa.py_buffer((np.arange(n + 1, dtype=np.int64) * p).astype(np.int32))
    return pa.BinaryArray.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(np.ascontiguousarray(bins))])


def unpacked_bins(column: pa.Array | pa.ChunkedArray, p: int) -> np.ndarray:
    """Bins uint8 [n, p] from `packed_bins`."""
    packed = _flat(column)
    return np.frombuffer(packed.buffers()[2], np.uint8, count=p * len(packed), offset=p * packed.offset).reshape(-1, p)


def from_arrow(batch: pa.RecordBatch | pa.Table, p: int) -> Encoded:
    """The rows of `to_arrow`, with p features."""

    def numbers(name: str) -> np.ndarray:
        return np.asarray(_flat(batch.column(name)).to_numpy(zero_copy_only=False))

    keys = (numbers("unit").view(np.uint64), numbers("key").view(np.uint64))
    sums = (numbers("w"), np.column_stack([numbers(n) for n in batch.schema.names if n.startswith("wy")]))
    return Encoded(
        *keys, numbers("bucket"), numbers("level").astype(np.uint8), *sums, unpacked_bins(batch.column("bins"), p)
    )


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _tree_from_row(row: dict) -> Tree:
    nodes = np.frombuffer(row["nodes"], np.uint64)
    return Tree(row["tree"], nodes, np.frombuffer(row["sets"], np.uint64).reshape(-1, 4), row["leaves"])
