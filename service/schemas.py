"""What the answers look like: the models behind the JSON and its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from transferapp.images.views import VIEW_COUNTS

MAX_TOP_K = 10_000
"""More than any model has classes; a request for more is a mistake, and says so. Fewer classes than asked for is
none."""


def as_text(name: str) -> str:
    """A name as JSON can hold it: what is no Unicode in it, from some old file system, is written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


Name = Annotated[str, BeforeValidator(as_text)]


class _Answer(BaseModel):
    # `model` and `model_version` are words of this service, and no part of Pydantic's.
    model_config = ConfigDict(protected_namespaces=(), frozen=True)


class ScoredLabel(_Answer):
    """One class and its probability."""

    label: Name = Field(examples=["beagle"])
    score: FiniteFloat = Field(ge=0, description="Probability, from 0 to 1.", examples=[0.9731])


class JsonImage(BaseModel):
    """An image in a JSON object, for clients that can send nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="The file's bytes in base64.",
        json_schema_extra={"contentEncoding": "base64", "format": "byte"},
        examples=["iVBORw0KGgo..."],
    )
    views: int | None = Field(
        None, description="As in the query, which it overrules.", json_schema_extra={"enum": [*VIEW_COUNTS, None]}
    )
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K, description="As in the query, which it overrules.")


_NOTES = Field(description="What was done to the image before, by code.", examples=[["exif_rotated"]])
_WARNINGS = Field(description="The same in sentences.", examples=[["the image was turned as its orientation tag says"]])


class PredictionAnswer(_Answer):
    """What the model says of an image."""

    predictions: list[ScoredLabel] = Field(description="The best classes, most probable first.")
    model: Name = Field(description="Name of the model that answered.", examples=["dogs"])
    model_version: str = Field(description="Names its weights, classes and preprocessing.", examples=["3f2a9c01d4e8"])
    views: int = Field(description="Crops of the image whose answers were averaged.", examples=[10])
    format: str = Field(description="The image's format, by its content.", examples=["JPEG"])
    width: int = Field(description="Pixels, of the image as a person sees it.", examples=[1280])
    height: int = Field(examples=[853])
    notes: list[str] = _NOTES
    warnings: list[str] = _WARNINGS
    seconds: dict[str, FiniteFloat] = Field(
        description="Time spent: waiting for a worker, decoding, cropping, in the network.",
        examples=[{"queue": 0.0001, "decode": 0.0062, "crop": 0.0048, "network": 0.0297}],
    )


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A URN that ends in the code.", examples=["urn:transferapp:problem:empty_file"])
    title: str = Field(description="The same for every problem with this code.", examples=["The file is empty"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What happened this time.")
    code: str = Field(description="Stable; for programs.", examples=["empty_file"])
    request_id: str | None = Field(description="As in the header x-request-id and in the log.")
    limit: dict[str, Any] | None = Field(
        None, description="The setting that was hit.", examples=[{"max_pixels": 25000000}]
    )
    mend: str | None = Field(None, description="What to do about it.")


class PredictionList(_Answer):
    """One entry an image, in the order in which they were sent."""

    results: list[PredictionAnswer | Problem] = Field(
        description="Each is an answer, or the problem that this image has."
    )


class CropBox(_Answer):
    """One of the views that a prediction averages."""

    box: tuple[float, float, float, float] = Field(
        description="(left, top, right, bottom) in pixels of the image as a person sees it.",
        examples=[[0.0, 0.0, 746.0, 746.0]],
    )
    mirror: bool = Field(description="Whether it was flipped left to right.")
    score: FiniteFloat = Field(ge=0, description="The class's probability in this view alone.", examples=[0.97])


class ExplanationAnswer(_Answer):
    """Where the model looked for one class."""

    label: Name = Field(description="The class explained.", examples=["beagle"])
    score: FiniteFloat = Field(ge=0, description="Its probability, averaged over the ten views.", examples=[0.9731])
    saliency: list[list[FiniteFloat]] = Field(
        description="Rows from the top, values from 0 to 1: how much covering this cell of `box` lowers the class's log-odds.",
        examples=[[[0.0, 0.1], [0.4, 1.0]]],
    )
    box: tuple[float, float, float, float] = Field(
        description="The part of the image that `saliency` covers: (left, top, right, bottom) in pixels.",
        examples=[[53.0, 53.0, 799.0, 799.0]],
    )
    center_score: FiniteFloat = Field(ge=0, description="The class's probability in `box`.", examples=[0.98])
    lowest_score: FiniteFloat = Field(
        ge=0, description="The same with the most telling patch covered.", examples=[0.31]
    )
    crops: list[CropBox] = Field(description="The ten views that a prediction averages.")
    model: Name = Field(examples=["dogs"])
    model_version: str = Field(examples=["3f2a9c01d4e8"])
    width: int = Field(description="Pixels, of the image as a person sees it.", examples=[1280])
    height: int = Field(examples=[853])
    notes: list[str] = _NOTES
    warnings: list[str] = _WARNINGS
    seconds: dict[str, FiniteFloat] = Field(
        description="Time spent, by stage.", examples=[{"queue": 0.0001, "network": 0.21}]
    )


class Alive(_Answer):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(_Answer):
    """The service is ready to predict."""

    status: Literal["ready"] = "ready"
    model: Name = Field(description="The default model.", examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])


class Refused(_Answer):
    """A bundle that was offered and not taken."""

    at: datetime
    code: str = Field(examples=["checksum_mismatch"])
    detail: Name


class ModelState(_Answer):
    """One model and how it stands."""

    name: Name = Field(examples=["dogs"])
    default: bool = Field(description="Whether it answers where a request names no model.")
    phase: Literal["loading", "warming", "ready", "failed"]
    version: str | None = Field(None, description="Of what is being served.", examples=["3f2a9c01d4e8"])
    loaded: datetime | None = Field(None, description="When that was put in place.")
    classes: int | None = Field(None, examples=[9])
    refused: Refused | None = Field(None, description="The last bundle offered in its place, if it was refused.")


class ModelList(_Answer):
    """Every model, by name."""

    models: list[ModelState]


class Limits(_Answer):
    """What a request may be."""

    max_body_bytes: int = Field(examples=[20_000_000])
    max_pixels: int = Field(examples=[25_000_000])
    min_side: int = Field(description="Least pixels of an image's shorter side.", examples=[16])
    max_aspect: float = Field(description="Most times the longer side is as long as the shorter.", examples=[20.0])
    max_top_k: int = Field(examples=[10_000])
    max_files: int = Field(examples=[16])
    views: list[int] = Field(examples=[[1, 10, 50]])


class Info(_Answer):
    """The model being served, and what may be asked of it."""

    name: Name = Field(examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])
    class_names: list[Name] = Field(examples=[["beagle", "poodle"]])
    image_size: tuple[int, int] = Field(description="(height, width) of the network's input.", examples=[[224, 224]])
    default_views: int = Field(examples=[10])
    precision: str = Field(description="Arithmetic the network runs in.", examples=["f32"])
    metrics: Any = Field(None, description="How the model did when it was tested, as its bundle records it.")
    backbone: Any = Field(None, description="The pretrained network it was made from.", examples=["efficientnet_lite0"])
    created: str | None = Field(None, examples=["2026-01-31T12:00:00+00:00"])
    report: bool = Field(description="Whether GET /report shows how it was made.")
    limits: Limits
