"""Simulated trials over time, whose truth is known, and what may go wrong with them. numpy and pandas, no Spark.

Users come day by day, more of them at weekends, live in households, and spend about 10. At its defaults a trial is
sound. Each break of `BREAKS` spoils one, and names the check that has to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from uplift_spark.experiments.assignment import Experiment, assign
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, trial_sums
from uplift_spark.experiments.health import HealthFinding, ReadoutDesign
from uplift_spark.experiments.readout import PRIMARY, ReadoutMetric, read_sums

_WEEKEND = (5, 6)
_START = pd.Timestamp("2026-03-06")  # a Friday
_METRIC = ReadoutMetric("spend", "spend", covariates=("spend_before",), role=PRIMARY)


@dataclass(frozen=True)
class TrialOverTime:
    """A trial on simulated users; what is wrong with it is nothing by default.

    units           users that come
    days            on which they come
    arms            {arm: share}, control first
    effect          of every treated arm on spend, on average over the users that a sound trial would have
    weekend_users   times as many users come on a day of a weekend
    weekend_effect  times as large an effect on users that come at a weekend
    novelty         further effect on users of the first day, half as large every three days
    waiting         mean days from a user's coming to its outcome
    delivered       {arm: share of its users that get the treatment}, 1 by default; of the control none by default
    spill           share of the effect that a treated user passes on to the rest of the household
    clustered       whether households are assigned, not users
    earlier         effect, that goes on, of a trial before this one
    same_salt       whether that one had the same salt
    lost            share of the users of the last arm that a broken splitter loses
    lost_by_spend   whether it loses those who spent least before
    moved           share of the users that a splitter without memory shows a second arm, too
    bots            visits of machines that get the last arm alone, as a share of the users
    logged_as       propensity of the last arm that is logged in place of the true one
    """

    units: int = 8000
    days: int = 28
    arms: Mapping[str, float] = field(default_factory=lambda: {"off": 0.5, "on": 0.5})
    effect: float = 0.5
    weekend_users: float = 1.5
    weekend_effect: float = 1.0
    novelty: float = 0.0
    waiting: float = 0.1
    delivered: Mapping[str, float] = field(default_factory=dict)
    spill: float = 0.0
    clustered: bool = False
    earlier: float = 0.0
    same_salt: bool = False
    lost: float = 0.0
    lost_by_spend: bool = False
    moved: float = 0.0
    bots: float = 0.0
    logged_as: float | None = None

    def frame(self, seed: int) -> pd.DataFrame:
        """Make its rows.

        Args:
            seed: The same seed, the same trial.

        Returns:
            A row a user and arm: unit_id, household, treatment, propensity, day, spend_before, took, spend, known_on
            (day when the outcome is known), earlier_arm.
        """
        rng = np.random.default_rng(seed)
        d = self._users(rng)
        control, last = next(iter(self.arms)), list(self.arms)[-1]
        salt, before = f"trial-{seed}", f"trial-{seed}" if self.same_salt else f"before-{seed}"
        design = Experiment(salt, self.arms, clustered=self.clustered)
        d["treatment"] = assign(d["unit_id"], design, clusters=d["household"] if self.clustered else None)["treatment"]
        d["earlier_arm"] = assign(d["unit_id"], Experiment(before, {"off": 0.5, "on": 0.5}))["treatment"]
        share = d["treatment"].map({arm: self.delivered.get(arm, float(arm != control)) for arm in self.arms})
        d["took"] = (rng.random(len(d)) < share).astype(float)
        d["propensity"] = d["treatment"].map(dict(self.arms))
        if self.logged_as is not None:
            d["propensity"] = np.where(d["treatment"] == last, self.logged_as, 1 - self.logged_as)
        d["spend"] = d["spend_before"] + rng.normal(0, 2, len(d)) + self._gain(d)
        d["known_on"] = d["day"] + pd.to_timedelta(rng.exponential(self.waiting, len(d)) * 24, unit="h")
        return self._broken(d, rng, last)

    def _users(self, rng: np.random.Generator) -> pd.DataFrame:
        day = _START + pd.to_timedelta(np.arange(self.days), unit="D")
        weight = np.where(day.dayofweek.isin(_WEEKEND), self.weekend_users, 1.0)
        d = pd.DataFrame({"unit_id": [f"user-{k}" for k in range(self.units)]})
        d["household"] = [f"home-{k // 3}" for k in range(self.units)]
        d["day"] = day[rng.choice(self.days, self.units, p=weight / weight.sum())]
        d["spend_before"] = rng.gamma(4, 2.5, self.units)
        return d

    def _gain(self, d: pd.DataFrame) -> np.ndarray:
        """What treatments of all kinds add to each user's spend."""
        weekend = d["day"].dt.dayofweek.isin(_WEEKEND).to_numpy()
        since = (d["day"] - _START).dt.days.to_numpy()
        usual = 5 + 2 * self.weekend_users * self.weekend_effect
        often = (5 + 2 * self.weekend_users) / usual
        gain = self.effect * often * np.where(weekend, self.weekend_effect, 1.0) + self.novelty * 0.5 ** (since / 3)
        took = d["took"].to_numpy()
        at_home = d.groupby("household")["took"].transform("sum").to_numpy() - took
        earlier = self.earlier * (d["earlier_arm"] == "on").to_numpy()
        return np.asarray(gain * took + self.spill * self.effect * at_home * (1 - took) / 2 + earlier)

    def _broken(self, d: pd.DataFrame, rng: np.random.Generator, last: str) -> pd.DataFrame:
        """The rows that a broken splitter, and machines, leave."""
        mine = (d["treatment"] == last).to_numpy()
        if self.lost:
            among = d["spend_before"].to_numpy() if self.lost_by_spend else rng.random(len(d))
            d = d[~mine | (among > np.quantile(among[mine], self.lost))]
        if self.moved:
            again = d[rng.random(len(d)) < self.moved]
            names = list(self.arms)
            other = again["treatment"].map(dict(zip(names, [*names[1:], names[0]], strict=True)))
            d = pd.concat([d, again.assign(treatment=other)])
        if self.bots:
            count = rng.binomial(self.units, self.bots)
            bots = d[d["treatment"] == last].sample(count, replace=True, random_state=int(rng.integers(2**31)))
            names = [f"machine-{k}" for k in range(count)]
            d = pd.concat([d, bots.assign(unit_id=names, household=names, spend_before=0.0, spend=0.0)])
        return d.reset_index(drop=True)


