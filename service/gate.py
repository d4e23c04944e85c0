"""Who may ask, and how often: API keys and rate limits, judged by a request's headers before its body is read.

Keys come from the settings; with none, every request is welcome. They are compared by their digests in constant time, and
all of them every time, so that the time an answer takes says nothing about how close a guess was.

The rate is a token bucket for each key, or for each address where there are no keys: one token an image. A request with
several images is let in by one token and owes the rest, so its cost is counted once its body is known.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import Refusal, problem_response

OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
"""What needs no key: whether the service lives, and how to ask. The pages for people stand before the gate (`service.page`)."""

UNMETERED_PATHS = OPEN_PATHS | {"/metrics", "/models", "/info", "/report"}
"""What costs next to nothing and is not counted."""

MAX_BUCKETS = 10_000
"""Addresses remembered at once. The one not seen for longest is forgotten first, which can only be kinder to it."""


class Buckets:
    """Token buckets by key.

    Args:
        rate: Tokens a second.
        burst: Tokens that a full bucket holds.
        now: The clock, in seconds.
    """

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._now = now
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when each bucket will be full again

    def take(self, key: str) -> float:
        """Take one token.

        Returns:
            0 if there was one; otherwise the seconds until there will be, and nothing is taken.
        """
        now = self._now()
        full_at = max(self._full_at.get(key, now), now)
        wait = full_at + 1 / self.rate - now - self.burst / self.rate
        if wait > 1e-9:
            return wait
        self._set(key, full_at + 1 / self.rate)
        return 0.0

    def owe(self, key: str, tokens: int) -> None:
        """Take so many more, whether they are there or not."""
        self._set(key, max(self._full_at.get(key, 0.0), self._now()) + tokens / self.rate)

    def _set(self, key: str, full_at: float) -> None:
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        while len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)


class Gate:
    """ASGI middleware; see the module. It leaves `scope["state"]["owe"]`, by which a request pays for more than one image.

    Args:
        app: The application inside.
        keys: The keys that open it; none for everyone.
        rate: Images a second and key; 0 for any number.
        burst: Images at once.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[SecretStr], rate: float, burst: int) -> None:
        self.app = app
        self._digests = [_digest(key.get_secret_value()) for key in keys]
        self._buckets = Buckets(rate, burst) if rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._admit(scope)
        except Refusal as refusal:
            await problem_response(refusal, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        path, client = scope["path"], scope.get("client")
        caller = f"address {client[0]}" if client else "address unknown"
        if self._digests and path not in OPEN_PATHS:
            caller = f"key {self._known(Headers(scope=scope))}"
            scope["state"]["log"]["key"] = int(caller[4:])
        buckets = self._buckets
        if buckets is None or path in UNMETERED_PATHS:
            return
        wait = buckets.take(caller)
        if wait:
            raise Refusal(
                "More images came than the rate allows",
                code="rate_limited",
                limit={"rate_limit": buckets.rate, "rate_burst": buckets.burst},
                headers={"Retry-After": str(math.ceil(wait))},
            )
        scope["state"]["owe"] = lambda tokens: buckets.owe(caller, tokens)

    def _known(self, headers: Headers) -> int:
        """Which key a request brings, counted from 1."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        offered = value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest, found = _digest(offered), 0
        for number, known in enumerate(self._digests, 1):
            if hmac.compare_digest(digest, known):
                found = number
        if not found:
            raise Refusal(
                "The key is not known" if offered else "The request brings no key",
                code="unauthorized",
                headers={"WWW-Authenticate": 'Bearer realm="transferapp"'},
            )
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
