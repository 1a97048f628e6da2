"""The command line: one command per job, `demo` for all of them, `sql` and `tables` to look at what they wrote.

Heavy modules (Spark, MLflow) are imported when a command needs them: `uplift --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import uplift_spark
from uplift_spark.operations.printing import program, rich_table
from uplift_spark.vocabulary import ConfigError, DataError, UpliftError

if TYPE_CHECKING:
    import pandas as pd

    from uplift_spark.config import Config, Lakehouse
    from uplift_spark.lake.tables import Lake
    from uplift_spark.operations.runs import Job, JobResult

JOBS = ("ingest", "features", "train", "score", "lift")
_READING = ("select", "with", "from", "values", "table", "describe", "desc", "show", "explain")

ConfOption = Annotated[Path, typer.Option("--conf", help="The campaign's YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in source.units=20000; repeatable."),
]
RunOption = Annotated[
    str | None, typer.Option("--run-id", help="Name of this run; derived from configuration and inputs by default.")
]
LakeConfOption = Annotated[
    Path | None, typer.Option("--conf", help="YAML file naming the lakehouse; default: the folder `lakehouse`.")
]

app = typer.Typer(
    name="uplift",
    help="From raw campaign events in a Delta lakehouse to scored users and lift tables.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command `uplift`: a user's mistake is one sentence on stderr and exit code 1."""
    with _one_sentence():
        app()


def main_job(run: Callable[..., JobResult], command: Callable[..., None] | None = None) -> None:
    """Entry point of `jobs/<verb>.py`, as in `spark-submit jobs/lift.py --conf conf/demo.yaml`.

    Parses --conf, --set and --run-id, or what `command` takes, runs the job, prints its result. Returns on success,
    because a Databricks task counts any SystemExit as a failure; exits with 1 on an UpliftError.
    """

    def usual(conf: ConfOption, set_: SetOption = None, run_id: RunOption = None) -> None:
        _run_jobs([Path(sys.argv[0]).stem], conf, set_, run_id, find=lambda verb: run)

    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(help=run.__doc__)(command or usual)
    try:
        with _one_sentence():
            alone()
    except SystemExit as stop:
        if stop.code:
            raise


def _job_command(verb: str, summary: str) -> None:
    def command(conf: ConfOption, set_: SetOption = None, run_id: RunOption = None) -> None:
        _run_jobs([verb], conf, set_, run_id)

    app.command(verb, help=summary)(command)


_job_command("ingest", "Raw events to bronze tables; bad rows to quarantine.")


