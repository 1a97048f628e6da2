"""What estimators do with rows, whether a pandas or a Spark frame holds them: the verbs, and those of pandas frames.

`learners.spark.SparkRows` has the same verbs for Spark frames, and gives the same models, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from uplift_spark.errors import DataError
from uplift_spark.forest.encode import (
    check_columns,
    check_repeated,
    encode,
    encode_treatment,
    make_levels,
    repeated_rows,
    summarise,
)
from uplift_spark.forest.estimate import estimate_table
from uplift_spark.forest.forest import Forest, Model, check_beside, effect_table
from uplift_spark.forest.instrument import Instrumental, fit_instrumental
from uplift_spark.forest.refresh import refreshed_table
from uplift_spark.forest.shapley import shapley_table
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.learners.metalearners import Learned, LearnerParams, fit_learned
from uplift_spark.roles import LEFT, Levels, Roles
from uplift_spark.runtime import ProgressCallback

if TYPE_CHECKING:
    import pandas as pd


class FrameRows(Protocol):
    """Rows of a frame. Each verb raises as the function it calls; see `PandasRows`."""

    def fit_forest(self, roles: Roles, params: Params, progress: ProgressCallback) -> Forest:
        """Train a causal forest."""
        ...

    def fit_instrumental(
        self, roles: Roles, delivered: str, params: Params, progress: ProgressCallback
    ) -> Instrumental:
        """Train an instrumental forest."""
        ...

    def fit_learned(self, roles: Roles, params: LearnerParams, progress: ProgressCallback) -> Learned:
        """Train a meta-learner."""
        ...

    def estimate(self, forest: Forest, progress: ProgressCallback) -> Forest:
        """Fill the forest's trees with the sums of these rows alone."""
        ...

    def refresh(self, forest: Forest, half_life: float | None, day: str | None, progress: ProgressCallback) -> Forest:
        """Fill the forest's trees with the sums of these rows, without correcting for bias anew."""
        ...

    def effects(self, model: Model, keep: bool = False) -> Any:
        """Apply a model: a frame of the kind of this one, with a row per unit and treated level.

        With `keep` the frame's own columns come before the effects.
        """
        ...

    def shapley(self, forest: Forest) -> Any:
        """Explain a forest's effects: a frame of the kind of this one, with a row per unit and treated level."""
        ...

    def levels(self, roles: Roles) -> Levels:
        """Read the treatment levels off all rows; DataError where a unit has several, maybe of different levels."""
        ...

    def pair(self, roles: Roles, level: str) -> FrameRows:
        """Keep the rows of a level and of the control, or every unit's scores of these."""
        ...

    def without_delivery(self, model: Instrumental) -> FrameRows:
        """Add the column that the model's trees were grown on."""
        ...

    def in_memory(self, columns: Sequence[str]) -> pa.Table:
        """Bring columns of all rows into memory."""
        ...


