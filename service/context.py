"""Around every request: an id, one log line, its count in the metrics, and the last resort for errors nobody foresaw.

The outermost layer, so that the id is on every answer and the log line counts all the time that a request took.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.problems import internal_problem
from service.tracing import Trace

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
CLIENT_GONE = 499
"""The status logged, as nginx does, for a request whose client left before the answer. It is never sent."""

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_request_id() -> str:
    """Sixteen hex digits."""
    return secrets.token_hex(8)


class RequestContext:
    """ASGI middleware; see the module.

    Whatever lies further in may add to the log line by putting values into `scope["state"]["log"]`, and change its level by
    `scope["state"]["log_level"]`.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, trace: Trace | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = offered if _SANE_ID.fullmatch(offered) else new_request_id()
        details: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, log=details)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        failure: Exception | None = None
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            failure = error
            if status:  # the answer has begun: only the connection can still be cut, which raising does
                raise
            await internal_problem(scope)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")  # never what the client wrote
            code = scope["state"].get("code")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            if code:
                self._metrics.problems.labels(code).inc()
            if self._trace:
                self._trace(scope, route, status, seconds)
            client = scope.get("client")
            logger.log(
                logging.ERROR if failure else scope["state"].get("log_level", logging.INFO),
                "request",
                exc_info=failure,
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": client[0] if client else None,
                    **({"code": code} if code else {}),
                    **details,
                },
            )
