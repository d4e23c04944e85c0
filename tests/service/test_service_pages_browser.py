"""The pages in headless Chromium. Skipped without it."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import COLORS, Served, paint
from transferapp.images.views import Geometry

api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
KEY = "some-key-0123456789"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


class Tab:
    """A tab on a service's page, which records the browser's errors and warnings."""

    def __init__(self, browser: Any, served: Served, path: str = "", prefix: str = "", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)
        self.base = f"{str(served.client.base_url).rstrip('/')}/"
        self.requested: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        if prefix:  # like a proxy that serves the pages below a prefix
            self.page.route(
                f"{self.base}{prefix}**", lambda route: route.continue_(url=route.request.url.replace(prefix, "", 1))
            )
        self.page.goto(self.base + path)

    def _note(self, message: Any) -> None:
        # Chromium logs every answer of 4xx and 5xx; those that a test provokes are expected.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def give(self, *images: bytes, name: str = "image.jpg", kind: str = "image/jpeg") -> None:
        """Choose files in the file input."""
        files = [{"name": name, "mimeType": kind, "buffer": image} for image in images]
        self.page.locator("#choose").set_input_files(files)

    def answered(self) -> list[tuple[str, float]]:
        """Wait for the bars and return (label, score) of each."""
        api.expect(self.page.locator(".bar").first).to_be_visible()
        return [
            (bar.get_attribute("data-label"), float(bar.get_attribute("data-score")))
            for bar in self.page.locator(".bar").all()
        ]

    def explained(self, label: str) -> np.ndarray:
        """Wait for the occlusion map of a class and return its pixels: uint8, shape (height, width, 4)."""
        api.expect(self.page.locator("#look")).to_be_enabled()
        api.expect(self.page.locator("#overlay")).to_have_attribute("data-label", label)
        url = self.page.evaluate("document.getElementById('overlay').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))

    def fits(self) -> bool:
        """Return whether the page fits the window's width."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Open tabs; check at the end that the browser reported no error."""
    opened: list[Tab] = []

    def open_tab(served: Served, **options: Any) -> Tab:
        opened.append(Tab(browser, served, **options))
        return opened[-1]

    yield open_tab
    complaints = [complaint for each in opened for complaint in each.complaints]
    for each in opened:
        each.context.close()
    assert complaints == []


