"""Uplift curves and metrics on a hold-out, by cut and level, from one pass of sums. No Spark.

`evaluate_rows` sums up a hold-out in memory, as `evaluation.spark.evaluate` does one in Spark, to the same bits;
`curve_table` and `metric_table` make tables of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.errors import DataError
from uplift_spark.evaluation.sums import (
    CutSums,
    Grid,
    Ranking,
    Sums,
    SumsPlan,
    add_cells,
    merge_cells,
    thresholds,
    unpacked,
)
from uplift_spark.roles import CROSSING, PROPENSITY, TREATMENT, UNIT, Direction, benefit, crossed
from uplift_spark.stats.curves import Curve, true_curve, uplift_curve
from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, bootstrap_interval
from uplift_spark.stats.moments import LARGEST, MIN_UNITS, FixedPoint, Moments, difference, ratio
from uplift_spark.stats.sampling import unit_hashes
from uplift_spark.stats.tests import bucket_calibration, calibration_slope

# --------------------------------------------------------------------------------------------------------------------
# Segments as readable buckets: each value where there are few values, quarters of the units where there are many
# numbers. A bucket of a crossing joins those of its features: `north x mobile`.

FEW_VALUES = 12
"""Numbers with at most so many distinct values are taken as they are."""

MOST_VALUES = 200
"""A text segment with more values is refused: its cells would be too small to say anything."""

MISSING_BUCKET = "missing"

SEGMENT_STEPS = 1 << 16  # quartiles are exact on this grid between the lowest and the highest value, in bounded memory


def grid_cuts(places: np.ndarray, low: float, high: float) -> list[float]:
    """Distinct quartiles below the highest value, to four digits, from their places on the grid of SEGMENT_STEPS."""
    step = (high - low) / SEGMENT_STEPS
    return sorted({float(f"{low + math.ceil(p) * step:.4g}") for p in places} - {high})


def quarter_labels(cuts: list[float]) -> list[str]:
    """Names of the buckets that cuts part numbers into; the label is the rule."""
    texts = [f"{cut:.4g}" for cut in cuts]
    parts = [f"<= {text}" if q == 0 else f"{texts[q - 1]} to {text}" for q, text in enumerate(texts)]
    return [f"{q + 1}: {part}" for q, part in enumerate([*parts, f"> {texts[-1]}"])] if texts else ["all"]


def row_buckets(rows: pd.DataFrame, segments: tuple[str, ...], table: str) -> list[np.ndarray]:
    """Buckets of each segment, texts [n]: see `evaluation.spark.segment_buckets`, whose labels these are.

    Raises DataError for a text or a crossing with too many, and where a text holds what parts a crossing.
    """
    single = {name: _feature_buckets(rows[name], table) for segment in segments for name in crossed(segment)}
    whole = []
    for segment in segments:
        parts = [single[name] for name in crossed(segment)]
        for name, part in zip(crossed(segment), parts, strict=True):
            if len(parts) > 1 and (clashes := int(part.str.contains(CROSSING, regex=False).sum())):
                raise DataError(
                    f"{clashes} rows of {table} have {CROSSING!r} in {name!r}, which parts the buckets of a crossing: "
                    "replace it there, or do not cross this feature"
                )
        joined = parts[0]
        for part in parts[1:]:
            joined = joined + CROSSING + part
        if (count := joined.nunique()) > MOST_VALUES:
            raise DataError(f"segment {segment!r} of {table} has {count} buckets: at most {MOST_VALUES} make sense")
        whole.append(joined.to_numpy(dtype=object))
    return whole


def _feature_buckets(values: pd.Series, table: str) -> pd.Series:
    if values.dtype.kind not in "iuf":
        texts = values.map(lambda one: str(one).lower() if isinstance(one, bool | np.bool_) else str(one))
        return texts.where(values.notna(), MISSING_BUCKET)
    number = values.astype("float64").where(np.isfinite(values.astype("float64")))
    present = number.dropna()
    if present.nunique() <= FEW_VALUES:
        texts = number.map(_number_text, na_action="ignore")
        return texts.where(number.notna(), MISSING_BUCKET).astype(object)
    low, high = float(present.min()), float(present.max())
    keys = np.ceil((present.to_numpy() - low) / ((high - low) / SEGMENT_STEPS))
    cuts = grid_cuts(np.percentile(keys, (25, 50, 75)), low, high)
    labels = np.array(quarter_labels(cuts), dtype=object)
    return pd.Series(labels[np.searchsorted(cuts, number)], values.index).where(number.notna(), MISSING_BUCKET)


def _number_text(number: float) -> str:
    """The text that Spark's cast gives: whole numbers as such, others as Java writes them."""
    if number == math.floor(number):
        return str(int(number))
    if 1e-3 <= abs(number) < 1e7:
        return repr(number)
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)  # the number is finite
    figures = "".join(map(str, digits))
    return f"{'-' * sign}{figures[0]}.{figures[1:] or '0'}E{exponent + len(figures) - 1}"


