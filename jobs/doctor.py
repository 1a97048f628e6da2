"""Check this machine: Java, Spark, Delta Lake, the model store, kernels, memory and write access, each with its remedy.

Reads nothing of a campaign and writes no table. Without --conf it checks the folder `lakehouse`.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import typer

from uplift_spark.config import Config, Lakehouse
from uplift_spark.console import err, main_command, out, read_config
from uplift_spark.errors import NO_SPARK, UpliftError

LEAST_MEMORY = 4.0  # GB that are free: a local session takes as much
PACKAGES = ("numpy", "pandas", "pyarrow", "numba", "scikit-learn", "mlflow-skinny", "pyspark", "delta-spark")


@dataclass(frozen=True)
class Checked:
    """One line of the report: what was checked, whether it works, and what to do where it does not."""

    name: str
    state: str
    text: str


def ok(name: str, text: str) -> Checked:
    """Something works."""
    return Checked(name, "ok", text)


def broken(name: str, text: str) -> Checked:
    """Something does not work; the text ends with the remedy."""
    return Checked(name, "BROKEN", text)


def attempt(name: str, work: Callable[[], str]) -> Checked:
    """What `work` says, or its error in one sentence."""
    try:
        return ok(name, work())
    except UpliftError as error:
        return broken(name, str(error))
    except Exception as error:  # whatever a machine may throw is a result
        return broken(name, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def checks(config: Config | None, start_spark: bool) -> Iterator[Checked]:
    """Every check, one after another; the slow ones come last."""
    lakehouse = Lakehouse() if config is None else config.lakehouse
    yield ok("versions", versions())
    yield attempt("kernels", compiled)
    yield memory()
    yield attempt("write access", lambda: writable(lakehouse))
    yield attempt("model store", lambda: store(lakehouse, config))
    if util.find_spec("pyspark") is None:
        yield broken("Spark", NO_SPARK)
        return
    yield attempt("Java", java)
    yield attempt("Delta", delta)
    if start_spark:
        yield attempt("session", lambda: session(lakehouse))


def versions() -> str:
    """Versions of Python and of the packages that results depend on."""
    parts = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except ImportError:
            parts.append(f"{package} none")
    return ", ".join(parts)


def compiled() -> str:
    """Load a kernel, compiled before or now."""
    started = time.monotonic()
    from uplift_spark.runtime import keep_kernels

    folder = keep_kernels()
    from uplift_spark.estimators import compile_kernels

    compile_kernels()
    if not os.access(folder if Path(folder).exists() else Path(folder).parent, os.W_OK):
        raise UpliftError(f"{folder} cannot be written: set NUMBA_CACHE_DIR to a folder that can")
    return f"in {folder}, {time.monotonic() - started:.1f} s"


def memory() -> Checked:
    """Memory that is free, where the system tells."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return ok("memory", "this system does not tell")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 1e6
    if free < LEAST_MEMORY and "SPARK_DRIVER_MEMORY" not in os.environ:
        return broken(
            "memory", f"{free:.1f} GB free, a local session takes {LEAST_MEMORY:.0f}: set SPARK_DRIVER_MEMORY=2g"
        )
    return ok("memory", f"{free:.1f} GB free, {os.cpu_count()} cores")


def writable(lakehouse: Lakehouse) -> str:
    """Write and delete a file where the lakehouse is or will be."""
    if lakehouse.catalog is not None:
        return f"catalog {lakehouse.catalog}: checked when Spark writes"
    if "://" in lakehouse.path:
        return f"{lakehouse.path}: checked when Spark writes"
    folder = Path(lakehouse.path).resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UpliftError(
            f"{existing} cannot be written ({error.strerror}): change its rights or set lakehouse.path"
        ) from error
    return str(folder)


def store(lakehouse: Lakehouse, config: Config | None) -> str:
    """Put one question to the model store; a lakehouse that does not exist yet gets none."""
    from uplift_spark.registry.store import open_store

    opened = open_store(lakehouse, None if config is None else config.registry.tracking_uri)
    if opened.uri.startswith("sqlite") and not Path(opened.uri.partition(":///")[2]).exists():
        return f"{opened.shown}: `uplift train` makes it"
    opened.client()
    return opened.shown


def java() -> str:
    """Java, where a local session needs one."""
    if any(name in os.environ for name in ("SPARK_REMOTE", "DATABRICKS_RUNTIME_VERSION")):
        return "not needed: Spark runs elsewhere"
    from uplift_spark.lake.session import check_java, class_archive
    from uplift_spark.spark_versions import oldest_java

    check_java()
    archived = ", and an archive of Spark's classes" if class_archive().exists() else ""
    return f"{oldest_java()} or newer is there{archived}"


def delta() -> str:
    """Whether the installed Delta Lake is one of the installed Spark."""
    from uplift_spark.spark_versions import DELTA_OF_SPARK, delta_package, delta_version, spark_version

    spark, known = spark_version(), ", ".join(DELTA_OF_SPARK)
    if spark not in DELTA_OF_SPARK:
        raise UpliftError(f"Spark {spark} is untried: install one of {known}")
    fits, have = DELTA_OF_SPARK[spark], delta_version()
    if have.split(".")[:2] != fits.split(".")[:2]:
        raise UpliftError(f"delta-spark {have} is not for Spark {spark}: pip install delta-spark=={fits}")
    return delta_package()


def session(lakehouse: Lakehouse) -> str:
    """Start Spark as a job does, write a small Delta table and read it."""
    started = time.monotonic()
    from uplift_spark.console import open_lake

    with tempfile.TemporaryDirectory() as folder, open_lake(Lakehouse(path=folder)) as lake:
        if lakehouse.catalog is None:  # a catalog's cluster does not see this machine's folders
            lake.spark.range(3).write.format("delta").save(f"{folder}/table")
            if lake.spark.read.format("delta").load(f"{folder}/table").count() != 3:
                raise UpliftError("a Delta table that was written reads otherwise: see spark.log")
        version = lake.spark.version
    return f"Spark {version} writes and reads a Delta table, {time.monotonic() - started:.0f} s"


def command(
    conf: Annotated[Path | None, typer.Option("--conf", help="The campaign's YAML file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key.")] = None,
    no_spark: Annotated[bool, typer.Option("--no-spark", help="Start no session.")] = False,
) -> None:
    """Print every check; exit with 1 when something does not work."""
    config = None if conf is None else read_config(conf, set_, "doctor")
    failed = 0
    for result in checks(config, not no_spark):
        failed += result.state != "ok"
        out().print(f"{result.state:<7} {result.name:<13} {result.text}", soft_wrap=True)
    if failed:
        err().print(f"{failed} of the checks failed: each names its remedy", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main_command(command, __doc__)
