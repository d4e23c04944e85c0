"""Damaged bytes: cut, flipped, repeated or invented, they give an image or one of the documented errors."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tests.helpers import icc
from tests.helpers.file_bytes import png, tiff
from tests.helpers.scenes import animated, as_cmyk, encode, jpeg, paletted, scene, turned, with_hole
from transferapp.errors import ImageError, ResourceError
from transferapp.images import FORMATS, NOTES, ImageLimits, decode_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's; pytest undoes the decoder's own filter

LAYOUTS = {
    "13 samples of 16 bits, marked as gray": {258: ("H", [16] * 13), 277: ("H", [13])},
    "13 samples of 8 bits, marked as RGB": {258: ("H", [8] * 13), 262: ("H", [2]), 277: ("H", [13]), 284: ("H", [2])},
    "3 samples of 16 bits, marked as gray": {258: ("H", [16] * 3), 277: ("H", [3])},
    "3 samples of 32 bits (floating point), marked as RGB": {
        258: ("H", [32] * 3),
        262: ("H", [2]),
        277: ("H", [3]),
        339: ("H", [3] * 3),
    },
    "1 sample of 64 bits (floating point), marked as gray": {258: ("H", [64]), 339: ("H", [3])},
}

LIMITS = ImageLimits(max_pixels=200_000, min_side=1, max_aspect=1e6)
"""So narrow that no false header makes a test slow; so wide that odd shapes reach the decoders."""

TINY = (24, 16)
BEGINNING = 12
"""Bytes by which a format is recognized; left whole."""

EXAMPLES_A_FORMAT = 120


def _seeds() -> dict[str, list[bytes]]:
    small = scene(TINY)
    deep = np.asarray(small).astype(np.uint16) * 257
    return {
        "JPEG": [
            jpeg(small),
            jpeg(small, progressive=True, icc_profile=icc.adobe_rgb_profile()),
            jpeg(as_cmyk(small)),
            turned(6, "JPEG"),
        ],
        "PNG": [
            encode(small, "PNG"),
            encode(paletted(small), "PNG", transparency=3),
            encode(with_hole(small), "PNG", icc_profile=icc.adobe_rgb_profile()),
            png(TINY, 16, 2, deep),
            animated("PNG"),
        ],
        "WEBP": [encode(small, "WEBP"), encode(with_hole(small), "WEBP", lossless=True), animated("WEBP")],
        "GIF": [encode(paletted(small), "GIF"), animated("GIF")],
        "BMP": [encode(small, "BMP"), encode(paletted(small), "BMP"), encode(small.convert("RGBA"), "BMP")],
        "TIFF": [
            encode(small, "TIFF"),
            encode(small, "TIFF", compression="tiff_lzw"),
            encode(as_cmyk(small), "TIFF", compression="tiff_adobe_deflate"),
            encode(Image.fromarray(deep[..., 0]), "TIFF"),
            turned(8, "TIFF"),
        ],
        **({"AVIF": [encode(small, "AVIF")]} if features.check("avif") else {}),
    }


SEEDS = _seeds()


@st.composite
def damaged(draw: st.DrawFn, form: str) -> bytes:
    """A good file with a few bytes flipped, replaced, inserted, dropped, repeated or blown up."""
    data = bytearray(draw(st.sampled_from(SEEDS[form])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        if draw(st.booleans()):
            at %= 200  # headers are where one byte changes much
        if at < BEGINNING or len(data) <= BEGINNING:
            continue  # the format would be no longer recognized, which is soon tested
        length = draw(st.integers(1, 12))
        match draw(st.sampled_from(["flip", "replace", "insert", "drop", "repeat", "extreme", "cut"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "drop":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
            case "extreme":
                data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"]))
            case "cut":
                del data[at:]
    return with_right_checksums(bytes(data)) if form == "PNG" and draw(st.booleans()) else bytes(data)


def with_right_checksums(data: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks corrected."""
    repaired, at = bytearray(data), 8
    while at + 12 <= len(repaired):
        end = at + 8 + int.from_bytes(repaired[at : at + 4])
        if end + 4 > len(repaired):
            break
        repaired[end : end + 4] = zlib.crc32(repaired[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(repaired)


def check(data: bytes) -> None:
    """Decode; only documented errors may be raised."""
    message = ""
    try:
        decoded = decode_image(data, limits=LIMITS, min_short_side=8)
    except (ImageError, ResourceError) as error:
        message = str(error)
    if message:
        assert message.isprintable()
        return
    assert decoded.image.mode == "RGB"
    assert decoded.format in FORMATS
    assert set(decoded.notes) <= set(NOTES)
    assert np.asarray(decoded.image).shape == (decoded.image.height, decoded.image.width, 3)


@pytest.mark.parametrize("form", SEEDS)
def test_damage_never_gets_past_the_decoder(form: str) -> None:
    @settings(max_examples=EXAMPLES_A_FORMAT, derandomize=True, database=None, deadline=None)
    @given(damaged(form))
    def every_example(data: bytes) -> None:
        check(data)

    every_example()


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(
    magic=st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"II*\0\x08\0\0\0",
            b"MM\0+\0\x08\0\0",
            b"RIFF\0\1\0\0WEBPVP8X",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_nonsense_behind_a_true_beginning_never_gets_past_the_decoder(magic: bytes, rest: bytes) -> None:
    check(magic + rest)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(at=st.integers(0, 4000), junk=st.binary(min_size=1, max_size=8))
def test_a_damaged_color_profile_never_costs_the_image(at: int, junk: bytes) -> None:
    profile = bytearray(icc.adobe_rgb_profile())
    profile[at % len(profile) : at % len(profile) + len(junk)] = junk
    decoded = decode_image(jpeg(scene(TINY), icc_profile=bytes(profile)), limits=LIMITS)
    assert set(decoded.notes) <= {"icc_converted", "icc_ignored"}


@pytest.mark.parametrize("form", ["JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_behind_its_beginning_counts_as_truncated(form: str) -> None:
    data = SEEDS[form][0]
    for length in range(40, len(data) - 3, 7):
        with pytest.raises(ImageError) as caught:
            decode_image(data[:length], limits=LIMITS)
        assert caught.value.code == "truncated", length


def test_a_png_cut_before_its_end_marker_counts_as_truncated() -> None:
    data = SEEDS["PNG"][0]
    for length in range(9, len(data) - 28, 3):
        with pytest.raises(ImageError) as caught:
            decode_image(data[:length], limits=LIMITS)
        assert caught.value.code == "truncated", length


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiff_of_an_unusual_layout_is_described(layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(tiff((64, 64), LAYOUTS[layout], bytes(64 * 64 * 26)))
    assert caught.value.code == "unsupported_format"
    assert f"got {layout}." in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_libtiff_prints_nothing(tmp_path: Path) -> None:
    whole = encode(scene((64, 64)), "TIFF", compression="tiff_adobe_deflate")
    for data in (whole[:20] + bytes(100) + whole[120:], whole[:10] + bytes(50) + whole[60:]):
        (tmp_path / "bad.tiff").write_bytes(data)
        code = f"from transferapp.images import decode_image; decode_image(open({str(tmp_path / 'bad.tiff')!r}, 'rb').read())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("ImageError") == 1
        assert not [line for line in done.stderr.splitlines() if line.startswith(("ZIP", "TIFF"))]
