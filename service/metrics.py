"""Prometheus metrics: `GET /metrics`.

Every application has its own registry. Labels take few values (existing routes, statuses, error codes, models) and none that
a client makes up.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from service.queue import WorkerPool

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_NOVELTY_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Of familiar images a share of p is below p, so that a drift shows at any of them."""


class Metrics:
    """The service's metrics, which `docs/service.md` lists."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered, by route and status.", "route", "status")
        self.request_seconds = self._histogram("request", "Seconds from a request's headers to its answer.", "route")
        self.stage_seconds = self._histogram("stage", "Seconds per image: queue, decode, crop, network.", "stage")
        self.novelty = Histogram(
            "transferapp_novelty",
            "Novelty per image: the share of held-out images that look at least as familiar.",
            ("model",),
            buckets=_NOVELTY_BUCKETS,
            registry=self.registry,
        )
        self.problems = self._counter("problems", "Requests and images refused or failed, by code.", "code")
        self.waiting = self._gauge("queue_waiting", "Images that wait for a worker.")
        self.running = self._gauge("queue_running", "Images being predicted.")
        self.model_info = self._gauge("model_info", "1 for each model served.", "model", "version", "precision")
        self.model_loaded_at = self._gauge("model_loaded_timestamp_seconds", "Time of the last swap.", "model")
        self.swaps = self._counter("model_swaps", "Bundles that replaced another.", "model")
        self.load_failures = self._counter("model_load_failures", "Bundles that were refused.", "model")
        self._info: dict[str, tuple[str, str, str]] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"transferapp_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"transferapp_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"transferapp_{name}_seconds", text, labels, buckets=_BUCKETS, registry=self.registry)

    def watch_queue(self, pool: WorkerPool) -> None:
        """Read the queue's depth from the queue itself at each scrape."""
        self.waiting.set_function(lambda: pool.waiting)
        self.running.set_function(lambda: pool.running)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Record one image's seconds in each stage."""
        for stage, spent in seconds.items():
            self.stage_seconds.labels(stage).observe(spent)

    def model_loaded(self, name: str, version: str, precision: str, *, swap: bool) -> None:
        """Record the version served under a name from now on."""
        before, self._info[name] = self._info.get(name), (name, version, precision)
        self.model_info.labels(name, version, precision).set(1)
        if before is not None and before != self._info[name]:
            self.model_info.remove(*before)
        self.model_loaded_at.labels(name).set_to_current_time()
        self.load_failures.labels(name)  # there from the first scrape on, at 0
        self.swaps.labels(name)
        if swap:
            self.swaps.labels(name).inc()

    def model_removed(self, name: str) -> None:
        """Remove a model that is no longer served."""
        if before := self._info.pop(name, None):
            self.model_info.remove(*before)
            self.model_loaded_at.remove(name)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
