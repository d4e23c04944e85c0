"""HEIC with the optional package: like any other format."""

from __future__ import annotations

import io
import random
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers.scenes import TURNS, encode, half_on_white, scene, with_hole
from transferapp.errors import ImageError
from transferapp.images import ImageLimits, decode_image, formats

pillow_heif = pytest.importorskip("pillow_heif")


@pytest.fixture(autouse=True, scope="module")
def _writer() -> None:
    pillow_heif.register_heif_opener()  # to write them; the decoder must not need it


def heic(image: Image.Image, **options: object) -> bytes:
    return encode(image, "HEIF", **{"quality": 95, **options})


def far(data: bytes, image: Image.Image) -> float:
    """Mean difference of the decoded image to this one, in gray levels."""
    pixels = np.asarray(decode_image(data).image).astype(int)
    return float(np.abs(pixels - np.asarray(image.convert("RGB"))).mean())


def test_it_is_read_by_its_content() -> None:
    decoded = decode_image(heic(scene()))
    assert (decoded.format, decoded.original_size, decoded.notes) == ("HEIF", scene().size, ())
    assert far(heic(scene()), scene()) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_however_the_camera_was_held(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = TURNS[orientation]
    image = scene() if turn is None else scene().transpose(turn)
    assert far(heic(image, exif=exif.tobytes()), scene()) < 2


def test_alpha_gray_more_than_eight_bits_and_several_images_come_out_right() -> None:
    assert far(heic(with_hole(scene())), half_on_white(scene())) < 3
    assert far(heic(scene().convert("L")), scene().convert("L")) < 2
    deep = pillow_heif.from_bytes("RGB;16", scene().size, (np.asarray(scene()).astype(np.uint16) * 257).tobytes())
    stream = io.BytesIO()
    deep.save(stream, quality=95)
    assert far(stream.getvalue(), scene()) < 2
    two = pillow_heif.from_pillow(scene())
    two.add_from_pillow(Image.new("RGB", scene().size, "blue"))
    stream = io.BytesIO()
    two.save(stream, quality=95)
    assert decode_image(stream.getvalue()).notes == ("first_frame",)
    assert far(stream.getvalue(), scene()) < 2


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.99])
def test_a_cut_file_is_truncated(share: float) -> None:
    data = heic(scene())
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(share * len(data))])
    assert caught.value.code == "truncated"


def test_flipped_bits_are_survived() -> None:
    data, rng = heic(scene()), random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            decode_image(bytes(damaged))
        except ImageError as error:
            assert error.code in ("undecodable", "truncated", "unsupported_format", "too_many_pixels")  # noqa: PT017


def test_its_size_is_judged_before_its_pixels() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(heic(scene()), limits=ImageLimits(max_pixels=1000))
    assert caught.value.code == "too_many_pixels"


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._heif_reader.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"looks like HEIC\. .*pip install 'transferapp\[heic\]'") as caught:
            decode_image(heic(scene()))
    finally:
        formats._heif_reader.cache_clear()
    assert caught.value.code == "unsupported_format"
    assert "HEIC" not in (caught.value.expected or "")


def test_other_refusals_list_it_among_what_is_read() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(b"%PDF-1.4 and so on")
    assert (caught.value.expected or "").endswith("HEIC")
