"""The forest on Spark: train, refresh, score and explain a DataFrame; the same bytes as in one process."""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DoubleType, StringType, StructField, StructType

from uplift_spark.errors import DataError
from uplift_spark.forest.binning import apply_bins, check_kind, flat
from uplift_spark.forest.encode import (
    BinnedRows,
    ForestPlan,
    Summary,
    bin_rows,
    check_columns,
    check_parts,
    check_repeated,
    check_summary,
    encode,
    summarise,
)
from uplift_spark.forest.estimate import (
    BETWEEN,
    WHOLE,
    Baselines,
    add_to_leaves,
    correct,
    empty_sums,
    facts_anew,
    finished,
    grown_parts,
    plain_shares,
    sample_bins,
    sample_limit,
    sample_mask,
    stacked_roles,
    training_facts,
    with_roles,
)
from uplift_spark.forest.forest import Forest, Model, check_beside, effect_table
from uplift_spark.forest.instrument import Instrumental, left_roles, two_stage
from uplift_spark.forest.overlap import thin_sentence
from uplift_spark.forest.refresh import (
    ColumnFault,
    check_refresh,
    faded,
    finer_bits,
    forest_from,
    in_sample,
    level_rows_of,
    plain,
    unfit,
)
from uplift_spark.forest.shapley import explain_batches
from uplift_spark.forest.training import Params, fit_table, grow_bucket, make_plan, merge_statuses
from uplift_spark.forest.trees import Structure, Tree, assemble
from uplift_spark.roles import LEFT, TREATMENT, Roles
from uplift_spark.runtime import ProgressCallback
from uplift_spark.spark_versions import (
    Batches,
    arrow_kinds,
    few_rows,
    map_batches,
    map_groups,
    mapped,
    mapped_frame,
    quoted,
)
from uplift_spark.stats.sampling import unit_hashes

# --------------------------------------------------------------------------------------------------------------------
# How far Spark is, said while it works: for steps that take minutes.

EVERY = 10.0  # seconds between two sentences; steps that take less say nothing

Counts = dict[Any, tuple[int, int]]


@contextmanager
def watched(spark: SparkSession, progress: ProgressCallback, every: float = EVERY) -> Iterator[None]:
    """While the block runs, report how many tasks are done and about how long the others take, by the pace so far.

    Tasks are those of the stages seen since the block began; where sessions share an application, of all of them.
    Stages that Spark has not planned yet are not in it, so the time left is that of the step Spark is at.
    """
    counts: Counts = {}
    over, started = Event(), time.monotonic()
    with _counting(spark, counts) as count:

        def speak() -> None:
            while not over.wait(every):
                count()
                finished_tasks, total = (sum(part) for part in zip(*counts.values(), strict=True)) if counts else (0, 0)
                left = (time.monotonic() - started) * (total - finished_tasks) / max(finished_tasks, 1)
                if total:
                    rest = f", about {left:,.0f} s left" if 0 < finished_tasks < total else ""
                    progress(f"{finished_tasks:,} of {total:,} tasks done{rest}")

        speaker = Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()


@contextmanager
def _counting(spark: SparkSession, counts: Counts) -> Iterator[Callable[[], None]]:
    """Keep `counts`, (tasks done, tasks) by stage, up to date: Connect reports by itself, else read the tracker."""
    if type(spark).__module__.startswith("pyspark.sql.connect"):

        def on_progress(stages: Any, inflight_tasks: int, operation_id: str | None, done: bool) -> None:
            counts.update({(operation_id, s.stage_id): (s.num_completed_tasks, s.num_tasks) for s in stages or ()})

        session: Any = spark
        if not hasattr(session, "registerProgressHandler"):  # 3.5 reports nothing
            yield lambda: None
            return
        session.registerProgressHandler(on_progress)
        try:
            yield lambda: None
        finally:
            session.removeProgressHandler(on_progress)
        return
    try:
        tracker = spark.sparkContext.statusTracker()
    except (PySparkException, Py4JError):  # clusters that several users share do not let them ask
        yield lambda: None
        return
    before = set(tracker.getActiveStageIds())

    def poll() -> None:
        infos = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds() if stage not in before]
        active = {info.stageId: (info.numCompletedTasks, info.numTasks) for info in infos if info}
        counts.update({stage: (total, total) for stage, (_, total) in counts.items()} | active)

    yield poll


