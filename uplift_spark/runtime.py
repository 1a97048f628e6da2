"""Where this runs and what a run is: state folder, kernel cache, code version, run id, result."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import date, datetime
from functools import reduce
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

import uplift_spark
from uplift_spark.config import Config

if TYPE_CHECKING:
    from uplift_spark.lake.tables import Written


def state_folder() -> Path:
    """Folder for log, compiled kernels, downloads: in the virtual environment if there is one, else the user cache."""
    prefix = Path(sys.prefix)
    if sys.prefix != sys.base_prefix and os.access(prefix, os.W_OK):
        folder = prefix / "var" / "uplift_spark"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uplift_spark"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_kernels() -> str:
    """Have numba keep compiled kernels in `state_folder`; returns the folder. Only the first call before numba counts.

    Worker processes started from an archive have no folder of their own to write to, and would compile every time.
    One folder per state of the sources: numba looks at a kernel's own file only, and would load kernels that were
    compiled against what other files used to hold.
    """
    if "NUMBA_CACHE_DIR" not in os.environ:
        sources = sorted(
            path for room in ("stats", "forest", "learners") for path in (Path(__file__).parent / room).glob("*.py")
        )
        state = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
        os.environ["NUMBA_CACHE_DIR"] = str(state_folder() / "numba" / state)
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


# --------------------------------------------------------------------------------------------------------------------
# What a run is: its identity, its result, the code it ran.
# A run id is derived from what the run depends on, so doing the same thing again is the same run and adds no row.

ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class JobResult:
    """What a job did.

    tables   {table: {"version": int, "rows": rows added by this run, "skipped": bool}}
    details  anything worth printing: counts of rejected rows, model name and version, files
    """

    job: str
    run_id: str
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: str, run_id: str, *written: Written, **details: Any) -> JobResult:
        """Result of a run from what `Lake.write` returned."""
        rows = {w.table: {k: v for k, v in asdict(w).items() if k != "table"} for w in written}
        return cls(job, run_id, rows, details)


class Job(Protocol):
    """The one shape of `jobs/<verb>.py`: `run(campaign)`, reported to the user through `progress`."""

    def __call__(self, campaign: Any, progress: ProgressCallback = ..., run_id: str | None = None) -> JobResult: ...


def no_progress(message: str) -> None:
    """A `progress` that says nothing: the default where nobody listens."""


def derive_run_id(job: str, config: Any, **inputs: Any) -> str:
    """`<job>-<12 hex digits>`: SHA-256 of the job, the configuration it depends on and the identity of its inputs.

    Of a `Config` the keys count that its sections declare; anything else (a part of it, a mapping) counts as a whole.
    `inputs` are file digests, upstream run ids, table and model versions. Equal on every machine and in every process.
    Raises TypeError for values without a canonical form.
    """
    conf = _relevant(job, config) if isinstance(config, Config) else config
    text = json.dumps(_canonical([job, conf, inputs]), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{job}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def code_version() -> str:
    """`git describe` of the checkout this package runs from, else the package's version."""
    package = Path(__file__).resolve().parent
    # An installed package may lie inside some other project's checkout (its .venv): that one's version is not ours.
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    return (tracked and _git(package, "describe", "--always", "--dirty")) or uplift_spark.__version__


def _git(folder: Path, *arguments: str) -> str:
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def _relevant(job: str, config: Config) -> dict[str, Any]:
    """The keys that a section of the configuration, or the configuration itself, declares for the job in `RUNS`."""
    sections = [config, *(getattr(config, part.name) for part in fields(config))]
    declared = {verb: keys for section in sections for verb, keys in getattr(section, "RUNS", {}).items()}
    return {key: reduce(getattr, key.split("."), config) for key in declared[job].split()}


def _canonical(value: Any) -> Any:
    """JSON values only; refuses what has no stable form rather than hashing an address."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        # A key that was renamed counts under its first name, so that a new name makes no new run.
        first = {new: old for old, new in getattr(value, "RENAMED", {}).items()}
        return {first.get(f.name, f.name): _canonical(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((_canonical(v) for v in value), key=str)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "item"):  # a numpy scalar
        return _canonical(value.item())
    raise TypeError(f"{type(value).__name__} cannot be part of a run id: pass its identity (a digest, a version)")