# --------------------------------------------------------------------------------------------------------------------
# Evaluation of scores on a hold-out, by sums that add.
# Each treated level has its own ranking: units that received the level or the control, by the level's predicted uplift.
# Where the logged propensity varies within an arm, units count by its inverse (Hájek means, and ranks by weight). Where
# it does not vary, or was not logged, every unit counts once.

DECILES = 10
_VARIES = 1e-6  # relative: logged probabilities are rarely written with more digits


@dataclass(frozen=True)
class EvaluationSpec:
    """What to evaluate.

    control     the level every other is compared with
    outcomes    outcome columns; the model predicts the first
    segments    feature columns to cut by, and crossings of them (`roles.crossed`)
    bins        rank bins of the curve, a multiple of 10
    order       treated levels in the order to report them; others follow by name
    table       name of the hold-out's table, for messages
    cluster     column that names what units belong to: intervals take clusters, not units, as independent
    direction   decrease where less of the first outcome is better: units rank by its predicted fall
    """

    control: str
    outcomes: tuple[str, ...]
    segments: tuple[str, ...] = ()
    bins: int = 100
    replicates: int = 200
    seed: int = 7
    order: tuple[str, ...] = ()
    table: str = "the hold-out"
    cluster: str | None = None
    direction: Direction = "increase"

    def direction_of(self, outcome: str) -> Direction:
        """Which way an outcome should go: that of the first is configured, of others more counts as better."""
        return self.direction if outcome == self.outcomes[0] else "increase"

    @property
    def cluster_draws(self) -> Draws | None:
        """Resamples of clusters, where units come in some."""
        return Draws(self.seed, self.replicates) if self.cluster else None


@dataclass(frozen=True)
class Cut:
    """Size at which an outcome's values are cut off, and the number of units with larger ones."""

    at: float
    units: int


@dataclass(frozen=True)
class Arms:
    """The hold-out's units per arm, whether propensities were logged and vary in one, largest weight and outcomes.

    lowest    logged propensity of each arm; empty where none was logged
    clusters  in each arm; empty where units are on their own
    """

    units: dict[str, int]
    logged: bool
    weighted: bool
    largest_weight: float
    largest_outcomes: tuple[float, ...]
    lowest: dict[str, float] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    @property
    def max_inverse_propensity(self) -> dict[str, float]:
        """1 / lowest probability of each arm: as logged, else its share of the units."""
        shares = self.lowest or {arm: n / sum(self.units.values()) for arm, n in self.units.items()}
        return {arm: 1 / share for arm, share in shares.items()}


