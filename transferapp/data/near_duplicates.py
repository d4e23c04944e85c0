"""Duplicates and near-duplicates in a set of images: the same bytes, or one image saved again, scaled, cropped or mirrored.

The audit keeps a signature of each image: a perceptual hash and a thumbnail of 8 x 8 pixels. Near-duplicates are images whose
hashes differ in few bits and whose thumbnails correlate, for a hash alone sees no color and is easily fooled by large plain
shapes. Thresholds, with what they find and miss: docs/decisions/0009-duplicates.md. Heavier crops and rotations are found by
the features of a backbone (`similar_rows`).

The hash is pHash (Zauner, 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"): the low frequencies of
a small gray image's cosine transform, one bit each. Here the bit is the coefficient's sign and not whether it is above the
median: mirroring an image changes the sign of every odd horizontal frequency and nothing else, so the hash of a mirror image
is the hash with some bits flipped.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from transferapp.data.dataset import Dataset, connected_groups

HASH_BYTES = 8
THUMBNAIL_SIDE = 8
SIGNATURE_BYTES = HASH_BYTES + THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3

MIN_CONTRAST = 3.0
"""Standard deviation of the small gray image, in gray levels, below which an image has no signature: the signs of its
frequencies are noise. Such images (blank pages, lens caps) are compared by their bytes alone."""

MAX_HASH_DISTANCE = 11
"""Bits of 63 in which the hashes of near-duplicates may differ. Alone this would be too lenient (see the decision)."""

MIN_THUMBNAIL_CORRELATION = 0.9
"""Correlation of the thumbnails' colors. With it, no two different images of four sets are taken for near-duplicates."""

MAX_GRAY_CHROMA = 6.0
"""Mean spread of a thumbnail's channels, in levels, up to which it counts as gray. A gray image and one in color are compared
by brightness alone."""

MIN_COSINE = 0.87
"""Cosine of two images' top features from which they look similar to the network. Below it come different images of one scene,
and different dogs of one breed: of 100 images of trash and aerial one or none has another that is as close, while 95 of 100
crops of 15 % and turns of 5 degrees are."""

UNIFORM_FROM = 0.9
"""Cosine to the nearest image of another class from which a set is too uniform for features to tell duplicates: images of
different classes are none. The 99th percentile is .66 on trash, .76 on aerial and .99 on woven textile."""

_UNIFORM_SAMPLE = 1000

_GRAY_SIDE = 32
_FREQUENCIES = 8
_MOST_NEIGHBORS = 256
"""Images that one image is paired with at most. Only sets full of images that look the same have more (frames of one film),
and there chains of pairs connect them all the same."""

_PAIRS_AT_ONCE = 1 << 16
_DIRECT_ROWS = 8192
_PROJECTED = 128
_PROJECTION_SLACK = 0.07
"""Four standard deviations of a cosine of 0.9 that is estimated from 128 random projections."""
_ROWS_AT_ONCE = 1024
_MOST_SIMILAR = 64
"""Similar rows that are kept of one row within one block."""


@dataclass(frozen=True)
class Signatures:
    """The signatures of many images.

    Attributes:
        hashes: uint64, shape (n,).
        thumbnails: uint8, shape (n, 8, 8, 3): RGB.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray

    def mirrored(self) -> Signatures:
        """Return the signatures of the images' mirror images."""
        return Signatures(self.hashes ^ _mirror_bits(), self.thumbnails[:, :, ::-1])


def signature(image: Image.Image) -> bytes:
    """Return the hash and the thumbnail of an image.

    Args:
        image: Mode RGB, of any size.

    Returns:
        `SIGNATURE_BYTES` bytes; none where the image has too little contrast (see `MIN_CONTRAST`).
    """
    small = image.resize((_GRAY_SIDE, _GRAY_SIDE), Image.Resampling.BOX)
    gray = np.asarray(small.convert("L"), dtype=np.float32)
    if gray.std() < MIN_CONTRAST:
        return b""
    basis = _cosines()
    bits = (basis @ gray @ basis.T).ravel() > 0
    bits[0] = False  # the mean brightness, whose sign says nothing
    step = _GRAY_SIDE // THUMBNAIL_SIDE
    blocks = np.asarray(small, dtype=np.float32).reshape(THUMBNAIL_SIDE, step, THUMBNAIL_SIDE, step, 3)
    return bytes(np.packbits(bits)) + bytes(np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8))


