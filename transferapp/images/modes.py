"""Every mode that Pillow decodes to, made 8-bit RGB: deep samples scaled, transparency composited, colors converted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin

from transferapp.errors import ImageError
from transferapp.images.profiles import checked_profile, lab_to_srgb, srgb_transform

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels. White, because images with transparency are made to stand on a white page, the
people who look at them see them so, and the cut-out objects in pretraining sets stand on white too."""


def to_rgb(source: Image.Image, png_bits: int, subject: str) -> tuple[Image.Image, set[str]]:
    """Make a loaded image RGB.

    Args:
        source: The image.
        png_bits: Bits a sample in the file, if it is a PNG; its decoder leaves no trace of them.
        subject: What to call it in errors.

    Returns:
        The image (itself, where it is RGB already), and notes on what that took.
    """
    notes: set[str] = set()
    image, alpha = source, None
    profile = source.info.get("icc_profile")
    if png_bits == 16 or tiff_bits(source) in (12, 16):
        notes.add("scaled_16_bit")
    _scale_transparent_color(source, png_bits)
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
        image = lab_to_srgb().apply(image)
        profile = None
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        try:
            transform = srgb_transform(checked_profile(profile), image.mode)
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


def _scale_transparent_color(image: Image.Image, png_bits: int) -> None:
    """Bring the one color that a PNG calls transparent to the 8 bits its samples have come to; Pillow leaves it as it is.

    Of 16 bits the decoder keeps the upper half, so colors that differ only in the lower one are transparent together.
    """
    key = image.info.get("transparency")
    if image.mode == "L" and png_bits in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << png_bits) - 1)
    elif image.mode == "RGB" and png_bits == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def tiff_bits(image: Image.Image) -> int:
    """Bits per sample of a TIFF; 0 for anything else."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _narrow(source: Image.Image, subject: str) -> tuple[Image.Image, Image.Image | None, str]:
    """Gray samples of 12 or 16 bits, or floats from 0 to 1, as (8-bit gray, alpha mask or None, note).

    Pillow's own conversion clips instead: 16-bit gray comes out all white. The scale is the sample's full range, the same
    for every image, so that dark images stay dark. 32-bit samples have no agreed white; those are refused unless they
    fit the 16-bit or the floating-point convention.
    """
    samples = np.asarray(source)
    alpha = None
    white, note = (1.0, "scaled_float") if source.mode == "F" else (65535, "scaled_16_bit")
    if tiff_bits(source) == 12:
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
    gray: npt.NDArray[np.uint8]
    if source.mode == "F":
        gray = np.rint(samples * np.float32(255)).astype(np.uint8)
    else:
        gray = ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(gray), alpha, note
