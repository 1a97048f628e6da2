"""The Spark session (`spark_session`), and points in time that do not depend on its time zone (`instant`, `utc`)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyspark
from pyspark.sql import Column, SparkSession, Window
from pyspark.sql import functions as F

from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.runtime import keep_kernels, session_provided, state_folder
from uplift_spark.spark_versions import FEW_ROWS, delta_package, oldest_java, spark_version, try_settings

# --------------------------------------------------------------------------------------------------------------------
# The session that runs already, else a quiet local one with Delta.
# A local session writes Spark's own output (launcher, dependency resolution, warnings, prints of workers) to one log
# file, `state_folder() / "spark.log"`. An error that is raised quotes the lines of it that a user needs.

JAVA_REMEDY = "on Debian or Ubuntu run `apt-get install openjdk-17-jre-headless`, or set JAVA_HOME to a Java 17+"

_LOG_LIMIT = 5_000_000  # bytes; a longer log is started anew

# Delta's classes reach the catalog through these two; they cannot be set once a session runs.
_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}

# Every session, also one that was given. Spark 4 has ANSI on: an overflow is an error there, in 3.5 a wrong number.
_EVERYWHERE = {"spark.sql.session.timeZone": "UTC", "spark.sql.ansi.enabled": "true"}

# Short sessions spend most of their processor time compiling: without the second compiler a session of small writes
# takes 40 % less of it, and one that writes, shuffles and sorts 1.5 million rows of 20 columns no more. But then Java
# keeps only 48 MB of compiled code by default: some thousand jobs fill that, and half of the time goes into throwing
# code out and compiling it again.
_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=512m -XX:+UseParallelGC"

# With few rows, to compile a query and to plan it anew after each of its stages takes longer than to interpret it. What
# files say of their columns' bounds lets later queries skip files; interpreted, it takes longer to find than to write
# the rows, and small files need not be skipped.
_FEW_ROWS = {
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.databricks.delta.stats.collect": "false",
    FEW_ROWS: "true",
}

# Spark ships these itself; leaving them out makes the first start download 25 MB instead of 170.
_SHIPPED_WITH_SPARK = (
    "org.apache.hadoop",
    "org.apache.parquet",
    "org.apache.logging.log4j",
    "org.slf4j",
    "com.fasterxml.jackson.core",
    "org.roaringbitmap",
    "org.xerial.snappy",
    "com.github.luben",
    "io.airlift",
    "io.unitycatalog",
    "commons-logging",
    "org.locationtech.jts",
)


def spark_session(lakehouse: Lakehouse, app: str = "uplift", master: str = "local[*]") -> SparkSession:
    """Get the session to work in, in this order: one that runs already; the one of Spark Connect ($SPARK_REMOTE),
    Databricks or spark-submit; a new local one on `master`.

    `$SPARK_DRIVER_MEMORY` overrides a local session's 4 GB, `$SPARK_SUBMIT_OPTS` its JVM flags: an empty value gives
    tens of millions of rows the optimising compiler back.

    Raises EnvironmentProblem when Java is missing or too old, or Spark does not start.
    """
    if SparkSession.getActiveSession() is not None or session_provided():
        return _provided_session()
    check_java()
    return local_session(local_conf(lakehouse, app, master))


def check_java() -> None:
    """Raise EnvironmentProblem with a one-line remedy unless Spark will find a Java that it starts with."""
    oldest = oldest_java()
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(str(Path(home) / "bin" / "java")) if home else shutil.which("java")
    if java is None:
        where = f"JAVA_HOME={home} has no bin/java" if home else "Java is not installed"
        raise EnvironmentProblem(f"{where}, and Spark {spark_version()} needs Java {oldest} or newer: {JAVA_REMEDY}")
    version = _java_version(java)
    if version is None:
        raise EnvironmentProblem(f"{java} does not tell its version, so Spark will not start with it: {JAVA_REMEDY}")
    if version < oldest:
        raise EnvironmentProblem(
            f"{java} is Java {version}, and Spark {spark_version()} needs {oldest} or newer: {JAVA_REMEDY}"
        )


def local_conf(lakehouse: Lakehouse, app: str, master: str = "local[*]") -> dict[str, str]:
    """Give every setting of a local session for small data: Delta's JARs, few partitions, no user interface."""
    conf = {
        **_DELTA,
        **_EVERYWHERE,
        **_small(master),
        **_jars(),
        "spark.app.name": app,
        "spark.master": master,
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": os.path.abspath(lakehouse.path),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.debug.maxToStringFields": "200",
        "spark.sql.ui.explainMode": "simple",  # of the user interface, which is off: Spark writes it for every query
        # Files of tables are the user's alone.
        "spark.hadoop.fs.permissions.umask-mode": "077",
        # Else a path or a level's name that holds ${env:KEY} gets what the environment has in its place.
        "spark.sql.variable.substitute": "false",
        "spark.executorEnv.NUMBA_CACHE_DIR": keep_kernels(),
    }
    if "SPARK_DRIVER_MEMORY" not in os.environ:
        conf["spark.driver.memory"] = "4g"
    if "SPARK_SUBMIT_OPTS" not in os.environ:
        archive = class_archive()
        # Java ignores an archive that is not of its version or of the JARs as they are.
        shared = f" -XX:SharedArchiveFile={archive} -Xlog:cds=off" if archive.exists() else ""
        conf["spark.driver.extraJavaOptions"] = _JVM + shared
    return conf


