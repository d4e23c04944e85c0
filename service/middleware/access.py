"""API keys and rate limits, checked by a request's headers before its body is read.

Keys are compared by their digests in constant time, each of them every time, so that the time of an answer reveals nothing.
The rate is a token bucket per key, or per address without keys: one token per image. A request with several images is
admitted for one token and charged the rest once its body is known.
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

from service.problems import RequestError, path_below_root, problem_response

PAGE_FILES = "/page/"
OPEN_PATHS = frozenset({"/", "/docs", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"})
"""Paths that need no key, beside `PAGE_FILES`."""

UNMETERED_PATHS = OPEN_PATHS | {"/metrics", "/models", "/info", "/report", "/v2"}
"""Paths that cost next to nothing, and no token."""

MAX_BUCKETS = 10_000
"""Callers remembered at once. The one not seen for longest is forgotten first."""


class TokenBuckets:
    """Token buckets by key.

    Args:
        rate: Tokens per second.
        burst: Tokens of a full bucket.
        now: Clock, in seconds.
    """

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._now = now
        self._full_at: OrderedDict[str, float] = OrderedDict()  # time at which each bucket is full again

    def take(self, key: str) -> float:
        """Take one token.

        Returns:
            0 if there was one; otherwise the seconds until there is one, and nothing is taken.
        """
        wait = max(self._full_at.get(key, 0.0) - self._now(), 0.0) + (1 - self.burst) / self.rate
        if wait > 1e-9:
            return wait
        self.charge(key, 1)
        return 0.0

    def charge(self, key: str, tokens: int) -> None:
        """Take tokens whether they are there or not."""
        self._full_at[key] = max(self._full_at.get(key, 0.0), self._now()) + tokens / self.rate
        self._full_at.move_to_end(key)
        while len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)


class Access:
    """ASGI middleware; see the module. Sets `scope["state"]["charge"]`, which charges a request for further images.

    Args:
        app: The application inside.
        keys: Accepted keys; none: no key is needed.
        rate: Images per second and caller; 0 for no limit.
        burst: Images at once.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[SecretStr], rate: float, burst: int) -> None:
        self.app = app
        self._digests = [_digest(key.get_secret_value()) for key in keys]
        self._buckets = TokenBuckets(rate, burst) if rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_below_root(scope)
        if scope["type"] == "http" and not path.startswith(PAGE_FILES):
            try:
                self._admit(scope, path)
            except RequestError as refusal:
                await problem_response(refusal, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope, path: str) -> None:
        client = scope.get("client")
        caller = f"address {client[0]}" if client else "address unknown"
        if self._digests and path not in OPEN_PATHS:
            key = self._find_key(Headers(scope=scope))
            scope["state"]["log"]["key"] = key
            caller = f"key {key}"
        buckets = self._buckets
        if buckets is None or path in UNMETERED_PATHS:
            return
        wait = buckets.take(caller)
        if wait:
            raise RequestError(
                "The rate of images is over the limit",
                code="rate_limited",
                limit={"rate_limit": buckets.rate, "rate_burst": buckets.burst},
                headers={"Retry-After": str(math.ceil(wait))},
            )
        scope["state"]["charge"] = lambda tokens: buckets.charge(caller, tokens)

    def _find_key(self, headers: Headers) -> int:
        """Return the place of a request's key in the list, from 1."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        offered = value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest, found = _digest(offered), 0
        for number, known in enumerate(self._digests, 1):
            if hmac.compare_digest(digest, known):
                found = number
        if not found:
            raise RequestError(
                "The key is unknown" if offered else "The request has no key",
                code="unauthorized",
                headers={"WWW-Authenticate": 'Bearer realm="transferapp"'},
            )
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
