"""Retention: rows about units that are older than their table keeps them go, and later the files of versions before.

`run_retention` does all of it; `due_of` finds what is due in one table. How files go is in `erasure`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.erasure import keep_training_rows, models_in_use, training_table_of, vacuum
from uplift_spark.governance.spark import newest_entry, record_event
from uplift_spark.lake.contracts import INGESTED_AT
from uplift_spark.lake.schemas import NEVER_DUE, QUARANTINE, TRAINED_TABLES, contract_of, is_table_of
from uplift_spark.lake.storage import Commit
from uplift_spark.lake.tables import APPEND_ONLY, ERASED, Lake
from uplift_spark.registry.models import Registry
from uplift_spark.roles import CAMPAIGN, RUN_ID, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress
from uplift_spark.sections.governance import RetentionConf
from uplift_spark.spark_versions import sql_text

_TIMES = ("assigned_at", "decided_at", "delivered_at", "occurred_at", "observed_at", "scored_at")
"""Columns that say how old a row is; a table has one of them at most, or the run that wrote the row says it."""
_BEGUN, _COMPLETE = "expire", "expired"


@dataclass(frozen=True)
class DueRows:
    """What is due of a table.

    days       that it keeps a row
    rows       how many are due, and `where`, an SQL condition, which
    oldest     time of the oldest row that stays; None where none does, or its time is not known
    undated    rows of which nothing says how old they are: they stay
    """

    table: str
    days: float
    rows: int
    where: str
    oldest: datetime | None
    undated: int = 0


def due_of(lake: Lake, table: str, days: float, now: datetime, campaigns: Sequence[str]) -> DueRows:
    """Find the rows of a table that are older than so many days.

    Args:
        lake: Where the table is.
        table: A table with unit ids, or bronze.quarantine.
        days: That it keeps a row.
        now: When.
        campaigns: Only rows of these are due, where the table says whose they are, and rejected rows of nobody's.

    Returns:
        What is due.
    """
    rows, least = lake.read(table), now - timedelta(days=days)
    ours = f"{CAMPAIGN} IN ({', '.join(map(sql_text, campaigns))})"
    ours = f"({ours} OR {CAMPAIGN} IS NULL)" if table == QUARANTINE else ours
    mine = [ours] if CAMPAIGN in rows.columns else []
    own = rows.where(ours) if mine else rows
    named = (INGESTED_AT,) if table == QUARANTINE else _TIMES
    time = next((name for name in named if name in rows.columns), None)
    n, older, oldest, undated = _by_run(own, lake.history(table), least) if time is None else _by_time(own, time, least)
    return DueRows(table, days, n, " AND ".join([older, *mine]), oldest, undated)


_Due = tuple[int, str, datetime | None, int]
"""Rows that are due, the condition that tells them, the oldest time that stays, rows without a time."""


def _by_time(rows: DataFrame, time: str, least: datetime) -> _Due:
    """Of rows with a column that says how old they are."""
    older = f"{time} < timestamp_micros({round(least.timestamp() * 1e6)})"
    due = F.coalesce(F.sum(F.expr(older).cast("long")), F.lit(0))
    stays = F.min(F.when(~F.expr(older), F.unix_micros(time)))
    n, micros, undated = rows.agg(due, stays, F.sum(F.col(time).isNull().cast("long"))).collect()[0]
    return n, older, None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC), undated or 0


def _by_run(rows: DataFrame, commits: Sequence[Commit], least: datetime) -> _Due:
    """Of rows without such a column: each is as old as the commit of its run. One of which the table's history, newest
    first, knows nothing any more is older than the history."""
    written = {str(commit.notes["run_id"]): commit.at for commit in reversed(commits) if "run_id" in commit.notes}
    counts = {row[RUN_ID]: row["n"] for row in rows.groupBy(RUN_ID).agg(F.count(F.lit(1)).alias("n")).collect()}
    due = sorted(run for run in counts if run is not None and written.get(run, commits[-1].at) < least)
    stay = {run: n for run, n in counts.items() if run not in due}
    older = f"{RUN_ID} IN ({', '.join(map(sql_text, due))})" if due else "false"
    oldest = min((written[run] for run in stay if run in written), default=None)
    return sum(counts[run] for run in due), older, oldest, sum(n for run, n in stay.items() if run not in written)


def run_retention(
    config: Config, lake: Lake, progress: ProgressCallback = no_progress, now: datetime | None = None
) -> JobResult:
    """Delete what is due of the campaign's tables, then the files that no version of the last days needs.

    Rows that a model in use was trained on stay in `silver.trained_<model>_<version>` until another one takes its
    place, so that units can still be erased from it. A rerun completes a killed run and otherwise finds nothing due.

    The audit log gets an entry before the first row goes and one after the last; none where nothing is due.

    Raises ConfigError where `governance.retention` names a table in which no row is about a unit, or none may go.
    """
    conf = config.governance.retention
    if conf is None:
        return JobResult.of("expire", "", deleted=0, retention="governance.retention is not set: no row is ever due")
    now = datetime.now(UTC) if now is None else now
    tables = _tables_with_units(config, lake, conf)
    used = _in_use(config, lake, tables, progress)
    campaigns = (config.campaign, config.serving.campaign_of(config.campaign))
    dues = [due_of(lake, table, days, now, campaigns) for table, days in tables.items()]
    going = {one.table: one.rows for one in dues if one.rows and one.table not in used}
    run_id = f"expire-{uuid.uuid4().hex[:16]}"
    facts: dict[str, Any] = {"days": dict(conf.days), "history_days": conf.history_days, "due": going}
    reason, versions = "governance.retention of the configuration", {"code": code_version()}
    event = AuditEvent("", _BEGUN, f"old rows of {config.campaign}", reason, "", run_id, versions, facts)
    if going:
        record_event(config, lake, event, once=False)  # no row goes without it
    for one in dues:
        if one.table in going:
            progress(f"{one.table}: {one.rows:,} rows are older than {one.days:g} days")
        if one.table not in used:
            _delete_due(lake, one)
        vacuum(lake, one.table, conf.history_days)
    if going or _was_killed(lake, event.subject):
        oldest = {one.table: None if one.oldest is None else f"{one.oldest:%FT%TZ}" for one in dues}
        record_event(config, lake, replace(event, action=_COMPLETE, details={**facts, "oldest": oldest}), once=False)
    return JobResult.of("expire", run_id, **_details(dues, used, conf))


def _tables_with_units(config: Config, lake: Lake, conf: RetentionConf) -> dict[str, float]:
    """{table: days} of the campaign's tables that hold rows about units and are in the configuration."""
    if barred := sorted(set(conf.days) & set(NEVER_DUE)):
        raise ConfigError(f"governance.retention.days names {barred[0]}: {NEVER_DUE[barred[0]]}; remove it")
    there = lake.tables()
    if unknown := [name for name in conf.days if "." in name and name not in there and contract_of(name) is None]:
        raise ConfigError(f"governance.retention.days names {unknown[0]!r}: {hint(unknown[0], there)}")
    ours = [name for name in there if is_table_of(name, config.campaign, config.model_name)]
    ours = [name for name in ours if name not in NEVER_DUE]
    days = {name: kept for name in ours if (kept := conf.days_of(name)) is not None}
    people = {name: kept for name, kept in days.items() if name == QUARANTINE or UNIT in lake.read(name).columns}
    if others := sorted(set(conf.days) & (set(days) - set(people))):
        raise ConfigError(f"governance.retention.days names {others[0]}, in which no row is about a unit: remove it")
    return people