@dataclass(frozen=True)
class Evaluation:
    """Sums of one evaluation and what they were taken over."""

    levels: tuple[str, ...]
    spec: EvaluationSpec
    arms: Arms
    sums: Sums

    @property
    def cuts(self) -> dict[str, CutSums]:
        """Sums by bucket of each segment."""
        return dict(zip(self.spec.segments, self.sums.cuts, strict=True))

    @cached_property
    def curves(self) -> list[Curve]:
        """Curve of the benefit per outcome, points [levels, bins + 1]."""
        m = self.sums.moments
        return [
            self._of_benefit(uplift_curve(m.w[:, 1, :, j], m.wy[:, 1, :, j], m.w[:, 0, :, j], m.wy[:, 0, :, j]), j)
            for j in range(len(self.spec.outcomes))
        ]

    @cached_property
    def resampled(self) -> list[Curve]:
        """Curve of the benefit per outcome under each resample, points [replicates, levels, bins + 1]."""
        w, wy = self.sums.resampled_w, self.sums.resampled_wy
        return [
            self._of_benefit(uplift_curve(w[:, :, 1], wy[:, :, 1, :, j], w[:, :, 0], wy[:, :, 0, :, j]), j)
            for j in range(len(self.spec.outcomes))
        ]

    def _of_benefit(self, curve: Curve, outcome: int) -> Curve:
        return Curve(curve.fraction, benefit(curve.gain, self.spec.direction_of(self.spec.outcomes[outcome])))

    @cached_property
    def rates(self) -> frozenset[str]:
        """Outcomes that are 0 or 1 throughout."""
        m = self.sums.moments
        same = (m.wy == m.wyy).reshape(-1, m.n.shape[-1]).all(axis=0)
        return frozenset(outcome for outcome, binary in zip(self.spec.outcomes, same[:-1], strict=True) if binary)

    @cached_property
    def enough(self) -> np.ndarray:
        """Levels with enough units in both arms for any figure, bool [levels]."""
        return (self.sums.moments.n[..., 0].sum(axis=2) >= MIN_UNITS).all(axis=1)

    @property
    def effective_units(self) -> dict[str, float]:
        """Units of each arm that would say as much if all counted alike (Kish): squared sum of weights / of squares."""
        sums = self.sums.moments.sum(axis=2)[..., 0]
        effective = ratio(sums.w**2, sums.ww)
        treated = zip(self.levels, map(float, effective[:, 1]), strict=True)
        return {self.spec.control: float(effective[0, 0]), **dict(treated)}

    @property
    def resampled_deciles(self) -> tuple[np.ndarray, np.ndarray]:
        """Resampled Σw [replicates, levels, 2, 10] and Σw·outcome [replicates, levels, 2, 10, outcomes]."""
        w, wy = self.sums.resampled_w, self.sums.resampled_wy
        return _tenths(w), np.moveaxis(_tenths(np.moveaxis(wy, -1, 0)), 0, -1)

    def deciles(self) -> Moments:
        """Moments by tenth of the ranking, [levels, 2, 10, values]; the first tenth has the best predictions."""
        m = self.sums.moments
        shape = (*m.n.shape[:2], DECILES, -1, m.n.shape[-1])
        return Moments(*(getattr(m, f).reshape(shape) for f in m.__dataclass_fields__)).sum(axis=3)


def ordered_levels(arms: Arms, spec: EvaluationSpec) -> tuple[str, ...]:
    """Treated levels, those of `spec.order` first and in its order."""
    order = {level: position for position, level in enumerate(spec.order)}
    treated = [arm for arm in arms.units if arm != spec.control]
    return tuple(sorted(treated, key=lambda level: (order.get(level, len(order)), level)))


def check_holdout_columns(frame: Any, names: tuple[str, ...], table: str) -> None:
    """Raise DataError unless a frame has these columns."""
    missing = [name for name in dict.fromkeys(names) if name not in frame.columns]
    if missing:
        raise DataError(f"{table} lacks columns {missing}: run the features job, or correct roles and lift in the conf")


def checked_arms(table: pd.DataFrame, spec: EvaluationSpec) -> Arms:
    """Check and describe the arms of a hold-out.

    table  a row for each arm, by its name: arm, n, low, high (of the propensity), bad_propensity, logged (counts), for
           each outcome bad_0 … (count) and largest_0 …; with clusters their number `clusters`, and `strays` without any

    Raises DataError on an empty hold-out, no control, bad propensity or outcome.
    """
    _check_arms(table, spec)
    logged = bool(table["logged"].sum())
    weighted = logged and bool((table["high"] - table["low"] > _VARIES * table["high"]).any())
    return Arms(
        units={arm: int(n) for arm, n in zip(table["arm"], table["n"], strict=True)},
        logged=logged,
        weighted=weighted,
        largest_weight=float(1 / table["low"].min()) if weighted else 1.0,
        largest_outcomes=tuple(float(table[f"largest_{j}"].max()) for j in range(len(spec.outcomes))),
        lowest=dict(zip(table["arm"], map(float, table["low"]), strict=True)) if logged else {},
        clusters=dict(zip(table["arm"], map(int, table["clusters"]), strict=True)) if spec.cluster else {},
    )


