"""Export as one HTML file that classifies images in a browser, without a network connection.

The page holds the ONNX network and ONNX Runtime Web (WebAssembly), both compressed. Its Content-Security-Policy forbids it to
load anything else. It runs in one thread, because pages from files may not share memory between threads.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np

from transferapp.bundle.exports.networks import Answers, Batch, Job, Opened, onnx_network
from transferapp.errors import ResourceError, TrainingError, UsageError
from transferapp.images import DATASET_LIMITS, SAMPLE_BITS, decode_image
from transferapp.system.cache import cached_folder
from transferapp.system.storage import write_bytes

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
"""The runtime on npm."""

RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""Files of the runtime in the page, in `dist/` of the package, with their SHA-256."""

MAX_PAGE_BYTES = 40_000_000
"""Size limit of a page, which a browser holds in memory several times."""

PAGE = "index.html"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_BROWSER_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_FETCH_SECONDS = 600
_CALL = """async ([name, text]) => network[name](Uint8Array.from(atob(text), character => character.charCodeAt(0)))"""


def write_page(job: Job) -> None:
    """Write a bundle as a page.

    Raises:
        ResourceError: The runtime cannot be had.
        UsageError: The page would be too large for a browser, or would read 16-bit images too dark.
    """
    bits = job.bundle.sample_bits
    if bits not in (None, max(SAMPLE_BITS)):
        raise UsageError(
            "A page cannot read the images of this bundle",
            expected=f"images of 8 bits, or of {max(SAMPLE_BITS)}, as browsers read them",
            got=f"samples of {bits} bits in 16-bit files",
            hint="Use another format",
            code="page_sample_depth",
        )
    find_browser()
    glue, wasm = runtime(job.runtime)
    network = onnx_network(job.bundle)
    novelty = job.bundle.novelty()
    parts = {
        "TITLE": html.escape(job.bundle.name.encode("utf-8", "replace").decode()),
        "VERSION": html.escape(job.bundle.version),
        "RUNTIME": VERSION,
        "METADATA": json.dumps(job.metadata).replace("<", "\\u003c"),
        "MODEL": _packed(network),
        "WASM": _packed(wasm),
        "GLUE": _packed(glue),
        "FEATURES": _packed(novelty.features.astype("<f2").tobytes()) if novelty else "",
        "SIMILARITIES": _packed(novelty.held_out.astype("<f4").tobytes()) if novelty else "",
        "STYLE": _resource("page.css"),
        "SCRIPT": _resource("page.js"),
    }
    before, *pieces = _resource("index.html").split("@@")
    page = before + "".join(text if index % 2 else parts[text] for index, text in enumerate(pieces))
    if len(page) > MAX_PAGE_BYTES:
        raise UsageError(
            "The network is too large for a page",
            expected=f"a page of at most {MAX_PAGE_BYTES / 1e6:.0f} MB",
            got=f"{len(page) / 1e6:.0f} MB",
            hint="Fit with --backbone efficientnet_lite0 or with --budget 0, or use another format",
            code="page_too_large",
        )
    write_bytes(job.folder / PAGE, page.encode())


