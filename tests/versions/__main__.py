"""What runs on which Spark: `make matrix` makes an environment for each, and prints a table.

In each environment: installing the wheel beside its Spark changes nothing of it; the small line runs, with the same
model to the byte everywhere; the tests of training; the line over Spark Connect. ARGS="--only 4.0.1 3.5.7" takes some.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
TRAINING = ("tests/forest/test_spark.py", "tests/learners/test_spark.py", "tests/forest/test_spark_refresh.py")
TOOLS = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "matplotlib>=3.9,<4")


@dataclass(frozen=True)
class Version:
    """An environment: the Python, Spark and Delta Lake in it, and what else that Spark wants."""

    spark: str
    delta: str
    python: str = "3.11"
    also: tuple[str, ...] = ()


# 3.5 is what EMR, Fabric 1.3 and Databricks 15 and 16 run, 4.0 Databricks 17, 4.1 Dataproc 3.
VERSIONS = (
    Version("3.5.7", "3.3.2", also=("numpy<2", "pyarrow<26", "setuptools<81")),
    Version("4.0.1", "4.0.1"),
    Version("4.1.3", "4.4.0", "3.12"),
    Version("4.2.0", "4.4.0", "3.13"),
)


@dataclass
class Outcome:
    """What came out in one environment: {step: "pass", or what went wrong}, and the model's digest."""

    version: Version
    steps: dict[str, str] = field(default_factory=dict)
    model: str = ""


def main() -> int:
    """Try the versions and print their table; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="versions of Spark")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="where environments are kept")
    arguments = parser.parse_args()
    outcomes = []
    for version in VERSIONS:
        if not arguments.only or version.spark in arguments.only:
            outcomes.append(tried(version, arguments.folder / f"spark-{version.spark}"))
    models = {one.model for one in outcomes if one.model}
    names = ("wheel", "line", "training", "connect")
    print(f"\n{'Spark':8}{'Python':8}" + "".join(f"{name:28}" for name in names))
    for one in outcomes:
        cells = "".join(f"{one.steps.get(name, 'not reached')[:26]:28}" for name in names)
        print(f"{one.version.spark:8}{one.version.python:8}{cells}")
    print(f"{len(models)} model(s): {', '.join(sorted(model[:12] for model in models))}")
    good = all(set(one.steps.values()) == {"pass"} and set(one.steps) == set(names) for one in outcomes)
    return 0 if good and len(models) == 1 else 1


def tried(version: Version, home: Path) -> Outcome:
    """Make the environment and take every step in it."""
    outcome = Outcome(version)
    python = home / "bin" / "python"
    steps: dict[str, Callable[[], str]] = {
        "wheel": lambda: installed(version, home, python),
        "line": lambda: line(python, outcome),
        "training": lambda: passed(
            [python, "-m", "pytest", "-q", "-n", "0", "-m", "not slow and not simulation", *TRAINING]
        ),
        "connect": lambda: passed([python, "-m", "pytest", "-q", "-n", "0", "-m", "slow", "tests/connect"]),
    }
    for name, step in steps.items():
        started = time.monotonic()
        outcome.steps[name] = step()
        print(f"Spark {version.spark}: {name}: {outcome.steps[name]} ({time.monotonic() - started:.0f} s)", flush=True)
        if name == "wheel" and outcome.steps[name] != "pass":
            break
    return outcome


def installed(version: Version, home: Path, python: Path) -> str:
    """Install Spark, then the wheel: its metadata asks for no Spark, and what was there stays."""
    spark = [f"pyspark[connect]=={version.spark}", f"delta-spark=={version.delta}", *version.also]
    ready = passed([UV, "venv", "--quiet", "--clear", "--python", version.python, home])
    if ready == "pass":
        ready = passed([UV, "pip", "install", "--quiet", "--python", python, *spark, *TOOLS])
    if ready != "pass":
        return ready
    before = frozen(python)
    wheels = home / "wheels"
    ready = passed([UV, "build", "--quiet", "--wheel", "--out-dir", wheels, "--python", sys.executable, ROOT])
    if ready != "pass":
        return ready
    (wheel,) = wheels.glob("*.whl")
    # The constraints of development pin numpy and others for one Spark; here the bounds of the wheel alone count.
    ready = passed([UV, "pip", "install", "--quiet", "--python", python, wheel, *version.also])
    if ready != "pass":
        return ready
    after = frozen(python)
    changed = [name for name in ("pyspark", "delta-spark", "py4j") if before[name] != after[name]]
    return (
        f"changed {', '.join(changed)}"
        if changed
        else passed([UV, "pip", "install", "--quiet", "--python", python, "--no-deps", "-e", ROOT])
    )


def frozen(python: Path) -> dict[str, str]:
    """{package: version} of an environment."""
    listed = subprocess.run(
        [UV, "pip", "freeze", "--quiet", "--python", python], capture_output=True, text=True, check=True
    )
    return dict(one.split("==", 1) for one in listed.stdout.split() if "==" in one)


def line(python: Path, outcome: Outcome) -> str:
    """Run the small line and keep the model's digest."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        run = ran([python, "-m", "tests.versions.line", folder])
    if run.returncode:
        return last_line(run)
    outcome.model = json.loads(run.stdout.strip().splitlines()[-1])["model"]
    return "pass"


def passed(command: list[str | Path]) -> str:
    """Run a command: "pass", or the last line that it printed."""
    run = ran(command)
    return last_line(run) if run.returncode else "pass"


def ran(command: list[str | Path], seconds: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder, without another environment's settings."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        return subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"not ready after {seconds:.0f} s")


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a command printed, which says why it failed."""
    lines = [one for one in (run.stdout + "\n" + run.stderr).splitlines() if one.strip()]
    return lines[-1].strip() if lines else f"exit {run.returncode}"


if __name__ == "__main__":
    sys.exit(main())
