"""`POST /predict` with valid images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import COLORS, Served, paint
from transferapp.bundle.predictor import Predictor


def two_colors(size: tuple[int, int], form: str) -> bytes:
    """Return an encoded image that is blue with one green row."""
    image = Image.new("RGB", size, COLORS["blue"])
    image.paste(COLORS["green"], (0, 0, size[0], 1))
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("color", ["red", "green", "blue"])
def test_a_form_and_a_raw_body_give_the_same_answer(service: Served, color: str) -> None:
    image = paint(color)
    form = service.client.post("/predict", files={"file": ("x.jpg", image)}).json()
    raw = service.predict(image).json()
    assert form["predictions"][0]["label"] == color
    assert form["predictions"] == raw["predictions"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; x=y"])
def test_the_bytes_and_not_the_content_type_decide_the_format(service: Served, kind: str) -> None:
    answer = service.client.post("/predict", content=paint(form="PNG"), headers={"content-type": kind})
    assert answer.status_code == 200
    assert answer.json()["format"] == "PNG"


def test_bytes_without_a_content_type_are_an_image(service: Served) -> None:
    answer = service.client.post("/predict", content=paint("blue"))
    assert "content-type" not in answer.request.headers
    assert answer.json()["predictions"][0]["label"] == "blue"


def test_ten_times_the_same_scores_equal_to_the_predictor_in_process(service: Served) -> None:
    image = paint("green", size=(300, 500))
    predictor = Predictor.load(service.app.state.settings.models)
    expected = [(score.label, score.score) for score in predictor.predict(image).scores]
    for _ in range(10):
        answer = service.predict(image).json()
        assert [(entry["label"], entry["score"]) for entry in answer["predictions"]] == expected


def test_the_answer_says_what_was_done(service: Served) -> None:
    answer = service.predict(two_colors((400, 200), "GIF"), views=1, top_k=2).json()
    predictor = service.app.state.models.slot().get()
    assert (answer["width"], answer["height"]) == (400, 200)
    assert (answer["model"], answer["model_version"]) == ("tiny", predictor.bundle.version)
    assert answer["views"] == 1
    assert answer["format"] == "GIF"
    assert answer["notes"] == []
    assert len(answer["predictions"]) == 2
    assert set(answer["seconds"]) == {"queue", "decode", "crop", "network"}


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_an_image_of_one_color_is_answered_with_a_warning(service: Served, path: str, form: str) -> None:
    plain = service.client.post(path, content=paint("blue", form=form)).json()
    assert (plain["notes"], len(plain["warnings"])) == (["single_color"], 1)
    assert service.client.post(path, content=two_colors((300, 200), form)).json()["notes"] == []


def test_defaults(service: Served) -> None:
    answer = service.predict(paint()).json()
    assert answer["views"] == 10
    assert answer["predictions"][0]["label"] == "red"
    assert len(answer["predictions"]) == 3  # five are asked for, and the model has three


def test_fifty_views(service: Served) -> None:
    assert service.predict(paint(), views=50).json()["views"] == 50


def test_hostile_file_names_change_nothing(service: Served) -> None:
    for name in ("../../etc/passwd", "a\x00b", 'x"\r\nSet-Cookie: a=b', "y" * 2000):
        head = (
            f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'
        )
        body = head.encode() + paint() + b"\r\n--B--\r\n"
        answer = service.client.post(
            "/predict", content=body, headers={"content-type": "multipart/form-data; boundary=B"}
        )
        assert answer.status_code == 200, answer.text


def test_a_field_without_a_file_name_and_other_fields_beside_it_are_fine(service: Served) -> None:
    answer = service.client.post("/predict", data={"comment": "hello"}, files={"file": (None, paint("blue"))})
    assert answer.json()["predictions"][0]["label"] == "blue"


def test_novelty_and_prediction_sets_are_told(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(models=make_tiny_bundle(tmp_path / "calibrated", calibrated=True))
    gray = io.BytesIO()
    Image.new("RGB", (320, 240), "gray").save(gray, "JPEG")
    familiar, foreign = (served.predict(image).json() for image in (paint("red"), gray.getvalue()))
    assert (familiar["known"], familiar["prediction_set"]) == (True, ["red"])
    assert 0 <= familiar["novelty"] < 0.5
    assert (foreign["known"], foreign["novelty"]) == (False, 0.95)
    assert foreign["predictions"], "the classes are there all the same"
    assert served.client.get("/info").json()["coverage"] == 0.9
    told = served.client.get("/metrics").text
    assert 'transferapp_novelty_count{model="calibrated"} 2.0' in told
    assert 'transferapp_novelty_bucket{le="0.95",model="calibrated"} 2.0' in told
    assert 'transferapp_novelty_bucket{le="0.9",model="calibrated"} 1.0' in told


def test_a_model_that_cannot_say_says_null(service: Served) -> None:
    answer = service.predict(paint()).json()
    assert (answer["novelty"], answer["known"], answer["prediction_set"]) == (None, None, None)
    assert service.client.get("/info").json()["coverage"] is None
