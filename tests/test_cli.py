"""The command line: what is passed to jobs, what is printed, and how errors end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

import uplift_spark
from uplift_spark import cli, console
from uplift_spark.config import Lakehouse
from uplift_spark.console import cell, csv_text, main_job, print_result, rich_table, rows_table
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import erase, export, features, train
from uplift_spark.jobs import load as load_job
from uplift_spark.jobs import readout as readout_job
from uplift_spark.lake.queries import arrow_frame, query_rows
from uplift_spark.runtime import JobResult

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
campaign: spring
source: {kind: simulation, units: 1000}
roles: {outcome: visit, control: none, features: [age, zip]}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "spring.yaml"
    path.write_text(SMALL + f"lakehouse: {{path: {tmp_path / 'lakehouse'}}}\n")
    return path


class Calls(list[dict[str, Any]]):
    """Every call of a job, in order."""

    error: Exception | None = None

    def job(self, verb: str) -> Any:
        """A job that records its call and writes nothing."""

        def run(campaign: Any, progress: Any, run_id: str | None = None) -> JobResult:
            """Pretend."""
            self.append({"verb": verb, "config": campaign.config, "lake": campaign.lake, "run_id": run_id})
            progress("half way [50%]")
            if self.error:
                raise self.error
            written = {f"bronze.{verb}": {"version": 3, "rows": 1234, "skipped": verb == "score"}}
            return JobResult(verb, run_id or f"{verb}-abc", written, {"rejected": 7})

        return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Jobs and lakehouse replaced by records, so that only the command line is tested."""
    recorded = Calls()
    for verb in cli.DEMO_JOBS:
        module = ModuleType(f"uplift_spark.jobs.{verb}")
        module.run = recorded.job(verb)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    @contextmanager
    def no_lake(lakehouse: Lakehouse) -> Iterator[Any]:
        yield SimpleNamespace(lakehouse=lakehouse, planned=lambda coming=0.0: nullcontext(False))

    monkeypatch.setattr(console, "open_lake", no_lake)
    return recorded


