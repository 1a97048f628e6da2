"""Where this runs and what a run is: state folder with kernels and an empty store, code version, run id, result,
files of settings."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import date, datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Protocol

import yaml

import uplift_spark
from uplift_spark.errors import ConfigError, EnvironmentProblem


def state_folder() -> Path:
    """Folder for log, compiled kernels, downloads: in the virtual environment if there is one, else the user cache."""
    prefix = Path(sys.prefix)
    if sys.prefix != sys.base_prefix and os.access(prefix, os.W_OK):
        folder = prefix / "var" / "uplift_spark"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uplift_spark"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def session_provided() -> bool:
    """Whether this process was started for a Spark session of somebody else, who says what paths mean."""
    return any(name in os.environ for name in ("SPARK_REMOTE", "DATABRICKS_RUNTIME_VERSION", "PYSPARK_GATEWAY_PORT"))


def keep_kernels() -> str:
    """Have numba keep compiled kernels in `state_folder`; returns the folder. Only the first call before numba counts.

    Worker processes started from an archive have no folder of their own to write to, and would compile every time.
    One folder per state of the files with kernels: numba looks at a kernel's own file only, and would load kernels that
    were compiled against what the other files used to hold.
    """
    if "NUMBA_CACHE_DIR" not in os.environ:
        sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*/*.py")))
        kernels = (source for source in sources if b"import numba" in source)
        state = hashlib.sha256(b"".join(kernels)).hexdigest()[:12]
        os.environ["NUMBA_CACHE_DIR"] = str(state_folder() / "numba" / state)
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


# --------------------------------------------------------------------------------------------------------------------
# An empty MLflow store, to begin new ones with: MLflow makes one by all its migrations, which takes seconds.


def _empty_store() -> Path | None:
    """Where it is kept, one for each version of MLflow; None without MLflow."""
    try:
        return state_folder() / f"mlflow-{metadata.version('mlflow-skinny')}.db"
    except ImportError:
        return None


def begin_store(file: Path) -> None:
    """Put an empty MLflow store where there is none, if one is kept; else MLflow makes it."""
    empty = _empty_store()
    if file.exists() or empty is None or not empty.exists():
        return
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(empty, part)
        with closing(sqlite3.connect(part)) as store:
            now = int(time.time() * 1000)  # MLflow's own experiment is as if MLflow had made it here
            statement = "UPDATE experiments SET artifact_location = ?, creation_time = ?, last_update_time = ?"
            store.execute(statement, (str(Path("mlruns", "0").absolute()), now, now))
            store.commit()
        os.link(part, file)  # fails where another process was faster
    except (OSError, sqlite3.Error):
        return
    finally:
        part.unlink(missing_ok=True)


def keep_empty_store(file: Path) -> None:
    """Keep a copy of an MLflow store for `begin_store`, if it is empty and none is kept."""
    empty = _empty_store()
    if empty is None or empty.exists():
        return
    part = empty.with_suffix(f".{os.getpid()}.part")
    rows = " + ".join(f"(SELECT count(*) FROM {table})" for table in ("experiments", "runs", "registered_models"))
    try:
        with closing(sqlite3.connect(file)) as store, closing(sqlite3.connect(part)) as copy:
            if store.execute(f"SELECT {rows}").fetchone()[0] == 1:  # MLflow's own experiment
                store.backup(copy)
                os.replace(part, empty)
    except (OSError, sqlite3.Error):
        return
    finally:
        part.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------------
# Secret keys: configurations say where they are, never what they are.

LEAST_KEY = 16  # bytes


class KeyPlace(Protocol):
    """A section that says where its key is: in an environment variable, or as SCOPE/KEY among Databricks' secrets."""

    @property
    def key_env(self) -> str | None: ...

    @property
    def key_secret(self) -> str | None: ...


