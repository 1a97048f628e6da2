"""Public data sets: found in $UPLIFT_DATA, else downloaded once from their home; used only when the checksum agrees."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from uplift_spark.config import Trial
from uplift_spark.vocabulary import DataError, EnvironmentProblem, state_folder

DATA_FOLDER = "UPLIFT_DATA"
_TIMEOUT_SECONDS = 30
_BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def find(trial: Trial) -> Path:
    """Local path of a trial's file, its checksum verified.

    Looks in $UPLIFT_DATA, then in `cache_folder`, then downloads from `trial.url` into it. A file in
    $UPLIFT_DATA must have `trial.sha256`; a download `trial.url_sha256` when that is given.
    Raises DataError when the content is not the declared one, EnvironmentProblem when the file cannot be had.
    """
    folder = os.environ.get(DATA_FOLDER)
    if folder and (path := Path(folder) / trial.file).is_file():
        return _verified(path, trial.sha256)
    if trial.url is None:
        raise EnvironmentProblem(_missing(trial, "it has no public home to download from"))
    expected = trial.url_sha256 or trial.sha256
    cached = cache_folder() / f"{expected[:16]}-{Path(trial.url).name}"
    if not cached.is_file():
        _download(trial, cached, expected)
    return _verified(cached, expected)


def cache_folder() -> Path:
    """Where downloads are kept; not created here."""
    return state_folder() / "data"


def _verified(path: Path, expected: str) -> Path:
    actual = sha256(path)
    if actual != expected:
        raise DataError(
            f"{path} has SHA-256 {actual}, not the declared {expected}: it is damaged or another version; "
            "replace the file, or change source.sha256 if you mean this one"
        )
    return path


def _download(trial: Trial, target: Path, expected: str) -> None:
    """Fetch into a temporary file beside `target`, moved there only when whole and as declared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        try:
            with urllib.request.urlopen(str(trial.url), timeout=_TIMEOUT_SECONDS) as reply, part.open("wb") as stream:
                shutil.copyfileobj(reply, stream, _BLOCK)
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise EnvironmentProblem(_missing(trial, f"{trial.url} cannot be downloaded ({reason})")) from error
        actual = sha256(part)
        if actual != expected:
            raise DataError(f"{trial.url} sent a file with SHA-256 {actual}, not the declared {expected}: nothing kept")
        os.replace(part, target)


def _missing(trial: Trial, why: str) -> str:
    folder = os.environ.get(DATA_FOLDER)
    state = f"{DATA_FOLDER} is {folder}, which lacks it" if folder else f"{DATA_FOLDER} is not set"
    return f"{trial.file} is not here: {state}, and {why}; set {DATA_FOLDER} to the folder that contains it"
