"""Duplicates and near-duplicates in a set of images: the same bytes, or one image saved again, scaled, cropped, rotated.

The audit keeps a signature of each image: a thumbnail of 16 x 16 pixels. A perceptual hash of it is a linear map followed by
signs, and so is the hash of the image as it would be after a crop or a rotation. Two images are near-duplicates if one, as it
is or after one of these changes, has nearly the hash of the other, and their colors correlate: a hash alone sees no color and
is easily fooled by large plain shapes. Thresholds, with what they find and miss: docs/decisions/0009-duplicates.md. Heavier
crops are found by the features of a backbone (`similar_rows`).

The hash is pHash (Zauner, 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"): the low frequencies of
a small gray image's cosine transform, one bit each. Here the bit is the coefficient's sign and not whether it is above the
median, so that every bit is a linear function of the pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from transferapp.data.dataset import Dataset, Record, connected_groups
from transferapp.system.threads import cpu_cores, in_order, one_blas_thread

THUMBNAIL_SIDE = 16
SIGNATURE_BYTES = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3

MIN_CONTRAST = 3.0
"""Standard deviation of a gray image of 32 x 32 pixels, in levels, below which an image has no signature: the signs of its
frequencies are noise. Such images (blank pages, lens caps) are compared by their bytes alone."""

MAX_HASH_DISTANCE = 11
"""Bits of 63 in which the hashes of near-duplicates may differ. Alone this would be too lenient (see the decision)."""

MIN_COLOR_CORRELATION = 0.9
"""Correlation of the colors of 8 x 8 blocks. With it, hardly any two different images of five sets are taken for
near-duplicates."""

ALIKE_DISTANCE = 6
ALIKE_CORRELATION = 0.98
"""The same for sets whose different images look alike (digits, pages of text): images that are saved again or scaled pass."""

MOST_OF_A_CLASS = 0.5
"""Share of a class that one chain of near-duplicates may connect. Where it is more, images of that class look alike: were they
kept together, the class would be missing from a split or from the training images of a fold."""

_LONG_CHAIN = 6
"""Images from which a chain can connect too much of a class."""

MOST_ACROSS_CLASSES = 0.02
"""Share of images with a near-duplicate in another class above which different images look alike."""

MAX_GRAY_CHROMA = 6.0
"""Mean spread of the channels, in levels, up to which an image counts as gray. A gray image and one in color are compared by
brightness alone."""

MIN_COSINE = 0.87
"""Cosine of two images' top features from which they look similar to the network. Below it come different images of one scene,
and different dogs of one breed: of 100 images of trash and aerial one or none has another that is as close, while 95 of 100
crops of 15 % and turns of 5 degrees are."""

UNIFORM_FROM = 0.9
"""Cosine to the nearest image of another class from which a set is too uniform for features to tell duplicates: images of
different classes are none. The 99th percentile is .66 on trash, .76 on aerial and .99 on woven textile."""

_UNIFORM_SAMPLE = 1000

_CONTRAST_SIDE = 32
_FREQUENCIES = 8
_BLOCKS = 8
_MOST_NEIGHBORS = 64
"""Images that one image is paired with at most. Only sets full of images that look the same have more (frames of one film),
and there chains of pairs connect them all the same."""

_PAIRS_AT_ONCE = 1 << 12
_HASHED_AT_ONCE = 4096
_DIRECT_ROWS = 8192
_PROJECTED = 128
_PROJECTION_SLACK = 0.07
"""Four standard deviations of a cosine of 0.9 that is estimated from 128 random projections."""
_ROWS_AT_ONCE = 1024
_MOST_SIMILAR = 64
"""Similar rows that are kept of one row within one block."""


@dataclass(frozen=True)
class Change:
    """A change of an image under which it is still the same: a part of it, rotated or mirrored.

    Attributes:
        box: Left, top, right and bottom of the part, as shares of the sides.
        degrees: Rotation about the center.
        mirrored: Whether left and right are exchanged, after that.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    degrees: float = 0.0
    mirrored: bool = False

    @property
    def reversible(self) -> bool:
        """Whether the change, made twice, gives the image itself."""
        return self == Change(mirrored=self.mirrored)

    @functools.cached_property
    def to_blocks(self) -> np.ndarray:
        """Map from a thumbnail to the 8 x 8 blocks of the changed image: float32, shape (64, 256)."""
        return _resampling(self, _BLOCKS)

    @functools.cached_property
    def to_hash(self) -> np.ndarray:
        """Map from a gray thumbnail to the frequencies of the changed image: float32, shape (63, 256)."""
        frequency, position = np.mgrid[0:_FREQUENCIES, 0:THUMBNAIL_SIDE]
        cosines = np.cos(np.pi * frequency * (2 * position + 1) / (2 * THUMBNAIL_SIDE))
        # Without the first, the mean brightness, whose sign says nothing.
        result: np.ndarray = np.kron(cosines, cosines)[1:].astype(np.float32) @ _resampling(self, THUMBNAIL_SIDE)
        return result


