"""The cases where a small file within the size limits would take seconds or minutes to decode."""

from __future__ import annotations

import re

from PIL import ImageFile

from transferapp.errors import ImageError
from transferapp.images.source import Stream

MAX_JPEG_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten. Each costs a pass over all the pixels (16 ms at 25 megapixels)
and as little as 18 bytes, so a 1 MB file could keep a core busy for many minutes."""

MAX_RLE_PIXELS = 4_000_000
"""Pixels of a run-length coded BMP. Pillow unpacks those in Python, about 100 ns a pixel whatever the file's size."""

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")


def check_effort(image: ImageFile.ImageFile, stream: Stream, subject: str) -> None:
    """Refuse the two cases where a small file within the size limits takes seconds or minutes to decode."""
    if image.format == "JPEG" and image.info.get("progressive"):
        position = stream.tell()
        scans = _count_scans(stream.peek_at(0, stream.size))
        stream.seek(position)
        if scans > MAX_JPEG_SCANS:
            raise ImageError(
                f"{subject} is a progressive JPEG with far too many scans",
                expected=f"at most {MAX_JPEG_SCANS}",
                got="more",
                hint="Save it again as an ordinary JPEG",
                code="undecodable",
            )
    runs = image.format == "BMP" and any(tile[0] == "bmp_rle" for tile in image.tile)
    if runs and image.width * image.height > MAX_RLE_PIXELS:
        raise ImageError(
            f"{subject} has too many pixels for a run-length coded BMP",
            expected=f"at most {MAX_RLE_PIXELS:,}",
            got=f"{image.width * image.height:,}",
            hint="Save it as PNG",
            code="too_many_pixels",
        )


def _count_scans(data: bytes) -> int:
    """Scans in a JPEG, counted no further than one past the limit.

    Stepping over each segment by its length matters: a hidden end marker inside one would end a plain search early.
    """
    scans, position = 0, 2
    while scans <= MAX_JPEG_SCANS and (marker := _JPEG_MARKER.search(data, position)) is not None:
        if marker[1] == b"\xd9":
            break
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans
