"""A frame's rows, checked and cast once, as the typed arrays that the kernels take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.forest.binning import (
    ArrowRows,
    FeatureBins,
    Features,
    NumberColumn,
    TextColumn,
    TypedColumn,
    apply_bins,
    as_numbers,
    as_text,
    check_feature,
    encode_features,
    flat,
    is_number,
    is_text,
)
from uplift_spark.forest.grow import Baseline
from uplift_spark.forest.overlap import Overlap
from uplift_spark.forest.trees import MAX_FEATURES
from uplift_spark.roles import Levels, Roles, levels_at_doses
from uplift_spark.stats.sampling import BUCKET_SALT, folds_of, mix64_all, unit_hashes

# --------------------------------------------------------------------------------------------------------------------
# Treatments that are numbers: doses cut into cells, so that leaf sums of a few cells stand for all doses.
# A cell is to the forest what a level is: leaf sums hold Σw and Σwy of each. The effect of any dose is the regression
# of the cells' means on the basis of their mean doses (`forest.effects`), as one regresses on the rows themselves:
# grouping rows by what is regressed on leaves coefficients unbiased (Prais & Aitchison 1954), and 16 groups of equal
# size keep 98 % of a normal dose's variance between them.

CELLS = 16
MONOTONE = ("increasing", "decreasing")
_DIGITS = 3  # significant ones, by which doses are counted: a summary stays small whatever the doses


def counted_as(doses: np.ndarray) -> pa.Array:
    """What doses [n] are counted as in a summary: three significant digits as text, null where not finite."""
    known = np.isfinite(doses)
    distinct, where = np.unique(np.where(known, doses, 0.0), return_inverse=True)
    texts = np.array([f"{dose:.{_DIGITS}g}" for dose in distinct + 0.0])
    return pa.array(texts[where], mask=~known)


def cells_of(counts: Mapping[str, int], roles: Roles) -> tuple[Levels, tuple[float, ...]]:
    """Cells of about as many rows each, and the doses that part them, from rows by dose as `counted_as` text.

    A dose that a cell's share of the rows received has a cell to itself. Raises DataError if all doses are the same.
    """
    doses = np.array([float(dose) for dose in counts])
    order = np.argsort(doses, kind="stable")
    doses, rows = doses[order], np.array(list(counts.values()), np.float64)[order]
    if doses.size < 2:
        raise DataError(
            f"column {roles.treatment!r} holds the dose {', '.join(counts) or 'none'} in all rows: no effect shows"
        )
    cell = np.arange(doses.size)
    if doses.size > CELLS:
        alone = rows >= rows.sum() / CELLS
        others = np.where(alone, 0.0, rows)
        middle = (np.cumsum(others) - others / 2) / max(others.sum(), 1.0) * (CELLS - alone.sum())
        new = np.r_[True, np.diff(np.floor(middle)) > 0] | alone | np.r_[False, alone[:-1]]
        cell = np.cumsum(new) - 1
    weight = np.bincount(cell, rows)
    means = np.bincount(cell, rows * doses) / weight
    first = np.flatnonzero(np.r_[True, np.diff(cell) > 0])
    last = np.r_[first[1:] - 1, doses.size - 1]
    names = tuple(
        f"{doses[a]:g}" if a == b else f"{doses[a]:g} to {doses[b]:g}" for a, b in zip(first, last, strict=True)
    )
    edges = (doses[last[:-1]] + doses[first[1:]]) / 2
    return Levels(names, tuple(means.tolist())), tuple(edges.tolist())


def cell_rows(counts: Mapping[str, int], cells: Levels, edges: tuple[float, ...]) -> dict[str, int]:
    """Rows of each cell, from rows by dose as `counted_as` text."""
    rows_by_cell = dict.fromkeys(cells.names, 0)
    for dose, rows in counts.items():
        rows_by_cell[cells.names[int(np.searchsorted(edges, float(dose)))]] += rows
    return rows_by_cell


def monotone(effect: np.ndarray, doses: np.ndarray, direction: str) -> np.ndarray:
    """The effects [n, K-1] nearest to the given ones that only rise, or only fall, with the dose [K], control's first.

    Isotonic regression of each row (Barlow et al. 1972), zero at the control. No farther from any response that goes
    that way than the given effects were, so their errors hold.
    """
    order = np.argsort(doses[1:], kind="stable")
    sorted_doses, sign = doses[1:][order], 1.0 if direction == "increasing" else -1.0
    below, x = int(np.searchsorted(sorted_doses, doses[0])), sign * effect[:, order]
    sides = (np.minimum(_isotonic(x[:, :below]), 0.0), np.maximum(_isotonic(x[:, below:]), 0.0))
    projected = np.empty_like(effect)
    projected[:, order] = sign * np.concatenate(sides, axis=1)
    return projected


def _isotonic(x: np.ndarray) -> np.ndarray:
    """Largest of the smallest means: max over a <= i of min over b >= i of the mean of x[a..b]; [n, m]."""
    sums = np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1)], axis=1)
    result = np.full_like(x, -np.inf)
    for a in range(x.shape[1]):
        means = (sums[:, a + 1 :] - sums[:, a : a + 1]) / np.arange(1, x.shape[1] - a + 1)
        result[:, a:] = np.maximum(result[:, a:], np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1])
    return result


# --------------------------------------------------------------------------------------------------------------------
# From a frame's rows to what the kernels eat: summaries, the training plan, encoded rows, who grows and who
# estimates.
# Everything here is exact and independent of order and partitioning: summaries merge, outcomes and weights become
# fixed-point integers once, and every draw is a hash of the unit or cluster id.

_HEADROOM = 6  # bits left free in the sums, so that more rows can be added to those of training (`room`)
_SPARE = 62 - _HEADROOM
_LARGER = 2  # bits of the headroom for rows with larger outcomes or weights than those of training
_CORRECTION = 3  # bits: centred and corrected for bias an outcome is at most 2 (y - m) - μ, six times the largest |y|


@dataclass(frozen=True)
class Summary:
    """Mergeable counts of one frame: what the plan needs and what bad input looks like.

    bad maps "column: problem" to the number of rows; outcomes map a column, propensity a level, to the (smallest,
    largest) value; ends map an outcome and a level to the rows that have the smallest, and the largest.
    """

    rows: int = 0
    levels: Mapping[str, int] = field(default_factory=dict)
    bad: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weight: float = 0.0
    propensity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ends: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.rows + other.rows,
            _added(self.levels, other.levels),
            _added(self.bad, other.bad),
            _widened(self.outcomes, other.outcomes),
            max(self.weight, other.weight),
            _widened(self.propensity, other.propensity),
            _ends_of_both(self, other),
        )

    @property
    def weighted_by_propensity(self) -> bool:
        """Whether propensities vary inside some level; constant ones cancel in every level's mean."""
        return any(low < high for low, high in self.propensity.values())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Summary:
        """The inverse of dataclasses.asdict after a JSON round trip."""
        bounds = {part: {k: (v[0], v[1]) for k, v in raw[part].items()} for part in ("outcomes", "propensity")}
        ends = {name: {k: (v[0], v[1]) for k, v in of.items()} for name, of in raw["ends"].items()}
        return cls(**{**raw, **bounds, "ends": ends})


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted({*one, *other})}


