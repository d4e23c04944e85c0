"""Size of the training set, and of the network's input."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transferapp.policy.reasons import Reason

Size = Literal["small", "large"]

LARGE_TOTAL = 1_000
"""Training images from which a set counts as large, if its classes are large enough too. CS231n gives no number, and
BiT's rule (Kolesnikov et al., 2020, arXiv:1912.11370) puts its first threshold at 20,000, for networks trained on far larger
sets than ImageNet. Here it is where fine-tuning a part of the backbone begins to pay for the minutes that it takes
(`benchmarks/fine_tuning_gain.py`, docs/decisions/0012-size.md)."""

LARGE_PER_CLASS = 30
"""Training images in the median class from which a set can be large: with fewer, there is too little to fine-tune on."""


@dataclass(frozen=True)
class SizeFinding:
    """Outcome of `measure_size`."""

    size: Size
    num_images: int
    num_classes: int
    median_per_class: float
    reason: Reason


def measure_size(class_counts: Sequence[int]) -> SizeFinding:
    """Judge the size of a training set.

    Args:
        class_counts: Training images of each class.
    """
    total = sum(class_counts)
    median = float(statistics.median(class_counts))
    size: Size = "large" if total >= LARGE_TOTAL and median >= LARGE_PER_CLASS else "small"
    middle = f"{median:,.1f}".removesuffix(".0")  # 29.5 must not read as the threshold that it is below
    text = (
        f"The training set is {size}: {total:,} images, {middle} in the median class "
        f"(large from {LARGE_TOTAL:,} in all and {LARGE_PER_CLASS:,} in the median class)."
    )
    values = {
        "size": size,
        "num_images": total,
        "median_per_class": median,
        "large_total": LARGE_TOTAL,
        "large_per_class": LARGE_PER_CLASS,
    }
    return SizeFinding(size, total, len(class_counts), median, Reason("size", text, values))


SMALL_PIXELS = 96 * 96
SMALL_IMAGE_SIZE = (128, 128)


@dataclass(frozen=True)
class InputSize:
    """Outcome of `choose_input_size`.

    Attributes:
        image_size: (height, width) of the network's input.
        reason: Explanation.
        tiny: Whether the median image has fewer pixels than `SMALL_PIXELS`.
    """

    image_size: tuple[int, int]
    reason: Reason
    tiny: bool = False


def choose_input_size(sizes: Sequence[tuple[int, int]], usual: tuple[int, int], override: int = 0) -> InputSize:
    """Choose the input size for images of the given sizes.

    Args:
        sizes: (width, height) of each image.
        usual: (height, width) that the backbone was trained at.
        override: Side in pixels that the user has set; 0 applies the rule.
    """
    median = statistics.median(w * h for w, h in sizes) if sizes else float("inf")
    tiny = median < SMALL_PIXELS
    values: dict[str, float | int | str] = {}
    if override:
        (height, width), why = (override, override), ", as set by --image-size"
    elif tiny and usual[0] * usual[1] > SMALL_IMAGE_SIZE[0] * SMALL_IMAGE_SIZE[1]:
        (height, width), side = SMALL_IMAGE_SIZE, round(median**0.5)
        why = (
            f": the median image has about {side} × {side}, fewer than 96 × 96, and a larger input would only cost time"
        )
        values = {"median_side": side}
    else:
        (height, width), why = usual, ", as in the backbone's pretraining"
    text = f"The network's input is {height} × {width} pixels{why}."
    return InputSize((height, width), Reason("input", text, {"height": height, "width": width, **values}), tiny)
