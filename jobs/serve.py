"""Answer effects and decisions over HTTP from what `uplift publish` published; --new-key makes an API key.

Needs neither Spark nor Java. Listens on loopback by default (`serving.host`); `serving.keys` names a file of API keys.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from uplift_spark.console import ConfOption, SetOption, err, main_command, out, read_config
from uplift_spark.errors import ConfigError, EnvironmentProblem

_KEEP_ALIVE = 5  # seconds that a connection may be idle
_MEMORY = "/dev/shm"
_LOGS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(message)s"}, "plain": {"format": "%(levelname)s %(message)s"}},
    "handlers": {
        "lines": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"},
        "plain": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"},
    },
    "loggers": {
        "uplift_spark.serving": {"handlers": ["lines"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["plain"], "level": "WARNING", "propagate": False},
    },
}
"""Requests and errors as JSON lines, and what the server itself has to say."""


def command(
    conf: ConfOption,
    set_: SetOption = None,
    new_key: Annotated[str | None, typer.Option("--new-key", help="Make an API key of this name, and stop.")] = None,
    scopes: Annotated[str, typer.Option("--scopes", help="What the new key opens.")] = "effects,decide",
) -> None:
    """Serve until the process ends."""
    config = read_config(conf, set_, "serve")
    try:
        import uvicorn

        from uplift_spark.serving.guard import new_key as add_key
    except ImportError as error:
        raise EnvironmentProblem(f"{error.name} is not installed: pip install 'uplift-spark[serving]'") from error
    if new_key is not None:
        if config.serving.keys is None:
            raise ConfigError("serving.keys names no file for the key: set it")
        wanted = tuple(part.strip() for part in scopes.split(",") if part.strip())
        out().print(add_key(Path(config.serving.keys), new_key, wanted), soft_wrap=True)
        err().print(f"added {new_key} to {config.serving.keys}; the key is not shown again", soft_wrap=True)
        return
    # In memory where there is such a folder: who writes into a mapped page waits while the disk writes it back.
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    counters = tempfile.mkdtemp(prefix="uplift-metrics-", dir=memory)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counters  # before the client of Prometheus is imported
    try:
        _serve(conf, tuple(set_ or ()), uvicorn)
    finally:
        shutil.rmtree(counters, ignore_errors=True)


def _serve(conf: Path, overrides: tuple[str, ...], uvicorn: Any) -> None:
    from uplift_spark.serving.api import SETTINGS
    from uplift_spark.serving.connections import ServingConnection
    from uplift_spark.serving.decisions import DecisionPolicy
    from uplift_spark.serving.guard import KeyRing
    from uplift_spark.serving.pacing import Pacer
    from uplift_spark.serving.store import check_plain_ids, open_version, serving_folder
    from uplift_spark.serving.tokens import signing_keys

    config = read_config(conf, overrides, "serve")
    serving = config.serving
    check_plain_ids(config)
    KeyRing(None if serving.keys is None else Path(serving.keys))  # what is wrong is said here, not by each worker
    signing_keys(serving)
    version = open_version(serving_folder(config), serving.redis)
    version.units.close()
    DecisionPolicy(version.manifest, serving)
    if serving.budget is not None:
        Pacer(version.manifest, serving)
    os.environ[SETTINGS] = json.dumps([str(conf.resolve()), overrides])
    err().print(f"serving {config.campaign} on http://{serving.host}:{serving.port}", soft_wrap=True)
    uvicorn.run(
        "uplift_spark.serving.api:app_from_environment",
        factory=True,
        http=ServingConnection,
        ws="none",
        host=serving.host,
        port=serving.port,
        workers=serving.workers,
        log_config=_LOGS,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        backlog=512,
    )


if __name__ == "__main__":
    main_command(command, __doc__)
