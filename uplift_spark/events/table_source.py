"""The user's own file or table, one row per unit, as bronze events: `uplift ingest` for a source of kind table.

`open_source` reads it, `table_batch` makes the bronze tables, `Replacement` takes an earlier try out of them. Files are
read by `events.files`, Delta tables by Spark; from there on both go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, ConflictError, DataError, hint
from uplift_spark.events.files import NO_VALUE, YES_NO, FileFormat, content_digest, read_typed
from uplift_spark.events.ingest import (
    Batch,
    Stamp,
    bronze_tables,
    check_levels,
    dose_sums,
    find,
    level_of_dose,
    looked_up,
    number_rule,
    refuse_empty_bins,
    report_counts,
    report_doses,
    require_arms,
    spread_rows,
    stamped_rejects,
    tables_of,
)
from uplift_spark.events.load import ingest_claim
from uplift_spark.events.load_source import find_delta
from uplift_spark.governance.privacy import key_of, pseudonymised
from uplift_spark.lake.contracts import Contract, Rule, check, count_checked, trimmed_id
from uplift_spark.lake.schemas import (
    ASSIGNMENT_TABLE,
    OUTCOME_TABLE,
    TRUTH_TABLE,
    profile_table,
    with_levels,
)
from uplift_spark.lake.session import instant, plus_hours
from uplift_spark.lake.tables import Claim, Lake, Written
from uplift_spark.roles import (
    CAMPAIGN,
    DOSE,
    PROPENSITY,
    RESERVED_NAMES,
    RUN_ID,
    TREATMENT,
    UNIT,
    DoseBins,
    checked_name,
)
from uplift_spark.runtime import ProgressCallback
from uplift_spark.sections.source import TableSource, TrialConf
from uplift_spark.spark_versions import quoted
from uplift_spark.stats.tests import inverse_shares

_TIMES = T.DateType | T.TimestampType | T.TimestampNTZType
_ROW, _AT = "_row", "assigned_at"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_EXACT = 2.0**53  # from here on doubles skip whole numbers


@dataclass(frozen=True)
class OpenSource:
    """Rows of a table source under their new names, and what tells its content.

    rows      None for simulations and trials, which `events.ingest` reads
    where     the file or table, for messages
    identity  what the id of the run depends on beside the configuration
    """

    rows: DataFrame | None
    where: str
    identity: Mapping[str, Any]


def open_source(config: Config, lake: Lake, progress: ProgressCallback) -> OpenSource:
    """Read the source that a configuration names; nothing is computed from a Delta table yet.

    Raises ConfigError for a declaration that cannot be kept, DataError for files and tables that cannot be read.
    """
    source = config.source
    if source is None:
        raise ConfigError(
            "the configuration has no `source` to ingest: add one, or bring the rows of bronze.assignment, "
            "bronze.outcome and the profile by `uplift load`, and go on with `uplift features`"
        )
    if isinstance(source, TrialConf) and source.sha256 is None:
        path = find(source)
        return OpenSource(None, str(path), {"content": content_digest([path])})
    if not isinstance(source, TableSource):
        return OpenSource(None, source.kind, {})
    check_names(source)
    if source.table is not None or _is_delta(str(source.path)):
        return _open_delta(source, lake, progress)
    # Missing values are found later, where Delta tables have them, too.
    how = (source.separator, source.encoding, source.decimal, source.types, source.rename)
    read = read_typed(str(source.path), FileFormat(*how, kept=source.columns))
    for note in read.notes:
        progress(note)
    named = read.files[0].name if len(read.files) == 1 else f"{len(read.files)} files"
    progress(f"{read.table.num_rows:,} rows read from {named}")
    _require_columns(source, read.table.column_names, str(source.path))
    row = range(1, read.table.num_rows + 1)
    # Spark tells columns apart regardless of case: only those that are used go on, unless SQL may name others.
    table = read.table if source.where else read.table.select(list(source.columns))
    return OpenSource(
        spread_rows(table.append_column(_ROW, pa.array(row, pa.int64())), lake.spark),
        named,
        {"content": [named, read.digest]},
    )


def check_names(source: TableSource) -> None:
    """Raise ConfigError when outcomes or attributes have names that the tables use, or differ by their case alone."""
    known = {name.lower(): name for name in source.columns if name not in (*source.outcomes, *source.attributes)}
    for name in (*source.outcomes, *source.attributes):
        way_out = f"give it another name, as in `source.rename: {{{name}: {name.strip('_')}_1}}`"
        try:
            checked_name(name, "source column")
        except ConfigError as error:
            raise ConfigError(f"{error}: {way_out}") from error
        if name.lower() in RESERVED_NAMES or name.startswith("_"):
            raise ConfigError(f"source column {name!r} is a name that the tables use themselves: {way_out}")
        if (twin := known.setdefault(name.lower(), name)) != name:
            raise ConfigError(f"source columns {twin!r} and {name!r} differ by their case alone: {way_out}")


def _require_columns(source: TableSource, present: list[str], where: str) -> None:
    for name in source.columns:
        if name not in present:
            raise DataError(f"{where} has no column {name!r}, which the source declares: {hint(name, present)}")


def _is_delta(path: str) -> bool:
    return "://" in path or (Path(path) / "_delta_log").is_dir()


def _open_delta(source: TableSource, lake: Lake, progress: ProgressCallback) -> OpenSource:
    where = str(source.table or source.path)
    if source.unit is None:
        raise ConfigError(f"source.unit is missing: rows of table {where} have no numbers, name the column of their id")
    try:
        delta = find_delta(lake, where)
    except DataError as error:
        raise DataError(f"{where} is no Delta table: correct source.{'table' if source.table else 'path'}") from error
    version = delta.version if source.version is None else source.version
    try:
        rows = lake.spark.sql(f"SELECT * FROM {delta.reference} VERSION AS OF {version}")
        present = rows.columns
    except PySparkException as error:
        raise DataError(f"{where} has no version {version} to read, its newest is {delta.version}") from error
    for old in source.rename:
        if old not in present:
            raise ConfigError(f"source.rename: {where} has no column {old!r}, {hint(old, present)}")
    rows = rows.withColumnsRenamed(source.rename)
    _require_columns(source, rows.columns, where)
    progress(f"reading {where} at version {version}")
    return OpenSource(rows.withColumn(_ROW, F.lit(None).cast("bigint")), where, {"content": [delta.key, version]})


def delta_sample(lake: Lake, where: str, most: int) -> tuple[pa.Table, int]:
    """Bring a Delta table's rows into memory: all up to `most`, else about as many, chosen by the hash of their cells.

    Args:
        lake: the session to read in.
        where: a folder, or the name of a table.
        most: rows.

    Returns:
        The rows, and the number of all.

    Raises:
        DataError: it is no Delta table.
    """
    try:
        delta = find_delta(lake, where)
    except DataError as error:
        raise DataError(f"{where} is no Delta table that can be read: correct its folder or name") from error
    rows = lake.spark.sql(f"SELECT * FROM {delta.reference} VERSION AS OF {delta.version}")
    count = rows.count()
    if count > most:
        plain = [field.name for field in rows.schema.fields if isinstance(field.dataType, T.AtomicType)]
        share = F.pmod(F.xxhash64(*(_column(name) for name in plain)), F.lit(1_000_000)) < F.lit(
            1_000_000 * most // count
        )
        rows = rows.where(share)
    return rows.toArrow(), count


# --------------------------------------------------------------------------------------------------------------------
# Cells by the part that their column plays.


def _column(name: str) -> Column:
    return F.col(quoted(name))


def _text(name: str, kind: T.DataType) -> Column:
    """As text, trimmed; whole numbers without a fraction, even if a null made doubles of them; empty is null."""
    value = _column(name)
    if isinstance(kind, T.FractionalType):
        number = value.cast("double")
        whole = (number == F.floor(number)) & (F.abs(number) < _EXACT)
        value = F.when(whole, number.cast("bigint").cast("string")).when(~F.isnan(number), value.cast("string"))
    text = F.trim(value.cast("string"))
    return F.when(text != "", text)


def _number(name: str, kind: T.DataType) -> Column:
    """As double: true and yes are 1, false and no are 0, times are days since 1970; null for other texts."""
    value = _column(name)
    if isinstance(kind, T.StringType):
        text = F.trim(value)
        word = looked_up(YES_NO, F.lower(text))
        return F.coalesce(F.when(text.rlike(_NUMBER), text).try_cast("double"), word)
    if isinstance(kind, _TIMES):
        return F.unix_micros(value.cast("timestamp")) / F.lit(86_400_000_000.0)
    number = value.cast("double")
    return F.when(~F.isnan(number), number)


def _without_codes(number: Column, codes: tuple[float, ...]) -> Column:
    return F.when(~number.isin(*codes), number) if codes else number


def _outcome(source: TableSource, name: str, kind: T.DataType) -> Column:
    mapped = source.values.get(name)
    number = _number(name, kind)
    if mapped is not None:
        meaning = {text: float(value) for text, value in mapped.items()}
        number = F.coalesce(looked_up(meaning, _text(name, kind)), number)
    return _without_codes(number, source.missing)


def _attribute(source: TableSource, name: str, kind: T.DataType, where: str) -> Column:
    mapped = source.values.get(name)
    if mapped is not None and all(isinstance(value, float) for value in mapped.values()):
        return _outcome(source, name, kind)
    if mapped is not None:
        meaning = {text: str(value) for text, value in mapped.items()}
        return F.coalesce(looked_up(meaning, _text(name, kind)), _text(name, kind))
    if isinstance(kind, T.StringType):
        return _text(name, kind)
    if not isinstance(
        kind, T.NumericType | T.BooleanType | T.DateType | T.TimestampType | T.TimestampNTZType | T.NullType
    ):
        raise ConfigError(f"{where}: column {name!r} is {kind.simpleString()}, no attribute: remove it from the source")
    return _without_codes(_number(name, kind), source.missing)


def _moment(source: TableSource, kinds: Mapping[str, T.DataType], where: str) -> Column:
    if isinstance(source.assigned_at, datetime):
        return instant(source.assigned_at)
    kind = kinds[source.assigned_at]
    if not isinstance(kind, _TIMES):
        raise DataError(
            f"{where}: column {source.assigned_at!r} is {kind.simpleString()}, not a time: say how it is written, as "
            f"in `source.types: {{{source.assigned_at}: '%d.%m.%Y'}}`"
        )
    return _column(source.assigned_at).cast("timestamp")


def _probability(source: TableSource, kinds: Mapping[str, T.DataType], levels: tuple[str, ...]) -> Column | None:
    """Probability of the level received; of a level that the mapping leaves out what remains."""
    if source.propensity is None:
        return None
    if isinstance(source.propensity, str):
        return _number(source.propensity, kinds[source.propensity])
    each = {level: _number(name, kinds[name]) for level, name in source.propensity.items()}
    if levels and (strangers := sorted(set(each) - set(levels))):
        raise ConfigError(f"source.propensity names {strangers}, none of the levels {', '.join(levels)}")
    result = F.lit(1.0) - reduce(Column.__add__, each.values())
    for level, probability in each.items():
        result = F.when(F.col(TREATMENT) == level, probability).otherwise(result)
    return result


def _typed(config: Config, source: TableSource, rows: DataFrame, where: str) -> DataFrame:
    """Columns unit_id, treatment, assigned_at, propensity if it is named, `_row`, outcomes and attributes,
    of which the cluster is an id and so a text."""
    kinds = {field.name: field.dataType for field in rows.schema.fields}
    level, bins = _text(source.treatment, kinds[source.treatment]), config.roles.bins
    dose = None if bins is None else _dose(source, kinds[source.treatment], where)
    if bins is not None and dose is not None:
        level = F.coalesce(level_of_dose(dose, bins), level)  # what is no number stays to be shown
    if source.arms is not None:
        level = F.coalesce(looked_up(source.arms, level), level)
    unit = (
        trimmed_id(_text(source.unit, kinds[source.unit]))
        if source.unit
        else F.format_string(f"{config.campaign}-%06d", _ROW)
    )
    rows = rows.withColumn(TREATMENT, level)
    probability = _probability(source, kinds, declared_levels(config, source))
    return rows.select(
        unit.alias(UNIT),
        F.col(TREATMENT),
        _ROW,
        _moment(source, kinds, where).alias(_AT),
        *([probability.alias(PROPENSITY)] if probability is not None else []),
        *([dose.alias(DOSE)] if dose is not None else []),
        *(_outcome(source, name, kinds[name]).alias(name) for name in source.outcomes),
        *(
            (
                _text(name, kinds[name])
                if name == config.roles.cluster
                else _attribute(source, name, kinds[name], where)
            ).alias(name)
            for name in source.attributes
        ),
    )


def _dose(source: TableSource, kind: T.DataType, where: str) -> Column:
    """The treatment as double; null for texts that are no number and for `missing` ones."""
    if isinstance(kind, _TIMES):
        raise DataError(
            f"{where}: column {source.treatment!r} is {kind.simpleString()}, and with roles.grid the treatment is a "
            "number: name another column"
        )
    value = _column(source.treatment)
    if isinstance(kind, T.StringType):
        text = F.trim(value)
        return _without_codes(F.when(text.rlike(_NUMBER), text).try_cast("double"), source.missing)
    return _without_codes(value.cast("double"), source.missing)


def declared_levels(config: Config, source: TableSource) -> tuple[str, ...]:
    """Levels the configuration names; empty when it leaves them to the rows. Raises ConfigError like `check_levels`."""
    if source.arms is not None:
        check_levels(config.roles, tuple(source.arms.values()))
        return tuple(dict.fromkeys(source.arms.values()))
    return tuple(config.roles.level_doses)


# --------------------------------------------------------------------------------------------------------------------
# One run.


def table_batch(config: Config, lake: Lake, opened: OpenSource, run_id: str, progress: ProgressCallback) -> Batch:
    """Make the bronze tables of a table source. Unfit rows are refused or rejected, each with its count.

    Raises ConfigError when the declaration does not fit the table, DataError when the rows do not.
    """
    source, where, rows = config.source, opened.where, opened.rows
    assert isinstance(source, TableSource) and rows is not None
    levels = declared_levels(config, source)
    kept, left_out = _filtered(rows, source, progress)
    _refuse_texts(kept, source, where)
    named = pseudonymised(_typed(config, source, kept, where), key_of(config))
    contract = _contract(levels, source, config.roles.grid_levels is not None)
    checked = count_checked(named, contract)
    good, rejected = check(named, contract, checked)
    equal, refused = checked.copies, dict(checked.rejected)
    if equal:
        progress(f"{equal:,} rows are equal to another row of their unit: each counts once")
    counts = _arms(good, source, config.roles.bins)
    units = {row[TREATMENT]: row["n"] for row in counts}
    column = f"{where}: column {source.treatment!r}"
    refuse_empty_bins(config.roles, units, column)
    require_arms(units, config.roles.control, where, source.treatment)
    if source.propensity is None:
        shares = {level: n / sum(units.values()) for level, n in units.items()}
        good = good.withColumn(PROPENSITY, looked_up(shares, F.col(TREATMENT)))
    else:
        refuse_wrong_propensities(counts, source, where)
    stamp = Stamp(config.campaign, where, run_id, datetime.now(UTC), datetime.now(UTC))
    unknown = {name: sum(row[f"_no_{name}"] for row in counts) for name in source.outcomes}
    unknown = {name: n for name, n in unknown.items() if n}
    details: dict[str, Any] = {"units": units, "rejected": refused, "unknown": unknown}
    details |= {"left_out": left_out} if left_out else {}
    details |= {"equal_rows": equal} if equal else {}
    report_counts(details, progress)
    report_doses(config.roles.bins, counts, details, column, progress)
    quarantine = {"quarantine": stamped_rejects(rejected, stamp)} if refused else {}
    frames = _tables(good, source, stamp)
    # The profile first: of two runs at once one ends there, and has written nothing.
    frames = {"profile": frames["profile"], **quarantine, **frames}
    return Batch(bronze_tables(frames, config.campaign), details)


def _filtered(rows: DataFrame, source: TableSource, progress: ProgressCallback) -> tuple[DataFrame, int]:
    if source.where is None:
        return rows, 0
    from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

    known = [name for name in rows.columns if name != "_row"]
    condition = F.expr(checked_expression("source.where", source.where, known))
    try:
        kept = rows.where(condition)
        kept.schema  # noqa: B018 - over Connect nothing is looked up before this
        counts = rows.select(F.count_if(condition).alias("kept"), F.count("*").alias("n")).collect()[0]
    except PySparkException as error:
        message = str(error).strip().splitlines()[0].partition(" SQLSTATE")[0][:300]
        if isinstance(error, AnalysisException):
            message = f"is no SQL condition over the columns: {message}"
        else:
            message = f"fails on rows of the source: {message} Write a cast that may fail as try_cast(x AS double)"
        raise ConfigError(f"source.where={source.where!r} {message}") from error
    progress(f"{counts['kept']:,} of {counts['n']:,} rows meet source.where, the others are left out")
    return kept, int(counts["n"] - counts["kept"])


def _refuse_texts(rows: DataFrame, source: TableSource, where: str) -> None:
    """Raise DataError when an outcome, or an attribute that `values` makes a number, holds a text that is none."""
    kinds = {field.name: field.dataType for field in rows.schema.fields}
    numeric = [*source.outcomes, *(name for name in source.attributes if _means_numbers(source, name))]
    texts = [name for name in numeric if isinstance(kinds[name], T.StringType)]
    if not texts:
        return
    plain = F.lit(list(NO_VALUE))
    stray = {
        name: _outcome(source, name, kinds[name]).isNull()
        & _text(name, kinds[name]).isNotNull()
        & ~F.array_contains(plain, _text(name, kinds[name]))
        & ~F.coalesce(_number(name, kinds[name]).isin(*source.missing or (float("nan"),)), F.lit(False))
        for name in texts
    }
    totals = [F.count_if(one).alias(f"n_{i}") for i, one in enumerate(stray.values())]
    examples = [F.min(F.when(one, _column(name))).alias(f"x_{i}") for i, (name, one) in enumerate(stray.items())]
    row = rows.select(*totals, *examples).collect()[0]
    for i, name in enumerate(texts):
        if row[f"n_{i}"]:
            raise DataError(
                f"{where}: column {name!r} must hold numbers, but {row[f'n_{i}']:,} rows hold text such as "
                f"{row[f'x_{i}']!r}: say what it means, as in `source.values: {{{name}: {{{row[f'x_{i}']!r}: 1}}}}`"
            )


def _means_numbers(source: TableSource, name: str) -> bool:
    return all(isinstance(value, float) for value in source.values.get(name, {"": ""}).values())


def _contract(levels: tuple[str, ...], source: TableSource, numbers: bool) -> Contract:
    """What every row must meet before any part of it becomes an event."""
    keys = T.StructType().add(UNIT, T.StringType()).add(TREATMENT, T.StringType())
    keys = keys.add(_AT, T.TimestampType()).add(_ROW, T.LongType())
    rules = [
        Rule("unit_present", f"{UNIT} IS NOT NULL", "the unit id is empty"),
        Rule("treatment_present", f"{TREATMENT} IS NOT NULL", "the treatment is empty"),
        Rule("assigned_at_present", f"{_AT} IS NOT NULL", "the time of the assignment is empty"),
    ]
    if source.propensity is not None:
        keys = keys.add(PROPENSITY, T.DoubleType())
        inside = f"{PROPENSITY} > 0 AND {PROPENSITY} <= 1"
        rules.append(Rule("propensity_range", inside, f"{PROPENSITY} is empty or outside (0, 1]"))
    if numbers:
        keys = keys.add(DOSE, T.DoubleType())
        rules.append(number_rule())
    unique = (UNIT,) if source.unit else ()  # row numbers do not repeat
    contract = Contract(ASSIGNMENT_TABLE, "ingest", keys, tuple(rules), unique=unique, open=True)
    return with_levels(contract, levels) if levels and not numbers else contract


def _arms(good: DataFrame, source: TableSource, bins: DoseBins | None) -> list[dict[str, Any]]:
    """By level: n, values of each outcome that are not known, and sums of the inverse propensities."""
    counts = [F.count_if(F.col(name).isNull()).alias(f"_no_{name}") for name in source.outcomes]
    p = F.col(PROPENSITY) if source.propensity else F.lit(1.0)
    sums = [F.sum(1.0 / p).alias("_inverse"), F.sum((1.0 - p) / (p * p)).alias("_spread")]
    doses = [] if bins is None else dose_sums(bins)
    rows = good.groupBy(TREATMENT).agg(F.count("*").alias("n"), *counts, *sums, *doses).collect()
    return [row.asDict() for row in sorted(rows, key=lambda row: str(row[TREATMENT]))]


def refuse_wrong_propensities(counts: list[dict[str, Any]], source: TableSource, where: str) -> None:
    """Raise DataError unless 1/p adds up, over the units of each level, to about the number of all units."""
    units = sum(row["n"] for row in counts)
    wrong = inverse_shares(((str(row[TREATMENT]), row["_inverse"], row["_spread"]) for row in counts), units)
    if wrong:
        columns = ", ".join(map(repr, source.propensity_columns))
        raise DataError(
            f"{where}: column {columns} is not the probability of the level that each unit received: its inverses add "
            f"up to the {units:,} units {', '.join(wrong)}, and must once in every level; if it is the probability of "
            "one level on all rows, name that level, as in `source.propensity: {mail: p}`; or leave it out"
        )


def _tables(good: DataFrame, source: TableSource, stamp: Stamp) -> dict[str, DataFrame]:
    """Profile, outcome and assignment; an outcome of 0 is no event, one that is not known an event without value."""
    at = F.col(_AT)
    outcomes = [F.struct(F.lit(name).alias("outcome"), F.col(name).alias("value")) for name in source.outcomes]
    events = good.select(UNIT, _AT, F.inline(F.array(*outcomes))).filter("value IS NULL OR value <> 0")
    occurred = stamp.occurred(plus_hours(at, F.lit(24.0 * source.outcome_after_days)))
    profile = good.select(UNIT, *source.attributes, at.alias("observed_at"), at.alias("known_at"))
    assignment = good.select(UNIT, TREATMENT, _AT, PROPENSITY, *([DOSE] if DOSE in good.columns else []))
    return {
        "profile": profile.withColumns(stamp.origin()),
        "outcome": events.withColumns(occurred).drop(_AT),
        "assignment": assignment.withColumns({CAMPAIGN: F.lit(stamp.campaign), **stamp.origin()}),
    }


# --------------------------------------------------------------------------------------------------------------------
# Another try in the place of an earlier one.

_REPLACED = (
    "uplift.replaced."  # property of bronze.assignment: the runs of a campaign that another one took the place of
)


def claims_of(lake: Lake, campaign: str) -> dict[str, Claim]:
    """Claim to be the next who loads a campaign, by table; see `Lake.claim`."""
    return {table: lake.claim(table, ingest_claim(campaign)) for table in tables_of(campaign)}


def take_over(lake: Lake, campaign: str) -> None:
    """Have every run that is loading a campaign now end at the next table it would write.

    Last the table that is written first. So of two runs that do this at once one writes everything: who claimed that
    table after it was taken over claimed all others after they were, too, and who claimed it before writes nothing.
    """
    for table in filter(lake.exists, reversed(tables_of(campaign))):
        lake.take_over(table, ingest_claim(campaign))


def unfinished_runs(lake: Lake, tables: Sequence[str], campaign: str) -> set[str]:
    """Find the runs of `uplift ingest` that left rows of a campaign in these tables, among them those that were killed
    before they wrote the assignment."""
    runs: set[str] = set()
    for table in filter(lake.exists, tables):
        known = lake.runs_of(table, ingest_claim(campaign)) - runs
        if known:
            rows = lake.read(table).where(F.col(RUN_ID).isin(*known))
            runs |= {row[RUN_ID] for row in rows.select(RUN_ID).distinct().collect()}
    return runs


def refuse_unfinished(lake: Lake, campaign: str, run_id: str) -> None:
    """Raise ConflictError when another run has begun to load a campaign: its rows would be there beside these."""
    # Rows in quarantine alone are those of a run that was refused in favour of another.
    tables = (profile_table(campaign), OUTCOME_TABLE, TRUTH_TABLE)
    if others := sorted(unfinished_runs(lake, tables, campaign) - {run_id}):
        raise ConflictError(
            f"run {others[0]} is loading campaign {campaign!r} from another source, or was ended before it was done: "
            "wait for it, run that one again to complete it, or `uplift ingest` with --replace to take its place"
        )


@dataclass(frozen=True)
class Replacement:
    """Runs of a campaign that a new one takes the place of, and those that were taken the place of before it.

    runs    that are in the tables now and go; empty: nothing is replaced
    before  what the id of the new run depends on, so that a return to an older source is a new run
    claims  {table: what it was when the runs were looked for}
    """

    campaign: str
    runs: tuple[str, ...]
    before: str
    claims: Mapping[str, Claim] = field(default_factory=dict)

    @classmethod
    def begun(cls, lake: Lake, campaign: str, wanted: bool, named: Callable[[Replacement], str]) -> Replacement:
        """Find what a new run takes the place of, and claim its tables; `named` gives the run's id.

        Where there are runs to take the place of, those of them that still write are ended first.
        """
        claims = claims_of(lake, campaign)
        earlier = cls.of(lake, campaign, wanted)
        earlier = earlier.but(named(earlier))
        if earlier.runs:
            take_over(lake, campaign)
            claims = claims_of(lake, campaign)
            earlier = cls.of(lake, campaign, wanted)
            earlier = earlier.but(named(earlier))
        return replace(earlier, claims=claims)

    @classmethod
    def of(cls, lake: Lake, campaign: str, wanted: bool) -> Replacement:
        """Find the runs of a campaign that have loaded it, or began to; none goes unless this is `wanted`."""
        runs = unfinished_runs(lake, tables_of(campaign)[:-1], campaign) if wanted else set()
        if not lake.exists(ASSIGNMENT_TABLE):
            return cls(campaign, tuple(sorted(runs)), "")
        before = lake.properties(ASSIGNMENT_TABLE).get(_REPLACED + campaign, "")
        if wanted:
            mine = lake.read(ASSIGNMENT_TABLE).where(F.col(CAMPAIGN) == campaign).select(RUN_ID).distinct()
            runs |= {row[0] for row in mine.collect()}
        return cls(campaign, tuple(sorted(runs)), before)

    def but(self, run_id: str) -> Replacement:
        """The same without a run that stays: with these rows, nothing is to be replaced."""
        rest = tuple(run for run in self.runs if run != run_id)
        return Replacement(self.campaign, rest, ",".join(rest) if rest else self.before, self.claims)

    @property
    def identity(self) -> dict[str, str]:
        """Part of the new run's identity."""
        return {"replaces": self.before} if self.before else {}

    def remove(self, lake: Lake, progress: ProgressCallback) -> None:
        """Delete the runs' rows, the assignment last: until it is gone a repetition finds what is left to do."""
        if not self.runs:
            return
        if lake.exists(ASSIGNMENT_TABLE):
            lake.set_properties(ASSIGNMENT_TABLE, {_REPLACED + self.campaign: self.before})
        for table in filter(lake.exists, tables_of(self.campaign)):
            if gone := lake.delete_runs(table, self.runs, self.campaign):
                progress(f"{table}: {gone:,} rows of {', '.join(self.runs)} removed, older versions have them")

    def write(self, lake: Lake, table: str, rows: DataFrame, run_id: str) -> Written:
        """Append rows; a profile table that holds none any more takes the columns of these."""
        profile, claim = table == profile_table(self.campaign), self.claims[table]
        if profile and self.before and lake.exists(table) and lake.read(table).isEmpty():
            with lake.unlocked(table):
                return lake.write(table, rows, run_id, mode="overwrite", claim=claim)
        new = [DOSE] if table == ASSIGNMENT_TABLE and DOSE in rows.columns else []
        return lake.write(table, rows, run_id, new_columns=new, claim=claim)