@app.command()
def load(
    table: Annotated[str, typer.Argument(help="The raw table, such as bronze.event.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help="File, folder, or Delta table.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv, parquet, json or delta.", show_default=False)],
    conf: ConfOption,
    known_at: Annotated[str | None, typer.Option(help="Column saying when a row was known; else its arrival.")] = None,
    historic: Annotated[bool, typer.Option("--historic", help="Rows were known when they happened.")] = False,
    set_: SetOption = None,
    run_id: RunOption = None,
) -> None:
    """Your own events to a raw table, each row once; bad rows to quarantine."""
    from uplift_spark.operations.loading import Load

    run: Callable[..., JobResult] = _job("load")
    job = partial(run, load=Load(table, source, format_, known_at, historic))
    _run_jobs(["load"], conf, set_, run_id, find=lambda verb: job)


@app.command()
def features(
    conf: ConfOption,
    what: Annotated[str | None, typer.Argument(help="list, describe or stale; without it the job runs.")] = None,
    name: Annotated[str | None, typer.Argument(help="The feature to describe.")] = None,
    set_: SetOption = None,
    run_id: RunOption = None,
) -> None:
    """Events to labels and one training set; or what the feature registry knows."""
    if what is None:
        return _run_jobs(["features"], conf, set_, run_id)
    if what not in ("list", "describe", "stale") or (what == "describe") != (name is not None):
        raise ConfigError("use `uplift features`, or with list, describe NAME or stale after it")
    if run_id is not None:
        raise ConfigError(f"`uplift features {what}` runs no job: leave --run-id out")
    from uplift_spark.operations.features import described, freshness, listed

    with _lake(_lakehouse(conf, set_)) as lake:
        if what == "describe":
            _print_details(described(lake, str(name)))
        else:
            _out().print(rich_table(listed(lake) if what == "list" else freshness(lake)))


@app.command()
def train(
    conf: ConfOption,
    from_run: Annotated[str | None, typer.Option(help="Rebuild the forest of this run and compare it.")] = None,
    set_: SetOption = None,
    run_id: RunOption = None,
) -> None:
    """Grow the causal forest and register it; or rebuild a registered one from the data it came from."""
    if from_run is None:
        return _run_jobs(["train"], conf, set_, run_id)
    if run_id is not None:
        raise ConfigError("--from-run names the run to rebuild: leave --run-id out")
    from uplift_spark.operations.rebuild import rebuild

    return _run_jobs(["train"], conf, set_, from_run, find=lambda verb: rebuild)


_job_command("score", "Effect of every level on every unit.")
_job_command("lift", "Lift tables and curves on the hold-out.")


@app.command()
def demo(conf: ConfOption, set_: SetOption = None) -> None:
    """Run all five jobs and print what came out."""
    where = _where(conf, set_)
    _run_jobs(JOBS, conf, set_, None, after=lambda *done: _print_summary(where, *done))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='A query, as in "SELECT * FROM gold.lift_table".', show_default=False)],
    conf: LakeConfOption = None,
    set_: SetOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print.")] = 50,
    format_: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
) -> None:
    """Print the rows of a query over the tables."""
    if format_ not in ("table", "csv"):
        raise ConfigError(f"--format {format_!r} is unknown: use table or csv")
    if not query.lstrip(" \n\t(").lower().startswith(_READING):
        raise ConfigError("uplift sql only reads: start the query with SELECT or WITH, DESCRIBE, SHOW, EXPLAIN")
    with _lake(_lakehouse(conf, set_)) as lake:
        rows = _query(lake, query, limit + 1)
    shown = rows.head(limit)
    if format_ == "csv":
        sys.stdout.write(shown.to_csv(index=False))
    else:
        _out().print(rich_table(shown))
    if len(rows) > limit:
        _err().print(f"only the first {limit} rows are shown: use --limit for more")


@app.command()
def tables(conf: LakeConfOption = None, set_: SetOption = None) -> None:
    """List the tables with their rows and versions."""
    from uplift_spark.operations.summary import table_sizes

    lakehouse = _lakehouse(conf, set_)
    with _lake(lakehouse) as lake:
        sizes = table_sizes(lake)
    if not sizes:
        raise DataError(f"lakehouse {lakehouse.catalog or lakehouse.path} has no tables yet: run `uplift ingest` first")
    _print_tables(sizes, "rows")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(uplift_spark.__version__)
        raise typer.Exit


