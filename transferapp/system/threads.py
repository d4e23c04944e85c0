"""Threads: how many the process may use, and ordered work with bounded memory."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Result = TypeVar("Result", covariant=True)


def cpu_cores(root: Path = Path("/")) -> int:
    """Return the number of CPU cores that this process may use: its affinity, capped by the CPU quota of its control groups.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to ask for
        cores = os.cpu_count() or 1
    # A container may have 0.5 or 2.5 cores: rounding up lets it use all of its quota.
    quotas = [math.ceil(quota) for quota in _cpu_quotas(root)]
    return max(1, min([cores, *quotas]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the quota in cores of each control group (version 1 or 2) that the process is in; groups are nested."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []  # no Linux
    groups = {"": "/"}  # version 2 has no controller in its line
    groups |= {
        controllers: path for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1)
    }
    for controllers, path in groups.items():
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # A container sees its own group at the mount point, whatever path /proc gives; missing folders are passed over.
        for group in (mount / path.strip("/"), *(mount / parent for parent in Path(path.strip("/")).parents)):
            yield from _quota_of(group)


def _quota_of(group: Path) -> Iterator[float]:
    """Yield the quota that one control group sets, in cores, if it sets one."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        if quota != "max" and int(quota) > 0:  # version 1 writes -1 for no limit
            yield int(quota) / int(period)


@functools.cache
def _libraries() -> Any:
    """Return the loaded libraries that have threads of their own. Finding them takes seven milliseconds, so it is done once."""
    import threadpoolctl  # the served process imports this module, but not that one

    return threadpoolctl.ThreadpoolController()


_limiting = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit matrix products to the calling thread within the block, for work that shares the cores among threads already.

    The limit is of the whole process. Within the block of another thread this one changes nothing: if it ended later, and
    restored what it had found, the limit would stay.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()


def on_all_cores(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield the results of numerical work in order, one item a core; matrix products have one thread each.

    An error or an interrupt abandons the rest, which may take minutes.

    Args:
        work: Called with each item; spends its time in NumPy, which releases Python's lock.
        items: The longest first, so that no core has one to itself at the end.
    """
    pool = ThreadPoolExecutor(cpu_cores())
    try:
        with one_blas_thread():
            yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Pending(Protocol[Result]):
    """Protocol of a result to come, as a `Future` is."""

    def result(self) -> Result: ...
    def cancel(self) -> object: ...


class Pool(Protocol):
    """Protocol of a pool of workers, as a `ThreadPoolExecutor` is."""

    def submit(self, work: Callable[[T], R], item: T, /) -> Pending[R]: ...


def in_order(pool: Pool, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Yield the results of `work` in order, as `pool.map` does, with at most `window` items in hand.

    Memory stays flat. An error or an early end cancels what has not begun.

    Args:
        pool: Workers that do the work.
        work: Called with each item.
        items: Taken as they are needed.
        window: At least the number of threads, or some would be idle.
    """
    pending: deque[Pending[R]] = deque()
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
