"""Bounded queue in front of the predictor.

Worker threads run predictions, one per core; a fixed number of jobs may wait, and the next is refused at once. Jobs wait in
the event loop and not in the thread pool's own queue, so a request that is cancelled while it waits (its client has gone)
leaves nothing behind: no inference, no bytes held.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.problems import RequestError

T = TypeVar("T")

_SMOOTHING = 0.1
"""Weight of the newest job in the running mean of seconds per job."""


class WorkerPool:
    """Worker threads and their queue. Used from one event loop.

    Args:
        workers: Jobs at once.
        queue_size: Jobs that may wait.
    """

    def __init__(self, workers: int, queue_size: int) -> None:
        self.workers = workers
        self.queue_size = queue_size
        self.waiting = 0
        self.running = 0
        self._mean_seconds = 0.1
        self._slots = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="predict")

    def check(self) -> None:
        """Check for room in the queue, before any work is put into a request.

        Raises:
            RequestError: The queue is full.
        """
        if self._slots.locked() and self.waiting >= self.queue_size:
            raise RequestError(
                f"{self.running} predictions are running and {self.waiting} waiting",
                code="overloaded",
                limit={"queue_size": self.queue_size},
                headers={"Retry-After": str(self.retry_after())},
            )

    def retry_after(self) -> int:
        """Return the whole seconds until the present queue is likely to be empty."""
        return max(1, math.ceil((self.waiting + 1) * self._mean_seconds / self.workers))

    async def run(self, job: Callable[[], T], *, timeout: float, admitted: bool = False) -> T:
        """Wait for a worker and let it run `job`.

        Cancelling this while the job waits removes it from the queue. A job that a thread has begun cannot be stopped; its
        worker is free again only when it has ended.

        Args:
            job: Run in a thread.
            timeout: Seconds for waiting and work together.
            admitted: Whether its request was admitted before; then it waits even in a full queue.

        Raises:
            RequestError: The queue is full, or `timeout` seconds have passed.
        """
        if not admitted:
            self.check()
        try:
            async with asyncio.timeout(timeout):
                self.waiting += 1
                try:
                    await self._slots.acquire()
                finally:
                    self.waiting -= 1
                return await asyncio.shield(self._start(job))
        except TimeoutError as error:
            raise RequestError(
                "The prediction was not ready in time",
                code="timeout",
                limit={"request_timeout": timeout},
                headers={"Retry-After": str(self.retry_after())},
            ) from error

    def _start(self, job: Callable[[], T]) -> asyncio.Future[T]:
        started = time.perf_counter()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, job)
        except BaseException:
            self._slots.release()
            raise
        self.running += 1

        def finished(future: asyncio.Future[T]) -> None:
            self.running -= 1
            self._slots.release()
            self._mean_seconds += _SMOOTHING * (time.perf_counter() - started - self._mean_seconds)
            if not future.cancelled():
                future.exception()  # marks it as retrieved: the request may be gone

        future.add_done_callback(finished)
        return future

    def close(self) -> None:
        """Wait for running jobs and refuse new ones."""
        self._threads.shutdown(wait=True, cancel_futures=True)


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it when the client disconnects.

    Args:
        receive: The request's channel; its body must have been read.
        work: Cancelled if nobody waits for it any more.

    Raises:
        ClientDisconnect: The client has gone.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
