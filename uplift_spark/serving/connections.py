"""Connections of the service: no answer waits for an acknowledgement, nothing is waited for without an end, and who
comes when there is too much to do is refused before it costs anything."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from uplift_spark.serving.guard import OVERLOADED, PLACE, Overload, Place

OVERLOAD = "overload"
"""Where the state that the service starts with has what counts its requests."""
_HEAD_BYTES = 65_536
_OF_BODY = 8  # bytes between a body's chunks that each of its bytes may have: chunks of one byte have five


class _Refused:
    """What stands for a request that was refused: uvicorn passes its body over."""

    response_complete, disconnected, keep_alive = True, False, True

    def __init__(self) -> None:
        self.message_event = asyncio.Event()
        self.size = 0


class ServingConnection(HttpToolsProtocol):
    """A connection as uvicorn has it, with what uvicorn leaves open.

    The head of a request must be there within the seconds that a connection may be idle, counted from its first byte,
    or from when the connection was made. What is not body (head, trailers, the lengths of chunks) is limited, too.
    """

    _late: asyncio.TimerHandle | None = None
    _apart = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send each part of an answer when it is there, and wait for the first request."""
        super().connection_made(transport)
        # Sockets that workers share do not have it: a small answer's body waited 40 ms for its head's acknowledgement.
        if (one := transport.get_extra_info("socket")) is not None and one.family != socket.AF_UNIX:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what is no body."""
        self._apart += len(data)
        super().data_received(data)
        if self._apart > _HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"more than {_HEAD_BYTES} bytes are no body: send fewer headers")

    def on_message_begin(self) -> None:
        """A request's first byte is there."""
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        self._head_is_there()
        overload: Overload | None = self.app_state.get(OVERLOAD)
        # Requests that wait for the one before them on their connection take their places when it is their turn.
        free = self.cycle is None or self.cycle.response_complete
        if overload is None or not free:
            super().on_headers_complete()
        elif overload.admits(self.url.partition(b"?")[0].decode("latin-1")):
            self.scope["state"][PLACE] = Place(overload)
            super().on_headers_complete()
        else:
            self._refuse()

    def _refuse(self) -> None:
        request_id = uuid.uuid4().hex
        body = json.dumps({"error": OVERLOADED, "request_id": request_id}).encode()
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n%s" % (request_id.encode(), len(body), body)
        )
        self.cycle = _Refused()  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Its body is limited elsewhere."""
        self._apart -= (1 + _OF_BODY) * len(body)
        if isinstance(self.cycle, _Refused):
            self.cycle.size += len(body)
            if self.cycle.size > _HEAD_BYTES:  # nobody waits for it
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin anew with the next request."""
        self._apart = 0
        place: Place | None = self.scope["state"].get(PLACE)
        if place is not None:
            place.take()
        super().on_message_complete()
        if isinstance(self.cycle, _Refused):  # of others uvicorn counts the time until the next
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
