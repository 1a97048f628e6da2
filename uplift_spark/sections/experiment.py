"""The section of a configuration that lays a trial down (`experiment`): arms, units, metrics, and when it is read.
`config` names it; see there. `experiments` assigns, checks and reads by it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError, hint
from uplift_spark.roles import UNIT, checked_name, checked_salt, checked_shares
from uplift_spark.sections.source import STRICT

Share = Annotated[float, Field(ge=0, le=1)]
PLANS = ("obf", "pocock", "hsd")
"""Plans whose looks are laid down beforehand: spending by O'Brien and Fleming, Pocock, Hwang, Shih and DeCani."""


@dataclass(frozen=True, config=STRICT)
class NamespaceConf:
    """`experiment.namespace`: the part of the units that this trial shares with no other trial of the namespace.

    name         salt of the namespace, the same in all its trials
    start, stop  from here up to there, as shares of all units: 0 and .25 are the first quarter
    """

    name: str
    start: Share = 0.0
    stop: Share = 1.0

    def __post_init__(self) -> None:
        checked_salt(self.name, "experiment.namespace.name")
        if not self.start < self.stop:
            raise ConfigError(
                f"experiment.namespace goes from {self.start:g} to {self.stop:g}: give a start below its stop"
            )


@dataclass(frozen=True, config=STRICT)
class ProgrammeConf:
    """`experiment.holdout`: units that no campaign treats, the same in all campaigns with this salt.

    salt   of the programme
    share  of the units
    """

    salt: str
    share: Annotated[float, Field(gt=0, lt=1)]

    def __post_init__(self) -> None:
        checked_salt(self.salt, "experiment.holdout.salt")


@dataclass(frozen=True, config=STRICT)
class SwitchbackConf:
    """`experiment.switchback`: regions switch arms by blocks of time, from `experiment.start` to `experiment.end`.

    hours          length of a block, in whole minutes
    burn_in_hours  hours at the start of each block whose rows are left out: as long as an arm works on after it ends
    round_hours    arms have their exact shares within each region and each round of this length
    start_hour     hour of the day, in UTC, at which the first block begins
    region, time   columns of a row's region and moment in `experiment.table`, which has a row an observation
    redeals        how often the schedule is dealt anew for the test
    """

    hours: Annotated[float, Field(gt=0)]
    burn_in_hours: Annotated[float, Field(ge=0)] = 0.0
    round_hours: Annotated[float, Field(gt=0)] = 168.0
    start_hour: Annotated[float, Field(ge=0, lt=24)] = 0.0
    region: str = "region"
    time: str = "time"
    redeals: Annotated[int, Field(ge=99, le=100_000)] = 999

    def __post_init__(self) -> None:
        for column in (self.region, self.time):
            checked_name(column, "experiment.switchback column")
        if self.region == self.time:
            raise ConfigError(f"experiment.switchback reads region and time from one column {self.time!r}: name two")


@dataclass(frozen=True, config=STRICT)
class RerandomiseConf:
    """`experiment.rerandomise`: two arms are dealt anew until the columns of `experiment.balance` are balanced.

    accept  probability that a deal is accepted: .01 takes the best of a hundred
    draws   most deals
    """

    accept: Annotated[float, Field(gt=0, lt=1)] = 0.01
    draws: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000


@dataclass(frozen=True, config=STRICT)
class ExperimentMetric:
    """An entry of `experiment.metrics`: the mean of a column, or the ratio of two columns' means.

    name         its name
    kind         conversion (0 or 1), count (0, 1, 2, ...), revenue (any number) or ratio (of two sums)
    role         primary (one, which decides), secondary, or guardrail (must not get worse by its margin)
    column       of the table, or outcome of the campaign; the name by default
    denominator  of a ratio: the column below it, such as sessions of revenue a session
    covariates   columns measured before the treatment, which take variance off; of a ratio pairs of columns
    better       up, or down where less is better
    margin       of a guardrail: how much worse is still accepted, above 0
    margin_of    relative (.01 is 1 % of the control's mean) or absolute
    """

    name: str
    kind: Literal["conversion", "count", "revenue", "ratio"]
    role: Literal["primary", "secondary", "guardrail"] = "secondary"
    column: str | None = None
    denominator: str | None = None
    covariates: tuple[str | tuple[str, str], ...] = ()
    better: Literal["up", "down"] = "up"
    margin: Annotated[float, Field(gt=0)] | None = None
    margin_of: Literal["relative", "absolute"] = "relative"

    def __post_init__(self) -> None:
        for column in (self.outcome, *self.below, *self.covariate_columns):
            checked_name(column, f"column of metric {self.name}")
        if (self.kind == "ratio") != (self.denominator is not None):
            raise ConfigError(f"metric {self.name}: kind ratio goes with a denominator and nothing else does")
        if (self.role == "guardrail") != (self.margin is not None):
            raise ConfigError(
                f"metric {self.name}: a margin goes with role guardrail: say how much worse is accepted, such as .01, "
                "or drop the margin"
            )

    @property
    def outcome(self) -> str:
        """Column of its values."""
        return self.column or self.name

    @property
    def below(self) -> tuple[str, ...]:
        """Column of its denominator, if it has one."""
        return (self.denominator,) if self.denominator else ()

    @property
    def covariate_columns(self) -> tuple[str, ...]:
        """Columns of its covariates."""
        return tuple(part for one in self.covariates for part in ((one,) if isinstance(one, str) else one))


