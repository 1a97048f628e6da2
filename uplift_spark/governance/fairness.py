"""The bias audit on Spark: from a hold-out, a model and its plan to the sums that `governance.bias` judges.

Units of the hold-out, which the model never saw, get doubly robust scores of every level; what the plan gives them is
joined; a pass adds up every group of every attribute and crossing, and counts which of the model's features go with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.evaluation.metrics import EvaluationSpec
from uplift_spark.evaluation.spark import by_level, describe_arms, score_columns, segment_buckets, sums_by_key
from uplift_spark.evaluation.sums import keyed
from uplift_spark.forest.forest import Model
from uplift_spark.forest.spark import unpacked_bins
from uplift_spark.governance.bias import (
    BiasAudit,
    BiasMeasure,
    GroupSums,
    Proxy,
    bias_audit,
    group_sums,
    proxies_of,
)
from uplift_spark.learners.spark import fit_outcome_model, reward_frame
from uplift_spark.roles import TREATMENT, UNIT, benefit, crossed
from uplift_spark.runtime import ProgressCallback

EVERYBODY = "all"
"""The stratum of all units where no features of need are named."""


@dataclass(frozen=True)
class BiasInputs:
    """What a bias audit looks at.

    training  the training table as it was scored, both splits
    scores    one row a unit and level: predicted uplift
    plan      decisions about the units; None: every level is audited as if all units got it
    """

    config: Config
    spec: EvaluationSpec
    model: Model
    training: DataFrame
    scores: DataFrame
    plan: DataFrame | None

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes and crossings to audit: those configured, else all features that are protected.

        Raises ConfigError where there are none, or one is no column of the training set.
        """
        conf = self.config.governance.bias
        named = conf.attributes or tuple(one.name for one in self.config.features if one.protected)
        if not named:
            raise ConfigError(
                "no attribute is to be audited for bias: name some in governance.bias.attributes, or set protected of "
                "their features"
            )
        for part in (part for name in (*named, *conf.need) for part in crossed(name)):
            if part not in self.training.columns:
                known = hint(part, self.training.columns)
                raise ConfigError(
                    f"governance.bias names {part!r}, which is no column of {self.config.training_table}: add it to "
                    f"lift.segments, or correct it: {known}"
                )
        return named


@dataclass(frozen=True)
class _SumsPlan:
    """What a pass adds up: codes of buckets and strata, levels, measures, values of the model's features."""

    cuts: tuple[tuple[str, tuple[str, ...]], ...]
    strata: tuple[str, ...]
    measures: tuple[BiasMeasure, ...]
    features: tuple[int, ...]
    planned: bool

    def shape(self, cut: int) -> tuple[int, int]:
        return len(self.cuts[cut][1]), len(self.strata)


def audit_of(inputs: BiasInputs, progress: ProgressCallback) -> BiasAudit:
    """Audit a model, or its plan, on the hold-out.

    Raises:
        ConfigError: As `BiasInputs.attributes`.
        DataError: The hold-out cannot be evaluated, or an attribute has too many values to be groups.
    """
    conf, table = inputs.config.governance.bias, inputs.config.training_table
    attributes = inputs.attributes
    train, holdout = (inputs.training.where(F.col("split") == split) for split in ("train", "holdout"))
    arms = describe_arms(holdout, inputs.spec)
    columns = segment_buckets(holdout, (*attributes, *conf.need), table)
    cuts = {f"__cut_{j}": column for j, column in enumerate(columns[: len(attributes)])}
    need = F.concat_ws(" / ", *columns[len(attributes) :]) if conf.need else F.lit(EVERYBODY)
    marked = holdout.withColumns({**cuts, "__need": need})
    roles, levels = inputs.model.roles, inputs.model.levels
    progress("outcome models for what is expected of every unit")
    nuisance = fit_outcome_model(train, roles.over_levels, levels, inputs.model.bins, inputs.config.seed)
    names = [UNIT, *cuts, "__need"]
    scored = score_columns(levels.names, roles.outcome, arms)
    rows = marked.select(*names, *(f"`{name}`" for name in roles.features), *scored)
    sign = benefit(1.0, inputs.spec.direction)
    worth = (sign, [0.0] * len(levels.names))
    rewards = reward_frame(rows, tuple(names), nuisance, inputs.model.bins, worth)
    joined, largest = _joined(inputs, rewards, sign)
    effect = 2 * arms.largest_outcomes[0] * (1 + 2 * arms.largest_weight)
    plan = _sums_plan(inputs, marked, (largest, effect), attributes)
    progress(f"{len(attributes)} attributes and crossings, {len(plan.measures)} measures")
    sums = sums_by_key(joined, partial(bias_batches, plan))
    groups = [
        GroupSums(name, buckets, sums[j].reshape(*plan.shape(j), -1)) for j, (name, buckets) in enumerate(plan.cuts)
    ]
    audit = bias_audit(groups, plan.measures, conf.level, conf.min_units)
    return replace(audit, proxies=_proxies(inputs, plan, sums, conf.proxy_strength))


