"""From the file of a trial that others ran to its report: one command each, and what it guessed.

    make bench ONLY=quickstart ARGS="--only hillstrom"
    python tests/benchmarks/bench_quickstart.py

Files of `$UPLIFT_DATA`, and of the package causaldata where it is installed. Each runs in a process and an empty folder
of its own; nothing is edited. Printed: minutes, rows, guesses printed, which of the guesses that have a known answer
are right, the decision, and the size of the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

UPLIFT = Path(sys.executable).with_name("uplift")


@dataclass(frozen=True)
class TrialFile:
    """A file, the flags that say which column is what, and what must be guessed: the control, `none` where it is 0, and
    columns that are no features."""

    path: str
    flags: str
    control: str
    never: tuple[str, ...] = ()
    package: str = ""


FILES = {
    "hillstrom": TrialFile(
        "hillstrom/hillstrom.csv.gz",
        "--treatment segment --outcome visit --value 1 --cost .1",
        "No E-Mail",
        never=("conversion", "spend"),
    ),
    "karlan_list": TrialFile(
        "karlan_list/karlan_list_2007.csv.gz",
        "--treatment ratio --outcome out_gavedum --value 45 --cost .5",
        "none",
        never=("out_amountgive",),
    ),
    "thornton_hiv": TrialFile(
        "thornton_hiv/thornton_hiv.dta", "--treatment any --outcome got --value 5 --cost 1", "none", never=("tinc",)
    ),
    "lalonde": TrialFile(
        "nsw_mixtape/nsw_mixtape.dta",
        "--treatment treat --outcome re78 --value 1 --cost 500",
        "none",
        never=("data_id",),
        package="causaldata",
    ),
    "crop_insurance": TrialFile(
        "social_insure/Cai_2015.csv",
        "--treatment intensive --outcome takeup_survey --value 10 --cost 1",
        "none",
        package="causaldata",
    ),
    "legislators": TrialFile(
        "black_politicians/black_politicians.csv",
        "--treatment treat_out --outcome responded --value 1 --cost .01",
        "none",
        package="causaldata",
    ),
}


def main() -> int:
    """Print a line for each file; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=list(FILES), choices=list(FILES))
    failed = 0
    for name in parser.parse_known_args()[0].only:
        trial = FILES[name]
        where = folder(trial)
        if where is None or not (where / trial.path).exists():
            missing = f"the package {trial.package} is not installed" if trial.package else "set UPLIFT_DATA"
            print(f"{name:15} skipped: {missing}", flush=True)
            continue
        failed += report(name, trial, where / trial.path)
    return int(failed > 0)


def folder(trial: TrialFile) -> Path | None:
    """Where the trial's file lies."""
    if trial.package:
        package = importlib.util.find_spec(trial.package)
        return None if package is None or package.origin is None else Path(package.origin).parent
    return Path(os.environ["UPLIFT_DATA"]) if "UPLIFT_DATA" in os.environ else None


def report(name: str, trial: TrialFile, path: Path) -> int:
    """Run the command for one file and print what came of it; 1 where it failed."""
    with tempfile.TemporaryDirectory(prefix="bench-quickstart-") as where:
        command = [UPLIFT, "quickstart", path, *shlex.split(trial.flags), "--name", name]
        began = time.monotonic()
        ran = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=1200)
        minutes = (time.monotonic() - began) / 60
        if ran.returncode:
            print(f"{name:15} FAILED after {minutes:.1f} min: {ran.stderr.strip().splitlines()[-1]}", flush=True)
            return 1
        conf = yaml.safe_load((Path(where) / "conf" / f"{name}.yaml").read_text())
        pages = (Path(where) / "lakehouse" / "reports" / name).rglob("*.html")
        roles, size = conf["roles"], max(page.stat().st_size for page in pages) / 1e6
    kept = [column for column in trial.never if column in roles["features"]]
    right = str(roles["control"]) == trial.control and not kept
    guesses = sum("--" in line for line in ran.stderr.splitlines())
    decision = ran.stdout.partition("The decision")[2].strip().splitlines()
    words = decision[0] if decision else "no decision"
    answer = "right" if right else f"WRONG: control {roles['control']}, features that are outcomes {kept}"
    line = (
        f"{name:15} {minutes:4.1f} min, {len(roles['features'])} features, {guesses} guesses ({answer}), 0 lines edited"
    )
    print(f"{line}, page {size:.1f} MB: {words}", flush=True)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
