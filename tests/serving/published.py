"""A campaign that is published, small enough to be made in a second, and a service that answers for it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import urllib3
import uvicorn

from tests.forest.frames import FEATURES, arm_roles, ordered_frame
from uplift_spark import CausalForest, UpliftModel
from uplift_spark.config import Config
from uplift_spark.serving.api import serving_app
from uplift_spark.serving.connections import ServingConnection
from uplift_spark.serving.store import Manifest, StoredUnit, publish_version, serving_folder

POLICY = {"purpose": "marketing", "planned": True, "value": 10.0, "cost": {"10%": 1.0, "5%": 0.5}, "net": True}
BARRED = "age below 18"


def trial() -> tuple[pd.DataFrame, UpliftModel]:
    """Rows, and a forest of three levels by numbers, a text and true or false."""
    frame = ordered_frame(800, seed=1)
    return frame, CausalForest(n_trees=16, n_buckets=4, min_leaf=10).fit(frame, arm_roles())


def features_of(frame: pd.DataFrame, row: int) -> dict[str, Any]:
    """Features of a row as JSON has them."""
    values = frame.iloc[row][list(FEATURES)].to_dict()
    return {k: None if v is None or (isinstance(v, float) and math.isnan(v)) else _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def units_of(frame: pd.DataFrame, model: UpliftModel, n: int, at: float) -> Iterator[tuple[str, StoredUnit]]:
    """The first n rows with their batch scores; every third is to get 10 %, every seventh is barred."""
    effect, error, low = model.forest.effect_arrays(_arrow(frame[:n]))
    for i in range(n):
        scores = tuple(zip(effect[i].tolist(), error[i].tolist(), low[i].tolist(), strict=True))
        level = "none" if i % 7 == 0 or i % 3 else "10%"
        decision = (level, BARRED if i % 7 == 0 else "best within the limits")
        values = tuple(float(v) if isinstance(v, bool) else v for v in features_of(frame, i).values())
        yield f"u{i:06d}", StoredUnit(values, int(at * 1e6), scores, decision)


def _arrow(frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    return pa.Table.from_pandas(frame[list(FEATURES)], preserve_index=False)


def manifest_of(model: UpliftModel, version: str = "v1", **changes: Any) -> Manifest:
    """The manifest of a version with this model."""
    content = model.forest.to_bytes()
    kinds = tuple((one.name, "text" if one.categorical else "number") for one in model.forest.bins)
    facts = {"name": "spring", "version": 1, "sha256": hashlib.sha256(content).hexdigest()}
    averages = {level: (0.5, 1.0) for level in model.levels.treated}
    manifest = Manifest(
        "spring", version, "y", kinds, model.levels.names, facts, averages, (BARRED,), {**POLICY, "price": 0.5},
        {"made": version},
    )  # fmt: skip
    return replace(manifest, **changes)


def on_trial(model: UpliftModel, share: float) -> dict[str, Any]:
    """What a version's manifest and files have of a challenger with this model."""
    content = model.forest.to_bytes()
    facts = {"name": "spring", "version": 2, "sha256": hashlib.sha256(content).hexdigest()}
    return {"challenger": {**facts, "salt": "spring-canary-2-1" if share else "", "share": share}, "beside": content}


def config_of(folder: Path, **serving: Any) -> Config:
    """A configuration whose published versions lie in a folder."""
    return Config(
        campaign="spring",
        source=None,
        roles={"outcome": "y", "control": "none", "features": list(FEATURES)},
        lakehouse={"path": str(folder)},
        serving=serving,
    )


def publish(config: Config, frame: pd.DataFrame, model: UpliftModel, n: int = 50, **changes: Any) -> Manifest:
    """Publish the first n rows, fresh as of now; returns the manifest."""
    at, redis, beside = changes.pop("at", time.time()), changes.pop("redis", None), changes.pop("beside", None)
    manifest = manifest_of(model, **changes)
    units = units_of(frame, model, n, at)
    publish_version(serving_folder(config), manifest, model.forest.to_bytes(), units, redis, beside)
    return manifest


class Service:
    """A service in this process, on a port of its own; it listens on a socket that was opened before, as workers do."""

    def __init__(self, config: Config, http: type[ServingConnection] = ServingConnection, idle: int = 5) -> None:
        self.app = serving_app(config)
        settings = uvicorn.Config(
            self.app, "127.0.0.1", 0, http=http, log_config=None, access_log=False, lifespan="on",
            timeout_keep_alive=idle,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        opened = settings.bind_socket()
        self.port = int(opened.getsockname()[1])
        self._thread = threading.Thread(target=self._server.run, args=([opened],), daemon=True)
        self._pool = urllib3.PoolManager(retries=False, timeout=120.0)

    def start(self) -> None:
        """Start, and wait until the port is open."""
        self._thread.start()
        end = time.monotonic() + 240
        while not self._server.started and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        assert self._server.started

    def stop(self) -> None:
        """Stop, and wait for it."""
        self._server.should_exit = True
        self._thread.join(60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        answer = self._pool.request("POST", self.url + path, body=text, headers=sent)
        return answer.status, json.loads(answer.data)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and text of an answer."""
        answer = self._pool.request("GET", self.url + path, headers=dict(headers or {}))
        return answer.status, answer.data.decode()


@contextmanager
def running(config: Config, **how: Any) -> Iterator[Service]:
    """A service that runs as long as the body."""
    service = Service(config, **how)
    service.start()
    try:
        yield service
    finally:
        service.stop()