@dataclass(frozen=True)
class TrialBreak:
    """Something that goes wrong with a trial.

    name     in words
    check    that has to notice
    broken   the trial
    clean    the same without the fault
    until    days after which the broken one is read; None is all
    soundly  days after which the clean one is read
    planned  days that were planned
    of       unit that the design says is randomised
    reads    unit of a row as the analyst of the broken one takes it
    """

    name: str
    check: str
    broken: TrialOverTime
    clean: TrialOverTime = field(default_factory=TrialOverTime)
    until: int | None = None
    soundly: int | None = None
    planned: int | None = None
    of: str = "unit_id"
    reads: str | None = None


_THREE = TrialOverTime(arms={"off": 0.4, "a": 0.3, "b": 0.3})
_SOUND = TrialOverTime()

_SHARED = replace(_SOUND, clustered=True)
_OFTEN = replace(_SOUND, weekend_effect=3.0)

BREAKS = (
    TrialBreak("read after ten days, weekends differ", "whole_weeks", _OFTEN, _OFTEN, until=10, soundly=14),
    TrialBreak("read after five days", "too_short", _OFTEN, _OFTEN, until=5, soundly=7),
    TrialBreak("read at half of the time", "unplanned_look", _SOUND, until=14, planned=28),
    TrialBreak("an effect that wears off", "effect_over_time", replace(_SOUND, novelty=2.0)),
    TrialBreak("outcomes that come late", "maturity", replace(_SOUND, waiting=6.0)),
    TrialBreak("one arm is not delivered", "delivery", replace(_THREE, delivered={"b": 0.9}), _THREE),
    TrialBreak("the control gets the treatment", "treated_control", replace(_SOUND, delivered={"off": 0.03})),
    TrialBreak("users are assigned, households share", "two_arms", replace(_SOUND, spill=0.8), _SHARED, of="household"),
    TrialBreak(
        "households are assigned, users are read", "unit_of_analysis", _SHARED, _SHARED, of="household", reads="unit_id"
    ),
    TrialBreak("the salt of a trial that works on", "carry_over", replace(_SOUND, earlier=0.5, same_salt=True)),
    TrialBreak("a splitter loses a tenth of an arm", "sample_ratio", replace(_SOUND, lost=0.1)),
    TrialBreak("it loses those who spent least", "covariate_balance", replace(_SOUND, lost=0.1, lost_by_spend=True)),
    TrialBreak("a splitter without memory", "two_arms", replace(_SOUND, moved=0.02)),
    TrialBreak("propensities of another design", "propensity", replace(_SOUND, logged_as=0.4)),
    TrialBreak("machines in one arm", "sample_ratio", replace(_SOUND, bots=0.06)),
)
"""Each with the check that has to notice it."""


