"""A bounded load on `uplift serve`: latencies and requests a second, on loopback, beside the client (`make load`).

    python tests/benchmarks/load_serving.py --seconds 10 --clients 64 --workers 2

Publishes a small campaign into a temporary folder, starts the command as a user would, and lets `wrk` ask for single
units at random: effects, then decisions, each of which is on disk before it is answered. Latencies are those that the
client sees; the server's counters must show as many requests.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import urllib3
import yaml
from rich.console import Console
from rich.table import Table

from tests.forest.frames import FEATURES
from tests.serving.published import config_of, publish, trial

ROOT = Path(__file__).parents[2]
UNITS = 800
BODIES = {
    "/v1/effects": '{"unit_id": "uUNIT"}',
    "/v1/decisions": '{"requests": [{"request_key": "KEY", "unit_id": "uUNIT"}]}',
}
SCRIPT = """
local thread_number = 0
function setup(thread)
  thread:set("number", thread_number)
  thread_number = thread_number + 1
end
function init() math.randomseed(number + 1); sent = 0 end
function request()
  sent = sent + 1
  local body = string.gsub('%s', "UNIT", string.format("%%06d", math.random(0, %d)))
  body = string.gsub(body, "KEY", "%s-" .. number .. "-" .. sent)
  return wrk.format("POST", "%s", {["content-type"] = "application/json"}, body)
end
function done(summary, latency)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.timeout
  local p50, p95, p99 = latency:percentile(50), latency:percentile(95), latency:percentile(99)
  local numbers = {summary.requests, summary.duration, errors.status, lost, p50, p95, p99}
  for place, number in ipairs(numbers) do numbers[place] = string.format("%%d", number) end
  io.write("RESULT " .. table.concat(numbers, " ") .. "\\n")
end
"""

console = Console(width=120, highlight=False)


def main() -> None:
    """Publish, serve, load, print; exit with 1 where an answer was an error or a counter is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_known_args()[0]
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: on Debian, apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        conf = prepared(folder, port, arguments.workers)
        command = [sys.executable, "-m", "uplift_spark.cli", "serve", "--conf", str(conf)]
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT) as server:
            try:
                right = measured(f"http://127.0.0.1:{port}", folder, arguments.seconds, arguments.clients)
            finally:
                server.terminate()
    sys.exit(0 if right else 1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def prepared(folder: Path, port: int, workers: int) -> Path:
    """A published campaign; returns its configuration."""
    serving = {"port": port, "workers": workers, "rate": 1e6, "exploration": 0.1, "max_running": 1000}
    publish(config_of(folder, **serving), *trial(), UNITS)
    conf = folder / "spring.yaml"
    roles = {"outcome": "y", "control": "none", "features": list(FEATURES)}
    facts = {"campaign": "spring", "roles": roles, "lakehouse": {"path": str(folder)}, "serving": serving}
    conf.write_text(yaml.safe_dump(facts))
    return conf


def measured(url: str, folder: Path, seconds: int, clients: int) -> bool:
    """Load both paths and print a line for each; whether every answer was right and counted."""
    pool = urllib3.PoolManager(retries=False)
    end = time.monotonic() + 300
    while not ready(pool, url):
        if time.monotonic() > end:
            sys.exit(f"the service did not become ready:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.2)
    lines = Table("path", "requests/s", "p50 ms", "p95 ms", "p99 ms", "requests", "counted", "errors")
    right = True
    for path in BODIES:
        load(url, path, folder, 2, clients, "warm")
        time.sleep(1)  # what the client did not wait for is still counted
        before = counted(pool, url, path)
        requests, duration, status, lost, *percentiles = load(url, path, folder, seconds, clients, "load")
        time.sleep(1)
        after = counted(pool, url, path) - before
        shown = [f"{one / 1000:.1f}" for one in percentiles]
        lines.add_row(
            path, f"{requests / duration * 1e6:,.0f}", *shown, f"{requests:,}", f"{after:,.0f}", f"{status + lost}"
        )
        # Those under way at the end are answered and counted, though wrk does not wait for them.
        right &= status == lost == 0 and requests <= after <= requests + clients
    console.print(f"{clients} clients, {seconds} s each")
    console.print(lines)
    return right


def ready(pool: urllib3.PoolManager, url: str) -> bool:
    """Whether the service answers."""
    try:
        return pool.request("GET", f"{url}/health/ready", timeout=2).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def load(url: str, path: str, folder: Path, seconds: int, clients: int, keys: str) -> list[int]:
    """Requests, microseconds, errors by status and by connection, percentiles in microseconds."""
    script = folder / "load.lua"
    script.write_text(SCRIPT % (BODIES[path], UNITS - 1, f"{keys}{time.time_ns()}", path))
    command = ["wrk", "-t2", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = re.search(r"RESULT ([\d ]+)", text)
    assert result is not None, text
    return [int(one) for one in result.group(1).split()]


def counted(pool: urllib3.PoolManager, url: str, path: str) -> float:
    """Requests of a path that the service has answered with 200, over all workers."""
    text = pool.request("GET", f"{url}/metrics").data.decode()
    named = re.findall(rf'^uplift_requests_total{{path="{path}",status="200"}} (\S+)$', text, re.M)
    return sum(map(float, named))


if __name__ == "__main__":
    main()
