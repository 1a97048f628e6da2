"""Pages over HTTP on this machine alone, made anew when the tables change (`serve_pages`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
_NAMES = {"localhost", HOST}


class FreshPages:
    """Pages that follow their tables.

    Args:
        fingerprint: Gives a text that changes with the tables.
        make: Makes {file: HTML} of the tables whose fingerprint it is called with.
        seconds: Between two looks at the tables.
    """

    def __init__(
        self, fingerprint: Callable[[], str], make: Callable[[str], Mapping[str, str]], seconds: float = 5.0
    ) -> None:
        self._fingerprint, self._make, self._seconds = fingerprint, make, seconds
        self._lock = threading.Lock()
        self._version, self._pages, self._checked = "", dict[str, str](), float("-inf")

    def current(self) -> tuple[str, Mapping[str, str]]:
        """The version of the tables and the pages of it; at most every few seconds tables are looked at."""
        with self._lock:
            if time.monotonic() - self._checked >= self._seconds:
                version = self._fingerprint()
                if version != self._version:
                    self._pages = dict(self._make(version))
                    self._version = version
                self._checked = time.monotonic()
            return self._version, self._pages


def page_server(pages: FreshPages, port: int) -> ThreadingHTTPServer:
    """Make a server of the pages on the loopback interface.

    Args:
        pages: What it serves: each file by its name, and `version`.
        port: 0 for any that is free.

    Returns:
        The server; `serve_forever` runs it.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        server_version, sys_version = "uplift", ""

        def do_GET(self) -> None:
            """Answer a page, its version, or 404; 403 where another name leads here (DNS rebinding)."""
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
            if host not in _NAMES:
                self._answer(HTTPStatus.FORBIDDEN, "this server answers to localhost only")
                return
            try:
                version, files = pages.current()
            except Exception as error:  # the page in the browser stays; the next call tries again
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"the tables cannot be read: {str(error)[:300]}")
                return
            name = self.path.partition("?")[0].lstrip("/") or next(iter(files), "")
            if name == "version":
                self._answer(HTTPStatus.OK, version)
            elif name in files:
                self._answer(HTTPStatus.OK, files[name], "text/html; charset=utf-8")
            else:
                self._answer(HTTPStatus.NOT_FOUND, f"there is no page of this name: {', '.join(files)}")

        def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = text.encode()
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            for key, value in (*headers.items(), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY")):
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    return ThreadingHTTPServer((HOST, port), Handler)
