"""One unit's effects from its features by others that serve models, beside `uplift serve`: one forest, the same units.

MLflow is installed with the project. MLServer, Feast and schemathesis need other versions of its libraries, so `peers`
and `cases` take a Python that has them:

    python -m venv build/peers
    build/peers/bin/pip install mlserver feast schemathesis 'uvloop<0.22' numba pyarrow pandas skops cachetools rich
    make load ARGS="--parts peers cases --peers build/peers/bin/python"
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import urllib3
from rich.table import Table

from tests.forest.frames import FEATURES
from tests.load.caller import Question, in_turn
from tests.load.parts import Shown, milliseconds
from tests.load.service import ROOT, CampaignOnTrial, free_port, served
from tests.serving.published import features_of
from uplift_spark.serving.store import MODEL, open_version, serving_folder

_WARM = 300
_CASES_OF = 4  # that schemathesis makes of an example it is allowed, at least
_LOOKUPS = 2000


def beside_others(campaign: CampaignOnTrial, requests: int, clients: int, python: str | None) -> Shown:
    """Requests a second and latencies of each, by as many workers; lookups of a unit's features."""
    units = [features_of(campaign.frame, row) for row in range(500)]
    table = Table("service", "workers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors")
    table.title = f"effects on one unit from its features: {clients} clients in turn, {requests:,} requests"
    workers = int(campaign.serving["workers"])

    def shown(name: str, port: int, make: Callable[[int], Question]) -> int:
        in_turn(port, clients, _WARM, make)
        tally = in_turn(port, clients, requests, make)
        failed = requests - len(tally.of(200))
        rate = f"{requests / tally.lasted:,.0f}"
        table.add_row(name, str(workers), rate, *milliseconds(tally.of(200), 0.5, 0.95, 0.99), str(failed))
        return failed

    with served(campaign):
        failed = shown("uplift serve", campaign.port, _of_ours(units))
    with _mlflow(campaign, workers) as port:
        failed += shown("mlflow models serve", port, _of_mlflow(campaign.frame))
    if python is None:
        table.add_row("MLServer", *[""] * 5, "skipped: --peers names no Python that has it")
    else:
        with _mlserver(campaign, workers, python) as port:
            failed += shown("MLServer", port, _of_mlserver(units))
    table.add_section()
    for name, microseconds in _lookups(campaign, python):
        table.add_row(name, "", "", f"{microseconds / 1000:.3f}")
    return table, failed == 0