# --------------------------------------------------------------------------------------------------------------------
# The forest on Spark: the steps of `forest.training` over a DataFrame, one shuffle, the same bytes as in one process.
# summarise → sample → bin → grow by bucket (one shuffle) → sum leaves (map only, then one merge per tree) → sum what
# they missed, the same way. Workers are module-level functions from Arrow to Arrow. The frame is read once: the first
# pass leaves its columns on the workers' disks for the other four.

_GROWN = "tree int, nodes binary, sets binary, leaves int, status string"
_TREE_SUMS_SCHEMA = "tree int, sums binary"
WORKERS = 8  # tasks of growing to aim at when buckets are few; more than a small machine has, so that none waits long


def fit_frame(frame: DataFrame, roles: Roles, params: Params, progress: ProgressCallback = lambda _: None) -> Forest:
    """Train on a Spark frame of one row per unit; raises DataError before any tree is grown if rows break the rules."""
    if roles.scores:
        return with_roles(fit_frame(stacked_frame(frame, roles), stacked_roles(roles), params, progress), roles)
    if few_rows(frame.sparkSession):
        return fit_table(checked(frame, roles).toArrow(), roles, params, progress)
    with kept(checked(frame, roles)) as rows:
        summary = summary_of(rows, roles)
        check_summary(summary, roles)
        if roles.cluster not in (None, WHOLE):  # buckets, which count units that repeat, are those of clusters
            check_units(rows, roles)
        sample = encode(planning_sample(rows, roles, params.seed, summary.rows), roles)
        plan, baselines, planning = make_plan(summary, sample, params)
        if plan.overlap is not None:
            progress(plan.overlap.sentence(plan.levels.names))
        progress(
            f"growing {plan.n_trees} trees in {plan.n_buckets} buckets of about {summary.rows // plan.n_buckets:,} rows"
        )
        shaping = plan.of(roles.outcome), baselines[:1]  # the other outcomes' columns need not be shuffled
        with watched(frame.sparkSession, progress):
            structure, statuses = grow(binned_frame(rows, *shaping), *shaping)
        facts = training_facts(summary, statuses, structure, plan)
        for thin in facts.get("thin", {}).values():
            progress(thin_sentence(thin))
        return _estimate(rows, (plan, structure, baselines), facts, planning.bins, progress)


def estimate_frame(frame: DataFrame, forest: Forest, progress: ProgressCallback = lambda _: None) -> Forest:
    """The forest's trees estimated anew from a Spark frame alone: four map-only passes over its rows, no tree is grown.

    See `UpliftModel.estimate`. Raises DataError if rows break the rules or a level of the forest has none.
    """
    if forest.roles.scores:
        inner = with_roles(forest, stacked_roles(forest.roles))
        return with_roles(estimate_frame(stacked_frame(frame, forest.roles), inner, progress), forest.roles)
    with kept(checked(frame, forest.roles)) as rows:
        check_units(rows, forest.roles)
        summary = summary_of(rows, forest.roles)
        facts = facts_anew(forest, summary)
        sample = encode(planning_sample(rows, forest.roles, forest.plan.seed, summary.rows), forest.roles)
        return _estimate(rows, grown_parts(forest), facts, sample_bins(sample, forest.plan), progress)


def stacked_frame(frame: DataFrame, roles: Roles) -> DataFrame:
    """`forest.estimate.stacked` on Spark, lazy; a unit without scores becomes a row without treatment: refused."""
    check_columns(dict.fromkeys(frame.columns, pa.null()), roles.columns, ())
    unit, scores = F.col(quoted(roles.unit)).cast("string"), F.col(quoted(str(roles.scores)))
    kept = [name for name in stacked_roles(roles).columns if name in frame.columns]
    rows = frame.select(
        *(quoted(name) for name in kept), unit.alias(WHOLE), F.explode_outer(scores).alias("_level", "_score")
    )
    row = F.concat_ws(BETWEEN, WHOLE, "_level")
    return rows.withColumns({roles.unit: row, roles.treatment: F.col("_level"), roles.outcome: F.col("_score")})


