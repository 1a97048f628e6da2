"""The configuration of a campaign: one YAML file, read into frozen sections; an unknown key is an error.

Sections stand in the order in which a campaign meets them: where tables live and events come from; what describes a
unit and counts as its outcome; what is trained; how it is evaluated; who is treated. Each says what its keys mean, in
which unit, and what holds where a key is left out. `Config`, at the end, names the sections; those in `sections` stand
in modules of their own, `lakehouse` and `pseudonyms` in `sections.source`.

A value without quotes is the text that stands there; its key says whether it is a number, a time, true or false (yes
and no, too), so levels may be called no or 010. Only `null`, `~` and nothing are no value.

What a section declares beside its keys:

RUNS     {job: dotted keys that the identity of its runs depends on}. What is downstream of a job is left out, so that
         another forest does not ingest the events a second time; where tables are kept is no part of any run.
RENAMED  {old key: new key}: an old key is read for one version, with a warning
NO_IDENTITY  keys that are no part of the section where it identifies a run: jobs that depend on one name it in `RUNS`
LATER    keys that came after a release: at their default they are no part of it either, so that runs keep their ids
"""

from __future__ import annotations

import math
import warnings
from dataclasses import fields, replace
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import (
    DOSE,
    MATURITY_WEIGHT,
    PROPENSITY,
    TREATMENT,
    Roles,
    checked_name,
    crossed,
)
from uplift_spark.runtime import read_features, read_yaml
from uplift_spark.sections.alerts import Alerts
from uplift_spark.sections.canary import CanaryConf
from uplift_spark.sections.costs import Costs, Economics
from uplift_spark.sections.experiment import ExperimentConf
from uplift_spark.sections.governance import Governance
from uplift_spark.sections.monitoring import Monitoring
from uplift_spark.sections.retraining import Refresh, Retrain
from uplift_spark.sections.roles import RolesConf
from uplift_spark.sections.serving import Serving
from uplift_spark.sections.source import STRICT, EventsSource, Lakehouse, Pseudonyms, Simulation, TableSource, TrialConf

Days = Annotated[float, Field(gt=0, le=3650)]


_CAME_LATER: dict[str, object] = {
    "roles.direction": "increase", "trial_outcomes": (), "random_arms_only": False, "roles.grid_doses": {},
}  # fmt: skip
"""Keys that runs were made without, and what held then: with this value they make no new run."""

HAPPENED_AT = {"event": "occurred_at", "profile": "observed_at"}  # a source's column: when what a row says came to hold
DAY = 86_400_000_000  # microseconds; days have 24 hours whatever clocks do
STEPS = 2**20  # per unit of a value: sums of values are exact in these, so no order of adding changes a bit
Aggregate = Literal["count", "sum", "mean", "min", "max", "distinct", "recency", "latest", "ratio"]


@dataclass(frozen=True, config=STRICT)
class Feature:
    """An entry of `features`, or of a file that it names: one feature, defined once. `events.features` computes it in
    Spark, `serving.features` online.

    name         of the feature: its column in the training set
    source       `event`: behaviour, rows of bronze.event named `event`; `profile`: attributes
    event        name of the events that are aggregated, of source `event`
    aggregate    count, sum, mean, min, max of values; distinct items; recency in days of the last event; latest value;
                 ratio of two other features, missing where the second is 0
    column       what is aggregated: of events `value` or `item` (distinct), of a profile the attribute of this name
    window_days  days of 24 hours before the assignment that count; None: all there is
    of           [numerator, denominator] of a ratio
    version, owner, description  for the feature registry: of the definition, who answers for it, and what it says
    ttl_minutes  age from which the source's newest row makes the feature stale
    targeting    whether it may decide whom to treat; without it the feature serves segments only
    protected    whether it is an attribute that audits for bias look at
    """

    name: str
    aggregate: Aggregate = "latest"
    source: Literal["event", "profile"] = "profile"
    event: str | None = None
    column: str | None = None
    window_days: Annotated[float, Field(gt=0)] | None = None
    of: tuple[str, str] | None = None
    version: Annotated[int, Field(ge=1)] = 1
    owner: str = ""
    description: str = ""
    ttl_minutes: Annotated[float, Field(gt=0)] = 30.0
    targeting: bool = True
    protected: bool = False

    def __post_init__(self) -> None:
        what = f"feature {self.name!r}"
        checked_name(self.name, "feature")
        if self.column is not None:
            checked_name(self.column, f"{what}: column")
        if (self.aggregate == "ratio") != (self.of is not None):
            raise ConfigError(f"{what}: aggregate ratio goes with `of: [numerator, denominator]` and nothing else does")
        if self.aggregate == "ratio":
            return
        if (self.source == "event") != (self.event is not None):
            raise ConfigError(f"{what}: source event goes with `event: NAME` and source profile without")
        if self.source == "profile" and (self.aggregate != "latest" or self.window_days is not None):
            raise ConfigError(f"{what}: of a profile only the latest value can be taken, without window_days")
        if self.source == "event" and self.column not in (None, "value", "item"):
            raise ConfigError(f"{what}: events have the columns value and item, not {self.column!r}")

    @property
    def taken(self) -> str:
        """The source's column that is aggregated."""
        if self.source == "profile":
            return self.column or self.name
        return self.column or ("item" if self.aggregate == "distinct" else "value")

    @property
    def window_micros(self) -> int | None:
        """The window's length in microseconds."""
        return None if self.window_days is None else round(self.window_days * DAY)