def cases(campaign: CampaignOnTrial, number: int, python: str | None) -> Shown:
    """Requests that schemathesis makes up from the description of the API: none may be an error of the service."""
    table = Table("requests made up", "passed", "errors in the log", title="schemathesis over /openapi.json")
    if python is None:
        table.add_row("skipped: --peers names no Python that has schemathesis", "", "")
        return table, True
    command = [str(Path(python).absolute().parent / "schemathesis"), "run", f"{campaign.url}/openapi.json"]
    command += ["--mode", "all"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(max(1, number // _CASES_OF)), "--no-color"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--workers", "2"]
    with served(campaign):
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if (counts := re.search(r"(\d[\d,]*) generated, (\d[\d,]*) passed", said)) is None:
        raise RuntimeError(said[-2000:])
    made, passed = (int(one.replace(",", "")) for one in counts.groups())
    errors = (campaign.folder / "service.log").read_text().count('"event": "error"')
    table.add_row(f"{made:,}", f"{passed:,}", f"{errors:,}")
    return table, made == passed and not errors


def _of_ours(units: Sequence[dict[str, Any]]) -> Callable[[int], Question]:
    bodies = [json.dumps({"features": one}).encode() for one in units]
    return lambda i: Question("/v1/effects", bodies[i % len(bodies)])


def _of_mlflow(frame: pd.DataFrame) -> Callable[[int], Question]:
    columns = ["unit", *FEATURES]
    rows = frame[:500].reset_index(drop=True)
    rows = rows.assign(unit=[f"u{i:06d}" for i in range(len(rows))])[columns]
    bodies = [f'{{"dataframe_split": {rows[i : i + 1].to_json(orient="split")}}}'.encode() for i in range(len(rows))]
    return lambda i: Question("/invocations", bodies[i % len(bodies)])


def _of_mlserver(units: Sequence[dict[str, Any]]) -> Callable[[int], Question]:
    kinds = {str: "BYTES", bool: "BOOL"}
    bodies = []
    for unit in units:
        if any(value is None for value in unit.values()):  # its protocol has no missing value
            continue
        inputs = [
            {"name": name, "shape": [1], "datatype": kinds.get(type(value), "FP64"), "data": [value]}
            for name, value in unit.items()
        ]
        bodies.append(json.dumps({"inputs": inputs}).encode())
    return lambda i: Question("/v2/models/spring/infer", bodies[i % len(bodies)])


@contextmanager
def _started(command: Sequence[str], log: Path, url: str, environment: dict[str, str]) -> Iterator[None]:
    """A service in a process group of its own, once it answers under an address."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            end = time.monotonic() + 240
            while True:
                try:
                    if urllib3.request("GET", url, retries=False, timeout=2).status == 200:
                        break
                except urllib3.exceptions.HTTPError:
                    pass
                if time.monotonic() > end or process.poll() is not None:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


@contextmanager
def _mlflow(campaign: CampaignOnTrial, workers: int) -> Iterator[int]:
    """The model as the registry saves it for MLflow, served by MLflow."""
    from mlflow.pyfunc import save_model

    home = campaign.folder / "mlflow"
    home.mkdir()
    file = home / MODEL
    file.write_bytes(campaign.models["v1"].forest.to_bytes())
    loader = "uplift_spark.registry.mlflow_model"
    save_model(str(home / "model"), loader_module=loader, data_path=str(file), pip_requirements=["pandas"])
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        str(home / "model"),
        "--port",
        str(port),
    ]
    command += ["--env-manager", "local", "--workers", str(workers)]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with _started(command, home / "log", f"http://127.0.0.1:{port}/ping", path):
        yield port


@contextmanager
def _mlserver(campaign: CampaignOnTrial, workers: int, python: str) -> Iterator[int]:
    """The files that `uplift package` writes for MLServer, served by it."""
    home, port = campaign.folder / "mlserver", free_port()
    (home / "spring").mkdir(parents=True)
    (home / "spring" / MODEL).write_bytes(campaign.models["v1"].forest.to_bytes())
    model = {"name": "spring", "implementation": "uplift_spark.serving.inference.UpliftRuntime"}
    (home / "spring" / "model-settings.json").write_text(json.dumps({**model, "parameters": {"uri": f"./{MODEL}"}}))
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (home / "settings.json").write_text(json.dumps({**settings, "parallel_workers": workers, "debug": False}))
    command = [str(Path(python).absolute().parent / "mlserver"), "start", str(home)]
    with _started(command, home / "log", f"http://127.0.0.1:{port}/v2/models/spring/ready", {"PYTHONPATH": str(ROOT)}):
        yield port


def _lookups(campaign: CampaignOnTrial, python: str | None) -> Iterator[tuple[str, float]]:
    """Median microseconds of the lookup of one unit's features in this process; of Feast's in its own."""
    version = open_version(serving_folder(campaign.config), None)
    ids = [f"u{i % len(campaign.frame):06d}" for i in range(_LOOKUPS)]
    times = []
    for unit in ids:
        start = time.perf_counter()
        version.units.get([unit])
        times.append(time.perf_counter() - start)
    version.units.close()
    yield "lookup of a unit: uplift, SQLite", 1e6 * sorted(times)[len(times) // 2]
    if python is not None:
        file = campaign.folder / "units.parquet"
        now = pd.Timestamp.now(tz="UTC")
        frame = campaign.frame[[*FEATURES]].assign(event_timestamp=now)
        frame["unit_id"] = [f"u{i:06d}" for i in range(len(frame))]
        frame.to_parquet(file)
        script = Path(__file__).with_name("feast_lookup.py")
        answer = subprocess.run(
            [python, str(script), str(file), str(_LOOKUPS // 10)], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise RuntimeError(answer.stderr[-2000:])
        yield "lookup of a unit: Feast, SQLite", float(answer.stdout.split()[-1])
