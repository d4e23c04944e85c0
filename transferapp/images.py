"""Bytes in, one upright 8-bit RGB picture out: the only decoder in the program.

Dataset folders and HTTP uploads come through `decode_image`, so a picture is read, refused or repaired in one way wherever
it enters. Everything after it (`views`, features, training, serving) sees plain RGB.

The order of the steps is the defence. The content, never the name, chooses one reader from `FORMATS`; no other reader of
Pillow's is ever tried. The header's size is judged before a pixel is decoded, and what a small file could do with a few
bytes (giant tiles, thousands of progressive scans, runs without end) is refused there too. Only then are pixels decoded,
turned, converted and composited. Whatever a decoder makes of bad bytes leaves here as an `ImageError` with a stable code.

Nothing here changes Pillow's settings, so pictures can be decoded in many threads at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    WebPImagePlugin,
    features,
)

from transferapp.errors import ImageError, ResourceError, TransferAppError, UsageError

# Pillow prints a warning for each damaged tag and each large header. Here the verdict is the result or the exception, and a
# line on stderr per hostile upload is noise a stranger controls. `warnings.catch_warnings` swaps process-wide state and so
# is no use in threads; two filters, added once, are.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are read. HEIF joins them where the optional package `pillow-heif` is installed."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels. White, because pictures with transparency are made to stand on a white page, the
people who look at them see them so, and the cut-out objects in pretraining sets stand on white too."""

NOTES = {
    "first_frame": "the picture is animated or has several pages; the first one was used",
    "exif_rotated": "the picture was turned as its orientation tag says",
    "alpha_composited": "transparent parts were laid on white",
    "converted_from_cmyk": "the picture was in CMYK",
    "icc_converted": "the embedded colour profile was converted to sRGB",
    "icc_ignored": "the embedded colour profile is broken or does not fit, and was left out",
    "scaled_16_bit": "samples of more than 8 bits were scaled to 8",
    "scaled_float": "floating-point samples from 0 to 1 were scaled to 8 bits",
    "trailing_data": "something follows the picture in the file; it was not read",
}
"""Every code that can stand in `DecodedImage.notes`, with a sentence for people."""

MAX_TIFF_PIECES = 100_000
"""Strips or tiles in a TIFF. Pillow makes objects for each: a 4 MB file of strip offsets costs it 240 MB and 5 s."""

MAX_TIFF_TILE = 1 << 24
"""Pixels in one TIFF tile. A tile is decoded whole, however small the picture that declares it."""

MAX_JPEG_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten. Each costs a pass over all the pixels (16 ms at 25 megapixels)
and as little as 18 bytes, so a 1 MB file could keep a core busy for many minutes."""

MAX_RLE_PIXELS = 4_000_000
"""Pixels of a run-length coded BMP. Pillow unpacks those in Python, about 100 ns a pixel whatever the file's size."""

MAX_GIF_BLOCKS = 65_536
"""Data blocks of a GIF looked through for the first frame's size and a second frame; 16 MB in ordinary files."""

