"""Embedded color profiles, converted to sRGB where that changes anything visible."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20
"""A larger color profile is ignored; those of printing presses stay below 3 MB."""

_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SAME_COLOR = 2
"""Gray levels within which a profile counts as sRGB: less than a JPEG's own rounding, and no conversion needs paying for."""


def checked_profile(profile: object) -> bytes:
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        raise ValueError("not a color profile")
    return profile


@functools.lru_cache(maxsize=8)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from an embedded profile to sRGB for images of a mode; None where it would change nothing visible.

    Kept for the next image, since the images of a set mostly share a profile and building one takes milliseconds.

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
def lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", flags=ImageCms.Flags.NOCACHE)
