"""File formats: identification by content, the reader for each, and headers that are read before that reader runs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    WebPImagePlugin,
    features,
)

from transferapp.errors import ImageError
from transferapp.images.safety import Stream

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are read. HEIF joins them where the optional package `pillow-heif` is installed."""

MAX_TIFF_PIECES = 100_000
"""Strips or tiles in a TIFF. Pillow makes an object for each: a 4 MB file of strip offsets costs 240 MB and 5 s."""

MAX_TIFF_TILE = 1 << 24
"""Pixels in one TIFF tile. A tile is decoded whole, however small the image that declares it."""

MAX_GIF_BLOCKS = 65_536
"""Data blocks of a GIF looked through for the first frame's size and a second frame; 16 MB in ordinary files."""


_READERS: dict[str, type[ImageFile.ImageFile]] = {
    # Called directly because Image.open has size limits of its own, and hands a JPEG with several images to a reader that
    # follows the offsets in it.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"8BPS", "a Photoshop document"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\1\0", "a Windows icon"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer whose file was never fetched"),
)

_TIFF_LAYOUT = (
    TiffImagePlugin.SAMPLESPERPIXEL,
    TiffImagePlugin.BITSPERSAMPLE,
    TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
    TiffImagePlugin.SAMPLEFORMAT,
)
_TIFF_COLORS = {0: "gray", 1: "gray", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "LAB"}
_MAX_SAMPLES = 6
"""Samples per pixel that Pillow's reader of TIFF can skip or show."""

_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))


def identify(stream: Stream, subject: str) -> str:
    """Return the name of the format; raise an `ImageError` that says what the content looks like if it is none of them."""
    head = stream.peek_at(0, 1024)
    form, looks_like = _sniff(head)
    if form is not None and reader_for(form) is not None:
        return form
    hint = "Convert it to JPEG or PNG"
    if form == "HEIF":
        hint = "Convert it to JPEG, or install pillow-heif: pip install 'transferapp[heic]'"
    elif looks_like.startswith("a Git LFS"):
        hint = "Run `git lfs pull`"
    raise ImageError(
        f"{subject} is in no format that can be read",
        expected=f"one of {', '.join([*FORMATS, *(['HEIC'] if _heif_reader() else [])])}",
        got=f"what looks like {looks_like}",
        hint=hint,
        code="unsupported_format",
    )


def _sniff(head: bytes) -> tuple[str | None, str]:
    """Return (name of the format or None, what the content looks like), from the first bytes."""
    for magic, form in _MAGIC:
        if head.startswith(magic):
            return form, form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP", "WEBP"
    # "BM" alone begins many a text.
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP", "BMP"
    if head[4:8] == b"ftyp":
        length = min(int.from_bytes(head[:4]), len(head))
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, length - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF", "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF", "HEIC"
        return None, "a video, or another kind of ISO media file"
    for magic, name in _OTHERS:
        if head.startswith(magic):
            return None, name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return None, "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in text:
        return None, "an HTML page"
    if text.startswith(b"<?xml"):
        return None, "an XML document"
    if not text or not head.strip(b"\0"):
        return None, "blank space"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return None, "text"
    return None, "unknown binary data"


@functools.cache
def _heif_reader() -> Callable[[IO[bytes], str], ImageFile.ImageFile] | None:
    """Return the reader of `pillow-heif`, without registering it with Pillow; None if it is not installed."""
    try:
        reader = importlib.import_module("pillow_heif").HeifImageFile
    except (ImportError, OSError):  # OSError: its library lacks another
        return None
    return cast("Callable[[IO[bytes], str], ImageFile.ImageFile]", reader)


def reader_for(form: str) -> Callable[[IO[bytes], str], ImageFile.ImageFile] | None:
    """Return Pillow's reader for a format; None if this installation lacks it."""
    if form == "HEIF":
        return _heif_reader()
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        return None
    return _READERS[form]


def _silence_libtiff() -> None:
    """Stop libtiff from printing lines about damaged files on standard error; its errors come as exceptions as well."""
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # where its functions cannot be reached, the lines remain
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_silence_libtiff()


@dataclass(frozen=True)
class Header:
    """Facts about an image that are known before Pillow's reader runs.

    Attributes:
        size: (width, height); None if it is safe to ask that reader.
        several: Whether more frames follow the first.
        png_bits: Bits per sample of a PNG; 0 for other formats.
        layout: Samples of a TIFF in words; empty for other formats.
    """

    size: tuple[int, int] | None = None
    several: bool = False
    png_bits: int = 0
    layout: str = ""


