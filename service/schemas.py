"""JSON of the answers, as Pydantic models for FastAPI and its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from transferapp.images.views import VIEW_COUNTS

MAX_TOP_K = 10_000
"""More classes than any model has: a larger number is an error. A number over the model's own is not."""


def as_text(name: str) -> str:
    """Return a name fit for JSON: bytes that are not Unicode, from an old file system, become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


Name = Annotated[str, BeforeValidator(as_text)]
Score = Annotated[FiniteFloat, Field(ge=0)]
Box = tuple[float, float, float, float]

_ModelName = Annotated[Name, Field(description="Name of the model that answered.", examples=["dogs"])]
_ModelVersion = Annotated[
    str, Field(description="Identifies weights, classes, preprocessing and calibration.", examples=["3f2a9c01d4e8"])
]
_Width = Annotated[int, Field(description="Pixels, after rotation by the EXIF orientation.", examples=[1280])]
_Height = Annotated[int, Field(examples=[853])]
_Notes = Annotated[
    list[str], Field(description="Changes made to the image first, by code.", examples=[["exif_rotated"]])
]
_Warnings = Annotated[
    list[str],
    Field(description="The same as sentences.", examples=[["the image was turned as its orientation tag says"]]),
]
_Seconds = Annotated[
    dict[str, FiniteFloat],
    Field(
        description="Seconds by stage.",
        examples=[{"queue": 0.0001, "decode": 0.0062, "crop": 0.0048, "network": 0.0297}],
    ),
]


class Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), frozen=True)  # `model_version` is not a name of Pydantic's


class ScoredLabel(Answer):
    """A class and its probability."""

    label: Name = Field(examples=["beagle"])
    score: Score = Field(description="Probability, from 0 to 1.", examples=[0.9731])


class BodyParameters(BaseModel):
    """Parameters in a body, checked as in the query."""

    views: int | None = Field(
        None, description="Crops to average, as in the query.", json_schema_extra={"enum": [*VIEW_COUNTS, None]}
    )
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K, description="Largest number of classes, as in the query.")


class FormParameters(BodyParameters):
    """Parameters in the fields of a form."""

    model: str | None = None
    label: str | None = None


class JsonImage(BodyParameters):
    """An image in a JSON object, for clients that can send nothing else. `views` and `top_k` override the query."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="The file's bytes in base64, standard or URL-safe, or as a data URL.",
        json_schema_extra={"contentEncoding": "base64", "format": "byte"},
        examples=["iVBORw0KGgo..."],
    )


class PredictionAnswer(Answer):
    """Prediction for one image."""

    predictions: list[ScoredLabel] = Field(description="The best classes, most probable first.")
    model: _ModelName
    model_version: _ModelVersion
    novelty: FiniteFloat | None = Field(
        description="Share of the model's held-out images that look at least as familiar, from 0 to 1; null where the model "
        "cannot say.",
        examples=[0.417],
    )
    known: bool | None = Field(
        description="False where the image looks like none of the classes; null where the model cannot say.",
        examples=[True],
    )
    prediction_set: list[Name] | None = Field(
        description="The classes that contain the right one at the model's coverage (`GET /info`), most probable first; null "
        "where the model promises none.",
        examples=[["beagle"]],
    )
    views: int = Field(description="Crops whose probabilities were averaged.", examples=[10])
    format: str = Field(description="The image's format, by its content.", examples=["JPEG"])
    width: _Width
    height: _Height
    notes: _Notes
    warnings: _Warnings
    seconds: _Seconds