def _ends_of_both(one: Summary, other: Summary) -> dict[str, dict[str, tuple[int, int]]]:
    """Rows at the ends of both; those at an end of one that the other goes beyond count no more."""
    bounds, merged = _widened(one.outcomes, other.outcomes), {}
    for name, outer in bounds.items():
        counts: dict[str, tuple[int, int]] = {}
        for part in filter(lambda part: name in part.ends, (one, other)):
            inner = part.outcomes[name]
            for level, rows in part.ends[name].items():
                before = counts.get(level, (0, 0))
                low, high = (rows[end] * (inner[end] == outer[end]) for end in (0, 1))
                counts[level] = (before[0] + low, before[1] + high)
        merged[name] = dict(sorted(counts.items()))
    return merged


def _widened(
    one: Mapping[str, tuple[float, float]], other: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    nothing = (math.inf, -math.inf)
    pairs = {key: (one.get(key, nothing), other.get(key, nothing)) for key in sorted({*one, *other})}
    return {key: (min(a[0], b[0]), max(a[1], b[1])) for key, (a, b) in pairs.items()}


@dataclass(frozen=True)
class TypedRows:
    """Rows of a frame, every column checked and cast once (`encode`); n rows, in the frame's order.

    unit         hash of each unit's id, uint64 [n]
    cluster      likewise of each cluster's id; None without clusters
    treatment    level names with a dictionary or, with `roles.grid`, doses
    outcomes     float64 [n] of each column of `roles.outcomes`
    weight, propensity  float64 [n]; None without such a column
    features     numbers, or codes with a dictionary
    missing_ids  bool [n] of each id column that has nulls; the hash of a null is 0
    """

    roles: Roles
    unit: np.ndarray
    cluster: np.ndarray | None
    treatment: TypedColumn
    outcomes: Mapping[str, np.ndarray]
    weight: np.ndarray | None
    propensity: np.ndarray | None
    features: Features
    missing_ids: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return int(self.unit.size)

    @property
    def key(self) -> np.ndarray:
        """Hash of what is drawn together, the cluster or else the unit: uint64 [n]."""
        return self.unit if self.cluster is None else self.cluster

    def take(self, which: np.ndarray) -> TypedRows:
        """The rows that a mask or an index array picks."""

        def part(values: np.ndarray | None) -> Any:
            return None if values is None else values[which]

        return TypedRows(
            self.roles,
            part(self.unit),
            part(self.cluster),
            self.treatment.take(which),
            {name: part(values) for name, values in self.outcomes.items()},
            part(self.weight),
            part(self.propensity),
            {name: column.take(which) for name, column in self.features.items()},
            {name: part(mask) for name, mask in self.missing_ids.items()},
        )

    @property
    def level(self) -> TextColumn:
        """The treatment as text: names of levels, or doses."""
        return self.treatment if isinstance(self.treatment, TextColumn) else _as_levels(pa.array(self.treatment.values))

    def level_codes(self) -> tuple[list[str], np.ndarray]:
        """Names of the levels in alphabetical order, and the code of each row's, int64 [n], -1 where missing."""
        names = sorted(self.level.names.to_pylist())
        return names, self.level.coded_by(names)


def encode(frame: ArrowRows, roles: Roles, threads: int = 1) -> TypedRows:
    """Check a frame's columns and cast each of them once. What comes after takes the result, not the frame.

    Raises DataError where a column is missing or of a kind that its role cannot have. Values are counted by
    `summarise` and judged by `check_summary`.
    """
    kinds = {field.name: field.type for field in frame.schema}
    check_columns(kinds, roles.columns, roles.features)
    check_parts(kinds, roles)
    missing: dict[str, np.ndarray] = {}

    def hashes(name: str) -> np.ndarray:
        ids = flat(frame.column(name))
        if not ids.null_count:
            return unit_hashes(ids, name)
        known = ids.is_valid().to_numpy(zero_copy_only=False)
        missing[name], result = ~known, np.zeros(len(ids), np.uint64)
        result[known] = unit_hashes(ids.drop_null(), name)
        return result

    def numbers(name: str | None) -> np.ndarray | None:
        return None if name is None else as_numbers(frame.column(name)).values

    treatment = frame.column(roles.treatment)
    return TypedRows(
        roles,
        hashes(roles.unit),
        None if roles.cluster is None else hashes(roles.cluster),
        as_numbers(treatment) if roles.grid else _as_levels(treatment),
        {name: as_numbers(frame.column(name)).values for name in roles.outcomes},
        numbers(roles.weight),
        numbers(roles.propensity),
        encode_features(frame, roles.features, threads),
        missing,
    )


def check_columns(kinds: Mapping[str, pa.DataType], columns: Iterable[str], features: Iterable[str]) -> None:
    """Raise DataError if a column is missing or a feature is neither numeric nor text."""
    for column in columns:
        if column not in kinds:
            raise DataError(f"column {column!r} is missing from the frame: {hint(column, kinds)}")
    for column in features:
        check_feature(column, kinds[column])


def check_parts(kinds: Mapping[str, pa.DataType], roles: Roles) -> None:
    """Raise DataError if an id is neither text nor integer, or outcome, weight or propensity is not numeric."""
    for part, column in (("unit", roles.unit), ("cluster", roles.cluster)):
        if column is not None and not (is_text(kinds[column]) or pa.types.is_integer(kinds[column])):
            raise DataError(f"{part} column {column!r} has type {kinds[column]}: ids must be text or integers; cast it")
    outcomes = [("outcome", column) for column in roles.outcomes]
    doses = [("treatment", roles.treatment)] if roles.grid else []
    for part, column in (*doses, *outcomes, ("weight", roles.weight), ("propensity", roles.propensity)):
        if column is not None and not is_number(kinds[column]):
            raise DataError(f"{part} column {column!r} has type {kinds[column]}: it must be numeric; cast it")


def _as_levels(treatment: pa.ChunkedArray | pa.Array) -> TextColumn:
    """Treatment as text, missing where null or NaN; whole floats and decimals read like integers (1.0 is "1")."""
    array = flat(treatment)
    if pa.types.is_decimal(array.type):
        array = pc.cast(array, pa.float64())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return as_text(array)


def encode_numbers(frame: ArrowRows, columns: Iterable[str]) -> dict[str, np.ndarray]:
    """Some numeric columns of a frame alone, float64 [n] each, null as NaN."""
    return {name: as_numbers(frame.column(name)).values for name in columns}


def encode_treatment(frame: ArrowRows, treatment: str) -> TextColumn:
    """The levels of a frame's rows alone, for choosing rows by level."""
    return _as_levels(frame.column(treatment))


def summarise(rows: TypedRows) -> Summary:
    """Summary of one batch of rows."""
    roles, n = rows.roles, len(rows)
    bad = {f"{name}: null": int(mask.sum()) for name, mask in rows.missing_ids.items()}
    if isinstance(rows.treatment, NumberColumn):
        doses = counted_as(rows.treatment.values).drop_null().value_counts()
        levels = dict(zip(doses.field(0).to_pylist(), doses.field(1).to_pylist(), strict=True))
        bad[f"{roles.treatment}: null, NaN or infinite"] = n - sum(levels.values())
    else:
        levels = rows.treatment.counts()
        bad[f"{roles.treatment}: null or NaN"] = n - sum(levels.values())
    bounds = {}
    for name, outcome in rows.outcomes.items():
        finite = outcome[np.isfinite(outcome)]
        bad[f"{name}: null, NaN or infinite"] = n - finite.size
        bounds[name] = (float(finite.min(initial=math.inf)), float(finite.max(initial=-math.inf)))
    for name, column in rows.features.items():
        if isinstance(column, NumberColumn):
            bad[f"{name}: infinite"] = int(np.isinf(column.values).sum())
    weight, unusable = _weights(rows)
    bad.update(unusable)
    problems = {name: count for name, count in bad.items() if count}
    heaviest = float(np.nanmax(weight, initial=0.0))
    ends = {name: _ends(rows, outcome, bounds[name]) for name, outcome in rows.outcomes.items()}
    return Summary(n, dict(sorted(levels.items())), problems, bounds, heaviest, _propensity_bounds(rows), ends)


def _ends(rows: TypedRows, outcome: np.ndarray, bounds: tuple[float, float]) -> dict[str, tuple[int, int]]:
    """Rows of each level that have the smallest outcome, and the largest; none where treatments are doses."""
    if isinstance(rows.treatment, NumberColumn):
        return {}
    known, names = rows.treatment.codes >= 0, rows.treatment.names.to_pylist()
    low, high = (
        np.bincount(rows.treatment.codes[known & (outcome == end)], minlength=len(names)).tolist() for end in bounds
    )
    present = np.bincount(rows.treatment.codes[known], minlength=len(names)) > 0
    return {name: (low[k], high[k]) for k, name in enumerate(names) if present[k]}


def _weights(rows: TypedRows) -> tuple[np.ndarray, dict[str, int]]:
    """Largest weight a row can get (sample weight over propensity), float64 [n], and the rows that break the rules."""
    roles, weight = rows.roles, np.ones(len(rows))
    bad = {}
    if rows.weight is not None:
        good = np.isfinite(rows.weight) & (rows.weight > 0)
        bad[f"{roles.weight}: not a positive finite weight"] = int((~good).sum())
        weight = weight * rows.weight
    if rows.propensity is not None:
        inside = (rows.propensity > 0) & (rows.propensity <= 1)
        bad[f"{roles.propensity}: not a probability in (0, 1]"] = int((~inside).sum())
        weight = weight / np.where(inside, rows.propensity, 1.0)
    return weight, bad


def _propensity_bounds(rows: TypedRows) -> dict[str, tuple[float, float]]:
    if rows.propensity is None or isinstance(rows.treatment, NumberColumn):
        return {}
    grouped = pa.table({"level": rows.treatment.codes, "p": rows.propensity}).group_by("level")
    table = grouped.aggregate([("p", "min"), ("p", "max")]).to_pylist()
    names = rows.treatment.names.to_pylist()
    return {names[r["level"]]: (r["p_min"], r["p_max"]) for r in table if r["level"] >= 0}


_REPORTED = "told"  # the name of `reported` in model files


@dataclass(frozen=True)
class ForestPlan:
    """Everything that decides a forest except the rows; JSON-able, so it travels to workers and into the model file.

    A tree t is grown on the buckets t, ..., t + growth_buckets - 1 (mod n_buckets) and estimated on the others.

    levels      whose rows leaf sums hold apart: those received, or cells of doses (`forest.encode`)
    exponents   binary exponents of the fixed-point weight and of w·y of each outcome
    limits      min_leaf (rows), max_depth, min_gain, imbalance, mtry, min_share as given to the grower
    reported    the levels that effects are reported for, by the response that the criterion's basis allows
                (`forest.effects`); None: `levels`, each by the rows that received it
    edges       doses that part the cells, none where `levels` are those received
    partial     effects are those of one unit more of a dose, not those of the dose against the control's
    monotone    how effects may go with the dose (`encode.MONOTONE`); None: freely
    reason      why the criterion is what it is
    effective   of outcomes whose events differ in size, effective share of each level's (`overlap.effective_shares`)
    overlap     propensities of the levels where features tell them; arrays, which files keep beside the plan
    """

    roles: Roles
    levels: Levels
    bins: tuple[FeatureBins, ...]
    criterion: str
    seed: int
    n_trees: int
    bag_size: int
    n_buckets: int
    growth_buckets: int
    limits: Mapping[str, float]
    exponents: tuple[int, ...]
    weighted_by_propensity: bool
    debias: bool
    reported: Levels | None = None
    edges: tuple[float, ...] = ()
    partial: bool = False
    monotone: str | None = None
    reason: str = ""
    effective: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    overlap: Overlap | None = field(default=None, compare=False)

    @property
    def weighted(self) -> bool:
        """Whether rows weigh by propensities, logged or learnt."""
        return self.weighted_by_propensity or self.overlap is not None

    def of(self, outcome: str) -> ForestPlan:
        """The plan as if it were made for one of its outcomes alone."""
        w_bits, *y_bits = self.exponents
        exponents = (w_bits, y_bits[self.roles.outcomes.index(outcome)])
        # Which way is better is said of the first outcome alone.
        direction = self.roles.direction if outcome == self.roles.outcome else "increase"
        roles = replace(self.roles, outcome=outcome, more_outcomes=(), direction=direction)
        effective = {name: shares for name, shares in self.effective.items() if name == outcome}
        return replace(self, roles=roles, exponents=exponents, effective=effective)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values, under the names that model files know."""
        raw = {**asdict(replace(self, bins=(), overlap=None)), "bins": [b.to_dict() for b in self.bins]}
        del raw["overlap"]
        if not self.effective:
            del raw["effective"]
        raw["roles"] = {**self.roles.record, "features": [b.name for b in self.bins]}
        raw[_REPORTED] = raw.pop("reported")
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ForestPlan:
        bins = tuple(FeatureBins.from_dict(b) for b in raw["bins"])
        levels, reported = (_levels(raw.get(part)) for part in ("levels", _REPORTED))
        known = {**raw, "roles": Roles(**raw["roles"]), "levels": levels, "reported": reported, "bins": bins}
        known.pop(_REPORTED, None)
        return cls(**{**known, "exponents": tuple(raw["exponents"]), "edges": tuple(raw.get("edges", ()))})

    def level_rows(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Rows of every level from `Summary.levels`."""
        return cell_rows(counts, self.levels, self.edges) if self.edges else dict(counts)


def _levels(raw: Mapping[str, Any] | None) -> Levels | None:
    if raw is None:
        return None
    doses = raw["doses"]
    if doses is not None:
        doses = tuple(tuple(one) if isinstance(one, list) else one for one in doses)
    return Levels(tuple(raw["names"]), doses)


def make_levels(summary: Summary, roles: Roles) -> tuple[Levels, Levels | None, tuple[float, ...]]:
    """`levels`, `reported` and `edges` of a plan.

    Raises DataError if the control, or any second arm, is missing or an arm has no dose.
    """
    level_rows = summary.levels
    if roles.grid:
        levels, edges = cells_of(level_rows, roles)
        return levels, levels_at_doses(roles.control, roles.grid), edges
    if roles.control not in level_rows:
        raise DataError(
            f"control level {roles.control!r} is missing from column {roles.treatment!r}: found {list(level_rows)}"
        )
    if len(level_rows) < 2:
        raise DataError(
            f"column {roles.treatment!r} holds only {roles.control!r}: at least one treated level is needed"
        )
    if roles.dose is None:
        return Levels((roles.control, *sorted(set(level_rows) - {roles.control}))), None, ()
    unknown = {name: count for name, count in level_rows.items() if name not in roles.dose}
    if unknown:
        raise DataError(f"column {roles.treatment!r} has levels without a dose (rows): {unknown}; name them in `dose`")
    doses = {name: dose if isinstance(dose, float) else tuple(dose) for name, dose in roles.dose.items()}
    names = sorted(level_rows, key=lambda name: (name != roles.control, doses[name]))
    return Levels(tuple(names), tuple(doses[name] for name in names)), None, ()


def check_repeated(rows: int, unit: str) -> None:
    """Raise DataError if there are rows of a unit beside its first."""
    if rows:
        raise DataError(f"column {unit!r} repeats a unit in {rows:,} rows: keep one row per unit")


def repeated_rows(units: np.ndarray) -> int:
    """Rows of a unit beside its first, from hashes of units [n]."""
    return int(units.size - np.unique(units).size)


def check_any_rows(rows: int) -> None:
    """Raise DataError for a frame of no rows, whose columns may have no types yet."""
    if rows == 0:
        raise DataError("the training frame has no rows: check the filter or the upstream job")


def check_summary(summary: Summary, roles: Roles) -> None:
    """Raise DataError naming the first broken column, its row count and the fix."""
    check_any_rows(summary.rows)
    if summary.bad:
        problem, count = next(iter(summary.bad.items()))
        raise DataError(f"column {problem} in {count} of {summary.rows} rows: fix or drop these rows before training")
    if len(roles.features) > MAX_FEATURES:
        raise ConfigError(f"{len(roles.features)} features, the forest takes {MAX_FEATURES} at most")
    if len(summary.levels) > 127 and not roles.grid:
        raise DataError(f"column {roles.treatment!r} has {len(summary.levels)} levels, 127 at most: is it a number?")


def exponents(summary: Summary, roles: Roles, weighted: bool = False) -> tuple[int, ...]:
    """Binary exponents that keep every sum of the training rows, with headroom, inside 63 bits.

    weighted  whether rows weigh less than one by learnt propensities
    """
    weighted = weighted or roles.weight is not None or summary.weighted_by_propensity
    bits = _SPARE - math.ceil(math.log2(summary.rows + 1))
    heavy = summary.weight if weighted else 1.0
    # Small scales, such as weights that add up to one, take more bits, so that no row is rounded away.
    result = [min(20 + _small(heavy), bits - _log2(heavy)) if weighted else 0]
    for name in roles.outcomes:
        largest = heavy * max(map(abs, summary.outcomes[name]))
        result.append(min(40 + _small(largest), bits - _log2(largest) - _CORRECTION))
    return tuple(result)


def room(rows: int) -> tuple[int, int, int]:
    """(rows, weight of a row, w·y of a row), the latter two in fixed point, for which sums have room under `exponents`
    of so many training rows: none overflows, corrected for bias or not.

    The headroom is for 16 times the rows, and 4 times the largest weight and outcome planned for.
    """
    bits = _SPARE - math.ceil(math.log2(rows + 1)) + _LARGER
    return rows << (_HEADROOM - _LARGER), 1 << bits, 1 << (bits - _CORRECTION)


def _log2(value: float) -> int:
    return math.ceil(math.log2(value)) if value > 0 else 0


def _small(value: float) -> int:
    return max(0, -_log2(value))


class BinnedRows(NamedTuple):
    """Rows ready for the kernels; all arrays have length n, bins is uint8 [n, p], wy int64 [n, m]: w·y per outcome."""

    unit: np.ndarray
    key: np.ndarray
    bucket: np.ndarray
    level: np.ndarray
    w: np.ndarray
    wy: np.ndarray
    bins: np.ndarray

    def take(self, which: np.ndarray | slice) -> BinnedRows:
        """The rows a mask, an index array or a slice picks."""
        return BinnedRows(*(column[which] for column in self))


def bin_rows(
    rows: TypedRows, plan: ForestPlan, baselines: Sequence[Baseline | None] = (), threads: int = 1
) -> BinnedRows:
    """What the kernels take of checked rows: hashes, bucket, level code, fixed-point sums of the (centred) outcomes,
    bins. The rows may have more outcomes than the plan."""
    w_bits, *y_bits = plan.exponents
    bins = apply_bins(rows.features, plan.bins, threads)
    # No row counts nothing: sums of weights are divided by.
    level = plan_level_codes(rows, plan)
    weight = weights_of(rows, plan)
    if plan.overlap is not None:
        fold = folds_of(rows.key, np.uint64(plan.seed))
        weight = weight * plan.overlap.weights((bins, fold, level), plan.weighted_by_propensity, threads)
    weight = np.maximum(fixed(weight, w_bits), 1)
    # Outcomes times the weights as they were rounded: means are exact however small a weight is beside the largest.
    w = np.ldexp(weight.astype(np.float64), -w_bits)
    wy = np.empty((len(rows), len(y_bits)), np.int64)
    for j, name in enumerate(plan.roles.outcomes):
        wy[:, j] = fixed(w * rows.outcomes[name], y_bits[j])
    binned = BinnedRows(rows.unit, rows.key, buckets_of(rows.key, plan), level, weight, wy, bins)
    return centred(binned, plan, baselines, threads)


def plan_level_codes(rows: TypedRows, plan: ForestPlan) -> np.ndarray:
    """Code of the level, or cell of doses, that each row received: uint8 [n]."""
    if isinstance(rows.treatment, NumberColumn):
        return np.searchsorted(plan.edges, rows.treatment.values).astype(np.uint8)
    return rows.treatment.coded_by(plan.levels.names, missing=0).astype(np.uint8)


def weights_of(rows: TypedRows, plan: ForestPlan) -> np.ndarray:
    """What every row counts for: its weight, over its propensity where the plan weighs by it; float64 [n]."""
    w = np.ones(len(rows)) if rows.weight is None else rows.weight
    if plan.weighted_by_propensity and rows.propensity is not None:
        w = w / rows.propensity
    return w


def buckets_of(key: np.ndarray, plan: ForestPlan) -> np.ndarray:
    """The bucket of each row: int32 [n]."""
    return (mix64_all(key, np.uint64(plan.seed), BUCKET_SALT) % np.uint64(plan.n_buckets)).astype(np.int32)


def centred(
    rows: BinnedRows, plan: ForestPlan, baselines: Sequence[Baseline | None], threads: int = 1, sign: int = -1
) -> BinnedRows:
    """The rows with each outcome's baseline, if any, taken off, or with sign 1 put back on, to the bit."""
    w_bits, *y_bits = plan.exponents
    wy, fold = rows.wy.copy(), folds_of(rows.key, np.uint64(plan.seed))
    for j, baseline in enumerate(baselines):
        if baseline is not None:
            prediction = baseline.predict(rows.bins, fold, threads)
            wy[:, j] += sign * fixed(np.ldexp(rows.w.astype(np.float64), -w_bits) * prediction, y_bits[j])
    return rows._replace(wy=wy)


def keys_of(batch: ArrowRows, roles: Roles) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the units and of what is drawn together, the cluster or else the unit: uint64 [n] each."""
    unit = unit_hashes(batch.column(roles.unit), roles.unit)
    return unit, unit if roles.cluster is None else unit_hashes(batch.column(roles.cluster), roles.cluster)


def fixed(values: np.ndarray, exponent: int) -> np.ndarray:
    """values x 2^exponent as int64."""
    return np.rint(np.ldexp(values, exponent)).astype(np.int64)