@dataclass(frozen=True, config=STRICT)
class Labels:
    """`labels`: what of the events after an assignment counts as its outcome.

    window_days       days after the assignment whose events count, 14 by default
    windows           {outcome: days}, for outcomes with a window of their own
    as_of             when labels are read (UTC); by default at the last ingestion
    wait_days         days that late events are given to arrive: a label is mature so long after its last window closed
    delivered         keep in the training set whether units were reached, 1 or 0: for complier effects
    maturity_weights  train on mature labels weighted by the inverse of how probable maturity is for a unit like it, so
                      that they stand for all that were assigned; figures of the hold-out stay those of mature units
    """

    RUNS: ClassVar = {
        "features": "campaign labels roles seed holdout lift.columns lift.outcomes feature_definitions trial_outcomes "
        "random_arms_only"
    }
    window_days: Days = 14.0
    as_of: datetime | None = None
    windows: dict[str, Days] = Field(default_factory=dict)
    wait_days: Annotated[float, Field(ge=0, le=3650)] = 0.0
    maturity_weights: bool = False
    delivered: bool = False

    def days(self, outcome: str) -> float:
        """The outcome's attribution window."""
        return self.windows.get(outcome, self.window_days)


@dataclass(frozen=True, config=STRICT)
class Alarms:
    """`alarms`: when the features job warns that events are missing, see `stats.tests`, and when it refuses them.

    alpha         probability that an alarm is false, for each kind of alarm and outcome
    complete      share of the mature labels' events that should be known
    delivery_gap  difference of delivery rates between arms that does not matter
    unmatched     share of the rows of outcomes, or of deliveries, whose unit was never assigned; above it the job
                  refuses them
    without_profile  share of the assigned units without a profile that was known by then; above it the job refuses them
    """

    alpha: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.001
    complete: Annotated[float, Field(gt=0, lt=1)] = 0.99
    delivery_gap: Annotated[float, Field(ge=0, lt=1)] = 0.01
    unmatched: Annotated[float, Field(ge=0, le=1)] = 0.5
    without_profile: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True, config=STRICT)
class Leakage:
    """`leakage`: guards of the training set, see `events.leakage`.

    alpha       probability that the features of a sound trial are taken for leaks
    allow       {feature: reason}: what is found about it is recorded with the reason and blocks nothing
    randomised  False: an observational campaign; its features may predict the treatment
    rows        rows looked at, chosen by hash
    """

    alpha: Annotated[float, Field(ge=1e-6, le=0.5)] = 0.001
    allow: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    randomised: bool = True
    rows: Annotated[int, Field(ge=1000)] = 50_000


@dataclass(frozen=True, config=STRICT)
class NuisancesConf:
    """`nuisances`, for campaigns that were no trial: what decided who was treated, and what is expected of the outcome
    under every level, are learnt from the features (`uplift nuisances`); the forest is trained on doubly robust scores.

    propensity  logged: the probabilities that the campaign logged of the level received; fitted: none is trusted
    folds       parts of the units; a unit's values come from models of the other parts
    rows        of each arm that models are fitted on, at most, chosen by hash: the driver holds them
    lowest      probability of a level below which a unit is trimmed, on record (split `trimmed`)
    permuted    times that levels are dealt out at random and the analysis done again: no effect must show
    placebo_outcomes  numeric features that the treatment came too late to change: none must show on these either
    hidden      shares, of what is left unexplained of outcome and treatment, that a confounder nobody measured may have
    """

    RUNS: ClassVar = {"nuisances": "campaign roles nuisances lift.segments seed"}
    propensity: Literal["logged", "fitted"] = "fitted"
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    rows: Annotated[int, Field(ge=1000)] = 200_000
    lowest: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    permuted: Annotated[int, Field(ge=0, le=50)] = 1
    placebo_outcomes: tuple[str, ...] = ()
    hidden: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.01, 0.05, 0.1)


