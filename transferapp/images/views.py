"""Crops: the boxes of the center view, the ten crops and random training views, and their pixels.

A view is a box in the pixels of the image, and whether to mirror it. Cropping and scaling are one antialiased
`resize(box=...)`, so nothing is rounded to whole pixels in between. Training and serving share this module. All but `render`
and `render_batch` is arithmetic on sizes.

The `size` of an image is (width, height), as in Pillow; the `image_size` of a network's input is (height, width), as in Keras.

Scales are named as in the literature, by the shorter side to which an image is scaled before a 224-pixel crop is taken:
256 for ten crops, and so on. For other inputs they grow with `min(image_size) / 224`. Where the image would then be too short
for the crop in one direction (an input that is not square), it is scaled further, with the same margin in the tight
direction: a crop always fits, and corners stay distinct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

REFERENCE_CROP = 224
"""Side of the crop, in pixels, to which all short sides below refer."""

SHORT_SIDE = 256
"""Shorter side of the image for the center view and the ten crops."""

MULTI_SCALE_SHORT_SIDES = (224, 256, 384, 480, 640)
"""Shorter sides of the five scales at which ten crops each make fifty."""

TRAINING_SHORT_SIDES = (256, 480)
"""Range of the shorter side for training views, uniform."""

TINY_SHORT_SIDES = (224, 320)
"""The same for images smaller than the network's input: a view shows at least half of the image, not a quarter."""

VIEW_COUNTS = (1, 10, 50)
"""Numbers of views that `views_for` knows: the center, ten crops, ten crops at five scales."""

RESAMPLE = Image.Resampling.BICUBIC
"""Filter of every resize; Pillow widens it with the scale, so that shrinking does not alias."""


@dataclass(frozen=True)
class View:
    """One crop of an image.

    Attributes:
        box: (left, top, right, bottom) in the image's pixels, fractions included; inside the image, and of the aspect
            of the network's input.
        mirror: Whether to flip the crop left to right.
    """

    box: tuple[float, float, float, float]
    mirror: bool = False


def center_view(size: tuple[int, int], image_size: tuple[int, int]) -> View:
    """Return the middle of the image, at the scale of the ten crops.

    Args:
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.

    Raises:
        ValueError: A side is below 1.
    """
    return _place(size, _box_size(size, image_size, SHORT_SIDE), 0.5, 0.5)


def ten_crops(size: tuple[int, int], image_size: tuple[int, int], short_side: float = SHORT_SIDE) -> list[View]:
    """Return the four corners and the center, and their mirror images.

    Args:
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        short_side: The scale, for a 224-pixel crop.

    Returns:
        Ten views: top left, top right, bottom left, bottom right, center; then the same five mirrored.

    Raises:
        ValueError: A side is below 1, or `short_side` below 224, where the crop would not fit.
    """
    box_size = _box_size(size, image_size, short_side)
    places = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
    return [_place(size, box_size, across, down, mirror) for mirror in (False, True) for across, down in places]


def multi_scale_crops(size: tuple[int, int], image_size: tuple[int, int]) -> list[View]:
    """Return ten crops at each of the scales in `MULTI_SCALE_SHORT_SIDES`, smallest first: fifty views."""
    return [view for short_side in MULTI_SCALE_SHORT_SIDES for view in ten_crops(size, image_size, short_side)]


def views_for(count: int, size: tuple[int, int], image_size: tuple[int, int]) -> list[View]:
    """Return the fixed views whose predictions are averaged.

    Args:
        count: One of `VIEW_COUNTS`.
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.

    Returns:
        `count` views.

    Raises:
        ValueError: There is no such set of views, or a side is below 1.
    """
    if count == 1:
        return [center_view(size, image_size)]
    if count == 10:
        return ten_crops(size, image_size)
    if count == 50:
        return multi_scale_crops(size, image_size)
    raise ValueError(f"There is no set of {count} views. Expected one of {', '.join(map(str, VIEW_COUNTS))}.")


def center_index(count: int) -> int:
    """Return the position of the center view among the views of `views_for`."""
    if count == 1:
        return 0
    before = 10 * MULTI_SCALE_SHORT_SIDES.index(SHORT_SIDE) if count == 50 else 0
    return before + 4


