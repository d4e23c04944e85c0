"""Find the copies in a set of images: the same bytes, or the same image saved, scaled, cropped or mirrored.

Copies are found by hash first and then compared by their tiny images, for a hash alone sees no color and is easily fooled
by large plain shapes. Thresholds and what they find and miss: docs/decisions/0009-duplicates.md. Heavier crops and turns are
found by the backbone's features, once there are any (`similar_rows`).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from transferapp.data.dataset import Dataset, UnionFind
from transferapp.data.neighbors import near_pairs
from transferapp.data.signature import Signatures, read_signatures

MAX_HASH_DISTANCE = 11
"""Bits of 63 in which the hashes of two copies may differ. Alone, this would be too lenient (see the decision); with ..."""

MIN_GLANCE_CORRELATION = 0.9
"""... this correlation of the tiny images' colors, no two different images of four sets are taken for copies."""

MAX_GRAY_CHROMA = 6.0
"""Mean spread of a tiny image's channels, in levels, up to which it counts as gray: copies that were made black and white are
compared by brightness alone."""

MIN_COSINE = 0.9
"""Cosine of two images' top features from which they look alike to the network: below it come different images of one
scene, and different dogs of one breed."""

_PAIRS_AT_ONCE = 1 << 16
_DIRECT_ROWS = 8192
_PROJECTED = 128
_PROJECTION_SLACK = 0.07
"""Four standard deviations of a cosine of 0.9 that is estimated from 128 random projections."""
_ROWS_AT_ONCE = 1024
_MOST_ALIKE = 64
"""Look-alikes that are kept of one image within one block."""


def with_clusters(dataset: Dataset) -> Dataset:
    """Give images that are copies or near copies of each other the same `cluster`, and drop the signatures.

    Args:
        dataset: Audited.
    """
    records = dataset.records
    sets = UnionFind(len(records))
    copies: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(records):
        copies[record.sha256].append(position)
    for positions in copies.values():
        for position in positions[1:]:
            sets.join(positions[0], position)
    seen = [positions[0] for positions in copies.values() if records[positions[0]].signature]
    if seen:
        for left, right in near_copies(read_signatures([records[position].signature for position in seen])):
            sets.join(seen[left], seen[right])
    members: dict[int, list[int]] = defaultdict(list)
    for position, root in enumerate(sets.roots().tolist()):
        members[root].append(position)
    names = {root: min(records[p].sha256 for p in group)[:16] for root, group in members.items() if len(group) > 1}
    cluster = {position: names[root] for root, group in members.items() if root in names for position in group}
    return dataset.with_records(
        [
            dataclasses.replace(record, signature=b"", cluster=cluster.get(position, ""))
            for position, record in enumerate(records)
        ]
    )


def near_copies(signatures: Signatures) -> Iterator[tuple[int, int]]:
    """Pairs of images that are near copies of each other, first below second; as they are first, then mirrored."""
    for queries in (signatures, signatures.mirrored()):
        hashes = signatures.hashes if queries is signatures else queries.hashes
        i, j, _ = near_pairs(hashes, signatures.hashes, MAX_HASH_DISTANCE)
        for start in range(0, len(i), _PAIRS_AT_ONCE):
            left, right = i[start : start + _PAIRS_AT_ONCE], j[start : start + _PAIRS_AT_ONCE]
            same = glance_correlation(queries.glances[left], signatures.glances[right]) >= MIN_GLANCE_CORRELATION
            yield from zip(left[same].tolist(), right[same].tolist(), strict=True)


def glance_correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How alike tiny images are: the correlation of their colors, or of their brightness where just one of two is gray.

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


def _is_gray(glances: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.ptp(glances, axis=-1).mean(axis=(1, 2)) <= MAX_GRAY_CHROMA
    return result


def _correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    left = left - left.mean(axis=1, keepdims=True)
    right = right - right.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    result: np.ndarray = (left * right).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return result


def similar_rows(
    features: np.ndarray, others: np.ndarray | None = None, *, threshold: float = MIN_COSINE
) -> list[tuple[int, int, float]]:
    """Pairs of images whose features point the same way.

    Memory is flat: rows are compared block by block. Many rows are compared by random projections first (Johnson and
    Lindenstrauss, 1984), and only what is near by them is compared in full.

    Args:
        features: float32, shape (n, num_features).
        others: float32, shape (m, num_features): what to compare them with; None for each other.
        threshold: Least cosine.

    Returns:
        (first, second, cosine), most alike first; first is an index into `features`, second into `others`, or, without them,
        one above first into `features`.
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


def _units(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return result


def _near_by_blocks(rows: np.ndarray, others: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose product is at least the threshold, block by block; i < j where rows are compared with each other."""
    itself = rows is others
    for top in range(0, len(rows), _ROWS_AT_ONCE):
        for start in range(top if itself else 0, len(others), _ROWS_AT_ONCE):
            near = rows[top : top + _ROWS_AT_ONCE] @ others[start : start + _ROWS_AT_ONCE].T >= threshold
            if itself and start == top:
                near = np.triu(near, 1)
            near &= np.cumsum(near, axis=1, dtype=np.int32) <= _MOST_ALIKE
            i, j = np.nonzero(near)
            if len(i):
                yield i + top, j + start
