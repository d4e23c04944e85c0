"""Keep decoded images in memory between the epochs of a training, as many as there is room for.

Decoding a photograph takes as long as cutting several views of it. An image is therefore decoded once, reduced to what the
largest training scale needs, and kept as bytes. Knows nothing of Keras.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from transferapp.backbones.feature_store import center_pixels
from transferapp.data.audit import DATASET_LIMITS
from transferapp.data.dataset import Record
from transferapp.errors import DataError, ImageError
from transferapp.images import ImageLimits, decode_image
from transferapp.images.augment import LECTURE_AUGMENTATION, Augmentation
from transferapp.images.views import RESAMPLE, short_side_to_decode

CACHE_BYTES = 1_000_000_000
"""What decoded images may take of the memory. For a 224-pixel input one takes 0.7 to 0.9 MB, or less if it is smaller."""

Pixels = npt.NDArray[np.uint8]


class DecodedCache:
    """Images as arrays, made once and kept as long as there is room.

    Nothing is ever thrown out: training passes through all images again and again, and there the usual rule, the longest
    unused goes first, would throw each one out just before its turn. First come, first kept; what found no room is made
    again each time, with the same pixels. Safe to use from several threads.

    Args:
        make: Gives an image's pixels, uint8 (height, width, 3). See `training_images` and `center_views`.
        max_bytes: The sum of the arrays that are kept.
    """

    def __init__(self, make: Callable[[Record], Pixels], *, max_bytes: int = CACHE_BYTES) -> None:
        self._make = make
        self._max_bytes = max_bytes
        self._kept: dict[str, Pixels] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self._nbytes

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def get(self, record: Record) -> Pixels:
        """The pixels of an image: uint8 (height, width, 3), read-only.

        Raises:
            DataError: The file cannot be read any more; names it.
            ResourceError: There is not enough memory to decode it.
        """
        key = record.sha256 or str(record.path)
        pixels = self._kept.get(key)
        if pixels is not None:
            return pixels
        try:
            pixels = self._make(record)
        except ImageError as error:
            raise DataError(
                f"{record.name} could be read when the images were checked, and now it cannot ({error})",
                hint="Put the file back, leave the folder alone while a model is trained from it, and start again",
                code=error.code,
            ) from error
        pixels.flags.writeable = False
        with self._lock:
            if key not in self._kept and self._nbytes + pixels.nbytes <= self._max_bytes:
                self._kept[key] = pixels
                self._nbytes += pixels.nbytes
        return pixels


def training_images(
    image_size: tuple[int, int],
    augmentation: Augmentation = LECTURE_AUGMENTATION,
    *,
    max_bytes: int = CACHE_BYTES,
    limits: ImageLimits = DATASET_LIMITS,
) -> DecodedCache:
    """A cache of whole images, reduced to what the largest training scale needs.

    Args:
        image_size: (height, width) of the network's input.
        augmentation: Its largest scale decides the size.
        max_bytes: See `DecodedCache`.
        limits: What images are accepted.
    """
    short_side = short_side_to_decode(augmentation.short_sides[1], image_size)

    def make(record: Record) -> Pixels:
        image = decode_image(record.path, limits=limits, min_short_side=short_side).image
        shorter = min(image.size)
        if shorter > short_side:
            width, height = (round(side * short_side / shorter) for side in image.size)
            image = image.resize((width, height), RESAMPLE)
        return np.asarray(image)

    return DecodedCache(make, max_bytes=max_bytes)


def center_views(
    image_size: tuple[int, int], *, max_bytes: int = CACHE_BYTES, limits: ImageLimits = DATASET_LIMITS
) -> DecodedCache:
    """A cache of center views, with the very pixels that a served model sees. Arguments as of `training_images`."""
    return DecodedCache(lambda record: center_pixels(record, image_size, limits), max_bytes=max_bytes)