@app.callback()
def _common(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """From raw campaign events in a Delta lakehouse to scored users and lift tables."""


@dataclass
class Progress:
    """Says what happens, each line with the seconds since the start, on stderr: stdout is for results."""

    console: Console
    started: float = field(default_factory=time.monotonic)

    def say(self, message: str) -> None:
        """Print one line of progress."""
        self.console.print(f"{time.monotonic() - self.started:7.1f} s  {message}", soft_wrap=True)

    def within(self, step: str) -> Callable[[str], None]:
        """A `say` for one job, which names the job on every line."""
        return lambda message: self.say(f"{step:<8}  {message}")


def _job(verb: str) -> Job:
    return import_module(f"uplift_spark.jobs.{verb}").run


def _run_jobs(
    verbs: Sequence[str],
    conf: Path,
    overrides: list[str] | None,
    run_id: str | None,
    find: Callable[[str], Job] = _job,
    after: Callable[[Lake, Config, list[JobResult]], None] | None = None,
) -> None:
    """Run jobs one after another in one session; what is printed at the end is `after`'s, else the last result."""
    from uplift_spark.config import load_config

    config = load_config(conf, tuple(overrides or ()))
    progress = Progress(_err())
    progress.say("starting Spark")
    with _lake(config.lakehouse) as lake:
        results = []
        for verb in verbs:
            say = progress.within(verb)
            results.append(find(verb)(config, lake, run_id, say))
            for line in _written_lines(results[-1]):
                say(line)
        if after is not None:
            after(lake, config, results)
        else:
            _print_result(results[-1])
    progress.say("done")


def _written_lines(result: JobResult) -> Iterator[str]:
    for name, written in result.tables.items():
        if written.get("skipped"):
            yield f"{name}: already written by this run, no row added"
        else:
            yield f"{name}: {written.get('rows', 0):,} rows"


def _print_result(result: JobResult) -> None:
    _out().print(f"run {result.run_id}")
    if result.tables:
        _print_tables([(t, w.get("rows", 0), w.get("version", "")) for t, w in result.tables.items()], "rows added")
    _print_details(result.details)


def _print_details(details: Mapping[str, Any]) -> None:
    """One line per detail; a text of several lines stands by itself; figures two levels deep are for programs."""
    for key, value in details.items():
        if not isinstance(value, Mapping):
            text = str(value)
            _out().print(f"\n{text}\n" if "\n" in text else f"{key}: {text}", soft_wrap=True)
        elif not any(isinstance(inner, Mapping) for inner in value.values()):
            _out().print(f"{key}: {', '.join(f'{k} {v}' for k, v in value.items())}", soft_wrap=True)


def _print_tables(rows: Sequence[tuple[str, int, Any]], counted: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("table")
    table.add_column(counted, justify="right")
    table.add_column("version", justify="right")
    for name, count, version in rows:
        table.add_row(name, f"{count:,}", str(version))
    _out().print(table)


def _print_summary(where: str, lake: Lake, config: Config, results: list[JobResult]) -> None:
    """The lift job's findings, where every table is, and what to ask next."""
    from uplift_spark.operations.summary import queries_to_try, table_sizes

    out = _out()
    _print_details(results[-1].details)
    out.print(f"\nTables in {config.lakehouse.catalog or Path(config.lakehouse.path).resolve()}", soft_wrap=True)
    _print_tables(table_sizes(lake), "rows")
    out.print("\nThree queries to try")
    for query in queries_to_try(config, results[-1].run_id):
        out.print(f'{program()} sql{where} "{query}"', soft_wrap=True)


def _query(lake: Lake, query: str, limit: int) -> pd.DataFrame:
    """First `limit` rows; what Spark says about a wrong query becomes one sentence."""
    from pyspark.errors import PySparkException

    try:
        return lake.sql(query).limit(limit).toPandas()
    except PySparkException as error:
        raise ConfigError(f"the query does not run: {str(error).strip().splitlines()[0]}") from error


@contextmanager
def _lake(lakehouse: Lakehouse) -> Iterator[Lake]:
    """The lakehouse in a session that is stopped at the end if this command started it."""
    from pyspark.sql import SparkSession

    from uplift_spark.lake.session import spark_session
    from uplift_spark.lake.tables import Lake

    _quiet_spark()
    given = SparkSession.getActiveSession() is not None or "DATABRICKS_RUNTIME_VERSION" in os.environ
    spark = spark_session(lakehouse)
    try:
        yield Lake(spark, lakehouse)
    finally:
        if not given:
            spark.stop()


def _lakehouse(conf: Path | None, overrides: list[str] | None) -> Lakehouse:
    from uplift_spark.config import Lakehouse, load_config

    if conf is not None:
        return load_config(conf, tuple(overrides or ())).lakehouse
    if overrides:
        raise ConfigError("--set changes a configuration: name its file with --conf")
    return Lakehouse()


def _where(conf: Path, overrides: list[str] | None) -> str:
    """The options with which `uplift sql` finds this campaign's tables; none when they are where it looks anyway."""
    if _lakehouse(conf, overrides) == _lakehouse(None, None):
        return ""
    moved = [f" --set {shlex.quote(pair)}" for pair in overrides or () if pair.startswith("lakehouse")]
    return f" --conf {shlex.quote(str(conf))}" + "".join(moved)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Errors meant for the user lose their traceback, all others keep it; libraries' chatter is off."""
    _quiet()
    try:
        yield
    except UpliftError as error:
        _err().print(f"error: {error}", soft_wrap=True)
        sys.exit(1)


def _quiet() -> None:
    if not sys.warnoptions:  # `python -W …` still shows them
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("py4j", "mlflow", "alembic", "pyspark"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _quiet_spark() -> None:
    """PySpark logs every failed query as JSON with the JVM's trace, beside the exception that says the same."""
    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)


def _out() -> Console:
    return _console(stderr=False)


def _err() -> Console:
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    """Plain text: messages hold brackets and paths. Into a file or a pipe nothing is wrapped at 80 columns."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console
