"""What the content is, told from its first bytes, and which one of Pillow's readers it may meet."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import IO, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from transferapp.errors import ImageError
from transferapp.images.source import Stream

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are read. HEIF joins them where the optional package `pillow-heif` is installed."""

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    # Called directly rather than through Image.open: that would judge the size by its own limits, and would hand a JPEG
    # with several images to a reader that follows the offsets in it.
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

_STRANGERS = (
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

_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))


def identify(stream: Stream, subject: str) -> str:
    """The format's name, or an `ImageError` that says what the content looks like instead."""
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
    """(the format's name or None, what the content looks like) from the first bytes."""
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
    for magic, name in _STRANGERS:
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
    """The reader of `pillow-heif`, without registering it with Pillow; None where it is not installed."""
    try:
        reader = importlib.import_module("pillow_heif").HeifImageFile
    except (ImportError, OSError):  # OSError: its library lacks another
        return None
    return cast("Callable[[IO[bytes], str], ImageFile.ImageFile]", reader)


def reader_for(form: str) -> Callable[[IO[bytes], str], ImageFile.ImageFile] | None:
    """Pillow's reader for a format, or None where this installation lacks it."""
    if form == "HEIF":
        return _heif_reader()
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        return None
    return _READERS[form]