def _check_arms(table: pd.DataFrame, spec: EvaluationSpec) -> None:
    if table.empty:
        raise DataError(f"{spec.table} has no hold-out rows: run the features job, or raise `holdout`")
    if table["arm"].isna().any():
        raise DataError(f"{spec.table} has a null treatment in {table.loc[table.arm.isna(), 'n'].iloc[0]} rows")
    if spec.control not in set(table["arm"]):
        raise DataError(
            f"{spec.table} has no hold-out unit of the control arm {spec.control!r}: "
            f"its arms are {sorted(table['arm'])}; correct roles.control"
        )
    if len(table) < 2:
        raise DataError(f"{spec.table} has only the arm {spec.control!r} in its hold-out: nothing to compare")
    if table["logged"].sum() and (count := int(table["bad_propensity"].sum())):
        raise DataError(f"{spec.table} has {count} hold-out rows whose propensity is not in (0, 1]: correct the log")
    if spec.cluster and (count := int(table["strays"].sum())):
        raise DataError(
            f"{spec.table} column {spec.cluster!r} is null in {count} hold-out rows: name every unit's cluster"
        )
    if spec.cluster and (few := table[table["clusters"] < MIN_CLUSTERS]["arm"].tolist()):
        raise DataError(
            f"{spec.table} has fewer than {MIN_CLUSTERS} clusters ({spec.cluster!r}) among the hold-out's units of "
            f"{', '.join(few)}: no interval is known from so few; raise `holdout`, or name smaller clusters"
        )
    for j, outcome in enumerate(spec.outcomes):
        if count := int(table[f"bad_{j}"].sum()):
            raise DataError(f"{spec.table} column {outcome!r} is missing or not finite in {count} hold-out rows")


def check_matched(matched: int, level: str, arms: Arms, spec: EvaluationSpec) -> None:
    """Every unit of a level and of the control must have met exactly one score."""
    required = arms.units[level] + arms.units[spec.control]
    if matched != required:
        state = "missing" if matched < required else "duplicate"
        raise DataError(
            f"{abs(required - matched)} of {required} hold-out units of {spec.table} have a {state} score for "
            f"treatment {level!r}: run the score job again on this training set"
        )


