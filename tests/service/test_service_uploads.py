"""Several images in one request, and an image in a JSON object."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from service.settings import Settings
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import Gate, Served, paint, wait_for
from tests.service.test_service_problems import check


def send(served: Served, *fields: tuple[str, bytes], **parameters: Any) -> httpx.Response:
    return served.client.post("/predict", files=list(fields), params=parameters or None)


def send_json(served: Served, document: object, **parameters: Any) -> httpx.Response:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return served.client.post(
        "/predict", content=body, headers={"content-type": "application/json"}, params=parameters or None
    )


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


# Several images


def test_a_repeated_field_gets_one_entry_per_image_in_order(service: Served) -> None:
    colors = ["red", "blue", "green", "blue"]
    answer = send(service, *(("file", paint(color)) for color in colors), views=1, top_k=1)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["predictions"][0]["label"] for entry in results] == colors
    assert results[0] | {"seconds": 0} == service.predict(paint("red"), views=1, top_k=1).json() | {"seconds": 0}


def test_a_bad_image_has_its_own_problem_and_does_the_others_no_harm(service: Served) -> None:
    answer = send(service, ("file", paint("red")), ("file", b"<html>"), ("file", b""), ("file", paint("blue")))
    assert answer.status_code == 200
    first, second, third, last = answer.json()["results"]
    assert (first["predictions"][0]["label"], last["predictions"][0]["label"]) == ("red", "blue")
    assert (second["status"], second["code"]) == (415, "unsupported_format")
    assert (third["status"], third["code"]) == (422, "empty_file")
    assert second["request_id"] == answer.headers["x-request-id"]
    assert second["type"] == "urn:transferapp:problem:unsupported_format"


def test_the_list_field_gets_a_list_for_one_image_too(service: Served) -> None:
    assert len(send(service, ("files", paint())).json()["results"]) == 1
    assert "results" not in send(service, ("file", paint())).json()
    assert len(send(service, ("files", paint()), ("file", paint())).json()["results"]) == 2


@pytest.mark.parametrize("filename", ["image.bmp", None])
def test_a_large_form_never_touches_the_disk(
    service: Served, monkeypatch: pytest.MonkeyPatch, filename: str | None
) -> None:
    def rollover(file: tempfile.SpooledTemporaryFile[bytes]) -> None:
        raise AssertionError("written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    image = paint("green", size=(1200, 1000), form="BMP")  # 3.6 MB
    answer = service.client.post("/predict", files={"file": (filename, image)})
    assert answer.json()["predictions"][0]["label"] == "green"


def test_a_part_without_a_file_name_keeps_every_byte(service: Served) -> None:
    stream = io.BytesIO()
    Image.effect_noise((100, 100), 90).convert("RGB").save(stream, "PNG")
    named, unnamed = (
        service.client.post("/predict", files={"file": (name, stream.getvalue())}).json() for name in ("x", None)
    )
    assert unnamed["predictions"] == named["predictions"]


def test_too_many_images(serve: Callable[..., Served]) -> None:
    served = serve(max_files=2)
    assert send(served, *[("file", paint())] * 2).status_code == 200
    assert check(send(served, *[("file", paint())] * 3), 422, "too_many_files")["limit"] == {"max_files": 2}


def test_a_request_takes_its_place_in_the_queue_once(
    serve: Callable[..., Served], gate: Callable[[Served], Gate]
) -> None:
    served = serve(workers=1, queue_size=0)
    held = gate(served)
    held.open()
    assert all("predictions" in entry for entry in send(served, *[("file", paint())] * 5).json()["results"])
    assert len(held.calls) == 5


def test_a_full_queue_refuses_the_request_as_a_whole(
    serve: Callable[..., Served], gate: Callable[[Served], Gate]
) -> None:
    served = serve(workers=1, queue_size=0)
    held = gate(served)
    first = threading.Thread(target=served.predict, args=(paint(),))
    first.start()
    wait_for(lambda: served.app.state.pool.running == 1)
    check(send(served, *[("file", paint())] * 2), 503, "overloaded")
    held.open()
    first.join()


def test_what_is_not_done_in_time_says_so_in_its_entry(
    serve: Callable[..., Served], gate: Callable[[Served], Gate]
) -> None:
    served = serve(workers=1, request_timeout=0.2)
    held = gate(served)
    results = send(served, ("file", paint()), ("file", paint())).json()["results"]
    assert [entry["code"] for entry in results] == ["timeout", "timeout"]
    held.open()
    wait_for(lambda: served.app.state.pool.running == 0)


# Parameters in a form


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("two")
    make_tiny_bundle(folder / "english")
    make_tiny_bundle(folder / "german", ("rot", "grün", "blau"))
    served = Served(Settings(models=folder))
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    yield served
    served.close()


def send_form(served: Served, fields: dict[str, Any], path: str = "/predict", **query: Any) -> httpx.Response:
    return served.client.post(path, files={"file": paint("green")}, data=fields, params=query or None)


def test_fields_of_a_form_are_read_as_the_query_is(two_models: Served) -> None:
    fields = {"model": "german", "top_k": "1", "views": "1"}
    answer = send_form(two_models, fields)
    asked = two_models.client.post("/predict", files={"file": paint("green")}, params=fields)
    assert answer.json() | {"seconds": 0} == asked.json() | {"seconds": 0}
    assert (answer.json()["model"], answer.json()["views"]) == ("german", 1)
    assert [entry["label"] for entry in answer.json()["predictions"]] == ["grün"]
    explained = send_form(two_models, {"model": "german", "label": "grün"}, "/explain").json()
    assert (explained["model"], explained["label"]) == ("german", "grün")


def test_a_field_may_repeat_what_the_address_says(two_models: Served) -> None:
    assert send_form(two_models, {"views": "1", "model": "german"}, views=1, model="german").json()["views"] == 1
    assert send_form(two_models, {"model": "german"}, "/models/german/predict").json()["model"] == "german"


def test_inputs_that_were_not_filled_in_are_ignored(service: Served) -> None:
    empty = b'--B\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\n\r\n'
    file = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=B"}
    for start in (empty, empty.replace(b'; filename=""', b"")):
        body = start + file + paint("green") + b"\r\n--B--\r\n"
        answer = service.client.post("/predict", content=body, headers=headers)
        assert answer.json()["predictions"][0]["label"] == "green"
        check(service.client.post("/predict", content=start + b"--B--\r\n", headers=headers), 422, "missing_file")


def test_fields_that_are_empty_or_no_parameters_are_ignored(two_models: Served) -> None:
    assert send_form(two_models, {"model": "", "views": "", "top_k": ["", "1"]}).json()["views"] == 10
    assert send_form(two_models, {"label": ["a", "b"], "submit": "", "views": "1"}).json()["views"] == 1
    assert send_form(two_models, {"views": "x", "label": "green"}, "/explain").json()["label"] == "green"


@pytest.mark.parametrize(
    ("path", "fields", "query", "status", "code"),
    [
        ("/predict", {"model": "other"}, {}, 404, "model_not_found"),
        ("/predict", {"model": b"\xff"}, {}, 404, "model_not_found"),
        ("/predict", {"views": "7"}, {}, 422, "views"),
        ("/predict", {"views": "0"}, {}, 422, "views"),
        ("/predict", {"views": "many"}, {}, 422, "views"),
        ("/predict", {"top_k": "0"}, {}, 422, "top_k"),
        ("/predict", {"top_k": "1e9"}, {}, 422, "top_k"),
        ("/explain", {"label": "rot"}, {}, 422, "label"),
        ("/explain", {"model": "german", "label": "red"}, {}, 422, "label"),
        ("/predict", {"views": ["1", "10"]}, {}, 422, "invalid_request"),
        ("/predict", {"views": "1"}, {"views": 10}, 422, "invalid_request"),
        ("/predict", {"model": "english"}, {"model": "german"}, 422, "invalid_request"),
        ("/models/german/predict", {"model": "english"}, {}, 422, "invalid_request"),
        ("/explain", {"label": "red"}, {"label": "blue"}, 422, "invalid_request"),
    ],
)
def test_fields_that_are_wrong_or_contradict_the_address(
    two_models: Served, path: str, fields: dict[str, Any], query: dict[str, Any], status: int, code: str
) -> None:
    check(send_form(two_models, fields, path, **query), status, code)


# An image in a JSON object


def test_base64_in_json_gives_the_same_answer(service: Served) -> None:
    image = paint("green")
    answer = send_json(service, {"image": encoded(image), "views": 1, "top_k": 2})
    expected = service.predict(image, views=1, top_k=2).json()
    assert answer.json() | {"seconds": 0} == expected | {"seconds": 0}


def test_the_body_overrules_the_query(service: Served) -> None:
    answer = send_json(service, {"image": encoded(paint()), "views": 1}, views=10, top_k=1).json()
    assert (answer["views"], len(answer["predictions"])) == (1, 1)


def test_a_large_json_body(service: Served) -> None:
    image = paint("blue", size=(800, 600), form="BMP")
    assert send_json(service, {"image": encoded(image)}).json()["predictions"][0]["label"] == "blue"


@pytest.mark.parametrize("length", range(3))
@pytest.mark.parametrize(
    "write",
    [
        lambda image: f"data:image/bmp;base64,{encoded(image)}",
        lambda image: f"data:image/bmp;name=x.bmp;base64,{encoded(image)}",
        lambda image: base64.encodebytes(image).decode(),
        lambda image: base64.encodebytes(image).decode().replace("\n", "\r\n"),
        lambda image: base64.urlsafe_b64encode(image).decode(),
        lambda image: encoded(image).rstrip("="),
        lambda image: f" {base64.urlsafe_b64encode(image).decode().rstrip('=')}\n",
    ],
    ids=["data URL", "data URL with parameters", "lines", "CR LF", "url-safe", "no padding", "all at once"],
)
def test_base64_as_programs_write_it(service: Served, write: Callable[[bytes], str], length: int) -> None:
    image = paint("green", size=(40, 40), form="BMP") + b"\xfb\xef\xbe\xff\xff\xff" + bytes(length)
    assert "++++////" in encoded(image)
    assert encoded(image).count("=") == -length % 3
    answer = send_json(service, {"image": write(image), "views": 1})
    assert answer.json()["predictions"][0]["label"] == "green"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark(service: Served, encoding: str) -> None:
    body = json.dumps({"image": encoded(paint("green")), "views": 1}).encode(encoding)
    assert send_json(service, body).json()["predictions"][0]["label"] == "green"


@pytest.mark.parametrize("address", ["https://example.com/dog.jpg", " HTTP://10.0.0.1/x?y=é", "http://"])
def test_an_address_instead_of_an_image(service: Served, address: str) -> None:
    image = address.encode()
    for answer in (
        send_json(service, {"image": address}),
        service.predict(image),
        service.client.post("/predict", files={"file": (None, image)}),
    ):
        assert "othing is downloaded" in check(answer, 422, "missing_file")["hint"]


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        (b"{", 400, "malformed_body"),
        (b"[" * 100_000, 400, "malformed_body"),
        (b"\xff\xfe", 400, "malformed_body"),
        ([], 422, "invalid_request"),
        ({}, 422, "missing_file"),
        ({"image": 5}, 422, "missing_file"),
        ({"image": "?"}, 422, "invalid_request"),
        ({"image": "é" * 4}, 422, "invalid_request"),
        ({"image": "abc de=="}, 422, "invalid_request"),
        ({"image": "abcde"}, 422, "invalid_request"),
        ({"image": "data:image/svg+xml,%3Csvg%3E"}, 422, "invalid_request"),
        ({"image": encoded(paint()), "views": 0}, 422, "views"),
        ({"image": ""}, 422, "empty_file"),
        ({"image": encoded(b"<html>")}, 415, "unsupported_format"),
        ({"image": encoded(paint()), "views": 7}, 422, "views"),
        ({"image": encoded(paint()), "views": "10"}, 422, "views"),
        ({"image": encoded(paint()), "top_k": 0}, 422, "top_k"),
        ({"image": encoded(paint()), "top_k": 10**30}, 422, "top_k"),
        ({"image": encoded(paint()), "\x00\n": 1}, 422, "invalid_request"),
    ],
)
def test_json_that_makes_no_sense(service: Served, document: object, status: int, code: str) -> None:
    check(send_json(service, document), status, code)
