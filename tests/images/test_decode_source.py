"""Sources of bytes, refusals before they are read, and reduced decoding."""

from __future__ import annotations

import ast
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

import transferapp
from tests.helpers.scenes import encode, jpeg, scene
from transferapp.errors import ImageError, ResourceError, UsageError
from transferapp.images import ImageLimits, decode_image


def code_of(source: Path | bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(source, **options)
    return caught.value.code


# ----------------------------------------------------------------------------------------------------------------- files


def test_a_missing_file_is_unreadable_and_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(tmp_path / "gone.jpg")
    assert caught.value.code == "unreadable"
    assert str(caught.value).startswith(f"{tmp_path / 'gone.jpg'} cannot be read. Got No such file")


def test_a_folder_is_unreadable(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "unreadable"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert code_of(tmp_path / "pipe.jpg") == "unreadable"


def test_a_link_that_leads_to_itself_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert code_of(tmp_path / "loop.jpg") == "unreadable"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(jpeg(scene()))
    path.chmod(0)
    assert code_of(path) == "unreadable"


@pytest.mark.parametrize("name", ["nul\0byte.jpg", "x" * 5000])
def test_a_name_that_no_file_can_have_is_unreadable(name: str, tmp_path: Path) -> None:
    assert code_of(tmp_path / name) == "unreadable"


def test_line_breaks_and_escapes_in_a_name_stay_out_of_the_message(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(tmp_path / "evil\r\n\x1b[31m\udcff.jpg")
    assert "evil\\r\\n\\x1b[31m\\udcff.jpg" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_disk_that_fails_while_a_image_is_read_is_told_from_a_broken_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            if self.tell() > 500:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(count if count is None or count < 0 else min(count, 400))

    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(scene()))
    monkeypatch.setattr(Path, "open", lambda *arguments: Failing(jpeg(scene())))
    with pytest.raises(ImageError) as caught:
        decode_image(path)
    assert (caught.value.code, caught.value.got) == ("unreadable", "Input/output error")


def test_memory_that_runs_out_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", exhausted)
    with pytest.raises(ResourceError, match="needs more memory"):
        decode_image(jpeg(scene()))


# ---------------------------------------------------------------------------------------------------------------- limits


def test_a_file_of_too_many_bytes_is_refused_and_one_at_the_limit_is_not() -> None:
    data = jpeg(scene())
    assert decode_image(data, limits=ImageLimits(max_bytes=len(data))).format == "JPEG"
    assert code_of(data, limits=ImageLimits(max_bytes=len(data) - 1)) == "too_many_bytes"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (ImageLimits(max_pixels=32 * 20 - 1), "too_many_pixels"),
        (ImageLimits(max_aspect=1.59), "aspect_ratio"),
        (ImageLimits(min_side=21), "too_small"),
    ],
)
def test_each_limit_is_the_last_value_that_passes(limits: ImageLimits, code: str) -> None:
    data = encode(scene((32, 20)), "PNG")
    passing = ImageLimits(max_pixels=32 * 20, max_aspect=1.6, min_side=20)
    assert decode_image(data, limits=passing).original_size == (32, 20)
    assert code_of(data, limits=limits) == code


@pytest.mark.parametrize("name", ["max_pixels", "min_side", "max_aspect", "max_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_makes_no_sense_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        ImageLimits(**{name: value})


# ----------------------------------------------------------------------------------------------------- how much is decoded


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(width=st.integers(16, 700), height=st.integers(16, 700), wanted=st.integers(1, 400))
def test_a_reduced_jpeg_is_never_below_what_was_asked_for(width: int, height: int, wanted: int) -> None:
    data = encode(Image.new("RGB", (width, height), (90, 120, 200)), "JPEG")
    decoded = decode_image(data, limits=ImageLimits(max_aspect=50), min_short_side=wanted)
    short = min(decoded.image.size)
    assert short >= min(wanted, width, height)
    assert decoded.original_size == (width, height)
    reduction = next(n for n in (8, 4, 2, 1) if n == 1 or min(width, height) >= n * wanted)
    assert decoded.image.size == (-(-width // reduction), -(-height // reduction))


def test_a_reduced_jpeg_shows_the_average_of_its_pixels() -> None:
    large = scene((640, 480))
    decoded = decode_image(jpeg(large), min_short_side=120)
    assert decoded.image.size == (160, 120)
    averaged = np.asarray(large, float).reshape(120, 4, 160, 4, 3).mean((1, 3))
    assert np.abs(np.asarray(decoded.image) - averaged).mean() < 1


def test_only_jpegs_are_reduced() -> None:
    assert decode_image(encode(scene((640, 480)), "PNG"), min_short_side=32).image.size == (640, 480)


@pytest.mark.parametrize("wanted", [0, -5])
def test_a_short_side_below_one_is_a_fault_of_the_program(wanted: int) -> None:
    with pytest.raises(ValueError, match="min_short_side"):
        decode_image(jpeg(scene()), min_short_side=wanted)


def test_the_header_of_a_image_taller_than_wide_is_turned_with_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    decoded = decode_image(jpeg(scene((96, 64)), exif=exif.tobytes()))
    assert decoded.original_size == decoded.image.size == (64, 96)


def test_every_caller_names_its_limits() -> None:
    root = Path(transferapp.__file__).parent
    for module in [path for path in root.rglob("*.py") if path.parent != root / "images"]:
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "decode_image":
                assert "limits" in {keyword.arg for keyword in node.keywords}, f"{module}:{node.lineno}"
