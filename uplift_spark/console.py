"""A job as a command: its options, its session, and its progress and results as text for a terminal.

Imports no Spark until a job runs: `uplift --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, Signature, getdoc, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from uplift_spark.errors import NO_SPARK, SPARK_PACKAGES, ConfigError, UpliftError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from uplift_spark.campaign import Campaign
    from uplift_spark.config import Config, Lakehouse
    from uplift_spark.lake.local_tables import LocalTables
    from uplift_spark.lake.tables import Lake
    from uplift_spark.runtime import Job, JobResult

_T = TypeVar("_T")

# --------------------------------------------------------------------------------------------------------------------
# A job as a command. `jobs/<verb>.py` has `run`, and `options` where its command line has more than --conf, --set and
# --run-id: a function whose parameters are these options and that returns the arguments of `run` they stand for.

ConfOption = Annotated[Path, typer.Option("--conf", help="The campaign's YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in source.units=20000; repeatable."),
]
RunOption = Annotated[
    str | None, typer.Option("--run-id", help="Name of this run; derived from configuration and inputs by default.")
]
_NoRunOption = Annotated[str | None, typer.Option("--run-id", hidden=True)]

Options = Callable[..., dict[str, Any]]
After = Callable[["Campaign", "list[JobResult]"], None]


def no_options() -> dict[str, Any]:
    """The options of a job that has none of its own."""
    return {}


def main_job(run: Callable[..., JobResult], options: Options = no_options) -> None:
    """Entry point of `jobs/<verb>.py`, as in `spark-submit jobs/lift.py --conf conf/demo.yaml`.

    Parses the command line, runs the job, prints its result. Returns on success, because a Databricks task counts any
    SystemExit as a failure; exits with 1 on an UpliftError.
    """
    _without_exit(job_command(Path(sys.argv[0]).stem, run, options))


def main_command(command: Callable[..., None], text: str | None) -> None:
    """Entry point of a `jobs/<verb>.py` that needs no campaign, like `main_job`; `text` is its help."""
    _without_exit(own_command(Path(sys.argv[0]).stem, command, text))


def _without_exit(command: Callable[[], Any]) -> None:
    try:
        with one_sentence():
            command()
    except SystemExit as stop:
        if stop.code:
            raise


def job_command(verb: str, run: Callable[..., JobResult], options: Options = no_options) -> Callable[..., Any]:
    """The command of one job: the options of its own, then --conf, --set and --run-id; its help is the module's.

    `options` may take `run_id`, too, to refuse a name where no run comes to be.
    """
    own = list(signature(options, eval_str=True).parameters.values())

    def command(conf: ConfOption, set_: SetOption = None, run_id: RunOption = None, **chosen: Any) -> None:
        named = {"run_id": run_id} if "run_id" in [parameter.name for parameter in own] else {}
        job = sys.modules[run.__module__]
        if run_id is not None and getattr(job, "NAMES_ITS_RUN", False):
            raise ConfigError(f"`uplift {verb}` names its run itself: leave --run-id out")
        lazily = getattr(job, "READS_RESULTS", False)
        run_jobs({verb: partial(run, **options(**chosen, **named))}, conf, set_, run_id, lazily=lazily)

    usual = [one for one in signature(command, eval_str=True).parameters.values() if one.name != "chosen"]
    if getattr(sys.modules[run.__module__], "NAMES_ITS_RUN", False):  # refused in a sentence, and no part of the help
        usual = [one.replace(annotation=_NoRunOption) if one.name == "run_id" else one for one in usual]
    parameters = [*(one for one in own if one.name != "run_id"), *usual]
    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
    return own_command(verb, command, getdoc(sys.modules[run.__module__]))


def own_command(verb: str, command: Callable[..., None], text: str | None) -> Callable[..., Any]:
    """A command that parses its options and runs; `text` is its help."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(verb, help=text)(command)
    return alone


def run_jobs(
    jobs: Mapping[str, Job],
    conf: Path,
    overrides: Sequence[str] | None,
    run_id: str | None,
    after: After | None = None,
    lazily: bool = False,
) -> None:
    """Run jobs one after another in one session; what is printed at the end is `after`'s, else the last result.

    `lazily` starts Spark when a job first needs it, which on a folder of this machine may be never.
    """
    config = read_config(conf, overrides, *(verb.partition(" ")[0] for verb in jobs))  # `readout 25%` is a readout
    from uplift_spark.lake.local_tables import local_tables

    reporter = Progress(err())
    lazily = lazily and local_tables(config.lakehouse) is not None
    if not lazily:
        reporter.report("starting Spark")
    with lazy_campaign(config) if lazily else open_campaign(config) as campaign:
        results = []
        for verb, run in jobs.items():
            progress = reporter.within(verb)
            with nullcontext() if lazily else campaign.planned(verb):
                results.append(run(campaign, progress, run_id))
            for line in written_lines(results[-1]):
                progress(line)
        after(campaign, results) if after else print_result(results[-1])
    reporter.report("done")


def read_config(conf: Path, overrides: Sequence[str] | None, *verbs: str) -> Config:
    """The configuration of a command that runs these verbs, its warnings said on stderr.

    Raises ConfigError as `config.load_config`, and where the user has no role that may run one of the verbs.
    """
    from uplift_spark.config import load_config
    from uplift_spark.governance.permissions import check_permitted

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FutureWarning)
        config = load_config(conf, tuple(overrides or ()))
    for warning in caught:
        err().print(f"warning: {warning.message}", soft_wrap=True)
    for verb in verbs:
        check_permitted(config, verb)
    return config


