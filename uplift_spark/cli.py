"""The command line: the verbs in jobs/, `demo` for a whole campaign, `sql` and `tables` to read what they wrote.

A job is imported when it is called: `uplift --help` reads the first line of each file and answers at once.
"""

from __future__ import annotations

import ast
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import uplift_spark
from uplift_spark import console
from uplift_spark.console import (
    ConfOption,
    SetOption,
    csv_text,
    err,
    out,
    print_tables,
    program,
    rows_table,
)
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import DEMO_JOBS, whole_line

if TYPE_CHECKING:
    import pyarrow as pa

    from uplift_spark.campaign import Campaign
    from uplift_spark.config import Config, Lakehouse
    from uplift_spark.lake.local_tables import LocalTables
    from uplift_spark.runtime import JobResult

PACKAGE = "uplift_spark.jobs"

EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="auto, duckdb or spark. auto reads folders of this machine by DuckDB, without Java, and leaves to Spark "
        "catalogs, big scans and what DuckDB would answer otherwise.",
    ),
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


_OF_FOLLOWER = ("ingest", "features", "readout")
"""Jobs that `demo` runs of a targeted campaign, whose plan is that of the trial before."""


def main() -> None:
    """Entry point of the command `uplift`: a user's mistake is one sentence on stderr and exit code 1."""
    with console.one_sentence():
        app()


def verbs() -> dict[str, str]:
    """{verb: what it does, in a line} of every file in jobs/, those of the demo first; no job is imported."""
    names = [module.name for module in pkgutil.iter_modules(import_module(PACKAGE).__path__)]
    later = [name for name in sorted(names) if name not in DEMO_JOBS]
    return {name: _first_line(pkgutil.get_data(PACKAGE, f"{name}.py")) for name in (*DEMO_JOBS, *later)}


def _first_line(source: bytes | None) -> str:
    return (ast.get_docstring(ast.parse(source or b"")) or "").partition("\n")[0]


def _add_verb(verb: str, summary: str) -> None:
    def call(context: typer.Context) -> None:
        job = import_module(f"{PACKAGE}.{verb}")
        if hasattr(job, "command"):  # it runs before there is a session and a campaign
            command = console.own_command(verb, job.command, job.__doc__)
        else:
            command = console.job_command(verb, job.run, getattr(job, "options", console.no_options))
        command(args=context.args, prog_name=context.command_path)

    # What stands behind the verb, --help included, is the job's own.
    everything = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
    app.command(verb.replace("_", "-"), short_help=summary, add_help_option=False, context_settings=everything)(call)


for _verb, _summary in verbs().items():
    _add_verb(_verb, _summary)


@app.command()
def demo(conf: ConfOption, set_: SetOption = None) -> None:
    """Run a whole campaign; print whom to treat."""
    config = console.read_config(conf, set_, "demo")
    jobs: dict[str, Any] = {}
    for verb in whole_line(config):
        jobs[verb] = partial(_run_verb, verb)
        if verb == "features" and config.experiment is not None:  # it is read once its rows are there, as planned
            jobs |= import_module(f"{PACKAGE}.readout").planned_jobs(config)
    follower = None
    if config.experiment is not None and config.experiment.then is not None:
        follower = console.read_config(conf.parent / config.experiment.then, set_, *_OF_FOLLOWER)
        jobs |= {f"{verb} {follower.campaign}": partial(_run_as, follower, verb) for verb in _OF_FOLLOWER}
    after = partial(_print_summary, _where(conf, set_), follower)
    console.run_jobs(jobs, conf, set_, None, after=after)


