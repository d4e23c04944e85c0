"""OpenTelemetry spans, one per request.

`pip install transferapp[otel]` and `OTEL_EXPORTER_OTLP_ENDPOINT` switch them on; the SDK reads its other settings from the
environment, too. Spans are made here and not by `opentelemetry-instrumentation-asgi`, which names them by the raw path and
knows no route (docs/decisions/0017-service-libraries.md).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

logger = logging.getLogger(__name__)

Trace = Callable[[Scope, str, int, float], None]
"""Called at the end of a request with its scope, route, status and seconds."""

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def make_tracer() -> Trace | None:
    """Return the recorder that the environment asks for; None for no tracing."""
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("opentelemetry_missing", extra={"detail": f"{ENDPOINT} is set; install transferapp[otel]"})
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "transferapp")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return span_recorder(provider)


def span_recorder(provider: Any) -> Trace:
    """Return a recorder that makes spans with the given `TracerProvider`.

    A span continues the caller's trace and has the attributes of OpenTelemetry's HTTP conventions, the request id, and the
    prediction's entries in the log line.
    """
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind, Status, StatusCode

    spans = provider.get_tracer("transferapp")

    def record(scope: Scope, route: str, status: int, seconds: float) -> None:
        end = time.time_ns()
        log = {key: value for key, value in scope["state"]["log"].items() if isinstance(value, (str, int, float))}
        span = spans.start_span(
            f"{scope['method']} {route}",
            context=propagate.extract(dict(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            start_time=end - round(seconds * 1e9),
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "transferapp.request_id": scope["state"]["request_id"],
                **{f"transferapp.{key}": value for key, value in log.items()},
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    return record
