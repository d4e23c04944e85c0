"""Uvicorn's connection and server, extended by its private methods: deadlines for headers, and an orderly shutdown.

Uvicorn waits without limit for a connection's first request. When told to stop, it closes every connection without a request
in progress, although one may be on its way, and the listening socket with the connections that the kernel has made and asyncio
has not accepted yet: the clients of both get a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.middleware.request_context import REQUEST_ID, new_request_id
from service.problems import MEDIA_TYPE, RequestError, problem_document

logger = logging.getLogger(__name__)

CLOSING_SECONDS = 1.0
"""Time for which an idle connection stays open after the order to stop, for a request that may be on its way."""

_CLOSE = (b"connection", b"close")


class HttpConnection(H11Protocol):
    """One connection.

    Attributes:
        header_seconds: Time from the start of the connection, or the first byte of a later request, to the end of headers.
    """

    header_seconds: float = 8.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this itself, but not for sockets from a listener that was passed to it. Without it the second packet
        # of an answer waits up to 40 ms for the client to acknowledge the first.
        with contextlib.suppress(OSError):  # not TCP, or the client has gone
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header_deadline: asyncio.TimerHandle | None = None
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._between_requests() and self._header_deadline is None:
            self._start_deadline()
        super().data_received(data)
        if not self._between_requests():
            self._cancel_deadline()

    def on_response_complete(self) -> None:
        self._cancel_deadline()
        super().on_response_complete()

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _start_deadline(self) -> None:
        self._header_deadline = self.loop.call_later(self.header_seconds, self._on_deadline)

    def _cancel_deadline(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _on_deadline(self) -> None:
        self._header_deadline = None
        if self._between_requests() and not self.transport.is_closing():
            logger.info("slow_headers", extra={"client": self.client[0] if self.client else None})
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP with a problem document."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        request_id = new_request_id()
        document = problem_document(RequestError(msg, code="bad_request"), {"state": {"request_id": request_id}})
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID.encode(), request_id.encode()),
            _CLOSE,
        ]
        response = h11.Response(status_code=document["status"], headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        client = self.client[0] if self.client else None
        logger.info("bad_request", extra={"request_id": request_id, "client": client})

    def shutdown(self) -> None:
        """Announce the end in the answer of the request in progress, or wait a moment for a late request."""
        if _CLOSE not in self.server_state.default_headers:  # also for requests that begin from now on
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.default_headers = self.server_state.default_headers
            super().shutdown()
        else:
            self.loop.call_later(CLOSING_SECONDS, self._close)

    def _close(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()


class Server(uvicorn.Server):
    """Server that continues for some time after SIGTERM, until load balancers have noticed.

    A second signal, or Ctrl-C, ends that time.

    Args:
        config: Uvicorn's configuration.
        on_stop: Called at the first signal.
        notice: Seconds to continue.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None], notice: float) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._notice = notice
        self._signaled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first, self._signaled = not self._signaled, True
        self._on_stop()
        if first and sig == signal.SIGTERM and self._notice:
            self._captured_signals.append(sig)
            timer = threading.Timer(self._notice, self.stop)
            timer.daemon = True  # the process does not wait for it
            timer.start()
            logger.info("draining", extra={"notice_seconds": self._notice})
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that the kernel has made already, close the listeners, and finish the requests in progress."""
        waiting = [connection for listener in sockets or [] for connection in _accept_waiting(listener)]
        for server in self.servers:  # at once: what arrives from now on is refused
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._connection, connection)
        # asyncio makes a connection in two turns of its loop, and has accepted some in the last one.
        for _ in range(2):
            await asyncio.sleep(0)
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        kind: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def stop(self) -> None:
        """Stop accepting connections, finish the requests in progress, and return from `run`."""
        self.should_exit = True


def _accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Return the connections in a listening socket's queue."""
    connections = []
    with contextlib.suppress(OSError):  # the queue is empty, or the client has gone
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            connections.append(connection)
    return connections
