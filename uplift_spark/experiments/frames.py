"""Readout of a pandas frame: its rows checked and cast once, then summed for `readout` and counted for `health`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.experiments.bootstrap import UnitGroupSums, groups_of
from uplift_spark.experiments.health import HealthLimits, PropensitySums, ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import (
    ReadoutMetric,
    TrialReadout,
    TrialSums,
    checked_metrics,
    read_sums,
)
from uplift_spark.roles import TREATMENT, UNIT
from uplift_spark.stats.moments import CrossMoments

NO_ROW = "the frame has no row: check the campaign's name and the days that are read"


@dataclass(frozen=True)
class ReadoutColumns:
    """Names of a frame's columns; what is None is not there.

    unit        id of a row's unit
    treatment   arm
    stratum     stratum by which effects are weighted: one that was fixed before the treatment
    day         day or time of the assignment
    taken       whether the unit received its treatment, 0 or 1, in every arm
    propensity  logged probability of the unit's arm
    balance     further columns, measured before the treatment, that must be alike in all arms
    """

    unit: str = UNIT
    treatment: str = TREATMENT
    stratum: str | None = None
    day: str | None = None
    taken: str | None = None
    propensity: str | None = None
    balance: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadingTime:
    """When a trial is read.

    days      days that the trial has run; by default those on which the column `day` has units, so name it where all
              were assigned at once
    earlier   share of the planned units at each look before this one
    at_end    whether assignment has ended
    immature  randomised units whose outcome is not complete
    """

    days: int | None = None
    earlier: tuple[float, ...] = ()
    at_end: bool = False
    immature: int | None = None


def readout(
    frame: pd.DataFrame,
    metrics: Sequence[ReadoutMetric],
    design: ReadoutDesign,
    columns: ReadoutColumns | None = None,
    *,
    time: ReadingTime | None = None,
    limits: HealthLimits | None = None,
    override: str | None = None,
) -> TrialReadout:
    """Check a trial and read what it showed.

    Where another unit was randomised than rows are of, rows are added up to it, and errors follow from it.

    Args:
        frame: One row a unit.
        metrics: One of them primary.
        design: What was laid down.
        columns: Names of the frame's columns.
        time: When it is read.
        limits: From where on a check refuses.
        override: Why a broken trial is read all the same.

    Returns:
        Verdict, findings and figures.

    Raises:
        ConfigError: There is not one primary metric, a column is missing, or the look comes after the last.
        DataError: Values are missing or not finite, units repeat, a metric does not vary, an arm is empty.

    Example:
        >>> frame = pd.DataFrame({"unit_id": range(400), "treatment": ["off", "on"] * 200})
        >>> frame["orders"] = [0, 0, 0, 1, 1, 1, 0, 1] * 50
        >>> metric = ReadoutMetric("orders", "orders", role="primary")
        >>> print(readout(frame, [metric], ReadoutDesign({"off": 0.5, "on": 0.5})).verdict.word)
        ship
    """
    sums, facts = trial_sums(frame, metrics, design, columns, time)
    return read_sums(sums, metrics, design, facts, limits=limits, override=override)


@dataclass
class _Rows:
    """The frame's rows as checked arrays, of one length: those that are analysed."""

    arm: np.ndarray
    stratum: np.ndarray
    strata: tuple[str, ...]
    values: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    day: np.ndarray | None
    propensity: np.ndarray | None
    units: dict[str, float]
    twice: int
    counted: int | None = None


def trial_sums(
    frame: pd.DataFrame,
    metrics: Sequence[ReadoutMetric],
    design: ReadoutDesign,
    columns: ReadoutColumns | None = None,
    time: ReadingTime | None = None,
) -> tuple[TrialSums, TrialFacts]:
    """Sums and counts of a frame; arguments and errors as for `readout`.

    Returns:
        (sums by arm and stratum, counts for the checks); units in two arms or in an arm without share are counted and
        left out of the sums.
    """
    columns, time = columns or ReadoutColumns(), time or ReadingTime()
    metrics = checked_metrics(metrics)
    rows = _checked_rows(frame, metrics, design, columns)
    arms = design.open_arms
    shape = (len(arms), len(rows.strata))
    cell = rows.arm * shape[1] + rows.stratum
    moments = CrossMoments.of(rows.values, cell, shape)
    groups = UnitGroupSums.of(rows.values, cell, rows.group, shape)
    by_day = None
    if rows.day is not None:
        days = int(rows.day.max()) + 1
        by_day = CrossMoments.of(rows.values, rows.arm * days + rows.day, (len(arms), days))
    sums = TrialSums(arms, rows.strata, rows.names, moments, columns.taken, rows.counted, by_day, groups)
    return sums, trial_facts(sums, _counts(rows, sums, columns), metrics, design, (columns, time))