def _resource(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8").strip()


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def runtime(place: Path | None) -> tuple[bytes, bytes]:
    """Return the runtime's JavaScript and WebAssembly.

    Args:
        place: The package as `npm pack` writes it, or its folder; None to fetch it with npm once, into the cache.

    Raises:
        ResourceError: npm is missing or cannot fetch it.
        UsageError: The package at `place` is another version, or something else.
    """
    place = place or cached_folder(f"{PACKAGE}-{VERSION}", _fetch).folder
    return _checked(place, _reader(place))


def _fetch(folder: Path) -> None:
    """Fetch the package with npm, and keep what a page needs."""
    npm = shutil.which("npm")
    hint = f"Fetch it elsewhere with `npm pack {PACKAGE}@{VERSION}`, and name the file with --runtime"
    if npm is None:
        raise ResourceError(
            f"A page needs {PACKAGE} {VERSION}, and there is no npm to fetch it", hint=hint, code="missing_runtime"
        )
    with tempfile.TemporaryDirectory(prefix="transferapp-") as name:
        try:
            done = subprocess.run(  # noqa: S603
                [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"],
                cwd=name,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_FETCH_SECONDS,
            )
            said, failed = done.stderr, bool(done.returncode)
        except (OSError, subprocess.TimeoutExpired) as error:
            said, failed = str(error), True
        packages = list(Path(name).glob("*.tgz"))
        if failed or not packages:
            line = next((line for line in said.splitlines() if line.strip()), "no answer")
            raise ResourceError(
                f"npm could not fetch {PACKAGE} {VERSION} ({line.strip()[:200]})", hint=hint, code="missing_runtime"
            )
        read = _reader(packages[0])
        for file, data in zip(RUNTIME_FILES, _checked(packages[0], read), strict=True):
            write_bytes(folder / file, data)


def _reader(place: Path) -> Callable[[str], bytes]:
    """Return a function that reads a file of `dist/` in a package, which is an archive or a folder."""

    def read(name: str) -> bytes:
        if place.is_dir():
            found = next(
                (p for p in (place / "dist" / name, place / "package" / "dist" / name, place / name) if p.is_file()),
                None,
            )
            return found.read_bytes() if found else b""
        with tarfile.open(place) as archive:
            member = archive.extractfile(f"package/dist/{name}")
            return member.read() if member else b""

    return read


def _checked(place: Path, read: Callable[[str], bytes]) -> tuple[bytes, bytes]:
    """Read the files of the runtime, and refuse any but the known ones."""
    found = []
    for name, checksum in RUNTIME_FILES.items():
        try:
            data = read(name)
        except (OSError, tarfile.TarError, KeyError, EOFError):
            data = b""
        if hashlib.sha256(data).hexdigest() != checksum:
            raise UsageError(
                f"{place} is not {PACKAGE} {VERSION}",
                expected=f"the file or folder that `npm pack {PACKAGE}@{VERSION}` gives",
                got=f"another {name}" if data else f"no {name}",
                code="runtime",
            )
        found.append(data)
    glue, wasm = found
    return glue, wasm


def find_browser() -> str:
    """Return the program of a Chromium browser.

    Raises:
        ResourceError: There is none.
    """
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise ResourceError(
            "A page is tried in a browser before it is kept, and there is none",
            expected="Chromium, Chrome or Edge, found by PATH",
            code="missing_browser",
        )
    return found


@contextlib.contextmanager
def opened_page(folder: Path) -> Iterator[Opened]:
    """Open the page in a headless browser without a network.

    Raises:
        TrainingError: The page reports an error.
    """
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        try:
            context = browser.new_context(offline=True)
            page = context.new_page()
            page.set_default_timeout(0)
            page.goto((folder / PAGE).resolve().as_uri())

            def call(name: str, inputs: Iterable[bytes]) -> Answers:
                try:
                    found = [page.evaluate(_CALL, [name, base64.b64encode(data).decode()]) for data in inputs]
                except Error as error:
                    raise TrainingError(
                        f"The page failed in a browser ({str(error).splitlines()[0]})", code="export_differs"
                    ) from error
                probabilities = np.array([answer["probabilities"] for answer in found], np.float32)
                scores = [answer["novelty"] for answer in found]
                return Answers(probabilities, None if None in scores else np.array(scores))

            def from_pixels(batch: Batch) -> Answers:
                return call("fromPixels", (pixels.tobytes() for pixels in batch.pixels))

            def from_files(batch: Batch) -> Answers:
                return call("fromFile", map(_shown, batch.files))

            yield Opened(from_pixels, from_files)
        finally:
            browser.close()


def _shown(file: Path) -> bytes:
    """Return the bytes of an image, as PNG where browsers do not read its format."""
    decoded = decode_image(file, limits=DATASET_LIMITS)
    if decoded.format in _BROWSER_FORMATS:
        return file.read_bytes()
    stream = io.BytesIO()
    decoded.image.save(stream, "PNG")
    return stream.getvalue()