UNCHANGED = Change()
CHANGES = (
    UNCHANGED,
    Change(mirrored=True),
    Change((0.045, 0.045, 0.955, 0.955)),
    Change((0.085, 0.085, 0.915, 0.915)),
    *(Change((x, y, x + 0.85, y + 0.85)) for x in (0.0, 0.15) for y in (0.0, 0.15)),
    *(Change((x, 0.0, x + 0.87, 1.0)) for x in (0.0, 0.13)),
    *(Change((0.0, y, 1.0, y + 0.87)) for y in (0.0, 0.13)),
    *(Change((0.05, 0.05, 0.95, 0.95), degrees) for degrees in (-5.0, 5.0)),
)
"""Changes that are tried of each image: a mirror image, crops about the center, at the corners and at the sides, and rotations.
The hash itself tolerates a few percent and degrees beyond each."""


def _resampling(change: Change, side: int) -> np.ndarray:
    """Return the map from a thumbnail to `side` x `side` pixels of the changed image: float32, shape (side ** 2, 256).

    Each pixel is the mean of four bilinear samples.
    """
    left, top, right, bottom = change.box
    steps = (np.arange(2 * side) + 0.5) / (2 * side)
    y, x = np.meshgrid(top + steps * (bottom - top) - 0.5, left + steps * (right - left) - 0.5, indexing="ij")
    cosine, sine = math.cos(math.radians(change.degrees)), math.sin(math.radians(change.degrees))
    x, y = x * cosine - y * sine, x * sine + y * cosine
    if change.mirrored:
        x = -x
    samples = np.zeros((x.size, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.float32)
    across, down = (np.clip((axis.ravel() + 0.5) * THUMBNAIL_SIDE - 0.5, 0, THUMBNAIL_SIDE - 1) for axis in (x, y))
    column, row = (np.minimum(axis.astype(int), THUMBNAIL_SIDE - 2) for axis in (across, down))
    for one_down, vertical in ((0, 1 - (down - row)), (1, down - row)):
        for one_right, horizontal in ((0, 1 - (across - column)), (1, across - column)):
            samples[np.arange(x.size), row + one_down, column + one_right] += vertical * horizontal
    result: np.ndarray = samples.reshape(side, 2, side, 2, -1).mean(axis=(1, 3)).reshape(side * side, -1)
    return result


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def signature(image: Image.Image) -> bytes:
    """Return the thumbnail of an image.

    Args:
        image: Mode RGB, of any size.

    Returns:
        `SIGNATURE_BYTES` bytes; none where the image has too little contrast (see `MIN_CONTRAST`).
    """
    small = np.asarray(image.resize((_CONTRAST_SIDE, _CONTRAST_SIDE), Image.Resampling.BOX), dtype=np.float32)
    if (small @ _LUMA).std() < MIN_CONTRAST:
        return b""
    step = _CONTRAST_SIDE // THUMBNAIL_SIDE
    thumbnail = small.reshape(THUMBNAIL_SIDE, step, THUMBNAIL_SIDE, step, 3).mean(axis=(1, 3))
    pixels: bytes = np.rint(thumbnail).astype(np.uint8).tobytes()
    return pixels


def read_signatures(signatures: Sequence[bytes]) -> np.ndarray:
    """Return thumbnails: uint8, shape (n, 256, 3).

    Args:
        signatures: From `signature`, none of them empty.
    """
    return np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), -1, 3)


