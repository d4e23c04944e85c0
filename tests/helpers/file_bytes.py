"""The bytes of image files that no encoder here writes: odd depths, false headers, spare segments.

Built from the formats' specifications, deterministic, and free of pytest.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.helpers.scenes import encode, jpeg, scene


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    """One chunk, with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    bits: int,
    color_type: int,
    rows: bytes | npt.NDArray[np.generic],
    *,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A PNG of any bit depth, unfiltered.

    Args:
        size: (width, height).
        bits: Bits a sample.
        color_type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        rows: Packed samples of one row after the other; an array is taken row by row and written with the high byte first.
        before: Chunks between the header and the pixels.
        after: Chunks between the pixels and the end.
    """
    if not isinstance(rows, bytes):
        rows = rows.astype(rows.dtype.newbyteorder(">")).tobytes()
    pitch = len(rows) // size[1]
    lines = b"".join(b"\0" + rows[at : at + pitch] for at in range(0, len(rows), pitch))
    header = struct.pack(">IIBBBBB", *size, bits, color_type, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(lines, 9))
    return b"".join((b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *before, pixels, *after, png_chunk(b"IEND")))


def png_header_only(size: tuple[int, int]) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND")
    )


def png_one_bit(size: tuple[int, int]) -> bytes:
    """A black image of one bit a pixel: a few kilobytes, however many pixels."""
    width, height = size
    return png(size, 1, 0, bytes((width + 7) // 8 * height))


def text_bomb(megabytes: int) -> bytes:
    """A PNG text chunk that unpacks to so many megabytes."""
    return png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(megabytes << 20), 9))


def profile_bomb(megabytes: int) -> bytes:
    """A PNG color-profile chunk that unpacks to so many megabytes."""
    return png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(megabytes << 20), 9))


def tiff(size: tuple[int, int], tags: Mapping[int, tuple[str, Sequence[int]]], data: bytes) -> bytes:
    """A little-endian TIFF of one strip.

    Args:
        size: (width, height).
        tags: Further or other tags: number to (struct's letter of the type, values).
        data: The strip.
    """
    width, height = size
    strip_offset, strip_bytes, types = 273, 279, {"H": 3, "I": 4}
    every: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8]),  # bits a sample
        259: ("H", [1]),  # not compressed
        262: ("H", [1]),  # black is zero
        strip_offset: ("I", [0]),
        277: ("H", [1]),  # samples a pixel
        278: ("I", [height]),
        strip_bytes: ("I", [len(data)]),
        **tags,
    }
    room = 8 + 2 + 12 * len(every) + 4
    sizes = (len(values) * struct.calcsize(letter) for letter, values in every.values())
    data_start = room + sum(size for size in sizes if size > 4)
    if strip_offset not in tags:
        every[strip_offset] = ("I", [data_start])
    entries = far = b""
    for tag, (letter, values) in sorted(every.items()):
        body = struct.pack(f"<{len(values)}{letter}", *values)
        if len(body) > 4:
            far, body = far + body, struct.pack("<I", room + len(far))
        entries += struct.pack("<HHI", tag, types[letter], len(values)) + body.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(every)) + entries + bytes(4) + far + data


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """One marker segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment right behind its start marker."""
    return data[:2] + jpeg_segment(marker, body) + data[2:]


def without_segment(data: bytes, marker: int) -> bytes:
    """A JPEG less its first segment of a kind."""
    at = data.index(bytes((0xFF, marker)))
    length = int.from_bytes(data[at + 2 : at + 4])
    return data[:at] + data[at + 2 + length :]


def jpeg_of_size(size: tuple[int, int]) -> bytes:
    """A JPEG whose header claims a size that its data are far too short for."""
    data = jpeg(Image.new("RGB", (16, 16)))
    at = data.index(b"\xff\xc0") + 5
    width, height = size
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = jpeg(scene(), progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:end] + data[last:end] * count + data[end:]


def webp_canvas(width: int, height: int) -> bytes:
    """A WebP whose canvas is of this size and whose frame is not."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides + encode(scene(), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_screen(width: int, height: int) -> bytes:
    """A GIF whose screen is of this size and whose frame is not."""
    data = encode(scene(), "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def gif_frame_over_the_edge() -> bytes:
    """A GIF of a small screen whose first frame is 65535 pixels on each side."""
    data = bytearray(encode(Image.new("P", (32, 32)), "GIF"))
    at = data.index(b",\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def bmp(image: Image.Image, header_bytes: int) -> bytes:
    """An RGB image as a BMP with a header of OS/2 (12, 64 bytes) or of some version of Windows (40 to 124).

    Its width must be a multiple of four, so that rows need no padding.
    """
    width, height = image.size
    if header_bytes == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, 24)
    else:
        header = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    rows = np.asarray(image)[::-1, :, ::-1].tobytes()
    start = 14 + header_bytes
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header.ljust(header_bytes, b"\0") + rows


def bmp_of_size(width: int, height: int) -> bytes:
    """A BMP that claims a size and has the data of a small one."""
    data = encode(Image.new("RGB", (16, 16)), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def bmp_of_runs(width: int, height: int) -> bytes:
    """A run-length coded BMP that ends at once, so that all its pixels are left to the decoder to fill in."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 2, 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1080, 0, 0, 1078) + header + bytes(1024) + b"\0\1"