@app.command()
def quickstart(
    file: Annotated[
        str,
        typer.Argument(
            help="CSV, Parquet or Stata; a folder or a pattern; a Delta folder; a table's name; - for a pipe.",
            show_default=False,
        ),
    ],
    treatment: Annotated[str, typer.Option(help="Column of the level that a unit got.", show_default=False)],
    outcome: Annotated[list[str], typer.Option(help="Column, or COLUMN=VALUE; the first is trained; repeatable.")],
    control: Annotated[str | None, typer.Option(help="Level that the others are compared with.")] = None,
    unit: Annotated[str | None, typer.Option(help="Column of the unit's id.")] = None,
    direction: Annotated[
        str | None, typer.Option(help="increase, or decrease where less is better; by the outcome's name by default.")
    ] = None,
    value: Annotated[float | None, typer.Option(help="Money that one unit of the outcome is worth.")] = None,
    cost: Annotated[list[str] | None, typer.Option(help="LEVEL=MONEY a unit; MONEY alone for one of a dose.")] = None,
    budget: Annotated[float | None, typer.Option(help="Money to spend.")] = None,
    propensity: Annotated[str | None, typer.Option(help="Column: probability of the level received.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Column of the group that was treated as one.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Column to keep as a feature; repeatable.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column that is no feature; repeatable.")] = None,
    randomised: Annotated[
        bool, typer.Option("--randomised/--not-randomised", help="Whether units were treated at random.")
    ] = True,
    catalog: Annotated[str | None, typer.Option(help="Catalog to write to in place of the folder lakehouse/.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the campaign; by default the file's.")] = None,
    conf_only: Annotated[bool, typer.Option("--conf-only", help="Write the configuration and stop.")] = False,
) -> None:
    """From a finished campaign's file or table to its report."""
    from uplift_spark.config import Lakehouse
    from uplift_spark.events.guesses import Answers
    from uplift_spark.events.quickstart import (
        LAKEHOUSE,
        check_header,
        checked_direction,
        is_table,
        parsed_costs,
        prepare_conf,
        stage_stream,
    )

    answers = Answers(
        treatment, tuple(outcome), control, unit, checked_direction(direction), value, parsed_costs(cost), budget,
        propensity, tuple(feature or ()), tuple(drop or ()), randomised, cluster,
    )  # fmt: skip
    source = stage_stream(sys.stdin.buffer, Path(), name or "stdin") if file == "-" else file
    with ExitStack() as stack:
        lake = None
        if catalog or (source == file and is_table(file)):  # else nothing needs Spark before the jobs do
            check_header(file, answers)
            err().print("starting Spark")
            lake = stack.enter_context(console.open_lake(Lakehouse(LAKEHOUSE, catalog)))
        conf, _ = prepare_conf(source, answers, Path(), name, lambda line: err().print(line, soft_wrap=True), lake)
        err().print(f"wrote {conf}")
        if conf_only:
            return
        jobs = {verb: partial(_run_verb, verb) for verb in whole_line(console.read_config(conf, None, "quickstart"))}
        jobs["ingest"] = partial(jobs["ingest"], replace=True)
        console.run_jobs(jobs, conf, None, None, after=partial(_print_summary, _where(conf, None), None))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='A query, as in "SELECT * FROM gold.lift_table".', show_default=False)],
    conf: LakeConfOption = None,
    set_: SetOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print.")] = 50,
    format_: Annotated[str, typer.Option("--format", help="table or csv.")] = "table",
    engine: EngineOption = "auto",
) -> None:
    """Print the rows of a query, which can only read.

    In CSV an empty cell is NULL, "" an empty text and NaN no number; times are in UTC, bytes in hexadecimal digits,
    nested values in JSON.
    """
    if format_ not in ("table", "csv"):
        raise ConfigError(f"--format {format_!r} is unknown: use table or csv")
    from uplift_spark.sql_gate import checked_query

    lakehouse = _lakehouse(conf, set_, "sql")
    checked_query(query, lakehouse.catalog)  # before anything is started
    rows = console.without_spark(lakehouse, engine, lambda tables: _local_rows(tables, query, limit + 1))
    if rows is None:
        from uplift_spark.lake.queries import query_rows

        with console.open_lake(lakehouse) as lake:
            rows = query_rows(lake, query, limit + 1, texts_only=True)
    shown = rows.slice(0, limit)
    if format_ == "csv":
        sys.stdout.write(csv_text(shown))
    else:
        out().print(rows_table(shown))
    if not len(rows):
        err().print("no row: nothing in this lakehouse fits the query")
    if len(rows) > limit:
        err().print(f"only the first {limit} rows are shown: use --limit for more")


