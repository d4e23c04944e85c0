"""Crops: the boxes of the center view, the ten crops and random training views, and their pixels.

A view is a box in the pixels of the image, and whether to mirror it. Cropping and scaling are one antialiased
`resize(box=...)`, so nothing is rounded to whole pixels in between. Training and serving share this module. All but `render`
and `render_batch` is arithmetic on sizes.

The *geometry* says how an image that is longer than the network's input becomes a view:

- `crop`: the box has the aspect of the input. The center view shows the middle, so a long image loses its ends.
- `resize`: the box has the aspect of the image, which is squashed to that of the input. The center view shows the whole image.
- `pad`: the box has the aspect of the input and holds the whole image, with gray where it reaches out of it (letterbox). The
  center view shows the whole image.

The `size` of an image is (width, height), as in Pillow; the `image_size` of a network's input is (height, width), as in Keras.

Scales are named as in the literature, by the shorter side to which an image is scaled before a 224-pixel crop is taken:
256 for ten crops, and so on. For other inputs they grow with `min(image_size) / 224`. Where the image would then be too short
for the crop in one direction (an input that is not square), it is scaled further, with the same margin in the tight
direction: a crop always fits, and corners stay distinct. In the geometries `resize` and `pad`, 256 is the scale at which a
center or training view shows the whole image, and at larger scales it shows as much less; the corners of ten crops show
224 / 256 of each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

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

Geometry = Literal["crop", "resize", "pad"]
GEOMETRIES: tuple[Geometry, ...] = ("crop", "resize", "pad")

PADDING = 127
"""Gray around an image in the geometry `pad`: near the middle of the range, which networks see as about 0."""


@dataclass(frozen=True)
class View:
    """One crop of an image.

    Attributes:
        box: (left, top, right, bottom) in the image's pixels, fractions included; inside the image unless `padded`.
        mirror: Whether to flip the crop left to right.
        padded: Whether the box may reach out of the image, where the view is gray.
    """

    box: tuple[float, float, float, float]
    mirror: bool = False
    padded: bool = False


def center_view(size: tuple[int, int], image_size: tuple[int, int], geometry: Geometry = "crop") -> View:
    """Return the middle of the image at the scale of the ten crops, or in other geometries than `crop` the whole image.

    Args:
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        geometry: One of `GEOMETRIES`.

    Raises:
        ValueError: A side is below 1.
    """
    return _place(size, _box_size(size, image_size, SHORT_SIDE, geometry), 0.5, 0.5, geometry)


def ten_crops(
    size: tuple[int, int],
    image_size: tuple[int, int],
    short_side: float = SHORT_SIDE,
    geometry: Geometry = "crop",
) -> list[View]:
    """Return the four corners and the center, and their mirror images.

    In the geometries `resize` and `pad` the corners show 224 / `short_side` of each side, and the center 256 / `short_side` of
    it. In `pad`, the box of a corner may be larger than the image in one direction, which then touches its edge there.

    Args:
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        short_side: The scale, for a 224-pixel crop.
        geometry: One of `GEOMETRIES`.

    Returns:
        Ten views: top left, top right, bottom left, bottom right, center; then the same five mirrored.

    Raises:
        ValueError: A side is below 1, or `short_side` below 224, where the crop would not fit.
    """
    center = _box_size(size, image_size, short_side, geometry)
    corner = (
        center
        if geometry == "crop"
        else _box_size(size, image_size, short_side * SHORT_SIDE / REFERENCE_CROP, geometry)
    )
    places = ((0.0, 0.0, corner), (1.0, 0.0, corner), (0.0, 1.0, corner), (1.0, 1.0, corner), (0.5, 0.5, center))
    return [
        _place(size, box_size, across, down, geometry, mirror)
        for mirror in (False, True)
        for across, down, box_size in places
    ]


def multi_scale_crops(size: tuple[int, int], image_size: tuple[int, int], geometry: Geometry = "crop") -> list[View]:
    """Return ten crops at each of the scales in `MULTI_SCALE_SHORT_SIDES`, smallest first: fifty views."""
    return [
        view for short_side in MULTI_SCALE_SHORT_SIDES for view in ten_crops(size, image_size, short_side, geometry)
    ]


def views_for(
    count: int, size: tuple[int, int], image_size: tuple[int, int], geometry: Geometry = "crop"
) -> list[View]:
    """Return the fixed views whose predictions are averaged.

    Args:
        count: One of `VIEW_COUNTS`.
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        geometry: One of `GEOMETRIES`.

    Returns:
        `count` views.

    Raises:
        ValueError: There is no such set of views, or a side is below 1.
    """
    if count == 1:
        return [center_view(size, image_size, geometry)]
    if count == 10:
        return ten_crops(size, image_size, geometry=geometry)
    if count == 50:
        return multi_scale_crops(size, image_size, geometry)
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
    geometry: Geometry = "crop",
) -> View:
    """Return a random crop: at a uniform scale, in any place, mirrored half of the time.

    Args:
        rng: Advanced by four numbers, whatever the sizes and settings.
        size: (width, height) of the image.
        image_size: (height, width) of the network's input.
        short_sides: Range of scales, for a 224-pixel crop.
        flip: Whether half of the views are mirrored.
        random_crop: Whether the crop may lie anywhere; otherwise it is in the middle.
        geometry: One of `GEOMETRIES`.

    Raises:
        ValueError: A side is below 1.
    """
    scale, across, down, coin = rng.random(4).tolist()
    if not random_crop:
        across = down = 0.5
    least, most = short_sides
    box_size = _box_size(size, image_size, least + scale * (most - least), geometry)
    return _place(size, box_size, across, down, geometry, mirror=flip and coin < 0.5)


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
    done: dict[View, Image.Image] = {}
    for index, view in enumerate(views):
        straight = replace(view, mirror=False)
        crop = done.get(straight)
        if crop is None:
            scaled = _letterboxed if view.padded else _cropped
            crop = done[straight] = scaled(image, view.box, (width, height))
        # Pillow mirrors five times faster than NumPy copies a reversed view.
        batch[index] = np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirror else crop)
    return batch


def _cropped(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    return image.resize(size, RESAMPLE, box=box)


def _letterboxed(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """Return a box that may reach out of the image, scaled to (width, height), with gray where there is no image.

    The image's edges fall on whole pixels of the result, of which it has at least one in each direction.
    """
    inside = (max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
    spans = []
    for axis, length in enumerate(size):
        low, high = box[axis], box[axis + 2]
        # Halves up, as JavaScript rounds in exported pages.
        first, last = (
            math.floor(length * (edge - low) / (high - low) + 0.5) for edge in (inside[axis], inside[axis + 2])
        )
        first = min(first, length - 1)
        spans.append((first, max(last, first + 1)))
    (left, right), (top, bottom) = spans
    canvas = Image.new("RGB", size, (PADDING, PADDING, PADDING))
    canvas.paste(image.resize((right - left, bottom - top), RESAMPLE, box=inside), (left, top))
    return canvas


def _box_size(
    size: tuple[int, int], image_size: tuple[int, int], short_side: float, geometry: Geometry
) -> tuple[float, float]:
    """Return (width, height) of a view in the image's pixels.

    In `crop` it is the largest box of the input's aspect, less the margin; in `resize` and `pad`, at most the whole image.
    """
    (width, height), (crop_height, crop_width) = size, image_size
    if min(*size, *image_size) < 1:
        raise ValueError(f"Sizes must be at least 1, got an image of {size} and an input of {image_size}.")
    if not short_side >= REFERENCE_CROP:
        raise ValueError(f"A crop of {REFERENCE_CROP} does not fit a shorter side of {short_side:g}.")
    if geometry == "crop":
        pixels = min(width / crop_width, height / crop_height) * REFERENCE_CROP / short_side
        return crop_width * pixels, crop_height * pixels
    share = min(1.0, SHORT_SIDE / short_side)
    if geometry == "resize":
        return width * share, height * share
    pixels = max(width / crop_width, height / crop_height) * share
    return crop_width * pixels, crop_height * pixels


def _place(
    size: tuple[int, int],
    box_size: tuple[float, float],
    across: float,
    down: float,
    geometry: Geometry,
    mirror: bool = False,
) -> View:
    """Return a box at a fraction of the free room: 0 at the left or top, 1 at the right or bottom.

    A padded box that is larger than the image has the image anywhere in it: the fraction is that of its own room.
    """
    (width, height), (box_width, box_height) = size, box_size
    if geometry == "pad":
        left, top = across * (width - box_width), down * (height - box_height)
        return View((left, top, left + box_width, top + box_height), mirror, padded=True)
    # If the box is as wide as the image, rounding must not move it outside.
    left, top = across * max(0.0, width - box_width), down * max(0.0, height - box_height)
    return View((left, top, min(left + box_width, float(width)), min(top + box_height, float(height))), mirror)