def _checked_rows(
    frame: pd.DataFrame, metrics: Sequence[ReadoutMetric], design: ReadoutDesign, columns: ReadoutColumns
) -> _Rows:
    names = value_columns(metrics, columns)
    check_columns_there(list(map(str, frame.columns)), names, design, columns)
    _check_keys(frame, design, columns)
    unit, arm, units, twice = _arms_of(frame, design, columns)
    keep = arm >= 0
    part = frame.loc[keep]
    repeated = int(part[columns.unit].duplicated().sum())
    if repeated:
        raise DataError(f"column {columns.unit!r} repeats {repeated} units in one arm: keep one row a unit")
    for code, name in enumerate(design.open_arms):
        if not (arm == code).any():
            raise DataError(
                f"arm {name!r} has no unit: the frame has arms {', '.join(one for one, n in units.items() if n)}"
            )
    strata: tuple[str, ...] = ("all",)
    stratum = np.zeros(len(part), np.int64)
    if columns.stratum:
        stratum, levels = pd.factorize(part[columns.stratum].astype(str), sort=True)
        strata = tuple(map(str, levels))
    values = np.column_stack([finite_column(part, name) for name in names])
    day, propensity = _days_of(part, columns.day), _propensity_of(part, columns.propensity)
    group = _groups(part[design.randomised], design.randomised)
    rows = _Rows(arm[keep], stratum, strata, values, group, tuple(names), day, propensity, units, twice)
    return _by_cluster(rows, unit[keep], design.randomised) if design.randomised != columns.unit else rows


def value_columns(metrics: Sequence[ReadoutMetric], columns: ReadoutColumns) -> list[str]:
    """Columns of numbers that a readout adds up, each once."""
    names = [*(name for one in metrics for name in one.columns_used), *columns.balance]
    return list(dict.fromkeys([*names, *([columns.taken] if columns.taken else [])]))


def check_columns_there(
    there: Sequence[str], names: Sequence[str], design: ReadoutDesign, columns: ReadoutColumns
) -> None:
    """Refuse a frame without what was randomised, or without a column that is read; ConfigError names it.

    Args:
        there: The frame's columns.
        names: Columns of numbers.
        design: What was laid down.
        columns: Names of the other columns.
    """
    if design.randomised not in there and design.randomised != columns.unit:
        raise ConfigError(
            f"{design.randomised} was randomised, but rows are of {columns.unit} and have no column "
            f"{design.randomised!r}: add it, so that errors follow from what was randomised"
        )
    for name in [*_keys(design, columns), *([columns.propensity] if columns.propensity else []), *names]:
        if name not in there:
            raise ConfigError(f"column {name!r} is not in the frame: {hint(name, there)}")


def _keys(design: ReadoutDesign, columns: ReadoutColumns) -> list[str]:
    keys = [columns.unit, design.randomised, columns.treatment, columns.stratum, columns.day]
    return [key for key in dict.fromkeys(keys) if key]


def _check_keys(frame: pd.DataFrame, design: ReadoutDesign, columns: ReadoutColumns) -> None:
    if frame.empty:
        raise DataError(NO_ROW)
    for key in _keys(design, columns):
        missing = int(frame[key].isna().sum())
        if missing:
            raise DataError(f"column {key!r} is missing in {missing} rows: every row needs one; drop or fill them")


def _arms_of(
    frame: pd.DataFrame, design: ReadoutDesign, columns: ReadoutColumns
) -> tuple[np.ndarray, np.ndarray, dict[str, float], int]:
    """Code of each row's randomised unit; code of its arm, -1 where it is left out; units by arm; units in two arms."""
    unit, _ = pd.factorize(frame[design.randomised])
    arm, arm_names = pd.factorize(frame[columns.treatment].astype(str))
    first = np.full(unit.max() + 1, -1)
    first[unit[::-1]] = arm[::-1]
    torn = np.bincount(unit, arm != first[unit]) > 0
    counts = np.bincount(first[~torn], minlength=len(arm_names))
    units = {name: 0.0 for name in design.open_arms}
    units |= {str(name): float(count) for name, count in zip(arm_names, counts, strict=True)}
    codes = {name: code for code, name in enumerate(design.open_arms)}
    code = np.array([codes.get(str(name), -1) for name in arm_names])[arm]
    return unit, np.where(torn[unit], -1, code), units, int(torn.sum())