def checked(frame: DataFrame, roles: Roles, *more: str) -> DataFrame:
    """The columns of the roles, and more; DataError where the roles' are missing or of a kind that they cannot have."""
    kinds = arrow_kinds(frame)
    check_columns(kinds, (*roles.columns, *more), roles.features)
    check_spelling(frame, (*roles.columns, *more))
    check_parts(kinds, roles)
    check_ids(frame, roles.unit, (*roles.columns, *more))
    return frame.select(*(quoted(column) for column in (*roles.columns, *more)))


def check_spelling(frame: DataFrame, columns: Iterable[str]) -> None:
    """Raise DataError where Spark would not know which column a name means: it is there twice, or in another case."""
    spelled: dict[str, list[str]] = {}
    for name in frame.columns:
        spelled.setdefault(name.lower(), []).append(name)
    for column in columns:
        same = spelled.get(column.lower(), [])
        apart = len(set(same)) == len(same) and frame.sparkSession.conf.get("spark.sql.caseSensitive") == "true"
        if len(same) > 1 and not apart:
            names = ", ".join(map(repr, dict.fromkeys(same)))
            raise DataError(f"the frame has several columns {names}: rename or drop all but one")


# What makes a column anew at each reading, by the rows' places or by chance, as plans spell it.
_UNSTABLE_IDS = ("monotonically_increasing_id(", "row_number(", "uuid(", "rand(", "randn(")
_NESTED = ("array", "map", "struct", "variant")


