"""The files in jobs/: each runs as a program, and the bundle passes only options that they take."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from uplift_spark.cli import verbs
from uplift_spark.console import job_command, no_options

ROOT = Path(__file__).resolve().parents[1]


def options_of(verb: str) -> set[str]:
    """Every option that a job's command line takes."""
    job = import_module(f"uplift_spark.jobs.{verb}")
    command = get_command(job_command(verb, job.run, getattr(job, "options", no_options)))  # type: ignore[arg-type]
    return {option for parameter in command.params for option in parameter.opts}


def test_a_job_has_its_own_options_and_the_usual_ones() -> None:
    assert options_of("load") >= {"--from", "--format", "--conf", "--set", "--run-id"}
    assert "--from" not in options_of("lift") and "--from-run" in options_of("train")


# Their `command` takes no campaign, or not always.
BEFORE_A_SESSION = {"doctor", "contract", "grants", "power", "monitoring_files", "serve", "assign", "gameday"}
JOB_FILES = [path for path in sorted((ROOT / "jobs").glob("[a-z]*.py")) if path.stem not in BEFORE_A_SESSION]


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.stem)
def test_a_job_file_declares_a_run_and_runs_as_a_program(path: Path) -> None:
    """With the options it declares, so that it takes what the command `uplift` takes; and it never imports cli."""
    text = path.read_text()
    tree = ast.parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [one.arg for one in functions["run"].args.args] == ["campaign", "progress", "run_id"]
    own = ", options" if "options" in functions else ""
    assert text.endswith(f'if __name__ == "__main__":\n    main_job(run{own})\n')
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "uplift_spark.cli" not in imported and not [name for name in imported if "uplift_spark.jobs" in str(name)]
    assert verbs()[path.stem].endswith(".")


def test_the_bundle_passes_options_that_its_jobs_take() -> None:
    bundle = yaml.safe_load((ROOT / "databricks.yml").read_text())
    tasks = [task["spark_python_task"] for job in bundle["resources"]["jobs"].values() for task in job["tasks"]]
    assert len(tasks) >= 6
    for task in tasks:
        file = ROOT / task["python_file"]
        assert file.parent == ROOT / "jobs" and file.is_file()
        named = {argument for argument in task["parameters"] if argument.startswith("--")}
        if file.stem not in BEFORE_A_SESSION:  # those of other commands are looked at in test_bundle.py
            assert {"--conf"} <= named <= options_of(file.stem)
