"""What a decoder's exception means: the file ends too soon, or its content is damaged."""

from __future__ import annotations

import contextlib

from transferapp.errors import ImageError
from transferapp.images.source import DiskError, Stream, printable


def broken(stream: Stream, form: str, error: Exception, subject: str) -> ImageError:
    """What a decoder's exception means: the file ends too soon, or its content is damaged."""
    reason = printable(str(error) or type(error).__name__)[:160]
    if stream.starved or "truncated" in reason.lower() or _ends_early(stream, form):
        return ImageError(
            f"{subject} is cut short",
            expected=f"a whole {form} image",
            got=f"{stream.size:,} bytes that end before it does",
            hint="Copy or download it again",
            code="truncated",
        )
    return ImageError(
        f"{subject} is damaged and cannot be decoded",
        expected=f"a valid {form} image",
        got=f"what its decoder reports as: {reason}",
        hint="Open it in an image editor and save it again, or leave it out",
        code="undecodable",
    )


def _ends_early(stream: Stream, form: str) -> bool:
    """Whether the container's own lengths reach past the end; asked where a decoder takes the whole file and won't say."""
    with contextlib.suppress(DiskError):
        if form == "WEBP":
            return int.from_bytes(stream.peek_at(4, 4), "little") + 8 > stream.size
        if form in ("AVIF", "HEIF"):
            at = 0
            for _ in range(64):  # top-level boxes; a handful in practice
                length = int.from_bytes(stream.peek_at(at, 4))
                if length == 1:
                    length = int.from_bytes(stream.peek_at(at + 8, 8))
                if length < 8:
                    return False
                at += length
                if at >= stream.size:
                    return at > stream.size
    return False