MAX_PROFILE_BYTES = 4 << 20
"""A larger colour profile is ignored; those of printing presses stay below 3 MB."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be before it is decoded.

    Attributes:
        max_pixels: Width times height. The default lets 24-megapixel cameras through and costs at most about 0.3 GB.
        min_side: The shorter side, in pixels. Below 16 a picture shows a classifier nothing.
        max_aspect: Longer side over shorter side. Stitched panoramas reach about 10 and scrolls of screenshots 15; at 20 a
            centre crop already sees less than a twentieth of the picture, so what lies beyond is a strip, not a view.
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


@dataclass(frozen=True)
class DecodedImage:
    """One picture, ready for `views`.

    Attributes:
        image: Mode "RGB", 8 bits, upright, pixels loaded, no file held open. Smaller than the original where
            `min_short_side` allowed it.
        format: One of `FORMATS`, or "HEIF".
        original_size: (width, height) of the picture as it is shown: after the orientation tag, before any reduction.
        notes: Codes from `NOTES`, each at most once, in that table's order: what was done to the picture.
    """

    image: Image.Image
    format: str
    original_size: tuple[int, int]
    notes: tuple[str, ...]


def decode_image(
    source: Path | bytes,
    *,
    limits: ImageLimits = ImageLimits(),
    min_short_side: int | None = None,
) -> DecodedImage:
    """Decode one picture of any supported format.

    Args:
        source: A file, or its bytes.
        limits: What to refuse from the header alone.
        min_short_side: The shorter side, in pixels, that the caller needs. A JPEG at least twice as large is decoded at a
            half, quarter or eighth of its size, never below this; that is several times faster. None decodes every pixel.

    Returns:
        The picture in 8-bit RGB: first frame, upright, in sRGB, on `BACKGROUND` where it was transparent.

    Raises:
        ImageError: The picture cannot be used. `code` is `empty_file`, `too_many_bytes`, `unsupported_format`,
            `too_many_pixels`, `aspect_ratio`, `too_small`, `truncated`, `undecodable` or `unreadable`.
        ResourceError: There was not enough memory for a picture within the limits.
        ValueError: `min_short_side` is below 1.
    """
    if min_short_side is not None and min_short_side < 1:
        raise ValueError(f"min_short_side must be at least 1, got {min_short_side}")
    subject = _printable(str(source)) if isinstance(source, Path) else "The picture"
    form = ""
    with _opened(source, limits, subject) as stream:
        try:
            form = _format(stream, subject)
            return _decode(stream, form, limits, min_short_side, subject)
        except TransferAppError:
            raise
        except _DiskError as error:
            raise _unreadable(subject, error.reason) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{subject} has too many pixels",
                got=_printable(str(error)),
                hint="Make it smaller",
                code="too_many_pixels",
            ) from error
        except MemoryError as error:
            raise ResourceError(
                f"{subject} needs more memory to decode than there is",
                hint="Free some memory, or lower max_pixels so that such pictures are refused",
            ) from error
        except Exception as error:  # decoders raise almost anything on bad bytes; none of it may pass this point
            raise _broken(stream, form, error, subject) from error


# ---------------------------------------------------------------------------------------------------- reading the source


class _DiskError(Exception):
    """The source could not be read; not an OSError, which decoders raise for bad bytes as well."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)


