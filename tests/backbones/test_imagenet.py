"""The embedded backbones are the ImageNet networks: predictions for images with known classes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.networks import pretrained
from transferapp.backbones.engine import OpenVINOEngine, convert
from transferapp.backbones.registry import EMBEDDED, backbone_spec
from transferapp.images import decode_image
from transferapp.images.views import SHORT_SIDE, center_view, render, short_side_to_decode

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "imagenet_ref"
"""Images of ImageNet's classes; a file's name starts with its class."""

LEAST_ACCURACY = 0.82

PHOTOGRAPHS = {
    "chelsea": range(281, 286),  # a cat: tabby, tiger cat, Persian, Siamese, Egyptian
    "coffee": (967, 968),  # espresso in a cup: espresso, cup
    "stereo_motorcycle": (665, 670),  # moped, motor scooter
}
"""Images of the scikit-image wheel, by function, with their correct classes."""


@functools.cache
def engine(name: str) -> OpenVINOEngine:
    return OpenVINOEngine(convert(pretrained(name)), precision="f32")


def center_pixels(image: Image.Image, image_size: tuple[int, int]) -> np.ndarray:
    return render(image, center_view(image.size, image_size), image_size)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_an_everyday_photograph_is_recognized(name: str, photograph: str) -> None:
    data: Any = pytest.importorskip("skimage.data")
    pixels = getattr(data, photograph)()
    image = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)
    logits = engine(name)(center_pixels(image, backbone_spec(name).image_size)[None])[0]
    assert int(logits.argmax()) in PHOTOGRAPHS[photograph]


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference images are not here")
@pytest.mark.parametrize("name", EMBEDDED)
def test_center_crops_of_imagenet_classes_are_recognized(name: str) -> None:
    image_size = backbone_spec(name).image_size
    files = sorted(REFERENCE.glob("*.jpg"))
    assert len(files) >= 100
    right = []
    for start in range(0, len(files), 8):
        batch = files[start : start + 8]
        pixels = [
            center_pixels(
                decode_image(file, min_short_side=short_side_to_decode(SHORT_SIDE, image_size)).image, image_size
            )
            for file in batch
        ]
        predicted = engine(name)(np.stack(pixels)).argmax(axis=1)
        right += [int(file.name[:4]) == index for file, index in zip(batch, predicted, strict=True)]
    assert np.mean(right) >= LEAST_ACCURACY
