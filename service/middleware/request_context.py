"""Request id, log line, metrics and last error handler of every request.

This is the outermost layer: the id is on every answer, and the log line covers the whole time of a request.
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
from service.middleware.tracing import Trace
from service.problems import internal_error, problem_response

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
CLIENT_GONE = 499
"""Status logged, as by nginx, for a request whose client left before the answer. It is never sent."""

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_request_id() -> str:
    """Return sixteen random hex digits."""
    return secrets.token_hex(8)


class RequestContext:
    """ASGI middleware; see the module.

    Inner layers may add to the log line with `scope["state"]["log"]`, and change its level with `scope["state"]["log_level"]`.

    Args:
        app: The application inside.
        metrics: Receives every request.
        trace: Records every request as a span.
        root_path: Prefix that a proxy keeps in paths; "" for none.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, trace: Trace | None = None, root_path: str = "") -> None:
        self.app = app
        self._root_path = root_path
        self._metrics = metrics
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._root_path:
            scope["root_path"] = self._root_path
        started = time.perf_counter()
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = offered if _VALID_ID.fullmatch(offered) else new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, log={})
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
            if status:  # The answer has begun; raising closes the connection.
                raise
            await problem_response(internal_error(), scope)(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started, failure)

    def _record(self, scope: Scope, status: int, seconds: float, failure: Exception | None) -> None:
        state: dict[str, Any] = scope["state"]
        route = getattr(scope.get("route"), "path", "other")  # never the client's own text
        code = state.get("code")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if code:
            self._metrics.problems.labels(code).inc()
        if self._trace:
            self._trace(scope, route, status, seconds)
        client = scope.get("client")
        details = {
            "request_id": state["request_id"],
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            "client": client[0] if client else None,
            **({"code": code} if code else {}),
            **state["log"],
        }
        level = logging.ERROR if failure else state.get("log_level", logging.INFO)
        logger.log(level, "request", exc_info=failure, extra=details)