Contender = Literal[
    "forest_per_level", "t_learner", "s_learner", "x_learner", "r_learner", "dr_learner", "class_transformation"
]


@dataclass(frozen=True, config=STRICT)
class LearnerConf:
    """`learner`: what `uplift train` trains: the causal forest (arguments under `forest`), one for each level, one of
    the meta-learners that `compare.against` names, or the instrumental forest, whose effects are those on units that
    are delivered what they are assigned (it needs `labels.delivered`, and best a `registry.name` of its own).

    kind        which learner
    replicates  fits to halves of the units behind the intervals of a meta-learner; 0: no intervals
    rows        of each arm that it is fitted on, at most, chosen by hash
    """

    RUNS: ClassVar = {"train": "campaign roles roles.direction learner forest seed registry.name"}
    kind: Literal["forest", "instrumental_forest"] | Contender = "forest"
    replicates: Annotated[int, Field(ge=0, le=200)] = 20
    rows: Annotated[int, Field(ge=1000)] = 200_000


@dataclass(frozen=True, config=STRICT)
class ForestConf:
    """`forest`: arguments of `CausalForest`; what is not set the rules in `forest.defaults` choose from the data.

    n_trees    trees, 200 by default; more make errors steadier and take as much longer
    min_leaf   units of each half of a leaf, at least
    max_depth  splits from the root to a leaf, at most
    n_buckets  parts of the units; trees grow in one and are estimated on the others
    max_bins   values between which a feature may be split, at most
    criterion  how a dose acts: slope (a line), spline, product (several doses), one_hot (no order); auto tests the data
    monotone   holds effects to one direction of the dose
    """

    n_trees: Annotated[int, Field(ge=4)] = 200
    min_leaf: Annotated[int, Field(ge=1)] | None = None
    max_depth: Annotated[int, Field(ge=1, le=30)] | None = None
    n_buckets: Annotated[int, Field(ge=2)] | None = None
    max_bins: Annotated[int, Field(ge=2, le=254)] | None = None
    criterion: Literal["auto", "slope", "spline", "product", "one_hot"] = "auto"
    monotone: Literal["increasing", "decreasing"] | None = None


@dataclass(frozen=True, config=STRICT)
class Signature:
    """`registry.signature`: versions are signed with a secret key, and what it has not signed is not loaded.

    key_env, key_file, key_secret  where the key is, one of them: environment variable, file, SCOPE/KEY of a secret
    required  False: versions without any signature, of times before there was a key, are loaded, too
    """

    key_env: str | None = None
    key_file: str | None = None
    key_secret: str | None = None
    required: bool = True

    def __post_init__(self) -> None:
        if [self.key_env, self.key_file, self.key_secret].count(None) != 2:
            raise ConfigError("registry.signature: name one of key_env, key_file and key_secret")
        if self.key_secret is not None and not all(self.key_secret.partition("/")):
            raise ConfigError(f"registry.signature.key_secret {self.key_secret!r} must look like SCOPE/KEY")


@dataclass(frozen=True, config=STRICT)
class RegistryConf:
    """`registry`: where MLflow keeps models, under which name, and which of them is used.

    tracking_uri  MLflow's store; by default sqlite inside the lakehouse's folder
    name          of the model; by default the campaign's
    champion      whether a trained version becomes the champion
    version       the version that units are scored with; by default the champion
    signature     whose signature a version must have to be used; by default none is looked for
    """

    RUNS: ClassVar = {"score": "campaign roles registry.name"}
    tracking_uri: str | None = None
    name: str | None = None
    champion: bool = True
    version: Annotated[int, Field(ge=1)] | None = None
    signature: Signature | None = None


_TRIED: dict[str, list[Any]] = {
    "min_leaf": [None, 5, 10, 20, 40, 80, 160, 320],
    "max_depth": [None, 4, 6, 8, 12],
    "n_buckets": [None, 2, 4, 8, 16],
    "max_bins": [None, 16, 64, 254],
}


