"""Defenses against hostile and broken files: limits on bytes, size and effort, a guarded stream, and the errors."""

from __future__ import annotations

import contextlib
import io
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ImageFile

from transferapp.errors import ImageError, UsageError

MAX_JPEG_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten. Each costs a pass over all the pixels (16 ms at 25 megapixels)
and as little as 18 bytes, so a 1 MB file could keep a core busy for many minutes."""

MAX_RLE_PIXELS = 4_000_000
"""Pixels of a run-length coded BMP. Pillow unpacks them in Python, about 100 ns a pixel, whatever the file's size."""

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")


@dataclass(frozen=True)
class ImageLimits:
    """Limits that an image must keep before it is decoded.

    Attributes:
        max_pixels: Width times height. The default lets 24-megapixel cameras through and costs at most about 0.3 GB.
        min_side: The shorter side, in pixels. Below 16 there is nothing to classify.
        max_aspect: Longer side over shorter side. Stitched panoramas reach about 10 and scrolls of screenshots 15; at 20 a
            center crop shows less than a twentieth of the image.
        max_bytes: Size of the file, or None for no limit (the service limits bodies as they arrive).

    Raises:
        UsageError: A limit is below 1.
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


DATASET_LIMITS = ImageLimits(max_pixels=100_000_000)
"""Limits of images on this machine, for training and for predictions; those of a service, from strangers, are stricter."""


def check_size(size: tuple[int, int], limits: ImageLimits, subject: str) -> None:
    """Refuse a (width, height) outside the limits."""
    width, height = size
    got = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{subject} has too many pixels",
            expected=f"at most {limits.max_pixels:,}",
            got=f"{got} = {width * height:,}",
            hint="Make the image smaller",
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


class DiskError(Exception):
    """A source that cannot be read. Not an OSError, which decoders raise for bad bytes as well."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)


class Stream:
    """File object for Pillow that tells failing disks and truncated files apart from broken images.

    It has neither a descriptor nor a name, so Pillow does not map the file into memory, where another program that truncates
    it would kill the process, and libtiff cannot read past this class.

    Attributes:
        size: Number of bytes.
        starved: Whether a small read asked for more than was there.
    """

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self.size = size
        self.starved = False

    def read(self, count: int = -1) -> bytes:
        try:
            # A buffered file allocates what it is asked for, and that may be a length that the image claims.
            data = self._raw.read(min(count, self.size))
        except OSError as error:
            raise DiskError(error) from error
        # Decoders read ahead in large blocks, so a large block that comes back short does not mean a truncated file.
        self.starved |= count > 0 and (not data or len(data) < count < ImageFile.MAXBLOCK)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def peek_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; this never sets `starved`."""
        before = self.starved
        self.seek(offset)
        data = self.read(count)
        self.starved = before
        return data


@contextlib.contextmanager
def opened(source: Path | bytes, limits: ImageLimits, subject: str) -> Iterator[Stream]:
    """Open a source; refuse what is not a file, has no bytes or has too many."""
    with contextlib.ExitStack() as stack:
        raw: BinaryIO
        if isinstance(source, Path):
            try:
                status = source.stat()
                if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer forever
                    raise unreadable(subject, "not a file")
                raw = stack.enter_context(source.open("rb"))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                raise unreadable(subject, getattr(error, "strerror", None) or str(error)) from error
            size = status.st_size
        else:
            raw, size = io.BytesIO(source), len(source)
        if size == 0:
            raise ImageError(f"{subject} is empty", expected="an image", got="0 bytes", code="empty_file")
        if limits.max_bytes is not None and size > limits.max_bytes:
            raise ImageError(
                f"{subject} is too large a file",
                expected=f"at most {limits.max_bytes:,} bytes",
                got=f"{size:,}",
                hint="Compress it, make it smaller, or raise max_bytes",
                code="too_many_bytes",
            )
        yield Stream(raw, size)


def unreadable(subject: str, reason: str) -> ImageError:
    """Return the error for a source that the operating system cannot read."""
    return ImageError(
        f"{subject} cannot be read",
        got=printable(reason),
        hint="Check that it is a file, and that you may read it",
        code="unreadable",
    )


def printable(text: str) -> str:
    """Return the text as one line: line breaks, control characters and surrogates are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_effort(image: ImageFile.ImageFile, stream: Stream, subject: str) -> None:
    """Refuse small files within the size limits that take seconds or minutes to decode."""
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
    """Return the number of scans in a JPEG, counted no further than one past the limit.

    Each segment is skipped by its length, because an end marker hidden inside one would end a plain search early.
    """
    scans, position = 0, 2
    while scans <= MAX_JPEG_SCANS and (marker := _JPEG_MARKER.search(data, position)) is not None:
        if marker[1] == b"\xd9":
            break
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def broken(stream: Stream, form: str, error: Exception, subject: str) -> ImageError:
    """Return the error for what a decoder raised: the file ends too soon, or its content is damaged."""
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
    """Return whether the lengths in a container reach past the end; some decoders take the whole file and do not say."""
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
