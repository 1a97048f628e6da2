"""Trials on Spark frames: assignment by the SQL of `assignment`, after the checks that SQL cannot make, and the sums
and counts that a readout needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    IntegralType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.labels import label_table
from uplift_spark.experiments.assignment import (
    EXPLORED,
    LEFT_OUT,
    PARTICIPATION,
    AssignmentColumns,
    Experiment,
    assignment_sql,
)
from uplift_spark.experiments.backtest import (
    TOO_LARGE,
    BacktestLayout,
    LoggedColumns,
    backtest_terms,
    term_moments,
)
from uplift_spark.experiments.bootstrap import UNIT_GROUPS, GroupCells, UnitGroupSums
from uplift_spark.experiments.canary import (
    CHALLENGER_SLICE,
    CHAMPION_SLICE,
    CanaryEvidence,
    SliceSums,
    sums_by_slice,
)
from uplift_spark.experiments.frames import (
    NO_ROW,
    ReadingTime,
    ReadoutColumns,
    TrialCounts,
    check_columns_there,
    trial_facts,
    value_columns,
)
from uplift_spark.experiments.health import PropensitySums, ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import ReadoutMetric, TrialSums, checked_metrics
from uplift_spark.lake.session import instant
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT, UNIT
from uplift_spark.spark_versions import mapped, mapped_frame
from uplift_spark.stats.moments import LARGEST, CrossMoments

_DAY = 86_400_000_000  # microseconds


def with_arms(frame: DataFrame, experiment: Experiment, columns: AssignmentColumns | None = None) -> DataFrame:
    """Add the arm of each unit, equal to that of `assignment.assign`.

    Args:
        frame: One row a unit; it is read once to check ids, strata and decisions, and once more where clusters have
            strata.
        experiment: The design.
        columns: Names of its columns; `unit_id` alone by default.

    Returns:
        The frame with `treatment`, `left_out`, `explored`, `propensity` and `participation`, as `assign` has them. The
        frame is not kept in memory: write it once, as ranks in strata depend on the list.

    Raises:
        ConfigError: The design needs a column that is not named.
        DataError: A column is missing, of a wrong type, there already, or empty; a unit is there twice; a cluster lies
            in two strata; a decision is none of the arms.
    """
    columns = columns or AssignmentColumns()
    sql = assignment_sql(experiment, columns, "spark")
    _check_types(frame, columns)
    _check_rows(frame, experiment, columns)
    arms = frame.withColumns({TREATMENT: F.expr(sql.treatment), LEFT_OUT: F.expr(sql.left_out)})
    later = {EXPLORED: sql.explored, PROPENSITY: sql.propensity, PARTICIPATION: sql.participation}
    return arms.withColumns({name: F.expr(text) for name, text in later.items()})


def _check_types(frame: DataFrame, columns: AssignmentColumns) -> None:
    types = {field.name.lower(): field.dataType for field in frame.schema}  # Spark's names have no case
    clashes = sorted(types.keys() & {TREATMENT, LEFT_OUT, EXPLORED, PROPENSITY, PARTICIPATION})
    if clashes:
        raise DataError(f"column {clashes[0]!r} is there already: drop it, or leave assigned units as they are")
    for name in columns.names:
        if name.lower() not in types:
            raise ConfigError(f"column {name!r} is not in the table: {hint(name, frame.columns)}")
        kind = types[name.lower()]
        whole = isinstance(kind, StringType | IntegralType) or (isinstance(kind, DecimalType) and kind.scale == 0)
        if not whole:
            kind_name = kind.simpleString()
            raise DataError(f"column {name!r} has type {kind_name}: ids must be text or integers; cast it to text")


def _check_rows(frame: DataFrame, experiment: Experiment, columns: AssignmentColumns) -> None:
    """Refuse rows that get no arm or a wrong one, named with their count."""
    unit = F.col(columns.unit)
    empty = {name: F.col(name).isNull() | (F.col(name).cast("string") == "") for name in columns.names}
    counts = [F.count_if(condition).alias(f"empty:{name}") for name, condition in empty.items()]
    counts.append((F.count(F.lit(1)) - F.count_distinct(unit)).alias("repeated"))
    if columns.decision:
        unknown = ~F.col(columns.decision).cast("string").isin(list(experiment.arms))
        counts.append(F.count_if(unknown).alias("unknown"))
    (row,) = frame.agg(*counts).collect()
    for name in empty:
        if row[f"empty:{name}"]:
            raise DataError(f"column {name!r} is null or empty in {row[f'empty:{name}']} rows: drop or fill them")
    if row["repeated"]:
        raise DataError(f"column {columns.unit!r} repeats {row['repeated']} units: keep one row a unit")
    if columns.decision and row["unknown"]:
        arms = ", ".join(experiment.arms)
        raise DataError(f"column {columns.decision!r} is no arm in {row['unknown']} rows: use {arms}")
    if columns.cluster and columns.strata:
        strata = F.concat_ws("|", *(F.col(name).cast("string") for name in columns.strata))
        by_cluster = frame.groupBy(columns.cluster).agg(F.count_distinct(strata).alias("strata"))
        split = by_cluster.where("strata > 1").count()
        if split:
            raise DataError(f"{split} clusters lie in two strata: stratify by what all units of a cluster share")


# --------------------------------------------------------------------------------------------------------------------
# Sums of a trial.
# Rows are added up to the randomised unit, which also shows who is in two arms; then each worker adds the units that it
# has to moments by arm and stratum, and by arm and day, and to totals by arm, stratum and group, and sends these.
# All merge (`CrossMoments`, `GroupCells`), so one reading of the rows is enough, however many metrics there are.

_SUMS = "family string, arm string, bucket string, n double, mean binary, products binary"
_BY_STRATUM, _BY_DAY, _BY_GROUP, _UNITS, _FAULT, _VALUE = "stratum", "day", "group", "units", "fault", "value"
_MISSING = ("rows", "no_unit", "no_randomised", "no_arm", "no_stratum", "no_day")
_ROWS, _NO_UNIT, _NO_RANDOMISED, _NO_ARM, _NO_STRATUM, _NO_DAY = _MISSING
_KEPT, _REPEATED, _NO_PROPENSITY, _WRONG_PROPENSITY = "kept", "repeated", "no_propensity", "wrong_propensity"
_TWICE, _TORN_STRATUM, _TORN_PROPENSITY = "twice", "torn_stratum", "torn_propensity"


@dataclass(frozen=True)
class TrialLayout:
    """Where a worker finds what in a row of a randomised unit.

    arms        arms with a share
    width       columns of numbers: the row has `v0`, `v1`, ...
    clustered   whether a row may hold several units
    taken       place among them of the treatment that was received, if that is known
    day, propensity  whether they are there
    """

    arms: tuple[str, ...]
    width: int
    clustered: bool
    taken: int | None
    day: bool
    propensity: bool


def unit_sums(
    frame: DataFrame,
    metrics: Sequence[ReadoutMetric],
    design: ReadoutDesign,
    columns: ReadoutColumns | None = None,
    time: ReadingTime | None = None,
) -> tuple[TrialSums, TrialFacts]:
    """Sums and counts of a Spark frame, as `frames.trial_sums` has them of a pandas frame, in one pass over the values.

    Where units are randomised, their ids are counted before that: if none repeats, no value moves between workers.

    Args:
        frame: One row a unit.
        metrics: One of them primary.
        design: What was laid down.
        columns: Names of the frame's columns; a propensity that is null in all rows was not logged.
        time: When it is read.

    Returns:
        (sums by arm and stratum, and by arm and day; counts for the checks).

    Raises:
        ConfigError: There is not one primary metric, or a column is missing.
        DataError: Values are missing, not finite or of a wrong type, units repeat, an arm is empty.
    """
    columns, time = columns or ReadoutColumns(), time or ReadingTime()
    metrics = checked_metrics(metrics)
    names = value_columns(metrics, columns)
    check_columns_there(frame.columns, names, design, columns)
    layout = TrialLayout(
        *(design.open_arms, len(names), design.randomised != columns.unit),
        *(names.index(columns.taken) if columns.taken else None, columns.day is not None),
        columns.propensity is not None,
    )
    units = _randomised_units(frame, names, design, columns)
    merged = _Merged(units.mapInArrow(partial(add_units, layout), _SUMS).toArrow(), layout)
    _check_faults(merged, design, columns)
    _check_values(merged, names)
    own = list(range(layout.width + layout.clustered))
    strata = merged.buckets(_BY_STRATUM)
    sums = TrialSums(
        *(layout.arms, tuple(strata), tuple(names), merged.cells(_BY_STRATUM, strata).columns(own), columns.taken),
        counted=layout.width if layout.clustered else None,
        groups=merged.groups(strata),
    )
    if layout.day:
        sums = replace(sums, by_day=merged.by_day().columns(own))
    return sums, trial_facts(sums, merged.counted(), metrics, design, (columns, time))


def _randomised_units(
    frame: DataFrame, names: Sequence[str], design: ReadoutDesign, columns: ReadoutColumns
) -> DataFrame:
    """A row for each randomised unit: `v0`, `v1`, ... summed over its rows (NaN where one is missing), the ends of what
    must be the same in all of them, and counts of rows by what is wrong with them."""
    types = {field.name.lower(): field.dataType for field in frame.schema}
    for name in (*names, *([columns.propensity] if columns.propensity else [])):
        if not isinstance(types[name.lower()], NumericType | BooleanType):
            raise DataError(f"column {name!r} is no number in some rows: cast it, or name another column")
    unit, arm = F.col(columns.unit), F.col(columns.treatment).cast("string")
    stratum = F.col(columns.stratum).cast("string") if columns.stratum else F.lit("all")
    wrong = {_NO_UNIT: unit.isNull(), _NO_ARM: arm.isNull(), _NO_STRATUM: stratum.isNull()}
    ends = {"arm": arm, "stratum": stratum}
    if columns.day:
        day = _day_of(columns.day, types[columns.day.lower()])
        wrong[_NO_DAY] = day.isNull()
        ends["day"] = day
    if columns.propensity:
        p = F.col(columns.propensity).cast("double")
        wrong |= {_NO_PROPENSITY: p.isNull(), _WRONG_PROPENSITY: ~((p > 0) & (p <= 1))}
        ends["propensity"] = p
    wrong[_NO_RANDOMISED] = F.col(design.randomised).isNull()
    counts = {_ROWS: F.lit(1).cast("bigint")} | {name: value.cast("bigint") for name, value in wrong.items()}
    values = {f"v{place}": _or_nan(name) for place, name in enumerate(names)}
    clustered = design.randomised != columns.unit
    if not clustered and _unique(frame, unit):
        # Every unit is a row, so no row of values has to move to another worker.
        sides = {f"{side}_{name}": value for name, value in ends.items() for side, _ in _ENDS}
        each = {**counts, _REPEATED: F.lit(0).cast("bigint"), **sides, **values, _BY_GROUP: _group(design.randomised)}
        return frame.select(*(value.alias(name) for name, value in each.items()))
    repeated = F.count(F.lit(1)) - (F.count_distinct(unit) if clustered else F.lit(1))
    figures = [F.sum(value).alias(name) for name, value in {**counts, **values}.items()]
    figures += [repeated.cast("bigint").alias(_REPEATED)]
    figures += [end(value).alias(f"{side}_{name}") for name, value in ends.items() for side, end in _ENDS]
    return (
        frame.groupBy(F.col(design.randomised).alias("__unit"))
        .agg(*figures)
        .select("*", _group("__unit").alias(_BY_GROUP))
        .drop("__unit")
    )


def _group(unit: str) -> Column:
    """As `bootstrap.groups_of`."""
    return F.pmod(F.xxhash64(F.col(unit).cast("string")), F.lit(UNIT_GROUPS))


def _or_nan(name: str) -> Column:
    return F.coalesce(F.col(name).cast("double"), F.lit(float("nan")))


def _unique(frame: DataFrame, unit: Column) -> bool:
    (row,) = frame.agg(F.count(unit).alias("rows"), F.count_distinct(unit).alias("units")).collect()
    return bool(row["rows"] == row["units"])


_ENDS = (("low", F.min), ("high", F.max))


def _day_of(name: str, kind: DataType) -> Column:
    """Days since 1970 of a date, or of a time in UTC."""
    if isinstance(kind, TimestampType):
        return F.floor(F.unix_micros(name) / _DAY)
    if not isinstance(kind, DateType | TimestampNTZType):
        raise DataError(f"column {name!r} is no date in some rows: cast it to dates")
    return F.unix_date(F.to_date(name))


def add_units(layout: TrialLayout, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: moments of its units by arm and stratum, and by arm and day; totals by arm, stratum and group; counts of
    what is left out or wrong.

    Args:
        layout: Where a row has what.
        batches: Rows of `_randomised_units`.

    Yields:
        One batch with a row for each cell and count: family, arm, bucket, n, mean and products as float64 bytes.
    """
    cells: dict[tuple[str, str, str], CrossMoments] = {}
    counts: Counter[tuple[str, str]] = Counter()
    groups, own = GroupCells(), layout.width + layout.clustered
    for batch in filter(len, batches):
        kept, x = _checked_units(batch, layout, counts)
        arm = pc.index_in(kept["low_arm"], pa.array(layout.arms)).to_numpy()
        families = [(_BY_STRATUM, "low_stratum"), *([(_BY_DAY, "low_day")] if layout.day else [])]
        for family, name in families if len(x) else ():
            bucket = pc.fill_null(kept[name].cast(pa.string()), "").dictionary_encode()
            texts = bucket.dictionary.to_pylist()
            shape = (len(layout.arms), len(texts))
            code = arm * shape[1] + bucket.indices.to_numpy()
            moments = CrossMoments.of(x, code, shape)
            grouped = (
                UnitGroupSums.of(x[:, :own], code, kept[_BY_GROUP].to_numpy(), shape) if name == "low_stratum" else None
            )
            for k, b in np.argwhere(moments.n > 0):
                cell = (family, layout.arms[k], texts[b])
                cells[cell] = cells[cell] + moments[k, b] if cell in cells else moments[k, b]
                if grouped is not None:
                    groups.add(layout.arms[k], texts[b], grouped.totals[k, b])
    rows = [(*cell, float(one.n), one.mean.tobytes(), one.products.tobytes()) for cell, one in cells.items()]
    rows += [(_BY_GROUP, *cell, 0.0, totals.tobytes(), b"") for cell, totals in groups.cells.items() if totals.size]
    rows += [(family, name, "", float(n), b"", b"") for (family, name), n in counts.items()]
    types = (pa.string(), pa.string(), pa.string(), pa.float64(), pa.binary(), pa.binary())
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(types)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    yield pa.RecordBatch.from_arrays(arrays, ["family", "arm", "bucket", "n", "mean", "products"])