@contextmanager
def planned_for_few_rows(session: SparkSession) -> Iterator[None]:
    """Within the body let Spark interpret queries as they were planned first, and let this process do what Python
    workers do else (`spark_versions.mapped`): results are the same to the last bit."""
    before = {key: session.conf.get(key, None) for key in _FEW_ROWS}
    try_settings(session, _FEW_ROWS)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                session.conf.unset(key)
        try_settings(session, {key: value for key, value in before.items() if value is not None})


def class_archive() -> Path:
    """Give the file that holds Spark's classes as Java wants them in memory; `archive_classes` makes it."""
    of = hashlib.sha256("\n".join([os.environ.get("JAVA_HOME", ""), pyspark.__file__]).encode()).hexdigest()[:8]
    return state_folder() / f"classes-{pyspark.__version__}-{of}.jsa"


def archive_classes() -> Path | None:
    """Let Java keep the classes that a session loads (application class-data sharing): sessions then start with a third
    less work.

    Starts a session and ends it. Call it in a process of its own.

    Returns:
        The file; None where it cannot be used: its path has a blank, or this Java makes none.

    Raises:
        EnvironmentProblem: Java is missing or too old, or Spark does not start.
    """
    archive = class_archive()
    if archive.exists() or " " in str(archive):
        return archive if archive.exists() else None
    check_java()
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        unfinished = Path(folder, "classes.jsa")
        conf = local_conf(Lakehouse(path=folder), "classes", "local[1]")
        conf["spark.driver.extraJavaOptions"] = f"{_JVM} -XX:ArchiveClassesAtExit={unfinished} -Xlog:cds=off"
        session = local_session(conf)
        rows = session.createDataFrame(pa.table({"key": [1, 2, 2], "value": [0.5, None, 1.0]}))
        rows.write.format("delta").save(f"{folder}/table")
        stored = session.read.format("delta").load(f"{folder}/table")
        ranked = stored.withColumn("rank", F.rank().over(Window.partitionBy("key").orderBy("value")))
        sums = ranked.groupBy("key").agg(F.sum("value").alias("sum"), F.max("rank").alias("rank"))
        stored.join(sums, "key").mapInArrow(_same, stored.schema).toArrow()
        _end(session)
        if not unfinished.exists():
            return None
        os.replace(unfinished, archive)
    return archive


