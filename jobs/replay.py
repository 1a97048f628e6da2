"""Append rows of bronze.quarantine, repaired, to the raw table they were meant for.

Rows that still break a rule stay where they are; quarantine never changes. A repair is an expression over the fields of
one row. It gives a text or a value of the column; a text is read as in a file, so it needs no cast. For times that are
no ISO 8601:

--repair "occurred_at=to_timestamp(occurred_at, 'dd.MM.yyyy HH:mm')"

--repair "occurred_at=timestamp_millis(bigint(occurred_at))" (timestamp_seconds for seconds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType, TimestampType

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.earlier import of_others, quarantined, replayed_before
from uplift_spark.events.load import (
    ALREADY,
    Load,
    refuse_misfits,
    stamped,
    until_first,
    wanted_columns,
    with_known_keys,
)
from uplift_spark.events.load_source import ARRIVED, SOURCE
from uplift_spark.lake.contracts import INGESTED_AT, UNREAD, as_json, count_checked, time_text, with_columns
from uplift_spark.lake.schemas import QUARANTINE, check, contract_of, rule_of
from uplift_spark.lake.tables import Lake, digest
from uplift_spark.roles import checked_name
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress

_FIELDS, _TEXTS = "__fields", "__texts"
_KNOWN_AT = "known_at"
_OF_TRIALS = "_row"  # only lines of a trial's file, rejected by `uplift ingest`, have their number


@dataclass(frozen=True)
class Replay:
    """What to replay into which raw table.

    rule     only rows that broke this rule first; None: all
    repairs  {column: SQL expression over the row's fields, all of them texts}, each of the row as it is in quarantine

    Raises ConfigError when the table is no raw one or a repair is no expression over a row.
    """

    table: str
    rule: str | None = None
    repairs: tuple[tuple[str, str], ...] = ()
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "load", Load(self.table, QUARANTINE, "json"))
        for column, _ in self.repairs:
            checked_name(column, "--repair")
        if len(dict(self.repairs)) < len(self.repairs):
            raise ConfigError("--repair names a column twice: keep one expression of each")
        self.checked()

    def checked(self, fields: Sequence[str] | None = None) -> dict[str, str]:
        """{column: SQL to run}. Raises ConfigError for what is no expression over a row of these fields (None: any)."""
        if not self.repairs:
            return {}
        from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

        return {column: checked_expression(f"--repair {column}", text, fields) for column, text in self.repairs}

    @classmethod
    def of(cls, table: str, rule: str | None, repairs: Sequence[str]) -> Replay:
        """From texts such as `value=replace(value, ',', '.')`, with names of this release or the last."""
        contract = contract_of(table)
        renamed = {} if contract is None else {old: new for new, old in contract.renamed.items()}
        pairs = [text.partition("=") for text in repairs]
        for column, equals, expression in pairs:
            if not equals or expression.startswith("="):
                raise ConfigError(f"--repair {column + equals + expression!r} must look like COLUMN=SQL")
        named = tuple((renamed.get(column.strip(), column.strip()), expression) for column, _, expression in pairs)
        return cls(table, None if rule is None else rule_of(rule), named)


@dataclass(frozen=True)
class Replayed:
    """Rows to append; None when there is none.

    rows      how many these are
    broken    {rule: rows that break it still}
    already   rows that are there: other runs have replayed them or an equal one
    """

    run_id: str
    good: DataFrame | None
    rows: int
    broken: dict[str, int]
    already: int


def replayed(replay: Replay, lake: Lake, run_id: str | None, progress: ProgressCallback) -> Replayed:
    """What a replay adds, lazily. Raises a named error before anything is written when a repair does not fit."""
    rows = _quarantined(replay, lake, progress)
    counted = digest(rows, [SOURCE])
    how = {"table": replay.table, "rule": replay.rule, "repairs": replay.repairs}
    run_id = run_id or derive_run_id("replay", how, source=list(counted))
    if not counted[0]:
        return Replayed(run_id, None, 0, {}, 0)
    repaired = _repaired(replay, lake, rows)
    wanted = wanted_columns(replay.load, lake, [(QUARANTINE, repaired)])
    repaired = _fitting(replay, repaired, wanted)
    new = _not_replayed(lake, replay.table, repaired, run_id)
    whole = stamped(replay.load, new, wanted, F.current_timestamp())
    whole, contract = with_known_keys(replay.load, lake, whole, run_id), with_columns(replay.load.contract, wanted)
    counts = count_checked(whole, contract)
    good, _ = check(whole, contract, counts)
    broken = {rule: n for rule, n in counts.rejected.items() if rule != ALREADY}
    for rule, n in broken.items():
        progress(f"{n:,} rows still break rule {rule}")
    there = counted[0] - counts.good - sum(broken.values())
    return Replayed(run_id, good if counts.good else None, counts.good, broken, there)


def _quarantined(replay: Replay, lake: Lake, progress: ProgressCallback) -> DataFrame:
    """The rows with their fields in _FIELDS, what names each in SOURCE, and when they came in ARRIVED.

    Raises DataError when all of them are lines of a trial's file, which a campaign takes as a whole.
    """
    rows = quarantined(lake, replay.table)
    parsed = F.from_json("row", "map<string,string>")
    for new, old in replay.load.contract.renamed.items():
        parsed = _with_key(parsed, old, new)
    rows = rows.withColumns({SOURCE: F.col("name"), _FIELDS: parsed, ARRIVED: F.col(INGESTED_AT)})
    if replay.rule is not None:
        rows = rows.where(F.col("rule") == replay.rule)
    of_trials = F.coalesce(F.map_contains_key(_FIELDS, F.lit(_OF_TRIALS)), F.lit(False))
    counts = {trial: n for trial, n in rows.groupBy(of_trials).agg(F.count("*")).collect()}
    if True in counts:
        left_out = (
            f"{counts[True]:,} quarantined rows for {replay.table} are lines of a trial's file: correct the file and "
            "its sha256, and run `uplift ingest` for a new campaign"
        )
        if False not in counts:
            raise DataError(left_out)
        progress(left_out)
    return rows.where(~of_trials).select(SOURCE, _FIELDS, ARRIVED)


def _with_key(fields: Column, old: str, new: str) -> Column:
    return F.transform_keys(fields, lambda key, _: F.when(key == old, F.lit(new)).otherwise(key))


def _fitting(replay: Replay, frame: DataFrame, wanted: StructType) -> DataFrame:
    """The rows with every column but known_at. Raises DataError for fields of no use and repairs of another type."""
    names = wanted.fieldNames()
    if unknown := [name for name in frame.columns if name not in (*names, SOURCE, ARRIVED, UNREAD)]:
        raise DataError(
            f"quarantined rows have fields {', '.join(unknown)}, which are no columns of {replay.table}: use each in a "
            f"repair, such as --repair '{_KNOWN_AT}={unknown[0]}'"
        )
    # A field that no row has is null, for the contract to judge.
    absent = {n: F.lit(None).cast("string") for n in names if n not in frame.columns and n != _KNOWN_AT}
    frame = frame.withColumns(absent) if absent else frame
    refuse_misfits(replay.load, QUARANTINE, frame, wanted)
    return frame


def _fields_of(rows: DataFrame) -> list[str]:
    return sorted(name for (name,) in rows.select(F.explode(F.map_keys(_FIELDS))).distinct().collect())


def _repaired(replay: Replay, lake: Lake, rows: DataFrame) -> DataFrame:
    """Fields as columns of texts, repairs in their place, with SOURCE and ARRIVED; fields only for repairs are gone."""
    fields = _fields_of(rows)
    texts = F.array_join(F.map_values(_FIELDS), " ").alias(_TEXTS)
    frame = rows.select(*(F.col(_FIELDS)[name].alias(name) for name in fields), SOURCE, ARRIVED, texts)
    spent = _spent(replay, lake, fields)
    repairs = replay.checked(fields)
    frame = frame.select("*", *(F.expr(text).alias(f"__repaired_{column}") for column, text in repairs.items()))
    kinds = {field.name: field.dataType for field in replay.load.contract.columns}
    for column, _ in replay.repairs:
        if isinstance(kinds.get(column), TimestampType):
            name = f"__repaired_{column}"
            frame = frame.withColumn(name, time_text(name, frame.schema[name].dataType, _TEXTS))
    own = dict(replay.repairs)
    frame = frame.drop(_TEXTS, *own, *spent).withColumnsRenamed({f"__repaired_{column}": column for column in own})
    if _KNOWN_AT in fields and _KNOWN_AT not in own:
        arrived = F.get_json_object(as_json([ARRIVED]), f"$.{ARRIVED}")
        frame = frame.withColumn(_KNOWN_AT, F.when(F.trim(_KNOWN_AT) != "", F.col(_KNOWN_AT)).otherwise(arrived))
    return frame


def _spent(replay: Replay, lake: Lake, fields: Sequence[str]) -> list[str]:
    """Fields that are no columns of the table and that a repair uses.

    Raises ConfigError when a repair is no expression over the fields.
    """
    checked = replay.checked(fields)
    for column, expression in replay.repairs:
        error = _refused(lake.spark, fields, checked[column])
        if error is not None:
            message = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"--repair {column}={expression!r} is no expression over the row's fields "
                f"{', '.join(fields)}: {message}"
            )
    known = {*replay.load.contract.columns.fieldNames()}
    if lake.exists(replay.table):
        known |= set(lake.read(replay.table).columns)
    without = {name: [field for field in fields if field != name] for name in fields if name not in known}
    return [name for name, others in without.items() if any(_refused(lake.spark, others, e) for e in checked.values())]


def _refused(spark: SparkSession, fields: Sequence[str], expression: str) -> Exception | None:
    """What Spark says against the expression over rows of these fields."""
    schema = StructType()
    for name in fields:
        schema.add(name, StringType())
    try:
        spark.createDataFrame([], schema).select(F.expr(expression)).schema  # noqa: B018
    except PySparkException as error:
        return error
    return None


def _why_failed(replay: Replay, lake: Lake, error: PySparkException) -> Exception:
    """Which repair fails on rows, as an error of one sentence; `error` itself when it is none of them."""
    rows = _quarantined(replay, lake, no_progress)
    fields = _fields_of(rows)
    frame = rows.select(*(F.col(_FIELDS)[name].alias(name) for name in fields))
    checked = replay.checked(fields)
    for column, expression in replay.repairs:
        try:
            frame.select(F.count(F.expr(checked[column]))).collect()
        except PySparkException as reason:
            said = str(reason).strip().splitlines()[0].partition(" SQLSTATE")[0]
            return ConfigError(
                f"--repair {column}={expression!r} fails on rows of {QUARANTINE}, and nothing was written: {said} "
                "Leave casts out: texts are read as the column's type, and rows that cannot be read stay in quarantine"
            )
    return error


def _not_replayed(lake: Lake, table: str, rows: DataFrame, run_id: str) -> DataFrame:
    if not lake.exists(table):
        return rows
    others = replayed_before(of_others(lake, table, run_id))
    have = others.select(F.col("source").alias(SOURCE)).distinct()
    return rows.join(have, SOURCE, "left_anti")


def options(
    table: Annotated[str, typer.Argument(help="The raw table, such as bronze.event.", show_default=False)],
    rule: Annotated[str | None, typer.Option(help="Only rows that broke this rule first.")] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=SQL", help="A column from the row's fields, all texts; repeatable."),
    ] = None,
) -> dict[str, Any]:
    """Which quarantined rows to append, and how they are repaired."""
    return {"replay": Replay.of(table, rule, repair or ())}


def run(
    campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None, *, replay: Replay
) -> JobResult:
    """Add each repaired row that meets the contract now and that no replay has added."""
    try:
        return until_first(lambda: _replay(campaign.lake, progress, run_id, replay), progress)
    except PySparkException as error:
        raise _why_failed(replay, campaign.lake, error) from error


def _replay(lake: Lake, progress: ProgressCallback, run_id: str | None, replay: Replay) -> JobResult:
    claim = lake.claim(replay.table, f"replay {replay.table}")
    new = replayed(replay, lake, run_id, progress)
    if new.good is None:
        progress("no row to add")
        return JobResult.of("replay", new.run_id, replayed=0, still_broken=new.broken, already_replayed=new.already)
    written = lake.write(replay.table, new.good, new.run_id, claim=claim)
    already = new.already + new.rows - written.rows
    return JobResult.of(
        "replay", new.run_id, written, replayed=written.rows, still_broken=new.broken, already_replayed=already
    )


if __name__ == "__main__":
    main_job(run, options)
