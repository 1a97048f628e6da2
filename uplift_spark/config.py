"""Sections of a campaign's configuration, see `uplift_spark.config`: frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import MATURITY_WEIGHT, Roles, checked_name, crossed

STRICT = ConfigDict(extra="forbid")
Days = Annotated[float, Field(gt=0, le=3650)]


@dataclass(frozen=True, config=STRICT)
class Lakehouse:
    """Where tables live: a folder (local) or a catalog (Unity Catalog, three-level names).

    checkpoints  folder in which streams keep how far they are (None: `_checkpoints` beside a folder's tables)
    """

    path: str = "lakehouse"
    catalog: str | None = None
    checkpoints: str | None = None


@dataclass(frozen=True, config=STRICT)
class Simulation:
    """A campaign with known effects, made by `events.simulate`."""

    kind: Literal["simulation"] = "simulation"
    units: Annotated[int, Field(ge=1)] = 200_000
    design: Literal["binary", "ordered", "unordered"] = "ordered"
    arms: Annotated[int, Field(ge=2, le=20)] = 3
    confounding: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    assigned_at: datetime = datetime(2025, 1, 6)


@dataclass(frozen=True, config=STRICT)
class TrialConf:
    """A real trial's file: one row per unit, found in $UPLIFT_DATA or downloaded and checked.

    `arms` maps the values of the treatment column to level names (None: they are the names); other values are refused.
    `categorical` names attributes to read as text even where they look like numbers.
    """

    kind: Literal["trial"]
    file: str
    sha256: str
    treatment: str
    outcomes: tuple[str, ...]
    attributes: tuple[str, ...]
    assigned_at: datetime
    url: str | None = None
    url_sha256: str | None = None
    unit: str | None = None
    missing: tuple[float, ...] = ()
    arms: dict[str, str] | None = None
    categorical: tuple[str, ...] = ()
    outcome_after_days: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True, config=STRICT)
class RolesConf:
    """The parts columns of the training set play; see `roles.Roles`. Jobs score and evaluate `outcome`.

    cluster  profile attribute or feature that names what units belong to (households, villages): its units fall into
             the same part of every split, and intervals take clusters, not units, as independent
    """

    outcome: str
    control: str
    features: tuple[str, ...]
    dose: dict[str, float | tuple[float, ...]] | None = None
    more_outcomes: tuple[str, ...] = ()
    cluster: str | None = None


HAPPENED_AT = {"event": "occurred_at", "profile": "observed_at"}  # a source's column: when what a row says came to hold
DAY = 86_400_000_000  # microseconds; days have 24 hours whatever clocks do
STEPS = 2**20  # per unit of a value: sums of values are exact in these, so no order of adding changes a bit
Aggregate = Literal["count", "sum", "mean", "min", "max", "distinct", "recency", "latest", "ratio"]


@dataclass(frozen=True, config=STRICT)
class Feature:
    """One feature, defined once: `events.features` computes it in Spark, `serving.features` online.

    source       `event`: behaviour, rows of bronze.event named `event`; `profile`: attributes
    aggregate    count, sum, mean, min, max of values; distinct items; recency in days of the last event; latest value;
                 ratio of two other features, missing where the second is 0
    column       what is aggregated: of events `value` or `item` (distinct), of a profile the attribute of this name
    window_days  days of 24 hours before the assignment that count; None: all there is
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
    """Attribution window after assignment, in days; `as_of` (UTC) is when labels are read, None the last ingestion.

    `windows` gives outcomes a window of their own. A label is mature `wait_days` after its last window has closed: the
    time that late events are given to arrive.

    delivered         keep in the training set whether units were reached, 1 or 0: for complier effects
    maturity_weights  train on mature labels weighted by the inverse of how probable maturity is for a unit like it, so
                      that they stand for all that were assigned; figures of the hold-out stay those of mature units
    """

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
class ForestConf:
    """Arguments of `CausalForest`; None lets the rule in `forest.defaults` choose from the data."""

    n_trees: Annotated[int, Field(ge=4)] = 200
    min_leaf: Annotated[int, Field(ge=1)] | None = None
    max_depth: Annotated[int, Field(ge=1, le=30)] | None = None
    n_buckets: Annotated[int, Field(ge=2)] | None = None
    max_bins: Annotated[int, Field(ge=2, le=254)] | None = None
    criterion: Literal["auto", "slope", "spline", "product", "one_hot"] = "auto"
    monotone: Literal["increasing", "decreasing"] | None = None


@dataclass(frozen=True, config=STRICT)
class Economics:
    """Money: value of one unit of an outcome, cost of treating one unit, per level."""

    value: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class RegistryConf:
    """MLflow: tracking store (None: sqlite inside the lakehouse folder), model name (None: the campaign).

    `champion`: training sets the alias champion. `version`: scoring uses this version (None: the champion).
    """

    tracking_uri: str | None = None
    name: str | None = None
    champion: bool = True
    version: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, config=STRICT)