def check_ids(frame: DataFrame, unit: str, columns: Sequence[str]) -> None:
    """Raise DataError where ids are others at each reading: effects joined back by them would be those of other rows.

    Two passes must agree on which ids stand beside which values, one over a part of the columns, one over all: plans
    that read other columns shuffle other rows. Frames whose plan makes no ids anew, nearly all, cost a look at it.
    """
    if frame.isStreaming or not any(word in _plan(frame.select(quoted(unit))) for word in _UNSTABLE_IDS):
        return
    plain = [one.name for one in frame.schema.fields if one.dataType.typeName() not in _NESTED]
    others = [name for name in dict.fromkeys(columns) if name != unit and name in plain]
    some = others[: -(-len(others) // 2)]

    def passed(names: Sequence[str]) -> list[Any]:
        """Sum of the hashes of id and values, and of all the columns read."""
        pairs, whole = (F.xxhash64(*(F.col(quoted(name)) for name in read)) for read in ((unit, *some), names))
        row = frame.agg(*(F.sum(one.cast("decimal(20, 0)")) for one in (pairs, whole))).first()
        return list(row or ())

    if passed([unit, *some])[:1] != passed(plain)[:1]:
        raise DataError(
            f"other values stand beside the ids of column {unit!r} at each reading, as by "
            "monotonically_increasing_id() or rand(): effects would be joined to other rows; write it to a table, "
            "read that, take ids and values that rows have, or call effect(frame, keep=True), which needs no join"
        )


def _plan(frame: DataFrame) -> str:
    """The plan as text, which classic and Connect frames print alike."""
    text = io.StringIO()
    with redirect_stdout(text):
        frame.explain(mode="extended")
    return text.getvalue()


def level_column(frame: DataFrame, treatment: str) -> Column:
    """The levels of a frame's rows as text, lazy; see `encode.encode_treatment`."""
    column, kind = F.col(quoted(treatment)), arrow_kinds(frame)[treatment]
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return column.cast("string")
    number = column.cast("double")
    whole = F.when(number == F.floor(number), number.cast("bigint").cast("string"))
    return whole.when(~F.isnan(number), number.cast("string"))


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
    rows: DataFrame,
    grown: tuple[ForestPlan, Structure, Baselines],
    facts: dict[str, Any],
    bins: np.ndarray,
    progress: ProgressCallback,
) -> Forest:
    """`forest.training.estimate` on Spark."""
    plan, structure, baselines = grown
    progress(f"estimating {structure.n_leaves:,} leaves from {facts['rows']:,} rows")
    encoded = binned_frame(rows, plan, baselines)
    with watched(rows.sparkSession, progress):
        sums = leaf_sums(encoded, plan, structure)
    if plan.debias:
        progress("correcting for the bias of wide leaves")
        with watched(rows.sparkSession, progress):
            sums += leaf_sums(encoded, plan, structure, plain_shares(sums))
    return finished(plan, structure, sums, facts, baselines, bins)


def summary_of(rows: DataFrame | pa.Table, roles: Roles) -> Summary:
    """Counts and bounds of all rows, one map-only pass."""
    parts = mapped(rows, partial(summarise_batches, roles), "summary string")
    summaries = [Summary.from_dict(json.loads(text)) for text in parts.column("summary").to_pylist()]
    return sum(summaries, Summary())


def planning_sample(rows: DataFrame | pa.Table, roles: Roles, seed: int, total: int) -> pa.Table:
    """The rows that fix bins and leaf size, chosen by hash: bounded by `defaults.sample_rows`."""
    limit = sample_limit(total, len(roles.features))
    return mapped(rows, partial(sample_batches, roles.unit, seed, limit), rows.schema)


def binned_frame(rows: DataFrame, plan: ForestPlan, baselines: Baselines) -> DataFrame:
    """The fields of `BinnedRows` as columns, see `binned_columns`."""
    return map_batches(rows, partial(bin_batches, plan, baselines), binned_columns(plan))


def binned_columns(plan: ForestPlan) -> str:
    """Fields of `BinnedRows`: wy0, wy1, ... for the outcomes, the bins of a row as one binary value."""
    outcomes = ", ".join(f"wy{j} bigint" for j in range(len(plan.roles.outcomes)))
    return f"unit bigint, key bigint, bucket int, level tinyint, w bigint, {outcomes}, bins binary"


def grow(encoded: DataFrame, plan: ForestPlan, baselines: Baselines) -> tuple[Structure, list[dict]]:
    """One shuffle brings each bucket to the workers that grow its trees; every bucket reports a status.

    Rows go to every bucket whose trees they shape. Few buckets are copied to several workers, each growing a share of
    the trees, so that no core waits.
    """
    shares = -(-WORKERS // plan.n_buckets)
    copies = F.sequence(F.lit(0), F.lit(plan.growth_buckets * shares - 1))
    grower = F.pmod(F.col("bucket") - F.floor(F.col("copy") / shares), F.lit(plan.n_buckets)).cast("int")
    copied = encoded.withColumn("copy", F.explode(copies)).withColumn("grower", grower)
    shared = copied.withColumn("share", F.pmod("copy", F.lit(shares)).cast("int")).drop("copy")
    grown = map_groups(shared, ("grower", "share"), grow_group, (plan, baselines, shares), _GROWN).toArrow().to_pylist()
    trees = [_tree_from_row(row) for row in grown if row["nodes"] is not None]
    statuses = [json.loads(row["status"]) for row in grown if row["status"] is not None]
    return assemble(trees, plan.n_trees), merge_statuses(statuses, plan.n_buckets)


def leaf_sums(
    encoded: DataFrame, plan: ForestPlan, structure: Structure, values: np.ndarray | None = None
) -> np.ndarray:
    """Leaf sums over all rows, int64 [leaves, K, 1 + 2m]: partial sums per partition, merged per tree.

    Without `values` the plain sums; with them (`plain_shares` of these) those of outcomes corrected for bias.
    """
    partial_sums = encoded.mapInArrow(partial(sum_batches, plan, structure, values), _TREE_SUMS_SCHEMA)
    merged = map_groups(partial_sums, ("tree",), merge_sums, (), _TREE_SUMS_SCHEMA).toArrow()
    sums = empty_sums(structure, plan)
    for tree, content in zip(merged.column("tree").to_pylist(), merged.column("sums"), strict=True):
        low, high = structure.leaf_start[tree], structure.leaf_start[tree + 1]
        sums[low:high] = np.frombuffer(content.as_buffer(), np.int64).reshape(sums[low:high].shape)
    return sums


# Workers: Arrow in, Arrow out, no Spark.


def summarise_batches(roles: Roles, batches: Batches) -> Batches:
    """One JSON summary per partition."""
    summary = sum((summarise(encode(batch, roles)) for batch in batches), Summary())
    yield pa.record_batch({"summary": [json.dumps(asdict(summary))]})


def sample_batches(unit: str, seed: int, limit: np.uint64, batches: Batches) -> Batches:
    """The rows whose unit hash is below the limit."""
    for batch in batches:
        yield batch.filter(pa.array(sample_mask(unit_hashes(batch.column(unit), unit), seed, limit)))


def bin_batches(plan: ForestPlan, baselines: Baselines, batches: Batches) -> Batches:
    """Rows in the columns of `binned_columns`."""
    for batch in batches:
        yield to_arrow(bin_rows(encode(batch, plan.roles), plan, baselines))


def grow_group(plan: ForestPlan, baselines: Baselines, shares: int, group: pa.Table) -> pa.Table:
    """One share of a bucket's trees, and the bucket's status in a row of its own."""
    rows = from_arrow(group, len(plan.bins))
    grower, share = (group.column(name)[0].as_py() for name in ("grower", "share"))
    trees, status = grow_bucket(rows, plan, grower, baselines, share=(share, shares))
    grown = [
        {"tree": t.number, "nodes": t.nodes.tobytes(), "sets": t.sets.tobytes(), "leaves": t.n_leaves} for t in trees
    ]
    fields = [("tree", pa.int32()), ("nodes", pa.binary()), ("sets", pa.binary()), ("leaves", pa.int32())]
    return pa.Table.from_pylist([*grown, {"status": json.dumps(status)}], pa.schema([*fields, ("status", pa.string())]))


def sum_batches(plan: ForestPlan, structure: Structure, values: np.ndarray | None, batches: Batches) -> Batches:
    """Leaf sums of one partition, one row per tree; see `leaf_sums`."""
    sums, routes = empty_sums(structure, plan), structure.routes
    any_rows = False
    for batch in batches:
        any_rows = any_rows or batch.num_rows > 0
        rows = from_arrow(batch, len(plan.bins))
        rows = rows if values is None else correct(rows, routes, values, plan)
        add_to_leaves(sums, rows, routes, plan, corrected=values is not None)
    if any_rows:
        bounds = zip(structure.leaf_start[:-1], structure.leaf_start[1:], strict=True)
        content = [sums[low:high].tobytes() for low, high in bounds]
        trees = pa.array(range(structure.n_trees), pa.int32())
        yield pa.record_batch({"tree": trees, "sums": pa.array(content, pa.binary())})


def merge_sums(parts: pa.Table) -> pa.Table:
    """Add the partial sums of one tree; integers, so any order gives the same bits."""
    total = sum(np.frombuffer(part.as_buffer(), np.int64) for part in parts.column("sums"))
    return pa.table({"tree": parts.column("tree")[:1], "sums": pa.array([np.asarray(total).tobytes()], pa.binary())})


def to_arrow(rows: BinnedRows) -> pa.RecordBatch:
    """Rows in the columns of `binned_columns`."""
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
    packed = flat(column)
    return np.frombuffer(packed.buffers()[2], np.uint8, count=p * len(packed), offset=p * packed.offset).reshape(-1, p)


def from_arrow(batch: pa.RecordBatch | pa.Table, p: int) -> BinnedRows:
    """The rows of `to_arrow`, with p features."""

    def numbers(name: str) -> np.ndarray:
        return np.asarray(flat(batch.column(name)).to_numpy(zero_copy_only=False))

    keys = (numbers("unit").view(np.uint64), numbers("key").view(np.uint64))
    sums = (numbers("w"), np.column_stack([numbers(n) for n in batch.schema.names if n.startswith("wy")]))
    return BinnedRows(
        *keys, numbers("bucket"), numbers("level").astype(np.uint8), *sums, unpacked_bins(batch.column("bins"), p)
    )


def _tree_from_row(row: dict) -> Tree:
    nodes = np.frombuffer(row["nodes"], np.uint64)
    return Tree(row["tree"], nodes, np.frombuffer(row["sets"], np.uint64).reshape(-1, 4), row["leaves"])


# --------------------------------------------------------------------------------------------------------------------
# Scoring on Spark: every unit, every treated level, map only.


def score(frame: DataFrame, model: Model, keep: bool = False) -> DataFrame:
    """Effects as a lazy frame: unit, treatment, uplift, uplift_se, uplift_lower, uplift_upper, low_support.

    With `keep` all columns of the frame come before these. `frame` needs the unit and the model's features under their
    training names and kinds, and with `keep` no column that is named as one of effects, else DataError.
    """
    model = model.of(model.roles.outcome)  # no sums of further outcomes travel to the workers
    needed, effects = _needed(frame, model), _schema(frame, model.roles.unit)
    if keep:
        check_beside(frame.columns)
        fields = [*frame.schema.fields, *effects.fields[1:]]
        return map_batches(frame, partial(score_beside, model), StructType(fields))
    check_ids(frame, model.roles.unit, model.roles.features)
    threads = (os.cpu_count() or 1) if few_rows(frame.sparkSession) else 1
    return mapped_frame(needed, partial(score_batches, model, threads=threads), effects)


def explain(frame: DataFrame, forest: Forest) -> DataFrame:
    """What each feature has to do with every unit's effect, a lazy frame: unit, treatment, uplift, base, values.

    values array<double> in the order of `roles.features`; base + values is uplift (`forest.shapley`). Raises as
    `score`.
    """
    forest = forest.of(forest.roles.outcome)
    check_ids(frame, forest.roles.unit, forest.roles.features)
    head = _schema(frame, forest.roles.unit).fields[:3]
    tail = [StructField("base", DoubleType()), StructField("values", ArrayType(DoubleType()))]
    return map_batches(_needed(frame, forest), partial(explain_batches, forest), StructType([*head, *tail]))


def _needed(frame: DataFrame, model: Model) -> DataFrame:
    """The unit and the features, checked."""
    unit = model.roles.unit
    kinds = arrow_kinds(frame)
    check_columns(kinds, (unit, *model.roles.features), model.roles.features)
    check_spelling(frame, (unit, *model.roles.features))
    for one in model.bins:
        check_kind(one, kinds[one.name])
    return frame.select(*(quoted(column) for column in (unit, *model.roles.features)))


def _schema(frame: DataFrame, unit: str) -> StructType:
    doubles = [StructField(name, DoubleType()) for name in ("uplift", "uplift_se", "uplift_lower", "uplift_upper")]
    head = [StructField(unit, frame.schema[unit].dataType), StructField(TREATMENT, StringType())]
    return StructType([*head, *doubles, StructField("low_support", BooleanType())])


def score_batches(model: Model, batches: Iterator[pa.RecordBatch], threads: int = 1) -> Iterator[pa.RecordBatch]:
    """Worker: effects of one partition's rows."""
    for batch in batches:
        yield from effect_table(model, batch, threads).to_batches()


def score_beside(model: Model, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: the columns of one partition's rows, and the effects beside them."""
    for batch in batches:
        effects = effect_table(model, batch).drop_columns([model.roles.unit]).combine_chunks()
        own = batch.take(np.repeat(np.arange(batch.num_rows), len(model.levels.treated)))
        columns = [*own.columns, *(column.combine_chunks() for column in effects.columns)]
        yield pa.RecordBatch.from_arrays(columns, [*own.schema.names, *effects.schema.names])


# --------------------------------------------------------------------------------------------------------------------
# New labels into standing trees on Spark: `forest.refresh` over a DataFrame, the same bytes as in one process.
# Counting a row is a walk down the trees, so a map-only pass over all rows takes no longer than finding out which of
# them are new. No tree is grown and no correction estimated, which are the dear parts of training. Where rows fade,
# those of a day are brought together, because a day's sums are rounded once.

_DAY, _DAY_SUMS_SCHEMA = "_day", "tree int, _day bigint, sums binary"


def refreshed_frame(
    frame: DataFrame,
    base: Forest,
    half_life: float | None,
    day: str | None,
    progress: ProgressCallback = lambda _: None,
) -> Forest:
    """`refresh.forest_of` the rows of the frame counted in the base's trees; `day` is a column of whole numbers, needed
    with a half-life. Raises as `refresh.counted`, `refresh.forest_of` and `refresh.check_refresh`."""
    check_refresh(base, half_life, day)
    rows = checked(frame, base.roles, *([] if day is None else [day]))
    dated = rows.withColumn(_DAY, (F.lit(0) if day is None else F.col(quoted(day))).cast("bigint"))
    plan, structure, baselines = grown_parts(base)
    with kept(dated) as rows:
        check_units(rows, base.roles)
        progress("checking the rows against the forest")
        level_rows, days, bins = _check_rows(rows, base, day)
        progress(f"counting {int(level_rows.sum()):,} rows in {structure.n_leaves:,} leaves")
        with watched(frame.sparkSession, progress):
            if half_life is None:
                sums = plain(leaf_sums(binned_frame(rows.drop(_DAY), plan, baselines), plan, structure))
            else:
                sums = _faded_sums(rows, base, half_life, days)
    return forest_from(base, level_rows, sums, bins, fading=half_life is not None)


def check_units(rows: DataFrame, roles: Roles) -> None:
    """Raise DataError if a unit has several rows; a shuffle of the ids."""
    repeated = rows.groupBy(quoted(roles.unit)).count().where("count > 1").agg(F.sum(F.col("count") - 1)).first()
    check_repeated((repeated and repeated[0]) or 0, roles.unit)


def _check_rows(rows: DataFrame, base: Forest, day: str | None) -> tuple[np.ndarray, dict[int, int], np.ndarray]:
    """(rows of each level, int64 [K], rows of each day, bins of the rows that levels learn from each other at, uint8
    [s, p], by unit) in one map-only pass."""
    table = map_batches(rows, partial(check_batches, base), "summary string, unit bigint, bins binary").toArrow()
    texts = table.column("summary").drop_null().to_pylist()
    parts = [json.loads(text) for text in texts]
    summary = sum((Summary.from_dict(part["summary"]) for part in parts), Summary())
    check_summary(summary, base.roles)
    days: Counter[int] = sum((Counter(dict(part["days"])) for part in parts), Counter())
    undated = summary.rows - days.total()
    if undated:
        raise DataError(f"column {day!r} is null in {undated} of {summary.rows} rows: give every row its day")
    problems: dict[str | None, ColumnFault] = {}
    for column, n, problem in (problem for part in parts for problem in part["problems"]):
        problems[column] = (column, problems.get(column, (column, 0, problem))[1] + n, problem)
    taken = table.filter(pc.is_valid(table.column("unit")))
    order = np.argsort(np.asarray(taken.column("unit")).view(np.uint64))
    bins = unpacked_bins(taken.column("bins"), len(base.plan.bins))[order]
    return level_rows_of(summary, problems.values(), base), days, bins


def _faded_sums(rows: DataFrame, base: Forest, half_life: float, days: dict[int, int]) -> np.ndarray:
    """Sum of the days' `refresh.faded` plain sums, int64 [leaves, K, 1 + m]."""
    plan, structure, baselines = grown_parts(base)
    # A day with many rows goes to several workers.
    shares = {day: -(-WORKERS * n // sum(days.values())) for day, n in days.items()}
    columns = f"{binned_columns(plan)}, {_DAY} bigint, _share int"
    encoded = map_batches(rows, partial(bin_days, plan, baselines, shares), columns)
    of_days = map_groups(encoded, (_DAY, "_share"), sum_day, (plan, structure), _DAY_SUMS_SCHEMA)
    fading = (1 + len(plan.roles.outcomes), max(days), half_life, finer_bits(base))
    merged = map_groups(of_days, ("tree",), merge_days, (fading,), _DAY_SUMS_SCHEMA).toArrow()
    of_trees = dict(zip(merged.column("tree").to_pylist(), merged.column("sums"), strict=True))
    whole = b"".join(of_trees[tree].as_py() for tree in range(structure.n_trees))
    return np.frombuffer(whole, np.int64).reshape(structure.n_leaves, len(plan.levels), -1)


# Workers: Arrow in, Arrow out, no Spark.


def check_batches(base: Forest, batches: Batches) -> Batches:
    """A row for each row of the sample, its unit's hash and bins; and one with a partition's summary, rows of each day,
    and what of its rows the forest cannot take, as JSON."""
    summary, days, problems = Summary(), Counter[int](), list[ColumnFault]()
    for batch in batches:
        rows = encode(batch, base.roles)
        summary += summarise(rows)
        days.update(batch.column(_DAY).drop_null().to_pylist())
        problems += [problem for problem in unfit(rows, base) if problem[1]]
        nobody = rows.missing_ids.get(base.roles.unit, False)
        some = rows.take(in_sample(rows.unit, base) & ~np.broadcast_to(nobody, len(rows)))
        bins = apply_bins(some.features, base.plan.bins)
        yield pa.record_batch(
            {**_nothing(len(some)), "unit": pa.array(some.unit.view(np.int64)), "bins": packed_bins(bins)}
        )
    record = {"summary": asdict(summary), "days": list(days.items()), "problems": problems}
    yield pa.record_batch({**_nothing(1), "summary": pa.array([json.dumps(record)])})


def _nothing(n: int) -> dict[str, pa.Array]:
    return {"summary": pa.nulls(n, pa.string()), "unit": pa.nulls(n, pa.int64()), "bins": pa.nulls(n, pa.binary())}


def bin_days(plan: ForestPlan, baselines: Baselines, shares: dict[int, int], batches: Batches) -> Batches:
    """Rows in the columns of `binned_columns`, their day, and which of the day's shares they are in."""
    for batch in batches:
        rows, day = bin_rows(encode(batch, plan.roles), plan, baselines), batch.column(_DAY)
        share = rows.unit % np.array([shares[one] for one in day.to_pylist()], np.uint64)
        encoded = to_arrow(rows).append_column(_DAY, day)
        yield encoded.append_column("_share", pa.array(share.astype(np.int32)))


def sum_day(plan: ForestPlan, structure: Structure, group: pa.Table) -> pa.Table:
    """Plain sums of a share of a day, one row per tree."""
    sums = empty_sums(structure, plan)
    add_to_leaves(sums, from_arrow(group.drop_columns([_DAY, "_share"]), len(plan.bins)), structure.routes, plan)
    bounds = zip(structure.leaf_start[:-1], structure.leaf_start[1:], strict=True)
    content = [plain(sums[low:high]).tobytes() for low, high in bounds]
    days = group.column(_DAY)[:1].take([0] * structure.n_trees)
    return pa.table({"tree": pa.array(range(structure.n_trees), pa.int32()), _DAY: days, "sums": content})


def merge_days(fading: tuple[int, int, float, int], parts: pa.Table) -> pa.Table:
    """Sums of one tree: those of its days whole, then every day's as it counts now."""
    width, newest, half_life, finer = fading
    days: dict[int, np.ndarray] = {}
    for day, content in zip(parts.column(_DAY).to_pylist(), parts.column("sums"), strict=True):
        days[day] = days.get(day, 0) + np.frombuffer(content.as_buffer(), np.int64)
    total = sum(faded(sums.reshape(-1, width), newest - day, half_life, finer) for day, sums in days.items())
    content = pa.array([np.asarray(total).tobytes()], pa.binary())
    return pa.table({"tree": parts.column("tree")[:1], _DAY: parts.column(_DAY)[:1], "sums": content})


# --------------------------------------------------------------------------------------------------------------------
# Complier effects on Spark: one pass for what deliveries bring on average, then the forest's own.


def fit_instrumental_frame(
    frame: DataFrame, roles: Roles, delivered: str, params: Params, progress: ProgressCallback = lambda _: None
) -> Instrumental:
    """`forest.instrument.fit_instrumental` of a Spark frame: the same model, byte for byte."""
    inner = left_roles(roles, delivered)
    for name in (delivered, roles.outcome):
        if name not in frame.columns:
            raise DataError(f"column {name!r} is missing from the frame: complier effects need it")
    y, d = (F.col(quoted(name)).cast("double") for name in (roles.outcome, delivered))
    weight = F.lit(1.0) if roles.weight is None else F.col(quoted(roles.weight)).cast("double")
    if roles.propensity:
        weight = weight / F.col(quoted(roles.propensity))
    bad = d.isNull() | F.isnan(d) | (F.abs(d) == float("inf"))
    finite = F.when(F.isnan(y) | (F.abs(y) == float("inf")), 0.0).otherwise(F.coalesce(y, F.lit(0.0)))
    parts = (weight, weight * d, weight * finite, weight * d * d)
    sums = frame.groupBy(F.col(quoted(roles.treatment)).cast("string").alias("level")).agg(
        F.count("*").alias("n"),
        F.count_if(bad).alias("bad"),
        *(F.sum(part).alias(f"s{i}") for i, part in enumerate(parts)),
    )
    rows = sorted(sums.collect(), key=lambda row: str(row["level"]))
    n, missing = (sum(row[name] for row in rows) for name in ("n", "bad"))
    if missing:
        raise DataError(f"column {delivered!r} is null, NaN or infinite in {missing} of {n} rows: fill or drop them")
    overall = two_stage(np.array([[row[f"s{i}"] for row in rows] for i in range(4)], float), delivered, n)
    progress(f"a delivery brings {overall:.4g} on average, by two-stage least squares")
    return Instrumental(
        fit_frame(frame.withColumn(LEFT, y - overall * d), inner, params, progress), roles, overall, delivered
    )
