"""Prometheus and Alertmanager as Debian has them, and a server that answers as a test wants; all on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def program(*names: str) -> str:
    """Path of the first that is there; skips the test where none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is not installed (Debian: apt-get install prometheus prometheus-alertmanager)")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def fetched(url: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()


def waited_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    """What a call returns once it is true."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := what():
                return value
        except (OSError, urllib.error.URLError):
            pass
        assert time.monotonic() < end, "nothing came in time"
        time.sleep(0.3)


@contextmanager
def running(command: list[str], folder: Path, ready: str) -> Iterator[None]:
    """A process until the block ends; `ready` answers when it is up."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            waited_for(lambda: fetched(ready))
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def alertmanager(folder: Path, config: str) -> Iterator[str]:
    """An Alertmanager with this configuration; its address."""
    path, port = program("prometheus-alertmanager", "alertmanager"), free_port()
    (folder / "alertmanager.yml").write_text(config)
    command = [path, "--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address="]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], folder, f"http://127.0.0.1:{port}/-/ready"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def prometheus(folder: Path, config: str = "prometheus.yml") -> Iterator[str]:
    """A Prometheus with a configuration of the folder; its address."""
    path, port = program("prometheus"), free_port()
    command = [path, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], folder, f"http://127.0.0.1:{port}/-/ready"):
        yield f"http://127.0.0.1:{port}"


def query(address: str, promql: str) -> list[dict[str, Any]]:
    answer = fetched(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
    assert answer["status"] == "success", promql
    return list(answer["data"]["result"])


class Receiver(ThreadingHTTPServer):
    """Answers every request with `status`, after `delay` seconds, and keeps what came; GET answers `page`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.delay, self.page = 200, 0.0, ""
        self.location = ""
        self.came: list[tuple[str, dict[str, str], Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, dict(self.headers), json.loads(text)))
        time.sleep(self.server.delay)
        self._answer(self.server.status, "")

    def do_GET(self) -> None:
        self._answer(200, self.server.page)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text.encode())))
        with suppress(OSError):  # whoever waited is gone
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server until the block ends."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
