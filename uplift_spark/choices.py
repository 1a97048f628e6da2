"""The sections of a configuration about decisions: limits, plans, scenarios, trees, which model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from uplift_spark.sections import STRICT, Days, Forest
from uplift_spark.vocabulary import ConfigError


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
class Tree:
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
    keep_out   share of units left out at random, to read the plan's effect off later
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
    keep_out: Annotated[float, Field(ge=0, lt=1)] = 0.0

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
class Learner:
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
                    TypeAdapter(Forest).validate_python({name: value})
                except ValidationError as error:
                    raise ConfigError(f"tune.space.{name}: {value!r} is no value of forest.{name}") from error


@dataclass(frozen=True, config=STRICT)
class Compare:
    """What `uplift compare` holds the champion against, on the same hold-out.

    against  forest_per_level (a binary forest for each level) and the meta-learners of `causal.metalearners` (boosted
             trees put together as T, S, X, R, DR and by class transformation), fitted on the training split, or
             versions of the registered model
    points   points of the cost curve
    """

    against: Annotated[tuple[Annotated[int, Field(ge=1)] | Contender, ...], Field(min_length=1)] = (
        "forest_per_level",
        "t_learner",
    )
    points: Annotated[int, Field(ge=2, le=500)] = 50

    def __post_init__(self) -> None:
        if len(set(self.against)) < len(self.against):
            raise ConfigError("compare.against names a model twice: remove the duplicate")
