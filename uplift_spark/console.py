"""Results, progress and names as text for a terminal. Imports no Spark: `uplift --help` answers at once."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from uplift_spark.errors import UpliftError

if TYPE_CHECKING:
    import pandas as pd

    from uplift_spark.runtime import JobResult


def rich_table(rows: pd.DataFrame) -> Table:
    """A frame as a table of text: numbers right-aligned, floats to 4 significant digits, nulls empty."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows.columns:
        numeric = rows[column].dtype.kind in "iuf"
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows.itertuples(index=False):
        table.add_row(*(cell(value) for value in row))
    return table


def cell(value: Any) -> str:
    """One value as text, see `rich_table`."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def program() -> str:
    """What to type to run this program again from here."""
    called = Path(sys.argv[0])
    on_path = shutil.which("uplift")
    if on_path and called.exists() and Path(on_path).samefile(called):
        return "uplift"
    return os.path.relpath(called) if called.name == "uplift" else "uplift"


@dataclass
class Progress:
    """Says what happens, each line with the seconds since the start, on stderr: stdout is for results."""

    console: Console
    started: float = field(default_factory=time.monotonic)

    def report(self, message: str) -> None:
        """Print one line of progress."""
        self.console.print(f"{time.monotonic() - self.started:7.1f} s  {message}", soft_wrap=True)

    def within(self, step: str) -> Callable[[str], None]:
        """A `progress` for one job, which names the job on every line."""
        return lambda message: self.report(f"{step:<8}  {message}")


def written_lines(result: JobResult) -> Iterator[str]:
    """What a job has to say about each table."""
    for name, written in result.tables.items():
        if written.get("skipped"):
            yield f"{name}: already written by this run, no row added"
        else:
            yield f"{name}: {written.get('rows', 0):,} rows"


def print_result(result: JobResult) -> None:
    """A run, its tables and its details."""
    out().print(f"run {result.run_id}")
    if result.tables:
        print_tables([(t, w.get("rows", 0), w.get("version", "")) for t, w in result.tables.items()], "rows added")
    print_details(result.details)


def print_details(details: Mapping[str, Any]) -> None:
    """One line per detail; a text of several lines stands by itself; figures two levels deep are for programs."""
    for key, value in details.items():
        if not isinstance(value, Mapping):
            text = str(value)
            out().print(f"\n{text}\n" if "\n" in text else f"{key}: {text}", soft_wrap=True)
        elif not any(isinstance(inner, Mapping) for inner in value.values()):
            out().print(f"{key}: {', '.join(f'{k} {v}' for k, v in value.items())}", soft_wrap=True)


def print_tables(rows: Sequence[tuple[str, int, Any]], counted: str) -> None:
    """(table, count, version) of each table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("table")
    table.add_column(counted, justify="right")
    table.add_column("version", justify="right")
    for name, count, version in rows:
        table.add_row(name, f"{count:,}", str(version))
    out().print(table)


def out() -> Console:
    """Where results go."""
    return _console(stderr=False)


def err() -> Console:
    """Where progress and errors go."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    """Plain text: messages hold brackets and paths. Into a file or a pipe nothing is wrapped at 80 columns."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors meant for the user lose their traceback, all others keep it; libraries' chatter is off."""
    _quiet()
    try:
        yield
    except UpliftError as error:
        err().print(f"error: {error}", soft_wrap=True)
        sys.exit(1)


def _quiet() -> None:
    if not sys.warnoptions:  # `python -W …` still shows them
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("py4j", "mlflow", "alembic", "pyspark"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_spark() -> None:
    """PySpark logs every failed query as JSON with the JVM's trace, beside the exception that says the same."""
    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)
