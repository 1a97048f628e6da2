"""`databricks.yml`: every name that it uses is there, every task's command line is one that the job takes.

The bundle's own schema (`databricks bundle schema`) knows the fields; these checks know this project's files and
options.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import pytest
import typer
import yaml

from uplift_spark import console
from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = yaml.safe_load((ROOT / "databricks.yml").read_text(encoding="utf-8"))
KNOWN = ("bundle.name", "bundle.target", "workspace.file_path")
# These answer from their options alone; `serve` runs where requests come in.
NOT_A_TASK = {
    *("contract", "dashboard", "grants", "power", "monitoring_files", "serve", "package", "gameday", "digest"),
    "runbook",
}

Fields = tuple[tuple[str, int, int, str], ...]
QUARTZ: Fields = (
    ("seconds", 0, 59, ""), ("minutes", 0, 59, ""), ("hours", 0, 23, ""), ("day of month", 1, 31, "?LW"),
    ("month", 1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    ("day of week", 1, 7, "SUN MON TUE WED THU FRI SAT ? L"),
)  # fmt: skip


def texts(value: Any) -> Iterator[str]:
    """Every text of a part of the bundle."""
    if isinstance(value, dict):
        yield from (text for one in value.values() for text in texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in texts(one))
    elif isinstance(value, str):
        yield value


def value_of(bundle: dict[str, Any], reference: str) -> str | None:
    """What `${reference}` stands for; None for what is nowhere."""
    if reference in KNOWN:
        return reference
    if reference.startswith("var."):
        declared = bundle["variables"].get(reference.removeprefix("var."))
        return None if declared is None else str(declared.get("default", ""))
    node: Any = bundle
    for part in reference.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, str) else None


def filled(bundle: dict[str, Any], text: str) -> str:
    """A text with values for its references."""
    while found := re.search(r"\$\{([^}]+)\}", text):
        text = text.replace(found[0], str(value_of(bundle, found[1])))
    return text


def wrong_references(bundle: dict[str, Any]) -> Iterator[str]:
    used = {name for text in texts(bundle) for name in re.findall(r"\$\{([^}]+)\}", text)}
    yield from (f"${{{name}}} is nowhere" for name in sorted(used) if value_of(bundle, name) is None)
    targets = {name for target in bundle["targets"].values() for name in target.get("variables", {})}
    yield from (f"variable {name} is set and not declared" for name in sorted(targets - {*bundle["variables"]}))
    yield from (f"variable {name} is not used" for name in bundle["variables"] if f"var.{name}" not in used)


def wrong_tasks(bundle: dict[str, Any]) -> Iterator[str]:
    for name, job in bundle["resources"]["jobs"].items():
        environments = {one["environment_key"] for one in job["environments"]}
        earlier: set[str] = set()
        for task in job["tasks"]:
            where = f"{name}.{task['task_key']}"
            if task["environment_key"] not in environments:
                yield f"{where}: no environment {task['environment_key']}"
            if missing := {one["task_key"] for one in task.get("depends_on", ())} - earlier:
                yield f"{where}: {sorted(missing)} is no earlier task"
            earlier.add(task["task_key"])
        declared = {one["name"] for one in job["parameters"]}
        used = {name for text in texts(job["tasks"]) for name in re.findall(r"\{\{job\.parameters\.(\w+)\}\}", text)}
        yield from (f"{name}: parameter {one} is not declared" for one in sorted(used - declared))
        yield from (f"{name}: parameter {one} is not used" for one in sorted(declared - used))


def wrong_commands(bundle: dict[str, Any]) -> Iterator[str]:
    for name, job in bundle["resources"]["jobs"].items():
        values = {one["name"]: filled(bundle, one["default"]) for one in job["parameters"]}
        for task in job["tasks"]:
            file, given = task["spark_python_task"]["python_file"], task["spark_python_task"]["parameters"]
            if not (ROOT / file).is_file():
                yield f"{name}.{task['task_key']}: {file} is not there"
                continue
            line = [
                re.sub(r"\{\{job\.parameters\.(\w+)\}\}", lambda m, v=values: v.get(m[1], ""), one) for one in given
            ]
            try:
                called(Path(file).stem, [one.replace("{{job.run_id}}", "1") for one in line])
            except (*typer.BadParameter.__bases__, ConfigError, TypeError) as error:
                yield f"{name}.{task['task_key']}: {getattr(error, 'message', error)}"


def called(verb: str, line: list[str]) -> None:
    """Parse a job's command line as the job does, down to its own options and the keys that --set changes."""
    job = import_module(f"uplift_spark.jobs.{verb}")
    if hasattr(job, "command"):
        command, options = console.own_command(verb, job.command, None), None
    else:
        options = getattr(job, "options", console.no_options)
        command = console.job_command(verb, job.run, options)
    taken: dict[str, Any] = typer.main.get_command(command).make_context(verb, list(line)).params
    overrides = taken.get("set_") or ()
    conf = ROOT / str(taken["conf"]).removeprefix("workspace.file_path/")
    load_config(conf, tuple(overrides))
    if options is not None:
        named: dict[str, Parameter] = dict(signature(options).parameters)
        options(**{key: taken.get(key) for key in named})


def wrong_schedules(bundle: dict[str, Any]) -> Iterator[str]:
    for name, job in bundle["resources"]["jobs"].items():
        if schedule := job.get("schedule"):
            if fault := quartz_fault(filled(bundle, schedule["quartz_cron_expression"])):
                yield f"{name}: {fault}"
            if filled(bundle, schedule["timezone_id"]) not in available_timezones():
                yield f"{name}: no time zone {schedule['timezone_id']}"
            if filled(bundle, schedule["pause_status"]) not in ("PAUSED", "UNPAUSED"):
                yield f"{name}: pause_status is {schedule['pause_status']}"


