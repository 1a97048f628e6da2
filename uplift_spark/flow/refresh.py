"""New labels into standing trees on Spark (R6.3): `causal.refresh` over a DataFrame, the same bytes as in one process.

Counting a row is a walk down the trees, so a map-only pass over all rows takes no longer than finding out which of them
are new. No tree is grown and no correction estimated, which are the dear parts of training. Where rows fade, those of a
day are brought together, because a day's sums are rounded once.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.causal.binning import apply_bins
from uplift_spark.causal.estimation import Baselines, add_rows, empty_sums, grown_parts
from uplift_spark.causal.forest import Forest
from uplift_spark.causal.hashing import unit_hashes
from uplift_spark.causal.refresh import (
    Problem,
    check_refresh,
    faded,
    finer_bits,
    forest_from,
    in_sample,
    level_rows_of,
    plain,
    unfit,
)
from uplift_spark.causal.rows import Plan, Summary, check_summary, encode, summarise
from uplift_spark.causal.structure import Structure
from uplift_spark.causal.training import Say
from uplift_spark.flow.progress import watched
from uplift_spark.flow.training import (
    WORKERS,
    Batches,
    checked,
    encoded_columns,
    encoded_rows,
    from_arrow,
    kept,
    leaf_sums,
    on_group,
    packed_bins,
    to_arrow,
    unpacked_bins,
)
from uplift_spark.vocabulary import DataError, Roles

_DAY, _SUMS = "_day", "tree int, _day bigint, sums binary"


def refreshed_frame(
    frame: DataFrame, base: Forest, half_life: float | None, day: str | None, say: Say = lambda _: None
) -> Forest:
    """`refresh.forest_of` the rows of the frame counted in the base's trees; `day` is a column of whole numbers, needed
    with a half-life. Raises as `refresh.counted`, `refresh.forest_of` and `refresh.check_refresh`."""
    check_refresh(base, half_life, day)
    rows = checked(frame, base.roles, *([] if day is None else [day]))
    dated = rows.withColumn(_DAY, (F.lit(0) if day is None else F.col(f"`{day}`")).cast("bigint"))
    plan, structure, baselines = grown_parts(base)
    with kept(dated) as rows:
        _check_units(rows, base.roles)
        say("checking the rows against the forest")
        level_rows, days, bins = _looked_at(rows, base, day)
        say(f"counting {int(level_rows.sum()):,} rows in {structure.n_leaves:,} leaves")
        with watched(frame.sparkSession, say):
            if half_life is None:
                sums = plain(leaf_sums(encoded_rows(rows.drop(_DAY), plan, baselines), plan, structure))
            else:
                sums = _faded_sums(rows, base, half_life, days)
    return forest_from(base, level_rows, sums, bins, fading=half_life is not None)


def _check_units(rows: DataFrame, roles: Roles) -> None:
    repeated = rows.groupBy(f"`{roles.unit}`").count().where("count > 1").agg(F.sum(F.col("count") - 1)).first()
    if repeated is not None and repeated[0]:
        raise DataError(f"column {roles.unit!r} repeats a unit in {repeated[0]} rows: keep one row per unit")


def _looked_at(rows: DataFrame, base: Forest, day: str | None) -> tuple[np.ndarray, dict[int, int], np.ndarray]:
    """(rows of each level, int64 [K], rows of each day, bins of the rows that levels learn from each other at, uint8
    [s, p], by unit) in one map-only pass."""
    table = rows.mapInArrow(partial(look_batches, base), "found string, unit bigint, bins binary").toArrow()
    found = table.column("found").drop_null().to_pylist()
    parts = [json.loads(text) for text in found]
    summary = sum((Summary.from_dict(part["summary"]) for part in parts), Summary())
    check_summary(summary, base.roles)
    days: Counter[int] = sum((Counter(dict(part["days"])) for part in parts), Counter())
    undated = summary.rows - days.total()
    if undated:
        raise DataError(f"column {day!r} is null in {undated} of {summary.rows} rows: give every row its day")
    problems: dict[str | None, Problem] = {}
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
    columns = f"{encoded_columns(plan)}, {_DAY} bigint, _share int"
    encoded = rows.mapInArrow(partial(encode_days, plan, baselines, shares), columns)
    of_days = encoded.groupBy(_DAY, "_share").applyInArrow(on_group(sum_day, plan, structure), _SUMS)
    fading = (1 + len(plan.roles.outcomes), max(days), half_life, finer_bits(base))
    merged = of_days.groupBy("tree").applyInArrow(on_group(merge_days, fading), _SUMS).toArrow()
    of_trees = dict(zip(merged.column("tree").to_pylist(), merged.column("sums"), strict=True))
    whole = b"".join(of_trees[tree].as_py() for tree in range(structure.n_trees))
    return np.frombuffer(whole, np.int64).reshape(structure.n_leaves, len(plan.levels), -1)


# Workers: Arrow in, Arrow out, no Spark.


def look_batches(base: Forest, batches: Batches) -> Batches:
    """A row for each row of the sample, its unit's hash and bins; and one with a partition's summary, rows of each day,
    and what of its rows the forest cannot take, as JSON."""
    summary, days, problems = Summary(), Counter[int](), list[Problem]()
    for batch in batches:
        summary += summarise(batch, base.roles)
        days.update(batch.column(_DAY).drop_null().to_pylist())
        problems += [problem for problem in unfit(batch, base) if problem[1]]
        some = batch.filter(batch.column(base.roles.unit).is_valid())
        units = unit_hashes(some.column(base.roles.unit), base.roles.unit)
        mine = in_sample(units, base)
        bins = apply_bins(some.filter(pa.array(mine)), base.plan.bins)
        yield pa.record_batch(
            {**_nothing(mine.sum()), "unit": pa.array(units[mine].view(np.int64)), "bins": packed_bins(bins)}
        )
    told = {"summary": asdict(summary), "days": list(days.items()), "problems": problems}
    yield pa.record_batch({**_nothing(1), "found": pa.array([json.dumps(told)])})


def _nothing(n: int) -> dict[str, pa.Array]:
    return {"found": pa.nulls(n, pa.string()), "unit": pa.nulls(n, pa.int64()), "bins": pa.nulls(n, pa.binary())}


def encode_days(plan: Plan, baselines: Baselines, shares: dict[int, int], batches: Batches) -> Batches:
    """Rows in the columns of `encoded_columns`, their day, and which of the day's shares they are in."""
    for batch in batches:
        rows, day = encode(batch, plan, baselines), batch.column(_DAY)
        share = rows.unit % np.array([shares[one] for one in day.to_pylist()], np.uint64)
        encoded = to_arrow(rows).append_column(_DAY, day)
        yield encoded.append_column("_share", pa.array(share.astype(np.int32)))


def sum_day(plan: Plan, structure: Structure, group: pa.Table) -> pa.Table:
    """Plain sums of a share of a day, one row per tree."""
    sums = empty_sums(structure, plan)
    add_rows(sums, from_arrow(group.drop_columns([_DAY, "_share"]), len(plan.bins)), structure.routes, plan)
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
