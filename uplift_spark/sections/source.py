"""Sections of a configuration that say where events come from (`source`) and where they are kept (`lakehouse`,
`pseudonyms`). `config` names them; see there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
LONG_AGO = datetime(2000, 1, 1)
"""When a treatment counts as assigned whose date nobody named: windows and labels of later dates are closed."""


@dataclass(frozen=True, config=STRICT)
class Lakehouse:
    """`lakehouse`: where tables, models and reports live; no part of any run's identity.

    path         folder of the tables, `lakehouse` by default; not used with a catalog
    catalog      a catalog in its place (Unity Catalog: tables are `catalog.schema.table`)
    checkpoints  folder in which streams keep how far they are; by default `_checkpoints` beside a folder's tables
    reports      folder of pictures and reports; by default `reports` in a folder's lakehouse, of a catalog
                 `reports/<catalog>` where the job runs, which a task on serverless compute loses at its end: name a
                 folder on a volume there
    few_mb       while the raw events hold at most so many megabytes, 24 by default, a session on this machine
                 interprets its queries and the command's own process does what Spark's workers do else: both start
                 sooner. Results are the same, those of nuisances up to the order of sums; 0: never
    """

    path: str = "lakehouse"
    catalog: str | None = None
    checkpoints: str | None = None
    reports: str | None = None
    few_mb: Annotated[float, Field(ge=0)] = 24.0


@dataclass(frozen=True, config=STRICT)
class Pseudonyms:
    """`pseudonyms`: unit ids are replaced at ingest by a hash with a secret key; without the section ids stay as they
    are.

    key_env     the environment variable that holds the key
    key_secret  in its place, where there are none (Databricks): SCOPE/KEY of a secret
    """

    key_env: str | None = None
    key_secret: str | None = None

    def __post_init__(self) -> None:
        if (self.key_env is None) == (self.key_secret is None):
            raise ConfigError("pseudonyms: name either key_env, an environment variable, or key_secret, SCOPE/KEY")
        if self.key_secret is not None and not all(self.key_secret.partition("/")):
            raise ConfigError(f"pseudonyms.key_secret {self.key_secret!r} must look like SCOPE/KEY")


@dataclass(frozen=True, config=STRICT)
class Simulation:
    """`source` of kind simulation: a campaign with known effects, made by `events.simulate`.

    units        customers, 200,000 by default
    design       of the treatment: binary, ordered levels (a discount of 5 % or 10 %), or unordered ones
    arms         levels, the control among them
    confounding  0: a trial; towards 1 likely buyers are given more and more
    noise        how much outcomes vary for no reason, 1 as in the benchmarks
    max_lift     the largest effect on the buying rate, 0.03 by default; the rate without treatment is 5 %
    assigned_at  when the treatment was assigned (UTC)
    follows      a campaign of the lakehouse, simulated with the same seed and keys: its customers come again, and each
                 gets what that campaign's newest plan decided, but for `experiment.exploration` and its holdout
    """

    LATER: ClassVar = ("max_lift", "follows")
    kind: Literal["simulation"] = "simulation"
    units: Annotated[int, Field(ge=1)] = 200_000
    design: Literal["binary", "ordered", "unordered"] = "ordered"
    arms: Annotated[int, Field(ge=2, le=20)] = 3
    confounding: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    max_lift: Annotated[float, Field(ge=0, le=0.1)] = 0.03
    assigned_at: datetime = datetime(2025, 1, 6)
    follows: str | None = None

    def __post_init__(self) -> None:
        if self.follows is not None:
            checked_name(self.follows, "source.follows")


@dataclass(frozen=True, config=STRICT)
class TrialConf:
    """`source` of kind trial: a real trial's file with one row per unit, in $UPLIFT_DATA or downloaded and checked.

    file         its path below $UPLIFT_DATA, or a path
    sha256       of the file; where it is there, other content is refused
    treatment    column of the level that a unit was assigned
    outcomes     columns of numbers
    attributes   columns that describe a unit before the treatment
    assigned_at  when the treatment was assigned (UTC); a date of long ago by default, as effects do not depend on it
    url          where the file is fetched from when it is not there
    url_sha256   of what is fetched
    unit         column of the unit's id; by default the number of the line
    missing      numbers that stand for a missing value
    arms         {value of the treatment column: name of the level}; by default values are names, others are refused
    categorical  attributes to read as text even where they look like numbers
    outcome_after_days  days from the assignment to the outcome, 1 by default
    """

    kind: Literal["trial"]
    file: str
    treatment: str
    outcomes: tuple[str, ...]
    attributes: tuple[str, ...]
    sha256: str | None = None
    assigned_at: datetime = LONG_AGO
    url: str | None = None
    url_sha256: str | None = None
    unit: str | None = None
    missing: tuple[float, ...] = ()
    arms: dict[str, str] | None = None
    categorical: tuple[str, ...] = ()
    outcome_after_days: Annotated[float, Field(ge=0)] = 1.0


Meaning = Annotated[dict[str, float] | dict[str, str], Field(union_mode="left_to_right")]
"""What the texts of a column mean: numbers if all are, else texts."""


@dataclass(frozen=True, config=STRICT)
class TableSource:
    """`source` of kind table: the user's own file or table of a finished campaign, one row per unit.

    path         a file (CSV, Parquet, Stata), a folder of such files, a pattern, or the folder of a Delta table
    table        in its place a table: `schema.table` of the lakehouse, or `catalog.schema.table`
    version      of a Delta table; the newest by default
    rename       {name in the source: name}; all other keys use the new names
    where        SQL over the columns of a row, see `sql_gate.checked_expression`: only rows for which it holds count
    unit         column of the unit's id; by default the number of the row, for files alone
    treatment    column of the level that a unit was assigned
    arms         {value of the treatment column: name of the level}; by default values are names, others are rejected
    outcomes     columns of numbers, True/False or Yes/No
    attributes   columns that describe a unit before the treatment; times count as days since 1970
    values       {column: {text: what it means}}, as in {bought: {Bought: 1, Left: 0}}
    types        {column: text, number, time, or a pattern such as %d.%m.%Y}, where a guess would be wrong
    missing      numbers that stand for a missing value
    assigned_at  when the treatment was assigned (UTC), or the column that says it; a date of long ago by default
    outcome_after_days  days from the assignment to the outcome, 1 by default
    propensity   column with the probability of the level *received*, or {level: column with its probability} of all
                 levels, of which one may be left out; by default the arms' shares, as in a trial without strata
    separator, encoding, decimal  of a CSV file, where a guess would be wrong

    What a run depends on is the content (of a Delta table the version), not where it lies.
    """

    NO_IDENTITY: ClassVar = ("path",)
    kind: Literal["table"]
    treatment: str
    outcomes: Annotated[tuple[str, ...], Field(min_length=1)]
    attributes: Annotated[tuple[str, ...], Field(min_length=1)]
    path: str | None = None
    table: str | None = None
    version: Annotated[int, Field(ge=0)] | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    where: str | None = None
    unit: str | None = None
    arms: dict[str, str] | None = None
    values: dict[str, Meaning] = Field(default_factory=dict)
    types: dict[str, str] = Field(default_factory=dict)
    missing: tuple[float, ...] = ()
    assigned_at: datetime | str = LONG_AGO
    outcome_after_days: Annotated[float, Field(ge=0)] = 1.0
    propensity: str | dict[str, str] | None = None
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.table is None):
            raise ConfigError("source of kind table needs one of `path` (a file or folder) and `table` (a name)")
        parts = [*([self.unit] if self.unit else []), self.treatment, *self.outcomes, *self.attributes]
        if twice := sorted({name for name in parts if parts.count(name) > 1}):
            raise ConfigError(f"source names {twice} twice among unit, treatment, outcomes and attributes: remove one")
        if self.where is not None:
            from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

            checked_expression("source.where", self.where)
        if isinstance(self.assigned_at, str):
            with suppress(ValueError):  # else it is the name of a column
                object.__setattr__(self, "assigned_at", datetime.fromisoformat(self.assigned_at))

    @property
    def propensity_columns(self) -> tuple[str, ...]:
        """Columns that probabilities are taken from."""
        if isinstance(self.propensity, Mapping):
            return tuple(dict.fromkeys(self.propensity.values()))
        return (self.propensity,) if self.propensity else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is used, each once, under its new name."""
        at = [self.assigned_at] if isinstance(self.assigned_at, str) else []
        unit = [self.unit] if self.unit else []
        named = [*unit, self.treatment, *self.outcomes, *self.attributes, *at, *self.propensity_columns]
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, config=STRICT)
class EventTable:
    """One of the user's own tables of events, under `source` of kind events.

    path         a file or a folder of files, or the folder of a Delta table
    table        in its place a table: `schema.table` of the lakehouse, or `catalog.schema.table`
    format       csv, json, parquet or delta; by default that of the file's ending, delta for tables and other folders
    rename       {name in the source: name in the raw table}; the other keys use the new names
    columns      {column of the raw table: SQL over a row's columns, see `sql_gate.checked_expression`}, as in
                 {outcome: "'purchase'"}
    where        SQL over the columns: only rows for which it holds are loaded, none for which it is unknown
    attributes   of a profile: the columns to keep; by default all
    historic     rows were known when they happened, not when they were loaded; a column known_at says it for each row
    """

    NO_IDENTITY: ClassVar = ("path",)
    path: str | None = None
    table: str | None = None
    format: Literal["csv", "json", "parquet", "delta"] | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    where: str | None = None
    attributes: tuple[str, ...] | None = None
    historic: bool = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.table is None):
            raise ConfigError("a table of events needs one of `path` (a file or folder) and `table` (a name)")
        if self.table is not None and self.format not in (None, "delta"):
            raise ConfigError(f"table {self.table} is read as delta: leave out `format: {self.format}`, or name a path")
        if both := sorted(set(self.rename.values()) & set(self.columns)):
            raise ConfigError(f"{both[0]!r} is both renamed and computed: leave it out of `rename` or of `columns`")

    @property
    def location(self) -> str:
        """The path, or the name of the table."""
        return str(self.table or self.path)

    @property
    def read_as(self) -> str:
        """The format, guessed from the ending where it is not named."""
        if self.format is not None or self.table is not None:
            return self.format or "delta"
        ending = re.search(r"\.(csv|json|parquet)(\.\w+)?$", self.location)
        return ending.group(1) if ending else "delta"