def read_signatures(signatures: list[bytes]) -> Signatures:
    """Return signatures as arrays.

    Args:
        signatures: From `signature`, none of them empty.
    """
    rows = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), SIGNATURE_BYTES)
    hashes = np.ascontiguousarray(rows[:, :HASH_BYTES]).view(np.uint64)[:, 0]
    return Signatures(hashes, rows[:, HASH_BYTES:].reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))


@functools.cache
def _cosines() -> np.ndarray:
    """Return the first cosines of the transform (DCT-II, not normalized): float32, shape (8, 32)."""
    frequency, position = np.mgrid[0:_FREQUENCIES, 0:_GRAY_SIDE]
    basis: np.ndarray = np.cos(np.pi * frequency * (2 * position + 1) / (2 * _GRAY_SIDE)).astype(np.float32)
    return basis


@functools.cache
def _mirror_bits() -> np.uint64:
    """Return the bits in which the hash of a mirror image differs: those of odd horizontal frequencies."""
    odd = np.arange(_FREQUENCIES**2) % _FREQUENCIES % 2 == 1
    return np.uint64(int.from_bytes(bytes(np.packbits(odd)), sys.byteorder))


def with_clusters(dataset: Dataset) -> Dataset:
    """Give duplicates and near-duplicates of each other the same `cluster`, and drop the signatures.

    Args:
        dataset: Audited.
    """
    records = dataset.records
    first: dict[str, int] = {}
    pairs = [(first.setdefault(record.sha256, position), position) for position, record in enumerate(records)]
    seen = [position for position in first.values() if records[position].signature]
    if seen:
        signatures = read_signatures([records[position].signature for position in seen])
        pairs += [(seen[left], seen[right]) for left, right in near_duplicates(signatures)]
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(connected_groups(len(records), pairs).tolist()):
        members[group].append(position)
    cluster: dict[int, str] = {}
    for positions in members.values():
        if len(positions) > 1:
            cluster |= dict.fromkeys(positions, min(records[position].sha256 for position in positions)[:16])
    return dataset.with_records(
        [
            dataclasses.replace(record, signature=b"", cluster=cluster.get(position, ""))
            for position, record in enumerate(records)
        ]
    )


def near_duplicates(signatures: Signatures) -> Iterator[tuple[int, int]]:
    """Yield pairs of near-duplicates, first below second; those of mirror images come last."""
    for queries in (signatures, signatures.mirrored()):
        for i, j in near_pairs(queries.hashes, signatures.hashes, MAX_HASH_DISTANCE):
            for start in range(0, len(i), _PAIRS_AT_ONCE):
                left, right = i[start : start + _PAIRS_AT_ONCE], j[start : start + _PAIRS_AT_ONCE]
                correlation = thumbnail_correlation(queries.thumbnails[left], signatures.thumbnails[right])
                same = correlation >= MIN_THUMBNAIL_CORRELATION
                yield from zip(left[same].tolist(), right[same].tolist(), strict=True)


