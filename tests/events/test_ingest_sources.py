"""Finding a data set: the folder, the cache, the download, and every way it can be the wrong file."""

import hashlib
from dataclasses import replace
from datetime import datetime

import pytest

from uplift_spark.config import TrialConf
from uplift_spark.errors import DataError, EnvironmentProblem
from uplift_spark.events import ingest as sources

TEXT = b"arm,bought\nnone,0\n"
SHA = hashlib.sha256(TEXT).hexdigest()
TRIAL = TrialConf(
    kind="trial",
    file="shop/trial.csv",
    sha256=SHA,
    treatment="arm",
    outcomes=("bought",),
    attributes=(),
    assigned_at=datetime(2024, 1, 1),
)


@pytest.fixture(autouse=True)
def no_folders(monkeypatch, tmp_path):
    monkeypatch.delenv(sources.DATA_FOLDER, raising=False)
    monkeypatch.setattr(sources, "state_folder", lambda: tmp_path / "state")


def _published(tmp_path, content=TEXT):
    path = tmp_path / "home.csv"
    path.write_bytes(content)
    return path.as_uri()


def test_folder_comes_first(monkeypatch, tmp_path):
    (tmp_path / "shop").mkdir()
    path = tmp_path / "shop" / "trial.csv"
    path.write_bytes(TEXT)
    monkeypatch.setenv(sources.DATA_FOLDER, str(tmp_path))
    assert sources.find(TRIAL) == path
    path.write_bytes(TEXT + b"x")
    with pytest.raises(DataError, match=r"trial\.csv has SHA-256 .* not the declared"):
        sources.find(TRIAL)


def test_download_is_kept_and_used_again(tmp_path):
    trial = replace(TRIAL, url=_published(tmp_path))
    path = sources.find(trial)
    assert path.read_bytes() == TEXT and path.parent == sources.cache_folder()
    (tmp_path / "home.csv").unlink()
    assert sources.find(trial) == path


def test_download_has_its_own_checksum(tmp_path):
    other = TEXT + b"10%,1\n"
    url = _published(tmp_path, other)
    assert sources.find(replace(TRIAL, url=url, url_sha256=hashlib.sha256(other).hexdigest())).read_bytes() == other
    with pytest.raises(DataError, match="nothing kept"):
        sources.find(replace(TRIAL, url=url))
    assert len(list(sources.cache_folder().iterdir())) == 1


def test_a_damaged_cache_is_noticed(tmp_path):
    path = sources.find(replace(TRIAL, url=_published(tmp_path)))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        sources.find(replace(TRIAL, url=_published(tmp_path)))


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/trial.csv", "no address"])
def test_out_of_reach_says_what_to_set(url, monkeypatch, tmp_path):
    with pytest.raises(EnvironmentProblem, match="UPLIFT_DATA is not set"):
        sources.find(replace(TRIAL, url=url))
    monkeypatch.setenv(sources.DATA_FOLDER, str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"which lacks it.*set UPLIFT_DATA"):
        sources.find(replace(TRIAL, url=url))
