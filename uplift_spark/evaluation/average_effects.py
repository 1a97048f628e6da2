"""Average effects of an observational campaign, and how alike its arms are, from a table with nuisances.

`average_table` and `hidden_table` give effects, `overlap_table` and `balance_table` compare the arms. The nuisances
come from `learners.spark.with_scores`. Averages come from integer sums, equal to the last bit for any partitioning;
overlap and balance are Spark's sums, rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.evaluation.metrics import EvaluationSpec
from uplift_spark.evaluation.spark import resampling_hash, segment_buckets
from uplift_spark.learners.spark import OUTCOME_MEAN, PROPENSITIES
from uplift_spark.roles import PROPENSITY, TREATMENT
from uplift_spark.spark_versions import mapped
from uplift_spark.stats.aipw import ESTIMANDS, Scale, averages, confounder_terms, e_values, sensitivity, terms
from uplift_spark.stats.intervals import Draws, poisson_weights, resampled_sums

ALL = "all"
_CELLS = "cut string, bucket string, sums binary, bootstrap binary"
_CATEGORIES = 12  # of a feature, the most frequent ones; a picture of more cannot be read
_DECIMALS = 6


def average_table(rows: DataFrame, spec: EvaluationSpec, levels: Sequence[str], lowest: float) -> pd.DataFrame:
    """Average effects of every level, overall and by segment, in one pass over the units.

    rows    the units to average over, with the nuisances of silver.adjusted_<campaign>
    levels  names in the order of `outcome_mean` and `propensities`, the control first
    lowest  propensity below which units are trimmed

    Returns the rows of gold.average_effects without run_id and campaign.
    """
    size = rows.agg(F.max(F.abs(spec.outcomes[0])), F.max(F.array_max(F.transform(OUTCOME_MEAN, F.abs)))).first()
    scale = Scale.of(max(float(one or 0.0) for one in size or (0.0,)), lowest)
    cuts = [bucket.alias(f"cut_{c}") for c, bucket in enumerate(segment_buckets(rows, spec.segments, spec.table))]
    inputs = rows.select(*_unit_columns(spec, levels), OUTCOME_MEAN, PROPENSITIES, *cuts)
    added = partial(_add, (ALL, *spec.segments), scale, spec.cluster_draws)
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for row in mapped(inputs, added, _CELLS).to_pylist():
        parts = [np.frombuffer(row[name], np.int64) for name in ("sums", "bootstrap")]
        cell = (row["cut"], row["bucket"])
        sums[cell] = [a + b for a, b in zip(sums[cell], parts, strict=True)] if cell in sums else parts
    columns = 3 * (len(levels) - 1) + len(levels)
    lines = []
    for cut, bucket in sorted(sums, key=lambda cell: ((ALL, *spec.segments).index(cell[0]), cell[1])):
        plain, bootstrap = sums[cut, bucket]
        resampled = bootstrap.reshape(-1, columns, 2) if spec.cluster else None
        effects = averages(plain.reshape(columns, -1), scale, len(levels), resampled)
        lower, upper = effects.interval
        for k, level in enumerate(levels[1:]):
            for j, estimand in enumerate(ESTIMANDS):
                figures = (effects.estimate[k, j], effects.error[k, j], lower[k, j], upper[k, j])
                units = int(effects.units[k + 1]), int(effects.units[0])
                name = cut if cut == ALL else f"segment:{cut}"
                lines.append((spec.outcomes[0], level, estimand, name, bucket, *units, *figures))
    names = ("outcome", TREATMENT, "estimand", "cut", "bucket", "n_treated", "n_control", "value", "error")
    return pd.DataFrame(lines, columns=[*names, "lower", "upper"])


def _add(
    cuts: Sequence[str], scale: Scale, draws: Draws | None, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Worker: sums of a batch, of all its units and by bucket of every segment."""
    for batch in filter(len, batches):
        hashes, arrays = _units(batch)
        whole = scale.integers(terms(*arrays))
        labels = [np.full(len(batch), ALL), *(np.asarray(batch.column(f"cut_{c}")) for c in range(len(cuts) - 1))]
        cells: list[tuple[str, str, bytes, bytes]] = []
        for cut, label in zip(cuts, labels, strict=True):
            for bucket in np.unique(label.astype(str)):
                mine = np.flatnonzero(label == bucket)
                bootstrap = np.zeros(0, np.int64)
                if draws:
                    bootstrap = resampled_sums(hashes[mine], whole[mine][:, :, 1:3].reshape(len(mine), -1), draws)
                cells.append((cut, str(bucket), whole[mine].sum(axis=0).tobytes(), bootstrap.tobytes()))
        columns = [pa.array(column) for column in zip(*cells, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, ["cut", "bucket", "sums", "bootstrap"])


def _unit_columns(spec: EvaluationSpec, levels: Sequence[str]) -> tuple[Column, ...]:
    level_code = (F.array_position(F.lit(list(levels)), F.col(TREATMENT).cast("string")) - 1).cast("int")
    outcome = F.col(spec.outcomes[0]).cast("double")
    return level_code.alias("level_code"), outcome.alias("outcome"), resampling_hash(spec).alias("unit_hash")


def _units(batch: pa.RecordBatch) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Hashes, and what `terms` takes, of a batch."""
    hashes, outcome, level_code = (
        batch.column(name).to_numpy(zero_copy_only=False) for name in ("unit_hash", "outcome", "level_code")
    )
    outcome_mean, propensity = (
        np.asarray(batch.column(name).flatten().to_numpy(zero_copy_only=False)).reshape(len(batch), -1)
        for name in (OUTCOME_MEAN, PROPENSITIES)
    )
    return hashes, (outcome, level_code, outcome_mean, propensity)


def hidden_table(rows: DataFrame, spec: EvaluationSpec, levels: Sequence[str], shares: Sequence[float]) -> pd.DataFrame:
    """Bound what unmeasured confounders could do to the average effects on all units, in one pass.

    Columns as gold.sensitivity but for run_id and campaign. Arguments as `average_table`; shares as
    `Sensitivity.bounds`, the same of outcome and treatment.
    """
    inputs = rows.select(*_unit_columns(spec, levels), OUTCOME_MEAN, PROPENSITIES)
    parts = inputs.mapInArrow(
        partial(_confounding, spec.cluster_draws), "n bigint, sums binary, bootstrap binary"
    ).toArrow()
    n, width = int(np.sum(parts["n"].to_numpy())), 4 * len(levels) - 3
    if n == 0:
        return _checks([])
    sums, bootstrap = (
        np.sum([np.frombuffer(part, np.float64) for part in parts[name].to_pylist()], axis=0)
        for name in ("sums", "bootstrap")
    )
    mean, products = sums[:width] / n, sums[width:-1].reshape(width, width) / n
    covariance = (products - np.outer(mean, mean)) / max(n - 1, 1)
    if spec.cluster:
        resampled = bootstrap.reshape(-1, width + 1)
        covariance = np.cov((resampled[:, :-1] / resampled[:, -1:]).T)
    lines: list[tuple[object, ...]] = []
    for level, one in zip(levels[1:], sensitivity(mean, covariance, len(levels)), strict=True):
        for share in shares:
            lines.append((level, "hidden confounder", f"{share:g}", one.mean[0], *one.bounds(share, share)[2:]))
        figures = zip(("estimate", "interval"), one.robustness(), strict=True)
        lines += [(level, "robustness", setting, value, np.nan, np.nan) for setting, value in figures]
    if sums[-1] == 0:  # outcomes of 0 and 1 only
        for level, pair in zip(levels[1:], e_values(mean, covariance, len(levels)), strict=True):
            figures = zip(("estimate", "interval"), pair, strict=True)
            lines += [(level, "e-value", setting, value, np.nan, np.nan) for setting, value in figures]
    return _checks(lines)


def _checks(lines: list[tuple[object, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(lines, columns=[TREATMENT, "check", "setting", "value", "lower", "upper"])
    return table.astype(dict.fromkeys(("value", "lower", "upper"), float)).round(_DECIMALS).assign(p_value=np.nan)


def _confounding(draws: Draws | None, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: units, sums and products of `confounder_terms`, units whose outcome is neither 0 nor 1; the sums, and
    units, of every resample of clusters."""
    for batch in filter(len, batches):
        hashes, arrays = _units(batch)
        unit_terms = confounder_terms(*arrays)
        other = np.count_nonzero(~np.isin(arrays[0], (0.0, 1.0)))
        sums = np.r_[unit_terms.sum(axis=0), (unit_terms.T @ unit_terms).ravel(), other]
        bootstrap = np.zeros(0)
        if draws:
            bootstrap = poisson_weights(hashes, *draws).T.astype(np.float64) @ np.column_stack(
                [unit_terms, np.ones(len(unit_terms))]
            )
        columns = [pa.array([len(batch)]), *(pa.array([part.tobytes()]) for part in (sums, bootstrap))]
        yield pa.RecordBatch.from_arrays(columns, ["n", "sums", "bootstrap"])


def overlap_table(rows: DataFrame, levels: Sequence[str], trimmed: str) -> pd.DataFrame:
    """Describe by level how probable it was for the units that received it: gold.overlap without run_id and campaign.

    rows  all of a table with nuisances; figures but `trimmed` are of the others
    """
    kept = F.col("split") != trimmed
    p = F.when(kept, F.col(PROPENSITY))
    weight = 1 / p
    overlap = (
        rows.groupBy(F.col(TREATMENT).cast("string").alias(TREATMENT))
        .agg(
            F.count_if(kept).alias("units"),
            F.count_if(~kept).alias("trimmed"),
            F.min(p).alias("lowest"),
            F.percentile(p, F.lit(0.05)).alias("low"),
            F.percentile(p, F.lit(0.5)).alias("median"),
            F.round(F.sum(weight) ** 2 / F.sum(weight * weight), 1).alias("effective_units"),
        )
        .toPandas()
        .set_index(TREATMENT)
    )
    return overlap.reindex([level for level in levels if level in overlap.index]).reset_index()


def balance_table(rows: DataFrame, features: Sequence[str], levels: Sequence[str]) -> pd.DataFrame:
    """Compare features between each level and the control: gold.balance without run_id and campaign.

    Standardised mean differences, by the arms' pooled standard deviation, and ratios of variances, as the units are and
    weighed by the inverse of their propensity (Austin & Stuart 2015). Text counts by category, missing values as one.
    """
    columns = _columns(rows, features)
    weights: dict[str, Column] = {"before": F.lit(1.0), "after": 1 / F.col(PROPENSITY)}
    aggregates = []
    for c, (_, _, value) in enumerate(columns):
        for when, weight in weights.items():
            known = F.when(value.isNotNull(), weight)
            parts = {"w": known, "x": known * value, "xx": known * value * value}
            aggregates += [F.sum(part).alias(f"{name}_{when}_{c}") for name, part in parts.items()]
    by_arm = (
        rows.groupBy(F.col(TREATMENT).cast("string").alias(TREATMENT)).agg(*aggregates).toPandas().set_index(TREATMENT)
    )
    lines = []
    for c, (feature, category, _) in enumerate(columns):
        mean, variance = {}, {}
        for when in weights:
            w, x, xx = (by_arm[f"{name}_{when}_{c}"].astype(float) for name in ("w", "x", "xx"))
            mean[when], variance[when] = x / w, (xx / w - (x / w) ** 2).clip(lower=0)
        for level in [one for one in levels[1:] if one in by_arm.index]:
            pair = [level, levels[0]]
            spread = np.sqrt(variance["before"][pair].mean())
            off = [(mean[when][level] - mean[when][levels[0]]) / spread if spread > 0 else np.nan for when in weights]
            ratios = [variance[when][level] / max(variance[when][levels[0]], 1e-300) for when in weights]
            ratios = [one if category is None and spread > 0 else np.nan for one in ratios]
            lines.append((level, feature, category, *np.round([*off, *ratios], _DECIMALS)))
    names = ["difference", "difference_weighted", "variance_ratio", "variance_ratio_weighted"]
    return pd.DataFrame(lines, columns=[TREATMENT, "feature", "category", *names])


def _columns(rows: DataFrame, features: Sequence[str]) -> list[tuple[str, str | None, Column]]:
    """(feature, category, value as double) of everything that is compared."""
    kinds = dict(rows.dtypes)
    text = [name for name in features if kinds[name] == "string"]
    counted = {}
    if text:
        pairs = F.explode(F.array(*(F.struct(F.lit(name).alias("f"), F.col(f"`{name}`").alias("v")) for name in text)))
        categories = rows.select(pairs.alias("one")).groupBy("one.f", "one.v").agg(F.count("*").alias("n")).toPandas()
        categories = categories[categories["v"].notna()].sort_values(["n", "v"], ascending=[False, True])
        counted = {name: sorted(mine["v"].head(_CATEGORIES)) for name, mine in categories.groupby("f")}
    lacking = rows.agg(*(F.count_if(F.col(f"`{name}`").isNull()).alias(f"_{c}") for c, name in enumerate(features)))
    missing = lacking.toArrow().to_pylist()[0]
    columns: list[tuple[str, str | None, Column]] = []
    for c, name in enumerate(features):
        value = F.col(f"`{name}`")
        if name in text:
            is_one = {one: F.coalesce((value == one).cast("double"), F.lit(0.0)) for one in counted.get(name, [])}
            columns += [(name, one, answer) for one, answer in is_one.items()]
        else:
            columns.append((name, None, value.cast("double")))
        if missing[f"_{c}"]:
            columns.append((name, "missing", value.isNull().cast("double")))
    return columns
