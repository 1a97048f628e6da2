"""A published campaign and the real `uplift serve` for it, started as users start it; its memory and its counters."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import urllib3
import yaml

from tests.forest.frames import FEATURES, arm_roles, ordered_frame
from tests.serving.published import config_of, manifest_of, units_of
from uplift_spark import CausalForest, UpliftModel
from uplift_spark.config import Config
from uplift_spark.serving.decisions import DECISION, DecisionLog
from uplift_spark.serving.store import decision_log_file, publish_version, serving_folder

ROOT = Path(__file__).parents[2]
AVERAGES = {"uplift": 0.5, "uplift_se": 1.0}  # of every level, as `published.manifest_of` has them


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ready(pool: urllib3.PoolManager, url: str) -> bool:
    """Whether the service answers."""
    try:
        return pool.request("GET", f"{url}/health/ready", timeout=2).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@dataclass
class CampaignOnTrial:
    """What is published, and what right answers are.

    frame     features by unit, in the order of their numbers
    models    {version: model}
    effects   {version: (uplift, standard error), float64 [n, levels] each}
    serving   the section of the configuration
    """

    folder: Path
    frame: pd.DataFrame
    models: dict[str, UpliftModel]
    effects: dict[str, tuple[np.ndarray, np.ndarray]]
    serving: dict[str, Any]

    @classmethod
    def make(cls, folder: Path, units: int, trees: int, versions: int = 2, **serving: Any) -> CampaignOnTrial:
        """Train as many versions, and publish the first."""
        settings = {"port": free_port(), "workers": 2, "rate": 1e6, "exploration": 0.1, **serving}
        frame = ordered_frame(units, seed=1)
        models, effects = {}, {}
        for i in range(versions):
            model = CausalForest(n_trees=trees, n_buckets=4, min_leaf=10, seed=i).fit(frame, arm_roles())
            models[f"v{i + 1}"] = model
            table = pa.Table.from_pandas(frame[list(FEATURES)], preserve_index=False)
            effect, error, _ = model.forest.effect_arrays(table)
            effects[f"v{i + 1}"] = np.asarray(effect, float), np.asarray(error, float)
        campaign = cls(folder, frame, models, effects, settings)
        campaign.publish("v1")
        return campaign

    @property
    def config(self) -> Config:
        """As the service reads it."""
        return config_of(self.folder, **self.serving)

    @property
    def levels(self) -> tuple[str, ...]:
        """Control first."""
        return self.models["v1"].levels.names

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.serving["port"])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def publish(self, version: str, name: str | None = None, redis: Any = None) -> None:
        """Publish a version, under a name of its own where it is not the first time."""
        model = self.models[version]
        content = model.forest.to_bytes()
        facts = {"name": "spring", "version": int(version[1:]), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = replace(manifest_of(model, name or version), model=facts)
        units = units_of(self.frame, model, len(self.frame), time.time())
        publish_version(serving_folder(self.config), manifest, content, units, redis)

    def configuration(self, **serving: Any) -> Path:
        """A file of the configuration, with other settings where they are given."""
        conf = self.folder / "spring.yaml"
        roles = {"outcome": "y", "control": "none", "features": list(FEATURES)}
        facts = {"campaign": "spring", "roles": roles, "lakehouse": {"path": str(self.folder)}}
        conf.write_text(yaml.safe_dump({**facts, "serving": {**self.serving, **serving}}))
        return conf

    def decisions(self) -> dict[str, dict[str, Any]]:
        """{request key: what the log holds}."""
        log, after, known = DecisionLog(decision_log_file(self.config)), 0, {}
        while entries := log.entries(DECISION, after):
            known |= {body["request_key"]: body for _, body in entries}
            after = entries[-1][0]
        return known

    def with_settings(self, **serving: Any) -> CampaignOnTrial:
        """The same campaign, served otherwise."""
        return replace(self, serving={**self.serving, **serving})


class RunningService:
    """The process of `uplift serve` and its workers."""

    def __init__(self, process: subprocess.Popen[bytes], campaign: CampaignOnTrial) -> None:
        self._process, self.campaign = process, campaign
        self._pool = urllib3.PoolManager(retries=False)

    def workers(self) -> list[psutil.Process]:
        """Those that answer."""
        every = psutil.Process(self._process.pid).children(recursive=True)
        return [one for one in every if "resource_tracker" not in " ".join(one.cmdline())]

    def memory(self) -> float:
        """MiB that all of its processes have to themselves."""
        every = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        return sum(one.memory_full_info().uss for one in every) / 2**20

    def counted(self, path: str, status: int = 200) -> int:
        """Requests of a path that were answered with a status, over all workers."""
        text = self._pool.request("GET", f"{self.campaign.url}/metrics").data.decode()
        named = re.findall(rf'^uplift_requests_total{{path="{path}",status="{status}"}} (\S+)$', text, re.M)
        return int(sum(map(float, named)))

    def facts(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self._pool.request("GET", f"{self.campaign.url}/health/ready", timeout=5).json())


@contextmanager
def served(campaign: CampaignOnTrial, environment: Mapping[str, str] | None = None) -> Iterator[RunningService]:
    """`uplift serve` as users start it, until the block ends."""
    command = [sys.executable, "-m", "uplift_spark.cli", "serve", "--conf", str(campaign.configuration())]
    log = campaign.folder / "service.log"
    with (
        log.open("ab") as out,
        subprocess.Popen(
            command, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **(environment or {})}
        ) as process,
    ):
        try:
            pool, end = urllib3.PoolManager(retries=False), time.monotonic() + 240
            while not ready(pool, campaign.url):
                if time.monotonic() > end or process.poll() is not None:
                    raise RuntimeError(f"the service did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            service, wanted = RunningService(process, campaign), int(campaign.serving["workers"])
            while len(service.workers()) < wanted and wanted > 1 and time.monotonic() < end:
                time.sleep(0.2)
            time.sleep(1.0)  # the other workers warm up, too
            yield service
        finally:
            process.terminate()
            process.wait(60)