def evaluate_rows(holdout: pd.DataFrame, scores: pd.DataFrame, spec: EvaluationSpec) -> Evaluation:
    """Sum up a hold-out that is in memory under one model's scores; every metric follows from these sums.

    Args:
        holdout: unit_id, treatment (received), propensity (of the arm received; null throughout: not logged), outcome
            and segment columns.
        scores: unit_id, treatment (level scored), uplift: one row per unit and treated level.
        spec: what to evaluate.

    Returns:
        The same sums as those of `evaluation.spark.evaluate` for the same rows in Spark frames.

    Raises:
        DataError: the hold-out is empty, lacks columns or the control arm, or repeats units, or units lack scores.
    """
    columns = [part for segment in spec.segments for part in crossed(segment)]
    check_holdout_columns(holdout, (UNIT, TREATMENT, PROPENSITY, *spec.outcomes, *columns), spec.table)
    holdout = holdout.reset_index(drop=True)
    if holdout.empty:
        raise DataError(f"{spec.table} has no row: give the rows of units that training did not see")
    if repeated := int(holdout[UNIT].duplicated().sum()):
        raise DataError(f"units repeat in {repeated:,} rows of {spec.table}: keep one row of each")
    arms = checked_arms(_arm_rows(holdout, spec), spec)
    levels = ordered_levels(arms, spec)
    uplift = scores.assign(unit=scores[UNIT].astype(str), level=scores[TREATMENT].astype(str))
    if bad := int((~np.isfinite(uplift["uplift"].astype("float64"))).sum()):
        raise DataError(f"{bad} predicted effects of {spec.table} are missing or not finite: leave these units out")
    uplift["benefit"] = benefit(uplift["uplift"].astype("float64"), spec.direction)
    ranges = uplift.groupby("level")["benefit"].agg(["min", "max"])
    if without := [level for level in levels if level not in ranges.index]:
        raise DataError(f"units of {spec.table} have no predicted effect of level {without[0]!r}: score it, too")
    grid = Grid.of(ranges.loc[list(levels), "min"], ranges.loc[list(levels), "max"], len(holdout))
    largest = (*arms.largest_outcomes, max(map(abs, (*grid.lowest, *grid.highest))))
    points = tuple(FixedPoint.of(arms.largest_weight, y) for y in largest)
    units = _unit_rows(holdout, arms, spec)
    parts, ranked = [], []
    for code, level in enumerate(levels):
        mine = units[units["arm"].isin([level, spec.control])]
        rows = mine.merge(uplift.loc[uplift["level"] == level, ["unit", "uplift", "benefit"]], on="unit")
        check_matched(len(rows), level, arms, spec)
        rows = rows.assign(level=code, treated=(rows["arm"] == level).astype("int32"), predicted=rows["uplift"])
        rows["key"] = grid.keys_of(rows["benefit"].to_numpy(), code)
        mass = np.rint(rows["weight"].to_numpy() * 2.0 ** points[0].shifts["w"]).astype(np.int64)
        keys, inverse = np.unique(-rows["key"].to_numpy(), return_inverse=True)
        totals = np.zeros(len(keys), np.int64)
        np.add.at(totals, inverse, mass)
        ranked.append(thresholds(-keys, totals, spec.bins))
        parts.append(rows.drop(columns=["unit", "arm", "uplift", "benefit"]))
    ranking = Ranking(np.stack(ranked))
    plan = SumsPlan(levels, points, spec.replicates, spec.seed, len(spec.segments), spec.cluster is not None)
    batch = pa.RecordBatch.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
    merged = pa.Table.from_batches(merge_cells(add_cells([batch], ranking, plan)))
    return Evaluation(levels, spec, arms, unpacked(merged, ranking.bins, plan))


def _unit_rows(holdout: pd.DataFrame, arms: Arms, spec: EvaluationSpec) -> pd.DataFrame:
    """unit, arm, unit_hash, weight, value_0 …, cut_0 … of each unit."""
    key = pa.array(holdout[spec.cluster or UNIT].astype(str))
    columns: dict[str, Any] = {
        "unit": holdout[UNIT].astype(str),
        "arm": holdout[TREATMENT].astype(str),
        "unit_hash": unit_hashes(key, spec.cluster or UNIT).view(np.int64),
        "weight": 1.0 / holdout[PROPENSITY].astype("float64") if arms.weighted else np.ones(len(holdout)),
    }
    columns |= {f"value_{j}": holdout[name].astype("float64") for j, name in enumerate(spec.outcomes)}
    columns |= {f"cut_{c}": buckets for c, buckets in enumerate(row_buckets(holdout, spec.segments, spec.table))}
    return pd.DataFrame(columns)