def _joined(inputs: BiasInputs, rewards: DataFrame, sign: float) -> tuple[DataFrame, tuple[float, float]]:
    """Rewards with `predicted` array<double> of every treated level and the plan's `code` and `cost`; the largest
    prediction and cost."""
    treated = inputs.model.levels.names[1:]
    gain = F.col("uplift") * sign
    each = [F.max(F.when(F.col(TREATMENT) == level, gain)).alias(f"_{k}") for k, level in enumerate(treated)]
    values = [F.coalesce(F.col(f"_{k}"), F.lit(0.0)) for k in range(len(treated))]
    predicted = inputs.scores.groupBy(UNIT).agg(*each).select(UNIT, F.array(*values).alias("predicted"))
    size = predicted.agg(F.max(F.array_max(F.transform("predicted", F.abs)))).collect()[0][0]
    joined = rewards.join(predicted, UNIT, "left")
    if inputs.plan is None:
        return joined.withColumns({"code": F.lit(None).cast("int"), "cost": F.lit(0.0)}), (size or 1.0, 1.0)
    code = by_level(F.col(TREATMENT), inputs.model.levels.names, range(len(treated) + 1)).cast("int")
    decided = inputs.plan.select(UNIT, code.alias("code"), F.col("cost").cast("double").alias("cost"))
    cost = decided.agg(F.max("cost")).collect()[0][0]
    return joined.join(decided, UNIT, "left"), (size or 1.0, cost or 1.0)


def _sums_plan(
    inputs: BiasInputs, marked: DataFrame, sizes: tuple[tuple[float, float], float], attributes: Sequence[str]
) -> _SumsPlan:
    (predicted, cost), effect = sizes
    names = [f"__cut_{j}" for j in range(len(attributes))]
    sets = marked.agg(*(F.sort_array(F.collect_set(name)).alias(name) for name in (*names, "__need"))).collect()[0]
    if not sets["__need"]:
        raise DataError(f"table {inputs.config.training_table} has no hold-out: nothing can be audited for bias")
    lax = inputs.config.governance.bias.tolerance
    if inputs.plan is not None:
        kinds = [("treated", 1.0, False), ("cost", cost, False)]
        kinds += [("predicted", predicted, False), ("realised", effect, True)]
    else:
        kinds = []
        for level in inputs.model.levels.names[1:]:
            kinds += [(f"predicted {level}", predicted, False), (f"realised {level}", effect, True)]
    if unknown := sorted(set(lax) - {kind[0] for kind in kinds}):
        raise ConfigError(f"governance.bias.tolerance names {unknown[0]!r}: {hint(unknown[0], [k[0] for k in kinds])}")
    measures = tuple(BiasMeasure(name, size, harm, lax.get(name, 0.0)) for name, size, harm in kinds)
    cuts = tuple((attribute, tuple(sets[name])) for attribute, name in zip(attributes, names, strict=True))
    features = tuple(one.n_bins for one in inputs.model.bins)
    return _SumsPlan(cuts, tuple(sets["__need"]), measures, features, inputs.plan is not None)


def bias_batches(plan: _SumsPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: sums of every cut under its number, then counts of every cut's buckets by feature."""
    totals: dict[int, np.ndarray] = {}
    for batch in filter(len, batches):
        values = _values(plan, batch)
        strata = _codes(batch.column("__need"), plan.strata)
        bins = unpacked_bins(batch.column("bins"), len(plan.features))
        for j, (_, names) in enumerate(plan.cuts):
            bucket = _codes(batch.column(f"__cut_{j}"), names)
            parts = {j: group_sums(bucket, strata, values, plan.shape(j), plan.measures)}
            for f, size in enumerate(plan.features):
                counts = np.zeros((len(names), size), np.int64)
                np.add.at(counts, (bucket, bins[:, f]), 1)
                parts[_table_key(plan, j, f)] = counts
            for key, part in parts.items():
                totals[key] = totals[key] + part if key in totals else part
    if totals:
        yield keyed({key: part.ravel() for key, part in totals.items()})


def _table_key(plan: _SumsPlan, cut: int, feature: int) -> int:
    return len(plan.cuts) + cut * len(plan.features) + feature


def _codes(column: pa.Array, names: Sequence[str]) -> np.ndarray:
    return np.asarray(pc.index_in(column, pa.array(names)).to_numpy(zero_copy_only=False), np.int64)


def _values(plan: _SumsPlan, batch: pa.RecordBatch) -> np.ndarray:
    """Measures of a batch's units, float64 [n, M]."""
    n = len(batch)
    rewards = batch.column("rewards").flatten().to_numpy(zero_copy_only=False).reshape(n, -1)
    effects = rewards[:, 1:] - rewards[:, :1]
    predicted = np.array([row or [0.0] * effects.shape[1] for row in batch.column("predicted").to_pylist()], float)
    if not plan.planned:
        return np.stack([predicted, effects], axis=2).reshape(n, -1)
    code = np.nan_to_num(batch.column("code").to_numpy(zero_copy_only=False).astype(float)).astype(int)
    cost = batch.column("cost").to_numpy(zero_copy_only=False).astype(float)
    treated, row, column = code > 0, np.arange(n), np.maximum(code - 1, 0)
    gains = [np.where(treated, one[row, column], 0.0) for one in (predicted, effects)]
    return np.column_stack([treated.astype(float), np.where(treated, cost, 0.0), *gains])


def _proxies(inputs: BiasInputs, plan: _SumsPlan, sums: Mapping[int, np.ndarray], least: float) -> tuple[Proxy, ...]:
    """The model's features that tell an attribute; one does not tell itself."""
    tables = {
        (cut, one.name): sums[_table_key(plan, j, f)].reshape(len(buckets), -1)
        for j, (cut, buckets) in enumerate(plan.cuts)
        for f, one in enumerate(inputs.model.bins)
        if one.name not in crossed(cut)
    }
    return proxies_of(tables, least)
