"""The application: `create_app`, also for `uvicorn service.app:create_app --factory`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from service import open_inference, pages, problems, routes
from service.logs import configure_logging
from service.metrics import Metrics
from service.middleware.access import OPEN_PATHS, Access
from service.middleware.body_limits import BodyLimits
from service.middleware.request_context import RequestContext
from service.middleware.tracing import make_tracer
from service.open_inference import InferRequest
from service.queue import WorkerPool
from service.registry import ModelRegistry
from service.schemas import MAX_TOP_K, JsonImage, Problem
from service.settings import ENV_PREFIX, Settings, is_service_link, read_settings
from transferapp.images import ImageLimits
from transferapp.images.views import VIEW_COUNTS

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: By default read from the environment; then logging is configured, too.
    """
    if settings is None:
        settings = read_settings()
        configure_logging(settings.log_level, settings.log_format)
    port = os.environ.get(f"{ENV_PREFIX}PORT")
    if is_service_link(port):
        logger.warning("port_ignored", extra={"value": port, "port": settings.port, "detail": "Kubernetes set it"})
    app = FastAPI(
        title="transferapp",
        summary="Image classification.",
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere; service.pages has one
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.models = ModelRegistry(settings, app.state.metrics)
    app.state.limits = _limits(settings)
    app.include_router(routes.router)
    app.include_router(open_inference.router)
    app.include_router(pages.router)
    problems.install(app)
    # The last one added is the outermost.
    app.add_middleware(Access, keys=settings.api_keys, rate=settings.rate_limit, burst=settings.rate_burst)
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_buffered=settings.max_buffered_bytes,
        seconds=settings.body_seconds,
        min_rate=settings.body_min_rate,
    )
    app.add_middleware(RequestContext, metrics=app.state.metrics, trace=make_tracer(), root_path=settings.root_path)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "traceparent"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load models in the background, so that /readyz can report progress, and check for new ones."""
    settings: Settings = app.state.settings
    pool = app.state.pool = WorkerPool(settings.workers, settings.queue_size)
    app.state.metrics.watch_queue(pool)
    watch = asyncio.ensure_future(app.state.models.watch())
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        pool.close()


def _limits(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the limit by code, for errors that carry none."""
    image = ImageLimits(max_pixels=settings.max_pixels)
    return {
        "too_many_pixels": {"max_pixels": image.max_pixels},
        "too_small": {"min_side": image.min_side},
        "aspect_ratio": {"max_aspect": image.max_aspect},
        "views": {"views": list(VIEW_COUNTS)},
        "top_k": {"max_top_k": MAX_TOP_K},
        "too_many_files": {"max_files": settings.max_files},
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's description with the schemas that no route declares, and with API keys."""
    if app.openapi_schema is None:
        prefix = app.state.settings.root_path
        schema = get_openapi(
            title=app.title,
            summary=app.summary,
            version=app.version,
            routes=app.routes,
            servers=[{"url": prefix}] if prefix else None,
        )
        for model in (Problem, JsonImage, InferRequest):
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= {**described.pop("$defs", {}), model.__name__: described}
        if app.state.settings.api_keys:
            _describe_keys(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _describe_keys(schema: dict[str, Any]) -> None:
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["components"]["securitySchemes"] = schemes
    for path, operations in schema["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{name: []} for name in schemes]
                operation["responses"].update({str(k): v for k, v in problems.documented("unauthorized").items()})


def _version() -> str:
    try:
        return version("transferapp")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
