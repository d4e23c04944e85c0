"""The export as a page: its runtime, and its answers in headless Chromium. Skipped without npm, a browser or the converters."""

from __future__ import annotations

import importlib.util
import io
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundle.test_exports import CLASSES, keras_bundle, with_a_deep_head
from tests.helpers.fitted import workplace
from tests.helpers.networks import noise_pixels
from tests.helpers.tiny_bundle import make_tiny_bundle
from transferapp.bundle.exports import web_page
from transferapp.bundle.exports.formats import describe, find_format
from transferapp.bundle.exports.networks import Batch, Job
from transferapp.bundle.format import read_bundle
from transferapp.bundle.predictor import Predictor
from transferapp.errors import ResourceError, TransferAppError, UsageError
from transferapp.images.views import Geometry


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive as `npm pack` does."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_bundle_of_12_bit_images_is_refused(tmp_path: Path) -> None:
    bundle = read_bundle(make_tiny_bundle(tmp_path / "deep", sample_bits=12))
    with pytest.raises(UsageError, match="12 bits in 16-bit files") as caught:
        web_page.write_page(Job(bundle, tmp_path, {}))
    assert caught.value.code == "page_sample_depth"


@pytest.mark.parametrize(
    "kind", ["another version", "an archive of something else", "no archive", "nothing", "a folder"]
)
def test_a_runtime_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "runtime.tgz"
    if kind == "another version":
        package(place, dict.fromkeys(web_page.RUNTIME_FILES, b"other"))
    elif kind == "an archive of something else":
        package(place, {"readme": b"text"})
    elif kind == "no archive":
        place.write_bytes(b"text")
    elif kind == "a folder":
        place.mkdir()
    with pytest.raises(UsageError) as caught:
        web_page.runtime(place)
    assert caught.value.code == "runtime"
    assert web_page.VERSION in str(caught.value)


