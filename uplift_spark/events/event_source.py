"""The user's own tables of events as raw tables: `uplift ingest` for a source of kind events.

Each table is loaded as `uplift load` would (`events.load`), after `EventShape` has given its columns the names and
values that the raw table has. All tables are checked before the first is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, hint
from uplift_spark.events.load import Added, Arrivals, Load, add_arrivals, arrivals, source_rows, until_first
from uplift_spark.events.load_source import SOURCE
from uplift_spark.governance.privacy import key_of
from uplift_spark.lake.contracts import UNREAD
from uplift_spark.lake.schemas import bronze_table, contract_of, profile_table
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id
from uplift_spark.sections.source import EventsSource, EventTable

_SET_BY_LOAD = ("source", RUN_ID, "ingested_at")


@dataclass(frozen=True)
class EventShape:
    """How rows of one of the user's tables become those of the raw table `target`.

    name      the table's key under `source`, for messages
    declared  what the configuration says of it
    campaign  name for rows that bring none, where the raw table has campaigns; a propensity that they lack is null
    """

    name: str
    target: str
    declared: EventTable
    campaign: str

    @property
    def identity(self) -> Any:
        """What changes rows; not where they lie."""
        table = self.declared
        return [table.rename, table.columns, table.where, table.attributes, table.historic]

    @property
    def owner(self) -> str | None:
        """The campaign, but for behaviour and consent, which all campaigns share."""
        return self.campaign if CAMPAIGN in self._wanted or self.name == "profile" else None

    def apply(self, rows: DataFrame) -> DataFrame:
        """Rename, compute, filter, and keep the columns of the raw table. A line that could not be read is kept.

        Raises ConfigError for a column that is not there and for SQL that does not fit the columns.
        """
        own, declared = [name for name in rows.columns if name not in (SOURCE, UNREAD)], self.declared
        for old in declared.rename:
            if old not in own:
                raise ConfigError(
                    f"source.{self.name}.rename: {declared.location} has no column {old!r}, {hint(old, own)}"
                )
        named = rows.withColumnsRenamed(declared.rename)
        lower = [name.lower() for name in named.columns]
        if twice := sorted({name for name in lower if lower.count(name) > 1}):
            raise ConfigError(
                f"source.{self.name}: {declared.location} has several columns {twice[0]!r} after renaming: rename the "
                "others, too"
            )
        self._refuse_other_case(named)
        if declared.where is not None:  # of the source's columns, before others of their names are computed
            named = named.where(self._kept(named))
        key = f"source.{self.name}.columns"
        computed = {name: _sql(named, f"{key}.{name}", text) for name, text in declared.columns.items()}
        shaped = named.withColumns({name: _of_rows(named, value) for name, value in computed.items()})
        for name, value in ((CAMPAIGN, F.lit(self.campaign)), (PROPENSITY, F.lit(None).cast("double"))):
            if name in self._wanted and name not in shaped.columns:
                shaped = shaped.withColumn(name, value)
        return shaped.select(*(f"`{name}`" for name in self._columns(shaped)))

    def failure(self, rows: DataFrame) -> ConfigError | None:
        """Say which expression fails on these rows of the source, such as a cast of a text that is no number."""
        declared = self.declared
        named = rows.withColumnsRenamed(declared.rename)
        if declared.where is not None:
            kept = self._kept(named)
            if (reason := failing(named, f"source.{self.name}.where", declared.where, kept)) is not None:
                return reason
            named = named.where(kept)
        for name, text in declared.columns.items():
            key = f"source.{self.name}.columns.{name}"
            if (reason := failing(named, key, text, _of_rows(named, _sql(named, key, text)))) is not None:
                return reason
        return None

    def _refuse_other_case(self, named: DataFrame) -> None:
        """Raise ConfigError for a column that Spark takes for one of the raw table's though it is spelled otherwise."""
        wanted = {name.lower(): name for name in (*self._wanted, *(_SET_BY_LOAD if self.name == "profile" else ()))}
        for name in named.columns:
            meant = wanted.get(name.lower())
            if meant in _SET_BY_LOAD or (meant is not None and name != meant):
                raise ConfigError(
                    f"source.{self.name}: column {name!r} of {self.declared.location} has the name of the raw table's "
                    f"{meant!r}: rename it"
                )

    @property
    def _wanted(self) -> list[str]:
        contract = contract_of(self.target)
        assert contract is not None  # it is a raw table
        return [name for name in contract.columns.fieldNames() if name not in _SET_BY_LOAD]

    def _kept(self, named: DataFrame) -> Column:
        text = str(self.declared.where)
        holds = _of_rows(named, _sql(named, f"source.{self.name}.where", text).cast("boolean"))
        holds = F.coalesce(holds, F.lit(False))
        return holds | F.col(UNREAD).isNotNull() if UNREAD in named.columns else holds

    def _columns(self, shaped: DataFrame) -> list[str]:
        """Columns of `shaped` to keep, in the source's order."""
        contract, attributes = contract_of(self.target), self.declared.attributes
        assert contract is not None
        for name in attributes or ():
            if name not in shaped.columns:
                raise ConfigError(
                    f"source.{self.name}.attributes: {self.declared.location} has no column {name!r}, "
                    f"{hint(name, shaped.columns)}"
                )
        if contract.open and attributes is None:
            return [name for name in shaped.columns if name not in _SET_BY_LOAD]
        wanted = {*self._wanted, *(attributes or ()), SOURCE, UNREAD}
        return [name for name in shaped.columns if name in wanted]