class _Stream:
    """The file object given to Pillow: keeps failing disks and early ends apart from broken pictures.

    Having neither a descriptor nor a name, it also keeps Pillow from mapping the file into memory, where another program
    truncating it would kill the process, and libtiff from reading past this class.

    Attributes:
        size: Bytes in all.
        starved: Whether more was asked for, in some small read, than was there.
    """

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self.size = size
        self.starved = False

    def read(self, count: int = -1) -> bytes:
        try:
            # A buffered file allocates what it is asked for, and a chunk's length is the picture's own claim.
            data = self._raw.read(min(count, self.size))
        except OSError as error:
            raise _DiskError(error) from error
        # Decoders read ahead in large blocks, so a short large block is no sign of a short file; an empty one is.
        self.starved |= count > 0 and (not data or len(data) < count < ImageFile.MAXBLOCK)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def peek_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`, without counting as a read past the end."""
        before = self.starved
        self.seek(offset)
        data = self.read(count)
        self.starved = before
        return data


@contextlib.contextmanager
def _opened(source: Path | bytes, limits: ImageLimits, subject: str) -> Iterator[_Stream]:
    """Open the source, refusing what is not a file, has no bytes or has too many."""
    with contextlib.ExitStack() as stack:
        raw: BinaryIO
        if isinstance(source, Path):
            try:
                status = source.stat()
                if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer for ever
                    raise _unreadable(subject, "not a file")
                raw = stack.enter_context(source.open("rb"))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                raise _unreadable(subject, getattr(error, "strerror", None) or str(error)) from error
            size = status.st_size
        else:
            raw, size = io.BytesIO(source), len(source)
        if size == 0:
            raise ImageError(f"{subject} is empty", expected="a picture", got="0 bytes", code="empty_file")
        if limits.max_bytes is not None and size > limits.max_bytes:
            raise ImageError(
                f"{subject} is too large a file",
                expected=f"at most {limits.max_bytes:,} bytes",
                got=f"{size:,}",
                hint="Compress it, make it smaller, or raise max_bytes",
                code="too_many_bytes",
            )
        yield _Stream(raw, size)


# ------------------------------------------------------------------------------------------------- what the content is

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    # Called directly rather than through Image.open: that would judge the size by its own limits, and would hand a JPEG
    # with several pictures to a reader that follows the offsets in it.
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


def _format(stream: _Stream, subject: str) -> str:
    """The format's name, or an `ImageError` that says what the content looks like instead."""
    head = stream.peek_at(0, 1024)
    form, looks_like = _sniff(head)
    if form is not None and _reader(form) is not None:
        return form
    hint = "Convert it to JPEG or PNG"
    if form == "HEIF":
        hint = "Convert it to JPEG, or install pillow-heif"
    elif looks_like.startswith("a Git LFS"):
        hint = "Run `git lfs pull`"
    raise ImageError(
        f"{subject} is in no format that can be read",
        expected=f"one of {', '.join(FORMATS)}",
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


def _reader(form: str) -> Callable[[IO[bytes], str], ImageFile.ImageFile] | None:
    """Pillow's reader for a format, or None where this installation lacks it."""
    if form == "HEIF":
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            return None
        return cast("Callable[[IO[bytes], str], ImageFile.ImageFile]", Image.OPEN["HEIF"][0])
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        return None
    return _READERS[form]


# ------------------------------------------------------------------------------------------- judging the header alone


@dataclass(frozen=True)
class _Header:
    """What is known before Pillow's reader runs. `size` is (width, height), None where that reader is safe to ask."""

    size: tuple[int, int] | None = None
    several: bool = False
    deep: bool = False


def _header(stream: _Stream, form: str, subject: str) -> _Header:
    """Look at the formats whose readers allocate, or give up, before they could be asked for the size."""
    head = stream.peek_at(0, 32)
    try:
        if form == "PNG" and head[12:16] == b"IHDR":
            width, height, bits = struct.unpack_from(">IIB", head, 16)
            return _Header((width, height), deep=bits == 16)
        if form == "WEBP":
            return _Header(_webp_size(head))
        if form == "GIF":
            return _gif_header(stream)
        if form == "TIFF":
            _check_tiff(stream, subject)
    except (struct.error, IndexError):
        pass  # cut short: the reader will say so
    return _Header()


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """The canvas. Pillow's reader allocates it twice over as it opens the file."""
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


def _gif_header(stream: _Stream) -> _Header:
    """The screen, widened by a first frame that overhangs it, and whether a second frame follows.

    Pillow's reader allocates that frame as it opens the file when the frame is to be disposed of.
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
                budget -= 1  # a stray byte: Pillow, too, goes on to the next
                continue
            budget = skip_blocks(budget)
    stream.starved = False
    if not frames and not budget:
        raise ValueError(f"no frame within the first {MAX_GIF_BLOCKS:,} blocks")
    return _Header((width, height), several=frames > 1)


def _check_tiff(stream: _Stream, subject: str) -> None:
    """Refuse a TIFF whose first directory promises absurdly many strips or tiles, or one giant tile."""
    head = stream.peek_at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    start = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    if start >= stream.size:
        return
    count_bytes, entry_format, entry_bytes, value_bytes = (
        (8, order + "HHQ", 20, 8) if big else (2, order + "HHI", 12, 4)
    )
    entries = struct.unpack(order + ("Q" if big else "H"), stream.peek_at(start, count_bytes))[0]
    table = stream.peek_at(start + count_bytes, min(entries, 65_535) * entry_bytes)
    pieces, sides = 0, {TiffImagePlugin.TILEWIDTH: 0, TiffImagePlugin.TILELENGTH: 0}
    for at in range(0, len(table) - entry_bytes + 1, entry_bytes):
        tag, kind, count = struct.unpack_from(entry_format, table, at)
        if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
            pieces = max(pieces, count)
        elif tag in sides:
            if kind not in (TiffTags.SHORT, TiffTags.LONG) or count != 1 or sides[tag]:
                # Pillow and libtiff read such a tag differently, so what is judged here need not be what is decoded.
                raise ValueError("a tile size that is not one plain number")
            short = kind == TiffTags.SHORT
            sides[tag] = struct.unpack_from(order + ("H" if short else "I"), table, at + entry_bytes - value_bytes)[0]
    across, down = sides.values()
    if pieces > MAX_TIFF_PIECES or across * down > MAX_TIFF_TILE:
        raise ImageError(
            f"{subject} is cut into pieces no sane program would make",
            expected=f"at most {MAX_TIFF_PIECES:,} strips or tiles, of at most {MAX_TIFF_TILE:,} pixels",
            got=f"{pieces:,} pieces, tiles of {across} x {down} pixels",
            hint="Save it again as JPEG or PNG",
            code="undecodable",
        )


def _check_size(size: tuple[int, int], limits: ImageLimits, subject: str) -> None:
    """Refuse a (width, height) outside the limits."""
    width, height = size
    got = f"{width} x {height}"
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{subject} has too many pixels",
            expected=f"at most {limits.max_pixels:,}",
            got=f"{got} = {width * height:,}",
            hint="Make the picture smaller, or raise max_pixels",
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
            hint="Use a larger version of the picture",
            code="too_small",
        )


def _check_effort(image: ImageFile.ImageFile, stream: _Stream, subject: str) -> None:
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


_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")


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


# ------------------------------------------------------------------------------------------------------------- decoding

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def _decode(stream: _Stream, form: str, limits: ImageLimits, min_short_side: int | None, subject: str) -> DecodedImage:
    """Judge the header, then decode and make RGB. May raise whatever the decoders raise."""
    header = _header(stream, form, subject)
    if header.size is not None and min(header.size) > 0:
        _check_size(header.size, limits, subject)
    reader = _reader(form)
    assert reader is not None  # `_format` has seen to it
    stream.seek(0)
    source = reader(cast("IO[bytes]", stream), "")
    _check_size(source.size, limits, subject)
    _check_effort(source, stream, subject)

    original_size = source.size
    turned_by_pillow = _orientation(source) if form == "TIFF" else 1  # its load() turns the picture, and unsets the tag
    if min_short_side is not None and form == "JPEG":
        # The same bound for both sides is right for upright and sideways pictures alike. Without a mode, draft keeps
        # grey and CMYK what they are.
        source.draft(None, (min_short_side, min_short_side))
    source.load()

    image, notes = _to_rgb(source, header.deep, subject)
    orientation = _orientation(source)  # only now: asked before, a PNG would decode its pixels to look for the tag
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        if orientation in _SIDEWAYS:
            original_size = original_size[1], original_size[0]
    several = header.several or (form != "GIF" and getattr(source, "is_animated", False))
    if image is source and (several or form not in ("JPEG", "PNG", "BMP", "TIFF")):
        image = image.copy()  # these readers would keep their decoder, and the whole file, alive
    image.info.clear()

    notes |= {"first_frame"} if several else set()
    notes |= {"exif_rotated"} if orientation in _TURNS or turned_by_pillow in _TURNS else set()
    ending = _ENDINGS.get(form, b"")
    if stream.peek_at(max(0, stream.size - len(ending)), len(ending)) != ending:
        notes.add("trailing_data")
    return DecodedImage(image, form, original_size, tuple(code for code in NOTES if code in notes))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DiskError:
        raise
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_rgb(source: Image.Image, deep: bool, subject: str) -> tuple[Image.Image, set[str]]:
    """The loaded picture in RGB (itself, where it is RGB already), and notes on what that took."""
    notes: set[str] = set()
    image, alpha = source, None
    profile = source.info.get("icc_profile")
    if deep or _tiff_bits(source) in (12, 16):
        notes.add("scaled_16_bit")
    if source.mode == "F" or source.mode.startswith("I"):
        image, alpha, note = _narrow(source, subject)
        notes.add(note)
    elif source.has_transparency_data:
        with_alpha = source.convert("LA" if source.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = with_alpha.getchannel("A")
        image = with_alpha.convert("L" if with_alpha.mode == "LA" else "RGB")
    if image.mode == "CMYK":
        # Pillow takes every CMYK JPEG as stored inverted, with or without Adobe's marker. So do browsers, and the files in
        # circulation, whose marker is often lost, agree.
        notes.add("converted_from_cmyk")
    elif image.mode == "LAB":
        image = _lab_to_srgb().apply(image)
        profile = None
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        try:
            transform = _srgb_transform(_checked_profile(profile), image.mode)
            if transform is not None:
                image = transform.apply(image if image.mode == transform.input_mode else image.convert("RGB"))
                notes.add("icc_converted")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.add("icc_ignored")
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        page = Image.new("RGB", image.size, BACKGROUND)
        page.paste(image, mask=alpha)
        image = page
        notes.add("alpha_composited")
    return image, notes


def _tiff_bits(image: Image.Image) -> int:
    """Bits per sample of a TIFF; 0 for anything else."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _narrow(source: Image.Image, subject: str) -> tuple[Image.Image, Image.Image | None, str]:
    """Grey samples of 12 or 16 bits, or floats from 0 to 1, as (8-bit grey, alpha mask or None, note).

    Pillow's own conversion clips instead: 16-bit grey comes out all white. The scale is the sample's full range, the same
    for every picture, so that dark pictures stay dark. 32-bit samples have no agreed white; those are refused unless they
    fit the 16-bit or the floating-point convention.
    """
    samples = np.asarray(source)
    alpha = None
    white, note = (1.0, "scaled_float") if source.mode == "F" else (65535, "scaled_16_bit")
    if _tiff_bits(source) == 12:
        white = 4095
    low, high = samples.min(), samples.max()
    if not (low >= 0 and high <= white):  # not a number, too, fails this
        raise ImageError(
            f"{subject} has samples without a known white level",
            expected=f"values from 0 to {white:g}",
            got=f"values from {low:g} to {high:g}",
            hint="Save it with 8 or 16 bits a channel",
            code="undecodable",
        )
    key = source.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8))
    grey: npt.NDArray[np.uint8]
    if source.mode == "F":
        grey = np.rint(samples * np.float32(255)).astype(np.uint8)
    else:
        grey = ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(grey), alpha, note


# --------------------------------------------------------------------------------------------------------------- colour

_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SAME_COLOUR = 2
"""Grey levels within which a profile counts as sRGB: less than a JPEG's own rounding, and no conversion needs paying for."""


def _checked_profile(profile: object) -> bytes:
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        raise ValueError("not a colour profile")
    return profile


@functools.lru_cache(maxsize=8)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an embedded profile to sRGB for pictures of a mode; None where it would change nothing visible.

    Kept for the next picture, since the pictures of a set mostly share a profile and building one takes milliseconds.

    Raises:
        PyCMSError, OSError, ValueError: The profile is broken, or is not for pictures of this mode.
    """
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _PROFILE_MODES.get(embedded.profile.xcolor_space, "")
    if space != mode and not (space == "RGB" and mode == "L"):
        raise ValueError(f"a profile for {embedded.profile.xcolor_space} in a picture of mode {mode}")
    # Without its one-pixel cache a transform may be shared by threads.
    transform = ImageCms.buildTransform(embedded, _srgb(), space, "RGB", flags=ImageCms.Flags.NOCACHE)
    if space == "CMYK":
        return transform
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(colours if space == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before, after = (np.asarray(picture, np.int16) for picture in (probe.convert("RGB"), transform.apply(probe)))
    return None if np.abs(before - after).max() <= _SAME_COLOUR else transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", flags=ImageCms.Flags.NOCACHE)


# --------------------------------------------------------------------------------------------------------------- errors


def _broken(stream: _Stream, form: str, error: Exception, subject: str) -> ImageError:
    """What a decoder's exception means: the file ends too soon, or its content is damaged."""
    reason = _printable(str(error) or type(error).__name__)[:160]
    if stream.starved or "truncated" in reason.lower() or _ends_early(stream, form):
        return ImageError(
            f"{subject} is cut short",
            expected=f"a whole {form} picture",
            got=f"{stream.size:,} bytes that end before it does",
            hint="Copy or download it again",
            code="truncated",
        )
    return ImageError(
        f"{subject} is damaged and cannot be decoded",
        expected=f"a valid {form} picture",
        got=f"what its decoder reports as: {reason}",
        hint="Open it in a picture editor and save it again, or leave it out",
        code="undecodable",
    )


def _ends_early(stream: _Stream, form: str) -> bool:
    """Whether the container's own lengths reach past the end; asked where a decoder takes the whole file and won't say."""
    with contextlib.suppress(_DiskError):
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


def _unreadable(subject: str, reason: str) -> ImageError:
    return ImageError(
        f"{subject} cannot be read",
        got=_printable(reason),
        hint="Check that it is a file, and that you may read it",
        code="unreadable",
    )


def _printable(text: str) -> str:
    """The text with line breaks, control characters and half-decoded bytes escaped, so that one message stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