def findings_of(one: TrialBreak, seed: int, broken: bool = True) -> tuple[list[HealthFinding], float]:
    """Check a simulated trial as `uplift readout` does, and read it all the same.

    Args:
        one: What goes wrong.
        seed: Of its users.
        broken: Whether it does; else the clean trial is read.

    Returns:
        (findings, effect of the last arm that a reading shows).
    """
    trial, days = (one.broken, one.until) if broken else (one.clean, one.soundly)
    days = days or trial.days
    frame = trial.frame(seed)
    frame = frame[frame["day"] < _START + pd.Timedelta(days=days)]
    design = ReadoutDesign(trial.arms, planned_days=one.planned, randomised=one.of)
    columns = ReadoutColumns(day="day", taken="took", propensity="propensity")
    waiting = int((frame["known_on"] > _START + pd.Timedelta(days=days + 1)).sum())
    time = ReadingTime(days=days, at_end=one.planned is None, immature=waiting)
    sums, facts = trial_sums(frame, [_METRIC], design, columns, time)
    crossed = pd.crosstab(frame["treatment"], frame["earlier_arm"]).to_numpy()
    facts = replace(facts, crossings={"before": crossed}, same_salt=("before",) if trial.same_salt else ())
    if one.reads is not None and broken:
        facts = replace(facts, analysed=one.reads)
    result = read_sums(replace(sums, groups=None), [_METRIC], design, facts, override="simulated")
    return list(result.findings), [row.effect for row in result.metrics if row.role == PRIMARY][-1]


def break_table(trials: int, progress: Callable[[str], None] | None = None) -> pd.DataFrame:
    """Measure how often each break is noticed, and how often its check is wrong about a sound trial.

    Args:
        trials: Simulated trials of either kind for each break.
        progress: Called with the name of each break.

    Returns:
        A row a break: name, check, caught (share of the broken trials), false_alarms (share of the sound ones), effect
        (mean that a reading of the broken ones would show), true_effect.
    """
    rows = []
    for one in BREAKS:
        if progress is not None:
            progress(one.name)
        caught, effects = zip(*(_noticed(one, seed, True) for seed in range(trials)), strict=True)
        alarms, _ = zip(*(_noticed(one, seed, False) for seed in range(trials)), strict=True)
        rows.append((one.name, one.check, np.mean(caught), np.mean(alarms), np.mean(effects), one.broken.effect))
    return pd.DataFrame(rows, columns=["name", "check", "caught", "false_alarms", "effect", "true_effect"])


def _noticed(one: TrialBreak, seed: int, broken: bool) -> tuple[bool, float]:
    findings, effect = findings_of(one, seed, broken)
    return one.check in {finding.check for finding in findings}, effect
