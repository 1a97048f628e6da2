"""`uplift doctor`: every check says what to do; one that fails makes the command exit with 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from uplift_spark.config import Lakehouse
from uplift_spark.errors import UpliftError
from uplift_spark.jobs import doctor

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_that_cannot_be_written_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpliftError, match=r"file cannot be written .*set lakehouse.path"):
        doctor.writable(Lakehouse(path=str(tmp_path / "file" / "lakehouse")))
    assert doctor.writable(Lakehouse(path=str(tmp_path / "new"))) == str(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # nothing is left behind


def test_delta_of_another_spark_is_named_with_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uplift_spark.spark_versions.spark_version", lambda: "4.0")
    monkeypatch.setattr("uplift_spark.spark_versions.delta_version", lambda: "3.3.2")
    with pytest.raises(UpliftError, match=r"delta-spark 3.3.2 is not for Spark 4.0: pip install delta-spark==4.0.1"):
        doctor.delta()
    monkeypatch.setattr("uplift_spark.spark_versions.delta_version", lambda: "4.4.0")  # of Spark 4.2
    with pytest.raises(UpliftError, match=r"delta-spark 4.4.0 is not for Spark 4.0"):
        doctor.delta()
    monkeypatch.setattr("uplift_spark.spark_versions.spark_version", lambda: "3.4")
    with pytest.raises(UpliftError, match=r"Spark 3.4 is untried: install one of 3.5, 4.0, 4.1, 4.2"):
        doctor.delta()


def test_without_spark_it_exits_with_1_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "compiled", lambda: "elsewhere")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    last = list(doctor.checks(None, start_spark=True))[-1]
    assert (last.name, last.state) == ("Spark", "BROKEN") and "pip install 'uplift-spark[local]'" in last.text


@pytest.mark.slow
def test_the_command_exits_with_1_where_java_is_missing(tmp_path: Path) -> None:
    code = "from uplift_spark.jobs import doctor\ndoctor.compiled = lambda: ''\ndoctor.command(no_spark=True)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "/nowhere", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "BROKEN  Java          Java is not installed" in process.stdout and "apt-get install" in process.stdout