@pytest.mark.parametrize("program", ["missing", "offline", "of another version"])
@pytest.mark.skipif(shutil.which("sh") is None, reason="the program is a shell script")
def test_without_npm_or_its_registry_the_error_names_the_package(
    program: str, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    package(tmp_path / "other.tgz", dict.fromkeys(web_page.RUNTIME_FILES, b"other"))
    ending = "echo 'no network' >&2; exit 1" if program == "offline" else f"cp {tmp_path / 'other.tgz'} ."
    npm.write_text(f"#!/bin/sh\n{ending}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(web_page.shutil, "which", lambda _: None if program == "missing" else str(npm))
    with pytest.raises(TransferAppError) as caught:
        web_page.runtime(None)
    assert caught.value.code == ("runtime" if program == "of another version" else "missing_runtime")
    assert f"npm pack {web_page.PACKAGE}@{web_page.VERSION}" in str(caught.value)
    if program == "offline":
        assert "no network" in str(caught.value)
    assert not list(own_cache.rglob("*.wasm"))


def test_a_package_is_read_from_a_file_and_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: name.encode() for name in web_page.RUNTIME_FILES}
    sums = {name: web_page.hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(web_page, "RUNTIME_FILES", sums)
    archive = package(tmp_path / "package.tgz", files)
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    for place in (archive, tmp_path / "package", tmp_path / "package" / "dist"):
        assert web_page.runtime(place) == tuple(files.values())


def test_without_a_browser_no_page_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_page.shutil, "which", lambda _: None)
    with pytest.raises(ResourceError) as caught:
        web_page.find_browser()
    assert caught.value.code == "missing_browser"


# In the browser


def need_page() -> None:
    """Skip a test where a page cannot be made or opened."""
    missing = [name for name in find_format("html").packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    try:
        web_page.find_browser()
        web_page.runtime(None)
    except ResourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Predictor]]:
    """A page of a small network, and the predictor of its bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERAPP_CACHE", str(workplace() / "cache"))
        need_page()
        folder = tmp_path_factory.mktemp("page")
        bundle = read_bundle(keras_bundle(folder / "bundle", with_a_deep_head(), novelty=True))
        web_page.write_page(Job(bundle, folder, describe(bundle, find_format("html"))))
        yield folder, Predictor(bundle, precision="f32")


def painted(seed: int, size: tuple[int, int]) -> Image.Image:
    """An image of smooth colors."""
    return Image.fromarray(noise_pixels(1, (6, 6), seed)[0]).resize(size, Image.Resampling.BICUBIC)


def image_files(folder: Path) -> list[Path]:
    """Images larger and smaller than the network's input, upright and turned, with and without transparency."""
    files = [
        folder / name
        for name in ("wide.png", "tall.jpg", "small.png", "turned.jpg", "clear.png", "large.webp", "scan.tif")
    ]
    painted(0, (640, 360)).save(files[0])
    painted(1, (150, 280)).save(files[1], quality=90)
    painted(2, (24, 24)).save(files[2])
    exif = Image.Exif()
    exif[0x0112] = 6
    painted(3, (200, 120)).save(files[3], exif=exif, quality=90)
    clear = painted(4, (120, 100)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(files[4])
    painted(5, (1200, 900)).save(files[5], lossless=True)
    painted(6, (90, 110)).save(files[6])
    return files


@pytest.mark.slow
def test_the_page_gives_the_probabilities_of_the_predictor(exported: tuple[Path, Predictor], tmp_path: Path) -> None:
    folder, predictor = exported
    files = image_files(tmp_path)
    crops = np.stack([predictor.crops(predictor.decode(file, 1), 1)[0] for file in files])
    pixels = np.concatenate([crops, noise_pixels(5)])
    expected = predictor.probabilities(pixels)
    with web_page.opened_page(folder) as opened:
        assert opened.from_files is not None
        answers = opened.from_pixels(Batch(pixels, []))
        np.testing.assert_allclose(answers.probabilities, expected, atol=2e-5)
        assert answers.novelty is not None
        assert predictor.novelty is not None
        scores = predictor.novelty.score(predictor.engine.outputs(pixels)[1])
        assert len(set(scores)) > 3, "the images are known to different degrees"
        np.testing.assert_allclose(answers.novelty, scores, atol=1.01 / (len(predictor.novelty.held_out) + 1))
        given = opened.from_files(Batch(crops, files)).probabilities
    assert np.ptp(expected[: len(files)], axis=0).max() > 0.02, "the images give different answers"
    np.testing.assert_allclose(given, expected[: len(files)], atol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["resize", "pad"])
def test_the_page_shows_whole_images_to_the_network_as_the_bundle_does(
    geometry: Geometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERAPP_CACHE", str(workplace() / "cache"))
    need_page()
    bundle = read_bundle(keras_bundle(tmp_path / "bundle", with_a_deep_head(), geometry=geometry))
    predictor = Predictor(bundle, precision="f32")
    web_page.write_page(Job(bundle, tmp_path, describe(bundle, find_format("html"))))
    files = image_files(tmp_path)
    crops = np.stack([predictor.crops(predictor.decode(file, 1), 1)[0] for file in files])
    with web_page.opened_page(tmp_path) as opened:
        assert opened.from_files is not None
        given = opened.from_files(Batch(crops, files)).probabilities
    np.testing.assert_allclose(given, predictor.probabilities(crops), atol=0.005)


_DROPPED = """bytes => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
  return data;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=web_page.find_browser(), args=fake)
        yield browser
        browser.close()


@pytest.mark.slow
def test_a_person_drops_chooses_and_films_images_offline(
    exported: tuple[Path, Predictor], browser: Any, tmp_path: Path
) -> None:
    folder, predictor = exported
    page = browser.new_context(offline=True).new_page()
    complaints: list[str] = []
    requested: set[str] = set()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requested.add(request.url.partition(":")[0]))
    page.goto((folder / web_page.PAGE).as_uri())
    page.locator("#choose:enabled").wait_for(state="attached")

    files = [*image_files(tmp_path)[:2], tmp_path / "unlike.png"]
    stripes = np.tile(255 * (np.arange(40) // 2 % 2)[None, :, None], (40, 1, 3)).astype(np.uint8)
    Image.fromarray(stripes).save(files[2])
    assert {predictor.predict(file, views=1).known for file in files} == {True, False}
    page.locator("#choose").set_input_files(files)
    page.locator("#results > li:nth-child(3) .bar").last.wait_for()
    for item, file in zip(page.locator("#results > li").all(), reversed(files), strict=True):
        shown = [
            (bar.get_attribute("data-label"), float(bar.get_attribute("data-score")))
            for bar in item.locator(".bar").all()
        ]
        wanted = predictor.predict(file, views=1)
        assert [label for label, _ in shown] == [score.label for score in wanted.scores]
        np.testing.assert_allclose([score for _, score in shown], [s.score for s in wanted.scores], atol=0.005)
        assert item.locator(".unknown").count() == (not wanted.known)

    page.locator("#choose").set_input_files({"name": "text.png", "mimeType": "image/png", "buffer": b"text"})
    page.locator("#results > li").nth(3).wait_for()
    page.get_by_text("text.png").wait_for()
    assert page.locator("#results > li:first-child .bar").count() == 0

    data = page.evaluate_handle(_DROPPED, list(files[0].read_bytes()))
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    page.locator("#results > li:nth-child(1) .bar").first.wait_for()
    first = page.locator("#results > li").first
    assert first.locator(".bar").first.get_attribute("data-label") == predictor.predict(files[0], views=1).label

    page.click("#camera")
    page.locator("#seen .bar").first.wait_for()
    assert {bar.get_attribute("data-label") for bar in page.locator("#seen .bar").all()} == set(CLASSES)
    page.click("#camera")
    page.locator("#live").wait_for(state="hidden")
    assert complaints == []
    assert requested <= {"file", "blob", "data"}


@pytest.mark.slow
def test_a_network_too_large_for_a_page_is_refused(
    exported: tuple[Path, Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, predictor = exported
    size = (folder / web_page.PAGE).stat().st_size
    monkeypatch.setattr(web_page, "MAX_PAGE_BYTES", size // 2)
    with pytest.raises(UsageError) as caught:
        web_page.write_page(Job(predictor.bundle, tmp_path, describe(predictor.bundle, find_format("html"))))
    assert caught.value.code == "page_too_large"
    assert list(tmp_path.iterdir()) == []
