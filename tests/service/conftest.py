"""A real server for the tests: sockets and uvicorn in a thread of this process."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from service.app import create_app
from service.registry import Phase
from service.server import build_server, listen
from service.settings import Settings
from tests.helpers.tiny_bundle import make_tiny_bundle

COLORS = {"red": (250, 20, 30), "green": (10, 240, 20), "blue": (20, 30, 250)}

PATIENCE = 60.0
"""Seconds after which a test gives up waiting. Long, since the machine may be busy with other work."""

Paint = Callable[..., bytes]


def paint(color: str = "red", *, size: tuple[int, int] = (320, 240), form: str = "JPEG", **options: Any) -> bytes:
    """Return an encoded image of one color."""
    stream = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(stream, form, **options)
    return stream.getvalue()


class Served:
    """A running service and a client for it."""

    def __init__(self, settings: Settings, prepare: Callable[[FastAPI], None] | None = None) -> None:
        self.app = create_app(settings)
        if prepare:
            prepare(self.app)
        listener = listen("127.0.0.1", 0)
        self.address: tuple[str, int] = listener.getsockname()
        self.server = build_server(self.app, settings)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.address[1]}", timeout=PATIENCE)

    def predict(self, image: bytes, **parameters: Any) -> httpx.Response:
        """Send the image as the body."""
        return self.client.post(
            "/predict", content=image, headers={"content-type": "image/jpeg"}, params=parameters or None
        )

    def until(self, *phases: Phase) -> None:
        """Wait for the model to reach a phase."""
        models = self.app.state.models
        wait_for(lambda: models.default in models.slots and models.slots[models.default].phase in phases)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def service(bundle: Path) -> Iterator[Served]:
    """A service with default settings, for tests that do not change it."""
    served = Served(Settings(models=bundle))
    served.until(Phase.READY)
    yield served
    served.close()


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Served]]:
    """Start a service with given settings, and wait until it is ready unless `wait` is False."""
    started: list[Served] = []

    def start(*, wait: bool = True, prepare: Callable[[FastAPI], None] | None = None, **settings: Any) -> Served:
        served = Served(Settings(**{"models": bundle, **settings}), prepare)
        started.append(served)
        if wait:
            served.until(Phase.READY)
        return served

    yield start
    for served in started:
        served.close()


class Gate:
    """Replacement for a predictor's `predict` that records each call and blocks it until opened."""

    def __init__(self, predict: Callable[..., Any]) -> None:
        self._predict = predict
        self._open = threading.Event()
        self.calls: list[bytes] = []

    def __call__(self, source: bytes, **options: Any) -> Any:
        self.calls.append(source)
        assert self._open.wait(PATIENCE)
        return self._predict(source, **options)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Served], Gate]]:
    """Install a gate in front of a service's predictor."""
    gates: list[Gate] = []

    def install(served: Served) -> Gate:
        predictor = served.app.state.models.slot().get()
        gates.append(Gate(predictor.predict))
        monkeypatch.setattr(predictor, "predict", gates[-1])
        return gates[-1]

    yield install
    for placed in gates:
        placed.open()
