"""Uvicorn's HTTP/1.1 connection, with what it lacks: a deadline for headers, and an end that loses no request.

Uvicorn waits for ever for a connection's first request. And when it is told to stop it closes every connection without
a request in progress, though one may be on its way: its bytes are in the kernel, and the client gets a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.context import REQUEST_ID, new_request_id
from service.problems import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX

logger = logging.getLogger(__name__)

GOODBYE_SECONDS = 0.25
"""How long a quiet connection stays open after the order to stop, for a request that may be on its way."""

_CLOSE = (b"connection", b"close")


class ServiceProtocol(H11Protocol):
    """One connection.

    Class attributes:
        header_seconds: From the opening of the connection, or the first byte of a later request, to the end of headers.
    """

    header_seconds: float = 8.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this itself, but not for sockets from a listener that was handed to it. Without it the second packet
        # of an answer waits for the client to acknowledge the first, which takes it up to 40 ms.
        with contextlib.suppress(OSError):  # no TCP, or a client that has gone again
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._header_deadline: asyncio.TimerHandle | None = None
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._between_requests() and self._header_deadline is None:
            self._expect_headers()
        super().data_received(data)
        if not self._between_requests():
            self._headers_came()

    def on_response_complete(self) -> None:
        self._headers_came()
        super().on_response_complete()

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _expect_headers(self) -> None:
        self._header_deadline = self.loop.call_later(self.header_seconds, self._too_slow)

    def _headers_came(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _too_slow(self) -> None:
        self._header_deadline = None
        if self._between_requests() and not self.transport.is_closing():
            logger.info("slow_headers", extra={"client": self.client[0] if self.client else None})
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as a problem document, too, as far as it can still be answered."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        kind = PROBLEMS["bad_request"]
        request_id = new_request_id()
        document: dict[str, Any] = {
            "type": f"{TYPE_PREFIX}bad_request",
            "title": kind.title,
            "status": kind.status,
            "detail": msg,
            "code": "bad_request",
            "request_id": request_id,
            "mend": f"{kind.mend}.",
        }
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID.encode(), request_id.encode()),
            _CLOSE,
        ]
        response = h11.Response(status_code=kind.status, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        client = self.client[0] if self.client else None
        logger.info("bad_request", extra={"request_id": request_id, "client": client})

    def shutdown(self) -> None:
        """Let the request in progress finish and tell its client that the connection ends; wait a moment for a late
        one."""  # Answers of requests that begin from now on, and of the one in progress, announce the end.
        if _CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.default_headers = self.server_state.default_headers
            super().shutdown()
        else:
            self.loop.call_later(GOODBYE_SECONDS, self._say_goodbye)

    def _say_goodbye(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()
