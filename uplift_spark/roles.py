"""Roles of columns, treatment levels and column names. Nothing here touches files or the environment."""

from __future__ import annotations

import math
import numbers
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal, TypeVar

from uplift_spark.errors import ConfigError

UNIT = "unit_id"


TREATMENT = "treatment"


CAMPAIGN = "campaign"


PROPENSITY = "propensity"


MATURITY_WEIGHT = "maturity_weight"


DELIVERED = "delivered"


DOSE = "dose"
"""Column of the exact number that a unit got, beside the name of the level whose bin holds it."""


LEFT = "_left"
"""Outcome of an instrumental forest: the outcome less what deliveries bring on average."""

SCHEMAS = ("bronze", "silver", "gold")
"""Of a lakehouse: events as they came, what is made of them, results."""

RUN_ID = "run_id"


EFFECT_COLUMNS = ("uplift", "uplift_se", "uplift_lower", "uplift_upper", "low_support")


PROFILE_KEYS = (UNIT, "observed_at", "known_at", "source", RUN_ID, "ingested_at")


TRAINING_KEYS = (UNIT, TREATMENT, PROPENSITY, "assigned_at", "split", RUN_ID)


LABEL_KEYS = (CAMPAIGN, "outcomes", DELIVERED, "delivery_id", "status", "mature", "as_of")


RESERVED_NAMES = frozenset({*PROFILE_KEYS, *TRAINING_KEYS, *LABEL_KEYS, MATURITY_WEIGHT, "scores", "uplift"})
"""What tables call columns of their own: no outcome or attribute of a user's table has such a name, in any case."""


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# Blanks and line breaks of Java's \s, Unicode's separators, and the byte order mark: what tables trim around an id.
_AROUND = "".join(map(chr, (*range(9, 14), 32, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F)))
_AROUND += "\u205f\u3000\ufeff"


def plain_id(unit: str) -> str:
    """Strip blanks, line breaks and byte order marks around an id, as the tables have it."""
    return unit.strip(_AROUND)


def checked_name(name: str, what: str = "name") -> str:
    """Return `name` if it is a plain SQL identifier, else raise ConfigError.

    Names reach SQL text, so anything but letters, digits and underscores is refused rather than quoted.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 128:
        raise ConfigError(f"{what} {name!r} is not a plain name: use letters, digits and underscores only")
    return name


_SALT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{2,63}")


def checked_salt(salt: str, what: str) -> str:
    """Return a salt of hashes if it may stand in SQL and in a path, else raise ConfigError."""
    if not isinstance(salt, str) or not _SALT.fullmatch(salt):
        raise ConfigError(f"{what} {salt!r} is no salt: use 3 to 64 letters, digits, underscores, dots and dashes")
    return salt


LEAST_SHARE = 1e-6
"""Of the units, for an arm that shall get any."""


def checked_shares(arms: Mapping[str, float], what: str, least: float = LEAST_SHARE) -> dict[str, float]:
    """Check the shares by which a trial's units fall into its arms.

    Args:
        arms: {arm: share}, control first.
        what: The trial, in messages.
        least: Smallest share that an arm may have.

    Returns:
        The same, arms as text and shares as numbers.

    Raises:
        ConfigError: There are fewer than two arms, a share is too small or no number, or they do not add up to 1.
    """
    shares = {str(arm): float(share) for arm, share in arms.items()}
    if len(shares) < 2:
        raise ConfigError(f"{what} has {len(shares)} arm: name the control and at least one other arm")
    for arm, share in shares.items():
        if not least <= share <= 1:
            fix = f"give each arm at least {least:g}, or drop it" if least else "give each arm a share from 0 to 1"
            raise ConfigError(f"arm {arm} of {what} has share {share:g}: {fix}")
    total = sum(shares.values())
    if abs(total - 1) > 1e-9:
        raise ConfigError(f"shares of {what} add up to {total:.9g}: make them add up to 1")
    return shares


Direction = Literal["increase", "decrease"]
"""Which way an outcome should go: `decrease` where less of it is better, as of churn."""


DIRECTIONS: tuple[Direction, ...] = ("increase", "decrease")


_Signed = TypeVar("_Signed")  # a number, an array, a column of Spark


def benefit(effect: _Signed, direction: Direction) -> _Signed:
    """What an effect on the outcome is good for: the effect, or its negative where less of the outcome is better.

    Models and tables hold effects on the outcome; whatever ranks, decides or advises takes their benefit. It turns any
    effect, or any outcome: a number, an array or a Spark column.
    """
    # A difference, as -0.0 would show in texts.
    return effect if direction == "increase" else 0.0 - effect  # type: ignore[operator,return-value]


def benefit_interval(lower: _Signed, upper: _Signed, direction: Direction) -> tuple[_Signed, _Signed]:
    """Lower and upper end of a benefit's interval, from those of the effect's."""
    ends = (lower, upper) if direction == "increase" else (upper, lower)
    return benefit(ends[0], direction), benefit(ends[1], direction)


def benefit_name(outcome: str, direction: Direction) -> str:
    """What a benefit counts, in words: `spend`, `less churn`."""
    return outcome if direction == "increase" else f"less {outcome}"


CROSSING = " x "
"""Between the features of a crossing, and between its buckets."""


def crossed(segment: str) -> tuple[str, ...]:
    """Features a segment is cut by: one, or those of a crossing such as `region x device`."""
    return tuple(segment.split(CROSSING))


def level_text(level: object) -> str:
    """A treatment level as frames' columns show it: False is "false", and 1, 1.0 and Decimal("1.00") are "1"."""
    if type(level).__name__ in ("bool", "bool_"):  # those of Python and of NumPy
        return str(level).lower()
    if isinstance(level, numbers.Integral) or not isinstance(level, numbers.Real | Decimal):
        return str(level)
    value = float(level)
    return str(int(value)) if value.is_integer() else repr(value)


