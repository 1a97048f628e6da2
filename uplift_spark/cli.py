"""The command line: one command per job, `demo` for all of them, `sql` and `tables` to look at what they wrote.

Heavy modules (Spark, MLflow) are imported when a command needs them: `uplift --help` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import uplift_spark
from uplift_spark.console import (
    Progress,
    err,
    one_sentence,
    out,
    print_details,
    print_result,
    print_tables,
    program,
    quiet_spark,
    rich_table,
    written_lines,
)
from uplift_spark.errors import ConfigError, DataError

if TYPE_CHECKING:
    from uplift_spark.campaign import Campaign
    from uplift_spark.config import Config, Lakehouse
    from uplift_spark.lake.tables import Lake
    from uplift_spark.runtime import Job, JobResult, ProgressCallback


JOBS = ("ingest", "features", "train", "score", "lift")

ConfOption = Annotated[Path, typer.Option("--conf", help="The campaign's YAML file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in source.units=20000; repeatable."),
]
RunOption = Annotated[
    str | None, typer.Option("--run-id", help="Name of this run; derived from configuration and inputs by default.")
]
LakeConfOption = Annotated[Path | None, typer.Option("--conf", help="YAML naming the lakehouse (`lakehouse`).")]

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
    with one_sentence():
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
        with one_sentence():
            alone()
    except SystemExit as stop:
        if stop.code:
            raise


def _job_command(verb: str, summary: str) -> None:
    def command(conf: ConfOption, set_: SetOption = None, run_id: RunOption = None) -> None:
        _run_jobs([verb], conf, set_, run_id)

    app.command(verb, help=summary)(command)


_job_command("ingest", "Raw events to bronze tables; bad rows to quarantine.")


@dataclass(frozen=True)
class JobOptions:
    """What every job is asked with."""

    conf: Path
    overrides: list[str] | None
    run_id: str | None

    def run(self, verb: str, **how: Any) -> None:
        """Run one job, `how` being arguments of its own."""
        job: Callable[..., JobResult] = _job(verb)
        _run_jobs([verb], self.conf, self.overrides, self.run_id, find=lambda _: partial(job, **how))


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(asked, ...)` as a command that takes --conf, --set and --run-id in place of `asked`."""

    def taking(conf: ConfOption, set_: SetOption = None, run_id: RunOption = None, **how: Any) -> None:
        command(JobOptions(conf, set_, run_id), **how)

    usual = [p for p in signature(taking, eval_str=True).parameters.values() if p.name != "how"]
    own = list(signature(command, eval_str=True).parameters.values())[1:]
    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*own, *usual)]
    taking.__name__, taking.__doc__ = command.__name__, command.__doc__
    taking.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
    return taking


TableArgument = Annotated[str, typer.Argument(help="The raw table, such as bronze.event.", show_default=False)]
KnownAtOption = Annotated[str | None, typer.Option(help="Column saying when a row was known; else its arrival.")]
HistoricOption = Annotated[bool, typer.Option("--historic", help="Rows were known when they happened.")]


@app.command()
@_with_options
def load(
    options: JobOptions,
    table: TableArgument,
    source: Annotated[str, typer.Option("--from", help="File, folder, or Delta table.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv, parquet, json or delta.", show_default=False)],
    known_at: KnownAtOption = None,
    historic: HistoricOption = False,
    new_column: Annotated[list[str] | None, typer.Option(help="Column the table gets; repeatable.")] = None,
) -> None:
    """Your own events to a raw table, each row once; bad rows to quarantine."""
    from uplift_spark.events.load import Load

    options.run("load", load=Load(table, source, format_, known_at, historic, tuple(new_column or ())))


@app.command()
@_with_options
def stream(
    options: JobOptions,
    table: TableArgument,
    source: Annotated[str, typer.Option("--from", help="Delta table with a change data feed.", show_default=False)],
    known_at: KnownAtOption = None,
    historic: HistoricOption = False,
) -> None:
    """New events of a Delta table to a raw table, each row once, by Structured Streaming; bad rows to quarantine."""
    from uplift_spark.events.load import Load

    options.run("stream", load=Load(table, source, "delta", known_at, historic))


@app.command()
@_with_options
def replay(
    options: JobOptions,
    table: TableArgument,
    rule: Annotated[str | None, typer.Option(help="Only rows that broke this rule first.")] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=SQL", help="A column from the row's fields, all texts; repeatable."),
    ] = None,
) -> None:
    """Rows of bronze.quarantine, repaired, to the raw table they were meant for, each once."""
    from uplift_spark.jobs.replay import Replay  # type: ignore[import-not-found]

    options.run("replay", replay=Replay.of(table, rule, repair or ()))


@app.command()
@_with_options
def optimize(
    options: JobOptions, table: Annotated[list[str] | None, typer.Option(help="Only this table; repeatable.")] = None
) -> None:
    """Merge small files and order rows for queries; no row changes."""
    options.run("optimize", tables=tuple(table or ()))


@app.command()
@_with_options
def erase(
    options: JobOptions,
    unit: Annotated[list[str] | None, typer.Option("--unit", help="Id of a unit; repeatable.")] = None,
    units: Annotated[Path | None, typer.Option("--units", help="File with one id a line.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove what deleted rows left in files and logs.")] = False,
) -> None:
    """Units out of every table and out of the models in use."""
    from uplift_spark.governance.erasure import Erasure

    options.run("erase", erasure=Erasure.from_options(unit, units, purge))


