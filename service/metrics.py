"""What Prometheus is told: `GET /metrics`.

Every application has a registry of its own. Labels take few values: routes that exist, statuses, codes of problems, names of
models; nothing that a client makes up.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from service.worker import WorkerPool

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The service's figures; see `docs/service.md` for what each means."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered, by route and status.", "route", "status")
        self.request_seconds = Histogram(
            "transferapp_request_seconds",
            "Time from the request's headers to the answer's end, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "transferapp_stage_seconds",
            "Time that an image spent in each stage of work: queue, decode, crop, network.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.problems = self._counter("problems", "Requests and images refused or failed, by code.", "code")
        self.waiting = self._gauge("queue_waiting", "Images that wait for a worker.")
        self.running = self._gauge("queue_running", "Images that are being worked on.")
        self.model_info = self._gauge("model_info", "1 for each model served.", "model", "version", "precision")
        self.model_loaded_at = self._gauge("model_loaded_timestamp_seconds", "When it was put in place.", "model")
        self.swaps = self._counter("model_swaps", "Bundles that took the place of another.", "model")
        self.load_failures = self._counter("model_load_failures", "Bundles that were refused.", "model")
        self._info: dict[str, tuple[str, str, str]] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"transferapp_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"transferapp_{name}", text, labels, registry=self.registry)

    def watch_queue(self, pool: WorkerPool) -> None:
        """Read the queue's depth from the queue itself, whenever it is asked for."""
        self.waiting.set_function(lambda: pool.waiting)
        self.running.set_function(lambda: pool.running)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count one image's time in each stage."""
        for stage, spent in seconds.items():
            self.stage_seconds.labels(stage).observe(spent)

    def model_loaded(self, name: str, version: str, precision: str, *, swap: bool) -> None:
        """Note what is being served under a name from now on."""
        before, self._info[name] = self._info.get(name), (name, version, precision)
        self.model_info.labels(name, version, precision).set(1)
        if before is not None and before != self._info[name]:
            self.model_info.remove(*before)
        self.model_loaded_at.labels(name).set_to_current_time()
        self.load_failures.labels(name)  # there from the start, so that its first rise is seen
        if swap:
            self.swaps.labels(name).inc()

    def model_removed(self, name: str) -> None:
        """Forget a model that is served no more."""
        if before := self._info.pop(name, None):
            self.model_info.remove(*before)
            self.model_loaded_at.remove(name)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
