"""The application: `create_app` puts the parts together. Also for `uvicorn service.app:create_app --factory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import problems
from service.context import RequestContext
from service.limits import BodyLimits
from service.logs import configure_logging
from service.model import ModelSlot
from service.routes import MAX_TOP_K, router
from service.schemas import Problem
from service.settings import Settings, read_settings
from service.worker import WorkerPool
from transferapp.images import ImageLimits
from transferapp.views import VIEW_COUNTS


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
        summary="Says what a picture shows.",
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.model = ModelSlot(settings)
    app.include_router(router)
    problems.install(app, _limits(settings))
    # The last one added is the outermost: it sees every request first and every answer last.
    app.add_middleware(
        BodyLimits,
        max_bytes=settings.max_body_bytes,
        max_buffered=settings.max_buffered_bytes,
        seconds=settings.body_seconds,
        min_rate=settings.body_min_rate,
    )
    app.add_middleware(RequestContext)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # the way FastAPI documents for additions
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model beside the running server, so that /health can tell how far it is."""
    settings: Settings = app.state.settings
    pool = app.state.pool = WorkerPool(settings.workers, settings.queue_size)
    loading = asyncio.ensure_future(asyncio.to_thread(app.state.model.load))
    try:
        yield
    finally:
        await loading
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
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, and the schema of the problem documents, which no route returns by itself."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, summary=app.summary, version=app.version, routes=app.routes)
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema


def _version() -> str:
    try:
        return version("transferapp")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
