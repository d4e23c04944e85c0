"""Size: two counts, two borders, one sentence."""

from __future__ import annotations

import pytest

from transferapp.policy.size import LARGE_PER_CLASS, LARGE_TOTAL, measure_size


def test_the_borders_are_those_of_the_decision() -> None:
    assert (LARGE_TOTAL, LARGE_PER_CLASS) == (1_000, 30)


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([500, 500], "large"),  # exactly 1,000
        ([500, 499], "small"),
        ([30] * 34, "large"),  # exactly 30 in the median class
        ([29] * 40, "small"),  # many classes of few images
        ([29, 30] * 20, "small"),  # a median of 29.5
        ([3_000, 10, 10], "small"),  # one full class makes no large set
        ([1, 1], "small"),
    ],
)
def test_a_large_set_is_large_in_all_and_by_class(counts: list[int], size: str) -> None:
    finding = measure_size(counts)
    assert finding.size == size
    assert finding.num_images == sum(counts)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ([30, 40, 50], "120 training images, 40 in the median class: small, below 1,000 in all"),
        ([10, 10], "20 training images, 10 in the median class: small, below 1,000 in all and 30 a class"),
        ([10] * 200, "2,000 training images, 10 in the median class: small, below 30 a class"),
        ([600] * 20, "12,000 training images, 600 in the median class: large, from 1,000 in all and 30 a class"),
    ],
)
def test_the_reason_names_both_counts_and_the_borders_they_were_held_against(counts: list[int], verdict: str) -> None:
    assert measure_size(counts).reason == verdict


def test_a_median_just_below_the_border_does_not_read_as_the_border() -> None:
    assert "1,180 training images, 29.5 in the median class: small" in measure_size([29, 30] * 20).reason
