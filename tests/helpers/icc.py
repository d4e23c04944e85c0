"""Color profiles for tests, built from the ICC specification, and colors converted by textbook arithmetic.

The decoder leaves this to LittleCMS; here are the numbers that it is judged by.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

D50 = (0xF6D6, 0x10000, 0xD32D)
"""The white of ICC's connection space, X, Y, Z in 16.16 fixed point."""

SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE_RGB_TO_XYZ = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""Linear RGB to XYZ under D50, as in the published profiles of sRGB and Adobe RGB (1998)."""

ADOBE_RGB_GAMMA = 563 / 256


def icc_profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 with the tags given, and the white point."""
    tags = {b"wtpt": xyz_tag(*(value / 65536 for value in D50)), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data.ljust(-len(data) % 4 + len(data), b"\0")
    header = struct.pack(
        ">I4sI4s4s4s6H4s28xIII48x", start + len(body), b"", 0x02400000, device, space, connection,
        2026, 1, 1, 0, 0, 0, b"acsp", *D50,
    )  # fmt: skip
    assert len(header) == 128
    return header + table + body


def xyz_tag(*values: float) -> bytes:
    """XYZ, in 16.16 fixed point."""
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma_tag(gamma: float) -> bytes:
    """A tone curve that is a power."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def adobe_rgb_profile() -> bytes:
    """A wide-gamut profile with the colors of Adobe RGB (1998)."""
    primaries = zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE_RGB_TO_XYZ.T, strict=True)
    curves = {name: gamma_tag(ADOBE_RGB_GAMMA) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", {name: xyz_tag(*column) for name, column in primaries} | curves)


def in_adobe_rgb(image: Image.Image) -> Image.Image:
    """The same colors, as Adobe RGB numbers: sRGB to linear to XYZ to linear to Adobe RGB, by the textbook."""
    coded = np.asarray(image) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(ADOBE_RGB_TO_XYZ, SRGB_TO_XYZ @ linear.reshape(-1, 3).T).T.reshape(coded.shape)
    return Image.fromarray(np.rint(255 * np.clip(other, 0, 1) ** (1 / ADOBE_RGB_GAMMA)).astype(np.uint8))


def ink_profile(paper_and_inks: npt.NDArray[np.float64]) -> bytes:
    """A CMYK profile of sixteen measured corners.

    Args:
        paper_and_inks: (16, 3) L*, a*, b* of every overprint, the last ink changing fastest: paper, K, Y, YK, M, ...
    """
    lightness, a, b = paper_and_inks.T
    corners = np.stack((lightness * 2.55, a + 128, b + 128), -1)
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    clut = np.rint(corners).astype(np.uint8).tobytes()
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + clut + ramp * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
