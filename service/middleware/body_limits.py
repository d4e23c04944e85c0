"""Limits on the size, duration and total memory of request bodies.

The bytes that arrive are counted, so a chunked body without a length meets the same limit; a declared length over the limit
is refused before a byte is read. Nothing is stored here.

A request may be answered before its body has been read (too large, queue full, no such page). Closing the connection at once
would reset it, and a client that is still sending might never see the answer. Therefore such an answer says `Connection:
close`, is sent whole, and the rest of the body is discarded for a moment before the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import RequestError, problem_response

LINGER_SECONDS = 1.0
"""Time in which the rest of a body is discarded after an early answer."""


class BodyLimits:
    """ASGI middleware; see the module.

    Args:
        app: The application inside.
        max_bytes: Largest body.
        max_buffered: Bytes of the bodies of all requests in flight. The application keeps a body in memory until its
            request ends, so this bounds the service's memory for any number of clients.
        seconds: Time for a body to arrive.
        min_rate: Bytes that earn a body one more second.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_buffered: int, seconds: float, min_rate: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_buffered = max_buffered
        self.seconds = seconds
        self.min_rate = min_rate
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive, send)
        try:
            body.check_declared()
            await self.app(scope, body.receive, body.send)
        except RequestError as refusal:  # from `check_declared`, or from `receive` through the application
            await problem_response(refusal, scope)(scope, receive, body.send)
        finally:
            self.buffered -= body.received


class _Body:
    """Body and answer of one request."""

    def __init__(self, limits: BodyLimits, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.monotonic()
        self._declared = int(length) if (length := headers.get("content-length", "")).isdecimal() else None
        self._complete = not self._declared and "transfer-encoding" not in headers
        self._closing = False
        self.received = 0

    def check_declared(self) -> None:
        """Refuse a body by its declared length."""
        if self._declared is not None and self._declared > self._limits.max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Receive for the application: count bytes and check the time."""
        if self._complete:
            return await self._receive()
        granted = self._limits.seconds + self.received / self._limits.min_rate
        try:
            async with asyncio.timeout(self._started + granted - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestError(
                f"{self.received:,} bytes of the body had arrived after {granted:.0f} seconds",
                code="body_too_slow",
                limit={"body_seconds": self._limits.seconds, "body_min_rate": self._limits.min_rate},
            ) from error
        size = len(message.get("body", b""))
        self.received += size
        self._limits.buffered += size
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._scope["state"]["log"]["bytes"] = self.received
        if self.received > self._limits.max_bytes:
            raise self._too_large()
        if self._limits.buffered > self._limits.max_buffered:
            raise RequestError(
                "The request bodies being received fill the memory reserved for them",
                code="overloaded",
                limit={"max_buffered_bytes": self._limits.max_buffered},
                headers={"Retry-After": "1"},
            )
        return message

    async def send(self, message: Message) -> None:
        """Send for the application; an answer before the body's end closes the connection."""
        if message["type"] == "http.response.start":
            self._closing = not self._complete
            if self._closing:
                MutableHeaders(scope=message)["connection"] = "close"
        elif self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    def _too_large(self) -> RequestError:
        return RequestError(
            "The body is too large",
            code="body_too_large",
            expected=f"at most {self._limits.max_bytes:,} bytes",
            got=f"{self._declared:,}" if self._declared is not None else "more",
            limit={"max_body_bytes": self._limits.max_bytes},
        )
