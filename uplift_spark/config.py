"""A campaign's configuration: frozen dataclasses read from one YAML file; an unknown key is an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from uplift_spark.choices import Compare, Learner, Limit, Policy, Refresh, Scenario, Tree, Tune
from uplift_spark.sections import (
    DAY,
    HAPPENED_AT,
    STEPS,
    STRICT,
    Aggregate,
    Alarms,
    Consent,
    Economics,
    Feature,
    Forest,
    Labels,
    Lakehouse,
    Leakage,
    Lift,
    Nuisances,
    Pseudonyms,
    Registry,
    RolesConf,
    Simulation,
    Trial,
)
from uplift_spark.vocabulary import MATURITY_WEIGHT, ConfigError, Roles, checked_name

__all__ = [
    "DAY",
    "HAPPENED_AT",
    "STEPS",
    "Aggregate",
    "Alarms",
    "Compare",
    "Config",
    "Consent",
    "Economics",
    "Feature",
    "Forest",
    "Labels",
    "Lakehouse",
    "Leakage",
    "Learner",
    "Lift",
    "Limit",
    "Nuisances",
    "Policy",
    "Pseudonyms",
    "Refresh",
    "Registry",
    "RolesConf",
    "Scenario",
    "Simulation",
    "Tree",
    "Trial",
    "Tune",
    "load_config",
]


@dataclass(frozen=True, config=STRICT)
class Config:
    """One campaign, from source to lift table."""

    campaign: str
    source: Annotated[Simulation | Trial, Field(discriminator="kind")]
    roles: RolesConf
    seed: int = 7
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lakehouse: Lakehouse = Field(default_factory=Lakehouse)
    labels: Labels = Field(default_factory=Labels)
    learner: Learner = Field(default_factory=Learner)
    forest: Forest = Field(default_factory=Forest)
    economics: Economics = Field(default_factory=Economics)
    registry: Registry = Field(default_factory=Registry)
    lift: Lift = Field(default_factory=Lift)
    features: tuple[Feature, ...] = ()
    leakage: Leakage = Field(default_factory=Leakage)
    nuisances: Nuisances | None = None
    consent: Consent = Field(default_factory=Consent)
    pseudonyms: Pseudonyms | None = None
    alarms: Alarms = Field(default_factory=Alarms)
    policy: Policy = Field(default_factory=Policy)
    scenarios: dict[str, Scenario] = Field(default_factory=dict)
    compare: Compare = Field(default_factory=Compare)
    tree: Tree = Field(default_factory=Tree)
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