def _arm_rows(holdout: pd.DataFrame, spec: EvaluationSpec) -> pd.DataFrame:
    """What `checked_arms` needs."""
    if spec.cluster:
        check_holdout_columns(holdout, (spec.cluster,), spec.table)
    p = holdout[PROPENSITY].astype("float64")
    arm = holdout[TREATMENT].astype(object).where(holdout[TREATMENT].isna(), holdout[TREATMENT].astype(str))
    rows = pd.DataFrame({"arm": arm, "p": p, "bad_propensity": ~((p > 0) & (p <= 1)), "logged": p.notna()})
    how: dict[str, Any] = {"n": ("bad_propensity", "size"), "low": ("p", "min"), "high": ("p", "max")}
    how |= {"bad_propensity": ("bad_propensity", "sum"), "logged": ("logged", "sum")}
    for j, name in enumerate(spec.outcomes):
        values = holdout[name].astype("float64")
        rows[f"bad_{j}"], rows[f"largest_{j}"] = ~(values.abs() < LARGEST), values.abs()
        how |= {f"bad_{j}": (f"bad_{j}", "sum"), f"largest_{j}": (f"largest_{j}", "max")}
    if spec.cluster:
        rows["cluster"], rows["strays"] = holdout[spec.cluster], holdout[spec.cluster].isna()
        how |= {"clusters": ("cluster", "nunique"), "strays": ("strays", "sum")}
    table = rows.groupby("arm", dropna=False).agg(**how).reset_index()
    return table.sort_values("arm", na_position="first", ignore_index=True)


def _tenths(per_bin: np.ndarray) -> np.ndarray:
    return per_bin.reshape(*per_bin.shape[:-1], DECILES, -1).sum(axis=-1)


# --------------------------------------------------------------------------------------------------------------------
# Tables of uplift curves and metrics with intervals: pure functions of an evaluation's sums.

METRICS: dict[str, Callable[[Curve], np.ndarray]] = {
    "ate": lambda curve: curve.average_effect,
    "auuc": lambda curve: curve.auuc,
    "qini": lambda curve: curve.qini,
    "autoc": lambda curve: curve.autoc,
    "top_30_percent_uplift": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3,
    "top_30_percent_minus_average": lambda curve: curve.at(np.array([0.3]))[..., 0] / 0.3 - curve.average_effect,
}
"""Figures of a curve, each [...] from points [..., bins + 1]; the bootstrap takes the same functions."""

EFFECTS = frozenset({"ate", "top_30_percent_uplift", "top_30_percent_minus_average"})
"""Of METRICS the effects on the outcome; the others say how much a ranking brings, in benefit."""


def curve_figures(curve: Curve, direction: Direction) -> dict[str, np.ndarray]:
    """METRICS of a curve of the benefit; those of EFFECTS as effects on an outcome that should go in this direction."""
    return {name: benefit(f(curve), direction) if name in EFFECTS else f(curve) for name, f in METRICS.items()}