def secret_key(section: str, place: KeyPlace) -> bytes:
    """Read the key that a section such as `pseudonyms` names; where it has `key_file`, that may name a file, too.

    Raises ConfigError when variable, file or secret is not there or holds less than LEAST_KEY bytes.
    """
    file = getattr(place, "key_file", None)
    if place.key_secret is not None:
        where, key = f"key_secret names {place.key_secret}", _databricks_secret(section, place.key_secret).encode()
    elif file is not None:
        where, key = f"key_file names {file}", _file_bytes(section, file)
    else:
        where, key = f"key_env names ${place.key_env}", os.environ.get(str(place.key_env), "").encode()
    if len(key) < LEAST_KEY:
        have = f"has {len(key)} bytes" if key else "is not set"
        raise ConfigError(f"{section}.{where}, which {have}: set it to a secret of at least {LEAST_KEY} bytes")
    return key


def _file_bytes(section: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{section}.key_file {file} cannot be read: {error.strerror or error}") from error


def _databricks_secret(section: str, name: str) -> str:
    """A secret of Databricks, SCOPE/KEY: serverless compute has no environment variables."""
    scope, _, key = name.partition("/")
    try:
        from databricks.sdk.runtime import dbutils

        return str(dbutils.secrets.get(scope, key))
    except ImportError as error:
        raise ConfigError(
            f"{section}.key_secret needs Databricks' client: install uplift-spark[databricks], or name key_env"
        ) from error
    except Exception as error:  # the client has classes of its own for each kind of refusal
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{section}.key_secret {name} cannot be read: {reason}") from error


# --------------------------------------------------------------------------------------------------------------------
# What a run is: its identity, its result, the code it ran.
# A run id is derived from what the run depends on, so doing the same thing again is the same run and adds no row.

ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class JobResult:
    """What a job did.

    tables   {table: {"version": int, "rows": rows added by this run, "skipped": bool}}
    details  anything worth printing: counts of rejected rows, model name and version, files
    unprinted  details for programs alone, which `details["summary"]` says in words
    """

    job: str
    run_id: str
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    unprinted: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: str, run_id: str, *written: Any, **details: Any) -> JobResult:
        """Result of a run from what `Lake.write` returned; of a table that it wrote several times their sum."""
        tables: dict[str, dict[str, Any]] = {}
        for one in written:
            new = {k: v for k, v in asdict(one).items() if k != "table"}
            if (before := tables.get(one.table)) is not None:
                rows, skipped = before["rows"] + new["rows"], before["skipped"] and new["skipped"]
                new = {"version": max(before["version"], new["version"]), "rows": rows, "skipped": skipped}
            tables[one.table] = new
        return cls(job, run_id, tables, details)


class Job(Protocol):
    """The one shape of `jobs/<verb>.py`: `run(campaign)`, reported to the user through `progress`."""

    def __call__(self, campaign: Any, progress: ProgressCallback = ..., run_id: str | None = None) -> JobResult: ...


def no_progress(message: str) -> None:
    """A `progress` that says nothing: the default where nobody listens."""