def _same(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.select(["key", "value"])


def _end(session: SparkSession) -> None:
    """Stop a session and wait until its JVM has ended: it writes the archive last."""
    gateway: Any = session.sparkContext._gateway
    session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    try:
        gateway.proc.wait(300)
    except subprocess.TimeoutExpired as error:  # a busy machine: sessions start without the archive, only slower
        gateway.proc.kill()
        raise EnvironmentProblem("Java did not write it within 300 seconds") from error


def local_session(conf: Mapping[str, str]) -> SparkSession:
    """Start a session with `conf` (see `local_conf`), its output in the log; EnvironmentProblem when it fails."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    log = _fresh_log()
    start = log.stat().st_size
    try:
        with _output_into(log):
            return SparkSession.builder.config(map=dict(conf)).getOrCreate()
    except Exception as error:
        with log.open(errors="replace") as lines:
            lines.seek(start)
            raise EnvironmentProblem(_why_not_started(lines.read(), log)) from error


def _provided_session() -> SparkSession:
    builder = SparkSession.builder
    # Under spark-submit the JVM runs but the context does not: this is the last moment to switch Delta on.
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ and "DATABRICKS_RUNTIME_VERSION" not in os.environ
    if submitted:
        builder = builder.config(map=dict(_DELTA))
    session = builder.getOrCreate()
    master = str(session.conf.get("spark.master", "")) if submitted else ""
    settings = {**_EVERYWHERE, **(_unset(session, _small(master)) if master.startswith("local") else {})}
    try_settings(session, settings)
    return session


def _small(master: str) -> dict[str, str]:
    """Settings for data of one machine: with the defaults of a cluster a small Delta write takes 15 s instead of 1, and
    a VACUUM, which lists files in 10,000 tasks, 50.

    Delta sorts rows by their partition before it writes them, unless a task may have several files open: scores go to
    one partition a run, and sorting them takes time and memory for nothing.
    """
    return {
        "spark.sql.shuffle.partitions": str(max(2, _cores(master))),
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.maxConcurrentOutputFileWriters": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
    }


def _unset(session: SparkSession, settings: Mapping[str, str]) -> dict[str, str]:
    """Those of `settings` that nobody has set; Spark's own numbers are 200 to shuffle and 10,000 to list files."""
    return {key: value for key, value in settings.items() if session.conf.get(key, None) in (None, "200", "10000")}


@contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """Point this process's standard output and error at `log` meanwhile; a JVM started inside keeps writing there."""
    streams = {1: sys.stdout, 2: sys.stderr}
    saved = {number: os.dup(number) for number in streams}
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(target, number)
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(saved[number], number)
            os.close(saved[number])
        os.close(target)


def _fresh_log() -> Path:
    log = state_folder() / "spark.log"
    if not log.exists() or log.stat().st_size > _LOG_LIMIT:
        log.write_text("")
    return log


def _why_not_started(output: str, log: Path) -> str:
    if "unresolved dependency" in output.lower():
        return (
            "Spark did not start because Delta Lake's JARs could not be downloaded from Maven Central: connect this "
            f"machine once (or set a mirror with spark.jars.ivySettings); later starts need no network (log: {log})"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = next((i for i, line in enumerate(lines) if re.search(r"(Exception|[Ee]rror|ERROR)\b", line)), None)
    reasons = [] if telling is None else [line for line in lines[telling : telling + 2] if not line.startswith("at ")]
    return f"Spark did not start: {': '.join(reasons)[:300] or 'no reason given'} (log: {log})"


def _java_version(java: str) -> int | None:
    """Feature number of a `java` binary: 8 for "1.8.0_392", 17 for "17.0.15"; None when it is unknown."""
    try:
        run = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', run.stderr + run.stdout)
    return int(match.group(1)) if match else None


def _cores(master: str) -> int:
    named = re.fullmatch(r"local\[(\d+)(?:,\d+)?\]", master)
    return int(named.group(1)) if named else os.cpu_count() or 2


def _jars() -> dict[str, str]:
    """Delta's two JARs from Ivy's folder when they are whole, else the package to be resolved (2 s even if cached)."""
    _, artifact, version = delta_package().split(":")
    for folder in sorted(Path.home().glob(".ivy2*/jars"), reverse=True):
        jars = [folder / f"io.delta_{name}-{version}.jar" for name in (artifact, "delta-storage")]
        if all(zipfile.is_zipfile(jar) for jar in jars):
            return {"spark.jars": ",".join(map(str, jars))}
    return {
        "spark.jars.packages": delta_package(),
        "spark.jars.excludes": ",".join(f"{group}:*" for group in _SHIPPED_WITH_SPARK),
    }


# --------------------------------------------------------------------------------------------------------------------
# Points in time as Spark columns, whatever the time zone of the session and the machine.

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(at: datetime) -> datetime:
    """Convert a moment to UTC; one without a zone counts as UTC."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def parsed_time(text: str, option: str) -> datetime:
    """Read a moment in UTC from the text of an option, such as 2026-03-09 or 2026-03-09T06:00. Raises ConfigError."""
    try:
        return utc(datetime.fromisoformat(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is no time: use such as 2026-03-09 or 2026-03-09T06:00") from error


def moment(micros: int) -> datetime:
    """Give the moment so many microseconds after the start of 1970, in UTC; a float would round it."""
    return _EPOCH + timedelta(microseconds=micros)


def instant(at: datetime) -> Column:
    """Make a timestamp literal, whatever the session's time zone."""
    return F.lit(utc(at).isoformat()).cast("timestamp")


def plus_hours(start: Column, hours: Column) -> Column:
    """Add hours to a time, exact to the microsecond."""
    return F.timestamp_micros(F.unix_micros(start) + F.round(hours * 3_600_000_000).cast("bigint"))


if __name__ == "__main__":
    try:
        if archive_classes() is None:
            print(f"no archive of Java's classes: this Java makes none at {class_archive()}", file=sys.stderr)
    except EnvironmentProblem as problem:  # sessions start without it, too
        print(f"no archive of Java's classes: {problem}", file=sys.stderr)
