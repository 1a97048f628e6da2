"""`uplift serve` as a command: workers, counters of all of them, a killed worker, one sentence where it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3
import yaml

from tests.forest.frames import FEATURES
from tests.serving.published import config_of, publish, trial
from uplift_spark.serving.decisions import DECISION, DecisionLog
from uplift_spark.serving.store import decision_log_file

ROOT = Path(__file__).parents[2]
POOL = urllib3.PoolManager(retries=urllib3.Retry(3, backoff_factor=0.2, allowed_methods=None), timeout=60)


def written_conf(folder: Path, **serving: object) -> Path:
    """A configuration file for `published.config_of`."""
    conf = folder / "spring.yaml"
    roles = {"outcome": "y", "control": "none", "features": list(FEATURES)}
    facts = {"campaign": "spring", "roles": roles, "lakehouse": {"path": str(folder)}, "serving": serving}
    conf.write_text(yaml.safe_dump(facts))
    return conf


def uplift_serve(conf: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "uplift_spark.cli", "serve", "--conf", str(conf), *more]


def workers_of(process: int) -> list[int]:
    """Processes that the command started and that serve."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def until(condition, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for workers in /proc")
def test_two_workers_count_together_and_lose_nothing_when_one_is_killed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    publish(config_of(tmp_path), *trial(), 20)
    conf, url = written_conf(tmp_path, workers=2, port=port), f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return POOL.request("GET", f"{url}/health/ready", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def decide(number: int) -> int:
        body = json.dumps({"requests": [{"request_key": f"k{number}", "unit_id": "u000001"}]})
        answer = POOL.request("POST", f"{url}/v1/decisions", body=body, headers={"content-type": "application/json"})
        return answer.status

    def counted() -> float:
        text = POOL.request("GET", f"{url}/metrics").data.decode()
        return sum(map(float, re.findall(r'^uplift_requests_total{path="/v1/decisions".*} (\S+)$', text, re.M)))

    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(uplift_serve(conf), cwd=ROOT, stdout=log, stderr=log)
    try:
        until(ready)
        assert {decide(n) for n in range(40)} == {200}
        assert counted() == 40
        before = workers_of(process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert {decide(n) for n in range(40, 60)} == {200}
        until(lambda: len(workers_of(process.pid)) == 2 and before[0] not in workers_of(process.pid))
        assert {decide(n) for n in range(60, 80)} == {200}
    finally:
        process.terminate()
        assert process.wait(120) == 0
    logged = {body["request_key"] for _, body in DecisionLog(decision_log_file(config_of(tmp_path))).entries(DECISION)}
    assert logged == {f"k{n}" for n in range(80)}
    assert "u000001" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "error: nothing is published in .*: run `uplift publish` first"),
        (("--new-key", "shop"), "error: serving.keys names no file for the key: set it"),
        (("--set", "serving.host=0.0.0.0"), "error: serving.host is '0.0.0.0', which others reach"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, more: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        uplift_serve(written_conf(tmp_path), *more), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and re.match(sentence, done.stderr) and len(done.stderr.strip().splitlines()) <= 2