def derive_run_id(job: str, config: Any, **inputs: Any) -> str:
    """`<job>-<12 hex digits>`: SHA-256 of the job, the configuration it depends on and the identity of its inputs.

    Of a `Config` what its `run_identity` of the job is; anything else (a part of it, a mapping) counts as a whole.
    `inputs` are file digests, upstream run ids, table and model versions. Equal on every machine and in every process.
    Raises TypeError for values without a canonical form.
    """
    conf = config.run_identity(job) if hasattr(config, "run_identity") else config
    text = json.dumps(plain_values([job, conf, inputs]), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{job}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def code_version() -> str:
    """`git describe` of the checkout this package runs from, else the package's version."""
    package = Path(__file__).resolve().parent
    # An installed package may lie inside some other project's checkout (its .venv): that one's version is not ours.
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    return (tracked and _git(package, "describe", "--always", "--dirty")) or uplift_spark.__version__


def os_user() -> str:
    """Name of the user that this process runs as, by the system: not what $USER or $LOGNAME say."""
    try:
        import pwd
    except ImportError:  # Windows
        return getpass.getuser()
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return f"uid {os.getuid()}"


def _git(folder: Path, *arguments: str) -> str:
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def plain_values(value: Any) -> Any:
    """Turn settings into JSON values; refuses what has no stable form rather than hashing an address."""
    if value is None or isinstance(value, bool | int | float | str):
        return "unlimited" if value == math.inf else value
    if is_dataclass(value) and not isinstance(value, type):
        # A key that was renamed counts under its first name, so that a new name makes no new run.
        first = {new: old for old, new in getattr(value, "RENAMED", {}).items()}
        # A key that came later counts once it is used: runs of before keep their ids.
        later = getattr(value, "LATER", ())
        unused = (f.name for f in fields(value) if f.name in later and getattr(value, f.name) == f.default)
        apart = (*getattr(value, "NO_IDENTITY", ()), *unused)
        return {
            first.get(f.name, f.name): plain_values(getattr(value, f.name))
            for f in fields(value)
            if f.name not in apart
        }
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_values(v) for v in value), key=str)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "item"):  # a numpy scalar
        return plain_values(value.item())
    raise TypeError(f"{type(value).__name__} cannot be part of a run id: pass its identity (a digest, a version)")


# --------------------------------------------------------------------------------------------------------------------
# Files of a configuration as YAML: keys and overrides, and feature definitions in files of their own.


class _PlainText(yaml.SafeLoader):
    """YAML in which an unquoted value stays the text that stands there; only null, infinity and merges are read.

    The section that a value belongs to says whether it is a number, a time, true or false. YAML 1.1 guesses from the
    looks: `no` is false, `1:1` is 61, `010` is 8, so names of levels would be lost. Of two equal keys the first one
    would be dropped without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.tag.endswith(":merge") or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is there twice: keep one", problem_mark=key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


_READ = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
_PlainText.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in resolvers if tag in _READ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainText.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"(?:[-+]?\.inf|\.nan)$", re.I), list("-+."))


def _parsed(text: str, where: str) -> Any:
    """The values of a text. Raises ConfigError that begins with `where`: no YAML, a key twice, nested too deep."""
    try:
        return yaml.load(text, _PlainText)
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deep to be read: remove brackets") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(
            f"{where} is not valid YAML: {line}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"
        ) from error


def _text_of(path: Path) -> str:
    """A file's text, in UTF-8. Raises OSError, and ValueError for other bytes."""
    return path.read_text(encoding="utf-8-sig")


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of a file, those of `overrides` (`dotted.key=value`, the value as YAML) in place of its own.

    Raises ConfigError naming the file or the override.
    """
    try:
        text = _text_of(path)
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is no text in UTF-8 ({error}): save it as UTF-8") from error
    raw = _parsed(text, f"configuration {path}")
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys, not {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def read_features(entries: Any, conf: Path) -> list[Any]:
    """Feature definitions: those among `entries`, and those in files that entries name, seen from the configuration.

    Raises ConfigError for a file that cannot be read, or that holds no list.
    """
    return [one for entry in _listed(entries, conf) for one in _definitions(entry, conf)]


def _listed(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: features must be a list of definitions, not {type(value).__name__}")
    return value


def _definitions(entry: Any, conf: Path) -> list[Any]:
    """An entry of `features`: a definition, or the path of a file of definitions, seen from the configuration."""
    if not isinstance(entry, str):
        return [entry]
    path = conf.parent / entry
    try:
        text = _text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"configuration {conf}: features file {path} cannot be read: {reason}") from error
    return _listed(_parsed(text, f"configuration {conf}: features file {path}"), path)


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} must look like key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a mapping")
        raw = child
    raw[leaf] = _parsed(value, f"override {override[:80]!r}")


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, each whole or not at all; files of other names in the folder stay.

    Args:
        folder: Made when it is not there.
        files: {path below it: content}.

    Raises:
        EnvironmentProblem: The folder cannot be written.
    """
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror or error}") from error
