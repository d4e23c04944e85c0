"""The bounded queue in front of the predictor.

One thread a core runs predictions; a fixed number of requests may wait for one, and the next is refused at once,
because answering late is worse than saying so early. Waiting happens in the event loop and not in the thread pool's own
queue, so a request that is cancelled while it waits (its client has gone) leaves nothing behind: no inference, no bytes
held.
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

from service.problems import Refusal

T = TypeVar("T")

_SMOOTHING = 0.1
"""Weight of the newest job in the running mean of how long one takes."""


class WorkerPool:
    """Threads that predict, and the queue for them. Used from one event loop.

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
        """Refuse now what would be refused later, before any work is put into it.

        Raises:
            Refusal: The queue is full; Retry-After says when there may be room.
        """
        if self._slots.locked() and self.waiting >= self.queue_size:
            raise Refusal(
                f"{self.running} predictions are running and {self.waiting} waiting",
                code="overloaded",
                limit={"queue_size": self.queue_size},
                headers={"Retry-After": str(self.retry_after())},
            )

    def retry_after(self) -> int:
        """Whole seconds until the queue as it is now will have been worked off."""
        return max(1, math.ceil((self.waiting + 1) * self._mean_seconds / self.workers))

    async def run(self, job: Callable[[], T], *, timeout: float, admitted: bool = False) -> T:
        """Wait for a worker and let it do `job`.

        Args:
            job: Run in a thread.
            timeout: Seconds for waiting and work together.
            admitted: Whether it belongs to a request that has been let in before, and so waits even where the queue is full.

        Cancelling this while the job waits takes it out of the queue. A job that a thread has begun cannot be stopped;
        its worker is free again only when it has ended.

        Raises:
            Refusal: The queue is full, or `timeout` seconds have passed.
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
            raise Refusal(
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
                future.exception()  # marks it as seen: whoever waited may be gone

        future.add_done_callback(finished)
        return future

    def close(self) -> None:
        """Let running jobs end, and take no more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`, but give it up when the client goes away.

    Args:
        receive: The request's channel; its body must have been read.
        work: What the client waits for; cancelled if nobody does any more.

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
        for future in (task, watch):
            future.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