@dataclass(frozen=True)
class Levels:
    """Treatment levels in canonical order, control first.

    `doses` is None for arms without order, else one number per level (control's first), or as many for each as the
    treatment has dimensions.
    """

    names: tuple[str, ...]
    doses: tuple[float | tuple[float, ...], ...] | None = None

    @property
    def control(self) -> str:
        return self.names[0]

    @property
    def treated(self) -> tuple[str, ...]:
        return self.names[1:]

    def __len__(self) -> int:
        return len(self.names)


def levels_at_doses(control: str, doses: Sequence[float]) -> Levels:
    """Levels for these doses, the control first."""
    return Levels((control, *(f"{dose:g}" for dose in doses)), (float(control), *map(float, doses)))


def checked_grid(control: str, grid: Iterable[float], dose: object | None) -> tuple[float, ...]:
    """Check the doses at which effects are reported, as `Roles` says; `dose` is that of its levels.

    Raises:
        ConfigError: The control is no number, there are doses of levels, too, or a dose is there twice or not finite.
    """
    if dose is not None:
        raise ConfigError("roles.grid is for treatments that are numbers, roles.dose for levels: drop one of them")
    try:
        least, doses = float(control), tuple(map(float, grid))
    except ValueError:
        raise ConfigError(f"roles.control is {control!r}, but with roles.grid it is a dose: give a number") from None
    if len({least, *doses}) <= len(doses) or not all(map(math.isfinite, (least, *doses))):
        raise ConfigError("roles.grid names a dose twice, or the control's, or one that is not finite: remove it")
    names = levels_at_doses(control, doses).names
    if alike := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"roles.grid has doses that are both called {alike[0]}, to six digits: keep one of them")
    return doses


