"""MLflow stores that need not be made anew, and a trial's file where the jobs look for it."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from uplift_spark.config import Lakehouse, TrialConf
from uplift_spark.events.ingest import DATA_FOLDER
from uplift_spark.registry import store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """File of an MLflow store in which nothing was kept yet."""
    folder = tmp_path_factory.mktemp("store")
    store.open_store(Lakehouse(path=str(folder))).client()
    return folder / "mlflow.db"


@pytest.fixture(scope="module", autouse=True)
def stores_begin_as_copies(empty_store):
    """New stores of a module's lakehouses are copies of one: MLflow works for two seconds to make its tables."""
    check = store._check_sqlite

    def copied(uri):
        file = Path(uri.removeprefix("sqlite:///"))
        if file.parent.is_dir() and not file.exists():
            shutil.copyfile(empty_store, file)
        check(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_check_sqlite", copied)
        yield


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A function that puts a trial's text into $UPLIFT_DATA and gives the source that names it."""

    def publish(text: str, source: TrialConf, **changes) -> TrialConf:
        (tmp_path / source.file).write_text(text)
        monkeypatch.setenv(DATA_FOLDER, str(tmp_path))
        return replace(source, **{"sha256": hashlib.sha256(text.encode()).hexdigest(), **changes})

    return publish


def rows_of(lake, table, **where):
    """The table's rows with these values, as pandas."""
    frame = lake.read(table).toPandas()
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame
