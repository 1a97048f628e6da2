"""Assignment on Spark frames: the SQL of `assignment`, after the checks that SQL cannot make."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, IntegralType, StringType

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import (
    EXPLORED,
    LEFT_OUT,
    PARTICIPATION,
    AssignmentColumns,
    Experiment,
    assignment_sql,
    participation,
)
from uplift_spark.roles import PROPENSITY, TREATMENT


def with_arms(frame: DataFrame, experiment: Experiment, columns: AssignmentColumns | None = None) -> DataFrame:
    """Add the arm of each unit, equal to that of `assignment.assign`.

    Args:
        frame: One row a unit; one pass over it checks ids, strata and decisions.
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
    arms = arms.withColumns({EXPLORED: F.expr(sql.explored), PROPENSITY: F.expr(sql.propensity)})
    return arms.withColumn(PARTICIPATION, _participation(experiment, columns))


def _participation(experiment: Experiment, columns: AssignmentColumns) -> Column:
    """Probability by design that a unit takes part: where arms are stopped it depends on the policy's decision."""
    explores = 1.0 if experiment.exploration is None else experiment.exploration
    still_open = explores * sum(experiment.arms[arm] for arm in experiment.open_arms)
    share = participation(experiment)
    if experiment.exploration is None or columns.decision is None:
        return F.lit(share * still_open)
    stopped = F.col(columns.decision).isin(list(experiment.stopped))
    return F.when(stopped, share * still_open).otherwise(share * (still_open + 1 - explores))


def _named(columns: AssignmentColumns) -> list[str]:
    parts = (columns.unit, columns.cluster, *columns.strata, columns.decision)
    return list(dict.fromkeys(name for name in parts if name))


def _check_types(frame: DataFrame, columns: AssignmentColumns) -> None:
    there = {name.lower() for name in frame.columns}
    clashes = sorted(there & {TREATMENT, LEFT_OUT, EXPLORED, PROPENSITY, PARTICIPATION})
    if clashes:
        raise DataError(f"column {clashes[0]!r} is there already: drop it, or leave assigned units as they are")
    for name in _named(columns):
        if name.lower() not in there:
            raise ConfigError(f"column {name!r} is not in the table: it has {', '.join(frame.columns[:30])}")
        kind = frame.schema[name].dataType
        whole = isinstance(kind, StringType | IntegralType) or (isinstance(kind, DecimalType) and kind.scale == 0)
        if not whole:
            kind_name = kind.simpleString()
            raise DataError(f"column {name!r} has type {kind_name}: ids must be text or integers; cast it to text")


def _check_rows(frame: DataFrame, experiment: Experiment, columns: AssignmentColumns) -> None:
    """Refuse rows that get no arm or a wrong one, named with their count."""
    unit = F.col(columns.unit)
    empty = {name: F.col(name).isNull() | (F.col(name).cast("string") == "") for name in _named(columns)}
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
