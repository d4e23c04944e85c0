"""The service on Ray Serve gives the answers of `transferapp serve`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import PATIENCE, Served, paint
from transferapp.system.cluster import connected

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def replicated(bundle: Path) -> Iterator[httpx.Client]:
    """A client for Ray Serve with the tiny bundle."""
    pytest.importorskip("ray.serve")
    from ray import serve

    from service.ray_serve import app

    with socket.socket() as probe, pytest.MonkeyPatch.context() as environment:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        environment.setenv("TRANSFERAPP_MODELS", str(bundle))
        environment.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with connected("local"):
            probe.close()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app, name="transferapp", route_prefix="/")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                yield client
            serve.shutdown()


@pytest.mark.slow
def test_answers_are_those_of_one_process(replicated: httpx.Client, service: Served) -> None:
    assert replicated.get("/readyz").status_code == 200
    for color in ("red", "green", "blue"):
        expected = service.predict(paint(color)).json()
        form = replicated.post("/predict", files={"file": paint(color)}).json()
        raw = replicated.post("/models/tiny/predict", content=paint(color)).json()
        assert form | {"seconds": 0} == raw | {"seconds": 0} == expected | {"seconds": 0}
    several = replicated.post("/predict", files=[("file", paint()), ("file", b"")]).json()["results"]
    assert [entry.get("code") for entry in several] == [None, "empty_file"]
    refused = replicated.post("/predict", content=b"<html>")
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_format")
    assert "transferapp_queue_running 0.0" in replicated.get("/metrics").text
    assert replicated.get("/info").json() == service.client.get("/info").json()