@dataclass(frozen=True, config=STRICT)
class Tune:
    """`tune`: which arguments of the forest tell effects best, by the R-loss of units held back from training.

    trials    tried, the configuration's own among them
    minutes   after which no further trial is begun
    rows      training rows that a trial's forest is grown from, at most about
    held_out  training rows held back to judge by, at most about
    space     {argument of `forest`: values to draw from}; None: as the data have it
    """

    RUNS: ClassVar = {"tune": "campaign roles forest tune.rows tune.held_out tune.space seed registry.name"}
    trials: Annotated[int, Field(ge=2, le=1000)] = 20
    minutes: Annotated[float, Field(gt=0)] = 60.0
    rows: Annotated[int, Field(ge=1000)] = 200_000
    held_out: Annotated[int, Field(ge=500)] = 50_000
    space: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: dict(_TRIED)
    )

    def __post_init__(self) -> None:
        known, read = TypeAdapter(ForestConf), {}
        for name, values in self.space.items():
            try:
                read[name] = [getattr(known.validate_python({name: value}), name) for value in values]
            except ValidationError as error:
                wrong = error.errors()[0]["input"]
                raise ConfigError(f"tune.space.{name}: {wrong!r} is no value of forest.{name}") from error
        object.__setattr__(self, "space", read)


@dataclass(frozen=True, config=STRICT)
class Lift:
    """`lift`: how models are evaluated on the hold-out.

    segments    features, or crossings of some such as `region x device`, that lift tables are cut by
    outcomes    that are evaluated beside the one that the model predicts
    bins        of units, by rank of the prediction, that curves are made of
    replicates  bootstrap resamples behind the intervals
    winsorise   {outcome: share}: values above the size that this share of the hold-out does not exceed count as that
                size; figures are then about what treatment does to outcomes cut off there
    """

    RUNS: ClassVar = {
        "lift": "campaign roles roles.direction economics lift seed",
        "report": "campaign roles roles.direction economics lift policy seed",
    }
    segments: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    winsorise: dict[str, Annotated[float, Field(ge=0.5, lt=1)]] = Field(default_factory=dict)
    bins: Annotated[int, Field(ge=10, le=1000, multiple_of=10)] = 100
    replicates: Annotated[int, Field(ge=50, le=2000)] = 200

    def __post_init__(self) -> None:
        known: dict[frozenset[str], str] = {}
        for segment in self.segments:
            parts = crossed(segment)
            for part in parts:
                checked_name(part, "lift.segments entry" if part == segment else f"lift.segments: of {segment!r}")
            if len(set(parts)) < len(parts):
                raise ConfigError(f"lift.segments: {segment!r} crosses a feature with itself: name each once")
            if (twin := known.setdefault(frozenset(parts), segment)) is not segment:
                raise ConfigError(f"lift.segments: {segment!r} is {twin!r} once more: remove one of them")

    @property
    def columns(self) -> tuple[str, ...]:
        """Feature columns that the segments are cut by, each once."""
        return tuple(dict.fromkeys(part for segment in self.segments for part in crossed(segment)))


def _contender(entry: int | str | LearnerConf) -> int | LearnerConf:
    """An entry of `compare.against`: a version, or a learner without replicates, as no intervals are compared."""
    if isinstance(entry, int):
        return entry
    return replace(
        TypeAdapter(LearnerConf).validate_python({"kind": entry}) if isinstance(entry, str) else entry, replicates=0
    )


