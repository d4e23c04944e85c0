"""The doors that need the model: `/predict`, `/models/NAME/predict`, `/explain`; and `/models`, `/info`."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from service.answers import Answerer
from service.models import Models
from service.page import has_report
from service.problems import documented
from service.schemas import (
    MAX_TOP_K,
    ExplanationAnswer,
    Info,
    Limits,
    ModelList,
    ModelState,
    PredictionAnswer,
    PredictionList,
    Refused,
)
from service.settings import Settings
from service.upload import FIELD, LIST_FIELD, read_upload
from service.worker import WorkerPool, while_connected
from transferapp.bundle.occlusion import FORWARD_PASSES, check_label
from transferapp.images.views import VIEW_COUNTS

router = APIRouter()

DEFAULT_TOP_K = 5

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILE = {"type": "string", "format": "binary", "description": "The image."}
_JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/JsonImage"}}}


def _body(description: str, properties: dict[str, Any], **form: Any) -> dict[str, Any]:
    """OpenAPI's description of a body with an image in any of the ways there are."""
    schema = {"type": "object", "properties": properties, **form}
    return {
        "requestBody": {
            "required": True,
            "description": f"{description} JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.",
            "content": {
                "multipart/form-data": {"schema": schema},
                "image/*": _BINARY,
                "application/octet-stream": _BINARY,
                **_JSON,
            },
        }
    }


_SEVERAL = {
    FIELD: {
        "description": "The image; repeated, several.",
        "anyOf": [{"type": "string", "format": "binary"}, {"type": "array", "minItems": 1, "items": _FILE}],
    },
    LIST_FIELD: {
        "type": "array",
        "minItems": 1,
        "items": _FILE,
        "description": "The same, and the answer is a list even for one.",
    },
}
_PREDICT_BODY = _body(
    "Images as fields of a form, or one as the body itself or in base64.",
    _SEVERAL,
    anyOf=[{"required": [FIELD]}, {"required": [LIST_FIELD]}],
)
_EXPLAIN_BODY = _body("One image: as a form field, as the body itself, or in base64.", {FIELD: _FILE}, required=[FIELD])

_IMAGE_CODES = (
    "malformed_body",
    "body_too_slow",
    "body_too_large",
    "too_many_pixels",
    "model_not_found",
    "unsupported_media_type",
    "unsupported_format",
    "missing_file",
    "too_many_files",
    "invalid_request",
    "empty_file",
    "truncated",
    "undecodable",
    "too_small",
    "aspect_ratio",
    "views",
    "top_k",
    "rate_limited",
    "model_output_invalid",
    "internal",
    "overloaded",
    "timeout",
    "resources",
    "not_ready",
)

Views = Annotated[
    int | None,
    Query(
        description="Crops to average: more take longer and err less. Default: what the model was made for.",
        json_schema_extra={"enum": list(VIEW_COUNTS)},
    ),
]
TopK = Annotated[int, Query(ge=1, le=MAX_TOP_K, description="How many classes to answer with, at most.")]
Model = Annotated[str | None, Query(description="The model to ask. Default: the default one; GET /models says which.")]


@router.post(
    "/predict",
    summary="Classify images",
    response_model=PredictionAnswer | PredictionList,
    openapi_extra=_PREDICT_BODY,
    responses=documented(*_IMAGE_CODES),
)
async def predict(request: Request, views: Views = None, top_k: TopK = DEFAULT_TOP_K, model: Model = None) -> Response:
    """Say what an image shows: its most probable classes, and how probable each is.

    Send the image as the field `file` of a form, as the body itself with its content type, or in base64 as `image` of a JSON
    object. For several, repeat the field: the answer is then a list with one entry an image, in order, and one that cannot be
    used has its problem there. The field `files` always gets a list.
    """
    return await _predict(request, model, views, top_k)


