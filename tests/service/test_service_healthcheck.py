"""`python -m service.healthcheck`, the health check of the container."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.healthcheck import ready_url
from service.registry import Phase
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import Served

ROOT = Path(__file__).parents[2]


def ask(port: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.healthcheck"],
        env={"TRANSFERAPP_PORT": str(port), "TRANSFERAPP_HOST": "0.0.0.0", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:8000/readyz"),
        ({"TRANSFERAPP_HOST": "0.0.0.0", "TRANSFERAPP_PORT": "9000"}, "http://127.0.0.1:9000/readyz"),
        ({"TRANSFERAPP_HOST": "::"}, "http://[::1]:8000/readyz"),
        ({"TRANSFERAPP_HOST": "10.0.0.7"}, "http://10.0.0.7:8000/readyz"),
        ({"TRANSFERAPP_PORT": "tcp://10.96.0.12:8000"}, "http://127.0.0.1:8000/readyz"),
    ],
)
def test_it_asks_where_the_service_listens(environment: dict[str, str], url: str) -> None:
    assert ready_url(environment) == url


def test_a_ready_service_is_healthy_whatever_the_proxy(service: Served) -> None:
    done = ask(service.address[1], http_proxy="http://203.0.113.1:1")
    assert (done.returncode, done.stderr) == (0, "")


def test_one_that_cannot_load_its_model_is_not(serve: Callable[..., Served], tmp_path: Path) -> None:
    damaged = make_tiny_bundle(tmp_path / "damaged")
    (damaged / "model.bin").write_bytes(b"altered")
    served = serve(wait=False, models=damaged)
    served.until(Phase.FAILED)
    done = ask(served.address[1])
    assert done.returncode == 1
    assert '"phase":"failed"' in done.stderr


def test_none_at_all_is_not(unused_port: int) -> None:
    done = ask(unused_port)
    assert done.returncode == 1
    assert f"127.0.0.1:{unused_port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
