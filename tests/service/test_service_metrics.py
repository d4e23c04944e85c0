"""`GET /metrics` and OpenTelemetry spans."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.middleware.tracing import ENDPOINT, make_tracer, span_recorder
from tests.service.conftest import Gate, Served, paint, wait_for


def figures(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample by its name and labels."""
    answer = served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def grown(before: dict[object, float], after: dict[object, float], name: str) -> dict[object, float]:
    return {
        labels: value - before.get((metric, labels), 0.0)
        for (metric, labels), value in after.items()
        if metric == name and value != before.get((metric, labels), 0.0)
    }


def test_requests_problems_and_stages_are_counted(service: Served) -> None:
    before = figures(service)
    service.predict(paint())
    service.predict(paint())
    service.predict(b"")
    service.client.post("/predict", files=[("file", paint()), ("file", b"<html>")])
    service.client.get("/made/up/by/a/client")
    after = figures(service)
    requests = grown(before, after, "transferapp_requests_total")
    assert requests[(("route", "/predict"), ("status", "200"))] == 3
    assert requests[(("route", "/predict"), ("status", "422"))] == 1
    assert requests[(("route", "other"), ("status", "404"))] == 1
    assert grown(before, after, "transferapp_problems_total") == {
        (("code", "empty_file"),): 1,
        (("code", "not_found"),): 1,
        (("code", "unsupported_format"),): 1,
    }
    stages = grown(before, after, "transferapp_stage_seconds_count")
    assert stages == {(("stage", stage),): 3 for stage in ("queue", "decode", "crop", "network")}
    assert grown(before, after, "transferapp_request_seconds_count")[(("route", "/predict"),)] == 4
    version = service.app.state.models.slot().get().bundle.version
    info = (("model", "tiny"), ("precision", "f32"), ("version", version))
    assert after[("transferapp_model_info", info)] == 1
    assert after[("transferapp_model_load_failures_total", (("model", "tiny"),))] == 0
    assert after[("process_resident_memory_bytes", ())] > 1e6


def test_the_queue_is_seen(serve: Callable[..., Served], gate: Callable[[Served], Gate]) -> None:
    served = serve(workers=1)
    held = gate(served)
    with ThreadPoolExecutor(3) as threads:
        sent = [threads.submit(served.predict, paint()) for _ in range(3)]
        wait_for(lambda: served.app.state.pool.waiting == 2)
        seen = figures(served)
        held.open()
        assert [future.result().status_code for future in sent] == [200] * 3
    assert seen[("transferapp_queue_waiting", ())] == 2
    assert seen[("transferapp_queue_running", ())] == 1


def test_no_label_comes_from_a_client(service: Served) -> None:
    service.client.get("/evil%22%0alabel")
    service.client.post("/models/evil/predict", content=paint())
    service.client.request("EVIL", "/predict")
    service.client.get("/readyz", headers={"x-request-id": "evil"})
    assert "evil" not in service.client.get("/metrics").text.lower()


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert make_tracer() is None


def test_a_request_becomes_a_span_of_its_callers_trace() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = "0af7651916cd43dd8448eb211c80319c"
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"traceparent", f"00-{trace}-b7ad6b7169203331-01".encode())],
        "state": {"request_id": "abc", "log": {"views": 10, "model": "dogs"}},
    }
    span_recorder(provider)(scope, "/predict", 503, 0.25)
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /predict"
    assert f"{span.context.trace_id:032x}" == trace
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 503,
        "transferapp.request_id": "abc",
        "transferapp.views": 10,
        "transferapp.model": "dogs",
    }
    assert span.end_time - span.start_time == pytest.approx(0.25e9)
    assert not span.status.is_ok
