"""Switchback trials: regions switch arms by blocks of time, where units of different arms would disturb each other.

Drivers of one town serve riders of both arms, so what one arm wins the other loses. A switchback randomises blocks, a
region and some hours each, so that at any moment all units of a region have one arm. What lingers from the block before
is left out (the burn-in), errors follow from blocks, and re-deals of the same plan give a test that needs no large
numbers (Bojinov, Simchi-Levi and Zhao 2023; Wu and Ding 2021). numpy and pandas, no Spark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.experiments.assignment import GRID, Experiment, assign, hashed
from uplift_spark.experiments.estimates import arm_effect
from uplift_spark.experiments.frames import (
    ReadingTime,
    ReadoutColumns,
    TrialCounts,
    check_columns_there,
    finite_column,
    trial_facts,
    value_columns,
)
from uplift_spark.experiments.health import WARN, HealthFinding, ReadoutDesign, TrialFacts
from uplift_spark.experiments.readout import (
    COMPLIER,
    ReadoutMetric,
    TrialReadout,
    TrialSums,
    checked_metrics,
    read_sums,
)
from uplift_spark.roles import PROPENSITY, TREATMENT, checked_name
from uplift_spark.stats.moments import CrossMoments

BLOCK_ID, STARTS_AT, ROUND = "block", "starts_at", "round"
"""Columns of a schedule."""
_ENDS, _OBSERVED = "ends_at", "observed_treatment"
_MOST_CROSSED, _AT_ONCE = 0.01, 100
FEWEST_REDEALS = 99
"""Re-deals that a test needs at least, so that a p-value can be .01."""


@dataclass(frozen=True)
class Switchback:
    """The plan of a switchback.

    salt           the trial's own
    arms           {arm: share}, control first
    start, end     first moment of the first block, last moment of the last one
    hours          length of a block: long enough that most of it lies behind the burn-in
    burn_in_hours  hours at the start of each block whose rows are left out: as long as an arm works on after it ends
    round_hours    arms have their exact shares within each region and each round of this length; a week lets every
                   arm meet the same weekdays about equally often
    region, time   columns of a row's region and moment

    Raises ConfigError when times, hours or shares do not fit.

    Example:
        >>> first, last = datetime(2026, 3, 2), datetime(2026, 3, 16)
        >>> plan = Switchback("surge-2026", {"off": 0.5, "on": 0.5}, first, last, hours=4)
        >>> plan.blocks(["north", "south"]).shape
        (168, 7)
    """

    salt: str
    arms: Mapping[str, float]
    start: datetime
    end: datetime
    hours: float
    burn_in_hours: float = 0.0
    round_hours: float = 168.0
    region: str = "region"
    time: str = "time"

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", dict(self.experiment().arms))
        for name in (self.region, self.time):
            checked_name(name, "switchback column")
        if (self.start.tzinfo is None) != (self.end.tzinfo is None):
            raise ConfigError(f"{self.salt} has a start or an end without a time zone: give both one, or none")
        if not 0 <= self.burn_in_hours < self.hours:
            raise ConfigError(
                f"{self.salt} has blocks of {self.hours:g} hours with a burn-in of {self.burn_in_hours:g}: a block is "
                "longer than its burn-in, which is 0 or more"
            )
        if abs(self.hours * 60 - round(self.hours * 60)) > 1e-6:
            raise ConfigError(f"{self.salt} has blocks of {self.hours:g} hours: make them whole minutes long")
        if not self.hours <= self.round_hours:
            raise ConfigError(f"{self.salt} has rounds of {self.round_hours:g} hours: a round holds whole blocks")
        if self.periods < 1:
            raise ConfigError(f"{self.salt} ends before its first block of {self.hours:g} hours does: set a later end")
        fewest = self._per_round * min(self.arms.values())
        if fewest < 2:
            raise ConfigError(
                f"{self.salt} has {self._per_round} blocks a round and region, {fewest:.2g} of its smallest arm, of at "
                "least 2: make rounds longer or blocks shorter"
            )

    @property
    def periods(self) -> int:
        """Whole blocks between start and end; the rest of the time belongs to none."""
        return math.floor((self.end - self.start) / timedelta(hours=self.hours) + 1e-9)

    @property
    def _per_round(self) -> int:
        return min(self.periods, max(1, round(self.round_hours / self.hours)))

    def experiment(self) -> Experiment:
        """How blocks get arms, as `assignment.assign` takes it."""
        times = (
            f"{self.start.isoformat()} to {self.end.isoformat()}, {self.hours:g} h each, without the first "
            f"{self.burn_in_hours:g} h, in rounds of {self.round_hours:g} h"
        )
        return Experiment(self.salt, self.arms, stratified=True, blocks=times)

    def block_ids(self, regions: Sequence[str] | np.ndarray, periods: np.ndarray) -> list[str]:
        """Ids of blocks: of each region's block with this number, from 0 on, [n] both."""
        starts = self._starts(periods)
        return [f"{name}|{when:%Y-%m-%dT%H:%M}" for name, when in zip(regions, starts, strict=True)]

    def _starts(self, periods: np.ndarray) -> pd.DatetimeIndex:
        return pd.Timestamp(self.start) + pd.to_timedelta(periods * self.hours, unit="h").round("min")

    def blocks(self, regions: Sequence[Any]) -> pd.DataFrame:
        """The arm of each block: what whoever switches the regions follows.

        Args:
            regions: Names of the regions; their order does not matter.

        Returns:
            A row a block, by region and time: `block`, its id; `region`; `starts_at`, `ends_at`; `round`, the
            stratum within which shares are exact; `treatment`; `propensity`.

        Raises:
            ConfigError: There is no region.
        """
        names = sorted({str(one) for one in regions})
        if not names:
            raise ConfigError(f"{self.salt} has no region: name at least one")
        place, period = np.divmod(np.arange(len(names) * self.periods), self.periods)
        region = np.array(names, object)[place]
        rounds = np.minimum(period // self._per_round, max(1, self.periods // self._per_round) - 1)
        starts, ids = self._starts(period), self.block_ids(region, period)
        strata = [f"{name}|{one}" for name, one in zip(region, rounds, strict=True)]
        dealt = assign(ids, self.experiment(), strata=strata)
        return pd.DataFrame(
            {
                **{
                    BLOCK_ID: ids,
                    self.region: region,
                    STARTS_AT: starts,
                    _ENDS: starts + pd.Timedelta(self.hours, unit="h"),
                },
                **{ROUND: strata, TREATMENT: dealt[TREATMENT], PROPENSITY: dealt[PROPENSITY]},
            }
        )

    def placed(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows in their blocks, without those of a burn-in and those outside the trial.

        Args:
            frame: With the columns of region and time; what it says of `treatment` is kept as `observed_treatment`.

        Returns:
            The rows that count, with `block`, `round`, `treatment` and `propensity` of the plan.

        Raises:
            ConfigError: A column is missing.
            DataError: A region or a time is missing, a time is none, or no row is left.
        """
        for name in (self.region, self.time):
            if name not in frame.columns:
                raise ConfigError(f"column {name!r} is not in the frame: {hint(name, frame.columns)}")
            if missing := int(frame[name].isna().sum()):
                raise DataError(f"column {name!r} is missing in {missing:,} rows: fill or drop them")
        try:
            since = (pd.to_datetime(frame[self.time]) - pd.Timestamp(self.start)) / pd.Timedelta(hours=1)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"column {self.time!r} holds no times that compare with the start {self.start}: cast it, or give both "
                "a time zone or none"
            ) from error
        hours = since.to_numpy(float)
        period = np.floor(hours / self.hours + 1e-9)
        keep = (period >= 0) & (period < self.periods) & (hours - period * self.hours >= self.burn_in_hours - 1e-9)
        if not keep.any():
            raise DataError(f"no row lies in a block behind its burn-in: look at {self.time!r} and the trial's start")
        rows = frame.loc[keep].rename(columns={TREATMENT: _OBSERVED})
        region = rows[self.region].astype(str)
        plan = self.blocks(region.unique()).set_index(BLOCK_ID)
        ids = self.block_ids(region, period[keep])
        dealt = {name: plan.loc[ids, name].to_numpy() for name in (ROUND, TREATMENT, PROPENSITY)}
        return rows.assign(**{BLOCK_ID: ids, **dealt})


@dataclass(frozen=True)
class BlockSums:
    """Observations behind the burn-in, added up by block, whatever engine did that.

    blocks   a row of the schedule for each block that has any: block, region, starts_at, round, treatment
    rows     observations of each block, [blocks]
    values   sums of the columns of numbers, [blocks, V]
    columns  their names
    crossed  observations that saw another arm than their block's
    total    observations before those outside the trial and of the burn-in were left out
    """

    blocks: pd.DataFrame
    rows: np.ndarray
    values: np.ndarray
    columns: tuple[str, ...]
    crossed: int = 0
    total: int = 0

    def findings(self) -> list[HealthFinding]:
        """What observations say of the schedule. Raises DataError where more than 1 % saw another arm."""
        rows = int(self.rows.sum())
        if not self.crossed:
            return []
        share = self.crossed / rows
        sentence = (
            f"{self.crossed:,} of {rows:,} rows ({share:.2%}) saw another arm than their block's: compare the clocks, "
            "the time zone and the regions of what switches the arms with the plan"
        )
        if share > _MOST_CROSSED:
            raise DataError(sentence)
        return [HealthFinding("crossed", WARN, share, _MOST_CROSSED, sentence)]

    def trial(
        self, metrics: Sequence[ReadoutMetric], design: ReadoutDesign, columns: ReadoutColumns, time: ReadingTime
    ) -> tuple[TrialSums, TrialFacts]:
        """Sums and counts with blocks as the units that were randomised.

        Args:
            metrics: What is read.
            design: What was laid down; `block` was randomised.
            columns: Names of the columns that must be alike in all arms.
            time: When it is read.

        Returns:
            (sums by arm and round, and by arm and day; counts for the checks).
        """
        arms = design.open_arms
        arm = np.asarray(pd.Index(arms).get_indexer(pd.Index(self.blocks[TREATMENT])))
        stratum, strata = pd.factorize(self.blocks[ROUND], sort=True)
        day = self.blocks[STARTS_AT].dt.floor("D")
        since = (day - day.min()).dt.days.to_numpy()
        days = int(since.max()) + 1
        values = np.column_stack([self.values, self.rows])
        moments = CrossMoments.of(values, arm * len(strata) + stratum, (len(arms), len(strata)))
        by_day = CrossMoments.of(values, arm * days + since, (len(arms), days))
        sums = TrialSums(
            *(arms, tuple(map(str, strata)), self.columns, moments), counted=len(self.columns), by_day=by_day
        )
        units = {name: float((arm == code).sum()) for code, name in enumerate(arms)}
        return sums, trial_facts(sums, TrialCounts(units, 0, by_day.n), metrics, design, (columns, time))


@dataclass(frozen=True)
class SwitchbackReadout:
    """What a switchback showed.

    readout  verdict, findings and figures, with errors that follow from blocks
    redealt  a row for each metric and arm: effect, p_value and interval of the test that re-deals the plan
    rows     rows that count, of all that the frame has; the others lie in a burn-in or outside the trial
    total    rows of the frame
    """

    readout: TrialReadout
    redealt: pd.DataFrame
    rows: int
    total: int

    def text(self) -> str:
        """The readout, a line each, with the re-dealt figures behind it."""
        lines = [
            f"re-dealt {row.metric}, arm {row.arm}: {row.effect:+.5g}, between {row.lower:+.5g} and {row.upper:+.5g}, "
            f"p = {row.p_value:.2g}"
            for row in self.redealt.itertuples()
        ]
        counted = f"{self.rows:,} of {self.total:,} rows lie in blocks behind their burn-in"
        return "\n".join([self.readout.text(), counted, *lines])


def switchback_readout(
    frame: pd.DataFrame,
    metrics: Sequence[ReadoutMetric],
    plan: Switchback,
    *,
    time: ReadingTime | None = None,
    override: str | None = None,
    redeals: int = 999,
) -> SwitchbackReadout:
    """Read a switchback: each metric's mean over rows under an arm, against that under the control.

    Arms are those of the plan. Where the frame has a column `treatment`, rows that saw another arm than planned are
    counted: a few are a warning, more than 1 % are refused.

    Args:
        frame: A row an observation (an order, a ride, a minute), with region and time.
        metrics: One of them primary.
        plan: What was laid down.
        time: When it is read.
        override: Why a broken trial is read all the same.
        redeals: How often the plan is dealt anew for the test; fewer are faster and coarser.

    Returns:
        The readout.

    Raises:
        ConfigError: As `frames.readout`; or there are fewer than 99 re-deals.
        DataError: As `frames.readout` and `Switchback.placed`; or rows saw other arms than the plan's.

    References:
        Bojinov, Simchi-Levi, Zhao (2023), Design and analysis of switchback experiments, Management Science 69(7);
        Wu, Ding (2021), Randomization tests for weak null hypotheses, JASA 116(536).
    """
    if redeals < FEWEST_REDEALS:
        raise ConfigError(f"redeals are {redeals}: use at least {FEWEST_REDEALS}, so that a p-value can be .01")
    metrics, design, columns = (
        checked_metrics(metrics),
        ReadoutDesign(plan.arms, randomised=BLOCK_ID),
        ReadoutColumns(BLOCK_ID),
    )
    blocks = _by_block(plan.placed(frame), metrics, plan, len(frame))
    crossed = blocks.findings()
    sums, facts = blocks.trial(metrics, design, columns, time or ReadingTime())
    result = read_sums(sums, metrics, design, facts, override=override)
    result = replace(result, findings=(*result.findings, *crossed))
    again = redealt_effects(blocks, metrics, plan, (sums, result), redeals) if result.metrics else pd.DataFrame()
    return SwitchbackReadout(result, again, int(blocks.rows.sum()), len(frame))


def _by_block(rows: pd.DataFrame, metrics: Sequence[ReadoutMetric], plan: Switchback, total: int) -> BlockSums:
    """Add up rows that `Switchback.placed` left."""
    names = value_columns(metrics, ReadoutColumns())
    check_columns_there(
        list(map(str, rows.columns)), names, ReadoutDesign(plan.arms, randomised=BLOCK_ID), ReadoutColumns(BLOCK_ID)
    )
    crossed = int((rows[_OBSERVED].astype(str) != rows[TREATMENT]).sum()) if _OBSERVED in rows.columns else 0
    values = np.column_stack([finite_column(rows, name) for name in names])
    code, ids = pd.factorize(rows[BLOCK_ID], sort=True)
    sums = np.column_stack([np.bincount(code, column, len(ids)) for column in values.T])
    blocks = (
        plan.blocks(list(rows[plan.region].unique())).set_index(BLOCK_ID, drop=False).loc[ids].reset_index(drop=True)
    )
    return BlockSums(blocks, np.bincount(code, minlength=len(ids)).astype(float), sums, tuple(names), crossed, total)


def redealt_effects(
    blocks: BlockSums,
    metrics: Sequence[ReadoutMetric],
    plan: Switchback,
    read: tuple[TrialSums, TrialReadout],
    redeals: int,
) -> pd.DataFrame:
    """Compare each metric's studentised effect with those of the plan dealt anew.

    Args:
        blocks: Observations by block.
        metrics: What was read.
        plan: What was laid down.
        read: The sums of `BlockSums.trial`, and what was read of them.
        redeals: How often the plan is dealt anew.

    Returns:
        A row for each metric and arm: metric, arm, effect, p_value, lower, upper; intervals are studentised by the
        re-deals, at the reading's level.
    """
    sums, result = read
    values = np.column_stack([blocks.values, blocks.rows])
    stratum = pd.Index(sums.strata).get_indexer(pd.Index(blocks.blocks[ROUND]))
    # All blocks of the plan are dealt, those without a row, too: else shares were exact among other blocks.
    whole = plan.blocks(list(blocks.blocks[plan.region].unique()))
    there = pd.Index(whole[BLOCK_ID]).get_indexer(pd.Index(blocks.blocks[BLOCK_ID]))
    shape = (len(sums.arms), len(sums.strata))
    place = {metric.name: sums.placed(metric) for metric in metrics}
    again: dict[tuple[str, str], list[np.ndarray]] = {}
    for low in range(0, redeals, _AT_ONCE):
        count = min(_AT_ONCE, redeals - low)
        arms = _dealt(plan, whole[ROUND], count, low)[:, there]
        cells = (np.arange(count)[:, None] * shape[0] + arms) * shape[1] + stratum
        moments = CrossMoments.of(np.tile(values, (count, 1)), cells.ravel(), (count, *shape))
        for metric in metrics:
            for arm in range(1, len(sums.arms)):
                effect = arm_effect(moments[:, [0, arm]], place[metric.name])
                again.setdefault((metric.name, sums.arms[arm]), []).append(np.abs(effect.effect / effect.error))
    lines = []
    for one in result.metrics:
        if one.role != COMPLIER:
            t = np.concatenate(again[one.metric, one.arm])
            t = t[np.isfinite(t)]
            at_least = 1 + int((t >= abs(one.effect / one.error) * (1 - 1e-12)).sum())
            half = float(np.quantile(np.r_[t, np.inf], 1 - result.level, method="higher")) * one.error
            lines.append(
                (one.metric, one.arm, one.effect, at_least / (len(t) + 1), one.effect - half, one.effect + half)
            )
    return pd.DataFrame(lines, columns=["metric", "arm", "effect", "p_value", "lower", "upper"])


def _dealt(plan: Switchback, strata: pd.Series, count: int, number: int) -> np.ndarray:
    """Codes of arms, [count, blocks], dealt as `assignment` deals them within strata, with random ranks for hashes."""
    rng = np.random.default_rng([*hashed([plan.salt], plan.salt, "redeal")[0], number])
    cuts = np.array(plan.experiment().cuts[:-1]) / GRID
    arms = np.empty((count, len(strata)), np.int64)
    for blocks in strata.groupby(strata, sort=True).indices.values():
        rank = rng.random((count, len(blocks))).argsort(axis=1).argsort(axis=1)
        points = (rank + rng.random((count, 1))) / len(blocks)
        arms[:, blocks] = (points[..., None] >= cuts).sum(axis=-1)
    return arms
