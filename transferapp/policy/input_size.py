"""How large the network's input should be: images of 32 pixels are not blown up to 224. Pure.

BiT's rule (Kolesnikov et al., 2020, arXiv:1912.11370) resizes images of fewer than 96 x 96 pixels to 160 and crops 128; the
crop's share of the image is `views`' own matter here, so that only the size is left. On CIFAR-10, Lite0 does no worse at 128
than at 224, at three times the speed (`docs/decisions/0007-input-size.md`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SMALL_PIXELS = 96 * 96
SMALL_IMAGE_SIZE = (128, 128)


@dataclass(frozen=True)
class InputSize:
    """Outcome of `choose_input_size`: (height, width) of the network's input, the sentence that explains it, and
    whether the images are so small that they are enlarged to it."""

    image_size: tuple[int, int]
    reason: str
    tiny: bool = False


def choose_input_size(sizes: Sequence[tuple[int, int]], usual: tuple[int, int], override: int = 0) -> InputSize:
    """The input size for images of these sizes.

    Args:
        sizes: (width, height) of each image.
        usual: (height, width) that the backbone was trained at.
        override: What the person insists on, in pixels; 0 leaves it to the rule.
    """
    height, width = usual
    median = statistics.median(w * h for w, h in sizes) if sizes else float("inf")
    tiny = median < SMALL_PIXELS
    if override:
        return InputSize((override, override), f"{override} × {override} pixels, set by --image-size", tiny)
    if tiny and height * width > SMALL_IMAGE_SIZE[0] * SMALL_IMAGE_SIZE[1]:
        side = round(median**0.5)
        height, width = SMALL_IMAGE_SIZE
        return InputSize(
            SMALL_IMAGE_SIZE,
            f"{height} × {width} pixels: the median image has about {side} × {side}, fewer than 96 × 96, and enlarging it "
            "further only costs time",
            tiny,
        )
    return InputSize(usual, f"{height} × {width} pixels, what the backbone was trained at", tiny)
