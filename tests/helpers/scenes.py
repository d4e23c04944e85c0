"""Images for tests: one scene without symmetry, and the ways in which programs and cameras store it.

Deterministic, small and free of pytest: the tests of the decoder, of folders and of the service share it.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image

SCENE_SIZE = (96, 64)
"""(width, height): multiples of 8 and not square, so that JPEG blocks survive turning and a wrong turn is seen."""

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation to how an image that is seen upright is turned in the file."""


def scene(size: tuple[int, int] = SCENE_SIZE) -> Image.Image:
    """A smooth, colorful image that differs from all its mirror images and rotations.

    Args:
        size: (width, height).

    Returns:
        Mode "RGB": ramps of red to the right and of green downwards, a blue disc up and left, a bright bar at the bottom.
    """
    width, height = size
    down, across = np.mgrid[0:height, 0:width].astype(float)
    across, down = across / max(1, width - 1), down / max(1, height - 1)
    disc = np.exp(-((across - 0.25) ** 2 + (down - 0.3) ** 2) / 0.02)
    bar = 1 / (1 + np.exp(-(down - 0.85) * 40)) * across
    channels = (40 + 150 * across, 50 + 130 * down + 40 * bar, 60 + 160 * disc + 30 * across)
    return Image.fromarray(np.rint(np.stack(channels, -1)).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image in a format that Pillow writes."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """A JPEG so close to the image that tests can compare them: high quality, full chroma."""
    return encode(image, "JPEG", **{"quality": 97, "subsampling": 0, **options})


def turned(orientation: int, form: str, **options: Any) -> bytes:
    """The scene stored as a camera held some other way stores it, with the EXIF tag that says so.

    Args:
        orientation: 1 to 8, as in EXIF.
        form: A format that Pillow writes.
        **options: For its encoder.
    """
    turn = TURNS[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(scene() if turn is None else scene().transpose(turn), form, exif=exif.tobytes(), **options)


def animated(form: str, **options: Any) -> bytes:
    """The scene, then a blue frame."""
    return encode(scene(), form, save_all=True, append_images=[Image.new("RGB", SCENE_SIZE, "blue")], **options)


def paletted(image: Image.Image) -> Image.Image:
    """The image in 63 colors."""
    return image.quantize(63, dither=Image.Dither.NONE)


def right_half(image: Image.Image) -> tuple[int, int, int, int]:
    """The box that `with_hole` and its twins leave empty."""
    return image.width // 2, 0, image.width, image.height


def with_hole(image: Image.Image) -> Image.Image:
    """The image with an alpha channel: its right half is nothing."""
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, right_half(image))
    image.putalpha(alpha)
    return image


def half_on_white(image: Image.Image) -> Image.Image:
    """The image with its right half painted white: what `with_hole` looks like on a white page."""
    image = image.convert("RGB")
    image.paste((255, 255, 255), right_half(image))
    return image


def palette_png_with_hole() -> bytes:
    """A palette of 63 colors and a transparent one, which fills the right half."""
    image = paletted(scene())
    image.putpalette([*(image.getpalette() or [])[: 63 * 3], 9, 9, 9])
    image.paste(63, right_half(image))
    return encode(image, "PNG", transparency=63)


def as_cmyk(image: Image.Image) -> Image.Image:
    """The RGB image in CMYK without black: every ink is the complement of a channel."""
    inks = 255 - np.asarray(image)
    return Image.merge("CMYK", [*(Image.fromarray(inks[..., i]) for i in range(3)), Image.new("L", image.size)])


def ycck_jpeg(image: Image.Image) -> bytes:
    """A CMYK JPEG with the inks stored as luma and chroma, as Adobe's programs do at lower qualities.

    Pillow writes the four components unchanged but inverted; they are YCbCr already, and only Adobe's marker must say so.
    """
    luma_and_chroma = Image.fromarray(255 - np.asarray(image)).convert("YCbCr")
    stored = [Image.fromarray(255 - np.asarray(band)) for band in luma_and_chroma.split()]
    data = jpeg(Image.merge("CMYK", [*stored, Image.new("L", image.size)]))
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\2" + data[at + 1 :]
