"""Units taken out of tables for good, and what they leave behind in files and logs (R1.7).

No id becomes part of a plan or of a commit: units come as a frame, and Delta logs the condition of a join.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.lake.casts import UNREAD
from uplift_spark.lake.contracts import QUARANTINE, contract_of
from uplift_spark.lake.places import PROPERTIES
from uplift_spark.lake.tables import ERASED, Lake, retried
from uplift_spark.vocabulary import UNIT

_APPEND_ONLY = "delta.appendOnly"
_DELIMITERS = r"[,;\t|\"']"  # of cells in a line that is no row of its file
_NO_FILES_KEPT = {"delta.deletedFileRetentionDuration": "interval 0 hours"}
# A commit that checkpoints has Delta delete the log files of days gone by; all of them, as none is kept.
_NO_LOG_KEPT = {"delta.logRetentionDuration": "interval 0 hours", "delta.checkpointInterval": "1"}
_USUAL_CHECKPOINTS = {"delta.checkpointInterval": "10"}
_USUAL = PROPERTIES | _USUAL_CHECKPOINTS


def erase_units(lake: Lake, table: str, units: DataFrame) -> int:
    """Delete the rows of `units`, one string column unit_id, from the newest version; returns how many there were.

    Of bronze.quarantine the rows that hold such an id as a value, whatever its key, or as a cell of a line that could
    not be read. Tables without units are left alone. Raw tables take back rows while this runs and are append-only
    again afterwards; if it is killed in between, when it runs again. Raises ConflictError when other writers win every
    race.
    """
    held = _held(lake, table, units)
    if held is None:
        return 0
    contract = contract_of(table)
    locked = contract is not None and contract.append_only
    try:
        if held.isEmpty():
            return 0
        if locked:
            _set(lake, table, {_APPEND_ONLY: "false"})
        return retried(lambda: _delete(lake, table, held), table, "an erasure")
    finally:
        if locked and lake.properties(table).get(_APPEND_ONLY) != "true":
            _set(lake, table, {_APPEND_ONLY: "true", ERASED: str(lake.version(table))})


def _held(lake: Lake, table: str, units: DataFrame) -> DataFrame | None:
    """What tells the rows to delete, in a column of the table: ids, or rows as JSON; None where no unit can be."""
    rows = lake.read(table)
    if table == QUARANTINE:
        cells = F.from_json("row", "map<string,string>")
        unread = F.transform(F.split(F.coalesce(cells[UNREAD], F.lit("")), _DELIMITERS), lambda cell: F.trim(cell))
        values = rows.select("row", F.explode(F.concat(F.map_values(cells), unread)).alias(UNIT))
        return values.join(F.broadcast(units), UNIT, "left_semi").select("row").distinct()
    return units.join(rows, UNIT, "left_semi") if UNIT in rows.columns else None


def _delete(lake: Lake, table: str, held: DataFrame) -> int:
    (column,) = held.columns
    merge = f"MERGE INTO {lake.reference(table)} AS t USING {{held}} AS s ON t.{column} = s.{column}"
    done = lake.spark.sql(f"{merge} WHEN MATCHED THEN DELETE", held=held).collect()[0]
    return int(done["num_deleted_rows"])


def purge(lake: Lake, table: str, log: bool = True) -> None:
    """Remove the files of all versions but the newest, and with `log` what the transaction log tells of them.

    Delta deletes log files by the day: bounds of columns written today are gone after a purge on a later day (UTC).
    Nothing else may write the table meanwhile: files of a write that is not committed yet would be taken for old ones.
    If it is killed the table keeps no history until it runs again.
    """
    have = lake.properties(table)
    if have.get("delta.enableDeletionVectors") == "true":
        retried(lambda: lake.spark.sql(f"REORG TABLE {lake.reference(table)} APPLY (PURGE)"), table, "a purge")
    none = _NO_FILES_KEPT | _NO_LOG_KEPT
    try:
        if log:
            # First of all: log files go as far as a checkpoint before which there is none of today.
            _set(lake, table, none)
        _set(lake, table, _NO_FILES_KEPT | _USUAL_CHECKPOINTS)
        lake.spark.sql(f"VACUUM {lake.reference(table)}").collect()
    finally:
        # All at once: Delta compares the two times of one statement.
        _set(lake, table, {key: have[key] if have.get(key, no) != no else _USUAL[key] for key, no in none.items()})


def _set(lake: Lake, table: str, values: Mapping[str, str]) -> None:
    pairs = ", ".join(f"'{key}' = '{value}'" for key, value in values.items())
    statement = f"ALTER TABLE {lake.reference(table)} SET TBLPROPERTIES ({pairs})"
    retried(lambda: lake.spark.sql(statement), table, "a change of its properties")
