"""Work on a Ray cluster instead of the threads of this process.

Within `connected`, `parallel` gives groups of items to Ray tasks. Ray places them, moves what they need, and runs a task again
whose worker or node has died; results come in the order of the items, so that whoever writes them down can go on later.
Every node needs the same installation, and the images under the same paths.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

from transferapp.errors import ResourceError, UsageError, first_line
from transferapp.system.threads import cpu_cores, in_order

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
OBJECT_STORE_BYTES = 500_000_000
"""Shared memory of a local cluster, beyond which Ray spills to disk."""

_TASKS_AHEAD = 3
"""Tasks in hand for each CPU of the cluster, so that a slow one, or one that runs again, does not stop the others."""

_RETRIES = 10
"""Times that a task whose worker or node has died runs again."""

_HOST_AND_PORT = re.compile(r"([^/]+):(\d{1,5})")

_connected = False


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Let `parallel` use a cluster within the block.

    Args:
        address: `local` for worker processes on this machine, `auto` for the cluster that this machine is a node of, or the
            address of a cluster; "" for none.

    Raises:
        UsageError: Ray is not installed.
        ResourceError: There is no cluster at the address.
    """
    global _connected  # noqa: PLW0603 - Ray's own connection is one per process, too
    if not address:
        yield
        return
    ray = _import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster would report to a third party
    options: dict[str, Any] = {}
    if address == LOCAL:
        options = {
            "num_cpus": cpu_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        if match := _HOST_AND_PORT.fullmatch(address):  # Ray itself would try for minutes
            socket.create_connection((match[1], int(match[2])), timeout=5).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"There is no Ray cluster at {address} ({first_line(error)})",
            expected="local, auto, or the address of a cluster that this machine is a node of",
            hint="Start one with `ray start --head`",
        ) from error
    _connected = True
    try:
        yield
    finally:
        _connected = False
        ray.shutdown()


def parallel(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int = 2, group: int = 1
) -> Iterator[R]:
    """Yield the results of `work` in order, from threads, or from the cluster that this process is connected to.

    Args:
        work: Called with each item. On a cluster it runs in other processes: it is pickled once, and what it changes is lost.
        items: Taken as they are needed.
        threads: Number of threads; 0 for the calling one.
        ahead: Items in hand for each thread.
        group: Items in one task on a cluster. A task should take a second or so.

    Raises:
        ResourceError: A task has failed on the cluster again and again.
    """
    if not _connected and not threads:
        yield from map(work, items)
        return
    if not _connected:
        with ThreadPoolExecutor(threads) as pool:
            yield from in_order(pool, work, items, ahead * threads)
        return
    remaining = iter(items)
    groups = iter(lambda: list(islice(remaining, group)), [])

    def work_on(group: list[T]) -> list[R]:
        return [work(item) for item in group]

    tasks = _Tasks()
    for results in in_order(tasks, work_on, groups, _TASKS_AHEAD * tasks.num_cpus):
        yield from results


class _Tasks:
    """Ray tasks behind the interface of a thread pool, for `in_order`."""

    def __init__(self) -> None:
        ray = _import_ray()
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
        self._put = functools.lru_cache(1)(ray.put)
        self.num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, work: Callable[[T], R], item: T, /) -> _Result[R]:
        # A reference in a list arrives as it is; by itself it would arrive as a new copy of the work with each task.
        return _Result(self._task.remote([self._put(work)], item))


class _Result(Generic[R]):
    """The future of a task."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> R:
        ray = _import_ray()
        try:
            found: R = ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the error itself, without the worker's traceback
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"The cluster has lost a task again and again ({first_line(error)})",
                hint="Give each CPU of a node more memory, then run the same command again: what is done is kept",
            ) from error
        return found

    def cancel(self) -> None:
        _import_ray().cancel(self._reference)


def _run(work: list[Any], item: Any) -> Any:
    return _fetched(work[0])(item)


@functools.lru_cache(2)
def _fetched(reference: Any) -> Callable[[Any], Any]:
    """Return the work of a reference. A worker process keeps it, since it may have a network to compile."""
    fetched: Callable[[Any], Any] = _import_ray().get(reference)
    return fetched


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed", hint="Install transferapp[ray]") from error
    return ray
