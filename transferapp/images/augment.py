"""From a decoded image to the random view of it that a network trains on: one place for every choice of chance.

Shared by the views whose features are cached and by those that whole-network training draws afresh each epoch. Knows
nothing of Keras.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferapp.errors import UsageError
from transferapp.images.color_jitter import ColorJitter, PCAColor, jitter
from transferapp.images.views import REFERENCE_CROP, TRAINING_SHORT_SIDES, render, training_view


@dataclass(frozen=True)
class Augmentation:
    """What is left to chance in a training view, and how far. The defaults are the lecture's.

    Each setting can be switched off by itself, and then the others come out as before: the numbers are drawn all the same.

    Attributes:
        flip: Whether half of the views are mirrored.
        short_sides: The range, in pixels for a 224-pixel crop, from which the image's shorter side is drawn. Two equal
            numbers fix the scale.
        random_crop: Whether the crop may lie anywhere, or is in the middle.
        color: How far contrast, brightness and light vary.

    Raises:
        UsageError: The range of scales is empty, or its crops would not fit.
    """

    flip: bool = True
    short_sides: tuple[float, float] = TRAINING_SHORT_SIDES
    random_crop: bool = True
    color: ColorJitter = field(default_factory=ColorJitter)

    def __post_init__(self) -> None:
        least, most = self.short_sides
        if not REFERENCE_CROP <= least <= most < float("inf"):
            raise UsageError(
                "The range of training scales makes no sense",
                expected=f"two shorter sides of at least {REFERENCE_CROP}, the smaller first",
                got=f"{least} and {most}",
            )


LECTURE_AUGMENTATION = Augmentation()
"""Everything varies, as far as the lecture and the papers it names say."""


def seeded_generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but its key, so that each view can have its own.

    Args:
        key: What tells it from all others; parts are told apart by their `str`.
    """
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def augmented_pixels(
    image: Image.Image,
    rng: np.random.Generator,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    pca: PCAColor | None,
) -> npt.NDArray[np.uint8]:
    """A random view of an image.

    Args:
        image: The decoded image, in mode "RGB".
        rng: Decides everything; seed it anew for each view, so that views do not depend on each other.
        image_size: (height, width) of the network's input.
        augmentation: What may vary.
        pca: The training set's color components; may be None where `augmentation.color.pca_std` is 0.

    Returns:
        uint8 (height, width, 3), values 0 to 255.
    """
    view = training_view(
        rng,
        image.size,
        image_size,
        short_sides=augmentation.short_sides,
        flip=augmentation.flip,
        random_crop=augmentation.random_crop,
    )
    return jitter(render(image, view, image_size), rng, augmentation.color, pca)
