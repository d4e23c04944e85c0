"""Input size of the network: images of 32 pixels are not enlarged to 224.

BiT's rule (Kolesnikov et al., 2020, arXiv:1912.11370) resizes images of fewer than 96 x 96 pixels to 160 and crops 128.
`images.views` decides the crop's share of the image, so only the size is decided here. On CIFAR-10, Lite0 does no worse at 128
than at 224, at three times the speed (`docs/decisions/0007-input-size.md`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from transferapp.policy.reasons import Reason

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
