"""The application: `create_app` puts the parts together. Also for `uvicorn service.app:create_app --factory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import operations, page, problems
from service.context import RequestContext
from service.gate import OPEN_PATHS, Gate
from service.limits import BodyLimits
from service.logs import configure_logging
from service.metrics import Metrics
from service.models import Models
from service.routes import router
from service.schemas import MAX_TOP_K, JsonImage, Problem
from service.settings import Settings, read_settings
from service.tracing import tracer
from service.worker import WorkerPool
from transferapp.images import ImageLimits
from transferapp.images.views import VIEW_COUNTS


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application.

    Args:
        settings: What to serve and how; by default what the environment says. Then logging is set up, too: whoever
            passes settings has a program around this, and logs as that program does.
    """
    if settings is None:
        settings = read_settings()
        configure_logging(settings.log_level, settings.log_format)
    app = FastAPI(
        title="transferapp",
        summary="Says what an image shows.",
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages take their scripts from elsewhere; service.page has one
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.models = Models(settings, app.state.metrics)
    app.state.limits = _limits(settings)
    app.include_router(router)
    app.include_router(page.router)
    app.include_router(operations.router)
    problems.install(app, app.state.limits)
    # The last one added is the outermost: it sees every request first and every answer last.
    app.add_middleware(Gate, keys=settings.api_keys, rate=settings.rate_limit, burst=settings.rate_burst)
    app.add_middleware(page.Page)
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_buffered=settings.max_buffered_bytes,
        seconds=settings.body_seconds,
        min_rate=settings.body_min_rate,
    )
    app.add_middleware(RequestContext, metrics=app.state.metrics, trace=tracer())
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # the way FastAPI documents for additions
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the models beside the running server, so that /readyz can tell how far it is, and watch for new ones."""
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
    """What lies behind the errors that do not carry their limit themselves, by code."""
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
    """FastAPI's description, and what it cannot see: schemas that no route declares, keys, answers that any route may give."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, summary=app.summary, version=app.version, routes=app.routes)
        for model in (Problem, JsonImage):
            schema["components"]["schemas"][model.__name__] = model.model_json_schema()
        if app.state.settings.api_keys:
            describe_keys(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def describe_keys(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI description that a key is needed, in either of two headers."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["components"]["securitySchemes"] = schemes
    for path, operations_ in schema["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations_.values():
                operation["security"] = [{name: []} for name in schemes]
                operation["responses"].update({str(k): v for k, v in problems.documented("unauthorized").items()})


def _version() -> str:
    try:
        return version("transferapp")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
