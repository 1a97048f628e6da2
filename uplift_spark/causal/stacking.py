"""Forests on doubly robust scores: what each unit's outcome would have been under every level (R3.5).

A unit's score of a level has the mean of its outcome under that level, whatever decided the level it received, as long
as that is among the features (Robins, Rotnitzky & Zhao 1994). Stacked, a unit is a row for every level, with the score
as its outcome: leaf means of a level are then those of all units, not only of those who received it, and a forest is
grown and estimated on these rows as on those of a trial (the orthogonal forest's argument: Athey & Wager 2019; Nie &
Wager 2021). A unit's rows are one cluster: they fall into the same bucket and half-sample, so that honesty and errors
are those of units.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.causal.forest import Forest
from uplift_spark.causal.rows import check_columns
from uplift_spark.vocabulary import DataError, Roles

WHOLE = "_whole"  # column with the unit that a row is of
BETWEEN = "\x1f"  # unit and level in the id of a row


def stacked_roles(roles: Roles) -> Roles:
    """Roles of the rows that units with `roles.scores` are stacked to."""
    return replace(roles, scores=None, propensity=None, cluster=roles.cluster or WHOLE)


def stacked(table: pa.Table, roles: Roles) -> pa.Table:
    """One row per unit and level from a table with `roles.scores`, in the columns of `stacked_roles`.

    Raises DataError when scores are neither a map nor a struct, or are missing for some unit.
    """
    check_columns(dict.fromkeys(table.column_names, pa.null()), roles.columns, ())
    scores = table.column(roles.scores).combine_chunks()
    if scores.null_count:
        raise DataError(f"column {roles.scores!r} is null in {scores.null_count} rows: leave these units out")
    if pa.types.is_struct(scores.type):
        names = [scores.type.field(i).name for i in range(scores.type.num_fields)]
        parts = [_level(table, roles, pa.repeat(name, len(table)), pc.struct_field(scores, name)) for name in names]
        return pa.concat_tables(parts)
    if not pa.types.is_map(scores.type):
        raise DataError(f"column {roles.scores!r} has type {scores.type}: give a map or a struct from level to score")
    ends = scores.offsets.to_numpy()
    units = pa.array(np.repeat(np.arange(len(table)), np.diff(ends)))
    every = slice(ends[0], ends[-1])
    return _level(table.take(units), roles, scores.keys[every], scores.items[every])


def _level(table: pa.Table, roles: Roles, level: pa.Array, score: pa.Array) -> pa.Table:
    unit = table.column(roles.unit).cast(pa.string())
    columns = {name: table.column(name) for name in stacked_roles(roles).columns if name in table.column_names}
    columns |= {
        roles.unit: pc.binary_join_element_wise(unit, level.cast(pa.string()), BETWEEN),
        roles.treatment: level,
        roles.outcome: score,
    }
    return pa.table(columns if roles.cluster else {**columns, WHOLE: unit})


def as_given(forest: Forest, roles: Roles) -> Forest:
    """A forest of stacked rows under the roles of the units they are of, or back."""
    return replace(forest, plan=replace(forest.plan, roles=roles))
