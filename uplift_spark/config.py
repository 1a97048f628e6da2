"""A campaign's configuration: frozen dataclasses read from one YAML file; an unknown key is an error."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from uplift_spark.vocabulary import ConfigError, Roles, checked_name

_STRICT = ConfigDict(extra="forbid")
_Days = Annotated[float, Field(gt=0, le=3650)]


@dataclass(frozen=True, config=_STRICT)
class Lakehouse:
    """Where tables live: a folder (local) or a catalog (Unity Catalog, three-level names).

    checkpoints  folder in which streams keep how far they are (None: `_checkpoints` beside a folder's tables)
    """

    path: str = "lakehouse"
    catalog: str | None = None
    checkpoints: str | None = None


@dataclass(frozen=True, config=_STRICT)
class Simulation:
    """A campaign with known effects, made by `causal.simulate`."""

    kind: Literal["simulation"] = "simulation"
    units: Annotated[int, Field(ge=1)] = 200_000
    design: Literal["binary", "ordered", "unordered"] = "ordered"
    arms: Annotated[int, Field(ge=2, le=20)] = 3
    confounding: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    assigned_at: datetime = datetime(2025, 1, 6)


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class RolesConf:
    """The parts columns of the training set play; see `vocabulary.Roles`. Jobs score and evaluate `outcome`."""

    outcome: str
    control: str
    features: tuple[str, ...]
    dose: dict[str, float] | None = None
    more_outcomes: tuple[str, ...] = ()


HAPPENED_AT = {"event": "occurred_at", "profile": "observed_at"}  # a source's column: when what a row says came to hold
DAY = 86_400_000_000  # microseconds; days have 24 hours whatever clocks do
STEPS = 2**20  # per unit of a value: sums of values are exact in these, so no order of adding changes a bit
Aggregate = Literal["count", "sum", "mean", "min", "max", "distinct", "recency", "latest", "ratio"]


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class Labels:
    """Attribution window after assignment, in days; `as_of` (UTC) is when labels are read, None the last ingestion.

    `windows` gives outcomes a window of their own. A label is mature `wait_days` after its last window has closed: the
    time that late events are given to arrive.
    """

    window_days: _Days = 14.0
    as_of: datetime | None = None
    windows: dict[str, _Days] = Field(default_factory=dict)
    wait_days: Annotated[float, Field(ge=0, le=3650)] = 0.0

    def days(self, outcome: str) -> float:
        """The outcome's attribution window."""
        return self.windows.get(outcome, self.window_days)


@dataclass(frozen=True, config=_STRICT)
class Forest:
    """Arguments of `CausalForest`; None lets the rule in `causal.defaults` choose from the data."""

    n_trees: Annotated[int, Field(ge=4)] = 200
    min_leaf: Annotated[int, Field(ge=1)] | None = None
    max_depth: Annotated[int, Field(ge=1, le=30)] | None = None
    n_buckets: Annotated[int, Field(ge=2)] | None = None
    max_bins: Annotated[int, Field(ge=2, le=254)] | None = None


@dataclass(frozen=True, config=_STRICT)
class Economics:
    """Money: value of one unit of an outcome, cost of treating one unit, per level."""

    value: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Registry:
    """MLflow: tracking store (None: sqlite inside the lakehouse folder), model name (None: the campaign).

    `champion`: training sets the alias champion. `version`: scoring uses this version (None: the champion).
    """

    tracking_uri: str | None = None
    name: str | None = None
    champion: bool = True
    version: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, config=_STRICT)
class Lift:
    """Evaluation on the hold-out: segments, outcomes beside the trained one, rank bins, bootstrap replicates."""

    segments: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    bins: Annotated[int, Field(ge=10, le=1000, multiple_of=10)] = 100
    replicates: Annotated[int, Field(ge=50, le=2000)] = 200


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class Consent:
    """The gate of exports: the purpose in bronze.consent, and whether units need a grant of it (`required`) or only
    must not have withdrawn it."""

    purpose: Annotated[str, Field(min_length=1)] = "marketing"
    required: bool = True


@dataclass(frozen=True, config=_STRICT)
class Pseudonyms:
    """Unit ids are replaced at ingest by a hash with the key that the environment variable `key_env` holds."""

    key_env: str


@dataclass(frozen=True, config=_STRICT)
class Alarms:
    """When the features job warns that events are missing, see `stats.completeness`.

    alpha         probability that an alarm is false, for each kind of alarm and outcome
    complete      share of the mature labels' events that should be known
    delivery_gap  difference of delivery rates between arms that does not matter
    """

    alpha: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.001
    complete: Annotated[float, Field(gt=0, lt=1)] = 0.99
    delivery_gap: Annotated[float, Field(ge=0, lt=1)] = 0.01


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One campaign, from source to lift table."""

    campaign: str
    source: Annotated[Simulation | Trial, Field(discriminator="kind")]
    roles: RolesConf
    seed: int = 7
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lakehouse: Lakehouse = Field(default_factory=Lakehouse)
    labels: Labels = Field(default_factory=Labels)
    forest: Forest = Field(default_factory=Forest)
    economics: Economics = Field(default_factory=Economics)
    registry: Registry = Field(default_factory=Registry)
    lift: Lift = Field(default_factory=Lift)
    features: tuple[Feature, ...] = ()
    leakage: Leakage = Field(default_factory=Leakage)
    consent: Consent = Field(default_factory=Consent)
    pseudonyms: Pseudonyms | None = None
    alarms: Alarms = Field(default_factory=Alarms)

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
        checked_name(self.model_name, "registry.name")
        if strangers := sorted(set(self.labels.windows) - set(outcomes)):
            raise ConfigError(
                f"labels.windows names {strangers}, none of the outcomes {', '.join(dict.fromkeys(outcomes))}: remove "
                "them or correct their spelling"
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
        wanted = dict.fromkeys([*self.roles.features, *self.lift.segments])
        parts = dict.fromkeys(part for name in wanted if name in known for part in known[name].of or ())
        return tuple(known.get(name, Feature(name)) for name in {**wanted, **parts})

    @property
    def model_name(self) -> str:
        """Name the campaign's model is registered under."""
        return self.registry.name or self.campaign

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes to label, the trained one first; refused like `training_roles`."""
        return tuple(dict.fromkeys([*self.training_roles.outcomes, *self.lift.outcomes]))

    @property
    def training_roles(self) -> Roles:
        """Roles over the training set written by the features job."""
        return Roles(
            unit="unit_id",
            treatment="treatment",
            outcome=self.roles.outcome,
            features=self.roles.features,
            control=self.roles.control,
            dose=self.roles.dose,
            propensity="propensity",
            more_outcomes=self.roles.more_outcomes,
        )


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
