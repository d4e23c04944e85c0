"""Pixels: depths, transparency, orientations and colors against independent computations."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from tests.helpers import icc
from tests.helpers.file_bytes import bmp, png, png_chunk, tiff
from tests.helpers.scenes import SCENE_SIZE, encode, jpeg, scene, turned
from transferapp.errors import ImageError
from transferapp.images import BACKGROUND, SAMPLE_BITS, decode_image

SIDE = 16
SQUARE = (SIDE, SIDE)


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_image(data).image)


def gray(data: bytes) -> npt.NDArray[np.uint8]:
    """One channel of an image whose three are the same."""
    rgb = pixels(data)
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


# ---------------------------------------------------------------------------------------------------------------- depths


@pytest.mark.parametrize(
    ("sample", "expected"),
    # v * 255 / 65535 = v / 257, to the nearest
    [
        (0, 0),
        (128, 0),
        (129, 1),
        (257, 1),
        (256, 1),
        (32767, 127),
        (32768, 128),
        (32896, 128),
        (65406, 254),
        (65535, 255),
    ],
)
def test_16_bit_gray_is_scaled_over_its_full_range(sample: int, expected: int) -> None:
    data = png(SQUARE, 16, 0, np.full(SQUARE, sample, np.uint16))
    assert (gray(data) == expected).all()
    assert decode_image(data).notes == ("scaled_16_bit", "single_color")


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert gray(png(SQUARE, 16, 0, np.arange(256, dtype=np.uint16).reshape(SQUARE))).max() == 1


def test_16_bit_rgb_is_scaled_to_within_a_level() -> None:
    samples = np.random.default_rng(5).integers(0, 65536, (*SQUARE, 3), dtype=np.uint16)
    assert np.abs(pixels(png(SQUARE, 16, 2, samples)) - samples / 257).max() <= 1


def test_16_bit_tiffs_are_scaled_like_16_bit_pngs() -> None:
    samples = np.arange(256, dtype=np.uint16).reshape(SQUARE) * 257
    for order in "<>":
        data = encode(Image.fromarray(samples.astype(f"{order}u2")), "TIFF")
        assert (gray(data) == np.arange(256).reshape(SQUARE)).all()
        assert decode_image(data).notes == ("scaled_16_bit",)


def test_12_bit_gray_is_scaled_from_4095() -> None:
    row = np.array([0x000, 0xFFF, 0x800, 0x00F] * 4)
    packed = b"".join(((int(a) << 12) | int(b)).to_bytes(3) for a, b in row.reshape(-1, 2))
    data = tiff(SQUARE, {258: ("H", [12])}, packed * SIDE)
    assert gray(data)[3].tolist() == [0, 255, 128, 1] * 4
    assert decode_image(data).notes == ("scaled_16_bit",)


@pytest.mark.parametrize("bits", SAMPLE_BITS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_over_the_depth_of_its_samples(bits: int, form: str) -> None:
    white = (1 << bits) - 1
    samples = np.linspace(0, white, 256).round().astype(np.uint16).reshape(SQUARE)
    data = png(SQUARE, 16, 0, samples) if form == "PNG" else encode(Image.fromarray(samples), "TIFF")
    decoded = decode_image(data, sample_bits=bits)
    expected = (samples.astype(np.float64) * 255 / white).round()
    assert (np.asarray(decoded.image)[..., 0] == expected).all()
    assert (decoded.peak, decoded.notes) == (white, ("scaled_16_bit",))


def test_samples_above_the_depth_are_white_and_noted() -> None:
    samples = np.full(SQUARE, 2048, np.uint16)
    samples[0, :3] = 4095, 4096, 65535
    decoded = decode_image(png(SQUARE, 16, 0, samples), sample_bits=12)
    assert np.asarray(decoded.image)[0, :4, 0].tolist() == [255, 255, 255, 128]
    assert (decoded.peak, decoded.notes) == (65535, ("scaled_16_bit", "clipped_16_bit"))


def test_a_transparent_sample_is_found_before_scaling() -> None:
    samples = np.full(SQUARE, 100, np.uint16)
    samples[0] = 4000
    samples[1] = 4095
    key = png_chunk(b"tRNS", (4000).to_bytes(2))
    plain = png(SQUARE, 16, 0, samples)
    at = plain.index(b"IDAT") - 4
    decoded = decode_image(plain[:at] + key + plain[at:], sample_bits=12)
    assert np.asarray(decoded.image)[:3, 0, 0].tolist() == [255, 255, 6]
    assert "alpha_composited" in decoded.notes


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_color_and_alpha_of_16_bits_are_scaled_too(kind: int, channels: int) -> None:
    samples = np.random.default_rng(6).integers(0, 4096, (*SQUARE, channels), dtype=np.uint16)
    if kind != 2:
        samples[..., -1] = 65535
    colors = samples[..., : channels - (kind != 2)] * (255 / 4095)
    decoded = decode_image(png(SQUARE, 16, kind, samples), sample_bits=12)
    assert np.abs(np.asarray(decoded.image) - colors).max() <= 17  # four of twelve bits are left
    assert (decoded.peak, decoded.notes) == (4095, ("scaled_16_bit",))


def test_images_of_8_bits_have_no_peak_and_no_depth() -> None:
    for data in (encode(scene(), "PNG"), jpeg(scene()), encode(scene().convert("L"), "TIFF")):
        decoded = decode_image(data, sample_bits=10)
        assert (decoded.peak, decoded.notes) == (None, ())
        assert (np.asarray(decoded.image) == pixels(data)).all()


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        decode_image(encode(scene(), "PNG"), sample_bits=11)


def test_floats_from_0_to_1_are_scaled_and_others_refused() -> None:
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SQUARE)
    data = encode(Image.fromarray(ramp), "TIFF")
    assert (gray(data) == np.arange(256).reshape(SQUARE)).all()
    assert decode_image(data).notes == ("scaled_float",)
    for strange in (ramp * 2, ramp - 1, np.where(ramp > 0.5, np.nan, ramp)):
        with pytest.raises(ImageError) as caught:
            decode_image(encode(Image.fromarray(strange), "TIFF"))
        assert caught.value.code == "undecodable"
        assert caught.value.expected == "values from 0 to 1"


def test_32_bit_integers_without_a_known_white_are_refused() -> None:
    with pytest.raises(ImageError, match="without a known white level"):
        decode_image(encode(Image.fromarray(np.full(SQUARE, 65536, np.int32)), "TIFF"))


def test_one_bit_a_pixel_is_black_and_white() -> None:
    assert gray(png(SQUARE, 1, 0, b"\xaa\xaa" * SIDE))[0].tolist() == [255, 0] * 8


@pytest.mark.parametrize("header_bytes", [12, 40, 52, 56, 64, 108, 124])
def test_bmps_of_every_age_are_understood(header_bytes: int) -> None:
    assert np.array_equal(pixels(bmp(scene((24, 16)), header_bytes)), np.asarray(scene((24, 16))))


# ---------------------------------------------------------------------------------------------------------- transparency


def test_transparency_is_composited_on_the_background() -> None:
    assert BACKGROUND == (255, 255, 255)
    color, alphas = (200, 100, 0), np.arange(256).reshape(SQUARE)
    rgba = np.concatenate((np.broadcast_to(color, (*SQUARE, 3)), alphas[..., None]), -1).astype(np.uint8)
    cover = alphas[..., None] / 255
    expected = cover * np.array(color) + (1 - cover) * 255
    for data in (
        encode(Image.fromarray(rgba), "PNG"),
        encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        assert np.abs(pixels(data) - expected).max() <= 0.6
        assert decode_image(data).notes == ("alpha_composited",)


def test_what_hides_under_full_transparency_never_shows() -> None:
    hidden = np.random.default_rng(1).integers(0, 256, (*SQUARE, 4), dtype=np.uint8)
    hidden[..., 3] = 0
    hidden[0, :4] = (0, 0, 0, 255)
    assert (pixels(encode(Image.fromarray(hidden), "PNG"))[1:] == 255).all()


def _bmp_of_32_bits(image: Image.Image) -> bytes:
    """Return a BMP that declares an alpha channel and leaves it 0, as screenshot tools write it."""
    blue_first = np.zeros((image.height, image.width, 4), np.uint8)
    blue_first[..., :3] = np.asarray(image)[::-1, :, ::-1]
    size = blue_first.nbytes
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, image.width, image.height, 1, 32, 3, size, 0, 0, 0, 0) + masks
    info = info.ljust(108, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + size, 0, 0, 14 + len(info)) + info + blue_first.tobytes()


@pytest.mark.parametrize("form", ["BMP", "PNG", "WEBP"])
def test_an_alpha_channel_of_zeros_is_ignored(form: str) -> None:
    plain = scene((24, 16))
    clear = plain.copy()
    clear.putalpha(0)
    data = (
        _bmp_of_32_bits(plain)
        if form == "BMP"
        else encode(clear, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    )
    assert np.array_equal(pixels(data), np.asarray(plain))
    assert decode_image(data).notes == ("alpha_ignored",)


@pytest.mark.parametrize("ink", [255, 245])
def test_white_shapes_on_transparent_ground_stay_visible(ink: int) -> None:
    alpha = np.zeros((64, 64), np.uint8)
    alpha[16:48, 16:48] = 255
    alpha[15], alpha[48] = 120, 120  # soft edges
    gray_alpha = np.stack((np.full_like(alpha, ink), alpha), axis=-1)
    for mode in ("LA", "RGBA"):
        shown = pixels(encode(Image.fromarray(gray_alpha).convert(mode), "PNG"))
        assert (shown[32, 32].tolist(), shown[0, 0].tolist()) == ([ink] * 3, [128] * 3)
    dark = np.stack((np.full_like(alpha, 40), alpha), axis=-1)
    assert pixels(encode(Image.fromarray(dark), "PNG"))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF"])
def test_images_of_one_color_are_noted(form: str) -> None:
    plain = Image.new("RGB", (64, 48), (10, 20, 30))
    assert "single_color" in decode_image(encode(plain, form)).notes
    assert "single_color" not in decode_image(encode(scene((64, 48)), form)).notes


def test_each_palette_entry_has_its_own_transparency() -> None:
    palette = png_chunk(b"PLTE", bytes((10, 20, 30, 110, 120, 130, 210, 220, 230)))
    alphas = png_chunk(b"tRNS", bytes((0, 51)))  # the third entry is opaque
    rows = np.tile(np.array([0, 1, 2, 1], np.uint8), (SIDE, 4))
    expected = [[255, 255, 255], [226, 228, 230], [210, 220, 230], [226, 228, 230]]  # 255 - (255 - v) / 5
    assert pixels(png(SQUARE, 8, 3, rows, before=[palette, alphas]))[0, :4].tolist() == expected


@pytest.mark.parametrize(
    ("bits", "color_type", "samples", "key", "shown"),
    [
        (1, 0, np.array([0b01010101] * 2, np.uint8), (0,), [128, 255]),  # black is transparent: white on gray
        (2, 0, np.array([0b01100110] * 4, np.uint8), (1,), [255, 170]),
        (4, 0, np.array([0x5A] * 8, np.uint8), (5,), [255, 170]),
        (8, 0, np.array([5, 170] * 8, np.uint8), (5,), [255, 170]),
        (16, 0, np.array([0x1234, 0x1200] * 8, np.uint16), (0x1234,), [255, 18]),
        (8, 2, np.array([7, 7, 7, 9, 9, 9] * 8, np.uint8), (7, 7, 7), [255, 9]),
        (16, 2, np.array([0x0707] * 3 + [0x0909] * 3, np.uint16).repeat(8), (0x0707,) * 3, [255, 255]),
    ],
    ids=["gray1", "gray2", "gray4", "gray8", "gray16", "rgb8", "rgb16"],
)
def test_the_one_transparent_color_of_a_png_is_found_at_every_depth(
    bits: int, color_type: int, samples: npt.NDArray[np.generic], key: tuple[int, ...], shown: list[int]
) -> None:
    transparent = png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = png(SQUARE, bits, color_type, np.tile(samples, (SIDE, 1)), before=[transparent])
    assert gray(data)[0, :2].tolist() == shown
    assert "alpha_composited" in decode_image(data).notes


# ----------------------------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eight_orientations_give_one_image(form: str, orientation: int) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    decoded = decode_image(turned(orientation, form, **options))
    assert decoded.original_size == decoded.image.size == SCENE_SIZE
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))
    assert decoded.notes == (("exif_rotated",) if orientation > 1 else ())


def test_an_orientation_is_obeyed_in_a_jpeg_decoded_at_a_reduced_size() -> None:
    turned_large = scene((640, 960)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(jpeg(turned_large, exif=exif.tobytes()), min_short_side=160)
    assert decoded.original_size == (640, 960)
    assert decoded.image.size == (160, 240)
    assert np.abs(np.asarray(decoded.image, int) - np.asarray(scene((160, 240)))).mean() < 3


# ---------------------------------------------------------------------------------------------------------------- color


def test_cmyk_multiplies_each_ink_with_black() -> None:
    inks = np.random.default_rng(2).integers(0, 256, (*SQUARE, 4), dtype=np.uint8)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(pixels(encode(Image.fromarray(inks, "CMYK"), "TIFF")) - expected).max() <= 1


def test_a_profile_of_inks_is_obeyed() -> None:
    corners = np.tile([95.0, 0.0, 0.0], (16, 1))  # paper everywhere
    corners[8:] = (55, -30, -40)  # but for what has cyan in it
    corners[1::2] = 0  # and what has black
    profile = icc.ink_profile(corners)
    image = Image.new("CMYK", SQUARE, (0, 90, 30, 0))
    image.paste((255, 90, 30, 0), (8, 0, 16, 16))
    data = encode(image, "TIFF", icc_profile=profile)
    assert np.abs(pixels(data)[0, 0] - srgb_of_lab(95, 0, 0)).max() <= 2
    assert np.abs(pixels(data)[0, 15] - srgb_of_lab(55, -30, -40)).max() <= 2
    assert decode_image(data).notes == ("converted_from_cmyk", "icc_converted")
    assert decode_image(jpeg(image, icc_profile=profile)).notes == ("converted_from_cmyk", "icc_converted")


def test_lab_is_converted() -> None:
    image = Image.fromarray(np.tile(np.array([140, 226, 216], np.uint8), (*SQUARE, 1)), "LAB")  # L 54.9, a -30, b -40
    assert np.abs(pixels(encode(image, "TIFF"))[0, 0] - srgb_of_lab(54.9, -30, -40)).max() <= 2
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert decode_image(encode(image, "TIFF", icc_profile=profile)).notes == ("single_color",)


def test_a_gray_profile_in_a_color_image_is_left_out() -> None:
    profile = icc.icc_profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": icc.gamma_tag(1.8)})
    decoded = decode_image(encode(scene(), "PNG", icc_profile=profile))
    assert decoded.notes == ("icc_ignored",)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))


def test_wide_gamut_colors_move_and_srgb_colors_stay() -> None:
    wide = icc.in_adobe_rgb(scene())
    assert np.abs(np.asarray(wide, int) - np.asarray(scene())).mean() > 5  # left alone they would be wrong
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(encode(scene(), "PNG", icc_profile=srgb))
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))
    assert decoded.notes == ()


def test_a_gray_image_may_carry_a_profile_of_either_kind() -> None:
    darker = icc.icc_profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": icc.gamma_tag(1.8)})
    ramp = np.arange(256, dtype=np.uint8).reshape(SQUARE)
    expected = srgb_of_linear((ramp / 255) ** 1.8)
    assert np.abs(expected - ramp).max() > 10
    assert np.abs(gray(encode(Image.fromarray(ramp), "PNG", icc_profile=darker)) - expected).max() <= 2
    decoded = decode_image(encode(Image.fromarray(ramp), "PNG", icc_profile=icc.adobe_rgb_profile()))
    assert decoded.notes == ("icc_converted",)


def test_a_profile_too_large_to_be_one_is_left_out() -> None:
    huge = icc.adobe_rgb_profile() + bytes(5 << 20)
    decoded = decode_image(encode(scene(), "TIFF", icc_profile=huge))
    assert decoded.notes == ("icc_ignored",)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))


def srgb_of_lab(lightness: float, a: float, b: float) -> npt.NDArray[np.float64]:
    """CIE L*a*b* under D50 as sRGB levels, by the textbook."""
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array(icc.D50) / 65536
    return srgb_of_linear(np.clip(np.linalg.solve(icc.SRGB_TO_XYZ, xyz), 0, 1))


def srgb_of_linear(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear light from 0 to 1 as sRGB levels from 0 to 255."""
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
