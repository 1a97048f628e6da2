"""Code of today reads what the last release wrote (`make_last_release.py`): model files, tables, registry."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from tests.golden.campaigns import read, uplift
from tests.golden.digest import differences, table_digest
from tests.golden.make_last_release import FOLDER, PLACE, put
from uplift_spark import load_model

MODELS = sorted(path.stem for path in (FOLDER / "models").glob("*.uplift"))

# {column now: column then} of gold.uplift_scores and of effects.
RENAMED: dict[str, str] = {}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Units that the models know nothing of."""
    return pd.read_parquet(FOLDER / "frame.parquet")


@pytest.fixture(scope="module")
def told() -> pd.DataFrame:
    """What the last release's code told of them."""
    return pd.read_parquet(FOLDER / "effects.parquet")


def test_every_kind_of_model_is_there() -> None:
    assert len(MODELS) == 14


@pytest.mark.parametrize("name", MODELS)
def test_an_old_model_tells_the_same(name: str, frame: pd.DataFrame, told: pd.DataFrame) -> None:
    effects = load_model(FOLDER / "models" / f"{name}.uplift").effect(frame).rename(columns=RENAMED)
    then = told[told["model"] == name].drop(columns="model").reset_index(drop=True)
    pd.testing.assert_frame_equal(effects, then, check_dtype=False, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if "learner" not in name and "transformation" not in name])
def test_an_old_forest_is_written_as_it_was(name: str) -> None:
    path = FOLDER / "models" / f"{name}.uplift"
    assert load_model(path).to_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lakehouse of the last release in another place; its store is told that place."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FOLDER / "lakehouse.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    place = folder / "lakehouse"
    put(place / "mlflow.db", PLACE, str(place))
    return place


@pytest.fixture(scope="module")
def command(old: Path, spark: SparkSession) -> Callable[..., str]:
    """Runs a command on the old lakehouse; what it prints."""
    options = ("--conf", str(FOLDER / "conf.yaml"), "--set", f"lakehouse.path={old}")

    def run(*words: str) -> str:
        with contextlib.chdir(old.parent):
            return uplift(*words, *options)

    return run


@pytest.mark.slow
def test_an_old_registered_model_loads_with_its_own_code(old: Path, tmp_path: Path) -> None:
    """The registered script brings the package it was written with: today's must not get in its way."""
    (model,) = old.glob("mlartifacts/*/artifacts/model")
    code = (
        "import sys, mlflow.pyfunc, pandas as pd; model = mlflow.pyfunc.load_model(sys.argv[1]); "
        "row = {'unit_id': ['a'], 'recency_days': [3.0], 'avg_basket': [20.0], 'age': [30.0], 'region': ['north']}; "
        "print(len(model.predict(pd.DataFrame(row))))"
    )
    given = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split() == ["2"], done.stderr[-2000:]


@pytest.mark.slow
def test_old_tables_are_read_and_gone_on_with(command: Callable[..., str], old: Path, spark: SparkSession) -> None:
    listed = command("tables")
    assert all(table in listed for table in ("bronze.assignment", "silver.training_last", "gold.lift_table"))
    printed = command("sql", "SELECT count(*) AS n FROM gold.uplift_scores", "--format", "csv")
    assert printed.split() == ["n", "1200"]

    before = _scores(old, spark)
    for verb in ("ingest", "features", "train", "score", "lift", "policy"):
        command(verb)
    again = _scores(old, spark)
    assert len(again) == len(before), "a rerun of the old runs added rows: their ids have changed"

    command("score", "--run-id", "score-again")
    scored = _scores(old, spark)
    assert len(scored) == 2 * len(before)
    told = [scored[scored["run_id"] == run].drop(columns=["run_id", "scored_at"]) for run in scored["run_id"].unique()]
    first, second = (table_digest(_arrow(one)) for one in told)
    assert differences("gold.uplift_scores", first, second) == []

    rows = len(_table(old, spark, "gold.lift_table"))
    command("lift", "--run-id", "lift-again")
    assert len(_table(old, spark, "gold.lift_table")) == 2 * rows
    command("policy", "--run-id", "policy-again")

    unit = str(before["unit_id"].min())
    assert "gold.uplift_scores 4" in command("erase", "--unit", unit)
    assert unit not in set(_scores(old, spark)["unit_id"])
    command("score")


def _table(lakehouse: Path, spark: SparkSession, name: str) -> pd.DataFrame:
    return read(spark, lakehouse, name).to_pandas()


def _scores(lakehouse: Path, spark: SparkSession) -> pd.DataFrame:
    return _table(lakehouse, spark, "gold.uplift_scores")


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)
