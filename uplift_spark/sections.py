"""Sections of a campaign's configuration, see `uplift_spark.config`: frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from uplift_spark.vocabulary import ConfigError, checked_name, crossed

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
    """A campaign with known effects, made by `causal.simulate`."""

    kind: Literal["simulation"] = "simulation"
    units: Annotated[int, Field(ge=1)] = 200_000
    design: Literal["binary", "ordered", "unordered"] = "ordered"
    arms: Annotated[int, Field(ge=2, le=20)] = 3
    confounding: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    assigned_at: datetime = datetime(2025, 1, 6)


@dataclass(frozen=True, config=STRICT)
class Trial:
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
    """The parts columns of the training set play; see `vocabulary.Roles`. Jobs score and evaluate `outcome`.

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
    """One feature, defined once: `flow.features` computes it in Spark, `serving.features` online (R1.4, R1.5).

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
class Forest:
    """Arguments of `CausalForest`; None lets the rule in `causal.defaults` choose from the data."""

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
class Registry:
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
        seen: dict[frozenset[str], str] = {}
        for segment in self.segments:
            parts = crossed(segment)
            for part in parts:
                checked_name(part, "lift.segments entry" if part == segment else f"lift.segments: of {segment!r}")
            if len(set(parts)) < len(parts):
                raise ConfigError(f"lift.segments: {segment!r} crosses a feature with itself: name each once")
            if (twin := seen.setdefault(frozenset(parts), segment)) is not segment:
                raise ConfigError(f"lift.segments: {segment!r} is {twin!r} once more: remove one of them")

    @property
    def columns(self) -> tuple[str, ...]:
        """Feature columns that the segments are cut by, each once."""
        return tuple(dict.fromkeys(part for segment in self.segments for part in crossed(segment)))


@dataclass(frozen=True, config=STRICT)
class Leakage:
    """Guards of the training set, see `causal.leakage`.

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
class Nuisances:
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
    """When the features job warns that events are missing, see `stats.completeness`.

    alpha         probability that an alarm is false, for each kind of alarm and outcome
    complete      share of the mature labels' events that should be known
    delivery_gap  difference of delivery rates between arms that does not matter
    """

    alpha: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.001
    complete: Annotated[float, Field(gt=0, lt=1)] = 0.99
    delivery_gap: Annotated[float, Field(ge=0, lt=1)] = 0.01
