"""What a picture looks like at a glance, in a few bytes: enough to find its copies among a million others.

A signature is a perceptual hash and a tiny picture. The hash is the one known as pHash (Zauner, 2010, "Implementation and
Benchmarking of Perceptual Image Hash Functions"): the low frequencies of a small grey picture's cosine transform, one bit
each. Here the bit is the coefficient's sign and not whether it is above the median: mirroring a picture changes the sign of
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
_GREY_SIDE = 32
_FREQUENCIES = 8
GLANCE_SIDE = 8
"""Side of the tiny picture in pixels: three bytes each."""
GLANCE_BYTES = GLANCE_SIDE * GLANCE_SIDE * 3
SIGNATURE_BYTES = HASH_BYTES + GLANCE_BYTES

MIN_CONTRAST = 3.0
"""Standard deviation of the small grey picture, in grey levels, below which it has nothing to be recognised by: the signs of
its frequencies are noise. Such pictures (blank pages, lens caps) are compared by their bytes alone."""


@dataclass(frozen=True)
class Signatures:
    """The signatures of many pictures.

    Attributes:
        hashes: uint64, shape (n,).
        glances: uint8, shape (n, 8, 8, 3): RGB.
    """

    hashes: np.ndarray
    glances: np.ndarray

    def mirrored(self) -> Signatures:
        """What the pictures' mirror images would have."""
        return Signatures(self.hashes ^ _mirror_bits(), self.glances[:, :, ::-1])


def signature(image: Image.Image) -> bytes:
    """Hash and tiny picture of a decoded picture.

    Args:
        image: Mode RGB, of any size.

    Returns:
        `SIGNATURE_BYTES` bytes; none where the picture is featureless (see `MIN_CONTRAST`).
    """
    small = image.resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.float32)
    if grey.std() < MIN_CONTRAST:
        return b""
    basis = _cosines()
    bits = (basis @ grey @ basis.T).ravel()[_bit_order()] > 0
    bits[0] = False  # the mean brightness, whose sign says nothing
    glance = np.asarray(small, dtype=np.float32)
    step = _GREY_SIDE // GLANCE_SIDE
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
    """The first cosines of the transform (DCT-II, not normalised): float32, shape (8, 32)."""
    frequency, position = np.mgrid[0:_FREQUENCIES, 0:_GREY_SIDE]
    basis: np.ndarray = np.cos(np.pi * frequency * (2 * position + 1) / (2 * _GREY_SIDE)).astype(np.float32)
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
