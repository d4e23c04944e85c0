"""The three doors: `POST /predict`, `GET /health`, `GET /info`."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from service.model import ModelSlot
from service.problems import documented
from service.schemas import Health, Info, Limits, PredictionAnswer, ScoredLabel
from service.settings import Settings
from service.upload import FIELD, read_picture
from service.worker import WorkerPool, while_connected
from transferapp.predict import Prediction
from transferapp.views import VIEW_COUNTS

router = APIRouter()

DEFAULT_TOP_K = 5
MAX_TOP_K = 10_000
"""More than any model has classes; a request for more is a mistake, and says so. Fewer classes than asked for is
none."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "description": "One picture: as a form field or as the body itself. JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary", "description": "The picture."}},
            }
        },
        "image/*": _BINARY,
        "application/octet-stream": _BINARY,
    },
}


@router.post(
    "/predict",
    summary="Classify one picture",
    response_model=PredictionAnswer,
    openapi_extra={"requestBody": _BODY},
    responses=documented(
        "malformed_body",
        "body_too_slow",
        "body_too_large",
        "too_many_pixels",
        "unsupported_media_type",
        "unsupported_format",
        "missing_file",
        "too_many_files",
        "empty_file",
        "truncated",
        "undecodable",
        "too_small",
        "aspect_ratio",
        "views",
        "top_k",
        "model_output_invalid",
        "internal",
        "overloaded",
        "timeout",
        "not_ready",
    ),
)
async def predict(
    request: Request,
    views: Annotated[
        int | None,
        Query(
            description="Crops to average: more take longer and err less. Default: what the model was made for.",
            json_schema_extra={"enum": list(VIEW_COUNTS)},
        ),
    ] = None,
    top_k: Annotated[
        int, Query(ge=1, le=MAX_TOP_K, description="How many classes to answer with, at most.")
    ] = DEFAULT_TOP_K,
) -> PredictionAnswer:
    """Say what a picture shows: its most probable classes, and how probable each is.

    Send the picture as the field `file` of a form, or as the body itself with its content type.
    """
    settings: Settings = request.app.state.settings
    pool: WorkerPool = request.app.state.pool
    model: ModelSlot = request.app.state.model
    # Everything that can be refused without the picture is refused before it is read.
    predictor = model.get()
    views = predictor.check_views(views)
    pool.check()
    picture = await read_picture(request)

    queued = time.perf_counter()
    begun = queued

    def job() -> Prediction:
        nonlocal begun
        begun = time.perf_counter()
        return predictor.predict(picture, views=views, top_k=top_k)

    prediction = await while_connected(request.receive, pool.run(job, timeout=settings.request_timeout))
    request.state.log |= {"views": views, "format": prediction.format}
    width, height = prediction.size
    return PredictionAnswer(
        predictions=[ScoredLabel(label=score.label, score=score.score) for score in prediction.scores],
        model=predictor.bundle.name,
        model_version=predictor.bundle.version,
        views=prediction.views,
        format=prediction.format,
        width=width,
        height=height,
        notes=list(prediction.notes),
        seconds={name: round(seconds, 6) for name, seconds in {"queue": begun - queued, **prediction.seconds}.items()},
    )


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    summary="Whether the service is ready",
    response_model=Health,
    responses=documented("not_ready"),
)
async def health(request: Request) -> Health:
    """Answer 200 once the model has been loaded and has made its first predictions; 503 with the reason until then."""
    bundle = request.app.state.model.get().bundle
    request.state.log_level = logging.DEBUG  # asked every few seconds for as long as all is well
    return Health(model=bundle.name, version=bundle.version)


@router.get("/info", summary="The model and the limits", response_model=Info, responses=documented("not_ready"))
async def info(request: Request) -> Info:
    """Describe the model being served: its classes, its input, how it was tested; and what a request may be."""
    predictor = request.app.state.model.get()
    manifest: dict[str, Any] = predictor.bundle.manifest
    return Info(
        name=predictor.bundle.name,
        version=predictor.bundle.version,
        class_names=list(predictor.class_names),
        image_size=predictor.image_size,
        default_views=predictor.default_views,
        precision=predictor.engine.precision,
        metrics=manifest.get("metrics"),
        backbone=manifest.get("backbone"),
        created=manifest.get("created"),
        limits=Limits(
            max_body_bytes=request.app.state.settings.max_body_bytes,
            max_pixels=predictor.limits.max_pixels,
            min_side=predictor.limits.min_side,
            max_aspect=predictor.limits.max_aspect,
            max_top_k=MAX_TOP_K,
            views=list(VIEW_COUNTS),
        ),
    )