def hashes(thumbnails: np.ndarray, change: Change = UNCHANGED) -> np.ndarray:
    """Return the hashes of images after a change: uint64, shape (n,).

    Args:
        thumbnails: From `read_signatures`.
        change: What is done to each image.
    """
    found = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), _HASHED_AT_ONCE):
        gray = thumbnails[start : start + _HASHED_AT_ONCE].astype(np.float32) @ _LUMA
        bits = np.zeros((len(gray), _FREQUENCIES**2), dtype=bool)
        bits[:, 1:] = gray @ change.to_hash.T > 0
        found[start : start + len(gray)] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return found


def with_clusters(dataset: Dataset) -> Dataset:
    """Give duplicates and near-duplicates of each other the same `cluster`, and drop the signatures.

    Where different images look alike, only those count as near-duplicates that were saved again, scaled or mirrored, because
    signatures do not tell crops of an image from other images (`Dataset.alike`).

    Args:
        dataset: Audited.
    """
    records = dataset.records
    first: dict[str, int] = {}
    same = [(first.setdefault(record.sha256, position), position) for position, record in enumerate(records)]
    seen = [position for position in first.values() if records[position].signature]
    alike, near = False, np.empty((0, 2), np.int64)
    if seen:
        thumbnails, labels = read_signatures([records[position].signature for position in seen]), dataset.labels[seen]
        near = np.array(list(near_duplicates(thumbnails)), np.int64).reshape(-1, 2)
        alike = _look_alike(near, labels)
        if alike:
            mirrored = tuple(change for change in CHANGES if change.reversible)
            strict = near_duplicates(thumbnails, mirrored, ALIKE_DISTANCE, ALIKE_CORRELATION)
            near = np.array(list(strict), np.int64).reshape(-1, 2)
        near = np.array(seen)[near]
    cluster = _name_groups(records, np.concatenate([np.array(same, np.int64).reshape(-1, 2), near]))
    clustered = [
        dataclasses.replace(record, signature=b"", cluster=cluster.get(position, ""))
        for position, record in enumerate(records)
    ]
    return dataclasses.replace(dataset, records=tuple(clustered), alike=alike)


def with_similar(dataset: Dataset, features: np.ndarray) -> Dataset:
    """Give images whose features are similar, and which have no `cluster` in common, the same `similar`.

    No image gets one where features do not tell near-duplicates: where images look alike (`Dataset.alike`), where the set is
    too uniform (`too_uniform`), or where the similar images are too many for what they are.

    Args:
        dataset: With clusters.
        features: float32, shape (n, num_features): of its images, from the last stage of a network.
    """
    records, labels = dataset.records, dataset.labels
    names: dict[int, str] = {}
    if not (dataset.alike or too_uniform(features, labels)):
        pairs = [
            (i, j)
            for i, j, _ in similar_rows(features)
            if not records[i].cluster or records[i].cluster != records[j].cluster
        ]
        similar = np.array(pairs, np.int64).reshape(-1, 2)
        names = {} if _look_alike(similar, labels) else _name_groups(records, similar)
    return dataset.with_records(
        [dataclasses.replace(record, similar=names.get(position, "")) for position, record in enumerate(records)]
    )


