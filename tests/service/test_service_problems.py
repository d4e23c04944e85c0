"""Errors as RFC 9457 documents, with code and status."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from service.problems import PROBLEMS, problem_response
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import Served, paint
from transferapp.errors import ImageError, ResourceError, TransferAppError, UsageError


def check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check what all problem documents have in common and return the document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code), document
    assert document["type"] == f"urn:transferapp:problem:{code}"
    assert document["title"] == PROBLEMS[code].title
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["detail"]
    assert len(document["hint"]) > 5
    assert document["hint"].endswith(".")
    return document


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def noise() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "status", "code", "limit"),
    [
        (b"", 422, "empty_file", None),
        (b"<html>not an image</html>", 415, "unsupported_format", None),
        (noise()[:3000], 422, "truncated", None),
        (paint(form="PNG").replace(b"IDAT", b"IDAX"), 422, "undecodable", None),
        (png_header(50_000, 50_000), 413, "too_many_pixels", {"max_pixels": 25_000_000}),
        (paint(size=(2000, 20), form="PNG"), 422, "aspect_ratio", {"max_aspect": 20.0}),
        (paint(size=(1, 1), form="PNG"), 422, "too_small", {"min_side": 16}),
    ],
)
def test_images(service: Served, image: bytes, status: int, code: str, limit: dict[str, Any] | None) -> None:
    for answer in (service.predict(image), service.client.post("/predict", files={"file": ("a.jpg", image)})):
        document = check(answer, status, code)
        assert document.get("limit") == limit


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("views=7", "views"),
        ("views=x", "views"),
        ("views=0", "views"),
        ("top_k=-1", "top_k"),
        ("top_k=0", "top_k"),
        ("top_k=1000000000", "top_k"),
        ("top_k=1e9", "top_k"),
    ],
)
def test_parameters(service: Served, query: str, code: str) -> None:
    answer = service.client.post(f"/predict?{query}", content=paint(), headers={"content-type": "image/jpeg"})
    assert "limit" in check(answer, 422, code)


def test_a_form_without_the_field_names_what_came(service: Served) -> None:
    document = check(service.client.post("/predict", files={"image": paint()}), 422, "missing_file")
    assert "image" in document["detail"]
    assert "curl" in document["hint"]


@pytest.mark.parametrize("count", [100, 5000])
@pytest.mark.parametrize("filename", ["x", None])
def test_many_parts(service: Served, count: int, filename: str | None) -> None:
    files = [(f"field{i}", (filename, b"x")) for i in range(count)]
    check(service.client.post("/predict", files=files), 400, "malformed_body")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_content_types(service: Served, kind: str) -> None:
    answer = service.client.post("/predict", content=paint(), headers={"content-type": kind})
    assert "image/*" in check(answer, 415, "unsupported_media_type")["detail"]


def test_a_compressed_body(service: Served) -> None:
    headers = {"content-type": "image/jpeg", "content-encoding": "gzip"}
    check(service.client.post("/predict", content=paint(), headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("; boundary=B", b"no boundary at all"),
        ("; boundary=B", b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nendless'),
        ("", b"--B--\r\n"),
        (f"; boundary={'B' * 3000}", b"x"),
        ("; boundary=B", b"--B\r\n" + b"X-H: 1\r\n" * 1000),
        ("; boundary=B", b"--B\r\nX-H: " + b"1" * 100_000),
    ],
)
def test_malformed_forms(service: Served, boundary: str, body: bytes) -> None:
    answer = service.client.post("/predict", content=body, headers={"content-type": f"multipart/form-data{boundary}"})
    check(answer, 400, "malformed_body")


FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'


@pytest.mark.parametrize(
    ("start", "unit", "status"),
    [
        (FILE, b"A:\r\n", 400),
        (FILE[:-2] + b"; x=", b"y", 400),
        (b"", FILE + b"\r\nx\r\n", 400),
        (FILE + b"\r\n", b"\r\n--", 415),
        (FILE + b"\r\n", b"\r", 415),
        (b"", b"\r\n", 422),
    ],
    ids=["headers", "one header", "parts", "boundaries", "returns", "preamble"],
)
def test_a_form_made_to_be_slow_to_parse_holds_nobody_up(
    service: Served, start: bytes, unit: bytes, status: int
) -> None:
    body = start + unit * ((10_000_000 - len(start)) // len(unit)) + b"\r\n--B--\r\n"
    began = time.monotonic()
    answer = service.client.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=B"})
    assert answer.status_code == status, answer.text
    assert time.monotonic() - began < 5  # .3 seconds; long, since the machine may be busy
    assert service.client.get("/livez").status_code == 200


def test_pages_and_methods_that_do_not_exist(service: Served) -> None:
    check(service.client.get("/nothing"), 404, "not_found")
    check(service.client.post("/predict/", content=b"x"), 404, "not_found")
    answer = service.client.get("/predict")
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    check(service.client.delete("/readyz"), 405, "method_not_allowed")
    assert service.client.options("/predict").status_code == 405


def test_a_model_that_answers_nan(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(models=make_tiny_bundle(tmp_path / "broken", broken=True))
    answer = served.predict(paint("red"))
    check(answer, 500, "model_output_invalid")
    assert "NaN" not in answer.text


def test_a_fault_nobody_foresaw_tells_nothing_but_its_id(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.app.state.models.slot().get(), "predict", fail)
    answer = served.predict(paint())
    check(answer, 500, "internal")
    assert "secret" not in answer.text
    assert served.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ImageError("x", code="a_new_one"), 422, "undecodable"),
        (UsageError("x"), 422, "invalid_request"),
        (ResourceError("x"), 503, "resources"),
        (TransferAppError("x"), 500, "internal"),
    ],
)
def test_unknown_codes_take_the_status_of_their_family(error: TransferAppError, status: int, code: str) -> None:
    response = problem_response(error, {"type": "http"})
    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (status, code)