@dataclass(frozen=True, config=STRICT)
class EventsSource:
    """`source` of kind events: the user's own tables of events, of which each `uplift ingest` reads what is new.

    What is new of a Delta table are the rows that its version has beyond the one read last, of a folder the files whose
    content was not read yet. `uplift contract TABLE` prints what each table must hold.

    assignment   who was assigned which level, when; the campaign's name is filled in where a table has none
    outcome      what units did afterwards
    profile, event, delivery, consent  attributes, behaviour, sends, who may be contacted; where there are such tables
    """

    kind: Literal["events"]
    assignment: EventTable
    outcome: EventTable
    profile: EventTable | None = None
    event: EventTable | None = None
    delivery: EventTable | None = None
    consent: EventTable | None = None

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            if table.attributes is not None and name != "profile":
                raise ConfigError(f"source.{name}.attributes: only a profile has attributes, remove the key")
            texts = {f"source.{name}.columns.{column}": text for column, text in table.columns.items()}
            texts |= {f"source.{name}.where": table.where} if table.where is not None else {}
            if texts:
                from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

                for key, text in texts.items():
                    checked_expression(key, text)

    @property
    def tables(self) -> dict[str, EventTable]:
        """The tables that are named, in the order to load them: without assignments no later job sees the campaign."""
        order = ("profile", "event", "delivery", "consent", "outcome", "assignment")
        return {name: getattr(self, name) for name in order if getattr(self, name) is not None}
