"""What an image may be, judged by its size alone and before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from transferapp.errors import ImageError, UsageError


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be before it is decoded.

    Attributes:
        max_pixels: Width times height. The default lets 24-megapixel cameras through and costs at most about 0.3 GB.
        min_side: The shorter side, in pixels. Below 16 an image shows a classifier nothing.
        max_aspect: Longer side over shorter side. Stitched panoramas reach about 10 and scrolls of screenshots 15; at 20 a
            center crop already sees less than a twentieth of the image, so what lies beyond is a strip, not a view.
        max_bytes: Size of the file, or None for no limit (the service limits bodies as they arrive).

    Raises:
        UsageError: When a limit is not positive, or `max_aspect` is below 1.
    """

    max_pixels: int = 25_000_000
    min_side: int = 16
    max_aspect: float = 20.0
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_pixels", 1), ("min_side", 1), ("max_aspect", 1), ("max_bytes", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"The limit {name} is out of range", expected=f"at least {least}", got=str(value))


def check_size(size: tuple[int, int], limits: ImageLimits, subject: str) -> None:
    """Refuse a (width, height) outside the limits."""
    width, height = size
    got = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{subject} has too many pixels",
            expected=f"at most {limits.max_pixels:,}",
            got=f"{got} = {width * height:,}",
            hint="Make the image smaller, or raise max_pixels",
            code="too_many_pixels",
        )
    if max(size) > limits.max_aspect * min(size):
        raise ImageError(
            f"{subject} is too long and narrow",
            expected=f"a longer side of at most {limits.max_aspect:g} times the shorter one",
            got=got,
            hint="Cut out the part that matters",
            code="aspect_ratio",
        )
    if min(size) < limits.min_side:
        raise ImageError(
            f"{subject} is too small",
            expected=f"at least {limits.min_side} pixels on each side",
            got=got,
            hint="Use a larger version of the image",
            code="too_small",
        )