def near_pairs(
    queries: np.ndarray, hashes: np.ndarray, radius: int, *, rows: int = 16, columns: int = 4096
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs i < j whose query i and hash j differ in at most `radius` bits.

    All pairs are compared, in blocks that fit into the processor's cache: 60,000 hashes take one core a second.

    Args:
        queries: uint64, shape (n,): the hashes themselves, or those of mirror images.
        hashes: uint64, shape (n,).
        radius: Largest number of bits.
        rows, columns: Size of a block.

    Yields:
        (i, j), int64, shape (pairs,). Of each i, at most `_MOST_NEIGHBORS` pairs, those with the lowest j.
    """
    for top in range(0, len(hashes), rows):
        block = queries[top : top + rows, None]
        room = np.full(len(block), _MOST_NEIGHBORS)
        for start in range(top, len(hashes), columns):
            near = np.bitwise_count(block ^ hashes[start : start + columns]) <= radius
            if start < top + rows:
                near = np.triu(near, top - start + 1)  # i < j
            if near.any():
                near &= np.cumsum(near, axis=1) <= room[:, None]
                room -= near.sum(axis=1)
                i, j = np.nonzero(near)
                yield i + top, j + start


def thumbnail_correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the correlation of thumbnails' colors, or of their brightness where just one of two is gray.

    Args:
        left, right: uint8, shape (n, 8, 8, 3).

    Returns:
        float32, shape (n,), in [-1, 1].
    """
    left, right = left.astype(np.float32), right.astype(np.float32)
    one_is_gray = _is_gray(left) != _is_gray(right)
    correlation = _correlation(left, right)
    if one_is_gray.any():
        weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
        correlation[one_is_gray] = _correlation(left[one_is_gray] @ weights, right[one_is_gray] @ weights)
    return correlation


def _is_gray(thumbnails: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.ptp(thumbnails, axis=-1).mean(axis=(1, 2)) <= MAX_GRAY_CHROMA
    return result


def _correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    left, right = (rows - rows.mean(axis=1, keepdims=True) for rows in (left, right))
    result: np.ndarray = np.einsum("nf,nf->n", _units(left), _units(right))
    return result


def similar_rows(
    features: np.ndarray, others: np.ndarray | None = None, *, threshold: float = MIN_COSINE
) -> list[tuple[int, int, float]]:
    """Return pairs of images whose features point the same way.

    Memory is flat: rows are compared block by block. Many rows are compared by random projections first (Johnson and
    Lindenstrauss, 1984), and only what is near by them is compared in full.

    Args:
        features: float32, shape (n, num_features).
        others: float32, shape (m, num_features): rows to compare them with; None for each other.
        threshold: Least cosine.

    Returns:
        (first, second, cosine), most similar first; first is an index into `features`, second into `others`, or, without
        them, one above first into `features`.
    """
    left = _units(features)
    right = left if others is None else _units(others)
    near_left, near_right, slack = left, right, 0.0
    if len(left) + len(right) > 2 * _DIRECT_ROWS and left.shape[1] > _PROJECTED:
        projection = np.random.default_rng(0).normal(size=(left.shape[1], _PROJECTED)).astype(np.float32)
        near_left, slack = _units(left @ projection), _PROJECTION_SLACK
        near_right = near_left if others is None else _units(right @ projection)
    found: list[tuple[int, int, float]] = []
    for i, j in _near_by_blocks(near_left, near_right, threshold - slack):
        cosine = np.einsum("nf,nf->n", left[i], right[j])
        kept = cosine >= threshold
        found += zip(i[kept].tolist(), j[kept].tolist(), cosine[kept].tolist(), strict=True)
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))


def too_uniform(features: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the images are too uniform for their features to tell near-duplicates.

    Args:
        features: float32, shape (n, num_features).
        labels: int, shape (n,).
    """
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(_UNIFORM_SAMPLE, len(labels))).astype(int))
    units, classes = _units(features[chosen]), labels[chosen]
    if len(np.unique(classes)) < 2:
        return False
    cosines = np.where(classes[:, None] == classes, -1.0, units @ units.T)
    return bool(np.quantile(cosines.max(axis=1), 0.99) >= UNIFORM_FROM)


def _units(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return result


def _near_by_blocks(rows: np.ndarray, others: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs whose product is at least the threshold, by blocks; i < j where rows are compared with each other."""
    itself = rows is others
    for top in range(0, len(rows), _ROWS_AT_ONCE):
        for start in range(top if itself else 0, len(others), _ROWS_AT_ONCE):
            near = rows[top : top + _ROWS_AT_ONCE] @ others[start : start + _ROWS_AT_ONCE].T >= threshold
            if itself and start == top:
                near = np.triu(near, 1)
            near &= np.cumsum(near, axis=1, dtype=np.int32) <= _MOST_SIMILAR
            i, j = np.nonzero(near)
            if len(i):
                yield i + top, j + start
