"""A trial's file where the jobs look for it."""

import hashlib
from dataclasses import replace

import pytest

from uplift_spark.config import TrialConf
from uplift_spark.events.ingest import DATA_FOLDER


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
