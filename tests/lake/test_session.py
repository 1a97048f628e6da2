"""The Java check, the local session's settings, and a start that fails."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from tests.conftest import ROOT
from uplift_spark.config import Lakehouse
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.lake import session
from uplift_spark.lake.session import check_java, local_conf, spark_session


def java_home(folder: Path, says: str) -> Path:
    """A JAVA_HOME whose `java -version` prints `says` to standard error, as the real one does."""
    java = folder / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    java.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("says", "version"),
    [('java version "1.8.0_392"', "Java 8"), ('openjdk version "11.0.2" 2019-01-15', "Java 11")],
)
def test_old_java_is_refused_with_a_remedy(
    says: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, says)))
    with pytest.raises(
        EnvironmentProblem, match=rf"{version}, and Spark [\d.]+ needs 17 .*apt-get install openjdk-17-jre-headless"
    ):
        check_java()


@pytest.mark.parametrize("says", ['openjdk version "17.0.15" 2025-04-15', 'openjdk version "21-ea" 2023-09-19'])
def test_new_java_is_accepted(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, says)))
    check_java()


def test_java_without_a_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, "no idea")))
    with pytest.raises(EnvironmentProblem, match="does not tell its version"):
        check_java()


def test_missing_java_differs_from_a_wrong_java_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"JAVA_HOME=.* has no bin/java"):
        check_java()
    monkeypatch.delenv("JAVA_HOME")
    with pytest.raises(EnvironmentProblem, match=r"Java is not installed.*openjdk-17-jre-headless"):
        check_java()


def test_a_running_session_is_taken(spark: SparkSession) -> None:
    assert spark_session(Lakehouse(), master="local[7]") is spark
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"


def test_local_settings_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    conf = local_conf(Lakehouse(path="here"), "app", "local[5]")
    assert conf["spark.sql.shuffle.partitions"] == "5"
    assert conf["spark.driver.memory"] == "4g"
    assert conf["spark.driver.bindAddress"] == "127.0.0.1"
    assert local_conf(Lakehouse(), "app", "local[1]")["spark.sql.shuffle.partitions"] == "2"
    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "9g")
    assert "spark.driver.memory" not in local_conf(Lakehouse(), "app")


def test_delta_is_resolved_without_what_spark_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    conf = local_conf(Lakehouse(), "app")
    assert conf["spark.jars.packages"].startswith("io.delta:delta-spark_")
    assert "org.apache.hadoop:*" in conf["spark.jars.excludes"]
    assert "spark.jars" not in conf


def test_truncated_jars_are_resolved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, artifact, version = local_conf(Lakehouse(), "app")["spark.jars.packages"].split(":")
    jars = tmp_path / ".ivy2.5.2" / "jars"
    jars.mkdir(parents=True)
    for name in (artifact, "delta-storage"):
        (jars / f"io.delta_{name}-{version}.jar").write_bytes(b"PK\x03\x04 cut off")
    assert "spark.jars.packages" in local_conf(Lakehouse(), "app")


def test_a_failed_start_is_one_sentence_and_no_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        "from uplift_spark.config import Lakehouse\n"
        "from uplift_spark.lake.session import local_conf, local_session\n"
        f"conf = local_conf(Lakehouse(path={str(tmp_path)!r}), 'app')\n"
        "conf['spark.driver.memory'] = '1k'\n"
        "try:\n    local_session(conf)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.startswith("EnvironmentProblem Spark did not start: ")
    assert "Too small" in run.stdout
    assert run.stdout.count("\n") == 1
    assert run.stderr == ""


def test_classes_are_archived_once_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "state_folder", lambda: tmp_path)
    monkeypatch.delenv("SPARK_SUBMIT_OPTS", raising=False)
    before = local_conf(Lakehouse(), "x")["spark.driver.extraJavaOptions"]
    archive = session.class_archive()
    archive.write_bytes(b"made before")
    assert session.archive_classes() == archive and archive.read_bytes() == b"made before"
    after = local_conf(Lakehouse(), "x")["spark.driver.extraJavaOptions"]
    assert str(archive) not in before and f"-XX:SharedArchiveFile={archive}" in after
    blank = tmp_path / "with blank"
    blank.mkdir()
    monkeypatch.setattr(session, "state_folder", lambda: blank)
    assert session.archive_classes() is None


@pytest.mark.slow
def test_java_makes_an_archive_and_takes_it(tmp_path: Path) -> None:
    """In processes of their own: Java writes it when it ends; with -Xshare:on it starts with a fitting one or not."""
    here = f"from pathlib import Path\nfrom uplift_spark.lake import session\nfolder = Path({str(tmp_path)!r})\n"
    here += "session.state_folder = lambda: folder\n"
    make = here + "print(session.archive_classes())"
    use = here + (
        "from uplift_spark.config import Lakehouse\n"
        "conf = session.local_conf(Lakehouse(str(folder)), 'x')\n"
        "conf['spark.driver.extraJavaOptions'] += ' -Xshare:on'\n"
        "def counted(batches):\n    import pyarrow as pa\n"
        "    yield pa.record_batch({'n': [sum(map(len, batches))]})\n"
        "print(session.local_session(conf).range(0, 3, 1, 1).mapInArrow(counted, 'n bigint').collect()[0][0])"
    )
    lines = []
    for script in (make, use):
        run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
        lines.append(run.stdout.strip())
    (archive,) = tmp_path.glob("classes-*.jsa")
    assert lines == [str(archive), "3"] and archive.stat().st_size > 10_000_000


def test_a_machine_too_busy_to_write_the_archive_has_none() -> None:
    """Sessions start without it, so setting up goes on: the JVM is ended, and a sentence says why."""

    class Process:
        stdin, killed = io.BytesIO(), False

        def wait(self, seconds: float) -> None:
            raise subprocess.TimeoutExpired("java", seconds)

        def kill(self) -> None:
            self.killed = True

    process = Process()
    gateway = SimpleNamespace(shutdown=lambda: None, proc=process)
    started = SimpleNamespace(stop=lambda: None, sparkContext=SimpleNamespace(_gateway=gateway))
    with pytest.raises(EnvironmentProblem, match="within 300 seconds"):
        session._end(started)
    assert process.killed