@app.command()
@_with_options
def export(
    options: JobOptions,
    to: Annotated[str, typer.Option("--to", help="Folder to make; must not be there.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "parquet",
    purpose: Annotated[str | None, typer.Option(help="Purpose of consent; default: consent.purpose.")] = None,
) -> None:
    """The champion's newest scores of units that may be contacted now."""
    from uplift_spark.jobs.export import Export  # type: ignore[import-not-found]

    options.run("export", export=Export(to, format_, purpose))


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
    from uplift_spark.events.features import described, freshness, listed

    with _lake(_lakehouse(conf, set_)) as lake:
        if what == "describe":
            print_details(described(lake, str(name)))
        else:
            out().print(rich_table(listed(lake) if what == "list" else freshness(lake)))


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
    from uplift_spark.registry.models import rebuild
    from uplift_spark.runtime import no_progress

    def again(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
        return rebuild(campaign.config, campaign.lake, run_id, progress)

    return _run_jobs(["train"], conf, set_, from_run, find=lambda verb: again)


_job_command("nuisances", "For campaigns that were no trial: what decided who was treated, and scores.")
_job_command("refresh", "New labels into the champion's trees, without a regrow.")
_job_command("score", "Effect of every level on every unit.")
_job_command("lift", "Lift tables and curves on the hold-out.")
_job_command("compare", "The champion against other learners on one hold-out.")
_job_command("tune", "Which arguments of the forest tell effects best.")
_job_command("policy", "Whom to treat with what, within budget and limits.")
_job_command("simulate", "What the plan would bring under other budgets, costs and levels.")
_job_command("tree", "Whom to treat with what, by a few questions that people can read.")


@app.command()
def demo(conf: ConfOption, set_: SetOption = None) -> None:
    """Run all five jobs and print what came out."""
    _run_jobs(JOBS, conf, set_, None, after=partial(_print_summary, _where(conf, set_)))


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
    from uplift_spark.campaign import check_reads, first_rows

    check_reads(query)
    with _lake(_lakehouse(conf, set_)) as lake:
        rows = first_rows(lake, query, limit + 1)
    shown = rows.head(limit)
    if format_ == "csv":
        sys.stdout.write(shown.to_csv(index=False))
    else:
        out().print(rich_table(shown))
    if len(rows) > limit:
        err().print(f"only the first {limit} rows are shown: use --limit for more")


@app.command()
def tables(conf: LakeConfOption = None, set_: SetOption = None) -> None:
    """List the tables with their rows and versions."""
    from uplift_spark.campaign import table_sizes

    lakehouse = _lakehouse(conf, set_)
    with _lake(lakehouse) as lake:
        sizes = table_sizes(lake)
    if not sizes:
        raise DataError(f"lakehouse {lakehouse.catalog or lakehouse.path} has no tables yet: run `uplift ingest` first")
    print_tables(sizes, "rows")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(uplift_spark.__version__)
        raise typer.Exit


@app.callback()
def _common(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """From raw campaign events in a Delta lakehouse to scored users and lift tables."""


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
    from uplift_spark.campaign import Campaign
    from uplift_spark.config import load_config

    config = load_config(conf, tuple(overrides or ()))
    reporter = Progress(err())
    reporter.report("starting Spark")
    with _lake(config.lakehouse) as lake:
        results = []
        for verb in verbs:
            progress = reporter.within(verb)
            results.append(find(verb)(Campaign(config, lake), progress, run_id))
            for line in written_lines(results[-1]):
                progress(line)
        after(lake, config, results) if after else print_result(results[-1])
    reporter.report("done")


def _print_summary(where: str, lake: Lake, config: Config, results: list[JobResult]) -> None:
    """The lift job's findings, where every table is, and what to ask next."""
    from uplift_spark.campaign import queries_to_try, table_sizes

    console = out()
    print_details(results[-1].details)
    console.print(f"\nTables in {config.lakehouse.catalog or Path(config.lakehouse.path).resolve()}", soft_wrap=True)
    print_tables(table_sizes(lake), "rows")
    console.print("\nThree queries to try")
    for query in queries_to_try(config, results[-1].run_id):
        console.print(f'{program()} sql{where} "{query}"', soft_wrap=True)


@contextmanager
def _lake(lakehouse: Lakehouse) -> Iterator[Lake]:
    """The lakehouse in a session that is stopped at the end if this command started it."""
    from pyspark.sql import SparkSession

    from uplift_spark.lake.session import spark_session
    from uplift_spark.lake.tables import Lake

    quiet_spark()
    provided = SparkSession.getActiveSession() is not None or "DATABRICKS_RUNTIME_VERSION" in os.environ
    spark = spark_session(lakehouse)
    try:
        yield Lake(spark, lakehouse)
    finally:
        if not provided:
            spark.stop()


def _lakehouse(conf: Path | None, overrides: list[str] | None) -> Lakehouse:
    from uplift_spark.config import Lakehouse, load_config

    if conf is None and overrides:
        raise ConfigError("--set changes a configuration: name its file with --conf")
    return Lakehouse() if conf is None else load_config(conf, tuple(overrides or ())).lakehouse


def _where(conf: Path, overrides: list[str] | None) -> str:
    """The options with which `uplift sql` finds this campaign's tables; none when they are where it looks anyway."""
    if _lakehouse(conf, overrides) == _lakehouse(None, None):
        return ""
    moved = [f" --set {shlex.quote(pair)}" for pair in overrides or () if pair.startswith("lakehouse")]
    return f" --conf {shlex.quote(str(conf))}" + "".join(moved)
