"""Is this much data, or little? Counted in pictures, all and per class."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Size = Literal["small", "large"]

LARGE_TOTAL = 5_000
"""Training pictures in all from which a set counts as large. CS231n gives no number; BiT's rule (Kolesnikov et al., 2020,
arXiv:1912.11370) puts its own first border at 20,000, for networks trained on far larger sets than ImageNet."""

LARGE_PER_CLASS = 1_000
"""Training pictures in the median class from which a set counts as large."""


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
        class_counts: Training pictures of each class.
    """
    total = sum(class_counts)
    median = statistics.median(class_counts)
    by_total, by_class = total >= LARGE_TOTAL, median >= LARGE_PER_CLASS
    middle = f"{median:,.1f}".removesuffix(".0")  # 999.5 must not read as the border it is below
    counts = f"{total:,} training pictures, {middle} in the median class"
    if by_total or by_class:
        border = f"{LARGE_TOTAL:,} in all" if by_total else f"{LARGE_PER_CLASS:,} a class"
        return SizeFinding("large", total, median, f"{counts}: large, from {border}")
    return SizeFinding(
        "small", total, median, f"{counts}: small, below {LARGE_TOTAL:,} in all and {LARGE_PER_CLASS:,} a class"
    )
