"""Near hashes: exactly the pairs that comparing everything with everything finds."""

from __future__ import annotations

import numpy as np
import pytest

from transferapp.data.neighbors import MAX_RADIUS, hamming_distance, near_pairs


def hashes_with_near_ones(count: int, seed: int, flips: int) -> np.ndarray:
    """Half at random, half with up to `flips` bits of those changed."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**64, count // 2, dtype=np.uint64)
    second = first.copy()
    for flip in range(flips):
        bits = np.left_shift(np.uint64(1), rng.integers(0, 64, len(second)).astype(np.uint64))
        second[flip * len(second) // flips :] ^= bits[flip * len(second) // flips :]
    return np.concatenate([first, second])


def brute_force(queries: np.ndarray, hashes: np.ndarray, radius: int) -> list[tuple[int, int, int]]:
    return [
        (i, j, distance)
        for i, query in enumerate(queries.tolist())
        for j, other in enumerate(hashes.tolist())
        if i < j and (distance := (query ^ other).bit_count()) <= radius
    ]


def test_the_distance_counts_the_bits_that_differ() -> None:
    left, right = np.array([0, 0b1011, 2**63], np.uint64), np.array([0, 0b0001, 2**64 - 1], np.uint64)
    assert hamming_distance(left, right).tolist() == [0, 2, 63]


@pytest.mark.parametrize("radius", [0, 5, MAX_RADIUS])
def test_every_near_pair_is_found_once_and_no_other(radius: int) -> None:
    hashes = hashes_with_near_ones(300, seed=1, flips=12)
    expected = brute_force(hashes, hashes, radius)
    assert (len(expected) > 20) == (radius > 0)
    assert list(zip(*(part.tolist() for part in near_pairs(hashes, hashes, radius)), strict=True)) == expected


def test_other_hashes_than_those_that_are_held_can_be_asked_for() -> None:
    hashes = hashes_with_near_ones(200, seed=2, flips=9)
    queries = hashes[::-1].copy()
    found = near_pairs(queries, hashes, MAX_RADIUS)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == brute_force(queries, hashes, MAX_RADIUS)


def test_thousands_of_equal_hashes_are_connected_without_all_their_pairs() -> None:
    equal = np.full(3000, 7, np.uint64)
    i, j, distance = near_pairs(equal, equal, MAX_RADIUS)
    assert len(i) < 3000 * 200
    assert set(distance.tolist()) == {0}
    following = set(zip(i.tolist(), j.tolist(), strict=True))
    assert all((k, k + 1) in following for k in range(2999))


def test_a_radius_beyond_what_can_be_promised_is_refused() -> None:
    with pytest.raises(ValueError, match="radius must be from 0 to 11, got 12"):
        near_pairs(np.zeros(2, np.uint64), np.zeros(2, np.uint64), 12)
