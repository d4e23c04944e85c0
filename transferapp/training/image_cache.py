"""Cache of decoded images in memory, for the epochs of a training run.

Decoding a photograph takes as long as cutting several views of it. Each image is decoded once, reduced to what the largest
training scale needs, and stored as bytes. This module imports no Keras.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from transferapp.backbones.feature_store import center_pixels
from transferapp.data.dataset import Record
from transferapp.errors import DataError, ImageError
from transferapp.images import DATASET_LIMITS, decode_image
from transferapp.images.augment import LECTURE_AUGMENTATION, Augmentation
from transferapp.images.views import RESAMPLE, short_side_to_decode

CACHE_BYTES = 1_000_000_000
"""Memory for decoded images. For a 224-pixel input one takes 0.7 to 0.9 MB, or less if the file is smaller."""

Pixels = npt.NDArray[np.uint8]


class DecodedCache:
    """Images as arrays, stored while there is room. Thread-safe.

    Nothing is evicted: training passes through all images in turn, where least-recently-used eviction would remove each image
    just before it is needed. Images that find no room are decoded again each time, to the same pixels.

    Args:
        decode: Returns the pixels of an image, uint8 (height, width, 3).
        max_bytes: Limit on the sum of the stored arrays.
    """

    def __init__(self, decode: Callable[[Record], Pixels], *, max_bytes: int = CACHE_BYTES) -> None:
        self._decode = decode
        self._max_bytes = max_bytes
        self._stored: dict[str, Pixels] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Sum of the stored arrays, in bytes."""
        return self._nbytes

    def __len__(self) -> int:
        """Return the number of stored images."""
        return len(self._stored)

    def get(self, record: Record) -> Pixels:
        """Return the pixels of an image: uint8 (height, width, 3), read-only.

        Raises:
            DataError: The file, which the error names, cannot be read any more.
            ResourceError: There is not enough memory to decode it.
        """
        key = record.sha256 or str(record.path)
        pixels = self._stored.get(key)
        if pixels is not None:
            return pixels
        try:
            pixels = self._decode(record)
        except ImageError as error:
            raise DataError(
                f"{record.name} could be read when the images were checked, and now it cannot ({error})",
                hint="Put the file back, leave the folder alone while a model is trained from it, and start again",
                code=error.code,
            ) from error
        pixels.flags.writeable = False
        with self._lock:
            if key not in self._stored and self._nbytes + pixels.nbytes <= self._max_bytes:
                self._stored[key] = pixels
                self._nbytes += pixels.nbytes
        return pixels


def training_images(
    image_size: tuple[int, int], augmentation: Augmentation = LECTURE_AUGMENTATION, *, max_bytes: int = CACHE_BYTES
) -> DecodedCache:
    """Return a cache of whole images, reduced to what the largest training scale needs.

    Args:
        image_size: (height, width) of the network's input.
        augmentation: Its largest scale determines the size.
        max_bytes: As of `DecodedCache`.
    """
    short_side = short_side_to_decode(augmentation.short_sides[1], image_size)

    def decode(record: Record) -> Pixels:
        image = decode_image(record.path, limits=DATASET_LIMITS, min_short_side=short_side).image
        shorter = min(image.size)
        if shorter > short_side:
            width, height = (round(side * short_side / shorter) for side in image.size)
            image = image.resize((width, height), RESAMPLE)
        return np.asarray(image)

    return DecodedCache(decode, max_bytes=max_bytes)


def center_views(image_size: tuple[int, int]) -> DecodedCache:
    """Return a cache of center views, (height, width) in size, with the pixels that a served model sees."""
    return DecodedCache(lambda record: center_pixels(record, image_size))
