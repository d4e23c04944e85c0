"""Size: two counts, two borders, one sentence."""

from __future__ import annotations

import pytest

from transferapp.policy.size import LARGE_PER_CLASS, LARGE_TOTAL, measure_size


def test_the_borders_are_those_of_the_design() -> None:
    assert (LARGE_TOTAL, LARGE_PER_CLASS) == (5_000, 1_000)


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([2_500, 2_499], "large"),  # by class: a median of 2,499.5
        ([50] * 100, "large"),  # by total: exactly 5,000
        ([50] * 99 + [49], "small"),
        ([1_000] * 3, "large"),  # by class: exactly 1,000
        ([999] * 3, "small"),
        ([999, 1_000], "small"),  # a median of 999.5
        ([3_000, 10, 10], "small"),  # one full class makes no large set
        ([1, 1], "small"),
    ],
)
def test_large_begins_at_either_border(counts: list[int], size: str) -> None:
    finding = measure_size(counts)
    assert finding.size == size
    assert finding.num_images == sum(counts)


def test_the_reason_names_both_counts_and_the_border_they_were_held_against() -> None:
    assert measure_size([30, 40, 50]).reason == (
        "120 training pictures, 40 in the median class: small, below 5,000 in all and 1,000 a class"
    )
    assert (
        measure_size([600] * 20).reason == "12,000 training pictures, 600 in the median class: large, from 5,000 in all"
    )
    assert measure_size([1_500] * 2).reason.endswith("large, from 1,000 a class")


def test_a_median_just_below_the_border_does_not_read_as_the_border() -> None:
    assert "1,999 training pictures, 999.5 in the median class: small" in measure_size([999, 1_000]).reason
