"""What the answers look like: the models behind the JSON and its OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class _Answer(BaseModel):
    # `model` and `model_version` are words of this service, and no part of Pydantic's.
    model_config = ConfigDict(protected_namespaces=(), frozen=True)


class ScoredLabel(_Answer):
    """One class and its probability."""

    label: str = Field(examples=["beagle"])
    score: FiniteFloat = Field(ge=0, description="Probability, from 0 to 1.", examples=[0.9731])


class PredictionAnswer(_Answer):
    """What the model says of a picture."""

    predictions: list[ScoredLabel] = Field(description="The best classes, most probable first.")
    model: str = Field(description="Name of the model that answered.", examples=["dogs"])
    model_version: str = Field(description="Names its weights, classes and preprocessing.", examples=["3f2a9c01d4e8"])
    views: int = Field(description="Crops of the picture whose answers were averaged.", examples=[10])
    format: str = Field(description="The picture's format, by its content.", examples=["JPEG"])
    width: int = Field(description="Pixels, of the picture as a person sees it.", examples=[1280])
    height: int = Field(examples=[853])
    notes: list[str] = Field(description="What was done to the picture before.", examples=[["exif_rotated"]])
    seconds: dict[str, FiniteFloat] = Field(
        description="Time spent: waiting for a worker, decoding, cropping, in the network.",
        examples=[{"queue": 0.0001, "decode": 0.0062, "crop": 0.0048, "network": 0.0297}],
    )


class Health(_Answer):
    """The service is ready to predict."""

    status: Literal["ready"] = "ready"
    model: str = Field(examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])


class Limits(_Answer):
    """What a request may be."""

    max_body_bytes: int = Field(examples=[20_000_000])
    max_pixels: int = Field(examples=[25_000_000])
    min_side: int = Field(description="Least pixels of a picture's shorter side.", examples=[16])
    max_aspect: float = Field(description="Most times the longer side is as long as the shorter.", examples=[20.0])
    max_top_k: int = Field(examples=[10_000])
    views: list[int] = Field(examples=[[1, 10, 50]])


class Info(_Answer):
    """The model being served, and what may be asked of it."""

    name: str = Field(examples=["dogs"])
    version: str = Field(examples=["3f2a9c01d4e8"])
    class_names: list[str] = Field(examples=[["beagle", "poodle"]])
    image_size: tuple[int, int] = Field(description="(height, width) of the network's input.", examples=[[224, 224]])
    default_views: int = Field(examples=[10])
    precision: str = Field(description="Arithmetic the network runs in.", examples=["f32"])
    metrics: Any = Field(None, description="How the model did when it was tested, as its bundle records it.")
    backbone: Any = Field(None, description="The pretrained network it was made from.", examples=["efficientnet_lite0"])
    created: str | None = Field(None, examples=["2026-01-31T12:00:00+00:00"])
    limits: Limits


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