class Lift:
    """Evaluation on the hold-out: segments, outcomes beside the trained one, rank bins, bootstrap replicates.

    A segment is a feature, or a crossing of features such as `region x device`.

    winsorise  {outcome: share}: values above the size that this share of the hold-out does not exceed count as that
               size; figures are then about what treatment does to outcomes cut off there
    """

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


@dataclass(frozen=True, config=STRICT)
class Leakage:
    """Guards of the training set, see `events.leakage`.

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
    """For campaigns that were no trial: what decided who was treated, and what is expected of the outcome under every
    level, are learnt from the features (`uplift nuisances`), and the forest is trained on doubly robust scores.

    propensity  logged: the probabilities that the campaign logged of the level received; fitted: none is trusted
    folds       parts of the units; a unit's values come from models of the other parts
    rows        of each arm that models are fitted on, at most, chosen by hash: the driver holds them
    lowest      probability of a level below which a unit is set aside, on record (split `set aside`)
    permuted    times that levels are dealt out at random and the analysis done again: no effect must show
    placebo_outcomes  numeric features that the treatment came too late to change: none must show on these either
    hidden      shares, of what is left unexplained of outcome and treatment, that a confounder nobody measured may have
    """

    propensity: Literal["logged", "fitted"] = "fitted"
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    rows: Annotated[int, Field(ge=1000)] = 200_000
    lowest: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    permuted: Annotated[int, Field(ge=0, le=50)] = 1
    placebo_outcomes: tuple[str, ...] = ()
    hidden: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.01, 0.05, 0.1)


@dataclass(frozen=True, config=STRICT)
class Consent:
    """The gate of exports: the purpose in bronze.consent, and whether units need a grant of it (`required`) or only
    must not have withdrawn it."""

    purpose: Annotated[str, Field(min_length=1)] = "marketing"
    required: bool = True


@dataclass(frozen=True, config=STRICT)
class Pseudonyms:
    """Unit ids are replaced at ingest by a hash with the key that the environment variable `key_env` holds."""

    key_env: str


@dataclass(frozen=True, config=STRICT)
class Alarms:
    """When the features job warns that events are missing, see `stats.tests`.

    alpha         probability that an alarm is false, for each kind of alarm and outcome
    complete      share of the mature labels' events that should be known
    delivery_gap  difference of delivery rates between arms that does not matter
    """

    alpha: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.001
    complete: Annotated[float, Field(gt=0, lt=1)] = 0.99
    delivery_gap: Annotated[float, Field(ge=0, lt=1)] = 0.01


# --------------------------------------------------------------------------------------------------------------------
# The sections of a configuration about decisions: limits, plans, scenarios, trees, which model.


@dataclass(frozen=True, config=STRICT)
class Limit:
    """What a plan may use at most, or with `least` must use at least; of exactly one kind:

    spend    money, by the costs of treating
    units    units treated
    share    units treated, as a share of the units that may be treated
    gap      how far the treated share of any bucket of `segment` may lie from the share of all: the same for everybody

    level    only units that get this treatment level count
    segment  a column of the training set, or a crossing of some: only units with the value `bucket` count
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
class TreeConf:
    """Rules that people can read: `uplift tree`.

    depth      questions on the way to a level; the best tree is found for 1 and 2, a good one for 3
    min_units  units of the hold-out behind every level the tree gives, at least
    features   that may be asked for, all of the model's by default
    groups     of values of a feature between which a question may lie
    """

    depth: Annotated[int, Field(ge=1, le=3)] = 2
    min_units: Annotated[int, Field(ge=30)] = 100
    features: tuple[str, ...] = ()
    groups: Annotated[int, Field(ge=2, le=250)] = 32