@dataclass(frozen=True, config=STRICT)
class ExperimentConf:
    """`experiment`: a trial that `uplift assign` assigns, `uplift check` checks and `uplift readout` reads.

    salt         decides with a unit's id its arm; another trial, or a changed design, needs another salt
    arms         {level: share of the units}, control first
    metrics      what is read, one of them primary
    name         of the trial, for readers; the campaign's by default
    table        that is read, with a row a unit: `schema.table` of the lakehouse or `catalog.schema.table`; by default
                 the campaign's training set, with all outcomes, covariates, strata and the cluster in it
    unit         column of the unit's id, where a table is read or assigned
    cluster      column of what is randomised where that is no single unit (households); the same as `roles.cluster`
    strata       columns within which arms are balanced exactly, and by which effects are weighted
    ramp         share of the units that take part so far; raising it moves nobody between arms
    stopped      arms that get no more units
    namespace    trials that exclude each other
    holdout      units that no campaign treats
    exploration  share of the units whose arm is random, where the others get what a policy decided
    decision     column of the arm that the policy decided on, in what is assigned
    train_on     of a targeted campaign: logged (all units by their logged propensities, but those whose arm was
                 certain) or random (units with a random arm alone)
    start, end   days of the first and of the last assignment
    units        planned units of all arms; clusters, where clusters are randomised
    plan         when it is read: none (once, at its end), obf, pocock or hsd (at `analyses`), anytime
    analyses     shares of the planned units at which it is read, rising to 1
    alpha        level of the whole trial, two-sided
    gamma        of hsd
    multiplicity of secondary metrics and their arms: bh, holm or none
    balance      further columns, measured before the treatment, that must be alike in all arms
    switchback   what is randomised where units disturb each other: blocks of a region and some hours, in place of units
    rerandomise  arms are dealt anew until `balance` is alike in both, where all units are known at the assignment
    then         configuration of the targeted campaign that comes after this trial, in the folder of this one: `uplift
                 demo` plays it, too
    """

    RUNS: ClassVar = {
        "assign": "campaign experiment",
        "check": "campaign experiment labels",
        "readout": "campaign experiment labels",
    }
    NO_IDENTITY: ClassVar = ("name", "then", "train_on")
    LATER: ClassVar = ("switchback", "rerandomise")
    salt: str
    arms: dict[str, float]
    metrics: tuple[ExperimentMetric, ...]
    name: str | None = None
    table: str | None = None
    unit: str = UNIT
    cluster: str | None = None
    strata: tuple[str, ...] = ()
    ramp: Annotated[float, Field(gt=0, le=1)] = 1.0
    stopped: tuple[str, ...] = ()
    namespace: NamespaceConf | None = None
    holdout: ProgrammeConf | None = None
    exploration: Annotated[float, Field(gt=0, le=1)] | None = None
    decision: str | None = None
    train_on: Literal["logged", "random"] = "logged"
    start: date | None = None
    end: date | None = None
    units: Annotated[float, Field(gt=0)] | None = None
    plan: Literal["none", "obf", "pocock", "hsd", "anytime"] = "none"
    analyses: tuple[float, ...] = ()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    gamma: float = -4.0
    multiplicity: Literal["bh", "holm", "none"] = "bh"
    balance: tuple[str, ...] = ()
    switchback: SwitchbackConf | None = None
    rerandomise: RerandomiseConf | None = None
    then: str | None = None

    def __post_init__(self) -> None:
        checked_salt(self.salt, "experiment.salt")
        checked_shares(self.arms, "experiment.arms")
        for column in (self.unit, *self.unit_columns, *([self.decision] if self.decision else [])):
            checked_name(column, "experiment column")
        self._check_metrics()
        self._check_time()
        if (self.exploration is None) != (self.decision is None):
            raise ConfigError("experiment.exploration goes with experiment.decision, the column of the policy's arm")
        if self.train_on == "random" and self.exploration is None:
            raise ConfigError(
                "experiment.train_on is random, but without experiment.exploration every arm is: leave train_on out"
            )
        if self.switchback is not None:
            self._check_switchback(self.switchback)
        if self.rerandomise is not None:
            self._check_rerandomise()

    def _check_metrics(self) -> None:
        names = [metric.name for metric in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"experiment.metrics has {twice[0]} twice: give metrics names of their own")
        primary = [metric.name for metric in self.metrics if metric.role == "primary"]
        if len(primary) != 1:
            has = f"{', '.join(primary)} are" if primary else "none is"
            raise ConfigError(f"of experiment.metrics {has} primary: give `role: primary` to the one that decides")
        before = set(self.unit_columns)
        for metric in self.metrics:
            if after := sorted(before & {metric.outcome, *metric.below}):
                raise ConfigError(
                    f"{after[0]} is a metric of the experiment and a stratum, cluster, covariate or balance column, "
                    "which are measured before the treatment: name another column"
                )

    def _check_time(self) -> None:
        if self.start and self.end and not self.start < self.end:
            raise ConfigError(f"experiment.end {self.end} is not after its start {self.start}: change one of them")
        if (self.plan in PLANS) != bool(self.analyses):
            raise ConfigError(f"experiment.analyses go with plan {', '.join(PLANS)}, not with {self.plan}: see `plan`")
        late = [share for share in self.analyses if share > 1]
        if late:
            raise ConfigError(
                f"experiment.analyses has a look at {late[0]:g} of the units, after the end of the trial: end with 1"
            )
        rising = all(a < b for a, b in pairwise((0.0, *self.analyses)))
        if self.analyses and not (rising and self.analyses[-1] == 1):
            shown = ", ".join(f"{share:g}" for share in self.analyses)
            raise ConfigError(f"experiment.analyses are {shown}: let them rise to 1, as in [.25, .5, .75, 1]")
        if self.plan != "none" and self.units is None:
            raise ConfigError(
                f"experiment.plan {self.plan} reads at shares of the planned units: set experiment.units, which "
                "`uplift power` tells"
            )

    def _check_switchback(self, switchback: SwitchbackConf) -> None:
        of_units = {
            **{"cluster": self.cluster, "strata": self.strata, "ramp": self.ramp < 1, "stopped": self.stopped},
            **{"namespace": self.namespace, "holdout": self.holdout, "exploration": self.exploration},
            **{"units": self.units, "plan": self.plan != "none"},
        }
        if names := [name for name, there in of_units.items() if there]:
            raise ConfigError(
                f"experiment.switchback randomises blocks and is read once, at its end: drop experiment.{names[0]}"
            )
        needed = {"start": self.start, "end": self.end, "table": self.table}
        if names := [name for name, value in needed.items() if value is None]:
            what = "the table of observations" if names[0] == "table" else "a day"
            raise ConfigError(f"experiment.switchback needs experiment.{names[0]}: set it to {what}")
        measured = {*self.outcome_columns, *self.unit_columns} & {switchback.region, switchback.time}
        if measured:
            raise ConfigError(
                f"{min(measured)} is a metric, covariate or balance column and also the region or time of "
                "experiment.switchback: name another column"
            )

    def _check_rerandomise(self) -> None:
        """Deals are accepted or not as a whole: whoever comes later, or is dealt otherwise, was in none."""
        otherwise = {
            **{"ramp": self.ramp < 1, "stopped": self.stopped, "namespace": self.namespace, "holdout": self.holdout},
            **{"exploration": self.exploration, "cluster": self.cluster, "strata": self.strata},
            **{"switchback": self.switchback, "plan": self.plan != "none"},
        }
        if names := [name for name, there in otherwise.items() if there]:
            raise ConfigError(
                "experiment.rerandomise deals all units at once, by their ids, and is read once: drop "
                f"experiment.{names[0]}"
            )
        if len(self.arms) != 2:
            raise ConfigError(f"experiment.rerandomise balances two arms, and there are {len(self.arms)}: keep two")
        if not self.balance:
            raise ConfigError("experiment.rerandomise needs experiment.balance: name the columns to balance")

    @property
    def control(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    @property
    def outcome_columns(self) -> tuple[str, ...]:
        """What is measured after the treatment, each once."""
        return tuple(dict.fromkeys(column for one in self.metrics for column in (one.outcome, *one.below)))

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """What is known of units before the treatment, each once: strata, cluster, covariates, balance."""
        covariates = [column for one in self.metrics for column in one.covariate_columns]
        cluster = [self.cluster] if self.cluster else []
        return tuple(dict.fromkeys([*self.strata, *cluster, *covariates, *self.balance]))

    def check_roles(self, control: str, cluster: str | None, doses: Mapping[str, object] | None) -> None:
        """Refuse a trial that is not that of the campaign's `roles`: another control or level, another unit."""
        if self.control != control:
            raise ConfigError(
                f"experiment.arms begins with {self.control!r}, but roles.control is {control!r}: name the control "
                "first, and the same"
            )
        if unknown := sorted(set(self.arms) - set(doses or self.arms)):
            raise ConfigError(
                f"experiment.arms has {unknown[0]!r}, no level of roles.dose: {hint(unknown[0], doses or {})}"
            )
        if self.cluster != cluster:
            raise ConfigError(
                f"experiment.cluster is {self.cluster}, but roles.cluster is {cluster}: the unit of analysis must be "
                "the unit of randomisation, so name what was randomised in both"
            )
