"""Work in threads, in order, with flat memory."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cpu_cores() -> int:
    """CPU cores that this process may use: as many threads decode, crop and run networks."""
    with contextlib.suppress(AttributeError):  # not every system can tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """`pool.map` that never has more than `window` items in hand, so that memory stays flat, and stops at once.

    Args:
        pool: Its threads do the work.
        work: Called with each item.
        items: Taken as they are needed.
        window: At least the number of threads, or some of them have nothing to do.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