def uplift(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit code of the command as the installed script would end."""
    monkeypatch.setattr(sys, "argv", ["uplift", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_help_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert uplift(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    files = [path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__"]
    assert len(files) >= 18
    assert [name for name in (*files, "demo", "sql", "tables") if f"\n  {name.replace('_', '-')} " not in shown] == []
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("verb", ["load", "features", "train", "erase", "canary", "rollback"])
def test_help_of_a_verb_tells_its_own_options_and_the_usual_ones(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {
        "load": "--known-at",
        "features": "stale",
        "train": "--from-run",
        "erase": "--purge",
        "canary": "decide",
        "rollback": "--to",
    }
    assert uplift(monkeypatch, verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f" {verb} [OPTIONS]" in shown.splitlines()[0]
    assert [option for option in (own[verb], "--conf", "--set") if option not in shown] == []
    assert ("--run-id" in shown) == (verb not in ("erase", "canary", "rollback"))  # these name their runs themselves


def test_an_unknown_verb_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert uplift(monkeypatch, "scores", "--conf", "x.yaml") == 2
    assert "'score'" in capsys.readouterr().err


def test_version_is_the_package_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert uplift(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == uplift_spark.__version__


@pytest.mark.parametrize("verb", cli.DEMO_JOBS)
def test_a_command_runs_its_job(
    verb: str, conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("--set", "seed=9", "--set", "source.units=5", "--run-id", "r1")
    assert uplift(monkeypatch, verb, "--conf", conf, *changes) == 0
    (call,) = calls
    assert (call["verb"], call["run_id"], call["config"].seed, call["config"].source.units) == (verb, "r1", 9, 5)
    assert call["lake"].lakehouse == call["config"].lakehouse
    shown = capsys.readouterr()
    assert "run r1" in shown.out
    assert f"bronze.{verb}" in shown.out
    assert "rejected: 7" in shown.out
    assert "half way [50%]" in shown.err
    assert "1,234" in shown.out


@pytest.fixture
def loads(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job `load` replaced by a record of what it is wanted to load."""

    def run(campaign: Any, progress: Any, run_id: str | None = None, *, load: Any) -> JobResult:
        """Pretend."""
        calls.append({"load": load, "run_id": run_id})
        return JobResult("load", run_id or "load-abc", {}, {"good": 3})

    monkeypatch.setattr(load_job, "run", run)
    return run


def test_load_says_what_to_load_as_a_command_and_as_a_job_file(
    conf: Path, calls: Calls, loads: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("bronze.event", "--from", "in", "--format", "csv", "--conf", str(conf), "--run-id", "r1")
    assert uplift(monkeypatch, "load", *arguments, "--known-at", "seen") == 0
    monkeypatch.setattr(sys, "argv", ["jobs/load.py", *arguments, "--historic"])
    main_job(loads, load_job.options)
    first, second = (call["load"] for call in calls)
    assert (first.table, first.source, first.format, first.known_at) == ("bronze.event", "in", "csv", "seen")
    assert (second.historic, second.known_at, calls[1]["run_id"]) == (True, None, "r1")
    assert capsys.readouterr().out.count("good: 3") == 2


def test_erase_and_export_say_what_to_do(
    conf: Path, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(campaign: Any, progress: Any, run_id: str | None = None, **options: Any) -> JobResult:
        calls.append(options)
        return JobResult("any", "any-abc", {}, {"removed": {"bronze.event": 2}})

    for job in (erase, export):
        monkeypatch.setattr(job, "run", run)
    (tmp_path / "ids").write_text("c\n")
    arguments = ("--unit", "a", "--unit", "b", "--units", tmp_path / "ids", "--purge")
    assert uplift(monkeypatch, "erase", "--conf", conf, *arguments) == 0
    assert "removed: bronze.event 2" in capsys.readouterr().out
    assert (calls[0]["erasure"].units, calls[0]["erasure"].purge) == (("a", "b", "c"), True)
    assert uplift(monkeypatch, "export", "--conf", conf, "--to", tmp_path / "out", "--format", "csv") == 0
    wanted = calls[1]["export"]
    assert (wanted.to, wanted.format, wanted.purpose) == (str(tmp_path / "out"), "csv", None)
    for wrong in (("erase", "--unit", " "), ("erase",), ("export", "--to", tmp_path)):
        assert uplift(monkeypatch, *wrong, "--conf", conf) == 1
    assert len(calls) == 2


def test_a_load_that_makes_no_sense_starts_nothing(
    conf: Path, calls: Calls, loads: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uplift(monkeypatch, "load", "gold.x", "--from", "in", "--format", "csv", "--conf", conf) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 'gold.x' is no raw table: choose one of bronze.assignment, ")
    assert len(error.splitlines()) == 1 and not calls


def test_questions_to_the_feature_registry_and_rebuilding_reach_their_jobs() -> None:
    assert features.options(run_id="r1") == {}
    assert features.options("describe", "age")["question"].name == "age"
    assert train.options(run_id="r1") == {"from_run": None, "override": None}
    assert train.options("train-abc") == {"from_run": "train-abc", "override": None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("features", "colour"), "or with list, describe NAME or stale"),
        (("features", "describe"), "or with list, describe NAME or stale"),
        (("features", "list", "age"), "or with list, describe NAME or stale"),
        (("features", "list", "--run-id", "r1"), "`uplift features list` runs no job: leave --run-id out"),
        (("train", "--from-run", "r1", "--run-id", "r2"), "--from-run names the run to rebuild"),
        (("train", "--from-run", "r1", "--override", "why"), "--from-run names the run to rebuild"),
        (("audit", "show", "--run-id", "r1"), "`uplift audit` names its run itself: leave --run-id out"),
        (("erase", "--unit", "u1", "--run-id", "r1"), "`uplift erase` names its run itself: leave --run-id out"),
        (("export", "--to", "/nowhere/x", "--run-id", "r1"), "`uplift export` names its run itself: leave --run-id"),
        (("canary", "status", "--run-id", "r1"), "`uplift canary` names its run itself: leave --run-id out"),
        (("rollback", "--run-id", "r1"), "`uplift rollback` names its run itself: leave --run-id out"),
        (
            ("approve", "1", "--by", "bob", "--reason", "good", "--run-id", "r1"),
            "`uplift approve` names its run itself: leave --run-id out",
        ),
        (("replay", "bronze.event", "--repair", "value"), "must look like COLUMN=SQL"),
    ],
)
def test_options_that_make_no_sense_start_nothing(
    arguments: tuple[str, ...],
    words: str,
    conf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert uplift(monkeypatch, *arguments, "--conf", conf) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_an_answer_without_a_run_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(JobResult("features", "", details={"features": pd.DataFrame({"name": ["age"], "version": [1]})}))
    assert capsys.readouterr().out.split() == ["name", "version", "age", "1"]


def test_progress_tells_a_skipped_write(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uplift(monkeypatch, "score", "--conf", conf) == 0
    assert calls[0]["run_id"] is None
    assert "bronze.score: already written by this run" in capsys.readouterr().err


def test_a_user_s_mistake_is_one_sentence(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.error = DataError("table bronze.assignment has no column 'arm' " + "x" * 200)
    assert uplift(monkeypatch, "ingest", "--conf", conf) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {calls.error}"


@pytest.mark.parametrize("arguments", [("--conf", "none.yaml"), ("--conf", "{conf}", "--set", "colour=1")])
def test_a_wrong_configuration_runs_nothing(
    arguments: tuple[str, ...],
    conf: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert uplift(monkeypatch, "ingest", *(a.format(conf=conf) for a in arguments)) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: configuration ")
    assert len(shown.err.splitlines()) == 1
    assert not calls


def test_an_old_name_of_a_key_is_a_warning(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uplift(monkeypatch, "ingest", "--conf", conf, "--set", "policy.keep_out=0.1") == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"warning: configuration {conf}: policy.keep_out is now called policy.global_holdout")
    assert calls[0]["config"].policy.global_holdout == 0.1


def test_a_missing_option_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert uplift(monkeypatch, "ingest") == 2
    assert "--conf" in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    calls.error = ZeroDivisionError("a bug")
    monkeypatch.setattr(sys, "argv", ["uplift", "ingest", "--conf", str(conf)])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


def test_a_job_file_returns_on_success(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/jobs/lift.py", "--conf", str(conf), "--run-id", "r2"])
    main_job(calls.job("lift"))
    assert calls[0]["run_id"] == "r2"
    assert "run r2" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code"), [(["--conf", "none.yaml"], 1), ([], 2)])
def test_a_job_file_exits_on_errors(
    arguments: list[str], code: int, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/lift.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        main_job(calls.job("lift"))
    assert stop.value.code == code


def test_demo_runs_all_jobs_in_order_in_one_lake(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(cli, "_print_summary", lambda *arguments: printed.append(arguments))
    assert uplift(monkeypatch, "demo", "--conf", conf, "--set", "lakehouse.path=a b") == 0
    assert [call["verb"] for call in calls] == list(cli.DEMO_JOBS)
    assert len({id(call["lake"]) for call in calls}) == 1
    ((where, follower, campaign, results),) = printed
    assert where == f" --conf {conf} --set 'lakehouse.path=a b'"
    assert campaign.name == "spring" and follower is None
    assert [result.job for result in results] == list(cli.DEMO_JOBS)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if " s  " not in line] == []


TRIAL = """
experiment:
  salt: spring-2026
  arms: {none: 0.5, 5%: 0.5}
  metrics: [{name: visit, kind: conversion, role: primary}]
  start: 2026-03-02
  end: 2026-03-29
  units: 1000
  plan: obf
  analyses: [0.5, 1]
"""


def test_demo_reads_a_trial_as_planned_once_its_rows_are_there(
    conf: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(campaign: Any, progress: Any, run_id: str | None = None, *, reading: Any) -> JobResult:
        calls.append({"verb": "readout", "as_of": f"{reading.as_of:%Y-%m-%d}"})
        return JobResult("readout", "r")

    monkeypatch.setattr(readout_job, "run", read)
    monkeypatch.setattr(cli, "_print_summary", lambda *_: None)
    conf.write_text(conf.read_text() + TRIAL)
    assert uplift(monkeypatch, "demo", "--conf", conf) == 0
    assert [call["verb"] for call in calls] == [
        *("ingest", "features", "readout", "readout", "train", "score", "lift", "report"),
    ]
    # Half of the units came in two weeks, all in four; their outcomes are complete two weeks later.
    assert [call["as_of"] for call in calls if call["verb"] == "readout"] == ["2026-03-30", "2026-04-13"]


def test_sql_needs_no_options_for_the_default_lakehouse(tmp_path: Path) -> None:
    path = tmp_path / "spring.yaml"
    path.write_text(SMALL)
    assert cli._where(path, ["seed=8"]) == ""


@pytest.mark.parametrize("query", ["drop table gold.lift_table", "DELETE FROM gold.lift_table", "", "; select 1"])
def test_sql_refuses_what_does_not_read(
    query: str, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uplift(monkeypatch, "sql", query) == 1
    assert "only reads" in capsys.readouterr().err


def test_sql_refuses_an_unknown_format(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uplift(monkeypatch, "sql", "select 1", "--format", "xml") == 1
    assert "use table or csv" in capsys.readouterr().err


def test_overrides_without_a_file_are_refused() -> None:
    with pytest.raises(ConfigError, match="--conf"):
        cli._lakehouse(None, ["lakehouse.path=x"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (0.0123456, "0.01235"), (12345.6, "12,346"), (1234, "1,234"), (True, "True")],
)
def test_cells(value: Any, text: str) -> None:
    assert cell(value) == text


def test_a_frame_becomes_a_table_of_text() -> None:
    table = rich_table(pd.DataFrame({"arm": ["a", None], "n": [1000, 2]}))
    assert [column.justify for column in table.columns] == ["left", "right"]
    assert [list(column.cells) for column in table.columns] == [["a", ""], ["1,000", "2"]]


ODD = pa.table(
    [
        pa.array([9223372036854775707, None]), pa.array([None, ""]), pa.array([float("nan"), None]),
        pa.array([0.1, None], pa.float32()), pa.array([Decimal("1.10"), None]), pa.array(['a,"b"\n', " x"]),
    ],
    names=["n", "t", "f", "g", "d", "d"],
)  # fmt: skip


def test_rows_as_csv_keep_every_digit_and_tell_null_from_nothing() -> None:
    assert csv_text(ODD) == 'n,t,f,g,d,d\n9223372036854775707,,NaN,0.1,1.10,"a,""b""\n"\n,"",,,, x\n'
    assert csv_text(ODD.slice(0, 0)) == "n,t,f,g,d,d\n"


def test_rows_as_a_table_tell_null_from_nothing() -> None:
    cells = [list(column.cells) for column in rows_table(ODD).columns]
    assert cells[:3] == [["9,223,372,036,854,775,707", "NULL"], ["NULL", ""], ["NaN", "NULL"]]


def test_a_frame_of_rows_rounds_nothing() -> None:
    times = pa.array([datetime(1500, 1, 1), datetime(9999, 12, 31)], pa.timestamp("us", "UTC"))
    nested = pa.array([[9223372036854775707, None], None])
    frame = arrow_frame(pa.table([ODD["n"], times, nested, ODD.column(4)], ["n", "s", "l", "l"]))
    assert frame["n"].tolist() == [9223372036854775707, pd.NA] and frame.columns.tolist() == ["n", "s", "l", "l"]
    assert [str(time) for time in frame["s"]] == ["1500-01-01 00:00:00", "9999-12-31 00:00:00"]
    assert list(frame.iloc[0, 2]) == [9223372036854775707, None] and frame.iloc[0, 3] == Decimal("1.10")


@pytest.mark.parametrize("provided", [True, False])
def test_a_session_is_stopped_by_who_started_it(provided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pytest.importorskip("pyspark.sql").SparkSession
    stopped: list[bool] = []
    spark = SimpleNamespace(stop=lambda: stopped.append(True))
    monkeypatch.setattr(session, "getActiveSession", lambda: spark if provided else None)
    monkeypatch.setattr("uplift_spark.lake.session.spark_session", lambda lakehouse: spark)
    with console.open_lake(Lakehouse()) as lake:
        assert lake.spark is spark
        assert not stopped
    assert stopped == ([] if provided else [True])


@pytest.mark.spark
def test_sql_and_tables_show_what_is_in_the_lakehouse(
    lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spring.yaml"
    path.write_text(SMALL)
    monkeypatch.setattr(cli, "_lakehouse", lambda *_: lake.lakehouse)
    rows = lake.spark.createDataFrame([("a", 1.5), ("b", None)], "arm string, uplift double")
    lake.write("gold.toy", rows, "r1")

    assert uplift(monkeypatch, "tables", "--conf", path) == 0
    assert capsys.readouterr().out.split() == ["table", "rows", "version", "gold.toy", "2", "0"]

    kinds = (
        "select arm, arm as arm, if(arm = 'a', 9223372036854775707, null) n, if(arm = 'a', null, '') t, "
        "if(arm = 'a', double('nan'), null) f, float(0.1) g, date'1500-01-01' d, timestamp'9999-12-31 23:59:59.5' s, "
        "timestamp_ntz'0001-01-01 00:00:00' z, 1.10BD c, X'00ff' b, map('k', array(date'1500-01-01', null)) m, "
        "struct(9223372036854775707 as x, cast(null as int) as y) u, interval '1-2' year to month i, "
        "date'+12000-01-01' far, null v, true w from gold.toy order by gold.toy.arm"
    )
    assert uplift(monkeypatch, "sql", kinds, "--format", "csv") == 0
    same = (
        '0.1,1500-01-01,9999-12-31 23:59:59.5,0001-01-01 00:00:00,1.10,00FF,"{""k"":[""1500-01-01"",null]}",'
        '"{""x"":9223372036854775707,""y"":null}",INTERVAL \'1-2\' YEAR TO MONTH,+12000-01-01,,True'
    )
    header = "arm,arm,n,t,f,g,d,s,z,c,b,m,u,i,far,v,w"
    expected = f'{header}\na,a,9223372036854775707,,NaN,{same}\nb,b,,"",,{same}\n'
    assert capsys.readouterr().out == expected
    assert uplift(monkeypatch, "sql", "select 9223372036854775707 n, null v, '' e", "--limit", "1") == 0
    assert capsys.readouterr().out.split() == ["n", "v", "e", "9,223,372,036,854,775,707", "NULL"]
    frame = arrow_frame(query_rows(lake, kinds))
    assert frame["n"].tolist() == [9223372036854775707, pd.NA] and frame["d"][0] == date(1500, 1, 1)
    assert str(frame["s"][1]) == "9999-12-31 23:59:59.500000" and frame["c"][0] == Decimal("1.10")
    assert frame["far"][0] == "12000-01-01" and frame["u"][0]["x"] == 9223372036854775707

    query = "select arm, uplift from gold.toy order by arm"
    assert uplift(monkeypatch, "sql", query, "--format", "csv", "--limit", "1") == 0
    shown = capsys.readouterr()
    assert shown.out == "arm,uplift\na,1.5\n"
    assert "only the first 1 rows" in shown.err

    assert uplift(monkeypatch, "sql", "select nothing from gold.toy") == 1
    error = capsys.readouterr().err
    assert "nothing" in error
    assert len(error.splitlines()) == 1


def test_the_installed_command_fails_in_one_line(tmp_path: Path) -> None:
    code = "from uplift_spark.cli import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, "lift", "--conf", "none.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "error: configuration none.yaml cannot be read: No such file or directory\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose lakehouse has one table; Spark must not start."""
    write_deltalake(tmp_path / "lake" / "gold" / "toy", pa.table({"arm": ["a", None], "uplift": [1.5, float("nan")]}))

    @contextmanager
    def no_spark(lakehouse: Lakehouse) -> Iterator[Any]:
        raise DataError("Spark was started")
        yield

    monkeypatch.setattr(console, "open_lake", no_spark)
    path = tmp_path / "spring.yaml"
    path.write_text(SMALL + f"lakehouse: {{path: {tmp_path / 'lake'}}}\n")
    return path


def test_a_folder_is_read_without_spark(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT arm, uplift FROM gold.toy ORDER BY arm"
    assert uplift(monkeypatch, "sql", query, "--conf", folder, "--format", "csv", "--limit", "1") == 0
    assert capsys.readouterr() == ("arm,uplift\n,NaN\n", "only the first 1 rows are shown: use --limit for more\n")
    assert uplift(monkeypatch, "tables", "--conf", folder) == 0
    assert capsys.readouterr().out.split() == ["table", "rows", "version", "gold.toy", "2", "0"]


@pytest.mark.parametrize(
    ("engine", "sentences"),
    [
        ("auto", ["starting Spark, because function percentile is not", "error: Spark was started"]),
        ("spark", ["error: Spark was started"]),
        ("duckdb", ["DuckDB does not read this, because function percentile is not", "use --engine spark"]),
        ("dukdb", ["--engine 'dukdb' is unknown: use auto, duckdb or spark"]),
    ],
)
def test_what_is_left_to_spark_is_said(
    folder: Path, engine: str, sentences: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "SELECT percentile(uplift, 0.5) AS p FROM gold.toy"
    assert uplift(monkeypatch, "sql", query, "--conf", folder, "--engine", engine) == 1
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences) and len(said.splitlines()) == len(sentences) - (
        engine == "duckdb"
    )


def test_catalogs_are_spark_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = ["--conf", folder, "--set", "lakehouse.catalog=main"]
    assert uplift(monkeypatch, "tables", *of) == 1
    assert capsys.readouterr().err == "error: Spark was started\n"
    assert uplift(monkeypatch, "tables", *of, "--engine", "duckdb") == 1
    assert "main is no folder of this machine" in capsys.readouterr().err


def test_files_that_a_command_makes_are_the_user_s_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with console.one_sentence():
            (tmp_path / "private").touch()
        (tmp_path / "usual").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "usual": 0o644}
