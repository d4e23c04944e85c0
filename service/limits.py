"""How large, how slow and how much at once request bodies may be: the layer between the socket and the application.

It counts what arrives and trusts no header, so a chunked body without a length meets the same limit; a length that is
declared too large is refused before a byte of it is read. Nothing is kept here: memory stays flat.

A request may be answered before its body has been read (it is too large, the queue is full, there is no such page).
Closing the connection then would reset it, and the client, still sending, might never see the answer. So such an answer
says `Connection: close`, is sent whole, and what still comes in is thrown away for a moment before the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import Refusal, problem_response

LINGER_SECONDS = 1.0
"""How long the rest of a body is thrown away after an early answer."""


class BodyLimits:
    """ASGI middleware; see the module.

    Args:
        app: The application inside.
        max_bytes: Largest body.
        max_buffered: Bytes of all bodies of requests in flight together; the application keeps a body in memory until
            its request ends, so this bounds the service's memory whatever the number of clients.
        seconds: Time in which a body must have come ...
        min_rate: ... and the bytes that earn it one second more.
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
        except Refusal as refusal:
            # Only from `check_declared`, or from an application that lets the error of its own reading pass.
            await problem_response(refusal, scope)(scope, receive, body.send)
        finally:
            self.buffered -= body.received


class _Body:
    """One request's body on its way in, and the answer on its way out."""

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
        """Refuse a body by the length its header declares."""
        if self._declared is not None and self._declared > self._limits.max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """The application's `receive`: counts, and keeps the time."""
        if self._complete:
            return await self._receive()
        granted = self._limits.seconds + self.received / self._limits.min_rate
        try:
            async with asyncio.timeout(self._started + granted - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(
                f"{self.received:,} bytes of the body had come after {granted:.0f} seconds",
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
            raise Refusal(
                "The images being received fill the memory set aside for them",
                code="overloaded",
                limit={"max_buffered_bytes": self._limits.max_buffered},
                headers={"Retry-After": "1"},
            )
        return message

    async def send(self, message: Message) -> None:
        """The application's `send`: an answer that comes before the body's end closes the connection, gently."""
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

    def _too_large(self) -> Refusal:
        return Refusal(
            "The body is too large",
            code="body_too_large",
            expected=f"at most {self._limits.max_bytes:,} bytes",
            got=f"{self._declared:,}" if self._declared is not None else "more",
            limit={"max_body_bytes": self._limits.max_bytes},
        )
