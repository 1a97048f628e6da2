"""What Python users import: causal forests, meta-learners and instrumental forests over pandas or Spark frames.

The examples share this trial, in which one unit in two was offered a discount, and `model`:

    >>> import pandas as pd
    >>> from uplift_spark import CausalForest, InstrumentalForest, MetaLearner, Roles, average_effects, load_model
    >>> rng = np.random.default_rng(7)
    >>> offered, recency = rng.integers(0, 2, 2000), rng.uniform(0, 12, 2000).round()
    >>> frame = pd.DataFrame({"unit": range(2000), "arm": np.where(offered, "5%", "none"), "recency": recency})
    >>> frame["spend"] = 10 + offered * np.where(recency < 6, 4, 0) + rng.normal(size=2000)
    >>> frame["redeemed"] = offered * rng.integers(0, 2, 2000)
    >>> frame["age"] = rng.integers(18, 80, 2000)
    >>> roles = Roles("unit", "arm", "spend", ("recency", "age"), control="none")
    >>> train, rest = frame[:1500], frame[1500:]
    >>> model = CausalForest(n_trees=20, seed=7).fit(train, roles)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from uplift_spark.config import Config, Economics, LearnerConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import Evaluation, EvaluationSpec, curve_table, evaluate_rows, metric_table
from uplift_spark.evaluation.pictures import calibration_picture, decile_picture, qini_picture
from uplift_spark.forest.encode import encode_treatment
from uplift_spark.forest.explain import heterogeneity_table, projection_table, variable_importance
from uplift_spark.forest.forest import Forest, model_line
from uplift_spark.forest.instrument import Instrumental
from uplift_spark.forest.modelfile import save_file
from uplift_spark.forest.onnx import export_onnx
from uplift_spark.forest.shapley import shapley_values
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.learners.average_effects import average_effects_table
from uplift_spark.learners.frames import FrameRows, PandasRows
from uplift_spark.learners.metalearners import AnyModel, Learned, LearnerParams, PerLevel, load_any
from uplift_spark.roles import DELIVERED, PROPENSITY, TREATMENT, UNIT, Levels, Roles, crossed
from uplift_spark.runtime import ProgressCallback, no_progress

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from pyspark.sql import DataFrame

    Frame = pd.DataFrame | DataFrame


def frame_rows(frame: Any) -> FrameRows:
    """What can be done with the rows of a pandas or a Spark frame; pyspark is imported for the latter alone."""
    # Classic and Connect frames are different classes; both have this method, and pandas frames have not.
    if not hasattr(frame, "mapInArrow"):
        return PandasRows(frame)
    from uplift_spark.learners.spark import SparkRows

    return SparkRows(frame)


@dataclass(frozen=True, repr=False)
class UpliftModel:
    """A fitted model: a causal forest (`forest`), one for each level, an instrumental forest or a meta-learner.

    Example:
        >>> model
        <UpliftModel forest: effects of 5% against none on spend, by 2 features>
    """

    model: AnyModel

    def __repr__(self) -> str:
        return model_line(self.model, f"UpliftModel {self.kind}")

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

    def effect(self, frame: Frame, outcome: str | None = None, keep: bool = False) -> Any:
        """Predict the effect of every treated level against control for every unit, with a 95 % interval.

        Args:
            frame: pandas or Spark frame with the unit's column and the features.
            outcome: `roles.outcome` (None) or one of `roles.more_outcomes`, whose effects come from the same trees.
            keep: whether the frame's own columns come along, each row beside its effects. Nothing needs to be joined
                then, which goes wrong where ids are made anew at each reading (`monotonically_increasing_id`).

        Returns:
            A frame of the same kind, of Spark a lazy one, with one row per unit and treated level: the unit's column,
            `treatment` (text), `uplift`, `uplift_se`, `uplift_lower`, `uplift_upper` (float64, outcome units) and
            `low_support` (bool): too few units like this one have the level or the control, these are as good as never
            received near it, or they have fewer than 30 rows or 10 events in all (see `facts` of the manifest).
            With `keep`, all columns of the frame, then these; a pandas frame keeps its index.

        Raises:
            DataError: a column is missing, has another type or is infinite; a Spark frame's ids are made anew at each
                reading; with `keep`, the frame has a column named as one of these.
            ConfigError: the model was not trained for the outcome.

        References:
            Athey, Tibshirani & Wager (2019); Sexton & Laake (2009) for errors from little bags.

        Example:
            >>> effects = model.effect(rest)
            >>> effects.columns.tolist()
            ['unit', 'treatment', 'uplift', 'uplift_se', 'uplift_lower', 'uplift_upper', 'low_support']
            >>> (effects["uplift"].groupby(rest["recency"].to_numpy() < 6).mean() > 2).tolist()
            [False, True]
            >>> model.effect(rest, keep=True)[["unit", "recency", "treatment", "uplift"]].shape
            (500, 4)
        """
        return frame_rows(frame).effects(self._of(outcome), keep)

    def explain(self, frame: Frame, outcome: str | None = None) -> Any:
        """Tell what each feature has to do with every unit's effect: Shapley values that add up to it.

        Args:
            frame: as for `effect`.
            outcome: as for `effect`.

        Returns:
            A frame of the same kind, with one row per unit and treated level: the unit's column, `treatment`, `uplift`,
            `base` (what the model shows of a unit it knows nothing of) and `values` (a list in the order of
            `roles.features`), float64 in outcome units. `base` plus the sum of `values` is `uplift`.

        Raises:
            DataError: as `effect`.
            ConfigError: the model is no causal forest, or its effects are held monotone.

        References:
            Lundberg et al. (2020), TreeSHAP.

        Example:
            >>> one = model.explain(rest).iloc[0]
            >>> bool(abs(one["base"] + sum(one["values"]) - one["uplift"]) < 1e-9)
            True
        """
        return frame_rows(frame).shapley(self.forest.of(self.roles.outcome if outcome is None else outcome))

    def importance(self) -> pd.Series:
        """Count how much of a causal forest's upper splits each feature has.

        It says what trees looked for effects by, not that effects differ by it: `heterogeneity_test` and
        `best_linear_projection` test that.

        Returns:
            float64 share by feature, largest first; adds to 1, all zeros for a forest without any split.

        Raises:
            ConfigError: the model is no causal forest.

        References:
            `variable_importance` of grf, with splits weighed by rows.

        Example:
            >>> model.importance().index[0]
            'recency'
        """
        import pandas as pd

        shares = pd.Series(variable_importance(self.forest), name="importance", dtype="float64")
        return shares.sort_values(ascending=False, kind="stable")

    def heterogeneity_test(self, frame: Frame, outcome: str | None = None) -> pd.DataFrame:
        """Test on new rows whether the predicted effects tell units apart.

        Args:
            frame: rows that training never saw, with every column of the roles; those of a Spark frame are brought
                into memory.
            outcome: as for `effect`.

        Returns:
            One row per treated level: `mean` and `mean_error` (coefficient of the mean prediction: 1 if the average is
            right), `slope` and `slope_error` (of prediction less mean: 1 if differences are right, 0 if predictions
            tell units apart no better than chance), `t`, and the one-sided `p_value` of a slope of 0; float64.

        Raises:
            ConfigError: effects are those of doses that take any value, or those on compliers.
            DataError: values are missing or infinite, or the model lacks a level.

        References:
            Chernozhukov, Demirer, Duflo & Fernández-Val (2018); `test_calibration` of grf.

        Example:
            >>> bool(model.heterogeneity_test(rest)["p_value"][0] < 0.001)
            True
        """
        model = self._of(outcome)
        table = frame_rows(frame).in_memory(model.roles.columns)
        return heterogeneity_table(model, table, os.cpu_count() or 1).to_pandas()

    def best_linear_projection(
        self, frame: Frame, features: Sequence[str] | None = None, outcome: str | None = None
    ) -> pd.DataFrame:
        """Summarise who gains by the straight line in some features that is closest to the effects.

        Only scores of the rows enter, not the model's predictions, so it holds whatever the model missed.

        Args:
            frame: as for `heterogeneity_test`; rows of training will do, too.
            features: numeric features of the model, by default all of them.
            outcome: as for `effect`.

        Returns:
            One row per treated level and coefficient: `treatment`, `feature` ("intercept" first), `estimate`, `error`,
            `lower`, `upper` (95 %, outcome units per unit of the feature), `t`, two-sided `p_value`, and
            `joint_p_value` of all slopes of the level being zero; float64.

        Raises:
            ConfigError: as `heterogeneity_test`, and for features that are not numeric.
            DataError: as `heterogeneity_test`, and for features that depend on each other.

        References:
            Semenova & Chernozhukov (2021); HC3 errors of MacKinnon & White (1985), CR3 of Bell & McCaffrey (2002).

        Example:
            >>> line = model.best_linear_projection(frame, ["recency"]).set_index("feature")
            >>> bool(line.loc["recency", "upper"] < 0)
            True
        """
        model = self._of(outcome)
        return projection_table(model, frame_rows(frame).in_memory(model.roles.columns), features).to_pandas()

    def metrics(self, frame: Frame, outcome: str | None = None) -> pd.DataFrame:
        """Measure on new rows how well the model ranks units: Qini, AUUC and the rest, with 95 % intervals.

        Args:
            frame: rows that training never saw, one per unit, with every column of the roles; those of a Spark frame
                are brought into memory.
            outcome: as for `effect`.

        Returns:
            One row per treated level and metric: `outcome`, `treatment`, `metric` (ate, auuc, qini, autoc, …), `value`,
            `lower`, `upper` (float64, outcome units per unit of the population): the rows of gold.uplift_metrics.

        Raises:
            DataError: rows lack the control or a column, or values are not finite.
            ConfigError: effects are those of doses that take any value, or the roles name scores and no propensity.

        References:
            Radcliffe (2007) for Qini; Yadlowsky et al. (2025) for AUTOC; `stats.curves` defines each.

        Example:
            >>> sorted(model.metrics(rest)["metric"])[:3]
            ['ate', 'autoc', 'auuc']
        """
        return metric_table(self._evaluated(frame, outcome))

    def qini(self, frame: Frame, outcome: str | None = None) -> pd.DataFrame:
        """Measure on new rows what ranking by the model gains over treating at random, with 95 % intervals.

        Args:
            frame: as for `metrics`.
            outcome: as for `effect`.

        Returns:
            One row per treated level: `outcome`, `treatment`, `metric` ("qini"), `value`, `lower`, `upper`: the area
            between uplift curve and random line, in outcome units per unit of the population; 0 for a ranking at
            random, above 0 for one that helps, also where less of the outcome is better (`Roles(direction=)`).

        Raises:
            DataError: as `metrics`.
            ConfigError: as `metrics`.

        References:
            Radcliffe (2007).

        Example:
            >>> bool(model.qini(rest)["lower"][0] > 0)
            True
        """
        rows = self.metrics(frame, outcome)
        return rows[rows["metric"] == "qini"].reset_index(drop=True)

    def lift(
        self,
        frame: Frame,
        outcome: str | None = None,
        segments: Sequence[str] = (),
        value: float | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> pd.DataFrame:
        """Compare on new rows what treatment brought by decile of the prediction and by segment: a lift table.

        Args:
            frame: as for `metrics`; with the columns of `segments`, too.
            outcome: as for `effect`.
            segments: columns to cut by, and crossings of them, as in "region x device"; numbers of many values are cut
                into quarters.
            value: money that one unit of the outcome is worth; where less of it is better, that one unit less is worth.
            cost: {level: money of treating one unit}.

        Returns:
            Rows of gold.lift_table: `outcome`, `treatment`, `cut` ("all", "decile" or "segment:<name>"), `bucket`
            (decile "1" has the best predictions), `n`, `n_treated`, `n_control`, means, `predicted_uplift`, `uplift`
            with its 95 % interval, money where value and cost are known, `low_sample` and so on; see
            `evaluation.lift_tables`.

        Raises:
            DataError: as `metrics`; a segment has too many values.
            ConfigError: as `metrics`.

        Example:
            >>> lift = model.lift(rest)
            >>> lift["cut"].value_counts().to_dict()
            {'decile': 10, 'all': 1}
            >>> bool(lift["uplift_lower"][0] > 1)
            True
        """
        named = self.roles.outcome if outcome is None else outcome
        economics = Economics({} if value is None else {named: value}, dict(cost or {}))
        return lift_table(self._evaluated(frame, outcome, tuple(segments)), economics)

    @property
    def plot(self) -> ModelPlots:
        """Pictures of the model on new rows: `.qini(frame)`, `.deciles(frame)`, `.calibration(frame)`."""
        return ModelPlots(self)

    def _evaluated(self, frame: Frame, outcome: str | None, segments: tuple[str, ...] = ()) -> Evaluation:
        """Sums of new rows under this model's effects."""
        roles = self._of(outcome).roles
        if roles.grid:
            raise ConfigError("lift and metrics compare levels, and roles.grid has none: see heterogeneity_test")
        if roles.scores and not roles.propensity:
            raise ConfigError("this was no trial: name roles.propensity, so that units count by how likely theirs was")
        extra = dict.fromkeys([name for segment in segments for name in crossed(segment)])
        extra |= {roles.cluster: None} if roles.cluster else {}
        columns = dict.fromkeys([*roles.columns, *extra])
        table = frame_rows(frame).in_memory(tuple(columns))
        rows, codes = table.to_pandas(), encode_treatment(table, roles.treatment).coded_by(self.levels.names)
        if strangers := int((codes < 0).sum()):
            names = ", ".join(self.levels.names)
            raise DataError(f"column {roles.treatment!r} holds none of {names} in {strangers:,} rows: leave them out")
        holdout = rows[[*dict.fromkeys([roles.outcome, *extra])]].assign(**{
            UNIT: rows[roles.unit],
            TREATMENT: np.array(self.levels.names)[codes],
            PROPENSITY: rows[roles.propensity] if roles.propensity else np.nan,
        })  # fmt: skip
        effects = frame_rows(rows).effects(self._of(outcome)).rename(columns={roles.unit: UNIT})
        order, control = self.levels.treated, self.levels.control
        spec = EvaluationSpec(
            control, (roles.outcome,), segments, order=order, table="the frame", cluster=roles.cluster,
            direction=roles.direction,
        )  # fmt: skip
        return evaluate_rows(holdout, effects, spec)

    def to_onnx(self, level: str, path: str | Path | None = None, outcome: str | None = None) -> bytes:
        """Write the effect of one treated level as an ONNX file, for scoring without this package (extra `portable`).

        Args:
            level: the treated level.
            path: file to write; None writes none.
            outcome: as for `effect`.

        Returns:
            The file's content. Inputs are the features by name, [n, 1] each; outputs `uplift` and `low_support`, [n]:
            those of `effect`, without intervals.

        Raises:
            ConfigError: the model is no causal forest of levels; see `forest.onnx.export_onnx` for the rest.

        Example:
            >>> len(model.to_onnx("5%")) > 1000
            True
        """
        return export_onnx(self.forest.of(self.roles.outcome if outcome is None else outcome), level, path)

    def at(self, doses: Sequence[float], partial: bool = False) -> UpliftModel:
        """Read other doses off a model of doses that take any value (`roles.grid`).

        Args:
            doses: those whose effects against the control's are wanted.
            partial: whether effects are those of one unit more of each dose instead.

        Returns:
            The same trees, with these doses as levels.

        Raises:
            ConfigError: the model was trained without `roles.grid`.

        Example:
            >>> rows = frame.assign(dose=rng.uniform(0, 10, 2000))
            >>> doses = Roles("unit", "dose", "spend", ("recency",), control="0", grid=(5.0,))
            >>> CausalForest(n_trees=8).fit(rows, doses).at([2.5, 7.5]).levels.names
            ('0', '2.5', '7.5')
        """
        return UpliftModel(self.forest.at(doses, partial))

    def estimate(self, frame: Frame, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Estimate the same trees from the rows of `frame` alone: leaf sums, bias correction and levels' shares.

        With the rows it was trained on it is the same model, byte for byte; without some of them it is the model whose
        sums never saw these. Plain sums are a subtraction, but the correction of a row's outcome rests on all sums, so
        all rows are read once more. What shaped the trees stays: bins, splits, the baselines outcomes are centred by.
        A meta-learner is fitted anew.

        Args:
            frame: pandas or Spark frame with every column of the roles.
            progress: is called with a line now and then.

        Returns:
            A model of the same kind.

        Raises:
            DataError: rows are bad, or a level has none.

        Example:
            >>> model.estimate(train).to_bytes() == model.to_bytes()
            True
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
        """Fill the same trees with sums of the rows of `frame`, old and new ones, in one pass that grows nothing.

        Corrections for bias stay those of this model, so always refresh the model that was grown, not a refreshed one;
        `forest.refresh` says what that costs, `estimate` corrects anew.

        Args:
            frame: pandas or Spark frame with every column of the roles.
            half_life: days after which a row counts half as much; None: rows count alike.
            day: column of whole numbers that count days, with a half-life.
            progress: is called with a line now and then.

        Returns:
            A causal forest.

        Raises:
            DataError: the forest cannot take the rows.
            ConfigError: the model is no causal forest, or a forest on scores.

        Example:
            >>> model.refresh(frame).forest.facts["rows"]
            2000
        """
        return UpliftModel(frame_rows(frame).refresh(self.forest, half_life, day, progress))

    def to_bytes(self) -> bytes:
        """Return the model file's content; equal forests give equal bytes."""
        return self.model.to_bytes()

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: Arrow arrays and manifest, a SHA-256 at its end; no pickle.

        Args:
            path: file to write, in a folder that exists.

        Raises:
            OSError: the file cannot be written.
        """
        save_file(path, self.to_bytes())

    def _of(self, outcome: str | None) -> AnyModel:
        return self.model.of(self.roles.outcome if outcome is None else outcome)


@dataclass(frozen=True)
class ModelPlots:
    """Pictures of a model on new rows as matplotlib figures (extra `plots`); each raises as `UpliftModel.metrics`.

    Effects on an outcome of 0 and 1 are shown in percentage points.
    """

    model: UpliftModel

    def qini(self, frame: Frame, outcome: str | None = None) -> Figure:
        """Gain against the share of units treated, with 95 % bands."""
        evaluation = self.model._evaluated(frame, outcome)
        curve, metrics, direction = curve_table(evaluation), metric_table(evaluation), evaluation.spec.direction
        return qini_picture(curve, metrics, bool(evaluation.rates), direction=direction)

    def deciles(self, frame: Frame, outcome: str | None = None) -> Figure:
        """Uplift by decile of the prediction, with 95 % intervals."""
        evaluation = self.model._evaluated(frame, outcome)
        direction = evaluation.spec.direction
        return decile_picture(lift_table(evaluation, Economics()), bool(evaluation.rates), direction)

    def calibration(self, frame: Frame, outcome: str | None = None) -> Figure:
        """Observed against predicted uplift by decile."""
        evaluation = self.model._evaluated(frame, outcome)
        lift = lift_table(evaluation, Economics())
        return calibration_picture(lift, metric_table(evaluation), bool(evaluation.rates))


@dataclass(frozen=True)
class CausalForest(Params):
    """An honest causal forest for binary, ordered or unordered treatments.

    Args:
        n_trees: trees, rounded up to a multiple of bag_size.
        seed: same seed, rows and version: same bytes, whatever the partitioning.
        min_leaf: smallest leaf while growing, in rows; None: by the signal in the data (`forest.defaults`).
        max_depth: deepest leaf; None: 20.
        n_buckets: buckets the rows are split into by hash, at least 2; None: by the number of rows and the signal.
        growth_buckets: buckets that shape a tree, the others estimating it; None: by the signal.
        max_bins: bins per numeric feature, at most 254; None: by the number of rows.
        mtry: features tried per node; None: all, then those with evidence.
        min_gain: smallest gain of a split, in the outcome's sum of squares.
        min_share: a child keeps at least this share of its parent's rows.
        imbalance: a child keeps at least this share of the root's treatment scatter per unit.
        criterion: "slope", "spline", "product" (several doses) or "one_hot" (arms): the basis in which effects are
            compared while trees grow, and from which those of doses are read; None or "auto": by the data, see `reason`
            in the model's manifest.
        monotone: "increasing" or "decreasing": effects only rise, or fall, with the dose; None: freely.
        bag_size: trees per little bag, the groups of trees that share a half-sample.
        centre: take what the features explain of the outcome out of it first, where that is worth it.
        debias: correct leaf means by the forest's own residuals: less bias of wide leaves, somewhat more variance.
        per_level: train one binary forest for each treated level instead, on its units and the control's.

    Raises:
        ConfigError: an argument has no such value.

    References:
        Wager & Athey (2018); Athey, Tibshirani & Wager (2019).

    Example:
        >>> CausalForest(n_trees=20, per_level=True).fit(frame, roles)
        <UpliftModel forest_per_level: effects of 5% against none on spend, by 2 features>
    """

    per_level: bool = False

    def fit(self, frame: Frame, roles: Roles, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit.

        Args:
            frame: pandas or Spark frame with every column of the roles; both give the same model, byte for byte.
            roles: which column plays which part.
            progress: is called with a line now and then.

        Returns:
            The model.

        Raises:
            DataError: rows break the rules, a level has fewer than 10 of them, or the features decide the level; the
                message names column, count and fix.
            ConfigError: `per_level` with `roles.grid`.

        Example:
            >>> CausalForest(n_trees=20, seed=7).fit(train, roles).to_bytes() == model.to_bytes()
            True
        """
        rows = frame_rows(frame)
        if self.per_level:
            return UpliftModel(self._fit_each(rows, roles, progress))
        return UpliftModel(rows.fit_forest(roles, self, progress))

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
    instrument for delivery.

    Args:
        **params: those of `CausalForest`, which estimates the effect of assignment itself, but for `per_level`.

    References:
        Imbens & Angrist (1994); Athey, Tibshirani & Wager (2019), section 7.

    Example:
        >>> InstrumentalForest(n_trees=20).fit(frame, roles, delivered="redeemed")
        <UpliftModel instrumental_forest: effects of 5% against none on spend, by 2 features>
    """

    def fit(self, frame: Frame, roles: Roles, delivered: str, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit.

        Args:
            frame: pandas or Spark frame with every column of the roles, and `delivered`.
            roles: those of assignment and outcome.
            delivered: numeric column, 0 where nothing was delivered.
            progress: is called with a line now and then.

        Returns:
            The model. Its effects are what a level does to units that take it because they are assigned it; NaN, and of
            low support, where hardly anybody near complies.

        Raises:
            DataError: delivery is missing, or no level moves it; else as `CausalForest.fit`.
            ConfigError: roles with more outcomes or scores.

        Example:
            >>> compliers = InstrumentalForest(n_trees=20).fit(train, roles, "redeemed")
            >>> len(compliers.effect(rest)) == len(rest)
            True
        """
        return UpliftModel(frame_rows(frame).fit_instrumental(roles, delivered, self, progress))


@dataclass(frozen=True)
class MetaLearner(LearnerParams):
    """A learner of the field's catalogue, put together from boosted trees: T, S, X, R, DR, class transformation.

    Args:
        kind: "t_learner", "s_learner", "x_learner", "r_learner", "dr_learner" or "class_transformation".
        replicates: fits to halves of the units, two a split, behind the intervals, which miss what the
            learner smooths away; 0: no intervals.
        rows: of each arm to learn from, at most, chosen by hash.
        folds: of cross-fitted nuisances, for the learners that have any.
        seed: same seed and rows: same effects, whatever the partitioning.

    Raises:
        ConfigError: an argument has no such value.

    References:
        Künzel et al. (2019) for T, S, X; Nie & Wager (2021) for R; Kennedy (2023) for DR; Jaskowski & Jaroszewicz
        (2012) and Athey & Imbens (2016) for class transformation.

    Example:
        >>> MetaLearner("x_learner", replicates=0).fit(frame, roles)
        <UpliftModel x_learner: effects of 5% against none on spend, by 2 features>
    """

    def fit(self, frame: Frame, roles: Roles, progress: ProgressCallback = no_progress) -> UpliftModel:
        """Train on one row per unit.

        Propensities are cross-fitted where they differ between units, or units have doubly robust scores.

        Args:
            frame: pandas or Spark frame with every column of the roles; both give models of the same effects.
            roles: which column plays which part.
            progress: is called with a line now and then.

        Returns:
            The model.

        Raises:
            DataError: rows break the rules, or an arm has fewer than 10 of them.
            ConfigError: roles with more outcomes, or doses that take any value.

        Example:
            >>> learner = MetaLearner("s_learner", replicates=0).fit(train, roles)
            >>> round(float(learner.effect(rest)["uplift"].mean()))
            2
        """
        return UpliftModel(frame_rows(frame).fit_learned(roles, self, progress))


def load_model(source: str | Path | bytes) -> UpliftModel:
    """Read a model file or its bytes; nothing in it is executed.

    Args:
        source: path of a file that `UpliftModel.save` wrote, or its content.

    Returns:
        The model, of any kind.

    Raises:
        ModelFileError: it is missing, truncated, edited or no model.

    Example:
        >>> load_model(model.to_bytes()).to_bytes() == model.to_bytes()
        True
    """
    return UpliftModel(load_any(source))


def average_effects(
    frame: Frame, roles: Roles, outside: Frame | None = None, folds: int = 5, seed: int = 7
) -> pd.DataFrame:
    """Estimate average effects, doubly robust and cross-fitted, without a model of who gains.

    Args:
        frame: one row per unit, with every column of the roles; rows of a Spark frame are brought into memory.
        roles: which column plays which part. Propensities are the arms' shares in a trial, and fitted where
            `roles.propensity` differs between units or `roles.scores` are named.
        outside: units that were not in the trial, with the unit's column and the features.
        folds: parts of the units; what is fitted for a unit comes from the other parts.
        seed: of the folds and of what is fitted.

    Returns:
        One row per treated level and estimand: `treatment`, `estimand`, `estimate`, `error`, `lower`, `upper` (95 %),
        float64 in outcome units. Estimands are `ate`, `att`, `overlap` and, for comparison, `naive` (difference of
        means); `outside` alone for units outside; `one unit more` of the dose alone where `roles.grid` makes the
        treatment a number.

    Raises:
        DataError: rows break the rules, or an arm has too few.
        ConfigError: `outside` with `roles.grid`, or `roles.weight`.

    References:
        Robins, Rotnitzky & Zhao (1994); Li, Morgan & Zaslavsky (2018) for overlap; Dahabreh et al. (2020) for units
        outside; Hirshberg & Wager (2021) for one unit more of a dose.

    Example:
        >>> averages = average_effects(frame, roles, folds=2).set_index("estimand")
        >>> round(float(averages.loc["ate", "estimate"]))
        2
    """
    rows, others = frame_rows(frame), None
    if outside is not None:
        columns = (roles.unit, roles.cluster, *roles.features)
        others = frame_rows(outside).in_memory([column for column in columns if column])
    return average_effects_table(rows.in_memory(roles.columns), roles, others, folds, seed).to_pandas()


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
