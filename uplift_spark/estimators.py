"""What Python users import: causal forests, meta-learners and instrumental forests over pandas or Spark frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from uplift_spark.config import Config, LearnerConf
from uplift_spark.errors import ConfigError
from uplift_spark.forest.forest import Forest, save_file
from uplift_spark.forest.instrument import Instrumental
from uplift_spark.forest.onnx import export_onnx
from uplift_spark.forest.shapley import shapley_values
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.learners.frames import FrameRows, PandasRows
from uplift_spark.learners.metalearners import AnyModel, Learned, LearnerParams, PerLevel, load_any
from uplift_spark.roles import DELIVERED, Levels, Roles
from uplift_spark.runtime import ProgressCallback, no_progress

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

    Frame = pd.DataFrame | DataFrame


def frame_rows(frame: Any) -> FrameRows:
    """What can be done with the rows of a pandas or a Spark frame; pyspark is imported for the latter alone."""
    # Classic and Connect frames are different classes; both have this method, and pandas frames have not.
    if not hasattr(frame, "mapInArrow"):
        return PandasRows(frame)
    from uplift_spark.learners.spark import SparkRows

    return SparkRows(frame)


@dataclass(frozen=True)
class UpliftModel:
    """A fitted model: a causal forest (`forest`), one for each level, or a meta-learner."""

    model: AnyModel

    @property
    def forest(self) -> Forest:
        """The causal forest; `forest.of(outcome)` is that of one outcome alone. Raises ConfigError if it is none."""
        if not isinstance(self.model, Forest):
            raise ConfigError(f"this needs a causal forest, not the model's {self.kind}: train a CausalForest")
        return self.model

    @property
    def kind(self) -> str:
        """What it is called in configurations and logs: forest, forest_per_level, instrumental_forest, dr_learner, …"""
        return self.model.kind

    @property
    def levels(self) -> Levels:
        """Treatment levels, control first."""
        return self.model.levels

    @property
    def roles(self) -> Roles:
        """The roles it was trained with."""
        return self.model.roles

    @property
    def manifest(self) -> dict[str, Any]:
        """Plan and training facts as plain JSON values."""
        return self.model.manifest

    def effect(self, frame: Frame, outcome: str | None = None) -> Any:
        """Effect of every treated level against control for every unit, with a 95 % interval.

        outcome: `roles.outcome` (None) or one of `roles.more_outcomes`, whose effects come from the same trees.
        Columns: the unit's, treatment, uplift, uplift_se, uplift_lower, uplift_upper (outcome units), low_support. One
        row per unit and treated level. A pandas frame gives a pandas frame, a Spark frame a lazy Spark frame.
        Raises DataError on a missing, retyped or infinite column, ConfigError on an outcome that was not trained.
        """
        model = self.model.of(self.roles.outcome if outcome is None else outcome)
        return frame_rows(frame).effects(model)

    def explain(self, frame: Frame, outcome: str | None = None) -> Any:
        """What each feature has to do with every unit's effect: Shapley values that add up to it.

        Columns: the unit's, treatment, uplift, base (what the model shows of a unit it knows nothing of), values (a
        list in the order of `roles.features`, outcome units): base + sum of values is uplift. One row per unit and
        treated level; pandas gives pandas, a Spark frame a lazy Spark frame. Raises as `effect`, and ConfigError for
        models whose effects are held monotone.
        """
        forest = self.forest.of(self.roles.outcome if outcome is None else outcome)
        return frame_rows(frame).shapley(forest)

    def to_onnx(self, level: str, path: str | Path | None = None, outcome: str | None = None) -> bytes:
        """The effect of one treated level as an ONNX file, for scoring without this package (extra `portable`).

        Inputs are the features by name, [n, 1] each, outputs uplift and low_support, [n]: those of `effect`, without
        intervals. For causal forests of levels; see `forest.onnx.export_onnx` for what it takes and raises.
        """
        return export_onnx(self.forest.of(self.roles.outcome if outcome is None else outcome), level, path)

    def at(self, doses: Sequence[float], partial: bool = False) -> UpliftModel:
        """The model telling effects of these doses against the control's or, partial, of one unit more of each.

        For models of doses that take any value (`roles.grid`); ConfigError for others.
        """
        return UpliftModel(self.forest.at(doses, partial))

    def estimate(self, frame: Frame, progress: ProgressCallback = no_progress) -> UpliftModel:
        """The same trees with leaf sums, bias correction and levels' shares from the rows of `frame` alone.

        With the rows it was trained on it is the same model, byte for byte; without some of them it is the model whose
        sums never saw these. Plain sums are a subtraction, but the correction of a row's outcome rests on all sums, so
        all rows are read once more. What shaped the trees stays: bins, splits, the baselines outcomes are centred by.
        A meta-learner is fitted anew. Raises DataError on bad rows, and when a level has none.
        """
        rows, model = frame_rows(frame), self.model
        if isinstance(model, Learned):
            return UpliftModel(rows.fit_learned(model.roles, model.params, progress))
        if isinstance(model, Instrumental):
            forest = rows.without_delivery(model).estimate(model.forest, progress)
            return UpliftModel(replace(model, forest=forest))
        if isinstance(model, PerLevel):
            forests = [rows.pair(model.roles, level).estimate(one, progress) for level, one in model.pairs]
            return UpliftModel(replace(model, forests=tuple(forests)))
        return UpliftModel(rows.estimate(model, progress))

    def refresh(
        self,
        frame: Frame,
        half_life: float | None = None,
        day: str | None = None,
        progress: ProgressCallback = no_progress,
    ) -> UpliftModel:
        """The same trees with sums of the rows of `frame`, old and new ones, in one pass that grows nothing.

        day        column of whole numbers that count days; with a half-life rows count 2^(-age / half_life)
        half_life  days; None: rows count alike

        Corrections for bias stay those of this model, so always refresh the model that was grown, not a refreshed one;
        `forest.refresh` says what that costs, `estimate` corrects anew. Raises DataError for rows that the forest
        cannot take, ConfigError for models that are no causal forest and for forests on scores.
        """
        return UpliftModel(frame_rows(frame).refresh(self.forest, half_life, day, progress))

    def to_bytes(self) -> bytes:
        """The model file's content; equal forests give equal bytes."""
        return self.model.to_bytes()

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: Arrow arrays and manifest, a SHA-256 at its end; no pickle."""
        save_file(path, self.to_bytes())


@dataclass(frozen=True)
class CausalForest(Params):
    """An honest causal forest for binary, ordered or unordered treatments.

    n_trees    trees, rounded up to a multiple of bag_size
    seed       same seed, rows and version: same bytes, whatever the partitioning
    min_leaf   smallest leaf while growing, in rows; None: by the signal in the data (`forest.defaults`)
    max_depth  deepest leaf; None: 20
    n_buckets  buckets the rows are split into by hash, at least 2; None: by the number of rows and the signal
    growth_buckets  buckets that shape a tree, the others estimating it; None: by the signal
    max_bins   bins per numeric feature, at most 254; None: by the number of rows
    mtry       features tried per node; None: all, then those with evidence
    min_gain   smallest gain of a split, in the outcome's sum of squares
    min_share  a child keeps at least this share of its parent's rows
    imbalance  a child keeps at least this share of the root's treatment scatter per unit
    criterion  "slope", "spline", "product" (several doses) or "one_hot" (arms): the basis in which effects are compared
               while trees grow, and from which those of doses are told; None or "auto": by the data, see `reason` in
               the model's manifest
    monotone   "increasing" or "decreasing": effects only rise, or fall, with the dose; None: freely
    bag_size   trees per little bag, the groups of trees that share a half-sample
    centre     take what the features explain of the outcome out of it first, where that is worth it
    debias     correct leaf means by the forest's own residuals: less bias of wide leaves, somewhat more variance
    per_level  train one binary forest for each treated level instead, on its units and the control's
    """

    per_level: bool = False

    def fit(self, frame: Frame, roles: Roles, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit; `progress` is told the progress. Raises DataError naming column, count and fix."""
        rows = frame_rows(frame)
        return UpliftModel(
            self._fit_each(rows, roles, progress) if self.per_level else rows.fit_forest(roles, self, progress)
        )

    def _fit_each(self, rows: FrameRows, roles: Roles, progress: ProgressCallback) -> PerLevel:
        if roles.grid:
            raise ConfigError("per_level trains a forest for each level, and roles.grid has none: drop one of them")
        levels, forests = rows.levels(replace(roles, scores=None)), []
        for level in levels.treated:
            progress(f"a forest of {level} alone")
            forests.append(rows.pair(roles, level).fit_forest(replace(roles, dose=None), self, progress))
        return PerLevel(tuple(forests), levels)


