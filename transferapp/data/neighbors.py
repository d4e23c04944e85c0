"""Pairs of 64-bit hashes that differ in few bits, found without comparing everything with everything.

Multi-index hashing (Norouzi, Punjani and Fleet, 2012, arXiv:1307.2982): a hash is cut into four quarters of 16 bits. Two
hashes that differ in at most 11 bits differ in at most two of some quarter, so it is enough to look, for each quarter, into
the 137 buckets whose value is that near. Sixty thousand images take seconds, and memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

_QUARTERS = 4
_QUARTER_BITS = 16
MAX_RADIUS = 11
"""Beyond this, two hashes may differ in three bits of every quarter, and would be missed."""

_MOST_NEIGHBORS = 64
"""Members of one bucket that a hash is compared with at most. Buckets hold fewer, unless a set is full of images that look
the same (frames of one film): there, chains of neighbors connect them all the same."""

_PAIRS_AT_ONCE = 1 << 20

_BIT_COUNT = np.array([value.bit_count() for value in range(1 << _QUARTER_BITS)], dtype=np.uint8)
_NEAR = np.array(
    [sum(1 << bit for bit in bits) for count in range(3) for bits in combinations(range(_QUARTER_BITS), count)],
    dtype=np.int64,
)
"""All 16-bit values with at most two bits set: what a quarter may differ by."""


def hamming_distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ.

    Args:
        left, right: uint64, of the same shape (n,).

    Returns:
        int64, shape (n,).
    """
    quarters = np.ascontiguousarray(left ^ right).view(np.uint16).reshape(-1, _QUARTERS)
    distance: np.ndarray = _BIT_COUNT[quarters].sum(axis=1, dtype=np.int64)
    return distance


def near_pairs(queries: np.ndarray, hashes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every i < j whose query i and hash j differ in at most `radius` bits.

    Args:
        queries: uint64, shape (n,): the hashes themselves, or those of mirror images.
        hashes: uint64, shape (n,).
        radius: At most `MAX_RADIUS`.

    Returns:
        (i, j, distance), int64 each, shape (pairs,), in the order of i and then j.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be from 0 to {MAX_RADIUS}, got {radius}")
    n = len(hashes)
    found = np.empty(0, dtype=np.int64)
    for candidates in _candidates(queries, hashes):
        close = [i * n + j for i, j in candidates if len(i)]  # one number a pair
        close = [pairs[hamming_distance(queries[pairs // n], hashes[pairs % n]) <= radius] for pairs in close]
        found = np.unique(np.concatenate([found, *close]))  # a pair turns up in every quarter that is near
    i, j = np.divmod(found, n)
    return i, j, hamming_distance(queries[i], hashes[j])


def _candidates(queries: np.ndarray, hashes: np.ndarray) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
    """For each quarter, the pairs i < j in which it is near, at most about a million at once."""
    asked = np.ascontiguousarray(queries).view(np.uint16).reshape(-1, _QUARTERS)
    held = np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, _QUARTERS)
    for quarter in range(_QUARTERS):
        order = np.lexsort((hashes, held[:, quarter]))
        borders = np.zeros((1 << _QUARTER_BITS) + 1, dtype=np.int64)
        np.cumsum(np.bincount(held[:, quarter], minlength=1 << _QUARTER_BITS), out=borders[1:])
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        yield _in_near_buckets(queries is hashes, asked[:, quarter].astype(np.int64), order, borders, place)


def _in_near_buckets(
    same: bool, values: np.ndarray, order: np.ndarray, borders: np.ndarray, place: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j in which a quarter of the query, `values`, differs by at most two bits from that of the hash."""
    for difference in _NEAR.tolist():
        bucket = values ^ difference
        start, end = borders[bucket], borders[bucket + 1]
        own_bucket = same and difference == 0
        if own_bucket:  # what comes before it in the bucket has met it already
            start = place + 1
        counts = np.minimum(end - start, _MOST_NEIGHBORS)
        for rows in _blocks(counts):
            reach = counts[rows]
            i = np.repeat(rows, reach)
            offset = np.arange(len(i)) - np.repeat(np.cumsum(reach) - reach, reach)
            j = order[np.repeat(start[rows], reach) + offset]
            if own_bucket:
                yield np.minimum(i, j), np.maximum(i, j)
            else:
                ordered = i < j
                yield i[ordered], j[ordered]


def _blocks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that have candidates, in blocks of about a million candidates."""
    rows = np.flatnonzero(counts)
    if not len(rows):
        return
    block = np.cumsum(counts[rows]) // _PAIRS_AT_ONCE
    yield from np.split(rows, np.flatnonzero(np.diff(block)) + 1)
