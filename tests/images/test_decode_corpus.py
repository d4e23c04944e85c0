"""The decoder on the whole corpus: images that are accepted, and refusals with their codes."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.helpers.corpus import BY_NAME, CORPUS, OK, Case
from transferapp.errors import ImageError
from transferapp.images import NOTES, DecodedImage, decode_image, formats

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's; pytest undoes the decoder's own filter

ROOT = Path(__file__).resolve().parents[2]


def cases(*wanted: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", wanted, ids=lambda case: case.name)


def outcome(case: Case) -> str:
    try:
        decode_image(case.data)
    except ImageError as error:
        return error.code
    return OK


def difference(first: Image.Image, second: Image.Image) -> float:
    assert first.size == second.size
    return float(np.abs(np.asarray(first, int) - np.asarray(second, int)).mean())


@cases(*CORPUS)
def test_each_case_ends_as_expected(case: Case) -> None:
    assert outcome(case) in case.outcomes


@cases(*(case for case in CORPUS if case.accepted))
def test_an_accepted_image_is_plain_rgb_with_the_expected_notes(case: Case) -> None:
    decoded = decode_image(case.data)
    assert decoded.notes == case.notes
    assert decoded.image.mode == "RGB"
    assert decoded.image.size == decoded.original_size
    assert decoded.image.info == {}
    assert getattr(decoded.image, "fp", None) is None  # no file held open
    assert set(decoded.notes) <= set(NOTES)


@cases(*(case for case in CORPUS if case.twin))
def test_a_image_looks_like_its_twin(case: Case) -> None:
    twin = decode_image(BY_NAME[case.twin].data)
    assert difference(decode_image(case.data).image, twin.image) <= case.tolerance


@cases(*(case for case in CORPUS if case.refused))
def test_a_refusal_names_the_file_in_one_line_and_says_what_to_do(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.filename
    path.write_bytes(case.data)
    with pytest.raises(ImageError) as caught:
        decode_image(path)
    assert caught.value.code == case.outcomes[0]
    assert caught.value.what.startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.hint or case.name == "empty_file"


@cases(*(case for case in CORPUS if case.accepted))
def test_a_file_and_its_bytes_give_the_same_image(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "misnamed.exe"
    path.write_bytes(case.data)
    from_file, from_bytes = decode_image(path), decode_image(case.data)
    assert same(from_file, from_bytes)
    path.unlink()
    assert from_file.image.getpixel((0, 0)) == from_bytes.image.getpixel((0, 0))  # no file is needed any more


@pytest.mark.parametrize(
    "name", ["gif", "webp", "rgba_webp", "animated_gif", "animated_webp", "animated_png", "tiff_of_two_pages"]
)
def test_a_image_does_not_keep_its_reader_and_with_it_the_whole_file(name: str) -> None:
    assert type(decode_image(BY_NAME[name].data).image) is Image.Image


@cases(*(case for case in CORPUS if case.header_only))
def test_a_hungry_file_is_refused_before_any_pixel_is_decoded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for reader in (ImageFile.ImageFile, *formats._READERS.values()):
        monkeypatch.setattr(reader, "load", lambda image: asked.append("load"))
    assert outcome(case) == case.outcomes[0]
    assert asked == []


@pytest.mark.parametrize(
    "name", ["gif_screen_of_65535_x_65535", "gif_frame_over_the_edge", "webp_canvas_of_16777216_x_256"]
)
def test_a_reader_that_allocates_as_it_opens_is_not_even_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for form in ("GIF", "WEBP"):
        monkeypatch.setitem(formats._READERS, form, lambda *arguments: opened.append("reader"))
    assert outcome(BY_NAME[name]) == "too_many_pixels"
    assert opened == []


@cases(*(case for case in CORPUS if case.outcomes == ("unsupported_format",)))
def test_what_is_no_image_meets_no_reader_and_no_program(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    for form in formats._READERS:
        monkeypatch.setitem(formats._READERS, form, lambda *arguments: touched.append("reader"))
    monkeypatch.setattr(Image, "open", lambda *arguments: touched.append("Image.open"))
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: touched.append("program"))
    assert outcome(case) == "unsupported_format"
    assert touched == []


@pytest.mark.parametrize("name", ["eps", "psd", "fits", "windows_icon"])
def test_pillow_itself_would_have_opened_what_is_refused(name: str) -> None:
    Image.init()
    with Image.open(io.BytesIO(BY_NAME[name].data)) as image:
        assert image.format in ("EPS", "PSD", "FITS", "ICO")


@pytest.mark.parametrize(
    ("name", "looks_like"),
    [
        ("html", "an HTML page"),
        ("zip", "a zip archive"),
        ("pdf", "a PDF document"),
        ("svg_with_file_reference", "an SVG drawing"),
        ("svg_behind_an_xml_declaration", "an SVG drawing"),
        ("eps", "PostScript"),
        ("zeros", "blank space"),
        ("text", "text"),
        ("random_bytes", "unknown binary data"),
    ],
)
def test_a_refusal_says_what_the_content_looks_like(name: str, looks_like: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(BY_NAME[name].data)
    assert caught.value.got == f"what looks like {looks_like}"


def test_a_git_lfs_pointer_is_met_with_the_command_that_fetches_the_file() -> None:
    with pytest.raises(ImageError, match="git lfs pull"):
        decode_image(BY_NAME["git_lfs_pointer"].data)


@pytest.mark.parametrize(
    ("brand", "looks_like", "hint"),
    [
        (b"heic", "HEIC", "pip install 'transferapp[heic]'"),
        (b"mp42", "a video, or another kind of ISO media file", "Convert it"),
    ],
)
def test_other_media_in_the_container_of_avif_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, brand: bytes, looks_like: str, hint: str
) -> None:
    if brand == b"heic":
        monkeypatch.setattr(formats, "_heif_reader", lambda: None)
    with pytest.raises(ImageError) as caught:
        decode_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(64))
    assert caught.value.code == "unsupported_format"
    assert caught.value.got == f"what looks like {looks_like}"
    assert hint in (caught.value.hint or "")


def test_many_threads_decode_the_same_as_one() -> None:
    files = [case.data for case in CORPUS if case.accepted] * 3
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(decode_image, files))
    assert all(same(decode_image(data), decoded) for data, decoded in zip(files, together, strict=True))


def test_decoding_prints_nothing_in_a_process_of_its_own() -> None:
    program = """
import warnings
warnings.filterwarnings("ignore", module=r"PIL\\.")  # as the command line does; a library leaves that to its user
from tests.helpers.corpus import CORPUS
from transferapp.errors import ImageError
from transferapp.images import formats
from transferapp.images import decode_image
for case in CORPUS:
    try:
        decode_image(case.data)
    except ImageError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_corpus_has_no_name_twice_and_only_twins_that_exist() -> None:
    assert len(BY_NAME) == len(CORPUS)
    assert all(BY_NAME[case.twin].accepted for case in CORPUS if case.twin)


def same(first: DecodedImage, second: DecodedImage) -> bool:
    alike = (first.format, first.original_size, first.notes) == (second.format, second.original_size, second.notes)
    return alike and np.array_equal(np.asarray(first.image), np.asarray(second.image))