@dataclass(frozen=True)
class DoseBins:
    """Bins of doses around those of a grid: in tables, which know levels, a unit's level is the grid point nearest to
    its dose.

    names  level of each bin, by rising dose
    doses  of the levels
    edges  doses between two bins, halfway from one grid point to the next; a dose there is in the lower bin

    Example:
        >>> bins = DoseBins.around(levels_at_doses("0", (1, 3)))
        >>> [bins.level(dose) for dose in (-1, 0.5, 0.6, 2, 9)]
        ['0', '0', '1', '1', '3']
    """

    names: tuple[str, ...]
    doses: tuple[float, ...]
    edges: tuple[float, ...]

    @classmethod
    def around(cls, levels: Levels) -> DoseBins:
        """Bins around levels of one dose each."""
        pairs = sorted((dose, name) for name, dose in zip(levels.names, levels.doses or (), strict=True))
        doses = tuple(float(dose) for dose, _ in pairs)  # type: ignore[arg-type]
        edges = tuple((low + high) / 2 for low, high in pairwise(doses))
        return cls(tuple(name for _, name in pairs), doses, edges)

    @property
    def ends(self) -> tuple[float, float]:
        """Doses that the bins at both ends were made for: half a step beyond the grid; no ends around one dose."""
        steps = [high - low for low, high in pairwise(self.doses)] or [math.inf]
        return self.doses[0] - steps[0] / 2, self.doses[-1] + steps[-1] / 2

    def level(self, dose: float) -> str:
        """Name of the level whose bin holds a dose."""
        return self.names[bisect_left(self.edges, dose)]


_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0, 20.0, 25.0, 50.0)  # steps between doses, times a power of ten
_MOST_STEPS, _LEAST_SHARE = 5, 0.01  # from the first dose to the last; of the units nearest to each


def round_levels(doses: Sequence[float], control: float | None = None) -> dict[float, int]:
    """{dose: units that are nearest to it} of up to six round doses across those of all units, the control first.

    The control is by default 0 where a unit got nothing, else the least of the round doses. The 1 % of units at either
    end count for none; doses that fewer than 1 % are nearest to are left out. Empty where there would be one dose.

    Example:
        >>> round_levels([0, 0, 0.3, 0.8, 1.2, 1.9, 2.2, 2.9])
        {0.0: 3, 1.0: 2, 2.0: 2, 3.0: 1}
    """
    ordered = sorted(doses)
    end = int(_LEAST_SHARE * len(ordered))
    low, high = ordered[end], ordered[-1 - end]
    if not high > low:
        return {}
    power = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    step = power * next(unit for unit in _ROUND if (high - low) / (power * unit) <= _MOST_STEPS)
    points = [float(f"{step * k:.6g}") for k in range(round(low / step), round(high / step) + 1)]
    if control is None:
        control = 0.0 if 0 in ordered else points[0]
    grid = [point for point in points if point != control]
    while grid:
        bins = DoseBins.around(levels_at_doses(f"{control:g}", grid))
        ends = [0, *(bisect_right(ordered, edge) for edge in bins.edges), len(ordered)]
        rows = dict(zip(bins.doses, (last - first for first, last in pairwise(ends)), strict=True))
        fewest = min(grid, key=rows.__getitem__)
        if rows[fewest] >= _LEAST_SHARE * len(ordered):
            return {dose: rows[dose] for dose in (control, *grid)}
        grid.remove(fewest)
    return {}


def _columns(names: Iterable[object]) -> tuple[str, ...]:
    """Names of columns: pandas lets them be numbers, and one alone may be given as text."""
    return (names,) if isinstance(names, str) else tuple(map(str, names))


