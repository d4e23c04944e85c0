"""Size: two counts, two thresholds, one reason."""

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


@pytest.mark.parametrize("counts", [[30, 40, 50], [10, 10], [10] * 200, [600] * 20])
def test_the_reason_carries_both_counts_and_both_thresholds(counts: list[int]) -> None:
    finding = measure_size(counts)
    assert finding.reason.topic == "size"
    assert finding.reason.values == {
        "size": finding.size,
        "num_images": sum(counts),
        "median_per_class": finding.median_per_class,
        "large_total": LARGE_TOTAL,
        "large_per_class": LARGE_PER_CLASS,
    }
    assert f"{sum(counts):,} images" in finding.reason.text
    assert finding.num_classes == len(counts)


def test_a_median_just_below_the_threshold_does_not_read_as_the_threshold() -> None:
    assert "29.5 in the median class" in measure_size([29, 30] * 20).reason.text