@dataclass(frozen=True, config=STRICT)
class Policy:
    """Whom to treat with what: `uplift policy`.

    budget     money to spend, None: no limit; further `limits`
    objective  profit: value of the outcome times uplift, less the cost of treating; outcome: uplift alone
    bound      expected: the predicted uplift counts; lower: the lower end of its 95 % interval
    cost       {level: SQL over the training set's columns}, where a cost is not the same for every unit
    cost_most  {level: SQL}, where a cost is uncertain: its upper end, which a plan by the lower bound reckons with, so
               that it keeps its budget even then
    exclude    {rule: SQL condition}: units for which it holds get nothing
    contacts   a unit gets nothing after so many deliveries within `contact_days`
    global_holdout  share of units left out at random, to read the plan's effect off later
    """

    budget: Annotated[float, Field(ge=0)] | None = None
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

    @property
    def costs_by_unit(self) -> dict[str, tuple[str, str]]:
        """{level: (key in the configuration, SQL)} of the costs that the plan reckons with and that are SQL."""
        keys = ("cost", "cost_most")
        return {level: (f"policy.{key}.{level}", sql) for key in keys for level, sql in getattr(self, key).items()}

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """The budget, then the others."""
        return (*(() if self.budget is None else (Limit(spend=self.budget),)), *self.limits)


@dataclass(frozen=True, config=STRICT)
class Scenario:
    """What `uplift simulate` changes of the plan; what is not named stays as it is in `policy` and `economics`.

    budget  money to spend
    levels  only these may be given; limits on others fall away
    limits  in place of `policy.limits`
    cost    {level: of treating one unit}, in place of SQL, too
    value   {outcome: of one}
    """

    budget: Annotated[float, Field(ge=0)] | None = None
    levels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    limits: tuple[Limit, ...] | None = None
    cost: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    value: dict[str, float] = Field(default_factory=dict)


Contender = Literal[
    "forest_per_level", "t_learner", "s_learner", "x_learner", "r_learner", "dr_learner", "class_transformation"
]


@dataclass(frozen=True, config=STRICT)
class LearnerConf:
    """What `uplift train` trains: the causal forest (its arguments under `forest`), one for each level, one of the
    meta-learners that `compare.against` names, or the instrumental forest, whose effects are those on units that are
    delivered what they are assigned (it needs `labels.delivered`, and best a `registry.name` of its own).

    replicates  resamples behind the intervals of a meta-learner; 0: no intervals
    rows        of each arm that it is fitted on, at most, chosen by hash
    """

    kind: Literal["forest", "instrumental_forest"] | Contender = "forest"
    replicates: Annotated[int, Field(ge=0, le=200)] = 20
    rows: Annotated[int, Field(ge=1000)] = 200_000


_TRIED: dict[str, list[Any]] = {
    "min_leaf": [None, 5, 10, 20, 40, 80, 160, 320],
    "max_depth": [None, 4, 6, 8, 12],
    "n_buckets": [None, 2, 4, 8, 16],
    "max_bins": [None, 16, 64, 254],
}


@dataclass(frozen=True, config=STRICT)
class Refresh:
    """`uplift refresh`: new labels into the champion's trees.

    half_life_days  a row counts half as much as one assigned so many days later; None: all alike
    """

    half_life_days: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, config=STRICT)