def halves(left: str = "red", right: str = "blue", form: str = "PNG", **options: Any) -> bytes:
    """Return an image of two colors, two thirds the left one."""
    image = Image.new("RGB", (360, 300), COLORS[right])
    image.paste(COLORS[left], (0, 0, 240, 300))
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(side: int) -> bytes:
    """Return an image that no format compresses."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels[..., 1:] //= 2
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_an_image_gets_the_answer_of_the_api_and_the_reasons_for_it(service: Served, tab: Callable[..., Tab]) -> None:
    opened = tab(service)
    page = opened.page
    api.expect(page.locator("#known-list li")).to_have_text(["red", "green", "blue"])
    opened.give(halves(), name="two.png", kind="image/png")
    answer = service.predict(halves()).json()
    assert opened.answered() == [(one["label"], one["score"]) for one in answer["predictions"]]
    first = answer["predictions"][0]
    api.expect(page.locator("#answer")).to_contain_text(first["label"])
    shown = page.locator(".bar .value").first.inner_text()
    assert float(shown.strip("<> \u00a0%")) == pytest.approx(100 * first["score"], abs=0.05)
    width = page.locator(".bar .fill").first.evaluate("e => e.offsetWidth / e.parentElement.offsetWidth")
    assert width == pytest.approx(first["score"], abs=0.02)
    api.expect(page.locator("#live")).to_contain_text("red")

    pixels = opened.explained("red")
    assert len(np.unique(pixels[..., 3])) > 20  # light and shade, and much between
    third = pixels.shape[1] // 3
    assert pixels[:, :third, 3].mean() < pixels[:, -third:, 3].mean() - 30  # the shade lies on what is not red
    assert page.locator(".crop").count() == 10
    upper_left = page.locator(".crop canvas").first.evaluate(
        "c => [...c.getContext('2d').getImageData(9, 9, 1, 1).data]"
    )
    np.testing.assert_allclose(upper_left, [*COLORS["red"], 255], atol=2)
    mirrored = (
        page.locator(".crop canvas").nth(6).evaluate("c => [...c.getContext('2d').getImageData(9, 9, 1, 1).data]")
    )
    np.testing.assert_allclose(mirrored, [*COLORS["blue"], 255], atol=2)  # upper right, flipped

    page.locator(".bar", has_text="blue").click()
    other = opened.explained("blue")
    assert other[:, -third:, 3].mean() < other[:, :third, 3].mean() - 30
    api.expect(page.locator(".bar[aria-pressed=true]")).to_have_attribute("data-label", "blue")


def test_an_unknown_image_is_said_to_be_none_of_the_classes(
    tmp_path: Path, serve: Callable[..., Served], tab: Callable[..., Tab]
) -> None:
    opened = tab(serve(models=make_tiny_bundle(tmp_path / "calibrated", calibrated=True)))
    sure, classes = opened.page.locator("#sure"), opened.page.locator("#set")
    opened.give(paint("red"))
    assert opened.answered()[0][0] == "red"
    api.expect(sure).not_to_contain_text("none of the model's classes")
    api.expect(classes).to_be_empty()
    gray = io.BytesIO()
    Image.new("RGB", (320, 240), (120, 125, 119)).save(gray, "PNG")
    opened.give(gray.getvalue(), name="gray.png", kind="image/png")
    api.expect(sure).to_contain_text("none of the model's classes. Of these, green is the nearest")
    api.expect(classes).to_be_empty()
    # As familiar as a held-out image, and between two classes.
    mixed = io.BytesIO()
    Image.new("RGB", (320, 240), (130, 120, 5)).save(mixed, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transferapp.bundle.predictor.is_known", lambda score: True)
        opened.give(mixed.getvalue(), name="mixed.png", kind="image/png")
        api.expect(classes).to_contain_text("It is red or green: such a set is right for 90.0")


@pytest.mark.parametrize("geometry", ["resize", "pad"])
def test_a_long_image_that_the_model_sees_whole_is_explained_whole(
    tmp_path: Path, serve: Callable[..., Served], tab: Callable[..., Tab], geometry: Geometry
) -> None:
    service = serve(models=make_tiny_bundle(tmp_path / "whole", geometry=geometry))
    image = Image.new("RGB", (800, 200), COLORS["blue"])
    image.paste(COLORS["red"], (600, 0, 800, 200))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    opened = tab(service)
    opened.give(stream.getvalue(), name="long.png", kind="image/png")
    opened.answered()
    page = opened.page
    page.locator(".bar", has_text="red").click()
    pixels = opened.explained("red")
    third = pixels.shape[1] // 3
    assert pixels[:, -third:, 3].mean() < pixels[:, :third, 3].mean() - 30  # the light is on the red end
    api.expect(page.locator("#crops-text")).to_contain_text("the whole photo")
    whole = page.locator(".crop").nth(4)
    api.expect(whole).to_have_attribute("title", "Whole photo")
    row = whole.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(0, 64, 128, 1).data]")
    ends = np.reshape(row, (128, 4))[[9, 119]]
    np.testing.assert_allclose(ends, [[*COLORS[color], 255] for color in ("blue", "red")], atol=2)
    whole.focus()
    api.expect(page.locator("#crop-frame")).to_be_visible()
    assert opened.fits()


def test_the_light_can_be_switched_off_by_keyboard(service: Served, tab: Callable[..., Tab]) -> None:
    opened = tab(service)
    opened.give(halves())
    opened.answered()
    opened.explained("red")
    look, overlay = opened.page.locator("#look"), opened.page.locator("#overlay")
    api.expect(overlay).to_have_css("opacity", "1")
    look.focus()
    opened.page.keyboard.press("Space")
    api.expect(look).to_have_attribute("aria-checked", "false")
    api.expect(overlay).to_have_css("opacity", "0")


def test_every_control_is_reached_by_tab_and_shows_it(service: Served, tab: Callable[..., Tab]) -> None:
    opened = tab(service)
    opened.give(halves(), halves("green", "red"))
    opened.answered()
    page = opened.page
    api.expect(page.locator(".crop").first).to_be_visible()
    page.locator("#found summary").click()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    where = """() => { const e = document.activeElement;
        return [e.id || e.dataset.label || e.className || e.href || e.tagName + (e.dataset.entry ?? ""),
                getComputedStyle(e).outlineStyle]; }"""
    reached: dict[str, str] = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(where)
        if name in reached:
            break
        reached[name] = outline
    assert {"again", "clear", "look", "red", "green", "blue", "crop", "copy", "curl"} <= set(reached)
    assert sum(name.startswith("BUTTON") for name in reached) == 2  # the two images in the row
    assert any(name.endswith("/docs") for name in reached)
    page_itself = reached.pop("BODY", "none")  # between the last control and the first the browser's own come
    assert page_itself == "none"
    assert {name for name, outline in reached.items() if outline == "none"} == set()
    # One of the ten crops is a tab stop; arrow keys move between them and show their position on the image.
    page.locator("#answer").click()  # the last Tab may have left the document for the browser's own controls
    page.locator(".crop").first.focus()
    api.expect(page.locator("#crop-frame")).to_be_visible()
    page.keyboard.press("ArrowRight")
    api.expect(page.locator(".crop").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    api.expect(page.locator(".crop").nth(6)).to_be_focused()


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_an_image_can_be_pasted_and_dropped(service: Served, tab: Callable[..., Tab], way: str) -> None:
    opened = tab(service)
    api.expect(opened.page.locator("#start")).to_be_visible()
    opened.page.evaluate(
        """([way, base64]) => {
            const carried = new DataTransfer();
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            carried.items.add(new File([bytes], "image.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            const events = way === "paste"
                ? [new ClipboardEvent("paste", { clipboardData: carried, ...options })]
                : ["dragenter", "dragover", "drop"].map((type) => new DragEvent(type, { dataTransfer: carried, ...options }));
            for (const event of events) document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(halves("green", "red")).decode()],
    )
    assert opened.answered()[0][0] == "green"
    api.expect(opened.page.locator("#veil")).to_be_hidden()


def test_several_images_make_a_row_to_choose_from(service: Served, tab: Callable[..., Tab]) -> None:
    opened = tab(service)
    opened.give(paint("red"), paint("green"), paint("blue"), b"no image")
    strip = opened.page.locator("#strip button")
    api.expect(strip).to_have_count(4)
    for index, text in enumerate(("red", "green", "blue", "This file is not a photo that can be read")):
        api.expect(strip.nth(index)).to_contain_text(text)
    api.expect(strip.first).to_have_attribute("aria-current", "true")
    strip.nth(2).click()
    api.expect(opened.page.locator("#answer")).to_contain_text("blue")
    opened.page.locator("#clear").click()
    api.expect(opened.page.locator("#start")).to_be_visible()
    api.expect(opened.page.locator("#choose")).to_be_focused()


@pytest.mark.parametrize(
    ("image", "title", "advice"),
    [
        (b"<html>", "This file is not a photo that can be read", "JPEG, PNG, WebP"),
        (b"", "The file is empty", "Choose it again"),
        (paint()[:500], "The photo is cut off", "Copy or download it again"),
        (paint(size=(8, 8)), "The photo is too small", "Choose a larger one"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(
    service: Served, tab: Callable[..., Tab], image: bytes, title: str, advice: str
) -> None:
    opened = tab(service)
    opened.give(image)
    api.expect(opened.page.locator("#problem-title")).to_have_text(title)
    api.expect(opened.page.locator("#problem-text")).to_contain_text(advice)
    api.expect(opened.page.locator("#live")).to_contain_text(title)
    api.expect(opened.page.locator("#retry")).to_have_text("Choose another photo")
    opened.give(paint("green"))
    assert opened.answered()[0][0] == "green"
    api.expect(opened.page.locator("#problem")).to_be_hidden()


def test_too_many_images_and_no_network_are_said_with_what_to_do(
    serve: Callable[..., Served], tab: Callable[..., Tab]
) -> None:
    served = serve(rate_limit=0.01, rate_burst=2)
    opened = tab(served)
    opened.give(halves())
    opened.answered()
    opened.explained("red")
    opened.give(paint())
    api.expect(opened.page.locator("#problem-title")).to_have_text("Too many photos in a short time")
    api.expect(opened.page.locator("#problem-text")).to_contain_text("minutes")
    opened.context.set_offline(True)
    opened.page.locator("#retry").click()
    api.expect(opened.page.locator("#problem-title")).to_have_text("The service cannot be reached")


def test_an_image_over_the_limits_is_made_smaller_first(serve: Callable[..., Served], tab: Callable[..., Tab]) -> None:
    heavy = noise(400)
    opened = tab(serve(max_body_bytes=200_000))
    assert len(heavy) > 200_000
    opened.give(heavy, name="noise.png", kind="image/png")
    assert opened.answered()[0][0] == "red"
    api.expect(opened.page.locator("#notes")).to_contain_text("Scaled down before sending")
    many = tab(serve(max_pixels=150_000))
    many.give(paint("blue", size=(800, 600)))
    assert many.answered()[0][0] == "blue"
    api.expect(many.page.locator("#notes")).to_contain_text("Scaled down before sending")


def test_an_image_that_the_browser_cannot_show_is_answered_all_the_same(
    service: Served, tab: Callable[..., Tab]
) -> None:
    opened = tab(service)
    opened.give(halves("green", "blue", "TIFF"), name="scan.tif", kind="image/tiff")
    assert opened.answered()[0][0] == "green"
    api.expect(opened.page.locator("#placeholder")).to_contain_text("cannot show TIFF")
    assert len(np.unique(opened.explained("green")[..., 3])) > 20
    api.expect(opened.page.locator(".crop")).to_have_count(10)


def test_what_was_done_to_the_image_is_said(service: Served, tab: Callable[..., Tab]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = tab(service)
    opened.give(paint(exif=exif))
    opened.answered()
    api.expect(opened.page.locator("#notes")).to_contain_text("The image was turned as its orientation tag says.")
    api.expect(opened.page.locator("#timing")).to_contain_text("240 × 320")


def test_of_several_models_one_can_be_chosen(
    serve: Callable[..., Served], tab: Callable[..., Tab], tmp_path: Path
) -> None:
    make_tiny_bundle(tmp_path / "english")
    make_tiny_bundle(tmp_path / "german", ("rot", "grün", "blau"), report="<p>Bericht</p>")
    served = serve(models=tmp_path)
    opened = tab(served)
    api.expect(opened.page.locator("#chooser")).to_be_visible()  # although the second one was loaded after the page
    opened.give(paint("green"))
    assert opened.answered()[0][0] == "green"
    api.expect(opened.page.locator("#report")).to_be_hidden()
    opened.page.locator("#model").select_option("german")
    api.expect(opened.page.locator("#answer")).to_contain_text("grün")
    api.expect(opened.page.locator("#curl")).to_have_text(
        f"curl -F file=@image.jpg '{served.client.base_url}/predict?model=german'"
    )
    with opened.context.expect_page() as shown:
        opened.page.locator("#report").click()
    api.expect(shown.value.locator("p")).to_have_text("Bericht")


def test_a_key_is_asked_for_kept_for_the_tab_and_sent(
    serve: Callable[..., Served], tab: Callable[..., Tab], tmp_path: Path
) -> None:
    make_tiny_bundle(tmp_path / "tiny", report="<p>All of it</p>")
    opened = tab(serve(models=tmp_path / "tiny", api_keys=KEY))
    page = opened.page
    api.expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("wrong-key-0123456789")
    page.keyboard.press("Enter")
    api.expect(page.locator("#key-text")).to_contain_text("not one of the service's")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    api.expect(page.locator("#start")).to_be_visible()
    opened.give(paint("blue"))
    assert opened.answered()[0][0] == "blue"
    api.expect(page.locator("#curl")).to_contain_text('-H "X-API-Key: $KEY"')
    assert KEY not in page.content()
    with page.expect_download() as download:
        page.locator("#report").click()
    assert Path(download.value.path()).read_text() == "<p>All of it</p>"
    page.reload()
    api.expect(page.locator("#start")).to_be_visible()
    # A key that is withdrawn is asked for again, and the image goes on where it was.
    page.evaluate("sessionStorage.clear()")
    opened.give(halves("green", "red"))
    api.expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    assert opened.answered()[0][0] == "green"
    opened.explained("green")


def test_the_page_waits_for_a_model_and_goes_on_by_itself(
    serve: Callable[..., Served], tab: Callable[..., Tab], tmp_path: Path
) -> None:
    opened = tab(serve(wait=False, models=tmp_path, watch_seconds=0.05))
    api.expect(opened.page.locator("#status-title")).to_have_text("No model is served yet")
    make_tiny_bundle(tmp_path / "tiny")
    api.expect(opened.page.locator("#start")).to_be_visible(timeout=15_000)
    opened.give(paint("green"))
    assert opened.answered()[0][0] == "green"


@pytest.mark.parametrize("name", ["dog.jpg", 'my dog\'s "best"; day.jpg', "-$(x) `y`.png"])
def test_the_command_is_one_that_a_shell_takes_as_meant(service: Served, tab: Callable[..., Tab], name: str) -> None:
    opened = tab(service, permissions=["clipboard-read", "clipboard-write"])
    opened.give(paint(), name=name)
    opened.answered()
    opened.page.locator("#found summary").click()
    opened.page.locator("#copy").click()
    api.expect(opened.page.locator("#copy")).to_have_text("Copied")
    command, option, field, url = shlex.split(opened.page.evaluate("navigator.clipboard.readText()"))
    assert (command, option, url) == ("curl", "-F", f"{service.client.base_url}/predict")
    meant = field.removeprefix("file=@")
    # curl's own quotes, in which a backslash takes the next letter as it is; JSON's are the same for these two letters.
    assert (json.loads(meant) if meant.startswith('"') else meant) == name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_sticks_out_and_the_scheme_is_followed(
    serve: Callable[..., Served], tab: Callable[..., Tab], tmp_path: Path, scheme: str, viewport: dict[str, int]
) -> None:
    long = "a_very_long_name_that_some_data_set_has_given_to_one_of_its_classes" * 2
    make_tiny_bundle(tmp_path / "long", ("red", long, *(f"class {number}" for number in range(60))))
    opened = tab(serve(models=tmp_path / "long"), viewport=viewport, color_scheme=scheme, has_touch=viewport is PHONE)
    api.expect(opened.page.locator("#start")).to_be_visible()
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, paper[4:-1].split(",")))
    assert brightness > 600 if scheme == "light" else brightness < 150
    assert opened.fits()
    assert opened.page.locator("#photograph + label").is_visible() is (viewport is PHONE)
    opened.give(halves("green"), name=f"{long}.png")
    opened.answered()
    api.expect(opened.page.locator("#look")).to_be_enabled()
    opened.page.locator("#found summary").click()
    assert opened.fits()
    opened.give(b"no image", halves(), name="x" * 200)
    api.expect(opened.page.locator("#problem-title")).to_be_visible()
    assert opened.fits()


@pytest.mark.parametrize("prefix", ["", "behind/a/proxy/"])
def test_the_api_can_be_read_and_tried_without_any_other_server(
    serve: Callable[..., Served], tab: Callable[..., Tab], prefix: str
) -> None:
    opened = tab(serve(api_keys=KEY), path=f"{prefix}docs", prefix=prefix)
    page = opened.page
    paths = page.locator(".opblock-summary-path")
    api.expect(paths.first).to_be_visible(timeout=20_000)  # it is a megabyte and a half of script
    shown = {path.replace("\u200b", "") for path in paths.all_inner_texts()}  # it may be broken at each slash
    assert {"/predict", "/explain", "/models", "/readyz"} <= shown
    # A key given once goes with what is tried.
    page.locator(".btn.authorize").click()
    page.locator("#auth-bearer-value").fill(KEY)
    page.locator(".auth-container", has=page.locator("#auth-bearer-value")).locator("button[type=submit]").click()
    page.locator(".btn-done").first.click()
    block = page.locator(".opblock", has_text="/info").first
    block.locator(".opblock-summary").click()
    block.locator(".execute").click()
    api.expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert f"{opened.base}{prefix}info" in opened.requested
    assert all(url.startswith(("data:", f"{opened.base}{prefix}")) for url in opened.requested)


@pytest.mark.parametrize(("path", "member"), [("/predict", "predictions"), ("/explain", "saliency")])
def test_an_image_alone_is_enough_to_try_the_api(
    service: Served, tab: Callable[..., Tab], path: str, member: str
) -> None:
    opened = tab(service, path="docs")
    page = opened.page
    block = page.locator(".opblock", has_text=path).first
    block.locator(".opblock-summary").click(timeout=20_000)
    image = {"name": "image.png", "mimeType": "image/png", "buffer": halves()}
    block.locator("input[type=file]").first.set_input_files([image])
    with page.expect_response(lambda answer: path in answer.url) as answered:
        block.locator(".execute").click()
    assert answered.value.status == 200
    assert member in answered.value.json()
    # Swagger UI has no input for "one file or several", says so, and shows one for a single file.
    opened.complaints = [text for text in opened.complaints if "JsonSchema_string_binary" not in text]


def test_the_page_and_the_api_work_below_a_prefix_that_the_proxy_keeps(
    serve: Callable[..., Served], tab: Callable[..., Tab]
) -> None:
    served = serve(root_path="/own/images")
    opened = tab(served, path="own/images")  # without the slash at the end
    opened.give(paint("green"))
    assert opened.answered()[0][0] == "green"
    opened.explained("green")
    docs = tab(served, path="own/images/docs")
    block = docs.page.locator(".opblock", has_text="/info").first
    block.locator(".opblock-summary").click(timeout=20_000)
    block.locator(".execute").click()
    api.expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    prefix = f"{opened.base}own/images"
    assert f"{prefix}/info" in docs.requested
    assert all(url.startswith(("data:", "blob:", prefix)) for url in opened.requested + docs.requested)


class BlankPage(BaseHTTPRequestHandler):
    """Another site, with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BlankPage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_pages_of_listed_origins_can_use_the_api(serve: Callable[..., Served], browser: Any, site: str) -> None:
    page = browser.new_page()
    page.goto(site)

    def ask(served: Served, key: str = KEY) -> dict[str, Any]:
        return dict(
            page.evaluate(
                """async ([url, image, key]) => {
                    try {
                        const headers = { "Content-Type": "application/json", "X-API-Key": key };
                        const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify({ image }) });
                        return { status: answer.status, id: answer.headers.get("X-Request-ID"), ...(await answer.json()) };
                    } catch (error) { return { blocked: error.name }; }
                }""",
                [f"{served.client.base_url}/predict", base64.b64encode(paint("blue")).decode(), key],
            )
        )

    listed = serve(cors_origins=site, api_keys=KEY)
    answer = ask(listed)
    assert (answer["status"], answer["predictions"][0]["label"]) == (200, "blue")
    assert answer["id"]
    assert ask(listed, "wrong-key-0123456789")["code"] == "unauthorized"
    assert ask(serve(cors_origins="*", api_keys=KEY))["status"] == 200
    for others in ("http://127.0.0.1:1", ""):
        assert ask(serve(cors_origins=others, api_keys=KEY)) == {"blocked": "TypeError"}
    page.close()
