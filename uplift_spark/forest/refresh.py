"""New labels into trees that stand, and whether the splits still serve."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import chi2

from uplift_spark.errors import ConfigError, DataError, UnfitRowsError
from uplift_spark.forest.binning import TextColumn
from uplift_spark.forest.defaults import bins_of
from uplift_spark.forest.effects import CORRECTED_VARIANCE
from uplift_spark.forest.encode import (
    BinnedRows,
    ForestPlan,
    Summary,
    TypedRows,
    bin_rows,
    check_columns,
    check_repeated,
    check_summary,
    encode,
    repeated_rows,
    room,
    summarise,
    weights_of,
)
from uplift_spark.forest.estimate import (
    SHAPE_ROWS,
    add_to_leaves,
    correct,
    empty_sums,
    finished,
    grown_parts,
    plain_shares,
)
from uplift_spark.forest.forest import Forest
from uplift_spark.stats.sampling import SAMPLE_SALT, mix64_all

# --------------------------------------------------------------------------------------------------------------------
# Do new rows still fit a forest's splits? A test on what the forest leaves unexplained of effects.
# A row's residual is its outcome less what the forest expects of it at its level, from the bags that do not hold the
# row. Effects of residuals, level against control, are taken in coarse groups of every feature, on the new rows and on
# those the forest was trained on, and compared by chi-square. Where nothing has changed the two have the same
# expectation, however biased the forest is, and errors of the forest are in both alike and cancel. So no forest need
# be good for the test to hold its level, and rows of another mix of features do no harm as far as the forest explains
# effects.
#
# The test is run twice. `changed`: the forest's own sums expect the outcomes; effects are not what they were. `stale`:
# the same trees do with the sums of the new rows alone, so what a refresh can follow is explained and what is left is
# what these splits cannot separate: a regrow is due. Residuals then vary somewhat less than their errors say, where
# splits follow a feature, so without change `stale` is found less often than its level: in 1 to 3 % of 500
# replications.
#
# The smallest of the features' p-values counts, times their number (Bonferroni). Residuals are sums of rows and add.

BIN_GROUPS = 4  # of a feature's bins, which hold about equally many rows each
MIN_GROUP_ROWS = 30  # rows of a level in a group, old and new, for the group to count
LEVEL = 0.05


@dataclass(frozen=True)
class Residuals:
    """Sums over rows by feature, group and level, float64 [p, GROUPS, K, 6]: 1, w, wr, w², w²r, w²r² of residuals r."""

    sums: np.ndarray

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(self.sums + other.sums)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, mean residual, its variance), each [p, GROUPS, K]; NaN where there are no rows."""
        n, w, wr, ww, wwr, wwrr = np.moveaxis(self.sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = wr / w
            variance = (wwrr - 2.0 * mean * wwr + mean**2 * ww) / w**2
        return n, mean, variance


@dataclass(frozen=True)
class Staleness:
    """What `staleness` found: p-values, and the feature along which new effects are least explained by the splits.

    changed  small: the new rows' effects are not those of the rows the forest was trained on
    stale    small: nor can its splits express them
    """

    changed: float
    stale: float
    feature: str

    @property
    def regrow(self) -> bool:
        """Whether a regrow is due, at the 5 % level."""
        return self.stale < LEVEL


def forest_residuals(forest: Forest, table: pa.Table, anew: bool = False) -> Residuals:
    """Residuals of rows, on the first outcome; `anew`: by the sums of these rows alone in the forest's trees.

    The rows are checked ones (`refresh.counted`). Raises ConfigError for units in clusters, which are not independent.
    """
    if forest.roles.cluster is not None:
        raise ConfigError(f"roles.cluster {forest.roles.cluster!r}: the test of splits takes rows as independent")
    return _residuals(forest, _residual_rows(forest, table), anew)


def _residual_rows(forest: Forest, table: pa.Table) -> TypedRows:
    """The table's rows with the first outcome alone."""
    return encode(table, replace(forest.roles, more_outcomes=(), scores=None), os.cpu_count() or 1)


def _residuals(forest: Forest, typed: TypedRows, anew: bool = False) -> Residuals:
    forest, threads = forest.of(forest.roles.outcome), os.cpu_count() or 1
    plan, structure, baselines = grown_parts(forest)
    rows, sums = bin_rows(typed, plan, baselines, threads), forest.sums
    if anew:
        sums = empty_sums(structure, plan)
        add_to_leaves(sums, rows, structure.routes, plan, threads)
    moved = correct(rows, structure.routes, plain_shares(sums), plan, threads)
    return _summed(rows, (moved.wy - rows.wy)[:, 0] / rows.w, forest)


def _summed(rows: BinnedRows, residual: np.ndarray, forest: Forest) -> Residuals:
    n_bins, levels = bins_of(forest.plan.bins)[0], len(forest.plan.levels)
    weight = rows.w / rows.w.mean()
    terms = [np.ones(weight.size), weight, weight * residual]
    terms += [weight**2, weight**2 * residual, (weight * residual) ** 2]
    sums = np.empty((n_bins.size, BIN_GROUPS, levels, len(terms)))
    for j, bins in enumerate(n_bins):
        cell = (rows.bins[:, j].astype(np.int64) * BIN_GROUPS // bins) * levels + rows.level
        for i, term in enumerate(terms):
            sums[j, :, :, i] = np.bincount(cell, term, BIN_GROUPS * levels).reshape(BIN_GROUPS, levels)
    return Residuals(sums)


def departures(before: Residuals, now: Residuals) -> np.ndarray:
    """p-value of every feature, [p], that effects of residuals are the same in both, group by group.

    Cochran's Q: levels' mean changes scatter about their common one, which no effect knows, by no more than errors say.
    """
    (n, mean, variance), (n_now, mean_now, variance_now) = before.means, now.means
    known = (np.minimum(n, n_now) >= MIN_GROUP_ROWS) & (variance + variance_now > 0)
    weight = np.where(known, 1.0 / np.where(known, variance + variance_now, 1.0), 0.0)
    change = np.where(known, mean_now - mean, 0.0)
    common = (weight * change).sum(axis=2) / np.maximum(weight.sum(axis=2), 1e-300)
    q = (weight * (change - common[:, :, None]) ** 2).sum(axis=(1, 2))
    freedom = np.maximum(known.sum(axis=2) - 1, 0).sum(axis=1)
    return np.where(freedom > 0, chi2.sf(q, np.maximum(freedom, 1)), 1.0)


def staleness(forest: Forest, before: Residuals, table: pa.Table) -> Staleness:
    """Whether new rows' effects have changed, and whether the forest's splits are stale for them.

    before: `forest_residuals` of the forest's training rows, or a large random part; they can be kept in its place.
    """
    rows = _residual_rows(forest, table)
    changed = departures(before, _residuals(forest, rows))
    stale = departures(before, _residuals(forest, rows, anew=True))
    p = [float(min(1.0, p_values.min() * p_values.size)) for p_values in (changed, stale)]
    return Staleness(p[0], p[1], forest.roles.features[int(stale.argmin())])


# --------------------------------------------------------------------------------------------------------------------
# New labels without a regrow: sums of rows in trees that stand, which add, merge and subtract.
# A tally is what is known of rows in the trees of one forest, its base. The forest of a tally is a function of the set
# of rows it counts, whoever counted them, when and in which order: equal sets, equal bytes.
#
# What keeps it additive, and what that leaves as the base found it:
#
#     from the new rows alone     plain leaf sums, rows per level, and the sample of rows that levels learn from each
#                                 other at: those whose unit hash is below a bound, so it adds and subtracts as sums do
#     as in the base              splits, bins, baselines, fixed point, and the bias of each leaf
#     a pass over all rows        a correction for bias by all rows: `estimate.estimate_table`
#
# The correction of `estimate.correct` looks at every row through the predictions of all, so its sums do not add.
# With predictions kept as they were they would, but y becomes 2y - μ there: once effects change by d, means of new
# rows would be d too high. So what is kept is what the correction came to, leaf by leaf and level by level: corrected
# sums are plain ones plus Σw times (corrected - plain) / Σw of the base. New effects count once, and no second pass is
# needed. The base's noise in that term stays, though: in simulations errors were 1 to 4 % above those of a pass over
# all rows with as many new rows as old ones, 5 to 12 % with four times as many, and intervals, whose bags show that
# noise, an eighth and two fifths wider. A pass over all rows is due when rows have trebled or so.
#
# Rows of another trial must have the arms' shares of the base, or be weighted by propensity: else a level's mean mixes
# the trials in other proportions than the control's. Erasure on request is not `without`: what a unit did to the bias
# of leaves stays, as with splits, while `estimate_table` takes it out of all but these.

WEIGHT_BITS = 30  # of a day's weight: after 31 half-lives it counts nothing
DECAY_BITS = 20  # bits that weights of decayed rows get where rows had none: whole numbers would be too coarse

ColumnFault = tuple[str | None, int, str]  # column, rows, what is wrong with it in them


@dataclass(frozen=True)
class Tally:
    """Rows counted in the trees of `base`.

    level_rows  int64 [K]: rows of each level
    days        by day, plain leaf sums of m outcomes, int64 [leaves, K, 1 + m]: Σw and Σwy
    units       uint64 [s], ascending: hashes of the sampled units, and bins uint8 [s, p] of their rows
    """

    base: Forest
    level_rows: np.ndarray
    days: Mapping[int, np.ndarray]
    units: np.ndarray
    bins: np.ndarray

    @property
    def rows(self) -> int:
        """Rows counted."""
        return int(self.level_rows.sum())


def counted(base: Forest, table: pa.Table, day: int = 0) -> Tally:
    """A tally of the table's rows alone, all of one day.

    Raises DataError naming column, rows and fix where rows break the rules of training, where a unit repeats, and where
    the forest cannot take them: a level or a category it does not know, an outcome or a weight beyond what its sums
    hold, propensities that vary in a forest that was not weighted by them.
    """
    return _counted(base, encode(table, base.roles, os.cpu_count() or 1), day)


def _counted(base: Forest, typed: TypedRows, day: int) -> Tally:
    level_rows = _checked(typed, base)
    threads, (plan, structure, baselines) = os.cpu_count() or 1, grown_parts(base)
    rows, sums = bin_rows(typed, plan, baselines, threads), empty_sums(structure, plan)
    check_repeated(repeated_rows(rows.unit), plan.roles.unit)
    add_to_leaves(sums, rows, structure.routes, plan, threads)
    return Tally(base, level_rows, {day: plain(sums)}, *sampled_bins(rows, base))


def trained(base: Forest, table: pa.Table, day: int = 0) -> Tally:
    """`counted` of the forest's training rows, with the sums that it already has: the table gives but the sample.

    Raises DataError when the table has other numbers of rows than the forest was trained on.
    """
    typed = encode(table, base.roles, os.cpu_count() or 1)
    level_rows = _checked(typed, base)
    known = np.array([base.facts["level_rows"][name] for name in base.plan.levels.names])
    if (level_rows != known).any():
        raise DataError(
            f"column {base.roles.treatment!r} has {level_rows.tolist()} rows of {', '.join(base.plan.levels.names)}, "
            f"the forest was trained on {known.tolist()}: give its training rows, or count these with `counted`"
        )
    rows = bin_rows(typed, base.plan, threads=os.cpu_count() or 1)
    return Tally(base, level_rows, {day: plain(base.sums)}, *sampled_bins(rows, base))


def refreshed(tally: Tally, table: pa.Table, day: int = 0) -> Tally:
    """The tally with the table's rows added; raises as `counted` and `merged` do."""
    return merged(tally, counted(tally.base, table, day))


def merged(one: Tally, other: Tally) -> Tally:
    """A tally of the rows of both.

    Raises ConfigError if they are of different forests. Raises DataError if a sampled unit is in both: of batches that
    share many units some are; of single units counted twice only one in so many as the sample is of all. And when there
    are more rows than the sums can hold.
    """
    _same_base(one, other)
    twice = np.intersect1d(one.units, other.units, assume_unique=True).size
    if twice:
        raise DataError(
            f"column {one.base.roles.unit!r} has units that are counted already, {twice} of {other.units.size} in a "
            "sample: leave them out, or take their old rows out first"
        )
    most = room(one.base.facts["rows"])[0]
    if one.rows + other.rows > most:
        raise UnfitRowsError(f"{one.rows + other.rows} rows, the forest's sums hold {most}: train a new one")
    days = {**one.days, **{day: one.days.get(day, 0) + sums for day, sums in other.days.items()}}
    units = np.concatenate([one.units, other.units])
    order = np.argsort(units)
    bins = np.concatenate([one.bins, other.bins])[order]
    return Tally(one.base, one.level_rows + other.level_rows, days, units[order], bins)


def without(tally: Tally, table: pa.Table, day: int = 0) -> Tally:
    """The tally with the table's rows, which were counted on that day, taken out; raises as `counted` and `less` do."""
    return less(tally, counted(tally.base, table, day))


def less(one: Tally, other: Tally) -> Tally:
    """A tally of the rows of `one` that are not in `other`, all of whose rows are in `one`.

    Raises ConfigError if they are of different forests, DataError where the sums show that rows of `other` were not
    counted, or with other values, levels or days.
    """
    _same_base(one, other)
    sums = {day: one.days.get(day, 0) - sums for day, sums in other.days.items()}
    days = {day: left for day, left in {**one.days, **sums}.items() if left.any()}
    strangers = np.setdiff1d(other.units, one.units, assume_unique=True).size
    level_rows = one.level_rows - other.level_rows
    # A cell that loses all its weight must lose all its outcomes.
    wrong = any((left[:, :, 0] < 0).any() or left[:, :, 1:][left[:, :, 0] == 0].any() for left in days.values())
    if strangers or wrong or (level_rows < 0).any():
        raise DataError(
            f"column {one.base.roles.unit!r} has units, among {other.rows} rows, that were not counted on that day "
            "with these values: take rows out as they were counted"
        )
    kept = ~np.isin(one.units, other.units)
    return Tally(one.base, level_rows, days, one.units[kept], one.bins[kept])


def forest_of(tally: Tally, half_life: float | None = None, as_of: int | None = None) -> Forest:
    """The forest of the rows counted.

    With a half-life, in days, rows of a day count 2^(-age / half-life), age up to `as_of`, by default the newest day.
    That weight is rounded to 2^-30. A day's sums are multiplied by it in whole numbers and rounded once, halves up:
    Σwy to the fixed point of the plan, Σw, too, but to 2^-20 where rows have no weights. So what a day is worth follows
    from its sums alone. Facts count rows whole. The range of outcomes is unknown, for ranges do not subtract.

    Intervals hold where the base's rows are among those counted, or a half-life says that they fade.
    Raises DataError when a level has no row, ConfigError for a half-life that is not above 0, or rows after `as_of`.
    """
    if half_life is None:
        return forest_from(tally.base, tally.level_rows, _total(tally.days.values()), tally.bins)
    newest = max(tally.days)
    as_of = newest if as_of is None else as_of
    if not half_life > 0 or as_of < newest:
        raise ConfigError(
            f"half-life {half_life} as of day {as_of}, rows up to day {newest}: it must be above 0, and rows no later"
        )
    finer = finer_bits(tally.base)
    sums = _total(faded(sums, as_of - day, half_life, finer) for day, sums in tally.days.items())
    return forest_from(tally.base, tally.level_rows, sums, tally.bins, fading=True)


def _total(days: Iterable[np.ndarray]) -> np.ndarray:
    return reduce(np.add, days)


def check_refresh(base: Forest, half_life: float | None, day: str | None) -> None:
    """Raise ConfigError unless new rows can be counted in the forest's trees as requested."""
    if base.roles.scores:
        raise ConfigError(
            f"roles.scores {base.roles.scores!r}: scores of all units change with what new rows teach nuisances, so "
            "sums do not add: estimate the trees anew, or train"
        )
    if half_life is not None and (day is None or not half_life > 0):
        raise ConfigError(f"half-life {half_life}, column of days {day!r}: it must be above 0 days, and rows need days")


def refreshed_table(table: pa.Table, base: Forest, half_life: float | None, day: str | None) -> Forest:
    """`forest_of` the table's rows, all of one day or each of the one that its column `day` says, a whole number."""
    check_refresh(base, half_life, day)
    if day is None:
        return forest_of(counted(base, table))
    check_columns({field.name: field.type for field in table.schema}, (day,), ())
    days = table.column(day)
    if days.null_count:
        raise DataError(f"column {day!r} is null in {days.null_count} of {len(days)} rows: give every row its day")
    of_day = pc.cast(days, pa.int64()).to_numpy()
    rows = encode(table, base.roles, os.cpu_count() or 1)
    every_day = dict.fromkeys(of_day.tolist())
    tally = reduce(merged, (_counted(base, rows.take(of_day == one), one) for one in every_day))
    return forest_of(tally, half_life)


def forest_from(
    base: Forest, level_rows: np.ndarray, sums: np.ndarray, bins: np.ndarray, fading: bool = False
) -> Forest:
    """The forest of the base's trees with these plain sums, [leaves, K, 1 + m], `faded` ones or whole (`forest_of`)."""
    if not level_rows.all():
        gone = ", ".join(name for name, rows in zip(base.plan.levels.names, level_rows, strict=True) if not rows)
        raise DataError(f"column {base.roles.treatment!r} has no row of {gone}: add rows, or train a new forest")
    plan, structure, baselines = grown_parts(base)
    finer = finer_bits(base) if fading else 0
    w_bits, *y_bits = plan.exponents
    plan = replace(plan, exponents=(w_bits + finer, *y_bits))
    counts = dict(zip(plan.levels.names, level_rows.tolist(), strict=True))
    ranges = {name: [None, None] for name in base.roles.outcomes}
    facts = {**base.facts, "rows": int(level_rows.sum()), "level_rows": counts, "outcome_range": ranges}
    if fading:
        facts["corrected_variance"] = _corrected_variance(base, sums, plan)
    whole = _corrected(sums, base, finer)
    return finished(plan, structure, whole, facts, baselines, np.ascontiguousarray(bins[:SHAPE_ROWS]))


def _corrected(plain: np.ndarray, base: Forest, finer: int) -> np.ndarray:
    """Sums as a forest holds them, from plain ones whose weights have so many bits more than the base's."""
    weight, sums = base.sums[:, :, :1], np.zeros((*plain.shape[:2], base.sums.shape[2]), np.int64)
    sums[:, :, 0], sums[:, :, 1::2] = plain[:, :, 0], plain[:, :, 1:]
    if base.plan.debias:
        bias = (base.sums[:, :, 2::2] - base.sums[:, :, 1::2]) / np.maximum(weight, 1)  # 0 in a cell without rows
        sums[:, :, 2::2] = plain[:, :, 1:] + np.rint(np.ldexp(plain[:, :, :1] * bias, -finer)).astype(np.int64)
    return sums


def _corrected_variance(base: Forest, plain: np.ndarray, plan: ForestPlan) -> float:
    """What the bags' variance of forgetful forests is multiplied by: 1 where the base's rows weigh as much as all do.

    Noise of the correction and of the means is of the same rows in the base, and partly cancels where bags do not show
    it. Once these rows are forgotten it does not. The share of their weight that is left is not known; without any, and
    as many new rows, simulations suggest .7 to .9, with a quarter as many for 1.1, with four times as many for less
    than the base's .6.
    """
    share = math.ldexp(float(base.sums[:, :, 0].sum()), plan.exponents[0] - base.plan.exponents[0])
    return min(1.0, max(CORRECTED_VARIANCE, 0.2 + 0.8 * share / max(float(plain[:, :, 0].sum()), 1.0)))


def finer_bits(base: Forest) -> int:
    """Bits that weights of faded sums have beyond those of the base's."""
    return 0 if base.roles.weight is not None or base.plan.weighted else DECAY_BITS


def faded(sums: np.ndarray, age: int, half_life: float, finer: int) -> np.ndarray:
    """Plain sums of a day, int64 [..., 1 + m], as they count so many days later."""
    weight = day_weight(age, half_life)
    shifts = (scaled(sums[..., :1], weight, WEIGHT_BITS - finer), scaled(sums[..., 1:], weight, WEIGHT_BITS))
    return np.concatenate(shifts, axis=-1)


def day_weight(age: int, half_life: float) -> int:
    """2^(-age / half-life) times 2^30, rounded; in decimals, so that no machine's arithmetic has a say."""
    with localcontext(Context(prec=50, rounding=ROUND_HALF_EVEN)):
        return int((Decimal(2) ** (WEIGHT_BITS - Decimal(age) / Decimal(half_life))).to_integral_value())


def scaled(sums: np.ndarray, weight: int, shift: int) -> np.ndarray:
    """sums x weight / 2^shift, halves up, without loss in between: int64, weight at most 2^30, shift at most 30."""
    high, low = sums >> 32, sums & 0xFFFFFFFF
    half = 1 << (shift - 1)
    return ((high * weight) << (32 - shift)) + ((low * weight + half) >> shift)


def _same_base(one: Tally, other: Tally) -> None:
    if one.base is not other.base and one.base.to_bytes() != other.base.to_bytes():
        raise ConfigError("the tallies are of different forests: only sums in the same trees add")


def plain(sums: np.ndarray) -> np.ndarray:
    """Σw and Σwy of a forest's sums: int64 [leaves, K, 1 + m] of [leaves, K, 1 + 2m]."""
    return np.concatenate([sums[:, :, :1], sums[:, :, 1::2]], axis=2)


def in_sample(units: np.ndarray, base: Forest) -> np.ndarray:
    """Whether units' hashes [n] are below what those of about SHAPE_ROWS of the base's rows are below."""
    share, seed = SHAPE_ROWS / max(base.facts["rows"], SHAPE_ROWS), np.uint64(base.plan.seed)
    limit = np.uint64(2**64 - 1 if share == 1.0 else int(share * 2.0**64))
    return mix64_all(units, seed, SAMPLE_SALT) <= limit


def sampled_bins(rows: BinnedRows, base: Forest) -> tuple[np.ndarray, np.ndarray]:
    """(units, bins) of the rows `in_sample`, by unit."""
    mine = np.flatnonzero(in_sample(rows.unit, base))
    mine = mine[np.argsort(rows.unit[mine])]
    return rows.unit[mine], rows.bins[mine]


def _checked(rows: TypedRows, base: Forest) -> np.ndarray:
    """Rows of each level, int64 [K], of rows that the forest can take; else DataError."""
    summary = summarise(rows)
    check_summary(summary, base.roles)
    return level_rows_of(summary, unfit(rows, base), base)


def level_rows_of(summary: Summary, problems: Iterable[ColumnFault], base: Forest) -> np.ndarray:
    """Rows of each level, int64 [K], of rows with this checked summary and problems (`unfit`); UnfitRowsError if they
    do not fit the forest."""
    plan, roles, n, most = base.plan, base.roles, summary.rows, room(base.facts["rows"])[0]
    if n > most:
        raise UnfitRowsError(f"{n} rows, the forest's sums hold {most}: train a new one")
    counts = plan.level_rows(summary.levels)
    unseen = {name: rows for name, rows in counts.items() if name not in plan.levels.names}
    own_problems: list[ColumnFault] = []
    if unseen:
        own_problems.append((roles.treatment, sum(unseen.values()), f"levels the forest does not know, {list(unseen)}"))
    if summary.weighted_by_propensity and not plan.weighted_by_propensity:
        own_problems.append((roles.propensity, n, "propensities that vary, those of the forest did not"))
    for column, rows, problem in [*own_problems, *problems]:
        if rows:
            raise UnfitRowsError(
                f"column {column!r} in {rows} of {n} rows has {problem}: leave these out, or train a new forest"
            )
    return np.array([counts.get(name, 0) for name in plan.levels.names], np.int64)


def unfit(rows: TypedRows, base: Forest) -> list[ColumnFault]:
    """What of rows the forest cannot take, column by column, whether any has it or not."""
    return [*_new_categories(rows, base.plan), *_too_large(rows, base)]


def _new_categories(rows: TypedRows, plan: ForestPlan) -> Iterator[ColumnFault]:
    """Features with categories that are neither known nor among the rare ones taken together."""
    for one in plan.bins:
        column = rows.features[one.name]
        if one.categories is None or one.has_other or not isinstance(column, TextColumn):
            continue
        new = column.codes[(column.coded_by(one.categories) < 0) & (column.codes >= 0)]
        first = [column.names[code].as_py() for code in dict.fromkeys(new.tolist())][:3]
        yield one.name, new.size, f"categories the forest does not know, {first}"


def _too_large(rows: TypedRows, base: Forest) -> Iterator[ColumnFault]:
    """Weight and outcomes beyond what sums of the forest's exponents were given room for."""
    (w_bits, *y_bits), (_, heaviest, largest) = base.plan.exponents, room(base.facts["rows"])
    weight, roles = weights_of(rows, base.plan), base.roles
    values = [(roles.weight or roles.propensity, weight, heaviest, w_bits)]
    for name, bits in zip(roles.outcomes, y_bits, strict=True):
        values.append((name, np.abs(weight * rows.outcomes[name]), largest, bits))
    for column, sizes, room_for, bits in values:
        most = math.ldexp(room_for, -bits)
        yield column, int((sizes > most).sum()), f"(weighted) values beyond {most:.4g}, the most the forest's sums hold"
