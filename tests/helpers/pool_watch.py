"""A count of the items that thread pools have in hand."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest


class PoolWatch:
    """While it is installed, each item that a thread pool works on takes a little longer, and items are counted.

    Attributes:
        most: Largest number of items that were submitted and not yet done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._lock, self._in_hand = threading.Lock(), 0
        submit = ThreadPoolExecutor.submit

        def watched(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            def slow() -> Any:
                time.sleep(0.01)
                return work(*args, **kwargs)

            with self._lock:
                self._in_hand += 1
                self.most = max(self.most, self._in_hand)
            future = submit(pool, slow)
            future.add_done_callback(self._done)
            return future

        monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._in_hand -= 1