class Tune:
    """`uplift tune`: which arguments of the forest tell effects best, by the R-loss of units held back from training.

    trials    tried, the configuration's own among them; `minutes` after which no further one is begun
    rows      training rows that a trial's forest is grown from, at most about
    held_out  training rows held back to judge by, at most about
    space     {argument of `forest`: values to draw from}; None: as the data have it
    """

    trials: Annotated[int, Field(ge=2, le=1000)] = 20
    minutes: Annotated[float, Field(gt=0)] = 60.0
    rows: Annotated[int, Field(ge=1000)] = 200_000
    held_out: Annotated[int, Field(ge=500)] = 50_000
    space: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: dict(_TRIED)
    )

    def __post_init__(self) -> None:
        for name, values in self.space.items():
            for value in values:
                try:
                    TypeAdapter(ForestConf).validate_python({name: value})
                except ValidationError as error:
                    raise ConfigError(f"tune.space.{name}: {value!r} is no value of forest.{name}") from error


def _contender(entry: int | str | LearnerConf) -> int | LearnerConf:
    """An entry of `compare.against`: a version, or a learner without replicates, as no intervals are compared."""
    if isinstance(entry, int):
        return entry
    return replace(
        TypeAdapter(LearnerConf).validate_python({"kind": entry}) if isinstance(entry, str) else entry, replicates=0
    )


@dataclass(frozen=True, config=STRICT)
class Compare:
    """What `uplift compare` holds the champion against, on the same hold-out.

    against  versions of the registered model, and learners fitted on the training split as `uplift train` fits them:
             a section such as `learner`, or the kind alone: forest_per_level (a binary forest for each level), or one
             of the meta-learners of `learners.metalearners` (boosted trees put together as T, S, X, R, DR and by class
             transformation)
    points   points of the cost curve
    """

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


# --------------------------------------------------------------------------------------------------------------------
# A campaign's configuration: frozen dataclasses read from one YAML file; an unknown key is an error.


