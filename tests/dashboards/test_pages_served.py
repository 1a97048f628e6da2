"""`uplift dashboard serve`: pages on loopback that follow their tables."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager

import pytest

from uplift_spark.dashboards.pages import FreshPages, page_server


@contextmanager
def served(pages):
    server = page_server(pages, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def answer(port, path, host=None):
    call = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    call.request("GET", path, headers={"Host": host} if host else {})
    response = call.getresponse()
    text = response.read().decode()
    call.close()
    return response.status, text


def test_pages_follow_the_tables_and_are_made_once_each_version():
    state, made = {"version": "v1"}, []

    def make(version):
        made.append(version)
        return {"executive.html": f"page of {version}", "debug.html": "debug"}

    with served(FreshPages(lambda: state["version"], make, seconds=0.0)) as port:
        assert answer(port, "/") == (200, "page of v1") == answer(port, "/executive.html?x=1")
        assert answer(port, "/version") == (200, "v1") and answer(port, "/debug.html") == (200, "debug")
        state["version"] = "v2"
        assert answer(port, "/version") == (200, "v2") and answer(port, "/") == (200, "page of v2")
        assert made == ["v1", "v2"]


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/etc/passwd", "/nothing.html"])
def test_only_the_pages_are_served(path):
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        assert answer(port, path)[0] == 404


def test_another_name_is_refused():
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        assert answer(port, "/", "evil.example:80")[0] == 403
        assert answer(port, "/", f"localhost:{port}") == (200, "a")


def test_tables_that_cannot_be_read_are_said():
    def broken():
        raise OSError("the disk is gone")

    with served(FreshPages(broken, lambda version: {})) as port:
        assert answer(port, "/") == (503, "the tables cannot be read: the disk is gone")