def _of_rows(named: DataFrame, value: Column) -> Column:
    """The value, of lines that could be read: in others any text may stand in any column, and a cast would fail."""
    return F.when(F.col(UNREAD).isNull(), value) if UNREAD in named.columns else value


def failing(rows: DataFrame, key: str, text: str, value: Column) -> ConfigError | None:
    """Compute a value of all rows; where that fails, the error in one sentence."""
    try:
        rows.select(F.max(value.cast("string"))).collect()  # a count would not compute what is never null
    except PySparkException as error:
        if "QUERY_ONLY_CORRUPT_RECORD_COLUMN" in str(error):  # the value is of no row's cells, so none makes it fail
            return None
        said = str(error).strip().splitlines()[0].partition(" SQLSTATE")[0]
        return ConfigError(
            f"{key}={text!r} fails on rows of the source, and nothing was written: {said} Write a cast that may fail "
            "as try_cast(x AS double), and the rows it does not fit are null"
        )
    return None


def _sql(rows: DataFrame, key: str, text: str) -> Column:
    from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

    value = F.expr(checked_expression(key, text, [name for name in rows.columns if name not in (SOURCE, UNREAD)]))
    try:
        rows.select(value).schema  # noqa: B018 - over Connect nothing is looked up before this
    except PySparkException as error:
        message = str(error).strip().splitlines()[0][:200]
        raise ConfigError(f"{key}={text!r} does not fit the columns: {message}") from error
    return value


def event_loads(config: Config, source: EventsSource, replace: bool) -> dict[str, Load]:
    """List what to load, in order: {key under `source`: load}."""
    loads = {}
    for name, table in source.tables.items():
        target = profile_table(config.campaign) if name == "profile" else bronze_table(name)
        shape = EventShape(name, target, table, config.campaign)
        loads[name] = Load(target, table.location, table.read_as, historic=table.historic, replace=replace, shape=shape)
    return loads


def load_events(
    config: Config, source: EventsSource, lake: Lake, progress: ProgressCallback, run_id: str | None, replace: bool
) -> JobResult:
    """Add to the raw tables what is new in the user's own, once all of it is checked.

    With `replace` the campaign's tables hold afterwards what the source holds now: rows of files that are gone and rows
    that were replayed go, too. Raises ConfigError for a declaration that does not fit the tables, DataError for what
    cannot be read.
    """
    loads = event_loads(config, source, replace)
    key = key_of(config)
    added = Added()

    def attempt() -> JobResult:
        ready: dict[str, Arrivals] = {}
        for name, load in loads.items():  # each with a run of its own, for all may have rows in quarantine
            own = None if run_id is None else f"{run_id}-{name}"
            ready[name] = arrivals(load, lake, own, _of(name, progress), key)
        for name, load in loads.items():
            add_arrivals(load, lake, ready[name], _of(name, progress), added)
        whole = run_id or derive_run_id(
            "ingest", {"campaign": config.campaign}, source=[one.run_id for one in ready.values()]
        )
        rows = {name: added.rows(load.table) for name, load in loads.items()}
        rejected = {name: added.rejected(load.table) for name, load in loads.items()}
        rejected = {name: counts for name, counts in rejected.items() if counts}
        return JobResult.of("ingest", whole, *added.written, rows=rows, rejected=rejected)

    try:
        return until_first(attempt, progress)
    except PySparkException as error:
        raise why_failed(loads, lake, error) from error


def why_failed(loads: Mapping[str, Load], lake: Lake, error: PySparkException) -> Exception:
    """Find the SQL of the configuration that fails on rows, as an error of one sentence; else `error` itself."""
    for load in loads.values():
        assert isinstance(load.shape, EventShape)
        for rows in source_rows(load, lake):
            if (reason := load.shape.failure(rows)) is not None:
                return reason
    return error


def _of(name: str, progress: ProgressCallback) -> Callable[[str], None]:
    return lambda message: progress(f"{name}: {message}")