def _in_use(config: Config, lake: Lake, tables: Mapping[str, float], progress: ProgressCallback) -> dict[str, int]:
    """{table: version of the model} of tables that hold the training rows of models in use and nothing else."""
    used: dict[str, int] = {}
    if not any(table == config.training_table or table.startswith(TRAINED_TABLES) for table in tables):
        return used
    registry = Registry.of(config)
    for base in models_in_use(config, lake, registry):
        table, _ = training_table_of(base)
        if table in tables and not table.startswith(TRAINED_TABLES):
            try:
                keep_training_rows(config, lake, registry, base)
            except DataError as error:  # they are gone, whatever becomes of the others
                progress(f"units can no longer be erased from {base.name} version {base.version}: {error}")
            table, _ = training_table_of(registry.find(base.name, base.version))
        if table.startswith(TRAINED_TABLES):
            used[table] = base.version
    return used


def _delete_due(lake: Lake, due: DueRows) -> None:
    """Delete them; of a table that a killed run left open to deletions only close it."""
    contract = contract_of(due.table)
    if due.rows:
        # Before and after: a run that wrote them and is repeated must not take their absence for other data.
        lake.set_properties(due.table, {ERASED: str(lake.version(due.table))})
        lake.delete_rows(due.table, due.where)
        lake.set_properties(due.table, {ERASED: str(lake.version(due.table))})
    if contract is not None and contract.append_only and lake.properties(due.table).get(APPEND_ONLY) != "true":
        lake.set_properties(due.table, {APPEND_ONLY: "true"})


def _was_killed(lake: Lake, subject: str) -> bool:
    """Whether the newest entry about it is one of a run that did not complete."""
    newest = newest_entry(lake, (_BEGUN, _COMPLETE), subject)
    return newest is not None and newest.fields["action"] == _BEGUN


def _details(dues: Sequence[DueRows], used: Mapping[str, int], conf: RetentionConf) -> dict[str, Any]:
    """What is printed: a row a table, and what can still be read."""
    deleted = {one.table: 0 if one.table in used else one.rows for one in dues}
    rows = [
        {
            "table": one.table, "days": one.days, "deleted": deleted[one.table],
            "oldest kept": "" if one.oldest is None else f"{one.oldest:%Y-%m-%d}", "note": " ".join(_notes(one, used)),
        }
        for one in dues
    ]  # fmt: skip
    history = f"versions of the last {conf.history_days:g} days can still be read, and deleted rows in them"
    return {"deleted": sum(deleted.values()), "tables": pd.DataFrame(rows), "history": history}


def _notes(due: DueRows, used: Mapping[str, int]) -> Iterator[str]:
    if due.table in used and due.rows:
        yield f"{due.rows:,} due rows stay while version {used[due.table]} is in use"
    if due.undated:
        yield f"{due.undated:,} rows without a time stay"