def curve_table(evaluation: Evaluation) -> pd.DataFrame:
    """Make a table of uplift curves: the gain at each share of the population, with a pointwise 95 % bootstrap band.

    Gains are of the benefit (`roles.benefit`): positive where treating lowers an outcome of which less is better.

    The columns are those of gold.uplift_curve without run_id.
    """
    fractions = np.linspace(0, 1, evaluation.spec.bins + 1)
    parts = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        gain = np.where(evaluation.enough[:, None], curve.at(fractions), np.nan)
        lower, upper = bootstrap_interval(gain, resampled.at(fractions))
        lower[:, 0], upper[:, 0] = gain[:, 0], gain[:, 0]
        for k, level in enumerate(evaluation.levels):
            parts.append(pd.DataFrame({
                "outcome": outcome, "treatment": level, "fraction": fractions, "gain": gain[k],
                "gain_lower": lower[k], "gain_upper": upper[k], "random_gain": fractions * gain[k, -1],
            }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def metric_table(evaluation: Evaluation) -> pd.DataFrame:
    """Make a table of all metrics with 95 % bootstrap intervals: gold.uplift_metrics without run_id and model_version.

    Those of METRICS, in the outcome's units: where less of the outcome is better, those of EFFECTS are effects on it,
    and the others are positive where a ranking lowers it. For the outcome the model predicts also `calibration_slope`
    (of observed on predicted uplift over deciles; 1 is calibrated), `prediction_bias` (mean prediction minus average
    effect) and, in place of an interval, `calibration_p` and `heterogeneity_p`, the p-values of `stats.tests`.
    """
    rows = []
    for outcome, curve, resampled in _by_outcome(evaluation):
        both = [curve_figures(one, evaluation.spec.direction_of(outcome)) for one in (curve, resampled)]
        figures = {name: (both[0][name], both[1][name]) for name in METRICS}
        if outcome == evaluation.spec.outcomes[0]:
            figures |= _calibration(evaluation, curve, resampled)
        values = {name: np.where(evaluation.enough, value, np.nan) for name, (value, _) in figures.items()}
        bounds = {name: bootstrap_interval(values[name], draws) for name, (_, draws) in figures.items()}
        rows += [
            (outcome, level, name, values[name][k], bounds[name][0][k], bounds[name][1][k])
            for k, level in enumerate(evaluation.levels)
            for name in figures
        ]
    return pd.DataFrame(rows, columns=["outcome", "treatment", "metric", "value", "lower", "upper"])


def _by_outcome(evaluation: Evaluation) -> zip[tuple[str, Curve, Curve]]:
    return zip(evaluation.spec.outcomes, evaluation.curves, evaluation.resampled, strict=True)


def predicted_mean(moments: Moments) -> np.ndarray:
    """Mean prediction over both arms' units, [...] from Moments [..., 2, buckets, values]; `predicted` comes last."""
    both = moments.sum(axis=-3)
    return both.mean[..., -1]


def _calibration(evaluation: Evaluation, curve: Curve, resampled: Curve) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    deciles = evaluation.deciles()
    predicted, mass = predicted_mean(deciles), deciles.w[..., 0].sum(axis=1)
    effects = difference(deciles[:, 1, :, 0], deciles[:, 0, :, 0])
    w, wy = evaluation.resampled_deciles
    means = ratio(wy[..., 0], w)
    observed = effects.estimate
    draws = np.where(np.isfinite(observed), means[:, :, 1] - means[:, :, 0], np.nan)
    tests = bucket_calibration(mass, predicted, effects, draws if evaluation.spec.cluster else None)
    average = predicted_mean(evaluation.sums.moments.sum(axis=2)[:, :, None])[:, 0]
    effect, resampled_effect = (benefit(one.average_effect, evaluation.spec.direction) for one in (curve, resampled))
    return {
        "calibration_slope": (
            calibration_slope(mass, predicted, observed),
            calibration_slope(w.sum(axis=2), predicted, draws),
        ),
        "prediction_bias": (average - effect, average - resampled_effect),
        "calibration_p": (tests.calibration, np.full_like(resampled.average_effect, np.nan)),
        "heterogeneity_p": (tests.heterogeneity, np.full_like(resampled.average_effect, np.nan)),
    }


def with_cuts(metrics: pd.DataFrame, cuts: Mapping[str, Cut]) -> pd.DataFrame:
    """A metric table with what was cut off on record: `winsorised_at`, of every treatment (`any`)."""
    rows = [(outcome, "any", "winsorised_at", cut.at, np.nan, np.nan) for outcome, cut in cuts.items()]
    return pd.concat([metrics, pd.DataFrame(rows, columns=metrics.columns)]) if rows else metrics


MEAN_DOSE_METRIC = "mean_dose"


def with_mean_doses(metrics: pd.DataFrame, doses: Mapping[str, float]) -> pd.DataFrame:
    """A metric table with the mean dose of the units that count as each level on record, the control's, too."""
    rows = [
        (metrics["outcome"].iloc[0], level, MEAN_DOSE_METRIC, dose, np.nan, np.nan) for level, dose in doses.items()
    ]
    return pd.concat([metrics, pd.DataFrame(rows, columns=metrics.columns)]) if rows else metrics


# --------------------------------------------------------------------------------------------------------------------
# Predictions against the true effects of a simulated campaign: error, correlation, true Qini and the oracle's.


TRUTH_UNITS = 2.0**30
"""Fixed point of true effects, which are of the size of the outcome."""


@dataclass(frozen=True)
class Truth:
    """One level's predictions against the true effects over the whole hold-out (simulations).

    rmse, correlation, average_effect over units; curve of the model's ranking, and of the ranking by the true effect,
    exact up to ties of rank keys. Curves are those of the benefit, see `roles.benefit`.
    """

    rmse: float
    correlation: float
    average_effect: float
    curve: Curve
    oracle: Curve
    direction: Direction = "increase"

    def details(self) -> dict[str, float]:
        """Figures for the job's result."""
        return {
            "rmse": self.rmse, "correlation": self.correlation, "average_effect": self.average_effect,
            "true_qini": float(self.curve.qini), "true_auuc": float(self.curve.auuc),
            "oracle_qini": float(self.oracle.qini), "oracle_auuc": float(self.oracle.auuc),
        }  # fmt: skip


def truth_of(counted: pd.DataFrame, direction: Direction = "increase") -> Truth:
    """Truth from one level's counts, keys being those of benefits: the row without any key is the whole level."""
    whole = counted[counted["by_predicted"].isna() & counted["by_effect"].isna()].iloc[0]
    curves = []
    for key in ("by_predicted", "by_effect"):
        ranked = counted[counted[key].notna()].sort_values(key, ascending=False)
        curves.append(true_curve(ranked["n"].to_numpy(), benefit(ranked["total"].to_numpy() / TRUTH_UNITS, direction)))
    return Truth(
        rmse=float(whole["rmse"]),
        correlation=_correlation(whole),
        average_effect=float(whole["total"] / TRUTH_UNITS / whole["n"]),
        curve=curves[0],
        oracle=curves[1],
        direction=direction,
    )


def truth_of_rows(
    units: pd.DataFrame,
    predicted: pd.DataFrame,
    effect: pd.DataFrame,
    levels: tuple[str, ...],
    direction: Direction = "increase",
) -> dict[str, Truth]:
    """Compare predictions with true effects, by level, of rows in memory.

    Args:
        units: `unit` of the hold-out.
        predicted: `unit`, `level` and `value`, the predicted effect; none of them missing.
        effect: The same of the true effect.
        levels: To compare; those that lack predictions or true effects are left out.
        direction: Which way the outcome should go.

    Returns:
        {level: truth}.
    """
    limits = [
        benefit(rows["value"], direction).groupby(rows["level"]).agg(["min", "max", "size"])
        for rows in (predicted, effect)
    ]
    levels = tuple(level for level in levels if all(level in each.index for each in limits))
    if not levels:
        return {}
    grids = [Grid.of(each["min"][list(levels)], each["max"][list(levels)], each["size"].max()) for each in limits]
    pairs = units.merge(predicted, on="unit").merge(effect, on=["unit", "level"], suffixes=("_p", "_e"))
    return {
        level: truth_of(_counted_rows(pairs[pairs["level"] == level], code, grids, direction), direction)
        for code, level in enumerate(levels)
    }


def _counted_rows(pairs: pd.DataFrame, code: int, grids: list[Grid], direction: Direction) -> pd.DataFrame:
    """What `truth_of` takes: a row for the level, and one for each key of the predictions and of the true effects."""
    p, e = (pairs[name].to_numpy(float) for name in ("value_p", "value_e"))
    total = np.rint(e * TRUTH_UNITS).astype(np.int64)
    means = {"p": p, "e": e, "pp": p * p, "ee": e * e, "pe": p * e}
    whole = {"n": len(p), "total": total.sum(), "rmse": math.sqrt(np.mean((p - e) ** 2))}
    parts = [pd.DataFrame([whole | {name: values.mean() for name, values in means.items()}])]
    for name, grid, values in zip(("by_predicted", "by_effect"), grids, (p, e), strict=True):
        keys = grid.keys_of(benefit(values, direction), code)
        by_key = pd.DataFrame({name: keys, "total": total}).groupby(name)["total"]
        parts.append(by_key.agg(n="size", total="sum").reset_index())
    return pd.concat(parts, ignore_index=True)


def _correlation(means: pd.Series) -> float:
    """Pearson's correlation from the means of both values and their products; NaN where one of them does not vary."""
    spreads = [means["pp"] - means["p"] ** 2, means["ee"] - means["e"] ** 2]
    sizes = [means["pp"], means["ee"]]
    if any(spread <= 1e-12 * size for spread, size in zip(spreads, sizes, strict=True)):
        return float("nan")
    return float((means["pe"] - means["p"] * means["e"]) / math.sqrt(spreads[0] * spreads[1]))
