"""What an image looks like at a glance, in a few bytes: enough to find its copies among a million others.

A signature is a perceptual hash and a tiny image. The hash is the one known as pHash (Zauner, 2010, "Implementation and
Benchmarking of Perceptual Image Hash Functions"): the low frequencies of a small gray image's cosine transform, one bit
each. Here the bit is the coefficient's sign and not whether it is above the median: mirroring an image changes the sign of
every odd horizontal frequency and nothing else, so that the hash of a mirror image is the hash with some bits flipped, and
mirror images are found without hashing twice.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image

HASH_BYTES = 8
_GRAY_SIDE = 32
_FREQUENCIES = 8
GLANCE_SIDE = 8
"""Side of the tiny image in pixels: three bytes each."""
GLANCE_BYTES = GLANCE_SIDE * GLANCE_SIDE * 3
SIGNATURE_BYTES = HASH_BYTES + GLANCE_BYTES

MIN_CONTRAST = 3.0
"""Standard deviation of the small gray image, in gray levels, below which it has nothing to be recognized by: the signs of
its frequencies are noise. Such images (blank pages, lens caps) are compared by their bytes alone."""


@dataclass(frozen=True)
class Signatures:
    """The signatures of many images.

    Attributes:
        hashes: uint64, shape (n,).
        glances: uint8, shape (n, 8, 8, 3): RGB.
    """

    hashes: np.ndarray
    glances: np.ndarray

    def mirrored(self) -> Signatures:
        """What the images' mirror images would have."""
        return Signatures(self.hashes ^ _mirror_bits(), self.glances[:, :, ::-1])


def signature(image: Image.Image) -> bytes:
    """Hash and tiny image of a decoded image.

    Args:
        image: Mode RGB, of any size.

    Returns:
        `SIGNATURE_BYTES` bytes; none where the image is featureless (see `MIN_CONTRAST`).
    """
    small = image.resize((_GRAY_SIDE, _GRAY_SIDE), Image.Resampling.BOX)
    gray = np.asarray(small.convert("L"), dtype=np.float32)
    if gray.std() < MIN_CONTRAST:
        return b""
    basis = _cosines()
    bits = (basis @ gray @ basis.T).ravel()[_bit_order()] > 0
    bits[0] = False  # the mean brightness, whose sign says nothing
    glance = np.asarray(small, dtype=np.float32)
    step = _GRAY_SIDE // GLANCE_SIDE
    glance = glance.reshape(GLANCE_SIDE, step, GLANCE_SIDE, step, 3).mean(axis=(1, 3))
    return bytes(np.packbits(bits)) + bytes(np.rint(glance).astype(np.uint8))


def read_signatures(signatures: list[bytes]) -> Signatures:
    """Signatures as arrays.

    Args:
        signatures: From `signature`, none of them empty.
    """
    rows = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), SIGNATURE_BYTES)
    hashes = np.ascontiguousarray(rows[:, :HASH_BYTES]).view(np.uint64)[:, 0]
    return Signatures(hashes, rows[:, HASH_BYTES:].reshape(-1, GLANCE_SIDE, GLANCE_SIDE, 3))


@functools.cache
def _cosines() -> np.ndarray:
    """The first cosines of the transform (DCT-II, not normalized): float32, shape (8, 32)."""
    frequency, position = np.mgrid[0:_FREQUENCIES, 0:_GRAY_SIDE]
    basis: np.ndarray = np.cos(np.pi * frequency * (2 * position + 1) / (2 * _GRAY_SIDE)).astype(np.float32)
    return basis


@functools.cache
def _bit_order() -> np.ndarray:
    """Which coefficient each bit is of: int64, shape (64,). The four quarters of a hash get low and high frequencies alike."""
    down, across = np.divmod(np.arange(_FREQUENCIES**2), _FREQUENCIES)
    lowest_first = np.lexsort((down, down + across))
    order: np.ndarray = lowest_first.reshape(-1, 4).T.ravel()
    return order


@functools.cache
def _mirror_bits() -> np.uint64:
    """The bits that a mirror image has the other way round: those of odd horizontal frequencies."""
    odd = _bit_order() % _FREQUENCIES % 2 == 1
    return np.uint64(int.from_bytes(bytes(np.packbits(odd)), sys.byteorder))
