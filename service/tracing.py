"""A span for each request, for OpenTelemetry: only where it is installed and told where to send to.

`pip install transferapp[otel]` and `OTEL_EXPORTER_OTLP_ENDPOINT` switch it on; the SDK reads its other settings from the
environment, too (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...). A trace that the caller has begun is continued.
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
"""Called when a request has ended: its scope, route, status and the seconds it took."""

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def tracer() -> Trace | None:
    """What records requests, as the environment says; None where nothing is to be recorded."""
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
    return recorder(provider)


def recorder(provider: Any) -> Trace:
    """What records requests with the given `TracerProvider`.

    A span has the attributes of OpenTelemetry's HTTP conventions, the request's id, and what the log line has of the
    prediction.
    """
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind, Status, StatusCode

    spans = provider.get_tracer("transferapp")

    def record(scope: Scope, route: str, status: int, seconds: float) -> None:
        ended = time.time_ns()
        span = spans.start_span(
            f"{scope['method']} {route}",
            context=propagate.extract(dict(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            start_time=ended - round(seconds * 1e9),
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "transferapp.request_id": scope["state"]["request_id"],
            },
        )
        for key, value in scope["state"]["log"].items():
            if isinstance(value, (str, int, float)):
                span.set_attribute(f"transferapp.{key}", value)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    return record