@dataclass(frozen=True)
class Roles:
    """Which column plays which part in a frame of one row per unit.

    unit        string or integer id, unique in the frame
    treatment   the level each unit was assigned; compared as text
    outcome     numeric (or boolean) outcome; the trees are grown to tell its effects apart
    features    numeric, boolean or string columns; strings are categorical. One may be given without a list
    control     the level every other level is compared with: text, or a number or a boolean as the column holds it
    dose        {level: number} for ordered levels, naming every level; {level: [number, ...]} for treatments of several
                dimensions, such as discount and frequency; None for arms without order
    direction   `decrease` where less of `outcome` is better (churn): effects stay those on the outcome, but units
                are ranked by how much the outcome falls
    grid        doses at which effects are reported, where the treatment is a number that takes any value: the dose
                received, `control` then being the dose they are compared with
    propensity  column with the logged probability of the arm the unit *received*, in (0, 1]
    weight      column with a positive sample weight
    cluster     column whose units stay together when data are split (households)
    more_outcomes  numeric (or boolean) outcomes whose effects are estimated in the same leaves: what moves only these
                effects, and not that on `outcome`, tells no units apart
    scores      column with doubly robust scores of the outcome, {level: number} (a map, or a struct in pandas): the
                forest is trained on these in place of the outcome and the level received, see `forest.estimate`

    Raises ConfigError when columns clash, or doses do not fit.

    Example:
        >>> Roles("unit", "arm", "spend", ("recency", "age"), control="none").columns
        ('unit', 'arm', 'spend', 'recency', 'age')
    """

    unit: str
    treatment: str
    outcome: str
    features: tuple[str, ...]
    control: str
    dose: Mapping[str, float | Sequence[float]] | None = None
    propensity: str | None = None
    weight: str | None = None
    cluster: str | None = None
    more_outcomes: tuple[str, ...] = ()
    scores: str | None = None
    grid: tuple[float, ...] = ()
    direction: Direction = "increase"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _columns(self.features))
        object.__setattr__(self, "more_outcomes", _columns(self.more_outcomes))
        object.__setattr__(self, "control", level_text(self.control))
        for part in ("unit", "treatment", "outcome", "propensity", "weight", "cluster", "scores"):
            if getattr(self, part) is not None:
                object.__setattr__(self, part, str(getattr(self, part)))
        if self.direction not in DIRECTIONS:
            raise ConfigError(f"roles.direction {self.direction!r} is neither increase nor decrease: choose one")
        if not self.features:
            raise ConfigError("roles.features is empty: name at least one feature column")
        clashes = sorted(set(self.features) & {*self._single(), *self.more_outcomes})
        if clashes:
            raise ConfigError(f"roles.features contains {clashes}, which already play another part: remove them")
        if len(set(self.features)) < len(self.features):
            raise ConfigError("roles.features names a column twice: remove the duplicate")
        clashes = sorted(set(self.more_outcomes) & set(self._single()))
        if clashes:
            raise ConfigError(f"roles.more_outcomes contains {clashes}, which already play another part: remove them")
        if len(set(self.more_outcomes)) < len(self.more_outcomes):
            raise ConfigError("roles.more_outcomes names a column twice: remove the duplicate")
        if self.scores and self.more_outcomes:
            raise ConfigError("roles.scores are those of one outcome: drop more_outcomes, or train a forest for each")
        if self.dose is not None:
            object.__setattr__(self, "dose", self._doses(self.dose))
        object.__setattr__(self, "grid", self._grid() if self.grid else ())

    def _doses(self, dose: Mapping[str, float | Sequence[float]]) -> dict[str, float | tuple[float, ...]]:
        doses = {level_text(k): tuple(map(float, v)) if isinstance(v, Sequence) else float(v) for k, v in dose.items()}
        sizes = {len(v) if isinstance(v, tuple) else 1 for v in doses.values()}
        if self.control not in doses:
            raise ConfigError(f"roles.dose does not name the control level {self.control!r}: add it")
        if len(sizes) > 1 or sizes & {0}:
            raise ConfigError(f"roles.dose gives levels {sorted(sizes)} numbers: give each as many")
        if len(set(doses.values())) < len(doses):
            raise ConfigError("roles.dose gives two levels the same dose: merge them or drop `dose`")
        return doses

    def _grid(self) -> tuple[float, ...]:
        if self.propensity or self.scores:
            raise ConfigError("roles.grid has no propensities or scores of levels: center dose and outcome instead")
        return checked_grid(self.control, self.grid, self.dose)

    @property
    def over_levels(self) -> Roles:
        """The same over the levels of a training set: where the treatment is a number, those whose bins hold it."""
        if not self.grid:
            return self
        levels = levels_at_doses(self.control, self.grid)
        doses: dict[str, Any] = dict(zip(levels.names, levels.doses or (), strict=True))
        return replace(self, treatment=TREATMENT, propensity=PROPENSITY, dose=doses, grid=())

    @property
    def record(self) -> dict[str, Any]:
        """The roles as a model file keeps them; a `direction` of increase is left out, as files had it before."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("direction", "increase")}

    def _single(self) -> tuple[str, ...]:
        parts = (self.unit, self.treatment, self.outcome, self.propensity, self.weight, self.cluster, self.scores)
        return tuple(column for column in parts if column)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Every outcome, the one that shapes the trees first."""
        return (self.outcome, *self.more_outcomes)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column the roles name, each once, features last."""
        return tuple(dict.fromkeys([*self._single(), *self.more_outcomes, *self.features]))