@dataclass(frozen=True, config=STRICT)
class Compare:
    """`compare`: what `uplift compare` holds the champion against, on the same hold-out.

    against  versions of the registered model, and learners fitted on the training split as `uplift train` fits them:
             a section such as `learner`, or the kind alone: forest_per_level (a binary forest for each level), or one
             of the meta-learners of `learners.metalearners` (boosted trees put together as T, S, X, R, DR and by class
             transformation)
    points   points of the cost curve
    """

    RUNS: ClassVar = {
        "compare": "campaign roles roles.direction economics forest lift.bins lift.replicates lift.winsorise compare "
        "seed registry.name"
    }
    against: Annotated[tuple[Annotated[int, Field(ge=1)] | Contender | LearnerConf, ...], Field(min_length=1)] = (
        "forest_per_level",
        "t_learner",
    )
    points: Annotated[int, Field(ge=2, le=500)] = 50

    def __post_init__(self) -> None:
        entries = [_contender(entry) for entry in self.against]
        if len(set(entries)) < len(entries):
            raise ConfigError("compare.against names a model twice: remove the duplicate")
        if any(isinstance(entry, LearnerConf) and entry.kind == "instrumental_forest" for entry in entries):
            raise ConfigError(
                "compare.against names an instrumental_forest, but the hold-out shows effects of assignment, not those "
                "on compliers: leave it out"
            )

    @property
    def contenders(self) -> dict[str, int | LearnerConf]:
        """{name in results: version or learner}, in their order; further learners of a kind are <kind>_2 and so on."""
        named: dict[str, int | LearnerConf] = {}
        for entry in map(_contender, self.against):
            if isinstance(entry, int):
                named[str(entry)] = entry
                continue
            alike = sum(isinstance(other, LearnerConf) and other.kind == entry.kind for other in named.values())
            named[f"{entry.kind}_{alike + 1}" if alike else entry.kind] = entry
        return named


@dataclass(frozen=True, config=STRICT)
class Consent:
    """`consent`: who may be contacted, by bronze.consent.

    purpose   that a unit consents to
    required  true: only units that granted it; false: all that have not withdrawn it
    """

    purpose: Annotated[str, Field(min_length=1)] = "marketing"
    required: bool = True


@dataclass(frozen=True, config=STRICT)
class Limit:
    """An entry of `policy.limits`: what a plan may use at most, or with `least` must use at least; of exactly
    one kind:

    spend    money, by the costs of treating
    units    units treated
    share    units treated, as a share of the units that may be treated
    gap      how far the treated share of any bucket of `segment` may lie from the share of all: the same for everybody

    level    only units that get this treatment level count
    segment, bucket  a column of the training set, or a crossing of some, and its value: only units with it count
    least    whether so much must be used at least, in place of at most
    """

    spend: Annotated[float, Field(ge=0)] | None = None
    units: Annotated[float, Field(ge=0)] | None = None
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    gap: Annotated[float, Field(gt=0, le=1)] | None = None
    level: str | None = None
    segment: str | None = None
    bucket: str | None = None
    least: bool = False

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("spend", "units", "share", "gap") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ConfigError(f"a limit is one of spend, units, share and gap, not {' and '.join(kinds) or 'none'}")
        if self.gap is not None and (self.segment is None or self.bucket is not None or self.least):
            raise ConfigError("a limit on the gap needs a segment, and neither bucket nor least")
        if self.gap is None and (self.segment is None) != (self.bucket is None):
            raise ConfigError("a limit within a segment needs both `segment` and `bucket`")

    @property
    def name(self) -> str:
        """In words, such as `units of '10%' where region = north`."""
        (kind,) = (kind for kind in ("spend", "units", "share", "gap") if getattr(self, kind) is not None)
        words = [kind, *([f"of {self.level!r}"] if self.level else [])]
        if self.segment:
            words.append(f"where {self.segment} = {self.bucket}" if self.bucket is not None else f"in {self.segment}")
        return " ".join(["least", *words] if self.least else words)