def read_header(stream: Stream, form: str, subject: str) -> Header:
    """Read the header of formats whose readers allocate memory, or give up, before they tell the size."""
    head = stream.peek_at(0, 32)
    try:
        if form == "PNG" and head[12:16] == b"IHDR":
            width, height, bits = struct.unpack_from(">IIB", head, 16)
            return Header((width, height), png_bits=bits)
        if form == "WEBP":
            return Header(_webp_size(head))
        if form == "GIF":
            return _gif_header(stream)
        if form == "TIFF":
            return Header(layout=_check_tiff(stream, subject))
    except (struct.error, IndexError):
        pass  # cut short: the reader will say so
    return Header()


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return the size of the canvas, which Pillow's reader allocates twice as it opens the file."""
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _gif_header(stream: Stream) -> Header:
    """Return the size of the screen, extended by a first frame that exceeds it, and whether a second frame follows.

    Pillow's reader allocates the first frame as it opens the file if the frame is to be disposed of.
    """

    def skip_table(flags: int) -> None:
        if flags & 0x80:
            stream.seek(3 << (flags & 7) + 1, io.SEEK_CUR)

    def skip_blocks(budget: int) -> int:
        while budget > 0 and (length := stream.read(1)[0]):
            stream.seek(length, io.SEEK_CUR)
            budget -= 1
        return budget

    stream.seek(6)
    width, height, flags = struct.unpack("<HHB", stream.read(5))
    stream.seek(13)
    skip_table(flags)
    frames, budget = 0, MAX_GIF_BLOCKS
    with contextlib.suppress(struct.error, IndexError):  # a file that ends here has no more frames
        while frames < 2 and budget > 0:
            kind = stream.read(1)
            if kind == b"!":
                stream.seek(1, io.SEEK_CUR)
            elif kind == b",":
                frames += 1
                left, top, across, down, flags = struct.unpack("<HHHHB", stream.read(9))
                if frames == 1:
                    width, height = max(width, left + across), max(height, top + down)
                skip_table(flags)
                stream.seek(1, io.SEEK_CUR)
            elif kind in (b";", b""):
                break
            else:
                budget -= 1  # a stray byte, which Pillow skips too
                continue
            budget = skip_blocks(budget)
    stream.starved = False
    if not frames and not budget:
        raise ValueError(f"no frame within the first {MAX_GIF_BLOCKS:,} blocks")
    return Header((width, height), several=frames > 1)


def unsupported_layout(layout: str, subject: str) -> ImageError:
    """Return the error for a TIFF whose samples, described by `Header.layout`, are not those of an image that can be shown."""
    return ImageError(
        f"{subject} is a TIFF with a layout that is not read",
        expected="gray of 1 sample a pixel, or RGB of 3 or 4, with 8 or 16 bits each",
        got=layout,
        hint="Save it, or three of its bands, as PNG or as a TIFF of 8 bits a sample",
        code="unsupported_format",
    )


def _check_tiff(stream: Stream, subject: str) -> str:
    """Describe the samples of a TIFF by its first directory.

    Raises:
        ImageError: There are absurdly many strips, tiles or samples, or one giant tile.
    """
    head = stream.peek_at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    start = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    if start >= stream.size:
        return ""
    count_bytes, entry_format, entry_bytes, value_bytes = (
        (8, order + "HHQ", 20, 8) if big else (2, order + "HHI", 12, 4)
    )
    entries = struct.unpack(order + ("Q" if big else "H"), stream.peek_at(start, count_bytes))[0]
    table = stream.peek_at(start + count_bytes, min(entries, 65_535) * entry_bytes)
    numbers = dict.fromkeys(_TIFF_LAYOUT, 1)
    pieces, sides = 0, {TiffImagePlugin.TILEWIDTH: 0, TiffImagePlugin.TILELENGTH: 0}
    for at in range(0, len(table) - entry_bytes + 1, entry_bytes):
        tag, kind, count = struct.unpack_from(entry_format, table, at)
        if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
            pieces = max(pieces, count)
        elif tag in numbers and kind == TiffTags.SHORT:
            at_value = at + entry_bytes - value_bytes
            if count * 2 <= value_bytes:
                numbers[tag] = struct.unpack_from(order + "H", table, at_value)[0]
            else:  # one value a sample, elsewhere
                place = struct.unpack_from(order + ("Q" if big else "I"), table, at_value)[0]
                numbers[tag] = struct.unpack(order + "H", stream.peek_at(place, 2))[0]
        elif tag in sides:
            if kind not in (TiffTags.SHORT, TiffTags.LONG) or count != 1 or sides[tag]:
                # Pillow and libtiff read such a tag differently, so the size checked here need not be the one decoded.
                raise ValueError("a tile size that is not one plain number")
            short = kind == TiffTags.SHORT
            sides[tag] = struct.unpack_from(order + ("H" if short else "I"), table, at + entry_bytes - value_bytes)[0]
    across, down = sides.values()
    if pieces > MAX_TIFF_PIECES or across * down > MAX_TIFF_TILE:
        raise ImageError(
            f"{subject} is cut into too many or too large pieces",
            expected=f"at most {MAX_TIFF_PIECES:,} strips or tiles, of at most {MAX_TIFF_TILE:,} pixels",
            got=f"{pieces:,} strips or tiles" if pieces > MAX_TIFF_PIECES else f"tiles of {across} x {down} pixels",
            hint="Save it again as JPEG or PNG",
            code="undecodable",
        )
    samples, bits, color, number = (numbers[tag] for tag in _TIFF_LAYOUT)
    layout = f"{samples} sample{'' if samples == 1 else 's'} of {bits} bits{' (floating point)' if number == 3 else ''}"
    layout += f", marked as {_TIFF_COLORS.get(color, f'color type {color}')}"
    if samples > _MAX_SAMPLES:  # Pillow would log a line, or fail in an odd way
        raise unsupported_layout(layout, subject)
    return layout