@dataclass(frozen=True, config=STRICT)
class Config:
    """One campaign, from source to lift table."""

    campaign: str
    source: Annotated[Simulation | TrialConf, Field(discriminator="kind")]
    roles: RolesConf
    seed: int = 7
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lakehouse: Lakehouse = Field(default_factory=Lakehouse)
    labels: Labels = Field(default_factory=Labels)
    learner: LearnerConf = Field(default_factory=LearnerConf)
    forest: ForestConf = Field(default_factory=ForestConf)
    economics: Economics = Field(default_factory=Economics)
    registry: RegistryConf = Field(default_factory=RegistryConf)
    lift: Lift = Field(default_factory=Lift)
    features: tuple[Feature, ...] = ()
    leakage: Leakage = Field(default_factory=Leakage)
    nuisances: NuisancesConf | None = None
    consent: Consent = Field(default_factory=Consent)
    pseudonyms: Pseudonyms | None = None
    alarms: Alarms = Field(default_factory=Alarms)
    policy: Policy = Field(default_factory=Policy)
    scenarios: dict[str, Scenario] = Field(default_factory=dict)
    compare: Compare = Field(default_factory=Compare)
    tree: TreeConf = Field(default_factory=TreeConf)
    tune: Tune = Field(default_factory=Tune)
    refresh: Refresh = Field(default_factory=Refresh)

    def __post_init__(self) -> None:
        checked_name(self.campaign, "campaign")
        self._check_features()
        if self.lakehouse.catalog is not None:
            checked_name(self.lakehouse.catalog, "lakehouse.catalog")
        for column in self.roles.features:
            checked_name(column, "roles.features entry")
        outcomes = (self.roles.outcome, *self.roles.more_outcomes, *self.lift.outcomes)
        for column in outcomes:
            checked_name(column, "outcome")
        if self.roles.cluster is not None:
            checked_name(self.roles.cluster, "roles.cluster")
        checked_name(self.model_name, "registry.name")
        for name in self.scenarios:
            checked_name(name, "scenario")
        if strangers := sorted(set(self.labels.windows) - set(outcomes)):
            raise ConfigError(
                f"labels.windows names {strangers}, none of the outcomes {', '.join(dict.fromkeys(outcomes))}: remove "
                "them or correct their spelling"
            )
        evaluated = dict.fromkeys([self.roles.outcome, *self.lift.outcomes])
        if unknown := sorted(set(self.lift.winsorise) - set(evaluated)):
            raise ConfigError(f"lift.winsorise names {unknown}, none of the outcomes evaluated: {', '.join(evaluated)}")
        if self.learner.kind == "instrumental_forest" and not self.labels.delivered:
            raise ConfigError(
                "learner.kind instrumental_forest needs to know who was reached: set labels.delivered: true"
            )
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

    @property
    def feature_definitions(self) -> tuple[Feature, ...]:
        """Definitions of the training set's features and segments; a name that none defines is a profile attribute.

        Parts of ratios come last; they are no columns of the training set unless they are asked for themselves.
        """
        known = {feature.name: feature for feature in self.features}
        wanted = dict.fromkeys(self.unit_columns)
        parts = dict.fromkeys(part for name in wanted if name in known for part in known[name].of or ())
        return tuple(known.get(name, Feature(name)) for name in {**wanted, **parts})

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """What the training set says of units: features, segments' columns and the cluster, each once."""
        cluster = [self.roles.cluster] if self.roles.cluster else []
        return tuple(dict.fromkeys([*self.roles.features, *self.lift.columns, *cluster]))

    @property
    def model_name(self) -> str:
        """Name the campaign's model is registered under."""
        return self.registry.name or self.campaign

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes to label, the trained one first; refused like `training_roles`."""
        return tuple(dict.fromkeys([*self.training_roles.outcomes, *self.lift.outcomes]))

    @property
    def unit_roles(self) -> Roles:
        """Roles of the trial itself, over the training set written by the features job: no scores, no weights."""
        return replace(self.training_roles, scores=None, weight=None)

    @property
    def training_roles(self) -> Roles:
        """Roles that the forest is trained with, over `training_table`."""
        return Roles(
            unit="unit_id",
            treatment="treatment",
            outcome=self.roles.outcome,
            features=self.roles.features,
            control=self.roles.control,
            dose=self.roles.dose,
            propensity="propensity",
            cluster=self.roles.cluster,
            more_outcomes=self.roles.more_outcomes,
            scores="scores" if self.nuisances else None,
            weight=MATURITY_WEIGHT if self.labels.maturity_weights else None,
        )

    @property
    def training_table(self) -> str:
        """The table that models are trained on and units scored from."""
        return f"silver.{'adjusted' if self.nuisances else 'training'}_{self.campaign}"


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML file; `overrides` are `dotted.key=value` pairs, values parsed as YAML.

    Raises ConfigError naming the file, the key and what was expected.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys, not {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    if "features" in raw:
        raw["features"] = [one for entry in _listed(raw["features"], path) for one in _definitions(entry, path)]
    try:
        return TypeAdapter(Config).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(f"configuration {path}: {_first_problem(error)}") from error


def _listed(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: features must be a list of definitions, not {type(value).__name__}")
    return value


def _definitions(entry: Any, conf: Path) -> list[Any]:
    """An entry of `features`: a definition, or the path of a file of definitions, seen from the configuration."""
    if not isinstance(entry, str):
        return [entry]
    path = conf.parent / entry
    try:
        return _listed(yaml.safe_load(path.read_text()), path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"configuration {conf}: features file {path} cannot be read: {reason}") from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} must look like key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a mapping")
        raw = child
    try:
        raw[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: its value is not valid YAML") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {where!r}: remove it or check its spelling"
    return f"{where}: {first['msg']}" if where else first["msg"]
