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

    response_complete, disconnected = True, False

    def __init__(self, keep_alive: bool) -> None:
        self.message_event = asyncio.Event()
        self.keep_alive, self.size = keep_alive, 0


class ServingConnection(HttpToolsProtocol):
    """A connection as uvicorn has it, with what uvicorn leaves open.

    The head of a request must be there within the seconds that a connection may be idle, counted from its first byte,
    from when the connection was made, or from the first byte that begins no request: blanks, or a body that was
    answered before it came. Who takes nothing of an answer for so long is given up. What is not body (head, trailers,
    the lengths of chunks) is limited, too.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
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
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More waits to be sent than is kept."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Most of it is sent."""
        self._is_read()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """No next request came."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Count what is no body."""
        self._apart += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._apart > _HEAD_BYTES:
            self.send_400_response(f"more than {_HEAD_BYTES} bytes are no body: send fewer headers")
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # uvicorn waits for a next request no more once anything came

    def on_message_begin(self) -> None:
        """A request's first byte is there."""
        super().on_message_begin()
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        self._head_is_there()
        if self.parser.should_upgrade():  # the parser takes whatever follows for another protocol, a body, too
            self.send_400_response("the service speaks HTTP/1.1 and nothing else: send no header Upgrade")
            self.cycle = _Refused(keep_alive=False)  # type: ignore[assignment]
            return
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
        keep = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n%s"
            b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (
                b"" if keep else b"connection: close\r\n", request_id.encode(), len(body),
                b"" if self.parser.get_method() == b"HEAD" else body,
            )
        )  # fmt: skip
        self.cycle = _Refused(keep)  # type: ignore[assignment]
        if self.flow.write_paused:  # it asks on, and reads no answer
            self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """The answer said it."""

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
        if isinstance(self.cycle, _Refused) and not self.cycle.keep_alive:
            self._end()
        elif self.cycle.response_complete:  # of others uvicorn counts the time until the next
            self._head_is_there()
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self._end)

    def _end(self) -> None:
        """Close once all is sent, which is not waited for without an end either."""
        self.transport.close()
        self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _wait_for_reader(self, before: int | None = None) -> None:
        waits = self.transport.get_write_buffer_size()
        if before is not None and waits >= before:
            self.transport.abort()  # its request would have its place for ever
        else:
            self._unread = self.loop.call_later(self.timeout_keep_alive, self._wait_for_reader, waits)

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
