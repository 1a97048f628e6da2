"""The service as a function of a cloud: one event in, one answer out, by the application of `uplift serve`.

There is no server and no port: an event's request goes to the application as uvicorn would hand it over, through the
same keys and limits. The version is loaded and warm before the first event; between events a platform may stop the
process, so that a newer version is turned to during the next ones. Events are those of HTTP APIs and function URLs on
AWS (payload format 2.0), which other platforms' adapters write, too.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI

from uplift_spark.errors import DataError
from uplift_spark.serving.api import app_from_environment

_TEXT = ("application/json", "text/")


class EventServer:
    """An application that runs in this process and answers events, one at a time.

    Args:
        app: Of `serving_app`; its start loads the published version.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()
        self._life = app.router.lifespan_context(app)
        self._loop.run_until_complete(self._life.__aenter__())

    def answer(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Answer an event.

        Args:
            event: With rawPath, requestContext.http.method, headers, body and isBase64Encoded.

        Returns:
            statusCode, headers, body and isBase64Encoded.

        Raises:
            DataError: It is no event of an HTTP request.
        """
        scope, body = _request_of(event)
        return self._loop.run_until_complete(self._answer(scope, body))

    async def _answer(self, scope: dict[str, Any], body: bytes) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        content, kind = b"".join(parts), headers.get("content-type", "")
        plain = kind.startswith(_TEXT)
        text = content.decode() if plain else base64.b64encode(content).decode()
        return {"statusCode": start["status"], "headers": headers, "body": text, "isBase64Encoded": not plain}

    def close(self) -> None:
        """Wait for what is being written, and let go of files."""
        self._loop.run_until_complete(self._life.__aexit__(None, None, None))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _request_of(event: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """(ASGI scope, body) of an event."""
    try:
        path, method = str.strip(event["rawPath"]), event["requestContext"]["http"]["method"]
        sent = {**(event.get("headers") or {})}
        text = event.get("body") or ""
        body = base64.b64decode(text, validate=True) if event.get("isBase64Encoded") else text.encode()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "the event is no HTTP request of payload format 2.0: route an HTTP API or a function URL to this handler"
        ) from error
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
    scope = {
        **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
        **{"method": method.upper(), "scheme": "https", "path": unquote(path), "raw_path": path.encode("latin-1")},
        **{"query_string": event.get("rawQueryString", "").encode("latin-1"), "root_path": "", "headers": headers},
        **{"client": None, "server": None, "state": {}},
    }
    return scope, body


@cache
def _server() -> EventServer:
    return EventServer(app_from_environment())


def handler(event: Mapping[str, Any], context: object = None) -> dict[str, Any]:
    """What the platform calls: answers an event by the configuration that $UPLIFT_SERVING names.

    Args:
        event: See `EventServer.answer`.
        context: Of the platform; nothing of it counts.

    Returns:
        The answer.
    """
    return _server().answer(event)