def _name_groups(records: Sequence[Record], pairs: np.ndarray) -> dict[int, str]:
    """Return a name for each image that pairs connect with another, the same for all that are connected.

    Args:
        records: The images, audited.
        pairs: int, shape (num_pairs, 2): positions of two images.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(connected_groups(len(records), pairs).tolist()):
        members[group].append(position)
    names: dict[int, str] = {}
    for positions in members.values():
        if len(positions) > 1:
            names |= dict.fromkeys(positions, min(records[position].sha256 for position in positions)[:16])
    return names


def _look_alike(pairs: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether pairs of near-duplicates are too many for what they are: of other classes, or most of a class.

    Args:
        pairs: int, shape (num_pairs, 2): positions of two images.
        labels: int, shape (n,).
    """
    across = np.unique(pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]])
    if len(across) >= _LONG_CHAIN and len(across) > MOST_ACROSS_CLASSES * len(labels):
        return True
    chains, counts = np.unique(np.stack([connected_groups(len(labels), pairs), labels]), axis=1, return_counts=True)
    most = MOST_OF_A_CLASS * np.bincount(labels)[chains[1]]
    return bool(np.any((counts >= _LONG_CHAIN) & (counts > most)))


def near_duplicates(
    thumbnails: np.ndarray,
    changes: Sequence[Change] = CHANGES,
    max_distance: int = MAX_HASH_DISTANCE,
    min_correlation: float = MIN_COLOR_CORRELATION,
) -> Iterator[tuple[int, int]]:
    """Yield pairs of near-duplicates, first below second; a pair may come more than once.

    Every image is compared with every other after each change, on all cores.

    Args:
        thumbnails: From `read_signatures`.
        changes: What may have been done to one of the two.
        max_distance: Bits in which hashes may differ.
        min_correlation: Of the colors.
    """
    plain = hashes(thumbnails)

    def compare(change: Change) -> list[tuple[int, int]]:
        changed = plain if change == UNCHANGED else hashes(thumbnails, change)
        sides = ((change, changed), (UNCHANGED, plain))
        found: list[tuple[int, int]] = []
        for first, second in (sides,) if change.reversible else (sides, sides[::-1]):
            for i, j in near_pairs(first[1], second[1], max_distance):
                for start in range(0, len(i), _PAIRS_AT_ONCE):
                    left, right = i[start : start + _PAIRS_AT_ONCE], j[start : start + _PAIRS_AT_ONCE]
                    blocks = [
                        each.to_blocks @ thumbnails[part].astype(np.float32)
                        for each, part in ((first[0], left), (second[0], right))
                    ]
                    same = color_correlation(*blocks) >= min_correlation
                    found += zip(left[same].tolist(), right[same].tolist(), strict=True)
        return found

    workers = cpu_cores()
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        for found in in_order(pool, compare, changes, 2 * workers):
            yield from found


def near_pairs(
    queries: np.ndarray, hashes: np.ndarray, radius: int, *, rows: int = 16, columns: int = 4096
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs i < j whose query i and hash j differ in at most `radius` bits.

    All pairs are compared, in blocks that fit into the processor's cache: 60,000 hashes take one core a second.

    Args:
        queries: uint64, shape (n,): the hashes themselves, or those of changed images.
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


def color_correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the correlation of images' colors, or of their brightness where just one of two is gray.

    Args:
        left, right: float32, shape (n, num_blocks, 3).

    Returns:
        float32, shape (n,), in [-1, 1].
    """
    one_is_gray = _is_gray(left) != _is_gray(right)
    correlation = _correlation(left, right)
    if one_is_gray.any():
        correlation[one_is_gray] = _correlation(left[one_is_gray] @ _LUMA, right[one_is_gray] @ _LUMA)
    return correlation


def _is_gray(blocks: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.ptp(blocks, axis=-1).mean(axis=1) <= MAX_GRAY_CHROMA
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
