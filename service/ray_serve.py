"""The service as a deployment of Ray Serve, which adds and removes replicas with the load.

    TRANSFERAPP_MODELS=/models serve run service.ray_serve:app

The application, its settings and its answers are those of `transferapp serve`. A replica takes requests once its models are
loaded. Its name in Serve's own configuration files is `transferapp`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from service.app import create_app
from service.problems import RequestError
from service.registry import ModelRegistry
from service.settings import read_settings

CORES = 2
"""Cores of a replica, and images that it predicts at once."""

AUTOSCALING = {"min_replicas": 1, "max_replicas": 10, "target_ongoing_requests": CORES}
"""One more replica where more requests wait than run."""

WAITING = 32
"""Requests that may wait in a replica, and for any one; beyond it 503."""

_POLL_SECONDS = 0.05


def build() -> FastAPI:
    """Return the application of a replica, which starts up until its models are loaded.

    Raises:
        BundleError: While starting up: there is no model to serve.
    """
    cores = int(ray.get_runtime_context().get_assigned_resources().get("CPU", CORES))
    app = create_app(read_settings(workers=cores, threads=cores, queue_size=WAITING))
    started = app.router.lifespan_context

    @asynccontextmanager
    async def ready(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with started(app) as state:
            models: ModelRegistry = app.state.models
            while True:
                try:
                    models.check_ready()
                    break
                except RequestError:
                    if models.error:
                        raise models.error from None
                await asyncio.sleep(_POLL_SECONDS)
            yield state or {}

    app.router.lifespan_context = ready
    return app


app = serve.deployment(
    name="transferapp",
    ray_actor_options={"num_cpus": CORES},
    autoscaling_config=AUTOSCALING,
    max_ongoing_requests=CORES + WAITING,
    max_queued_requests=WAITING,
    graceful_shutdown_timeout_s=30,
)(serve.ingress(build)()).bind()
