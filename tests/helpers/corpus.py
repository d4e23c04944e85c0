"""Every kind of image that the software must survive, generated, with what is to become of it.

One corpus serves both doors: `decode_image` and dataset folders on the one hand, HTTP uploads on the other. So nothing here
knows pytest, HTTP or folders; a test takes `CORPUS`, puts `case.data` through its door and compares with the case.

Every file is to be called `case.filename`: names never decide anything.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from tests.helpers import file_bytes, icc
from tests.helpers.file_bytes import png
from tests.helpers.scenes import (
    SCENE_SIZE,
    animated,
    as_cmyk,
    encode,
    half_on_white,
    jpeg,
    palette_png_with_hole,
    paletted,
    scene,
    turned,
    with_hole,
    ycck_jpeg,
)

OK = "ok"
"""The outcome of an image that is accepted; every other outcome is the code of an `ImageError`."""

Make = Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """One file and what is expected of it.

    Attributes:
        name: What it is, in snake_case; unique.
        make: Gives its bytes; the same each time. Use `data`, which remembers them.
        outcomes: Under the default `ImageLimits`: `OK` or codes of `ImageError`; several where damage may go unnoticed.
        notes: What `DecodedImage.notes` holds if it is accepted.
        twin: The name of a case that shows the same image, so that their scores are to be alike; empty for none.
        tolerance: Mean difference to the twin's pixels, in gray levels, that encoding alone explains.
        header_only: Whether it must be refused before a pixel is decoded, with memory flat.
        filename: What to call it.
    """

    name: str
    make: Make
    outcomes: tuple[str, ...] = (OK,)
    notes: tuple[str, ...] = ()
    twin: str = ""
    tolerance: float = 0.0
    header_only: bool = False
    filename: str = "image.jpg"

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return _made(self)

    @property
    def accepted(self) -> bool:
        """Whether it is accepted in any case."""
        return self.outcomes == (OK,)

    @property
    def refused(self) -> bool:
        """Whether it is refused in any case; `outcomes` says with which code."""
        return OK not in self.outcomes


@functools.cache
def _made(case: Case) -> bytes:
    return case.make()


def _refused(code: str, makers: dict[str, Make], *, header_only: bool = False) -> tuple[Case, ...]:
    return tuple(Case(name, make, outcomes=(code,), header_only=header_only) for name, make in makers.items())


def _like(twin: str, tolerance: float, makers: dict[str, Make], *notes: str) -> tuple[Case, ...]:
    return tuple(Case(name, make, notes=notes, twin=twin, tolerance=tolerance) for name, make in makers.items())


def _plain_png() -> bytes:
    return encode(scene(), "PNG")


def _plain_jpeg() -> bytes:
    return jpeg(scene())


# ----------------------------------------------------------------------------------------------------- what is no image

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(/etc/passwd) (r) file\nshowpage\n%%EOF\n"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"><image href="file:///etc/passwd"/></svg>\n'
_PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("notes.txt"), "no image")
    return stream.getvalue()


def _psd() -> bytes:
    width, height = SCENE_SIZE
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3)
    return header + bytes(12) + b"\0\0" + scene().tobytes()


def _fits() -> bytes:
    values = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": SCENE_SIZE[0], "NAXIS2": SCENE_SIZE[1]}
    cards = [f"{name:<8}= {value:>20}".ljust(80) for name, value in values.items()]
    return "".join([*cards, "END"]).ljust(2880).encode() + scene().convert("L").tobytes()


_STRANGERS = _refused(
    "unsupported_format",
    {
        "html": lambda: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
        "zip": _zip,
        "gzip": lambda: gzip.compress(scene().tobytes(), mtime=0),
        "pdf": lambda: _PDF,
        "random_bytes": lambda: random.Random(7).randbytes(4096),
        "zeros": lambda: bytes(4096),
        "text": lambda: b"BMW GIF JPEG PNG: words are no image\n",
        "git_lfs_pointer": lambda: _LFS,
        "svg_with_file_reference": lambda: _SVG,
        "svg_behind_an_xml_declaration": lambda: b'<?xml version="1.0"?>\n' + _SVG,
        "eps": lambda: _EPS,
        "psd": _psd,
        "fits": _fits,
        "windows_icon": lambda: encode(scene((64, 64)), "ICO"),
        "one_byte": lambda: b"\xff",
    },
)

# ----------------------------------------------------------------------------------------------------------- damaged ones


def _cut(whole: Make, share: float) -> Make:
    def cut() -> bytes:
        data = whole()
        return data[: int(len(data) * share)]

    return cut


def _flipped(seed: int) -> bytes:
    """A JPEG with eight bits flipped anywhere behind its magic number."""
    data, chance = bytearray(_plain_jpeg()), random.Random(seed)
    for _ in range(8):
        data[chance.randrange(3, len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


_DAMAGED = (
    *_refused("empty_file", {"empty_file": lambda: b""}),
    *_refused(
        "truncated",
        {
            "jpeg_cut_in_the_header": _cut(_plain_jpeg, 0.05),
            "jpeg_cut_in_the_middle": _cut(_plain_jpeg, 0.6),
            "progressive_jpeg_cut": _cut(lambda: jpeg(scene(), progressive=True), 0.6),
            "png_cut_in_the_header": _cut(_plain_png, 0.015),
            "png_cut_in_the_middle": _cut(_plain_png, 0.6),
            **{
                f"{form.lower()}_cut": _cut(functools.partial(encode, scene(), form), 0.6)
                for form in ("WEBP", "GIF", "BMP", "TIFF")
            },
        },
    ),
    *_refused(
        "undecodable", {"png_with_a_wrong_checksum": lambda: _plain(16, 16)().replace(b"IHDR\0\0\0", b"IHDR\0\0\1")}
    ),
    *(
        Case(f"jpeg_with_flipped_bits_{seed}", functools.partial(_flipped, seed), (OK, "undecodable", "truncated"))
        for seed in range(8)
    ),
)

# ---------------------------------------------------------------------------------------- small files with large appetites


def _plain(width: int, height: int) -> Make:
    return lambda: encode(Image.new("RGB", (width, height), (180, 60, 40)), "PNG")


def _scene_png(**chunks: list[bytes]) -> bytes:
    return png(SCENE_SIZE, 8, 2, np.asarray(scene()), **chunks)


_MANY_STRIPS = {273: ("I", [8] * 200_000), 278: ("I", [1])}
_GIANT_TILE = {322: ("I", [60_000]), 323: ("I", [60_000]), 324: ("I", [8]), 325: ("I", [64])}

_HUNGRY = (
    *_refused(
        "too_many_pixels",
        {
            "png_13000_x_13000_of_one_bit": lambda: file_bytes.png_one_bit((13_000, 13_000)),
            "png_81_megapixels_in_10_kilobytes": lambda: file_bytes.png_one_bit((9000, 9000)),
            "png_50000_x_50000_header_only": lambda: file_bytes.png_header_only((50_000, 50_000)),
            "png_of_the_largest_size": lambda: file_bytes.png_header_only((2**31 - 1, 2**31 - 1)),
            "jpeg_50000_x_50000_header_only": lambda: file_bytes.jpeg_of_size((50_000, 50_000)),
            "webp_canvas_of_16777216_x_256": lambda: file_bytes.webp_canvas(1 << 24, 256),
            "gif_screen_of_65535_x_65535": lambda: file_bytes.gif_screen(65_535, 65_535),
            "gif_frame_over_the_edge": file_bytes.gif_frame_over_the_edge,
            "bmp_50000_x_50000_header_only": lambda: file_bytes.bmp_of_size(50_000, 50_000),
            "bmp_of_runs_without_end": lambda: file_bytes.bmp_of_runs(4000, 4000),
            "tiff_50000_x_50000_header_only": lambda: file_bytes.tiff((50_000, 50_000), {}, bytes(64)),
        },
        header_only=True,
    ),
    *_refused(
        "undecodable",
        {
            "jpeg_of_a_thousand_scans": lambda: file_bytes.jpeg_of_scans(1000),
            "tiff_of_200000_strips": lambda: file_bytes.tiff((64, 64), _MANY_STRIPS, bytes(64)),
            "tiff_of_one_giant_tile": lambda: file_bytes.tiff((64, 64), _GIANT_TILE, bytes(64)),
            "png_text_bomb": lambda: _scene_png(before=[file_bytes.text_bomb(16)]),
            "png_of_many_texts": lambda: _scene_png(before=[file_bytes.text_bomb(1)] * 80),
            "png_color_profile_bomb": lambda: _scene_png(before=[file_bytes.profile_bomb(16)]),
        },
        header_only=True,
    ),
    *_refused("undecodable", {"png_text_bomb_behind_the_pixels": lambda: _scene_png(after=[file_bytes.text_bomb(16)])}),
    *_refused(
        "aspect_ratio",
        {
            "png_20000_x_1": _plain(20_000, 1),
            "png_1_x_20000": _plain(1, 20_000),
            "png_just_too_long": _plain(321, 16),
        },
        header_only=True,
    ),
    *_refused("too_small", {"png_1_x_1": _plain(1, 1), "png_just_too_small": _plain(15, 40)}, header_only=True),
    Case("png_of_the_longest_shape", _plain(320, 16), notes=("single_color",)),
    Case("png_of_the_smallest_size", _plain(16, 16), notes=("single_color",)),
)

# ------------------------------------------------------------------------------------------- unusual, and to be understood


def _deep(channels: int, color_type: int) -> Make:
    """A PNG of 16 bits a sample: the scene, in gray if it is to have fewer than three channels, and an opaque alpha."""

    def make() -> bytes:
        samples = np.atleast_3d(np.asarray(scene() if channels > 2 else scene().convert("L")))
        opaque = np.full((*samples.shape[:2], channels - samples.shape[2]), 255)
        return png(SCENE_SIZE, 16, color_type, np.concatenate((samples, opaque), -1).astype(np.uint16) * 257)

    return make


def _cmyk_jpeg() -> bytes:
    return jpeg(as_cmyk(scene()))


def _wide_gamut(form: str) -> Make:
    options = {"quality": 97, "subsampling": 0} if form == "JPEG" else {}
    return lambda: encode(icc.in_adobe_rgb(scene()), form, icc_profile=icc.adobe_rgb_profile(), **options)


def _exif(body: bytes) -> bytes:
    return file_bytes.with_segment(_plain_jpeg(), 0xE1, b"Exif\0\0" + body)


def _strange_orientation() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    return jpeg(scene(), exif=exif.tobytes())


def _turned_jpeg(orientation: int) -> Make:
    return functools.partial(turned, orientation, "JPEG", quality=97, subsampling=0)


_UNUSUAL = (
    Case("plain_png", _plain_png),
    Case("gray_png", lambda: encode(scene().convert("L"), "PNG")),
    Case("half_on_white", lambda: encode(half_on_white(scene()), "PNG")),
    Case("gray_half_on_white", lambda: encode(half_on_white(scene().convert("L")), "PNG")),
    *_like(
        "plain_png",
        0,
        {
            "webp": lambda: encode(scene(), "WEBP", lossless=True),
            "bmp": lambda: encode(scene(), "BMP"),
            "tiff": lambda: encode(scene(), "TIFF"),
            "opaque_rgba_png": lambda: encode(scene().convert("RGBA"), "PNG"),
        },
    ),
    *_like(
        "plain_png",
        1,
        {
            "plain_jpeg": _plain_jpeg,
            "progressive_jpeg": lambda: jpeg(scene(), progressive=True),
            "jpeg_orientation_1": _turned_jpeg(1),
            "broken_exif": lambda: _exif(b"\xde\xad" * 40),
            "exif_that_points_outside": lambda: _exif(b"II*\0\xff\xff\xff\x7f" + bytes(16)),
            "exif_of_an_orientation_that_is_none": _strange_orientation,
        },
    ),
    *_like("plain_png", 1, {f"jpeg_orientation_{n}": _turned_jpeg(n) for n in range(2, 9)}, "exif_rotated"),
    *_like(
        "plain_png",
        5,
        {"gif": lambda: encode(paletted(scene()), "GIF"), "palette_png": lambda: encode(paletted(scene()), "PNG")},
    ),
    *_like(
        "plain_png",
        1,
        {
            "cmyk_jpeg_inverted_as_adobe_does": _cmyk_jpeg,
            "cmyk_jpeg_without_adobe_marker": lambda: file_bytes.without_segment(_cmyk_jpeg(), 0xEE),
            "ycck_jpeg": lambda: ycck_jpeg(scene()),
            "cmyk_tiff": lambda: encode(as_cmyk(scene()), "TIFF"),
        },
        "converted_from_cmyk",
    ),
    *_like(
        "plain_png",
        1,
        {"wide_gamut_jpeg": _wide_gamut("JPEG"), "wide_gamut_png": _wide_gamut("PNG")},
        "icc_converted",
    ),
    *_like("plain_png", 0, {"png_16_bit_rgb": _deep(3, 2), "png_16_bit_rgba": _deep(4, 6)}, "scaled_16_bit"),
    *_like("gray_png", 0, {"png_16_bit_gray": _deep(1, 0), "png_16_bit_gray_alpha": _deep(2, 4)}, "scaled_16_bit"),
    *_like(
        "half_on_white",
        0,
        {
            "rgba_png": lambda: encode(with_hole(scene()), "PNG"),
            "rgba_webp": lambda: encode(with_hole(scene()), "WEBP", lossless=True),
        },
        "alpha_composited",
    ),
    *_like("half_on_white", 5, {"palette_with_transparency": palette_png_with_hole}, "alpha_composited"),
    *_like(
        "gray_half_on_white",
        0,
        {"gray_alpha_png": lambda: encode(with_hole(scene().convert("L")), "PNG")},
        "alpha_composited",
    ),
    *_like(
        "plain_png",
        0,
        {
            "animated_webp": lambda: animated("WEBP", lossless=True),
            "animated_png": lambda: animated("PNG"),
            "tiff_of_two_pages": lambda: animated("TIFF"),
        },
        "first_frame",
    ),
    *_like("plain_png", 5, {"animated_gif": lambda: animated("GIF")}, "first_frame"),
    *_like(
        "plain_png",
        1,
        {
            "broken_color_profile": lambda: jpeg(scene(), icc_profile=b"\xba\xad" * 300),
            "color_profile_for_cmyk_in_rgb": lambda: jpeg(scene(), icc_profile=icc.ink_profile(np.zeros((16, 3)))),
        },
        "icc_ignored",
    ),
    *_like(
        "plain_png",
        1,
        {
            "jpeg_with_a_zip_behind_it": lambda: _plain_jpeg() + _zip(),
            "png_with_a_zip_behind_it": lambda: _plain_png() + _zip(),
        },
        "trailing_data",
    ),
)

CORPUS: tuple[Case, ...] = (*_STRANGERS, *_DAMAGED, *_HUNGRY, *_UNUSUAL)
"""All cases: first what is no image, last what is to be understood."""

BY_NAME = {case.name: case for case in CORPUS}
"""The same by name."""