def _checked_units(
    batch: pa.RecordBatch, layout: TrialLayout, counts: Counter[tuple[str, str]]
) -> tuple[pa.Table, np.ndarray]:
    """Units in one arm that has a share, and their columns: values, units of a cluster, whether the treatment was
    received, 1/p. All others are counted and left out."""
    names = set(batch.schema.names)
    for fault in names & {*_MISSING}:
        counts[_FAULT, fault] += pc.sum(batch[fault]).as_py() or 0
    torn = pc.fill_null(pc.not_equal(batch["low_arm"], batch["high_arm"]), False)
    counts[_FAULT, _TWICE] += pc.sum(torn).as_py() or 0
    for one in pc.value_counts(batch.filter(pc.invert(torn))["low_arm"].drop_null()).to_pylist():
        counts[_UNITS, one["values"]] += one["counts"]
    inside = pc.is_in(batch["low_arm"], pa.array(layout.arms))
    kept = batch.filter(pc.and_(inside, pc.invert(torn)))
    counts[_FAULT, _KEPT] += pc.sum(kept[_ROWS]).as_py() or 0
    for fault in names & {_REPEATED, _NO_PROPENSITY, _WRONG_PROPENSITY}:
        counts[_FAULT, fault] += pc.sum(kept[fault]).as_py() or 0
    for fault, name in ((_TORN_STRATUM, "stratum"), (_TORN_PROPENSITY, "propensity")):
        if f"low_{name}" in names:
            counts[_FAULT, fault] += pc.sum(pc.not_equal(kept[f"low_{name}"], kept[f"high_{name}"])).as_py() or 0
    x = [kept[f"v{place}"].to_numpy(zero_copy_only=False) for place in range(layout.width)]
    for place, value in enumerate(x):
        counts[_VALUE, str(place)] += int((~np.isfinite(value)).sum())
    x += [kept[_ROWS].to_numpy(zero_copy_only=False)] if layout.clustered else []
    x += [] if layout.taken is None else [x[layout.taken] > 0]
    if layout.propensity:
        p = pc.fill_null(kept["low_propensity"], np.nan).to_numpy(zero_copy_only=False)
        x.append(1 / np.where(p > 0, p, np.nan))
    # What is not finite is refused when all is counted; here it must not spoil the other columns' sums.
    return kept, np.nan_to_num(np.column_stack(x).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


class _Merged:
    """Cells and counts of all workers together."""

    def __init__(self, parts: pa.Table, layout: TrialLayout) -> None:
        self.layout = layout
        self.counts: Counter[tuple[str, str]] = Counter()
        self._cells: dict[tuple[str, str, str], CrossMoments] = {}
        self._groups, own = GroupCells(), layout.width + layout.clustered
        width = layout.width + layout.clustered + (layout.taken is not None) + layout.propensity
        self._empty = CrossMoments(np.zeros(()), np.zeros(width), np.zeros((width, width)))
        for row in parts.to_pylist():
            if not row["mean"]:
                self.counts[row["family"], row["arm"]] += int(row["n"])
                continue
            mean, products = (np.frombuffer(row[name], np.float64) for name in ("mean", "products"))
            if row["family"] == _BY_GROUP:
                self._groups.add(row["arm"], row["bucket"], mean.reshape(-1, 1 + own))
                continue
            moments = CrossMoments(np.array(row["n"]), mean, products.reshape(width, width))
            cell = (row["family"], row["arm"], row["bucket"])
            self._cells[cell] = self._cells.get(cell, self._empty) + moments

    def fault(self, name: str) -> int:
        return self.counts[_FAULT, name]

    @property
    def units(self) -> dict[str, float]:
        """Units by arm, those with a share first."""
        counted = {name: float(n) for (family, name), n in sorted(self.counts.items()) if family == _UNITS}
        return {arm: 0.0 for arm in self.layout.arms} | counted

    def buckets(self, family: str) -> list[str]:
        return sorted({bucket for one, _, bucket in self._cells if one == family})

    def cells(self, family: str, buckets: Sequence[str]) -> CrossMoments:
        """Moments [arms, buckets] of all columns."""
        every = [[self._cells.get((family, arm, b), self._empty) for b in buckets] for arm in self.layout.arms]
        return CrossMoments(*(np.array([[getattr(one, part) for one in row] for row in every]) for part in _PARTS))

    def by_day(self) -> CrossMoments:
        """Moments [arms, days] of all days from the first to the last."""
        days = [int(bucket) for bucket in self.buckets(_BY_DAY)]
        return self.cells(_BY_DAY, [str(day) for day in range(min(days), max(days) + 1)])

    def groups(self, strata: Sequence[str]) -> UnitGroupSums:
        """Totals [arms, strata] of the readout's own columns by group."""
        return self._groups.sums(self.layout.arms, strata, self.layout.width + self.layout.clustered)

    def counted(self) -> TrialCounts:
        """Counts for `trial_facts`."""
        layout, by_arm = self.layout, self.cells(_BY_STRATUM, self.buckets(_BY_STRATUM)).sum(1)
        place = layout.width + layout.clustered
        reached = None
        if layout.taken is not None:
            reached, place = np.rint(by_arm.n * by_arm.mean[:, place]), place + 1
        propensities = None
        if layout.propensity and self.fault(_NO_PROPENSITY) < self.fault(_KEPT):
            inverse = by_arm.n * by_arm.mean[:, place]
            square = by_arm.products[:, place, place] + by_arm.n * by_arm.mean[:, place] ** 2
            propensities = tuple(
                PropensitySums(*map(float, one)) for one in zip(by_arm.n, inverse, square, strict=True)
            )
        return TrialCounts(
            self.units, self.fault(_TWICE), self.by_day().n if layout.day else None, reached, propensities
        )


_PARTS = ("n", "mean", "products")


def _check_faults(merged: _Merged, design: ReadoutDesign, columns: ReadoutColumns) -> None:
    if not merged.fault(_ROWS):
        raise DataError(NO_ROW)
    missing = {columns.unit: _NO_UNIT, design.randomised: _NO_RANDOMISED, columns.treatment: _NO_ARM}
    missing |= {name: fault for name, fault in ((columns.stratum, _NO_STRATUM), (columns.day, _NO_DAY)) if name}
    for name, fault in missing.items():
        if n := merged.fault(fault):
            raise DataError(f"column {name!r} is missing in {n} rows: every row needs one; drop or fill them")
    if n := merged.fault(_REPEATED):
        raise DataError(f"column {columns.unit!r} repeats {n} units in one arm: keep one row a unit")
    for arm in merged.layout.arms:
        if not merged.units[arm]:
            there = ", ".join(name for name, n in merged.units.items() if n)
            raise DataError(f"arm {arm!r} has no unit: the frame has arms {there}")
    if merged.fault(_TORN_STRATUM):
        one = design.randomised
        raise DataError(f"some units of one {one} lie in two strata: stratify by what all units of a {one} share")
    absent, rows = merged.fault(_NO_PROPENSITY), merged.fault(_KEPT)
    if 0 < absent < rows:
        raise DataError(f"column {columns.propensity!r} is missing or not finite in {absent} rows: fill or drop them")
    if n := merged.fault(_WRONG_PROPENSITY):
        raise DataError(
            f"column {columns.propensity!r} is outside (0, 1] in {n} rows: log the probability of the unit's arm"
        )
    if merged.fault(_TORN_PROPENSITY):
        one = design.randomised
        raise DataError(f"units of one {one} have different propensities: log that of the {one}, which is assigned")


def _check_values(merged: _Merged, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if n := merged.counts[_VALUE, str(place)]:
            raise DataError(f"column {name!r} is missing or not finite in {n} units: fill or drop them")


# --------------------------------------------------------------------------------------------------------------------
# Sums of a policy's backtest. Workers make the terms of their units and add them up; where clusters were randomised,
# the terms of a cluster are added up in between.

_CLUSTER, _POLICY_SUMS = "__cluster", "place int, n double, mean binary, products binary"


def backtest_sums(frame: DataFrame, layout: BacktestLayout, columns: LoggedColumns) -> CrossMoments:
    """Sums of a Spark frame for `backtest.read_policy`.

    Args:
        frame: One row a unit.
        layout: What is added up.
        columns: Names of the frame's columns.

    Returns:
        Moments [arms].

    Raises:
        DataError: There is no row; rows name no arm, have no value, or propensities outside (0, 1].
    """
    arm, policy = (F.col(name).cast("string") for name in (columns.treatment, columns.policy))
    p, arms = F.col(columns.propensity).cast("double"), list(layout.arms)
    values = {name: F.col(name).cast("double") for name in layout.columns}
    use = f"use {', '.join(arms)}"
    faults: dict[str, tuple[str, Column, str]] = {
        "arm": (columns.treatment, arm.isin(arms), f"is no arm in {{n:,}} rows: {use}"),
        "policy": (columns.policy, policy.isin(arms), f"is no arm in {{n:,}} rows: {use}"),
        "p": (
            columns.propensity,
            (p > 1 / LARGEST) & (p <= 1),
            "is outside (0, 1] in {n:,} rows: log the probability of the arm",
        ),
    }
    for place, (name, value) in enumerate(values.items()):
        finite = F.abs(value) < F.lit(float("inf"))  # NaN is larger than any number
        faults[f"v{place}"] = (name, finite, "is no number in {n:,} rows: fill or drop them")
        faults[f"size{place}"] = (name, F.abs(value) < LARGEST, TOO_LARGE)
    if columns.cluster:
        there = F.col(columns.cluster).isNotNull()
        faults["cluster"] = (columns.cluster, there, "is missing in {n:,} rows: fill or drop them")
    counts = [F.count_if(~F.coalesce(right, F.lit(False))).alias(key) for key, (_, right, _) in faults.items()]
    (counted,) = frame.agg(F.count(F.lit(1)).alias("rows"), *counts).collect()
    if not counted["rows"]:
        raise DataError(NO_ROW)
    for key, (name, _, sentence) in faults.items():
        if counted[key]:
            raise DataError(f"column {name!r} {sentence.format(n=counted[key])}")
    numbers = [value.alias(f"v{place}") for place, value in enumerate(values.values())]
    cluster = F.col(columns.cluster).cast("string") if columns.cluster else F.lit("")
    units = frame.select(arm.alias("arm"), policy.alias("policy"), p.alias("p"), *numbers, cluster.alias(_CLUSTER))
    if not layout.clustered:
        return _added_terms(mapped(units, partial(_unit_term_sums, layout), _POLICY_SUMS), layout)
    names = [f"t{place}" for place in range(len(arms) * layout.width)]
    schema = ", ".join([f"{_CLUSTER} string", *(f"{name} double" for name in names)])
    terms = mapped_frame(units, partial(_unit_terms, layout), schema)
    clusters = terms.groupBy(_CLUSTER).agg(*(F.sum(name).alias(name) for name in names)).drop(_CLUSTER)
    return _added_terms(mapped(clusters, partial(_cluster_term_sums, layout), _POLICY_SUMS), layout)


def _terms_of(layout: BacktestLayout, batch: pa.RecordBatch) -> np.ndarray:
    arms = pa.array(layout.arms)
    arm, policy = (pc.index_in(batch[name], arms).to_numpy(zero_copy_only=False) for name in ("arm", "policy"))
    values = np.column_stack([batch[f"v{k}"].to_numpy(zero_copy_only=False) for k in range(len(layout.columns))])
    return backtest_terms(layout, arm, policy, batch["p"].to_numpy(zero_copy_only=False), values)


def _unit_terms(layout: BacktestLayout, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: each unit's terms, flat, with its cluster."""
    for batch in filter(len, batches):
        terms = _terms_of(layout, batch).reshape(len(batch), -1)
        columns = {f"t{place}": pa.array(column) for place, column in enumerate(terms.T)}
        yield pa.RecordBatch.from_pydict({_CLUSTER: batch[_CLUSTER], **columns})


def _unit_term_sums(layout: BacktestLayout, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: moments of its units' terms."""
    yield from _term_sums(_terms_of(layout, batch) for batch in filter(len, batches))


def _cluster_term_sums(layout: BacktestLayout, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: moments of its clusters' terms."""
    width = len(layout.arms) * layout.width
    flat = (
        np.column_stack([batch[f"t{k}"].to_numpy(zero_copy_only=False) for k in range(width)])
        for batch in filter(len, batches)
    )
    yield from _term_sums(terms.reshape(len(terms), len(layout.arms), layout.width) for terms in flat)


def _term_sums(parts: Iterable[np.ndarray]) -> Iterator[pa.RecordBatch]:
    total: CrossMoments | None = None
    for terms in parts:
        moments = term_moments(terms)
        total = moments if total is None else total + moments
    if total is not None:
        rows = [
            (k, float(total.n[k]), total.mean[k].tobytes(), total.products[k].tobytes()) for k in range(len(total.n))
        ]
        types = (pa.int32(), pa.float64(), pa.binary(), pa.binary())
        arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, ["place", "n", "mean", "products"])


def _added_terms(parts: pa.Table, layout: BacktestLayout) -> CrossMoments:
    k, width = len(layout.arms), layout.width
    total = CrossMoments(np.zeros(k), np.zeros((k, width)), np.zeros((k, width, width)))
    cells = [total[place] for place in range(k)]
    for row in parts.to_pylist():
        mean, products = (np.frombuffer(row[name], np.float64) for name in ("mean", "products"))
        cells[row["place"]] += CrossMoments(np.array(row["n"]), mean, products.reshape(width, width))
    return CrossMoments(*(np.stack([getattr(one, part) for one in cells]) for part in _PARTS))


# --------------------------------------------------------------------------------------------------------------------
# Slices of a canary.


def in_canary_slices(rows: DataFrame, design: Experiment, unit: str = UNIT) -> DataFrame:
    """Add the column `slice`, champion or challenger, and leave out the rows of other units.

    Args:
        rows: with a column of the unit's id.
        design: `canary.canary_design`.
        unit: Name of that column.

    Returns:
        The rows in either slice.
    """
    arm = F.expr(assignment_sql(design, AssignmentColumns(unit=unit), "spark").treatment)
    return rows.withColumn("slice", arm).where(F.col("slice").isin(CHAMPION_SLICE, CHALLENGER_SLICE))


def slice_sums(
    rows: DataFrame, values: Mapping[str, tuple[Column, Column]]
) -> tuple[tuple[int, int], dict[str, tuple[SliceSums, SliceSums]]]:
    """Add up both slices in one pass.

    Args:
        rows: One row a unit, from `in_canary_slices`.
        values: {check: (value of a unit, such as its failed requests; what it is of, such as its requests)}. Units of
            which the value is null, or of nothing, do not count.

    Returns:
        (rows of the champion's slice and of the challenger's, {check: sums of both}).
    """
    sums = [F.count(F.lit(1)).alias("rows")]
    for check, (value, per) in values.items():
        counts = value.isNotNull() & (per > 0)
        v, p = (F.when(counts, one.cast("double")) for one in (value, per))
        totals = {"value": v, "per": p, "vv": v * v, "vp": v * p, "pp": p * p}
        sums += [F.count(v).alias(f"units {check}"), F.count_if(v != 0).alias(f"events {check}")]
        sums += [F.sum(column).alias(f"{name} {check}") for name, column in totals.items()]
    summed = [row.asDict() for row in rows.groupBy("slice").agg(*sums).collect()]
    of_check = {check: sums_by_slice(_of_check(row, check) for row in summed) for check in values}
    sizes = {row["slice"]: row["rows"] for row in summed}
    return (sizes.get(CHAMPION_SLICE, 0), sizes.get(CHALLENGER_SLICE, 0)), of_check


def _of_check(row: Mapping[str, Any], check: str) -> dict[str, Any]:
    return {
        name.removesuffix(f" {check}"): value
        for name, value in row.items()
        if name == "slice" or name.endswith(f" {check}")
    }


_FINAL = ("delivered", "bounced", "failed", "suppressed")  # statuses of a send that nothing comes after


@dataclass(frozen=True)
class CanarySlices:
    """Both slices of a canary, and when they are read.

    config    of the campaign
    design    `canary.canary_design`
    versions  of the model: the champion's and the challenger's
    since     when its slices came into force: from then on requests count (UTC)
    now       what was known by then counts (UTC)
    """

    config: Config
    design: Experiment
    versions: tuple[str, str]
    since: datetime
    now: datetime

    def evidence(
        self, planned: DataFrame, plans: Mapping[str, datetime], tables: Mapping[str, DataFrame]
    ) -> CanaryEvidence:
        """Add up what happened in both slices; plan, outcomes, deliveries and consent are read in one query, each once.

        Args:
            planned: Rows of gold.policy_decisions of the canary's plans.
            plans: {run: since when it holds}.
            tables: outcomes, deliveries, consent (statements on the campaign's purpose) and requests, as bronze and
                `monitoring.requests` have them; one that is not there is not compared by.

        Returns:
            The evidence.

        Raises:
            ConfigError: Requests do not say whose they are.
        """
        rows, values = self._units(planned, plans), {}
        missing: dict[str, str] = {}
        readers = {"outcome": ("outcomes", self._outcomes), "delivery": ("deliveries", self._deliveries)}
        for check, (name, read) in {**readers, "opt_outs": ("consent", self._opt_outs)}.items():
            if name in tables:
                rows = read(rows, tables[name])
                values[check] = (F.col(check), F.lit(1))
            else:
                missing[check] = f"a table of {name} is not there"
        sizes, sums = slice_sums(rows, values)
        requests: Any = "the table of monitoring.requests is not there"
        if "requests" in tables:
            requests = self._requests(tables["requests"])
        if isinstance(requests, str):
            missing |= dict.fromkeys(("errors", "latency"), requests)
        else:
            sums |= requests
        return CanaryEvidence(sums, sizes, self.config.roles.direction == "decrease", missing)

    def _units(self, planned: DataFrame, plans: Mapping[str, datetime]) -> DataFrame:
        """Units of both slices with the level of the first plan that they were in, and since when it holds."""
        since = F.lit(None).cast("timestamp")
        for run, at in plans.items():
            since = F.when(F.col(RUN_ID) == run, instant(at)).otherwise(since)
        first = planned.groupBy(UNIT).agg(F.min(F.struct(since.alias("assigned_at"), TREATMENT)).alias("first"))
        units = in_canary_slices(first.select(UNIT, "first.*"), self.design)
        return units.withColumn(CAMPAIGN, F.lit(self.config.campaign))

    def _outcomes(self, units: DataFrame, outcomes: DataFrame) -> DataFrame:
        """Add `outcome`, null where the labels of a unit are not mature."""
        config = self.config
        mine = outcomes.where(F.col(CAMPAIGN) == config.campaign)
        assigned = units.withColumn(PROPENSITY, F.lit(None).cast("double"))
        labels = label_table(assigned, mine, config.outcomes, config.labels, self.now)
        label = F.when(F.col("mature"), F.col("outcomes")[config.roles.outcome])
        return in_canary_slices(labels, self.design).withColumn("outcome", label)

    def _deliveries(self, units: DataFrame, deliveries: DataFrame) -> DataFrame:
        """Add `delivery`: 1 where no send reached the unit, null where none has ended or it gets none."""
        mine = deliveries.where((F.col(CAMPAIGN) == self.config.campaign) & F.col("status").isin(*_FINAL))
        sent = F.max(F.when(F.col("status") == "delivered", F.col("delivered_at")))
        each = self._known(mine).groupBy(UNIT).agg(F.max("delivered_at").alias("ended"), sent.alias("reached"))
        treated = (F.col(TREATMENT) != self.config.roles.control) & (F.col("ended") >= F.col("assigned_at"))
        lost = F.when(F.col("reached") >= F.col("assigned_at"), 0).otherwise(1)
        return units.join(each, UNIT, "left").withColumn("delivery", F.when(treated, lost))

    def _opt_outs(self, units: DataFrame, consent: DataFrame) -> DataFrame:
        """Add `opt_outs`: 1 where the unit has withdrawn since, else 0."""
        each = self._known(consent).where(~F.col("granted")).groupBy(UNIT).agg(F.max("changed_at").alias("gone"))
        gone = F.when(F.col("gone") >= F.col("assigned_at"), 1).otherwise(0)
        return units.join(each, UNIT, "left").withColumn("opt_outs", gone)

    def _known(self, rows: DataFrame) -> DataFrame:
        return rows.where(F.col("known_at") <= instant(self.now))

    def _requests(self, requests: DataFrame) -> dict[str, tuple[SliceSums, SliceSums]] | str:
        """Requests of each unit since the slices are in force, of them those that failed and those that were slow.

        Where the log has the version that answered, both slices count from the challenger's first answer on, for which
        it is read once before. Requests of the challenger's slice that the champion answers instead were lost by the
        challenger; of each unit so many more as failures of the challenger are not in the log themselves. Requests that
        any other version answered do not count; one without a version, as when none could answer, does. A sentence
        where nobody sends requests to the challenger.
        """
        conf, canary = self.config.monitoring.requests, self.config.canary
        assert conf is not None
        if canary.unit not in requests.columns:
            raise ConfigError(
                f"table {conf.table} has no column {canary.unit!r} with the unit of a request, by which it belongs to "
                "a slice: name the column in canary.unit"
            )
        time = F.col(conf.time).cast("timestamp")
        since = requests.where((time >= instant(self.since)) & (time <= instant(self.now)))
        rows = in_canary_slices(since, self.design, canary.unit)
        own, instead = F.lit(True), F.lit(False)
        if conf.version is not None:
            champion, challenger = self.versions
            version, tried = F.col(conf.version).cast("string"), F.col("slice") == CHALLENGER_SLICE
            first = F.min(F.when(version == challenger, F.unix_micros(time)))
            by_champion, began = rows.where(tried).agg(F.count_if(version == champion), first).collect()[0]
            if by_champion and began is None:
                return f"version {champion} answers the requests of both slices: the plan is on trial, not the service"
            rows = rows if began is None else rows.where(F.unix_micros(time) >= began)
            own = version.isNull() | (version == F.when(tried, challenger).otherwise(champion))
            instead = tried & version.eqNullSafe(champion)
        failed = own & F.coalesce(F.expr(conf.failed).cast("boolean"), F.lit(True))
        slow = own & F.coalesce(F.expr(conf.ms).cast("double") > canary.slow_ms, F.lit(False))
        counted = {"n": own, "failed": failed, "slow": slow, "instead": instead}
        each = rows.groupBy("slice", canary.unit).agg(*(F.count_if(one).alias(name) for name, one in counted.items()))
        lost = F.greatest(F.col("instead") - F.col("failed"), F.lit(0))
        values = {"errors": (F.col("failed") + lost, F.col("n") + lost), "latency": (F.col("slow"), F.col("n"))}
        return slice_sums(each, values)[1]