def finite_column(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A column's numbers, [rows]; DataError where one is missing, not finite, or no number."""
    try:
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        raise DataError(f"column {name!r} is no number in some rows: cast it, or name another column") from None
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise DataError(f"column {name!r} is missing or not finite in {wrong} rows: fill or drop them")
    return values


def _groups(ids: pd.Series, name: str) -> np.ndarray:
    """Group of each row's randomised unit."""
    code, levels = pd.factorize(ids)
    return groups_of(pa.array(pd.Index(levels).astype(str)), name)[code]


def _days_of(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """Whole days since the first assignment."""
    if name is None:
        return None
    try:
        day = pd.to_datetime(frame[name]).dt.floor("D")
    except (TypeError, ValueError):
        raise DataError(f"column {name!r} is no date in some rows: cast it to dates") from None
    return (day - day.min()).dt.days.to_numpy()


def _propensity_of(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    values = finite_column(frame, name)
    wrong = int(((values <= 0) | (values > 1)).sum())
    if wrong:
        raise DataError(f"column {name!r} is outside (0, 1] in {wrong} rows: log the probability of the unit's arm")
    return values


def _by_cluster(rows: _Rows, cluster: np.ndarray, name: str) -> _Rows:
    """Add rows up to the units that were randomised, with a count of rows among the columns."""
    code, first, size = np.unique(cluster, return_index=True, return_counts=True)
    place = np.searchsorted(code, cluster)
    if (rows.stratum != rows.stratum[first][place]).any():
        raise DataError(f"some units of one {name} lie in two strata: stratify by what all units of a {name} share")
    if rows.propensity is not None and (rows.propensity != rows.propensity[first][place]).any():
        raise DataError(f"units of one {name} have different propensities: log that of the {name}, which is assigned")
    values = np.column_stack([*(np.bincount(place, column) for column in rows.values.T), size])
    day = None
    if rows.day is not None:
        day = np.full(len(code), rows.day.max())
        np.minimum.at(day, place, rows.day)  # a cluster came when its first unit did
    return replace(
        rows,
        arm=rows.arm[first],
        stratum=rows.stratum[first],
        values=values,
        group=rows.group[first],
        counted=rows.values.shape[1],
        day=day,
        propensity=None if rows.propensity is None else rows.propensity[first],
    )


@dataclass(frozen=True)
class TrialCounts:
    """What is counted of a trial's rows beside their sums, for `trial_facts`; None was not measured.

    units         {arm: randomised units}, without those in two arms; arms outside the design included
    twice         units in two arms
    by_day        new units of each arm on each day, [arms, days]
    reached       units of each arm that received a treatment, [arms]
    propensities  sums of each arm, [arms]
    """

    units: dict[str, float]
    twice: int
    by_day: np.ndarray | None = None
    reached: np.ndarray | None = None
    propensities: tuple[PropensitySums, ...] | None = None


def _counts(rows: _Rows, sums: TrialSums, columns: ReadoutColumns) -> TrialCounts:
    counts = TrialCounts(rows.units, rows.twice)
    arms = [rows.arm == k for k in range(len(sums.arms))]
    if rows.day is not None:
        days = int(rows.day.max()) + 1
        counts = replace(counts, by_day=np.stack([np.bincount(rows.day[arm], minlength=days) for arm in arms]))
    if rows.propensity is not None:
        inverse = [1 / rows.propensity[arm] for arm in arms]
        counts = replace(counts, propensities=tuple(PropensitySums(p.size, p.sum(), (p**2).sum()) for p in inverse))
    if columns.taken is not None:
        took = rows.values[:, rows.names.index(columns.taken)] > 0
        counts = replace(counts, reached=np.array([took[arm].sum() for arm in arms]))
    return counts


def trial_facts(
    sums: TrialSums,
    counts: TrialCounts,
    metrics: Sequence[ReadoutMetric],
    design: ReadoutDesign,
    how: tuple[ReadoutColumns, ReadingTime],
) -> TrialFacts:
    """Facts for the checks, whatever engine counted.

    Args:
        sums: Of the rows.
        counts: Of the rows.
        metrics: Their covariates must be alike in all arms.
        design: What was laid down.
        how: Names of the columns, and when the trial is read.

    Returns:
        The facts.
    """
    columns, time = how
    covariates = [one if isinstance(one, str) else one[0] for metric in metrics for one in metric.covariates]
    names = tuple(dict.fromkeys([*covariates, *columns.balance]))
    facts = TrialFacts(counts.units, twice=counts.twice, immature=time.immature, days=time.days, at_end=time.at_end)
    facts = replace(facts, analysed=design.randomised, earlier=time.earlier)
    if names:
        index = [sums.columns.index(name) for name in names]
        facts = replace(facts, covariates=sums.moments.sum(1).columns(index), names=names)
    if counts.by_day is not None:
        by_day = dict(zip(sums.arms, counts.by_day.tolist(), strict=True))
        facts = replace(facts, by_day=by_day, days=counts.by_day.shape[1] if time.days is None else time.days)
    if counts.propensities is not None:
        facts = replace(facts, propensities=dict(zip(sums.arms, counts.propensities, strict=True)))
    if counts.reached is not None:
        units = sums.moments.sum(1).n
        reached = {arm: (int(k), int(n)) for arm, k, n in zip(sums.arms, counts.reached, units, strict=True)}
        treated, _ = reached.pop(design.control)
        facts = replace(facts, delivered=reached, treated=treated)
    return facts