@contextmanager
def lazy_campaign(config: Config) -> Iterator[Campaign]:
    """The campaign, which starts Spark when it first needs it."""
    from uplift_spark.campaign import Campaign

    with Campaign(config).closing() as campaign:
        yield campaign


@contextmanager
def open_campaign(config: Config) -> Iterator[Campaign]:
    """The campaign, its lakehouse as by `open_lake`."""
    with open_lake(config.lakehouse) as lake:
        from uplift_spark.campaign import Campaign

        yield Campaign(config, lake)


@contextmanager
def open_lake(lakehouse: Lakehouse) -> Iterator[Lake]:
    """The lakehouse in a session that is stopped at the end if this command started it."""
    from pyspark.sql import SparkSession

    from uplift_spark.lake.session import spark_session
    from uplift_spark.lake.tables import Lake
    from uplift_spark.spark_versions import quiet_queries

    quiet_queries()
    provided = SparkSession.getActiveSession() is not None or "DATABRICKS_RUNTIME_VERSION" in os.environ
    spark = spark_session(lakehouse)
    try:
        yield Lake(spark, lakehouse)
    finally:
        if not provided:
            spark.stop()


ENGINES = ("auto", "duckdb", "spark")


def without_spark(lakehouse: Lakehouse, engine: str, read: Callable[[LocalTables], _T]) -> _T | None:
    """What `read` reads of a folder on this machine; None where Spark is to do it, in a line that says why.

    Args:
        lakehouse: Where the tables are.
        engine: One of ENGINES; `auto` leaves catalogs and remote folders to Spark without a word.
        read: Reads, or raises NotLocal.

    Returns:
        The result of `read`, or None.

    Raises:
        ConfigError: There is no such engine, or `duckdb` cannot do it.
    """
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine!r} is unknown: use {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    if engine == "spark":
        return None
    from uplift_spark.lake.local_tables import NotLocal, local_tables

    tables = local_tables(lakehouse)
    try:
        if tables is not None:
            return read(tables)
        if engine == "auto":
            return None
        raise NotLocal(f"{lakehouse.catalog or lakehouse.path} is no folder of this machine")
    except NotLocal as reason:
        if engine == "duckdb":
            raise ConfigError(f"DuckDB does not read this, because {reason}: use --engine spark") from reason
        err().print(f"starting Spark, because {reason}", soft_wrap=True)
        return None


# --------------------------------------------------------------------------------------------------------------------
# Results, progress and names as text.


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


def words_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Texts below heads; the last column is wrapped, the others are whole."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=position < len(heads) - 1)
    for row in rows:
        table.add_row(*row)
    return table


def rows_table(rows: pa.Table) -> Table:
    """Rows of a query as a table of text, like `rich_table`, but NULL, NaN and the empty text differ."""
    import pyarrow as pa

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, kind in zip(rows.column_names, rows.schema.types, strict=True):
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    columns = [column.to_pylist() for column in rows.columns]
    for row in zip(*columns, strict=True):
        table.add_row(*map(_sql_cell, row))
    return table


def _sql_cell(value: Any) -> str:
    if value is None:
        return "NULL"
    return "NaN" if value != value else cell(value)


def csv_text(rows: pa.Table) -> str:
    """Rows of a query as CSV: an empty cell is NULL, "" the empty text; a text that holds a comma, a quote or a line
    break is in quotes; numbers have all their digits."""
    import pyarrow as pa
    from numpy import float32

    columns = []
    for column in rows.columns:
        if pa.types.is_float32(column.type):  # as a double, 0.1 would be 0.10000000149011612
            values = [None if value is None else float(str(float32(value))) for value in column.to_pylist()]
        else:
            values = column.to_pylist()
        columns.append(map(_csv_cell, values))
    lines = [map(_csv_cell, rows.column_names), *zip(*columns, strict=True)]
    return "".join(",".join(line) + "\n" for line in lines)


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value != value:
        return "NaN"
    text = str(value)
    quoted = text == "" or any(mark in text for mark in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text


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
    """A run, its tables and its details; an answer of a job that did nothing has no run."""
    if result.run_id:
        out().print(f"run {result.run_id}")
    if result.tables:
        print_tables([(t, w.get("rows", 0), w.get("version", "")) for t, w in result.tables.items()], "rows added")
    print_details({key: value for key, value in result.details.items() if key not in result.unprinted})


def print_details(details: Mapping[str, Any]) -> None:
    """One line per detail; a text of several lines and a frame stand by themselves; figures two levels deep are for
    programs."""
    for key, value in details.items():
        if hasattr(value, "itertuples"):
            out().print(rich_table(value))
        elif not isinstance(value, Mapping):
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
    """Errors meant for the user lose their traceback, all others keep it; libraries' chatter is off.

    Files that come to be in the body are the user's alone: tables, models and reports are about people.
    """
    _quiet()
    umask = os.umask(0o077)
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in SPARK_PACKAGES:
            raise
        err().print(f"error: {NO_SPARK}", soft_wrap=True)
        sys.exit(1)
    except UpliftError as error:
        err().print(f"error: {error}", soft_wrap=True)
        sys.exit(1)
    finally:
        os.umask(umask)


def _quiet() -> None:
    if not sys.warnoptions:  # `python -W …` still shows them
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("py4j", "mlflow", "alembic", "pyspark"):
        logging.getLogger(name).setLevel(logging.ERROR)
