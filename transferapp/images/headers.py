"""The size of an image, and what else a header betrays, for the formats whose readers it is unsafe to ask."""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass

from PIL import TiffImagePlugin, TiffTags

from transferapp.errors import ImageError
from transferapp.images.source import Stream

MAX_TIFF_PIECES = 100_000
"""Strips or tiles in a TIFF. Pillow makes objects for each: a 4 MB file of strip offsets costs it 240 MB and 5 s."""

MAX_TIFF_TILE = 1 << 24
"""Pixels in one TIFF tile. A tile is decoded whole, however small the image that declares it."""

MAX_GIF_BLOCKS = 65_536
"""Data blocks of a GIF looked through for the first frame's size and a second frame; 16 MB in ordinary files."""


@dataclass(frozen=True)
class Header:
    """What is known before Pillow's reader runs.

    Attributes:
        size: (width, height); None where that reader is safe to ask.
        several: Whether more frames follow the first.
        png_bits: Bits a sample, where it is a PNG; 0 elsewhere.
    """

    size: tuple[int, int] | None = None
    several: bool = False
    png_bits: int = 0


def read_header(stream: Stream, form: str, subject: str) -> Header:
    """Look at the formats whose readers allocate, or give up, before they could be asked for the size."""
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
            _check_tiff(stream, subject)
    except (struct.error, IndexError):
        pass  # cut short: the reader will say so
    return Header()


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


def _gif_header(stream: Stream) -> Header:
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
    return Header((width, height), several=frames > 1)


def _check_tiff(stream: Stream, subject: str) -> None:
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
            got=f"{pieces:,} strips or tiles" if pieces > MAX_TIFF_PIECES else f"tiles of {across} x {down} pixels",
            hint="Save it again as JPEG or PNG",
            code="undecodable",
        )