@dataclass(frozen=True, config=STRICT)
class Policy:
    """`policy`: whom to treat with what, for `uplift policy` and `uplift simulate`.

    budget     money to spend; no limit by default
    limits     further limits, see `Limit`
    objective  profit: value of the outcome times uplift, less the cost of treating; outcome: uplift alone
    bound      expected: the predicted uplift counts; lower: the lower end of its 95 % interval
    cost       {level: SQL over the training set's columns}, where a cost is not the same for every unit; SQL in a
               configuration is an expression over the columns of one row, see `sql_gate.checked_expression`
    cost_most  {level: SQL}, where a cost is uncertain: its upper end, which a plan by the lower bound reckons with, so
               that it keeps its budget even then
    exclude    {rule: SQL condition}: units for which it holds get nothing, nor do those for which it is not known,
               such as `age < 18` of a missing age: they are counted apart, and `coalesce(age < 18, false)` treats them
    contacts   a unit gets nothing after so many deliveries within `contact_days`
    contact_days  days before the plan whose deliveries count
    global_holdout  share of units left out at random, to read the plan's effect off later
    """

    RUNS: ClassVar = {
        "policy": "campaign roles roles.direction economics policy consent seed",
        "simulate": "campaign roles roles.direction economics policy scenarios consent seed",
    }
    RENAMED: ClassVar = {"keep_out": "global_holdout"}
    budget: Annotated[float, Field(ge=0, allow_inf_nan=True)] | None = None
    limits: tuple[Limit, ...] = ()
    objective: Literal["profit", "outcome"] = "profit"
    bound: Literal["expected", "lower"] = "expected"
    cost: dict[str, str] = Field(default_factory=dict)
    cost_most: dict[str, str] = Field(default_factory=dict)
    exclude: dict[str, str] = Field(default_factory=dict)
    contacts: Annotated[int, Field(ge=1)] | None = None
    contact_days: Days = 30.0
    global_holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.cost_most and self.bound != "lower":
            raise ConfigError(
                "policy.cost_most is what a plan by the lower bound reckons with: set policy.bound to lower"
            )
        keys = ("cost", "cost_most", "exclude")
        if texts := {f"policy.{key}.{name}": sql for key in keys for name, sql in getattr(self, key).items()}:
            from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

            for key, text in texts.items():
                checked_expression(key, text)

    @property
    def costs_by_unit(self) -> dict[str, tuple[str, str]]:
        """{level: (key in the configuration, SQL)} of the costs that the plan reckons with and that are SQL."""
        keys = ("cost", "cost_most")
        return {level: (f"policy.{key}.{level}", sql) for key in keys for level, sql in getattr(self, key).items()}

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """The budget, then the others."""
        return (*(() if self.budget in (None, math.inf) else (Limit(spend=self.budget),)), *self.limits)


@dataclass(frozen=True, config=STRICT)
class Scenario:
    """An entry of `scenarios`: what `uplift simulate` changes; all else stays as it is in `policy` and `economics`.

    budget  money to spend, that of `policy` by default; null: no limit
    levels  only these may be given; limits on others fall away
    limits  in place of `policy.limits`
    cost    {level: of treating one unit}, in place of SQL, too
    value   {outcome: of one}
    """

    budget: Annotated[
        float | None, Field(ge=0, allow_inf_nan=True), BeforeValidator(lambda b: math.inf if b is None else b)
    ] = None
    levels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    limits: tuple[Limit, ...] | None = None
    cost: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    value: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class TreeConf:
    """`tree`, for `uplift tree`: rules that people can read.

    depth      questions on the way to a level; the best tree is found for 1 and 2, a good one for 3
    min_units  units of the hold-out behind every level the tree gives, at least
    features   that questions may be about, all of the model's by default
    groups     of values of a feature between which a question may lie
    """

    RUNS: ClassVar = {"tree": "campaign roles roles.direction economics policy.objective tree seed registry.name"}
    depth: Annotated[int, Field(ge=1, le=3)] = 2
    min_units: Annotated[int, Field(ge=30)] = 100
    features: tuple[str, ...] = ()
    groups: Annotated[int, Field(ge=2, le=250)] = 32


