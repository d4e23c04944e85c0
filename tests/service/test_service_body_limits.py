"""Bodies that are too large, too slow or too many, and silent connections."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.middleware import body_limits
from tests.service.conftest import PATIENCE, Gate, Served, paint, wait_for
from tests.service.test_service_problems import check

MIB = 1 << 20
NEVER: dict[str, Any] = {"header_seconds": 600, "body_seconds": 600, "keep_alive_seconds": 600}
"""Deadlines out of reach, except for the one that a test sets."""
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"


def connect(served: Served) -> socket.socket:
    return socket.create_connection(served.address, timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Return the bytes that arrive until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def ask_ready(connection: socket.socket) -> bool:
    """Return whether a request on this connection is answered with 200; leave it open."""
    connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    return answer.startswith(b"HTTP/1.1 200")


def test_a_declared_length_over_the_limit_is_refused_unread(serve: Callable[..., Served]) -> None:
    served = serve(max_body_bytes=MIB)
    document = check(served.predict(b"x" * (2 * MIB)), 413, "body_too_large")
    assert document["limit"] == {"max_body_bytes": MIB}
    with connect(served) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_limit_is_cut_off(serve: Callable[..., Served]) -> None:
    served = serve(max_body_bytes=MIB)

    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * MIB

    answer = served.client.post("/predict", content=chunks(), headers={"content-type": "image/jpeg"})
    check(answer, 413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert check(answer, 413, "body_too_large")["detail"].endswith("got more.")


def test_an_endless_chunked_body_leaves_memory_flat(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "LINGER_SECONDS", 0.3)
    served = serve(max_body_bytes=MIB)
    chunk = b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with connect(served) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 2000:
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 2000  # it was cut off
        assert read_all(connection).startswith(b"HTTP/1.1 413")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    wait_for(lambda: not served.server.server_state.connections)


def test_a_slow_body_is_cut(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "LINGER_SECONDS", 0.1)
    served = serve(**{**NEVER, "body_seconds": 0.3})
    with connect(served) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        try:
            for _ in range(8):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:  # already cut
            pass
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answer
    assert served.predict(paint()).status_code == 200


def test_a_body_that_keeps_coming_earns_time(serve: Callable[..., Served]) -> None:
    served = serve(body_seconds=1, body_min_rate=1000)
    image = paint(size=(64, 64), form="BMP")  # 12 kB earn 12 seconds

    def drip() -> Iterator[bytes]:
        for start in range(0, len(image), 3000):
            yield image[start : start + 3000]
            time.sleep(0.3)

    answer = served.client.post("/predict", content=drip(), headers={"content-type": "image/bmp"})
    assert answer.status_code == 200


@pytest.mark.parametrize("first", [b"", b"GET /rea", b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_slow_headers_are_cut(serve: Callable[..., Served], first: bytes) -> None:
    served = serve(**{**NEVER, "header_seconds": 0.3})
    started = time.monotonic()
    with connect(served) as connection:
        connection.sendall(first)
        assert read_all(connection) == b""
        assert time.monotonic() - started > 0.2


def test_slow_headers_of_a_later_request_are_cut(serve: Callable[..., Served]) -> None:
    served = serve(**{**NEVER, "header_seconds": 1})
    with connect(served) as connection:
        assert ask_ready(connection)
        time.sleep(1.3)  # an idle connection has no deadline for headers
        assert ask_ready(connection)
        started = time.monotonic()
        connection.sendall(b"GET /")
        assert read_all(connection) == b""
        assert time.monotonic() - started > 0.7


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 10_000 + b"\r\n"],
    ids=["nonsense", "many headers"],
)
def test_what_is_no_http_is_answered_as_a_problem(service: Served, request_bytes: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(request_bytes)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


def test_an_early_answer_reaches_a_client_that_is_still_sending(service: Served) -> None:
    answer = service.client.post("/predict", content=b"x" * (5 * MIB), headers={"content-type": "text/plain"})
    check(answer, 415, "unsupported_media_type")
    check(service.client.post("/nothing", content=b"x" * (5 * MIB)), 404, "not_found")


def test_bodies_together_are_bounded(serve: Callable[..., Served], gate: Callable[[Served], Gate]) -> None:
    served = serve(max_buffered_bytes=MIB, workers=1)
    held = gate(served)
    with connect(served) as connection:
        image = b"x" * (MIB - 1000)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + image)
        wait_for(lambda: len(held.calls) == 1)
        answer = served.predict(paint(form="BMP"))
        check(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        held.open()
        assert connection.recv(100).startswith(b"HTTP/1.1 415")
    wait_for(lambda: served.predict(paint(form="BMP")).status_code == 200)


def test_answers_do_not_wait_to_be_acknowledged(service: Served) -> None:
    with socket.create_connection(service.address) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(100)
        port = client.getsockname()[1]
        connection = next(c for c in service.server.server_state.connections if c.client and c.client[1] == port)
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
