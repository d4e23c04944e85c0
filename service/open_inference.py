"""Open Inference Protocol (version 2 over HTTP), as KServe, Seldon and Triton have it: `/v2/models/NAME/infer`.

The input is one tensor `image` of type BYTES and shape [n]: encoded images in base64. The outputs are `label` (BYTES) and
`score` (FP32), both of shape [n, k], the most probable class first. Errors have the protocol's `error` beside the members of
every problem document. https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.predictions import RequestPredictor
from service.problems import RequestError, documented
from service.queue import while_connected
from service.routes import DEFAULT_TOP_K, IMAGE_CODES, admit, charge, json_response
from service.schemas import Answer, BodyParameters, Name, Problem, Score
from service.uploads import check_count, from_base64, read_json

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

ModelName = Annotated[str, Path(description="One of GET /models.")]


class ImageTensor(BaseModel):
    """Encoded images in base64. Members that the protocol has beside these change nothing."""

    model_config = ConfigDict(strict=True)

    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(description="[n].", examples=[[1]])
    data: list[str] = Field(min_length=1, examples=[["iVBORw0KGgo..."]])


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(strict=True)

    id: str | None = Field(None, description="Returned in the answer.")
    parameters: BodyParameters | None = None
    inputs: list[ImageTensor] = Field(min_length=1, max_length=1)


class Tensor(Answer):
    """A tensor; -1 in a description's shape is any length. Data are flattened in row-major order."""

    name: Name
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[str] | list[Score] | None = None


class ModelDescription(Answer):
    """A model's tensors, and the version being served."""

    name: Name
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class InferAnswer(Answer):
    """The answer to an inference request."""

    model_name: Name
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


_MODEL_CODES = documented("model_not_found", "not_ready")


@router.get("", summary="Name and version")
async def describe_server(request: Request) -> dict[str, Any]:
    """Return the service's name and version."""
    return {"name": "transferapp", "version": request.app.version, "extensions": []}


@router.get("/health/live", summary="Check that the process responds")
async def live(request: Request) -> dict[str, bool]:
    """Answer as /livez."""
    request.state.log_level = logging.DEBUG
    return {"live": True}


@router.get("/health/ready", summary="Check that the service is ready", responses=documented("not_ready"))
async def ready(request: Request) -> dict[str, bool]:
    """Answer as /readyz."""
    request.app.state.models.check_ready()
    request.state.log_level = logging.DEBUG
    return {"ready": True}


@router.get("/models/{name}/ready", summary="Check that a model is ready", responses=_MODEL_CODES)
async def model_ready(request: Request, name: ModelName) -> dict[str, Any]:
    """Answer 200 once the model can answer."""
    request.app.state.models.slot(name).get()
    request.state.log_level = logging.DEBUG
    return {"name": name, "ready": True}


@router.get("/models/{name}", summary="Describe a model", responses=_MODEL_CODES, response_model_exclude_unset=True)
async def describe_model(request: Request, name: ModelName) -> ModelDescription:
    """Describe the input and the outputs of a model."""
    version = request.app.state.models.slot(name).get().bundle.version
    image = Tensor(name="image", datatype="BYTES", shape=[-1])
    outputs = [
        Tensor(name="label", datatype="BYTES", shape=[-1, -1]),
        Tensor(name="score", datatype="FP32", shape=[-1, -1]),
    ]
    return ModelDescription(name=name, versions=[version], platform="openvino", inputs=[image], outputs=outputs)


_BODY = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}}}


@router.post(
    "/models/{name}/infer",
    summary="Classify images",
    response_model=InferAnswer,
    openapi_extra={"requestBody": _BODY},
    responses=documented(*IMAGE_CODES, "views", "top_k"),
)
async def infer(request: Request, name: ModelName) -> Response:
    """Return each image's most probable classes. `views` and `top_k` are optional members of `parameters`.

    An image that cannot be used fails the request, since a tensor has no place for an error.
    """
    slot, predictor = admit(request, name)
    document = await read_json(request, InferRequest)
    data, shape = document.inputs[0].data, document.inputs[0].shape
    check_count("The tensor has too many images", len(data), request.app.state.settings.max_files)
    if shape != [len(data)]:
        what, expected = "shape: it does not fit the data", f"[{len(data)}]"
        raise RequestError(what, code="invalid_request", expected=expected, got=str(shape)[:60])
    parameters = document.parameters or BodyParameters(views=None, top_k=None)
    views = predictor.check_views(parameters.views)
    images = [from_base64(text) for text in data]
    charge(request, len(images), views)
    run = RequestPredictor(request, slot.name, predictor)
    work = run.predict_all(images, views, parameters.top_k or DEFAULT_TOP_K)
    rows = []
    for number, result in enumerate((await while_connected(request.receive, work)).results):
        if isinstance(result, Problem):
            raise RequestError(f"data[{number}]: {result.detail}", code=result.code, hint=result.hint)
        rows.append(result.predictions)
    flat = [score for row in rows for score in row]
    shape = [len(rows), len(rows[0])]
    label = Tensor(name="label", datatype="BYTES", shape=shape, data=[score.label for score in flat])
    score = Tensor(name="score", datatype="FP32", shape=shape, data=[score.score for score in flat])
    identity = {} if document.id is None else {"id": document.id}
    version = predictor.bundle.version
    return json_response(InferAnswer(model_name=slot.name, model_version=version, outputs=[label, score], **identity))
