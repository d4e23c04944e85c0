"""The service in its own process: imports, shutdown, failures at the start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from service.server import listen
from service.uvicorn_internals import CLOSING_SECONDS, HttpConnection, Server
from tests.helpers.tiny_bundle import make_tiny_bundle
from tests.service.conftest import PATIENCE, paint, wait_for
from transferapp.cli.serve import command
from transferapp.errors import ResourceError, UsageError

PROGRAM = """
import sys
from transferapp.errors import TransferAppError
try:
    from service.server import run
    from service.settings import read_settings
    run(read_settings())
except TransferAppError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print([name for name in ("tensorflow", "keras", "torch", "jax") if name in sys.modules])
"""

Start = Callable[..., "Process"]


class Process:
    """A service in its own process."""

    def __init__(self, environment: dict[str, str]) -> None:
        root = str(Path(__file__).parents[2])
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": root, "TRANSFERAPP_PORT": "0", **environment},
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """Wait for the model and return the address."""
        assert self.popen.stderr
        listening = json.loads(self.popen.stderr.readline())
        ready = json.loads(self.popen.stderr.readline())
        assert (listening["event"], ready["event"]) == ("listening", "model_ready")
        return str(listening["url"])


@pytest.fixture
def start(bundle: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(**environment: str) -> Process:
        started.append(Process({"TRANSFERAPP_MODELS": str(bundle), **environment}))
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def test_sigterm_under_load_finishes_what_was_accepted_and_no_tensorflow(start: Start) -> None:
    process = start(TRANSFERAPP_WORKERS="1")
    url = process.url()
    answers: list[Any] = []
    refused = threading.Event()

    def load() -> None:
        while True:  # a new connection for each request; a kept one may be closed between two, as HTTP allows
            try:
                answers.append(
                    httpx.post(
                        f"{url}/predict?views=50", content=paint(), headers=headers, timeout=PATIENCE
                    ).status_code
                )
            except httpx.ConnectError:
                refused.set()
                return
            except httpx.HTTPError as error:
                answers.append(error)

    headers = {"content-type": "image/jpeg"}
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) >= 4)
    process.popen.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    output, _ = process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 0
    assert refused.is_set()
    assert len(answers) > 4
    assert set(answers) == {200}
    assert output.strip() == "[]"


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("wait", [0, CLOSING_SECONDS / 2])
def test_connections_that_nobody_has_accepted_at_the_order_to_stop_are_answered(wait: float) -> None:
    async def stop() -> tuple[list[bytes], int]:
        config = uvicorn.Config(_answer, http=HttpConnection, lifespan="off", log_config=None)
        config.load()
        server = Server(config, lambda: None, notice=0)
        server.lifespan = config.lifespan_class(config)
        with listen("127.0.0.1", 0) as listener:
            await server.startup([listener])
            # The loop does not turn here: the kernel alone makes these connections.
            clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
            stopping = asyncio.create_task(server.shutdown([listener]))
            await asyncio.sleep(wait)
            answers = []
            for client in clients:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                answers.append(await asyncio.get_running_loop().sock_recv(client, 1000))
                client.close()
            await stopping
            return answers, len(server.server_state.connections)

    answers, left = asyncio.run(stop())
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 204 No Content"] * 3
    assert not wait or all(b"connection: close" in answer for answer in answers)
    assert left == 0


def test_a_port_set_by_kubernetes_stops_neither_the_service_nor_its_health_check(start: Start) -> None:
    environment = {"TRANSFERAPP_HOST": "127.0.0.77", "TRANSFERAPP_PORT": "tcp://10.96.0.12:8000"}
    process = start(**environment)
    assert process.popen.stderr
    assert json.loads(process.popen.stderr.readline())["event"] == "port_ignored"
    assert process.url() == "http://127.0.0.77:8000"
    wait_for(lambda: httpx.get("http://127.0.0.77:8000/readyz").status_code == 200)
    check = [sys.executable, "-m", "service.healthcheck"]
    subprocess.run(check, env={**os.environ, **environment}, cwd=Path(__file__).parents[2], check=True)


def test_killed_it_leaves_no_litter_and_starts_again(start: Start, bundle: Path) -> None:
    before = sorted(bundle.parent.rglob("*"))
    process = start()
    port = process.url().rpartition(":")[2]
    process.popen.kill()
    process.popen.wait()
    again = start(TRANSFERAPP_PORT=port)
    assert again.url().endswith(port)
    assert sorted(bundle.parent.rglob("*")) == before


@pytest.mark.slow
def test_killed_twenty_times_it_starts_again_each_time_and_leaves_no_litter(start: Start, bundle: Path) -> None:
    before = sorted(bundle.parent.rglob("*"))
    port = ""
    for _ in range(20):
        process = start(**({"TRANSFERAPP_PORT": port} if port else {}))
        url = process.url()
        port = url.rpartition(":")[2]
        assert httpx.post(f"{url}/predict", content=paint(), timeout=PATIENCE).status_code == 200
        process.popen.kill()
        process.popen.wait()
    assert sorted(bundle.parent.rglob("*")) == before


def test_it_tells_balancers_that_it_is_stopping_and_serves_meanwhile(start: Start) -> None:
    process = start(TRANSFERAPP_DRAIN_NOTICE_SECONDS="60")
    url = process.url()
    assert httpx.get(f"{url}/readyz", timeout=PATIENCE).status_code == 200
    process.popen.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx.get(f"{url}/readyz", timeout=PATIENCE).status_code == 503)
    answer = httpx.get(f"{url}/readyz", timeout=PATIENCE)
    assert (answer.json()["code"], answer.json()["phase"]) == ("not_ready", "draining")
    assert httpx.get(f"{url}/livez", timeout=PATIENCE).status_code == 200
    assert httpx.post(f"{url}/predict", content=paint(), timeout=PATIENCE).status_code == 200  # on a new connection
    process.popen.send_signal(signal.SIGTERM)  # a second one ends the notice
    process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 0


def test_the_notice_ends_by_itself(start: Start) -> None:
    process = start(TRANSFERAPP_DRAIN_NOTICE_SECONDS="0.3")
    process.url()
    process.popen.send_signal(signal.SIGTERM)
    process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 0


def test_a_named_default_that_is_not_there_ends_it_with_one_line_and_4(start: Start) -> None:
    process = start(TRANSFERAPP_DEFAULT_MODEL="cats")
    _, errors = process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 4
    assert [line for line in errors.splitlines() if "listening" not in line] == [
        line for line in errors.splitlines() if "no model 'cats'" in line
    ]


def test_a_bad_bundle_ends_it_with_one_line_and_4(start: Start, tmp_path: Path) -> None:
    damaged = make_tiny_bundle(tmp_path / "damaged")
    (damaged / "model.bin").write_bytes(b"altered")
    process = start(TRANSFERAPP_MODELS=str(damaged))
    _, errors = process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 4
    said = [line for line in errors.splitlines() if "listening" not in line]
    assert len(said) == 1, errors
    assert "checksum differs" in said[0]


def test_a_port_in_use_ends_it_with_one_line_and_5(start: Start) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        process = start(TRANSFERAPP_PORT=str(port))
        _, errors = process.popen.communicate(timeout=PATIENCE)
    assert process.popen.returncode == 5
    assert len(errors.splitlines()) == 1
    assert f"127.0.0.1:{port}: the port is in use" in errors


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(ResourceError, match=r"Cannot listen on 203\.0\.113\.1:0"):
        listen("203.0.113.1", 0)
    with pytest.raises(ResourceError, match="Cannot listen on no such host"):
        listen("no such host", 0)


def test_the_command_needs_no_argument_where_the_environment_says_all(bundle: Path) -> None:
    environment = {"TRANSFERAPP_MODELS": str(bundle.parent), "TRANSFERAPP_HOST": "127.0.0.2", "TRANSFERAPP_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "transferapp", "serve"],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        listening = json.loads(process.stderr.readline())
        assert listening["url"].startswith("http://127.0.0.2:")
        assert not listening["url"].endswith(":8000")
        process.stderr.readline()  # ready
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_another_package_of_that_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.registry", None)
    with pytest.raises(UsageError, match="Another package named `service`"):
        command.main(["models"], standalone_mode=False)


def test_the_factory_serves_by_the_environment_alone(start: Start, bundle: Path) -> None:
    code = "import uvicorn; uvicorn.run('service.app:create_app', factory=True, port=0, log_level='info')"
    environment = {**os.environ, "TRANSFERAPP_MODELS": str(bundle)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        lines: list[str] = []
        while not any("model_ready" in line for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
