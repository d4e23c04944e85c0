"""Colors: every mode that Pillow decodes to, made 8-bit RGB in sRGB on a background."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms, TiffImagePlugin

from transferapp.errors import ImageError

BACKGROUND = (255, 255, 255)
"""Color behind transparent pixels. White, because images with transparency are made for white pages, and because cut-out
objects in pretraining sets are on white too."""

CONTRASTING = (128, 128, 128)
"""Color behind transparent pixels where the visible ones are white, as those of icons for dark pages are."""

_VISIBLE_ON_WHITE = 32
"""Gray levels by which the darkest channel of a pixel must differ from white to be seen on it."""
_VISIBLE_SHARE = 0.02
"""Share of the visible pixels that must be seen on white; fewer are the rims of shapes."""

SAMPLE_BITS = (8, 10, 12, 14, 16)
"""Depths of the samples in 16-bit files. Detectors of 10 to 14 bits are common, and many programs save them unscaled."""

MAX_PROFILE_BYTES = 4 << 20
"""Size from which color profiles are ignored; those of printing presses are below 3 MB."""

_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SAME_COLOR = 2
"""Gray levels within which a profile counts as sRGB and is not applied: less than the rounding of a JPEG."""


@dataclass(frozen=True)
class Converted:
    """An image made RGB.

    Attributes:
        image: Mode "RGB"; the source itself if it is RGB already.
        notes: Codes of `NOTES`: what was converted.
        peak: Largest of its 16-bit samples; None where the file has none.
    """

    image: Image.Image
    notes: set[str]
    peak: int | None


def to_rgb(source: Image.Image, png_bits: int, sample_bits: int, subject: str) -> Converted:
    """Make a loaded image RGB.

    Args:
        source: The image.
        png_bits: Bits per sample in the file if it is a PNG; the decoded image does not tell.
        sample_bits: As of `decode_image`.
        subject: Name of the image in errors.
    """
    notes: set[str] = set()
    image, alpha, peak = source, None, None
    profile = source.info.get("icc_profile")
    if png_bits == 16 or _tiff_bits(source) in (12, 16):
        notes.add("scaled_16_bit")
    _scale_transparent_color(source, png_bits)
    if source.mode == "F" or source.mode.startswith("I"):
        image, alpha, note, peak = _narrow(source, sample_bits, subject)
        notes.add(note)
    elif source.has_transparency_data:
        with_alpha = source.convert("LA" if source.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = with_alpha.getchannel("A")
        image = with_alpha.convert("L" if with_alpha.mode == "LA" else "RGB")
    if peak is None and (png_bits == 16 or _tiff_bits(source) == 16) and image.mode in ("L", "RGB"):
        image, peak = _stretched(image, sample_bits)
    if peak is not None and peak >> sample_bits:
        notes.add("clipped_16_bit")
    if image.mode == "CMYK":
        # Pillow takes every CMYK JPEG as stored inverted, with or without Adobe's marker, which is often lost. Browsers do too.
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
    extremes = (255, 255) if alpha is None else alpha.getextrema()
    if extremes == (0, 0):
        # Writers that leave the fourth byte unset mean opaque pixels; viewers show them.
        notes.add("alpha_ignored")
    elif alpha is not None and extremes != (255, 255):
        image = _composite(image, alpha)
        notes.add("alpha_composited")
    return Converted(image, notes, peak)


def _composite(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return an RGB image on `BACKGROUND`, or on `CONTRASTING` where hardly a pixel would be seen on that."""
    page = Image.new("RGB", image.size, BACKGROUND)
    page.paste(image, mask=alpha)
    red, green, blue = page.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue).histogram()
    visible = sum(alpha.histogram()[1:])
    if sum(darkest[: 256 - _VISIBLE_ON_WHITE]) < _VISIBLE_SHARE * visible:
        page.paste(CONTRASTING, (0, 0, *page.size))
        page.paste(image, mask=alpha)
    return page


def _scale_transparent_color(image: Image.Image, png_bits: int) -> None:
    """Scale the transparent color of a PNG to 8 bits, as its samples were; Pillow does not.

    The decoder keeps the upper half of 16 bits, so colors that differ only in the lower half are transparent together.
    """
    key = image.info.get("transparency")
    if image.mode == "L" and png_bits in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << png_bits) - 1)
    elif image.mode == "RGB" and png_bits == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def _tiff_bits(image: Image.Image) -> int:
    """Return the bits per sample of a TIFF; 0 for other formats."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _stretched(image: Image.Image, sample_bits: int) -> tuple[Image.Image, int]:
    """Return 16-bit color scaled to `sample_bits`, and its largest sample.

    Pillow reads the upper half of such samples only, so of 12 bits four are left.
    """
    brightest = max(high for _, high in np.atleast_2d(np.asarray(image.getextrema())).tolist())
    if sample_bits < 16:
        white = (1 << sample_bits) - 1
        table = [min(255, (257 * upper * 255 + white // 2) // white) for upper in range(256)]
        image = image.point(table * len(image.getbands()))
    return image, brightest << 8 | 255


def _narrow(
    source: Image.Image, sample_bits: int, subject: str
) -> tuple[Image.Image, Image.Image | None, str, int | None]:
    """Return gray samples of 12 or 16 bits, or floats from 0 to 1, as (8-bit gray, alpha mask or None, note, peak).

    Pillow's own conversion clips: 16-bit gray becomes all white. The scale is the same for every image of a set, so that dark
    images stay dark: the full range of the samples, or of 16-bit samples `sample_bits`. 32-bit samples have no agreed white
    level; they are refused unless they fit the 16-bit or the floating-point convention.
    """
    samples = np.asarray(source)
    alpha, peak = None, None
    white, note = (1.0, "scaled_float") if source.mode == "F" else (65535, "scaled_16_bit")
    if _tiff_bits(source) == 12:
        white = 4095
    low, high = samples.min(), samples.max()
    if not (low >= 0 and high <= white):  # NaN fails this too
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
    gray: npt.NDArray[np.uint8]
    if source.mode == "F":
        gray = np.rint(samples * np.float32(255)).astype(np.uint8)
    else:
        if white == 65535:
            peak, white = int(high), (1 << sample_bits) - 1
        levels = np.minimum(samples.astype(np.uint32), np.uint32(white))
        gray = ((levels * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(gray), alpha, note, peak


def _checked_profile(profile: object) -> bytes:
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        raise ValueError("not a color profile")
    return profile


@functools.lru_cache(maxsize=8)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an embedded profile to sRGB for images of a mode; None if nothing visible would change.

    Cached, because the images of a set mostly share a profile and building a transform takes milliseconds.

    Raises:
        PyCMSError, OSError, ValueError: The profile is broken, or is not for images of this mode.
    """
    embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _PROFILE_MODES.get(embedded.profile.xcolor_space, "")
    if space != mode and not (space == "RGB" and mode == "L"):
        raise ValueError(f"a profile for {embedded.profile.xcolor_space} in an image of mode {mode}")
    # Without its one-pixel cache a transform may be shared by threads.
    transform = ImageCms.buildTransform(embedded, _srgb(), space, "RGB", flags=ImageCms.Flags.NOCACHE)
    if space == "CMYK":
        return transform
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(colors if space == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before, after = (np.asarray(image, np.int16) for image in (probe.convert("RGB"), transform.apply(probe)))
    return None if np.abs(before - after).max() <= _SAME_COLOR else transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", flags=ImageCms.Flags.NOCACHE)
