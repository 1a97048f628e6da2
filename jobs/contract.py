"""Print what a table must hold: columns, types, meaning, rules, unique keys; without a table, the names of all.

Reads no table and starts no Spark. `source`, `run_id` and `ingested_at` of what is loaded are filled by the platform.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uplift_spark.console import main_command, out, words_table
from uplift_spark.errors import ConfigError, hint

if TYPE_CHECKING:
    from rich.table import Table

    from uplift_spark.lake.contracts import Contract

FORMATS = ("table", "json")
REQUIRED, OPTIONAL, PLATFORM = "the source", "the source, or none", "the platform"
KNOWN_AT = "the source, or its arrival"


def contract_facts(table: str) -> dict[str, Any]:
    """What a table must hold, as JSON has it.

    Args:
        table: `schema.table`; of a campaign's own tables with its name or without, as in `bronze.profile_spring`.

    Returns:
        `table`, `written_by` (the verb that writes it first), `columns` (name, type, filled_by, meaning), `rules`
        (name, sql that is true of a good row, reason), `unique` (columns that are a key together), `open` (further
        columns may follow), `append_only`.

    Raises:
        ConfigError: There is no such table.
    """
    contract = _contract(table)
    return {
        "table": contract.table,
        "written_by": contract.job,
        "columns": [
            {
                "name": field.name,
                "type": field.dataType.simpleString(),
                "filled_by": _filled_by(contract, field.name),
                "meaning": field.metadata.get("comment", ""),
            }
            for field in contract.columns
        ],
        "rules": [{"name": rule.name, "sql": rule.sql, "reason": rule.reason} for rule in contract.rules],
        "unique": list(contract.unique),
        "open": contract.open,
        "append_only": contract.append_only,
    }


def contract_names() -> list[str]:
    """Names of all tables; a campaign's own end in `_<campaign>`."""
    from uplift_spark.lake.schemas import all_contracts

    return [contract.table for contract in all_contracts()]


def _contract(table: str) -> Contract:
    from uplift_spark.lake.schemas import all_contracts, contract_of

    named = {contract.table: contract for contract in all_contracts()}
    chosen = named.get(table) or named.get(f"{table}_<campaign>") or contract_of(table)
    if chosen is None:
        raise ConfigError(f"{table!r} is none of the tables: {hint(table, set(named))}")
    return chosen


def _filled_by(contract: Contract, column: str) -> str:
    from uplift_spark.lake.schemas import RAW_TABLES, optional_columns

    of_source = any(contract.table.startswith(name.removesuffix("<campaign>")) for name in RAW_TABLES)
    if not of_source:
        return f"uplift {contract.job}"
    if column in ("source", "run_id", "ingested_at"):
        return PLATFORM
    if column == "known_at":
        return KNOWN_AT
    return OPTIONAL if column in optional_columns(contract.table) else REQUIRED


def contract_parts(facts: dict[str, Any]) -> list[str | Table]:
    """Facts of `contract_facts` for a person to read, to be printed one below the other."""
    rows = [[one["name"], one["type"], one["filled_by"], one["meaning"]] for one in facts["columns"]]
    kept = "; rows are added and never changed" if facts["append_only"] else ""
    parts: list[str | Table] = [f"{facts['table']}, first written by `uplift {facts['written_by']}`{kept}", ""]
    parts.append(words_table(("column", "type", "filled by", "meaning"), rows))
    if facts["open"]:
        parts.append("Further columns may follow: numbers (double), lists of numbers, texts.")
    if facts["rules"]:
        rules = [[rule["name"], rule["reason"]] for rule in facts["rules"]]
        parts += ["", words_table(("rule", "a row is rejected when"), rules)]
    if facts["unique"]:
        parts += ["", f"Unique together: {', '.join(facts['unique'])}. Equal rows are one row, others are rejected."]
    if facts["rules"]:
        parts += ["", "Rejected rows go to bronze.quarantine with the reason; `uplift replay` brings them back."]
    return parts


def command(
    table: Annotated[str | None, typer.Argument(help="As in bronze.outcome; all names without it.")] = None,
    format_: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Print the contract of a table, or the names of all tables."""
    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r} is unknown: use one of {', '.join(FORMATS)}")
    facts = contract_names() if table is None else contract_facts(table)
    if format_ == "json":
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for part in facts if isinstance(facts, list) else contract_parts(facts):
        out().print(part, soft_wrap=isinstance(part, str))


if __name__ == "__main__":
    main_command(command, __doc__)
