"""Open Inference Protocol: `/v2`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from service.registry import Phase
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import Served, paint
from tests.service.test_service_problems import check

PATH = "/v2/models/tiny/infer"


def document(*images: bytes, **members: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}], **members}


def infer(served: Served, *images: bytes, **members: Any) -> httpx.Response:
    return served.client.post(PATH, json=document(*images, **members))


def test_labels_and_scores_are_those_of_predict(service: Served) -> None:
    colors = ["blue", "red"]
    answer = infer(service, *map(paint, colors), id="first", parameters={"views": 1, "top_k": 2}).json()
    label, score = answer["outputs"]
    assert (answer["id"], answer["model_name"]) == ("first", "tiny")
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "BYTES", [2, 2])
    assert (score["name"], score["datatype"], score["shape"]) == ("score", "FP32", [2, 2])
    expected = [service.predict(paint(color), views=1, top_k=2).json() for color in colors]
    flat = [entry for one in expected for entry in one["predictions"]]
    assert list(zip(label["data"], score["data"], strict=True)) == [(entry["label"], entry["score"]) for entry in flat]
    assert answer["model_version"] == expected[0]["model_version"]


def test_defaults_are_those_of_predict(service: Served) -> None:
    answer = infer(service, paint()).json()
    assert "id" not in answer
    expected = [(entry["label"], entry["score"]) for entry in service.predict(paint()).json()["predictions"]]
    assert list(zip(answer["outputs"][0]["data"], answer["outputs"][1]["data"], strict=True)) == expected


def test_members_of_the_protocol_that_change_nothing_are_accepted(service: Served) -> None:
    body = document(paint(), outputs=[{"name": "label"}, {"name": "score"}])
    body["inputs"][0]["parameters"] = {"content_type": "base64"}
    assert service.client.post(PATH, json=body).status_code == 200


@pytest.mark.parametrize(
    ("change", "code", "status"),
    [
        ({"inputs": []}, "invalid_request", 422),
        ({"parameters": {"views": 7}}, "views", 422),
        ({"parameters": {"top_k": 0}}, "top_k", 422),
        *(
            ({"inputs": [document(paint())["inputs"][0] | tensor]}, "invalid_request", 422)
            for tensor in ({"shape": [2]}, {"shape": []}, {"datatype": "FP32"}, {"data": []}, {"data": ["not base64!"]})
        ),
        (document(paint(), paint()[:300]), "truncated", 422),
        (document(b"<html>"), "unsupported_format", 415),
        (document(*[b"x"] * 17), "too_many_files", 422),
    ],
)
def test_a_request_that_cannot_be_used(service: Served, change: dict[str, Any], code: str, status: int) -> None:
    problem = check(service.client.post(PATH, json=document(paint()) | change), status, code)
    assert problem["error"] == problem["detail"]


def test_the_image_at_fault_is_named(service: Served) -> None:
    assert infer(service, paint(), paint(), b"").json()["error"].startswith("data[2]: ")


def test_another_model_and_what_is_not_json(service: Served) -> None:
    assert check(service.client.post("/v2/models/none/infer", json=document(paint())), 404, "model_not_found")["error"]
    assert check(service.client.post(PATH, content=b"{"), 400, "malformed_body")["error"]
    compressed = service.client.post(PATH, content=b"{}", headers={"content-encoding": "gzip"})
    assert check(compressed, 415, "unsupported_media_type")["error"]


def test_no_member_error_elsewhere(service: Served) -> None:
    assert "error" not in check(service.predict(b""), 422, "empty_file")


def test_descriptions(service: Served) -> None:
    assert service.client.get("/v2").json() == {
        "name": "transferapp",
        "version": service.app.version,
        "extensions": [],
    }
    model = service.client.get("/v2/models/tiny").json()
    assert model["versions"] == [service.client.get("/info").json()["version"]]
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [tensor["name"] for tensor in model["outputs"]] == ["label", "score"]
    check(service.client.get("/v2/models/none"), 404, "model_not_found")


def test_health(serve: Callable[..., Served], service: Served, tmp_path: Path) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
        assert service.client.get(path).status_code == 200
    damaged = make_tiny_bundle(tmp_path / "damaged")
    (damaged / "model.bin").write_bytes(b"altered")
    failed = serve(wait=False, models=damaged, api_keys=(SecretStr("a-key-of-16-signs"),))
    failed.until(Phase.FAILED)
    assert failed.client.get("/v2/health/live").status_code == 200
    assert check(failed.client.get("/v2/health/ready"), 503, "not_ready")["phase"] == "failed"
    check(failed.client.get("/v2/models/tiny"), 401, "unauthorized")


def test_images_are_charged(serve: Callable[..., Served]) -> None:
    served = serve(rate_limit=0.001, rate_burst=5)
    assert infer(served, *[paint()] * 5).status_code == 200
    check(infer(served, paint()), 429, "rate_limited")
    assert served.client.get("/v2/health/ready").status_code == 200