@dataclass(frozen=True)
class PandasRows:
    """Rows of a pandas frame; see `FrameRows`. Names of columns that are no text are made text."""

    frame: pd.DataFrame

    def __post_init__(self) -> None:
        if any(not isinstance(name, str) for name in self.frame.columns):
            object.__setattr__(self, "frame", self.frame.set_axis(list(map(str, self.frame.columns)), axis=1))

    def fit_forest(self, roles: Roles, params: Params, progress: ProgressCallback) -> Forest:
        """See `forest.training.fit_table`."""
        return fit_table(self.in_memory(roles.columns), roles, params, progress)

    def fit_instrumental(
        self, roles: Roles, delivered: str, params: Params, progress: ProgressCallback
    ) -> Instrumental:
        """See `forest.instrument.fit_instrumental`."""
        table = self.in_memory(tuple(dict.fromkeys([*roles.columns, delivered])))
        return fit_instrumental(table, roles, delivered, params, progress)

    def fit_learned(self, roles: Roles, params: LearnerParams, progress: ProgressCallback) -> Learned:
        """See `learners.metalearners.fit_learned`."""
        return fit_learned(self.in_memory(roles.columns), roles, params, progress)

    def estimate(self, forest: Forest, progress: ProgressCallback) -> Forest:
        """See `forest.estimate.estimate_table`."""
        return estimate_table(self.in_memory(forest.roles.columns), forest)

    def refresh(self, forest: Forest, half_life: float | None, day: str | None, progress: ProgressCallback) -> Forest:
        """See `forest.refresh.refreshed_table`."""
        columns = (*forest.roles.columns, *([] if day is None else [day]))
        return refreshed_table(self.in_memory(columns), forest, half_life, day)

    def effects(self, model: Model, keep: bool = False) -> pd.DataFrame:
        """See `forest.forest.effect_table`."""
        if keep:
            check_beside(self.frame.columns)
        columns = (model.roles.unit, *model.roles.features)
        effects = effect_table(model, self.in_memory(columns), os.cpu_count() or 1).to_pandas()
        if not keep:
            return effects
        own = self.frame.take(np.repeat(np.arange(len(self.frame)), len(model.levels.treated)))
        return own.assign(**{name: effects[name].to_numpy() for name in effects.columns if name != model.roles.unit})

    def shapley(self, forest: Forest) -> pd.DataFrame:
        """See `forest.shapley.shapley_table`."""
        table = self.in_memory((forest.roles.unit, *forest.roles.features))
        return shapley_table(forest, table, os.cpu_count() or 1).to_pandas()

    def levels(self, roles: Roles) -> Levels:
        """See `forest.encode.make_levels`."""
        rows = encode(self.in_memory(roles.columns), roles)
        levels = make_levels(summarise(rows), roles)[0]
        check_repeated(repeated_rows(rows.unit), roles.unit)
        return levels

    def pair(self, roles: Roles, level: str) -> PandasRows:
        """See `FrameRows.pair`."""
        names = (roles.control, level)
        if roles.scores:
            kept = self.frame.copy(deep=False)
            kept[roles.scores] = self.frame[roles.scores].map(lambda one: {name: one[name] for name in names})
            return PandasRows(kept)
        treatment = encode_treatment(self.in_memory((roles.treatment,)), roles.treatment)
        return PandasRows(self.frame[treatment.coded_by(names) >= 0])

    def without_delivery(self, model: Instrumental) -> PandasRows:
        """See `FrameRows.without_delivery`."""
        outcome, delivered = model.roles.outcome, model.delivered
        check_columns(dict.fromkeys(self.frame.columns, pa.null()), (outcome, delivered), ())
        kept = self.frame.copy(deep=False)
        kept[LEFT] = self.frame[outcome] - model.overall * self.frame[delivered]
        return PandasRows(kept)

    def in_memory(self, columns: Sequence[str]) -> pa.Table:
        """The columns as Arrow. Raises DataError for columns that are missing, there twice, or mix types."""
        if lost := [name for name in columns if name in self.frame.index.names and name not in self.frame.columns]:
            raise DataError(f"{lost[0]!r} is the frame's index, not a column: call frame.reset_index()")
        check_columns(dict.fromkeys(self.frame.columns, pa.null()), tuple(columns), ())
        some = self.frame[list(columns)]
        if twice := sorted({name for name in some.columns if list(some.columns).count(name) > 1}):
            raise DataError(f"the frame has several columns {', '.join(map(repr, twice))}: rename or drop all but one")
        sparse = {
            name: kind.subtype
            for name, kind in some.dtypes.items()
            if hasattr(kind, "subtype") and hasattr(kind, "fill_value")
        }
        try:
            return pa.Table.from_pandas(some.astype(sparse) if sparse else some, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            reason = "; ".join(map(str, error.args))
            if isinstance(error, pa.ArrowNotImplementedError):
                raise DataError(f"a column holds neither numbers nor text ({reason}): cast or drop it") from error
            raise DataError(f"a column mixes types ({reason}): cast it to one type") from error
