"""Where models are kept: finding the MLflow store, proving within seconds that it answers, and keeping it quiet.

MLflow is imported inside functions: it takes seconds to import and most commands never need it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from uplift_spark import runtime
from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Seconds to connect, and to say anything at all. A server that does may then take its time: its first query can
# wait for a migration, and moving a model takes long.
_PROBE = (4, 10)
_WORK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# Nothing is sent home, no MLflow loader may unpickle (models are arrays and code), and no bar runs through a log.
_ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ARTIFACTS = "mlartifacts"  # folder of the models' files, beside a sqlite store
_LOCATIONS = {"runs": "artifact_uri", "model_versions": "source", "logged_models": "artifact_location"}
_NOISY = ("mlflow", "alembic", "urllib3", "git")


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store with its model registry.

    uri           sqlite:///<file>, http(s)://<host> or databricks[://<profile>]
    artifact_root URI under which runs keep files; None leaves it to the server
    catalog       Unity Catalog that holds the registered models; None for MLflow's own registry
    """

    uri: str
    artifact_root: str | None = None
    catalog: str | None = None

    @property
    def shown(self) -> str:
        """The URI without user and password, for messages."""
        parts = urlsplit(self.uri)
        if "@" not in parts.netloc:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def registry_uri(self) -> str:
        return self.uri.replace("databricks", "databricks-uc", 1) if self.catalog else self.uri

    def experiment(self, name: str) -> str:
        """MLflow experiment of a model; Databricks wants a workspace path."""
        return f"/Shared/uplift_{name}" if self.uri.startswith("databricks") else name

    def model(self, name: str) -> str:
        """Registered model's full name: three levels in a Unity Catalog."""
        return f"{self.catalog}.gold.{name}" if self.catalog else name

    def client(self) -> MlflowClient:
        """A client whose store has answered one question.

        Raises EnvironmentProblem, naming the URI, when the store is out of reach: at once for sqlite, after
        4 seconds for a host that cannot be connected, after 10 for one that never answers.
        """
        if self.uri.startswith("sqlite"):
            _check_sqlite(self.uri)
        with self.calls():
            import requests
            from mlflow import MlflowClient

            if self.uri.startswith("http"):  # any answer will do: it may want a login
                requests.get(f"{self.uri.rstrip('/')}/health", timeout=_PROBE)
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri)
            client.search_experiments(max_results=1)
        if self.uri.startswith("sqlite"):
            runtime.keep_empty_store(_sqlite_file(self.uri))
        return client

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Quiet calls with bounded waiting; whatever the store throws becomes one EnvironmentProblem."""
        with _environment(_WORK | _ALWAYS):
            errors = _store_errors()
            try:
                with _quiet():  # after the import, which sets MLflow's own log level
                    yield
            except errors as error:
                raise EnvironmentProblem(
                    f"MLflow store {self.shown} does not work: {_reason(error)}; start it or set registry.tracking_uri"
                ) from error


def open_store(lakehouse: Lakehouse, tracking_uri: str | None = None) -> Store:
    """The store a configuration means, without touching it.

    Without a URI: Databricks when the lakehouse is a catalog, else `mlflow.db` and `mlartifacts` in its folder.
    Raises ConfigError for stores that MLflow or this package does not support (plain folders above all).
    """
    if tracking_uri is None and lakehouse.catalog is None:
        folder = Path(lakehouse.path).resolve()
        return Store(f"sqlite:///{folder / 'mlflow.db'}", (folder / _ARTIFACTS).as_uri())
    uri = tracking_uri or "databricks"
    scheme = uri.partition(":")[0]
    if scheme == "databricks":
        return Store(uri, catalog=lakehouse.catalog)
    if scheme == "sqlite":
        return Store(uri, (_sqlite_file(uri).parent / _ARTIFACTS).as_uri())
    if scheme in ("http", "https") and urlsplit(uri).hostname:
        return Store(uri)
    raise ConfigError(
        f"registry.tracking_uri {Store(uri).shown!r} is not a store for models: "
        "use sqlite:///<file>, http(s)://<host>, databricks, or leave it out"
    )


def _sqlite_file(uri: str) -> Path:
    prefix, _, file = uri.partition(":///")
    if prefix != "sqlite" or not file or file == ":memory:":
        raise ConfigError(f"registry.tracking_uri {uri!r} does not name a file: write sqlite:///<folder>/mlflow.db")
    return Path(file).resolve()


def _check_sqlite(uri: str) -> None:
    """Create the folder and take the write lock once: MLflow itself would retry for minutes. See `_bring_home`."""
    file = _sqlite_file(uri)
    if any(character in str(file) for character in "?%"):  # MLflow would read another file
        raise EnvironmentProblem(f"MLflow store {uri} is out of reach: its path must not contain '?' or '%'")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        runtime.begin_store(file)
        with closing(sqlite3.connect(file, timeout=4, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            _bring_home(connection, file.parent / _ARTIFACTS)
            connection.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise EnvironmentProblem(
            f"MLflow store {uri} is out of reach ({_reason(error)}): "
            "make its folder writable or set registry.tracking_uri"
        ) from error


def _bring_home(connection: sqlite3.Connection, root: Path) -> None:
    """Let the models of a store that was copied or moved lie beside it, in `root`.

    MLflow records absolute folders. In a copy it would read and write those of the original, and find none after a
    move. Only experiments all of whose runs are ours are changed; others may keep their files where they like.
    """
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" not in tables:
        return
    ours = connection.execute(
        "SELECT experiment_id, artifact_location FROM experiments e WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE "
        "r.experiment_id = e.experiment_id AND r.run_uuid NOT IN (SELECT run_uuid FROM tags WHERE key = ?))",
        ("uplift_run_id",),
    ).fetchall()
    for experiment, recorded in ours:
        folder = Path(unquote(urlsplit(recorded or "").path))
        if folder.name != _ARTIFACTS or folder == root:
            continue
        home = root.as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (home, experiment))
        for table, column in _LOCATIONS.items():
            if table in tables:
                start = len(recorded) + 1
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (home, start, start, recorded + "/"),
                )
    if "model_versions" in tables and "storage_location" in _columns(connection, "model_versions"):
        connection.execute(
            "UPDATE model_versions SET storage_location = source WHERE storage_location <> source AND run_id IN "
            "(SELECT run_uuid FROM tags WHERE key = ?)",
            ("uplift_run_id",),
        )


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def _store_errors() -> tuple[type[Exception], ...]:
    """What a store may raise; sqlalchemy is absent beside MLflow's skinny half."""
    import requests
    from mlflow.exceptions import MlflowException

    errors: tuple[type[Exception], ...] = (MlflowException, requests.RequestException, OSError)
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return errors
    return (*errors, SQLAlchemyError)


def _reason(error: Exception) -> str:
    """First line of the innermost cause, short enough for one sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    first = text.strip().splitlines()[0].rstrip(".")
    if "Max retries exceeded" in first or "Connection" in first or "timed out" in first.lower():
        return "it does not answer"
    return first if len(first) <= 200 else first[:200] + "…"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors only from MLflow and what it uses: first use of a sqlite store logs a migration per table."""
    loggers: list[Any] = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