@dataclass(frozen=True, config=STRICT)
class Config:
    """One campaign: its name, its source, the roles of its columns, and a section for every step.

    campaign  name: letters, digits and underscores
    source    what `uplift ingest` reads; left out where `uplift load` brings all rows
    seed      of everything that is random, 7 by default
    holdout   share of the units, by hash of their id, that no model is trained on
    """

    RUNS: ClassVar = {"ingest": "campaign source seed roles.grid_doses"}
    campaign: str
    source: Annotated[Simulation | TrialConf | TableSource | EventsSource, Field(discriminator="kind")] | None
    roles: RolesConf
    seed: int = 7
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lakehouse: Lakehouse = Field(default_factory=Lakehouse)
    features: tuple[Feature, ...] = ()
    experiment: ExperimentConf | None = None
    pseudonyms: Pseudonyms | None = None
    labels: Labels = Field(default_factory=Labels)
    alarms: Alarms = Field(default_factory=Alarms)
    leakage: Leakage = Field(default_factory=Leakage)
    nuisances: NuisancesConf | None = None
    learner: LearnerConf = Field(default_factory=LearnerConf)
    forest: ForestConf = Field(default_factory=ForestConf)
    registry: RegistryConf = Field(default_factory=RegistryConf)
    tune: Tune = Field(default_factory=Tune)
    refresh: Refresh = Field(default_factory=Refresh)
    economics: Economics = Field(default_factory=Economics)
    lift: Lift = Field(default_factory=Lift)
    compare: Compare = Field(default_factory=Compare)
    consent: Consent = Field(default_factory=Consent)
    policy: Policy = Field(default_factory=Policy)
    scenarios: dict[str, Scenario] = Field(default_factory=dict)
    governance: Governance = Field(default_factory=Governance)
    tree: TreeConf = Field(default_factory=TreeConf)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    retrain: Retrain = Field(default_factory=Retrain)
    alerts: Alerts = Field(default_factory=Alerts)
    serving: Serving = Field(default_factory=Serving)
    canary: CanaryConf = Field(default_factory=CanaryConf)
    costs: Costs | None = None

    def __post_init__(self) -> None:
        outcomes = (self.roles.outcome, *self.roles.more_outcomes, *self.lift.outcomes, *self.trial_outcomes)
        named: Any = (
            *(("campaign", [self.campaign]), ("lakehouse.catalog", [self.lakehouse.catalog])),
            *(("roles.features entry", self.roles.features), ("outcome", outcomes), ("scenario", self.scenarios)),
            *(("roles.cluster", [self.roles.cluster]), ("registry.name", [self.model_name])),
        )
        for what, name in [(what, name) for what, names in named for name in names if name]:
            checked_name(name, what)
        if self.experiment is not None:
            self.experiment.check_roles(self.roles.control, self.roles.cluster, self.roles.dose)
        self._check_features()
        if strangers := sorted(set(self.labels.windows) - set(outcomes)):
            raise ConfigError(
                f"labels.windows names {strangers}, none of the outcomes {', '.join(dict.fromkeys(outcomes))}: remove "
                "them or correct their spelling"
            )
        evaluated = dict.fromkeys([self.roles.outcome, *self.lift.outcomes])
        if unknown := sorted(set(self.lift.winsorise) - set(evaluated)):
            raise ConfigError(f"lift.winsorise names {unknown}, none of the outcomes evaluated: {', '.join(evaluated)}")
        if self.roles.direction == "decrease" and (worth := self.economics.value.get(self.roles.outcome, 0.0)) < 0:
            raise ConfigError(
                f"economics.value.{self.roles.outcome} is {worth:g}, but roles.direction already says that less is "
                f"better: give what one less is worth, such as {-worth:g}"
            )
        if self.learner.kind == "instrumental_forest" and not self.labels.delivered:
            raise ConfigError(
                "learner.kind instrumental_forest needs to know who was reached: set labels.delivered: true"
            )
        object.__setattr__(self, "economics", self.economics.by_level(self.roles.level_doses, self.roles.control))
        levels_alone = {
            "a source of kind simulation": isinstance(self.source, Simulation),
            "a source of kind trial (unlike kind table)": isinstance(self.source, TrialConf),
            "source.arms": getattr(self.source, "arms", None) is not None,
            "section experiment": self.experiment is not None,
            "section nuisances": self.nuisances is not None,
            f"learner.kind {self.learner.kind}": self.learner.kind != "forest",
        }
        self.roles.check_grid([part for part, there in levels_alone.items() if there], (*self.unit_columns, *outcomes))
        if unknown := sorted(set(self.leakage.allow) - set(self.roles.features)):
            raise ConfigError(f"leakage.allow names {unknown}, not among roles.features: remove or respell them")

    def _check_features(self) -> None:
        known = {feature.name: feature for feature in self.features}
        if len(known) < len(self.features):
            raise ConfigError("features defines a name twice: keep one definition of each")
        for feature in self.features:
            for part in feature.of or ():
                if part in known and known[part].aggregate == "ratio":
                    raise ConfigError(f"feature {feature.name!r}: {part!r} is a ratio itself: use what it is made of")
        barred = [name for name in self.roles.features if name in known and not known[name].targeting]
        if barred:
            raise ConfigError(f"roles.features contains {barred}, defined with targeting: false: remove them")

    def run_identity(self, job: str) -> dict[str, Any]:
        """Keys that the identity of a job's runs depends on: what a section, or this class, declares in `RUNS`."""
        sections = [self, *(getattr(self, part.name) for part in fields(self))]
        declared = {verb: keys for section in sections for verb, keys in getattr(section, "RUNS", {}).items()}
        identity = {key: reduce(getattr, key.split("."), self) for key in declared[job].split()}
        return {key: value for key, value in identity.items() if key not in _CAME_LATER or value != _CAME_LATER[key]}

    @property
    def feature_definitions(self) -> tuple[Feature, ...]:
        """Definitions of the training set's features and segments; a name that none defines is a profile attribute.

        Parts of ratios come last; they are no columns of the training set unless they are named themselves.
        """
        known = {feature.name: feature for feature in self.features}
        wanted = dict.fromkeys(self.unit_columns)
        parts = dict.fromkeys(part for name in wanted if name in known for part in known[name].of or ())
        return tuple(known.get(name, Feature(name)) for name in {**wanted, **parts})

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """What the training set says of units: features, segments' columns and the cluster, each once."""
        cluster = [self.roles.cluster] if self.roles.cluster else []
        trial = self.experiment.unit_columns if self.experiment and self.experiment.table is None else ()
        return tuple(dict.fromkeys([*self.roles.features, *self.lift.columns, *cluster, *trial]))

    @property
    def trial_outcomes(self) -> tuple[str, ...]:
        """Outcomes that the experiment reads from the training set."""
        return self.experiment.outcome_columns if self.experiment and self.experiment.table is None else ()

    @property
    def random_arms_only(self) -> bool:
        """Whether models learn from units with a random arm alone, see `experiment.train_on`."""
        return self.experiment is not None and self.experiment.train_on == "random"

    @property
    def model_name(self) -> str:
        """Name the campaign's model is registered under."""
        return self.registry.name or self.campaign

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes to label, the trained one first; refused like `training_roles`."""
        return tuple(dict.fromkeys([*self.training_roles.outcomes, *self.lift.outcomes, *self.trial_outcomes]))

    @property
    def unit_roles(self) -> Roles:
        """Roles of the trial itself, over the training set written by the features job: no scores, no weights; where
        the treatment is a number, the levels whose bins hold the doses."""
        return replace(self.training_roles, scores=None, weight=None).over_levels

    @property
    def training_roles(self) -> Roles:
        """Roles that the forest is trained with, over `training_table`."""
        grid = self.roles.grid
        return Roles(
            unit="unit_id",
            treatment=DOSE if grid else TREATMENT,
            outcome=self.roles.outcome,
            features=self.roles.features,
            control=self.roles.control,
            dose=self.roles.dose,
            propensity=None if grid else PROPENSITY,
            cluster=self.roles.cluster,
            more_outcomes=self.roles.more_outcomes,
            scores="scores" if self.nuisances else None,
            weight=MATURITY_WEIGHT if self.labels.maturity_weights else None,
            direction=self.roles.direction,
            grid=grid,
        )

    @property
    def training_table(self) -> str:
        """The table that models are trained on and units scored from."""
        return f"silver.{'adjusted' if self.nuisances else 'training'}_{self.campaign}"


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file; `overrides` are `dotted.key=value` pairs, values parsed as YAML.

    An old name of a key is read with a FutureWarning. Raises ConfigError naming file, key and what was expected.
    """
    path = Path(path)
    raw = read_yaml(path, overrides)
    _rename_old_keys(raw, path)
    if "features" in raw:
        raw["features"] = read_features(raw["features"], path)
    try:
        return TypeAdapter(Config).validate_python({"source": None, **raw})
    except ValidationError as error:
        raise ConfigError(f"configuration {path}: {_first_problem(error)}") from error


def _rename_old_keys(raw: dict[str, Any], path: Path) -> None:
    """Give keys that a section declares in `RENAMED` their new names. Raises ConfigError where both names are there."""
    for name, annotation in get_type_hints(Config).items():
        part = raw[name] if isinstance(raw.get(name), dict) else {}
        for old, new in getattr(annotation, "RENAMED", {}).items():
            sentence = f"configuration {path}: {name}.{old} is now called {name}.{new}"
            if old in part and new in part:
                raise ConfigError(f"{sentence}, and both are there: remove {name}.{old}")
            if old in part:
                part[new] = part.pop(old)
                warnings.warn(f"{sentence}: rename it, the next version will not know it", FutureWarning, 3)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "string_type" and first["input"] is None:
        return f'{where}: YAML reads nothing, ~ and an unquoted null as no value: put the text in quotes, as in "null"'
    if first["type"] == "tuple_type" and isinstance(first["input"], str):
        return f"{where}: a list is needed, as in [{first['input']}]"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {where!r}: remove it or check its spelling"
    return f"{where}: {first['msg']}" if where else first["msg"]
