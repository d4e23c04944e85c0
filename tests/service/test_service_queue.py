"""The bounded queue: refusal, disconnected clients, timeouts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.problems import RequestError
from service.queue import WorkerPool
from tests.service.conftest import PATIENCE, Gate, Served, paint, wait_for
from tests.service.test_service_problems import check


def test_beyond_the_queue_503_at_once(serve: Callable[..., Served], gate: Callable[[Served], Gate]) -> None:
    served = serve(workers=1, queue_size=2)
    held = gate(served)
    pool = served.app.state.pool
    with ThreadPoolExecutor(3) as threads:
        accepted = [threads.submit(served.predict, paint()) for _ in range(3)]
        wait_for(lambda: (pool.running, pool.waiting) == (1, 2))
        for _ in range(10):
            answer = served.predict(paint())
            document = check(answer, 503, "overloaded")
            assert document["limit"] == {"queue_size": 2}
            assert int(answer.headers["retry-after"]) >= 1
        assert (pool.running, pool.waiting) == (1, 2)  # answered while all that was before them still waits
        assert served.client.get("/readyz").status_code == 200
        held.open()
        assert [future.result().status_code for future in accepted] == [200] * 3
    wait_for(lambda: (pool.running, pool.waiting) == (0, 0))
    assert len(held.calls) == 3


def test_no_inference_for_a_client_that_has_gone(serve: Callable[..., Served], gate: Callable[[Served], Gate]) -> None:
    served = serve(workers=1, queue_size=5)
    held = gate(served)
    pool = served.app.state.pool
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(served.predict, paint("red"))
        wait_for(lambda: pool.running == 1)
        impatient = socket.create_connection(served.address)
        image = paint("blue")
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
        impatient.sendall(head % len(image) + image)
        wait_for(lambda: pool.waiting == 1)
        last = threads.submit(served.predict, paint("green"))
        wait_for(lambda: pool.waiting == 2)
        impatient.close()
        wait_for(lambda: pool.waiting == 1)
        held.open()
        assert first.result().json()["predictions"][0]["label"] == "red"
        assert last.result().json()["predictions"][0]["label"] == "green"
    assert held.calls == [paint("red"), paint("green")]


def test_an_answer_that_takes_too_long(serve: Callable[..., Served], gate: Callable[[Served], Gate]) -> None:
    served = serve(workers=1, request_timeout=0.2)
    held = gate(served)
    answer = served.predict(paint())
    check(answer, 503, "timeout")
    assert "retry-after" in answer.headers
    assert served.app.state.pool.running == 1  # the thread cannot be stopped, and still counts
    held.open()
    wait_for(lambda: served.app.state.pool.running == 0)
    wait_for(lambda: served.predict(paint(), views=1).status_code == 200)  # a busy machine may need another try


def test_the_pool_keeps_its_order_and_its_bounds() -> None:
    async def scenario() -> None:
        pool = WorkerPool(workers=1, queue_size=2)
        release, done = threading.Event(), []
        held = asyncio.ensure_future(pool.run(release.wait, timeout=PATIENCE))
        await asyncio.sleep(0)
        queued = [asyncio.ensure_future(pool.run(lambda i=i: done.append(i), timeout=PATIENCE)) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await pool.run(lambda: None, timeout=PATIENCE)
        assert refused.value.code == "overloaded"
        queued[0].cancel()
        await asyncio.sleep(0)
        queued.append(
            asyncio.ensure_future(pool.run(lambda: done.append(2), timeout=PATIENCE))
        )  # its place is free again
        release.set()
        await asyncio.gather(held, *queued[1:])
        assert done == [1, 2]
        assert (pool.running, pool.waiting) == (0, 0)
        pool.close()

    asyncio.run(scenario())


def test_a_job_that_fails_frees_its_worker() -> None:
    async def scenario() -> None:
        pool = WorkerPool(workers=1, queue_size=0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await pool.run(lambda: 1 / 0, timeout=PATIENCE)
        pool.close()

    asyncio.run(scenario())


def test_retry_after_grows_with_the_queue() -> None:
    async def scenario() -> None:
        pool = WorkerPool(workers=2, queue_size=1000)
        short = pool.retry_after()
        pool.waiting = 999
        assert short == 1
        assert pool.retry_after() == 50  # a thousand jobs of 0.1 s, two at a time
        pool.close()

    asyncio.run(scenario())
