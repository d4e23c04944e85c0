"""Is this much data, or little? Counted in images, all and per class."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Size = Literal["small", "large"]

LARGE_TOTAL = 1_000
"""Training images in all from which a set counts as large, if its classes are large enough too. CS231n gives no number, and
BiT's rule (Kolesnikov et al., 2020, arXiv:1912.11370) puts its first border at 20,000, for networks trained on far larger sets
than ImageNet. Here it is where tuning a part of the backbone begins to pay for the minutes that it takes
(`benchmarks/regret.py`, docs/decisions/0012-size.md)."""

LARGE_PER_CLASS = 30
"""Training images in the median class that a large set has: below, there is little to tune by, however many classes."""


@dataclass(frozen=True)
class SizeFinding:
    """Outcome of `measure_size`: the verdict, the two counts, and the sentence that explains it."""

    size: Size
    num_images: int
    median_per_class: float
    reason: str


def measure_size(class_counts: Sequence[int]) -> SizeFinding:
    """Judge the size of a training set.

    Args:
        class_counts: Training images of each class.
    """
    total = sum(class_counts)
    median = statistics.median(class_counts)
    middle = f"{median:,.1f}".removesuffix(".0")  # 29.5 must not read as the border it is below
    counts = f"{total:,} training images, {middle} in the median class"
    few = f"{LARGE_TOTAL:,} in all" if total < LARGE_TOTAL else ""
    thin = f"{LARGE_PER_CLASS:,} a class" if median < LARGE_PER_CLASS else ""
    if few or thin:
        return SizeFinding("small", total, median, f"{counts}: small, below {' and '.join(filter(None, (few, thin)))}")
    borders = f"{LARGE_TOTAL:,} in all and {LARGE_PER_CLASS:,} a class"
    return SizeFinding("large", total, median, f"{counts}: large, from {borders}")
