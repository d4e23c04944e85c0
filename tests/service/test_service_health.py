"""`/livez`, `/readyz` and `/info` over the life of a service."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.registry import ModelSlot, Phase, find_bundles
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import PATIENCE, Served, paint, wait_for
from tests.service.test_service_problems import check
from transferapp.bundle.predictor import Predictor
from transferapp.errors import BundleError


def test_from_loading_over_warming_to_ready(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    build, warm = ModelSlot._build, ModelSlot._warm
    may_build, may_warm = threading.Event(), threading.Event()

    def slow_build(slot: ModelSlot) -> Predictor:
        assert may_build.wait(PATIENCE)
        return build(slot)

    def slow_warm(slot: ModelSlot, predictor: Predictor) -> None:
        assert may_warm.wait(PATIENCE)
        warm(slot, predictor)

    monkeypatch.setattr(ModelSlot, "_build", slow_build)
    monkeypatch.setattr(ModelSlot, "_warm", slow_warm)
    served = serve(wait=False)
    try:
        assert served.client.get("/livez").json() == {"status": "alive"}  # though nothing is ready
        for path in ("/readyz", "/info"):
            answer = served.client.get(path)
            assert check(answer, 503, "not_ready")["phase"] == "loading"
            assert answer.headers["retry-after"] == "1"
        check(served.predict(paint()), 503, "not_ready")
        may_build.set()
        served.until(Phase.WARMING)
        assert check(served.client.get("/readyz"), 503, "not_ready")["phase"] == "warming"
        assert served.client.get("/models").json()["models"][0]["phase"] == "warming"
        may_warm.set()
        served.until(Phase.READY)
        version = served.app.state.models.slot().get().bundle.version
        answer = served.client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "model": "tiny", "version": version})
    finally:
        may_build.set()
        may_warm.set()


def test_a_bundle_that_cannot_be_loaded(serve: Callable[..., Served], tmp_path: Path) -> None:
    damaged = make_tiny_bundle(tmp_path / "damaged")
    (damaged / "model.bin").write_bytes(b"altered")
    called: list[bool] = []

    def prepare(app: FastAPI) -> None:
        app.state.models.on_failure = lambda: called.append(True)

    served = serve(wait=False, models=damaged, prepare=prepare)
    served.until(Phase.FAILED)
    wait_for(lambda: bool(called))
    answer = served.client.get("/readyz")
    assert check(answer, 503, "not_ready")["phase"] == "failed"
    assert "retry-after" not in answer.headers
    assert called == [True]
    assert isinstance(served.app.state.models.error, BundleError)
    assert served.client.get("/livez").status_code == 200


@pytest.mark.parametrize("side", [16, 100])
def test_a_low_limit_on_pixels_keeps_no_bundle_from_serving(serve: Callable[..., Served], side: int) -> None:
    served = serve(max_pixels=side * side)
    assert served.client.get("/readyz").status_code == 200
    assert served.predict(paint(size=(side, side))).status_code == 200
    assert served.predict(paint(size=(side, side + 1))).status_code == 413


def test_head_answers_without_a_body(service: Served) -> None:
    for path in ("/livez", "/readyz"):
        answer = service.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_info(service: Served) -> None:
    info = service.client.get("/info").json()
    assert info == {
        "name": "tiny",
        "version": service.app.state.models.slot().get().bundle.version,
        "class_names": ["red", "green", "blue"],
        "image_size": [224, 224],
        "default_views": 10,
        "precision": "f32",
        "coverage": None,
        "metrics": {"test": {"accuracy": 1.0}},
        "backbone": "color",
        "created": "2026-01-01T00:00:00+00:00",
        "report": False,
        "limits": {
            "max_body_bytes": 20_000_000,
            "max_pixels": 25_000_000,
            "min_side": 16,
            "max_aspect": 20.0,
            "max_top_k": 10_000,
            "max_files": 16,
            "views": [1, 10, 50],
        },
    }


def test_a_bundle_is_found_by_itself_and_every_one_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No bundle was found in"):
        find_bundles(tmp_path)
    first = make_tiny_bundle(tmp_path / "first")
    (tmp_path / "not a bundle").mkdir()
    assert find_bundles(tmp_path) == {"first": first} == find_bundles(first)
    second = make_tiny_bundle(tmp_path / "second")
    second.rename(tmp_path / "2nd")
    assert find_bundles(tmp_path) == {"2nd": tmp_path / "2nd", "first": first}  # called as their folders are
    assert find_bundles(tmp_path / "2nd") == {"second": tmp_path / "2nd"}  # alone, as its manifest says
    with pytest.raises(BundleError, match="No bundle was found at"):
        find_bundles(tmp_path / "gone")