def _local_rows(tables: LocalTables, query: str, limit: int) -> pa.Table:
    from uplift_spark.lake.duck import as_texts, local_query

    return as_texts(local_query(tables, query, limit))


@app.command()
def tables(conf: LakeConfOption = None, set_: SetOption = None, engine: EngineOption = "auto") -> None:
    """List the tables with their rows and versions."""
    lakehouse = _lakehouse(conf, set_, "tables")
    sizes = console.without_spark(lakehouse, engine, lambda tables: tables.sizes())
    if sizes is None:
        from uplift_spark.lake.queries import table_sizes

        with console.open_lake(lakehouse) as lake:
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


def _run_verb(verb: str, *arguments: Any, **options: Any) -> JobResult:
    """A job, imported when its turn comes: Spark starts meanwhile."""
    result: JobResult = import_module(f"{PACKAGE}.{verb}").run(*arguments, **options)
    return result


def _run_as(config: Config, verb: str, campaign: Campaign, *arguments: Any) -> JobResult:
    """A job of another campaign in the same lakehouse."""
    other = campaign.changed(config)
    with other.planned(verb):
        return _run_verb(verb, other, *arguments)


def _print_summary(where: str, follower: Config | None, campaign: Campaign, results: list[JobResult]) -> None:
    """Where to look further, whom to treat within the budget, what to do and why, and where the report is; of a trial
    what it showed, and what the targeted campaign after it brought."""
    from uplift_spark.sections.source import Simulation

    last, results = results[-1], results if follower is None else results[: -len(_OF_FOLLOWER)]
    config, of_job = campaign.config, {result.job: result for result in results}
    plan, report = of_job.get("policy"), of_job["report"].details
    place = config.lakehouse.catalog or Path(config.lakehouse.path).resolve()
    if config.experiment is not None and isinstance(config.source, Simulation):
        out().print("The trial, reading by reading, beside the truth")
        out().print(console.rich_table(import_module(f"{PACKAGE}.readout").readings_beside_truth(campaign, results)))
    if follower is not None:
        out().print("The targeted campaign: its policy against giving all units a level, beside the truth")
        shown = import_module(f"{PACKAGE}.readout").policy_beside_truth(campaign.changed(follower), last)
        out().print(console.rich_table(shown))
    lines = [f"Tables: {len(campaign.lake.tables())} in {place}, listed by `{program()} tables{where}`"]
    for query in campaign.queries_to_try(of_job["lift"].run_id, plan.run_id if plan else None):
        lines += ["", f'{program()} sql{where} "{query}"']
    lines += ["", str(plan.details["summary"])] if plan else []
    lines += ["", "The decision", str(report["summary"]), "", f"Report: {report['latest']}"]
    for line in lines:
        out().print(line, soft_wrap=True)


def _lakehouse(conf: Path | None, overrides: Sequence[str] | None, *verbs: str) -> Lakehouse:
    from uplift_spark.config import Lakehouse

    if conf is None and overrides:
        raise ConfigError("--set changes a configuration: name its file with --conf")
    return Lakehouse() if conf is None else console.read_config(conf, overrides, *verbs).lakehouse


def _where(conf: Path, overrides: Sequence[str] | None) -> str:
    """The options with which `uplift sql` finds this campaign's tables; none when they are where it looks anyway."""
    if _lakehouse(conf, overrides) == _lakehouse(None, None):
        return ""
    moved = [f" --set {shlex.quote(pair)}" for pair in overrides or () if pair.startswith("lakehouse")]
    return f" --conf {shlex.quote(str(conf))}" + "".join(moved)


if __name__ == "__main__":
    main()