@dataclass(frozen=True)
class InstrumentalForest(Params):
    """Effects on compliers, where not everybody who was assigned a level was delivered it: assignment is the
    instrument for delivery. Arguments are those of `CausalForest`, which tells the effect of assignment itself."""

    def fit(self, frame: Frame, roles: Roles, delivered: str, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit: `roles` of assignment and outcome, `delivered` a number, 0 where nothing was.

        The model's effects are what a level does to units that take it because they are assigned it; NaN, and of low
        support, where hardly anybody near complies. Raises as `forest.instrument.fit_instrumental`.
        """
        return UpliftModel(frame_rows(frame).fit_instrumental(roles, delivered, self, progress))


@dataclass(frozen=True)
class MetaLearner(LearnerParams):
    """A learner of the field's catalogue, put together from boosted trees: T, S, X, R, DR, class transformation.

    kind        "t_learner", "s_learner", "x_learner", "r_learner", "dr_learner" or "class_transformation"
    replicates  resamples behind the intervals, which miss what the learner smooths away; 0: no intervals
    rows        of each arm to learn from, at most, chosen by hash
    folds       of cross-fitted nuisances, for the learners that have any
    seed        same seed and rows: same effects, whatever the partitioning
    """

    def fit(self, frame: Frame, roles: Roles, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit, as `CausalForest.fit`; where odds of levels differ between units, or units have
        doubly robust scores, they are cross-fitted. Raises DataError, ConfigError
        as `learners.metalearners.fit_learned`."""
        return UpliftModel(frame_rows(frame).fit_learned(roles, self, progress))


def load_model(source: str | Path | bytes) -> UpliftModel:
    """Read a model file or its bytes; ModelFileError if it is truncated, edited or no model. Executes nothing."""
    return UpliftModel(load_any(source))


# --------------------------------------------------------------------------------------------------------------------
# What jobs train, and train again: parameters name the kind of learner and hold its arguments.


def params_of(config: Config, learner: LearnerConf | None = None) -> dict[str, Any]:
    """Parameters of a learner section, by default the campaign's own: its kind, and arguments of the estimator."""
    learner = learner or config.learner
    if learner.kind in ("forest", "forest_per_level"):
        return {**vars(config.forest), "seed": config.seed, "kind": learner.kind}
    if learner.kind == "instrumental_forest":
        return {**vars(config.forest), "seed": config.seed, "kind": learner.kind, "delivered": DELIVERED}
    return {**vars(learner), "seed": config.seed}


def train_model(params: Mapping[str, Any], frame: Frame, roles: Roles, progress: ProgressCallback) -> UpliftModel:
    """Train with parameters such as `params_of` gives. Raises as the `fit` of the estimator."""
    arguments = dict(params)
    kind = arguments.pop("kind")
    if kind == "instrumental_forest":
        delivered = arguments.pop("delivered")
        return InstrumentalForest(**arguments).fit(frame, roles, delivered, progress)
    if kind in ("forest", "forest_per_level"):
        return CausalForest(**arguments, per_level=kind == "forest_per_level").fit(frame, roles, progress)
    return MetaLearner(kind, **arguments).fit(frame, roles, progress)


# --------------------------------------------------------------------------------------------------------------------
# Compile the kernels ahead of first use: `python -m uplift_spark.estimators`, part of `make setup`.
# Half a minute that the first training, and every Spark worker of it at once, would otherwise spend.


def compile_kernels() -> None:
    """Train and apply a tiny forest with every kind of column, so that each kernel is compiled and kept."""
    n = 400
    rng = np.random.default_rng(0)
    rows = pa.table(
        {
            "unit": np.arange(n),
            "arm": rng.choice(["none", "a", "b"], n),
            "y": rng.normal(size=n),
            "number": rng.normal(size=n),
            "text": rng.choice(["x", "y", "z"], n),
        }
    )
    roles = Roles("unit", "arm", "y", ("number", "text"), control="none")
    forest = fit_table(rows, roles, Params(n_trees=8, n_buckets=4))
    forest.effect_arrays(rows)
    shapley_values(forest, rows)


if __name__ == "__main__":
    compile_kernels()