class Problem(BaseModel):
    """An error as an RFC 9457 document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URN that ends in the code.", examples=["urn:transferapp:problem:empty_file"])
    title: str = Field(description="The same for every problem with this code.", examples=["The file is empty"])
    status: int = Field(examples=[422])
    detail: str = Field(description="Explanation of this occurrence.")
    code: str = Field(description="Stable, for programs.", examples=["empty_file"])
    request_id: str | None = Field(description="As in the header x-request-id and in the log.")
    limit: dict[str, Any] | None = Field(
        None, description="The setting that was exceeded.", examples=[{"max_pixels": 25000000}]
    )
    hint: str | None = Field(None, description="Advice on how to fix it.")


class PredictionList(Answer):
    """Predictions for several images."""

    results: list[PredictionAnswer | Problem] = Field(
        description="One entry per image, in order: an answer, or the image's problem."
    )


class CropBox(Answer):
    """One of the crops that a prediction averages."""

    box: Box = Field(
        description="(left, top, right, bottom) in pixels; outside the image where the model pads it.",
        examples=[[0.0, 0.0, 746.0, 746.0]],
    )
    mirror: bool = Field(description="Whether it is flipped left to right.")
    score: Score = Field(description="The class's probability in this crop alone.", examples=[0.97])


class ExplanationAnswer(Answer):
    """Occlusion map of one image for one class."""

    label: Name = Field(description="The class explained.", examples=["beagle"])
    score: Score = Field(description="Its probability, averaged over the ten crops.", examples=[0.9731])
    saliency: list[list[FiniteFloat]] = Field(
        description="Rows from the top, values from 0 to 1: the drop of the class's log-odds with this cell of `box` covered.",
        examples=[[[0.0, 0.1], [0.4, 1.0]]],
    )
    box: Box = Field(
        description="The part of the image that `saliency` covers: (left, top, right, bottom) in pixels; outside the image "
        "where the model pads it.",
        examples=[[53.0, 53.0, 799.0, 799.0]],
    )
    center_score: Score = Field(description="The class's probability in `box`.", examples=[0.98])
    lowest_score: Score = Field(description="The same with the most influential patch covered.", examples=[0.31])
    crops: list[CropBox] = Field(description="The ten crops that a prediction averages.")
    model: _ModelName
    model_version: _ModelVersion
    width: _Width
    height: _Height
    notes: _Notes
    warnings: _Warnings
    seconds: _Seconds


class Alive(Answer):
    """The process responds."""

    status: Literal["alive"] = "alive"


class Ready(Answer):
    """The service is ready to predict."""

    status: Literal["ready"] = "ready"
    model: Name = Field(description="The default model.", examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])


class RefusedBundle(Answer):
    """A bundle that was offered and refused."""

    at: datetime
    code: str = Field(examples=["checksum_mismatch"])
    detail: Name


class ModelState(Answer):
    """State of one model."""

    name: Name = Field(examples=["dogs"])
    default: bool = Field(description="Whether it answers requests without a model name.")
    phase: Literal["loading", "warming", "ready", "failed"]
    version: str | None = Field(None, description="The version being served.", examples=["3f2a9c01d4e8"])
    loaded: datetime | None = Field(None, description="Time since when it is served.")
    classes: int | None = Field(None, examples=[9])
    refused: RefusedBundle | None = Field(None, description="The last bundle offered in its place, if it was refused.")


class ModelList(Answer):
    """All models by name."""

    models: list[ModelState]


class Limits(Answer):
    """Limits on a request."""

    max_body_bytes: int = Field(examples=[20_000_000])
    max_pixels: int = Field(examples=[25_000_000])
    min_side: int = Field(description="Smallest shorter side in pixels.", examples=[16])
    max_aspect: float = Field(description="Largest ratio of the longer to the shorter side.", examples=[20.0])
    max_top_k: int = Field(examples=[10_000])
    max_files: int = Field(examples=[16])
    views: list[int] = Field(examples=[[1, 10, 50]])


class Info(Answer):
    """A model being served, and the limits on a request."""

    name: Name = Field(examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])
    class_names: list[Name] = Field(examples=[["beagle", "poodle"]])
    image_size: tuple[int, int] = Field(description="(height, width) of the network's input.", examples=[[224, 224]])
    default_views: int = Field(examples=[10])
    precision: str = Field(description="Arithmetic of the network.", examples=["f32"])
    coverage: float | None = Field(
        description="Share of images whose prediction set has the right class; null where the model promises none.",
        examples=[0.9],
    )
    metrics: Any = Field(None, description="Test metrics, as the bundle records them.")
    backbone: Any = Field(None, description="The pretrained network.", examples=["efficientnet_lite0"])
    created: str | None = Field(None, examples=["2026-01-31T12:00:00+00:00"])
    report: bool = Field(description="Whether GET /report shows a report of the fit.")
    limits: Limits