def quartz_fault(expression: str) -> str:
    """What is wrong with a Quartz expression; empty for a good one."""
    parts = expression.upper().split()
    if len(parts) not in (6, 7):
        return f"{expression!r} has {len(parts)} fields, not 6 or 7"
    for part, (field, low, high, words) in zip(parts, QUARTZ, strict=False):
        for one in re.split(r"[,/\-]", part):
            number = one.isdigit() and low <= int(one) <= high
            if not (one == "*" or number or (one and one in words.split()) or (one in ("?", "L") and one in words)):
                return f"{field} {part!r} of {expression!r} is none"
    if (parts[3] == "?") == (parts[5] == "?"):
        return f"{expression!r} must have one ?, for the day of the month or of the week"
    return ""


def wrong_environments(bundle: dict[str, Any]) -> Iterator[str]:
    for name, job in bundle["resources"]["jobs"].items():
        for environment in job["environments"]:
            spec = environment["spec"]
            if int(spec["environment_version"]) < 5:
                yield f"{name}: environment {spec['environment_version']} is old"
            if named := [one for one in spec["dependencies"] if re.search("spark|delta", Path(one).name.lower())]:
                yield f"{name}: the platform has {named} itself"


CHECKS: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (
    wrong_references, wrong_tasks, wrong_commands, wrong_schedules, wrong_environments,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_bundle_has_what_it_names(check: Callable[[dict[str, Any]], Iterator[str]]) -> None:
    assert list(check(BUNDLE)) == []


def at(bundle: dict[str, Any], path: str) -> Any:
    node: Any = bundle
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node


@pytest.mark.parametrize(
    ("check", "path", "value", "fault"),
    [
        (wrong_references, "variables.catalog", {"default": "${var.other}"}, "${var.other} is nowhere"),
        (wrong_references, "variables.more", {"default": "x"}, "variable more is not used"),
        (wrong_references, "targets.dev.variables", {"nothing": 1}, "variable nothing is set and not declared"),
        (wrong_tasks, "resources.jobs.nightly.tasks.1.depends_on", [{"task_key": "score"}], "is no earlier task"),
        (wrong_tasks, "resources.jobs.nightly.tasks.0.environment_key", "x", "no environment x"),
        (wrong_tasks, "resources.jobs.load.parameters.3.name", "tables", "parameter table is not declared"),
        (wrong_commands, "resources.jobs.nightly.tasks.0.spark_python_task.python_file", "jobs/x.py", "is not there"),
        (wrong_commands, "resources.jobs.erase.tasks.0.spark_python_task.parameters.0", "--unti", "No such option"),
        (wrong_commands, "resources.jobs.load.parameters.3.default", "gold.x", "no raw table"),
        (wrong_commands, "resources.jobs.export.tasks.0.spark_python_task.parameters.4", "xlsx", "use one of csv"),
        (wrong_schedules, "variables.nightly.default", "0 0 25 * * ?", "hours '25'"),
        (wrong_schedules, "variables.nightly.default", "0 3 * * *", "has 5 fields"),
        (wrong_schedules, "variables.nightly.default", "0 0 3 * * *", "must have one ?"),
        (wrong_schedules, "variables.timezone.default", "Mars/Olympus", "no time zone"),
        (wrong_environments, "resources.jobs.load.environments.0.spec.environment_version", "3", "is old"),
    ],
)
def test_each_check_finds_its_fault(check: Any, path: str, value: Any, fault: str) -> None:
    broken = copy.deepcopy(BUNDLE)
    parent, _, last = path.rpartition(".")
    node = at(broken, parent)
    node[int(last) if isinstance(node, list) else last] = value
    assert any(fault in one for one in check(broken)), list(check(broken))


def test_the_line_of_a_campaign_is_in_order() -> None:
    """A plan may fail, for want of costs. When the lift table fails, plan and report are skipped, and the job fails."""
    tasks = {task["task_key"]: task for task in BUNDLE["resources"]["jobs"]["campaign"]["tasks"]}
    after = {key: [one["task_key"] for one in task.get("depends_on", ())] for key, task in tasks.items()}
    line = {"ingest": [], "features": ["ingest"], "train": ["features"], "score": ["train"]}
    assert after == {**line, "lift": ["score"], "policy": ["lift"], "report": ["lift", "policy"]}
    assert tasks["report"]["run_if"] == "AT_LEAST_ONE_SUCCESS"


def test_a_canary_is_decided_on_after_each_plan_and_a_rollback_names_its_version() -> None:
    jobs = BUNDLE["resources"]["jobs"]
    tasks = {task["task_key"]: task for task in jobs["nightly"]["tasks"]}
    assert tasks["canary"]["depends_on"] == [{"task_key": "policy"}]
    assert tasks["canary"]["spark_python_task"]["parameters"][0] == "decide"
    assert {"task_key": "canary"} in tasks["report"]["depends_on"]  # which then is of the version that was promoted
    (rollback,) = jobs["rollback"]["tasks"]
    assert rollback["spark_python_task"]["parameters"][:2] == ["--to", "{{job.parameters.to}}"]
    assert {"name": "to", "default": "before"} in jobs["rollback"]["parameters"]


def test_every_verb_is_a_task() -> None:
    jobs = BUNDLE["resources"]["jobs"].values()
    tasks = {Path(task["spark_python_task"]["python_file"]).stem for job in jobs for task in job["tasks"]}
    verbs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    assert verbs - tasks == NOT_A_TASK


def test_the_wheel_brings_no_spark() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [one for one in project["dependencies"] if re.match("pyspark|delta-spark|databricks", one)]
    assert "--no-deps" in BUNDLE["artifacts"]["wheel"]["build"]
