"""The client of the package, against a real service."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.service.conftest import Served, paint
from transferapp import client as client_module
from transferapp.client import RETRIES, Client, Model, Prediction, ServiceError

KEY = "a-key-of-the-service"


def url(served: Served) -> str:
    return str(served.client.base_url)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client waited for, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(client_module.time, "sleep", waited.append)
    return waited


def scripted(*answers: httpx.Response) -> Client:
    """A client of a service that gives these answers, one after the other."""
    left = list(answers)
    return Client("http://service", transport=httpx.MockTransport(lambda request: left.pop(0)))


def test_a_file_its_bytes_and_an_image_give_the_same_prediction(service: Served, tmp_path: Path) -> None:
    data = paint("green", form="PNG")
    (tmp_path / "image").write_bytes(data)
    with Client(url(service)) as client:
        found = client.predict(tmp_path / "image", views=1, top_k=2)
        assert isinstance(found, Prediction)
        assert (found.label, len(found.scores), found.views, found.size) == ("green", 2, 1, (320, 240))
        assert found.model == "tiny"
        assert found.warnings == ()
        assert set(found.seconds) == {"queue", "decode", "crop", "network"}
        for same in (str(tmp_path / "image"), data, Image.open(io.BytesIO(data))):
            assert client.predict(same, views=1, top_k=2).scores == found.scores


def test_several_images_and_what_is_wrong_with_one_of_them(service: Served) -> None:
    with Client(url(service)) as client:
        first, second, third = client.predict_many([paint("red"), b"<html>", paint("blue")], top_k=1)
        (single,) = client.predict_many([paint("red")])
    assert isinstance(first, Prediction)
    assert isinstance(third, Prediction)
    assert isinstance(single, Prediction)
    assert (first.label, third.label, single.label) == ("red", "blue", "red")
    assert isinstance(second, ServiceError)
    assert (second.code, second.status) == ("unsupported_format", 415)


def test_the_models(service: Served) -> None:
    version = service.app.state.models.get().bundle.version
    with Client(url(service)) as client:
        assert client.models() == [Model("tiny", True, "ready", version)]
        assert client.predict(paint("red"), model="tiny").label == "red"


def test_a_problem_is_an_error_with_its_code_its_mend_and_the_requests_id(service: Served) -> None:
    with Client(url(service)) as client, pytest.raises(ServiceError) as failed:
        client.predict(b"")
    error = failed.value
    assert (error.code, error.status) == ("empty_file", 422)
    assert error.request_id == error.problem["request_id"]
    assert "Send an image" in str(error)
    with Client(url(service)) as client, pytest.raises(ServiceError) as failed:
        client.predict(paint(), model="ä / ö")
    assert failed.value.code == "model_not_found"


def test_a_key_opens_a_service_that_asks_for_one(serve: Callable[..., Served]) -> None:
    served = serve(api_keys=KEY)
    with Client(url(served), api_key=KEY) as client:
        assert client.predict(paint("red")).label == "red"
    with Client(url(served)) as client, pytest.raises(ServiceError) as failed:
        client.models()
    assert failed.value.code == "unauthorized"


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceError) as failed:
        client.models()
    assert (failed.value.code, failed.value.status) == ("unreachable", None)


def test_a_busy_service_is_asked_again_when_it_says(waits: list[float]) -> None:
    busy, limited = (httpx.Response(status, headers={"retry-after": "3"}) for status in (503, 429))
    with scripted(busy, limited, httpx.Response(200, json={"models": []})) as client:
        assert client.models() == []
    assert waits == [3, 3]


def test_it_gives_up_after_some_tries_and_never_waits_for_ever(waits: list[float]) -> None:
    with (
        scripted(*[httpx.Response(503, headers={"retry-after": "86400"})] * 20) as client,
        pytest.raises(ServiceError) as failed,
    ):
        client.models()
    assert failed.value.status == 503
    assert waits == [client_module.MAX_WAIT] * RETRIES


@pytest.mark.parametrize("headers", [{}, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_failure_that_names_no_time_is_not_tried_again(waits: list[float], headers: dict[str, str]) -> None:
    with scripted(httpx.Response(503, headers=headers)) as client, pytest.raises(ServiceError):
        client.models()
    assert waits == []


def test_an_answer_that_is_no_problem_document_is_an_error_all_the_same() -> None:
    with (
        scripted(httpx.Response(502, text="<html>Bad gateway</html>")) as client,
        pytest.raises(ServiceError) as failed,
    ):
        client.models()
    assert failed.value.code == "http_502"
