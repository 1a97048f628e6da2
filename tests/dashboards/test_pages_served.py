"""`uplift dashboard serve`: pages on loopback that follow their tables."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from uplift_spark.dashboards import pages as module
from uplift_spark.dashboards.pages import FreshPages, page_server
from uplift_spark.lake.local_tables import LocalTables


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


def raw(port, request):
    """(first line, headers and body) of the answer to bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as call:
        call.sendall(request)
        text = b"".join(iter(lambda: call.recv(65536), b"")).decode("latin1")
    return text.partition("\r\n")[::2]


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


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "/nothing.html", "/a.html%00"]
)
def test_only_the_pages_are_served(path):
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        assert answer(port, path)[0] == 404


def test_another_name_is_refused():
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        assert answer(port, "/", "evil.example:80")[0] == 403
        assert answer(port, "/", f"localhost:{port}") == (200, "a") == answer(port, "/", "LOCALHOST")


@pytest.mark.parametrize(
    "hosts",
    [
        *([], [""], ["localhost", "evil.example"], ["localhost:evil.example"], ["localhost@evil.example"]),
        *(["localhost.evil.example"], ["127.0.0.1.evil.example"], ["127a0b0c1"], ["localhost\r\n evil.example"]),
    ],
    ids=str,
)
def test_a_host_that_is_not_this_one_is_refused(hosts):
    lines = "".join(f"Host: {one}\r\n" for one in hosts)
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        assert raw(port, f"GET / HTTP/1.1\r\n{lines}\r\n".encode())[0] == "HTTP/1.0 403 Forbidden"


def test_pages_are_read_and_nothing_else():
    """What is wrong with a request is a sentence, which repeats nothing of it."""
    host = b"Host: localhost\r\n"
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a" * 99})) as port:
        line, rest = raw(port, b"HEAD / HTTP/1.1\r\n" + host + b"\r\n")
        assert line.endswith("200 OK") and "Content-Length: 99" in rest and rest.endswith("\r\n\r\n")
        for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"<script>alert(1)</script>"):
            line, rest = raw(port, method + b" / HTTP/1.1\r\n" + host + b"\r\n")
            assert line.endswith("405 Method Not Allowed") and "Allow: GET, HEAD" in rest, line
            assert "script" not in line + rest and rest.endswith("pages are read by GET or HEAD")
        for status, request in {
            "414": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
            "431": b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
            "400": b"GET / <b>x HTTP/1.1\r\n" + host + b"\r\n",
        }.items():
            line, rest = raw(port, request)
            assert status in line and "text/plain" in rest and "<b>" not in line + rest
        assert answer(port, "/version") == (200, "v")


def test_many_slow_clients_keep_nobody_waiting():
    with served(FreshPages(lambda: "v", lambda version: {"a.html": "a"})) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
        for one in slow:
            one.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert answer(port, "/") == (200, "a")
        for one in slow:
            one.close()


def test_tables_that_cannot_be_read_are_tried_again_once_in_a_while_and_said_in_one_line():
    state, tried = {"broken": True}, []

    def fingerprint():
        tried.append(1)
        if state["broken"]:
            raise RuntimeError("the folder is gone\n\tat org.apache.spark.Stack(Stack.scala:1)")
        return "v"

    pages = FreshPages(fingerprint, lambda version: {"a.html": "a"}, seconds=60.0)
    with served(pages) as port:
        for _ in range(5):
            assert answer(port, "/") == (503, "the tables cannot be read: the folder is gone")
        assert len(tried) == 1
        state["broken"], pages._checked = False, float("-inf")
        assert answer(port, "/") == (200, "a")


def test_tables_that_cannot_be_read_are_said():
    def broken():
        raise OSError("the disk is gone")

    with served(FreshPages(broken, lambda version: {})) as port:
        assert answer(port, "/") == (503, "the tables cannot be read: the disk is gone")


def test_readers_do_not_wait_for_pages_that_take_long(monkeypatch):
    """Tables that take minutes to read, as by an engine that has to start: whoever reads gets the pages at hand."""
    state, going_on = {"version": "v1"}, threading.Event()
    monkeypatch.setattr(module, "PATIENCE", 0.05)

    def make(version):
        if version == "v2":
            assert threading.current_thread() is follower and going_on.wait(30)
        return {"a.html": f"page of {version}"}

    pages = FreshPages(lambda: state["version"], make, seconds=0.0)
    assert pages.current()[1]["a.html"] == "page of v1"
    follower = threading.Thread(target=pages.follow, daemon=True)
    follower.start()
    while not pages._followed:
        time.sleep(0.01)
    with served(pages) as port:
        state["version"] = "v2"
        for _ in range(3):
            assert answer(port, "/") == (200, "page of v1")
        going_on.set()
        for _ in range(200):
            if answer(port, "/version") == (200, "v2"):
                break
            time.sleep(0.05)
        assert answer(port, "/") == (200, "page of v2")


def test_a_table_in_the_place_of_another_is_news(tmp_path):
    """A lakehouse that was made anew has the same names and the same numbers of commits."""
    log = tmp_path / "gold" / "lift_table" / "_delta_log"
    log.mkdir(parents=True)
    commit = log / "00000000000000000000.json"
    commit.write_text("{}")
    tables = LocalTables(tmp_path)
    first = tables.fingerprint()
    assert tables.fingerprint() == first
    os.utime(commit, ns=(1, 1))
    second = tables.fingerprint()
    (log / "00000000000000000001.json").write_text("{}")
    third = tables.fingerprint()
    shutil.rmtree(tmp_path / "gold")
    assert len({first, second, third, tables.fingerprint()}) == 4