@router.post(
    "/models/{name}/predict",
    summary="Classify images by a model of one's choice",
    response_model=PredictionAnswer | PredictionList,
    openapi_extra=_PREDICT_BODY,
    responses=documented(*_IMAGE_CODES),
)
async def predict_by(
    request: Request,
    name: Annotated[str, Path(description="One of GET /models.")],
    views: Views = None,
    top_k: TopK = DEFAULT_TOP_K,
) -> Response:
    """As `/predict`, by the model of this name."""
    return await _predict(request, name, views, top_k)


async def _predict(request: Request, model: str | None, views: int | None, top_k: int) -> Response:
    settings: Settings = request.app.state.settings
    pool: WorkerPool = request.app.state.pool
    models: Models = request.app.state.models
    # Everything that can be refused without the image is refused before it is read.
    slot = models.slot(model)
    predictor = slot.get()
    views = predictor.check_views(views)
    pool.check()
    upload = await read_upload(request, settings.max_files)
    views = predictor.check_views(upload.views or views)
    top_k = upload.top_k or top_k
    _pay(request, len(upload.images) * math.ceil(views / 10))
    answerer = Answerer(request, slot.name, predictor)
    answer: BaseModel
    if upload.many:
        answer = await while_connected(request.receive, answerer.predict_all(upload.images, views, top_k))
    else:
        answer = await while_connected(request.receive, answerer.predict(upload.images[0], views, top_k))
    return _json(answer)


@router.post(
    "/explain",
    summary="Where the model looked",
    response_model=ExplanationAnswer,
    openapi_extra=_EXPLAIN_BODY,
    responses=documented(*(code for code in _IMAGE_CODES if code not in ("views", "top_k")), "label"),
)
async def explain(
    request: Request,
    label: Annotated[str | None, Query(description="The class to explain. Default: the most probable one.")] = None,
    model: Model = None,
) -> Response:
    """Say on which parts of an image the score of a class rests, by covering them one after the other.

    It takes as long as about eight predictions with ten views, whatever the image.
    """
    pool: WorkerPool = request.app.state.pool
    models: Models = request.app.state.models
    slot = models.slot(model)
    predictor = slot.get()
    check_label(predictor, label)
    pool.check()
    upload = await read_upload(request, 1)
    _pay(request, math.ceil(FORWARD_PASSES / 10))
    answerer = Answerer(request, slot.name, predictor)
    return _json(await while_connected(request.receive, answerer.explain(upload.images[0], label)))


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def _pay(request: Request, images: int) -> None:
    """Let the rate limit know what the request costs, beyond the one image that let it in."""
    owe = getattr(request.state, "owe", None)
    if owe is not None and images > 1:
        owe(images - 1)


@router.get("/models", summary="The models", response_model=ModelList)
async def list_models(request: Request) -> ModelList:
    """List every model, what is being served of it, and the last bundle that was refused in its place."""
    models: Models = request.app.state.models
    states = []
    for slot in models.slots.values():
        predictor = slot.current
        refused = slot.refused
        states.append(
            ModelState(
                name=slot.name,
                default=slot.name == models.default,
                phase=slot.phase.value,
                version=predictor.bundle.version if predictor else None,
                loaded=slot.loaded,
                classes=len(predictor.class_names) if predictor else None,
                refused=Refused(at=refused.at, code=refused.code, detail=refused.detail) if refused else None,
            )
        )
    return ModelList(models=states)


@router.get(
    "/info",
    summary="A model and the limits",
    response_model=Info,
    responses=documented("model_not_found", "not_ready"),
)
async def info(request: Request, model: Model = None) -> Info:
    """Describe a model: its classes, its input, how it was tested; and what a request may be."""
    settings: Settings = request.app.state.settings
    slot = request.app.state.models.slot(model)
    predictor = slot.get()
    manifest: dict[str, Any] = predictor.bundle.manifest
    return Info(
        name=slot.name,
        version=predictor.bundle.version,
        class_names=list(predictor.class_names),
        image_size=predictor.image_size,
        default_views=predictor.default_views,
        precision=predictor.engine.precision,
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