def training_view(
    rng: np.random.Generator,
    size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    short_sides: tuple[float, float] = TRAINING_SHORT_SIDES,
    flip: bool = True,
    random_crop: bool = True,
) -> View:
    """Return a random crop: at a uniform scale, in any place, mirrored half of the time.

    Args:
        rng: Advanced by four numbers, whatever the sizes and settings.
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        short_sides: Range of scales, for a 224-pixel crop.
        flip: Whether half of the views are mirrored.
        random_crop: Whether the crop may lie anywhere; otherwise it is in the middle.

    Raises:
        ValueError: A side is below 1.
    """
    scale, across, down, coin = rng.random(4).tolist()
    if not random_crop:
        across = down = 0.5
    least, most = short_sides
    box_size = _box_size(size, image_size, least + scale * (most - least))
    return _place(size, box_size, across, down, mirror=flip and coin < 0.5)


def short_side_to_decode(short_side: float, image_size: tuple[int, int]) -> int:
    """Return the shorter side that an image needs so that no view up to a scale is enlarged.

    For `min_short_side` of `decode_image`: a larger image may be decoded at a reduced size.

    Args:
        short_side: Largest scale: `SHORT_SIDE`, `TRAINING_SHORT_SIDES[1]` or `MULTI_SCALE_SHORT_SIDES[-1]`.
        image_size: (height, width) of the network's input.
    """
    return math.ceil(short_side * max(image_size) / REFERENCE_CROP)


def render(image: Image.Image, view: View, image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Crop and scale in one antialiased step.

    Args:
        image: An image in mode "RGB".
        view: A view made for its size.
        image_size: (height, width) of the network's input.

    Returns:
        uint8 of shape (height, width, 3), values 0 to 255, contiguous.

    Raises:
        ValueError: The image is not RGB, or the box reaches out of it.
    """
    pixels: npt.NDArray[np.uint8] = render_batch(image, [view], image_size)[0]
    return pixels


def render_batch(image: Image.Image, views: Sequence[View], image_size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Render several views of one image; a view and its mirror image cost one resize, so ten crops cost five.

    Args:
        image: An image in mode "RGB".
        views: Views made for its size, in any order.
        image_size: (height, width) of the network's input.

    Returns:
        uint8 of shape (len(views), height, width, 3), values 0 to 255, contiguous, in the order of `views`.

    Raises:
        ValueError: The image is not RGB, or a box reaches out of it.
    """
    if image.mode != "RGB":
        raise ValueError(f"Views are rendered from RGB images, got mode {image.mode}.")
    height, width = image_size
    batch = np.empty((len(views), height, width, 3), np.uint8)
    done: dict[tuple[float, float, float, float], Image.Image] = {}
    for index, view in enumerate(views):
        crop = done.get(view.box)
        if crop is None:
            crop = done[view.box] = image.resize((width, height), RESAMPLE, box=view.box)
        # Pillow mirrors five times faster than NumPy copies a reversed view.
        batch[index] = np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirror else crop)
    return batch


def _box_size(size: tuple[int, int], image_size: tuple[int, int], short_side: float) -> tuple[float, float]:
    """Return (width, height) of a crop in the image's pixels: the largest box of the input's aspect, less the margin."""
    (width, height), (crop_height, crop_width) = size, image_size
    if min(*size, *image_size) < 1:
        raise ValueError(f"Sizes must be at least 1, got an image of {size} and an input of {image_size}.")
    if not short_side >= REFERENCE_CROP:
        raise ValueError(f"A crop of {REFERENCE_CROP} does not fit a shorter side of {short_side:g}.")
    pixels = min(width / crop_width, height / crop_height) * REFERENCE_CROP / short_side
    return crop_width * pixels, crop_height * pixels


def _place(
    size: tuple[int, int], box_size: tuple[float, float], across: float, down: float, mirror: bool = False
) -> View:
    """Return a box at a fraction of the free room: 0 at the left or top, 1 at the right or bottom."""
    (width, height), (box_width, box_height) = size, box_size
    # If the box is as wide as the image, rounding must not move it outside.
    left, top = across * max(0.0, width - box_width), down * max(0.0, height - box_height)
    return View((left, top, min(left + box_width, float(width)), min(top + box_height, float(height))), mirror)
