"""Endpoints of the API: `/predict`, `/explain`, `/models`, `/info`, and for operators `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from service.metrics import CONTENT_TYPE, Metrics
from service.pages import has_report
from service.predictions import RequestPredictor
from service.problems import documented
from service.queue import while_connected
from service.registry import ModelRegistry, ModelSlot
from service.schemas import (
    MAX_TOP_K,
    Alive,
    ExplanationAnswer,
    Info,
    Limits,
    ModelList,
    PredictionAnswer,
    PredictionList,
    Ready,
)
from service.settings import Settings
from service.uploads import FIELD, LIST_FIELD, read_upload
from transferapp.bundle.occlusion import FORWARD_PASSES, check_label
from transferapp.bundle.predictor import Predictor
from transferapp.images.views import VIEW_COUNTS

router = APIRouter()

DEFAULT_TOP_K = 5

_PREDICT_FIELDS, _EXPLAIN_FIELDS = ("views", "top_k", "model"), ("label", "model")
"""Parameters that may be fields of a form."""

_FILE = {"type": "string", "format": "binary"}


def _body(description: str, **form: Any) -> dict[str, Any]:
    """Describe a body with an image in any of the accepted ways for OpenAPI."""
    binary = {"schema": _FILE}
    return {
        "requestBody": {
            "required": True,
            # Not as properties of the form, since Swagger UI sends a made-up value for each.
            "description": f"{description} JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF. The query's parameters may be fields "
            "of the form instead.",
            "content": {
                "multipart/form-data": {"schema": {"type": "object", **form}},
                "image/*": binary,
                "application/octet-stream": binary,
                "application/json": {"schema": {"$ref": "#/components/schemas/JsonImage"}},
            },
        }
    }


_FILES = {"type": "array", "minItems": 1, "items": _FILE}
_PREDICT_BODY = _body(
    "Images as fields of a form, or one as the body itself or in base64.",
    properties={
        FIELD: {"description": "The image; repeated, several.", "anyOf": [_FILE, _FILES]},
        LIST_FIELD: {**_FILES, "description": "The same, and the answer is a list even for one.", "default": []},
    },
    anyOf=[{"required": [FIELD]}, {"required": [LIST_FIELD]}],
)
_EXPLAIN_BODY = _body(
    "One image: as a form field, as the body itself, or in base64.",
    properties={FIELD: {**_FILE, "description": "The image."}},
    required=[FIELD],
)

IMAGE_CODES = (
    *("malformed_body", "body_too_slow", "body_too_large", "too_many_pixels", "model_not_found"),
    *("unsupported_media_type", "unsupported_format", "missing_file", "too_many_files", "invalid_request"),
    *("empty_file", "truncated", "undecodable", "too_small", "aspect_ratio", "rate_limited"),
    *("model_output_invalid", "internal", "overloaded", "timeout", "resources", "not_ready"),
)

Views = Annotated[
    int | None,
    Query(
        description="Crops to average: more take longer and err less. Default: the model's own.",
        json_schema_extra={"enum": list(VIEW_COUNTS)},
    ),
]
TopK = Annotated[int, Query(ge=1, le=MAX_TOP_K, description="Largest number of classes in the answer.")]
Model = Annotated[str | None, Query(description="Name of the model. Default: the default one; see GET /models.")]

_PREDICT: dict[str, Any] = {
    "response_model": PredictionAnswer | PredictionList,
    "openapi_extra": _PREDICT_BODY,
    "responses": documented(*IMAGE_CODES, "views", "top_k"),
}


@router.post("/predict", summary="Classify images", **_PREDICT)
async def predict(request: Request, views: Views = None, top_k: TopK = DEFAULT_TOP_K, model: Model = None) -> Response:
    """Return an image's most probable classes and their probabilities.

    Send the image as the field `file` of a form, as the body itself with its content type, or in base64 as `image` of a JSON
    object. For several, repeat the field: the answer is then a list with one entry per image, in order, and an image that
    cannot be used has its problem there. The field `files` always gets a list.
    """
    return await _predict(request, model, views, top_k)


@router.post("/models/{name}/predict", summary="Classify images with a given model", **_PREDICT)
async def predict_with(
    request: Request,
    name: Annotated[str, Path(description="One of GET /models.")],
    views: Views = None,
    top_k: TopK = DEFAULT_TOP_K,
) -> Response:
    """Predict as `/predict` with the model of this name."""
    return await _predict(request, name, views, top_k)


async def _predict(request: Request, model: str | None, views: int | None, top_k: int) -> Response:
    slot, predictor = admit(request, model)
    predictor.check_views(views)
    upload = await read_upload(request, request.app.state.settings.max_files, _PREDICT_FIELDS)
    if upload.model is not None:
        slot, predictor = admit(request, upload.model)
    views = predictor.check_views(views if upload.views is None else upload.views)
    top_k = upload.top_k or top_k
    charge(request, len(upload.images), views)
    run = RequestPredictor(request, slot.name, predictor)
    if upload.many:
        return json_response(await while_connected(request.receive, run.predict_all(upload.images, views, top_k)))
    return json_response(await while_connected(request.receive, run.predict(upload.images[0], views, top_k)))


@router.post(
    "/explain",
    summary="Show where the model looked",
    response_model=ExplanationAnswer,
    openapi_extra=_EXPLAIN_BODY,
    responses=documented(*IMAGE_CODES, "label"),
)
async def explain(
    request: Request,
    label: Annotated[str | None, Query(description="The class to explain. Default: the most probable one.")] = None,
    model: Model = None,
) -> Response:
    """Measure how much each part of an image contributes to a class, by covering one part after the other.

    It takes as long as about eight predictions with ten crops, for any image.
    """
    slot, predictor = admit(request, model)
    upload = await read_upload(request, 1, _EXPLAIN_FIELDS)
    if upload.model is not None:
        slot, predictor = admit(request, upload.model)
    label = label if upload.label is None else upload.label
    check_label(predictor, label)
    charge(request, 1, FORWARD_PASSES)
    run = RequestPredictor(request, slot.name, predictor)
    return json_response(await while_connected(request.receive, run.explain(upload.images[0], label)))


@router.get("/models", summary="List the models", response_model=ModelList)
async def list_models(request: Request) -> ModelList:
    """List every model, the version being served, and the last bundle that was refused in its place."""
    models: ModelRegistry = request.app.state.models
    return ModelList(models=[slot.state(default=slot.name == models.default) for slot in models.slots.values()])


@router.get(
    "/info",
    summary="Describe a model and the limits",
    response_model=Info,
    responses=documented("model_not_found", "not_ready"),
)
async def info(request: Request, model: Model = None) -> Info:
    """Describe a model (its classes, its input, its test metrics) and the limits on a request."""
    settings: Settings = request.app.state.settings
    slot: ModelSlot = request.app.state.models.slot(model)
    predictor = slot.get()
    manifest: dict[str, Any] = predictor.bundle.manifest
    return Info(
        name=slot.name,
        version=predictor.bundle.version,
        class_names=list(predictor.class_names),
        image_size=predictor.image_size,
        default_views=predictor.default_views,
        precision=predictor.engine.precision,
        coverage=predictor.bundle.coverage,
        metrics=manifest.get("metrics"),
        backbone=manifest.get("backbone"),
        created=manifest.get("created"),
        report=has_report(manifest),
        limits=Limits(
            max_body_bytes=settings.max_body_bytes,
            max_pixels=predictor.limits.max_pixels,
            min_side=predictor.limits.min_side,
            max_aspect=predictor.limits.max_aspect,
            max_top_k=MAX_TOP_K,
            max_files=settings.max_files,
            views=list(VIEW_COUNTS),
        ),
    )


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Check that the process responds", response_model=Alive)
async def livez(request: Request) -> Alive:
    """Answer 200 as long as the process is able to. If it does not, restart it."""
    request.state.log_level = logging.DEBUG  # asked every few seconds
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz", summary="Check that the service is ready", response_model=Ready, responses=documented("not_ready")
)
async def readyz(request: Request) -> Ready:
    """Answer 200 once the models are loaded and have made their first predictions; until then, and when the service has been
    told to stop, 503 with the reason."""
    models: ModelRegistry = request.app.state.models
    bundle = models.check_ready().bundle
    request.state.log_level = logging.DEBUG
    return Ready(model=models.default or bundle.name, version=bundle.version)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return requests, seconds by stage, queue, refusals and models in Prometheus' text format."""
    figures: Metrics = request.app.state.metrics
    request.state.log_level = logging.DEBUG
    return Response(figures.exposition(), headers={"content-type": CONTENT_TYPE})


def admit(request: Request, model: str | None) -> tuple[ModelSlot, Predictor]:
    """Return the model for a request, after all checks that need no image, so that the body is not read in vain."""
    slot: ModelSlot = request.app.state.models.slot(model)
    predictor = slot.get()
    request.app.state.pool.check()
    return slot, predictor


def json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def charge(request: Request, images: int, views: int) -> None:
    """Charge the rate limit for the work of a request, in ten views, beyond the ten that it was admitted for."""
    charge, tens = getattr(request.state, "charge", None), images * math.ceil(views / 10)
    if charge is not None and tens > 1:
        charge(tens - 1)
